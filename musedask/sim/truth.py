"""The truth beside a simulated night: instrument, exposures, sky, and the scene without noise.

A simulated night is a folder::

    night.json                      what was observed, how, and with which seed
    raw/MUSE.<date>.fits            raw exposures
    truth/TRACE_TABLE-nn.fits       true edges of the slices of each IFU, in the reference's format
    truth/WAVECAL_TABLE-nn.fits     true wavelengths
    truth/WAVE_MAP-nn.fits          true wavelength of every pixel
    truth/GEOMETRY_TABLE.fits       true places of the slices in the field
    truth/BADPIX_TABLE.fits         true defects of the detectors
    truth/MUSE.<date>_RATE-nn.fits      expected electrons per second of every pixel (``images=True``)
    truth/MUSE.<date>_COSMICS.fits      pixels that cosmic rays hit, and their charge
    truth/MUSE.<date>_SKY_LINES.fits    lines of the sky on the ground, SKY_CONTINUUM its continuum

All of it follows from ``night.json``: what was not written is worked out again when it is asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instrument import N_SLICES
from ..io import calibrations as cal
from ..io import references as ref
from ..io.cube_read import Image, Region
from ..io.muse_image import read_wave_map, write_wave_map
from ..io.products import Column, bintable, channel, channel_number, get_column, open_fits, product_header, write_tables
from .association import archive_name
from .optics import NX, NY, IfuOptics, Instrument
from .plan import Conditions, ExposurePlan, ObservingBlock
from .scene import SceneLike, scene_from_dict
from .statics import bad_pixels, geometry_table

if TYPE_CHECKING:
    from astropy.wcs import WCS

INDEX = "night.json"
FOLDER = "truth"
#: wavelengths of the continuum of the sky [Angstrom]
_CONTINUUM = np.arange(4500.0, 9500.1, 1.0)
#: bytes of the planes that are evaluated at once
_PIECE = 32 << 20


# --- the instrument in the form of tables ----------------------------------------------------------


def trace_table(optics: IfuOptics) -> cal.TraceTable:
    """True edges and centres of the slices."""
    y = np.arange(1, NY + 1)
    width = [float(np.mean(np.subtract(*optics.edges(s, y)[::-1]))) for s in range(1, N_SLICES + 1)]
    zero = np.zeros((N_SLICES, 3))
    return cal.TraceTable(optics.centre.copy(), optics.left.copy(), optics.right.copy(), np.array(width), zero)


def wavecal_table(optics: IfuOptics) -> cal.WavecalTable:
    """True wavelengths."""
    return cal.WavecalTable(optics.wave.copy(), np.zeros(N_SLICES))


# --- writing ---------------------------------------------------------------------------------------


def write_instrument_truth(
    folder: str | os.PathLike[str],
    instrument: Instrument,
    ifus: Iterable[int],
    *,
    wave_maps: bool = True,
    overwrite: bool = False,
) -> None:
    """Write what is true of the instrument, into ``truth/`` of a night's folder.

    Parameters
    ----------
    folder : path-like
        That of the night.
    instrument : Instrument
    ifus : iterable of int
    wave_maps : bool
        Whether to write the images of wavelengths, 67 MB each.
    overwrite : bool

    Raises
    ------
    OutputExistsError, PlanError, InputError
        If a file exists, the disk is full, or the folder cannot be written to.
    """
    out = _truth_folder(folder)
    numbers = sorted({int(i) for i in ifus})
    for ifu in numbers:
        optics = instrument.ifu(ifu)

        def header(tag: str, ifu: int = ifu) -> fits.Header:
            return product_header(tag, ifu=ifu)

        cal.write_trace_table(
            out / f"TRACE_TABLE-{ifu:02d}.fits", trace_table(optics), header=header("TRACE_TABLE"), overwrite=overwrite
        )
        cal.write_wavecal_table(
            out / f"WAVECAL_TABLE-{ifu:02d}.fits", wavecal_table(optics), header=header("WAVECAL_TABLE"),
            overwrite=overwrite,
        )  # fmt: skip
        if wave_maps:
            path = out / f"WAVE_MAP-{ifu:02d}.fits"
            write_wave_map(path, optics.wave_map(), header=header("WAVE_MAP"), overwrite=overwrite)
    geometry = geometry_table(instrument, numbers)
    static = product_header("GEOMETRY_TABLE")
    cal.write_geometry_table(out / "GEOMETRY_TABLE.fits", geometry, header=static, overwrite=overwrite)
    bad = {i: bad_pixels(i) for i in numbers}
    cal.write_badpix_table(out / "BADPIX_TABLE.fits", bad, overwrite=overwrite)


def write_truth(
    folder: str | os.PathLike[str],
    plans: Sequence[ExposurePlan],
    ifus: Iterable[int],
    *,
    wave_maps: bool = True,
    overwrite: bool = False,
) -> None:
    """Write what is true of the instrument and of the sky of all exposures of a night.

    Parameters
    ----------
    folder : path-like
        That of the night.
    plans : sequence of ExposurePlan
    ifus, wave_maps, overwrite
        See `write_instrument_truth`.
    """
    from .exposure import instrument_of

    write_instrument_truth(folder, instrument_of(plans[0]), ifus, wave_maps=wave_maps, overwrite=overwrite)
    for plan in plans:
        if plan.tag in ("STD", "ASTROMETRY", "SKY", "OBJECT"):
            write_sky(folder, plan, overwrite=overwrite)


_COSMICS = (Column("x", "J", "pix"), Column("y", "J", "pix"), Column("charge", "E", "count"))


def write_cosmics(
    folder: str | os.PathLike[str],
    plan: ExposurePlan,
    hits: Mapping[int, tuple[NDArray[np.integer], NDArray[np.floating]]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the cosmic rays of an exposure.

    Parameters
    ----------
    folder : path-like
        That of the night.
    plan : ExposurePlan
    hits : mapping of int to (ndarray, ndarray)
        By IFU: indices into the flat trimmed image, and charge [e-]; see
        `musedask.sim.detector.RawFrame`.
    overwrite : bool
    """
    tables = []
    for ifu, (pixels, charge) in sorted(hits.items()):
        y, x = np.divmod(np.asarray(pixels, np.int64), NX)
        tables.append(bintable(list(zip(_COSMICS, (x + 1, y + 1, charge), strict=True)), channel(ifu)))
    header = product_header("COSMICS")
    return write_tables(_beside(folder, plan, "COSMICS.fits"), header, tables, overwrite)


