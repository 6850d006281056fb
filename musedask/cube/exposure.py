"""From input files to exposures: grouping, merging of IFUs, offsets and weights.

An exposure is all files with the same DATE-OBS, either one merged table or up to 24 tables
of single IFUs.  Exposures are ordered by DATE-OBS; the first is the reference for
positions, weights and the header of the product.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import N_IFUS, mode_from_name
from ..io.headers import PIXTABLE, remove_cards, set_card
from ..io.pixtable import PixtableFile, Stage, scan_pixtable

if TYPE_CHECKING:
    from ..io.tables import OffsetList

log = logging.getLogger("musedask")

_FLAT_GRID = np.arange(4150.0, 9800.0 + 0.625, 1.25)
#: keywords that are read wherever they occur
_NUMBERS = (
    *(f"{PIXTABLE} LIMITS {name} {side}" for name in ("X", "Y", "LAMBDA") for side in ("LOW", "HIGH")),
    *(f"CD{i}_{j}" for i in (1, 2) for j in (1, 2)),
    *(f"{key}{i}" for key in ("CRPIX", "CRVAL") for i in (1, 2)),
    "ESO INS DROT POSANG",
    "ESO DRS MUSE FLAT FLUX SKY",
    "ESO DRS MUSE FLAT FLUX LAMP",
)
#: flat-field spectra are kept that much beyond the range to which a table is cut [Angstrom]
_FLAT_MARGIN = 2.5
#: where the smoothing of flat-field spectra starts [Angstrom], found by running the reference
_FLAT_CUT_ON = {"WFM-NOAO-N": 4775.0, "WFM-AO-N": 4700.0, "NFM-AO-N": 4770.0}


@dataclass(frozen=True)
class Source:
    """One file of an exposure and what merging does to its rows.

    Attributes
    ----------
    table : PixtableFile
    scale : float
        Data are divided by this, variances by its square (flux level of the IFU).
    first_row : int
        Number of its first row within the exposure.
    """

    table: PixtableFile
    scale: float
    first_row: int


@dataclass(frozen=True)
class Exposure:
    """All tables of one DATE-OBS.

    Attributes
    ----------
    date_obs : str
    sources : tuple of Source
    header : astropy.io.fits.Header
        As after merging the IFUs.
    stage : {"pix", "rad", "deg"}
    flat : tuple of ndarray or None
        Averaged and smoothed flat-field spectrum to multiply with: wavelength, value.
    """

    date_obs: str
    sources: tuple[Source, ...]
    header: fits.Header = field(repr=False)
    stage: Stage
    flat: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of its first file, for messages."""
        return str(self.sources[0].table.path)

    @property
    def n_rows(self) -> int:
        """Rows of all its files."""
        last = self.sources[-1]
        return last.first_row + last.table.n_rows

    @property
    def has_weight(self) -> bool:
        """Whether its tables carry a weight column."""
        return all(s.table.has_weight for s in self.sources)


@dataclass(frozen=True)
class Placement:
    """What combining does to the rows of one exposure.

    Attributes
    ----------
    position : bool
        Whether rows are to be positioned (they are in native spherical coordinates).
    dec0 : float
        Declination of the reference point of this exposure [deg], after its offset.
    shift : tuple of float
        Reference point minus that of the first exposure, RA and DEC [deg].
    flux_scale : float
        Factor on the data.
    weight : float
        Constant weight, or -1 to keep the weight column.
    """

    position: bool
    dec0: float
    shift: tuple[float, float]
    flux_scale: float
    weight: float


def group_exposures(
    paths: Iterable[str | os.PathLike[str]],
    *,
    need_date: bool = True,
    wave_range: tuple[float, float] = (-math.inf, math.inf),
    merge_one: bool = True,
) -> list[Exposure]:
    """Scan pixel tables and group them into exposures, ordered by DATE-OBS.

    Parameters
    ----------
    paths : iterable of path-like
    need_date : bool
        Whether a table without DATE-OBS is an error; a single table may do without.
    wave_range : tuple of float
        Range to which the tables will be cut; it limits their flat-field spectra [Angstrom].
    merge_one : bool
        Whether a lone table of one IFU is treated as the merged table of an exposure: levels removed,
        flat-field spectrum applied.  ``muse_scipost_make_cube`` does not.

    Returns
    -------
    list of Exposure

    Raises
    ------
    InputError
        For files that are no pixel tables, lack DATE-OBS, or mix coordinate stages,
        units or instrument modes.
    """
    groups: dict[str, list[PixtableFile]] = {}
    seen: set[Path] = set()
    for path in paths:
        table = scan_pixtable(path)
        real = table.path.resolve()
        if real in seen:
            raise InputError(f"{path}: given twice")
        seen.add(real)
        if table.n_rows == 0:
            raise InputError(f"{path}: the pixel table has no rows")
        for key in _NUMBERS:
            optional(table.header, key, 0.0, str(path))
        if "DATE-OBS" not in table.header and need_date:
            raise InputError(f"{path}: no keyword DATE-OBS, which tells exposures apart")
        groups.setdefault(str(table.header.get("DATE-OBS", "")), []).append(table)
    if not groups:
        raise InputError("no pixel tables given")
    if not merge_one and len(seen) == 1:
        ((date, (table,)),) = groups.items()
        return [Exposure(date, (Source(table, 1.0, 0),), _clean(table.header), table.stage)]
    exposures = [_merge(date, groups[date], wave_range) for date in sorted(groups)]
    _check_consistent(exposures)
    return exposures


