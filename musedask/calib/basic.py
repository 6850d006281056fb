"""Basic processing of the raw frames of one IFU: what all recipes on raw data begin with.

Raw images stay 16-bit numbers; everything else is done for a few rows at a time, from the raw numbers to the
combined image, so that no image of an input is ever held in full, unless it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..io.calibrations import read_badpix_table
from ..io.ccd import Ccd, drop_scans, read_ccd, read_parameters, read_setup
from ..io.headers import float32_card, float64_card, set_card
from ..io.muse_image import MuseImage, read_muse_image
from ..io.raw import read_raw
from ..io.sof import Frame
from . import detector
from .combination import BAND, CombineParams, combine_rows, kernel_arguments
from .detector import Overscan, OverscanParams
from .statistics import Statistics, image_statistics
from .task import Task

log = logging.getLogger("musedask")

_OVSC = "ESO DRS MUSE OVSC"


@dataclass(eq=False)
class Processed:
    """What basic processing makes of the raw frames of one IFU.

    Attributes
    ----------
    image : MuseImage
        Combined: data, dq and stat; cards of the first frame, and of its overscan.
    saturated : list of int
        Number of saturated pixels of each raw image.
    statistics : list of Statistics or None
        Of each processed image, all pixels, where asked for.
    """

    image: MuseImage
    saturated: list[int]
    statistics: list[Statistics] | None = None


@dataclass(eq=False)
class RawFrame:
    """A raw image of one IFU, and what follows from it alone.

    Attributes
    ----------
    frame : Frame
    header : astropy.io.fits.Header
    ccd : Ccd
    raw : ndarray of uint16
        [adu]
    rows, columns, flags : ndarray
        Pixels known to be bad, on the raw image from 0, and their qualities.
    saturated : int
    medians : list of float
        Of the data of each quadrant [adu], where asked for.
    overscan : list of Overscan
        Of the quadrants of outputs 1 to 4.
    shift : ndarray of float32, shape (n, 4)
        Levels that are added after the overscan, one after the other [adu].
    extra : ndarray of float32, shape (4,)
        Variance of those levels [adu2].
    """

    frame: Frame
    header: fits.Header
    ccd: Ccd
    raw: NDArray[np.uint16]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    flags: NDArray[np.int32]
    saturated: int
    medians: list[float]
    overscan: list[Overscan]
    shift: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    extra: NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))


def overscan_params(task: Task) -> OverscanParams:
    """Overscan parameters of a recipe."""
    v = task.values
    return detector.parse_overscan(v["overscan"], v["ovscreject"], v["ovscsigma"], v["ovscignore"])


def load_frame(task: Task, frame: Frame, params: OverscanParams, *, medians: bool = False) -> RawFrame:
    """Read a raw frame and measure its overscan.

    Parameters
    ----------
    task : Task
    frame : Frame
    params : OverscanParams
    medians : bool
        Whether to take the medians of the quadrants.

    Raises
    ------
    InputError
        If the file is damaged, or its header does not describe the image.
    """
    ifu = _ifu(task)
    header, raw = read_raw(frame.path, ifu, merge=True)
    ccd = read_ccd(header, frame.path)
    params = _possible(params, ccd, frame)
    if raw.shape != ccd.raw_shape:
        raise InputError(
            f"{frame.path}: CHAN{ifu:02d} of shape {raw.shape} found, its ESO DET OUTn cards say {ccd.raw_shape}"
        )
    rows, columns, flags = _bad_pixels(task, ifu, raw.shape)
    saturated = int(detector.count_saturated(raw))
    share = saturated / raw.size
    if share > 0.001:
        log.warning("%s: %d pixels of CHAN%02d (%.2f %%) are saturated", frame.path, saturated, ifu, 100 * share)
    dense = None
    if len(rows):
        dense = np.zeros(raw.shape, np.int32)
        np.bitwise_or.at(dense, (rows, columns), flags)
    levels = []
    middles = []
    for port in ccd.ports:
        sections = ccd.strips(port, params.ignore)
        strips = tuple(np.ascontiguousarray(raw[s]) for s in sections)
        own = []
        for strip, section in zip(strips, sections, strict=True):
            flag = np.where((strip > detector.HIGH_LIMIT) | (strip < detector.LOW_LIMIT), detector.DQ_SATURATED, 0)
            flag = flag.astype(np.int32)
            if dense is not None:
                flag |= dense[section]
            own.append(flag)
        mean, stdev = detector.overscan_statistics((strips[0], strips[1]), (own[0], own[1]), params)
        if params.method == "vpoly":
            region = ccd.region(port)[0]
            coefficients, level = detector.fit_overscan(
                strips[1], own[1], sections[1][0].start + 1, (region.start + 1, region.stop), params
            )
            levels.append(Overscan(mean, stdev, coefficients, level))
        else:
            levels.append(Overscan(mean, stdev))
        if medians:
            middles.append(detector.quadrant_median(raw[ccd.data(port)]))
    for n, overscan in enumerate(levels, 1):
        set_card(header, f"{_OVSC}{n} MEAN", float32_card(overscan.mean))
        set_card(header, f"{_OVSC}{n} STDEV", float32_card(overscan.stdev))
    for n, overscan in enumerate(levels, 1):
        if len(overscan.coefficients):
            set_card(header, f"{_OVSC}{n} POLY NCOEFF", len(overscan.coefficients))
            for i, c in enumerate(overscan.coefficients):
                set_card(header, f"{_OVSC}{n} POLY Y{i}", float64_card(c))
    drop_scans(header)
    return RawFrame(frame, header, ccd, raw, rows, columns, flags, saturated, middles, levels)


def _possible(params: OverscanParams, ccd: Ccd, frame: Frame) -> OverscanParams:
    """Without the search for cosmic rays, if its boxes do not fit the strips along x and along y."""
    if params.reject != "dcr" or (params.xbox <= min(ccd.nx, ccd.ny) and params.ybox <= min(ccd.overscan)):
        return params
    log.warning(
        "%s: ovscreject boxes of %d x %d pixels do not fit overscans of %d x %d pixels beside %d x %d; nothing is rejected",
        frame.path, params.xbox, params.ybox, *ccd.overscan, ccd.nx, ccd.ny,
    )  # fmt: skip
    return replace(params, reject="none")


def _ifu(task: Task) -> int:
    if task.ifu is None:
        raise InputError(f"{task.recipe.name}: it works on one IFU, none is given")
    return task.ifu


def _bad_pixels(
    task: Task, ifu: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Rows and columns (from 0) and qualities of the pixels of all tables."""
    y, x, status = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for frame in task.tagged("BADPIX_TABLE"):
        table = read_badpix_table(frame.path).get(ifu)
        if table is not None:
            inside = (table.x >= 1) & (table.x <= shape[1]) & (table.y >= 1) & (table.y <= shape[0])
            y.append(table.y[inside].astype(np.int64) - 1)
            x.append(table.x[inside].astype(np.int64) - 1)
            status.append(table.status[inside])
    return np.concatenate(y), np.concatenate(x), np.concatenate(status)


