"""The fields of a request: one table, from which every front end takes what it needs.

From here come the command line's flags, the bodies of HTTP routes, what `GenerationRequest.create` takes and checks,
pictures' parameters, the wire form that a worker gets, what requests must have in common to share a batch, and names in
messages. A new field is one attribute, and the code that acts on it. Imports no numpy: the help reads the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from max_zimage.errors import Wording
from max_zimage.request.feature_fields import FeatureFields
from max_zimage.request.guidance_fields import MAX_GUIDANCE, SLG, GuidanceFields
from max_zimage.request.kinds import (
    Array,
    Cache,
    Choice,
    Features,
    FormatKind,
    Number,
    Side,
    Switch,
    Texts,
    Whole,
)  # fmt: skip
from max_zimage.request.list_kinds import Levels, NumberOrMany
from max_zimage.request.noise_fields import NoiseFields
from max_zimage.request.row import Flag, Images, Kept, Of, Responses, Row, row, rows_of
from max_zimage.request.shift_fields import ShiftFields
from max_zimage.request.text_fields import TEMPLATE, TextFields
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE, SAMPLERS, SIGMA_SHAPES
from max_zimage.sampling.ranges import MAX_SEED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from max_zimage.request.checks import OutputType
    from max_zimage.sampling.step_cache import StepCache


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureFields:
    """What a picture is drawn from; the rows say what each is on its way to a request.

    Attributes:
        prompts: The prompts; empty where `prompt_embeds` stand in for them.
        negative_prompts: One a prompt; empty without guidance of either kind or with `negative_prompt_embeds`.
        image: uint8 [rows, columns, 3], what image-to-image begins with, as it was given; or None.
        height: Pixels, a multiple of 16.
        width: Pixels, a multiple of 16.
        num_inference_steps: Steps of the schedule, each one evaluation of the model under most samplers.
        sigmas: Noise levels before the shift, without the final 0; None spaces them by `sigma_shape`.
        sigma_shape: How the noise levels are spread over the steps.
        sampler: How a step is taken.
        guidance_scale: Guidance is on above 0: prediction = positive + scale * (positive - negative). A tuple has one
            scale for each step.
        cfg_normalization: Limit of the guided prediction's norm as a factor of the positive one's; 0 is off.
        cfg_truncation: Steps whose timestep (1 - sigma) is above this run without guidance.
        num_images_per_prompt: Pictures of every prompt.
        seed: Seed of the first picture, picture k has seed + k; None where `latents` are given and the sampler draws no
            noise.
        max_sequence_length: Tokens a prompt may have, chat template included.
        latents: float32 [num_images, channels, height / 8, width / 8], the starting noise.
        prompt_embeds: float32 [tokens, caption_dim] a prompt.
        negative_prompt_embeds: float32 [tokens, caption_dim] a prompt.
        strength: How far image-to-image goes from its image, in (0, 1]; 1 without an image.
        step_cache: Leaves out steps, or None for none.
        output_type: "pil" pictures, "np" uint8 [num_images, height, width, 3], or "latent" float32 latents.
    """

    prompts: tuple[str, ...] = row(
        Texts(),
        argument="prompt",
        is_checked_alone=False,
        flag=Flag("--prompt", "TEXT", "what to show", None),
        images=Images("prompt"),
        responses=Responses("prompt", place="", param="input"),
        kept=Kept("str"),
    )
    negative_prompts: tuple[str, ...] = row(
        Texts(),
        argument="negative_prompt",
        is_checked_alone=False,
        flag=Flag(
            "--negative",
            "TEXT",
            "what to keep away from; needs guidance or --nag",
            "the picture",
            others=("--negative-prompt",),
        ),
        images=Images("negative_prompt", "What to keep away from; needs guidance_scale or nag_scale."),
        responses=Responses("negative_prompt"),
        kept=Kept("str"),
    )
    image: npt.NDArray[np.uint8] | None = row(
        Array(),
        is_checked_alone=False,
        flag=Flag(
            "--image",
            "FILE",
            "begin with this picture, and draw in its size unless told another",
            "image-to-image",
            others=("--img2img",),
        ),
        images=Images("image", edits_only=True),
        responses=Responses("image", place="", param="input_image"),
    )
    height: int = row(
        Side(limit="max_height"),
        is_checked_alone=False,
        default=Of("height"),
        flag=Flag("--height", "PIXELS", "a multiple of 16", "the picture"),
        images=Images("height", param="size"),
        responses=Responses("height"),
        kept=Kept("int"),
        shared="value",
    )
    width: int = row(
        Side(limit="max_width"),
        is_checked_alone=False,
        default=Of("width"),
        flag=Flag("--width", "PIXELS", "a multiple of 16", "the picture"),
        images=Images("width", param="size"),
        responses=Responses("width"),
        kept=Kept("int"),
        shared="value",
    )
    num_inference_steps: int = row(
        Whole(high="max_steps"),
        is_checked_alone=False,
        default=Of("num_inference_steps"),
        flag=Flag("--steps", "N", "denoising steps", "the picture"),
        images=Images("steps", "Denoising steps.", others=("num_inference_steps",)),
        responses=Responses("steps"),
        kept=Kept("int"),
        shared="levels",
    )
    sigmas: tuple[float, ...] | None = row(
        Levels(),
        flag=Flag(
            "--sigmas", "S,S,...", "noise levels of the steps, falling from at most 1, before the shift", "fine tuning"
        ),
        images=Images("sigmas", "Noise levels of the steps, falling from at most 1, before the shift."),
        responses=Responses("sigmas", place="metadata", param="metadata"),
        kept=Kept("tuple[float, ...] | None"),
        shared="levels",
    )
    sigma_shape: str = row(
        Choice(words=SIGMA_SHAPES),
        is_checked_alone=False,
        default=Of("sigma_shape"),
        flag=Flag("--sigma-shape", "SHAPE", f"how noise levels are spread: {', '.join(SIGMA_SHAPES)}", "fine tuning"),
        images=Images("sigma_shape", "How noise levels are spread over the steps."),
        responses=Responses("sigma_shape", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=DEFAULT_SHAPE),
        shared="levels",
    )
    sampler: str = row(
        Choice(words=SAMPLERS),
        default=Of("sampler"),
        flag=Flag("--sampler", "SAMPLER", f"how steps are taken: {', '.join(SAMPLERS)}", "fine tuning"),
        images=Images("sampler", "How steps are taken."),
        responses=Responses("sampler", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=DEFAULT_SAMPLER),
        shared="value",
    )
    guidance_scale: float | tuple[float, ...] = row(
        NumberOrMany(high=MAX_GUIDANCE, usual="0 to 10", float32=True),
        default=Of("guidance_scale"),
        flag=Flag(
            "--guidance",
            "SCALE",
            "how closely to follow the prompt; 0 is off; S,S,... by step",
            "the picture",
            others=("--guidance-scale",),
        ),
        images=Images("guidance_scale", "0 is off; the checkpoint's if not given."),
        responses=Responses("guidance_scale"),
        kept=Kept("float | tuple[float, ...]"),
        shared="value",
    )
    cfg_normalization: float = row(
        Number(float32=True, switch=True),
        default=0.0,
        none_is_default=False,
        flag=Flag("--cfg-normalization", "FACTOR", "limit of guidance's growth; 0 is none", "fine tuning"),
        images=Images("cfg_normalization", "Limit of guidance's growth; 0 is none."),
        responses=Responses("cfg_normalization"),
        kept=Kept("float"),
        shared="value",
    )
    cfg_truncation: float = row(
        Number(),
        default=1.0,
        flag=Flag("--cfg-truncation", "TIME", "no guidance above this time in [0, 1]", "fine tuning"),
        images=Images("cfg_truncation", "No guidance above this time in [0, 1]."),
        responses=Responses("cfg_truncation"),
        kept=Kept("float"),
        shared="value",
    )
    num_images_per_prompt: int = row(
        Whole(high="max_images"),
        default=1,
        none_is_default=False,
        images=Images("n"),
        responses=Responses("num_images"),
    )
    seed: int | None = row(
        Whole(low=0, high=MAX_SEED),
        is_checked_alone=False,
        flag=Flag("--seed", "N", "draws the starting noise; a random one if not given", "the picture"),
        images=Images("seed", "Draws the noise; a random one if not given."),
        responses=Responses("seed", place="body"),
        kept=Kept("int"),
    )
    max_sequence_length: int = row(
        Whole(high="max_tokens"),
        default=Of("default_tokens"),
        flag=Flag("--max-sequence-length", "N", "tokens a prompt may have; 512 if not given", "fine tuning"),
        images=Images("max_sequence_length", "Tokens a prompt may have; 512 if not given."),
        responses=Responses("max_sequence_length", place="metadata", param="metadata"),
        kept=Kept("int"),
    )
    latents: npt.NDArray[np.float32] | None = row(
        Array(),
        is_checked_alone=False,
        flag=Flag("--latents-in", "FILE", "begin with the latents of --latents-out, not with a seed", "fine tuning"),
    )
    prompt_embeds: tuple[npt.NDArray[np.float32], ...] | None = row(Features())
    negative_prompt_embeds: tuple[npt.NDArray[np.float32], ...] | None = row(Features())
    strength: float = row(
        Number(above=True, high=1.0),
        is_checked_alone=False,
        flag=Flag("--strength", "SHARE", "how far to go from it, up to 1; 0.6 if not given", "image-to-image"),
        images=Images("strength", "How far from the image, in (0, 1]; 0.6 if not given.", edits_only=True),
        responses=Responses("strength"),
        kept=Kept("float | None", since=3),
        shared="levels",
    )
    step_cache: StepCache | None = row(
        Cache(),
        default=Of("step_cache"),
        flag=Flag(
            "--step-cache",
            "CACHE",
            "leave steps out: first_block or taylorseer, with :NAME=VALUE,... behind it; off is none",
            "fine tuning",
        ),
        images=Images("step_cache", "off, first_block:NAME=VALUE,... or taylorseer:..."),
        responses=Responses("step_cache", place="metadata", param="metadata"),
        kept=Kept("str", since=2, before="off"),
        shared="value",
    )
    output_type: OutputType = row(FormatKind(), default="pil", none_is_default=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestFields(FeatureFields, TextFields, NoiseFields, GuidanceFields, ShiftFields, PictureFields):
    """What `max_zimage.request.request.GenerationRequest` holds. Attributes: see its bases."""


ROWS = rows_of(
    RequestFields,
    SLG,
    TEMPLATE,
    Row(
        argument="resize",
        kind=Switch(),
        is_checked_alone=False,
        flag=Flag("--resize", "", "let it be resized, to the size asked for or the nearest", "image-to-image"),
        images=Images("resize", "Whether the image may be resized to the size asked for.", edits_only=True),
    ),
)
"""Argument -> row, in the order in which problems are told; last those that a request does not hold."""

IMAGES = Wording(
    {each.argument: each.images.name for each in ROWS.values() if each.images},
    {"resize": "set resize to true", "asks": "size asks", "own size": "leave size out"},
)
"""How OpenAI's image routes speak."""

RESPONSES = Wording({each.argument: each.responses.name for each in ROWS.values() if each.responses})
"""How MAX's `/v1/responses` speaks."""

FLAGS = Wording(
    {each.argument: each.flag.name for each in ROWS.values() if each.flag and each.flag.group},
    {"resize": "give --resize", "cpu": "use --device cpu"},
)
"""How the command line speaks."""
