"""The peers' TopK SAEs behind one small interface, each trained by its own trainer, optimiser and bookkeeping.

Nothing here is an optimisation or a simplification of a peer: the step that is timed is the one that its users run.
Run as a program, it lists which peers are installed.
"""

import contextlib
import functools
import importlib.metadata
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Contender(Protocol):
    """What the benchmarks need of an SAE trainer; rows are fp32 [rows d_in] in the model's own scale.

    Contenders are made with the keywords d_in, d_sae, k, lr (None: the trainer's own default), n_steps and seed.
    """

    name: str

    def prepare(self, sample: Tensor) -> None:
        """Whatever is estimated from data before the first step, e.g. a scale. Not part of the step's time."""

    def step(self, x: Tensor) -> None:
        """One whole optimisation step."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction [rows d_in], as a user of the trained SAE would get it."""

    def codes(self, x: Tensor) -> Tensor:
        """Latents [rows d_sae], dense."""


class SAELens:
    """sae_lens' TopKTrainingSAE under its SAETrainer, in fp32 as by default.

    Args:
        sparse: `use_sparse_activations` (default of the peer: off), without `rescale_acts_by_decoder_norm`, with which
            its backward fails on a CPU.
        scaled: `normalize_activations="expected_average_only_in"` instead of "none".
        decay_share: part of the run over which the learning rate falls to 0 (default of the peer: none).
        window_share: `dead_feature_window` as a part of the run (default of the peer: 1000 steps).
    """

    name = "SAELens"
    distribution = "sae-lens"

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        k: int,
        lr: float | None,
        n_steps: int,
        seed: int,
        n_rows: int = 4096,
        sparse: bool = False,
        scaled: bool = False,
        decay_share: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(seed)
        config = TopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            k=k,
            use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
            normalize_activations="expected_average_only_in" if scaled else "none",
        )
        rate = SAETrainerConfig.lr if lr is None else lr
        window = SAETrainerConfig.dead_feature_window if window_share is None else max(1, int(n_steps * window_share))
        trainer_config = SAETrainerConfig(
            total_training_samples=n_steps * n_rows,
            train_batch_size_samples=n_rows,
            lr=rate,
            lr_end=rate / 10,  # what its runner fills in; the constant schedule does not read it
            lr_decay_steps=int(n_steps * decay_share),
            dead_feature_window=window,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.scaled, self.d_in = scaled, d_in
        self.trainer = SAETrainer(trainer_config, sae=TopKTrainingSAE(config), data_provider=iter(()))

    def prepare(self, sample: Tensor) -> None:
        """Its scaling factor, where it is asked for."""
        if self.scaled:
            with _silence():
                scaler = self.trainer.activation_scaler
                scaler.estimate_scaling_factor(self.d_in, data_provider=iter([sample]), n_batches_for_norm_estimate=1)

    def step(self, x: Tensor) -> None:
        """What its `fit` does per batch, without the progress bar."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        scaler, sae = self.trainer.activation_scaler, self.trainer.sae
        return scaler.unscale(sae.decode(sae.encode(scaler(x))))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        codes = self.trainer.sae.encode(self.trainer.activation_scaler(x))
        return codes.to_dense() if codes.is_sparse else codes


class Sparsify:
    """sparsify's SparseCoder under its Trainer: every step is one call of its `fit` with one batch.

    `fit` reads activations off a module of a language model with a hook, so it gets a model that only hands rows
    through. What is not its step in this (progress bar, data loader, hook) costs a few milliseconds: on a problem
    too small to count, 32 rows and 64 latents, the whole call takes under 10. On a CPU its decoder is its own eager
    fallback, as its Triton kernel needs a GPU.

    Args:
        optimizer: "signum" (schedule-free, its default) or "adam".
        auxk_alpha: weight of its AuxK term (its default: 0, off).
        window_share: `dead_feature_threshold` as a part of the run (default of the peer: 10 million rows).
    """

    name = "sparsify"
    distribution = "eai-sparsify"

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        k: int,
        lr: float | None,
        n_steps: int,
        seed: int,
        n_rows: int = 4096,
        optimizer: str = "signum",
        auxk_alpha: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with _silence():
            from sparsify import SparseCoderConfig, TrainConfig, Trainer

            class Quiet(Trainer):
                """Its trainer, which writes nothing to disk at the end of every `fit`."""

                def save(self) -> None:
                    pass

            config = TrainConfig(
                sae=SparseCoderConfig(num_latents=d_sae, k=k),
                batch_size=1,
                optimizer=optimizer,
                lr=lr,
                # Its default of 1000 steps would never end within a short run.
                lr_warmup_steps=min(1000, max(1, n_steps // 20)),
                auxk_alpha=auxk_alpha,
                hookpoints=["rows"],
                init_seeds=[seed],
                log_to_wandb=False,
            )
            if window_share is not None:
                config.dead_feature_threshold = int(n_steps * n_rows * window_share)
            self.model = _RowsModel(d_in)
            self.trainer = Quiet(config, dataset=_Sequences(n_steps, n_rows), model=self.model)
        self.sae = self.trainer.saes["rows"]

    def prepare(self, sample: Tensor) -> None:
        """Nothing: it takes its decoder bias from the first batch."""

    def step(self, x: Tensor) -> None:
        self.model.batch = x.unsqueeze(0)
        self.trainer.dataset = _Sequences(1, len(x))
        precision = torch.get_float32_matmul_precision()
        with _silence():
            self.trainer.fit()
        torch.set_float32_matmul_precision(precision)  # `fit` sets it for the whole process

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        with self._weights_as_saved():
            encoded = self.sae.encode(x)
            return self.sae.decode(encoded.top_acts, encoded.top_indices)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        with self._weights_as_saved():
            encoded = self.sae.encode(x)
        return torch.zeros(len(x), self.sae.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)

    @contextlib.contextmanager
    def _weights_as_saved(self) -> Iterator[None]:
        """Schedule-free optimisers train at one point and save another, as its `save` does."""
        schedule_free = [optimizer for optimizer in self.trainer.optimizers if hasattr(optimizer, "eval")]
        for optimizer in schedule_free:
            optimizer.eval()
        yield
        for optimizer in schedule_free:
            optimizer.train()


class DictionaryLearning:
    """dictionary_learning's AutoEncoderTopK under its TopKTrainer, AuxK coefficient 1/32 as by default.

    Args:
        decay_share: part of the run over which the learning rate falls to 0 (default of the peer: none).
        window_share: rows without firing after which a latent is dead, as a part of the run (default: 10 million rows).
    """

    name = "dictionary_learning"
    distribution = "dictionary-learning"

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        k: int,
        lr: float | None,
        n_steps: int,
        seed: int,
        n_rows: int = 4096,
        decay_share: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.trainer = TopKTrainer(
            steps=n_steps,
            activation_dim=d_in,
            dict_size=d_sae,
            k=k,
            layer=0,
            lm_name="rows",
            lr=lr,
            warmup_steps=min(1000, n_steps // 20),  # its default of 1000 steps would never end within a short run
            decay_start=int(n_steps * (1 - decay_share)) if decay_share else None,
            seed=seed,
            device="cpu",
        )
        if window_share is not None:
            self.trainer.dead_feature_threshold = int(n_steps * n_rows * window_share)
        self.n_steps_done = 0

    def prepare(self, sample: Tensor) -> None:
        """Nothing: it takes its decoder bias from the first batch."""

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.n_steps_done, x)
        self.n_steps_done += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainer.ae(x)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        return self.trainer.ae.encode(x)


PEERS: dict[str, Callable[..., Contender]] = {
    "saelens": SAELens,
    "saelens-sparse": functools.partial(SAELens, sparse=True),
    "saelens-scaled": functools.partial(SAELens, scaled=True),
    "saelens-decay": functools.partial(SAELens, decay_share=0.3),
    "saelens-revival": functools.partial(SAELens, decay_share=0.3, window_share=0.25),
    "sparsify": Sparsify,
    "sparsify-adam": functools.partial(Sparsify, optimizer="adam"),
    "sparsify-auxk": functools.partial(Sparsify, auxk_alpha=1 / 32, window_share=0.25),
    "dictionary_learning": DictionaryLearning,
    "dictionary_learning-revival": functools.partial(DictionaryLearning, decay_share=0.3, window_share=0.25),
}
"""Contenders by the name that step.py and quality.py take; the first of each family is the peer with its defaults."""


def contender(name: str) -> Callable[..., Contender]:
    """The maker of a contender: a peer's, or Strata's own as "strata" or "strata-<revival method>"."""
    if name.partition("-")[0] == "strata":
        from ours import ours

        return ours(name)
    return PEERS[name]


def distribution(name: str) -> str:
    """Name of the package that a peer's contender needs."""
    maker: Any = PEERS[name]
    return getattr(maker, "func", maker).distribution


def version(name: str) -> str | None:
    """Installed version of a peer, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return None


class _RowsModel(nn.Module):
    """Looks to sparsify like a language model whose module `rows` puts out the batch."""

    device = torch.device("cpu")

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.rows = nn.Identity()
        self.batch = torch.zeros(1, 1, d_in)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.rows(self.batch)


class _Sequences:
    """Looks to sparsify like a dataset of token sequences as long as a batch has rows."""

    def __init__(self, n_sequences: int, n_tokens: int) -> None:
        self.n_sequences = n_sequences
        self.item = {"input_ids": torch.zeros(n_tokens, dtype=torch.int64)}

    def __len__(self) -> int:
        return self.n_sequences

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.item

    def select(self, indices: range) -> "_Sequences":
        """The rest of the run, from the step that sparsify has reached: here always the one batch at hand."""
        return self


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    for name in PEERS:
        print(f"{name:30} {distribution(name)} {version(name) or 'is not installed'}")
