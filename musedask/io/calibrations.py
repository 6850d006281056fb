"""Calibration tables of an IFU: traces, wavelengths, geometry, line-spread function, bad pixels.

Each format has a small class that holds its columns as arrays, a function that writes it and one that
reads it.  Columns have the names, types, units and order of the files of the reference (DRS 2.8.7), of which
appendix A of its manual is a part; where more was needed, it was found by giving files to its recipes.

Numbers follow the reference: pixels are counted from 1 on the trimmed image, traces and wavelengths are
functions of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import N_SLICES
from .headers import OF_ONE_IFU, STRUCTURAL, append_cards, remove_cards
from .products import (
    ANGSTROM,
    Column,
    FloatArray,
    PathLike,
    bintable,
    channel,
    channel_number,
    checked_array,
    columns_of,
    find_table,
    get_column,
    open_fits,
    product_header,
    read_as,
    same_length,
    write_tables,
)


def write_merged_tables(
    path: PathLike,
    tables: Sequence[fits.BinTableHDU | fits.ImageHDU],
    *,
    headers: Sequence[fits.Header],
    overwrite: bool = False,
) -> Path:
    """Write the tables of several IFUs into one file, as ``--merge`` and ESO's archive do.

    Parameters
    ----------
    path : path-like
    tables : sequence of HDU
        From `trace_hdu`, `wavecal_hdu` or `lsf_hdu`, named ``CHANnn`` or ``CHANnn.LSF_PROFILE``; they get the cards
        of their IFU.
    headers : sequence of astropy.io.fits.Header
        What would be the primary header of each table in a file of its own; the first is that of the whole, without
        the cards of one IFU.
    overwrite : bool
    """
    for table, own in zip(tables, headers, strict=True):
        append_cards(table.header, [[c.keyword, c.value, c.comment] for c in own.cards if OF_ONE_IFU.match(c.keyword)])
    header = headers[0].copy()
    header.remove("EXTNAME", ignore_missing=True)
    remove_cards(header, OF_ONE_IFU)
    return write_tables(path, header, tables, overwrite)


def _by_slice(path: Path, hdu: fits.BinTableHDU) -> NDArray[np.intp]:
    """Row of each slice; -1 where it is missing."""
    numbers = get_column(path, hdu, Column("SliceNo", "J"))
    rows = np.full(N_SLICES, -1, np.intp)
    for row, number in enumerate(numbers):
        # the reference leaves the rows of failed slices empty
        if number == 0:
            continue
        if not 1 <= number <= N_SLICES:
            raise InputError(f"{path}: SliceNo {number} found, expected 1..{N_SLICES}")
        rows[number - 1] = row
    return rows


def _pick(values: FloatArray, rows: NDArray[np.intp]) -> FloatArray:
    picked = np.full(len(rows), np.nan)
    picked[rows >= 0] = values[rows[rows >= 0]]
    return picked


# --- TRACE_TABLE, TRACE_SAMPLES --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TraceTable:
    """Edges and centres of the 48 slices of an IFU: polynomials in y, one row per CCD slice.

    Attributes
    ----------
    centre, left, right : ndarray of float64, shape (48, order + 1) [pix]
        Ascending powers of y; NaN where a slice could not be traced.
    width : ndarray of float64, shape (48,) [pix]
        Mean width.
    mse : ndarray of float64, shape (48, 3) [pix2]
        Mean squared residuals of centre, left and right.
    header : astropy.io.fits.Header
    """

    centre: FloatArray
    left: FloatArray
    right: FloatArray
    width: FloatArray
    mse: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    def edges(self, ccd_slice: int, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Left and right edge [pix] of a slice (1..48) in rows y."""
        left, right = (
            np.polynomial.polynomial.polyval(np.asarray(y, np.float64), c[ccd_slice - 1])
            for c in (self.left, self.right)
        )
        return left, right


