"""Native muse_bias: master bias, read-out noise, bad columns."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..instrument import DQ_DEADPIXEL, DQ_SATURATED
from ..io.headers import float32_card, set_card
from .basic import Series, load_series
from .combination import CombineParams
from .noise import PIXELS, SIZE, WINDOWS, noise_of_difference
from .statistics import image_statistics, median_deviation
from .task import Made, Task

log = logging.getLogger("musedask")

_QC = "ESO QC BIAS"


def muse_bias(task: Task) -> Iterator[Made]:
    """Combine raw biases of an IFU to a master bias.

    Parameters
    ----------
    task : Task
        Of the recipe ``muse_bias``.

    Yields
    ------
    Made
        ``MASTER_BIAS`` [adu].

    Raises
    ------
    InputError
        If a file is damaged or does not fit the others.
    """
    series = load_series(task, task.tagged("BIAS"), medians=True)
    ports = series.ccd.ports
    noise = read_noise(series)
    for port, (ron, error) in zip(ports, noise, strict=True):
        if not 1 <= ron <= 5:
            log.warning(
                "read-out noise of %.2f +/- %.2f count found in quadrant %d, expected 1 to 5; the header says %s",
                ron, error, port.number, port.ron,
            )  # fmt: skip
    # the noise of the noise, as the reference counts it
    factor = 1.0 + 1.0 / (PIXELS * WINDOWS)
    variance = [factor * (ron / port.gain) ** 2 for port, (ron, _) in zip(ports, noise, strict=True)]
    image = series.combine(CombineParams.from_values(task.values), np.array(variance, np.float32))
    assert image.dq is not None
    header = image.header

    def qc(keyword: str, value: float | int, comment: str) -> None:
        set_card(header, f"{_QC} {keyword}", value if isinstance(value, int) else float32_card(value), comment)

    for k, frame in enumerate(series.frames, 1):
        qc(f"INPUT{k} NSATURATED", frame.saturated, f"Number of saturated pixels in raw bias {k} in input list")
    flagged = 0
    limits = task.values["losigmabadpix"], task.values["hisigmabadpix"]
    windows = f"determined from difference images of each adjacent pair of biases in {SIZE} pix windows"
    for port, (ron, error) in zip(ports, noise, strict=True):
        n = port.number
        data = image.data[series.ccd.trimmed(port)]
        found = image_statistics(data)
        qc(f"MASTER{n} RON", ron, f"[count] Read-out noise in quadrant {n} {windows}")
        qc(f"MASTER{n} RONERR", error, f"[count] Read-out noise error in quadrant {n} {windows}")
        qc(f"MASTER{n} MEDIAN", found.median, f"Median value of master bias in quadrant {n}")
        qc(f"MASTER{n} MEAN", found.mean, f"Mean value of master bias in quadrant {n}")
        qc(f"MASTER{n} STDEV", found.stdev, f"Standard deviation value of master bias in quadrant {n}")
        qc(f"MASTER{n} MIN", found.min, f"Minimum value of master bias in quadrant {n}")
        qc(f"MASTER{n} MAX", found.max, f"Maximum value of master bias in quadrant {n}")
        columns, scatter, rows = profiles(data)
        qc(f"MASTER{n} SLOPE X", slope(columns), f"[adu/pix] Average horizontal slope of master bias in quadrant {n}")
        qc(f"MASTER{n} SLOPE Y", slope(rows), f"[adu/pix] Average vertical slope of master bias in quadrant {n}")
        levels = np.array([frame.medians[n - 1] for frame in series.frames])
        of = f"of the raw median values of all input files in quadrant {n}"
        qc(f"LEVEL{n} MEAN", float(levels.mean()), f"[adu] Average {of}")
        qc(f"LEVEL{n} STDEV", float(levels.std(ddof=1)), f"[adu] Standard deviation {of}")
        qc(f"LEVEL{n} MEDIAN", float(np.median(levels)), f"[adu] Median {of}")
        flagged += flag_columns(data, image.dq[series.ccd.trimmed(port)], columns, scatter, ron, *limits)
    qc("MASTER NBADPIX", flagged, "Bad pixels found as part of the bad column search in the master bias")
    saturated = int(np.count_nonzero(image.dq == DQ_SATURATED))
    qc("MASTER NSATURATED", saturated, "Number of saturated pixels in output data")
    yield Made("MASTER_BIAS", image, header)


def read_noise(series: Series) -> list[tuple[float, float]]:
    """Measure the read-out noise of the quadrants in differences of consecutive images.

    Parameters
    ----------
    series : Series

    Returns
    -------
    list of (float, float)
        Noise of outputs 1 to 4, the mean over the pairs of images, and scatter of the windows [count].
    """
    ports = series.ccd.ports
    found: list[list[tuple[float, float]]] = [[] for _ in ports]
    # of the last two frames, as many rows as there are windows in
    kept = [np.empty(series.ccd.shape, np.float32) for _ in range(2)]
    there = np.zeros((2, series.ccd.shape[0]), np.bool_)
    for k in range(1, len(series.frames)):
        there[k % 2] = False

        def fill(needed: NDArray[np.bool_], k: int = k) -> None:
            for frame in (k - 1, k):
                missing = needed & ~there[frame % 2]
                series.some_rows(frame, missing, kept[frame % 2])
                there[frame % 2] |= missing

        for values, port in zip(found, ports, strict=True):
            values.append(noise_of_difference(kept[k % 2], kept[1 - k % 2], series.ccd.trimmed(port), fill))
    # a difference has the noise of both
    noise, scatter = np.array([np.mean(v or [(np.nan, np.nan)], axis=0) for v in found]).T
    factors = np.array([port.gain for port in ports]) / np.sqrt(2)
    return list(zip((noise * factors).tolist(), (scatter * factors).tolist(), strict=True))


@njit(nogil=True, cache=True)
def profiles(data):  # type: ignore[no-untyped-def]
    """Means of the columns, their standard deviations, and means of the rows.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)

    Returns
    -------
    columns, scatter : ndarray of float64, shape (nx,)
    rows : ndarray of float64, shape (ny,)
    """
    ny, nx = data.shape
    columns, squares, rows = np.zeros(nx), np.zeros(nx), np.zeros(ny)
    reference = np.float64(data[0, 0])
    for y in range(ny):
        row = data[y]
        for x in range(nx):
            d = np.float64(row[x]) - reference
            columns[x] += d
            squares[x] += d * d
        total = 0.0
        for x in range(nx):
            total += row[x]
        rows[y] = total / nx
    for x in range(nx):
        squares[x] = np.sqrt(max(squares[x] - columns[x] * columns[x] / ny, 0.0) / max(ny - 1, 1))
        columns[x] = reference + columns[x] / ny
    return columns, squares, rows


def slope(profile: NDArray[np.float64]) -> float:
    """Slope of the straight line through a profile, per pixel."""
    x = np.arange(len(profile)) - 0.5 * (len(profile) - 1)
    return float(x @ profile) / max(float(x @ x), 1.0)


def flag_columns(
    data: NDArray[np.float32],
    dq: NDArray[np.int32],
    means: NDArray[np.float64],
    scatter: NDArray[np.float64],
    ron: float,
    low: float,
    high: float,
) -> int:
    """Flag bad columns of a quadrant as ``DEADPIXEL``.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Master bias [adu].
    dq : ndarray of int32, shape (ny, nx)
        Flags are added.
    means, scatter : ndarray of float64, shape (nx,)
        Of the columns, see `profiles`.
    ron : float
        [count]; as in the reference it is compared with a scatter in adu.
    low, high : float
        Limits in units of the median deviation of the means of the columns.

    Returns
    -------
    int
        Number of pixels flagged.
    """
    median, deviation = median_deviation(means)
    upper, lower = median + high * deviation, median - low * deviation
    flagged = 0
    for x in np.flatnonzero(((means > upper) & (scatter > ron)) | (means < lower)):
        beyond = np.flatnonzero(data[:, x] > upper if means[x] > upper else data[:, x] < lower)
        dq[beyond[0] : beyond[-1] + 1, x] |= DQ_DEADPIXEL
        flagged += int(beyond[-1] - beyond[0] + 1)
    return flagged
