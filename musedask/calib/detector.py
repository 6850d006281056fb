"""Steps on the raw image of a CCD: overscan, saturation, trimming, and the application of masters to rows.

Pure functions of arrays; "section" is a pair of slices, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_COSMICRAY, DQ_SATURATED

FloatArray = NDArray[np.float64]

#: raw values above this, or below `LOW_LIMIT`, are saturated [adu]
HIGH_LIMIT = 65500
LOW_LIMIT = 1
#: variance where none can be estimated
TINY = np.float32(1.17549435e-38)


# --- parameters ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverscanParams:
    """How the overscan is used.

    Attributes
    ----------
    method : str
        ``none``, ``offset`` or ``vpoly``.
    order : int
        Highest order of the polynomial.
    frms, fchisq : float
        Factors by which a higher order must improve the fit to be tried.
    reject : str
        ``none``, ``dcr`` or ``fit``.
    xbox, ybox, npass : int
    threshold : float
        Of the search for cosmic rays, and of ``fit``.
    sigma : float
        Limit of deviations, ``ovscsigma``.
    ignore : int
        Pixels next to the data that are left out.
    """

    method: str = "vpoly"
    order: int = 15
    frms: float = 1.00001
    fchisq: float = 1.00001
    reject: str = "dcr"
    xbox: int = 128
    ybox: int = 32
    npass: int = 3
    threshold: float = 2.5
    sigma: float = 30.0
    ignore: int = 3


def parse_overscan(overscan: str, reject: str, sigma: float, ignore: int) -> OverscanParams:
    """Understand the parameters ``overscan``, ``ovscreject``, ``ovscsigma`` and ``ovscignore``.

    Raises
    ------
    InputError
        If a method is unknown or its values are no numbers.
    """
    method, numbers = _split("overscan", overscan, {"none": (), "offset": (), "vpoly": (15.0, 1.00001, 1.00001)})
    order, frms, fchisq = numbers or (0.0, 0.0, 0.0)
    if method == "vpoly" and (order < 1 or order % 1):
        raise InputError(f"parameter overscan: {overscan!r} found, expected an order of 1 or more")
    if method == "vpoly" and not (frms > 1 and fchisq > 1):
        raise InputError(f"parameter overscan: {overscan!r} found, expected factors above 1")
    rejection, values = _split(
        "ovscreject", reject, {"none": (), "dcr": (128.0, 32.0, 3.0, 2.5), "fit": (5.0,)}
    )
    if not all(value > 0 for value in values):
        raise InputError(f"parameter ovscreject: {reject!r} found, expected positive numbers")
    xbox, ybox, npass, threshold = values if rejection == "dcr" else (0.0, 0.0, 0.0, *(values or (0.0,)))
    return OverscanParams(
        method, int(order), frms, fchisq, rejection, int(xbox), int(ybox), int(npass), threshold, sigma, ignore
    )


def _split(name: str, text: str, defaults: dict[str, tuple[float, ...]]) -> tuple[str, tuple[float, ...]]:
    """Method and its numbers, completed by the defaults."""
    method, _, rest = text.partition(":")
    if method not in defaults or (rest and not defaults[method]):
        raise InputError(f"parameter {name}: {text!r} found, expected one of {', '.join(defaults)}")
    try:
        values = tuple(float(v) for v in rest.split(",")) if rest else ()
    except ValueError:
        raise InputError(f"parameter {name}: {text!r} found, expected numbers after {method}:") from None
    if len(values) > len(defaults[method]):
        most = len(defaults[method])
        raise InputError(f"parameter {name}: {text!r} found, expected at most {most} numbers after {method}:")
    return method, (*values, *defaults[method][len(values) :])


# --- overscan --------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _one_box(values, flags, y0, y1, x0, x1, threshold, scratch):  # type: ignore[no-untyped-def]
    n = 0
    total = 0.0
    square = 0.0
    low = np.inf
    high = -np.inf
    for y in range(y0, y1):
        for x in range(x0, x1):
            if flags[y, x] == 0:
                v = np.float64(values[y, x])
                n += 1
                total += v
                square += v * v
                low = min(low, v)
                high = max(high, v)
    if n == 0:
        return 0
    mean = total / n
    sigma = np.sqrt(max((square - total * total / n) / n, 0.0))
    a, b = mean - threshold * sigma, mean + threshold * sigma
    n = 0
    total = 0.0
    square = 0.0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if flags[y, x] == 0:
                v = np.float64(values[y, x])
                if a <= v <= b:
                    n += 1
                    total += v
                    square += v * v
    if n == 0:
        return 0
    sigma = np.sqrt(max((square - total * total / n) / n, 0.0))
    bins = np.int64(high - low) + 1
    scratch[:bins] = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if flags[y, x] == 0:
                scratch[np.int64(values[y, x] - low)] += 1
    peak = 0
    for i in range(1, bins):
        if scratch[i] > scratch[peak]:
            peak = i
    empty = 0
    start = -1
    for i in range(peak, bins):
        if scratch[i] == 0:
            if empty == 0:
                start = i
            empty += 1
        else:
            if empty > threshold * sigma:
                break
            empty = 0
            start = -1
    if start < 0 or empty <= threshold * sigma:
        return 0
    limit = low + start
    found = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if flags[y, x] == 0 and values[y, x] > limit:
                flags[y, x] |= DQ_COSMICRAY
                found += 1
    return found


@njit(nogil=True, cache=True)
def _starts(size, box):  # type: ignore[no-untyped-def]
    """First pixels of boxes of `box` + 1 pixels along an axis; the last one is cut, as in the reference."""
    step = max(box // 2, 1)
    out = [0]
    while out[-1] + step + box < size:
        out.append(out[-1] + step)
    if out[-1] + box < size - 1:
        out.append(size - box)
    return out


@njit(nogil=True, cache=True)
def find_cosmics(values, flags, xbox, ybox, npass, threshold):  # type: ignore[no-untyped-def]
    """Flag cosmic rays with the method of Pych (2004, PASP 116, 148): gaps in histograms of boxes.

    Parameters
    ----------
    values : ndarray of uint16 or float32, shape (ny, nx)
    flags : ndarray of int32, shape (ny, nx)
        Qualities; found pixels get ``COSMICRAY``.
    xbox, ybox, npass : int
    threshold : float

    Returns
    -------
    int
        Number of pixels found.
    """
    ny, nx = values.shape
    scratch = np.zeros(65537, np.int64)
    found = 0
    for _ in range(npass):
        new = 0
        for y in _starts(ny, ybox):
            for x in _starts(nx, xbox):
                new += _one_box(values, flags, y, min(y + ybox + 1, ny), x, min(x + xbox + 1, nx), threshold, scratch)
        found += new
        if new == 0:
            break
    return found


@dataclass(frozen=True, eq=False)
class Overscan:
    """Overscan of a quadrant.

    Attributes
    ----------
    mean, stdev : float
        [adu]
    coefficients : ndarray of float64, shape (n,)
        Of the polynomial of the level along y, ascending powers of the row of the raw image, counted from 1;
        empty without one.
    levels : ndarray of float64, shape (rows of the quadrant,)
        The polynomial at the rows of the quadrant and its scans [adu].
    """

    mean: float
    stdev: float
    coefficients: FloatArray = field(default_factory=lambda: np.empty(0))
    levels: FloatArray = field(default_factory=lambda: np.empty(0))


@njit(nogil=True, cache=True)
def _moments(strip, flags, reference):  # type: ignore[no-untyped-def]
    """Number, sum and sum of squares of the differences of good pixels from a reference."""
    n = 0
    total = 0.0
    square = 0.0
    for y in range(strip.shape[0]):
        for x in range(strip.shape[1]):
            if flags[y, x] == 0:
                v = np.float64(strip[y, x]) - reference
                n += 1
                total += v
                square += v * v
    return n, total, square


@njit(nogil=True, cache=True)
def _reject(strip, flags, level, limit):  # type: ignore[no-untyped-def]
    """Mark good pixels whose distance from the level of their row is `limit` or more; returns their number."""
    found = 0
    for y in range(strip.shape[0]):
        for x in range(strip.shape[1]):
            if flags[y, x] == 0 and abs(strip[y, x] - level[y]) >= limit:
                flags[y, x] = -1
                found += 1
    return found


def overscan_statistics(
    strips: tuple[NDArray[np.uint16], NDArray[np.uint16]],
    flags: tuple[NDArray[np.int32], NDArray[np.int32]],
    params: OverscanParams,
) -> tuple[float, float]:
    """Mean and standard deviation of the overscan of a quadrant.

    Parameters
    ----------
    strips : tuple of ndarray of uint16
        Along x and along y.
    flags : tuple of ndarray of int32
        Qualities of their pixels; what is found to be a cosmic ray is flagged.
    params : OverscanParams

    Returns
    -------
    mean, stdev : float
        [adu]; NaN if no pixel is good.
    """
    if params.reject == "dcr":
        for strip, flag, (xbox, ybox) in zip(
            strips, flags, ((params.xbox, params.ybox), (params.ybox, params.xbox)), strict=True
        ):
            find_cosmics(
                strip, flag, min(xbox, strip.shape[1]), min(ybox, strip.shape[0]), params.npass, params.threshold
            )
    reference = float(strips[1][0, 0])
    if params.reject == "fit":
        flags = (flags[0].copy(), flags[1].copy())
    while True:
        parts = [_moments(strip, flag, reference) for strip, flag in zip(strips, flags, strict=True)]
        n, total, square = (sum(values) for values in zip(*parts, strict=True))
        if n == 0:
            return float("nan"), float("nan")
        mean, scatter = reference + total / n, max(square - total * total / n, 0.0)
        if params.reject != "fit":
            return mean, float(np.sqrt(scatter / max(n - 1, 1)))
        rms = float(np.sqrt(scatter / n))
        rejected = 0
        if rms > 0:
            for strip, flag in zip(strips, flags, strict=True):
                rejected += _reject(strip, flag, np.full(len(strip), mean), params.threshold * rms)
        if not rejected:
            return mean, rms


@njit(nogil=True, cache=True)
def _row_sums(strip, flags, reference):  # type: ignore[no-untyped-def]
    """Of each row: number, sum and sum of squares of good pixels, and their extremes, from a reference."""
    out = np.zeros((5, strip.shape[0]))
    for y in range(strip.shape[0]):
        low, high = np.inf, -np.inf
        for x in range(strip.shape[1]):
            if flags[y, x] == 0:
                v = np.float64(strip[y, x]) - reference
                out[0, y] += 1.0
                out[1, y] += v
                out[2, y] += v * v
                low = min(low, v)
                high = max(high, v)
        out[3, y], out[4, y] = low, high
    return out


def fit_overscan(
    strip: NDArray[np.uint16], flags: NDArray[np.int32], row0: int, rows: tuple[int, int], params: OverscanParams
) -> tuple[FloatArray, FloatArray]:
    """Fit the level of the overscan along y.

    Orders are tried upwards until one does not improve the fit; that one is taken and fitted again with
    rejection.  Fits are made to the sums of the rows, which gives the same as all pixels do.

    Parameters
    ----------
    strip : ndarray of uint16, shape (ny, nx)
    flags : ndarray of int32, shape (ny, nx)
    row0 : int
        Number of its first row in the raw image, from 1.
    rows : tuple of int
        First and last number of the rows for which the level is wanted.
    params : OverscanParams

    Returns
    -------
    coefficients : ndarray of float64
        Ascending powers of the number of the row; NaN if there are not enough good pixels.
    levels : ndarray of float64
        At `rows` [adu].
    """
    from numpy.polynomial import legendre, polynomial

    number = row0 + np.arange(len(strip))
    middle, half = 0.5 * (rows[0] + rows[1]), 0.5 * (rows[1] - rows[0]) or 1.0
    reference = float(strip[0, 0])
    basis = legendre.legvander((number - middle) / half, params.order)
    sums = _row_sums(strip, flags, reference)

    def equations() -> tuple[FloatArray, FloatArray]:
        return np.asarray((basis * sums[0][:, None]).T @ basis), np.asarray(basis.T @ sums[1])

    def solve(order: int) -> tuple[FloatArray, float]:
        """Coefficients and sum of the squared residuals of all good pixels."""
        m = order + 1
        solution = np.asarray(np.linalg.lstsq(gram[:m, :m], right[:m], rcond=None)[0], np.float64)
        level = basis[:, :m] @ solution
        count, total, square = sums[:3]
        mean = total / np.maximum(count, 1.0)
        return solution, float(np.sum(square - total * mean) + np.sum(count * (mean - level) ** 2))

    n = sums[0].sum()
    if n < 2:
        return np.full(1, np.nan), np.full(rows[1] - rows[0] + 1, np.nan)
    gram, right = equations()
    before = None
    selected = 0
    for order in range(params.order + 1):
        if n <= order + 1:
            break
        square = solve(order)[1]
        rms, chisq = np.sqrt(square / n), square / (n - order - 1)
        selected = order
        if before is not None and (rms == 0 or (before[0] / rms < params.frms and before[1] / chisq < params.fchisq)):
            break
        before = rms, chisq
    flags = flags.copy()
    while True:
        solution, square = solve(selected)
        level = basis[:, : selected + 1] @ solution
        limit = params.sigma * np.sqrt(square / sums[0].sum())
        used = sums[0] > 0
        extremes = np.maximum(np.abs(sums[3] - level)[used], np.abs(sums[4] - level)[used])
        # exactly on a level: nothing to reject
        if limit == 0 or extremes.max() < limit or not _reject(strip, flags, level + reference, limit):
            break
        sums = _row_sums(strip, flags, reference)
        gram, right = equations()
    wanted = np.arange(rows[0], rows[1] + 1)
    levels = legendre.legval((wanted - middle) / half, solution) + reference
    coefficients = np.zeros(1)
    for c in legendre.leg2poly(solution)[::-1]:
        coefficients = polynomial.polyadd(polynomial.polymul(coefficients, [-middle / half, 1 / half]), [c])
    coefficients = np.pad(coefficients, (0, max(0, selected + 1 - len(coefficients))))[: selected + 1]
    coefficients[0] += reference
    return coefficients, levels


# --- saturation ------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _histogram(raw):  # type: ignore[no-untyped-def]
    # several in turn: neighbours often have equal values, and to add to the same number twice takes its time
    counts = np.zeros((4, 65536), np.int32)
    for y in range(raw.shape[0]):
        row = raw[y]
        n = row.size // 4 * 4
        for x in range(0, n, 4):
            counts[0, row[x]] += 1
            counts[1, row[x + 1]] += 1
            counts[2, row[x + 2]] += 1
            counts[3, row[x + 3]] += 1
        for x in range(n, row.size):
            counts[0, row[x]] += 1
    return counts


def quadrant_median(raw: NDArray[np.uint16]) -> float:
    """Median of a section of a raw image."""
    total = np.cumsum(_histogram(raw).sum(axis=0))
    n = int(total[-1])
    low, high = np.searchsorted(total, [(n - 1) // 2, n // 2], side="right")
    return 0.5 * (float(low) + float(high))


# --- rows ------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _level(raw, level, data, dq):  # type: ignore[no-untyped-def]
    """Subtract the level of a row, flag what is saturated."""
    bad = 0
    for i in range(raw.size):
        value = raw[i]
        bad += (value > HIGH_LIMIT) | (value < LOW_LIMIT)
        data[i] = np.float64(value) - level
    if bad:
        for i in range(raw.size):
            if (raw[i] > HIGH_LIMIT) | (raw[i] < LOW_LIMIT):
                dq[i] |= DQ_SATURATED


@njit(nogil=True, cache=True, error_model="numpy")
def _subtract_bias(data, stat, dq, bias, bias_stat, bias_dq, gain, shift, extra):  # type: ignore[no-untyped-def]
    """Variance of the photons, from the data before their level is shifted; then the bias."""
    for i in range(data.size):
        s = np.float32(np.float32(data[i] - bias[i]) / gain)
        stat[i] = np.float32(TINY if s <= 0 else s) + extra
    for k in range(shift.size):
        for i in range(data.size):
            data[i] += shift[k]
    for i in range(data.size):
        data[i] -= bias[i]
        stat[i] += bias_stat[i]
        dq[i] |= bias_dq[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _linearise(data, stat, coefficients, low, high):  # type: ignore[no-untyped-def]
    """Divide by one plus a polynomial of the logarithm, which goes on as a straight line beyond its limits."""
    order = coefficients.size - 1
    edges = np.empty((2, 2))
    for side in range(2):
        x = low if side == 0 else high
        value, slope = 0.0, 0.0
        for j in range(order, -1, -1):
            slope = slope * x + value
            value = value * x + coefficients[j]
        edges[side, 0], edges[side, 1] = value, slope
    for i in range(data.size):
        if data[i] > 0:
            x = np.log10(np.float64(data[i]))
            if x < low:
                p = edges[0, 0] + (x - low) * edges[0, 1]
            elif x > high:
                p = edges[1, 0] + (x - high) * edges[1, 1]
            else:
                p = 0.0
                for j in range(order, -1, -1):
                    p = p * x + coefficients[j]
            factor = 1.0 / (1.0 + p)
            data[i] = data[i] * factor
            stat[i] = stat[i] * (factor * factor)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(data, stat, factor):  # type: ignore[no-untyped-def]
    square = factor * factor
    for i in range(data.size):
        data[i] = data[i] * factor
        stat[i] = stat[i] * square


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(data, stat, factor):  # type: ignore[no-untyped-def]
    f, square = np.float32(factor), np.float32(factor * factor)
    for i in range(data.size):
        data[i] *= f
        stat[i] *= square


@njit(nogil=True, cache=True, error_model="numpy")
def _subtract_dark(data, stat, dq, dark, dark_stat, dark_dq, factor):  # type: ignore[no-untyped-def]
    f, square = np.float32(factor), np.float32(factor * factor)
    for i in range(data.size):
        data[i] -= dark[i] * f
        stat[i] += dark_stat[i] * square
        dq[i] |= dark_dq[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _divide_flat(data, stat, dq, flat, flat_stat, flat_dq):  # type: ignore[no-untyped-def]
    for i in range(data.size):
        f, d = flat[i], data[i]
        square = f * f
        s = (stat[i] + d * d * flat_stat[i] / square) / square
        # where the flat is 0 nothing is done
        data[i] = d / f if f != 0 else d
        stat[i] = s if f != 0 else stat[i]
        dq[i] |= flat_dq[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _correct(raw, k, y, s, data, stat, dq):  # type: ignore[no-untyped-def]
    """Process a row of frame k; `s` is a `Setup` as a tuple."""
    (
        nx, ny, first_row, first_column, levels, shift, extra, gain, to_count, curve, curve_range, bad_start, bad_x,
        bad_flags, bias, bias_stat, bias_dq, dark, dark_stat, dark_dq, dark_factor, flat, flat_stat, flat_dq, scale,
    ) = s  # fmt: skip
    half = 1 if y >= ny else 0
    row = y + first_row[half]
    dq[:] = 0
    for j in range(bad_start[y], bad_start[y + 1]):
        dq[bad_x[j]] |= bad_flags[j]
    for side in range(2):
        a, b = side * nx, side * nx + nx
        n = 2 * half + side
        d, e, q = data[a:b], stat[a:b], dq[a:b]
        x = first_column[side]
        _level(raw[k, row, x : x + nx], levels[k, side, y], d, q)
        if bias.size:
            _subtract_bias(
                d, e, q, bias[y, a:b], bias_stat[y, a:b], bias_dq[y, a:b], gain[n], shift[k, :, n], extra[k, n]
            )
        else:
            e[:] = 0
            for j in range(shift.shape[1]):
                d += shift[k, j, n]
        if curve.size:
            _linearise(d, e, curve[n], curve_range[n, 0], curve_range[n, 1])
        if to_count:
            _multiply(d, e, gain[n])
    if dark.size:
        _subtract_dark(data, stat, dq, dark[y], dark_stat[y], dark_dq[y], dark_factor[k])
    if flat.size:
        _divide_flat(data, stat, dq, flat[y], flat_stat[y], flat_dq[y])
    if scale[k] != 1.0:
        _scale(data, stat, scale[k])


@njit(nogil=True, cache=True, error_model="numpy")
def correct(raw, setup, y0, y1, data, stat, dq):  # type: ignore[no-untyped-def]
    """Process rows of raw images: level, bias, gain, dark, flat; every step is rounded to float32.

    Parameters
    ----------
    raw : ndarray of uint16, shape (n, raw rows, raw columns)
    setup : tuple
        See `Setup`.
    y0, y1 : int
        First row of the image without scans, and the one after the last.
    data, stat : ndarray of float32, shape (n, y1 - y0, columns)
    dq : ndarray of int32, shape (n, y1 - y0, columns)
        Are filled.
    """
    for k in range(raw.shape[0]):
        for y in range(y0, y1):
            _correct(raw, k, y, setup, data[k, y - y0], stat[k, y - y0], dq[k, y - y0])


class Setup(NamedTuple):
    """What `correct` does to the rows of n raw images of one CCD.

    Numbers of quadrants here: bottom left, bottom right, top left, top right.

    Attributes
    ----------
    nx, ny : int
        Pixels of a quadrant.
    first_row, first_column : ndarray of int64, shape (2,)
        What to add to a row to find it in the raw image, in the lower and in the upper half; first columns of the
        left and the right half.
    levels : ndarray of float64, shape (n, 2, 2 ny)
        Levels to subtract in the left and the right half [adu].
    shift : ndarray of float32, shape (n, steps, 4)
        Further levels to add one after the other [adu].
    extra : ndarray of float32, shape (n, 4)
        Variance of those levels [adu2].
    gain : ndarray of float64, shape (4,)
        [count/adu]
    to_count : bool
        Whether to convert to counts.
    curve : ndarray of float64, shape (4, order + 1) or (0, 0)
        Deviation from linearity, polynomial of the decimal logarithm of the data [adu].
    curve_range : ndarray of float64, shape (4, 2) or (0, 0)
        Where it is valid.
    bad_start : ndarray of int64, shape (2 ny + 1,)
        Where the known bad pixels of each row begin in the next two.
    bad_x : ndarray of int64, shape (m,)
        Their columns.
    bad_flags : ndarray of int32, shape (m,)
        Their qualities.
    bias, bias_stat, bias_dq, dark, dark_stat, dark_dq, flat, flat_stat, flat_dq : ndarray, shape (2 ny, 2 nx) or (0, 0)
        Master calibrations.
    dark_factor : ndarray of float64, shape (n,)
        Exposure times relative to that of the dark.
    scale : ndarray of float64, shape (n,)
        Factors at the end.
    """

    nx: int
    ny: int
    first_row: NDArray[np.int64]
    first_column: NDArray[np.int64]
    levels: FloatArray
    shift: NDArray[np.float32]
    extra: NDArray[np.float32]
    gain: FloatArray
    to_count: bool
    curve: FloatArray
    curve_range: FloatArray
    bad_start: NDArray[np.int64]
    bad_x: NDArray[np.int64]
    bad_flags: NDArray[np.int32]
    bias: NDArray[np.float32]
    bias_stat: NDArray[np.float32]
    bias_dq: NDArray[np.int32]
    dark: NDArray[np.float32]
    dark_stat: NDArray[np.float32]
    dark_dq: NDArray[np.int32]
    dark_factor: FloatArray
    flat: NDArray[np.float32]
    flat_stat: NDArray[np.float32]
    flat_dq: NDArray[np.int32]
    scale: FloatArray

    def of(self, k: int) -> Setup:
        """The setup of one of the images."""
        one = slice(k, k + 1)
        return self._replace(
            levels=self.levels[one], shift=self.shift[one], extra=self.extra[one], dark_factor=self.dark_factor[one],
            scale=self.scale[one],
        )  # fmt: skip