# --- masters ---------------------------------------------------------------------------------------

_NO_FLOAT = np.empty((0, 0), np.float32)
_NO_INT = np.empty((0, 0), np.int32)


@dataclass(eq=False)
class Masters:
    """Master calibrations that are applied."""

    bias: MuseImage | None = None
    dark: MuseImage | None = None
    flat: MuseImage | None = None


def load_masters(task: Task, ccd: Ccd) -> Masters:
    """Read the masters of a task and check that they fit the raw frames.

    Raises
    ------
    InputError
        If one is damaged or does not fit.
    """
    masters = Masters()
    for name in ("bias", "dark", "flat"):
        tag = f"MASTER_{name.upper()}"
        if task.recipe.input(tag) is None:
            continue
        path = task.path(tag)
        if path is None:
            continue
        image = read_muse_image(path, ifu=_ifu(task))
        if image.data.shape != ccd.shape:
            raise InputError(f"{path}: {tag} of shape {image.data.shape} found, expected {ccd.shape}")
        if image.dq is None or image.stat is None:
            raise InputError(f"{path}: there is no DQ or no STAT, expected both in a {tag}")
        setup = read_setup(image.header)
        expected: dict[str, Any] = {"binning": ccd.binning}
        if name == "bias":
            expected |= {"read_id": ccd.read_id, "chip": ccd.chip}
        if name == "flat":
            expected["mode"] = ccd.mode
        for key, value in expected.items():
            if setup[key] != value:
                raise InputError(f"{path}: {_KEYWORDS[key]} {setup[key]} found, the raw frames have {value}")
        setattr(masters, name, image)
    return masters


