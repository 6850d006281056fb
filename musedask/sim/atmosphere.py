"""The night sky over Paranal and what the atmosphere does to light.

Brightness is that seen on the ground, extinction and scattering included.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import ephemeris, tables
from .ephemeris import mjd_of
from .plan import Conditions, ExposurePlan

if TYPE_CHECKING:
    from astropy.table import Table

#: start of an exposure as modified Julian date
mjd = mjd_of


class Place(NamedTuple):
    """Place of a target above the horizon.

    Attributes
    ----------
    altitude, azimuth : float
        [deg], azimuth south 0, west 90; without refraction.
    parang : float
        Parallactic angle [deg].
    airmass : float
        That of `airmass`.
    """

    altitude: float
    azimuth: float
    parang: float
    airmass: float


def horizontal(ra: float, dec: float, time: float) -> Place:
    """Place above the horizon of Paranal of a J2000 position [deg] at a time [MJD]."""
    place = ephemeris.horizontal(ra, dec, time)
    return Place(place.alt, place.az, place.parang, airmass(90 - place.alt))


def airmass(zenith_distance: float) -> float:
    """Airmass at a true zenith distance [deg]: Hardie (1962), as the reference computes it."""
    m = 1 / math.cos(math.radians(min(zenith_distance, 85.0))) - 1
    return 1 + m - 0.0018167 * m - 0.002875 * m**2 - 0.0008083 * m**3


def refractive_index(wave: ArrayLike, conditions: Conditions) -> NDArray[np.float64]:
    """Refractive index of air (Filippenko 1982, PASP 94, 715), as the reference computes it."""
    kelvin = conditions.temperature + 273.15
    celsius = conditions.temperature
    saturation = -10474 + 116.43 * kelvin - 0.43284 * kelvin**2 + 0.00053840 * kelvin**3
    vapour = conditions.humidity / 100 * saturation * 0.75006158
    pressure = conditions.pressure * 0.75006158
    s = (np.asarray(wave, np.float64) * 1e-4) ** -2
    n = 64.328 + 29498.1 / (146 - s) + 255.4 / (41 - s)
    n = n * pressure / 720.883 * (1 + (1.049 - 0.0157 * celsius) * 1e-6 * pressure) / (1 + 0.003661 * celsius)
    n = n - (0.0624 - 0.000680 * s) / (1 + 0.003661 * celsius) * vapour
    return np.asarray(1 + 1e-6 * n)


def refraction(
    wave: ArrayLike, reference: float, zenith_distance: float, conditions: Conditions
) -> NDArray[np.float64]:
    """Displacement by differential refraction towards the zenith.

    Parameters
    ----------
    wave : array-like
        [Angstrom]
    reference : float
        Wavelength with displacement 0 [Angstrom].
    zenith_distance : float
        [deg]
    conditions : Conditions

    Returns
    -------
    ndarray of float64
        [arcsec], positive where light is refracted more than that of the reference.
    """
    n = refractive_index(wave, conditions) - refractive_index(reference, conditions)
    return math.tan(math.radians(zenith_distance)) * math.degrees(3600) * n


def extinction(wave: ArrayLike) -> NDArray[np.float64]:
    """Extinction over Paranal [mag/airmass] (Patat et al. 2011, A&A 527, A91)."""
    table = tables.read("extinction.txt")
    return np.interp(wave, table["wave"], table["extinction"])


def telluric(wave: ArrayLike) -> NDArray[np.float64]:
    """Transmission of the molecular bands at airmass 1."""
    w = np.asarray(wave, np.float64)
    result = np.ones_like(w)
    for centre, width, depth in ((6875, 12, 0.3), (7605, 14, 0.6), (7200, 40, 0.1), (8200, 50, 0.1), (9340, 60, 0.3)):
        result *= 1 - depth * np.exp(-0.5 * ((w - centre) / width) ** 2)
    return result


def seeing(wave: ArrayLike, airmass: float, conditions: Conditions) -> NDArray[np.float64]:
    """FWHM of a star [arcsec]: seeing at zenith and 5000 Angstrom times airmass^0.6 (wave/5000)^-0.2."""
    return np.asarray(conditions.seeing * airmass**0.6 * (np.asarray(wave, np.float64) / 5000) ** -0.2)


def barycentric_velocity(ra: float, dec: float, time: float) -> float:
    """Velocity of Paranal towards a position [deg] relative to the barycentre, at a time [MJD UTC] [km/s].

    Positive if observer and target approach each other: to be added to an observed velocity.
    """
    from astropy import units as u
    from astropy.coordinates import EarthLocation, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("iers_degraded_accuracy", "ignore"):
        site = EarthLocation.from_geodetic(ephemeris.LONGITUDE, ephemeris.LATITUDE, ephemeris.ELEVATION)
        velocity = SkyCoord(ra, dec, unit="deg").radial_velocity_correction(
            "barycentric", obstime=Time(time, format="mjd", scale="utc"), location=site
        )
        return float(velocity.to_value(u.km / u.s))


def solar_spectrum(wave: ArrayLike) -> NDArray[np.float64]:
    """Flux density of the Sun relative to 5500 Angstrom."""
    w = np.asarray(wave, np.float64)
    flux = (5500 / w) ** 5 * np.expm1(1.438776877e8 / (5500 * 5778)) / np.expm1(1.438776877e8 / (w * 5778))
    for centre, sigma, depth in ((4861.33, 2, 0.5), (5183.6, 1.5, 0.5), (5892.9, 1.5, 0.4), (6562.79, 2, 0.6)):
        flux *= 1 - depth * np.exp(-0.5 * ((w - centre) / sigma) ** 2)
    return flux


def sky_continuum(wave: ArrayLike, plan: ExposurePlan | Conditions | None = None) -> NDArray[np.float64]:
    """Continuum of the sky on the ground [1e-20 erg/s/cm2/Angstrom/arcsec2]."""
    return 800.0 * solar_spectrum(wave)


def sky_lines(plan: ExposurePlan | None = None) -> Table:
    """Lines of the night sky: name, group, wave (in air), flux [1e-20 erg/s/cm2/arcsec2]."""
    from astropy import units as u
    from astropy.table import Table

    table = tables.read("sky_lines.txt")
    lines = Table({name: table[name] for name in ("name", "group", "wave", "flux")})
    lines["wave"].unit = u.Angstrom
    lines["flux"].unit = 1e-20 * u.erg / u.s / u.cm**2 / u.arcsec**2
    return lines


def raman_lines() -> Table:
    """Raman lines of the sodium lasers, columns as `sky_lines`."""
    return sky_lines()[:0]
