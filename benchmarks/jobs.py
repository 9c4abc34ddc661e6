"""Pictures a second of a job, in one process and by actors of Ray on this machine, beside the plain loop over rows.

Each draws the same rows to files, in turn. What comes once (loading, Ray's start) is left out: pictures are counted
from the first one's file to the last one's, by the times that the files have. The whole command is in the note.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT, Row, Timing

STEPS, GUIDANCE = 8, 0.0
_LOOP = """
import json, sys
from max_zimage import ZImagePipeline
pipe = ZImagePipeline.from_pretrained(device="cpu")
for line in open(sys.argv[1]):
    row = json.loads(line)
    name = row.pop("id")
    pipe(**row, num_inference_steps=STEPS, guidance_scale=GUIDANCE).images[0].save(f"{sys.argv[2]}/{name}.png")
"""
PLAIN = "a loop in Python"
WAYS: Mapping[str, tuple[str, ...] | None] = {
    PLAIN: None,
    "one process": (),
    "Ray, 1 actor": ("--ray", "local", "--workers", "1"),
    "Ray, 2 actors, a core each": ("--ray", "local", "--workers", "2"),
}
"""Name -> flags of `max-zimage batch`; None for no job."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many rows, and their sides in turn."""

    rows: int
    sides: tuple[int, ...]


FULL = Size(rows=240, sides=(128, 192))
QUICK = Size(rows=4, sides=(64,))


def rows(size: Size, repeats: int) -> list[Row]:
    """Draw the rows in every way, one after the other, and all again.

    Raises:
        RuntimeError: If one of them ends without all pictures.
    """
    rounds = 1 if repeats == 1 else max(2, repeats // 5)
    each: dict[str, list[float]] = {name: [] for name in WAYS}
    whole: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, flags in WAYS.items():
            between, all_of_it = _drawn(size, flags)
            each[name].append(between)
            whole[name].append(all_of_it)
    sides = " and ".join(f"{side}x{side}" for side in size.sides)
    return [
        Row(
            case="a picture of a job",
            variant=name,
            dtype="float32",
            sizes=f"{size.rows} rows, {sides}, {STEPS} steps, guidance off",
            timing=Timing.of(seconds),
            reference=name == PLAIN,
            note=f"whole command {min(whole[name]):.0f} to {max(whole[name]):.0f} s",
        )
        for name, seconds in each.items()
    ]


def _drawn(size: Size, flags: tuple[str, ...] | None) -> tuple[float, float]:
    """Seconds from one picture to the next, and of the whole command."""
    with tempfile.TemporaryDirectory(prefix="mz-jobs-") as folder:
        file, output = Path(folder) / "rows.jsonl", Path(folder) / "out"
        output.mkdir()
        file.write_text("".join(f"{json.dumps(_row(size, number))}\n" for number in range(size.rows)), encoding="utf-8")
        if flags is None:
            code = _LOOP.replace("STEPS", str(STEPS)).replace("GUIDANCE", str(GUIDANCE))
            words = ["-c", code, str(file), str(output)]
        else:
            picture = ["--steps", str(STEPS), "--guidance", str(GUIDANCE), "--quiet"]
            words = ["-m", "max_zimage", "batch", str(file), "--output", str(output), *picture, *flags]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        times = sorted(path.stat().st_mtime for path in output.rglob("*.png"))
    if done.returncode or len(times) != size.rows:
        raise RuntimeError(f"{len(times)} of {size.rows} pictures: {done.stderr[-500:]}")
    return (times[-1] - times[0]) / (len(times) - 1), seconds


def _row(size: Size, number: int) -> dict[str, object]:
    side = size.sides[number % len(size.sides)]
    return {"id": f"n{number}", "prompt": f"a red star {number}", "height": side, "width": side, "seed": number}