def write_trace_table(
    path: PathLike, table: TraceTable, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a TRACE_TABLE.

    Parameters
    ----------
    path : path-like
    table : TraceTable
    header : astropy.io.fits.Header
        Primary header, see `product_header`.
    overwrite : bool
    """
    return write_tables(path, header, [trace_hdu(table)], overwrite)


def trace_hdu(table: TraceTable, name: str | None = None) -> fits.BinTableHDU:
    """Extension of a TRACE_TABLE; rows of slices without a trace are undefined in all columns."""
    n = np.shape(table.centre)[1]
    polynomials = [
        checked_array(v, (N_SLICES, n), f"TRACE_TABLE: {key}")
        for key, v in (("centre", table.centre), ("left", table.left), ("right", table.right))
    ]
    mse = checked_array(table.mse, (N_SLICES, 3), "TRACE_TABLE: mse")
    numbers = np.arange(1, N_SLICES + 1)
    missing = np.isnan(polynomials[0]).any(axis=1)
    numbers[missing] = 0
    columns: list[tuple[Column, Any]] = [
        (Column("SliceNo", "J", "No"), numbers),
        (Column("Width", "E", "pix"), checked_array(table.width, (N_SLICES,), "TRACE_TABLE: width")),
    ]
    for i, values in enumerate(polynomials):
        columns += [(Column(f"tc{i}_{j:02d}", "D", "pix"), values[:, j]) for j in range(n)]
        # the reference gives the unit of a length, not of its square
        columns.append((Column(f"MSE{i}", "D", "pix"), mse[:, i]))
    hdu = bintable(columns, name)
    if missing.any():
        hdu.columns["SliceNo"].null = 0
        hdu.header.set("TNULL1", 0, after="TUNIT1")
    return hdu


def read_trace_table(path: PathLike, *, ifu: int | None = None) -> TraceTable:
    """Read a TRACE_TABLE.

    Parameters
    ----------
    path : path-like
    ifu : int, optional
        IFU wanted; needed if the file has those of several.

    Raises
    ------
    InputError
        If the file, the IFU or a column is missing.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, ifu, "TRACE_TABLE")
        rows = _by_slice(path, hdu)
        # as the reference does it: the order follows from the number of columns
        order = (len(hdu.columns) - 2) // 3 - 2
        if order < 0 or (len(hdu.columns) - 2) % 3:
            raise InputError(f"{path}: {len(hdu.columns)} columns found, not a TRACE_TABLE")

        def get(name: str) -> FloatArray:
            return _pick(get_column(path, hdu, Column(name, "D")), rows)

        centre, left, right = (
            np.stack([get(f"tc{i}_{j:02d}") for j in range(order + 1)], axis=1) for i in range(3)
        )
        mse = np.stack([get(f"MSE{i}") for i in range(3)], axis=1)
        return TraceTable(centre, left, right, get("Width"), mse, header)


@dataclass(frozen=True, eq=False)
class TraceSamples:
    """Measured edges of slices.

    Attributes
    ----------
    ccd_slice : ndarray of int32, shape (n,)
    y, mid, left, right : ndarray of float64, shape (n,) [pix]
    header : astropy.io.fits.Header
    """

    ccd_slice: NDArray[np.int32]
    y: FloatArray
    mid: FloatArray
    left: FloatArray
    right: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_TRACE_SAMPLES = (
    Column("slice", "J", "", "ccd_slice"),
    *(Column(name, "E", "pix", name) for name in ("y", "mid", "left", "right")),
)


