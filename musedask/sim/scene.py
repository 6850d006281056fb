"""Scenes: what is on the sky, as a pure function of position and wavelength.

Positions are standard (gnomonic) coordinates in arcsec around the centre of the scene: ``dra`` to the
east, ``ddec`` to the north, both true angles (``dra`` has the factor cos(DEC) in it).  Values are flux
densities per spaxel in 1e-20 erg/s/cm2/Angstrom, the unit of a flux-calibrated pixel table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numba as nb
import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import SPAXEL_WFM

#: wavelength at which the fluxes of stars and background are given [Angstrom]
REFERENCE_WAVELENGTH = 7000.0
#: speed of light [km/s]
_C = 299792.458
#: rows that share one list of nearby sources
_BLOCK = 2048


@runtime_checkable
class SceneLike(Protocol):
    """Anything that `simulate_pixtables` can observe."""

    def surface_brightness(
        self, dra_arcsec: ArrayLike, ddec_arcsec: ArrayLike, wave: ArrayLike
    ) -> NDArray[np.float32]:
        """Flux density per spaxel at positions and wavelengths that broadcast."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `scene_from_dict` makes the scene again."""
        ...


@dataclass(frozen=True)
class Star:
    """A point source with a power-law spectrum and one absorption line.

    Attributes
    ----------
    dra, ddec : float
        Position [arcsec].
    flux : float
        Total flux density at 7000 Angstrom [1e-20 erg/s/cm2/Angstrom].
    slope : float
        Exponent of the power law in wavelength.
    absorption_wave, absorption_sigma : float
        Centre and width of the Gaussian absorption line [Angstrom].
    absorption_depth : float
        Fraction of the continuum missing at its centre, 0 for none.
    """

    dra: float
    ddec: float
    flux: float
    slope: float = 0.0
    absorption_wave: float = 6562.8
    absorption_sigma: float = 3.0
    absorption_depth: float = 0.0


@dataclass(frozen=True)
class LineRegion:
    """An extended region that emits one line and rotates or flows with a constant velocity gradient.

    Attributes
    ----------
    dra, ddec : float
        Centre [arcsec].
    size : float
        Standard deviation of a Gaussian region, or radius of a ring [arcsec].
    flux : float
        Peak line flux per spaxel [1e-20 erg/s/cm2].
    wave : float
        Wavelength at the centre of the region [Angstrom, air].
    sigma : float
        Width of the line including the instrument's [Angstrom].
    velocity_gradient : float
        [km/s/arcsec], along `velocity_angle`.
    velocity_angle : float
        Direction of increasing velocity, north over east [deg].
    kind : {"gaussian", "ring"}
    width : float
        Standard deviation of the ring across [arcsec].
    """

    dra: float
    ddec: float
    size: float
    flux: float
    wave: float
    sigma: float = 1.3
    velocity_gradient: float = 0.0
    velocity_angle: float = 0.0
    kind: Literal["gaussian", "ring"] = "gaussian"
    width: float = 0.4


