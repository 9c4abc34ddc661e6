"""Tensors of torch where a request takes arrays, as code for diffusers gives them.

Torch is not imported: what it made is known by its module. Numbers stay what they are: bfloat16 and float16, which fit
into float32, become that; float64 stays, and is refused as an array of it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = ("sigmas", "latents", "prompt_embeds", "negative_prompt_embeds")
"""That arrays are given as, or lists of them."""
_SHORT = ("torch.bfloat16", "torch.float16")


def with_arrays(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request, with arrays in the place of tensors.

    Args:
        given: What was asked for, by argument.
    """
    return {name: _array(value) if name in FIELDS else value for name, value in given.items()}


def _array(value: Any) -> Any:
    """The numbers of a tensor, or of each tensor of a list; another value as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_array, value))
    if type(value).__module__.partition(".")[0] != "torch" or str(value.layout) != "torch.strided":
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if str(tensor.dtype) in _SHORT else tensor).numpy()
