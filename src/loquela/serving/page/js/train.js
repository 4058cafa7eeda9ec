// Train: loss curves of the runs on this machine as they go, and what the model writes as it learns.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { plot } from "./plot.js";
import { recall, keep } from "./state.js";

const EVERY = 3000;

/** The section. */
export function trainSection() {
  const pick = el("select", { id: "run", "aria-label": "Run" });
  const said = el("p", { class: "soft", id: "run-state" });
  const place = el("div", { id: "curve" });
  const samples = el("div", { id: "samples" });
  const node = el("section", { "aria-label": "Training" }, el("div", { class: "row" }, el("label", {}, "Run ", pick)), said, el("figure", { class: "figure" }, place, el("figcaption", {}, "Loss in nats per token: of the training text since the last row, and of the held-out text. Drag to zoom, double-click to see all.")), samples);
  /** @type {string} */
  let known = "";
  let timer = 0;

  const refresh = async () => {
    if (!node.isConnected || document.hidden) return;
    try {
      const { runs } = await ask("/inside/runs");
      const names = runs.map((/** @type {any} */ run) => run.name);
      if (names.join("\n") !== known) {
        known = names.join("\n");
        const before = pick.value || recall("run", "");
        pick.replaceChildren(...runs.map((/** @type {any} */ run) => el("option", { value: run.name, textContent: run.name })));
        if (names.includes(before)) pick.value = before;
      }
      const run = runs.find((/** @type {any} */ r) => r.name === pick.value);
      const figure = place.parentElement;
      if (figure) figure.hidden = !run;
      if (!run) {
        said.textContent = "No run is here. Start one with loquela train RECIPE or loquela quickstart in the directory where this server was started.";
        return;
      }
      const { step, train_loss: train, val_loss: validation } = run.columns;
      const last = step?.length ? step.length - 1 : 0;
      said.textContent = `${run.live ? "● going on" : run.finished ? "finished" : "not going on"}: step ${step?.[last] ?? 0}, loss ${train?.[last]?.toFixed(3) ?? "–"}, last row ${Math.round(run.age_seconds)} s ago`;
      /** @type {number[]} */
      const held = (validation ?? []).map((/** @type {number | null} */ value, /** @type {number} */ i) => (value === null ? -1 : i)).filter((/** @type {number} */ i) => i >= 0);
      await plot(place, {
        data: [
          { x: step, y: train, name: "training", mode: "lines", line: { color: "#0072B2" } },
          { x: held.map((i) => step[i]), y: held.map((i) => validation[i]), name: "held out", mode: "lines+markers", line: { color: "#D55E00" } },
        ],
        layout: { height: 420, xaxis: { title: { text: "update" } }, yaxis: { title: { text: "loss (nats per token)" } }, uirevision: run.name, margin: { t: 20, r: 20, b: 50, l: 60 } },
      });
      samples.replaceChildren(...run.samples.toReversed().map((/** @type {any} */ s) => el("article", { class: "card" }, el("p", { class: "soft" }, `after update ${s.step}`), el("div", { class: "output plain" }, el("span", { class: "given" }, s.prompt), s.text))));
    } catch (error) {
      said.textContent = error instanceof Error ? error.message : String(error);
    }
  };
  pick.addEventListener("change", () => {
    keep("run", pick.value);
    void refresh();
  });
  return {
    node,
    shown: () => {
      clearInterval(timer);
      timer = window.setInterval(() => void refresh(), EVERY);
      void refresh();
    },
  };
}