def write_sky(folder: str | os.PathLike[str], plan: ExposurePlan, *, overwrite: bool = False) -> list[Path]:
    """Write lines and continuum of the sky in an exposure, as bright as they are on the ground.

    The files have the formats of SKY_LINES and SKY_CONTINUUM [per arcsec2].
    """
    lines, continuum = _sky(plan)
    return [
        ref.write_sky_lines(_beside(folder, plan, "SKY_LINES.fits"), lines, overwrite=overwrite),
        ref.write_sky_continuum(_beside(folder, plan, "SKY_CONTINUUM.fits"), continuum, overwrite=overwrite),
    ]


def _sky(plan: ExposurePlan) -> tuple[ref.SkyLines, ref.SkyContinuum]:
    from . import atmosphere
    from .statics import _sky_lines

    flux = np.asarray(atmosphere.sky_continuum(_CONTINUUM, plan), np.float64)
    return _sky_lines(atmosphere.sky_lines(plan)), ref.SkyContinuum(_CONTINUUM.copy(), flux)


def plan_from_dict(data: Mapping[str, Any]) -> ExposurePlan:
    """Make a plan again from `dataclasses.asdict`, or what JSON has made of it.

    Raises
    ------
    InputError
        If a value is missing or unknown.
    """
    values = dict(data)
    try:
        for key, kind in (("ob", ObservingBlock), ("conditions", Conditions)):
            if isinstance(values.get(key), Mapping):
                values[key] = kind(**values[key])
        for name in ("pointing_error", "offset"):
            if name in values:
                values[name] = tuple(values[name])
        return ExposurePlan(**values)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(ExposurePlan))
        raise InputError(f"exposure: {error}; a plan has {known}") from error


def _truth_folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder) / FOLDER
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder: {error.strerror}") from error
    return path


def _beside(folder: str | os.PathLike[str], plan: ExposurePlan, suffix: str) -> Path:
    return _truth_folder(folder) / f"{archive_name(plan)}_{suffix}"


