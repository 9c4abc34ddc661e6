"""The flags of `max-zimage batch`; apart from the command, which imports MAX."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage.cli.common import at_least_one
from max_zimage.cli.field_flags import add_group
from max_zimage.cli.model_flags import add_cache, add_model
from max_zimage.cli.other_flags import add_others

NOT_OF_JOBS = ("latents", "denoising_start", "denoising_end", "features", "resize")
"""Fields of a request that no default of a whole job can say."""
FORMATS = ("files", "parquet", "webdataset")
SHARD_ROWS = 512


def add_batch(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "batch",
        parents=[shared],
        allow_abbrev=False,
        help="draw a file of requests, on this machine or a Ray cluster",
        description="Draw a file of requests: a row a picture, a column a field. Ended at any moment and started "
        "again, it goes on. Flags of a picture are for rows that do not say them.",
    )
    parser.add_argument(
        "file", metavar="FILE", help=".parquet, .jsonl or .csv; a path or a URL, or OpenAI's batch file"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="a folder or a URL that fsspec knows")
    help = "pictures as one file each, in the tables, or in .tar shards; files if not given"
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=help)
    parser.add_argument("--no-metadata", action="store_true", help="pictures hold pixels alone")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    _add_job(parser)
    add_group(parser, "the picture")
    add_group(parser, "image-to-image", NOT_OF_JOBS)
    add_group(parser, "passes")
    add_group(parser, "guidance")
    tuning = add_group(parser, "fine tuning", NOT_OF_JOBS)
    tuning.add_argument("--templates-dir", metavar="DIR", help="templates of your own, before the shipped ones")
    add_cache(tuning, None)
    add_model(parser)
    add_others(parser)


def _add_job(parser: argparse.ArgumentParser) -> None:
    job = parser.add_argument_group("the job")
    job.add_argument("--id-column", metavar="NAME", help="of the ids; id if there is one, or else rows are counted")
    job.add_argument(
        "--ignore", action="append", default=[], metavar="COLUMN", help="a column that is no field; repeatable"
    )
    help = "end when more pictures than these have failed; never if not given"
    job.add_argument("--max-errors", type=_not_negative, metavar="N", help=help)
    help = "draw again what failed in earlier runs, as where a picture could not be fetched"
    job.add_argument("--retry-failed", action="store_true", help=help)
    job.add_argument(
        "--batch-pictures",
        type=at_least_one,
        metavar="N",
        help="pictures that share their steps, and are drawn again together when a process ends; 4, or 1 on a CPU",
    )
    job.add_argument(
        "--shard-rows",
        type=at_least_one,
        metavar="N",
        default=SHARD_ROWS,
        help=f"rows of a table or shard, among which batches are put together; {SHARD_ROWS} if not given",
    )
    job.add_argument(
        "--workers", type=at_least_one, metavar="N", help="processes that draw; 1, or of a cluster one a GPU or node"
    )
    job.add_argument("--ray", metavar="ADDRESS", help="draw on a Ray cluster: auto, HOST:PORT, or local for one here")


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {number}")
    return number
