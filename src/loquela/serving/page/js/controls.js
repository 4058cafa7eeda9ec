// The settings as controls: the lecture's four, presets, and every other rule behind a fold, as the server lists them.

import { el } from "./dom.js";
import { LECTURE, PRESETS, onSettings, set, settings, state } from "./state.js";

/** @type {Record<string, {label: string, min: number, max: number, step: number, help: string}>} */
const FOUR = {
  max_tokens: { label: "Max new tokens", min: 1, max: 500, step: 1, help: "Stop after so many." },
  temperature: { label: "Temperature", min: 0, max: 2, step: 0.05, help: "Low: predictable. High: surprising. 0: always the likeliest." },
  top_k: { label: "Top K", min: 0, max: 100, step: 1, help: "Choose among the K likeliest; 0: among all." },
  top_p: { label: "Top P", min: 0, max: 1, step: 0.01, help: "Choose among the fewest whose probability reaches P." },
};

/**
 * A slider with its number.
 * @param {string} name
 * @param {string} label
 * @param {string} help
 * @param {{min: number, max: number, step: number}} range
 */
function slider(name, label, help, range) {
  const bounds = { min: String(range.min), max: String(range.max), step: String(range.step) };
  const id = `set-${name}`;
  const track = el("input", { type: "range", ...bounds, id, "aria-describedby": `${id}-help` });
  const number = el("input", { type: "number", ...bounds, "aria-label": `${label}, as a number` });
  if (name === "max_tokens") number.max = "";
  const show = () => {
    track.value = String(settings[name]);
    if (document.activeElement !== number) number.value = String(settings[name]);
  };
  track.addEventListener("input", () => set(name, Number(track.value)));
  number.addEventListener("input", () => {
    const value = Number(number.value);
    if (number.value !== "" && Number.isFinite(value) && number.validity.valid) set(name, value);
  });
  number.addEventListener("blur", show);
  onSettings(show);
  show();
  return el(
    "div",
    { class: "control" },
    el("label", { for: id }, label),
    el("div", { class: "pair" }, track, number),
    el("span", { class: "soft", id: `${id}-help` }, help),
  );
}

/** @param {import("./api.js").Control} control */
function other(control) {
  if (settings[control.name] === undefined) settings[control.name] = control.default;
  const min = control.minimum ?? (control.kind === "int" ? -1 : -2);
  const max = control.maximum ?? (control.kind === "int" ? 64 : Math.max(2, 2 * control.default));
  const label = control.name.replace(/_/g, " ");
  return slider(control.name, label[0].toUpperCase() + label.slice(1), control.help, {
    min: Math.max(min, control.name === "repetition_penalty" ? 0.5 : min),
    max,
    step: control.kind === "int" ? 1 : 0.01,
  });
}

/** The panel of settings. */
export function controls() {
  const presets = Object.entries(PRESETS).map(([name, values]) =>
    el("button", {
      type: "button",
      textContent: name,
      data: { preset: name },
      on: { click: () => Object.entries(values).forEach(([key, value]) => set(key, value)) },
    }),
  );
  const mark = () => {
    for (const button of presets) {
      const values = PRESETS[button.dataset.preset ?? ""];
      button.setAttribute("aria-pressed", String(Object.entries(values).every(([k, v]) => settings[k] === v)));
    }
  };
  onSettings(mark);
  mark();
  const seed = el("input", { type: "number", min: "0", step: "1", placeholder: "another each time", id: "set-seed" });
  seed.addEventListener("input", () => set("seed", seed.value === "" ? null : Math.max(0, Math.floor(Number(seed.value)))));
  const stop = el("input", { type: "text", placeholder: "e.g. \\n", id: "set-stop" });
  stop.addEventListener("input", () => set("stop", stop.value ? [stop.value.replace(/\\n/g, "\n").replace(/\\t/g, "\t")] : []));
  const rest = state.about.controls.filter((control) => !(control.name in LECTURE));
  return el(
    "section",
    { "aria-label": "Settings" },
    el("h2", {}, "Settings"),
    el("div", { class: "segmented", role: "group", "aria-label": "Presets" }, ...presets),
    ...Object.entries(FOUR).map(([name, four]) => slider(name, four.label, four.help, four)),
    el(
      "details",
      {},
      el("summary", {}, "More"),
      el("div", { class: "control" }, el("label", { for: "set-seed" }, "Seed"), seed),
      el("div", { class: "control" }, el("label", { for: "set-stop" }, "Stop before this text"), stop),
      ...rest.map(other),
    ),
  );
}
