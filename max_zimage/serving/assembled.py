"""The parts of a server put together, and what is left to say when it ends."""

from __future__ import annotations

import asyncio
import logging

from max_zimage.pipeline.loading import CheckedModel
from max_zimage.serving import tracing
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.http.media import MediaStore
from max_zimage.serving.http.requests import ServedModel
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.served_model import served_model
from max_zimage.serving.settings import ServerSettings
from max_zimage.serving.store.files import StoreError
from max_zimage.serving.store.records import RequestRecords
from max_zimage.serving.store.state_store import StateStore
from max_zimage.serving.worker.stage_spans import DELAY
from max_zimage.version import __version__

_log = logging.getLogger("max_zimage.serving")
_LAST_WORDS = 5.0  # seconds for what became of the last requests to be written down
_LAST_SPANS = 3 * DELAY / 1000  # seconds for those of the worker, which is not told that it ends


def assembled(settings: ServerSettings, prepared: CheckedModel, store: StateStore) -> ServerState:
    """A server without its worker, its port and its enhancer.

    Args:
        settings: Of the server.
        prepared: The checkpoint, from `ZImagePipeline.prepare`.
        store: For requests and pictures by URL.
    """
    metrics = Metrics()
    dispatcher = Dispatcher(
        queue=settings.limits.queue,
        in_worker=2 * settings.pictures_together(on_host=prepared.devices[0].is_host),
        seconds=settings.limits.seconds,
        metrics=metrics,
    )
    served = served_model(settings, prepared)
    metrics.describe(_facts(served))
    state = ServerState(
        settings=settings,
        served=served,
        dispatcher=dispatcher,
        media=MediaStore(store, metrics),
        records=RequestRecords(store, dispatcher, metrics),
        metrics=metrics,
        tracing=tracing.Tracing() if tracing.is_wanted() else None,
    )
    if state.tracing is not None:
        dispatcher.observers.append(state.tracing.note)
    return state


async def put_down(state: ServerState, store: StateStore) -> None:
    """Write down what became of the last requests, and send the last spans; the worker is still there.

    Args:
        state: Of the server.
        store: Its.
    """
    try:
        async with asyncio.timeout(_LAST_WORDS):
            await state.records.flush()
    except (StoreError, TimeoutError) as error:
        _log.warning("what became of the last requests was not written down: %s", error)
    store.close()
    if state.tracing is not None:
        await asyncio.sleep(_LAST_SPANS)
        await asyncio.to_thread(state.tracing.close)


def _facts(served: ServedModel) -> dict[str, str]:
    """What the server's figures say of it."""
    drawn_by = served.drawn_by
    return {
        "version": __version__,
        "model_name": served.name,
        "device": drawn_by.device,
        "dtype": drawn_by.dtype,
        "quantize": drawn_by.quantize or "off",
    }
