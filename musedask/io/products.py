"""Headers and tables of calibration files, as far as all formats share them.

Tables that belong to one IFU say so by ``EXTNAME = CHANnn`` in the primary header; static ones must have
neither that nor ``PIPEFILE``, or the reference does not find them.  Files in which the tables of several
IFUs were merged (``--merge``: one extension ``CHANnn`` each) are read when the IFU is named.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from .._version import __version__
from ..errors import InputError
from ..instrument import N_IFUS
from .files import atomic_path
from .headers import STRUCTURAL, append_cards, remove_cards, set_card

PathLike = str | os.PathLike[str]
FloatArray = NDArray[np.float64]
T = TypeVar("T")

ANGSTROM = "Angstrom"


# --- headers of products ---------------------------------------------------------------------------


def product_header(
    tag: str,
    *,
    ifu: int | None = None,
    inherit: fits.Header | None = None,
    cards: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    raws: Sequence[tuple[str, str]] = (),
    calibrations: Sequence[tuple[str, str]] = (),
) -> fits.Header:
    """Primary header of a calibration file.

    Parameters
    ----------
    tag : str
        ``ESO PRO CATG``.
    ifu : int, optional
        IFU that the file belongs to: becomes ``EXTNAME``.
    inherit : astropy.io.fits.Header, optional
        Header of the exposure that a product was made of; its cards about the structure of the file and
        its ``ESO PRO`` cards are left out.
    cards : mapping, optional
        Further cards: value, or (value, comment).
    recipe : str, optional
        Recipe whose product this claims to be; adds the ``ESO PRO REC1`` cards of a product.
    raws, calibrations : sequence of (str, str)
        Names and tags of the files that went into a product.

    Returns
    -------
    astropy.io.fits.Header
        Without ``PIPEFILE``, which the writer of a product adds: a static calibration must not have it.

    Raises
    ------
    InputError
        If the IFU is not 1..24.
    """
    header = fits.Header()
    if inherit is not None:
        append_cards(header, [[c.keyword, c.value, c.comment] for c in inherit.cards])
        remove_cards(header, STRUCTURAL)
        remove_cards(header, r"^(ESO PRO .*|EXTNAME|COMMENT|HISTORY|INHERIT|BUNIT|PIPEFILE|DATAMD5|)$")
    if "INSTRUME" not in header:
        header["INSTRUME"] = ("MUSE", "Instrument used.")
    if ifu is not None:
        header["EXTNAME"] = (channel(ifu), "Detector name")
    set_card(header, "ESO PRO CATG", tag, "Category of pipeline product frame")
    if recipe is not None:
        set_card(header, "ESO PRO DID", "PRO-1.16", "Data dictionary for PRO")
        set_card(header, "ESO PRO TYPE", "REDUCED", "Product type")
        set_card(header, "ESO PRO TECH", "IFU", "Observation technique")
        set_card(header, "ESO PRO SCIENCE", recipe.startswith("muse_sci"), "Scientific product if T")
        set_card(header, "ESO PRO DATANCOM", len(raws), "Number of combined frames")
        set_card(header, "ESO PRO REC1 ID", recipe, "Pipeline recipe (unique) identifier")
        set_card(header, "ESO PRO REC1 DRS ID", "musedask", "Data Reduction System identifier")
        set_card(header, "ESO PRO REC1 PIPE ID", f"musedask/{__version__}", "Pipeline (unique) identifier")
        for kind, files in (("RAW", raws), ("CAL", calibrations)):
            for i, (name, category) in enumerate(files, 1):
                set_card(header, f"ESO PRO REC1 {kind}{i} NAME", name, "File name")
                set_card(header, f"ESO PRO REC1 {kind}{i} CATG", category, "Category of frame")
    for keyword, value in (cards or {}).items():
        pair = value if isinstance(value, tuple) else (value, None)
        set_card(header, keyword, *pair)
    return header


def channel(ifu: int) -> str:
    """Name of the extension of an IFU.

    Raises
    ------
    InputError
        If the IFU is not 1..24.
    """
    if isinstance(ifu, bool) or not isinstance(ifu, int | np.integer) or not 1 <= ifu <= N_IFUS:
        raise InputError(f"IFU {ifu!r} found, expected 1..{N_IFUS}")
    return f"CHAN{ifu:02d}"


def channel_number(name: str | None) -> int | None:
    """IFU that an ``EXTNAME`` stands for, or None."""
    match = re.match(r"^CHAN(\d\d)", str(name or "").strip())
    return int(match[1]) if match else None


# --- tables in general -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column: name and unit in the file, FITS type (B J E D A), attribute of the class."""

    name: str
    kind: str
    unit: str = ""
    key: str = ""
    optional: bool = False


