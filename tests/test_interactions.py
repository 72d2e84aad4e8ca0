"""Attribution edges: exact where the model is linear, finite differences where not; graphs, files, the page."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strata.config.interactions import InteractionsConfig
from strata.errors import UserError
from strata.interactions.command import Interactions, interactions
from strata.interactions.edges import NO_EDGES, attribution_edges
from strata.interactions.files import as_record, write_interactions
from strata.interactions.graph import Names, attribution_graph, coactivation_graph
from strata.interactions.picture import MOST_NODES, draw, strongest
from strata.interactions.targets import heaviest, some_sequences
from strata.interpret.coactivation import Measure, Ranking, partners, partners_across
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import build_index
from strata.interpret.site_index import SiteIndex
from strata.lm.model import LanguageModel
from strata.lm.sites import first_tensor, with_first
from strata.lm.tokens import TokenBatch
from strata.report.interactions import interactions_and_report, page_of
from strata.sae.gates import Gated, JumpReLU, TopK
from strata.sae.model import SAE, Transcoder
from strata.shapes import SparseCode
from test_coactivation import shard_of
from tiny_models import VOCABULARY, WIDTH, shared_language_model, tiny_model

SEQ, D_SAE = 7, 40
EVIL = '<script>alert("1")</script>&\x00\n\u202e\u200b'


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Affine(nn.Module):
    """A block that is an affine map; with `mixing`, of the position before too."""

    def __init__(self, weight: Tensor, bias: Tensor, *, mixing: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias, self.mixing = weight, bias, mixing

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return x @ self.weight + self.bias + self.mixing * before


def linear_model(*, identity: bool = False) -> LanguageModel:
    """In fp64, whose blocks behind the first are affine."""
    model: Any = tiny_model("gpt2").double()
    generator = torch.Generator().manual_seed(2)
    for number in (1, 2):
        weight = torch.randn(WIDTH, WIDTH, generator=generator).double() / WIDTH**0.5
        bias = torch.randn(WIDTH, generator=generator).double()
        block = Affine(torch.eye(WIDTH).double(), 0 * bias) if identity else Affine(weight, bias, mixing=0.5)
        model.transformer.h[number] = block
    return LanguageModel(model)


def random_sae(seed: int = 0, *, d_in: int = WIDTH, kind: str = "topk") -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec = nn.functional.normalize(torch.randn(D_SAE, d_in, generator=generator), dim=1).double()
    b_enc, b_dec, r_mag = (0.1 * torch.randn(n, generator=generator).double() for n in (D_SAE, d_in, D_SAE))
    gates: dict[str, Callable[[], Any]] = {
        "topk": lambda: TopK(8),
        "jumprelu": lambda: JumpReLU(torch.full((D_SAE,), 0.3).double()),
        "gated": lambda: Gated(r_mag=r_mag, b_mag=b_enc + 0.2, b_gate=b_enc),
    }
    return SAE(W_enc=W_dec.t().clone(), b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, gate=gates[kind]())


def some_text(n: int = 3, *, seed: int = 0, vocabulary: int = VOCABULARY) -> TokenBatch:
    ids = torch.randint(2, vocabulary, (n, SEQ), generator=torch.Generator().manual_seed(seed))
    is_row = torch.ones_like(ids, dtype=torch.bool)
    is_row[:, 0] = False
    return TokenBatch(ids, torch.ones_like(is_row), is_row)


def readout(lm: LanguageModel, saes: dict[str, SAE], text: TokenBatch, edit: Callable, *, at: str, end: str) -> Tensor:
    """What all features of a later site read, before which of them fire is decided, with a site edited by hand."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        x = edit(first_tensor(output))
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = lm.model.get_submodule(lm.site(at).path).register_forward_hook(hook)
    x = lm.activations(text.input_ids, end)[end]
    handle.remove()
    sae = saes[end]
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    return sae.gate.r_mag.exp() * (pre - sae.gate.b_gate) + sae.gate.b_mag if isinstance(sae.gate, Gated) else pre


