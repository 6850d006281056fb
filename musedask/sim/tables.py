"""Tables of published numbers that come with the package: text files in ``data/``.

Their comments say where the numbers are from; the last comment line names the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=8)
def read(name: str) -> Mapping[str, NDArray[Any]]:
    """Columns of a table.

    Parameters
    ----------
    name : str
        File in ``data/``.

    Returns
    -------
    mapping of str to ndarray
        Numbers as int64 or float64, else str; not writeable.
    """
    columns: list[str] = []
    rows: list[list[str]] = []
    for line in resources.files(__package__).joinpath("data", name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            columns = line[1:].split()
        elif line.strip():
            rows.append(line.split())
    table: dict[str, NDArray[Any]] = {}
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        array: NDArray[Any] = np.array(values)
        for kind in (np.int64, np.float64):
            try:
                array = np.array([kind(v) for v in values])
                break
            except ValueError:
                continue
        array.setflags(write=False)
        table[column] = array
    return MappingProxyType(table)
