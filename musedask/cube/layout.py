"""From a store to the grid of the cube and the plan of its chunks."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..compute import run_tasks
from ..errors import InputError
from ..recipe import Recipe
from ..recipes import MAKE_CUBE
from . import geometry
from .build import open_store, store_stamp
from .exposure import Placement
from .grid import Grid, Limits, check_overlap, make_grid
from .kernels import RECORD
from .params import ResampleParams
from .plan import ROW_HELD, ROW_POSITION, Plan, make_plan
from .resample import block_box
from .store import (
    BIN_START,
    BIN_WIDTH,
    N_BINS,
    ROW_BYTES,
    AnyStore,
    Block,
    DiskStore,
    PositionedStore,
    StoredExposure,
    prepare,
)
from .work import Settings

log = logging.getLogger("musedask")

#: wavelength range that cuts nothing
ALL_WAVES = (-math.inf, math.inf)


def _block_extremes(
    store_path: str, stamp: int, placements: Sequence[Placement], vacuum: bool, wave_range: tuple[float, float],
    task: tuple[int, int],
) -> NDArray[np.float64]:  # fmt: skip
    """Limits of the prepared rows of a block on disk."""
    store = open_store(store_path, stamp)
    block = store.exposures[task[0]].blocks[task[1]]
    extremes = np.array([np.inf, -np.inf] * 3)
    from .resample import read_pieces

    for read in read_pieces(store, block, wave_range):
        rows = read()
        prepare(rows, placements[block.exposure], vacuum)
        geometry.row_limits(rows, extremes)
    return extremes


def _known_extremes(
    block: Block, exposure: StoredExposure, placement: Placement, vacuum: bool, wave_range: tuple[float, float]
) -> NDArray[np.float64] | None:
    """Limits of a block from those in the store, where rounding keeps the order of rows."""
    extremes = np.array(block.limits)
    if extremes[4] < wave_range[0] or extremes[5] > wave_range[1]:
        return None
    if placement.position and placement.dec0 != float(exposure.header["DEC"]):
        return None
    pair = np.zeros((2, RECORD), np.float32)
    pair[:, 0], pair[:, 1], pair[:, 2] = extremes[:2], extremes[2:4], extremes[4:]
    if placement.position and placement.shift != (0.0, 0.0):
        pair[:, 0] = (pair[:, 0].astype(np.float64) + placement.shift[0]).astype(np.float32)
        pair[:, 1] = (pair[:, 1].astype(np.float64) + placement.shift[1]).astype(np.float32)
    if vacuum:
        geometry.air_to_vacuum(pair)
    return pair[:, :3].astype(np.float64).T.ravel()


def find_limits(
    store: AnyStore,
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    settings: Settings,
) -> NDArray[np.float64]:
    """``xlo xhi ylo yhi llo lhi`` over all prepared rows."""
    extremes = np.array([np.inf, -np.inf] * 3)

    def merge(values: NDArray[np.float64]) -> None:
        extremes[::2] = np.minimum(extremes[::2], values[::2])
        extremes[1::2] = np.maximum(extremes[1::2], values[1::2])

    unknown: list[tuple[int, int]] = []
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            if block.n_rows == 0:
                continue
            if store.prepared:
                merge(np.array(block.limits))
                continue
            if block.limits[5] < wave_range[0] or block.limits[4] > wave_range[1]:
                continue
            known = _known_extremes(block, exposure, placements[number], vacuum, wave_range)
            if known is None:
                unknown.append((number, block.number))
            else:
                merge(known)
    if unknown:
        assert isinstance(store, DiskStore)
        stamp = store_stamp(store.path / "zarr.json")
        run_tasks(
            partial(_block_extremes, str(store.path), stamp, list(placements), vacuum, wave_range),
            unknown,
            client=settings.client,
            n_workers=settings.threads,
            label="field of view",
            on_result=lambda _, values: merge(values),
        )
    if not np.isfinite(extremes).all():
        low, high = wave_range
        raise InputError(f"no pixels between {low:g} and {high:g} Angstrom: empty wavelength range")
    return extremes


def find_grid(
    recipe: Recipe,
    store: AnyStore,
    header: fits.Header,
    extremes: NDArray[np.float64],
    wave_range: tuple[float, float],
    params: ResampleParams,
    wcs: Any,
    placements: Sequence[Placement],
) -> Grid:
    celestial = store.exposures[0].stage != "pix"
    zero = (float(header["CRVAL1"]), float(header["CRVAL2"])) if celestial else (0.0, 0.0)
    computed = Limits.from_rows(extremes, zero)
    vacuum = wcs is not None and wcs.ctype3.startswith("WAVE")
    if recipe is MAKE_CUBE and not placements[0].position and wave_range == ALL_WAVES and not vacuum:
        # the reference takes the limits of a positioned table from its header
        with contextlib.suppress(InputError):
            computed = Limits.from_header(header)
    try:
        return make_grid(header, computed, params, wcs, celestial=celestial)
    except InputError as error:
        raise InputError(f"{store.exposures[0].name}: {error}") from error


def _cumulative(store: AnyStore, grid: Grid, wave_range: tuple[float, float]) -> NDArray[np.float64]:
    """Number of rows before each plane, from the histograms of the blocks."""
    counts = np.zeros(N_BINS)
    for exposure in store.exposures:
        for block in exposure.blocks:
            counts += np.diff(block.bins)
    edges = BIN_START + BIN_WIDTH * np.arange(N_BINS + 1)
    before = np.concatenate([[0.0], np.cumsum(counts)])
    # rows that will be cut away do not count
    low, high = np.interp(wave_range, edges, before)
    before = np.clip(before, low, high) - low
    if grid.vacuum:
        edges = edges * 1.00027
    wave, step = grid.wavelengths(), grid.steps()
    result = np.interp(np.append(wave - step / 2, wave[-1] + step[-1] / 2), edges, before)
    # the outermost planes take everything beyond them
    result[0], result[-1] = 0.0, before[-1]
    return result


def _tile_fraction(
    store: AnyStore, placements: Sequence[Placement], grid: Grid
) -> Callable[[int, int, int, int], float]:
    """Share of rows in a tile, taking each block's rows as spread evenly over its box."""
    boxes, sizes = [], []
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            box = block_box(block, exposure, placements[number], grid, prepared=store.prepared)
            boxes.append(box or (0.0, grid.nx - 1.0, 0.0, grid.ny - 1.0))
            sizes.append(block.n_rows)
    b = np.array(boxes)
    size = np.array(sizes, float)
    # what lies beyond the grid is kept in its outermost spaxels
    b[:, :2] = np.clip(b[:, :2], 0, grid.nx - 1)
    b[:, 2:] = np.clip(b[:, 2:], 0, grid.ny - 1)
    area = (b[:, 1] - b[:, 0] + 1) * (b[:, 3] - b[:, 2] + 1)

    def fraction(y0: int, y1: int, x0: int, x1: int) -> float:
        wide = np.minimum(b[:, 1] + 1, x1) - np.maximum(b[:, 0], x0)
        high = np.minimum(b[:, 3] + 1, y1) - np.maximum(b[:, 2], y0)
        share = np.maximum(wide, 0) * np.maximum(high, 0) / area
        return float((share * size).sum() / size.sum())

    return fraction


