"""Z-Image and Z-Image-Turbo as compiled graphs on Modular MAX.

>>> from max_zimage import ZImagePipeline
>>> pipe = ZImagePipeline.from_pretrained()
>>> pipe("a red star on a blue background", seed=42)[0].save("star.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from max_zimage.version import __version__

if TYPE_CHECKING:
    from max_zimage.arch import ARCHITECTURES, ZImageArchConfig
    from max_zimage.checkpoint.convert import convert
    from max_zimage.components import (
        AutoencoderKLModel,
        Qwen3TextEncoderZImageModel,
        ZImageTextEncoderModel,
        ZImageTransformerModel,
        ZImageVaeModel,
    )
    from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion, TextDraft, TextResult
    from max_zimage.pipeline.batch import ZImageModelInputs
    from max_zimage.pipeline.encoder import ZImageTextEncoder
    from max_zimage.pipeline.not_finite import NotFiniteError
    from max_zimage.pipeline.results import ZImagePipelineOutput
    from max_zimage.pipeline.zimage import ZImagePipeline
    from max_zimage.request.prompt_features import PromptFeatures
    from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer


__all__ = [
    "ARCHITECTURES",
    "AutoencoderKLModel",
    "FirstBlockCache",
    "NotFiniteError",
    "PromptFeatures",
    "Qwen3TextEncoderZImageModel",
    "TaylorSeer",
    "TextDiffusion",
    "TextDraft",
    "TextResult",
    "ZImageArchConfig",
    "ZImageModelInputs",
    "ZImagePipeline",
    "ZImagePipelineOutput",
    "ZImageTextEncoder",
    "ZImageTextEncoderModel",
    "ZImageTransformerModel",
    "ZImageVaeModel",
    "__version__",
    "convert",
]

# MAX takes seconds to import, so a name brings its module along only when it is used: `max-zimage --help` needs none.
_HOMES = {
    "ARCHITECTURES": "arch",
    "AutoencoderKLModel": "components",
    "FirstBlockCache": "sampling.step_cache",
    "NotFiniteError": "pipeline.not_finite",
    "PromptFeatures": "request.prompt_features",
    "Qwen3TextEncoderZImageModel": "components",
    "TaylorSeer": "sampling.step_cache",
    "TextDiffusion": "diffusion_gemma.text_diffusion",
    "TextDraft": "diffusion_gemma.text_diffusion",
    "TextResult": "diffusion_gemma.text_diffusion",
    "ZImageArchConfig": "arch",
    "ZImageModelInputs": "pipeline.batch",
    "ZImagePipeline": "pipeline.zimage",
    "ZImagePipelineOutput": "pipeline.results",
    "ZImageTextEncoder": "pipeline.encoder",
    "ZImageTextEncoderModel": "components",
    "ZImageTransformerModel": "components",
    "ZImageVaeModel": "components",
    "convert": "checkpoint.convert",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
