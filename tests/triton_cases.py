"""Every Triton kernel against its PyTorch twin, and whole steps against the other kernels' and the dense oracle's.

Run by test_triton.py in a process of its own: under Triton's interpreter, or on a CUDA device.
"""

import copy
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from strata.config.layer_groups import Group
from strata.config.train import SAEConfig
from strata.kernels import backend, pytorch, reference, select, triton
from strata.kernels.entries import SparseEntries
from strata.kernels.operands import AdamRows, ByLatent, WholeRows
from strata.kernels.padded import PaddedEntries
from strata.sae import learner as learner_module
from strata.sae.learner import Learner
from strata.sae.rules.registry import RULES
from strata.sae.rules.threshold import ThresholdRule

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ARCHITECTURES = tuple(RULES)
SHAPES = [(1, 3, 8, 1), (3, 17, 20, 20), (3, 130, 300, 7), (2, 4, 1000, 33)]

if INTERPRETED:
    from triton.runtime.interpreter import InterpretedFunction

    # A kernel's call of a helper would patch all of triton.language again, which its own start has done; 25 ms each.
    InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    backend._module.cache_clear()
    monkeypatch.setenv("STRATA_KERNELS", "triton")
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)
    backend._module.cache_clear()


def weights(n_rows, d_in, d_sae):
    return torch.randn(n_rows, d_in), torch.randn(d_sae, d_in) / d_in**0.5, torch.randn(d_sae) * 0.1


