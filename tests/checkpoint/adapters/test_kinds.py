"""What every kind of adapter adds, against matrices made by hand in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from max_zimage.checkpoint.adapters import added, changes
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.tensors import Files
from tests.references.adapters import (
    SCALE,
    Matrix,
    factors,
    near,
    opened,
    original_source,
    random,
    rows_of,
    source,
    specs,
    state,
    weight,
)
from tests.references.tiny import StateDict

QUERY = "layers.0.attention.to_q"
WIDE = "layers.1.feed_forward.w1"


@pytest.fixture(params=[1 << 20, 7 * 256], ids=["one block", "blocks of 7 rows"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(changes, "_CHUNK", request.param)
    return int(request.param)


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({}, 1.0),
        ({"alpha": torch.tensor(8.0)}, 2.0),
        ({"alpha": torch.tensor([2], dtype=torch.int64)}, 0.5),
        ({"alpha": torch.tensor(-4.0, dtype=torch.float64)}, -1.0),
        ({"scale": torch.tensor(0.25)}, 0.25),
    ],
)
def test_low_rank(extra: StateDict, factor: float, chunk: int, tmp_path: Path) -> None:
    lora = factors(rank=4, modules=(WIDE,))
    parts = {"lora_down.weight": lora.down[WIDE], "lora_up.weight": lora.up[WIDE], **extra}
    name = f"{WIDE}.weight"
    found = rows_of(name, (opened(tmp_path, WIDE, parts), SCALE))
    near(found, weight(name) + SCALE * lora.deltas(factor)[WIDE])


def test_a_rank_above_the_sides_of_the_matrix(chunk: int, tmp_path: Path) -> None:
    """Larger than need be, and legal; alpha is divided by the rank that the file has."""
    lora = factors(rank=300, modules=(QUERY,))
    parts = {"lora_A.weight": lora.down[QUERY], "lora_B.weight": lora.up[QUERY], "alpha": torch.tensor(75.0)}
    found = rows_of(f"{QUERY}.weight", (opened(tmp_path, QUERY, parts), SCALE))
    near(found, weight(f"{QUERY}.weight") + SCALE * lora.deltas(0.25)[QUERY])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_stored_in_another_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """The product is that of the numbers as PyTorch reads them."""
    down, up = random(4, 256).to(dtype), random(256, 4, seed=2).to(dtype)
    adapter = opened(tmp_path, QUERY, {"lora_A.weight": down, "lora_B.weight": up})
    delta = up.double().numpy() @ down.double().numpy()
    near(rows_of(f"{QUERY}.weight", (adapter, 1.0)), weight(f"{QUERY}.weight") + delta)


def test_every_float8(tmp_path: Path) -> None:
    """All 254 numbers of float8, as PyTorch reads them."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    kept = torch.where(numbers.float().isnan(), torch.zeros(256), numbers.float()).to(torch.float8_e4m3fn)
    adapter = opened(tmp_path, QUERY, {"lora_A.weight": torch.ones(1, 256), "lora_B.weight": kept.reshape(256, 1)})
    near(rows_of(f"{QUERY}.weight", (adapter, 1.0)), weight(f"{QUERY}.weight") + kept.double().numpy()[:, np.newaxis])


def test_loha(chunk: int, tmp_path: Path) -> None:
    rank = 5
    a, b = random(256, rank), random(rank, 256, seed=2)
    c, d = random(256, rank, seed=3), random(rank, 256, seed=4)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(2.0)}
    delta = (2 / rank) * (a.double() @ b.double()).numpy() * (c.double() @ d.double()).numpy()
    found = rows_of(f"{QUERY}.weight", (opened(tmp_path, QUERY, parts), SCALE))
    near(found, weight(f"{QUERY}.weight") + SCALE * delta)


LOKR: Mapping[str, tuple[tuple[str, ...], float]] = {
    "both whole": (("w1", "w2"), 1.0),  # the alpha of 1e10 says nothing
    "second a product": (("w1", "w2_a", "w2_b"), 1e10 / 3),
    "first a product": (("w1_a", "w1_b", "w2"), 1e10 / 2),
    "both products": (("w1_a", "w1_b", "w2_a", "w2_b"), 1e10 / 3),
}


