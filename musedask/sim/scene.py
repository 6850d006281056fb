"""Scenes: what is on the sky, as a pure function of position and wavelength.

Positions are standard (gnomonic) coordinates in arcsec around the centre of the scene: ``dra`` to the
east, ``ddec`` to the north, both true angles (``dra`` has the factor cos(DEC) in it).  Values are flux
densities per spaxel in 1e-20 erg/s/cm2/Angstrom, the unit of a flux-calibrated pixel table, above the
atmosphere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import SPAXEL_WFM
from ..io.cube_read import open_source
from .spectra import REFERENCE_WAVELENGTH, BlackBody, Spectrum, Tabulated, WhiteDwarf

#: speed of light [km/s]
_C = 299792.458
#: rows that share one list of nearby sources
_BLOCK = 2048
#: the wings of the point-spread function end at so many FWHM
_WINGS = 8.0
#: steps of its table
_PROFILE = 2048
#: grid of tabulated spectra [Angstrom]
_GRID0, _GRID1, _GRID_STEP = 3000.0, 11000.0, 0.5
#: step of the table of the seeing [Angstrom]
_CURVE_STEP = 50.0
#: galaxies: cells of the side of the table of an image, widths of the seeing that have an image of their own
_CELLS, _NODES = 192, 6
#: galaxies end at so many effective radii
_SERSIC_END = 8.0
#: nebulae: cells of the side of the tile that repeats itself, and its side in units of the largest structure
_TILE, _TILE_SIZE = 384, 6.0
#: narrowest line [Angstrom]: a narrower one would slip between the samples of the renderer
_MIN_SIGMA = 0.25


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
    """A point source with a power-law spectrum, or one of another kind, and one absorption line.

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
    spectrum : BlackBody, WhiteDwarf, Tabulated or None
        Multiplies the power law; None is 1 at all wavelengths.
    name : str
    """

    dra: float
    ddec: float
    flux: float
    slope: float = 0.0
    absorption_wave: float = 6562.8
    absorption_sigma: float = 3.0
    absorption_depth: float = 0.0
    spectrum: BlackBody | WhiteDwarf | Tabulated | None = None
    name: str = ""


@dataclass(frozen=True)
class Galaxy:
    """An elliptical Sersic profile, blurred by the seeing.

    The profile ends at 8 effective radii.  It is a sum of Gaussians, as the point-spread function is one for
    it: the image is within 1 % of the exact convolution where it is brighter than a thousandth of its peak,
    and the total flux within 0.5 %.

    Attributes
    ----------
    dra, ddec : float
        Centre [arcsec].
    flux : float
        Total flux density at 7000 Angstrom [1e-20 erg/s/cm2/Angstrom].
    radius : float
        Effective radius along the major axis [arcsec].
    sersic : float
        Index of the profile, 0.5 (Gaussian) to 6; 1 is exponential, 4 a de Vaucouleurs profile.
    axis_ratio : float
        Minor over major axis.
    angle : float
        Position angle of the major axis, north over east [deg].
    slope : float
        Exponent of the power law in wavelength.
    spectrum : BlackBody, WhiteDwarf, Tabulated or None
        Multiplies the power law.
    name : str
    """

    dra: float
    ddec: float
    flux: float
    radius: float
    sersic: float = 1.0
    axis_ratio: float = 1.0
    angle: float = 0.0
    slope: float = 0.0
    spectrum: BlackBody | WhiteDwarf | Tabulated | None = None
    name: str = ""


@dataclass(frozen=True)
class LineRegion:
    """An extended region that emits one line and rotates or flows with a constant velocity gradient.

    Attributes
    ----------
    dra, ddec : float
        Centre [arcsec].
    size : float
        Standard deviation of a Gaussian region, or radius of a ring [arcsec], as seen: it is not blurred.
    flux : float
        Peak line flux per spaxel [1e-20 erg/s/cm2].
    wave : float
        Wavelength at the centre of the region [Angstrom, air].
    sigma : float
        Intrinsic width of the line [Angstrom]; `Scene.lsf_sigma` is added to it in quadrature.
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
    sigma: float = 0.7
    velocity_gradient: float = 0.0
    velocity_angle: float = 0.0
    kind: Literal["gaussian", "ring"] = "gaussian"
    width: float = 0.4


@dataclass(frozen=True)
class NebulaLine:
    """A line of a nebula.

    Attributes
    ----------
    wave : float
        At rest [Angstrom, air].
    ratio : float
        Mean flux in units of `Nebula.flux`.
    exponent : float
        The line follows the structure of the nebula to this power: more than 1 for a line of the bright
        parts, less for one of the diffuse gas.
    """

    wave: float
    ratio: float
    exponent: float = 1.0