@dataclass(frozen=True)
class Background:
    """A continuum that fills the field: a plane on the sky times a power law in wavelength.

    Attributes
    ----------
    level : float
        At the centre of the scene and 7000 Angstrom [1e-20 erg/s/cm2/Angstrom per spaxel].
    gradient_ra, gradient_dec : float
        Change per arcsec, to the east and to the north.
    slope : float
        Exponent of the power law in wavelength.
    """

    level: float = 20.0
    gradient_ra: float = 0.0
    gradient_dec: float = 0.0
    slope: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Stars, line-emitting regions and a background.

    Attributes
    ----------
    stars : tuple of Star
    lines : tuple of LineRegion
    background : Background
    fwhm : float
        Width of the point-spread function [arcsec].
    beta : float
        Exponent of its Moffat profile.
    spaxel_area : float
        Solid angle of a spaxel, by which the profiles of stars are multiplied [arcsec2].
    """

    stars: tuple[Star, ...] = ()
    lines: tuple[LineRegion, ...] = ()
    background: Background = field(default_factory=Background)
    fwhm: float = 0.8
    beta: float = 2.8
    spaxel_area: float = SPAXEL_WFM[0] * SPAXEL_WFM[1]

    def __post_init__(self) -> None:
        if not (self.fwhm > 0 and self.beta > 1 and self.spaxel_area > 0):
            raise InputError(
                f"scene: fwhm {self.fwhm}, beta {self.beta}, spaxel_area {self.spaxel_area} found, "
                "expected fwhm > 0, beta > 1, spaxel_area > 0"
            )
        for line in self.lines:
            if line.kind not in ("gaussian", "ring"):
                raise InputError(f"scene: unknown kind of region {line.kind!r}, expected gaussian or ring")
            if not (line.size > 0 and line.sigma > 0 and line.width > 0):
                raise InputError(f"scene: size, width and sigma of {line} must be positive")

    @cached_property
    def _star_table(self) -> NDArray[np.float64]:
        """Columns: dra ddec factor slope abs_wave abs_sigma abs_depth 1/a2 r2_max floor -beta r_max."""
        a2 = (self.fwhm / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        # The wings end at 8 FWHM; the value there is subtracted, so that the profile is continuous
        # and its integral over the plane still has a closed form.
        r2 = (8 * self.fwhm) ** 2
        floor = (1 + r2 / a2) ** -self.beta
        integral = (
            math.pi * a2 / (self.beta - 1) * (1 - (1 + r2 / a2) ** (1 - self.beta)) - math.pi * r2 * floor
        )
        rows = [
            (
                s.dra,
                s.ddec,
                s.flux * self.spaxel_area / integral,
                s.slope,
                s.absorption_wave,
                s.absorption_sigma,
                s.absorption_depth,
                1 / a2,
                r2,
                floor,
                -self.beta,
                math.sqrt(r2),
            )
            for s in self.stars
        ]
        return np.array(rows, np.float64).reshape(len(rows), 12)

    @cached_property
    def _line_table(self) -> NDArray[np.float64]:
        """Columns: dra ddec size width ring amplitude wave sigma v_east v_north r_max wave_margin."""
        rows = []
        for line in self.lines:
            ring = line.kind == "ring"
            r_max = line.size + 5 * line.width if ring else 5 * line.size
            angle = math.radians(line.velocity_angle)
            margin = 6 * line.sigma + abs(line.velocity_gradient) * r_max / _C * line.wave
            rows.append(
                (
                    line.dra,
                    line.ddec,
                    line.size,
                    line.width,
                    float(ring),
                    line.flux / (line.sigma * math.sqrt(2 * math.pi)),
                    line.wave,
                    line.sigma,
                    line.velocity_gradient * math.sin(angle) / _C,
                    line.velocity_gradient * math.cos(angle) / _C,
                    r_max,
                    margin,
                )
            )
        return np.array(rows, np.float64).reshape(len(rows), 12)

    def surface_brightness(
        self, dra_arcsec: ArrayLike, ddec_arcsec: ArrayLike, wave: ArrayLike
    ) -> NDArray[np.float32]:
        """Flux density per spaxel.

        Parameters
        ----------
        dra_arcsec, ddec_arcsec : array-like of float
            Standard coordinates around the centre of the scene, east and north [arcsec].
        wave : array-like of float
            Wavelength [Angstrom]; the three arguments are broadcast.

        Returns
        -------
        ndarray of float32, the broadcast shape
            [1e-20 erg/s/cm2/Angstrom].  A value depends on its own position and wavelength only.
        """
        x, y, w, shape = _flat(dra_arcsec, ddec_arcsec, wave)
        out = np.empty(x.size, np.float32)
        b = self.background
        plane = np.array([b.level, b.gradient_ra, b.gradient_dec, b.slope], np.float64)
        _evaluate(x, y, w, self._star_table, self._line_table, plane, out)
        return out.reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"kind": "scene", **asdict(self)}


def default_scene(
    seed: int = 0,
    size_arcsec: float = 66.0,
    *,
    wave_range: tuple[float, float] = (4750.0, 9350.0),
    fwhm: float = 0.8,
    spaxel_area: float = SPAXEL_WFM[0] * SPAXEL_WFM[1],
) -> Scene:
    """Make a field of stars, nebulae and a sloping background.

    The first star is the brightest by far and lies near the centre, so that any field, however
    small, has one to measure.

    Parameters
    ----------
    seed : int
        Of positions, fluxes and spectra.
    size_arcsec : float
        Side of the square that the sources fill [arcsec].
    wave_range : tuple of float
        Where lines are wanted [Angstrom]: besides the nebular ones, one is put at its middle.
    fwhm : float
        Width of the point-spread function [arcsec].
    spaxel_area : float
        [arcsec2]

    Returns
    -------
    Scene

    Examples
    --------
    >>> scene = default_scene(seed=3, size_arcsec=20)
    >>> scene.surface_brightness([0.0, 1.0], [0.0, 0.0], 5000.0).shape
    (2,)
    """
    if not size_arcsec > 0:
        raise InputError(f"scene: size {size_arcsec} arcsec found, expected > 0")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5CE7E])))
    half = size_arcsec / 2
    unit = fwhm / 0.8  # all small lengths follow the seeing, so that narrow-field scenes look alike
    bright = 60_000.0 * 0.04 / spaxel_area * unit**2
    stars = [Star(0.6 * unit, -0.4 * unit, bright, -1.0, 5183.6, 4.0, 0.3)]
    # about one star in 120 square seeing discs
    for _ in range(min(400, max(3, round((size_arcsec / unit) ** 2 / 120)))):
        x, y = rng.uniform(-half, half, 2)
        stars.append(
            Star(
                float(x),
                float(y),
                float(bright * 10 ** rng.uniform(-2.2, -0.4)),
                float(rng.uniform(-2.5, 1.5)),
                float(rng.choice([4861.3, 5183.6, 6562.8, 8542.1])),
                float(rng.uniform(2.0, 6.0)),
                float(rng.uniform(0.0, 0.6)),
            )
        )
    lines = []
    waves = (4861.33, 5006.84, 6562.8, 6583.4, 6716.4, 9068.6, sum(wave_range) / 2)
    for i in range(min(12, max(2, round((size_arcsec / unit) ** 2 / 350)))):
        x, y = rng.uniform(-0.4 * size_arcsec, 0.4 * size_arcsec, 2)
        kind: Literal["gaussian", "ring"] = "ring" if i % 3 == 1 else "gaussian"
        size = float(rng.uniform(1.0, 3.0) * unit)
        flux = float(rng.uniform(150, 700))
        gradient, angle = float(rng.uniform(-40, 40) / unit), float(rng.uniform(0, 360))
        lines += [
            LineRegion(
                float(x), float(y), size, flux / (1 + 0.4 * k), wave, 1.3, gradient, angle, kind, 0.5 * unit
            )
            for k, wave in enumerate(waves)
        ]
    slopes = rng.uniform(-0.08, 0.08, 2) / unit
    background = Background(15.0, float(slopes[0]), float(slopes[1]), -0.5)
    return Scene(tuple(stars), tuple(lines), background, fwhm, 2.8, spaxel_area)


@dataclass(frozen=True)
class CubeScene:
    """A real cube as the sky, interpolated linearly in all three axes.

    Attributes
    ----------
    data : ndarray, shape (n_wave, n_y, n_x), float32
        Flux density per spaxel; no NaN.
    ra, dec : float
        Sky position of the centre of the cube, which is the origin of the scene [deg].
    to_pixel : tuple of float
        ``(a, b, c, d)``: offsets [arcsec] to offsets from the central pixel,
        ``x = a * dra + b * ddec``, ``y = c * dra + d * ddec``.
    wave0, wave_step : float
        Wavelength of the first plane and step [Angstrom].
    outside : {"mirror", "zero"}
        What lies beyond the edges of the field: the cube reflected again and again, or nothing.
        Beyond the wavelength range the first and last planes go on.
    source : str
        Path of the cube.
    """

    data: NDArray[np.float32] = field(repr=False, compare=False)
    ra: float
    dec: float
    to_pixel: tuple[float, float, float, float]
    wave0: float
    wave_step: float
    outside: Literal["mirror", "zero"] = "mirror"
    source: str = ""

    @classmethod
    def from_cube(
        cls, path: str | os.PathLike[str], *, outside: Literal["mirror", "zero"] = "mirror"
    ) -> CubeScene:
        """Read a FITS cube with an extension ``DATA`` and a linear wavelength axis.

        Parameters
        ----------
        path : path-like
        outside : {"mirror", "zero"}
            See the attribute.

        Returns
        -------
        CubeScene

        Raises
        ------
        InputError
            If it is not such a cube.
        """
        if outside not in ("mirror", "zero"):
            raise InputError(f"outside: {outside!r} found, expected mirror or zero")
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file")
        try:
            with fits.open(path, memmap=False) as hdus:
                hdu = hdus["DATA"] if "DATA" in hdus else hdus[0]
                header = hdu.header
                data = None if hdu.data is None else np.array(hdu.data, np.float32)
        except OSError as error:
            raise InputError(f"{path}: cannot be read as FITS: {error}") from error
        if data is None or data.ndim != 3:
            raise InputError(f"{path}: no cube found, expected three axes in the extension DATA")
        if "TAN" not in str(header.get("CTYPE1")) or header.get("CTYPE3", "AWAV").strip() != "AWAV":
            raise InputError(
                f"{path}: CTYPE1 {header.get('CTYPE1')!r}, CTYPE3 {header.get('CTYPE3')!r} found, "
                "expected RA---TAN and AWAV"
            )
        np.nan_to_num(data, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        cd = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)], np.float64)
        if abs(np.linalg.det(cd)) == 0:
            raise InputError(f"{path}: the matrix CDi_j is missing or singular")
        _, ny, nx = data.shape
        centre = np.array([(nx + 1) / 2 - header["CRPIX1"], (ny + 1) / 2 - header["CRPIX2"]])
        xi, eta = np.radians(cd @ centre)
        ra0, dec0 = math.radians(header["CRVAL1"]), math.radians(header["CRVAL2"])
        # inverse gnomonic projection of the central pixel
        ra = ra0 + math.atan2(xi, math.cos(dec0) - eta * math.sin(dec0))
        dec = math.atan2(
            (math.sin(dec0) + eta * math.cos(dec0)) * math.cos(ra - ra0),
            math.cos(dec0) - eta * math.sin(dec0),
        )
        inverse = np.linalg.inv(cd * 3600)
        step = float(header.get("CD3_3", header.get("CDELT3", 1.25)))
        return cls(
            data,
            math.degrees(ra) % 360,
            math.degrees(dec),
            (float(inverse[0, 0]), float(inverse[0, 1]), float(inverse[1, 0]), float(inverse[1, 1])),
            float(header["CRVAL3"]) + (1 - float(header.get("CRPIX3", 1))) * step,
            step,
            outside,
            str(path),
        )

    def surface_brightness(
        self, dra_arcsec: ArrayLike, ddec_arcsec: ArrayLike, wave: ArrayLike
    ) -> NDArray[np.float32]:
        """Flux density per spaxel; see `Scene.surface_brightness`."""
        x, y, w, shape = _flat(dra_arcsec, ddec_arcsec, wave)
        out = np.empty(x.size, np.float32)
        matrix = np.array(self.to_pixel, np.float64)
        _interpolate(x, y, w, self.data, matrix, self.wave0, self.wave_step, self.outside == "mirror", out)
        return out.reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the path, not the pixels."""
        return {"kind": "cube", "source": self.source, "outside": self.outside}


