"""Requests of the OpenResponses API to contexts: what reaches the worker, and what the client is told."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from max.driver import DeviceSpec
from max.pipelines.context import PixelContext
from max.pipelines.context.exceptions import InputError
from max.pipelines.diffusion.config import DEFAULT_DENOISING_CACHE_CONFIG, DenoisingCacheConfig
from max.pipelines.lib.model_manifest import ModelManifest
from max.pipelines.modeling.types.utils.serialization import msgpack_numpy_decoder, msgpack_numpy_encoder
from max.pipelines.request import OpenResponsesRequest, RequestID
from max.pipelines.request.open_responses import OpenResponsesRequestBody

from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import RequestError
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.context import ZImageContext, request_of, schedule_of
from max_zimage.pipeline.worker_plan import SPLIT_VARIABLE
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import WireError, sharing_key
from max_zimage.sampling.schedule import ScheduleSpec, schedule
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from max_zimage.text.tokenizer import PromptTokenizer
from tests.request.test_wire import assert_equal

PNG = "data:image/png;base64,iVBORw0KGgo="


@dataclass
class Config:
    """The part of MAX's PipelineConfig that is read."""

    models: ModelManifest
    denoising_cache: DenoisingCacheConfig = DEFAULT_DENOISING_CACHE_CONFIG

    @property
    def runtime(self) -> Config:
        return self


def load(folder: Path, devices: int = 1, **flags: Any) -> ZImageTokenizer:
    cache = DEFAULT_DENOISING_CACHE_CONFIG.model_copy(update=flags)
    specs: dict[str, Any] = {"device_specs": [*map(DeviceSpec.accelerator, range(devices))]} if devices > 1 else {}
    config: Any = Config(ModelManifest.from_model_path(str(folder), **specs), cache)
    return ZImageTokenizer(
        str(folder), config, "tokenizer", max_length=512, default_num_inference_steps=50, trust_remote_code=False
    )


@cache
def embedded() -> ZImageTokenizer:
    return load(EMBEDDED)


def context(prompt: Any = "a red star", tokenizer: ZImageTokenizer | None = None, **options: Any) -> PixelContext:
    top = {name: options.pop(name) for name in ("seed", "n", "video", "metadata") if name in options}
    provider: dict[str, Any] = {"image": options} if options else {}
    if "video" in top:
        provider["video"] = top.pop("video")
    body = OpenResponsesRequestBody.model_validate(
        {"model": "zimage", "input": prompt, "provider_options": provider, **top}
    )
    request = OpenResponsesRequest(request_id=RequestID(), body=body)
    return asyncio.run((tokenizer or embedded()).new_context(request))


def test_a_request_becomes_tokens_schedule_and_noise() -> None:
    made = context(width=128, height=144, steps=4, guidance_scale=3.0, negative_prompt="blurry", num_images=2, seed=11)
    ids = PromptTokenizer(EMBEDDED / "tokenizer")
    np.testing.assert_array_equal(made.tokens.array, ids.encode("a red star"))
    assert made.negative_tokens is not None
    assert made.mask is not None
    np.testing.assert_array_equal(made.negative_tokens.array, ids.encode("blurry"))
    assert made.mask.all()
    assert len(made.mask) == len(made.tokens.array)
    plan = schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=4)
    np.testing.assert_array_equal(made.sigmas, plan.sigmas)
    np.testing.assert_array_equal(made.timesteps, plan.timesteps)
    assert made.latents.size == 0  # the worker draws them
    assert (made.height, made.width, made.num_inference_steps, made.seed) == (144, 128, 4, 11)
    assert (made.guidance_scale, made.num_images_per_prompt, made.model_name) == (3.0, 2, "zimage")


