"""The output grid: sizes and world coordinates, with or without an OUTPUT_WCS.

Built once from limits over all rows and shared by every chunk, so that no number depends
on how the cube is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import LOG_OVERSAMPLING, SPECTRAL_SAMPLING, mode_from_name
from ..io.headers import PIXTABLE, WCS
from . import geometry
from .params import ResampleParams

if TYPE_CHECKING:
    from ..io.tables import OutputWcs


#: no axis of a sensible cube is longer
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Extremes of a pixel table as the grid uses them: float32, absolute coordinates.

    Attributes
    ----------
    x, y : tuple of float
        Low and high, RA and DEC [deg] or pixels.
    wave : tuple of float
        Low and high [Angstrom].
    """

    x: tuple[float, float]
    y: tuple[float, float]
    wave: tuple[float, float]

    @classmethod
    def from_rows(cls, limits: NDArray[np.float64], zero: tuple[float, float]) -> Limits:
        """From minima and maxima of the float32 columns, ``xlo xhi ylo yhi llo lhi``."""
        f = np.float32
        return cls(
            (float(f(limits[0] + zero[0])), float(f(limits[1] + zero[0]))),
            (float(f(limits[2] + zero[1])), float(f(limits[3] + zero[1]))),
            (float(f(limits[4])), float(f(limits[5]))),
        )

    @classmethod
    def from_header(cls, header: fits.Header) -> Limits:
        """From the ``PIXTABLE LIMITS`` cards of a file.

        Raises
        ------
        InputError
            If one is missing.
        """
        pairs = []
        for name in ("X", "Y", "LAMBDA"):
            keys = [f"{PIXTABLE} LIMITS {name} {side}" for side in ("LOW", "HIGH")]
            for key in keys:
                if key not in header:
                    raise InputError(f"the pixel table has no keyword '{key}'")
            pairs.append(tuple(float(np.float32(header[key])) for key in keys))
        return cls(*pairs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Grid:
    """World coordinates of a cube and what the kernels need of the table.

    Attributes
    ----------
    nx, ny, nz : int
    celestial : bool
        TAN projection in degrees, otherwise linear in pixels.
    crval, crpix : tuple of float
        Of the two spatial axes.
    cd : tuple of float
        ``CD1_1 CD1_2 CD2_1 CD2_2``.
    crval3, crpix3, cd33 : float
        Wavelength axis [Angstrom].
    ctype3 : str
        AWAV, AWAV-LOG, WAVE or WAVE-LOG.
    zero : tuple of float
        Zero point of the table's positions.
    scale : tuple of float
        Input pixels per degree (or 1) in x and y: the drop sizes and distances come from it.
    limits : Limits
        Of the table.
    """

    nx: int
    ny: int
    nz: int
    celestial: bool
    crval: tuple[float, float]
    crpix: tuple[float, float]
    cd: tuple[float, float, float, float]
    crval3: float
    crpix3: float
    cd33: float
    ctype3: str
    zero: tuple[float, float]
    scale: tuple[float, float]
    limits: Limits

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(nz, ny, nx)``."""
        return self.nz, self.ny, self.nx

    @property
    def is_log(self) -> bool:
        """Whether the wavelength axis is logarithmic."""
        return self.ctype3.endswith("-LOG")

    @property
    def vacuum(self) -> bool:
        """Whether wavelengths are in vacuum."""
        return self.ctype3.startswith("WAVE")

    def wcs_array(self) -> NDArray[np.float64]:
        """Spatial WCS as the kernels take it, see `geometry.project_exact`."""
        return np.array([*self.crval, *self.crpix, *self.cd])

    def wavelengths(self) -> NDArray[np.float64]:
        """Wavelength of every plane [Angstrom]."""
        plane = np.arange(self.nz, dtype=np.float64)
        if self.is_log:
            return self.crval3 * np.exp((plane + 1 - self.crpix3) * self.cd33 / self.crval3)
        return (plane + 1 - self.crpix3) * self.cd33 + self.crval3

    def steps(self) -> NDArray[np.float64]:
        """Width of every plane [Angstrom], as the drizzle method takes it."""
        if not self.is_log:
            return np.full(self.nz, abs(self.cd33))
        plane = np.arange(self.nz, dtype=np.float64)
        lower = self.crval3 * np.exp((plane - self.crpix3) * self.cd33 / self.crval3)
        return lower * (math.exp(1.5 * self.cd33 / self.crval3) - math.exp(0.5 * self.cd33 / self.crval3))

    def plane_index(self, wave: float) -> int:
        """Plane of a wavelength, not clamped (0-based)."""
        if self.is_log:
            position = geometry.lround(self.crval3 / self.cd33 * math.log(wave / self.crval3))
            return int(position + self.crpix3 - 1)
        return int(geometry.lround((wave - self.crval3) / self.cd33 + self.crpix3)) - 1

    def plane_edges(self, first: int, last: int) -> tuple[float, float]:
        """Wavelengths that planes ``first:last`` can hold, a little too wide [Angstrom].

        The first and the last plane of the cube also hold everything beyond them.
        """
        def at(position: float) -> float:
            if self.is_log:
                return self.crval3 * math.exp((position + 1 - self.crpix3) * self.cd33 / self.crval3)
            return (position + 1 - self.crpix3) * self.cd33 + self.crval3

        low = -math.inf if first <= 0 else at(first - 0.51)
        high = math.inf if last >= self.nz else at(last - 0.49)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for fingerprints and for other processes."""
        from dataclasses import asdict

        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        """Inverse of `to_dict`."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        limits = {k: tuple(v) for k, v in values.pop("limits").items()}
        return cls(**values, limits=Limits(**limits))


def table_scales(header: fits.Header) -> tuple[float, float]:
    """Pixel scales [deg] from the CD matrix of a pixel-table header, signs as the reference keeps them.

    Raises
    ------
    InputError
        If the matrix is missing or singular.
    """
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        if key not in header:
            raise InputError(f"the pixel table has no keyword {key}: it was never projected")
    cd11, cd12, cd21, cd22 = (float(header[f"CD{i}_{j}"]) for i in (1, 2) for j in (1, 2))
    det = cd11 * cd22 - cd12 * cd21
    if det == 0:
        raise InputError(f"the CD matrix of the pixel table is singular: {cd11}, {cd12}, {cd21}, {cd22}")
    if det < 0:
        cd11, cd12 = -cd11, -cd12
    if cd12 == 0 and cd21 == 0:
        return cd11, cd22
    return math.hypot(cd11, cd12), math.hypot(cd22, cd21)


def make_grid(
    header: fits.Header, limits: Limits, params: ResampleParams, output: OutputWcs | None, *, celestial: bool
) -> Grid:
    """Lay out the cube of a pixel table.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Header of the (combined) pixel table, i.e. of its first exposure, with CRVAL set.
    limits : Limits
        After positioning, and conversion to vacuum if the output asks for it.
    params : ResampleParams
    output : OutputWcs or None
        Overrides of an OUTPUT_WCS.
    celestial : bool
        Whether the table is positioned in degrees; otherwise it is in pixels.

    Returns
    -------
    Grid

    Raises
    ------
    InputError
        If the header lacks the WCS, or the limits are not finite.
    """
    values = (*limits.x, *limits.y, *limits.wave)
    if not all(math.isfinite(v) for v in values):
        raise InputError(f"positions or wavelengths of the pixel table are not finite: {values}")
    ctype3 = output.ctype3 if output is not None else "AWAV"
    is_log = ctype3.endswith("-LOG")
    dlambda = params.dlambda or SPECTRAL_SAMPLING / (LOG_OVERSAMPLING if is_log else 1)
    low, high = (np.float32(v) for v in limits.wave)
    if is_log:
        nz = math.ceil(float(low) / dlambda * math.log(float(high / low))) + 1
    else:
        nz = math.ceil(float(high - low) / dlambda) + 1

    if celestial:
        zero = (float(header["CRVAL1"]), float(header["CRVAL2"]))
        mode = mode_from_name(str(header.get("ESO INS MODE", "")))
        dx = (params.dx or mode.spaxel[0]) / 3600.0
        dy = (params.dy or mode.spaxel[1]) / 3600.0
        plane = np.array([*zero, 0, 0, 1, 0, 0, 1.0])
        x1, y1 = geometry.project_exact(limits.x[0], limits.y[0], plane)
        x2, y2 = geometry.project_exact(limits.x[1], limits.y[1], plane)
        cd = (-dx, 0.0, 0.0, dy)
        scale = tuple(1.0 / s for s in table_scales(header))
    else:
        zero = (0.0, 0.0)
        dx, dy = params.dx or 1.0, params.dy or 1.0
        (x1, x2), (y1, y2) = limits.x, limits.y
        cd = (dx, 0.0, 0.0, dy)
        scale = (1.0, 1.0)
    nx = int(geometry.lround(abs(x2 - x1) / dx)) + 1
    ny = int(geometry.lround(abs(y2 - y1) / dy)) + 1

    grid = Grid(
        nx=nx,
        ny=ny,
        nz=nz,
        celestial=celestial,
        crval=zero if celestial else (limits.x[0], limits.y[0]),
        crpix=(1.0, 1.0),
        cd=cd,
        crval3=float(low),
        crpix3=1.0,
        cd33=dlambda,
        ctype3=ctype3,
        zero=zero,
        scale=scale,  # type: ignore[arg-type]
        limits=limits,
    )
    if celestial:
        crpix = (
            float(header.get("CRPIX1", 0.0)) + (1.0 + nx) / 2.0,
            float(header.get("CRPIX2", 0.0)) + (1.0 + ny) / 2.0,
        )
        grid = replace(grid, crpix=crpix)
        if output is None:
            # the corner with the smaller pixel coordinate falls on pixel 1
            wcs = grid.wcs_array()
            px1, py1 = geometry.project_exact(limits.x[0], limits.y[0], wcs)
            px2, py2 = geometry.project_exact(limits.x[1], limits.y[1], wcs)
            grid = replace(
                grid, crpix=(crpix[0] - (min(px1, px2) - 1.0), crpix[1] - (min(py1, py2) - 1.0))
            )
    if output is not None:
        grid = _override(grid, output)
    if min(grid.shape) < 1:
        raise InputError(f"the output cube would be empty: {grid.nx} x {grid.ny} x {grid.nz} voxels")
    if max(grid.shape) > _LONGEST:
        raise InputError(
            f"the output cube would have {grid.nx} x {grid.ny} x {grid.nz} voxels; are dx, dy and dlambda, or "
            "OUTPUT_WCS, as they should be?"
        )
    return grid


def _override(grid: Grid, output: OutputWcs) -> Grid:
    changes: dict[str, Any] = {"crval": output.crval, "crpix": output.crpix}
    if output.cd is not None:
        changes["cd"] = output.cd
    for name in ("nx", "ny", "nz"):
        if size := getattr(output, name):
            changes[name] = size
    for ours, theirs in (("crval3", "crval3"), ("crpix3", "crpix3"), ("cd33", "cd3_3")):
        if (value := getattr(output, theirs)) is not None:
            changes[ours] = value
    return replace(grid, **changes)


def check_overlap(grid: Grid) -> None:
    """Make sure that some of the data can fall on the grid.

    Raises
    ------
    InputError
        If the wavelength range or the field of an OUTPUT_WCS misses the data.
    """
    first, last = (grid.plane_index(w) for w in grid.limits.wave)
    if last < 0 or first >= grid.nz:
        wave = grid.wavelengths()
        raise InputError(
            f"OUTPUT_WCS covers {wave[0]:.2f}..{wave[-1]:.2f} Angstrom, the data "
            f"{grid.limits.wave[0]:.2f}..{grid.limits.wave[1]:.2f}: no overlap"
        )
    wcs = grid.wcs_array()
    to_pixel = geometry.project_exact if grid.celestial else geometry.pixel_linear
    # the data's outline, finely enough that no part of the grid can lie between two points
    n = 65
    xs = np.linspace(*grid.limits.x, n)
    ys = np.linspace(*grid.limits.y, n)
    if grid.celestial:
        # the projection also takes points on the far side of the sky
        dec0, decs = math.radians(grid.crval[1]), np.radians(ys)
        cosine = np.cos(np.radians(xs - grid.crval[0]))[:, None] * np.cos(decs) * math.cos(dec0)
        near = ((cosine + np.sin(decs) * math.sin(dec0)) > 0).ravel()
    else:
        near = np.ones(n * n, bool)
    points = np.array([to_pixel(x, y, wcs) for x in xs for y in ys])
    margin = 2 + max(np.ptp(points[:, 0]), np.ptp(points[:, 1])) / (n - 1)
    inside = (
        (points[:, 0] > 0.5 - margin)
        & (points[:, 0] < grid.nx + 0.5 + margin)
        & (points[:, 1] > 0.5 - margin)
        & (points[:, 1] < grid.ny + 0.5 + margin)
    )
    if not (inside & near).any():
        raise InputError(
            f"OUTPUT_WCS: the {grid.nx} x {grid.ny} spaxels around {grid.crval} do not overlap the data at "
            f"x {grid.limits.x[0]:.5f}..{grid.limits.x[1]:.5f}, y {grid.limits.y[0]:.5f}..{grid.limits.y[1]:.5f}"
        )


def wcs_cards(grid: Grid) -> list[list[Any]]:
    """Cards of the cube's WCS, in the order of the reference."""
    if grid.celestial:
        spatial: list[list[Any]] = [
            ["CTYPE1", "RA---TAN", "Gnomonic projection"],
            ["CTYPE2", "DEC--TAN", "Gnomonic projection"],
        ]
        unit = "deg"
    else:
        spatial = [["CTYPE1", "PIXEL", ""], ["CTYPE2", "PIXEL", ""]]
        unit = "pixel"
    return [
        ["WCSAXES", 3, ""],
        ["CRPIX1", grid.crpix[0], "Pixel coordinate of reference point"],
        ["CRPIX2", grid.crpix[1], "Pixel coordinate of reference point"],
        ["CD1_1", grid.cd[0], ""],
        ["CD1_2", grid.cd[1], ""],
        ["CD2_1", grid.cd[2], ""],
        ["CD2_2", grid.cd[3], ""],
        ["CUNIT1", unit, ""],
        ["CUNIT2", unit, ""],
        *spatial,
        ["CRVAL1", grid.crval[0], ""],
        ["CRVAL2", grid.crval[1], ""],
        ["CTYPE3", grid.ctype3, ""],
        ["CUNIT3", "Angstrom", ""],
        ["CD3_3", grid.cd33, ""],
        ["CRPIX3", grid.crpix3, ""],
        ["CRVAL3", grid.crval3, ""],
        ["CD1_3", 0.0, ""],
        ["CD2_3", 0.0, ""],
        ["CD3_1", 0.0, ""],
        ["CD3_2", 0.0, ""],
    ]


def is_wcs_keyword(keyword: str) -> bool:
    """Whether a card describes world coordinates."""
    return bool(WCS.match(keyword))
