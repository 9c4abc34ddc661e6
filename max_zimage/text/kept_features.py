"""Text features that are kept in memory, because prompts come again: the least recently used ones go first.

They are what the text encoder made of token ids, before anything is done to them, so that requests which differ in seed
variance or compression share them. They are kept on the host, in the bits of the text encoder's dtype.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class KeptFeatures:
    """Features by a key that says all that they depend on.

    Args:
        most: Bytes of all; what does not fit alone is not kept.

    Attributes:
        counts: "hits" and "misses" of look-ups so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: Counter[str] = Counter(hits=0, misses=0)
        self._entries: OrderedDict[Hashable, npt.NDArray[np.uint16] | FloatArray] = OrderedDict()
        self._lock = threading.Lock()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def figures(self) -> dict[str, int]:
        """For operators: hits, misses, bytes and entries."""
        return {**self.counts, "bytes": self._nbytes, "entries": len(self._entries)}

    def get(self, key: Hashable) -> FloatArray | None:
        """What was put there, float32 [tokens, width], or None; nobody may write to it."""
        with self._lock:
            found = self._entries.get(key)
            self.counts["misses" if found is None else "hits"] += 1
            if found is None:
                return None
            self._entries.move_to_end(key)
        return _in_float32(found)

    def put(self, key: Hashable, features: FloatArray) -> None:
        """Keep features.

        Args:
            key: Says all that they depend on.
            features: float32 [tokens, width].
        """
        entry = _compact(features)
        with self._lock:
            if entry.nbytes > self.most or key in self._entries:
                return
            self._entries[key] = entry
            self._nbytes += entry.nbytes
            while self._nbytes > self.most:
                _, oldest = self._entries.popitem(last=False)
                self._nbytes -= oldest.nbytes


def _compact(features: FloatArray) -> npt.NDArray[np.uint16] | FloatArray:
    """A copy of its own, in the upper halves of the bits where the lower ones are all 0, as bfloat16 leaves them."""
    bits = np.ascontiguousarray(features).view(np.uint32)
    if not (bits & np.uint32(0xFFFF)).any():
        return (bits >> np.uint32(16)).astype(np.uint16)
    copy = np.array(features, np.float32)
    copy.flags.writeable = False
    return copy


def _in_float32(entry: npt.NDArray[np.uint16] | FloatArray) -> FloatArray:
    if entry.dtype == np.float32:
        return entry.view(np.float32)
    return (entry.astype(np.uint32) << np.uint32(16)).view(np.float32)
