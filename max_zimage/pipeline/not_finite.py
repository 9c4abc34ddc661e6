"""Pictures that came out as NaN or infinity: told from the others, and explained to whoever asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]

CODE = "not_finite"
"""What an answer over HTTP calls it."""

GIVEN_LATENTS = "the latents that were given"
CHECKPOINT = "a weight of the checkpoint (`max-zimage info --check-weights` names it)"


class NotFiniteError(RuntimeError):
    """NaN or infinity arose on the way to a picture, or a number so large that its square is infinite.

    Attributes:
        what: What is not finite, in words.
        images: One entry a picture of the call, as `output_type` asked for it; None for each that is not finite. Those
            that shared a batch with it are finished.
        suspects: What may have caused it, the likeliest first.
    """

    def __init__(self, what: str, images: Sequence[Any], suspects: Sequence[str]) -> None:
        super().__init__(what, images, suspects)
        self.what, self.images, self.suspects = what, list(images), tuple(suspects)

    def __str__(self) -> str:
        """What it is, and what may have caused it."""
        return explained(self.what, self.suspects)

    def blaming(self, *suspects: str) -> NotFiniteError:
        """The same with more suspects, before the others."""
        return NotFiniteError(self.what, self.images, (*suspects, *self.suspects))


def explained(what: str, suspects: Sequence[str]) -> str:
    """One sentence."""
    return f"{what}; what may have caused it: {', or '.join(suspects)}"


def usual_suspects(dtype: str, step_cache: object = None, adapters: Sequence[str] = ()) -> tuple[str, ...]:
    """What may be the cause of any picture that is not finite.

    Args:
        dtype: That the model runs in.
        step_cache: The request's, or None.
        adapters: Names of the request's.
    """
    cache = () if step_cache is None else (f"the step cache {step_cache} (try without it)",)
    loras = (f"{'the adapter' if len(adapters) == 1 else 'adapters'} {', '.join(adapters)} (try a scale nearer to 0)",)
    return (
        *(loras if adapters else ()),
        *cache,
        *(("the dtype bfloat16 (try float32)",) if dtype == "bfloat16" else ()),
        CHECKPOINT,
    )


def require_finite(images: Sequence[Any] | npt.NDArray[Any], finite: Flags, suspects: Sequence[str]) -> None:
    """Refuse to hand out pictures of which some are not finite.

    Args:
        images: The pictures, in whatever form.
        finite: bool [pictures].
        suspects: For the message.

    Raises:
        NotFiniteError: With those that are.
    """
    if finite.all():
        return
    kept = [image if good else None for image, good in zip(images, finite, strict=True)]
    bad = np.flatnonzero(~finite)
    if len(kept) == 1:
        which = "the picture"
    elif len(bad) == len(kept):
        which = f"all {len(kept)} pictures"
    else:
        numbers = ", ".join(map(str, bad))
        which = f"{'picture' if len(bad) == 1 else 'pictures'} {numbers} of {len(kept)}, counted from 0,"
    raise NotFiniteError(f"{which} came out as NaN or infinity instead of colours", kept, suspects)


def are_finite(values: npt.NDArray[np.float32]) -> Flags:
    """Which pictures' latents are finite, squares included: bool [pictures], of float32 [pictures, ...].

    The same rule as `graphs.model.vae.DecodeLatents` has for what it decodes.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        energy = np.square(values).reshape(len(values), -1).sum(axis=1, dtype=np.float32)
    return np.isfinite(energy)
