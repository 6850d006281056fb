"""Some keywords of many files, fast: only the blocks of the headers are read, only the cards in question parsed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

from astropy.io import fits

from ..errors import InputError

_BLOCK = 2880
_CARD = 80
#: blocks that are read at once: a primary header of MUSE has 25
_AT_ONCE = 24
#: no header is longer; what is, is no FITS file
_MOST = 4000


def read_keywords(path: str | os.PathLike[str], keywords: Iterable[str]) -> dict[str, Any]:
    """Values of keywords of the primary header, and, if it is empty, of the first extension.

    A compressed image that is alone in its file has its header there.

    Parameters
    ----------
    path : path-like
        FITS file, perhaps with compressed extensions (``.fz``) or as a whole (``.gz``).
    keywords : iterable of str
        As astropy names them: ``ESO INS MODE``.

    Returns
    -------
    dict
        Those that are there and have a value.

    Raises
    ------
    InputError
        If it cannot be read, is no FITS file, or ends too early.
    """
    path = Path(path)
    wanted = {keyword.encode("ascii"): keyword for keyword in keywords}
    try:
        size = path.stat().st_size
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return _values(path, cast(IO[bytes], stream), wanted)
        with path.open("rb", buffering=0) as file:
            found = _values(path, cast(IO[bytes], file), wanted)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if size % _BLOCK:
        raise InputError(f"{path}: truncated; {size} bytes found, expected a multiple of {_BLOCK}")
    return found


def _values(path: Path, file: IO[bytes], wanted: dict[bytes, str]) -> dict[str, Any]:
    cards, rest = _cards(path, file, b"", b"SIMPLE")
    values = _parse(path, cards, wanted)
    if not values:
        try:
            cards, _ = _cards(path, file, rest, b"XTENSION")
        except InputError:
            # there is no other HDU
            return values
        values = _parse(path, cards, wanted)
    return values


def _cards(path: Path, file: IO[bytes], begin: bytes, first: bytes) -> tuple[bytes, bytes]:
    """Cards up to ``END``, and what was read beyond the header."""
    text = begin
    at = 0
    while True:
        # whole blocks of what is there
        for start in range(at, len(text) - _BLOCK + 1, _BLOCK):
            block = text[start : start + _BLOCK]
            if start == 0 and not block.startswith(first):
                raise InputError(f"{path}: no FITS file: {_begin(block)} found at the start, expected {first.decode()}")
            for card in range(0, _BLOCK, _CARD):
                if block[card : card + 8] == b"END     ":
                    return text[: start + card], text[start + _BLOCK :]
            at = start + _BLOCK
        more = file.read(_AT_ONCE * _BLOCK) if at < _MOST * _BLOCK else b""
        if not more:
            if not text.startswith(first):
                raise InputError(f"{path}: no FITS file: {_begin(text)} found at the start, expected {first.decode()}")
            raise InputError(f"{path}: truncated; its header has no END")
        text += more


def _begin(text: bytes) -> str:
    return repr(text[:20].decode("ascii", "replace")) if text else "nothing"


def _parse(path: Path, cards: bytes, wanted: dict[bytes, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for start in range(0, len(cards), _CARD):
        card = cards[start : start + _CARD]
        if card.startswith(b"HIERARCH "):
            keyword = card[9 : card.find(b"=")].strip()
        else:
            keyword = card[:8].rstrip()
        name = wanted.get(keyword)
        if name is None or name in found:
            continue
        try:
            value = fits.Card.fromstring(card).value
        except (fits.VerifyError, ValueError) as error:
            raise InputError(f"{path}: {name}: {error}") from error
        if value is not None and not isinstance(value, fits.card.Undefined):
            found[name] = value.strip() if isinstance(value, str) else value
    return found
