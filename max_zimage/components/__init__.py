"""The parts of the pipeline that own weights, one ComponentModel a file; each compiles its own graphs."""

from max_zimage.components.base import ZImageComponent
from max_zimage.components.meshed import ZImageMeshedTransformer
from max_zimage.components.streamed import ZImageStreamedTransformer
from max_zimage.components.text_encoder import NoTextEncoder, ZImageTextEncoderModel
from max_zimage.components.transformer import ZImageTransformerModel
from max_zimage.components.vae import ZImageVaeModel

Qwen3TextEncoderZImageModel = ZImageTextEncoderModel
"""MAX's name of the text encoder."""
AutoencoderKLModel = ZImageVaeModel
"""MAX's name of the autoencoder."""

__all__ = [
    "AutoencoderKLModel",
    "NoTextEncoder",
    "Qwen3TextEncoderZImageModel",
    "ZImageComponent",
    "ZImageMeshedTransformer",
    "ZImageStreamedTransformer",
    "ZImageTextEncoderModel",
    "ZImageTransformerModel",
    "ZImageVaeModel",
]
