"""Static calibrations of the simulated instrument, in the formats of the reference pipeline.

All of them are made here from published facts and from the truth of the instrument; where a number is from, is
said where it is.  A file of a kit of the reference that is missing is never copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError, OutputExistsError
from ..instrument import N_IFUS, N_SLICES
from ..io import calibrations as cal
from ..io import references as ref
from ..io.files import check_output
from ..io.muse_image import Mask, write_mask
from ..io.products import channel, product_header
from ..io.tables import Filter
from . import tables
from .fields import astrometric_field, source_table, standard_star
from .optics import NY, IfuOptics, Instrument
from .scene import Scene
from .spectra import STANDARDS

#: categories and names of their files; ``{}`` is the field mode or the mode without AO, as in the kit
FILES = {
    "LINE_CATALOG": "line_catalog.fits",
    "SKY_LINES": "sky_lines.fits",
    "RAMAN_LINES": "raman_lines.fits",
    "EXTINCT_TABLE": "extinct_table.fits",
    "TELLURIC_REGIONS": "telluric_regions.fits",
    "FILTER_LIST": "filter_list.fits",
    "STD_FLUX_TABLE": "std_flux_table.fits",
    "ASTROMETRY_REFERENCE": "astrometry_reference.fits",
    "ASTROMETRY_WCS": "astrometry_wcs_{}.fits",
    "GEOMETRY_TABLE": "geometry_table_{}.fits",
    "LSF_PROFILE": "lsf_profile_{}.fits",
    "BADPIX_TABLE": "badpix_table.fits",
    "VIGNETTING_MASK": "vignetting_mask.fits",
}
#: AB magnitude of Vega: Blanton & Roweis 2007, AJ 133, 734, table 1
_VEGA_AB = {
    "Johnson_V": 0.02, "Cousins_R": 0.21, "Cousins_I": 0.45, "SDSS_g": -0.08, "SDSS_r": 0.16, "SDSS_i": 0.37,
    "SDSS_z": 0.54,
}  # fmt: skip
#: flux density of AB = 0 [erg/s/cm2/Hz] (Oke & Gunn 1983, ApJ 266, 713) times the speed of light [Angstrom/s]
_AB_ZERO = 10 ** (-0.4 * 48.6) * 2.99792458e18
#: molecular bands [Angstrom] and limits of the continuum beside them.  Bands of O2 (gamma, B, A) and H2O from the
#: telluric spectrum shown by Smette et al. 2015 (A&A 576, A77), a little widened; the continuum is taken as far as
#: the next band or line of the standard stars
TELLURIC_BANDS = (
    (6270.0, 6330.0, 6200.0, 6400.0),
    (6860.0, 6970.0, 6740.0, 7120.0),
    (7155.0, 7345.0, 7050.0, 7560.0),
    (7585.0, 7710.0, 7460.0, 7840.0),
    (8120.0, 8350.0, 7900.0, 8600.0),
    (8930.0, 9040.0, 8850.0, 9080.0),
    (9260.0, 9790.0, 9070.0, 9262.0),
)
#: relative error of the fluxes of standard stars, as Bohlin, Gordon & Tremblay 2014 (PASP 126, 711) state it
_STD_ERROR = 0.01
#: half size of the vignetting mask [spaxels]
_MASK_HALF = 160


# --- parts of the instrument in the form of tables -------------------------------------------------


def geometry_table(instrument: Instrument, ifus: Iterable[int]) -> cal.GeometryTable:
    """Positions of all slices of some IFUs."""
    optics = [instrument.ifu(i) for i in ifus]
    numbers = np.repeat([o.ifu for o in optics], N_SLICES).astype(np.int32)
    ccd = np.tile(np.arange(1, N_SLICES + 1, dtype=np.int32), len(optics))

    def join(values: Callable[[IfuOptics], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([values(o) for o in optics])

    return cal.GeometryTable(
        numbers, ccd, join(lambda o: o.sky_slice).astype(np.int32), join(lambda o: o.x), join(lambda o: o.y),
        join(lambda o: o.angle), join(lambda o: o.width),
    )  # fmt: skip


def lsf_profile(optics: IfuOptics, n_wave: int = 30, n_offset: int = 150, limit: float = 7.5) -> cal.LsfProfile:
    """Line-spread functions as the reference measures them in arcs: averaged over the pixels.

    Parameters
    ----------
    optics : IfuOptics
    n_wave, n_offset : int
        Samples between 4650 and 9300 Angstrom, and within plus and minus `limit`; defaults as of muse_lsf.
    limit : float
        [Angstrom]

    Returns
    -------
    musedask.io.calibrations.LsfProfile
        A pixel of width p at distance d from a line has the fraction F(d + p/2) - F(d - p/2) of its light,
        F being the integral of the line-spread function; p is that in the middle of the slice.
    """
    step, wave_step = 2 * limit / (n_offset - 1), (9300.0 - 4650.0) / (n_wave - 1)
    profile = cal.LsfProfile(np.empty((N_SLICES, n_wave, n_offset), np.float32), -limit, step, 4650.0, wave_step)
    offset, wave = profile.offset, profile.wave[:, None]
    for s in range(1, N_SLICES + 1):
        x, _ = optics.middle(s)
        y = np.clip(optics.row(s, x, wave), 1.0, float(NY))
        pixel = optics.wavelength(s, x, y + 0.5) - optics.wavelength(s, x, y - 0.5)
        values = optics.lsf_integral(s, wave, offset + pixel / 2) - optics.lsf_integral(s, wave, offset - pixel / 2)
        profile.data[s - 1] = values / (values.sum(axis=1, keepdims=True) * step)
    return profile


def lsf_hdus(instrument: Instrument) -> list[fits.ImageHDU]:
    """Line-spread functions of all IFUs, for one file: the reference takes such a file only if it has all 24."""
    return [
        cal.lsf_hdu(lsf_profile(instrument.ifu(ifu)), f"{channel(ifu)}.LSF_PROFILE") for ifu in range(1, N_IFUS + 1)
    ]


def bad_pixels(ifu: int) -> cal.BadPixels:
    """Defects of the detector of an IFU."""
    from .detector import Detector

    bad = Detector(ifu).bad_pixels()
    status = np.asarray(bad["status"]).astype(np.uint32).view(np.int32)
    return cal.BadPixels(bad["x"].astype(np.int32), bad["y"].astype(np.int32), status, bad["value"].astype(np.float64))


def vignetting_mask(instrument: Instrument) -> Mask:
    """Where the field is vignetted: the corner at large X and small Y."""
    axis = np.arange(-_MASK_HALF, _MASK_HALF + 1)
    dark = instrument.vignetting(axis[None, :], axis[:, None]) < 0.999
    return Mask(dark.astype(np.int32), (1.0, 1.0), (float(-_MASK_HALF), float(-_MASK_HALF)))


def astrometric_solution(instrument: Instrument) -> ref.AstrometricSolution:
    """The true solution: no distortion, no rotation, and the pointing is in the middle of the field."""
    sx, sy = instrument.mode.spaxel
    return ref.AstrometricSolution((0.0, 0.0), ((-sx / 3600, 0.0), (0.0, sy / 3600)))


# --- tables of the world outside -------------------------------------------------------------------


def line_catalog() -> ref.LineCatalog:
    """Lines of the arc lamps, with the flux that muse_wavecal can compare with its detections.

    Wavelengths and qualities are those of `musedask.sim.lamps.arc_lines`, its source NIST's database; fluxes are
    electrons in a column of pixels in an exposure of usual length.
    """
    from .lamps import arc_lines

    lines = arc_lines()
    quality = np.asarray(lines["quality"], np.int32)
    wave, flux = np.asarray(lines["wave"], np.float64), np.asarray(lines["flux"], np.float64)
    # single precision of the file must not make two lines equal
    keep = np.append(True, np.diff(wave.astype(np.float32)) > 0)
    return ref.LineCatalog(wave[keep], flux[keep], np.asarray(lines["ion"], np.str_)[keep], quality[keep])


def _sky_lines(table: Any) -> ref.SkyLines:
    n = len(table)
    return ref.SkyLines(
        np.asarray(table["name"], np.str_), np.asarray(table["group"], np.int32), np.asarray(table["wave"], np.float64),
        np.asarray(table["flux"], np.float64), np.zeros(n, np.int32),
    )  # fmt: skip


def sky_lines() -> ref.SkyLines:
    """Lines of the night sky on an average night; source in `musedask.sim.atmosphere.sky_lines`."""
    from .atmosphere import sky_lines as table

    return _sky_lines(table())


def raman_lines() -> ref.SkyLines:
    """Raman lines of the sodium lasers; source in `musedask.sim.atmosphere.raman_lines`."""
    from .atmosphere import raman_lines as table

    return _sky_lines(table())


def extinct_table() -> ref.ExtinctionTable:
    """Extinction over Paranal; source in `musedask.sim.atmosphere.extinction`."""
    from .atmosphere import extinction

    wave = np.arange(3200.0, 10500.1, 20.0)
    return ref.ExtinctionTable(wave, np.asarray(extinction(wave), np.float64))


def telluric_regions() -> ref.TelluricRegions:
    """`TELLURIC_BANDS`."""
    return ref.TelluricRegions(*np.array(TELLURIC_BANDS).T)


def filters() -> list[Filter]:
    """Passbands of Johnson-Cousins V R I (Bessell 1990) and Sloan g r i z (Doi et al. 2010) with zero points.

    A magnitude is -2.5 log10 of the flux density [erg/s/cm2/Angstrom] minus the zero point, the flux density
    being the mean weighted with the curve, as the reference makes its images.  The AB zero point follows from
    the curve, that of Vega from Blanton & Roweis (2007).
    """
    table = tables.read("filters.txt")
    found = []
    for name in dict.fromkeys(table["filter"].tolist()):
        mine = table["filter"] == name
        wave, curve = (np.array(table[key][mine], np.float64) for key in ("wave", "throughput"))
        fine = np.arange(wave[0], wave[-1] + 0.5)
        weight = np.interp(fine, wave, curve)
        zero = -2.5 * np.log10(np.sum(weight * _AB_ZERO / fine**2) / weight.sum())
        vega = zero + _VEGA_AB[name] if name in _VEGA_AB else None
        found.append(Filter(name, wave, curve, vega, float(zero)))
    return found


def standard_fluxes(names: Iterable[str] | None = None) -> list[ref.StandardFlux]:
    """Spectra of standard stars; sources in `musedask.sim.spectra.STANDARDS`.

    Parameters
    ----------
    names : iterable of str, optional
        Default: all.

    Raises
    ------
    InputError
        If one is not known.
    """
    found = []
    for name in STANDARDS if names is None else names:
        star = standard_star(name)
        ra, dec = star.scene.ra, star.scene.dec
        assert ra is not None and dec is not None
        keep = (star.wave >= 3500) & (star.wave <= 10500)
        flux = star.flux[keep]
        found.append(ref.StandardFlux(star.name, ra, dec, star.wave[keep], flux, _STD_ERROR * flux))
    return found


def reference_field(scene: Scene) -> ref.ReferenceField:
    """Stars of a scene as reference of the astrometry.

    Raises
    ------
    InputError
        If the scene has no coordinates or no stars.
    """
    stars = source_table(scene)
    if scene.ra is None or scene.dec is None or not stars.name:
        raise InputError(f"scene {scene.name!r}: no stars with coordinates, not a field for astrometry")
    return ref.ReferenceField(
        scene.name or "field", scene.ra, scene.dec, np.array(stars.name, np.str_), stars.ra, stars.dec,
        np.full(len(stars.name), "AB7000"), stars.mag,
    )  # fmt: skip


# --- the set ---------------------------------------------------------------------------------------


def write_statics(
    folder: str | os.PathLike[str],
    *,
    mode: str = "WFM-NOAO-N",
    ifus: Iterable[int] = range(1, N_IFUS + 1),
    stars: Iterable[str] | None = None,
    fields: Sequence[Scene] | None = None,
    tags: Iterable[str] | None = None,
    vignetted: bool = True,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a set of static calibrations.

    Parameters
    ----------
    folder : path-like
        Made if it is missing.
    mode : str
        ``ESO INS MODE``.
    ifus : iterable of int
        IFUs of the tables that are about IFUs.
    stars : iterable of str, optional
        Standard stars; default: all that are known.
    fields : sequence of Scene, optional
        Fields of the astrometry, with coordinates; default: `musedask.sim.fields.astrometric_field`.
    tags : iterable of str, optional
        Categories to write, of `FILES`; default: all that the mode has.
    vignetted : bool
        Whether the instrument has a vignetted corner, as until March 2017: only then is there a VIGNETTING_MASK.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    dict of str to pathlib.Path
        Files by category.  LSF_PROFILE is one file, and always of all IFUs.

    Raises
    ------
    InputError
        If the mode, an IFU, a star or a category is unknown, or the folder cannot be written to.
    OutputExistsError
        If a file exists; then nothing is written.
    """
    instrument = Instrument(mode, vignetted=vignetted)
    numbers = sorted({int(i) for i in ifus})
    for ifu in numbers:
        channel(ifu)
    if not numbers:
        raise InputError(f"no IFU found, expected numbers from 1 to {N_IFUS}")
    wanted = list(FILES) if tags is None else list(tags)
    unknown = [tag for tag in wanted if tag not in FILES]
    if unknown:
        raise InputError(f"category {', '.join(unknown)} found, expected some of {', '.join(FILES)}")
    is_nfm = instrument.mode.is_nfm
    if tags is None:
        ao = "-AO" in instrument.mode.name
        skip = {"RAMAN_LINES": not ao, "VIGNETTING_MASK": is_nfm or not vignetted}
        wanted = [tag for tag in wanted if not skip.get(tag, False)]

    field_mode = "nfm" if is_nfm else "wfm"
    setting = {
        "ESO INS MODE": (instrument.mode.name, "Instrument mode"),
        "ESO INS OPTI2 NAME": (field_mode.upper(), "Field mode"),
        "ESO DET READ CURID": (1, "Used readout mode id"),
        "ESO DET READ CURNAME": ("SCI1.0", "Used readout mode name"),
    }

    def header(tag: str, *keys: str) -> fits.Header:
        return product_header(tag, cards={key: setting[key] for key in keys})

    def lsf(path: Path) -> None:
        hdus = lsf_hdus(instrument)
        headers = [header("LSF_PROFILE", *setting)] * len(hdus)
        cal.write_merged_tables(path, hdus, headers=headers, overwrite=overwrite)

    def reference(path: Path) -> None:
        regions = [reference_field(s) for s in (fields if fields is not None else [astrometric_field()])]
        ref.write_astrometry_reference(path, regions, overwrite=overwrite)

    def geometry(path: Path) -> None:
        table = geometry_table(instrument, numbers)
        keys = ("ESO INS MODE", "ESO INS OPTI2 NAME")
        cal.write_geometry_table(path, table, header=header("GEOMETRY_TABLE", *keys), overwrite=overwrite)

    def astrometry(path: Path) -> None:
        keys = ("ESO INS MODE", "ESO INS OPTI2 NAME")
        solution = astrometric_solution(instrument)
        ref.write_astrometry_wcs(path, solution, header=header("ASTROMETRY_WCS", *keys), overwrite=overwrite)

    writers: dict[str, Callable[[Path], Any]] = {
        "LINE_CATALOG": lambda p: ref.write_line_catalog(p, line_catalog(), overwrite=overwrite),
        "SKY_LINES": lambda p: ref.write_sky_lines(p, sky_lines(), overwrite=overwrite),
        "RAMAN_LINES": lambda p: ref.write_sky_lines(p, raman_lines(), tag="RAMAN_LINES", overwrite=overwrite),
        "EXTINCT_TABLE": lambda p: ref.write_extinct_table(p, extinct_table(), overwrite=overwrite),
        "TELLURIC_REGIONS": lambda p: ref.write_telluric_regions(p, telluric_regions(), overwrite=overwrite),
        "FILTER_LIST": lambda p: ref.write_filter_list(p, filters(), overwrite=overwrite),
        "STD_FLUX_TABLE": lambda p: ref.write_std_flux_table(p, standard_fluxes(stars), overwrite=overwrite),
        "ASTROMETRY_REFERENCE": reference,
        "ASTROMETRY_WCS": astrometry,
        "GEOMETRY_TABLE": geometry,
        "LSF_PROFILE": lsf,
        "BADPIX_TABLE": lambda p: cal.write_badpix_table(
            p, {i: bad_pixels(i) for i in numbers}, overwrite=overwrite
        ),
        "VIGNETTING_MASK": lambda p: write_mask(
            p, vignetting_mask(instrument), tag="VIGNETTING_MASK", overwrite=overwrite
        ),
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder: {error.strerror}") from error
    names = {"LSF_PROFILE": f"{field_mode}-{instrument.mode.name[-1].lower()}"}
    paths = {tag: folder / FILES[tag].format(names.get(tag, field_mode)) for tag in wanted}
    present = [str(path) for path in paths.values() if path.exists()]
    if present and not overwrite:
        raise OutputExistsError(
            f"{', '.join(present)}: exists already; give --overwrite (overwrite=True) to replace it"
        )
    for path in paths.values():
        check_output(path, overwrite=overwrite)
    for tag, path in paths.items():
        writers[tag](path)
    return paths
