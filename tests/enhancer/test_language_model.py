"""The checkpoint's own Qwen3 as a language model: token by token what transformers generates, or refused by name."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from max_zimage import ZImagePipeline
from max_zimage.components.language_model import LanguageModel
from max_zimage.embedded import PATH
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatRefused, Message
from max_zimage.enhancer.language_model import LanguageModelEnhancer, OwnModel
from max_zimage.enhancer.opening import open_enhancer
from max_zimage.enhancer.settings import EnhancerError, EnhancerSettings
from max_zimage.pipeline.enhancing import own_of_checked, writer_of
from max_zimage.pipeline.own_language import CheckpointLanguage, ends_of
from max_zimage.text.next_token import NextToken
from max_zimage.text.tokenizer import PromptTokenizer

Both = tuple[CheckpointLanguage, LanguageModel, Any]
TEXTS = ("a red star on a blue background", "ring", "a green circle and a small white ring")


def write_language(folder: Path, *, tied: bool, seed: int) -> Any:
    """The embedded checkpoint with another text encoder, whose weights are random and large: its words differ."""
    shutil.copytree(PATH, folder, ignore=shutil.ignore_patterns("model.safetensors", "samples"))
    config = Qwen3Config.from_pretrained(PATH / "text_encoder")
    config.tie_word_embeddings, config.num_hidden_layers, config.initializer_range = tied, 2, 0.3
    config.layer_types, config.eos_token_id = ["full_attention"] * 2, 7
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(config)
    model = model.to(torch.float32).eval()
    for name, weights in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weights, 0.5, 1.5)
    model.save_pretrained(folder / "text_encoder")
    for part in ("transformer", "vae"):
        shutil.copytree(PATH / part, folder / part, dirs_exist_ok=True)
    return model


def own_of(folder: Path) -> CheckpointLanguage:
    own = own_of_checked(ZImagePipeline.prepare(folder, device="cpu", dtype="float32"))
    assert isinstance(own, CheckpointLanguage)
    return own


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "head"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("language") / "model"
    theirs = write_language(folder, tied=request.param, seed=5)
    own = own_of(folder)
    own.check()
    return own, own.load(), theirs


def test_logits_and_greedy_words_are_those_of_transformers(
    both: Both,
) -> None:
    own, ours, theirs = both
    for asked_for in TEXTS:
        ids = own.tokenizer.encode_chat([{"role": "user", "content": asked_for}])
        given = torch.from_numpy(ids)[None]
        with torch.no_grad():
            expected = theirs(given).logits[0, -1].numpy()
            written = theirs.generate(given, do_sample=False, max_new_tokens=40, pad_token_id=0)[0, len(ids) :].tolist()
        found, text = ours.read(ids.tolist())
        assert found.dtype == np.float32
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
        greedy = NextToken(temperature=0, top_p=1.0, top_k=0)
        said = [greedy.choose(found, 0.0)]
        while len(said) < len(written):
            found, text = ours.read(said[-1:], text)
            said.append(greedy.choose(found, 0.0))
        assert said == written
        assert len(set(written)) > 5  # random weights say something


def test_a_text_is_read_in_parts_and_goes_on_in_several_ways(both: Both) -> None:
    own, ours, theirs = both
    ids = own.tokenizer.encode_chat([{"role": "user", "content": TEXTS[0]}]).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    whole = ours.read(ids)[0]
    for parts in ([1, len(ids) - 2], [5, 6], [len(ids) - 1]):
        text, begin = None, 0
        for end in (*parts, len(ids)):
            logits, text = ours.read(ids[begin:end], text)
            assert np.linalg.norm(logits - expected[end - 1]) <= 1e-5 * np.linalg.norm(expected[end - 1])
            begin = end
        assert np.linalg.norm(logits - whole) <= 1e-5 * np.linalg.norm(whole)
    _, start = ours.read(ids[:5])
    first, other, again = (ours.read([token], start)[0] for token in (9, 10, 9))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_long_text_is_read_in_pieces(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    own, ours, theirs = both
    ids = own.tokenizer.encode_chat([{"role": "user", "content": TEXTS[2]}]).tolist()
    layers, lengths = ours._encoder.layers, []
    read_on = layers.read_on

    def counted(tokens: Any, *more: Any) -> Any:
        lengths.append(tokens.shape[1])
        return read_on(tokens, *more)

    monkeypatch.setattr("max_zimage.components.language_model._PIECE", 7)
    monkeypatch.setattr(layers, "read_on", counted)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, -1].numpy()
    for begin in (0, 3):
        logits, text = ours.read(ids[begin:], ours.read(ids[:begin])[1] if begin else None)
        assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)
        assert text.length == len(ids)
    assert max(lengths) == 7
    assert sum(lengths) == 2 * len(ids)


def test_ids_that_cannot_be_read_are_refused(both: Both) -> None:
    _, ours, _ = both
    with pytest.raises(ValueError, match="0 tokens behind 0 must be at least 1 and at most 2048 together"):
        ours.read([])
    with pytest.raises(ValueError, match="token ids must be from 0 to 407, got 408 to 408"):
        ours.read([408])


def enhancer(own: CheckpointLanguage, **settings: Any) -> LanguageModelEnhancer:
    return LanguageModelEnhancer(EnhancerSettings(model="encoder", **settings), own)


def asked(text: str = TEXTS[0], **more: Any) -> ChatAsked:
    return ChatAsked(**{"messages": (Message(role="user", content=text),), "seed": 3, "max_tokens": 24, **more})


def test_a_chat_is_what_transformers_generates(
    both: Both,
) -> None:
    own, _, theirs = both
    pieces: list[str] = []
    found = enhancer(own, temperature=0).chat(asked(on_text=pieces.append))
    ids = own.tokenizer.encode_chat([{"role": "user", "content": TEXTS[0]}])
    with torch.no_grad():
        written = theirs.generate(torch.from_numpy(ids)[None], do_sample=False, max_new_tokens=24, pad_token_id=0)
    tokens = [each for each in written[0, len(ids) :].tolist() if each != 7]
    text = own.tokenizer.decode(tokens)
    assert found == ChatAnswer(
        text=text, is_whole=7 in written[0, len(ids) :], prompt_tokens=len(ids), tokens=len(tokens)
    )
    assert "".join(pieces) == text


def test_words_that_are_drawn_are_the_same_for_a_seed(
    both: Both,
) -> None:
    model = enhancer(both[0], temperature=1.5, top_k=0, top_p=1.0)
    first, again, other = (model.chat(asked(seed=seed)).text for seed in (3, 3, 4))
    assert first == again
    assert first != other
    greedy = model.chat(asked(sampling={"temperature": 0.0})).text
    assert greedy == enhancer(both[0], temperature=0).chat(asked()).text
    assert greedy == model.chat(asked(sampling={"top_k": 1})).text


def test_a_prompt_that_has_no_end_is_not_taken(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    short = enhancer(both[0], temperature=0, max_tokens=2)
    assert "qwen3 did not come to an end within 2 tokens" in short.enhance("a star", seed=0).note
    late = enhancer(both[0], temperature=0, seconds=1)
    clock = iter((0.0, 2.0, 2.0, 2.0))
    monkeypatch.setattr("max_zimage.enhancer.base.time.monotonic", lambda: next(clock))
    assert late.enhance("a star", seed=0).note.endswith("qwen3 did not answer within 1 s")


class Slow(OwnModel):
    """In place of a checkpoint's: says three words of which the last one is the end, after a minute of loading."""

    tokenizer, ends, max_positions = PromptTokenizer(PATH / "tokenizer"), frozenset({7}), 2048

    def __init__(self, now: list[float]) -> None:
        self.now, self.loaded = now, 0

    def check(self) -> None:
        pass

    def weights(self) -> dict[str, int]:
        return {}

    def load(self) -> Any:
        self.loaded += 1
        self.now[0] += 60
        said = itertools.cycle((12, 11, 7))
        return SimpleNamespace(
            compile=lambda: None, read=lambda ids, before=None: (np.eye(408, dtype=np.float32)[next(said)], None)
        )


