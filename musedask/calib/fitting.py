"""Least-squares fits of Gaussians to short pieces of spectra, by the method of Levenberg and Marquardt.

One Gaussian on a constant, and several of one width on a straight line.  The functions are compiled and
release the interpreter's lock, so that other compiled loops can call them for each of many thousand pixels.

They start and stop where fits of the reference pipeline do (from trials with CPL 7.2.3; see `still_moving`), so that
fits of faint or blended lines end in the same minimum and as close to it.  For a line that is well above its noise
that is the minimum to all digits that matter.

A Gaussian is ``area / (sigma sqrt(2 pi)) exp(-(x - centre)^2 / (2 sigma^2))``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

#: results of a fit
CONVERGED = 0
NOT_CONVERGED = 1
SINGULAR = 2
TOO_FEW = 3

#: places of the parameters of one Gaussian
CENTRE, SIGMA, AREA, BACKGROUND = 0, 1, 2, 3

_NORM = 1.0 / math.sqrt(2.0 * math.pi)
#: half the distance of the quartiles of a Gaussian, as CPL has it
_QUARTILE = 0.6744
#: relative decrease of the sum of squares that is small, and how many in a row are the end
_TOLERANCE, _SMALL_STEPS, _MAX_STEPS = 0.01, 5, 1000
#: relative change of the parameters that is none, squared, for one free parameter; it doubles with each more
_UNCHANGED = 2.0**-24
#: growth of the change, squared, and failed trials in a row that make the count of small decreases begin again
_GROWTH, _MANY = 2.0, 3
#: damping at the start, its factors after a step that failed and one that succeeded, and where nothing helps any more
_DAMPING, _RAISE, _LOWER, _DAMPING_MAX = 1e-3, 9.0, 0.1, 1e20


@njit(nogil=True, cache=True, error_model="numpy")
def still_moving(small, failed, decrease, chi2, change, before, size, n):  # type: ignore[no-untyped-def]
    """Whether a fit goes on after a step that lowered the sum of squares, as `cpl_fit_lvmq` of CPL 7.2.3 does.

    It may end after five steps in a row with a decrease of less than 1 %, and does so as soon as the parameters change
    more than they did in the step before, or hardly at all.  Until then, a change that is much larger than the one
    before, or three trials that failed, start the count again.

    Parameters
    ----------
    small : int
        Steps in a row with a small decrease, before this one.
    failed : int
        Trials since the last step that did not lower the sum of squares.
    decrease : float
        Of the sum of squares in this step.
    chi2 : float
        Sum of squares before it.
    change, before : float
        Sum of squares of the changes of the parameters in this step and in the last one (negative: there is none).
    size : float
        Sum of squares of all parameters, after the step.
    n : int
        Number of free parameters.

    Returns
    -------
    moving : bool
    small : int
        Steps in a row with a small decrease, after this one.
    """
    same = change <= _UNCHANGED * 2.0 ** (n - 1) * size
    if small < _SMALL_STEPS:
        if small > 0 and (failed >= _MANY or (not same and change >= _GROWTH * before)):
            return True, 0
        small = small + 1 if decrease < _TOLERANCE * chi2 or chi2 == 0.0 else 0
        if small < _SMALL_STEPS:
            return True, small
    return not (same or change >= before), small


@njit(nogil=True, cache=True, error_model="numpy")
def solve(a, b, n):  # type: ignore[no-untyped-def]
    """Solve the first n of symmetric positive definite equations in place by Cholesky's method.

    Parameters
    ----------
    a : ndarray of float64, shape (>= n, >= n)
        Lower triangle; becomes the Cholesky factor.
    b : ndarray of float64, shape (>= n,)
        Right-hand side; becomes the solution.
    n : int

    Returns
    -------
    bool
        False if they are not positive definite.
    """
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            if i == j:
                if not s > 0.0:
                    return False
                a[i, i] = math.sqrt(s)
            else:
                a[i, j] = s / a[j, j]
    for i in range(n):
        s = b[i]
        for k in range(i):
            s -= a[i, k] * b[k]
        b[i] = s / a[i, i]
    for i in range(n - 1, -1, -1):
        s = b[i]
        for k in range(i + 1, n):
            s -= a[k, i] * b[k]
        b[i] = s / a[i, i]
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def invert(a, inverse, n, factor, scale, column):  # type: ignore[no-untyped-def]
    """Inverse of the first n rows and columns of a symmetric positive definite matrix.

    Parameters
    ----------
    a : ndarray of float64, shape (>= n, >= n)
        Lower triangle; not changed.
    inverse : ndarray of float64, shape (>= n, >= n)
        Result.
    n : int
    factor : ndarray of float64, shape (>= n, >= n)
    scale, column : ndarray of float64, shape (>= n,)
        Room to work in.

    Returns
    -------
    bool
        False if the matrix is not positive definite, as far as its numbers tell.
    """
    # scaled to ones on the diagonal, so that the units of the parameters do not matter
    for i in range(n):
        if not a[i, i] > 0.0:
            return False
        scale[i] = 1.0 / math.sqrt(a[i, i])
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j] * scale[i] * scale[j]
            for k in range(j):
                s -= factor[i, k] * factor[j, k]
            if i == j:
                if not s > 1e-14:
                    return False
                factor[i, i] = math.sqrt(s)
            else:
                factor[i, j] = s / factor[j, j]
    for j in range(n):
        for i in range(n):
            s = 1.0 if i == j else 0.0
            for k in range(i):
                s -= factor[i, k] * column[k]
            column[i] = s / factor[i, i]
        for i in range(n - 1, -1, -1):
            s = column[i]
            for k in range(i + 1, n):
                s -= factor[k, i] * column[k]
            column[i] = s / factor[i, i]
        for i in range(n):
            inverse[i, j] = column[i] * scale[i] * scale[j]
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _ranked(values, rank):  # type: ignore[no-untyped-def]
    """Value of a rank from 0; quick for few values."""
    for i in range(values.size):
        v = values[i]
        below = 0
        for j in range(values.size):
            below += values[j] < v or (values[j] == v and j < i)
        if below == rank:
            return v
    return math.nan


@njit(nogil=True, cache=True, error_model="numpy")
def guess_gaussian(first, values, parameters, free):  # type: ignore[no-untyped-def]
    """Start of a fit from the data: sets the free parameters.

    The background is the lower quartile of the values, centre and width are the median and quartiles of the sum
    above it, and the area follows from the highest value.

    Parameters
    ----------
    first : float
        Coordinate of the first value; they are 1 apart.
    values : ndarray of float64, shape (n,)
    parameters : ndarray of float64, shape (4,)
        Centre, sigma, area, background.
    free : ndarray of bool, shape (4,)
        Which of them to set.
    """
    n = values.size
    if free[BACKGROUND]:
        parameters[BACKGROUND] = _ranked(values, n // 4)
    background = parameters[BACKGROUND]
    total, top = 0.0, values[0]
    for i in range(n):
        total += values[i] - background
        top = max(top, values[i])
    lower = middle = upper = math.nan
    part = 0.0
    for i in range(n):
        step = values[i] - background
        part += step
        # where the sum reaches a quarter, a half and three quarters for the first time
        if math.isnan(lower) and part >= 0.25 * total:
            lower = first + i + 0.5 - (part - 0.25 * total) / step
        if math.isnan(middle) and part >= 0.5 * total:
            middle = first + i + 0.5 - (part - 0.5 * total) / step
        if math.isnan(upper) and part >= 0.75 * total:
            upper = first + i + 0.5 - (part - 0.75 * total) / step
    # not beyond the first and the last value
    lower, middle, upper = max(lower, first), max(middle, first), min(upper, first + n - 1.0)
    middle = min(middle, first + n - 1.0)
    if free[CENTRE]:
        parameters[CENTRE] = middle if math.isfinite(middle) else first + 0.5 * (n - 1)
    if free[SIGMA]:
        sigma = (upper - lower) / (2.0 * _QUARTILE)
        parameters[SIGMA] = sigma if sigma > 0.0 and math.isfinite(sigma) else 1.0
    if free[AREA]:
        parameters[AREA] = (top - background) * parameters[SIGMA] / _NORM


@njit(nogil=True, cache=True, error_model="numpy")
def _exponentials(first, centre, inverse, e):  # type: ignore[no-untyped-def]
    """``exp(-u^2 / 2)`` at each sample, where u is its distance from the centre in units of sigma."""
    n = e.size
    middle = math.floor(centre - first + 0.5) if abs(centre - first) < 1e6 else -1
    if not 0 <= middle < n:
        for i in range(n):
            u = (first + i - centre) * inverse
            e[i] = math.exp(-0.5 * u * u)
        return
    # outwards from the middle the factor from one to the next changes by a constant factor
    d = first + middle - centre
    square = inverse * inverse
    change = math.exp(-square)
    e[middle] = math.exp(-0.5 * d * d * square)
    factor = math.exp(-(d + 0.5) * square)
    for i in range(middle + 1, n):
        e[i] = e[i - 1] * factor
        factor *= change
    factor = math.exp((d - 0.5) * square)
    for i in range(middle - 1, -1, -1):
        e[i] = e[i + 1] * factor
        factor *= change


@njit(nogil=True, cache=True, error_model="numpy")
def _sums(first, values, weights, p, a, b, e):  # type: ignore[no-untyped-def]
    """Sum of weighted squares; with normal equations of all four parameters in `a` (lower half) and `b`."""
    centre, inverse = p[0], 1.0 / p[1]
    area, background = p[2], p[3]
    unit = _NORM * inverse
    _exponentials(first, centre, inverse, e)
    s = s00 = s10 = s11 = s20 = s21 = s22 = s30 = s31 = s32 = s33 = b0 = b1 = b2 = b3 = 0.0
    for i in range(values.size):
        w = weights[i]
        if w > 0.0:
            u = (first + i - centre) * inverse
            d2 = unit * e[i]
            f = area * d2
            r = values[i] - f - background
            d0 = f * inverse * u
            d1 = d0 * u - f * inverse
            wr = w * r
            s += wr * r
            w0, w1, w2 = w * d0, w * d1, w * d2
            s00 += w0 * d0
            s10 += w1 * d0
            s11 += w1 * d1
            s20 += w2 * d0
            s21 += w2 * d1
            s22 += w2 * d2
            s30 += w0
            s31 += w1
            s32 += w2
            s33 += w
            b0 += d0 * wr
            b1 += d1 * wr
            b2 += d2 * wr
            b3 += wr
    a[0, 0], a[1, 0], a[1, 1] = s00, s10, s11
    a[2, 0], a[2, 1], a[2, 2] = s20, s21, s22
    a[3, 0], a[3, 1], a[3, 2], a[3, 3] = s30, s31, s32, s33
    b[0], b[1], b[2], b[3] = b0, b1, b2, b3
    return s


@njit(nogil=True, cache=True, error_model="numpy")
def fit_gaussian(first, values, weights, parameters, free, covariance):  # type: ignore[no-untyped-def]
    """Fit one Gaussian on a constant background.

    Parameters
    ----------
    first : float
        Coordinate of the first value; they are 1 apart.
    values, weights : ndarray of float64, shape (n,)
        Weights are inverse variances; values whose weight is not positive are left out.
    parameters : ndarray of float64, shape (4,)
        Centre, sigma, area, background: start (see `guess_gaussian`) and result.
    free : ndarray of bool, shape (4,)
        Which of them to fit.
    covariance : ndarray of float64, shape (4, 4)
        Result, from the weights alone (not scaled by the residuals); 0 for fixed parameters, and all of it
        unless the fit has converged.

    Returns
    -------
    status : int
        `CONVERGED`; `NOT_CONVERGED`, also if the centre is outside the values, the area is not positive or the
        width exceeds their range, with `parameters` as at the start; `SINGULAR` if there is a result, but the
        covariance cannot be computed; `TOO_FEW` values for so many parameters, with `parameters` as at the start.
    chi2 : float
        Weighted sum of squares.
    """
    covariance[:, :] = 0.0
    # one piece of memory for everything: many would take longer than the fit
    work = np.empty((25, 4))
    a0, a1, m, inverse = work[0:4], work[4:8], work[8:12], work[12:16]
    b0, b1, v, best, trial = work[16], work[17], work[18], work[19], work[20]
    e = np.empty(values.size)
    # places of the free parameters, 4 bits each
    places = 0
    n = 0
    for i in range(4):
        best[i] = trial[i] = parameters[i]
        if free[i]:
            places |= i << (4 * n)
            n += 1
    used = 0
    for i in range(values.size):
        if weights[i] > 0.0:
            used += 1
    if used < n or n == 0:
        return TOO_FEW, math.nan
    chi2 = _sums(first, values, weights, best, a0, b0, e)
    start = chi2
    damping = _DAMPING
    small, failed, steps, before, moving = 0, 0, 0, -1.0, True
    while moving and steps < _MAX_STEPS and damping < _DAMPING_MAX:
        steps += 1
        for i in range(n):
            row = (places >> (4 * i)) & 15
            for j in range(i + 1):
                m[i, j] = a0[row, (places >> (4 * j)) & 15]
            m[i, i] *= 1.0 + damping
            v[i] = b0[row]
        if not solve(m, v, n):
            if chi2 == 0.0:
                moving = False
                break
            damping *= _RAISE
            failed += 1
            continue
        for i in range(n):
            row = (places >> (4 * i)) & 15
            trial[row] = best[row] + v[i]
        found = _sums(first, values, weights, trial, a1, b1, e)
        if not found <= chi2:
            damping *= _RAISE
            failed += 1
            continue
        change = size = 0.0
        for i in range(4):
            change += (trial[i] - best[i]) ** 2
            size += trial[i] ** 2
        moving, small = still_moving(small, failed, chi2 - found, chi2, change, before, size, n)
        before, failed = change, 0
        damping *= _LOWER
        chi2 = found
        # the sums of the better place are those to go on with
        a0, a1 = a1, a0
        b0, b1 = b1, b0
        best, trial = trial, best
        for i in range(4):
            trial[i] = best[i]
    if best[1] < 0.0:
        # only its square matters
        best[1] = -best[1]
        best[2] = -best[2]
        _sums(first, values, weights, best, a0, b0, e)
    inside = first <= best[0] <= first + values.size - 1
    if moving or not (inside and best[2] > 0.0 and best[1] <= values.size):
        return NOT_CONVERGED, start
    for i in range(4):
        parameters[i] = best[i]
    for i in range(n):
        for j in range(i + 1):
            m[i, j] = a0[(places >> (4 * i)) & 15, (places >> (4 * j)) & 15]
    if not invert(m, inverse, n, work[21:25], v, trial):
        return SINGULAR, chi2
    for i in range(n):
        for j in range(n):
            covariance[(places >> (4 * i)) & 15, (places >> (4 * j)) & 15] = inverse[i, j]
    return CONVERGED, chi2


@njit(nogil=True, cache=True, error_model="numpy")
def _sums_of_several(first, values, weights, p, lines, a, b, d):  # type: ignore[no-untyped-def]
    """As `_sums`, of `lines` centres, as many areas, sigma, background and its slope."""
    n = 2 * lines + 3
    inverse = 1.0 / p[2 * lines]
    a[:n, :n] = 0.0
    b[:n] = 0.0
    s = 0.0
    for i in range(values.size):
        w = weights[i]
        if w > 0.0:
            f = p[2 * lines + 1] + p[2 * lines + 2] * i
            d[2 * lines] = 0.0
            d[2 * lines + 1] = 1.0
            d[2 * lines + 2] = i
            for k in range(lines):
                u = (first + i - p[k]) * inverse
                unit = _NORM * inverse * math.exp(-0.5 * u * u)
                g = p[lines + k] * unit
                f += g
                d[k] = g * u * inverse
                d[lines + k] = unit
                d[2 * lines] += g * (u * u - 1.0) * inverse
            r = values[i] - f
            s += w * r * r
            for j in range(n):
                wd = w * d[j]
                b[j] += wd * r
                for k in range(j + 1):
                    a[j, k] += wd * d[k]
    return s


@njit(nogil=True, cache=True, error_model="numpy")
def fit_gaussians(first, values, weights, parameters, lines, covariance):  # type: ignore[no-untyped-def]
    """Fit several Gaussians of one width on a straight line, everything free.

    Parameters
    ----------
    first : float
        Coordinate of the first value; they are 1 apart.
    values, weights : ndarray of float64, shape (n,)
        Weights are inverse variances; values whose weight is not positive are left out.
    parameters : ndarray of float64, shape (2 lines + 3,)
        Centres, areas, sigma, background at the first value, its slope: start and result.
    lines : int
    covariance : ndarray of float64, shape (2 lines + 3, 2 lines + 3)
        Result, as in `fit_gaussian`.

    Returns
    -------
    status : int
    chi2 : float
        As in `fit_gaussian`.
    """
    n = 2 * lines + 3
    covariance[:, :] = 0.0
    used = 0
    for i in range(values.size):
        if weights[i] > 0.0:
            used += 1
    if used < n:
        return TOO_FEW, math.nan
    a, b = np.empty((2, n, n)), np.empty((2, n))
    m, v, d = np.empty((n, n)), np.empty(n), np.empty(n)
    best, trial = parameters.copy(), parameters.copy()
    now = 0
    chi2 = _sums_of_several(first, values, weights, best, lines, a[0], b[0], d)
    start = chi2
    damping = _DAMPING
    small, failed, steps, before, moving = 0, 0, 0, -1.0, True
    while moving and steps < _MAX_STEPS and damping < _DAMPING_MAX:
        steps += 1
        for i in range(n):
            for j in range(i + 1):
                m[i, j] = a[now, i, j]
            m[i, i] *= 1.0 + damping
            v[i] = b[now, i]
        if not solve(m, v, n):
            if chi2 == 0.0:
                moving = False
                break
            damping *= _RAISE
            failed += 1
            continue
        for i in range(n):
            trial[i] = best[i] + v[i]
        other = 1 - now
        found = _sums_of_several(first, values, weights, trial, lines, a[other], b[other], d)
        if not found <= chi2:
            damping *= _RAISE
            failed += 1
            continue
        change = size = 0.0
        for i in range(n):
            change += (trial[i] - best[i]) ** 2
            size += trial[i] ** 2
        moving, small = still_moving(small, failed, chi2 - found, chi2, change, before, size, n)
        before, failed = change, 0
        damping *= _LOWER
        chi2, now = found, other
        best[:] = trial
    if best[2 * lines] < 0.0:
        best[2 * lines] *= -1.0
        best[lines : 2 * lines] *= -1.0
        _sums_of_several(first, values, weights, best, lines, a[now], b[now], d)
    if moving:
        return NOT_CONVERGED, start
    parameters[:] = best
    if not invert(a[now], covariance, n, m, v, d):
        covariance[:, :] = 0.0
        return SINGULAR, chi2
    return CONVERGED, chi2
