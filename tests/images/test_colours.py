"""Colours of start images: profiles, what PNG says by numbers, and everything at once against another decoder."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.images.read import decode_image, picture_pixels
from tests.fuzzers.image_cases import chunk
from tests.fuzzers.images import fuzz
from tests.images.test_read import PIXELS, file
from tests.references.start_images import COLOURED, GREYS, cmyk_profile, in_srgb


@pytest.mark.parametrize("name", ["AdobeRGB", "P3", "ProPhoto"])
def test_colour_profiles_are_applied(name: str) -> None:
    expected = in_srgb(PIXELS, COLOURED[name]).astype(int)
    assert np.abs(expected - PIXELS).max() > 50
    content = file(Image.fromarray(PIXELS), icc_profile=COLOURED[name].profile)
    for found in (decode_image("image", content), picture_pixels("image", Image.open(io.BytesIO(content)))):
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_profile_of_srgb_moves_nothing() -> None:
    content = file(Image.fromarray(PIXELS), icc_profile=COLOURED["sRGB"].profile)
    np.testing.assert_array_equal(decode_image("image", content), PIXELS)


@pytest.mark.parametrize(
    "profile", [b"nonsense", GREYS["grey 1.8"].profile, cmyk_profile()], ids=["no", "grey", "inks"]
)
def test_a_profile_that_does_not_fit_is_left_aside_with_a_warning(profile: bytes) -> None:
    content = file(Image.fromarray(PIXELS), icc_profile=profile)
    with pytest.warns(UserWarning, match="image: its colour profile .*; it is taken as if it had none"):
        np.testing.assert_array_equal(decode_image("image", content), PIXELS)


def test_hdr_is_refused() -> None:
    plain = file(Image.fromarray(PIXELS))
    content = plain[:33] + chunk(b"cICP", bytes([9, 16, 0, 1])) + plain[33:]
    with pytest.raises(RequestError, match=r"image has the colours of high dynamic range \(PQ\); save it in sRGB"):
        decode_image("image", content)


def test_a_profile_that_unpacks_to_too_much_is_left_aside() -> None:
    plain = file(Image.fromarray(PIXELS))
    content = plain[:33] + chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(2**26))) + plain[33:]
    with pytest.warns(UserWarning, match="its colour profile cannot be used"):
        np.testing.assert_array_equal(decode_image("image", content), PIXELS)


def test_any_mode_any_chunk_and_damage_against_another_decoder(capfd: pytest.CaptureFixture[str]) -> None:
    tally = fuzz(120, seed=7)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.right > 120
    assert tally.refused > 40
    assert capfd.readouterr().err == ""
