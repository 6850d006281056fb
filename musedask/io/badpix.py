"""What tables of bad pixels are made of: lists of pixels, and what headers say about the CCD."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from .headers import append_cards
from .products import PathLike, channel, channel_number, open_fits, product_header

#: data pixels of a quadrant in x and y
QUADRANT = (2048, 2056)
_DETECTOR = re.compile(r"^ESO DET (CHIP|OUT\d+) ")


def badpix_header() -> fits.Header:
    """Primary header of a new BADPIX_TABLE."""
    return product_header(
        "BADPIX_TABLE",
        cards={
            "TELESCOP": ("ESO-VLT-U4", "ESO <TEL>"),
            "OBJECT": ("Bad pixel table for MUSE (BADPIX_TABLE)", "Title"),
        },
    )


def detector_header(header: fits.Header, ifu: int) -> fits.Header:
    """Cards about the CCD for the extension of an IFU; without any, the name of its CCD is that of the IFU."""
    own = fits.Header()
    append_cards(own, [[c.keyword, c.value, c.comment] for c in header.cards if _DETECTOR.match(c.keyword)])
    if "ESO DET CHIP NAME" not in own:
        append_cards(own, [["ESO DET CHIP NAME", channel(ifu), "Detector chip name"]])
    return own


def quadrant_size(header: fits.Header) -> tuple[int, int]:
    """Data pixels of a quadrant in x and y; default: those of the CCDs of MUSE."""
    return int(header.get("ESO DET OUT1 NX", QUADRANT[0])), int(header.get("ESO DET OUT1 NY", QUADRANT[1]))


def read_detector(path: PathLike, ifu: int, extension: str | None = None) -> fits.Header:
    """Read cards about the CCD of an IFU from an image.

    Parameters
    ----------
    path : path-like
    ifu : int
    extension : str, optional
        Name of the extension; default: the first HDU of the IFU.

    Raises
    ------
    InputError
        If there is no such extension, it is of another IFU, or there are no cards ``ESO DET CHIP`` or ``OUTn``.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        names = [str(h.header.get("EXTNAME", "")).strip() for h in hdus]
        known = ", ".join(n for n in names if n) or "no named extension"
        if extension is None:
            number = next((i for i, n in enumerate(names) if channel_number(n) == ifu), None)
        else:
            number = names.index(extension) if extension in names else None
        if number is None:
            raise InputError(f"{path}: there is no extension {extension or channel(ifu)}; it has {known}")
        if channel_number(names[number]) not in (None, ifu):
            raise InputError(f"{path}[{names[number]}]: another IFU found, expected IFU {ifu}")
        for header in (hdus[number].header, hdus[0].header):
            if any(_DETECTOR.match(c.keyword) for c in header.cards):
                return header.copy()
    raise InputError(f"{path}: there are no cards ESO DET CHIP or ESO DET OUTn in it")


def parse_flag(text: str | int) -> int:
    """Flag of the Euro3D convention, decimal or as ``0x100``.

    Raises
    ------
    InputError
        If it is no number from 1 to 4294967295.
    """
    try:
        flag = text if isinstance(text, int) else int(text, 0)
    except ValueError:
        flag = 0
    if not 1 <= flag <= 0xFFFFFFFF:
        raise InputError(f"flag {text!r} found, expected a number from 1 to 4294967295, e.g. 256 for a hot pixel")
    return flag


def read_pixel_list(path: PathLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Read a text with one pixel in a line: x, y and flag.

    Empty lines and what follows a ``#`` are passed over.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    x, y, flags : ndarray of int64, shape (n,)

    Raises
    ------
    InputError
        If it is missing, empty or no text, or a line is written otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    rows = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text") from error
    for number, line in enumerate(lines, 1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        try:
            x, y, flag = parts
            rows.append((int(x), int(y), parse_flag(flag)))
        except (ValueError, InputError):
            raise InputError(
                f"{path}, line {number}: {line.strip()!r} found, expected x, y and a flag from 1 to 4294967295"
            ) from None
    if not rows:
        raise InputError(f"{path}: there are no pixels in it")
    x, y, flags = np.array(rows, np.int64).T
    return x, y, flags
