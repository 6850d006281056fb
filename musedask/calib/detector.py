"""Steps on the raw image of a CCD: overscan, saturation, trimming, and the application of masters to rows.

Pure functions of arrays; "section" is a pair of slices, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_COSMICRAY

FloatArray = NDArray[np.float64]

#: raw values above this, or below `LOW_LIMIT`, are saturated [adu]
HIGH_LIMIT = 65500
LOW_LIMIT = 1
DQ_SATURATED = 1 << 12
DQ_HOTPIXEL = 1 << 8
DQ_DEADPIXEL = 1 << 13
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
    method, numbers = _split("overscan", overscan, ("none", "offset", "vpoly"), 3)
    order, frms, fchisq = (*numbers, *(15.0, 1.00001, 1.00001)[len(numbers) :])
    rejection, values = _split("ovscreject", reject, ("none", "dcr", "fit"), 4)
    defaults = (5.0,) if rejection == "fit" else (128.0, 32.0, 3.0, 2.5)
    values = (*values, *defaults[len(values) :])
    xbox, ybox, npass, threshold = (0, 0, 0, values[0]) if rejection == "fit" else values
    return OverscanParams(
        method, int(order), frms, fchisq, rejection, int(xbox), int(ybox), int(npass), threshold, sigma, ignore
    )


def _split(name: str, text: str, methods: tuple[str, ...], most: int) -> tuple[str, tuple[float, ...]]:
    method, _, rest = text.partition(":")
    if method not in methods:
        raise InputError(f"parameter {name}: {text!r} found, expected one of {', '.join(methods)}")
    try:
        values = tuple(float(v) for v in rest.split(",")) if rest else ()
    except ValueError:
        raise InputError(f"parameter {name}: {text!r} found, expected numbers after {method}:") from None
    if len(values) > most:
        raise InputError(f"parameter {name}: {text!r} found, expected at most {most} numbers after {method}:")
    return method, values


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
    """First pixels of boxes of `box` + 1 pixels along an axis."""
    step = max(box // 2, 1)
    out = [0]
    while out[-1] + step + box < size:
        out.append(out[-1] + step)
    if out[-1] + box < size - 1:
        out.append(size - 1 - box)
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
        [adu]
    """
    if params.reject == "dcr":
        for strip, flag, (xbox, ybox) in zip(
            strips, flags, ((params.xbox, params.ybox), (params.ybox, params.xbox)), strict=True
        ):
            find_cosmics(
                strip, flag, min(xbox, strip.shape[1]), min(ybox, strip.shape[0]), params.npass, params.threshold
            )
    values = np.concatenate(
        [strip[flag == 0].astype(np.float64) for strip, flag in zip(strips, flags, strict=True)]
    )
    if params.reject == "fit":
        while True:
            mean = values.mean()
            mse = np.mean((values - mean) ** 2)
            keep = np.abs(values - mean) < params.threshold * np.sqrt(mse)
            if mse == 0 or keep.all():
                return float(mean), float(np.sqrt(mse))
            values = values[keep]
    return float(values.mean()), float(values.std(ddof=1))


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
        Ascending powers of the number of the row.
    levels : ndarray of float64
        At `rows` [adu].
    """
    good = flags == 0
    values = strip.astype(np.float64)
    number = row0 + np.arange(len(strip))
    middle, half = 0.5 * (rows[0] + rows[1]), 0.5 * (rows[1] - rows[0]) or 1.0
    t = (number - middle) / half
    reference = values[good].mean()
    values -= reference

    def solve(order: int, good: NDArray[np.bool_]) -> tuple[FloatArray, float]:
        count = good.sum(axis=1)
        total = np.where(good, values, 0.0).sum(axis=1)
        used = count > 0
        basis = np.polynomial.legendre.legvander(t[used], order)
        weight = np.sqrt(count[used])
        solution = np.linalg.lstsq(basis * weight[:, None], total[used] / weight, rcond=None)[0]
        residual = (values - np.polynomial.legendre.legval(t, solution)[:, None])[good]
        return solution, float(np.sum(residual**2))

    n = int(good.sum())
    before = None
    selected = 0
    for order in range(params.order + 1):
        square = solve(order, good)[1]
        rms, chisq = np.sqrt(square / n), square / (n - order - 1)
        selected = order
        if before is not None and before[0] / rms < params.frms and before[1] / chisq < params.fchisq:
            break
        before = rms, chisq
    while True:
        solution, square = solve(selected, good)
        rms = np.sqrt(square / good.sum())
        residual = np.abs(values - np.polynomial.legendre.legval(t, solution)[:, None])
        keep = good & (residual < params.sigma * rms)
        if rms == 0 or keep.sum() == good.sum():
            break
        good = keep
    wanted = np.arange(rows[0], rows[1] + 1)
    levels = np.polynomial.legendre.legval((wanted - middle) / half, solution) + reference
    in_t = np.polynomial.legendre.leg2poly(solution)
    out = np.zeros(1)
    for c in in_t[::-1]:
        out = np.polynomial.polynomial.polyadd(np.polynomial.polynomial.polymul(out, [-middle / half, 1 / half]), [c])
    out = np.pad(out, (0, max(0, selected + 1 - len(out))))[: selected + 1]
    out[0] += reference
    return out, levels


# --- saturation ------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def count_saturated(raw):  # type: ignore[no-untyped-def]
    """Number of saturated pixels of a raw image."""
    n = 0
    for y in range(raw.shape[0]):
        for x in range(raw.shape[1]):
            v = raw[y, x]
            n += (v > HIGH_LIMIT) | (v < LOW_LIMIT)
    return n


def quadrant_median(raw: NDArray[np.uint16], good: NDArray[np.bool_] | None = None) -> float:
    """Median of a section of a raw image."""
    counts = np.bincount((raw if good is None else raw[good]).ravel(), minlength=65536)
    total = np.cumsum(counts)
    n = int(total[-1])
    low, high = np.searchsorted(total, [(n - 1) // 2, n // 2], side="right")
    return 0.5 * (float(low) + float(high))


# --- rows ------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def correct_rows(
    raw, y, x0, left, right, shift, extra, gain, bias, bias_stat, bias_dq, dark, dark_stat, dark_dq, dark_scale, flat,
    flat_stat, flat_dq, scale, data, stat, dq,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Process rows of a raw image: level, bias, gain, dark, flat; every step is rounded to float32.

    Parameters
    ----------
    raw : ndarray of uint16, shape (rows, raw columns)
    y : int
        Unused rows before: 0.
    x0 : ndarray of int64, shape (2,)
        First data column of the left and right quadrants.
    left, right : ndarray of float64, shape (rows,)
        Levels to subtract [adu].
    shift : ndarray of float32, shape (n, 2)
        Further levels to add one after the other [adu].
    extra : ndarray of float32, shape (2,)
        Variance of those levels [adu2].
    gain : ndarray of float64, shape (2,)
        [count/adu]; 0: no conversion.
    bias, bias_stat, bias_dq, dark, dark_stat, dark_dq, flat, flat_stat, flat_dq : ndarray, shape (rows, columns)
        Masters; of no rows where there is none.
    dark_scale : float
    scale : float
        Factor at the end.
    data, stat, dq : ndarray, shape (rows, columns)
        Filled; `dq` has the qualities that are known already.
    """
    nx = data.shape[1] // 2
    steps = shift.shape[0]
    for r in range(data.shape[0]):
        for side in range(2):
            level = left[r] if side == 0 else right[r]
            g = gain[side]
            for i in range(nx):
                x = side * nx + i
                value = raw[r, x0[side] + i]
                if value > HIGH_LIMIT or value < LOW_LIMIT:
                    dq[r, x] |= DQ_SATURATED
                d = np.float32(np.float64(value) - level)
                s = np.float32(0)
                if bias.shape[0]:
                    # before the level is shifted
                    s = np.float32(np.float32(d - bias[r, x]) / g)
                    if s <= 0:
                        s = TINY
                    s = np.float32(s + extra[side])
                for k in range(steps):
                    d = np.float32(d + shift[k, side])
                if bias.shape[0]:
                    d = np.float32(d - bias[r, x])
                    s = np.float32(s + bias_stat[r, x])
                    dq[r, x] |= bias_dq[r, x]
                if g != 0:
                    d = np.float32(d * g)
                    s = np.float32(s * (g * g))
                if dark.shape[0]:
                    d = np.float32(d - np.float32(dark[r, x] * dark_scale))
                    s = np.float32(s + np.float32(dark_stat[r, x] * (dark_scale * dark_scale)))
                    dq[r, x] |= dark_dq[r, x]
                if flat.shape[0]:
                    f = flat[r, x]
                    fs = np.float64(flat_stat[r, x])
                    square = np.float64(f) * f
                    s = np.float32((s + np.float64(d) * d * fs / square) / square)
                    d = np.float32(d / f)
                    dq[r, x] |= flat_dq[r, x]
                if scale != 1.0:
                    d = np.float32(d * np.float32(scale))
                    s = np.float32(s * np.float32(scale * scale))
                data[r, x] = d
                stat[r, x] = s
