"""The adapters (LoRA) of calls that name none, by names as diffusers has them: thin layers over `set_loras`.

An adapter that is active is added to the weights, and one that is not costs nothing but its name. There is no
`fuse_lora`, since adding to the weights is all that is ever done.

Reference: diffusers loaders/lora_base.py and loaders/peft.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from max_zimage.pipeline.bound_adapters import COMPONENTS, BoundAdapters, checked_loras, opened
from max_zimage.pipeline.encoding import Encodes, encode
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.mixed_adapters import LoraSet
from max_zimage.pipeline.parts import Parts
from max_zimage.pipeline.prompt_adapters import PromptAdapters, sets_of_call
from max_zimage.request.loras import SUFFIX, Lora
from max_zimage.request.request import GenerationRequest

_USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")

PathName = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class NamedLoras:
    """Adapters by name.

    Attributes:
        loaded: Name -> adapter, with the scale that it has when it is active.
        active: Names of those that are added, in this order.
        is_enabled: Whether they are at all.
    """

    loaded: dict[str, Lora] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    is_enabled: bool = True

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Those that are added."""
        return tuple(self.loaded[name] for name in self.active) if self.is_enabled else ()

    def known(self, names: str | Sequence[str]) -> list[str]:
        """Names that are loaded.

        Raises:
            ValueError: With those that are not.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        if missing := [name for name in wanted if name not in self.loaded]:
            there = ", ".join(map(repr, self.loaded)) or "none"
            raise ValueError(f"no adapter is loaded as {', '.join(map(repr, missing))}; there are {there}")
        return wanted


class AdapterMethods:
    """What a pipeline has for adapters.

    Attributes:
        adapters: What its components are bound to.
    """

    adapters: BoundAdapters
    sources: CheckpointManifest
    _named_loras = NamedLoras()

    def make_adapters(self) -> None:
        """Begin with the checkpoint's weights."""
        self.adapters = BoundAdapters(cast(Parts, self))

    def set_loras(self, loras: Sequence[Any] = ()) -> None:
        """Have calls that say nothing of adapters use these, and be bound to them at once.

        Args:
            loras: As `loras` of a call: files, pairs of a file and a scale. None of them for the checkpoint's weights.

        Raises:
            RequestError: If a file is not there or a scale is no number.
            AdapterError: If an adapter does not fit. What was set before then still is.
        """
        found = checked_loras(loras, self.sources)
        loaded: dict[str, Lora] = {}
        for each in found:
            loaded[_free_name(Path(each.name).stem, loaded)] = each
        self._use(NamedLoras(loaded=loaded, active=tuple(loaded)))

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: PathName,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
    ) -> None:
        """Load an adapter under a name, and use it in place of those that were active before.

        Args:
            pretrained_model_name_or_path_or_dict: A file, or a folder with one. Nothing is downloaded.
            adapter_name: "default_0" and so on if not given.
            weight_name: The file in the folder, where there are several.

        Raises:
            ValueError: If the name is in use, the file is not there, or it does not fit. Nothing has changed then.
            TypeError: If a state dict is given.
        """
        named = self._named_loras
        if adapter_name in named.loaded:
            raise ValueError(
                f"adapter_name {adapter_name!r} is in use; choose another, or delete_adapters({adapter_name!r}) first"
            )
        (lora,) = checked_loras([_file(pretrained_model_name_or_path_or_dict, weight_name)], self.sources)
        numbers = (f"default_{number}" for number in range(len(named.loaded) + 1))
        name = adapter_name or next(each for each in numbers if each not in named.loaded)
        self._use(replace(named, loaded={**named.loaded, name: lora}, active=(name,), is_enabled=True))

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float | None] | None = None
    ) -> None:
        """Use some of the adapters that are loaded, and no others.

        Args:
            adapter_names: Which ones.
            adapter_weights: Their scales: one for all, or one each; 1 if not given.

        Raises:
            ValueError: If a name is not loaded, there are more or fewer scales than names, or one is no finite number.
        """
        names = self._named_loras.known(adapter_names)
        given = adapter_weights
        weights = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights must be one, or one for each of {len(names)} names, got {len(weights)}")
        before = self._named_loras.loaded
        pairs = [
            (before[name].path, 1.0 if weight is None else weight) for name, weight in zip(names, weights, strict=True)
        ]
        scaled = dict(zip(names, checked_loras(pairs, self.sources), strict=True))
        self._use(replace(self._named_loras, loaded={**before, **scaled}, active=tuple(scaled), is_enabled=True))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that calls use."""
        return [*self._named_loras.active] if self._named_loras.is_enabled else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component -> names of the adapters that are loaded and change it."""
        found = {name: opened(lora, self.sources.specs).modules for name, lora in self._named_loras.loaded.items()}
        listed = {component: [name for name, has in found.items() if has.get(component)] for component in COMPONENTS}
        return {component: names for component, names in listed.items() if names}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters; those of them that are active are used no longer.

        Raises:
            ValueError: If a name is not loaded.
        """
        gone = self._named_loras.known(adapter_names)
        left = {name: lora for name, lora in self._named_loras.loaded.items() if name not in gone}
        active = tuple(name for name in self._named_loras.active if name in left)
        self._use(replace(self._named_loras, loaded=left, active=active))

    def disable_lora(self) -> None:
        """Use none of the adapters until `enable_lora`."""
        self._use(replace(self._named_loras, is_enabled=False))

    def enable_lora(self) -> None:
        """Use those again that were active."""
        self._use(replace(self._named_loras, is_enabled=True))

    def unload_lora_weights(self) -> None:
        """Forget all adapters."""
        self._use(NamedLoras())

    def encode(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None, **settings: Any
    ) -> Any:
        """See `max_zimage.pipeline.encoding.encode`; under the adapters of calls that name none."""
        with self.adapters.using(self.sources.defaults.loras):  # not those of the call before
            return encode(cast(Encodes, self), prompt, negative_prompt, **settings)

    def loras_by_prompt(self, loras: object) -> tuple[LoraSet, ...] | None:
        """See `max_zimage.pipeline.prompt_adapters.sets_of_call`."""
        return sets_of_call(loras, self.sources)

    def prompt_adapters(self, request: GenerationRequest, loras: Sequence[LoraSet] | None) -> PromptAdapters:
        """See `max_zimage.pipeline.prompt_adapters.PromptAdapters`."""
        return PromptAdapters(cast(Parts, self), request, loras)

    def _use(self, named: NamedLoras) -> None:
        self.adapters.settle(named.loras)
        self._named_loras = named
        self.sources = self.sources.with_defaults(loras=named.loras)


def _free_name(wanted: str, taken: dict[str, Lora]) -> str:
    numbered = (wanted if number == 0 else f"{wanted}_{number}" for number in range(len(taken) + 1))
    return next(name for name in numbered if name not in taken)


def _file(given: object, weight_name: str | None) -> Path:
    """The file of an adapter that is named by itself or by its folder."""
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(
            f"an adapter is given as a file, got {type(given).__name__}; save its tensors and name the file"
        )
    path = Path(os.fspath(given))
    if weight_name is not None:
        return path / weight_name
    if not path.is_dir():
        return path
    files = sorted(each.name for each in path.glob(f"*{SUFFIX}"))
    usual = [name for name in _USUAL_NAMES if name in files]
    chosen = files if len(files) == 1 else usual[:1]
    if not chosen:
        raise ValueError(f"{path} holds {', '.join(files) or f'no {SUFFIX} file'}; name the adapter with weight_name=")
    return path / chosen[0]
