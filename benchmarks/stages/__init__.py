"""Measurements at the full size, in stages of a few minutes each: for a GPU that is there only for a while."""
