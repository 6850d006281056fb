"""Headers of the products: cubes and field-of-view images as the reference pipeline writes them.

The primary header of a product is that of the combined pixel table, over which the header of
the first raw file (in the order in which files were given) is laid: observation, telescope and
instrument cards and the processing history are those of that file, all others those of the
first exposure in time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from .._version import __version__
from ..io.headers import PIXTABLE, STRUCTURAL, Card, float32_card, set_card
from ..io.product_headers import (
    FROM_RAW,
    RAW_GROUPS,
    WCS_CARDS,
    card,
    hdu_cards,
    in_order,
    next_record,
    pro_cards,
    put_card,
    renamed,
    utc_now,
)
from ..recipe import Recipe
from .grid import Grid, wcs_cards

if TYPE_CHECKING:
    from ..io.cube_read import CubeSource

FLUX_UNIT = "10**(-20)*erg/s/cm**2/Angstrom"

#: cards of a pixel table that its products do not have
_DROPPED = re.compile(
    r"^(COMMENT|CONTINUE||HDRVER|ORIGFILE|EXTNAME|INHERIT|DATAMD5|BUNIT|HDUVERS|DATAMIN|DATAMAX|BLOCKED|"
    rf"ZIMAGE|ZHECKSUM|ZDATASUM|ZCMPTYPE|ZNAXIS\d*|{PIXTABLE} .*|ESO QC .*|ESO PRO .*|ESO DPR .*)$"
)
#: cards about extensions, which images do not keep either
_EXTENSION = re.compile(r"^(HDU.*|SCIDATA|ERRDATA|QUALDATA|QUALMASK|SPECSYS)$")

def _primary(
    table: fits.Header,
    raw: fits.Header,
    *,
    recipe: Recipe,
    values: Mapping[str, Any],
    raws: Sequence[tuple[str, str]],
    calibs: Sequence[tuple[str, str, str | None]],
    category: str,
    file_name: str,
    date: str,
) -> fits.Header:
    table, raw = renamed(table), renamed(raw)
    header = fits.Header()
    for c in table.cards:
        if STRUCTURAL.match(c.keyword) or _DROPPED.match(c.keyword) or WCS_CARDS.match(c.keyword):
            continue
        header.append(c, end=True)
    for c in raw.cards:
        if c.keyword == "EXPTIME" and "EXPTIME" in header:
            continue
        if c.keyword in (*FROM_RAW, "ARCFILE") or RAW_GROUPS.match(c.keyword):
            put_card(header, c.keyword, c.value, c.comment)
    put_card(header, "DATE", date, "file creation date (YYYY-MM-DDThh:mm:ss UT)")
    put_card(header, "PIPEFILE", file_name, "Filename of data product")
    if f"{PIXTABLE} FFCORR" in table:
        comment = "Data was flat-field spectrum corrected"
        put_card(header, "ESO DRS MUSE FLUX FFCORR", True, comment)
    _offset_comments(header)
    ancestor = raw.get("ESO PRO ANCESTOR", raw.get("ARCFILE"))
    if ancestor is not None:
        put_card(header, "ESO PRO ANCESTOR", ancestor)
    for c in pro_cards(recipe, values, raws, calibs, category, record=next_record(raw)):
        put_card(header, *c)
    return in_order(header)


def _offset_comments(header: fits.Header) -> None:
    for c in list(header.cards):
        match = re.match(r"ESO DRS MUSE (OFFSET(\d+) (DRA|DDEC|DATE-OBS)|FLUX SCALE\d+)$", c.keyword)
        if not match:
            continue
        if match[3] in ("DRA", "DDEC"):
            comment = f"[deg] (= {c.value * 3600:f} arcsec) {match[3][1:]} offset applied"
        elif match[3]:
            comment = f"offset {match[2]} applied to exposure of this DATE-OBS"
        else:
            comment = "flux scale factor applied"
        header.comments[c.keyword] = comment


def _extension(table: fits.Header, grid: Grid, kind: str, comment: str, unit: str) -> fits.Header:
    header = fits.Header()
    if "OBJECT" in table:
        put_card(header, "OBJECT", f"{table['OBJECT']} ({kind})", "")
    ours = {c[0]: c for c in wcs_cards(grid)}
    ours.pop("WCSAXES", None)
    if grid.celestial:
        for c in table.cards:
            # what the table says beyond the grid (errors, poles) holds for the cube as well
            if WCS_CARDS.match(c.keyword) and c.keyword != "WCSAXES":
                value = ours.pop(c.keyword)[1] if c.keyword in ours else c.value
                put_card(header, c.keyword, value, c.comment)
        # units that the table does not have are those of the standard
        for axis in (1, 2):
            ours.pop(f"CUNIT{axis}", None)
    for c in ours.values():
        put_card(header, c[0], c[1])
    put_card(header, "EXTNAME", kind, comment)
    for c in hdu_cards(kind):
        put_card(header, *c)
    put_card(header, "BUNIT", unit, "")
    return header


def product_headers(
    table_header: fits.Header,
    grid: Grid,
    *,
    recipe: Recipe,
    values: Mapping[str, Any],
    raws: Sequence[tuple[str, str]],
    calibs: Sequence[tuple[str, str, str | None]],
    units: tuple[str, str],
    raw_header: fits.Header | None = None,
    qc: Iterable[Card] = (),
    category: str = "DATACUBE_FINAL",
    file_name: str | None = None,
    date: str | None = None,
) -> tuple[fits.Header, fits.Header, fits.Header]:
    """Headers of the primary, DATA and STAT parts of a cube.

    Structural cards and ``DATAMD5``, ``CHECKSUM``, ``DATASUM`` are left to the writer.

    Parameters
    ----------
    table_header : astropy.io.fits.Header
        Header of the combined pixel table, see `exposure.place`.
    grid : Grid
        World coordinates of the cube.
    recipe : Recipe
        The recipe that is being run.
    values : mapping of str to object
        Resolved values of all its parameters.
    raws : sequence of (str, str)
        Names without folder and tags of the pixel tables, in the order in which they were given.
    calibs : sequence of (str, str, str or None)
        Names, tags and ``DATAMD5`` of the other files that were used.
    units : tuple of str
        Units of data and variances.
    raw_header : astropy.io.fits.Header, optional
        Primary header of the first of `raws`; by default the table's.
    qc : iterable of Card
        Quality-control cards, see `qc_fwhm`.
    category : str
        ``ESO PRO CATG``.
    file_name : str, optional
        ``PIPEFILE``; by default the category and ``.fits``.
    date : str, optional
        ``DATE``; by default now.

    Returns
    -------
    primary, data, stat : astropy.io.fits.Header
    """
    primary = _primary(
        table_header,
        table_header if raw_header is None else raw_header,
        recipe=recipe,
        values=values,
        raws=raws,
        calibs=calibs,
        category=category,
        file_name=f"{category}.fits" if file_name is None else file_name,
        date=date or utc_now(),
    )
    add_qc(primary, qc)
    data = _extension(table_header, grid, "DATA", "This extension contains data values", units[0])
    stat = _extension(table_header, grid, "STAT", "This extension contains data variance", units[1])
    return primary, data, stat


def table_header(
    table: fits.Header,
    *,
    recipe: Recipe,
    values: Mapping[str, Any],
    raws: Sequence[tuple[str, str]],
    calibs: Sequence[tuple[str, str, str | None]],
    category: str,
    file_name: str,
    raw_header: fits.Header | None = None,
    date: str | None = None,
) -> fits.Header:
    """Primary header of a pixel table, which keeps its world coordinates and its ``PIXTABLE`` cards.

    Parameters
    ----------
    table : astropy.io.fits.Header
        Header of the table, see `exposure.place`.
    recipe, values, raws, calibs, category, file_name, raw_header, date
        See `product_headers`.

    Returns
    -------
    astropy.io.fits.Header
    """
    header = _primary(
        table,
        table if raw_header is None else raw_header,
        recipe=recipe,
        values=values,
        raws=raws,
        calibs=calibs,
        category=category,
        file_name=file_name,
        date=date or utc_now(),
    )
    flat = "ESO DRS MUSE FLUX FFCORR"
    if flat not in table:
        # tables have a card of their own that says so
        header.remove(flat, ignore_missing=True)
    for c in renamed(table).cards:
        if WCS_CARDS.match(c.keyword) or c.keyword.startswith(f"{PIXTABLE} "):
            put_card(header, c.keyword, c.value, c.comment)
    return in_order(header)


def add_qc(primary: fits.Header, qc: Iterable[Card]) -> None:
    """Insert quality-control cards before those of ``ESO DRS MUSE``, where the reference has them."""
    cards = list(primary.cards)
    made = [card(keyword, value, comment) for keyword, value, comment in qc]
    place = next((i for i, c in enumerate(cards) if c.keyword.startswith("ESO DRS MUSE")), len(cards))
    primary.clear()
    # not by inserting: that renders cards, with warnings about long comments
    for c in cards[:place] + made + cards[place:]:
        primary.append(c, end=True)


def stat_unit(data_unit: str) -> str:
    """Unit of variances to a unit of data."""
    return f"({data_unit})**2"


@dataclass(frozen=True)
class FilterInfo:
    """What the header of a field-of-view image says about its filter.

    Attributes
    ----------
    name : str
    fraction : float
        Part of the curve that the cube covers [%].
    zp_vega, zp_ab : float or None
        Zero points [mag].
    """

    name: str
    fraction: float
    zp_vega: float | None = None
    zp_ab: float | None = None

    def cards(self) -> list[Card]:
        """The ``ESO DRS MUSE FILTER`` cards."""
        cards: list[Card] = [["ESO DRS MUSE FILTER NAME", self.name, "filter name used"]]
        if self.zp_vega is not None:
            cards.append(["ESO DRS MUSE FILTER ZPVEGA", self.zp_vega, "[mag] Vega-mag zeropoint"])
        if self.zp_ab is not None:
            cards.append(["ESO DRS MUSE FILTER ZPAB", self.zp_ab, "[mag] AB-mag zeropoint"])
        comment = "[%] fraction of filter covered by data"
        cards.append(["ESO DRS MUSE FILTER FRACTION", float32_card(self.fraction), comment])
        return cards


def _image_wcs(data: fits.Header) -> list[fits.Card]:
    """World coordinates of a plane of a cube."""
    third = re.compile(r"3$|^CD3_")
    return [c for c in data.cards if WCS_CARDS.match(c.keyword) and not third.search(c.keyword)]


def fov_header(primary: fits.Header, data: fits.Header, filter_cards: Iterable[Card]) -> fits.Header:
    """Header of a field-of-view image within an xCube, and in a Zarr store.

    Parameters
    ----------
    primary, data : astropy.io.fits.Header
        Of the cube.
    filter_cards : iterable of Card
        The ``ESO DRS MUSE FILTER`` cards, the first of which has the name; see `FilterInfo`.

    Returns
    -------
    astropy.io.fits.Header
    """
    filter_cards = list(filter_cards)
    name = filter_cards[0][1]
    header = fits.Header()
    if "OBJECT" in primary:
        put_card(header, "OBJECT", f"{primary['OBJECT']} ({name})", "")
    for c in _image_wcs(data):
        put_card(header, c.keyword, c.value, c.comment)
    put_card(header, "EXTNAME", name, "reconstructed image (data values)")
    for made in hdu_cards("IMAGE"):
        put_card(header, *made)
    put_card(header, "BUNIT", data.get("BUNIT", ""), "")
    for made in filter_cards:
        put_card(header, *made)
    return header


def image_headers(
    primary: fits.Header,
    data: fits.Header,
    filter_cards: Iterable[Card],
    number: int,
    *,
    category: str = "IMAGE_FOV",
) -> tuple[fits.Header, fits.Header]:
    """Headers of a field-of-view image that is a file of its own.

    Parameters
    ----------
    primary, data : astropy.io.fits.Header
        Of the cube.
    filter_cards : iterable of Card
        See `fov_header`.
    number : int
        Running number of the image, from 1.
    category : str
        ``ESO PRO CATG``.

    Returns
    -------
    primary, data : astropy.io.fits.Header
    """
    filter_cards = list(filter_cards)
    name = filter_cards[0][1]
    head = primary.copy()
    for keyword in {c.keyword for c in head.cards if _EXTENSION.match(c.keyword)}:
        head.remove(keyword, remove_all=True)
    if "OBJECT" in head:
        head["OBJECT"] = f"{head['OBJECT']} ({name})"
    head["PIPEFILE"] = f"{category}_{number:04d}.fits"
    set_card(head, "ESO PRO CATG", category)
    for made in filter_cards:
        put_card(head, *made)
    extension = fits.Header()
    for c in _image_wcs(data):
        put_card(extension, c.keyword, c.value, c.comment)
    put_card(extension, "INHERIT", True, "")
    put_card(extension, "EXTNAME", "DATA", "This extension contains data values")
    for made in hdu_cards("IMAGE"):
        put_card(extension, *made)
    put_card(extension, "BUNIT", data.get("BUNIT", ""), "")
    return head, extension


# --------------------------------------------------------------------------- quality control

#: prefixes of the cards of `qc_fwhm`; the reference gives none for muse_scipost_make_cube
_QC_PREFIX = {"muse_exp_combine": "ESO QC EXPCOMB", "muse_scipost": "ESO QC SCIPOST"}


def qc_prefix(recipe: Recipe) -> str | None:
    """Prefix of the quality-control cards of a recipe, None if it makes none."""
    return _QC_PREFIX.get(recipe.name)


@dataclass(frozen=True)
class Source:
    """A source in a plane.

    Attributes
    ----------
    x, y : int
        Pixel of its centroid, from 1.
    fwhm : tuple of float or None
        Full widths at half maximum along x and y [pix], None if one of them is undefined.
    """

    x: int
    y: int
    fwhm: tuple[float, float] | None


def find_sources(plane: NDArray[np.floating]) -> list[Source]:
    """Find sources in a plane as the reference does for its quality control.

    A source is a connected region (over edges, not corners) above the median plus 5 (if there is
    none: 4, then 3) times the mean absolute deviation from it, of which an opening with a square of
    3 x 3 pixels leaves something; pixels at the border do not count.  Missing values count as 0.

    Parameters
    ----------
    plane : ndarray of float, shape (ny, nx)
        NaN where there are no data.

    Returns
    -------
    list of Source
        By row, then column, of their first pixels.
    """
    from scipy import ndimage

    values = np.where(np.isfinite(plane), plane, 0).astype(np.float64)
    median = np.median(values)
    deviation = np.mean(np.abs(values - median))
    square = np.ones((3, 3), bool)
    n = 0
    for sigma in (5, 4, 3):
        mask = ndimage.binary_opening(values > median + sigma * deviation, square)
        mask[[0, -1]] = False
        mask[:, [0, -1]] = False
        labels, n = ndimage.label(mask)
        if n:
            break
    sources = []
    for box, number in zip(ndimage.find_objects(labels) if n else (), range(1, n + 1), strict=True):
        inside = labels[box] == number
        y, x = np.nonzero(inside)
        weight = values[box][inside]
        total = weight.sum()
        if total == 0:
            continue
        column = int(np.floor((weight * x).sum() / total + box[1].start + 0.5))
        row = int(np.floor((weight * y).sum() / total + box[0].start + 0.5))
        column, row = min(max(column, 0), plane.shape[1] - 1), min(max(row, 0), plane.shape[0] - 1)
        widths = (_full_width(values[row], column), _full_width(values[:, column], row))
        good = None if widths[0] is None or widths[1] is None else (widths[0], widths[1])
        sources.append(Source(column + 1, row + 1, good))
    return sources


def _full_width(profile: NDArray[np.float64], centre: int) -> float | None:
    """Full width at half maximum of a profile around a pixel; None if it never falls so low.

    The background is the mean of the first minima to the left and to the right of the centre,
    in means of three neighbouring pixels.
    """
    n = len(profile)
    padded = np.pad(profile, 1, mode="edge")
    means = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    start = centre
    if centre + 1 < n and means[centre + 1] > means[centre]:
        start = centre + 1
    elif centre > 0 and means[centre - 1] > means[centre]:
        start = centre - 1
    minima = []
    for step in (-1, 1):
        i = start
        while 0 <= i + step < n and means[i + step] < means[i]:
            i += step
        minima.append(means[i])
    half = (profile[centre] + sum(minima) / 2) / 2
    if not profile[centre] > half:
        return None
    ends = []
    for step in (-1, 1):
        i = centre
        while 0 <= i < n and profile[i] > half:
            i += step
        if not 0 <= i < n:
            return None
        before = profile[i - step]
        ends.append(i - step + step * (before - half) / (before - profile[i]))
    return float(ends[1] - ends[0])


def qc_fwhm(plane: NDArray[np.floating], grid: Grid, prefix: str) -> list[Card]:
    """Quality-control cards on the sources of the middle plane of a cube.

    Parameters
    ----------
    plane : ndarray of float32, shape (ny, nx)
        Plane ``nz // 2`` (from 0) of the whole cube, NaN where there are no data.
    grid : Grid
    prefix : str
        See `qc_prefix`.

    Returns
    -------
    list of Card
    """
    where = "in combined cube." if prefix.endswith("EXPCOMB") else "in final cube."
    # linear even if the axis is logarithmic
    wave = (grid.nz // 2 + 1 - grid.crpix3) * grid.cd33 + grid.crval3
    sources = find_sources(plane)
    cards: list[Card] = [
        [f"{prefix} LAMBDA", float32_card(wave), f"[Angstrom] Wavelength of plane {where}"],
        [f"{prefix} NDET", len(sources), f"Number of detected sources {where}"],
    ]

    def add(k: int, position: tuple[float, float], widths: tuple[float, float]) -> None:
        for what, unit, pair in (("POS", "pix", position), ("FWHM", "arcsec", widths)):
            text = "Position" if what == "POS" else "FWHM"
            for axis, value in zip("XY", pair, strict=True):
                comment = f"[{unit}] {text} of source k in {axis.lower()}-direction {where}"
                cards.append([f"{prefix} {what}{k} {axis}", float32_card(value), comment])

    if not sources:
        add(0, (-1.0, -1.0), (-1.0, -1.0))
        return cards
    cd11, cd12, cd21, cd22 = (3600 * abs(v) for v in grid.cd)
    valid: list[float] = []
    for k, source in enumerate(sources, 1):
        widths = (-1.0, -1.0)
        if source.fwhm is not None:
            fx, fy = source.fwhm
            wide = cd11 * fx + cd12 * fy
            # on a turned grid the reference takes the width in x that is in arcsec already
            widths = (wide, cd21 * wide + cd22 * fy)
            valid += widths
        add(k, (source.x, source.y), widths)
    median = mad = 0.0
    # three detections, be their widths valid or not
    if len(sources) >= 3 and valid:
        median = float(np.median(valid))
        mad = float(np.median(np.abs(np.array(valid) - median)))
    cards += [
        [f"{prefix} FWHM NVALID", len(valid) // 2, f"Number of detected sources with valid FWHM {where}"],
        [f"{prefix} FWHM MEDIAN", float32_card(median), "[arcsec] Median FWHM of all sources"],
        [f"{prefix} FWHM MAD", float32_card(mad), "[arcsec] Median absolute deviation of the FWHM"],
    ]
    return cards


# --------------------------------------------------------------------------- science data products

#: units of the ESO archive for those of the pixel tables, and what their numbers must be multiplied by
_SDP_UNITS = {
    FLUX_UNIT: "10**(-20)erg.s**(-1).cm**(-2).angstrom**(-1)",
    stat_unit(FLUX_UNIT): "10**(-40)erg**2.s**(-2).cm**(-4).angstrom**(-2)",
}
_FLUX_SCALE = 1e-20
#: resolving power in wide-field mode at wavelengths [Angstrom]
_RESOLVING_WAVE = (
    4650.0, 4810.3448, 4970.6897, 5131.0345, 5291.3793, 5451.7242, 5612.0690, 5772.4138, 5932.7587, 6093.1035,
    6253.4483, 6413.7932, 6574.1380, 6734.4828, 6894.8277, 7055.1725, 7215.5173, 7375.8622, 7536.2070, 7696.5518,
    7856.8967, 8017.2415, 8177.5863, 8337.9312, 8498.2760, 8658.6208, 8818.9657, 8979.3105, 9139.6553, 9300.0002,
)  # fmt: skip
_RESOLVING_POWER = (
    1674.77, 1769.45, 1864.50, 1959.52, 2054.19, 2148.34, 2241.81, 2334.46, 2426.18, 2516.84,
    2606.28, 2694.36, 2780.89, 2865.70, 2948.59, 3029.32, 3107.70, 3183.46, 3256.36, 3326.12,
    3392.45, 3455.01, 3513.44, 3567.37, 3616.34, 3659.87, 3697.42, 3728.38, 3752.11, 3767.93,
)  # fmt: skip
#: spaxels of an exposure that fills its field
_FIELD_WFM, _FIELD_NFM = 300.0**2, 297.2**2
#: resolution and its error [arcsec] where the headers do not tell
_SKY_WFM, _SKY_NFM = (0.853823, 0.495547), (0.15, 0.05)
#: loss of image size to the outer scale of turbulence, at 1 arcsec and 700 nm
_OUTER_SCALE = 0.3611061204843763


def spectral_resolution(wave: float, *, nfm: bool) -> float:
    """Resolving power of the instrument at a wavelength [Angstrom], as the reference interpolates it."""
    if nfm:
        return float(np.interp(wave, (4800.0, 9300.0), (1740.0, 3450.0)))
    return float(np.interp(wave, _RESOLVING_WAVE, _RESOLVING_POWER))


def sky_resolution(primary: fits.Header, exposures: Sequence[fits.Header]) -> tuple[float, float, bool]:
    """Effective spatial resolution.

    In wide-field mode from the seeing at the detector of the active optics (``ESO TEL IA FWHMLIN``),
    taken to the airmass of the exposure and to 700 nm with the outer scale of the turbulence, averaged
    with the exposure times; in narrow-field mode from the combined Strehl ratio.

    Parameters
    ----------
    primary : astropy.io.fits.Header
        Of the product.
    exposures : sequence of astropy.io.fits.Header

    Returns
    -------
    resolution, error : float
        [arcsec]
    measured : bool
        False if the error is a default.
    """
    from ..instrument import mode_from_name

    if mode_from_name(str(primary.get("ESO INS MODE", ""))).is_nfm:
        strehl = primary.get("ESO DRS MUSE RTC STREHL")
        if not isinstance(strehl, (int, float)):
            return *_SKY_NFM, False
        strehl = max(float(strehl), 1.0)
        factor, power = 0.81622807, -0.01941496
        slope = factor * power * strehl ** (power - 1)
        return factor * strehl**power - 0.71985411, float(np.hypot(0.01, slope)), True

    def number(header: fits.Header, keyword: str) -> float:
        value = header.get(keyword)
        return float(value) if isinstance(value, (int, float)) else float("nan")

    seeing: list[float] = []
    resolution, times = [], []
    measured = True
    for header in exposures:
        size = number(header, "ESO TEL IA FWHMLIN")
        airmass = (number(header, "ESO TEL AIRM START") + number(header, "ESO TEL AIRM END")) / 2
        ends = [number(header, f"ESO TEL AMBI FWHM {side}") for side in ("START", "END")]
        seeing += ends
        size *= airmass**0.6
        if np.isfinite(size) and size > 0:
            resolution.append(size * 1.4**-0.2 * float(np.sqrt(1 - _OUTER_SCALE * size**-0.356)))
        else:
            resolution.append(_SKY_WFM[0])
            measured = False
        times.append(float(header.get("EXPTIME", 0.0)))
    measured = measured and bool(np.isfinite(seeing).all()) and len(seeing) > 0
    total = sum(times)
    mean = float(np.average(resolution, weights=times)) if total > 0 else _SKY_WFM[0]
    error = float(np.hypot(0.3, (max(seeing) - min(seeing)) / 2)) if measured else _SKY_WFM[1]
    return mean, error, measured


def pixel_noise(source: CubeSource, memory_limit: int = 256 << 20) -> float:
    """Square root of the most frequent variance, in bins of 0.04 from 0 to 25 as in the reference.

    Variances beyond 25 do not count: for those of usual exposures, about 100, the result is the
    noise of some of the best voxels, or 0.14 if there are none.
    """
    from ..io.cube_write import band_step, iter_regions

    counts = np.zeros(625, np.int64)
    for region in iter_regions(source.shape, band_step(source, memory_limit // 4)):
        values = source.read("variance", region).reshape(-1)
        values = values[np.isfinite(values)].astype(np.float64)
        bins = np.floor(values[(values >= 0) & (values < 25)] / 0.04).astype(np.int64)
        counts += np.bincount(np.minimum(bins, 624), minlength=625)
    return float(np.sqrt(0.02 + 0.04 * int(counts.argmax())))


def mean_image(source: CubeSource, memory_limit: int = 256 << 20) -> NDArray[np.float32]:
    """Mean of all planes, spaxels without data are NaN."""
    from ..io.cube_write import band_step, iter_regions

    total = np.zeros(source.shape[1:])
    count = np.zeros(source.shape[1:], np.int64)
    for region in iter_regions(source.shape, band_step(source, memory_limit // 8)):
        values = source.read("flux", region)
        for plane in values:
            good = np.isfinite(plane)
            total[region[1:]] += np.where(good, plane, 0)
            count[region[1:]] += good
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / np.where(count, count, np.nan)).astype(np.float32)


def limiting_magnitude(image: NDArray[np.floating], fwhm: float, wave: float) -> float | None:
    """AB magnitude of a point source of five times the noise.

    The image is smoothed by a Gaussian of the width of point sources; the noise is that of the
    pixels below the mode of the smoothed values.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
        Flux density [1e-20 erg/s/cm2/Angstrom], NaN where there are no data.
    fwhm : float
        Width of point sources [pix].
    wave : float
        Pivot wavelength [Angstrom].

    Returns
    -------
    float or None
        None if the image has no noise.
    """
    from scipy import ndimage

    sigma = fwhm / np.sqrt(8 * np.log(2))
    half = int(fwhm)
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / 2 / sigma**2)
    kernel /= kernel.sum()
    good = np.isfinite(image)
    smooth = [
        ndimage.correlate1d(ndimage.correlate1d(part, kernel, axis=0), kernel, axis=1)
        for part in (np.where(good, image, 0.0).astype(np.float64), good.astype(np.float64))
    ]
    reached = smooth[1] > 1e-9
    values = np.sort(smooth[0][reached] / smooth[1][reached])
    if not len(values):
        return None
    to_sigma = 1.4826
    deviation = to_sigma * np.median(np.abs(values - np.median(values)))
    width = 2 * 3.49 * deviation / len(values) ** (1 / 3)
    if not width > 0:
        return None
    low = values[0] - width / 2
    n = int(np.ceil((values[-1] - values[0]) / width)) + 1
    histogram = np.bincount(np.floor((values - low) / width).astype(np.int64), minlength=n)
    top = int(histogram.argmax())
    before, most, after = (int(histogram[i]) if 0 <= i < n else 0 for i in (top - 1, top, top + 1))
    mode = low + width * (top + (most - before) / (2 * most - before - after))
    below = values[values < mode]
    if not len(below):
        return None
    # of the lower half of a Gaussian
    noise = to_sigma / np.sqrt(1 - 2 / np.pi) * np.median(np.abs(below - np.median(below)))
    if not noise > 0:
        return None
    zero = -2.5 * np.log10(_FLUX_SCALE * 3.34e4 * wave**2 / 3631)
    return float(zero - 2.5 * np.log10(5 * noise * 4 * np.pi * sigma**2))


def sdp_headers(
    headers: tuple[fits.Header, fits.Header, fits.Header],
    grid: Grid,
    exposures: Sequence[fits.Header],
    *,
    source: CubeSource,
    images: Mapping[str, NDArray[np.floating]],
    memory_limit: int = 256 << 20,
) -> tuple[fits.Header, fits.Header, fits.Header]:
    """Headers of a science data product of the ESO archive (``sdpCube``).

    Parameters
    ----------
    headers : tuple of astropy.io.fits.Header
        Primary, data and stat, see `product_headers`.
    grid : Grid
    exposures : sequence of astropy.io.fits.Header
        Headers of the exposures in order of time.
    source : CubeSource
        The finished cube; it is read twice.
    images : mapping of str to ndarray
        Field-of-view images by filter name, in order.
    memory_limit : int
        Bytes for the pieces of the cube.

    Returns
    -------
    primary, data, stat : astropy.io.fits.Header

    Notes
    -----
    The numbers are those of the reference, found by running it.  ``EXPTIME`` is the total time
    multiplied by the spaxels of a full field over those with data.  Cards of things that the
    headers of the exposures do not tell (``OBIDi``, ``PROG_ID``, ``PROVi``) are left out, the reference
    makes no product then.
    """
    from ..instrument import mode_from_name
    from . import geometry

    primary, data, stat = (h.copy() for h in headers)
    nfm = mode_from_name(str(primary.get("ESO INS MODE", ""))).is_nfm
    to_world = geometry.unproject_exact if grid.celestial else geometry.world_linear
    centre = to_world(grid.nx / 2, grid.ny / 2, grid.wcs_array())
    wave = grid.wavelengths()
    low, high = float(wave[0]), float(wave[-1])
    total = sum(float(h.get("EXPTIME", 0.0)) for h in exposures)
    n_spaxels = int(np.isfinite(next(iter(images.values()))).sum()) if images else 0
    per_pixel = total * (_FIELD_NFM if nfm else _FIELD_WFM) / n_spaxels if n_spaxels else 0.0
    sky, sky_error, measured = sky_resolution(primary, exposures)
    how = "measured" if measured else "default"
    calibrated = all(bool(h.get(f"{PIXTABLE} FLUXCAL", False)) for h in exposures)
    noise = pixel_noise(source, memory_limit)
    if data.get("BUNIT") in _SDP_UNITS:
        noise *= _FLUX_SCALE
    scale = 0.2
    if grid.celestial:
        scale = 3600 * max(float(np.hypot(*grid.cd[:2])), float(np.hypot(*grid.cd[2:])))
    depth = limiting_magnitude(mean_image(source, memory_limit), sky / scale, float(np.sqrt(low * high)))

    cards: list[Card] = [
        ["RA", centre[0], "[deg] Image center (J2000)"],
        ["DEC", centre[1], "[deg] Image center (J2000)"],
        ["EXPTIME", per_pixel, "[s] Total integration time per pixel"],
    ]
    if "MJD-OBS" in primary:
        cards.append(["MJD-OBS", primary["MJD-OBS"], "[d] Start of observations (days)"])
    if all("MJD-OBS" in h for h in exposures):
        end = max(float(h["MJD-OBS"]) + float(h.get("EXPTIME", 0.0)) / 86400 for h in exposures)
        cards.append(["MJD-END", end, "[d] End of observations (days)"])
    cards += [
        ["TEXPTIME", total, "[s] Total integration time of all exposures"],
        ["NCOMBINE", len(exposures), "No. of combined raw science data files"],
    ]
    for i, block in enumerate(sorted({h["ESO OBS ID"] for h in exposures if "ESO OBS ID" in h}), 1):
        cards.append([f"OBID{i}", block, "Observation block ID"])
    programmes = sorted({str(h["ESO OBS PROG ID"]) for h in exposures if "ESO OBS PROG ID" in h})
    if programmes:
        name = programmes[0] if len(programmes) == 1 else "MULTI"
        cards.append(["PROG_ID", name, "ESO programme identification"])
        if len(programmes) > 1:
            cards += [[f"PROGID{i}", p, "ESO programme identification"] for i, p in enumerate(programmes, 1)]
    origins = [h.get("ESO PRO ANCESTOR", h.get("ARCFILE")) for h in exposures]
    cards += [[f"PROV{i}", name, ""] for i, name in enumerate((o for o in origins if o is not None), 1)]
    cards += [[f"ASSON{i}", f"IMAGE_FOV_{i:04d}.fits", ""] for i in range(1, len(images) + 1)]
    cards += [
        ["PRODCATG", "SCIENCE.CUBE.IFS", "Data product category"],
        ["PROCSOFT", f"musedask/{__version__}", "Pipeline version"],
        ["OBSTECH", "IFU", "Technique for observation"],
        ["FLUXCAL", "ABSOLUTE" if calibrated else "UNCALIBRATED", "Type of flux calibration"],
        ["WAVELMIN", low / 10, "[nm] Minimum wavelength"],
        ["WAVELMAX", high / 10, "[nm] Maximum wavelength"],
        [
            "SPEC_RES",
            spectral_resolution((low + high) / 2, nfm=nfm),
            "Spectral resolving power at central wavelength",
        ],
        ["SKY_RES", sky, "[arcsec] FWHM effective spatial resolution"],
        ["SKY_RERR", sky_error, f"[arcsec] Error of SKY_RES ({how})"],
        ["PIXNOISE", noise, "[erg.s**(-1).cm**(-2).angstrom**(-1)] pixel-to-pixel noise"],
    ]
    if depth is not None:
        cards.append(["ABMAGLIM", depth, "5-sigma magnitude limit for point sources"])
    cards.append(["REFERENC", "", "Reference publication"])
    for made in cards:
        put_card(primary, *made)
    for header in (data, stat):
        unit = str(header.get("BUNIT", ""))
        put_card(header, "BUNIT", _SDP_UNITS.get(unit, unit))
        put_card(header, "CUNIT3", "angstrom")
        _put_after(header, "CRVAL3", "CRDER3", 0.026, "[angstrom] Random error in spectral coordinate")
        for axis in (2, 1):
            if f"CSYER{axis}" not in header:
                comment = "[deg] Systematic error in coordinate"
                _put_after(header, "CD3_2", f"CSYER{axis}", -1.0, comment)
    return in_order(primary), data, stat


def _put_after(header: fits.Header, place: str, keyword: str, value: Any, comment: str) -> None:
    cards = [c for c in header.cards if c.keyword != keyword]
    at = next((i for i, c in enumerate(cards, 1) if c.keyword == place), len(cards))
    header.clear()
    for c in [*cards[:at], card(keyword, value, comment), *cards[at:]]:
        header.append(c, end=True)


def sdp_image_headers(image: tuple[fits.Header, fits.Header]) -> tuple[fits.Header, fits.Header]:
    """Headers of a field-of-view image that belongs to a science data product.

    Parameters
    ----------
    image : tuple of astropy.io.fits.Header
        From `image_headers`, for the headers of the cube before `sdp_headers`.

    Returns
    -------
    primary, data : astropy.io.fits.Header
    """
    primary, data = (h.copy() for h in image)
    put_card(primary, "PRODCATG", "ANCILLARY.IMAGE", "Data product category")
    unit = str(data.get("BUNIT", ""))
    put_card(data, "BUNIT", _SDP_UNITS.get(unit, unit))
    return in_order(primary), data
