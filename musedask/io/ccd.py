"""What the header of an exposure says about its CCD: read-out ports, sections, gains, setup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from .headers import remove_cards
from .products import PathLike, channel, channel_number, open_fits

_DET = "ESO DET"
_NONLIN = "ESO DRS MUSE NONLIN"


class Cards(Protocol):
    """A header, or something like it."""

    def get(self, keyword: str, default: Any = None) -> Any:
        """Value of a card."""


#: rows and columns of an image
Section = tuple[slice, slice]


@dataclass(frozen=True)
class Port:
    """A read-out port; its quadrant is read towards one corner of the CCD.

    Attributes
    ----------
    number : int
        1..4, as in ``ESO DET OUTn``.
    right, top : bool
        Which quadrant.
    gain : float
        [count/adu]
    ron : float or None
        Read-out noise that the header states [count].
    """

    number: int
    right: bool
    top: bool
    gain: float
    ron: float | None


@dataclass(frozen=True)
class Ccd:
    """CCD of an exposure.

    The sections of the raw image along an axis: prescan, data and overscan of the first quadrant, then those
    of the second in reverse, so that the overscans meet in the middle.

    Attributes
    ----------
    ifu : int or None
    nx, ny : int
        Pixels of a quadrant, without scans.
    prescan, overscan : tuple of int
        Their widths in x and y [pix].
    ports : tuple of Port
        Of outputs 1 to 4.
    binning : tuple of int
        In x and y.
    read_id : int or None
        Number of the read-out mode, ``ESO DET READ CURID``.
    read_name : str or None
    chip : tuple of (str or None)
        Name and identification.
    mode : str or None
        Mode of the instrument.
    exptime : float or None
        [s]
    """

    ifu: int | None
    nx: int
    ny: int
    prescan: tuple[int, int]
    overscan: tuple[int, int]
    ports: tuple[Port, ...]
    binning: tuple[int, int]
    read_id: int | None
    read_name: str | None
    chip: tuple[str | None, str | None]
    mode: str | None
    exptime: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an image without scans."""
        return 2 * self.ny, 2 * self.nx

    @property
    def half(self) -> tuple[int, int]:
        """Rows and columns of the whole region of a quadrant in the raw image."""
        return (
            self.ny + self.prescan[1] + self.overscan[1],
            self.nx + self.prescan[0] + self.overscan[0],
        )

    @property
    def raw_shape(self) -> tuple[int, int]:
        """Shape of the raw image."""
        return 2 * self.half[0], 2 * self.half[1]

    def data(self, port: Port) -> Section:
        """Section of the raw image with the pixels of a quadrant."""
        y0 = self.half[0] + self.overscan[1] if port.top else self.prescan[1]
        x0 = self.half[1] + self.overscan[0] if port.right else self.prescan[0]
        return slice(y0, y0 + self.ny), slice(x0, x0 + self.nx)

    def trimmed(self, port: Port) -> Section:
        """Section of the image without scans with the pixels of a quadrant."""
        y0, x0 = self.ny * port.top, self.nx * port.right
        return slice(y0, y0 + self.ny), slice(x0, x0 + self.nx)

    def region(self, port: Port) -> Section:
        """Section of the raw image with a quadrant and its scans."""
        y0, x0 = self.half[0] * port.top, self.half[1] * port.right
        return slice(y0, y0 + self.half[0]), slice(x0, x0 + self.half[1])

    def strips(self, port: Port, ignore: int) -> tuple[Section, Section]:
        """Sections of the raw image with the overscan along x and along y of a quadrant.

        Parameters
        ----------
        port : Port
        ignore : int
            Pixels next to the data that are left out.
        """
        y, x = self.data(port)
        height, width = self.half
        along_x = (
            slice(height, height + self.overscan[1] - ignore) if port.top else slice(y.stop + ignore, height)
        )
        along_y = slice(width, width + self.overscan[0] - ignore) if port.right else slice(x.stop + ignore, width)
        # the corner belongs to the strip along y
        rows = slice(height, 2 * height - self.prescan[1]) if port.top else slice(self.prescan[1], height)
        return (along_x, x), (rows, along_y)


