"""The reader of pictures that judges the embedded model, on pictures whose content is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.references.scenes import COLORS, SHAPES, SIZES, recognize, render


# Every colour, shape and ground at the usual size; other sizes and picture formats for one colour and ground.
def test_every_combination_is_read_back() -> None:
    wrong = [
        (color, shape, ground)
        for color, shape, ground in product(COLORS, SHAPES, COLORS)
        if color != ground
        and recognize(render([(color, shape, (0.5, 0.5), SIZES[""])], ground)) != (color, shape, ground)
    ]
    assert wrong == []


@pytest.mark.parametrize("size", SIZES.values())
@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (80, 112)])
def test_other_sizes(size: float, height: int, width: int) -> None:
    for shape in SHAPES:
        picture = render([("red", shape, (0.5, 0.5), size)], "blue", height, width)
        assert recognize(picture) == ("red", shape, "blue")


def test_a_plain_ground_holds_nothing() -> None:
    assert recognize(render([], "pink")) == ("nothing", "nothing", "pink")
    assert recognize(np.full((64, 64, 3), 130, np.uint8)) == ("nothing", "nothing", "gray")
