"""Small inputs and outputs: lists of offsets, filters, and the WCS of an output cube."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from ..errors import InputError
from .cards import card_bytes
from .files import atomic_path

log = logging.getLogger("musedask")

#: the filter that needs no file: 1 over the nominal range of the instrument
WHITE = "white"
#: characters of DATE-OBS that identify an exposure in a list of offsets
DATE_OBS_LENGTH = 23
_SPECTRAL_TYPES = ("AWAV", "AWAV-LOG", "WAVE", "WAVE-LOG")


# --- offsets -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offset:
    """One row of an OFFSET_LIST; what is not given is NaN.

    Attributes
    ----------
    date_obs : str
    ra, dec : float
        Header minus true coordinate [deg of coordinate, without a factor cos(DEC)].
    flux_scale : float
        Factor of the data.
    """

    date_obs: str
    ra: float
    dec: float
    flux_scale: float

    @property
    def has_position(self) -> bool:
        """Whether both offsets are numbers; otherwise neither is applied."""
        return bool(np.isfinite(self.ra) and np.isfinite(self.dec))

    @property
    def has_flux_scale(self) -> bool:
        """Whether the factor is a normal number (not 0, subnormal, infinite or NaN)."""
        return bool(np.isfinite(self.flux_scale) and abs(self.flux_scale) >= np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class OffsetList:
    """An OFFSET_LIST: offsets and flux scales of exposures."""

    path: Path
    rows: tuple[Offset, ...]

    def find(self, date_obs: str) -> Offset | None:
        """Find the first row of an exposure, by the first 23 characters of ``DATE-OBS``."""
        if not 19 <= len(date_obs) <= 68:
            log.warning("DATE-OBS = %r is no date: no offset is looked up for it", date_obs)
            return None
        wanted = date_obs[:DATE_OBS_LENGTH]
        return next((row for row in self.rows if row.date_obs[:DATE_OBS_LENGTH] == wanted), None)


def read_offset_list(path: str | os.PathLike[str]) -> OffsetList | None:
    """Read an OFFSET_LIST.

    Returns
    -------
    OffsetList or None
        None, after a warning, if the columns are not those of an OFFSET_LIST: as in the reference,
        no offsets are applied then.

    Raises
    ------
    InputError
        If the file is missing, not FITS, or has no table.
    """
    path = Path(path)
    with _open(path) as hdus:
        table = next((hdu for hdu in hdus[1:] if isinstance(hdu, fits.BinTableHDU)), None)
        if table is None:
            raise InputError(f"{path}: not an OFFSET_LIST: it has no table")
        codes = {column.name: str(column.format) for column in table.columns}
        wrong = [name for name in ("RA_OFFSET", "DEC_OFFSET") if codes.get(name, "").lstrip("1") != "D"]
        if not codes.get("DATE_OBS", "").endswith("A"):
            wrong.insert(0, "DATE_OBS")
        if codes.get("FLUX_SCALE", "D").lstrip("1") != "D":
            wrong.append("FLUX_SCALE")
        if wrong:
            log.warning(
                "%s: NO OFFSETS ARE APPLIED: column %s is missing or of a wrong type; an OFFSET_LIST has "
                "DATE_OBS (string), RA_OFFSET, DEC_OFFSET and optionally FLUX_SCALE (double)",
                path,
                ", ".join(wrong),
            )
            return None
        data = table.data
        n = len(data) if data is not None else 0
        scale = data["FLUX_SCALE"] if "FLUX_SCALE" in codes else np.full(n, np.nan)
        rows = tuple(
            Offset(
                str(data["DATE_OBS"][i]).rstrip(),
                float(data["RA_OFFSET"][i]),
                float(data["DEC_OFFSET"][i]),
                float(scale[i]),
            )
            for i in range(n)
        )
    return OffsetList(path, rows)


def write_offset_list(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *, overwrite: bool = False
) -> None:
    """Write an OFFSET_LIST.

    Parameters
    ----------
    path : path-like
    rows : sequence of mapping
        One per exposure, with the keys ``date_obs`` (str), ``mjd_obs`` [d], ``ra_offset`` and
        ``dec_offset`` [deg; header minus true coordinate, without a factor cos(DEC)], and
        ``flux_scale`` (the factor that data must be multiplied by; NaN or missing: none).
    overwrite : bool
        Whether an existing file may be replaced.
    """

    def column(key: str) -> np.ndarray:
        return np.array([row.get(key, np.nan) for row in rows], np.float64)

    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = ("MUSE", "Instrument used.")
    primary.header["HIERARCH ESO PRO CATG"] = ("OFFSET_LIST", "Category of pipeline product frame")
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("DATE_OBS", "23A", array=[str(row["date_obs"])[:23] for row in rows]),
            fits.Column("MJD_OBS", "1D", unit="s", array=column("mjd_obs")),
            fits.Column("RA_OFFSET", "1D", unit="deg", array=column("ra_offset")),
            fits.Column("DEC_OFFSET", "1D", unit="deg", array=column("dec_offset")),
            fits.Column("FLUX_SCALE", "1D", array=column("flux_scale")),
        ]
    )
    with atomic_path(path, overwrite=overwrite) as temporary:
        fits.HDUList([primary, table]).writeto(temporary, overwrite=True)


# --- filters -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Throughput curve of a filter.

    Attributes
    ----------
    name : str
    wave : ndarray of float64, shape (n,) [Angstrom]
        Ascending.
    throughput : ndarray of float64, shape (n,)
    zp_vega, zp_ab : float or None
        Zero points [mag], if known.
    """

    name: str
    wave: NDArray[np.float64] = field(repr=False)
    throughput: NDArray[np.float64] = field(repr=False)
    zp_vega: float | None = None
    zp_ab: float | None = None


