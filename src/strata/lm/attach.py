"""SAEs in a running model: the outputs of sites replaced by their reconstructions."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strata.errors import UserError
from strata.lm.hooks import hooked
from strata.lm.sites import Site, SiteMap, as_grid, first_tensor, with_first
from strata.shapes import SparseCode


@runtime_checkable
class Attachable(Protocol):
    """What an SAE must have to stand in a model."""

    @property
    def d_in(self) -> int:
        """The width of the vectors it reads."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Activations [batch seq d_in] → latents [batch seq d_sae], differentiable."""
        ...

    def encode_sparse(self, x: Tensor, /) -> SparseCode:
        """Activations [batch seq d_in] → code [batch seq k], with or without gradient."""
        ...

    def decode(self, latents: SparseCode, /) -> Tensor:
        """Code [batch seq k] → reconstruction [batch seq d_in]."""
        ...


class Attachment:
    """What happened at the sites in the last forward pass, and what shall happen in the next.

    Attributes:
        codes: site → the code of the last forward pass, [batch seq k]. While gradients are enabled its ``values`` keep
            their ``.grad`` after a backward pass, whether the SAE's own weights are trainable or not.
        inputs: site → the site's own activations in the last forward pass, [batch seq d_in], detached, in the model's
            dtype.
        mask: Bool [batch seq] or None; set it before a forward pass to replace only where it is True (elsewhere, at
            BOS or pads for instance, the site's own activations stay). None replaces everywhere. In decoding with a KV
            cache every pass has another shape: there it has to be None.
    """

    def __init__(
        self, saes: Mapping[str, Attachable], *, keep_error: bool, mask: Bool[Tensor, "batch seq"] | None
    ) -> None:
        self.codes: dict[str, SparseCode] = {}
        self.inputs: dict[str, Tensor] = {}
        self.mask = mask
        self._saes = dict(saes)
        self._keep_error = keep_error
        self._pass_shape: tuple[int, int] | None = None

    @contextmanager
    def within(self, containing: Iterable[nn.Module], modules: Mapping[str, nn.Module]) -> Generator[None, None, None]:
        """Act in a model as long as the context lasts.

        Args:
            containing: the modules that contain a site.
            modules: site → its module.
        """
        handles: list[RemovableHandle] = []
        try:
            handles.extend(
                module.register_forward_pre_hook(self._note_shape, with_kwargs=True) for module in containing
            )
            with hooked((module, partial(self._replace, site)) for site, module in modules.items()):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of what contains a site: remember [batch seq], which some outputs (OPT's ``fc2``) do not show."""
        for given in (*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs_embeds", "hidden_states"))):
            if isinstance(given, Tensor) and given.ndim == (3 if given.is_floating_point() else 2):
                self._pass_shape = (given.shape[0], given.shape[1])

    def _replace(self, site: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook of a site's module: the same output with its (first) tensor replaced."""
        own = first_tensor(output)
        batch, seq = self._pass_shape or own.shape[:2]
        x = as_grid(own, batch=batch, seq=seq, site=site)
        if x.shape[-1] != self._saes[site].d_in:
            raise _width_error(site, d_sae_in=self._saes[site].d_in, d_site=x.shape[-1])
        out = self._reconstruct(site, x)
        if self.mask is not None:
            if self.mask.shape != x.shape[:2]:
                raise UserError(
                    f"`mask` must have the shape of the forward pass, {[batch, seq]}. Got {list(self.mask.shape)}. "
                    "Set it to None where a KV cache is used, as in `generate`."
                )
            out = torch.where(self.mask.to(x.device)[..., None], out, x)
        return with_first(output, out.reshape(own.shape))

    def _reconstruct(self, site: str, x: Float[Tensor, "batch seq d_in"]) -> Float[Tensor, "batch seq d_in"]:
        sae = self._saes[site]
        dtype, device = _home(sae, x)
        with torch.autocast(device_type=device.type, enabled=False):
            code = _encode(sae, x.to(device=device, dtype=dtype))
            x_hat = sae.decode(code).to(device=x.device, dtype=x.dtype)
        self.codes[site], self.inputs[site] = code, x.detach()
        # x_hat + (x - x_hat).detach() is the same function; in this order its value is x to the last bit.
        return x.detach() + (x_hat - x_hat.detach()) if self._keep_error else x_hat


@contextmanager
def attach(
    model: nn.Module,
    sites: SiteMap,
    saes: Mapping[str, Attachable],
    *,
    keep_error: bool = False,
    mask: Bool[Tensor, "batch seq"] | None = None,
) -> Generator[Attachment, None, None]:
    """Replace the outputs of sites by their SAEs' reconstructions as long as the context lasts.

    Works in every pass of the model, also in `generate` with a KV cache. Gradients flow, unless the caller disables
    them, through the reconstruction into the codes and on through the encoder. An SAE computes in its own dtype and on
    its own device.

    Args:
        model: the Hugging Face model.
        sites: its sites.
        saes: site name → SAE.
        keep_error: add the part that the SAE misses back as a constant: the values of the forward pass are exactly
            those of the model without SAEs, the gradient flows through the codes alone (Marks et al. 2024, "Sparse
            feature circuits", §3).
        mask: where to replace, see `Attachment.mask`.

    Yields:
        The `Attachment` with codes and inputs of the last pass; they stay readable afterwards. Hooks are removed in
        any case.

    Raises:
        UserError: unknown site, two names of one site, an SAE of another width than the site, or (in a pass) a mask of
            another shape.
    """
    resolved = [sites.resolve(name) for name in saes]
    _check(resolved, sites, saes)
    run = Attachment(saes, keep_error=keep_error, mask=mask)
    with run.within(_containing(model, resolved), {site.name: sites.module(site) for site in resolved}):
        yield run


def _containing(model: nn.Module, resolved: list[Site]) -> list[nn.Module]:
    """The modules that contain a site, from the model down, each once."""
    parts = [site.path.split(".") for site in resolved]
    return [model.get_submodule(path) for path in dict.fromkeys(".".join(p[:n]) for p in parts for n in range(len(p)))]


def _check(resolved: list[Site], sites: SiteMap, saes: Mapping[str, Attachable]) -> None:
    names_of: dict[str, str] = {}
    for site in resolved:
        other = names_of.setdefault(site.path, site.name)
        if other != site.name:
            raise UserError(
                f"`attach` takes one SAE for each site. {other!r} and {site.name!r} are the same place; leave one out."
            )
        width = sites.width(site)
        if width is not None and width != saes[site.name].d_in:
            raise _width_error(site.name, d_sae_in=saes[site.name].d_in, d_site=width)


def _width_error(site: str, *, d_sae_in: int, d_site: int) -> UserError:
    return UserError(
        f"An SAE's `d_in` must equal the width of its site. Got d_in={d_sae_in} at {site!r}, which is {d_site} wide. "
        "Attach it where it was trained."
    )


def _home(sae: Attachable, x: Tensor) -> tuple[torch.dtype, torch.device]:
    """Where and in which dtype an SAE computes: as its weights; fp32 beside the activations if it has none."""
    weights = [*sae.parameters(), *sae.buffers()] if isinstance(sae, nn.Module) else []
    weight = next((tensor for tensor in weights if tensor.is_floating_point()), None)
    return (torch.float32, x.device) if weight is None else (weight.dtype, weight.device)


def _encode(sae: Attachable, x: Float[Tensor, "batch seq d_in"]) -> SparseCode:
    """The code; while gradients are enabled its values keep theirs and pass it on to whatever x depends on."""
    code = sae.encode_sparse(x)
    if not torch.is_grad_enabled():
        return code
    values = code.values
    trainable = isinstance(sae, nn.Module) and any(weight.requires_grad for weight in sae.parameters())
    if not values.requires_grad and (x.requires_grad or trainable):
        # This SAE finds its sparse code without autograd: its dense latents, at the places found, carry the gradient.
        values = torch.where(values != 0, sae.encode(x).gather(-1, code.indices), 0.0)
    if values.requires_grad:
        values.retain_grad()
    else:
        values = values.detach().requires_grad_()
    return SparseCode(values, code.indices, code.d_sae)
