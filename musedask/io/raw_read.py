"""Reading the image of one IFU from a raw file as fast as the disk gives it.

A recipe reads the same few of some 900 cards of many files; to parse all of them takes longer than to read the
image.  So the cards stay text here until they are asked for.  Everything out of the ordinary (tile compression,
other types, damaged files) is left to `musedask.io.raw`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from .headers import STRUCTURAL
from .products import PathLike

_BLOCK = 2880
_END = b"END" + b" " * 77
#: an array for an image, or what makes one of a shape
Target = NDArray[np.uint16] | Callable[[tuple[int, int]], NDArray[np.uint16]] | None


class RawCards:
    """Cards of the primary header and of an extension, which win; values are parsed when they are asked for.

    Parameters
    ----------
    primary, extension : str
        Cards of 80 characters one after the other.
    """

    def __init__(self, primary: str, extension: str) -> None:
        self._parts = primary, extension
        self._cards: dict[str, str] | None = None

    def get(self, keyword: str, default: Any = None) -> Any:
        """Value of a card."""
        if self._cards is None:
            self._cards = {_keyword(card): card for text in self._parts for card in _split(text)}
        card = self._cards.get(keyword)
        return default if card is None else fits.Card.fromstring(card).value

    def header(self) -> fits.Header:
        """All cards but those of the structure, those of the extension in the place of primary ones."""
        merged: dict[str, fits.Card] = {}
        rest = []
        for text in self._parts:
            for card in fits.Header.fromstring(text).cards:
                if card.keyword in ("COMMENT", "HISTORY", ""):
                    rest.append(card)
                elif not STRUCTURAL.match(card.keyword):
                    merged[card.keyword] = card
        return fits.Header([*merged.values(), *rest])


def _split(text: str) -> list[str]:
    return [text[i : i + 80] for i in range(0, len(text), 80)]


def _keyword(card: str) -> str:
    if card.startswith("HIERARCH "):
        return card[9:].partition("=")[0].strip()
    return card[:8].rstrip()


def read_image(
    path: PathLike, ifu: int, out: Target = None
) -> tuple[RawCards, NDArray[np.uint16], int]:
    """Read the image of one IFU from a raw file, plain or tile-compressed.

    Parameters
    ----------
    path : path-like
    ifu : int
        1..24
    out : ndarray of uint16, shape (ny, nx), or callable, optional
        Where to put the image, if it is of this shape; or what makes an array of a shape.

    Returns
    -------
    cards : RawCards
    image : ndarray of uint16, shape (ny, nx)
        [adu]; `out` or a new one.
    saturated : int
        Number of pixels that are 0 or above 65500.

    Raises
    ------
    InputError
        If it is no raw file, has no image of this IFU, or is truncated.
    """
    path = Path(path)
    found = _read_plain(path, ifu, out)
    if found is None:
        from .raw import read_raw

        header, image = read_raw(path, ifu)
        with fits.open(path, memmap=False) as hdus:
            primary = hdus[0].header.copy()
        target = _target(out, image.shape)
        target[:] = image
        image = target
        cards = RawCards(_text(primary), _text(header))
        return cards, image, int(_count(image))
    return found


def _text(header: fits.Header) -> str:
    return header.tostring(sep="", endcard=False, padding=False)


def _target(out: Target, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    if callable(out):
        return out((shape[0], shape[1]))
    return np.empty(shape, np.uint16) if out is None or out.shape != shape else out


def _read_plain(
    path: Path, ifu: int, out: Target
) -> tuple[RawCards, NDArray[np.uint16], int] | None:
    """Read from an ordinary file; None if it is not one."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            primary = _read_header(file)
            text = primary
            cards = RawCards("", text)
            while str(cards.get("EXTNAME", ""))[:6] != f"CHAN{ifu:02d}":
                skip = _data_size(cards)
                file.seek(skip, os.SEEK_CUR)
                text = _read_header(file)
                cards = RawCards("", text)
            if cards.get("BITPIX") != 16 or cards.get("NAXIS") != 2 or cards.get("BZERO") != 32768:
                return None
            if cards.get("BSCALE", 1) != 1 or cards.get("ZIMAGE") is not None:
                return None
            shape = cards.get("NAXIS2"), cards.get("NAXIS1")
            if file.tell() + 2 * shape[0] * shape[1] > size or not shape[0] * shape[1]:
                return None
            image = _target(out, shape)
            if file.readinto(image.data) != image.nbytes:
                return None
            own = "" if text is primary else primary
            return RawCards(own, text), image, int(_decode(image.reshape(-1)))
    except (OSError, EOFError, UnicodeDecodeError, ValueError, TypeError, KeyError):
        # the other reader says what is wrong
        return None


def _read_header(file: BinaryIO) -> str:
    blocks: list[bytes] = []
    while True:
        block = file.read(_BLOCK)
        if len(block) < _BLOCK or len(blocks) > 1000:
            raise EOFError
        end = block.find(_END)
        while end >= 0 and end % 80:
            end = block.find(_END, end + 1)
        if end >= 0:
            blocks.append(block[:end])
            return b"".join(blocks).decode("ascii")
        blocks.append(block)


def _data_size(cards: RawCards) -> int:
    axes = [int(cards.get(f"NAXIS{i}")) for i in range(1, int(cards.get("NAXIS")) + 1)]
    if not axes:
        return 0
    words = int(np.prod(axes, dtype=np.int64)) + int(cards.get("PCOUNT", 0))
    size = abs(int(cards.get("BITPIX"))) // 8 * int(cards.get("GCOUNT", 1)) * words
    return -(-size // _BLOCK) * _BLOCK


@njit(nogil=True, cache=True)
def _decode(words):  # type: ignore[no-untyped-def]
    """Turn signed big-endian numbers into unsigned native ones in place; returns how many are saturated."""
    saturated = 0
    for i in range(words.size):
        word = words[i]
        value = np.uint16(((word >> np.uint16(8)) | (word << np.uint16(8))) ^ 0x8000)
        words[i] = value
        saturated += (value > 65500) | (value == 0)
    return saturated


@njit(nogil=True, cache=True)
def _count(image):  # type: ignore[no-untyped-def]
    saturated = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            value = image[y, x]
            saturated += (value > 65500) | (value == 0)
    return saturated
