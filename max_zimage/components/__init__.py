"""The parts of the pipeline that own weights, one ComponentModel a file; each compiles its own graphs."""

from max_zimage.components.text_encoder import ZImageTextEncoderModel
from max_zimage.components.transformer import ZImageTransformerModel
from max_zimage.components.vae import ZImageVaeModel

__all__ = ["ZImageTextEncoderModel", "ZImageTransformerModel", "ZImageVaeModel"]
