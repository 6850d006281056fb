"""The night sky over Paranal and what the atmosphere does to light.

Brightness is that seen on the ground: what the air takes away from airglow, zodiacal light and moonlight on the
way, and what it scatters, is in it.  Everything is a function of its arguments only: the sky of two exposures differs
by their time and place, not by chance.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import ephemeris, molecules, tables
from .ephemeris import mjd_of
from .plan import Conditions, ExposurePlan

if TYPE_CHECKING:
    from astropy.table import Table

#: modified Julian date of a UTC time
mjd = mjd_of
#: precipitable water vapour [cm]: the median over Paranal (Kerber et al. 2010, Proc. SPIE 7733, 77331M)
WATER = 0.25
#: flux density of V = 0 [1e-20 erg/s/cm2/Angstrom] and the wavelength that it is at [Angstrom] (Bessell, Castelli &
#: Plez 1998, A&A 333, 231)
V_ZERO, V_WAVE = 3.631e11, 5450.0
#: surface brightness of one star of magnitude 10 per square degree, S10 [1e-20 erg/s/cm2/Angstrom/arcsec2]
_S10 = V_ZERO * 10 ** (-0.4 * 10.0) / 3600**2
#: sky lines fainter than this are left out [1e-20 erg/s/cm2/arcsec2]
FAINTEST = 30.0
#: doublets closer than this are one line [Angstrom]
_DOUBLET = 0.15
#: groups of sky lines that have a number of their own: O2, and the last one before OH of v' = 4
GROUP_O2, GROUP_OH = 4, 6
_GROUPS = range(1, GROUP_OH + 8)
#: energy that the sodium lasers send back by Raman scattering on N2 [1e-20 erg/s/cm2/arcsec2]
RAMAN_FLUX = 1000.0
#: energy of the band b-X 0-1 of O2 at zenith [1e-20 erg/s/cm2/arcsec2]: 470 R, 0.7 times that of the UVES atlas
O2_FLUX = 200000.0
#: range of the line lists [Angstrom]
WAVES = 4500.0, 9900.0


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
    return np.interp(np.asarray(wave, np.float64), table["wave"], table["extinction"])


@lru_cache(maxsize=1)
def _telluric_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    step = 0.25
    edges = np.arange(5600.0, 10400.0 + step / 2, step)
    wave = (edges[1:] + edges[:-1]) / 2
    # water: bands as published; the lines within them are invented, with the right mean transmission
    table = tables.read("water.txt")
    a = np.interp(wave, table["wave"], table["a"]) * WATER
    mean = np.exp(-0.2385 * a / (1 + 20.07 * a) ** 0.45)
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence([0x820]))).standard_normal(len(wave))
    kernel = np.exp(-0.5 * (np.arange(-8, 9) * step / 0.5) ** 2)
    noise = np.convolve(noise, kernel / np.sqrt(np.sum(kernel**2)), "same")
    lines = np.exp(1.2 * noise)
    # depths that give, with these lines, the mean transmission
    depths = np.concatenate([[0], np.geomspace(1e-4, 30, 200)])
    means = np.array([np.mean(np.exp(-d * lines)) for d in depths])
    depth = np.interp(-mean, -means, depths)
    return wave, np.exp(-depth * lines) * molecules.o2_transmission(edges)


def telluric(wave: ArrayLike) -> NDArray[np.float64]:
    """Transmission of the bands of O2 and water vapour at airmass 1; that at airmass X is its power X.

    O2 is computed line by line (`molecules.o2_transmission`), averaged over 0.25 Angstrom.  Water vapour, `WATER` of
    it, has bands as Bird & Riordan (1986, J. Clim. Appl. Meteorol. 25, 87) give them at a resolution of 100 Angstrom,
    with sharper edges; the lines in them are not the real ones but a fixed pattern with that mean.

    Parameters
    ----------
    wave : array-like
        [Angstrom]; 1 below 5600 and above 10400.

    Returns
    -------
    ndarray of float64
    """
    grid, transmission = _telluric_table()
    return np.interp(np.asarray(wave, np.float64), grid, transmission, left=1.0, right=1.0)


def telluric_regions() -> Table:
    """Regions of telluric absorption and of continuum around them: lmin, lmax, bgmin, bgmax [Angstrom].

    Those that the reference uses without such a table; the bands of `telluric` are within them.
    """
    from astropy import units as u
    from astropy.table import Table

    rows = [
        (6273.0, 6320.0, 6213.0, 6380.0),
        (6864.0, 6967.0, 6750.0, 7130.0),
        (7164.0, 7325.0, 7070.0, 7580.0),
        (7590.0, 7700.0, 7470.0, 7830.0),
        (8131.0, 8345.0, 7900.0, 8600.0),
        (8952.0, 9028.0, 8850.0, 9082.0),
        (9274.0, 9770.0, 9080.0, 9263.0),
    ]
    table = Table(rows=rows, names=("lmin", "lmax", "bgmin", "bgmax"), dtype=("f8",) * 4)
    for name in table.colnames:
        table[name].unit = u.Angstrom
    return table


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


def _in_sun(wave: NDArray[np.float64], temperature: float = 5778.0) -> NDArray[np.float64]:
    c2 = 1.438776877e8  # Angstrom K, CODATA 2018
    return (V_WAVE / wave) ** 5 * np.expm1(c2 / (V_WAVE * temperature)) / np.expm1(c2 / (wave * temperature))


@lru_cache(maxsize=1)
def _solar_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wave = np.arange(3900.0, 10500.0, 0.2)
    flux = _in_sun(wave)
    lines = tables.read("sun.txt")
    for centre, width in zip(lines["wave"], lines["width"], strict=True):
        # no deeper than 84 %, no narrower than a resolution of 1.2 Angstrom
        sigma = max(0.5, width / (0.84 * math.sqrt(2 * math.pi)))
        near = np.abs(wave - centre) < 6 * sigma
        profile = np.exp(-0.5 * ((wave[near] - centre) / sigma) ** 2)
        flux[near] *= 1 - width / (sigma * math.sqrt(2 * math.pi)) * profile
    return wave, flux


def solar_spectrum(wave: ArrayLike) -> NDArray[np.float64]:
    """Flux density of the Sun relative to the continuum at 5450 Angstrom.

    A black body of 5778 K with the strongest Fraunhofer lines (Moore, Minnaert & Houtgast 1966, NBS Monograph 61),
    at a resolution of 1.2 Angstrom.
    """
    return np.interp(np.asarray(wave, np.float64), *_solar_table())


# --- brightness of the sky ----------------------------------------------------------------------------------------


def airmass_of_glow(zenith_distance: float) -> float:
    """Path through a high layer relative to the zenith: (1 - 0.96 sin^2 z)^-0.5 (Krisciunas & Schaefer 1991)."""
    return float((1 - 0.96 * math.sin(math.radians(min(zenith_distance, 89.0))) ** 2) ** -0.5)


def moonlight(
    phase: float, distance: float, moon_zenith_distance: float, zenith_distance: float, k: float = 0.13
) -> float:
    """Surface brightness of the sky by moonlight in V (Krisciunas & Schaefer 1991, PASP 103, 1033).

    Parameters
    ----------
    phase : float
        Angle Sun - Moon - Earth [deg], 0 for full moon.
    distance : float
        Between Moon and target [deg].
    moon_zenith_distance, zenith_distance : float
        Of Moon and target [deg].
    k : float
        Extinction [mag/airmass].

    Returns
    -------
    float
        [nanolambert]; 0 if the Moon is below the horizon.
    """
    if moon_zenith_distance >= 90:
        return 0.0
    phase = abs(phase)
    brightness = 10 ** (-0.4 * (3.84 + 0.026 * phase + 4e-9 * phase**4))
    rho = math.radians(distance)
    scattering = 10**5.36 * (1.06 + math.cos(rho) ** 2) + 10 ** (6.15 - distance / 40)
    x, x_moon = airmass_of_glow(zenith_distance), airmass_of_glow(moon_zenith_distance)
    return scattering * brightness * 10 ** (-0.4 * k * x_moon) * (1 - 10 ** (-0.4 * k * x))


def nanolambert_to_magnitude(brightness: float) -> float:
    """V magnitude per square arcsec of a surface brightness [nanolambert] (Krisciunas & Schaefer 1991, eq. 1)."""
    return (20.7233 - math.log(brightness / 34.08)) / 0.92104


def zodiacal_light(ra: float, dec: float) -> float:
    """Surface brightness of the zodiacal light at 90 deg or more from the Sun, at 5450 Angstrom.

    (140 - 90 sin|beta|) S10 at ecliptic latitudes beta up to 60 deg, 60 S10 above (Benn & Ellison 1998, La Palma
    Technical Note 115).

    Parameters
    ----------
    ra, dec : float
        [deg]

    Returns
    -------
    float
        [1e-20 erg/s/cm2/Angstrom/arcsec2], outside the atmosphere.
    """
    eps = math.radians(23.4393)
    a, d = math.radians(ra), math.radians(dec)
    sine = abs(math.sin(d) * math.cos(eps) - math.cos(d) * math.sin(eps) * math.sin(a))
    return _S10 * (140 - 90 * sine if sine < math.sin(math.radians(60)) else 60)


class _Moment(NamedTuple):
    """What the brightness of the sky depends on."""

    conditions: Conditions
    time: float
    ra: float
    dec: float
    zenith_distance: float
    moon_zenith_distance: float
    moon_distance: float


def _moment(plan: ExposurePlan | Conditions | None) -> _Moment:
    """Middle of an exposure; for conditions only: zenith, at ecliptic latitude 45 deg, the Moon 60 deg away."""
    if plan is None:
        plan = Conditions()
    if isinstance(plan, Conditions):
        up = 60.0 if plan.moon_fli > 0 else 120.0
        return _Moment(plan, 0.0, 90.0, -21.56, 0.0, up, 60.0)
    time = mjd_of(plan.date_obs) + plan.exptime / 2 / 86400
    c = plan.conditions
    here = horizontal(plan.ra, plan.dec, time)
    moon = horizontal(c.moon_ra, c.moon_dec, time)
    d1, d2 = math.radians(plan.dec), math.radians(c.moon_dec)
    cosine = math.sin(d1) * math.sin(d2) + math.cos(d1) * math.cos(d2) * math.cos(math.radians(plan.ra - c.moon_ra))
    distance = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    return _Moment(c, time, plan.ra, plan.dec, 90 - here.altitude, 90 - moon.altitude, distance)


def _glow(moment: _Moment, group: int) -> float:
    """Brightness of a group of airglow lines relative to its mean at zenith.

    It varies by some 15 % within 1 to 4 hours and some 20 degrees, as waves that pass over the sky do; the levels of OH
    do so together but for a few per cent.  O I green and red vary on their own, and more.
    """
    t = moment.time * 24
    # waves move with the sky overhead
    place = (moment.ra * math.cos(math.radians(moment.dec)) + 0.6 * moment.dec) / 20

    def waves(key: int, amplitude: float) -> float:
        phases = (key * 2.399963, key * 1.1 + 1, key * 3.7 + 2)  # golden angle and others: never in step
        periods = (1.3, 2.7, 4.1)
        return amplitude * sum(
            period / 2.7 * math.sin(2 * math.pi * t / period + phase + place)
            for period, phase in zip(periods, phases, strict=True)
        )

    if group > GROUP_OH:
        change = waves(7, 0.08) + waves(group, 0.015)
    else:
        change = waves(group, 0.12 if group <= 2 else 0.08)
    x = airmass_of_glow(moment.zenith_distance)
    k = 0.10
    return moment.conditions.airglow * math.exp(change) * x * 10 ** (-0.4 * k * (x - 1))


def airglow_factors(plan: ExposurePlan | Conditions | None = None) -> dict[int, float]:
    """Brightness of each group of sky lines relative to the mean at zenith."""
    moment = _moment(plan)
    if plan is None or isinstance(plan, Conditions):
        return dict.fromkeys(_GROUPS, moment.conditions.airglow)
    return {group: _glow(moment, group) for group in _GROUPS}


def sky_continuum(wave: ArrayLike, plan: ExposurePlan | Conditions | None = None) -> NDArray[np.float64]:
    """Continuum of the sky: zodiacal and scattered light, airglow, Moon.

    Parameters
    ----------
    wave : array-like
        [Angstrom]
    plan : ExposurePlan or Conditions, optional
        When and where to; for conditions only: at zenith, 60 deg from the Moon.  Default: a dark night.

    Returns
    -------
    ndarray of float64
        [1e-20 erg/s/cm2/Angstrom/arcsec2] on the ground.
    """
    w = np.asarray(wave, np.float64)
    moment = _moment(plan)
    sun = solar_spectrum(w)
    x = airmass_of_glow(moment.zenith_distance)
    transmission = 10 ** (-0.4 * extinction(w) * 0.6 * x)  # the light scattered into the beam makes up for the rest
    # scattered starlight has the colour of the Sun, too: 20 S10 (Benn & Ellison 1998)
    result = (zodiacal_light(moment.ra, moment.dec) + 20 * _S10) * sun * (w / V_WAVE) ** 0.2 * transmission
    glow = airglow_factors(plan)[GROUP_OH] if isinstance(plan, ExposurePlan) else moment.conditions.airglow
    result += glow * airglow_continuum(w)
    if moment.conditions.moon_fli > 0:
        phase = math.degrees(math.acos(max(-1.0, min(1.0, 2 * moment.conditions.moon_fli - 1))))
        brightness = moonlight(phase, moment.moon_distance, moment.moon_zenith_distance, moment.zenith_distance)
        if brightness > 0:
            level = V_ZERO * 10 ** (-0.4 * nanolambert_to_magnitude(brightness))
            # three quarters scattered by molecules, one by aerosol (Patat et al. 2011: exponent 1.38)
            result += level * sun * (0.75 * (w / V_WAVE) ** -4.05 + 0.25 * (w / V_WAVE) ** -1.38)
    return result


def airglow_continuum(wave: ArrayLike) -> NDArray[np.float64]:
    """Continuum of the airglow at zenith: NO2, and FeO with its maximum at 5950 Angstrom.

    Level and shape such that sum and zodiacal light are like the continuum of the UVES atlas (Hanuschik 2003, A&A 407,
    1157) and of Noll et al. (2012, A&A 543, A92).

    Returns
    -------
    ndarray of float64
        [1e-20 erg/s/cm2/Angstrom/arcsec2]
    """
    w = np.asarray(wave, np.float64)
    return 300 + 110 * np.exp(-0.5 * ((w - 5950) / 170) ** 2) + 60 * np.exp(-0.5 * ((w - 8800) / 900) ** 2)


@lru_cache(maxsize=1)
def _sky_lines() -> dict[str, NDArray[Any]]:
    """Lines of the mean sky at zenith, sorted by wavelength."""
    atoms = tables.read("sky_atoms.txt")
    rows = list(zip(*(atoms[name].tolist() for name in ("name", "group", "wave", "flux")), strict=True))
    band = molecules.o2_band(0, 1)
    weight = band["strength"] * np.exp(-band["upper"] / (molecules.K_CM * molecules.OH_TEMPERATURE))
    weight = weight / weight.sum() * O2_FLUX
    rows += [
        (f"O2_b-X_0-1_{branch}({j})", GROUP_O2, float(w), float(flux))
        for branch, j, w, flux in zip(band["branch"], band["j"], band["wave"], weight, strict=True)
    ]
    bands = tables.read("oh_bands.txt")
    for upper, lower, total in zip(bands["upper"], bands["lower"], bands["flux"], strict=True):
        lines = molecules.oh_band(int(upper), int(lower))
        energy = lines["photons"] / lines["wave"]
        energy = energy * (total / energy.sum())
        for line, flux in zip(lines, energy, strict=True):
            ladder = line["f"] if line["f"] == line["g"] else f"{line['f']}{line['g']}"
            name = f"OH_{upper}-{lower}_{line['branch']}{ladder}{line['parity']}({line['j']})"
            rows.append((name, GROUP_OH + int(upper) - 3, float(line["wave"]), float(flux)))
    rows = sorted((row for row in rows if WAVES[0] <= row[2] <= WAVES[1]), key=lambda row: row[2])
    merged: list[tuple[str, int, float, float]] = []
    for name, group, w, flux in rows:
        for k in range(len(merged) - 1, max(-1, len(merged) - 8), -1):
            other = merged[k]
            if other[1] == group and w - other[2] < _DOUBLET and _same_doublet(name, other[0]):
                total = flux + other[3]
                mean = (w * flux + other[2] * other[3]) / total
                merged[k] = _without_parity(name), group, mean, total
                break
        else:
            merged.append((name, group, w, flux))
    merged = sorted((row for row in merged if row[3] >= FAINTEST), key=lambda row: row[2])
    columns = [np.array(column) for column in zip(*merged, strict=True)]
    return dict(zip(("name", "group", "wave", "flux"), columns, strict=True))


def _same_doublet(a: str, b: str) -> bool:
    return a.startswith("OH") and _without_parity(a) == _without_parity(b)


def _without_parity(name: str) -> str:
    return name.replace("e(", "(").replace("f(", "(")


def _line_table(columns: dict[str, NDArray[Any]]) -> Table:
    from astropy import units as u
    from astropy.table import Table

    table = Table(columns)
    table["wave"].unit = u.Angstrom
    table["flux"].unit = 1e-20 * u.erg / u.s / u.cm**2 / u.arcsec**2
    return table


def sky_lines(plan: ExposurePlan | Conditions | None = None) -> Table:
    """Lines of the night sky.

    Atoms as in ``data/sky_atoms.txt``; the band b-X 0-1 of O2 and the Meinel bands of OH computed from molecular
    constants (`molecules`), their brightness that of the UVES atlas.

    Parameters
    ----------
    plan : ExposurePlan or Conditions, optional
        When and where to: groups vary with time and place (`airglow_factors`).  Default: the mean at zenith.

    Returns
    -------
    astropy.table.Table
        Sorted by wavelength: ``name`` (e.g. ``OH_8-3_P1e(2.5)``: branch, ladder, parity, J of the lower level;
        without parity if the doublet is not resolved), ``group``, ``wave`` (air, Angstrom), ``flux`` [1e-20
        erg/s/cm2/arcsec2].  Groups vary on their own: 1 O I green, 2 O I red, 3 Na, 4 O2, 5 O I by recombination,
        6 other atoms, from 7 OH of v' = 4 upwards.
    """
    table = _line_table(_sky_lines())
    if plan is not None:
        factors = airglow_factors(plan)
        table["flux"] = table["flux"] * np.array([factors[int(group)] for group in table["group"]])
    return table


def raman_lines() -> Table:
    """Light of the sodium lasers after Raman scattering by O2 (group 1) and N2 (group 2), columns as `sky_lines`.

    For the modes with adaptive optics; see `molecules.raman_lines` and Vogt et al. (2017, Phys. Rev. X 7, 021044).
    Unresolved lines of the Q branches are one line each 0.3 Angstrom.
    """
    lines = molecules.raman_lines()
    rows: list[tuple[str, int, float, float]] = []
    for molecule, group in (("O2", 1), ("N2", 2)):
        for branch in "OQS":
            chosen = lines[(lines["molecule"] == molecule) & (lines["branch"] == branch)]
            bins = np.round(chosen["wave"] / 0.3).astype(np.int64)
            for value in np.unique(bins):
                part = chosen[bins == value]
                flux = float(part["flux"].sum())
                wave = float(np.average(part["wave"], weights=part["flux"]))
                rows.append((f"{molecule}_Raman_{branch}({part['j'].min()})", group, wave, flux * RAMAN_FLUX))
    rows.sort(key=lambda row: row[2])
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return _line_table(dict(zip(("name", "group", "wave", "flux"), columns, strict=True)))
