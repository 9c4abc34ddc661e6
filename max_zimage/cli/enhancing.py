"""`max-zimage generate --enhance`: the prompt is written out, shown and maybe edited, before anything is loaded."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from max_zimage.cli.console import display
from max_zimage.cli.errors import BadInput, checking, warn
from max_zimage.cli.other_flags import keyed
from max_zimage.enhancer.apply import applied, prompt_check
from max_zimage.enhancer.base import Enhancer
from max_zimage.enhancer.opening import forget, open_enhancer, settings_of
from max_zimage.enhancer.settings import EnhancerSettings
from max_zimage.pipeline.enhancing import is_embedded, own_of_checked
from max_zimage.progress import shown_by
from max_zimage.request.checks import text_of

if TYPE_CHECKING:
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.request.request import GenerationRequest

_NOTE = "The first run of an enhancer compiles its graphs, which takes a minute; later runs take them from disk."


def written_out(
    prepared: CheckedModel, request: GenerationRequest, arguments: argparse.Namespace, stdout: TextIO
) -> GenerationRequest | None:
    """The request with its prompt written out, where it asks for that; None where nothing is to be drawn.

    Args:
        prepared: What it will be drawn with, and what is configured of the enhancer.
        request: The request.
        arguments: Of the command.
        stdout: Where a prompt is shown.

    Raises:
        BadInput: If there is no such enhancer, or flags want one that is not asked for.
    """
    if not request.enhance:
        idle = {"--show-prompt": arguments.show_prompt, "--enhance-template": arguments.enhance_template}
        refuse_idle(arguments, "--enhance", idle)
        return request
    named = arguments.enhance if isinstance(arguments.enhance, str) else None
    with checking(), shown_by(display(quiet=arguments.quiet, note=_NOTE)):
        enhancer = opened(prepared, named, arguments.enhance_template)
        enhancer.load()
    done = applied(request, enhancer, prompt_check(request, prepared.tokenizer, prepared.sources.limits))
    forget()
    for note in done.notes:
        warn(note)
    if arguments.show_prompt:
        return _shown(prepared, done.request, arguments, done.notes, stdout)
    if not arguments.quiet and done.request.original_prompts:
        print(f"max-zimage: the prompt is {done.request.prompts[0]!r}", file=sys.stderr)
    return done.request


def refuse_idle(arguments: argparse.Namespace, wanted: str, idle: dict[str, object]) -> None:
    """Refuse flags that say how prompts are written out, where none is.

    Args:
        arguments: Of the command; may have more of them, for keys of the configuration.
        wanted: The flag that would have them written out.
        idle: Flags -> their values, None where they are not given.

    Raises:
        BadInput: If one is given.
    """
    for flag, value in (idle | keyed(arguments)).items():
        if value is not None:
            raise BadInput(f"{flag} would do nothing without {wanted}; give that too, or leave it out")


def opened(prepared: CheckedModel, named: str | None, template: str | None) -> Enhancer:
    """The enhancer that flags name, and under them a configuration; checked, but not loaded.

    Args:
        prepared: Has what is configured.
        named: By a flag; None or empty for none.
        template: The same.

    Raises:
        EnhancerError: If there is none, or something is wrong with what is said of it.
    """
    settings = with_flags(settings_of(prepared.enhancer), named, template)
    return open_enhancer(settings, is_embedded=is_embedded(prepared.named[0]), own=own_of_checked(prepared))


def with_flags(settings: EnhancerSettings, named: str | None, template: str | None) -> EnhancerSettings:
    """Settings with what flags name in the place of what is configured."""
    flags: Mapping[str, Any] = {"model": named, "template": template}
    return replace(settings, **{name: value for name, value in flags.items() if value})


def _shown(
    prepared: CheckedModel,
    request: GenerationRequest,
    arguments: argparse.Namespace,
    notes: tuple[str, ...],
    stdout: TextIO,
) -> GenerationRequest | None:
    """Show the prompt, and on a terminal let it be edited: None unless it is to be drawn then."""
    (text,) = request.prompts
    if arguments.json:
        said = {"prompt": text, **request.history(0), "notes": list(notes)}
        print(json.dumps(said, ensure_ascii=False), file=stdout)
        return None
    if not (sys.stdin.isatty() and stdout.isatty()):
        print(text, file=stdout)
        return None
    found = edited(text, stdout)
    if found is None or not found.strip():
        print("max-zimage: nothing is drawn", file=sys.stderr)
        return None
    if found == text:
        return request
    with checking():
        prompt_check(request, prepared.tokenizer, prepared.sources.limits)(text_of("prompt", found))
    original = request.original_prompts or request.prompts
    by = f"{request.enhanced_by}, edited" if request.enhanced_by else "edited"
    return replace(request, prompts=(found,), original_prompts=original, enhanced_by=by)


def edited(text: str, terminal: TextIO) -> str | None:
    """A line of a terminal with a text in it, as whoever sits there leaves it; None if it is given up."""
    import readline

    line = " ".join(text.split("\n"))
    readline.set_startup_hook(lambda: readline.insert_text(line))
    try:
        with contextlib.redirect_stdout(terminal):  # elsewhere Python would not edit
            found = input("Prompt (Enter draws it, Ctrl-D does not): ")
    except EOFError:
        return None
    finally:
        readline.set_startup_hook()
    return text if found == line else found
