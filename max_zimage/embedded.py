"""The small models that come with the package: a Z-Image checkpoint to try everything with, and one that writes."""

from pathlib import Path

NAME = "tiny-zimage"
"""What it is called on the command line and in pictures."""

PATH = Path(__file__).parent / "assets" / NAME
"""Its folder, laid out as diffusers' checkpoints are."""

TEXT_NAME = "tiny-diffusion-gemma"
"""The text model's name: a DiffusionGemma that makes full captions of short prompts."""

TEXT_PATH = Path(__file__).parent / "assets" / TEXT_NAME
"""Its folder, laid out as transformers' checkpoints are."""
