"""The command `strata`: words and flags in, exit code out."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

from strata.errors import UserError, did_you_mean
from strata.flags import parsed

_USAGE = """\
Strata trains sparse autoencoders on the activations of language models.

usage: strata COMMAND [...]

commands:
  plan [COMMAND] [--flags]     what a training (or collect, groups, evaluate) would cost, before it is paid
  train [RECIPE] [--flags]     from text to SAEs and a report; `strata train --help` lists recipes and flags
  collect [--flags]            activations to disk, shuffled, for `strata train --activations FOLDER`
  groups [MODEL] [--flags]     how alike the layers are, and which of them could share an SAE
  evaluate RUN... [--flags]    runs side by side on held-out text: reconstruction, loss, tasks, baselines, cost
  explain RUN [--flags]        what its features mean: explanations, scored on text that the explainer did not see
  dashboard RUN [--flags]      a page for every feature, to be opened from disk: examples, explanations, logits
  steer RUN [--flags]          generate text with a feature made stronger, fixed or taken away
  interactions RUN [--flags]   which features fire together, and which act on which
  bench [--flags]              one SAE step on this machine beside the peers that are installed, and the floors
  doctor RUN                   whether a run goes as it should, finished or not: findings, evidence, what to do
  scaling STORE [--flags]      a sweep of widths, tokens and k, and the laws that fit it
  export FOLDER [--flags]      a run or an SAE for SAELens, sparsify, dictionary_learning, Gemma Scope, the Hub
  import FOLDER [--flags]      SAEs of those libraries as Strata's own folders

examples:
  strata plan demo --calibrate                          seconds, memory, disk of it on this machine; and what else to do
  strata train demo                                     the embedded model on the Python standard library, every layer
  strata train --model EleutherAI/pythia-160m --data my.jsonl --sites layers.6 --sae.k 32
  strata train --sites layers.3 --sweep k=16,32,64 seed=0,1 --out runs/sweep
  strata train demo --resume                            go on with a run that was interrupted
  strata collect --model ./my-model --data texts/ --sites all --out stores/mine --dtype int8
  strata train --activations stores/mine --sites layers.6 --sae.architecture jumprelu
  strata groups demo                                    then: strata train --groups groups/demo-stdlib
  strata train --groups auto --out runs/grouped         one SAE per group of near layers
  strata evaluate runs/demo-stdlib runs/grouped
  strata dashboard runs/demo-stdlib                     index, explanations and pages, in one go
  strata explain runs/demo-stdlib --interpreter http --base-url http://localhost:8000/v1 --model my-model
  strata steer runs/demo-stdlib --site layers.3 --latent 123 --strength 4 --prompt "def add("
  strata interactions runs/demo-stdlib --sites layers.2 layers.4
  strata plan train qwen3-8b --hardware h100 --price-per-hour 3
  strata doctor runs/demo-stdlib
  strata bench --d-in 768 --d-sae 16384                 times, memory and ratios; --quality trains the peers too
  strata export runs/demo-stdlib --format dictionary_learning