def scene_from_dict(data: Mapping[str, Any]) -> SceneLike:
    """Make a scene from `SceneLike.to_dict`."""
    values = dict(data)
    kind = values.pop("kind", None)
    if kind == "cube":
        return CubeScene.from_cube(values["source"], outside=values["outside"])
    if kind == "scene":
        scene = Scene(
            tuple(Star(**s) for s in values.pop("stars")),
            tuple(LineRegion(**s) for s in values.pop("lines")),
            Background(**values.pop("background")),
        )
        return replace(scene, **values)
    raise InputError(f"scene: unknown kind {kind!r}, expected scene or cube")


def _flat(
    dra: ArrayLike, ddec: ArrayLike, wave: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
    x, y, w = np.broadcast_arrays(
        np.asarray(dra, np.float64), np.asarray(ddec, np.float64), np.asarray(wave, np.float64)
    )
    return np.ravel(x), np.ravel(y), np.ravel(w), x.shape


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(dra, ddec, wave, stars, lines, plane, out):  # type: ignore[no-untyped-def]
    near_stars = np.empty(len(stars), np.int64)
    near_lines = np.empty(len(lines), np.int64)
    for first in range(0, dra.size, _BLOCK):
        last = min(dra.size, first + _BLOCK)
        # Which sources can reach this block at all?  This saves time only: each row tests again.
        x0, x1, y0, y1, w0, w1 = np.inf, -np.inf, np.inf, -np.inf, np.inf, -np.inf
        for i in range(first, last):
            x0, x1 = min(x0, dra[i]), max(x1, dra[i])
            y0, y1 = min(y0, ddec[i]), max(y1, ddec[i])
            w0, w1 = min(w0, wave[i]), max(w1, wave[i])
        n_stars = 0
        for k in range(len(stars)):
            s = stars[k]
            if x0 - s[11] <= s[0] <= x1 + s[11] and y0 - s[11] <= s[1] <= y1 + s[11]:
                near_stars[n_stars] = k
                n_stars += 1
        n_lines = 0
        for k in range(len(lines)):
            s = lines[k]
            if (
                w0 - s[11] <= s[6] <= w1 + s[11]
                and x0 - s[10] <= s[0] <= x1 + s[10]
                and y0 - s[10] <= s[1] <= y1 + s[10]
            ):
                near_lines[n_lines] = k
                n_lines += 1
        for i in range(first, last):
            x, y, w = dra[i], ddec[i], wave[i]
            log_w = math.log(w / REFERENCE_WAVELENGTH)
            total = (plane[0] + plane[1] * x + plane[2] * y) * math.exp(plane[3] * log_w)
            for j in range(n_stars):
                s = stars[near_stars[j]]
                r2 = (x - s[0]) ** 2 + (y - s[1]) ** 2
                if r2 < s[8]:
                    value = s[2] * ((1.0 + r2 * s[7]) ** s[10] - s[9]) * math.exp(s[3] * log_w)
                    u = (w - s[4]) / s[5]
                    if abs(u) < 8.0:
                        value *= 1.0 - s[6] * math.exp(-0.5 * u * u)
                    total += value
            for j in range(n_lines):
                s = lines[near_lines[j]]
                if abs(w - s[6]) > s[11]:
                    continue
                dx, dy = x - s[0], y - s[1]
                r = math.sqrt(dx * dx + dy * dy)
                if r > s[10]:
                    continue
                u = (w - s[6] * (1.0 + s[8] * dx + s[9] * dy)) / s[7]
                if s[4] > 0.5:
                    t = (r - s[2]) / s[3]
                else:
                    t = r / s[2]
                total += s[5] * math.exp(-0.5 * (t * t + u * u))
            out[i] = total


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(dra, ddec, wave, data, matrix, wave0, step, mirror, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = data.shape
    for i in range(dra.size):
        x = matrix[0] * dra[i] + matrix[1] * ddec[i] + 0.5 * (nx - 1)
        y = matrix[2] * dra[i] + matrix[3] * ddec[i] + 0.5 * (ny - 1)
        if mirror:
            x, y = _reflect(x, nx), _reflect(y, ny)
        elif x < 0.0 or y < 0.0 or x > nx - 1.0 or y > ny - 1.0:
            out[i] = 0.0
            continue
        z = min(max((wave[i] - wave0) / step, 0.0), nz - 1.0)
        kx, ky, kz = min(int(x), max(nx - 2, 0)), min(int(y), max(ny - 2, 0)), min(int(z), max(nz - 2, 0))
        fx, fy, fz = x - kx, y - ky, z - kz
        mx, my, mz = min(kx + 1, nx - 1), min(ky + 1, ny - 1), min(kz + 1, nz - 1)
        low = (1 - fy) * ((1 - fx) * data[kz, ky, kx] + fx * data[kz, ky, mx]) + fy * (
            (1 - fx) * data[kz, my, kx] + fx * data[kz, my, mx]
        )
        high = (1 - fy) * ((1 - fx) * data[mz, ky, kx] + fx * data[mz, ky, mx]) + fy * (
            (1 - fx) * data[mz, my, kx] + fx * data[mz, my, mx]
        )
        out[i] = (1 - fz) * low + fz * high


@nb.njit(nogil=True, cache=True, inline="always")
def _reflect(x, n):  # type: ignore[no-untyped-def]
    if n < 2:
        return 0.0
    period = 2.0 * (n - 1)
    x = abs(x) % period
    return period - x if x > n - 1 else x
