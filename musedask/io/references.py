"""Reference data in the formats of the reference pipeline: lines, spectra, curves, astrometry.

Each format has a small class that holds its columns as arrays, a function that writes it and one that
reads it.  Columns have the names, types, units and order of the files of the reference (DRS 2.8.7), of which
appendix A of its manual is a part; where more was needed, it was found by giving files to its recipes.
Wavelengths are those in air.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from .cards import header_bytes
from .files import atomic_path
from .headers import STRUCTURAL, append_cards, set_card
from .products import (
    ANGSTROM,
    Column,
    FloatArray,
    PathLike,
    columns_of,
    find_table,
    open_fits,
    product_header,
    read_as,
    same_length,
    write_tables,
)
from .tables import Filter

#: number that the header of a LINE_CATALOG must have
LINE_CATALOG_VERSION = 3
_FLUX = "erg/s/cm**2/Angstrom"
_LINE_FLUX = "10**(-20)*erg/(s cm^2 arcsec^2)"
_RESPONSE = "2.5*log10((count/s/Angstrom)/(erg/s/cm**2/Angstrom))"
#: degrees per spaxel of a perfect wide field: x runs to the west
_NOMINAL_CD = ((-0.2 / 3600, 0.0), (0.0, 0.2 / 3600))


# --- lines: LINE_CATALOG, SKY_LINES, RAMAN_LINES ---------------------------------------------------


@dataclass(frozen=True, eq=False)
class LineCatalog:
    """Lines of the arc lamps, ascending.

    Attributes
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom, air]
        The file has single precision.
    flux : ndarray of float64, shape (n,)
        Relative strength, of the order of counts.
    ion : ndarray of str, shape (n,)
        As ``NeI``; the lamp follows from its start: Hg and Cd are one lamp.
    quality : ndarray of int32, shape (n,)
        0 not seen, 1 for the identification of others only, 2 in a multiplet, 3 good, 5 bright and isolated.
    comment : ndarray of str, shape (n,), optional
    header : astropy.io.fits.Header
    """

    wave: FloatArray
    flux: FloatArray
    ion: NDArray[np.str_]
    quality: NDArray[np.int32]
    comment: NDArray[np.str_] | None = None
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    @property
    def lamp(self) -> NDArray[np.str_]:
        """Lamp of each line: Ne, Xe, HgCd, or empty."""
        lamps = {"Hg": "HgCd", "Cd": "HgCd", "Ne": "Ne", "Xe": "Xe"}
        return np.array([lamps.get(ion[:2], "") for ion in self.ion], np.str_)


_LINE_CATALOG = (
    Column("lambda", "E", ANGSTROM, "wave"),
    Column("flux", "E", "", "flux"),
    Column("ion", "A", "", "ion"),
    Column("quality", "J", "", "quality"),
    Column("comment", "A", "", "comment", optional=True),
)


def write_line_catalog(
    path: PathLike, catalog: LineCatalog, *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write a LINE_CATALOG of version 3.

    Parameters
    ----------
    path : path-like
    catalog : LineCatalog
    header : astropy.io.fits.Header, optional
        Primary header; default: the least that there must be.
    overwrite : bool

    Raises
    ------
    InputError
        If the wavelengths do not ascend.
    """
    same_length("LINE_CATALOG", catalog)
    if np.any(np.diff(catalog.wave) <= 0):
        raise InputError("LINE_CATALOG: the wavelengths do not ascend")
    header = product_header("LINE_CATALOG") if header is None else header.copy()
    header["VERSION"] = (LINE_CATALOG_VERSION, "Version of the line catalog format")
    return write_tables(path, header, [columns_of(_LINE_CATALOG, catalog)], overwrite)