"""


Shown = Path | list[Path] | list[str]
"""What stdout shows: a line, or several."""


@runtime_checkable
class Parser(Protocol):
    """From the words after a command to its description; None when they asked for help, which is then printed."""

    def __call__(self, words: Sequence[str], *, plan: bool = False) -> Any:
        """With `plan` the words are those after `strata plan`; see `strata.flags.parsed`."""
        ...


@dataclass(frozen=True)
class Command:
    """A word after `strata`.

    Attributes:
        parse: from the words behind it to a description.
        run: does it; gives what stdout shows, and with it an exit code where that says something.
        settled: with the memory settings of a program that owns its process (`strata.memory`).
    """

    parse: Parser
    run: Callable[[Any], Shown | tuple[Shown, int]]
    settled: bool = True


_NO_READER = 141  # what the shell says of a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 2 the user can mend it, 130 or 143 interrupted by Ctrl-C or SIGTERM; `doctor` has more.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        exit_code = _dispatch(words)
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:  # whoever read has had enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER
    except UserError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "interrupted. The same command goes on where it was, `strata train` with --resume."
        print(f"strata: {said}", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if words[0] == "--version":
        print(version("strata-sae"))
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"Unknown command {words[0]!r}.{did_you_mean(words[0], COMMANDS)}")
    command = COMMANDS[words[0]]
    config = command.parse(words[1:])
    if config is None:
        return 0
    if command.settled:
        from strata.memory import settle_memory

        settle_memory()
    found = command.run(config)
    shown, exit_code = found if isinstance(found, tuple) else (found, 0)
    for line in shown if isinstance(shown, list) else [shown]:
        print(line)
    return exit_code


def parse_train(words: Sequence[str], *, plan: bool = False) -> Any:
    """The run that the words after `strata train` describe; None when they asked for help, which is then printed.

    The first word that is no flag names the recipe. Without one it is `demo`, or `default` when --model, --data or
    --activations is given.

    Args:
        words: those after the command.
        plan: they are after `strata plan`; see `strata.flags.parsed`.

    Raises:
        UserError: unknown recipe or flag, or a value that does not fit.
    """
    from strata.config.train import TrainConfig
    from strata.recipes import RECIPES

    given = list(words)
    own = any(word.split("=")[0] in ("--model", "--data", "--activations") for word in given)
    recipe = given.pop(0) if given and not given[0].startswith("-") else "default" if own else "demo"
    if recipe not in RECIPES:
        raise UserError(f"Unknown recipe {recipe!r}.{did_you_mean(recipe, RECIPES)}")
    width = 2 + max(map(len, RECIPES))
    listed = "".join(f"\n  {name:<{width}}{_first_line(make)}" for name, make in RECIPES.items())
    return parsed(
        TrainConfig,
        given,
        command="train",
        usage="train [RECIPE]",
        default=RECIPES[recipe](),
        note=f"\n\nRecipes, whose settings the flags then change:{listed}",
        plan=plan,
    )


def _parse_plan(words: Sequence[str], *, plan: bool = True) -> Any:
    """What is planned, and how: the first word is one of the commands of `_PLANNED`, or else belongs to `train`."""
    if words and words[0] == "explain":
        raise UserError(
            "`strata explain` has no plan of its own. The plan of a training says what explaining its features would"
            " cost: strata plan train ..."
        )
    known = bool(words) and words[0] in _PLANNED
    return COMMANDS[words[0] if known else "train"].parse(words[1:] if known else words, plan=plan)


def _first_line(make: Callable[..., Any]) -> str:
    return (make.__doc__ or "").splitlines()[0]


def _flags(command: str, description: str, *, word: str = "", flag: str = "", needs: str = "") -> Parser:
    """From words to a description, as most commands do it.

    Args:
        command: its name.
        description: the class, as module:name; loaded when words come.
        word: how the usage calls a first word that is no flag; empty where there is none.
        flag: what that word is the value of.
        needs: what it is, for the sentence on a command without it; empty where it may be left out.
    """

    def parse(words: Sequence[str], *, plan: bool = False) -> Any:
        given = [flag, *words] if flag and words and not words[0].startswith("-") else list(words)
        if needs and not {flag, "-h", "--help"} & {one.split("=")[0] for one in given}:
            raise UserError(
                f"`strata {command}` needs {needs}, named before its flags. Write strata {command}"
                f" {word.removesuffix('...')}."
            )
        kind = resolve_name(description)
        default = None if needs else kind()
        return parsed(kind, given, command=command, usage=f"{command} {word}".strip(), default=default, plan=plan)

    return parse


def _of_run(command: str, description: str) -> Parser:
    return _flags(command, description, word="RUN", flag="--run", needs="the folder of a run")


def _function(name: str) -> Callable[[Any], Any]:
    """The function at module:name, loaded when it is called."""

    def run(config: Any) -> Any:
        return resolve_name(name)(config)

    return run


def _plan(planned: Any) -> list[str]:
    from strata.plan.command import plan

    return plan(*planned)


def _explain(config: Any) -> list[str]:
    from strata.interpret.explain.command import explain_run

    return explain_run(config).lines()


_PLANNED = ("train", "collect", "groups", "evaluate")
COMMANDS = {
    "plan": Command(_parse_plan, _plan),  # a calibration measures what the commands that are planned will be like
    "train": Command(parse_train, _function("strata.report.run:train_with_ranks")),
    "collect": Command(
        _flags("collect", "strata.config.collect:CollectConfig"), _function("strata.collect:collect_run")
    ),
    "groups": Command(
        _flags("groups", "strata.config.groups:GroupsConfig", word="[MODEL]", flag="--model"),
        _function("strata.report.groups:groups_and_report"),
    ),
    "evaluate": Command(
        _flags(
            "evaluate",
            "strata.config.evaluate:EvaluateConfig",
            word="RUN...",
            flag="--runs",
            needs="the folders of runs",
        ),
        _function("strata.report.comparison:evaluate_and_report"),
    ),
    "explain": Command(_of_run("explain", "strata.config.explain:ExplainConfig"), _explain),
    "dashboard": Command(
        _of_run("dashboard", "strata.config.dashboard:DashboardConfig"),
        _function("strata.report.dashboard.command:dashboard"),
    ),
    "steer": Command(_of_run("steer", "strata.config.steer:SteerConfig"), _function("strata.steer.command:steer")),
    "interactions": Command(
        _of_run("interactions", "strata.config.interactions:InteractionsConfig"),
        _function("strata.report.interactions:interactions_and_report"),
    ),
    "doctor": Command(
        _of_run("doctor", "strata.config.doctor:DoctorConfig"),
        _function("strata.doctor.command:doctor"),
        settled=False,
    ),
    "bench": Command(  # its contenders settle theirs, each in its process
        _flags("bench", "strata.config.bench:BenchOptions"), _function("strata.bench.command:bench"), settled=False
    ),
    "scaling": Command(
        _flags(
            "scaling",
            "strata.config.scaling:ScalingConfig",
            word="STORE",
            flag="--activations",
            needs="a store that `strata collect` wrote",
        ),
        _function("strata.report.scaling:scaling_and_report"),
    ),
    "export": Command(
        _flags(
            "export",
            "strata.export:ExportConfig",
            word="FOLDER",
            flag="--source",
            needs="the folder of a run or an SAE",
        ),
        _function("strata.export:export"),
        settled=False,
    ),
    "import": Command(
        _flags("import", "strata.export:ImportConfig", word="FOLDER", flag="--source", needs="the folder of an SAE"),
        _function("strata.export:import_"),
        settled=False,
    ),
}
