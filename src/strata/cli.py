"""The command `strata`: words and flags in, exit code out."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from importlib.metadata import version

from strata.config import TrainConfig
from strata.errors import UserError, did_you_mean
from strata.recipes import RECIPES

_USAGE = """\
Strata trains sparse autoencoders on the activations of language models.

usage: strata COMMAND [...]

commands:
  train [RECIPE] [--flags]   from text to SAEs and a report; `strata train --help` lists recipes and flags

examples:
  strata train demo                                     the embedded model on the Python standard library, every layer
  strata train --model EleutherAI/pythia-160m --data my.jsonl --sites layers.6 --sae.k 32
  strata train --model ./my-model --data texts/ --sites all --out runs/mine
  strata train demo --resume                            go on with a run that was interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code: 0 done, 2 the user can mend it, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "strata: interrupted. --resume goes on from the last checkpoint of the run folder, if there is one.",
            file=sys.stderr,
        )
        return 130


def _dispatch(words: list[str]) -> int:
    commands = {"train": _train}
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if words[0] == "--version":
        print(version("strata-sae"))
        return 0
    if words[0] not in commands:
        raise UserError(f"Unknown command {words[0]!r}.{did_you_mean(words[0], commands)}")
    return commands[words[0]](words[1:])


def _train(words: list[str]) -> int:
    config = parse_train(words)
    if config is None:
        return 0
    from strata.memory import keep_freed_memory
    from strata.report.run import train_and_report

    keep_freed_memory()
    print(train_and_report(config))
    return 0


def parse_train(words: Sequence[str]) -> TrainConfig | None:
    """The run that the words after `strata train` describe; None when they asked for help, which is then printed.

    The first word that is no flag names the recipe. Without one it is `demo`, or `default` when --model or --data is
    given.

    Raises:
        UserError: unknown recipe or flag, or a value that does not fit.
    """
    given = list(words)
    own = any(word.split("=")[0] in ("--model", "--data") for word in given)
    recipe = given.pop(0) if given and not given[0].startswith("-") else "default" if own else "demo"
    if recipe not in RECIPES:
        raise UserError(f"Unknown recipe {recipe!r}.{did_you_mean(recipe, RECIPES)}")
    import tyro

    listed = "".join(f"\n  {name:<10} {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items())
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                TrainConfig,
                default=RECIPES[recipe](),
                args=given,
                prog="strata train [RECIPE]",
                description=f"{TrainConfig.__doc__}\n\nRecipes, whose settings the flags then change:{listed}",
            )
    except SystemExit as stopped:
        if not stopped.code:
            return None
    raise UserError(_one_sentence(said.getvalue()))


def _one_sentence(complaint: str) -> str:
    """What tyro says in a box, as one sentence; unknown flags get the nearest known one."""
    flags = _flags(TrainConfig)
    inner = re.sub(r"[│╭╮╰╯]", " ", complaint)
    first = re.split(r"─{20,}", inner.split("╮")[-1])
    body = " ".join(next((part for part in first if re.search(r"\w{3}.*[:.]", part)), inner).split())
    unknown = re.search(r"Unrecognized options: (\S+?),?(?:\s|$)", inner)
    if unknown:
        name = unknown[1].split("=")[0]
        if not name.startswith("-"):
            return f"Unexpected word {name!r} among the flags. `strata train --help` lists them."
        near = did_you_mean(name, flags).split(" Known are:")[0]
        return f"Unknown flag {name}.{near} `strata train --help` lists all."
    return f"{body.rstrip('.')}. `strata train --help` explains the flags."


def _flags(description: type, prefix: str = "") -> list[str]:
    found = []
    for field in fields(description):
        name = f"{prefix}{field.name.replace('_', '-')}"
        nested = field.default_factory if is_dataclass(field.default_factory) else None
        found += _flags(nested, f"{name}.") if isinstance(nested, type) else [f"--{name}"]
    return found
