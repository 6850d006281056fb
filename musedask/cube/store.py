"""The pixel store: every table read once, its rows in blocks sorted by wavelength bin.

A wavelength range is then one contiguous slice of each block.  A store knows nothing of any
output grid: it keeps rows as the tables have them (IFUs of an exposure merged), so that any
number of cubes can be made from it.  It exists in memory, for data that fit, and on disk as
a Zarr group whose blocks are arrays of one uncompressed chunk, so that a slice of rows is a
plain read at an offset.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from ..io.headers import cards_from_json, cards_to_json
from ..io.pixtable import Stage
from . import geometry
from .exposure import Exposure, Placement, Source
from .kernels import DATA, DQ, RECORD, ROW, STAT, WAVE, WEIGHT, X, Y
from .plan import PIECE_ROWS
from .workspace import workspace

log = logging.getLogger("musedask")

SCHEMA_VERSION = 1
#: wavelength bins of the blocks [Angstrom]
BIN_START, BIN_WIDTH, N_BINS = 4000.0, 5.0, 1200
#: bytes of one row in memory and on disk
ROW_BYTES = 4 * RECORD
_COLUMNS = ("xpos", "ypos", "lambda", "data", "stat", "dq")


@dataclass(frozen=True)
class Block:
    """A piece of a table, sorted by wavelength bin.

    Attributes
    ----------
    exposure, number : int
    source : int
        Which file of the exposure.
    start, stop : int
        Rows of that file; some of them may have been cut by wavelength.
    bins : ndarray of int64, shape (N_BINS + 1,)
        Where each bin starts.
    limits : tuple of float
        ``xlo xhi ylo yhi llo lhi`` of the columns; of tables in native spherical coordinates
        the positions relative to the header's RA and DEC [deg].
    """

    exposure: int
    number: int
    source: int
    start: int
    stop: int
    bins: NDArray[np.int64] = field(repr=False)
    limits: tuple[float, ...]

    @property
    def n_rows(self) -> int:
        """Rows kept."""
        return int(self.bins[-1])


@dataclass
class StoredExposure:
    """One exposure of a store.

    Attributes
    ----------
    date_obs, stage, name
        As in `Exposure`.
    header : astropy.io.fits.Header
    units : dict
        Units of ``data`` and ``stat``.
    has_weight : bool
    blocks : list of Block
    fingerprint : list
        Path, size, modification time of every source file.
    """

    date_obs: str
    stage: Stage
    name: str
    header: fits.Header = field(repr=False)
    units: dict[str, str]
    has_weight: bool
    fingerprint: list[list[Any]]
    blocks: list[Block] = field(default_factory=list, repr=False)

    @property
    def n_rows(self) -> int:
        """Rows kept of all blocks."""
        return sum(b.n_rows for b in self.blocks)

    @property
    def sources(self) -> list[Path]:
        """Source files."""
        return [Path(entry[0]) for entry in self.fingerprint]


def bin_range(low: float, high: float) -> tuple[int, int]:
    """Bins that hold wavelengths from `low` to `high`, as a half-open range."""
    first = 0 if low <= BIN_START else min(int((low - BIN_START) / BIN_WIDTH), N_BINS - 1)
    last = N_BINS if high >= BIN_START + N_BINS * BIN_WIDTH else int((high - BIN_START) / BIN_WIDTH) + 1
    if high < low:
        return first, first
    # the outermost bins hold everything beyond them
    return first, max(min(last, N_BINS), first + 1)


def bin_pieces(block: Block, bins: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Cut a range of bins of a block into ranges of about `PIECE_ROWS` rows, none of them empty."""
    first = bins[0]
    while first < bins[1]:
        target = block.bins[first] + PIECE_ROWS
        last = int(np.searchsorted(block.bins, target, side="right")) - 1
        last = min(max(last, first + 1), bins[1])
        if block.bins[last] > block.bins[first]:
            yield first, last
        first = last


