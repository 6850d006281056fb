"""Statistics and fits with the conventions of the reference pipeline.

The standard deviation is that of a sample (n - 1); the median of an even number of values is the mean of the
two in the middle; the "median deviation" is the mean of absolute differences from the median, without a
factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


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
    n, _, _, low, high = _moments(data, dq)
    if n == 0:
        return (float("nan"),) * 4
    median = _median(data, dq, n)
    return median, _absolute(data, dq, median) / n, low, high


def window_means(
    data: NDArray[np.float32], dq: NDArray[np.int32], size: int, number: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard deviations of the good pixels of windows at regular places.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)
    size : int
        Of a window along an axis [pix], unless the image is smaller.
    number : int
        Of windows along an axis at most; they do not overlap.

    Returns
    -------
    means, scatter : ndarray of float64, shape (n,)
        NaN where too few pixels are good.
    """
    ny, nx = data.shape
    return _windows(data, dq, window_starts(ny, size, number), window_starts(nx, size, number), min(size, ny, nx))


def window_starts(n: int, size: int, number: int) -> NDArray[np.int64]:
    """First pixels of at most `number` windows of `size` pixels that are spread over n pixels."""
    size = min(size, n)
    return np.linspace(0, n - size, max(1, min(number, n // size))).astype(np.int64)


@njit(nogil=True, cache=True)
def _windows(data, dq, rows, columns, size):  # type: ignore[no-untyped-def]
    means, scatter = np.empty(rows.size * columns.size), np.empty(rows.size * columns.size)
    w = 0
    for y0 in rows:
        for x0 in columns:
            n, reference, total, square = 0, 0.0, 0.0, 0.0
            for y in range(y0, y0 + size):
                for x in range(x0, x0 + size):
                    if dq[y, x] == 0:
                        if n == 0:
                            reference = np.float64(data[y, x])
                        d = np.float64(data[y, x]) - reference
                        n += 1
                        total += d
                        square += d * d
            means[w] = reference + total / n if n else np.nan
            scatter[w] = np.sqrt(max(square - total * total / n, 0.0) / (n - 1)) if n > 1 else np.nan
            w += 1
    return means, scatter


@njit(nogil=True, cache=True)
def _absolute(data, dq, median):  # type: ignore[no-untyped-def]
    total = 0.0
    for y in range(data.shape[0]):
        part = 0.0
        for x in range(data.shape[1]):
            if dq[y, x] == 0:
                part += abs(data[y, x] - median)
        total += part
    return total


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
    n, mean, stdev, low, high = _moments(data, dq)
    if n == 0:
        return Statistics(*[float("nan")] * 5)
    return Statistics(_median(data, dq, n), mean, stdev, low, high)


@njit(nogil=True, cache=True)
def _moments(data, dq):  # type: ignore[no-untyped-def]
    """Number, mean, standard deviation, minimum and maximum."""
    masked = dq.size > 0
    n = 0
    total = 0.0
    low = np.float32(np.inf)
    high = np.float32(-np.inf)
    for y in range(data.shape[0]):
        row = data[y]
        part = 0.0
        if masked:
            flags = dq[y]
            for x in range(row.size):
                if flags[x] == 0:
                    v = row[x]
                    n += 1
                    part += v
                    low = min(low, v)
                    high = max(high, v)
        else:
            n += row.size
            for x in range(row.size):
                v = row[x]
                part += v
                low = min(low, v)
                high = max(high, v)
        total += part
    if n == 0:
        return n, 0.0, 0.0, 0.0, 0.0
    mean = total / n
    square = 0.0
    for y in range(data.shape[0]):
        row = data[y]
        part = 0.0
        if masked:
            flags = dq[y]
            for x in range(row.size):
                if flags[x] == 0:
                    part += (row[x] - mean) ** 2
        else:
            for x in range(row.size):
                part += (row[x] - mean) ** 2
        square += part
    return n, mean, np.sqrt(square / max(n - 1, 1)), float(low), float(high)


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


def _median(data: NDArray[np.float32], dq: NDArray[np.int32], n: int) -> float:
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
