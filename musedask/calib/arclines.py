"""Lines of arc lamps in the spectra of a slice: detection, identification, measurement.

Pixels are counted from 1, as in the tables of the reference pipeline; arrays from 0.  The rules are those of
the reference (DRS 2.8.7), found by giving frames to it; that of the identification gives the same lines in
practice, by a method of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..instrument import SPECTRAL_SAMPLING
from .combination import CombineParams, combine_rows, kernel_arguments
from .fitting import CONVERGED, TOO_FEW, fit_gaussian, fit_gaussians, guess_gaussian, solve

FloatArray = NDArray[np.float64]

#: width of a line as the slit makes it [Angstrom]
SLIT_WIDTH = 2.61
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
#: width that lines are expected to have [pix]
LINE_SIGMA = SLIT_WIDTH / SPECTRAL_SAMPLING / FWHM_PER_SIGMA
#: rows on both sides of a line that are fitted
HALF_WINDOW = int(3.0 * SLIT_WIDTH / SPECTRAL_SAMPLING)

#: width of the running median that is the background of a spectrum [pix]
BACKGROUND_WINDOW = 51
#: least limit of the signal-to-noise of a detection
LEAST_LIMIT = 0.1
#: rows by which a detection is enlarged on each side, at most
ENLARGEMENT = 5
#: detected lines are good up to this error of the centre [pix], between these widths [pix], and from this flux on
LARGEST_ERROR, FWHM_RANGE, LEAST_FLUX = 1.25, (1.0, 5.0), 50.0
#: error of the centre where the fit gives none [pix]
BAD_ERROR = 100.0

#: pairs of lines closer than this are not used to identify others [Angstrom]
CLOSEST_PAIR = 1.5
#: lines of the catalogue are used from this multiple of the least detected flux on
FLUX_FACTOR = 1.15
#: consecutive lines that must be identified together
LEAST_RUN = 4
#: how near a line must be to where its neighbours say it is, between identified lines and beyond them [pix]
NEAR_BETWEEN, NEAR_BEYOND = 2.0, 6.0
#: how much the dispersion between identified lines may exceed the range of that of neighbours
_SLACK = 1.1

#: largest distance of a fitted line from where it was expected [pix]
LARGEST_SHIFT = 2.0
#: shift up to which the next column follows [pix]
FOLLOWED_SHIFT = 0.25
#: lines up to this distance from the first belong to a multiplet [Angstrom]
MULTIPLET_RANGE = 40.0
#: error of the points of a line whose centres cannot be fitted by a curve [pix]
UNFITTED_ERROR = 10.0

#: quality of a line in the catalogue
FOR_IDENTIFICATION, IN_MULTIPLET, FWHM_REFERENCE = 1, 2, 5


# --- detection -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detections:
    """Lines detected in a spectrum, in order of position.

    Attributes
    ----------
    position : ndarray of float64, shape (n,) [pix]
        Middle of the pixels above the limit.
    peak : ndarray of float64, shape (n,)
        Largest value.
    centre, error, sigma, fwhm : ndarray of float64, shape (n,) [pix]
        From the fit of a Gaussian.
    flux, background : ndarray of float64, shape (n,)
    lamp : ndarray of int64, shape (n,)
        Number of the image.
    wave : ndarray of float64, shape (n,) [Angstrom]
        NaN unless identified.
    """

    position: FloatArray
    peak: FloatArray
    centre: FloatArray
    error: FloatArray
    sigma: FloatArray
    fwhm: FloatArray
    flux: FloatArray
    background: FloatArray
    lamp: NDArray[np.int64]
    wave: FloatArray

    def __len__(self) -> int:
        return len(self.centre)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        """Some of the lines."""
        return Detections(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @staticmethod
    def join(parts: list[Detections]) -> Detections:
        """Lines of several spectra in order of their centres."""
        names = Detections.__dataclass_fields__
        joined = Detections(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))
        return joined.take(np.argsort(joined.centre, kind="stable"))


def centre_spectrum(
    data: NDArray[np.float32], dq: NDArray[np.int32], stat: NDArray[np.float32], column: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Spectrum and variance along four columns: the median of good pixels in each row.

    Parameters
    ----------
    data, dq, stat : ndarray, shape (ny, nx)
    column : int
        The second of the four.

    Returns
    -------
    data, stat : ndarray of float32, shape (ny,)
    """
    low, high = max(column - 2, 0), min(column + 2, data.shape[1])
    arguments: list[Any] = [np.ascontiguousarray(a[:, low:high].T) for a in (data, stat, dq)]
    values: NDArray[np.float32] = np.empty(len(data), np.float32)
    variances: NDArray[np.float32] = np.empty(len(data), np.float32)
    quality = np.empty(len(data), np.int32)
    arguments += [values, variances, quality, *kernel_arguments(CombineParams("median"), high - low)]
    combine_rows(*arguments)
    return values, variances


