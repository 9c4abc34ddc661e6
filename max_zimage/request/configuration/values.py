"""Values of the configuration file under llm-dit's names, to what settings here take.

Reference: reference/generation.md section 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from max_zimage.host.sizes import read_size
from max_zimage.request.configuration.key import shown
from max_zimage.request.tile_fields import VAE_TILINGS

TOKENS_KEPT = 512 * 2560 * 2
"""Bytes that the features of a prompt of 512 tokens take in 16 bits: what an entry of llm-dit's cache stands for."""

PLACES = (
    "placement", "max_memory", "cpu_offload", "encoder_device", "dit_device", "vae_device", "devices", "split"
)  # fmt: skip
"""Arguments of loading that say where components run."""
ALONE = ("device", "dit_device", "placement", "cpu_offload")
"""Those that say it of one device, and exclude `devices`."""
TOGETHER = ("devices", "split")
"""Those that say it of several."""
_OF_SEVERAL = ("auto", "resident")
"""Placements that several devices have, too."""
DTYPES = ("auto", "bfloat16", "float32")
ATTENTION = ("auto", "max_zimage", "max", "plain")
"""Ways to compute attention, as `graphs.model.attention_backends` has them, and whatever the device has."""
OTHER_ATTENTION = ("flash_attn_2", "flash_attn_3", "sage", "xformers", "sdpa")
"""llm-dit's, which are PyTorch's and have no meaning here: auto."""
QUANTIZATIONS = {"none": "", "4bit": "q4", "8bit": "int8", "int8_dynamic": "int8"}
"""llm-dit's names of quantized text encoders -> how weights are kept here."""


def giving_way(given: Mapping[str, object]) -> frozenset[str]:
    """Arguments of loading that are left aside where they are configured: of one device beside several, or the reverse.

    >>> sorted(giving_way({"placement": "streamed"}))
    ['devices', 'split']
    >>> sorted(giving_way({"placement": "resident"}))
    []

    Args:
        given: What is said elsewhere, which comes before what is configured.
    """
    names = {name for name, value in given.items() if name != "placement" or value not in _OF_SEVERAL}
    sides = ((ALONE, TOGETHER), (TOGETHER, ALONE))
    return frozenset(name for one, other in sides if names & {*one} for name in other)


def dtype_of(value: object) -> str:
    """The name of a dtype, as torch writes it too.

    >>> dtype_of("torch.bfloat16")
    'bfloat16'

    Raises:
        ValueError: If nothing is computed in it.
    """
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        reason = "; float16 is not computed here, bfloat16 takes as much room" if name == "float16" else ""
        raise ValueError(f"must be one of {', '.join(DTYPES)}, got {shown(value)}{reason}")
    return name


def storage_of(value: object) -> str:
    """How a text encoder's weights are kept; "" for as they are.

    Raises:
        ValueError: If it is none of llm-dit's names, or of this project's.
    """
    known = {**QUANTIZATIONS, "int8": "int8", "q4": "q4"}
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}, got {shown(value)}")
    return known[str(value)]


def attention_of(value: object) -> str:
    """A way to compute attention; llm-dit's are auto.

    >>> attention_of("sdpa")
    'auto'

    Raises:
        ValueError: If there is none of this name.
    """
    if value in OTHER_ATTENTION:
        return "auto"
    if value not in ATTENTION:
        raise ValueError(f"must be one of {', '.join(ATTENTION)}, got {shown(value)}")
    return str(value)


def tiling_of(value: object) -> str:
    """Whether pictures are decoded in tiles: true is blend, as in llm-dit.

    Raises:
        ValueError: If it is another word.
    """
    word = {True: "blend", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if word not in VAE_TILINGS:
        raise ValueError(f"must be true, false or one of {', '.join(VAE_TILINGS)}, got {shown(value)}")
    return str(word)


def size_of(value: object) -> int:
    """Bytes, as a number or with a unit.

    >>> size_of("1 GiB") == 2**30
    True

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**50:
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a size such as 512MiB, 1GiB or 268435456, got {shown(value)}")
    return read_size(value)


def cache_of(value: object) -> object:
    """Whether features are kept, or the bytes of them; see `size_of`."""
    return value if isinstance(value, bool) else size_of(value)


def entries_of(value: object) -> int:
    """Bytes of so many prompts.

    Raises:
        ValueError: If there is none.
    """
    if not isinstance(value, int) or not 1 <= value <= 10**6:
        raise ValueError(f"must be from 1 to 1000000, got {shown(value)}")
    return value * TOKENS_KEPT


def texts_of(value: object) -> list[str]:
    """A list of texts that are not empty, or one of them alone.

    Raises:
        ValueError: If there is anything else in it.
    """
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in given):
        raise ValueError(f"must be a list of texts, got {shown(value)}")
    return [str(each) for each in given]


def paths_of(value: object) -> list[str]:
    """The same, of files; ~ is one's home."""
    return [path_of(each) for each in texts_of(value)]


def path_of(value: object) -> str:
    """A file or folder; ~ is one's home.

    >>> path_of("styles/a.safetensors")
    'styles/a.safetensors'
    """
    text = str(value)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def api_of(value: object) -> str:
    """The address of an API as OpenAI's clients write it; llm-dit puts the /v1 behind what it is given.

    >>> api_of("http://mac:8080"), api_of("http://mac:8080/v1/")
    ('http://mac:8080/v1', 'http://mac:8080/v1')

    Raises:
        ValueError: If it is no address.
    """
    text = str(value).rstrip("/")
    if text and not text.lower().startswith(("http://", "https://")):
        raise ValueError(f"must be an http(s) address, got {shown(value)}")
    return text if not text or text.endswith("/v1") else f"{text}/v1"


def scales_of(value: object) -> list[float]:
    """A list of numbers.

    Raises:
        ValueError: If there is anything else in it.
    """
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in given):
        raise ValueError(f"must be a list of numbers, got {shown(value)}")
    return [float(str(each)) for each in given]
