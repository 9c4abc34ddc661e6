"""One compiled graph as the table in `max_zimage.compile.registry` has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from max.dtype import DType
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType

from max_zimage.compile import counting
from max_zimage.compile.counting import Counter, Shapes
from max_zimage.compile.work import Work
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.layers import build
from max_zimage.graphs.linear import Storage as Storage
from max_zimage.graphs.linear import stored_as
from max_zimage.graphs.model.attention_backends import Backend, attending_with

ComponentName = Literal["text_encoder", "transformer", "vae", "diffusion_gemma"]
EVERY_COMPONENT: tuple[ComponentName, ...] = get_args(ComponentName)
"""Of Z-Image, and the model that writes text."""
Made = tuple[Module[..., Any], tuple[TensorType, ...]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One graph.

    Attributes:
        name: What progress, profiles, artifacts and `max-zimage compile` call it.
        component: Whose spec it is made from, and whose weights it has if it has any.
        make: The spec to the Module.
        label: What people call it in a profile.
        runs: When it runs, for the documentation.
        count: Counts the work of one call.
        is_keyed: Whether the spec decides what is compiled, beside the types; if not, all models share it.
        is_float32: Whether it is float32 whatever the model's dtype.
        prefix: What stands before the component's names of its parameters.
        is_replayed: See `max_zimage.compile.compiler.GraphDefinition`.
        is_ahead: Whether it is compiled ahead of time; one that differs from another in nothing but a block is not, nor
            one that a CPU alone has.
        is_numbered: Whether there is one for each unit of the decoder, whose number is behind the name; without one it
            is that of the last.
        is_meshed: Whether it runs on several devices, and is made from a `graphs.model.mesh_spec.MeshSpec`.
        is_of_one_row: Whether it takes one branch row at a time, which groups of devices cannot share.
    """

    name: str
    component: ComponentName
    make: Callable[[Any], Module[..., Any]]
    label: str
    runs: str
    count: Callable[[Counter, Shapes], Work | None] = counting.not_counted
    is_keyed: bool = True
    is_float32: bool = False
    prefix: str = ""
    is_replayed: bool = False
    is_ahead: bool = True
    is_numbered: bool = False
    is_meshed: bool = False
    is_of_one_row: bool = False

    def module(
        self,
        spec: object,
        model_dtype: ModelDtype,
        device: DeviceRef,
        storage: Storage | None = None,
        attention: Backend | None = None,
    ) -> Made:
        """The Module and the types of its inputs.

        Args:
            spec: The component's.
            model_dtype: Of its weights and computation.
            device: Where it will run.
            storage: How its matrices are kept; None for the dtype.
            attention: How attention is computed; None for what dtype and device choose.
        """
        dtype = DType.float32 if self.is_float32 else DType[model_dtype]
        with stored_as(storage), attending_with(attention):
            module: Any = build(lambda: self.make(spec), dtype, device)
        return module, tuple(module.input_types(dtype, device))

    def key_of(self, spec: object, attention: Backend | None = None) -> object:
        """The spec, with an attention that was chosen, as `max_zimage.compile.artifacts.artifact_key` takes it."""
        own = spec if self.is_keyed else None
        return own if attention is None else (own, attention)