@njit(nogil=True, cache=True)
def running_median(values, window):  # type: ignore[no-untyped-def]
    """Median of a window around each value; at both ends of what there is of the window.

    Parameters
    ----------
    values : ndarray of float, shape (n,)
    window : int
        Odd.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    n = values.size
    half = window // 2
    out = np.empty(n)
    ordered = np.empty(window + 1)
    m = 0
    for i in range(-half, n):
        if i + half < n:
            v = values[i + half]
            j = m
            while j > 0 and ordered[j - 1] > v:
                ordered[j] = ordered[j - 1]
                j -= 1
            ordered[j] = v
            m += 1
        if i - half - 1 >= 0:
            v = values[i - half - 1]
            j = 0
            while ordered[j] != v and j < m - 1:
                j += 1
            for k in range(j, m - 1):
                ordered[k] = ordered[k + 1]
            m -= 1
        if i >= 0:
            h = m // 2
            out[i] = ordered[h] if m % 2 else 0.5 * (ordered[h - 1] + ordered[h])
    return out


@njit(nogil=True, cache=True)
def _fit_runs(data, stat, above, out):  # type: ignore[no-untyped-def]
    """Fit lines where at least two pixels in a row are above the limit; returns their number."""
    n = data.size
    free = np.ones(4, np.bool_)
    p, covariance = np.empty(4), np.empty((4, 4))
    found = 0
    i = 0
    while i < n:
        if not above[i]:
            i += 1
            continue
        first = i
        while i < n and above[i]:
            i += 1
        last = i - 1
        if last == first:
            continue
        low, high = first, last
        while low > 0 and first - low < ENLARGEMENT and data[low - 1] < data[first]:
            low -= 1
        while high < n - 1 and high - last < ENLARGEMENT and data[high + 1] < data[last]:
            high += 1
        peak = data[first]
        for k in range(first, last + 1):
            peak = max(peak, data[k])
        values = data[low : high + 1].astype(np.float64)
        weights = np.zeros(high + 1 - low)
        for k in range(low, high + 1):
            weights[k - low] = 1.0 / stat[k] if stat[k] > 0.0 else 0.0

        guess_gaussian(low + 1.0, values, p, free)
        status, _ = fit_gaussian(low + 1.0, values, weights, p, free, covariance)
        error = BAD_ERROR
        if status == CONVERGED:
            error = math.sqrt(covariance[0, 0])
        elif status != TOO_FEW and p[2] > 0.0:
            error = math.sqrt(p[1] * p[1] / p[2])
        out[found, 0], out[found, 1] = 0.5 * (first + last) + 1.0, peak
        out[found, 2], out[found, 3] = p[0], error
        out[found, 4], out[found, 5], out[found, 6] = p[1], p[2], p[3]
        found += 1
    return found


def detect_lines(
    data: NDArray[np.float32], stat: NDArray[np.float32], sigma: float, lamp: int = 0
) -> Detections:
    """Find lines in a spectrum.

    Where the signal-to-noise above the running median exceeds its median by `sigma` median deviations in two
    or more pixels in a row, a Gaussian is fitted; lines that are too faint, too narrow, too broad or not well
    centred are left out.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (n,)
    sigma : float
    lamp : int
        Number to give to them.
    """
    background = running_median(data, BACKGROUND_WINDOW)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (data - background) / np.sqrt(stat)
    median = np.median(ratio)
    limit = max(LEAST_LIMIT, float(median + sigma * np.mean(np.abs(ratio - median))))
    out = np.empty((len(data) // 2 + 1, 7))
    position, peak, centre, error, width, flux, level = out[: _fit_runs(data, stat, ratio > limit, out)].T
    found = Detections(
        position, peak, centre, error, width, width * FWHM_PER_SIGMA, flux, level,
        np.full(len(centre), lamp), np.full(len(centre), np.nan),
    )  # fmt: skip
    low, high = FWHM_RANGE
    return found.take((error <= LARGEST_ERROR) & (found.fwhm >= low) & (found.fwhm <= high) & (flux >= LEAST_FLUX))


# --- identification --------------------------------------------------------------------------------


def usable_lines(wave: FloatArray, flux: FloatArray, least: float) -> NDArray[np.bool_]:
    """Lines of a catalogue that can be told apart and are bright enough to be expected.

    Parameters
    ----------
    wave : ndarray of float64, shape (n,) [Angstrom]
        Ascending.
    flux : ndarray of float64, shape (n,)
    least : float
        Least flux of a detected line.
    """
    use = flux >= FLUX_FACTOR * least
    bright = np.flatnonzero(use)
    close = np.flatnonzero(np.diff(wave[bright]) < CLOSEST_PAIR)
    use[bright[close]] = False
    use[bright[close + 1]] = False
    return use


@njit(nogil=True, cache=True)
def _count_patterns(peaks, lines, low, high, tolerance):  # type: ignore[no-untyped-def]
    """How often a peak and a line belong to three peaks and three neighbouring lines with equal ratios."""
    n, m = peaks.size, lines.size
    votes = np.zeros((n, m), np.int64)
    for i in range(1, m - 1):
        below, above = lines[i] - lines[i - 1], lines[i + 1] - lines[i]
        ratio = above / below
        for k in range(1, n - 1):
            j = k - 1
            while j >= 0 and (peaks[k] - peaks[j]) * low <= below:
                if (peaks[k] - peaks[j]) * high >= below:
                    q = k + 1
                    while q < n and (peaks[q] - peaks[k]) * low <= above:
                        if (peaks[q] - peaks[k]) * high >= above:
                            measured = (peaks[q] - peaks[k]) / (peaks[k] - peaks[j])
                            if abs(measured - ratio) < tolerance * ratio:
                                votes[j, i - 1] += 1
                                votes[k, i] += 1
                                votes[q, i + 1] += 1
                        q += 1
                j -= 1
    return votes


@njit(nogil=True, cache=True)
def _best_chain(peak, line, votes, peaks, lines, low, high):  # type: ignore[no-untyped-def]
    """Ascending pairs with most votes in all, whose dispersions are possible; as marks."""
    n = peak.size
    best = votes.astype(np.int64)
    before = np.full(n, -1)
    for b in range(n):
        for a in range(b):
            # the first of these is what most fail
            if best[a] + votes[b] > best[b] and peak[a] < peak[b] and line[a] < line[b]:
                dispersion = (lines[line[b]] - lines[line[a]]) / (peaks[peak[b]] - peaks[peak[a]])
                if low <= dispersion <= high:
                    best[b] = best[a] + votes[b]
                    before[b] = a
    marks = np.zeros(n, np.bool_)
    i = int(np.argmax(best)) if n else -1
    while i >= 0:
        marks[i] = True
        i = before[i]
    return marks


def match_pattern(
    peaks: FloatArray, lines: FloatArray, low: float, high: float, tolerance: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Identify detected peaks with lines of a catalogue by the pattern of their distances.

    Triples of neighbouring lines are sought among the peaks: both distances within the range of the dispersion
    and with the right ratio.  Each triple found speaks for three pairs of a peak and a line; of all ascending
    sequences of pairs that with the most votes is taken, as far as at least four lines in a row belong to it.
    Then lines between identified ones are looked for where a linear interpolation puts them, and one more
    beyond each end.

    Parameters
    ----------
    peaks : ndarray of float64, shape (n,) [pix]
        Ascending.
    lines : ndarray of float64, shape (m,) [Angstrom]
        Ascending.
    low, high : float
        Range of the dispersion [Angstrom/pix].
    tolerance : float
        Of the ratio of distances.

    Returns
    -------
    peak, line : ndarray of intp, shape (k,)
        Indices of identified pairs.
    """
    none = np.zeros(0, np.intp)
    if len(peaks) < LEAST_RUN or len(lines) < LEAST_RUN:
        return none, none
    votes = _count_patterns(peaks, lines, low, high, tolerance)
    peak, line = np.nonzero(votes)
    marks = _best_chain(peak, line, votes[peak, line], peaks, lines, low / _SLACK, high * _SLACK)
    chain = dict(zip(line[marks].tolist(), peak[marks].tolist(), strict=True))
    found: dict[int, int] = {}
    for i in chain:
        first, last = i, i
        while first - 1 in chain:
            first -= 1
        while last + 1 in chain:
            last += 1
        if last - first + 1 >= LEAST_RUN:
            found[i] = chain[i]
    if not found:
        return none, none

    def look(i: int, a: int, b: int, near: float) -> None:
        """Look for a line where two others say that it is."""
        slope = (peaks[found[b]] - peaks[found[a]]) / (lines[b] - lines[a])
        expected = peaks[found[a]] + slope * (lines[i] - lines[a])
        j = int(np.argmin(np.abs(peaks - expected)))
        if abs(peaks[j] - expected) < near and j not in taken:
            found[i] = j
            taken.add(j)

    taken = set(found.values())
    sure = sorted(found)
    for a, b in itertools.pairwise(sure):
        for i in range(a + 1, b):
            look(i, a, b, NEAR_BETWEEN)
    sure = sorted(found)
    if sure[0] > 0:
        look(sure[0] - 1, sure[0], sure[1], NEAR_BEYOND)
    if sure[-1] < len(lines) - 1:
        look(sure[-1] + 1, sure[-1], sure[-2], NEAR_BEYOND)
    pairs = sorted((j, i) for i, j in found.items())
    return np.array([j for j, _ in pairs], np.intp), np.array([i for _, i in pairs], np.intp)


