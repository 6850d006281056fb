"""The main job on simulated data: a mosaic of a spiral galaxy, larger than its memory, against the truth.

`run_demo` simulates eight exposures in 2x2 fields, runs ``musedask combine`` on them as a process of its
own, so that its memory can be measured, and compares the cube with what was simulated.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .compute import default_workers, format_bytes, parse_bytes
from .errors import ComputeError
from .sim import Background, LineRegion, Scene, SimulatedSet, Star, simulate_pixtables

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("musedask")

#: what each process may take besides the memory limit: Python, its packages, compiled code
PROCESS_BYTES = 300_000_000
#: memory of one task at the least; more threads than that allows are not started
_TASK_BYTES = 60_000_000
_C = 299792.458
#: heliocentric velocity of the galaxy [km/s], its inclination and position angle [deg]
_SYSTEMIC, _INCLINATION, _ANGLE = 600.0, 48.0, 35.0
#: lines in air [Angstrom] and their flux relative to H-alpha
_LINES = ((6548.05, 0.12), (6562.80, 1.0), (6583.45, 0.36), (6716.44, 0.17), (6730.82, 0.13))
_HALPHA = 6562.80 * (1 + _SYSTEMIC / _C)
#: windows around H-alpha: the line, and continuum on either side without lines [Angstrom]
_LINE_WINDOW = (_HALPHA - 7.0, _HALPHA + 7.0)
_CONTINUUM = ((_HALPHA - 60.0, _HALPHA - 24.0), (_HALPHA + 36.0, _HALPHA + 90.0))
_COSMIC_RAY = 0x20

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Size:
    """How large the demonstration is.

    Attributes
    ----------
    ifus : tuple of int
        IFUs in use, neighbours in the field.
    slices : int
        Slices of each, 12 make a stack.
    slice_width : float
        [spaxels]
    wave_range : tuple of float
        [Angstrom]
    cosmic_rays, bad_pixels : float
        Share of rows.
    """

    ifus: tuple[int, ...] = tuple(range(7, 19))
    slices: int = 24
    slice_width: float = 75.0
    wave_range: tuple[float, float] = (6480.0, 6790.0)
    cosmic_rays: float = 2e-4
    bad_pixels: float = 2e-3

    @property
    def extent(self) -> float:
        """Side of the mosaic [arcsec]."""
        return 0.2 * 1.9 * max(12 * len(self.ifus), self.slices / 12 * self.slice_width)


#: quick enough for tests
SMALL = Size(ifus=(12, 13), slices=12, slice_width=24.0, wave_range=(6535.0, 6620.0), cosmic_rays=2e-3)


# ------------------------------------------------------------------------------------------ scene


def _velocity(x: Floats, y: Floats, scale: float) -> Floats:
    """Line-of-sight velocity of the disc [km/s] at offsets to the east and north [arcsec]."""
    angle, inclination = math.radians(_ANGLE), math.radians(_INCLINATION)
    major = x * math.sin(angle) + y * math.cos(angle)
    minor = (x * math.cos(angle) - y * math.sin(angle)) / math.cos(inclination)
    return 170.0 * math.sin(inclination) * major / np.sqrt(major**2 + minor**2 + (2.5 * scale) ** 2)


def galaxy_scene(extent: float, seed: int = 11) -> Scene:
    """Make a spiral galaxy with H II regions along two arms, and stars of our own Galaxy before it.

    Parameters
    ----------
    extent : float
        Side of the field that it fills [arcsec].
    seed : int
        Of the irregularities.
    """
    rng = np.random.default_rng(seed)
    scale = extent / 56.0
    angle, inclination = math.radians(_ANGLE), math.radians(_INCLINATION)

    def on_sky(radius: Floats, azimuth: Floats) -> tuple[Floats, Floats]:
        major, minor = radius * np.cos(azimuth), radius * np.sin(azimuth) * math.cos(inclination)
        east = major * math.sin(angle) + minor * math.cos(angle)
        return east, major * math.cos(angle) - minor * math.sin(angle)

    regions: list[LineRegion] = []

    def add_gas(x: float, y: float, size: float, flux: float, width: float) -> None:
        here = np.array([x, x + 0.1 * scale, x]), np.array([y, y, y + 0.1 * scale])
        v = _velocity(*here, scale)
        east, north = (v[1] - v[0]) / (0.1 * scale), (v[2] - v[0]) / (0.1 * scale)
        for wave, ratio in _LINES:
            shifted = wave * (1 + (_SYSTEMIC + float(v[0])) / _C)
            gradient, towards = float(np.hypot(east, north)), math.degrees(math.atan2(east, north))
            regions.append(LineRegion(x, y, size, flux * ratio, shifted, width, gradient, towards))

    def add_stars(x: float, y: float, size: float, level: float) -> None:
        # a line as broad as the spectrum is a continuum
        sigma = 1500.0
        regions.append(LineRegion(x, y, size, level * sigma * math.sqrt(2 * math.pi), 6700.0, sigma))

    for size, level in ((0.6, 260.0), (1.3, 130.0), (2.8, 55.0)):
        add_stars(0.0, 0.0, size * scale, level)
    for radius, size, level in ((4.0, 2.6, 16.0), (8.0, 3.6, 10.0), (13.0, 4.6, 6.5), (18.0, 5.5, 3.5)):
        for azimuth in np.arange(0, 2 * np.pi, 2 * np.pi / 8):
            x, y = (float(v) for v in on_sky(np.array(radius * scale), np.array(azimuth)))
            add_stars(x, y, size * scale, level)
            add_gas(x, y, 0.8 * size * scale, 9.0 * level, 1.2)
    pitch = math.tan(math.radians(19.0))
    for arm in (0.0, np.pi):
        for radius in np.geomspace(3.5, 26.0, 46):
            r = radius * float(rng.normal(1.0, 0.025)) * scale
            azimuth = arm + 0.4 + math.log(radius / 3.5) / pitch + float(rng.normal(0.0, 0.05))
            x, y = (float(v) for v in on_sky(np.array(r), np.array(azimuth)))
            fade = math.exp(-radius / 18.0)
            bright = float(rng.lognormal(0.0, 0.7))
            add_gas(x, y, float(rng.uniform(0.4, 1.0)) * scale, 1100.0 * fade * bright, 0.7)
            add_gas(x, y, 1.7 * scale, 260.0 * fade, 1.0)
            add_stars(x, y, float(rng.uniform(1.2, 1.8)) * scale, 24.0 * fade)
    half = 0.47 * extent
    places = ((-0.62, 0.55), (0.7, -0.48), (0.12, 0.83), (-0.78, -0.66), (0.85, 0.74), (-0.25, -0.8))
    fluxes = (60_000.0, 42_000.0, 26_000.0, 21_000.0, 15_000.0, 11_000.0)
    stars = [
        Star(half * x, half * y, flux, float(rng.uniform(-2, 1)), 6562.8, 3.5, float(rng.uniform(0.1, 0.5)))
        for (x, y), flux in zip(places, fluxes, strict=True)
    ]
    for east, north in rng.uniform(-half, half, (26, 2)):
        flux = float(10 ** rng.uniform(3.1, 3.95))
        stars.append(Star(float(east), float(north), flux, float(rng.uniform(-2, 1)), 6562.8, 3.0, 0.3))
    return Scene(tuple(stars), tuple(regions), Background(6.0, 0.03, -0.02, -0.5), fwhm=0.8)


# ------------------------------------------------------------------------------------- a process


class _Watch:
    """Resident memory of a process and its children, sampled in a thread."""

    def __init__(self, pid: int, interval: float = 0.05) -> None:
        import psutil

        self.times: list[float] = []
        self.sizes: list[int] = []
        self.processes = 1
        self._process = psutil.Process(pid)
        self._interval = interval
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = threading.Event()

    def _run(self) -> None:
        import psutil

        while not self._stop.wait(self._interval):
            size = 0
            with suppress(psutil.Error):
                members = [self._process, *self._process.children(recursive=True)]
                self.processes = max(self.processes, len(members))
                for member in members:
                    with suppress(psutil.Error):
                        size += member.memory_info().rss
            if size:
                self.times.append(time.monotonic() - self._start)
                self.sizes.append(size)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """Largest sum over all processes [bytes]."""
        return max(self.sizes, default=0)


def _run(arguments: Sequence[str]) -> tuple[_Watch, float]:
    """Run ``musedask`` as a process of its own; returns its memory and the seconds it took."""
    command = [sys.executable, "-m", "musedask", *arguments]
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    level = ["-q"] if not log.isEnabledFor(logging.INFO) else []
    command[3:3] = level
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    try:
        with _Watch(process.pid) as watch:
            status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        raise ComputeError(f"musedask {arguments[0]} ended with status {status}; its message is above")
    return watch, time.perf_counter() - start


# ------------------------------------------------------------------------------------ comparison


@dataclass
class Comparison:
    """What the cube gives and what is true.

    Attributes
    ----------
    white, white_truth : ndarray, shape (y, x)
        Mean over wavelength [1e-20 erg/s/cm2/Angstrom].
    line, line_truth : ndarray, shape (y, x)
        H-alpha less continuum [1e-20 erg/s/cm2].
    line_sigma : ndarray, shape (y, x)
        Its error, from the variances.
    velocity, velocity_truth : ndarray, shape (y, x)
        [km/s]
    edges : ndarray, shape (n + 1,)
        Edges of the histogram of pulls.
    counts : ndarray, shape (n,)
        Voxels per bin; a pull is (flux - truth) / sigma.
    n_voxels : int
        With data.
    """

    white: Floats
    white_truth: Floats
    line: Floats
    line_truth: Floats
    line_sigma: Floats
    velocity: Floats
    velocity_truth: Floats
    edges: Floats
    counts: NDArray[np.int64]
    n_voxels: int
    stars: list[tuple[float, float, float, float]] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        """Quantile of the pulls."""
        below = np.concatenate([[0], np.cumsum(self.counts)]) / max(self.counts.sum(), 1)
        return float(np.interp(q, below, self.edges))

    @property
    def width(self) -> float:
        """Half of the range of the inner 68.27 % of all pulls; 1 is expected."""
        return (self.quantile(0.84135) - self.quantile(0.15865)) / 2


def _slabs(cube: xr.Dataset, planes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, cube.sizes["wavelength"], planes):
        yield start, min(start + planes, cube.sizes["wavelength"])


def _compare(cube: xr.Dataset, sim: SimulatedSet, threads: int) -> Comparison:
    """Go through the cube in slabs of planes, with the truth at the centres of the voxels."""
    shape = cube.sizes["y"], cube.sizes["x"]
    wave = cube.wavelength.values
    step = float(wave[1] - wave[0])
    y, x = np.mgrid[: shape[0], : shape[1]]
    xi, eta = sim.offsets_of(*cube.muse.to_wcs().celestial.all_pix2world(x, y, 0))
    in_line = (wave > _LINE_WINDOW[0]) & (wave < _LINE_WINDOW[1])
    in_continuum = np.zeros(len(wave), bool)
    for low, high in _CONTINUUM:
        in_continuum |= (wave > low) & (wave < high)
    edges = np.linspace(-8, 8, 321)
    counts = np.zeros(len(edges) - 1, np.int64)
    # sums over planes: of all, the line, the continuum; flux, number, and variance of the first
    sums = np.zeros((2, 3, *shape))
    numbers = np.zeros((3, *shape))
    variances = np.zeros((3, *shape))
    moment = np.zeros((2, *shape))
    n_voxels = 0

    def truth_of(plane: int) -> NDArray[np.float32]:
        return sim.scene.surface_brightness(xi, eta, float(wave[plane]))

    with ThreadPoolExecutor(threads) as pool:
        for start, stop in _slabs(cube, 8):
            flux = cube.flux[start:stop].values
            variance = cube.variance[start:stop].values
            truth = list(pool.map(truth_of, range(start, stop)))
            for k, expected in enumerate(truth):
                good = np.isfinite(flux[k]) & (variance[k] > 0)
                n_voxels += int(good.sum())
                pull = (flux[k][good] - expected[good]) / np.sqrt(variance[k][good])
                counts += np.histogram(np.clip(pull, -7.99, 7.99), edges)[0]
                z = start + k
                for kind, wanted in enumerate((True, in_line[z], in_continuum[z])):
                    if wanted:
                        sums[0, kind][good] += flux[k][good]
                        sums[1, kind][good] += expected[good]
                        numbers[kind][good] += 1
                        variances[kind][good] += variance[k][good]
                if in_line[z]:
                    moment[0][good] += flux[k][good] * (wave[z] - _HALPHA)
                    moment[1][good] += expected[good] * (wave[z] - _HALPHA)
    centre = float(np.sum(wave[in_line] - _HALPHA))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / numbers
        line = (mean[:, 1] - mean[:, 2]) * in_line.sum() * step
        first = (moment - mean[:, 2] * centre) * step / line
        sigma = np.sqrt(variances[1]) * in_line.sum() / numbers[1] * step
    velocity = first / _HALPHA * _C + _SYSTEMIC
    return Comparison(
        mean[0, 0], mean[1, 0], line[0], line[1], sigma, velocity[0], velocity[1], edges, counts, n_voxels
    )


def _measure_stars(
    result: Comparison, scene: Scene, x: Floats, y: Floats, radius: float
) -> list[tuple[float, float, float, float]]:
    """Flux ratio, offset to the east and north [spaxels], and true flux of the stars that stand alone.

    Both the image and the truth are summed in the same circle, less the median of a ring around it.
    """
    found = []
    reach = math.ceil(2.4 * radius)
    ny, nx = result.white.shape
    for k, star in enumerate(scene.stars):
        cx, cy = round(float(x[k])), round(float(y[k]))
        if not (reach <= cx < nx - reach and reach <= cy < ny - reach):
            continue
        others = np.hypot(x - x[k], y - y[k])
        others[k] = np.inf
        if others.min() < 2.5 * radius:
            continue
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        box = np.s_[cy - reach : cy + reach + 1, cx - reach : cx + reach + 1]
        distance = np.hypot(dx + cx - x[k], dy + cy - y[k])
        inside, ring = distance <= radius, (distance > 1.6 * radius) & (distance <= 2.4 * radius)
        values = []
        for image in (result.white[box], result.white_truth[box]):
            if not np.isfinite(image[inside | ring]).all():
                break
            net = image - np.median(image[ring])
            total = float(net[inside].sum())
            values.append((total, float((net * dx)[inside].sum() / total), float((net * dy)[inside].sum() / total)))
        if len(values) == 2 and values[1][0] > 0:
            (got, gx, gy), (true, tx, ty) = values
            found.append((got / true, gx - tx, gy - ty, star.flux))
    return found


def _count_cosmics(sim: SimulatedSet, combined: Path) -> tuple[int, int, int, int]:
    """Rows that cosmic rays hit, those of them found and missed, and good rows flagged."""
    from .io.pixtable import scan_pixtable

    table = scan_pixtable(combined)
    first = total = found = false = 0
    for exposure in sim.exposures:
        dq = table.read("dq", first, first + exposure.n_rows)
        flagged = (dq & _COSMIC_RAY) != 0
        hit = np.zeros(exposure.n_rows, bool)
        offset = 0
        for path in exposure.paths:
            hit[offset + sim.cosmic_rows(path)] = True
            offset += scan_pixtable(path).n_rows
        total += int(hit.sum())
        found += int((hit & flagged).sum())
        false += int((flagged & ~hit & ((dq & ~_COSMIC_RAY) == 0)).sum())
        first += exposure.n_rows
    return total, found, total - found, false


def _pixel_positions(cube: xr.Dataset, sim: SimulatedSet, scene: Scene) -> tuple[Floats, Floats]:
    """Positions of the stars in the cube [spaxels from 0]."""
    from astropy.wcs import WCS

    plane = WCS(naxis=2)
    plane.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    plane.wcs.crval = [sim.ra, sim.dec]
    plane.wcs.crpix = [1, 1]
    plane.wcs.cdelt = [1 / 3600, 1 / 3600]
    offsets = np.array([(star.dra, star.ddec) for star in scene.stars]).reshape(-1, 2)
    sky = plane.all_pix2world(offsets, 0)
    x, y = cube.muse.to_wcs().celestial.all_world2pix(sky, 0).T
    return x, y


# --------------------------------------------------------------------------------------- picture


def _footprint(sim: SimulatedSet, number: int, size: Size) -> tuple[Floats, Floats]:
    """Outline of a field [arcsec to the east and north of the centre]."""
    exposure = sim.exposures[number]
    half_x = 0.1 * size.slices / 12 * size.slice_width
    half_y = 0.1 * 12 * len(size.ifus)
    angle = math.radians(exposure.posang)
    x = np.array([-1, 1, 1, -1, -1]) * half_x
    y = np.array([-1, -1, 1, 1, -1]) * half_y
    east = (exposure.ra - sim.ra) * 3600 * math.cos(math.radians(sim.dec))
    north = (exposure.dec - sim.dec) * 3600
    return (
        east + x * math.cos(angle) - y * math.sin(angle),
        north + x * math.sin(angle) + y * math.cos(angle),
    )


def _picture(
    path: Path, cube: xr.Dataset, sim: SimulatedSet, result: Comparison, size: Size, watch: _Watch, limit: int,
    data_bytes: int, dpi: float = 110,
) -> None:  # fmt: skip
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.0, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    nz, ny, nx = (cube.sizes[d] for d in ("wavelength", "y", "x"))
    figure.suptitle(
        f"A mosaic of {len(sim.exposures)} simulated exposures: {format_bytes(data_bytes)} of pixels and cube "
        f"({nx} × {ny} × {nz} voxels) in a memory limit of {format_bytes(limit)}",
        fontsize=15,
    )
    y, x = np.mgrid[:ny, :nx]
    xi, eta = sim.offsets_of(*cube.muse.to_wcs().celestial.all_pix2world(x, y, 0))
    extent = (float(xi[:, 0].mean()), float(xi[:, -1].mean()), float(eta[0].mean()), float(eta[-1].mean()))
    _maps(figure, axes[0], extent, sim, result, size)
    _spectrum(axes[1, 0], cube, sim, result, xi, eta)
    _pulls(axes[1, 1], result)
    _memory(axes[1, 2], watch, limit, data_bytes)
    for axis in axes[1]:
        axis.set_box_aspect(0.84)
    figure.savefig(path, dpi=dpi)


def _maps(
    figure: Any, axes: Any, extent: tuple[float, ...], sim: SimulatedSet, result: Comparison, size: Size
) -> None:
    from matplotlib.colors import AsinhNorm

    strong = result.line > 6 * result.line_sigma
    velocity = np.where(strong, result.velocity - _SYSTEMIC, np.nan)
    top = float(np.nanpercentile(result.white, 99.7))
    line_top = float(np.nanpercentile(result.line, 99.7))
    panels = (
        (
            "White light and the fields observed", result.white, "bone",
            AsinhNorm(top / 15, float(np.nanpercentile(result.white, 1)), top),
            r"$10^{-20}$ erg s$^{-1}$ cm$^{-2}$ Å$^{-1}$",
        ),
        (
            r"H$\alpha$ less continuum", result.line, "inferno", AsinhNorm(line_top / 12, 0, line_top),
            r"$10^{-20}$ erg s$^{-1}$ cm$^{-2}$",
        ),
        (
            r"Velocity of H$\alpha$ (first moment)", velocity, "RdYlBu_r", None, r"km s$^{-1}$ from systemic",
        ),
    )  # fmt: skip
    for axis, (title, image, colour_map, norm, label) in zip(axes, panels, strict=True):
        limits: dict[str, Any] = {"norm": norm} if norm is not None else {"vmin": -135, "vmax": 135}
        shown = axis.imshow(
            image, origin="lower", extent=extent, cmap=colour_map, interpolation="nearest", **limits
        )
        figure.colorbar(shown, ax=axis, label=label, pad=0.02, fraction=0.046)
        axis.set(title=title, xlabel="east [arcsec]", xlim=extent[:2], ylim=extent[2:])
    axes[0].set_ylabel("north [arcsec]")
    axes[2].set_facecolor("0.9")
    colours = ("#ffb000", "#4fc3f7", "#ff6f91", "#9ccc65")
    for number in range(len(sim.exposures)):
        axes[0].plot(*_footprint(sim, number, size), color=colours[number % 4], lw=1.1, alpha=0.9)


def _region(result: Comparison, xi: Floats, eta: Floats, radius: float) -> tuple[int, int]:
    """Spaxel of an H II region of middling brightness on the arms."""
    from scipy.ndimage import maximum_filter, uniform_filter

    line = uniform_filter(np.where(np.isfinite(result.line), result.line, 0.0), 3)
    # a large equivalent width [Angstrom] tells gas from stars
    peaks = (line == maximum_filter(line, 9)) & (np.hypot(xi, eta) > radius) & (line > 6.0 * result.white)
    peaks[:4] = peaks[-4:] = peaks[:, :4] = peaks[:, -4:] = False
    if not peaks.any():
        peaks = line == line.max()
    rows, columns = np.nonzero(peaks)
    order = np.argsort(line[rows, columns])
    chosen = order[-max(1, len(order) // 5)]
    return int(rows[chosen]), int(columns[chosen])


def _spectrum(
    axis: Any, cube: xr.Dataset, sim: SimulatedSet, result: Comparison, xi: Floats, eta: Floats
) -> None:
    """The spectrum of a region of 3 x 3 spaxels, on a scale that shows lines and continuum."""
    row, column = _region(result, xi, eta, 0.14 * abs(float(xi[0, 0] - xi[0, -1])))
    box = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
    wave = cube.wavelength.values
    flux = cube.flux[:, box[0], box[1]].values
    n_spaxels = flux[0].size
    flux = flux.mean((1, 2))
    error = np.sqrt(cube.variance[:, box[0], box[1]].values.sum((1, 2))) / n_spaxels
    fine = np.linspace(wave[0], wave[-1], 4 * len(wave))
    truth = sim.scene.surface_brightness(xi[box][None], eta[box][None], fine[:, None, None]).mean((1, 2))
    top = float(np.nanmax(flux))
    base = float(np.nanmedian(flux))
    axis.fill_between(wave, flux - error, flux + error, step="mid", color="#5b8db8", alpha=0.45, lw=0)
    axis.step(wave, flux, where="mid", color="#1f4e79", lw=1.3, label="cube, 3 × 3 spaxels, ± 1 σ")
    axis.plot(fine, truth, color="#d1495b", lw=1.1, label="truth")
    axis.set_yscale("asinh", linear_width=2 * base)
    for rest, name in zip([rest for rest, _ in _LINES], ("", r"H$\alpha$", "[N II]", "[S II]", ""), strict=True):
        at = rest * (1 + _SYSTEMIC / _C)
        near = np.abs(wave - at) < 8
        if near.any():
            axis.annotate(
                name, (at, float(np.nanmax(flux[near]))), xytext=(4, 3), textcoords="offset points", fontsize=10
            )
    ticks = [t for t in (0, 10, 20, 50, 100, 200, 500, 1000, 2000) if t < 1.3 * top]
    axis.set_yticks(ticks, [str(t) for t in ticks])
    axis.set(
        title=f"H II region {xi[row, column]:+.1f}″ east, {eta[row, column]:+.1f}″ north".replace("-", "−"),
        xlabel="wavelength [Å]",
        ylabel=r"$10^{-20}$ erg s$^{-1}$ cm$^{-2}$ Å$^{-1}$ per spaxel",
        xlim=(wave[0], wave[-1]),
        ylim=(min(0.0, float(np.nanmin(flux))), 2.2 * top),
    )
    axis.legend(frameon=False, loc="upper right")


def _pulls(axis: Any, result: Comparison) -> None:
    centres = (result.edges[1:] + result.edges[:-1]) / 2
    width = np.diff(result.edges)
    density = result.counts / result.counts.sum() / width
    axis.fill_between(centres, np.maximum(density, 1e-9), step="mid", color="#5b8db8", alpha=0.6, lw=0)
    axis.plot(centres, np.exp(-0.5 * centres**2) / math.sqrt(2 * math.pi), color="#d1495b", lw=1.3)
    axis.set_yscale("log")
    axis.set(
        title=f"(cube − truth) / σ in {result.n_voxels / 1e6:.1f} million voxels",
        xlabel="σ",
        ylabel="density",
        xlim=(-6.5, 6.5),
        ylim=(1e-7, 3),
    )
    text = f"median {result.quantile(0.5):+.3f}\nwidth {result.width:.3f}"
    axis.text(0.035, 0.96, text, transform=axis.transAxes, va="top")
    axis.text(0.965, 0.96, "unit Gaussian", transform=axis.transAxes, va="top", ha="right", color="#d1495b")


def _memory(axis: Any, watch: _Watch, limit: int, data_bytes: int) -> None:
    promise = limit + PROCESS_BYTES * watch.processes
    top = 1.15 * max(data_bytes, promise) / 1e6
    axis.fill_between(watch.times, np.array(watch.sizes) / 1e6, color="#5b8db8", alpha=0.6, lw=0)
    axis.plot(watch.times, np.array(watch.sizes) / 1e6, color="#1f4e79", lw=1.2)
    several = f" for each of {watch.processes} processes" if watch.processes > 1 else ""
    levels = (
        (data_bytes, "pixels and cube", "0.35"),
        (promise, f"promise: limit + 300 MB{several}", "#d1495b"),
        (limit, "memory limit of the tasks", "#1f4e79"),
    )
    for size, text, colour in levels:
        axis.axhline(size / 1e6, color=colour, lw=1.2, ls="--")
        # the lowest one has its text below, where the curve does not cross it
        below = size == limit
        place = 0.02 * watch.times[-1], size / 1e6 + (-0.012 if below else 0.012) * top
        axis.text(*place, f"{text}: {format_bytes(size)}", va="top" if below else "bottom", color=colour)
    axis.set(
        title="Resident memory of musedask combine",
        xlabel="time [s]",
        ylabel="MB",
        xlim=(0, watch.times[-1]),
        ylim=(0, top),
    )


# ------------------------------------------------------------------------------------------- demo


def run_demo(
    out_dir: str | os.PathLike[str],
    *,
    memory_limit: str | int = "150MB",
    cluster: str | None = None,
    size: Size | None = None,
) -> str:
    """Simulate a mosaic larger than the memory limit, combine it, and compare it with the truth.

    Parameters
    ----------
    out_dir : path-like
        Folder of everything that is made; earlier results in it are replaced.
    memory_limit : str or int
        Memory for all tasks together.
    cluster : str, optional
        ``local:N`` or the address of a Dask scheduler; by default threads.
    size : Size, optional
        Smaller or larger data.

    Returns
    -------
    str
        The figures, for the terminal.
    """
    size = size or Size()
    folder = Path(out_dir)
    limit = parse_bytes(memory_limit)
    threads = default_workers()
    start = time.perf_counter()
    scene = galaxy_scene(size.extent)
    log.info("simulating 8 exposures of a galaxy in 2 x 2 fields")
    sim = simulate_pixtables(
        folder / "exposures",
        n_exposures=8,
        scene=scene,
        mosaic="2x2",
        rotations=(0.0,) * 4 + (90.0,) * 4,
        exptimes=(900.0,) * 4 + (600.0,) * 4,
        flux_scales=(1.0, 1.0, 1.05, 1.0, 0.95, 1.0, 1.0, 1.02),
        pointing_errors=((0.0, 0.0), (1.2, -0.8), (-0.6, 0.4), (0.5, 1.1)),
        ifus=size.ifus,
        slices=size.slices,
        slice_width=size.slice_width,
        wave_range=size.wave_range,
        cosmic_rays=size.cosmic_rays,
        bad_pixels=size.bad_pixels,
        seed=11,
        overwrite=True,
    )
    simulated = time.perf_counter() - start
    tables = [str(path) for path in sim.paths]
    arguments = [
        "combine", *tables, "-o", str(folder / "mosaic.zarr"), "--fits", str(folder / "DATACUBE_FINAL.fits"),
        "--offset-list", str(sim.offset_list), "--save", "cube,combined",
        "--memory-limit", str(memory_limit), "--overwrite",
    ]  # fmt: skip
    if cluster is not None:
        arguments += ["--cluster", cluster]
    elif threads > max(1, limit // _TASK_BYTES):
        arguments += ["--n-workers", str(max(1, limit // _TASK_BYTES))]
    shown = shlex.join(["musedask", *arguments]).replace(
        " ".join(shlex.quote(t) for t in tables), f"{shlex.quote(str(folder))}/exposures/PIXTABLE_REDUCED_*.fits"
    )
    log.info("%s", shown)
    watch, seconds = _run(arguments)

    from .io.cube import open_cube

    log.info("comparing with the truth")
    cube = open_cube(folder / "mosaic.zarr")
    result = _compare(cube, sim, threads)
    result.stars = _measure_stars(result, scene, *_pixel_positions(cube, sim, scene), radius=6.0)
    combined = folder / "PIXTABLE_COMBINED.fits"
    cosmics = _count_cosmics(sim, combined)
    combined.unlink()  # as large as all inputs together
    rows = sum(path.stat().st_size for path in sim.paths)
    voxels = 8 * math.prod(cube.sizes[d] for d in ("wavelength", "y", "x"))
    picture = folder / "demo.png"
    _picture(picture, cube, sim, result, size, watch, limit, rows + voxels)
    return _report(sim, cube, result, cosmics, watch, limit, rows, voxels, (simulated, seconds), picture)


def _report(
    sim: SimulatedSet, cube: xr.Dataset, result: Comparison, cosmics: tuple[int, int, int, int], watch: _Watch,
    limit: int, rows: int, voxels: int, seconds: tuple[float, float], picture: Path,
) -> str:  # fmt: skip
    n_rows = sum(e.n_rows for e in sim.exposures)
    promise = limit + PROCESS_BYTES * watch.processes
    strong = result.line_truth > 100
    with np.errstate(invalid="ignore"):
        strong &= result.line > 10 * result.line_sigma
    both = np.isfinite(result.line) & np.isfinite(result.line_truth)
    line = float(result.line[both].sum() / result.line_truth[both].sum())
    error = float(np.sqrt((result.line_sigma[both] ** 2).sum()) / result.line_truth[both].sum())
    velocity = (result.velocity - result.velocity_truth)[strong]
    scatter = 1.4826 * float(np.median(np.abs(velocity - np.median(velocity)))) if strong.any() else math.nan
    lines = [
        "",
        "Memory",
        f"  limit for all tasks    {format_bytes(limit)}",
        f"  pixels of the tables   {format_bytes(rows)} ({n_rows / 1e6:.1f} million), "
        f"{rows / limit:.1f} times the limit",
        f"  cube                   {format_bytes(voxels)} ({cube.sizes['x']} x {cube.sizes['y']} x "
        f"{cube.sizes['wavelength']} voxels, flux and variance); with the pixels "
        f"{(rows + voxels) / limit:.1f} times the limit",
        f"  peak, resident         {format_bytes(watch.peak)} in {watch.processes} process"
        f"{'es' * (watch.processes > 1)}; promised: limit + 300 MB per process = {format_bytes(promise)}: "
        + ("kept" if watch.peak <= promise else "NOT KEPT"),
        "",
        "Time",
        f"  simulating {seconds[0]:.1f} s, musedask combine {seconds[1]:.1f} s",
        "",
        "Compared with the truth",
        f"  (cube - truth)/sigma   median {result.quantile(0.5):+.4f}, width {result.width:.4f} "
        f"in {result.n_voxels / 1e6:.1f} million voxels (0 and 1 expected)",
    ]
    if result.stars:
        ratio = np.array([s[0] for s in result.stars])
        offset = 200 * np.hypot([s[1] for s in result.stars], [s[2] for s in result.stars])
        lines.append(
            f"  {len(ratio)} isolated stars      flux / truth {np.median(ratio):.4f} (scatter {np.std(ratio):.4f}), "
            f"offsets {np.median(offset):.1f} mas (largest {offset.max():.1f})"
        )
    lines += [
        f"  H-alpha                flux / truth {line:.4f} +- {error:.4f} in the whole field",
    ]
    if strong.any():
        lines.append(
            f"  velocities             {np.median(velocity):+.2f} km/s from the truth, scatter "
            f"{scatter:.2f} km/s in {int(strong.sum())} bright spaxels"
        )
    total, found, missed, false = cosmics
    lines += [
        f"  cosmic rays            {total} pixels hit, {found} found, {missed} missed; {false} good pixels flagged "
        f"({false / n_rows:.1e} of all)",
        "",
        f"Picture: {picture}",
        f"Cube:    {picture.parent / 'mosaic.zarr'} and {picture.parent / 'DATACUBE_FINAL.fits'}",
    ]
    return "\n".join(lines)
