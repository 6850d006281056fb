"""Tables of bad pixels made from qualities of images, from lists, from regions of the CCD.

These do what muse_badpix_from_dq, muse_badpix_from_ascii and muse_badpix_from_region of the reference do (section
7.3.2 of the MUSE Pipeline User Manual).  All positions in a BADPIX_TABLE are those on the raw image with its scans,
counted from 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..io.badpix import (
    QUADRANT,
    badpix_header,
    detector_header,
    parse_flag,
    quadrant_size,
    read_detector,
    read_pixel_list,
)
from ..io.calibrations import BadPixels, read_badpix_table, write_badpix_table
from ..io.files import check_output
from ..io.muse_image import read_quality
from ..io.products import PathLike, channel

log = logging.getLogger("musedask")

#: width of the prescans and overscans
SCAN = 32
_REGION = re.compile(r"^\s*\[\s*(-?\d+)\s*:\s*(-?\d+)\s*,\s*(-?\d+)\s*:\s*(-?\d+)\s*\]\s*$")
#: as many positions that are left out are told one by one
_SHOWN = 5


# --- arithmetic ------------------------------------------------------------------------------------


def to_raw(
    x: ArrayLike, y: ArrayLike, quadrant: tuple[int, int] = QUADRANT
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Convert positions on the trimmed image to those on the raw one; both are counted from 1.

    Each quadrant has a prescan on its outer and an overscan on its inner sides, 32 pixels wide.

    Parameters
    ----------
    x, y : array_like of int [pix]
    quadrant : tuple of int
        Data pixels of a quadrant in x and y.

    Returns
    -------
    x, y : ndarray of int32 [pix]
    """
    moved = [
        np.asarray(v, np.int64) + SCAN + 2 * SCAN * (np.asarray(v) > n) for v, n in zip((x, y), quadrant, strict=True)
    ]
    return moved[0].astype(np.int32), moved[1].astype(np.int32)


def pixels_of_quality(dq: NDArray[np.int32], quadrant: tuple[int, int] = QUADRANT) -> BadPixels:
    """Bad pixels of a trimmed image.

    Parameters
    ----------
    dq : ndarray of int32, shape (ny, nx)
        Bits of the Euro3D convention, 0 is good.
    quadrant : tuple of int
        As in `to_raw`.

    Returns
    -------
    BadPixels
        Sorted by x, then y.
    """
    rows, columns = np.nonzero(dq)
    order = np.argsort(columns, kind="stable")
    rows, columns = rows[order], columns[order]
    x, y = to_raw(columns + 1, rows + 1, quadrant)
    return _pixels(x, y, dq[rows, columns])


def join_pixels(*lists: BadPixels) -> BadPixels:
    """All pixels of some lists once, with the flags of all.

    Parameters
    ----------
    *lists : BadPixels
        In any order, each may have a pixel several times.

    Returns
    -------
    BadPixels
        Sorted by x, then y.  `value` is the first that is known, `header` that of the first list that has one.

    Notes
    -----
    The tools of the reference lose the third of three flags of the same pixel; here all are kept.
    """
    x, y, status, value = (np.concatenate([getattr(p, key) for p in lists]) for key in ("x", "y", "status", "value"))
    # stable: values of the first list come first
    order = np.lexsort((np.isnan(value), y, x))
    x, y, status, value = x[order], y[order], status[order], value[order]
    if len(x):
        first = np.flatnonzero(np.r_[True, (np.diff(x) != 0) | (np.diff(y) != 0)])
        x, y, value = x[first], y[first], value[first]
        status = np.bitwise_or.reduceat(status, first)
    header = next((p.header for p in lists if p.header), fits.Header())
    return BadPixels(x.astype(np.int32), y.astype(np.int32), status.astype(np.int32), value, header)


