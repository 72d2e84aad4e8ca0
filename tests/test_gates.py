"""The one suite that every gate passes, as an SAE and as a transcoder with and without skip connection: the oracle's
values and gradients, identities, files, resuming.
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels import reference
from strata.kernels.gradient import matrix
from strata.sae.gates import TopK
from strata.sae.learner import Learner
from strata.sae.model import SAE, Transcoder
from strata.sae.rules.registry import RULES, has_penalty
from strata.shapes import SparseCode

ARCHITECTURES = tuple(RULES)
DENSE_AND_SPARSE = tuple(name for name in RULES if has_penalty(name))
SELECTING = tuple(name for name in RULES if not has_penalty(name))
KINDS = ("sae", "transcoder", "skip")
# no file format holds a Gated transcoder
CASES = [(name, kind) for name in ARCHITECTURES for kind in KINDS if name != "gated" or kind == "sae"]
PATHS = [(*case, path) for case in CASES for path in (("only",) if case[0] in SELECTING else ("dense", "sparse"))]
# rows of the step, d_in, d_out of a transcoder, expansion factor, k
EDGES = [(64, 16, 9, 16, 8), (33, 12, 20, 5, 60), (1, 3, 4, 7, 4), (9, 8, 8, 4, 1)]

every_gate = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_case = pytest.mark.parametrize(("architecture", "kind"), CASES)
every_path = pytest.mark.parametrize(("architecture", "kind", "path"), PATHS)


def site_rows(n_rows: int, d_in: int, d_out: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations of two sites, the second a noisy function of the first; offsets and scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, d_in, generator=generator)
    weight = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(1000)) / d_in**0.5
    y = (x @ weight).relu() + 0.3 * torch.randn(n_rows, d_out, generator=generator)
    return x * 3 + 5, y * 0.7 - 2


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are so small that two threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Trial:
    """A learner of one kind and the rows it is trained on; `step` and `Learner` take what the kind needs."""

    def __init__(
        self, architecture: str, kind: str, *, rows: tuple[Tensor, Tensor], n_steps: int = 20, **settings: Any
    ):
        self.architecture, self.kind, self.rows, self.n_steps = architecture, kind, rows, n_steps
        self.score_dtype = settings.pop("score_dtype", torch.float32)
        defaults: dict[str, Any] = {"k": 4, "expansion_factor": 6, "lr": 1e-2, "revival": "none", "bandwidth": 0.5}
        self.config = SAEConfig(architecture=architecture, batch_size=len(rows[0]), **(defaults | settings))
        self.learner = self.fresh()

    def fresh(self, *, init: SAE | None = None, factors: tuple[float, float] = (1.0, 1.0)) -> Learner:
        """A learner before its first step, for rows multiplied by factors."""
        x, y = self.rows[0] * factors[0], self.rows[1] * factors[1]
        target = (
            {} if self.kind == "sae" else {"target_sample": y, "target_site": "layers.4", "skip": self.kind == "skip"}
        )
        learner = Learner(
            self.config, n_steps=self.n_steps + 1, sample=x, site="layers.3", score_dtype=self.score_dtype, init=init,
            **target,
        )  # fmt: skip
        return learner

    def step(self, learner: Learner, x: Tensor, y: Tensor) -> None:
        learner.step(x) if self.kind == "sae" else learner.step(x, y)

    def train(self, learner: Learner | None = None, *, n_steps: int | None = None) -> Learner:
        """Steps on the trial's rows, so that no bias is zero any more."""
        learner = learner or self.learner
        for _ in range(n_steps or self.n_steps):
            self.step(learner, *self.rows)
        return learner

    def gradients(self, x: Tensor, y: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Statistics and gradients of one step of the learner, whose weights stay as they are."""
        self.learner.statistics()
        self.learner.optimizer = recorder = Recorder()
        self.step(self.learner, x, y)
        return self.learner.statistics(), recorder.gradients

    def oracle(self, x: Tensor, y: Tensor) -> tuple[reference.Losses, dict[str, Tensor]]:
        """The same from plain autograd."""
        learner, config = self.learner, self.config
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in learner.params.items()}
        objective = reference.Objective(
            architecture=self.architecture, k=config.k, bandwidth=config.bandwidth, prefixes=config.matryoshka_prefixes,
            coefficient=float(learner.rule.coefficient) if self.architecture in DENSE_AND_SPARSE else 0.0,
        )  # fmt: skip
        keep, z_target = ~learner.normalization.is_sink(x), None
        if self.kind != "sae":
            target = learner.spaces.output
            keep, z_target = keep & ~target.is_sink(y), target.apply(y)
        found = reference.losses(objective, leaves, learner.normalization.apply(x), keep, z_target=z_target)
        found.total.backward()
        return found, {name: leaf.grad for name, leaf in leaves.items()}


class Recorder:
    """Stands in for the optimiser and keeps the gradients."""

    def step(self, gradients, *, lr):
        self.gradients = {name: matrix(gradient).clone() for name, gradient in gradients.items()}


@cache
def finished(architecture: str, kind: str) -> SAE:
    """A trained SAE that tests only look at."""
    return Trial(architecture, kind, rows=site_rows(64, 8)).train().finish({"model_name": "demo"})


def choose_path(learner: Learner, path: str) -> None:
    if path != "only":
        learner.rule.dense_share = {"dense": 0.0, "sparse": 2.0}[path]
        learner.rule.steering.coefficient = torch.tensor(0.37)


def assert_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=1e-5 * scale + 1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_oracle(trial: Trial, x: Tensor, y: Tensor) -> None:
    wanted, gradients = trial.oracle(x, y)
    statistics, found = trial.gradients(x, y)
    assert statistics["fvu"] == pytest.approx(wanted.reconstruction.item(), rel=1e-4)
    assert statistics["loss"] == pytest.approx(wanted.total.item(), rel=1e-4)
    assert_gradients(found, gradients)


@pytest.mark.parametrize(("n_rows", "d_in", "d_out", "expansion", "k"), EDGES)
@every_path
def test_step_has_the_oracles_loss_and_gradients(architecture, kind, path, n_rows, d_in, d_out, expansion, k):
    rows = site_rows(64, d_in, d_out)
    trial = Trial(architecture, kind, rows=rows, expansion_factor=expansion, k=k)
    trial.train()
    choose_path(trial.learner, path)
    assert_oracle(trial, rows[0][:n_rows], rows[1][:n_rows])


@every_path
def test_sinks_of_either_site_do_not_train(architecture, kind, path):
    x, y = site_rows(64, 8)
    trial = Trial(architecture, kind, rows=(x, y))
    trial.train()
    choose_path(trial.learner, path)
    _, gradients = trial.oracle(x, y)
    far_x, far_y = torch.full((1, 8), 500.0), torch.full((1, 5), -500.0)
    with_sinks = torch.cat([far_x, x, far_x]), torch.cat([y[:1], y, far_y])
    if kind != "sae":
        with_sinks = torch.cat([with_sinks[0], x[:1]]), torch.cat([with_sinks[1], far_y])
    assert_gradients(trial.gradients(*with_sinks)[1], gradients)
    choose_path(trial.learner, path)  # the penalty as it was
    assert_oracle(trial, *with_sinks)


@every_case
def test_ties_are_broken_one_way_or_the_other(architecture, kind):
    """Every latent has a twin: which of the two is selected may differ, what they do together may not."""
    x, y = site_rows(32, 8)
    trial = Trial(architecture, kind, rows=(x, y), k=5, matryoshka_prefixes=(0.25, 0.5, 1.0))
    params = trial.train().params
    per_latent = [name for name in params if name not in ("b_dec", "W_skip")]
    for name in per_latent:
        params[name][1::2] = params[name][::2]
    wanted, gradients = trial.oracle(x, y)
    statistics, found = trial.gradients(x, y)
    assert statistics["fvu"] == pytest.approx(wanted.reconstruction.item(), rel=1e-4)
    for group in (found, gradients):
        group.update({name: group[name][::2] + group[name][1::2] for name in per_latent})
    assert_gradients(found, gradients)


@pytest.mark.parametrize("architecture", DENSE_AND_SPARSE)
def test_the_dense_and_the_sparse_path_are_one(architecture):
    trial = Trial(architecture, "sae", rows=site_rows(64, 8), k=3)
    start = trial.train().state()
    results = []
    for path in ("dense", "sparse"):
        again = Trial(architecture, "sae", rows=trial.rows, k=3)
        again.learner.load_state(start)
        choose_path(again.learner, path)
        results.append((*again.gradients(*site_rows(64, 8, seed=1)), again.learner.last_fired_step))
    (dense, dense_gradients, dense_fired), (sparse, sparse_gradients, sparse_fired) = results
    assert sparse == pytest.approx(dense, rel=1e-4)
    assert_gradients(sparse_gradients, dense_gradients)
    assert torch.equal(sparse_fired, dense_fired)


@every_case
def test_selection_in_bf16_trains_on_fp32_values(architecture, kind):
    """With k = d_sae there is nothing to select wrongly; the thresholds' gates look again at what is near."""
    x, y = site_rows(64, 8)
    k = 48 if architecture in SELECTING else 4
    trial = Trial(architecture, kind, rows=(x, y), k=k, score_dtype=torch.bfloat16)
    trial.train()
    choose_path(trial.learner, "only" if architecture in SELECTING else "sparse")
    assert_oracle(trial, x, y)


@every_case
def test_decoder_rows_have_unit_norm_after_every_step(architecture, kind):
    trial = Trial(architecture, kind, rows=site_rows(32, 8))
    for _ in range(3):
        trial.step(trial.learner, *trial.rows)
        norms = trial.learner.params["W_dec"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(48), rtol=0, atol=1e-5)


@every_case
def test_finished_sae_computes_the_learners_reconstruction_of_raw_activations(architecture, kind):
    trial = Trial(architecture, kind, rows=site_rows(64, 8), sparsity_coefficient=0.01)  # not steered: L0 is as it is
    learner = trial.train()
    sae, p = learner.finish(), learner.params
    assert isinstance(sae, Transcoder) == (kind != "sae")
    target = learner.spaces.output
    x, _ = site_rows(50, 8, seed=1)
    z = learner.normalization.apply(x)
    u = z - p["b_dec"] if kind == "sae" else z
    code = code_of(learner, sae, u, scale=target.scale)
    z_hat = code @ p["W_dec"] + p["b_dec"] + (z @ p["W_skip"].t() if kind == "skip" else 0)
    torch.testing.assert_close(sae(x), z_hat * target.scale + target.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.encode(x), code * target.scale, rtol=1e-4, atol=1e-4)
    assert 0 < (code > 0).float().mean() < 1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae), rtol=0, atol=1e-5)


