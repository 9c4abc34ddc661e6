"""The two graphs of DiffusionGemma, over one stack of layers.

    read:    ids -> embedding -> [layer, causal] x layers -> keys and values of every layer, behind those that are there
    denoise: canvas -> embedding + self-conditioning -> [layer, both ways] x layers -> norm -> head -> what is known

Keys and values of all layers of a type lie in one tensor, [layers, 2, rows, cached, key_heads, head_dim]. Rows of
different lengths end together: what stands before a shorter one is hidden by masks. Positions count from the longest
row's beginning, which is all the same, because rotary positions know differences alone. Masks and rotary tables are the
same for every step of a canvas, and come from the host.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaEncoderTextModel,
DiffusionGemmaDecoderModel and DiffusionGemmaForBlockDiffusion.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.diffusion_gemma.attention import Norm
from max_zimage.graphs.diffusion_gemma.layer import Layer, ScaledEmbedding, SelfConditioning
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerType
from max_zimage.graphs.dims import CACHED_TOKENS, NEW_TOKENS, ROWS, SEEN_TOKENS
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.text_ops import likeliest

TYPES: tuple[LayerType, ...] = ("sliding_attention", "full_attention")

Caches = dict[LayerType, Tensor]


class Reader(Module[[Tensor], Tensor]):
    """What reads: embedding and layers, under the checkpoint's names."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        self.embed_tokens = ScaledEmbedding(spec)
        self.layers = ModuleList(Layer(spec, kind) for kind in spec.layer_types)

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 [rows, length] -> [rows, length, hidden_size]."""
        return self.embed_tokens(tokens)

    def through(
        self, x: Tensor, scalars: Tensor, ropes: Caches, masks: Caches, past: Caches, *, name: str, is_read: bool
    ) -> tuple[Tensor, Caches]:
        """Take states through the layers.

        Args:
            x: [rows, length, hidden_size].
            scalars: Of each layer, [layers].
            ropes: Layer type -> float32 [length, head_dim/2, 2].
            masks: Layer type -> float32 [rows, length, keys].
            past: Layer type -> [layers, 2, rows, cached, key_heads, head_dim].
            name: Of the graph: graphs that are compiled together share no layers, which take other arguments in each.
            is_read: Whether keys and values are all that is wanted: the last layer then makes nothing else.

        Returns:
            States behind the last layer (or before it), and new keys and values by type of layer.
        """
        found: dict[LayerType, list[Tensor]] = {kind: [] for kind in TYPES}
        last = len(self.spec.layer_types) - 1
        for index, (kind, place) in enumerate(zip(self.spec.layer_types, self.spec.places(), strict=True)):
            before = past[kind][place, 0], past[kind][place, 1]
            if is_read and index == last:
                both = [*self.layers[index].keys_and_values(x, ropes[kind], masks[kind], *before)]
            else:
                run = as_subgraph(self.layers[index], name=f"{name}_{kind}")
                x, *both = run(x, scalars[index : index + 1], ropes[kind], masks[kind], *before)
            if is_read:
                found[kind].append(F.stack(both, axis=0))
        return x, {kind: F.stack(each, axis=0) for kind, each in found.items() if each}


class Decoder(Reader):
    """What also writes: the reader's stack with self-conditioning before and the norm behind it."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        super().__init__(spec)
        self.self_conditioning = SelfConditioning(spec)
        self.norm = Norm(spec.hidden_size, eps=spec.norm_eps)


class Read(Module[..., tuple[Tensor, ...]]):
    """A prompt, or a finished canvas, behind what was read; before a prompt that is nothing at all."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        self.decoder = Reader(spec)
        self.encoder_scalars = Tensor.zeros([len(spec.layer_types)])

    def forward(self, tokens: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Read on.

        Args:
            tokens: int64 [rows, new_tokens]; a shorter row has anything before it.
            *tables: See `table_types` and `cache_types`.

        Returns:
            Keys and values of each type of layer, [layers, 2, rows, seen_tokens, key_heads, head_dim].
        """
        ropes, masks, past = sorted_by_type(self.spec, tables)
        x = self.decoder(tokens)
        _, found = self.decoder.through(x, self.encoder_scalars, ropes, masks, past, name="read", is_read=True)
        return tuple(behind_all(past[kind], found[kind]) for kind in kinds(self.spec))

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        tokens = TensorType(DType.int64, [ROWS, NEW_TOKENS], device)
        return (tokens, *table_types(self.spec, device), *cache_types(self.spec, dtype, device))


