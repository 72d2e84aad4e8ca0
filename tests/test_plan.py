"""What `strata plan` says: counts against `strata.costs` by hand, stores against real ones, no weights needed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finished_runs import write_text
from strata.activations.harvest import collect_activations, token_stream
from strata.amounts import prefixed, share, sized, spent
from strata.config.collect import CollectConfig
from strata.config.evaluate import EvaluateConfig
from strata.config.groups import GroupsConfig
from strata.config.plan import PlanOptions
from strata.config.train import SAEConfig, TrainConfig
from strata.costs.flops import sae_step_flops
from strata.costs.step import Rates, SAEShape, StepSeconds, step_work
from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.lm.outline import outline
from strata.plan import command, model, text
from strata.plan.command import plan
from strata.plan.predicted import predicted
from strata.plan.quote import COLLECTING, device_counts
from strata.plan.recommend import break_even
from strata.plan.rows import RowShape
from strata.plan.saes import busiest, planned_sae
from strata.plan.text import TokenCount, count_tokens

ROWS = 40_960
DEMO = TrainConfig(sites=("all",), n_tokens=ROWS, sae=SAEConfig(k=16))
UNITS = StepSeconds(
    product_flops=1e-11, n_scores=1e-10, sparse_flops=1e-10, n_weights=1e-9, n_numbers=1e-9, revival_flops=1e-11,
    n_steps=1e-3,
)  # fmt: skip
RATES = Rates(
    name="a machine", kind="measured", source="made up", step=UNITS, forward_flops_per_second=1e10,
    copy_bytes_per_second=1e10, disk_read_bytes_per_second=1e9, disk_write_bytes_per_second=5e8,
    tokenised_per_second=1e6, memory_bytes=16e9,
)  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip

TEXTS = [f"def f_{n}(x):\n    return x + {n}\n" * 20 for n in range(40)]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as `RATES` has it; forwards of 2 µs a block and token were measured on it."""
    monkeypatch.setattr(
        command, "known_rates", lambda name, *, device: RATES if name == "this" else replace(RATES, kind="assumed")
    )
    monkeypatch.setattr(model, "measured_forward", lambda key, *, n_blocks, device: 2e-6 * n_blocks)


def numbers_of(of: Any, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], str]:
    path = tmp_path / "plan.json"
    lines = plan(of, PlanOptions(json=path, **options), progress=False)
    return json.loads(path.read_text(encoding="utf-8")), "\n".join(lines)


