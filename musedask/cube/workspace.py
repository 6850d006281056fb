"""Large arrays that are used again and again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Workspace(threading.local):
    """Large arrays of a thread, kept from task to task: fresh memory from the system is slow."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, n: int, dtype: type[np.generic]) -> NDArray[Any]:
        """An array of n values whose contents are undefined."""
        size = n * np.dtype(dtype).itemsize
        held = self._arrays.get(name)
        if held is None or len(held) < size:
            # the old one goes first; what is not touched of the new one costs nothing, and the next task may need it
            self._arrays.pop(name, None)
            del held
            held = self._arrays[name] = np.empty(size + size // 4, np.uint8)
        return held[:size].view(dtype)


#: those of this thread
workspace = Workspace()
