"""`DiffusionGemmaForBlockDiffusionModel` as MAX documents it: a thin layer over the compiled steps.

Reference: max.pipelines.architectures.diffusion_gemma.model. Names, arguments, defaults and results are those of its
documentation; the cache is one value that a step passes to the next, and not pages that a scheduler owns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.graph.weights import Weights, WeightsAdapter
from max.nn.transformer import ReturnLogits
from max.pipelines.kv_cache import KVCacheConfig
from max.pipelines.lib.config import PipelineConfig

from max_zimage.checkpoint.locate import paths_of
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.device_check import check_device
from max_zimage.device.devices import download, upload
from max_zimage.device.dtypes import ModelDtype
from max_zimage.diffusion_gemma.config import DiffusionGemmaForBlockDiffusionConfig
from max_zimage.diffusion_gemma.config_file import read_config
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma, GemmaCache
from max_zimage.diffusion_gemma.steps import Ids
from max_zimage.diffusion_gemma.weights import load_weights, plan_weights


class DiffusionGemmaForBlockDiffusionModel:
    """A DiffusionGemma with its graphs, compiled.

    Args:
        pipeline_config: MAX's; its model names checkpoint, device and encoding.
        session: Where the graphs run.
        devices: One.
        kv_cache_config: MAX's. Nothing in it has an effect, for the cache has no pages; a cache of prefixes is refused.
        weights: The checkpoint's safetensors files.
        adapter: None: the one table of names takes its place.
        return_logits: See `DiffusionGemmaForBlockDiffusionConfig.finalize`.

    Attributes:
        config: What was read.
        vision_model: None: the vision tower is not built.
        language_model: The graph that reads prompts, `graphs.diffusion_gemma.stack.Read`.
        decoder_model: The graph that looks at a canvas, `graphs.diffusion_gemma.stack.Denoise`.
        steps: The graphs with what goes between them.

    Raises:
        ValueError: If an adapter, several devices, a cache of prefixes or other logits are asked for.
        CheckpointError: If configuration or weights are not those of a DiffusionGemma that this engine computes.
    """

    decoder_model: CompiledGraph

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        kv_cache_config: KVCacheConfig,
        weights: Weights,
        adapter: WeightsAdapter | None = None,
        return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
    ) -> None:
        if adapter is not None:
            raise ValueError("adapter must be None: weights are taken by the engine's own table of names")
        if len(devices) != 1:
            raise ValueError(f"DiffusionGemma runs on one device, got {len(devices)}; give a list of one")
        if kv_cache_config.enable_prefix_caching:
            raise ValueError(
                "enable_prefix_caching must be false, got true, its default in MAX: a canvas stands behind its own "
                "prompt, and no prefix is shared; give KVCacheConfig(enable_prefix_caching=False)"
            )
        self.pipeline_config, self.weights, self.device = pipeline_config, weights, devices[0]
        self.huggingface_config = pipeline_config.model.huggingface_config
        config = DiffusionGemmaForBlockDiffusionConfig.initialize_from_config(pipeline_config, self.huggingface_config)
        config.finalize(self.huggingface_config, {name: each.data() for name, each in weights.items()}, return_logits)
        self.config = config
        self.vision_model, self.language_model = self.load_model(session)

    def load_model(self, session: InferenceSession) -> tuple[None, CompiledGraph]:
        """`load_graphs`, as MAX documents it: None in place of a vision model, and the graph that reads prompts."""
        return None, self.load_graphs(session)["gemma_read"]

    def load_graphs(self, session: InferenceSession) -> Mapping[str, CompiledGraph]:
        """Load the weights and compile the graphs, or find them on disk.

        Args:
            session: Where they run.

        Returns:
            Name -> graph: `gemma_read` reads prompts, `gemma_denoise` is `decoder_model`.

        Raises:
            ValueError: If the device lacks a library or memory, or a variable of the environment has no meaning.
        """
        check_device(self.device)
        dtype: ModelDtype = "float32" if self.config.dtype == DType.float32 else "bfloat16"
        checked = plan_weights(self.config.text_config, paths_of(self.weights))
        file, weights = read_config(self.huggingface_config.to_dict()), load_weights(checked, dtype, self.device)
        self.steps = CompiledDiffusionGemma(file, weights, device=self.device, dtype=dtype, session=session)
        self.steps.compile()
        self.decoder_model = self.steps.graphs["gemma_denoise"]
        return self.steps.graphs

    def encode(self, ids: Ids, lengths: Ids) -> GemmaCache:
        """Read prompts; see `max_zimage.diffusion_gemma.steps.DiffusionSteps.encode`."""
        return self.steps.encode(ids, lengths)

    def commit(self, cache: GemmaCache, ids: Ids) -> GemmaCache:
        """Read a finished canvas; see `max_zimage.diffusion_gemma.steps.DiffusionSteps.commit`."""
        return self.steps.commit(cache, ids)

    def execute_decoder_step(
        self,
        canvas_tokens: Buffer,
        input_row_offsets: Buffer,
        sc_logits: Buffer,
        sc_enabled: Buffer,
        temperature: Buffer,
        kv_cache_inputs: GemmaCache,
    ) -> tuple[Buffer, Buffer, Buffer, Buffer, Buffer]:
        """Run one denoising step. The cache stays as it is.

        Args:
            canvas_tokens: int64 [N], the canvases of all rows one after another, so N = rows · canvas_length.
            input_row_offsets: uint32 [rows + 1]: where each canvas begins, and where the last one ends.
            sc_logits: The last step's `sc_logits_out`, [N, vocab_size] in the model's dtype; any finite numbers
                where `sc_enabled` is 0.
            sc_enabled: float32 [1] or [rows]: 1 where they are to be seen, 0 where not.
            temperature: float32 [1].
            kv_cache_inputs: From `encode` or `commit`.

        Returns:
            sc_logits_out [N, vocab_size] in the model's dtype, argmax int64 [N], topk_probs float32 and topk_idx int64
            [N, 64 or the whole of a smaller vocabulary], entropy float32 [N]; all on the device.

        Raises:
            ValueError: If shapes do not fit each other.
        """
        spec, cache = self.config.text_config, kv_cache_inputs
        rows, length, vocabulary = cache.rows, spec.canvas_length, spec.vocab_size
        count = rows * length
        offsets = download(input_row_offsets)
        if not np.array_equal(offsets, np.arange(rows + 1) * length):
            raise ValueError(
                f"input_row_offsets must part canvases of {length} tokens for each of the {rows} rows that were read, "
                f"got {offsets.tolist()}"
            )
        wanted = {"canvas_tokens": (canvas_tokens, (count,)), "sc_logits": (sc_logits, (count, vocabulary))}
        for name, (given, shape) in wanted.items():
            if tuple(given.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(given.shape)}")
        if tuple(sc_enabled.shape) not in ((1,), (rows,)):
            raise ValueError(f"sc_enabled must be float32 [1] or [{rows}], got {list(sc_enabled.shape)}")
        if tuple(temperature.shape) != (1,):
            raise ValueError(f"temperature must be float32 [1], got {list(temperature.shape)}")
        self.steps.check_canvas(download(canvas_tokens).reshape(rows, length), cache)
        enabled = np.broadcast_to(download(sc_enabled), (rows,)).astype(np.float32)
        found = self.steps.look(
            canvas_tokens.view(DType.int64, (rows, length)),
            sc_logits.view(sc_logits.dtype, (rows, length, vocabulary)),
            upload(enabled, self.device),
            temperature,
            cache,
        )
        logits, argmax, chances, tokens, entropy = (
            each.view(each.dtype, (count, *map(int, each.shape[2:]))) for each in found
        )
        return logits, argmax, chances, tokens, entropy
