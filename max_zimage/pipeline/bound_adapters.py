"""Which adapters (LoRA) the components are bound to, and how they are bound to others. Nothing is compiled for it.

One set is in memory at a time: its deltas are in the weights, so a step costs what it costs without. Components are
bound to a set when a request comes that asks for another one than is there, and stay so until the next such request.

Reference: llm-dit src/llm_dit/utils/lora.py, which adds to the weights likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NoReturn

from max_zimage.checkpoint.adapters import Adapter, added, open_adapter
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.components import ZImageComponent
from max_zimage.device.dtypes import BYTES
from max_zimage.device.memory import NotEnoughMemoryError, available_memory, check_device_memory
from max_zimage.errors import AdapterError
from max_zimage.host.sizes import sized
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.parts import Parts
from max_zimage.request.fields import ROWS
from max_zimage.request.loras import Lora

COMPONENTS = ("transformer", "text_encoder")
"""That adapters may change."""

Transforms = dict[str, tuple[Transform, ...]]


class NotApplied(AdapterError):
    """Adapters that cannot be added to the weights; the weights are then those of the checkpoint."""


def opened(lora: Lora, specs: ModelSpecs) -> Adapter:
    """Read what an adapter has, and check that it fits the checkpoint; its numbers are not read.

    Args:
        lora: Which one.
        specs: Of the checkpoint.

    Raises:
        AdapterError: If it does not fit, is none, or is another file than when the request was made.
    """
    adapter = open_adapter(Path(lora.path), specs)
    if lora.digest != f"sha256:{adapter.digest}":
        raise AdapterError(f"{lora.path} has changed since it was asked for; ask again")
    return adapter


def checked_loras(given: object, sources: CheckpointManifest, name: str = "loras") -> tuple[Lora, ...]:
    """Check adapters as a request's are checked, and that they fit the checkpoint.

    Args:
        given: As `loras` of a call.
        sources: The checkpoint.
        name: What errors call them.

    Raises:
        RequestError: If a file is not there or a scale is no number; all that is wrong is said together.
        AdapterError: If one does not fit.
    """
    found: tuple[Lora, ...] = ROWS["loras"].kind.check(name, given, sources.limits)
    for each in found:
        opened(each, sources.specs)
    return found


def facts(lora: Lora, specs: ModelSpecs) -> str:
    """What an adapter changes, in words; errors are those of `opened`."""
    adapter = opened(lora, specs)
    counts = [f"{len(found)} of the {name.replace('_', ' ')}" for name, found in adapter.modules.items() if found]
    said = f"adapter {lora.name} at {lora.scale:g}: all its modules applied, {' and '.join(counts) or 'none'}"
    return "; ".join([said, *adapter.notes])


class BoundAdapters:
    """The adapters of one pipeline.

    Args:
        parts: Its components.

    Attributes:
        loras: What they are bound to.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._users = 0
        self._transforms: Transforms = {}
        self.loras: tuple[Lora, ...] = ()

    @contextmanager
    def using(self, loras: tuple[Lora, ...]) -> Iterator[None]:
        """Be bound to some adapters; what began under others, and calls this from a callback, goes on under those.

        Raises:
            NotApplied: As `bind`; also later, of a component that comes back into memory.
        """
        before = self.loras
        self.bind(loras)
        self._users += 1
        try:
            yield
        except NotApplied:
            raise
        except AdapterError as error:
            self._give_up(loras, error)
        finally:
            self._users -= 1
            if self._users:
                self.bind(before)

    def settle(self, loras: tuple[Lora, ...]) -> None:
        """`bind`, but for pictures that are being drawn, which go on under what they began with."""
        if not self._users:
            self.bind(loras)

    def bind(self, loras: tuple[Lora, ...]) -> None:
        """Be bound to some adapters and no others; nothing happens where that is so already.

        Args:
            loras: Whose deltas are added, in this order.

        Raises:
            NotApplied: If a file is not there, does not fit or is another one, or if memory does not suffice. The
                weights are then those of the checkpoint, without any adapter.
        """
        if loras == self.loras and self._holds():
            return
        try:
            self._bind(self._transforms_of(loras))
        except Exception as error:
            self._give_up(loras, error)
        self.loras = loras

    def refusal(self, error: AdapterError) -> NotApplied:
        """Have the checkpoint's weights, after a component that came back has found an adapter changed.

        Args:
            error: What it found.

        Returns:
            What to say of it.
        """
        try:
            self._give_up(self.loras, error)
        except NotApplied as found:
            return found

    def _give_up(self, loras: Sequence[Lora], error: Exception) -> NoReturn:
        """Have the checkpoint's weights, and say why.

        Raises:
            NotApplied: In any case.
        """
        self.loras = ()
        self._bind({}, again=True)
        names = ", ".join(each.name for each in loras)
        raise NotApplied(f"adapters {names or 'cannot be taken away'}: {error}") from error

    def _holds(self) -> bool:
        """Whether no component has given its adapters up, as one does that comes back and finds another file."""
        return not any(self._component(name).gave_up for name in COMPONENTS)

    def _transforms_of(self, loras: Sequence[Lora]) -> Transforms:
        """What happens to the tensors of each component; none of it where no adapter has anything for it."""
        adapters = [(opened(each, self._parts.sources.specs), each.scale) for each in loras]
        return {
            name: (added(adapters, name),)
            for name in COMPONENTS
            if any(adapter.modules.get(name) for adapter, _ in adapters)
        }

    def _bind(self, transforms: Transforms, *, again: bool = False) -> None:
        """Check all components first: what does not fit one of them changes none.

        Args:
            transforms: Of each component.
            again: Whether components are bound whose transforms are those that they should have already.
        """
        wanted = {name: transforms.get(name, ()) for name in COMPONENTS}
        # Also where nothing changes that is loaded now: some layers of the text encoder are read when they are wanted.
        again = again or not self._holds()
        changed = [name for name in COMPONENTS if again or wanted[name] != self._transforms.get(name, ())]
        for name in changed:
            check_rebinding(self._component(name), wanted[name], self._parts.sources)
        for name in changed:
            self._component(name).bind(wanted[name])
        self._transforms = transforms

    def _component(self, name: str) -> ZImageComponent:
        return self._parts.transformer if name == "transformer" else self._parts.text_encoder


def check_rebinding(component: ZImageComponent, transforms: Sequence[Transform], sources: CheckpointManifest) -> None:
    """Refuse what memory does not hold beside the weights that are there, which stay until the others have been made.

    On a CPU that is what changes. The way to an accelerator takes the whole component through the host's memory, and
    where graphs share their weights it is on the device twice for a moment; graphs with copies give theirs up first.

    Raises:
        CheckpointError: If what the transforms make does not fit.
        NotEnoughMemoryError: If it does not fit into memory.
    """
    recipes = {*component.planned(transforms).recipes} - {*component.plan().recipes}
    if not component.is_here or component.leaves_to_bind:  # they are read when wanted, and nothing lies beside them
        return
    changed = sum(prod(each.shape) for each in recipes) * BYTES[component.dtype_name]
    whole, available = component.plan().nbytes(component.dtype_name), available_memory()
    needed = changed if component.device.is_host else whole
    if changed and needed > available:
        raise NotEnoughMemoryError(
            f"other weights need {sized(needed)} beside those that are there, {sized(available)} are available; free "
            "memory"
        )
    if changed and component.shares_weights:
        check_device_memory(sum(sources.nbytes.values()) + whole, component.device)
