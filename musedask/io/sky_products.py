"""Tables of the sky that a recipe made, changed in a copy: continuum set to zero, lines left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from ..errors import InputError
from .files import atomic_path

PathLike = str | os.PathLike[str]


def write_without_continuum(source: PathLike, output: PathLike) -> Path:
    """Copy a SKY_CONTINUUM with fluxes of zero, so that its subtraction does nothing.

    Parameters
    ----------
    source, output : path-like

    Raises
    ------
    InputError
        If the first extension of `source` is no table with a column ``flux``.
    """
    with _opened(source) as hdus:
        table = _table(source, hdus, "flux")
        table.data["flux"][:] = 0.0
        return _written(hdus, output)


def write_lines(
    source: PathLike,
    output: PathLike,
    species: Sequence[str] = ("O2", "OH"),
    protect: Sequence[tuple[float, float]] = (),
) -> Path:
    """Copy a SKY_LINES with the lines of some species only.

    Parameters
    ----------
    source, output : path-like
    species : sequence of str
        Beginnings of the names of the lines to be kept, as ``OH``; other lines are left out, for they may be those of
        the target, too.
    protect : sequence of (float, float)
        Ranges of wavelength [Angstrom, air] in which no line is kept.

    Raises
    ------
    InputError
        If the table ``LINES`` is missing or has no columns ``name`` and ``lambda``, or no line would be left.
    """
    with _opened(source) as hdus:
        table = _table(source, hdus, "name", "lambda")
        names = np.char.strip(np.asarray(table.data["name"]).astype(str))
        keep = np.zeros(len(names), bool)
        for start in species:
            keep |= np.char.startswith(names, start)
        wave = np.asarray(table.data["lambda"], float)
        for low, high in protect:
            keep &= ~((wave >= low) & (wave <= high))
        if not keep.any():
            raise InputError(f"{source}: none of its {len(names)} lines is of {', '.join(species)}")
        table.data = table.data[keep]
        return _written(hdus, output)


def _opened(path: PathLike) -> fits.HDUList:
    try:
        return fits.open(path, memmap=False, character_as_bytes=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _table(path: PathLike, hdus: fits.HDUList, *columns: str) -> fits.BinTableHDU:
    """The first extension."""
    if len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU):
        raise InputError(f"{path}: its first extension is no table, expected one with {', '.join(columns)}")
    missing = [c for c in columns if c not in hdus[1].columns.names]
    if missing:
        raise InputError(f"{path}[{hdus[1].name or 1}]: column {missing[0]} is missing")
    return hdus[1]


def _written(hdus: fits.HDUList, output: PathLike) -> Path:
    with atomic_path(output, overwrite=True) as temporary:
        hdus.writeto(temporary, overwrite=True, checksum=True)
    return Path(output)
