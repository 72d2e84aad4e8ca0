"""A finished run opened for steering: its language model, the SAE of one site, and what one unit of strength is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strata.costs.steering import sae_training_flops
from strata.errors import UserError, did_you_mean
from strata.evaluate.opened import opened
from strata.evaluate.runs import Run, Suite, open_run, open_suites
from strata.evaluate_config import EvaluateConfig
from strata.groups.cost import known_forward_flops
from strata.lm.tokens import TokenBatch
from strata.log import say
from strata.steer.intervention import Number, Strength
from strata.steer.subject import Subject
from strata.steer_config import SteerConfig

_HELD_OUT_TOKENS = 16_384
_FEW_TOKENS = 1024  # where nothing is measured on them


@dataclass(frozen=True)
class OpenedRun:
    """A run with its language model loaded.

    Attributes:
        run: the run.
        subject: the model, the site and its SAE.
        key: of the site in the run's index.
        batches: held-out text.
    """

    run: Run
    subject: Subject
    key: str
    batches: list[TokenBatch]

    def strength(self, value: Number, *, unit: str, latent: int) -> Strength:
        """A strength in one of the units, whose size is looked up or measured.

        Raises:
            UserError: the feature never fires.
        """
        if unit == "norm":
            return Strength(value=value, unit="norm", size=self.mean_norm())
        if unit == "max_activation":
            return Strength(value=value, unit="max_activation", size=self.max_activation(latent))
        return Strength(value=value)

    def max_activation(self, latent: int) -> float:
        """The feature's largest activation: in the run's index if there is one, else in some held-out text.

        Raises:
            UserError: it never fires there.
        """
        indexed = _indexed(self.run.folder / "index", self.key)
        if indexed is not None:
            most, where = float(indexed.max_activation[latent]), f"the {indexed.n_rows:,} rows of the run's index"
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
        """Of the site's activations in held-out text."""
        norms = torch.cat([rows.norm(dim=-1) for rows in self._rows()])
        return float(norms.mean())

    def _rows(self) -> Iterator[torch.Tensor]:
        lm, site = self.subject.lm, self.subject.site
        for batch in self.batches:
            h = lm.activations(batch.input_ids, site, attention_mask=batch.attention_mask)[site]
            yield h[batch.is_row.to(h.device)].float()


@contextmanager
def opened_run(config: SteerConfig) -> Iterator[OpenedRun]:
    """Load what a steering needs; the SAE is on the model's device as long as the context lasts.

    Raises:
        UserError: no such run, site, SAE or latent, or what `strata.evaluate.opened.opened` raises.
    """
    run = open_run(Path(config.run))
    suites = open_suites([run], progress=False)
    site = _site(suites, config.site)
    suite, folder = _suite(suites, site, config.sae)
    sae = suite.saes[site]
    if config.latent != "none" and not 0 <= config.latent < sae.d_sae:
        raise UserError(
            f"`latent` must be in [0, {sae.d_sae}), the latents at {site}. Got {config.latent}. Choose another."
        )
    n_tokens = _FEW_TOKENS if config.benchmark else _HELD_OUT_TOKENS
    reading: Any = {"runs": (run.folder,), "n_tokens": n_tokens, "tasks": ("none",)}
    how = EvaluateConfig(device=config.device, trust_remote_code=config.trust_remote_code, **reading)
    with opened([suite], run.data, how, progress=False) as loaded:
        forward = known_forward_flops(loaded.lm, [site], context_tokens=run.config["context_tokens"])
        flops, n_rows = math.nan, run.record.get("n_rows")
        if n_rows and forward is not None:
            flops = sae_training_flops(n_rows, forward_flops=forward, d_in=sae.d_in, d_sae=sae.d_sae, k=suite.k)
        subject = Subject(lm=loaded.lm, site=site, sae=sae, sae_training_flops=flops)
        yield OpenedRun(run, subject, folder, loaded.batches)


def _site(suites: list[Suite], wanted: str) -> str:
    sites = list(dict.fromkeys(site for suite in suites for site in suite.saes))
    if wanted == "auto":
        return sites[(len(sites) - 1) // 2]
    if wanted not in sites:
        raise UserError(f"`site` must be one that the run has an SAE of. Got {wanted!r}.{did_you_mean(wanted, sites)}")
    return wanted


def _suite(suites: list[Suite], site: str, wanted: str) -> tuple[Suite, str]:
    """The suite that holds the SAE, and the SAE's folder in the run's folder ``sae``."""
    having = {_folder(suite, site): suite for suite in suites if site in suite.saes}
    if wanted == "auto" and len(having) == 1:
        return next(iter(having.values())), next(iter(having))
    if wanted not in having:
        given = "none of them" if wanted == "auto" else repr(wanted)
        known = did_you_mean(wanted, having)
        raise UserError(
            f"`sae` must name one of the {len(having)} SAEs that the run has at {site}. Got {given}.{known}"
        )
    return having[wanted], wanted


def _folder(suite: Suite, site: str) -> str:
    key = suite.keys[site]
    return key if key.split("/")[-1] == site else f"{key}/{site}"


def _indexed(folder: Path, key: str) -> Any:
    """The site in the run's index; None where there is no index, or not of this site, or one that cannot be read, as
    one that is being made: then a line says so.
    """
    if not (folder / "index.json").is_file():
        return None
    from strata.interpret.index import FeatureIndex

    try:
        index = FeatureIndex.open(folder)
        return index[key] if key in index.keys else None
    except UserError as error:
        say(f"{error} Measured on held-out text instead.")
        return None
