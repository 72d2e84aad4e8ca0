"""Sites: the places in a language model whose vectors are read, and how their names are found in any Hugging Face
model.

``layers.3``        the residual stream after block 3: what block 3 returns, before any final norm.
``layers.3.attn``   what block 3's attention adds to the residual stream.
``layers.3.mlp``    what block 3's feed-forward part (or its experts) adds to it.
``a.dotted.path``   the output of that module of the Hugging Face model, e.g. ``gpt_neox.layers.3.attention.dense``.

"What is added" is the last module before the addition: with a norm behind the sub-block (Gemma-2 and 3, OLMo-2, GLM-4)
that norm's output; in BERT and its kin, which normalise the sum, the output of ``attention.output.dense`` and
``output.dense``, before that norm; in OPT, which has no module around its feed-forward part, the output of ``fc2``. A
constant by which a model scales the addition (Granite's residual multiplier) is not included.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from strata.errors import UserError, did_you_mean

# Paths inside a block, the first that exists is the sub-block: the specific ones stand before the general ones.
SUB_BLOCKS = {
    "attn": (
        "post_self_attn_layernorm",  # GLM-4
        "attention.output.dense",  # BERT, RoBERTa, ELECTRA
        "self_attention.dense",  # BLOOM (whose self_attention returns the sum with the residual), Falcon
        "self_attn",
        "attn",
        "attention",
        "self_attention",
    ),
    "mlp": (
        "post_mlp_layernorm",  # GLM-4
        "post_feedforward_layernorm",  # Gemma-2, Gemma-3, OLMo-2
        "output.dense",  # BERT, RoBERTa, ELECTRA
        "mlp.dense_4h_to_h",  # BLOOM (whose mlp returns the sum with the residual), Falcon, GPT-NeoX
        "ffn.down_proj",  # MPT (as BLOOM)
        "fc2",  # OPT
        "mlp",
        "feed_forward",
        "block_sparse_moe",
        "ffn",
    ),
}
OTHER_MODALITIES = re.compile(r"vision|visual|audio|speech|image")


@dataclass(frozen=True)
class Site:
    """A name that was found in a model.

    Attributes:
        name: as the user writes it, e.g. ``"layers.3.mlp"``.
        path: the module's dotted path in the Hugging Face model, e.g. ``"gpt_neox.layers.3.mlp.dense_4h_to_h"``.
        in_residual_stream: whether its vectors have the residual stream's width for certain.
    """

    name: str
    path: str
    in_residual_stream: bool


class SiteMap:
    """The names of a model's sites, and the modules behind them.

    Attributes:
        names: the residual sites in order, ``["layers.0", ...]``; empty if the model's blocks were not found.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Find the blocks.

        Args:
            model: the Hugging Face model.
            config: its configuration; a nested text configuration is looked up.
        """
        self._model = model
        self._text_config = config.get_text_config()
        self._blocks_path = _find_blocks(model, getattr(self._text_config, "num_hidden_layers", 0))
        blocks = model.get_submodule(self._blocks_path)
        n_layers = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
        self.names = [f"layers.{i}" for i in range(n_layers)]

    def resolve(self, name: str) -> Site:
        """The site of that name.

        Raises:
            UserError: no such site, with the nearest name.
        """
        match = re.fullmatch(rf"layers\.(\d+)(?:\.({'|'.join(SUB_BLOCKS)}))?", name)
        if match and f"layers.{match[1]}" in self.names:
            block = f"{self._blocks_path}.{match[1]}"
            inside = self._sub_block(block, match[2]) if match[2] else ""
            if inside is not None:
                return Site(name, f"{block}.{inside}".rstrip("."), in_residual_stream=True)
        modules = dict(_named_modules(self._model))
        if name and name in modules:
            return Site(name, name, in_residual_stream=False)
        known = [*self.names, *(site.name for site in self._sub_block_sites()), *(path for path in modules if path)]
        number = re.search(r"\d+", name)  # of a layer, in names of other libraries: blocks.3.hook_resid_post
        near = did_you_mean(name, known, otherwise=f"layers.{number[0]}" if number else None)
        raise UserError(
            f"`site` must be a residual stream ('layers.0'), a sub-block ('layers.0.mlp') or a module path. "
            f"Got {name!r}.{near}"
        )

    def module(self, site: Site) -> nn.Module:
        """The module whose output is read at a site."""
        return self._model.get_submodule(site.path)

    def width(self, site: Site) -> int | None:
        """The width of the vectors at a site in coordinates, where the model says it without running; else None."""
        if site.in_residual_stream:
            return int(self._text_config.hidden_size)
        module = self.module(site)
        if isinstance(module, nn.Linear):
            return module.out_features
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
        return None

    def _sub_block(self, block: str, part: str) -> str | None:
        module = self._model.get_submodule(block)
        if part == "attn" and _has(module, "post_feedforward_layernorm") and _has(module, "post_attention_layernorm"):
            return "post_attention_layernorm"  # a norm behind attention; elsewhere this name is the norm before the mlp
        return next((path for path in SUB_BLOCKS[part] if _has(module, path)), None)

    def _sub_block_sites(self) -> list[Site]:
        pairs = [(name, part) for name in self.names for part in SUB_BLOCKS]
        found = [(name, part, self._sub_block(f"{self._blocks_path}.{name[7:]}", part)) for name, part in pairs]
        return [Site(f"{name}.{part}", path, in_residual_stream=True) for name, part, path in found if path is not None]


def depth(name: str) -> list[tuple[int, str]]:
    """By which names of sites, and folders named after them, are sorted: numbers by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def first_tensor(output: Any) -> Any:
    """What a module returned, or its first element where that is a tuple or list."""
    return output[0] if returns_several(output) else output


def with_first(output: Any, tensor: Tensor) -> Any:
    """What a module returned with another tensor in place of its `first_tensor`."""
    return type(output)((tensor, *output[1:])) if returns_several(output) else tensor


def returns_several(output: Any) -> bool:
    """Whether what a module returned has more in it than its `first_tensor`."""
    return isinstance(output, tuple | list)


def as_grid(output: Any, *, batch: int, seq: int, site: str) -> Float[Tensor, "batch seq _"]:
    """A module's output as one vector per position, without copying where possible.

    Args:
        output: ``[batch seq ...]`` (axes behind the second are joined, e.g. heads) or ``[batch*seq d_in]`` (OPT's
            ``fc2``).
        batch: sequences in this forward pass.
        seq: positions in this forward pass.
        site: the name for the error.

    Raises:
        UserError: the output has no vector for each position.
    """
    if isinstance(output, Tensor) and output.is_floating_point():
        if output.ndim >= 3 and output.shape[:2] == (batch, seq):
            return output.flatten(2)
        if output.ndim == 2 and output.shape[0] == batch * seq:
            return output.view(batch, seq, output.shape[1])
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(
        f"`site` must give one vector for each position of the text, [batch={batch} seq={seq} d_in]. "
        f"Got {shape} at {site!r}. Choose another site."
    )


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast(Iterable[tuple[str, nn.Module]], model.named_modules())


def _find_blocks(model: nn.Module, n_layers: int) -> str:
    """The path of the outermost ModuleList of the right length (experts' lists lie deeper); "" if there is none."""
    lists = [
        path
        for path, module in _named_modules(model)
        if isinstance(module, nn.ModuleList) and len(module) == n_layers > 0 and not OTHER_MODALITIES.search(path)
    ]
    return min(lists, key=lambda path: path.count("."), default="")
