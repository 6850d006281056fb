"""Cubes as Euro3D tables: one row per spaxel that has data.

The layout is that of the reference pipeline: fixed-length spectra in ``DATA_SPE``, ``QUAL_SPE`` and
``STAT_SPE`` (errors, not variances) that start at the first plane with data, spaxels column by column.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_MISSDATA, mode_from_name
from .cards import header_bytes
from .cube_read import CubeSource, open_source
from .files import atomic_path
from .headers import append_cards, remove_cards, set_card

if TYPE_CHECKING:
    import xarray as xr

#: default memory of the pieces that are held at one time
_BYTES = 256 << 20
#: bytes that a voxel takes while it is turned into rows
_PER_VOXEL = 48
_BLOCK = 2880
_DEG = 180.0 / math.pi
#: wavelength [Angstrom] for which the reference gives positions
_REFERENCE_WAVE = 6975.0
#: format, unit and comment of the 4-byte columns of E3D_GRP
_GROUP = (
    ("G_SIZE1", "arcsec"), ("G_ANGLE", "deg"), ("G_SIZE2", "arcsec"), ("G_POSWAV", "Angstrom"), ("G_AIRMAS", ""),
    ("G_PARANG", "deg"), ("G_PRESSU", "hPa"), ("G_TEMPER", "K"), ("G_HUMID", ""),
)  # fmt: skip


def write_euro3d(
    cube: str | os.PathLike[str] | xr.Dataset | CubeSource,
    path: str | os.PathLike[str],
    *,
    images: bool = False,
    overwrite: bool = False,
    memory_limit: int = _BYTES,
) -> None:
    """Write a cube in the formats ``Euro3D`` and ``xEuro3D`` of the reference pipeline.

    Missing voxels are 0 with quality 2**30.  The reference also writes the values of bad pixels that
    the method ``nearest`` chose, with their quality bits; a cube does not keep those, here they are
    missing.  Images are those of the cube, whole; with an OUTPUT_WCS the reference cuts them at their
    upper edges.  ``DATAMD5`` is not computed.

    Parameters
    ----------
    cube : path-like, xarray.Dataset or CubeSource
        See `cube.open_cube`; NaN voxels are missing.
    path : path-like
        FITS file to write; it appears when it is whole.
    images : bool
        Whether to append the field-of-view images (``xEuro3D``).
    overwrite : bool
        Whether an existing file may be replaced.
    memory_limit : int
        Bytes of the piece that is held at one time.  A piece has all planes of some spaxels: cubes in
        Zarr are read fastest if their shards hold all planes or the limit allows for a whole one.

    Raises
    ------
    InputError
        If the cube has no variance or no spaxel has data.
    OutputExistsError, PlanError
        If the output exists or the disk is full.
    """
    source = open_source(cube)
    if "variance" not in source.names:
        raise InputError(f"{source.label}: a Euro3D table needs variances, the cube has none")
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "r+b") as file:
        primary = _primary(source)
        _sign(primary, 0)
        file.write(header_bytes(primary))
        start = file.tell()
        head = _data_header(source)
        _sign(head, 0)
        file.write(header_bytes(head))
        n_rows, total, n_bytes = 0, 0, 0
        from .checksum import fold

        rest = b""
        for rows in _rows(source, memory_limit):
            # sums are taken of whole words only, rows need not be whole words
            data = rest + rows.tobytes()
            whole = len(data) // 4 * 4
            total = fold(total + _sum(data[:whole]))
            rest = data[whole:]
            file.write(rows.data)
            n_rows += len(rows)
            n_bytes += rows.nbytes
        if not n_rows:
            raise InputError(f"{source.label}: no spaxel has data")
        file.write(b"\0" * (-n_bytes % _BLOCK))
        total = fold(total + _sum(rest.ljust(4, b"\0"))) if rest else total
        head["NAXIS2"] = n_rows
        _sign(head, total)
        end = file.tell()
        file.seek(start)
        file.write(header_bytes(head))
        file.seek(end)
        _write_hdu(file, *_group(source))
        for name, (cards, read) in (source.images if images else {}).items():
            image = np.asarray(read(), np.float32)
            missing = ~np.isfinite(image)
            quality = np.where(missing, DQ_MISSDATA, 0).astype(">i4")
            _write_hdu(file, _image_header(cards, name, image.shape), np.where(missing, 0, image).astype(">f4"))
            _write_hdu(file, _quality_header(cards, name, image.shape), quality)


# --- rows ----------------------------------------------------------------------------------------


def _row_type(nz: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("SPEC_ID", ">i4"), ("SELECTED", "S1"), ("NSPAX", ">i4"), ("SPEC_LEN", ">i4"), ("SPEC_STA", ">i4"),
            ("XPOS", ">f8"), ("YPOS", ">f8"), ("GROUP_N", ">i4"), ("SPAX_ID", "S1"),
            ("DATA_SPE", ">f4", (nz,)), ("QUAL_SPE", ">i4", (nz,)), ("STAT_SPE", ">f4", (nz,)),
        ]
    )  # fmt: skip


def _rows(source: CubeSource, memory_limit: int) -> Iterator[NDArray[Any]]:
    """Rows of some spaxels at a time, x outermost."""
    nz, ny, nx = source.shape
    spaxels = max(1, memory_limit // (_PER_VOXEL * nz))
    dx = max(1, spaxels // ny)
    dy = ny if dx > 1 or spaxels >= ny else spaxels
    for x in range(0, nx, dx):
        columns = slice(x, min(nx, x + dx))
        for y in range(0, ny, dy):
            lines = slice(y, min(ny, y + dy))
            region = (slice(0, nz), lines, columns)
            data, stat = (
                # x outermost, planes innermost
                source.read(name, region).transpose(2, 1, 0).reshape(-1, nz)
                for name in ("flux", "variance")
            )
            xs = np.repeat(np.arange(columns.start, columns.stop), lines.stop - lines.start)
            ys = np.tile(np.arange(lines.start, lines.stop), columns.stop - columns.start)
            yield _make_rows(source, data, stat, xs, ys)


def _make_rows(
    source: CubeSource,
    data: NDArray[np.float32],
    stat: NDArray[np.float32],
    xs: NDArray[np.integer],
    ys: NDArray[np.integer],
) -> NDArray[Any]:
    ny = source.shape[1]
    nz = data.shape[1]
    good = np.isfinite(data)
    keep = good.any(axis=1)
    data, stat, good, xs, ys = data[keep], stat[keep], good[keep], xs[keep], ys[keep]
    rows = np.zeros(len(data), _row_type(nz))
    first = good.argmax(axis=1)
    rows["SPEC_ID"] = xs * ny + ys + 1
    rows["SELECTED"] = b"T"
    rows["NSPAX"] = rows["GROUP_N"] = 1
    rows["SPEC_LEN"] = nz - first
    rows["SPEC_STA"] = first + 1
    rows["XPOS"], rows["YPOS"] = _positions(source.data, xs + 1.0, ys + 1.0)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(stat)
    for name, values in (
        ("DATA_SPE", np.where(good, data, 0)),
        ("QUAL_SPE", np.where(good, 0, DQ_MISSDATA)),
        ("STAT_SPE", np.where(good, error, 0)),
    ):
        column = rows[name]
        # the bits that the reference leaves in numbers beyond the end of a spectrum
        empty = 0 if name == "QUAL_SPE" else np.array(0xFFFFFFFF, np.uint32).view(np.float32)
        for start in np.unique(first):
            these = np.nonzero(first == start)[0]
            column[these, : nz - start] = values[these, start:]
            column[these, nz - start :] = empty
    return rows


def _positions(
    header: fits.Header, px: NDArray[np.floating], py: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """World coordinates of pixels (from 1): RA and DEC [deg], or pixels of the instrument."""
    cd11, cd12, cd21, cd22 = (float(header.get(f"CD{i}_{j}", 0.0)) for i in (1, 2) for j in (1, 2))
    dx, dy = px - float(header["CRPIX1"]), py - float(header["CRPIX2"])
    x, y = cd11 * dx + cd12 * dy, cd22 * dy + cd21 * dx
    first, second = float(header["CRVAL1"]), float(header["CRVAL2"])
    if not _celestial(header):
        return x + first, y + second
    phi = np.arctan2(x, -y)
    theta = np.arctan2(_DEG, np.sqrt(x * x + y * y))
    d = second / _DEG
    ra = np.arctan2(
        np.cos(theta) * np.sin(phi), np.sin(theta) * math.cos(d) + np.cos(theta) * math.sin(d) * np.cos(phi)
    )
    dec = np.arcsin(np.sin(theta) * math.sin(d) - np.cos(theta) * math.cos(d) * np.cos(phi))
    return first + ra * _DEG, dec * _DEG


def _celestial(header: fits.Header) -> bool:
    return str(header.get("CTYPE1", "")).startswith("RA")


# --- headers -------------------------------------------------------------------------------------


def euro3d_cards(primary: fits.Header) -> fits.Header:
    """Copy of a primary header with the cards that the reference has in all products of these formats.

    These are the cards of the format; those on the quality of the cube are left out.
    """
    header = primary.copy()
    remove_cards(header, r"ESO QC (EXPCOMB|SCIPOST) (LAMBDA|NDET|POS\d+|FWHM)")
    position = header.index("PIPEFILE") + 1 if "PIPEFILE" in header else len(header)
    for keyword, value, comment in reversed(
        (
            ("EURO3D", "T", "file conforms to Euro3D standard"),
            ("E3D_VERS", "1.0", "version number of the Euro3D format"),
            ("E3D_ADC", "F", "data not corrected for atmospheric dispersion"),
        )
    ):
        header.insert(position, (keyword, value, comment))
    return header


def _primary(source: CubeSource) -> fits.Header:
    cards = euro3d_cards(source.primary)
    header = fits.Header(
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            ("BITPIX", 8, "number of bits per data pixel"),
            ("NAXIS", 0, "number of data axes"),
            ("EXTEND", True, "FITS dataset may contain extensions"),
        ]
    )
    _append(header, cards)
    if "BUNIT" in source.data:
        header.insert("EURO3D", ("BUNIT", source.data["BUNIT"]))
    value = ("Not computed", "MD5 checksum")
    if "DATAMD5" in header:
        header["DATAMD5"] = value
    else:
        header.insert("PIPEFILE" if "PIPEFILE" in header else "EURO3D", ("DATAMD5", *value))
    return header


def _append(header: fits.Header, cards: fits.Header) -> None:
    import json

    from .headers import cards_to_json

    append_cards(header, json.loads(cards_to_json(cards)))


def _table_header(row_bytes: int, n_rows: int, fields: list[tuple[str, str, str, str]]) -> fits.Header:
    header = fits.Header(
        [
            ("XTENSION", "BINTABLE", "binary table extension"),
            ("BITPIX", 8, "8-bit bytes"),
            ("NAXIS", 2, "2-dimensional binary table"),
            ("NAXIS1", row_bytes, "width of table in bytes"),
            ("NAXIS2", n_rows, "number of rows in table"),
            ("PCOUNT", 0, "size of special data area"),
            ("GCOUNT", 1, "one data group (required keyword)"),
            ("TFIELDS", len(fields), "number of fields in each row"),
        ]
    )
    for i, (name, form, kind, unit) in enumerate(fields, 1):
        header[f"TTYPE{i}"] = (name, f"label for field {i:3}")
        header[f"TFORM{i}"] = (form, f"data format of field: {kind}")
        if unit:
            header[f"TUNIT{i}"] = (unit, "physical unit of field")
    return header


_INT, _REAL, _CHAR = "4-byte INTEGER", "4-byte REAL", "ASCII Character"


def _data_header(source: CubeSource) -> fits.Header:
    nz = source.shape[0]
    where = "deg" if _celestial(source.data) else "pix"
    data_unit, stat_unit = (str(h.get("BUNIT", "")) for h in (source.data, source.stat))
    header = _table_header(
        _row_type(nz).itemsize,
        0,
        [
            ("SPEC_ID", "1J", _INT, ""),
            ("SELECTED", "1L", "1-byte LOGICAL", ""),
            ("NSPAX", "1J", _INT, ""),
            ("SPEC_LEN", "1J", _INT, "pixel"),
            ("SPEC_STA", "1J", _INT, "pixel"),
            ("XPOS", "1D", "8-byte DOUBLE", where),
            ("YPOS", "1D", "8-byte DOUBLE", where),
            ("GROUP_N", "1J", _INT, ""),
            ("SPAX_ID", "1A", _CHAR, ""),
            ("DATA_SPE", f"{nz}E", _REAL, data_unit),
            ("QUAL_SPE", f"{nz}J", _INT, ""),
            ("STAT_SPE", f"{nz}E", _REAL, stat_unit),
        ],
    )
    header["TNULL11"] = 0
    header["EXTNAME"] = ("E3D_DATA", "This is the Euro3D data table extension")
    for keyword, name in (("CTYPES", "CTYPE3"), ("CUNITS", "CUNIT3"), ("CRVALS", "CRVAL3"), ("CDELTS", "CD3_3")):
        if name in source.data:
            header[keyword] = source.data[name]
    return header


def _group(source: CubeSource) -> tuple[fits.Header, NDArray[Any]]:
    """The one row on the group of all spaxels, from the primary header; NaN for what it does not tell."""
    head = source.primary
    row = np.zeros(1, [("GROUP_N", ">i4"), ("G_SHAPE", "S1"), *((name, ">f4") for name, _ in _GROUP)])
    row["G_SIZE1"], row["G_SIZE2"] = _spaxel_size(source)
    row["GROUP_N"], row["G_SHAPE"] = 1, b"R"
    row["G_POSWAV"] = _REFERENCE_WAVE
    row["G_AIRMAS"] = airmass(head)
    row["G_PARANG"] = parallactic_angle(head)
    row["G_PRESSU"] = head.get("ESO TEL AMBI PRES START", math.nan)
    row["G_TEMPER"] = head.get("ESO TEL AMBI TEMP", math.nan) + 273.15
    row["G_HUMID"] = head.get("ESO TEL AMBI RHUM", math.nan)
    fields = [("GROUP_N", "1J", _INT, ""), ("G_SHAPE", "1A", _CHAR, "")]
    fields += [(name, "1E", _REAL, unit) for name, unit in _GROUP]
    header = _table_header(row.dtype.itemsize, 1, fields)
    header["EXTNAME"] = ("E3D_GRP", "This is the Euro3D group table extension")
    return header, row


def _spaxel_size(source: CubeSource) -> tuple[float, float]:
    """Step sizes that were asked for, or natural ones, whatever those of an OUTPUT_WCS.

    The reference gives them in degrees although the unit is arcsec.
    """
    head = source.primary
    celestial = _celestial(source.data)
    sizes = mode_from_name(str(head.get("ESO INS MODE", ""))).spaxel if celestial else (1.0, 1.0)
    given = {}
    record = 1
    while f"ESO PRO REC{record} ID" in head:
        i = 1
        while f"ESO PRO REC{record} PARAM{i} NAME" in head:
            stem = f"ESO PRO REC{record} PARAM{i}"
            given[head[f"{stem} NAME"]] = head.get(f"{stem} VALUE")
            i += 1
        record += 1
    steps = []
    for name, natural in zip(("dx", "dy"), sizes, strict=True):
        try:
            step = float(given.get(name) or 0)
        except ValueError:
            step = 0.0
        steps.append((step if step > 0 else natural) / (3600 if celestial else 1))
    return steps[0], steps[1]


def airmass(header: fits.Header) -> float:
    """Airmass of an exposure: Hardie's (1962) formula, averaged over its duration.

    Needs ``RA``, ``DEC``, ``LST`` and ``EXPTIME``; without them the mean of ``ESO TEL AIRM START`` and
    ``END``, or NaN.
    """
    try:
        ra, dec, lst, exptime = (float(header[k]) for k in ("RA", "DEC", "LST", "EXPTIME"))
    except (KeyError, TypeError, ValueError):
        ends = [header.get(f"ESO TEL AIRM {side}", math.nan) for side in ("START", "END")]
        return float(sum(ends)) / 2
    latitude = math.radians(float(header.get("ESO TEL GEOLAT", -24.625278)))
    angle = (lst * 15 / 3600 - ra + 180) % 360 - 180
    total = 0.0
    for part, weight in ((0.0, 1 / 6), (0.5, 2 / 3), (1.0, 1 / 6)):
        hour = math.radians(angle + part * exptime * 15 / 3600)
        d = math.radians(dec)
        cosine = math.sin(latitude) * math.sin(d) + math.cos(latitude) * math.cos(d) * math.cos(hour)
        if cosine <= 0:
            return math.nan
        m = 1 / cosine - 1
        total += weight * (1 + m - 0.0018167 * m - 0.002875 * m**2 - 0.0008083 * m**3)
    return total


def parallactic_angle(header: fits.Header) -> float:
    """Mean parallactic angle of an exposure [deg], NaN if it is not told."""
    ends = [float(header.get(f"ESO TEL PARANG {side}", math.nan)) for side in ("START", "END")]
    if abs(ends[0] - ends[1]) < 90:
        return sum(ends) / 2
    to_south = [math.copysign(180 - abs(p), p) for p in ends]
    return math.copysign(180 - abs(sum(to_south) / 2), max(to_south, key=abs))


def _image_layout(shape: tuple[int, ...], bitpix: int) -> fits.Header:
    return fits.Header(
        [
            ("XTENSION", "IMAGE", "IMAGE extension"),
            ("BITPIX", bitpix, "number of bits per data pixel"),
            ("NAXIS", 2, "number of data axes"),
            ("NAXIS1", shape[1], "length of data axis 1"),
            ("NAXIS2", shape[0], "length of data axis 2"),
            ("PCOUNT", 0, "required keyword; must = 0"),
            ("GCOUNT", 1, "required keyword; must = 1"),
        ]
    )


def _image_header(cards: fits.Header, name: str, shape: tuple[int, ...]) -> fits.Header:
    header = _image_layout(shape, -32)
    _append(header, cards)
    header["EXTNAME"] = (name, "reconstructed image (data values)")
    header.insert(
        "HDUCLAS2" if "HDUCLAS2" in header else "EXTNAME",
        ("QUALDATA", f"{name}_DQ", "pointer to the bad pixel mask extension"),
        after=True,
    )
    return header


def _quality_header(cards: fits.Header, name: str, shape: tuple[int, ...]) -> fits.Header:
    header = _image_layout(shape, 32)
    _append(header, cards)
    if "OBJECT" in header:
        header["OBJECT"] = f"{str(header['OBJECT']).removesuffix(')')}, DQ)"
    header["EXTNAME"] = (f"{name}_DQ", "reconstructed image (bad pixel status values)")
    header.remove("BUNIT", ignore_missing=True)
    position = header.index("HDUCLAS2") if "HDUCLAS2" in header else header.index("EXTNAME") + 1
    header.remove("HDUCLAS2", ignore_missing=True)
    for keyword, value, comment in reversed(
        (
            ("HDUCLAS2", "QUALITY", "this extension contains bad pixel mask"),
            ("HDUCLAS3", "FLAG32BIT", "extension contains 32bit Euro3D bad pixel info"),
            ("QUALMASK", 4294967295, "all non-zero values are bad"),
            ("SCIDATA", name, "pointer to the data extension"),
        )
    ):
        header.insert(position, (keyword, value, comment))
    return header


# --- bytes ---------------------------------------------------------------------------------------


def _sum(data: bytes) -> int:
    from .checksum import sum_bytes

    # pieces short enough that their sum fits into 64 bits
    return sum(sum_bytes(data[i : i + (1 << 24)]) for i in range(0, len(data), 1 << 24))


def _sign(header: fits.Header, datasum: int) -> None:
    """Set ``DATASUM`` and ``CHECKSUM``."""
    from .checksum import encode, fold, sum_bytes

    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    set_card(header, "CHECKSUM", "0" * 16, f"HDU checksum updated {stamp}")
    set_card(header, "DATASUM", str(datasum), f"data unit checksum updated {stamp}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        header["CHECKSUM"] = encode(fold(sum_bytes(header_bytes(header)) + datasum))


def _write_hdu(file: Any, header: fits.Header, values: NDArray[Any]) -> None:
    data = values.tobytes()
    data += b"\0" * (-len(data) % _BLOCK)
    from .checksum import fold

    _sign(header, fold(_sum(data)))
    file.write(header_bytes(header))
    file.write(data)
