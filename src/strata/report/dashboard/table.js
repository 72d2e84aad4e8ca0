"use strict";
// The features of one SAE: searched, filtered and sorted as columns, of which only the rows in sight are elements.
const ROWS_BESIDE = 8;
const COLUMNS = [
  { key: "latent", label: "Latent", kind: "number" },
  { key: "token", label: "Top token", kind: "text" },
  { key: "explanation", label: "Explanation", kind: "text" },
  { key: "density", label: "Density", kind: "number" },
  { key: "max", label: "Max", kind: "number" },
  { key: "score", label: "Score", kind: "number" },
];
const NO_FILTER = { search: "", least: "", most: "", score: "", max: "", silent: false };

// Columns by latent from what the file holds; made once for each SAE.
function columnsOf(sae, stored) {
  const latent = stored.n_fired.map((_, i) => i);
  const token = stored.token.map((id) => id === null ? "" : inline(textOf(id)));
  const explanation = stored.explanation ?? latent.map(() => null);
  return {
    latent, token, explanation,
    tokenId: stored.token,
    density: stored.n_fired.map((n) => sae.n_rows ? n / sae.n_rows : 0),
    max: stored.max,
    score: stored.score ?? latent.map(() => null),
    words: latent.map((i) => {
      const raw = stored.token[i] === null ? "" : shortened(textOf(stored.token[i]), MOST_CHARACTERS);
      return `${i}\n${raw}\n${token[i]}\n${explanation[i] ?? ""}`.toLowerCase();
    }),
  };
}

const limit = (text, factor) => text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text) * factor;

// Latents that pass, in order; those without a value stay last.
function chosenLatents(columns, state) {
  const search = state.search.trim().toLowerCase();
  const bounds = [
    [columns.density, limit(state.least, 0.01), limit(state.most, 0.01)],
    [columns.score, limit(state.score, 1), null],
    [columns.max, limit(state.max, 1), null],
  ].filter(([, low, high]) => low !== null || high !== null);
  const passes = (i) =>
    (state.silent || columns.density[i] > 0) &&
    (search === "" || columns.words[i].includes(search)) &&
    bounds.every(([values, low, high]) =>
      known(values[i]) && (low === null || values[i] >= low) && (high === null || values[i] <= high));
  const found = columns.latent.filter(passes);
  const text = COLUMNS.find((column) => column.key === state.sort).kind === "text";
  const values = text ? columns[state.sort].map((value) => (value ?? "").toLowerCase()) : columns[state.sort];
  const absent = (i) => text ? values[i] === "" : !known(values[i]);
  const way = state.down ? -1 : 1;
  return found.sort((a, b) => absent(a) - absent(b) || (absent(a) ? a - b : 0) ||
    way * (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : 0) || a - b);
}

class FeatureTable {
  constructor(sae, columns, state, changed) {
    Object.assign(this, { sae, columns, state, changed, shown: [], active: 0, first: -1, last: -1 });
    this.drawn = COLUMNS.filter(({ key }) => sae.explained || (key !== "explanation" && key !== "score"));
    this.count = h("p.found", { role: "status" });
    this.body = h("div.rows", { role: "rowgroup" });
    this.head = h("div.tr.heads", { role: "row" }, this.drawn.map((column) => this.headOf(column)));
    this.grid = h("div.grid-table", { role: "grid", tabindex: "0", "aria-label": `Features of ${sae.key}`, onscroll: () => this.later(),
      onkeydown: (event) => this.key(event) }, this.head, this.body);
    this.element = h("section", { "aria-label": "Features" }, this.tools(), this.grid);
    if (!sae.explained) this.grid.classList.add("unexplained");
    this.resized = new ResizeObserver(() => this.later(true));
    this.resized.observe(this.grid);
  }

  headOf(column) {
    const tips = { density: "Share of the rows in which it fires", max: "Largest activation in the index",
      score: this.sae.score_name ?? "Score of the explanation", token: "The token at the largest activation" };
    return h(`div.td.${column.key}`, { role: "columnheader", "data-column": column.key },
      h("button", { type: "button", tip: tips[column.key], onclick: () => this.sortBy(column) }, column.label));
  }

