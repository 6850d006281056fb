"""Field-of-view images: filters, collapsing a cube along wavelength, and the cards of the images.

An image is the throughput-weighted mean flux density of each spaxel over the planes that have
data.  Sums are taken in float64 in ascending plane order, so that an image does not depend on how
the cube is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..io.cube_read import CubeSource, Region, open_source
from ..io.cube_write import BYTES_IN_FLIGHT, band_step, run_pieces
from ..io.tables import Filter
from .products import FilterInfo, fov_header, image_headers

if TYPE_CHECKING:
    import os

    import xarray as xr

#: throughputs below this count as zero
_ZERO = 2.220446049250313e-16
_TINY = np.finfo(np.float64).tiny
#: smallest normal float32
_TINY32 = float(np.finfo(np.float32).tiny)


def filter_throughput(filter: Filter, wavelengths: NDArray[np.floating]) -> NDArray[np.float64]:
    """Throughput of a filter at the planes of a cube.

    Parameters
    ----------
    filter : Filter
    wavelengths : ndarray, shape (nz,) [Angstrom]

    Returns
    -------
    ndarray of float64, shape (nz,)
        Interpolated linearly, 0 outside the curve; its end points belong to it.
    """
    return np.interp(np.asarray(wavelengths, np.float64), filter.wave, filter.throughput, left=0.0, right=0.0)


def filter_fraction(filter: Filter, wavelengths: NDArray[np.floating], ctype: str = "AWAV") -> float:
    """Part of a filter that a cube covers.

    The curve is sampled in steps of 1 Angstrom from its first wavelength on.  As in the reference
    the covered range is one plane wider than the planes with throughput, on either side.

    Parameters
    ----------
    filter : Filter
    wavelengths : ndarray, shape (nz,) [Angstrom]
    ctype : str
        Spectral type, to extrapolate the axis by one plane.

    Returns
    -------
    float
        Percent.
    """
    axis = np.asarray(wavelengths, np.float64)
    inside = np.flatnonzero(np.abs(filter_throughput(filter, axis)) >= _ZERO)
    n_samples = int(np.floor(filter.wave[-1] - filter.wave[0])) + 1
    samples = filter.wave[0] + np.arange(n_samples, dtype=np.float64)
    values = filter_throughput(filter, samples)
    total = values.sum()
    if not len(inside) or not total > 0:
        return 0.0
    if len(axis) > 1:
        beyond = axis[-1] ** 2 / axis[-2] if ctype.endswith("-LOG") else 2 * axis[-1] - axis[-2]
    else:
        beyond = axis[-1]
    low = axis[max(0, inside[0] - 1)]
    high = np.append(axis, beyond)[inside[-1] + 1]
    return float(100 * values[(samples >= low) & (samples <= high)].sum() / total)


@njit(nogil=True, cache=True)
def add_planes(
    planes: NDArray[np.float32],
    throughput: NDArray[np.float64],
    sums: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Add planes to the sums of an image; call it with ascending planes.

    Parameters
    ----------
    planes : ndarray of float32, shape (n, ny, nx)
        Flux; what is not finite does not count.
    throughput : ndarray of float64, shape (n,)
    sums, weights : ndarray of float64, shape (ny, nx)
        Changed in place.
    """
    for k in range(planes.shape[0]):
        f = throughput[k]
        for j in range(planes.shape[1]):
            for i in range(planes.shape[2]):
                value = planes[k, j, i]
                if np.isfinite(value):
                    sums[j, i] += np.float64(value) * f
                    weights[j, i] += f


