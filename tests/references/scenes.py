"""The pictures that the embedded model was trained on, and how to tell whether a picture shows what was asked.

A scene is one or two shaded, coloured shapes with a soft shadow on a coloured ground, 128x128 by default. `render`
paints one, `recognize` reads colours and shape back from any picture of one object, `recognize_all` of any number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from skimage.measure import label

Array = npt.NDArray[np.generic]
SceneObject = tuple[str, str, tuple[float, float], float]
"""Colour, shape, centre as shares of the sides, radius as a share of the shorter side."""

COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 75),
    "cyan": (60, 200, 215),
    "blue": (45, 90, 215),
    "purple": (135, 60, 185),
    "pink": (245, 130, 180),
    "brown": (125, 80, 45),
    "white": (245, 245, 245),
    "gray": (130, 130, 130),
    "black": (25, 25, 28),
}
SIZES = {"small": 0.19, "": 0.26, "large": 0.36}
"""Radius, as a share of the shorter side, by the word for it."""
_FEWEST_PIXELS = 30
"""Of an object; less than these are nothing."""
_SPECK = 0.003
"""Share of the picture: less than this is none of several objects."""
_THIN = 0.06
"""Of the shorter side: less high or wide than this is no object."""
_BLUR_PIXELS = 0.7
"""Of the finished picture. An edge without it is mostly what no autoencoder of eight pixels a latent can hold."""


class SeenObject(NamedTuple):
    """An object that was found in a picture.

    Attributes:
        color: Name of the nearest colour.
        shape: Name of the shape that covers it best.
        place: Centre of its box, across and down, as shares of the sides.
        area: Share of the picture that it takes up, with what its shadow adds.
    """

    color: str
    shape: str
    place: tuple[float, float]
    area: float


class _Pen:
    """Draws around one centre."""

    def __init__(self, image: Image.Image, cx: float, cy: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._cx, self._cy = cx, cy

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        cx, cy = self._cx, self._cy
        self._draw.rectangle([cx + left, cy + top, cx + right, cy + bottom], fill=255)

    def disc(self, radius: float, dx: float = 0.0, dy: float = 0.0, fill: int = 255) -> None:
        cx, cy = self._cx + dx, self._cy + dy
        self._draw.ellipse([cx - radius, cy - radius, cx + radius, cy + radius], fill=fill)

    def polygon(self, points: Array) -> None:
        self._draw.polygon([(self._cx + x, self._cy + y) for x, y in points], fill=255)


def _corners(count: int, radius: float, inner: float = 1.0) -> npt.NDArray[np.float64]:
    """Points on a circle from the top on; every other one at `inner` times the radius where that is not 1."""
    count *= 1 if inner == 1.0 else 2
    index = np.arange(count)
    angles = -np.pi / 2 + 2 * np.pi * index / count
    radii = np.where(index % 2 == 1, radius * inner, radius)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _circle(pen: _Pen, r: float) -> None:
    pen.disc(r)


def _square(pen: _Pen, r: float) -> None:
    pen.polygon(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * r * 0.86)


def _triangle(pen: _Pen, r: float) -> None:
    pen.polygon(_corners(3, r * 1.12) + np.array([0, r * 0.15]))


def _star(pen: _Pen, r: float) -> None:
    pen.polygon(_corners(5, r * 1.12, inner=0.42))


def _ring(pen: _Pen, r: float) -> None:
    pen.disc(r)
    pen.disc(r * 0.56, fill=0)


def _cross(pen: _Pen, r: float) -> None:
    pen.box(-r * 0.34, -r, r * 0.34, r)
    pen.box(-r, -r * 0.34, r, r * 0.34)


def _heart(pen: _Pen, r: float) -> None:
    t = np.linspace(0, 2 * np.pi, 120)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    pen.polygon(np.stack([16 * np.sin(t) ** 3, y], 1) * r / 16.5)


def _diamond(pen: _Pen, r: float) -> None:
    pen.polygon(np.array([(0, -1.15), (0.78, 0), (0, 1.15), (-0.78, 0)]) * r)


def _crescent(pen: _Pen, r: float) -> None:
    pen.disc(r)
    pen.disc(r * 0.86, dx=r * 0.5, dy=-r * 0.08, fill=0)


def _hexagon(pen: _Pen, r: float) -> None:
    pen.polygon(_corners(6, r * 1.03))


SHAPES: dict[str, Callable[[_Pen, float], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
    "crescent": _crescent,
    "hexagon": _hexagon,
}


def shape_mask(shape: str, cx: float, cy: float, radius: float, side: int) -> Image.Image:
    """The shape as a white region on black, `side` x `side` pixels, centred at (cx, cy)."""
    image = Image.new("L", (side, side), 0)
    SHAPES[shape](_Pen(image, cx, cy), radius)
    return image


def _share(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image, np.float32)[..., None] / np.float32(255)


def render(objects: list[SceneObject], background: str, height: int = 128, width: int = 128) -> npt.NDArray[np.uint8]:
    """Paint a scene; uint8 [height, width, 3]. Drawn at twice the size, averaged down and as soft as through a lens."""
    h, w = height * 2, width * 2
    side, short = max(h, w), min(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32)
    picture = np.ones((side, side, 3), np.float32) * np.array(COLORS[background], np.float32)
    picture *= (1.06 - 0.16 * np.clip((yy - top) / h, 0, 1))[..., None]
    for color, shape, (x, y), radius in objects:
        cx, cy, r = left + x * w, top + y * h, radius * short
        shadow = shape_mask(shape, cx + short * 0.018, cy + short * 0.022, r, side)
        picture *= 1 - 0.35 * _share(shadow.filter(ImageFilter.GaussianBlur(short * 0.012)))
        inside = _share(shape_mask(shape, cx, cy, r, side))
        distance = np.hypot(xx - (cx - r * 0.4), yy - (cy - r * 0.45)) / (2.2 * r)
        light = (1.10 - 0.42 * np.clip(distance, 0, 1))[..., None]
        picture = picture * (1 - inside) + np.array(COLORS[color], np.float32) * light * inside
    cut = np.clip(picture, 0, 255).astype(np.uint8)[top : top + h, left : left + w]
    sharp = Image.fromarray(cut).resize((width, height), Image.Resampling.BOX)
    return np.asarray(sharp.filter(ImageFilter.GaussianBlur(_BLUR_PIXELS)))


def _named(rgb: Array) -> str:
    return min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) - rgb).sum()))


def _cropped(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    ys, xs = np.where(region)
    if len(ys) < _FEWEST_PIXELS:
        return None
    box = region[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return np.asarray(Image.fromarray((box * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)) > 127


@lru_cache(maxsize=len(SHAPES))
def _template(shape: str) -> npt.NDArray[np.bool_]:
    template = _cropped(np.asarray(shape_mask(shape, 100, 100, 60, 200)) > 127)
    assert template is not None
    return template


def recognize(picture: npt.NDArray[np.uint8]) -> tuple[str, str, str]:
    """(color, shape, background) of the one object in a picture, uint8 [height, width, 3]; 'nothing' if there is none.

    The ground is the median of the border; the object is what differs from it; the shape is the template with the
    largest overlap after cropping both to their boxes.
    """
    background, region = _ground(picture)
    color, shape = _look(picture, region)
    return color, shape, background


def recognize_all(picture: npt.NDArray[np.uint8]) -> tuple[list[SeenObject], str]:
    """Every object in a picture, uint8 [height, width, 3], the largest first, and the ground.

    Objects are connected regions that differ from the ground. Specks and thin strips are none: they are left of a
    shadow below an object whose edge is like the ground.
    """
    background, region = _ground(picture)
    labels = label(region)
    areas = np.bincount(labels.ravel())[1:]
    found = []
    for index in np.argsort(-areas, kind="stable"):
        part = labels == index + 1
        ys, xs = np.where(part)
        height, width = part.shape
        if areas[index] < _SPECK * region.size or min(np.ptp(ys), np.ptp(xs)) + 1 < _THIN * min(height, width):
            continue
        place = (float(xs.min() + xs.max() + 1) / 2 / width, float(ys.min() + ys.max() + 1) / 2 / height)
        found.append(SeenObject(*_look(picture, part), place, float(part.mean())))
    return found, background


def _ground(picture: npt.NDArray[np.uint8]) -> tuple[str, npt.NDArray[np.bool_]]:
    """Colour of the ground, and where the picture differs from it."""
    edges = [picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]]
    background = _named(np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0))
    # The ground is shaded from top to bottom: where it is bright, that alone differs by as much as an object may.
    behind = np.median(np.concatenate([picture[:, :4], picture[:, -4:]], axis=1), axis=1, keepdims=True)
    region = np.abs(picture - behind).sum(-1) > 75
    region[:3] = region[-3:] = False
    region[:, :3] = region[:, -3:] = False
    return background, region


def _look(picture: npt.NDArray[np.uint8], region: npt.NDArray[np.bool_]) -> tuple[str, str]:
    """Colour and shape of what a region shows."""
    found = _cropped(region)
    if found is None:
        return "nothing", "nothing"

    def overlap(shape: str) -> float:
        template = _template(shape)
        return float((found & template).sum() / max(1, (found | template).sum()))

    return _named(np.median(picture[region], axis=0)), max(SHAPES, key=overlap)
