"""The doctor: silent on healthy runs, and on a run with one thing spoilt that thing and nothing else."""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planted_runs import (
    DEMO,
    HEALTHY,
    POSTED,
    SHORT,
    Run,
    Shape,
    every_site,
    healthy,
    old,
    resumed,
    slowed,
    with_record,
    write,
)  # fmt: skip
from strata.config.doctor import DoctorConfig
from strata.config.train import SAEConfig, TrainConfig
from strata.doctor.checks.dead import short_window, silent_in_one_step, unused_if_equal
from strata.doctor.checks.speed import waiting_for_rows
from strata.doctor.command import doctor
from strata.doctor.examine import Diagnosis, examine
from strata.doctor.expectation import expected_speed
from strata.doctor.facts import facts_of
from strata.doctor.findings import Finding, exit_code, merged
from strata.doctor.live import Watch
from strata.doctor.pace import pace, pace_or_estimate
from strata.doctor.record import Record
from strata.doctor.recorded import expected_dead, recorded
from strata.errors import UserError

PAGE = Path(__file__).parents[1] / "docs" / "reading-a-run.md"
LONG = Shape(n_steps=600, window_steps=122, log_every_steps=20)


def change(**values: Any) -> Callable[[Run], Run]:
    """Every number of these names becomes what the function makes of (old value, progress, number of the line)."""

    def spoil(run: Run) -> Run:
        def one(site: dict[str, Any], progress: float, number: int) -> None:
            for name, make in values.items():
                if name in site and "loss" in site:
                    site[name] = make(site[name], progress, number)

        return every_site(run, one)

    return spoil


def held_out(make: Callable[[float, float], float], name: str = "fvu") -> Callable[[Run], Run]:
    """The same for held-out numbers: (old value, progress)."""

    def one(site: dict[str, Any], progress: float, number: int) -> None:
        if "loss" not in site:
            site[name] = make(site[name], progress)

    return lambda run: every_site(run, one)


def record(**changes: Any) -> Callable[[Run], Run]:
    return lambda run: with_record(run, **changes)


def rates(run: Run, factor: float) -> Run:
    for line in run.lines:
        line["learning_rate"] *= factor
    return run


def sae_record(**changes: Any) -> Callable[[Run], Run]:
    return lambda run: with_record(run, saes={key: one | changes for key, one in run.record["saes"].items()})


def both(*spoilers: Callable[[Run], Run]) -> Callable[[Run], Run]:
    def spoil(run: Run) -> Run:
        for one in spoilers:
            run = one(run)
        return run

    return spoil


def dead_after(share: float, *, start: float = 0.5) -> Callable[[Run], Run]:
    return change(dead_share=lambda value, progress, _: share if progress > start else value)


def slow_fall(value: float, progress: float, number: int) -> float:
    """As it was with a 35th of the automatic rate: 0.49 after 5 of 80 steps, 0.29 at the end."""
    return 0.51 - 0.23 * progress**0.75


