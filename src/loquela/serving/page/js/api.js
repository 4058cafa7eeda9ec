// The server, as the page knows it. No request leaves this origin.

/**
 * @typedef {{id: number, text: string, log_prob: number}} Alternative
 * @typedef {{text: string, id: number, token: string, log_prob: number, top: Alternative[], finish_reason: string | null}} Piece
 * @typedef {{name: string, kind: string, default: any, minimum: number | null, maximum: number | null, help: string}} Control
 * @typedef {{name: string, title: string, options: Control[]}} PictureCard
 * @typedef {{name: string, model_type: string, kind: string, task: string | null, parameters: number, vocab_size: number,
 *   context_length: number, chat: boolean, infill: boolean, adapters: Record<string, string>, defaults: Record<string, any>,
 *   controls: Control[], pictures: PictureCard[], templates: Record<string, any>}} About
 */

let key = "";

/** An error that the server explained. */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @returns {Promise<string>} */
function askKey() {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("key"));
  const form = /** @type {HTMLFormElement} */ (document.getElementById("key-form"));
  const input = /** @type {HTMLInputElement} */ (document.getElementById("key-value"));
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      resolve(input.value.trim());
      input.value = "";
    };
  });
}

/**
 * @param {string} path
 * @param {any} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>}
 */
async function send(path, body, signal) {
  for (;;) {
    /** @type {Record<string, string>} */
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    if (response.status === 401) {
      key = await askKey();
      continue;
    }
    if (!response.ok) {
      let message = `the server answered ${response.status}`;
      try {
        message = (await response.json()).error.message;
      } catch {
        // not the server's own words
      }
      throw new ServerError(response.status, message);
    }
    return response;
  }
}

/**
 * Ask for JSON.
 * @param {string} path
 * @param {any} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/**
 * The events of a stream, one object each.
 * @param {string} path
 * @param {any} body
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<any>}
 */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      const line = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(500, event.error.message);
      yield event;
    }
  }
}
