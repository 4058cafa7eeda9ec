// Tour: the concepts of the lecture, one after another, each with the section of this page that shows it on this model.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { keep, recall, state } from "./state.js";

/**
 * @typedef {{en: string, es: string}} Said
 * @typedef {{concept: Said, says: Said, sees?: Said, live?: string[], house?: string[], more?: string[], page?: string[]}} Row
 */

const TEXT = "Once upon a time";
/** @type {Record<"en" | "es", Record<string, string>>} */
const WORDS = {
  en: { show: "Show it here", previous: "Previous", next: "Next", commands: "In a terminal", own: "To do yourself" },
  es: { show: "Verlo aquí", previous: "Anterior", next: "Siguiente", commands: "En un terminal", own: "Para hacerlo usted" },
};

/**
 * A command with the model of this server in it.
 * @param {string} command
 */
function filled(command) {
  return command.replaceAll("{model}", state.about.name).replaceAll("{text}", `'${TEXT}'`).replaceAll("{kind}", state.about.kind);
}

/**
 * @param {string} title
 * @param {string[]} commands
 */
function commandList(title, commands) {
  return commands.length ? el("div", {}, el("h3", {}, title), el("pre", { class: "commands" }, commands.map(filled).join("\n"))) : null;
}

/**
 * Go to where a concept is shown; a picture needs a text, so there is one.
 * @param {string[]} page
 */
async function open([tab, picture]) {
  if (picture) {
    keep("picture", picture);
    state.last ??= { ids: (await ask("/tokenize", { prompt: TEXT })).tokens, text: TEXT };
  }
  location.hash = `#${tab}`;
}

/** The section. */
export function tourSection() {
  /** @type {Row[]} */
  let rows = [];
  let at = Number(recall("tour", 0));
  /** @type {"en" | "es"} */
  let language = recall("language", navigator.language.startsWith("es") ? "es" : "en");
  const list = el("ol", { class: "concepts", "aria-label": "Concepts" });
  const shown = el("article", { class: "card", "aria-live": "polite", id: "concept" });
  const languages = el("div", { class: "segmented", role: "group", "aria-label": "Language" });
  const node = el("section", { "aria-label": "Tour" }, languages, el("div", { class: "tour" }, list, shown));

  /** @param {number} row */
  const go = (row) => {
    at = Math.max(0, Math.min(rows.length - 1, row));
    keep("tour", at);
    draw();
  };
  const draw = () => {
    const words = WORDS[language];
    const row = rows[at];
    languages.replaceChildren(
      ...Object.entries({ en: "English", es: "Español" }).map(([code, name]) =>
        el("button", {
          type: "button",
          textContent: name,
          "aria-pressed": String(code === language),
          on: {
            click: () => {
              language = code === "es" ? "es" : "en";
              keep("language", language);
              draw();
            },
          },
        }),
      ),
    );
    list.lang = shown.lang = language;
    list.replaceChildren(
      ...rows.map((one, index) =>
        el("li", {}, el("button", { type: "button", textContent: one.concept[language], "aria-current": String(index === at), on: { click: () => go(index) } })),
      ),
    );
    const { page } = row;
    shown.replaceChildren(
      el("h2", {}, `${at + 1} · ${row.concept[language]}`),
      el("p", {}, row.says[language]),
      el(
        "div",
        { class: "row" },
        page ? el("button", { type: "button", id: "show-it", class: "primary", textContent: words.show, on: { click: () => void open(page) } }) : null,
        el("span", { class: "grow" }),
        el("button", { type: "button", textContent: words.previous, disabled: at === 0, on: { click: () => go(at - 1) } }),
        el("button", { type: "button", id: "next-concept", textContent: words.next, disabled: at === rows.length - 1, on: { click: () => go(at + 1) } }),
      ),
      commandList(words.commands, [...(row.live ?? []), ...(row.house ?? [])]) ?? "",
      commandList(words.own, row.more ?? []) ?? "",
      ...(row.sees ? [el("p", { class: "soft" }, filled(row.sees[language]))] : []),
    );
  };
  return {
    node,
    shown: () => {
      if (rows.length) return;
      ask("/page/tour.json").then(
        (found) => {
          rows = found;
          go(at);
        },
        (error) => shown.replaceChildren(el("p", { class: "warn" }, error instanceof Error ? error.message : String(error))),
      );
    },
  };
}
