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
#: rows of a band
BAND = 8


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
def _insert(values, which, n, value, k, stat, i):  # type: ignore[no-untyped-def]
    """Insert a value into the first n, which are sorted; equal ones come in the order of their variances."""
    j = n
    while j > 0 and (values[j - 1] > value or (values[j - 1] == value and stat[which[j - 1], i] > stat[k, i])):
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
    good = 0
    for k in range(n):
        if dq[k, i] == 0:
            if method == 0 or method == 4:
                values[good] = data[k, i]
                which[good] = k
            else:
                _insert(values, which, good, np.float64(data[k, i]), k, stat, i)
            good += 1
    if good == 0:
        best = 0
        for k in range(1, n):
            if np.uint32(dq[k, i]) < np.uint32(dq[best, i]):
                best = k
        out_data[i], out_stat[i], out_dq[i] = data[best, i], stat[best, i], dq[best, i]
        return
    out_dq[i] = 0
    first, last = 0, good
    h = good // 2
    if method == 1:
        if good % 2:
            out_data[i] = values[h]
            out_stat[i] = stat[which[h], i]
        else:
            out_data[i] = 0.5 * (values[h - 1] + values[h])
            out_stat[i] = np.float64(stat[which[h - 1], i]) + np.float64(stat[which[h], i])
        return
    if method == 2:
        flags = 0
        k = 0
        # as many of the bad values as are needed come back, in the order of the images
        while good - nlow - nhigh < nkeep and k < n:
            if dq[k, i] != 0:
                _insert(values, which, good, np.float64(data[k, i]), k, stat, i)
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
        variance += stat[which[j], i]
    if method == 4:
        out_data[i] = total * n / left
        out_stat[i] = variance * n * n / (left * left)
    else:
        out_data[i] = total / left
        out_stat[i] = variance / (left * left)


# The functions below work on rows of many good pixels at once: their loops become vector instructions.


@njit(nogil=True, cache=True, error_model="numpy")
def _exchange(low, high):  # type: ignore[no-untyped-def]
    """Bring the smaller values into `low`, the larger into `high`."""
    for i in range(low.size):
        u, v = low[i], high[i]
        low[i] = u if u < v else v
        high[i] = v if u < v else u


@njit(nogil=True, cache=True, error_model="numpy")
def _exchange_both(low, high, low_stat, high_stat):  # type: ignore[no-untyped-def]
    """The same with variances; equal values come in the order of these."""
    for i in range(low.size):
        u, v, p, q = low[i], high[i], low_stat[i], high_stat[i]
        right = (u < v) | ((u == v) & (p <= q))
        low[i] = u if right else v
        high[i] = v if right else u
        low_stat[i] = p if right else q
        high_stat[i] = q if right else p


