"""One SAE for a group of layers: encoder and decoder are shared, biases and thresholds are each layer's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from strata.config.layer_groups import group_name
from strata.errors import UserError, did_you_mean
from strata.sae.model import SAE
from strata.shapes import SparseCode


class GroupSAE(nn.Module):
    """The SAE of a group of layers (Ghilardi et al. 2024, arXiv 2410.21508), in the model's own scale at each of them.

    A layer's SAE is an ordinary one, `group.at("layers.1")`. All share W_enc and W_dec; the normalisation of each layer
    is in its own biases and thresholds, so there is no code without a layer, and asking for one raises, but for a group
    of a single layer.

    Args:
        saes: site → its SAE, in the model's order, of one gate, encoder and decoder. They stay as they are; the group's
            share the first one's W_enc and W_dec.

    Raises:
        UserError: no site, or SAEs that do not share encoder and decoder.
    """

    def __init__(self, saes: Mapping[str, SAE]) -> None:
        super().__init__()
        if not saes:
            raise UserError("`GroupSAE` needs the SAE of at least one layer. Got none.")
        first = next(iter(saes.values()))
        for site, sae in saes.items():
            if type(sae) is not SAE or sae.gate.architecture != first.gate.architecture or not _share(sae, first):
                raise UserError(f"`GroupSAE` needs SAEs of one gate, encoder and decoder. That of {site} has others.")
        self.sites = list(saes)
        self._saes = nn.ModuleList([_of(sae, first) for sae in saes.values()])

    @property
    def name(self) -> str:
        """`layers.0-2`."""
        return group_name(self.sites)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self._first.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self._first.d_sae

    @property
    def W_enc(self) -> Tensor:
        """[d_in d_sae], of all layers."""
        return self._first.W_enc

    @property
    def W_dec(self) -> Tensor:
        """[d_sae d_in], of all layers."""
        return self._first.W_dec

    def at(self, site: str) -> SAE:
        """The SAE of a layer: an ordinary one, which shares its encoder and decoder with the others.

        Raises:
            UserError: the layer is not in the group.
        """
        if site not in self.sites:
            raise UserError(f"The group {self.name} has no layer {site!r}.{did_you_mean(site, self.sites)}")
        found = self._saes[self.sites.index(site)]
        assert isinstance(found, SAE)
        return found

    def encode(self, x: Tensor, site: str | None = None) -> Tensor:
        """Latents of activations of a layer, as `SAE.encode`.

        Args:
            x: activations [... d_in], in the model's own scale.
            site: the layer that they are of, one of `sites`.

        Raises:
            UserError: no layer, or one that is not in the group.
        """
        return self._named(site).encode(x)

    def encode_sparse(self, x: Tensor, site: str | None = None) -> SparseCode:
        """The same as a code.

        Args:
            x: activations [... d_in].
            site: their layer.

        Raises:
            UserError: as of `encode`.
        """
        return self._named(site).encode_sparse(x)

    def decode(self, latents: Tensor | SparseCode, site: str | None = None) -> Tensor:
        """Reconstruction at a layer.

        Args:
            latents: [... d_sae], or a code.
            site: the layer whose scale the reconstruction shall have.

        Raises:
            UserError: as of `encode`.
        """
        return self._named(site).decode(latents)

    def forward(self, x: Tensor, site: str | None = None) -> Tensor:
        """Reconstruction of activations of a layer.

        Args:
            x: activations [... d_in].
            site: their layer.

        Raises:
            UserError: as of `encode`.
        """
        return self._named(site)(x)

    def save(self, folder: str | Path) -> None:
        """Write the group's folder, and in it one SAELens folder per layer (see strata.formats.group)."""
        from strata.formats import group

        group.save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> "GroupSAE":
        """Read what `save` wrote; the folder of an SAE is a group of one layer.

        Raises:
            UserError: a file is missing or damaged.
        """
        from strata.formats import group

        return group.load(Path(folder))

    @property
    def _first(self) -> SAE:
        return self.at(self.sites[0])

    def _named(self, site: str | None) -> SAE:
        if site is None and len(self.sites) > 1:
            self._refuse()
        return self.at(self.sites[0] if site is None else site)

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"The layer must be named, since the group {self.name} normalises each by itself. Write"
            f" group.at({self.sites[0]!r}), or give site={self.sites[0]!r}."
        )


def _share(sae: SAE, first: SAE) -> bool:
    """Whether two SAEs have one encoder and decoder."""
    pairs = ((sae.W_enc, first.W_enc), (sae.W_dec, first.W_dec))
    return all(a.data_ptr() == b.data_ptr() or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def _of(sae: SAE, first: SAE) -> SAE:
    """The same SAE with the very encoder and decoder of the first."""
    shared = SAE(W_enc=first.W_enc, b_enc=sae.b_enc, W_dec=first.W_dec, b_dec=sae.b_dec, gate=sae.gate,
                 metadata=sae.metadata)  # fmt: skip
    shared.W_enc, shared.W_dec = first.W_enc, first.W_dec  # not only their memory: so that both move together
    return shared


def per_layer(saes: Mapping[str, SAE | GroupSAE]) -> dict[str, SAE]:
    """Every layer's SAE: a group's under `layers.0-2/layers.1`, others under their own key."""
    found: dict[str, SAE] = {}
    for key, sae in saes.items():
        if isinstance(sae, GroupSAE):
            found |= {f"{key}/{site}": sae.at(site) for site in sae.sites}
        else:
            found[key] = sae
    return found
