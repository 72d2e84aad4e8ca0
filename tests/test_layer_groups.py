"""Groups of layers that share one SAE: what it is trained on, what it computes at each layer, and what is written."""

import json
from pathlib import Path

import pytest
import torch

import strata
from strata.activations.collected import Activations
from strata.activations.draws import Draws
from strata.activations.harvest import collect_activations, harvest, token_stream
from strata.activations.source import layers_of
from strata.activations.store import open_store
from strata.activations.stream import Stream
from strata.assignments import assign, reads, sites_read
from strata.cli import main
from strata.config.layer_groups import Group, checked_groups, group_name
from strata.config.train import SAEConfig
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.prepare import prepare
from strata.recording import Recording
from strata.sae.gates import TopK
from strata.sae.group import GroupSAE, per_layer
from strata.sae.learner import Learner
from strata.sae.metrics import explained_variance
from strata.sae.model import SAE
from strata.sae.rules.registry import RULES
from strata.train import train
from tiny_models import save_tiny_model, shared_language_model, tiny_model, tiny_tokenizer

SITES = ("layers.0", "layers.1", "layers.2")
GROUP = Group(SITES)
TEXTS = [f"def f{number}(a):\n    return a + {number}\n" for number in range(120)]
CONFIG = SAEConfig(expansion_factor=2, k=4, batch_size=64, text_batch_size=4)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def acts(lm: LanguageModel) -> Activations:
    found = collect_activations(lm, TEXTS, list(SITES), context_tokens=32)
    assert isinstance(found, Activations)
    return found


