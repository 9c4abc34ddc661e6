"""What a picture is worth beside the uncached one of the same noise, and how many pictures become one row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import structural_similarity
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from benchmarks.measure import Row, Timing, psnr
from benchmarks.pictures import Quality
from benchmarks.quality.cases import Prompt
from benchmarks.quality.draws import UNCACHED, Drawn, note_of

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of one competitor; `case` and `variant` are those of its row."""

    case: str
    variant: str
    sizes: str
    prompt: str
    seed: int
    seconds: float
    skipped: float
    psnr_db: float
    ssim: float
    lpips: float | None
    clip_score: float | None
    right: tuple[bool, bool, bool] | None


class Lpips:
    """Learned perceptual distance on AlexNet's features, as the package lpips computes it.

    Args:
        weights: AlexNet's weights as torchvision publishes them, a state dict; the rest is in the package.

    Raises:
        ValueError: If the package cannot be imported or the weights are not AlexNet's.
    """

    def __init__(self, weights: Path) -> None:
        try:
            # Not among the tests' packages: it brings torchvision, which only loads beside a torch of its own build.
            package = import_module("lpips")
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"the package lpips does not load ({error}); pip install 'max-zimage[lpips]'") from error
        # pnet_rand leaves AlexNet random instead of downloading it.
        self._model = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
        features = self._model.net.state_dict()  # slice3.6.weight for what torchvision calls features.6.weight
        try:
            given = torch.load(weights, weights_only=True)
            named = {name: given[f"features.{name.partition('.')[2]}"] for name in features}
            self._model.net.load_state_dict(named)
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"--lpips must name torchvision's weights of AlexNet, got {weights}: {error}") from error

    @torch.no_grad()
    def __call__(self, actual: Pixels, expected: Pixels) -> float:
        """The distance of two pictures, uint8 [height, width, 3]; 0 for equal ones."""
        return float(
            self._model(*(torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (actual, expected)))
        )


class ClipScore:
    """How well a picture fits its prompt: 100 times the cosine of CLIP's embeddings, at least 0.

    Args:
        folder: A CLIP model of transformers with tokenizer and image processor.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"--clip must name a folder with a CLIP model, got {folder}: {error}") from error

    @torch.no_grad()
    def __call__(self, pixels: Pixels, text: str) -> float:
        """The score of a picture, uint8 [height, width, 3]; a text that is too long for CLIP is cut."""
        longest = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        image = self._processor(pixels, return_tensors="pt")
        output = self._model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=image["pixel_values"]
        )
        return max(0.0, 100 * float((output.image_embeds * output.text_embeds).sum()))


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores pictures; None leaves a column empty."""

    lpips: Callable[[Pixels, Pixels], float] | None = None
    clip: Callable[[Pixels, str], float] | None = None

    def sample(self, case: str, variant: str, sizes: str, prompt: Prompt, drawn: Drawn, expected: Pixels) -> Sample:
        """Compare a picture with the uncached one."""
        return Sample(
            case=case,
            variant=variant,
            sizes=sizes,
            prompt=prompt.text,
            seed=prompt.seed,
            seconds=drawn.seconds,
            skipped=drawn.skipped,
            psnr_db=psnr(drawn.pixels, expected),
            ssim=float(structural_similarity(drawn.pixels, expected, channel_axis=-1)),
            lpips=None if self.lpips is None else self.lpips(drawn.pixels, expected),
            clip_score=None if self.clip is None else self.clip(drawn.pixels, prompt.text),
            right=prompt.shown_by(drawn.pixels),
        )


def rows(samples: Sequence[Sample], dtype: str) -> list[Row]:
    """One row for every variant of every case, in the order in which they first come."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.case, sample.variant), []).append(sample)
    return [_row(group, dtype) for group in groups.values()]


def _row(samples: Sequence[Sample], dtype: str) -> Row:
    first = samples[0]
    levels = np.array([sample.psnr_db for sample in samples])
    similar = np.array([sample.ssim for sample in samples])
    moved = levels[np.isfinite(levels)]
    right = np.array([sample.right for sample in samples if sample.right is not None]).reshape(-1, 3)
    shares = (*right.mean(axis=0).tolist(), float(right.all(axis=1).mean())) if len(right) else (None,) * 4
    return Row(
        case=first.case,
        variant=first.variant,
        dtype=dtype,
        sizes=first.sizes,
        timing=Timing.of([sample.seconds for sample in samples]),
        psnr_db=float(moved.mean()) if len(moved) else float("inf"),
        quality=Quality(
            skipped=float(np.mean([sample.skipped for sample in samples])),
            identical=1 - len(moved) / len(levels),
            # The sample itself: between a finite and an infinite one there is nothing to interpolate.
            psnr_p5_db=float(np.percentile(levels, 5, method="lower")),
            ssim=float(similar.mean()),
            ssim_p5=float(np.percentile(similar, 5, method="lower")),
            lpips=_mean([sample.lpips for sample in samples]),
            clip_score=_mean([sample.clip_score for sample in samples]),
            color_right=shares[0],
            shape_right=shares[1],
            background_right=shares[2],
            all_right=shares[3],
        ),
        reference=first.variant == UNCACHED,
        note=note_of(first.variant),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def append(path: Path, samples: Sequence[Sample]) -> None:
    """Keep the samples of one prompt, one JSON object a line, so that an interrupted run can go on."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        file.flush()
        os.fsync(file.fileno())


def kept(path: Path) -> list[Sample]:
    """The samples of an earlier run; none if there is no file.

    Raises:
        ValueError: If the file holds something else.
    """
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Sample(**{**line, "right": line["right"] and tuple(line["right"])}) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not what a run of this version keeps ({error}); start without --resume") from error
