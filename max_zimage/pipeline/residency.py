"""Components that take turns in memory: one leaves before another comes, and the ledger of it.

A component comes when one of its graphs is called, `max_zimage.components.base`; here is who leaves for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from max_zimage.checkpoint.blocks import streams_of
from max_zimage.components import (
    ZImageComponent,
    ZImageStreamedTransformer,
    ZImageTextEncoderModel,
    ZImageTransformerModel,
)
from max_zimage.device.memory import available_memory
from max_zimage.device.placement import place
from max_zimage.device.plans import HOST, Need, Needs, Plan, Wish, weights_on
from max_zimage.pipeline import stages
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.estimate import check_maps
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.placing import Size, memory_of, needs_of
from max_zimage.request.request import GenerationRequest


class Event(NamedTuple):
    """A component that came or left.

    Attributes:
        component: Which one.
        is_here: Whether its weights are in memory from here on.
        nbytes: Of the weights of all components that are in memory then, those that wait in the host's memory for an
            accelerator left aside; of streamed blocks those that have a place.
    """

    component: str
    is_here: bool
    nbytes: int


class Residency:
    """The components of a pipeline, and who makes room for whom.

    Args:
        components: All of them.
        sources: What they were loaded from.
        plan: What stays in memory.
        max_memory: Bytes of the transformer's device that may be taken.

    Attributes:
        plan: The plan as the last request has it.
        ledger: Who came and left, in order; the last thousand.
    """

    def __init__(
        self,
        components: Mapping[str, ZImageComponent],
        sources: CheckpointManifest,
        plan: Plan,
        max_memory: int | None = None,
    ) -> None:
        self._components, self._sources, self._max_memory = components, sources, max_memory
        self.plan = self._loaded = plan
        self.ledger: list[Event] = []
        for name, component in components.items():
            if plan.residency != "resident":
                component.before_coming = partial(self._before_coming, name)
        if plan.residency != "resident":
            components["vae"].before_work = self._before_decoding
        self._go_over(plan)

    def check(
        self,
        text_encoder: ZImageTextEncoderModel,
        transformer: ZImageTransformerModel,
        asked: GenerationRequest | ZImageModelInputs,
    ) -> None:
        """Compare what pictures take with the memory there is; where they fit otherwise, go over to that.

        Raises:
            NotEnoughMemoryError: If they do not fit; said before anything is computed.
        """
        if self.plan.is_plain and self._max_memory is None:
            stages.check(self._sources, text_encoder, transformer, asked)
            return
        residency, devices = self.plan.residency, self.plan.devices
        wish = Wish(
            placement=residency,
            devices=devices,
            named=frozenset(devices),
            mesh=self.plan.mesh,
            groups=self.plan.groups,
            is_padded=self.plan.is_padded,
            max_memory=self._max_memory,
        )
        memory = memory_of(wish)
        # What is there now is part of what is needed.
        memory[HOST] = available_memory() + self._nbytes_on(HOST)
        on_host, sizes = devices["vae"] == HOST, _sizes(asked)
        for each in () if on_host else sizes:
            check_maps(self._sources, each.height, each.width, each.tiling)
        copies = {"transformer": transformer.again_bytes, "text_encoder": text_encoder.layers.nbytes}
        needs = [_with_copies(needs_of(self._sources, size, on_host), copies) for size in sizes]
        found = [place(each, memory, wish) for each in needs]
        alone = self._loaded.decodes_alone or any(each.decodes_alone for each in found)
        stay = min([self._loaded.stay, *(each.stay for each in found)])
        self._go_over(replace(self._loaded, decodes_alone=alone, stay=stay))

    def _go_over(self, plan: Plan) -> None:
        """Have another plan from here on; where fewer blocks stay than before, all leave, and come back so."""
        transformer = self._components["transformer"]
        if isinstance(transformer, ZImageStreamedTransformer) and transformer.stay != plan.stay:
            self._leave("transformer")
            transformer.stay = plan.stay
        self.plan = plan

    def _nbytes_on(self, device: str) -> int:
        """Of the weights that are there."""
        return sum(self._held(device, name) for name, each in self._components.items() if each.is_here)

    def _held(self, device: str, name: str) -> int:
        """Bytes of a component's weights on a device, while they are in memory."""
        sources = self._sources
        if name not in sources.nbytes:
            return 0
        streams = None
        if name == "transformer":
            streams = streams_of(sources.plans[name], sources.dtypes[name], sources.specs.transformer)
        return weights_on(device, self.plan, name, Need(weights=sources.nbytes[name], work=0, streams=streams))

    def _before_coming(self, name: str) -> None:
        for other in self.plan.others_of(name):
            self._leave(other)
        self._note(name, True)

    def _before_decoding(self) -> None:
        if self.plan.decodes_alone:
            for name in ("text_encoder", "transformer"):
                self._leave(name)

    def _leave(self, name: str) -> None:
        component = self._components.get(name)
        if component is not None and component.is_here:
            component.leave()
            self._note(name, False)

    def _note(self, name: str, is_here: bool) -> None:
        there = {other for other, each in self._components.items() if each.is_here} | ({name} if is_here else set())
        nbytes = sum(self._held(self.plan.devices[each], each) for each in there if each in self.plan.devices)
        self.ledger = [*self.ledger[-999:], Event(name, is_here, nbytes)]


def _with_copies(needs: Needs, copies: Mapping[str, int]) -> Needs:
    """The same with weights that lie on an accelerator a second time, or for some requests alone."""
    return {name: replace(each, weights=each.weights + copies.get(name, 0)) for name, each in needs.items()}


def _sizes(asked: GenerationRequest | ZImageModelInputs) -> list[Size]:
    """The pictures of a request, of each of its legs."""
    if isinstance(asked, GenerationRequest):
        return [Size.of(asked)]
    legs = [(asked.height, asked.width, asked.guidance)]
    legs += [(each.leg.asked.height, each.leg.asked.width, each.guidance) for each in asked.later]
    return [
        Size(
            height=height,
            width=width,
            branches=1 + guided.has_negative + len(guided.others),
            pictures=asked.batch,
            tiling=asked.tiling,
        )
        for height, width, guided in legs
    ]
