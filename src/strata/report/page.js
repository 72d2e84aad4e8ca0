"use strict";
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const tip = document.getElementById("tip");

function showTip(x, y, content, beside = false) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const left = !beside ? x - width / 2 : x + width + 24 < room ? x + 14 : x - width - 14;
  tip.style.left = Math.max(8, Math.min(left, room - width - 8)) + "px";
  tip.style.top = (beside ? Math.max(8, y) : y - height - 12 >= 8 ? y - height - 12 : y + 22) + "px";
}
const hideTip = () => { tip.hidden = true; };

// Titles become tips that come at once, and on focus too.
$$("[title]").forEach((element) => {
  element.dataset.tip = element.title;
  element.removeAttribute("title");
});
function tipOf(event) {
  const element = event.target.closest?.("[data-tip]");
  if (!element) return;
  const box = element.getBoundingClientRect();
  showTip(event.type === "mouseover" ? event.clientX : box.left + box.width / 2, box.top, [element.dataset.tip]);
}
document.addEventListener("mouseover", tipOf);
document.addEventListener("focusin", tipOf);
document.addEventListener("mouseout", (event) => { if (event.target.closest?.("[data-tip]")) hideTip(); });
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// Tables sort by a click or Enter on a column's head; rows without a number stay last.
$$("table.sortable").forEach((table) => {
  const heads = $$("thead th", table);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : column > 0;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      return (down ? -1 : 1) * (Number(key(a)) - Number(key(b)));
    });
    table.tBodies[0].append(...rows);
  }));
});

// Curves: the values at the nearest logged step, by pointer, touch or arrow keys.
const shortCount = (n) => n >= 1e6 ? (n / 1e6).toPrecision(3) + " M" : n >= 1e3 ? (n / 1e3).toPrecision(3) + " k" : String(n);
$$("figure.curves").forEach((figure) => {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const area = figure.querySelector(".area");
  const cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  const [low, high] = data.y;
  const heightOf = (v) => data.log ? 1 - Math.log(v / low) / Math.log(high / low) : 1 - (v - low) / (high - low);
  const text = (v) => data.percent ? (100 * v).toPrecision(3) + " %" : v.toPrecision(4);
  let at = data.x.length - 1;

  function read(place, pointerY, spoken) {
    at = place;
    const box = area.getBoundingClientRect();
    const found = data.lines.filter((line) => line.values[at] !== null && (!data.log || line.values[at] > 0));
    const distance = (line) => Math.abs(heightOf(line.values[at]) * box.height - (pointerY ?? 0));
    const byDistance = [...found].sort((a, b) => distance(a) - distance(b));
    const shown = byDistance.slice(0, 12).sort((a, b) => b.values[at] - a.values[at]);
    const near = pointerY === undefined ? null : byDistance[0];
    const x = 1000 * data.x[at] / data.x_high;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const list = document.createElement("table");
    shown.forEach((line) => {
      const row = list.insertRow();
      const key = document.createElement("i");
      key.style.setProperty("--t", line.depth);
      row.insertCell().append(key, line.site);
      row.insertCell().append(text(line.values[at]));
      if (line === near) row.className = "near";
    });
    const head = document.createElement("div");
    head.append(shortCount(data.x[at]) + " rows" + (shown.length < found.length ? ", nearest " + shown.length : ""));
    showTip(box.left + box.width * x / 1000, box.top, [head, list], true);
    if (spoken) readout.textContent = head.textContent + ": " + shown.map((line) => line.site + " " + text(line.values[at])).join(", ");
  }
  function leave() {
    hideTip();
    cursor.setAttribute("visibility", "hidden");
  }
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * data.x_high;
    let nearest = 0;
    data.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(data.x[nearest] - x)) nearest = i; });
    read(nearest, event.clientY - box.top, false);
  });
  area.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    read(Math.max(0, Math.min(data.x.length - 1, at + (cursor.getAttribute("visibility") === "visible" ? way : 0))), undefined, true);
  });
});
$$(".legend [data-site]").forEach((item) => {
  const mark = (on) => $$("figure.curves").forEach((figure) => {
    figure.classList.toggle("dim", on);
    $$(".line", figure).forEach((line) => line.classList.toggle("on", on && line.dataset.site === item.dataset.site));
  });
  item.addEventListener("mouseenter", () => mark(true));
  item.addEventListener("mouseleave", () => mark(false));
});

// Features: a link to a site opens it.
$$(".fold-all").forEach((line) => {
  line.hidden = false;
  $$("button", line).forEach((button) => button.addEventListener("click", () => {
    $$("details.site").forEach((site) => { site.open = button.dataset.open === "true"; });
  }));
});
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
