// The sampling rules once more, for sliders that are followed at once. The server's `/inside/stages` says the same
// (a test compares them): each rule maps logits to logits, -Infinity where it removes a token.

/**
 * @typedef {{prompt: number[], completion: number[]}} History
 * @typedef {{name: string, value: any, removed: number, kept: number}} Stage
 */

/**
 * Probabilities of logits.
 * @param {Float64Array} logits
 */
export function softmax(logits) {
  let most = -Infinity;
  for (const x of logits) if (x > most) most = x;
  const weights = logits.map((x) => Math.exp(x - most));
  let sum = 0;
  for (const w of weights) sum += w;
  return weights.map((w) => w / sum);
}

/**
 * Token ids, the most probable first, of equal ones the lowest id first; removed ones are not among them.
 * @param {Float64Array} logits
 */
export function ranked(logits) {
  const ids = [];
  for (let i = 0; i < logits.length; i++) if (logits[i] > -Infinity) ids.push(i);
  return ids.sort((a, b) => logits[b] - logits[a] || a - b);
}

/**
 * @param {Float64Array} logits
 * @param {number} count
 */
function keep(logits, count) {
  const kept = new Float64Array(logits.length).fill(-Infinity);
  for (const id of ranked(logits).slice(0, count)) kept[id] = logits[id];
  return kept;
}

/**
 * @param {Float64Array} logits
 * @param {Iterable<number>} ids
 * @param {(x: number, id: number) => number} change
 */
function changed(logits, ids, change) {
  const made = logits.slice();
  for (const id of ids) if (id < made.length) made[id] = change(made[id], id);
  return made;
}

/** @type {Record<string, (logits: Float64Array, value: any, history: History) => Float64Array>} */
const RULES = {
  repetition_penalty: (logits, penalty, h) =>
    changed(logits, new Set([...h.prompt, ...h.completion]), (x) => (x > 0 ? x / penalty : x * penalty)),
  presence_penalty: (logits, penalty, h) => changed(logits, new Set(h.completion), (x) => x - penalty),
  frequency_penalty: (logits, penalty, h) => changed(logits, h.completion, (x) => x - penalty),
  logit_bias: (logits, biases) => changed(logits, Object.keys(biases).map(Number), (x, id) => x + biases[id]),
  temperature: (logits, degrees) => {
    if (degrees === 0) return keep(logits, 1);
    let most = -Infinity;
    for (const x of logits) if (x > most) most = x;
    return logits.map((x) => (x - most) / degrees);
  },
  top_k: (logits, k) => keep(logits, k),
  top_p: (logits, p) => {
    const probabilities = softmax(logits);
    let reached = 0;
    let count = 0;
    for (const id of ranked(logits)) {
      if (reached >= p - 1e-12 && count > 0) break;
      reached += probabilities[id];
      count++;
    }
    return keep(logits, count);
  },
  min_p: (logits, share) => {
    let most = -Infinity;
    for (const x of logits) if (x > most) most = x;
    const floor = most + Math.log(share);
    return logits.map((x) => (x >= floor ? x : -Infinity));
  },
};
/** @type {Record<string, any>} */
const OFF = {
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, temperature: 1, top_k: 0, top_p: 1, min_p: 0,
};

/** The rules that the page can follow by itself. */
export const FOLLOWED = Object.keys(RULES);

/**
 * Apply the rules that do something, in order: what is left, and what each removed.
 * @param {Float64Array} logits
 * @param {Record<string, any>} settings
 * @param {History} history
 * @returns {{after: Float64Array, stages: Stage[]}}
 */
export function apply(logits, settings, history) {
  /** @type {Stage[]} */
  const stages = [];
  let row = logits;
  for (const name of FOLLOWED) {
    const value = settings[name];
    if (value === undefined || value === null || value === OFF[name]) continue;
    if (name === "logit_bias" && !Object.keys(value).length) continue;
    const before = softmax(row);
    const after = RULES[name](row, value, history);
    let removed = 0;
    let kept = 0;
    for (let i = 0; i < after.length; i++) {
      if (after[i] > -Infinity) kept++;
      else removed += before[i];
    }
    stages.push({ name, value, removed, kept });
    row = after;
  }
  return { after: softmax(row), stages };
}

/**
 * Numbers from the server's base64 of little-endian float32.
 * @param {string} text
 */
export function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}
