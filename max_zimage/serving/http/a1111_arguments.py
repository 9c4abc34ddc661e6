"""From a body of AUTOMATIC1111's routes to a request: names, scales and prompts as this engine has them.

`cfg_scale` is `guidance_scale` + 1, a seed of -1 is a random one, and `<lora:name:weight>` in a prompt names an
adapter. All that is wrong is said together.

Reference: reference/scale-and-ux.md section 11; stable-diffusion-webui modules/processing.py, extra_networks.py.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from max_zimage.request.a1111_names import sampler_of, shape_of
from max_zimage.request.guidance_fields import MAX_GUIDANCE
from max_zimage.request.limits import RequestDefaults
from max_zimage.request.loras import SUFFIX
from max_zimage.sampling.other_names import UPSCALER_LABELS, guidance_of
from max_zimage.sampling.samplers import is_stochastic
from max_zimage.serving.errors import bad_request, together
from max_zimage.serving.http.a1111_body import (
    NAMED,
    A1111Request,
    Img2ImgRequest,
    Txt2ImgRequest,
    inert_problems,
    setting_problems,
)

UPSCALERS = {label: name for name, label in UPSCALER_LABELS.items()}
"""Upscaler of the second pass -> what it is here."""

_STRENGTH = 0.75  # of both routes, where a request says nothing
_LONGEST = 1 << 20  # pixels of a side, which no checkpoint draws
_NETWORK = re.compile(r"<(\w+):([^<>]*)>")
_SPACES = re.compile(r"[ \t]{2,}")


@dataclass
class Reading:
    """What has been read of a body.

    Attributes:
        values: Arguments of `GenerationRequest.create`.
        problems: Field and sentence of all that is wrong.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def wrong(self, name: str, sentence: str) -> None:
        """Note a problem of a field."""
        self.problems.append((name, f"{name}: {sentence}"))


def arguments(body: A1111Request, model: str, defaults: RequestDefaults) -> dict[str, Any]:
    """What a request says, as arguments of `GenerationRequest.create`, but for its pictures.

    Args:
        body: The request.
        model: The served model.
        defaults: The checkpoint's.

    Raises:
        ApiError: 400, with all that is wrong, and the first field of it.
    """
    reading = Reading(problems=inert_problems(body))
    reading.problems += setting_problems(body.override_settings or {}, model, "override_settings")
    given = {argument: getattr(body, name) for name, argument in NAMED.items()}
    reading.values = {name: value for name, value in given.items() if value is not None}
    reading.values["num_images_per_prompt"] = (body.batch_size or 1) * (body.n_iter or 1)
    _seeds(reading, body)
    _guidance(reading, body)
    _sampler(reading, body)
    _texts(reading, body)
    if isinstance(body, Txt2ImgRequest):
        _passes(reading, body, defaults)
    if isinstance(body, Img2ImgRequest):
        _image_fields(reading, body)
    if reading.problems:
        raise bad_request(together([sentence for _, sentence in reading.problems]), reading.problems[0][0])
    return reading.values


def _seeds(reading: Reading, body: A1111Request) -> None:
    """-1 is a random seed, of either kind; the second one counts where it is mixed in at all."""
    values = reading.values
    if values.get("seed") == -1:
        del values["seed"]
    if not values.get("variation_strength"):
        values.pop("variation_seed", None)
        values.pop("variation_strength", None)
    elif values.get("variation_seed", -1) == -1:
        values["variation_seed"] = secrets.randbelow(2**32)


def _guidance(reading: Reading, body: A1111Request) -> None:
    scale = body.cfg_scale
    if scale is None:
        return
    if not 1 <= scale <= MAX_GUIDANCE + 1:
        reading.wrong("cfg_scale", f"must be from 1, which is no guidance, to {MAX_GUIDANCE + 1:g}, got {scale!r}")
        return
    reading.values["guidance_scale"] = guidance_of(scale)


def _sampler(reading: Reading, body: A1111Request) -> None:
    name, shape = body.sampler_name or body.sampler_index, None
    which = "sampler_name" if body.sampler_name else "sampler_index"
    if name:
        try:
            reading.values["sampler"], shape = sampler_of(name)
        except ValueError as error:
            reading.wrong(which, str(error))
    try:
        named = shape_of(body.scheduler or "")
    except ValueError as error:
        reading.wrong("scheduler", str(error))
        named = None
    if named and shape and named != shape:
        reading.wrong("scheduler", f"the end of {which}, {name!r}, names another one; leave one of the two out")
    if named or shape:
        reading.values["sigma_shape"] = named or shape
    noisy = is_stochastic(reading.values.get("sampler", "euler"))
    if body.eta not in (None, 1, *(() if noisy else (0,))):
        reading.wrong("eta", f"noise between steps is drawn in full, got {body.eta!r}; send 1, or leave it out")