def code_of(learner: Learner, sae: SAE, u: Tensor, *, scale: float) -> Tensor:
    """The code in the normalised space as the gates' definitions have it."""
    p, architecture = learner.params, learner.config.architecture
    shared = u @ p["W_enc"].t()
    if architecture == "gated":
        return (shared + p["b_gate"] > 0) * (p["r_mag"].exp() * shared + p["b_mag"]).relu()
    pre = shared + p["b_enc"]
    if architecture == "topk":
        return TopK(learner.config.k).dense(pre)
    if architecture == "relu":
        return pre.relu()
    if architecture == "jumprelu":
        return pre * (pre > p["log_threshold"].exp())
    threshold = sae.gate.threshold / scale  # BatchTopK's is a running mean: one number for all latents
    assert threshold.min() == threshold.max() > 0
    return pre * (pre > threshold)


@every_case
def test_training_goes_on_without_the_finished_sae_and_without_the_one_it_began_with(architecture, kind):
    trial = Trial(architecture, kind, rows=site_rows(64, 8), n_steps=3)
    sae = trial.train().finish()
    before = deepcopy(sae.state_dict())
    trial.train()
    trial.train(trial.fresh(init=sae))
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@every_case
def test_scaling_the_activations_scales_the_sae(architecture, kind):
    """Powers of two are exact in floating point, so the training is the same, bit for bit."""
    trial = Trial(architecture, kind, rows=site_rows(64, 8))
    x, y = trial.rows
    plain = trial.train().finish()
    for factors in ((4.0, 4.0), (4.0, 0.5)) if kind != "sae" else ((4.0, 4.0),):
        learner = trial.fresh(factors=factors)
        for _ in range(trial.n_steps):
            trial.step(learner, x * factors[0], y * factors[1])
        scaled = learner.finish()
        assert torch.equal(scaled.W_dec, plain.W_dec)
        assert torch.equal(scaled.W_enc, plain.W_enc * (factors[1] / factors[0]))
        assert torch.equal(scaled(x * factors[0]), plain(x) * factors[1])


