"""A request on the device: everything that the denoising loop takes, made before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device

from max_zimage.device.devices import upload
from max_zimage.images.tiles import WHOLE, Tiling
from max_zimage.pipeline.features import FeatureChange
from max_zimage.pipeline.inpainting import Masked, Paste
from max_zimage.pipeline.items import Items
from max_zimage.pipeline.mixed_adapters import LoraSet, MixedAdapters
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER, HiddenLayer
from max_zimage.request.legs import Leg
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Guidance
from max_zimage.sampling.positions import (
    PIXELS_PER_TOKEN,
    RopeSpec,
    caption_rope,
    padded,
    sequence_offsets,
)
from max_zimage.sampling.positions.dype import Dype
from max_zimage.sampling.schedule import Schedule
from max_zimage.sampling.starting_noise import NoiseSource
from max_zimage.sampling.step_cache import StepCache

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """The distinct captions of a request, as token ids or as features.

    Attributes:
        tokens: int64 [tokens] each; empty where `features` are given.
        features: float32 [tokens, caption_dim] each, in place of the text encoder's; empty where `tokens` are given.
        rows: Which caption each branch row shows: one for each picture, then for each further branch one for each
            picture again.
        changes: What is done to the features of each caption that is given as tokens; empty for nothing.
        hidden_layer: Which of the text encoder's states they are.
    """

    tokens: tuple[IdArray, ...]
    features: tuple[FloatArray, ...]
    rows: tuple[int, ...]
    changes: tuple[FeatureChange, ...] = ()
    hidden_layer: HiddenLayer = DEFAULT_HIDDEN_LAYER

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of features of each caption, its tokens as a rule."""
        found = [len(caption) for caption in (self.features or self.tokens)]
        if not self.changes or self.features:
            return tuple(found)
        return tuple(min(length, change.rows) for length, change in zip(found, self.changes, strict=True))

    @property
    def are_changed(self) -> bool:
        """Whether features are changed on the host."""
        return any(change.is_needed(len(ids)) for change, ids in zip(self.changes, self.tokens, strict=False))


@dataclass(frozen=True, kw_only=True, eq=False)
class Later:
    """A leg of the run that is yet to come, on the host; see `max_zimage.pipeline.later`.

    Attributes:
        leg: Its size and steps, and what it goes on from.
        evaluations: What the sampler makes of it.
        guidance: Its branches.
        captions: The distinct captions, with the rows of the positive branch and of the negative one, if there is one.
        sources: The noise of each picture.
    """

    leg: Leg
    evaluations: Evaluations
    guidance: Guidance
    captions: Captions
    sources: tuple[NoiseSource, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return self.leg.asked.height // PIXELS_PER_TOKEN, self.leg.asked.width // PIXELS_PER_TOKEN

    def of(self, pictures: Sequence[int]) -> Later:
        """The same for some of the pictures."""
        count, rows = len(self.sources), self.captions.rows
        shown = tuple(rows[start + picture] for start in range(0, len(rows), count) for picture in pictures)
        sources = tuple(self.sources[picture] for picture in pictures)
        return replace(self, captions=replace(self.captions, rows=shown), sources=sources)


@dataclass(frozen=True, kw_only=True, eq=False)
class ZImageModelInputs:
    """One request, ready to execute.

    Attributes:
        captions: What the pictures show, on the host.
        latents: float32 [batch, channels, height/16, 2, width/16, 2] on the device: the starting noise.
        schedule: Sigmas, timesteps and deltas, on the host.
        evaluations: What the sampler makes of them.
        guidance: Its branches, and how much each counts in every evaluation.
        height: Pixels.
        width: Pixels.
        num_images_per_prompt: Pictures of every prompt; all pictures where requests share a batch.
        items: The branch rows.
        step_cache: Leaves out steps, or None.
        seeds: Of each picture, for the noise that a sampler draws between steps; empty where it draws none.
        masked: What the pictures keep of an image, or None.
        pastes: For each picture what takes its place again in the end, or None; empty for nothing.
        dype: How positions are extrapolated, where that changes the tables of the branch rows; or None.
        later: The legs of the run behind this one.
        tiling: How pictures are decoded.
        loras: Adapters that the weights have for it.
        mixed: Adapters of each picture beside weights that have none; or None.
    """

    captions: Captions
    latents: Buffer
    schedule: Schedule
    evaluations: Evaluations
    guidance: Guidance
    height: int
    width: int
    num_images_per_prompt: int
    items: Items
    step_cache: StepCache | None
    seeds: tuple[int, ...] = ()
    masked: Masked | None = None
    pastes: tuple[Paste | None, ...] = ()
    dype: Dype | None = None
    later: tuple[Later, ...] = ()
    tiling: Tiling = WHOLE
    loras: LoraSet = ()
    mixed: MixedAdapters | None = None

    @property
    def adapter_names(self) -> list[str]:
        """Of all adapters that any of its pictures has."""
        sets = self.mixed.loras if self.mixed else (self.loras,)
        return list(dict.fromkeys(each.name for one in sets for each in one))

    @property
    def num_inference_steps(self) -> int:
        """Steps of the schedule."""
        return self.schedule.num_steps

    @property
    def batch(self) -> int:
        """Pictures."""
        return int(self.latents.shape[0])

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return int(self.latents.shape[2]), int(self.latents.shape[4])

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture."""
        rows, columns = self.sides
        return rows * columns


def caption_arguments(spec: RopeSpec, captions: Captions, device: Device) -> tuple[Buffer, ...]:
    """The arguments of `graphs.model.conditioning.CaptionConditioning` behind the features."""
    lengths = captions.lengths
    attended = [padded(length) for length in lengths]
    return (
        upload(np.asarray(lengths, np.uint32), device),
        upload(np.asarray(attended, np.uint32), device),
        upload(sequence_offsets(attended, max(attended)), device),
        upload(caption_rope(spec, lengths), device),
        upload(np.asarray(captions.rows, np.int32), device),
    )
