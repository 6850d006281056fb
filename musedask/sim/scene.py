"""Scenes: what is on the sky, as a pure function of position and wavelength.

Positions are standard (gnomonic) coordinates in arcsec around the centre of the scene: ``dra`` to the
east, ``ddec`` to the north, both true angles (``dra`` has the factor cos(DEC) in it).  Values are flux
densities per spaxel in 1e-20 erg/s/cm2/Angstrom, the unit of a flux-calibrated pixel table, above the
atmosphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import SPAXEL_WFM
from .spectra import REFERENCE_WAVELENGTH, BlackBody, Spectrum, Tabulated, WhiteDwarf

#: speed of light [km/s]
_C = 299792.458
#: points that share one list of nearby sources, of the nearest of them, and of lines
_BLOCK, _SMALL_BLOCK, _LINE_BLOCK = 2048, 16, 512
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
#: the wings of galaxies are cut off by a Gaussian of so many effective radii, and end at so many of it
_SERSIC_END, _SERSIC_REACH = 4.0, 3.0
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

    The profile is multiplied by a Gaussian of standard deviation 4 effective radii, which ends it.  It is a sum
    of Gaussians, as the point-spread function is one for it: the image is within 0.5 % of the exact convolution
    wherever it is brighter than a thousandth of its peak, and the total flux within 0.1 %.

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
        rows: list[NDArray[np.float64]] = []
        spectra = [s.spectrum for s in self.stars] + [g.spectrum for g in self.galaxies]
        for spectrum in spectra:
            if spectrum is not None and spectrum not in found:
                found[spectrum] = len(rows)
                row = spectrum(wave)
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
            reach = _SERSIC_REACH * _SERSIC_END * g.radius + 4 * float(self._nodes[-1])
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
        x, y, w, shape = flat_arrays(dra_arcsec, ddec_arcsec, wave)
        out = np.zeros(x.size, np.float64)
        self.add_continuum(x, y, w, out)
        self.add_lines(x, y, w, out)
        return out.astype(np.float32).reshape(shape)

    def add_continuum(
        self,
        dra: NDArray[np.float64],
        ddec: NDArray[np.float64],
        wave: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Add background, stars and galaxies to `out`; all arrays have shape (n,)."""
        b = self.background
        plane = np.array([b.level, b.gradient_ra, b.gradient_dec, b.slope], np.float64)
        _continuum(
            dra, ddec, wave, self._curve, self._profile, self._spectra[1], self._star_table, *self._galaxy_table,
            plane, out,
        )  # fmt: skip

    def add_lines(
        self,
        dra: NDArray[np.float64],
        ddec: NDArray[np.float64],
        wave: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Add emission lines to `out`; all arrays have shape (n,)."""
        _lines(dra, ddec, wave, self._line_table, *self._nebula_table, out)

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
    sigma = np.geomspace(0.25, 0.4 * _WINGS, 16)
    flux = _gaussians(u, _moffat(u, beta), sigma, 1e-4)
    return sigma[flux > 0], flux[flux > 0]


@lru_cache(maxsize=64)
def _sersic_gaussians(index: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Widths and fluxes for the Sersic profile of effective radius 1, times the Gaussian that ends it."""
    from scipy.special import gammaincinv

    if index == 0.5:
        sigma, flux = np.array([1 / math.sqrt(2 * math.log(2))]), np.ones(1)
    else:
        b = float(gammaincinv(2 * index, 0.5))
        # from where a hundredth of the flux is inside to where the Gaussian has ended it
        r = np.geomspace(2e-3, 4 * _SERSIC_END, 600)
        sigma = np.geomspace(1e-3, 4 * _SERSIC_END, 30)
        flux = _gaussians(r, np.exp(-b * r ** (1 / index)), sigma, 1e-12)
        sigma, flux = sigma[flux > 0], flux[flux > 0]
    # the product of two Gaussians is one
    narrow = 1 / np.hypot(1 / sigma, 1 / _SERSIC_END)
    flux = flux * (narrow / sigma) ** 2
    return narrow, flux / flux.sum()


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
    return deproject(math.radians(dra / 3600), math.radians(ddec / 3600), ra0, dec0)


def deproject(xi: float, eta: float, ra0: float, dec0: float) -> tuple[float, float]:
    """Inverse gnomonic projection of offsets [rad] from a centre [deg]."""
    d0 = math.radians(dec0)
    side = math.cos(d0) - eta * math.sin(d0)
    dec = math.atan2(math.sin(d0) + eta * math.cos(d0), math.hypot(xi, side))
    return (ra0 + math.degrees(math.atan2(xi, side))) % 360, math.degrees(dec)


def flat_arrays(
    dra: ArrayLike, ddec: ArrayLike, wave: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
    """Arguments of `SceneLike.surface_brightness` as flat arrays of float64, and their broadcast shape."""
    arrays = [np.asarray(v, np.float64) for v in (dra, ddec, wave)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    x, y, w = (
        np.ascontiguousarray(a if a.shape == shape else np.broadcast_to(a, shape)).reshape(-1) for a in arrays
    )
    return x, y, w, shape


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _limits(values, first, last):  # type: ignore[no-untyped-def]
    low, high = values[first], values[first]
    for i in range(first + 1, last):
        low, high = min(low, values[i]), max(high, values[i])
    return low, high


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _near(table, chosen, n, x0, x1, y0, y1, reach, column, found):  # type: ignore[no-untyped-def]
    """Those of the first `n` chosen sources that reach a rectangle; `reach` is added to that in a column."""
    m = 0
    for j in range(n):
        k = chosen[j]
        r = reach if column < 0 else table[k, column]
        if x0 - r <= table[k, 0] <= x1 + r and y0 - r <= table[k, 1] <= y1 + r:
            found[m] = k
            m += 1
    return m


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _continuum(  # type: ignore[no-untyped-def]
    dra, ddec, wave, curve, profile, spectra, stars, galaxies, images, plane, out
):
    """Add background, stars and galaxies."""
    all_stars, all_galaxies = np.arange(len(stars)), np.arange(len(galaxies))
    block_stars, near_stars = np.empty(len(stars), np.int64), np.empty(len(stars), np.int64)
    block_galaxies, near_galaxies = np.empty(len(galaxies), np.int64), np.empty(len(galaxies), np.int64)
    wings = _WINGS / curve[:, 0].min()
    nodes = images.shape[1]
    n_spectra = spectra.shape[1]
    sources = len(stars) + len(galaxies)
    for first in range(0, dra.size, _BLOCK):
        last = min(dra.size, first + _BLOCK)
        # Which sources can reach this block at all?  This saves time only: each row tests again.
        n_block = m_block = 0
        if sources:
            x0, x1 = _limits(dra, first, last)
            y0, y1 = _limits(ddec, first, last)
            n_block = _near(stars, all_stars, len(stars), x0, x1, y0, y1, wings, -1, block_stars)
            m_block = _near(galaxies, all_galaxies, len(galaxies), x0, x1, y0, y1, 0.0, 4, block_galaxies)
        for start in range(first, last, _SMALL_BLOCK):
            stop = min(last, start + _SMALL_BLOCK)
            n_stars = n_galaxies = 0
            if n_block + m_block:
                x0, x1 = _limits(dra, start, stop)
                y0, y1 = _limits(ddec, start, stop)
                n_stars = _near(stars, block_stars, n_block, x0, x1, y0, y1, wings, -1, near_stars)
                n_galaxies = _near(galaxies, block_galaxies, m_block, x0, x1, y0, y1, 0.0, 4, near_galaxies)
            if n_stars + n_galaxies == 0 and plane[3] == 0.0:
                for i in range(start, stop):
                    out[i] += plane[0] + plane[1] * dra[i] + plane[2] * ddec[i]
                continue
            for i in range(start, stop):
                x, y, w = dra[i], ddec[i], wave[i]
                log_w = math.log(w / REFERENCE_WAVELENGTH)
                total = plane[0] + plane[1] * x + plane[2] * y
                if plane[3] != 0.0:
                    total *= math.exp(plane[3] * log_w)
                if n_stars + n_galaxies == 0:
                    out[i] += total
                    continue
                t = min(max((w - _GRID0) / _CURVE_STEP, 0.0), len(curve) - 1.0)
                k = min(int(t), len(curve) - 2)
                inverse = curve[k, 0] + (t - k) * (curve[k + 1, 0] - curve[k, 0])
                node = curve[k, 1] + (t - k) * (curve[k + 1, 1] - curve[k, 1])
                t = min(max((w - _GRID0) / _GRID_STEP, 0.0), n_spectra - 2.0)
                bin = int(t)
                part = t - bin
                scale = inverse * (_PROFILE / _WINGS)
                for j in range(n_stars):
                    n = near_stars[j]
                    u = math.sqrt((x - stars[n, 0]) ** 2 + (y - stars[n, 1]) ** 2) * scale
                    if u >= _PROFILE:
                        continue
                    k = int(u)
                    value = stars[n, 2] * inverse * inverse * (profile[k] + (u - k) * (profile[k + 1] - profile[k]))
                    if stars[n, 3] != 0.0:
                        value *= math.exp(stars[n, 3] * log_w)
                    if stars[n, 7] >= 0.0:
                        row = int(stars[n, 7])
                        value *= spectra[row, bin] + part * (spectra[row, bin + 1] - spectra[row, bin])
                    if stars[n, 6] != 0.0:
                        v = (w - stars[n, 4]) / stars[n, 5]
                        if abs(v) < 8.0:
                            value *= 1.0 - stars[n, 6] * math.exp(-0.5 * v * v)
                    total += value
                for j in range(n_galaxies):
                    g = near_galaxies[j]
                    dx, dy = x - galaxies[g, 0], y - galaxies[g, 1]
                    if dx * dx + dy * dy >= galaxies[g, 4] * galaxies[g, 4]:
                        continue
                    major = _stretch(abs(dx * galaxies[g, 2] + dy * galaxies[g, 3]), galaxies[g, 5]) * galaxies[g, 6]
                    minor = _stretch(abs(dx * galaxies[g, 3] - dy * galaxies[g, 2]), galaxies[g, 5]) * galaxies[g, 6]
                    if nodes > 1:
                        t = min(max(node, 0.0), nodes - 1.0)
                        k = min(int(t), nodes - 2)
                        value = _quadrant(images, g, k, major, minor) * (k + 1 - t)
                        value += _quadrant(images, g, k + 1, major, minor) * (t - k)
                    else:
                        value = _quadrant(images, g, 0, major, minor)
                    value *= galaxies[g, 7]
                    if galaxies[g, 8] != 0.0:
                        value *= math.exp(galaxies[g, 8] * log_w)
                    if galaxies[g, 9] >= 0.0:
                        row = int(galaxies[g, 9])
                        value *= spectra[row, bin] + part * (spectra[row, bin + 1] - spectra[row, bin])
                    total += value
                out[i] += total


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _lines(dra, ddec, wave, lines, nebulae, nebula_lines, tiles, out):  # type: ignore[no-untyped-def]
    """Add emission lines."""
    near_lines = np.empty(len(lines), np.int64)
    near_nebular = np.empty(len(nebula_lines), np.int64)
    if len(lines) + len(nebula_lines) == 0:
        return
    for first in range(0, dra.size, _LINE_BLOCK):
        last = min(dra.size, first + _LINE_BLOCK)
        w0, w1 = _limits(wave, first, last)
        x0 = x1 = y0 = y1 = np.nan
        n_lines = 0
        for k in range(len(lines)):
            s = lines[k]
            if w0 - s[11] <= s[6] <= w1 + s[11]:
                if x0 != x0:
                    x0, x1 = _limits(dra, first, last)
                    y0, y1 = _limits(ddec, first, last)
                if x0 - s[10] <= s[0] <= x1 + s[10] and y0 - s[10] <= s[1] <= y1 + s[10]:
                    near_lines[n_lines] = k
                    n_lines += 1
        n_nebular = 0
        for k in range(len(nebula_lines)):
            s = nebula_lines[k]
            if w0 - s[5] <= s[1] <= w1 + s[5]:
                near_nebular[n_nebular] = k
                n_nebular += 1
        if n_lines + n_nebular == 0:
            continue
        for i in range(first, last):
            x, y, w = dra[i], ddec[i], wave[i]
            total = 0.0
            for j in range(n_lines):
                m = near_lines[j]
                if abs(w - lines[m, 6]) > lines[m, 11]:
                    continue
                dx, dy = x - lines[m, 0], y - lines[m, 1]
                r2 = dx * dx + dy * dy
                if r2 > lines[m, 10] * lines[m, 10]:
                    continue
                u = (w - lines[m, 6] * (1.0 + lines[m, 8] * dx + lines[m, 9] * dy)) / lines[m, 7]
                if lines[m, 4] > 0.5:
                    t = (math.sqrt(r2) - lines[m, 2]) / lines[m, 3]
                    t2 = t * t
                else:
                    t2 = r2 / (lines[m, 2] * lines[m, 2])
                total += lines[m, 5] * math.exp(-0.5 * (t2 + u * u))
            here = -1  # nebula whose structure is known at this point
            bright, velocity = 0.0, 0.0
            for j in range(n_nebular):
                m = near_nebular[j]
                if abs(w - nebula_lines[m, 1]) > nebula_lines[m, 5]:
                    continue
                k = int(nebula_lines[m, 0])
                if k != here:
                    u, v = x * nebulae[k, 0], y * nebulae[k, 0]
                    bright = nebulae[k, 1] * _tile(tiles, k, 0, u, v)
                    velocity = nebulae[k, 3] * x + nebulae[k, 4] * y + nebulae[k, 5] * _tile(tiles, k, 1, u, v)
                    velocity = min(max(velocity, -nebulae[k, 6]), nebulae[k, 6])
                    here = k
                u = (w - nebula_lines[m, 1] * (1.0 + velocity)) / nebula_lines[m, 2]
                if abs(u) < 6.0:
                    total += nebula_lines[m, 3] * math.exp(nebula_lines[m, 4] * bright - 0.5 * u * u)
            out[i] += total


@nb.njit(nogil=True, cache=True, inline="always")
def _stretch(x, core):  # type: ignore[no-untyped-def]
    """Inverse hyperbolic sine of x >= 0."""
    t = x / core
    return math.log(t + math.sqrt(t * t + 1.0))


@nb.njit(nogil=True, cache=True, inline="always")
def _quadrant(images, g, k, u, v):  # type: ignore[no-untyped-def]
    """Bilinear interpolation; nothing beyond the table."""
    j, i = int(u), int(v)
    if j >= _CELLS - 1 or i >= _CELLS - 1:
        return 0.0
    a, b = u - j, v - i
    return (1 - a) * ((1 - b) * images[g, k, j, i] + b * images[g, k, j, i + 1]) + a * (
        (1 - b) * images[g, k, j + 1, i] + b * images[g, k, j + 1, i + 1]
    )


@nb.njit(nogil=True, cache=True, inline="always")
def _tile(tiles, k, m, u, v):  # type: ignore[no-untyped-def]
    """Bilinear interpolation in a periodic field."""
    j, i = math.floor(v), math.floor(u)
    a, b = v - j, u - i
    j0, i0 = j % _TILE, i % _TILE
    j1, i1 = (j0 + 1) % _TILE, (i0 + 1) % _TILE
    low = (1 - b) * tiles[k, m, j0, i0] + b * tiles[k, m, j0, i1]
    return (1 - a) * low + a * ((1 - b) * tiles[k, m, j1, i0] + b * tiles[k, m, j1, i1])