_KEYWORDS = {
    "binning": "ESO DET BINX, BINY",
    "read_id": "ESO DET READ CURID",
    "chip": "ESO DET CHIP NAME, ID",
    "mode": "ESO INS MODE",
}


# --- processing ------------------------------------------------------------------------------------


class Series:
    """Raw frames of one IFU, ready to be processed rows by rows.

    Parameters
    ----------
    task : Task
    frames : sequence of RawFrame
    masters : Masters
    scale : bool
        Whether to scale all to the exposure time of the first.
    """

    def __init__(self, task: Task, frames: Sequence[RawFrame], masters: Masters, *, scale: bool = False) -> None:
        self.frames = list(frames)
        self.masters = masters
        self.ccd = frames[0].ccd
        self.to_count = masters.bias is not None
        self.scale = [1.0] * len(frames)
        if scale:
            times = [f.ccd.exptime for f in frames]
            for k, time in enumerate(times):
                if not time or not times[0]:
                    raise InputError(f"{frames[k].frame.path}: EXPTIME {time} found, expected a positive number")
                self.scale[k] = times[0] / time

    @property
    def unit(self) -> str:
        """Unit of the processed data."""
        return "count" if self.to_count else "adu"

    def rows(
        self, k: int, y0: int, y1: int, data: NDArray[np.float32], stat: NDArray[np.float32], dq: NDArray[np.int32]
    ) -> None:
        """Process rows of a frame, all of them in the upper or lower quadrants.

        Parameters
        ----------
        k : int
            Number of the frame.
        y0, y1 : int
            First row and the one after the last, on the image without scans.
        data, stat, dq : ndarray, shape (y1 - y0, nx)
            Filled.
        """
        f = self.frames[k]
        ccd = f.ccd
        top = y0 >= ccd.ny
        ports = {p.right: p for p in ccd.ports if p.top == top}
        offset = ccd.data(ports[False])[0].start - ccd.trimmed(ports[False])[0].start
        raw_rows = slice(y0 + offset, y1 + offset)
        x0 = np.array([ccd.data(ports[side])[1].start for side in (False, True)], np.int64)
        base = ccd.region(ports[False])[0].start
        levels = []
        for side in (False, True):
            level = f.overscan[ports[side].number - 1].levels
            levels.append(level[y0 + offset - base : y1 + offset - base] if len(level) else np.zeros(y1 - y0))
        shift = f.shift[:, [ports[side].number - 1 for side in (False, True)]]
        extra = f.extra[[ports[side].number - 1 for side in (False, True)]]
        gain = np.array([ports[side].gain if self.to_count else 0.0 for side in (False, True)])
        dq[:] = 0
        if len(f.rows):
            inside = (f.rows >= raw_rows.start) & (f.rows < raw_rows.stop)
            for side in (False, True):
                x = f.columns - x0[int(side)]
                use = inside & (x >= 0) & (x < ccd.nx)
                np.bitwise_or.at(dq, (f.rows[use] - raw_rows.start, x[use] + ccd.nx * int(side)), f.flags[use])
        rows = slice(y0, y1)

        def parts(image: MuseImage | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            if image is None:
                return _NO_FLOAT, _NO_FLOAT, _NO_INT
            assert image.stat is not None and image.dq is not None
            return image.data[rows], image.stat[rows], image.dq[rows]

        dark_scale = 1.0
        if self.masters.dark is not None:
            dark_scale = (ccd.exptime or 0.0) / float(self.masters.dark.header["EXPTIME"])
        detector.correct_rows(
            f.raw[raw_rows], 0, x0, levels[0], levels[1], shift, extra, gain, *parts(self.masters.bias),
            *parts(self.masters.dark), dark_scale, *parts(self.masters.flat), self.scale[k], data, stat, dq,
        )  # fmt: skip

    def bands(self) -> list[tuple[int, int]]:
        """Rows of bands that do not cross from the lower to the upper quadrants."""
        ny = self.ccd.ny
        return [(y, min(y + BAND, end)) for start, end in ((0, ny), (ny, 2 * ny)) for y in range(start, end, BAND)]

    def image(self, k: int) -> MuseImage:
        """Process one frame."""
        data, stat = np.empty((2, *self.ccd.shape), np.float32)
        dq = np.empty(self.ccd.shape, np.int32)
        for y0, y1 in self.bands():
            self.rows(k, y0, y1, data[y0:y1], stat[y0:y1], dq[y0:y1])
        return MuseImage(data, dq, stat, self.unit, self.frames[k].header.copy())

    def combine(self, params: CombineParams, variance: NDArray[np.float32] | None = None) -> MuseImage:
        """Process and combine all.

        Parameters
        ----------
        params : CombineParams
        variance : ndarray of float32, shape (4,), optional
            Instead of that of each pixel, by output.
        """
        if len(self.frames) == 1 and variance is None:
            return self.image(0)
        n = len(self.frames)
        arguments = kernel_arguments(params, n)
        data, stat = np.empty((2, *self.ccd.shape), np.float32)
        dq = np.empty(self.ccd.shape, np.int32)
        nx = data.shape[1]
        buffers = [np.zeros((n, BAND, nx), t) for t in (np.float32, np.float32, np.int32)]
        for y0, y1 in self.bands():
            m = y1 - y0
            for k in range(n):
                self.rows(k, y0, y1, *(b[k, :m] for b in buffers))
            if variance is not None:
                for port in self.ccd.ports:
                    if port.top == (y0 >= self.ccd.ny):
                        buffers[1][:, :, self.ccd.trimmed(port)[1]] = variance[port.number - 1]
            combine_rows(
                *(np.ascontiguousarray(b[:, :m]).reshape(n, m * nx) for b in buffers),
                *(a[y0:y1].reshape(-1) for a in (data, stat, dq)),
                *arguments,
            )
        return MuseImage(data, dq, stat, self.unit, self.frames[0].header.copy())


def load_series(task: Task, frames: Sequence[Frame], *, scale: bool = False, medians: bool = False) -> Series:
    """Read raw frames and masters of one IFU; frames that do not fit the first are left out with a warning.

    Raises
    ------
    InputError
        If there is no frame, one is damaged, or a master does not fit.
    """
    if not frames:
        raise InputError(f"{task.recipe.name}: no raw frame found, expected at least one")
    params = overscan_params(task)
    loaded: list[RawFrame] = []
    for frame in frames:
        found = load_frame(task, frame, params, medians=medians)
        wrong = None if not loaded else _deviation(found, loaded[0])
        if wrong is None:
            loaded.append(found)
        else:
            log.warning("%s: %s; it is left out", frame.path, wrong)
    if frames[0].tag == "BIAS":
        _compare_levels(loaded, params)
    masters = load_masters(task, loaded[0].ccd)
    if masters.bias is not None:
        _compare_with_bias(task, loaded, masters.bias, params)
    return Series(task, loaded, masters, scale=scale)


def _compare_levels(frames: Sequence[RawFrame], params: OverscanParams) -> None:
    """Compare the overscan levels of biases, and adjust them, as far as the overscan itself is not subtracted."""
    first = frames[0]
    n = len(frames)
    if params.method == "none":
        for port, reference in zip(first.ccd.ports, first.overscan, strict=True):
            for frame in frames[1:]:
                mean = frame.overscan[port.number - 1].mean
                if abs(mean - reference.mean) > params.sigma * reference.stdev:
                    raise InputError(
                        f"{frame.frame.path}: overscan level {mean:.2f} of quadrant {port.number} found, expected that of "
                        f"{first.frame.path}, {reference.mean:.2f}, within {params.sigma:g} times {reference.stdev:.2f} adu"
                    )
        for number in range(1, 5):
            found = [f.overscan[number - 1] for f in frames]
            # that of the mean, with the scatter of the means about the first
            stdev = np.sqrt(sum(o.stdev**2 + (o.mean - found[0].mean) ** 2 for o in found)) / n
            set_card(first.header, f"{_OVSC}{number} MEAN", float32_card(sum(o.mean for o in found) / n))
            set_card(first.header, f"{_OVSC}{number} STDEV", float32_card(float(stdev)))
    elif params.method == "offset":
        # the reference moves the first image to the level of each other in turn, so in the end to that of the last
        means = np.array([[o.mean for o in f.overscan] for f in frames], np.float32)
        first.shift = np.diff(means, axis=0)
        for number, mean in enumerate(means[-1], 1):
            set_card(first.header, f"{_OVSC}{number} MEAN", float32_card(float(mean)))


def _compare_with_bias(
    task: Task, frames: Sequence[RawFrame], bias: MuseImage, params: OverscanParams
) -> None:
    """Compare the overscan levels of raw frames with those of the master bias; adjust them with ``offset``."""
    path = task.path("MASTER_BIAS")
    keys = ("overscan", "ovscreject", "ovscsigma", "ovscignore")
    recorded = read_parameters(bias.header)
    differing = [
        f"{key} {recorded[key]}"
        for key in keys
        if key in recorded and recorded[key] != task.recipe.parameter(key).to_card(task.values[key])
    ]
    if differing:
        log.warning("%s: made with other overscan parameters: %s", path, ", ".join(differing))
    for number, port in enumerate(frames[0].ccd.ports, 1):
        keywords = f"{_OVSC}{number} MEAN", f"{_OVSC}{number} STDEV"
        if any(k not in bias.header for k in keywords):
            raise InputError(f"{path}: there is no {keywords[0]} or {keywords[1]}, expected both in a MASTER_BIAS")
        mean, stdev = (float(bias.header[k]) for k in keywords)
        factor = 100.0 if params.method == "vpoly" else params.sigma
        for frame in frames:
            own = frame.overscan[number - 1]
            if params.method == "offset":
                shift = np.float32(mean) - np.float32(own.mean)
                frame.shift = np.resize(frame.shift, (1, 4))
                frame.shift[0, number - 1] = shift
                frame.extra[number - 1] = (stdev**2 + own.stdev**2) / port.gain
                set_card(frame.header, keywords[0], float32_card(mean))
            elif abs(own.mean - mean) > factor * stdev:
                text = (
                    f"{frame.frame.path}: overscan level {own.mean:.2f} of quadrant {number} found, expected that of "
                    f"{path}, {mean:.2f}, within {factor:g} times {stdev:.2f} adu"
                )
                if params.method == "vpoly":
                    raise InputError(text)
                log.warning("%s", text)


def _deviation(frame: RawFrame, first: RawFrame) -> str | None:
    for key in ("binning", "read_id", "chip"):
        a, b = getattr(frame.ccd, key), getattr(first.ccd, key)
        if a != b:
            return f"{_KEYWORDS[key]} {a} found, {b} in {first.frame.path}"
    return None


def process(
    task: Task,
    frames: Sequence[Frame],
    *,
    combine: CombineParams | None = None,
    scale: bool = False,
    statistics: bool = False,
) -> Processed:
    """Process the raw frames of one IFU and combine them.

    Bad pixels, saturation, overscan, trimming; then bias, conversion to counts, dark and flat, as far as the
    recipe takes them and the task has them.

    Parameters
    ----------
    task : Task
    frames : sequence of Frame
        Raw frames.
    combine : CombineParams, optional
        By default from the parameters of the recipe.
    scale : bool
        Whether to scale all to the exposure time of the first.
    statistics : bool
        Whether to take the statistics of each processed image.

    Returns
    -------
    Processed

    Raises
    ------
    InputError
        If a file is damaged, or does not fit the others.
    """
    series = load_series(task, frames, scale=scale)
    found = None
    if statistics:
        found = [image_statistics(series.image(k).data) for k in range(len(series.frames))]
    image = series.combine(combine or CombineParams.from_values(task.values))
    return Processed(image, [f.saturated for f in series.frames], found)


def process_single(task: Task, frame: Frame) -> tuple[MuseImage, int]:
    """Process one raw frame.

    Parameters
    ----------
    task : Task
    frame : Frame

    Returns
    -------
    image : MuseImage
    saturated : int
        Number of saturated pixels of the raw image.

    Raises
    ------
    InputError
        As in `process`.
    """
    series = load_series(task, [frame])
    return series.image(0), series.frames[0].saturated
