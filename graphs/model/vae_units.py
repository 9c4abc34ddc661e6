"""The units that the decoder is taken apart into, and how their layers keep the names that the whole decoder has.

Reference: diffusers models/autoencoders/vae.py (Decoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max.experimental.nn import Module

from max_zimage.graphs.model.vae import VaeSpec


@dataclass(frozen=True)
class Unit:
    """A residual block of the decoder.

    Attributes:
        block: Of `decoder.up_blocks`.
        layer: Of the block's `resnets`.
        inputs: Channels that it takes.
        outputs: Channels that it makes.
        is_enlarged: Whether the block before ends with an enlargement, which comes first here.
    """

    block: int
    layer: int
    inputs: int
    outputs: int
    is_enlarged: bool

    @property
    def path(self) -> str:
        """Where its parameters are."""
        return f"up_blocks.{self.block}.resnets.{self.layer}"


def units_of(spec: VaeSpec) -> tuple[Unit, ...]:
    """The decoder's residual blocks behind the middle, in order."""
    widths, found = tuple(reversed(spec.block_out_channels)), []
    for block, width in enumerate(widths):
        for layer in range(spec.layers_per_block + 1):
            inputs = widths[max(block - 1, 0)] if layer == 0 else width
            found.append(Unit(block, layer, inputs, width, is_enlarged=layer == 0 and block > 0))
    return tuple(found)


def enlarged_units(spec: VaeSpec) -> tuple[int, ...]:
    """Numbers of the units that begin with an enlargement."""
    return tuple(number for number, unit in enumerate(units_of(spec)) if unit.is_enlarged)


class Place(Module[..., Any]):
    """A part of the decoder's tree of names, in which only some layers are there."""

    def forward(self) -> Any:
        """Not called: layers are."""
        raise NotImplementedError

    def put(self, path: str, layer: Module[..., Any]) -> None:
        """Put a layer where the whole decoder has it."""
        first, _, rest = path.partition(".")
        if not rest:
            setattr(self, first, layer)
            return
        if first not in vars(self):
            setattr(self, first, Place())
        getattr(self, first).put(rest, layer)

    def at(self, path: str) -> Any:
        """The part at a path."""
        first, _, rest = path.partition(".")
        return getattr(self, first).at(rest) if rest else getattr(self, first)
