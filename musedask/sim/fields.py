"""Fields made to a purpose: stars for astrometry, standard stars, nebulae."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .scene import Background, Galaxy, LineRegion, Nebula, Scene, Star, sky_position
from .spectra import REFERENCE_WAVELENGTH, BlackBody, Standard, ab_from_flux, flux_from_ab, standard

#: distance of the stars of an astrometric field and how far they are moved from their grid [arcsec]
_SPACING, _JITTER = 5.0, 1.0
#: grid of the table of a standard star [Angstrom]
_TABLE = (3000.0, 11000.0, 1.0)


@dataclass(frozen=True)
class SourceTable:
    """Stars with their coordinates and magnitudes: what an ASTROMETRY_REFERENCE holds.

    Attributes
    ----------
    name : list of str
    ra, dec : ndarray of float64
        [deg]
    mag : ndarray of float64
        AB magnitudes at 7000 Angstrom.
    """

    name: list[str]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mag: NDArray[np.float64]


def source_table(scene: Scene) -> SourceTable:
    """Coordinates and magnitudes of the stars of a scene, which must have coordinates itself."""
    if scene.ra is None or scene.dec is None:
        raise InputError(f"scene {scene.name!r}: no ra and dec, its stars have no coordinates")
    places = [sky_position(s.dra, s.ddec, scene.ra, scene.dec) for s in scene.stars]
    ra, dec = np.array(places, np.float64).reshape(-1, 2).T
    names = [s.name or f"{scene.name or 'S'}{i + 1:04d}" for i, s in enumerate(scene.stars)]
    mag = np.array([ab_from_flux(s.flux) for s in scene.stars], np.float64)
    return SourceTable(names, ra.copy(), dec.copy(), mag)


def astrometric_field(
    ra: float = 201.69,
    dec: float = -47.48,
    size: float = 58.0,
    seed: int = 0,
    mag_range: tuple[float, float] = (14.0, 18.0),
    name: str = "astrometry",
) -> Scene:
    """A field of stars of known positions, for ASTROMETRY exposures.

    The stars are 3 arcsec or more from each other, so that none is blended, and about one in 25 square arcsec.  Any
    strip of 60 x 5 arcsec within 1 arcsec of the centre, whatever its direction, has at least eight.

    Parameters
    ----------
    ra, dec : float
        Centre [deg]; by default one in omega Centauri, where such exposures are taken.
    size : float
        Side of the square [arcsec].  58 gives 117 stars: the reference matches at most 120.
    seed : int
        Of positions, magnitudes and temperatures.
    mag_range : (float, float)
        AB magnitudes at 7000 Angstrom.
    name : str

    Returns
    -------
    Scene
    """
    if not (size > 0 and mag_range[0] <= mag_range[1] and seed >= 0):
        raise InputError(f"size {size}, mag_range {mag_range}, seed {seed} found, expected size > 0, seed >= 0")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xA57])))
    half = int(size / 2 / _SPACING)
    row, column = np.mgrid[-half : half + 1, -half : half + 1]
    # the corners are left out: a rotated field does not see them
    inside = (np.abs(row) + np.abs(column) < 2 * half) | (half == 0)
    x = y = np.empty(0)
    for _ in range(50):
        x, y = (_SPACING * v[inside] + rng.uniform(-_JITTER, _JITTER, inside.sum()) for v in (column, row))
        if half < 5 or _fewest(x, y) >= 8:
            break
    stars: list[Star] = []
    for i in range(len(x)):
        # the brightest are few, as in the sky
        mag = mag_range[1] - (mag_range[1] - mag_range[0]) * float(rng.uniform()) ** 1.5
        temperature = float(np.round(rng.uniform(3800, 9000), -1))
        star = Star(float(x[i]), float(y[i]), flux_from_ab(mag), spectrum=BlackBody(temperature))
        stars.append(replace(star, name=f"{name[:12]}-{i + 1:03d}"))
    return Scene(tuple(stars), (), Background(0.0), ra=float(ra) % 360, dec=float(dec), name=name)


def _fewest(x: NDArray[np.float64], y: NDArray[np.float64]) -> int:
    """Least number of positions in a strip of 59 x 4.8 arcsec near the centre, of any direction."""
    angle = np.radians(np.arange(0, 180, 2.5))[:, None, None]
    dx, dy = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]).T[:, None, :, None]
    along = (x - dx) * np.cos(angle) + (y - dy) * np.sin(angle)
    across = (y - dy) * np.cos(angle) - (x - dx) * np.sin(angle)
    return int(((np.abs(along) < 29.5) & (np.abs(across) < 2.4)).sum(axis=-1).min())


@dataclass(frozen=True)
class StandardStar:
    """A standard star to be observed.

    Attributes
    ----------
    name : str
    scene : Scene
        The star in its centre.
    wave : ndarray of float64
        [Angstrom, air]
    flux : ndarray of float64
        Flux density above the atmosphere [erg/s/cm2/Angstrom], for STD_FLUX_TABLE.
    """

    name: str
    scene: Scene
    wave: NDArray[np.float64]
    flux: NDArray[np.float64]


def standard_star(name: str) -> StandardStar:
    """A spectrophotometric standard star and its table of fluxes.

    Parameters
    ----------
    name : str
        One of `spectra.STANDARDS`, e.g. "GD 71".

    Raises
    ------
    InputError
        If it is not known.

    Examples
    --------
    >>> standard_star("gd71").scene.ra.__round__(3)
    88.115
    """
    star: Standard = standard(name)
    wave = np.arange(_TABLE[0], _TABLE[1] + _TABLE[2] / 2, _TABLE[2])
    level = 1e20 * float(star.flux(REFERENCE_WAVELENGTH))
    source = Star(0.0, 0.0, level, spectrum=star.spectrum, name=star.name)
    scene = Scene((source,), (), Background(0.0), ra=star.ra, dec=star.dec, name=star.name)
    return StandardStar(star.name, scene, wave, star.flux(wave))


def nebula_field(
    ra: float | None = None,
    dec: float | None = None,
    flux: float = 300.0,
    size: float = 66.0,
    seed: int = 0,
    name: str = "nebula",
) -> Scene:
    """An H II region that fills the field, with stars, a planetary nebula and galaxies behind it.

    Parameters
    ----------
    ra, dec : float, optional
        Centre [deg].
    flux : float
        Mean flux of H alpha per spaxel [1e-20 erg/s/cm2].
    size : float
        Side of the square in which the sources lie [arcsec].
    seed : int
    name : str

    Returns
    -------
    Scene
    """
    if not (size > 0 and flux > 0 and seed >= 0):
        raise InputError(f"size {size}, flux {flux}, seed {seed} found, expected size, flux > 0, seed >= 0")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x2EB])))
    half = size / 2

    def place() -> tuple[float, float]:
        x, y = rng.uniform(-half, half, 2)
        return float(x), float(y)

    stars = [Star(0.9, -0.6, flux_from_ab(17.0), spectrum=BlackBody(36000.0), name="exciting star")]
    for _ in range(max(8, round(size**2 / 80))):
        mag, temperature = float(rng.uniform(18.0, 22.5)), float(rng.uniform(3500, 9000))
        stars.append(Star(*place(), flux_from_ab(mag), spectrum=BlackBody(round(temperature, -1))))
    galaxies = [
        Galaxy(*place(), flux_from_ab(float(rng.uniform(19.0, 22.0))), float(rng.uniform(0.5, 2.5)),
               float(rng.choice([1.0, 2.5, 4.0])), float(rng.uniform(0.3, 1.0)), float(rng.uniform(0, 180)), 0.8)
        for _ in range(max(2, round(size**2 / 700)))
    ]  # fmt: skip
    x, y = place()
    bright = 20 * flux
    ring = [
        LineRegion(0.6 * x, 0.6 * y, 1.8, bright * ratio, wave, 0.6, 6.0, 40.0, "ring", 0.5)
        for wave, ratio in ((5006.84, 1.6), (4958.91, 0.54), (6562.79, 0.6), (4861.33, 0.21), (6583.45, 0.3))
    ]
    gas = Nebula(flux, velocity=18.0, velocity_gradient=0.35, velocity_angle=float(rng.uniform(0, 360)), seed=seed)
    return Scene(
        tuple(stars), tuple(ring), Background(1.0, slope=-0.5), galaxies=tuple(galaxies), nebulae=(gas,),
        ra=None if ra is None else float(ra) % 360, dec=None if dec is None else float(dec), name=name,
    )  # fmt: skip


def faint_field(ra: float | None = None, dec: float | None = None, size: float = 66.0, seed: int = 0) -> Scene:
    """A field of blank sky as it is: a few faint stars and galaxies, for SKY exposures."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xFA1])))
    stars, galaxies = [], []
    for i in range(max(2, round(size**2 / 350))):
        x, y = (float(v) for v in rng.uniform(-size / 2, size / 2, 2))
        mag = float(rng.uniform(20.5, 24.0))
        if i % 3 == 0:
            stars.append(Star(x, y, flux_from_ab(mag), spectrum=BlackBody(float(rng.uniform(3500, 6000)))))
        else:
            radius, ratio = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.3, 1.0))
            angle = math.degrees(float(rng.uniform(0, math.pi)))
            galaxies.append(Galaxy(x, y, flux_from_ab(mag), radius, 1.0, ratio, angle, 0.5))
    return Scene(
        tuple(stars), (), Background(0.0), galaxies=tuple(galaxies), ra=ra, dec=dec, name="blank sky"
    )
