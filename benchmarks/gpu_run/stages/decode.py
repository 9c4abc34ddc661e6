"""The autoencoder's decoder alone: right beside PyTorch in float32, and fast.

It is the graph that pictures are decoded with, from the same artifact. Its random weights need no checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from max.graph.weights import SafetensorWeights
from torch.nn.functional import group_norm, scaled_dot_product_attention, silu

from benchmarks.checkpoints.shapes import configs, size_of
from benchmarks.checkpoints.weights import split, tensors, write_component
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.loading import load, random_numbers
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.gpu_run.variants import WIDE
from benchmarks.measure import max_abs, psnr
from max_zimage.compile.compiler import wait_for
from max_zimage.components import ZImageVaeModel

_THREADS = 8


def parts(bench: Bench) -> list[Part]:
    """Both sizes; each is checked, then timed. Then what was slow before: group norms and attention, alone."""
    whole = [
        Part(name=f"{side}x{side}", seconds=12, measure=partial(_measured, bench, side))
        for side in ((64,) if bench.small else (1024, 512))
    ]
    return [*whole, Part(name="pieces", seconds=12, measure=lambda: _pieces(bench))]


def _measured(bench: Bench, side: int) -> Iterator[Row]:
    """Against the reference's decoder in float32; what is allowed is what that one loses in the model's dtype."""
    ours, theirs = bench.once("decoders", lambda: (_ours(bench), _theirs(bench)))
    spec, rows = ours.spec, side // ours.spec.downscale
    generator = torch.Generator(bench.torch_device).manual_seed(side)
    latents = torch.randn(1, spec.latent_channels, rows, rows, generator=generator, device=bench.torch_device)
    squares = latents.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1)
    tokens = bench.upload(squares)
    pixels = bench.download(ours.model(tokens)[0]).cpu().numpy()
    exact = _decoded(theirs, latents, torch.float32)
    plain = _decoded(theirs, latents, bench.torch_dtype)
    theirs.float()
    calls = {"ours": lambda: ours.model(tokens)}
    timing = bench.timed(calls, samples=10, per_sample=3)["ours"]
    # Of bytes: a picture that is one off in every value has 48 dB.
    yield Row(
        case=f"decode {side}x{side}",
        variant="ours",
        dtype=bench.dtype,
        timing=timing,
        psnr_db=psnr(pixels, exact),
        max_abs=max_abs(pixels, exact),
        relative_l2=_relative(pixels, exact),
        allowed=2 * _relative(plain, exact) + 2e-3,
        note=f"PyTorch in {bench.dtype} has {psnr(plain, exact):.4g} dB",
    )


def _pieces(bench: Bench) -> Iterator[Row]:
    """The widest and the largest group norm, each twice, and the middle block's attention, beside PyTorch's."""
    from tests.references.gpu_pictures import NORMS

    loaded = bench.once("picture_ops", lambda: load(bench, "picture_ops", random_numbers))
    largest, smallest = (16, 8) if bench.small else (1024, 128)
    for index, side in ((1, largest), (3, smallest)):
        channels, groups = list(NORMS.values())[index]
        x, weight, bias = (
            torch.randn(shape, device=bench.torch_device).to(torch.bfloat16)
            for shape in ((1, side, side, channels), (channels,), (channels,))
        )
        buffers, turned = [bench.upload(each) for each in (x, weight, bias)], x.permute(0, 3, 1, 2)
        calls: dict[str, Callable[[], object]] = {
            "own op": partial(loaded[f"norm_{index}"], *buffers),
            "torch": partial(_two_norms, turned, groups, weight, bias),
        }
        # Each of the two reads the picture twice and writes it once.
        yield from _alone(bench, f"two group norms of {side}x{side}x{channels}", calls, gbyte=6e-9 * 2 * x.numel())
    positions = smallest**2
    heads = [torch.randn(1, positions, WIDE, device=bench.torch_device).to(torch.bfloat16) for _ in range(3)]
    given, (query, key, value) = [bench.upload(each) for each in heads], (each[None] for each in heads)
    calls = {
        "own op": lambda: loaded["wide"](*given),
        "torch": lambda: scaled_dot_product_attention(query, key, value),
    }
    yield from _alone(bench, f"wide attention, {positions} positions", calls, gflop=4e-9 * positions**2 * WIDE)


def _two_norms(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return group_norm(x, groups, weight, bias), silu(group_norm(x, groups, weight, bias))


def _alone(
    bench: Bench,
    case: str,
    calls: dict[str, Callable[[], object]],
    gflop: float | None = None,
    gbyte: float | None = None,
) -> Iterator[Row]:
    for name, timing in bench.timed(calls, samples=5, per_sample=5).items():
        yield Row(case=case, variant=name, dtype="bfloat16", timing=timing, gflop=gflop, gbyte=gbyte)


def _folder(bench: Bench) -> Path:
    """A checkpoint of nothing but the autoencoder."""
    folder = bench.work / f"vae{'-small' if bench.small else ''}"
    size = size_of("small" if bench.small else "full")
    config = folder / "config.json"
    if not config.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files = split("vae", tensors(size.specs)["vae"], bench.dtype, 1 << 40)
        write_component(folder, files, bench.dtype, 0, _THREADS)
        config.write_text(json.dumps(configs(size, bench.dtype)["vae"]), encoding="utf-8")
    return folder


def _ours(bench: Bench) -> ZImageVaeModel:
    folder = _folder(bench)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = SafetensorWeights(sorted(folder.glob("*.safetensors")))
    model = ZImageVaeModel(config, bench.dtype, [bench.device], weights, session=bench.session)
    wait_for([model.model])
    return model


def _theirs(bench: Bench):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(_folder(bench), torch_dtype=torch.float32).to(bench.torch_device)


def _decoded(model, latents: torch.Tensor, dtype: torch.dtype):
    """uint8 [1, side, side, 3], rounded as a pipeline does."""
    scaled = latents / model.config.scaling_factor + model.config.shift_factor
    pixels = model.to(dtype).decode(scaled.to(dtype), return_dict=False)[0].float()
    return torch.round((pixels / 2 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _relative(actual, expected) -> float:
    """Of pixels around grey."""
    wanted = torch.from_numpy(expected).double() - 127.5
    return float((torch.from_numpy(actual).double() - 127.5 - wanted).norm() / wanted.norm())
