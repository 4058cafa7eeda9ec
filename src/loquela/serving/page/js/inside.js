// Inside: pictures of the request just made, computed by the server for that very text and adapter.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { plot } from "./plot.js";
import { asked, recall, keep, state } from "./state.js";

/** Pictures that follow the settings of generation. */
const FOLLOWS = ["next", "loop"];

/** The section. */
export function insideSection() {
  const own = el("textarea", { id: "inside-text", "aria-label": "Text to look into", placeholder: "Empty: the text of the request just made." });
  const figures = el("div", { id: "figures", "aria-live": "polite" });
  const options = el("div", { class: "row", id: "picture-options" });
  /** @param {string} otherwise */
  const chosen = (otherwise) => {
    const name = recall("picture", otherwise);
    return state.about.pictures.some((p) => p.name === name) ? name : otherwise;
  };
  let picture = chosen("tokens");
  /** @type {Record<string, Record<string, string>>} */
  const given = {};
  const names = el(
    "div",
    { class: "segmented", role: "group", "aria-label": "Pictures" },
    ...state.about.pictures.map((card) =>
      el("button", { type: "button", data: { picture: card.name }, title: card.title, textContent: card.name, on: { click: () => choose(card.name) } }),
    ),
  );
  let calls = 0;

  const draw = async () => {
    const call = ++calls;
    const card = state.about.pictures.find((p) => p.name === picture);
    if (!card) return;
    figures.replaceChildren(el("p", { class: "soft" }, `${card.title} …`));
    try {
      const text = own.value ? { prompt: own.value } : state.last ? { prompt: state.last.ids } : null;
      if (!text) throw new Error("There is no text yet: write one under Complete, or above.");
      /** @type {Record<string, string>} */
      const set = { ...given[picture] };
      if (FOLLOWS.includes(picture)) {
        for (const [name, value] of Object.entries(asked())) {
          if (["temperature", "top_k", "top_p", "min_p", "seed"].includes(name)) set[name] = String(value);
        }
        if (picture === "loop") set.max_new_tokens ??= "8";
      }
      const got = await ask("/inside/picture", { model: state.model, picture, options: set, ...text });
      if (call !== calls) return;
      const missing = Object.entries(got.unavailable).map(([name, why]) => el("p", { class: "soft" }, `${name.replace(/_/g, " ")}: unavailable, ${why}`));
      figures.replaceChildren(el("h2", {}, got.title), ...missing);
      for (const [name, figure] of Object.entries(got.figures)) {
        const place = el("div", { data: { view: name } });
        figures.append(el("figure", { class: "figure" }, place, el("figcaption", {}, figure.layout?.meta?.caption ?? "")));
        await plot(place, figure);
        if (call !== calls) return;
      }
      figures.dataset.drawn = picture;
    } catch (error) {
      if (call === calls) figures.replaceChildren(el("p", { class: "warn" }, error instanceof Error ? error.message : String(error)));
    }
  };
  const drawOptions = () => {
    const card = state.about.pictures.find((p) => p.name === picture);
    options.replaceChildren(
      ...(card?.options ?? []).map((option) => {
        const input = el("input", {
          type: option.kind === "bool" ? "checkbox" : option.kind === "str" ? "text" : "number",
          placeholder: option.default === null ? "all" : String(option.default),
          title: option.help,
        });
        if (option.kind === "bool") input.checked = Boolean(option.default);
        else input.size = 8;
        input.value = given[picture]?.[option.name] ?? "";
        input.addEventListener("change", () => {
          const value = option.kind === "bool" ? String(input.checked) : input.value;
          const kept = (given[picture] ??= {});
          if (value === "") delete kept[option.name];
          else kept[option.name] = value;
          void draw();
        });
        return el("label", { class: "soft" }, `${option.name.replace(/_/g, " ")} `, input);
      }),
    );
  };
  /** @param {string} name */
  const choose = (name) => {
    picture = name;
    keep("picture", name);
    for (const button of names.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.picture === name));
    delete figures.dataset.drawn;
    drawOptions();
    void draw();
  };
  own.addEventListener("change", () => void draw());
  return {
    node: el("section", { "aria-label": "Inside the model" }, names, options, el("details", {}, el("summary", {}, "Another text"), own), figures),
    shown: () => choose(chosen(picture)), // another section may have chosen
  };
}
