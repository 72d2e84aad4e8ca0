"use strict";
// The addresses of the dashboard, and the overview: #/ the run, #/SITE its features, #/SITE/LATENT one of them.
const main = document.getElementById("main");
const picker = document.getElementById("sae");
const tables = new Map(); // key → columns
const states = new Map(); // key → what was searched, and where the table stood
let run = null;
let table = null;

const path = (key) => key.split("/").map(encodeURIComponent).join("/");
const tableAddress = (key) => `#/${path(key)}`;
const featureAddress = (key, latent) => `#/${path(key)}/${latent}`;

function addressed() {
  const [address, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  let parts;
  try {
    parts = address.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    return { view: "unknown" };
  }
  if (!parts.length) return { view: "overview" };
  const sae = run.saes.find(({ key }) => key === parts.join("/"));
  if (sae) return { view: "table", sae, query: new URLSearchParams(query ?? "") };
  const holder = run.saes.find(({ key }) => key === parts.slice(0, -1).join("/"));
  const latent = /^\d{1,9}$/.test(parts.at(-1)) ? Number(parts.at(-1)) : -1;
  return holder && latent >= 0 && latent < holder.d_sae ? { view: "feature", sae: holder, latent } : { view: "unknown" };
}

async function columnsAt(sae) {
  if (!tables.has(sae.key)) tables.set(sae.key, columnsOf(sae, await Strata.load(`${run.saes.indexOf(sae)}/table`)));
  return tables.get(sae.key);
}

function overview() {
  const saes = run.saes;
  const mean = (name) => {
    const values = saes.map((sae) => sae[name]).filter(known);
    return values.length ? values.reduce((a, b) => a + b) / values.length : null;
  };
  const total = (name) => saes.reduce((n, sae) => n + sae[name], 0);
  const tile = (label, value, note) => h("div", {}, h("dt", {}, label), h("dd", {}, value), note ? h("dd.note", {}, note) : null);
  const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, h("bdi", {}, visible(String(value)))));
  const columns = [["FVU", (sae) => fixed(sae.fvu, 3)], ["Explained variance", (sae) => fixed(sae.explained_variance, 3)], ["L0", (sae) => fixed(sae.l0, 1)],
    ["Dead", (sae) => percent(sae.dead_share)], ["Silent here", (sae) => count(sae.n_silent)], ["Dense", (sae) => count(sae.n_dense)], ["With explanation", (sae) => count(sae.n_explained)], ["Mean score", (sae) => fixed(sae.mean_score, 2)]];
  const row = (sae) => h("tr", {}, h("th.name", { scope: "row" }, h("a", { href: tableAddress(sae.key) }, visible(sae.key))),
    h("td", {}, count(sae.d_sae)), columns.map(([, text]) => h("td", {}, text(sae))));
  return [
    h("header", {}, h("p.eyebrow", {}, "Features of a run"), h("h1", {}, visible(run.title)),
      h("dl.about", {}, fact("Text", run.data), fact("Tokens", count(run.n_tokens)), fact("Date", run.date),
        run.report ? h("div", {}, h("dt", {}, "Training"), h("dd", {}, h("a", { href: run.report }, "report"))) : null)),
    h("dl.tiles", {}, tile("SAEs", count(saes.length)), tile("Features", shortCount(total("d_sae")), `${count(total("n_silent"))} silent in these tokens`),
      tile("FVU", fixed(mean("fvu"), 3), "mean, held-out text"), tile("L0", fixed(mean("l0"), 1), "mean, held-out text"),
      tile("With explanation", shortCount(total("n_explained")), known(mean("mean_score")) ? `mean score ${fixed(mean("mean_score"), 2)}` : null)),
    saes.some((sae) => sae.explained) ? null : missing("Explanations", `strata explain ${run.folder}`),
    total("n_half_scored") ? h("p.missing", {}, `Features that the limit on cost left half scored: ${count(total("n_half_scored"))}. They count in no mean.`) : null,
    total("n_unanswered") ? h("p.missing", {}, `Windows without an answer in the scores: ${count(total("n_unanswered"))}. The scores are of the others; each feature's page tells how many.`) : null,
    saes.every((sae) => !known(sae.fvu)) ? h("p.missing", {}, "Quality on held-out text: not measured. The run has no evaluation.json.") : null,
    h("section", { "aria-labelledby": "h-saes" }, h("h2", { id: "h-saes" }, "SAEs"),
      h("div.scroll", { role: "region", "aria-label": "SAEs", tabindex: "0" }, h("table", {},
        h("thead", {}, h("tr", {}, h("th.name", { scope: "col" }, "SAE"), h("th", { scope: "col" }, "Features"), columns.map(([label]) => h("th", { scope: "col" }, label)))),
        h("tbody", {}, saes.map(row))))),
    run.facts.length ? h("section", { "aria-labelledby": "h-index" }, h("h2", { id: "h-index" }, "Index"),
      h("dl.definitions", {}, run.facts.map(([name, value]) => h("div", {}, h("dt", {}, visible(name)), h("dd", {}, h("bdi", {}, visible(value))))))) : null,
  ];
}