def read_line_catalog(path: PathLike) -> LineCatalog:
    """Read a LINE_CATALOG.

    Raises
    ------
    InputError
        If the file or a column is missing, its version is not 3, or the wavelengths do not ascend.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, None, "LINE_CATALOG")
        version = header.get("VERSION")
        if version != LINE_CATALOG_VERSION:
            raise InputError(f"{path}: VERSION = {version!r} found, expected {LINE_CATALOG_VERSION}")
        catalog = read_as(LineCatalog, path, hdu, _LINE_CATALOG, header=header)
    if np.any(np.diff(catalog.wave) < 0):
        raise InputError(f"{path}: the wavelengths do not ascend")
    return catalog


@dataclass(frozen=True, eq=False)
class SkyLines:
    """Emission lines in groups whose lines keep their ratios.

    Attributes
    ----------
    name : ndarray of str, shape (n,)
    group : ndarray of int32, shape (n,)
    wave : ndarray of float64, shape (n,) [Angstrom, air]
    flux : ndarray of float64, shape (n,) [1e-20 erg/s/cm2/arcsec2]
    dq : ndarray of int32, shape (n,)
        Lines with a value above 0 are not to be used, says the manual; muse_scipost_subtract_sky 2.8.7 does.
    """

    name: NDArray[np.str_]
    group: NDArray[np.int32]
    wave: FloatArray
    flux: FloatArray
    dq: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class OhTransitions:
    """Transitions of OH, from which the reference computes lines of a gas of 200 K.

    Attributes
    ----------
    name : ndarray of str, shape (n,)
        As ``OH 8-3 P1e(22.5) 2``.
    wave : ndarray of float64, shape (n,) [Angstrom, air]
    v_u, v_l : ndarray of int32, shape (n,)
        Upper and lower vibrational level; the upper one makes the group.
    nu : ndarray of int32, shape (n,)
        Vibrational momentum.
    energy : ndarray of float64, shape (n,) [J]
        Of the upper level.
    momentum : ndarray of float64, shape (n,)
        J of the upper level.
    probability : ndarray of float64, shape (n,) [1/s]
        Einstein coefficient.
    """

    name: NDArray[np.str_]
    wave: FloatArray
    v_u: NDArray[np.int32]
    v_l: NDArray[np.int32]
    nu: NDArray[np.int32]
    energy: FloatArray
    momentum: FloatArray
    probability: FloatArray


_SKY_LINES = (
    Column("name", "A", "", "name"),
    Column("group", "J", "", "group"),
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("flux", "D", _LINE_FLUX, "flux"),
    Column("dq", "J", "", "dq"),
)
_OH_TRANSITIONS = (
    Column("name", "A", "", "name"),
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("v_u", "J", "", "v_u"),
    Column("v_l", "J", "", "v_l"),
    Column("nu", "J", "", "nu"),
    Column("E_u", "D", "J", "energy"),
    Column("J_u", "D", "", "momentum"),
    Column("A", "D", "", "probability"),
)


def write_sky_lines(
    path: PathLike,
    lines: SkyLines | None,
    transitions: OhTransitions | None = None,
    *,
    tag: str = "SKY_LINES",
    header: fits.Header | None = None,
    overwrite: bool = False,
) -> Path:
    """Write SKY_LINES or RAMAN_LINES.

    Parameters
    ----------
    path : path-like
    lines : SkyLines or None
        Extension ``LINES``.
    transitions : OhTransitions, optional
        Extension ``OH_TRANSITIONS``; what is in it must not be in `lines`.
    tag : {"SKY_LINES", "RAMAN_LINES"}
    header : astropy.io.fits.Header, optional
    overwrite : bool

    Raises
    ------
    InputError
        If there are neither lines nor transitions.
    """
    hdus = []
    if lines is not None:
        same_length(tag, lines)
        hdus.append(columns_of(_SKY_LINES, lines, "LINES"))
    if transitions is not None:
        same_length("OH_TRANSITIONS", transitions)
        hdus.append(columns_of(_OH_TRANSITIONS, transitions, "OH_TRANSITIONS"))
    if not hdus:
        raise InputError(f"{path}: {tag} need lines or transitions")
    return write_tables(path, header or product_header(tag), hdus, overwrite)


def read_sky_lines(path: PathLike) -> tuple[SkyLines | None, OhTransitions | None]:
    """Read SKY_LINES or RAMAN_LINES: lines and transitions; None for what is not in the file.

    Fluxes are brought to 1e-20 erg/s/cm2/arcsec2 also if the file has them without the power of ten.

    Raises
    ------
    InputError
        If the file has neither, a column is missing, or the unit of the fluxes is unknown.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        tables = {str(h.header.get("EXTNAME", "")).strip(): h for h in hdus[1:] if isinstance(h, fits.BinTableHDU)}
        lines, transitions = tables.get("LINES"), tables.get("OH_TRANSITIONS")
        if lines is None and transitions is None:
            raise InputError(f"{path}: there is neither LINES nor OH_TRANSITIONS")
        read = None
        if lines is not None:
            read = read_as(SkyLines, path, lines, _SKY_LINES)
            unit = str(lines.columns["flux"].unit or "").strip()
            if unit == _LINE_FLUX.removeprefix("10**(-20)*"):
                read.flux[:] *= 1e20
            elif unit != _LINE_FLUX:
                raise InputError(f"{path}[LINES]: unit {unit!r} of column flux found, expected {_LINE_FLUX}")
        oh = None if transitions is None else read_as(OhTransitions, path, transitions, _OH_TRANSITIONS)
        return read, oh


