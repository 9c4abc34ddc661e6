"""The fields of features that have a file of their own, together; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass

from max_zimage.request.dype_fields import DypeFields
from max_zimage.request.embedding_fields import EmbeddingFields
from max_zimage.request.enhance_fields import EnhanceFields
from max_zimage.request.layer_fields import LayerFields
from max_zimage.request.lora_fields import LoraFields
from max_zimage.request.mask_fields import MaskFields
from max_zimage.request.nag_fields import NagFields
from max_zimage.request.passes_fields import PassFields
from max_zimage.request.tile_fields import TileFields


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFields(
    LoraFields,
    TileFields,
    PassFields,
    DypeFields,
    LayerFields,
    NagFields,
    MaskFields,
    EnhanceFields,
    EmbeddingFields,
):
    """Masks, negative prompts in attention, hidden layers, large pictures, adapters, embeddings, enhanced prompts."""