@every_case
def test_every_way_to_encode_gives_the_same(architecture, kind):
    sae = finished(architecture, kind)
    x, _ = site_rows(24, 8, seed=4)
    dense = sae.encode(x)
    assert 0 < (dense > 0).float().mean() < 1
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(sae.encode_sparse(x).dense(), dense, **close)
    torch.testing.assert_close(sae.encode_sparse(x.view(2, 3, 4, 8)).dense(), dense.view(2, 3, 4, -1), **close)
    torch.testing.assert_close(sae.encode(x.view(2, 3, 4, 8)), dense.view(2, 3, 4, -1), **close)
    torch.testing.assert_close(sae(x.view(2, 3, 4, 8)), sae(x).view(2, 3, 4, -1), **close)
    torch.testing.assert_close(sae.encode(x[0]), dense[0], **close)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x)), sae.decode(dense), **close)
    none = sae.encode_sparse(x[:0])
    assert isinstance(none, SparseCode)
    assert none.dense().shape == (0, sae.d_sae)
    assert sae(x[:0]).shape == (0, sae.d_out)


@every_case
def test_gradient_with_respect_to_the_activations(architecture, kind):
    """Against a difference of the reconstruction in double precision."""
    sae = deepcopy(finished(architecture, kind)).double()
    x = site_rows(5, 8, seed=5)[0].double().requires_grad_()
    direction, away = torch.randn(5, 8, dtype=torch.float64), torch.randn(sae.d_out, dtype=torch.float64)
    out = sae(x)
    (out @ away).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(sae(x), out)
        step = 1e-7 * direction
        difference = ((sae(x + step) - sae(x - step)) @ away).sum() / 2e-7
    assert x.grad is not None
    torch.testing.assert_close((x.grad * direction).sum(), difference, rtol=1e-4, atol=1e-5)


