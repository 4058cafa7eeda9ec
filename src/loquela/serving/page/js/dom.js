// Elements from calls: text is always text, never markup.

/**
 * Make an element. Keys of `props` are properties; `class`, `data` and `aria`/`role` are attributes; `on` holds listeners.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name === "on") for (const [type, listener] of Object.entries(value)) made.addEventListener(type, listener);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "role" || name.startsWith("aria-") || name === "for") made.setAttribute(name, String(value));
    else Reflect.set(made, name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * The element with an id, which must be there.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page lacks #${id}`);
  return found;
}

/** @type {number | undefined} */
let fading;

/**
 * Say something in passing.
 * @param {string} message
 * @param {number} [seconds]
 */
export function notice(message, seconds = 6) {
  const place = byId("notice");
  place.textContent = message;
  place.hidden = false;
  clearTimeout(fading);
  fading = window.setTimeout(() => (place.hidden = true), seconds * 1000);
}

/**
 * Call only when nobody has called for a while.
 * @template {any[]} A
 * @param {(...given: A) => void} call
 * @param {number} [milliseconds]
 * @returns {(...given: A) => void}
 */
export function calmly(call, milliseconds = 250) {
  /** @type {number | undefined} */
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = window.setTimeout(() => call(...given), milliseconds);
  };
}

/**
 * A token as a person reads it: blanks and line ends are shown where nothing else is.
 * @param {string} text
 */
export function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→") || "∅";
}

/**
 * A share as a percentage.
 * @param {number} share
 */
export function percent(share) {
  if (share > 0 && share < 0.0001) return "<0.01%";
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)}%`;
}

/**
 * Copy a text; say whether it worked.
 * @param {string} text
 * @param {string} what
 */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    notice(`${what} copied.`);
  } catch {
    const area = el("textarea", { value: text, class: "visually-hidden" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    notice(done ? `${what} copied.` : "The browser does not let this page copy.");
  }
}
