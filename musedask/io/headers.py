"""FITS headers: cards in and out of JSON, long keywords, and the numbers that CPL would write."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from astropy.io import fits

#: all keywords about a pixel table start with this
PIXTABLE = "ESO DRS MUSE PIXTABLE"

#: keywords that describe the structure of one HDU, never carried from one file to another
STRUCTURAL = re.compile(
    r"^(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|TFIELDS|"
    r"(TTYPE|TFORM|TUNIT|TDISP|TNULL|TDIM|TSCAL|TZERO|THEAP)\d*|CHECKSUM|DATASUM|ZHECKSUM|ZDATASUM|END)$"
)
#: world-coordinate keywords
WCS = re.compile(
    r"^(WCSAXES|WCSNAME|(CRVAL|CRPIX|CDELT|CROTA|CTYPE|CUNIT|CRDER|CSYER|CNAME)\d+|(CD|PC)\d+_\d+|"
    r"(PV|PS)\d+_\d+|LONPOLE|LATPOLE|SPECSYS|SSYSOBS|SSYSSRC|RESTFREQ|RESTWAV)$"
)
#: keywords about one IFU, which are in the extensions of the files of several
OF_ONE_IFU = re.compile(r"^ESO (DET (CHIP|OUT\d*)( |$)|QC|DRS)")

Card = list[Any]


def set_card(header: fits.Header, keyword: str, value: Any, comment: str | None = None) -> None:
    """Set a card; keywords of more than eight characters become HIERARCH cards."""
    if keyword in header:
        header[keyword] = value if comment is None else (value, comment)
        return
    name = f"HIERARCH {keyword}" if (len(keyword) > 8 or " " in keyword) else keyword
    header[name] = (value, comment or "")


def remove_cards(header: fits.Header, pattern: re.Pattern[str] | str) -> None:
    """Remove every card whose keyword matches a regular expression at its start."""
    regex = re.compile(pattern)
    for keyword in {card.keyword for card in header.cards if regex.match(card.keyword)}:
        header.remove(keyword, ignore_missing=True, remove_all=True)


def cards_to_json(header: fits.Header) -> str:
    """Serialise a header as a JSON list of ``[keyword, value, comment]``; undefined values are null."""
    cards: list[Card] = []
    for card in header.cards:
        if STRUCTURAL.match(card.keyword):
            continue
        value = card.value
        if isinstance(value, fits.card.Undefined):
            value = None
        elif isinstance(value, np.generic):
            value = value.item()
        cards.append([card.keyword, value, card.comment])
    return json.dumps(cards)


def cards_from_json(text: str) -> fits.Header:
    """Rebuild a header from `cards_to_json`."""
    header = fits.Header()
    append_cards(header, json.loads(text))
    return header


def append_cards(header: fits.Header, cards: Iterable[Card]) -> None:
    """Append ``[keyword, value, comment]`` cards, keeping duplicates of COMMENT and HISTORY."""
    for keyword, value, comment in cards:
        if keyword in ("COMMENT", "HISTORY", ""):
            header.append(fits.Card(keyword, value), end=True)
            continue
        name = f"HIERARCH {keyword}" if (len(keyword) > 8 or " " in keyword) else keyword
        header.append(fits.Card(name, value, comment or ""), end=True)


def float32_card(value: float) -> float:
    """Round as CPL writes a float32 keyword: seven significant digits."""
    return float(f"{float(np.float32(value)):.7g}")


def float64_card(value: float) -> float:
    """Round as CPL writes a float64 keyword: fifteen significant digits."""
    return float(f"{float(value):.15g}")


def extension_names(path: str | os.PathLike[str]) -> set[str]:
    """``EXTNAME`` of all extensions of a file; those without one count as empty."""
    with fits.open(path, memmap=False) as hdus:
        return {str(hdu.header.get("EXTNAME", "")).strip() for hdu in hdus[1:]}


def read_datamd5(path: str | os.PathLike[str]) -> str | None:
    """``DATAMD5`` of a file, if it has one."""
    with fits.open(path, memmap=False) as hdus:
        return hdus[0].header.get("DATAMD5")
