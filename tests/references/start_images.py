"""What a start image's pixels should be, in numpy's double precision; profiles come from imagecodecs' LittleCMS."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import imagecodecs
import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

D65, D50 = (0.3127, 0.3290), (0.34567, 0.35850)
BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Space:
    """Colours of three primaries, or greys.

    Attributes:
        white: x and y of its white.
        primaries: x and y of red, green and blue; none for greys.
        gamma: Of its curve; None is sRGB's curve, 0 that of BT.709.
    """

    white: tuple[float, float] = D65
    primaries: tuple[float, ...] = BT709
    gamma: float | None = None

    @property
    def profile(self) -> bytes:
        """An ICC profile of these colours."""
        return _profile(self)

    def linear(self, values: Floats) -> Floats:
        """Light of values from 0 to 1."""
        if self.gamma is None:
            return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        if self.gamma == 0:
            return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))
        return np.asarray(values**self.gamma)

    @property
    def to_d50(self) -> Floats:
        """XYZ of red, green and blue as columns, adapted to D50 as ICC profiles are."""
        points = np.array(self.primaries).reshape(3, 2)
        columns = np.stack([points[:, 0], points[:, 1], 1 - points.sum(1)])
        white = np.array([self.white[0] / self.white[1], 1, (1 - sum(self.white)) / self.white[1]])
        columns = columns * np.linalg.solve(columns, white)
        scale = np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white))
        return np.asarray(np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ columns)


SRGB = Space()
ADOBE = Space(primaries=(0.64, 0.33, 0.21, 0.71, 0.15, 0.06), gamma=2.19921875)
P3 = Space(primaries=(0.68, 0.32, 0.265, 0.69, 0.15, 0.06))
PROPHOTO = Space(D50, (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8)
TURNED = Space(primaries=(0.30, 0.60, 0.15, 0.06, 0.64, 0.33), gamma=1.6)  # red is green: no mistake stays small
GREY_LINEAR, GREY_18 = Space(primaries=(), gamma=1.0), Space(primaries=(), gamma=1.8)
COLOURED = {"AdobeRGB": ADOBE, "P3": P3, "ProPhoto": PROPHOTO, "turned": TURNED, "sRGB": SRGB}
GREYS = {"linear grey": GREY_LINEAR, "grey 1.8": GREY_18}


@cache
def _profile(space: Space) -> bytes:
    curve = None if space.gamma else space.linear(np.linspace(0, 1, 4096)).astype(np.float32)
    white = (*space.white, 1.0)
    if not space.primaries:
        return imagecodecs.cms_profile("gray", whitepoint=(*D50, 1.0), gamma=space.gamma)
    points = [part for index in (0, 2, 4) for part in (*space.primaries[index : index + 2], 1.0)]
    return imagecodecs.cms_profile("rgb", whitepoint=white, primaries=points, gamma=space.gamma, transferfunction=curve)


def in_srgb(levels: Levels, space: Space) -> Levels:
    """Levels of a colour space as those of sRGB, uint8 [height, width, 3]; greys have one channel."""
    light = space.linear(levels.astype(np.float64) / 255)
    if levels.shape[2] == 1:
        light = np.repeat(light, 3, axis=2)
    if space.primaries:
        light = light @ (np.linalg.inv(SRGB.to_d50) @ space.to_d50).T
    return _encoded(light)


def _encoded(light: Floats) -> Levels:
    """Levels of sRGB of its light."""
    light = light.clip(0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(values * 255).astype(np.uint8)


def eight_bits(values: npt.NDArray[np.uint16]) -> Levels:
    """16 bits in 8, rounded to the nearest."""
    return np.floor(values.astype(np.float64) / 257 + 0.5).astype(np.uint8)


def upright(pixels: Levels, orientation: int) -> Levels:
    """Turn pixels as EXIF's orientation says: where the first row and column of the file are on the upright picture."""
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    return turned.get(orientation, pixels)


def naive_rgb(cmyk: npt.NDArray[np.uint8]) -> Floats:
    """Colours of inks without a profile, from 0 to 1."""
    inks = cmyk.astype(np.float64) / 255
    return np.asarray((1 - inks[..., :3]) * (1 - inks[..., 3:]))


@cache
def cmyk_profile(nodes: int = 6) -> bytes:
    """A profile of inks by a table: cyan prints as magenta does, so that no mistake stays small; exact at its nodes."""
    steps = np.arange(nodes) / (nodes - 1)
    inks = np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), -1)[..., [1, 0, 2, 3]]
    lab = lab_of_srgb((1 - inks[..., :3]) * (1 - inks[..., 3:]))
    table = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], -1)
    ramp = struct.pack(">2H", 0, 65535)
    identity = struct.pack(">9i", *(65536 * (index % 4 == 0) for index in range(9)))
    lut = b"mft2\0\0\0\0" + bytes([4, 3, nodes, 0]) + identity + struct.pack(">2H", 2, 2) + ramp * 4
    lut += np.round(table).clip(0, 65535).astype(">u2").tobytes() + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(part * 65536) for part in _D50_XYZ))
    tags = struct.pack(">I", 2) + struct.pack(">4sII4sII", b"wtpt", 156, 20, b"A2B0", 176, len(lut))
    size = 176 + len(lut)
    header = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp") + white[8:]
    return header.ljust(128, b"\0") + tags + white + lut


def lab_of_srgb(values: Floats) -> Floats:
    """CIE L*a*b* of D50 of sRGB's values from 0 to 1."""
    ratio = SRGB.linear(values) @ SRGB.to_d50.T / _D50_XYZ
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(  # L*, a*, b*
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], -1
    )


def srgb_of_lab(lab: Floats) -> Levels:
    """The way back."""
    middle = (lab[..., 0] + 16) / 116
    root = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], -1)
    ratio = np.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29))
    return _encoded(ratio * _D50_XYZ @ np.linalg.inv(SRGB.to_d50).T)
