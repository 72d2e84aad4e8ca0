"""What `strata evaluate` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, names_unknown_settings, require
from strata.errors import UserError


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """An evaluation of finished runs, side by side, on held-out text: what `strata evaluate RUN ...` does."""

    runs: tuple[Path, ...]
    """Folders of runs. Each is a suite of SAEs; a sweep is one for each combination of its settings."""
    n_tokens: int = 32_768
    """Tokens of held-out documents to measure on."""
    data: str = "auto"
    """The text; "auto" is that of the runs, which must be the same for all."""
    pca: bool = True
    """Compare with principal components, as many as the SAEs have active latents."""
    tasks: tuple[str, ...] = ("auto",)
    """Downstream tasks, by name; "auto" are those that the tokenizer can express, "none" is none."""
    n_pairs: int = 128
    """Pairs of prompts for each task."""
    circuits: Literal["none", "attribution", "integrated"] = "none"
    """Find feature circuits of the tasks and measure how faithful they are. "attribution" takes two forward passes and
    a backward one for all sites; "integrated", whose gradients are the mean over ten points, two forward passes and
    ten of each kind for every site. Both take two forward passes for each size of circuit, with and without errors."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of the lm-evaluation-harness (extra `lm-eval`), for the model itself and with each suite in all its sites
    (slow)."""
    lm_eval_limit: Literal["all"] | int = "all"
    """How many documents of each of these tasks, the first ones."""
    lm_eval_path: Literal["none"] | Path = "none"
    """Folder with YAML files of tasks of your own for it."""
    out: Path | Auto = "auto"
    """Folder of the results; "auto" is RUN/evaluation for one run and evaluations/<names> for several."""
    overwrite: bool = False
    """Replace an evaluation that exists already."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    lm_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the language model's forward; "auto" is bf16 where the hardware multiplies it fast."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        check_kinds(self)
        require(bool(self.runs), "runs", "name at least one run folder", "none", "Give e.g. runs/demo-stdlib.")
        resolved = [Path(run).resolve() for run in self.runs]
        twice = next((run for place, run in enumerate(resolved) if run in resolved[:place]), None)
        require(twice is None, "runs", "name each run once", f"{twice} twice", "Leave one out.")
        for name, least in (("n_tokens", 2), ("n_pairs", 4)):
            value = getattr(self, name)
            require(value >= least, name, f"be at least {least}", value, "Give a larger number.")
        require(bool(self.tasks), "tasks", "name tasks", "nothing", 'Give names, "auto" or "none".')
        for word in ("auto", "none"):
            alone = word not in self.tasks or len(self.tasks) == 1
            given = " ".join(self.tasks)
            require(alone, "tasks", f'be "{word}" alone or names', given, f'Leave "{word}" out.')
        if self.circuits != "none" and self.tasks == ("none",):
            raise UserError('`circuits` are found for tasks. Got tasks "none". Name some, or leave circuits out.')

        twice = next((task for place, task in enumerate(self.lm_eval) if task in self.lm_eval[:place]), None)
        require(twice is None, "lm_eval", "name each task once", f"{twice} twice", "Leave one out.")
        require(
            self.lm_eval_limit == "all" or self.lm_eval_limit >= 1,
            "lm_eval_limit",
            "be at least 1",
            self.lm_eval_limit,
            'Give a larger number or "all".',
        )
        for name, without in (("lm_eval_limit", "all"), ("lm_eval_path", "none")):
            given = getattr(self, name)
            require(
                bool(self.lm_eval) or given == without,
                name,
                "come with tasks of lm-eval",
                f"{given} and no task",
                "Name some with --lm-eval.",
            )

    def folder(self) -> Path:
        """The folder of the results: `out`, or one named after the runs."""
        if self.out != "auto":
            return Path(self.out)
        runs = [Path(run) for run in self.runs]
        if len(runs) == 1:
            return runs[0] / "evaluation"
        names = [run.resolve().name for run in runs]
        more = [f"and-{len(names) - 3}-more"] if len(names) > 3 else []
        return Path("evaluations") / "+".join([*names[:3], *more])
