"""What the trainer records on a GPU: steps that never look at the host, and a replay that is the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.training.autoencoder import _crops_loss, _decoder_loss, new_autoencoder
from benchmarks.training.flow import _loss
from benchmarks.training.gradients import Gradients, Numbers
from benchmarks.training.training import Plan, kernels_as_matrices
from benchmarks.training.transformer import CAPTION_TOKENS, Model, new_text_encoder, new_transformer

# Both kinds of sizes: 64 image tokens, and 48 that are padded to 64.
SIDES = ((128, 128), (96, 128))
Loss = tuple[nn.Module, Callable[..., Numbers], Sequence[Sequence[Tensor]]]


def of_crops(device: str) -> Loss:
    random = torch.Generator().manual_seed(0)
    vae = new_autoencoder()
    kernels_as_matrices(vae)
    pixels = torch.randint(0, 256, (4, 64, 64, 3), generator=random, dtype=torch.uint8)
    return vae, partial(_crops_loss, vae, plan_of(device)), [(pixels, torch.randn(4, 16, 8, 8, generator=random))]


def of_decoder(device: str) -> Loss:
    random = torch.Generator().manual_seed(0)
    vae = new_autoencoder().requires_grad_(False)
    vae.decoder.requires_grad_(True)
    inputs = [
        (
            torch.randint(0, 256, (4, height, width, 3), generator=random, dtype=torch.uint8),
            torch.rand(4, 1, 1, 1, generator=random),
            torch.randn(4, 16, height // 8, width // 8, generator=random),
        )
        for height, width in SIDES
    ]
    return vae, partial(_decoder_loss, vae, plan_of(device)), inputs


def of_flow(device: str) -> Loss:
    random = torch.Generator().manual_seed(0)
    model = Model(new_text_encoder(400), new_transformer())
    nn.init.normal_(model.transformer.all_final_layer["2-1"].linear.weight, std=0.02)
    inputs = [
        (
            torch.randn(4, 16, height // 8, width // 8, generator=random).half(),
            torch.randn(4, 16, height // 8, width // 8, generator=random),
            torch.rand(4, generator=random),
            torch.randint(0, 400, (4, CAPTION_TOKENS), generator=random),
            (torch.arange(CAPTION_TOKENS) < torch.tensor([[9], [14], [20], [32]])).long(),
        )
        for height, width in SIDES
    ]
    return model, partial(_loss, model, plan_of(device)), inputs


def plan_of(device: str) -> Plan:
    """Autocast knows no meta device: the CPU's is named, which leaves meta tensors in float32."""
    return Plan(steps=1, batch=4, rate=1.0, warmup=1, device="cpu" if device == "meta" else device)


RECORDED = 1e-4
"""Relative difference of a number: the same kernels, some of which add up in any order."""
RECORDED_GRADIENT = 0.02
"""The same of a gradient, whose products are in bfloat16, of eight bits."""

LOSSES = {"crops": of_crops, "decoder": of_decoder, "flow": of_flow}


class OnDevice(TorchDispatchMode):
    """Fails at the first operation that touches a tensor of the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            assert not isinstance(value, Tensor) or value.device.type == "meta", f"{func} works on the host"
        return out


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_stays_on_its_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values, so that nothing can be read from them: what a recording must not do either."""
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    module, loss_of, inputs = LOSSES[name]("meta")
    module.to("meta")
    reached: list[list[bool]] = []
    for values in inputs:
        there = [value.to("meta") for value in values]
        loss_of(*there)  # tables that are made once
        module.zero_grad()
        with OnDevice():
            loss_of(*there)[0].backward()
        reached.append([parameter.grad is not None for parameter in module.parameters()])
    assert all(some == reached[0] for some in reached), "a recording zeroes the gradients that its own shapes reach"
    with pytest.raises(AssertionError, match="works on the host"), OnDevice():
        torch.ones(2) + 1


def test_gradients_are_those_of_the_last_step() -> None:
    weight = nn.Parameter(torch.tensor([2.0, 3.0]))
    unused = nn.Parameter(torch.ones(1))
    gradients = Gradients([weight, unused], lambda x: ((weight * x).sum(), x.sum()), "cpu")
    for x in (torch.tensor([1.0, 5.0]), torch.tensor([4.0, -1.0])):
        loss, other = gradients(x)
        assert (float(loss), float(other)) == (float((weight.detach() * x).sum()), float(x.sum()))
        assert not loss.requires_grad
        assert weight.grad is not None
        assert torch.equal(weight.grad, x)
        assert unused.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no GPU here")
@pytest.mark.parametrize("name", LOSSES)
def test_a_recorded_step_is_the_step(name: str) -> None:
    """In turn over all shapes, with inputs that were not there when it was recorded."""
    module, loss_of, inputs = LOSSES[name]("cuda")
    module.cuda()
    parameters = [p for p in module.parameters() if p.requires_grad]
    recorded = Gradients(parameters, loss_of, "cuda")
    for turn in range(3):
        for values in inputs:
            rolled = [value.roll(turn, dims=0) for value in values]
            changed = [value * 0.9**turn if value.is_floating_point() else value for value in rolled]
            numbers = recorded(*changed)
            found = [p.grad for p in parameters]
            module.zero_grad(set_to_none=True)
            eager = loss_of(*(value.cuda() for value in changed))
            eager[0].backward()
            # A step that is kept alive keeps its nodes on this stream, which breaks the recording of the next shape.
            expected = tuple(number.detach() for number in eager)
            del eager
            torch.testing.assert_close(numbers, expected, rtol=RECORDED, atol=1e-5)
            for parameter, gradient in zip(parameters, found, strict=True):
                assert (parameter.grad is None) == (gradient is None)
                if parameter.grad is not None and gradient is not None:
                    scale = torch.linalg.norm(parameter.grad)
                    assert torch.linalg.norm(gradient - parameter.grad) <= RECORDED_GRADIENT * scale + 1e-7
                parameter.grad = gradient