def identify(
    detected: Detections, wave: FloatArray, flux: FloatArray, *, dres: float, tolerance: float
) -> Detections:
    """Detected lines that can be identified, with their wavelengths.

    Parameters
    ----------
    detected : Detections
    wave, flux : ndarray of float64, shape (n,)
        Lines of a catalogue that may be among them, ascending [Angstrom].
    dres : float
        Fraction by which the dispersion may differ from 1.25 Angstrom/pix.
    tolerance : float
    """
    if not len(detected):
        return detected
    detected = detected.take(np.argsort(detected.centre, kind="stable"))
    lines = wave[usable_lines(wave, flux, float(detected.flux.min()))]
    low, high = SPECTRAL_SAMPLING * (1.0 - dres), SPECTRAL_SAMPLING * (1.0 + dres)
    peak, line = match_pattern(detected.centre, lines, low, high, tolerance)
    detected.wave[peak] = lines[line]
    return detected.take(peak)


# --- measurement -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Lines of a catalogue, and the images on which they are measured.

    Attributes
    ----------
    wave, flux : ndarray of float64, shape (n,)
        Ascending wavelengths [Angstrom].
    quality : ndarray of int32, shape (n,)
    lamp : ndarray of str, shape (n,)
    image : ndarray of int64, shape (n,)
        Number of the image, -1 if there is none of its lamp: then it is measured on the last one, where there should be
        no light, but not used for the identification.
    """

    wave: FloatArray
    flux: FloatArray
    quality: NDArray[np.int32]
    lamp: NDArray[np.str_]
    image: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Positions of lines.

    Attributes
    ----------
    x, y : ndarray of float64, shape (n,) [pix]
    wave, error : ndarray of float64, shape (n,) [Angstrom]
        Of the line, and the error of the position.
    fwhm, fwhm_wave : ndarray of float64, shape (m,) [Angstrom]
        Widths of lines that are references for that, and their wavelengths.
    """

    x: FloatArray
    y: FloatArray
    wave: FloatArray
    error: FloatArray
    fwhm: FloatArray
    fwhm_wave: FloatArray


