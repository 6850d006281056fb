"""Light of the calibration unit and of the twilight: arc lamps, continuum lamp, pinhole mask, twilight sky.

All are a `Light` of `optics`: rates of photo-electrons of the average slice.  The rates are such that the
exposures of a usual calibration (`EXPTIMES`) are well exposed and no line saturates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import SPECTRAL_SAMPLING
from . import tables

if TYPE_CHECKING:
    from astropy.table import Table

#: arc lamps and their ions; also the names that plans use
LAMPS: Mapping[str, tuple[str, ...]] = {"Ne": ("NeI",), "Xe": ("XeI",), "HgCd": ("HgI", "CdI")}
#: usual exposure times of the lamps [s]
EXPTIMES: Mapping[str, float] = {"Ne": 1.4, "Xe": 35.5, "HgCd": 18.5, "continuum": 0.35}
#: electrons of the brightest line of a lamp in a column of pixels and a usual exposure: its peak is some 36 000
BRIGHTEST = 80000.0
#: width of a line on the detector [Angstrom], as the reference assumes it
LINE_FWHM = 2.61
#: electrons in a pixel of the flat field at its maximum and in a usual exposure
FLAT_PEAK = 25000.0
#: distances of the pinholes of the mask [mm]: along the slices, across them (calibration recipes, section 9)
PINHOLE_DX, PINHOLE_DY = 2.9450, 0.6135
#: spaxels of the wide-field mode per mm of the mask: focal plane of 1.705 arcsec/mm
SPAXELS_PER_MM = 1.705 / 0.2
#: rotation of the mask against the field [deg]
MASK_ANGLE = 0.02
#: surface brightness in the middle of a pinhole's image relative to the lamp without mask
MASK_BRIGHTNESS = 0.15
#: size of a pinhole's image, standard deviations along and across the slices [spaxels]
SPOT_SIGMA = 0.85, 0.6
#: e-folding time of the brightness of the twilight [s]: 0.23 mag per minute (Patat, Ugolnikov & Postylyakov
#: 2006, A&A 455, 385)
TWILIGHT_DECAY = 60 * 1.0857 / 0.23
#: loss of light of the calibration unit with the square of the distance from the middle [spaxel-2]
_FALL = 0.03 / (2 * 150.0**2)
#: start and step of tabulated spectra [Angstrom], and their length
_GRID = 4000.0, 0.25, 25601
#: response of spectrograph and detector, for light of the calibration unit: wavelength [Angstrom], relative
_RESPONSE = (
    np.array([4000.0, 4500, 4650, 4800, 5000, 5500, 6000, 6500, 7000, 7500, 8000, 8500, 9000, 9300, 9500, 9800, 10400]),
    np.array([0.1, 0.27, 0.37, 0.46, 0.57, 0.78, 0.9, 0.98, 1.0, 0.96, 0.86, 0.71, 0.54, 0.43, 0.36, 0.26, 0.1]),
)


def _grid() -> NDArray[np.float64]:
    return np.asarray(_GRID[0] + _GRID[1] * np.arange(_GRID[2]), np.float64)


@lru_cache(maxsize=1)
def _catalogue() -> NDArray[np.void]:
    table = tables.read("arc_lines.txt")
    lamp_of = {ion: lamp for lamp, ions in LAMPS.items() for ion in ions}
    lines = np.zeros(
        len(table["wave"]),
        [("wave", "f8"), ("error", "f8"), ("ion", "U3"), ("lamp", "U4"), ("rate", "f8"), ("quality", "i4")],
    )
    lines["wave"], lines["error"], lines["ion"] = table["wave"], table["error"], table["ion"]
    lines["lamp"] = [lamp_of[ion] for ion in table["ion"]]
    for lamp in LAMPS:
        of = np.flatnonzero(lines["lamp"] == lamp)
        strength = np.asarray(table["strength"][of], np.float64)
        lines["rate"][of] = strength / strength.max() * BRIGHTEST / EXPTIMES[lamp]
        lines["quality"][of] = _quality(lines["wave"][of], strength / strength.max() * BRIGHTEST, lines["error"][of])
    lines.setflags(write=False)
    return lines


def _quality(wave: NDArray[np.float64], counts: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.int_]:
    """Quality flags of the lines of one lamp, sorted by wavelength; the rule is stated in `arc_lines`."""
    width = 1.4 * LINE_FWHM / 2.3548
    d = wave[None, :] - wave[:, None]
    ratio = counts[None, :] / counts[:, None]
    pull = np.abs(np.sum(ratio * d * np.exp(-((d / width) ** 2) / 4), axis=1))
    near = np.where((np.abs(d) < 12) & (d != 0), ratio, 0).max(axis=1)
    brighter = np.where((np.abs(d) < 3) & (d != 0), ratio, 0).max(axis=1) >= 1
    precise = error <= 0.005
    quality = np.where((counts < 150) | brighter | (pull > 0.3), 0, 1)
    usable = (quality > 0) & precise & (pull < 0.01) & (counts >= 1000)
    quality[usable & (near < 0.05)] = 3
    quality[usable & (near < 0.02) & (counts >= 8000)] = 5
    # multiplets: neighbours that spoil each other and nothing else, to be fitted together
    k = 0
    while k < len(wave) - 1:
        members = [k]
        while members[-1] + 1 < len(wave) and wave[members[-1] + 1] - wave[members[-1]] < 12:
            members.append(members[-1] + 1)
        first, last = members[0], members[-1]
        k = last + 1
        bright = [m for m in members if counts[m] >= 0.03 * counts[first : last + 1].max()]
        if len(bright) < 2 or wave[bright[-1]] - wave[bright[0]] > 25:
            continue
        faint = [m for m in members if m not in bright]
        gaps = np.diff(wave[bright])
        spoiled = any(counts[m] > 0.005 * counts[bright].min() for m in faint)
        if gaps.min() > 3.5 and not spoiled and precise[bright].all() and counts[bright].min() >= 1000:
            quality[bright] = 2
            quality[faint] = 0
    # the reference fits all multiplets within 40 Angstrom of the first at once: no more than one there
    start, size = -math.inf, 0.0
    for m in np.flatnonzero(quality == 2):
        if wave[m] - start > 60:
            start, size = wave[m], wave[m]
        elif wave[m] - size < 12:
            size = wave[m]
        else:
            quality[m] = 1
    return quality


def arc_lines(lamp: str | None = None) -> Table:
    """Lines of the arc lamps.

    Parameters
    ----------
    lamp : str, optional
        "Ne", "Xe", "HgCd" or several of them, joined by commas; default: all.

    Returns
    -------
    astropy.table.Table
        Sorted by wavelength.  Columns ``wave`` (in air, Angstrom; NIST Atomic Spectra Database), ``error``
        (its uncertainty there), ``ion`` (NeI ...), ``lamp``, ``rate`` (e-/s/spaxel), ``flux`` (electrons in a
        column of pixels and an exposure of `EXPTIMES`) and ``quality``:

        ===  ==================================================================================
        0    not to be seen: less than 150 electrons, less than 3 Angstrom from a brighter line of the lamp, or
             moved by more than 0.3 Angstrom by its neighbours
        1    good enough to be identified
        2    of a multiplet: all lines within 12 Angstrom that have more than 3 % of the brightest, farther
             than 3.5 Angstrom from each other, with 1000 electrons and a wavelength known to 0.005
             Angstrom, and nothing else with more than 0.5 % of the faintest
        3    moved by its neighbours by less than 0.01 Angstrom, none with more than 5 % of its flux
             within 12 Angstrom, 1000 electrons, wavelength known to 0.005 Angstrom
        5    as 3, with 2 % and 8000 electrons
        ===  ==================================================================================

        A line is moved by its neighbours at distances d with relative fluxes r by the sum of
        r d exp(-d^2/(4 s^2)), as a fit of a Gaussian of standard deviation s is; s is that of the instrument
        (FWHM 2.61 Angstrom), and 1.4 times as large for the weights that give the wings more influence.

    Raises
    ------
    InputError
        If the lamp is unknown.
    """
    from astropy import units as u
    from astropy.table import Table

    lines = _catalogue()
    if lamp is not None:
        lines = lines[np.isin(lines["lamp"], lamp_names(lamp))]
    table = Table(lines)
    times = np.array([EXPTIMES[str(name)] for name in lines["lamp"]])
    table["flux"] = lines["rate"] * times
    table["wave"].unit = table["error"].unit = u.Angstrom
    table["rate"].unit = u.electron / u.s
    table["flux"].unit = u.electron
    return table


def lamp_names(lamp: str | Iterable[str]) -> list[str]:
    """Names of arc lamps, from a list or joined by commas; continuum lamps are left out.

    Raises
    ------
    InputError
        If one is unknown or there is none.
    """
    names = [name.strip() for name in (lamp.split(",") if isinstance(lamp, str) else lamp)]
    unknown = [name for name in names if name not in LAMPS and name != "continuum"]
    found = [name for name in names if name in LAMPS]
    if unknown or not found:
        raise InputError(f"lamp: {lamp!r} found, expected one or more of {', '.join(LAMPS)}")
    return found


def _filters(mode: str, wave: ArrayLike) -> NDArray[np.float64]:
    from .optics import Instrument

    return np.asarray(Instrument(mode).filters(wave), np.float64)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _lit(wave, x, y, spectrum, start, step, gx, gy, fall, out):  # type: ignore[no-untyped-def]
    """Tabulated spectrum times (1 + gx x + gy y - fall (x^2 + y^2)); `wave` has one more axis than `x` and `y`."""
    last = len(spectrum) - 2
    for i in range(wave.shape[0]):
        for j in range(wave.shape[1]):
            for k in range(wave.shape[2]):
                t = (wave[i, j, k] - start) / step
                n = min(max(int(t), 0), last)
                f = min(max(t - n, 0.0), 1.0)
                a, b = x[j, k], y[j, k]
                field = 1.0 + gx * a + gy * b - fall * (a * a + b * b)
                out[i, j, k] = (spectrum[n] + f * (spectrum[n + 1] - spectrum[n])) * field


def _spectrum_over_field(
    spectrum: NDArray[np.float64],
    x: ArrayLike,
    y: ArrayLike,
    wave: ArrayLike,
    gradient: tuple[float, float] = (0.0, 0.0),
    fall: float = 0.0,
) -> NDArray[np.float32]:
    """Spectrum on the grid `_GRID` at positions and wavelengths that are broadcast."""
    xa, ya, wa = (np.asarray(v, np.float32) for v in (x, y, wave))
    shape = np.broadcast_shapes(xa.shape, ya.shape, wa.shape)
    wa = np.broadcast_to(wa, shape)
    if len(shape) >= 2 and max(xa.ndim, ya.ndim) <= 2:
        field = shape[-2:]
    else:
        field = (1, int(np.prod(shape)))
        xa, ya = (np.broadcast_to(v, shape) for v in (xa, ya))
    xa, ya = (np.broadcast_to(v, field) if v.shape != shape else v.reshape(field) for v in (xa, ya))
    wa = wa.reshape(-1, *field)
    out = np.empty(wa.shape, np.float32)
    _lit(wa, xa, ya, spectrum, _GRID[0], _GRID[1], *gradient, fall, out)
    return out.reshape(shape)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _spots(x, y, cosine, sine, px, py, shift, sx, sy, out):  # type: ignore[no-untyped-def]
    """Images of pinholes in a grid of `px`, `py`, averaged over the height of a slice."""
    root = math.sqrt(2.0)
    for i in range(x.size):
        u = (x[i] * cosine + y[i] * sine) / px
        v = (y[i] * cosine - x[i] * sine + shift) / py
        dx = (u - math.floor(u) - 0.5) * px
        dy = (v - math.floor(v + 0.5)) * py
        across = 0.0
        for k in range(-1, 2):
            d = dy + k * py
            across += (math.erf((d + 0.5) / (sy * root)) - math.erf((d - 0.5) / (sy * root))) / 2
        out[i] = math.exp(-0.5 * (dx / sx) ** 2) * across


def illumination(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Light of the calibration unit over the field: 1 in the middle, 3 % less in the corners."""
    return 1 - _FALL * (np.asarray(x, np.float64) ** 2 + np.asarray(y, np.float64) ** 2)


