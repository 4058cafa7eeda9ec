// Tokens as chips coloured by probability; a chip shows what else could have come, and branches there.

import { el, percent, visible } from "./dom.js";

/** @typedef {import("./api.js").Piece} Piece */

/** Borders of the eight colours, as probabilities. */
const BORDERS = [0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9];

/** @param {number} probability */
export function shade(probability) {
  const index = BORDERS.findIndex((border) => probability < border);
  return `p${index < 0 ? BORDERS.length : index}`;
}

/** What the colours mean. */
export function legend() {
  const spans = Array.from({ length: BORDERS.length + 1 }, (_, i) => el("span", { class: `p${i}` }));
  return el("div", { class: "legend", "aria-hidden": "true" }, "surprising", ...spans, "expected");
}

/** @type {HTMLElement | null} */
let open = null;

/** Close the list of alternatives. */
export function closePopover() {
  open?.remove();
  open = null;
}

document.addEventListener("keydown", (event) => event.key === "Escape" && closePopover());
document.addEventListener("pointerdown", (event) => {
  const target = event.target;
  if (open && target instanceof Element && !open.contains(target) && !target.closest(".chip")) closePopover();
});

/**
 * @param {HTMLElement} chip
 * @param {Piece} piece
 * @param {((alternative: import("./api.js").Alternative) => void) | null} branch
 * @param {boolean} focus
 */
function showAlternatives(chip, piece, branch, focus) {
  closePopover();
  const listed = piece.top.some((other) => other.id === piece.id)
    ? piece.top
    : [...piece.top, { id: piece.id, text: piece.token, log_prob: piece.log_prob }];
  const rows = listed.map((other) =>
    el(
      "button",
      {
        type: "button",
        disabled: !branch,
        "aria-current": String(other.id === piece.id),
        "aria-label": `${other.text}, ${percent(Math.exp(other.log_prob))}${branch ? ", go on from here" : ""}`,
        on: {
          click: () => {
            closePopover();
            if (branch && other.id !== piece.id) branch(other);
          },
        },
      },
      el("code", {}, visible(other.text)),
      el("span", { class: "number" }, percent(Math.exp(other.log_prob))),
    ),
  );
  const place = chip.getBoundingClientRect();
  open = el(
    "div",
    { class: "popover", role: "dialog", "aria-label": "What could stand here" },
    el("div", { class: "soft" }, `token ${piece.id}, ${(-piece.log_prob / Math.LN2).toFixed(2)} bits of surprise`),
    ...rows,
    branch ? el("div", { class: "soft" }, "Choose another to branch here.") : null,
  );
  document.body.append(open);
  const width = open.offsetWidth;
  open.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - width - 8)) + window.scrollX}px`;
  open.style.top = `${place.bottom + window.scrollY + 4}px`;
  open.addEventListener("pointerleave", () => !open?.contains(document.activeElement) && closePopover());
  if (focus) open.querySelector("button")?.focus();
}

/**
 * One token.
 * @param {Piece} piece
 * @param {{branch?: (alternative: import("./api.js").Alternative) => void, select?: () => void}} [does]
 */
export function chip(piece, does = {}) {
  const probability = Math.exp(piece.log_prob);
  const bare = piece.finish_reason === "stop" && piece.text === "";
  const shown = (piece.token || "").replace(/\n/g, "↵\n"); // a line's end is seen, and ends the line
  const made = el(
    "span", // no <button>: that is a box, in which a line cannot end
    {
      role: "button",
      tabIndex: 0,
      class: `chip ${shade(probability)}${bare ? " mark" : ""}`,
      "aria-label": `${piece.token || "token"}, probability ${percent(probability)}`,
    },
    bare ? `⟨${visible(piece.token)}⟩` : shown,
  );
  const branch = does.branch ?? null;
  let hover = 0;
  made.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") hover = window.setTimeout(() => showAlternatives(made, piece, branch, false), 180);
  });
  made.addEventListener("pointerleave", () => clearTimeout(hover));
  made.addEventListener("click", (event) => {
    clearTimeout(hover);
    does.select?.();
    showAlternatives(made, piece, branch, event.detail === 0);
  });
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    made.click();
  });
  return made;
}
