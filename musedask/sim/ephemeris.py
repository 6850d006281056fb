"""Where things stand in the sky of Paranal, and when: to some arc seconds, for headers and plans.

Light needs no more: the header of the exposure of 2014-12-08 that `mpdaf` carries is met within 0.01 deg
in altitude, azimuth and parallactic angle.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import NamedTuple

#: Unit 4 of the VLT, as the headers of its exposures have it: north and east [deg], height [m]
LATITUDE, LONGITUDE, ELEVATION = -24.627, -70.404, 2648.0
#: what passes between two exposures of a template [s]: read-out, transfer, offset
OVERHEAD = 73.217

_EPOCH = datetime.datetime(1858, 11, 17)


class Horizontal(NamedTuple):
    """Place of a target above the horizon.

    Attributes
    ----------
    alt, az : float
        Altitude and azimuth [deg], south 0, west 90, without refraction.
    parang : float
        Parallactic angle [deg], -180..180: that of the zenith seen from the target, from north by east.
    airmass : float
    """

    alt: float
    az: float
    parang: float
    airmass: float


def mjd_of(date: str | datetime.datetime) -> float:
    """Modified Julian date of a UTC time, given in ISO form or without time zone."""
    if isinstance(date, str):
        date = datetime.datetime.fromisoformat(date)
    return (date.replace(tzinfo=None) - _EPOCH) / datetime.timedelta(days=1)


def date_of(mjd: float) -> datetime.datetime:
    """UTC time, without time zone, of a modified Julian date."""
    return _EPOCH + datetime.timedelta(days=mjd)


def sidereal_time(mjd: float) -> float:
    """Local mean sidereal time at Paranal [deg] (Meeus, Astronomical Algorithms, 12.4)."""
    return (280.46061837 + 360.98564736629 * (mjd - 51544.5) + LONGITUDE) % 360


def precess(ra: float, dec: float, mjd: float) -> tuple[float, float]:
    """Mean place of date [deg] of a J2000 position [deg] (Meeus, Astronomical Algorithms, 21.3 and 21.4).

    Nutation and aberration, together less than 0.01 deg, are left out.
    """
    t = (mjd - 51544.5) / 36525
    zeta = math.radians((2306.2181 * t + 0.30188 * t**2 + 0.017998 * t**3) / 3600)
    z = math.radians((2306.2181 * t + 1.09468 * t**2 + 0.018203 * t**3) / 3600)
    theta = math.radians((2004.3109 * t - 0.42665 * t**2 - 0.041833 * t**3) / 3600)
    a, d = math.radians(ra) + zeta, math.radians(dec)
    x = math.cos(theta) * math.cos(d) * math.cos(a) - math.sin(theta) * math.sin(d)
    y = math.cos(d) * math.sin(a)
    s = math.sin(theta) * math.cos(d) * math.cos(a) + math.cos(theta) * math.sin(d)
    return math.degrees(math.atan2(y, x) + z) % 360, math.degrees(math.asin(max(-1.0, min(1.0, s))))


def horizontal(ra: float, dec: float, mjd: float) -> Horizontal:
    """Place above the horizon of a J2000 position [deg] at a time.

    The airmass is that of Young & Irvine (1967), sec z (1 - 0.0012 (sec^2 z - 1)), which the telescope's
    headers have too; lower than 10 deg, that of 10 deg.
    """
    ra, dec = precess(ra, dec, mjd)
    h, d, p = (math.radians(v) for v in (sidereal_time(mjd) - ra, dec, LATITUDE))
    sine = math.sin(p) * math.sin(d) + math.cos(p) * math.cos(d) * math.cos(h)
    alt = math.asin(max(-1.0, min(1.0, sine)))
    az = math.atan2(math.cos(d) * math.sin(h), math.cos(d) * math.cos(h) * math.sin(p) - math.sin(d) * math.cos(p))
    parang = math.atan2(math.sin(h), math.tan(p) * math.cos(d) - math.sin(d) * math.cos(h))
    secant = 1 / math.sin(max(alt, math.radians(10)))
    airmass = secant * (1 - 0.0012 * (secant**2 - 1))
    return Horizontal(math.degrees(alt), math.degrees(az) % 360, math.degrees(parang), airmass)


def culmination(ra: float, mjd: float) -> float:
    """Modified Julian date of the culmination of a right ascension [deg] that is nearest to `mjd`."""
    hour_angle = (sidereal_time(mjd) - precess(ra, LATITUDE, mjd)[0] + 180) % 360 - 180
    return mjd - hour_angle / 360.98564736629


def start_times(ra: float, exptimes: Sequence[float], overhead: float = OVERHEAD) -> list[datetime.datetime]:
    """Start times of exposures one after the other, of a target [deg] that culminates about midnight.

    The night is one of the year that begins in July 2014; UTC, whole milliseconds.
    """
    base = 56840.0 + 4.69 / 24  # local midnight
    days = ((ra - 12.0 - sidereal_time(base)) % 360) / 0.98564736629
    # the fraction of a day that whole days leave is made up for by the hour
    start = date_of(base + math.floor(days) + (days % 1) * 0.98564736629 / 360.98564736629)
    starts = []
    for exptime in exptimes:
        starts.append(start.replace(microsecond=1000 * (start.microsecond // 1000)))
        start += datetime.timedelta(seconds=exptime + overhead)
    return starts


def _equatorial(longitude: float, latitude: float, mjd: float) -> tuple[float, float]:
    """Equatorial coordinates [deg] of ecliptic ones of the same equinox [deg]."""
    eps = math.radians(23.4393 - 0.0130 * (mjd - 51544.5) / 36525)
    lam, beta = math.radians(longitude), math.radians(latitude)
    ra = math.atan2(math.sin(lam) * math.cos(eps) - math.tan(beta) * math.sin(eps), math.cos(lam))
    dec = math.asin(math.sin(beta) * math.cos(eps) + math.cos(beta) * math.sin(eps) * math.sin(lam))
    return math.degrees(ra) % 360, math.degrees(dec)


def _sun_longitude(mjd: float) -> float:
    days = mjd - 51544.5
    g = math.radians(357.528 + 0.9856003 * days)
    return (280.460 + 0.9856474 * days + 1.915 * math.sin(g) + 0.020 * math.sin(2 * g)) % 360


def sun(mjd: float) -> tuple[float, float]:
    """J2000 position of the Sun [deg], to 0.02 deg (Astronomical Almanac, low-precision formulae)."""
    return to_j2000(*_equatorial(_sun_longitude(mjd), 0.0, mjd), mjd)


def moon(mjd: float) -> tuple[float, float, float]:
    """J2000 position [deg] of the Moon seen from Paranal, and its illuminated fraction 0..1.

    To 0.3 deg (Astronomical Almanac, low-precision formulae, with the parallax of the place).
    """
    t = (mjd - 51544.5) / 36525

    def wave(amplitude: float, phase: float, rate: float) -> float:
        return amplitude * math.sin(math.radians(phase + rate * t))

    longitude = 218.32 + 481267.881 * t + wave(6.29, 135.0, 477198.87) + wave(-1.27, 259.3, -413335.36)
    longitude += wave(0.66, 235.7, 890534.22) + wave(0.21, 269.9, 954397.74)
    longitude += wave(-0.19, 357.5, 35999.05) + wave(-0.11, 186.5, 966404.03)
    latitude = wave(5.13, 93.3, 483202.02) + wave(0.28, 228.2, 960400.89)
    latitude += wave(-0.28, 318.3, 6003.15) + wave(-0.17, 217.6, -407332.21)
    parallax = 0.9508 + wave(0.0518, 225.0, 477198.87) + wave(0.0095, 349.3, -413335.36)
    parallax += wave(0.0078, 325.7, 890534.22) + wave(0.0028, 359.9, 954397.74)
    elongation = math.acos(
        math.cos(math.radians(latitude)) * math.cos(math.radians(longitude - _sun_longitude(mjd)))
    )
    ra, dec = (math.radians(v) for v in _equatorial(longitude, latitude, mjd))
    lst, phi = math.radians(sidereal_time(mjd)), math.radians(LATITUDE)
    distance = 1 / math.sin(math.radians(parallax))  # in radii of the Earth
    x = distance * math.cos(dec) * math.cos(ra) - math.cos(phi) * math.cos(lst)
    y = distance * math.cos(dec) * math.sin(ra) - math.cos(phi) * math.sin(lst)
    z = distance * math.sin(dec) - math.sin(phi)
    place = math.degrees(math.atan2(y, x)) % 360, math.degrees(math.atan2(z, math.hypot(x, y)))
    return *to_j2000(*place, mjd), (1 - math.cos(elongation)) / 2


def to_j2000(ra: float, dec: float, mjd: float) -> tuple[float, float]:
    """J2000 position [deg] of a mean place of date [deg]."""
    a, d = ra, dec
    for _ in range(3):  # precession is small: errors shrink by its size at every step
        a1, d1 = precess(a, d, mjd)
        a, d = a + (ra - a1 + 180) % 360 - 180, max(-90.0, min(90.0, d + dec - d1))
    return a % 360, d