def named(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {quote["name"]: quote for quote in numbers["ways"]["sources"]}


def test_flops_of_the_demo_are_those_counted_by_hand(tmp_path: Path) -> None:
    numbers, said = numbers_of(DEMO, tmp_path, n_devices=3)
    lm = LanguageModel("demo")
    forward = forward_flops_of(lm, ["layers.7"], context_tokens=256)
    one = ROWS * sae_step_flops(192, 3072, 16)
    quotes = named(numbers)
    assert set(quotes) == {
        *("as described: streaming", "collected in memory"),
        *(f"store in {dtype}" for dtype in ("fp32", "fp16", "bf16", "int8")),
    }
    for quote in quotes.values():
        assert quote["lm_flops"] == ROWS * forward
        assert quote["sae_flops"] == pytest.approx(8 * one)
    groups = numbers["ways"]["groups"]
    assert list(map(int, groups)) == [8, 7, 6, 5, 4, 3, 2, 1]
    for k, by_devices in groups.items():
        assert [quote["n_devices"] for quote in by_devices] == [1, 2, 3]
        assert all(quote["sae_flops"] == pytest.approx(int(k) * one) for quote in by_devices)
        assert all(quote["lm_flops"] == ROWS * forward for quote in by_devices)
    assert "8 SAEs on 8 sites (layers.0 … layers.7) of width 192: 3,072 latents, k 16, topk" in said
    assert "count no exchange of rows" in " ".join(said.split())
    assert "~" not in said


def test_epochs_are_passes_of_a_stream_and_not_of_a_store(tmp_path: Path) -> None:
    twice = replace(DEMO, sites=("layers.3",), sae=SAEConfig(num_epochs=2, k=16))
    quotes = named(numbers_of(twice, tmp_path)[0])
    forward = forward_flops_of(LanguageModel("demo"), ["layers.3"], context_tokens=256)
    assert quotes["as described: streaming"]["lm_flops"] == 2 * ROWS * forward
    assert quotes["store in int8"]["lm_flops"] == quotes["collected in memory"]["lm_flops"] == ROWS * forward


def test_seconds_are_work_times_rates(tmp_path: Path) -> None:
    numbers, _ = numbers_of(replace(DEMO, sites=("layers.3", "layers.5"), report=False, held_out_rows=0), tmp_path)
    seconds = named(numbers)["as described: streaming"]["seconds"]
    work = step_work(SAEShape(d_in=192, d_sae=3072, k=16), batch_size=4096)
    assert seconds["SAE steps"] == pytest.approx(10 * 2 * UNITS.of(work))
    assert seconds["language model"] == pytest.approx(ROWS * 6 * 2e-6)  # measured, as far as layers.5
    assert seconds["copies"] == pytest.approx(ROWS * 4 * 2 * 192 * 4 / 1e10)
    assert seconds["tokenising"] == 0  # hidden behind the language model
    weights = 4 * sum(weight.numel() for weight in LanguageModel("demo").model.parameters())
    assert seconds["start"] == pytest.approx(5 + weights / 1e9)
    store = named(numbers)["store in fp16"]["seconds"]
    assert store[f"{COLLECTING}disk"] == pytest.approx((ROWS + 32_768) * 2 * 192 * 2 / 5e8)
    assert store["disk"] == pytest.approx(ROWS * 2 * 192 * 2 / 1e9)


def test_several_devices_halve_what_can_be_shared(tmp_path: Path) -> None:
    numbers, _ = numbers_of(DEMO, tmp_path, n_devices=2, price_per_hour=36.0)
    one, two = numbers["ways"]["described"]
    assert two["seconds"]["language model"] == one["seconds"]["language model"] / 2
    assert two["seconds"]["SAE steps"] == pytest.approx(one["seconds"]["SAE steps"] / 2)
    assert two["price"] == pytest.approx(2 * two["total_seconds"] * 0.01)


def test_assumed_seconds_are_marked(tmp_path: Path) -> None:
    numbers, said = numbers_of(DEMO, tmp_path, hardware="another")
    forward = forward_flops_of(LanguageModel("demo"), ["layers.7"], context_tokens=256)
    seconds = named(numbers)["as described: streaming"]["seconds"]
    assert seconds["language model"] == pytest.approx(ROWS * forward / 1e10)
    assert "~ assumes a machine: made up." in said
    assert "--calibrate" not in said  # which measures this machine
    table = said.split("Ways to get the rows")[1].split("Recommendation")[0]
    assert all("~" in line for line in table.splitlines() if line.startswith(("as described", "store", "start")))


def test_a_405b_model_is_planned_from_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config = TrainConfig(model=str(tmp_path), data="org/text", n_tokens=10**8, context_tokens=1024)
    numbers, said = numbers_of(config, tmp_path, hardware="h", training_tokens=15e12, n_trainings=4)
    subject = numbers["subject"]
    assert subject["n_parameters"] == 405_853_388_800
    d, inner = 16384, 53248
    block = 2 * d * d + 2 * d * 1024 + 3 * d * inner
    assert subject["forward_flops_per_token"] == 63 * (2 * block + 4 * 1024 * d)
    quote = named(numbers)["as described: streaming"]
    assert quote["ram_bytes"]["language model"] == 4 * subject["n_parameters"]  # fp32 on a CPU
    assert not quote["fits"]
    assert "Take a machine or device with more memory" in numbers["recommendation"][0]
    assert len(numbers["ways"]["groups"]) == 126
    assert "126 layers in 63 groups save 50 %" in numbers["recommendation"][-1]
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_disk_of_a_store_is_that_of_a_real_one(tmp_path: Path, dtype: str) -> None:
    folder, n_rows = tmp_path / "store", 4096
    lm = LanguageModel("demo")
    collect_activations(
        lm, TEXTS, ["layers.1", "layers.2"], n_tokens=n_rows, dtype=dtype, store=folder, context_tokens=128,
        progress=False,
    )  # fmt: skip
    real = sum(path.stat().st_size for path in folder.iterdir())
    config = CollectConfig(
        sites=("layers.1", "layers.2"), n_tokens=n_rows, held_out_tokens=0, dtype=dtype,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    numbers, said = numbers_of(config, tmp_path)
    planned = numbers["ways"][0]
    assert planned["name"] == f"store in {dtype}"
    assert planned["disk_bytes"]["store"] == pytest.approx(real, rel=0.05)
    assert planned["lm_flops"] == n_rows * forward_flops_of(lm, ["layers.2"], context_tokens=256)
    again = numbers_of(TrainConfig(activations=folder, sae=SAEConfig(batch_size=512, k=8)), tmp_path)[0]
    assert again["subject"]["n_rows"] == n_rows
    quote = named(again)[f"as described: from the store ({dtype})"]
    assert quote["lm_flops"] == 0
    assert "store" not in quote["disk_bytes"]
    assert "says whether a store pays against streaming" in said


def test_a_store_whose_model_is_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    collect_activations(
        LanguageModel("demo"), TEXTS, ["layers.1"], n_tokens=2048, store=folder, context_tokens=128, progress=False
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["name"] = str(tmp_path / "gone")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    numbers, said = numbers_of(TrainConfig(activations=folder, sae=SAEConfig(batch_size=512, k=8)), tmp_path)
    assert [quote["name"] for quote in numbers["ways"]["sources"]] == ["as described: from the store (fp32)"]
    assert numbers["ways"]["sources"][0]["total_seconds"] > 0
    assert "model is not at hand" in said
    with pytest.raises(UserError, match=r"`sites` must be sites of the store. Got 'layers.2'"):
        plan(TrainConfig(activations=folder, sites=("layers.2",)), PlanOptions(), progress=False)


def test_predicted_is_rows_and_steps() -> None:
    config = replace(DEMO, sites=("layers.2",), sweep=("k=8,16",))
    steps = [UNITS.of(step_work(SAEShape(d_in=192, d_sae=3072, k=k), batch_size=4096)) for k in (8, 16)]
    rows = 4096 * (3 * 2e-6 + 4 * 4 * 192 / 1e10)
    for lm in (LanguageModel("demo"), outline("demo")):
        found = predicted(config, lm, RATES)
        assert found["kind"] == "measured"
        assert found["rates"] == "a machine"
        assert found["sae_seconds"] == pytest.approx(sum(steps))
        assert found["rows_seconds"] == pytest.approx(rows)
        assert found["seconds"] == pytest.approx(10 * (rows + sum(steps)))
    assert predicted(replace(config, n_tokens="all"), outline("demo"), RATES)["seconds"] is None


def test_predicted_of_every_kind_of_training(tmp_path: Path) -> None:
    lm = outline("demo")
    alone = predicted(replace(DEMO, sites=("layers.7",)), lm, RATES)
    groups = predicted(replace(DEMO, groups="[[0,1,2,3],[4,5,6,7]]"), lm, RATES)
    assert groups["sae_seconds"] == pytest.approx(2 * alone["sae_seconds"])
    assert groups["rows_seconds"] == pytest.approx(alone["rows_seconds"] + 4096 * 4 * 4 * 192 / 1e10)
    collected = predicted(replace(DEMO, sites=("layers.7",), activations="collected"), lm, RATES)
    assert collected["rows_seconds"] == pytest.approx(4096 * 2 * 4 * 192 / 1e10)
    transcoder = predicted(replace(DEMO, sites=("layers.2",), target_site="layers.5", skip=True), lm, RATES)
    assert transcoder["rows_seconds"] == pytest.approx(4096 * (6 * 2e-6 + 4 * 4 * 2 * 192 / 1e10))
    for architecture in ("batchtopk", "matryoshka", "jumprelu", "relu", "gated"):
        sae = SAEConfig(architecture=architecture, k=16)  # pyright: ignore[reportArgumentType]
        found = predicted(replace(DEMO, sites=("layers.7",), sae=sae), lm, RATES)
        assert found["sae_seconds"] == alone["sae_seconds"]


def test_gates_without_a_factor_of_their_own_are_said(tmp_path: Path) -> None:
    sae = SAEConfig(architecture="jumprelu", k=16)
    _, said = numbers_of(replace(DEMO, sites=("layers.1",), sae=sae), tmp_path)
    assert "The steps of jumprelu are reckoned as those of topk" in said


def test_break_even_by_hand() -> None:
    shape = RowShape(widths={"layers.1": 100, "layers.2": 100}, n_numbers=200)
    found = {one.dtype: one for one in break_even(shape, RATES, flops_per_second=1e10, below=5000.0, n_passes=3)}
    assert found["fp16"].for_reading == 200 * 2 * 1e10 / (2 * 1e9)
    assert found["int8"].for_all == pytest.approx(208 * 1e10 / 2 * (1 / 5e8 + 3 / 1e9) / 2)
    assert [found[dtype].pays for dtype in ("fp32", "fp16", "int8")] == [False, False, True]
    once = break_even(shape, RATES, flops_per_second=1e10, below=1e12, n_passes=1)
    assert all(one.for_all is None and one.pays is False for one in once)


def test_the_advice_follows_the_seconds(tmp_path: Path) -> None:
    config = replace(DEMO, sites=("layers.7",), n_tokens=4_096_000, report=False, held_out_rows=0)
    numbers, said = numbers_of(config, tmp_path)
    assert numbers["recommendation"][0].startswith("Keep to what is described (streaming)")
    assert "every row is used once" in said
    numbers, _ = numbers_of(config, tmp_path, n_trainings=8)
    assert numbers["recommendation"][0].startswith("Take store in fp32")
    streamed, stored = named(numbers)["as described: streaming"], named(numbers)["store in fp32"]
    collecting = sum(spent for part, spent in stored["seconds"].items() if part.startswith(COLLECTING))
    both = (8 * streamed["total_seconds"], 8 * stored["total_seconds"] - 7 * collecting)
    assert [spent(seconds) in numbers["recommendation"][0] for seconds in both] == [True, True]


def test_what_does_not_fit_says_what_to_lower(tmp_path: Path) -> None:
    wide = replace(DEMO, sae=SAEConfig(expansion_factor=4096, k=16))
    numbers, _ = numbers_of(wide, tmp_path)
    assert "As described it does not fit: it takes" in numbers["recommendation"][0]
    assert "of RAM and there are 16 GB; most of it is for the weights and optimiser" in numbers["recommendation"][0]
    assert "Train fewer SAEs in one run (sites, sweep, groups)" in numbers["recommendation"][0]


def test_groups_that_are_measured_first_are_said_to_be_assumed(tmp_path: Path) -> None:
    numbers, said = numbers_of(replace(DEMO, groups="auto"), tmp_path)
    assert numbers["ways"]["described"][0]["n_saes"] == 5  # 0-1 2-3 4-5 6 and 7
    assert "Groups are measured when the run starts: 5 SAEs stand for them here" in said
    assert numbers["ways"]["described"][0]["seconds"]["finding groups"] > 0


def test_tokens_of_a_local_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel("demo")
    tokenizer, data = lm.tokenizer, write_text(tmp_path / "texts")
    whole = count_tokens(str(data), tokenizer)
    stream = token_stream(lm, str(data), context_tokens=64, split="train")
    assert whole == TokenCount(sum(int(batch.is_row.sum()) for batch in stream), "counted")
    monkeypatch.setattr(text, "_SAMPLED_CHARACTERS", 1000)
    some = count_tokens(str(data), tokenizer)
    assert some.source.startswith("estimated")
    assert some.n_tokens == pytest.approx(whole.n_tokens, rel=0.05)
    with pytest.raises(UserError, match=r"`n_tokens` must be given to plan for a dataset on the hub.*--n-tokens"):
        plan(TrainConfig(data="org/text"), PlanOptions(), progress=False)
    with pytest.raises(UserError, match=r"without tokenizer files"):
        count_tokens("stdlib", None)
    with pytest.raises(UserError, match=r"at least one batch of `batch_size`=65536 rows. It gives \d+ a pass"):
        plan(TrainConfig(data=str(data), sae=SAEConfig(batch_size=65_536)), PlanOptions(), progress=False)


def test_groups_command(tmp_path: Path) -> None:
    numbers, said = numbers_of(GroupsConfig(n_tokens=10_000), tmp_path)
    [quote] = numbers["ways"]
    assert quote["lm_flops"] == 10_000 * forward_flops_of(LanguageModel("demo"), ["layers.7"], context_tokens=256)
    assert quote["seconds"]["language model"] == pytest.approx(10_000 * 8 * 2e-6)
    assert "8 layers, 10,000 rows" in said


def test_evaluate_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {"model": "demo", "context_tokens": 256, "sae": {"expansion_factor": 16, "k": 16, "text_batch_size": 32}}
    rows = {"layers.0-1": {"layers.0": 10, "layers.1": 10}, "layers.2": {"layers.2": 20}}
    (run / "run.json").write_text(json.dumps({"config": config, "layer_rows": rows}))
    [quote] = numbers_of(EvaluateConfig(runs=(run,), n_tokens=1000), tmp_path)[0]["ways"]
    lm = LanguageModel("demo")
    head = 2 * lm.model.get_output_embeddings().weight.numel()
    block = forward_flops_of(lm, ["layers.0"], context_tokens=256)
    by_hand = 8 * block + head + sum(2 * (n * block + head) for n in (7, 6, 5)) + 7 * block + head
    assert quote["lm_flops"] == pytest.approx(1000 * by_hand)
    assert quote["sae_flops"] == 1000 * 2 * 3 * 2 * 192 * 3072
    assert quote["n_saes"] == 2
    with pytest.raises(UserError, match=r"`runs` must be folders of finished runs. .*nothing has no run.json"):
        plan(EvaluateConfig(runs=(tmp_path / "nothing",)), PlanOptions(), progress=False)


def test_explain_has_formulas_and_numbers(tmp_path: Path) -> None:
    _, said = numbers_of(replace(DEMO, sites=("layers.1",)), tmp_path, explain=True)
    for piece in ("P = b·R/(2·D)", "2·d·h + 10·k·d", "forward flops per second", "One step of the SAE of layers.1"):
        assert piece in said
    assert max(map(len, said.splitlines())) <= 120


def test_spread_over_devices() -> None:
    widths = {"a": 64, "b": 64, "c": 256}
    saes = [planned_sae(SAEConfig(k=8), [site], widths) for site in ("a", "b", "c")]
    assert [sae.sites for sae in busiest(saes, n_devices=2)] == [("c",)]
    assert len(busiest(saes, n_devices=1)) == 3
    assert device_counts(6) == [1, 2, 4, 6]
    assert device_counts(1) == [1]


def test_amounts_read_as_people_say_them() -> None:
    times = [0.0031, 0.25, 9.96, 59.7, 61.0, 3599.9, 7500.0, 90_000.0, None]
    assert list(map(spent, times)) == [
        *("3.1 ms", "0.25 s", "10 s", "1 min", "1 min 01 s", "1 h", "2 h 05 min", "1 d 01 h", "?"),
    ]
    assert [prefixed(n) for n in (0.0, 12.0, 999.6, 1234.0, 5.67e13, None)] == [
        "0",
        "12",
        "1 k",
        "1.23 k",
        "56.7 T",
        "?",
    ]
    assert (sized(2e9, "B"), sized(7.0, "B"), share(0.5)) == ("2 GB", "7 B", "50 %")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_devices": 0}, "`n_devices` must be at least 1. Got 0"),
        ({"n_trainings": 0}, "`n_trainings` must be at least 1. Got 0"),
        ({"price_per_hour": -1.0}, "`price_per_hour` must be a price of at least 0. Got -1.0"),
        ({"training_tokens": 0.0}, "`training_tokens` must be a number above 0. Got 0.0"),
        ({"explainer_parameters": float("nan")}, "`explainer_parameters` must be a number above 0. Got nan"),
        ({"calibrate": True, "hardware": "h100"}, "`calibrate` must be given for this machine alone"),
        ({"hardwear": "h100"}, "`PlanOptions` has no setting 'hardwear'. Did you mean 'hardware'?"),
    ],
)
def test_bad_options(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        PlanOptions(**wrong)
    assert message in str(error.value)


def test_bad_descriptions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder"):
        plan(TrainConfig(model=str(tmp_path / "gone"), n_tokens=10**6), PlanOptions(), progress=False)
    with pytest.raises(UserError, match=r"layers.9"):
        plan(replace(DEMO, sites=("layers.9",)), PlanOptions(), progress=False)
    with pytest.raises(UserError, match=r"`context_tokens` must be at most 256"):
        plan(replace(DEMO, context_tokens=4096), PlanOptions(), progress=False)
    with pytest.raises(UserError, match=r"`json` must be a file that can be written"):
        plan(replace(DEMO, sites=("layers.1",)), PlanOptions(json=tmp_path), progress=False)
    with pytest.raises(UserError, match=r"`target_site` is for a single site. Got 8 sites"):
        plan(replace(DEMO, target_site="layers.1"), PlanOptions(), progress=False)


def test_calibration_comes_first_with_the_model_if_it_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def calibrate(lm: LanguageModel | None, **described: Any) -> Rates:
        seen.append((None if lm is None else lm.name, described))
        return replace(RATES, name="calibrated")

    monkeypatch.setattr(command, "calibrate", calibrate)
    config = replace(DEMO, model="demo", sites=("layers.1",))
    assert "on calibrated (made up)" in plan(config, PlanOptions(calibrate=True), progress=False)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 2}))
    lines = plan(replace(config, model=str(tmp_path)), PlanOptions(calibrate=True))
    assert "on calibrated (made up)" in lines
    assert [name for name, _ in seen] == ["demo", None]
    assert "its forward is not measured, since it could not be loaded" in capsys.readouterr().err