  tools() {
    const field = (name, label, attributes) => h("label", {}, label, h("input", { name, value: this.state[name],
      inputmode: "decimal", size: "6", autocomplete: "off", ...attributes }));
    const form = h("form.tools", { role: "search", onsubmit: (event) => event.preventDefault(), oninput: (event) => this.filter(event) },
      h("input", { type: "search", name: "search", value: this.state.search, "aria-label": "Search explanations, top tokens and numbers",
        placeholder: "Search explanations, tokens, numbers", autocomplete: "off", spellcheck: "false" }),
      h("details.filters", { open: ["least", "most", "score", "max"].some((name) => this.state[name] !== "") || this.state.silent },
        h("summary", {}, "Filter"),
        h("div", {},
          field("least", "Density at least %"), field("most", "at most %"), field("max", "Max at least"),
          this.sae.explained ? field("score", "Score at least") : null,
          h("label.check", {}, h("input", { type: "checkbox", name: "silent", checked: this.state.silent }), "with silent ones"))));
    return h("div", {}, form, this.count);
  }

  filter(event) {
    const input = event.target;
    if (!(input.name in NO_FILTER)) return;
    this.state[input.name] = input.type === "checkbox" ? input.checked : input.value;
    this.grid.scrollTop = 0;
    this.active = 0;
    this.choose();
  }

  sortBy(column) {
    const again = this.state.sort === column.key;
    this.state.down = again ? !this.state.down : column.kind === "number" && column.key !== "latent";
    this.state.sort = column.key;
    this.grid.scrollTop = 0;
    this.active = 0;
    this.choose();
  }

  choose() {
    this.shown = chosenLatents(this.columns, this.state);
    const all = this.columns.latent.length;
    this.count.textContent = `${count(this.shown.length)} of ${count(all)} features`;
    this.grid.setAttribute("aria-rowcount", this.shown.length + 1);
    for (const head of this.head.children) {
      if (head.dataset.column === this.state.sort) head.setAttribute("aria-sort", this.state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    this.changed(this.state);
    this.draw(true);
  }

  later(anew = false) {
    this.anew ||= anew;
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.draw(this.anew);
      this.anew = false;
    });
  }

  draw(anew) {
    const height = parseFloat(getComputedStyle(this.grid).getPropertyValue("--row")) || 40;
    const n = this.shown.length;
    const first = Math.max(0, Math.floor(this.grid.scrollTop / height) - ROWS_BESIDE);
    const last = Math.min(n, Math.ceil((this.grid.scrollTop + this.grid.clientHeight) / height) + ROWS_BESIDE);
    if (!anew && first === this.first && last === this.last) return;
    Object.assign(this, { first, last, rowHeight: height });
    this.body.style.height = n * height + "px";
    this.body.replaceChildren(...this.shown.slice(first, last).map((latent, i) => this.row(latent, first + i)));
    this.markActive();
    if (!n) this.body.replaceChildren(h("p.hint.none", {}, "No feature is like that."));
  }

  row(latent, place) {
    const { columns } = this;
    const content = {
      latent: () => [h("a", { href: featureAddress(this.sae.key, latent), tabindex: "-1" }, String(latent))],
      token: () => columns.tokenId[latent] === null ? [MISSING] : [h("bdi.chip", {}, columns.token[latent])],
      explanation: () => [h("bdi", {}, shortened(visible(columns.explanation[latent] ?? MISSING), MOST_CHARACTERS))],
      density: () => [percent(columns.density[latent])],
      max: () => [known(columns.max[latent]) && columns.density[latent] > 0 ? digits3(columns.max[latent]) : MISSING],
      score: () => [fixed(columns.score[latent], 2)],
    };
    const row = h("div.tr", { role: "row", id: `row-${place}`, "aria-rowindex": place + 2,
      onclick: () => { location.hash = featureAddress(this.sae.key, latent); } },
      this.drawn.map(({ key }) => h(`div.td.${key}`, { role: key === "latent" ? "rowheader" : "gridcell" }, content[key]())));
    row.style.transform = `translateY(${place * this.rowHeight}px)`;
    return row;
  }

  markActive() {
    for (const row of this.body.children) row.classList.toggle("active", row.id === `row-${this.active}`);
    if (document.getElementById(`row-${this.active}`)) this.grid.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  key(event) {
    if (event.target !== this.grid || !this.shown.length) return;
    const page = Math.max(1, Math.floor(this.grid.clientHeight / this.rowHeight) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") location.hash = featureAddress(this.sae.key, this.shown[this.active]);
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.active = Math.max(0, Math.min(this.shown.length - 1, this.active + steps[event.key]));
    const head = this.head.offsetHeight;
    const top = this.active * this.rowHeight;
    if (top < this.grid.scrollTop) this.grid.scrollTop = top;
    else if (top + this.rowHeight + head > this.grid.scrollTop + this.grid.clientHeight)
      this.grid.scrollTop = top + this.rowHeight + head - this.grid.clientHeight;
    this.draw(false);
    this.markActive();
  }
}
