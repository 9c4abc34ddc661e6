"""The HTTP server: `max-zimage serve`, and what the worker of `max serve` runs.

    client -> routes -> dispatcher (queue, limits) -> MAX's worker process -> scheduler (steps shared by requests)

The worker process, its queues and its messages are MAX's; the scheduler in it and the routes are the project's own.
"""