def test_the_time_to_load_it_is_none_of_a_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("max_zimage.enhancer.base.time.monotonic", lambda: now[0])
    found = LanguageModelEnhancer(EnhancerSettings(model="encoder", seconds=1, temperature=0), Slow(now))
    assert found.enhance("a star", seed=0).note == ""
    assert now == [60.0]


def test_a_pipeline_keeps_its_own_and_takes_it_along() -> None:
    first, second = (
        SimpleNamespace(named=("", ()), own_language=Slow([0.0]), own_writer=None, enhancer=None) for _ in range(2)
    )
    settings = EnhancerSettings(model="encoder", temperature=0)
    for _ in range(2):
        for pipeline in (first, second):
            assert writer_of(pipeline, settings).enhance("a star", seed=0).note == ""
    assert (first.own_language.loaded, second.own_language.loaded) == (1, 1)
    own = writer_of(first, "encoder")
    assert writer_of(first, own) is own
    assert writer_of(first, settings) is not own
    there = weakref.ref(first.own_language)
    del first, pipeline, own
    gc.collect()
    assert there() is None


def test_what_is_too_long_is_refused(both: Both) -> None:
    model = enhancer(both[0])
    with pytest.raises(ChatRefused, match=r"messages: they have \d+ tokens and the answer 2040, of 2048 together"):
        model.check(asked(max_tokens=2040))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.6, 20, 0.95), (1.3, 0, 0.5), (1.0, 5, 1.0)])
