"""Spectra of stars and galaxies: shapes of known form, and the standard stars.

Wavelengths are in air [Angstrom].  A shape is 1 at `REFERENCE_WAVELENGTH`; a source multiplies it by its flux
there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

#: wavelength at which the fluxes of sources are given [Angstrom]
REFERENCE_WAVELENGTH = 7000.0
#: speed of light [Angstrom/s], and the second radiation constant h c / k [Angstrom K] (CODATA 2018)
_C, _C2 = 2.99792458e18, 1.438776877e8
#: flux density of V = 0 at the effective wavelength of V (Bessell, Castelli & Plez 1998, A&A 333, 231, table A2)
_V_ZERO, _V_WAVE = 3.631e-9, 5450.0
#: hydrogen lines in air [Angstrom] (Wiese & Fuhr 2009, J. Phys. Chem. Ref. Data 38, 565): Balmer alpha to
#: zeta, and their depth and half width relative to H beta in hydrogen atmospheres of 10 000 to 40 000 K
_BALMER = (
    (6562.79, 0.72, 0.85),
    (4861.35, 1.00, 1.00),
    (4340.47, 1.10, 1.00),
    (4101.73, 1.10, 0.95),
    (3970.07, 1.00, 0.85),
    (3889.06, 0.80, 0.75),
)


class Spectrum(Protocol):
    """A spectral shape."""

    def __call__(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Flux density relative to that at `REFERENCE_WAVELENGTH`."""
        ...


@dataclass(frozen=True)
class BlackBody:
    """A black body.

    Attributes
    ----------
    temperature : float
        [K]
    """

    temperature: float
    kind: Literal["blackbody"] = "blackbody"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature: {self.temperature} found, expected > 0 K")

    def __call__(self, wave: ArrayLike) -> NDArray[np.float64]:
        w = np.asarray(wave, np.float64)
        reference = _C2 / (REFERENCE_WAVELENGTH * self.temperature)
        power = (REFERENCE_WAVELENGTH / w) ** 5
        return power * math.expm1(reference) / np.expm1(_C2 / (w * self.temperature))


