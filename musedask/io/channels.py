"""Which IFUs a file has data of, by its headers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from ..errors import InputError
from .products import channel_number


@dataclass(frozen=True)
class Channel:
    """Extensions of an IFU in a file.

    Attributes
    ----------
    alive : bool
        Whether the detector worked: ``ESO DET CHIP LIVE``.
    data : bool
        Whether there are data.
    """

    alive: bool = True
    data: bool = True


@dataclass(frozen=True)
class Channels:
    """IFUs of a file.

    Attributes
    ----------
    path : Path
    own : int or None
        IFU of a file that belongs to one: ``EXTNAME`` of the primary header is ``CHANnn``.
    extensions : mapping of int to Channel
        By IFU, those of extensions ``CHANnn`` and ``CHANnn.NAME``.
    product : bool
        Whether it calls itself a product: ``PIPEFILE`` is in the primary header.
    """

    path: Path
    own: int | None
    extensions: Mapping[int, Channel]
    product: bool

    @property
    def ifus(self) -> list[int]:
        """All IFUs that it names."""
        return sorted({*self.extensions, *([] if self.own is None else [self.own])})

    @property
    def generic(self) -> bool:
        """Whether it belongs to no IFU and is for all: a static calibration."""
        return not self.ifus and not self.product

    def text(self) -> str:
        """What it has, in a few words: ``IFU 3``, ``IFUs 1, 12``, ``a product without IFU``."""
        if self.ifus:
            return f"IFU{'s' * (len(self.ifus) > 1)} {number_ranges(self.ifus)}"
        return "a product without IFU (PIPEFILE, no EXTNAME CHANnn)" if self.product else "all IFUs"


def number_ranges(numbers: list[int]) -> str:
    """Numbers in order as text: ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def read_channels(path: str | os.PathLike[str]) -> Channels:
    """Find the IFUs of a file in the headers of all its extensions; an unchanged file is read once.

    Raises
    ------
    InputError
        If it is no FITS file.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _read(path: Path, mtime: int, size: int) -> Channels:
    found: dict[int, list[fits.Header]] = {}
    end = 0
    try:
        with warnings.catch_warnings():
            # astropy warns of truncated files only; that is an error below
            warnings.simplefilter("ignore", AstropyUserWarning)
            # a compressed extension is a table here, with the cards of its image
            with fits.open(path, memmap=False, disable_image_compression=True) as hdus:
                primary = hdus[0].header
                for hdu in hdus:
                    place = hdu.fileinfo()
                    end = place["datLoc"] + place["datSpan"]
                    number = channel_number(hdu.header.get("EXTNAME"))
                    if number is not None and hdu is not hdus[0]:
                        found.setdefault(number, []).append(hdu.header)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error
    if end > size:
        raise InputError(f"{path}: truncated; {size} bytes found, expected at least {end}")
    extensions = {
        number: Channel(
            all(bool(h.get("ESO DET CHIP LIVE", True)) for h in headers), any(h.get("NAXIS", 0) > 0 for h in headers)
        )
        for number, headers in found.items()
    }
    return Channels(path, channel_number(primary.get("EXTNAME")), extensions, "PIPEFILE" in primary)