def write_trace_samples(
    path: PathLike, samples: TraceSamples, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write TRACE_SAMPLES; parameters as in `write_trace_table`."""
    return write_tables(path, header, [trace_samples_hdu(samples)], overwrite)


def trace_samples_hdu(samples: TraceSamples, name: str | None = None) -> fits.BinTableHDU:
    """Extension of TRACE_SAMPLES."""
    same_length("TRACE_SAMPLES", samples)
    return columns_of(_TRACE_SAMPLES, samples, name)


def read_trace_samples(path: PathLike, *, ifu: int | None = None) -> TraceSamples:
    """Read TRACE_SAMPLES; parameters and errors as in `read_trace_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, ifu, "TRACE_SAMPLES")
        return read_as(TraceSamples, path, hdu, _TRACE_SAMPLES, header=header)


# --- WAVECAL_TABLE, WAVECAL_RESIDUALS --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WavecalTable:
    """Wavelength solutions of the 48 slices of an IFU.

    Attributes
    ----------
    coefficients : ndarray of float64, shape (48, xorder + 1, yorder + 1) [Angstrom]
        Wavelength in air = sum of ``coefficients[s, i, j] x^i y^j``; NaN where there is no solution.
    mse : ndarray of float64, shape (48,) [Angstrom2]
    header : astropy.io.fits.Header
    """

    coefficients: FloatArray
    mse: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    def wavelength(self, ccd_slice: int, x: ArrayLike, y: ArrayLike) -> FloatArray:
        """Wavelength [Angstrom] of pixels of a slice (1..48); x and y broadcast."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        coefficients = self.coefficients[ccd_slice - 1]
        wave = np.zeros(np.broadcast_shapes(x.shape, y.shape))
        for row in coefficients[::-1]:
            wave = wave * x + np.polynomial.polynomial.polyval(y, row)
        return wave


def write_wavecal_table(
    path: PathLike, table: WavecalTable, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a WAVECAL_TABLE; parameters as in `write_trace_table`.

    Raises
    ------
    InputError
        If an order is above 9: the names of the columns have one digit for each.
    """
    return write_tables(path, header, [wavecal_hdu(table)], overwrite)


def wavecal_hdu(table: WavecalTable, name: str | None = None) -> fits.BinTableHDU:
    """Extension of a WAVECAL_TABLE."""
    c = checked_array(table.coefficients, (N_SLICES, None, None), "WAVECAL_TABLE: coefficients")
    if max(c.shape[1:]) > 10:
        raise InputError(f"WAVECAL_TABLE: orders {c.shape[1] - 1}, {c.shape[2] - 1} found, expected at most 9")
    # the reference leaves the rows of failed slices empty
    numbers = np.where(np.isfinite(c).all(axis=(1, 2)), np.arange(1, N_SLICES + 1), 0)
    columns: list[tuple[Column, Any]] = [(Column("SliceNo", "J", "No"), numbers)]
    columns += [
        (Column(f"wlc{i}{j}", "D", ANGSTROM), c[:, i, j]) for i in range(c.shape[1]) for j in range(c.shape[2])
    ]
    columns.append((Column("MSE", "D"), checked_array(table.mse, (N_SLICES,), "WAVECAL_TABLE: mse")))
    hdu = bintable(columns, name)
    if not numbers.all():
        hdu.columns["SliceNo"].null = 0
        hdu.header.set("TNULL1", 0, after="TUNIT1")
    return hdu


def read_wavecal_table(path: PathLike, *, ifu: int | None = None) -> WavecalTable:
    """Read a WAVECAL_TABLE; parameters and errors as in `read_trace_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, ifu, "WAVECAL_TABLE")
        rows = _by_slice(path, hdu)
        last = re.match(r"^wlc(\d)(\d)$", hdu.columns.names[-2] if len(hdu.columns) > 1 else "")
        if last is None:
            raise InputError(f"{path}: its last column but one is no wlcIJ; not a WAVECAL_TABLE")
        shape = int(last[1]) + 1, int(last[2]) + 1
        values = [
            [_pick(get_column(path, hdu, Column(f"wlc{i}{j}", "D")), rows) for j in range(shape[1])]
            for i in range(shape[0])
        ]
        mse = _pick(get_column(path, hdu, Column("MSE", "D")), rows)
        return WavecalTable(np.moveaxis(np.array(values), 2, 0), mse, header)


