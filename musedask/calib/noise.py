"""Noise and level of an image by standard deviations and means in windows at random places, as CPL measures them.

The places follow from a seed by the generator of pseudo-random numbers of the GNU C library, so that they are those
of the reference pipeline, and the noise has all digits of it (found by calls of CPL 7.2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: half size of a window, and size [pix]
HALF = 9
SIZE = 2 * HALF + 1
#: number of windows for the noise, and for the level
WINDOWS, LEVEL_WINDOWS = 100, 300
#: pixels of a window
PIXELS = SIZE**2
#: seeds that are tried until the windows agree within this fraction; the last one stands
SEEDS, LARGEST_SCATTER = (1, 101, 201, 301, 401), 0.1
#: rows and columns that an image must have
_SMALLEST = SIZE + 2
#: trials for a window, in an image that has no room for more
_TRIALS = 1_000_000


@njit(nogil=True, cache=True)
def _next(state):  # type: ignore[no-untyped-def]
    """Next number of the generator: the sum of two of the last 31; the last element of `state` is where it goes."""
    place = state[31]
    state[place] = (state[place] + state[(place + 28) % 31]) & 0xFFFFFFFF
    state[31] = (place + 1) % 31
    return state[place] >> 1


@njit(nogil=True, cache=True)
def _generator(seed):  # type: ignore[no-untyped-def]
    """State of the generator after `srand(seed)`."""
    state = np.empty(32, np.int64)
    state[0] = seed
    for i in range(1, 31):
        state[i] = (16807 * state[i - 1]) % 2147483647
    state[31] = 3
    for _ in range(310):
        _next(state)
    return state


@njit(nogil=True, cache=True)
def window_places(x0, x1, y0, y1, number, seed):  # type: ignore[no-untyped-def]
    """Middles of windows in a part of an image, not too close to each other (nor to the corner of the image).

    Parameters
    ----------
    x0, x1, y0, y1 : int
        First and last pixels of the part, from 1. Middles are at least 10 from them.
    number : int
        Of windows.
    seed : int

    Returns
    -------
    x, y : ndarray of int64, shape (number,) [pix]
        From 1; fewer if there is no room for more.
    """
    left, right, bottom, top = x0 + HALF + 1, x1 - HALF - 1, y0 + HALF + 1, y1 - HALF - 1
    nearest = (right - left) * (top - bottom) / (number + 2) / math.sqrt(2.0)
    x, y = np.zeros(number + 1), np.zeros(number + 1)
    state = _generator(seed)
    # the first one is the corner
    n = 1
    for _ in range(_TRIALS):
        x[n] = left + _next(state) / 2147483647.0 * (right - left)
        y[n] = bottom + _next(state) / 2147483647.0 * (top - bottom)
        free = True
        for i in range(n):
            if (x[i] - x[n]) ** 2 + (y[i] - y[n]) ** 2 < nearest:
                free = False
                break
        if free:
            n += 1
            if n > number:
                break
    return x[1:n].astype(np.int64), y[1:n].astype(np.int64)


@njit(nogil=True, cache=True)
def _scatter(a, b, x, y):  # type: ignore[no-untyped-def]
    """Standard deviations of the difference of two images in windows."""
    out = np.empty(x.size)
    for w in range(x.size):
        total = square = 0.0
        for j in range(y[w] - 1 - HALF, y[w] + HALF):
            for i in range(x[w] - 1 - HALF, x[w] + HALF):
                d = np.float64(a[j, i] - b[j, i])
                total += d
                square += d * d
        out[w] = np.sqrt(max(square - total * total / PIXELS, 0.0) / (PIXELS - 1))
    return out


def noise_of_difference(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    part: tuple[slice, slice],
    fill: Callable[[NDArray[np.bool_]], None] | None = None,
) -> tuple[float, float]:
    """Noise of the difference of two images in a part of them.

    The median of the standard deviations in windows; where these differ much, for a cosmic ray in one of them, other
    windows are tried.

    Parameters
    ----------
    a, b : ndarray of float32, shape (ny, nx)
    part : (slice, slice)
        Rows and columns.
    fill : callable, optional
        Is told which rows of both images will be needed, as an array of shape (ny,), before they are.

    Returns
    -------
    noise : float
        NaN if the part is smaller than a window.
    scatter : float
        Standard deviation of the values of the windows.
    """
    rows, columns = part
    if min(rows.stop - rows.start, columns.stop - columns.start) < _SMALLEST:
        return math.nan, math.nan
    noise = scatter = math.nan
    for seed in SEEDS:
        x, y = window_places(columns.start + 1, columns.stop, rows.start + 1, rows.stop, WINDOWS, seed)
        if fill is not None:
            needed = np.zeros(len(a), np.bool_)
            for middle in y:
                needed[middle - 1 - HALF : middle + HALF] = True
            fill(needed)
        noise, scatter = _median_and_scatter(_scatter(a, b, x, y))
        if not scatter > LARGEST_SCATTER * noise:
            break
    return noise, scatter


@njit(nogil=True, cache=True)
def _means(data, dq, x, y):  # type: ignore[no-untyped-def]
    """Means of the good pixels in windows; NaN where there is none."""
    out = np.empty(x.size)
    for w in range(x.size):
        n, total = 0, 0.0
        for j in range(y[w] - 1 - HALF, y[w] + HALF):
            for i in range(x[w] - 1 - HALF, x[w] + HALF):
                if dq[j, i] == 0:
                    n += 1
                    total += np.float64(data[j, i])
        out[w] = total / n if n else np.nan
    return out


def level_in_windows(data: NDArray[np.float32], dq: NDArray[np.int32]) -> tuple[float, float]:
    """Level of an image that is a small one beside its noise.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)
        Pixels that are not 0 are left out.

    Returns
    -------
    level, scatter : float
        Median and standard deviation of the means in 300 windows. NaN if no pixel of them is good, or the image is
        smaller than a window.
    """
    if min(data.shape) < _SMALLEST:
        return math.nan, math.nan
    # where no part is chosen the first windows may touch the edge
    means = _means(data, dq, *window_places(0, data.shape[1], 0, data.shape[0], LEVEL_WINDOWS, SEEDS[0]))
    return _median_and_scatter(means[np.isfinite(means)])


def _median_and_scatter(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of what windows have given; NaN if there is none."""
    if not len(values):
        return math.nan, math.nan
    return float(np.median(values)), float(values.std(ddof=1)) if len(values) > 1 else 0.0
