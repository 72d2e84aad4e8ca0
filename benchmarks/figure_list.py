"""Every figure that a page of this repository names: the command that makes it, and where its result lies.

One row per result file, in the order in which they are made, the long ones last: `benchmarks/figures.py` runs them,
`figure_blocks` writes their tables. Commands run from the root of the repository.
"""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("benchmarks/results")
WORK = Path("build/figures")  # unfinished results, logs, and what commands leave for others
RESULT = "RESULT"  # stands for the result's file in a command

_PEERS = ("sae_lens", "sparsify", "dictionary_learning")
_DEMO = str(WORK / "demo")
_GROUPS = str(WORK / "groups")
_OURS = ("strata", "strata-none", "strata@200:6e-3", "strata@150:1e-2")
_THEIRS = (
    "saelens:3e-3,6e-3", "sparsify:default,3e-3,1.6e-2", "sparsify-adam:1e-3,3e-3", "dictionary_learning:1e-3,3e-3"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row.

    Attributes:
        name: its result is `benchmarks/results/NAME.json`.
        about: what is measured, in a line.
        command: words after `python`; `RESULT` is the result's file.
        minutes: about how long it takes on two cores.
        packages: what has to be importable beside Strata.
        after: figures whose results or leavings the command reads.
        leaves: a folder below `WORK` that others read; it is made anew with the figure.
        on_gpu: it needs a CUDA device.
    """

    name: str
    about: str
    command: tuple[str, ...]
    minutes: float
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    leaves: str | None = None
    on_gpu: bool = False

    @property
    def result(self) -> Path:
        """Where the result is kept."""
        return RESULTS / f"{self.name}.json"

    @property
    def unfinished(self) -> Path:
        """Where the command writes it."""
        return WORK / f"{self.name}.json"

    def words(self, result: Path) -> list[str]:
        """The command's words with the file in place."""
        return [word.replace(RESULT, str(result)) for word in self.command]

    def shown(self) -> str:
        """The command as one would type it."""
        words = self.words(self.result)
        if words[:3] == ["-m", "strata", "bench"]:
            return " ".join(["strata", *words[2:]])
        return " ".join(["python", *words])


def _script(name: str, *words: str) -> tuple[str, ...]:
    return (f"benchmarks/{name}.py", *words, "--json", RESULT)


def _bench(*words: str) -> tuple[str, ...]:
    return ("-m", "strata", "bench", "--contenders", *words)


_PEER_NAMES = ("strata", "saelens", "sparsify", "dictionary_learning")

FIGURES = (
    Figure(
        name="demo",
        about="the recipe demo: SAEs on all layers of the embedded model, held-out quality, seconds",
        command=_script("demo", "--run", _DEMO),
        minutes=3,
        leaves="demo",
    ),
    Figure(
        name="bench-384",
        about="a step of Strata and of the peers, d_in 384, d_sae 6144",
        command=(
            *_bench(*_PEER_NAMES, "--rounds", "3", "--steps-per-round", "5", "--rows-from", "demo"),
            *("--json", RESULT),
        ),
        minutes=6,
        packages=_PEERS,
    ),
    Figure(
        name="bench-768",
        about="a step of Strata and of the peers, d_in 768, d_sae 16384",
        command=(
            *_bench(*_PEER_NAMES, "--d-in", "768", "--d-sae", "16384", "--rounds", "2", "--steps-per-round", "3"),
            *("--json", RESULT),
        ),
        minutes=9,
        packages=_PEERS,
    ),
    Figure(
        name="suite",
        about="text to saved SAEs of all 8 layers, Strata and the peers' runners",
        command=_script("suite", "--contenders", "strata", "sparsify", "saelens", "forward"),
        minutes=4,
        packages=(*_PEERS, "datasets"),
    ),
    Figure(
        name="gates",
        about="every gate on the same rows, reopened in SAELens: L0 against k, FVU, silent latents",
        command=_script("gates", "--steps", "300", "--rows", "2048"),
        minutes=7,
        packages=("sae_lens",),
    ),
    Figure(
        name="synthetic",
        about="known features found again: Strata and SAELens' trainer on SAELens' synthetic data",
        command=_script(
            "synthetic", "--rows", "300000", "--runs",
            "strata:topk", "strata:batchtopk", "saelens:1e-3", "saelens:3e-3", "saelens:1e-2",
        ),
        minutes=5,
        packages=("sae_lens",),
    ),
    Figure(
        name="modes",
        about="steps per second collected, from a store and streaming, beside the step and the forward alone",
        command=_script("modes", "--rounds", "4"),
        minutes=9,
    ),
    Figure(
        name="stream-1-site",
        about="streaming against its parts, one layer",
        command=_script("stream", "--rounds", "3", "--steps", "6"),
        minutes=1,
    ),
    Figure(
        name="stream-8-sites",
        about="streaming against its parts, all eight layers",
        command=_script("stream", "--rounds", "3", "--steps", "6", "--sites", "all"),
        minutes=2,
    ),
    Figure(
        name="store",
        about="how fast a store is read beside the disk, and what int8 costs",
        command=_script("store", "--gigabytes", "0.8", "--rounds", "3", "--steps", "100"),
        minutes=4,
    ),
    Figure(
        name="distances",
        about="what measuring the distances of 12 layers adds to the forward",
        command=_script("distances"),
        minutes=4,
    ),
    Figure(
        name="index",
        about="what the index of a run's features costs: to build, to ask, to keep",
        command=_script("index", "--run", _DEMO),
        minutes=6,
        after=("demo",),
    ),
    Figure(
        name="explain",
        about="explaining and scoring every live feature of one SAE by token patterns",
        command=_script("explain", "--run", _DEMO),
        minutes=2,
        after=("demo",),
    ),
    Figure(
        name="dashboard",
        about="pages of all features of 8 SAEs, from nothing",
        command=_script("dashboard", "--run", _DEMO),
        minutes=7,
        after=("demo",),
    ),
    Figure(
        name="steering",
        about="steering by features beside what needs no dictionary: concept, fluency, compute",
        command=_script("steering", "--run", _DEMO),
        minutes=5,
        after=("demo",),
    ),
    Figure(
        name="interactions",
        about="how the cost of interactions grows with the number of features",
        command=_script("interactions", "--rounds", "2", "--tokens", "65536"),
        minutes=3,
    ),
    Figure(
        name="plan",
        about="what `strata plan` predicts after `--calibrate`, and what the commands then take",
        command=_script("plan"),
        minutes=12,
    ),
    Figure(
        name="doctor",
        about="what `strata doctor` says of trainings with one thing spoilt in each",
        command=_script("doctor"),
        minutes=4,
    ),
    Figure(
        name="scaling-coverage",
        about="how often the 90 % intervals of the fitted laws hold the truth",
        command=_script("scaling_coverage"),
        minutes=1,
    ),
    Figure(
        name="long",
        about="dead latents after ten million rows, from the command line",
        command=_script("long", "--folder", str(WORK / "long")),
        minutes=25,
    ),
    Figure(
        name="scaling",
        about="laws of width, tokens and k from 60 SAEs on one layer of the embedded model",
        command=_script("scaling", "--folder", str(WORK / "scaling")),
        minutes=35,
        leaves="scaling",
    ),
    Figure(
        name="dead",
        about="dead latents: every revival method, with and without centring, on four kinds of rows",
        command=_script("dead", "--plot", "docs/dead-latents.svg"),
        minutes=40,
        packages=("matplotlib",),
    ),
    Figure(
        name="quality",
        about="held-out FVU after equal rows, Strata and peers at several learning rates; time to a peer's final FVU",
        command=(
            *_bench("strata", "--rounds", "1", "--no-memory", "--no-language-model", "--rows-from", "demo"),
            *("--quality", "--quality-runs", *_OURS, *_THEIRS, "--quality-file", RESULT),
        ),
        minutes=60,
        packages=_PEERS,
    ),
    Figure(
        name="groups",
        about="layer groups: every partition of the embedded model's layers, three seeds",
        command=_script("groups", "--out", _GROUPS, "--plot", "docs/layer-groups.svg"),
        minutes=90,
        packages=("matplotlib",),
        leaves="groups",
    ),
    Figure(
        name="group-features",
        about="how easy the features of groups are to explain, beside those of one SAE per layer",
        command=_script("group_features", "--saes", _GROUPS),
        minutes=8,
        after=("groups",),
    ),
    Figure(
        name="gpu",
        about="the step and a stream on a GPU",
        command=_script("gpu"),
        minutes=20,
        packages=_PEERS,
        on_gpu=True,
    ),
)  # fmt: skip


BY_NAME = {figure.name: figure for figure in FIGURES}
