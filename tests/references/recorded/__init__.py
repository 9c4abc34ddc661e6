"""Sixteen requests of the embedded model on a CPU in float32, and what came of them: what no change may change.

`digests.json` holds, for every processor that they were recorded on, the SHA-256 digests of the bits of the final
latents and of the picture; `latents.npz` the latents themselves, from the first of these processors, for all others.
Sums run in the order that a processor's registers suggest, so bits are those of a processor and of a version of MAX.
How many cores it has makes no difference.

    python -m tests.references.recorded           adds the digests of this processor
    python -m tests.references.recorded --anew    drops all that is there, latents too

The first is for another processor: it wants latents within the tolerance of those that are there. The second is for a
change that was meant to change pictures, or another version of MAX.

Speed is recorded elsewhere, in rows of benchmarks/results. `end_to_end.csv` has the seconds of whole pictures beside
diffusers' and their ratio, and the seconds of compiling (`compile_s`); `start.csv` those of starts, cold and warm. Both
say commit, processor and versions; `make bench ARGS="end_to_end start"` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from max_zimage import ZImagePipeline
from max_zimage.graphs.cpu import instructions

FloatArray = npt.NDArray[np.float32]

FOLDER = Path(__file__).parent
DIGESTS, LATENTS = FOLDER / "digests.json", FOLDER / "latents.npz"

_SETS = re.compile(r"s*sse|avx|fma|f16c|amx|asimd|fphp|sve|bf16|i8mm|fcma")
"""Instruction sets that compute; a hypervisor shows or hides others."""

LONG = "a picture of a small pink cross to the left of a large yellow heart on a dark purple background"


def start_image(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A red square on blue, uint8 [height, width, 3]."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = (30, 60, 220)
    picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (220, 30, 30)
    return picture


def _request(steps: int, size: tuple[int, int] = (64, 64), guidance: float = 2.0, **others: Any) -> dict[str, Any]:
    """Arguments of a call; size is height and width."""
    usual = {"prompt": "a red star on a blue background", "negative_prompt": "green", "seed": 40}
    if not guidance:
        del usual["negative_prompt"]
    sizes = {"height": size[0], "width": size[1], "num_inference_steps": steps, "guidance_scale": guidance}
    return {**usual, **sizes, **others}


REQUESTS: dict[str, dict[str, Any]] = {
    "one step": _request(1, (128, 128), guidance=0.0),
    "eight steps": _request(8, (128, 128), guidance=0.0),
    "fifty steps": _request(50),
    "guidance 0.5": _request(8, guidance=0.5),
    "guidance 1": _request(8, (96, 96), guidance=1.0, prompt=LONG),
    # Of another length in tokens each, one of them more than one length that captions are padded to.
    "unequal captions": _request(8, guidance=0.0, prompt=["a star", LONG]),
    "unequal captions, guided": _request(8, prompt=["a star", LONG], negative_prompt=[LONG, ""]),
    # 35 and 77 image tokens, of which 32 would have needed no padding.
    "not square": _request(8, (80, 112)),
    "not square, no guidance": _request(8, (176, 112), guidance=0.0),
    "several images": _request(8, num_images_per_prompt=3),
    "image-to-image": _request(8, (96, 64), image=start_image(96, 64), strength=0.6),
    "image-to-image, resized": _request(6, guidance=0.0, image=start_image(50, 30), strength=0.9, resize=True),
    "first-block cache": _request(20, step_cache="first_block:threshold=0.15,warmup_steps=2", num_images_per_prompt=2),
    "taylorseer": _request(20, step_cache="taylorseer:cache_interval=4,warmup_steps=3,max_order=2"),
    "normalized, truncated": _request(8, guidance=4.0, cfg_normalization=1.0, cfg_truncation=0.6),
    "sigmas and shift": _request(5, sigmas=[1.0, 0.93, 0.7, 0.41, 0.12], shift=2.0, cfg_normalization=0.5),
}


class Drawn(NamedTuple):
    """What came of a request.

    Attributes:
        latents: After the last step, float32 [pictures, channels, height/8, width/8].
        pixels: uint8 [pictures, height, width, 3].
    """

    latents: FloatArray
    pixels: npt.NDArray[np.uint8]

    @property
    def digests(self) -> dict[str, str]:
        """Of the bits of both."""
        return {"latents": _digest(self.latents), "pixels": _digest(self.pixels)}


def draw(pipeline: ZImagePipeline, name: str) -> Drawn:
    """Run one of `REQUESTS`."""
    last: list[FloatArray] = []

    def keep(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> None:
        last[:] = [np.array(values["latents"], np.float32)]

    pixels = pipeline(**REQUESTS[name], output_type="np", callback_on_step_end=keep)
    return Drawn(last[0], np.asarray(pixels, np.uint8))


def processor() -> dict[str, Any]:
    """What decides the bits: the processor by its name, the instruction sets that compute, and MAX's version."""
    file = Path("/proc/cpuinfo")
    first = file.read_text().partition("\n\n")[0] if file.exists() else ""
    # Arm's cores have numbers in place of a name.
    names = re.findall(r"^(?:model name|cpu family|model|CPU implementer|CPU part)\s*: (.*)$", first, re.M)
    sets = sorted(name for name in instructions() if _SETS.match(name))
    return {"name": " / ".join(names or [platform.machine()]), "instructions": sets, "max": version("modular")}


def recorded_digests() -> list[dict[str, Any]]:
    """One entry a processor: what `processor` said there, and the digests by request; at first none."""
    entries: list[dict[str, Any]] = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else []
    return entries


def recorded_latents(name: str) -> FloatArray:
    """The latents of a request on the first of the processors."""
    with np.load(LATENTS) as file:
        return np.asarray(file[name], np.float32)


def digests_here(name: str) -> dict[str, str] | None:
    """The digests of a request on a processor like this one; None where none was recorded."""
    here = processor()
    return next((entry["digests"][name] for entry in recorded_digests() if entry["processor"] == here), None)


def _digest(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()