def entries_of(n_rows, d_sae, share=0.3):
    """A random list with an empty row and a silent latent, a full row and a latent in all other rows."""
    mask = torch.rand(n_rows, d_sae) < share
    mask[:, 0] = True
    mask[-1] = True
    mask[n_rows // 2], mask[:, d_sae // 2] = False, False
    rows, latents = mask.nonzero(as_tuple=True)
    return SparseEntries(rows, latents, n_rows, d_sae), torch.randn(len(rows))


def padded(entries, n_more=9, n_dropped=0):
    """The same list with padding behind it, and the first entries turned into padding."""
    more = torch.full((n_more,), entries.n_rows), torch.full((n_more,), entries.d_sae)
    latents = torch.cat([entries.latents, more[1]])
    latents[:n_dropped] = entries.d_sae
    return PaddedEntries(torch.cat([entries.rows, more[0]]), latents, entries.n_rows, entries.d_sae)


class NothingIsReadBack(TorchDispatchMode):
    """Refuses what would make the host wait for a CUDA device: reading a number, results whose length is in the data,
    and numbers that are copied there from the host's memory.
    """

    READING = ("_local_scalar_dense", "item", "is_nonzero", "equal")
    COUNTING = ("nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive")
    COPYING = ("lift_fresh", "lift_fresh_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith(("index", "_index")) and any(
            part is not None and part.dtype in (torch.bool, torch.uint8)
            for part in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        by_value = name in ("masked_fill", "masked_fill_") and isinstance(args[2], torch.Tensor)
        counted = name == "repeat_interleave" and func._overloadname == "Tensor"
        if name in self.READING + self.COUNTING + self.COPYING or masks or by_value or counted:
            raise AssertionError(f"the host waits: {func}")
        return func(*args, **(kwargs or {}))


def with_tail(values, n_more=9):
    return torch.cat([values, torch.full((n_more,), 7.0)])


class TestSelection:
    @pytest.mark.parametrize("score_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES)
    def test_topk(self, n_rows, d_in, d_sae, k, score_dtype):
        z, weight, bias = weights(n_rows, d_in, d_sae)
        values, latents = triton.topk(z, weight, bias, k, score_dtype=score_dtype)
        exact = z @ weight.t() + bias
        torch.testing.assert_close(values, exact.gather(1, latents))
        assert all(len(set(row)) == k for row in latents.tolist())
        scores = next(part for _, part in pytorch.scores(z, weight, bias, dtype=score_dtype))
        wanted = scores.topk(k).values.sort(-1).values
        torch.testing.assert_close(scores.gather(1, latents).sort(-1).values, wanted, rtol=1e-2, atol=1e-2)
        if score_dtype == torch.float32:
            torch.testing.assert_close(values.sort(-1).values, wanted)

    @pytest.mark.parametrize("level", [0.0, -3.0, 2.5])
    def test_ties_give_k_different_latents(self, level):
        z, weight, bias = torch.zeros(3, 4), torch.zeros(50, 4), torch.full((50,), level)
        bias[::7] = level + 1  # 8 winners, and 3 of those that tie
        values, latents = triton.topk(z, weight, bias, 11, score_dtype=torch.float32)
        assert all(len(set(row)) == 11 and set(range(0, 50, 7)) <= set(row) for row in latents.tolist())
        assert values.sort(-1).values[0].tolist() == [level] * 3 + [level + 1] * 8

    def test_no_rows(self):
        values, latents = triton.topk(*weights(0, 4, 30), 3, score_dtype=torch.float32)
        assert values.shape == latents.shape == (0, 3)

    def test_what_a_program_cannot_hold_is_left_to_pytorch(self):
        assert triton._groups(24576, 32) == (1024, 24)
        assert triton._groups(65536, 64) == (2048, 32)
        assert triton._groups(20_000, 9_000) is None
        z, weight, bias = weights(2, 3, 9_000)
        values, _ = triton.topk(z, weight, bias, 8_500, score_dtype=torch.float32)
        torch.testing.assert_close(values.sort().values, (z @ weight.t() + bias).topk(8_500).values.sort().values)

    @pytest.mark.parametrize("per_latent", [False, True])
    @pytest.mark.parametrize("score_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES[:3])
    def test_above(self, n_rows, d_in, d_sae, k, score_dtype, per_latent, monkeypatch):
        monkeypatch.setattr(triton, "_CHUNK_BYTES", 2 * d_sae * 4)
        monkeypatch.setattr(triton, "_SCORES", 128)
        z, weight, bias = weights(n_rows, d_in, d_sae)
        floor = torch.rand(d_sae) - 0.2 if per_latent else torch.tensor(0.3)
        found = triton.above(z, weight, bias, floor, score_dtype=score_dtype)
        rows, latents = (z @ weight.t() + bias > floor).nonzero(as_tuple=True)
        assert torch.equal(found[1], rows)
        assert torch.equal(found[2], latents)
        torch.testing.assert_close(found[0], (z @ weight.t() + bias)[rows, latents])

    def test_a_list_that_is_too_short_holds_what_came_first_and_tells_how_many_there_were(self):
        z, weight, bias = weights(4, 5, 60)
        pre, rows, latents = triton.above(z, weight, bias, torch.tensor(0.1), score_dtype=torch.float32)
        *short, count = triton.above_in(20, z, weight, bias, torch.tensor(0.1), score_dtype=torch.float32)
        assert int(count) == len(pre) > 20
        assert torch.equal(short[1], rows[:20])
        assert torch.equal(short[2], latents[:20])
        *long, count = triton.above_in(len(pre) + 5, z, weight, bias, torch.tensor(0.1), score_dtype=torch.float32)
        assert long[1][-5:].tolist() == [4] * 5
        assert long[2][-5:].tolist() == [60] * 5
        assert long[0][-5:].tolist() == [0.0] * 5

    @pytest.mark.parametrize("kernels", [pytorch, triton])
    @pytest.mark.parametrize("size", [1.0, 300.0])
    def test_near_the_floor_a_score_in_bf16_is_not_trusted(self, kernels, size):
        """Every score is a hair above its floor, or below: less than what bf16 rounds away."""
        z, weight, _ = weights(1, 64, 200)
        z *= size
        side = torch.where(torch.arange(200) % 2 == 0, 1e-4, -1e-4) * size
        for floor in (torch.zeros(200), torch.rand(200) * size):
            bias = floor + side - (z @ weight.t())[0]
            _, _, latents = kernels.above(z, weight, bias, floor, score_dtype=torch.bfloat16)
            assert latents.tolist() == list(range(0, 200, 2))

    def test_what_is_far_below_the_floor_is_not_computed_again(self):
        z, weight, bias = weights(50, 64, 40)
        limits = pytorch.lowered(torch.tensor(1.0), z, weight, bias, score_dtype=torch.bfloat16)
        assert limits.dtype == torch.bfloat16
        assert bool((limits < 1).all())
        assert bool((limits > 0.9).all())

    def test_nothing_above(self):
        found = triton.above(*weights(3, 4, 10), torch.tensor(1e6), score_dtype=torch.bfloat16)
        assert [len(part) for part in found] == [0, 0, 0]

    @pytest.mark.parametrize("guess", [None, 0.0, 0.4])
    def test_batch_topk_in_a_list_of_fixed_length(self, guess):
        z, weight, bias = weights(5, 6, 40)
        keep = torch.tensor([1.0, 1, 0, 1, 1])
        capacity = select.Capacity().fit(5, k=3, d_sae=40, device=DEVICE)
        floor = None if guess is None else torch.tensor(guess)
        pre, entries, after = select.select_batch_topk_in(capacity, z, weight, bias, k=3, keep=keep, floor=floor)
        wanted, exact, threshold = select.select_batch_topk(z, weight, bias, n_entries=12, keep=keep)
        listed = entries.latents < 40
        torch.testing.assert_close(pre[listed], wanted)
        assert torch.equal(entries.rows[listed], exact.rows)
        assert torch.equal(entries.latents[listed], exact.latents)
        assert not pre[~listed].any()
        torch.testing.assert_close(after, 0.9 * threshold)

    def test_a_floor_that_was_too_high_falls(self):
        capacity = select.Capacity().fit(5, k=3, d_sae=40, device=DEVICE)
        z, weight, bias = weights(5, 6, 40)
        high = torch.tensor(2.5)
        pre, _, after = select.select_batch_topk_in(capacity, z, weight, bias, k=3, keep=torch.ones(5), floor=high)
        assert int((pre > 0).sum()) < 15
        assert after.item() == 1.25


@pytest.mark.parametrize("d", [3, 17, 130])
class TestEntries:
    def test_decode_and_residual(self, d):
        entries, values = entries_of(7, 40)
        weight, target, keep = torch.randn(40, d), torch.randn(7, d), torch.tensor([1.0, 0, 1, 1, 1, 0, 1])
        lists = values, entries.latents, entries.row_starts, weight
        torch.testing.assert_close(triton.decode(*lists), pytorch.decode(*lists))
        lists = values, entries.rows, *lists[1:], target, keep
        for found, wanted in zip(triton.residual(*lists), pytorch.residual(*lists), strict=True):
            torch.testing.assert_close(found, wanted)

    def test_dot(self, d):
        entries, _ = entries_of(7, 40)
        a, weight = torch.randn(7, d), torch.randn(40, d)
        found = triton.dot(a, entries.rows, weight, entries.latents)
        torch.testing.assert_close(found, (a @ weight.t())[entries.rows, entries.latents])

    def test_sums_per_latent(self, d):
        entries, values = entries_of(20, 30)
        order, starts = triton.by_latent(entries.latents, 30)
        wanted_order, wanted_starts = pytorch.by_latent(entries.latents, 30)
        assert torch.equal(order, wanted_order)
        assert torch.equal(starts, wanted_starts)
        listed = ByLatent(entries.rows[order], values[order], starts, torch.randn(20, d))
        torch.testing.assert_close(triton.row_sums(listed), pytorch.row_sums(listed))

    def test_padding_counts_nowhere(self, d):
        entries, values = entries_of(7, 40)
        n = 2  # the first entries are dropped: padding among entries
        long, amounts = padded(entries, n_dropped=n), with_tail(values)
        entries, values = SparseEntries(entries.rows[n:], entries.latents[n:], 7, 40), values[n:]
        weight, target, keep, a = torch.randn(40, d), torch.randn(7, d), torch.rand(7), torch.randn(7, d)
        torch.testing.assert_close(long.decode(amounts, weight), entries.decode(values, weight))
        left, dots = long.residual(amounts, weight, target, keep)
        wanted_left, wanted_dots = entries.residual(values, weight, target, keep)
        torch.testing.assert_close(left, wanted_left)
        torch.testing.assert_close(dots[n:-9], wanted_dots)
        assert not dots[:n].any()
        assert not dots[-9:].any()
        assert not long.dot(a, weight)[-9:].any()
        assert long.per_row(keep)[-9:].tolist() == [0.0] * 9
        torch.testing.assert_close(long.per_row(keep)[n:-9], entries.per_row(keep))
        torch.testing.assert_close(long.weight_gradient(amounts, a), entries.weight_gradient(values, a))
        torch.testing.assert_close(long.sum_by_latent(amounts), entries.sum_by_latent(values))
        assert torch.equal(long.fired(torch.where(long.latents < 40, amounts, 0.0)), entries.fired(values))

    @pytest.mark.parametrize("unit_rows", [False, True])
    @pytest.mark.parametrize("n_extra", [0, 3])
    def test_adam(self, d, unit_rows, n_extra):
        entries, amounts = entries_of(18, 12)
        silent = 6  # entries_of leaves it out
        order, starts = pytorch.by_latent(entries.latents, 12)
        number_of = torch.full((12,), -1, dtype=torch.int32)
        number_of[[2, silent, 7][:n_extra]] = torch.arange(n_extra, dtype=torch.int32)
        listed = ByLatent(entries.rows[order], amounts[order], starts, torch.randn(18, d))
        beside = WholeRows(torch.randn(n_extra, d), number_of)
        first, second = torch.randn(12, d) * 0.1, torch.rand(12, d)
        weight, last = torch.nn.functional.normalize(torch.randn(12, d)), torch.arange(12, dtype=torch.int32)
        clock = {"rate": torch.tensor(0.01), "step": torch.tensor(13, dtype=torch.int32)}
        before = weight.clone()
        outcomes = []
        for kernels in (triton, pytorch):
            state = [t.clone() for t in (weight, first, second, last)]
            kernels.adam_rows_(AdamRows(*state, unit_rows), listed, beside, **clock)
            outcomes.append(state)
        for found, wanted in zip(*outcomes, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-6)
        if not n_extra:
            assert torch.equal(outcomes[0][0][silent], before[silent])
            assert outcomes[0][3][silent] == last[silent]

    def test_two_runs_are_equal_bit_for_bit(self, d):
        entries, values = entries_of(20, 30)
        inputs = torch.randn(20, d)
        assert torch.equal(entries.weight_gradient(values, inputs), entries.weight_gradient(values, inputs))


def test_a_row_without_direction_becomes_a_unit_vector():
    """Adam's first step is the learning rate along the gradient's sign: here exactly to 0."""
    weight, gradient = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    moments = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    weight.zero_()
    none = torch.zeros(0, dtype=torch.int64)
    triton.adam_rows_(
        AdamRows(weight, *moments, torch.zeros(1, dtype=torch.int32), unit_rows=True),
        ByLatent(none, torch.zeros(0), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2)),
        WholeRows(gradient, torch.zeros(1, dtype=torch.int32)),
        rate=torch.tensor(0.1),
        step=torch.tensor(1, dtype=torch.int32),
    )
    assert weight.tolist() == [[1.0, 0.0]]


class TestSteps:
    def learner(self, architecture, monkeypatch, **settings) -> Learner:
        monkeypatch.setenv("STRATA_KERNELS", "pytorch")
        generator = torch.Generator(DEVICE).manual_seed(3)
        sample = torch.randn(64, 5, generator=generator) + 2
        config = SAEConfig(expansion_factor=4, k=3, batch_size=8, architecture=architecture, lr=1e-3, **settings)
        return Learner(config, n_steps=10, sample=sample)

    def rows(self):
        return torch.randn(8, 5, generator=torch.Generator(DEVICE).manual_seed(10)) + 2

    @pytest.mark.parametrize(
        ("architecture", "dense_share"),
        [
            *((name, 1.0) for name in ("topk", "batchtopk", "jumprelu", "gated")),
            *(pytest.param(name, 1.0, marks=pytest.mark.slow) for name in ("matryoshka", "relu")),
            ("jumprelu", 0.0),
        ],
    )
    def test_steps_equal_those_of_pytorchs_kernels(self, architecture, dense_share, monkeypatch):
        found = {}
        for kernels in ("pytorch", "triton"):
            learner = self.learner(architecture, monkeypatch, dead_feature_window=1)
            if isinstance(learner.rule, ThresholdRule):
                learner.rule.dense_share = dense_share  # 0: all entries are looked at; 1: they are listed
            monkeypatch.setenv("STRATA_KERNELS", kernels)
            for _ in range(2):
                learner.step(self.rows())
            found[kernels] = learner
        assert select.lists_are_padded(DEVICE)
        for name, wanted in found["pytorch"].params.items():
            torch.testing.assert_close(found["triton"].params[name], wanted, rtol=1e-3, atol=2e-5)
        assert torch.equal(found["triton"].last_fired_step, found["pytorch"].last_fired_step)
        wanted = found["pytorch"].statistics()
        assert found["triton"].statistics() == pytest.approx(wanted, rel=1e-3)

    def test_a_padded_step_stops_and_goes_on(self, monkeypatch):
        """Capacity and floor are in the checkpoint."""
        whole = self.learner("batchtopk", monkeypatch)
        monkeypatch.setenv("STRATA_KERNELS", "triton")
        whole.step(self.rows())
        state = copy.deepcopy(whole.state())
        resumed = self.learner("batchtopk", monkeypatch)
        monkeypatch.setenv("STRATA_KERNELS", "triton")
        resumed.load_state(state)
        for learner in (whole, resumed):
            learner.step(self.rows())
        assert all(torch.equal(whole.params[name], resumed.params[name]) for name in whole.params)
        assert resumed.rule.state()["capacity"] == whole.rule.state()["capacity"]
        assert resumed.rule.state()["capacity"]["size"] == 8 * 20

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_gradients_are_the_oracles(self, architecture, monkeypatch):
        learner = self.learner(architecture, monkeypatch, sparsity_coefficient=0.01)
        monkeypatch.setenv("STRATA_KERNELS", "triton")
        x = self.rows()
        batch = learner._batch(x, None, None)
        outcome = learner.rule.step(batch, learner.params, score_dtype=torch.float32)
        params = {name: tensor.clone().requires_grad_() for name, tensor in learner.params.items()}
        config = learner.config
        objective = reference.Objective(
            architecture=architecture,
            k=config.k,
            coefficient=0.01 if architecture in ("jumprelu", "relu", "gated") else 0.0,
            bandwidth=config.bandwidth,
            prefixes=tuple(config.matryoshka_prefixes),
        )
        wanted = reference.losses(objective, params, learner.normalization.apply(x), batch.keep.bool())
        wanted.total.backward()
        torch.testing.assert_close(outcome.loss + outcome.penalty, wanted.total.detach(), rtol=1e-4, atol=1e-5)
        for name, gradient in outcome.gradients.items():
            dense = gradient if isinstance(gradient, torch.Tensor) else gradient.dense()
            torch.testing.assert_close(dense, params[name].grad, rtol=1e-3, atol=1e-5)


class TestNobodyWaits:
    """The recorded part of a step, and what the host does before it."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(learner_module, "REVIVAL_REFRESH_STEPS", 1)

    def begun(
        self, architecture, monkeypatch, *, kind="sae", dense_share=1.0, micro_rows=None, **settings
    ) -> tuple[Learner, list]:
        """A learner after three steps, the last one with Triton's kernels, and a batch of its rows."""
        generator = torch.Generator(DEVICE).manual_seed(3)
        x = torch.randn(64, 3, generator=generator) + 2
        config = SAEConfig(
            expansion_factor=4, k=1, batch_size=4, architecture=architecture, dead_feature_window=1, **settings
        )
        layers = (torch.arange(64) % 2).to(torch.uint8)
        given = {
            "sae": {},
            "transcoder": {"target_sample": x * 2, "target_site": "mlp", "skip": True},
            "group": {"group": Group(sites=("a", "b")), "layers": layers},
        }[kind]
        learner = Learner(config, n_steps=50, sample=x, **given)
        learner.pieces.n_rows = micro_rows
        if isinstance(learner.rule, ThresholdRule):
            learner.rule.dense_share = dense_share
        rows = [x[:4], x[:4] * 2 if kind == "transcoder" else None, layers[:4] if kind == "group" else None]
        for kernels in ("pytorch", "pytorch", "triton"):
            monkeypatch.setenv("STRATA_KERNELS", kernels)
            learner.step(*rows)
        return learner, rows

    @pytest.mark.parametrize(
        ("architecture", "settings"),
        [
            *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("matryoshka", "jumprelu", "relu", "gated")),
            ("jumprelu", {"dense_share": 0.0}),
            ("batchtopk", {"kind": "transcoder", "micro_rows": 2}),
            ("topk", {"kind": "group", "revival": "ghost"}),
        ],
    )
    def test_a_step_reads_nothing_back(self, architecture, settings, monkeypatch):
        learner, rows = self.begun(architecture, monkeypatch, **settings)
        assert 0 < len(learner.state()["dead_latents"]) < len(learner.dead_latents) == 12
        fired = learner.last_fired_step.clone()
        with NothingIsReadBack():
            learner.before_device_step()
            learner.device_step(*rows)
        learner.after_device_step(*rows)
        assert not torch.equal(learner.last_fired_step, fired)
        assert learner.statistics()["loss"] > 0

    def test_what_would_wait_is_seen(self):
        x, long = torch.ones(3), torch.arange(3)
        waiting = [
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: int(long[1]),
            lambda: x[x > 0],
            (x > 0).nonzero,
            lambda: torch.bincount(long),
            lambda: torch.tensor(2.0, device=DEVICE) + x,
            lambda: torch.as_tensor(2.0, device=DEVICE) + x,
            lambda: x.masked_fill_(x > 0, x[0]),
            lambda: x.repeat_interleave(long),
        ]
        for one in waiting:
            with pytest.raises(AssertionError, match="the host waits"), NothingIsReadBack():
                one()

    @pytest.mark.parametrize("architecture", ["batchtopk", "gated"])
    def test_what_the_device_changes_stays_where_it_is(self, architecture, monkeypatch):
        """A recorded step writes to the same memory in every replay."""
        learner, rows = self.begun(architecture, monkeypatch)
        before = addresses(learner)
        assert {"/rule/steering/coefficient", "/rule/floor"} & set(before)
        learner.step(*rows)
        assert addresses(learner) == before

    def test_a_checkpoint_of_padded_lists_goes_on_with_exact_ones(self, monkeypatch):
        learner, rows = self.begun("topk", monkeypatch)
        state, n_dead = copy.deepcopy(learner.state()), int((learner.dead_latents < 12).sum())
        assert 0 < n_dead < len(learner.dead_latents) == 12
        for kernels, length in (("triton", 12), ("pytorch", n_dead)):
            monkeypatch.setenv("STRATA_KERNELS", kernels)
            learner.load_state(copy.deepcopy(state))
            assert len(learner.dead_latents) == length
            assert torch.equal(learner.state()["dead_latents"], state["dead_latents"])
            learner.step(*rows)


def addresses(learner: Learner) -> dict[str, int]:
    """Where the tensors of a learner's state lie, but rows that the host keeps."""
    state = {name: part for name, part in learner.state().items() if name not in ("recent", "dead_latents")}
    own = {"dead": learner.dead_latents, "now": learner._now, "lr": learner._lr}
    found, left = {}, [("", state | own)]
    while left:
        path, value = left.pop()
        if isinstance(value, torch.Tensor):
            found[path] = value.data_ptr()
        elif isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{path}/{name}", part) for name, part in parts]
    return found
