"""Every graph of a run compiled for a card that is not here: `python -m benchmarks.gpu_run.compile --work DIR`.

DIR/variants gets the sets of `benchmarks.gpu_run.variants`, DIR/graphs the artifacts of the published model's graphs,
where a pipeline finds them. Each is compiled in a process of its own, for minutes; what is there is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_run.unpack import use
from benchmarks.measure import ROOT
from max_zimage.compile.ahead_of_time import FULL_MODEL, TARGETS, compile_target
from max_zimage.compile.artifacts import digest_of
from max_zimage.compile.registry import AHEAD

if TYPE_CHECKING:
    from max.engine import CompiledModel

SHARED = "shared_weights"
"""The graphs of `benchmarks.shared_weights`, which has its own names for them."""
SETS = (SHARED, "own_ops", "picture_ops", "attentions", "elementwise", "products", "blocks")
"""Of `benchmarks.gpu_run.variants` beside these, the quick ones first."""
PIPELINE = ("pack", "modulation", "conditioning", "text_encoder", "denoise", "decode")
"""What a picture runs."""
_SOURCES = (
    "benchmarks/gpu_run/modules.py",
    "benchmarks/gpu_run/variants.py",
    "tests/references/gpu_ops.py",
    "tests/references/gpu_pictures.py",
)
"""What decides the sets beside the graphs' own sources."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; 1 if something could not be."""
    options = _parse(arguments)
    work = options.work.absolute()
    use(work, small=True)
    if options.one:
        _compile(options.one, options.target, work)
        return 0
    os.environ["MAX_ZIMAGE_CACHE"] = str(work / "graphs")
    failed = 0
    for name, seconds, said in chain(_sets(options, work), _graphs(options, work)):
        failed += said is not None
        print(f"{name:24} {seconds:7.1f} s  {said or 'compiled'}", flush=True)
    return 1 if failed else 0


def file_of(work: Path, name: str, *, small: bool = False) -> Path:
    """The artifact of a set, named by the sources that decide what is in it."""
    return folder_of(work, small=small) / f"{name}-{sources()}.mef"


def folder_of(work: Path, *, small: bool = False) -> Path:
    """Where sets are."""
    return work / f"variants{'-small' if small else ''}"


@cache
def sources() -> str:
    """Digest of what decides the graphs: the project's own and those of this benchmark."""
    digest = hashlib.sha256(digest_of(ROOT / "graphs", ROOT / "kernels").encode())
    for file in _SOURCES:
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()[:12]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    targets = [name for name, virtual in TARGETS.items() if virtual is not None]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.compile", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument("--target", choices=targets, default="cuda:sm_90a", help="the card (default cuda:sm_90a)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=f"any of {', '.join((*SETS, *AHEAD))}")
    parser.add_argument("--one", choices=SETS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = [*SETS, *PIPELINE] if options.only is None else options.only
    if unknown := [name for name in options.only if name not in (*SETS, *AHEAD)]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join((*SETS, *AHEAD))}")
    return options


def _sets(options: argparse.Namespace, work: Path) -> Iterator[tuple[str, float, str | None]]:
    """Compile sets, one child process each: the virtual device is fixed before anything else happens in it."""
    for name in (name for name in SETS if name in options.only):
        if file_of(work, name).exists() or (name == SHARED and any(folder_of(work).glob(f"{SHARED}-*.mef"))):
            yield name, 0.0, None
            continue
        begin = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu_run.compile", "--one", name, "--work", str(work)]
        done = subprocess.run([*command, "--target", options.target], cwd=ROOT, capture_output=True, text=True)
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        yield name, time.monotonic() - begin, None if done.returncode == 0 else (said or ["failed"])[-1]


def _graphs(options: argparse.Namespace, work: Path) -> Iterator[tuple[str, float, str | None]]:
    """Compile the published model's graphs as `max-zimage compile --keep` does."""
    notes = work / "graphs" / "compiled.json"
    known: dict[str, list[str]] = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    for name in (name for name in AHEAD if name in options.only):
        digest, artifact = known.get(name, ("", ""))
        if digest == sources() and Path(artifact).exists():
            yield name, 0.0, None
            continue
        for report in compile_target(FULL_MODEL, options.target, "bfloat16", [name], keep=True):
            if report.artifact is not None:
                if artifact and Path(artifact) != report.artifact:
                    Path(artifact).unlink(missing_ok=True)
                known[name] = [sources(), str(report.artifact)]
                notes.write_text(json.dumps(known, indent=1), encoding="utf-8")
            yield name, report.seconds or 0.0, report.error


def _compile(name: str, target: str, work: Path) -> None:
    """Compile one set in this process, and keep it."""
    from max.driver import (
        Accelerator,
        set_virtual_device_api,
        set_virtual_device_count,
        set_virtual_device_target_arch,
    )
    from max.dtype import DType
    from max.engine import InferenceSession

    virtual = TARGETS[target]
    assert virtual is not None
    set_virtual_device_api(virtual[0])
    set_virtual_device_target_arch(virtual[1])
    set_virtual_device_count(1)
    from benchmarks import shared_weights
    from benchmarks.gpu_run.bench import PUBLISHED
    from benchmarks.gpu_run.variants import compile_set

    device = Accelerator()
    session = InferenceSession(devices=[device])
    if name == SHARED:
        folder_of(work).mkdir(parents=True, exist_ok=True)
        for way in shared_weights.WAYS:
            shared_weights.files(session, device, way, folder_of(work), shared_weights.ROWS)
    else:
        keep(compile_set(name, PUBLISHED, DType.bfloat16, session, device), file_of(work, name))
    # MAX's compiler threads now and then abort a process that ends in the usual way, after all its work.
    sys.stdout.flush()
    os._exit(0)


def keep(compiled: CompiledModel, file: Path) -> None:
    """Write an artifact, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".part")
    compiled.export_mef(scratch)
    for old in file.parent.glob(f"{file.stem.rpartition('-')[0]}-*.mef"):
        old.unlink()
    scratch.replace(file)


if __name__ == "__main__":
    sys.exit(main())
