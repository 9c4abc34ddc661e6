"""The project's ops for a GPU and a product beside them, compiled for a virtual sm_90a.

    python -m tests.references.own_kernels FILE

At the published widths; the product is one of the embedded model's, whose width is no multiple of 8. MAX wants the
virtual device before anything else, hence the process of its own.
"""

from __future__ import annotations

import os
import sys

from max.driver import (
    Accelerator,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)


def main(file: str) -> None:
    """Write the artifact."""
    set_virtual_device_api("cuda")
    set_virtual_device_target_arch("sm_90a")
    set_virtual_device_count(1)
    from max.dtype import DType
    from max.engine import InferenceSession
    from max.graph import DeviceRef, Module, TensorType

    from max_zimage.graphs.kernel_library import compile_with_kernels
    from max_zimage.graphs.layers import build, trace
    from max_zimage.graphs.model.blocks import SwiGLU
    from tests.references.gpu_ops import PUBLISHED, AllOps, WidenedWeight
    from tests.references.gpu_pictures import NORMS, Attention, Norm

    device = Accelerator()
    place, dtype = DeviceRef.from_device(device), DType.bfloat16
    product = build(lambda: SwiGLU(256, 682), dtype, place)
    alone = AllOps(PUBLISHED), WidenedWeight(), Norm(*NORMS["16"]), Attention(512)
    tokens = [TensorType(dtype, ["items", "length", 256], place)]
    together = Module()
    graphs = [
        trace(product, tokens, "product", together),
        *(trace(each, each.input_types(place), type(each).__name__, together) for each in alone),
    ]
    compile_with_kernels(InferenceSession(devices=[device]), together, graphs).export_mef(file)
    sys.stdout.flush()
    os._exit(0)  # MAX's compiler threads now and then abort a process that ends in the usual way


if __name__ == "__main__":
    main(sys.argv[1])
