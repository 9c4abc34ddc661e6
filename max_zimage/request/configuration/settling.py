"""Keys and values to what they act on: types and values checked, later ones before earlier ones, all problems told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from max_zimage.errors import RequestError, Wording
from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import SWITCHED
from max_zimage.request.configuration.profiles import Said
from max_zimage.request.configuration.values import TOKENS_KEPT
from max_zimage.request.dype_fields import DYPE_OFF, VISION_YARN
from max_zimage.request.fields import ROWS
from max_zimage.request.kinds import Kind, Text, Texts
from max_zimage.request.limits import Limits

ANY = Limits(max_height=2**24, max_width=2**24, max_tokens=2**24, latent_channels=16, caption_dim=2560, num_layers=1000)
"""Limits of no checkpoint: what is left to check is what holds for all of them."""
_ENTRIES = 100  # prompts that llm-dit keeps
_UNSAID: Mapping[str, tuple[object, ...]] = {"devices": ("", []), "split": ("auto",), "max_memory": ("",)}
"""Values that say nothing: a profile has them where it takes back what another one says."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value in force.

    Attributes:
        value: As its target takes it.
        origin: Where it was said.
        name: What messages call it.
    """

    value: Any
    origin: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What all that was said comes to.

    Attributes:
        fields: Argument of a request -> its value where a request says nothing.
        start: What a model is loaded with -> its value; see `started`.
        server: Attribute of the arguments of `max-zimage serve` -> its value.
        notes: Lines that answer keys which have no effect.
        said: Key -> what was said, for each key that something says.
    """

    fields: Mapping[str, Setting] = field(default_factory=dict)
    start: Mapping[str, Setting] = field(default_factory=dict)
    server: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    said: Mapping[tuple[str, str], Setting] = field(default_factory=dict)


def settle(layers: Sequence[Iterable[Said]], problems: list[str]) -> Settled:
    """Take together what several places say.

    Args:
        layers: The last one comes first.
        problems: Gets what is wrong.
    """
    found: dict[str, Said] = {}
    values: dict[str, Setting] = {}
    notes: list[str] = []
    for layer in _awake(layers, notes):
        here: dict[str, Said] = {}
        for said in layer:
            target = f"{said.key.section}.{said.key.name}" if said.key.way in ("idle", "absent") else said.key.target
            if target in here:
                problems.append(f"{said.name} and {here[target].name} are one setting; leave one out")
            here[target] = said
        found |= here
    for target, said in found.items():
        try:
            values[target] = Setting(value=_checked(said.key, said.value, notes), origin=said.origin, name=said.name)
        except RequestError as error:
            problems.append(error.said(Wording({said.key.target: said.name})))
        except ValueError as error:
            problems.append(f"{said.name} {error}")
    by_way: dict[str, dict[str, Setting]] = {way: {} for way in ("field", "start", "server", "idle", "absent")}
    for target, value in values.items():
        by_way[found[target].key.way][target] = value
    _switch(by_way["field"], found, notes)
    return Settled(
        fields=by_way["field"],
        start=started(by_way["start"], problems),
        server=by_way["server"],
        notes=tuple(dict.fromkeys(notes)),
        said={(said.key.section, said.key.name): values[target] for target, said in found.items() if target in values},
    )


def _awake(layers: Sequence[Iterable[Said]], notes: list[str]) -> list[list[Said]]:
    """All that does not wait for a key that no place has as true; of the others a line is said."""
    kept = [list(layer) for layer in layers]
    said = {(each.key.section, each.key.name): each.value for layer in kept for each in layer}
    for number, layer in enumerate(kept):
        waiting = [each for each in layer if each.key.waits_for and said.get(_awaited(each)) is not True]
        notes += [f"{each.name} waits: [{each.key.section}] {each.key.waits_for} is not true" for each in waiting]
        kept[number] = [each for each in layer if each not in waiting]
    return kept


def _awaited(said: Said) -> tuple[str, str]:
    return said.key.section, said.key.waits_for


def _checked(key: Key, value: object, notes: list[str]) -> Any:
    """A value as its target takes it.

    Raises:
        ValueError: If it does not do; a RequestError names the field.
    """
    key.check_type(value)
    if key.way in ("idle", "absent"):
        if key.off is not None and value not in key.off and key.way == "absent":
            raise ValueError(f"asks for what there is not: {key.sentence}")
        if key.off is None or value not in key.off:
            notes.append(key.sentence)
        return value
    if value in key.others:
        notes.append(key.sentence)
    if key.convert is not None:
        value = key.convert(value)
    return _checked_field(key.target, value) if key.way == "field" and key.target in ROWS else value


def _checked_field(name: str, value: object) -> Any:
    kind = ROWS[name].kind
    is_written = type(kind).of_flag is not Kind.of_flag or type(kind).read is not Kind.read
    if isinstance(value, str) and is_written:
        value = kind.read(value)
    if isinstance(kind, (Text, Texts)):
        kind = Text()
    kind.check(name, value, ANY)
    return value