def test_what_is_not_said_comes_from_the_checkpoint_and_not_from_the_schema(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("_generation_defaults", None)
    (folder / "model_index.json").write_text(json.dumps(index))
    made = context(tokenizer=load(folder))
    assert (made.guidance_scale, made.num_inference_steps, made.height, made.width) == (0.0, 8, 128, 128)
    assert made.negative_tokens is None
    assert made.seed is not None

    index["_generation_defaults"] = {"guidance_scale": 2.0, "num_inference_steps": 12, "width": 96}
    (folder / "model_index.json").write_text(json.dumps(index))
    made = context(tokenizer=load(folder))
    assert (made.guidance_scale, made.num_inference_steps, made.height, made.width) == (2.0, 12, 128, 96)
    assert made.negative_tokens is not None


def test_a_step_cache_comes_from_the_request_or_from_the_flags_of_max() -> None:
    flags = {"taylorseer": True, "taylorseer_cache_interval": 4, "taylorseer_warmup_steps": 3}
    tokenizer = load(EMBEDDED, **flags)

    def used(**options: Any) -> str:
        made = context("a red star", tokenizer, steps=12, **options)
        assert isinstance(made, ZImageContext)
        return made.step_cache

    assert used() == "taylorseer:cache_interval=4,warmup_steps=3,max_order=1"
    assert used(metadata={"step_cache": "off"}) == "off"
    named = "first_block:threshold=0.2,warmup_steps=0,block=noise_refiner"
    assert used(metadata={"step_cache": "first_block:threshold=0.2", "order": "17"}) == named
    with pytest.raises(InputError, match="step_cache: cache_interval must be a whole number of at least 1, got 0"):
        used(metadata={"step_cache": "taylorseer:cache_interval=0"})


def test_an_explicit_guidance_of_the_schemas_default_is_kept() -> None:
    assert context(guidance_scale=3.5).guidance_scale == 3.5


def test_the_same_seed_gives_the_same_noise_and_none_a_fresh_one() -> None:
    assert context(seed=3, width=128).seed == 3
    assert context().seed != context().seed


def test_flow_shift_takes_the_place_of_the_checkpoints() -> None:
    plan = schedule(ScheduleSpec(shift=6.0, num_train_timesteps=1000), steps=4)
    np.testing.assert_array_equal(context(steps=4, flow_shift=6.0).sigmas, plan.sigmas)


def test_a_message_of_parts_is_read() -> None:
    parts = [{"type": "input_text", "text": "a red"}, {"type": "input_text", "text": "star"}]
    made = context([{"role": "user", "content": parts}])
    np.testing.assert_array_equal(made.tokens.array, context().tokens.array)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("x", {"width": 136}, "width must be a multiple of 16, got 136; the nearest are 128 and 144"),
        ("x", {"height": 10000}, "height must be from 16 to 8192, got 10000"),
        ("x", {"steps": 10**6}, "num_inference_steps must be from 1 to 1000"),
        ("x", {"num_images": 65}, "num_images_per_prompt must be from 1 to 64"),
        ("x", {"seed": -1}, "seed must be from 0"),
        ("x " * 2000, {}, r"the prompt has \d+ tokens, at most 512 are allowed; shorten it$"),
        ("x " * 300, {}, r"the prompt has \d+ tokens, at most 512 are .* raise max_sequence_length \(up to 1504\)$"),
        ("x", {"metadata": {"max_sequence_length": "2000"}}, "max_sequence_length must be from 1 to 1504, got 2000"),
        ("x", {"negative_prompt": "y " * 2000, "guidance_scale": 1}, "the negative prompt has .* at most 512"),
        ([], {}, "Input message list cannot be empty"),
        ("x", {"output_format": "jpg"}, "output_format must be one of jpeg, png, webp, got 'jpg'"),
        ("x", {"n": 2}, r"no use for n \(use provider_options.image.num_images\); leave it out"),
        ("x", {"video": {}}, "no use for provider_options.video"),
        ("x", {"strength": 0.5}, "no use for strength"),
        ("x", {"secondary_prompt": "y", "true_cfg_scale": 2}, "no use for secondary_prompt, true_cfg_scale"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": PNG}],
                }
            ],
            {},
            "input_image is a damaged PNG file, or of a rare kind; save it again",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_message(prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        context(prompt, **options)


def test_equal_prompts_are_told_apart_by_their_place() -> None:
    """A tokenizer that makes more of the second is what tells whether a text or its place is looked at."""
    limits = replace(embedded().limits, max_tokens=1504)
    asked = GenerationRequest.create(
        limits=limits, defaults=embedded().defaults, prompt="x", negative_prompt="x", guidance_scale=1.0
    )
    lengths = iter([1, 600])
    tokenizer: Any = SimpleNamespace(encode=lambda *text: np.zeros(next(lengths), np.int64))
    with pytest.raises(RequestError, match=r"^the negative prompt has 600 tokens") as error:
        tokens_of_request(asked, tokenizer, limits)
    assert error.value.problems[0].field == "negative_prompt"


def test_the_request_itself_reaches_the_worker() -> None:
    """Through MAX's queue: what the worker reads is what was asked for, with its image in the picture's size."""
    image = np.random.default_rng(2).integers(0, 256, (50, 30, 3), np.uint8)
    asked = GenerationRequest.create(
        limits=embedded().limits,
        defaults=embedded().defaults,
        prompt="a red star \u2605",
        negative_prompt="blurry",
        image=image,
        height=64,
        width=48,
        resize=True,
        strength=0.1 + 0.2,
        guidance_scale=1 / 3,
        num_images_per_prompt=2,
        step_cache="first_block:threshold=0.07",
    )
    made = embedded().make_context(asked, request_id=RequestID("a"), model_name="x", output_format="png")
    sent = msgpack_numpy_decoder(ZImageContext)(msgpack_numpy_encoder()(made))
    received = request_of(sent)
    assert_equal(received, replace(asked, image=asked.start_image))
    assert sent.sharing == sharing_key(asked, schedule_of(made, embedded().specs.schedule))
    with pytest.raises(WireError, match="it is no JSON"):
        request_of(ZImageContext(tokens=made.tokens))


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ValueError, match="ids up to 407 and the text encoder only 300 embeddings"):
        load(folder)


def test_what_several_devices_cannot_draw_is_refused_before_the_worker_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nag = {"metadata": {"nag_scale": "5"}, "guidance_scale": 0.0}
    cached = {"metadata": {"step_cache": "first_block"}, "steps": 8}
    several = load(EMBEDDED, devices=2)
    with pytest.raises(InputError, match="nag_scale cannot go with several devices, got 5"):
        context(tokenizer=several, **nag)
    made = context(tokenizer=several, **cached)
    assert isinstance(made, ZImageContext)
    assert made.step_cache is not None
    monkeypatch.setenv(SPLIT_VARIABLE, "branches")
    with pytest.raises(InputError, match="takes one branch at a time, and the devices share branches"):
        context(tokenizer=load(EMBEDDED, devices=2), **cached)
    with pytest.raises(ValueError, match=r'takes one branch at a time, .* or split="tokens"'):
        load(EMBEDDED, devices=2, first_block_caching=True)
    with pytest.raises(ValueError, match="MAX_ZIMAGE_SPLIT says what several devices share, got branches and one dev"):
        load(EMBEDDED)


def test_code_of_a_checkpoint_is_never_run() -> None:
    config: Any = Config(ModelManifest.from_model_path(str(EMBEDDED)))
    with pytest.raises(ValueError, match="no code of a checkpoint is run"):
        ZImageTokenizer(
            str(EMBEDDED),
            config,
            "tokenizer",
            max_length=512,
            default_num_inference_steps=50,
            trust_remote_code=True,
        )