def fired_on(lm: LanguageModel, sae: SAE, text: TokenBatch, site: str) -> tuple[Tensor, Tensor]:
    """x and the dense latents, 0 where there is no row."""
    x = lm.activations(text.input_ids, site)[site]
    return x, sae.encode(x) * text.is_row[..., None]


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "gated"])
def test_edges_are_exact_ablations_where_the_model_is_linear(kind: str) -> None:
    lm, text = linear_model(), some_text()
    saes = {site: random_sae(i, kind=kind) for i, site in enumerate(["layers.0", "layers.2"])}
    targets = {"layers.2": [0, 3, 11, 20]}
    found = attribution_edges(lm, saes, targets, [text])
    sae = saes["layers.0"]
    x, latents = fired_on(lm, sae, text, "layers.0")
    _, later = fired_on(lm, saes["layers.2"], text, "layers.2")
    whole = readout(lm, saes, text, lambda x: x, at="layers.0", end="layers.2")
    assert sum(t.n_positions for t in found.targets) > 0 and (latents.sum((0, 1)) > 0).sum() > 10
    for i in range(D_SAE):
        without = readout(lm, saes, text, lambda x, i=i: x - latents[..., i, None] * sae.W_dec[i], at="layers.0",
                          end="layers.2")  # fmt: skip
        for target in found.targets:
            fires = later[..., target.latent] > 0
            change = ((whole - without)[..., target.latent] * fires).sum().item()
            assert target.sources["layers.0"].effects[i].item() == pytest.approx(change, abs=1e-9)
    error = x - sae.decode(latents.reshape(-1, D_SAE)).view_as(x) * text.is_row[..., None]
    without = readout(lm, saes, text, lambda x: x - error, at="layers.0", end="layers.2")
    for target in found.targets:
        fires = later[..., target.latent] > 0
        assert target.sources["layers.0"].error == pytest.approx(
            ((whole - without)[..., target.latent] * fires).sum().item(), abs=1e-9
        )
        assert target.activation == pytest.approx(later[..., target.latent].sum().item())
        assert target.n_positions == int(fires.sum())
        # Features, error and bias are all that comes through the site; the rest is what the target reads without it.
        nothing = readout(lm, saes, text, torch.zeros_like, at="layers.0", end="layers.2")
        rest = (nothing[..., target.latent] * fires).sum().item()
        assert target.rest("layers.0") == pytest.approx(rest, abs=1e-9)


def test_two_saes_at_the_same_vectors() -> None:
    """Behind an identity an edge is a_i ⟨W_dec[i], W_enc[:, j]⟩ summed over where j fires."""
    lm, text = linear_model(identity=True), some_text()
    saes = {"layers.0": random_sae(0), "layers.1": random_sae(1)}
    found = attribution_edges(lm, saes, {"layers.1": list(range(D_SAE))}, [text])
    _, first = fired_on(lm, saes["layers.0"], text, "layers.0")
    _, second = fired_on(lm, saes["layers.1"], text, "layers.1")
    expected = torch.einsum("bsi,bsj->ij", first, (second > 0).double()) * (
        saes["layers.0"].W_dec @ saes["layers.1"].W_enc
    )
    got = torch.stack([target.sources["layers.0"].effects for target in found.targets], dim=1)
    torch.testing.assert_close(got, expected)


