"""Which features fire on a text that somebody has at hand: the quickest look that there is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from markupsafe import escape
from torch import Tensor

from strata.activations.harvest import harvest, token_stream
from strata.amounts import counted
from strata.errors import UserError, did_you_mean
from strata.interpret.shown_texts import ShownText
from strata.lm.model import LanguageModel
from strata.lm.vocabulary import token_texts
from strata.sae.group import GroupSAE
from strata.sae.model import SAE


@dataclass(frozen=True)
class TextFeature:
    """A feature on a text.

    Attributes:
        latent: its number.
        activation: the largest on the text.
        n_fired: on how many of the text's tokens it fires.
        text: the text with its activation at each token; special tokens are 0.
    """

    latent: int
    activation: float
    n_fired: int
    text: ShownText


@dataclass(frozen=True)
class TextFeatures:
    """The strongest features of a text, the strongest first: a table in a notebook, lines elsewhere.

    Attributes:
        site: where the SAE reads.
        features: the features.
    """

    site: str
    features: tuple[TextFeature, ...]

    def __len__(self) -> int:
        """How many features."""
        return len(self.features)

    def __iter__(self) -> Iterator[TextFeature]:
        """The features, the strongest first."""
        return iter(self.features)

    def __getitem__(self, place: int) -> TextFeature:
        """One of the features."""
        return self.features[place]

    def __repr__(self) -> str:
        fired = [counted(f.n_fired, "token") for f in self.features]
        lines = (f"{f.latent:>8}  {f.activation:8.3g}  {n:>10}  {f.text}" for f, n in zip(self, fired, strict=True))
        return "\n".join([f"{self.site}: the strongest features", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{f.latent}</td><td>{f.activation:.3g}</td><td>{f.n_fired}</td>"
            '<td style="text-align:left"><pre style="margin:0;white-space:pre-wrap">'
            f"{f.text.html(full=f.activation)}</pre></td></tr>"
            for f in self.features
        )
        head = "<tr><th>latent</th><th>activation</th><th>tokens</th><th>text</th></tr>"
        return f"<p>{escape(self.site)}: the strongest features</p><table>{head}{rows}</table>"


@torch.inference_mode()
def top_features(
    lm: LanguageModel, text: str, sae: SAE | GroupSAE, *, site: str | None = None, n: int = 10, by: str = "activation"
) -> TextFeatures:
    """The features of an SAE that are strongest on a text.

    Args:
        lm: the language model; it runs no further than the SAE's site.
        text: the text; one longer than the model's context is read in several pieces, each on its own.
        sae: the SAE, or the layer's of a group: ``group.at("layers.3")``.
        site: where it reads; None is where it was trained.
        n: how many features at most.
        by: "activation" (the largest on a token), "mean" (over all tokens), or "tokens" (on how many it fires).

    Returns:
        Features that fire, by falling `by`; of equal ones the lower number first.

    Raises:
        UserError: a text without a token, an SAE that does not say where it reads, or another `by`.
    """
    if isinstance(sae, GroupSAE):
        raise UserError("`sae` must be of one layer. Got a group's. Name the layer: group.at('layers.3').")
    site = site or sae.metadata.get("site")
    if site is None:
        raise UserError("`site` must be given for an SAE that does not say where it was trained. Give site='layers.3'.")
    orders = ("activation", "mean", "tokens")
    if by not in orders:
        raise UserError(f"`by` must be one of {', '.join(orders)}. Got {by!r}.{did_you_mean(by, orders)}")
    if n < 1:
        raise UserError(f"`n` must be at least 1. Got {n}. Leave it out for 10.")
    ids: list[Tensor] = []
    latents: list[Tensor] = []
    for batch in token_stream(lm, [text], text_batch_size=1):
        found = torch.zeros(batch.input_ids.numel(), sae.d_sae)
        is_row = batch.is_row.reshape(-1)
        if bool(is_row.any()):
            found[is_row] = sae.encode_sparse(harvest(lm, batch, [site])[site].to(sae.device)).dense().float().cpu()
        there = batch.attention_mask.reshape(-1)
        ids.append(batch.input_ids.reshape(-1)[there])
        latents.append(found[there])
    latent = torch.cat(latents)  # [tokens d_sae]
    n_fired, largest = (latent > 0).sum(0), latent.amax(0)
    order = {"activation": largest, "mean": latent.mean(0), "tokens": n_fired.float()}[by]
    ranked = [int(i) for i in order.argsort(descending=True, stable=True)[:n]]
    vocabulary = token_texts(lm.tokenizer, lm.vocabulary_size)
    tokens = tuple(vocabulary[int(number)] for number in torch.cat(ids).numpy())
    features = (
        TextFeature(i, largest[i].item(), int(n_fired[i]), ShownText(tokens, tuple(latent[:, i].numpy().tolist()),
                                                                   int(latent[:, i].argmax())))
        for i in ranked if n_fired[i] > 0
    )  # fmt: skip
    return TextFeatures(site, tuple(features))