@njit(nogil=True, cache=True)
def add_planes_inverse_variance(
    planes: NDArray[np.float32],
    variances: NDArray[np.float32],
    throughput: NDArray[np.float64],
    sums: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Like `add_planes`, weighting also with the inverse variance (reference: MUSE_COLLAPSE_USE_VARIANCE)."""
    for k in range(planes.shape[0]):
        f = throughput[k]
        for j in range(planes.shape[1]):
            for i in range(planes.shape[2]):
                value, variance = planes[k, j, i], variances[k, j, i]
                if np.isfinite(value) and np.isfinite(variance) and abs(variance) >= _TINY32:
                    sums[j, i] += np.float64(value) * f / np.float64(variance)
                    weights[j, i] += f / np.float64(variance)


def finish_image(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Image from its sums; NaN where the weights are no normal number."""
    good = np.isfinite(weights) & (np.abs(weights) >= _TINY)
    image = np.full(sums.shape, np.nan, np.float32)
    image[good] = (sums[good] / weights[good]).astype(np.float32)
    return image


def collapse(
    planes: NDArray[np.float32],
    throughput: NDArray[np.floating],
    variances: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Collapse a cube in memory through a filter.

    Parameters
    ----------
    planes : ndarray of float32, shape (nz, ny, nx)
    throughput : ndarray, shape (nz,)
    variances : ndarray of float32, shape (nz, ny, nx), optional
        Weight with the inverse variance too.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    sums, weights = np.zeros(planes.shape[1:]), np.zeros(planes.shape[1:])
    f = np.ascontiguousarray(throughput, np.float64)
    if variances is None:
        add_planes(planes, f, sums, weights)
    else:
        add_planes_inverse_variance(planes, variances, f, sums, weights)
    return finish_image(sums, weights)


def fov_images(
    cube: str | os.PathLike[str] | xr.Dataset | CubeSource,
    filters: Sequence[Filter],
    *,
    use_variance: bool = False,
    memory_limit: int = BYTES_IN_FLIGHT,
    threads: int = 2,
) -> list[NDArray[np.float32]]:
    """Images of a cube through several filters, reading it once and never holding it.

    Parameters
    ----------
    cube : path-like, xarray.Dataset or CubeSource
    filters : sequence of Filter
    use_variance : bool
        Weight with the inverse variance too.
    memory_limit : int
        Bytes of the pieces that are held at one time.
    threads : int

    Returns
    -------
    list of ndarray of float32, shape (ny, nx)

    Raises
    ------
    InputError
        If the cube is unusable.
    """
    source = open_source(cube)
    nz, ny, nx = source.shape
    throughputs = np.array([filter_throughput(f, source.wavelength) for f in filters]).reshape(-1, nz)
    wanted = np.flatnonzero(np.any(throughputs != 0, axis=0))
    first, last = (int(wanted[0]), int(wanted[-1]) + 1) if len(wanted) else (0, 0)
    images = [np.full((ny, nx), np.nan, np.float32) for _ in filters]
    step = band_step(source, memory_limit // (threads * (2 if use_variance else 1)))

    def collapse_band(rows: slice) -> int:
        # a band of rows over all wavelengths is one task: nothing is shared, the order is kept
        shape = rows.stop - rows.start, nx
        sums = [(np.zeros(shape), np.zeros(shape)) for _ in filters]
        for z in range(first, last, step[0]):
            planes = slice(z, min(last, z + step[0]))
            region: Region = (planes, rows, slice(0, nx))
            flux = np.ascontiguousarray(source.read("flux", region), np.float32)
            variance: Any = source.read("variance", region) if use_variance else None
            for throughput, (d, w) in zip(throughputs, sums, strict=True):
                if use_variance:
                    variance = np.ascontiguousarray(variance, np.float32)
                    add_planes_inverse_variance(flux, variance, throughput[planes], d, w)
                else:
                    add_planes(flux, throughput[planes], d, w)
        for image, (d, w) in zip(images, sums, strict=True):
            image[rows] = finish_image(d, w)
        return 0

    bands = [slice(y, min(ny, y + step[1])) for y in range(0, ny, step[1])]
    run_pieces(collapse_band, bands, threads=threads, progress=None, total=0)
    return images


def fov_image(
    cube: str | os.PathLike[str] | xr.Dataset | CubeSource, filter: Filter, **options: Any
) -> tuple[NDArray[np.float32], fits.Header]:
    """Image of a cube through one filter and its header; see `fov_images` and `image_header`."""
    source = open_source(cube)
    return fov_images(source, [filter], **options)[0], image_header(source, filter)


def filter_info(source: CubeSource, filter: Filter) -> FilterInfo:
    """What the header of an image of a cube says about its filter."""
    fraction = filter_fraction(filter, source.wavelength, source.ctype)
    return FilterInfo(filter.name, fraction, filter.zp_vega, filter.zp_ab)


def image_header(source: CubeSource, filter: Filter) -> fits.Header:
    """Header of an image as the extension of a cube (``xCube``) or variable of a Zarr cube."""
    return fov_header(source.primary, source.data, filter_info(source, filter).cards())


def fov_headers(source: CubeSource, filter: Filter) -> tuple[fits.Header, fits.Header]:
    """Primary header and header of ``DATA`` of an image in a file of its own (``IMAGE_FOV``)."""
    return image_headers(source.primary, source.data, filter_info(source, filter).cards(), 1)
