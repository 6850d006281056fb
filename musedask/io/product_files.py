"""Files of products: any content of `musedask.io`, with checksums, as the reference and esorex leave them.

The data are swapped, summed and written a band at a time in one pass; ``DATAMD5`` is taken meanwhile.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from .cards import header_bytes
from .checksum import MD5_PERIOD, datamd5, encode, fold, sum_bytes, swap_into
from .files import atomic_path
from .headers import STRUCTURAL
from .muse_image import MuseImage
from .product_headers import card, name_comment, part_cards, unit_comment, utc_now

_BLOCK = 2880
#: bytes that are swapped and written at a time: they stay in the cache
_BAND = 1 << 20
_NO_CHECKSUM = "0" * 16
_MD5 = "MD5 checksum"
_BITPIX = {np.dtype(np.float32): -32, np.dtype(np.int32): 32}
#: comments of tables as CFITSIO writes them
_TABLE_COMMENTS = tuple(
    (re.compile(pattern), comment)
    for pattern, comment in (
        ("XTENSION", "binary table extension"),
        ("BITPIX", "8-bit bytes"),
        ("NAXIS", "2-dimensional binary table"),
        ("NAXIS1", "width of table in bytes"),
        ("NAXIS2", "number of rows in table"),
        ("PCOUNT", "size of special data area"),
        ("GCOUNT", "one data group (required keyword)"),
        ("TFIELDS", "number of fields in each row"),
        (r"TTYPE(\d+)", "label for field {:>3}"),
        (r"TFORM\d+", "data format of field: {}"),
        (r"TUNIT\d+", "physical unit of field"),
    )
)
_FORMS = {"B": "BYTE", "J": "4-byte INTEGER", "E": "4-byte REAL", "D": "8-byte DOUBLE", "A": "ASCII Character"}


@dataclass
class Unit:
    """An HDU that is to be written.

    Attributes
    ----------
    header : astropy.io.fits.Header
        Complete but for checksums.
    data : ndarray of float32 or int32, bytes or None
        Native numbers, or the bytes of the file.
    """

    header: fits.Header
    data: NDArray[Any] | bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of the data without padding."""
        if self.data is None:
            return 0
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes

    @property
    def span(self) -> int:
        """Bytes of the data with padding."""
        return -(-self.size // _BLOCK) * _BLOCK

    def head(self) -> bytes:
        """First bytes of the padded data, as many as `datamd5` takes."""
        if self.data is None:
            return b""
        if isinstance(self.data, bytes):
            start = self.data[:MD5_PERIOD]
        else:
            start = _words(self.data)[: MD5_PERIOD // 4].astype(">u4").tobytes()
        return start.ljust(min(MD5_PERIOD, self.span), b"\0")


def write_product(
    path: str | os.PathLike[str],
    content: Any,
    header: fits.Header,
    *,
    overwrite: bool = False,
    checksums: bool = True,
) -> Path:
    """Write a product.

    Parameters
    ----------
    path : path-like
    content : object
        `MuseImage`, a table class of `musedask.io` (`TraceTable`, `TraceSamples`, `WavecalTable`, ...), an HDU of
        astropy, or an array of float32 or int32 of two axes, which becomes the image of the primary HDU.
    header : astropy.io.fits.Header
        Cards of the primary HDU; those of the structure are left out.
    overwrite : bool
    checksums : bool
        Whether to write ``DATAMD5``, ``CHECKSUM`` and ``DATASUM``.

    Raises
    ------
    InputError
        If there is no file format for the content, or its parts do not fit each other.
    OutputExistsError, PlanError
        If the file exists, or the disk is full.
    """
    path = Path(path)
    units = layout(content, header, checksums)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "r+b", buffering=0) as file:
        _write(file.fileno(), units, checksums)
    return path


def layout(content: Any, header: fits.Header, checksums: bool = True) -> list[Unit]:
    """HDUs of a product; parameters and errors as in `write_product`."""
    if isinstance(content, MuseImage):
        return [_primary(header, checksums), *_image_units(content)]
    if isinstance(content, np.ndarray):
        return [_primary(header, checksums, _pixels(content))]
    if isinstance(content, fits.BinTableHDU | fits.ImageHDU):
        return [_primary(header, checksums, bitpix=16), _foreign(content)]
    make = _table_makers().get(type(content).__name__)
    if make is None:
        raise InputError(f"a product of type {type(content).__name__} found, for which there is no file format")
    return [_primary(header, checksums, bitpix=16), _foreign(make(content))]


def _table_makers() -> dict[str, Callable[[Any], fits.BinTableHDU]]:
    """What makes the extension of a table, by class."""
    from . import calibrations

    return {
        "TraceTable": calibrations.trace_hdu,
        "TraceSamples": calibrations.trace_samples_hdu,
        "WavecalTable": calibrations.wavecal_hdu,
        "WavecalResiduals": calibrations.wavecal_residuals_hdu,
        "LsfProfile": calibrations.lsf_hdu,
    }


def _pixels(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim != 2 or values.dtype not in _BITPIX:
        raise InputError(
            f"image of shape {values.shape} and type {values.dtype} found, expected two axes of float32 or int32"
        )
    return values


def _structure(data: NDArray[Any] | None, bitpix: int = 8) -> list[tuple[str, Any, str]]:
    shape = () if data is None else data.shape
    return [
        ("BITPIX", bitpix if data is None else _BITPIX[data.dtype], "number of bits per data pixel"),
        ("NAXIS", len(shape), "number of data axes"),
        *((f"NAXIS{i}", n, f"length of data axis {i}") for i, n in enumerate(shape[::-1], 1)),
    ]


def _primary(cards: fits.Header, checksums: bool, data: NDArray[Any] | None = None, bitpix: int = 8) -> Unit:
    header = fits.Header(
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            *_structure(data, bitpix),
            ("EXTEND", True, "FITS dataset may contain extensions"),
        ]
    )
    for c in cards.cards:
        if c.keyword == "PIPEFILE" and checksums:
            header.append(fits.Card("DATAMD5", "0" * 32, _MD5), end=True)
        if not STRUCTURAL.match(c.keyword) and c.keyword != "DATAMD5":
            header.append(c, end=True)
    if checksums and "DATAMD5" not in header:
        header.append(fits.Card("DATAMD5", "0" * 32, _MD5), end=True)
    return Unit(header, data)


def _image_units(image: MuseImage, prefix: str = "") -> list[Unit]:
    parts = image.parts()
    units = []
    for name, part in parts.items():
        header = fits.Header(
            [
                ("XTENSION", "IMAGE", "IMAGE extension"),
                *_structure(part),
                ("PCOUNT", 0, "required keyword; must = 0"),
                ("GCOUNT", 1, "required keyword; must = 1"),
                ("INHERIT", True),
                ("EXTNAME", prefix + name, name_comment(name)),
            ]
        )
        for entry in part_cards(name, list(parts), prefix):
            header.append(card(*entry), end=True)
        if name == "DATA":
            header.append(card("BUNIT", image.unit, unit_comment(image.unit)), end=True)
        elif name == "STAT":
            header.append(card("BUNIT", f"({image.unit})**2"), end=True)
        units.append(Unit(header, part))
    return units


def _foreign(hdu: fits.BinTableHDU | fits.ImageHDU) -> Unit:
    """Take an extension of astropy as bytes."""
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    buffer.seek(0)
    fits.Header.fromfile(buffer)
    header = fits.Header.fromfile(buffer)
    for keyword in list(header) if isinstance(hdu, fits.BinTableHDU) else ():
        for pattern, comment in _TABLE_COMMENTS:
            if match := pattern.fullmatch(keyword):
                kind = _FORMS.get(str(header[keyword])[-1:], "") if keyword.startswith("TFORM") else ""
                header.comments[keyword] = comment.format(*match.groups(), kind)
    return Unit(header, buffer.getvalue()[buffer.tell() :])


# --- writing ---------------------------------------------------------------------------------------


def _write(file: int, units: Sequence[Unit], checksums: bool) -> None:
    stamp = utc_now()
    comments = (f"HDU checksum updated {stamp}", f"data unit checksum updated {stamp}")
    if checksums:
        for unit in units:
            unit.header["CHECKSUM"] = (_NO_CHECKSUM, comments[0])
            unit.header["DATASUM"] = ("0", comments[1])
    headers = [bytearray(header_bytes(unit.header)) for unit in units]
    end = sum(map(len, headers)) + sum(unit.span for unit in units)
    # claim the space at once: a full disk shows now
    os.posix_fallocate(file, 0, end)
    with ThreadPoolExecutor(1) as pool:
        md5 = pool.submit(datamd5, [(unit.head(), unit.span) for unit in units]) if checksums else None
        start, starts, totals = 0, [], []
        for unit, header in zip(units, headers, strict=True):
            starts.append(start)
            totals.append(_put_data(file, unit, start + len(header)))
            start += len(header) + unit.span
        if md5 is not None:
            _set(headers[0], "DATAMD5", md5.result(), _MD5)
    for header, start, total in zip(headers, starts, totals, strict=True):
        if checksums:
            # as CFITSIO writes it, to whom no data are a number
            _set(header, "DATASUM", str(total) if total else f"{0:10}", comments[1])
            _set(header, "CHECKSUM", encode(fold(sum_bytes(bytes(header)) + total)), comments[0])
        _put(file, header, start)


def _set(header: bytearray, keyword: str, value: str, comment: str) -> None:
    """Change a card of a header that is a text already: to make it anew for each checksum takes longer."""
    name = f"{keyword:8}=".encode()
    place = next(i for i in range(0, len(header), 80) if header.startswith(name, i))
    header[place : place + 80] = str(fits.Card(keyword, value, comment)).encode("ascii")


def _words(data: NDArray[Any]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint32)


def _put_data(file: int, unit: Unit, offset: int) -> int:
    """Write the data of a unit, which needs no padding in a file that is all zero; returns their sum."""
    if unit.data is None:
        return 0
    if isinstance(unit.data, bytes):
        _put(file, unit.data, offset)
        return sum_bytes(unit.data.ljust(unit.span, b"\0"))
    words = _words(unit.data)
    out = np.empty(min(_BAND // 4, words.size), np.uint32)
    total = 0
    for i in range(0, words.size, _BAND // 4):
        part = words[i : i + _BAND // 4]
        total += int(swap_into(part, out[: part.size]))
        _put(file, out[: part.size].view(np.uint8), offset + 4 * i)
    return fold(total)


def _put(file: int, content: Any, offset: int) -> None:
    view = memoryview(content)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
