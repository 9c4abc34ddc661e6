"""The counted work of the graphs against torch's own counter on diffusers' modules, and against their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from max.graph import DeviceRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Model

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.cli.model_shapes import specs_of
from max_zimage.compile import work
from max_zimage.compile.ahead_of_time import FULL_MODEL, with_layers
from max_zimage.compile.counting import Counter
from max_zimage.compile.registry import count, made
from max_zimage.compile.work import Work
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.graphs.kernel_library import without_kernels
from max_zimage.graphs.step.inputs import PredictInputs

TINY = specs_of("tiny-zimage")
FEW = with_layers(FULL_MODEL, 2)
COUNTER = Counter(
    text_encoder=TINY.text_encoder, layers=3, transformer=TINY.transformer, vae=TINY.vae, size=4, picture_size=4
)


@pytest.fixture
def counted() -> Iterator[FlopCounterMode]:
    # Only in products and softmax of their own is attention visible to the counter on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


@pytest.mark.parametrize(("side", "tokens"), [(128, 24), (96, 40)])
def test_a_step_of_the_transformer(side: int, tokens: int, counted: FlopCounterMode) -> None:
    """Diffusers repeats the conditioning and this step's modulation in every step; all of it must agree."""
    model = ZImageTransformer2DModel.from_pretrained(EMBEDDED / "transformer")
    latents, features = torch.randn(16, 1, side // 8, side // 8), torch.randn(tokens, TINY.transformer.caption_dim)
    model([latents], torch.tensor([0.5]), [features], return_dict=False)
    image, caption = (side // 16) ** 2, -(-tokens // 32) * 32
    padded = -(-image // 32) * 32
    ours = (
        work.denoise(
            TINY.transformer, items=1, image_tokens=image, image_padded=padded, tokens=padded + caption, size=4
        )
        + work.conditioning(TINY.transformer, prompts=1, length=caption, size=4)
        + work.modulation(TINY.transformer, steps=1, size=4)
    )
    assert ours.flops == pytest.approx(counted.get_total_flops(), rel=0.005)


@pytest.mark.parametrize(("prompts", "length"), [(1, 32), (2, 96)])
def test_the_text_encoder(prompts: int, length: int, counted: FlopCounterMode) -> None:
    model = Qwen3Model.from_pretrained(EMBEDDED / "text_encoder")
    model(torch.zeros(prompts, length, dtype=torch.long), use_cache=False)
    spec = TINY.text_encoder
    ours = work.text_encoder(spec, layers=spec.num_layers, prompts=prompts, length=length, size=4)
    assert ours.flops == pytest.approx(counted.get_total_flops(), rel=0.005)


@pytest.mark.parametrize(("pictures", "rows", "columns"), [(1, 16, 16), (2, 8, 12)])
def test_the_decoder(pictures: int, rows: int, columns: int, counted: FlopCounterMode) -> None:
    """Operations, and bytes as hooks on diffusers' convolutions and linear layers see them."""
    decoder = AutoencoderKL.from_pretrained(EMBEDDED / "vae").decoder
    moved = [0]

    def add(module: torch.nn.Conv2d | torch.nn.Linear, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        moved[0] += 4 * (given[0].numel() + module.weight.numel() + result.numel())

    for module in decoder.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(add)
    decoder(torch.randn(pictures, 16, rows, columns))
    attention = 4 * 4 * pictures * rows * columns * TINY.vae.block_out_channels[-1]
    ours = work.decode(TINY.vae, pictures=pictures, rows=rows, columns=columns, size=4, picture_size=4)
    assert ours.flops == pytest.approx(counted.get_total_flops(), rel=0.001)
    assert ours.nbytes == moved[0] + attention


@pytest.mark.parametrize("specs", [TINY, FEW], ids=["tiny", "two layers of the real width"])
def test_without_tokens_only_the_weights_move(specs: ModelSpecs) -> None:
    """Every matrix of every graph once, in bfloat16; embeddings that are looked up and pad tokens are none."""
    layers = specs.text_encoder.num_layers - 1
    image: dict[str, Any] = {"image_tokens": 0, "image_padded": 0, "tokens": 0}
    idle = {
        "denoise": work.denoise(specs.transformer, items=0, **image, size=2),
        "conditioning": work.conditioning(specs.transformer, prompts=0, length=0, size=2),
        "modulation": work.modulation(specs.transformer, steps=0, size=2),
        "text_encoder": work.text_encoder(specs.text_encoder, layers=layers, prompts=0, length=0, size=2),
        "decode": work.decode(specs.vae, pictures=0, rows=0, columns=0, size=2, picture_size=4),
    }
    for graph, counted in idle.items():
        with without_kernels():  # whose matrices are filled up to whole panels
            module, _ = made(graph, specs, "bfloat16", DeviceRef.CPU())
        weights = {name: tuple(map(int, tensor.shape)) for name, tensor in module.parameters}
        used = [name for name in weights if "embed_tokens" not in name and "pad_token" not in name]
        matrices = [prod(weights[name]) for name in used if len(weights[name]) > 1]
        assert counted == Work(flops=0, nbytes=2 * sum(matrices)), graph


def test_a_block_by_hand() -> None:
    """At the real width over two items of 64 tokens, in bfloat16."""
    spec, tokens = FULL_MODEL.transformer, 128
    ours = work.block(spec, items=2, length=64, size=2)
    matrices = 4 * 3840 * 3840 + 3 * 3840 * 10240
    pairs = 2 * 30 * 64 * 64
    assert ours.flops == 2 * tokens * matrices + 2 * 2 * pairs * 128
    # In and out: of qkv 1 and 3 widths, of the projection 1 and 1, of attention 3 and 1, of SwiGLU's matrices.
    assert ours.nbytes == 2 * (matrices + tokens * (10 * 3840 + (3840 + 20480) + (10240 + 3840)))


def test_two_captions_of_a_picture_share_all_but_attention() -> None:
    """A picture of 64 tokens with captions of 32: one row of 128, and attention over two of 96."""
    spec = TINY.transformer
    size: dict[str, Any] = {"image_tokens": 64, "image_padded": 64, "size": 4}
    paired = work.denoise(spec, items=2, tokens=96, is_paired=True, **size)
    row = work.denoise(spec, items=1, tokens=128, **size)
    assert paired.flops - row.flops == spec.num_layers * 4 * spec.dim * (2 * 96**2 - 128**2)


def test_calls_are_counted_from_their_shapes() -> None:
    spec = TINY.transformer
    given: PredictInputs[tuple[int, ...]] = PredictInputs(*[()] * len(PredictInputs._fields))
    shapes = [*given._replace(latents=(1, 64, 64), image_rope=(2, 64, 64, 2), rope=(2, 96, 64, 2))]
    step = work.denoise(spec, items=2, image_tokens=64, image_padded=64, tokens=96, size=4)
    assert count(COUNTER, "denoise", shapes) == step
    paired = work.denoise(spec, items=2, image_tokens=64, image_padded=64, tokens=96, size=4, is_paired=True)
    assert count(COUNTER, "denoise_nag", shapes) == paired
    start = count(COUNTER, "streamed_start", shapes)
    block = count(COUNTER, "streamed_block", [(2, 96, spec.dim)])
    end = count(COUNTER, "streamed_end", [(1, 64, 64), (2, 96, spec.dim)])
    assert start is not None
    assert block is not None
    assert end is not None
    assert start + block * spec.num_layers + end == step
    assert count(COUNTER, "conditioning", [(2, 32, 128)]) == work.conditioning(spec, prompts=2, length=32, size=4)
    assert count(COUNTER, "modulation", [(8,)]) == work.modulation(spec, steps=8, size=4)
    text = work.text_encoder(TINY.text_encoder, layers=3, prompts=2, length=32, size=4)
    assert count(COUNTER, "text_encoder", [(2, 32), (32, 32, 2)]) == text
    pixels = work.decode(TINY.vae, pictures=1, rows=16, columns=12, size=4, picture_size=4)
    assert count(COUNTER, "decode", [(1, 8, 6, 2, 2, 16)]) == pixels
    assert count(COUNTER, "pack", [(1, 16, 8, 2, 8, 2)]) == Work(nbytes=2 * 4 * 4096)
    assert count(COUNTER, "scheduler_step", [(1, 64, 64), (1, 64, 64), (1,)]) == Work(nbytes=3 * 4 * 4096)
    axes = [(1536, 16, 2), (9, 24, 2), (7, 24, 2)]
    assert count(COUNTER, "positions", [*axes, (2, 64, 3), (2, 32, 3)]) == Work(nbytes=8 * (64 * 387 + 32 * 259))
    assert count(COUNTER, "encode", [(1, 16, 8, 16, 8, 3)]) is None
