"""How well a checkpoint draws what it is told, on combinations that its training never showed.

Diffusers and the engine draw the same prompts from the same noise; a program reads colours, shapes and places back from
the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from benchmarks.measure import Row, psnr
from benchmarks.pictures import Quality
from benchmarks.training.autoencoder import reconstructed
from benchmarks.training.scenes import Objects, Scene, random_scene
from tests.references.diffusers_runs import load_reference
from tests.references.noises import initial_noise
from tests.references.scenes import SeenObject, recognize_all

Pixels = npt.NDArray[np.uint8]
Draw = Callable[..., Pixels]
"""draw(prompts, latents, steps, guidance) -> uint8 [prompts, SIDE, SIDE, 3]."""

SIDE = 128
BATCH = 10
NEAR = 0.125
"""How far from where it was painted an object may be, as a share of the side; two objects are half a side apart."""
SAME_SIZE = 1.18
"""How much wider or narrower than painted: sizes with different words are a factor of 1.37 or more apart."""
_SEED = 31


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is asked of every competitor.

    Attributes:
        objects: In each picture.
        steps: Denoising steps.
        guidance: Guidance scale.
    """

    objects: Objects
    steps: int
    guidance: float

    def pictures(self, count: int) -> int:
        """Of this setting, where `count` are drawn without guidance: half as many of what costs six times as much."""
        return max(1, count // 2) if self.guidance else count

    @property
    def name(self) -> str:
        """As a table has it."""
        guidance = f"guidance {self.guidance:g}" if self.guidance else "no guidance"
        return f"{'one object' if self.objects == 1 else 'two objects'}, {self.steps} steps, {guidance}"


SETTINGS = (
    Setting(objects=1, steps=4, guidance=0.0),
    Setting(objects=2, steps=4, guidance=0.0),
    Setting(objects=1, steps=8, guidance=0.0),
    Setting(objects=2, steps=8, guidance=0.0),
    Setting(objects=1, steps=8, guidance=2.0),
    Setting(objects=2, steps=8, guidance=2.0),
    Setting(objects=1, steps=24, guidance=2.0),
    Setting(objects=2, steps=24, guidance=2.0),
)


def unseen_scenes(objects: Objects, count: int) -> list[Scene]:
    """Scenes of which every object has a combination kept out of training; always the same."""
    chance = np.random.default_rng((_SEED, objects))
    return [random_scene(chance, objects, unseen=True) for _ in range(count)]


def with_diffusers(directory: Path) -> Draw:
    """The reference, float32, on all cores."""
    pipeline = load_reference(directory)

    def draw(prompts: Sequence[str], latents: npt.NDArray[np.float32], steps: int, guidance: float) -> Pixels:
        out = pipeline(list(prompts), latents=torch.from_numpy(latents), **_asked(steps, guidance))
        return (out.images * 255).round().astype(np.uint8)

    return draw


def with_engine(directory: Path) -> Draw:
    """The engine on a CPU, float32."""
    from max_zimage import ZImagePipeline  # here: the name brings MAX along, which training needs not

    pipeline = ZImagePipeline.from_pretrained(directory, device="cpu", dtype="float32")

    def draw(prompts: Sequence[str], latents: npt.NDArray[np.float32], steps: int, guidance: float) -> Pixels:
        return np.asarray(pipeline(list(prompts), latents=latents, **_asked(steps, guidance)))

    return draw


def _asked(steps: int, guidance: float) -> dict[str, Any]:
    """Arguments under the names that both pipelines know."""
    return {
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "output_type": "np",
    }


def drawn(draw: Draw, scenes: Sequence[Scene], setting: Setting) -> Pixels:
    """One picture a scene, of noise that is always the same."""
    parts = []
    for begin in range(0, len(scenes), BATCH):
        some = [scene.caption for scene in scenes[begin : begin + BATCH]]
        noise = initial_noise(1000 + begin, len(some), 16, SIDE, SIDE)
        parts.append(draw(some, noise, setting.steps, setting.guidance))
    return np.concatenate(parts)


def shown(scene: Scene, pixels: Pixels) -> tuple[bool, bool, bool, bool]:
    """Whether colours, shapes, the ground and everything together are right.

    Everything: the objects asked for and no other, in their places, and one object in the size that its caption says.
    """
    asked, _ = recognize_all(scene.painted(*pixels.shape[:2]))
    seen, ground = recognize_all(pixels)
    if len(scene.objects) == 2:
        axis = int(abs(scene.objects[0][2][1] - scene.objects[1][2][1]) > NEAR)
        asked, seen = (sorted(some, key=lambda one: one.place[axis]) for some in (asked, seen))
    colors = [one.color for one in seen[: len(asked)]] == [color for color, *_ in scene.objects]
    shapes = [one.shape for one in seen[: len(asked)]] == [shape for _, shape, *_ in scene.objects]
    alike = len(seen) == len(asked) and all(map(_alike, seen, asked))
    return colors, shapes, ground == scene.ground, colors and shapes and ground == scene.ground and alike


def _alike(seen: SeenObject, asked: SeenObject) -> bool:
    """Whether place and size are those that were painted, as far as a caption tells them."""
    near = all(abs(here - there) < NEAR for here, there in zip(seen.place, asked.place, strict=True))
    return near and 1 / SAME_SIZE < (seen.area / asked.area) ** 0.5 < SAME_SIZE


def score(scenes: Sequence[Scene], pictures: Pixels) -> Quality:
    """Shares of the pictures that are right."""
    right = np.mean([shown(scene, pixels) for scene, pixels in zip(scenes, pictures, strict=True)], axis=0)
    color, shape, ground, everything = map(float, right)
    return Quality(color_right=color, shape_right=shape, background_right=ground, all_right=everything)


def autoencoder_row(directory: Path, count: int) -> Row:
    """Mean PSNR of fresh scenes through encoder and decoder, half of them of two objects."""
    vae = AutoencoderKL.from_pretrained(directory / "vae", torch_dtype=torch.float32)
    scenes = unseen_scenes(1, count - count // 2) + unseen_scenes(2, count // 2)
    values = []
    for scene in scenes:
        pixels = scene.painted(SIDE, SIDE)
        values.append(psnr(reconstructed(vae, pixels[None])[0], pixels))
    return Row(
        case="autoencoder, there and back",
        variant="diffusers",
        dtype="float32",
        sizes=f"{SIDE}x{SIDE}, {count} pictures",
        psnr_db=float(np.mean(values)),
    )


def evaluate(
    competitors: dict[str, Draw], count: int, settings: Sequence[Setting] = SETTINGS
) -> tuple[list[Row], dict[str, Pixels]]:
    """Measure every setting.

    Args:
        competitors: By name, the reference first.
        count: Pictures of a setting without guidance.
        settings: What to ask for.

    Returns:
        Rows of the results, and the reference's pictures by setting.
    """
    rows: list[Row] = []
    sheets: dict[str, Pixels] = {}
    for setting in settings:
        scenes = unseen_scenes(setting.objects, setting.pictures(count))
        for name, draw in competitors.items():
            pictures = drawn(draw, scenes, setting)
            reference = sheets.setdefault(setting.name, pictures)
            quality = score(scenes, pictures)
            print(
                f"{setting.name}, {name}: {quality.all_right:.1%} right, shapes {quality.shape_right:.1%}", flush=True
            )
            rows.append(
                Row(
                    case=setting.name,
                    variant=name,
                    dtype="float32",
                    sizes=f"{SIDE}x{SIDE}, {len(scenes)} pictures",
                    psnr_db=None if pictures is reference else psnr(pictures, reference),
                    quality=quality,
                    reference=pictures is reference,
                )
            )
    return rows, sheets