def bintable(columns: Sequence[tuple[Column, Any]], name: str | None = None) -> fits.BinTableHDU:
    made = []
    for column, values in columns:
        unit = column.unit or None
        if column.kind == "A":
            texts = [str(v) for v in values]
            width = max([1, *(len(t) for t in texts)])
            made.append(fits.Column(column.name, f"{width}A", unit=unit, array=np.array(texts, f"S{width}")))
        else:
            dtype = {"B": np.uint8, "J": np.int32, "E": np.float32, "D": np.float64}[column.kind]
            made.append(fits.Column(column.name, f"1{column.kind}", unit=unit, array=np.asarray(values, dtype)))
    # as BinTableHDU.from_columns does, which loads astropy.table for it
    hdu = fits.BinTableHDU()
    hdu.data = fits.FITS_rec.from_columns(fits.ColDefs(made))
    if name is not None:
        hdu.header["EXTNAME"] = name
    return hdu


def columns_of(columns: Sequence[Column], values: Any, name: str | None = None) -> fits.BinTableHDU:
    """Table of the attributes of an object; optional ones that are None are left out."""
    pairs = [(c, getattr(values, c.key)) for c in columns]
    return bintable([(c, v) for c, v in pairs if not (c.optional and v is None)], name)


def write_tables(path: PathLike, header: fits.Header, hdus: Sequence[Any], overwrite: bool) -> Path:
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary, warnings.catch_warnings():
        # comments that do not fit are cut
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        fits.HDUList([fits.PrimaryHDU(header=header), *hdus]).writeto(temporary, overwrite=True)
    return path


@contextmanager
def open_fits(path: PathLike) -> Iterator[fits.HDUList]:
    """Open a FITS file; everything that is wrong with it becomes an `InputError` that names it."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with fits.open(path, memmap=False) as hdus:
            yield hdus
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error


def find_table(
    hdus: fits.HDUList, path: Path, ifu: int | None, tag: str
) -> tuple[fits.BinTableHDU, fits.Header]:
    """Find the table of an IFU in a file of its own or in a merged one, with the header that belongs to it.

    Raises
    ------
    InputError
        If the file has no table, that of another IFU, or several and none was asked for.
    """
    header = hdus[0].header.copy()
    tables = [hdu for hdu in hdus[1:] if isinstance(hdu, fits.BinTableHDU)]
    if not tables:
        raise InputError(f"{path}: there is no table; not a {tag}")
    own = channel_number(header.get("EXTNAME"))
    merged = {channel_number(hdu.header.get("EXTNAME")): hdu for hdu in reversed(tables)}
    merged.pop(None, None)
    if ifu is not None:
        channel(ifu)
        if ifu in merged:
            append_cards(header, [[c.keyword, c.value, c.comment] for c in merged[ifu].header["ESO *"].cards])
            header["EXTNAME"] = channel(ifu)
            return merged[ifu], header
        if merged or own not in (None, ifu):
            found = ", ".join(channel(i) for i in sorted(i for i in merged if i)) or channel(own or 0)
            raise InputError(f"{path}: there is no table of IFU {ifu}; it has {found}")
    elif len(merged) > 1:
        raise InputError(f"{path}: the tables of {len(merged)} IFUs found; say which IFU")
    return tables[0], header


def get_column(path: Path, hdu: fits.BinTableHDU, column: Column) -> Any:
    """Values of a column as arrays of the type that the format says."""
    extension = str(hdu.header.get("EXTNAME", "")).strip() or "table"
    label = f"{path}[{extension}]"
    if hdu.header.get("ZTABLE"):
        raise InputError(f"{label}: a compressed table found, which cannot be read; uncompress it with funpack")
    names = hdu.columns.names
    if column.name not in names:
        if column.optional:
            return None
        raise InputError(f"{label}: there is no column {column.name}; it has {', '.join(names) or 'none'}")
    values = np.asarray(hdu.data[column.name])
    if (values.dtype.kind in "SU") != (column.kind == "A") or values.dtype.kind not in "SUiufb":
        expected = "text" if column.kind == "A" else "numbers"
        raise InputError(f"{label}: column {column.name} has {values.dtype}, expected {expected}")
    if column.kind == "A":
        return np.array([str(v).rstrip() for v in values], np.str_)
    return values.astype({"B": np.uint8, "J": np.int32, "E": np.float64, "D": np.float64}[column.kind])


def read_as(cls: type[T], path: Path, hdu: fits.BinTableHDU, columns: Sequence[Column], **more: Any) -> T:
    return cls(**{c.key: get_column(path, hdu, c) for c in columns}, **more)


def same_length(name: str, values: Any) -> None:
    lengths = {f.name: len(v) for f in fields(values) if isinstance(v := getattr(values, f.name), np.ndarray)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{name}: columns of different length: {lengths}")


def checked_array(values: ArrayLike, shape: tuple[int | None, ...], what: str) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        expected = " x ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{what}: shape {array.shape} found, expected {expected}")
    return array