# --- SKY_CONTINUUM ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SkyContinuum:
    """Continuum of the sky.

    Attributes
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom]
    flux : ndarray of float64, shape (n,) [1e-20 erg/s/cm2/Angstrom/arcsec2]
        The column says ``erg/(s cm^2 arcsec^2)``, as that of the reference.
    """

    wave: FloatArray
    flux: FloatArray


_SKY_CONTINUUM = (
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("flux", "D", "erg/(s cm^2 arcsec^2)", "flux"),
)


def write_sky_continuum(
    path: PathLike, continuum: SkyContinuum, *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write a SKY_CONTINUUM; parameters as in `write_line_catalog`."""
    same_length("SKY_CONTINUUM", continuum)
    hdu = columns_of(_SKY_CONTINUUM, continuum, "CONTINUUM")
    return write_tables(path, header or product_header("SKY_CONTINUUM"), [hdu], overwrite)


def read_sky_continuum(path: PathLike) -> SkyContinuum:
    """Read a SKY_CONTINUUM; errors as in `musedask.io.calibrations.read_geometry_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, _ = find_table(hdus, path, None, "SKY_CONTINUUM")
        return read_as(SkyContinuum, path, hdu, _SKY_CONTINUUM)


# --- curves: EXTINCT_TABLE, STD_FLUX_TABLE, STD_RESPONSE, STD_TELLURIC, FILTER_LIST ------------------


@dataclass(frozen=True, eq=False)
class ExtinctionTable:
    """Extinction of the atmosphere.

    Attributes
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom]
    extinction : ndarray of float64, shape (n,) [mag/airmass]
    """

    wave: FloatArray
    extinction: FloatArray


_EXTINCTION = (
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("extinction", "D", "mag/airmass", "extinction"),
)


def write_extinct_table(
    path: PathLike, table: ExtinctionTable, *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write an EXTINCT_TABLE; parameters as in `write_line_catalog`."""
    same_length("EXTINCT_TABLE", table)
    return write_tables(path, header or product_header("EXTINCT_TABLE"), [columns_of(_EXTINCTION, table)], overwrite)


def read_extinct_table(path: PathLike) -> ExtinctionTable:
    """Read an EXTINCT_TABLE; errors as in `musedask.io.calibrations.read_geometry_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, _ = find_table(hdus, path, None, "EXTINCT_TABLE")
        return read_as(ExtinctionTable, path, hdu, _EXTINCTION)


@dataclass(frozen=True, eq=False)
class StandardFlux:
    """Spectrum of a standard star.

    Attributes
    ----------
    name : str
    ra, dec : float
        [deg]
    wave : ndarray of float64, shape (n,) [Angstrom, air]
    flux : ndarray of float64, shape (n,) [erg/s/cm2/Angstrom]
    error : ndarray of float64, shape (n,), optional [erg/s/cm2/Angstrom]
    """

    name: str
    ra: float
    dec: float
    wave: FloatArray
    flux: FloatArray
    error: FloatArray | None = None


_STD_FLUX = (
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("flux", "D", _FLUX, "flux"),
    Column("fluxerr", "D", _FLUX, "error", optional=True),
)


def write_std_flux_table(
    path: PathLike, stars: Sequence[StandardFlux], *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write a STD_FLUX_TABLE: one extension per star, found by its position."""
    hdus = []
    for star in stars:
        same_length(f"STD_FLUX_TABLE: {star.name}", star)
        hdus.append(_placed(columns_of(_STD_FLUX, star, star.name), star.ra, star.dec))
    return write_tables(path, header or product_header("STD_FLUX_TABLE"), hdus, overwrite)


def read_std_flux_table(path: PathLike) -> list[StandardFlux]:
    """Read all stars of a STD_FLUX_TABLE.

    Raises
    ------
    InputError
        If the file, a column or the position of a star is missing, or a unit is not that of the format.
    """
    path = Path(path)
    stars = []
    with open_fits(path) as hdus:
        for hdu, name, ra, dec in _placed_tables(hdus, path):
            for column, unit in (("lambda", ANGSTROM), ("flux", _FLUX)):
                found = str(hdu.columns[column].unit or "").strip() if column in hdu.columns.names else unit
                if found != unit:
                    raise InputError(f"{path}[{name}]: unit {found!r} of column {column} found, expected {unit}")
            stars.append(read_as(StandardFlux, path, hdu, _STD_FLUX, name=name, ra=ra, dec=dec))
    return stars


def _placed(hdu: fits.BinTableHDU, ra: float, dec: float) -> fits.BinTableHDU:
    hdu.header["RA"] = (float(ra), "[deg] Right ascension (J2000)")
    hdu.header["DEC"] = (float(dec), "[deg] Declination (J2000)")
    return hdu


def _placed_tables(hdus: fits.HDUList, path: Path) -> Iterator[tuple[fits.BinTableHDU, str, float, float]]:
    tables = [hdu for hdu in hdus[1:] if isinstance(hdu, fits.BinTableHDU)]
    if not tables:
        raise InputError(f"{path}: there is no table")
    for number, hdu in enumerate(tables, 1):
        name = str(hdu.header.get("EXTNAME", "")).strip() or str(number)
        ra, dec = hdu.header.get("RA"), hdu.header.get("DEC")
        if not isinstance(ra, int | float) or not isinstance(dec, int | float):
            raise InputError(f"{path}[{name}]: RA = {ra!r}, DEC = {dec!r} found, expected degrees")
        yield hdu, name, float(ra), float(dec)


@dataclass(frozen=True, eq=False)
class Response:
    """STD_RESPONSE: counts per energy, in magnitudes.

    Attributes
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom]
    response, error : ndarray of float64, shape (n,) [mag]
        2.5 log10 of (count/s/Angstrom) / (erg/s/cm2/Angstrom), and its error.
    response_unsmoothed, error_unsmoothed : ndarray of float64, shape (n,), optional
    throughput : ndarray of float64, shape (n,), optional
        Counts per photon on the primary mirror.
    flat_corrected : bool
        Whether it holds for data whose flat-field spectrum was put back (all data of DRS 2.x).
    header : astropy.io.fits.Header
    """

    wave: FloatArray
    response: FloatArray
    error: FloatArray
    response_unsmoothed: FloatArray | None = None
    error_unsmoothed: FloatArray | None = None
    throughput: FloatArray | None = None
    flat_corrected: bool = True
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_STD_RESPONSE = (
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("response", "D", _RESPONSE, "response"),
    Column("resperr", "D", _RESPONSE, "error"),
    Column("response_unsmoothed", "D", _RESPONSE, "response_unsmoothed", optional=True),
    Column("resperr_unsmoothed", "D", _RESPONSE, "error_unsmoothed", optional=True),
    Column("throughput", "D", "", "throughput", optional=True),
)
_FFCORR = "ESO DRS MUSE FLUX FFCORR"


def _with_flat(header: fits.Header, corrected: bool) -> fits.Header:
    """Say whether a curve is for data with the spectrum of the flat field; the reference asks for the card only."""
    header = header.copy()
    header.remove(_FFCORR, ignore_missing=True)
    if corrected:
        set_card(header, _FFCORR, True, "flat-field spectrum corrected")
    return header


def write_std_response(
    path: PathLike, response: Response, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a STD_RESPONSE; parameters as in `musedask.io.calibrations.write_trace_table`."""
    same_length("STD_RESPONSE", response)
    header = _with_flat(header, response.flat_corrected)
    return write_tables(path, header, [columns_of(_STD_RESPONSE, response)], overwrite)


def read_std_response(path: PathLike) -> Response:
    """Read a STD_RESPONSE; errors as in `musedask.io.calibrations.read_geometry_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, None, "STD_RESPONSE")
        flat = _FFCORR in header
        return read_as(Response, path, hdu, _STD_RESPONSE, flat_corrected=flat, header=header)


@dataclass(frozen=True, eq=False)
class Telluric:
    """STD_TELLURIC: transmission of the molecular bands at airmass 1.

    Attributes
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom]
    transmission, error : ndarray of float64, shape (n,)
    flat_corrected : bool
        See `Response`.
    header : astropy.io.fits.Header
    """

    wave: FloatArray
    transmission: FloatArray
    error: FloatArray
    flat_corrected: bool = True
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_STD_TELLURIC = (
    Column("lambda", "D", ANGSTROM, "wave"),
    Column("ftelluric", "D", "", "transmission"),
    Column("ftellerr", "D", "", "error"),
)


def write_std_telluric(
    path: PathLike, telluric: Telluric, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a STD_TELLURIC; parameters as in `musedask.io.calibrations.write_trace_table`."""
    same_length("STD_TELLURIC", telluric)
    header = _with_flat(header, telluric.flat_corrected)
    return write_tables(path, header, [columns_of(_STD_TELLURIC, telluric)], overwrite)