def read_ccd(header: Cards, path: PathLike = "header") -> Ccd:
    """Read the description of a CCD from the merged header of a raw image.

    Parameters
    ----------
    header : astropy.io.fits.Header or RawCards
        Primary cards and those of the extension.
    path : path-like
        For messages.

    Raises
    ------
    InputError
        If a card of the outputs is missing or they do not fit together.
    """
    binning = _binning(header)
    values: dict[str, list[int]] = {
        key: [_number(header, f"{_DET} OUT{n} {key}", path) for n in range(1, 5)]
        for key in ("X", "Y", "NX", "NY", "PRSCX", "PRSCY", "OVSCX", "OVSCY")
    }
    for key in ("NX", "NY", "PRSCX", "PRSCY", "OVSCX", "OVSCY"):
        if len(set(values[key])) > 1:
            raise InputError(f"{path}: {_DET} OUTn {key} {values[key]} found, expected the same of all outputs")
    x, y = values["X"], values["Y"]
    for key, places, far in (("X", x, 4096), ("Y", y, 4112)):
        if not set(places) <= {1, far}:
            raise InputError(f"{path}: {_DET} OUTn {key} {places} found, expected 1 or {far}")
    if not (x[0] == x[3] < x[1] == x[2] and y[0] == y[1] < y[2] == y[3]):
        raise InputError(
            f"{path}: outputs 1 to 4 at X {x}, Y {y} found, expected bottom left, bottom right, top right, top left"
        )

    def size(key: str, axis: int) -> int:
        return values[key][0] // binning[axis]

    ports = []
    for n in range(1, 5):
        gain = header.get(f"{_DET} OUT{n} GAIN")
        if not isinstance(gain, int | float) or not gain > 0:
            raise InputError(f"{path}: {_DET} OUT{n} GAIN {gain} found, expected a positive number")
        ron = header.get(f"{_DET} OUT{n} RON")
        ports.append(Port(n, x[n - 1] != 1, y[n - 1] != 1, float(gain), None if ron is None else float(ron)))
    return Ccd(
        channel_number(header.get("EXTNAME")),
        size("NX", 0),
        size("NY", 1),
        (size("PRSCX", 0), size("PRSCY", 1)),
        (size("OVSCX", 0), size("OVSCY", 1)),
        tuple(ports),
        **read_setup(header),
    )


def read_setup(header: Cards) -> dict[str, Any]:
    """Read what must agree between exposures and calibrations: the last attributes of `Ccd`."""
    return {
        "binning": _binning(header),
        "read_id": header.get(f"{_DET} READ CURID"),
        "read_name": header.get(f"{_DET} READ CURNAME"),
        "chip": (header.get(f"{_DET} CHIP NAME"), header.get(f"{_DET} CHIP ID")),
        "mode": header.get("ESO INS MODE"),
        "exptime": None if header.get("EXPTIME") is None else float(header.get("EXPTIME")),
    }


@dataclass(frozen=True, eq=False)
class NonLinearity:
    """NONLINEARITY_GAIN of an IFU.

    Attributes
    ----------
    gains : tuple of float
        Of outputs 1 to 4 [count/adu].
    coefficients : ndarray of float64, shape (4, order + 1)
        Relative deviation of outputs 1 to 4, polynomials of the decimal logarithm of the data [adu].
    limits : ndarray of float64, shape (4, 2)
        Range of the logarithm in which they are valid.
    """

    gains: tuple[float, ...]
    coefficients: NDArray[np.float64]
    limits: NDArray[np.float64]


def read_nonlinearity(path: PathLike, ifu: int) -> NonLinearity:
    """Read a NONLINEARITY_GAIN.

    Raises
    ------
    InputError
        If the file, the IFU or a card is missing.
    """
    path = Path(path)
    name = channel(ifu)
    with open_fits(path) as hdus:
        found = [hdu.header for hdu in hdus if str(hdu.header.get("EXTNAME", "")).strip() == name]
    if not found:
        raise InputError(f"{path}: there is no extension {name}, expected one in a NONLINEARITY_GAIN")
    header = found[0]

    def get(keyword: str) -> float:
        value = header.get(keyword)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"{path}[{name}]: {keyword} {value} found, expected a number")
        return float(value)

    orders = [int(get(f"{_NONLIN}{n} POLY ORDER")) for n in range(1, 5)]
    coefficients = np.zeros((4, max(orders) + 1))
    for n, order in enumerate(orders, 1):
        coefficients[n - 1, : order + 1] = [get(f"{_NONLIN}{n} POLY COEFF{i}") for i in range(order + 1)]
    limits = [[get(f"{_NONLIN}{n} POLY {end}LIMIT") for end in ("LO", "HI")] for n in range(1, 5)]
    gains = tuple(get(f"{_DET} OUT{n} GAIN") for n in range(1, 5))
    return NonLinearity(gains, coefficients, np.array(limits))


def drop_scans(header: fits.Header) -> None:
    """Remove the cards of prescans and overscans, as of an image without them."""
    remove_cards(header, rf"^{_DET} OUT\d (PRSC|OVSC)[XY]$")


def read_parameters(header: fits.Header) -> dict[str, str]:
    """Read the parameters of the recipe that made a product, as they are written there."""
    found: dict[str, str] = {}
    i = 1
    while f"ESO PRO REC1 PARAM{i} NAME" in header:
        found[header[f"ESO PRO REC1 PARAM{i} NAME"]] = str(header.get(f"ESO PRO REC1 PARAM{i} VALUE", ""))
        i += 1
    return found


def _binning(header: Cards) -> tuple[int, int]:
    return int(header.get(f"{_DET} BINX", 1)), int(header.get(f"{_DET} BINY", 1))


def _number(header: Cards, keyword: str, path: PathLike) -> int:
    value = header.get(keyword)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{path}: {keyword} {value} found, expected a whole number")
    return value
