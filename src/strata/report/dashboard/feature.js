"use strict";
// The page of one feature.
const GROUP_TITLES = { top: "Strongest", quantile: "By strength", random: "Drawn at random where it fires", silent: "Does not fire here" };

function examplesOf(run, windows) {
  const ids = Strata.integers(windows.ids, run.id_bytes);
  const places = Strata.integers(windows.places, run.place_bytes);
  const levels = Strata.integers(windows.levels, 2);
  const values = new Array(ids.length).fill(0);
  places.forEach((place, i) => { values[place] = windows.max * levels[i] / 65535; });
  let start = 0;
  return windows.lengths.map((length, i) => {
    const example = { ids: ids.slice(start, start + length), values: values.slice(start, start + length),
      peak: windows.peaks[i], document: windows.documents[i], isStart: windows.cut[i] % 2 === 0, isEnd: windows.cut[i] < 2 };
    start += length;
    return example;
  });
}

function exampleGroups(run, windows) {
  const examples = examplesOf(run, windows);
  const parts = [];
  let before = "";
  let start = 0;
  for (const { kind, n, low, high, share } of windows.groups) {
    if (!n) continue;
    if (kind !== before) parts.push(h("h2", {}, GROUP_TITLES[kind]));
    before = kind;
    if (kind === "quantile") parts.push(h("h3", {}, `${digits3(low)} to ${digits3(high)} `, h("span.count", {}, `${percent(share)} of its firings`)));
    if (kind === "silent") parts.push(h("p.small", {}, "Other texts of the index, drawn at random."));
    const shown = examples.slice(start, start + n).map((example) => exampleItem(example, windows.max, kind !== "silent"));
    parts.push(h("article", {}, h("ol", {}, shown)));
    start += n;
  }
  return parts;
}

function explanationParts(run, explanations) {
  if (!explanations?.length) return [missing("Explanation", `strata explain ${run.folder}`)];
  const because = (why) => why ? `: ${visible(why)}.` : ".";
  return explanations.map(({ text, by, scores, failures, half, split, why }) => h("div.explained", {},
    h("p.verdict", { dir: "auto" }, text === null ? "No explanation came back" + because(why) : shortened(visible(text), 1000)),
    h("p.by", {}, `By ${visible(by)}. `, scores.length ? `Scored on ${visible(split)}: ` : text === null ? null : "Not scored" + because(why)),
    scores.length ? h("dl.scores", {}, scores.map(scoreItem)) : null,
    failures.length ? h("p.small", {}, "Windows without an answer: ", failures.map(([reason, n]) => `${count(n)} × ${visible(reason)}`).join(", "), ".") : null,
    half ? h("p.small", {}, "The limit on cost left it half scored: it counts in no mean.") : null));
}

// Where windows were left without an answer, a score tells so.
function scoreItem([name, value, answered, asked]) {
  const few = answered < asked ? h("dd.few", {}, `${count(answered)} of ${count(asked)} windows answered`) : null;
  return h("div", {}, h("dt", {}, visible(name)), h("dd", {}, fixed(value, 2)), few);
}

function flag(run, density) {
  if (density > 0 && density <= run.dense) return null;
  const [word, what] = density > 0 ? ["dense", `Fires in more than ${percent(run.dense)} of the rows`] : ["silent", "Fires in no row of the index: dead, as far as they tell"];
  return h("span.kind", { tip: what, tabindex: "0", "aria-label": `${word}: ${what}` }, word);
}

function factTiles(sae, columns, latent, feature) {
  const density = columns.density[latent];
  const n = Math.round(density * sae.n_rows);
  const tile = (label, value, note) => h("div", {}, h("dt", {}, label), h("dd", {}, value), note ? h("dd.note", {}, note) : null);
  const [mean, spread, skewness, kurtosis] = feature.moments ?? [];
  return h("dl.tiles", {},
    tile("Density", percent(density), oneIn(density)),
    tile("Fires in", shortCount(n), `of ${shortCount(sae.n_rows)} rows`),
    tile("Largest", digits3(columns.max[latent]), null),
    tile("Mean", digits3(mean), known(spread) ? `where it fires, ± ${digits3(spread)}` : "where it fires"),
    known(skewness) ? tile("Skewness", digits3(skewness), known(kurtosis) ? `kurtosis ${digits3(kurtosis)}` : null) : null);
}

function logitParts(logits) {
  if (!logits) return [h("h2", {}, "Logits"), h("p.missing", {}, "Effect on the logits: the model has no unembedding of this width.")];
  const rows = (ids, values) => ids.map((id, i) => [chip(id), values[i], digits3(values[i])]);
  return [h("h2", {}, "Logits"),
    h("p.small", {}, "Next tokens that its direction pushes up and down, through the unembedding."),
    h("div.two", {}, h("div", {}, h("h3", {}, "Up"), barList("Tokens pushed up most", rows(logits.up, logits.up_values))),
      h("div", {}, h("h3", {}, "Down"), barList("Tokens pushed down most", rows(logits.down, logits.down_values))))];
}

