"""What `max-zimage verify` draws on both sides, and the files by which the two processes tell each other.

PyTorch and MAX each bring threads and memory of their own; in two processes neither sees the other's, and what the
reference took is given back when it ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.diagnosis.stages import Values

NEGATIVE = (
    "blurry, out of focus, low resolution, jpeg artifacts, noise, grain, watermark, signature, text, a frame, cropped, "
    "overexposed, underexposed, a plain photograph of an empty grey room without any light in it"
)
"""Longer than 32 tokens, so that two captions of unequal padded length share the batch."""

HEIGHT, WIDTH = 256, 208
"""208 image tokens, no multiple of 32: image pad tokens take part."""

GUIDANCE = 2.0
"""So that both branches and what combines them take part, whatever the checkpoint is meant for."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture.

    Attributes:
        prompt: What it shows.
        height: Pixels.
        width: Pixels.
        steps: Denoising steps.
        seed: Of the starting noise.
        channels: Of the latents.
        dtypes: In which each side runs, the most exact first.
    """

    prompt: str
    height: int = HEIGHT
    width: int = WIDTH
    steps: int = 4
    seed: int = 0
    channels: int = 16
    dtypes: tuple[ModelDtype, ...] = DTYPES

    @property
    def prompts(self) -> list[str]:
        """The prompt and the negative one."""
        return [self.prompt, NEGATIVE]

    def noise(self) -> npt.NDArray[np.float32]:
        """Starting noise, float32 [1, channels, height/8, width/8]."""
        shape = (1, self.channels, self.height // 8, self.width // 8)
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)


def write_job(folder: Path, directory: Path, asked: Asked) -> Path:
    """Write what the reference is to do; returns the file."""
    file = folder / "job.json"
    file.write_text(json.dumps({"directory": str(directory), "asked": asdict(asked)}), encoding="utf-8")
    return file


def read_job(file: Path) -> tuple[Path, Asked]:
    """Read it."""
    job = json.loads(file.read_text(encoding="utf-8"))
    asked = job["asked"]
    return Path(job["directory"]), Asked(**{**asked, "dtypes": tuple(asked["dtypes"])})


def write_values(folder: Path, dtype: ModelDtype, values: Values) -> None:
    """Keep the values of all stages in a dtype."""
    np.savez(folder / f"{dtype}.npz", allow_pickle=False, **values)


def read_values(folder: Path, dtype: ModelDtype) -> Values:
    """Read them."""
    with np.load(folder / f"{dtype}.npz", allow_pickle=False) as kept:
        return dict(kept)