def test_every_command_calibrates_the_forward_that_it_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def calibrate(lm: LanguageModel, **given: Any) -> Rates:
        seen.append((lm.name, given["context_tokens"], given["text_batch_size"], given["lm_dtype"]))
        return RATES

    monkeypatch.setattr(command, "calibrate", calibrate)
    store, model_folder = tmp_path / "store", tmp_path / "model"
    lm = LanguageModel("demo")
    lm.model.save_pretrained(model_folder)
    collect_activations(lm, TEXTS, ["layers.1"], n_tokens=2048, store=store, context_tokens=128, progress=False)
    run = finished_run(tmp_path / "run", model=str(model_folder), context_tokens=64, text_batch_size=4)
    path = str(model_folder)
    described: list[tuple[Any, tuple[Any, ...]]] = [
        (replace(DEMO, context_tokens=96, lm_dtype="fp32"), ("demo", 96, 32, "fp32")),
        (TrainConfig(activations=store, sae=SAEConfig(batch_size=512, text_batch_size=8)), ("demo", 128, 8, "auto")),
        (CollectConfig(model=path, n_tokens=10**4, context_tokens=64, text_batch_size=2), (path, 64, 2, "auto")),
        (GroupsConfig(context_tokens=32, lm_dtype="bf16"), ("demo", 32, 32, "bf16")),
        (EvaluateConfig(runs=(run,), lm_dtype="fp32"), (path, 64, 4, "fp32")),
    ]
    for of, wanted in described:
        plan(of, PlanOptions(calibrate=True), progress=False)
        assert seen.pop() == wanted


