"""PEFT's folders, whose configuration decides about scales, and the same configuration in a header of diffusers."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from max_zimage.checkpoint.adapters import AdapterError, open_adapter
from tests.references.adapters import SCALE, Factors, factors, near, random, rows_of, specs, state, weight, written
from tests.references.tiny import StateDict

MODULE = "layers.0.attention.to_q"


def low_rank(lora: Factors, prefix: str = "") -> StateDict:
    return {f"{prefix}{MODULE}.lora_A.weight": lora.down[MODULE], f"{prefix}{MODULE}.lora_B.weight": lora.up[MODULE]}


def peft_folder(root: Path, tensors: StateDict, **config: object) -> Path:
    folder = root / "peft"
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file(
        {f"base_model.model.{name}": values for name, values in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("config", "rank", "factor"),
    [
        ({}, 4, 2.0),
        ({"use_rslora": True}, 4, 8 / sqrt(4)),
        ({"rank_pattern": {"to_q": 2}}, 2, 4.0),
        ({"alpha_pattern": {r"layers\.\d+\.attention\.to_q": 3}}, 4, 0.75),
        ({"alpha_pattern": {"to_k": 3, "attention.to_q": 2}, "rank_pattern": {"to_q": 5}}, 5, 0.4),
        ({"alpha_pattern": {"o_q": 3}}, 4, 2.0),
        ({"fan_in_fan_out": True}, 4, 2.0),  # of layers that are no nn.Linear
        ({"init_lora_weights": "gaussian", "bias": "none", "target_modules": ["to_q"]}, 4, 2.0),
    ],
)
def test_scales(config: dict[str, object], rank: int, factor: float, tmp_path: Path) -> None:
    lora = factors(rank=rank, modules=(MODULE,))
    tensors = low_rank(lora)
    folder = peft_folder(tmp_path, tensors, **config)
    wanted = weight(f"{MODULE}.weight") + SCALE * lora.deltas(factor)[MODULE]
    for path in (folder, folder / "adapter_model.safetensors"):
        adapter = open_adapter(path, specs())
        assert (adapter.path, adapter.name) == (path, path.stem)
        near(rows_of(f"{MODULE}.weight", (adapter, SCALE)), wanted)


def test_lengths(tmp_path: Path) -> None:
    lora = factors(rank=4, modules=(MODULE,))
    tensors = low_rank(lora)
    lengths = random(256, seed=5).abs() + 0.5
    tensors[f"{MODULE}.lora_magnitude_vector"] = lengths
    adapter = open_adapter(peft_folder(tmp_path, tensors, use_dora=True), specs())
    summed = weight(f"{MODULE}.weight") + lora.deltas(2.0)[MODULE]
    wanted = summed * (lengths.double().numpy() / np.linalg.norm(summed, axis=1))[:, np.newaxis]
    near(rows_of(f"{MODULE}.weight", (adapter, 1.0)), wanted)


def test_trained_biases_stand_there_whole(tmp_path: Path) -> None:
    name = "cap_embedder.1.bias"
    bias = random(*state()[name].shape)
    lora = factors(rank=4, modules=(MODULE,))
    tensors = low_rank(lora)
    adapter = open_adapter(peft_folder(tmp_path, {**tensors, name: bias}, bias="all"), specs())
    near(rows_of(name, (adapter, 1.0)), bias.double().numpy())
    near(rows_of(name, (adapter, 0.25)), 0.75 * weight(name) + 0.25 * bias.double().numpy())


def test_the_header_of_diffusers(tmp_path: Path) -> None:
    lora = factors(rank=4, modules=(MODULE,))
    tensors = low_rank(lora, "transformer.")
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 6})}
    adapter = written(tmp_path / "a.safetensors", tensors, metadata)
    near(
        rows_of(f"{MODULE}.weight", (adapter, 1.0)),
        weight(f"{MODULE}.weight") + lora.deltas(1.5)[MODULE],
    )


BAD: dict[str, tuple[dict[str, object], str]] = {
    "another kind": ({"peft_type": "LOHA"}, 'peft_type must be LORA, got "LOHA"'),
    "no alpha": ({"lora_alpha": None}, "lora_alpha must be a number, got nothing"),
    "text for a rank": ({"r": "four"}, 'r must be a number, got "four"'),
    "another base": ({"init_lora_weights": "pissa_niter_4"}, "belongs to weights that were changed before"),
    "layers twice": ({"layer_replication": [[0, 2]]}, r"layer_replication is not supported, got \[\[0, 2\]\]"),
    "bias": ({"bias": "some"}, 'bias must be none, all or lora_only, got "some"'),
    "pattern": ({"alpha_pattern": {"to_(q": 1}}, "alpha_pattern has 'to_\\(q', which is no regular expression"),
    "flag": ({"use_dora": "yes"}, 'use_dora must be true or false, got "yes"'),
    "rank": ({"r": 8}, "its rank is 4, and its configuration says 8"),
    "lengths": ({"use_dora": True}, "it comes without DoRA's lengths, and its configuration says use_dora true"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    config, message = BAD[case]
    with pytest.raises(AdapterError, match=message):
        open_adapter(peft_folder(tmp_path, low_rank(factors(rank=4, modules=(MODULE,))), **config), specs())


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    tensors = low_rank(factors(rank=4, modules=(MODULE,)))
    with pytest.raises(AdapterError, match=r"(?s)does not fit, for 3 reasons:.*peft_type.*use_qalora.*bias"):
        open_adapter(peft_folder(tmp_path, tensors, peft_type="IA3", use_qalora=True, bias="x"), specs())


def test_halves_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(AdapterError, match=r"lacks adapter_config.json and .*; found adapter_model.bin"):
        open_adapter(tmp_path, specs())


def test_an_alpha_that_contradicts(tmp_path: Path) -> None:
    tensors = {**low_rank(factors(rank=4, modules=(MODULE,))), f"{MODULE}.alpha": torch.tensor(8.0)}
    assert open_adapter(peft_folder(tmp_path, tensors), specs()).modules
    (tmp_path / "peft" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    with pytest.raises(AdapterError, match="its tensors ask for a factor of 2, and its configuration for 4"):
        open_adapter(tmp_path / "peft", specs())
