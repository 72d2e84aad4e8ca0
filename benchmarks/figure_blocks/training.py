"""Blocks about what training gives: the demo, dead latents, known features, gates."""

import statistics

from figure_blocks.results import Results, minutes, percent, signed, table


def demo_sites(results: Results) -> str:
    record = results["demo"]
    rows = []
    for site, one in record["sites"].items():
        rows.append([
            site, f"{one['fvu']:.3f}", f"{one['explained_variance']:.3f}", f"{one['l0']:.0f}",
            percent(one["dead_share"]), percent(one["silent_share"]), f"{one['ce_loss_score']:.3f}",
        ])  # fmt: skip
    one = next(iter(record["sites"].values()))
    window = f"dead (no fire in {one['dead_window_rows']:,} rows)"
    silent = f"silent on {record['n_held_out_rows']:,} held-out rows"
    head = ["site", "FVU", "explained variance", "L0", window, silent, "CE loss score"]
    seconds, whole = record["training_seconds"], record["command_seconds"]
    rate = record["n_rows"] / seconds["total"]
    told = (
        f"{len(rows)} SAEs of {next(iter(record['saes'].values()))['d_sae']:,} latents, {record['n_rows']:,} rows each:"
        f" {minutes(seconds['total'])} of training ({seconds['sae']:.0f} s in the SAEs' steps, {rate:,.0f} rows per"
        f" second and SAE), {minutes(whole)} for the whole command with evaluation and report."
    )
    return f"{told}\n\n{table(head, rows)}"


def dead(results: Results) -> str:
    record = results["dead"]
    rows = []
    for name, one in sorted(record["results"].items(), key=_by_rows_centring_method):
        data, centring, method = name.split("/")
        shares = [percent(one[key]) for key in ("dead_share", "never_fired_share", "silent_share")]
        rows.append([data, "yes" if centring == "centred" else "no", method, f"{one['fvu']:.4f}", *shares])
    head = ["rows", "centring", "revival", "held-out FVU", "dead", "never fired", "silent on held-out rows"]
    setting, window = record["setting"], next(iter(record["results"].values()))["window_rows"]
    told = (
        f"{setting['steps']} steps of {setting['rows']:,} rows, k {setting['k']}, expansion"
        f" {setting['expansion']}, dead is silent for {window:,} rows, seed {setting['seed']}."
    )
    return f"{told}\n\n{table(head, rows, left=3)}"


def _by_rows_centring_method(item: tuple[str, object]) -> tuple[int, bool, int]:
    data, centring, method = item[0].split("/")
    ratio = 0 if data == "demo" else int(data.removeprefix("outliers-"))
    return ratio, centring == "raw", ("none", "auxk", "lift", "ghost", "resample").index(method)


def dead_long(results: Results) -> str:
    record = results["long"]
    rows = []
    for name, one in record["methods"].items():
        [site] = one["sites"].values()
        [sae] = one["saes"].values()
        label = f"{sae['revival']} (default)" if name == "auto" else name
        rows.append([
            label, f"{one['n_rows']:,}", f"{site['fvu']:.4f}", percent(one["last_line"]["silent_1m_share"], 2),
            f"{percent(site['dead_share'], 2)} (in {site['dead_window_rows']:,})", percent(site["silent_share"]),
            f"{site['ce_loss_score']:.3f}", minutes(one["training_seconds"]["total"]),
        ])  # fmt: skip
    n_held_out = f"silent on {next(iter(record['methods'].values()))['n_held_out_rows']:,} held-out rows"
    head = [
        "revival",
        "rows",
        "held-out FVU",
        "silent in the last million rows",
        "dead",
        n_held_out,
        "CE loss score",
        "training",
    ]
    return table(head, rows)


def synthetic(results: Results) -> str:
    record = results["synthetic"]
    rows = []
    for run, found in record["results"].items():
        mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
        half = (max(one["mcc"] for one in found) - min(one["mcc"] for one in found)) / 2
        mcc = f"{mean['mcc']:.3f} ± {half:.3f}"
        rows.append([f"`{run}`", mcc, f"{mean['fvu']:.3f}", f"{mean['l0']:.1f}", f"{mean['seconds']:.0f}"])
    setting = record["setting"]
    told = (
        f"{setting['features']:,} features in {setting['d_in']} dimensions, {setting['rows']:,} rows in steps of"
        f" {setting['batch']:,}, means of {len(setting['seeds'])} seeds and half of their spread."
    )
    return f"{told}\n\n{table(['', 'mean correlation coefficient', 'held-out FVU', 'L0', 'seconds in steps'], rows)}"


def gates(results: Results) -> str:
    record = results["gates"]
    rows = []
    for name, one in record["results"].items():
        off = f"{signed(one['off_k_percent'], 1)} %"
        silent, each = f"{one['silent_percent']:.1f} %", f"{one['median_seconds_per_step']:.3f}"
        rows.append([f"`{name}`", f"{one['l0']:.2f}", off, f"{one['fvu']:.4f}", silent, each])
    setting = record["setting"]
    told = (
        f"k {setting['k']}, {setting['steps']} steps of {setting['rows']:,} rows; what SAELens computes from the saved"
        " folders on held-out files."
    )
    head = ["gate", f"L0 (k = {setting['k']})", "off k", "FVU", "silent", "seconds a step"]
    return f"{told}\n\n{table(head, rows)}"