@pytest.mark.parametrize("case", LOKR)
def test_lokr(case: str, chunk: int, tmp_path: Path) -> None:
    shapes = {"w1": (4, 8), "w1_a": (4, 2), "w1_b": (2, 8), "w2": (64, 32), "w2_a": (64, 3), "w2_b": (3, 32)}
    names, factor = LOKR[case]
    tensors = {name: random(*shapes[name], seed=len(name) + i) for i, name in enumerate(names)}
    parts = {
        f"lokr_{name}": values * (1e-10 if factor > 1 and name[-1] == "a" else 1) for name, values in tensors.items()
    }
    found = rows_of(f"{QUERY}.weight", (opened(tmp_path, QUERY, {**parts, "alpha": torch.tensor(1e10)}), SCALE))

    def whole(name: str) -> Matrix:
        exact = {part.removeprefix("lokr_"): values.double().numpy() for part, values in parts.items()}
        return np.asarray(exact[name] if name in exact else exact[f"{name}_a"] @ exact[f"{name}_b"])

    near(found, weight(f"{QUERY}.weight") + SCALE * factor * np.kron(whole("w1"), whole("w2")))


def test_lokr_of_query_key_and_value_together(chunk: int, tmp_path: Path) -> None:
    """Its blocks of rows begin and end inside one of the three; into files of either naming."""
    first, second = random(8, 16), random(96, 16, seed=2)
    adapter = opened(tmp_path, "layers.0.attention.qkv", {"lokr_w1": first, "lokr_w2": second})
    delta = np.kron(first.double().numpy(), second.double().numpy())
    dim = specs().transformer.dim
    parts = []
    for index, part in enumerate(("to_q", "to_k", "to_v")):
        name = f"layers.0.attention.{part}.weight"
        parts.append(rows_of(name, (adapter, 1.0)))
        near(parts[-1], weight(name) + delta[index * dim : (index + 1) * dim])
    fused = rows_of("layers.0.attention.qkv.weight", (adapter, 1.0), base=original_source(tmp_path))
    assert np.array_equal(fused, np.concatenate(parts))


