"""What would fail here, and what to do about it: all that `max-zimage doctor` looks at, in the order it says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from max_zimage.diagnosis import installation
from max_zimage.diagnosis.findings import Finding, fault

Check = Callable[[], Finding | Iterable[Finding]]


def examine(model: str | None, device: str, port: int) -> Iterator[Finding]:
    """Look at everything.

    A check that raises is a fault, and those after it go on.

    Args:
        model: Folder or hub id; None for the embedded model.
        device: Where it is to run.
        port: That a server would take.
    """
    for name, check in [*_installation(), *_places(port), *_equipment(model, device)]:
        try:
            found = check()
            yield from [found] if isinstance(found, Finding) else found
        except Exception as error:  # whatever is broken here is what is looked for
            said = f"could not be looked at: {type(error).__name__}: {error}"
            yield fault(name, said, "mend what it names; where nothing tells how, this line belongs into an issue")


def _installation() -> Iterator[tuple[str, Check]]:
    yield "Python", installation.python
    yield "C library", installation.glibc
    yield "packages", installation.packages
    yield "MAX", installation.max_engine


def _places(port: int) -> Iterator[tuple[str, Check]]:
    """Those of folders. Where MAX cannot be imported, that is what they say."""
    try:
        from max_zimage.diagnosis import places
    except (ImportError, OSError) as error:
        yield "folders", _failed(error)
        return
    yield "compiled graphs", places.graph_cache
    yield "MAX's cache", places.max_cache
    yield "temporary files", places.temporary_folder
    yield "hub", places.hub
    yield "port", lambda: places.port(port)


def _equipment(model: str | None, device: str) -> Iterator[tuple[str, Check]]:
    try:
        from max_zimage.diagnosis import equipment
    except (ImportError, OSError) as error:
        yield "devices", _failed(error)
        return
    yield "accelerators", equipment.devices
    yield "cuBLAS, cuDNN", equipment.libraries
    yield "memory", equipment.memory
    yield "checkpoint", lambda: equipment.checkpoint(model, device)


def _failed(error: Exception) -> Check:
    def check() -> Finding:
        raise error

    return check
