"use strict";
// The histogram of a feature's activations, counts on a log scale, and lists of numbers with bars.
function histogram({ low, high, counts }) {
  const n = counts.length;
  const total = counts.reduce((sum, c) => sum + c, 0);
  const most = Math.max(1, ...counts);
  const height = (c) => c > 0 ? 40 + 960 * Math.log10(c) / Math.max(1, Math.log10(most)) : 0; // one firing is seen too
  const edge = (i) => low + (high - low) * i / n;
  const bars = counts.map((c, i) => s("rect", { class: "bar", x: 1000 * i / n + 1, width: 1000 / n - 2, y: 1000 - height(c), height: height(c) }));
  const hits = counts.map((c, i) => s("rect", { class: "hit", x: 1000 * i / n, width: 1000 / n, y: 0, height: 1000,
    tip: `${digits3(edge(i))} to ${digits3(edge(i + 1))}: ${count(c)} row${c === 1 ? "" : "s"}` }));
  const label = `Histogram of ${count(total)} activations from ${digits3(low)} to ${digits3(high)}, at most ${count(most)} in a bar`;
  return h("figure.histogram", {},
    h("figcaption", {}, "Activations where it fires"),
    h("div.area", {}, s("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...hits, ...bars)),
    h("div.ends", { "aria-hidden": "true" }, h("span", {}, digits3(low)), h("span", {}, "counts, log scale"), h("span", {}, digits3(high))));
}

// Rows of [label element, value, text]; bars are relative to the largest.
function barList(label, rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), Number.MIN_VALUE);
  return h("ol.bars", { "aria-label": label }, rows.map(([name, value, text]) => {
    const bar = h("i", { "aria-hidden": "true" });
    bar.style.width = 100 * Math.abs(value) / most + "%";
    return h("li", {}, h("span.what", {}, name), h("span.n", {}, text), bar);
  }));
}
