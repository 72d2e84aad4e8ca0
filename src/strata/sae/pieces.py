"""How many rows of a batch a step works on at once: all of them, or as many as the memory holds."""

from collections.abc import Callable

from strata.errors import UserError, is_out_of_memory
from strata.sae.rules.base import Batch, Outcome, joined


class Pieces:
    """Outcomes of batches, in pieces where the whole does not fit.

    A batch that runs out of memory is repeated in pieces half as large, and that size is kept. Sums are taken in the
    order of the rows, so that only rounding depends on the size; rules that choose from a whole batch (BatchTopK,
    Matryoshka) choose from each piece.

    Attributes:
        n_rows: of a piece; None is the whole batch.
        lines: what happened, for the log.
    """

    def __init__(self) -> None:
        self.n_rows: int | None = None
        self.lines: list[str] = []

    def outcome(self, batch: Batch, step: Callable[[Batch], Outcome]) -> Outcome:
        """Loss and gradients of the batch.

        Args:
            batch: all rows.
            step: gives those of a piece, and changes nothing that is trained.

        Raises:
            UserError: not even one row fits.
        """
        while True:
            pieces = [batch] if self.n_rows is None else batch.slices(self.n_rows)
            try:
                return joined([step(piece) for piece in pieces])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                largest = len(pieces[0].keep)
                if largest == 1:
                    raise UserError(
                        "The SAE's step must fit into the memory. It does not with one row at a time. Lower d_sae or"
                        " batch_size, or train on a larger device."
                    ) from error
            self.n_rows = largest // 2  # outside of `except`: the error holds the arrays that did not fit
            self.lines.append(
                f"out of memory: a step now works on {self.n_rows} rows at a time ({len(batch.keep)} before); results"
                " differ by rounding only, but for BatchTopK and Matryoshka, which choose from each piece"
            )