def test_edges_on_the_embedded_model_are_slopes() -> None:
    """Where blocks are not linear: the slope of the readout as a feature is turned down, by central differences."""
    lm = LanguageModel(LanguageModel("demo").model.double())
    text = some_text(2, vocabulary=lm.vocabulary_size)
    saes = {site: random_sae(i, d_in=lm.d_in(site)) for i, site in enumerate(["layers.3", "layers.5"])}
    sae = saes["layers.3"]
    _, latents = fired_on(lm, sae, text, "layers.3")
    _, later = fired_on(lm, saes["layers.5"], text, "layers.5")
    chosen = later.sum((0, 1)).argsort(descending=True)[:3].tolist()
    found = attribution_edges(lm, saes, {"layers.5": chosen}, [text])
    step = 1e-4
    for i in latents.sum((0, 1)).argsort(descending=True)[:4].tolist():
        part = latents[..., i, None] * sae.W_dec[i]
        less, more = (
            readout(lm, saes, text, lambda x, s=s, p=part: x + s * p, at="layers.3", end="layers.5")
            for s in (-step, step)
        )
        for target in found.targets:
            slope = ((more - less)[..., target.latent] * (later[..., target.latent] > 0)).sum().item() / (2 * step)
            assert target.sources["layers.3"].effects[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_one_backward_for_each_target_and_batch_on_which_it_fires() -> None:
    lm = linear_model()
    saes = {site: random_sae(i) for i, site in enumerate(lm.sites)}
    texts = [some_text(seed=seed) for seed in range(3)]
    targets = {"layers.1": [0, 1, 2], "layers.2": [5, 6]}
    fires = 0
    for site, latents in targets.items():
        for text in texts:
            fires += int((fired_on(lm, saes[site], text, site)[1][..., latents] > 0).any(0).any(0).sum())
    backwards, grad = 0, torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal backwards
        backwards += 1
        return grad(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted)
        found = attribution_edges(lm, saes, targets, texts, upstream="all")
    assert found.spent.n_backwards == backwards == fires
    assert found.spent.n_forwards == 3
    assert (found.spent.n_forward_tokens, found.spent.n_backward_tokens) == (9 * SEQ, fires * 3 * SEQ)
    assert [list(target.sources) for target in found.targets[-2:]] == [["layers.0", "layers.1"]] * 2
    nearest = attribution_edges(lm, saes, targets, texts)
    assert list(nearest.targets[-1].sources) == ["layers.1"]
    torch.testing.assert_close(
        nearest.targets[-1].sources["layers.1"].effects, found.targets[-1].sources["layers.1"].effects
    )


def test_batches_add_up_and_positions_select() -> None:
    lm = linear_model()
    saes = {site: random_sae(i) for i, site in enumerate(["layers.0", "layers.2"])}
    texts, targets = [some_text(seed=seed) for seed in range(2)], {"layers.2": list(range(12))}
    both = TokenBatch(*(torch.cat([getattr(t, f) for t in texts]) for f in ("input_ids", "attention_mask", "is_row")))
    parts = attribution_edges(lm, saes, targets, texts).targets
    for a, b in zip(parts, attribution_edges(lm, saes, targets, [both]).targets, strict=True):
        torch.testing.assert_close(a.sources["layers.0"].effects, b.sources["layers.0"].effects)
        assert a.activation == pytest.approx(b.activation)
    early = torch.arange(SEQ).expand(3, -1) < 3
    first, rest = (
        attribution_edges(lm, saes, targets, texts, positions=[where] * 2).targets for where in (early, ~early)
    )
    for a, b, c in zip(first, rest, parts, strict=True):
        torch.testing.assert_close(
            a.sources["layers.0"].effects + b.sources["layers.0"].effects, c.sources["layers.0"].effects
        )
        assert a.n_positions + b.n_positions == c.n_positions


def test_attention_sinks_are_no_rows() -> None:
    """Position 3 a thousand times as long: the same edges as if it were no token, and all of it is error."""
    lm = linear_model(identity=True)
    saes = {"layers.0": random_sae(0), "layers.1": random_sae(1)}
    text = some_text(12)
    without = TokenBatch(text.input_ids, text.attention_mask, text.is_row.clone())
    without.is_row[:, 3] = False

    def stretch(module: Any, args: Any, output: Any) -> Any:
        x = first_tensor(output).clone()
        x[:, 3] *= 1000
        return with_first(output, x)

    handle = lm.model.get_submodule(lm.site("layers.0").path).register_forward_hook(stretch)
    targets = {"layers.1": list(range(D_SAE))}
    try:
        found, expected = (attribution_edges(lm, saes, targets, [one]).targets for one in (text, without))
        # Too few rows tell nothing: then it counts.
        few = attribution_edges(lm, saes, targets, [TokenBatch(*(part[:2] for part in vars(text).values()))]).targets
    finally:
        handle.remove()
    for a, b in zip(found, expected, strict=True):
        assert (a.activation, a.n_positions) == (b.activation, b.n_positions)
        torch.testing.assert_close(a.sources["layers.0"].effects, b.sources["layers.0"].effects)
        assert a.sources["layers.0"].error == pytest.approx(b.sources["layers.0"].error)
    assert max(a.activation for a in few) > 20 * max(a.activation for a in found)


@pytest.mark.parametrize("architecture", ["falcon", "opt", "gemma2", "mixtral"])
def test_other_architectures(architecture: str) -> None:
    """Outputs that are written into, outputs without a batch axis, tuples, experts; sites in the model's own order."""
    lm, text = shared_language_model(architecture), some_text()
    saes = {site: random_sae(i).float() for i, site in enumerate(["layers.2", "layers.0", "layers.1.mlp"])}
    before = sum(len(module._forward_hooks) for module in lm.model.modules())
    found = attribution_edges(lm, saes, {"layers.2": list(range(D_SAE))}, [text], upstream="all")
    assert list(found.targets[0].sources) == ["layers.0", "layers.1.mlp"]
    assert all(
        max(float(target.sources[u].effects.abs().max()) for target in found.targets) > 0
        for u in ("layers.0", "layers.1.mlp")
    )
    assert sum(len(module._forward_hooks) for module in lm.model.modules()) == before


def test_the_modes_of_the_caller_do_not_matter() -> None:
    lm, text = shared_language_model("gpt2"), some_text()
    saes = {site: random_sae(i).float() for i, site in enumerate(["layers.0", "layers.2"])}
    targets = {"layers.2": [1, 2, 3]}
    with torch.no_grad():
        a = attribution_edges(lm, saes, targets, [text]).targets
    with torch.inference_mode():
        b = attribution_edges(lm, saes, targets, [text]).targets
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.sources["layers.0"].effects, other.sources["layers.0"].effects)


