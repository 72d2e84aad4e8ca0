"""What plans show in tables: transcoders, groups on several devices, sweeps, units, options that do not belong."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from strata.amounts import powered, prefixed, sized
from strata.config.collect import CollectConfig
from strata.config.evaluate import EvaluateConfig
from strata.config.groups import GroupsConfig
from strata.config.plan import PlanOptions
from strata.config.train import SAEConfig, TrainConfig
from strata.costs.flops import sae_step_flops
from strata.costs.step import SAEShape, step_work
from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.lm.outline import outline
from strata.plan.against import against, render
from strata.plan.argument import Case
from strata.plan.command import plan
from strata.plan.measuring import evaluation_flops
from strata.plan.model import Model
from strata.plan.quote import Excess, Quote
from strata.plan.saes import planned_sae
from strata.plan.tables import groups_table
from strata.plan.ways import Ways
from strata.sae.learner import Learner

ROWS, D_IN, D_SAE, K = 40_960, 192, 3072, 16
DEMO = TrainConfig(sites=("all",), n_tokens=ROWS, held_out_rows=0, report=False, sae=SAEConfig(k=K))


def planned(of: Any, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], str]:
    path = tmp_path / "plan.json"
    lines = plan(of, PlanOptions(json=path, hardware="h100", **options), progress=False)
    return json.loads(path.read_text(encoding="utf-8")), "\n".join(lines)


# transcoders


def test_a_transcoders_step_by_hand() -> None:
    plain, skipping = (SAEShape(d_in=10, d_sae=40, k=3, d_out=6, skip=skip) for skip in (False, True))
    work, more = (step_work(shape, batch_size=7) for shape in (plain, skipping))
    assert work.product_flops == 2 * 7 * 10 * 40
    assert work.sparse_flops == 7 * 3 * (4 * 10 + 6 * 6)
    assert work.n_weights == 40 * (10 + 6)
    assert work.n_numbers == 7 * (10 + 6)
    assert more.product_flops - work.product_flops == 4 * 7 * 10 * 6
    assert more.n_weights - work.n_weights == 10 * 6
    assert step_work(SAEShape(d_in=10, d_sae=40, k=3), batch_size=7).flops == 7 * sae_step_flops(10, 40, 3)


def test_a_skip_connection_costs_what_a_real_step_of_it_does() -> None:
    flops, weights, counted = [], [], []
    for skip in (False, True):
        generator = torch.Generator().manual_seed(0)
        x, target = (torch.randn(256, width, generator=generator) for width in (24, 16))
        config = SAEConfig(expansion_factor=4, k=4, batch_size=256, revival="none")
        learner = Learner(config, n_steps=10, sample=x, target_sample=target, target_site="b", skip=skip)
        with FlopCounterMode(display=False) as counter:
            learner.step(x, target)
        flops.append(counter.get_total_flops())
        weights.append(sum(w.numel() for name, w in learner.params.items() if name.startswith("W_")))
        shape = SAEShape(d_in=24, d_sae=96, k=4, d_out=16, skip=skip)
        counted.append(step_work(shape, batch_size=256, revives=False))
    assert weights == [work.n_weights for work in counted]
    assert flops[1] - flops[0] == counted[1].product_flops - counted[0].product_flops == 4 * 256 * 24 * 16


def test_a_transcoders_plan_counts_its_decoder_and_skip_and_has_no_groups(tmp_path: Path) -> None:
    config = replace(DEMO, sites=("layers.2",), target_site="layers.5", skip=True)
    numbers, said = planned(config, tmp_path)
    quote = numbers["ways"]["described"][0]
    assert quote["sae_flops"] == ROWS * (sae_step_flops(D_IN, D_SAE, K) + 4 * D_IN * D_IN)
    assert numbers["ways"]["groups"] == {}
    assert "1 transcoder with a skip connection on 1 site (layers.2)" in said
    assert "Transcoders are of single sites: no table of groups." in said
    assert "all layers" not in said and "groups save" not in said
    assert planned(replace(config, skip=False), tmp_path)[0]["ways"]["described"][0]["sae_flops"] < quote["sae_flops"]


# groups on several devices


def quotes(name: str, n_saes: int, *, fits_from: int | None, devices: Sequence[int], device: bool) -> list[Quote]:
    excess = Excess(what="RAM", part="step", needed_bytes=2e9, there_bytes=1e9)
    return [
        Quote(
            name=name, source="stream", n_devices=n, n_saes=n_saes, n_sites=8, lm_flops=3e12, sae_flops=1e12 * n_saes,
            n_bytes=1e9, ram_bytes={"step": 2e9 / n}, device_bytes={"step": 5e9 / n} if device else {},
            disk_bytes={"SAEs": 7e6}, seconds={"SAE steps": 1e6 * n_saes / n}, price_per_second=0.001 * n,
            excesses=() if fits_from is not None and n >= fits_from else (excess,),
        )
        for n in devices
    ]  # fmt: skip


def ways(devices: Sequence[int], *, device: bool = False) -> Ways:
    groups = {
        3: quotes("one SAE per layer", 3, fits_from=None, devices=devices, device=device),
        2: quotes("2 groups", 2, fits_from=4, devices=devices, device=device),
        1: quotes("1 group", 1, fits_from=1, devices=devices, device=device),
    }
    return Ways(described=[], sources=[], groups=groups)


def test_groups_say_from_how_many_devices_on_they_fit() -> None:
    lines = groups_table(ways([1, 2, 4]), assumed=True)
    assert [line.rsplit("  ", 1)[1].strip() for line in lines[:1] + lines[2:5]] == ["fits", "no", "from 4", "yes"]
    assert "RAM B on 1" in lines[0] and "price on 1" in lines[0]
    (alone, *_), (_, *single) = groups_table(ways([1]), assumed=True), groups_table(ways([1]), assumed=True)
    assert " RAM B " in alone and " moved B " in alone and " disk B " in alone and " time " in alone
    assert len(single) == 4


def test_the_share_of_all_flops_stands_beside_them() -> None:
    for devices in ([1], [1, 2, 4], [1, 2, 4, 8, 16, 20]):
        header, _, *rows = groups_table(ways(devices, device=True), assumed=True)
        assert header.index("of per-layer") > header.index("all FLOP") > 0
        assert " 5 T " in rows[1] and " 83.3 % " in rows[1]


@pytest.mark.parametrize("device", [False, True])
def test_what_has_no_room_is_named(device: bool) -> None:
    wide = groups_table(ways([1, 2, 4, 8, 16], device=device), assumed=True)
    assert max(map(len, wide)) <= 120
    assert wide[-1].startswith("No room for moved B, disk B")
    assert "moved B" not in wide[0]
    assert "8 devices" not in wide[0] and "16 devices" in wide[0]
    assert "No room" not in groups_table(ways([1], device=device), assumed=False)[-1]


# against pre-training


def test_a_sweep_pays_for_all_settings_and_counts_the_features_of_one(tmp_path: Path) -> None:
    swept = replace(DEMO, sweep=("expansion_factor=8,16",))
    numbers, said = planned(swept, tmp_path)
    single = planned(DEMO, tmp_path)[0]["against"]
    found = numbers["against"]
    assert found["n_features"] == single["n_features"] == 8 * D_SAE
    assert found["n_settings"] == 2
    _, steps, measuring = found["training"]["parts"]
    assert steps["flops"] == 8 * ROWS * sum(sae_step_flops(D_IN, h, K) for h in (D_SAE // 2, D_SAE))
    assert measuring["flops"] == 0
    assert found["tasks"] == single["tasks"]
    assert "SAE steps of 2 settings" in said and "24,576 features of one setting" in said


def test_measuring_is_in_the_price_of_all(tmp_path: Path) -> None:
    config = replace(DEMO, held_out_rows=1000, held_out_every="50%", log_every_steps=1, held_out_tokens=2000)
    lm = LanguageModel("demo")
    forward = forward_flops_of(lm, ["layers.7"], context_tokens=256)
    held_out = 1000 * (forward + 3 * 8 * 2 * D_IN * D_SAE)
    parts = planned(config, tmp_path)[0]["against"]["training"]["parts"]
    assert parts[2]["flops"] == pytest.approx(held_out)
    saes = [planned_sae(SAEConfig(k=K), [site], {site: D_IN}) for site in lm.sites]
    model = Model.of(outline("demo"), context_tokens=256, lm_dtype="auto", device="auto", on_device=True)
    passes, encoding = evaluation_flops(model, saes)
    assert passes is not None
    examples = forward + 8 * 2 * D_IN * D_SAE
    numbers, said = planned(replace(config, report=True), tmp_path)
    training = numbers["against"]["training"]
    assert training["parts"][2]["flops"] == pytest.approx(held_out + 2000 * (passes + encoding + examples))
    assert training["flops"] == pytest.approx(sum(part["flops"] for part in training["parts"]))
    assert "measuring and evaluating" in said
    grouped = planned(replace(config, groups="auto"), tmp_path)[0]["against"]["training"]["parts"]
    fewer = 1000 * (forward + 3 * 5 * 2 * D_IN * D_SAE)
    assert grouped[2]["flops"] == pytest.approx(fewer + ROWS * forward)
    with pytest.raises(UserError, match=r"`measuring_flops` must not be negative. Got -1"):
        Case(subject_parameters=1e6, training_tokens=None, training_source="", sae_flops=1, lm_flops=0, n_features=2,
             forward_flops_per_token=1, measuring_flops=-1)  # fmt: skip


def test_numbers_against_pretraining_are_for_people() -> None:
    case = Case(subject_parameters=8e9, training_tokens=15e12, training_source="given", sae_flops=1e21, lm_flops=1e21,
                n_features=2**22, forward_flops_per_token=1.6e10,
                saes=[SAEShape(d_in=4096, d_sae=50_000, k=64)])  # fmt: skip
    text = "\n".join(render(against(case)))
    assert not re.search(r"\de[+-]", text)
    assert re.search(r"each feature, F ∝ n\^\(2/3\) .* n\^\(5/3\) +above n = \d+ \(any model\)", text)
    assert "× pre-training" in text and not re.search(r"\d ×", text) and "half the calls divide it by 8" in text
    small = Case(subject_parameters=5e6, training_tokens=7e6, training_source="", sae_flops=1, lm_flops=1,
                 n_features=25_000, forward_flops_per_token=2e6)  # fmt: skip
    fewer = "\n".join(render(against(small)))
    assert "never, as far as n = 10^30" in fewer


# amounts and options


def test_amounts_of_all_sizes() -> None:
    assert [prefixed(n) for n in (1.083e21, 3.65e25, 2e27, 4e30, 1.5e18)] == ["1.08 Z", "36.5 Y", "2 R", "4 Q", "1.5 E"]
    assert sized(1.083e21, "FLOP") == "1.08 ZFLOP"
    assert [powered(n) for n in (1e30, 4.26e7, 9.02e-5, 1.04e8)] == ["10^30", "4.3·10^7", "9.0·10^-5", "10^8"]


@pytest.mark.parametrize("of", [CollectConfig(), GroupsConfig(), EvaluateConfig(runs=(Path("run"),))])
@pytest.mark.parametrize(
    "option", [{"n_devices": 4}, {"n_trainings": 2}, {"training_tokens": 1e9}, {"explainer_parameters": 1e9}]
)
def test_options_of_trainings_are_refused_elsewhere(of: Any, option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UserError) as error:
        plan(of, PlanOptions(hardware="h100", **option), progress=False)
    command = {CollectConfig: "collect", GroupsConfig: "groups", EvaluateConfig: "evaluate"}[type(of)]
    assert str(error.value).startswith(f"`{name}` must be left out of `strata plan {command}`")
    assert f"Got {value}. It is for `strata plan train`" in str(error.value)