def white_filter() -> Filter:
    """The filter that is 1 between 4650 and 9300 Angstrom."""
    return Filter(WHITE, np.array([4650 - 1e-5, 4650, 9300, 9300 + 1e-5]), np.array([0.0, 1.0, 1.0, 0.0]))


def box_filter(low: float, high: float) -> Filter:
    """A filter ``CUSTOM_<low>_<high>`` that is 1 between two wavelengths [Angstrom].

    Raises
    ------
    InputError
        If they are not finite and ascending.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"filter range {low} .. {high}: expected two ascending wavelengths")
    return Filter(f"CUSTOM_{low:.3f}_{high:.3f}", np.array([low, high], np.float64), np.ones(2))


def list_filters(path: str | os.PathLike[str] | None) -> list[str]:
    """Names of the filters of a FILTER_LIST in the order of the file.

    Raises
    ------
    InputError
        If the file is missing or not FITS.
    """
    if path is None:
        return []
    with _open(Path(path)) as hdus:
        return [
            str(hdu.header["EXTNAME"]).strip()
            for hdu in hdus[1:]
            if isinstance(hdu, fits.BinTableHDU) and "EXTNAME" in hdu.header
        ]


def read_filter(path: str | os.PathLike[str] | None, name: str) -> Filter | None:
    """Read one filter of a FILTER_LIST.

    Parameters
    ----------
    path : path-like or None
        The file; ``white`` needs none.
    name : str
        Name of the extension, ``white``, or ``none``.

    Returns
    -------
    Filter or None
        None for ``none``: no image is wanted.

    Raises
    ------
    InputError
        If the file, the filter or a column is missing, or the curve is unusable.
    """
    if name[:4].lower() == "none":
        return None
    if name == WHITE:
        return white_filter()
    if path is None:
        raise InputError(f"filter {name!r}: there is no FILTER_LIST; only {WHITE!r} needs none")
    path = Path(path)
    with _open(path) as hdus:
        for hdu in hdus[1:]:
            if isinstance(hdu, fits.BinTableHDU) and str(hdu.header.get("EXTNAME", "")).strip() == name:
                return _make_filter(f"{path}[{name}]", name, hdu)
        found = [str(hdu.header.get("EXTNAME", "")).strip() for hdu in hdus[1:]]
    raise InputError(f"{path}: there is no filter {name!r}; it has {', '.join(found) or 'none'}")


def _make_filter(label: str, name: str, hdu: fits.BinTableHDU) -> Filter:
    missing = [column for column in ("lambda", "throughput") if column not in hdu.columns.names]
    if missing:
        raise InputError(f"{label}: there is no column {', '.join(missing)}; not a filter")
    wave, throughput = (np.array(hdu.data[c], np.float64) for c in ("lambda", "throughput"))
    if len(wave) < 2 or not np.all(np.isfinite(wave)) or not np.all(np.isfinite(throughput)):
        raise InputError(f"{label}: expected at least two rows of finite numbers, found {len(wave)} rows")
    if np.any(np.diff(wave) < 0):
        raise InputError(f"{label}: the wavelengths are not ascending")
    points = [hdu.header.get(key) for key in ("ZP_VEGA", "ZP_AB")]
    vega, ab = (float(p) if isinstance(p, int | float) else None for p in points)
    return Filter(name, wave, throughput, vega, ab)


# --- WCS of an output cube ---------------------------------------------------------------------


@dataclass(frozen=True)
class OutputWcs:
    """What an OUTPUT_WCS file replaces in the output grid; None means: not replaced.

    Attributes
    ----------
    source : str
        File and HDU.
    n_axes : int
        2 or 3.
    nx, ny, nz : int
        Sizes, 0 if they are not given.
    crpix, crval : tuple of float
        Reference pixel and celestial coordinates [deg] of axes 1 and 2.
    cd : tuple of float or None
        CD1_1, CD1_2, CD2_1, CD2_2 [deg]; None, and `cd3_3` too, if the matrix is singular or the
        wavelength axis is tilted.
    ctype3 : str
        AWAV (also if there is no third axis), AWAV-LOG, WAVE or WAVE-LOG.
    crpix3, crval3, cd3_3 : float or None
        Third axis [Angstrom].
    """

    source: str
    n_axes: int
    nx: int
    ny: int
    nz: int
    crpix: tuple[float, float]
    crval: tuple[float, float]
    cd: tuple[float, float, float, float] | None
    ctype3: str = "AWAV"
    crpix3: float | None = None
    crval3: float | None = None
    cd3_3: float | None = None


def read_output_wcs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, strict: bool = False
) -> OutputWcs | None:
    """Read the output grid from the first usable header of OUTPUT_WCS files.

    Numbers go through WCSLIB as in the reference: wavelengths are converted to metres and back.  The
    rules were found by running the reference; unlike its manual says, it does see numbers that are
    written without a decimal point.

    Parameters
    ----------
    paths : path-like or iterable of path-like
    strict : bool
        Whether it is an error if no header fits.

    Returns
    -------
    OutputWcs or None
        None, after a warning, if no header fits: as in the reference, nothing is replaced then.

    Raises
    ------
    InputError
        If a file is missing or not FITS.
    """
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(p) for p in paths]
    reasons = []
    for path in files:
        # a header without its data will do
        with warnings.catch_warnings(action="ignore", category=AstropyUserWarning), _open(path) as hdus:
            try:
                for number, hdu in enumerate(hdus):
                    try:
                        return _parse_wcs(f"{path}[{number}]", hdu.header)
                    except InputError as error:
                        reasons.append(str(error))
            except OSError as error:
                reasons.append(f"{path}: cannot be read as FITS: {error}")
    if strict:
        raise InputError(f"no header that can be used as OUTPUT_WCS: {'; '.join(reasons) or 'no files'}")
    log.warning("THE OUTPUT_WCS IS IGNORED: no usable header: %s", "; ".join(reasons) or "no files")
    return None


_WCS_CARD = re.compile(r"^((CTYPE|CRVAL|CRPIX|CUNIT|CDELT)\d|CD\d_\d|LONPOLE|LATPOLE)$")


def _parse_wcs(label: str, header: fits.Header) -> OutputWcs:
    from astropy.wcs import SingularMatrixError, WcsError, Wcsprm

    # sizes count even where there are no data; a file may be a header alone
    n_sizes = sum(re.match(r"^NAXIS\d+$", key) is not None for key in header)
    n_axes = max(header["NAXIS"], header.get("WCSAXES", 0), n_sizes)
    if n_axes not in (2, 3) or any(f"NAXIS{i + 1}" not in header for i in range(n_axes)):
        raise InputError(f"{label}: {n_axes} axes found, expected 2 or 3 with their sizes, NAXISi")
    for i, expected in enumerate((("RA---TAN",), ("DEC--TAN",), _SPECTRAL_TYPES)[:n_axes], 1):
        ctype = str(header.get(f"CTYPE{i}", "")).strip()
        if ctype not in expected:
            raise InputError(f"{label}: CTYPE{i} = {ctype!r} found, expected {' or '.join(expected)}")
    if any(re.match(r"^PC\d+_\d+$", key) for key in header):
        raise InputError(f"{label}: a PCi_j matrix found, expected CDi_j")

    seen = fits.Header([("WCSAXES", n_axes)])
    for card in header.cards:
        if _WCS_CARD.match(card.keyword):
            if not card.keyword.startswith(("CTYPE", "CUNIT")) and not isinstance(card.value, int | float):
                raise InputError(f"{label}: {card.keyword} = {card.value!r} found, expected a number")
            seen[card.keyword] = card.value
    try:
        wcs = Wcsprm(card_bytes(seen))
        # units are converted first: a singular matrix fails later, and is only not used
        with suppress(SingularMatrixError):
            wcs.set()
    except (WcsError, ValueError) as error:
        raise InputError(f"{label}: {error}") from error

    has_cd = any(key.startswith("CD") and "_" in key for key in seen)
    cd = wcs.cd if has_cd else np.diag(wcs.cdelt)
    planar: tuple[float, float, float, float] | None
    planar = float(cd[0, 0]), float(cd[0, 1]), float(cd[1, 0]), float(cd[1, 1])
    tilted = n_axes == 3 and any(cd[i, j] != 0 for i, j in ((0, 2), (2, 0), (2, 1), (1, 2)))
    singular = planar[0] * planar[3] - planar[1] * planar[2] == 0 or (n_axes == 3 and cd[2, 2] == 0)
    if singular or tilted:
        log.warning("%s: ITS CD MATRIX IS NOT USED: it is %s", label, "tilted" if tilted else "singular")
        planar = None
    sizes = [int(header.get(f"NAXIS{i}", 0)) for i in (1, 2, 3)]
    return OutputWcs(
        label,
        n_axes,
        sizes[0],
        sizes[1],
        sizes[2] if n_axes == 3 else 0,
        (float(wcs.crpix[0]), float(wcs.crpix[1])),
        (float(wcs.crval[0]), float(wcs.crval[1])),
        planar,
        *(
            # WCSLIB works in metres; the way back is part of the reference's numbers
            (
                str(header["CTYPE3"]).strip(),
                float(wcs.crpix[2]),
                float(wcs.crval[2] * 1e10),
                None if planar is None else float(cd[2, 2] * 1e10),
            )
            if n_axes == 3
            else ()
        ),
    )


def _open(path: Path) -> fits.HDUList:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        return fits.open(path, memmap=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error
