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
            regions.append(
                LineRegion(
                    x, y, size, flux * ratio, wave * (1 + (_SYSTEMIC + float(v[0])) / _C), width,
                    float(np.hypot(east, north)), math.degrees(math.atan2(east, north)),
                )  # fmt: skip
            )

    def add_stars(x: float, y: float, size: float, level: float) -> None:
        # a line as broad as the spectrum is a continuum
        sigma = 1500.0
        regions.append(LineRegion(x, y, size, level * sigma * math.sqrt(2 * math.pi), 6700.0, sigma))

    for size, level in ((0.6, 260.0), (1.3, 130.0), (2.8, 55.0)):
        add_stars(0.0, 0.0, size * scale, level)
    for radius, size, level in ((4.0, 2.6, 16.0), (8.0, 3.6, 10.0), (13.0, 4.6, 6.5), (18.0, 5.5, 3.5)):
        for azimuth in np.arange(0, 2 * np.pi, 2 * np.pi / 8):
            x, y = on_sky(np.array(radius * scale), np.array(azimuth))
            add_stars(float(x), float(y), size * scale, level)
            add_gas(float(x), float(y), 0.8 * size * scale, 6.0 * level, 1.6)
    pitch = math.tan(math.radians(19.0))
    for arm in (0.0, np.pi):
        for radius in np.geomspace(3.5, 25.0, 34):
            r = radius * float(rng.normal(1.0, 0.025)) * scale
            azimuth = arm + 0.4 + math.log(radius / 3.5) / pitch + float(rng.normal(0.0, 0.05))
            x, y = (float(v) for v in on_sky(np.array(r), np.array(azimuth)))
            fade = math.exp(-radius / 16.0)
            bright = float(rng.lognormal(0.0, 0.75))
            add_gas(x, y, float(rng.uniform(0.4, 1.0)) * scale, 950.0 * fade * bright, 1.3)
            add_stars(x, y, float(rng.uniform(1.2, 1.8)) * scale, 26.0 * fade)
    half = 0.47 * extent
    places = ((-0.62, 0.55), (0.7, -0.48), (0.12, 0.83), (-0.78, -0.66), (0.85, 0.74), (-0.25, -0.8))
    fluxes = (60_000.0, 42_000.0, 26_000.0, 21_000.0, 15_000.0, 11_000.0)
    stars = [
        Star(half * x, half * y, flux, float(rng.uniform(-2, 1)), 6562.8, 3.5, float(rng.uniform(0.1, 0.5)))
        for (x, y), flux in zip(places, fluxes, strict=True)
    ]
    for _ in range(26):
        x, y = rng.uniform(-half, half, 2)
        flux = float(10 ** rng.uniform(3.1, 3.95))
        stars.append(Star(float(x), float(y), flux, float(rng.uniform(-2, 1)), 6562.8, 3.0, 0.3))
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
    wcs = cube.muse.to_wcs()
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
        return sim.truth_cube(wcs, wave[plane : plane + 1], shape)[0]

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
    """Cosmic rays that were simulated and well above the noise, found, missed; good pixels flagged."""
    from .io.pixtable import open_pixtable, scan_pixtable

    del open_pixtable
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
