// One request to the model, piece by piece, that can be stopped.

import { events } from "./api.js";
import { asked, state } from "./state.js";

/** @typedef {import("./api.js").Piece} Piece */

/**
 * Let the model write. `each` is called with every piece; returns the prompt's tokens, the pieces, the text and the seed.
 * @param {Record<string, any>} body prompt or messages, and what differs from the settings
 * @param {(piece: Piece, pieces: Piece[]) => void} each
 * @param {AbortSignal} [signal]
 */
export async function write(body, each, signal) {
  /** @type {Piece[]} */
  const pieces = [];
  /** @type {{id: number, text: string}[]} */
  let prompt = [];
  let seed = 0;
  let text = "";
  try {
    for await (const event of events("/inside/complete", { model: state.model, ...asked(), ...body }, signal)) {
      if (event.prompt) {
        prompt = event.prompt;
        seed = event.seed;
      } else if (event.id !== undefined) {
        pieces.push(event);
        text += event.text;
        each(event, pieces);
      }
    }
  } catch (error) {
    if (!(error instanceof DOMException && error.name === "AbortError")) throw error;
  }
  return { prompt, pieces, text, seed };
}
