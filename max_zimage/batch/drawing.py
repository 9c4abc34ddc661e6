"""Who draws: one pipeline, which takes a batch, draws it and records it. The same on one machine and in a Ray actor."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from max_zimage.batch.output import Output
from max_zimage.batch.pictures_in import contents_of, digests_of, pixels_of
from max_zimage.batch.record_book import RecordBook, failed, work_folder
from max_zimage.batch.records import record
from max_zimage.batch.work import Item, Report, Unit
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.errors import AdapterError, NotFiniteError, RequestError, RequestWarning
from max_zimage.images.save import encode_image
from max_zimage.images.xmp import source_of
from max_zimage.pipeline.enhancing import EnhancerError, enhanced
from max_zimage.pipeline.prepare_contexts import inputs_of_contexts
from max_zimage.pipeline.request_contexts import context_of_request
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import of_text

_OF_THE_ROW = (RequestError, AdapterError, NotFiniteError, EnhancerError)
"""Errors that the same row has in every process; all others may be the process's."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """All that a process needs to draw for a job; it can be pickled.

    Attributes:
        options: Arguments of `ZImagePipeline.prepare`.
        url: Where the job writes to.
        run: Which run of the job this is.
        metadata: Whether pictures carry what they were drawn with.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    url: str
    run: str
    metadata: bool = True

    def load(self, place: str = "") -> Drawer:
        """Load the model.

        Args:
            place: Which machine this is, see `RecordBook`.

        Raises:
            ValueError: If that cannot be done.
        """
        pipeline = ZImagePipeline.from_prepared(ZImagePipeline.prepare(**self.options))
        return Drawer(pipeline, RecordBook(Output(self.url), self.run, place), metadata=self.metadata)


@dataclass(frozen=True)
class _Drawn:
    """A picture, uint8 [height, width, 3], its request, and what is to be said of it."""

    request: GenerationRequest
    note: str
    pixels: Any


class Drawer:
    """Draws batches.

    Args:
        pipeline: Draws the pictures.
        book: Where they are recorded.
        metadata: As of `Drawing`.
    """

    def __init__(self, pipeline: ZImagePipeline, book: RecordBook, *, metadata: bool) -> None:
        self._pipeline, self._book, self._metadata = pipeline, book, metadata

    def __call__(self, unit: Unit) -> Report:
        """Draw a unit and record it, unless it is recorded.

        Raises:
            Exception: What else than rows may be the cause of; nothing is recorded then.
        """
        if (known := self._book.report(unit)) is not None:
            return known
        self._book.begin(unit)
        begin = time.perf_counter()
        drawn = self._drawn(unit.items)
        seconds = (time.perf_counter() - begin) / len(unit.items)
        return self._book.write(
            unit,
            [
                failed(item, found) if isinstance(found, str) else self._saved(unit.window, item, found, seconds)
                for item, found in zip(unit.items, drawn, strict=True)
            ],
        )

    def _drawn(self, items: Sequence[Item]) -> list[_Drawn | str]:
        """Each picture, or why there is none."""
        requests: list[tuple[GenerationRequest, str] | str] = []
        for item in items:
            try:
                requests.append(self._request(item))
            except _OF_THE_ROW as error:
                requests.append(str(error))
        pixels = iter(self._pixels([each[0] for each in requests if not isinstance(each, str)]))
        found: list[_Drawn | str] = []
        for each in requests:
            image = each if isinstance(each, str) else next(pixels)
            found.append(image if isinstance(image, str) or isinstance(each, str) else _Drawn(*each, image))
        return found

    def _request(self, item: Item) -> tuple[GenerationRequest, str]:
        """What is drawn, and what is to be said of it."""
        contents = contents_of(item.sources)
        for name, digest in digests_of(contents).items():
            if digest != item.digests[name]:
                message = "{field} is another file than it was when the request was checked; draw this row again"
                raise RequestError.of(name, message)
        request = of_text(item.request, **pixels_of(contents))
        with warnings.catch_warnings(record=True) as caught:  # a prompt that nobody writes out is drawn as it is
            warnings.simplefilter("always", RequestWarning)
            found = enhanced(self._pipeline, request)
        said = [str(each.message) for each in caught if isinstance(each.message, RequestWarning)]
        return found, "; ".join(filter(None, [item.note, *said]))

    def _pixels(self, requests: Sequence[GenerationRequest]) -> list[Any]:
        """The pictures, uint8 [height, width, 3] each, or why there is none."""
        if not requests:
            return []
        try:
            return list(draw_together(self._pipeline, requests))
        except NotFiniteError as error:
            return [str(error) if image is None else image for image in error.images]
        except (NotEnoughMemoryError, RequestError, AdapterError) as error:
            if len(requests) == 1:
                return [str(error)]
        return [image for each in requests for image in self._pixels([each])]

    def _saved(self, window: int, item: Item, drawn: _Drawn, seconds: float) -> dict[str, Any]:
        request = drawn.request
        parameters = self._pipeline.carried(request, is_whole=True).parameters(0)
        text = parameters.to_json() if parameters else ""
        source = source_of(request.image) if self._metadata else None
        content = encode_image(drawn.pixels, "PNG", text if self._metadata else "", source=source)
        digest = hashlib.sha256(content).hexdigest()
        path = staged_path(window, digest)
        self._book.output.put(path, content)
        values = {"seed": request.seed, "parameters": text or None, "path": path, "digest": digest}
        return record(item.id, item.row, item.picture, **values, seconds=seconds, note=drawn.note or None)


def staged_path(window: int, digest: str) -> str:
    """Where a picture waits for its window to be done."""
    return f"{work_folder(window)}/{digest}.png"


def draw_together(pipeline: ZImagePipeline, requests: Sequence[GenerationRequest]) -> Any:
    """Draw requests of one picture each as one batch.

    Args:
        pipeline: Draws them.
        requests: Of equal `max_zimage.request.wire.sharing_key`.

    Returns:
        uint8 [pictures, height, width, 3].

    Raises:
        NotFiniteError: If a picture came out as NaN or infinity; it holds the others.
        NotEnoughMemoryError: If they do not fit.
        AdapterError: If their adapters cannot be added to the weights.
    """
    sources = pipeline.sources
    spec = sources.specs.schedule
    with pipeline.adapters.using(requests[0].loras):
        contexts = [context_of_request(each, pipeline.tokenizer, sources.limits, spec) for each in requests]
        inputs = inputs_of_contexts(contexts, spec, pipeline.transformer, pipeline.vae, pipeline.text_encoder)
        return pipeline.execute(inputs, "np").images
