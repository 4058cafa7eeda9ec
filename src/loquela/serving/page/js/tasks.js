// Tasks: ready forms for what this model can do; what it cannot is said, and why.

import { ask } from "./api.js";
import { chip } from "./chips.js";
import { el, notice, percent } from "./dom.js";
import { state } from "./state.js";
import { write } from "./writing.js";

/**
 * @param {string} title
 * @param {string | null} missing why it cannot be done, or null
 * @param {...(Node | null)} parts
 */
function card(title, missing, ...parts) {
  const id = `task-${title.toLowerCase().replace(/\W+/g, "-")}`;
  return el("article", { class: "card", id }, el("h2", {}, title), missing ? el("p", { class: "soft" }, `Unavailable: ${missing}`) : null, ...(missing ? [] : parts));
}

/**
 * @param {string} label
 * @param {() => Promise<void>} work
 */
function doing(label, work) {
  const button = el("button", { type: "button", class: "primary" }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      notice(error instanceof Error ? error.message : String(error));
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

/** @param {string} value @param {string} label */
const area = (value, label) => el("textarea", { value, "aria-label": label });

/**
 * A text in, a text out.
 * @param {string} title
 * @param {string} example
 * @param {string} frame the prompt, with {text} where the text stands
 */
function rewriting(title, example, frame) {
  const { kind } = state.about;
  const text = area(example, "Text");
  const prompt = el("input", { value: kind === "encoder-decoder" ? "{text}" : frame, "aria-label": "Prompt with {text}" });
  prompt.classList.add("grow");
  const output = el("div", { class: "output" });
  const work = doing(title, async () => {
    output.replaceChildren();
    const body = { prompt: prompt.value.replaceAll("\\n", "\n").replace("{text}", () => text.value), temperature: 0, max_tokens: Math.min(200, state.about.context_length >> 1) };
    await write({ ...body, top_k: 0, top_p: 1 }, (piece) => output.append(chip(piece)));
  });
  return card(title, kind === "encoder" ? "this model reads and does not write." : null, text, el("div", { class: "row" }, el("label", { class: "soft grow" }, "Prompt ", prompt)), work, output);
}

/**
 * A text whose labelled words are coloured; words that go on with a label (I- after B- or I-) are one entity.
 * @param {string} text
 * @param {{word: string, start: number, end: number, label: string, probability: number}[]} words
 */
function entities(text, words) {
  const letters = Array.from(text); // the server counts characters, not UTF-16
  /** @type {{start: number, end: number, name: string, sure: number}[]} */
  const found = [];
  for (const { start, end, label, probability } of words) {
    if (label === "O") continue;
    const [, begins, name] = /^([BIES])-(.+)$/.exec(label) ?? ["", "B", label];
    const last = found.at(-1);
    const between = last ? letters.slice(last.end, start).join("") : "x";
    if (last && last.name === name && begins !== "B" && begins !== "S" && !between.trim()) {
      last.end = end;
      last.sure = Math.min(last.sure, probability);
    } else found.push({ start, end, name, sure: probability });
  }
  const names = [...new Set(found.map((one) => one.name))].sort();
  /** @type {(Node | string)[]} */
  const parts = [];
  let at = 0;
  for (const one of found) {
    parts.push(letters.slice(at, one.start).join(""));
    const what = `${one.name}, ${percent(one.sure)}`;
    parts.push(el("mark", { class: `entity e${names.indexOf(one.name) % 6}`, title: what }, letters.slice(one.start, one.end).join(""), el("sub", {}, one.name)));
    at = one.end;
  }
  parts.push(letters.slice(at).join(""));
  return found.length ? parts : [...parts, el("p", { class: "soft" }, "No word of it has a label.")];
}

function tagging() {
  const text = area("Anna Berger flew from Vienna to New York to work for Siemens.", "Text");
  const result = el("div", { class: "output plain", "aria-live": "polite" });
  const work = doing("Classify", async () => {
    const got = await ask("/inside/classify", { model: state.model, input: [text.value] });
    result.replaceChildren(...entities(text.value, got.words[0]));
  });
  return card("Classify", null, text, el("p", { class: "soft" }, "Each word by the model's own head; words of one entity are marked together."), work, result);
}

function classifying() {
  const { kind, task } = state.about;
  const head = task === "text-classification";
  const text = area("I loved every minute of it.", "Text");
  const labels = el("input", { value: "positive, negative", "aria-label": "Labels" });
  const frame = el("input", { value: "Review: {text}\\nThe review is {label}", "aria-label": "Prompt with {text} and {label}" });
  const result = el("table", {});
  /** @param {[string, number][]} rows */
  const show = (rows) =>
    result.replaceChildren(...rows.sort((a, b) => b[1] - a[1]).map(([label, p]) => el("tr", {}, el("td", {}, label), el("td", { class: "number" }, percent(p)))));
  const work = doing("Classify", async () => {
    if (head) {
      const got = await ask("/inside/classify", { model: state.model, input: [text.value] });
      show(got.labels.map((/** @type {string} */ label, /** @type {number} */ i) => [label, got.probabilities[0][i]]));
      return;
    }
    const names = labels.value.split(",").map((label) => label.trim()).filter(Boolean);
    const scores = await Promise.all(
      names.map(async (label) => {
        const prompt = frame.value.replaceAll("\\n", "\n").replace("{text}", () => text.value).replace("{label}", () => label);
        const got = await ask("/v1/completions", { model: state.model, prompt, max_tokens: 0, echo: true, logprobs: 0 });
        /** @type {(number | null)[]} */
        const logs = got.choices[0].logprobs.token_logprobs;
        return logs.reduce((sum, x) => (sum ?? 0) + (x ?? 0), 0) ?? 0;
      }),
    );
    const most = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - most));
    const sum = weights.reduce((a, b) => a + b, 0);
    show(names.map((name, i) => [name, weights[i] / sum]));
  });
  const way = head
    ? el("p", { class: "soft" }, "By the model's own head.")
    : el("div", {}, el("p", { class: "soft" }, "By which label makes the whole text most probable."), el("label", { class: "soft" }, "Labels ", labels), el("label", { class: "soft" }, "Prompt ", frame));
  return card("Classify", kind === "encoder" && !head ? "this model has no classifier's head; tune one with loquela tune." : kind === "encoder-decoder" ? "this model writes a target for a source." : null, text, way, work, result);
}

