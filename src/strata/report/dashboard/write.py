"""Writing a dashboard: a folder of pages and data that a browser opens from disk."""

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.atomic import put_folder, write_json
from strata.errors import UserError
from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import SiteIndex
from strata.log import say
from strata.report.dashboard.encoding import bytes_for, rounded, script
from strata.report.dashboard.explained import Explanations
from strata.report.dashboard.features import ExampleGroup, Shown, example_groups, feature_content
from strata.report.dashboard.neuronpedia import BATCH_LATENTS, NeuronpediaSource, neuronpedia_feature
from strata.report.dashboard.overview import group_of, run_content, sae_content
from strata.report.run_files import RunFiles, read_run

HERE = Path(__file__).parent
RECORD = "dashboard.json"
CHUNK_LATENTS = 64
_PAGES = ("index.html", "data.js", "elements.js", "tokens.js", "table.js", "charts.js", "feature.js", "app.js")
_SAID_EVERY_SECONDS = 5


def write_dashboard(
    index: FeatureIndex,
    *,
    run_folder: Path,
    out: Path,
    shown: Shown | None = None,
    neuronpedia: bool = False,
    progress: bool = True,
) -> Path:
    """Write the pages of all features of an index, in place of a dashboard that is there already.

    The folder holds index.html with its scripts and styles, and data/: run.js, vocabulary.js, and for each SAE in the
    index's order a folder with table.js (a column for each field) and 0.js, 1.js … (the pages of 64 features each). It
    appears whole or not at all. Activations in examples are stored as shares of the feature's largest in two bytes: an
    error of at most 1/131,070 of that.

    Args:
        index: of the run.
        run_folder: with run.json.
        out: the folder.
        shown: how much text.
        neuronpedia: also write neuronpedia/, see `strata.report.dashboard.neuronpedia`.
        progress: say on stderr how far it is.

    Returns:
        index.html.

    Raises:
        UserError: no run in `run_folder`, or `out` cannot be written.
    """
    files = read_run(run_folder)
    unfinished = out.with_name(f".unfinished-{out.name}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "data").mkdir(parents=True)
        _Writing(index, files, unfinished, shown or Shown(), neuronpedia=neuronpedia, progress=progress).all(
            report=out.resolve().parent == run_folder.resolve() and (run_folder / "report" / "index.html").is_file()
        )
        put_folder(unfinished, out)
    except OSError as error:
        raise UserError(
            f"`out` must be a folder that can be written. {out}: {error.strerror}. Give another path."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out / "index.html"


def check_free(folder: Path, *, overwrite: bool) -> None:
    """A folder that exists is replaced only if told to, and only if it holds a dashboard.

    Raises:
        UserError: it may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"`out` must be a new folder. {folder} exists already. Give another with --out, or replace it with"
            f" --overwrite."
        )
    if not (folder / RECORD).is_file() or (folder / "run.json").exists():
        raise UserError(
            f"`overwrite` replaces dashboards only. {folder} holds no dashboard. Give another path with --out."
        )


class _Writing:
    """A dashboard on its way to a folder."""

    def __init__(
        self, index: FeatureIndex, files: RunFiles, folder: Path, shown: Shown, *, neuronpedia: bool, progress: bool
    ) -> None:
        self._index, self._files, self._folder, self._shown = index, files, folder, shown
        self._neuronpedia, self._progress = neuronpedia, progress
        self._id_bytes = bytes_for(max(len(index.vocabulary) - 1, 0))
        self._said = time.monotonic()

    def all(self, *, report: bool) -> None:
        sites = [self._index[key] for key in self._index.keys]
        explained = [Explanations.read(site.folder) for site in sites]
        for place, site in enumerate(sites):
            self._write_site(site, explained[place], place, sites)
        saes = [sae_content(site, self._files, told) for site, told in zip(sites, explained, strict=True)]
        written = {"chunk": CHUNK_LATENTS, "id_bytes": self._id_bytes, "place_bytes": self._shown.place_bytes}
        about = run_content(self._index, self._files, saes, report=report, written=written)
        self._put("run", about)
        self._put("vocabulary", self._index.vocabulary)
        for name in _PAGES:
            shutil.copyfile(HERE / name, self._folder / name)
        styles = [path.read_text(encoding="utf-8") for path in (HERE.parent / "style.css", HERE / "dashboard.css")]
        (self._folder / "style.css").write_text("\n".join(styles), encoding="utf-8")
        record = {"strata_version": version("strata-sae"), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        write_json(self._folder / RECORD, record | {"saes": [site.key for site in sites]})

    def _write_site(self, site: SiteIndex, explained: Explanations, place: int, sites: list[SiteIndex]) -> None:
        group = group_of(site.key)
        siblings = [(n, other) for n, other in enumerate(sites) if group and group_of(other.key) == group]
        (self._folder / "data" / str(place)).mkdir()
        tokens: list[int | None] = []
        effects = site.logit_effects()
        for first in range(0, site.d_sae, CHUNK_LATENTS):
            chunk = []
            for latent in range(first, min(first + CHUNK_LATENTS, site.d_sae)):
                groups = example_groups(site, latent, self._shown)
                tokens.append(_top_token(groups))
                content = feature_content(
                    site, latent, groups=groups, effects=effects, shown=self._shown, id_bytes=self._id_bytes
                )
                content["explanations"] = explained.content(latent)
                content["layers"] = [(n, int(other.n_fired[latent])) for n, other in siblings]
                chunk.append({name: value for name, value in content.items() if value})
            self._put(f"{place}/{first // CHUNK_LATENTS}", chunk)
            self._say(site, first)
        columns: dict[str, Any] = {
            "n_fired": site.n_fired.tolist(),
            "max": rounded(site.max_activation, 4),
            "token": tokens,
        }
        if len(explained):
            columns |= {"explanation": explained.texts(site.d_sae), "score": explained.scores(site.d_sae)}
        self._put(f"{place}/table", columns)
        if self._neuronpedia:
            self._write_neuronpedia(site)

    def _write_neuronpedia(self, site: SiteIndex) -> None:
        folder = self._folder / "neuronpedia" / site.key
        folder.mkdir(parents=True)
        source = NeuronpediaSource(
            model_id=str(self._files.at("model", "name") or self._files.at("config", "model") or ""),
            sae_set=self._files.folder.resolve().name,
            site=site.site,
            suffix=site.key.rpartition("/")[0],
            dataset=str(self._index.record.get("stated", {}).get("data") or ""),
        )
        vocabulary, effects = self._index.vocabulary, site.logit_effects()
        for first in range(0, site.d_sae, BATCH_LATENTS):
            features = [
                neuronpedia_feature(
                    site, latent, groups=groups, effects=effects, vocabulary=vocabulary, dataset=source.dataset
                )
                for latent, groups in self._live(site, first)
            ]
            path = folder / f"batch-{first // BATCH_LATENTS}.json"
            path.write_text(source.batch(features), encoding="utf-8")

    def _live(self, site: SiteIndex, first: int) -> Iterator[tuple[int, list[ExampleGroup]]]:
        for latent in range(first, min(first + BATCH_LATENTS, site.d_sae)):
            if groups := example_groups(site, latent, self._shown):
                yield latent, groups

    def _put(self, name: str, content: Any) -> None:
        (self._folder / "data" / f"{name}.js").write_text(script(name, content), encoding="ascii")

    def _say(self, site: SiteIndex, latent: int) -> None:
        if time.monotonic() - self._said > _SAID_EVERY_SECONDS:
            self._said = time.monotonic()
            say(f"dashboard: {site.key}, {latent:,} of {site.d_sae:,} features", shown=self._progress)


def _top_token(groups: list[ExampleGroup]) -> int | None:
    """The token at the largest activation."""
    return int(groups[0].windows.token_ids[0, groups[0].windows.peaks[0]]) if groups else None
