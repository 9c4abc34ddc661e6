"""A job of `max-zimage batch` from its flags: its file looked through, its checkpoint checked, and who draws."""

from __future__ import annotations

import argparse
import os
import secrets
from dataclasses import replace
from typing import Any

from max_zimage import embedded
from max_zimage.batch.columns import check_columns
from max_zimage.batch.drawing import Drawing
from max_zimage.batch.jobs import Executor, Job
from max_zimage.batch.local import Local
from max_zimage.batch.output import Output
from max_zimage.batch.planning import Planner
from max_zimage.batch.ray_data import Cluster, RayData
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.source import Source
from max_zimage.cli.batch_settings import settings_of
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.options import model_path
from max_zimage.cli.placement_flags import placement_options
from max_zimage.pipeline.zimage import ZImagePipeline

_TOGETHER, _TOGETHER_ON_CPU = 4, 1  # pictures a batch: one keeps a CPU as busy as four


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `ZImagePipeline.prepare`."""
    configuration = arguments.configuration
    return {
        "model": model_path(arguments.model),
        "device": arguments.device,
        "dtype": arguments.dtype or "auto",
        "weight_path": arguments.weight_path,
        "templates_dir": arguments.templates_dir,
        "quantize": arguments.quantize,
        "attention_backend": arguments.attention_backend,
        "embedding_cache_bytes": arguments.embedding_cache,
        # Without the keys that it was read by, which cannot go to another process and have nothing to say there.
        "config": replace(configuration, keys={}),
        **placement_options(arguments),
    }


def job_of(arguments: argparse.Namespace) -> Job:
    """The job.

    Raises:
        ValueError: If anything is wrong with what is asked for as a whole.
    """
    _check_one_device(arguments)
    source = Source(arguments.file, arguments.id_column)
    survey = source.survey()
    if survey.is_openai:
        _check_openai(arguments)
    else:
        columns = survey.columns - {source.id_name if survey.has_ids else ""}
        check_columns(arguments.file, columns, survey.anywhere, arguments.ignore)
    options, defaults = options_of(arguments), given_fields(arguments)
    if arguments.ray is not None:  # this machine draws nothing, and may have no such device
        places = placement_options(arguments)
        options = {name: value for name, value in options.items() if name not in places} | {"device": "cpu"}
    model, prepared = arguments.model or embedded.NAME, ZImagePipeline.prepare(**options)
    on_cpu = arguments.ray is None and prepared.devices[0].is_host
    planner = Planner(
        prepared=prepared,
        defaults=defaults,
        ignored=arguments.ignore,
        batch_pictures=arguments.batch_pictures or (_TOGETHER_ON_CPU if on_cpu else _TOGETHER),
        model=model,
        is_openai=survey.is_openai,
    )
    return Job(
        source=source,
        survey=survey,
        planner=planner,
        book=RecordBook(Output(arguments.output), secrets.token_hex(8)),
        form=arguments.format,
        window_rows=arguments.shard_rows,
        max_errors=arguments.max_errors,
        retry_failed=arguments.retry_failed,
        settings=settings_of(arguments, model, defaults),
    )


def _check_one_device(arguments: argparse.Namespace) -> None:
    """Refuse several devices on a cluster, whose actors have a GPU each, see no other and draw pictures of their own.

    Raises:
        ValueError: If they are named.
    """
    named = arguments.devices or arguments.split
    if arguments.ray is not None and named:
        flag = f"--{'devices' if arguments.devices else 'split'} {named if isinstance(named, str) else ','.join(named)}"
        raise ValueError(
            f"{flag} and --ray exclude each other: of a cluster each GPU draws by itself; leave one out, or give "
            "--device auto where a configuration names them"
        )


def _check_openai(arguments: argparse.Namespace) -> None:
    """Refuse flags that would do nothing: such a file has the columns that it has.

    Raises:
        ValueError: If one is given.
    """
    given = {"--id-column": arguments.id_column is not None, "--ignore": bool(arguments.ignore)}
    for flag in (flag for flag, is_given in given.items() if is_given):
        raise ValueError(f"{flag}: {arguments.file} is a batch file of OpenAI's, named by custom_id; leave it out")


def executor_of(arguments: argparse.Namespace, job: Job) -> Executor:
    """Who draws it.

    Raises:
        ValueError: If a cluster cannot be reached.
    """
    drawing = Drawing(
        options=options_of(arguments),
        url=job.output.url,
        run=job.book.run,
        metadata=not arguments.no_metadata,
    )
    if arguments.ray is not None:
        cluster = Cluster(
            address=arguments.ray,
            workers=arguments.workers or 0,
            has_relative=any(_is_relative(each) for each in _loaded(arguments)),
        )
        return RayData(drawing, cluster)
    return Local(drawing, arguments.workers or 1, debug=arguments.debug)


def _loaded(arguments: argparse.Namespace) -> list[str]:
    """What processes that draw read, as it is named."""
    named = [arguments.model, arguments.templates_dir, *(arguments.weight_path or ())]
    return [str(each) for each in named if each is not None]


def _is_relative(name: str) -> bool:
    return not os.path.isabs(name) and os.path.exists(name)