def is_cut(block: Block, bins: tuple[int, int], wave_range: tuple[float, float]) -> bool:
    """Whether rows of a block in a range of bins may lie outside of a wavelength range that has these bins."""
    low, high = wave_range
    if block.limits[4] >= low and block.limits[5] <= high:
        return False
    # what is in none of the outermost bins of the range lies inside
    first, last = bin_range(low, high)
    return bins[0] <= first or bins[1] >= last


@njit(cache=True, nogil=True)
def cut_rows(rows, edges, low, high):  # type: ignore[no-untyped-def]
    """Drop rows outside of a wavelength range, in place, and move the starts of the bins accordingly.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, 8)
    edges : ndarray of int64, shape (n_bins + 1,)
        Where each bin starts, from 0 to n.
    low, high : float32
        The range; its borders belong to it.

    Returns
    -------
    int
        Number of rows left.
    """
    kept = 0
    start = edges[0]
    for b in range(edges.shape[0] - 1):
        stop = edges[b + 1]
        for k in range(start, stop):
            if rows[k, WAVE] < low or rows[k, WAVE] > high:
                continue
            if kept != k:
                for c in range(rows.shape[1]):
                    rows[kept, c] = rows[k, c]
            kept += 1
        start = stop
        edges[b + 1] = kept
    return kept


@njit(cache=True, nogil=True)
def _float(value):  # type: ignore[no-untyped-def]
    """Big-endian 32-bit word to the native word."""
    return (
        ((value & np.uint32(0xFF)) << np.uint32(24))
        | ((value & np.uint32(0xFF00)) << np.uint32(8))
        | ((value >> np.uint32(8)) & np.uint32(0xFF00))
        | (value >> np.uint32(24))
    )


@njit(cache=True, nogil=True)
def swap_words(words):  # type: ignore[no-untyped-def]
    """Swap the bytes of 32-bit words, in place."""
    for k in range(words.shape[0]):
        words[k] = _float(words[k])


@njit(cache=True, nogil=True)
def _assign_bins(wave, low, high, bins, counts):  # type: ignore[no-untyped-def]
    """Bin of every row (-1: cut off), and the number of rows of each bin at ``counts[bin + 1]``."""
    for k in range(wave.shape[0]):
        w = wave[k]
        if w < low or w > high:
            bins[k] = -1
            continue
        # not finite ones are refused later; they must have a bin all the same
        b = 0
        if w > 4000.0:
            b = int((w - 4000.0) * 0.2) if w < 10000.0 else 1199
        bins[k] = b
        counts[b + 1] += 1


@njit(cache=True, nogil=True)
def _scatter(  # type: ignore[no-untyped-def]
    xpos, ypos, wave, data, stat, dq, weight, bins, cursor, row0, scale, flat_wave, flat_value, out, bits, bad
):
    """Write rows into their places; `bad` counts non-finite rows and keeps the first of each kind."""
    inverse = 1.0 / scale
    inverse2 = 1.0 / (scale * scale)
    n_flat = flat_wave.shape[0]
    for k in range(wave.shape[0]):
        b = bins[k]
        if b < 0:
            continue
        p = cursor[b]
        cursor[b] = p + 1
        d = data[k]
        s = stat[k]
        if scale != 1.0:
            d = np.float32(d * inverse)
            s = np.float32(s * inverse2)
        if n_flat:
            u = (wave[k] - flat_wave[0]) / (flat_wave[1] - flat_wave[0])
            i = min(max(int(u), 0), n_flat - 2)
            f = flat_value[i] + (flat_value[i + 1] - flat_value[i]) * (u - i)
            d = np.float32(d * f)
            # rounded to float32 after each factor, as in the reference
            s = np.float32(np.float32(s * f) * f)
        if not (math.isfinite(xpos[k]) and math.isfinite(ypos[k]) and math.isfinite(wave[k])):
            if bad[0] == 0:
                bad[1] = k
            bad[0] += 1
        if dq[k] == 0 and not (math.isfinite(d) and math.isfinite(s)):
            if bad[2] == 0:
                bad[3] = k
            bad[2] += 1
        out[p, X] = xpos[k]
        out[p, Y] = ypos[k]
        out[p, WAVE] = wave[k]
        out[p, DATA] = d
        out[p, STAT] = s
        out[p, WEIGHT] = weight[k] if weight.shape[0] else np.float32(1.0)
        bits[p, DQ] = dq[k]
        bits[p, ROW] = row0 + k


