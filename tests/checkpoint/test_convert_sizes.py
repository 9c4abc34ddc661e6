"""What converted files of the published models would be: how many tensors, how many bytes; and memory as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints import weights
from max_zimage import convert
from max_zimage.checkpoint.config import model_specs
from max_zimage.checkpoint.published import published_configs
from max_zimage.checkpoint.tensors import Source, StoredTensor
from max_zimage.checkpoint.writers.inputs import Opened, check_component
from max_zimage.checkpoint.writers.layouts import Storing
from max_zimage.checkpoint.writers.output import Component, component_of
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.profiling.peak_memory import HostMemory
from tests.references.tiny import TinySpec, write_tiny


def published(component: str, layout: str, type: str | None) -> Component:
    """A component of the published shape, of which there are names and shapes alone."""
    shapes = weights.tensors(FULL_MODEL)[component]
    file = Path("published")
    tensors = {name: StoredTensor(file, name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    configs = published_configs()
    opened = Opened(
        paths=(),
        directory=None,
        configs=configs,
        specs=model_specs(**configs),
        sources={component: Source((), tensors)},
    )
    checked = check_component(opened, component, ())
    return component_of(opened, checked, Storing(component, layout, type), {})


@pytest.mark.parametrize(
    ("component", "layout", "type", "tensors", "nbytes"),
    [
        ("transformer", "original", None, 453, 12_309_817_472),
        ("text_encoder", "original", None, 398, 8_044_936_192),
        ("vae", "original", None, 244, 167_639_366),
        # Published as 6,577,440,704 and 4,280,404,704 bytes, headers, and the encoder's tokenizer, included.
        ("transformer", "gguf", "q8_0", 453, 6_577_410_560),
        ("text_encoder", "gguf", "q8_0", 398, 4_274_423_808),
        ("transformer", "original", "fp8_scaled", 453 + 2 * 170, 6_293_617_772),
    ],
)
def test_sizes_are_the_published_ones(component: str, layout: str, type: str | None, tensors: int, nbytes: int) -> None:
    items = published(component, layout, type).items
    assert len(items) == tensors
    assert sum(item.nbytes for item in items) == pytest.approx(nbytes, rel=2e-5)


@pytest.mark.parametrize("type", ["float32", "bfloat16", "fp8_scaled", "q8_0"])
def test_memory_holds_a_piece_of_a_tensor(tmp_path: Path, type: str) -> None:
    """A matrix of 128 MiB: no more of it may be in memory than a fifth, whether it is copied, rounded or quantized."""
    write_tiny(tmp_path / "model", TinySpec())
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    config = tmp_path / "model" / "text_encoder" / "config.json"
    state = load_file(file)
    vocabulary, width = 1 << 19, 64
    state["model.embed_tokens.weight"] = torch.full((vocabulary, width), 0.5)
    before = config.read_text()
    config.write_text(before.replace('"vocab_size": 408', f'"vocab_size": {vocabulary}'))
    assert config.read_text() != before
    save_file(state, file, metadata={"format": "pt"})
    del state
    meter = HostMemory()
    held = meter.begin()
    if held is None:
        pytest.skip(meter.meaning)
    layout, output = ("gguf", "x.gguf") if type == "q8_0" else ("original", "x.safetensors")
    convert(tmp_path / "model", tmp_path / output, layout=layout, type=type, components=["text_encoder"])
    most = meter.end()
    assert most is not None
    assert (tmp_path / output).stat().st_size > 32 << 20
    assert most - held < 4 * vocabulary * width / 5