def unlike_layers(n_rows: int = 2000, *, seed: int = 0) -> Activations:
    """The same sparse features at two layers that differ in mean and length."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    on = (torch.rand(n_rows, 16, generator=generator) < 0.1).float()
    x = (on * (1 + torch.rand(n_rows, 16, generator=generator))) @ features
    shift = torch.randn(8, generator=torch.Generator().manual_seed(1))
    return Activations({"layers.0": x, "layers.1": 40 * x + 30 * shift})


def test_names():
    assert group_name(SITES) == GROUP.name == "layers.0-2"
    assert group_name(["layers.5"]) == "layers.5"
    assert group_name(["layers.0", "layers.4", "layers.8"]) == "layers.0+4+8"


def test_groups_are_layers_by_number_or_name():
    assert checked_groups([[0, 1], ["layers.2"]], SITES) == [("layers.0", "layers.1"), ("layers.2",)]
    assert checked_groups([[0, 1], [1, 2]], SITES) == [("layers.0", "layers.1"), ("layers.1", "layers.2")]


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ([[0, 3]], r"`groups` must hold layers that are read. Got 3. Did you mean"),
        ([[True]], r"`groups` must hold layers that are read. Got True"),
        ([[0, 2]], r"`groups` must be of layers side by side, in order. Got \[0, 2\]"),
        ([[1, 0]], r"side by side, in order. Got \[1, 0\]"),
        ([[0], [0]], r"`groups` must name each group once. Got layers.0 twice"),
        ([[]], r"`groups` must hold at least one layer each"),
        ([], r"`groups` must hold at least one group"),
        (["layers.0"], r"`groups` must be a list of lists of layers. Got 'layers.0'"),
        ([0], r"`groups` must be a list of lists of layers. Got 0"),
    ],
)
def test_groups_that_are_none(groups, complaint):
    with pytest.raises(UserError, match=complaint):
        checked_groups(groups, SITES)


def test_draws_are_uniform_and_follow_from_seed_group_and_place():
    draws = Draws(["layers.0", GROUP], seed=3)
    layer = draws.layers(GROUP, 30_000, part=[7])
    shares = torch.bincount(layer.long(), minlength=3) / len(layer)
    assert (shares - 1 / 3).abs().max() < 0.012, "three standard deviations are 0.008"
    assert torch.equal(layer, Draws([GROUP], seed=3).layers(GROUP, 30_000, part=[7]))
    others = [draws.layers(GROUP, 30_000, part=[8]), Draws([GROUP], seed=4).layers(GROUP, 30_000, part=[7])]
    assert all((layer == other).float().mean() < 0.4 for other in others)
    assert draws.sites == list(SITES), "each once"


def check_batches(batches, *, n_least: int) -> None:
    """Every row of the group is that of the layer that it says, of the same token."""
    seen = torch.zeros(3)
    for batch in batches:
        assert set(batch) == {*SITES, GROUP.name, layers_of(GROUP.name)}
        layer = batch[layers_of(GROUP.name)].long()
        together = torch.stack([batch[site] for site in SITES])
        assert torch.equal(batch[GROUP.name], together[layer, torch.arange(len(layer))])
        seen += torch.bincount(layer, minlength=3)
    assert seen.sum() >= n_least
    assert seen.min() / seen.sum() > 0.25


def open_stream(lm: LanguageModel) -> Stream:
    tokens = token_stream(lm, TEXTS, context_tokens=32, text_batch_size=4)
    return Stream(lm, tokens, sites=list(SITES), buffer_tokens=512)


READS = [*SITES, GROUP]
ORDER = {"batch_size": 64, "n_epochs": 2, "seed": 0, "reads": READS}


def test_a_group_reads_one_layer_of_every_token_whatever_the_source(lm, acts, tmp_path):
    check_batches(open_stream(lm).shuffled(**ORDER).batches(), n_least=5000)
    check_batches(acts.shuffled(**ORDER).batches(), n_least=5000)
    collect_activations(lm, TEXTS, list(SITES), context_tokens=32, store=tmp_path / "store", progress=False)
    check_batches(open_store(tmp_path / "store").shuffled(**ORDER).batches(), n_least=5000)
    collect_activations(
        lm, TEXTS, list(SITES), context_tokens=32, store=tmp_path / "int8", dtype="int8", progress=False
    )
    check_batches(open_store(tmp_path / "int8").shuffled(**ORDER).batches(), n_least=5000)


@pytest.mark.parametrize("kind", ["stream", "collected", "store"])
def test_rows_and_draws_go_on_where_they_were(lm, acts, tmp_path, kind):
    def rows():
        if kind == "stream":
            return open_stream(lm).shuffled(**ORDER)
        if kind == "store":
            return open_store(tmp_path / "store").shuffled(**ORDER)
        return acts.shuffled(**ORDER)

    collect_activations(lm, TEXTS, list(SITES), context_tokens=32, store=tmp_path / "store", progress=False)
    whole = list(rows().batches())
    rest = list(rows().batches(start_step=30))
    assert len(whole) - 30 == len(rest) > 10
    for expected, found in zip(whole[30:], rest, strict=True):
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    sample, layer = (rows().sample(100, site=key) for key in (GROUP.name, layers_of(GROUP.name)))
    assert sample.shape == (100, 32)
    assert layer.shape == (100,)


def test_the_sample_of_a_group_says_which_layer_each_row_is_from(lm, acts):
    for rows in (acts.shuffled(**ORDER), open_stream(lm).shuffled(**ORDER)):
        layer = rows.sample(200, site=layers_of(GROUP.name)).long()
        together = torch.stack([rows.sample(200, site=site) for site in SITES])
        assert torch.equal(rows.sample(200, site=GROUP.name), together[layer, torch.arange(200)])


def test_the_language_model_gives_only_the_rows_that_are_drawn(lm, monkeypatch):
    """[tokens layers d] is never copied: one row per token leaves the forward pass, not one per token and layer."""
    read = []
    original = lm.rows

    def rows(ids, wanted, **options):
        found = original(ids, wanted, **options)
        read.append({key: len(tensor) for key, tensor in found.items()})
        return found

    monkeypatch.setattr(lm, "rows", rows)
    [batch, *_] = token_stream(lm, TEXTS, context_tokens=32, text_batch_size=4)
    found = harvest(lm, batch, [], draws=Draws([GROUP], seed=0))
    n_rows = int(batch.is_row.sum())
    assert sum(read[0].values()) == n_rows == len(found[GROUP.name])
    assert len(read[0]) == 3
    assert min(read[0].values()) > 0


def test_one_pass_for_all_groups(lm, monkeypatch):
    n_passes = []
    original = lm.rows
    monkeypatch.setattr(lm, "rows", lambda *given, **named: (n_passes.append(1), original(*given, **named))[1])
    strata.train_suite(lm, TEXTS, groups=[[0, 1], [1, 2], [2]], config=CONFIG, context_tokens=32, progress=False)
    n_batches = sum(1 for _ in token_stream(lm, TEXTS, context_tokens=32, text_batch_size=4))
    assert len(n_passes) == n_batches


def test_a_suite_of_groups(lm):
    suite = strata.train_suite(lm, TEXTS, groups=[[0, 1], [2]], config=CONFIG, context_tokens=32, progress=False)
    assert list(suite) == ["layers.0-1", "layers.2"]
    assert all(isinstance(group, GroupSAE) for group in suite.values())
    group = suite["layers.0-1"]
    assert (group.name, group.sites, group.d_in, group.d_sae) == ("layers.0-1", ["layers.0", "layers.1"], 32, 64)
    first, second = group.at("layers.0"), group.at("layers.1")
    assert type(first) is type(second) is SAE
    assert first.W_dec is second.W_dec
    assert first.W_enc is second.W_enc is group.W_enc
    assert not torch.equal(first.b_dec, second.b_dec)
    assert second.metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert second.metadata["group"] == "layers.0-1"


def test_a_group_asks_for_the_layer():
    group = GroupSAE({site: random_sae(scale) for site, scale in zip(SITES, (1.0, 2.0, 3.0), strict=True)})
    x = torch.randn(5, 8)
    for call in (group, group.encode, group.encode_sparse, group.decode):
        with pytest.raises(UserError, match=r"The layer must be named, since the group layers\.0-2 normalises each"):
            call(x)
    assert torch.equal(group.encode(x, "layers.1"), group.at("layers.1").encode(x))
    assert torch.equal(group(x, "layers.2"), group.at("layers.2")(x))
    with pytest.raises(UserError, match=r"The group layers\.0-2 has no layer 'layers\.7'\. Did you mean"):
        group.at("layers.7")
    alone = GroupSAE({"layers.4": random_sae(1.0)})
    assert torch.equal(alone(x), alone.at("layers.4")(x)), "with one layer there is nothing to choose"


def random_sae(scale: float) -> SAE:
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(32, 8, generator=generator), dim=1)
    return SAE(W_enc=W.t().clone(), W_dec=W, b_enc=torch.zeros(32), b_dec=scale * torch.ones(8), gate=TopK(4))


def test_a_group_is_of_saes_alike():
    weights = {"W_enc": torch.randn(8, 64), "W_dec": torch.randn(64, 8), "b_enc": torch.zeros(64)}
    wide = SAE(**weights, b_dec=torch.zeros(8), gate=TopK(4))
    with pytest.raises(UserError, match=r"needs SAEs of one gate, encoder and decoder\. That of layers\.1 has"):
        GroupSAE({"layers.0": random_sae(1.0), "layers.1": wide})
    with pytest.raises(UserError, match="at least one layer"):
        GroupSAE({})


def test_each_layer_has_its_own_normalisation_folded():
    """The paper's code folds the first layer's factor into the SAEs of all layers of a group (REFERENCE: faults)."""
    acts = unlike_layers()
    assignments = assign(list(acts), SAEConfig(expansion_factor=4, k=4, batch_size=64, num_epochs=8),
                         groups=[("layers.0", "layers.1")])  # fmt: skip
    prepared = prepare(acts, assignments)
    trained = train(prepared)
    group, learner = trained.saes["layers.0-1"], prepared.learners["layers.0-1"]
    assert isinstance(group, GroupSAE)
    held_out = unlike_layers(500, seed=5)
    for number, site in enumerate(group.sites):
        x, norm = held_out[site], learner.spaces.of_site(number).source
        assert norm.scale == pytest.approx((acts[site] - acts[site].mean(0)).square().mean().sqrt().item(), rel=0.05)
        p = learner.params
        pre = (norm.apply(x) - p["b_dec"]) @ p["W_enc"].t() + p["b_enc"]
        code = TopK(4).dense(pre)
        torch.testing.assert_close(
            group.at(site)(x), (code @ p["W_dec"] + p["b_dec"]) * norm.scale + norm.mean, rtol=1e-4, atol=1e-3
        )
        assert explained_variance(x, group.at(site)(x)) > 0.9
    swapped = group.at("layers.0")(held_out["layers.1"])
    assert explained_variance(held_out["layers.1"], swapped) < 0.85, "the first layer's factor will not do for another"


def test_a_group_of_equal_layers_is_the_sae_of_one():
    """Layers that are the same make the draws irrelevant: the group's SAE is that of a single layer, bit for bit."""
    x = unlike_layers()["layers.0"]
    acts = Activations({"layers.0": x, "layers.1": x.clone()})
    config = SAEConfig(expansion_factor=4, k=4, batch_size=64)
    layer = torch.randint(2, (2000,), dtype=torch.uint8)
    alone = Learner(config, n_steps=20, sample=x)
    group = Learner(config, n_steps=20, sample=torch.cat([x, x]), group=Group(("layers.0", "layers.1")),
                    layers=torch.cat([torch.zeros(2000), torch.ones(2000)]).to(torch.uint8))  # fmt: skip
    for name in ("W_enc", "W_dec"):
        torch.testing.assert_close(alone.params[name], group.params[name])
    for start in range(0, 1280, 64):
        alone.step(x[start : start + 64])
        group.step(x[start : start + 64], None, layer[start : start + 64])
    one, other = alone.finish(), group.finish()
    assert isinstance(other, GroupSAE)
    for site in acts:
        torch.testing.assert_close(one(x), other.at(site)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", RULES)
def test_every_gate_trains_saves_and_loads_as_a_group(architecture, tmp_path):
    acts = unlike_layers()
    config = SAEConfig(architecture=architecture, expansion_factor=4, k=4, batch_size=64)
    trained = train(prepare(acts, assign(list(acts), config, groups=[("layers.0", "layers.1")])))
    group = trained.saes["layers.0-1"]
    assert isinstance(group, GroupSAE)
    group.save(tmp_path / "group")
    again = GroupSAE.load(tmp_path / "group")
    assert again.sites == group.sites
    for site in group.sites:
        expected = group.at(site)(acts[site])
        assert torch.equal(again.at(site)(acts[site]), expected)
        alone = SAE.load(tmp_path / "group" / site)
        assert torch.equal(alone(acts[site]), expected)
        assert alone.metadata["site"] == again.at(site).metadata["site"] == site
        assert explained_variance(acts[site], expected) > 0.5
    assert sorted(path.name for path in (tmp_path / "group").iterdir()) == [
        "group.json", "group.safetensors", "layers.0", "layers.1",
    ]  # fmt: skip


def test_a_group_of_one_layer_is_saved_as_its_sae(tmp_path):
    GroupSAE({"layers.4": random_sae(1.0)}).save(tmp_path / "one")
    assert (tmp_path / "one" / "sae_weights.safetensors").is_file()
    assert GroupSAE.load(tmp_path / "one").sites == ["one"], "an SAE that does not know its site is named by its folder"


def test_damaged_folders(tmp_path):
    GroupSAE({site: random_sae(1.0) for site in SITES}).save(tmp_path / "group")
    content = json.loads((tmp_path / "group" / "group.json").read_text())
    (tmp_path / "group" / "group.json").write_text(json.dumps(content | {"version": 9}))
    with pytest.raises(UserError, match=r"must be of version 1\. It is of version 9"):
        GroupSAE.load(tmp_path / "group")
    (tmp_path / "group" / "group.json").write_text(json.dumps(content | {"sites": [*SITES, "layers.9"]}))
    with pytest.raises(UserError, match=r"must hold b_enc\.layers\.9\. It does not"):
        GroupSAE.load(tmp_path / "group")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        GroupSAE({site: random_sae(1.0) for site in SITES}).save(tmp_path / "file")


def test_rows_per_layer_are_counted():
    acts = unlike_layers()
    trained = train(prepare(acts, assign(list(acts), CONFIG, groups=[("layers.0", "layers.1"), ("layers.1",)])))
    n_rows = trained.n_steps * CONFIG.batch_size
    assert trained.layer_rows["layers.1"] == {"layers.1": n_rows}
    seen = trained.layer_rows["layers.0-1"]
    assert sum(seen.values()) == n_rows, "as many rows as any other SAE"
    assert min(seen.values()) > 0.4 * n_rows


def test_ten_and_ten_steps_are_twenty(lm, tmp_path):
    options = {"groups": [[0, 1, 2], [1, 2]], "config": CONFIG, "context_tokens": 32, "buffer_tokens": 512,
               "n_tokens": 1280, "progress": False}  # fmt: skip

    class StopError(Exception):
        pass

    straight = strata.train_suite(lm, TEXTS, **options)
    steps = []
    original = Learner.step

    def step(self, *rows):
        steps.append(1)
        if len(steps) == 21:
            raise StopError
        original(self, *rows)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", step)
        with pytest.raises(StopError):
            strata.train_suite(
                lm, TEXTS, **options, recording=Recording(folder=tmp_path, checkpoint_every="5 steps", progress=False)
            )
    resumed = strata.train_suite(
        lm, TEXTS, **options, recording=Recording(folder=tmp_path, resume=True, progress=False)
    )
    for name, group in straight.items():
        for expected, found in zip(group.parameters(), resumed[name].parameters(), strict=True):
            assert torch.equal(expected, found)


def test_training_goes_on_from_a_group(lm):
    first = strata.train_suite(lm, TEXTS, groups=[[0, 1]], config=CONFIG, context_tokens=32, progress=False)
    acts = collect_activations(lm, TEXTS, list(SITES), context_tokens=32)
    assignments = assign(list(SITES), CONFIG, groups=[("layers.0", "layers.1")], init=first)
    learner = prepare(acts, assignments).learners["layers.0-1"]
    again = learner.finish()
    assert isinstance(again, GroupSAE)
    x = acts["layers.0"]
    torch.testing.assert_close(again.at("layers.0")(x), first["layers.0-1"].at("layers.0")(x), rtol=1e-3, atol=1e-3)


def test_assignments_of_groups():
    one = assign(SITES, [CONFIG, SAEConfig(expansion_factor=2, k=8, batch_size=64, text_batch_size=4)],
                 groups=[("layers.0", "layers.1"), ("layers.2",)])  # fmt: skip
    assert list(one) == ["layers.0-1/k=4", "layers.0-1/k=8", "layers.2/k=4", "layers.2/k=8"]
    assert sites_read(one) == list(SITES)
    assert reads(one) == [Group(("layers.0", "layers.1")), "layers.2"]
    with pytest.raises(UserError, match="`target_sites` is for single sites"):
        assign(SITES, CONFIG, groups=[("layers.0", "layers.1")], target_sites={"layers.0": "layers.1"})


def test_groups_take_the_place_of_sites(lm):
    with pytest.raises(UserError, match="`groups` is given in place of `sites`"):
        strata.train_suite(lm, TEXTS, sites=["layers.0"], groups=[[0, 1]], config=CONFIG)


def test_layers_of_different_width_share_nothing():
    acts = Activations({"layers.0": torch.randn(500, 8), "layers.1": torch.randn(500, 16)})
    with pytest.raises(UserError, match="`groups` must be of layers of one width"):
        prepare(acts, assign(list(acts), CONFIG, groups=[("layers.0", "layers.1")]))


def test_per_layer():
    group, sae = GroupSAE({site: random_sae(1.0) for site in SITES}), random_sae(2.0)
    assert list(per_layer({"layers.0-2": group, "layers.3": sae})) == [
        *(f"layers.0-2/{site}" for site in SITES), "layers.3",
    ]  # fmt: skip


def run(tmp_path: Path, *flags: str) -> Path:
    model = tmp_path / "model"
    if not model.exists():
        save_tiny_model(model)
        lines = [json.dumps({"text": f"# file {number}\n{text}"}) for number, text in enumerate(TEXTS)]
        (tmp_path / "text.jsonl").write_text("\n".join(lines))
    given = ["--model", str(model), "--data", str(tmp_path / "text.jsonl"), "--context-tokens", "32"]
    given += ["--n-tokens", "2048", "--held-out-tokens", "512"]
    sae = ["--sae.batch-size", "64", "--sae.expansion-factor", "2", "--sae.k", "4", "--sae.text-batch-size", "4"]
    out = tmp_path / "run"
    assert main(["train", *given, *sae, "--out", str(out), "--overwrite", *flags]) == 0
    return out


def test_a_run_of_groups_from_a_file(tmp_path, capsys):
    (tmp_path / "groups.json").write_text("[[0, 1], [2]]")
    out = run(tmp_path, "--groups", str(tmp_path / "groups.json"))
    record = json.loads((out / "run.json").read_text())
    assert record["groups"] == {"layers.0-1": ["layers.0", "layers.1"], "layers.2": ["layers.2"]}
    assert sum(record["layer_rows"]["layers.0-1"].values()) == record["n_rows"] == 2048
    assert record["layer_rows"]["layers.2"] == {"layers.2": 2048}
    assert (out / "sae" / "layers.0-1" / "group.json").is_file()
    assert (out / "sae" / "layers.2" / "cfg.json").is_file()
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(last["sites"]) == ["layers.0-1", "layers.2"]
    if last["held_out"] is not None:
        assert set(last["held_out"]) == {"layers.0-1", "layers.2"}
    exported = tmp_path / "exported"
    assert main(["export", str(out), "--out", str(exported)]) == 0
    group = GroupSAE.load(out / "sae" / "layers.0-1")
    for site in group.sites:
        alone = SAE.load(exported / "layers.0-1" / site)
        x = torch.randn(20, 32)
        assert torch.equal(alone(x), group.at(site)(x)), "that layer's normalisation is folded"
    evaluated = json.loads((out / "evaluation.json").read_text())["sites"]
    assert list(evaluated) == ["layers.0-1/layers.0", "layers.0-1/layers.1", "layers.2"]
    assert evaluated["layers.0-1/layers.1"]["n_trained_rows"] == record["layer_rows"]["layers.0-1"]["layers.1"]
    assert "layers.0-1/layers.1" in (out / "report" / "index.html").read_text()


def test_a_run_that_groups_by_itself(tmp_path, capsys):
    out = run(tmp_path, "--groups", "auto", "--no-report")
    record = json.loads((out / "run.json").read_text())
    groups = list(record["groups"].values())
    assert [site for group in groups for site in group] == list(SITES)
    assert groups[-1] == ["layers.2"], "the last layer has its own"
    measured = json.loads((out / "groups" / "groups.json").read_text())
    assert measured["groups"] == groups
    assert len(measured["distances"]) == 3
    assert "measuring how alike 3 layers are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--groups", "nowhere.json"], "`groups` must be a file or folder with groups. nowhere.json is not there"),
        (["--groups", "auto", "--sites", "layers.1"], "`groups` must be given without sites. Got layers.1"),
        (["--groups", "auto", "--target-site", "layers.1"], "`groups` must be given without target_site"),
    ],
)
def test_groups_that_a_run_refuses(tmp_path, capsys, flags, complaint):
    save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    words = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run")]
    assert main(["train", *words, *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shared_model_is_left_alone():
    assert shared_language_model("gpt_neox").sites == list(SITES)


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu", "relu", "gated"])
def test_every_layer_of_a_group_has_the_l0_that_k_says(architecture):
    """Thresholds are set for each layer on its own last rows: layers whose codes differ in spread get as many."""
    generator = torch.Generator().manual_seed(0)
    sparse = unlike_layers(20_000)["layers.0"]
    acts = Activations({"layers.0": sparse, "layers.1": 5 * torch.randn(20_000, 8, generator=generator)})
    config = SAEConfig(architecture=architecture, expansion_factor=4, k=4, batch_size=256, num_epochs=2)
    trained = train(prepare(acts, assign(list(acts), config, groups=[("layers.0", "layers.1")])))
    group = trained.saes["layers.0-1"]
    assert isinstance(group, GroupSAE)
    for site in group.sites:
        l0 = (group.at(site).encode(acts[site]) > 0).float().sum(1).mean()
        assert l0 == pytest.approx(4, rel=0.04), site


@pytest.mark.saelens
def test_every_layer_of_a_group_opens_in_saelens(tmp_path):
    from sae_lens import SAE as SAELensSAE

    acts = unlike_layers()
    group = train(prepare(acts, assign(list(acts), CONFIG, groups=[("layers.0", "layers.1")]))).saes["layers.0-1"]
    assert isinstance(group, GroupSAE)
    group.save(tmp_path)
    for site in group.sites:
        opened = SAELensSAE.load_from_disk(tmp_path / site)
        x = acts[site][:50]
        torch.testing.assert_close(opened.decode(opened.encode(x)), group.at(site)(x), rtol=1e-3, atol=1e-3)