def _texts(reading: Reading, body: A1111Request) -> None:
    prompt, loras = networks(reading, reading.values.get("prompt") or "")
    reading.values["prompt"] = prompt
    if loras and not body.disable_extra_networks:
        reading.values["loras"] = loras
    styles = [style for style in body.styles or () if style not in ("", "None")]
    if len(styles) > 1:
        reading.wrong("styles", f"one template may be named, got {len(styles)}; leave the others out")
    elif styles:
        reading.values["template"] = styles[0]


def networks(reading: Reading, prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Take what a prompt names in angle brackets out of it.

    Args:
        reading: Gets what is wrong.
        prompt: Such as "a star <lora:style:0.8>".

    Returns:
        The prompt without, and files of adapters with their scales.
    """
    found: list[tuple[str, float]] = []
    for kind, inside in _NETWORK.findall(prompt):
        name, *weights = inside.split(":")
        scales = {_scale(weight) for weight in weights} or {1.0}
        if kind.lower() != "lora":
            if kind.lower() in ("lyco", "hypernet"):
                reading.wrong("prompt", f"<{kind}:...> is not known here; <lora:NAME:WEIGHT> names an adapter")
            continue
        if len(scales) != 1 or None in scales or not name:
            reading.wrong("prompt", f"<lora:{inside[:60]}> must be <lora:NAME:WEIGHT> with one weight, a number")
            continue
        (scale,) = scales
        found.append((name if name.endswith(SUFFIX) else name + SUFFIX, float(scale or 0.0)))
    if not found:
        return prompt, []
    rest = _NETWORK.sub(lambda match: "" if match[1].lower() == "lora" else match[0], prompt)
    return _SPACES.sub(" ", rest).strip(), found


def _scale(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _passes(reading: Reading, body: Txt2ImgRequest, defaults: RequestDefaults) -> None:
    """The second pass in a larger size; strength says how far it goes, and means nothing without one."""
    values = reading.values
    strength = values.pop("strength", None)
    if not body.enable_hr:
        return
    upscaler = body.hr_upscaler or "Lanczos"
    if upscaler not in UPSCALERS:
        reading.wrong("hr_upscaler", f"must be one of {', '.join(UPSCALERS)}, got {upscaler[:40]!r}")
    values["upscale"] = UPSCALERS.get(upscaler)
    sides = (values.get("width", defaults.width), values.get("height", defaults.height))
    if not all(0 < side <= _LONGEST for side in sides):
        return  # which is said of the sides
    times = 2.0 if body.hr_scale is None else body.hr_scale
    grown = [side * times for side in sides]
    if not 1 < times <= 16 or any(side != int(side) for side in grown):
        reading.wrong(
            "hr_scale",
            f"must be above 1 and at most 16, and make whole pixels of {sides[0]}x{sides[1]}, got {times!r}",
        )
        return
    values["width"], values["height"] = (int(side) for side in grown)
    steps = values.pop("num_inference_steps", defaults.num_inference_steps)
    # Rounded up, for shares of a side are rounded down to what a token covers.
    first = {"scale": math.ceil(1e6 / times) / 1e6, "steps": steps}
    second = {
        "scale": 1.0,
        "steps": body.hr_second_pass_steps or steps,
        "strength": _STRENGTH if strength is None else strength,
    }
    values["passes"] = [first, second]


def _image_fields(reading: Reading, body: Img2ImgRequest) -> None:
    """What is said of the image and its mask, but for what is in them."""
    values = reading.values
    images: Sequence[str] = body.init_images or ()
    if len(images) != 1:
        reading.wrong("init_images", f"one image must be given, got {len(images)}")
    if body.resize_mode not in (None, 0):
        reading.wrong("resize_mode", f"an image is only resized here, got {body.resize_mode}; send 0")
    values.setdefault("strength", _STRENGTH)
    values["resize"] = True
    if body.mask is None:
        return
    if body.inpaint_full_res not in (None, 0, 1):
        reading.wrong("inpaint_full_res", f"must be true or false, got {body.inpaint_full_res}")
    if body.inpainting_fill not in (None, 0, 1):
        reading.wrong("inpainting_fill", f"0 and 1 are done here, got {body.inpainting_fill}; send one of them")
    if body.inpainting_mask_invert not in (None, 0, 1):
        reading.wrong("inpainting_mask_invert", f"must be 0 or 1, got {body.inpainting_mask_invert}")