# --- the scene on a grid ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TruthCube:
    """A scene at the centres of the voxels of a grid, evaluated where it is read.  A `CubeSource`.

    Attributes
    ----------
    scene : SceneLike
        With the seeing and the line width that is wanted.
    ra, dec : float
        Origin of the scene [deg].
    wcs : astropy.wcs.WCS
        Celestial axes of the grid.
    wavelength : ndarray of float64, shape (nz,)
        [Angstrom, air]
    shape : tuple of int
        Planes, rows, columns.
    primary, data : astropy.io.fits.Header
        Cards of the cube.
    """

    scene: SceneLike
    ra: float
    dec: float
    wcs: WCS
    wavelength: NDArray[np.float64]
    shape: tuple[int, int, int]
    primary: fits.Header = field(default_factory=fits.Header)
    data: fits.Header = field(default_factory=fits.Header)

    names = ("flux",)
    label = "truth"

    @property
    def stat(self) -> fits.Header:
        """There is no variance."""
        return fits.Header()

    @property
    def ctype(self) -> str:
        """Spectral type."""
        return str(self.data.get("CTYPE3", "AWAV"))

    @property
    def block(self) -> tuple[int, int, int]:
        """Shape in which reading is cheapest."""
        return max(1, _PIECE // (4 * self.shape[1] * self.shape[2])), self.shape[1], self.shape[2]

    @property
    def images(self) -> dict[str, Image]:
        """There are none."""
        return {}

    @cached_property
    def _positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from .scene import standard_coordinates

        y, x = np.mgrid[: self.shape[1], : self.shape[2]]
        ra, dec = self.wcs.all_pix2world(x, y, 0)
        return standard_coordinates(ra, dec, self.ra, self.dec)

    def read(self, name: str, region: Region) -> NDArray[np.float32]:
        """Evaluate a piece [1e-20 erg/s/cm2/Angstrom per spaxel of the grid]."""
        planes, rows, columns = region
        xi, eta = (np.ascontiguousarray(v[rows, columns]) for v in self._positions)
        waves = self.wavelength[planes]
        out = np.empty((len(waves), *xi.shape), np.float32)
        for plane, wave in zip(out, waves, strict=True):
            plane[:] = self.scene.surface_brightness(xi, eta, float(wave))
        return out


# --- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NightExposure:
    """One exposure of a simulated night.

    Attributes
    ----------
    path : pathlib.Path
        Raw file.
    plan : ExposurePlan
    """

    path: Path
    plan: ExposurePlan


@dataclass(frozen=True, eq=False)
class NightTruth:
    """Everything that is true of a simulated night.

    Attributes
    ----------
    folder : pathlib.Path
    exposures : tuple of NightExposure
        In order of time.
    ifus : tuple of int
    seed : int
    scenes : dict of str to SceneLike
        By the names that plans have.

    Examples
    --------
    >>> truth = NightTruth.open("night/")                                # doctest: +SKIP
    >>> left, right = truth.trace_table(12).edges(24, [1, 2056, 4112])    # doctest: +SKIP
    """

    folder: Path
    exposures: tuple[NightExposure, ...] = field(repr=False)
    ifus: tuple[int, ...]
    seed: int
    scenes: dict[str, SceneLike] = field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> NightTruth:
        """Find a simulated night again from its folder.

        Raises
        ------
        InputError
            If there is no ``night.json`` of a night in it.
        """
        folder = Path(folder)
        path = folder / INDEX
        if not path.exists():
            raise InputError(f"{path}: no such file; is {folder} the output of a simulated night?")
        try:
            index = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: cannot be read as JSON: {error}") from error
        keys = ("ifus", "seed", "scenes", "exposures")
        missing = [key for key in keys if not isinstance(index, dict) or key not in index]
        if missing:
            raise InputError(f"{path}: there is no {', '.join(missing)}; not the index of a simulated night")
        exposures = []
        for entry in index["exposures"]:
            values = dict(entry)
            exposures.append(NightExposure(folder / "raw" / values.pop("file"), plan_from_dict(values)))
        scenes = {name: scene_from_dict(data) for name, data in index["scenes"].items()}
        return cls(folder, tuple(exposures), tuple(index["ifus"]), int(index["seed"]), scenes)

    def select(self, *tags: str) -> list[NightExposure]:
        """Exposures of some raw types."""
        return [e for e in self.exposures if e.plan.tag in tags]

    def find(self, file: str | os.PathLike[str]) -> NightExposure:
        """Exposure by its raw file or ``DATE-OBS``.

        Raises
        ------
        InputError
            If it is none of this night.
        """
        name = Path(file).name
        for exposure in self.exposures:
            if exposure.path.name == name or exposure.plan.date_obs == str(file):
                return exposure
        raise InputError(f"{file}: no exposure of the night {self.folder}")

    # --- instrument

    def instrument(self, exposure: NightExposure | None = None) -> Instrument:
        """The instrument in the mode of an exposure, by default the first."""
        from .exposure import instrument_of

        return instrument_of((exposure or self.exposures[0]).plan)

    def _check(self, ifu: int) -> None:
        if ifu not in self.ifus:
            raise InputError(f"IFU {ifu} found, the night {self.folder} has {', '.join(map(str, self.ifus))}")

    def trace_table(self, ifu: int) -> cal.TraceTable:
        """True edges of the slices of an IFU."""
        self._check(ifu)
        path = self.folder / FOLDER / f"TRACE_TABLE-{ifu:02d}.fits"
        return cal.read_trace_table(path, ifu=ifu) if path.exists() else trace_table(self.instrument().ifu(ifu))

    def wavecal_table(self, ifu: int) -> cal.WavecalTable:
        """True wavelengths of an IFU."""
        self._check(ifu)
        path = self.folder / FOLDER / f"WAVECAL_TABLE-{ifu:02d}.fits"
        return cal.read_wavecal_table(path, ifu=ifu) if path.exists() else wavecal_table(self.instrument().ifu(ifu))

    def wave_map(self, ifu: int) -> NDArray[np.float32]:
        """True wavelength of every pixel [Angstrom], 0 outside the slices; shape (4112, 4096)."""
        self._check(ifu)
        path = self.folder / FOLDER / f"WAVE_MAP-{ifu:02d}.fits"
        return read_wave_map(path) if path.exists() else self.instrument().ifu(ifu).wave_map()

    def geometry_table(self) -> cal.GeometryTable:
        """True places of the slices in the field."""
        path = self.folder / FOLDER / "GEOMETRY_TABLE.fits"
        return cal.read_geometry_table(path) if path.exists() else geometry_table(self.instrument(), self.ifus)

    def bad_pixels(self, ifu: int) -> cal.BadPixels:
        """True defects of a detector."""
        self._check(ifu)
        path = self.folder / FOLDER / "BADPIX_TABLE.fits"
        return cal.read_badpix_table(path)[ifu] if path.exists() else bad_pixels(ifu)

    # --- exposures

    def rate(self, exposure: NightExposure, ifu: int) -> NDArray[np.float32] | None:
        """Expected electrons per second of every pixel of an IFU; None if the shutter was closed.

        Returns
        -------
        ndarray of float32, shape (4112, 4096), or None
        """
        self._check(ifu)
        path = self.folder / FOLDER / f"{archive_name(exposure.plan)}_RATE-{ifu:02d}.fits"
        if path.exists():
            with open_fits(path) as hdus:
                return np.asarray(hdus[-1].data).astype(np.float32)
        from .exposure import expected_rate

        return expected_rate(exposure.plan, ifu, self.ifus, self.scenes.get(exposure.plan.scene))

    def cosmics(self, exposure: NightExposure, ifu: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Pixels that cosmic rays hit: ascending indices into the flat trimmed image (4112, 4096), charge [e-]."""
        self._check(ifu)
        path = self.folder / FOLDER / f"{archive_name(exposure.plan)}_COSMICS.fits"
        if path.exists():
            with open_fits(path) as hdus:
                for hdu in hdus[1:]:
                    if channel_number(hdu.header.get("EXTNAME")) == ifu:
                        x, y, charge = (get_column(path, hdu, column) for column in _COSMICS)
                        return (y - 1) * np.int32(NX) + (x - 1), charge.astype(np.float32)
            raise InputError(f"{path}: there is no table of IFU {ifu}")
        from .detector import Detector

        frame = Detector(ifu).expose(None, exposure.plan.exptime, (self.seed, exposure.plan.index))
        return frame.cosmic_pixels, frame.cosmic_charge

    def sky(self, exposure: NightExposure) -> tuple[ref.SkyLines, ref.SkyContinuum]:
        """Lines and continuum of the sky in an exposure, on the ground and per arcsec2."""
        base = self.folder / FOLDER / archive_name(exposure.plan)
        paths = Path(f"{base}_SKY_LINES.fits"), Path(f"{base}_SKY_CONTINUUM.fits")
        if not all(path.exists() for path in paths):
            return _sky(exposure.plan)
        lines, _ = ref.read_sky_lines(paths[0])
        assert lines is not None
        return lines, ref.read_sky_continuum(paths[1])

    def offsets(self, *tags: str) -> list[dict[str, Any]]:
        """Errors of the pointings as the rows of an OFFSET_LIST (`musedask.io.tables.write_offset_list`).

        Parameters
        ----------
        *tags : str
            Raw types; default: OBJECT.
        """
        from .ephemeris import mjd_of

        return [
            {
                "date_obs": e.plan.date_obs,
                "mjd_obs": mjd_of(e.plan.date_obs),
                "ra_offset": e.plan.pointing_error[0] / 3600,
                "dec_offset": e.plan.pointing_error[1] / 3600,
            }
            for e in self.select(*(tags or ("OBJECT",)))
        ]

    # --- the scene

    def scene(
        self,
        exposure: NightExposure | None = None,
        *,
        fwhm: float | None = None,
        lsf_sigma: float | None = None,
        spaxel_area: float | None = None,
    ) -> tuple[SceneLike, float, float]:
        """A scene as it was seen in an exposure, and RA and DEC [deg] of its origin.

        Parameters
        ----------
        exposure : NightExposure, optional
            Default: the first OBJECT.
        fwhm : float, optional
            Width of the point-spread function [arcsec]; default: the seeing of the exposure.
        lsf_sigma : float, optional
            Width that the spectra are broadened with [Angstrom]; default: not at all.
        spaxel_area : float, optional
            [arcsec2]; default: that of the mode.

        Raises
        ------
        InputError
            If the exposure has no scene.
        """
        from . import atmosphere
        from .cubescene import CubeScene
        from .scene import Scene
        from .skylight import scene_centre

        if exposure is None:
            objects = self.select("OBJECT")
            if not objects:
                raise InputError(f"{self.folder}: there is no OBJECT exposure, say which exposure")
            exposure = objects[0]
        plan = exposure.plan
        scene = self.scenes.get(plan.scene)
        if scene is None:
            raise InputError(f"{exposure.path.name}: there is no scene {plan.scene!r} in it")
        sx, sy = self.instrument(exposure).mode.spaxel
        area = sx * sy if spaxel_area is None else spaxel_area
        ra, dec = scene_centre(scene, plan)
        if isinstance(scene, Scene):
            middle = atmosphere.mjd(plan.date_obs) + plan.exptime / 2 / 86400
            airmass = atmosphere.horizontal(plan.ra, plan.dec, middle).airmass
            scene = scene.observed(
                fwhm=fwhm if fwhm is not None else lambda w: atmosphere.seeing(w, airmass, plan.conditions),
                lsf_sigma=lsf_sigma,
                spaxel_area=area,
            )
        elif isinstance(scene, CubeScene):
            scene = scene.observed(spaxel_area=area)
        return scene, ra, dec

    def truth_source(
        self,
        like: str | os.PathLike[str] | fits.Header | WCS,
        wavelength: ArrayLike | None = None,
        shape: tuple[int, int] | None = None,
        *,
        exposure: NightExposure | None = None,
        fwhm: float | None = None,
        lsf_sigma: float | None = None,
    ) -> TruthCube:
        """The scene on a grid, without noise, evaluated piece by piece where it is read.

        Parameters
        ----------
        like : path-like, astropy.io.fits.Header or astropy.wcs.WCS
            A cube whose grid to take, the header of its data, or a celestial WCS.
        wavelength : array-like, shape (nz,), optional
            [Angstrom, air]; default: that of the cube.
        shape : (ny, nx), optional
            Default: that of the cube, header or WCS.
        exposure, fwhm, lsf_sigma
            See `scene`.

        Returns
        -------
        TruthCube
            [1e-20 erg/s/cm2/Angstrom per spaxel of the grid], above the atmosphere.

        Raises
        ------
        InputError
            If the grid has no size or no wavelengths.
        """
        from astropy.wcs import WCS
        from astropy.wcs.utils import proj_plane_pixel_area

        from ..io.cube_read import make_wcs, open_source, wavelength_axis

        header, primary = fits.Header(), fits.Header()
        if isinstance(like, str | os.PathLike):
            source = open_source(like)
            header, primary = source.data.copy(), source.primary.copy()
            wcs = make_wcs(primary, header, source.shape)
            shape = shape or (source.shape[1], source.shape[2])
            wavelength = source.wavelength if wavelength is None else wavelength
        elif isinstance(like, fits.Header):
            header = like.copy()
            shape = shape or (header["NAXIS2"], header["NAXIS1"])
            wcs = WCS(header)
            if wavelength is None and "CTYPE3" in header and header.get("NAXIS3"):
                wavelength, _ = wavelength_axis(header, header["NAXIS3"], "header")
        else:
            wcs = like
        celestial = wcs.celestial
        if shape is None and celestial.pixel_shape is not None:
            shape = (celestial.pixel_shape[1], celestial.pixel_shape[0])
        if shape is None or wavelength is None:
            raise InputError("truth: the grid has no size or no wavelengths, give shape=(ny, nx) and wavelength")
        waves = np.atleast_1d(np.asarray(wavelength, np.float64))
        area = float(proj_plane_pixel_area(celestial)) * 3600.0**2
        scene, ra, dec = self.scene(exposure, fwhm=fwhm, lsf_sigma=lsf_sigma, spaxel_area=area)
        cards = _grid_cards(celestial, waves)
        return TruthCube(scene, ra, dec, celestial, waves, (len(waves), *shape), primary, cards)

    def truth_cube(self, like: Any, wavelength: ArrayLike | None = None, **options: Any) -> NDArray[np.float32]:
        """The scene on a grid as an array (nz, ny, nx); parameters as of `truth_source`."""
        source = self.truth_source(like, wavelength, **options)
        return source.read("flux", (slice(None), slice(None), slice(None)))

    def write_truth_cube(
        self,
        path: str | os.PathLike[str],
        like: Any,
        wavelength: ArrayLike | None = None,
        *,
        overwrite: bool = False,
        **options: Any,
    ) -> Path:
        """Write the scene on a grid to FITS, or to Zarr if `path` ends in ``.zarr``, in bounded memory.

        `musedask.open_cube` reads it.  Parameters as of `truth_source`.

        Raises
        ------
        InputError
            If the wavelengths are not evenly spaced.
        OutputExistsError, PlanError
            If the file exists, or the disk is full.
        """
        from ..io.cube_write import cube_to_fits, cube_to_zarr

        source = self.truth_source(like, wavelength, **options)
        steps = np.diff(source.wavelength)
        if len(steps) and not np.allclose(steps, steps.mean(), rtol=1e-6, atol=1e-4):
            raise InputError("truth: the wavelengths are not evenly spaced, such a cube has no header")
        path = Path(path)
        if path.suffix == ".zarr":
            cube_to_zarr(source, path, overwrite=overwrite)
        else:
            cube_to_fits(source, path, overwrite=overwrite, datamd5=False)
        return path


def _grid_cards(celestial: WCS, wave: NDArray[np.float64]) -> fits.Header:
    """Cards of the data of a cube on a grid."""
    matrix = celestial.pixel_scale_matrix
    header = fits.Header([("WCSAXES", 3)])
    for i in (1, 2):
        header[f"CTYPE{i}"] = celestial.wcs.ctype[i - 1]
        header[f"CUNIT{i}"] = "deg"
        header[f"CRPIX{i}"] = float(celestial.wcs.crpix[i - 1])
        header[f"CRVAL{i}"] = float(celestial.wcs.crval[i - 1])
        for j in (1, 2):
            header[f"CD{i}_{j}"] = float(matrix[i - 1, j - 1])
    step = float((wave[-1] - wave[0]) / (len(wave) - 1)) if len(wave) > 1 else 1.25
    for keyword, value in (
        ("CTYPE3", "AWAV"), ("CUNIT3", "Angstrom"), ("CRPIX3", 1.0), ("CRVAL3", float(wave[0])), ("CD3_3", step),
        ("CD1_3", 0.0), ("CD2_3", 0.0), ("CD3_1", 0.0), ("CD3_2", 0.0),
        ("BUNIT", "10**(-20)*erg/s/cm**2/Angstrom"),
    ):  # fmt: skip
        header[keyword] = value
    assert math.isfinite(step)
    return header
