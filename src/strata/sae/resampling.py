"""Resampling of dead latents (Bricken et al. 2023, appendix "Neuron Resampling"): they start again as rows that the SAE
explains badly.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.sae.rules.base import Batch, Params, Rule
from strata.shapes import lengths

_ENCODER_NORM = 0.2  # of a resampled latent, in units of the living ones' mean norm


def due(step: int, *, window_steps: int, last_step: int) -> bool:
    """Whether latents are resampled before this step: every two windows, until the learning rate decays.

    The paper: at steps 25k, 50k, 75k and 100k, dead being silent for the last 12.5k steps.
    """
    return step > 0 and step % (2 * window_steps) == 0 and step <= last_step


@torch.no_grad()
def resample(
    dead: Int[Tensor, " dead"], batch: Batch, losses: Float[Tensor, " rows"], *, rule: Rule, params: Params, seed: int
) -> None:
    """Give each dead latent the direction of a row, drawn with a probability proportional to its squared loss.

    Decoder: the row (of the target) with unit norm. Encoder: the row (of the inputs) with 0.2 times the mean norm of
    the living latents' encoder rows. Bias 0; thresholds the living ones' mean.

    Args:
        dead: their numbers.
        batch: recent rows.
        losses: ‖residual‖² of each of them, 0 for those that do not count.
        rule: of the SAE.
        params: changed in place.
        seed: of the draw.

    Differs: the paper draws from 819,200 inputs, here from the last 8,192 rows.
    """
    generator = torch.Generator(losses.device).manual_seed(seed)
    if not bool((losses > 0).any()):
        return
    rows = torch.multinomial(losses.double().square(), len(dead), replacement=True, generator=generator)
    alive = torch.ones(rule.d_sae, dtype=torch.bool, device=losses.device)
    alive[dead] = False
    norm = lengths(params["W_enc"][alive]).mean() if bool(alive.any()) else 1.0
    params["W_dec"][dead] = torch.nn.functional.normalize(batch.target[rows], dim=1)
    params["W_enc"][dead] = torch.nn.functional.normalize(batch.inputs[rows], dim=1) * (_ENCODER_NORM * norm)
    for name, tensor in params.items():
        if name not in ("W_enc", "W_dec", "b_dec", "W_skip"):
            starts_at_mean = name == "log_threshold" and bool(alive.any())
            tensor[dead] = tensor[alive].mean() if starts_at_mean else 0.0
