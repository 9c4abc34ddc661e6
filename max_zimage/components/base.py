"""What the components have in common: where their weights come from and where they run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.graph.weights import Weights
from max.pipelines.diffusion.config import DenoisingCacheConfig
from max.pipelines.modeling.base.component_model import ComponentModel
from max.pipelines.modeling.config_enums import SupportedEncoding

from max_zimage.checkpoint.expand import ParameterTable
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load, scales_of
from max_zimage.checkpoint.locate import paths_of
from max_zimage.checkpoint.plan import LoadPlan, plan
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.compile.compiler import CompiledGraph, bind, unbind, wait_for
from max_zimage.compile.device_weights import OnDevice, shared
from max_zimage.compile.graphs import Backend, define
from max_zimage.compile.registry import entry_of
from max_zimage.device.dtypes import encoding_dtype
from max_zimage.graphs.kernel_library import is_nvidia, uses_cpu_kernels
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec

_AWAY: Mapping[str, Buffer] = {}
"""The weights of a component that is away."""


class ZImageComponent(ComponentModel):
    """A ComponentModel that reads its weights strictly and compiles graphs on one device.

    Its weights may be *away*: not in memory, until a graph that has some is called. See `come` and `leave`.

    Args:
        config: The component's configuration as Hugging Face's JSON has it.
        encoding: Dtype of weights and computation, "float32" or "bfloat16".
        devices: The first one runs the component.
        weights: The component's safetensors files.
        session: Where the graphs run; None makes one.
        cache_config: Taken for MAX's sake; no component depends on it.
        plan: What is loaded from the files, where they were checked before.
        is_away: Whether no weights are read before a graph is called.
        attention: How its graphs compute attention; None for what dtype and device choose.

    Attributes:
        is_here: Whether the weights are in memory.
        before_coming: Called before they are read.
        before_work: Called before what takes much memory beside them.

    Raises:
        ValueError: If the configuration, the encoding or the weights do not fit.
    """

    spec: TextEncoderSpec | TransformerSpec | VaeSpec
    keeps_weights: ClassVar[bool] = False
    """Whether host memory is kept, too, for a graph that comes later."""
    transforms: tuple[Transform, ...] = ()
    """That the weights are taken through."""
    gave_up = False
    """Whether it came back, and some transforms could not be applied any more; until it is bound again."""
    leaves_to_bind: ClassVar[bool] = False
    """Whether its weights leave before others are bound: nothing then lies beside them."""
    nbytes_beside = 0  # memory of the other components' weights on the same device

    def __init__(
        self,
        config: dict[str, Any],
        encoding: SupportedEncoding,
        devices: list[Device],
        weights: Weights,
        *,
        session: InferenceSession | None = None,
        cache_config: DenoisingCacheConfig | None = None,
        plan: LoadPlan | None = None,
        is_away: bool = False,
        attention: Backend | None = None,
    ) -> None:
        self._plan, self.is_here, self.attention = plan, not is_away, attention
        self.before_coming: Callable[[], None] | None = None
        self.before_work: Callable[[], None] | None = None
        self._graphs: list[CompiledGraph] = []  # those that have weights
        self._weights: Mapping[str, Buffer] | None = None
        super().__init__(config, encoding, devices, weights, cache_config=cache_config)
        self.dtype_name = encoding_dtype(encoding)
        self.device = devices[0]
        self.session = session if session is not None else InferenceSession(devices=devices)
        self.load_model()

    @property
    def dtype(self) -> DType:
        """Dtype of weights and computation."""
        return DType[self.dtype_name]

    @property
    def device_ref(self) -> DeviceRef:
        """The device as graphs name it."""
        return DeviceRef.from_device(self.device)

    @abstractmethod
    def load_model(self) -> CompiledGraph:
        """Load the weights and define the graphs; returns the one that does the component's main work."""

    @abstractmethod
    def names(self) -> ParameterTable:
        """The tensors that the component's files must hold."""

    def graph(self, name: str, weights: Mapping[str, Buffer] | None = None) -> CompiledGraph:
        """Define one of the component's graphs, `max_zimage.compile.registry.GRAPHS`.

        Args:
            name: Which one.
            weights: The component's, under its own names; None for a graph that has none.
        """
        graph = self.define(name, {} if weights is None else weights)
        if weights is not None:
            self._graphs.append(graph)
            graph.recall = self.come
        return graph

    def compile(self, *graphs: CompiledGraph) -> None:
        """Compile graphs that were not there from the beginning, or forget them if that fails or is interrupted.

        What came back would be bound to a graph that is kept and was not compiled, and fail each time.

        Raises:
            RuntimeError: If MAX cannot compile one.
        """
        try:
            wait_for(graphs)
        except BaseException:
            self._graphs = [each for each in self._graphs if each not in graphs]
            raise

    def define(self, name: str, weights: Mapping[str, Buffer]) -> CompiledGraph:
        """The same of a graph whose weights `bind` leaves alone.

        Args:
            name: Which one.
            weights: Under the graph's own names.
        """
        what = entry_of(name), self.spec, self.dtype_name, None if weights is _AWAY else weights
        place: dict[str, Any] = {"session": self.session, "device": self.device}
        return define(*what, **place, storage=self.plan().kept_as, attention=self.attention)

    @property
    def shares_weights(self) -> bool:
        """Whether all of its graphs read one copy of the weights, where that lies on an accelerator."""
        return shared(self.device)

    @property
    def kept_weights(self) -> Mapping[str, Buffer]:
        """The weights that `provide` keeps, as graphs are given them; none where it keeps none."""
        return self._weights or {}

    def provide(self) -> Mapping[str, Buffer]:
        """The weights for a graph: those that the component's other graphs have, or else read again.

        They are kept where that costs no memory: on a CPU, and where graphs read them on the device. Elsewhere every
        graph has a copy of its own, and host memory is given back. Of a component that is away there are none.
        """
        if not self.is_here:
            return _AWAY
        if self._weights is not None:
            return self._weights
        weights = self.placed(self.all_weights())
        if self.device.is_host or self.shares_weights or self.keeps_weights:
            self._weights = weights
        return weights

    def come(self) -> None:
        """Read the weights and bind the graphs to them, where that is not so; nothing is compiled for it.

        Adapters and quantized storage are those that were asked for last.

        Raises:
            AdapterError: If an adapter's file is another one by now; the component then is without adapters.
        """
        if self.is_here:
            return
        if self.transforms:
            try:
                self._plan = self.planned(self.transforms)
            except ValueError:  # of an adapter
                self.bind()
                self.gave_up = True
                raise
        if self.before_coming is not None:
            self.before_coming()
        wait_for([graph for graph in self._graphs if graph.pending])
        self.is_here = True
        try:
            self._bind(self.provide())
        except BaseException:  # a file that is gone, memory that does not suffice
            self.leave()
            raise

    def leave(self) -> None:
        """Give the memory of the weights back. What the graphs were compiled to stays."""
        if self.is_here:
            self._weights, self.is_here = None, False
            unbind(self._graphs)

    def enter(self) -> None:
        """Have memory made for work that takes much of it."""
        if self.before_work is not None:
            self.before_work()

    def plan(self) -> LoadPlan:
        """What is loaded from the component's files: checked before by whoever made it, or else here."""
        if self._plan is None:
            self._plan = plan(self.names(), open_source(paths_of(self.weights)))
        return self._plan

    def load_weights(self, only: Collection[str] | None = None, checked: LoadPlan | None = None) -> dict[str, Buffer]:
        """Read the component's files.

        Args:
            only: The graphs' names of the parameters that are read; None for all of them.
            checked: Another plan than the component's own, of the same files.

        Returns:
            Engine name -> data in host memory.
        """
        to_pack, keep_filters = uses_cpu_kernels(self.dtype, self.device), is_nvidia(self.device)
        return load(checked or self.plan(), self.dtype_name, to_pack=to_pack, keep_filters=keep_filters, only=only)

    def all_weights(self) -> dict[str, Buffer]:
        """Data in host memory under all names that the component's graphs know it by."""
        return self.load_weights()

    def bind(self, transforms: Sequence[Transform] = ()) -> frozenset[str]:
        """Take the weights through other transforms than before. Nothing is compiled.

        Args:
            transforms: Applied to the tensors of the files; none for the weights as they are there.

        Returns:
            The graphs' names of the parameters that are made in another way than before. On a CPU only these are read
            again; graphs on an accelerator that have copies of their own are given everything again.

        Raises:
            CheckpointError: If what the transforms make does not fit; the weights then stay as they are.
        """
        before, now = self.plan(), self.planned(transforms)
        changed = frozenset(each.engine for each in {*now.recipes} - {*before.recipes})
        if changed:
            try:
                self._take(now, changed)
            except BaseException:  # a file that is gone, numbers that come out infinite
                self._put_back(before, changed)
                raise
        self.transforms, self.gave_up = tuple(transforms), False
        return changed

    def planned(self, transforms: Sequence[Transform] = ()) -> LoadPlan:
        """What `bind` would load; arguments and errors are the same."""
        before = self.plan()
        return replace(plan(self.names(), open_source(before.files), transforms), kept_as=before.kept_as)

    def _take(self, now: LoadPlan, changed: Collection[str]) -> None:
        self._plan = now
        if not self.is_here:
            return
        in_part = self.device.is_host and self._weights is not None
        new = self.load_weights(changed) if in_part else self.placed(self.all_weights())
        self._bind(new)
        if self._weights is not None:
            self._weights = {**self._weights, **new} if in_part else new

    def _put_back(self, before: LoadPlan, changed: Collection[str]) -> None:
        """Have every graph read again what it read before: some of them may have been given other weights."""
        self._plan = before
        if not self.is_here:
            return
        if self._weights is None:
            self._bind(self.placed(self.all_weights()))
        else:
            names = [*map(scales_of, changed), *changed] if self.device.is_host else [*self._weights]
            self._bind({name: self._weights[name] for name in names if name in self._weights})

    def _bind(self, weights: Mapping[str, Buffer]) -> None:
        prefixes = {entry_of(graph.name).prefix for graph in self._graphs}
        bind(self._graphs, {f"{prefix}{name}": data for prefix in prefixes for name, data in weights.items()})

    def placed(self, weights: dict[str, Buffer]) -> Mapping[str, Buffer]:
        """Weights as graphs are given them: in host memory, or on the device where they are to share them."""
        return OnDevice(weights, self.device) if self.shares_weights else weights
