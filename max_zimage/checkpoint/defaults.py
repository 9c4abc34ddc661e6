"""What a checkpoint draws where a request says nothing: found in its files and held to the rules of a request."""

from __future__ import annotations

from collections.abc import Mapping

from max_zimage.checkpoint.config_reader import ConfigError
from max_zimage.checkpoint.model_index import GENERATION_DEFAULTS, INDEX
from max_zimage.errors import RequestError
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.sampling.step_cache import StepCache
from max_zimage.strict_json import plain, shown

_DISTILLED_SHIFT = 3.0
_GUIDANCE = 5.0
_SIZE = "vae/config.json: sample_size (1024 where none is given) cannot be drawn:"


def request_defaults(
    *,
    limits: Limits,
    schedule: ScheduleSpec,
    sample_size: tuple[int, int],
    steps: int,
    named: object = None,
    step_cache: StepCache | None = None,
) -> RequestDefaults:
    """Find the defaults of a checkpoint.

    Args:
        limits: What it can do at most.
        schedule: The scheduler's configuration. The distilled checkpoints have shift 3: 8 steps without guidance, as
            their card says. Others get `steps` and the reference's guidance 5.
        sample_size: The height and width the autoencoder was made for, in pixels.
        steps: Denoising steps of a checkpoint that is not distilled.
        named: What `model_index.json` holds under `_generation_defaults`, an object or None; it comes first.
        step_cache: What the pipeline is configured with; no checkpoint names one.

    Returns:
        The defaults.

    Raises:
        ConfigError: If a default is unknown, or none that a request could ask for.
    """
    rules = {name: ROWS[name].kind for name in ("height", "width", "num_inference_steps", "guidance_scale")}
    steps = 8 if schedule.shift == _DISTILLED_SHIFT else steps
    values: dict[str, int | float] = {"num_inference_steps": steps, "guidance_scale": usual_guidance(schedule)}
    problems, given = [], _named(named)
    if unknown := [f"{plain(name)} = {shown(value)}" for name, value in given.items() if name not in rules]:
        problems.append(_blamed(f"may hold {', '.join(rules)}, got {', '.join(unknown)}; take it out"))
    for name, value in given.items():
        if name in rules:
            try:
                found = rules[name].check(name, value, limits)
                if isinstance(found, tuple):
                    problems.append(_blamed(f"{name} must be one number, got {shown(value)}"))
                else:
                    values[name] = found
            except RequestError as error:
                problems.append(_blamed(str(error).removesuffix(f" ({type(value).__name__})")))
    try:
        for name, side in zip(("height", "width"), sample_size, strict=True):
            if name not in given:
                values[name] = rules[name].check(name, side, limits)
    except RequestError as error:
        problems.append(f"{_SIZE} {error}")
    if problems:
        raise ConfigError(problems)
    return RequestDefaults(
        height=int(values["height"]),
        width=int(values["width"]),
        num_inference_steps=int(values["num_inference_steps"]),
        guidance_scale=float(values["guidance_scale"]),
        step_cache=step_cache,
        sampler=schedule.sampler,
        sigma_shape=schedule.shape,
    )


def usual_guidance(schedule: ScheduleSpec, named: object = None) -> float:
    """The guidance scale of `request_defaults`, where nothing else of a checkpoint is known; arguments are the same."""
    usual = 0.0 if schedule.shift == _DISTILLED_SHIFT else _GUIDANCE
    given = _named(named).get("guidance_scale", usual)
    return float(given) if isinstance(given, (int, float)) else usual


def _named(named: object) -> Mapping[str, object]:
    if named is None:
        return {}
    if not isinstance(named, Mapping):
        raise ConfigError([_blamed(f"must be an object with names and numbers, got {shown(named)}; take it out")])
    return named


def _blamed(problem: str) -> str:
    return f"{INDEX}: {GENERATION_DEFAULTS}: {problem}"
