"""Pictures that came out as NaN or infinity: told from the others, and explained to whoever asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage.errors import NotFiniteError as NotFiniteError
from max_zimage.errors import explained as explained

Flags = npt.NDArray[np.bool_]

CODE = "not_finite"
"""What an answer over HTTP calls it."""

GIVEN_LATENTS = "the latents that were given"
CHECKPOINT = "a weight of the checkpoint (`max-zimage info --check-weights` names it)"


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