function searching() {
  const corpus = area("The cat sleeps on the warm windowsill.\nParliament voted on the new budget.\nBake the bread for forty minutes.\nThe striker scored in the last minute.", "Texts, one a line");
  const query = el("input", { value: "cooking", "aria-label": "Query" });
  const result = el("ol", {});
  const work = doing("Search", async () => {
    const lines = corpus.value.split("\n").filter((line) => line.trim());
    const got = await ask("/v1/embeddings", { model: state.model, input: [query.value, ...lines] });
    /** @type {number[][]} */
    const vectors = got.data.map((/** @type {any} */ entry) => entry.embedding);
    /** @param {number[]} a @param {number[]} b */
    const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
    const [q, ...rest] = vectors;
    const scored = rest.map((v, i) => ({ line: lines[i], score: dot(q, v) / Math.sqrt(dot(q, q) * dot(v, v)) }));
    scored.sort((a, b) => b.score - a.score);
    result.replaceChildren(...scored.map(({ line, score }) => el("li", {}, `${line} `, el("span", { class: "soft" }, score.toFixed(3)))));
  });
  const missing = state.about.kind === "encoder-decoder" ? "this model gives no vectors of texts." : null;
  return card("Search", missing, corpus, el("label", { class: "soft" }, "Looking for ", query), work, result);
}

function infilling() {
  const before = area("def add(a, b):\n    ", "Before the cursor");
  const after = area("\n\nprint(add(1, 2))", "After the cursor");
  const output = el("div", { class: "output" });
  const work = doing("Complete at the cursor", async () => {
    const got = await ask("/v1/completions", { model: state.model, prompt: before.value, suffix: after.value, max_tokens: 60, temperature: 0 });
    output.replaceChildren(el("span", { class: "given" }, before.value), el("mark", {}, got.choices[0].text), el("span", { class: "given" }, after.value));
  });
  return card("Code at a cursor", state.about.infill ? null : "its tokenizer has no fill-in-the-middle marks; train with the objective fim.", before, after, work, output);
}

/** The section. */
export function tasksSection() {
  return {
    node: el(
      "section",
      { "aria-label": "Tasks", class: "cards" },
      rewriting("Translate", "Two young men are outside near many bushes.", "English: {text}\\nSpanish:"),
      rewriting("Summarise", "Anna: Are you coming tonight?\nBen: Sorry, I must work until nine.\nAnna: Then let us meet on Saturday.\nBen: Saturday is fine.", "{text}\\n\\nSummary:"),
      state.about.task === "token-classification" ? tagging() : classifying(),
      searching(),
      infilling(),
    ),
    shown: () => {},
  };
}
