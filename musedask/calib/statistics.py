"""Statistics and fits with the conventions of the reference pipeline.

The standard deviation is that of a sample (n - 1); the median of an even number of values is the mean of the
two in the middle; the "median deviation" is the mean of absolute differences from the median, without a
factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

#: the median of more pixels than these is sought among those between two percentiles of a sample
_FEW = 100_000
_SAMPLE_ROWS, _SAMPLE_STEP, _SAMPLE_LEAST = 128, 4, 1000
_BRACKET = 2.0
#: sums side by side
_LANES = 512


@dataclass(frozen=True)
class Statistics:
    """Statistics of an image."""

    median: float
    mean: float
    stdev: float
    min: float
    max: float


def median_deviation(values: ArrayLike) -> tuple[float, float]:
    """Median and median deviation.

    Parameters
    ----------
    values : array_like of float

    Returns
    -------
    median, mdev : float
        ``mdev`` is the mean of ``|v - median|``.
    """
    values = np.asarray(values, np.float64).ravel()
    median = float(np.median(values))
    return median, float(np.mean(np.abs(values - median)))


def image_median_deviation(data: NDArray[np.float32], dq: NDArray[np.int32]) -> tuple[float, float, float, float]:
    """Median, median deviation, minimum and maximum of the good pixels of an image.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx); its last axis should be contiguous
    dq : ndarray of int32, shape (ny, nx)

    Returns
    -------
    median, mdev, min, max : float
        NaN if no pixel is good.
    """
    n, _, low, high = _sums(data, dq, 0.0, 0)
    if n == 0:
        return (float("nan"),) * 4
    median = _median(data, dq, n)
    return median, _sums(data, dq, median, 1)[1] / n, low, high


@njit(nogil=True, cache=True, error_model="numpy")
def _sums(data, dq, about, power):  # type: ignore[no-untyped-def]
    """Sum over good pixels of their values (power 0), or of their distances from a value or the squares of these.

    Many sums side by side become vector instructions, and lose fewer digits.

    Returns
    -------
    number, sum, minimum, maximum
        Number and limits only with the sum of the values.
    """
    counts, sums = np.zeros(_LANES, np.int32), np.zeros(_LANES)
    lows, highs = np.full(_LANES, np.inf, np.float32), np.full(_LANES, -np.inf, np.float32)
    none = np.zeros(_LANES, np.int32)
    masked = dq.size > 0
    for y in range(data.shape[0]):
        for a in range(0, data.shape[1], _LANES):
            row = data[y, a : a + _LANES]
            flags = dq[y, a : a + _LANES] if masked else none
            if power == 0:
                for i in range(row.size):
                    counts[i] += 1 if flags[i] == 0 else 0
                for i in range(row.size):
                    sums[i] += np.float64(row[i]) if flags[i] == 0 else 0.0
                for i in range(row.size):
                    v = row[i] if flags[i] == 0 else lows[i]
                    lows[i] = v if v < lows[i] else lows[i]
                for i in range(row.size):
                    v = row[i] if flags[i] == 0 else highs[i]
                    highs[i] = v if v > highs[i] else highs[i]
            elif power == 1:
                for i in range(row.size):
                    sums[i] += abs(np.float64(row[i]) - about) if flags[i] == 0 else 0.0
            else:
                for i in range(row.size):
                    d = np.float64(row[i]) - about
                    sums[i] += d * d if flags[i] == 0 else 0.0
    n, total = 0, 0.0
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for i in range(_LANES):
        n += counts[i]
        total += sums[i]
        low, high = min(low, lows[i]), max(high, highs[i])
    return n, total, float(low), float(high)


def image_statistics(data: NDArray[np.float32], dq: NDArray[np.int32] | None = None) -> Statistics:
    """Statistics of all pixels of an image, or of the good ones.

    Parameters
    ----------
    data : ndarray of float32, any shape; its last axis should be contiguous
    dq : ndarray of int32, same shape, optional
        Pixels that are not 0 are left out.

    Returns
    -------
    Statistics
        NaN if there is no pixel.
    """
    data = np.atleast_2d(data)
    if dq is None:
        dq = np.empty((0, 0), np.int32)
    dq = np.atleast_2d(dq)
    n, total, low, high = _sums(data, dq, 0.0, 0)
    if n == 0:
        return Statistics(*[float("nan")] * 5)
    mean = total / n
    square = _sums(data, dq, mean, 2)[1]
    return Statistics(_median(data, dq, n), mean, math.sqrt(square / max(n - 1, 1)), low, high)


@njit(nogil=True, cache=True, inline="always")
def _order(bits):  # type: ignore[no-untyped-def]
    """Bits of a float32 as a number that sorts as the float does."""
    if bits & np.uint32(0x80000000):
        return ~bits
    return bits | np.uint32(0x80000000)


@njit(nogil=True, cache=True)
def _select(bits, dq, rank):  # type: ignore[no-untyped-def]
    """Order numbers of the values of ranks `rank` and `rank` + 1 (the same, if there is no such)."""
    masked = dq.size > 0
    counts = np.zeros(65536, np.int64)
    for y in range(bits.shape[0]):
        for x in range(bits.shape[1]):
            if not masked or dq[y, x] == 0:
                counts[_order(bits[y, x]) >> np.uint32(16)] += 1
    found = np.zeros(2, np.uint32)
    which = np.zeros(2, np.int64)
    below = np.zeros(2, np.int64)
    total = 0
    for i in range(65536):
        for j in range(2):
            if total <= rank + j < total + counts[i]:
                which[j] = i
                below[j] = total
        total += counts[i]
    if rank + 1 >= total:
        which[1], below[1] = which[0], below[0]
    low = np.zeros((2, 65536), np.int64)
    for y in range(bits.shape[0]):
        for x in range(bits.shape[1]):
            if not masked or dq[y, x] == 0:
                o = _order(bits[y, x])
                h = np.int64(o >> np.uint32(16))
                if h == which[0]:
                    low[0, o & np.uint32(0xFFFF)] += 1
                elif h == which[1]:
                    low[1, o & np.uint32(0xFFFF)] += 1
    if which[0] == which[1]:
        low[1] = low[0]
    for j in range(2):
        r = min(rank + j, total - 1) - below[j]
        seen = 0
        for i in range(65536):
            seen += low[j, i]
            if seen > r:
                found[j] = np.uint32(which[j] << 16) | np.uint32(i)
                break
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def _between(data, dq, low, high, found):  # type: ignore[no-untyped-def]
    """Gather good values from low to high; returns how many are lower, and how many were found (-1: too many)."""
    masked = dq.size > 0
    none = np.zeros(data.shape[1], np.int32)
    below = 0
    # unsigned: a place that cannot be counted from the end takes no time to check
    n = np.uint64(0)
    for y in range(data.shape[0]):
        row = data[y]
        flags = dq[y] if masked else none
        if n + np.uint64(row.size) > np.uint64(found.size):
            return below, -1
        part = 0
        for x in range(row.size):
            part += 1 if (flags[x] == 0) & (row[x] < low) else 0
        below += part
        # without branches, which could not be foretold
        for x in range(row.size):
            v = row[x]
            found[n] = v
            n += np.uint64(1) if (flags[x] == 0) & (v >= low) & (v <= high) else np.uint64(0)
    return below, np.int64(n)


def _median(data: NDArray[np.float32], dq: NDArray[np.int32], n: int) -> float:
    ny, nx = data.shape
    first, last = (n - 1) // 2, n // 2
    if n > _FEW:
        # a sample tells about where it is; if it is not there, all are counted
        rows = slice(None, None, max(1, ny // _SAMPLE_ROWS))
        sample = data[rows, ::_SAMPLE_STEP]
        if dq.size:
            sample = sample[dq[rows, ::_SAMPLE_STEP] == 0]
        if sample.size > _SAMPLE_LEAST:
            low, high = np.percentile(sample, (50.0 - _BRACKET, 50.0 + _BRACKET), method="lower")
            found = np.empty(n // 8 + nx, np.float32)
            below, m = _between(data, dq, low, high, found)
            if below <= first and last < below + m:
                middle = np.partition(found[:m], (first - below, last - below))
                return 0.5 * (float(middle[first - below]) + float(middle[last - below]))
    bits = data.view(np.uint32)
    found = _select(bits, dq, (n - 1) // 2)
    values = np.where(found & 0x80000000, found & 0x7FFFFFFF, ~found).astype(np.uint32).view(np.float32)
    if n % 2:
        return float(values[0])
    return 0.5 * (float(values[0]) + float(values[1]))


# --- polynomials -----------------------------------------------------------------------------------


def fit_polynomial(x: FloatArray, y: FloatArray, order: int) -> FloatArray:
    """Least-squares polynomial, coefficients in ascending powers of x.

    The fit is done in Chebyshev polynomials of x scaled to -1..1 and converted then.
    """
    from numpy.polynomial import chebyshev, polynomial

    low, high = float(np.min(x)), float(np.max(x))
    scale = 2.0 / (high - low) if high > low else 1.0
    middle = 0.5 * (low + high)
    basis = chebyshev.chebvander((x - middle) * scale, order)
    solution = np.linalg.lstsq(basis, y, rcond=None)[0]
    in_t = chebyshev.cheb2poly(solution)
    # t = scale (x - middle), by Horner's rule on polynomials
    out = np.zeros(1)
    for c in in_t[::-1]:
        out = polynomial.polyadd(polynomial.polymul(out, [-scale * middle, scale]), [c])
    return np.pad(out, (0, max(0, order + 1 - len(out))))[: order + 1]


def iterfit(
    x: ArrayLike, y: ArrayLike, order: int, kappa: float
) -> tuple[FloatArray, float, NDArray[np.bool_]]:
    """Polynomial with iterative rejection.

    Values that are not finite are dropped.  All points at or beyond `kappa` times the root mean square of the
    residuals (divided by n) are removed at once, and the fit is repeated until nothing is removed.

    Parameters
    ----------
    x, y : array_like of float, shape (n,)
    order : int
    kappa : float

    Returns
    -------
    coefficients : ndarray of float64, shape (order + 1,)
        Ascending powers of x; NaN if there are not enough points.
    mse : float
        Mean squared residual of the last fit.
    mask : ndarray of bool, shape (n,)
        Points that are left.
    """
    x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    mask = np.isfinite(x) & np.isfinite(y)
    while True:
        if mask.sum() < order + 1:
            return np.full(order + 1, np.nan), float("nan"), mask
        coefficients = fit_polynomial(x[mask], y[mask], order)
        residual = y - np.polynomial.polynomial.polyval(x, coefficients)
        mse = float(np.mean(residual[mask] ** 2))
        bad = mask & (np.abs(residual) >= kappa * np.sqrt(mse))
        # a perfect fit leaves nothing to reject
        if mse == 0 or not bad.any():
            return coefficients, mse, mask
        mask = mask & ~bad