function linkTo(sae, columns, latent) {
  const said = columns.explanation[latent] ?? (columns.tokenId[latent] === null ? "" : columns.token[latent]);
  return h("a", { href: featureAddress(sae.key, latent) }, String(latent), " ", h("bdi.soft", {}, shortened(visible(said), 60)));
}

function partnerParts(sae, columns, partners) {
  if (!partners?.length) return [h("h2", {}, "Fires together with"), h("p.small", {}, "No other latent of this SAE.")];
  return [h("h2", {}, "Fires together with"),
    h("p.small", {}, "Jaccard index: rows with both, of rows with either."),
    barList("Latents that fire in the same rows", partners.map(([latent, jaccard, correlation]) => {
      const link = linkTo(sae, columns, latent);
      if (known(correlation)) link.dataset.tip = `correlation of firing (phi) ${fixed(correlation, 2)}`;
      return [link, jaccard, fixed(jaccard, 2)];
    }))];
}

function nearestParts(sae, columns, nearest) {
  return [h("h2", {}, "Nearest directions"), h("p.small", {}, "Cosine of decoder rows, among all latents of this SAE."),
    barList("Latents whose directions are nearest", nearest.map(([latent, cosine]) => [linkTo(sae, columns, latent), Math.max(0, cosine), fixed(cosine, 2)]))];
}

function layerParts(run, here, latent, layers) {
  if (!layers?.length) return [];
  const rows = layers.map(([place, nFired]) => {
    const sae = run.saes[place];
    const share = sae.n_rows ? nFired / sae.n_rows : 0;
    const link = h("a", { href: featureAddress(sae.key, latent) }, sae.site);
    if (sae === here) link.setAttribute("aria-current", "page");
    return [link, share, percent(share)];
  });
  return [h("h2", {}, "Layers of its group"), h("p.small", {}, `${here.group} shares one SAE. Density of this latent at each layer:`),
    barList("Density at each layer of the group", rows)];
}

const word = (text) => /^[\w./+=:@%-]+$/.test(text) ? text : `'${visible(text).replaceAll("'", "'\\''")}'`; // for a shell

function steeringParts(run, sae, latent) {
  const which = sae.key === sae.site ? "" : ` --sae ${word(sae.key)}`;
  return [h("h2", {}, "Steer with it"), command(`strata steer ${run.folder} --site ${word(sae.site)}${which} --latent ${latent} --strength 1 2 4`),
    h("p.small", {}, "A strength of 1 adds as much as its largest activation does.")];
}

function featurePage(run, sae, columns, latent, feature) {
  const step = (to, text, label) => to >= 0 && to < sae.d_sae ? h("a", { href: featureAddress(sae.key, to), "aria-label": label }, text) : h("span.soft", { "aria-hidden": "true" }, text);
  const examples = feature.windows ? exampleGroups(run, feature.windows) : [h("p.hint", {}, `It fires in none of the ${count(sae.n_rows)} rows of the index.`)];
  return [
    h("header", {}, h("p.eyebrow", {}, h("a", { href: tableAddress(sae.key) }, visible(sae.key))),
      h("div.title", {}, h("h1", {}, `Latent ${latent}`), flag(run, columns.density[latent]), h("p.steps", {}, step(latent - 1, "← " + (latent - 1), "Previous latent"), step(latent + 1, latent + 1 + " →", "Next latent"))),
      explanationParts(run, feature.explanations)),
    factTiles(sae, columns, latent, feature),
    h("div.columns", {},
      h("section.examples", { "aria-label": "Examples" },
        feature.windows ? h("p.hint", {}, "A token's shade and line grow with the activation, up to the largest; the token around which the text was cut is boxed. Values show on hover, and by arrow keys in an example. ", h("span.nl", {}, "↵"), " is a line break.") : null,
        examples),
      h("aside", { "aria-label": "Numbers of the feature" },
        feature.histogram ? h("section", {}, h("h2", {}, "Histogram"), histogram(feature.histogram)) : null,
        h("section", {}, logitParts(feature.logits)),
        h("section", {}, partnerParts(sae, columns, feature.partners)),
        feature.nearest?.length ? h("section", {}, nearestParts(sae, columns, feature.nearest)) : null,
        feature.layers?.length ? h("section", {}, layerParts(run, sae, latent, feature.layers)) : null,
        h("section", {}, steeringParts(run, sae, latent)))),
  ];
}
