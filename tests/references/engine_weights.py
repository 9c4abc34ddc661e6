"""The graphs' weights, made from the state dicts of diffusers and transformers with torch."""

from __future__ import annotations

import torch

StateDict = dict[str, torch.Tensor]


def engine_text_encoder(state: StateDict, layers_used: int) -> StateDict:
    """Of the first layers, those that make the features."""
    expected = {"embed_tokens.weight": state["model.embed_tokens.weight"]}
    for layer in range(layers_used):
        block, engine = f"model.layers.{layer}", f"layers.{layer}"
        for leaf in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            expected[f"{engine}.{leaf}.weight"] = state[f"{block}.{leaf}.weight"]
        expected[f"{engine}.self_attn.o_proj.weight"] = state[f"{block}.self_attn.o_proj.weight"]
        expected[f"{engine}.mlp.down_proj.weight"] = state[f"{block}.mlp.down_proj.weight"]
        qkv = [state[f"{block}.self_attn.{part}_proj.weight"] for part in "qkv"]
        expected[f"{engine}.self_attn.qkv_proj.weight"] = torch.cat(qkv)
        gate_up = [state[f"{block}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        expected[f"{engine}.mlp.gate_up_proj.weight"] = torch.cat(gate_up)
    return expected


def engine_transformer(state: StateDict, layers: int, refiner_layers: int) -> StateDict:
    """All of a transformer's."""
    noise = [f"noise_refiner.{i}" for i in range(refiner_layers)]
    context = [f"context_refiner.{i}" for i in range(refiner_layers)]
    main = [f"layers.{i}" for i in range(layers)]
    expected = {"x_pad_token": state["x_pad_token"], "cap_pad_token": state["cap_pad_token"]}
    expected["cap_embedder.norm.weight"] = state["cap_embedder.0.weight"]
    for leaf in ("weight", "bias"):
        expected[f"x_embedder.{leaf}"] = state[f"all_x_embedder.2-1.{leaf}"]
        expected[f"cap_embedder.linear.{leaf}"] = state[f"cap_embedder.1.{leaf}"]
        expected[f"t_embedder.linear_1.{leaf}"] = state[f"t_embedder.mlp.0.{leaf}"]
        expected[f"t_embedder.linear_2.{leaf}"] = state[f"t_embedder.mlp.2.{leaf}"]
        expected[f"final_layer.linear.{leaf}"] = state[f"all_final_layer.2-1.linear.{leaf}"]
        expected[f"final_modulation.{leaf}"] = state[f"all_final_layer.2-1.adaLN_modulation.1.{leaf}"]
        expected[f"modulation.{leaf}"] = torch.cat([state[f"{b}.adaLN_modulation.0.{leaf}"] for b in noise + main])
    for block in noise + context + main:
        head_dim = len(state[f"{block}.attention.norm_q.weight"])
        for leaf in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "feed_forward.w2"):
            expected[f"{block}.{leaf}.weight"] = state[f"{block}.{leaf}.weight"]
        expected[f"{block}.attention.q_norm.weight"] = apart(state[f"{block}.attention.norm_q.weight"], head_dim)
        expected[f"{block}.attention.k_norm.weight"] = apart(state[f"{block}.attention.norm_k.weight"], head_dim)
        expected[f"{block}.attention.out.weight"] = state[f"{block}.attention.to_out.0.weight"]
        query, key, value = (state[f"{block}.attention.to_{part}.weight"] for part in "qkv")
        expected[f"{block}.attention.qkv.weight"] = torch.cat([apart(query, head_dim), apart(key, head_dim), value])
        w13 = [state[f"{block}.feed_forward.{part}.weight"] for part in ("w1", "w3")]
        expected[f"{block}.feed_forward.w13.weight"] = torch.cat(w13)
    return expected


def apart(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """In each head, the rows of the first elements of rotated pairs before those of the second."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def engine_vae(state: StateDict, *, keep_filters: bool = False) -> StateDict:
    """All of an autoencoder's, with filters [height, width, in, out] unless they are to stay [out, in, ...]."""
    weights = {}
    for name, tensor in state.items():
        if ".to_q." in name:
            parts = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            weights[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            turned = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 and not keep_filters else tensor
            weights[name.replace("to_out.0", "to_out")] = turned
    return weights