SHAPE = Shape()
STEERED = replace(LONG, architecture="jumprelu")
FAULTS: dict[str, tuple[Shape, Callable[[Run], Run], str, str]] = {
    "slow machine, SAE": (SHAPE, lambda run: slowed(run, lambda p: 2.5), "slower-than-predicted", "warning"),
    "slow machine, rows": (
        SHAPE, lambda run: slowed(run, lambda p: 6, part="rows"), "slower-than-predicted", "warning",
    ),
    "throttled": (
        LONG, both(record(predicted=None), lambda run: slowed(run, lambda p: 1 + 2 * p)), "slowing-down", "warning",
    ),
    "small batches": (replace(POSTED, batch_size=384), record(), "small-batch", "warning"),
    "language model, three passes": (
        replace(POSTED, batch_size=512, rows_seconds=0.505, sae_seconds=0.05), record(), "waiting-for-rows", "warning",
    ),
    "language model, one pass": (
        replace(SHAPE, rows_seconds=5.0), record(), "waiting-for-rows", "note",
    ),
    "disk": (replace(SHAPE, source="store", rows_seconds=0.6), record(), "waiting-for-rows", "warning"),
    "memory": (replace(SHAPE, source="collected", rows_seconds=0.6), record(), "waiting-for-rows", "note"),
    "slow language model of a short stream": (
        replace(SHORT, rows_seconds=0.35, sae_seconds=0.65), lambda run: slowed(run, lambda p: 3, part="rows"),
        "slower-than-predicted", "warning",
    ),
    "short stream waits": (
        replace(SHORT, rows_seconds=1.2), record(), "waiting-for-rows", "note",
    ),
    "throttled, then the buffer is emptied": (
        replace(SHORT, n_steps=80, window_steps=20),
        both(record(predicted=None), lambda run: slowed(run, lambda p: 1 + 2 * p),
             lambda run: slowed(run, lambda p: 1 + 2 * p, part="rows")),
        "slowing-down", "warning",
    ),
    "dead": (LONG, dead_after(0.3), "dead-latents", "warning"),
    "mostly dead": (LONG, dead_after(0.9), "dead-latents", "error"),
    "dead without centring": (LONG, both(dead_after(0.45), sae_record(centring=False)), "dead-latents", "warning"),
    "dead, none revived": (LONG, both(dead_after(0.45), sae_record(revival="none")), "dead-latents", "warning"),
    "dead, reviving": (
        replace(LONG, last_step=200), dead_after(0.3, start=0.25), "dead-latents", "note",
    ),
    "silent before the window": (
        replace(LONG, last_step=100), change(silent_1m_share=lambda *_: 0.7), "too-early-for-dead-latents", "note",
    ),
    "window longer than the run": (
        replace(LONG, window_steps=700), change(silent_1m_share=lambda *_: 0.7), "too-early-for-dead-latents",
        "warning",
    ),
    "window of a moment": (replace(LONG, batch_size=256, window_steps=5), record(), "short-window", "warning"),
    "default window of a short run": (
        replace(LONG, batch_size=128, text_batch_size=4, n_steps=29, window_steps=7, log_every_steps=2), record(),
        "short-window", "note",
    ),
    "spike": (LONG, change(fvu=lambda v, p, n: 6 * v if n == 15 else v), "loss-spike", "warning"),
    "spike that stays": (
        LONG, both(sae_record(warmup_steps=None, decay_steps=None),
                   change(fvu=lambda v, p, n: 0.6 if n >= 27 else v)), "loss-spike", "warning",
    ),
    "diverged": (LONG, change(fvu=lambda v, p, n: 1.5 + p), "learning-rate-too-high", "error"),
    "recovers from a bad start": (
        LONG, change(fvu=lambda v, p, n: 7.0 if n < 5 else v), "learning-rate-too-high", "warning",
    ),
    "rises": (LONG, change(fvu=lambda v, p, n: v * (1 + 6 * p**2)), "learning-rate-too-high", "warning"),
    "swings": (
        LONG, change(fvu=lambda v, p, n: v * (1.35 if n % 2 else 0.8)), "learning-rate-too-high", "warning",
    ),
    "rate too low": (
        LONG, both(lambda run: rates(run, 0.05), change(fvu=slow_fall)), "learning-rate-too-low", "warning",
    ),
    "still falling": (
        LONG, change(fvu=lambda v, p, n: 0.9 * (0.05 / max(p, 0.05)) ** 1.5), "learning-rate-too-low", "note",
    ),
    "another kind of text": (LONG, held_out(lambda v, p: 3 * v), "held-out-gap", "warning"),
    "learnt by heart": (
        replace(LONG, n_epochs=20), held_out(lambda v, p: v * (0.7 + p)), "held-out-gap", "warning",
    ),
    "controller settled elsewhere": (
        STEERED, change(l0=lambda v, p, n: 48.0 + n % 2), "l0-off-target", "warning",
    ),
    "controller on its way": (
        replace(STEERED, last_step=120), change(l0=lambda v, p, n: 32 * (5 - 10 * p)), "l0-off-target", "note",
    ),
    "fixed coefficient": (
        STEERED, both(sae_record(sparsity_coefficient=0.1), change(l0=lambda v, p, n: 100.0)), "l0-off-target", "note",
    ),
    "too few scores": (LONG, change(l0=lambda v, p, n: 20.0), "l0-off-target", "warning"),
    "threshold of other text": (
        replace(LONG, architecture="batchtopk"), held_out(lambda v, p: 44.0, "l0"), "l0-off-target", "warning",
    ),
    "longer rows": (LONG, change(relative_length=lambda v, p, n: v * (1 + p / 2)), "normalisation-drift", "warning"),
    "rows twice as long": (
        LONG, change(relative_length=lambda v, p, n: v * (1 + 2 * p)), "normalisation-drift", "error",
    ),
    "outliers": (LONG, change(outlier_share=lambda v, p, n: 0.04), "outlier-rows", "warning"),
    "sudden outliers": (
        LONG, change(outlier_share=lambda v, p, n: 0.2 if n == 29 else v), "outlier-rows", "warning",
    ),
    "small buffer": (LONG, record(buffer_rows=12_288), "small-buffer", "warning"),
    "buffer of few texts": (
        replace(LONG, context_tokens=4096, text_batch_size=1), record(buffer_rows=16_384), "small-buffer", "warning",
    ),
    "not a number": (LONG, change(loss=lambda v, p, n: math.nan if n == 20 else v), "not-finite", "error"),
}  # fmt: skip


