"""Cosmic-ray rejection on the voxel-sorted rows of a chunk.

A row is a cosmic ray if its value exceeds ``level + crsigma * deviation`` of the rows in
the voxels around its own.  The sample holds the rows with dq 0 or 32 of the voxel itself
and of its neighbours in the two adjacent rows (direction X), columns (direction Y) or all
26 neighbours (direction NONE); flags set here do not change it, so voxels are independent.

For the median the costly quantities are the median m and the median absolute deviation of
some 60 values.  Most voxels do not need them.  With c0 <= m <= c1 (proven when fewer than
half of the sample lie below c0 and fewer than half above c1) and
``t = (largest value of the voxel - c0) / crsigma``, a count below one half of the samples
inside ``(c0 - t, c1 + t)`` proves MAD >= t, hence that nothing exceeds the limit.  The
bracket is carried over from the voxel before.  Where the proof fails, m is selected
exactly; where that does not settle it either, the MAD too.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .kernels import DATA, DQ, STAT, STATE_BAD, STATE_COSMIC

CR_TYPES = {"iraf": 0, "mean": 1, "median": 2}
DIR_X, DIR_Y, DIR_NONE = 0, 1, 2
_IRAF, _MEAN = 0, 1
# half width of the bracket around the expected median, in MADs, and how it adapts: a failure
# costs more counts, a wide bracket proves less
_BRACKET, _SHRINK, _GROW = 0.5, 0.97, 1.02
# how often the bracket is halved at most
_STEPS = 20


def direction(posang: float, mode: str, celestial: bool) -> int:
    """Direction of the slices on the sky, from ``ESO INS DROT POSANG`` and ``MODE``.

    Parameters
    ----------
    posang : float
        Derotator position angle [deg].
    mode : str
        Derotator mode; in SKY mode the sign of the angle is flipped.
    celestial : bool
        False for tables in pixel units, whose slices always run along x.
    """
    if not celestial:
        return DIR_X
    angle = abs(-posang if mode.strip() == "SKY" else posang)
    if any(abs(angle - a) < 5 for a in (0, 180, 360)):
        return DIR_X
    if any(abs(angle - a) < 5 for a in (90, 270)):
        return DIR_Y
    return DIR_NONE


@njit(cache=True, nogil=True)
def select(values, n, k):  # type: ignore[no-untyped-def]
    """The k-th smallest (from 0) of the first n values, which are reordered (quickselect)."""
    low = 0
    high = n - 1
    while high > low:
        if high - low < 12:
            for a in range(low + 1, high + 1):
                v = values[a]
                b = a - 1
                while b >= low and values[b] > v:
                    values[b + 1] = values[b]
                    b -= 1
                values[b + 1] = v
            return values[k]
        # median of three as pivot
        middle = (low + high) >> 1
        a0, a1, a2 = values[low], values[middle], values[high]
        pivot = max(min(a0, a1), min(max(a0, a1), a2))
        i = low
        j = high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            return values[k]
    return values[k]


@njit(cache=True, nogil=True)
def median(values, n):  # type: ignore[no-untyped-def]
    """Median of the first n values (reordered); mean of the two central ones for even n, float64."""
    k = n >> 1
    upper = np.float64(select(values, n, k))
    if n & 1:
        return upper
    # after the selection everything before k is not larger
    lower = values[0]
    for a in range(1, k):
        if values[a] > lower:
            lower = values[a]
    return (np.float64(lower) + upper) / 2.0


@njit(cache=True, nogil=True)
def _outwards(value, sign):  # type: ignore[no-untyped-def]
    """Round to float32 so that the result is not nearer to the centre than `value`."""
    return np.float32(value + sign * (abs(value) * 2.4e-7 + 1e-37))


@njit(cache=True, nogil=True, inline="always")
def _count(around, m0, m1, own, p0, p1, c0, c1, low, high):  # type: ignore[no-untyped-def]
    """Number of values below c0, above c1, and inside (low, high); 32 bits wide, to be vectorised.

    The sample is ``around[m0:m1]`` and ``own[p0:p1]``, where NaN does not count.
    """
    below = np.uint32(0)
    above = np.uint32(0)
    within = np.uint32(0)
    # an unsigned index cannot mean "from the end": only so does the loop become vector instructions
    for k in range(np.uint64(m0), np.uint64(m1)):
        v = around[k]
        below = np.uint32(below + np.uint32(v < c0))
        above = np.uint32(above + np.uint32(v > c1))
        within = np.uint32(within + np.uint32((v > low) & (v < high)))
    for k in range(p0, p1):
        v = own[k]
        below = np.uint32(below + np.uint32(v < c0))
        above = np.uint32(above + np.uint32(v > c1))
        within = np.uint32(within + np.uint32((v > low) & (v < high)))
    return np.float64(below), np.float64(above), np.float64(within)


@njit(cache=True, nogil=True)
def _settle(around, m0, m1, own, p0, p1, n, largest, crsigma, centre, scale):  # type: ignore[no-untyped-def]
    """Try to prove that no value exceeds the limit, from counts alone.

    Parameters
    ----------
    around, m0, m1, own, p0, p1
        The sample, see `_count`.
    n : int
        Its size.
    largest : float
        Largest value of the voxel.
    crsigma : float
    centre, scale : float
        Expected median and MAD.

    Returns
    -------
    steps : int
        Halvings of the bracket that the proof took, -1 if there is none.
    centre, scale : float
        Better values for the next voxel.
    """
    half = 0.5 * n
    width = _BRACKET * scale
    c0 = np.float32(centre - width)
    c1 = np.float32(centre + width)
    part = 0.5
    for step in range(_STEPS):
        t = (largest - c0) / crsigma
        # rounding of the limit and of the borders must not matter
        t += 1e-6 * abs(t) + 1e-9 * (abs(c0) + abs(largest))
        if t < 0.0:
            t = 0.0
        if step == 0:
            below, above, within = _count(
                around, m0, m1, own, p0, p1, c0, c1, _outwards(c0 - t, -1.0), _outwards(c1 + t, 1.0)
            )
            if below < half and above < half:
                # the median is inside; the counts tell which way it drifts
                if within < half:
                    return 0, centre + width * (above - below) / n, scale
                scale *= _SHRINK
            else:
                # widen the bracket to where the median is
                scale *= _GROW
                for _ in range(8):
                    width *= 2.0
                    if below >= half:
                        c0 = np.float32(c0 - width)
                    if above >= half:
                        c1 = np.float32(c1 + width)
                    below, above, within = _count(around, m0, m1, own, p0, p1, c0, c1, c0, c1)
                    if below < half and above < half:
                        break
                else:
                    return -1, centre, scale
            continue
        size = np.float64(c1) - np.float64(c0)
        if not math.isfinite(size):
            # values near the largest float32: an infinite border proves nothing
            return -1, centre, scale
        left = np.float32(c0 + part * size)
        right = np.float32(c1 - part * size)
        below, above, within = _count(
            around, m0, m1, own, p0, p1, left, right, _outwards(c0 - t, -1.0), _outwards(c1 + t, 1.0)
        )
        if within < half:
            return step, 0.5 * (np.float64(c0) + np.float64(c1)), scale
        # a narrower bracket would change next to nothing
        if size < 0.03 * t:
            break
        if below >= half and above >= half:
            # an even sample may be halved between its central values: come closer to those
            part *= 0.5
        if below < half:
            c0 = left
        if above < half:
            c1 = right
    return -1, 0.5 * (np.float64(c0) + np.float64(c1)), scale


@njit(cache=True, nogil=True)
def flag(  # type: ignore[no-untyped-def]
    records, bits, offsets, window, region, cr_type, direction, crsigma, shortcuts, statistics, values
):
    """Mark cosmic-ray rows: add STATE_COSMIC to their state.

    Parameters
    ----------
    records, bits, offsets, window
        Voxel-sorted rows of a chunk, see `kernels`.
    region : ndarray of int64, shape (6,)
        Voxels to test, ``x0 x1 y0 y1 z0 z1`` in window coordinates; neighbours outside the
        window do not exist.
    cr_type : int
        One of `CR_TYPES`.
    direction : int or ndarray
        DIR_X, DIR_Y or DIR_NONE.
    crsigma : float
    shortcuts : bool
        False selects the median and the MAD of every voxel (for tests).
    statistics : ndarray of int64, shape (4,)
        Incremented: voxels tested, settled by the bracket at once, by halving it, in full.
    values : ndarray of float32, shape (n,)
        Space for the values of the records.
    """
    nx, ny, nz = window
    x0, x1, y0, y1, z0, z1 = region
    # NaN for rows that do not belong to the sample
    for p in range(records.shape[0]):
        values[p] = records[p, DATA] if bits[p, DQ] & STATE_BAD == 0 else np.nan
    zf = max(z0 - 1, 0)
    zl = min(z1 + 1, nz)
    # the neighbours of a column, plane by plane: those of three planes lie side by side
    around = np.empty(4096, np.float32)
    variances = np.empty(4096 if cr_type == _IRAF else 1, np.float32)
    start = np.zeros(zl - zf + 1, np.int64)
    columns = np.empty(9, np.int64)
    distance = np.empty(256)
    centre = 0.0
    column_centre = 0.0
    scale = 0.0
    for i in range(x0, x1):
        for j in range(y0, y1):
            base = (i * ny + j) * nz
            if offsets[base + z1] == offsets[base + z0]:
                continue
            n_columns = 0
            total = 0
            for a in range(max(i - 1, 0), min(i + 2, nx)):
                for b in range(max(j - 1, 0), min(j + 2, ny)):
                    # along the slices only the voxel itself counts, and is added separately
                    if (direction == DIR_X and b == j) or (direction == DIR_Y and a == i):
                        continue
                    columns[n_columns] = (a * ny + b) * nz
                    total += offsets[columns[n_columns] + zl] - offsets[columns[n_columns] + zf]
                    n_columns += 1
            if total > around.shape[0]:
                around = np.empty(2 * total, np.float32)
                if cr_type == _IRAF:
                    variances = np.empty(2 * total, np.float32)
            n = 0
            for z in range(zf, zl):
                start[z - zf] = n
                for c in range(n_columns):
                    b = columns[c] + z
                    for p in range(offsets[b], offsets[b + 1]):
                        v = values[p]
                        around[n] = v
                        if cr_type == _IRAF:
                            variances[n] = records[p, STAT]
                        # a NaN is overwritten by the next
                        n += v == v
            start[zl - zf] = n
            # the bracket of the column before fits the start of this one better than its end
            centre = column_centre
            fresh = True
            for z in range(z0, z1):
                first = offsets[base + z]
                last = offsets[base + z + 1]
                if first == last:
                    continue
                m0 = start[max(z - 1, zf) - zf]
                m1 = start[min(z + 2, zl) - zf]
                n = m1 - m0
                largest = -np.inf
                own_last = last if direction != DIR_NONE else first
                for p in range(first, last):
                    v = values[p]
                    if v == v:
                        n += p < own_last
                    else:
                        v = records[p, DATA]
                    if v > largest:
                        largest = np.float64(v)
                if n < 3 or largest == -np.inf:
                    continue
                statistics[0] += 1
                if n > distance.shape[0]:
                    distance = np.empty(2 * n)
                if cr_type == _IRAF:
                    total_data = 0.0
                    total_var = 0.0
                    for k in range(m0, m1):
                        total_data += around[k]
                        total_var += variances[k]
                    for p in range(first, own_last):
                        if values[p] == values[p]:
                            total_data += values[p]
                            total_var += records[p, STAT]
                    limit = total_data / n + crsigma * (math.sqrt(total_var) / n)
                elif cr_type == _MEAN:
                    total_data = 0.0
                    for k in range(m0, m1):
                        total_data += around[k]
                    for p in range(first, own_last):
                        if values[p] == values[p]:
                            total_data += values[p]
                    level = total_data / n
                    squares = 0.0
                    for k in range(m0, m1):
                        squares += (around[k] - level) * (around[k] - level)
                    for p in range(first, own_last):
                        if values[p] == values[p]:
                            squares += (values[p] - level) * (values[p] - level)
                    limit = level + crsigma * math.sqrt(squares / (n - 1))
                else:
                    if shortcuts and scale > 0.0:
                        steps, centre, scale = _settle(
                            around, m0, m1, values, first, own_last, n, largest, crsigma, centre, scale
                        )
                        if fresh:
                            column_centre = centre
                            fresh = False
                        if steps >= 0:
                            statistics[1 if steps == 0 else 2] += 1
                            continue
                    for k in range(m0, m1):
                        distance[k - m0] = around[k]
                    k = m1 - m0
                    for p in range(first, own_last):
                        if values[p] == values[p]:
                            distance[k] = values[p]
                            k += 1
                    level = median(distance, n)
                    # the selection reorders, it loses nothing
                    for k in range(n):
                        distance[k] = abs(distance[k] - level)
                    mad = median(distance, n)
                    centre = level
                    scale = mad
                    statistics[3] += 1
                    limit = level + crsigma * mad
                    if fresh:
                        column_centre = centre
                        fresh = False
                for p in range(first, last):
                    if np.float64(records[p, DATA]) > limit:
                        bits[p, DQ] |= STATE_COSMIC
