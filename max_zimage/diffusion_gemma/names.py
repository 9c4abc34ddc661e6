"""The table of a DiffusionGemma's weight names, of the kind of `max_zimage.checkpoint.names`.

Encoder and decoder are one stack, stored once, and the scalar of each layer twice. Most files keep the stack under the
decoder, and some under the encoder: these are the two namings. A row holds them with the graphs' name.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, _tied_weights_keys.
"""

from __future__ import annotations

from collections.abc import Collection

from max_zimage.checkpoint.expand import ParameterTable, Place
from max_zimage.checkpoint.names import Dropped, Packing, Row, Shape
from max_zimage.diffusion_gemma.config_file import MODEL_TYPE
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec

DECODER, ENCODER = "decoder.", "encoder.language_model."
PREFIXES = ("model.", "")
VISION = ("encoder.vision_tower.", "encoder.embed_vision.")

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)
_NO_VISION = "of the vision tower; this engine reads text only"


def names(spec: DiffusionGemmaSpec, files: Collection[str]) -> ParameterTable:
    """Names of a DiffusionGemma.

    Args:
        spec: Its shape.
        files: All tensors that the files hold: those of the vision tower are left out.
    """
    layers = [(f"layers.{index}", kind) for index, kind in enumerate(spec.layer_types)]
    sizes = {True: _sizes(spec, is_sliding=True), False: _sizes(spec, is_sliding=False)}
    places = {
        kind: [_place(path, sizes[kind == "sliding_attention"]) for path, each in layers if each == kind]
        for kind in ("sliding_attention", "full_attention")
    }
    vision = tuple(f"{prefix}{start}" for prefix in PREFIXES for start in VISION)
    return ParameterTable(
        component=MODEL_TYPE,
        rows=(*_ENDS, *_LAYER),
        namings={"diffusers": "names of the decoder", "original": "names of the encoder"},
        prefixes=PREFIXES,
        places={
            "layer": [_place(path, sizes[kind == "sliding_attention"]) for path, kind in layers],
            "sliding": places["sliding_attention"],
            "full": places["full_attention"],
            "decoder_layer": [Place(f"{DECODER}{path}", f"{DECODER}{path}", {}) for path, _ in layers],
            "encoder_layer": [Place(f"{ENCODER}{path}", f"{ENCODER}{path}", {}) for path, _ in layers],
        },
        sizes={
            "vocabulary": spec.vocab_size,
            "hidden": spec.hidden_size,
            "dense": spec.intermediate_size,
            "experts": spec.num_experts,
            "expert": spec.expert_size,
            "2 expert": 2 * spec.expert_size,
        },
        dropped=tuple(Dropped(name, _NO_VISION, prefixed=False) for name in files if name.startswith(vision)),
        unused={},
    )


def _place(path: str, sizes: dict[str, int]) -> Place:
    return Place(f"{DECODER}{path}", f"{ENCODER}{path}", sizes)


def _sizes(spec: DiffusionGemmaSpec, *, is_sliding: bool) -> dict[str, int]:
    """What attention of a type of layer has: widths of queries, of keys, and of one head."""
    shape = spec.sliding if is_sliding else spec.full
    return {"query": spec.num_heads * shape.head_dim, "key": shape.key_heads * shape.head_dim, "head": shape.head_dim}


def _row(engine: str, *parts: tuple[str, Shape], packing: Packing | None = None) -> Row:
    """One parameter of the stack, from tensors whose names begin behind the stack's own."""
    both = (tuple((_under(stack, name), shape) for name, shape in parts) for stack in (DECODER, ENCODER))
    decoder, encoder = both
    return Row(engine=_under(DECODER, engine), diffusers=decoder, original=encoder, packing=packing)


def _under(stack: str, name: str) -> str:
    """A name of the stack, unless a place in braces brings it along."""
    return name if name.startswith("{") else f"{stack}{name}"


def _same(name: str, *shape: str | int, packing: Packing | None = None) -> Row:
    return _row(name, (name, shape), packing=packing)


def _own(name: str, *parts: tuple[str, Shape], packing: Packing | None = None) -> Row:
    """One parameter that the decoder alone has."""
    return Row(engine=name, diffusers=parts, original=parts, packing=packing)


def _attention(word: str, *products: tuple[str, str]) -> Row:
    parts = tuple((f"{{{word}}}.self_attn.{name}.weight", (size, "hidden")) for name, size in products)
    return _row(f"{{{word}}}.self_attn.qkv_proj.weight", *parts, packing="panels")


_SELF = f"{DECODER}self_conditioning"
_ENDS: tuple[Row, ...] = (
    _same("embed_tokens.weight", "vocabulary", "hidden"),
    _same("norm.weight", "hidden"),
    _own("decoder_scalars", ("{decoder_layer}.layer_scalar", (1,))),
    _own("encoder_scalars", ("{encoder_layer}.layer_scalar", (1,))),
    _own(f"{_SELF}.pre_norm.weight", (f"{_SELF}.pre_norm.weight", ("hidden",))),
    _own(
        f"{_SELF}.mlp.gate_up_proj.weight",
        (f"{_SELF}.gate_proj.weight", ("dense", "hidden")),
        (f"{_SELF}.up_proj.weight", ("dense", "hidden")),
        packing="gated",
    ),
    _own(f"{_SELF}.mlp.down_proj.weight", (f"{_SELF}.down_proj.weight", ("hidden", "dense")), packing="panels"),
)
_LAYER: tuple[Row, ...] = (
    *(_same(f"{{layer}}.{name}.weight", "hidden") for name in _NORMS),
    _attention("sliding", ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "key")),
    _attention("full", ("q_proj", "query"), ("k_proj", "key")),
    _same("{layer}.self_attn.o_proj.weight", "hidden", "query", packing="panels"),
    _same("{layer}.self_attn.q_norm.weight", "head"),
    _same("{layer}.self_attn.k_norm.weight", "head"),
    _row(
        "{layer}.mlp.gate_up_proj.weight",
        ("{layer}.mlp.gate_proj.weight", ("dense", "hidden")),
        ("{layer}.mlp.up_proj.weight", ("dense", "hidden")),
        packing="gated",
    ),
    _same("{layer}.mlp.down_proj.weight", "hidden", "dense", packing="panels"),
    _same("{layer}.router.proj.weight", "experts", "hidden", packing="panels"),
    _same("{layer}.router.scale", "hidden"),
    _same("{layer}.router.per_expert_scale", "experts"),
    _same("{layer}.experts.gate_up_proj", "experts", "2 expert", "hidden", packing="gated"),
    _same("{layer}.experts.down_proj", "experts", "hidden", "expert", packing="panels"),
)
