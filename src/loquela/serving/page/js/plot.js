// Plotly from our own server, under a policy that lets no inline style in.

import { el } from "./dom.js";
import { state } from "./state.js";

/** @type {Promise<any> | null} */
let loading = null;

/** @returns {Promise<any>} */
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    // Plotly sets some styles as an attribute, which the policy refuses; through the object model it is allowed.
    const setAttribute = Element.prototype.setAttribute;
    /** @this {Element} @param {string} name @param {string} value */
    Element.prototype.setAttribute = function (name, value) {
      if (name === "style" && "style" in this) /** @type {any} */ (this).style.cssText = value;
      else setAttribute.call(this, name, value);
    };
    const script = el("script", { src: "/plotly.min.js" });
    // As it loads it adds an inline sheet for its maps, which are not drawn here: that goes into an element of no effect.
    const createElement = document.createElement;
    /** @param {string} tag @param {any} [options] */
    document.createElement = (tag, options) => createElement.call(document, tag === "style" ? "template" : tag, options);
    script.onload = () => {
      document.createElement = createElement;
      resolve(/** @type {any} */ (window).Plotly);
    };
    script.onerror = () => reject(new Error("Plotly cannot be loaded from this server"));
    document.head.append(script);
  });
  return loading;
}

/** @type {Set<HTMLElement>} */
const drawn = new Set();

/** @returns {"light" | "dark"} */
const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");

/**
 * Draw a figure of the server's into a place.
 * @param {HTMLElement} place
 * @param {any} figure
 */
export async function plot(place, figure) {
  const Plotly = await plotly();
  const layout = { ...figure.layout, template: state.about.templates[theme()], autosize: true };
  delete layout.width;
  await Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false, plotlyServerURL: "" });
  drawn.add(place);
}

/** Put all figures into the theme that is on now. */
export async function themed() {
  if (!loading) return;
  const Plotly = await loading;
  for (const place of drawn) {
    if (place.isConnected) await Plotly.relayout(place, { template: state.about.templates[theme()] });
    else drawn.delete(place);
  }
}
