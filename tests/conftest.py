"""What holds for every test: no network, few threads, a fixed seed, and which tests this machine cannot run."""

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NETWORK = os.environ.get("STRATA_TEST_NETWORK") == "1"

# Before transformers or datasets are imported: they read these once.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_CACHE = tempfile.mkdtemp(prefix="strata-tests-")
os.environ["STRATA_CACHE"] = _CACHE  # whether this machine was measured changes no test
os.environ.setdefault("STRATA_KERNEL_CACHE", str(Path(tempfile.gettempdir()) / "strata-kernels"))  # compiled once
if not NETWORK:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=_CACHE)

import torch  # noqa: E402 - after the environment is set

# Side by side (pytest-xdist) each process has one core.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device here",
        "network": None if NETWORK else "set STRATA_TEST_NETWORK=1 to let tests fetch things",
        "lm_eval": None if importlib.util.find_spec("lm_eval") else "the extra `lm-eval` is not installed",
        "saelens": None if importlib.util.find_spec("sae_lens") else "the extra `saelens` is not installed",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background, in which shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
