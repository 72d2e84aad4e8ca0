"""What a pass of a loaded language model costs, counted."""

from collections.abc import Iterable

from strata.costs.flops import forward_flops
from strata.errors import UserError
from strata.lm.model import LanguageModel


def forward_flops_of(lm: LanguageModel, sites: Iterable[str], *, context_tokens: int) -> float:
    """FLOPs per token of a forward that ends with the block of the deepest of some sites: see `forward_flops`.

    Args:
        lm: the language model.
        sites: of any kind: layers.3, layers.3.mlp, a module's path. One outside the blocks counts them all.
        context_tokens: length of the sequences.

    Raises:
        UserError: an unknown site, a model whose blocks are not found, or a configuration that does not tell what
            `forward_flops` needs.
    """
    paths = [lm.site(name).path for name in lm.sites]
    if not paths:
        raise UserError(
            f"The cost of a forward needs a model whose blocks are found. {lm.name} has none. Count it by yourself."
        )
    deepest = max(_n_blocks(lm.site(site).path, paths) for site in sites)
    blocks = [lm.model.get_submodule(path) for path in paths[:deepest]]
    return forward_flops(blocks, lm.model.config, context_tokens=context_tokens)


def _n_blocks(path: str, blocks: list[str]) -> int:
    """How many blocks are run for the output of a module."""
    inside = (number for number, block in enumerate(blocks, 1) if f"{path}.".startswith(f"{block}."))
    return next(inside, len(blocks))


def known_forward_flops(lm: LanguageModel, sites: list[str], *, context_tokens: int) -> float | None:
    """FLOPs per token of a forward as far as the deepest site; None where the model's configuration does not tell."""
    try:
        return forward_flops_of(lm, sites, context_tokens=context_tokens)
    except UserError:
        return None
