"""Errors that callers catch, and that packages which do not import each other raise alike."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be run; the message is meant for the person who made it."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says which file or tensors, and why."""
