"""The parameters a picture was drawn with, as the JSON object that travels inside the picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from max_zimage.images.errors import ImageFileError
from max_zimage.images.texts import called, embedded_text
from max_zimage.request.fields import ROWS
from max_zimage.request.json_values import is_kind, is_sound, is_text, short
from max_zimage.sampling.noise import image_seed
from max_zimage.version import PROGRAM, __version__

if TYPE_CHECKING:
    from max_zimage.request.request import GenerationRequest

UNKNOWN_IMAGE = "unknown"
"""The digest of the start image in pictures of formats 1 and 2, which do not say whether there was one."""

_ROWS = {name: row for name, row in ROWS.items() if row.kept}
_ADDED: dict[int, dict[str, Any]] = {
    2: {"weight_paths": ()},  # the first pictures of format 1 do not say
    3: {"image_digest": UNKNOWN_IMAGE, "image_height": None, "image_width": None, "device": None},
    4: {"mask_digest": None, "features_digest": None, "quantize": ""},
    5: {"attention_backend": ""},
}
"""Format -> what came with it that is no field of a request, and what it is in pictures from before."""
_FORMAT_VERSION = max(*_ADDED, *(row.kept.since for row in _ROWS.values() if row.kept))

C = TypeVar("C", bound=type)


def _with_rows(cls: C) -> C:
    """Put the fields that the table says a picture remembers before those that the class has itself."""
    kept = {name: row.kept.type for name, row in _ROWS.items() if row.kept}
    own = cls.__annotations__
    cls.__annotations__ = {name: kind for name, kind in kept.items() if name not in own} | own
    return cls


@dataclass(frozen=True, kw_only=True)
@_with_rows
class GenerationParameters:
    """What it takes to draw one picture again.

    The fields are those of `max_zimage.request.fields` that are kept, by their names as arguments and as JSON has them
    (a step cache in its written form), and these:

    Attributes:
        strength: How far image-to-image went from its image; None where there was none.
        image_digest: Of that image, as `max_zimage.request.start_image.digest` makes it; None for none, `UNKNOWN_IMAGE`
            in pictures that do not say.
        image_height: Pixels of that image; where they are not those of the picture, it was resized.
        image_width: Pixels of that image.
        mask_digest: Of its mask, as `max_zimage.request.mask_checks.mask_digest` makes it; None for none.
        features_digest: Of the features that it was drawn from, see `PromptFeatures`; None where its texts were
            encoded for it.
        seed: The seed of this picture, not that of the first of its request.
        model: Checkpoint, as it was named: a folder, a hub id, or "tiny-zimage" for the embedded one.
        weight_paths: Weight files in place of the checkpoint's own, as they were named.
        dtype: "bfloat16" or "float32".
        quantize: Which components kept quantized weights, and how, such as "transformer=int8"; empty for none.
        attention_backend: How attention was computed, such as "plain"; empty for what the device has.
        device: "cpu" or "gpu", whose sums are not the same to the last bit; None in pictures that do not say.
        version: Version of max_zimage.
    """

    strength: float | None
    image_digest: str | None
    image_height: int | None
    image_width: int | None
    mask_digest: str | None
    features_digest: str | None
    seed: int
    model: str
    weight_paths: tuple[str, ...]
    dtype: str
    quantize: str
    attention_backend: str
    device: str | None
    version: str

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        *,
        model: str,
        weight_paths: tuple[str, ...],
        dtype: str,
        device: str | None,
        quantize: str = "",
        attention_backend: str = "",
        picture: int = 0,
    ) -> GenerationParameters:
        """What one picture of a request remembers.

        Args:
            request: The request, as it was run: a callback that changed latents is no part of it, and such a picture
                has no parameters that repeat it.
            model: The checkpoint, as it was named.
            weight_paths: Weight files in place of the checkpoint's own, as they were named.
            dtype: That the model ran in.
            device: "cpu" or "gpu".
            quantize: Which of its components kept quantized weights, and how.
            attention_backend: How attention was computed, where that was chosen.
            picture: Which of the request's pictures.

        Raises:
            ImageFileError: If the request brought latents, or text features that do not say what they were made by: a
                picture cannot hold them.
        """
        seed, prompt = _repeatable_seed(request), picture // request.num_images_per_prompt
        height, width = (None, None) if request.image is None else request.image.shape[:2]
        values = {name: _held(row.kind.keep(getattr(request, row.attribute))) for name, row in _ROWS.items()}
        values |= {
            "prompt": request.prompts[prompt],
            "negative_prompt": request.negative_prompts[prompt] if request.negative_prompts else "",
            "strength": None if request.image is None else request.strength,
            "seed": image_seed(seed, picture),
            "variation_seed": _numbered(request.variation_seed, picture),
            **request.history(prompt),
        }
        return cls(
            **values,
            image_digest=request.image_digest,
            image_height=height,
            image_width=width,
            mask_digest=request.mask_digest,
            features_digest=None if request.features is None else request.features[prompt].digest,
            model=model,
            weight_paths=weight_paths,
            dtype=dtype,
            quantize=quantize,
            attention_backend=attention_backend,
            device=device,
            version=__version__,
        )

    @property
    def is_resized(self) -> bool:
        """Whether the image that the picture began with was resized."""
        if self.image_height is None or self.image_width is None:
            return False
        left, top, right, bottom = self.outpaint or (0, 0, 0, 0)
        whole = (self.image_height + top + bottom, self.image_width + left + right)
        return whole != (self.height, self.width)

    def to_json(self) -> str:
        """Return one JSON object, marked with the program and the version of the layout."""
        marked = {"program": PROGRAM, "format_version": _FORMAT_VERSION, **asdict(self)}
        return json.dumps(marked, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GenerationParameters:
        """Read what `to_json` wrote.

        Raises:
            ImageFileError: If the text comes from another program or version, or fields are missing, unknown or of
                the wrong type.
        """
        values = _marked_object(text)
        expected = {field.name: str(field.type) for field in fields(cls)}
        problems = [f"{name} is missing" for name in expected if name not in values]
        problems += [f"{name} is unknown" for name in values if name not in expected]
        problems += [
            f"{name} must be {kind}, got {short(values[name])}"
            for name, kind in expected.items()
            if name in values and not is_kind(values[name], kind)
        ]
        problems += [
            f"{name} cannot be {short(values[name])}"
            for name in expected
            if not problems and not _is_held(name, values[name])
        ]
        image = [values.get(name) for name in ("strength", "image_height", "image_width")]
        if not problems and image.count(None) != (3 if values["image_digest"] in (None, UNKNOWN_IMAGE) else 0):
            problems = ["image_digest, image_height, image_width and strength go together"]
        if problems:
            raise ImageFileError(f"the parameters are damaged: {'; '.join(problems)}")
        for name, kind in expected.items():
            values[name] = _held(values[name], is_float="float" in kind)
        return cls(**values)


def read_parameters(path: Path) -> GenerationParameters:
    """Return the parameters a picture was drawn with.

    Args:
        path: A picture that `max_zimage.images.save.save_image` wrote.

    Raises:
        ImageFileError: If there is no such file, it is no picture, is damaged, or holds no parameters of max_zimage.
    """
    return parameters_of_text(path, embedded_text(path))


def parameters_of_text(source: Path | bytes, text: str) -> GenerationParameters:
    """`GenerationParameters.from_json` of what a picture carries; errors name the picture."""
    try:
        return GenerationParameters.from_json(text)
    except ImageFileError as error:
        raise ImageFileError(f"{called(source)}: {error}") from error


def is_own(text: str) -> bool:
    """Whether what a picture carries is a JSON object, as this program's parameters are."""
    return text.lstrip().startswith("{")


