"""Native muse_flat: master flat, traces of the slices, pixels of odd sensitivity."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..errors import RecipeError
from ..instrument import DQ_BADOTHER, DQ_DARKPIXEL, DQ_HOTPIXEL, DQ_LOWQEPIXEL, DQ_SATURATED, N_SLICES
from ..io.calibrations import TraceTable
from ..io.headers import float32_card, set_card
from ..io.muse_image import MuseImage
from .basic import Series, load_series
from .combination import CombineParams
from .statistics import Statistics, image_statistics
from .task import Made, Task
from .tracing import mean_of_ranks, trace

log = logging.getLogger("musedask")

_FLAT, _TRACE = "ESO QC FLAT", "ESO QC TRACE"
#: a row of a slice begins and ends at a pixel that is not dark, if there is one that many pixels from its edges
SOFT_LEFT, SOFT_RIGHT = 10, 8
#: lower limit of good pixels where that from the scatter is not positive [count]
LEAST_LIMIT = 1e-4
#: fraction of the mean of the image below which a dark pixel has a low quantum efficiency
LOW_EFFICIENCY = 0.2
#: rows [pix] at which the reference evaluates traces: the middle and the last of a detector that is not binned
MIDDLE, LAST = 2056, 4112
#: columns of a detector [pix]
COLUMNS = 4096
#: rows above and below the middle in which the level of a slice is measured
LEVEL_ROWS = 100
#: the outermost slices of the field, and where they are
_CORNERS = {3: "bottom left", 10: "top left", 39: "bottom right", 46: "top right"}
#: IFU in which slices from a number on are vignetted, since the instrument is at the telescope
_VIGNETTED_IFU, _VIGNETTED_FROM, _VIGNETTED_SINCE = 24, 37, 2014


def muse_flat(task: Task) -> Iterator[Made]:
    """Combine raw flats of an IFU to a master flat, and trace the slices on it.

    Parameters
    ----------
    task : Task
        Of the recipe ``muse_flat``.

    Yields
    ------
    Made
        ``TRACE_TABLE``, ``TRACE_SAMPLES`` if asked for, ``MASTER_FLAT`` [count, or relative to its mean].

    Raises
    ------
    InputError
        If a file is damaged or does not fit the others.
    RecipeError
        If the slices are not found: then there is a master flat, in which no pixel has been searched.
    """
    values = task.values
    series = load_series(task, task.tagged("FLAT"), scale=values["scale"])
    tallies = [Tally(series, k) for k in range(len(series.frames))]
    image = series.combine(CombineParams.from_values(values), seen=partial(_add_rows, tallies))
    assert image.dq is not None and image.stat is not None
    header = image.header
    plain = header.copy()
    for k, frame in enumerate(series.frames):
        _put_statistics(header, f"INPUT{k + 1}", tallies[k].statistics(), "raw flat i in input list")
        set_card(
            header,
            f"{_FLAT} INPUT{k + 1} NSATURATED",
            frame.saturated,
            "Number of saturated pixels in raw flat i in input list",
        )
    del series, tallies
    level = image_statistics(image.data)
    _put_statistics(header, "MASTER", level, "the master flat before normalization")
    _put(
        header,
        f"{_FLAT} MASTER INTFLUX",
        level.mean * image.data.size,
        "Flux value, integrated over the whole master flat field before normalization",
    )
    failure: RecipeError | None = None
    if values["trace"]:
        try:
            traces, samples = trace(
                image.data,
                image.dq,
                border=image.data.shape[0] // 2,
                nsum=values["nsum"],
                order=values["order"],
                edgefrac=values["edgefrac"],
                fallback=_fallback(task.ifu, header),
            )
        except RecipeError as error:
            failure = error
        else:
            table_header = plain.copy()
            put_trace_quality(table_header, traces)
            yield Made("TRACE_TABLE", traces, table_header)
            if values["samples"]:
                yield Made("TRACE_SAMPLES", samples, plain)
            dark, low, hot, other = flag_pixels(
                image.data, image.dq, traces, level.mean, values["losigmabadpix"], values["hisigmabadpix"]
            )
            log.info(
                "%d dark pixels found (%d of them of low efficiency), %d bright and %d not positive",
                dark,
                low,
                hot,
                other,
            )
            _put_slice_levels(header, image.data, traces)
    saturated = int(np.count_nonzero(image.dq == DQ_SATURATED))
    set_card(header, f"{_FLAT} MASTER NSATURATED", saturated, "Number of saturated pixels in output data")
    if values["normalize"]:
        normalize(image, level.mean)
    yield Made("MASTER_FLAT", image, header)
    if failure is not None:
        raise failure


def _fallback(ifu: int | None, header: fits.Header) -> int | None:
    """First slice whose vignetted edges may stay as they are found first, see `musedask.calib.tracing.measure`."""
    year = str(header.get("DATE-OBS", ""))[:4]
    if ifu == _VIGNETTED_IFU and year.isdigit() and int(year) >= _VIGNETTED_SINCE:
        return _VIGNETTED_FROM
    return None


def normalize(image: MuseImage, mean: float) -> None:
    """Divide an image by its mean, in place; variances by its square.

    Parameters
    ----------
    image : MuseImage
    mean : float
        Is rounded to single precision, as it is in the header.
    """
    assert image.stat is not None
    _divide(image.data, image.stat, float(np.float32(mean)))


@njit(nogil=True, cache=True, error_model="numpy")
def _divide(data, stat, mean):  # type: ignore[no-untyped-def]
    square = mean * mean
    for j in range(data.shape[0]):
        a, b = data[j], stat[j]
        for i in range(a.size):
            a[i] = a[i] / mean
            b[i] = b[i] / square


# --- statistics of the input -----------------------------------------------------------------------

#: how many bands of rows, and of how many rows, tell where the median is about
_BANDS, _ROWS = 64, 2
#: per cent of the pixels of the sample below and above its median among which that of all is sought
_BRACKET = 3.0


class Tally:
    """Statistics of all pixels of a processed frame, which is never there as a whole.

    Parameters
    ----------
    series : Series
    k : int
        Number of the frame.
    """

    def __init__(self, series: Series, k: int) -> None:
        ny, nx = series.ccd.shape
        few = min(_ROWS, ny)
        stat, dq = np.empty((few, nx), np.float32), np.empty((few, nx), np.int32)
        sample = np.empty((_BANDS, few, nx), np.float32)
        for part, y in zip(sample, np.linspace(0, ny - few, _BANDS).astype(int), strict=True):
            series.rows(k, y, y + few, part, stat, dq)
        low, high = np.percentile(sample[..., ::4], (50.0 - _BRACKET, 50.0 + _BRACKET)).astype(np.float32)
        self._series, self._k, self._bracket = series, k, (low, high)
        self._start = float(sample.mean(dtype=np.float64))
        # sums about a value near the mean, of squares, number below, number between; least and largest
        self._sums, self._counts = np.zeros(2), np.zeros(2, np.int64)
        self._limits = np.array([np.inf, -np.inf], np.float32)
        self._between = np.empty(ny * nx // 8 + nx, np.float32)
        self._lock = threading.Lock()

    def add(self, data: NDArray[np.float32]) -> None:
        """Count rows of the frame, shape (any, nx); may be called by several threads."""
        with self._lock:
            _gather(data, self._start, *self._bracket, self._sums, self._counts, self._limits, self._between)

    def statistics(self) -> Statistics:
        """Those of `musedask.calib.statistics.image_statistics`, when all rows were counted."""
        ny, nx = self._series.ccd.shape
        total = ny * nx
        first, last = (total - 1) // 2 - self._counts[0], total // 2 - self._counts[0]
        if not (first >= 0 and last < self._counts[1] <= self._between.size):
            return image_statistics(self._series.image(self._k).data)
        middle = np.partition(self._between[: self._counts[1]], (first, last))
        median = 0.5 * (float(middle[first]) + float(middle[last]))
        variance = (self._sums[1] - self._sums[0] ** 2 / total) / max(total - 1, 1)
        return Statistics(
            median, self._start + self._sums[0] / total, math.sqrt(variance), *(float(v) for v in self._limits)
        )


def _add_rows(tallies: Sequence[Tally], rows: NDArray[np.float32]) -> None:
    for tally, own in zip(tallies, rows, strict=True):
        tally.add(own)


@njit(nogil=True, cache=True, error_model="numpy")
def _gather(data, start, low, high, sums, counts, limits, between):  # type: ignore[no-untyped-def]
    least, largest = limits[0], limits[1]
    below, n = counts[0], counts[1]
    for j in range(data.shape[0]):
        row = data[j]
        a = b = 0.0
        for i in range(row.size):
            v = row[i]
            least, largest = min(least, v), max(largest, v)
            d = v - start
            a += d
            b += d * d
        sums[0] += a
        sums[1] += b
        if n + row.size > between.size:
            # the bracket is not that of the median
            n = between.size + 1
            continue
        # without branches, which could not be foretold
        for i in range(row.size):
            v = row[i]
            below += v < low
            between[n] = v
            n += (v >= low) & (v <= high)
    limits[0], limits[1] = least, largest
    counts[0], counts[1] = below, n


# --- bad pixels ------------------------------------------------------------------------------------


def flag_pixels(
    data: NDArray[np.float32], dq: NDArray[np.int32], traces: TraceTable, mean: float, low: float, high: float
) -> tuple[int, int, int, int]:
    """Flag dark and bright pixels within the slices, and all that are not positive.

    Each row of a slice has limits from its median and median deviation.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)
        Flags are added: ``DARKPIXEL``, ``LOWQEPIXEL``, ``HOTPIXEL``, ``BADOTHER``.
    traces : TraceTable
    mean : float
        Of the image.
    low, high : float
        Limits in units of the median deviation.

    Returns
    -------
    dark, inefficient, bright, other : int
        Numbers of pixels found in the slices (those of low efficiency are dark, too), and of those that are
        not positive.
    """
    ny = data.shape[0]
    edges = np.empty((N_SLICES, 2, ny))
    rows = np.arange(1.0, ny + 1)
    for s in range(N_SLICES):
        edges[s] = traces.edges(s + 1, rows)
    counts = np.zeros(4, np.int64)
    _flag(data, dq, edges, LOW_EFFICIENCY * mean, low, high, counts)
    dark, inefficient, bright, other = (int(c) for c in counts)
    return dark, inefficient, bright, other


@njit(nogil=True, cache=True, error_model="numpy")
def _flag(data, dq, edges, inefficient, low, high, counts):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    values = np.empty(nx, np.float32)
    near = np.zeros((edges.shape[0], 2), np.float32)
    for j in range(ny):
        row, flags = data[j], dq[j]
        for s in range(edges.shape[0]):
            left, right = edges[s, 0, j], edges[s, 1, j]
            if not (left >= 1.0 and right <= nx and left <= right):
                continue
            first, last = math.ceil(left) - 1, math.floor(right) - 1
            part = row[first : last + 1]
            n = part.size
            if n < 1:
                continue
            # the median is near that of the row below, so few values are sorted; sums are faster than branches
            below = m = 0
            from_, to = near[s, 0], near[s, 1]
            for i in range(n):
                v = part[i]
                below += v < from_
                values[m] = v
                m += (v >= from_) & (v <= to)
            least = (n - 1) // 2
            if not (below <= least and n // 2 < below + m):
                below, m = 0, n
                values[:n] = part
            # in single precision, as the reference has them: it decides about pixels on the limit
            median = np.float32(mean_of_ranks(values, m, least - below, n // 2 - below))
            total = np.float32(0.0)
            for i in range(n):
                total += abs(part[i] - median)
            deviation = np.float64(total / np.float32(n))
            near[s, 0], near[s, 1] = median - 0.3 * deviation, median + 0.3 * deviation
            lower, upper = median - low * deviation, median + high * deviation
            if lower <= 0.0:
                lower = LEAST_LIMIT
            begin, end = first, last
            for i in range(min(SOFT_LEFT + 1, n)):
                if row[begin + i] > lower:
                    first = begin + i
                    break
            for i in range(min(SOFT_RIGHT + 1, n)):
                if row[end - i] > lower:
                    last = end - i
                    break
            for i in range(first, last + 1):
                v = row[i]
                if v < lower:
                    flags[i] |= DQ_DARKPIXEL
                    counts[0] += 1
                    if v < inefficient:
                        flags[i] |= DQ_LOWQEPIXEL
                        counts[1] += 1
                elif v > upper:
                    flags[i] |= DQ_HOTPIXEL
                    counts[2] += 1
        for i in range(nx):
            if row[i] <= 0.0:
                flags[i] |= DQ_BADOTHER
                counts[3] += 1


# --- quality control -------------------------------------------------------------------------------


def _put(header: fits.Header, keyword: str, value: float, comment: str) -> None:
    set_card(header, keyword, float32_card(value), comment)


def _put_statistics(header: fits.Header, name: str, found: Statistics, of: str) -> None:
    for key, what in (
        ("MEDIAN", "Median value"),
        ("MEAN", "Mean value"),
        ("STDEV", "Standard deviation"),
        ("MIN", "Minimum value"),
        ("MAX", "Maximum value"),
    ):
        _put(header, f"{_FLAT} {name} {key}", getattr(found, key.lower()), f"{what} of {of}")


def _put_slice_levels(header: fits.Header, data: NDArray[np.float32], traces: TraceTable) -> None:
    """Mean and scatter of each slice about the middle row; 0 if that is not on the image, as in the reference."""
    ny, nx = data.shape
    for s in range(1, N_SLICES + 1):
        left, right = (float(e) for e in traces.edges(s, MIDDLE))
        if not (math.isfinite(left) and math.isfinite(right)):
            continue
        first, last = math.floor(left + 0.5) + 1, math.floor(right + 0.5) - 1
        mean = stdev = 0.0
        if ny >= MIDDLE + LEVEL_ROWS and 1 <= first < last <= nx:
            found = image_statistics(data[MIDDLE - LEVEL_ROWS - 1 : MIDDLE + LEVEL_ROWS, first - 1 : last])
            mean, stdev = found.mean, found.stdev
        of = "around the vertical center of slice j before normalization"
        _put(header, f"{_FLAT} MASTER SLICE{s} MEAN", mean, f"Mean value {of}")
        _put(header, f"{_FLAT} MASTER SLICE{s} STDEV", stdev, f"Standard deviation {of}")


def put_trace_quality(header: fits.Header, traces: TraceTable) -> None:
    """Add the quality control of traces to a header: positions, slopes, widths, gaps.

    Parameters
    ----------
    header : astropy.io.fits.Header
    traces : TraceTable
        Slices that are NaN are left out.
    """
    rows = np.arange(1.0, LAST + 1)
    polynomial = np.polynomial.polynomial
    last_edge = math.nan
    gaps: list[float] = []
    for s in range(1, N_SLICES + 1):
        own = [c[s - 1] for c in (traces.centre, traces.left, traces.right)]
        if not np.isfinite(own).all():
            log.warning("slice %d: there is no trace", s)
            continue
        centre, left, right = (float(polynomial.polyval(MIDDLE, c)) for c in own)
        if not 1 <= centre <= COLUMNS:
            log.warning(
                "slice %d: its centre is %.1f at row %d, its edges %.1f and %.1f", s, centre, MIDDLE, left, right
            )
            continue
        if s in (1, N_SLICES):
            side, name = ("L", "leftmost") if s == 1 else ("R", "rightmost")
            ends = polynomial.polyval(np.array([1.0, LAST]), own[0])
            tilt = math.degrees(math.atan((ends[1] - ends[0]) / (LAST - 1)))
            _put(header, f"{_TRACE} SLICE_{side} XPOS", centre, f"[pix] Location of midpoint of {name} slice")
            _put(
                header,
                f"{_TRACE} SLICE_{side} TILT",
                tilt,
                f"[deg] Tilt of {name} slice, measured as angle from vertical direction",
            )
        slopes = np.concatenate([polynomial.polyval(rows, polynomial.polyder(c)) * np.ones_like(rows) for c in own])
        _put(
            header,
            f"{_TRACE} SLICE{s} MAXSLOPE",
            float(slopes[np.argmax(np.abs(slopes))]),
            "The maximum slope of the derived tracing functions of slice j within the CCD.",
        )
        if s in _CORNERS:
            _put(
                header,
                f"{_TRACE} SLICE{s} WIDTH",
                float(traces.width[s - 1]),
                f"[pix] Width of {_CORNERS[s]} slice in the IFU ({s} on CCD)",
            )
        if math.isfinite(last_edge):
            gaps.append(left - last_edge)
        last_edge = right
    # as they are in the table
    widths = traces.width[np.isfinite(traces.width)].astype(np.float32).astype(np.float64)
    texts = {
        "GAPS": ("Median of gaps", "Mean of gaps", "Standard deviation of gaps", "Minimum of gap", "Maximum gap"),
        "WIDTHS": ("Median width", "Mean width", "Standard deviation of widths", "Minimum width", "Maximum width"),
    }
    for name, numbers, end in (("GAPS", np.array(gaps), "between slices"), ("WIDTHS", widths, "of slices")):
        # zeros where there is nothing, as in the reference
        found: tuple[float, ...] = 5 * (0.0,)
        if len(numbers):
            stdev = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
            found = tuple(map(float, (np.median(numbers), numbers.mean(), stdev, numbers.min(), numbers.max())))
        for key, value, text in zip(("MEDIAN", "MEAN", "STDEV", "MIN", "MAX"), found, texts[name], strict=True):
            _put(header, f"{_TRACE} {name} {key}", value, f"[pix] {text} {end}")
