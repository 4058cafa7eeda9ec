// Chat, with the rendered template on demand: the exact token ids that the model reads.

import { chip } from "./chips.js";
import { controls } from "./controls.js";
import { ask } from "./api.js";
import { el, notice, visible } from "./dom.js";
import { keep, recall, state } from "./state.js";
import { write } from "./writing.js";

/** The section. */
export function chatSection() {
  /** @type {{role: string, content: string, pieces?: import("./api.js").Piece[]}[]} */
  let turns = recall("chat", []);
  /** @type {AbortController | null} */
  let running = null;
  const system = el("textarea", { id: "system", placeholder: "How the assistant is to be (a system prompt); may be empty.", value: recall("system", "") });
  const said = el("textarea", { id: "message", "aria-label": "Message", placeholder: "Say something; Ctrl+Enter sends it." });
  const talk = el("div", { id: "talk", "aria-live": "polite" });
  const template = el("div", { class: "tokens", id: "template" });
  const send = el("button", { type: "button", class: "primary", id: "send" }, "Send");
  const stop = el("button", { type: "button", disabled: true }, "Stop");

  const messages = () => [
    ...(system.value.trim() ? [{ role: "system", content: system.value }] : []),
    ...turns.map(({ role, content }) => ({ role, content })),
  ];
  const draw = () => {
    talk.replaceChildren(
      ...turns.map((turn) =>
        el(
          "div",
          { class: `turn ${turn.role}` },
          el("span", { class: "who" }, turn.role),
          ...(turn.pieces?.length ? turn.pieces.map((piece) => chip(piece)) : [turn.content]),
        ),
      ),
    );
    keep("chat", turns.slice(-40).map(({ role, content }) => ({ role, content })));
    keep("system", system.value);
  };
  const answer = async () => {
    if (!said.value.trim() || running) return;
    turns.push({ role: "user", content: said.value });
    const asked = messages();
    /** @type {{role: string, content: string, pieces: import("./api.js").Piece[]}} */
    const turn = { role: "assistant", content: "", pieces: [] };
    turns.push(turn);
    said.value = "";
    draw();
    running = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    try {
      const done = await write({ messages: asked }, (piece) => {
        turn.pieces.push(piece);
        talk.lastElementChild?.append(chip(piece));
      }, running.signal);
      turn.content = done.text;
      state.last = { ids: [...done.prompt.map((t) => t.id), ...done.pieces.map((p) => p.id)], text: done.text };
    } catch (error) {
      turns.splice(-2);
      notice(error instanceof Error ? error.message : String(error));
    } finally {
      running = null;
      send.disabled = false;
      stop.disabled = true;
      draw();
    }
  };
  const render = async () => {
    const list = messages();
    if (said.value.trim()) list.push({ role: "user", content: said.value });
    try {
      if (!list.length) throw new Error("There is nothing to render yet.");
      const got = await ask("/tokenize", { model: state.model, messages: list });
      template.replaceChildren(
        el("p", { class: "soft" }, `${got.count} tokens of ${got.max_model_len}, exactly what the model reads:`),
        ...got.tokens.map((/** @type {number} */ id, /** @type {number} */ i) =>
          el("code", {}, visible(got.token_strs[i]), el("sub", {}, String(id))),
        ),
      );
    } catch (error) {
      template.replaceChildren(el("p", { class: "warn" }, error instanceof Error ? error.message : String(error)));
    }
  };
  send.addEventListener("click", () => void answer());
  stop.addEventListener("click", () => running?.abort());
  said.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      void answer();
    }
  });
  draw();
  const none = state.about.chat
    ? null
    : el("p", { class: "warn", id: "no-chat" }, "This model has no chat template: it continues texts and does not know turns. Tune it on conversations to talk with it here.");
  send.disabled = !state.about.chat;
  const node = el(
    "div",
    { class: "columns" },
    el(
      "section",
      { "aria-label": "Conversation" },
      none,
      el("details", { open: Boolean(system.value) }, el("summary", {}, "System prompt"), system),
      talk,
      said,
      el(
        "div",
        { class: "row" },
        send,
        stop,
        el("button", { type: "button", id: "render", disabled: !state.about.chat, textContent: "Show what the model reads", on: { click: () => void render() } }),
        el("button", { type: "button", textContent: "New talk", on: { click: () => { turns = []; draw(); } } }),
      ),
      template,
    ),
    el("aside", {}, controls()),
  );
  return { node, shown: () => said.focus() };
}