def examined(run: Run, folder: Path, **options: Any) -> Diagnosis:
    return examine(write(run, folder, **options))


def told(run: Run) -> list[str]:
    watch = Watch({key: value for key, value in run.record.items() if key not in ("config", "status")})
    return [text for line in run.lines for text in watch.see(line)]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_leave_nothing_to_say(name: str, tmp_path: Path) -> None:
    found = examined(healthy(HEALTHY[name]), tmp_path)
    assert found.findings == ()
    assert found.exit_code == 0
    assert told(healthy(HEALTHY[name])) == []


def test_a_healthy_run_gets_a_short_all_clear(tmp_path: Path) -> None:
    lines = examined(healthy(DEMO), tmp_path).lines()
    assert len(lines) == 3
    assert "finished, step 78 of 78" in lines[0]
    assert "in SAE steps" in lines[0]
    assert "L0 32; dead" in lines[1]
    assert lines[2].startswith("Healthy: ")


@pytest.mark.parametrize("make", [resumed, old])
@pytest.mark.parametrize("name", ["demo", "longer", "jumprelu"])
def test_resumed_and_old_runs_are_healthy_too(make: Callable[[Shape], Run], name: str, tmp_path: Path) -> None:
    found = examined(make(HEALTHY[name]), tmp_path, torn=make is resumed)
    assert found.findings == ()
    assert "waiting for rows" in found.lines()[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(name: str, tmp_path: Path) -> None:
    shape, spoil, wanted, severity = FAULTS[name]
    found = examined(spoil(healthy(shape)), tmp_path)
    assert [(one.name, one.severity) for one in found.findings] == [(wanted, severity)]
    assert found.exit_code == {"note": 0, "warning": 3, "error": 4}[severity]
    finding = found.findings[0]
    assert finding.numbers
    assert all(text.endswith((".", ").")) for text in (finding.what, finding.evidence, finding.todo))


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_is_told_while_the_run_goes_on(name: str) -> None:
    shape, spoil, wanted, _ = FAULTS[name]
    texts = told(spoil(healthy(shape)))
    names = [text.split(" · ")[1].split(" [")[0].split(":")[0] for text in texts]
    assert set(names) == {wanted}
    ranks = [("note", "warning", "error").index(text.split(" · ")[0]) for text in texts]
    assert ranks == sorted(set(ranks)), "told once, and again only if it became worse"
    assert "\n" not in "".join(texts)


def test_every_finding_has_its_place_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {wanted for _, _, wanted, _ in FAULTS.values()} | {"missing-lines", "stopped"}
    assert [name for name in names if f"`{name}`" not in text] == []
    shown = set(healthy(SHAPE).site(0)) | set(healthy(SHAPE).lines[0])
    assert [name for name in shown if f"`{name}`" not in text] == []


def posted(shape: Shape) -> Run:
    silent = {"silent_step_share": lambda *_: 0.98, "silent_1m_share": lambda *_: 0.61}
    return change(**silent)(healthy(shape))


def spent(run: Run, last: int = -1) -> tuple[float, float]:
    """Shares of all seconds until a line, in SAE steps and waiting for rows."""
    line = run.lines[last]
    return line["sae_seconds"] / line["seconds"], line["rows_seconds"] / line["seconds"]


@pytest.mark.parametrize("last_step", [4, 30, 44, 48])
def test_the_summary_divides_all_seconds_of_a_stream(last_step: int, tmp_path: Path) -> None:
    run = healthy(replace(SHORT, last_step=last_step))
    sae, rows = spent(run)
    said = examined(run, tmp_path).lines()[0]
    assert f"{100 * sae:.3g} % of it in SAE steps, {100 * rows:.3g} % waiting for rows" in said


def record_of(run: Run) -> Record:
    return Record(facts_of(run.record), run.lines)


@pytest.mark.parametrize("last_step", [2, 6, 12, 30, 36, 44, 48])
def test_the_pace_of_a_stream_knows_neither_its_filling_nor_its_emptying(last_step: int) -> None:
    run = record_of(healthy(replace(SHORT, last_step=last_step)))
    found = pace_or_estimate(run)
    assert found is not None
    assert found.rows == pytest.approx(0.6, rel=0.15)
    assert found.sae == pytest.approx(0.4, rel=0.15)
    assert found.total == pytest.approx(1.0, rel=0.1)


def test_before_some_passes_of_the_language_model_nothing_is_called_slow() -> None:
    shape = replace(SHORT, text_batch_size=128, n_steps=480, log_every_steps=1)
    for last_step in range(2, 33):
        assert pace(record_of(healthy(replace(shape, last_step=last_step)))) is None
    assert pace(record_of(healthy(replace(shape, last_step=33)))) is not None


def test_assumed_rates_call_nothing_slow(tmp_path: Path) -> None:
    run = slowed(healthy(SHAPE), lambda p: 5)
    assumed = with_record(run, predicted=run.record["predicted"] | {"kind": "assumed"})
    assert [one.name for one in examined(run, tmp_path / "measured").findings] == ["slower-than-predicted"]
    assert examined(assumed, tmp_path / "assumed").findings == ()
    assert told(assumed) == []


@pytest.mark.parametrize(("total", "found"), [(2.9, []), (3.1, ["slower-than-predicted"])])
def test_the_first_seconds_of_a_training_prove_nothing(tmp_path: Path, total: float, found: list[str]) -> None:
    run = slowed(healthy(SHAPE), lambda p: 5)
    share = total / run.lines[-1]["seconds"]
    for line in run.lines:
        line |= {part: line[part] * share for part in ("seconds", "rows_seconds", "sae_seconds")}
    predicted = run.record["predicted"]
    predicted |= {part: predicted[part] * share for part in ("rows_seconds", "sae_seconds")}
    assert [one.name for one in examined(run, tmp_path).findings] == found


def test_rows_from_memory_or_an_unknown_place_are_no_slow_disk() -> None:
    slow = replace(SHAPE, source="collected", rows_seconds=0.6)
    (found,) = waiting_for_rows(record_of(healthy(slow)))
    assert "swaps" in found.todo
    assert "disk" not in found.todo
    (store,) = waiting_for_rows(record_of(healthy(replace(slow, source="store"))))
    assert store.todo == "Collect onto a faster disk; onto one below 1 GB/s with --dtype int8."
    run = healthy(slow)
    bare = {key: value for key, value in run.record.items() if key not in ("mode", "config")}
    (unknown,) = waiting_for_rows(Record(facts_of(bare), run.lines))
    assert unknown.todo.startswith("Rows of a store? ")
    assert unknown.severity == "note"


@pytest.mark.parametrize(
    ("window", "batch", "severity", "todo"),
    [
        (7, 128, "note", r"Train on more rows \(n_tokens\): 29 steps are too few"),
        (2, 128, "warning", 'Leave dead_feature_window at "auto": in a run of 29 steps it is 7.'),
        (1, 512, "warning", "Set dead_feature_window to at least 19 steps."),
        (14, 128, "note", "Train on more rows"),
    ],
)
def test_a_short_window_is_never_mended_with_one_longer_than_the_run(
    window: int, batch: int, severity: str, todo: str
) -> None:
    shape = replace(LONG, batch_size=batch, n_steps=29, window_steps=window, log_every_steps=2)
    (found,) = short_window(record_of(healthy(shape)))
    assert found.severity == severity
    assert re.match(todo, found.todo)


def test_all_that_blames_the_learning_rate_asks_for_the_same_one(tmp_path: Path) -> None:
    spoil = both(
        lambda run: rates(run, 1132.0), dead_after(0.9), change(l0=lambda v, p, n: 20.0),
        change(fvu=lambda v, p, n: 3.0 if n >= 15 else v), change(loss=lambda v, p, n: math.nan if n == 20 else v),
    )  # fmt: skip
    found = {one.name: one for one in examined(spoil(healthy(LONG)), tmp_path).findings}
    assert set(found) == {"loss-spike", "learning-rate-too-high", "dead-latents", "l0-off-target", "not-finite"}
    assert [name for name, one in found.items() if "lr=auto (0.00353)" not in one.todo] == []
    falls = both(lambda run: rates(run, 1132.0), FAULTS["still falling"][1])
    assert examined(falls(healthy(LONG)), tmp_path).findings == (), "twice the rate is not what it needs"
    halved = examined(both(lambda run: rates(run, 1 / 1132.0), spoil)(healthy(LONG)), tmp_path).findings
    blamed = [one.todo for one in halved if one.name in ("loss-spike", "learning-rate-too-high", "not-finite")]
    assert len(blamed) == 3
    assert all("half the learning rate" in todo for todo in blamed)


def test_the_run_that_people_post_with_its_time_in_the_step(tmp_path: Path) -> None:
    small, early = examined(posted(POSTED), tmp_path).findings
    assert (small.name, early.name) == ("small-batch", "too-early-for-dead-latents")
    assert early.severity == "note"
    assert early.numbers["arithmetic_share"] == 1 - 64 * 128 / 65_536 == 0.875
    assert early.numbers["minutes_to_revival"] == pytest.approx(800 / 1.8 / 60, rel=0.05)
    for said in ("98 % did not fire in the last step", "87.5 % cannot", "61 % have not fired in all 12,800 rows"):
        assert said in early.evidence
    assert "(64,000 rows)" in early.what
    assert "Revival (ghost gradients) begins after step 1,000, in about 7" in early.evidence
    assert "step 1,000" in early.todo
    assert small.numbers["optimiser_share"] > 0.95
    assert "95.2 %" in small.evidence
    assert "batch_size to 2,048" in small.todo
    assert small.numbers["gain_of_run"] == pytest.approx(1 / (0.09 + 0.91 / small.numbers["gain_of_sae"]), rel=0.02)
    assert f"{small.numbers['gain_of_run']:.1f} times" in small.todo


def test_the_run_that_people_post_with_its_time_in_the_language_model(tmp_path: Path) -> None:
    waiting, early = examined(posted(replace(POSTED, rows_seconds=0.505, sae_seconds=0.05)), tmp_path).findings
    assert (waiting.name, early.name) == ("waiting-for-rows", "too-early-for-dead-latents")
    assert waiting.numbers["rows_share"] == pytest.approx(0.505 / 0.555, abs=0.003)
    assert "% of the time is spent waiting for rows" in waiting.evidence
    assert "the same text 3 times" in waiting.what
    assert waiting.numbers["gain_of_collecting"] == pytest.approx(1 / (0.91 / 3 + 0.09), rel=0.02)
    assert "strata collect" in waiting.todo
    assert examine(tmp_path).exit_code == 3


def test_arithmetic_of_silence() -> None:
    assert silent_in_one_step(batch_size=4096, k=32, d_sae=3072) == 0
    assert silent_in_one_step(batch_size=1, k=3, d_sae=12) == 0.75
    assert unused_if_equal(rows=2, k=1, d_sae=4) == 0.75**2
    assert unused_if_equal(rows=2, k=4, d_sae=4) == 0


def test_expected_ranges_come_from_recorded_runs() -> None:
    at = {"architecture": "topk", "revival": "lift", "centring": True}
    short = expected_dead(rows=320_000, **at)
    results = PAGE.parents[1] / "benchmarks" / "results"
    demo = json.loads((results / "demo.json").read_text())["sites"]
    assert short.high == round(demo["layers.0"]["dead_share"], 4)
    assert short.alike
    assert expected_dead(rows=50_000_000, **at).names == ("long/auto/layers.3",)
    assert not expected_dead(rows=320_000, **at | {"architecture": "jumprelu"}).alike
    curves = json.loads((results / "dead.json").read_text())["results"]
    for run in recorded()["runs"]:
        assert run["source"]
        if run["name"] in curves:
            last = curves[run["name"]]["curve"][-1]
            assert run["curve"][-1] == [last["rows"], round(last["fvu"], 4), round(last["dead_share"], 4)]


def test_sites_with_the_same_finding_are_one_finding(tmp_path: Path) -> None:
    run = healthy(DEMO)
    for line in run.lines:
        for depth, site in enumerate(line["sites"].values()):
            site["outlier_share"] = 0.02 * depth
    (found,) = examined(run, tmp_path).findings
    assert found.sites == tuple(f"layers.{i}" for i in range(7, 0, -1)), "the worst first"
    assert "14 % of the rows" in found.evidence
    assert found.lines()[0] == "WARNING outlier-rows · layers.7, layers.6, layers.5 and 4 more"


def finding(name: str, severity: Any, *, weight: float = 0.0) -> Finding:
    return Finding(name=name, severity=severity, what="w.", evidence="e.", todo="t.", weight=weight, sites=(name,))


def test_the_worst_come_first_and_decide_the_exit_code() -> None:
    found = merged([finding("a", "note"), finding("b", "error"), finding("a", "warning"), finding("c", "warning")])
    assert [(one.name, one.severity) for one in found] == [
        ("b", "error"), ("a", "warning"), ("c", "warning"), ("a", "note"),
    ]  # fmt: skip
    assert [exit_code(found), exit_code(found[1:]), exit_code(found[3:]), exit_code([])] == [4, 3, 0, 0]


def test_a_watch_tells_again_when_it_becomes_worse() -> None:
    texts = told(change(relative_length=lambda v, p, n: 1 + 2 * p)(healthy(LONG)))
    assert [text.split(" · ")[0] for text in texts] == ["warning", "error"]


def test_a_watch_costs_the_same_however_long_the_run() -> None:
    run = healthy(replace(DEMO, keys=DEMO.keys[:2], n_steps=3000, window_steps=122))
    watch, spent = Watch(run.record), []
    for line in run.lines:
        start = time.process_time()
        watch.see(line)
        spent.append(time.process_time() - start)
    assert sum(spent[-80:]) < 3 * sum(spent[80:160]) + 0.1
    assert sum(spent) / len(spent) < 0.05  # under type checks; 1 ms without


@pytest.mark.parametrize("line", [{}, {"step": 1, "sites": 3}, {"step": 1, "sites": {"a": 1}}, {"step": None}])
def test_a_watch_never_stops_a_training(line: dict[str, Any]) -> None:
    assert Watch({"saes": 3, "n_steps": "many", "config": []}).see(line) == []
    assert Watch({}).see({"step": 10, "sites": {"a": {"fvu": "much", "dead_share": None}}, "held_out": None}) == []


def test_a_check_that_stumbles_does_not_silence_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any) -> list[Any]:
        raise KeyError("nothing there")

    from strata.doctor import live

    monkeypatch.setattr(live, "LIVE", (broken, *live.LIVE))
    assert any("outlier-rows" in text for text in told(FAULTS["outliers"][1](healthy(LONG))))


