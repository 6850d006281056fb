"""Resample one chunk of a cube: rows with halo -> voxels -> cosmic rays -> voxel values.

Knows nothing of Dask, and of storage only that a store gives the rows of a block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PlanError
from . import cosmics, geometry, kernels
from .exposure import Placement
from .grid import Grid
from .kernels import RECORD
from .params import ResampleParams
from .store import Block, StoredExposure, bin_pieces, bin_range, cut_rows, is_cut, prepare
from .workspace import workspace

Window = tuple[int, int, int, int, int, int]

#: steps of a chunk whose time is taken
STEPS = ("read and index", "sort", "cosmic rays", "resample")


class Store(Protocol):
    """What a chunk needs of a pixel store.

    Attributes
    ----------
    in_memory : bool
        Whether `read` gives views of rows in memory.
    prepared : bool
        Whether rows are positioned and scaled, and limits of the blocks are those of such rows.
    exposures : list of StoredExposure
    """

    in_memory: bool
    prepared: bool
    exposures: list[StoredExposure]

    def read(
        self, block: Block, bins: tuple[int, int], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of a range of wavelength bins of a block; a store on disk puts them into `out`."""

    def size(self, block: Block, bins: tuple[int, int]) -> int:
        """Values that `out` must have room for."""


@dataclass(frozen=True)
class Job:
    """Everything that the chunks of one cube share.

    Attributes
    ----------
    grid : Grid
    params : ResampleParams
    placements : tuple of Placement
        One per exposure of the store.
    directions : tuple of int
        Direction of the slices for the cosmic-ray rejection, one per exposure.
    wave_range : tuple of float
        Rows outside are cut off; infinite where nothing is cut [Angstrom].
    max_rows : int
        Rows that a chunk may hold at a time; one that meets more is split.
    """

    grid: Grid
    params: ResampleParams
    placements: tuple[Placement, ...]
    directions: tuple[int, ...]
    wave_range: tuple[float, float]
    max_rows: int


@dataclass
class Chunk:
    """Values of a chunk, in file order.

    Attributes
    ----------
    data, stat : ndarray of float32, shape (nz, ny, nx)
    weight : ndarray of float32, shape (nz, ny, nx) or (0, 0, 0)
    n_pixels : ndarray of int32, shape (nz, ny, nx) or (0, 0, 0)
    cosmics : list of tuple
        Exposure and row numbers of the cosmic rays found inside the chunk.
    statistics : ndarray of int64, shape (6,)
        Rows, rows positioned exactly, and the counts of `cosmics.flag`.
    seconds : ndarray of float64, shape (4,)
        Time spent in the steps `STEPS`.
    """

    data: NDArray[np.float32]
    stat: NDArray[np.float32]
    weight: NDArray[np.float32]
    n_pixels: NDArray[np.int32]
    cosmics: list[tuple[int, NDArray[np.int32]]] = field(default_factory=list)
    statistics: NDArray[np.int64] = field(default_factory=lambda: np.zeros(6, np.int64))
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(STEPS)))


class _TooManyRows(Exception):
    """The window holds more rows than allowed."""


def resample_chunk(job: Job, store: Store, window: Window, *, keep_cosmics: bool = False) -> Chunk:
    """Compute one chunk of the cube.

    Parameters
    ----------
    job : Job
    store : Store
    window : tuple of int
        Half-open ``(z0, z1, y0, y1, x0, x1)``.
    keep_cosmics : bool
        Whether to list the rows flagged as cosmic rays.

    Returns
    -------
    Chunk

    Raises
    ------
    PlanError
        If a single spaxel column holds more rows than `Job.max_rows`.
    """
    z0, z1, y0, y1, x0, x1 = window
    shape = (z1 - z0, y1 - y0, x1 - x0)
    maps = shape if job.params.weight_map else (0, 0, 0)
    out = Chunk(
        np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(maps, np.float32), np.empty(maps, np.int32)
    )
    _fill(job, store, window, window, out, keep_cosmics)
    return out


