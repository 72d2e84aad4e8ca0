"""A finished run opened for steering: its language model, the SAE of one site, and what one unit of strength is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.steer import SteerConfig
from strata.costs.steering import sae_training_flops
from strata.errors import UserError
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.places import Place, chosen_place, places_of, swept_settings
from strata.evaluate.run_model import check_weights, language_model_of
from strata.evaluate.runs import Run, open_run
from strata.lm.flops import known_forward_flops
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.log import say
from strata.sae.model import SAE
from strata.sae.sinks import Sinks
from strata.steer.intervention import Number, Strength, norms
from strata.steer.subject import Subject

if TYPE_CHECKING:
    from strata.interpret.site_index import SiteIndex

_HELD_OUT_TOKENS = 16_384


@dataclass(frozen=True)
class OpenedRun:
    """A run with its language model loaded.

    Attributes:
        run: the run.
        subject: the model, the site and its SAE.
        key: of the SAE in the run's index: its folder below the run's sae/.
    """

    run: Run
    subject: Subject
    key: str

    def strength(self, value: Number, *, unit: str, latent: int) -> Strength:
        """A strength in one of the units, whose size is looked up or measured.

        Raises:
            UserError: the feature never fires, or there is no text to measure on.
        """
        if unit == "norm":
            return Strength(value=value, unit="norm", size=self.mean_norm())
        if unit == "max_activation":
            return Strength(value=value, unit="max_activation", size=self.max_activation(latent))
        return Strength(value=value)

    def max_activation(self, latent: int) -> float:
        """The feature's largest activation: in the run's index if there is one, else in some held-out text.

        Raises:
            UserError: it never fires there, or there is neither index nor text.
        """
        if self.indexed:
            (site,) = self.indexed
            most, where = float(site.max_activation[latent]), f"the {site.n_rows:,} rows of the run's index"
        else:
            most, n_rows = 0.0, 0
            for rows in self._rows():
                code = self.subject.sae.encode_sparse(rows)
                most = max(most, float(torch.where(code.indices == latent, code.values, 0.0).max()))
                n_rows += len(rows)
            where = f"{n_rows:,} rows of held-out text"
        if most == 0:
            raise UserError(
                f"`unit` max_activation must come with a latent that fires. Latent {latent} of {self.key} never does in"
                f" {where}. Choose another, or give --unit norm."
            )
        return most

    def mean_norm(self) -> float:
        """Of the site's activations in held-out text.

        Raises:
            UserError: there is no such text.
        """
        return float(torch.cat([norms(rows) for rows in self._rows()]).mean())

    def explanation(self, latent: int) -> str:
        """What the run's index says of a feature; empty where it says nothing."""
        from strata.interpret.explain.record import read_all_explanations

        if not self.indexed:
            return ""
        found = [one[latent].text for one in read_all_explanations(self.indexed[0].folder).values() if latent in one]
        return next(filter(None, found), "")

    @cached_property
    def indexed(self) -> "tuple[SiteIndex, ...]":
        """The SAE in the run's index; none where there is no index, or not of this SAE, or one that cannot be read, as
        one that is being made: then a line says so.
        """
        folder = self.run.folder / "index"
        if not (folder / "index.json").is_file():
            return ()
        from strata.interpret.index import FeatureIndex

        try:
            index = FeatureIndex.open(folder)
            return (index[self.key],) if self.key in index.keys else ()
        except UserError as error:
            say(f"{error} It is not used.")
            return ()

    @cached_property
    def _held_out(self) -> list[TokenBatch]:
        """Read when it is first needed: with an index, or strengths of no unit, it never is."""
        context_tokens, text_batch_size = self.run.config["context_tokens"], self.run.text_batch_size
        lm, data = self.subject.lm, self.run.data
        found = held_out_batches(lm, data, n_tokens=_HELD_OUT_TOKENS, context_tokens=context_tokens,
                                 text_batch_size=text_batch_size)  # fmt: skip
        if not found:
            raise UserError(
                f"`unit` must be absolute where a text has no held-out documents to measure on. {data!r} has none. Give"
                " --unit absolute, or index the run: strata explain RUN."
            )
        return found

    def _rows(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Of held-out text; attention sinks, told from the first batch, are left out."""
        lm, site = self.subject.lm, self.subject.site
        sinks: Sinks | None = None
        for batch in self._held_out:
            h = lm.activations(batch.input_ids, site, attention_mask=batch.attention_mask)[site]
            rows = h[batch.is_row.to(h.device)].float()
            sinks = sinks or Sinks.told_from(rows, site=site)
            yield rows[sinks.spared(rows)]


def opened_run(config: SteerConfig) -> OpenedRun:
    """Load what a steering needs: the language model, and of the run's SAEs the one that is meant.

    Raises:
        UserError: no such run, site, SAE or latent; several sites where one has to be named; a language model that
            cannot be loaded or is not the one that was trained on.
    """
    run = open_run(Path(config.run))
    places = places_of(run)
    place = chosen_place(places, site=_site(places, config), key=config.sae)
    sae = place.load()
    if config.latent != "none" and not 0 <= config.latent < sae.d_sae:
        raise UserError(
            f"`latent` must be in [0, {sae.d_sae}), the latents at {place.site}. Got {config.latent}. Choose another."
        )
    lm = language_model_of(run, device=config.device, trust_remote_code=config.trust_remote_code)
    check_weights(lm, run)
    flops = _training_flops(run, place, lm, sae)
    subject = Subject(lm=lm, site=place.site, sae=sae.to(lm.device), sae_training_flops=flops)
    return OpenedRun(run, subject, place.key)


def _site(places: Sequence[Place], config: SteerConfig) -> str:
    """The site that is named, else the only one, else for a comparison of methods the middle one."""
    sites = list(dict.fromkeys(place.site for place in places))
    if config.site != "auto":
        return config.site
    if len(sites) > 1 and not config.benchmark:
        raise UserError(
            f"`site` must be named where a run has several. Got auto and {', '.join(sites)}. Give e.g. --site"
            f" {sites[(len(sites) - 1) // 2]}."
        )
    return sites[(len(sites) - 1) // 2]


def _training_flops(run: Run, place: Place, lm: LanguageModel, sae: SAE) -> float:
    """NaN where the run's record or the model's configuration does not tell."""
    forward = known_forward_flops(lm, [place.site], context_tokens=run.config["context_tokens"])
    n_rows = run.record.get("n_rows")
    if not n_rows or forward is None:
        return math.nan
    k = int(swept_settings(place.label).get("k") or run.config["sae"]["k"])
    return sae_training_flops(n_rows, forward_flops=forward, d_in=sae.d_in, d_sae=sae.d_sae, k=k)
