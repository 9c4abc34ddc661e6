"""The published size on a CPU: seconds to load, of a forward and of decoding, and the most memory, each in a process.

Weights are random, which costs what the real ones cost: `python -m benchmarks.make_checkpoint DIR --turbo` writes them,
and MAX_ZIMAGE_PUBLISHED_SIZE=DIR names them here. A process whose graphs had to be compiled is run again. Where
MAX_ZIMAGE_SDCPP names a Python that has stable-diffusion-cpp-python 0.4.7, stable-diffusion.cpp draws, too,
in Q8_0; its files, 11 GB, are written beside the checkpoint and removed at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Row, Timing

VARIABLE, OTHER_PYTHON = "MAX_ZIMAGE_PUBLISHED_SIZE", "MAX_ZIMAGE_SDCPP"
SIDE = 256
FORWARDS = 4  # the first one has its start with it, and is not counted
MINUTES = 30
"""That each may take; PyTorch's bfloat16 takes longer on processors that do not multiply it."""
PROMPT = "a red star on a blue background, drawn by hand"
_TOLD = """
end = time.perf_counter()
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps(dict(load=loaded - begin, forwards=[b - a for a, b in zip(marks, marks[1:])], decode=end - marks[-1],
                      first=marks[0] - loaded, peak=peak, misses=misses())))
"""
_DRAW = f"""
marks = []
def told(pipeline, step, timestep, values):
    marks.append(time.perf_counter())
    return values
loaded = time.perf_counter()
pipe({PROMPT!r}, height={SIDE}, width={SIDE}, num_inference_steps=STEPS, guidance_scale=0.0, callback_on_step_end=told)
{_TOLD}"""
_OURS = """
import json, time
begin = time.perf_counter()
from max_zimage import ZImagePipeline
from max_zimage.compile.modules import counts
misses = lambda: counts["misses"]
pipe = ZImagePipeline.from_pretrained(DIRECTORY, device="cpu", dtype=DTYPE, quantize=QUANTIZE, **PLACED)
"""
_DIFFUSERS = """
import json, time
begin = time.perf_counter()
import torch
from diffusers import ZImagePipeline
misses = lambda: 0
pipe = ZImagePipeline.from_pretrained(DIRECTORY, dtype=getattr(torch, DTYPE))
pipe.set_progress_bar_config(disable=True)
"""
_STABLE = f"""
import json, os, time
begin = time.perf_counter()
from stable_diffusion_cpp import StableDiffusion
model = StableDiffusion(n_threads=os.cpu_count(), verbose=False, **FILES)
marks, misses = [], lambda: 0
def told(step, steps, seconds):
    if step >= 1 and steps == STEPS:
        marks.append(time.perf_counter())
loaded = time.perf_counter()
model.generate_image({PROMPT!r}, height={SIDE}, width={SIDE}, sample_steps=STEPS, cfg_scale=1.0,
                     progress_callback=told)
{_TOLD}"""
BOTH = "transformer=int8,text_encoder=int8"
STAYS, TURNS = {"placement": "resident"}, {"placement": "sequential"}
VARIANTS: Mapping[str, tuple[str, str, str, Mapping[str, str]]] = {
    "diffusers": (_DIFFUSERS, "bfloat16", "", {}),
    "ours": (_OURS, "bfloat16", "", STAYS),
    "ours, in turns": (_OURS, "bfloat16", "", TURNS),
    "ours, streamed, 8GiB": (_OURS, "bfloat16", "", {"placement": "streamed", "max_memory": "8GiB"}),
    "ours, int8": (_OURS, "float32", BOTH, STAYS),
    "ours, int8, text encoder q4": (_OURS, "float32", "transformer=int8,text_encoder=q4", STAYS),
    "ours, int8, in turns": (_OURS, "float32", BOTH, TURNS),
}
"""Name -> code that loads, dtype, what is quantized, where weights are."""


def rows(*, quick: bool) -> list[Row]:
    """Measure.

    Args:
        quick: Whether to take the embedded model, for a look at whether it runs.

    Raises:
        RuntimeError: If no checkpoint is named, or a process ends without a picture.
    """
    from max_zimage.embedded import PATH

    directory = PATH if quick else Path(os.environ.get(VARIABLE, ""))
    if not (directory / "model_index.json").is_file():
        raise RuntimeError(
            f"{VARIABLE} must name a checkpoint of the published size, got {os.environ.get(VARIABLE)!r}; "
            "write one with python -m benchmarks.make_checkpoint DIR --turbo"
        )
    found: list[Row] = []
    for name, (load, dtype, quantize, placed) in VARIANTS.items():
        code = load.replace("DTYPE", repr(dtype)).replace("QUANTIZE", repr(quantize)) + _DRAW
        code = code.replace("PLACED", repr(placed))
        found += _rows(name, f"{quantize.replace('=', ' ')} {dtype}".strip(), _measured(code, directory))
    if (python := os.environ.get(OTHER_PYTHON)) and not quick:
        with tempfile.TemporaryDirectory(prefix="stable-diffusion.cpp-", dir=directory.parent) as folder:
            code = _STABLE.replace("FILES", repr(_files_of_stable(directory, Path(folder))))
            found += _rows("stable-diffusion.cpp", "Q8_0", _measured(code, directory, python))
    cases = [row.case for row in found]
    return sorted(found, key=lambda row: cases.index(row.case))


def _files_of_stable(directory: Path, folder: Path) -> dict[str, str]:
    """The checkpoint as that program wants it: two GGUF files under the original names, and the autoencoder's."""
    from max_zimage.checkpoint.convert import convert

    files = {"diffusion_model_path": "transformer", "llm_path": "text_encoder"}
    for name in files.values():
        convert(directory, folder / f"{name}.gguf", layout="gguf", type="q8_0", components=[name])
    found = {argument: str(folder / f"{name}.gguf") for argument, name in files.items()}
    return found | {"vae_path": str(directory / "vae" / "diffusion_pytorch_model.safetensors")}


def _measured(code: str, directory: Path, python: str = sys.executable) -> dict[str, Any]:
    """What a process tells; nothing if it takes too long."""
    code = code.replace("DIRECTORY", repr(str(directory))).replace("STEPS", str(FORWARDS))
    try:
        told = _run(code, python)
        return _run(code, python) if told["misses"] else told
    except subprocess.TimeoutExpired:
        return {}


def _run(code: str, python: str) -> dict[str, Any]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            [python, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
            timeout=MINUTES * 60,
        )
        errors.seek(0)
        said = errors.read()
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the process ended with {done.returncode} and no picture:\n{said[-2000:]}")
    print(lines[-1], file=sys.stderr, flush=True)
    told: dict[str, Any] = json.loads(lines[-1])
    return told


def _rows(name: str, dtype: str, told: Mapping[str, Any]) -> list[Row]:
    parts: dict[str, list[float]] = {
        "loading": [told["load"]] if told else [],
        "encoding and the first forward": [told["first"]] if told else [],
        "a forward": told["forwards"] if told else [],
        "decoding": [told["decode"]] if told else [],
    }
    peak, is_first = told["peak"] / 1024 if told else None, name == next(iter(VARIANTS))
    return [
        Row(
            case=f"published size, {part}",
            variant=name,
            dtype=dtype,
            sizes=f"{SIDE}x{SIDE}, {FORWARDS} forwards without guidance",
            timing=Timing.of(seconds) if seconds else None,
            peak_mib=peak,
            reference=is_first,
            note="" if told else f"no picture within {MINUTES} minutes",
        )
        for part, seconds in parts.items()
    ]