def _check_consistent(exposures: Sequence[Exposure]) -> None:
    first = exposures[0]

    def describe(e: Exposure) -> dict[str, Any]:
        mode = str(e.header.get("ESO INS MODE", ""))
        return {
            "coordinate stage": e.stage,
            "instrument mode": "NFM" if mode_from_name(mode).is_nfm else "WFM",
            "data unit": e.sources[0].table.columns["data"].unit,
        }

    expected = describe(first)
    for exposure in exposures[1:]:
        for what, value in describe(exposure).items():
            if value != expected[what]:
                raise InputError(
                    f"{exposure.name}: {what} {value!r} found, but {expected[what]!r} in {first.name}; "
                    "they cannot be combined"
                )
        mode, mode0 = (str(e.header.get("ESO INS MODE", "")) for e in (exposure, first))
        if mode != mode0:
            log.warning("%s: instrument mode %s, but %s in %s", exposure.name, mode, mode0, first.name)


def _merge(date: str, tables: list[PixtableFile], wave_range: tuple[float, float]) -> Exposure:
    by_ifu: dict[int, PixtableFile] = {}
    for table in tables:
        if table.ifu in by_ifu:
            what = f"IFU {table.ifu}" if table.ifu else "a merged table"
            log.warning(
                "%s: ignored, %s of exposure %s is in %s already", table.path, what, date, by_ifu[table.ifu].path
            )
        else:
            by_ifu[table.ifu] = table
    if 0 in by_ifu:
        if len(by_ifu) > 1:
            log.warning("exposure %s: %s is merged, the tables of single IFUs are ignored", date, by_ifu[0].path)
        table = by_ifu[0]
        return Exposure(date, (Source(table, 1.0, 0),), _clean(table.header), table.stage)
    ordered = [by_ifu[i] for i in sorted(by_ifu)]
    first = ordered[0]
    keys = [f"ESO DRS MUSE FLAT FLUX {kind}" for kind in ("SKY", "LAMP")]
    header = _clean(first.header)
    if not any(key in first.header for key in keys):
        # the reference takes such a table as merged already
        if len(ordered) > 1:
            log.warning(
                "%s: no keyword '%s' or '%s': taken as already merged, %d other file(s) of exposure %s ignored",
                first.path, *keys, len(ordered) - 1, date,
            )  # fmt: skip
        return Exposure(date, (Source(first, 1.0, 0),), header, first.stage)
    missing = [i for i in range(1, N_IFUS + 1) if i not in by_ifu]
    if missing:
        log.warning("exposure %s: no table for IFU %s", date, ", ".join(map(str, missing)))
    for table in ordered:
        if table.stage != first.stage:
            raise InputError(f"{table.path}: in {table.stage}, but {first.path} in {first.stage}")
    sources = []
    row = 0
    for table in ordered:
        sources.append(Source(table, _flux_ratio(table.header, first.header, keys), row))
        row += table.n_rows
        for card in table.header.cards:
            if re.match(rf"{PIXTABLE} EXP\d+ IFU\d+ SLICE\d+ XOFFSET", card.keyword):
                set_card(header, card.keyword, card.value, card.comment)
    remove_cards(
        header, rf"EXTNAME$|ESO DET (CHIP|OUT\d*) |ESO DET2 |{PIXTABLE} ILLUM|ESO DRS MUSE FLAT FLUX (SKY|LAMP)"
    )
    set_card(header, f"{PIXTABLE} MERGED", len(ordered), "Merged IFUs that went into this pixel table")
    flats = [_cut_flat(table, wave_range) for table in ordered]
    flat = None
    if any(f is not None for f in flats):
        if any(f is None for f in flats):
            without = [str(t.path) for t, f in zip(ordered, flats, strict=True) if f is None]
            raise InputError(
                f"exposure {date}: only some IFUs have a flat-field spectrum; missing in {', '.join(without)}"
            )
        mode = str(header.get("ESO INS MODE", ""))
        flat = (_FLAT_GRID, average_flat([f for f in flats if f is not None], mode))
        set_card(header, f"{PIXTABLE} FFCORR", len(ordered), "Pixel table corrected for flat-field spectrum")
    return Exposure(date, tuple(sources), header, first.stage, flat)


