"""Model of a master dark: a plane and the glow of the four read-out ports, without noise.

The method is that of the reference pipeline; its numbers are pixels of the unbinned CCD of MUSE.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_DARKPIXEL, DQ_DEADPIXEL, DQ_HOTPIXEL
from .statistics import image_median_deviation

FloatArray = NDArray[np.float64]
Float32Image = NDArray[np.float32]

SHAPE = (4112, 4096)
#: middle and half height of the two bright stripes, rows from 1, and the height of the zones beside them
_STRIPES, _MARGIN = ((1180, 280), (3560, 340)), 50
_BORDER = 500
#: the glow of a port, and the ring around it where it has faded
_RADIUS, _FADED = 750, 850
#: full width at half maximum of the smoothing, and half the size of its window
_FWHM, _HALF = 11.0, 11
_ORDER = 5


def model_dark(
    data: Float32Image, dq: NDArray[np.int32], stat: Float32Image
) -> tuple[Float32Image, NDArray[np.int32], Float32Image]:
    """Model a master dark.

    Stripes along x are fitted and taken out; a plane is fitted to the rest, a surface of 5th order to each
    corner.  Pixels that are far from plane and corners are flagged, and the square of what smoothing leaves of
    the residuals is added to the variance.

    Parameters
    ----------
    data : ndarray of float32, shape (4112, 4096)
        Master dark [count].
    dq : ndarray of int32, shape (4112, 4096)
    stat : ndarray of float32, shape (4112, 4096)

    Returns
    -------
    data, dq, stat : ndarray, shape (4112, 4096)
        Of the model.

    Raises
    ------
    InputError
        If the dark is not of the size of the CCD.
    """
    if data.shape != SHAPE:
        raise InputError(f"model=true: a dark of shape {data.shape} found, expected {SHAPE}")
    rest = without_stripes(data, dq)
    model = _plane(rest, dq)
    for top in (False, True):
        for right in (False, True):
            _add_corner(model, rest, dq, top, right)
    rest -= model
    flags = _flag_outliers(rest, dq)
    smooth = smoothed(rest, flags)
    return model, flags, stat + smooth * smooth


def without_stripes(data: Float32Image, dq: NDArray[np.int32]) -> Float32Image:
    """Copy of a dark without its two bright stripes.

    The level of the two zones beside a stripe is subtracted there, the zones themselves are set to 0, and a
    surface is fitted to both; where it is positive it is taken out of the stripe.
    """
    out = data.copy()
    for middle, half in _STRIPES:
        first, last = middle - half - 1, middle + half - 1
        start, stop = first - _MARGIN, last + _MARGIN + 1
        window, good = data[start:stop].astype(np.float64), dq[start:stop] == 0
        # the first and the last row of a stripe belong to the zones, too
        zones = slice(0, _MARGIN + 1), slice(len(window) - _MARGIN - 1, None)
        window -= np.mean([window[zone][good[zone]].mean() for zone in zones])
        for zone in zones:
            window[zone] = 0.0
        surface = fit_surface(window, good, _ORDER)
        out[first : last + 1] -= np.maximum(surface.rows(_MARGIN, len(window) - _MARGIN), 0.0)
    return out


def _plane(rest: Float32Image, dq: NDArray[np.int32]) -> Float32Image:
    """Plane through the good pixels that are not near the border."""
    good = dq == 0
    for section in _quadrants(rest.shape):
        part = rest[section]
        median, deviation, _, _ = image_median_deviation(part, dq[section])
        good[section] &= (part >= median - 3 * deviation) & (part <= median + 3 * deviation)
    for edge in (slice(0, _BORDER), slice(-_BORDER, None)):
        good[edge] = False
        good[:, edge] = False
    surface = fit_surface(rest, good, 1)
    model = np.empty_like(rest)
    for y in range(0, len(rest), 256):
        np.maximum(surface.rows(y, min(y + 256, len(rest))), 0.0, out=model[y : y + 256], casting="same_kind")
    return model


def _add_corner(
    model: Float32Image, rest: Float32Image, dq: NDArray[np.int32], top: bool, right: bool
) -> None:
    """Fit what is left in a corner and add it to the model."""
    ny, nx = model.shape
    rows = slice(ny - _FADED, ny) if top else slice(0, _FADED)
    columns = slice(nx - _FADED, nx) if right else slice(0, _FADED)
    y = np.arange(rows.start, rows.stop) - (ny - 1 if top else 0)
    x = np.arange(columns.start, columns.stop) - (nx - 1 if right else 0)
    distance = np.hypot(y[:, None], x[None, :])
    glow, known = distance <= _RADIUS, distance <= _FADED
    values = rest[rows, columns] - model[rows, columns]
    residual = values - smoothed(values, np.where(known, 0, 1).astype(np.int32))
    sample = residual[glow & (dq[rows, columns] == 0)].astype(np.float64)
    middle = float(np.median(sample))
    limit = 10 * float(np.mean(np.abs(sample - middle)))
    good = known & (np.abs(residual - middle) < limit)
    fitted = fit_surface(np.where(glow, values, np.float32(0)).astype(np.float64), good, _ORDER).rows(0, len(values))
    model[rows, columns] += np.where(glow, np.maximum(fitted, 0.0), 0.0).astype(np.float32)


def _flag_outliers(residual: Float32Image, dq: NDArray[np.int32]) -> NDArray[np.int32]:
    """Flag single pixels beyond 5, and those with neighbours beyond 3 median deviations."""
    flags = dq.copy()
    for section in _quadrants(residual.shape):
        part = residual[section]
        median, deviation, _, _ = image_median_deviation(part, dq[section])
        flags[section] |= np.where(part > median + 5 * deviation, DQ_HOTPIXEL, 0)
        flags[section] |= np.where(part < median - 5 * deviation, DQ_DEADPIXEL, 0)
    _flag_groups(residual, flags, 3 * image_median_deviation(residual, flags)[1])
    return flags


@njit(nogil=True, cache=True)
def _flag_groups(residual, flags, limit):  # type: ignore[no-untyped-def]
    """Flag good pixels: beyond the limit with two of the four neighbours, or with all four neighbours beyond it."""
    ny, nx = residual.shape
    for y in range(ny):
        for x in range(nx):
            if flags[y, x] != 0:
                continue
            beyond = 0
            beyond += y > 0 and abs(residual[y - 1, x]) > limit
            beyond += y < ny - 1 and abs(residual[y + 1, x]) > limit
            beyond += x > 0 and abs(residual[y, x - 1]) > limit
            beyond += x < nx - 1 and abs(residual[y, x + 1]) > limit
            if beyond == 4 or (beyond >= 2 and abs(residual[y, x]) > limit):
                flags[y, x] |= DQ_HOTPIXEL if residual[y, x] > 0 else DQ_DARKPIXEL


def _quadrants(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    ny, nx = shape[0] // 2, shape[1] // 2
    return [
        (rows, columns)
        for rows in (slice(0, ny), slice(ny, 2 * ny))
        for columns in (slice(0, nx), slice(nx, 2 * nx))
    ]


# --- smoothing and surfaces ------------------------------------------------------------------------


def smoothed(data: Float32Image, dq: NDArray[np.int32]) -> Float32Image:
    """Average of the good pixels around each pixel, weighted by a Gaussian.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        0 where no pixel is good.
    """
    from scipy.ndimage import correlate1d

    x = np.arange(-_HALF, _HALF + 1)
    weights = np.exp(-0.5 * (x / (_FWHM / (2 * np.sqrt(2 * np.log(2))))) ** 2)

    def convolve(image: Float32Image) -> Float32Image:
        for axis in (0, 1):
            image = correlate1d(image, weights, axis=axis, output=np.float32, mode="constant")
        return image

    weight = convolve((dq == 0).astype(np.float32))
    total = convolve(np.where(dq == 0, data, np.float32(0)))
    return np.divide(total, weight, out=total, where=weight > 1e-6)


class Surface:
    """A polynomial in x and y, as sums of products of Legendre polynomials on the window of the fit."""

    def __init__(self, coefficients: FloatArray, along_y: FloatArray, along_x: FloatArray) -> None:
        self._coefficients, self._along_y, self._along_x = coefficients, along_y, along_x

    def rows(self, start: int, stop: int) -> FloatArray:
        """Values in rows of the window."""
        return np.asarray(self._along_y[start:stop] @ self._coefficients @ self._along_x.T)


def fit_surface(data: NDArray[np.floating], good: NDArray[np.bool_], order: int) -> Surface:
    """Least-squares polynomial of good pixels, up to an order in x and in y each.

    Parameters
    ----------
    data : ndarray of float, shape (ny, nx)
    good : ndarray of bool, shape (ny, nx)
    order : int

    Returns
    -------
    Surface
    """
    ny, nx = data.shape
    m = order + 1
    along_y, along_x = (np.polynomial.legendre.legvander(np.linspace(-1, 1, n), order) for n in (ny, nx))
    products, values = _row_moments(data, good, along_x)
    gram = np.einsum("ya,yb,ycd->acbd", along_y, along_y, products, optimize=True).reshape(m * m, m * m)
    right = (along_y.T @ values).reshape(m * m)
    coefficients = np.linalg.lstsq(gram, right, rcond=None)[0].reshape(m, m)
    return Surface(coefficients, np.asarray(along_y, np.float64), np.asarray(along_x, np.float64))


@njit(nogil=True, cache=True)
def _row_moments(data, good, along_x):  # type: ignore[no-untyped-def]
    """Of each row: sums of products of polynomials, and of the data with them."""
    ny, nx = data.shape
    m = along_x.shape[1]
    products, values = np.zeros((ny, m, m)), np.zeros((ny, m))
    for y in range(ny):
        for x in range(nx):
            if good[y, x]:
                for a in range(m):
                    p = along_x[x, a]
                    values[y, a] += p * data[y, x]
                    for b in range(a + 1):
                        products[y, a, b] += p * along_x[x, b]
        for a in range(m):
            for b in range(a):
                products[y, b, a] = products[y, a, b]
    return products, values
