"use strict";
// Elements, and numbers as text. Every text goes in as a text node: nothing in the data can become markup.
function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "tip") element.dataset.tip = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function s(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "tip") element.dataset.tip = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const MISSING = "–";
const known = (n) => typeof n === "number" && Number.isFinite(n);
const minus = (text) => text.replace("-", "−");
const count = (n) => known(n) ? n.toLocaleString("en-US") : MISSING;
const fixed = (n, digits) => known(n) ? minus(n.toFixed(digits)) : MISSING;
function digits3(n) {
  if (!known(n)) return MISSING;
  if (n === 0) return "0";
  const size = Math.abs(n);
  return minus(size >= 999.5 ? Math.round(n).toLocaleString("en-US") : size < 1e-4 ? n.toExponential(1) : n.toPrecision(3));
}
function percent(share) {
  if (!known(share)) return MISSING;
  if (share === 0) return "0 %";
  const p = 100 * share;
  return (p >= 9.95 ? p.toFixed(1) : p >= 0.001 ? p.toPrecision(2) : p.toExponential(0)) + " %";
}
const oneIn = (share) => share > 0 && share < 0.5 ? `one row in ${count(Math.round(1 / share))}` : "";
function shortCount(n) {
  if (!known(n)) return MISSING;
  for (const [size, prefix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (n >= 0.9995 * size) return Number((n / size).toPrecision(3)) + " " + prefix;
  return String(n);
}

// Tips come at once, by pointer and by focus.
const tip = document.getElementById("tip");
function showTip(box, text) {
  tip.replaceChildren(text);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  tip.style.left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, room - width - 8)) + "px";
  tip.style.top = (box.top - height - 8 >= 8 ? box.top - height - 8 : box.bottom + 8) + "px";
}
const hideTip = () => { tip.hidden = true; };
function tipOf(event) {
  const element = event.target.closest?.("[data-tip]");
  if (!element?.dataset.tip) return;
  const lines = element.getClientRects();
  const under = [...lines].find((box) => event.clientY >= box.top && event.clientY <= box.bottom);
  showTip(under ?? lines[0] ?? element.getBoundingClientRect(), element.dataset.tip);
}
document.addEventListener("mouseover", tipOf);
document.addEventListener("focusin", tipOf);
document.addEventListener("mouseout", (event) => { if (event.target.closest?.("[data-tip]")) hideTip(); });
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

const say = (text) => { document.getElementById("said").textContent = text; };
const command = (text) => h("code.command", {}, text);
const missing = (what, line) => h("p.missing", {}, `${what}: not computed. Run `, command(line), ".");
