"""Raw exposures: one file, one 16-bit image for each IFU, written by many processes, read one by one.

The layout is that of formats of the reference pipeline, section 1: a primary header with the cards of
the exposure, then extensions ``CHANnn`` in any order, unsigned 16-bit numbers as signed ones with
``BZERO = 32768``, plain (``.fits``) or tile-compressed (``.fits.fz``, FITS standard 4.0, section 10).
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..compute import format_bytes
from ..errors import ComputeError, InputError, PlanError
from ..instrument import N_IFUS
from .cards import header_bytes
from .checksum import encode, fold, sum_bytes
from .files import atomic_path, check_output
from .headers import STRUCTURAL, set_card

#: rows and columns of an image as it is read from a detector
RAW_SHAPE = (4240, 4224)

_BLOCK = 2880
_CHANNEL = re.compile(r"CHAN(\d\d)")
#: space that a compressed file is expected to need, relative to a plain one: noise of the read-out alone
#: takes 0.26, bright flats take 0.6
_COMPRESSED = 0.6


@dataclass(frozen=True)
class RawUnit:
    """The place of one IFU in a file that is being written; it can be sent to another process.

    Attributes
    ----------
    ifu : int
    path : str
        Name that the file will have, for messages.
    target : str
        Temporary file, or for compressed ones the file of this part.
    offset : int
        Where its HDU starts in `target`.
    header : astropy.io.fits.Header
        Complete but for the checksums (and for compressed ones, for the cards of the table).
    shape : tuple of int
        Rows and columns of the image.
    compress : bool
    """

    ifu: int
    path: str
    target: str
    offset: int
    header: fits.Header
    shape: tuple[int, int]
    compress: bool

    def write(self, image: NDArray[np.uint16]) -> None:
        """Write the image; to do so twice does no harm.

        Parameters
        ----------
        image : ndarray of uint16, shape `shape`
            [adu]

        Raises
        ------
        InputError
            If the image is of another shape or type, or the file is no longer being written.
        PlanError
            If the disk is full.
        """
        image = np.asarray(image)
        if image.shape != self.shape or image.dtype != np.uint16:
            raise InputError(
                f"{self.path}: image of IFU {self.ifu} of shape {image.shape} and type {image.dtype} found, "
                f"expected {self.shape} and uint16"
            )
        try:
            if self.compress:
                self._write_part(image)
            else:
                self._write_plain(image)
        except FileNotFoundError:
            raise InputError(
                f"{self.path}: image of IFU {self.ifu} comes too late, the file is not being written any more"
            ) from None
        except OSError as error:
            raise _explained(error, self.path) from error

    def _write_plain(self, image: NDArray[np.uint16]) -> None:
        stored = np.empty(-(-image.size * 2 // _BLOCK) * _BLOCK // 2, np.uint16)
        datasum = fold(int(_store(np.ascontiguousarray(image).reshape(-1), stored)))
        file = os.open(self.target, os.O_WRONLY)
        try:
            header = _signed(self.header, datasum)
            _put(file, stored.view(np.uint8), self.offset + len(header))
            # the header comes last: where there is one, the data are there, too
            _put(file, header, self.offset)
        finally:
            os.close(file)

    def _write_part(self, image: NDArray[np.uint16]) -> None:
        buffer = io.BytesIO()
        hdu = fits.CompImageHDU(image, compression_type="RICE_1")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
        buffer.seek(0)
        fits.Header.fromfile(buffer)
        header = fits.Header.fromfile(buffer)
        del header["EXTNAME"]
        header.extend(self.header.cards, end=True, bottom=True)
        data = buffer.getbuffer()[buffer.tell() :]
        whole = _signed(header, sum_bytes(bytes(data)))
        handle, name = tempfile.mkstemp(dir=Path(self.target).parent)
        try:
            _put(handle, whole, 0)
            _put(handle, data, len(whole))
            os.replace(name, self.target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


class RawWriter:
    """A raw file that is laid out first, filled by many hands, and appears when it is whole.

    Use as a context: on an error nothing is left.  ``units[ifu].write(image)`` may be called in any
    process that sees the same disk, in any order.

    Parameters
    ----------
    path : path-like
        File to write, ``.fits`` or ``.fits.fz``.
    primary : astropy.io.fits.Header
        Cards of the exposure; those of the structure are left out.
    extensions : sequence of astropy.io.fits.Header
        One for each IFU in the order of the file, ``EXTNAME`` is ``CHANnn``.
    compress : bool, optional
        Whether to compress; by default according to the name.
    overwrite : bool
        Whether an existing file may be replaced.
    shape : tuple of int
        Rows and columns of the images.

    Attributes
    ----------
    path : Path
    units : dict of int to RawUnit
        By number of the IFU, in the order of the file.

    Raises
    ------
    OutputExistsError
        If the file exists and `overwrite` is false.
    InputError
        If its folder is missing or cannot be written to, or an extension's name is wrong or twice there.
    PlanError
        If the disk has no room for it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        primary: fits.Header,
        extensions: Sequence[fits.Header],
        *,
        compress: bool | None = None,
        overwrite: bool = False,
        shape: tuple[int, int] = RAW_SHAPE,
    ) -> None:
        self.path = check_output(path, overwrite=overwrite)
        self.compress = self.path.suffix == ".fz" if compress is None else compress
        if self.compress != (self.path.suffix == ".fz"):
            raise InputError(
                f"{self.path}: expected a name that ends in .fits.fz if the file is compressed, and only then"
            )
        self._primary = _primary(primary)
        ifus = [_ifu(header, self.path) for header in extensions]
        if not ifus or len(set(ifus)) != len(ifus):
            raise InputError(f"{self.path}: extensions for IFUs {ifus} found, expected one for each IFU")
        headers = [_cards(header) if self.compress else _image(header, shape) for header in extensions]
        offsets = [len(_signed(self._primary, 0))]
        for header in headers:
            span = 0 if self.compress else len(_signed(header, 0)) + -(-2 * shape[0] * shape[1] // _BLOCK) * _BLOCK
            offsets.append(offsets[-1] + span)
        size = offsets[-1]
        needed = int(_COMPRESSED * 2 * shape[0] * shape[1] * len(ifus)) if self.compress else size
        free = shutil.disk_usage(self.path.absolute().parent).free
        if needed > free:
            raise PlanError(
                f"{self.path}: {format_bytes(needed)} are needed on this disk, {format_bytes(free)} are free"
            )
        self._parts: Path | None = None
        self._manager = atomic_path(self.path, overwrite=overwrite)
        self._temporary = self._manager.__enter__()
        try:
            if self.compress:
                self._parts = self._temporary.with_name(self._temporary.name + "s")
                self._parts.mkdir()
            else:
                _claim(self._temporary, size)
        except BaseException as error:
            self.abort(error)
            raise
        self.units = {
            ifu: RawUnit(
                ifu,
                os.fspath(self.path),
                os.fspath(self._parts / f"CHAN{ifu:02d}" if self._parts else self._temporary),
                0 if self._parts else offset,
                header,
                shape,
                self.compress,
            )
            for ifu, offset, header in zip(ifus, offsets, headers, strict=False)
        }

    def finish(self) -> Path:
        """Check that all images are there, and give the file its name.

        Raises
        ------
        ComputeError
            If images are missing; nothing is kept then.
        PlanError
            If the disk is full.
        """
        try:
            missing = [ifu for ifu, unit in self.units.items() if not self._is_written(unit)]
            if missing:
                raise ComputeError(f"{self.path}: the images of IFUs {missing} were not written; nothing was kept")
            with open(self._temporary, "r+b", buffering=0) as file:
                _put(file.fileno(), _signed(self._primary, 0), 0)
                if self._parts:
                    file.seek(0, os.SEEK_END)
                    for unit in self.units.values():
                        with open(unit.target, "rb") as part:
                            shutil.copyfileobj(part, file, 1 << 20)
                        # the room of one part is enough to join them
                        os.unlink(unit.target)
        except BaseException as error:
            self.abort(error)
            raise
        self._remove_parts()
        self._manager.__exit__(None, None, None)
        return self.path

    def abort(self, error: BaseException | None = None) -> None:
        """Remove what was written.

        Parameters
        ----------
        error : BaseException, optional
            Why; a full disk is explained in a `PlanError`.
        """
        self._remove_parts()
        reason = error or ComputeError(f"{self.path}: given up")
        try:
            self._manager.__exit__(type(reason), reason, reason.__traceback__)
        except BaseException as raised:
            if raised is not reason:
                raise

    def _remove_parts(self) -> None:
        if self._parts:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _is_written(self, unit: RawUnit) -> bool:
        try:
            with open(unit.target, "rb") as file:
                file.seek(unit.offset)
                return file.read(8) == b"XTENSION"
        except FileNotFoundError:
            return False

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort(error)


def write_raw(
    path: str | os.PathLike[str],
    primary: fits.Header,
    images: Sequence[tuple[fits.Header, NDArray[np.uint16]]],
    *,
    compress: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a raw file of images that are all at hand; see `RawWriter` for parameters and errors.

    Parameters
    ----------
    images : sequence of (astropy.io.fits.Header, ndarray of uint16)
        Header and image of each extension.
    """
    shapes = {np.shape(image) for _, image in images}
    if len(shapes) != 1:
        raise InputError(f"{path}: images of shapes {sorted(shapes)} found, expected at least one, all of one shape")
    ny, nx = shapes.pop()
    headers = [header for header, _ in images]
    with RawWriter(path, primary, headers, compress=compress, overwrite=overwrite, shape=(ny, nx)) as writer:
        for unit, (_, image) in zip(writer.units.values(), images, strict=True):
            unit.write(image)
    return writer.path


def list_ifus(path: str | os.PathLike[str]) -> list[int]:
    """Numbers of the IFUs that have an image in a raw file, in the order of the file.

    Raises
    ------
    InputError
        If it is no raw file, or truncated.
    """
    with _opened(path) as hdus:
        found = [
            number for hdu in hdus if (number := _channel(hdu.header)) is not None and hdu.header.get("NAXIS") == 2
        ]
        _check_end(path, hdus)
    if not found:
        raise InputError(f"{path}: is no raw file of MUSE, no image extension CHANnn found")
    return list(dict.fromkeys(found))


def read_raw(
    path: str | os.PathLike[str], ifu: int, *, merge: bool = False
) -> tuple[fits.Header, NDArray[np.uint16]]:
    """Read the image of one IFU from a raw file, plain or tile-compressed.

    It is the first HDU whose ``EXTNAME`` is ``CHANnn``; that may be the primary one.

    Parameters
    ----------
    path : path-like
    ifu : int
        1..24
    merge : bool
        Whether to return the cards of the primary header together with those of the extension, which win.

    Returns
    -------
    header : astropy.io.fits.Header
        Of the extension, without the cards of the compression.  If merged, without cards of the
        structure.
    image : ndarray of uint16, shape (4240, 4224)
        [adu]

    Raises
    ------
    InputError
        If it is no raw file, has no image of this IFU, or is truncated.
    """
    if not 1 <= ifu <= N_IFUS:
        raise InputError(f"IFU {ifu} found, expected 1 to {N_IFUS}")
    with _opened(path) as hdus:
        for hdu in hdus:
            if _channel(hdu.header) == ifu:
                break
        else:
            _check_end(path, hdus)
            found = [number for hdu in hdus if (number := _channel(hdu.header)) is not None]
            if not found:
                raise InputError(f"{path}: is no raw file of MUSE, no extension CHANnn found")
            raise InputError(f"{path}: IFU {ifu} is not in it, IFUs {found} are")
        if hdu.header.get("NAXIS") != 2:
            raise InputError(f"{path}: CHAN{ifu:02d} has no image (CHIP LIVE {hdu.header.get('ESO DET CHIP LIVE')})")
        _check_end(path, [hdu])
        try:
            with warnings.catch_warnings():
                # a damaged file is told below, once
                warnings.simplefilter("ignore", fits.verify.VerifyWarning)
                image = hdu.data
        except Exception as error:  # codecs fail in many ways
            raise InputError(f"{path}: image of CHAN{ifu:02d} cannot be read: {error}") from error
        if image.dtype != np.uint16:
            raise InputError(f"{path}: CHAN{ifu:02d} of type {image.dtype} found, expected unsigned 16-bit numbers")
        header = hdu.header.copy()
        if merge:
            header = _merged(hdus[0].header, header)
        return header, np.ascontiguousarray(image)


# ------------------------------------------------------------------------------ headers


def _ifu(header: fits.Header, path: Path) -> int:
    ifu = _channel(header)
    if ifu is None or not 1 <= ifu <= N_IFUS:
        raise InputError(f"{path}: EXTNAME {header.get('EXTNAME')!r} found, expected CHAN01 to CHAN{N_IFUS}")
    return ifu


def _channel(header: fits.Header) -> int | None:
    """Number of the IFU of an HDU, None if it is not that of one."""
    match = _CHANNEL.match(str(header.get("EXTNAME", "")))
    return int(match[1]) if match else None


def _cards(header: fits.Header, start: Sequence[tuple[Any, ...]] = ()) -> fits.Header:
    """Given cards, then those of a header but for its structure."""
    out = fits.Header(list(start))
    out.extend((card for card in header.cards if not STRUCTURAL.match(card.keyword)), end=True, bottom=True)
    return out


def _primary(header: fits.Header) -> fits.Header:
    return _cards(
        header,
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            ("BITPIX", 8, "number of bits per data pixel"),
            ("NAXIS", 0, "number of data axes"),
            ("EXTEND", True, "FITS dataset may contain extensions"),
        ],
    )


def _image(header: fits.Header, shape: tuple[int, int]) -> fits.Header:
    return _cards(
        header,
        [
            ("XTENSION", "IMAGE", "IMAGE extension"),
            ("BITPIX", 16, "number of bits per data pixel"),
            ("NAXIS", 2, "number of data axes"),
            ("NAXIS1", shape[1], "length of data axis 1"),
            ("NAXIS2", shape[0], "length of data axis 2"),
            ("PCOUNT", 0, "required keyword; must = 0"),
            ("GCOUNT", 1, "required keyword; must = 1"),
            ("BZERO", 32768, "data are unsigned numbers"),
            ("BSCALE", 1, "default scaling factor"),
        ],
    )


def _signed(header: fits.Header, datasum: int) -> bytes:
    """Header with its checksums, as bytes; their comments have no time, so that equal HDUs have equal bytes."""
    header = header.copy()
    header["CHECKSUM"] = ("0" * 16, "HDU checksum")
    header["DATASUM"] = (str(datasum), "data unit checksum")
    header["CHECKSUM"] = encode(fold(sum_bytes(header_bytes(header)) + datasum))
    return header_bytes(header)


def _merged(primary: fits.Header, extension: fits.Header) -> fits.Header:
    header = _cards(primary)
    for card in extension.cards:
        if card.keyword in ("COMMENT", "HISTORY", ""):
            header.append(card, end=True)
        elif not STRUCTURAL.match(card.keyword):
            set_card(header, card.keyword, card.value, card.comment)
    return header


# ------------------------------------------------------------------------------ bytes


@njit(nogil=True, cache=True)
def _store(image: NDArray[np.uint16], stored: NDArray[np.uint16]) -> np.uint64:
    """Bring numbers into the form of the file, fill up with zeros; returns their sum as 32-bit words."""
    high, low = np.uint64(0), np.uint64(0)
    for i in range(image.size):
        # less 32768 is the same as the first bit turned
        value = image[i] ^ np.uint16(0x8000)
        stored[i] = np.uint16((value >> np.uint16(8)) | (value << np.uint16(8)))
    for i in range(0, image.size - 1, 2):
        high += np.uint64(image[i] ^ np.uint16(0x8000))
        low += np.uint64(image[i + 1] ^ np.uint16(0x8000))
    if image.size % 2:
        high += np.uint64(image[image.size - 1] ^ np.uint16(0x8000))
    stored[image.size :] = 0
    return (high << np.uint64(16)) + low


def _put(file: int, content: Any, offset: int) -> None:
    view = memoryview(content)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _claim(path: Path, size: int) -> None:
    """Reserve room for a file at once: a full disk shows now, not after an hour."""
    with open(path, "r+b", buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            file.truncate(size)


def _explained(error: OSError, path: str) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PlanError(f"{path}: no space left on the disk while writing; nothing was kept")
    return error


# ------------------------------------------------------------------------------ reading


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[fits.HDUList]:
    try:
        with warnings.catch_warnings():
            # a truncated file is told as an error
            warnings.simplefilter("ignore", fits.verify.AstropyUserWarning)
            with fits.open(path, memmap=False) as hdus:
                yield hdus
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error


def _check_end(path: str | os.PathLike[str], hdus: Any) -> None:
    """Complain if HDUs reach beyond the end of their file, or do not fill it."""
    size = os.path.getsize(path)
    if Path(path).suffix in (".gz", ".bz2", ".xz", ".Z"):
        # positions are those of the content
        return
    for hdu in hdus:
        place = hdu.fileinfo()
        end = place["datLoc"] + place["datSpan"]
        if end > size:
            raise InputError(
                f"{path}: is truncated, {size} bytes found, {end} expected up to the end of "
                f"{hdu.header.get('EXTNAME', 'the primary HDU')}"
            )
    if isinstance(hdus, fits.HDUList) and end < size:
        raise InputError(f"{path}: is damaged or truncated, no HDU found from byte {end} on, the file has {size}")
