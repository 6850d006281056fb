"""Native muse_dark: master dark, hot pixels, dark current."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_DEADPIXEL, DQ_HOTPIXEL, DQ_SATURATED
from ..io.headers import float32_card, remove_cards, set_card
from ..io.muse_image import MuseImage
from .basic import process
from .combination import CombineParams
from .dark_model import model_dark
from .noise import SIZE, level_in_windows
from .statistics import image_median_deviation, image_statistics
from .task import Made, Task

log = logging.getLogger("musedask")

_QC = "ESO QC DARK"


def muse_dark(task: Task) -> Iterator[Made]:
    """Combine raw darks of an IFU to a master dark.

    Parameters
    ----------
    task : Task
        Of the recipe ``muse_dark``.

    Yields
    ------
    Made
        ``MASTER_DARK`` [count], and ``MODEL_DARK`` if asked for.

    Raises
    ------
    InputError
        If a file is damaged or does not fit the others.
    """
    values = task.values
    processed = process(
        task, task.tagged("DARK"), combine=CombineParams.from_values(values), scale=values["scale"]
    )
    image = processed.image
    assert image.dq is not None and image.stat is not None
    header = image.header

    def qc(keyword: str, value: float | int, comment: str) -> None:
        set_card(header, f"{_QC} {keyword}", value if isinstance(value, int) else float32_card(value), comment)

    for k, saturated in enumerate(processed.saturated, 1):
        qc(f"INPUT{k} NSATURATED", saturated, f"Number of saturated pixels in raw dark {k} in input list")
    flagged = 0
    ny, nx = (n // 2 for n in image.data.shape)
    for rows in (slice(0, ny), slice(ny, 2 * ny)):
        for columns in (slice(0, nx), slice(nx, 2 * nx)):
            section = rows, columns
            flagged += flag_hot(image.data[section], image.dq[section], values["hotsigma"])
    exptime = header.get("EXPTIME")
    if not exptime or exptime < 0:
        first = task.tagged("DARK")[0].path
        raise InputError(f"{first}: EXPTIME {exptime} found, expected a positive number in a DARK")
    if values["normalize"] > 0:
        factor = values["normalize"] / exptime
        np.multiply(image.data, factor, out=image.data, casting="same_kind")
        np.multiply(image.stat, factor * factor, out=image.stat, casting="same_kind")
        exptime = values["normalize"]
        set_card(header, "EXPTIME", exptime, f"[s] Master dark normalized to {exptime:.3f}s exposure time")
    found = image_statistics(image.data, image.dq)
    qc("MASTER NBADPIX", flagged, "Number of bad pixels determined from master dark")
    qc("MASTER MEDIAN", found.median, "Median value of the master dark")
    qc("MASTER MEAN", found.mean, "Mean value of the master dark")
    qc("MASTER STDEV", found.stdev, "Standard deviation of the master dark")
    qc("MASTER MIN", found.min, "Minimum value of the master dark")
    qc("MASTER MAX", found.max, "Maximum value of the master dark")
    current, error = (v * 3600.0 / exptime for v in level_in_windows(image.data, image.dq))
    if not 0 <= current <= 10:
        log.warning("dark current of %.2f +/- %.2f count/pix/h found, expected 0 to 10", current, error)
    windows = f"measured on master dark in {SIZE} pix windows"
    qc("MASTER DC", current, f"[count/pix/h] Dark current {windows}")
    qc("MASTER DCERR", error, f"[count/pix/h] Dark current error {windows}")
    saturated = int(np.count_nonzero(image.dq == DQ_SATURATED))
    qc("MASTER NSATURATED", saturated, "Number of saturated pixels in output data")
    yield Made("MASTER_DARK", image, header)
    if values["model"]:
        header = header.copy()
        remove_cards(header, r"^ESO QC ")
        yield Made("MODEL_DARK", MuseImage(*model_dark(image.data, image.dq, image.stat), image.unit, header), header)


def flag_hot(data: NDArray[np.float32], dq: NDArray[np.int32], sigma: float) -> int:
    """Flag hot pixels of a quadrant.

    Pixels more than `sigma` median deviations above the median of the good ones are ``HOTPIXEL``.  The
    reference has no limit below, which comes out as the lowest good pixel: pixels that are bad already and
    lower get ``DEADPIXEL``.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx)
        Flags are added.
    sigma : float
        0 or less: the limit is the highest good pixel.

    Returns
    -------
    int
        Number of pixels flagged.
    """
    median, deviation, lowest, highest = image_median_deviation(data, dq)
    if not np.isfinite(median):
        return 0
    return int(_flag(data, dq, lowest, median + sigma * deviation if sigma > 0 else highest))


@njit(nogil=True, cache=True)
def _flag(data, dq, low, high):  # type: ignore[no-untyped-def]
    flagged = 0
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            if data[y, x] > high:
                dq[y, x] |= DQ_HOTPIXEL
                flagged += 1
            elif data[y, x] < low:
                dq[y, x] |= DQ_DEADPIXEL
                flagged += 1
    return flagged
