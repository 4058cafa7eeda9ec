// Adapters: the same prompt for the base model and for each tuning of it, side by side.

import { chip, legend } from "./chips.js";
import { controls } from "./controls.js";
import { el, notice } from "./dom.js";
import { keep, recall, settings, state } from "./state.js";
import { write } from "./writing.js";

/** The section. */
export function compareSection() {
  const names = [state.about.name, ...Object.keys(state.about.adapters)];
  const chosen = new Set(names);
  const prompt = el("textarea", { id: "compare-prompt", "aria-label": "Prompt", value: recall("compare", ""), placeholder: "One prompt for all." });
  const cards = el("div", { class: "cards", id: "cards" });
  const go = el("button", { type: "button", class: "primary", id: "compare-go" }, "Write side by side");
  const picks = names.map((name) => {
    const box = el("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => (box.checked ? chosen.add(name) : chosen.delete(name)));
    return el("label", {}, box, ` ${name}`);
  });
  const run = async () => {
    keep("compare", prompt.value);
    go.disabled = true;
    const seed = settings.seed ?? Math.floor(Math.random() * 2 ** 31);
    cards.replaceChildren();
    const asked = names.filter((name) => chosen.has(name)).map((name) => {
      const output = el("div", { class: "output", data: { model: name } });
      const method = state.about.adapters[name];
      cards.append(el("article", { class: "card" }, el("h2", {}, name), el("p", { class: "soft" }, method ? `adapter: ${method}` : "the base model"), output));
      return { name, output };
    });
    try {
      await Promise.all(asked.map(({ name, output }) => write({ prompt: prompt.value, model: name, seed }, (piece) => output.append(chip(piece)))));
    } catch (error) {
      notice(error instanceof Error ? error.message : String(error));
    } finally {
      go.disabled = false;
    }
  };
  go.addEventListener("click", () => void run());
  const note = names.length > 1 ? null : el("p", { class: "soft", id: "no-adapters" }, "No adapter is loaded. Start the server with --adapter NAME=DIR, one or several, to see a task switched per request.");
  return {
    node: el(
      "div",
      { class: "columns" },
      el("section", { "aria-label": "Side by side" }, note, prompt, el("div", { class: "row" }, ...picks), el("div", { class: "row" }, go, el("span", { class: "grow" }), legend()), cards),
      el("aside", {}, controls()),
    ),
    shown: () => prompt.focus(),
  };
}