class TestLengths:
    """DoRA, whose two writers mean different lengths."""

    down, up = random(4, 256), random(256, 4, seed=2)
    name = f"{QUERY}.weight"

    @property
    def delta(self) -> Matrix:
        return np.asarray(self.up.double().numpy() @ self.down.double().numpy())

    def changed(self, folder: Path, part: str, lengths: torch.Tensor, factor: float) -> np.ndarray:
        parts = {"lora_A.weight": self.down, "lora_B.weight": self.up, part: lengths, "alpha": torch.tensor(4 * factor)}
        return rows_of(self.name, (opened(folder, QUERY, parts), SCALE))

    @staticmethod
    def between(before: Matrix, after: Matrix) -> Matrix:
        return before + SCALE * (after - before)

    @pytest.mark.parametrize("part", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
    def test_of_peft(self, part: str, chunk: int, tmp_path: Path) -> None:
        """Rows of the sum are brought to the lengths."""
        lengths = random(256, seed=5).abs() + 0.5
        summed = weight(self.name) + 0.5 * self.delta
        rows = lengths.double().numpy()[:, np.newaxis] / np.linalg.norm(summed, axis=1, keepdims=True)
        near(self.changed(tmp_path, part, lengths, 0.5), self.between(weight(self.name), summed * rows))

    def test_by_output(self, chunk: int, tmp_path: Path) -> None:
        """ComfyUI's: the length that is replaced is the unchanged weight's."""
        lengths = random(256, 1, seed=5).abs() + 0.5
        before = weight(self.name)
        rows = lengths.double().numpy() / (np.linalg.norm(before, axis=1, keepdims=True) + np.finfo(np.float32).eps)
        wanted = self.between(before, (before + 0.5 * self.delta) * rows)
        near(self.changed(tmp_path, "dora_scale", lengths, 0.5), wanted)

    def test_by_input(self, chunk: int, tmp_path: Path) -> None:
        lengths = random(1, 256, seed=5).abs() + 0.5
        summed = weight(self.name) + 0.5 * self.delta
        columns = lengths.double().numpy() / (np.linalg.norm(summed, axis=0) + np.finfo(np.float32).eps)
        wanted = self.between(weight(self.name), summed * columns)
        near(self.changed(tmp_path, "dora_scale", lengths, 0.5), wanted)

    def test_columns_of_query_key_and_value_together(self, chunk: int, tmp_path: Path) -> None:
        """A column's length is that of all three, wherever a checkpoint has them."""
        names = [f"layers.0.attention.{part}.weight" for part in ("to_q", "to_k", "to_v")]
        up, lengths = random(768, 4, seed=2), random(1, 256, seed=5).abs() + 0.5
        parts = {"lora_A.weight": self.down, "lora_B.weight": up, "dora_scale": lengths}
        adapter = opened(tmp_path, "layers.0.attention.qkv", parts)
        summed = np.concatenate([weight(name) for name in names]) + up.double().numpy() @ self.down.double().numpy()
        wanted = summed * lengths.double().numpy() / np.linalg.norm(summed, axis=0)
        near(np.concatenate([rows_of(name, (adapter, 1.0)) for name in names]), wanted)
        fused = rows_of("layers.0.attention.qkv.weight", (adapter, 1.0), base=original_source(tmp_path))
        near(fused, wanted)

    def test_their_own_lengths_change_nothing_but_the_direction(self, tmp_path: Path) -> None:
        """What a trainer starts from: no delta, and the lengths that are there."""
        before = weight(self.name)
        lengths = torch.from_numpy(np.linalg.norm(before, axis=1)).float()
        parts = {"lora_A.weight": self.down, "lora_B.weight": self.up * 0, "lora_magnitude_vector": lengths}
        near(rows_of(self.name, (opened(tmp_path, QUERY, parts), 1.0)), before)


class TestDifferences:
    @pytest.mark.parametrize(
        ("module", "tensor", "part"),
        [
            (QUERY, f"{QUERY}.weight", "diff"),
            ("layers.0.attention_norm1", "layers.0.attention_norm1.weight", "w_norm"),
            ("layers.0.attention.q_norm", "layers.0.attention.norm_q.weight", "diff"),
            ("x_pad_token", "x_pad_token", "diff"),
            ("x_embedder", "all_x_embedder.2-1.bias", "diff_b"),
            ("final_layer.linear", "all_final_layer.2-1.linear.bias", "diff_b"),
            ("layers.1.adaLN_modulation.0", "layers.1.adaLN_modulation.0.bias", "b_norm"),
        ],
    )
    def test_of_anything(self, module: str, tensor: str, part: str, chunk: int, tmp_path: Path) -> None:
        difference = random(*state()[tensor].shape)
        adapter = opened(tmp_path, module, {part: difference})
        found = rows_of(tensor, (adapter, SCALE))
        near(found, weight(tensor) + SCALE * difference.double().numpy())
        before = source()
        after = added([(adapter, 1.0)], "transformer")(before)
        assert [name for name in after.tensors if after.tensors[name] is not before.tensors[name]] == [tensor]

    def test_biases_of_the_second_factor(self, tmp_path: Path) -> None:
        """They are multiplied as the product is."""
        module = "cap_embedder.1"
        outputs, inputs = state()[f"{module}.weight"].shape
        bias = random(outputs, seed=9)
        parts = {"lora_A.weight": random(4, inputs), "lora_B.weight": random(outputs, 4), "lora_B.bias": bias}
        adapter = opened(tmp_path, module, {**parts, "alpha": torch.tensor(2.0)})
        near(
            rows_of(f"{module}.bias", (adapter, SCALE)), weight(f"{module}.bias") + SCALE * 0.5 * bias.double().numpy()
        )


def test_keys_alone_leave_queries_and_values_to_the_bit(tmp_path: Path) -> None:
    """In what graphs are given, from files of either naming."""
    adapter = opened(
        tmp_path, "layers.0.attention.to_k", {"lora_A.weight": random(4, 256), "lora_B.weight": random(256, 4)}
    )
    names, dim = transformer_names(specs().transformer), specs().transformer.dim
    engine = "layers.0.attention.qkv.weight"
    for files in (source(), original_source(tmp_path)):
        before, after = (
            load(plan(names, files, transforms), "float32", only=[engine])[engine].to_numpy()
            for transforms in ((), (added([(adapter, 1.0)], "transformer"),))
        )
        differing = (before != after).any(axis=1)
        assert differing.sum() == differing[dim : 2 * dim].sum() == dim


def test_numbers_are_read_a_piece_at_a_time(tmp_path: Path, chunk: int) -> None:
    """What fills a buffer is what is read at once."""
    lora = factors(rank=4, modules=(WIDE,))
    adapter = opened(tmp_path, WIDE, {"lora_A.weight": lora.down[WIDE], "lora_B.weight": lora.up[WIDE]})
    tensor = added([(adapter, 1.0)], "transformer")(source()).tensors[f"{WIDE}.weight"]
    whole = np.empty(tensor.size, np.float32)
    tensor.fill(whole, Files())
    assert np.array_equal(whole.reshape(tensor.shape), tensor.rows(0, tensor.shape[0], Files()))
    assert np.array_equal(tensor.rows(5, 9, Files()), whole.reshape(tensor.shape)[5:9])
