"""Positions of pixel-table rows on the sky and in the grid of a cube.

The formulas are those of the reference pipeline (gnomonic projection with native pole
longitude 180 deg, Calabretta & Greisen 2002, A&A 395, 1077).  Each exists twice: *exact*,
term by term in float64 as the reference evaluates it, and *fast*, from short power series
that the compiler turns into vector instructions.  A fast result is used only where its
error bound proves that the rounding to float32 or to an integer cannot differ; the few
other rows are evaluated exactly.  So the two always agree to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..instrument import air_index

DEG = 180.0 / math.pi
#: for differences; the formulas of the reference are divided by DEG, which rounds differently
RAD = math.pi / 180.0
_PIO2 = math.pi / 2
_PIO2_LOW = 6.123233995736766e-17  # pi/2 - float64(pi/2)
_BLOCK = 512
# largest angles [rad] for which the power series below are good to float64
_MAX_SERIES = 0.03
_air_index = njit(nogil=True, error_model="numpy", inline="always")(air_index)


@njit(cache=True, nogil=True, inline="always")
def lround(value: float) -> int:
    """C ``lround``: nearest integer, halves away from zero."""
    size = abs(value)
    low = math.floor(size)
    if size - low >= 0.5:
        low += 1
    return low if value >= 0 else -low


@njit(cache=True, nogil=True)
def position_exact(phi: float, ypos: float, dec0: float) -> tuple[float, float]:
    """Native spherical to celestial: offsets (RA - RA0, DEC - DEC0) in degrees, float64.

    Parameters
    ----------
    phi, ypos : float
        Row values of ``xpos`` [rad] and ``ypos`` = theta - pi/2 [rad].
    dec0 : float
        Declination of the reference point [deg].
    """
    d = dec0 / DEG
    theta = ypos + _PIO2
    ra = math.atan2(
        math.cos(theta) * math.sin(phi),
        math.sin(theta) * math.cos(d) + math.cos(theta) * math.sin(d) * math.cos(phi),
    )
    dec = math.asin(math.sin(theta) * math.sin(d) - math.cos(theta) * math.cos(d) * math.cos(phi))
    return ra * DEG, dec * DEG - dec0


@njit(cache=True, nogil=True, error_model="numpy")
def position_rows(
    rows: NDArray[np.float32], dec0: float, shift_ra: float, shift_dec: float, use_fast: bool
) -> int:
    """Turn native spherical positions of rows into celestial offsets, in place.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, k >= 2)
        Columns 0 and 1 hold ``xpos``, ``ypos`` [rad]; they become RA and DEC minus the
        reference point of the first exposure [deg].
    dec0 : float
        Declination of this exposure's reference point [deg].
    shift_ra, shift_dec : float
        This exposure's reference point minus that of the first exposure [deg]; not applied
        if both are zero.
    use_fast : bool
        False evaluates every row exactly (for tests).

    Returns
    -------
    int
        Number of rows that were evaluated exactly.
    """
    n = rows.shape[0]
    sd = math.sin(dec0 / DEG)
    cd = math.cos(dec0 / DEG)
    ra = np.empty(_BLOCK)
    dec = np.empty(_BLOCK)
    safe = np.empty(_BLOCK, np.bool_)
    phi = np.empty(_BLOCK)
    ypos = np.empty(_BLOCK)
    n_exact = 0
    # bound of the error of dec, of the reference and of the series [deg]
    guard_dec = 2e-13 / max(abs(cd), 1e-6)
    for first in range(0, n, _BLOCK):
        m = min(_BLOCK, n - first)
        for k in range(m):
            phi[k] = rows[first + k, 0]
            ypos[k] = rows[first + k, 1]
        if use_fast:
            _position_series(phi, ypos, sd, cd, guard_dec, m, ra, dec, safe)
        else:
            safe[:m] = False
        for k in range(m):
            if safe[k]:
                x = np.float32(ra[k])
                y = np.float32(dec[k])
            else:
                a, b = position_exact(phi[k], ypos[k], dec0)
                x = np.float32(a)
                y = np.float32(b)
                n_exact += 1
            if shift_ra != 0.0 or shift_dec != 0.0:
                x = np.float32(np.float64(x) + shift_ra)
                y = np.float32(np.float64(y) + shift_dec)
            rows[first + k, 0] = x
            rows[first + k, 1] = y
    return n_exact


@njit(cache=True, nogil=True, error_model="numpy")
def _position_series(phi, ypos, sd, cd, guard_dec, m, ra, dec, safe):  # type: ignore[no-untyped-def]
    """Vector part of `position_rows`: series values and whether their float32 rounding is proven."""
    for k in range(m):
        # phi = quadrant * pi/2 + r with |r| <= pi/4; the head of pi/2 has few bits: products are exact
        quadrant = math.floor(phi[k] * (2.0 / math.pi) + 0.5)
        r = (phi[k] - quadrant * 1.57079632673412561417) - quadrant * 6.07710050650619224932e-11
        r2 = r * r
        s = r + r * r2 * (
            -1.66666666666666324348e-01
            + r2
            * (
                8.33333333332248946124e-03
                + r2
                * (
                    -1.98412698298579493134e-04
                    + r2
                    * (
                        2.75573137070700676789e-06
                        + r2 * (-2.50507602534068634195e-08 + r2 * 1.58969099521155010221e-10)
                    )
                )
            )
        )
        c = (
            1.0
            - 0.5 * r2
            + r2
            * r2
            * (
                4.16666666666666019037e-02
                + r2
                * (
                    -1.38888888888741095749e-03
                    + r2
                    * (
                        2.48015872894767294178e-05
                        + r2
                        * (
                            -2.75573143513906633035e-07
                            + r2 * (2.08757232129817482790e-09 + r2 * -1.13596475577881948265e-11)
                        )
                    )
                )
            )
        )
        half = math.floor(quadrant * 0.5)
        odd = quadrant - 2.0 * half
        flip = 1.0 - 2.0 * (half - 2.0 * math.floor(half * 0.5))
        # quadrant 0: (s, c), 1: (c, -s), 2: (-s, -c), 3: (-c, s)
        sphi = flip * ((1.0 - odd) * s + odd * c)
        cphi = flip * ((1.0 - odd) * c - odd * s)
        # theta as the reference rounds it; its distance from pi/2 is exact
        e = (_PIO2 - (ypos[k] + _PIO2)) + _PIO2_LOW
        e2 = e * e
        ce = e * (1.0 - e2 / 6.0 * (1.0 - e2 / 20.0 * (1.0 - e2 / 42.0)))
        se = 1.0 - e2 / 2.0 * (1.0 - e2 / 12.0 * (1.0 - e2 / 30.0 * (1.0 - e2 / 56.0)))
        num = ce * sphi
        den = se * cd + ce * sd * cphi
        q = num / den
        q2 = q * q
        atan = q * (
            1.0
            - q2 * (1.0 / 3.0 - q2 * (0.2 - q2 * (1.0 / 7.0 - q2 * (1.0 / 9.0 - q2 * (1.0 / 11.0 - q2 / 13.0)))))
        )
        a = atan * DEG
        sine = (se * sd - ce * cd * cphi) * cd - math.sqrt(num * num + den * den) * sd
        s2 = sine * sine
        b = sine * (1.0 + s2 * (1.0 / 6.0 + s2 * (3.0 / 40.0 + s2 * (15.0 / 336.0 + s2 * 105.0 / 3456.0)))) * DEG
        ra[k] = a
        dec[k] = b
        guard = 1e-14 * abs(a) + 1e-300
        safe[k] = (
            (np.float32(a - guard) == np.float32(a + guard))
            & (np.float32(b - guard_dec) == np.float32(b + guard_dec))
            & (abs(e) < _MAX_SERIES)
            & (abs(q) < _MAX_SERIES)
            & (den > 0.0)
            & (abs(sine) < _MAX_SERIES)
            & (phi[k] >= 0.0)
            & (phi[k] < 6.2831855)
        )


@njit(cache=True, nogil=True)
def project_exact(ra: float, dec: float, wcs: NDArray[np.float64]) -> tuple[float, float]:
    """Celestial to pixel coordinates (first pixel = 1), TAN projection.

    Parameters
    ----------
    ra, dec : float
        Degrees.
    wcs : ndarray of float64, shape (8,)
        ``CRVAL1 CRVAL2 CRPIX1 CRPIX2 CD1_1 CD1_2 CD2_1 CD2_2``.
    """
    a = ra / DEG
    d = dec / DEG
    a0 = wcs[0] / DEG
    d0 = wcs[1] / DEG
    phi = (
        math.atan2(
            -math.cos(d) * math.sin(a - a0),
            math.sin(d) * math.cos(d0) - math.cos(d) * math.sin(d0) * math.cos(a - a0),
        )
        + math.pi
    )
    sine = math.sin(d) * math.sin(d0) + math.cos(d) * math.cos(d0) * math.cos(a - a0)
    # rounding may give 1 + 2.2e-16, where C's asin and ours are NaN alike
    theta = math.asin(sine) if sine <= 1.0 else math.nan
    radius = DEG / math.tan(theta)
    x = radius * math.sin(phi)
    y = -radius * math.cos(phi)
    det = wcs[4] * wcs[7] - wcs[5] * wcs[6]
    return (wcs[7] * x - wcs[5] * y) / det + wcs[2], (wcs[4] * y - wcs[6] * x) / det + wcs[3]


@njit(cache=True, nogil=True)
def unproject_exact(px: float, py: float, wcs: NDArray[np.float64]) -> tuple[float, float]:
    """Pixel to celestial coordinates [deg], inverse of `project_exact`."""
    x = wcs[4] * (px - wcs[2]) + wcs[5] * (py - wcs[3])
    y = wcs[7] * (py - wcs[3]) + wcs[6] * (px - wcs[2])
    phi = math.atan2(x, -y)
    theta = math.atan(DEG / math.sqrt(x * x + y * y)) if (x != 0.0 or y != 0.0) else _PIO2
    d = wcs[1] / DEG
    ra = math.atan2(
        math.cos(theta) * math.sin(phi),
        math.sin(theta) * math.cos(d) + math.cos(theta) * math.sin(d) * math.cos(phi),
    )
    dec = math.asin(math.sin(theta) * math.sin(d) - math.cos(theta) * math.cos(d) * math.cos(phi))
    return wcs[0] + ra * DEG, dec * DEG


@njit(cache=True, nogil=True)
def pixel_linear(x: float, y: float, wcs: NDArray[np.float64]) -> tuple[float, float]:
    """Linear world to pixel coordinates, for tables in pixel units; `wcs` as in `project_exact`."""
    det = wcs[4] * wcs[7] - wcs[5] * wcs[6]
    u = x - wcs[0]
    v = y - wcs[1]
    return (wcs[7] * u - wcs[5] * v) / det + wcs[2], (wcs[4] * v - wcs[6] * u) / det + wcs[3]


@njit(cache=True, nogil=True)
def world_linear(px: float, py: float, wcs: NDArray[np.float64]) -> tuple[float, float]:
    """Inverse of `pixel_linear`."""
    return (
        wcs[4] * (px - wcs[2]) + wcs[5] * (py - wcs[3]) + wcs[0],
        wcs[7] * (py - wcs[3]) + wcs[6] * (px - wcs[2]) + wcs[1],
    )


@njit(cache=True, nogil=True, error_model="numpy")
def voxel_index(  # type: ignore[no-untyped-def]
    rows, wcs, zero, celestial, crval3, cd33, crpix3, is_log, shape, window, use_fast, keys, n_exact
):
    """Voxel of every row, as an index into a window of the cube.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, k >= 3)
        Positions (offsets from the zero point) and wavelength [Angstrom].
    wcs : ndarray of float64, shape (8,)
        Spatial WCS of the cube, see `project_exact`.
    zero : ndarray of float64, shape (2,)
        Zero point of the table, added to the positions.
    celestial : bool
        TAN projection, otherwise linear.
    crval3, cd33, crpix3 : float
        Wavelength axis [Angstrom].
    is_log : bool
    shape : ndarray of int64, shape (3,)
        Cube size ``(nz, ny, nx)``; indices outside are clamped to its edges.
    window : ndarray of int64, shape (6,)
        ``z0, z1, y0, y1, x0, x1`` (half open): rows outside get key -1.
    use_fast : bool
        False evaluates every row exactly (for tests).
    keys : ndarray of int32, shape (n,)
        Output: ``((ix - x0) * ny_w + (iy - y0)) * nz_w + (iz - z0)``.
    n_exact : ndarray of int64, shape (1,)
        Incremented by the number of rows evaluated exactly.
    """
    n = rows.shape[0]
    nz, ny, nx = shape[0], shape[1], shape[2]
    z0, z1, y0, y1, x0, x1 = window
    nz_w = z1 - z0
    ny_w = y1 - y0
    xp = np.empty(_BLOCK)
    yp = np.empty(_BLOCK)
    wave = np.empty(_BLOCK)
    fx = np.empty(_BLOCK)
    fy = np.empty(_BLOCK)
    fz = np.empty(_BLOCK)
    safe = np.empty(_BLOCK, np.bool_)
    for first in range(0, n, _BLOCK):
        m = min(_BLOCK, n - first)
        for k in range(m):
            xp[k] = rows[first + k, 0] + zero[0]
            yp[k] = rows[first + k, 1] + zero[1]
            wave[k] = rows[first + k, 2]
        if is_log:
            for k in range(m):
                iz = int(lround(crval3 / cd33 * math.log(wave[k] / crval3)) + crpix3 - 1.0)
                fz[k] = min(max(iz, 0), nz - 1)
        else:
            _planes(wave, crval3, cd33, crpix3, nz, m, fz)
        if celestial and use_fast:
            _project_series(xp, yp, wcs, nx, ny, m, fx, fy, safe)
        else:
            safe[:m] = False
        for k in range(m):
            iz = int(fz[k])
            if iz < z0 or iz >= z1:
                keys[first + k] = -1
                continue
            if safe[k]:
                ix = int(fx[k])
                iy = int(fy[k])
            else:
                if celestial:
                    u, v = project_exact(xp[k], yp[k], wcs)
                    n_exact[0] += 1
                else:
                    u, v = pixel_linear(xp[k], yp[k], wcs)
                ix = _clamped(u, nx)
                iy = _clamped(v, ny)
            if ix < x0 or ix >= x1 or iy < y0 or iy >= y1:
                keys[first + k] = -1
            else:
                keys[first + k] = ((ix - x0) * ny_w + (iy - y0)) * nz_w + (iz - z0)


@njit(cache=True, nogil=True, error_model="numpy")
def _planes(wave, crval3, cd33, crpix3, nz, m, fz):  # type: ignore[no-untyped-def]
    """Plane of each wavelength on a linear axis, clamped; what is negative ends in plane 0 anyway."""
    last = nz - 1.0
    for k in range(m):
        position = (wave[k] - crval3) / cd33 + crpix3
        low = math.floor(position)
        rounded = low + (1.0 if position - low >= 0.5 else 0.0)
        fz[k] = min(max(rounded - 1.0, 0.0), last)


@njit(cache=True, nogil=True, inline="always")
def _clamped(position: float, n: int) -> int:
    # also keeps huge and NaN positions inside before they become integers
    if not position > 1.0:
        return 0
    if position > n:
        return n - 1
    return lround(position) - 1


@njit(cache=True, nogil=True, error_model="numpy")
def _project_series(ra, dec, wcs, nx, ny, m, fx, fy, safe):  # type: ignore[no-untyped-def]
    """Vector part of `voxel_index`: clamped spaxels, and whether `project_exact` must agree.

    The reference takes the native latitude from an arcsine near 1, whose error grows as the
    inverse of the distance rho from the reference point: the bound follows it.
    """
    sd0 = math.sin(wcs[1] / DEG)
    cd0 = math.cos(wcs[1] / DEG)
    det = wcs[4] * wcs[7] - wcs[5] * wcs[6]
    m11 = wcs[7] / det * DEG
    m12 = -wcs[5] / det * DEG
    m21 = -wcs[6] / det * DEG
    m22 = wcs[4] / det * DEG
    scale = abs(m11) + abs(m12) + abs(m21) + abs(m22)
    last_x = nx - 1.0
    last_y = ny - 1.0
    for k in range(m):
        da = (ra[k] - wcs[0]) * RAD
        dd = (dec[k] - wcs[1]) * RAD
        a2 = da * da
        d2 = dd * dd
        sda = da * (1.0 - a2 * (1.0 / 6.0 - a2 * (1.0 / 120.0 - a2 * (1.0 / 5040.0))))
        vda = a2 * (0.5 - a2 * (1.0 / 24.0 - a2 * (1.0 / 720.0 - a2 * (1.0 / 40320.0))))  # 1 - cos
        sdd = dd * (1.0 - d2 * (1.0 / 6.0 - d2 * (1.0 / 120.0 - d2 * (1.0 / 5040.0))))
        cdd = 1.0 - d2 * (0.5 - d2 * (1.0 / 24.0 - d2 * (1.0 / 720.0 - d2 * (1.0 / 40320.0))))
        cosd = cd0 * cdd - sd0 * sdd
        inverse = 1.0 / (cdd - cosd * cd0 * vda)
        xi = cosd * sda * inverse
        eta = (sdd + cosd * sd0 * vda) * inverse
        # half a pixel more: the integer below is the nearest one
        px = m11 * xi + m12 * eta + (wcs[2] + 0.5)
        py = m21 * xi + m22 * eta + (wcs[3] + 0.5)
        bound = scale * (4e-15 / math.sqrt(xi * xi + eta * eta) + 2e-14) + 1e-9
        ix = math.floor(px)
        iy = math.floor(py)
        dx = px - ix
        dy = py - iy
        safe[k] = (
            (dx > bound)
            & (dx < 1.0 - bound)
            & (dy > bound)
            & (dy < 1.0 - bound)
            & (abs(da) < _MAX_SERIES)
            & (abs(dd) < _MAX_SERIES)
        )
        fx[k] = min(max(ix - 1.0, 0.0), last_x)
        fy[k] = min(max(iy - 1.0, 0.0), last_y)


@njit(cache=True, nogil=True)
def voxel_centres(  # type: ignore[no-untyped-def]
    wcs, celestial, y0, y1, x0, x1
):
    """World coordinates of the spaxel centres of a window.

    Returns
    -------
    x, y, cosine : ndarray of float64, shape (x1 - x0, y1 - y0)
        World coordinates (deg or pix) and, for celestial grids, cos(DEC), otherwise 1.
    """
    nx = x1 - x0
    ny = y1 - y0
    x = np.empty((nx, ny))
    y = np.empty((nx, ny))
    cosine = np.ones((nx, ny))
    for i in range(nx):
        for j in range(ny):
            if celestial:
                x[i, j], y[i, j] = unproject_exact(i + x0 + 1.0, j + y0 + 1.0, wcs)
                cosine[i, j] = math.cos(y[i, j] / DEG)
            else:
                x[i, j], y[i, j] = world_linear(i + x0 + 1.0, j + y0 + 1.0, wcs)
    return x, y, cosine


@njit(cache=True, nogil=True, error_model="numpy")
def air_to_vacuum(rows: NDArray[np.float32]) -> None:
    """Convert the wavelengths (column 2) of rows from standard air to vacuum, in place.

    Dry air of 15 C, 1013.25 hPa, 450 ppm CO2 (Ciddor 1996, Appl. Opt. 35, 1566), the
    refractive index taken at the air wavelength as the reference does.
    """
    for k in range(rows.shape[0]):
        wave = np.float64(rows[k, 2])
        rows[k, 2] = np.float32(wave * _air_index(wave))


@njit(cache=True, nogil=True)
def row_limits(rows: NDArray[np.float32], limits: NDArray[np.float64]) -> None:
    """Update minima and maxima of x, y, wavelength: `limits` is ``xlo xhi ylo yhi llo lhi``."""
    for c in range(3):
        low = limits[2 * c]
        high = limits[2 * c + 1]
        for k in range(rows.shape[0]):
            value = np.float64(rows[k, c])
            if value < low:
                low = value
            if value > high:
                high = value
        limits[2 * c] = low
        limits[2 * c + 1] = high
