"""One SAE whose latents lie on several ranks: weights, moments and selection are local; values and reconstructions
travel. The scheme is that of Gao et al. 2024 (appendix on systems), with sums in a fixed order.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.distributed.nested import with_leaves
from strata.distributed.ranks import Ranks
from strata.errors import UserError
from strata.kernels import select
from strata.kernels.entries import SparseEntries
from strata.sae import revival
from strata.sae.folding import GroupSpaces, Spaces
from strata.sae.group import GroupSAE
from strata.sae.learner import REVIVAL_LATENTS, Learner
from strata.sae.model import SAE, Transcoder
from strata.sae.optim import UnitRowAdam
from strata.sae.rules.base import Batch, Outcome, joined
from strata.sae.tally import Tally

_PER_LATENT = ("W_enc", "W_dec", "b_enc")


class LatentShard(Learner):
    """A rank's share of the latents of a TopK SAE in training.

    All ranks are given the whole batch. A rank's candidates are the k largest of its own latents in each row; their
    values are gathered, and of all of them the k largest win (of equal ones that of the lower latent). Each rank
    decodes its winners, the parts are added in the order of ranks, and all that follows is local but b_dec's gradient.
    A step sends 4·k bytes and 8·d_out bytes a row, whatever the number of latents.

    Args:
        ranks: that share the latents: d_sae/R each, rounded up.
        args: of `Learner`. The weights are made on the CPU, whole, before each rank takes its share.
        kwargs: of `Learner`.

    Raises:
        UserError: another gate than TopK, resampling, or fewer latents than ranks can share.
    """

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any) -> None:
        device = kwargs["sample"].device
        for name in ("sample", "target_sample", "layers"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].cpu()
        super().__init__(*args, **kwargs)
        self.ranks = ranks
        self._check()
        share = -(-self.d_sae // ranks.size)  # as torch.distributed.tensor.Shard divides
        self.first = ranks.rank * share
        self.n_own = min(share, self.d_sae - self.first)
        own = slice(self.first, self.first + self.n_own)
        mine = {name: whole[own].clone() if name in _PER_LATENT else whole for name, whole in self.params.items()}
        self.params = {name: tensor.to(device) for name, tensor in mine.items()}
        for name, tensor in self.params.items():
            if name not in _PER_LATENT:
                ranks.from_first_(tensor)
        self.optimizer = UnitRowAdam(self.params, rates=self.rule.rates)
        self.spaces = _moved(self.spaces, device)
        self.last_fired_step = torch.zeros(self.n_own, dtype=torch.int32, device=device)
        self.dead_latents = self.dead_latents.to(device)  # numbers within the share
        self._n_dead: list[int] = [0] * ranks.size
        self._now = self._now.to(device)
        self._tally, self._layer_rows = Tally(device), self._layer_rows.to(device)

    def _check(self) -> None:
        config, size = self.config, self.ranks.size
        if config.architecture != "topk":
            raise UserError(
                f'`parallel` "latents" is for architecture "topk". Got {config.architecture!r}. Use "data".'
            )
        if self._method == "resample":
            raise UserError('`revival` "resample" needs all latents in one place. Use "lift", or parallel "data".')
        if (size - 1) * -(-self.d_sae // size) >= self.d_sae:
            raise UserError(
                f'`parallel` "latents" needs latents for every process. Got {self.d_sae} for {size}. Start fewer.'
            )

    def _outcome(self, batch: Batch) -> Outcome:
        """Of all rows, in the own latents."""
        n_rows = self.pieces.n_rows  # as given: ranks that ran out of memory one by one would wait for each other
        pieces = [batch] if n_rows is None else batch.slices(n_rows)
        return joined([self._piece(piece) for piece in pieces])

    def _piece(self, batch: Batch) -> Outcome:
        p = self.params
        pre, latents = self._candidates(batch)
        rows, places = self._winners(pre).nonzero().unbind(1)
        entries = SparseEntries(rows, latents[rows, places], len(pre), self.n_own)
        values = pre[rows, places].relu() * entries.per_row(batch.keep)
        decoded = self.ranks.ordered_sum(entries.decode(values, p["W_dec"]))
        residual = (batch.target - decoded) * batch.keep.unsqueeze(1)
        left = residual, entries.dot(residual, p["W_dec"])
        return self.rule.outcome(pre[rows, places], values, left, entries, batch=batch, params=p)

    def _candidates(self, batch: Batch) -> tuple[Float[Tensor, "rows own_k"], Int[Tensor, "rows own_k"]]:
        """The largest own pre-activations of each row, descending, and their latents, of equal ones the lower first."""
        k = min(self.rule.k, self.n_own)
        p = self.params
        pre, latents = select.select_topk(batch.inputs, p["W_enc"], p["b_enc"], k, score_dtype=self.score_dtype)
        latents, order = latents.sort(1)
        pre, order = torch.sort(pre.gather(1, order), dim=1, descending=True, stable=True)
        return pre, latents.gather(1, order)

    def _winners(self, pre: Float[Tensor, "rows own_k"]) -> Bool[Tensor, "rows own_k"]:
        """Which own candidates are among the k largest of all ranks'."""
        n_rows, own_k = pre.shape
        padded = torch.nn.functional.pad(pre, (0, self.rule.k - own_k), value=-torch.inf)
        everyone = self.ranks.equal_gathered(padded).permute(1, 0, 2).reshape(n_rows, -1)
        best = torch.sort(everyone, dim=1, descending=True, stable=True).indices[:, : self.rule.k]
        won = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, best, True)
        first = self.ranks.rank * self.rule.k
        return won[:, first : first + own_k]

    def _through_encoder(self, d_scores: Float[Tensor, " own"]) -> Float[Tensor, " d_in"]:
        return self.ranks.ordered_sum(super()._through_encoder(d_scores))

    def _revive(self, batch: Batch, outcome: Outcome) -> Tensor:
        """The term is one of all dead latents: their weights (at most 1,024 rows) are gathered, every rank computes all
        of it, and each takes the gradients of its own.
        """
        method = revival.METHODS.get(self._method)
        if method is None or sum(self._n_dead) == 0:
            return torch.zeros_like(outcome.loss)
        p, own = self.params, self.dead_latents
        d_in, d_out = p["W_enc"].shape[1], p["W_dec"].shape[1]
        weights = torch.cat([p["W_enc"][own], p["W_dec"][own], p["b_enc"][own].unsqueeze(1)], 1)
        everyone = torch.cat(self.ranks.gathered(weights))
        W_enc, W_dec, bias = torch.split(everyone, [d_in, d_out, 1], 1)
        first = sum(self._n_dead[: self.ranks.rank])
        dead = revival.DeadLatents(
            torch.arange(len(everyone), device=own.device), W_enc.contiguous(), W_dec.contiguous(), bias.squeeze(1)
        )
        left = revival.Unexplained.of(batch, outcome)
        extra = method(left, dead, coefficient=self.config.revival_coefficient)
        if self._method == "lift":
            silent = (self._silent_steps()[own] > self.window_steps).float()
            revival.lift_(p["b_enc"], own, silent, rate=self.optimizer.rate_of("b_enc", self._rate()))
        extra.part(first, first + len(own)).add_to(outcome.gradients, own, bias="b_enc")
        return extra.value

    def _rate(self) -> float:
        return self.schedule.at(self.n_steps_done)

    def _look_for_dead(self) -> None:
        """The own part of the dead latents of all ranks."""
        self._list_dead(self._longest_silent_of_all())

    def _longest_silent_of_all(self) -> Int[Tensor, " dead"]:
        """The dead latents of all ranks, by their numbers in the whole SAE, ascending; the longest silent ones where
        there are more than fit, of equal ones the lower.
        """
        silent = self._all_silent_steps()
        order = torch.sort(silent, descending=True, stable=True)
        n_fit = min(REVIVAL_LATENTS, self.d_sae)
        return order.indices[:n_fit][order.values[:n_fit] > self.window_steps].sort().values

    def _list_dead(self, latents: Int[Tensor, " dead"]) -> None:
        """Keep the own ones of a list that is the same on every rank."""
        share = -(-self.d_sae // self.ranks.size)
        self._n_dead = torch.bincount(latents // share, minlength=self.ranks.size).tolist()
        self.dead_latents = latents[latents // share == self.ranks.rank] - self.first

    def _all_silent_steps(self) -> Int[Tensor, " d_sae"]:
        return torch.cat(self.ranks.gathered(self._silent_steps()))

    def statistics(self) -> dict[str, float]:
        """See `Learner.statistics`; by all ranks together."""
        sums = self._tally.sums
        sums[2:3] = self.ranks.ordered_sum(sums[2:3])  # active latents
        return super().statistics()

    @torch.no_grad()
    def finish(self, metadata: dict[str, Any] | None = None) -> SAE | Transcoder | GroupSAE:
        """The whole SAE, on the CPU of every rank; see `Learner.finish`. By all ranks together."""
        params, spaces = self.params, self.spaces
        self.params = {
            name: self._whole(tensor) if name in _PER_LATENT else tensor.cpu() for name, tensor in params.items()
        }
        self.spaces = _moved(spaces, torch.device("cpu"))
        try:
            return super().finish(metadata)
        finally:
            self.params, self.spaces = params, spaces

    def _whole(self, own: Float[Tensor, "own ..."]) -> Float[Tensor, "d_sae ..."]:
        """All ranks' latents on the CPU: one rank's after the other's, so that no device holds more than one share."""
        share = -(-self.d_sae // self.ranks.size)
        parts: list[Tensor] = []
        for rank in range(self.ranks.size):
            n_latents = min(share, self.d_sae - rank * share)
            part = own.contiguous() if rank == self.ranks.rank else own.new_empty(n_latents, *own.shape[1:])
            self.ranks.from_rank_(part, rank=rank)
            parts.append(part.cpu())
        return torch.cat(parts)

    def per_latent(self, path: tuple[Any, ...]) -> bool:
        """Whether a tensor of `state`, named by its path, is this rank's part of one with a row per latent."""
        if path[0] == "optimizer" and path[1] == "adam":
            others = [name for name in self.params if name not in self.optimizer.rows]
            return path[-1] in ("exp_avg", "exp_avg_sq") and others[path[3]] in _PER_LATENT
        return (
            path == ("last_fired_step",)
            or path[:2] == ("optimizer", "rows")
            or (path[0] == "params" and path[1] in _PER_LATENT)
        )

    def state(self) -> dict[str, Any]:
        """As of a `Learner` with this rank's latents; the dead ones by their numbers in the whole SAE."""
        dead = torch.cat(self.ranks.gathered(self.dead_latents + self.first))
        return {**super().state(), "dead_latents": dead}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, whose tensors are this rank's parts."""
        super().load_state(state)
        self._list_dead(state["dead_latents"].to(self.device))


def _moved(spaces: Spaces | GroupSpaces, device: torch.device) -> Spaces | GroupSpaces:
    return spaces.loaded(with_leaves(spaces.state(), lambda _, one: one.to(device) if isinstance(one, Tensor) else one))