class _Even:
    """Light that fills the field nearly evenly, without lines."""

    line_waves: NDArray[np.float64]
    line_rates: NDArray[np.float64]
    smooth = True

    def __init__(self) -> None:
        self.line_waves, self.line_rates = np.empty(0), np.empty(0)

    def line_factor(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float64]:
        """Relative brightness of the lines, broadcast."""
        return illumination(x, y) * np.ones(np.shape(wave))

    def continuum(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float32]:
        """No continuum: zeros of the broadcast shape [e-/s/Angstrom/spaxel]."""
        return np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(wave)), np.float32)


class FlatLight(_Even):
    """Continuum lamp, for flat fields and ILLUM frames.

    A halogen lamp of 3200 K behind a filter that makes it bluer, seen through telescope-independent parts of
    the instrument: a smooth spectrum with its maximum near 7000 Angstrom.

    Parameters
    ----------
    mode : str
        Instrument mode, for its filters.
    brightness : float
        Relative to the usual one, which gives `FLAT_PEAK` electrons in a pixel in the usual time.
    """

    def __init__(self, mode: str = "WFM-NOAO-N", brightness: float = 1.0) -> None:
        super().__init__()
        w = _grid()
        c2 = 1.438776877e8  # second radiation constant, Angstrom K (CODATA 2018)
        lamp = (7000 / w) ** 4 * np.expm1(c2 / (7000 * 3200)) / np.expm1(c2 / (w * 3200))
        rate = lamp * 2 / (1 + (w / 7500) ** 4) * np.interp(w, *_RESPONSE)
        # a pixel has 1.25 Angstrom and nearly a spaxel
        rate *= FLAT_PEAK / EXPTIMES["continuum"] / SPECTRAL_SAMPLING / rate.max() * brightness
        self._rate = rate * _filters(mode, w)

    def continuum(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float32]:
        """Spectrum of the lamp [e-/s/Angstrom/spaxel], broadcast."""
        return _spectrum_over_field(self._rate, x, y, wave, fall=_FALL)


