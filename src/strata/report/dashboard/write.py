"""Writing a dashboard: a folder of pages and data that a browser opens from disk."""

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.atomic import write_json
from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import SiteIndex
from strata.log import say
from strata.out_folder import new_folder
from strata.report.dashboard.encoding import bytes_for, rounded, script
from strata.report.dashboard.explained import Explanations
from strata.report.dashboard.features import ExampleGroup, Shown, example_groups, feature_content
from strata.report.dashboard.nearest import Nearest
from strata.report.dashboard.neuronpedia import BatchWriter, NeuronpediaSource
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
    keys: Sequence[str] | None = None,
    shown: Shown | None = None,
    neuronpedia: bool = False,
    progress: bool = True,
) -> Path:
    """Write the pages of the features of an index, in place of a dashboard that is there already.

    The folder holds index.html with its scripts and styles, and data/: run.js, vocabulary.js, and for each SAE in the
    index's order a folder with table.js (a column for each field) and 0.js, 1.js … (the pages of 64 features each). It
    appears whole or not at all. Activations in examples are stored as shares of the feature's largest in two bytes: an
    error of at most 1/131,070 of that.

    The nearest directions take 2·d_sae²·d FLOPs for each SAE, the only part that grows with the square of its width;
    all else goes with firings and windows.

    Args:
        index: of the run.
        run_folder: with run.json.
        out: the folder.
        keys: of which SAEs; None is all.
        shown: how much text.
        neuronpedia: also write neuronpedia/, see `strata.report.dashboard.neuronpedia`.
        progress: say on stderr how far it is.

    Returns:
        index.html.

    Raises:
        UserError: no run in `run_folder`, or `out` cannot be written.
    """
    files = read_run(run_folder)
    sites = [index[key] for key in (index.keys if keys is None else keys)]
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        _Writing(index, files, folder, shown or Shown(), neuronpedia=neuronpedia, progress=progress).all(
            sites,
            report=out.resolve().parent == run_folder.resolve() and (run_folder / "report" / "index.html").is_file(),
        )
    return out / "index.html"


class _Writing:
    """A dashboard on its way to a folder."""

    def __init__(
        self, index: FeatureIndex, files: RunFiles, folder: Path, shown: Shown, *, neuronpedia: bool, progress: bool
    ) -> None:
        self._index, self._files, self._folder, self._shown = index, files, folder, shown
        self._neuronpedia, self._progress = neuronpedia, progress
        self._id_bytes = bytes_for(max(len(index.vocabulary) - 1, 0))
        self._said = time.monotonic()

    def all(self, sites: list[SiteIndex], *, report: bool) -> None:
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
        nearest = Nearest.at(site)
        batches = self._batches(site) if self._neuronpedia else None
        for first in range(0, site.d_sae, CHUNK_LATENTS):
            chunk = []
            for latent in range(first, min(first + CHUNK_LATENTS, site.d_sae)):
                groups = example_groups(site, latent, self._shown)
                tokens.append(_top_token(groups))
                content = feature_content(
                    *(site, latent), groups=groups, nearest=nearest, shown=self._shown, id_bytes=self._id_bytes
                )
                content["explanations"] = explained.content(latent)
                content["layers"] = [(n, int(other.n_fired[latent])) for n, other in siblings]
                chunk.append({name: value for name, value in content.items() if value})
                if batches is not None:
                    batches.add(latent, groups)
            self._put(f"{place}/{first // CHUNK_LATENTS}", chunk)
            self._say(site, first)
        self._put(f"{place}/table", _columns(site, explained, tokens))

    def _batches(self, site: SiteIndex) -> BatchWriter:
        source = NeuronpediaSource(
            model_id=str(self._files.at("model", "name") or self._files.at("config", "model") or ""),
            sae_set=self._files.folder.resolve().name,
            site=site.site,
            suffix=site.key.rpartition("/")[0],
            dataset=str(self._index.record.get("stated", {}).get("data") or ""),
        )
        return BatchWriter(self._folder / "neuronpedia" / site.key, source, site)

    def _put(self, name: str, content: Any) -> None:
        (self._folder / "data" / f"{name}.js").write_text(script(name, content), encoding="ascii")

    def _say(self, site: SiteIndex, latent: int) -> None:
        if time.monotonic() - self._said > _SAID_EVERY_SECONDS:
            self._said = time.monotonic()
            say(f"dashboard: {site.key}, {latent:,} of {site.d_sae:,} features", shown=self._progress)


def _columns(site: SiteIndex, explained: Explanations, tokens: list[int | None]) -> dict[str, Any]:
    """The table of features, by latent."""
    largest = rounded(site.max_activation, 4)
    columns: dict[str, Any] = {"n_fired": site.n_fired.tolist(), "max": largest, "token": tokens}
    if len(explained):
        columns |= {"explanation": explained.texts(site.d_sae), "score": explained.scores(site.d_sae)}
    return columns


def _top_token(groups: list[ExampleGroup]) -> int | None:
    """The token at the largest activation."""
    return int(groups[0].windows.token_ids[0, groups[0].windows.peaks[0]]) if groups else None
