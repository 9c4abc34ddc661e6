"""`max-zimage write`: a text by block diffusion, whose drafts a terminal shows as they settle."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.live import Live
from rich.text import Text

from max_zimage.cli.console import display
from max_zimage.cli.errors import BadInput, checking, quiet_libraries
from max_zimage.cli.write_flags import NUMBERS
from max_zimage.diffusion_gemma.prepared import prepare_text
from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion, TextDraft
from max_zimage.errors import RequestError, Wording
from max_zimage.progress import shown_by

_PATIENCE = "The first run of a model compiles its graphs; later runs take them from disk."
_WORDING = Wording(names={**NUMBERS, "seed": "--seed", "prompt": "the prompt"})


def write(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code.

    Raises:
        BadInput: If anything is wrong with what is asked for; before anything is compiled.
    """
    begin = time.perf_counter()
    given = {name: getattr(arguments, name) for name in NUMBERS}
    with quiet_libraries(arguments.debug) as stdout:
        with checking(), _asking():
            prepared = prepare_text(arguments.model)
            prepared.request([arguments.prompt], arguments.seed, **given)
        with checking(), shown_by(display(quiet=arguments.quiet, note=_PATIENCE)):
            model = TextDiffusion.from_prepared(prepared, arguments.device, dtype=arguments.dtype)
        loaded = time.perf_counter()
        with _drafts(quiet=arguments.quiet) as show:
            result = model.generate(arguments.prompt, seed=arguments.seed, on_draft=show, **given)
        seconds = {"load": loaded - begin, "write": time.perf_counter() - loaded}
        if arguments.json:
            facts = asdict(result) | {"tokens_per_step": result.tokens_per_step}
            print(json.dumps({**facts, "model": arguments.model, "seconds": seconds}), file=stdout)
        else:
            print(result.text, file=stdout)
    if not result.ended and not arguments.quiet:
        print(
            f"max-zimage: warning: the text was cut at {len(result.token_ids)} tokens; --max-new-tokens allows more",
            file=sys.stderr,
        )
    return 0


@contextmanager
def _asking() -> Iterator[None]:
    """Say what is wrong with a request by the names of flags."""
    try:
        yield
    except RequestError as error:
        raise BadInput(error.said(_WORDING)) from error


@contextmanager
def _drafts(*, quiet: bool) -> Iterator[Callable[[TextDraft], None] | None]:
    """Show drafts where stderr is a terminal; the last one goes, since the text itself is printed."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda draft: live.update(shown(draft), refresh=True)


def shown(draft: TextDraft) -> Text:
    """A draft with how far it is, settled ones plainly and others dimmed."""
    place = f"canvas {draft.canvas}, step {draft.step} of at most {draft.num_steps}"
    return Text.assemble((draft.text, "" if draft.settled else "dim"), "\n", (place, "cyan"))
