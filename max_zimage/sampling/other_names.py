"""Names that other programs have for samplers and sigma shapes, both ways. Imports no numpy.

Reference: `reference/scale-and-ux.md` section 9; stable-diffusion-webui modules/sd_samplers_kdiffusion.py and
sd_schedulers.py; stable-diffusion.cpp examples/server/api.md; ComfyUI comfy/samplers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

SAMPLER_LABELS: Mapping[str, str] = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "euler_stochastic": "Euler Stochastic",
    "heun": "Heun",
    "lcm": "LCM",
    "unipc": "UniPC",
    "dpmpp_2m": "DPM++ 2M",
    "comfy_dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "er_sde": "ER SDE",
    "res_multistep": "Res Multistep",
}
"""Sampler -> what stable-diffusion-webui and those who read its text call it, or the nearest that they have."""

SHAPE_LABELS: Mapping[str, str] = {
    "linear": "Simple",
    "simple": "Simple",
    "normal": "Normal",
    "karras": "Karras",
    "comfy_karras": "Karras",
    "exponential": "Exponential",
    "comfy_exponential": "Exponential",
    "beta": "Beta",
    "comfy_beta": "Beta",
    "beta57": "Beta57",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
    "kl_optimal": "KL Optimal",
    "linear_quadratic": "Linear Quadratic",
    "bong_tangent": "Bong Tangent",
}
"""Sigma shape -> the same."""

UPSCALER_LABELS: Mapping[str, str] = {"lanczos": "Lanczos", "bicubic": "Latent (bicubic)"}
"""What enlarges a picture between two passes -> the same."""

AUTOMATIC = "automatic"
"""Other programs' word for the sigma shape that they choose themselves."""

# By what is left of a name without spaces, underscores and capitals. Where a label stands for two of ours, it is the
# one that computes as the other program does.
_SAMPLERS = {
    "euler": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "eulerstochastic": "euler_stochastic",
    "heun": "heun",
    "lcm": "lcm",
    "unipc": "unipc",
    "dpmpp2m": "comfy_dpmpp_2m",
    "comfydpmpp2m": "comfy_dpmpp_2m",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmpp2msdegpu": "dpmpp_2m_sde",
    "dpmppsde": "dpmpp_sde",
    "dpmppsdegpu": "dpmpp_sde",
    "ersde": "er_sde",
    "resmultistep": "res_multistep",
}
_SHAPES = {
    "linear": "linear",
    "simple": "simple",
    "normal": "normal",
    "uniform": "normal",
    "discrete": "normal",
    "karras": "comfy_karras",
    "exponential": "comfy_exponential",
    "beta": "comfy_beta",
    "beta57": "beta57",
    "sgmuniform": "sgm_uniform",
    "ddim": "ddim_uniform",
    "ddimuniform": "ddim_uniform",
    "kloptimal": "kl_optimal",
    "linearquadratic": "linear_quadratic",
    "bongtangent": "bong_tangent",
}


def sampler_of(label: str) -> tuple[str | None, str | None]:
    """The sampler that another program's name stands for, and the sigma shape where the name ends in one.

    Returns:
        One of `max_zimage.sampling.names.SAMPLERS`, or None for one without a counterpart; the word behind the
        sampler's name, for `shape_of`, or None.

    >>> sampler_of("DPM++ 2M Karras")
    ('comfy_dpmpp_2m', 'Karras')
    """
    whole = _SAMPLERS.get(_bare(label))
    if whole is not None:
        return whole, None
    first, _, last = label.strip().rpartition(" ")
    return (_SAMPLERS.get(_bare(first)), last) if first and is_shape(last) else (None, None)


def shape_of(label: str) -> str | None:
    """The sigma shape that another program's name stands for, or None for one without a counterpart."""
    return _SHAPES.get(_bare(label))


def is_shape(label: str) -> bool:
    """Whether a name is that of a sigma shape, or of the choice among them."""
    return _bare(label) == AUTOMATIC or shape_of(label) is not None


def guidance_of(cfg_scale: float) -> float:
    """The guidance scale of another program's CFG scale, of which 1 is no guidance.

    The scale is taken as the decimal number that it is written as.

    >>> guidance_of(2.3)
    1.3
    """
    return float(Decimal(repr(float(cfg_scale))) - 1)


def cfg_scale_of(guidance: float | Sequence[float]) -> float:
    """The other way; the largest of several.

    >>> cfg_scale_of([0.0, 1.3])
    2.3
    """
    largest = max(guidance) if isinstance(guidance, Sequence) else guidance
    return float(Decimal(repr(float(largest))) + 1)


def _bare(label: str) -> str:
    return label.strip().lower().replace("++", "pp").replace(" ", "").replace("_", "").replace("-", "")
