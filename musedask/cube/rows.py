"""Rows as products: combined and positioned pixel tables, with the cosmic rays that the cube found.

Tables are written as the reference writes them, in table order, although a store holds rows
sorted by wavelength.  The work goes window by window: a window is a range of rows of one block,
small enough for the memory of one thread; its rows are collected from the block into columns.
Marks of the finished chunks (see `mosaic`) hold the numbers of the rows flagged as cosmic rays;
of one exposure at a time they become one bit per row.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..compute import run_tasks
from ..errors import InputError, StoreError
from ..instrument import DQ_COSMICRAY
from ..io.files import atomic_path
from ..io.headers import PIXTABLE, remove_cards, set_card
from ..io.pixtable import COLUMNS, PixtableFile, scan_pixtable, set_limits
from .exposure import Placement, place
from .kernels import DATA, DQ, ROW, STAT, WAVE, WEIGHT, X, Y
from .plan import PIECE_ROWS, ROW_READ
from .products import product_headers, table_header
from .resample import Job, read_pieces
from .store import N_BINS, Block, DiskStore, MemoryStore, StoredExposure, prepare, read_block

if TYPE_CHECKING:
    from ..io.cube_write import HduWriter
    from .finish import Products
    from .work import Settings

#: what a window holds per row: the columns, their place, and origin and wavelength of the file
_WINDOW_ROW = 4 * 8 + 4 + 12
#: the same while rows are read from a pixel table again
_WINDOW_ROW_READ = _WINDOW_ROW + 2 * ROW_READ + 32
_MAX_WINDOW = 1 << 21
#: columns in the order in which `_collect` fills them, those of the file but for ``origin``
_COLLECTED = ("xpos", "ypos", "lambda", "data", "dq", "stat", "weight")


def check_sources(exposures: Sequence[StoredExposure]) -> None:
    """Make sure that the source files are there: what `origin` holds is not in a store.

    Raises
    ------
    InputError
        If one is missing.
    """
    for exposure in exposures:
        for source in exposure.sources:
            if not source.exists():
                raise InputError(f"{source}: no such file; its column origin is needed, and no store keeps it")


def write_tables(products: Products, job: Job, store: MemoryStore | DiskStore, settings: Settings) -> None:
    """Write what is made of rows: ``PIXTABLE_COMBINED``, ``PIXTABLE_POSITIONED``, ``OBJECT_RESAMPLED``.

    Parameters
    ----------
    products : Products
    job : Job
        Of the cube; without one, only placements and wavelength range matter.
    store : MemoryStore or DiskStore
    settings : Settings
        The scratch folder holds the marks of the finished chunks, if a cube was made.

    Raises
    ------
    InputError
        If a source file cannot be read.
    StoreError
        If it is no longer the one that the store was made of.
    """
    cosmics = CosmicRows(settings.scratch, products.makes_cube and products.keep_cosmics)
    if "combined" in products.saves:
        _write_combined(products, job, store, settings, cosmics)
    if "positioned" in products.saves:
        _write_positioned(products, job, store, settings)
    if products.values.get("stacked"):
        from .stacked import write_stacked

        write_stacked(products, job, store, settings, cosmics)


# ------------------------------------------------------------------------------- cosmic rays


@njit(cache=True, nogil=True)
def _set_bits(flags, rows):  # type: ignore[no-untyped-def]
    for row in rows:
        flags[row >> 3] |= np.uint8(1 << (row & 7))


class CosmicRows:
    """Rows flagged while a cube was made, from the marks of its chunks.

    Parameters
    ----------
    scratch : pathlib.Path
        Folder of the work in progress; the marks are in ``done``.
    kept : bool
        Whether the chunks kept their flags.
    """

    def __init__(self, scratch: Path, kept: bool) -> None:
        self._folder = scratch / "cosmics"
        self._marks = scratch / "done"
        self._kept = kept

    def _sort(self) -> None:
        """Append the rows of all marks to one file per exposure: each mark is opened once."""
        import shutil

        part = self._folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in sorted(os.listdir(self._marks)):
            if not name.isdigit():
                continue
            with np.load(self._marks / name) as mark:
                for key in mark.files:
                    with open(part / key, "ab") as file:
                        file.write(np.ascontiguousarray(mark[key], "<i4").data)
        os.replace(part, self._folder)

    def bits(self, exposure: int, n_rows: int) -> NDArray[np.uint8]:
        """Flags of all rows of an exposure, one bit each, the lowest first.

        Parameters
        ----------
        exposure : int
        n_rows : int
            Rows of all its files, also those cut by wavelength.

        Returns
        -------
        ndarray of uint8, shape (ceil(n_rows / 8),)
        """
        flags = np.zeros(-(-n_rows // 8), np.uint8)
        if not self._kept:
            return flags
        if not self._folder.exists():
            self._sort()
        path = self._folder / str(exposure)
        if path.exists():
            with open(path, "rb") as file:
                while len(rows := np.fromfile(file, "<i4", PIECE_ROWS)):
                    _set_bits(flags, rows)
        return flags


# ---------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Window:
    """A range of rows of a block.

    Attributes
    ----------
    block : Block
    start, stop : int
        Rows of the source file.
    row : int
        Number of row `start` within the exposure.
    """

    block: Block
    start: int
    stop: int
    row: int

    @property
    def n_rows(self) -> int:
        """Rows before any cut."""
        return self.stop - self.start


def first_rows(exposure: StoredExposure) -> list[int]:
    """Number, within the exposure, of the first row of each source file; then the number of all rows."""
    lengths = [0] * len(exposure.sources)
    for block in exposure.blocks:
        lengths[block.source] = max(lengths[block.source], block.stop)
    return [0, *np.cumsum(lengths).tolist()]


def plan_windows(exposure: StoredExposure, rows: int) -> list[Window]:
    """Cut the blocks of an exposure into windows of at most `rows` rows, in table order."""
    first = first_rows(exposure)
    windows = []
    for block in sorted(exposure.blocks, key=lambda b: (b.source, b.start)):
        n = block.stop - block.start
        parts = max(1, -(-n // rows))
        edges = [block.start + n * k // parts for k in range(parts + 1)]
        for a, b in itertools.pairwise(edges):
            windows.append(Window(block, a, b, first[block.source] + a))
    return windows


@dataclass(frozen=True)
class Rows:
    """Where rows come from, and how they are prepared.

    Attributes
    ----------
    store : MemoryStore or DiskStore
    exposure : int
    wave_range : tuple of float
        Rows outside are cut off [Angstrom].
    placement : Placement
    vacuum : bool
    original : bool
        Whether `placement` is another one than that of the job: rows in memory, which are prepared
        already, are then read from their file again.
    """

    store: MemoryStore | DiskStore
    exposure: int
    wave_range: tuple[float, float]
    placement: Placement
    vacuum: bool
    original: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.store, DiskStore):
            low, high = self.store.wave_range
            cut = (max(low, self.wave_range[0]), min(high, self.wave_range[1]))
            object.__setattr__(self, "wave_range", cut)

    @property
    def stored(self) -> StoredExposure:
        """The exposure."""
        return self.store.exposures[self.exposure]

    def is_cut(self, block: Block) -> bool:
        """Whether rows of a block may be missing."""
        if block.n_rows < block.stop - block.start:
            return True
        low, high = self.wave_range
        return not self.store.in_memory and (block.limits[4] < low or block.limits[5] > high)

    def kept(self, table: PixtableFile, window: Window) -> NDArray[np.bool_]:
        """Which rows of a window are within the wavelength range."""
        wave = table.read("lambda", window.start, window.stop)
        low, high = (np.float32(w) for w in self.wave_range)
        return np.asarray((wave >= low) & (wave <= high))

    def pieces(self, window: Window) -> Iterator[NDArray[np.float32]]:
        """Prepared rows among which are those of a window, in any order."""
        if isinstance(self.store, DiskStore):
            for read in read_pieces(self.store, window.block, self.wave_range):
                rows = read()
                prepare(rows, self.placement, self.vacuum)
                yield rows
        elif self.original:
            exposure = self.store.inputs[self.exposure]
            source = exposure.sources[window.block.source]
            rows, _ = read_block(exposure, source, window.start, window.stop, self.wave_range)
            prepare(rows, self.placement, self.vacuum)
            yield rows
        else:
            yield self.store.read(window.block, (0, N_BINS))


@njit(cache=True, nogil=True)
def _collect(rows, bits, first, n, place, flags, weight, out, out_bits):  # type: ignore[no-untyped-def]
    """Put rows into columns, in table order; returns how many belong to the window.

    Parameters
    ----------
    rows, bits : ndarray, shape (m, 8)
        Float32 and int32 view of the records.
    first, n : int
        The window's first row, and how many rows it has.
    place : ndarray of int32, shape (n,) or (0,)
        Where each row of the window goes, -1 for nowhere; if empty, each has its place.
    flags : ndarray of uint8
        One bit per row of the exposure: cosmic rays.
    weight : float
        Negative keeps the weight of the rows.
    out, out_bits : ndarray, shape (7 or more, n_kept)
        Float32 and int32 view of the columns, in the order of `_COLLECTED`.
    """
    count = 0
    for k in range(rows.shape[0]):
        row = bits[k, ROW]
        p = row - first
        if p < 0 or p >= n:
            continue
        if place.shape[0]:
            p = place[p]
            if p < 0:
                return -1
        count += 1
        dq = bits[k, DQ]
        if (flags[row >> 3] >> np.uint8(row & 7)) & np.uint8(1):
            dq |= DQ_COSMICRAY
        out[0, p] = rows[k, X]
        out[1, p] = rows[k, Y]
        out[2, p] = rows[k, WAVE]
        out[3, p] = rows[k, DATA]
        out_bits[4, p] = dq
        out[5, p] = rows[k, STAT]
        out[6, p] = np.float32(weight) if weight >= 0.0 else rows[k, WEIGHT]
    return count


def collect(
    source: Rows, table: PixtableFile, window: Window, flags: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Columns of a window, in table order.

    Parameters
    ----------
    source : Rows
    table : PixtableFile
        The file that the window is of.
    window : Window
    flags : ndarray of uint8
        See `CosmicRows.bits`.

    Returns
    -------
    ndarray of float32, shape (8, n)
        ``xpos ypos lambda data dq stat weight origin``, ``dq`` and ``origin`` as int32 bits.

    Raises
    ------
    StoreError
        If the file does not match the store.
    """
    place = np.empty(0, np.int32)
    n = window.n_rows
    origin = table.read("origin", window.start, window.stop)
    if source.is_cut(window.block):
        kept = source.kept(table, window)
        place = np.cumsum(kept, dtype=np.int32) - 1
        n = int(place[-1]) + 1 if len(place) else 0
        place[~kept] = -1
        origin = origin[kept]
    out = np.empty((len(_COLLECTED) + 1, n), np.float32)
    bits = out.view(np.int32)
    count = 0
    for rows in source.pieces(window):
        found = _collect(
            rows, rows.view(np.int32), window.row, window.n_rows, place, flags, source.placement.weight, out, bits
        )
        count = count + found if found >= 0 else -1
    if count != n:
        raise StoreError(f"{table.path}: its rows are not those that were read before; make the store anew")
    bits[-1] = origin
    return out