def finished_run(folder: Path, **config: Any) -> Path:
    """What a plan reads of a run as Strata 0.1 left it first: no `layer_rows`, no `saes` in its record."""
    sae = {"text_batch_size": config.pop("text_batch_size", 32), "expansion_factor": 16, "k": 16}
    folder.mkdir()
    record = {"config": {"model": "demo", "context_tokens": 256, **config, "sae": sae}, "dead": {"a": {}, "b/c": {}}}
    (folder / "run.json").write_text(json.dumps(record))
    for number, key in enumerate(record["dead"]):
        place = folder / "sae" / key
        place.mkdir(parents=True)
        written = {"d_in": 192, "d_sae": 1000 * (number + 1), "metadata": {"site": f"layers.{number}"}}
        (place / "cfg.json").write_text(json.dumps(written))
    return folder


def test_the_closing_line_is_the_command_that_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "known_rates", lambda name, *, device: replace(RATES, kind="assumed"))
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 2}))
    run = finished_run(tmp_path / "a run")
    commands: list[tuple[Any, str]] = [
        (DEMO, "train --model demo"),
        (replace(DEMO, context_tokens=64, lm_dtype="fp32"), "train --model demo --context-tokens 64 --lm-dtype fp32"),
        (CollectConfig(model=str(tmp_path), n_tokens=10**4), f"collect --model {tmp_path}"),
        (GroupsConfig(n_tokens=10_000), "groups --model demo"),
        (EvaluateConfig(runs=(run,)), f"evaluate '{run}'"),
    ]
    for of, words in commands:
        said = " ".join(plan(of, PlanOptions(), progress=False))
        assert f"`strata plan {words} --calibrate` measures some seconds on this machine" in said


