"""From a way to train to its quote."""

from collections.abc import Sequence

from strata.config.plan import PlanOptions
from strata.costs.step import Rates
from strata.plan.measuring import GROUPING_TOKENS, grouping_seconds, held_out_seconds, report_seconds
from strata.plan.quote import COLLECTING, Quote, price_per_second
from strata.plan.recording import checkpoint_seconds, preparing_seconds
from strata.plan.room import STORE_HELD_OUT, disk_of, memory_of, placed, too_large
from strata.plan.rows import RowShape, Source, copied_bytes, row_shape, waiting_seconds
from strata.plan.saes import PlannedSAE, busiest, step_bytes, step_flops, step_seconds
from strata.plan.subject import Subject


class Pricing:
    """Quotes for ways of one training on one machine.

    Args:
        subject: the training.
        rates: of the machine.
        options: price and numbers of devices.
        free_bytes: room on the disk; None where it is not this machine's.
    """

    def __init__(self, subject: Subject, rates: Rates, options: PlanOptions, *, free_bytes: float | None) -> None:
        self.subject, self.rates, self.options, self._free_bytes = subject, rates, options, free_bytes

    def quote(
        self,
        name: str,
        source: Source,
        saes: Sequence[PlannedSAE] | None = None,
        *,
        n_devices: int = 1,
        exists: bool = False,
    ) -> Quote:
        """The price of one way.

        With several devices the language model's tokens and the SAEs are spread evenly, and passing rows from one to
        another is not counted: the least that it can take.

        Args:
            name: in words.
            source: where rows come from.
            saes: what is trained; None is what the description says.
            n_devices: that share the work.
            exists: the store is there already.
        """
        subject = self.subject
        own = saes is None
        saes = subject.saes if saes is None else saes
        shape = subject.shape() if own else row_shape(saes, subject.widths)
        sites = list(shape.widths)
        on_this = busiest(saes, n_devices=n_devices)
        batch_size, n_epochs, n_steps = subject.config.sae.batch_size, subject.config.sae.num_epochs, subject.n_steps
        n_forwarded = 0 if exists else subject.n_rows * (n_epochs if source == "stream" else 1)
        forward = subject.model.forward_flops(sites)
        memory = memory_of(subject, shape, source, on_this, exists=exists)
        ram, device = placed(memory, source, self.rates)
        disk = disk_of(subject, shape, source, saes, exists=exists)
        return Quote(
            name=name,
            source=source,
            n_devices=n_devices,
            n_saes=len(saes),
            n_sites=len({site for sae in saes for site in sae.sites}),
            lm_flops=0.0 if exists else None if forward is None else n_forwarded * forward,
            sae_flops=n_steps * step_flops(saes, batch_size=batch_size),
            n_bytes=self._moved(shape, source, saes, exists=exists),
            ram_bytes=ram,
            device_bytes=device,
            disk_bytes=disk,
            seconds=self._seconds(shape, source, saes, on_this, n_devices=n_devices, exists=exists),
            price_per_second=price_per_second(self.options, n_devices=n_devices),
            excesses=too_large(ram, device, disk, self.rates, free_bytes=self._free_bytes),
        )

    def _seconds(self, shape: RowShape, source: Source, saes: Sequence[PlannedSAE], on_this: Sequence[PlannedSAE],
                 *, n_devices: int, exists: bool) -> dict[str, float | None]:  # fmt: skip
        subject, rates, config = self.subject, self.rates, self.subject.config
        n_epochs, n_rows, trained_rows = config.sae.num_epochs, subject.n_rows, subject.n_steps * config.sae.batch_size
        sites = list(shape.widths)
        forward = subject.model.forward_seconds(sites, rates)
        forward = None if forward is None else forward / n_devices
        parts: dict[str, float | None] = {}
        parts["start"] = self.rates.start_seconds + subject.model.weight_bytes / rates.disk_read_bytes_per_second
        if config.groups == "auto":
            n_measured = min(GROUPING_TOKENS, n_rows)
            parts["finding groups"] = grouping_seconds(
                subject.model, subject.layers, rates, n_tokens=n_measured, d_in=subject.widths[subject.layers[0]]
            )
        if source not in ("stream", "collected") and not exists:
            parts |= self._collecting(shape, source, forward)
        elif not exists:
            parts["tokenising"] = self._tokenising(forward, n_epochs=n_epochs if source == "stream" else 1)
        if source == "collected":
            parts["language model"] = None if forward is None else n_rows * forward
        waiting = waiting_seconds(shape, source, rates, forward=forward, itemsize=subject.model.itemsize,
                                  n_rows=n_rows, n_epochs=n_epochs)  # fmt: skip
        for part, spent in waiting.items():
            parts[part] = None if spent is None else trained_rows * spent
        parts["SAE steps"] = subject.n_steps * step_seconds(on_this, rates, batch_size=config.sae.batch_size)
        parts["preparing"] = preparing_seconds(subject, on_this, rates)
        parts["held-out rows"] = held_out_seconds(subject, saes, rates)
        parts["checkpoints"] = checkpoint_seconds(subject, saes, rates)
        if config.report:
            parts |= report_seconds(subject.model, saes, rates, n_tokens=config.held_out_tokens,
                                    targets=subject.targets)  # fmt: skip
        if exists and subject.model.lm is None:  # without the model it is not evaluated, and the run goes on
            parts = {part: spent for part, spent in parts.items() if spent is not None}
        return parts

    def _tokenising(self, forward: float | None, *, n_epochs: int) -> float | None:
        """Of a text that is counted first all of it; else what the language model does not hide."""
        once = self.subject.n_rows / self.rates.tokenised_per_second
        if self.subject.config.n_tokens == "all" and self.subject.config.activations == "stream":
            return once
        return None if forward is None else max(0.0, n_epochs * (once - self.subject.n_rows * forward))

    def _collecting(self, shape: RowShape, source: Source, forward: float | None) -> dict[str, float | None]:
        rates, n_rows = self.rates, self.subject.n_rows + STORE_HELD_OUT
        tokenising = self.subject.n_rows / rates.tokenised_per_second
        copies = 4 * self.subject.model.itemsize * shape.n_kept / rates.copy_bytes_per_second
        return {
            f"{COLLECTING}language model": None if forward is None else n_rows * forward,
            f"{COLLECTING}tokenising": None if forward is None else max(0.0, tokenising - n_rows * forward),
            f"{COLLECTING}disk": n_rows * shape.stored_bytes(source) / rates.disk_write_bytes_per_second,
            f"{COLLECTING}copies": n_rows * copies,
        }

    def _moved(self, shape: RowShape, source: Source, saes: Sequence[PlannedSAE], *, exists: bool) -> float:
        """Optimiser, scores and what fired in every step; rows in memory and on disk; weights once per forward."""
        subject, config = self.subject, self.subject.config
        stored = source not in ("stream", "collected")
        n_rows, n_epochs = subject.n_rows, config.sae.num_epochs
        n_bytes = subject.n_steps * step_bytes(saes, batch_size=config.sae.batch_size)
        n_bytes += n_rows * n_epochs * copied_bytes(shape, source, itemsize=subject.model.itemsize)
        if stored:
            n_bytes += n_rows * shape.stored_bytes(source) * (n_epochs + (0 if exists else 1))
        n_forwards = 0.0 if exists else n_rows * (n_epochs if source == "stream" else 1) / self._forward_rows
        return n_bytes + n_forwards * subject.model.weight_bytes

    @property
    def _forward_rows(self) -> int:
        return self.subject.config.sae.text_batch_size * self.subject.config.context_tokens
