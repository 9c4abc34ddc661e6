"""Measurements of this engine against diffusers on one machine: `make bench`, a part by `make bench ARGS="block"`."""
