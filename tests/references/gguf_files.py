"""Writers of GGUF files, through the gguf library: Z-Image's transformer and text encoder, and damaged headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from tests.references.engine_weights import StateDict

Kind = GGMLQuantizationType
MADE = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0, Kind.MXFP4, Kind.TQ2_0)
"""Types that the library writes."""


def write(
    file: Path,
    state: StateDict,
    kind: Kind,
    *,
    architecture: str = "lumina2",
    metadata: Mapping[str, object] | None = None,
) -> StateDict:
    """Write a file whose matrices are of one type where their inputs are whole blocks, and of F32 elsewhere.

    Returns:
        What all of it decodes to, by the library.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            assert isinstance(value, int)
            writer.add_uint32(key, value)
    decoded = {}
    for name, values in state.items():
        numbers = values.float().numpy()
        fits = values.dim() == 2 and values.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 and not name.endswith("_token")
        used = kind if fits else Kind.F32
        data = quants.quantize(numbers, used)
        writer.add_tensor(name, data, raw_dtype=used)
        back = numbers if used == Kind.F32 else quants.dequantize(data, used)
        decoded[name] = torch.from_numpy(np.float32(back).reshape(numbers.shape))
    _close(writer)
    return decoded


def write_blocks(file: Path, blocks: Mapping[str, tuple[Kind, npt.NDArray[np.uint8]]]) -> None:
    """Write tensors of bytes as they are, [rows, bytes]."""
    writer = gguf.GGUFWriter(file, "lumina2")
    for name, (kind, data) in blocks.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    _close(writer)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_names(state: StateDict) -> StateDict:
    """A text encoder's weights under llama.cpp's names."""
    renamed = {}
    for name, values in state.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", name)
        if found:
            renamed[f"blk.{found[1]}.{_LLAMA[found[2]]}.weight"] = values
        elif name != "lm_head.weight":
            renamed[
                {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
            ] = values
    return renamed
