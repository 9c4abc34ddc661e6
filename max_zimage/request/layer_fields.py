"""The field of a request that chooses among the text encoder's hidden states; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER, HiddenLayer, written
from max_zimage.request.kinds import Kind
from max_zimage.request.row import Flag, Images, Kept, Responses, row

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Layers(Kind):
    """A hidden layer, or weights by layer; see `max_zimage.request.hidden_layer`."""

    fallback: ClassVar[Any] = DEFAULT_HIDDEN_LAYER
    schema: ClassVar[Any] = int | str | dict[str, float]

    @override
    def check(self, name: str, value: object, limits: Limits) -> HiddenLayer:
        from max_zimage.request.layer_values import hidden_layer

        return hidden_layer(name, value, limits)

    @override
    def encode(self, value: HiddenLayer) -> str:
        return written(value)

    @override
    def decode(self, value: Any) -> HiddenLayer:
        from max_zimage.request.layer_values import decoded

        return decoded(super().decode(value))


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerFields:
    """What of the text encoder the transformer sees.

    Attributes:
        hidden_layer: Layers of the text encoder's hidden states, and the weight of each, which are made to add up to 1.
    """

    hidden_layer: HiddenLayer = row(
        Layers(),
        default=DEFAULT_HIDDEN_LAYER,
        flag=Flag(
            "--hidden-layer",
            "LAYER",
            "of the text encoder; -2 if not given, and -2:0.7,-5:0.3 weighs several",
            "fine tuning",
        ),
        images=Images("hidden_layer", "Hidden layer of the text encoder, or weights by layer; -2 if not given."),
        responses=Responses("hidden_layer", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=written(DEFAULT_HIDDEN_LAYER)),
        shared="value",
    )