def test_candidates_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    none: Any = None
    scores: Any = TemperatureLogitsWarper(temperature)(none, torch.from_numpy(logits)[None].double())
    warpers: list[Any] = [TopKLogitsWarper(top_k)] if top_k else []
    for warper in warpers + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
        scores = warper(none, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    how = NextToken(temperature=temperature, top_p=top_p, top_k=top_k)
    tokens, shares = how.candidates(logits)
    assert sorted(tokens) == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(shares, expected[tokens], rtol=1e-9)
    drawn = [how.choose(logits, number) for number in how.numbers(11, 20_000)]
    counts = np.bincount(drawn, minlength=300) / len(drawn)
    assert np.abs(counts - expected).max() < 0.015  # four standard deviations
    assert how.choose(logits, 1 - 2.0**-53) == tokens[-1]


def test_files_without_a_whole_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_language(folder, tied=False, seed=5)
    file = folder / "text_encoder" / "model.safetensors"
    whole = load_file(file)

    def refusal(*without: str, **config: Any) -> str:
        save_file({name: each for name, each in whole.items() if not name.startswith(without or ("no",))}, file)
        text = (folder / "text_encoder" / "config.json").read_text()
        (folder / "text_encoder" / "config.json").write_text(json.dumps(json.loads(text) | config))
        with pytest.raises(EnhancerError) as caught:
            open_enhancer("encoder", is_embedded=False, own=own_of(folder))
        return str(caught.value)

    assert "lm_head.weight is missing, and tie_word_embeddings of its config.json does not say" in refusal("lm_head")
    assert "lm_head.weight differs from model.embed_tokens.weight, which it is tied to: tie_word_emb" in refusal(
        tie_word_embeddings=True
    )
    whole["lm_head.weight"] = whole["model.embed_tokens.weight"].clone()  # a copy says nothing new
    save_file(whole, file)
    own_of(folder).check()
    refusal("model.norm", tie_word_embeddings=False)
    assert "norm.weight" in refusal("model.norm")
    whole["lm_head.weight"] = whole["lm_head.weight"][:-1].contiguous()
    assert "the language model's head lm_head.weight must be [408, 128], got [407, 128]" in refusal()
    with pytest.raises(EnhancerError, match="this checkpoint is no enhancer of its own: no text encoder is loaded"):
        open_enhancer(None, is_embedded=False)


def test_ends_are_those_that_configuration_and_tokenizer_name() -> None:
    tokenizer = own_of(PATH).tokenizer
    assert tokenizer.end is not None
    assert ends_of(tokenizer, {"eos_token_id": [1, 2]}) == {1, 2, tokenizer.end}
    assert ends_of(tokenizer, {"eos_token_id": None}) == {tokenizer.end}
