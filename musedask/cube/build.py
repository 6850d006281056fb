"""Pixel tables to a store, in memory or on disk, block by block."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..compute import give_back_arrays, run_tasks
from ..errors import InputError
from . import geometry
from .exposure import Exposure, Placement
from .plan import PIECE_ROWS, ROW_READ
from .store import (
    AnyStore,
    Block,
    DiskStore,
    MemoryStore,
    PositionedStore,
    bin_range,
    block_limits,
    describe,
    finish_store,
    plan_blocks,
    prepare,
    read_block,
    write_block,
)
from .work import Settings

#: rows of a block while it is read and sorted: columns, bins, records
_BLOCK_ROW_BYTES = 4 * 7 + 2 + ROW_READ
_MAX_BLOCK_ROWS = 1 << 21


@lru_cache(maxsize=2)
def unpickle(path: str, stamp: int) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


@dataclass(frozen=True)
class _BlockTask:
    exposure: int
    number: int
    source: int
    start: int
    stop: int


def block_tasks(exposures: Sequence[Exposure], block_rows: int) -> list[_BlockTask]:
    return [
        _BlockTask(e, k, *piece)
        for e, exposure in enumerate(exposures)
        for k, piece in enumerate(plan_blocks(exposure, block_rows))
    ]


def _load(
    exposures: Sequence[Exposure],
    store: MemoryStore,
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    task: _BlockTask,
) -> Block:
    """Read a block into memory and prepare its rows."""
    exposure = exposures[task.exposure]
    rows, bins = read_block(exposure, exposure.sources[task.source], task.start, task.stop, wave_range)
    prepare(rows, placements[task.exposure], vacuum)
    block = Block(task.exposure, task.number, task.source, task.start, task.stop, bins, block_limits(rows))
    store.add(block, rows)
    return block


def load_tables(
    exposures: Sequence[Exposure],
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    settings: Settings,
) -> MemoryStore:
    """Read tables into a store in memory, with their rows positioned and scaled."""
    store = MemoryStore([describe(e) for e in exposures], exposures)
    blocks: list[Block] = []
    rows = int(0.4 * settings.memory_limit / settings.threads / _BLOCK_ROW_BYTES)
    run_tasks(
        partial(_load, exposures, store, placements, vacuum, wave_range),
        block_tasks(exposures, max(min(rows, _MAX_BLOCK_ROWS // 2), 1000)),
        n_workers=settings.threads,
        label="reading pixel tables",
        on_result=lambda _, block: blocks.append(block),
    )
    for block in sorted(blocks, key=lambda b: (b.exposure, b.number)):
        store.exposures[block.exposure].blocks.append(block)
    return store


def position_store(
    store: DiskStore,
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    settings: Settings,
) -> PositionedStore:
    """Position the rows of a store on disk within a wavelength range, once for all chunks."""
    result = PositionedStore(store, placements, vacuum, wave_range)
    blocks: list[Block] = []
    run_tasks(
        result.position,
        [block for exposure in store.exposures for block in exposure.blocks],
        n_workers=settings.threads,
        label="positions",
        on_result=lambda _, block: blocks.append(block),
    )
    for block in sorted(blocks, key=lambda b: (b.exposure, b.number)):
        result.exposures[block.exposure].blocks.append(block)
    return result


def rows_in_range(store: DiskStore, wave_range: tuple[float, float]) -> int:
    """Number of rows of a store in the bins of a wavelength range."""
    first, last = bin_range(*wave_range)
    return sum(int(b.bins[last] - b.bins[first]) for e in store.exposures for b in e.blocks)


def _write(inputs: str, stamp: int, folder: str, wave_range: tuple[float, float], task: _BlockTask) -> Block:
    """Read a block and write it to the store on disk."""
    give_back_arrays()
    exposures: list[Exposure] = unpickle(inputs, stamp)
    exposure = exposures[task.exposure]
    kept = Path(folder) / "blocks" / f"{task.exposure:04d}_{task.number:05d}.npz"
    if kept.exists():
        with np.load(kept) as saved:
            if list(saved["task"]) == [task.source, task.start, task.stop]:
                limits = tuple(float(v) for v in saved["limits"])
                return Block(*_fields(task), saved["bins"], limits)
    rows, bins = read_block(exposure, exposure.sources[task.source], task.start, task.stop, wave_range)
    extremes = np.array([np.inf, -np.inf] * 3)
    dec = float(exposure.header.get("DEC", 0.0))
    for first in range(0, len(rows), PIECE_ROWS):
        piece = np.ascontiguousarray(rows[first : first + PIECE_ROWS, :3])
        if exposure.stage == "rad":
            geometry.position_rows(piece, dec, 0.0, 0.0, True)
        geometry.row_limits(piece, extremes)
    write_block(Path(folder), task.exposure, task.number, rows)
    # a block counts as finished once this file is there
    part = kept.with_suffix(".part.npz")
    np.savez(part, task=[task.source, task.start, task.stop], bins=bins, limits=extremes)
    os.replace(part, kept)
    return Block(*_fields(task), bins, tuple(float(v) for v in extremes))


def _fields(task: _BlockTask) -> tuple[int, int, int, int, int]:
    return task.exposure, task.number, task.source, task.start, task.stop


def build_store(
    exposures: Sequence[Exposure], folder: Path, wave_range: tuple[float, float], settings: Settings
) -> DiskStore:
    """Write the store of some exposures, or go on with one that was interrupted."""
    state = folder / "rows.txt"
    if (folder / "zarr.json").exists():
        shutil.rmtree(folder / "blocks", ignore_errors=True)
        state.unlink(missing_ok=True)
        return DiskStore(folder)
    rows = int(0.8 * settings.memory_limit / settings.threads / _BLOCK_ROW_BYTES)
    rows = max(min(rows, _MAX_BLOCK_ROWS), 1000)
    if state.exists() and int(state.read_text()) <= rows:
        # finished blocks stay as they are, also if the memory limit has become larger
        rows = int(state.read_text())
    else:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "blocks").mkdir(parents=True)
        part = state.with_suffix(".part")
        part.write_text(str(rows))
        os.replace(part, state)
    tasks = block_tasks(exposures, rows)
    inputs = folder / "inputs.pickle"
    if not inputs.exists():
        part = inputs.with_suffix(".part")
        part.write_bytes(pickle.dumps(list(exposures)))
        os.replace(part, inputs)
    stored = [describe(e) for e in exposures]
    blocks: list[Block] = []
    run_tasks(
        partial(_write, str(inputs), inputs.stat().st_mtime_ns, str(folder), wave_range),
        tasks,
        client=settings.client,
        n_workers=settings.threads,
        label="sorting pixel tables",
        on_result=lambda _, block: blocks.append(block),
    )
    for block in sorted(blocks, key=lambda b: (b.exposure, b.number)):
        stored[block.exposure].blocks.append(block)
    if not any(e.n_rows for e in stored):
        raise InputError(
            f"no pixels between {wave_range[0]:g} and {wave_range[1]:g} Angstrom: empty wavelength range"
        )
    inputs.unlink()
    finish_store(folder, stored, wave_range)
    shutil.rmtree(folder / "blocks")
    state.unlink()
    return DiskStore(folder)

def store_task(store: AnyStore) -> Any:
    """What a task gets of a store: a path, which any process can open, unless it has something in memory."""
    return str(store.path) if isinstance(store, DiskStore) else store


@lru_cache(maxsize=4)
def open_store(path: str, stamp: int) -> DiskStore:
    return DiskStore(path, check_sources=False)


def store_stamp(path: Path) -> int:
    return path.stat().st_mtime_ns
