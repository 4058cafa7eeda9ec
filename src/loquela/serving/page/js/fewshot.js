// Zero, one or few shots: a prompt built of examples, and how much of the context window it takes.

import { ask } from "./api.js";
import { chip } from "./chips.js";
import { controls } from "./controls.js";
import { calmly, el, notice } from "./dom.js";
import { keep, onSettings, recall, settings, state } from "./state.js";
import { write } from "./writing.js";

const EXAMPLE = {
  instruction: "Say whether the review is positive or negative.",
  input: "Review: ",
  output: "Sentiment:",
  shots: [["I loved this movie.", "positive"], ["What a waste of time.", "negative"], ["A warm and funny film.", "positive"]],
  question: "The plot is dull and the jokes are old.",
  count: 2,
};

/** The section. */
export function fewshotSection() {
  const kept = { ...EXAMPLE, ...recall("fewshot", {}) };
  /** @type {[string, string][]} */
  let shots = kept.shots;
  const instruction = el("textarea", { value: kept.instruction, id: "instruction" });
  const before = el("input", { value: kept.input, id: "input-mark" });
  const after = el("input", { value: kept.output, id: "output-mark" });
  const question = el("textarea", { value: kept.question, id: "question" });
  const count = el("input", { type: "range", min: "0", id: "count", value: String(kept.count) });
  const counted = el("strong", {});
  const list = el("div", { class: "shots", id: "shots" });
  const preview = el("div", { class: "output plain given", id: "shot-prompt" });
  const used = el("div", { class: "used" });
  const wanted = el("div", { class: "asked" });
  const meter = el("div", { class: "meter", role: "meter", "aria-label": "Context window", "aria-valuemin": "0" }, used, wanted);
  const meterText = el("p", { class: "soft", id: "meter-text" });
  const output = el("div", { class: "output", id: "shot-output" });
  const go = el("button", { type: "button", class: "primary", id: "shot-go" }, "Ask");

  const prompt = () => {
    const chosen = shots.slice(0, Number(count.value));
    const parts = chosen.map(([input, answer]) => `${before.value}${input}\n${after.value} ${answer}`);
    parts.push(`${before.value}${question.value}\n${after.value}`);
    return [instruction.value.trim(), ...parts].filter(Boolean).join("\n\n");
  };
  const measure = calmly(async () => {
    try {
      const got = await ask("/tokenize", { prompt: prompt() });
      const window = state.about.context_length;
      const total = got.count + settings.max_tokens;
      used.style.width = `${Math.min(100, (100 * got.count) / window)}%`;
      wanted.style.width = `${Math.min(100, (100 * settings.max_tokens) / window)}%`;
      meter.classList.toggle("over", total > window);
      meter.setAttribute("aria-valuemax", String(window));
      meter.setAttribute("aria-valuenow", String(total));
      meterText.textContent =
        `${got.count} tokens of prompt + ${settings.max_tokens} to be written, of a context window of ${window.toLocaleString("en")}` +
        (total > window ? ": too many. Drop a shot, or ask for fewer new tokens." : ".");
      meterText.classList.toggle("warn", total > window);
    } catch (error) {
      meterText.textContent = error instanceof Error ? error.message : String(error);
    }
  }, 200);
  const changed = () => {
    count.max = String(shots.length);
    const n = Number(count.value);
    counted.textContent = n === 0 ? "zero-shot" : n === 1 ? "one-shot" : `few-shot: ${n} examples`;
    preview.textContent = prompt();
    keep("fewshot", { instruction: instruction.value, input: before.value, output: after.value, shots, question: question.value, count: n });
    measure();
  };
  const draw = () => {
    list.replaceChildren(
      ...shots.map((shot, index) => {
        const left = el("textarea", { value: shot[0], "aria-label": `Example ${index + 1}: input` });
        const right = el("textarea", { value: shot[1], "aria-label": `Example ${index + 1}: answer` });
        left.addEventListener("input", () => { shot[0] = left.value; changed(); });
        right.addEventListener("input", () => { shot[1] = right.value; changed(); });
        const drop = el("button", { type: "button", class: "small", textContent: "✕", "aria-label": `Remove example ${index + 1}` });
        drop.addEventListener("click", () => { shots.splice(index, 1); draw(); });
        return el("div", { class: "shot" }, left, right, drop);
      }),
    );
    changed();
  };
  const add = el("button", { type: "button", class: "small", textContent: "Add an example", on: { click: () => { shots.push(["", ""]); count.max = String(shots.length); count.value = String(shots.length); draw(); } } });
  const paste = el("button", { type: "button", class: "small", textContent: "Paste rows (input ⇥ answer)", on: { click: async () => {
    try {
      const rows = (await navigator.clipboard.readText()).split("\n").map((row) => row.split("\t")).filter((row) => row.length > 1);
      if (!rows.length) throw new Error("The clipboard holds no rows with a tab in them.");
      shots = rows.map(([input, answer]) => [input, answer]);
      draw();
    } catch (error) {
      notice(error instanceof Error ? error.message : String(error));
    }
  } } });
  const run = async () => {
    go.disabled = true;
    output.replaceChildren();
    try {
      const done = await write({ prompt: prompt(), stop: settings.stop.length ? settings.stop : ["\n"] }, (piece) => output.append(chip(piece)));
      state.last = { ids: [...done.prompt.map((t) => t.id), ...done.pieces.map((p) => p.id)], text: prompt() + done.text };
      if (!done.pieces.length) output.textContent = "Nothing: the model ended at once.";
    } catch (error) {
      notice(error instanceof Error ? error.message : String(error));
    } finally {
      go.disabled = false;
    }
  };
  go.addEventListener("click", () => void run());
  for (const field of [instruction, before, after, question, count]) field.addEventListener("input", changed);
  onSettings(changed);
  draw();
  const node = el(
    "div",
    { class: "columns" },
    el(
      "section",
      { "aria-label": "Few-shot prompt" },
      el("label", {}, "Instruction", instruction),
      el("div", { class: "row" }, el("label", {}, "Before an input ", before), el("label", {}, "Before an answer ", after)),
      el("h3", {}, "Examples"),
      list,
      el("div", { class: "row" }, add, paste),
      el("div", { class: "row" }, el("label", { for: "count" }, "Shots"), count, counted),
      el("label", {}, "The question", question),
      meter,
      meterText,
      el("details", {}, el("summary", {}, "The prompt as it is sent"), preview),
      el("div", { class: "row" }, go),
      output,
    ),
    el("aside", {}, controls()),
  );
  return { node, shown: changed };
}
