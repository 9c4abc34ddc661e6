"""What holds for every test, and the four pipelines that tests share, so that their graphs are compiled once.

A model costs minutes of compiling, another size, prompt or schedule nothing: tests take one of these pairs rather than
load a model of their own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from max_zimage.embedded import PATH as EMBEDDED

if TYPE_CHECKING:
    from max_zimage import ZImagePipeline
    from tests.references.diffusers_runs import Pair
    from tests.references.servers import Server

# Tests draw with the embedded model and with checkpoints they make: nothing is to be looked up elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["XDG_CONFIG_HOME"] = "/nowhere"  # where no configuration of whoever runs them is found
# What processes that tests start and kill leave behind goes with the tests; pytest's own folders stay where they are.
if "PYTEST_XDIST_WORKER" in os.environ:  # that is done already, and paths of sockets have to stay short
    tempfile.tempdir = str(Path(os.environ["TMPDIR"]).parent)
else:
    tempfile.gettempdir()
    _scratch = tempfile.TemporaryDirectory(prefix="mz-tests-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = _scratch.name

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # Graphs of two processes that share processors take three times as long, see `max_zimage.host.processors`.
    _there, _of = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if _own := _there[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) :: _of]:
        os.sched_setaffinity(0, _own)

pytest_plugins = ["tests.compile_share", "tests.time_limit"]


def load_pair(directory: Path, dtype: str = "float32") -> Pair:
    # Imported here: MAX, torch and diffusers take ten seconds, and most test files need none of them.
    import torch

    from max_zimage import ZImagePipeline
    from tests import compile_share
    from tests.references.diffusers_runs import Pair, load_reference

    compile_share.watch()  # here at the latest MAX has been imported
    ours = ZImagePipeline.from_pretrained(directory, device="cpu", dtype=dtype)
    return Pair(ours, load_reference(directory, getattr(torch, dtype)))


def load_random(directory: Path, *, head_dim: int, refiner_layers: int, shift: float) -> Pair:
    from tests.references.tiny import TinySpec, write_tiny

    spec = TinySpec(head_dim=head_dim, refiner_layers=refiner_layers, shift=shift, seed=head_dim, embedded_parts=True)
    write_tiny(directory, spec)
    return load_pair(directory)


@pytest.fixture(scope="session")
def embedded() -> Pair:
    """The embedded model in float32: head dim 128, one refiner layer, shift 3; its pictures mean something."""
    return load_pair(EMBEDDED)


@pytest.fixture(scope="session")
def pipeline(embedded: Pair) -> ZImagePipeline:
    """The embedded model as servers and commands draw with it on a CPU."""
    return embedded.ours


@pytest.fixture(scope="session")
def embedded_bfloat16() -> Pair:
    """The embedded model in bfloat16, on both sides."""
    return load_pair(EMBEDDED, "bfloat16")


@pytest.fixture(scope="session")
def tiny64(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights, head dim 64, one refiner layer, shift 3."""
    return load_random(tmp_path_factory.mktemp("tiny64"), head_dim=64, refiner_layers=1, shift=3.0)


@pytest.fixture(scope="session")
def tiny128(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights, head dim 128, two refiner layers, shift 6."""
    return load_random(tmp_path_factory.mktemp("tiny128"), head_dim=128, refiner_layers=2, shift=6.0)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a command sets for its own process is gone after a test: the next may run in this one.

    Of torch, how many threads it has, on which its last digits depend: a training sets them.
    """
    before = dict(os.environ)
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else os.cpu_count() or 1
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    for name in os.environ.keys() - before.keys():
        if name.startswith("MAX_ZIMAGE_"):
            del os.environ[name]
    for name, value in before.items():
        if name.startswith("MAX_ZIMAGE_"):
            os.environ[name] = value


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is noted for the user while a test runs."""
    from max_zimage.progress import shown_by
    from tests.references.strict_model import Notes

    noted = Notes()
    with shown_by(noted):
        yield noted.texts


@pytest.fixture
def device_graphs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are recorded and replayed where a model can; copies are those of a CPU, in order."""
    from max_zimage.compile import device_graphs
    from tests.references.strict_model import copy_in_order

    monkeypatch.setenv(device_graphs.VARIABLE, "on")
    monkeypatch.setattr(device_graphs, "batch_inplace_copy", copy_in_order)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key and narrow limits, that starts its worker again."""
    from tests.references.servers import KEY, Server

    folder = tmp_path_factory.mktemp("server")
    (folder / "key").write_text(f"{KEY}\n")
    flags = ["--restart", "--api-key-file", "key", "--max-queue", "3", "--max-body-bytes", "2000000"]
    flags += ["--max-images", "3", "--max-pixels", "262144", "--max-prompt-characters", "500", "--batch-pictures", "2"]
    with Server(folder, flags, key=KEY, torch=True) as running:  # as with whoever has it for something else
        yield running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A model compiles for minutes; the second random one runs when asked for, with -m slow."""
    for item in items:
        if "[tiny128" in item.name:
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.scheduling import place_of

        items.sort(key=lambda item: place_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How files are given to processes, with `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.scheduling import Scheduling

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured, the range over the cases of each test: bounds alone do not tell how near they are."""
    measured: dict[str, list[float]] = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for name, value in report.user_properties if report.when == "call" else ():
            measured.setdefault(f"{report.nodeid.split('[')[0]} {name}", []).append(float(value))
    if measured:
        terminalreporter.section("measured")
    for name, values in measured.items():
        terminalreporter.line(f"{name}: {min(values):.6g} to {max(values):.6g} ({len(values)} cases)")
