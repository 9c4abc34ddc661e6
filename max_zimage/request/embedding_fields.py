"""The field of a request that brings features of its prompts; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from max_zimage.request.kinds import Array
from max_zimage.request.row import Flag, Images, row

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits
    from max_zimage.request.prompt_features import PromptFeatures


@dataclass(frozen=True, kw_only=True)
class GivenFeatures(Array):
    """`max_zimage.request.prompt_features.PromptFeatures`, one or several; a request holds a tuple of them."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.request.feature_values import given_features

        return given_features(name, value, limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingFields:
    """What was encoded before.

    Attributes:
        features: The features of each prompt, with what they were made by, in place of the prompts; or None. What they
            were made by stands in the request's other fields.
    """

    features: tuple[PromptFeatures, ...] | None = row(
        GivenFeatures(),
        flag=Flag(
            "--embeddings",
            "FILE",
            "draw from what `encode` saved, in place of a prompt",
            "the picture",
            others=("--embeddings-file", "--load-embeddings"),
        ),
        images=Images("features", "Base64 of a file of features, in place of the prompt."),
    )
