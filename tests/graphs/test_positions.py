"""Rotary tables made on the device, beside numpy's."""

from __future__ import annotations

import numpy as np
from max.driver import CPU

from max_zimage.device.devices import download, upload
from max_zimage.pipeline.items import make_items
from max_zimage.sampling.positions import axis_table, sequence_ids
from max_zimage.sampling.positions.dype import Dype, axis_tables
from tests.references.diffusers_runs import Pair

ROWS, COLUMNS, LENGTHS = 5, 7, (40, 3, 33, 33)


def test_tables_of_plain_axes_are_those_of_the_host(embedded: Pair) -> None:
    """To the bit: they are looked up and nothing else."""
    transformer = embedded.ours.transformer
    items = make_items(transformer.rope_spec, ROWS, COLUMNS, LENGTHS, 2, CPU(), with_places=True)
    axes = [upload(axis_table(transformer.rope_spec, axis), CPU()) for axis in range(3)]
    assert items.places is not None
    image, whole = transformer.positions(*axes, *items.places)
    np.testing.assert_array_equal(download(image), download(items.image_rope))
    np.testing.assert_array_equal(download(whole), download(items.rope))


def test_tables_of_extrapolated_axes(embedded: Pair) -> None:
    spec = embedded.ours.transformer.rope_spec
    (rows,), (columns,) = axis_tables(
        spec, Dype(method="vision_yarn", base_resolution=64), ROWS, COLUMNS, np.full(1, 0.8, np.float32)
    )
    ids = sequence_ids(ROWS, COLUMNS, LENGTHS)
    axes = axis_table(spec, 0), rows, columns
    image, whole = embedded.ours.transformer.positions(
        *(upload(each, CPU()) for each in axes), upload(ids[:, :64], CPU()), upload(ids[:, 64:], CPU())
    )
    expected = np.concatenate([table[ids[..., axis]] for axis, table in enumerate(axes)], axis=-2)
    np.testing.assert_array_equal(download(whole), expected)
    np.testing.assert_array_equal(download(image), expected[:, :64])
