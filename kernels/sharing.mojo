"""How the tasks of an op are shared out among the cores, and when they are not: waking another core takes longer than a
little work.

Work is counted in numbers that are read, changed and written, of which a core does about one per nanosecond.
"""

from max.algorithm import sync_parallelize
from std.sys.info import num_physical_cores

comptime TASKS_PER_CORE = 4  # a core that another program takes away holds up a part of the work only
comptime LITTLE = 1 << 14  # numbers: about what waking another core takes
comptime PRODUCTS = 64  # multiplied and added in the time of one number


@always_inline
def share_out[Work: def(Int) -> None](work: Work, tasks: Int, numbers: Int):
    """Run work(0) to work(tasks - 1): on all cores, or here if it is little.

    Parameters:
        Work: Its type.

    Args:
        work: A task of the given number; they may run at the same time, in any order.
        tasks: How many.
        numbers: How much they do in all.
    """
    if numbers < LITTLE:
        for task in range(tasks):
            work(task)
    else:
        sync_parallelize(work, tasks)


def tasks_for(parts: Int) -> Int:
    """How many tasks equal parts are put together to.

    Args:
        parts: How many there are.

    Returns:
        At most `parts`.
    """
    return min(parts, TASKS_PER_CORE * num_physical_cores())