@every_case
def test_save_and_load_are_exact(architecture, kind, tmp_path):
    sae = finished(architecture, kind)
    sae.save(tmp_path / "sae")
    again, (x, _) = SAE.load(tmp_path / "sae"), site_rows(50, 8, seed=2)
    assert type(again) is type(sae)
    assert again.state_dict().keys() == sae.state_dict().keys()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))
    assert again.gate.description() == sae.gate.description()
    assert again.metadata["model_name"] == "demo"


@every_gate
def test_a_finished_sae_says_how_it_was_trained(architecture):
    sae = finished(architecture, "sae")
    assert sae.metadata["model_name"] == "demo"
    assert sae.metadata["training_architecture"] == architecture
    assert sae.metadata["k"] == 4
    assert sae.gate.architecture == {"topk": "topk", "relu": "standard", "gated": "gated"}.get(architecture, "jumprelu")


@every_case
def test_ten_and_ten_steps_are_twenty(architecture, kind, tmp_path):
    settings = {"revival": "auto", "dead_feature_window": 2, "k": 2}
    batches = [site_rows(64, 8, seed=200 + i) for i in range(20)]
    trial = Trial(architecture, kind, rows=site_rows(256, 8), n_steps=20, **settings)
    straight, broken = trial.fresh(), trial.fresh()
    for batch in batches:
        trial.step(straight, *batch)
    for batch in batches[:10]:
        trial.step(broken, *batch)
    torch.save(broken.state(), tmp_path / "state.pt")
    resumed = Trial(architecture, kind, rows=site_rows(256, 8, seed=9), n_steps=20, **settings).learner
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in batches[10:]:
        trial.step(resumed, *batch)
    for name, tensor in straight.params.items():
        assert torch.equal(tensor, resumed.params[name]), name
    assert torch.equal(straight.last_fired_step, resumed.last_fired_step)
    assert straight.statistics() == resumed.statistics()
    x, _ = site_rows(50, 8, seed=3)
    assert torch.equal(straight.finish()(x), resumed.finish()(x))