def test_a_run_that_stopped(tmp_path: Path) -> None:
    run = healthy(replace(LONG, last_step=300))
    assert examined(run, tmp_path, silent_seconds=60).findings == (), "it may be going on"
    (found,) = examined(run, tmp_path, silent_seconds=7200).findings
    assert (found.name, found.severity) == ("stopped", "warning")
    assert "step 300 of 600; nothing was written for 2.0 hours" in found.evidence
    assert found.todo == "It left no checkpoint: begin again with the same command and --overwrite."


def test_a_run_that_can_go_on_names_its_checkpoint(tmp_path: Path) -> None:
    run = healthy(replace(LONG, last_step=300))
    for step in (60, 290):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert "checkpoint is of step 290. If it was stopped," in examined(run, tmp_path).summary[1]
    (found,) = examined(run, tmp_path, silent_seconds=7200).findings
    assert found.todo == "Go on from the checkpoint of step 290: the same command with --resume."
    assert "checkpoint is of step 290." in examined(replace(run, lines=[]), tmp_path).summary[1], "no line yet"
    assert not any("checkpoint" in line for line in examined(healthy(LONG), tmp_path).lines()), "it has ended"


def test_lines_that_are_missing_doubled_or_damaged(tmp_path: Path) -> None:
    run = healthy(LONG)
    (found,) = examined(replace(run, lines=run.lines[:10] + run.lines[15:]), tmp_path / "hole").findings
    assert found.name == "missing-lines"
    assert "after step 200" in found.evidence
    (found,) = examined(replace(run, lines=run.lines[:10] + run.lines[5:]), tmp_path / "double").findings
    assert "1 line with steps" in found.evidence
    (found,) = examined(replace(run, lines=run.lines[:-2]), tmp_path / "short").findings
    assert "the last line is of step 560 of 600" in found.evidence
    path = write(run, tmp_path / "damaged") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], '{"step": 75, "si', *lines[7:]]) + "\n")
    (found,) = examine(tmp_path / "damaged").findings
    assert found.evidence == "1 line cannot be read."


