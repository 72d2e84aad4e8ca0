"""The peers' TopK SAEs as contenders, each trained by its own trainer, optimiser and bookkeeping.

Nothing here is an optimisation or a simplification of a peer: the step that is timed is the one that its users run.
On CUDA nothing of this has been executed yet. The libraries are not typed and may be missing: each is loaded where its
contender is made, as `Any`.
"""

import contextlib
import io
import os
from collections.abc import Generator
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.bench.contender import Given
from strata.errors import UserError


class SAELens:
    """sae_lens' TopKTrainingSAE under its SAETrainer, in fp32 as by default.

    Args:
        given: what every contender is told; its own learning rate is 3e-4.
        sparse: `use_sparse_activations` (default of the peer: off), without `rescale_acts_by_decoder_norm`, with which
            its backward fails on a CPU.
        autocast: its bf16 autocast (default of the peer: off).
        scaled: `normalize_activations="expected_average_only_in"` instead of "none".
        decay_share: part of the run over which the learning rate falls to 0 (default of the peer: none).
        window_share: `dead_feature_window` as a part of the run (default of the peer: 1000 steps).
    """

    def __init__(
        self,
        given: Given,
        *,
        sparse: bool = False,
        autocast: bool = False,
        scaled: bool = False,
        decay_share: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        sae_lens: Any = import_module("sae_lens")
        configs: Any = import_module("sae_lens.config")
        trainers: Any = import_module("sae_lens.training.sae_trainer")
        torch.manual_seed(given.seed)
        config = sae_lens.TopKTrainingSAEConfig(
            d_in=given.d_in,
            d_sae=given.d_sae,
            k=given.k,
            use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
            normalize_activations="expected_average_only_in" if scaled else "none",
            device=str(given.device),
        )
        usual, n_steps = configs.SAETrainerConfig, given.n_steps
        rate = usual.lr if given.lr is None else given.lr
        window = usual.dead_feature_window if window_share is None else max(1, int(n_steps * window_share))
        trainer_config = configs.SAETrainerConfig(
            total_training_samples=n_steps * given.n_rows,
            train_batch_size_samples=given.n_rows,
            lr=rate,
            lr_end=rate / 10,  # what its runner fills in; the constant schedule does not read it
            lr_decay_steps=int(n_steps * decay_share),
            dead_feature_window=window,
            autocast=autocast,
            device=str(given.device),
            logger=configs.LoggingConfig(log_to_wandb=False),
        )
        self.scaled, self.d_in = scaled, given.d_in
        sae = sae_lens.TopKTrainingSAE(config)
        self.trainer: Any = trainers.SAETrainer(trainer_config, sae=sae, data_provider=iter(()))

    def prepare(self, sample: Float[Tensor, "sample d_in"]) -> None:
        """Its scaling factor, where it is asked for."""
        if self.scaled:
            with silence():
                scaler = self.trainer.activation_scaler
                scaler.estimate_scaling_factor(self.d_in, data_provider=iter([sample]), n_batches_for_norm_estimate=1)

    def step(self, x: Float[Tensor, "rows d_in"]) -> None:
        """What its `fit` does per batch, without the progress bar."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """By its own encode and decode."""
        scaler, sae = self.trainer.activation_scaler, self.trainer.sae
        return scaler.unscale(sae.decode(sae.encode(scaler(x))))

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """By its own encode."""
        codes = self.trainer.sae.encode(self.trainer.activation_scaler(x))
        return codes.to_dense() if codes.is_sparse else codes


class Sparsify:
    """sparsify's SparseCoder under its Trainer: every step is one call of its `fit` with one batch.

    `fit` reads activations off a module of a language model with a hook, so it gets a model that only hands rows
    through. What is not its step in this (progress bar, data loader, hook) costs a few milliseconds: on a problem
    too small to count, 32 rows and 64 latents, the whole call takes under 10. On a CPU its decoder is its own eager
    fallback, as its Triton kernel needs a GPU.

    Args:
        given: what every contender is told; its own learning rate is 5e-3/√(d_sae/2^14), for Adam 2e-4/√(d_sae/2^14).
        optimizer: "signum" (schedule-free, its default) or "adam".
        auxk_alpha: weight of its AuxK term (its default: 0, off).
        window_share: `dead_feature_threshold` as a part of the run (default of the peer: 10 million rows).
    """

    def __init__(
        self,
        given: Given,
        *,
        optimizer: Any = "signum",
        auxk_alpha: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        if given.device.type == "cpu":
            os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with silence():
            sparsify: Any = import_module("sparsify")
            config = sparsify.TrainConfig(
                sae=sparsify.SparseCoderConfig(num_latents=given.d_sae, k=given.k),
                batch_size=1,
                optimizer=optimizer,
                lr=given.lr,
                # Its default of 1000 steps would never end within a short run.
                lr_warmup_steps=min(1000, max(1, given.n_steps // 20)),
                auxk_alpha=auxk_alpha,
                hookpoints=["rows"],
                init_seeds=[given.seed],
                log_to_wandb=False,
            )
            if window_share is not None:
                config.dead_feature_threshold = int(given.n_steps * given.n_rows * window_share)
            self.model = _RowsModel(given.d_in, given.device)
            dataset = _Sequences(given.n_steps, given.n_rows)
            self.trainer: Any = sparsify.Trainer(config, dataset=dataset, model=self.model)
        self.trainer.save = lambda: None  # at the end of every `fit` it would write to disk
        self.sae = self.trainer.saes["rows"]

    def prepare(self, sample: Float[Tensor, "sample d_in"]) -> None:
        """Nothing: it takes its decoder bias from the first batch."""

    def step(self, x: Float[Tensor, "rows d_in"]) -> None:
        """One `fit`."""
        self.model.batch = x.unsqueeze(0)
        self.trainer.dataset = _Sequences(1, len(x))
        precision = torch.get_float32_matmul_precision()
        with silence():
            self.trainer.fit()
        torch.set_float32_matmul_precision(precision)  # `fit` sets it for the whole process

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """By its own encode and decode."""
        with self._weights_as_saved():
            encoded = self.sae.encode(x)
            return self.sae.decode(encoded.top_acts, encoded.top_indices)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """By its own encode."""
        with self._weights_as_saved():
            encoded = self.sae.encode(x)
        dense = torch.zeros(len(x), self.sae.num_latents, dtype=encoded.top_acts.dtype, device=x.device)
        return dense.scatter_(1, encoded.top_indices, encoded.top_acts).float()

    @contextlib.contextmanager
    def _weights_as_saved(self) -> Generator[None, None, None]:
        """Schedule-free optimisers train at one point and save another, as its `save` does. There and back rounds, so
        the weights are put back as they were.
        """
        schedule_free = [optimizer for optimizer in self.trainer.optimizers if hasattr(optimizer, "eval")]
        if not schedule_free:
            yield
            return
        before = [weight.detach().clone() for weight in self.sae.parameters()]
        for optimizer in schedule_free:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in schedule_free:
                optimizer.train()
            for weight, value in zip(self.sae.parameters(), before, strict=True):
                weight.data.copy_(value)


class DictionaryLearning:
    """dictionary_learning's AutoEncoderTopK under its TopKTrainer, AuxK coefficient 1/32 as by default.

    Args:
        given: what every contender is told; its own learning rate is 2e-4/√(d_sae/2^14).
        autocast: its bf16 autocast, which it offers on GPUs only (default of the peer: off).
        decay_share: part of the run over which the learning rate falls to 0 (default of the peer: none).
        window_share: rows without firing after which a latent is dead, as a part of the run (default: 10 million rows).
    """

    def __init__(
        self,
        given: Given,
        *,
        autocast: bool = False,
        decay_share: float = 0.0,
        window_share: float | None = None,
    ) -> None:
        trainers: Any = import_module("dictionary_learning.trainers.top_k")
        if autocast and given.device.type != "cuda":
            raise UserError("`contenders` dictionary_learning-autocast needs a GPU: the peer has it there only.")
        n_steps = given.n_steps
        self.trainer: Any = trainers.TopKTrainer(
            steps=n_steps,
            activation_dim=given.d_in,
            dict_size=given.d_sae,
            k=given.k,
            layer=0,
            lm_name="rows",
            lr=given.lr,
            warmup_steps=min(1000, n_steps // 20),  # its default of 1000 steps would never end within a short run
            decay_start=int(n_steps * (1 - decay_share)) if decay_share else None,
            seed=given.seed,
            device=str(given.device),
        )
        if window_share is not None:
            self.trainer.dead_feature_threshold = int(n_steps * given.n_rows * window_share)
        self.autocast, self.n_steps_done = autocast, 0

    def prepare(self, sample: Float[Tensor, "sample d_in"]) -> None:
        """Nothing: it takes its decoder bias from the first batch."""

    def step(self, x: Float[Tensor, "rows d_in"]) -> None:
        """What its `trainSAE` does per batch."""
        if self.autocast:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                self.trainer.update(self.n_steps_done, x.to(torch.bfloat16))
        else:
            self.trainer.update(self.n_steps_done, x)
        self.n_steps_done += 1

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """By its own forward."""
        return self.trainer.ae(x)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """By its own encode."""
        return self.trainer.ae.encode(x)


class _RowsModel(nn.Module):
    """Looks to sparsify like a language model whose module `rows` puts out the batch."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.rows = nn.Identity()
        self.batch = torch.zeros(1, 1, d_in, device=device)
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
def silence() -> Generator[None, None, None]:
    """Without what a peer prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
