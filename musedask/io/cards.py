"""Headers as bytes, with every digit.

astropy cuts floating-point numbers to the 20 characters of FITS's fixed format, hence
``-5.55555555555556E-05`` loses its last digit.  CFITSIO, and so the reference pipeline, lets the
number grow (free format); so does this module.
"""

from __future__ import annotations

from astropy.io import fits

_CARD = 80
_BLOCK = 2880


def float_text(value: float) -> str:
    """Write a number as CFITSIO does, with as many digits as are needed to read it back."""
    mantissa, exponent, power = repr(float(value)).upper().partition("E")
    if mantissa.endswith(".0"):
        mantissa = mantissa[:-1]
    elif "." not in mantissa:
        mantissa += "."
    return mantissa + exponent + power


def card_bytes(header: fits.Header) -> bytes:
    """Cards of 80 characters one after the other, without ``END``.

    Comments that do not fit into their card are cut, as CFITSIO does.
    """
    return "".join(_image(card) for card in header.cards).encode("ascii")


def _image(card: fits.Card) -> str:
    """A card, or a long string in several of them."""
    keyword, value, comment = card.keyword, card.value, card.comment
    long = len(keyword) > 8 or " " in keyword
    if isinstance(value, float):
        text = float_text(value)
        image = f"HIERARCH {keyword} = {text}" if long else f"{keyword:8}= {text:>20}"
    else:
        width = len(f"{value!s:8}") + 2 + str(value).count("'") if isinstance(value, str) else len(str(value))
        length = len(keyword) + 12 + width if long else 10 + max(width, 20)
        if not comment or length + 3 + len(comment) <= _CARD:
            return str(card)
        # without the comment, of which astropy would warn that it is cut: warnings cannot be silenced in a thread
        image = str(fits.Card(f"HIERARCH {keyword}" if long else keyword, value))
        if len(image) > _CARD:
            return str(card)
        image = image.rstrip() if long else f"{image.rstrip():30}"
    if comment:
        image = f"{image} / {comment}"
    return f"{image[:_CARD]:{_CARD}}"


def header_bytes(header: fits.Header) -> bytes:
    """Header in the form of a file: cards, ``END``, padded to whole blocks."""
    content = card_bytes(header) + b"END"
    return content.ljust(-(-len(content) // _BLOCK) * _BLOCK)