@njit(nogil=True, cache=True, error_model="numpy")
def _deviations(row, middle, deviation):  # type: ignore[no-untyped-def]
    for i in range(row.size):
        deviation[i] += abs(np.float64(row[i]) - middle[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _limits(lower, upper, middle):  # type: ignore[no-untyped-def]
    for i in range(lower.size):
        middle[i] = 0.5 * (np.float64(lower[i]) + np.float64(upper[i]))


@njit(nogil=True, cache=True, error_model="numpy")
def _clip(middle, deviation, n, lsigma, hsigma):  # type: ignore[no-untyped-def]
    """Turn median and sum of deviations into the limits."""
    for i in range(middle.size):
        mean = deviation[i] / n
        low, high = middle[i] - lsigma * mean, middle[i] + hsigma * mean
        equal = low == high
        middle[i] = -np.inf if equal else low
        deviation[i] = np.inf if equal else high


@njit(nogil=True, cache=True, error_model="numpy")
def _add_inside(row, errors, low, high, total, variance, count):  # type: ignore[no-untyped-def]
    for i in range(row.size):
        value = np.float64(row[i])
        inside = (low[i] <= value) & (value <= high[i])
        total[i] += value if inside else 0.0
        variance[i] += np.float64(errors[i]) if inside else 0.0
        count[i] += 1.0 if inside else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def _add(row, errors, total, variance):  # type: ignore[no-untyped-def]
    for i in range(row.size):
        total[i] += row[i]
        variance[i] += errors[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _divide(total, variance, count, out_data, out_stat):  # type: ignore[no-untyped-def]
    for i in range(total.size):
        out_data[i] = total[i] / count[i]
        out_stat[i] = variance[i] / (count[i] * count[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _or(flags, bad):  # type: ignore[no-untyped-def]
    for i in range(bad.size):
        bad[i] |= flags[i]


@njit(nogil=True, cache=True, error_model="numpy")
def combine_rows(data, stat, dq, out_data, out_stat, out_dq, pairs, method, nlow, nhigh, nkeep, lsigma, hsigma):  # type: ignore[no-untyped-def]
    """Combine pixels of n images.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (n, m)
    dq : ndarray of int32, shape (n, m)
    out_data, out_stat : ndarray of float32, shape (m,)
    out_dq : ndarray of int32, shape (m,)
    pairs : ndarray of int64, shape (p, 2)
        See `sorting_network`.
    method, nlow, nhigh, nkeep, lsigma, hsigma
        See `CombineParams`; the method is a number.
    """
    n, m = data.shape
    values = np.empty(n, np.float64)
    which = np.empty(n, np.int64)
    ordered = np.empty((2, n, _BLOCK), np.float32)
    work = np.empty((5, _BLOCK), np.float64)
    flags = np.empty(_BLOCK, np.int32)
    for a in range(0, m, _BLOCK):
        b = min(a + _BLOCK, m)
        size = b - a
        bad = flags[:size]
        bad[:] = 0
        for k in range(n):
            _or(dq[k, a:b], bad)
        low, high = work[0, :size], work[1, :size]
        total, variance, count = work[2, :size], work[3, :size], work[4, :size]
        total[:] = 0.0
        variance[:] = 0.0
        out, out_error = out_data[a:b], out_stat[a:b]
        if method == 0 or method == 4:
            count[:] = n if method == 0 else 1.0
            for k in range(n):
                _add(data[k, a:b], stat[k, a:b], total, variance)
        elif method == 3:
            count[:] = 0.0
            high[:] = 0.0
            for k in range(n):
                ordered[0, k, :size] = data[k, a:b]
            for p in range(pairs.shape[0]):
                _exchange(ordered[0, pairs[p, 0], :size], ordered[0, pairs[p, 1], :size])
            _limits(ordered[0, (n - 1) // 2, :size], ordered[0, n // 2, :size], low)
            for k in range(n):
                _deviations(data[k, a:b], low, high)
            _clip(low, high, n, lsigma, hsigma)
            for k in range(n):
                _add_inside(data[k, a:b], stat[k, a:b], low, high, total, variance, count)
        else:
            for k in range(n):
                ordered[0, k, :size] = data[k, a:b]
                ordered[1, k, :size] = stat[k, a:b]
            for p in range(pairs.shape[0]):
                i, j = pairs[p]
                _exchange_both(
                    ordered[0, i, :size], ordered[0, j, :size], ordered[1, i, :size], ordered[1, j, :size]
                )
            first, last = (nlow, n - nhigh) if method == 2 else ((n - 1) // 2, n // 2 + 1)
            count[:] = last - first
            for k in range(first, last):
                _add(ordered[0, k, :size], ordered[1, k, :size], total, variance)
        _divide(total, variance, count, out, out_error)
        if method == 1 and n % 2 == 0:
            # as the reference has it: the sum of the variances of the two in the middle
            for i in range(size):
                out_error[i] = variance[i]
        for i in range(a, b):
            # not a number: nothing is left, which is not to be
            if bad[i - a] == 0 and out_data[i] == out_data[i]:
                out_dq[i] = 0
            else:
                _combine_pixel(
                    data, stat, dq, i, out_data, out_stat, out_dq, method, nlow, nhigh, nkeep, lsigma, hsigma, values,
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
    buffers = [np.zeros((len(images), BAND * nx), t) for t in (np.float32, np.float32, np.int32)]
    for y in range(0, ny, BAND):
        rows = slice(y, min(y + BAND, ny))
        m = (rows.stop - rows.start) * nx
        for k, image in enumerate(images):
            for buffer, array in zip(buffers, (image.data, image.stat, image.dq), strict=True):
                if array is not None:
                    buffer[k, :m] = array[rows].reshape(-1)
        combine_rows(
            *(buffer[:, :m] for buffer in buffers),
            *(array[rows].reshape(-1) for array in (data, stat, dq)),
            *arguments,
        )
    return MuseImage(data, dq, stat, first.unit, first.header.copy())
