"""Light of the sky: a scene seen through the atmosphere by a rotated field of view.

Conventions.  The geometry plane (X to the right, Y up, spaxels) is the plane in which the reference pipeline
has its ``xpos``, ``ypos``.  Light of wavelength lambda from a source at standard coordinates (xi, eta) around
the pointing falls on it where the pipeline's refraction correction (to 7000 Angstrom, Filippenko 1982) followed
by its default astrometric solution (``CD1_1 = -0.2/3600, CD2_2 = 0.2/3600``, no ``CRPIX``) rotated by the
position angle brings it back to (xi, eta); the middle of the simulated IFUs looks at the pointing.

The scene is extinguished by 10^(-0.4 airmass k(lambda)), absorbed by the telluric bands and shifted by the
observer's velocity.  Airglow, Moon, zodiacal light and continuum of the sky have the brightness that
`atmosphere` says is seen on the ground: they are neither extinguished nor absorbed nor shifted.  So a reduction
that corrects the sky like the object, as the reference does, finds it brighter by the inverse of both: see
`SkyLight.reduced_sky`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from . import atmosphere
from .cubescene import CubeScene
from .plan import ExposurePlan
from .scene import Scene, SceneLike, standard_coordinates

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

    from .optics import Instrument

#: wavelength at which positions are right without a correction [Angstrom]
REFERENCE_WAVELENGTH = 7000.0
#: speed of light [km/s]
_C = 299792.458
#: range and step of the tables of what depends on the wavelength only [Angstrom]
_WAVE0, _WAVE1, _STEP = 4200.0, 10400.0, 0.2
#: points that are evaluated at once: their arrays stay in the cache
_CHUNK = 1 << 15
_ARCSEC = math.degrees(1) * 3600


class SkyLight:
    """What falls on the slicer in an exposure of the sky; a `Light`.

    Parameters
    ----------
    scene : SceneLike or None
        None is blank sky.  A `Scene` is seen with the seeing of the exposure (`Scene.observed`), a `CubeScene`
        has its own.
    plan : ExposurePlan
    instrument : Instrument
    ifus : sequence of int
        The simulated IFUs, 1..24; the middle of their field looks at the pointing.
    velocity : bool
        Whether the observer moves (to be undone by ``--rvcorr=bary``).
    sky : bool
        Whether the sky shines.

    Attributes
    ----------
    scene : SceneLike or None
        As it is observed, with the seeing.
    airmass : float
        Mean of the exposure.
    line_waves, line_rates : ndarray of float64, shape (n,)
        Wavelengths in air [Angstrom] and rates [e-/s/spaxel] of the sky lines.

    Raises
    ------
    InputError
        If the scene is not in the field, or the target below the horizon.
    """

    #: the continuum has lines in it
    smooth = False

    def __init__(
        self,
        scene: SceneLike | None,
        plan: ExposurePlan,
        instrument: Instrument,
        ifus: Sequence[int],
        *,
        velocity: bool = True,
        sky: bool = True,
    ) -> None:
        self.plan, self.mode = plan, instrument.mode
        sx, sy = self.mode.spaxel
        area = sx * sy
        conditions = plan.conditions
        times, weights = _moments(plan)
        places = [atmosphere.horizontal(plan.ra, plan.dec, mjd) for mjd in times]
        if min(p.altitude for p in places) < 5:
            raise InputError(
                f"exposure {plan.index}: RA {plan.ra:.5f}, DEC {plan.dec:.5f} is at altitude "
                f"{min(p.altitude for p in places):.1f} deg on {plan.date_obs}, expected above 5 deg"
            )
        airmasses = np.array([p.airmass for p in places])
        self.airmass = float(weights @ airmasses)

        x0, y0 = instrument.centre(ifus)
        pa = math.radians(plan.posang if plan.drot_mode == "STAT" else -plan.posang)
        # arcsec east and north of the pointing per spaxel
        cd = np.array(
            [[-sx * math.cos(pa), -sy * math.sin(pa)], [-sx * math.sin(pa), sy * math.cos(pa)]], np.float64
        )
        if scene is not None:
            ra, dec = scene_centre(scene, plan)
            if isinstance(scene, Scene):
                scene = scene.observed(
                    fwhm=lambda wave: atmosphere.seeing(wave, self.airmass, conditions), spaxel_area=area
                )
            elif isinstance(scene, CubeScene):
                scene = scene.observed(spaxel_area=area)
            rotation = _triad(ra, dec) @ _triad(plan.ra, plan.dec).T
            _check_overlap(scene, plan, instrument, ifus, ra, dec)
        else:
            rotation = np.eye(3)
        self.scene = scene

        wave = np.arange(_WAVE0, _WAVE1 + _STEP / 2, _STEP)
        sensitivity = np.asarray(instrument.sensitivity(wave), np.float64)
        transmission = self.transmission(wave)
        # displacement of the image from where it is at the reference wavelength, in spaxels; towards the zenith
        shift = np.zeros((len(wave), 2))
        for weight, place in zip(weights, places, strict=True):
            up = weight * atmosphere.refraction(wave, REFERENCE_WAVELENGTH, 90 - place.altitude, conditions)
            q = math.radians(place.parang) + pa
            shift[:, 0] -= up * math.sin(q) / sx
            shift[:, 1] += up * math.cos(q) / sy
        self.velocity = atmosphere.barycentric_velocity(plan.ra, plan.dec, times[1]) if velocity else 0.0
        beta = self.velocity / _C
        #: emitted over observed wavelength
        self.doppler = math.sqrt((1 + beta) / (1 - beta))
        sky_flux = area * atmosphere.sky_continuum(wave, plan) if sky else np.zeros(len(wave))
        self._table = np.ascontiguousarray(
            np.column_stack([sensitivity * transmission, sensitivity * sky_flux, shift])
        )
        self._projection = np.array([*cd.ravel(), x0, y0, *rotation.ravel()])

        tables = [atmosphere.sky_lines(plan)] if sky else []
        if sky and self.mode.notch is not None:
            tables.append(atmosphere.raman_lines())
        none = [np.empty(0)]
        line_waves = np.concatenate(none + [np.asarray(t["wave"], np.float64) for t in tables])
        line_flux = np.concatenate(none + [np.asarray(t["flux"], np.float64) for t in tables])
        order = np.argsort(line_waves, kind="stable")
        self.line_waves = line_waves[order]
        self.line_rates = line_flux[order] * area * instrument.sensitivity(self.line_waves)

    def transmission(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Fraction of the scene's light that reaches the telescope."""
        extinction = 10 ** (-0.4 * self.airmass * atmosphere.extinction(wave))
        return extinction * np.asarray(atmosphere.telluric(wave), np.float64) ** self.airmass

    def line_factor(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float64]:
        """Relative brightness of the sky lines over the field: the sky is even."""
        return np.ones(np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(wave)))

    def continuum(self, x: ArrayLike, y: ArrayLike, wave: ArrayLike) -> NDArray[np.float32]:
        """All light but the sky lines.

        Parameters
        ----------
        x, y : array-like of float
            Positions in the geometry plane [spaxel].
        wave : array-like of float
            Observed wavelength in air [Angstrom]; the three are broadcast.

        Returns
        -------
        ndarray of float32, the broadcast shape
            [e-/s/Angstrom/spaxel], before the relative throughput of the slice.
        """
        shape = np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(wave))
        # the first axis may count points within a pixel
        full = shape if len(shape) > 2 else (1,) * (3 - len(shape)) + shape
        out = np.empty(full, np.float32)
        w = np.broadcast_to(np.asarray(wave), full)
        if self.scene is None:
            _sky_only(np.ascontiguousarray(w, np.float64).reshape(-1), self._table, out.reshape(-1))
            return out.reshape(shape)
        xs, ys = np.asarray(x), np.asarray(y)
        together = max(xs.ndim, ys.ndim) <= 2 < len(shape)
        xb, yb = np.broadcast_to(xs, full), np.broadcast_to(ys, full)
        # arrays of this size stay in the cache
        step = max(1, _CHUNK // max(1, int(np.prod(full[2:]))))
        for first in range(0, full[1], step):
            part = slice(first, first + step)
            if together:
                self._add(xb[0, part], yb[0, part], w[:, part], out[:, part])
            else:
                for k in range(full[0]):
                    self._add(xb[k, part], yb[k, part], w[k : k + 1, part], out[k : k + 1, part])
        return out.reshape(shape)

    def _add(
        self, x: NDArray[np.floating], y: NDArray[np.floating], wave: NDArray[np.floating], out: NDArray[np.float32]
    ) -> None:
        """Light at some wavelengths (first axis) of each place.

        Refraction, and the continuum of a `Scene`, are those of the middle one: they change little in a pixel.
        """
        waves = np.ascontiguousarray(wave, np.float64).reshape(len(wave), -1)
        middle = len(waves) // 2
        east, north = (np.array(v, np.float64).reshape(-1) for v in (x, y))
        _to_sky(east, north, waves[middle], self._table, self._projection)
        base = None
        if isinstance(self.scene, Scene):
            base = np.zeros(east.size)
            self.scene.add_continuum(east, north, waves[middle] * self.doppler, base)
        for observed, target in zip(waves, out, strict=True):
            emitted = observed * self.doppler
            flux: NDArray[np.floating]
            if base is not None:
                flux = base.copy()
                self.scene.add_lines(east, north, emitted, flux)  # type: ignore[union-attr]
            else:
                flux = self.scene.surface_brightness(east, north, emitted)  # type: ignore[union-attr]
            values = np.empty(east.size, np.float32)
            _detected(flux, observed, self._table, values)
            target[...] = values.reshape(target.shape)

    def position(
        self, x: ArrayLike, y: ArrayLike, wave: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard coordinates in the scene [arcsec] that a place in the geometry plane sees."""
        shape = np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(wave))
        east, north, w = (np.array(np.broadcast_to(v, shape), np.float64).reshape(-1) for v in (x, y, wave))
        _to_sky(east, north, w, self._table, self._projection)
        return east.reshape(shape), north.reshape(shape)

    def reduced_sky(self, wave: ArrayLike) -> NDArray[np.float64]:
        """Continuum of the sky as a reduction sees it that corrects it like the object.

        Returns
        -------
        ndarray of float64
            [1e-20 erg/s/cm2/Angstrom per spaxel]
        """
        area = self.mode.spaxel[0] * self.mode.spaxel[1]
        return area * np.asarray(atmosphere.sky_continuum(wave, self.plan)) / self.transmission(wave)


def scene_centre(scene: SceneLike, plan: ExposurePlan) -> tuple[float, float]:
    """RA and DEC [deg] of the origin of a scene.

    A scene without coordinates is where the telescope points when its offset is zero.
    """
    ra, dec = getattr(scene, "ra", None), getattr(scene, "dec", None)
    if ra is not None and dec is not None:
        return float(ra), float(dec)
    east, north = plan.offset
    dec = plan.dec - north / 3600
    return (plan.ra - east / 3600 / math.cos(math.radians(dec))) % 360, dec


def truth_cube(
    scene: SceneLike,
    wcs: WCS | fits.Header,
    wave: ArrayLike,
    shape: tuple[int, int] | None = None,
    *,
    ra: float | None = None,
    dec: float | None = None,
) -> NDArray[np.float32]:
    """Evaluate a scene at the centres of the voxels of a grid.

    Parameters
    ----------
    scene : SceneLike
        With the seeing and the line width that is wanted: see `Scene.observed` and `SkyLight.scene`.
    wcs : astropy.wcs.WCS or astropy.io.fits.Header
        Of a cube or image; only the celestial axes are used.
    wave : array-like, shape (n_wave,)
        Wavelengths of the planes in air, corrected for the observer's velocity [Angstrom].
    shape : (n_y, n_x), optional
        Size of the field; default: that of the header or WCS.
    ra, dec : float, optional
        Origin of the scene [deg]; default: its own.

    Returns
    -------
    ndarray of float32, shape (n_wave, n_y, n_x)
        [1e-20 erg/s/cm2/Angstrom per spaxel]

    Raises
    ------
    InputError
        If size or origin are not known.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    if isinstance(wcs, fits.Header):
        shape = shape or (wcs["NAXIS2"], wcs["NAXIS1"])
        wcs = WCS(wcs)
    celestial = wcs.celestial
    if shape is None:
        if celestial.pixel_shape is None:
            raise InputError("truth_cube: the WCS has no size, give shape=(n_y, n_x)")
        shape = (celestial.pixel_shape[1], celestial.pixel_shape[0])
    ra = getattr(scene, "ra", None) if ra is None else ra
    dec = getattr(scene, "dec", None) if dec is None else dec
    if ra is None or dec is None:
        raise InputError("truth_cube: the scene has no coordinates, give ra and dec")
    y, x = np.mgrid[: shape[0], : shape[1]]
    at_ra, at_dec = celestial.all_pix2world(x, y, 0)
    xi, eta = standard_coordinates(at_ra, at_dec, ra, dec)
    waves = np.atleast_1d(np.asarray(wave, np.float64))
    out = np.empty((len(waves), *shape), np.float32)
    for plane, w in zip(out, waves, strict=True):
        plane[:] = scene.surface_brightness(xi, eta, float(w))
    return out


# --- geometry -------------------------------------------------------------------------------------------


def _moments(plan: ExposurePlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start, middle and end of an exposure [MJD], and their weights in a mean (Simpson's rule)."""
    start = atmosphere.mjd(plan.date_obs)
    return start + np.array([0, 0.5, 1]) * plan.exptime / 86400, np.array([1, 4, 1]) / 6


def _triad(ra: float, dec: float) -> NDArray[np.float64]:
    """East, north and outward unit vectors at a position [deg], as rows."""
    a, d = math.radians(ra), math.radians(dec)
    return np.array(
        [
            [-math.sin(a), math.cos(a), 0],
            [-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)],
            [math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)],
        ]
    )


def _check_overlap(
    scene: SceneLike, plan: ExposurePlan, instrument: Instrument, ifus: Sequence[int], ra: float, dec: float
) -> None:
    """Refuse a scene that cannot be seen."""
    xlo, xhi, ylo, yhi = instrument.limits(ifus)
    sx, sy = instrument.mode.spaxel
    field = math.hypot((xhi - xlo) * sx, (yhi - ylo) * sy) / 2
    cosine = _triad(ra, dec)[2] @ _triad(plan.ra, plan.dec)[2]
    distance = math.acos(min(1.0, cosine)) * _ARCSEC
    reach = getattr(scene, "reach", math.inf)
    if distance > field + (reach if math.isfinite(reach) else 3600.0):
        raise InputError(
            f"exposure {plan.index}: the scene at RA {ra:.5f}, DEC {dec:.5f} is {distance:.0f} arcsec from the "
            f"pointing RA {plan.ra:.5f}, DEC {plan.dec:.5f}, outside the field"
        )


@nb.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _place(wave, n):  # type: ignore[no-untyped-def]
    """Row of the table below a wavelength, and the fraction of a step above it."""
    t = min(max((wave - _WAVE0) / _STEP, 0.0), n - 1.001)
    k = int(t)
    return k, t - k


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _to_sky(east, north, waves, table, p):  # type: ignore[no-untyped-def]
    """Turn X and Y [spaxel] into standard coordinates [arcsec], in place."""
    n = len(table)
    for i in range(east.size):
        k, f = _place(waves[i], n)
        x = east[i] - p[4] - (table[k, 2] + f * (table[k + 1, 2] - table[k, 2]))
        y = north[i] - p[5] - (table[k, 3] + f * (table[k + 1, 3] - table[k, 3]))
        xi = (p[0] * x + p[1] * y) / _ARCSEC
        eta = (p[2] * x + p[3] * y) / _ARCSEC
        scale = _ARCSEC / (p[12] * xi + p[13] * eta + p[14])
        east[i] = (p[6] * xi + p[7] * eta + p[8]) * scale
        north[i] = (p[9] * xi + p[10] * eta + p[11]) * scale


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _detected(flux, waves, table, out):  # type: ignore[no-untyped-def]
    n = len(table)
    for i in range(flux.size):
        k, f = _place(waves[i], n)
        efficiency = table[k, 0] + f * (table[k + 1, 0] - table[k, 0])
        out[i] = flux[i] * efficiency + table[k, 1] + f * (table[k + 1, 1] - table[k, 1])


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _sky_only(waves, table, out):  # type: ignore[no-untyped-def]
    n = len(table)
    for i in range(waves.size):
        k, f = _place(waves[i], n)
        out[i] = table[k, 1] + f * (table[k + 1, 1] - table[k, 1])
