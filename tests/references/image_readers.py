"""Pictures' texts as other people's programs read them."""

from __future__ import annotations

import io
import sys

import sd_parsers.extractors  # noqa: F401  (fills sys.modules)
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo


def read_by_sd_parsers(content: bytes) -> PromptInfo | None:
    """What sd-parsers finds in a picture's file.

    Its two extractors keep the last picture's texts under the `id` of its object (sd_parsers/extractors, 0.6), which
    the next picture can have when the first one is gone: what they keep is forgotten here.
    """
    for name in ("_jpeg_usercomment", "_png_stenographic_alpha"):
        module = sys.modules[f"sd_parsers.extractors.{name}"]
        assert hasattr(module, "_image_id"), f"sd-parsers keeps nothing in {name} now: this can go"
        vars(module)["_image_id"] = None
    return ParserManager().parse(io.BytesIO(content))
