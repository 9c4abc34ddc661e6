"""A request's prompts written out: each by itself, checked as a prompt is, and kept beside what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from max_zimage.enhancer.base import Enhanced, Enhancer, unchanged
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.request.checks import check_tokens
from max_zimage.request.limits import Limits
from max_zimage.request.request import GenerationRequest
from max_zimage.text.tokenizer import Around, PromptTokenizer

Check = Callable[[str], None]
"""Raises a RequestError or CheckpointError for a text that cannot be drawn."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A request that is to be drawn.

    Attributes:
        request: It, without a wish to be enhanced.
        notes: Why prompts are drawn as they were given, in sentences; empty where all were written out.
    """

    request: GenerationRequest
    notes: tuple[str, ...]


def applied(request: GenerationRequest, enhancer: Enhancer, check: Check) -> Applied:
    """Write the prompts of a request out; negative prompts stay what they are.

    A text that cannot be drawn, as one of too many tokens, is not taken: the prompt is drawn as it was given, and a
    note says so.

    Args:
        request: It asks for it, and was validated.
        enhancer: Who writes.
        check: Of a text.
    """
    seed = request.seed if request.enhance_seed is None else request.enhance_seed
    distinct = {
        prompt: _checked(prompt, enhancer.enhance(prompt, seed=seed or 0), check)
        for prompt in dict.fromkeys(request.prompts)
    }
    found = [distinct[prompt] for prompt in request.prompts]
    texts, notes = tuple(each.text for each in found), tuple(dict.fromkeys(each.note for each in found if each.note))
    # One that is its own original was not written out: such a picture remembers no enhancer.
    is_enhanced = texts != request.prompts
    return Applied(
        request=replace(
            request,
            prompts=texts,
            enhance=False,
            enhance_seed=None,
            original_prompts=request.prompts if is_enhanced else (),
            enhanced_by=enhancer.name if is_enhanced else "",
        ),
        notes=notes,
    )


def prompt_check(request: GenerationRequest, tokenizer: PromptTokenizer, limits: Limits) -> Check:
    """The check of a text in place of a request's prompt: that it has no more tokens than that may have.

    Args:
        request: Says how many, and what stands around the prompt.
        tokenizer: Counts them.
        limits: What the checkpoint can do at most.
    """
    around = Around(
        system=request.system_prompt, thinking=request.thinking_content, assistant=request.assistant_content
    )

    def check(text: str) -> None:
        mode, most = request.long_prompt_mode, request.max_sequence_length
        check_tokens(len(tokenizer.encode(text, around)), mode, most, limits, "the enhanced prompt", "prompt")

    return check


def _checked(prompt: str, found: Enhanced, check: Check) -> Enhanced:
    if found.note:
        return found
    try:
        check(found.text)
    except (RequestError, CheckpointError) as error:
        return unchanged(prompt, found.by, f"wrote what cannot be drawn: {error}")
    return found
