"""Where a picture first goes wrong: the values of every stage of two pipelines, compared in order.

    tokens -> features -> caption tokens -> block 0, 1, ... -> prediction -> step 1, 2, ... -> pixels

Blocks and the prediction are those of the first step. A block is seen through the model's final projection, which is
what the engine's compiled step can show of it (see `OpenTransformer.predict`); the reference's hidden state is
projected the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ZImageTransformer2DModel

from max_zimage.sampling.positions import padded
from tests.references.diffusers_runs import Call, Pair, noise, packed, reference_features, relative_l2
from tests.references.engine_runs import OpenTransformer, features_of, inputs_of, request_of

Stages = list[tuple[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Difference:
    """How two values of one stage differ."""

    stage: str
    max_abs: float
    mean_abs: float
    cosine: float
    relative_l2: float
    bound: float

    @classmethod
    def of(cls, stage: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], bound: float) -> Difference:
        """Compare two arrays; of unequal shape everything is infinitely far."""
        if ours.shape != theirs.shape:
            return cls(f"{stage} (shapes {ours.shape} and {theirs.shape})", np.inf, np.inf, 0.0, np.inf, bound)
        first, second = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        distance = np.abs(first - second)
        cosine = float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))
        return cls(stage, float(distance.max()), float(distance.mean()), cosine, relative_l2(ours, theirs), bound)

    @property
    def diverges(self) -> bool:
        """Whether the difference is above the bound; a value that is no number is."""
        return not self.relative_l2 <= self.bound

    def __str__(self) -> str:
        return (
            f"{self.stage}: max abs {self.max_abs:.2e}, mean abs {self.mean_abs:.2e}, cosine {self.cosine:.8f}, "
            f"relative L2 {self.relative_l2:.2e} (at most {self.bound:.0e})"
        )


def differences(ours: Stages, theirs: Stages, bounds: Mapping[str, float]) -> list[Difference]:
    """Compare stage by stage.

    Args:
        ours: Names and values in the order of computation.
        theirs: The same stages of the reference.
        bounds: Relative L2 allowed, by the name of a stage without its number.
    """
    names = [name for name, _ in ours], [name for name, _ in theirs]
    if names[0] != names[1]:
        raise ValueError(f"stages differ: {names[0]} and {names[1]}")
    return [
        Difference.of(name, mine, other, bounds[name.rstrip(" 0123456789")])
        for (name, mine), (_, other) in zip(ours, theirs, strict=True)
    ]


def assert_same(ours: Stages, theirs: Stages, bounds: Mapping[str, float]) -> None:
    """Fail with the name of the first stage that diverges, and what led to it.

    Raises:
        AssertionError: If a stage differs by more than its bound.
    """
    found = differences(ours, theirs, bounds)
    for index, difference in enumerate(found):
        if difference.diverges:
            before = "\n".join(f"  equal before it: {stage}" for stage in found[:index])
            raise AssertionError(f"the first stage that diverges is {difference}\n{before}")


def engine_stages(pair: Pair, call: Call) -> Stages:
    """The engine's values of every stage. The call must have guidance and no two equal captions."""
    pipeline = pair.ours
    inputs = inputs_of(pipeline, request_of(pair, call))
    transformer, latents = OpenTransformer.of(pipeline, inputs), noise(pair, call)
    run = pair.run_ours(call)
    blocks = pipeline.transformer.spec.num_blocks
    captions = np.asarray(transformer.captions.to_numpy())
    return [
        ("tokens", np.concatenate(inputs.captions.tokens)),
        ("features", np.concatenate(features_of(pipeline, inputs))),
        ("caption tokens", _valid(captions, [padded(length) for length in inputs.captions.lengths])),
        *((f"block {index}", transformer.predict(latents, 0, through=index)) for index in range(blocks)),
        ("prediction", transformer.predict(latents, 0)),
        *((f"step {index + 1}", value) for index, value in enumerate(run.latents)),
        ("pixels", run.pixels),
    ]


def reference_stages(pair: Pair, call: Call) -> Stages:
    """The reference's values of every stage."""
    arguments = pair.arguments(call)
    tokens = [_template_ids(pair, text) for text in (*arguments["prompt"], *arguments["negative_prompt"])]
    features = [item for branch in reference_features(pair, call) for item in branch]
    with _Recorded(pair.theirs.transformer) as recorded:
        run = pair.run_theirs(call)
    hidden, image_tokens = recorded.values, call.height * call.width // 256
    blocks = [name for name in hidden if name.startswith("block")]
    return [
        ("tokens", np.concatenate(tokens)),
        ("features", np.concatenate([item.numpy() for item in features])),
        ("caption tokens", _valid(hidden["caption tokens"].numpy(), [padded(len(item)) for item in features])),
        *((name, recorded.projected(hidden[name][:, :image_tokens])) for name in blocks),
        ("prediction", packed(np.stack([item.squeeze(1).numpy() for item in hidden["prediction"][0]]))),
        *((f"step {index + 1}", value) for index, value in enumerate(run.latents)),
        ("pixels", run.pixels),
    ]


class _Recorded:
    """What the reference's transformer computes in its first call."""

    def __init__(self, transformer: ZImageTransformer2DModel) -> None:
        self.values: dict[str, Any] = {}
        self._transformer = transformer
        modulated = [*transformer.noise_refiner, *transformer.layers]
        names = {"caption tokens": transformer.context_refiner[-1], "timestep": transformer.t_embedder}
        names |= {f"block {index}": block for index, block in enumerate(modulated)}
        self._modules = {**names, "prediction": transformer}

    def __enter__(self) -> _Recorded:
        self._handles = [module.register_forward_hook(self._keep(name)) for name, module in self._modules.items()]
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: object, arguments: object, value: Any) -> None:
            self.values.setdefault(name, value)

        return hook

    @torch.no_grad()
    def projected(self, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
        """A hidden state [items, tokens, dim] through the final layer."""
        return self._transformer.all_final_layer["2-1"](hidden, c=self.values["timestep"]).numpy()


def _template_ids(pair: Pair, text: str) -> npt.NDArray[np.int64]:
    messages = [{"role": "user", "content": text}]
    tokenizer = pair.theirs.tokenizer
    templated = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return np.asarray(tokenizer(templated).input_ids, np.int64)


def _valid(tokens: npt.NDArray[Any], lengths: Sequence[int]) -> npt.NDArray[Any]:
    """The rows that exist of [items, longest, dim], one item after the other."""
    return np.concatenate([item[:length] for item, length in zip(tokens, lengths, strict=True)])
