"""What a file says, as one short text: equal contents have equal fingerprints, wherever and whenever they were written.

Of FITS files the cards about the act of writing (``DATE``, checksums and their times) do not count, so that a
product that was made anew from the same input has the same fingerprint.  Of a file of several IFUs only the primary
HDU and those of the IFU in question are read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from ..errors import InputError

_BLOCK = 2880
_CARD = 80
#: bytes that are read at a time: they stay in the cache, and their memory is used again
_PIECE = 1 << 18
#: cards that tell when a file was written, not what is in it
_VOLATILE = (b"DATE    ", b"CHECKSUM", b"DATASUM ", b"ZHECKSUM", b"ZDATASUM")
_CHANNEL = re.compile(r"^CHAN(\d\d)")

_known: dict[tuple[str, int, int, int | None], Fingerprint] = {}


@dataclass(frozen=True)
class Fingerprint:
    """Content of a file.

    Attributes
    ----------
    checksum : str
        32 hexadecimal digits: BLAKE2 of the headers, and of the CRC-32C of each data unit.
    scope : str
        ``file``, or the ``CHANnn`` that was looked at.
    size : int
        [bytes]
    mtime_ns : int
        Time of the last change.
    """

    checksum: str
    scope: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Hdu:
    header: bytes
    #: place and size of the data with padding
    start: int
    span: int
    ifu: int | None


def fingerprint(path: str | os.PathLike[str], ifu: int | None = None) -> Fingerprint:
    """Fingerprint of a file; kept in memory as long as its size and time do not change.

    Parameters
    ----------
    path : path-like
    ifu : int, optional
        IFU in question: if the file has extensions of several, others do not count.

    Raises
    ------
    InputError
        If it cannot be read, or a FITS file is truncated.
    """
    path = Path(path)
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            key = (os.fspath(path.absolute()), status.st_size, status.st_mtime_ns, ifu)
            if key not in _known:
                _known[key] = _read(path, file, status, ifu)
            return _known[key]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def remember(path: str | os.PathLike[str], ifu: int | None, found: Fingerprint) -> None:
    """Take a fingerprint that was made elsewhere as known, as long as size and time of the file stay the same."""
    _known.setdefault((os.path.abspath(path), found.size, found.mtime_ns, ifu), found)


def check_complete(path: str | os.PathLike[str], *, checksums: bool = False) -> None:
    """Check that a FITS file has all its bytes.

    Parameters
    ----------
    path : path-like
    checksums : bool
        Whether every HDU must have a ``CHECKSUM``, which esorex adds when a product is complete.

    Raises
    ------
    InputError
        If it is no FITS file, or truncated, or has no checksums.
    """
    path = Path(path)
    with open(path, "rb", buffering=0) as file:
        if not _is_fits(file):
            raise InputError(f"{path}: is no FITS file")
        for number, hdu in enumerate(_hdus(path, file, os.fstat(file.fileno()).st_size)):
            if checksums and not any(c[:8] == b"CHECKSUM" for c in _cards(hdu.header)):
                raise InputError(f"{path}: HDU {number} has no CHECKSUM, it is not complete")


def _read(path: Path, file: BinaryIO, status: os.stat_result, ifu: int | None) -> Fingerprint:
    digest = hashlib.blake2b(digest_size=16)
    scope = "file"
    if not _is_fits(file):
        _add(digest, file, 0, status.st_size)
    else:
        hdus = _wanted(path, file, status.st_size, ifu)
        if ifu is not None and any(hdu.ifu == ifu for hdu in hdus[1:]) and {h.ifu for h in hdus[1:]} - {None, ifu}:
            hdus = [hdus[0], *(hdu for hdu in hdus[1:] if hdu.ifu in (None, ifu))]
            scope = f"CHAN{ifu:02d}"
        for hdu in hdus:
            for card in _cards(hdu.header):
                if card[:8] not in _VOLATILE:
                    digest.update(card)
            _add(digest, file, hdu.start, hdu.span)
    return Fingerprint(digest.hexdigest(), scope, status.st_size, status.st_mtime_ns)


def _wanted(path: Path, file: BinaryIO, size: int, ifu: int | None) -> list[_Hdu]:
    """HDUs of a file; that it is truncated behind those of the IFU in question does no harm."""
    found = []
    try:
        for hdu in _hdus(path, file, size):
            found.append(hdu)  # noqa: PERF402
    except InputError:
        if ifu is None or not any(hdu.ifu == ifu for hdu in found[1:]):
            raise
    return found


def _is_fits(file: BinaryIO) -> bool:
    return os.pread(file.fileno(), 9, 0) == b"SIMPLE  ="


def _add(digest: hashlib.blake2b, file: BinaryIO, start: int, size: int) -> None:
    """Add the CRC of a range of bytes, which takes a tenth of the time of a cryptographic sum."""
    crc, end = 0, start + size
    digest.update(size.to_bytes(8, "big"))
    while start < end:
        piece = os.pread(file.fileno(), min(_PIECE, end - start), start)
        if not piece:
            break
        crc = google_crc32c.extend(crc, piece)
        start += len(piece)
    digest.update(crc.to_bytes(4, "big"))


def _cards(header: bytes) -> Iterator[bytes]:
    for i in range(0, len(header), _CARD):
        card = header[i : i + _CARD]
        if card[:8] == b"END     ":
            return
        yield card


def _hdus(path: Path, file: BinaryIO, size: int) -> Iterator[_Hdu]:
    """HDUs of a FITS file, without looking at their data."""
    place = number = 0
    while place < size:
        start, header, block = place, b"", b""
        while not any(block[i : i + 8] == b"END     " for i in range(0, len(block), _CARD)):
            block = os.pread(file.fileno(), _BLOCK, place)
            if len(block) < _BLOCK:
                raise InputError(f"{path}: is truncated in the header of HDU {number}")
            if not header and number and block[:8] != b"XTENSION":
                # whatever follows the last HDU
                return
            header += block
            place += _BLOCK
        hdu = _hdu(header, place)
        place = hdu.start + hdu.span
        if place > size:
            raise InputError(
                f"{path}: is truncated, {size} bytes found, {place} expected up to the end of HDU {number}"
            )
        assert place > start
        number += 1
        yield hdu


def _hdu(header: bytes, start: int) -> _Hdu:
    values: dict[str, str] = {}
    for card in _cards(header):
        if card[8:10] == b"= ":
            values.setdefault(card[:8].decode("ascii", "replace").rstrip(), card[10:].decode("ascii", "replace"))

    def number(keyword: str, default: int) -> int:
        text = values.get(keyword, "").split("/")[0].strip()
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else default

    axes = [number(f"NAXIS{i}", 0) for i in range(1, number("NAXIS", 0) + 1)]
    count = 1 if axes else 0
    for n in axes:
        count *= n
    size = abs(number("BITPIX", 8)) // 8 * number("GCOUNT", 1) * (number("PCOUNT", 0) + count)
    name = re.match(r"\s*'([^']*)'", values.get("EXTNAME", ""))
    channel = _CHANNEL.match(name[1]) if name else None
    return _Hdu(header, start, -(-size // _BLOCK) * _BLOCK, int(channel[1]) if channel else None)