def read_block(
    exposure: Exposure, source: Source, start: int, stop: int, wave_range: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read rows of a table, cut them to a wavelength range and sort them by bin.

    Parameters
    ----------
    exposure, source
        What to read.
    start, stop : int
        Rows of the file.
    wave_range : tuple of float
        Rows outside are dropped (float32 comparison, borders are kept) [Angstrom].

    Returns
    -------
    rows : ndarray of float32, shape (n, 8)
        Records, see `kernels`.
    bins : ndarray of int64, shape (N_BINS + 1,)

    Raises
    ------
    InputError
        If positions or good data are not finite.
    """
    table = source.table
    wave = table.read("lambda", start, stop)
    low, high = (np.float32(w) for w in wave_range)
    counts = np.zeros(N_BINS + 1, np.int64)
    bins = np.empty(len(wave), np.int16)
    _assign_bins(wave, low, high, bins, counts)
    offsets = np.cumsum(counts)
    rows = np.empty((offsets[-1], RECORD), np.float32)
    columns = [wave if name == "lambda" else table.read(name, start, stop) for name in _COLUMNS]
    empty = np.empty(0, np.float32)
    weight = table.read("weight", start, stop) if table.has_weight else empty
    flat_wave, flat_value = exposure.flat if exposure.flat is not None else (np.empty(0), np.empty(0))
    bad = np.zeros(4, np.int64)
    _scatter(  # type: ignore[call-arg]
        *columns, weight, bins, offsets[:-1].copy(), source.first_row + start, source.scale,
        flat_wave, flat_value, rows, rows.view(np.int32), bad,
    )  # fmt: skip
    if bad[0]:
        raise InputError(
            f"{table.path}: xpos, ypos or lambda is not finite in {bad[0]} row(s), "
            f"the first is row {start + bad[1]} (0-based)"
        )
    if bad[2]:
        raise InputError(
            f"{table.path}: data or stat is not finite in {bad[2]} row(s) with dq = 0, "
            f"the first is row {start + bad[3]} (0-based); set their dq, or drop them"
        )
    return rows, offsets


def block_limits(rows: NDArray[np.float32]) -> tuple[float, ...]:
    """``xlo xhi ylo yhi llo lhi`` of positioned rows; infinities if there are none."""
    limits = np.array([np.inf, -np.inf] * 3)
    geometry.row_limits(rows, limits)
    return tuple(float(v) for v in limits)


@njit(cache=True, nogil=True)
def _scale_rows(rows, scale):  # type: ignore[no-untyped-def]
    square = scale * scale
    for k in range(rows.shape[0]):
        rows[k, DATA] = np.float32(rows[k, DATA] * scale)
        rows[k, STAT] = np.float32(rows[k, STAT] * square)


def prepare(rows: NDArray[np.float32], placement: Placement, vacuum: bool) -> None:
    """Position rows, scale their flux and convert to vacuum, in place: all that is local to a row."""
    if placement.position:
        geometry.position_rows(rows, placement.dec0, *placement.shift, True)
    if placement.flux_scale != 1.0:
        _scale_rows(rows, placement.flux_scale)
    if vacuum:
        geometry.air_to_vacuum(rows)


def plan_blocks(exposure: Exposure, block_rows: int) -> list[tuple[int, int, int]]:
    """Cut an exposure into blocks ``(source, start, stop)`` of at most `block_rows` rows."""
    pieces = []
    for number, source in enumerate(exposure.sources):
        n = source.table.n_rows
        parts = max(1, -(-n // block_rows))
        edges = np.linspace(0, n, parts + 1).astype(int)
        pieces += [(number, int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return pieces


def fingerprint(path: Path) -> list[Any]:
    """Path, size and modification time [ns] of a source file."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def describe(exposure: Exposure) -> StoredExposure:
    """The part of a stored exposure that is known before its rows are read."""
    columns = exposure.sources[0].table.columns
    return StoredExposure(
        exposure.date_obs,
        exposure.stage,
        exposure.name,
        exposure.header,
        {name: columns[name].unit for name in ("data", "stat")},
        exposure.has_weight,
        [fingerprint(s.table.path) for s in exposure.sources],
    )


class MemoryStore:
    """A store whose blocks are arrays of rows that are positioned and scaled already.

    Parameters
    ----------
    exposures : sequence of StoredExposure
        Without their blocks.
    inputs : sequence of Exposure
        The tables that the rows are of, if they come from tables.
    """

    in_memory = True
    prepared = True

    def __init__(self, exposures: Sequence[StoredExposure], inputs: Sequence[Exposure] = ()) -> None:
        self.inputs = inputs
        self.exposures = list(exposures)
        self._rows: dict[tuple[int, int], NDArray[np.float32]] = {}

    def add(self, block: Block, rows: NDArray[np.float32]) -> None:
        """Keep a block; thread-safe for different blocks."""
        self._rows[block.exposure, block.number] = rows

    def rows(self, block: Block) -> NDArray[np.float32]:
        """All rows of a block (not a copy)."""
        return self._rows[block.exposure, block.number]

    def read(
        self, block: Block, bins: tuple[int, int], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of a range of bins (not a copy)."""
        return self.rows(block)[block.bins[bins[0]] : block.bins[bins[1]]]

    def size(self, block: Block, bins: tuple[int, int]) -> int:
        """Values that `read` needs room for: none."""
        return 0


class DiskStore:
    """A store on disk, opened for reading.

    Parameters
    ----------
    path : path-like
        The Zarr group.

    Raises
    ------
    StoreError
        If it is not a pixel store, of another version, incomplete, or if a source file has
        changed since it was made.
    """

    in_memory = False
    prepared = False

    def __init__(self, path: str | os.PathLike[str], *, check_sources: bool = True) -> None:
        self.path = Path(path)
        try:
            attributes = json.loads((self.path / "zarr.json").read_text())["attributes"]
            kind = attributes["musedask"]
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{path}: not a pixel store of musedask") from error
        if kind != "pixel store":
            raise StoreError(f"{path}: a {kind} of musedask found, expected a pixel store")
        if attributes["schema_version"] != SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema version {attributes['schema_version']} found, expected {SCHEMA_VERSION}"
            )
        self.wave_range: tuple[float, float] = (-math.inf, math.inf)
        self.exposures: list[StoredExposure] = []
        try:
            self._read_index(attributes, check_sources)
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, BadZipFile) as error:
            raise StoreError(f"{path}: the store is damaged ({type(error).__name__} {error})") from error

    def _read_index(self, attributes: dict[str, Any], check_sources: bool) -> None:
        low, high = attributes["wave_range"]
        self.wave_range = float(low), float(high)
        index = np.load(self.path / "index.npz")
        for number, entry in enumerate(attributes["exposures"]):
            exposure = StoredExposure(
                entry["date_obs"],
                entry["stage"],
                entry["name"],
                cards_from_json(entry["header"]),
                entry["units"],
                entry["has_weight"],
                entry["fingerprint"],
            )
            pieces, limits, bins = (index[f"{what}_{number}"] for what in ("pieces", "limits", "bins"))
            exposure.blocks = [
                Block(number, k, int(piece[0]), int(piece[1]), int(piece[2]), bins[k], tuple(map(float, limits[k])))
                for k, piece in enumerate(pieces)
            ]
            if check_sources:
                _check_sources(self.path, exposure)
            self.exposures.append(exposure)

    def read(
        self, block: Block, bins: tuple[int, int], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of a range of bins, as a new array or in the first values of `out`."""
        first, last = int(block.bins[bins[0]]), int(block.bins[bins[1]])
        size = (last - first) * RECORD
        rows = (np.empty(size, "<f4") if out is None else out[:size]).reshape(-1, RECORD)
        if last > first:
            path = block_path(self.path, block.exposure, block.number)
            view = rows.reshape(-1).view(np.uint8).data
            try:
                with open(path, "rb", buffering=0) as file:
                    file.seek(first * ROW_BYTES)
                    done = 0
                    while done < len(view):
                        got = file.readinto(view[done:])
                        if not got:
                            raise StoreError(f"{path}: ends before row {last}; the store is damaged")
                        done += got
            except FileNotFoundError as error:
                raise StoreError(f"{path}: no such file; the store is damaged") from error
        return rows

    def size(self, block: Block, bins: tuple[int, int]) -> int:
        """Values that `read` needs room for."""
        return int(block.bins[bins[1]] - block.bins[bins[0]]) * RECORD


class PositionedStore:
    """A wavelength range of a store on disk, with the positions of its rows in memory.

    Positions cost more time than all else that is done to a row before it is sorted, limits of the field
    have to be known before the first chunk, and several chunks need the same rows; but they are only a
    quarter of a row.  The other columns are read each time: from the page cache that takes less time than
    it takes to get memory for them.

    Parameters
    ----------
    store : DiskStore
    placements : sequence of Placement
        One per exposure.
    vacuum : bool
        Whether wavelengths are converted.
    wave_range : tuple of float
        Rows outside are cut off [Angstrom].
    """

    in_memory = False
    prepared = True

    def __init__(
        self, store: DiskStore, placements: Sequence[Placement], vacuum: bool, wave_range: tuple[float, float]
    ) -> None:
        self.store, self.placements, self.vacuum, self.wave_range = store, placements, vacuum, wave_range
        #: with blocks of the rows in the range, and limits of the prepared rows
        self.exposures = [replace(e, blocks=[]) for e in store.exposures]
        first, last = bin_range(*wave_range)
        self._positions: dict[tuple[int, int], NDArray[np.float32]] = {}
        for number, exposure in enumerate(store.exposures):
            sizes = [int(b.bins[last] - b.bins[first]) for b in exposure.blocks]
            # one array for all blocks: the system gives large ones faster
            whole = np.empty((sum(sizes), 2), np.float32)
            for block, stop in zip(exposure.blocks, itertools.accumulate(sizes), strict=True):
                self._positions[number, block.number] = whole[stop - sizes[block.number] : stop]

    def position(self, block: Block) -> Block:
        """Position the rows of a block of the store on disk; returns the block of those in the range."""
        positions = self._positions[block.exposure, block.number]
        bins = np.zeros(N_BINS + 1, np.int64)
        limits = np.array([np.inf, -np.inf] * 3)
        kept = 0
        for first, last in bin_pieces(block, bin_range(*self.wave_range)):
            buffer = workspace.get("piece", self.size(block, (first, last)), np.float32)
            rows, edges = self._read(block, (first, last), buffer)
            prepare(rows, self.placements[block.exposure], self.vacuum)
            geometry.row_limits(rows, limits)
            positions[kept : kept + len(rows)] = rows[:, :2]
            bins[first : last + 1] = kept + edges
            kept += len(rows)
            bins[last + 1 :] = kept
        return replace(block, bins=bins, limits=tuple(float(v) for v in limits))

    def _read(
        self, block: Block, bins: tuple[int, int], out: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rows of a block in the range as they are on disk, and where each bin starts among them."""
        whole = self.store.exposures[block.exposure].blocks[block.number]
        edges = whole.bins[bins[0] : bins[1] + 1] - whole.bins[bins[0]]
        rows = self.store.read(whole, bins, out)
        if is_cut(whole, bins, self.wave_range):
            low, high = (np.float32(w) for w in self.wave_range)
            rows = rows[: cut_rows(rows, edges, low, high)]
        return rows, edges

    def read(
        self, block: Block, bins: tuple[int, int], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Prepared rows of a range of bins, as a new array or in the first values of `out`."""
        rows, _ = self._read(block, bins, out)
        positions = self._positions[block.exposure, block.number]
        _place_rows(rows, positions[block.bins[bins[0]] : block.bins[bins[1]]])
        prepare(rows, replace(self.placements[block.exposure], position=False), self.vacuum)
        return rows

    def size(self, block: Block, bins: tuple[int, int]) -> int:
        """Values that `read` needs room for."""
        whole = self.store.exposures[block.exposure].blocks[block.number]
        return int(whole.bins[bins[1]] - whole.bins[bins[0]]) * RECORD


@njit(cache=True, nogil=True)
def _place_rows(rows, positions):  # type: ignore[no-untyped-def]
    for k in range(rows.shape[0]):
        rows[k, X] = positions[k, 0]
        rows[k, Y] = positions[k, 1]


def _check_sources(path: Path, exposure: StoredExposure) -> None:
    for source, size, time in exposure.fingerprint:
        file = Path(source)
        if not file.exists():
            log.info("%s: its source %s is no longer there", path, source)
        elif fingerprint(file)[1:] != [size, time]:
            raise StoreError(
                f"{path}: its source {source} has changed since the store was made; make the store anew"
            )


def block_path(store: Path, exposure: int, number: int) -> Path:
    """File of the only chunk of a block."""
    return store / f"exposure_{exposure:04d}" / f"block_{number:05d}" / "c" / "0" / "0"


def write_block(path: Path, exposure: int, number: int, rows: NDArray[np.float32]) -> None:
    """Write one block as a Zarr array of one chunk; it appears whole or not at all."""
    chunk = block_path(path, exposure, number)
    folder = chunk.parent.parent.parent
    chunk.parent.mkdir(parents=True, exist_ok=True)
    part = chunk.with_name("0.part")
    with open(part, "wb", buffering=0) as file:
        view = np.ascontiguousarray(rows, "<f4").reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            done += file.write(view[done:])
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(rows.shape),
        "data_type": "float32",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(rows.shape[0], 1), RECORD]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {"columns": ["xpos", "ypos", "lambda", "data", "stat", "weight", "dq:int32", "row:int32"]},
        "dimension_names": ["pixel", "column"],
        "storage_transformers": [],
    }
    (folder / "zarr.json").write_text(json.dumps(metadata))
    os.replace(part, chunk)


def finish_store(path: Path, exposures: Sequence[StoredExposure], wave_range: tuple[float, float]) -> None:
    """Write the index and the attributes of a store; only now it can be opened."""
    arrays: dict[str, NDArray[Any]] = {}
    entries = []
    for number, exposure in enumerate(exposures):
        arrays[f"pieces_{number}"] = np.array([[b.source, b.start, b.stop] for b in exposure.blocks])
        arrays[f"limits_{number}"] = np.array([b.limits for b in exposure.blocks])
        arrays[f"bins_{number}"] = np.array([b.bins for b in exposure.blocks])
        entries.append(
            {
                "date_obs": exposure.date_obs,
                "stage": exposure.stage,
                "name": exposure.name,
                "header": cards_to_json(exposure.header),
                "units": exposure.units,
                "has_weight": exposure.has_weight,
                "fingerprint": exposure.fingerprint,
                "n_rows": exposure.n_rows,
            }
        )
        group = path / f"exposure_{number:04d}"
        (group / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    np.savez(path / "index.npz", **arrays)  # type: ignore[arg-type]
    attributes = {
        "musedask": "pixel store",
        "schema_version": SCHEMA_VERSION,
        "wave_range": list(wave_range),
        "exposures": entries,
    }
    part = path / "zarr.json.part"
    part.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    os.replace(part, path / "zarr.json")


AnyStore = MemoryStore | DiskStore | PositionedStore