@njit(nogil=True, cache=True)
def polynomial(coefficients, x):  # type: ignore[no-untyped-def]
    """Value of a polynomial, coefficients in ascending powers."""
    value = 0.0
    for c in coefficients[::-1]:
        value = value * x + c
    return value


@njit(nogil=True, cache=True)
def _reject(x, y, n, order, kappa, keep):  # type: ignore[no-untyped-def]
    """Fit a polynomial, reject all at or beyond kappa times the scatter, repeat.

    Returns the variance, NaN if there are too few points from the beginning.
    """
    low, high = x[0], x[0]
    for i in range(n):
        keep[i] = True
        low, high = min(low, x[i]), max(high, x[i])
    scale = 2.0 / (high - low) if high > low else 1.0
    m = order + 1
    a, b, basis = np.empty((m, m)), np.empty(m), np.empty((n, m))
    for i in range(n):
        # Chebyshev polynomials: their normal equations are well conditioned
        t = (x[i] - low) * scale - 1.0
        for j in range(m):
            basis[i, j] = 1.0 if j == 0 else (t if j == 1 else 2.0 * t * basis[i, j - 1] - basis[i, j - 2])
    left = n
    variance = math.nan
    while True:
        if left < m:
            # what is left after a rejection stays, as in the reference
            return variance
        a[:, :] = 0.0
        b[:] = 0.0
        for i in range(n):
            if keep[i]:
                for j in range(m):
                    b[j] += basis[i, j] * y[i]
                    for k in range(j + 1):
                        a[j, k] += basis[i, j] * basis[i, k]
        if not solve(a, b, m):
            return math.nan
        variance = 0.0
        for i in range(n):
            if keep[i]:
                r = y[i]
                for j in range(m):
                    r -= b[j] * basis[i, j]
                variance += r * r
        variance /= left
        limit = kappa * math.sqrt(variance)
        removed = 0
        if variance > 0.0:
            for i in range(n):
                if keep[i]:
                    r = y[i]
                    for j in range(m):
                        r -= b[j] * basis[i, j]
                    if abs(r) >= limit:
                        keep[i] = False
                        removed += 1
        if removed == 0:
            return variance
        left -= removed


