"""What `max-zimage doctor` looks at of devices, memory and a checkpoint. No weight is read, and nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from max.driver import accelerator_api, accelerator_architecture_name, accelerator_count

from max_zimage import embedded
from max_zimage.checkpoint.model_index import INDEX
from max_zimage.compile.inner_loops import VARIABLE, described
from max_zimage.device.libraries import LIBRARIES, loaded
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.diagnosis.findings import Finding, fault, ok, warning
from max_zimage.host.processor import processor
from max_zimage.host.sizes import sized
from max_zimage.pipeline.placing import placed_usually
from max_zimage.pipeline.zimage import ZImagePipeline

_LITTLE = 2 * 2**30
"""Bytes of memory that the embedded model and its compiles want."""


def devices() -> Iterator[Finding]:
    """The processor, and every accelerator that MAX sees; a driver that it does not see."""
    yield ok("processor", processor())
    try:
        yield ok("bfloat16 products", described())
    except ValueError as error:
        yield fault("bfloat16 products", str(error), f"unset {VARIABLE}")
    count = accelerator_count()
    if count:
        yield ok("accelerators", f"{count} of {accelerator_api()} {accelerator_architecture_name()}")
    elif tool := shutil.which("nvidia-smi") or shutil.which("rocm-smi"):
        remedy = f"run {Path(tool).name}: if it fails, too, mend the driver; else update it to one that MAX supports"
        yield warning("accelerators", f"{tool} is there, and MAX sees no accelerator", remedy)
    else:
        yield ok("accelerators", "none; pictures are drawn on the CPU")


def libraries() -> Iterator[Finding]:
    """The libraries of NVIDIA's, where they are needed."""
    if accelerator_count() == 0 or accelerator_api() != "cuda":
        yield ok("cuBLAS, cuDNN", "not needed without an NVIDIA GPU")
        return
    for library in LIBRARIES:
        if loaded(library):
            yield ok(library.name, "found")
        else:
            remedy = f"install a CUDA toolkit with cuDNN, or {library.packages} with pip"
            yield fault(library.name, f"{' or '.join(library.files)} cannot be loaded", remedy)


def memory() -> Finding:
    """What is free on the host."""
    free = available_memory()
    if free < _LITTLE:
        remedy = "end other programs, or raise the container's limit: compiling wants about 2 GiB"
        return warning("memory", f"{sized(free)} are free", remedy)
    return ok("memory", f"{sized(free)} are free")


def checkpoint(model: str | None, device: str) -> Iterator[Finding]:
    """Whether a checkpoint is whole and fits.

    Args:
        model: A folder or a hub id; None or the embedded model's name for that.
        device: As `--device`.
    """
    if model is not None and "/" in model and not Path(model).expanduser().exists():
        yield from _on_the_hub(model, device)
        return
    try:
        prepared = ZImagePipeline.prepare(None if model == embedded.NAME else model, device=device)
    except ValueError as error:
        yield fault("checkpoint", str(error), "do what it says; `max-zimage info --model` says it, too")
        return
    sources = prepared.sources
    needed = sized(sum(sources.nbytes.values()))
    found = f"{model or embedded.NAME} is whole; its weights take {needed} in {sources.dtypes['transformer']}"
    try:
        plan = placed_usually(sources, prepared.wish)
    except NotEnoughMemoryError as error:
        remedy = "free memory, or use bfloat16, --quantize, or a device with more; `max-zimage info` has the parts"
        yield fault("checkpoint", f"{found}; {str(error).splitlines()[0]}", remedy)
    else:
        yield ok("checkpoint", f"{found}; {plan.why}")


def _on_the_hub(model: str, device: str) -> Iterator[Finding]:
    """A hub id: what is in the cache, and nothing is fetched."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        there = try_to_load_from_cache(model, INDEX)
    except HFValidationError as error:
        yield fault("checkpoint", f"{model} is neither a folder nor a hub id: {error}", "name one of these")
        return
    if isinstance(there, str):
        yield from checkpoint(str(Path(there).parent), device)
    elif constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE and run once with a network, or name a folder"
        yield fault("checkpoint", f"{model} is not in the hub's cache, and HF_HUB_OFFLINE is set", remedy)
    else:
        remedy = "the first run fetches it; `max-zimage info --model` does that and checks it"
        yield warning("checkpoint", f"{model} is not in the hub's cache", remedy)
