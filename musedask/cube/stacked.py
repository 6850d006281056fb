"""The stacked image: all slices of all IFUs side by side, wavelength upwards.

Each slice is binned along x; every pixel is the mean, weighted by distance in wavelength, of the
good rows of its bin within one wavelength step (the method ``renka`` in one dimension).  As in the
reference, rows are added in the order of wavelength bins, then of the table, so that images agree
to the last bit.

Rows come from the store by wavelength.  What a store does not know, the slice of a row, is looked up
once per row and kept beside it on disk.  The image is made in tiles, a range of wavelengths each,
and where memory does not even hold the rows of one wavelength, also a range of columns.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..compute import run_tasks
from ..instrument import SPECTRAL_SAMPLING
from ..io.files import atomic_path
from ..io.pixtable import scan_pixtable
from .exposure import Placement
from .geometry import lround
from .grid import table_scales
from .kernels import DATA, DQ, ROW, WAVE, X
from .plan import PIECE_ROWS
from .products import hdu_cards
from .resample import Job
from .rows import CosmicRows, first_rows, product_header
from .store import Block, DiskStore, MemoryStore, bin_range, prepare

if TYPE_CHECKING:
    from ..io.cube_write import HduWriter
    from .finish import Products
    from .work import Settings

#: code of a slice: 64 times the number of its IFU, plus its own; rows that do not count have more bits
_N_CODES = 32 * 64
_BAD = 1 << 14
_CUT = 1 << 15
#: what a tile holds per row (key, number, wavelength, data, and the same sorted) and per pixel
_TILE_ROW = 2 * 20
_TILE_PIXEL = 8 + 4 + 4
_FLT_MAX = 3.40282346638528860e38
_DBL_MIN = 2.2250738585072014e-308


@dataclass(frozen=True)
class _Geometry:
    """Layout of the image.

    Attributes
    ----------
    x_low : ndarray of float64, shape (2048,)
        Smallest x of each slice, by its code.
    columns : ndarray of int64, shape (2049,)
        First column of each slice; none for those without rows.
    bin_x : float
        Width of a column, in the unit of x.
    wave, step : float
        First wavelength and step [Angstrom].
    n_waves : int
    """

    x_low: NDArray[np.float64]
    columns: NDArray[np.int64]
    bin_x: float
    wave: float
    step: float
    n_waves: int

    @property
    def shape(self) -> tuple[int, int]:
        """Wavelengths, columns."""
        return self.n_waves, int(self.columns[-1])

    @classmethod
    def from_limits(
        cls, x: NDArray[np.float64], wave: tuple[float, float], bin_x: float, step: float
    ) -> _Geometry:
        """Lay out the image from the limits of x, shape (2048, 2), and of wavelength."""
        widths = np.zeros(_N_CODES, np.int64)
        for code in np.flatnonzero(x[:, 0] <= x[:, 1]):
            widths[code] = math.ceil((x[code, 1] - x[code, 0]) / bin_x) + 1
        columns = np.concatenate([[0], np.cumsum(widths)])
        n_waves = math.ceil((wave[1] - wave[0]) / step) + 1
        return cls(x[:, 0].copy(), columns, bin_x, float(wave[0]), step, n_waves)


@dataclass(frozen=True)
class _Source:
    """Rows of a job, with their slices."""

    store: MemoryStore | DiskStore
    placements: tuple[Placement, ...]
    vacuum: bool
    wave_range: tuple[float, float]
    folder: Path

    def path(self, block: Block) -> Path:
        """File of the codes of a block."""
        return self.folder / f"{block.exposure:04d}_{block.number:05d}"

    def read(
        self, block: Block, bins: tuple[int, int]
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_] | None]]:
        """Prepared rows of a range of bins in pieces: first row, rows, which of them are cut off."""
        if isinstance(self.store, MemoryStore):
            yield int(block.bins[bins[0]]), self.store.read(block, bins), None
            return
        low, high = (np.float32(w) for w in self.wave_range)
        edge = bins[0]
        while edge < bins[1]:
            target = block.bins[edge] + PIECE_ROWS
            last = int(np.searchsorted(block.bins, target, side="right")) - 1
            last = min(max(last, edge + 1), bins[1])
            rows = self.store.read(block, (edge, last))
            wave = rows[:, WAVE]
            cut = (wave < low) | (wave > high)
            if len(rows):
                prepare(rows, self.placements[block.exposure], self.vacuum)
                yield int(block.bins[edge]), rows, cut
            edge = last


@njit(cache=True, nogil=True)
def _encode(rows, bits, origin, first, flags, cut, codes, x):  # type: ignore[no-untyped-def]
    """Codes of rows, and limits of x by slice, over bad rows as well.

    Parameters
    ----------
    rows, bits : ndarray, shape (n, 8)
        Float32 and int32 view of the records.
    origin : ndarray of int32
        Of the block in table order.
    first : int
        Number of the block's first row in the exposure.
    flags : ndarray of uint8
        Cosmic rays, one bit per row of the exposure.
    cut : ndarray of bool, shape (n,) or (0,)
    codes : ndarray of uint16, shape (n,)
    x : ndarray of float64, shape (2048, 2)
    """
    for k in range(rows.shape[0]):
        row = bits[k, ROW]
        o = origin[row - first]
        code = o & 0x7FF
        if cut.shape[0] and cut[k]:
            codes[k] = code | _CUT
            continue
        value = np.float64(rows[k, X])
        x[code, 0] = min(x[code, 0], value)
        x[code, 1] = max(x[code, 1], value)
        if bits[k, DQ] != 0 or (flags[row >> 3] >> np.uint8(row & 7)) & np.uint8(1):
            code |= _BAD
        codes[k] = code


def _look_up(
    source: _Source, tables: list[Any], first: list[int], flags: NDArray[np.uint8], block: Block
) -> NDArray[np.float64]:
    """Write the codes of a block; returns limits of x by slice."""
    origin = tables[block.source].read("origin", block.start, block.stop)
    x = np.tile([np.inf, -np.inf], (_N_CODES, 1))
    none = np.empty(0, np.bool_)
    with open(source.path(block), "wb") as file:
        for _, rows, cut in source.read(block, (0, len(block.bins) - 1)):
            codes = np.empty(len(rows), np.uint16)
            _encode(
                rows, rows.view(np.int32), origin, first[block.source] + block.start, flags,
                none if cut is None else cut, codes, x,
            )  # fmt: skip
            file.write(codes.data)
    return x


@njit(cache=True, nogil=True)
def _locate(  # type: ignore[no-untyped-def]
    rows, bits, codes, base, x_low, columns, bin_x, wave, step, box, keys, numbers, waves, values, n
):
    """Append the good rows in a box to `keys`, ...; returns how many there are now."""
    z0, z1, c0, c1 = box
    nz = z1 - z0
    for k in range(rows.shape[0]):
        code = codes[k]
        if code >= _BAD:
            continue
        z = lround((np.float64(rows[k, WAVE]) - wave) / step)
        if z < z0 or z >= z1:
            continue
        c = columns[code] + lround((np.float64(rows[k, X]) - x_low[code]) / bin_x)
        if c < c0 or c >= c1:
            continue
        keys[n] = (c - c0) * nz + (z - z0)
        numbers[n] = base + bits[k, ROW]
        waves[n] = rows[k, WAVE]
        values[n] = rows[k, DATA]
        n += 1
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _stack(keys, numbers, waves, values, n, box, z_first, wave, step, out):  # type: ignore[no-untyped-def]
    """Weighted means of a tile.

    Parameters
    ----------
    keys, numbers, waves, values : ndarray
        Pixel in the box (wavelength fastest), number in the table, wavelength and data of n rows.
    box : ndarray of int64, shape (4,)
        Wavelengths ``z0, z1`` with halo, columns ``c0, c1``.
    z_first : int
        First wavelength of the tile itself.
    wave, step : float
    out : ndarray of float32, shape (nz, nc)
    """
    z0, z1, c0, c1 = box
    nz = z1 - z0
    offsets = np.zeros((c1 - c0) * nz + 1, np.int64)
    for k in range(n):
        offsets[keys[k] + 1] += 1
    for k in range(offsets.shape[0] - 1):
        offsets[k + 1] += offsets[k]
    cursor = offsets[:-1].astype(np.int32)
    order = np.empty(n, np.int64)
    lam = np.empty(n, np.float32)
    data = np.empty(n, np.float32)
    for k in range(n):
        key = keys[k]
        p = cursor[key]
        cursor[key] = p + 1
        # rows of a pixel in table order, whatever wavelength bin of the block they were in
        while p > offsets[key] and order[p - 1] > numbers[k]:
            order[p] = order[p - 1]
            lam[p] = lam[p - 1]
            data[p] = data[p - 1]
            p -= 1
        order[p] = numbers[k]
        lam[p] = waves[k]
        data[p] = values[k]
    radius = 1.25 * step
    for c in range(c1 - c0):
        for i in range(out.shape[0]):
            z = z_first + i
            centre = wave + z * step
            first = offsets[c * nz + max(z - 1, z0) - z0]
            last = offsets[c * nz + min(z + 2, z1) - z0]
            weights = 0.0
            total = 0.0
            for p in range(first, last):
                r = abs(centre - np.float64(lam[p]))
                if r == 0.0:
                    w = _FLT_MAX
                elif r >= radius:
                    w = _DBL_MIN
                else:
                    w = ((radius - r) / (radius * r)) ** 2
                weights += w
                total += w * np.float64(data[p])
            usable = last > first and weights >= _DBL_MIN and math.isfinite(weights)
            out[i, c] = np.float32(total / weights) if usable else np.float32(0.0)


def _tile_bins(source: _Source, geometry: _Geometry, z0: int, z1: int) -> tuple[int, int]:
    """Wavelength bins of the store that hold the rows of a range of wavelengths of the image."""
    low = geometry.wave + (z0 - 0.51) * geometry.step
    high = geometry.wave + (z1 - 0.49) * geometry.step
    if source.vacuum:
        # bins are in air
        low, high = low / 1.0003, high / 1.0002
    return bin_range(low - 1e-3, high + 1e-3)


def _n_rows(source: _Source, bins: tuple[int, int]) -> int:
    return sum(
        int(block.bins[bins[1]] - block.bins[bins[0]])
        for exposure in source.store.exposures
        for block in exposure.blocks
    )


def _plan_tiles(
    source: _Source, geometry: _Geometry, memory: int, threads: int
) -> list[tuple[int, int, int, int]]:
    """Cut the image into tiles ``z0, z1, c0, c1`` that fit the memory of one thread."""
    n_waves, n_columns = geometry.shape
    most = max(8, -(-n_waves // (4 * threads)))

    def cost(z0: int, z1: int) -> int:
        rows = _n_rows(source, _tile_bins(source, geometry, max(z0 - 1, 0), min(z1 + 1, n_waves)))
        return rows * _TILE_ROW + (z1 - z0 + 2) * n_columns * _TILE_PIXEL

    tiles = []
    z0 = 0
    while z0 < n_waves:
        z1 = min(n_waves, z0 + most)
        while z1 - z0 > 1 and cost(z0, z1) > memory:
            z1 = (z0 + z1 + 1) // 2
        parts = min(max(1, -(-2 * cost(z0, z1) // memory)), n_columns) if z1 - z0 == 1 else 1
        if cost(z0, z1) <= memory:
            parts = 1
        edges = [n_columns * k // parts for k in range(parts + 1)]
        tiles += [(z0, z1, a, b) for a, b in itertools.pairwise(edges)]
        z0 = z1
    return tiles


def _grow(array: NDArray[Any], n: int) -> NDArray[Any]:
    grown = np.empty(n, array.dtype)
    grown[: len(array)] = array
    return grown


def _make_tile(
    source: _Source, geometry: _Geometry, bases: list[int], out: HduWriter, tile: tuple[int, int, int, int]
) -> None:
    z0, z1, c0, c1 = tile
    n_waves, n_columns = geometry.shape
    box = np.array([max(z0 - 1, 0), min(z1 + 1, n_waves), c0, c1])
    bins = _tile_bins(source, geometry, int(box[0]), int(box[1]))
    size = _n_rows(source, bins) * (c1 - c0) // n_columns + 1000
    keys, numbers = np.empty(size, np.int32), np.empty(size, np.int64)
    waves, values = np.empty(size, np.float32), np.empty(size, np.float32)
    n = 0
    for exposure in source.store.exposures:
        for block in exposure.blocks:
            if block.bins[bins[0]] == block.bins[bins[1]]:
                continue
            for first, rows, _ in source.read(block, bins):
                codes = np.fromfile(source.path(block), np.uint16, len(rows), offset=2 * first)
                if n + len(rows) > len(keys):
                    grown = max(n + len(rows), len(keys) * 5 // 4)
                    keys, numbers = _grow(keys, grown), _grow(numbers, grown)
                    waves, values = _grow(waves, grown), _grow(values, grown)
                n = _locate(
                    rows, rows.view(np.int32), codes, bases[block.exposure], geometry.x_low, geometry.columns,
                    geometry.bin_x, geometry.wave, geometry.step, box, keys, numbers, waves, values, n,
                )  # fmt: skip
    image = np.empty((z1 - z0, c1 - c0), np.float32)
    _stack(keys, numbers, waves, values, n, box, z0, geometry.wave, geometry.step, image)
    if c1 - c0 == n_columns:
        out.put("flux", z0 * n_columns, image)
    else:
        for z in range(z0, z1):
            out.put("flux", z * n_columns + c0, image[z - z0].copy())


def _headers(products: Products, geometry: _Geometry, path: Path) -> tuple[fits.Header, fits.Header]:
    primary = product_header(products, products.table_header, None, "OBJECT_RESAMPLED", path)
    data = fits.Header()
    cards: list[tuple[str, Any]] = [
        ("CRPIX1", 1.0), ("CRPIX2", 1.0), ("CRVAL1", 1.0), ("CRVAL2", geometry.wave), ("CD1_1", 1.0),
        ("CD2_2", geometry.step), ("CUNIT1", "pixel"), ("CUNIT2", "Angstrom"), ("CTYPE1", "PIXEL"),
        ("CTYPE2", "AWAV"), ("CD1_2", 0.0), ("CD2_1", 0.0), ("INHERIT", True),
    ]  # fmt: skip
    for keyword, value in cards:
        data[keyword] = value
    for keyword, value, comment in hdu_cards("IMAGE"):
        data[keyword] = (value, comment)
    data["BUNIT"] = products.units[0]
    return primary, data


def write_stacked(
    products: Products, job: Job, store: MemoryStore | DiskStore, settings: Settings, cosmics: CosmicRows
) -> Path:
    """Write ``OBJECT_RESAMPLED.fits``, as the parameter ``stacked`` of the reference does.

    Parameters
    ----------
    products : Products
    job : Job
        Of the cube.
    store : MemoryStore or DiskStore
    settings : Settings
    cosmics : CosmicRows
        Rows that the cube found to be cosmic rays; they do not count.

    Returns
    -------
    pathlib.Path
    """
    from ..io.cube_write import Hdu, HduWriter, layout_extension, layout_primary

    folder = settings.scratch / "slices"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wave_range = job.wave_range
    if isinstance(store, DiskStore):
        wave_range = (max(wave_range[0], store.wave_range[0]), min(wave_range[1], store.wave_range[1]))
    source = _Source(store, job.placements, job.grid.vacuum, wave_range, folder)
    threads = settings.local_threads
    x = np.tile([np.inf, -np.inf], (_N_CODES, 1))

    def merge(_: Block, found: NDArray[np.float64]) -> None:
        x[:, 0] = np.minimum(x[:, 0], found[:, 0])
        x[:, 1] = np.maximum(x[:, 1], found[:, 1])

    bases = [0]
    for number, exposure in enumerate(store.exposures):
        first = first_rows(exposure)
        bases.append(bases[-1] + first[-1])
        flags = cosmics.bits(number, first[-1])
        tables = [scan_pixtable(path) for path in exposure.sources]
        run_tasks(
            partial(_look_up, source, tables, first, flags),
            exposure.blocks,
            n_workers=threads,
            label="slices of rows",
            on_result=merge,
        )
    celestial = store.exposures[0].stage != "pix"
    natural = 1.2 * abs(table_scales(products.table_header)[0]) if celestial else 1.0
    # as in the reference: in the unit of the table, although the parameter is in arcsec
    bin_x = job.params.dx or natural
    step = job.params.dlambda or SPECTRAL_SAMPLING
    # as in the cube: of tables that are not projected from the header, seven digits
    geometry = _Geometry.from_limits(x, job.grid.limits.wave, bin_x, step)
    memory = int((0.4 if store.in_memory else 0.8) * settings.memory_limit)
    path = products.folder / "OBJECT_RESAMPLED.fits"
    primary, data = _headers(products, geometry, path)
    hdus = {
        "": Hdu(layout_primary(primary, datamd5=True)),
        "flux": Hdu(
            layout_extension(data, geometry.shape, "DATA", "This extension contains data values"), geometry.shape
        ),
    }
    with (
        atomic_path(path, overwrite=settings.overwrite) as temporary,
        open(temporary, "r+b", buffering=0) as file,
        HduWriter(file.fileno(), hdus, datamd5=True) as out,
    ):
        run_tasks(
            partial(_make_tile, source, geometry, bases, out),
            _plan_tiles(source, geometry, memory // threads, threads),
            n_workers=threads,
            label="stacking slices",
        )
    shutil.rmtree(folder, ignore_errors=True)
    return path