@njit(nogil=True, cache=True)
def measure_single(data, stat, y0, first, last, middle, half, free_sigma, out):  # type: ignore[no-untyped-def]
    """Measure a line in all columns of a slice.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (ny, nx)
    y0 : float
        Where it is expected [pix].
    first, last, middle : int
        Columns of the slice, and the one to start from.
    half : int
        Rows on both sides of the line that are fitted.
    free_sigma : bool
        Whether its width is fitted.
    out : ndarray of float64, shape (>= columns, 4)
        Filled with column, centre, its error and width (FWHM) [pix].

    Returns
    -------
    int
        Number of columns that were measured: first those to the left of the middle, outwards.
    """
    free = np.ones(4, np.bool_)
    free[1] = free_sigma
    size = 2 * half + 1
    p, covariance = np.empty(4), np.empty((4, 4))
    values, weights = np.empty(size), np.empty(size)
    found = 0
    for side in range(2):
        y = y0
        for step in range(last - first + 1):
            x = middle - step if side == 0 else middle + 1 + step
            if x < first or x > last:
                break
            low = int(y) - half
            if low < 1 or low + size - 1 > data.shape[0]:
                break
            for k in range(size):
                values[k] = data[low - 1 + k, x - 1]
                v = stat[low - 1 + k, x - 1]
                weights[k] = 1.0 / v if v > 0.0 else 0.0
            p[1] = LINE_SIGMA
            guess_gaussian(float(low), values, p, free)
            status, _ = fit_gaussian(float(low), values, weights, p, free, covariance)
            if status != CONVERGED:
                continue
            error = math.sqrt(covariance[0, 0])
            shift = abs(p[0] - y)
            if not shift <= LARGEST_SHIFT:
                continue
            out[found, 0], out[found, 1], out[found, 2], out[found, 3] = x, p[0], error, p[1] * FWHM_PER_SIGMA
            found += 1
            if side == 0 and shift < FOLLOWED_SHIFT:
                y = p[0]
    return found


