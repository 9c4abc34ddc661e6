"""Reads one component's configuration key by key; what may stand in it beside the fields of the specs.

Every key becomes a field of a spec (`max_zimage.checkpoint.config`), must hold the one value that the graphs implement
(`ONLY`), or has no part in inference (`INERT`). A key that is none of these is refused, because it may change the
mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from max_zimage.errors import CheckpointError
from max_zimage.strict_json import plain, shown

Config = Mapping[str, object]
T = TypeVar("T")

CONFIG_FILES: Mapping[str, str] = {
    "text_encoder": "config.json",
    "transformer": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
}
"""Component -> the file in its folder that configures it."""

MAX_COUNT = 2**31 - 1
MAX_LAYERS = 1000
"""Of anything that is gone through one by one: a mistyped number is to be refused, not counted up to."""

MAX_POSITIONS = 65536
"""On an axis of the transformer; every one is a row of a table."""

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127
"""Normal numbers of float32, which the graphs compute in."""

_MAX_ITEMS = 64


class ConfigError(CheckpointError):
    """One or more components are configured in a way that cannot be run.

    Attributes:
        problems: One sentence each, beginning with the file's place in the checkpoint, such as vae/config.json.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            listed = "".join(f"\n  - {text}" for text in self.problems)
            super().__init__(f"the model's configuration has {len(self.problems)} problems:{listed}")

    def located(self, folders: Mapping[str, Path], directory: Path) -> ConfigError:
        """The same with full paths.

        Args:
            folders: Component -> its folder.
            directory: Holds the files of no component.
        """
        places = {f"{name}/": f"{folder}/" for name, folder in folders.items()}
        full = []
        for text in self.problems:
            name = next((name for name in places if text.startswith(name)), "")
            full.append(places.get(name, f"{directory}/") + text.removeprefix(name))
        return ConfigError(full)


@dataclass(frozen=True)
class Only:
    """The one value of a key that is implemented.

    Attributes:
        value: What is accepted.
        required: Whether the key must be present, because the library that wrote the file takes its absence for
            another value.
    """

    value: object
    required: bool = False


# What a bare transformers PretrainedConfig().to_dict() contains: MAX makes its components from such dictionaries.
HUGGING_FACE_KEYS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
    }
)

INERT: Mapping[str, frozenset[str]] = {
    "text_encoder": HUGGING_FACE_KEYS
    | {
        "_diffusers_version",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "max_window_layers",  # counts the layers of a sliding window, and none is used
        "pad_token_id",
        "quantization_config",  # about the folder's own weights; `transforms.configured` reads it with these
        "sliding_window",
        "tie_word_embeddings",  # about the language-model head, which is not loaded
        "torch_dtype",
        "use_cache",
    },
    "transformer": HUGGING_FACE_KEYS | {"_diffusers_version", "torch_dtype", "quantization_config"},
    "vae": HUGGING_FACE_KEYS | {"_diffusers_version", "torch_dtype", "force_upcast", "sample_size"},
    "scheduler": HUGGING_FACE_KEYS | {"_diffusers_version"},
}

ONLY: Mapping[str, Mapping[str, Only]] = {
    "text_encoder": {
        "attention_bias": Only(False),
        "hidden_act": Only("silu"),
        "model_type": Only("qwen3", required=True),
        "rope_scaling": Only(None),
        "use_sliding_window": Only(False),
    },
    "transformer": {
        "_class_name": Only("ZImageTransformer2DModel"),
        "all_f_patch_size": Only([1]),
        "all_patch_size": Only([2]),
        "qk_norm": Only(True),
        "siglip_feat_dim": Only(None),
    },
    "vae": {
        "_class_name": Only("AutoencoderKL"),
        "act_fn": Only("silu"),
        "in_channels": Only(3),
        "latents_mean": Only(None),
        "latents_std": Only(None),
        "mid_block_add_attention": Only(True),
        "out_channels": Only(3),
        "quantization_config": Only(None),
        "use_post_quant_conv": Only(False, required=True),
        "use_quant_conv": Only(False, required=True),
    },
    "scheduler": {
        "_class_name": Only("FlowMatchEulerDiscreteScheduler", required=True),
        "invert_sigmas": Only(False),
    },
}


