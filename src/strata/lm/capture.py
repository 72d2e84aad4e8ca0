"""Running a model as far as needed to read the outputs of some of its modules."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.hooks import hooked
from strata.lm.sites import as_grid, first_tensor
from strata.lm.transfer import moved


class _AllSeen(Exception):
    """Every wanted site has been read: the rest of the forward pass is not needed."""


def capture(
    forward: Callable[[], Any],
    modules: Mapping[str, nn.Module],
    *,
    batch: int,
    seq: int,
    positions: Mapping[str, Int[Tensor, " rows"]] | None = None,
) -> dict[str, Float[Tensor, "batch seq _"] | Float[Tensor, "rows _"]]:
    """Read what modules return in one forward pass that ends as soon as all have been read.

    Runs under `torch.no_grad`, not `torch.inference_mode`: tensors made there may not enter an autograd graph later,
    and these are what SAEs are trained on. They are copies, because some models write into a sub-block's output
    (Falcon), and because a view would keep the larger tensor behind it alive.

    Args:
        forward: starts the model's forward pass.
        modules: site name (or another key) → module. A module that runs several times is read the first time.
        batch: sequences in this forward pass.
        seq: positions in this forward pass.
        positions: by key, the places in the flattened [batch seq] that are read, and nothing else is copied; a key that
            is not named is read everywhere.

    Returns:
        Site name → activations [batch seq d_in], or [rows d_in] at `positions`, in the order of `modules`, in the dtype
        and on the device in which the module returned them.

    Raises:
        UserError: a module has no vector for each position, or took no part in the forward pass.
    """
    seen: dict[str, Tensor] = {}

    def read(site: str, module: nn.Module, args: Any, output: Any) -> None:
        if site not in seen:
            grid = as_grid(first_tensor(output), batch=batch, seq=seq, site=site)
            where = None if positions is None else positions.get(site)
            seen[site] = grid.clone() if where is None else grid.flatten(0, 1)[moved(where, grid.device)]
            if len(seen) == len(modules):
                raise _AllSeen

    readers = ((module, partial(read, site)) for site, module in modules.items())
    with hooked(readers), suppress(_AllSeen), torch.no_grad():
        forward()
    unseen = [site for site in modules if site not in seen]
    if unseen:
        raise UserError(
            f"`site` must take part in the model's forward pass. {unseen[0]!r} did not. Choose another site."
        )
    return {site: seen[site] for site in modules}