def read_std_telluric(path: PathLike) -> Telluric:
    """Read a STD_TELLURIC; errors as in `musedask.io.calibrations.read_geometry_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, header = find_table(hdus, path, None, "STD_TELLURIC")
        flat = _FFCORR in header
        return read_as(Telluric, path, hdu, _STD_TELLURIC, flat_corrected=flat, header=header)


@dataclass(frozen=True, eq=False)
class TelluricRegions:
    """Bands of telluric absorption and the ranges around them from which the continuum is taken.

    Attributes
    ----------
    low, high : ndarray of float64, shape (n,) [Angstrom]
        Limits of the bands.
    background_low, background_high : ndarray of float64, shape (n,) [Angstrom]
        Outer limits of the ranges of the continuum.
    """

    low: FloatArray
    high: FloatArray
    background_low: FloatArray
    background_high: FloatArray


_TELLURIC_REGIONS = (
    Column("lmin", "D", ANGSTROM, "low"),
    Column("lmax", "D", ANGSTROM, "high"),
    Column("bgmin", "D", ANGSTROM, "background_low"),
    Column("bgmax", "D", ANGSTROM, "background_high"),
)


def write_telluric_regions(
    path: PathLike, regions: TelluricRegions, *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write TELLURIC_REGIONS; parameters as in `write_line_catalog`."""
    same_length("TELLURIC_REGIONS", regions)
    header = header or product_header("TELLURIC_REGIONS")
    return write_tables(path, header, [columns_of(_TELLURIC_REGIONS, regions)], overwrite)