def test_no_run_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`run` must be the folder of a run\. .* holds no run\.json; .* just been started"
    ):
        examine(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"`run` must have a whole run\.json\. .* is damaged\. Train the run again\."):
        examine(tmp_path)
    with pytest.raises(UserError, match="`DoctorConfig` has no setting 'folder'"):
        DoctorConfig(folder=tmp_path)  # pyright: ignore[reportCallIssue]
    (tmp_path / "run.json").write_text('{"config": 3, "sites": 1}')
    assert examine(tmp_path).lines()[0].endswith("no line in metrics.jsonl yet.")


def test_the_command_speaks_json(tmp_path: Path) -> None:
    lines, code = doctor(DoctorConfig(run=write(FAULTS["mostly dead"][1](healthy(LONG)), tmp_path), json=True))
    said = json.loads("\n".join(lines))
    assert code == said["exit_code"] == 4
    assert said["findings"][0]["name"] == "dead-latents"
    assert said["findings"][0]["numbers"]["dead_share"] == 0.9
    assert said["findings"][0]["sites"] == ["layers.3"]
    lines, code = doctor(DoctorConfig(run=tmp_path))
    assert code == 4
    assert lines[-4] == "ERROR dead-latents · layers.3"
    assert lines[-1].startswith("  Do: ")


