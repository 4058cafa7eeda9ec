// The next token's distribution beside the text, recomputed at once as a slider moves, and what each rule removes.

import { ask } from "./api.js";
import { el, percent, visible } from "./dom.js";
import { apply, floats, ranked, softmax } from "./sampler.js";
import { onSettings, settings, state } from "./state.js";

const LISTED = 18;

/** A panel that shows what may come after token ids. */
export function nextPanel() {
  const title = el("p", { class: "soft" }, "Write something, or choose a token, to see what may come next.");
  const bars = el("div", { class: "bars", role: "list", "aria-label": "Most probable next tokens" });
  const falls = el("tbody");
  const table = el(
    "table",
    { hidden: true },
    el("caption", { class: "visually-hidden" }, "What each setting removes"),
    el("thead", {}, el("tr", {}, ...["stage", "value", "removes", "leaves"].map((text) => el("th", { scope: "col" }, text)))),
    falls,
  );
  /** @type {{logits: Float64Array, own: Float64Array, order: number[], texts: Record<string, string>, prompt: number[], completion: number[]} | null} */
  let shown = null;
  let calls = 0;

  const draw = () => {
    if (!shown) return;
    const { logits, own, order, texts } = shown;
    const { after, stages } = apply(logits, settings, shown);
    const most = Math.max(own[order[0]], ...order.slice(0, LISTED).map((id) => after[id]));
    bars.replaceChildren(
      ...order.slice(0, LISTED).map((id) => {
        const mine = el("span", { class: "own" });
        const left = el("span", { class: "after" });
        mine.style.width = `${(100 * own[id]) / most}%`;
        left.style.width = `${(100 * after[id]) / most}%`;
        const cut = after[id] === 0;
        return el(
          "div",
          {
            class: `bar${cut ? " cut" : ""}`,
            role: "listitem",
            title: `the model: ${percent(own[id])}, after the settings: ${cut ? "removed" : percent(after[id])}`,
          },
          el("code", {}, visible(texts[id] ?? `<${id}>`)),
          el("span", { class: "track" }, mine, left),
          el("span", { class: "number" }, percent(after[id])),
        );
      }),
    );
    const kept = after.reduce((count, p) => count + (p > 0 ? 1 : 0), 0);
    title.textContent =
      `${kept.toLocaleString("en")} of ${own.length.toLocaleString("en")} tokens can be drawn. ` +
      "Grey: what the model says; colour: after the settings.";
    table.hidden = !stages.length;
    falls.replaceChildren(
      ...stages.map((stage) =>
        el(
          "tr",
          { data: { stage: stage.name } },
          el("td", {}, stage.name.replace(/_/g, " ")),
          el("td", {}, typeof stage.value === "object" ? "…" : String(stage.value)),
          el("td", { class: "number" }, percent(stage.removed)),
          el("td", { class: "number" }, stage.kept.toLocaleString("en")),
        ),
      ),
    );
  };
  onSettings(draw);

  return {
    node: el("section", { "aria-label": "Next token", class: "next" }, el("h2", {}, "Next token"), title, bars, table),
    /**
     * Show what comes after a prompt and a completion.
     * @param {number[] | string} prompt
     * @param {number[]} [completion]
     */
    async show(prompt, completion = []) {
      const call = ++calls;
      try {
        const body = typeof prompt === "string" ? { prompt } : { prompt: [...prompt, ...completion] };
        const got = await ask("/inside/logits", { model: state.model, ...body });
        if (call !== calls) return; // somebody has asked for another place since
        const logits = floats(got.logits);
        const read = typeof prompt === "string" ? got.tokens : prompt;
        shown = { logits, own: softmax(logits), order: ranked(logits), texts: got.texts, prompt: read, completion };
        draw();
      } catch (error) {
        if (call !== calls) return;
        shown = null;
        title.textContent = error instanceof Error ? error.message : String(error);
        bars.replaceChildren();
        table.hidden = true;
      }
    },
  };
}
