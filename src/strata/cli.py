"""The command `strata`: words and flags in, exit code out."""

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.errors import UserError, did_you_mean

_USAGE = """\
Strata trains sparse autoencoders on the activations of language models.

usage: strata COMMAND [...]

commands:
  train [RECIPE] [--flags]     from text to SAEs and a report; `strata train --help` lists recipes and flags
  collect [--flags]            activations to disk, shuffled, for `strata train --activations FOLDER`
  groups [MODEL] [--flags]     how alike the layers are, and which of them could share an SAE
  evaluate RUN... [--flags]    runs side by side on held-out text: reconstruction, loss, tasks, baselines, cost
  export FOLDER [--flags]      a run or an SAE for SAELens, sparsify, dictionary_learning, Gemma Scope, the Hub
  import FOLDER [--flags]      SAEs of those libraries as Strata's own folders

examples:
  strata train demo                                     the embedded model on the Python standard library, every layer
  strata train --model EleutherAI/pythia-160m --data my.jsonl --sites layers.6 --sae.k 32
  strata train --sites layers.3 --sweep k=16,32,64 seed=0,1
  strata train demo --resume                            go on with a run that was interrupted
  strata collect --model ./my-model --data texts/ --sites all --out activations/mine --dtype int8
  strata train --activations activations/mine --sites layers.6 --sae.architecture jumprelu
  strata groups demo                                    then: strata train --groups groups/demo-stdlib
  strata train --groups auto                            one SAE per group of near layers
  strata evaluate runs/layer-wise runs/grouped
  strata export runs/demo-stdlib --format dictionary_learning
"""


