"""A simulated night through the whole reference pipeline, from bias to cube, compared with its truth.

    python benchmarks/chain.py [--ifus 1-2] [--work FOLDER] [--geometry] [--keep]
                               [--engine esorex|native|mixed] [--merge]

Simulates a night (as ``musedask simulate night`` does), runs every recipe of the chain with the real
esorex, prints each call with its time and peak memory, then compares what the recipes found with what
was put in: traces, wavelengths, line-spread function, response, positions, fluxes, offsets, variances.
Recipes that work on one IFU run for several IFUs at a time, on one core each.  With ``--engine native`` those that
musedask has itself are run by it, with ``mixed`` every other one; with ``--merge`` their products are merged
before esorex takes them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.optimize import least_squares

from musedask.io.calibrations import read_trace_table, read_wavecal_table
from musedask.io.merge import merge_products
from musedask.io.references import read_std_response
from musedask.io.tables import read_offset_list

if TYPE_CHECKING:
    from musedask.sim import ExposurePlan, Instrument, NightTruth

#: recipes that are called for one IFU at a time
PER_IFU = ("muse_bias", "muse_dark", "muse_flat", "muse_wavecal", "muse_lsf", "muse_scibasic")
#: those that run natively, by the option ``--engine``
NATIVE = {
    "esorex": frozenset[str](),
    "native": frozenset({"muse_bias", "muse_dark", "muse_flat", "muse_wavecal"}),
    "mixed": frozenset({"muse_dark", "muse_flat"}),
}
#: path and tag
Frame = tuple[Path, str]


class RecipeError(RuntimeError):
    """A recipe failed."""


@dataclass
class Call:
    """One finished call of a recipe."""

    recipe: str
    ifu: int | None
    command: str
    seconds: float
    peak_bytes: int
    folder: str


def ifu_of(path: Path) -> int | None:
    """IFU of a product; None for those that belong to no single one."""
    name = str(fits.getheader(path).get("EXTNAME", ""))
    return int(name[4:6]) if name.startswith("CHAN") else None


@dataclass
class Chain:
    """Runs recipes in folders of their own and remembers their products by tag.

    Parameters
    ----------
    folder : pathlib.Path
        Where the recipes run.
    frames : list of (path, tag)
        Raw frames and static calibrations to begin with.
    ifus : sequence of int
    workers : int
        Cores: calls of recipes for one IFU take one each, others up to four.
    native : collection of str
        Recipes that run natively.
    merge : bool
        Whether the products of native recipes are merged into one file.
    """

    folder: Path
    frames: list[Frame]
    ifus: Sequence[int]
    workers: int = 2
    native: frozenset[str] = frozenset()
    merge: bool = False
    calls: list[Call] = field(default_factory=list)
    products: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = self.workers
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def _cores(self, n: int) -> Iterator[None]:
        """Wait until so many cores are free, and take them."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= n)
            self._free -= n
        try:
            yield
        finally:
            with self._changed:
                self._free += n
                self._changed.notify_all()

    def tagged(self, *tags: str, ifu: int | None = None) -> list[Frame]:
        """Products of some tags, else what there was from the start; of single IFUs only those of one, if given."""
        found = []
        for tag in tags:
            if tag in self.products:
                found += [(p, tag) for p in self.products[tag] if ifu is None or ifu_of(p) in (None, ifu)]
            else:
                found += [frame for frame in self.frames if frame[1] == tag]
        return found

    def product(self, tag: str, ifu: int | None = None) -> Path:
        """The only product of a tag (and an IFU)."""
        found = [p for p in self.products.get(tag, []) if ifu is None or ifu_of(p) in (None, ifu)]
        if len(found) != 1:
            raise RecipeError(f"{len(found)} products {tag} found, expected one")
        return found[0]

    def run(
        self,
        recipe: str,
        tags: str,
        *,
        more: Iterable[Frame] = (),
        name: str = "",
        keep: bool = True,
        **parameters: Any,
    ) -> list[Frame]:
        """Run a recipe, once per IFU if it is of that kind.

        Parameters
        ----------
        recipe : str
        tags : str
            Tags of its inputs, separated by blanks.
        more : list of (path, tag)
            Further inputs.
        name : str
            Of its folder, if it runs more than once.
        keep : bool
            Whether later recipes use its products.
        **parameters
            Of the recipe.

        Returns
        -------
        list of (path, tag)
            Its products.
        """
        jobs: Sequence[int | None] = self.ifus if recipe in PER_IFU else [None]
        threads = 1 if recipe in PER_IFU else min(4, self.workers)

        def one(ifu: int | None) -> list[Frame]:
            inputs = [*more, *self.tagged(*tags.split(), ifu=ifu)]
            with self._cores(threads):
                return self._call(recipe, name or recipe, ifu, inputs, threads, parameters)

        with ThreadPoolExecutor(len(jobs)) as pool:
            made = [frame for frames in pool.map(one, jobs) for frame in frames]
        if self.merge and recipe in self.native and len(jobs) > 1:
            made = self._merged(recipe, made)
        if keep:
            for path, tag in made:
                self.products.setdefault(tag, []).append(path)
        return made

    def _merged(self, recipe: str, made: Sequence[Frame]) -> list[Frame]:
        """Products of single IFUs in one file for each tag."""
        folder = self.folder / f"{recipe}-merged"
        folder.mkdir(parents=True, exist_ok=True)
        merged = []
        for tag in dict.fromkeys(tag for _, tag in made):
            paths = [path for path, given in made if given == tag]
            merge_products(paths, folder / f"{tag}.fits", overwrite=True)
            merged.append((folder / f"{tag}.fits", tag))
        return merged

    def _call(
        self,
        recipe: str,
        name: str,
        ifu: int | None,
        inputs: Sequence[Frame],
        threads: int,
        parameters: dict[str, Any],
    ) -> list[Frame]:
        folder = self.folder / (name if ifu is None else f"{name}-{ifu:02d}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "in.sof").write_text("".join(f"{path.resolve()} {tag}\n" for path, tag in inputs))
        options = [*([f"--nifu={ifu}"] if ifu is not None else []), *(f"--{k}={v}" for k, v in parameters.items())]
        command = ["esorex", "--suppress-prefix=TRUE", "--no-datamd5", recipe, *options, "in.sof"]
        if recipe in self.native:
            run = [sys.executable, "-m", "musedask", "recipe", "run", recipe, "in.sof"]
            command = [*run, "--engine", "native", *options]
        start = time.perf_counter()
        with open(folder / "stdout", "wb") as out:
            process = subprocess.Popen(
                command, cwd=folder, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip
            # the usage of this very process, which subprocess does not tell
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        shown = shlex.join(command)
        self.calls.append(Call(recipe, ifu, shown, seconds, usage.ru_maxrss * 1024, str(folder)))
        print(f"{seconds:7.1f} s {usage.ru_maxrss * 1024 / 1e9:5.2f} GB  {shown}", flush=True)
        text = (folder / "stdout").read_text(errors="replace")
        errors = "\n".join([line for line in text.splitlines() if "ERROR" in line][-15:])
        if process.returncode:
            raise RecipeError(f"{shown} in {folder}: exit status {process.returncode}\n{errors}")
        made = [(path, str(fits.getheader(path)["ESO PRO CATG"])) for path in sorted(folder.glob("*.fits"))]
        if not made:
            raise RecipeError(f"{shown} in {folder}: exit status 0 without any product\n{errors}")
        return made


_TABLES = "MASTER_BIAS TRACE_TABLE WAVECAL_TABLE"
_MASTERS = f"{_TABLES} MASTER_FLAT"


def calibrate_detectors(chain: Chain) -> None:
    """Daytime calibrations that need single IFUs only: bias to wavelengths."""
    chain.run("muse_bias", "BIAS BADPIX_TABLE")
    if any(tag == "DARK" for _, tag in chain.frames):
        chain.run("muse_dark", "DARK MASTER_BIAS BADPIX_TABLE")
    chain.run("muse_flat", "FLAT MASTER_BIAS BADPIX_TABLE", samples="true")
    chain.run("muse_wavecal", "ARC MASTER_BIAS TRACE_TABLE LINE_CATALOG BADPIX_TABLE", residuals="true")


def calibrate_field(chain: Chain, *, lsf: bool = True, geometry: bool = False) -> None:
    """What is left of the calibrations by day: line spread functions, geometry, twilight."""
    with ThreadPoolExecutor() as pool:
        together = []
        if lsf:
            together.append(pool.submit(chain.run, "muse_lsf", f"ARC LINE_CATALOG BADPIX_TABLE {_TABLES}"))
        if geometry:
            together.append(
                pool.submit(
                    chain.run, "muse_geometry", f"MASK LINE_CATALOG {_TABLES}", keep=False,
                    ifu1=min(chain.ifus), ifu2=max(chain.ifus),
                )
            )  # fmt: skip
        if any(tag == "SKYFLAT" for _, tag in chain.frames):
            lamps = chain.tagged("ILLUM")[:1]
            inputs = f"SKYFLAT {_MASTERS} GEOMETRY_TABLE BADPIX_TABLE VIGNETTING_MASK"
            together.append(pool.submit(chain.run, "muse_twilight", inputs, more=lamps))
        for future in together:
            future.result()


def reduce_basic(chain: Chain, tag: str) -> list[list[Frame]]:
    """Pixel tables of the exposures of one type, each with the ILLUM closest in time; by exposure."""
    exposures = chain.tagged(tag)

    def one(number: int) -> list[Frame]:
        frame = exposures[number]
        time = float(fits.getheader(frame[0])["MJD-OBS"])
        lamps = sorted(chain.tagged("ILLUM"), key=lambda f: abs(float(fits.getheader(f[0])["MJD-OBS"]) - time))
        return chain.run(
            "muse_scibasic", f"{_MASTERS} GEOMETRY_TABLE TWILIGHT_CUBE BADPIX_TABLE",
            more=[frame, *lamps[:1]], name=f"muse_scibasic_{tag}{number + 1}", saveimage="false",
        )  # fmt: skip

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(len(exposures))))


