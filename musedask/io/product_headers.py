"""Headers of products as the reference pipeline writes them: what is inherited, in which order, and how it was made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from astropy.io import fits

from .._version import __version__
from ..recipe import Recipe
from .headers import STRUCTURAL, Card, float64_card, set_card
from .products import open_fits

#: cards that describe world coordinates to the reference: in extensions, never in a primary header without data
WCS_CARDS = re.compile(
    r"^((CRVAL|CRPIX|CDELT|CTYPE|CUNIT|CRDER|CSYER)\d|CD\d_\d|LONPOLE|LATPOLE|WCSAXES)$"
)
#: cards of a raw exposure that products do not have
_DROPPED = re.compile(
    r"^(COMMENT|CONTINUE||RADECSYS|HDRVER|ORIGFILE|DATAMD5|PIPEFILE|HDUCLAS.*|HDUDOC|HDUVERS|SCIDATA|ERRDATA|QUALDATA|"
    r"QUALMASK|DATAMIN|DATAMAX|BLOCKED|ZIMAGE|ZHECKSUM|ZDATASUM|ZCMPTYPE|ZNAXIS\d*|ESO PRO (?!REC\d+ ).*|ESO DPR .*|"
    r"ESO DET OUT\d+ (PRSC|OVSC)[XY])$"
)
#: cards of pixels, which a primary header without data does not have
_OF_PIXELS = re.compile(r"^(BUNIT|(CRVAL|CRPIX|CDELT|CTYPE|CUNIT|CRDER|CSYER)\d|CD\d_\d|LONPOLE|LATPOLE)$")
#: cards that come from the first raw file; the first ones in the order of the reference
FROM_RAW = (
    "DATE", "ORIGIN", "TELESCOP", "INSTRUME", "EQUINOX", "RADESYS", "PI-COI", "OBSERVER", "RA", "DEC",
    "EXPTIME", "MJD-OBS", "DATE-OBS", "UTC", "LST",
)  # fmt: skip
_FIRST = (*FROM_RAW, "TIMESYS", "MJD-END", "OBJECT", "PIPEFILE")
RAW_GROUPS = re.compile(r"^ESO (?!DRS |QC |DPR |PRO )|^ESO PRO REC\d+ ")
_GROUPS = ("OBS", "TPL", "GEN", "TEL", "INS", "DET", "LOG", "PRO")
#: science products
_SCIENCE = re.compile(r"muse_sci|muse_exp_combine")
_UNIT_COMMENTS = {"adu": "DATA is in analog-to-digital units", "count": "DATA is in electrons"}

#: what the parts of a MUSE_IMAGE are called: comment of the name, class, comment of the class, form, its comment,
#: pointer of the others to it, comment of the pointer
_PARTS = {
    "DATA": ("data values", "DATA", "the data itself", None, None, "SCIDATA", "pointer to the data extension"),
    "DQ": (
        "bad pixel status values", "QUALITY", "bad pixel mask", "FLAG32BIT",
        "extension contains 32bit Euro3D bad pixel information", "QUALDATA", "pointer to the bad pixel mask extension",
    ),
    "STAT": (
        "data variance", "ERROR", "variance", "MSE", "the extension contains variances (sigma**2)", "ERRDATA",
        "pointer to the variance extension",
    ),
}  # fmt: skip


def card(keyword: str, value: Any, comment: str | None = "") -> fits.Card:
    """Make a card; what does not fit into its 80 characters is cut, as the reference does."""
    long = len(keyword) > 8 or " " in keyword
    if isinstance(value, str) and long:
        room = 80 - len(f"HIERARCH {keyword}= ''")
        while len(value.replace("'", "''")) > room:
            value = value[:-1]
    elif isinstance(value, float):
        value = float64_card(value)
    return fits.Card(f"HIERARCH {keyword}" if long else keyword, value, comment or "")


def put_card(header: fits.Header, keyword: str, value: Any, comment: str | None = None) -> None:
    """Replace the value of a card, or append a card."""
    made = card(keyword, value, comment)
    if keyword in header:
        set_card(header, keyword, made.value, comment)
    else:
        header.append(made, end=True)


def renamed(header: fits.Header) -> fits.Header:
    """Copy with RADESYS instead of RADECSYS and with numbers as the reference writes them."""
    result = fits.Header()
    for c in header.cards:
        keyword = "RADESYS" if c.keyword == "RADECSYS" else c.keyword
        if keyword == "RADESYS" and keyword in result:
            continue
        if keyword in ("COMMENT", "HISTORY", ""):
            result.append(c, end=True)
        else:
            result.append(card(keyword, c.value, c.comment), end=True)
    return result


def in_order(header: fits.Header) -> fits.Header:
    """Sort the cards by their groups, stably, as the reference does."""
    result = fits.Header()
    for c in sorted(header.cards, key=_rank):
        result.append(c, end=True)
    return result


def _rank(c: fits.Card) -> tuple[int, int]:
    keyword = c.keyword
    if keyword in _FIRST:
        return 0, _FIRST.index(keyword)
    if keyword in ("ARCFILE", "DATAMD5"):
        return 2, 0
    if keyword in ("HISTORY", "COMMENT", ""):
        return 7, 0
    if not keyword.startswith("ESO "):
        return (1, 0) if " " not in keyword and len(keyword) <= 8 else (6, 0)
    group = keyword.split()[1]
    for i, name in enumerate(_GROUPS):
        if re.fullmatch(rf"{name}\d*", group):
            return 3, i
    return (5, 0) if keyword.startswith("ESO DRS MUSE") else (4, 0)


def pro_cards(
    recipe: Recipe,
    values: Mapping[str, Any],
    raws: Sequence[tuple[str, str]],
    calibs: Sequence[tuple[str, str, str | None]],
    category: str,
    record: int = 1,
) -> list[Card]:
    """The ``ESO PRO`` cards of a product.

    Parameters
    ----------
    recipe : Recipe
    values : mapping of str to object
        Values of all its parameters.
    raws : sequence of (str, str)
        Names without folder and tags; a file that is listed more than once is recorded once.
    calibs : sequence of (str, str, str or None)
        Names, tags and ``DATAMD5``.
    category : str
    record : int
        Number of the record, see `next_record`.
    """
    rec = f"ESO PRO REC{record}"
    cards: list[Card] = [
        ["ESO PRO DID", "PRO-1.16", "Data dictionary for PRO"],
        ["ESO PRO CATG", category, "Category of pipeline product frame"],
        ["ESO PRO TYPE", "REDUCED", "Product type"],
        ["ESO PRO TECH", "IFU", "Observation technique"],
        ["ESO PRO SCIENCE", bool(_SCIENCE.search(recipe.name)), "Scientific product if T"],
        [f"{rec} ID", recipe.name, "Pipeline recipe (unique) identifier"],
        [f"{rec} DRS ID", f"musedask-{__version__}", "Data Reduction System identifier"],
        [f"{rec} PIPE ID", f"musedask/{__version__}", "Pipeline (unique) identifier"],
    ]
    for i, (name, tag) in enumerate(dict.fromkeys(raws), 1):
        cards.append([f"{rec} RAW{i} NAME", name, "File name of raw frame"])
        cards.append([f"{rec} RAW{i} CATG", tag, "Category of raw frame"])
    cards.append(["ESO PRO DATANCOM", len(dict.fromkeys(raws)), "Number of combined frames"])
    for i, (name, tag, md5) in enumerate(sorted(calibs, key=lambda c: c[1]), 1):
        cards.append([f"{rec} CAL{i} NAME", name, "File name of calibration frame"])
        cards.append([f"{rec} CAL{i} CATG", tag, "Category of calibration frame"])
        if md5 is not None:
            cards.append([f"{rec} CAL{i} DATAMD5", md5, "MD5 signature of calib frame"])
    for i, parameter in enumerate(recipe.parameters, 1):
        cards.append([f"{rec} PARAM{i} NAME", parameter.name, parameter.help])
        value = parameter.to_card(values[parameter.name])
        cards.append([f"{rec} PARAM{i} VALUE", value, parameter.comment_of_card()])
    return cards


def next_record(raw: fits.Header) -> int:
    """Number of the record that a recipe adds to those which a file has already."""
    number = 1
    while f"ESO PRO REC{number} ID" in raw:
        number += 1
    return number


def utc_now() -> str:
    """The time as it is in headers."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def read_primary(path: str | os.PathLike[str]) -> fits.Header:
    """Primary header of a file.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with open_fits(path) as hdus:
        return hdus[0].header.copy()


def recipe_header(
    cards: fits.Header,
    raw: fits.Header,
    *,
    recipe: Recipe,
    values: Mapping[str, Any],
    raws: Sequence[tuple[str, str]],
    calibs: Sequence[tuple[str, str, str | None]],
    category: str,
    file_name: str,
    pixels: bool = False,
    date: str | None = None,
) -> fits.Header:
    """Primary header of the product of a native recipe that works on raw exposures.

    Parameters
    ----------
    cards : astropy.io.fits.Header
        Of the exposure (primary header and extension of the IFU) and of what the recipe found (``ESO QC``,
        ``ESO DRS MUSE``); what products do not have is left out: the structure, file names, ``ESO DPR``, prescans
        and overscans, which have been cut off, and others, found by giving such cards to the reference.
    raw : astropy.io.fits.Header
        Primary header of the first raw file: its cards of the observation, telescope and instrument win.
    recipe, values, raws, calibs, category
        See `pro_cards`.
    file_name : str
        ``PIPEFILE``.
    pixels : bool
        Whether the primary HDU has the image: unit and world coordinates stay.
    date : str, optional
        ``DATE``; by default now.

    Returns
    -------
    astropy.io.fits.Header
        ``DATAMD5``, ``CHECKSUM`` and ``DATASUM`` are left to the writer.
    """
    found: dict[str, Card] = {}
    history: list[fits.Card] = []

    def take(c: fits.Card) -> None:
        if c.keyword == "HISTORY":
            history.append(c)
            return
        comment = c.comment if c.comment or c.keyword not in found else found[c.keyword][2]
        found[c.keyword] = [c.keyword, c.value, comment]

    for c in cards.cards:
        keyword = c.keyword
        if keyword == "RADECSYS" and "RADESYS" not in cards:
            take(fits.Card("RADESYS", c.value, c.comment))
        elif not (STRUCTURAL.match(keyword) or _DROPPED.match(keyword)) and (pixels or not _OF_PIXELS.match(keyword)):
            take(c)
    for c in raw.cards:
        keyword = "RADESYS" if c.keyword == "RADECSYS" and "RADESYS" not in raw else c.keyword
        if keyword == "EXPTIME" and keyword in found:
            continue
        if (keyword in (*FROM_RAW, "ARCFILE") or RAW_GROUPS.match(keyword)) and not _DROPPED.match(keyword):
            take(fits.Card(keyword, c.value, c.comment) if keyword != c.keyword else c)
    ancestor = raw.get("ESO PRO ANCESTOR", raw.get("ARCFILE"))
    made: list[Card] = [
        ["DATE", date or utc_now(), "file creation date (YYYY-MM-DDThh:mm:ss UT)"],
        ["PIPEFILE", file_name, "Filename of data product"],
        *([] if ancestor is None else [["ESO PRO ANCESTOR", ancestor, ""]]),
        *pro_cards(recipe, values, raws, calibs, category, next_record(raw)),
        ["ESO DRS MUSEDASK ENGINE", "native", "what made this product"],
        ["ESO DRS MUSEDASK VERSION", __version__, "version of musedask"],
    ]
    for entry in made:
        found[entry[0]] = entry
    result = fits.Header()
    for c in sorted((card(*entry) for entry in found.values()), key=_rank):
        result.append(c, end=True)
    for c in history:
        result.append(c, end=True)
    return result


def hdu_cards(kind: str) -> list[Card]:
    """Cards on the class of an extension; `kind` is ``DATA`` (with errors), ``STAT`` or ``IMAGE``."""
    parts = ("DATA", "STAT") if kind in ("DATA", "STAT") else ("DATA",)
    return part_cards("DATA" if kind == "IMAGE" else kind, parts)


def part_cards(name: str, parts: Sequence[str], prefix: str = "") -> list[Card]:
    """Cards on the class of a part of an image, and where the others are.

    Parameters
    ----------
    name : str
        ``DATA``, ``DQ`` or ``STAT``.
    parts : sequence of str
        All parts that the image has.
    prefix : str
        ``CHANnn.`` in files of several IFUs.
    """
    _, kind, what, form, form_comment, _, _ = _PARTS[name]
    cards: list[Card] = [
        ["HDUCLASS", "ESO", "class name (ESO format)"],
        ["HDUDOC", "DICD", "document with class description"],
        ["HDUVERS", "DICD version 6", "version number (according to spec v2.5.1)"],
        ["HDUCLAS1", "IMAGE", "Image data format"],
        ["HDUCLAS2", kind, f"this extension contains {what}"],
    ]
    if form:
        cards.append(["HDUCLAS3", form, form_comment])
    if name == "DQ":
        cards.append(["QUALMASK", 0xFFFFFFFF, "all non-zero values are bad"])
    others = [o for o in ("DATA", "STAT", "DQ") if o != name and o in parts]
    return cards + [[_PARTS[o][5], prefix + o, _PARTS[o][6]] for o in others]


def name_comment(name: str) -> str:
    """Comment of ``EXTNAME`` of a part of an image."""
    return f"This extension contains {_PARTS[name][0]}"


def unit_comment(unit: str) -> str:
    """Comment of ``BUNIT`` of ``DATA``."""
    return _UNIT_COMMENTS.get(unit, "")