class Reader:
    """Reads one component's keys, keeping every problem instead of stopping at the first."""

    def __init__(self, component: str, config: Config, inside: str = "", *, file: str | None = None) -> None:
        self.component, self.config = component, config
        self.place = f"{file or f'{component}/{CONFIG_FILES[component]}'}: {inside}"
        self.known: set[str] = set()
        self.problems: list[str] = []

    def build(self, make: Callable[[], T]) -> T:
        """Check the keys with one value, make the spec, and raise if anything was wrong anywhere."""
        for key, only in ONLY[self.component].items():
            if only.required or key in self.config:
                self.equal(key, only.value, "the only value implemented")
        self.known |= INERT[self.component] | ONLY[self.component].keys()
        spec, mismatch = None, None
        try:
            spec = make()
        except ValueError as error:  # a rule across fields; means nothing if one of them could not be read
            mismatch = str(error).removeprefix(f"{self.component.replace('_', ' ')}: ")
        problems = self.all_problems()
        if spec is None or problems:
            raise ConfigError(problems or [f"{self.place}{mismatch}"])
        return spec

    def all_problems(self) -> list[str]:
        """The problems so far, then the unknown keys."""
        return self.problems + [
            f"{self.place}{plain(key)} = {shown(self.config[key])} is not a known key and may change what is computed"
            for key in sorted(self.config.keys() - self.known)
        ]

    def problem(self, text: str) -> None:
        """Keep one problem."""
        self.problems.append(f"{self.place}{text}")

    def count(self, key: str, most: int = MAX_COUNT) -> int:
        """A whole number of at least 1."""
        return self._read(key, f"a whole number from 1 to {most}", lambda given: _as_count(given, most), 1)

    def number(self, key: str) -> float:
        """A number that float32 holds."""
        return self._read(key, "a number that float32 holds", _as_number, 1.0)

    def positive(self, key: str) -> float:
        """A number above 0 that float32 holds."""
        return self._read(key, "a number above 0 that float32 holds", _as_positive, 1.0)

    def within(self, key: str, low: float, high: float) -> float:
        """A number of a range."""

        def fits(given: object) -> float | None:
            number = _as_number(given)
            return number if number is not None and low <= number <= high else None

        return self._read(key, f"a number from {low:g} to {high:g}", fits, low)

    def switch(self, key: str) -> bool:
        """True or false."""
        return self._read(key, "true or false", lambda given: given if isinstance(given, bool) else None, False)

    def one_of(self, key: str, words: Sequence[str]) -> str:
        """One of several words."""
        wanted = " or ".join(shown(word) for word in words)
        return self._read(key, wanted, lambda given: next((word for word in words if word == given), None), words[0])

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 1."""
        return self._read(key, f"a list of up to {_MAX_ITEMS} whole numbers of at least 1", _as_counts, ())

    def three_counts(self, key: str) -> tuple[int, int, int]:
        """Whole numbers for the axes caption, height and width."""
        wanted = f"a list of 3 whole numbers from 1 to {MAX_POSITIONS} (caption, height, width)"
        return self._read(key, wanted, _as_three_counts, (1, 1, 1))

    def equal(self, key: str, value: object, reason: str) -> None:
        """Require one value."""
        self._read(key, f"{shown(value)} ({reason})", lambda given: True if _same(given, value) else None, True)

    def repeated(self, key: str, item: str, times: int | None) -> None:
        """Require a list that holds the same word for every block or layer; None if their number could not be read."""

        def fits(given: object) -> bool | None:
            length = times if times is not None or not isinstance(given, list | tuple) else len(given)
            return _same(given, [item] * (length or 0)) or None

        self._read(key, f"{shown(item)} {times or 'any number of'} times", fits, True)

    def _read(self, key: str, wanted: str, parse: Callable[[object], T | None], fallback: T) -> T:
        self.known.add(key)
        if key not in self.config:
            self.problem(f"{key} is missing; it must be {wanted}")
            return fallback
        value = parse(self.config[key])
        if value is None:
            self.problem(f"{key} must be {wanted}, got {shown(self.config[key])}")
            return fallback
        return value


def _as_count(value: object, most: int = MAX_COUNT) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most else None


def _as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST else None


def _as_positive(value: object) -> float | None:
    number = _as_number(value)
    return number if number is not None and number >= _SMALLEST else None


def _as_counts(value: object, most: int = MAX_COUNT) -> tuple[int, ...] | None:
    if not isinstance(value, list | tuple) or len(value) > _MAX_ITEMS:
        return None
    counts = tuple(count for item in value if (count := _as_count(item, most)) is not None)
    return counts if len(counts) == len(value) else None


def _as_three_counts(value: object) -> tuple[int, int, int] | None:
    counts = _as_counts(value, MAX_POSITIONS)
    return (counts[0], counts[1], counts[2]) if counts is not None and len(counts) == 3 else None


def _same(given: object, value: object) -> bool:
    """Equality in which True is not 1, and a tuple is as good as a list."""
    if isinstance(given, tuple):
        given = list(given)
    return type(given) is type(value) and given == value
