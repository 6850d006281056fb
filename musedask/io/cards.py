"""Headers as bytes, with every digit.

astropy cuts floating-point numbers to the 20 characters of FITS's fixed format, hence
``-5.55555555555556E-05`` loses its last digit.  CFITSIO, and so the reference pipeline, lets the
number grow (free format); so does this module.
"""

from __future__ import annotations

import warnings

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
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        for card in header.cards:
            if isinstance(card.value, float):
                long = len(card.keyword) > 8 or " " in card.keyword
                keyword = f"HIERARCH {card.keyword} =" if long else f"{card.keyword:8}="
                text = float_text(card.value)
                image = f"{keyword} {text}" if long else f"{keyword} {text:>20}"
                if card.comment:
                    image = f"{image} / {card.comment}"
                parts.append(f"{image[:_CARD]:{_CARD}}")
            else:
                parts.append(str(card))
    return "".join(parts).encode("ascii")


def header_bytes(header: fits.Header) -> bytes:
    """Header in the form of a file: cards, ``END``, padded to whole blocks."""
    content = card_bytes(header) + b"END"
    return content.ljust(-(-len(content) // _BLOCK) * _BLOCK)