def test_a_run_without_a_prediction_gets_one_on_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from strata.machine.hardware import hardware

    record = {**old(DEMO).record, "hardware": hardware(torch.device("cpu"))}
    found = expected_speed(record)
    assert found["kind"] in ("measured", "assumed")
    assert found["seconds"] == pytest.approx(78 * (found["rows_seconds"] + found["sae_seconds"]))
    assert expected_speed(old(DEMO).record) == {}, "another machine"
    threads = {**record["hardware"], "n_threads": torch.get_num_threads() + 1}
    assert expected_speed(record | {"hardware": threads}) == {}, "as many threads as are used now"
    for changes in ({"model": "somebody/else"}, {"activations": "collected"}, {"sae": 3}, {"sae": {"k": 0}}):
        assert expected_speed(record | {"config": record["config"] | changes}) == {}


def test_a_real_training_is_read(tmp_path: Path) -> None:
    from strata.run import train_run

    code = [
        path.read_text(encoding="utf-8")[:4000] for path in sorted(Path(json.__file__).parents[1].glob("[a-c]*.py"))
    ]
    (tmp_path / "code.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in code), encoding="utf-8")
    sae = SAEConfig(expansion_factor=2, k=8, batch_size=256)
    config = TrainConfig(
        data=str(tmp_path / "code.jsonl"), sites=("layers.0",), n_tokens=10_240, context_tokens=64,
        held_out_tokens=1024, held_out_rows=512, log_every_steps=2, report=False, out=tmp_path / "run", sae=sae,
    )  # fmt: skip
    train_run(config, progress=False)
    found = examine(tmp_path / "run")
    assert found.exit_code in (0, 3)
    assert not {one.name for one in found.findings} & {"missing-lines", "stopped", "not-finite", "loss-spike"}
    assert "finished, step 40 of 40" in found.summary[0]
    assert "(silent for 2,560 rows)" in found.summary[1]
    train_run(replace(config, overwrite=True, sae=replace(sae, lr=3.0)), progress=False)
    spoilt = examine(tmp_path / "run")
    assert ("learning-rate-too-high", "error") in {(one.name, one.severity) for one in spoilt.findings}