@dataclass(frozen=True, eq=False)
class WavecalResiduals:
    """Residuals of the measured positions of arc lines, in each iteration of the fit of a slice.

    Attributes
    ----------
    ccd_slice : ndarray of uint8, shape (n,)
    iteration : ndarray of int32, shape (n,)
        From 1; a position that was rejected is not in the next ones.
    x : ndarray of int32, shape (n,) [pix]
        Column.
    y : ndarray of float64, shape (n,) [pix]
        Measured position; single precision in the file.
    wave : ndarray of float64, shape (n,) [Angstrom]
        Wavelength of the line; single precision in the file.
    residual : ndarray of float64, shape (n,) [Angstrom]
        Wavelength of the line minus that of the fit.
    limit : ndarray of float64, shape (n,) [Angstrom]
        From where on positions were rejected.
    header : astropy.io.fits.Header
    """

    ccd_slice: NDArray[np.uint8]
    iteration: NDArray[np.int32]
    x: NDArray[np.int32]
    y: FloatArray
    wave: FloatArray
    residual: FloatArray
    limit: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_WAVECAL_RESIDUALS = (
    Column("slice", "B", "", "ccd_slice"),
    Column("iteration", "J", "", "iteration"),
    Column("x", "J", "pix", "x"),
    Column("y", "E", "pix", "y"),
    Column("lambda", "E", ANGSTROM, "wave"),
    Column("residual", "D", ANGSTROM, "residual"),
    Column("rejlimit", "D", ANGSTROM, "limit"),
)