_FLUX = "EXTINCT_TABLE STD_RESPONSE STD_TELLURIC"


def calibrate_flux(chain: Chain, **parameters: Any) -> None:
    """Response from the standard star."""
    reduce_basic(chain, "STD")
    chain.run("muse_standard", "PIXTABLE_STD EXTINCT_TABLE STD_FLUX_TABLE TELLURIC_REGIONS FILTER_LIST", **parameters)


def calibrate_sky(chain: Chain) -> None:
    """Sky from a blank field, astrometric solution from a field of stars."""
    reduce_basic(chain, "SKY")
    chain.run("muse_create_sky", f"PIXTABLE_SKY {_FLUX} SKY_LINES LSF_PROFILE")
    reduce_basic(chain, "ASTROMETRY")
    # simulated fields turn around their centre
    chain.run("muse_astrometry", f"PIXTABLE_ASTROMETRY ASTROMETRY_REFERENCE {_FLUX}", rotcenter="0.,0.")


_SKY_INPUTS = {"model": " SKY_LINES SKY_CONTINUUM LSF_PROFILE", "simple": "", "none": ""}


def reduce_objects(chain: Chain, methods: Sequence[str] = ("model", "simple", "none"), **parameters: Any) -> Path:
    """Science exposures: cubes of each, offsets, and the combined cube; returns that.

    The first sky method is used for all exposures, the others for the first exposure only.
    """
    exposures = reduce_basic(chain, "OBJECT")
    jobs = [(n, method) for n in range(len(exposures)) for method in (methods if n == 0 else methods[:1])]

    def one(job: tuple[int, str]) -> list[Frame]:
        number, method = job
        return chain.run(
            "muse_scipost", f"{_FLUX} ASTROMETRY_WCS FILTER_LIST{_SKY_INPUTS[method]}",
            more=[f for f in exposures[number] if f[1] == "PIXTABLE_OBJECT"],
            name=f"muse_scipost_{method}{number + 1}", keep=False,
            save="cube,individual", skymethod=method, rvcorr="none", **parameters,
        )  # fmt: skip

    with ThreadPoolExecutor() as pool:
        products = list(pool.map(one, jobs))
    made = [f for (_, method), frames in zip(jobs, products, strict=True) if method == methods[0] for f in frames]
    tables, images = ([f for f in made if f[1] == tag] for tag in ("PIXTABLE_REDUCED", "IMAGE_FOV"))
    # a strip of few IFUs has few stars
    chain.run("muse_exp_align", "", more=images, srcmin=2, threshold=5)
    combined = chain.run("muse_exp_combine", "OFFSET_LIST FILTER_LIST", more=tables, keep=False)
    return next(path for path, tag in combined if tag == "DATACUBE_FINAL")


