"""The decoder in tiles that make what the whole decoder makes: which tile runs when, and what is kept in between.

    middle -> map -> unit -> map -> unit -> ... -> map -> pixels

Maps are between the layers, of the whole picture, in host memory; the device holds the activations of a tile. A unit
goes over all tiles twice, and three times behind an enlargement: first for the statistics that its norms need, at last
for its result, which takes the place of what it came from.

Statistics of tiles are joined in float64.

Reference: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.device.devices import download, upload
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.graphs.model.vae_blocks import NORM_EPS
from max_zimage.graphs.model.vae_units import Unit, enlarged_units, units_of
from max_zimage.images.tiles import Floats, Tiling

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

MARGIN = 2
"""Pixels of neighbours that a tile needs around it: two convolutions of three; half of an enlargement's three."""


class ExactGraphs(NamedTuple):
    """The decoder's parts as graphs, `graphs.model.vae_exact`; `upsample` has those units that begin with it."""

    middle: CompiledGraph
    upsample: dict[int, CompiledGraph]
    first: list[CompiledGraph]
    second: list[CompiledGraph]
    pixels: CompiledGraph

    @classmethod
    def make(cls, spec: VaeSpec, graph: Callable[[str], CompiledGraph]) -> ExactGraphs:
        """Define them.

        Args:
            spec: The autoencoder's.
            graph: Defines one by its name, which a number follows where there is one a unit.
        """
        numbers = range(len(units_of(spec)))
        return cls(
            graph("exact_middle"),
            {number: graph(f"exact_upsample_{number}") for number in enlarged_units(spec)},
            [graph(f"exact_first_{number}") for number in numbers],
            [graph(f"exact_second_{number}") for number in numbers],
            graph("exact_pixels"),
        )

    @property
    def every(self) -> list[CompiledGraph]:
        """All of them."""
        return [self.middle, *self.upsample.values(), *self.first, *self.second, self.pixels]


class Tile(NamedTuple):
    """A part of a map: its own rows and columns, and how far its margins reach above and left, below and right."""

    rows: slice
    columns: slice
    around: tuple[int, int, int, int]


def tiles_of(height: int, width: int, side: int, margin: int = MARGIN) -> Iterator[list[Tile]]:
    """Rows of tiles, which do not overlap; margins end at the picture's border."""
    for top in range(0, height, side):
        rows = slice(top, min(top + side, height))
        row = []
        for left in range(0, width, side):
            columns = slice(left, min(left + side, width))
            row.append(
                Tile(
                    rows,
                    columns,
                    (
                        min(margin, top),
                        min(margin, left),
                        min(margin, height - rows.stop),
                        min(margin, width - columns.stop),
                    ),
                )
            )
        yield row


class Map:
    """What a layer makes of a picture, in strips of whole rows from the top.

    Args:
        height: Pixels.
        width: Pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._strips: list[tuple[int, Array]] = []

    def add(self, top: int, strip: Array) -> None:
        """Add the strip that begins at a row, [rows, width, channels]."""
        self._strips.append((top, strip))

    def read(self, tile: Tile) -> Array:
        """A tile with its margins, [1, rows, columns, channels]."""
        above, left, below, right = tile.around
        first, last = tile.rows.start - above, tile.rows.stop + below
        columns = slice(tile.columns.start - left, tile.columns.stop + right)
        parts = [
            strip[max(first - top, 0) : last - top, columns]
            for top, strip in self._strips
            if top < last and top + len(strip) > first
        ]
        return np.concatenate(parts)[None]

    def forget_above(self, row: int) -> None:
        """Give back strips that end above a row."""
        self._strips = [(top, strip) for top, strip in self._strips if top + len(strip) > row]


@dataclass
class Statistics:
    """Mean and sum of squared differences from it of each channel, over more and more pixels.

    Attributes:
        count: Pixels.
        mean: float64 [channels].
        squares: float64 [channels].
    """

    count: int = 0
    mean: Any = field(default=0.0)
    squares: Any = field(default=0.0)

    def add(self, measured: Array, count: int) -> None:
        """Take more pixels.

        Args:
            measured: float32 [1, 2, channels], their means and variances.
            count: How many they are.
        """
        mean, variance = measured[0].astype(np.float64)
        together = self.count + count
        apart = mean - self.mean
        self.squares = self.squares + variance * count + apart * apart * (self.count * count / together)
        self.mean = self.mean + apart * (count / together)
        self.count = together

    def of_groups(self, groups: int) -> Floats:
        """What a group norm takes, float32 [1, 2, channels]: the groups' means, and one over their deviations."""
        means = self.mean.reshape(groups, -1)
        middle = means.mean(axis=1, keepdims=True)
        variance = self.squares.reshape(groups, -1).mean(axis=1, keepdims=True) / self.count
        variance = variance + np.square(means - middle).mean(axis=1, keepdims=True)
        both = middle, 1 / np.sqrt(variance + NORM_EPS)
        return np.stack([np.broadcast_to(each, means.shape).ravel() for each in both])[None].astype(np.float32)


