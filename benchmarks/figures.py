"""Make every figure of README and docs again, one at a time, and write their tables.

    python benchmarks/figures.py                     # all: some hours on two cores, and nothing else should run
    python benchmarks/figures.py --only gates demo   # some, by name (--list has them)
    python benchmarks/figures.py --tables            # only write the tables from the results that are there
    python benchmarks/figures.py --check             # is every table what the results say? exit code 1 if not

Interrupted, it goes on where it was: a figure that was made in this round is not made again, and those that keep their
parts go on with these. A failure does not stop the others; it is named at the end, and the exit code is 1. A result in
benchmarks/results/ is replaced only by a whole one. Figures that need packages which are not here are left out, and
said; --peers-python names an interpreter that has them.
"""

import argparse
import datetime as dt
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from figure_list import BY_NAME, FIGURES, RESULTS, WORK, Figure
from figure_pages import PageError, outdated, write_pages
from measuring import FELL_SHORT, ROOT, environment

STATE = Path("build/figures.json")
WHEN = RESULTS / "when.json"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these figures")
    parser.add_argument("--new-round", action="store_true", help="make figures anew that were made in this round")
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable), metavar="PATH",
                        help="an interpreter that has this checkout installed with the extra bench")  # fmt: skip
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="only list the figures")
    instead.add_argument("--tables", action="store_true", help="only write the tables")
    instead.add_argument("--check", action="store_true", help="only compare the tables with the results")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    unknown = [name for name in args.only or () if name not in BY_NAME]
    if unknown:
        parser.error(f"--only takes names of figures. Got {', '.join(unknown)}. --list has them.")
    if not args.peers_python.exists():
        parser.error(f"--peers-python must be an interpreter. There is no {args.peers_python}.")
    try:
        code = run(args)
    except PageError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        code = 130
    raise SystemExit(code)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; gives the exit code."""
    chosen = [figure for figure in FIGURES if not args.only or figure.name in args.only]
    if args.list:
        listing(chosen)
        return 0
    if args.check:
        return check()
    failed = [] if args.tables else Round(args.peers_python, new=args.new_round, only=args.only).make(chosen)
    changed = write_pages(ROOT)
    print(f"tables: {', '.join(changed)} written" if changed else "tables: nothing has changed")
    return 1 if failed else 0


def listing(figures: Sequence[Figure]) -> None:
    for figure in figures:
        print(f"{figure.name:>17}  {figure.minutes:3.0f} min  {figure.about}\n{'':>28}{figure.shown()}")
    print(f"about {spent(60 * sum(figure.minutes for figure in figures))} on two cores")


def check() -> int:
    wrong = outdated(ROOT)
    for place in wrong:
        print(place, file=sys.stderr)
    print("run `python benchmarks/figures.py --tables`" if wrong else "every table is what the results say")
    return 1 if wrong else 0


class Round:
    """The making of all figures, remembered in `build/figures.json` so that it can go on.

    Args:
        peers_python: the interpreter for figures whose packages this one lacks.
        new: forget what was made before,
        only: of these figures; None is all.
    """

    def __init__(self, peers_python: Path, *, new: bool, only: Sequence[str] | None) -> None:
        self.peers_python = peers_python
        self.made: dict[str, dict[str, Any]] = json.loads((ROOT / STATE).read_text()) if (ROOT / STATE).exists() else {}
        if new:
            self.made = {name: one for name, one in self.made.items() if only and name not in only}

    def make(self, figures: Sequence[Figure]) -> list[str]:
        """Make those that were not made yet; gives the names of those that failed."""
        failed, left_out, short = [], [], []
        left = [figure for figure in figures if not self.made.get(figure.name, {}).get("done")]
        for figure in figures:
            if figure not in left:
                print(f"{figure.name}: made in this round (--new-round makes it again)")
        while left:
            figure, remaining = left[0], sum(expected_seconds(figure) for figure in left)
            print(f"{dt.datetime.now():%H:%M} {figure.name}: {figure.about}")
            print(
                f"      about {spent(expected_seconds(figure))}; {len(left)} left, about {spent(remaining)}", flush=True
            )
            left.pop(0)
            python, lacking = self.interpreter(figure)
            if lacking:
                print(f"      left out: {lacking}")
                left_out.append(figure.name)
                continue
            code, seconds = self.run(figure, python)
            if code not in (0, FELL_SHORT) or not (ROOT / figure.unfinished).exists():
                print(f"      failed after {spent(seconds)}, exit code {code}; {WORK / figure.name}.log ends with")
                print("".join(f"        {line}\n" for line in last_lines(ROOT / WORK / f"{figure.name}.log")))
                failed.append(figure.name)
                continue
            short += [figure.name] if code == FELL_SHORT else []
            self.keep(figure)
            print(f"      done in {spent(seconds)}", flush=True)
        for what, names in (("failed", failed), ("left out", left_out), ("measured, and short of its goal", short)):
            if names:
                print(f"{what}: {', '.join(names)}")
        return failed

    def interpreter(self, figure: Figure) -> tuple[Path, str]:
        """Which Python can make it, and what is lacking if none can."""
        if figure.on_gpu and not has_cuda():
            return self.peers_python, "it needs a CUDA device"
        for name in figure.after:
            leavings = BY_NAME[name].leaves
            needed = BY_NAME[name].result if leavings is None else WORK / leavings
            if not (ROOT / needed).exists():
                return self.peers_python, f"it reads what {name} leaves ({needed}), which is not there"
        for python in (Path(sys.executable), self.peers_python):
            if not missing_packages(python, figure.packages):
                return python, ""
        missing = ", ".join(missing_packages(self.peers_python, figure.packages))
        return self.peers_python, f"{missing} must be installed (the extra bench, or --peers-python)"

    def run(self, figure: Figure, python: Path) -> tuple[int, float]:
        """Run its command; gives the exit code and the seconds, those of interrupted attempts included."""
        (ROOT / WORK).mkdir(parents=True, exist_ok=True)
        if figure.name not in self.made:  # nothing of an earlier round is gone on with
            for old in (figure.unfinished, WORK / f"{figure.name}.log"):
                (ROOT / old).unlink(missing_ok=True)
            if figure.leaves is not None:
                shutil.rmtree(ROOT / WORK / figure.leaves, ignore_errors=True)
        record = self.made.setdefault(figure.name, {"seconds": 0.0})
        self.remember()  # that it was begun, should this be killed
        start = time.monotonic()
        try:
            with (ROOT / WORK / f"{figure.name}.log").open("a", encoding="utf-8") as log:
                command = [str(python.absolute()), *figure.words(figure.unfinished)]
                done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, check=False)
        finally:
            record["seconds"] += time.monotonic() - start
            self.remember()
        return done.returncode, record["seconds"]

    def keep(self, figure: Figure) -> None:
        """Put the result among the others, and write down when and how it was made."""
        shutil.copyfile(ROOT / figure.unfinished, ROOT / figure.result)
        now = dt.datetime.now(dt.UTC)
        self.made[figure.name]["done"] = now.isoformat(timespec="seconds")
        self.remember()
        when = read_when()
        seconds = round(self.made[figure.name]["seconds"])
        when[figure.name] = {"date": f"{now:%Y-%m-%d}", "seconds": seconds, "command": figure.shown()}
        (ROOT / WHEN).write_text(json.dumps(when, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def remember(self) -> None:
        """Write the state."""
        (ROOT / STATE).write_text(json.dumps(self.made, indent=1) + "\n", encoding="utf-8")


def read_when() -> dict[str, dict[str, Any]]:
    """When each figure was made, and how long it took."""
    return json.loads((ROOT / WHEN).read_text(encoding="utf-8")) if (ROOT / WHEN).exists() else {}


def expected_seconds(figure: Figure) -> float:
    """What it took the last time, else what the list says."""
    return read_when().get(figure.name, {}).get("seconds", 60 * figure.minutes)


@cache
def missing_packages(python: Path, packages: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the packages that an interpreter cannot import."""
    program = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    command = [str(python.absolute()), "-c", program, *packages]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return tuple(found.stdout.split())


@cache
def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def last_lines(path: Path, n: int = 6) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-n:]


def spent(seconds: float) -> str:
    """`40 s`, `7 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


if __name__ == "__main__":
    main()
