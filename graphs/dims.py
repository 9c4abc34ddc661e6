"""Names of the symbolic dimensions, shared so that one name means one size in every graph.

`batch` counts pictures, `items` counts rows of the transformer's batch (pictures times guidance branches) and `prompts`
counts distinct captions. Token counts that end in `_padded` are rounded up to a multiple of `TOKEN_MULTIPLE`.

Reference: diffusers models/transformers/transformer_z_image.py, SEQ_MULTI_OF.
"""

from __future__ import annotations

from typing import Literal

BATCH = "batch"
ITEMS = "items"
PROMPTS = "prompts"
IMAGE_TOKENS = "image_tokens"
IMAGE_PADDED = "image_padded"
CAPTION_PADDED = "caption_padded"
TOKENS = "tokens"  # image_padded + caption_padded: MAX takes no sums in the types of a graph's arguments
STEPS = "steps"
VARIANTS = "variants"  # of the modulation: all blocks, or some of them left out
OTHERS = "others"  # branches beside the positive and the negative one
SLOTS = "slots"  # of what a sampler remembers
ROWS = "rows"  # of a batch of texts, or of a table that a kernel takes some of
NEW_TOKENS = "new_tokens"  # of the longest prompt among them, or of a canvas
CACHED_TOKENS = "cached_tokens"  # read before, with what stands before shorter rows
SEEN_TOKENS = "seen_tokens"  # those, and the new ones
OFFSETS = "offsets"  # one more than there are sequences, see `max_zimage.sampling.positions.sequence_offsets`

TOKEN_MULTIPLE = 32
"""Captions and images are each padded to a multiple of this with their learned pad token."""

PATCH = 2
"""Side of the square of latent pixels that makes one image token."""

FirstBlock = Literal["noise_refiner", "layers"]
"""The block that first-block caching asks, by the name of its list in the checkpoint: the first that sees the latents,
or the first that sees the captions too."""
