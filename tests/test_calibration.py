"""Rates: measured, kept, read again, fitted; assumed where nothing was measured."""

import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from strata import LanguageModel
from strata.costs.step import SAEShape, StepSeconds, step_work
from strata.errors import UserError
from strata.plan import calibration
from strata.plan import rates as rates_module
from strata.plan.calibration import Timed, calibrate, fit_steps
from strata.plan.rates import (
    HARDWARE,
    Calibration,
    keep_calibration,
    known_rates,
    measured_forward,
    read_calibration,
)

CPU = torch.device("cpu")
SHAPES = [(d, h, k, rows) for d, h in ((64, 512), (192, 768), (96, 3072)) for k, rows in ((8, 4096), (64, 128), (2, 9))]
TRUE = StepSeconds(
    product_flops=5e-12, n_scores=3e-10, sparse_flops=6e-11, n_weights=4e-9, n_numbers=5e-9, revival_flops=5e-12,
    n_steps=1e-3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def timed(seconds: StepSeconds) -> list[Timed]:
    found = []
    for d_in, d_sae, k, rows in SHAPES:
        shape = SAEShape(d_in=d_in, d_sae=d_sae, k=k)
        work = step_work(shape, batch_size=rows, revives=False)
        found.append(Timed(shape, rows, work, seconds.of(work)))
    return found


def test_a_step_is_counted_by_hand() -> None:
    work = step_work(SAEShape(d_in=10, d_sae=40, k=3), batch_size=7)
    assert work.product_flops == 2 * 7 * 10 * 40
    assert work.n_scores == 7 * 40
    assert work.sparse_flops == 10 * 7 * 3 * 10
    assert work.n_weights == 2 * 10 * 40
    assert work.n_numbers == 7 * 10
    assert work.flops == work.product_flops + work.sparse_flops
    assert (
        step_work(SAEShape(d_in=10, d_sae=40, k=3), batch_size=7, revives=False).revival_flops == 0 < work.revival_flops
    )
    assert TRUE.of(work) == pytest.approx(sum(a * b for a, b in zip(astuple(TRUE), astuple(work), strict=True)))


def test_the_fit_finds_what_made_the_timings() -> None:
    found, checks = fit_steps(timed(TRUE), product_flops=TRUE.product_flops, revival_flops=TRUE.revival_flops)
    assert astuple(found) == pytest.approx(astuple(TRUE), rel=1e-6)
    assert [check["rows"] for check in checks] == [rows for *_, rows in SHAPES]
    for check in checks:
        assert check["fitted_seconds"] == pytest.approx(check["seconds"])


def test_the_fit_is_never_negative() -> None:
    few = replace(TRUE, n_numbers=0.0, n_steps=0.0)
    shaken = [replace(one, seconds=one.seconds * (1 + 0.2 * (-1) ** n)) for n, one in enumerate(timed(few))]
    found, _ = fit_steps(shaken, product_flops=few.product_flops, revival_flops=few.revival_flops)
    assert min(astuple(found)) >= 0
    for one in shaken:
        assert found.of(one.work) == pytest.approx(one.seconds, rel=0.5)


def test_without_a_measurement_rates_are_assumed(cache: Path) -> None:
    rates = known_rates(device="cpu")
    assert rates.kind == "assumed"
    assert str(torch.get_num_threads()) in rates.name
    assert rates.memory_bytes > 0
    assert read_calibration(CPU) is None
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 99, "machines": {}}', '{"version": 1, "machines": 3}']
)
def test_a_file_that_is_not_to_be_read_is_none(cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "machine.json").write_text(content)
    assert known_rates(device="cpu").kind == "assumed"
    keep_calibration(Calibration(rates=HARDWARE["laptop"]), CPU)
    assert known_rates(device="cpu") == HARDWARE["laptop"]


def test_what_was_measured_is_read_again(cache: Path) -> None:
    rates = replace(HARDWARE["laptop"], kind="measured", name="this")
    found = Calibration(rates=rates, forwards={"a/256/auto": {2: 1e-5, 4: 2e-5}}, checks=({"rows": 1},))
    assert keep_calibration(found, CPU) == cache / "machine.json"
    assert read_calibration(CPU) == found
    assert known_rates(device="cpu") == rates
    assert measured_forward("a/256/auto", n_blocks=4, device="cpu") == 2e-5
    assert measured_forward("a/256/auto", n_blocks=3, device="cpu") == pytest.approx(1.5e-5)
    assert measured_forward("a/256/auto", n_blocks=8, device="cpu") == pytest.approx(4e-5)
    assert measured_forward("b/256/auto", n_blocks=4, device="cpu") is None


def test_machines_live_side_by_side_in_one_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_calibration(Calibration(rates=HARDWARE["laptop"]), CPU)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(rates_module, "cpu_name", lambda: "another processor")
        assert read_calibration(CPU) is None
        keep_calibration(Calibration(rates=HARDWARE["cpu-2-cores"]), CPU)
        assert known_rates(device="cpu") == HARDWARE["cpu-2-cores"]
    assert known_rates(device="cpu") == HARDWARE["laptop"]
    assert len(json.loads((cache / "machine.json").read_text())["machines"]) == 2