@every_case
def test_warm_start_begins_where_the_sae_is(architecture, kind):
    """In another normalisation than the SAE's own. One step too small to change anything lets BatchTopK see rows."""
    trial = Trial(architecture, kind, rows=site_rows(256, 8))
    sae, (x, _) = trial.train().finish(), site_rows(50, 8, seed=3)
    moved = tuple(2 * rows + 1 for rows in site_rows(256, 8, seed=8))
    learner = Trial(architecture, kind, rows=moved, lr=1e-12).fresh(init=sae)
    trial.step(learner, *trial.rows)
    again = learner.finish()
    torch.testing.assert_close(again(x), sae(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"expansion_factor=6"):
        Trial(architecture, kind, rows=trial.rows, expansion_factor=3).fresh(init=sae)


@pytest.mark.parametrize(("architecture", "kind"), [case for case in CASES if case[0] != "topk"])
def test_finished_sae_has_the_l0_that_k_names_on_the_last_rows(architecture, kind):
    trial = Trial(architecture, kind, rows=site_rows(256, 8))
    sae = trial.train().finish()
    assert (sae.encode(trial.rows[0]) > 0).sum() / 256 == pytest.approx(4, abs=2 / 256)


@every_path
def test_nothing_fires(architecture, kind, path):
    x, y = site_rows(64, 8)
    trial = Trial(architecture, kind, rows=(x, y))
    params = trial.train().params
    choose_path(trial.learner, path)
    params["b_gate" if architecture == "gated" else "b_enc"].fill_(-1000.0)
    assert_oracle(trial, x, y)
    statistics, gradients = trial.gradients(x, y)
    assert statistics["l0"] == 0
    assert gradients["b_dec"].abs().sum() > 0
    assert all(bool(tensor.isfinite().all()) for tensor in trial.learner.finish().state_dict().values())


@every_path
def test_a_batch_of_sinks_alone_trains_nothing(architecture, kind, path):
    trial = Trial(architecture, kind, rows=site_rows(64, 8))
    trial.train()
    choose_path(trial.learner, path)
    statistics, gradients = trial.gradients(torch.full((5, 8), 500.0), trial.rows[1][:5])
    assert (statistics["loss"], statistics["l0"]) == (0, 0)
    assert all(bool((tensor == 0).all()) for tensor in gradients.values())


class TestErrors:
    def test_no_file_format_holds_a_gated_transcoder(self):
        with pytest.raises(ValueError, match='"gated" cannot be a transcoder'):
            Trial("gated", "transcoder", rows=site_rows(64, 8))

    def test_an_unknown_architecture(self):
        with pytest.raises(ValueError, match=r"SAEConfig\.architecture.*'jumprelu'.*Got 'jumpReLU'"):
            SAEConfig(architecture="jumpReLU")

    @pytest.mark.parametrize("bandwidth", [0.0, -0.1])
    def test_a_kernel_without_width(self, bandwidth):
        with pytest.raises(ValueError, match=rf"`SAEConfig\.bandwidth` must be above 0\. Got {bandwidth}"):
            SAEConfig(architecture="jumprelu", bandwidth=bandwidth)

    @pytest.mark.parametrize("prefixes", [(0.5, 0.25, 1.0), (0.5, 0.5, 1.0), (0.25, 0.5), (0.0, 1.0), (0.5, 2.0), ()])
    def test_prefixes_that_are_not_ascending_or_do_not_end_at_1(self, prefixes):
        with pytest.raises(ValueError, match=r"`SAEConfig\.matryoshka_prefixes` must be ascending.*end with 1\.0"):
            SAEConfig(architecture="matryoshka", matryoshka_prefixes=prefixes)

    def test_a_warm_start_with_another_gate(self):
        with pytest.raises(ValueError, match=r"architecture='gated'.*Got 'topk'"):
            Trial("gated", "sae", rows=site_rows(64, 8)).fresh(init=finished("topk", "sae"))

    @pytest.mark.parametrize(("kind", "of"), [("sae", "transcoder"), ("transcoder", "skip"), ("skip", "transcoder")])
    def test_a_warm_start_of_another_kind(self, kind, of):
        rows = site_rows(64, 8, 8)  # d_out = d_in, so that only the kind differs
        init = Trial("topk", of, rows=rows).learner.finish()
        with pytest.raises(ValueError, match="must be an SAE for an SAE, and a transcoder for a transcoder"):
            Trial("topk", kind, rows=rows).fresh(init=init)