#: An H II region: wavelengths in air (NIST), [O III], [N II], [S II] and [S III] in the ratio of their transition
#: probabilities, Balmer lines of case B at 10^4 K (Osterbrock & Ferland 2006), the others as in Orion, roughly
HII_LINES = (
    NebulaLine(4861.33, 0.350),
    NebulaLine(4958.91, 0.215, 1.25),
    NebulaLine(5006.84, 0.640, 1.25),
    NebulaLine(5875.62, 0.045),
    NebulaLine(6300.30, 0.010, 0.7),
    NebulaLine(6312.06, 0.005, 1.25),
    NebulaLine(6548.05, 0.080, 0.8),
    NebulaLine(6562.79, 1.000),
    NebulaLine(6583.45, 0.245, 0.8),
    NebulaLine(6678.15, 0.013),
    NebulaLine(6716.44, 0.070, 0.7),
    NebulaLine(6730.82, 0.055, 0.7),
    NebulaLine(7135.79, 0.045, 1.1),
    NebulaLine(9068.60, 0.110, 1.1),
)


@dataclass(frozen=True)
class Nebula:
    """Gas that fills the field: bright and dark structures of all sizes, with a velocity field.

    The structure is a lognormal random field whose power falls with the cube of the spatial frequency, from
    `scale` down to 0.8 arcsec; it repeats itself after six times `scale`.  The velocity is a gradient and a
    random field of the same kind.

    Attributes
    ----------
    flux : float
        Mean flux of a line of ratio 1 per spaxel [1e-20 erg/s/cm2].
    lines : tuple of NebulaLine
    contrast : float
        Standard deviation of the natural logarithm of the flux.
    scale : float
        Size of the largest structures [arcsec].
    velocity : float
        At the centre of the scene [km/s].
    velocity_gradient, velocity_angle : float
        [km/s/arcsec] and its direction, north over east [deg].
    turbulence : float
        Standard deviation of the random velocities [km/s].
    dispersion : float
        Intrinsic standard deviation of the lines [km/s].
    seed : int
        Of the structure.
    """

    flux: float
    lines: tuple[NebulaLine, ...] = HII_LINES
    contrast: float = 0.7
    scale: float = 20.0
    velocity: float = 0.0
    velocity_gradient: float = 0.0
    velocity_angle: float = 0.0
    turbulence: float = 10.0
    dispersion: float = 20.0
    seed: int = 0


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
    """Stars, galaxies, line-emitting gas and a background.

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
        Solid angle of a spaxel [arcsec2], by which the profiles of stars are multiplied and to which all
        that is given per spaxel belongs.
    galaxies : tuple of Galaxy
    nebulae : tuple of Nebula
    ra, dec : float or None
        Coordinates of the centre [deg]; without them it lies where the telescope is sent to.
    seeing : tuple of (float, float)
        Pairs of wavelength [Angstrom] and FWHM [arcsec] that replace `fwhm`, interpolated linearly.
    lsf_sigma : float
        Standard deviation of the instrument's line-spread function [Angstrom], with which emission lines
        and spectra are broadened; 0 if something else does it.
    name : str
    """

    stars: tuple[Star, ...] = ()
    lines: tuple[LineRegion, ...] = ()
    background: Background = field(default_factory=Background)
    fwhm: float = 0.8
    beta: float = 2.8
    spaxel_area: float = SPAXEL_WFM[0] * SPAXEL_WFM[1]
    galaxies: tuple[Galaxy, ...] = ()
    nebulae: tuple[Nebula, ...] = ()
    ra: float | None = None
    dec: float | None = None
    seeing: tuple[tuple[float, float], ...] = ()
    lsf_sigma: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.fwhm > 0 and self.beta > 1 and self.spaxel_area > 0 and self.lsf_sigma >= 0):
            raise InputError(
                f"scene: fwhm {self.fwhm}, beta {self.beta}, spaxel_area {self.spaxel_area}, lsf_sigma "
                f"{self.lsf_sigma} found, expected fwhm > 0, beta > 1, spaxel_area > 0, lsf_sigma >= 0"
            )
        if (self.ra is None) != (self.dec is None) or not (self.dec is None or -90 < self.dec < 90):
            raise InputError(f"scene: ra {self.ra}, dec {self.dec} found, expected both, or neither")
        for star in self.stars:
            if not (star.absorption_sigma > 0 and star.absorption_depth <= 1):
                raise InputError(f"scene: absorption_sigma of {star} must be positive, its depth at most 1")
        for line in self.lines:
            if line.kind not in ("gaussian", "ring"):
                raise InputError(f"scene: unknown kind of region {line.kind!r}, expected gaussian or ring")
            if not (line.size > 0 and line.sigma > 0 and line.width > 0):
                raise InputError(f"scene: size, width and sigma of {line} must be positive")
        for g in self.galaxies:
            if not (g.radius > 0 and 0.5 <= g.sersic <= 6 and 0.05 <= g.axis_ratio <= 1):
                raise InputError(
                    f"scene: radius {g.radius}, sersic {g.sersic}, axis_ratio {g.axis_ratio} of a galaxy found, "
                    "expected radius > 0, sersic 0.5..6, axis_ratio 0.05..1"
                )
        for n in self.nebulae:
            if not (n.contrast >= 0 and n.scale > 1 and n.turbulence >= 0 and n.dispersion >= 0 and n.seed >= 0):
                raise InputError(
                    f"scene: contrast {n.contrast}, scale {n.scale}, turbulence {n.turbulence}, dispersion "
                    f"{n.dispersion}, seed {n.seed} of a nebula found, expected scale > 1, the others >= 0"
                )
        if any(not f > 0 for _, f in self.seeing) or list(self.seeing) != sorted(self.seeing):
            raise InputError("scene: seeing: expected increasing wavelengths and widths > 0")

    def observed(
        self,
        *,
        fwhm: float | tuple[float, float] | Callable[[NDArray[np.float64]], ArrayLike] | None = None,
        lsf_sigma: float | None = None,
        spaxel_area: float | None = None,
    ) -> Scene:
        """The same sky under other conditions.

        Parameters
        ----------
        fwhm : float, (float, float) or callable, optional
            Width of the point-spread function [arcsec]: one for all wavelengths, one at 7000 Angstrom and the
            exponent with which it goes with wavelength (-0.2 for turbulence), or a function of wavelength.
        lsf_sigma : float, optional
            See the attribute [Angstrom].
        spaxel_area : float, optional
            Size of the spaxels [arcsec2]; all fluxes per spaxel follow.

        Returns
        -------
        Scene
        """
        scene = self
        if fwhm is not None:
            if isinstance(fwhm, int | float):
                scene = replace(scene, fwhm=float(fwhm), seeing=())
            else:
                wave = np.arange(_GRID0, _GRID1 + 1, _CURVE_STEP)
                if callable(fwhm):
                    widths = np.broadcast_to(np.asarray(fwhm(wave), np.float64), wave.shape)
                else:
                    widths = fwhm[0] * (wave / REFERENCE_WAVELENGTH) ** fwhm[1]
                pairs = tuple(zip(wave.tolist(), widths.tolist(), strict=True))
                middle = float(np.interp(REFERENCE_WAVELENGTH, wave, widths))
                scene = replace(scene, fwhm=middle, seeing=pairs)
        if lsf_sigma is not None:
            scene = replace(scene, lsf_sigma=float(lsf_sigma))
        if spaxel_area is not None and spaxel_area != self.spaxel_area:
            k = spaxel_area / self.spaxel_area
            b = self.background
            scene = replace(
                scene,
                spaxel_area=float(spaxel_area),
                lines=tuple(replace(line, flux=line.flux * k) for line in self.lines),
                nebulae=tuple(replace(n, flux=n.flux * k) for n in self.nebulae),
                background=Background(b.level * k, b.gradient_ra * k, b.gradient_dec * k, b.slope),
            )
        return scene

    @property
    def reach(self) -> float:
        """Distance of the farthest source from the centre [arcsec]; infinite if only the background is there."""
        places = [math.hypot(s.dra, s.ddec) for s in self.stars]
        places += [math.hypot(g.dra, g.ddec) + 2 * g.radius for g in self.galaxies]
        places += [math.hypot(r.dra, r.ddec) + 2 * r.size for r in self.lines]
        return max(places) if places and not self.nebulae else math.inf

    # --- tables for the evaluation

    @cached_property
    def _curve(self) -> NDArray[np.float64]:
        """Per step of wavelength: 1/FWHM and the number of the galaxies' image, fractional."""
        wave = np.arange(_GRID0, _GRID1 + 1, _CURVE_STEP)
        fwhm = np.full(len(wave), self.fwhm)
        if self.seeing:
            fwhm = np.interp(wave, *np.array(self.seeing).T)
        nodes = self._nodes
        number = np.interp(fwhm, nodes, np.arange(len(nodes))) if len(nodes) > 1 else np.zeros(len(wave))
        return np.column_stack([1 / fwhm, number])

    @cached_property
    def _nodes(self) -> NDArray[np.float64]:
        """Widths of the seeing for which galaxies have images."""
        if not self.seeing:
            return np.array([self.fwhm])
        widths = [f for _, f in self.seeing]
        low, high = min(widths), max(widths)
        return np.geomspace(low, high, _NODES) if high > 1.001 * low else np.array([low])

    @cached_property
    def _profile(self) -> NDArray[np.float64]:
        """The point-spread function of FWHM 1 at steps of the distance, its integral over the plane is 1."""
        u = np.linspace(0, _WINGS, _PROFILE + 1)
        return np.append(_moffat(u, self.beta), 0.0)

    @cached_property
    def _spectra(self) -> tuple[dict[Spectrum, int], NDArray[np.float64]]:
        """Tabulated spectra and their row by what they are."""
        wave = np.arange(_GRID0, _GRID1 + _GRID_STEP, _GRID_STEP)
        found: dict[Spectrum, int] = {}
        rows = []
        for source in (*self.stars, *self.galaxies):
            if source.spectrum is not None and source.spectrum not in found:
                found[source.spectrum] = len(rows)
                row = source.spectrum(wave)
                if self.lsf_sigma > 0:
                    from scipy.ndimage import gaussian_filter1d

                    row = gaussian_filter1d(row, self.lsf_sigma / _GRID_STEP, mode="nearest")
                rows.append(np.append(row, row[-1]))
        return found, np.array(rows, np.float64).reshape(len(rows), len(wave) + 1)

    def _row_of(self, spectrum: Spectrum | None) -> float:
        return -1.0 if spectrum is None else float(self._spectra[0][spectrum])

    @cached_property
    def _star_table(self) -> NDArray[np.float64]:
        """Columns: dra ddec factor slope abs_wave abs_sigma abs_depth spectrum."""
        rows = []
        for s in self.stars:
            sigma = math.hypot(s.absorption_sigma, self.lsf_sigma)
            depth = s.absorption_depth * s.absorption_sigma / sigma
            rows.append(
                (s.dra, s.ddec, s.flux * self.spaxel_area, s.slope, s.absorption_wave, sigma, depth,
                 self._row_of(s.spectrum))
            )  # fmt: skip
        return np.array(rows, np.float64).reshape(len(rows), 8)

    @cached_property
    def _galaxy_table(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Columns: dra ddec sin cos reach core steps factor slope spectrum; images by galaxy and seeing."""
        rows = []
        images = np.zeros((len(self.galaxies), len(self._nodes), _CELLS, _CELLS), np.float32)
        core = 0.5 * float(self._nodes[0])
        for i, g in enumerate(self.galaxies):
            reach = _SERSIC_END * g.radius + 4 * float(self._nodes[-1])
            steps = (_CELLS - 2) / math.asinh(reach / core)
            for image, fwhm in zip(images[i], self._nodes, strict=True):
                image[:] = _galaxy_image(g.radius, g.sersic, g.axis_ratio, float(fwhm), self.beta, core, steps)
            angle = math.radians(g.angle)
            rows.append(
                (g.dra, g.ddec, math.sin(angle), math.cos(angle), reach, core, steps, g.flux * self.spaxel_area,
                 g.slope, self._row_of(g.spectrum))
            )  # fmt: skip
        return np.array(rows, np.float64).reshape(len(rows), 10), images

    @cached_property
    def _line_table(self) -> NDArray[np.float64]:
        """Columns: dra ddec size width ring amplitude wave sigma v_east v_north r_max wave_margin."""
        rows = []
        for line in self.lines:
            ring = line.kind == "ring"
            r_max = line.size + 5 * line.width if ring else 5 * line.size
            angle = math.radians(line.velocity_angle)
            sigma = max(_MIN_SIGMA, math.hypot(line.sigma, self.lsf_sigma))
            margin = 6 * sigma + abs(line.velocity_gradient) * r_max / _C * line.wave
            rows.append(
                (
                    line.dra,
                    line.ddec,
                    line.size,
                    line.width,
                    float(ring),
                    line.flux / (sigma * math.sqrt(2 * math.pi)),
                    line.wave,
                    sigma,
                    line.velocity_gradient * math.sin(angle) / _C,
                    line.velocity_gradient * math.cos(angle) / _C,
                    r_max,
                    margin,
                )
            )
        return np.array(rows, np.float64).reshape(len(rows), 12)

    @cached_property
    def _nebula_table(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
        """Nebulae (cells_per_arcsec contrast beta v_east v_north turbulence limit), lines, tiles.

        Lines have the columns nebula wave sigma amplitude exponent margin; velocities are in units of c.
        """
        rows, lines = [], []
        tiles = np.empty((len(self.nebulae), 2, _TILE, _TILE), np.float32)
        for i, n in enumerate(self.nebulae):
            tiles[i] = _tiles(n.seed, n.scale)
            angle = math.radians(n.velocity_angle)
            # beyond this the velocity does not grow: lines stay where they are looked for
            limit = (abs(n.velocity_gradient) * 120 + 4.5 * n.turbulence) / _C
            rows.append(
                (
                    _TILE / (_TILE_SIZE * n.scale),
                    n.contrast,
                    n.velocity / _C,
                    n.velocity_gradient * math.sin(angle) / _C,
                    n.velocity_gradient * math.cos(angle) / _C,
                    n.turbulence / _C,
                    limit,
                )
            )
            for line in n.lines:
                wave = line.wave * (1 + n.velocity / _C)
                sigma = max(_MIN_SIGMA, math.hypot(n.dispersion / _C * wave, self.lsf_sigma))
                # the mean of a lognormal variable to a power is not 1
                mean = math.exp(0.5 * (n.contrast * line.exponent) ** 2)
                amplitude = n.flux * line.ratio / (mean * sigma * math.sqrt(2 * math.pi))
                lines.append((i, wave, sigma, amplitude, line.exponent, 6 * sigma + limit * wave))
        return (
            np.array(rows, np.float64).reshape(len(rows), 7),
            np.array(lines, np.float64).reshape(len(lines), 6),
            tiles,
        )

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
        _evaluate(
            x, y, w, self._curve, self._profile, self._spectra[1], self._star_table, *self._galaxy_table,
            self._line_table, *self._nebula_table, plane, out,
        )  # fmt: skip
        return out.reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"kind": "scene", **asdict(self)}

    def __getstate__(self) -> dict[str, Any]:
        # tables are made again where they are needed
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def _moffat(u: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Moffat profile of FWHM 1 and integral 1 at distances `u`.

    The wings end at 8 FWHM; the value there is subtracted, so that the profile is continuous and its
    integral over the plane still has a closed form.
    """
    a2 = 0.25 / (2 ** (1 / beta) - 1)
    r2 = _WINGS**2
    floor = (1 + r2 / a2) ** -beta
    integral = math.pi * a2 / (beta - 1) * (1 - (1 + r2 / a2) ** (1 - beta)) - math.pi * r2 * floor
    return np.maximum((1 + u * u / a2) ** -beta - floor, 0) / integral


# --- galaxies: sums of Gaussians ------------------------------------------------------------------------


def _gaussians(
    r: NDArray[np.float64], profile: NDArray[np.float64], sigma: NDArray[np.float64], floor: float
) -> NDArray[np.float64]:
    """Fluxes of round Gaussians of given widths whose sum is a profile, with integral 1."""
    from scipy.optimize import nnls

    basis = np.exp(-0.5 * (r[:, None] / sigma) ** 2) / (2 * math.pi * sigma**2)
    # relative errors count, and absolute ones where little is left; a ring's share of the flux goes with r
    weight = 1 / (profile + floor * profile.max())
    flux, _ = nnls(basis * weight[:, None], profile * weight, maxiter=20 * len(r))
    return flux / flux.sum()


@lru_cache(maxsize=64)
def _psf_gaussians(beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Widths and fluxes for the Moffat profile of FWHM 1."""
    u = np.linspace(0.005, _WINGS, 800)
    sigma = np.geomspace(0.15, _WINGS / 2, 14)
    flux = _gaussians(u, _moffat(u, beta), sigma, 1e-5)
    return sigma[flux > 0], flux[flux > 0]


@lru_cache(maxsize=64)
def _sersic_gaussians(index: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Widths and fluxes for the Sersic profile of effective radius 1, cut off at 8."""
    from scipy.special import gammaincinv

    if index == 0.5:
        return np.array([1 / math.sqrt(2 * math.log(2))]), np.ones(1)
    b = float(gammaincinv(2 * index, 0.5))
    r = np.geomspace(2e-3, 1.3 * _SERSIC_END, 700)
    profile = np.exp(-b * r ** (1 / index)) / (1 + (r / _SERSIC_END) ** 24)
    sigma = np.geomspace(2e-3, 0.6 * _SERSIC_END, 22)
    flux = _gaussians(r, profile, sigma, 1e-7)
    return sigma[flux > 0], flux[flux > 0]


def _galaxy_image(
    radius: float, index: float, axis_ratio: float, fwhm: float, beta: float, core: float, steps: float
) -> NDArray[np.float64]:
    """A quadrant of the blurred image of unit flux, along the major (rows) and the minor axis.

    Cell k lies at ``core * sinh(k / steps)``: fine in the middle, coarse outside.
    """
    x = core * np.sinh(np.arange(_CELLS) / steps)
    sigma, flux = _sersic_gaussians(index)
    blur, share = _psf_gaussians(beta)
    major = np.sqrt((sigma[:, None] * radius) ** 2 + (blur * fwhm) ** 2).ravel()
    minor = np.sqrt((sigma[:, None] * radius * axis_ratio) ** 2 + (blur * fwhm) ** 2).ravel()
    weight = (flux[:, None] * share).ravel() / (2 * math.pi * major * minor)
    across = np.exp(-0.5 * (x[:, None] / minor) ** 2)
    result: NDArray[np.float64] = (np.exp(-0.5 * (x[:, None] / major) ** 2) * weight) @ across.T
    return result


# --- nebulae: random fields -----------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _tiles(seed: int, scale: float) -> NDArray[np.float32]:
    """Two periodic random fields of mean 0 and variance 1, shape (2, n, n)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x9EB])))
    side = _TILE_SIZE * scale
    fx = np.fft.fftfreq(_TILE, side / _TILE)
    k = np.hypot(fx[:, None], fx[None, : _TILE // 2 + 1])
    # amplitude k^-1.5 down to structures of 0.8 arcsec, none larger than the largest
    amplitude = (k**2 + (0.5 / scale) ** 2) ** -0.75 * np.exp(-0.5 * (k * 2 * math.pi * 0.34) ** 2)
    amplitude[k < 0.5 / scale] = 0
    fields = np.empty((2, _TILE, _TILE), np.float32)
    for out in fields:
        noise = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
        values = np.fft.irfft2(noise * amplitude, s=(_TILE, _TILE))
        out[:] = values / values.std()
    return fields


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
                float(x), float(y), size, flux / (1 + 0.4 * k), wave, 0.7, gradient, angle, kind, 0.5 * unit
            )
            for k, wave in enumerate(waves)
        ]
    slopes = rng.uniform(-0.08, 0.08, 2) / unit
    background = Background(15.0, float(slopes[0]), float(slopes[1]), -0.5)
    return Scene(tuple(stars), tuple(lines), background, fwhm, 2.8, spaxel_area)


@dataclass(frozen=True)
class CubeScene:
    """A real cube as the sky, interpolated linearly in all three axes.

    It is pickled as the path of its file if it has one.

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
    scale : float
        Factor of the data.
    """

    data: NDArray[np.float32] = field(repr=False, compare=False)
    ra: float
    dec: float
    to_pixel: tuple[float, float, float, float]
    wave0: float
    wave_step: float
    outside: Literal["mirror", "zero"] = "mirror"
    source: str = ""
    scale: float = 1.0

    @classmethod
    def from_cube(
        cls,
        path: str | os.PathLike[str],
        *,
        outside: Literal["mirror", "zero"] = "mirror",
        ra: float | None = None,
        dec: float | None = None,
    ) -> CubeScene:
        """Read a cube in FITS (extension ``DATA``) or Zarr with a linear wavelength axis in air.

        Parameters
        ----------
        path : path-like
        outside : {"mirror", "zero"}
            See the attribute.
        ra, dec : float, optional
            Where the centre of the cube is put [deg]; default: where it is.

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
        source = open_source(path)
        header, wave = source.data, source.wavelength
        ctypes = tuple(str(header.get(f"CTYPE{i}", "")).strip() for i in (1, 2))
        if ctypes != ("RA---TAN", "DEC--TAN") or source.ctype != "AWAV":
            raise InputError(
                f"{path}: CTYPE {', '.join(ctypes)}, {source.ctype} found, expected RA---TAN, DEC--TAN, AWAV"
            )
        n_wave, ny, nx = source.shape
        data = np.asarray(source.read("flux", (slice(0, n_wave), slice(0, ny), slice(0, nx))), np.float32)
        np.nan_to_num(data, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        try:
            crpix, crval = ([float(header[f"{key}{i}"]) for i in (1, 2)] for key in ("CRPIX", "CRVAL"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: CRPIXi and CRVALi must be numbers: {error}") from error
        cd = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)], np.float64)
        if abs(np.linalg.det(cd)) == 0:
            raise InputError(f"{path}: the matrix CDi_j is missing or singular")
        xi, eta = np.radians(cd @ np.array([(nx + 1) / 2 - crpix[0], (ny + 1) / 2 - crpix[1]]))
        centre = _deproject(float(xi), float(eta), *crval)
        inverse = np.linalg.inv(cd * 3600)
        return cls(
            data,
            centre[0] if ra is None else float(ra),
            centre[1] if dec is None else float(dec),
            (float(inverse[0, 0]), float(inverse[0, 1]), float(inverse[1, 0]), float(inverse[1, 1])),
            float(wave[0]),
            float(wave[1] - wave[0]) if n_wave > 1 else 1.25,
            outside,
            str(path),
        )

    @property
    def spaxel_area(self) -> float:
        """Solid angle of a spaxel of the cube [arcsec2]."""
        a, b, c, d = self.to_pixel
        return 1 / abs(a * d - b * c)

    @property
    def reach(self) -> float:
        """Distance of the corners of the cube from its centre [arcsec]."""
        a, b, c, d = self.to_pixel
        inverse = np.linalg.inv([[a, b], [c, d]])
        _, ny, nx = self.data.shape
        corners = inverse @ (0.5 * np.array([[nx, nx], [ny, -ny]]))
        return float(np.hypot(*corners).max())

    def observed(self, *, spaxel_area: float) -> CubeScene:
        """The same sky seen by spaxels of another size; its seeing and line widths are what they are."""
        return replace(self, scale=spaxel_area / self.spaxel_area)

    def surface_brightness(
        self, dra_arcsec: ArrayLike, ddec_arcsec: ArrayLike, wave: ArrayLike
    ) -> NDArray[np.float32]:
        """Flux density per spaxel; see `Scene.surface_brightness`."""
        x, y, w, shape = _flat(dra_arcsec, ddec_arcsec, wave)
        out = np.empty(x.size, np.float32)
        matrix = np.array(self.to_pixel, np.float64)
        _interpolate(
            x, y, w, self.data, matrix, self.wave0, self.wave_step, self.outside == "mirror", self.scale, out
        )
        return out.reshape(shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the path, not the pixels."""
        return {
            "kind": "cube", "source": self.source, "outside": self.outside, "ra": self.ra, "dec": self.dec,
            "scale": self.scale,
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source:
            return scene_from_dict, (self.to_dict(),)
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)


def scene_from_dict(data: Mapping[str, Any]) -> SceneLike:
    """Make a scene from `SceneLike.to_dict` or the contents of a scene file.

    Raises
    ------
    InputError
        If a key is unknown or missing, or a value makes no sense.
    """
    from .scenefile import build

    return build(data)


def standard_coordinates(
    ra: ArrayLike, dec: ArrayLike, ra0: float, dec0: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gnomonic projection: offsets to the east and north [arcsec] of positions [deg] from a centre [deg]."""
    a = np.radians(np.asarray(ra, np.float64) - ra0)
    d, d0 = np.radians(np.asarray(dec, np.float64)), math.radians(dec0)
    scale = np.degrees(3600.0) / (np.sin(d) * math.sin(d0) + np.cos(d) * math.cos(d0) * np.cos(a))
    xi = np.cos(d) * np.sin(a) * scale
    eta = (np.sin(d) * math.cos(d0) - np.cos(d) * math.sin(d0) * np.cos(a)) * scale
    return xi, eta


def sky_position(dra: float, ddec: float, ra0: float, dec0: float) -> tuple[float, float]:
    """RA and DEC [deg] of offsets [arcsec]: the inverse of `standard_coordinates`."""
    return _deproject(math.radians(dra / 3600), math.radians(ddec / 3600), ra0, dec0)


def _deproject(xi: float, eta: float, ra0: float, dec0: float) -> tuple[float, float]:
    """Inverse gnomonic projection of offsets [rad] from a centre [deg]."""
    d0 = math.radians(dec0)
    side = math.cos(d0) - eta * math.sin(d0)
    dec = math.atan2(math.sin(d0) + eta * math.cos(d0), math.hypot(xi, side))
    return (ra0 + math.degrees(math.atan2(xi, side))) % 360, math.degrees(dec)


def _flat(
    dra: ArrayLike, ddec: ArrayLike, wave: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
    arrays = [np.asarray(v, np.float64) for v in (dra, ddec, wave)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    x, y, w = (
        np.ascontiguousarray(a if a.shape == shape else np.broadcast_to(a, shape)).reshape(-1) for a in arrays
    )
    return x, y, w, shape


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(  # type: ignore[no-untyped-def]
    dra, ddec, wave, curve, profile, spectra, stars, galaxies, images, lines, nebulae, nebula_lines, tiles, plane, out
):
    near_stars = np.empty(len(stars), np.int64)
    near_galaxies = np.empty(len(galaxies), np.int64)
    near_lines = np.empty(len(lines), np.int64)
    near_nebular = np.empty(len(nebula_lines), np.int64)
    wings = _WINGS / curve[:, 0].min()
    nodes = images.shape[1]
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
            if x0 - wings <= s[0] <= x1 + wings and y0 - wings <= s[1] <= y1 + wings:
                near_stars[n_stars] = k
                n_stars += 1
        n_galaxies = 0
        for k in range(len(galaxies)):
            s = galaxies[k]
            if x0 - s[4] <= s[0] <= x1 + s[4] and y0 - s[4] <= s[1] <= y1 + s[4]:
                near_galaxies[n_galaxies] = k
                n_galaxies += 1
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
        n_nebular = 0
        for k in range(len(nebula_lines)):
            s = nebula_lines[k]
            if w0 - s[5] <= s[1] <= w1 + s[5]:
                near_nebular[n_nebular] = k
                n_nebular += 1
        for i in range(first, last):
            x, y, w = dra[i], ddec[i], wave[i]
            log_w = math.log(w / REFERENCE_WAVELENGTH)
            total = plane[0] + plane[1] * x + plane[2] * y
            if plane[3] != 0.0:
                total *= math.exp(plane[3] * log_w)
            inverse = 0.0  # 1/FWHM, when a source needs it
            for j in range(n_stars):
                s = stars[near_stars[j]]
                r2 = (x - s[0]) ** 2 + (y - s[1]) ** 2
                if r2 >= wings * wings:
                    continue
                if inverse == 0.0:
                    inverse = _step_of(curve, 0, (w - _GRID0) / _CURVE_STEP)
                u = math.sqrt(r2) * inverse * (_PROFILE / _WINGS)
                k = int(u)
                if k >= _PROFILE:
                    continue
                value = s[2] * inverse * inverse * (profile[k] + (u - k) * (profile[k + 1] - profile[k]))
                value *= _colour(s[3], log_w, s[7], spectra, w)
                if s[6] != 0.0:
                    v = (w - s[4]) / s[5]
                    if abs(v) < 8.0:
                        value *= 1.0 - s[6] * math.exp(-0.5 * v * v)
                total += value
            for j in range(n_galaxies):
                g = near_galaxies[j]
                s = galaxies[g]
                dx, dy = x - s[0], y - s[1]
                r2 = dx * dx + dy * dy
                if r2 >= s[4] * s[4]:
                    continue
                major = _stretch(abs(dx * s[2] + dy * s[3]), s[5]) * s[6]
                minor = _stretch(abs(dx * s[3] - dy * s[2]), s[5]) * s[6]
                value = 0.0
                if nodes > 1:
                    t = min(max(_step_of(curve, 1, (w - _GRID0) / _CURVE_STEP), 0.0), nodes - 1.0)
                    k = min(int(t), nodes - 2)
                    value = _quadrant(images[g, k], major, minor) * (k + 1 - t)
                    value += _quadrant(images[g, k + 1], major, minor) * (t - k)
                else:
                    value = _quadrant(images[g, 0], major, minor)
                total += value * s[7] * _colour(s[8], log_w, s[9], spectra, w)
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
            here = -1  # nebula whose structure is known at this point
            bright, velocity = 0.0, 0.0
            for j in range(n_nebular):
                s = nebula_lines[near_nebular[j]]
                if abs(w - s[1]) > s[5]:
                    continue
                k = int(s[0])
                if k != here:
                    n = nebulae[k]
                    bright = n[1] * _tile(tiles[k, 0], x * n[0], y * n[0])
                    velocity = n[3] * x + n[4] * y + n[5] * _tile(tiles[k, 1], x * n[0], y * n[0])
                    velocity = min(max(velocity, -n[6]), n[6])
                    here = k
                u = (w - s[1] * (1.0 + velocity)) / s[2]
                if abs(u) < 6.0:
                    total += s[3] * math.exp(s[4] * bright - 0.5 * u * u)
            out[i] = total


@nb.njit(nogil=True, cache=True, inline="always")
def _step_of(table, column, t):  # type: ignore[no-untyped-def]
    """Linear interpolation in a column at a fractional row, constant beyond its ends."""
    t = min(max(t, 0.0), len(table) - 1.0)
    k = min(int(t), len(table) - 2)
    return table[k, column] + (t - k) * (table[k + 1, column] - table[k, column])


@nb.njit(nogil=True, cache=True, inline="always")
def _colour(slope, log_w, row, spectra, w):  # type: ignore[no-untyped-def]
    """Spectrum of a source: power law times tabulated spectrum."""
    value = math.exp(slope * log_w) if slope != 0.0 else 1.0
    if row >= 0.0:
        table = spectra[int(row)]
        t = min(max((w - _GRID0) / _GRID_STEP, 0.0), len(table) - 2.0)
        k = int(t)
        value *= table[k] + (t - k) * (table[k + 1] - table[k])
    return value


@nb.njit(nogil=True, cache=True, inline="always")
def _stretch(x, core):  # type: ignore[no-untyped-def]
    """Inverse hyperbolic sine of x >= 0."""
    t = x / core
    return math.log(t + math.sqrt(t * t + 1.0))


@nb.njit(nogil=True, cache=True, inline="always")
def _quadrant(image, u, v):  # type: ignore[no-untyped-def]
    """Bilinear interpolation; nothing beyond the table."""
    j, i = int(u), int(v)
    if j >= _CELLS - 1 or i >= _CELLS - 1:
        return 0.0
    a, b = u - j, v - i
    return (1 - a) * ((1 - b) * image[j, i] + b * image[j, i + 1]) + a * (
        (1 - b) * image[j + 1, i] + b * image[j + 1, i + 1]
    )


@nb.njit(nogil=True, cache=True, inline="always")
def _tile(tile, u, v):  # type: ignore[no-untyped-def]
    """Bilinear interpolation in a periodic field."""
    j, i = math.floor(v), math.floor(u)
    a, b = v - j, u - i
    j0, i0 = j % _TILE, i % _TILE
    j1, i1 = (j0 + 1) % _TILE, (i0 + 1) % _TILE
    return (1 - a) * ((1 - b) * tile[j0, i0] + b * tile[j0, i1]) + a * ((1 - b) * tile[j1, i0] + b * tile[j1, i1])


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(  # type: ignore[no-untyped-def]
    dra, ddec, wave, data, matrix, wave0, step, mirror, scale, out
):
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
        out[i] = ((1 - fz) * low + fz * high) * scale


@nb.njit(nogil=True, cache=True, inline="always")
def _reflect(x, n):  # type: ignore[no-untyped-def]
    if n < 2:
        return 0.0
    period = 2.0 * (n - 1)
    x = abs(x) % period
    return period - x if x > n - 1 else x