@dataclass(frozen=True)
class WhiteDwarf:
    """A hydrogen white dwarf: a black body with Balmer lines of Lorentzian optical depth.

    Attributes
    ----------
    temperature : float
        [K]
    depth : float
        Central depth of H beta, 0..0.9.
    half_width : float
        Half width of its optical depth at half its peak [Angstrom].
    """

    temperature: float
    depth: float = 0.5
    half_width: float = 25.0
    kind: Literal["whitedwarf"] = "whitedwarf"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 <= self.depth <= 0.9 and self.half_width > 0):
            raise InputError(
                f"temperature {self.temperature}, depth {self.depth}, half_width {self.half_width} found, "
                "expected temperature > 0, depth 0..0.9, half_width > 0"
            )

    def __call__(self, wave: ArrayLike) -> NDArray[np.float64]:
        w = np.asarray(wave, np.float64)
        lines = self._lines(w) / self._lines(np.array(REFERENCE_WAVELENGTH))
        return BlackBody(self.temperature)(w) * lines

    def _lines(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        peak = -math.log(1 - self.depth)
        depth = np.zeros_like(w)
        for centre, strength, width in _BALMER:
            u = np.abs(w - centre) / (width * self.half_width)
            # Stark wings fall as the power 5/2 of the distance
            depth += strength * peak / (1 + u**2.5)
        return np.exp(-depth)


@dataclass(frozen=True)
class Tabulated:
    """A table, interpolated linearly and constant beyond its ends.

    Attributes
    ----------
    wave : tuple of float
        Increasing wavelengths in air [Angstrom].
    flux : tuple of float
        Flux densities in any unit.
    """

    wave: tuple[float, ...]
    flux: tuple[float, ...]
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        wave, flux = np.asarray(self.wave, np.float64), np.asarray(self.flux, np.float64)
        if len(wave) < 2 or wave.shape != flux.shape or not (np.diff(wave) > 0).all():
            raise InputError(
                f"table: {len(wave)} wavelengths and {len(flux)} fluxes found, expected two or more of both, "
                "wavelengths increasing"
            )
        if not np.isfinite(flux).all() or np.interp(REFERENCE_WAVELENGTH, wave, flux) <= 0:
            raise InputError(
                f"table: fluxes must be finite, and positive at {REFERENCE_WAVELENGTH:.0f} Angstrom"
            )

    def __call__(self, wave: ArrayLike) -> NDArray[np.float64]:
        w = np.asarray(wave, np.float64)
        return np.interp(w, self.wave, self.flux) / np.interp(REFERENCE_WAVELENGTH, self.wave, self.flux)


#: spectra by the name of their kind
KINDS: dict[str, type[Any]] = {"blackbody": BlackBody, "whitedwarf": WhiteDwarf, "table": Tabulated}


def flux_from_ab(mag: float, wave: float = REFERENCE_WAVELENGTH) -> float:
    """Flux density [1e-20 erg/s/cm2/Angstrom] of an AB magnitude (Oke & Gunn 1983) at a wavelength."""
    return 1e20 * 10 ** (-0.4 * (mag + 48.6)) * _C / wave**2


def ab_from_flux(flux: float, wave: float = REFERENCE_WAVELENGTH) -> float:
    """AB magnitude of a flux density [1e-20 erg/s/cm2/Angstrom]."""
    return -2.5 * math.log10(flux * 1e-20 * wave**2 / _C) - 48.6


# --- standard stars -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standard:
    """A spectrophotometric standard star: where it is, how bright, and a spectrum of its kind.

    Attributes
    ----------
    name : str
    ra, dec : float
        Equinox and epoch 2000 [deg].
    v : float
        Johnson V.
    spectrum : BlackBody or WhiteDwarf
    """

    name: str
    ra: float
    dec: float
    v: float
    spectrum: BlackBody | WhiteDwarf

    def flux(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Flux density above the atmosphere [erg/s/cm2/Angstrom]."""
        continuum: Spectrum = self.spectrum
        level = _V_ZERO * 10 ** (-0.4 * self.v) / float(continuum(_V_WAVE))
        return level * continuum(wave)


def _degrees(ra: str, dec: str) -> tuple[float, float]:
    h, m, s = (float(v) for v in ra.split())
    sign = -1.0 if dec.startswith("-") else 1.0
    d, n, t = (abs(float(v)) for v in dec.split())
    return 15 * (h + m / 60 + s / 3600), sign * (d + n / 60 + t / 3600)


#: Positions: Simbad.  V: Landolt 1992 (AJ 104, 340) for GD 71, GD 108, Feige 110, Landolt & Uomoto 2007 (AJ
#: 133, 768) for GD 153, Hamuy et al. 1992 (PASP 104, 533) for the others.  Temperatures: Bohlin, Hubeny & Rauch
#: 2020 (AJ 160, 21) for GD 71 and GD 153; Rauch et al. 2014 (A&A 566, A3) for Feige 110; Gianninas et al. 2011
#: (ApJ 743, 138) for the white dwarfs of LTT and EG, rounded.  Depths and widths of the lines are by eye: the
#: star that is simulated has the spectrum that is written to its table of fluxes, so they need not be right.
STANDARDS: dict[str, Standard] = {
    name: Standard(name, *_degrees(ra, dec), v, spectrum)
    for name, ra, dec, v, spectrum in (
        ("GD 71", "05 52 27.62", "+15 53 13.2", 13.032, WhiteDwarf(33590.0, 0.40, 22.0)),
        ("GD 108", "10 00 47.37", "-07 33 30.5", 13.561, WhiteDwarf(27000.0, 0.35, 9.0)),
        ("GD 153", "12 57 02.32", "+22 01 52.6", 13.349, WhiteDwarf(40320.0, 0.35, 22.0)),
        ("Feige 110", "23 19 58.40", "-05 09 56.2", 11.832, WhiteDwarf(47250.0, 0.25, 7.0)),
        ("LTT 3218", "08 41 32.43", "-32 56 32.9", 11.86, WhiteDwarf(9300.0, 0.60, 24.0)),
        ("LTT 7987", "20 10 56.85", "-30 13 06.6", 12.23, WhiteDwarf(16200.0, 0.60, 34.0)),
        ("EG 21", "03 10 31.02", "-68 36 03.4", 11.38, WhiteDwarf(16500.0, 0.60, 34.0)),
        ("EG 274", "16 23 33.84", "-39 13 46.2", 11.03, WhiteDwarf(24300.0, 0.55, 30.0)),
    )
}


def standard(name: str) -> Standard:
    """Find a standard star; blanks, dashes and case do not matter.

    Raises
    ------
    InputError
        If it is not known.
    """

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    for known, star in STANDARDS.items():
        if plain(known) == plain(name):
            return star
    raise InputError(f"standard star {name!r} is not known, expected one of {', '.join(STANDARDS)}")
