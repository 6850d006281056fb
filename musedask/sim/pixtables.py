"""Simulated pixel tables of any number of exposures, with the truth beside them.

The instrument is fixed: its slices (`musedask.sim.optics`) have irregular offsets, tilts and wavelength
zero points that are the same in every simulation.  Only what happens in an exposure (noise, cosmic rays)
follows the seed.  Every slice has random streams of its own, so the result does not depend on the order or
number of threads in which slices are made.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numba as nb
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from .._version import __version__
from ..errors import InputError
from ..instrument import CCD_TO_SKY_SLICE, N_IFUS, N_SLICES, Mode, mode_from_name
from ..io.files import atomic_path, check_output
from ..io.headers import PIXTABLE, append_cards, float64_card
from ..io.pixtable import COLUMNS, PixtableWriter, Stage, set_limits
from ..io.tables import write_offset_list
from .detector import Detector
from .ephemeris import mjd_of, moon, start_times
from .headers import fitted, product_header
from .optics import LEFT, NY, RIGHT, WAVE, field_position, packed_slice, poly5, wave_row
from .plan import Conditions, ExposurePlan, ObservingBlock
from .scene import Scene, SceneLike, default_scene, scene_from_dict, standard_coordinates

#: bits of bad pixels: hot, saturated, dead, other
_BAD_BITS = (0x100, 0x1000, 0x2000, 0x4000)
_NOTCH_NAD = 0x8000000
#: detected electrons per second and 1e-20 erg/s/cm2/Angstrom, at the peak of the sensitivity
_SENSITIVITY = 6e-4
#: read noise [electrons] and flux of the (already subtracted) sky [1e-20 erg/s/cm2/Angstrom/spaxel]
_READ_NOISE, _SKY = 2.8, 45.0
#: standard deviation of the line-spread function [Angstrom]
_LSF_SIGMA = 1.1
_FLUX_UNIT = "10**(-20)*erg/s/cm**2/Angstrom"
#: tags of the products by coordinate stage
_TAGS = {"pix": "PIXTABLE_OBJECT", "rad": "PIXTABLE_REDUCED", "deg": "PIXTABLE_POSITIONED"}
#: dither of the exposures of one field [arcsec]
_DITHER = (
    (0.0, 0.0),
    (1.3, -0.7),
    (-0.9, 1.7),
    (0.5, 0.9),
    (-1.6, -1.1),
    (1.9, 1.2),
    (-0.4, -1.8),
    (0.8, 0.3),
)
# kinds of random streams
_INSTRUMENT, _NOISE, _COSMICS, _BAD = range(4)


@dataclass(frozen=True)
class SimulatedExposure:
    """What is true of one exposure.

    Attributes
    ----------
    paths : tuple of pathlib.Path
        One pixel table, or one per IFU.
    date_obs : str
    ra, dec : float
        True pointing [deg].
    header_ra, header_dec : float
        Pointing that the header claims [deg].
    posang : float
        ``ESO INS DROT POSANG`` [deg], with ``DROT MODE`` SKY: the field is rotated by minus this.
    exptime : float
        [s]
    flux_scale : float
        Factor by which the data must be multiplied to be right.
    n_rows : int
        In all files together.
    """

    paths: tuple[Path, ...]
    date_obs: str
    ra: float
    dec: float
    header_ra: float
    header_dec: float
    posang: float
    exptime: float
    flux_scale: float
    n_rows: int


@dataclass(frozen=True)
class SimulatedSet:
    """A finished simulation.

    Attributes
    ----------
    paths : list of pathlib.Path
        All pixel tables, in order of exposure and IFU.
    offset_list : pathlib.Path
    truth_path : pathlib.Path
        ``truth.json``.
    cosmics_path : pathlib.Path
        ``truth_cosmics.npz``.
    scene : SceneLike
    ra, dec : float
        Origin of the scene [deg].
    exposures : tuple of SimulatedExposure
    tag : str
        SOF tag of the tables.
    """

    paths: list[Path]
    offset_list: Path
    truth_path: Path
    cosmics_path: Path
    scene: SceneLike = field(repr=False)
    ra: float
    dec: float
    exposures: tuple[SimulatedExposure, ...] = field(repr=False)
    tag: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> SimulatedSet:
        """Find a simulation again from its folder.

        Raises
        ------
        InputError
            If there is no ``truth.json`` in it.
        """
        folder = Path(folder)
        path = folder / "truth.json"
        if not path.exists():
            raise InputError(f"{path}: no such file; is {folder} the output of a simulation?")
        truth = json.loads(path.read_text())
        exposures = tuple(
            SimulatedExposure(**{**e, "paths": tuple(folder / name for name in e["paths"])})
            for e in truth["exposures"]
        )
        return cls(
            [p for e in exposures for p in e.paths],
            folder / "OFFSET_LIST.fits",
            path,
            folder / "truth_cosmics.npz",
            scene_from_dict(truth["scene"]),
            truth["ra"],
            truth["dec"],
            exposures,
            truth["tag"],
        )

    def cosmic_rows(self, path: str | os.PathLike[str]) -> NDArray[np.int64]:
        """Indices of the rows of a pixel table that a cosmic ray hit, ascending."""
        with np.load(self.cosmics_path) as arrays:
            return arrays[Path(path).stem]

    def offsets_of(
        self, ra: NDArray[np.floating], dec: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard coordinates in the scene [arcsec] of positions [deg]."""
        return standard_coordinates(ra, dec, self.ra, self.dec)

    def truth_at(
        self, ra: NDArray[np.floating], dec: NDArray[np.floating], wave: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Noise-free flux density [1e-20 erg/s/cm2/Angstrom] at positions [deg], wavelengths [Angstrom]."""
        return self.scene.surface_brightness(*self.offsets_of(ra, dec), wave)

    def truth_cube(
        self, wcs: WCS | fits.Header, wavelength: NDArray[np.floating], shape: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Evaluate the scene at the centres of the voxels of a grid.

        Parameters
        ----------
        wcs : astropy.wcs.WCS or astropy.io.fits.Header
            Of a cube or image; only the celestial axes are used.
        wavelength : ndarray, shape (n_wave,)
            Wavelengths of the planes in air [Angstrom].
        shape : (n_y, n_x), optional
            Size of the field; default: that of the header or WCS.

        Returns
        -------
        ndarray, shape (n_wave, n_y, n_x), float32
            [1e-20 erg/s/cm2/Angstrom per spaxel]
        """
        from .skylight import truth_cube

        return truth_cube(self.scene, wcs, wavelength, shape, ra=self.ra, dec=self.dec)

    def write_sof(
        self,
        path: str | os.PathLike[str],
        *,
        tag: str | None = None,
        offsets: bool = True,
        exposures: Sequence[int] | None = None,
    ) -> Path:
        """Write a set-of-frames file for esorex.

        Parameters
        ----------
        path : path-like
        tag : str, optional
            Tag of the pixel tables; default: that of their stage.
        offsets : bool
            Whether to list the OFFSET_LIST.
        exposures : sequence of int, optional
            Indices of the exposures; default: all.
        """
        chosen = range(len(self.exposures)) if exposures is None else exposures
        lines = [f"{p.absolute()} {tag or self.tag}" for i in chosen for p in self.exposures[i].paths]
        if offsets:
            lines.append(f"{self.offset_list.absolute()} OFFSET_LIST")
        path = Path(path)
        path.write_text("\n".join(lines) + "\n")
        return path


def simulate_pixtables(
    out_dir: str | os.PathLike[str],
    *,
    n_exposures: int = 3,
    scene: SceneLike | None = None,
    ra: float | None = None,
    dec: float | None = None,
    offsets: Sequence[tuple[float, float]] | None = None,
    mosaic: str | None = None,
    rotations: Sequence[float] = (0.0, 90.0),
    exptimes: Sequence[float] = (900.0,),
    flux_scales: Sequence[float] | None = None,
    pointing_errors: Sequence[tuple[float, float]] | None = None,
    ifus: Sequence[int] = tuple(range(1, N_IFUS + 1)),
    slices: int | Sequence[int] = N_SLICES,
    slice_width: float = 75.0,
    wave_range: tuple[float, float] | None = None,
    n_rows_limit: int | None = None,
    mode: str = "WFM-NOAO-N",
    stage: Stage = "rad",
    form: Literal["image", "table"] = "image",
    weight: bool = False,
    cosmic_rays: float = 0.0,
    bad_pixels: float = 0.0,
    noise: bool = True,
    per_ifu: bool = False,
    flat_field: bool = False,
    seed: int = 1,
    threads: int | None = None,
    overwrite: bool = False,
) -> SimulatedSet:
    """Simulate the pixel tables of some exposures of one target.

    Sequences with one entry per exposure that are too short are repeated.

    Parameters
    ----------
    out_dir : path-like
        Folder of the output; made if missing.
    n_exposures : int
        Number of exposures.
    scene : SceneLike, optional
        Default: a `default_scene` that fills the field.
    ra, dec : float, optional
        Origin of the scene [deg]; default: its own, else 150.1, -27.8.
    offsets : sequence of (float, float), optional
        True pointings relative to it, east and north [arcsec on the sky]; default: a dither of
        1-2 arcsec (wide-field mode).
    mosaic : str, optional
        ``"2x3"``: two columns and three rows of fields that overlap by a tenth; exposures visit one
        field after the other.  Added to `offsets`.
    rotations : sequence of float
        ``ESO INS DROT POSANG`` [deg].
    exptimes : sequence of float
        [s]
    flux_scales : sequence of float, optional
        Factors by which the data must be multiplied to be right; they go to the OFFSET_LIST.
    pointing_errors : sequence of (float, float), optional
        Header minus true RA and DEC [arcsec of coordinate, no cos(DEC)]; they go to the OFFSET_LIST.
    ifus : sequence of int
        IFUs, 1..24.
    slices : int or sequence of int
        CCD slices 1..48; a number n means the first n slices on the sky (12 make one stack).
    slice_width : float
        Width of a slice [spaxels], 75 in the real instrument.  A smaller one makes a small field
        without holes.
    wave_range : tuple of float, optional
        [Angstrom, air]; default: the useful range of the mode.
    n_rows_limit : int, optional
        Lower the upper end of the wavelength range until an exposure has at most so many rows.
    mode : str
        ``ESO INS MODE``.
    stage : {"pix", "rad", "deg"}
        Coordinate stage of the tables.  The centre of the data has the coordinates of the pointing.
    form : {"image", "table"}
        FITS form of the tables.
    weight : bool
        Whether to add the column ``weight``: exposure time over that of the first exposure.
    cosmic_rays : float
        Expected fraction of rows hit.  Their ``dq`` stays 0.
    bad_pixels : float
        Fraction of rows that are bad in every exposure: ``dq`` is not 0, the data are garbage.
    noise : bool
        Whether to add noise drawn from ``stat``, which is the true variance in any case.
    per_ifu : bool
        One file per IFU, with fluxes of flat fields that differ from IFU to IFU.
    flat_field : bool
        Whether these files carry a flat-field spectrum, with which the merged data must be multiplied.
    seed : int
        Of noise, cosmic rays and the default scene.
    threads : int, optional
        Default: one per processor.  The result does not depend on it.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    SimulatedSet

    Raises
    ------
    InputError
        If an argument makes no sense or no row is left.
    OutputExistsError
        If a file exists and `overwrite` is false.

    Examples
    --------
    >>> sim = simulate_pixtables("out", ifus=(12,), slices=12, slice_width=20,
    ...                          wave_range=(6540, 6590))     # doctest: +SKIP
    """
    ifus = sorted({int(i) for i in ifus})
    numbers = _slice_numbers(slices)
    _check(
        [
            (n_exposures >= 1, f"n_exposures: {n_exposures} found, expected at least 1"),
            (bool(ifus) and ifus[0] >= 1 and ifus[-1] <= N_IFUS, f"ifus: {ifus} found, expected 1..24"),
            (stage in _TAGS, f"stage: {stage!r} found, expected pix, rad or deg"),
            (form in ("image", "table"), f"form: {form!r} found, expected image or table"),
            (4 <= slice_width <= 80, f"slice_width: {slice_width} found, expected 4..80 spaxels"),
            (0 <= cosmic_rays <= 0.5, f"cosmic_rays: {cosmic_rays} found, expected 0..0.5"),
            (0 <= bad_pixels <= 0.9, f"bad_pixels: {bad_pixels} found, expected 0..0.9"),
            (
                per_ifu or not flat_field,
                "flat_field: only tables per IFU (per_ifu) have such a spectrum",
            ),
            (bool(rotations), "rotations: empty, expected at least one angle"),
            (bool(exptimes) and min(exptimes) > 0, f"exptimes: {exptimes} found, expected times > 0"),
            (
                flux_scales is None or (bool(flux_scales) and min(flux_scales) > 0),
                "flux_scales: expected > 0",
            ),
            (offsets is None or bool(offsets), "offsets: empty, expected at least one pair"),
            (pointing_errors is None or bool(pointing_errors), "pointing_errors: empty, expected pairs"),
            (n_rows_limit is None or n_rows_limit > 0, f"n_rows_limit: {n_rows_limit} found, expected > 0"),
            (seed >= 0, f"seed: {seed} found, expected 0 or more"),
        ]
    )
    instrument = mode_from_name(mode)
    low, high = wave_range or instrument.useful
    if not low < high:
        raise InputError(f"wave_range: {low}, {high} found, expected two increasing wavelengths")
    if ra is None:
        ra = 150.1 if getattr(scene, "ra", None) is None else scene.ra  # type: ignore[union-attr]
    if dec is None:
        dec = -27.8 if getattr(scene, "dec", None) is None else scene.dec  # type: ignore[union-attr]
    if not (-90 < dec < 90):
        raise InputError(f"dec: {dec} found, expected -90..90 deg")

    geometry = _Geometry(ifus, numbers, slice_width, float(low), float(high))
    if n_rows_limit is not None:
        geometry = geometry.limited(n_rows_limit)
    if geometry.n_rows == 0:
        raise InputError(f"no rows between {low} and {high} Angstrom, expected some of 4600..9700 Angstrom")
    spaxel = instrument.spaxel
    size = (geometry.x[1] - geometry.x[0] + 1) * spaxel[0], (geometry.y[1] - geometry.y[0] + 1) * spaxel[1]
    pointings = _pointings(n_exposures, offsets, mosaic, size, spaxel[0] / 0.2)
    if scene is None:
        span = [max(p[k] for p in pointings) - min(p[k] for p in pointings) for k in (0, 1)]
        scene = default_scene(
            seed,
            max(size) + max(span),
            wave_range=(geometry.low, geometry.high),
            fwhm=4 * spaxel[0],
            spaxel_area=spaxel[0] * spaxel[1],
        )
    if not isinstance(scene, SceneLike):
        raise InputError(f"scene: {type(scene).__name__} found, expected a Scene or CubeScene")
    if isinstance(scene, Scene):
        # rows are samples, not integrals: the line-spread function is part of the spectra
        lsf = scene.lsf_sigma or _LSF_SIGMA
        scene = scene.observed(lsf_sigma=lsf, spaxel_area=spaxel[0] * spaxel[1])

    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    scales = flux_scales or (1.0,)
    errors = pointing_errors or ((0.0, 0.0),)
    tag = _TAGS[stage]
    plans: list[SimulatedExposure] = []
    starts = start_times(ra, [exptimes[i % len(exptimes)] for i in range(n_exposures)])
    for i, (dra, ddec) in enumerate(pointings):
        true_dec = dec + ddec / 3600
        true_ra = (ra + dra / 3600 / math.cos(math.radians(dec))) % 360
        error = errors[i % len(errors)]
        # headers hold six decimals; the offset is what is left to the truth
        names = (
            [f"{tag}_{i + 1:04d}-{ifu:02d}.fits" for ifu in ifus] if per_ifu else [f"{tag}_{i + 1:04d}.fits"]
        )
        plans.append(
            SimulatedExposure(
                tuple(folder / name for name in names),
                starts[i].isoformat(timespec="milliseconds"),
                true_ra,
                true_dec,
                round((true_ra + error[0] / 3600) % 360, 6),
                round(true_dec + error[1] / 3600, 6),
                float(rotations[i % len(rotations)]),
                float(exptimes[i % len(exptimes)]),
                float(scales[i % len(scales)]),
                geometry.n_rows,
            )
        )
    offset_list, truth_path = folder / "OFFSET_LIST.fits", folder / "truth.json"
    cosmics_path = folder / "truth_cosmics.npz"
    outputs = [path for plan in plans for path in plan.paths]
    for path in (*outputs, offset_list, truth_path, cosmics_path):
        check_output(path, overwrite=overwrite)

    settings = _Settings(
        scene, ra, dec, instrument, mode, stage, form, weight, cosmic_rays, bad_pixels, noise, per_ifu,
        flat_field, seed, plans[0].exptime, overwrite,
    )  # fmt: skip
    cosmics: dict[str, NDArray[np.int64]] = {}
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for i, plan in enumerate(plans):
            cosmics |= _write_exposure(pool, workers, settings, geometry, i, plan, n_exposures)

    def atomic_text(path: Path, text: str) -> None:
        with atomic_path(path, overwrite=overwrite) as temporary:
            temporary.write_text(text)

    with atomic_path(cosmics_path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **cosmics)  # type: ignore[arg-type]  # the stub takes the names for options
    rows = [
        {
            "date_obs": p.date_obs,
            "mjd_obs": mjd_of(p.date_obs),
            "ra_offset": (p.header_ra - p.ra + 180) % 360 - 180,
            "dec_offset": p.header_dec - p.dec,
            "flux_scale": p.flux_scale if flux_scales is not None else math.nan,
        }
        for p in plans
    ]
    write_offset_list(offset_list, rows, overwrite=overwrite)
    truth = {
        "version": __version__,
        "ra": ra,
        "dec": dec,
        "tag": tag,
        "parameters": {
            "n_exposures": n_exposures,
            "offsets": pointings,
            "mosaic": mosaic,
            "ifus": ifus,
            "slices": numbers,
            "slice_width": slice_width,
            "wave_range": [geometry.low, geometry.high],
            "mode": mode,
            "stage": stage,
            "form": form,
            "weight": weight,
            "cosmic_rays": cosmic_rays,
            "bad_pixels": bad_pixels,
            "noise": noise,
            "per_ifu": per_ifu,
            "flat_field": flat_field,
            "seed": seed,
        },
        "exposures": [{**vars(p), "paths": [path.name for path in p.paths]} for p in plans],
        "offset_list": rows,
        "scene": scene.to_dict(),
    }
    atomic_text(truth_path, json.dumps(_no_nan(truth), indent=1))
    return SimulatedSet(outputs, offset_list, truth_path, cosmics_path, scene, ra, dec, tuple(plans), tag)


def _check(tests: Sequence[tuple[bool, str]]) -> None:
    for good, message in tests:
        if not good:
            raise InputError(message)


def _no_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _slice_numbers(slices: int | Sequence[int]) -> list[int]:
    if isinstance(slices, int):
        if not 1 <= slices <= N_SLICES:
            raise InputError(f"slices: {slices} found, expected 1..48")
        return [i + 1 for i, sky in enumerate(CCD_TO_SKY_SLICE) if sky <= slices]
    numbers = sorted({int(s) for s in slices})
    if not numbers or numbers[0] < 1 or numbers[-1] > N_SLICES:
        raise InputError(f"slices: {numbers} found, expected numbers 1..48")
    return numbers


def _pointings(
    n: int,
    offsets: Sequence[tuple[float, float]] | None,
    mosaic: str | None,
    size: tuple[float, float],
    scale: float,
) -> list[tuple[float, float]]:
    """True pointings of the exposures [arcsec east and north]."""
    fields = [(0.0, 0.0)]
    if mosaic is not None:
        parts = mosaic.lower().split("x")
        if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise InputError(f"mosaic: {mosaic!r} found, expected something like 2x3 (columns x rows)")
        columns, rows = (int(p) for p in parts)
        fields = [
            (0.9 * size[0] * (c - (columns - 1) / 2), 0.9 * size[1] * (r - (rows - 1) / 2))
            for r in range(rows)
            for c in range(columns)
        ]
    result = []
    for i in range(n):
        east, north = fields[i % len(fields)]
        if offsets is None:
            # the dither changes when all fields have been visited
            dither = _DITHER[(i // len(fields)) % len(_DITHER)]
            dx, dy = dither[0] * scale, dither[1] * scale
        else:
            dx, dy = offsets[i % len(offsets)]
        result.append((east + dx, north + dy))
    return result


# --- the instrument -------------------------------------------------------------------------------------


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class _Part:
    """One slice: parameters, offset of x in ``origin``, range of detector rows and number of rows."""

    ifu: int
    ccd_slice: int
    parameters: NDArray[np.float64]
    offset: int
    y0: int
    y1: int
    n_rows: int

    def fill(
        self, low: float, high: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """Columns xpos, ypos [pix], lambda and origin."""
        xpos, ypos, wave = (np.empty(self.n_rows, np.float32) for _ in range(3))
        origin = np.empty(self.n_rows, np.int32)
        code = self.ifu << 6 | self.ccd_slice
        _fill(
            self.parameters, self.y0, self.y1, np.float32(low), np.float32(high), self.offset, code,
            xpos, ypos, wave, origin,
        )  # fmt: skip
        return xpos, ypos, wave, origin


class _Geometry:
    """The slices in use with their rows, and the limits of the positions in the field.

    Attributes
    ----------
    parts : list of _Part
        In order of IFU and slice; those without rows are left out.
    n_rows : int
    x, y : tuple of float
        Limits of the positions [pix], float32 values.
    low, high : float
        Wavelength range [Angstrom].
    """

    def __init__(
        self, ifus: Sequence[int], slices: Sequence[int], width: float, low: float, high: float
    ) -> None:
        self._arguments = ifus, slices, width
        self.low, self.high = low, high
        self.parts: list[_Part] = []
        limits = np.array([np.inf, -np.inf, np.inf, -np.inf, np.inf, -np.inf])
        for ifu in ifus:
            for ccd_slice in slices:
                p = packed_slice(ifu, ccd_slice, width)
                # the first row of the left edge, as the trace polynomial gives it
                offset = math.floor(poly5(p, LEFT, 1.0)) - 20
                y0, y1 = _row_range(p, low, high)
                n = _count(p, y0, y1, np.float32(low), np.float32(high), limits)
                if n:
                    self.parts.append(_Part(ifu, ccd_slice, p, offset, y0, y1, n))
        self.n_rows = sum(part.n_rows for part in self.parts)
        self.x = (float(limits[0]), float(limits[1]))
        self.y = (float(limits[2]), float(limits[3]))
        self.wave = (float(limits[4]), float(limits[5]))

    def limited(self, n_rows: int) -> _Geometry:
        """Lower the upper end of the wavelength range until there are at most `n_rows`."""
        if self.n_rows <= n_rows:
            return self
        narrow = _Geometry(*self._arguments, self.low, min(self.high, self.low + 12.5))
        if narrow.n_rows == 0:
            raise InputError(f"no rows at {self.low} Angstrom, give a wave_range with data")
        high = self.low + n_rows / (narrow.n_rows / (narrow.high - self.low))
        while high > self.low:
            found = _Geometry(*self._arguments, self.low, min(high, self.high))
            if 0 < found.n_rows <= n_rows:
                return found
            high -= 0.3
        raise InputError(
            f"n_rows_limit: {n_rows} found, but one wavelength has about {narrow.n_rows // 10} rows; "
            "use fewer ifus or slices, or a smaller slice_width"
        )


@nb.njit(nogil=True, cache=True)
def _row_range(p, low, high):  # type: ignore[no-untyped-def]
    """First and last row (none: last < first) in which a slice may have wavelengths of a range."""
    first, last = NY + 1, 0
    for y in range(1, NY + 1):
        left, right = poly5(p, LEFT, y), poly5(p, RIGHT, y)
        a, b, c = wave_row(p, WAVE, y)
        for x in (left, 0.5 * (left + right), right):
            wave = a + x * (b + x * c)
            if low - 1.0 <= wave <= high + 1.0:  # the smile is less between these columns
                first, last = min(first, y), max(last, y)
    return first, last


@nb.njit(nogil=True, cache=True)
def _count(p, y0, y1, low, high, limits):  # type: ignore[no-untyped-def]
    n = 0
    for y in range(y0, y1 + 1):
        left, right = poly5(p, LEFT, y), poly5(p, RIGHT, y)
        row = wave_row(p, WAVE, y)
        for x in range(math.ceil(left), math.floor(right) + 1):
            wave = np.float32(row[0] + x * (row[1] + x * row[2]))
            if low <= wave <= high:
                xpos, ypos = field_position(p, x, left, right)
                n += 1
                limits[0], limits[1] = min(limits[0], xpos), max(limits[1], xpos)
                limits[2], limits[3] = min(limits[2], ypos), max(limits[3], ypos)
                limits[4], limits[5] = min(limits[4], wave), max(limits[5], wave)
    return n


@nb.njit(nogil=True, cache=True)
def _fill(p, y0, y1, low, high, offset, code, xs, ys, waves, origins):  # type: ignore[no-untyped-def]
    n = 0
    for y in range(y0, y1 + 1):
        left, right = poly5(p, LEFT, y), poly5(p, RIGHT, y)
        row = wave_row(p, WAVE, y)
        for x in range(math.ceil(left), math.floor(right) + 1):
            wave = np.float32(row[0] + x * (row[1] + x * row[2]))
            if low <= wave <= high:
                xs[n], ys[n] = field_position(p, x, left, right)
                waves[n] = wave
                origins[n] = (x - offset) << 24 | y << 11 | code
                n += 1


# --- an exposure ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What all exposures share."""

    scene: SceneLike
    ra: float
    dec: float
    instrument: Mode
    mode: str
    stage: Stage
    form: Literal["image", "table"]
    weight: bool
    cosmic_rays: float
    bad_pixels: float
    noise: bool
    per_ifu: bool
    flat_field: bool
    seed: int
    first_exptime: float
    overwrite: bool


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


def _cd_matrix(mode: Mode, posang: float) -> tuple[float, float, float, float]:
    """CD1_1, CD1_2, CD2_1, CD2_2 [deg/pix] of the default astrometric solution at a position angle."""
    pa = math.radians(-posang)  # the derotator follows the sky (DROT MODE)
    k1, k2 = -mode.spaxel[0] / 3600, mode.spaxel[1] / 3600
    return math.cos(pa) * k1, -math.sin(pa) * k2, math.sin(pa) * k1, math.cos(pa) * k2


class _Exposure:
    """Makes the rows of one slice after the other."""

    def __init__(self, settings: _Settings, geometry: _Geometry, index: int, plan: SimulatedExposure) -> None:
        self.settings, self.geometry, self.index, self.plan = settings, geometry, index, plan
        self.cd = _cd_matrix(settings.instrument, plan.posang)
        # the middle of the limits has the coordinates of the pointing, as in the reference pipeline
        self.crpix = ((geometry.x[1] + geometry.x[0]) / 2, (geometry.y[1] + geometry.y[0]) / 2)
        # from directions relative to the true pointing to those relative to the origin of the scene
        rotation = _triad(settings.ra, settings.dec) @ _triad(plan.ra, plan.dec).T
        self._projection = np.array([*self.cd, *self.crpix, *rotation.ravel(), math.radians(plan.header_dec)])
        self._stage = ("pix", "rad", "deg").index(settings.stage)
        present = sorted({part.ifu for part in geometry.parts})
        #: flat-field fluxes by IFU
        self.sky_flux = {ifu: 1.0e6 * (1 + 0.02 * math.sin(2.1 * ifu)) for ifu in present}
        self.lamp_flux = {ifu: 3.0e7 * (1 + 0.03 * math.sin(1.7 * ifu)) for ifu in present}
        #: coefficients of the flat-field spectrum of an IFU, in t = (wavelength - 7000) / 2500
        self.flat = {ifu: np.array([1.0, 0.2 + 0.02 * math.sin(ifu), -0.15]) for ifu in present}
        self._mean_flat = (
            np.mean(list(self.flat.values()), axis=0) if settings.flat_field else np.array([1.0, 0.0, 0.0])
        )
        self._first = present[0]

    def response(self, ifu: int) -> float:
        """Factor by which data of an IFU are too high before the IFUs are merged."""
        return self.sky_flux[ifu] / self.sky_flux[self._first] if self.settings.per_ifu else 1.0

    def limits(self, part: _Part) -> NDArray[np.float32]:
        """Lowest and highest values of both coordinates of a slice."""
        first, second, *_ = self._positions(*part.fill(self.geometry.low, self.geometry.high)[:2], False)
        return np.array([first.min(), first.max(), second.min(), second.max()], np.float32)

    def _positions(
        self, xpos: NDArray[np.float32], ypos: NDArray[np.float32], sky: bool
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        n = len(xpos)
        first, second = (xpos, ypos) if self._stage == 0 else (np.empty(n, "f4"), np.empty(n, "f4"))
        east, north = (np.empty(n if sky else 0, np.float64) for _ in range(2))
        _project(xpos, ypos, self._projection, self._stage, sky, first, second, east, north)
        return first, second, east, north

    def rows(self, part: _Part) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """All columns of a slice, and the rows in it that cosmic rays hit."""
        s, plan, n = self.settings, self.plan, part.n_rows
        xpos, ypos, wave, origin = part.fill(self.geometry.low, self.geometry.high)
        first, second, east, north = self._positions(xpos, ypos, True)
        flux = s.scene.surface_brightness(east, north, wave)
        normal = np.zeros(0, np.float32)
        if s.noise:
            stream = _stream(s.seed, _NOISE, self.index, part.ifu, part.ccd_slice)
            normal = stream.standard_normal(n, np.float32)
        electrons = np.zeros(0, np.float32)
        hits = np.empty(0, np.int64)
        if s.cosmic_rays > 0:
            stream = _stream(s.seed, _COSMICS, self.index, part.ifu, part.ccd_slice)
            electrons = _cosmic_rays(stream, s.cosmic_rays, part, origin)
            hits = np.flatnonzero(electrons)
        data, stat = np.empty(n, np.float32), np.empty(n, np.float32)
        factor = self.response(part.ifu) / plan.flux_scale
        _detect(
            flux, wave, normal, electrons, _SENSITIVITY * plan.exptime, _READ_NOISE**2, _SKY,
            factor, self._mean_flat, data, stat,
        )  # fmt: skip
        dq = np.zeros(n, np.int32)
        if s.instrument.notch is not None:
            dq[(wave > s.instrument.notch[0]) & (wave < s.instrument.notch[1])] = _NOTCH_NAD
        if s.bad_pixels > 0:
            _spoil(_stream(0x3A5E, _BAD, part.ifu, part.ccd_slice), s.bad_pixels, data, dq)
        columns = dict(zip(COLUMNS, (first, second, wave, data, dq, stat, origin), strict=True))
        if s.weight:
            columns["weight"] = np.full(n, plan.exptime / s.first_exptime, np.float32)
        return columns, hits


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _project(xpos, ypos, p, stage, sky, first, second, east, north):  # type: ignore[no-untyped-def]
    """Coordinates of the stage, and position in the scene [arcsec].

    Formulas: gnomonic projection with native pole longitude 180 deg; `p` is CD (4), CRPIX (2), the
    matrix from the pointing's to the scene's directions (9) and the header's DEC [rad].
    """
    degree = 180.0 / math.pi
    dec0 = p[15]
    sin0, cos0 = math.sin(dec0), math.cos(dec0)
    for i in range(xpos.size):
        u, v = xpos[i] - p[4], ypos[i] - p[5]
        x, y = p[0] * u + p[1] * v, p[3] * v + p[2] * u
        if stage > 0:
            phi = math.atan2(x, -y)
            if phi < 0.0:
                phi += 2.0 * math.pi
            theta = math.atan(degree / math.sqrt(x * x + y * y))
            phi32, theta32 = np.float32(phi), np.float32(theta - 0.5 * math.pi)
            if stage == 1:
                first[i], second[i] = phi32, theta32
            else:
                phi, theta = np.float64(phi32), np.float64(theta32) + 0.5 * math.pi
                s, c = math.sin(theta), math.cos(theta)
                ra = math.atan2(c * math.sin(phi), s * cos0 + c * sin0 * math.cos(phi))
                dec = math.asin(s * sin0 - c * cos0 * math.cos(phi))
                first[i] = np.float32(degree * ra)
                second[i] = np.float32(degree * dec - degree * dec0)
        if sky:
            x, y = x / degree, y / degree
            scale = 3600.0 * degree / (p[12] * x + p[13] * y + p[14])
            east[i] = (p[6] * x + p[7] * y + p[8]) * scale
            north[i] = (p[9] * x + p[10] * y + p[11]) * scale


@nb.njit(nogil=True, cache=True)
def _detect(flux, wave, normal, electrons, sensitivity, rn2, sky, factor, flat, data, stat):  # type: ignore[no-untyped-def]
    """Add noise and cosmic rays to a flux, and write its variance."""
    for i in range(flux.size):
        t = (wave[i] - 7000.0) / 2500.0
        gain = sensitivity * max(0.25, 1.0 - 0.6 * t * t)  # electrons per unit of flux
        value = np.float64(flux[i])
        count = rn2 + gain * (max(value, 0.0) + sky)
        if electrons.size:
            count += electrons[i]
            value += electrons[i] / gain
        scale = factor / (flat[0] + t * (flat[1] + t * flat[2]))
        variance = np.float32(count / (gain * gain) * scale * scale)
        stat[i] = variance
        value *= scale
        if normal.size:
            value += normal[i] * math.sqrt(variance)
        data[i] = value


def _cosmic_rays(
    rng: np.random.Generator, rate: float, part: _Part, origin: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Electrons that cosmic rays leave in each row: straight tracks over neighbouring detector pixels."""
    mean_length = 4.0
    n = int(rng.poisson(rate * part.n_rows / mean_length))
    start = rng.integers(0, part.n_rows, n)
    length = np.minimum(1 + rng.exponential(mean_length - 1, n), 25.0)
    angle = rng.uniform(0, 2 * math.pi, n)
    charge = np.minimum(np.exp(rng.normal(7.3, 0.6, n)), 30000.0)
    electrons = np.zeros(part.n_rows, np.float32)
    _tracks(start, length, angle, charge, origin, electrons)
    return electrons


@nb.njit(nogil=True, cache=True)
def _tracks(start, length, angle, charge, origin, electrons):  # type: ignore[no-untyped-def]
    for k in range(start.size):
        x0, y0 = (origin[start[k]] >> 24) & 0x7F, (origin[start[k]] >> 11) & 0x1FFF
        row = start[k]
        previous = -1
        for step in range(int(2 * length[k]) + 1):
            x = math.floor(x0 + 0.5 * step * math.cos(angle[k]) + 0.5)
            y = math.floor(y0 + 0.5 * step * math.sin(angle[k]) + 0.5)
            # rows are ordered by y, then x: walk to the pixel from where we are
            key = (y << 7) | x
            while row < origin.size - 1 and _key(origin[row]) < key:
                row += 1
            while row > 0 and _key(origin[row]) > key:
                row -= 1
            if _key(origin[row]) == key and row != previous:
                electrons[row] += charge[k]
                previous = row


@nb.njit(nogil=True, cache=True, inline="always")
def _key(origin):  # type: ignore[no-untyped-def]
    return (((origin >> 11) & 0x1FFF) << 7) | ((origin >> 24) & 0x7F)


def _spoil(rng: np.random.Generator, rate: float, data: NDArray[np.float32], dq: NDArray[np.int32]) -> None:
    """Mark rows bad and put garbage in them: hot, saturated, dead or just wrong."""
    n = int(rng.binomial(data.size, rate))
    rows = rng.choice(data.size, n, replace=False, shuffle=False)
    kind = rng.integers(0, len(_BAD_BITS), n)
    garbage = np.choose(kind, [3e4 * rng.random(n), np.full(n, 1e6), np.zeros(n), rng.normal(0, 1e5, n)])
    data[rows] = garbage
    dq[rows] |= np.array(_BAD_BITS, np.int32)[kind]


def _write_exposure(
    pool: ThreadPoolExecutor,
    workers: int,
    settings: _Settings,
    geometry: _Geometry,
    index: int,
    plan: SimulatedExposure,
    n_exposures: int,
) -> dict[str, NDArray[np.int64]]:
    """Write the files of an exposure; returns the rows hit by cosmic rays by file stem."""
    exposure = _Exposure(settings, geometry, index, plan)
    ifus = sorted({part.ifu for part in geometry.parts})
    groups = (
        [[p for p in geometry.parts if p.ifu == ifu] for ifu in ifus]
        if settings.per_ifu
        else [geometry.parts]
    )
    units = dict.fromkeys(COLUMNS, "") | {
        "xpos": settings.stage,
        "ypos": settings.stage,
        "lambda": "Angstrom",
        "data": _FLUX_UNIT,
        "stat": f"({_FLUX_UNIT})**2",
    }
    if settings.weight:
        units["weight"] = ""
    found: dict[str, NDArray[np.int64]] = {}
    for path, parts in zip(_paths(plan, ifus, settings.per_ifu), groups, strict=True):
        limits = np.array(list(pool.map(exposure.limits, parts)))
        header = _header(exposure, parts, limits, n_exposures, path.name)
        flat = None
        if settings.flat_field:
            wave = np.arange(4650.0, 9350.0, 1.25)
            t = (wave - 7000) / 2500
            flat = (wave, np.polynomial.polynomial.polyval(t, exposure.flat[parts[0].ifu]))
        hits: list[NDArray[np.int64]] = []
        with ExitStack() as stack:
            writer = stack.enter_context(
                PixtableWriter(
                    path,
                    header,
                    sum(p.n_rows for p in parts),
                    units,
                    form=settings.form,
                    flat_field=flat,
                    overwrite=settings.overwrite,
                )
            )
            start = 0
            for columns, rows in _ahead(pool, workers + 1, exposure, parts):
                for name, values in columns.items():
                    writer.write(name, start, values)
                hits.append(rows + start)
                start += len(columns["data"])
        found[path.stem] = np.concatenate(hits) if hits else np.empty(0, np.int64)
    return found


def _paths(plan: SimulatedExposure, ifus: Sequence[int], per_ifu: bool) -> list[Path]:
    if not per_ifu:
        return list(plan.paths)
    return [next(p for p in plan.paths if p.stem.endswith(f"-{ifu:02d}")) for ifu in ifus]


def _ahead(
    pool: ThreadPoolExecutor, depth: int, exposure: _Exposure, parts: Sequence[_Part]
) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
    """Rows of the slices in order, at most `depth` slices made ahead of the writer."""
    waiting: deque[Future[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(exposure.rows, part))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


# --- headers --------------------------------------------------------------------------------------------

#: the observing block and the weather of all simulated pixel tables
_BLOCK = ObservingBlock(1135706, "WFM-simulated", "Simulated field", "094.A-0000(A)")
_CONDITIONS = Conditions(
    temperature=14.8, instrument_temperature=14.72, humidity=6.5, pressure=742.7, seeing=0.95, wind_speed=8.78,
    wind_direction=123.0, tau0=0.0038,
)  # fmt: skip
#: cards of the recipe that made the tables
_RECIPE: tuple[tuple[str, Any, str], ...] = (
    ("ESO PRO DID", "PRO-1.16", "Data dictionary for PRO"),
    ("ESO PRO TYPE", "REDUCED", "Product type"),
    ("ESO PRO TECH", "IFU", "Observation technique"),
    ("ESO PRO SCIENCE", True, "Scientific product if T"),
    ("ESO PRO DATANCOM", 1, "Number of combined frames"),
    ("ESO PRO REC1 ID", "muse_scibasic", "Pipeline recipe (unique) identifier"),
    ("ESO PRO REC1 DRS ID", "cpl-7.2.3", "Data Reduction System identifier"),
    ("ESO PRO REC1 PIPE ID", "muse/2.8.7", "Pipeline (unique) identifier"),
    ("ESO PRO REC1 RAW1 CATG", "OBJECT", "Category of raw frame"),
    ("ESO PRO REC1 PARAM1 NAME", "nifu", "IFU to handle"),
    ("ESO PRO REC1 PARAM1 VALUE", "0", "Default: 0"),
    ("ESO PRO REC1 PARAM2 NAME", "overscan", "Overscan correction"),
    ("ESO PRO REC1 PARAM2 VALUE", "vpoly", "Default: 'vpoly'"),
)


def _header(
    exposure: _Exposure,
    parts: Sequence[_Part],
    limits: NDArray[np.float32],
    n_exposures: int,
    file_name: str,
) -> fits.Header:
    """Primary header of a pixel table that holds `parts`."""
    s, plan = exposure.settings, exposure.plan
    archive = f"MUSE.{plan.date_obs}.fits"
    ifus = sorted({p.ifu for p in parts})
    raw = file_name if s.per_ifu else f"PIXTABLE_OBJECT_0001-{ifus[0]:02d}.fits"
    mjd, moment = mjd_of(plan.date_obs), plan.date_obs[:19]
    moon_ra, moon_dec, illuminated = moon(mjd)
    described = ExposurePlan(
        index=exposure.index, tag="OBJECT", date_obs=plan.date_obs, exptime=plan.exptime, mode=s.mode,
        ra=plan.header_ra, dec=plan.header_dec, posang=plan.posang, template_start=moment,
        expno=exposure.index + 1, nexp=n_exposures, ob=replace(_BLOCK, start=moment),
        conditions=replace(_CONDITIONS, moon_ra=moon_ra, moon_dec=moon_dec, moon_fli=illuminated),
    )  # fmt: skip
    header = product_header(described, ifus[0], Detector(ifus[0])) if s.per_ifu else product_header(described)
    # the header says exactly what the truth says
    header["RA"], header["DEC"] = plan.header_ra, plan.header_dec
    cards: list[list[Any]] = [list(card) for card in _RECIPE]
    cards += [
        ["PIPEFILE", file_name, "Filename of data product"],
        ["ESO PRO CATG", _TAGS[s.stage], "Category of pipeline product frame"],
        ["ESO PRO ANCESTOR", archive, ""],
        ["ESO PRO REC1 RAW1 NAME", archive, "File name of raw frame"],
    ]
    if s.stage != "pix":
        cards += [
            ["ESO PRO REC2 ID", "muse_scipost", "Pipeline recipe (unique) identifier"],
            ["ESO PRO REC2 DRS ID", "cpl-7.2.3", "Data Reduction System identifier"],
            ["ESO PRO REC2 PIPE ID", "muse/2.8.7", "Pipeline (unique) identifier"],
            ["ESO PRO REC2 RAW1 NAME", raw, "File name of raw frame"],
            ["ESO PRO REC2 RAW1 CATG", "PIXTABLE_OBJECT", "Category of raw frame"],
        ]
        cards += [
            [f"CD{i}_{j}", float64_card(v), ""]
            for (i, j), v in zip(((1, 1), (1, 2), (2, 1), (2, 2)), exposure.cd, strict=True)
        ]
        for axis, ctype in ((1, "RA---TAN"), (2, "DEC--TAN")):
            cards += [
                [f"CTYPE{axis}", ctype, ""],
                [f"CUNIT{axis}", "deg", ""],
                [f"CRPIX{axis}", float64_card(exposure.crpix[axis - 1]), ""],
            ]
        if s.stage == "deg":
            cards += [["CRVAL1", plan.header_ra, ""], ["CRVAL2", plan.header_dec, ""]]
    if s.per_ifu:
        ifu = ifus[0]
        cards += [
            ["ESO DRS MUSE FLAT FLUX SKY", exposure.sky_flux[ifu], ""],
            ["ESO DRS MUSE FLAT FLUX LAMP", exposure.lamp_flux[ifu], ""],
        ]
    else:
        cards += [[f"{PIXTABLE} MERGED", len(ifus), "Merged IFUs"]]
    cards += [
        [f"{PIXTABLE} TYPE", "GEOFULL", "MUSE pixel table"],
        [f"{PIXTABLE} FLUXCAL", True, "Pixel table was flux-calibrated"],
        [f"{PIXTABLE} SKYSUB", True, "Pixel table was sky-subtracted"],
        [f"{PIXTABLE} RVCORR", 0.0, "[km/s] bary-centric correction"],
        [f"{PIXTABLE} DAR CORRECT", 7000.0, "[Angstrom] DAR ref. lambda"],
    ]
    g = exposure.geometry
    cards += [
        [f"{PIXTABLE} PREDAR LIMITS {name}", float64_card(value), ""]
        for name, value in zip(("XLO", "XHI", "YLO", "YHI"), (*g.x, *g.y), strict=True)
    ]
    if s.stage != "pix":
        state = "projected (intermediate)" if s.stage == "rad" else "positioned (final)"
        cards += [[f"{PIXTABLE} WCS", state, "WCS status"]]
    if s.weight:
        cards += [[f"{PIXTABLE} WEIGHTED", True, "relative weighting applied"]]
    cards += [
        [f"{PIXTABLE} EXP0 IFU{p.ifu:02d} SLICE{p.ccd_slice:02d} XOFFSET", p.offset, "x offset"]
        for p in parts
    ]
    append_cards(header, [_fitted(*card) for card in cards])
    low, high = limits.min(axis=0).astype(float), limits.max(axis=0).astype(float)
    zero = (plan.header_ra, plan.header_dec) if s.stage == "deg" else (0.0, 0.0)
    numbers = [p.ccd_slice for p in parts]
    set_limits(
        header,
        (low[0] + zero[0], high[1] + zero[0]),
        (low[2] + zero[1], high[3] + zero[1]),
        _wave_limits(parts, g),
        (ifus[0], ifus[-1]),
        (min(numbers), max(numbers)),
    )
    return header


def _fitted(keyword: str, value: Any, comment: str) -> list[Any]:
    """Cut the comment of a card so that it fits."""
    return [keyword, *fitted(keyword, value, comment)[1:]]


def _wave_limits(parts: Sequence[_Part], geometry: _Geometry) -> tuple[float, float]:
    if len(parts) == len(geometry.parts):
        return geometry.wave
    limits = np.array([np.inf, -np.inf, np.inf, -np.inf, np.inf, -np.inf])
    for p in parts:
        _count(p.parameters, p.y0, p.y1, np.float32(geometry.low), np.float32(geometry.high), limits)
    return float(limits[4]), float(limits[5])
