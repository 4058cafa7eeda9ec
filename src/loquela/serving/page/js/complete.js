// Complete: a prompt, its continuation as chips, and the tree of branches.

import { chip, closePopover, legend } from "./chips.js";
import { controls } from "./controls.js";
import { byId, calmly, el, notice } from "./dom.js";
import { nextPanel } from "./next.js";
import { shareBar } from "./share.js";
import { keep, onModel, recall, settings, state } from "./state.js";
import { write } from "./writing.js";

/**
 * @typedef {import("./api.js").Piece} Piece
 * @typedef {{id: number, parent: number | null, at: number, model: string, prompt: string, promptIds: number[], pieces: Piece[],
 *   settings: Record<string, any>, seed: number, said?: string}} Branch
 */

const MOST_KEPT = 60;

/** The section. */
export function completeSection() {
  /** @type {Branch[]} */
  let branches = recall("branches", []);
  /** @type {Branch | null} */
  let current = null;
  /** @type {AbortController | null} */
  let running = null;

  const prompt = el("textarea", {
    id: "prompt",
    "aria-label": "Prompt",
    placeholder: "Begin a text; Ctrl+Enter lets the model go on.",
    value: recall("prompt", ""),
    spellcheck: false,
  });
  const output = el("div", { class: "output", id: "output", "aria-label": "Completion", "aria-live": "off" });
  const said = el("p", { class: "soft", id: "said", role: "status" });
  const go = el("button", { type: "button", class: "primary", id: "go" }, "Complete");
  const stop = el("button", { type: "button", id: "stop", disabled: true }, "Stop");
  const tree = el("div", { class: "branches", id: "branches" });
  const next = nextPanel();

  const follow = calmly(() => {
    keep("prompt", prompt.value);
    if (!current || current.prompt !== prompt.value) void next.show(prompt.value);
  }, 350);

  /** @param {Branch} branch @param {number} end */
  const look = (branch, end) => void next.show(branch.promptIds, branch.pieces.slice(0, end).map((p) => p.id));
  onModel(() => (current ? look(current, current.pieces.length) : prompt.value && follow()));

  /** @param {Branch} branch @param {number} index */
  const chipOf = (branch, index) =>
    chip(branch.pieces[index], {
      select: () => {
        for (const other of output.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
        output.querySelectorAll(".chip")[index]?.setAttribute("aria-current", "true");
        look(branch, index);
      },
      branch: (alternative) => void branchOff(branch, index, alternative),
    });

  /** @param {Branch} branch */
  const show = (branch) => {
    current = branch;
    closePopover();
    said.textContent = branch.said ?? "";
    prompt.value = branch.prompt;
    output.replaceChildren(
      el("span", { class: "given" }, branch.prompt),
      ...branch.pieces.map((_, index) => chipOf(branch, index)),
    );
    state.last = {
      ids: [...branch.promptIds, ...branch.pieces.map((p) => p.id)],
      text: branch.prompt + branch.pieces.map((p) => p.text).join(""),
    };
    drawTree();
  };

  const drawTree = () => {
    /** @param {number | null} parent @returns {HTMLElement | null} */
    const list = (parent) => {
      const children = branches.filter((b) => b.parent === parent || (parent === null && !branches.some((o) => o.id === b.parent)));
      if (!children.length) return null;
      return el(
        "ul",
        {},
        ...children.map((branch) => {
          const words = branch.pieces.slice(branch.at).map((p) => p.token).join("");
          const { prompt } = branch;
          const begun = branch.parent !== null ? "…" : prompt.length > 40 ? `${prompt.slice(0, 40)}… ` : prompt;
          const label = `${begun}${words}`.replace(/\s+/g, " ").slice(0, 60) || "…";
          return el(
            "li",
            {},
            el("button", {
              type: "button",
              textContent: label,
              title: `${branch.model}, seed ${branch.seed}`,
              "aria-current": String(branch === current),
              on: {
                click: () => {
                  show(branch);
                  look(branch, branch.pieces.length);
                },
              },
            }),
            list(branch.id),
          );
        }),
      );
    };
    const roots = list(null);
    tree.replaceChildren(roots ?? el("p", { class: "soft" }, "What is written here stays in this browser only."));
  };

  /**
   * Write a branch whose first pieces are given.
   * @param {Branch} branch
   * @param {string | number[]} start
   */
  const run = async (branch, start) => {
    running?.abort();
    const own = (running = new AbortController());
    go.disabled = true;
    stop.disabled = false;
    branches = [branch, ...branches.filter((b) => b !== branch)].slice(0, MOST_KEPT);
    branch.said = "";
    show(branch);
    const began = performance.now();
    const given = branch.pieces.length;
    try {
      const left = Math.max(1, settings.max_tokens - given);
      const done = await write(
        { prompt: start, max_tokens: left },
        (piece) => {
          branch.pieces.push(piece);
          if (current === branch) output.append(chipOf(branch, branch.pieces.length - 1));
        },
        own.signal,
      );
      if (!given && done.prompt.length) branch.promptIds = done.prompt.map((t) => t.id);
      branch.seed = done.seed;
      const seconds = (performance.now() - began) / 1000;
      const written = branch.pieces.length - given;
      const ended = branch.pieces.at(-1)?.finish_reason === "stop";
      const full = written < left ? "the window is full" : "as long as asked";
      const reason = own.signal.aborted ? "stopped" : ended ? "the end" : full;
      branch.said = `${branch.promptIds.length} + ${written} tokens in ${seconds.toFixed(1)} s, ${(written / seconds).toFixed(0)} a second; ${reason}; seed ${branch.seed}`;
      if (current === branch) {
        show(branch);
        look(branch, branch.pieces.length);
      }
    } catch (error) {
      notice(error instanceof Error ? error.message : String(error));
      if (!branch.pieces.length) branches = branches.filter((b) => b !== branch);
      drawTree();
    } finally {
      if (running === own) {
        running = null;
        go.disabled = false;
        stop.disabled = true;
      }
      keep("branches", branches.slice(0, 20));
    }
  };

  /** @returns {Branch} */
  const fresh = () => ({
    id: Math.max(0, ...branches.map((b) => b.id)) + 1,
    parent: null,
    at: 0,
    model: state.model,
    prompt: prompt.value,
    promptIds: [],
    pieces: [],
    settings: { ...settings },
    seed: 0,
  });

  /**
   * @param {Branch} from
   * @param {number} at
   * @param {import("./api.js").Alternative} alternative
   */
  const branchOff = async (from, at, alternative) => {
    const piece = from.pieces[at];
    const chosen = { ...piece, id: alternative.id, token: alternative.text, text: alternative.text, log_prob: alternative.log_prob, finish_reason: null };
    /** @type {Branch} */
    const branch = { ...fresh(), parent: from.id, at, prompt: from.prompt, promptIds: from.promptIds, pieces: [...from.pieces.slice(0, at), chosen] };
    await run(branch, [...branch.promptIds, ...branch.pieces.map((p) => p.id)]);
  };

  const begin = () => void run(fresh(), prompt.value);
  go.addEventListener("click", begin);
  stop.addEventListener("click", () => running?.abort());
  prompt.addEventListener("input", follow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      begin();
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());

  const forget = el("button", {
    type: "button",
    class: "small",
    textContent: "Forget all",
    on: {
      click: () => {
        branches = [];
        current = null;
        keep("branches", []);
        output.replaceChildren();
        drawTree();
      },
    },
  });
  const share = shareBar(
    () => ({ prompt: prompt.value, branch: current }),
    (kept) => {
      const branch = { ...fresh(), ...kept.branch, id: fresh().id, parent: null };
      branches = [branch, ...branches];
      show(branch);
    },
  );

  drawTree();
  const node = el(
    "div",
    { class: "columns" },
    el(
      "section",
      { "aria-label": "Text" },
      prompt,
      el("div", { class: "row" }, go, stop, el("span", { class: "grow" }), legend()),
      output,
      said,
      share,
      el("div", { class: "row" }, el("h2", { class: "grow" }, "Branches"), forget),
      tree,
    ),
    el("div", {}, el("aside", {}, controls()), el("aside", { class: "stacked" }, next.node)),
  );
  return {
    node,
    shown: () => {
      if (prompt.value && !current) follow();
      byId("prompt").focus();
    },
  };
}
