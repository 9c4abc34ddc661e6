"""ICC profiles for colours that a PNG describes by numbers: chromaticities with a gamma, or code points (cICP).

Reference: ICC.1:2022 sections 7 to 10; PNG specification, third edition, section 11.3.2; ITU-T H.273 for the code
points; libpng's png_gamma_significant for the gammas that count as sRGB's.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

Chromaticities = tuple[float, ...]  # x and y of white, red, green, blue

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65 = (0.3127, 0.3290)
_SRGB_PRIMARIES: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB_PRIMARIES,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
# An ICC parametric curve's type and numbers: 0 is x**g; 3 is (a·x + b)**g from d on, c·x below.
_Curve = tuple[int, tuple[float, ...]]
_SRGB_CURVE: _Curve = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
_BT709_CURVE: _Curve = (3, (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081))
_TRANSFERS: dict[int, _Curve] = {
    1: _BT709_CURVE,
    4: (0, (2.2,)),
    5: (0, (2.8,)),
    6: _BT709_CURVE,
    8: (0, (1.0,)),
    13: _SRGB_CURVE,
    14: _BT709_CURVE,
    15: _BT709_CURVE,
}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_GAMMA_TOLERANCE = 0.05


def profile_of_numbers(gamma: float | None, chromaticities: Chromaticities | None) -> bytes | None:
    """The profile that gAMA and cHRM chunks describe; sRGB stands for what is missing.

    Args:
        gamma: Exponent that the values were made with, 0.45455 for those of sRGB.
        chromaticities: x and y of white, red, green and blue.

    Returns:
        An ICC profile; None if it would be sRGB.

    Raises:
        ValueError: If no colours have such numbers.
    """
    if gamma is not None and not 0.01 <= gamma <= 100:
        raise ValueError(f"a gamma of {gamma:g}")
    curve = _SRGB_CURVE if gamma is None or abs(gamma * 2.2 - 1) <= _GAMMA_TOLERANCE else (0, (1 / gamma,))
    if curve == _SRGB_CURVE and chromaticities is None:
        return None
    return _profile(chromaticities or _SRGB_PRIMARIES, curve)


def profile_of_code_points(primaries: int, transfer: int) -> bytes | None:
    """The profile of H.273 code points; None if it would be sRGB.

    Raises:
        ValueError: If there is no such colour space here.
    """
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise ValueError(f"the colour primaries {primaries} with the transfer function {transfer}")
    if (primaries, transfer) == (1, 13):
        return None
    return _profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def _profile(chromaticities: Chromaticities, curve: _Curve) -> bytes:
    """An ICC profile of three primaries and one curve."""
    columns = _to_d50(chromaticities)
    kind, numbers = curve
    trc = struct.pack(">4s4xHxx", b"para", kind) + _fixed(*numbers)
    text = "colours of a PNG".encode("utf-16-be")
    described = struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {
        b"desc": described,
        b"cprt": described,
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50),
        b"rXYZ": b"XYZ \0\0\0\0" + _fixed(*columns[:, 0]),
        b"gXYZ": b"XYZ \0\0\0\0" + _fixed(*columns[:, 1]),
        b"bXYZ": b"XYZ \0\0\0\0" + _fixed(*columns[:, 2]),
        b"rTRC": trc,
        b"gTRC": trc,
        b"bTRC": trc,
    }
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x12s", place + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp", _fixed(*_D50)
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(*values: float) -> bytes:
    """Numbers as ICC's s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _to_d50(chromaticities: Chromaticities) -> npt.NDArray[np.float64]:
    """XYZ of red, green and blue as columns, adapted from the white to D50, float64 [3, 3]."""
    points = np.array(chromaticities, np.float64).reshape(4, 2)
    if (points[:, 1] <= 0).any():
        raise ValueError("chromaticities that are no colours")
    xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(1)) / points[:, 1]])
    white, primaries = xyz[:, 0], xyz[:, 1:]
    try:
        columns = primaries * np.linalg.solve(primaries, white)
    except np.linalg.LinAlgError as error:
        raise ValueError("chromaticities of no three colours") from error
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD @ columns
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 4:
        raise ValueError("chromaticities that are no colours")
    return np.asarray(adapted)