def _fill(job: Job, store: Store, whole: Window, part: Window, out: Chunk, keep_cosmics: bool) -> None:
    """Compute a part of a chunk, or split it if its rows are too many."""
    try:
        _resample(job, store, whole, part, out, keep_cosmics)
    except _TooManyRows:
        z0, z1, y0, y1, x0, x1 = part
        halves: tuple[Window, Window]
        if y1 - y0 > 1 and y1 - y0 >= x1 - x0:
            middle = (y0 + y1) // 2
            halves = (z0, z1, y0, middle, x0, x1), (z0, z1, middle, y1, x0, x1)
        elif x1 - x0 > 1:
            middle = (x0 + x1) // 2
            halves = (z0, z1, y0, y1, x0, middle), (z0, z1, y0, y1, middle, x1)
        elif z1 - z0 > 1:
            middle = (z0 + z1) // 2
            halves = (z0, middle, y0, y1, x0, x1), (middle, z1, y0, y1, x0, x1)
        else:
            raise PlanError(
                f"voxel x {x0 + 1}, y {y0 + 1}, plane {z0 + 1} and its neighbours hold more than "
                f"{job.max_rows} rows, which do not fit the memory limit; does OUTPUT_WCS cover the data?"
            ) from None
        for half in halves:
            _fill(job, store, whole, half, out, keep_cosmics)


def _grow(low: int, high: int, by: int, n: int) -> tuple[int, int]:
    return max(low - by, 0), min(high + by, n)


@dataclass
class _Piece:
    """Rows that may lie in a window.

    Attributes
    ----------
    exposure : int
    rows : callable
        Returns the prepared rows, until the next piece is asked for.
    keys : ndarray of int32
        Voxels of the rows.
    """

    exposure: int
    rows: Callable[[], NDArray[np.float32]]
    keys: NDArray[np.int32]


