"use strict";
// Tokens as people can read them, and windows of text shaded by what the feature does at each token.
const N_SHADES = 10;
const MOST_CHARACTERS = 240; // of one token in an example
// Characters that cannot be seen, or that would move others: control and format characters, lone surrogates, what is no
// character. They get the signs of strata.visible_text, but for line ends and tabs, which are kept here.
const HIDDEN = /[^\P{C}\n\t]|[\u2028\u2029]/gu;
const SIGNS = { "\x7f": "␡", "\x85": "␤", "\u2028": "␤", "\u2029": "␤" };
const signOf = (character) => SIGNS[character] ?? (character < " " ? String.fromCharCode(0x2400 + character.charCodeAt(0)) : "\ufffd");
const visible = (text) => text.replaceAll("\r\n", "\n").replace(HIDDEN, signOf);

const vocabulary = { texts: [] };
const textOf = (id) => vocabulary.texts[id] ?? `⟨token ${id}⟩`;

function shortened(text, most) {
  const characters = text.length > 4 * most ? [...text.slice(0, 2 * most)] : [...text];
  return characters.length > most ? characters.slice(0, most).join("") + "…" : text;
}
// A token on one line: spaces, tabs and line breaks as signs.
const inline = (text, most = 24) =>
  shortened(visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·"), most);
const chip = (id) => h("bdi.chip", { tip: textOf(id).length > 24 ? `${count(textOf(id).length)} characters` : null }, inline(textOf(id)));

function tokenPieces(text) {
  const shown = shortened(visible(text), MOST_CHARACTERS);
  return shown.split(/(\n)/).filter((piece) => piece !== "");
}
const lineBreak = () => h("span.nl", {}, "↵");

function tokenElements(text, value, max, isPeak) {
  const pieces = tokenPieces(text);
  if (value <= 0 && !isPeak) return pieces.flatMap((piece) => piece === "\n" ? [lineBreak(), "\n"] : [piece]);
  const shade = value > 0 && max > 0 ? Math.min(N_SHADES, Math.ceil(N_SHADES * value / max)) : 0;
  const mark = (...content) =>
    h(`mark.a${shade}${isPeak ? ".peak" : ""}`, { tip: `${inline(text)}  ${digits3(value)}` }, ...content);
  // A line break ends its mark and a new one begins, so that no box spans two lines.
  return pieces.flatMap((piece) => piece === "\n" ? [mark(lineBreak()), "\n"] : [mark(piece)]);
}

// One window. Left and right arrow keys read the tokens that fire, if any does.
function exampleItem(example, max, fires) {
  const { ids, values, peak } = example;
  const text = h("pre", { tabindex: fires ? "0" : null, role: "group", dir: "ltr",
    "aria-label": fires ? `Example: token ${inline(textOf(ids[peak]))}, activation ${digits3(values[peak])}. Left and right arrow keys read the activations.`
      : "Example without a firing" });
  if (!example.isStart) text.append(h("span.cut", { "aria-hidden": "true" }, "…"));
  ids.forEach((id, i) => text.append(...tokenElements(textOf(id), values[i], max, fires && i === peak)));
  if (!example.isEnd) text.append(h("span.cut", { "aria-hidden": "true" }, "…"));
  if (fires) text.addEventListener("keydown", readTokens);
  const title = `${fires ? "Activation of the boxed token" : "It is silent here"}; document ${count(example.document)}`;
  return h("li", {}, h("span.at", { tip: title }, digits3(values[peak])), text);
}

function readTokens(event) {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const marks = [...event.currentTarget.querySelectorAll("mark")];
  if (!marks.length) return;
  const at = marks.findIndex((mark) => mark.classList.contains("read"));
  const peak = marks.findIndex((mark) => mark.classList.contains("peak"));
  const next = marks[at < 0 ? Math.max(0, peak) : Math.max(0, Math.min(marks.length - 1, at + way))];
  marks.forEach((mark) => mark.classList.toggle("read", mark === next));
  event.currentTarget.addEventListener("blur", () => next.classList.remove("read"), { once: true });
  showTip(next.getClientRects()[0], next.dataset.tip);
  say(next.dataset.tip);
}