def test_mistakes_are_told() -> None:
    lm, text = shared_language_model("gpt2"), some_text()
    saes = {site: random_sae(i).float() for i, site in enumerate(["layers.0", "layers.2"])}
    with pytest.raises(UserError, match=r"`saes` must hold two sites or more .* Got 1"):
        attribution_edges(lm, {"layers.0": saes["layers.0"]}, {"layers.0": [0]}, [text])
    with pytest.raises(UserError, match=r"'layers.0' is the first of layers.0, layers.2"):
        attribution_edges(lm, saes, {"layers.0": list(range(D_SAE))}, [text])
    with pytest.raises(UserError, match=rf"latents in \[0, {D_SAE}\) at 'layers.2'. Got {D_SAE}"):
        attribution_edges(lm, saes, {"layers.2": [D_SAE]}, [text])
    with pytest.raises(UserError, match=r"features of `saes`. Got 'layers.1'"):
        attribution_edges(lm, saes, {"layers.1": [0]}, [text])
    with pytest.raises(UserError, match=r"`targets` must name at least one feature"):
        attribution_edges(lm, saes, {"layers.2": []}, [text])
    with pytest.raises(UserError, match=r"`batches` must hold some text"):
        attribution_edges(lm, saes, {"layers.2": [0]}, [])
    own = saes["layers.0"]
    weights = {name: getattr(own, name).data for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    with pytest.raises(UserError, match=r"Got a transcoder at 'layers.0'"):
        attribution_edges(lm, saes | {"layers.0": Transcoder(**weights, gate=own.gate)}, {"layers.2": [0]}, [text])
    with pytest.raises(UserError, match=r"`task` must be named with targets \"task\", and only then. Got none"):
        InteractionsConfig(run=Path("runs/a"), targets="task")


def names(site: str, explanations: dict[int, str] | None = None, *, n: int = D_SAE) -> Names:
    return Names(site, site, np.linspace(0.01, 0.3, n), explanations or {})


def found_interactions(*, n_latents: int = D_SAE) -> Interactions:
    lm, text = linear_model(), some_text(6)
    saes = {site: random_sae(i) for i, site in enumerate(["layers.0", "layers.2"])}
    edges = attribution_edges(lm, saes, {"layers.2": list(range(n_latents))}, [text])
    shards = [[shard_of(saes[s].encode_sparse(fired_on(lm, saes[s], text, s)[0]))] for s in saes]
    ranking = Ranking(n_partners=5, n_least=2)
    a, b = names("layers.0"), names("layers.2", {i: (EVIL, "a plain one")[i % 2] for i in range(D_SAE)})
    pairs = [
        (a, a, partners(lambda: shards[0], ranking=ranking)),
        (a, b, partners_across(lambda: shards[0], lambda: shards[1], ranking=ranking)),
    ]
    graph = coactivation_graph(pairs, n_edges=100, least_jaccard=0.0)
    given = attribution_graph(edges, {"layers.0": a, "layers.2": b}, n_sources=4)
    counted = [{"keys": ["layers.0", "layers.0"], "n_increments": 1, "n_passes": 1, "n_rows": 42}]
    counts = {
        "coactivation": {
            "pairs_of_saes": counted,
            "n_increments": 1,
            "n_passes": 3,
            "n_kept": 1,
            "seconds": 0.5,
        },
        "attribution": {**vars(edges.spent), "n_targets": n_latents, "seconds": 0.5},
    }
    return Interactions(["layers.0", "layers.2"], graph, given, edges, counts)


def test_graphs_hold_the_strongest() -> None:
    found = found_interactions()
    edges = found.edges
    for target in edges.targets:
        if target.n_positions == 0:
            assert f"layers.2/{target.latent}" not in found.attribution
            continue
        own = target.sources["layers.0"]
        top = own.effects.abs().topk(4).indices.tolist()
        into = dict(found.attribution.pred[f"layers.2/{target.latent}"])
        assert set(into) == {*(f"layers.0/{i}" for i in top), "layers.0/error"}
        assert into[f"layers.0/{top[0]}"]["weight"] == pytest.approx(own.effects[top[0]].item())
        assert into["layers.0/error"]["share"] == pytest.approx(own.error / target.activation)
    weights = [edge["jaccard"] for *_, edge in found.coactivation.edges(data=True)]
    assert len(weights) == 100 and not found.coactivation.is_directed()
    fewer = coactivation_graph([], n_edges=3, least_jaccard=0.0)
    assert fewer.number_of_nodes() == 0


def test_coactivation_edges_are_the_largest_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(20, generator=generator)[:4] for _ in range(200)])
    code = SparseCode(torch.ones(200, 4), indices, 20)
    own = names("s", n=20)
    every = partners(lambda: [shard_of(code)], ranking=Ranking(n_partners=19, n_least=1))
    graph = coactivation_graph([(own, own, every)], n_edges=15, least_jaccard=0.0)
    fires = (code.dense() > 0).double()
    both, total = fires.T @ fires, fires.sum(0)
    jaccard = (both / (total[:, None] + total - both)).triu(1)
    expected = jaccard.flatten().sort(descending=True).values[:15].tolist()
    assert sorted((e["weight"] for *_, e in graph.edges(data=True)), reverse=True) == pytest.approx(expected)
    cut = coactivation_graph([(own, own, every)], n_edges=1000, least_jaccard=expected[4])
    assert cut.number_of_edges() == int((jaccard >= expected[4]).sum())


