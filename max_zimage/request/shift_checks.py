"""Whether what a request says of the shift goes together, and with the shape of its noise levels."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.sampling.names import STRETCHED, UNSHIFTED


def check_shift(asked: RequestFacts) -> None:
    """Refuse what contradicts itself or would do nothing."""
    if asked.dynamic_shift and asked.shift is not None:
        message = (
            "{field} grows with the picture, and {name[shift]} {shift:g} is one shift for all sizes; leave one out"
        )
        raise RequestError.of("dynamic_shift", message, shift=asked.shift)
    if asked.dynamic_shift and asked.sigma_shape in UNSHIFTED:
        message = "{field} would do nothing: {name[sigma_shape]} {shape} is not shifted; take another, or leave it out"
        raise RequestError.of("dynamic_shift", message, shape=asked.sigma_shape)
    if asked.shift_terminal is not None and asked.sigma_shape not in STRETCHED:
        message = (
            "{field} would do nothing: {name[sigma_shape]} {shape} has a last level of its own; take one of {known}"
        )
        values = {"shape": asked.sigma_shape, "known": ", ".join(STRETCHED)}
        raise RequestError.of("shift_terminal", message + ", or leave it out", **values)
