"""The command `strata`: words and flags in, exit code out."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
  strata train --sites layers.3 --sweep k=16,32,64 seed=0,1
  strata train demo --resume                            go on with a run that was interrupted
  strata collect --model ./my-model --data texts/ --sites all --out activations/mine --dtype int8
  strata train --activations activations/mine --sites layers.6 --sae.architecture jumprelu
  strata groups demo                                    then: strata train --groups groups/demo-stdlib
  strata train --groups auto                            one SAE per group of near layers
  strata evaluate runs/layer-wise runs/grouped
  strata dashboard runs/demo-stdlib                     index, explanations and pages, in one go
  strata explain runs/demo-stdlib --interpreter http --base-url http://localhost:8000/v1 --model my-model
  strata steer runs/demo-stdlib --site layers.3 --latent 123 --strength 4 --prompt "def add("
  strata interactions runs/demo-stdlib --sites layers.2 layers.4
  strata plan train qwen3-8b --hardware h100 --price-per-hour 3
  strata doctor runs/demo-stdlib
  strata bench --d-in 768 --d-sae 16384                 times, memory and ratios; --quality trains the peers too
  strata export runs/demo-stdlib --format dictionary_learning
"""


@dataclass(frozen=True)
class Command:
    """A word after `strata`.

    Attributes:
        parse: from the words behind it to a description; None when they asked for help, which is then printed.
        run: does it; gives the lines for stdout, and with them an exit code where that says something.
    """

    parse: Callable[[Sequence[str]], Any]
    run: Callable[[Any], list[str] | tuple[list[str], int]]


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
        said = str(stopped) or "interrupted. The same command goes on where it was; strata train does with --resume."
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
    found = command.run(config)
    lines, exit_code = found if isinstance(found, tuple) else (found, 0)
    for line in lines:
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


def _parse_collect(words: Sequence[str], *, plan: bool = False) -> Any:
    from strata.collect import CollectConfig

    return parsed(CollectConfig, words, command="collect", default=CollectConfig(), plan=plan)


def _parse_groups(words: Sequence[str], *, plan: bool = False) -> Any:
    from strata.config.groups import GroupsConfig

    given = ["--model", *words] if words and not words[0].startswith("-") else words
    return parsed(GroupsConfig, given, command="groups", usage="groups [MODEL]", default=GroupsConfig(), plan=plan)


def _parse_evaluate(words: Sequence[str], *, plan: bool = False) -> Any:
    from strata.config.evaluate import EvaluateConfig

    named = bool(words) and not words[0].startswith("-")
    if not named and not {"--runs", "-h", "--help"} & set(words):
        raise UserError(
            "`strata evaluate` needs the folders of runs before its flags. Write strata evaluate RUN RUN ..."
        )
    given = ["--runs", *words] if named else words
    return parsed(EvaluateConfig, given, command="evaluate", usage="evaluate RUN...", plan=plan)


PLANNED = {"train": parse_train, "collect": _parse_collect, "groups": _parse_groups, "evaluate": _parse_evaluate}


def _parse_plan(words: Sequence[str]) -> Any:
    """What is planned, and how: the first word is one of the commands of `PLANNED`, or else belongs to `train`."""
    if words and words[0] == "explain":
        raise UserError(
            "`strata explain` has no plan of its own. The plan of a training says what explaining its features would"
            " cost: strata plan train ..."
        )
    known = bool(words) and words[0] in PLANNED
    return PLANNED[words[0] if known else "train"](words[1:] if known else words, plan=True)


def _of_run(words: Sequence[str], *, command: str, description: type) -> Any:
    """A description whose first word, if it is no flag, is the folder of a run."""
    given = ["--run", *words] if words and not words[0].startswith("-") else words
    if not {"--run", "-h", "--help"} & {word.split("=")[0] for word in given}:
        raise UserError(f"`strata {command}` needs the folder of a run. Write strata {command} RUN.")
    return parsed(description, given, command=command, usage=f"{command} RUN")


def _parse_doctor(words: Sequence[str]) -> Any:
    from strata.config.doctor import DoctorConfig

    return _of_run(words, command="doctor", description=DoctorConfig)


def _parse_explain(words: Sequence[str]) -> Any:
    from strata.config.explain import ExplainConfig

    return _of_run(words, command="explain", description=ExplainConfig)


def _parse_dashboard(words: Sequence[str]) -> Any:
    from strata.config.dashboard import DashboardConfig

    return _of_run(words, command="dashboard", description=DashboardConfig)