@njit(nogil=True, cache=True)
def measure_multiplet(data, stat, y0, flux, first, last, middle, out):  # type: ignore[no-untyped-def]
    """Measure blended lines in all columns of a slice: Gaussians of one width on a straight line.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (ny, nx)
    y0 : ndarray of float64, shape (k,)
        Where they are expected [pix].
    flux : ndarray of float64, shape (k,)
        Fluxes to start from.
    first, last, middle : int
        Columns of the slice, and the one to start from.
    out : ndarray of float64, shape (k, >= columns, 3)
        Filled with column, centre and its error [pix] of each line.

    Returns
    -------
    int
        Number of columns that were measured, in order as in `measure_single`.
    """
    k = y0.size
    p, covariance = np.empty(2 * k + 3), np.empty((2 * k + 3, 2 * k + 3))
    strongest = 0
    for i in range(1, k):
        if flux[i] > flux[strongest]:
            strongest = i
    found = 0
    y, shifts = np.empty(k), np.empty(k)
    for side in range(2):
        y[:] = y0
        for step in range(last - first + 1):
            x = middle - step if side == 0 else middle + 1 + step
            if x < first or x > last:
                break
            low = math.floor(y[0]) - HALF_WINDOW
            high = math.ceil(y[k - 1]) + HALF_WINDOW
            if low < 1 or high > data.shape[0]:
                break
            values = data[low - 1 : high, x - 1].astype(np.float64)
            weights = np.zeros(values.size)
            for i in range(values.size):
                v = stat[low - 1 + i, x - 1]
                weights[i] = 1.0 / v if v > 0.0 else 0.0
            p[:k] = y
            p[k : 2 * k] = flux
            p[2 * k] = LINE_SIGMA
            p[2 * k + 1] = max(0.0, values.min())
            p[2 * k + 2] = 0.0
            status, _ = fit_gaussians(float(low), values, weights, p, k, covariance)
            if status != CONVERGED:
                continue
            good = abs(p[strongest] - y[strongest]) <= LARGEST_SHIFT
            for i in range(k):
                good = good and p[k + i] >= 0.0
                shifts[i] = p[i] - y[i]
            if not good:
                continue
            for i in range(k):
                out[i, found, 0], out[i, found, 1], out[i, found, 2] = x, p[i], math.sqrt(covariance[i, i])
            found += 1
            if abs(np.median(shifts)) < FOLLOWED_SHIFT:
                y[:] = p[:k]
    return found


def _filtered(points: FloatArray, xorder: int, linesigma: float, weighting: str) -> tuple[FloatArray, FloatArray]:
    """Points of a line that lie on a curve, and errors of their positions [pix]."""
    x, y, error = (np.ascontiguousarray(points[:, k]) for k in range(3))
    keep = np.empty(len(points), np.bool_)
    variance = _reject(x, y, len(points), xorder, linesigma, keep)
    if math.isnan(variance):
        return points, np.full(len(points), UNFITTED_ERROR)
    points, error = points[keep], error[keep]
    if weighting == "scatter":
        return points, np.full(len(points), math.sqrt(variance))
    return points, error if weighting == "cerr" else np.sqrt(error**2 + variance)


def measure_detections(
    data: NDArray[np.float32],
    stat: NDArray[np.float32],
    identified: Detections,
    left: FloatArray,
    right: FloatArray,
    *,
    xorder: int,
    linesigma: float,
    weighting: str,
) -> Measured:
    """Measure identified lines in all columns of a slice, on the sum of the images of all lamps.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (ny, nx)
    identified : Detections
    left, right, xorder, linesigma, weighting
        As in `measure_lines`.
    """
    parts = []
    for centre, fwhm, wave in zip(identified.centre, identified.fwhm, identified.wave, strict=True):
        low, high = float(polynomial(left, centre)), float(polynomial(right, centre))
        first, last = max(math.ceil(low), 1), min(math.floor(high), data.shape[1])
        out = np.empty((max(last - first + 1, 0), 4))
        n = measure_single(data, stat, centre, first, last, int(0.5 * (low + high)), int(2.0 * fwhm), True, out)
        if n:
            points, error = _filtered(out[:n], xorder, linesigma, weighting)
            parts.append((points, np.full(len(points), wave), error * SPECTRAL_SAMPLING))
    if not parts:
        return Measured(*(np.zeros(0) for _ in range(6)))
    points, waves, errors = (np.concatenate([p[k] for p in parts]) for k in range(3))
    return Measured(points[:, 0], points[:, 1], waves, errors, np.zeros(0), np.zeros(0))