@dataclass(frozen=True)
class ExactDecoder:
    """Decodes one picture after the other.

    Attributes:
        spec: The autoencoder's.
        graphs: Its graphs.
        device: Where they run.
        dtype: Of maps on the device.
        tiling: Side of a tile.
    """

    spec: VaeSpec
    graphs: ExactGraphs
    device: Device
    dtype: DType
    tiling: Tiling

    def decode(self, latents: Floats) -> tuple[Pixels, bool]:
        """Latents to a picture.

        Args:
            latents: float32 [latent_rows, latent_columns, latent_channels].

        Returns:
            uint8 [rows, columns, 3], and whether all numbers were finite.
        """
        height, width, _ = latents.shape
        x, measured, energy = self.graphs.middle(upload(latents[None], self.device))
        finite = bool(np.isfinite(download(energy)).all())
        known, x_map = Statistics(), Map(height, width)
        known.add(download(measured), height * width)
        x_map.add(0, self._to_host(x)[0])
        for number, unit in enumerate(units_of(self.spec)):
            x_map, known = self._unit(number, unit, x_map, known)
        return self._pixels(x_map, known, finite)

    def _unit(self, number: int, unit: Unit, x_map: Map, known: Statistics) -> tuple[Map, Statistics]:
        """One unit over all tiles: its map and the statistics of that; the one before is given back."""
        graphs, times = self.graphs, 2 if unit.is_enlarged else 1
        side = side_of(self.spec, self.tiling, max(unit.inputs, unit.outputs)) // times
        rows = list(tiles_of(x_map.height, x_map.width, side))
        if unit.is_enlarged:
            known = Statistics()
            for tile in (tile for row in rows for tile in row):
                _, measured = graphs.upsample[number](self._to_device(x_map.read(tile)), *self._own(tile))
                known.add(download(measured), times * times * _count(tile))
        before, between = self._known(known), Statistics()
        for tile in (tile for row in rows for tile in row):
            _, _, measured = self._first(number, unit, x_map, tile, before)
            between.add(download(measured), times * times * _count(tile))
        inside, result = self._known(between), Statistics()
        made = Map(x_map.height * times, x_map.width * times)
        for row in rows:
            parts = []
            for tile in row:
                x, y, _ = self._first(number, unit, x_map, tile, before)
                out, measured = graphs.second[number](x, y, inside, *self._own(tile, times))
                result.add(download(measured), times * times * _count(tile))
                parts.append(_without_margins(self._to_host(out)[0], tile, times))
            made.add(times * row[0].rows.start, np.concatenate(parts, axis=1))
            x_map.forget_above(row[0].rows.stop - MARGIN)
        return made, result

    def _first(self, number: int, unit: Unit, x_map: Map, tile: Tile, before: Buffer) -> tuple[Buffer, Buffer, Buffer]:
        """A tile of what the unit takes, enlarged where it is; what its first convolution makes; and its statistics."""
        x, times = self._to_device(x_map.read(tile)), 1
        if unit.is_enlarged:
            x, times = self.graphs.upsample[number](x, *self._own(tile))[0], 2
        y, measured = self.graphs.first[number](x, before, *self._own(tile, times))
        return x, y, measured

    def _pixels(self, x_map: Map, known: Statistics, finite: bool) -> tuple[Pixels, bool]:
        pixels = np.empty((x_map.height, x_map.width, 3), np.uint8)
        statistics = self._known(known)
        for row in tiles_of(x_map.height, x_map.width, self.tiling.size, margin=1):
            for tile in row:
                made, energy = self.graphs.pixels(self._to_device(x_map.read(tile)), statistics)
                pixels[tile.rows, tile.columns] = _without_margins(download(made)[0], tile, 1)
                finite = finite and bool(np.isfinite(download(energy)).all())
            x_map.forget_above(row[0].rows.stop - 1)
        return pixels, finite

    def _own(self, tile: Tile, times: int = 1) -> tuple[Buffer, Buffer]:
        """Which rows and columns of a tile are its own, as graphs take them."""
        above, left, below, right = tile.around
        rows, columns = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        shares = []
        for before, own, behind in ((above, rows, below), (left, columns, right)):
            share = np.zeros(times * (before + own + behind), np.float32)
            share[times * before : times * (before + own)] = 1
            shares.append(upload(share, self.device))
        return shares[0], shares[1]

    def _known(self, known: Statistics) -> Buffer:
        return upload(known.of_groups(self.spec.norm_num_groups), self.device)

    def _to_device(self, values: Array) -> Buffer:
        buffer = upload(values, self.device)
        return buffer if self.dtype == DType.float32 else buffer.view(self.dtype, values.shape)

    def _to_host(self, buffer: Buffer) -> Array:
        """Numbers on the host; numpy does not know bfloat16 and has its bits."""
        shape = tuple(map(int, buffer.shape))
        return download(buffer if self.dtype == DType.float32 else buffer.view(DType.uint16, shape))


def side_of(spec: VaeSpec, tiling: Tiling, channels: int) -> int:
    """Side of the tiles of a layer: shorter by halves where there are more channels, for about the same memory.

    >>> spec = VaeSpec(latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    ...                norm_num_groups=32, scaling_factor=1.0, shift_factor=0.0)
    >>> tuple(side_of(spec, Tiling("exact", 512), channels) for channels in (128, 256, 512))
    (512, 256, 256)
    """
    half = 1
    while half * half * spec.block_out_channels[0] < channels:
        half *= 2
    return max(tiling.size // half // 2 * 2, 16)


def _count(tile: Tile) -> int:
    return (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)


def _without_margins(values: Array, tile: Tile, times: int) -> Array:
    """A tile of a result without its margins, [rows, columns, channels]."""
    above, left, below, right = (times * each for each in tile.around)
    return values[above : len(values) - below, left : values.shape[1] - right]
