"""The reference, diffusers' own `ZImagePipeline` on the same files, and one call made of both pipelines.

Both get the same float32 noise. Lengths of captions are written as numbers of tokens, chat template included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ZImagePipeline as DiffusersPipeline

if TYPE_CHECKING:  # the reference itself needs no MAX
    from max_zimage import ZImagePipeline
    from max_zimage.text.tokenizer import PromptTokenizer

FloatArray = npt.NDArray[np.float32]
Features = tuple[list[torch.Tensor], list[torch.Tensor]]
"""Text features of the positive and of the negative captions, [tokens, caption_dim] each."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, in arguments that both pipelines have.

    Attributes:
        prompts: Texts, or numbers of tokens that texts are found for.
        negatives: The same for the negative branch; empty for the empty prompt.
        feature_rows: Rows of random text features a prompt, in place of prompts.
        negative_feature_rows: The same for the negative branch.
        height: Pixels.
        width: Pixels.
        steps: Denoising steps; ignored with `sigmas`.
        sigmas: Explicit noise levels.
        guidance: Guidance scale.
        cfg_normalization: Limit of the guided prediction's norm.
        cfg_truncation: Where guidance ends.
        copies: Pictures a prompt.
        shift: In place of the checkpoint's.
    """

    prompts: tuple[str | int, ...] = ("a red star on a blue background",)
    negatives: tuple[str | int, ...] = ()
    feature_rows: tuple[int, ...] = ()
    negative_feature_rows: tuple[int, ...] = ()
    height: int = 128
    width: int = 128
    steps: int = 4
    sigmas: tuple[float, ...] | None = None
    guidance: float = 2.0
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    copies: int = 1
    shift: float | None = None


@dataclass(frozen=True)
class Run:
    """What a pipeline made of a call.

    Attributes:
        latents: float32 [steps, pictures, channels, height/8, width/8], after each step.
        pixels: uint8 [pictures, height, width, 3].
    """

    latents: FloatArray
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """The engine and the reference on the same checkpoint."""

    ours: ZImagePipeline
    theirs: DiffusersPipeline

    def arguments(self, call: Call) -> dict[str, Any]:
        """The arguments of a call, arrays as numpy's."""
        arguments: dict[str, Any] = {
            "height": call.height,
            "width": call.width,
            "sigmas": None if call.sigmas is None else list(call.sigmas),
            "num_inference_steps": call.steps if call.sigmas is None else len(call.sigmas),
            "guidance_scale": call.guidance,
            "cfg_normalization": call.cfg_normalization,
            "cfg_truncation": call.cfg_truncation,
            "num_images_per_prompt": call.copies,
            "latents": noise(self, call),
        }
        if call.feature_rows:
            arguments["prompt_embeds"] = self._features(call.feature_rows, seed=21)
        else:
            arguments["prompt"] = texts(self.ours.tokenizer, call.prompts)
        if call.negative_feature_rows:
            arguments["negative_prompt_embeds"] = self._features(call.negative_feature_rows, seed=22)
        elif call.negatives:
            arguments["negative_prompt"] = texts(self.ours.tokenizer, call.negatives, word="blue")
        return arguments

    def run_ours(self, call: Call) -> Run:
        """Draw with the engine."""
        latents: list[FloatArray] = []

        def record(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> None:
            latents.append(values["latents"])

        pixels = self.ours(**self.arguments(call), shift=call.shift, output_type="np", callback_on_step_end=record)
        return Run(np.stack(latents), np.asarray(pixels))

    def run_theirs(self, call: Call) -> Run:
        """Draw with the reference."""
        latents: list[FloatArray] = []

        def record(pipeline: object, step: int, timestep: object, values: dict[str, Any]) -> dict[str, Any]:
            latents.append(values["latents"].float().numpy().copy())
            return {}

        self.theirs.scheduler.set_shift(call.shift or self.theirs.scheduler.config.shift)
        images = self.theirs(
            **as_torch(self.arguments(call), self.theirs.dtype), output_type="np", callback_on_step_end=record
        ).images
        return Run(np.stack(latents), np.round(images * 255).astype(np.uint8))  # as VaeImageProcessor does for "pil"

    def _features(self, rows: tuple[int, ...], seed: int) -> list[FloatArray]:
        """Random text features, as the encoder might have made them."""
        width = self.ours.transformer.spec.caption_dim
        generator = np.random.default_rng(seed)
        return [generator.standard_normal((count, width), np.float32) for count in rows]


def load_reference(directory: Path, dtype: torch.dtype = torch.float32) -> DiffusersPipeline:
    """Load diffusers' pipeline on the CPU."""
    pipeline = DiffusersPipeline.from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    torch.set_num_threads(os.cpu_count() or 1)
    return pipeline


def noise(pair: Pair, call: Call) -> FloatArray:
    """Starting noise, the same for both, whoever made the generator."""
    pictures = len(call.feature_rows or call.prompts) * call.copies
    shape = (pictures, pair.ours.transformer.spec.in_channels, call.height // 8, call.width // 8)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


def texts(tokenizer: PromptTokenizer, prompts: tuple[str | int, ...], word: str = "red") -> list[str]:
    """A new list, because the reference writes its chat template into the one it is given."""
    return [text if isinstance(text, str) else prompt_of(tokenizer, text, word) for text in prompts]


def prompt_of(tokenizer: PromptTokenizer, tokens: int, word: str) -> str:
    """A prompt of so many tokens, found by repeating a word."""
    text = word
    while len(tokenizer.encode(text)) < tokens:
        text += f" {word}"
    if len(tokenizer.encode(text)) != tokens:
        raise ValueError(f"no number of repetitions of {word!r} has {tokens} tokens")
    return text


def as_torch(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same arguments with torch's tensors: features in the model's dtype, latents always float32."""

    def convert(name: str, value: Any) -> Any:
        if name == "latents":
            return torch.from_numpy(value)
        return [torch.from_numpy(item).to(dtype) for item in value] if name.endswith("_embeds") else value

    return {name: convert(name, value) for name, value in arguments.items()}


@torch.no_grad()
def reference_features(pair: Pair, call: Call) -> Features:
    """Text features of the positive and of the negative captions, [tokens, caption_dim] each."""
    given = as_torch(pair.arguments(call), pair.theirs.dtype)
    if call.feature_rows:
        return given["prompt_embeds"], given.get("negative_prompt_embeds", [])
    return pair.theirs.encode_prompt(
        given["prompt"],
        do_classifier_free_guidance=call.guidance > 0,
        negative_prompt=given.get("negative_prompt"),
    )


@torch.no_grad()
def reference_prediction(pair: Pair, latents: FloatArray, timestep: float, features: list[torch.Tensor]) -> FloatArray:
    """The transformer's output, float32 [items, channels, height/8, width/8].

    Args:
        pair: Whose reference runs.
        latents: float32 [items, channels, height/8, width/8].
        timestep: 1 - sigma.
        features: [tokens, caption_dim] an item.
    """
    transformer = pair.theirs.transformer
    items = [item.unsqueeze(1) for item in torch.from_numpy(latents).to(transformer.dtype)]
    times = torch.full((len(items),), timestep)
    outputs = transformer(items, times, features, return_dict=False)[0]
    return np.stack([output.squeeze(1).float().numpy() for output in outputs])


def packed(latents: FloatArray) -> FloatArray:
    """[items, channels, height, width] as image tokens, [items, height/2 · width/2, 4 · channels], channels fastest."""
    items, channels, height, width = latents.shape
    squares = latents.reshape(items, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 3, 5, 1)
    return np.ascontiguousarray(squares).reshape(items, height * width // 4, 4 * channels)


def relative_l2(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Norm of the difference as a share of the expected norm, in float64."""
    difference = actual.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))
