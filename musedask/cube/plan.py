"""How to cut a cube into chunks so that each fits the memory of one worker thread.  Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..compute import format_bytes
from ..errors import PlanError
from .kernels import RECORD

#: what a task holds per row: its key, the record sorted into voxels, its value once more; from disk also the record
ROW_SORTED = 4 + 4 * RECORD + 4
ROW_READ = 4 * RECORD
#: what is held of every row all the time, of rows in memory and of a store whose rows are positioned beforehand
ROW_HELD, ROW_POSITION = ROW_READ, 8
#: per voxel of the window: two counters; per voxel of the chunk: three sums and two results, in file order
VOXEL_WINDOW = 16
VOXEL_CHUNK = 24 + 8
VOXEL_MAPS = 12
#: buffers of a task whatever its size: pieces being read, compiled code, allocator slack
TASK_OVERHEAD = 14_000_000
#: rows of one piece read from disk at a time
PIECE_ROWS = 1 << 16
#: what the chunk of a task needs at the very least besides
_ROOM = 16_000_000
#: a task of this many rows is long enough to hide its start; longer ones only balance worse
TASK_ROWS = 9_000_000
#: the same where rows are read again cheaply: memory for more of them costs more time than it saves
TASK_ROWS_HELD = 4_500_000
#: time to read the rows of another part of the field in vain, in units of the time to resample them
_READING, _READING_HELD = 0.15, 0.05
_INNER = 128
#: share of the memory limit that is planned with
_PLANNED = 0.9


@dataclass(frozen=True)
class Plan:
    """Chunks of a cube and what they cost.

    Attributes
    ----------
    shape : tuple of int
        Cube, ``(nz, ny, nx)``.
    chunk : tuple of int
        One task, ``(cz, cy, cx)``.
    max_rows : int
        Rows that a task may hold; a task that meets more splits itself.
    n_threads : int
        Tasks at a time.
    task_bytes : int
        Expected peak of one task.
    fixed_bytes : int
        What is held during all tasks (the rows or their positions, if they are in memory).
    disk_bytes : int
        Disk space for the store and the cube.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    max_rows: int
    n_threads: int
    task_bytes: int
    fixed_bytes: int
    disk_bytes: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of chunks along each axis."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        return z, y, x

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return math.prod(self.counts)

    @property
    def peak_bytes(self) -> int:
        """Expected peak memory of all tasks, above that of the idle processes."""
        return self.fixed_bytes + self.n_threads * self.task_bytes

    def windows(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Half-open ``(z0, z1, y0, y1, x0, x1)`` of every chunk, wavelength outermost."""
        nz, ny, nx = self.shape
        cz, cy, cx = self.chunk
        for z in range(0, nz, cz):
            for y in range(0, ny, cy):
                for x in range(0, nx, cx):
                    yield z, min(z + cz, nz), y, min(y + cy, ny), x, min(x + cx, nx)

    def inner_chunk(self) -> tuple[int, int, int]:
        """Zarr chunk inside a shard: small enough to read a spectrum, large enough to read a plane."""
        cz, cy, cx = self.chunk
        return (_divisor(cz, 16), _part(cy), _part(cx))

    def shard(self) -> tuple[int, int, int]:
        """Zarr shard of one task; a multiple of the inner chunk."""
        inner = self.inner_chunk()
        z, y, x = (-(-c // i) * i for c, i in zip(self.chunk, inner, strict=True))
        return z, y, x

    def describe(self) -> str:
        """The plan in one paragraph, for the user."""
        nz, ny, nx = self.shape
        return (
            f"cube {nx} x {ny} x {nz} in {self.n_tasks} chunks of {self.chunk[2]} x {self.chunk[1]} x "
            f"{self.chunk[0]} voxels (x, y, wavelength), {self.n_threads} at a time; expected peak memory "
            f"{format_bytes(self.peak_bytes)}"
            + (f" (rows in memory: {format_bytes(self.fixed_bytes)})" if self.fixed_bytes else "")
            + f", disk {format_bytes(self.disk_bytes)}"
        )


def _divisor(n: int, largest: int) -> int:
    return next(d for d in range(min(n, largest), 0, -1) if n % d == 0)


def _part(n: int) -> int:
    return -(-n // max(1, round(n / _INNER)))


def _even(nz: int, height: int) -> int:
    """The next height that Zarr chunks of a sensible number of planes divide."""
    return next((c for c in range(height, height + 4) if c <= nz and _divisor(c, 16) >= min(c, 5)), height)


def _whole(n: int, size: int) -> int:
    """The next length of a chunk that is a whole number of inner chunks: a shard is exactly one chunk."""
    while n < size and n % _part(n):
        n += 1
    return n


def task_bytes(
    rows: float, window: float, chunk: float, *, rows_in_memory: bool, maps: bool
) -> int:
    """Peak memory of a task.

    Parameters
    ----------
    rows : float
        Rows in its window.
    window, chunk : float
        Voxels with and without halo.
    rows_in_memory : bool
        Whether the store gives the rows, positioned, as often as they are needed: a task keeps no copies.
    maps : bool
        Whether weights and numbers of pixels are kept.
    """
    per_row = ROW_SORTED + (0 if rows_in_memory else ROW_READ)
    pieces = 0 if rows_in_memory else 2 * PIECE_ROWS * (ROW_READ + 8)
    per_voxel = VOXEL_CHUNK + (VOXEL_MAPS if maps else 0)
    # the result is copied once more while Zarr assembles the shard
    return int(rows * per_row + window * VOXEL_WINDOW + chunk * (per_voxel + 8) + pieces + TASK_OVERHEAD)


def usable_threads(memory: int, n_threads: int) -> int:
    """How many threads to use of those there are: a few that have room rather than many that have none."""
    least = task_bytes(0, 0, 0, rows_in_memory=False, maps=False) + _ROOM
    return max(1, min(n_threads, int(_PLANNED * memory / least)))


def rows_fit(n_rows: int, row_bytes: int, memory: int, n_threads: int) -> bool:
    """Whether so much of each row may be kept in memory: most of the memory, and enough a thread, is left to tasks."""
    least = task_bytes(0, 0, 0, rows_in_memory=True, maps=False) + _ROOM
    return n_rows * row_bytes < min(0.4 * memory, _PLANNED * memory - n_threads * least)


def check_memory(memory: int, n_threads: int) -> None:
    """Make sure that tasks with rows on disk find room at all, before the rows are sorted.

    Raises
    ------
    PlanError
        If not.
    """
    least = task_bytes(0, 0, 0, rows_in_memory=False, maps=False)
    if _PLANNED * memory < n_threads * least:

        def needed(n: int) -> str:
            return f"{math.ceil(n * (least + _ROOM) / _PLANNED / 1e6)} MB"

        raise PlanError(
            f"no chunk fits a memory limit of {format_bytes(memory)} with {n_threads} "
            f"thread{'s' * (n_threads > 1)}; the smallest limit that would do is {needed(n_threads)}"
            + ("" if n_threads == 1 else f", or {needed(1)} with one thread (--n-workers 1)")
        )


def make_plan(
    shape: tuple[int, int, int],
    halo: int,
    cumulative: NDArray[np.float64],
    tile_fraction: Callable[[int, int, int, int], float],
    memory: int,
    n_threads: int,
    *,
    rows_in_memory: bool,
    row_bytes: int = ROW_HELD,
    maps: bool = False,
    disk_bytes: int = 0,
    chunk: tuple[int, int, int] | None = None,
) -> Plan:
    """Choose the chunks.

    Wavelength is cut first, since rows are sorted by it; the field is cut only if a few
    planes of it do not fit, because each part then reads the rows of the whole range.

    Parameters
    ----------
    shape : tuple of int
        Cube, ``(nz, ny, nx)``.
    halo : int
        Voxels around a chunk that it depends on.
    cumulative : ndarray of float64, shape (nz + 1,)
        Number of rows before each plane.
    tile_fraction : callable
        ``(y0, y1, x0, x1)`` -> share of all rows that fall there.
    memory : int
        Bytes for all tasks together, and what is held of the rows; nine tenths of it are planned with.
    n_threads : int
        Tasks at a time.
    rows_in_memory, maps : bool
        See `task_bytes`.
    row_bytes : int
        What is held of each row if `rows_in_memory`.
    disk_bytes : int
        Disk space, for the record.
    chunk : tuple of int, optional
        Chunk to use instead of choosing one.

    Raises
    ------
    PlanError
        If no chunk fits; the message names the smallest memory that would do.
    """
    nz, ny, nx = shape
    total = float(cumulative[-1])
    fixed = int(total * row_bytes) if rows_in_memory else 0
    budget = (_PLANNED * memory - fixed) / n_threads

    fractions: dict[tuple[int, int], float] = {}

    def fraction(cy: int, cx: int) -> float:
        """Largest share of rows of any tile, with its halo."""
        if (cy, cx) not in fractions:
            if cy >= ny and cx >= nx:
                fractions[cy, cx] = 1.0
            else:
                fractions[cy, cx] = max(
                    tile_fraction(max(y - halo, 0), min(y + cy + halo, ny), max(x - halo, 0), min(x + cx + halo, nx))
                    for y in range(0, ny, cy)
                    for x in range(0, nx, cx)
                )
        return fractions[cy, cx]

    def rows_of(cz: int) -> float:
        """Rows of the fullest range of planes, with its halo."""
        starts = np.arange(0, nz, cz)
        low = np.maximum(starts - halo, 0)
        high = np.minimum(starts + cz + halo, nz)
        return float(np.max(cumulative[high] - cumulative[low]))

    def cost(cz: int, cy: int, cx: int) -> tuple[int, float]:
        """Memory of the largest task and the rows that it holds."""
        rows = rows_of(cz) * fraction(cy, cx)
        window = (
            min(cz + 2 * halo, nz) * min(cy + 2 * halo, ny) * min(cx + 2 * halo, nx)
        )
        return task_bytes(rows, window, cz * cy * cx, rows_in_memory=rows_in_memory, maps=maps), rows

    if chunk is not None:
        cz, cy, cx = (max(1, min(c, n)) for c, n in zip(chunk, shape, strict=True))
        cy, cx = _whole(cy, ny), _whole(cx, nx)
        size, rows = cost(cz, cy, cx)
        return _finish(shape, (cz, cy, cx), size, rows, budget, n_threads, fixed, disk_bytes, rows_in_memory)

    # enough tasks to keep all threads busy to the end; of few planes the halo would cost more than an idle thread
    largest = max(1, -(-nz // (2 * n_threads)))
    largest = min(max(_even(nz, largest), 8), nz)
    heights = [c for c in sorted({64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 1, largest}, reverse=True) if c <= nz]
    most, reading = (TASK_ROWS_HELD, _READING_HELD) if rows_in_memory else (TASK_ROWS, _READING)
    best: tuple[float, tuple[int, int, int], int, float] | None = None
    feasible = 0
    sizes = []
    for tiles in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096):
        if feasible and tiles > 4 * feasible:
            break
        # split the longer side first; else y, along which the IFUs of an exposure lie if it is not rotated
        ty = min(max(1, round(math.sqrt(tiles * ny / nx) + 0.2)), ny)
        tx = min(-(-tiles // ty), nx)
        cy, cx = _whole(-(-ny // ty), ny), _whole(-(-nx // tx), nx)
        share = fraction(cy, cx)
        sizes.append(cost(1, cy, cx)[0])
        for cz in heights:
            size, rows = cost(cz, cy, cx)
            if size > budget or (rows > most and cz > 8) or cz > largest:
                continue
            # work: resampling with halo, and reading rows that other parts of the field need too
            overlap = math.prod(1 + 2 * halo * (-(-n // c) - 1) / n for n, c in zip(shape, (cz, cy, cx), strict=True))
            work = overlap * (1 + reading * max(0.0, 1 / max(share, 1e-3) - 1))
            if best is None or work < best[0]:
                best = (work, (cz, cy, cx), size, rows)
            feasible = feasible or tiles
            break
    if best is None:
        # not the last byte at the price of a thousand tiles
        smallest = next(size for size in sizes if size < 1.2 * min(sizes))

        def needed(n: int) -> str:
            # rounded up to a million; the text must not round it down again
            return f"{math.ceil((fixed + n * smallest) / _PLANNED / 1e6)} MB"

        raise PlanError(
            f"no chunk fits a memory limit of {format_bytes(memory)} with {n_threads} "
            f"thread{'s' * (n_threads > 1)}; the smallest limit that would do is {needed(n_threads)}"
            + ("" if n_threads == 1 else f", or {needed(1)} with one thread (--n-workers 1)")
        )
    _, chosen, size, rows = best
    return _finish(shape, chosen, size, rows, budget, n_threads, fixed, disk_bytes, rows_in_memory)


def _finish(
    shape: tuple[int, int, int],
    chunk: tuple[int, int, int],
    size: int,
    rows: float,
    budget: float,
    n_threads: int,
    fixed: int,
    disk_bytes: int,
    rows_in_memory: bool,
) -> Plan:
    per_row = ROW_SORTED + (0 if rows_in_memory else ROW_READ)
    spare = max(0.0, budget - size) / per_row
    return Plan(shape, chunk, int(max(rows + spare, 1000)), n_threads, size, fixed, disk_bytes)
