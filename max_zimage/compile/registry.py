"""Every compiled graph, once: its Module, what it is made from, what people call it, and how its work is counted.

Components, ahead-of-time compilation, the profiler and tests go by this table; a new graph is an entry here and its
Module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from max.experimental.nn import Module
from max.graph import DeviceRef

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile import counting
from max_zimage.compile.counting import Counter
from max_zimage.compile.entry import Entry, Storage
from max_zimage.compile.entry import Made as Made
from max_zimage.compile.gemma_entries import GEMMA
from max_zimage.compile.step_entries import STEPS
from max_zimage.compile.text_entries import TEXT
from max_zimage.compile.tile_entries import TILES
from max_zimage.compile.work import Work
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.model.attention_backends import Backend
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.model.vae import DecodeLatents, EncodeImage
from max_zimage.graphs.step.advance import PrepareScheduler, SchedulerStep

GRAPHS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="pack",
            component="transformer",
            make=lambda spec: PackLatents(spec.in_channels),
            label="pack",
            runs="once per request",
            count=counting.count_pack,
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="prepare_scheduler",
            component="transformer",
            make=lambda _: PrepareScheduler(),
            label="prepare_scheduler",
            runs="not in a picture; a method of MAX's contract",
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="scheduler_step",
            component="transformer",
            make=lambda _: SchedulerStep(),
            label="scheduler_step",
            runs="not in a picture; a method of MAX's contract",
            count=counting.count_scheduler_step,
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="modulation",
            component="transformer",
            make=ModulationTable,
            label="modulation table",
            runs="once per request",
            count=counting.count_modulation,
        ),
        Entry(
            name="conditioning",
            component="transformer",
            make=CaptionConditioning,
            label="conditioning",
            runs="once per request",
            count=counting.count_conditioning,
        ),
        *TEXT,
        *STEPS,
        Entry(
            name="decode",
            component="vae",
            make=DecodeLatents,
            label="VAE decode",
            runs="once per request, at its end",
            count=counting.count_decode,
        ),
        Entry(
            name="encode",
            component="vae",
            make=EncodeImage,
            label="VAE encode",
            runs="once per request of image-to-image",
        ),
        *TILES,
        *GEMMA,
    )
}
"""Name -> graph, the quick ones first."""

AHEAD = tuple(name for name, entry in GRAPHS.items() if entry.is_ahead and not entry.is_meshed)
"""What is compiled ahead of time."""
MESHED = tuple(name for name, entry in GRAPHS.items() if entry.is_ahead and entry.is_meshed)
"""What is compiled besides where the transformer runs on several devices."""


def find_entry(name: str) -> Entry | None:
    """The entry of a graph, also of one that has a number behind its entry's name; None if there is no such graph."""
    base, _, number = name.rpartition("_")
    entry = GRAPHS.get(base)
    if name in GRAPHS or entry is None or not entry.is_numbered or not number.isdecimal():
        return GRAPHS.get(name)
    make: Callable[..., Module[..., Any]] = entry.make
    return replace(entry, name=name, make=partial(make, unit=int(number)))


def entry_of(name: str) -> Entry:
    """The entry of a graph that there is, see `find_entry`.

    Raises:
        KeyError: If there is none of this name.
    """
    entry = find_entry(name)
    if entry is None:
        raise KeyError(name)
    return entry


class Mesh(NamedTuple):
    """How many devices a graph that runs on several is made for, see `graphs.model.mesh_spec.MeshSpec`.

    Attributes:
        devices: The first so many.
        groups: Of them.
    """

    devices: int
    groups: int


ONE = Mesh(devices=1, groups=1)
"""Without graphs that run on several."""
TWO = Mesh(devices=2, groups=1)
"""Of graphs that are made for no mesh in particular."""


def spec_of(name: str, specs: ModelSpecs, mesh: Mesh = TWO) -> object:
    """The spec of a graph's component, for a mesh where it runs on one."""
    spec = getattr(specs, GRAPHS[name].component)
    if not GRAPHS[name].is_meshed:
        return spec
    return MeshSpec(transformer=spec, places=tuple(range(mesh.devices)), groups=mesh.groups)


def made(
    name: str,
    specs: ModelSpecs,
    model_dtype: ModelDtype,
    device: DeviceRef,
    attention: Backend | None = None,
    mesh: Mesh = TWO,
    storages: Mapping[str, Storage] | None = None,
) -> Made:
    """The Module of a graph of a model, and the types of its inputs; see `Entry.module`."""
    entry = GRAPHS[name]
    storage = (storages or {}).get(entry.component)
    return entry.module(spec_of(name, specs, mesh), model_dtype, device, storage, attention)


def key_of(name: str, specs: ModelSpecs, attention: Backend | None = None, mesh: Mesh = TWO) -> object:
    """What a graph of a model is made from, see `Entry.key_of`; the autoencoder's attention is chosen by no one."""
    chosen = None if GRAPHS[name].component == "vae" else attention
    return GRAPHS[name].key_of(spec_of(name, specs, mesh), chosen)


def count(counter: Counter, name: str, shapes: Sequence[tuple[int, ...]]) -> Work | None:
    """Count the work of one call; None for a graph that is not counted, or not in this table."""
    entry = find_entry(name)
    return None if entry is None else entry.count(counter, shapes)