def _switch(fields: dict[str, Setting], said: Mapping[str, Said], notes: list[str]) -> None:
    """Turn the sections that have `enabled` off where it does not say true, as llm-dit does."""
    for section in SWITCHED:
        enabled, off = ("dype_enabled", DYPE_OFF) if section == "dype" else ("slg", False)
        within = [each for each in said.values() if each.key.section == section and each.key.way == "field"]
        if not within:
            continue
        switch = fields.get(enabled)
        if switch is None:
            notes.append(f"{within[0].name} waits: [{section}] enabled is not true")
            switch = Setting(value=False, origin=f"[{section}] without enabled", name=f"[{section}] enabled")
        fields.pop(enabled, None)
        if section == "slg":
            fields["slg"] = switch
            continue
        method = fields.pop("dype_method", None)
        value = (method.value if method else VISION_YARN) if switch.value else off
        if "dype" not in fields:
            fields["dype"] = Setting(value=value, origin=switch.origin, name=switch.name)


def started(given: Mapping[str, Setting], problems: list[str]) -> dict[str, Setting]:
    """What a model is loaded with, under the names of `ZImagePipeline.from_pretrained`; `model` is its first argument.

    Args:
        given: Settings under the targets of the table of keys.
        problems: Gets what does not go together.
    """
    left = {name: value for name, value in given.items() if name in ("templates_dir", "model") and value.value}
    left |= {name: given[name] for name in ("device", "dtype", "weight_path", "attention_backend") if name in given}
    left |= {"no_metadata": given["no_metadata_at_all"]} if "no_metadata_at_all" in given else {}
    left |= _places(given)
    dtype, other = given.get("dtype"), given.get("encoder_dtype")
    if other is not None and dtype is not None and other.value != dtype.value:
        problems.append(
            f"{other.name} is {other.value} and {dtype.name} is {dtype.value}: all components run in one dtype; give "
            "both the same, or leave one out"
        )
    elif other is not None:
        left["dtype"] = other
    left |= _storages(given) | _cache(given) | _loras(given, problems) | _enhancer(given, problems)
    return left


def _places(given: Mapping[str, Setting]) -> dict[str, Setting]:
    """Where components run, and which of them stay; a component's device that is auto says nothing, see `_UNSAID`."""
    devices = ("encoder_device", "dit_device", "vae_device")
    left = {name: given[name] for name in devices if name in given and given[name].value != "auto"}
    others = [name for name in ("placement", "max_memory", "devices", "split") if name in given]
    left |= {name: given[name] for name in others if given[name].value not in _UNSAID.get(name, ())}
    spellings = ("offload", "offload_2", "offload_3", "offload_4")
    asked = [given[name] for name in spellings if name in given and given[name].value]
    return left | ({"cpu_offload": asked[0]} if asked else {})


def _storages(given: Mapping[str, Setting]) -> dict[str, Setting]:
    """`quantize`, in words, of the keys that say it together: none, where each of them says nothing."""
    names = [name for name in ("quantize", *(f"encoder_storage{bits}" for bits in ("", "_8", "_4"))) if name in given]
    words = []
    for name in names:
        value = given[name].value
        words += [value if name == "quantize" else f"text_encoder={value}"] if value else []
    if not names:
        return {}
    first = given[names[0]]
    return {"quantize": Setting(value=",".join(words), origin=first.origin, name=first.name)} if words else {}


def _cache(given: Mapping[str, Setting]) -> dict[str, Setting]:
    wanted, entries = given.get("embedding_cache"), given.get("cache_size")
    if wanted is None:
        return {}
    value = wanted.value
    if isinstance(value, bool):
        value = (entries.value if entries else _ENTRIES * TOKENS_KEPT) if value else 0
    return {"embedding_cache_bytes": Setting(value=value, origin=wanted.origin, name=wanted.name)}


def _enhancer(given: Mapping[str, Setting], problems: list[str]) -> dict[str, Setting]:
    """What is said of the enhancer, by the names of `max_zimage.enhancer.settings.EnhancerSettings`."""
    said = {name.removeprefix("enhancer_"): each for name, each in given.items() if name.startswith("enhancer_")}
    said = {name: each for name, each in said.items() if each.value != ""}
    by_api = given.get("rewriter_use_api")
    if by_api is not None and by_api.value and "model" not in said:
        problems.append(f"{by_api.name} asks for an API and there is none; give [rewriter] api_url, or leave it out")
    if not said:
        return {}
    first = next(iter(said.values()))
    values = {name: each.value for name, each in said.items()}
    return {"enhancer": Setting(value=values, origin=first.origin, name=first.name)}


def _loras(given: Mapping[str, Setting], problems: list[str]) -> dict[str, Setting]:
    paths, scales = given.get("lora_paths"), given.get("lora_scales")
    if paths is None or not paths.value:
        if scales is not None and scales.value:
            problems.append(f"{scales.name} has scales of no adapter; give [lora] paths too, or leave it out")
        return {}
    numbers = scales.value if scales and scales.value else [1.0] * len(paths.value)
    if len(numbers) != len(paths.value):
        problems.append(
            f"{scales.name if scales else ''} must hold one scale for each of the {len(paths.value)} paths, got "
            f"{len(numbers)}"
        )
    pairs = list(zip(paths.value, numbers, strict=False))
    return {"loras": Setting(value=pairs, origin=paths.origin, name=paths.name)}
