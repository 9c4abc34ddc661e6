"""In which process MAX can be used.

MAX starts its threads when it is imported. A fork has none of them: whatever it asks MAX to compile or to run would
wait for them for ever.
"""

from __future__ import annotations

import os

_HOME = os.getpid()


def check_process() -> None:
    """Say what would otherwise hang.

    Raises:
        RuntimeError: In a fork of the process that imported this.
    """
    if os.getpid() != _HOME:
        raise RuntimeError(
            f"MAX was imported in process {_HOME}, and this is a fork of it, process {os.getpid()}, which has none of "
            'MAX\'s threads; start processes with multiprocessing.get_context("spawn"), or fork before the first '
            "import of max_zimage.ZImagePipeline and load in the child"
        )
