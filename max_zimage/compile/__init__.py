"""Graphs from definitions to compiled artifacts, here or ahead of time, and what they launch."""