def _clean(header: fits.Header) -> fits.Header:
    header = header.copy()
    remove_cards(header, r"ESO QC ")
    return header


def _flux_ratio(header: fits.Header, reference: fits.Header, keys: Sequence[str]) -> float:
    for key in keys:
        here, there = float(header.get(key, 0.0)), float(reference.get(key, 0.0))
        if here > 0 and there > 0:
            return here / there
    return 1.0


def needs_cut(header: fits.Header, wave_range: tuple[float, float]) -> bool:
    """Whether the reference would cut a table: not if its limits lie strictly inside the range."""
    low = header.get(f"{PIXTABLE} LIMITS LAMBDA LOW", 0.0)
    high = header.get(f"{PIXTABLE} LIMITS LAMBDA HIGH", math.inf)
    return not (np.float32(low) > wave_range[0] and np.float32(high) < wave_range[1])


def _cut_flat(
    table: PixtableFile, wave_range: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Flat-field spectrum of a table; if the table is to be cut, so is the spectrum, with a margin."""
    flat = table.read_flat_field()
    if flat is None or not needs_cut(table.header, wave_range):
        return flat
    wave, value = flat
    inside = (wave >= wave_range[0] - _FLAT_MARGIN) & (wave <= wave_range[1] + _FLAT_MARGIN)
    if inside.sum() < 2:
        raise InputError(
            f"{table.path}: its flat-field spectrum does not cover {wave_range[0]:g} to {wave_range[1]:g} Angstrom"
        )
    return wave[inside], value[inside]


def average_flat(
    spectra: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], mode: str
) -> NDArray[np.float64]:
    """Average flat-field spectra of IFUs and smooth the result.

    Each is interpolated to 4150..9800 Angstrom in steps of 1.25; the mean is smoothed by a
    cubic fitted within +-150 Angstrom of every point (3 sigma clipping), then by a sliding
    mean of 15 Angstrom half width whose window shrinks symmetrically at the ends.  Below the
    cut-on of the mode and in the gap of the sodium lasers it stays as it is.  Outside the range
    that all IFUs cover it is 0, and so the data become, as in the reference.

    Parameters
    ----------
    spectra : sequence of tuple
        Wavelength [Angstrom] and value, one per IFU.
    mode : str
        ``ESO INS MODE``.

    Returns
    -------
    ndarray, shape (4521,)
    """
    grid = _FLAT_GRID
    low, high = max(wave[0] for wave, _ in spectra), min(wave[-1] for wave, _ in spectra)
    # the reference finds no value at the first point itself
    inside = np.flatnonzero((grid > low) & (grid <= high))
    wave = grid[inside]
    mean = np.mean([np.interp(wave, *spectrum) for spectrum in spectra], axis=0)
    instrument = mode_from_name(mode)
    smooth = wave >= _FLAT_CUT_ON.get(instrument.name, 0.0)
    if instrument.notch is not None and not instrument.is_nfm:
        smooth &= (wave <= instrument.notch[0]) | (wave > instrument.notch[1])
    result = np.zeros_like(grid)
    result[inside] = mean
    chosen = np.flatnonzero(smooth)
    for piece in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1):
        if len(piece) > 1:
            result[inside[piece]] = smooth_piecewise(wave[piece], mean[piece])
    return result


def smooth_piecewise(
    wave: NDArray[np.float64], values: NDArray[np.float64], half_fit: float = 150.0, half_mean: float = 15.0
) -> NDArray[np.float64]:
    """Piecewise-cubic smoothing of a regularly sampled spectrum, see `average_flat`."""
    step = wave[1] - wave[0]
    reach = int(half_fit / step)
    n = len(values)
    fitted = np.empty_like(values)
    clip = np.ones(n, bool)
    # windows that are whole and have nothing to clip share one matrix
    if n > 2 * reach + 1:
        x = np.vander(np.arange(-reach, reach + 1) * step / half_fit, 4)
        windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1)
        coefficients = windows @ np.linalg.pinv(x).T
        residual = np.abs(windows - coefficients @ x.T)
        fitted[reach : n - reach] = coefficients[:, -1]
        limit = 3 * np.sqrt(np.mean(residual**2, axis=1))
        clip[reach : n - reach] = ~(residual.max(axis=1) < limit)
    for i in np.flatnonzero(clip):
        a, b = max(0, i - reach), min(n, i + reach + 1)
        x = (wave[a:b] - wave[i]) / half_fit
        y = values[a:b]
        good = np.isfinite(y)
        while True:
            cubic = np.linalg.lstsq(np.vander(x[good], 4), y[good], rcond=None)[0]
            residual = np.abs(y - np.polyval(cubic, x))
            rms = math.sqrt(float(np.mean(residual[good] ** 2)))
            keep = good & (residual < 3 * rms)
            if keep.sum() == good.sum() or keep.sum() < 5 or rms == 0:
                break
            good = keep
        fitted[i] = cubic[-1]
    total = np.concatenate([[0.0], np.cumsum(fitted)])
    index = np.arange(n)
    width = np.minimum(np.minimum(index, n - 1 - index), int(half_mean / step))
    return (total[index + width + 1] - total[index - width]) / (2 * width + 1)


# --------------------------------------------------------------------------- combination


def require(header: fits.Header, keyword: str, name: str) -> float:
    """A numeric keyword of an exposure.

    Raises
    ------
    InputError
        If it is missing or not a finite number.
    """
    if keyword not in header:
        raise InputError(f"{name}: no keyword {keyword}")
    return optional(header, keyword, 0.0, name)


def optional(header: fits.Header, keyword: str, default: float, name: str) -> float:
    """A numeric keyword of an exposure, or a default if it is missing.

    Raises
    ------
    InputError
        If it is not a finite number.
    """
    value = header.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name}: {keyword} = {value!r} found, expected a number")
    return float(value)


def weights(exposures: Sequence[Exposure], scheme: str) -> list[float]:
    """Weight of every exposure relative to the first, float32 values; -1 keeps the column.

    Parameters
    ----------
    exposures : sequence of Exposure
    scheme : {"exptime", "fwhm", "header", "none"}

    Raises
    ------
    InputError
        If EXPTIME of the first exposure is missing or zero, or if existing weights are to be kept
        and only some exposures have them.
    """
    if scheme == "none" and len({e.has_weight for e in exposures}) > 1:
        without = ", ".join(e.name for e in exposures if not e.has_weight)
        raise InputError(
            f"{without}: no column weight, which the other exposures have; weight=none keeps weights as they are"
        )
    if scheme == "none" or len(exposures) < 2:
        return [-1.0] * len(exposures)
    reference = require(exposures[0].header, "EXPTIME", exposures[0].name)
    if reference == 0:
        raise InputError(f"{exposures[0].name}: EXPTIME = 0, weights relative to it are undefined")
    times = [optional(e.header, "EXPTIME", 0.0, e.name) for e in exposures]
    for exposure, time in zip(exposures, times, strict=True):
        if time == 0:
            log.warning("%s: EXPTIME missing or 0, its weight is 0", exposure.name)
    result = [t / reference for t in times]
    if scheme == "fwhm":
        seeing = _seeing(exposures)
        if seeing is None:
            log.warning("no seeing in the headers of all exposures: weights by exposure time only")
        else:
            result = [w * seeing[0] / s for w, s in zip(result, seeing, strict=True)]
    elif scheme == "header":
        for i, exposure in enumerate(exposures):
            factor = optional(exposure.header, "ESO DRS MUSE WEIGHT", 0.0, exposure.name)
            if factor > 0:
                result[i] *= factor
            else:
                log.warning("%s: ESO DRS MUSE WEIGHT missing or not positive, taken as 1", exposure.name)
    return [float(np.float32(w)) for w in result]


def _seeing(exposures: Sequence[Exposure]) -> list[float] | None:
    estimators = (
        ("ESO OCS SGS AG FWHMX AVG", "ESO OCS SGS AG FWHMY AVG"),
        ("ESO TEL IA FWHM",),
        ("ESO TEL AMBI FWHM START", "ESO TEL AMBI FWHM END"),
    )
    for keys in estimators:
        values = [[optional(e.header, key, 0.0, e.name) for key in keys] for e in exposures]
        if all(v > 0 for row in values for v in row):
            return [sum(row) / len(row) for row in values]
    return None


def place(
    exposures: Sequence[Exposure], offsets: OffsetList | None, scheme: str
) -> tuple[list[Placement], fits.Header]:
    """Work out offsets, flux scales and weights, and the header of the combination.

    Parameters
    ----------
    exposures : sequence of Exposure
        In order; all projected (stage rad).
    offsets : OffsetList or None
    scheme : str
        See `weights`.

    Returns
    -------
    list of Placement, astropy.io.fits.Header
        The header is that of the first exposure with CRVAL, ``OFFSETi`` and ``PIXTABLE``
        cards as the reference writes them.

    Raises
    ------
    InputError
        If keywords are missing or the tables are not projected.
    """
    header = exposures[0].header.copy()
    if offsets is not None:
        matched = [offsets.find(e.date_obs) is not None for e in exposures]
        if not all(matched):
            names = [e.name for e, m in zip(exposures, matched, strict=True) if not m]
            log.warning(
                "OFFSET_LIST %s has NO ROW for %s of %d exposures, which are used without offset: %s",
                offsets.path, len(names) if any(matched) else "any", len(exposures), ", ".join(names),
            )  # fmt: skip
    many = len(exposures) > 1
    points = []
    scales = []
    for number, exposure in enumerate(exposures, 1):
        if exposure.stage != "rad":
            raise InputError(
                f"{exposure.name}: positions are in {exposure.stage}, expected rad (projected): "
                "tables can be combined before they are positioned"
            )
        if many and not 19 <= len(exposure.date_obs) <= 68:
            raise InputError(f"{exposure.name}: DATE-OBS = {exposure.date_obs!r} is no date and time")
        ra = require(exposure.header, "RA", exposure.name)
        dec = require(exposure.header, "DEC", exposure.name)
        scale = 1.0
        row = offsets.find(exposure.date_obs) if offsets is not None else None
        if row is not None:
            if row.has_position:
                ra -= row.ra
                dec -= row.dec
                prefix = f"ESO DRS MUSE OFFSET{number}"
                set_card(header, f"{prefix} DRA", row.ra, "[deg] RA offset applied")
                set_card(header, f"{prefix} DDEC", row.dec, "[deg] DEC offset applied")
            if row.has_flux_scale:
                scale = row.flux_scale
                set_card(header, f"ESO DRS MUSE FLUX SCALE{number}", scale, "flux scale applied")
            set_card(
                header,
                f"ESO DRS MUSE OFFSET{number} DATE-OBS",
                exposure.date_obs,
                f"DATE-OBS of exposure {number}",
            )
        points.append((ra, dec))
        scales.append(scale)
    ra1, dec1 = points[0]
    far = [e.name for e, (ra, _) in zip(exposures, points, strict=True) if abs(ra - ra1) > 180]
    if far:
        log.warning(
            "RA of %s is on the other side of 0 h than that of the first exposure: as in the reference, it falls "
            "outside the field of the others", ", ".join(far),
        )  # fmt: skip
    set_card(header, "CRVAL1", ra1)
    set_card(header, "CRVAL2", dec1)
    set_card(header, f"{PIXTABLE} WCS", "positioned (final)")
    if many:
        set_card(header, f"{PIXTABLE} COMBINED", len(exposures), "number of combined exposures")
        if scheme != "none":
            set_card(header, f"{PIXTABLE} WEIGHTED", True, "Pixel table was weighted relative to exposure time")
        if mode_from_name(str(header.get("ESO INS MODE", ""))).is_nfm:
            _combine_strehl(header, exposures)
    placements = [
        Placement(True, dec, (ra - ra1, dec - dec1), scale, weight)
        for (ra, dec), scale, weight in zip(points, scales, weights(exposures, scheme), strict=True)
    ]
    return placements, header


def _combine_strehl(header: fits.Header, exposures: Sequence[Exposure]) -> None:
    keys = ("ESO DRS MUSE RTC STREHL", "ESO DRS MUSE RTC STREHERR")
    pairs = [tuple(float(e.header.get(k, 0.0)) for k in keys) for e in exposures]
    valid = [(s, e) for s, e in pairs if s > 0 and e > 0]
    for key in keys:
        header.remove(key, ignore_missing=True)
    if valid:
        total = sum(1 / e**2 for _, e in valid)
        set_card(header, keys[0], sum(s / e**2 for s, e in valid) / total, "Weighted mean RTC Strehl ratio")
        set_card(header, keys[1], 1 / math.sqrt(total), "Error of the weighted mean RTC Strehl ratio")