def plan_chunks(
    store: AnyStore,
    grid: Grid,
    params: ResampleParams,
    placements: Sequence[Placement],
    settings: Settings,
    wave_range: tuple[float, float],
    in_memory: bool,
    chunks: tuple[int, int, int] | None,
) -> Plan:
    voxels = math.prod(grid.shape)
    disk = voxels * (16 if params.weight_map else 8)
    return make_plan(
        grid.shape,
        params.halo,
        _cumulative(store, grid, wave_range),
        _tile_fraction(store, placements, grid),
        settings.memory_limit,
        settings.threads,
        rows_in_memory=in_memory,
        row_bytes=ROW_POSITION if isinstance(store, PositionedStore) else ROW_HELD,
        maps=params.weight_map,
        disk_bytes=disk,
        chunk=chunks,
    )


def dry_run_plan(
    exposures: Sequence[StoredExposure],
    header: fits.Header,
    params: ResampleParams,
    wcs: Any,
    placements: Sequence[Placement],
    settings: Settings,
    total: int,
    chunks: tuple[int, int, int] | None,
    *,
    in_memory: bool,
    stored: bool,
) -> None:
    """Plan from the headers' limits alone: nothing is read, nothing is written."""
    boxes = []
    for exposure, placement in zip(exposures, placements, strict=True):
        limits = Limits.from_header(exposure.header)
        if placement.position:
            # a projected table's limits are polar; theta alone bounds its radius
            radius = math.degrees(-limits.y[0])
            wide = radius / max(math.cos(math.radians(placement.dec0)), 1e-3)
            zero = (float(header["CRVAL1"]), float(header["CRVAL2"]))
            x, y = placement.shift[0] + zero[0], placement.shift[1] + zero[1]
            limits = replace(limits, x=(x - wide, x + wide), y=(y - radius, y + radius))
        boxes.append(limits)
    low = max(min(b.wave[0] for b in boxes), params.lambdamin)
    high = min(max(b.wave[1] for b in boxes), params.lambdamax)
    if not low < high:
        raise InputError(
            f"no pixels between {params.lambdamin:g} and {params.lambdamax:g} Angstrom: empty wavelength range"
        )
    limits = Limits(
        (min(b.x[0] for b in boxes), max(b.x[1] for b in boxes)),
        (min(b.y[0] for b in boxes), max(b.y[1] for b in boxes)),
        (low, high),
    )
    grid = make_grid(header, limits, params, wcs, celestial=exposures[0].stage != "pix")
    check_overlap(grid)
    cumulative = np.linspace(0, total, grid.nz + 1)
    voxels = math.prod(grid.shape)
    plan = make_plan(
        grid.shape,
        params.halo,
        cumulative,
        lambda y0, y1, x0, x1: (y1 - y0) * (x1 - x0) / (grid.ny * grid.nx),
        settings.memory_limit,
        settings.threads,
        rows_in_memory=in_memory,
        row_bytes=ROW_POSITION if stored else ROW_HELD,
        maps=params.weight_map,
        disk_bytes=voxels * 8 + (0 if in_memory or stored else total * ROW_BYTES),
        chunk=chunks,
    )
    log.info("dry run, sizes from the headers (the field may turn out smaller): %s", plan.describe())
