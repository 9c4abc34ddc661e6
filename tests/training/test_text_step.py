"""What a step of the text model's training computes: transformers' logits and gradients, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from benchmarks.training.text.data import batch_of, tokenizer_of
from benchmarks.training.text.loss import loss_of, noised
from benchmarks.training.text.model import CANVAS, WINDOW, Denoiser, config_of, new_model
from benchmarks.training.text.stack import products
from max_zimage import embedded


def _wide_model() -> tuple[Any, torch.Generator]:
    """A model that routes and attends unevenly, which a fresh one does not."""
    model: Any = new_model(config_of(60, 58, 59)).eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(20 if "router" in name else 4 if value.ndim > 1 else 1)
    return model, torch.Generator().manual_seed(3)


def test_a_step_computes_what_transformers_does() -> None:
    """Prompts of different lengths beside captions and canvases, against each row alone as it is at generation."""
    model, random = _wide_model()
    width, lengths = WINDOW + 4, torch.tensor([WINDOW + 4, 3, WINDOW - 1])
    prompts, captions, canvas, other = (torch.randint(58, (3, n), generator=random) for n in (width, *[CANVAS] * 3))
    before = torch.randn(3, CANVAS, 60, generator=random)
    with torch.no_grad():
        found = Denoiser(model, torch.float32)(prompts, lengths, captions, [(canvas, before), (other, None)])
        (alone,) = Denoiser(model, torch.float32)(prompts, lengths, None, [(other, None)])
        torch.testing.assert_close(alone, found[2], rtol=1e-4, atol=2e-4)
        for row, length in enumerate(lengths.tolist()):
            prompt = prompts[row : row + 1, width - length :]
            for ours, tokens, known in ((found[1], canvas, before[row : row + 1]), (found[2], other, None)):
                theirs = model(
                    input_ids=prompt,
                    past_key_values=DynamicCache(config=model.config.text_config),
                    decoder_input_ids=tokens[row : row + 1],
                    self_conditioning_logits=known,
                )
                torch.testing.assert_close(ours[row], theirs.logits[0], rtol=1e-4, atol=2e-4)
            tokens = torch.cat([prompt, captions[row : row + 1, :-1]], dim=1)
            hidden = model.model.encoder.language_model(input_ids=tokens).last_hidden_state[:, length - 1 :]
            cap = model.final_logit_softcapping
            following = cap * torch.tanh(model.lm_head(hidden) / cap)
            torch.testing.assert_close(found[0][row], following[0], rtol=1e-4, atol=2e-4)


def test_gradients_are_those_of_transformers() -> None:
    """Of every parameter, for the loss of one row without padding."""
    model, random = _wide_model()
    prompt, canvas, target = (torch.randint(58, (1, n), generator=random) for n in (7, CANVAS, CANVAS))
    before = torch.randn(1, CANVAS, 60, generator=random)

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits[0], target[0]).backward()
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    cache = DynamicCache(config=model.config.text_config)
    asked = {"input_ids": prompt, "past_key_values": cache, "decoder_input_ids": canvas}
    theirs = gradients(model(**asked, self_conditioning_logits=before).logits)
    ours = gradients(Denoiser(model, torch.float32)(prompt, torch.tensor([7]), None, [(canvas, before)])[0])
    assert ours.keys() == theirs.keys()
    whole = [torch.cat([each[name].flatten() for name in theirs]) for each in (ours, theirs)]
    assert (whole[0] - whole[1]).norm() <= 1e-4 * whole[1].norm()


def test_bfloat16_changes_the_loss_little(tmp_path: Path) -> None:
    """Of a batch such as training has, with the shipped model: routers of a fresh one choose anew at every rounding."""
    tokenizer = tokenizer_of(tmp_path)
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(embedded.TEXT_PATH, dtype=torch.float32)
    kinds = torch.float32, torch.bfloat16
    with torch.no_grad():
        found = [loss_of(Denoiser(model, kind), *batch_of(tokenizer, 16, 3)) for kind in kinds]
    for wanted, ours in zip(*found, strict=True):
        assert float(ours) == pytest.approx(float(wanted), rel=0.05)


@pytest.mark.parametrize(
    ("has", "dtype"), [({}, torch.float32), ({"avx2": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)]
)
def test_products_are_what_the_processor_has(
    has: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU without bfloat16 emulates it, which takes longer than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert products() == dtype


@pytest.mark.slow  # a minute of compiling
def test_a_compiled_step_computes_the_same() -> None:
    """Loss and gradients of two widths of prompts, of which the second is compiled beside the first."""
    model, random = _wide_model()
    for width in (4, 6):
        prompts, captions = (torch.randint(58, (2, n), generator=random) for n in (width, CANVAS))
        rest = (torch.tensor([width, 2]), captions, noised(captions, 60, random))
        found = []
        for is_compiled in (False, True):
            model.zero_grad()
            loss, *_ = loss_of(Denoiser(model, torch.float32, is_compiled=is_compiled), prompts, *rest)
            loss.backward()
            grown = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
            found.append((float(loss.detach()), torch.cat(grown)))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
        assert (found[1][1] - found[0][1]).norm() <= 1e-4 * found[0][1].norm()


def test_both_losses_reach_the_weights() -> None:
    """Each parameter but the vision tower's has a gradient, and a step of it lowers the loss."""
    model = new_model(config_of(60, 58, 59))
    denoiser, random = Denoiser(model, torch.float32), torch.Generator().manual_seed(3)
    prompts, captions = (torch.randint(58, (4, n), generator=random) for n in (6, CANVAS))
    rest = (torch.full((4,), 6), captions, noised(captions, 60, random))
    loss, diffusion, causal = loss_of(denoiser, prompts, *rest)
    assert float(loss.detach()) == pytest.approx(float(diffusion.detach()) + float(causal.detach()))
    loss.backward()
    trained: list[tuple[str, Any]] = [
        (name, value) for name, value in denoiser.named_parameters() if value.requires_grad
    ]
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for _, value in trained)
    with torch.no_grad():
        for _, value in trained:
            value.add_(value.grad, alpha=-1e-2)
        assert loss_of(denoiser, prompts, *rest)[0] < loss - 1e-3