IllumLight = FlatLight


class ArcLight(_Even):
    """Arc lamps.

    Parameters
    ----------
    lamp : str
        "Ne", "Xe", "HgCd", or several of them joined by commas.
    mode : str
        Instrument mode, for its filters.
    """

    def __init__(self, lamp: str, mode: str = "WFM-NOAO-N") -> None:
        super().__init__()
        lines = _catalogue()
        lines = lines[np.isin(lines["lamp"], lamp_names(lamp))]
        self.line_waves = np.array(lines["wave"])
        self.line_rates = lines["rate"] * _filters(mode, lines["wave"])


class MaskLight(ArcLight):
    """Arc lamps behind the mask of pinholes.

    The pinholes are `PINHOLE_DX` and `PINHOLE_DY` apart, so that three of them fall on every slice once they are
    at its height.  A mask moved up by `position` moves the spots to smaller Y, as the reference has it: its
    positions, Y reversed, are those of a geometry table.

    Parameters
    ----------
    lamp : str
        As of `ArcLight`.
    position : float
        Of the mask, vertically [mm].
    mode : str
    angle : float
        Rotation of the mask against the field [deg].
    """

    def __init__(
        self, lamp: str, position: float = 0.0, mode: str = "WFM-NOAO-N", angle: float = MASK_ANGLE
    ) -> None:
        super().__init__(lamp, mode)
        self.position, self.angle = position, angle

    def line_factor(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float64]:
        """Brightness of the spots, averaged over the height of a slice (one spaxel)."""
        xb, yb = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        out = np.empty(xb.size)
        px, py = PINHOLE_DX * SPAXELS_PER_MM, PINHOLE_DY * SPAXELS_PER_MM
        angle, shift = math.radians(self.angle), self.position * SPAXELS_PER_MM
        _spots(xb.ravel(), yb.ravel(), math.cos(angle), math.sin(angle), px, py, shift, *SPOT_SIGMA, out)
        spots = out.reshape(xb.shape)
        return MASK_BRIGHTNESS * spots * illumination(xb, yb) * np.ones(np.shape(wave))


