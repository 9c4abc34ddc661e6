"""What PEFT's configuration says about an adapter: the scale of every module, and what its file holds.

It stands beside the weights, in adapter_config.json, or in the header of a file that diffusers wrote.

References: PEFT src/peft/tuners/lora/config.py, src/peft/utils/other.py (get_pattern_key); diffusers
loaders/lora_base.py (lora_adapter_metadata).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt

from max_zimage.strict_json import shown

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_NEEDS_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq")
_REFUSED = (
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
)


@dataclass(frozen=True)
class Configuration:
    """The fields that change numbers.

    Attributes:
        rank: `r`.
        alpha: `lora_alpha`.
        ranks: `rank_pattern`.
        alphas: `alpha_pattern`.
        by_root: `use_rslora`: alpha is divided by the rank's square root.
        decomposed: `use_dora`.
        biases: Whether `bias` says that biases were trained, which then stand in the file whole.
    """

    rank: float
    alpha: float
    ranks: tuple[tuple[str, float], ...]
    alphas: tuple[tuple[str, float], ...]
    by_root: bool
    decomposed: bool
    biases: bool

    def factor(self, module: str, rank: int) -> float:
        """What the product of a module's tensors is multiplied with."""
        alpha = _matching(self.alphas, module, self.alpha)
        return alpha / sqrt(rank) if self.by_root else alpha / rank

    def rank_problem(self, module: str, rank: int) -> str | None:
        """Say it, if the tensors have another rank than the configuration."""
        wanted = _matching(self.ranks, module, self.rank)
        return None if rank == wanted else f"its rank is {rank}, and its configuration says {wanted:g}"


def configuration(content: Mapping[str, object]) -> tuple[Configuration | None, list[str]]:
    """Read and check PEFT's configuration.

    Args:
        content: Of its JSON object.

    Returns:
        The configuration, or None and all that is wrong with it.
    """
    problems: list[str] = []
    if (kind := content.get("peft_type", "LORA")) != "LORA":
        problems.append(f"peft_type must be LORA, got {shown(kind)}")
    problems += [f"{key} is not supported, got {shown(content[key])}" for key in _REFUSED if content.get(key)]
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_NEEDS_ANOTHER_BASE):
        problems.append(
            f"init_lora_weights is {shown(start)}: such an adapter belongs to weights that were changed before its "
            "training; save it converted to a plain LoRA"
        )
    bias = content.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        problems.append(f"bias must be none, all or lora_only, got {shown(bias)}")
    rank = _number(content, "r", problems)
    alpha = _number(content, "lora_alpha", problems)
    flags = {key: _flag(content, key, problems) for key in ("use_rslora", "use_dora")}
    ranks, alphas = (_pattern(content, key, problems) for key in ("rank_pattern", "alpha_pattern"))
    if problems:
        return None, problems
    biases = bias != "none"
    return Configuration(rank, alpha, ranks, alphas, flags["use_rslora"], flags["use_dora"], biases), []


def _matching(patterns: tuple[tuple[str, float], ...], module: str, otherwise: float) -> float:
    """The value of the first pattern that a module's name ends in."""
    for pattern, value in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _number(content: Mapping[str, object], key: str, problems: list[str]) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        problems.append(f"{key} must be a number, got {'nothing' if value is None else shown(value)}")
        return 1.0
    return float(value)


def _flag(content: Mapping[str, object], key: str, problems: list[str]) -> bool:
    value = content.get(key, False)
    if value is not None and not isinstance(value, bool):
        problems.append(f"{key} must be true or false, got {shown(value)}")
    return value is True


def _pattern(content: Mapping[str, object], key: str, problems: list[str]) -> tuple[tuple[str, float], ...]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        problems.append(f"{key} must be an object of patterns and numbers, got {shown(value)}")
        return ()
    found = []
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{key} has {pattern!r}, which is no regular expression ({error})")
            continue
        found.append((pattern, _number(value, pattern, problems)))
    return tuple(found)
