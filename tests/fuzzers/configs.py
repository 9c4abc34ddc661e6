"""Checkpoints whose text files are changed at random: either every way in agrees on them, or one error names the file.

No weights are read. What was prepared must be usable: its defaults make a request, its prompts fit, the worker and the
server find the same as the pipeline; a share goes through the command line, in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.errors import CheckpointError
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.manifest import find_sources
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.served_model import served_model
from max_zimage.serving.settings import ServerSettings
from tests.fuzzers.tally import Tally
from tests.references.checkpoints import DAMAGED, HARMLESS, JSON_FILES, TEMPLATE, copied

Draw = random.Random

_FILES = (*JSON_FILES, TEMPLATE)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 8.7, 1e-320, 1e30, 1e308, 2**31, 10**30, -0.0, "", "x", "128", "\ud800"),
    *(
        [],
        {},
        [1],
        [None, None],
        [128, 128],
        ["diffusers", "AutoencoderKL"],
        {"a": {"b": []}},
        [[[]]],
        "ZImagePipeline",
    ),
)
_TEMPLATES = (
    "{{ raise_exception('no user message') }}",
    "always the same",
    "{{ messages[0].content }}",
    "{{ messages[1].content }}",
    "{{ messages[0].content.upper() }}",
    "{% if not messages[0].content %}{{ raise_exception('empty') }}{% endif %}<|im_start|>{{ messages[0].content }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{% for a in range(10**9) %}x{% endfor %}{{ messages[0].content }}",
    "{{ 'x' * 10**12 }}{{ messages[0].content }}",
    "{{ 9 ** 99999999 }}{{ messages[0].content }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 1 / 0 }}",
    "{{ messages[0].content | tojson }}",
    "{{ messages[0] + 1 }}",
    "{% include 'other' %}",
    "{{ bos_token + messages[0].content }}",
    "{% if %}",
)
_SECONDS = 30.0  # nothing here takes more than one on a machine with nothing else to do
_LEAKED = re.compile(r"NoneType|<class |Traceback|object at 0x|\b\w+Error\b|KeyError")


def fuzz(count: int, seed: int = 0) -> Tally:
    """Try checkpoints.

    Args:
        count: How many.
        seed: Of the changes.

    Returns:
        What became of them: right where they were prepared, refused where an error named a file.
    """
    draw, tally = Draw(seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            model = copied(Path(folder) / "model")
            words = _change(draw, model)
            way = draw.choice(("prepare", "prepare", "prepare", "info", "serve"))
            begin, tally.tried = time.monotonic(), tally.tried + 1
            try:
                problem = _outcome(model, way, tally)
            except BaseException as error:  # a panic of the tokenizers' library is no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
            if problem is None and time.monotonic() - begin > _SECONDS:
                problem = f"took {time.monotonic() - begin:.0f} s"
            if problem is not None:
                tally.wrong.append(f"input {number} of seed {seed}, {way} after {words}: {problem}")
            shutil.rmtree(model)
    return tally


def _outcome(model: Path, way: str, tally: Tally) -> str | None:
    """What is wrong with what becomes of a checkpoint; None if nothing."""
    told = io.StringIO()
    try:
        prepared = ZImagePipeline.prepare(model, device="cpu")
    except CheckpointError as error:
        if way != "prepare" and (problem := _through_command(model, way, 2, told)):
            return problem
        if way != "prepare" and str(error) not in told.getvalue():
            return f"{way} says {told.getvalue()!r}, Python {error}"
        tally.refused += 1
        return _unclear(str(error), model)
    if way != "prepare" and (problem := _through_command(model, way, 0, told)):
        return problem
    tally.right += 1
    return _unusable(prepared)


def _through_command(model: Path, way: str, code: int, told: io.StringIO) -> str | None:
    run = ["info", "--model", str(model), "--json"] if way == "info" else ["serve", str(model), "--port", "0"]
    # A server's memory is another matter, and its life too.
    with (
        mock.patch("max_zimage.serving.server.run", return_value=0),
        mock.patch("max_zimage.serving.capacity.check_capacity"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(told),
    ):
        found = main([*run, "--device", "cpu"])
    return None if found == code else f"exit code {found}, expected {code}: {told.getvalue()}"


def _unclear(message: str, model: Path) -> str | None:
    lines = message.splitlines()
    if str(model) not in message:
        return f"names no file: {message}"
    if not all(line.startswith("  ") or str(model) in line for line in lines[1:]):
        return f"is not one line a problem: {message}"
    return f"shows what is Python's own: {message}" if _LEAKED.search(message) else None


def _unusable(prepared: CheckedModel) -> str | None:
    sources = prepared.sources
    request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, prompt="a red star")
    tokens_of_request(request, prepared.tokenizer, sources.limits)
    server = served_model(ServerSettings(model=str(prepared.directory), name="fuzzed"), prepared).tokenizer
    if server.defaults != sources.defaults:
        return f"the server's defaults are {server.defaults}, the pipeline's {sources.defaults}"
    worker = find_sources(pickle.loads(pickle.dumps(prepared.config)), {}, "transformer", prepared.devices[0], 50)
    return None if worker == sources else f"the worker finds {worker}, the pipeline {sources}"


def _change(draw: Draw, model: Path) -> str:
    """Change a file, or two; returns what was done."""
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        file = draw.choice(_FILES)
        if not (model / file).is_file():
            continue
        kinds: list[Callable[[Draw, Path], str]] = [_whole, _bytes]
        kinds += [_template] * 4 if file == TEMPLATE else [_value] * 6
        done.append(f"{file}: {draw.choice(kinds)(draw, model / file)}")
    return "; ".join(done)


def _whole(draw: Draw, file: Path) -> str:
    name = draw.choice([*HARMLESS, *DAMAGED])
    (HARMLESS[name] if name in HARMLESS else DAMAGED[name][0])(file)
    return name


def _bytes(draw: Draw, file: Path) -> str:
    data = bytearray(file.read_bytes())
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 2, 20)))] if data else []
    for place in places:
        data[place] = draw.choice(b'{}[],:"0919aZ \n\\%\xff\x00')
    file.write_bytes(data)
    return f"bytes {places} changed"


def _template(draw: Draw, file: Path) -> str:
    text = draw.choice(_TEMPLATES)
    file.write_text(text)
    return repr(text)


def _value(draw: Draw, file: Path) -> str:
    """Replace, remove or add a value somewhere in the object."""
    try:
        holder: Any = json.loads(file.read_bytes())
    except ValueError:
        return "left as it is"
    content, path = holder, [draw.choice(list(holder))] if isinstance(holder, dict) and holder else []
    if not path:
        return "left as it is"
    while isinstance(below := holder[path[-1]], dict | list) and below and draw.random() < 0.6:
        holder = below
        path.append(draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder)))
    what = draw.choice(("replace", "replace", "replace", "scale", "remove", "add"))
    before, value = holder[path[-1]], draw.choice(_VALUES)
    if what == "remove":
        del holder[path[-1]]
    elif what == "add" and isinstance(holder, dict):
        holder[draw.choice(("x", "quantization_config", "sample_size", "chat_template", "_class_name"))] = value
    elif what == "scale" and type(before) in (int, float):
        holder[path[-1]] = before * draw.choice((-1, 0.5, 2, 1000))
    else:
        holder[path[-1]] = value
    file.write_text(json.dumps(content))
    return f"{what} {path}, {value!r}"
