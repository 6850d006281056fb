"""Combination of images of one IFU, pixel by pixel, with the rules of the reference pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from ..errors import InputError
from ..io.muse_image import MuseImage

_METHODS = {"average": 0, "median": 1, "minmax": 2, "sigclip": 3, "sum": 4}
#: rows of a band: those of five images fit into the cache
BAND = 8


@dataclass(frozen=True)
class CombineParams:
    """How images are combined.

    Attributes
    ----------
    method : str
        ``average``, ``median``, ``minmax``, ``sigclip``, ``sum``; ``none`` where a recipe allows it.
    nlow, nhigh, nkeep : int
        Of minmax: how many of the lowest and highest values are rejected, how many must remain.
    lsigma, hsigma : float
        Of sigclip: limits below and above the median, in units of the median deviation.
    """

    method: str = "sigclip"
    nlow: int = 1
    nhigh: int = 1
    nkeep: int = 1
    lsigma: float = 3.0
    hsigma: float = 3.0

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> CombineParams:
        """From the parameters of a recipe; those that it does not have keep their defaults."""
        names = {"combine": "method"} | {n: n for n in ("nlow", "nhigh", "nkeep", "lsigma", "hsigma")}
        return cls(**{attribute: values[name] for name, attribute in names.items() if name in values})


@njit(nogil=True, cache=True)
def combine_rows(data, stat, dq, out_data, out_stat, out_dq, method, nlow, nhigh, nkeep, lsigma, hsigma):  # type: ignore[no-untyped-def]
    """Combine pixels of n images.

    Parameters
    ----------
    data, stat : ndarray of float32, shape (n, m)
    dq : ndarray of int32, shape (n, m)
    out_data, out_stat : ndarray of float32, shape (m,)
    out_dq : ndarray of int32, shape (m,)
    method, nlow, nhigh, nkeep, lsigma, hsigma
        See `CombineParams`; the method is a number.
    """
    n, m = data.shape
    values = np.empty(n, np.float64)
    which = np.empty(n, np.int64)
    for i in range(m):
        good = 0
        for k in range(n):
            if dq[k, i] == 0:
                v = np.float64(data[k, i])
                if method == 0 or method == 4:
                    values[good] = v
                    which[good] = k
                else:
                    j = good
                    # equal values in the order of their variances
                    while j > 0 and (
                        values[j - 1] > v or (values[j - 1] == v and stat[which[j - 1], i] > stat[k, i])
                    ):
                        values[j] = values[j - 1]
                        which[j] = which[j - 1]
                        j -= 1
                    values[j] = v
                    which[j] = k
                good += 1
        if good == 0:
            best = 0
            for k in range(1, n):
                if np.uint32(dq[k, i]) < np.uint32(dq[best, i]):
                    best = k
            out_data[i], out_stat[i], out_dq[i] = data[best, i], stat[best, i], dq[best, i]
            continue
        out_dq[i] = 0
        first, last = 0, good
        if method == 1:
            h = good // 2
            if good % 2:
                out_data[i] = values[h]
                out_stat[i] = stat[which[h], i]
            else:
                out_data[i] = 0.5 * (values[h - 1] + values[h])
                out_stat[i] = np.float64(stat[which[h - 1], i]) + np.float64(stat[which[h], i])
            continue
        if method == 2:
            flags = 0
            k = 0
            # as many of the bad values as are needed come back, in the order of the images
            while good - nlow - nhigh < nkeep and k < n:
                if dq[k, i] != 0:
                    v = np.float64(data[k, i])
                    j = good
                    while j > 0 and (
                        values[j - 1] > v or (values[j - 1] == v and stat[which[j - 1], i] > stat[k, i])
                    ):
                        values[j] = values[j - 1]
                        which[j] = which[j - 1]
                        j -= 1
                    values[j] = v
                    which[j] = k
                    flags |= dq[k, i]
                    good += 1
                k += 1
            out_dq[i] = flags
            first, last = nlow, good - nhigh
        if method == 3:
            h = good // 2
            median = values[h] if good % 2 else 0.5 * (values[h - 1] + values[h])
            deviation = 0.0
            for j in range(good):
                deviation += abs(values[j] - median)
            deviation /= good
            if deviation > 0:
                low, high = median - lsigma * deviation, median + hsigma * deviation
                while first < last and values[first] < low:
                    first += 1
                while last > first and values[last - 1] > high:
                    last -= 1
        left = last - first
        total = 0.0
        variance = 0.0
        for j in range(first, last):
            total += values[j]
            variance += stat[which[j], i]
        if method == 4:
            out_data[i] = total * n / left
            out_stat[i] = variance * n * n / (left * left)
        else:
            out_data[i] = total / left
            out_stat[i] = variance / (left * left)


def kernel_arguments(params: CombineParams, n: int) -> tuple[int, int, int, int, float, float]:
    """The last arguments of `combine_rows`, for n images.

    Raises
    ------
    InputError
        If the method is unknown or does not work with so few images.
    """
    if params.method not in _METHODS:
        raise InputError(f"combine {params.method!r} found, expected one of {', '.join(_METHODS)}")
    if params.method == "sigclip" and n < 3:
        raise InputError(f"combine=sigclip: {n} images found, expected 3 or more")
    if params.method == "minmax":
        low, high, keep = params.nlow, params.nhigh, params.nkeep
        if low < 0 or high < 0 or keep < 1 or low + high + keep > n:
            raise InputError(
                f"combine=minmax: nlow {low}, nhigh {high}, nkeep {keep} found, expected numbers from 0, 0 and 1 that do "
                f"not exceed the {n} images together"
            )
    return (
        _METHODS[params.method],
        int(params.nlow),
        int(params.nhigh),
        int(params.nkeep),
        float(params.lsigma),
        float(params.hsigma),
    )


def combine_images(images: Sequence[MuseImage], params: CombineParams) -> MuseImage:
    """Combine images.

    Parameters
    ----------
    images : sequence of MuseImage
        Of one shape; missing qualities count as good, missing variances as 0.
    params : CombineParams

    Returns
    -------
    MuseImage
        With the header and unit of the first.

    Raises
    ------
    InputError
        If there is none, or shapes or units differ, or there are too few for the method.
    """
    if not images:
        raise InputError("combine: no image found, expected at least one")
    shapes = {image.data.shape for image in images}
    units = {image.unit for image in images}
    if len(shapes) > 1 or len(units) > 1:
        raise InputError(f"combine: images of shapes {sorted(shapes)} and units {sorted(units)} found, expected one")
    first = images[0]
    ny, nx = first.data.shape
    data, stat = np.zeros((2, ny, nx), np.float32)
    dq = np.zeros((ny, nx), np.int32)
    if len(images) == 1:
        data[:] = first.data
        stat[:] = 0 if first.stat is None else first.stat
        dq[:] = 0 if first.dq is None else first.dq
        return MuseImage(data, dq, stat, first.unit, first.header.copy())
    arguments = kernel_arguments(params, len(images))
    buffers = [np.zeros((len(images), BAND * nx), t) for t in (np.float32, np.float32, np.int32)]
    for y in range(0, ny, BAND):
        rows = slice(y, min(y + BAND, ny))
        m = (rows.stop - rows.start) * nx
        for k, image in enumerate(images):
            for buffer, array in zip(buffers, (image.data, image.stat, image.dq), strict=True):
                if array is not None:
                    buffer[k, :m] = array[rows].reshape(-1)
        combine_rows(
            *(buffer[:, :m] for buffer in buffers),
            *(array[rows].reshape(-1) for array in (data, stat, dq)),
            *arguments,
        )
    return MuseImage(data, dq, stat, first.unit, first.header.copy())
