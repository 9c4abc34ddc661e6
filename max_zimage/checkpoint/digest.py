"""By which weights are known again: a digest of samples of what is loaded, in whatever files and dtype it is kept."""

from __future__ import annotations

import hashlib

from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.checkpoint.tensors import Files


def digest_of_weights(checked: LoadPlan) -> str:
    """Digest of the first and the last row of every tensor that a component loads, behind all transforms.

    How its matrices are kept in memory is part of it.

    Reading all of a text encoder takes as long as loading it. Training and low-rank changes leave no row as it was.

    Args:
        checked: The component's plan.

    Returns:
        "sha256:" and hexadecimal digits.
    """
    files, found = Files(), hashlib.sha256((checked.kept_as or "").encode())
    for recipe in sorted(checked.recipes, key=lambda each: each.engine):
        for part in recipe.parts:
            found.update(f"{recipe.engine} {list(part.shape)}".encode())
            last = (part.shape[0] if part.shape else 1) - 1
            for row in (0, last):
                found.update(part.rows(row, row + 1, files).astype("<f4").tobytes())
    return f"sha256:{found.hexdigest()}"
