"""Data parallel: every rank has the whole SAE, and works out its share of each batch."""

from typing import Any

from torch import Tensor

from strata.distributed.outcomes import packed, unpacked
from strata.distributed.ranks import Ranks
from strata.sae.learner import Learner
from strata.sae.rules.base import Batch, Outcome, joined


class ReplicatedLearner(Learner):
    """A learner that is the same, bit for bit, on every rank.

    All ranks are given the whole batch. Each finds the outcome (selection, reconstruction, gradients) of its share of
    the rows, the outcomes are gathered, and every rank makes the same update from all of them, in the order of ranks.
    It is the training of one process whose `pieces.n_rows` are the share.

    Differs: DistributedDataParallel all-reduces dense gradients, 2·d·d_sae numbers a step; here what fired travels, 16
    bytes an entry and d numbers a row (`strata.distributed.outcomes`), and the order of the sums is fixed. Rules that
    choose from a whole batch (BatchTopK, Matryoshka) choose from each share instead.

    Args:
        ranks: that share the work.
        args: of `Learner`.
        kwargs: of `Learner`.
    """

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks = ranks
        for tensor in self._start():
            ranks.from_first_(tensor)

    def _start(self) -> list[Tensor]:
        """What ranks on unlike machines could have begun with a bit unlike."""
        return list(self.params.values())

    def _outcome(self, batch: Batch) -> Outcome:
        """Of the whole batch, from the shares."""
        shares = batch.slices(-(-len(batch.keep) // self.ranks.size))
        own = super()._outcome(shares[self.ranks.rank])
        letters = self.ranks.gathered(packed(own, shares[self.ranks.rank]))
        return joined(
            [
                own if rank == self.ranks.rank else unpacked(letter, share)
                for rank, (letter, share) in enumerate(zip(letters, shares, strict=True))
            ]
        )
