"""A DiffusionGemma that runs: two compiled graphs for three steps, and the tensors that go from one to the next.

encode:  ids  -> cache
denoise: canvas, last logits, cache -> what is known of the canvas     (again and again; the cache stays)
commit:  cache, finished canvas -> cache
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from max.driver import Buffer, Device, load_devices
from max.dtype import DType
from max.engine import InferenceSession
from numpy.typing import NDArray

from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.compile.device_check import check_device
from max_zimage.compile.graphs import define
from max_zimage.compile.registry import GRAPHS
from max_zimage.device.devices import device_spec, download, upload
from max_zimage.device.dtypes import ModelDtype, model_dtype
from max_zimage.diffusion_gemma.config_file import DiffusionGemmaFile, read_file
from max_zimage.diffusion_gemma.steps import CanvasLook, Ids
from max_zimage.diffusion_gemma.tables import canvas_mask, reading_mask, rotary_table
from max_zimage.diffusion_gemma.weights import find_files, load_weights, plan_weights
from max_zimage.graphs.diffusion_gemma.stack import kinds
from max_zimage.request.checks import LARGEST, SMALLEST

NAMES = ("gemma_read", "gemma_denoise")


@dataclass(frozen=True, eq=False)
class GemmaCache:
    """What was read.

    Attributes:
        tensors: Keys and values of each type of layer, [layers, 2, rows, length, key_heads, head_dim] on the device.
        starts: int64 [rows]: where each row begins; all end together.
        length: Positions there are, those before shorter rows included.
        tables: Rotary tables and masks of the next canvas, on the device.
    """

    tensors: tuple[Buffer, ...]
    starts: Ids
    length: int
    tables: tuple[Buffer, ...]

    @property
    def rows(self) -> int:
        """How many texts."""
        return len(self.starts)


class CompiledDiffusionGemma:
    """The steps of `max_zimage.diffusion_gemma.steps.DiffusionSteps`, compiled.

    Args:
        file: The checkpoint's configuration.
        weights: Under the graphs' names, in the dtype; None for graphs that are compiled and not run.
        device: Where it runs.
        dtype: Of weights and computation.
        session: Where the graphs run; None makes one.

    Attributes:
        spec: Its shape.
        graphs: Name -> graph; they are compiled by `compile`, or by the first call.
    """

    def __init__(
        self,
        file: DiffusionGemmaFile,
        weights: Mapping[str, Buffer] | None,
        *,
        device: Device,
        dtype: ModelDtype,
        session: InferenceSession | None = None,
    ) -> None:
        self.file, self.spec, self.device, self.dtype = file, file.spec, device, dtype
        session = InferenceSession(devices=[device]) if session is None else session
        self.graphs: dict[str, CompiledGraph] = {
            name: define(GRAPHS[name], self.spec, dtype, weights, session=session, device=device) for name in NAMES
        }

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, device: str = "auto", dtype: str = "auto") -> Self:
        """Load a checkpoint and compile its graphs, or find them on disk.

        Args:
            directory: Holds `config.json` and `model.safetensors` or its shards.
            device: "auto", "cpu", "gpu" or "gpu:N".
            dtype: "float32", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU.

        Raises:
            CheckpointError: If the files are not those of a DiffusionGemma that this engine computes.
            RequestError: If there is no such device, or it lacks a library.
            NotEnoughMemoryError: If the weights do not fit; before they are loaded.
            ValueError: If there is no such dtype, or a variable of `device_graphs` or `device_weights` has no meaning.
        """
        folder = Path(directory).expanduser()
        (there,) = load_devices([device_spec(device)])
        check_device(there)
        chosen = model_dtype(dtype, there)
        files = find_files(folder)
        file = read_file(folder)
        checked = plan_weights(file.spec, files)
        model = cls(file, load_weights(checked, chosen, there), device=there, dtype=chosen)
        model.compile()
        return model

    def compile(self) -> None:
        """Compile the graphs, or find them on disk."""
        wait_for(list(self.graphs.values()))

    @property
    def vocab_size(self) -> int:
        """Tokens there are, special ones included."""
        return self.spec.vocab_size

    @property
    def canvas_length(self) -> int:
        """Tokens of a canvas."""
        return self.spec.canvas_length

    @property
    def max_length(self) -> int:
        """Positions there are: a row's prompt and all its canvases must not be longer."""
        return self.spec.max_positions

    def encode(self, ids: Ids, lengths: Ids) -> GemmaCache:
        """Read prompts; see `DiffusionSteps.encode`, also for errors."""
        rows, longest = _shape(ids, "ids", "[rows, longest]")
        if lengths.shape != (rows,) or rows == 0 or not ((lengths >= 1) & (lengths <= longest)).all():
            raise ValueError(
                f"lengths must be a number from 1 to {longest} for each of the {rows} rows of ids, got "
                f"{lengths.tolist()}; a prompt has one token at least"
            )
        length = int(lengths.max())
        self._check_room(0, length, "the prompt")
        tokens = np.zeros((rows, length), np.int64)
        for row, (given, count) in enumerate(zip(ids, lengths, strict=True)):
            self._check_text(given[:count])
            tokens[row, length - count :] = given[:count]
        starts = length - lengths.astype(np.int64)
        return self._read(tokens, starts, 0, self._nothing(rows))

    def denoise(
        self,
        canvas: Ids,
        sc_logits: Buffer | None,
        sc_enabled: NDArray[np.bool_],
        temperature: float,
        cache: GemmaCache,
    ) -> CanvasLook:
        """Look at a canvas once; see `DiffusionSteps.denoise`, also for errors."""
        self.check_canvas(canvas, cache)
        if sc_enabled.shape != (cache.rows,):
            raise ValueError(
                f"sc_enabled must say yes or no for each of the {cache.rows} rows, got the shape "
                f"{list(sc_enabled.shape)}"
            )
        # In float32, in which the graph takes it: what is 0 or infinite there makes NaN of the logits.
        if not SMALLEST <= temperature <= LARGEST:
            raise ValueError(
                f"temperature must be a finite number above 0, from {SMALLEST:.3g} to {LARGEST:.3g}, got {temperature}"
            )
        is_seen = np.zeros(cache.rows, np.float32) if sc_logits is None else sc_enabled.astype(np.float32)
        seen, warmth = upload(is_seen, self.device), upload(np.array([temperature], np.float32), self.device)
        before = self.no_logits(cache) if sc_logits is None else sc_logits
        logits, *told = self.look(upload(canvas, self.device), before, seen, warmth, cache)
        argmax, chances, tokens, entropy = map(download, told)
        return CanvasLook(logits, argmax, chances, tokens, entropy)

    def look(
        self, canvas: Buffer, sc_logits: Buffer, sc_enabled: Buffer, temperature: Buffer, cache: GemmaCache
    ) -> list[Buffer]:
        """The denoising graph on buffers, `graphs.diffusion_gemma.stack.Denoise`, whose results stay on the device."""
        return self.graphs["gemma_denoise"](canvas, sc_logits, sc_enabled, temperature, *cache.tables, *cache.tensors)

    def no_logits(self, cache: GemmaCache) -> Buffer:
        """What stands in place of a last step's logits where there are none."""
        shape = (cache.rows, self.spec.canvas_length, self.spec.vocab_size)
        return Buffer.zeros(shape, DType[self.dtype], self.device)

    def commit(self, cache: GemmaCache, ids: Ids) -> GemmaCache:
        """Read a finished canvas; see `DiffusionSteps.commit`, also for errors."""
        self.check_canvas(ids, cache)
        return self._read(ids, cache.starts, cache.length, cache.tensors)

    def _read(self, tokens: Ids, starts: Ids, begin: int, past: Sequence[Buffer]) -> GemmaCache:
        """Read tokens from a position on, behind what stands before it."""
        names, count = kinds(self.spec), tokens.shape[1]
        ropes = [rotary_table(self.spec.shape(kind), begin, count) for kind in names]
        masks = [reading_mask(self.spec, kind, starts, begin, count) for kind in names]
        given = [upload(tokens, self.device), *(upload(each, self.device) for each in (*ropes, *masks))]
        tensors, length = self.graphs["gemma_read"](*given, *past), begin + count
        ropes = [rotary_table(self.spec.shape(kind), length, self.spec.canvas_length) for kind in names]
        masks = [canvas_mask(self.spec, kind, starts, length) for kind in names]
        tables = tuple(upload(each, self.device) for each in (*ropes, *masks))
        return GemmaCache(tuple(tensors), starts, length, tables)

    def _nothing(self, rows: int) -> list[Buffer]:
        """Keys and values of nothing."""
        shapes = [(self.spec.count(kind), self.spec.shape(kind)) for kind in kinds(self.spec)]
        return [
            Buffer.zeros((count, 2, rows, 0, shape.key_heads, shape.head_dim), DType[self.dtype], self.device)
            for count, shape in shapes
        ]

    def check_canvas(self, ids: Ids, cache: GemmaCache) -> None:
        """Check tokens of a canvas behind what was read; see `DiffusionSteps.denoise` for errors."""
        wanted = (cache.rows, self.spec.canvas_length)
        if _shape(ids, "a canvas", "[rows, canvas_length]") != wanted:
            raise ValueError(f"a canvas must be {list(wanted)}, as many rows as were read, got {list(ids.shape)}")
        self._check_range(ids)
        self._check_room(cache.length, self.spec.canvas_length, "the canvas")

    def _check_text(self, ids: Ids) -> None:
        """Refuse what has no embedding, and what stands for an image."""
        self._check_range(ids)
        images = self.file.image_tokens.intersection(ids.tolist())
        if images:
            raise ValueError(
                f"token {min(images)} stands for an image, and this engine reads text only; DiffusionGemma's vision "
                "tower is not built: send text, or use transformers"
            )

    def _check_range(self, ids: Ids) -> None:
        if not 0 <= ids.min() <= ids.max() < self.spec.vocab_size:
            raise ValueError(
                f"token ids must be from 0 to {self.spec.vocab_size - 1}, got {ids.min()} to {ids.max()}; use the "
                "tokenizer of the checkpoint"
            )

    def _check_room(self, begin: int, length: int, what: str) -> None:
        if begin + length > self.spec.max_positions:
            raise ValueError(
                f"{what} would end at position {begin + length}, and the model has {self.spec.max_positions}; shorten "
                "the prompt, or ask for fewer tokens"
            )


def _shape(ids: Ids, what: str, wanted: str) -> tuple[int, int]:
    if ids.dtype != np.int64 or ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"{what} must be int64 {wanted}, got {ids.dtype} {list(ids.shape)}")
    return ids.shape[0], ids.shape[1]