def write_wavecal_residuals(
    path: PathLike, residuals: WavecalResiduals, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write WAVECAL_RESIDUALS; parameters as in `write_trace_table`."""
    return write_tables(path, header, [wavecal_residuals_hdu(residuals)], overwrite)


def wavecal_residuals_hdu(residuals: WavecalResiduals, name: str | None = None) -> fits.BinTableHDU:
    """Extension of WAVECAL_RESIDUALS."""
    same_length("WAVECAL_RESIDUALS", residuals)
    return columns_of(_WAVECAL_RESIDUALS, residuals, name)


def read_wavecal_residuals(path: PathLike, *, ifu: int | None = None) -> WavecalResiduals:
    """Read WAVECAL_RESIDUALS; parameters and errors as in `read_trace_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, ifu, "WAVECAL_RESIDUALS")
        return read_as(WavecalResiduals, path, hdu, _WAVECAL_RESIDUALS, header=header)


# --- GEOMETRY_TABLE --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GeometryTable:
    """Where slices are in the field of view; one row per slice.

    Attributes
    ----------
    ifu, ccd_slice, sky_slice : ndarray of int32, shape (n,)
    x, y : ndarray of float64, shape (n,) [pix, i.e. spaxels]
        Centre of the slice.
    angle : ndarray of float64, shape (n,) [deg]
    width : ndarray of float64, shape (n,) [pix]
    header : astropy.io.fits.Header
    """

    ifu: NDArray[np.int32]
    ccd_slice: NDArray[np.int32]
    sky_slice: NDArray[np.int32]
    x: FloatArray
    y: FloatArray
    angle: FloatArray
    width: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    def of_ifu(self, ifu: int) -> GeometryTable:
        """Rows of one IFU in order of CCD slice.

        Raises
        ------
        InputError
            If they are not 48.
        """
        rows = np.flatnonzero(self.ifu == ifu)
        rows = rows[np.argsort(self.ccd_slice[rows], kind="stable")]
        if not np.array_equal(self.ccd_slice[rows], np.arange(1, N_SLICES + 1)):
            raise InputError(f"GEOMETRY_TABLE: {len(rows)} rows of IFU {ifu} found, expected one for each slice")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "header"}
        return GeometryTable(**{k: v[rows] for k, v in values.items()}, header=self.header)


_GEOMETRY = (
    Column("SubField", "J", "", "ifu"),
    Column("SliceCCD", "J", "", "ccd_slice"),
    Column("SliceSky", "J", "", "sky_slice"),
    Column("x", "D", "pix", "x"),
    Column("y", "D", "pix", "y"),
    Column("angle", "D", "deg", "angle"),
    Column("width", "D", "pix", "width"),
)


def write_geometry_table(
    path: PathLike, table: GeometryTable, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a GEOMETRY_TABLE; parameters as in `write_trace_table`.

    Rows are sorted by IFU and number of the slice on the sky, as those of the reference.
    """
    same_length("GEOMETRY_TABLE", table)
    order = np.lexsort((table.sky_slice, table.ifu))
    pairs = [(c, getattr(table, c.key)[order]) for c in _GEOMETRY]
    return write_tables(path, header, [bintable(pairs)], overwrite)


def read_geometry_table(path: PathLike) -> GeometryTable:
    """Read a GEOMETRY_TABLE.

    Raises
    ------
    InputError
        If the file or a column is missing.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, None, "GEOMETRY_TABLE")
        return read_as(GeometryTable, path, hdu, _GEOMETRY, header=header)


# --- LSF_PROFILE -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LsfProfile:
    """Line-spread functions of the slices of an IFU as images (the kind ``interpolate``).

    Attributes
    ----------
    data : ndarray of float32, shape (48, n_wave, n_offset) [1/Angstrom]
        The sum of each row times `offset_step` is 1.
    offset0, offset_step : float
        First sample and step of the distance from the line [Angstrom].
    wave0, wave_step : float
        First line wavelength and step [Angstrom].
    header : astropy.io.fits.Header
    """

    data: NDArray[np.float32]
    offset0: float = -7.5
    offset_step: float = 15.0 / 149
    wave0: float = 4650.0
    wave_step: float = 4650.0 / 29
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    @property
    def offset(self) -> FloatArray:
        """Distances from the line of the samples [Angstrom]."""
        return self.offset0 + self.offset_step * np.arange(self.data.shape[2], dtype=np.float64)

    @property
    def wave(self) -> FloatArray:
        """Wavelengths of the lines of the rows [Angstrom]."""
        return self.wave0 + self.wave_step * np.arange(self.data.shape[1], dtype=np.float64)


def write_lsf_profile(
    path: PathLike, profile: LsfProfile, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a LSF_PROFILE; parameters as in `write_trace_table`."""
    return write_tables(path, header, [lsf_hdu(profile)], overwrite)


def lsf_hdu(profile: LsfProfile, name: str = "LSF_PROFILE") -> fits.ImageHDU:
    """Extension of a LSF_PROFILE."""
    shape = np.shape(profile.data)
    if len(shape) != 3 or shape[0] != N_SLICES:
        raise InputError(f"LSF_PROFILE: shape {shape} found, expected (48, wavelengths, offsets)")
    hdu = fits.ImageHDU(np.asarray(profile.data, np.float32), name=name)
    # the order of slices is no world coordinate
    cards = (
        ("WCSAXES", 2), ("CRPIX1", 1.0), ("CRPIX2", 1.0), ("CRVAL1", profile.offset0),
        ("CRVAL2", profile.wave0), ("CTYPE1", "PARAM"), ("CTYPE2", "AWAV"), ("CUNIT1", ANGSTROM),
        ("CUNIT2", ANGSTROM), ("CD1_1", profile.offset_step), ("CD1_2", 0.0), ("CD2_1", 0.0),
        ("CD2_2", profile.wave_step),
    )  # fmt: skip
    for keyword, value in cards:
        hdu.header[keyword] = value
    return hdu


def read_lsf_profile(path: PathLike, *, ifu: int | None = None) -> LsfProfile:
    """Read a LSF_PROFILE of the kind ``interpolate``.

    Parameters
    ----------
    path : path-like
    ifu : int, optional
        IFU wanted; needed if the file has those of several.

    Raises
    ------
    InputError
        If the file or the IFU is missing, or it is of the other kind (``hermit``).
    """
    path = Path(path)
    with open_fits(path) as hdus:
        header = hdus[0].header.copy()
        names = {str(h.header.get("EXTNAME", "")).strip(): h for h in hdus[1:]}
        own = channel_number(header.get("EXTNAME"))
        merged = [n for n in names if n.endswith(".LSF_PROFILE")]
        if "LSF_PROFILE" in names and (ifu is None or own in (None, ifu)):
            name = "LSF_PROFILE"
        elif ifu is not None and f"{channel(ifu)}.LSF_PROFILE" in names:
            name = f"{channel(ifu)}.LSF_PROFILE"
            header["EXTNAME"] = channel(ifu)
        elif ifu is None and len(merged) == 1:
            name = merged[0]
        elif any(n.endswith("SLICE_PARAM") for n in names):
            raise InputError(f"{path}: a LSF_PROFILE of the kind hermit found, expected interpolate")
        else:
            wanted = "" if ifu is None else f" of IFU {ifu}"
            raise InputError(f"{path}: there is no LSF_PROFILE{wanted}; it has {', '.join(names) or 'none'}")
        hdu = names[name]
        data = np.asarray(hdu.data)
        if data.ndim != 3 or data.shape[0] != N_SLICES:
            raise InputError(f"{path}[{name}]: shape {data.shape} found, expected (48, wavelengths, offsets)")
        missing = [k for k in ("CRVAL1", "CRVAL2", "CD1_1", "CD2_2") if k not in hdu.header]
        if missing:
            raise InputError(f"{path}[{name}]: there is no {', '.join(missing)}")
        h = hdu.header
        start = [h[f"CRVAL{i}"] + (1 - h.get(f"CRPIX{i}", 1.0)) * h[f"CD{i}_{i}"] for i in (1, 2)]
        return LsfProfile(data.astype(np.float32), start[0], h["CD1_1"], start[1], h["CD2_2"], header)


# --- BADPIX_TABLE ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BadPixels:
    """Bad pixels of a CCD.

    Attributes
    ----------
    x, y : ndarray of int32, shape (n,)
        On the untrimmed raw image, counted from 1.
    status : ndarray of int32, shape (n,)
        Bits of the Euro3D convention; bit 31 makes the number negative.
    value : ndarray of float64, shape (n,) [count]
        For what it is worth, e.g. the depth of a trap; NaN where nothing is known.
    header : astropy.io.fits.Header
        Cards about the CCD.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    status: NDArray[np.int32]
    value: FloatArray
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_BADPIX = (
    Column("xpos", "J", "pix", "x"),
    Column("ypos", "J", "pix", "y"),
    Column("status", "J", "", "status"),
    Column("value", "E", "count", "value"),
)


def write_badpix_table(
    path: PathLike,
    pixels: Mapping[int, BadPixels],
    *,
    header: fits.Header | None = None,
    like: PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a BADPIX_TABLE: one extension per IFU.

    Parameters
    ----------
    path : path-like
    pixels : mapping of int to BadPixels
        By IFU.
    header : astropy.io.fits.Header, optional
        Primary header; default: that of `like`, or the least that there must be.
    like : path-like, optional
        Table that this one continues: its extensions of other IFUs, and of anything else, are kept.
    overwrite : bool
    """
    hdus = {}
    for ifu, bad in pixels.items():
        same_length(f"BADPIX_TABLE: IFU {ifu}", bad)
        hdus[channel(ifu)] = columns_of(_BADPIX, bad, channel(ifu))
        append_cards(hdus[channel(ifu)].header, [[c.keyword, c.value, c.comment] for c in bad.header.cards])
    if like is not None:
        with open_fits(like) as old:
            if header is None:
                header = old[0].header.copy()
                remove_cards(header, STRUCTURAL)
            for number, hdu in enumerate(old[1:], 1):
                hdus.setdefault(str(hdu.header.get("EXTNAME", "")).strip() or str(number), hdu.copy())
    # those of IFUs in their order
    ordered = [hdus[name] for name in sorted(hdus, key=lambda name: (channel_number(name) is None, name))]
    return write_tables(path, header or product_header("BADPIX_TABLE"), ordered, overwrite)


def read_badpix_table(path: PathLike) -> dict[int, BadPixels]:
    """Read a BADPIX_TABLE: bad pixels by IFU.

    Raises
    ------
    InputError
        If the file or a column is missing, or no extension is that of an IFU.
    """
    path = Path(path)
    found: dict[int, BadPixels] = {}
    with open_fits(path) as hdus:
        for hdu in hdus[1:]:
            ifu = channel_number(hdu.header.get("EXTNAME"))
            if ifu is not None and isinstance(hdu, fits.BinTableHDU):
                own = hdu.header.copy()
                remove_cards(own, STRUCTURAL)
                own.remove("EXTNAME")
                found[ifu] = read_as(BadPixels, path, hdu, _BADPIX, header=own)
    if not found:
        raise InputError(f"{path}: there is no table CHANnn; not a BADPIX_TABLE")
    return found
