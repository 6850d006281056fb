"""Combination of images of one IFU, pixel by pixel, with the rules of the reference pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError
from ..io.muse_image import MuseImage

_METHODS = {"average": 0, "median": 1, "minmax": 2, "sigclip": 3, "sum": 4}
#: pixels that are combined at once: those of a dozen images fit into the first cache
_BLOCK = 512


@dataclass(frozen=True)
class CombineParams:
    """How images are combined.

    Attributes
    ----------
    method : str
        ``average``, ``median``, ``minmax``, ``sigclip``, ``sum``; ``none`` where a recipe allows it.
    nlow, nhigh, nkeep : int
        Of minmax: how many of the lowest and highest values are rejected, how many must remain.
    lsigma, hsigma : float
        Of sigclip: limits below and above the median, in units of the median deviation.
    """

    method: str = "sigclip"
    nlow: int = 1
    nhigh: int = 1
    nkeep: int = 1
    lsigma: float = 3.0
    hsigma: float = 3.0

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> CombineParams:
        """From the parameters of a recipe; those that it does not have keep their defaults."""
        names = {"combine": "method"} | {n: n for n in ("nlow", "nhigh", "nkeep", "lsigma", "hsigma")}
        return cls(**{attribute: values[name] for name, attribute in names.items() if name in values})


@njit(nogil=True, cache=True, error_model="numpy")
def _insert(values, which, n, value, k, stat, step, i):  # type: ignore[no-untyped-def]
    """Insert a value into the first n, which are sorted; equal ones come in the order of their variances."""
    j = n
    while j > 0 and (
        values[j - 1] > value or (values[j - 1] == value and stat[step * which[j - 1], i] > stat[step * k, i])
    ):
        values[j] = values[j - 1]
        which[j] = which[j - 1]
        j -= 1
    values[j] = value
    which[j] = k


@njit(nogil=True, cache=True, error_model="numpy")
def _combine_pixel(  # type: ignore[no-untyped-def]
    data, stat, dq, i, out_data, out_stat, out_dq, method, nlow, nhigh, nkeep, lsigma, hsigma, values, which
):  # fmt: skip
    """Combine one pixel, good or bad, by any method."""
    n = data.shape[0]
    # a single row of variances is that of all images
    step = 1 if stat.shape[0] == n else 0
    good = 0
    for k in range(n):
        if dq[k, i] == 0:
            if method == 0 or method == 4:
                values[good] = data[k, i]
                which[good] = k
            else:
                _insert(values, which, good, np.float64(data[k, i]), k, stat, step, i)
            good += 1
    if good == 0:
        best = 0
        for k in range(1, n):
            if np.uint32(dq[k, i]) < np.uint32(dq[best, i]):
                best = k
        factor = np.float64(n if method == 4 else 1)
        out_data[i], out_stat[i], out_dq[i] = factor * data[best, i], factor**2 * stat[step * best, i], dq[best, i]
        return
    out_dq[i] = 0
    first, last = 0, good
    h = good // 2
    if method == 1:
        if good % 2:
            out_data[i] = values[h]
            out_stat[i] = stat[step * which[h], i]
        else:
            out_data[i] = 0.5 * (values[h - 1] + values[h])
            out_stat[i] = np.float64(stat[step * which[h - 1], i]) + np.float64(stat[step * which[h], i])
        return
    if method == 2:
        flags = 0
        k = 0
        # as many of the bad values as are needed come back, in the order of the images
        while good - nlow - nhigh < nkeep and k < n:
            if dq[k, i] != 0:
                _insert(values, which, good, np.float64(data[k, i]), k, stat, step, i)
                flags |= dq[k, i]
                good += 1
            k += 1
        out_dq[i] = flags
        first, last = nlow, good - nhigh
    elif method == 3:
        median = values[h] if good % 2 else 0.5 * (values[h - 1] + values[h])
        deviation = 0.0
        for j in range(good):
            deviation += abs(values[j] - median)
        deviation /= good
        low, high = median - lsigma * deviation, median + hsigma * deviation
        if low != high:
            while first < last and values[first] < low:
                first += 1
            while last > first and values[last - 1] > high:
                last -= 1
            if first == last:
                first, last = 0, good
    left = last - first
    total = 0.0
    variance = 0.0
    for j in range(first, last):
        total += values[j]
        variance += stat[step * which[j], i]
    if method == 4:
        out_data[i] = total * n / left
        out_stat[i] = variance * n * n / (left * left)
    else:
        out_data[i] = total / left
        out_stat[i] = variance / (left * left)


# The functions below work on a block of good pixels, from the first, a, on: their loops become vector instructions.
# They are not nested, which would multiply the time to compile them; an index of two parts would stop vectorisation.


@njit(nogil=True, cache=True, error_model="numpy")
def _load(rows, a, size, block):  # type: ignore[no-untyped-def]
    for k in range(rows.shape[0]):
        row, out = rows[k, a : a + size], block[k]
        for i in range(size):
            out[i] = row[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _sort(values, pairs, size):  # type: ignore[no-untyped-def]
    for p in range(pairs.shape[0]):
        low, high = values[pairs[p, 0]], values[pairs[p, 1]]
        for i in range(size):
            u, v = low[i], high[i]
            low[i] = u if u < v else v
            high[i] = v if u < v else u


@njit(nogil=True, cache=True, error_model="numpy")
def _sort_both(values, errors, pairs, size):  # type: ignore[no-untyped-def]
    """Sort values together with their variances; equal values come in the order of these."""
    for p in range(pairs.shape[0]):
        j, k = pairs[p, 0], pairs[p, 1]
        low, high, low_error, high_error = values[j], values[k], errors[j], errors[k]
        for i in range(size):
            u, v, e, f = low[i], high[i], low_error[i], high_error[i]
            right = (u < v) | ((u == v) & (e <= f))
            low[i] = u if right else v
            high[i] = v if right else u
            low_error[i] = e if right else f
            high_error[i] = f if right else e


@njit(nogil=True, cache=True, error_model="numpy")
def _add(values, errors, first, last, a, size, total, variance):  # type: ignore[no-untyped-def]
    for i in range(size):
        total[i] = 0.0
        variance[i] = 0.0
    for k in range(first, last):
        row = values[k, a : a + size]
        for i in range(size):
            total[i] += row[i]
    for k in range(first, min(last, errors.shape[0])):
        error = errors[k, a : a + size]
        for i in range(size):
            variance[i] += error[i]
    if errors.shape[0] < last:
        error = errors[0, a : a + size]
        for i in range(size):
            variance[i] = np.float64(error[i]) * (last - first)


@njit(nogil=True, cache=True, error_model="numpy")
def _add_clipped(  # type: ignore[no-untyped-def]
    values, errors, ordered, a, size, lsigma, hsigma, low, high, total, variance, count
):  # fmt: skip
    """Sum the values inside the limits, which come from all."""
    n = values.shape[0]
    lower, upper = ordered[(n - 1) // 2], ordered[n // 2]
    for i in range(size):
        low[i] = 0.5 * (np.float64(lower[i]) + np.float64(upper[i]))
        high[i] = 0.0
        total[i] = 0.0
        variance[i] = 0.0
        count[i] = 0.0
    for k in range(n):
        row = values[k, a : a + size]
        for i in range(size):
            high[i] += abs(np.float64(row[i]) - low[i])
    for i in range(size):
        deviation = high[i] / n
        lowest, highest = low[i] - lsigma * deviation, low[i] + hsigma * deviation
        low[i] = -np.inf if lowest == highest else lowest
        high[i] = np.inf if lowest == highest else highest
    for k in range(n):
        row = values[k, a : a + size]
        for i in range(size):
            value = np.float64(row[i])
            inside = (low[i] <= value) & (value <= high[i])
            total[i] += value if inside else 0.0
            count[i] += 1.0 if inside else 0.0
        if errors.shape[0] == n:
            error = errors[k, a : a + size]
            for i in range(size):
                value = np.float64(row[i])
                inside = (low[i] <= value) & (value <= high[i])
                variance[i] += np.float64(error[i]) if inside else 0.0
    if errors.shape[0] < n:
        error = errors[0, a : a + size]
        for i in range(size):
            variance[i] = np.float64(error[i]) * count[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _divide(total, variance, count, a, size, out_data, out_stat):  # type: ignore[no-untyped-def]
    data, stat = out_data[a : a + size], out_stat[a : a + size]
    for i in range(size):
        data[i] = total[i] / count[i]
        stat[i] = variance[i] / (count[i] * count[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _any_bad(dq, a, size, bad):  # type: ignore[no-untyped-def]
    for i in range(size):
        bad[i] = 0
    for k in range(dq.shape[0]):
        row = dq[k, a : a + size]
        for i in range(size):
            bad[i] |= row[i]


@njit(nogil=True, cache=True, error_model="numpy")
def combine_rows(data, stat, dq, out_data, out_stat, out_dq, pairs, method, nlow, nhigh, nkeep, lsigma, hsigma):  # type: ignore[no-untyped-def]
    """Combine pixels of n images.

    Parameters
    ----------
    data : ndarray of float32, shape (n, m)
    stat : ndarray of float32, shape (n, m) or (1, m)
        Variances of each or of all images.
    dq : ndarray of int32, shape (n, m)
    out_data, out_stat : ndarray of float32, shape (m,)
    out_dq : ndarray of int32, shape (m,)
    pairs : ndarray of int64, shape (p, 2)
        See `sorting_network`.
    method, nlow, nhigh, nkeep, lsigma, hsigma
        See `CombineParams`; the method is a number.
    """
    n, m = data.shape
    values, which = np.empty(n, np.float64), np.empty(n, np.int64)
    ordered, errors = np.empty((n, _BLOCK), np.float32), np.empty((stat.shape[0], _BLOCK), np.float32)
    work = np.empty((5, _BLOCK), np.float64)
    low, high, total, variance, count = work[0], work[1], work[2], work[3], work[4]
    bad = np.empty(_BLOCK, np.int32)
    first, last = 0, n
    if method == 1:
        first, last = (n - 1) // 2, n // 2 + 1
    elif method == 2:
        first, last = nlow, n - nhigh
    for a in range(0, m, _BLOCK):
        size = min(_BLOCK, m - a)
        _any_bad(dq, a, size, bad)
        if method == 3:
            _load(data, a, size, ordered)
            _sort(ordered, pairs, size)
            _add_clipped(data, stat, ordered, a, size, lsigma, hsigma, low, high, total, variance, count)
        else:
            count[:] = 1.0 if method == 4 else last - first
            if method == 1 or method == 2:
                _load(data, a, size, ordered)
                _load(stat, a, size, errors)
                if stat.shape[0] == n:
                    _sort_both(ordered, errors, pairs, size)
                else:
                    _sort(ordered, pairs, size)
                _add(ordered, errors, first, last, 0, size, total, variance)
            else:
                _add(data, stat, 0, n, a, size, total, variance)
        _divide(total, variance, count, a, size, out_data, out_stat)
        for i in range(size):
            x = a + i
            # not a number: nothing is left, which is not to be
            if bad[i] == 0 and out_data[x] == out_data[x]:
                out_dq[x] = 0
                if method == 1 and n % 2 == 0:
                    # as the reference has it: the sum of the variances of the two in the middle
                    out_stat[x] = variance[i]
            else:
                _combine_pixel(
                    data, stat, dq, x, out_data, out_stat, out_dq, method, nlow, nhigh, nkeep, lsigma, hsigma, values,
                    which,
                )  # fmt: skip


def sorting_network(n: int) -> NDArray[np.int64]:
    """Pairs of positions that, compared and exchanged in turn, sort n values (Batcher's merge exchange).

    Parameters
    ----------
    n : int

    Returns
    -------
    ndarray of int64, shape (number of pairs, 2)
    """
    pairs = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return np.array(pairs, np.int64).reshape(-1, 2)


def kernel_arguments(params: CombineParams, n: int) -> tuple[Any, ...]:
    """The last arguments of `combine_rows`, for n images.

    Raises
    ------
    InputError
        If the method is unknown or does not work with so few images.
    """
    if params.method not in _METHODS:
        raise InputError(f"combine {params.method!r} found, expected one of {', '.join(_METHODS)}")
    if params.method == "sigclip" and n < 3:
        raise InputError(f"combine=sigclip: {n} images found, expected 3 or more")
    if params.method == "minmax":
        low, high, keep = params.nlow, params.nhigh, params.nkeep
        if low < 0 or high < 0 or keep < 1 or low + high + keep > n:
            raise InputError(
                f"combine=minmax: nlow {low}, nhigh {high}, nkeep {keep} found, expected numbers from 0, 0 and 1 that "
                f"do not exceed the {n} images together"
            )
    return (
        sorting_network(n),
        _METHODS[params.method],
        int(params.nlow),
        int(params.nhigh),
        int(params.nkeep),
        float(params.lsigma),
        float(params.hsigma),
    )


def combine_images(images: Sequence[MuseImage], params: CombineParams) -> MuseImage:
    """Combine images.

    Parameters
    ----------
    images : sequence of MuseImage
        Of one shape; missing qualities count as good, missing variances as 0.
    params : CombineParams

    Returns
    -------
    MuseImage
        With the header and unit of the first.

    Raises
    ------
    InputError
        If there is none, or shapes or units differ, or there are too few for the method.
    """
    if not images:
        raise InputError("combine: no image found, expected at least one")
    shapes = {image.data.shape for image in images}
    units = {image.unit for image in images}
    if len(shapes) > 1 or len(units) > 1:
        raise InputError(f"combine: images of shapes {sorted(shapes)} and units {sorted(units)} found, expected one")
    first = images[0]
    ny, nx = first.data.shape
    data, stat = np.zeros((2, ny, nx), np.float32)
    dq = np.zeros((ny, nx), np.int32)
    if len(images) == 1:
        data[:] = first.data
        stat[:] = 0 if first.stat is None else first.stat
        dq[:] = 0 if first.dq is None else first.dq
        return MuseImage(data, dq, stat, first.unit, first.header.copy())
    arguments = kernel_arguments(params, len(images))
    buffers = [np.zeros((len(images), nx), t) for t in (np.float32, np.float32, np.int32)]
    for y in range(ny):
        for k, image in enumerate(images):
            for buffer, array in zip(buffers, (image.data, image.stat, image.dq), strict=True):
                if array is not None:
                    buffer[k] = array[y]
        combine_rows(buffers[0], buffers[1], buffers[2], data[y], stat[y], dq[y], *arguments)
    return MuseImage(data, dq, stat, first.unit, first.header.copy())