def window_rows(memory: int, threads: int, row_bytes: int) -> int:
    """Rows of a window within the memory of one thread."""
    rows = (memory // threads - 2 * PIECE_ROWS * ROW_READ) // row_bytes
    return min(max(rows, 10_000), _MAX_WINDOW)


def threads_for(memory: int, threads: int) -> int:
    """Threads that can each hold a piece of a store besides their window."""
    return max(1, min(threads, memory // (4 * PIECE_ROWS * ROW_READ)))


# ----------------------------------------------------------------------------------- tables


class _Limits:
    """Extremes over all rows of a table: xpos, ypos, lambda, IFU, slice."""

    def __init__(self) -> None:
        self.values = np.array([np.inf, -np.inf] * 5)

    def add(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """Extremes of some rows."""
        origin = columns[-1].view(np.int32)
        kinds = [columns[0], columns[1], columns[2], (origin >> 6) & 31, origin & 63]
        return np.array([f(c) for c in kinds for f in (np.min, np.max)], np.float64)

    def merge(self, found: NDArray[np.float64]) -> None:
        """Take extremes of some rows into account."""
        self.values[::2] = np.minimum(self.values[::2], found[::2])
        self.values[1::2] = np.maximum(self.values[1::2], found[1::2])

    def write(self, header: fits.Header, zero: tuple[float, float]) -> None:
        """Set the cards; `zero` is added to the positions."""
        v = np.where(np.isfinite(self.values), self.values, 0.0)
        set_limits(
            header,
            (v[0] + zero[0], v[1] + zero[0]),
            (v[2] + zero[1], v[3] + zero[1]),
            (v[4], v[5]),
            (int(v[6]), int(v[7])),
            (int(v[8]), int(v[9])),
        )


def _column_header(name: str, n_rows: int, unit: str) -> fits.Header:
    header = fits.Header(
        [
            ("XTENSION", "IMAGE", "IMAGE extension"),
            ("BITPIX", 32 if name in ("dq", "origin") else -32, "number of bits per data pixel"),
            ("NAXIS", 2, "number of data axes"),
            ("NAXIS1", 1, "length of data axis 1"),
            ("NAXIS2", n_rows, "length of data axis 2"),
            ("PCOUNT", 0, "required keyword; must = 0"),
            ("GCOUNT", 1, "required keyword; must = 1"),
            ("EXTNAME", name),
        ]
    )
    if unit:
        header["BUNIT"] = unit
    return header


def _counts(
    sources: Sequence[Rows], windows: Sequence[Sequence[Window]], tables: Sequence[Sequence[PixtableFile]],
    threads: int,
) -> list[list[int]]:  # fmt: skip
    """Rows of every window after the cut by wavelength."""
    counts = [[w.n_rows for w in of_exposure] for of_exposure in windows]
    unknown = [
        (e, k)
        for e, of_exposure in enumerate(windows)
        for k, w in enumerate(of_exposure)
        if sources[e].is_cut(w.block)
    ]

    def count(item: tuple[int, int]) -> int:
        e, k = item
        window = windows[e][k]
        return int(np.count_nonzero(sources[e].kept(tables[e][window.block.source], window)))

    def put(item: tuple[int, int], n: int) -> None:
        counts[item[0]][item[1]] = n

    run_tasks(count, unknown, n_workers=threads, on_result=put)
    return counts


def _write(
    path: Path,
    make_header: Any,
    sources: Sequence[Rows],
    cosmics: CosmicRows | None,
    settings: Settings,
    zero: tuple[float, float],
    weight: bool,
) -> None:
    """Write the rows of some exposures as one pixel table.

    Parameters
    ----------
    path : pathlib.Path
    make_header : callable
        Gets the number of rows of every exposure and returns the primary header, less limits.
    sources : sequence of Rows
        One per exposure.
    cosmics : CosmicRows or None
        Cosmic rays to flag.
    settings : Settings
    zero : tuple of float
        Zero point of the positions, for the limits [deg].
    weight : bool
        Whether to write a column of weights.
    """
    from ..io.checksum import MD5_PERIOD
    from ..io.cube_write import Hdu, HduWriter, layout_primary

    memory = int((0.4 if sources[0].store.in_memory else 0.8) * settings.memory_limit)
    threads = threads_for(memory, settings.local_threads)
    again = sources[0].original and sources[0].store.in_memory
    size = window_rows(memory, threads, _WINDOW_ROW_READ if again else _WINDOW_ROW)
    windows = [plan_windows(s.stored, size) for s in sources]
    tables = [[scan_pixtable(p) for p in s.stored.sources] for s in sources]
    counts = _counts(sources, windows, tables, threads)
    n_rows = [sum(c) for c in counts]
    header = make_header(n_rows)
    limits = _Limits()
    limits.write(header, (0.0, 0.0))
    first = sources[0].stored
    units = dict.fromkeys(COLUMNS, "") | {"xpos": "deg", "ypos": "deg", **first.units}
    units["lambda"] = tables[0][0].columns["lambda"].unit
    if weight:
        units["weight"] = ""
    total = sum(n_rows)
    hdus = {"": Hdu(layout_primary(header, datamd5=True))}
    for name, unit in units.items():
        hdus[name] = Hdu(_column_header(name, total, unit), (total, 1))
    head_rows = MD5_PERIOD // 4
    with (
        atomic_path(path, overwrite=settings.overwrite) as temporary,
        open(temporary, "r+b", buffering=0) as file,
        HduWriter(file.fileno(), hdus, datamd5=True) as out,
    ):
        start = 0
        started = False
        for e, source in enumerate(sources):
            n_all = first_rows(source.stored)[-1]
            flags = cosmics.bits(source.exposure, n_all) if cosmics else np.zeros(-(-n_all // 8), np.uint8)
            starts = start + np.cumsum([0, *counts[e]])
            start = int(starts[-1])
            items = [k for k, n in enumerate(counts[e]) if n]
            work = partial(_copy, source, tables[e], windows[e], starts, flags, units, out, limits.add)
            if not started and items and counts[e][items[0]] >= min(head_rows, total):
                # the MD5 sum needs the heads of the columns only: it runs beside the rest
                limits.merge(work(items.pop(0)))
                out.start_md5({})
                started = True
            run_tasks(
                work, items, n_workers=threads, label=f"writing {path.name}",
                on_result=lambda _, found: limits.merge(found),
            )  # fmt: skip
        limits.write(hdus[""].header, zero)


def _copy(
    source: Rows,
    tables: Sequence[PixtableFile],
    windows: Sequence[Window],
    starts: NDArray[np.int64],
    flags: NDArray[np.uint8],
    units: Mapping[str, str],
    out: HduWriter,
    limits: Any,
    number: int,
) -> NDArray[np.float64]:
    """Collect a window and write its columns; returns its limits."""
    window = windows[number]
    columns = collect(source, tables[window.block.source], window, flags)
    found: NDArray[np.float64] = limits(columns)
    for k, name in enumerate((*_COLLECTED, "origin")):
        if name in units:
            out.put(name, int(starts[number]), columns[k])
    return found


def _inputs(products: Products, exposure: StoredExposure | None = None) -> list[Path]:
    """Input files in the order in which they were given, of all exposures or one."""
    stored = [p for e in products.exposures for p in e.sources]
    names = [Path(name) for name in products.inputs] or stored
    if exposure is None:
        return names
    mine = {str(p) for p in exposure.sources}
    return [p for p in names if str(p.resolve()) in mine] or exposure.sources


def product_header(
    products: Products, table: fits.Header, exposure: StoredExposure | None, category: str, path: Path
) -> fits.Header:
    """Primary header of a product made of rows.

    Parameters
    ----------
    products : Products
    table : astropy.io.fits.Header
        Header of the rows.
    exposure : StoredExposure or None
        The only exposure that goes into the product; None if all do.
    category : str
        ``ESO PRO CATG``; with pixel tables it starts with ``PIXTABLE``.
    path : pathlib.Path

    Returns
    -------
    astropy.io.fits.Header
    """
    inputs = _inputs(products, exposure)
    raw = fits.getheader(inputs[0]) if inputs and inputs[0].exists() else None
    known: dict[str, Any] = {
        "recipe": products.recipe,
        "values": products.values,
        "raws": [(p.name, products.recipe.raw_tag) for p in inputs],
        "raw_header": raw,
        "category": category,
        "file_name": path.name,
    }
    if not category.startswith("PIXTABLE"):
        return product_headers(
            table, products.grid, calibs=products.calibs, units=products.units, **known
        )[0]
    table = table.copy()
    set_card(table, f"{PIXTABLE} WCS", "positioned (final)", "Positioned this pixel table")
    calibs = [c for c in products.calibs if products.makes_cube or c[1] == "OFFSET_LIST"]
    return table_header(table, calibs=calibs, **known)


def _combined_header(
    products: Products, header: fits.Header, exposures: Sequence[StoredExposure], n_rows: Sequence[int]
) -> fits.Header:
    """Header of the combined table: which rows are of which exposure, and where its slices are."""
    header = header.copy()
    pattern = re.compile(rf"{PIXTABLE} EXP0 (IFU\d+ SLICE\d+ XOFFSET)$")
    remove_cards(header, rf"{PIXTABLE} EXP\d+ ")
    start = 0
    for number, (exposure, n) in enumerate(zip(exposures, n_rows, strict=True), 1):
        for card in exposure.header.cards:
            if match := pattern.match(card.keyword):
                set_card(header, f"{PIXTABLE} EXP{number} {match[1]}", card.value, "x-offset of given slice")
        name = f"{PIXTABLE} EXP{number}"
        set_card(header, f"{name} FIRST", start, f"Exposure {number} first row index")
        set_card(header, f"{name} LAST", start + n - 1, f"Exposure {number} last row index")
        start += n
    comment = "Combined exposures that went into this pixel table"
    set_card(header, f"{PIXTABLE} COMBINED", len(exposures), comment)
    return header


def _write_combined(
    products: Products, job: Job, store: MemoryStore | DiskStore, settings: Settings, cosmics: CosmicRows
) -> None:
    path = products.folder / "PIXTABLE_COMBINED.fits"
    header = products.table_header
    vacuum = products.makes_cube and job.grid.vacuum
    if vacuum:
        header = header.copy()
        set_card(header, f"{PIXTABLE} SPECTYPE", "WAVE")
    sources = [
        Rows(store, e, job.wave_range, placement, vacuum) for e, placement in enumerate(job.placements)
    ]

    def make_header(n_rows: Sequence[int]) -> fits.Header:
        table = _combined_header(products, header, store.exposures, n_rows) if len(sources) > 1 else header
        return product_header(products, table, None, "PIXTABLE_COMBINED", path)

    weight = any(p.weight >= 0 for p in job.placements) or any(e.has_weight for e in store.exposures)
    _write(path, make_header, sources, cosmics, settings, job.grid.zero, weight)


def _write_positioned(products: Products, job: Job, store: MemoryStore | DiskStore, settings: Settings) -> None:
    """Write each exposure around its own reference point."""
    from ..io.tables import read_offset_list

    offsets = read_offset_list(products.offset_list) if products.offset_list is not None else None
    for number, exposure in enumerate(store.exposures):
        path = products.folder / f"PIXTABLE_POSITIONED_{number + 1:04d}.fits"
        placements, header = place([exposure], offsets, "none")  # type: ignore[list-item]
        source = Rows(store, number, job.wave_range, replace(placements[0], weight=-1.0), False, True)
        made = product_header(products, header, exposure, "PIXTABLE_POSITIONED", path)
        zero = (float(header["CRVAL1"]), float(header["CRVAL2"]))
        _write(path, lambda _, made=made: made, [source], None, settings, zero, exposure.has_weight)