def test_mistakes_are_told(cache: Path) -> None:
    with pytest.raises(UserError, match=r"`hardware` must be one of this, h200.* Got 'h10'.*h100"):
        known_rates("h10")
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .* Set STRATA_CACHE"):
        keep_calibration(Calibration(rates=HARDWARE["laptop"]), CPU)


def test_every_listed_machine_states_what_it_assumes() -> None:
    for rates in HARDWARE.values():
        assert rates.kind == "assumed"
        assert rates.source
        assert min(astuple(rates.step)) > 0
    work = step_work(SAEShape(d_in=4096, d_sae=65536, k=64), batch_size=4096)
    assert HARDWARE["h200"].step.of(work) < HARDWARE["a100-80gb"].step.of(work)


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("measure_copy", "measure_preparing", "measure_tokenising"):
        monkeypatch.setattr(calibration, name, lambda _: 1e9)
    monkeypatch.setattr(calibration, "measure_product", lambda *_: 1 / TRUE.product_flops)
    monkeypatch.setattr(calibration, "measure_start", lambda: 1.0)
    monkeypatch.setattr(calibration, "measure_disk", lambda: (1e9, 1e9))
    monkeypatch.setattr(calibration, "measure_forwards", lambda *_, **__: ({}, 1e9))
    lm = LanguageModel("demo", device="cpu")
    for shaken, told in ((0.05, False), (0.9, True)):
        steps = [replace(one, seconds=one.seconds * (1 + shaken * (-1) ** n)) for n, one in enumerate(timed(TRUE))]
        monkeypatch.setattr(calibration, "time_steps", lambda _, steps=steps: steps)
        calibrate(lm)
        assert ("looks like a busy machine" in capsys.readouterr().err) == told


def test_an_accelerator_is_known_by_its_whole_name() -> None:
    like = rates_module.accelerator_like
    assert like("NVIDIA H100 80GB HBM3") == HARDWARE["h100"]
    assert like("NVIDIA A100-SXM4-80GB") == HARDWARE["a100-80gb"]
    assert like("NVIDIA GeForce RTX 4090") == HARDWARE["rtx-4090"]
    for other in ("NVIDIA GeForce RTX 3060", "Tesla T4", "NVIDIA L4"):
        assert f"{other} is not listed and taken for one A100" in like(other).source


def test_calibrating_measures_and_keeps(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "_SHAPES", {"cpu": ((16, 64, 2, 64), (32, 64, 4, 128), (16, 128, 4, 32))})
    for name, value in (
        ("_COPY_BYTES", 2**20),
        ("_DISK_BYTES", 2**20),
        ("_TOKENISED", 2000),
        ("_FORWARD_SECONDS", 0.0),
    ):
        monkeypatch.setattr(calibration, name, value)
    monkeypatch.setattr(calibration, "_PRODUCT", (64, 32, 64))
    monkeypatch.setattr(calibration, "_PREPARED", (64, 32, 64))
    monkeypatch.setattr(calibration, "_START", "pass")
    monkeypatch.chdir(cache.parent)
    lm = LanguageModel("demo")
    rates = calibrate(lm, context_tokens=32, text_batch_size=2, progress=True)
    assert rates == known_rates(device="cpu")
    assert rates.kind == "measured"
    assert min(rates.copy_bytes_per_second, rates.disk_read_bytes_per_second, rates.disk_write_bytes_per_second) > 0
    assert rates.tokenised_per_second > 0
    key = rates_module.forward_key(lm, context_tokens=32, lm_dtype="auto")
    whole = measured_forward(key, n_blocks=8, device="cpu")
    assert whole is not None
    assert 0 < whole < 1
    assert measured_forward(key, n_blocks=4, device="cpu") is not None
    found = read_calibration(CPU)
    assert found is not None
    assert [check["d_sae"] for check in found.checks] == [64, 64, 128]
    assert all(check["seconds"] > 0 for check in found.checks)
    assert "measuring this machine" in capsys.readouterr().err
    assert sorted(path.name for path in cache.parent.iterdir()) == ["cache"]

    with pytest.raises(UserError, match=r"`context_tokens` must be at most 256, the model's longest text. Got 512"):
        calibrate(lm, context_tokens=512)
    assert "measuring" not in capsys.readouterr().err  # told before anything is measured
    assert read_calibration(CPU) == found
    # What stands in for a model that cannot be loaded takes no longer text than it can.
    again = calibrate(None, context_tokens=512, text_batch_size=1, lm_dtype="fp32", progress=False)
    stand_in = rates_module.forward_key(lm, context_tokens=256, lm_dtype="fp32")
    assert measured_forward(stand_in, n_blocks=8, device="cpu") is not None
    assert again.kind == "measured"
    assert measured_forward(key, n_blocks=8, device="cpu") == whole  # what was known of other forwards stays
