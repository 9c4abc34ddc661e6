"""Features that are made here and drawn from there: the picture of the prompt, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import PromptFeatures, ZImagePipeline, ZImageTextEncoder
from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.transforms.base import computed
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError, RequestError, RequestWarning
from max_zimage.pipeline.captions import encoded_features
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER
from max_zimage.text.kept_features import KeptFeatures
from tests.references.diffusers_runs import Pair, relative_l2

PROMPT = "a red star on a blue background"
SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 5, "output_type": "np"}
LONG = "a picture" + " of a red star on a blue background" * 210
PASSES = [{"scale": 0.5, "steps": 1}, {"scale": 1.0, "steps": 2, "strength": 0.9}]
START = Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 96, 3), np.uint8))


def drawn(pipeline: ZImagePipeline, **asked: Any) -> np.ndarray:
    return np.asarray(pipeline(**SMALL | asked))


def through_a_file(features: PromptFeatures, folder: Path) -> PromptFeatures:
    features.save(folder / f"{features.digest[7:20]}.safetensors")
    return PromptFeatures.load(folder / f"{features.digest[7:20]}.safetensors")


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"negative_prompt": "dark, blurry"}, {"guidance_scale": 2.0}),
    ({"negative_prompt": ""}, {"guidance_scale": 2.0, "num_images_per_prompt": 2}),
    ({"negative_prompt": "blue"}, {"guidance_scale": 0.0, "nag_scale": 4.0}),
    ({"hidden_layer": {-2: 0.7, -3: 0.3}, "system_prompt": "You paint.", "template": "portrait"}, {}),
    ({"prompt": LONG, "long_prompt_mode": "pool"}, {}),
    ({}, {"seed_variance": 0.2, "num_images_per_prompt": 2}),
    ({}, {"image": START, "strength": 0.6}),
    (
        {"negative_prompt": "dark"},
        {"guidance_scale": 2.0, "passes": [{"scale": 0.5, "steps": 1}, {"scale": 1.0, "steps": 2, "strength": 0.9}]},
    ),
]


@pytest.mark.parametrize(("texts", "more"), CASES)
def test_a_picture_from_a_file_is_that_of_the_prompt(
    texts: dict[str, Any], more: dict[str, Any], embedded: Pair, tmp_path: Path
) -> None:
    texts = {"prompt": PROMPT} | texts
    if "passes" in more:
        more = more | {"num_inference_steps": None}
    features = through_a_file(embedded.ours.encode(**texts), tmp_path)
    np.testing.assert_array_equal(
        drawn(embedded.ours, features=features, **more), drawn(embedded.ours, **texts, **more)
    )


def test_in_bfloat16(embedded_bfloat16: Pair, tmp_path: Path) -> None:
    """Also of features that were made fewer in float32."""
    for texts in ({"prompt": PROMPT}, {"prompt": LONG, "long_prompt_mode": "interpolate"}):
        features = through_a_file(embedded_bfloat16.ours.encode(**texts), tmp_path)
        assert features.made_by is not None
        assert features.made_by.dtype == "bfloat16"
        expected = drawn(embedded_bfloat16.ours, **texts)
        np.testing.assert_array_equal(drawn(embedded_bfloat16.ours, features=features), expected)


def test_several_prompts_and_a_negative_prompt_that_is_text(embedded: Pair) -> None:
    prompts = [PROMPT, "a white ring on green"]
    guided: dict[str, Any] = {"guidance_scale": 2.0, "negative_prompt": "dark"}
    features = embedded.ours.encode(prompts)
    assert [each.made_by.prompt for each in features] == prompts
    expected = drawn(embedded.ours, prompt=prompts, num_images_per_prompt=2, **guided)
    found = drawn(embedded.ours, features=features, num_images_per_prompt=2, **guided)
    np.testing.assert_array_equal(found, expected)
    # Without a word of a negative prompt it is the empty one, as it is for a prompt.
    expected = drawn(embedded.ours, prompt=prompts[0], guidance_scale=2.0)
    np.testing.assert_array_equal(drawn(embedded.ours, features=features[0], guidance_scale=2.0), expected)


def test_features_are_those_of_diffusers(embedded: Pair, record_property: Any) -> None:
    (theirs,), _ = embedded.theirs.encode_prompt([PROMPT], do_classifier_free_guidance=False)
    features = embedded.ours.encode(PROMPT)
    assert features.positive.shape == tuple(theirs.shape)
    error = relative_l2(features.positive, theirs.detach().numpy())
    record_property("relative_l2", error)
    assert error <= 5e-7
    bare = drawn(embedded.ours, prompt_embeds=[features.positive], guidance_scale=0.0)
    np.testing.assert_array_equal(bare, drawn(embedded.ours, prompt=PROMPT, guidance_scale=0.0))


@pytest.mark.parametrize("hidden_layer", [DEFAULT_HIDDEN_LAYER, ((-3, 1.0),)])
def test_neither_company_nor_padding_changes_features(embedded: Pair, hidden_layer: Any) -> None:
    """Or a cache would make other pictures of a prompt that comes again."""
    ours = embedded.ours
    texts = [ours.tokenizer.encode(text) for text in ("", PROMPT, "a " * 24 + "cat", "x " * 300)]
    alone = [encoded_features(ours.text_encoder, [ids], hidden_layer)[0] for ids in texts]
    for order in ([0, 1, 2, 3], [3, 1], [1, 0], [1] * 5):
        together = encoded_features(ours.text_encoder, [texts[index] for index in order], hidden_layer)
        for index, found in zip(order, together, strict=True):
            np.testing.assert_array_equal(found, alone[index])


@pytest.fixture
def kept(embedded: Pair) -> Iterator[KeptFeatures]:
    embedded.ours.text_encoder.kept_features = found = KeptFeatures(10**6)
    yield found
    embedded.ours.text_encoder.kept_features = None


def test_pictures_from_the_cache_are_the_same(embedded: Pair, kept: KeptFeatures) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": 2.0}
    first, again = drawn(embedded.ours, **asked), drawn(embedded.ours, **asked)
    assert kept.counts == {"misses": 2, "hits": 2}
    other = drawn(embedded.ours, **asked, hidden_layer=-3)
    assert kept.counts == {"misses": 4, "hits": 2}  # another layer is another key
    varied = drawn(embedded.ours, **asked, seed_variance=0.2, negative_prompt="blue")
    assert kept.counts == {"misses": 5, "hits": 3}  # what is done to features later is none
    embedded.ours.text_encoder.kept_features = None
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, drawn(embedded.ours, **asked))
    np.testing.assert_array_equal(other, drawn(embedded.ours, **asked, hidden_layer=-3))
    expected = drawn(embedded.ours, **asked, seed_variance=0.2, negative_prompt="blue")
    np.testing.assert_array_equal(varied, expected)


def louder(source: Source) -> Source:
    """The embeddings of tokens, twice as large."""
    name = next(name for name in source.tensors if name.endswith("embed_tokens.weight"))
    twice = computed(source.tensors[name], lambda rows, begin, files: 2 * rows)
    return replace(source, tensors={**source.tensors, name: twice})


def test_other_weights_are_another_encoder(embedded: Pair, kept: KeptFeatures) -> None:
    encoder = embedded.ours.text_encoder
    before, features = encoder.identity, embedded.ours.encode(PROMPT)
    encoder.bind([louder])
    try:
        assert encoder.identity != before
        other = embedded.ours.encode(PROMPT)
        assert other.digest != features.digest
        with pytest.warns(RequestWarning, match="were made by another text encoder"):
            drawn(embedded.ours, features=features, guidance_scale=0.0)
    finally:
        encoder.bind()
    assert encoder.identity == before
    assert embedded.ours.encode(PROMPT).digest == features.digest
    assert kept.counts == {"misses": 2, "hits": 1}


def test_halves_of_a_checkpoint_draw_what_the_whole_does(embedded: Pair, tmp_path: Path) -> None:
    """Each process has the files that it needs, and no others."""
    first, second = tmp_path / "encoder", tmp_path / "generator"
    shutil.copytree(EMBEDDED, first, ignore=shutil.ignore_patterns("transformer", "vae", "scheduler"))
    shutil.copytree(EMBEDDED, second, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    encoder = ZImageTextEncoder.from_pretrained(first, device="cpu", embedding_cache_bytes=10**6)
    features = through_a_file(encoder.encode(PROMPT, negative_prompt="dark"), tmp_path)
    assert features.made_by == embedded.ours.encode(PROMPT, negative_prompt="dark").made_by
    generator = ZImagePipeline.from_pretrained_generator_only(second, device="cpu")
    expected = drawn(embedded.ours, prompt=PROMPT, negative_prompt="dark", guidance_scale=2.0)
    asked = SMALL | {"guidance_scale": 2.0}
    np.testing.assert_array_equal(np.asarray(generator.generate_from_embeddings(features, **asked)), expected)
    with pytest.raises(RequestError, match="prompt: the text encoder is not loaded, and this pipeline draws from"):
        drawn(generator, prompt=PROMPT)
    without = PromptFeatures(positive=features.positive)
    with pytest.raises(RequestError, match="have none of the negative_prompt, which guidance_scale needs"):
        drawn(generator, features=without, guidance_scale=2.0)
    with pytest.raises(RequestError, match="which nag_scale needs"):
        drawn(generator, features=without, guidance_scale=0.0, nag_scale=2.0)
    alone = drawn(generator, features=without, guidance_scale=0.0)
    np.testing.assert_array_equal(alone, drawn(embedded.ours, prompt=PROMPT, guidance_scale=0.0))
    with pytest.raises(CheckpointError, match=r"text_encoder/config\.json is missing"):
        ZImagePipeline.from_pretrained(second, device="cpu")


def test_files_of_the_other_half_are_not_even_opened(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "model")
    for part in ("text_encoder", "transformer", "vae"):
        for file in (tmp_path / "model" / part).glob("*.safetensors"):
            file.chmod(0)
            file.unlink()
            file.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"transformer/\S+ is truncated, or no safetensors"):
        ZImagePipeline.prepare(tmp_path / "model", device="cpu", generator_only=True)
    shutil.copytree(EMBEDDED / "text_encoder", tmp_path / "model" / "text_encoder", dirs_exist_ok=True)
    encoder = ZImageTextEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert encoder.encode(PROMPT).tokens == 15
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert not [line for line in mapped if "/transformer/" in line or "/vae/" in line]


def test_what_cannot_be_encoded(embedded: Pair) -> None:
    with pytest.raises(TypeError, match="a prompt is not encoded with seed_variance; there are system_prompt"):
        embedded.ours.encode(PROMPT, seed_variance=0.1)
    with pytest.raises(RequestError, match="hidden_layer must be from"):
        embedded.ours.encode(PROMPT, hidden_layer=99)
    with pytest.raises(RequestError, match="the negative prompt has"):
        embedded.ours.encode(PROMPT, negative_prompt=LONG)
    with pytest.raises(RequestError, match="embedding_cache_bytes must be a whole number"):
        ZImagePipeline.prepare(device="cpu", embedding_cache_bytes=1.5)
