"""Tensors of torch in a request are the arrays that hold the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from max_zimage.errors import RequestError
from tests.request.test_request import make

SHAPE = (1, 16, 16, 12)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.requires_grad_(),
        lambda tensor: tensor.bfloat16(),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3),
        torch.nn.Parameter,
    ],
)
def test_latents(change: Any) -> None:
    tensor = change(torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))
    found = make(latents=tensor).latents
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensor.detach().float().numpy())


def test_features_and_levels() -> None:
    texts = [torch.randn(rows, 8).bfloat16() for rows in (3, 5)]
    request = make(prompt=None, prompt_embeds=texts, negative_prompt_embeds=tuple(texts))
    for found in (request.prompt_embeds, request.negative_prompt_embeds):
        assert found is not None
        for ours, theirs in zip(found, texts, strict=True):
            np.testing.assert_array_equal(ours, theirs.float().numpy())
    levels = torch.tensor([1.0, 0.5, 0.25])
    assert make(sigmas=levels).sigmas == make(sigmas=[1.0, 0.5, 0.25]).sigmas == (1.0, 0.5, 0.25)


def test_what_would_be_rounded_is_refused() -> None:
    with pytest.raises(RequestError, match=r"latents must be a float32 numpy array .*, got float64; convert it"):
        make(latents=torch.zeros(SHAPE, dtype=torch.float64))
    with pytest.raises(RequestError, match=r"latents must be a float32 numpy array .*, got Tensor"):
        make(latents=torch.zeros(SHAPE).to_sparse())
    with pytest.raises(RequestError, match=r"got shape \[16, 16, 12\]"):
        make(latents=torch.zeros(SHAPE[1:]))