function stateAt(sae, query) {
  const kept = states.get(sae.key) ?? { ...NO_FILTER, sort: sae.explained ? "score" : "density", down: true, scroll: 0, active: 0 };
  for (const name of Object.keys(NO_FILTER)) if (query.has(name)) kept[name] = name === "silent" ? query.get(name) === "true" : query.get(name);
  if (COLUMNS.some(({ key }) => key === query.get("sort"))) kept.sort = query.get("sort");
  if (query.has("down")) kept.down = query.get("down") === "true";
  states.set(sae.key, kept);
  return kept;
}

// The address tells what is searched, so that it can be sent on.
function write(sae, state) {
  const query = new URLSearchParams();
  for (const name of Object.keys(NO_FILTER)) if (state[name] !== NO_FILTER[name]) query.set(name, state[name]);
  query.set("sort", state.sort);
  query.set("down", state.down);
  try {
    history.replaceState(null, "", `${tableAddress(sae.key)}?${query}`);
  } catch { /* a browser that allows no such thing from disk, or not that often */ }
}

function showTable(sae, columns, query) {
  const state = stateAt(sae, query);
  table = new FeatureTable(sae, columns, state, (changed) => write(sae, changed));
  table.sae = sae;
  main.replaceChildren(h("header", {}, h("p.eyebrow", {}, "Features"), h("h1", {}, visible(sae.key))),
    ...[sae.explained ? null : missing("Explanations", `strata explain ${run.folder}`)].filter(Boolean), table.element);
  const { scroll, active } = state;
  table.choose();
  table.grid.scrollTop = scroll;
  table.active = active;
  table.draw(true);
}

function leaveTable() {
  if (!table) return;
  Object.assign(states.get(table.sae.key), { scroll: table.grid.scrollTop, active: table.active });
  table.resized.disconnect();
  table = null;
}

let turn = 0;
async function show() {
  const mine = ++turn;
  const { view, sae, latent, query } = addressed();
  const place = run.saes.indexOf(sae);
  let chunk = null, columns = null;
  try {
    if (sae) columns = await columnsAt(sae);
    if (view === "feature") chunk = await Strata.load(`${place}/${Math.floor(latent / run.chunk)}`);
  } catch (error) {
    if (mine === turn) { leaveTable(); main.replaceChildren(h("p.missing", {}, `${error.message}. Write the dashboard again.`)); }
    return;
  }
  if (mine !== turn) return; // another address was asked for meanwhile
  hideTip();
  leaveTable();
  picker.value = sae ? String(place) : "";
  const pages = {
    overview: () => main.replaceChildren(...overview().filter(Boolean)),
    table: () => showTable(sae, columns, query),
    feature: () => main.replaceChildren(...featurePage(run, sae, columns, latent, chunk[latent % run.chunk]).filter(Boolean)),
    unknown: () => main.replaceChildren(h("p.missing", {}, "Nothing is at this address. "), h("p", {}, h("a", { href: "#/" }, "Overview"))),
  };
  pages[view]();
  document.title = [view === "feature" ? `Latent ${latent}` : null, sae ? visible(sae.key) : null, visible(run.title)].filter(Boolean).join(" · ");
  document.body.dataset.view = view;
  window.scrollTo(0, 0);
  if (mine > 1) main.focus({ preventScroll: true });
}

async function start() {
  try {
    run = await Strata.load("run");
    vocabulary.texts = await Strata.load("vocabulary");
  } catch (error) {
    main.replaceChildren(h("p.missing", {}, `${error.message}. Write the dashboard again with strata dashboard.`));
    return;
  }
  picker.append(h("option", { value: "" }, "Overview"), ...run.saes.map((sae, i) => h("option", { value: i }, visible(sae.key))));
  picker.addEventListener("change", () => { location.hash = picker.value === "" ? "#/" : tableAddress(run.saes[picker.value].key); });
  document.getElementById("jump").addEventListener("submit", (event) => {
    event.preventDefault();
    const sae = run.saes[picker.value === "" ? 0 : picker.value];
    const latent = Number(document.getElementById("latent").value);
    if (Number.isInteger(latent) && latent >= 0 && latent < sae.d_sae) location.hash = featureAddress(sae.key, latent);
    else say(`${sae.key} has latents 0 to ${sae.d_sae - 1}.`);
  });
  document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  document.getElementById("made").textContent = `Written by Strata ${run.version}. This page needs no network.`;
  window.addEventListener("hashchange", show);
  await show();
}
start();
