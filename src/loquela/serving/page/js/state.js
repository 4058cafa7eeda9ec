// What all sections share: the model, who is asked, the settings; and what the browser keeps for its person only.

/** @typedef {import("./api.js").About} About */

/** @type {{about: About, model: string, last: {ids: number[], text: string} | null}} */
export const state = {
  about: /** @type {any} */ (null),
  model: "",
  last: null, // the text of the request just made, prompt and completion, for looking inside
};

/** The four controls of the lecture, and its values. */
export const LECTURE = { max_tokens: 200, top_k: 25, top_p: 1, temperature: 0.8 };

/** @type {Record<string, Record<string, any>>} */
export const PRESETS = {
  greedy: { temperature: 0, top_k: 0, top_p: 1 },
  balanced: { temperature: 0.8, top_k: 25, top_p: 1 },
  creative: { temperature: 1.1, top_k: 0, top_p: 0.95 },
};

/** @type {Record<string, any>} */
export const settings = { ...LECTURE, seed: null, stop: [] };

/** @type {Set<() => void>} */
const watchers = new Set();

/**
 * Be told when a setting changes. Returns what ends it.
 * @param {() => void} watcher
 */
export function onSettings(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

/** @type {Set<() => void>} */
const choosers = new Set();

/**
 * Be told when another model is chosen.
 * @param {() => void} watcher
 */
export function onModel(watcher) {
  choosers.add(watcher);
}

/** @param {string} model */
export function choose(model) {
  state.model = model;
  for (const watcher of choosers) watcher();
}

/**
 * @param {string} name
 * @param {any} value
 */
export function set(name, value) {
  settings[name] = value;
  for (const watcher of watchers) watcher();
}

/**
 * The settings that a request carries: what is off is left out.
 * @returns {Record<string, any>}
 */
export function asked() {
  /** @type {Record<string, any>} */
  const given = {};
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === undefined || (Array.isArray(value) && !value.length)) continue;
    const control = state.about.controls.find((c) => c.name === name);
    if (control && !(name in LECTURE) && value === control.default) continue;
    given[name] = value;
  }
  if (given.temperature === 0) {
    delete given.top_k; // greedy: nothing is drawn
    delete given.top_p;
    delete given.min_p;
  }
  return given;
}

const STORE = "loquela";

/**
 * @param {string} name
 * @param {any} fallback
 */
export function recall(name, fallback) {
  try {
    const kept = localStorage.getItem(`${STORE}.${name}`);
    return kept === null ? fallback : JSON.parse(kept);
  } catch {
    return fallback;
  }
}

/**
 * Keep something in this browser; what does not fit is not kept.
 * @param {string} name
 * @param {any} value
 */
export function keep(name, value) {
  try {
    localStorage.setItem(`${STORE}.${name}`, JSON.stringify(value));
  } catch {
    // private windows and full stores keep nothing
  }
}
