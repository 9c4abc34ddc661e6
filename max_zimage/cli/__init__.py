"""The command `max-zimage`."""
