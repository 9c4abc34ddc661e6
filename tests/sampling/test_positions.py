"""Positions and rotary tables against diffusers' own transformer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import RopeEmbedder
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from max_zimage.sampling.positions import (
    RopeSpec,
    caption_ids,
    caption_rope,
    image_ids,
    max_caption_tokens,
    max_image_side,
    padded,
    rope_table,
    sequence_lengths,
    sequence_rope,
    text_rope,
)

SPEC = RopeSpec(axes_dims=(32, 48, 48), axes_lens=(1536, 512, 512), theta=256.0)
CAPTIONS = [1, 31, 32, 33, 64]
IMAGES = [(8, 8), (5, 7)]  # without and with image padding


@cache
def reference_model() -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=128,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=1,
        n_kv_heads=1,
        cap_feat_dim=8,
        axes_lens=[9, 9, 9],
    )


@cache
def reference_rope() -> RopeEmbedder:
    return RopeEmbedder(theta=SPEC.theta, axes_dims=SPEC.axes_dims, axes_lens=SPEC.axes_lens)


def reference_ids(rows: int, columns: int, caption: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(image ids, caption ids) of one item; the reference makes more caption ids than it keeps rows."""
    result = reference_model().patchify_and_embed(
        [torch.zeros(4, 1, rows * 2, columns * 2)], [torch.zeros(caption, 8)], 2, 1
    )
    return result[3][0], result[4][0][: padded(caption)]


def as_pairs(table: torch.Tensor) -> np.ndarray:
    return torch.view_as_real(table).numpy()


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize(("rows", "columns"), IMAGES)
def test_ids_equal_diffusers(rows: int, columns: int, caption: int) -> None:
    image, text = reference_ids(rows, columns, caption)
    np.testing.assert_array_equal(image_ids(rows, columns, caption), image.numpy())
    np.testing.assert_array_equal(caption_ids(caption), text.numpy())


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize(("rows", "columns"), IMAGES)
def test_tables_equal_diffusers_to_one_ulp(rows: int, columns: int, caption: int) -> None:
    image, text = reference_ids(rows, columns, caption)
    expected = as_pairs(torch.cat([reference_rope()(image), reference_rope()(text)]))
    actual = sequence_rope(SPEC, rows, columns, (caption,))[0]
    assert actual.dtype == np.float32
    np.testing.assert_array_max_ulp(actual, expected, maxulp=1)
    np.testing.assert_array_max_ulp(caption_rope(SPEC, (caption,))[0], as_pairs(reference_rope()(text)), maxulp=1)


def test_every_position_of_the_real_checkpoint_equals_diffusers_to_one_ulp() -> None:
    ids = np.zeros((1536, 3), np.int32)
    ids[:, 0] = np.arange(1536)
    ids[:, 1] = np.arange(1536) % 512
    ids[:, 2] = (np.arange(1536) * 7) % 512
    expected = as_pairs(reference_rope()(torch.from_numpy(ids)))
    np.testing.assert_array_max_ulp(rope_table(SPEC, ids), expected, maxulp=1)


def test_a_batch_holds_each_item_at_its_own_caption_length() -> None:
    lengths = (33, 7, 64)
    table = sequence_rope(SPEC, 5, 7, lengths)
    image_rows = padded(35)
    for item, length in zip(table, lengths, strict=True):
        alone = sequence_rope(SPEC, 5, 7, (length,))[0]
        np.testing.assert_array_equal(item[: len(alone)], alone)
        identity = item[image_rows + padded(length) :]
        np.testing.assert_array_equal(identity, np.broadcast_to(np.array([1, 0], np.float32), identity.shape))
    np.testing.assert_array_equal(sequence_lengths(5, 7, lengths), [64 + 64, 64 + 32, 64 + 64])
    assert not np.array_equal(table[0, :35], table[1, :35])  # the image's frame follows the padded caption


def test_captions_in_one_bucket_share_the_image_table() -> None:
    np.testing.assert_array_equal(sequence_rope(SPEC, 8, 8, (1,)), sequence_rope(SPEC, 8, 8, (32,)))


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 32), (31, 32), (32, 32), (33, 64), (512, 512)])
def test_padding_goes_to_the_next_multiple_of_32(length: int, expected: int) -> None:
    assert padded(length) == expected


def test_limits_follow_the_axes() -> None:
    assert max_caption_tokens(SPEC.axes_lens) == 1504
    assert max_image_side(SPEC.axes_lens) == (8192, 8192)
    assert caption_rope(SPEC, (1504,)).shape == (1, 1504, 64, 2)
    sequence_rope(SPEC, 1, 512, (1504,))


@pytest.mark.parametrize(
    ("rows", "columns", "captions", "message"),
    [
        (8, 8, (1505,), "caption 0 must have 1 to 1504 tokens .* got 1505"),
        (8, 8, (5, 0), "caption 1 must have 1 to 1504 tokens .* got 0"),
        (8, 8, (), "at least one caption"),
        (513, 8, (5,), r"1 to 512 token rows \(up to 8192 pixels\), got 513"),
        (8, 0, (5,), "token columns .* got 0"),
    ],
)
def test_what_the_table_cannot_hold_is_refused(
    rows: int, columns: int, captions: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_rope(SPEC, rows, columns, captions)


def test_positions_outside_an_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="axis 1 must lie in 0 to 511"):
        rope_table(SPEC, np.asarray([[0, 512, 0]], np.int32))


def test_odd_axis_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="axes_dims must be even"):
        RopeSpec(axes_dims=(32, 47, 49), axes_lens=(1536, 512, 512), theta=256.0)
    with pytest.raises(ValueError, match="axes_lens must hold"):
        RopeSpec(axes_dims=(32, 48, 48), axes_lens=(32, 512, 512), theta=256.0)


def test_cached_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        caption_rope(SPEC, (5,))[0, 0, 0] = 0


@pytest.mark.parametrize(("head_dim", "theta"), [(128, 1e6), (64, 1e6), (64, 1e4)])
def test_the_text_encoders_table_equals_transformers(head_dim: int, theta: float) -> None:
    config = Qwen3Config(head_dim=head_dim, rope_parameters={"rope_theta": theta, "rope_type": "default"})
    cosine, sine = Qwen3RotaryEmbedding(config)(torch.zeros(1, 1, 1), torch.arange(1536)[None])
    expected = torch.stack([cosine, sine], dim=-1)[0, :, : head_dim // 2].numpy()
    actual = text_rope(head_dim, theta, 1536)
    assert actual.dtype == np.float32
    # One unit in the last place of a value near 1; torch's float32 power may miss a frequency by its last bit too.
    np.testing.assert_allclose(actual, expected, atol=1.2e-7, rtol=0)
