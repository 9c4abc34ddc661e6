"""Where components are to run and what is to stay in memory, as people write it.

Reference: `reference/weights.md` section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from max_zimage.device.devices import device_name, device_spec
from max_zimage.device.mesh import groups_of, mesh_names
from max_zimage.device.plans import HOST, PLACEMENTS, STAGES, Wish
from max_zimage.errors import RequestError
from max_zimage.host.sizes import read_size

_IDLE_OFFLOAD = "cpu_offload is configured and has no effect here, where "
_IDLE_ON_HOST = f"{_IDLE_OFFLOAD}all components run on the CPU"
_IDLE_ON_MESH = f"{_IDLE_OFFLOAD}several devices hold all of their weights"


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What is asked for, as people write it; see `ZImagePipeline.from_pretrained`.

    Attributes:
        device: Where components run for which nothing else is said.
        placement: "auto", "resident", "sequential" or "streamed".
        max_memory: Bytes, or a size such as "8GiB"; None for all there is.
        encoder_device: Of the text encoder; None for `device`.
        dit_device: Of the transformer.
        vae_device: Of the autoencoder.
        cpu_offload: llm-dit's word for "sequential" on an accelerator.
        devices: Several that the transformer is to run on together, as `max_zimage.device.mesh.mesh_names` reads them;
            the first one has the other components, too, where nothing else is said.
        split: What these share, "auto", "tokens" or "branches".
        is_offload_configured: Whether a configuration says that, which may be one for several machines: where all
            components run on the CPU, or several devices share the transformer, it then has no effect, and is no
            mistake.
    """

    device: str = "auto"
    placement: str = "auto"
    max_memory: int | str | None = None
    encoder_device: str | None = None
    dit_device: str | None = None
    vae_device: str | None = None
    cpu_offload: bool = False
    devices: str | Sequence[str] | None = None
    split: str | None = None
    is_offload_configured: bool = False

    def read(self) -> Wish:
        """Check all of it.

        Raises:
            RequestError: With everything that is wrong; nothing is read before.
        """
        problems: list[Any] = []
        given = {"encoder_device": self.encoder_device, "dit_device": self.dit_device, "vae_device": self.vae_device}
        named = {field: name for field, name in given.items() if name is not None}
        found: dict[str, str] = {}
        mesh = self._mesh(problems)
        main = {"device": mesh[0] if mesh else self.device}
        for field, name in {**main, **named}.items():
            try:
                found[field] = device_name(device_spec(name, field))
            except RequestError as error:
                problems += error.problems
        if self.placement not in PLACEMENTS:
            problems.append(f"placement must be {', '.join(PLACEMENTS)}, got {self.placement!r}")
        limit = None
        try:
            limit = _bytes(self.max_memory)
        except ValueError as error:
            problems.append(f"max_memory {error}")
        devices = [found.get(field, found.get("device", HOST)) for field in given]
        on_host = {*devices} == {HOST}
        is_idle = self.cpu_offload and self.is_offload_configured and (on_host or bool(mesh))
        offloads = self.cpu_offload and not is_idle
        if offloads and on_host and not problems:
            problems.append(
                "cpu_offload has components wait in the CPU's memory until an accelerator needs them, and all run on "
                'the CPU here; leave it out, or take placement="sequential" to have weights leave after their stage'
            )
        if offloads and self.placement in ("resident", "streamed"):
            problems.append(f'cpu_offload and placement="{self.placement}" exclude each other; leave one out')
        if problems:
            raise RequestError(*problems)
        kept = {"encoder_device": "text_encoder", "dit_device": "transformer", "vae_device": "vae"}
        asked = next(each for each in PLACEMENTS if each == self.placement)
        return Wish(
            placement="sequential" if offloads else "resident" if mesh else asked,
            mesh=mesh,
            split=self.split or "auto",
            devices=dict(zip(STAGES, devices, strict=True)),
            named=frozenset(kept[field] for field in named),
            max_memory=limit,
            notes=(_IDLE_ON_MESH if mesh else _IDLE_ON_HOST,) if is_idle else (),
        )

    def _mesh(self, problems: list[Any]) -> tuple[str, ...]:
        """The devices that compute together; what is wrong with them goes to the problems."""
        if self.devices is None:
            if self.split not in (None, "auto"):
                problems.append("split says what several devices share, and none are named; name them with devices")
            return ()
        alone = {
            "device": self.device != "auto",
            "dit_device": self.dit_device is not None,
            f'placement="{self.placement}"': self.placement in ("sequential", "streamed"),
            "cpu_offload": self.cpu_offload and not self.is_offload_configured,
        }
        problems += [f"devices and {name} exclude each other; leave one out" for name, given in alone.items() if given]
        try:
            names = mesh_names(self.devices)
            groups_of(self.split or "auto", len(names), is_guided=False)
        except RequestError as error:
            problems += error.problems
            return ()
        return names


def _bytes(given: int | str | None) -> int | None:
    if given is None:
        return None
    if isinstance(given, str):
        given = read_size(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise ValueError(f"must be a number of bytes or a size such as 8GiB, got {given!r}")
    if given < 1:
        raise ValueError(f"must be above 0, got {given}")
    return given