class TwilightLight(_Even):
    """Sky in the evening twilight: sunlight with its absorption lines, and no structure but a gradient.

    Parameters
    ----------
    mode : str
        Instrument mode, for its filters.
    elapsed : float
        Time since the brightness was `brightness` [s].
    brightness : float
        Electrons per second in a pixel at the maximum of the spectrum.
    gradient : tuple of float
        Relative change of brightness over an arcminute towards larger X and Y.
    """

    smooth = False

    def __init__(
        self,
        mode: str = "WFM-NOAO-N",
        elapsed: float = 0.0,
        brightness: float = 10000.0,
        gradient: tuple[float, float] = (0.01, 0.004),
    ) -> None:
        from .atmosphere import solar_spectrum

        super().__init__()
        self.gradient = gradient
        w = _grid()
        # photons of the Sun, scattered by the high atmosphere: somewhat bluer
        rate = solar_spectrum(w) * (7000 / w) ** 1.5 * np.interp(w, *_RESPONSE) * w / 7000
        rate *= brightness / SPECTRAL_SAMPLING / rate.max() * math.exp(-elapsed / TWILIGHT_DECAY)
        self._rate = rate * _filters(mode, w)

    def continuum(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float32]:
        """Spectrum of the twilight [e-/s/Angstrom/spaxel], broadcast."""
        gx, gy = self.gradient
        return _spectrum_over_field(self._rate, x, y, wave, (gx / 300, gy / 300))