def _parse_steer(words: Sequence[str]) -> Any:
    from strata.config.steer import SteerConfig

    return _of_run(words, command="steer", description=SteerConfig)


def _parse_interactions(words: Sequence[str]) -> Any:
    from strata.config.interactions import InteractionsConfig

    return _of_run(words, command="interactions", description=InteractionsConfig)


def _parse_scaling(words: Sequence[str]) -> Any:
    from strata.config.scaling import ScalingConfig

    given = ["--activations", *words] if words and not words[0].startswith("-") else words
    if not {"--activations", "-h", "--help"} & {word.split("=")[0] for word in given}:
        raise UserError("`strata scaling` needs a store that `strata collect` wrote. Write strata scaling STORE.")
    return parsed(ScalingConfig, given, command="scaling", usage="scaling STORE")


def _parse_export(words: Sequence[str]) -> Any:
    from strata.export import ExportConfig

    return parsed(ExportConfig, _with_source(words), command="export", usage="export FOLDER")


def _parse_import(words: Sequence[str]) -> Any:
    from strata.export import ImportConfig

    return parsed(ImportConfig, _with_source(words), command="import", usage="import FOLDER")


def _with_source(words: Sequence[str]) -> list[str]:
    """The first word is the source, if it is no flag."""
    return ["--source", *words] if words and not words[0].startswith("-") else list(words)


def _run_train(config: Any) -> list[str]:
    from strata.distributed.ranks import joined_ranks
    from strata.memory import settle_memory
    from strata.report.run import train_and_report

    settle_memory()
    with joined_ranks() as ranks:
        made = str(train_and_report(config, ranks=ranks))
    return [made] if ranks.is_first else []


def _run_collect(config: Any) -> list[str]:
    from strata.collect import collect_run
    from strata.memory import settle_memory

    settle_memory()
    return [str(collect_run(config))]


def _run_groups(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.report.groups import groups_and_report

    settle_memory()
    return [str(groups_and_report(config))]


def _run_evaluate(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.report.comparison import evaluate_and_report

    settle_memory()
    return [str(evaluate_and_report(config))]


def _run_plan(planned: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.plan.command import plan

    settle_memory()  # as the commands that are planned do: a calibration measures what they will be like
    return plan(*planned)


def _parse_bench(words: Sequence[str]) -> Any:
    from strata.config.bench import BenchOptions

    return parsed(BenchOptions, words, command="bench", default=BenchOptions())


def _run_bench(config: Any) -> list[str]:
    from strata.bench.command import bench

    return bench(config)


def _run_doctor(config: Any) -> tuple[list[str], int]:
    from strata.doctor.command import doctor

    return doctor(config)


def _run_explain(config: Any) -> list[str]:
    from strata.interpret.explain.command import explain_run
    from strata.memory import settle_memory

    settle_memory()
    return explain_run(config).lines()


def _run_dashboard(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.report.dashboard.command import dashboard

    settle_memory()
    return [str(dashboard(config))]


def _run_steer(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.steer.command import steer

    settle_memory()
    return steer(config)


def _run_interactions(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.report.interactions import interactions_and_report

    settle_memory()
    return [str(interactions_and_report(config))]


def _run_scaling(config: Any) -> list[str]:
    from strata.memory import settle_memory
    from strata.report.scaling import scaling_and_report

    settle_memory()
    return [str(scaling_and_report(config))]


def _run_export(config: Any) -> list[str]:
    from strata.export import export

    return _shown(export(config))


def _run_import(config: Any) -> list[str]:
    from strata.export import import_

    return _shown(import_(config))


def _shown(folders: list[Path]) -> list[str]:
    return [str(folder) for folder in folders]


def _first_line(make: Callable[..., Any]) -> str:
    return (make.__doc__ or "").splitlines()[0]


COMMANDS = {
    "plan": Command(_parse_plan, _run_plan),
    "train": Command(parse_train, _run_train),
    "collect": Command(_parse_collect, _run_collect),
    "groups": Command(_parse_groups, _run_groups),
    "evaluate": Command(_parse_evaluate, _run_evaluate),
    "explain": Command(_parse_explain, _run_explain),
    "dashboard": Command(_parse_dashboard, _run_dashboard),
    "steer": Command(_parse_steer, _run_steer),
    "interactions": Command(_parse_interactions, _run_interactions),
    "doctor": Command(_parse_doctor, _run_doctor),
    "bench": Command(_parse_bench, _run_bench),
    "scaling": Command(_parse_scaling, _run_scaling),
    "export": Command(_parse_export, _run_export),
    "import": Command(_parse_import, _run_import),
}
