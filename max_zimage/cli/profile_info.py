"""`max-zimage profile --show-info`: what computes here, with what, and how it is set."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from max.driver import Device, load_devices
from max.dtype import DType

from max_zimage import embedded
from max_zimage.cli.console import table_console
from max_zimage.cli.info import versions
from max_zimage.cli.info_devices import devices
from max_zimage.cli.model_shapes import specs_of
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.graphs.kernel_library import is_nvidia, uses_cpu_kernels
from max_zimage.graphs.model.attention_backends import Backend, available
from max_zimage.pipeline.attention import backend_of

_LIBRARIES = ("modular", "max-core", "mojo", "numpy", "pillow", "transformers", "tokenizers", "safetensors")


WHAT: Mapping[Backend, str] = {
    "max_zimage": "a kernel of this project: norms, RoPE and attention in one pass",
    "max": "MAX's flash attention, behind norms and RoPE",
    "plain": "scores, softmax and weighted sums in float32, with memory for every pair of tokens",
}
"""Attention by name, in words."""


def info_facts(arguments: Any) -> dict[str, Any]:
    """What there is; nothing is loaded or compiled.

    Args:
        arguments: Flags of the command.

    Raises:
        ValueError: If the device, the dtype or the attention is none.
    """
    (device,) = load_devices([device_spec(arguments.device)])
    dtype = model_dtype(arguments.dtype or "auto", device)
    specs = specs_of(arguments.model or str(embedded.PATH))
    there = available(DType[dtype], device, (specs.text_encoder.head_dim, specs.transformer.head_dim))
    used = backend_of(arguments.attention_backend, specs.transformer, dtype, device) or there[0]
    return {
        "platform": {"system": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": versions() | {name: found for name in _LIBRARIES if (found := _version(name))},
        "devices": devices(),
        "backends": {
            "attention": {"used": used, "what": WHAT[used]},
            "attention, choice": ", ".join(there),
            "matrix products": _products(device, dtype),
        },
        "configuration": {"device": device.label, "dtype": dtype, "quantize": arguments.quantize or "none"},
        "environment": {name: _shown(name, value) for name, value in sorted(os.environ.items()) if _is_ours(name)},
    }


def print_info(facts: Mapping[str, Any]) -> None:
    """The same, as a person reads it."""
    console = table_console()
    for title, entries in facts.items():
        console.print(title, style="bold")
        if isinstance(entries, list):
            for each in entries:
                console.print("  " + ", ".join(f"{name} {value}" for name, value in each.items()))
            continue
        for name, value in entries.items():
            said = f"{value['used']}: {value['what']}" if isinstance(value, dict) else value
            console.print(f"  {name}: {said}")
        if not entries:
            console.print("  nothing is set")


def _products(device: Device, dtype: str) -> str:
    if device.is_host:
        own = uses_cpu_kernels(DType[dtype], device)
        return "kernels of this project, weights packed at load" if own else "MAX's"
    return "cuBLAS" if is_nvidia(device) else "MAX's"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_ours(name: str) -> bool:
    return name.startswith("MAX_ZIMAGE_")


def _shown(name: str, value: str) -> str:
    return "(set)" if "KEY" in name else value
