"""cublasLt's own choice of algorithms for a product, each to be called and timed.

    y [tokens, outputs] = x [tokens, inputs] weightᵀ, weight [outputs, inputs]; bfloat16, summed in float32

Reference: cuBLAS documentation, cublasLt API.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch

NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
WORKSPACE = 64 << 20
"""Bytes that an algorithm may have beside the matrices."""

_COMPUTE_32F, _R_32F, _R_16BF = 68, 0, 14
_TRANSA, _TRANSPOSED = 3, 1
_MAX_WORKSPACE_BYTES = 1


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class Lt:
    """A handle of cublasLt with memory for its algorithms.

    Raises:
        OSError: If the library is not there.
        RuntimeError: If one of its calls fails, here and later.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._handle = self._make("cublasLtCreate")
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")

    def algorithms(self, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, most: int) -> list[Callable[[], None]]:
        """What cublasLt proposes, its favourite first.

        Args:
            x: bfloat16 [tokens, inputs] on the GPU.
            weight: bfloat16 [outputs, inputs] there.
            y: bfloat16 [tokens, outputs] there; every call writes it.
            most: How many at most.

        Returns:
            Calls on torch's stream.
        """
        (tokens, inputs), outputs = x.shape, len(weight)
        desc = self._make("cublasLtMatmulDescCreate", _COMPUTE_32F, _R_32F)
        transposed = ctypes.c_int32(_TRANSPOSED)
        self._call("cublasLtMatmulDescSetAttribute", desc, _TRANSA, ctypes.byref(transposed), ctypes.c_size_t(4))
        # The library counts by columns: its matrices are these, transposed.
        a, b, d = (
            self._make(
                "cublasLtMatrixLayoutCreate", _R_16BF, *map(ctypes.c_uint64, (rows, columns)), ctypes.c_int64(rows)
            )
            for rows, columns in ((inputs, outputs), (inputs, tokens), (outputs, tokens))
        )
        preference = self._make("cublasLtMatmulPreferenceCreate")
        room = ctypes.c_uint64(WORKSPACE)
        self._call(
            "cublasLtMatmulPreferenceSetAttribute",
            *(preference, _MAX_WORKSPACE_BYTES, ctypes.byref(room), ctypes.c_size_t(8)),
        )
        found, count = (_Heuristic * most)(), ctypes.c_int(0)
        self._call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(self._handle, desc, a, b, d, d, preference, most, found, ctypes.byref(count)),
        )
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        pointers = [ctypes.c_void_p(each.data_ptr()) for each in (weight, x, y, self._workspace)]

        def call(algorithm: _Heuristic) -> None:
            a_data, b_data, d_data, workspace = pointers
            self._call(
                "cublasLtMatmul",
                *(
                    self._handle,
                    desc,
                    ctypes.byref(one),
                    a_data,
                    a,
                    b_data,
                    b,
                    ctypes.byref(zero),
                    d_data,
                    d,
                    d_data,
                    d,
                ),
                *(ctypes.byref(algorithm.algo), workspace, ctypes.c_size_t(WORKSPACE), stream),
            )

        return [partial(call, each) for each in found[: count.value] if each.state == 0]

    def _make(self, name: str, *arguments: object) -> ctypes.c_void_p:
        """Call what writes a handle through its first argument."""
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")


def _library() -> ctypes.CDLL:
    """The one that torch has loaded, by its name."""
    said = []
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            said.append(str(error))
    raise OSError("; ".join(said))
