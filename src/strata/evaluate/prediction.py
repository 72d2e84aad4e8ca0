"""How well a transcoder predicts its target: what needs no language model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.sae import metrics
from strata.sae.model import SAE, Transcoder
from strata.sae.normalization import Normalization

_CHUNK_ROWS = 8192


@torch.inference_mode()
def prediction_quality(
    transcoder: SAE, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], *, site: str = "the target"
) -> dict[str, Any]:
    """What `reconstruction_quality` says of an SAE, of a transcoder: its prediction against the target's rows.

    Args:
        transcoder: predicts the target from x.
        x: held-out rows of the site that is read, in the model's scale.
        target: the same rows of the target site.
        site: the target's name, for errors.

    Returns:
        The keys of `strata.evaluate.held_out.reconstruction_quality`, each of the target. Rows are sinks, and left out
        of all but ``fvu_with_sinks``, where they are attention sinks of either site.

    Raises:
        UserError: fewer than two rows, not finite, or all equal.
    """
    x, target = x.float(), target.float()
    kept = ~Normalization.estimate(x).is_sink(x) & ~Normalization.estimate(target, site=site).is_sink(target)
    predicted = torch.empty_like(target)
    fired = torch.zeros(transcoder.d_sae, dtype=torch.bool)
    n_active = 0
    for start in range(0, len(x), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        rows = x[part].to(transcoder.device)
        code = transcoder.encode_sparse(rows)
        y = transcoder.decode(code)
        if isinstance(transcoder, Transcoder) and transcoder.W_skip is not None:
            y = y + rows.to(transcoder.dtype) @ transcoder.W_skip.t()
        predicted[part] = y.to(predicted.device, predicted.dtype)
        active = (code.values > 0) & kept[part].to(code.values.device).unsqueeze(1)
        fired[code.indices[active].cpu()] = True
        n_active += int(active.sum())
    with_sinks = metrics.fvu(target, predicted)
    y, y_hat = target[kept], predicted[kept]
    measured = (
        metrics.explained_variance, metrics.fvu, metrics.mse, metrics.cosine, metrics.l2_ratio,
        metrics.relative_reconstruction_bias,
    )  # fmt: skip
    numbers = {function.__name__: function(y, y_hat).item() for function in measured}
    numbers |= {"l0": n_active / int(kept.sum()), "silent_share": 1 - fired.float().mean().item()}
    numbers |= {"n_sink_rows": len(x) - len(y), "fvu_with_sinks": with_sinks.item()}
    return {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}
