"""A child process that never outlives its parent, however that ends.

On Linux the kernel ends the child; that is at once, and whatever its threads do. Everywhere the child watches a pipe
whose other end its parent holds: its end of file says that the parent is gone, also where that was before the child
could ask the kernel for anything.

Reference: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

PARENT_VARIABLE = "MAX_ZIMAGE_SERVER_PROCESS"
"""Names the process whose worker inherits it."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(pipe: int) -> None:
    """End this process when its parent does.

    On Linux also when the thread of the parent ends that has started this process: it must be one that waits for it.

    Args:
        pipe: A descriptor to read from, of which nothing more is to come than its end of file.
    """
    _ask_kernel()
    threading.Thread(target=_watch, args=(pipe,), name="lifeline", daemon=True).start()


def end_with_named_parent() -> None:
    """End this process with its parent if the environment names that one; on Linux only, and `end_with_parent` after.

    A spawned process imports the program's main module before it is told what to do, and MAX in between, which takes
    seconds. This is for the main module.
    """
    if os.environ.get(PARENT_VARIABLE) == str(os.getppid()):
        _ask_kernel()


def _ask_kernel() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _watch(pipe: int) -> None:
    select.select([pipe], [], [])
    os._exit(1)  # nobody is left to be told anything, and the usual way out waits for threads that compile