def measure_lines(
    images: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    catalogue: Catalogue,
    inverse: FloatArray,
    left: FloatArray,
    right: FloatArray,
    *,
    xorder: int,
    linesigma: float,
    weighting: str,
) -> Measured:
    """Measure the lines of a catalogue in all columns of a slice.

    Parameters
    ----------
    images : sequence of (data, stat), ndarray of float32, shape (ny, nx)
    catalogue : Catalogue
        Its lines are measured on the images that it says.
    inverse : ndarray of float64, shape (yorder + 1,)
        Polynomial from wavelength to y [pix].
    left, right : ndarray of float64
        Polynomials of the edges of the slice [pix].
    xorder : int
        Order of the curve of a line across the slice.
    linesigma : float
        Limit of the rejection along a line.
    weighting : str
        What the errors are made of: ``cerr``, ``scatter``, ``cerrscatter``; ``uniform`` as ``cerrscatter``.
    """
    slopes = np.polynomial.polynomial.polyder(inverse) if len(inverse) > 1 else np.zeros(1)
    wave, quality, image = catalogue.wave, catalogue.quality, catalogue.image
    columns = images[0][0].shape[1]
    parts: list[tuple[FloatArray, FloatArray, FloatArray, float]] = []
    fwhm: list[FloatArray] = []
    references: list[FloatArray] = []
    done = np.zeros(len(wave), np.bool_)
    for i in np.flatnonzero(quality >= IN_MULTIPLET).tolist():
        if done[i]:
            continue
        # a negative number is that of the last image
        data, stat = images[image[i]]
        ny = data.shape[0]
        y0 = float(polynomial(inverse, wave[i]))
        if not (y0 - HALF_WINDOW >= 1 and y0 + HALF_WINDOW <= ny):
            continue
        if quality[i] != IN_MULTIPLET:
            lines = [i]
        else:
            near = (wave >= wave[i]) & (wave - wave[i] <= MULTIPLET_RANGE) & (quality == IN_MULTIPLET)
            lines = np.flatnonzero(near & (catalogue.lamp == catalogue.lamp[i])).tolist()
            done[lines] = True
        expected = np.array([polynomial(inverse, wave[j]) for j in lines])
        # the edges are those at the last line
        low, high = float(polynomial(left, expected[-1])), float(polynomial(right, expected[-1]))
        first, last, middle = max(math.ceil(low), 1), min(math.floor(high), columns), int(0.5 * (low + high))
        room = max(last - first + 1, 0)
        if quality[i] != IN_MULTIPLET:
            single = np.empty((room, 4))
            free = bool(quality[i] == FWHM_REFERENCE)
            n = measure_single(data, stat, y0, first, last, middle, HALF_WINDOW, free, single)
            found = [single[:n]]
        else:
            several = np.empty((len(lines), room, 3))
            n = measure_multiplet(data, stat, expected, catalogue.flux[lines], first, last, middle, several)
            found = list(several[:, :n])
        for j, points in zip(lines, found, strict=True):
            if not len(points):
                continue
            points, error = _filtered(points, xorder, linesigma, weighting)
            slope = abs(float(polynomial(slopes, wave[j])))
            parts.append((points[:, 0], points[:, 1], error / slope, wave[j]))
            if quality[j] == FWHM_REFERENCE:
                fwhm.append(points[:, 3] / slope)
                references.append(np.full(len(points), wave[j]))

    def joined(arrays: list[FloatArray]) -> FloatArray:
        return np.concatenate(arrays) if arrays else np.zeros(0)

    return Measured(
        joined([p[0] for p in parts]),
        joined([p[1] for p in parts]),
        joined([np.full(len(p[0]), p[3]) for p in parts]),
        joined([p[2] for p in parts]),
        joined(fwhm),
        joined(references),
    )