# ------------------------------------------------------------------------------ what was found, what was put in


@dataclass(frozen=True)
class Figure:
    """One measured number, and the limit that it must keep."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def good(self) -> bool:
        """Whether it keeps the limit."""
        return self.limit is None or abs(self.value) <= self.limit

    def __str__(self) -> str:
        text = f"{self.name}: {self.value:.4g} {self.unit}"
        return text if self.limit is None else f"{text} (limit {self.limit:g}){'' if self.good else '  MISSED'}"


#: where there is light in all modes [Angstrom]
_LIT = (4750.0, 9350.0)


def check_traces(chain: Chain, instrument: Instrument) -> list[Figure]:
    """Edges of all slices against the truth, where there is light."""
    y = np.arange(1, 4113, 16.0)
    found = []
    for ifu in chain.ifus:
        truth, table = instrument.ifu(ifu), read_trace_table(chain.product("TRACE_TABLE", ifu), ifu=ifu)
        errors = []
        for s in range(1, 49):
            edges = truth.edges(s, y)
            waves = truth.wavelength(s, np.mean(edges, axis=0), y)
            inside = (waves > _LIT[0]) & (waves < _LIT[1])
            errors.append(np.subtract(table.edges(s, y), edges)[:, inside].ravel())
        total = np.concatenate(errors)
        found.append(Figure(f"IFU {ifu}: edges of slices, largest error", float(np.abs(total).max()), "pix", 0.1))
        found.append(Figure(f"IFU {ifu}: edges of slices, rms", float(np.sqrt(np.mean(total**2))), "pix", 0.1))
    return found


def check_wavelengths(chain: Chain, instrument: Instrument) -> list[Figure]:
    """Wavelength solution against the truth, over all slices."""
    y = np.arange(1, 4113, 32.0)
    found = []
    for ifu in chain.ifus:
        truth, table = instrument.ifu(ifu), read_wavecal_table(chain.product("WAVECAL_TABLE", ifu), ifu=ifu)
        residuals = []
        for s in range(1, 49):
            left, right = truth.edges(s, y)
            x = np.linspace(left + 1, right - 1, 7)
            rows = np.broadcast_to(y, x.shape)
            true = truth.wavelength(s, x, rows)
            residuals.append((table.wavelength(s, x, rows) - true)[(true > _LIT[0]) & (true < _LIT[1])])
        rms = [float(np.sqrt(np.mean(r**2))) for r in residuals]
        total = float(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))
        found.append(Figure(f"IFU {ifu}: wavelengths, rms", total, "Angstrom", 0.05))
        found.append(Figure(f"IFU {ifu}: wavelengths, rms of the worst slice", max(rms), "Angstrom", 0.05))
    return found


def check_offsets(offset_list: Path, plans: Sequence[ExposurePlan]) -> list[Figure]:
    """Offsets of muse_exp_align against the pointing errors, relative to the first exposure."""
    offsets = read_offset_list(offset_list)
    assert offsets is not None
    rows = [offsets.find(plan.date_obs) for plan in plans]
    if None in rows:
        raise RecipeError(f"{offset_list}: {sum(r is None for r in rows)} exposures are not in it")
    measured = [(row.ra, row.dec) for row in rows if row is not None]
    found = []
    first = plans[0]
    for k, plan in enumerate(plans[1:], 2):
        cosine = math.cos(math.radians(plan.dec))
        for axis, name, factor in ((0, "RA", cosine), (1, "DEC", 1.0)):
            true = (plan.pointing_error[axis] - first.pointing_error[axis]) * factor
            value = (measured[k - 1][axis] - measured[0][axis]) * 3600 * factor
            found.append(Figure(f"exposure {k}: offset in {name}, error", value - true, "arcsec", 0.1))
    return found


def fit_star(image: NDArray[np.floating], x: float, y: float, half: int = 7) -> tuple[float, float, float]:
    """Position (0-based) and flux of a star: a round Moffat profile on a constant background."""
    x0, y0 = round(x), round(y)
    ys, xs = np.mgrid[max(y0 - half, 0) : y0 + half + 1, max(x0 - half, 0) : x0 + half + 1]
    inside = (ys < image.shape[0]) & (xs < image.shape[1])
    ys, xs = ys[inside], xs[inside]
    values = image[ys, xs]
    good = np.isfinite(values)
    xs, ys, values = xs[good], ys[good], values[good].astype(float)
    if len(values) < 40:
        return math.nan, math.nan, math.nan
    background = float(np.percentile(values, 20))
    scale = max(float(values.max()) - background, 1e-30)

    def model(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return p[2] * (1 + ((xs - p[0]) ** 2 + (ys - p[1]) ** 2) / p[3] ** 2) ** -p[4] + p[5]

    fit = least_squares(
        lambda p: (model(p) - values) / scale, [x, y, scale, 3.0, 2.8, background],
        bounds=([x - 3, y - 3, 0, 0.8, 1.2, -np.inf], [x + 3, y + 3, np.inf, 15, 12, np.inf]),
        x_scale=[1, 1, scale, 1, 1, scale],
    )  # fmt: skip
    p = fit.x
    return float(p[0]), float(p[1]), float(math.pi * p[2] * p[3] ** 2 / (p[4] - 1))


def check_sources(
    cube: Path, truth: NightTruth, *, waves: Sequence[float] = (5200.0, 7000.0, 8800.0), brightest: int = 6
) -> list[Figure]:
    """Positions and fluxes of stars in a cube against those of the same cube without noise.

    The cube is where the first exposure says that it points.
    """
    from musedask.sim.fields import source_table

    scene, ra, dec = truth.scene()
    stars = source_table(replace(scene, ra=ra, dec=dec))
    shifts: list[float] = []
    ratios: dict[float, list[float]] = {}
    with fits.open(cube) as hdus:
        data, header = hdus["DATA"].data, hdus["DATA"].header
        axis = header["CRVAL3"] + header["CD3_3"] * np.arange(data.shape[0])
        error = np.array(truth.select("OBJECT")[0].plan.pointing_error) / 3600
        px, py = WCS(header).celestial.all_world2pix(stars.ra + error[0], stars.dec + error[1], 0)
        inside = (px > 6) & (py > 6) & (px < data.shape[2] - 7) & (py < data.shape[1] - 7)
        chosen = [k for k in np.argsort(stars.mag) if inside[k]][:brightest]
        for wave in waves:
            planes = np.flatnonzero(np.abs(axis - wave) < 40)
            if len(planes) < 10:
                continue
            with warnings.catch_warnings():
                # spaxels outside the field
                warnings.simplefilter("ignore", RuntimeWarning)
                image = np.nanmean(data[planes], axis=0)
            true_image = truth.truth_cube(header, axis[planes][::8]).mean(axis=0)
            for k in chosen:
                mine, true = (fit_star(im, px[k], py[k]) for im in (image, true_image))
                shifts.append(math.hypot(mine[0] - px[k], mine[1] - py[k]))
                ratios.setdefault(wave, []).append(mine[2] / true[2])
    found = [
        Figure(f"positions of {len(chosen)} stars, median error", float(np.median(shifts)), "spaxel", 0.3),
        Figure("positions, largest error of the brightest star", max(shifts[:: len(chosen)]), "spaxel", 0.3),
    ]
    for wave, values in ratios.items():
        percent = 100 * (float(np.median(values)) - 1)
        found.append(Figure(f"fluxes at {wave:g} Angstrom, median error", percent, "%", 5.0))
    return found


def check_noise(cube: Path, truth: NightTruth, *, wave: float = 7050.0) -> list[Figure]:
    """Reduced chi-square, against STAT, of spaxels without sources."""
    with fits.open(cube) as hdus:
        header = hdus["DATA"].header
        axis = header["CRVAL3"] + header["CD3_3"] * np.arange(header["NAXIS3"])
        planes = np.flatnonzero(np.abs(axis - wave) < 60)
        data, stat = (hdus[name].data[planes].astype(float) for name in ("DATA", "STAT"))
    image = truth.truth_cube(header, axis[planes][::8]).mean(axis=0)
    empty = image < np.percentile(image, 40)
    # the sky that was subtracted too much or too little is not noise
    values = data[:, empty] - np.nanmedian(data[:, empty], axis=1, keepdims=True)
    chi2 = float(np.nanmean(values**2 / stat[:, empty]))
    return [Figure(f"reduced chi-square of empty spaxels at {wave:g} Angstrom", chi2, "")]


def check_response(chain: Chain, truth: NightTruth) -> list[Figure]:
    """Response of the standard star against that of the simulated telescope and instrument.

    Data are divided by a flat that has the mean 1, and multiplied by its spectrum: what is left of the
    instrument is the mean over the slices of throughput, width of a pixel on the sky and its dispersion.
    """
    table = read_std_response(chain.product("STD_RESPONSE"))
    wave, response = table.wave, table.response
    instrument = truth.instrument()
    inside = (wave > 4800) & (wave < 9200)
    wave, response = wave[inside], response[inside]
    y = np.arange(1, 4113, 16.0)
    factors = []
    for ifu in chain.ifus:
        optics = instrument.ifu(ifu)
        for s in range(1, 49):
            left, right = optics.edges(s, y)
            x = (left + right) / 2
            waves = optics.wavelength(s, x, y)
            eta = optics.throughput(s, waves) * optics.width[s - 1] / (right - left) * np.gradient(waves, y)
            factors.append(np.interp(wave, waves, eta))
    true = 2.5 * np.log10(1e20 * instrument.sensitivity(wave) * np.mean(factors, axis=0) / 1.25)
    error = 100 * (10 ** (0.4 * (response - true)) - 1)
    return [
        Figure("response, median error", float(np.median(error)), "%", 3.0),
        Figure("response, scatter of the error over the wavelengths", float(np.std(error)), "%", 3.0),
    ]


def read_frames(folder: Path) -> list[Frame]:
    """Frames of a simulated night."""
    lines = [line.split() for line in (folder / "frames.sof").read_text().splitlines()]
    return [(Path(line[0]), line[1]) for line in lines if line]


def measure(chain: Chain, truth: NightTruth, cube: Path | None) -> list[Figure]:
    """Everything that the products of a chain tell."""
    figures = []
    if any(call.recipe == "muse_wavecal" for call in chain.calls):
        figures += [*check_traces(chain, truth.instrument()), *check_wavelengths(chain, truth.instrument())]
    # in a narrow strip the reference's fit of the standard star's profile is unconstrained
    wide = len(chain.ifus) >= 4
    if "STD_RESPONSE" in chain.products:
        figures += check_response(chain, truth)
    if "OFFSET_LIST" in chain.products:
        plans = [e.plan for e in truth.select("OBJECT")]
        figures += check_offsets(chain.product("OFFSET_LIST"), plans)
    if cube is not None:
        figures += [*check_sources(cube, truth), *check_noise(cube, truth)]
    return [f if wide or f.unit != "%" else replace(f, limit=None) for f in figures]


def simulate(
    folder: Path, ifus: Sequence[int], *, masters: bool, geometry: bool, seed: int, workers: int
) -> list[Frame]:
    """A night of three exposures of a field, with all calibrations or with masters made from the truth."""
    from musedask.sim import simulate_night, simulate_plans
    from musedask.sim.masters import write_masters

    night: dict[str, Any] = {"ifus": ifus, "seed": seed, "n_workers": workers, "associations": False}
    what: dict[str, Any] = {"dithers": 3, "rotate": 180, "exptimes": (600,)}
    if not masters:
        counts = {"DARK": 3, **({"MASK": 60} if geometry else {})}
        simulate_night(folder, **what, calibrations=counts, **night)
        return read_frames(folder)
    planned = simulate_night(folder, **what, dry_run=True, **night)
    simulate_plans(folder, [p for p in planned.plans if p.tag in ("ILLUM", "STD", "OBJECT")], planned.scenes, **night)
    tags = ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "TWILIGHT_CUBE")
    made = write_masters(folder / "masters", planned.plans, ifus=ifus, names="drs", tags=tags)
    return [*read_frames(folder), *((path, tag) for tag, paths in made.items() for path in paths)]


def main() -> int:
    """Simulate, reduce, compare; 1 if a limit is missed."""
    from musedask.sim import NightTruth

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ifus", default="1-2", help="IFUs, 1-4 for photometry")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/musedask-chain"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--geometry", action="store_true", help="also the pinhole masks, 60 frames, and muse_geometry")
    parser.add_argument("--masters", action="store_true", help="begin at muse_scibasic, with masters of the truth")
    parser.add_argument("--engine", choices=list(NATIVE), default="esorex", help="of the daytime calibrations")
    parser.add_argument("--merge", action="store_true", help="merge the products of native recipes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="keep the files")
    args = parser.parse_args()
    first, _, last = args.ifus.partition("-")
    ifus = range(int(first), int(last or first) + 1)
    start = time.perf_counter()
    # in a process of its own: the peak memory of a child begins with that of its parent
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        frames = pool.submit(
            simulate, args.work / "night", ifus, masters=args.masters, geometry=args.geometry, seed=args.seed,
            workers=args.workers,
        ).result()  # fmt: skip
    print(f"{time.perf_counter() - start:7.1f} s  simulation", flush=True)
    truth = NightTruth.open(args.work / "night")
    chain = Chain(args.work / "reduced", frames, ifus, args.workers, NATIVE[args.engine], args.merge)
    if args.masters:
        for tag in ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE"):
            chain.products[tag] = [path for path, given in frames if given == tag]
        calibrate_flux(chain)
        cube = reduce_objects(chain, ("simple",))
    else:
        calibrate_detectors(chain)
        calibrate_field(chain, geometry=args.geometry)
        calibrate_flux(chain)
        calibrate_sky(chain)
        cube = reduce_objects(chain)
    figures = measure(chain, truth, cube)
    print("\n".join(map(str, figures)))
    report = {"calls": [asdict(c) for c in chain.calls], "figures": [asdict(f) for f in figures]}
    (args.work / "chain.json").write_text(json.dumps(report, indent=1))
    if not args.keep:
        shutil.rmtree(args.work / "night")
        shutil.rmtree(args.work / "reduced")
    return int(not all(f.good for f in figures))


if __name__ == "__main__":
    sys.exit(main())
