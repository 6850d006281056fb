"""Voxel-sorted rows for the tests of kernels and cosmic rays, and the same rows as plain Python lists."""

from __future__ import annotations

import numpy as np

from musedask.cube import kernels
from musedask.cube.kernels import DATA, DQ, RECORD, ROW, STAT, STATE_BAD, STATE_BITS, STATE_COSMIC, WAVE, WEIGHT, X, Y


class Voxels:
    """Rows of several tables sorted into a window of ``(nx, ny, nz)`` voxels.

    `columns` are one dict per table: x, y, wave, data, stat, weight, dq and key (the voxel's number).
    """

    def __init__(self, shape, columns, weights=None, order=None):
        self.shape = shape
        self.window = np.array(shape)
        n_voxels = int(np.prod(shape))
        counts = np.zeros(n_voxels + 1, np.int64)
        tables = []
        for table in columns:
            n = len(table["key"])
            rows = np.empty((n, RECORD), np.float32)
            bits = rows.view(np.int32)
            for name, place in zip(("x", "y", "wave", "data", "stat", "weight"), (X, Y, WAVE, DATA, STAT, WEIGHT),
                                   strict=True):  # fmt: skip
                rows[:, place] = table[name]
            bits[:, DQ] = table["dq"]
            bits[:, ROW] = np.arange(n)
            keys = np.asarray(table["key"], np.int32)
            if order is not None:
                shuffle = order(n)
                rows, keys = rows[shuffle].copy(), keys[shuffle]
            kernels.count_rows(keys, counts)
            tables.append((rows, keys))
        self.offsets = np.cumsum(counts)
        self.records = np.empty((self.offsets[-1], RECORD), np.float32)
        self.bits = self.records.view(np.int32)
        cursor = self.offsets[:-1].astype(np.int32)
        for number, (rows, keys) in enumerate(tables):
            weight = -1.0 if weights is None else weights[number]
            kernels.scatter_rows(
                rows, rows.view(np.int32), keys, number, weight, self.offsets, cursor, self.records, self.bits
            )
        # the same in plain Python: rows of a voxel in the order of tables, then rows
        self.voxels = [[] for _ in range(n_voxels)]
        for number, table in enumerate(columns):
            for row in range(len(table["key"])):
                if table["key"][row] < 0:
                    continue
                values = {
                    name: float(np.float32(table[name][row])) for name in ("x", "y", "wave", "data", "stat", "weight")
                }
                if weights is not None and weights[number] >= 0:
                    values["weight"] = float(np.float32(weights[number]))
                values |= {"dq": int(table["dq"][row]), "table": number, "row": row}
                self.voxels[table["key"][row]].append(values)

    def __getitem__(self, index):
        """Rows of voxel ``(i, j, k)`` in the plain representation; none outside the window."""
        if any(not 0 <= a < n for a, n in zip(index, self.shape, strict=True)):
            return []
        i, j, k = index
        return self.voxels[(i * self.shape[1] + j) * self.shape[2] + k]

    def copy_bits(self):
        """Records to be modified: (records, int32 view)."""
        records = self.records.copy()
        return records, records.view(np.int32)

    def flagged(self, bits):
        """(table, row) of the records whose state has the bit of cosmic rays."""
        found = bits[(bits[:, DQ] & STATE_COSMIC) != 0]
        return {(int(a) >> STATE_BITS, int(b)) for a, b in zip(found[:, DQ], found[:, ROW], strict=True)}


def random_columns(rng, shape, n_rows, *, data=None, n_tables=1, bad=0.1, cosmic=0.1, extent=1.0):
    """Rows at random places of a grid of unit voxels: voxel k has its centre at k, 1.25 per plane."""
    columns = []
    for _ in range(n_tables):
        index = [rng.integers(0, n, n_rows) for n in shape]
        x, y, z = (i + extent * rng.uniform(-0.5, 0.5, n_rows) for i in index)
        dq = np.where(rng.random(n_rows) < bad, rng.choice([1, 33, 256, -(2**31)], n_rows), 0)
        dq = np.where((dq == 0) & (rng.random(n_rows) < cosmic), 32, dq).astype(np.int32)
        columns.append(
            {
                "x": x, "y": y, "wave": 1.25 * z,
                "data": rng.normal(100, 10, n_rows) if data is None else data(n_rows, index),
                "stat": rng.uniform(0.5, 200, n_rows), "weight": rng.uniform(0.1, 2.0, n_rows), "dq": dq,
                "key": (index[0] * shape[1] + index[1]) * shape[2] + index[2],
            }
        )  # fmt: skip
    return columns


assert STATE_BAD != STATE_COSMIC
