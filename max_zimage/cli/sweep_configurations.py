"""The configurations of `max-zimage profile --sweep`, by name; apart from what runs them, which imports MAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BASELINE = "baseline"
_PLACES: Mapping[str, tuple[str, ...]] = {
    "resident": ("--placement", "resident"),
    "sequential": ("--placement", "sequential"),
    "streamed": ("--placement", "streamed"),
    "cpu_encoder": ("--encoder-device", "cpu"),
    "gpu_encoder": ("--encoder-device", "gpu"),
}
"""Those that say where components run, and which of them stay in memory."""
CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    BASELINE: (),
    "float32": ("--dtype", "float32"),
    "bfloat16": ("--dtype", "bfloat16"),
    "first_block": ("--step-cache", "first_block"),
    "taylorseer": ("--step-cache", "taylorseer"),
    "embedding_cache": ("--embedding-cache", str(2**28)),
    "int8": ("--quantize", "transformer=int8,text_encoder=int8"),
    "q4": ("--quantize", "transformer=q4,text_encoder=q4"),
    "attention_max": ("--attention-backend", "max"),
    "attention_plain": ("--attention-backend", "plain"),
    **_PLACES,
}
"""Configuration -> the flags of `profile --tests` that make it; what a device cannot do fails with its reason."""
ALL, DEVICES = "all", "devices"
"""Names of several: every one that differs from the others on the device, and of `_PLACES` those that do."""

_ALIASES = {"cuda_encoder": "gpu_encoder"}
"""llm-dit's names."""
_ENCODERS = ("cpu_encoder", "gpu_encoder")
_OF_ACCELERATORS = ("resident", "streamed", *_ENCODERS)
"""On a CPU alone the first is the baseline, the second spares nothing, and there is one place for a text encoder."""


def configurations_of(
    asked: Sequence[str], *, on_accelerator: bool, fixed: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Read lists of configurations; the baseline is always the first.

    Args:
        asked: Names with commas between them, several times.
        on_accelerator: Whether the transformer runs on one.
        fixed: Flag of a configuration -> the flag that says it of all of them.

    Raises:
        ValueError: With the names that are none, that mean nothing on a CPU alone, or whose flags are fixed.
    """
    names = [_ALIASES.get(name, name) for each in asked for name in map(str.strip, each.split(","))]
    if unknown := [name for name in names if name not in (ALL, DEVICES, *CONFIGURATIONS)]:
        known = ", ".join((ALL, DEVICES, *CONFIGURATIONS))
        raise ValueError(f"--sweep: {', '.join(map(repr, unknown))}: there are {known}")
    if not on_accelerator and (idle := [name for name in names if name in _ENCODERS]):
        raise ValueError(f"--sweep: {', '.join(idle)}: all components run on the CPU here; leave it out")
    here = [name for name in CONFIGURATIONS if on_accelerator or name not in _OF_ACCELERATORS]
    wanted = {*names, *((name for name in here if name in _PLACES) if DEVICES in names else ())}
    for name in (name for name in CONFIGURATIONS if name in wanted):
        for flag in (flag for flag in CONFIGURATIONS[name][::2] if flag in (fixed or {})):
            raise ValueError(f"{(fixed or {})[flag]}: a sweep sets it in {name}; leave one of them out")
    if ALL in names:
        wanted |= {name for name in here if not {*CONFIGURATIONS[name][::2]} & {*(fixed or {})}}
    return BASELINE, *(name for name in CONFIGURATIONS if name in wanted and name != BASELINE)