def read_telluric_regions(path: PathLike) -> TelluricRegions:
    """Read TELLURIC_REGIONS; errors as in `musedask.io.calibrations.read_geometry_table`."""
    path = Path(path)
    with open_fits(path) as hdus:
        hdu, _ = find_table(hdus, path, None, "TELLURIC_REGIONS")
        return read_as(TelluricRegions, path, hdu, _TELLURIC_REGIONS)


_FILTER = (Column("lambda", "D", ANGSTROM, "wave"), Column("throughput", "D", "", "throughput"))


def write_filter_list(
    path: PathLike, filters: Sequence[Filter], *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write a FILTER_LIST, which `musedask.io.tables.read_filter` reads: one extension per filter."""
    hdus = []
    for item in filters:
        hdu = columns_of(_FILTER, item, item.name)
        for key, value in (("ZP_VEGA", item.zp_vega), ("ZP_AB", item.zp_ab)):
            if value is not None:
                hdu.header[key] = (float(value), f"[mag] {key[3:]} zero point")
        hdus.append(hdu)
    return write_tables(path, header or product_header("FILTER_LIST"), hdus, overwrite)


# --- astrometry ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AstrometricSolution:
    """ASTROMETRY_WCS: scale, rotation and zero point of the field.

    Attributes
    ----------
    crpix : tuple of float
        Correction of the reference pixel [pix].
    cd : tuple of tuple of float
        CD1_1, CD1_2; CD2_1, CD2_2 [deg/pix].
    header : astropy.io.fits.Header
    """

    crpix: tuple[float, float] = (0.0, 0.0)
    cd: tuple[tuple[float, float], tuple[float, float]] = _NOMINAL_CD
    header: fits.Header = field(default_factory=fits.Header, repr=False, compare=False)


def write_astrometry_wcs(
    path: PathLike,
    solution: AstrometricSolution,
    *,
    header: fits.Header | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an ASTROMETRY_WCS, a file without data; parameters as in `write_line_catalog`."""
    path = Path(path)
    whole = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])
    header = product_header("ASTROMETRY_WCS") if header is None else header
    append_cards(whole, [[c.keyword, c.value, c.comment] for c in header.cards if not STRUCTURAL.match(c.keyword)])
    (cd11, cd12), (cd21, cd22) = solution.cd
    cards = (
        ("WCSAXES", 2), ("CRPIX1", float(solution.crpix[0])), ("CRPIX2", float(solution.crpix[1])),
        ("CD1_1", float(cd11)), ("CD1_2", float(cd12)), ("CD2_1", float(cd21)), ("CD2_2", float(cd22)),
        ("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CUNIT1", "deg"), ("CUNIT2", "deg"),
    )  # fmt: skip
    for keyword, value in cards:
        whole[keyword] = value
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(header_bytes(whole))
    return path


