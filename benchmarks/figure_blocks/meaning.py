"""Blocks about what features mean: index, explanations, dashboards, interactions, steering."""

from typing import Any

from figure_blocks.results import Results, minutes, percent, plain, plus_minus, power, table

_SCORES = {
    "simulation.all.correlation": "simulation, correlation",
    "simulation.top.correlation": "strongest windows",
    "simulation.random.correlation": "random and silent windows",
    "detection.balanced_accuracy": "detection, balanced accuracy",
    "fuzzing.balanced_accuracy": "fuzzing, balanced accuracy",
}
_MEASURES = {
    "simulation": "simulation, correlation", "simulation, top": "strongest windows", "simulation, random": "the others",
    "detection": "detection, balanced accuracy", "fuzzing": "fuzzing, balanced accuracy",
}  # fmt: skip
METHODS = {
    "nothing": "nothing",
    "sae-add": "feature, added",
    "sae-clamp": "feature, clamped",
    "diff-means": "difference of means",
    "caa": "contrastive activation addition",
    "prompting": "prompting",
}


def index(results: Results) -> str:
    record = results["index"]
    rows = []
    for name, one in record["building"].items():
        rows.append([f"building over forward and encoding, {name}", f"{one['ratios']['wall']['building']:.2f}"])
    asked = record["asking"]["open and ask"]
    rows += [
        ["opening it and asking for a feature's texts, median", f"{asked['median_ms']:.1f} ms"],
        ["the same, 99th percentile", f"{asked['p99_ms']:.1f} ms"],
        ["bytes of an entry", f"{record['keeping']['codes_bytes_per_entry']:.2f}"],
        [
            "10 million tokens at 32 active latents",
            f"{record['keeping']['10_million_tokens_at_k_32_gigabytes']:.2f} GB",
        ],
    ]
    return table(["the index", ""], rows)


def explain(results: Results) -> str:
    record = results["explain"]
    found = record["results"]
    rows = []
    for path, shown in _SCORES.items():
        own, other = found["scores"][path], found["shuffled"][path]
        interval = f"{plain(own['mean'], 3)} ({plain(own['low'], 3)} to {plain(own['high'], 3)})"
        rows.append([shown, interval, plain(other["mean"], 3)])
    first = "simulation.all.correlation"
    undefined, shuffled = (found[whose][first]["n_undefined"] for whose in ("scores", "shuffled"))
    told = (
        f"{found['n_features']:,} live features of `{record['site']}` explained and scored, with the shuffled baseline,"
        f" in {record['times']['seconds']:.1f} s (the index not counted). {found['n_features'] - found['n_scored']:,}"
        f" have no score, having too few firings; the correlation of {undefined:,} more is undefined ({shuffled:,} of"
        " shuffled explanations), and means leave them out, which flatters."
    )
    return f"{told}\n\n{table(['mean over features (95 % interval)', 'own explanation', 'another feature’s'], rows)}"


def group_features(results: Results) -> str:
    record = results["group-features"]
    rows = []
    for name, shown in _MEASURES.items():
        one = record["compared"][name]
        numbers = [plain(one[key], 3) for key in ("layer_wise", "group")]
        rows.append([shown, *numbers, plus_minus(*one["difference"]), plain(one["shuffled"], 3)])
    head = ["mean over features", "layer-wise", "group", "difference, 95 % over seeds", "shuffled explanations"]
    sides = [_share(record, in_groups=side, key="scored") for side in (False, True)]
    live = [_share(record, in_groups=side, key="live") for side in (False, True)]
    settled = record.get("setting", record)
    told = (
        f"Groups {' and '.join(settled['groups'])}, {len(record['seeds'])} seeds, {settled['n_features']} live"
        f" features of each SAE at each layer: {percent(sides[0])} and {percent(sides[1])} of them have a score"
        f" (layer-wise, groups). Live are {percent(live[0])} and {percent(live[1])} of all features."
    )
    return f"{told}\n\n{table(head, rows)}"


def _share(record: dict[str, Any], *, in_groups: bool, key: str) -> float:
    saes = [sae for seed in record["seeds"] for name, sae in seed["saes"].items() if ("/" in name) == in_groups]
    if key == "live":
        return sum(sae["live_share"] for sae in saes) / len(saes)
    return sum(sae["n_scored"] for sae in saes) / sum(sae["n_features"] for sae in saes)


