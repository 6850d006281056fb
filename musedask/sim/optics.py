"""The optics of the simulated instrument: where light of a place and wavelength falls on which pixel.

The instrument is fixed: everything irregular in it (traces, wavelength zero points, throughput, positions
in the field) comes from streams of random numbers that depend on nothing but IFU and slice.  It is the
truth that calibration recipes are expected to find.

Coordinates
-----------
Detector: trimmed image of 4096 x 4112 pixels, ``x`` and ``y`` counted from 1, pixel centres are integers;
wavelength rises with ``y``.  Slices are numbered 1..48 from left to right; arrays have index ``slice - 1``.

Field: ``X``, ``Y`` in spaxels as in a geometry table of the reference pipeline.  A slice with left and
right edges L, R, position (x, y), angle a and width w has ``d = ((L + R)/2 - x_pixel)/(R - L) w`` (the sky is
reversed within a slice), ``X = d cos a + x``, ``Y = d sin a + y``.  IFU 1 is at the bottom (small Y).  Of the 48
slices on the sky 1..12 make the stack at the smallest X, 1 at its bottom, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numba as nb
import numpy as np
from numpy.polynomial import polynomial as P
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import CCD_TO_SKY_SLICE, N_IFUS, N_SLICES, SLICE_WIDTH, Mode, mode_from_name

#: size of the trimmed detector [pixels]
NX, NY = 4096, 4112
#: modes of the instrument
MODES = ("WFM-NOAO-N", "WFM-NOAO-E", "WFM-AO-N", "WFM-AO-E", "NFM-AO-N")
#: effective collecting area of a VLT unit telescope [cm2]
TELESCOPE_AREA = 483250.7
#: product of Planck's constant and the speed of light [erg Angstrom] (CODATA 2018)
_HC = 1.98644586e-8
#: temperature for which the throughput is stated [deg C]
REFERENCE_TEMPERATURE = 10.0
#: half width and step of the tabulated line spread function [Angstrom]
LSF_RANGE, LSF_STEP = 10.0, 0.025

# key of all random numbers of the instrument
_KEY = 0x3A5E, 0
#: orders of the polynomials, those of the reference pipeline
_TRACE_ORDER, _X_ORDER, _Y_ORDER = 5, 2, 6
#: sampling of a mask of pinholes by IFU n: distance of two pinholes is (a + b n) pixels on the detector and
#: 2.9450 mm in the focal plane of 1.705 arcsec/mm (calibration recipes, section 9)
_PINHOLES, _PINHOLE_DISTANCE = (26.04644, -0.05537208), 2.9450 * 1.705 / 0.2
#: step from slice to slice [spaxels]: 288 of them fill an arcminute
_STEP_Y = 60.0 / 288 / 0.2
#: the reference pipeline's zero of X is between these slices on the sky of this IFU, that of Y at the first
_REFERENCE = 12, 24, 36
#: gap between the slices of neighbouring IFUs [spaxels], beyond that step
_GAP_Y = 0.08
#: part of the light in the wings of the line spread function, their width in units of the core's, their
#: position relative to the core [Angstrom], and width of the slit image [Angstrom]
_WINGS, _WING_SIGMA, _WING_SHIFT, _SLIT = 0.07, 1.9, 0.35, 1.3
#: first moment of the line spread function [Angstrom]: a Gaussian fitted to a bright line is then at 0
_MOMENT = 0.0080
#: the vignetted corner: X - Y [spaxels] from which it gets darker, width of the transition, depth
_VIGNETTING = 268.0, 45.0, 0.35
#: light that gets through the blocking filter and the notch where they are closed
_BLOCKED, _NOTCHED = 0.02, 1e-3
#: total efficiency of telescope and instrument: wavelength [Angstrom], fraction.  Read off the curves of
#: the instrument's user manual (wide-field mode without adaptive optics), rounded
_EFFICIENCY = (
    (4300.0, 4500.0, 4650.0, 4800.0, 5000.0, 5500.0, 6000.0, 6500.0, 7000.0, 7500.0, 8000.0, 8500.0, 9000.0,
     9300.0, 9500.0, 9800.0),
    (0.05, 0.095, 0.13, 0.162, 0.20, 0.272, 0.315, 0.342, 0.35, 0.336, 0.30, 0.248, 0.188, 0.15, 0.125, 0.09),
)  # fmt: skip


class Light(Protocol):
    """What falls on the slicer: rates of photo-electrons of the average slice.

    Attributes
    ----------
    line_waves : ndarray of float64, shape (n,)
        Wavelengths of unresolved lines [Angstrom, air]; may be empty.
    line_rates : ndarray of float64, shape (n,)
        [e-/s/spaxel]
    smooth : bool
        The continuum is smooth on the scale of the line spread function, so it need not be convolved.
    """

    line_waves: NDArray[np.float64]
    line_rates: NDArray[np.float64]
    smooth: bool

    def line_factor(
        self, x: NDArray[np.float32], y: NDArray[np.float32], wave: NDArray[np.float32]
    ) -> ArrayLike:
        """Spatial factor of the lines.

        Parameters
        ----------
        x, y : ndarray of float32, shape (n_lines, n_columns)
            Position in the field [spaxels].
        wave : ndarray of float32, shape (n_lines, 1)
            Wavelengths of the lines.

        Returns
        -------
        array-like
            Broadcasts to the shape of `x`.
        """

    def continuum(
        self, x: NDArray[np.float32], y: NDArray[np.float32], wave: NDArray[np.float32]
    ) -> ArrayLike:
        """Continuum and all that is resolved [e-/s/Angstrom/spaxel].

        Parameters
        ----------
        x, y : ndarray of float32, shape (n_rows, n_columns)
            Position in the field [spaxels] of the pixels of a slice.
        wave : ndarray of float32, shape (n_rows, n_columns) or (oversampling, n_rows, n_columns)
            Wavelengths; with a first axis for points within a pixel if not `smooth`.

        Returns
        -------
        array-like
            Broadcasts to the shape of `wave`.
        """


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((*_KEY, *key))))


class Instrument:
    """MUSE in one of its modes.

    Parameters
    ----------
    mode : str
        ``ESO INS MODE``, one of `MODES`.
    vignetted : bool
        Whether a corner of the field, in the first IFU, is vignetted, as it was until March 2017.

    Attributes
    ----------
    mode : Mode
    vignetted : bool

    Raises
    ------
    InputError
        If the mode is unknown.

    Examples
    --------
    >>> optics = Instrument("WFM-NOAO-N").ifu(12)
    >>> float(optics.wavelength(24, *optics.middle(24)).round())
    6969.0
    """

    def __init__(self, mode: str = "WFM-NOAO-N", *, vignetted: bool = True) -> None:
        if mode.replace("NONAO", "NOAO") not in MODES:
            raise InputError(f"mode: {mode!r} found, expected one of {', '.join(MODES)}")
        self.mode: Mode = mode_from_name(mode)
        self.vignetted = vignetted

    def __reduce__(self) -> tuple[Any, ...]:
        return _instrument, (self.mode.name, self.vignetted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instrument) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__()[1])

    def __repr__(self) -> str:
        return f"Instrument({self.mode.name!r}, vignetted={self.vignetted})"

    def ifu(self, ifu: int) -> IfuOptics:
        """Optics of an IFU.

        Raises
        ------
        InputError
            If `ifu` is not one of 1..24.
        """
        return _ifu(self, int(ifu))

    def limits(self, ifus: Iterable[int]) -> tuple[float, float, float, float]:
        """Lowest and highest X, lowest and highest Y [spaxels] of the pixel centres of some IFUs.

        These are the limits that the reference pipeline writes into a pixel table that is not cropped;
        their middle has the coordinates of the pointing.
        """
        parts = np.array([self.ifu(i).limits for i in ifus])
        if parts.size == 0:
            raise InputError("ifus: none given, expected numbers 1..24")
        low, high = parts.min(axis=0), parts.max(axis=0)
        return float(low[0]), float(high[1]), float(low[2]), float(high[3])

    def centre(self, ifus: Iterable[int]) -> tuple[float, float]:
        """Middle of `limits` [spaxels]."""
        xlo, xhi, ylo, yhi = self.limits(ifus)
        return (xlo + xhi) / 2, (ylo + yhi) / 2

    def filters(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Transmission of the filters of the mode: blocking filter (blue end) and sodium notch (AO modes).

        It is part of `sensitivity`.  Light of the calibration unit passes the same filters.  Some light gets
        through everywhere: where a flat field is dark, slices cannot be traced.
        """
        w = np.asarray(wave, np.float64)
        result = 1 / (1 + np.exp(-np.clip((w - self.mode.useful[0] + 20) / 5, -50, 50)))
        result = _BLOCKED + (1 - _BLOCKED) * result
        if self.mode.notch is not None:
            low, high = self.mode.notch
            inside = 1 / (1 + np.exp(-np.clip((w - low - 10) / 3, -50, 50)))
            inside /= 1 + np.exp(np.clip((w - high + 10) / 3, -50, 50))
            result *= 1 - (1 - _NOTCHED) * inside
        return result

    def sensitivity(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Electrons per second and Angstrom of the average slice for a flux of 1e-20 erg/s/cm2/Angstrom.

        Parameters
        ----------
        wave : array-like
            [Angstrom]

        Returns
        -------
        ndarray of float64
            Telescope and instrument, without the atmosphere.
        """
        w = np.asarray(wave, np.float64)
        efficiency = _efficiency()(np.clip(w, _EFFICIENCY[0][0], _EFFICIENCY[0][-1]))
        return efficiency * self.filters(w) * (TELESCOPE_AREA * 1e-20 / _HC) * w

    def is_vignetted(self, x: ArrayLike, y: ArrayLike) -> bool:
        """Whether any of some places in the field [spaxels], or one a few spaxels away, is vignetted."""
        return self.vignetted and bool(np.max(np.subtract(x, y)) > _VIGNETTING[0] - 5)

    def vignetting(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Factor, at most 1, by which light is lost at a place in the field [spaxels]."""
        d0, width, depth = _VIGNETTING
        d = np.asarray(x, np.float64) - np.asarray(y, np.float64) - d0
        if not self.vignetted:
            return np.ones_like(d)
        t = np.clip(d / width, 0, 1)
        return 1 - depth * t * t * (3 - 2 * t)


@lru_cache(maxsize=8)
def _instrument(mode: str, vignetted: bool) -> Instrument:
    return Instrument(mode, vignetted=vignetted)


@lru_cache(maxsize=1)
def _efficiency() -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(*_EFFICIENCY)


@lru_cache(maxsize=4 * N_IFUS)
def _ifu(instrument: Instrument, ifu: int) -> IfuOptics:
    return IfuOptics(instrument, ifu)


@lru_cache(maxsize=1)
def _ifu_throughputs() -> NDArray[np.float64]:
    """Relative throughput of the 24 IFUs; their mean is 1."""
    values = np.array([1 + 0.06 * _stream(ifu, 0).uniform(-1, 1, 8)[4] for ifu in range(1, N_IFUS + 1)])
    return values / values.mean()


class IfuOptics:
    """The slices of one IFU; arrays have one row per CCD slice.

    Attributes
    ----------
    instrument : Instrument
    ifu : int
    mode : Mode
    left, right, centre : ndarray of float64, shape (48, 6)
        Edges (half-light points) and middle of the slices [pixels]: polynomials in `y` by ascending
        powers, as in a trace table.
    wave : ndarray of float64, shape (48, 3, 7)
        Wavelength in air [Angstrom] = sum over i, j of ``wave[s, i, j] x**i y**j``, as in a table of the
        wavelength calibration.
    x, y : ndarray of float64, shape (48,)
        Position in the field [spaxels].
    angle : ndarray of float64, shape (48,)
        [deg]
    width : ndarray of float64, shape (48,)
        [spaxels]
    sky_slice : ndarray of int, shape (48,)
        Number of the slice on the sky.
    """

    def __init__(self, instrument: Instrument, ifu: int) -> None:
        if not 1 <= ifu <= N_IFUS:
            raise InputError(f"ifu: {ifu} found, expected 1..{N_IFUS}")
        self.instrument, self.ifu, self.mode = instrument, ifu, instrument.mode
        slices = _slices(ifu)
        self.left, self.right, self.wave = slices.left, slices.right, slices.wave
        self.centre = (self.left + self.right) / 2
        self.x, self.y, self.angle, self.width = slices.x, slices.y, slices.angle, slices.width
        self.sky_slice = np.array(CCD_TO_SKY_SLICE)
        self._fwhm, self._throughput, self._profile = slices.fwhm, slices.throughput, slices.profile

    def __reduce__(self) -> tuple[Any, ...]:
        return _ifu, (self.instrument, self.ifu)

    def __repr__(self) -> str:
        return f"IfuOptics({self.ifu}, {self.mode.name!r})"

    def edges(self, s: int, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left and right edge [pixels] of CCD slice `s` (1..48) at rows `y`."""
        y = np.asarray(y, np.float64)
        return P.polyval(y, self.left[s - 1]), P.polyval(y, self.right[s - 1])

    def wavelength(self, s: int, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Wavelength in air [Angstrom] of CCD slice `s` at detector positions, broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        return P.polyval2d(x, y, self.wave[s - 1])

    def row(self, s: int, x: ArrayLike, wave: ArrayLike) -> NDArray[np.float64]:
        """Detector row of a wavelength [Angstrom] in column `x` of CCD slice `s`: inverse of `wavelength`."""
        x, wave = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(wave, np.float64))
        dy = P.polyder(self.wave[s - 1], axis=1)
        y = np.full(x.shape, (NY + 1) / 2)
        for _ in range(6):  # Newton: the dispersion changes by some per cent only
            y -= (P.polyval2d(x, y, self.wave[s - 1]) - wave) / P.polyval2d(x, y, dy)
        return y

    def middle(self, s: int) -> tuple[float, float]:
        """Detector position [pixels] of the middle of CCD slice `s`."""
        y = (NY + 1) / 2
        return float(P.polyval(y, self.centre[s - 1])), y

    def position(self, s: int, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position in the field [spaxels] of detector positions in CCD slice `s`, broadcast."""
        left, right = self.edges(s, y)
        d = ((left + right) / 2 - np.asarray(x, np.float64)) / (right - left) * self.width[s - 1]
        a = math.radians(self.angle[s - 1])
        return d * math.cos(a) + self.x[s - 1], d * math.sin(a) + self.y[s - 1]

    @cached_property
    def limits(self) -> tuple[float, float, float, float]:
        """Lowest and highest X, lowest and highest Y [spaxels] of pixel centres."""
        y = np.arange(1, NY + 1)
        found = []
        for s in range(1, N_SLICES + 1):
            left, right = self.edges(s, y)
            for x in (np.ceil(left), np.floor(right)):
                px, py = self.position(s, x, y)
                found.append((px.min(), px.max(), py.min(), py.max()))
        low, high = np.min(found, axis=0), np.max(found, axis=0)
        return float(low[0]), float(high[1]), float(low[2]), float(high[3])

    def lsf_sigma(self, s: int, wave: ArrayLike) -> NDArray[np.float64]:
        """Standard deviation [Angstrom] of the Gaussian core of the line spread function (see `lsf`)."""
        t = (np.asarray(wave, np.float64) - 7000) / 2350
        fwhm = P.polyval(t, self._fwhm[s - 1])
        return np.sqrt((fwhm / 2.3548) ** 2 - _SLIT**2 / 12)

    def lsf(self, s: int, wave: ArrayLike, dlambda: ArrayLike) -> NDArray[np.float64]:
        """Line spread function, normalised, not integrated over pixels.

        Parameters
        ----------
        s : int
            CCD slice.
        wave : array-like
            Wavelength of the line [Angstrom].
        dlambda : array-like
            Distance from the line [Angstrom]; broadcasts with `wave`.

        Returns
        -------
        ndarray of float64
            [1/Angstrom]

        Notes
        -----
        Two Gaussians, a core and weak, wider wings somewhat to the red of it, each convolved with the image
        of the slit, a box.  It is not symmetric, so "the" wavelength of a line is a convention: 0 is where a
        Gaussian fitted to an arc line has its centre, as a wavelength calibration finds it.  The first moment
        is at 0.008 Angstrom.
        """
        sigma, d = np.broadcast_arrays(self.lsf_sigma(s, wave), np.asarray(dlambda, np.float64))
        return _lsf_shape(np.ascontiguousarray(sigma), np.ascontiguousarray(d), 0)

    def lsf_integral(self, s: int, wave: ArrayLike, dlambda: ArrayLike) -> NDArray[np.float64]:
        """Integral of `lsf` from minus infinity to `dlambda`."""
        sigma, d = np.broadcast_arrays(self.lsf_sigma(s, wave), np.asarray(dlambda, np.float64))
        return _lsf_shape(np.ascontiguousarray(sigma), np.ascontiguousarray(d), 1)

    def lsf_table(self, s: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Integral of the line spread function of CCD slice `s` as a table.

        Returns
        -------
        waves : ndarray of float64, shape (n,)
            Equidistant wavelengths [Angstrom].
        table : ndarray of float64, shape (n, 801)
            By wavelength and distance from -10 to 10 Angstrom in steps of 0.025; from exactly 0 to exactly 1.
        """
        waves = np.linspace(4200.0, 9800.0, 29)
        table = np.empty((waves.size, round(2 * LSF_RANGE / LSF_STEP) + 1))
        _fill_lsf(self.lsf_sigma(s, waves), table)
        return waves, table

    def throughput(
        self, s: int, wave: ArrayLike, temperature: float = REFERENCE_TEMPERATURE
    ) -> NDArray[np.float64]:
        """Throughput of CCD slice `s` relative to the average one of all IFUs.

        Parameters
        ----------
        wave : array-like
            [Angstrom]
        temperature : float
            Of the instrument [deg C].  The slices' illumination changes with it by some 0.1 % per degree.

        Returns
        -------
        ndarray of float64
            About 1.  Vignetting (`Instrument.vignetting`) and variation along the slice are not in it.
        """
        level, slope, bend, drift = self._throughput[s - 1]
        t = (np.asarray(wave, np.float64) - 7000) / 2350
        return (
            level * (1 + t * (slope + t * bend)) * (1 + drift * (temperature - REFERENCE_TEMPERATURE))
        )

    def slice_profile(self, s: int, fraction: ArrayLike) -> NDArray[np.float64]:
        """Relative throughput along CCD slice `s`; `fraction` is -1 at its left edge, 1 at its right."""
        return P.polyval(np.asarray(fraction, np.float64), self._profile[s - 1])

    def wave_map(self) -> NDArray[np.float32]:
        """Wavelength of every pixel [Angstrom]; 0 outside the slices.

        Returns
        -------
        ndarray of float32, shape (4112, 4096)
        """
        image = np.zeros((NY, NX), np.float32)
        for s in range(N_SLICES):
            _wave_map(self.left[s], self.right[s], self.wave[s], image)
        return image


# --- the slices -------------------------------------------------------------------------------------------


class _Slices:
    """What is the same in all modes."""

    def __init__(self, ifu: int) -> None:
        n = N_SLICES
        whole = _stream(ifu, 0).uniform(-1, 1, 8)
        r = np.array([_stream(ifu, s).uniform(-1, 1, 24) for s in range(1, n + 1)]).T
        number = np.arange(1, n + 1)
        v = (number - (n + 1) / 2) / ((n - 1) / 2)  # -1 (leftmost) .. 1
        zero = np.zeros(n)

        # traces: curved outwards near the edges of the detector, by about 2 pixels (manual, section 2.1)
        middle = (NX + 1) / 2 + 82.9 * (number - (n + 1) / 2) + 3 * whole[0] + 0.4 * r[0]
        centre = np.array(
            [middle, 1.5 * whole[1] + 0.6 * r[1], 2.0 * v + 0.15 * r[2], 0.3 * whole[2] + 0.15 * r[3],
             0.1 * v, 0.05 * r[4]]
        )  # fmt: skip
        width = np.array([76.5 + 0.35 * r[5], 0.35 + 0.05 * r[6], 0.15 + zero, zero, zero, zero])
        to_y = _substitution(_TRACE_ORDER, (NY + 1) / 2, (NY - 1) / 2)
        self.left = (to_y @ (centre - width / 2)).T.copy()
        self.right = (to_y @ (centre + width / 2)).T.copy()

        # wavelengths: the slices of a CCD start at three heights in turn, and lie on a bow
        step = np.array([33.0, 0.0, -33.0])[(number - 1) % 3]
        zero_point = 6985 + step - 45 * (v**2 - 1 / 3) + 8 * whole[3] + 2 * r[7]
        half = 1.25 * (NY - 1) / 2
        tensor = np.zeros((_X_ORDER + 1, _Y_ORDER + 1, n))
        tensor[0, :, :] = [
            zero_point, half * (1 + 1e-3 * whole[5] + 3e-4 * r[8]), 16 + 1.5 * v + 0.3 * r[9], -4 + 0.2 * r[10],
            0.8 * v, 0.3 + 0.1 * r[11], 0.15 + zero,
        ]  # fmt: skip
        tensor[1, :4, :] = [1.2 * v + 0.3 * r[12], 0.2 * v + 0.1 * r[13], 0.05 * r[14], 0.02 * v]
        tensor[2, :3, :] = [0.35 + 0.05 * r[15], 0.04 * r[16], 0.02 + zero]
        to_y = _substitution(_Y_ORDER, (NY + 1) / 2, (NY - 1) / 2)
        self.wave = np.empty((n, _X_ORDER + 1, _Y_ORDER + 1))
        for k in range(n):
            to_x = _substitution(_X_ORDER, middle[k], 40.0)
            self.wave[k] = to_x @ tensor[:, :, k] @ to_y.T

        # positions in the field
        sky = np.array(CCD_TO_SKY_SLICE)
        stack, row = np.divmod(sky - 1, 12)  # stack 0 is the leftmost in the field, row 0 the lowest
        line = row - 5.5
        spaxels = _PINHOLE_DISTANCE / (_PINHOLES[0] + _PINHOLES[1] * ifu)  # per detector pixel
        extra = _stream(ifu, 0, 1).uniform(-1, 1, (3, 4))[:, stack]
        self.width = (width[0] + width[2] / 3) * spaxels * (1 + 2e-4 * r[17])
        self.angle = 0.15 * whole[6] + 0.06 * extra[0] + 0.008 * line + 0.006 * r[18]
        self.y = _field_y(ifu) + _STEP_Y * line + 0.02 * extra[1] + 0.015 * r[19]
        self.x = self._horizontal(ifu, stack, row)
        # zero points of the reference pipeline
        self.zero: tuple[float, float] = self._zero() if ifu == _REFERENCE[0] else _slices(_REFERENCE[0]).zero
        x0, y0 = self.zero
        self.x -= x0
        self.y -= y0

        # line spread function, throughput
        self.fwhm = np.array(
            [2.47 * (1 + 0.02 * r[20] + 0.015 * v**2 + 0.01 * whole[7]), -0.09 + 0.02 * v, 0.13 + zero]
        ).T.copy()
        level = 1 + 0.04 * r[21] - 0.03 * v**2
        level *= _ifu_throughputs()[ifu - 1] / level.mean()
        drift = 1.5e-3 * r[23] + 1e-3 * (stack - 1.5) / 1.5
        self.throughput = np.array([level, 0.02 * r[22] + 0.01 * v, 0.01 * extra[2], drift]).T.copy()
        self.profile = np.array([1 + zero, 0.008 * r[4], -0.01 + 0.004 * r[6]]).T.copy()

    def _zero(self) -> tuple[float, float]:
        first, second = (CCD_TO_SKY_SLICE.index(sky) for sky in _REFERENCE[1:])
        return float(self.x[first] + self.x[second]) / 2, float(self.y[first])

    def _horizontal(self, ifu: int, stack: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.float64]:
        """Position in X: slices of a row lie side by side with narrow gaps between them."""
        width = np.empty((4, 12))
        width[stack, row] = self.width
        gaps = np.array([0.07, 0.04, 0.07])[:, None] + 0.02 * _stream(ifu, 0, 2).uniform(-1, 1, (3, 12))
        x = np.empty((4, 12))
        x[1] = -(gaps[1] / 2 + width[1] / 2)
        x[2] = gaps[1] / 2 + width[2] / 2
        x[0] = -(gaps[1] / 2 + width[1] + gaps[0] + width[0] / 2)
        x[3] = gaps[1] / 2 + width[2] + gaps[2] + width[3] / 2
        return (x + _field_x(ifu))[stack, row]


def _field_x(ifu: int) -> float:
    """Horizontal position of an IFU."""
    return 0.6 * float(_stream(ifu, 0, 3).uniform(-1, 1))


def _field_y(ifu: int) -> float:
    """Vertical position of the middle of an IFU: 12 slices and a narrow gap from one to the next."""
    return (12 * _STEP_Y + _GAP_Y) * (ifu - 12) + 0.02 * float(_stream(ifu, 0, 4).uniform(-1, 1))


@lru_cache(maxsize=N_IFUS)
def _slices(ifu: int) -> _Slices:
    return _Slices(ifu)


def _substitution(order: int, zero: float, scale: float) -> NDArray[np.float64]:
    """Matrix from coefficients in ``(z - zero)/scale`` to those in ``z``, by ascending powers."""
    matrix = np.zeros((order + 1, order + 1))
    power = np.array([1.0])
    for k in range(order + 1):
        matrix[: k + 1, k] = power
        power = P.polymul(power, [-zero / scale, 1 / scale])
    return matrix


def packed_slice(ifu: int, ccd_slice: int, width: float = SLICE_WIDTH) -> NDArray[np.float64]:
    """Trace, wavelengths and geometry of a slice in one array, for compiled loops.

    Parameters
    ----------
    ifu, ccd_slice : int
    width : float
        Width of a slice [spaxels], nominally 75.  With another one, slices keep their middle on the
        detector but are narrower by the same factor on detector and sky; the stacks move together.

    Returns
    -------
    ndarray of float64, shape (38,)
        left (6), right (6), wave (3 x 7), x, y, cos(angle), sin(angle), width.
    """
    o, k, scale = _slices(ifu), ccd_slice - 1, width / SLICE_WIDTH
    centre, half = (o.right[k] + o.left[k]) / 2, (o.right[k] - o.left[k]) / 2 * scale
    a = math.radians(o.angle[k])
    return np.concatenate(
        [
            centre - half, centre + half, o.wave[k].ravel(),
            [o.x[k] * scale, o.y[k], math.cos(a), math.sin(a), o.width[k] * scale],
        ]
    )  # fmt: skip


#: where left edge, right edge, wavelengths and field position start in the array of `packed_slice`
LEFT, RIGHT, WAVE, PLACE = 0, 6, 12, 33


@nb.njit(nogil=True, cache=True, inline="always")
def field_position(p, x, left, right):  # type: ignore[no-untyped-def]
    """Position in the field [spaxels, float32] of column x of a packed slice, as the reference computes it."""
    dx = np.float32((0.5 * (left + right) - x) / (right - left) * p[PLACE + 4])
    return np.float32(dx * p[PLACE + 2] + p[PLACE]), np.float32(dx * p[PLACE + 3] + p[PLACE + 1])


@nb.njit(nogil=True, cache=True, inline="always")
def poly5(c, start, y):  # type: ignore[no-untyped-def]
    """Polynomial with the six coefficients ``c[start:]``."""
    return c[start] + y * (
        c[start + 1] + y * (c[start + 2] + y * (c[start + 3] + y * (c[start + 4] + y * c[start + 5])))
    )


@nb.njit(nogil=True, cache=True, inline="always")
def wave_row(c, start, y):  # type: ignore[no-untyped-def]
    """Coefficients in x of the wavelength at row y; 21 coefficients ``c[start:]``."""
    a = b = d = 0.0
    for j in range(6, -1, -1):
        a = a * y + c[start + j]
        b = b * y + c[start + 7 + j]
        d = d * y + c[start + 14 + j]
    return a, b, d


@nb.njit(nogil=True, cache=True)
def _wave_map(left, right, wave, image):  # type: ignore[no-untyped-def]
    c = wave.ravel()
    for y in range(1, image.shape[0] + 1):
        low, high = poly5(left, 0, y), poly5(right, 0, y)
        a, b, d = wave_row(c, 0, y)
        for x in range(max(1, math.ceil(low)), min(image.shape[1], math.floor(high)) + 1):
            image[y - 1, x - 1] = a + x * (b + x * d)


# --- line spread function ---------------------------------------------------------------------------------


@nb.njit(nogil=True, cache=True, inline="always")
def _phi(z):  # type: ignore[no-untyped-def]
    return 0.5 * (1.0 + math.erf(z * 0.7071067811865476))


@nb.njit(nogil=True, cache=True, inline="always")
def _boxed(z, half, integral):  # type: ignore[no-untyped-def]
    """Unit Gaussian convolved with a box of half width `half`: density or integral."""
    a, b = z + half, z - half
    pa, pb = _phi(a), _phi(b)
    if integral == 0:
        return (pa - pb) / (2.0 * half)
    ga, gb = math.exp(-0.5 * a * a), math.exp(-0.5 * b * b)
    return (a * pa - b * pb + 0.3989422804014327 * (ga - gb)) / (2.0 * half)


@nb.njit(nogil=True, cache=True)
def lsf_value(sigma, d, integral):  # type: ignore[no-untyped-def]
    """Line spread function at a distance [Angstrom] (integral 0) or its integral (1)."""
    core, wing = sigma, sigma * _WING_SIGMA
    m = _MOMENT - _WINGS * _WING_SHIFT
    zc, zw = (d - m) / core, (d - m - _WING_SHIFT) / wing
    vc = _boxed(zc, 0.5 * _SLIT / core, integral)
    vw = _boxed(zw, 0.5 * _SLIT / wing, integral)
    if integral == 0:
        vc, vw = vc / core, vw / wing
    return (1.0 - _WINGS) * vc + _WINGS * vw


@nb.njit(nogil=True, cache=True)
def _lsf_flat(sigma, d, integral, out):  # type: ignore[no-untyped-def]
    for i in range(d.size):
        out[i] = lsf_value(sigma[i], d[i], integral)


@nb.njit(nogil=True, cache=True)
def _fill_lsf(sigma, table):  # type: ignore[no-untyped-def]
    m, n = table.shape
    for i in range(m):
        for k in range(n):
            table[i, k] = lsf_value(sigma[i], -LSF_RANGE + k * LSF_STEP, 1)
        low, high = table[i, 0], table[i, n - 1]
        for k in range(n):
            table[i, k] = (table[i, k] - low) / (high - low)


def _lsf_shape(sigma: NDArray[np.float64], d: NDArray[np.float64], integral: int) -> NDArray[np.float64]:
    out = np.empty(d.shape)
    _lsf_flat(sigma.ravel(), d.ravel(), integral, out.reshape(-1))
    return out