def _marked_object(text: str) -> dict[str, Any]:
    """The JSON object without its marks, once these name this program and this layout."""
    try:
        values = json.loads(text)
        whole = is_text(values)
    except (ValueError, RecursionError):
        values, whole = None, True
    if not whole:
        raise ImageFileError("the parameters are damaged: they hold halves of letters (surrogates)")
    if not isinstance(values, dict) or values.pop("program", None) != PROGRAM:
        raise ImageFileError("the parameters were written by another program; only those of max_zimage can be read")
    version = values.pop("format_version", None)
    if not is_kind(version, "int") or not 1 <= version <= _FORMAT_VERSION:
        raise ImageFileError(
            f"the parameters have format {short(version)}, this max_zimage reads 1 to {_FORMAT_VERSION}; install a "
            "newer one"
        )
    before = {name: value for added, names in _ADDED.items() if added > version for name, value in names.items()}
    before |= {name: row.kept.before for name, row in _ROWS.items() if row.kept and row.kept.since > version}
    return before | values


def _is_held(name: str, value: object) -> bool:
    """Whether a value of the right type is one that parameters can hold."""
    return (value is None or name not in _ROWS or _ROWS[name].kind.is_kept(value)) and is_sound(value)


def _numbered(seed: int | None, picture: int) -> int | None:
    return None if seed is None else image_seed(seed, picture)


def _repeatable_seed(request: GenerationRequest) -> int:
    """The seed of a request that a seed and texts say all of."""
    unknown = [each for each in request.features or () if each.made_by is None]
    given = {
        "latents": request.latents,
        "features": unknown or None,
        "prompt_embeds": request.prompt_embeds,
        "negative_prompt_embeds": request.negative_prompt_embeds if request.uses_negative else None,
    }
    names = [name for name, value in given.items() if value is not None]
    if names or request.seed is None:
        raise ImageFileError(
            f"a picture made from {' and '.join(names)} cannot be repeated from its parameters, which do not hold "
            "them; save it without parameters, or draw it from a seed and a prompt"
        )
    return request.seed


def _held(value: Any, *, is_float: bool = False) -> Any:
    """A JSON value as the parameters hold it: lists as tuples, numbers as floats where they are such."""
    if isinstance(value, (list, tuple)):
        return tuple(_held(item, is_float=is_float) for item in value)
    return float(value) if is_float and value is not None else value