@pytest.mark.parametrize("by", ["phi", "pearson", "lift", "count", "jaccard"])
def test_coactivation_edges_are_weighed_by_the_measure_that_ranks(by: Measure) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.multinomial(1 / torch.arange(1, 21), 4, generator=generator) for _ in range(300)])
    own, values = names("s", n=20), torch.rand(300, 4, generator=generator) + 0.1
    shards = [shard_of(SparseCode(values, chosen, 20))]
    every = partners(lambda: shards, ranking=Ranking(n_partners=19, n_least=1, by=by))
    graph = coactivation_graph([(own, own, every)], by=by, n_edges=15, least_jaccard=0.05)
    every_weight = sorted({(*sorted((i, int(j))), float(w)) for i in range(20) for j, w, common in zip(
        every.of(i).latents, every.of(i).measure(by), every.of(i).jaccard, strict=True) if common >= 0.05},
        key=lambda pair: -pair[2])  # fmt: skip
    found = {(*sorted((int(a[2:]), int(b[2:]))), e["weight"]) for a, b, e in graph.edges(data=True)}
    assert sorted((w for *_, w in found), reverse=True) == pytest.approx([w for *_, w in every_weight[:15]])
    assert all(edge["weight"] == edge[by] for *_, edge in graph.edges(data=True))


