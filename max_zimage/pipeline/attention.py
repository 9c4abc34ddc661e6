"""Which attention the graphs of a checkpoint are built with, from what a user says: `plain`, say.

Reference: reference/api.md; `graphs.model.attention_backends` has the ways there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from max.driver import Device
from max.dtype import DType

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.model.attention_backends import Backend as Backend
from max_zimage.graphs.model.attention_backends import available
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.request.configuration.values import attention_of

VARIABLE = "MAX_ZIMAGE_PYTORCH_ATTENTION_BACKEND"
"""The attention where nothing else is said: the configuration's own variable, which a server's worker reads, too."""
COMPONENTS = ("text_encoder", "transformer")
"""Those whose attention can be chosen."""


def with_attention(sources: CheckpointManifest, wish: str | None, devices: Mapping[str, Device]) -> CheckpointManifest:
    """The same checkpoint, with graphs that are built with another attention.

    Args:
        sources: The checkpoint.
        wish: Its name; "" or "auto" for what device and dtype choose, None for what the variable says.
        devices: Component -> where it runs.

    Raises:
        ValueError: If there is no such way on a component's device; names those there are.
    """
    said = _said(wish)
    found = {
        each: backend_of(said, spec_of(each, sources.specs), sources.dtypes[each], devices[each])
        for each in COMPONENTS
        if each in sources.plans
    }
    chosen = {component: backend for component, backend in found.items() if backend}
    return replace(sources, attention=chosen, attention_wish=named_attention(said))


def backend_of(
    name: str | None, spec: TextEncoderSpec | TransformerSpec, dtype: ModelDtype, device: Device
) -> Backend | None:
    """The attention of a component, as its graphs take it; None for the one that they have anyway.

    Args:
        name: As of `with_attention`.
        spec: The component's.
        dtype: That it runs in.
        device: Where it runs.

    Raises:
        ValueError: If there is none of this name here.
    """
    there = available(DType[dtype], device, (spec.head_dim,))
    try:
        known = attention_of(_said(name) or "auto")
    except ValueError as error:
        raise ValueError(f"attention_backend {error}") from error
    if known in ("auto", there[0]):
        return None
    for each in there:
        if each == known:
            return each
    raise ValueError(
        f"attention_backend must be auto or {' or '.join(there)} in {dtype} on {device.label} with heads of "
        f"{spec.head_dim}, got {known!r}"
    )


def named_attention(said: str) -> str:
    """An attention as pictures carry it: empty where device and dtype choose.

    Args:
        said: By a user; a name that is none is refused when the graphs are built.

    >>> named_attention("plain"), named_attention("sdpa")
    ('plain', '')
    """
    try:
        known = attention_of(said or "auto")
    except ValueError:
        return ""
    return "" if known == "auto" else known


def _said(wish: str | None) -> str:
    """A wish, or where there is none what the variable says; empty for nothing."""
    return os.environ.get(VARIABLE, "") if wish is None else wish


def spec_of(component: str, specs: ModelSpecs) -> TextEncoderSpec | TransformerSpec:
    """The spec of one of `COMPONENTS`."""
    return specs.text_encoder if component == "text_encoder" else specs.transformer