def parse_region(region: str) -> tuple[int, int, int, int]:
    """First and last column, first and last row of a region ``[x1:x2,y1:y2]``, all included.

    Raises
    ------
    InputError
        If it is written otherwise, or ends before it starts.
    """
    match = _REGION.match(region)
    if match is None:
        raise InputError(f"region {region!r} found, expected [x1:x2,y1:y2] with whole numbers, e.g. [10:12,100:2000]")
    x1, x2, y1, y2 = map(int, match.groups())
    if x1 > x2 or y1 > y2:
        raise InputError(f"region {region!r} found, expected x1 <= x2 and y1 <= y2")
    return x1, x2, y1, y2


def _pixels(x: NDArray[Any], y: NDArray[Any], flags: NDArray[Any]) -> BadPixels:
    status = flags if flags.dtype == np.int32 else flags.astype(np.uint32).view(np.int32)
    return BadPixels(x.astype(np.int32), y.astype(np.int32), status, np.full(len(x), np.nan))


# --- tables ----------------------------------------------------------------------------------------


def badpix_from_dq(
    image: PathLike, output: PathLike, *, table: PathLike | None = None, overwrite: bool = False
) -> Path:
    """Make a BADPIX_TABLE of the bad pixels of a master calibration, as muse_badpix_from_dq does.

    Parameters
    ----------
    image : path-like
        With extension ``DQ``, as MASTER_FLAT-10.fits, or a merged file, of which all IFUs are taken.
    output : path-like
        Table to write; may be `table` itself if `overwrite` is given.
    table : path-like, optional
        Existing table to which the pixels are added; if there is none of this name, that is told.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the image has no ``DQ``, is of no IFU, or not of the size that its header says.
    OutputExistsError
        If `output` exists and `overwrite` is false.
    """
    check_output(output, overwrite=overwrite)
    found: dict[int, BadPixels] = {}
    for ifu, dq, header in read_quality(image):
        quadrant = quadrant_size(header)
        if dq.shape != (2 * quadrant[1], 2 * quadrant[0]):
            raise InputError(
                f"{image}: DQ of IFU {ifu} of {dq.shape[1]} x {dq.shape[0]} pixels found, expected "
                f"{2 * quadrant[0]} x {2 * quadrant[1]} of a trimmed image"
            )
        found[ifu] = replace(pixels_of_quality(dq, quadrant), header=detector_header(header, ifu))
    return _write(output, found, table, overwrite)


