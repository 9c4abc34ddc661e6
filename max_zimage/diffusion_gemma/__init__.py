"""DiffusionGemma: text by block diffusion, as compiled graphs."""

from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion, TextDraft, TextResult

__all__ = ["TextDiffusion", "TextDraft", "TextResult"]
