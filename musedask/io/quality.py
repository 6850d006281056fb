"""Keywords of quality control in the headers of a product."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from astropy.io import fits

from ..errors import InputError

_PREFIX = "ESO QC "


def read_quality(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, Any]]:
    """Cards ``ESO QC`` of all headers of a file; the data are not read.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    extension : str
        Its name; empty for the primary header.
    keyword : str
        Without ``ESO QC``.
    value : object

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    try:
        with fits.open(path, memmap=True, lazy_load_hdus=True) as hdus:
            for number, hdu in enumerate(hdus):
                for card in hdu.header.cards:
                    if card.keyword.startswith(_PREFIX):
                        yield (hdu.name if number else ""), card.keyword.removeprefix(_PREFIX), card.value
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
