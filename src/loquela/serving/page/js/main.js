// The page: sections under tabs, made when first shown; the model that is asked; light and dark.

import { ask } from "./api.js";
import { chatSection } from "./chat.js";
import { closePopover } from "./chips.js";
import { compareSection } from "./compare.js";
import { completeSection } from "./complete.js";
import { byId, el, notice } from "./dom.js";
import { fewshotSection } from "./fewshot.js";
import { insideSection } from "./inside.js";
import { themed } from "./plot.js";
import { choose, keep, recall, settings, state } from "./state.js";
import { tasksSection } from "./tasks.js";
import { tourSection } from "./tour.js";
import { trainSection } from "./train.js";

/** @typedef {{node: HTMLElement, shown: () => void}} Section */

/** @type {Record<string, {title: string, make: () => Section}>} */
const SECTIONS = {
  complete: { title: "Complete", make: completeSection },
  chat: { title: "Chat", make: chatSection },
  fewshot: { title: "Few-shot", make: fewshotSection },
  adapters: { title: "Adapters", make: compareSection },
  inside: { title: "Inside", make: insideSection },
  tasks: { title: "Tasks", make: tasksSection },
  train: { title: "Train", make: trainSection },
  tour: { title: "Tour", make: tourSection },
};
/** @type {Record<string, Section>} */
const made = {};

/** @param {string} name */
function show(name) {
  if (!(name in SECTIONS)) name = state.about.kind === "encoder" ? "tasks" : "complete";
  closePopover();
  const section = (made[name] ??= SECTIONS[name].make());
  byId("main").replaceChildren(section.node);
  for (const tab of byId("tabs").children) tab.setAttribute("aria-selected", String(tab.id === `tab-${name}`));
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  section.shown();
}

/** @param {"light" | "dark"} theme */
function paint(theme) {
  document.documentElement.dataset.theme = theme;
  void themed();
}

async function begin() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  paint(recall("theme", dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => recall("theme", null) === null && paint(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    keep("theme", theme);
    paint(theme);
  });

  state.about = await ask("/inside/about");
  const { about } = state;
  state.model = about.name;
  settings.max_tokens = Math.min(settings.max_tokens, Math.max(1, about.context_length - 1));
  document.title = `${about.name} – Loquela`;
  byId("about").textContent =
    `${about.name}: ${about.model_type}, ${about.parameters.toLocaleString("en")} parameters, ` +
    `${about.vocab_size.toLocaleString("en")} tokens in the vocabulary, a window of ${about.context_length.toLocaleString("en")}` +
    (Object.keys(about.adapters).length ? `; adapters: ${Object.entries(about.adapters).map(([n, m]) => `${n} (${m})`).join(", ")}` : "");
  const model = /** @type {HTMLSelectElement} */ (byId("model"));
  model.append(...[about.name, ...Object.keys(about.adapters)].map((name) => el("option", { value: name, textContent: name })));
  model.addEventListener("change", () => choose(model.value));
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const tabs = /** @type {HTMLElement[]} */ ([...byId("tabs").children]);
    const at = tabs.findIndex((tab) => tab === document.activeElement);
    if (!step || at < 0) return;
    const to = tabs[(at + step + tabs.length) % tabs.length];
    to.click();
    to.focus();
  });
  byId("tabs").append(
    ...Object.entries(SECTIONS).map(([name, { title }], index) =>
      el("button", {
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        textContent: title,
        title: `Alt+${index + 1}`,
        "aria-selected": "false",
        on: { click: () => show(name) },
      }),
    ),
  );
  document.addEventListener("keydown", (event) => {
    const name = Object.keys(SECTIONS)[Number(event.key) - 1];
    if (event.altKey && !event.ctrlKey && name) {
      event.preventDefault();
      show(name);
    }
  });
  window.addEventListener("hashchange", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => notice(error instanceof Error ? error.message : String(error), 3600));