def steering(results: Results) -> str:
    record = results["steering"]
    rows = []
    for name, one in record["methods"].items():
        flops = one["flops"]
        share = flops["token"] / record["forward_flops_per_token"]
        rows.append([
            METHODS.get(name, name), f"{one['score']:.3f} ({one['score_low']:.3f} to {one['score_high']:.3f})",
            f"{one['concept']:.3f}", f"{one['fluency']:.3f}", power(flops["training"]), power(flops["concept"]),
            "0" if flops["token"] == 0 else f"{power(flops['token'])}, {percent(share, 2 if share < 0.01 else 0)}",
        ])  # fmt: skip
    head = ["method", "score (95 %)", "concept", "fluency", "training FLOPs", "FLOPs per concept",
            "FLOPs per token, share of a forward"]  # fmt: skip
    prompts = record["n_prompts"]
    told = (
        f"`{record['sae']}` of the demo, {len(record['concepts'])} concepts, {prompts['choose']} prompts to choose a"
        f" strength and {prompts['test']} to report, temperature {record['temperature']:g},"
        f" {minutes(record['total_seconds']['wall'])}. The score is the harmonic mean of concept and fluency per text."
    )
    lead = max(record["concepts"].items(), key=lambda item: _lead(item[1]))
    [best, behind] = [lead[1][name]["test"]["score"] for name in ("diff-means", "sae-clamp")]
    told_lead = (
        f"Where a difference of means leads the clamped feature most: {lead[0]}, {best:.2f} against {behind:.2f}."
    )
    return f"{told}\n\n{table(head, rows)}\n\n{told_lead}"


def _lead(concept: dict[str, Any]) -> float:
    return concept["diff-means"]["test"]["score"] - concept["sae-clamp"]["test"]["score"]


def interactions(results: Results) -> str:
    record = results["interactions"]
    together, targets, exact = record["coactivation"], record["edges_by_targets"], record["ablations"]
    grows = record["exponents"]
    by_width = f"{_at(together[0], 'F', 'd_sae')} to {_at(together[-1], 'F', 'd_sae')}"
    by_targets = f"{_at(targets[0], 'V', 'n_targets')} to {_at(targets[-1], 'V', 'n_targets')}"
    fixed = f"F^{grows['edges seconds over F at fixed V']:.2f} at fixed V"
    ran = f"(extrapolated from {exact['n_forwards_run']})"
    rows = [
        [
            f"co-activation, all pairs that occur on {record['n_tokens']:,} tokens",
            f"T·k² increments, {power(together[0]['n_increments'])} at every width",
            f"F^{grows['coactivation increments over F']:.0f}",
            f"{by_width}: F^{grows['coactivation seconds over F']:.2f}",
        ],
        [
            "edges, V kept targets",
            "V backward passes, 1 forward",
            f"V^{grows['edges backwards over V']:.0f}",
            f"{by_targets}: V^{grows['edges seconds over V']:.2f}; {fixed}",
        ],
        [
            "every source of every target by ablation",
            "one forward for each token and feature that fires",
            "T·k",
            f"{_each(exact)} {ran}",
        ],
    ]
    head = ["", "counted", "grows as", "CPU seconds of one thread"]
    return table(head, rows, left=4)


def _each(exact: dict[str, Any]) -> str:
    seconds, n = exact["seconds_all_extrapolated"], exact["n_forwards_all"]
    return f"{1000 * exact['seconds_each']:.0f} ms each; {seconds:.0f} s for {n:,}"


def _at(point: dict[str, Any], symbol: str, key: str) -> str:
    return f"{point['seconds']:.2g} at {symbol} {point[key]:,}"


def dashboard(results: Results) -> str:
    record = results["dashboard"]
    rows = [
        ["the whole command", minutes(record["seconds"])],
        ["tokens in the index", f"{record['n_tokens']:,}"],
        ["features with a page", f"{record['n_features']:,}"],
        ["of these explained", f"{record['n_explained']:,}"],
        ["pages", f"{record['pages_bytes'] / 1e6:.0f} MB"],
        ["index beside them", f"{record['index_bytes'] / 1e6:.0f} MB"],
    ]
    return table([f"all {record['n_saes']} SAEs, from nothing", ""], rows)
