// A request as curl or Python, and a text as a file.

import { copy, el, notice } from "./dom.js";
import { asked, state } from "./state.js";

/** @param {string} text */
const quoted = (text) => `'${text.replace(/'/g, `'\\''`)}'`;

/** @param {any} value @returns {string} */
function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  return JSON.stringify(value);
}

/** @param {string} prompt */
export function asCurl(prompt) {
  const body = JSON.stringify({ model: state.model, prompt, ...asked() });
  return `curl ${location.origin}/v1/completions -H 'Content-Type: application/json' -d ${quoted(body)}`;
}

/** @param {string} prompt */
export function asPython(prompt) {
  const openai = ["max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop"];
  const given = Object.entries(asked());
  const direct = given.filter(([name]) => openai.includes(name)).map(([name, value]) => `    ${name}=${python(value)},`);
  const extra = given.filter(([name]) => !openai.includes(name)).map(([name, value]) => `"${name}": ${python(value)}`);
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key="none")`,
    "answer = client.completions.create(",
    `    model=${python(state.model)},`,
    `    prompt=${python(prompt)},`,
    ...direct,
    ...(extra.length ? [`    extra_body={${extra.join(", ")}},`] : []),
    ")",
    "print(answer.choices[0].text)",
  ].join("\n");
}

/**
 * Buttons that take the present text elsewhere.
 * @param {() => {prompt: string, branch: any}} present
 * @param {(kept: any) => void} open
 */
export function shareBar(present, open) {
  const file = el("input", { type: "file", accept: "application/json,.json", class: "visually-hidden", id: "open-file", tabIndex: -1, "aria-label": "A text that was saved" });
  file.addEventListener("change", async () => {
    const chosen = file.files?.[0];
    if (!chosen) return;
    try {
      const kept = JSON.parse(await chosen.text());
      if (kept.kind !== "loquela-text" || !Array.isArray(kept.branch?.pieces)) throw new Error("not a text of this page");
      open(kept);
    } catch (error) {
      notice(`The file cannot be opened: ${error instanceof Error ? error.message : error}`);
    }
    file.value = "";
  });
  /** @param {string} label @param {() => void} does @param {string} id */
  const button = (label, does, id) => el("button", { type: "button", class: "small", textContent: label, id, on: { click: does } });
  return el(
    "div",
    { class: "row", "aria-label": "Share" },
    button("Copy as curl", () => void copy(asCurl(present().prompt), "The curl command"), "copy-curl"),
    button("Copy as Python", () => void copy(asPython(present().prompt), "The Python code"), "copy-python"),
    button("Save as file", () => {
      const kept = { kind: "loquela-text", model: state.model, ...present() };
      if (!kept.branch) return notice("There is no text to save yet.");
      const address = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 1)], { type: "application/json" }));
      el("a", { href: address, download: "loquela-text.json" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    }, "save-file"),
    button("Open a file", () => file.click(), "open-button"),
    file,
  );
}