def test_files_are_read_back(tmp_path: Path) -> None:
    import networkx as nx

    found = found_interactions()
    record = write_interactions(found, tmp_path, about={"run": "runs/x"})
    kept = json.loads((tmp_path / "interactions.json").read_text(encoding="utf-8"))
    assert kept == record and kept["version"] == 1 and kept["keys"] == ["layers.0", "layers.2"]
    for name in ("coactivation", "attribution"):
        graph, again = getattr(found, name), nx.read_graphml(tmp_path / f"{name}.graphml")
        assert set(again.edges) == set(graph.edges) or not graph.is_directed()
        assert again.number_of_edges() == graph.number_of_edges() == len(kept[name]["edges"])
        assert again.is_directed() == graph.is_directed() == kept[name]["directed"]
        weights = [abs(edge["weight"]) for edge in kept[name]["edges"]]
        assert weights == sorted(weights, reverse=True)
        ET.fromstring((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))
        said = "".join(node["explanation"] for _, node in again.nodes(data=True))
        assert "a plain one" in said and "alert" in said and not {"\u202e", "\u200b", "\x00"} & set(said)
    target = kept["targets"][0]
    for own in target["sources"].values():
        parts = own["features"] + own["error"] + own["bias"] + own["rest"]
        assert parts == pytest.approx(target["activation"])


def test_pictures_are_small_the_same_each_time_and_hold_no_markup() -> None:
    found = found_interactions()
    for graph in (found.coactivation, found.attribution):
        picture = draw(graph, title=EVIL, sites=found.keys)
        assert picture == draw(graph, title=EVIL, sites=found.keys)
        assert "\u202e" not in picture and "\u200b" not in picture
        root = ET.fromstring(picture)
        assert not [element for element in root.iter() if element.tag.endswith("script")]
        drawn = [element for element in root.iter() if element.tag.endswith("}g")]
        assert 2 <= len(drawn) == strongest(graph, MOST_NODES).number_of_nodes() <= MOST_NODES
    assert len(found.attribution) > 20
    assert len(strongest(found.attribution, 5)) <= 5
    heavy = max(found.attribution.edges(data=True), key=lambda edge: abs(edge[2]["weight"]))
    assert heavy[:2] in strongest(found.attribution, 5).edges


