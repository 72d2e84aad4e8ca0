"""Quality of a reconstruction. One function each, used by training, evaluation and benchmarks alike.

All take activations x and reconstructions x_hat of shape [rows d_in] in the model's own scale and give a scalar tensor.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from strata.shapes import lengths

Rows = Float[Tensor, "rows d_in"]
Scalar = Float[Tensor, ""]


def fvu(x: Rows, x_hat: Rows) -> Scalar:
    """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖² with the mean taken per dimension over all rows, in
    [0, ∞).

    The mean predictor scores 1 whatever the batching.

    Args:
        x: activations.
        x_hat: their reconstructions.
    """
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def explained_variance(x: Rows, x_hat: Rows) -> Scalar:
    """1 − fvu: 1 is perfect, 0 is the mean predictor, below 0 is worse than that.

    Args:
        x: activations.
        x_hat: their reconstructions.

    Differs: dictionary_learning subtracts the residual's mean (a constant error is free there); SAEBench's
    `explained_variance_legacy` averages per-row ratios; SAELens before 2026 used one scalar mean over all dimensions.
    """
    return 1 - fvu(x, x_hat)


def mse(x: Rows, x_hat: Rows) -> Scalar:
    """Mean over rows of the squared error summed over d_in, in squared units of the model.

    Args:
        x: activations.
        x_hat: their reconstructions.

    Differs: many report the mean over d_in too.
    """
    return (x - x_hat).square().sum(-1).mean()


def cosine(x: Rows, x_hat: Rows) -> Scalar:
    """Mean over rows of the cosine between activation and reconstruction, in [−1, 1].

    Args:
        x: activations.
        x_hat: their reconstructions.
    """
    return torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean()


def l2_ratio(x: Rows, x_hat: Rows) -> Scalar:
    """Mean over rows of ‖x̂‖/‖x‖; below 1 means shrinkage.

    Args:
        x: activations.
        x_hat: their reconstructions.
    """
    return (lengths(x_hat) / lengths(x)).mean()


def relative_reconstruction_bias(x: Rows, x_hat: Rows) -> Scalar:
    """E‖x̂‖² / E⟨x, x̂⟩ (Rajamanoharan et al. 2024): 1 is unbiased, below 1 shrinkage.

    Args:
        x: activations.
        x_hat: their reconstructions.
    """
    return x_hat.square().sum() / (x * x_hat).sum()


def l0(values: Float[Tensor, "rows k"]) -> Scalar:
    """Mean number of latents per row that are above 0.

    Args:
        values: of the latents that may be active; all of them, or a code's.

    Differs: SAEBench counts non-zero ones.
    """
    return (values > 0).sum(-1).float().mean()


def ce_loss_score(*, ce_zero: float, ce_sae: float, ce_clean: float) -> float:
    """Share of the language-model loss that the SAE recovers against zero-ablating the site: 1 is all, 0 is none.

    Args:
        ce_zero: cross-entropy in nats per token with the site set to zero.
        ce_sae: with the site replaced by its reconstruction.
        ce_clean: of the model as it is.

    Differs: peers keep special tokens in the spliced run but ablate them in the zero run; here both leave them as they
    are.
    """
    return (ce_zero - ce_sae) / (ce_zero - ce_clean)


def kl_div_score(*, kl_zero: float, kl_sae: float) -> float:
    """(KL_zero − KL_sae)/KL_zero with KL(clean ‖ changed), by log-softmax: 1 is all of the behaviour, 0 is none.

    Args:
        kl_zero: in nats per token, with the site set to zero.
        kl_sae: with the site replaced by its reconstruction.

    Differs: softmax then log, as peers have it, gives NaN.
    """
    return (kl_zero - kl_sae) / kl_zero


def delta_ce_percent(*, ce_sae: float, ce_clean: float) -> float:
    """How much the SAE raises the language-model loss, in percent of the clean loss.

    Args:
        ce_sae: cross-entropy in nats per token with the site replaced by its reconstruction.
        ce_clean: of the model as it is.
    """
    return 100 * (ce_sae - ce_clean) / ce_clean