def test_a_run_of_an_earlier_version_is_planned_from_its_folders(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    [quote] = numbers_of(EvaluateConfig(runs=(run,), n_tokens=1000), tmp_path)[0]["ways"]
    assert quote["sae_flops"] == 1000 * 2 * 2 * 192 * (1000 + 2000)  # alone, and with all
    assert (quote["n_saes"], quote["n_sites"]) == (2, 2)
    (run / "sae" / "b" / "c" / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"Neither run.json nor .*c tells the site"):
        plan(EvaluateConfig(runs=(run,)), PlanOptions(), progress=False)
    whole = json.loads((run / "run.json").read_text())
    broken = [
        ({"config": whole["config"]}, r"`runs` must be finished. .*run.json names no SAEs \(status: unknown\)"),
        ({"config": whole["config"] | {"context_tokens": None}}, r"run.json lacks `config.context_tokens`"),
        ({"config": whole["config"] | {"target_site": "layers.5"}}, r"holds a transcoder to layers.5"),
        ([], r"has no run.json of one"),
    ]
    for record, message in broken:
        (run / "run.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=message):
            plan(EvaluateConfig(runs=(run,)), PlanOptions(), progress=False)


def test_logits_of_an_evaluation_are_bounded(tmp_path: Path) -> None:
    wide = {**LLAMA, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**wide, "num_key_value_heads": 4, "vocab_size": 65_536}))
    needed = {}
    for batch in (4, 256):
        run = finished_run(tmp_path / f"run-{batch}", model=str(tmp_path), text_batch_size=batch)
        for record in run.glob("sae/*/cfg.json"):
            record.write_text(json.dumps({"d_in": 64, "d_sae": 256, "metadata": {"site": "layers.0"}}))
        (run / "sae" / "b" / "c" / "cfg.json").write_text(
            json.dumps({"d_in": 64, "d_sae": 256, "metadata": {"site": "layers.1"}})
        )
        [quote] = numbers_of(EvaluateConfig(runs=(run,), n_tokens=100_000), tmp_path)[0]["ways"]
        needed[batch] = quote["ram_bytes"]["logits"]
    assert needed[4] == needed[256] == 1.5 * 3 * 2**28 + 3 * 2**24  # 4 sequences of 256 · 65,536 logits are 256 MiB