def badpix_from_ascii(
    listing: PathLike,
    ifu: int,
    output: PathLike,
    *,
    trimmed: bool = False,
    table: PathLike | None = None,
    reference: PathLike | None = None,
    extension: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a BADPIX_TABLE of a list of pixels, as muse_badpix_from_ascii does.

    Parameters
    ----------
    listing : path-like
        Lines with x, y and flag (decimal, or as ``0x100``); empty lines and what follows a ``#`` are passed over.
    ifu : int
    output : path-like
        Table to write; may be `table` itself if `overwrite` is given.
    trimmed : bool
        Whether positions are those on the trimmed image instead of the raw one.
    table : path-like, optional
        Existing table to which the pixels are added; if there is none of this name, that is told.
    reference : path-like, optional
        Image from which cards about the CCD are taken.
    extension : str, optional
        Name of its extension; default: that of the IFU.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the list is missing, a line is written otherwise (the tool of the reference stops there), the IFU is not
        1..24, or the reference is of another IFU.
    OutputExistsError
        If `output` exists and `overwrite` is false.
    """
    check_output(output, overwrite=overwrite)
    channel(ifu)
    header, size = _detector(reference, ifu, extension, trimmed)
    x, y, flags = _inside(*read_pixel_list(listing), size, str(listing))
    return _write(output, _of_positions(x, y, flags, header, ifu, trimmed), table, overwrite)


def badpix_from_region(
    region: str,
    flag: int,
    ifu: int,
    output: PathLike,
    *,
    trimmed: bool = False,
    table: PathLike | None = None,
    reference: PathLike | None = None,
    extension: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a BADPIX_TABLE of a rectangle, as muse_badpix_from_region does.

    Parameters
    ----------
    region : str
        ``[x1:x2,y1:y2]``, first and last column and row.
    flag : int
        Of the Euro3D convention, e.g. 256 for hot pixels.
    ifu, output, trimmed, table, reference, extension, overwrite
        As in `badpix_from_ascii`.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the region cannot be understood, or as in `badpix_from_ascii`.
    OutputExistsError
        If `output` exists and `overwrite` is false.
    """
    check_output(output, overwrite=overwrite)
    channel(ifu)
    given = parse_region(region)
    flag = parse_flag(flag)
    header, size = _detector(reference, ifu, extension, trimmed)
    x1, x2, y1, y2 = max(given[0], 1), min(given[1], size[0]), max(given[2], 1), min(given[3], size[1])
    if x1 > x2 or y1 > y2:
        raise InputError(f"region {region} found, which has no pixel on the CCD of {size[0]} x {size[1]} pixels")
    if (x1, x2, y1, y2) != given:
        log.warning("region %s: only [%d:%d,%d:%d] is on the CCD of %d x %d pixels", region, x1, x2, y1, y2, *size)
    columns, rows = np.meshgrid(np.arange(x1, x2 + 1), np.arange(y1, y2 + 1), indexing="ij")
    x, y = columns.reshape(-1), rows.reshape(-1)
    return _write(output, _of_positions(x, y, np.full(len(x), flag), header, ifu, trimmed), table, overwrite)


def _inside(
    x: NDArray[Any], y: NDArray[Any], flags: NDArray[Any], size: tuple[int, int], name: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Pixels on the CCD; others are told."""
    inside = (x >= 1) & (x <= size[0]) & (y >= 1) & (y <= size[1])
    outside = np.flatnonzero(~inside)
    for i in outside[:_SHOWN]:
        log.warning("%s: (%d,%d) is outside the CCD of %d x %d pixels and left out", name, x[i], y[i], *size)
    if len(outside) > _SHOWN:
        log.warning("%s: %d more positions are outside the CCD and left out", name, len(outside) - _SHOWN)
    if not inside.any():
        raise InputError(f"{name}: no position is on the CCD of {size[0]} x {size[1]} pixels")
    return x[inside], y[inside], flags[inside]


def _detector(
    reference: PathLike | None, ifu: int, extension: str | None, trimmed: bool
) -> tuple[fits.Header, tuple[int, int]]:
    """Cards about the CCD, and columns and rows of the image to which positions refer."""
    header = fits.Header() if reference is None else read_detector(reference, ifu, extension)
    nx, ny = quadrant_size(header)
    scans = 0 if trimmed else 4 * SCAN
    return header, (2 * nx + scans, 2 * ny + scans)


def _of_positions(
    x: NDArray[Any], y: NDArray[Any], flags: NDArray[Any], header: fits.Header, ifu: int, trimmed: bool
) -> dict[int, BadPixels]:
    if trimmed:
        x, y = to_raw(x, y, quadrant_size(header))
    bad = join_pixels(_pixels(x, y, flags))
    return {ifu: replace(bad, header=detector_header(header, ifu))}


def _write(output: PathLike, found: Mapping[int, BadPixels], table: PathLike | None, overwrite: bool) -> Path:
    if table is not None and not Path(table).exists():
        log.warning("%s: no such file, a new table is begun", table)
        table = None
    before = {} if table is None else read_badpix_table(table)
    joined = {}
    for ifu, bad in found.items():
        joined[ifu] = bad
        text = f"{channel(ifu)}: {len(bad.x)} bad pixels"
        if ifu in before:
            joined[ifu] = join_pixels(before[ifu], bad)
            text += f" added to the {len(before[ifu].x)} of {table}, {len(joined[ifu].x)} in all"
        log.info("%s", text)
    header = badpix_header() if table is None else None
    return write_badpix_table(output, joined, header=header, like=table, overwrite=overwrite)
