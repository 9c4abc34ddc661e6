"""What the components have in common: where their weights come from and where they run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.graph.weights import Weights
from max.pipelines.diffusion.config import DenoisingCacheConfig
from max.pipelines.modeling.base.component_model import ComponentModel
from max.pipelines.modeling.config_enums import SupportedEncoding

from max_zimage.checkpoint.expand import ParameterTable
from max_zimage.checkpoint.headers import scan
from max_zimage.checkpoint.load import LoadPlan, load, plan
from max_zimage.checkpoint.locate import paths_of
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.device_weights import OnDevice, shared
from max_zimage.compile.graphs import define
from max_zimage.compile.registry import GRAPHS
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs.kernel_library import is_nvidia, uses_cpu_kernels
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec


class ZImageComponent(ComponentModel):
    """A ComponentModel that reads its weights strictly and compiles graphs on one device.

    Args:
        config: The component's configuration as Hugging Face's JSON has it.
        encoding: Dtype of weights and computation, "float32" or "bfloat16".
        devices: The first one runs the component.
        weights: The component's safetensors files.
        session: Where the graphs run; None makes one.
        cache_config: Taken for MAX's sake; no component depends on it.
        plan: What is loaded from the files, where they were checked before.

    Raises:
        ValueError: If the configuration, the encoding or the weights do not fit.
    """

    spec: TextEncoderSpec | TransformerSpec | VaeSpec

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
    ) -> None:
        self._plan = plan
        super().__init__(config, encoding, devices, weights, cache_config=cache_config)
        self.dtype_name = _dtype_name(encoding)
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
        return define(GRAPHS[name], self.spec, self.dtype_name, weights or {}, session=self.session, device=self.device)

    def plan(self) -> LoadPlan:
        """What is loaded from the component's files: checked before by whoever made it, or else here."""
        return self._plan or plan(self.names(), scan(paths_of(self.weights)))

    def load_weights(self) -> dict[str, Buffer]:
        """Engine name -> data in host memory."""
        to_pack, keep_filters = uses_cpu_kernels(self.dtype, self.device), is_nvidia(self.device)
        return load(self.plan(), self.dtype_name, to_pack=to_pack, keep_filters=keep_filters)

    def placed(self, weights: dict[str, Buffer]) -> Mapping[str, Buffer]:
        """Weights as graphs are given them: in host memory, or on the device where they are to share them."""
        return OnDevice(weights, self.device) if shared(self.device) else weights


def _dtype_name(encoding: str) -> ModelDtype:
    for dtype in DTYPES:
        if encoding == dtype:
            return dtype
    raise ValueError(f"encoding must be {' or '.join(DTYPES)}, got {encoding}; quantized weights are not supported yet")