def test_nothing_becomes_markup_on_the_page() -> None:
    found = found_interactions()
    about = {"run": EVIL, "date": "2026", "strata_version": "0"}
    pictures = {
        name: draw(getattr(found, name), title="t", sites=found.keys) for name in ("coactivation", "attribution")
    }
    page = page_of(as_record(found, about=about), pictures)
    assert (
        "<script" not in page
        and "&lt;script&gt;" in page
        and "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    )
    assert page.count("<svg") == 2 and "Backward passes" in page
    heads = re.findall(r'<h2 id="h-(\w+)"', page)
    assert heads == ["coactivation", "attribution", "targets", "cost"], "first what was found, then what it took"
    assert "Passes over the codes" in page and "n² log n" in page and "not counted again" in page
    nothing = attribution_graph(NO_EDGES, {}, n_sources=1)
    alone = Interactions(found.keys, found.coactivation, nothing,
                         NO_EDGES, {"coactivation": found.counts["coactivation"]})  # fmt: skip
    assert "they need two sites" in page_of(as_record(alone, about=about), {})


def test_heaviest_are_those_of_the_chosen_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    code = SparseCode(torch.rand(40, 3), torch.stack([torch.randperm(9)[:3] for _ in range(40)]), 10)
    about = {"saes": {"s": {"site": "s", "d_sae": 10}}, "n_sequences": 8, "sequence_tokens": 5}
    site = SiteIndex(FeatureIndex(Path(), about), "s")
    parts = [SparseCode(code.values[a : a + 20], code.indices[a : a + 20], 10) for a in (0, 20)]
    shards = [shard_of(part, first_token=20 * number) for number, part in enumerate(parts)]
    monkeypatch.setattr(site, "shards", lambda: iter(shards))
    chosen = some_sequences(site.index, 15)
    assert chosen.tolist() == [0, 4, 7] and some_sequences(site.index, 1000).tolist() == list(range(8))
    mass = code.dense().view(8, 5, 10)[chosen].sum((0, 1))
    assert heaviest(site, chosen, 4) == mass.argsort(descending=True)[:4].tolist()
    assert 9 not in heaviest(site, chosen, 10)


def test_mistakes_are_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.interactions.command.index_run", lambda *_, **__: pytest.fail("made an index"))
    monkeypatch.setattr("strata.formats.native.load", lambda *_: pytest.fail("read weights"))
    run = tmp_path / "run"
    for place in ("layers.0/k=8", "layers.0/k=16", "layers.1"):
        sae = random_sae()
        sae.metadata["site"] = place.split("/")[0]
        sae.float().save(run / "sae" / place)
    record = {"config": {"model": "demo", "data": "none", "context_tokens": 64, "sae": {"k": 8, "text_batch_size": 4}}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")

    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            interactions(InteractionsConfig(run=run, **settings), progress=False)

    refused(r"`sites` must name one SAE for each site .* Got layers.0/k=16, layers.0/k=8\. .* --n-targets 0")
    refused(r"`sites` must name one SAE", sites=("layers.0", "layers.1"))
    refused(r"`task` must be one that there is. Got 'inductoin'. Did you mean 'induction'",
            sites=("layers.0/k=8", "layers.1"), targets="task", task="inductoin")  # fmt: skip
    refused(r"`sites` must be of the run. Got 'layers.2'.", sites=("layers.2",))
    settings: list[dict[str, Any]] = [{"sites": ("layers.0/k=8", "layers.1")}, {"n_targets": 0}]
    for allowed in settings:
        with pytest.raises(pytest.fail.Exception, match="made an index"):
            interactions(InteractionsConfig(run=run, **allowed), progress=False)


def test_a_run_from_the_index_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program on a tiny index of two random SAEs of the embedded model, made as `strata explain` makes it."""
    lm = LanguageModel("demo")
    saes = {site: random_sae(i, d_in=lm.d_in(site)).float() for i, site in enumerate(["layers.3", "layers.5"])}
    run = tmp_path / "run"
    for site, sae in saes.items():
        sae.metadata["site"] = site
        sae.save(run / "sae" / site)
    texts = [f"def f_{i}(x):\n    return [x + {i}, 'a{i}']\n" * 8 for i in range(12)]
    index = build_index(lm, saes, texts, folder=run / "index", n_tokens=1500, context_tokens=64, progress=False)
    record = {"config": {"model": "demo", "data": "none", "context_tokens": 64, "sae": {"k": 8, "text_batch_size": 4}}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr("strata.interactions.command.index_run", lambda config, progress: index)
    config = InteractionsConfig(run=run, n_targets=3, n_edge_tokens=256, device="cpu")
    page = interactions_and_report(config)
    said = capsys.readouterr().err
    assert "co-activation of 3 pairs of SAEs: " in said and "they grow with tokens x k x k" in said
    assert (
        "edges into 3 targets: 1 forward and 3 backward passes, " in said and "they grow with targets x batches" in said
    )
    assert {path.name for path in page.parent.iterdir()} == {
        *("index.html", "interactions.json", "coactivation.graphml", "coactivation.svg"),
        *("attribution.graphml", "attribution.svg"),
    }
    kept = json.loads((page.parent / "interactions.json").read_text(encoding="utf-8"))
    assert [pair["keys"] for pair in kept["counts"]["coactivation"]["pairs_of_saes"]] == [
        *(["layers.3", "layers.3"], ["layers.5", "layers.5"], ["layers.3", "layers.5"]),
    ]
    assert kept["counts"]["attribution"]["n_targets"] == 3
    assert kept["counts"]["coactivation"]["n_kept"] == 0
    again = interactions(replace(config, n_targets=0), progress=False)
    assert again.counts["coactivation"]["n_kept"] == 2
    assert set(again.coactivation.edges) and len(again.coactivation.edges) == len(kept["coactivation"]["edges"])
    others = interactions(replace(config, n_targets=0, rank_by="lift"), progress=False)
    assert others.counts["coactivation"]["n_kept"] == 0
    assert all(edge["weight"] == edge["lift"] for *_, edge in others.coactivation.edges(data=True))
    assert kept["about"]["across"] == "nearest"
    with pytest.raises(UserError, match=r"`out` must be a new folder. .* exists already\. Give another with --out"):
        interactions_and_report(config, progress=False)
