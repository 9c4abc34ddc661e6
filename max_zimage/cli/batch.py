"""`max-zimage batch`: everything is checked, then drawn and recorded picture by picture."""

from __future__ import annotations

import argparse
import json
import sys
import time

from max_zimage.batch.extra import parquet
from max_zimage.batch.jobs import Counts
from max_zimage.batch.output import RESULTS
from max_zimage.cli.batch_job import executor_of, job_of
from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.progress import shown_by

_PATIENCE = "The first run of a model compiles its graphs, which takes minutes; later runs take them from disk."


def batch(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 0 also where pictures failed, which their records say.

    Raises:
        BadInput: If anything is wrong with what is asked for as a whole; before anything is compiled.
        JobError: If the job cannot go on.
    """
    begin = time.perf_counter()
    with quiet_libraries(arguments.debug) as stdout:
        with checking():
            parquet()
            job = job_of(arguments)
        with checking(), shown_by(display(quiet=arguments.quiet, note=_PATIENCE)):
            counts = job.run(executor_of(arguments, job))
    seconds = time.perf_counter() - begin
    if arguments.json:
        print(_json(arguments, counts, seconds))
    elif not arguments.quiet:
        failed = f", {counts.failed} failed: column error of {RESULTS}" if counts.failed else ""
        print(f"{arguments.output}: {counts.pictures} pictures{failed}", file=stdout)
    if counts.failed and arguments.quiet:
        print(f"max-zimage: warning: {counts.failed} pictures failed", file=sys.stderr)
    return 0


def _json(arguments: argparse.Namespace, counts: Counts, seconds: float) -> str:
    return json.dumps(
        {
            "output": arguments.output,
            "rows": counts.rows,
            "pictures": counts.pictures,
            "drawn_now": counts.drawn,
            "failed": counts.failed,
            "seconds": round(seconds, 3),
        }
    )
