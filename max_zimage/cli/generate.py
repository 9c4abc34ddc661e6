"""`max-zimage generate`: everything is checked, then loaded, then drawn one picture after the other.

Pictures of one command are drawn one by one rather than as a batch, so that each is on disk as soon as it exists,
--from repeats any of them exactly, and memory does not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.console import display
from max_zimage.cli.enhancing import written_out
from max_zimage.cli.errors import checking, quiet_libraries, warn
from max_zimage.cli.options import GenerateOptions, parameters_of
from max_zimage.cli.preparing import prepare
from max_zimage.cli.saving import Destination, check_outputs, save_features
from max_zimage.device.devices import device_kind
from max_zimage.pipeline.not_finite import NotFiniteError
from max_zimage.progress import shown_by
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest

if TYPE_CHECKING:
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.pipeline.zimage import ZImagePipeline

_PATIENCE = "The first run of a model compiles its graphs, which takes minutes; later runs take them from disk."


@dataclass
class Outcome:
    """What came of a command.

    Attributes:
        files: Pictures on disk.
        parameters: What each was drawn with.
        load_seconds: From the start to the compiled pipeline.
        picture_seconds: Of each picture.
        problems: Pictures that could not be drawn, or not be saved where they were wanted, in words.
    """

    files: list[Path] = field(default_factory=list)
    parameters: list[GenerationParameters] = field(default_factory=list)
    load_seconds: float = 0.0
    picture_seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "files": [str(path.absolute()) for path in self.files],
                "seeds": [parameters.seed for parameters in self.parameters],
                "seconds": {
                    "load": round(self.load_seconds, 3),
                    "generate": round(sum(self.picture_seconds), 3),
                    "pictures": [round(seconds, 3) for seconds in self.picture_seconds],
                },
                "parameters": [asdict(parameters) for parameters in self.parameters],
                "problems": self.problems,
            }
        )


def generate(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 1 if a picture could not be drawn, or not be saved where it was wanted.

    Raises:
        BadInput: If anything is wrong with what is asked for; before anything is compiled.
    """
    begin = time.perf_counter()
    with checking():
        check_outputs(arguments)
        wanted = GenerateOptions.of(arguments)
    silent = arguments.quiet or arguments.json
    outcome = Outcome()
    with quiet_libraries(arguments.debug) as stdout:
        for doubt in wanted.doubts if not arguments.quiet else ():
            warn(doubt)
        named = (arguments.prompt, arguments.source, arguments.embeddings)
        if named == (None, None, None) and not silent:
            print(f'No prompt was given; drawing "{DEFAULT_PROMPT}".', file=stdout)
        with checking():
            prepared, asked = prepare(wanted, arguments)
        request = written_out(prepared, asked, arguments, stdout)
        if request is None:
            return 0
        with checking():
            to = Destination.of(arguments, request)
            ran = _ran(prepared.sources, prepared.devices[0])
            if request.is_repeatable:
                for doubt in to.doubts(parameters_of(request.picture(0), wanted, *ran)):
                    warn(doubt)
        with checking(), shown_by(display(quiet=arguments.quiet, note=_PATIENCE)):
            pipeline = _load(prepared)
        outcome.load_seconds = time.perf_counter() - begin
        with shown_by(display(quiet=arguments.quiet)):
            save_features(pipeline, request, arguments)
            _draw(pipeline, request, wanted, to, outcome, None if silent else stdout)
    if arguments.json:
        print(outcome.to_json())
    elif not silent:
        print(f"Loading and compiling took {outcome.load_seconds:.1f} s, drawing {sum(outcome.picture_seconds):.1f} s.")
    for problem in outcome.problems:
        print(f"max-zimage: error: {problem}", file=sys.stderr)
    return 1 if outcome.problems else 0


def _ran(sources: Any, device: Any) -> Any:
    """How pictures of a manifest are drawn on a device: the last arguments of `parameters_of`."""
    return sources.dtypes["transformer"], device_kind(device), sources.quantize, sources.attention_backend


def _load(prepared: CheckedModel) -> ZImagePipeline:
    from max_zimage.pipeline.zimage import ZImagePipeline

    return ZImagePipeline.from_prepared(prepared)


def _draw(
    pipeline: ZImagePipeline,
    request: GenerationRequest,
    wanted: GenerateOptions,
    to: Destination,
    outcome: Outcome,
    told: TextIO | None,
) -> None:
    for index in range(len(to.paths)):
        begin = time.perf_counter()
        one = request.picture(index)
        try:
            pixels: Any = pipeline.generate(one)
        except NotFiniteError as error:  # this picture's fault alone: the others are drawn
            outcome.problems.append(f"seed {one.seed}: {error}")
            continue
        outcome.picture_seconds.append(time.perf_counter() - begin)
        ran = _ran(pipeline.sources, pipeline.device)
        # A picture cannot hold the latents that it began with, nor features that do not say what they were made by.
        parameters = parameters_of(one, wanted, *ran) if one.is_repeatable else None
        outcome.parameters += [parameters] if parameters else []
        saved = to.save(index, pixels, parameters, outcome.problems)
        outcome.files.append(saved)
        if told is not None:
            of = "" if one.seed is None else f", seed {one.seed}"
            print(f"{saved}: {one.width}x{one.height} pixels{of}", file=told, flush=True)