def read_astrometry_wcs(path: PathLike) -> AstrometricSolution:
    """Read an ASTROMETRY_WCS.

    Raises
    ------
    InputError
        If the file or an element of the matrix is missing.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        header = hdus[0].header.copy()
    missing = [k for k in ("CD1_1", "CD1_2", "CD2_1", "CD2_2") if not isinstance(header.get(k), int | float)]
    if missing:
        raise InputError(f"{path}: there is no {', '.join(missing)}; not an ASTROMETRY_WCS")
    cd = ((header["CD1_1"], header["CD1_2"]), (header["CD2_1"], header["CD2_2"]))
    return AstrometricSolution((header.get("CRPIX1", 0.0), header.get("CRPIX2", 0.0)), cd, header)


@dataclass(frozen=True, eq=False)
class ReferenceField:
    """Stars of an astrometric field.

    Attributes
    ----------
    name : str
    ra, dec : float
        Of the field [deg].
    source_id : ndarray of str, shape (n,)
    source_ra, source_dec : ndarray of float64, shape (n,) [deg]
    filter : ndarray of str, shape (n,)
    mag : ndarray of float64, shape (n,) [mag]
    """

    name: str
    ra: float
    dec: float
    source_id: NDArray[np.str_]
    source_ra: FloatArray
    source_dec: FloatArray
    filter: NDArray[np.str_]
    mag: FloatArray


_REFERENCE = (
    Column("SourceID", "A", "", "source_id"),
    Column("RA", "D", "deg", "source_ra"),
    Column("DEC", "D", "deg", "source_dec"),
    Column("filter", "A", "", "filter"),
    Column("mag", "D", "mag", "mag"),
)


def write_astrometry_reference(
    path: PathLike,
    regions: Sequence[ReferenceField],
    *,
    header: fits.Header | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an ASTROMETRY_REFERENCE: one extension per field, found by its position."""
    hdus = []
    for region in regions:
        same_length(f"ASTROMETRY_REFERENCE: {region.name}", region)
        hdus.append(_placed(columns_of(_REFERENCE, region, region.name), region.ra, region.dec))
    return write_tables(path, header or product_header("ASTROMETRY_REFERENCE"), hdus, overwrite)


def read_astrometry_reference(path: PathLike) -> list[ReferenceField]:
    """Read all fields of an ASTROMETRY_REFERENCE.

    Raises
    ------
    InputError
        If the file, a column or the position of a field is missing.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        return [
            read_as(ReferenceField, path, hdu, _REFERENCE, name=name, ra=ra, dec=dec)
            for hdu, name, ra, dec in _placed_tables(hdus, path)
        ]
