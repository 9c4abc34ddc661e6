"""What the server's process sends the worker for one request: MAX's context, and what Z-Image has beyond it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines.context import PixelContext

from max_zimage.request.fields import ROWS
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.request.request import GenerationRequest
from max_zimage.request.row import Of
from max_zimage.request.schedule_checks import TOKEN_SIDE
from max_zimage.request.wire import of_text
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.schedule import Schedule, ScheduleSpec
from max_zimage.sampling.step_cache import StepCache, parse_step_cache


@dataclass(kw_only=True)
class ZImageContext(PixelContext):
    """A validated request with its schedule, all on the host; without latents its seed stands for the noise.

    Attributes:
        cfg_normalization: Limit of the prediction's norm as a share of the positive branch's; 0 for none. MAX's own
            field is a bool.
        parameters: JSON of `max_zimage.request.metadata.GenerationParameters` for each picture, which the file will
            carry; empty for none.
        metadata: Whether the files say how the pictures came to be.
        compression: Quality of JPEG and WebP from 0 to 100, or None for the format's own.
        reports: Whether every step is reported while it is done.
        step_cache: How steps are left out, as `max_zimage.sampling.step_cache.parse_step_cache` reads it.
        listens: Whether the server reads what is told before the pictures are done; MAX's own takes it for an answer.
        previews: Pictures of the unfinished work to send along, spread over the steps.
        input_mask: uint8 [height, width], 255 where the picture is drawn anew; None for all of it.
        features: float32 [tokens, width], features in place of the prompt; None where it is text.
        negative_features: The same of the negative prompt.
        encodes: Digests of the chat template and of the tokenizer, where nothing is drawn and the features of its texts
            are the answer; empty for pictures.
        request: The request in its wire form, see `request_of`; empty where a context was filled by hand.
        traceparent: The span that the request belongs to, as W3C Trace Context writes it; empty for none.
        tracestate: What else goes with it.
        all_steps: Steps of all parts of the run; 0 for those of `timesteps`.
        sharing: What requests must have in common to share a batch, see `max_zimage.request.wire.sharing_key`.
    """

    cfg_normalization: float = field(default=0.0)  # type: ignore[assignment]
    parameters: list[str] = field(default_factory=list)
    metadata: bool = field(default=True)
    compression: int | None = field(default=None)
    reports: bool = field(default=False)
    listens: bool = field(default=False)
    previews: int = field(default=0)
    step_cache: str = field(default="off")
    input_mask: npt.NDArray[np.uint8] | None = field(default=None)
    features: npt.NDArray[np.float32] | None = field(default=None)
    negative_features: npt.NDArray[np.float32] | None = field(default=None)
    encodes: list[str] = field(default_factory=list)
    request: str = field(default="")
    sharing: str = field(default="")
    all_steps: int = field(default=0)
    traceparent: str = field(default="")
    tracestate: str = field(default="")

    @property
    def steps_in_all(self) -> int:
        """Steps that are taken."""
        return self.all_steps or len(self.timesteps)


def request_of(context: ZImageContext) -> GenerationRequest:
    """The request that a context was made of, with its image and mask in the picture's size, and its features.

    Args:
        context: From `max_zimage.serving.context_tokenizer.ZImageTokenizer`.

    Raises:
        WireError: If the context was filled by hand, or comes from another version.
    """
    features = None
    if context.features is not None:
        features = (PromptFeatures(positive=context.features, negative=context.negative_features),)
    return of_text(context.request, image=context.input_image, mask_image=context.input_mask, features=features)


def step_cache_of(context: PixelContext) -> StepCache | None:
    """The step cache of a server's request."""
    return parse_step_cache(context.step_cache) if isinstance(context, ZImageContext) else None


def asked_of(context: PixelContext) -> GenerationRequest:
    """The request of any context, for what decides how it is drawn once captions, schedule and noise are there.

    A context that carries none, as MAX's own or one that a caller filled, says no more than its size, guidance and step
    cache. All else is the default of the table of fields, with which nothing changes.
    """
    if isinstance(context, ZImageContext) and context.request:
        return request_of(context)
    rows = [row for row in ROWS.values() if row.attribute]
    values: dict[str, Any] = {row.attribute: None if isinstance(row.default, Of) else row.default for row in rows}
    values |= {"sampler": DEFAULT_SAMPLER, "sigma_shape": DEFAULT_SHAPE, "loras": ()}
    values |= {"prompts": (), "negative_prompts": (), "height": context.height, "width": context.width}
    values |= {
        name: float(getattr(context, name)) for name in ("guidance_scale", "cfg_truncation", "cfg_normalization")
    }
    return GenerationRequest(**values | {"step_cache": step_cache_of(context)})


def schedule_of(context: PixelContext, spec: ScheduleSpec) -> Schedule:
    """The schedule that a context was made with; of one that carries no request, the one that stands in it.

    Args:
        context: Its.
        spec: The checkpoint's scheduler.
    """
    if isinstance(context, ZImageContext) and context.request:
        return request_of(context).schedule(spec)
    levels = np.asarray(context.sigmas, np.float32)
    tokens = (context.height // TOKEN_SIDE) * (context.width // TOKEN_SIDE)
    return Schedule(
        sigmas=levels,
        timesteps=np.asarray(context.timesteps, np.float32),
        deltas=np.diff(levels),
        shift=spec.shift_of(tokens),
    )
