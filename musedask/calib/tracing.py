"""Where the 48 slices of an IFU lie on its detector: search, measurement of edges, polynomials.

Pixels are counted from 1, as in the tables that come out of this; indices of arrays from 0.  The rules are
those of the reference pipeline (DRS 2.8.7), found by giving frames to it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import RecipeError
from ..instrument import N_SLICES
from ..io.calibrations import TraceSamples, TraceTable
from .fitting import CONVERGED, SINGULAR, fit_gaussian, guess_gaussian
from .statistics import fit_polynomial, iterfit, median_deviation

log = logging.getLogger("musedask")

FloatArray = NDArray[np.float64]

#: smallest and largest width of a slice [pix]
MIN_WIDTH, MAX_WIDTH = 72.2, 82.2
#: half widths of the windows in which a slice and one of its edges are looked at [pix]
HALF_WINDOW, HALF_EDGE = 55, 5
#: how far the refinement of its edges may move the middle of a slice [pix]
MAX_SHIFT = 0.25
#: the first slice begins within the first pixels, and none is longer than [pix]
FIRST_EDGE, LONGEST = 200, 100
#: rows on either side of the middle of the detector in which slices are searched
SEARCH_ROWS = 16
#: factor by which the level of an edge is lowered if slices are not told apart
LOWER = 1.2
#: outliers: in units of the median deviation of widths, and of the scatter about the polynomial
KAPPA = 5.0
#: points of a trace at least
LEAST_POINTS = 3
#: slope beyond which a trace is suspicious
MAX_SLOPE = 0.015

# how the measurement of a trace point ended
OK, NO_EDGE, MOVED, OUTSIDE = 0, 1, 2, 3
_REASONS = {NO_EDGE: "no edges", MOVED: "edges that do not agree", OUTSIDE: "a window beyond the detector"}


def trace(
    data: NDArray[np.float32],
    dq: NDArray[np.int32],
    *,
    border: int,
    nsum: int = 32,
    order: int = 5,
    edgefrac: float = 0.5,
    fallback: int | None = None,
) -> tuple[TraceTable, TraceSamples]:
    """Find the slices of an IFU and trace their edges.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Image of a continuum lamp.
    dq : ndarray of int32, shape (ny, nx)
        Pixels that are not 0 are replaced by the mean of their neighbours.
    border : int
        Number of rows of the lower quadrants; the slices are searched on both sides of it.
    nsum : int
        Rows to average for a trace point.
    order : int
        Of the polynomials.
    edgefrac : float
        Fraction of the median of a slice at which its edges are.
    fallback : int, optional
        Slices (1..48) from this one on keep the edges that were not refined, if that fails; see `measure`.

    Returns
    -------
    TraceTable
        NaN for slices whose trace could not be fitted.
    TraceSamples

    Raises
    ------
    RecipeError
        If the 48 slices are not found, or a parameter is out of its range.
    """
    for name, value, good, wanted in (
        ("nsum", nsum, nsum > 0, "above 0"),
        ("order", order, order > 0, "above 0"),
        ("edgefrac", edgefrac, 0.0 < edgefrac < 1.0, "between 0 and 1"),
    ):
        if not good:
            raise RecipeError(f"tracing: {name} {value} found, expected {wanted}")
    data = fill_bad(data, dq)
    slices = locate(search_cut(data, border), edgefrac)
    samples, _ = measure(data, slices.centres, nsum, edgefrac, fallback)
    return fit_traces(samples, order), samples


# --- search ----------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def fill_bad(data, dq):  # type: ignore[no-untyped-def]
    """Replace bad pixels by the mean of their good neighbours, from the border of a bad region inwards.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)
        Not 0: bad.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        A copy.
    """
    ny, nx = data.shape
    filled = data.copy()
    n = 0
    for j in range(ny):
        row = dq[j]
        for i in range(nx):
            n += row[i] != 0
    if n == 0:
        return filled
    ys, xs = np.empty(n, np.int32), np.empty(n, np.int32)
    bad = np.zeros((ny, nx), np.bool_)
    n = 0
    for j in range(ny):
        row = dq[j]
        for i in range(nx):
            if row[i] != 0:
                bad[j, i] = True
                ys[n], xs[n] = j, i
                n += 1
    values = np.empty(n, np.float64)
    while n > 0:
        for k in range(n):
            total, number = 0.0, 0
            for j in range(max(0, ys[k] - 1), min(ny, ys[k] + 2)):
                for i in range(max(0, xs[k] - 1), min(nx, xs[k] + 2)):
                    if not bad[j, i]:
                        total += filled[j, i]
                        number += 1
            values[k] = total / number if number else math.nan
        left = 0
        for k in range(n):
            if math.isnan(values[k]):
                ys[left], xs[left] = ys[k], xs[k]
                left += 1
            else:
                filled[ys[k], xs[k]] = values[k]
                bad[ys[k], xs[k]] = False
        if left == n:
            # there is no good pixel at all
            break
        n = left
    return filled


def search_cut(data: NDArray[np.float32], border: int) -> FloatArray:
    """Profile across the slices: the larger of those below and above the border of the quadrants.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    border : int
        Number of rows of the lower quadrants; its last row is left out.

    Returns
    -------
    ndarray of float64, shape (nx,)
        Each of the two has a mean of 1.
    """
    parts = data[max(0, border - 1 - SEARCH_ROWS) : border - 1], data[border : border + SEARCH_ROWS]
    sums = [p.sum(axis=0, dtype=np.float64) for p in parts]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum(*(s / s.mean() for s in sums))


@dataclass(frozen=True, eq=False)
class Slices:
    """Where the slices are in the middle of the detector.

    Attributes
    ----------
    left, right : ndarray of float64, shape (48,) [pix]
        Edges, from 0.
    centres : ndarray of int64, shape (48,) [pix]
        From 1.
    level : float
        Fraction of the median at which the edges are.
    """

    left: FloatArray
    right: FloatArray
    centres: NDArray[np.int64]
    level: float


def locate(cut: FloatArray, edgefrac: float = 0.5) -> Slices:
    """Search the 48 slices in a profile across them.

    Parameters
    ----------
    cut : ndarray of float64, shape (nx,)
    edgefrac : float
        Fraction of the median at which edges are; it is lowered as long as slices are not told apart.

    Raises
    ------
    RecipeError
        If the first slice is too narrow or too wide, or there are not 48.
    """
    median = float(np.median(cut))
    level = edgefrac
    while level > np.finfo(np.float64).eps:
        limit = level * median
        edges = _edges(np.flatnonzero(cut >= limit), np.flatnonzero(cut <= limit))
        if edges is not None:
            left, right = edges
            width = right[0] - left[0]
            if not MIN_WIDTH <= width <= MAX_WIDTH:
                raise RecipeError(
                    f"slices: the first is {width:.1f} pix wide ({left[0]:.1f} to {right[0]:.1f}) at "
                    f"{level:.2g} of the median, expected {MIN_WIDTH} to {MAX_WIDTH}"
                )
            if len(left) == len(right) == N_SLICES:
                # half up, as lround does for positive numbers
                centres = np.floor(0.5 * (left + right) + 0.5).astype(np.int64) + 1
                if np.diff(centres).min() >= MIN_WIDTH:
                    return Slices(left, right, centres, level)
        level /= LOWER
    raise RecipeError(f"slices: there are not {N_SLICES} of them, whatever level of an edge is taken")


def _edges(above: NDArray[np.intp], below: NDArray[np.intp]) -> tuple[FloatArray, FloatArray] | None:
    """Edges of slices, as many as there are; None if the first is not found.

    `above` and `below` are the sorted places at or above the limit and at or below it.
    """
    left: list[float] = []
    right: list[float] = []
    start = 0
    for s in range(N_SLICES):
        k = int(np.searchsorted(above, start))
        if k == len(above) or (s == 0 and above[k] > FIRST_EDGE):
            break
        left.append(above[k] - 0.5)
        k = int(np.searchsorted(below, above[k] + 1))
        if k == len(below) or below[k] > left[-1] + 0.5 + LONGEST:
            break
        right.append(below[k] - 0.5)
        start = int(below[k]) + 1
    return (np.array(left), np.array(right)) if right else None


# --- trace points ----------------------------------------------------------------------------------


def measure(
    data: NDArray[np.float32],
    centres: NDArray[np.int64],
    nsum: int = 32,
    edgefrac: float = 0.5,
    fallback: int | None = None,
) -> tuple[TraceSamples, NDArray[np.int32]]:
    """Measure the edges of slices, at every `nsum` rows.

    An edge is where the mean of the rows falls below a fraction of its median; then where its derivative has
    its peak, by the fit of a Gaussian.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Without bad pixels.
    centres : ndarray of int, shape (48,) [pix]
        Rough, from 1.
    nsum : int
        Rows to average.
    edgefrac : float
    fallback : int, optional
        Slices (1..48) from this one on keep points whose refined edges do not agree with the first ones: with
        the left edge that is further out.  So the reference treats IFU 24, where the last slices are
        vignetted.

    Returns
    -------
    samples : TraceSamples
        Points with both edges.
    status : ndarray of int32, shape (48, n)
        How each measurement ended: `OK`, `NO_EDGE`, `MOVED`, `OUTSIDE`.
    """
    n = max(0, (data.shape[0] - nsum - 1) // nsum + 1)
    points = np.full((len(centres), n, 4), np.nan)
    status = np.zeros((len(centres), n), np.int32)
    first = len(centres) if fallback is None else fallback - 1
    _measure(data, np.asarray(centres, np.int64), nsum, edgefrac, first, points, status)
    for s in np.flatnonzero((status != OK).any(axis=1)):
        codes, counts = np.unique(status[s][status[s] != OK], return_counts=True)
        reasons = ", ".join(f"{c} with {_REASONS[int(k)]}" for k, c in zip(codes, counts, strict=True))
        log.warning("slice %d: of %d trace points %s", s + 1, n, reasons)
    good = status == OK
    y, mid, left, right = points[good].T.copy()
    return TraceSamples((np.nonzero(good)[0] + 1).astype(np.int32), y, mid, left, right), status


@njit(nogil=True, cache=True, error_model="numpy")
def _measure(data, centres, nsum, edgefrac, fallback, points, status):  # type: ignore[no-untyped-def]
    nx = data.shape[1]
    size = 2 * HALF_WINDOW + 1
    # one pixel more at the left, for differences
    profile = np.empty(size + 1)
    for s in range(centres.size):
        x0 = centres[s] - HALF_WINDOW - 1
        for p in range(points.shape[1]):
            y0 = p * nsum
            points[s, p, 0] = y0 + 1 + 0.5 * (nsum - 1)
            if x0 < 0 or x0 + size > nx:
                status[s, p] = OUTSIDE
                continue
            profile[:] = 0.0
            start = 0 if x0 > 0 else 1
            for j in range(y0, y0 + nsum):
                row = data[j]
                for i in range(start, size + 1):
                    profile[i] += row[x0 - 1 + i]
            for i in range(size + 1):
                profile[i] /= nsum
            if start:
                profile[0] = profile[1]
            left, right = _threshold_edges(profile[1:], edgefrac)
            if not 0.0 <= left <= right <= size - 1:
                status[s, p] = NO_EDGE
                continue
            fine_left, fine_right = _refined(profile, left, 1.0), _refined(profile, right, -1.0)
            middle = 0.5 * (fine_left + fine_right)
            if not abs(middle - 0.5 * (left + right)) <= MAX_SHIFT:
                if s < fallback:
                    status[s, p] = MOVED
                    continue
                fine_left = min(fine_left, left)
                middle = 0.5 * (fine_left + fine_right)
            points[s, p, 1] = x0 + 1 + middle
            points[s, p, 2] = x0 + 1 + fine_left
            points[s, p, 3] = x0 + 1 + fine_right


@njit(nogil=True, cache=True, error_model="numpy")
def _threshold_edges(v, edgefrac):  # type: ignore[no-untyped-def]
    """Places where a profile falls below a fraction of its median, from the middle outwards; NaN if nowhere."""
    n = v.size
    limit = edgefrac * mean_of_ranks(v.copy(), n, (n - 1) // 2, n // 2)
    offset = 0
    left = right = math.nan
    while True:
        found = False
        for i in range(HALF_WINDOW + offset, n):
            if v[i] < limit:
                at = i - 1 + (limit - v[i - 1]) / (v[i] - v[i - 1])
                # in a dark column the interpolation goes astray; that is accepted only beyond its begin
                if abs(at - i) <= 1.0 or i > HALF_WINDOW + offset + 2:
                    right, found = at, True
                    if abs(at - i) > 1.0:
                        return left, right
                    break
        if not found:
            return math.nan, right
        found = False
        for i in range(HALF_WINDOW - offset, -1, -1):
            if v[i] < limit:
                at = i + (limit - v[i]) / (v[i + 1] - v[i])
                if abs(at - i) <= 1.0 or i < HALF_WINDOW - offset - 2:
                    left, found = at, True
                    if abs(at - i) > 1.0:
                        return left, right
                    break
        if not found:
            return math.nan, right
        if right - left + 1.0 >= MIN_WIDTH:
            return left, right
        # a dark column within the slice: begin again beyond it
        offset = int(min(HALF_WINDOW - left, right - HALF_WINDOW) + 2.0)


@njit(nogil=True, cache=True, error_model="numpy")
def mean_of_ranks(values, n, first, last):  # type: ignore[no-untyped-def]
    """Mean of two values by their ranks: with those in the middle, the median.

    Parameters
    ----------
    values : ndarray of float, shape (>= n,)
        The first n change their places.
    n : int
    first, last : int
        Ranks from 0: the same, or one and the next.

    Returns
    -------
    float64
    """
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if last <= j:
            high = j
        elif last >= i:
            low = i
        else:
            break
    upper = np.float64(values[last])
    if first == last:
        return upper
    lower = values[0]
    for i in range(1, last):
        lower = max(lower, values[i])
    return 0.5 * (upper + np.float64(lower))


@njit(nogil=True, cache=True, error_model="numpy")
def _refined(profile, edge, sign):  # type: ignore[no-untyped-def]
    """Place of the largest slope near an edge, or the edge itself if it cannot be fitted.

    `profile` has one pixel more at the left than that in which `edge` was found.
    """
    first = max(int(edge + 0.5) - HALF_EDGE, 0)
    n = min(int(edge + 0.5) + HALF_EDGE + 1, profile.size - 1) - first
    steps = np.empty(n)
    for i in range(n):
        steps[i] = max(sign * (profile[first + i + 1] - profile[first + i]), 0.0)
    total = 0.0
    for i in range(n):
        total += steps[i]
    if not total > 0.0:
        return edge
    # where there is no peak, or there are two, it matters where the fit begins and ends
    parameters, free = np.zeros(4), np.array([True, True, True, False])
    guess_gaussian(0.0, steps, parameters, free)
    code, _ = fit_gaussian(0.0, steps, np.ones(n), parameters, free, np.empty((4, 4)))
    place = first + parameters[0] - 0.5
    # what the fit began with may still do
    if code in (CONVERGED, SINGULAR) or abs(place - edge) <= MAX_SHIFT:
        return place
    return edge


# --- polynomials -----------------------------------------------------------------------------------


def fit_traces(samples: TraceSamples, order: int = 5) -> TraceTable:
    """Polynomials of centres and edges of all slices.

    Parameters
    ----------
    samples : TraceSamples
    order : int

    Returns
    -------
    TraceTable
        NaN for slices without enough points.
    """
    coefficients = np.full((3, N_SLICES, order + 1), np.nan)
    width = np.full(N_SLICES, np.nan)
    mse = np.full((N_SLICES, 3), np.nan)
    for s in range(N_SLICES):
        own = samples.ccd_slice == s + 1
        y, mid = samples.y[own], samples.mid[own]
        w = samples.right[own] - samples.left[own]
        keep = (w >= MIN_WIDTH) & (w <= MAX_WIDTH)
        if keep.any():
            median, deviation = median_deviation(w[keep])
            keep &= np.abs(w - median) <= KAPPA * deviation
        y, mid, w = y[keep], mid[keep], w[keep]
        least = max(order + 1, LEAST_POINTS)
        if len(y) < least:
            log.error("slice %d: its trace has %d points, expected at least %d", s + 1, len(y), least)
            continue
        centre, mse[s, 0], good = iterfit(y, mid, order, KAPPA)
        if not np.isfinite(centre).all():
            log.error("slice %d: its trace cannot be fitted", s + 1)
            continue
        if order and abs(centre[1]) > MAX_SLOPE:
            log.warning("slice %d: slope %.4f of its trace found, expected at most %g", s + 1, centre[1], MAX_SLOPE)
        coefficients[0, s] = centre
        # the reference takes as many widths as there are points left, but the first ones
        y, mid, w = y[good], mid[good], w[: np.count_nonzero(good)]
        for i, x in ((1, mid - 0.5 * w), (2, mid + 0.5 * w)):
            coefficients[i, s] = fit_polynomial(y, x, order)
            residual = x - np.polynomial.polynomial.polyval(y, coefficients[i, s])
            mse[s, i] = np.mean(residual**2)
        width[s] = w.mean()
    centre, left, right = coefficients
    return TraceTable(centre, left, right, width, mse)
