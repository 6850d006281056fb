"""Sorting rows into voxels and the six resampling methods, on one chunk.

A chunk is a window of the cube with its halo.  Its rows lie in one array of *records*,
sorted by voxel; `offsets` tells where each voxel starts.  Voxels are numbered with the
wavelength running fastest, then y, then x, so that walking through them in order adds
every voxel's contributions in the order of the reference (x outermost, wavelength
innermost, then rows in table order): sums agree to the last bit although the rows are
scattered to their neighbours instead of gathered.

Record columns: 0 xpos, 1 ypos, 2 lambda, 3 data, 4 stat, 5 weight (float32), 6 dq,
7 row number in its table (int32 bits).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .params import METHODS

RECORD = 8
X, Y, WAVE, DATA, STAT, WEIGHT, DQ, ROW = range(RECORD)
#: ``dq`` of a sorted record holds these bits, the number of the table above them
STATE_GOOD, STATE_COSMIC, STATE_BAD = 0, 1, 2
STATE_BITS = 2

_LINEAR, _QUADRATIC, _LANCZOS = METHODS["linear"], METHODS["quadratic"], METHODS["lanczos"]
_FLT_MAX = 3.40282346638528860e38
_DBL_MIN = 2.2250738585072014e-308
_ZN = 1.0 / 1.25


#: how far ahead of its use a place in memory is asked for
_AHEAD = 12


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Have the memory at ``array[index]`` (or ``array[index, 0]``) fetched for writing; it is not read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        made = context.make_array(kind)(context, builder, arguments[0])
        first = context.cast(builder, arguments[1], signature.args[1], types.intp)
        zero = context.get_constant(types.intp, 0)
        place = cgutils.get_item_pointer(context, builder, kind, made, [first] + [zero] * (kind.ndim - 1))
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0i8"
        )
        # for writing, into all caches, data
        builder.call(function, [builder.bitcast(place, byte), word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@njit(cache=True, nogil=True)
def count_rows(keys: NDArray[np.int32], counts: NDArray[np.int64]) -> int:
    """Count the rows of each voxel, voxel v at ``counts[v + 1]``; returns how many are inside."""
    total = 0
    for key in keys:
        if key >= 0:
            counts[key + 1] += 1
            total += 1
    return total


@njit(cache=True, nogil=True)
def pack_rows(rows, keys):  # type: ignore[no-untyped-def]
    """Move the rows that are inside, and their keys, to the front, in place."""
    n = 0
    for k in range(rows.shape[0]):
        if keys[k] >= 0:
            if n != k:
                for c in range(RECORD):
                    rows[n, c] = rows[k, c]
                keys[n] = keys[k]
            n += 1


@njit(cache=True, nogil=True)
def scatter_rows(  # type: ignore[no-untyped-def]
    rows, bits, keys, table, weight, offsets, cursor, out, out_bits
):
    """Place rows into the voxel-sorted records, each voxel in table order.

    Parameters
    ----------
    rows, bits : ndarray, shape (n, 8)
        Float32 and int32 view of the records; pieces of one table must come in order.
    keys : ndarray of int32, shape (n,)
        Voxel of each row, -1 for rows outside.
    table : int
        Number of the table (exposure), ascending over the calls of a chunk.
    weight : float
        Weight of all rows of this table; negative keeps the weight column.
    offsets : ndarray of int64
        First place of each voxel.
    cursor : ndarray of int32
        Next free place of each voxel, advanced here.
    out, out_bits : ndarray, shape (n_out, 8)
        Float32 and int32 view of the sorted records.
    """
    constant = np.float32(weight)
    n = rows.shape[0]
    for k in range(n):
        # the places are as good as random: without this, the loop only waits for memory
        if k + _AHEAD < n and keys[k + _AHEAD] >= 0:
            _prefetch(out, cursor[keys[k + _AHEAD]])  # type: ignore[call-arg]
        key = keys[k]
        if key < 0:
            continue
        p = cursor[key]
        cursor[key] = p + 1
        dq = bits[k, DQ]
        state = STATE_GOOD if dq == 0 else (STATE_COSMIC if dq == 32 else STATE_BAD)
        row = bits[k, ROW]
        # a block is sorted by wavelength bin: rows of one table may have to swap back
        while (
            p > 0
            and out_bits[p - 1, ROW] > row
            and (out_bits[p - 1, DQ] >> STATE_BITS) == table
            and p > offsets[key]
        ):
            for c in range(RECORD):
                out_bits[p, c] = out_bits[p - 1, c]
            p -= 1
        out[p, X] = rows[k, X]
        out[p, Y] = rows[k, Y]
        out[p, WAVE] = rows[k, WAVE]
        out[p, DATA] = rows[k, DATA]
        out[p, STAT] = rows[k, STAT]
        out[p, WEIGHT] = constant if weight >= 0.0 else rows[k, WEIGHT]
        out_bits[p, DQ] = (table << STATE_BITS) | state
        out_bits[p, ROW] = row


@njit(cache=True, nogil=True)
def drizzle(  # type: ignore[no-untyped-def]
    records, bits, offsets, window, target, xc, yc, cosine, wave, step, zero, drop, size, ld, sums, n_pixels
):
    """Drizzle the records of a chunk: add ``weight``, ``data * weight``, ``stat * weight**2``.

    Parameters
    ----------
    records, bits, offsets
        Voxel-sorted rows of the window.
    window : ndarray of int64, shape (3,)
        Size ``(nx, ny, nz)`` of the window.
    target : ndarray of int64, shape (6,)
        Part of the window to fill, ``x0 x1 y0 y1 z0 z1`` in window coordinates.
    xc, yc, cosine : ndarray of float64, shape (nx, ny)
        Spaxel centres of the window and cos(DEC).
    wave, step : ndarray of float64, shape (nz,)
        Wavelength and width of each plane of the window [Angstrom].
    zero : ndarray of float64, shape (2,)
        Zero point of the positions.
    drop, size : ndarray of float64
        Drop size in x, y, wavelength; voxel size in x, y.
    ld : int
        Loop distance.
    sums : ndarray of float64, shape (n_target, 3)
        Accumulators, voxels as in `records` but of the target only.
    n_pixels : ndarray of int32, shape (n_target,) or (0,)
        Number of rows with a positive weight, if wanted.
    """
    ny_w, nz_w = window[1], window[2]
    tx0, tx1, ty0, ty1, tz0, tz1 = target
    ny_t = ty1 - ty0
    nz_t = tz1 - tz0
    a_x, a_y, a_z = drop[0], drop[1], drop[2]
    b_x, b_y = size[0], size[1]
    volume = a_x * a_y * a_z
    reach_x, reach_y = (a_x + b_x) / 2, (a_y + b_y) / 2
    count = n_pixels.shape[0] > 0
    # the spaxels around a column, and those of them that a row overlaps
    side = 2 * ld + 1
    near_x = np.empty(side * side)
    near_y = np.empty(side * side)
    near_c = np.empty(side * side)
    near_v = np.empty(side * side, np.int64)
    overlap = np.empty(side * side)
    hit = np.empty(side * side + 1, np.int64)
    overlap_z = np.empty(side + 1)
    plane = np.empty(side + 1, np.int64)
    for i in range(max(tx0 - ld, 0), min(tx1 + ld, window[0])):
        for j in range(max(ty0 - ld, 0), min(ty1 + ld, ny_w)):
            base = (i * ny_w + j) * nz_w
            n_near = 0
            for ti in range(max(i - ld, tx0), min(i + ld + 1, tx1)):
                for tj in range(max(j - ld, ty0), min(j + ld + 1, ty1)):
                    near_x[n_near] = xc[ti, tj]
                    near_y[n_near] = yc[ti, tj]
                    near_c[n_near] = cosine[ti, tj]
                    near_v[n_near] = ((ti - tx0) * ny_t + (tj - ty0)) * nz_t - tz0
                    n_near += 1
            for z in range(max(tz0 - ld, 0), min(tz1 + ld, nz_w)):
                z_first = max(z - ld, tz0)
                z_last = min(z + ld + 1, tz1)
                for p in range(offsets[base + z], offsets[base + z + 1]):
                    if bits[p, DQ] & 3 != STATE_GOOD:
                        continue
                    # no branches on the overlaps: they are as good as random
                    lam = np.float64(records[p, WAVE])
                    n_planes = 0
                    for t in range(z_first, z_last):
                        d = abs(wave[t] - lam)
                        b = step[t]
                        o = b if d + b / 2 <= a_z / 2 else (a_z + b) / 2 - d
                        overlap_z[n_planes] = min(o, a_z)
                        plane[n_planes] = t
                        n_planes += o > 0.0
                    xp = np.float64(records[p, X]) + zero[0]
                    yp = np.float64(records[p, Y]) + zero[1]
                    for m in range(n_near):
                        dx = abs(near_x[m] - xp) * near_c[m]
                        dy = abs(near_y[m] - yp)
                        o_x = b_x if dx + b_x / 2 <= a_x / 2 else reach_x - dx
                        o_y = b_y if dy + b_y / 2 <= a_y / 2 else reach_y - dy
                        o = min(o_x, a_x) * min(o_y, a_y)
                        overlap[m] = o if (o_x > 0.0) & (o_y > 0.0) else 0.0
                    n_hit = 0
                    for m in range(n_near):
                        hit[n_hit] = m
                        n_hit += overlap[m] > 0.0
                    data = np.float64(records[p, DATA])
                    stat = np.float64(records[p, STAT])
                    factor = np.float64(records[p, WEIGHT])
                    for h in range(n_hit):
                        m = hit[h]
                        o_xy = overlap[m]
                        v = near_v[m]
                        for t in range(n_planes):
                            w = o_xy * overlap_z[t] / volume * factor
                            q = v + plane[t]
                            sums[q, 0] += w
                            sums[q, 1] += data * w
                            sums[q, 2] += stat * w * w
                            if count and w > 0.0:
                                n_pixels[q] += 1


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _sinc(t: float) -> float:
    if abs(t) < 2.220446049250313e-16:
        return 1.0
    return math.sin(math.pi * t) / (math.pi * t)


@njit(cache=True, nogil=True, error_model="numpy")
def weighted(  # type: ignore[no-untyped-def]
    method, records, bits, offsets, window, target, xc, yc, cosine, wave, zero, scale, rc, ld, sums, n_pixels
):
    """Weight by distance: linear, quadratic, renka, lanczos.  Arguments as in `drizzle`, and:

    Parameters
    ----------
    method : int
        One of `params.METHODS`.
    scale : ndarray of float64, shape (2,)
        Pixels per unit of position in x and y.
    rc : float
        Critical radius of renka, in units of the distances.
    """
    ny_w, nz_w = window[1], window[2]
    tx0, tx1, ty0, ty1, tz0, tz1 = target
    ny_t = ty1 - ty0
    nz_t = tz1 - tz0
    count = n_pixels.shape[0] > 0
    for i in range(max(tx0 - ld, 0), min(tx1 + ld, window[0])):
        for j in range(max(ty0 - ld, 0), min(ty1 + ld, ny_w)):
            base = (i * ny_w + j) * nz_w
            for z in range(max(tz0 - ld, 0), min(tz1 + ld, nz_w)):
                for p in range(offsets[base + z], offsets[base + z + 1]):
                    if bits[p, DQ] & 3 != STATE_GOOD:
                        continue
                    xp = np.float64(records[p, X]) + zero[0]
                    yp = np.float64(records[p, Y]) + zero[1]
                    lam = np.float64(records[p, WAVE])
                    data = np.float64(records[p, DATA])
                    stat = np.float64(records[p, STAT])
                    factor = np.float64(records[p, WEIGHT])
                    for ti in range(max(i - ld, tx0), min(i + ld + 1, tx1)):
                        for tj in range(max(j - ld, ty0), min(j + ld + 1, ty1)):
                            dx = abs(xc[ti, tj] - xp) * cosine[ti, tj] * scale[0]
                            dy = abs(yc[ti, tj] - yp) * scale[1]
                            v = ((ti - tx0) * ny_t + (tj - ty0)) * nz_t - tz0
                            for t in range(max(z - ld, tz0), min(z + ld + 1, tz1)):
                                dl = abs(wave[t] - lam) * _ZN
                                if method == _LANCZOS:
                                    w = 0.0
                                    if not (dx >= ld or dy >= ld or dl > ld):
                                        w = (
                                            (_sinc(dx) * _sinc(dx / ld))
                                            * (_sinc(dy) * _sinc(dy / ld))
                                            * (_sinc(dl) * _sinc(dl / ld))
                                        )
                                else:
                                    r2 = dx * dx + dy * dy + dl * dl
                                    if r2 == 0.0:
                                        w = _FLT_MAX
                                    elif method == _LINEAR:
                                        w = 1.0 / math.sqrt(r2)
                                    elif method == _QUADRATIC:
                                        w = 1.0 / r2
                                    else:
                                        r = math.sqrt(r2)
                                        if r >= rc:
                                            w = _DBL_MIN
                                        else:
                                            q = (rc - r) / (rc * r)
                                            w = q * q
                                w *= factor
                                sums[v + t, 0] += w
                                sums[v + t, 1] += data * w
                                sums[v + t, 2] += stat * w * w
                                if count and w != 0.0:
                                    n_pixels[v + t] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def finish(sums, shape, data, stat, weight):  # type: ignore[no-untyped-def]
    """Divide the sums: ``D / W`` and ``V / W**2``, NaN where W is not a normal number.

    Parameters
    ----------
    sums : ndarray of float64, shape (nx * ny * nz, 3)
    shape : tuple of int
        ``(nx, ny, nz)`` of the target.
    data, stat : ndarray of float32, shape (nz, ny, nx)
        Output.
    weight : ndarray of float32, shape (nz, ny, nx) or (0, 0, 0)
        Sum of the weights, if wanted.
    """
    nx, ny, nz = shape
    for j in range(ny):
        # sums run along z, the output along x: a part of a row at a time, so that either is in the cache
        for first in range(0, nx, 16):
            for z in range(nz):
                for i in range(first, min(first + 16, nx)):
                    v = (i * ny + j) * nz + z
                    w = sums[v, 0]
                    if abs(w) >= _DBL_MIN and math.isfinite(w):
                        data[z, j, i] = np.float32(sums[v, 1] / w)
                        stat[z, j, i] = np.float32(sums[v, 2] / (w * w))
                    else:
                        data[z, j, i] = np.nan
                        stat[z, j, i] = np.nan
                    if weight.shape[0]:
                        weight[z, j, i] = np.float32(w)


@njit(cache=True, nogil=True)
def nearest(  # type: ignore[no-untyped-def]
    records, bits, offsets, window, target, xc, yc, cosine, wave, zero, scale, corrected, data, stat, n_pixels
):
    """Copy the row nearest to each voxel centre, among those inside the voxel.

    Rows of any data quality are candidates; where the chosen one is bad the voxel is NaN.
    The reference adds the zero point with the wrong sign to the distance of celestial
    tables; `corrected` takes the real distance.  Other arguments as in `weighted`;
    `data`, `stat` have shape (nz, ny, nx) of the target, `n_pixels` the same or (0, 0, 0).
    """
    ny_w, nz_w = window[1], window[2]
    tx0, tx1, ty0, ty1, tz0, tz1 = target
    sign = -1.0 if corrected else 1.0
    count = n_pixels.shape[0] > 0
    for i in range(tx0, tx1):
        for j in range(ty0, ty1):
            base = (i * ny_w + j) * nz_w
            for z in range(tz0, tz1):
                first = offsets[base + z]
                last = offsets[base + z + 1]
                best = first
                if last - first > 1:
                    smallest = np.inf
                    for p in range(first, last):
                        dx = abs(xc[i, j] - np.float64(records[p, X]) + sign * zero[0])
                        dx = dx * scale[0] * cosine[i, j]
                        dy = abs(yc[i, j] - np.float64(records[p, Y]) + sign * zero[1]) * scale[1]
                        dl = abs(wave[z] - np.float64(records[p, WAVE])) * _ZN
                        distance = math.sqrt(dx * dx + dy * dy + dl * dl)
                        if distance < smallest:
                            smallest = distance
                            best = p
                if last > first and bits[best, DQ] & 3 == STATE_GOOD:
                    data[z - tz0, j - ty0, i - tx0] = records[best, DATA]
                    stat[z - tz0, j - ty0, i - tx0] = records[best, STAT]
                else:
                    data[z - tz0, j - ty0, i - tx0] = np.nan
                    stat[z - tz0, j - ty0, i - tx0] = np.nan
                if count:
                    n_pixels[z - tz0, j - ty0, i - tx0] = last - first
