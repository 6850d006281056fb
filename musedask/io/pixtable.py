"""MUSE pixel tables: reading in pieces, opening as a lazy dataset, writing.

A pixel table has one row per detector pixel.  On disk it is either a set of FITS image
extensions, one per column, each of shape ``(n_rows, 1)``, or one binary table; both may be
followed by a binary table ``PIXTABLE_FLAT_FIELD``.  Columns are read with plain file reads,
never mapped, so that the memory of a process is what it allocated.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from ..errors import InputError
from .files import atomic_path
from .headers import PIXTABLE, STRUCTURAL, float32_card, set_card

if TYPE_CHECKING:
    import xarray as xr

Stage = Literal["pix", "rad", "deg"]

#: mandatory columns with their types, in the order of the file
COLUMNS: dict[str, str] = {
    "xpos": "f4",
    "ypos": "f4",
    "lambda": "f4",
    "data": "f4",
    "dq": "i4",
    "stat": "f4",
    "origin": "i4",
}
FLAT_FIELD_EXTENSION = "PIXTABLE_FLAT_FIELD"
_BLOCK = 2880


@dataclass(frozen=True)
class Column:
    """Where a column lies in its file.

    Attributes
    ----------
    offset : int
        Byte of the first value.
    stride : int
        Bytes from one value to the next: the item size in image form, the row length in a table.
    dtype : str
        Big-endian type, ``>f4`` or ``>i4``.
    unit : str
        Unit as written, empty if there is none.
    """

    offset: int
    stride: int
    dtype: str
    unit: str


@dataclass(frozen=True)
class PixtableFile:
    """A pixel table on disk; only headers are held.

    Attributes
    ----------
    path : pathlib.Path
    header : astropy.io.fits.Header
        The primary header.
    columns : dict of Column
    n_rows : int
    form : {"image", "table"}
    flat_field_hdu : int or None
        Number of the HDU that holds the flat-field spectrum.
    """

    path: Path
    header: fits.Header = field(repr=False)
    columns: dict[str, Column] = field(repr=False)
    n_rows: int
    form: Literal["image", "table"]
    flat_field_hdu: int | None = None

    @property
    def stage(self) -> Stage:
        """Coordinate stage of ``xpos`` and ``ypos``: pix, rad (projected) or deg (positioned)."""
        return self.columns["xpos"].unit[:3]  # type: ignore[return-value]  # checked on opening

    @property
    def has_weight(self) -> bool:
        """Whether there is a ``weight`` column."""
        return "weight" in self.columns

    @property
    def ifu(self) -> int:
        """IFU number of a single-IFU table, 0 for a merged one."""
        name = str(self.header.get("EXTNAME", ""))
        return int(name[4:6]) if name.startswith("CHAN") and name[4:6].isdigit() else 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows ``start:stop`` of a column in native byte order.

        Parameters
        ----------
        name : str
            Column name.
        start, stop : int
            Row range; `stop` defaults to the end.

        Returns
        -------
        ndarray, shape (stop - start,), float32 or int32

        Raises
        ------
        InputError
            If the file ends before the last row.
        """
        column = self.columns[name]
        stop = self.n_rows if stop is None else stop
        count = max(0, stop - start)
        if column.stride == 4:
            raw = np.empty(count, column.dtype)
            self._read_into(raw.view(np.uint8), column.offset + 4 * start)
        else:
            # rows of a binary table: read a piece of whole rows at a time, keep one column
            raw = np.empty(count, column.dtype)
            step = max(1, (4 << 20) // column.stride)
            for first in range(0, count, step):
                n = min(step, count - first)
                # the last row may be the end of the file: stop after this column
                buffer = np.empty((n - 1) * column.stride + 4, np.uint8)
                self._read_into(buffer, column.offset + (start + first) * column.stride)
                raw[first : first + n] = np.lib.stride_tricks.as_strided(
                    buffer[:4].view(column.dtype), (n,), (column.stride,)
                )
        return raw.byteswap(inplace=True).view(raw.dtype.newbyteorder("="))

    def _read_into(self, buffer: NDArray[np.uint8], offset: int) -> None:
        view = buffer.data
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise InputError(f"{self.path}: the file ends before its last row (truncated?)")
                done += got

    def read_flat_field(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Flat-field spectrum as (wavelength [Angstrom], data), or None."""
        if self.flat_field_hdu is None:
            return None
        with fits.open(self.path, memmap=False) as hdus:
            table = hdus[self.flat_field_hdu].data
            return np.asarray(table["lambda"], np.float64), np.asarray(table["data"], np.float64)


def scan_pixtable(path: str | os.PathLike[str]) -> PixtableFile:
    """Check a pixel table and locate its columns, without reading rows.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    PixtableFile

    Raises
    ------
    InputError
        If the file is missing, not FITS, truncated, not a pixel table, has columns of unequal
        length or of a wrong type, or units of ``xpos``/``ypos`` that are not one of the three stages.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(2) in (b"\x1f\x8b", b"BZ", b"\x1f\x9d", b"PK"):
                raise InputError(f"{path}: a compressed file; uncompress it first")
    try:
        with (
            # of files that end early, which is checked below
            warnings.catch_warnings(action="ignore", category=AstropyUserWarning),
            fits.open(path, memmap=False, lazy_load_hdus=True, ignore_missing_simple=False) as hdus,
        ):
            header = hdus[0].header.copy()
            if f"{PIXTABLE} TYPE" not in header:
                raise InputError(
                    f"{path}: not a MUSE pixel table: the primary header has no keyword '{PIXTABLE} TYPE'"
                )
            kind = header[f"{PIXTABLE} TYPE"]
            if kind not in ("GEOFULL", "SIMPLE"):
                raise InputError(f"{path}: {PIXTABLE} TYPE = {kind!r} found, expected GEOFULL or SIMPLE")
            if len(hdus) < 2:
                raise InputError(f"{path}: not a MUSE pixel table: it has no extensions (truncated?)")
            form: Literal["image", "table"] = (
                "table" if isinstance(hdus[1], fits.BinTableHDU) else "image"
            )
            columns, n_rows = (_table_columns if form == "table" else _image_columns)(path, hdus)
            flat_field_hdu = next(
                (i for i, hdu in enumerate(hdus) if i and hdu.name == FLAT_FIELD_EXTENSION), None
            )
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error

    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{path}: not a complete pixel table: no column {', '.join(missing)} "
            f"(found {', '.join(columns) or 'none'}); the file may be truncated"
        )
    for name, dtype in {**COLUMNS, "weight": "f4"}.items():
        if name in columns and columns[name].dtype != f">{dtype}":
            raise InputError(
                f"{path}[{name}]: type {columns[name].dtype} found, expected a 32-bit "
                f"{'float' if dtype == 'f4' else 'integer'}"
            )
    for name, column in columns.items():
        end = column.offset + (n_rows - 1) * column.stride + 4
        if n_rows and end > size:
            raise InputError(
                f"{path}[{name}]: truncated: {n_rows} rows need {end} bytes, the file has {size}"
            )
    stages = [columns[axis].unit[:3] for axis in ("xpos", "ypos")]
    for axis, stage in zip(("xpos", "ypos"), stages, strict=True):
        if stage not in ("pix", "rad", "deg"):
            raise InputError(
                f"{path}[{axis}]: unknown unit {columns[axis].unit!r}, expected pix, rad or deg"
            )
    if columns["lambda"].unit not in ("", "Angstrom", "angstrom", "Angstroms", "0.1 nm"):
        raise InputError(f"{path}[lambda]: unit {columns['lambda'].unit!r} found, expected Angstrom")
    if stages[0] != stages[1]:
        raise InputError(f"{path}: xpos is in {stages[0]} but ypos in {stages[1]}")
    return PixtableFile(path, header, columns, n_rows, form, flat_field_hdu)


def _image_columns(path: Path, hdus: fits.HDUList) -> tuple[dict[str, Column], int]:
    columns: dict[str, Column] = {}
    lengths: dict[str, int] = {}
    for hdu in hdus[1:]:
        if isinstance(hdu, fits.CompImageHDU):
            raise InputError(
                f"{path}[{hdu.name}]: a compressed image found; uncompress it with funpack"
            )
        if not isinstance(hdu, fits.ImageHDU):
            continue
        head = hdu.header
        name = str(head.get("EXTNAME", "")).strip()
        if head["BITPIX"] not in (-32, 32) or head["NAXIS"] not in (1, 2):
            raise InputError(
                f"{path}[{name}]: BITPIX {head['BITPIX']}, NAXIS {head['NAXIS']} found, expected "
                "BITPIX -32 or 32 and an image of one column"
            )
        if head["NAXIS"] == 2 and head["NAXIS1"] != 1:
            raise InputError(f"{path}[{name}]: NAXIS1 = {head['NAXIS1']} found, expected 1")
        lengths[name] = head[f"NAXIS{head['NAXIS']}"]
        columns[name] = Column(
            hdu.fileinfo()["datLoc"],
            4,
            ">f4" if head["BITPIX"] < 0 else ">i4",
            str(head.get("BUNIT", "")).strip(),
        )
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise InputError(f"{path}: the columns have unequal numbers of rows: {found}")
    return columns, next(iter(lengths.values()), 0)


def _table_columns(path: Path, hdus: fits.HDUList) -> tuple[dict[str, Column], int]:
    head = hdus[1].header
    start = hdus[1].fileinfo()["datLoc"]
    columns: dict[str, Column] = {}
    position = 0
    for definition in hdus[1].columns:
        code = str(definition.format).lstrip("1")
        if code in ("E", "J"):
            columns[definition.name] = Column(
                start + position, head["NAXIS1"], ">f4" if code == "E" else ">i4", definition.unit or ""
            )
        elif definition.name in COLUMNS:
            raise InputError(
                f"{path}[{definition.name}]: format {definition.format} found, expected 1E or 1J"
            )
        position += definition.dtype.itemsize
    return columns, head["NAXIS2"]


def open_pixtable(path: str | os.PathLike[str], *, chunks: int = 1 << 20) -> xr.Dataset:
    """Open a pixel table as a lazy dataset.

    Parameters
    ----------
    path : path-like
        FITS pixel table in either form.
    chunks : int
        Rows per Dask chunk.

    Returns
    -------
    xarray.Dataset
        Dimension ``pixel``; variables ``xpos ypos lambda data dq stat origin`` and any extra
        column, with ``units``; the primary header as JSON cards in ``attrs["header"]``, the
        coordinate stage in ``attrs["stage"]``.

    Raises
    ------
    InputError
        See `scan_pixtable`.

    Examples
    --------
    >>> pt = musedask.open_pixtable("PIXTABLE_REDUCED_0001.fits")   # doctest: +SKIP
    >>> float(pt["data"].where(pt["dq"] == 0).mean())               # doctest: +SKIP
    """
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize

    from .headers import cards_to_json

    table = scan_pixtable(path)
    stat = table.path.stat()
    bounds = [*range(0, table.n_rows, chunks), table.n_rows]
    sizes = tuple(int(n) for n in np.diff(bounds)) or (0,)
    variables = {}
    for name, column in table.columns.items():
        dtype = np.dtype(column.dtype).newbyteorder("=")
        key = f"pixtable-{name}-" + tokenize(str(table.path.resolve()), stat.st_mtime_ns, stat.st_size, chunks)
        graph = {
            (key, i): (table.read, name, bounds[i], bounds[i] + n) for i, n in enumerate(sizes)
        }
        array = da.Array(graph, key, (sizes,), dtype)
        variables[name] = xr.Variable("pixel", array, {"units": column.unit} if column.unit else {})
    attrs = {"header": cards_to_json(table.header), "stage": table.stage, "source": str(table.path)}
    return xr.Dataset(variables, attrs=attrs)


class PixtableWriter:
    """Write a pixel table in pieces; the file appears under its name only when it is whole.

    Parameters
    ----------
    path : path-like
        Output file.
    header : astropy.io.fits.Header
        Primary header, without structural cards (they are dropped).
    n_rows : int
        Number of rows, fixed from the start.
    units : mapping of str to str
        Column names in file order, with their units (empty: none).  ``dq`` and ``origin`` are
        int32, all others float32.
    form : {"image", "table"}
        One image extension per column, or one binary table.
    flat_field : tuple of ndarray, optional
        Wavelength [Angstrom] and value of the flat-field spectrum.
    overwrite : bool
        Whether an existing file may be replaced.

    Examples
    --------
    >>> with PixtableWriter("t.fits", header, n, units) as out:   # doctest: +SKIP
    ...     out.write("xpos", 0, xpos)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: fits.Header,
        n_rows: int,
        units: Mapping[str, str],
        *,
        form: Literal["image", "table"] = "image",
        flat_field: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.n_rows = n_rows
        self._flat_field = flat_field
        self._context = atomic_path(path, overwrite=overwrite)
        self._temporary = self._context.__enter__()
        self._file = open(self._temporary, "w+b")  # noqa: SIM115  # closed in __exit__
        self._columns: dict[str, Column] = {}
        try:
            primary = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])
            primary.extend([c for c in header.cards if not STRUCTURAL.match(c.keyword)], end=True)
            self._file.write(_header_bytes(primary))
            if form == "image":
                self._lay_out_images(units)
            else:
                self._lay_out_table(units)
        except BaseException:
            # nobody will call __exit__: leave no temporary file behind
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            raise

    def _lay_out_images(self, units: Mapping[str, str]) -> None:
        for name, unit in units.items():
            integer = name in ("dq", "origin")
            head = fits.Header(
                [
                    ("XTENSION", "IMAGE", "Image extension"),
                    ("BITPIX", 32 if integer else -32),
                    ("NAXIS", 2),
                    ("NAXIS1", 1),
                    ("NAXIS2", self.n_rows),
                    ("PCOUNT", 0),
                    ("GCOUNT", 1),
                    ("EXTNAME", name),
                ]
            )
            if unit:
                head["BUNIT"] = unit
            self._file.write(_header_bytes(head))
            self._columns[name] = Column(self._file.tell(), 4, ">i4" if integer else ">f4", unit)
            self._skip(4 * self.n_rows)

    def _lay_out_table(self, units: Mapping[str, str]) -> None:
        width = 4 * len(units)
        head = fits.Header(
            [
                ("XTENSION", "BINTABLE", "binary table extension"),
                ("BITPIX", 8),
                ("NAXIS", 2),
                ("NAXIS1", width),
                ("NAXIS2", self.n_rows),
                ("PCOUNT", 0),
                ("GCOUNT", 1),
                ("TFIELDS", len(units)),
            ]
        )
        for i, (name, unit) in enumerate(units.items(), 1):
            head[f"TTYPE{i}"] = name
            head[f"TFORM{i}"] = "1J" if name in ("dq", "origin") else "1E"
            if unit:
                head[f"TUNIT{i}"] = unit
        self._file.write(_header_bytes(head))
        start = self._file.tell()
        for i, (name, unit) in enumerate(units.items()):
            integer = name in ("dq", "origin")
            self._columns[name] = Column(start + 4 * i, width, ">i4" if integer else ">f4", unit)
        self._skip(width * self.n_rows)

    def _skip(self, n_bytes: int) -> None:
        end = self._file.tell() + -(-n_bytes // _BLOCK) * _BLOCK
        self._file.truncate(end)
        self._file.seek(end)

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write `values` of a column from row `start` on."""
        column = self._columns[name]
        if start < 0 or start + len(values) > self.n_rows:
            raise ValueError(f"rows {start}..{start + len(values)} are outside the {self.n_rows} of the table")
        swapped = np.asarray(values).astype(column.dtype)
        if column.stride == 4:
            self._file.seek(column.offset + 4 * start)
            self._file.write(swapped.data)
            return
        raw = swapped.view(np.uint8).reshape(-1, 4)
        step = max(1, (4 << 20) // column.stride)
        for first in range(0, len(values), step):
            # read, modify, write back whole stretches: one column among the others
            n = min(step, len(values) - first)
            position = column.offset + (start + first) * column.stride
            length = (n - 1) * column.stride + 4
            self._file.seek(position)
            buffer = np.frombuffer(bytearray(self._file.read(length)), np.uint8)
            target = np.lib.stride_tricks.as_strided(buffer, (n, 4), (column.stride, 1))
            target[:] = raw[first : first + n]
            self._file.seek(position)
            self._file.write(buffer.data)

    def __enter__(self) -> PixtableWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._flat_field is not None:
                wave, data = self._flat_field
                table = fits.BinTableHDU.from_columns(
                    [
                        fits.Column("lambda", "1D", unit="Angstrom", array=wave),
                        fits.Column("data", "1D", array=data),
                    ],
                    name=FLAT_FIELD_EXTENSION,
                )
                # astropy puts an empty primary HDU of one block before a table: leave that out
                buffer = io.BytesIO()
                table.writeto(buffer)
                self._file.seek(0, os.SEEK_END)
                self._file.write(buffer.getbuffer()[_BLOCK:])
        finally:
            self._file.close()
            self._context.__exit__(kind, error, trace)


def write_pixtable(
    path: str | os.PathLike[str],
    header: fits.Header,
    columns: Mapping[str, NDArray[Any]],
    units: Mapping[str, str],
    *,
    form: Literal["image", "table"] = "image",
    flat_field: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a pixel table that is in memory; see `PixtableWriter` for the arguments."""
    n_rows = len(columns["xpos"])
    ordered = {name: units.get(name, "") for name in columns}
    with PixtableWriter(
        path, header, n_rows, ordered, form=form, flat_field=flat_field, overwrite=overwrite
    ) as out:
        for name, values in columns.items():
            out.write(name, 0, values)


def set_limits(
    header: fits.Header,
    x: tuple[float, float],
    y: tuple[float, float],
    wave: tuple[float, float],
    ifu: tuple[int, int],
    ccd_slice: tuple[int, int],
) -> None:
    """Write the ``... PIXTABLE LIMITS`` cards, floats rounded as CPL does."""
    for name, limits in (("X", x), ("Y", y), ("LAMBDA", wave)):
        for side, value in zip(("LOW", "HIGH"), limits, strict=True):
            set_card(header, f"{PIXTABLE} LIMITS {name} {side}", float32_card(value))
    for name, numbers in (("IFU", ifu), ("SLICE", ccd_slice)):
        for side, number in zip(("LOW", "HIGH"), numbers, strict=True):
            set_card(header, f"{PIXTABLE} LIMITS {name} {side}", int(number))


def iter_ranges(n_rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` pieces of at most `step` rows."""
    for start in range(0, n_rows, step):
        yield start, min(n_rows, start + step)


def _header_bytes(header: fits.Header) -> bytes:
    return header.tostring(padding=True).encode("ascii")