class Denoise(Module[..., tuple[Tensor, ...]]):
    """A look at a canvas, behind what was read."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        self.decoder = Decoder(spec)
        self.decoder_scalars = Tensor.zeros([len(spec.layer_types)])

    def forward(
        self, canvas: Tensor, sc_logits: Tensor, sc_enabled: Tensor, temperature: Tensor, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        """Look.

        Args:
            canvas: int64 [rows, new_tokens].
            sc_logits: The last step's processed logits, [rows, new_tokens, vocab_size] in the model's dtype.
            sc_enabled: float32 [rows]: 1 where a row sees them, 0 where it does not.
            temperature: float32 [1].
            *tables: See `table_types` and `cache_types`.

        Returns:
            Processed logits like `sc_logits`; int64 likeliest tokens and float32 entropies [rows, new_tokens] as
            second and last; between them float32 chances and int64 tokens of the top, [rows, new_tokens, top].
        """
        ropes, masks, past = sorted_by_type(self.spec, tables)
        signal = self.decoder.embed_tokens.means(sc_logits, sc_enabled)
        x = self.decoder.self_conditioning(self.decoder(canvas), signal)
        x, _ = self.decoder.through(x, self.decoder_scalars, ropes, masks, past, name="denoise", is_read=False)
        logits = self.decoder.embed_tokens.logits(self.decoder.norm(x), self.spec.softcap, temperature)
        return looked(logits, self.spec.top, x.dtype)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (
            TensorType(DType.int64, [ROWS, NEW_TOKENS], device),
            TensorType(dtype, [ROWS, NEW_TOKENS, self.spec.vocab_size], device),
            TensorType(DType.float32, [ROWS], device),
            TensorType(DType.float32, [1], device),
            *table_types(self.spec, device),
            *cache_types(self.spec, dtype, device),
        )


def behind_all(past: Tensor, new: Tensor) -> Tensor:
    """New keys and values of all layers of a type behind those of the past."""
    layers, both, rows, _, heads, head_dim = new.shape
    return F.rebind(F.concat([past, new], axis=3), [layers, both, rows, SEEN_TOKENS, heads, head_dim])


def looked(z: Tensor, top: int, dtype: DType) -> tuple[Tensor, ...]:
    """What is told of processed logits, float32 [rows, new_tokens, vocab_size]; see `Denoise.forward`."""
    if uses_cpu_kernels(z.dtype, z.device):
        told, named, first, spread = likeliest(z, top)
        return z.cast(dtype), first, told, named, spread
    above = z - F.max(z, axis=-1)
    shares = F.exp(above)
    total = F.sum(shares, axis=-1)
    entropy = F.log(total) - F.sum(shares * above, axis=-1) / total
    values, tokens = F.top_k(above, top, axis=-1)
    first = F.squeeze(F.argmax(z, axis=-1), -1)
    return z.cast(dtype), first, F.exp(values) / total, tokens, F.squeeze(entropy, -1)


def kinds(spec: DiffusionGemmaSpec) -> tuple[LayerType, ...]:
    """The types of layers that there are, in the order that their tensors have among arguments and results."""
    return tuple(kind for kind in TYPES if spec.count(kind))


def sorted_by_type(spec: DiffusionGemmaSpec, tables: tuple[Tensor, ...]) -> tuple[Caches, Caches, Caches]:
    """Rotary tables, masks, and past keys and values, by type of layer."""
    names = kinds(spec)
    count = len(names)
    parts = (dict(zip(names, tables[begin : begin + count], strict=True)) for begin in (0, count, 2 * count))
    ropes, masks, past = parts
    return ropes, masks, past


def table_types(spec: DiffusionGemmaSpec, device: DeviceRef) -> tuple[TensorType, ...]:
    """Rotary tables of each type of layer, then masks of each: float32, zero where a position is seen."""
    halves = [spec.shape(kind).head_dim // 2 for kind in kinds(spec)]
    ropes = [TensorType(DType.float32, [NEW_TOKENS, half, 2], device) for half in halves]
    return (*ropes, *[TensorType(DType.float32, [ROWS, NEW_TOKENS, SEEN_TOKENS], device)] * len(halves))


def cache_types(spec: DiffusionGemmaSpec, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
    """Keys and values of each type of layer."""
    shapes = [(spec.count(kind), spec.shape(kind)) for kind in kinds(spec)]
    return tuple(
        TensorType(dtype, [count, 2, ROWS, CACHED_TOKENS, shape.key_heads, shape.head_dim], device)
        for count, shape in shapes
    )