@dataclass(frozen=True)
class Command:
    """A word after `strata`.

    Attributes:
        parse: from the words behind it to a description; None when they asked for help, which is then printed.
        run: does it; gives the lines for stdout.
    """

    parse: Callable[[Sequence[str]], Any]
    run: Callable[[Any], list[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 2 the user can mend it, 130 or 143 interrupted by Ctrl-C or SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "interrupted. --resume goes on from the last checkpoint, if the command has one."
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
    if config is not None:
        for line in command.run(config):
            print(line)
    return 0


def parse_train(words: Sequence[str]) -> Any:
    """The run that the words after `strata train` describe; None when they asked for help, which is then printed.

    The first word that is no flag names the recipe. Without one it is `demo`, or `default` when --model, --data or
    --activations is given.

    Raises:
        UserError: unknown recipe or flag, or a value that does not fit.
    """
    from strata.config import TrainConfig
    from strata.recipes import RECIPES

    given = list(words)
    own = any(word.split("=")[0] in ("--model", "--data", "--activations") for word in given)
    recipe = given.pop(0) if given and not given[0].startswith("-") else "default" if own else "demo"
    if recipe not in RECIPES:
        raise UserError(f"Unknown recipe {recipe!r}.{did_you_mean(recipe, RECIPES)}")
    width = 2 + max(map(len, RECIPES))
    listed = "".join(f"\n  {name:<{width}}{_first_line(make)}" for name, make in RECIPES.items())
    return _parse(
        TrainConfig,
        given,
        command="train",
        usage="train [RECIPE]",
        default=RECIPES[recipe](),
        note=f"\n\nRecipes, whose settings the flags then change:{listed}",
    )


def _parse_collect(words: Sequence[str]) -> Any:
    from strata.collect import CollectConfig

    return _parse(CollectConfig, words, command="collect", default=CollectConfig())


def _parse_groups(words: Sequence[str]) -> Any:
    from strata.groups_config import GroupsConfig

    given = ["--model", *words] if words and not words[0].startswith("-") else words
    return _parse(GroupsConfig, given, command="groups", usage="groups [MODEL]", default=GroupsConfig())


def _parse_evaluate(words: Sequence[str]) -> Any:
    from strata.evaluate_config import EvaluateConfig

    named = bool(words) and not words[0].startswith("-")
    if not named and not {"--runs", "-h", "--help"} & set(words):
        raise UserError(
            "`strata evaluate` needs the folders of runs before its flags. Write strata evaluate RUN RUN ..."
        )
    given = ["--runs", *words] if named else words
    return _parse(EvaluateConfig, given, command="evaluate", usage="evaluate RUN...")


def _parse_export(words: Sequence[str]) -> Any:
    from strata.export import ExportConfig

    return _parse(ExportConfig, _with_source(words), command="export", usage="export FOLDER")


def _parse_import(words: Sequence[str]) -> Any:
    from strata.export import ImportConfig

    return _parse(ImportConfig, _with_source(words), command="import", usage="import FOLDER")


def _with_source(words: Sequence[str]) -> list[str]:
    """The first word is the source, if it is no flag."""
    return ["--source", *words] if words and not words[0].startswith("-") else list(words)


def _run_train(config: Any) -> list[str]:
    from strata.memory import keep_freed_memory
    from strata.report.run import train_and_report

    keep_freed_memory()
    return [str(train_and_report(config))]


def _run_collect(config: Any) -> list[str]:
    from strata.collect import collect_run
    from strata.memory import keep_freed_memory

    keep_freed_memory()
    return [str(collect_run(config))]


def _run_groups(config: Any) -> list[str]:
    from strata.memory import keep_freed_memory
    from strata.report.groups import groups_and_report

    keep_freed_memory()
    return [str(groups_and_report(config))]


def _run_evaluate(config: Any) -> list[str]:
    from strata.memory import keep_freed_memory
    from strata.report.comparison import evaluate_and_report

    keep_freed_memory()
    return [str(evaluate_and_report(config))]


def _run_export(config: Any) -> list[str]:
    from strata.export import export

    return _shown(export(config))


def _run_import(config: Any) -> list[str]:
    from strata.export import import_

    return _shown(import_(config))


def _shown(folders: list[Path]) -> list[str]:
    return [str(folder) for folder in folders]


COMMANDS = {
    "train": Command(parse_train, _run_train),
    "collect": Command(_parse_collect, _run_collect),
    "groups": Command(_parse_groups, _run_groups),
    "evaluate": Command(_parse_evaluate, _run_evaluate),
    "export": Command(_parse_export, _run_export),
    "import": Command(_parse_import, _run_import),
}


def _parse(
    description: type, words: Sequence[str], *, command: str, usage: str = "", default: Any = None, note: str = ""
) -> Any:
    """A description from flags; None when they asked for help.

    Raises:
        UserError: what tyro or the description itself complains of, in one sentence.
    """
    import tyro

    said = io.StringIO()
    start = {} if default is None else {"default": default}
    try:
        with redirect_stderr(said):
            return tyro.cli(
                description,
                args=list(words),
                prog=f"strata {usage or command}",
                description=f"{description.__doc__}{note}",
                **start,
            )
    except SystemExit as stopped:
        if not stopped.code:
            return None
    raise UserError(_one_sentence(said.getvalue(), description, command=command))


def _first_line(make: Callable[..., Any]) -> str:
    return (make.__doc__ or "").splitlines()[0]


def _one_sentence(complaint: str, description: type, *, command: str) -> str:
    """What tyro says in a box, as one sentence; unknown flags get the nearest known one."""
    inner = re.sub(r"[│╭╮╰╯]", " ", complaint)
    first = re.split(r"─{20,}", inner.split("╮")[-1])
    body = " ".join(next((part for part in first if re.search(r"\w{3}.*[:.]", part)), inner).split())
    unknown = re.search(r"Unrecognized options: (\S+?),?(?:\s|$)", inner)
    if unknown:
        name = unknown[1].split("=")[0]
        if not name.startswith("-"):
            return f"Unexpected word {name!r} among the flags. `strata {command} --help` lists them."
        near = did_you_mean(name, _flags(description)).split(" Known are:")[0]
        return f"Unknown flag {name}.{near} `strata {command} --help` lists all."
    return f"{body.rstrip('.')}. `strata {command} --help` explains the flags."


def _flags(description: type, prefix: str = "") -> list[str]:
    found = []
    for field in fields(description):
        name = f"{prefix}{field.name.replace('_', '-')}"
        nested = field.default_factory if is_dataclass(field.default_factory) else None
        found += _flags(nested, f"{name}.") if isinstance(nested, type) else [f"--{name}"]
    return found
