"""Checks of what is said of enhanced prompts; see `max_zimage.request.enhance_fields`."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts


def check_enhancing(request: RequestFacts) -> None:
    """Refuse what does not go together.

    Raises:
        RequestError: With the first of it.
    """
    if request.enhance_seed is not None and not request.enhance:
        raise RequestError.of("enhance_seed", "{field} would do nothing without {name[enhance]}; leave it out")
    if request.enhance and (request.prompt_embeds is not None or request.features is not None):
        other = "prompt_embeds" if request.features is None else "features"
        message = "{field} writes a prompt out, and {name[" + other + "]} are given in its place; leave one out"
        raise RequestError.of("enhance", message)
    if request.enhance and request.original_prompts:
        raise RequestError.of(
            "enhance", "{field}: the prompt was enhanced already, as original_prompt says; leave one out"
        )
    originals = request.original_prompts
    if not originals and request.enhanced_by:
        raise RequestError.of(
            "enhanced_by", "{field} says who wrote a prompt out; give original_prompt too, or neither"
        )
    if any(originals) and not request.enhanced_by:
        raise RequestError.of(
            "original_prompt", "{field} goes with enhanced_by, who wrote it out; give both, or neither"
        )
    if request.enhanced_by and len(originals) != request.num_prompts:
        message = "{field} must be one text for each of {prompts} prompts, got {given}"
        raise RequestError.of("original_prompt", message, prompts=request.num_prompts, given=len(originals))
