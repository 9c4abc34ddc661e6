"""`max-zimage verify`: a checkpoint beside diffusers, stage by stage, on the machine of whoever has both."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.options import model_path
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.diagnosis.asked import GUIDANCE, Asked
from max_zimage.diagnosis.reference_process import check_installed
from max_zimage.diagnosis.verify import Subject
from max_zimage.diagnosis.verify import verify as compare
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.progress import shown_by
from max_zimage.request.request import GenerationRequest


def verify(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 1 if a stage fails.

    Raises:
        BadInput: If anything is wrong with what is asked for, diffusers is not installed, or memory is insufficient.
        ReferenceFailedError: If diffusers fails.
    """
    with quiet_libraries(arguments.debug) as stdout:
        with checking():
            check_installed()
            subject = Subject(
                model=model_path(arguments.model),
                weight_path=arguments.weight_path,
                device=arguments.device,
                reference=arguments.reference,
            )
            asked = picture(arguments, subject)
        with checking(), shown_by(display(quiet=arguments.quiet or arguments.json)):
            report = compare(subject, asked)
    if arguments.json:
        print(json.dumps(report.to_dict()), file=stdout)
    else:
        print("\n".join(report.lines()), file=stdout)
    return 1 if report.failed else 0


def picture(arguments: argparse.Namespace, subject: Subject) -> Asked:
    """What is drawn, checked as a request is.

    Raises:
        ValueError: If the checkpoint or the device does not do, or a size or the prompt is out of range.
    """
    dtypes: tuple[ModelDtype, ...] = DTYPES if arguments.dtype == "both" else (arguments.dtype,)
    given = given_fields(arguments)
    names = {"height": "height", "width": "width", "num_inference_steps": "steps", "seed": "seed"}
    changed: dict[str, Any] = {ours: given[name] for name, ours in names.items() if name in given}
    checked = subject.checked(dtypes[0])
    channels = checked.sources.specs.transformer.in_channels
    asked = replace(Asked(prompt=arguments.prompt, channels=channels, dtypes=dtypes), **changed)
    request = GenerationRequest.create(
        limits=checked.sources.limits,
        defaults=checked.sources.defaults,
        prompt=asked.prompts[0],
        negative_prompt=asked.prompts[1],
        height=asked.height,
        width=asked.width,
        num_inference_steps=asked.steps,
        seed=asked.seed,
        guidance_scale=GUIDANCE,
    )
    tokens_of_request(request, checked.tokenizer, checked.sources.limits)
    return asked