def test_the_index_of_the_report_counts_where_it_takes_more_than_checkpoints(tmp_path: Path) -> None:
    config = replace(DEMO, sites=("layers.0",), held_out_rows=0)

    def disk(**changes: Any) -> dict[str, float]:
        return numbers_of(replace(config, **changes), tmp_path)[0]["ways"]["described"][0]["disk_bytes"]

    assert set(disk()) == {"SAEs", "checkpoints"}
    many = disk(held_out_tokens=10**8)
    assert many == {"SAEs": disk()["SAEs"], "index": 4 * 16 * 10**8}
    assert disk(held_out_tokens=10**8, report=False) == disk()


def test_the_report_is_planned_too(tmp_path: Path) -> None:
    config = replace(DEMO, sites=("layers.0", "layers.1"), held_out_rows=0)
    found = {}
    for report in (True, False):
        [quote, *_] = numbers_of(replace(config, report=report), tmp_path)[0]["ways"]["described"]
        found[report] = quote
    assert set(found[True]["seconds"]) - set(found[False]["seconds"]) == {"held-out text", "evaluation", "examples"}
    assert found[True]["seconds"]["held-out text"] == 32 * 32_768 / 1e6
    encoding = 2 * (2 * 192 * 3072 * 1e-11 + 3072 * 1e-10)
    assert found[True]["seconds"]["examples"] == pytest.approx((32_768 + 4096) * 2 * 2e-6 + 32_768 * encoding)
    assert found[True]["ram_bytes"]["logits"] > 4 * 3 * 8192 * 4096
    assert "logits" not in found[False]["ram_bytes"]
    transcoder = replace(config, sites=("layers.0",), target_site="layers.3")
    [quote, *_] = numbers_of(transcoder, tmp_path)[0]["ways"]["described"]
    encoding = 2 * 192 * 3072 * 1e-11 + 3072 * 1e-10
    assert quote["seconds"]["evaluation"] == pytest.approx(32_768 * (4 * 2e-6 + encoding))