def _same(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows


def _pieces(job: Job, store: Store, outer: Window, n_exact: NDArray[np.int64]) -> Iterator[_Piece]:
    """Rows that may lie in a window, piece by piece."""
    grid = job.grid
    low, high = grid.plane_edges(outer[0], outer[1])
    if grid.vacuum:
        # the refractive index of air is between 1.0002 and 1.0003 from 4000 to 10000 Angstrom
        low, high = low / 1.0003, high / 1.0002
    bins = bin_range(max(low, job.wave_range[0]), min(high, job.wave_range[1]))
    wcs = grid.wcs_array()
    zero = np.array(grid.zero)
    shape = np.array(grid.shape)
    outer_array = np.array(outer)
    whole_field = outer[2:] == (0, grid.ny, 0, grid.nx)
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            first, last = int(block.bins[bins[0]]), int(block.bins[bins[1]])
            if first == last:
                continue
            if not whole_field and not block_overlaps(
                block, exposure, job.placements[number], grid, outer, prepared=store.prepared
            ):
                continue
            for read in read_pieces(store, block, job.wave_range, bins):
                rows = read()
                if not store.prepared:
                    prepare(rows, job.placements[number], grid.vacuum)
                keys = np.empty(len(rows), np.int32)
                geometry.voxel_index(
                    rows, wcs, zero, grid.celestial, grid.crval3, grid.cd33, grid.crpix3, grid.is_log,
                    shape, outer_array, True, keys, n_exact,
                )  # fmt: skip
                yield _Piece(number, read if store.prepared else partial(_same, rows), keys)


def read_pieces(
    store: Store, block: Block, wave_range: tuple[float, float], bins: tuple[int, int] | None = None
) -> Iterator[Callable[[], NDArray[np.float32]]]:
    """Functions that read the rows of a block within a wavelength range.

    From disk they come in pieces, so that rows that turn out to lie outside the window are never
    held all at once; each piece is overwritten by the next.  From memory they come whole, not copied.
    """
    if bins is None:
        bins = bin_range(*wave_range)
    if store.in_memory:
        yield partial(store.read, block, bins)
        return
    def read(part: tuple[int, int]) -> NDArray[np.float32]:
        rows = store.read(block, part, workspace.get("piece", store.size(block, part), np.float32))
        if not store.prepared and is_cut(block, part, wave_range):
            low, high = (np.float32(w) for w in wave_range)
            edges = block.bins[part[0] : part[1] + 1] - block.bins[part[0]]
            rows = rows[: cut_rows(rows, edges, low, high)]
        return rows

    for part in bin_pieces(block, bins):
        yield partial(read, part)


def block_overlaps(
    block: Block,
    exposure: StoredExposure,
    placement: Placement,
    grid: Grid,
    window: Window,
    *,
    prepared: bool = False,
) -> bool:
    """Whether rows of a block can fall into a window: a test of bounding boxes, never a false no."""
    box = block_box(block, exposure, placement, grid, prepared=prepared)
    if box is None:
        return True
    y0, y1, x0, x1 = window[2:]
    # rows beyond the edge of the cube belong to its outermost spaxels
    low_x = -math.inf if x0 == 0 else x0
    high_x = math.inf if x1 == grid.nx else x1 - 1
    low_y = -math.inf if y0 == 0 else y0
    high_y = math.inf if y1 == grid.ny else y1 - 1
    return box[0] <= high_x and box[1] >= low_x and box[2] <= high_y and box[3] >= low_y


def block_box(
    block: Block, exposure: StoredExposure, placement: Placement, grid: Grid, *, prepared: bool
) -> tuple[float, float, float, float] | None:
    """Bounding box of a block in the grid, ``x_low, x_high, y_low, y_high`` (0-based pixels), a little too large.

    None if it cannot be bounded (next to a pole).
    """
    xlo, xhi, ylo, yhi = block.limits[:4]
    if not all(map(math.isfinite, (xlo, xhi, ylo, yhi))):
        return None
    to_pixel = geometry.project_exact if grid.celestial else geometry.pixel_linear
    margin = 2.0
    if placement.position and not prepared:
        # limits are relative to the header's pointing; an offset in DEC also stretches RA
        dec = float(exposure.header["DEC"])
        if abs(placement.dec0) > 80:
            return None
        stretch = math.tan(math.radians(abs(placement.dec0))) * math.radians(abs(placement.dec0 - dec)) * 1.5
        extra = max(abs(xlo), abs(xhi)) * stretch + 1e-6
        xlo, xhi = xlo + placement.shift[0] - extra, xhi + placement.shift[0] + extra
        ylo, yhi = ylo + placement.shift[1] - 1e-6, yhi + placement.shift[1] + 1e-6
    wcs = grid.wcs_array()
    points = np.array(
        [
            to_pixel(x + grid.zero[0], y + grid.zero[1], wcs)
            for x in np.linspace(xlo, xhi, 5)
            for y in np.linspace(ylo, yhi, 5)
        ]
    )
    if not np.isfinite(points).all():
        return None
    # projected edges are curved: allow for the sag between the points
    margin += 0.01 * float(np.ptp(points, axis=0).max())
    low, high = points.min(0) - 1 - margin, points.max(0) - 1 + margin
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _resample(job: Job, store: Store, whole: Window, part: Window, out: Chunk, keep_cosmics: bool) -> None:
    grid, params = job.grid, job.params
    halo, reach = params.halo, params.reach
    z0, z1, y0, y1, x0, x1 = part
    outer: Window = (*_grow(z0, z1, halo, grid.nz), *_grow(y0, y1, halo, grid.ny), *_grow(x0, x1, halo, grid.nx))
    nz_w, ny_w, nx_w = outer[1] - outer[0], outer[3] - outer[2], outer[5] - outer[4]
    dims = np.array([nx_w, ny_w, nz_w])
    n_voxels = nx_w * ny_w * nz_w
    n_exact = np.zeros(1, np.int64)

    clock = [time.perf_counter()]
    held: list[_Piece] = []
    counts = workspace.get("offsets", n_voxels + 1, np.int64)
    counts[:] = 0
    total = 0
    for piece in _pieces(job, store, outer, n_exact):
        kept = kernels.count_rows(piece.keys, counts)
        if not kept:
            continue
        total += kept
        if total > job.max_rows and n_voxels > 1:
            raise _TooManyRows
        if not store.prepared:
            # to position them again, and to read them from a real disk again, would take longer than to copy them
            rows = piece.rows()
            kernels.pack_rows(rows, piece.keys)
            rows, keys = rows[:kept].copy(), piece.keys[:kept].copy()
            piece = _Piece(piece.exposure, partial(_same, rows), keys)
        held.append(piece)
    out.statistics[0] += total
    out.statistics[1] += n_exact[0]
    sel = np.s_[z0 - whole[0] : z1 - whole[0], y0 - whole[2] : y1 - whole[2], x0 - whole[4] : x1 - whole[4]]
    if not total:
        out.data[sel] = np.nan
        out.stat[sel] = np.nan
        if params.weight_map:
            out.weight[sel] = 0
            out.n_pixels[sel] = 0
        return

    clock.append(time.perf_counter())
    offsets = np.cumsum(counts, out=counts)
    cursor = workspace.get("cursor", n_voxels, np.int32)
    cursor[:] = offsets[:-1]
    records = workspace.get("records", total * RECORD, np.float32).reshape(total, RECORD)
    bits = records.view(np.int32)
    held.reverse()
    while held:
        piece = held.pop()
        rows = piece.rows()
        kernels.scatter_rows(
            rows, rows.view(np.int32), piece.keys, piece.exposure, job.placements[piece.exposure].weight,
            offsets, cursor, records, bits,
        )  # fmt: skip
        del rows, piece

    clock.append(time.perf_counter())
    if params.crsigma > 0:
        # flags are needed wherever rows are taken from: the part and its reach
        za, zb = _grow(z0, z1, reach, grid.nz)
        ya, yb = _grow(y0, y1, reach, grid.ny)
        xa, xb = _grow(x0, x1, reach, grid.nx)
        region = np.array([xa - outer[4], xb - outer[4], ya - outer[2], yb - outer[2], za - outer[0], zb - outer[0]])
        _flag(job, records, bits, offsets, dims, region, out.statistics[2:])
    target = np.array([x0 - outer[4], x1 - outer[4], y0 - outer[2], y1 - outer[2], z0 - outer[0], z1 - outer[0]])
    if keep_cosmics:
        out.cosmics += _list_cosmics(bits, offsets, dims, target)

    clock.append(time.perf_counter())
    _fill_values(job, records, bits, offsets, dims, target, outer, sel, out)
    out.seconds += np.diff([*clock, time.perf_counter()])


def _fill_values(
    job: Job,
    records: NDArray[np.float32],
    bits: NDArray[np.int32],
    offsets: NDArray[np.int64],
    dims: NDArray[np.int64],
    target: NDArray[np.int64],
    outer: Window,
    sel: tuple[slice, ...],
    out: Chunk,
) -> None:
    """Resample sorted rows into the part `sel` of a chunk."""
    grid, params = job.grid, job.params
    xc, yc, cosine = geometry.voxel_centres(grid.wcs_array(), grid.celestial, *outer[2:])
    wave = grid.wavelengths()[outer[0] : outer[1]]
    zero, scale = np.array(grid.zero), np.array(grid.scale)
    weight = np.empty((0, 0, 0), np.float32)
    if params.weight_map:
        weight = out.weight[sel]
    if params.resample == "nearest":
        n_pixels = out.n_pixels[sel] if params.weight_map else np.empty((0, 0, 0), np.int32)
        kernels.nearest(
            records, bits, offsets, dims, target, xc, yc, cosine, wave, zero, scale,
            params.nearest_corrected, out.data[sel], out.stat[sel], n_pixels,
        )  # fmt: skip
        if params.weight_map:
            weight[...] = np.isfinite(out.data[sel])
        return
    shape = (int(target[1] - target[0]), int(target[3] - target[2]), int(target[5] - target[4]))
    n_target = math.prod(shape)
    sums = workspace.get("sums", 3 * n_target, np.float64).reshape(n_target, 3)
    sums[:] = 0
    n_pixels = np.zeros(n_target if params.weight_map else 0, np.int32)
    if params.resample == "drizzle":
        px, py, pz = params.pixfrac
        # 0.8 = 1/1.25 planes per Angstrom: the reference divides and multiplies by it
        drop = np.array([px / scale[0], py / scale[1], pz / 0.8])
        size = np.abs([grid.cd[0], grid.cd[3]])
        step = grid.steps()[outer[0] : outer[1]]
        kernels.drizzle(
            records, bits, offsets, dims, target, xc, yc, cosine, wave, step, zero, drop, size,
            params.ld, sums, n_pixels,
        )  # fmt: skip
    else:
        rc = params.rc * math.sqrt(
            (grid.cd[0] * scale[0]) ** 2 + (grid.cd[3] * scale[1]) ** 2 + (grid.cd33 * 0.8) ** 2
        )
        kernels.weighted(
            kernels.METHODS[params.resample], records, bits, offsets, dims, target, xc, yc, cosine, wave,
            zero, scale, rc, params.ld, sums, n_pixels,
        )  # fmt: skip
    kernels.finish(sums, shape, out.data[sel], out.stat[sel], weight)
    if params.weight_map:
        out.n_pixels[sel] = n_pixels.reshape(shape).transpose(2, 1, 0)


def _flag(
    job: Job,
    records: NDArray[np.float32],
    bits: NDArray[np.int32],
    offsets: NDArray[np.int64],
    dims: NDArray[np.int64],
    region: NDArray[np.int64],
    statistics: NDArray[np.int64],
) -> None:
    """Flag cosmic rays; with directions of their own, each direction flags only its exposures' rows."""
    cr_type = cosmics.CR_TYPES[job.params.crtype]
    used: Sequence[int] = sorted(set(job.directions)) if job.params.cr_per_exposure else job.directions[:1]
    values = workspace.get("values", len(records), np.float32)

    def flag(way: int) -> None:
        cosmics.flag(
            records, bits, offsets, dims, region, cr_type, way, job.params.crsigma, True, statistics, values
        )

    if len(used) == 1:
        flag(used[0])
        return
    original = bits[:, kernels.DQ].copy()
    result = original.copy()
    member = np.array(job.directions)
    table = original >> kernels.STATE_BITS
    for way in used:
        bits[:, kernels.DQ] = original
        flag(way)
        mine = member[table] == way
        result[mine] = bits[mine, kernels.DQ]
    bits[:, kernels.DQ] = result


def _list_cosmics(
    bits: NDArray[np.int32], offsets: NDArray[np.int64], dims: NDArray[np.int64], target: NDArray[np.int64]
) -> list[tuple[int, NDArray[np.int32]]]:
    """Rows flagged in the target: pairs of exposure number and row numbers."""
    tx0, tx1, ty0, ty1, tz0, tz1 = target
    first = offsets[:-1].reshape(dims)[tx0:tx1, ty0:ty1, tz0].ravel()
    last = offsets[1:].reshape(dims)[tx0:tx1, ty0:ty1, tz1 - 1].ravel()
    state = bits[:, kernels.DQ]
    flagged = np.flatnonzero(state & kernels.STATE_COSMIC)
    # rows of a spaxel column are contiguous: keep those inside one of the target's columns
    column = np.searchsorted(first, flagged, side="right") - 1
    flagged = flagged[(column >= 0) & (flagged < last[np.maximum(column, 0)])]
    table = state[flagged] >> kernels.STATE_BITS
    return [(int(t), bits[flagged[table == t], kernels.ROW].copy()) for t in np.unique(table)]
