"""Basic processing of the raw frames of one IFU: what all recipes on raw data begin with.

Raw images stay 16-bit numbers; everything else is done row by row, from the raw numbers to the combined image, so
that no image of an input is ever held in full, unless it is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import DQ_SATURATED
from ..io.calibrations import read_badpix_table
from ..io.ccd import Ccd, NonLinearity, drop_scans, read_ccd, read_nonlinearity, read_parameters, read_setup
from ..io.headers import float32_card, float64_card, set_card
from ..io.muse_image import MuseImage, read_muse_image
from ..io.raw_read import RawCards, Target, read_image
from ..io.sof import Frame
from . import detector
from .combination import CombineParams, combine_rows, kernel_arguments
from .detector import Overscan, OverscanParams, Setup
from .statistics import Statistics, image_statistics
from .task import Task

log = logging.getLogger("musedask")

_OVSC = "ESO DRS MUSE OVSC"
#: raw frames that stay in adu
_IN_ADU = ("BIAS", "LINGAIN_LAMP_OFF", "LINGAIN_LAMP_ON")
#: raw frames without light, whose deviation from linearity is not corrected
_UNLIT = ("BIAS", "DARK")
#: environment variables of the reference that switch off the uses of a NONLINEARITY_GAIN
_SKIP_GAIN, _SKIP_CURVE = "MUSE_BASICPROC_SKIP_GAIN_OVERRIDE", "MUSE_BASICPROC_SKIP_NONLIN_CORR"
_KEYWORDS = {
    "binning": "ESO DET BINX and BINY",
    "read_id": "ESO DET READ CURID",
    "chip": "ESO DET CHIP NAME and ID",
    "mode": "ESO INS MODE",
}


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
    """What is known of a raw image of one IFU, besides its pixels.

    Attributes
    ----------
    frame : Frame
    cards : RawCards
    ccd : Ccd
    saturated : int
        Number of saturated pixels of the raw image.
    medians : list of float
        Of the data of each quadrant [adu], where asked for.
    overscan : list of Overscan
        Of the quadrants of outputs 1 to 4.
    level : list of (float, float)
        Mean and standard deviation of the overscans to go into the header, if they are not those measured.
    shift : ndarray of float32, shape (n, 4)
        Levels that are added after the overscan, one after the other [adu].
    extra : ndarray of float32, shape (4,)
        Variance of those levels [adu2].
    """

    frame: Frame
    cards: RawCards
    ccd: Ccd
    saturated: int
    medians: list[float]
    overscan: list[Overscan]
    level: list[tuple[float, float]] = field(default_factory=list)
    shift: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    extra: NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))

    def header(self) -> fits.Header:
        """Cards of the frame without those of the scans, with those of its overscan."""
        header = self.cards.header()
        drop_scans(header)
        for port in self.ccd.ports:
            set_card(header, f"ESO DET OUT{port.number} GAIN", port.gain)
        levels = self.level or [(o.mean, o.stdev) for o in self.overscan]
        for n, (mean, stdev) in enumerate(levels, 1):
            set_card(header, f"{_OVSC}{n} MEAN", float32_card(mean))
            set_card(header, f"{_OVSC}{n} STDEV", float32_card(stdev))
        for n, overscan in enumerate(self.overscan, 1):
            if len(overscan.coefficients):
                set_card(header, f"{_OVSC}{n} POLY NCOEFF", len(overscan.coefficients))
                for i, c in enumerate(overscan.coefficients):
                    set_card(header, f"{_OVSC}{n} POLY Y{i}", float64_card(c))
        return header


# --- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Pixels known to be bad: rows and columns on the raw image, from 0, and qualities."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    flags: NDArray[np.int32]

    def flag(self, flags: NDArray[np.int32], rows: slice, columns: slice) -> None:
        """Add the qualities to those of a section of the raw image."""
        inside = (self.y >= rows.start) & (self.y < rows.stop) & (self.x >= columns.start) & (self.x < columns.stop)
        if inside.any():
            np.bitwise_or.at(
                flags, (self.y[inside] - rows.start, self.x[inside] - columns.start), self.flags[inside]
            )

    def trimmed(self, ccd: Ccd) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """In the form of `detector.Setup`, on the image without scans."""
        y, x, flags = [], [], []
        for port in ccd.ports:
            (rows, columns), (own_rows, own_columns) = ccd.data(port), ccd.trimmed(port)
            inside = (
                (self.y >= rows.start) & (self.y < rows.stop) & (self.x >= columns.start) & (self.x < columns.stop)
            )
            y.append(self.y[inside] - rows.start + own_rows.start)
            x.append(self.x[inside] - columns.start + own_columns.start)
            flags.append(self.flags[inside])
        found = np.concatenate(y)
        order = np.argsort(found, kind="stable")
        start = np.searchsorted(found[order], np.arange(ccd.shape[0] + 1))
        return start.astype(np.int64), np.concatenate(x)[order], np.concatenate(flags)[order]


def overscan_params(task: Task) -> OverscanParams:
    """Overscan parameters of a recipe."""
    v = task.values
    return detector.parse_overscan(v["overscan"], v["ovscreject"], v["ovscsigma"], v["ovscignore"])


def known_pixels(task: Task) -> KnownPixels:
    """Bad pixels of all tables of a task."""
    y, x, flags = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for frame in task.tagged("BADPIX_TABLE"):
        table = read_badpix_table(frame.path).get(_ifu(task))
        if table is not None:
            y.append(table.y.astype(np.int64) - 1)
            x.append(table.x.astype(np.int64) - 1)
            flags.append(table.status)
    return KnownPixels(np.concatenate(y), np.concatenate(x), np.concatenate(flags))


def load_frame(
    task: Task,
    frame: Frame,
    params: OverscanParams,
    known: KnownPixels,
    *,
    medians: bool = False,
    like: RawFrame | None = None,
    out: Target = None,
) -> tuple[RawFrame, NDArray[np.uint16]] | None:
    """Read a raw frame and measure its overscan.

    Parameters
    ----------
    task : Task
    frame : Frame
    params : OverscanParams
    known : KnownPixels
    medians : bool
        Whether to take the medians of the quadrants.
    like : RawFrame, optional
        With whose setup it must agree.
    out : ndarray of uint16 or callable, optional
        Where to put the image, see `read_image`.

    Returns
    -------
    None
        If its setup is another one; a warning tells it.
    frame : RawFrame
    image : ndarray of uint16, shape (ny, nx)
        Raw [adu].

    Raises
    ------
    InputError
        If the file is damaged, or its header does not describe the image.
    """
    ifu = _ifu(task)
    cards, raw, saturated = read_image(frame.path, ifu, out)
    ccd = read_ccd(cards, frame.path)
    if like is not None:
        wrong = _deviation(ccd, like)
        if wrong is not None:
            log.warning("%s: %s; it is left out", frame.path, wrong)
            return None
        if isinstance(out, np.ndarray) and raw is not out:
            raise InputError(
                f"{frame.path}: CHAN{ifu:02d} of shape {raw.shape} found, expected {out.shape} as in {like.frame.path}"
            )
    if raw.shape != ccd.raw_shape:
        raise InputError(
            f"{frame.path}: CHAN{ifu:02d} of shape {raw.shape} found, its ESO DET OUTn cards say {ccd.raw_shape}"
        )
    share = saturated / raw.size
    if share > 0.001:
        log.warning("%s: %d pixels of CHAN%02d (%.2f %%) are saturated", frame.path, saturated, ifu, 100 * share)
    params = _possible(params, ccd, frame)
    levels = []
    for port in ccd.ports:
        sections = ccd.strips(port, params.ignore)
        strips = [np.ascontiguousarray(raw[s]) for s in sections]
        flags = []
        for strip, (rows, columns) in zip(strips, sections, strict=True):
            bad = (strip > detector.HIGH_LIMIT) | (strip < detector.LOW_LIMIT)
            flag = np.where(bad, np.int32(DQ_SATURATED), np.int32(0))
            known.flag(flag, rows, columns)
            flags.append(flag)
        mean, stdev = detector.overscan_statistics((strips[0], strips[1]), (flags[0], flags[1]), params)
        if not np.isfinite(mean):
            raise InputError(f"{frame.path}: no pixel of the overscan of quadrant {port.number} is good")
        coefficients, level = np.empty(0), np.empty(0)
        if params.method == "vpoly":
            region = ccd.region(port)[0]
            coefficients, level = detector.fit_overscan(
                strips[1], flags[1], sections[1][0].start + 1, (region.start + 1, region.stop), params
            )
            if not np.isfinite(coefficients).all():
                raise InputError(f"{frame.path}: the overscan along y of quadrant {port.number} has no good pixel")
        levels.append(Overscan(mean, stdev, coefficients, level))
    middles = [detector.quadrant_median(raw[ccd.data(port)]) for port in ccd.ports] if medians else []
    return RawFrame(frame, cards, ccd, saturated, middles, levels), raw


def _possible(params: OverscanParams, ccd: Ccd, frame: Frame) -> OverscanParams:
    """Without the search for cosmic rays, if its boxes do not fit the strips along x and along y."""
    if params.reject != "dcr" or (params.xbox <= min(ccd.nx, ccd.ny) and params.ybox <= min(ccd.overscan)):
        return params
    log.warning(
        "%s: boxes of %d x %d pixels (ovscreject) do not fit overscans of %d and %d pixels of quadrants of %d x %d; "
        "nothing is rejected",
        frame.path, params.xbox, params.ybox, *ccd.overscan, ccd.nx, ccd.ny,
    )  # fmt: skip
    return replace(params, reject="none")


def _ifu(task: Task) -> int:
    if task.ifu is None:
        raise InputError(f"{task.recipe.name}: it works on one IFU, none is given")
    return task.ifu


# --- masters ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Masters:
    """Calibrations that are applied."""

    bias: MuseImage | None = None
    dark: MuseImage | None = None
    flat: MuseImage | None = None
    linearity: NonLinearity | None = None


def load_masters(task: Task, ccd: Ccd, tag_of_raw: str = "") -> Masters:
    """Read the calibrations of a task that basic processing applies, and check that they fit the raw frames.

    Raises
    ------
    InputError
        If one is damaged or does not fit.
    """
    masters = Masters()
    for name in ("bias", "dark", "flat"):
        tag = f"MASTER_{name.upper()}"
        path = None if task.recipe.input(tag) is None else task.path(tag)
        if path is None:
            continue
        image = read_muse_image(path, ifu=_ifu(task))
        if image.data.shape != ccd.shape:
            raise InputError(f"{path}: {tag} of shape {image.data.shape} found, expected {ccd.shape}")
        if image.dq is None or image.stat is None:
            raise InputError(f"{path}: there is no DQ or no STAT, expected both in a {tag}")
        setup = read_setup(image.header)
        vital = {"bias": ("binning", "read_id", "chip"), "flat": ("binning", "mode")}.get(name, ("binning",))
        for key in ("binning", "read_id", "chip", "mode"):
            found, expected = setup[key], getattr(ccd, key)
            # as in the reference: what a master does not say is no contradiction, but for the read-out mode
            unknown = (key == "chip" and None in (*found, *expected)) or (key == "mode" and None in (found, expected))
            if found == expected or unknown or (key == "mode" and (name != "flat" or tag_of_raw == "ILLUM")):
                continue
            text = f"{path}: {_KEYWORDS[key]} {found} found in the {tag}, expected {expected} as in the raw frames"
            if key in vital:
                raise InputError(text)
            log.warning("%s", text)
        if name == "dark" and not (setup["exptime"] or 0) > 0:
            raise InputError(f"{path}: EXPTIME {setup['exptime']} found, expected a positive number in a MASTER_DARK")
        setattr(masters, name, image)
    if task.recipe.input("NONLINEARITY_GAIN") is not None:
        path = task.path("NONLINEARITY_GAIN")
        if path is not None:
            masters.linearity = read_nonlinearity(path, _ifu(task))
    return masters


# --- processing ------------------------------------------------------------------------------------

_NO_FLOAT = np.empty((0, 0), np.float32)
_NO_INT = np.empty((0, 0), np.int32)
#: rows that are processed and combined at once: those of a dozen images fit into the second cache
_ROWS = 4


class Series:
    """Raw frames of one IFU, ready to be processed row by row.

    Parameters
    ----------
    task : Task
    frames : sequence of RawFrame
    raw : ndarray of uint16, shape (n, ny, nx)
    known : KnownPixels
    masters : Masters
    scale : bool
        Whether to scale all to the exposure time of the first.
    """

    def __init__(
        self,
        task: Task,
        frames: Sequence[RawFrame],
        raw: NDArray[np.uint16],
        known: KnownPixels,
        masters: Masters,
        *,
        scale: bool = False,
    ) -> None:
        self.frames = list(frames)
        self.ccd = frames[0].ccd
        self.n_threads = max(1, task.n_threads)
        self.unit = "adu" if frames[0].frame.tag in _IN_ADU else "count"
        self._raw = raw
        tag = frames[0].frame.tag
        ccd, n = self.ccd, len(frames)
        order = [p.number - 1 for p in sorted(ccd.ports, key=lambda p: (p.top, p.right))]
        first_row, first_column = (
            np.array([ccd.data(ccd.ports[p])[axis].start - ccd.trimmed(ccd.ports[p])[axis].start for p in pair])
            for axis, pair in ((0, (order[0], order[2])), (1, (order[0], order[1])))
        )
        levels = np.zeros((n, 2, ccd.shape[0]))
        for k, frame in enumerate(frames):
            for port, overscan in zip(ccd.ports, frame.overscan, strict=True):
                if len(overscan.levels):
                    rows, region = ccd.data(port)[0], ccd.region(port)[0]
                    levels[k, int(port.right), ccd.trimmed(port)[0]] = overscan.levels[
                        rows.start - region.start : rows.stop - region.start
                    ]
        times = [frame.ccd.exptime for frame in frames]
        dark_time = 1.0 if masters.dark is None else float(masters.dark.header["EXPTIME"])
        factors = np.ones((2, n))
        for k, frame in enumerate(frames):
            time = times[k]
            if (scale or masters.dark is not None) and (time is None or (scale and time <= 0)):
                raise InputError(f"{frame.frame.path}: EXPTIME {time} found, expected a positive number")
            factors[0, k] = (time or 0.0) / dark_time
            if scale:
                factors[1, k] = (times[0] or 0.0) / (time or 1.0)
        curve, curve_range = np.empty((0, 0)), np.empty((0, 0))
        if masters.linearity is not None and tag not in _UNLIT and _SKIP_CURVE not in os.environ:
            curve, curve_range = masters.linearity.coefficients[order], masters.linearity.limits[order]
        bad_start, bad_x, bad_flags = known.trimmed(ccd)

        def parts(image: MuseImage | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            if image is None:
                return _NO_FLOAT, _NO_FLOAT, _NO_INT
            assert image.stat is not None and image.dq is not None
            return image.data, image.stat, image.dq

        steps = max(len(frame.shift) for frame in frames)
        shift = np.zeros((n, steps, 4), np.float32)
        for k, frame in enumerate(frames):
            shift[k, : len(frame.shift)] = frame.shift[:, order]
        self._setup = Setup(
            ccd.nx,
            ccd.ny,
            first_row.astype(np.int64),
            np.array([first_column[0], first_column[1] + ccd.nx], np.int64),
            levels,
            shift,
            np.array([frame.extra[order] for frame in frames], np.float32),
            np.array([ccd.ports[p].gain for p in order]),
            self.unit == "count",
            curve,
            curve_range,
            bad_start,
            bad_x,
            bad_flags,
            *parts(masters.bias),
            *parts(masters.dark),
            factors[0],
            *parts(masters.flat),
            factors[1],
        )
        self._order = order
        self._flat_flux = None if masters.flat is None else masters.flat.header.get("ESO QC FLAT MASTER INTFLUX")

    def header(self, k: int = 0) -> fits.Header:
        """Cards of a frame, of its overscan, and of the flat that it was divided by."""
        header = self.frames[k].header()
        if self._flat_flux is not None:
            set_card(header, "ESO DRS MUSE FLAT FLUX LAMP", float(self._flat_flux))
        return header

    def rows(
        self, k: int, y0: int, y1: int, data: NDArray[np.float32], stat: NDArray[np.float32], dq: NDArray[np.int32]
    ) -> None:
        """Process rows of a frame.

        Parameters
        ----------
        k : int
            Number of the frame.
        y0, y1 : int
            First row of the image without scans, and the one after the last.
        data, stat, dq : ndarray, shape (y1 - y0, nx)
            Are filled.
        """
        detector.correct(self._raw[k : k + 1], tuple(self._setup.of(k)), y0, y1, data[None], stat[None], dq[None])

    def image(self, k: int) -> MuseImage:
        """Process one frame."""
        data, stat, dq = self._empty()
        self._in_bands(lambda y0, y1: self.rows(k, y0, y1, data[y0:y1], stat[y0:y1], dq[y0:y1]))
        return MuseImage(data, dq, stat, self.unit, self.header(k))

    def some_rows(self, k: int, wanted: NDArray[np.bool_], data: NDArray[np.float32]) -> None:
        """Process rows of a frame here and there.

        Parameters
        ----------
        k : int
            Number of the frame.
        wanted : ndarray of bool, shape (ny,)
        data : ndarray of float32, shape (ny, nx)
            The wanted rows are filled.
        """
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).reshape(-1, 2).tolist()

        def process(i: int) -> None:
            shape = _ROWS, data.shape[1]
            stat, dq = np.empty(shape, np.float32), np.empty(shape, np.int32)
            for start, stop in edges[i :: self.n_threads]:
                for y in range(start, stop, _ROWS):
                    n = min(_ROWS, stop - y)
                    self.rows(k, y, y + n, data[y : y + n], stat[:n], dq[:n])

        _each(process, self.n_threads, self.n_threads)

    def combine(
        self,
        params: CombineParams,
        variance: NDArray[np.float32] | None = None,
        seen: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> MuseImage:
        """Process all and combine them; a single one stays as it is.

        Parameters
        ----------
        params : CombineParams
        variance : ndarray of float32, shape (4,), optional
            By output, instead of that of each pixel.
        seen : callable, optional
            Is given the processed rows of all frames, shape (n, rows, nx), some at a time and by several threads, so
            that nothing need be processed again to be measured.
        """
        if len(self.frames) == 1 and variance is None:
            image = self.image(0)
            if seen is not None:
                seen(image.data[None])
            return image
        arguments = kernel_arguments(params, len(self.frames))
        setup = tuple(self._setup)
        data, stat, dq = self._empty()
        n, nx = len(self.frames), data.shape[1]

        def combine(start: int, stop: int) -> None:
            rows = min(_ROWS, stop - start)
            buffers = [np.empty(n * rows * nx, t) for t in (np.float32, np.float32, np.int32)]
            for y0 in range(start, stop, rows):
                y1 = min(y0 + rows, stop)
                values, errors, flags = (b[: n * (y1 - y0) * nx].reshape(n, y1 - y0, nx) for b in buffers)
                detector.correct(self._raw, setup, y0, y1, values, errors, flags)
                if seen is not None:
                    seen(values)
                if variance is not None:
                    errors = errors[:1]
                    for port in self.ccd.ports:
                        own, columns = self.ccd.trimmed(port)
                        errors[:, max(own.start - y0, 0) : max(own.stop - y0, 0), columns] = variance[port.number - 1]
                combine_rows(
                    values.reshape(n, -1), errors.reshape(len(errors), -1), flags.reshape(n, -1),
                    data[y0:y1].reshape(-1), stat[y0:y1].reshape(-1), dq[y0:y1].reshape(-1), *arguments,
                )  # fmt: skip

        self._in_bands(combine)
        return MuseImage(data, dq, stat, self.unit, self.header())

    def _empty(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        shape = self.ccd.shape
        return np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.int32)

    def _in_bands(self, function: Callable[[int, int], None]) -> None:
        ny, n = self.ccd.shape[0], self.n_threads
        edges = [ny * i // n for i in range(n + 1)]
        _each(lambda i: function(edges[i], edges[i + 1]), n, n)


def _each(function: Callable[[int], Any], n: int, n_threads: int) -> list[Any]:
    """Call a function for 0 to n - 1, in threads if there are several."""
    if n_threads == 1 or n <= 1:
        return [function(i) for i in range(n)]
    with ThreadPoolExecutor(min(n, n_threads)) as pool:
        return list(pool.map(function, range(n)))


def load_series(task: Task, frames: Sequence[Frame], *, scale: bool = False, medians: bool = False) -> Series:
    """Read raw frames and masters of one IFU; frames that do not fit the first are left out with a warning.

    Parameters
    ----------
    task : Task
    frames : sequence of Frame
    scale : bool
        Whether to scale all to the exposure time of the first.
    medians : bool
        Whether to take the medians of the quadrants of the raw images.

    Raises
    ------
    InputError
        If there is no frame, one is damaged, or a master does not fit.
    """
    if not frames:
        raise InputError(f"{task.recipe.name}: no raw frame found, expected at least one")
    params, known = overscan_params(task), known_pixels(task)
    stack: list[NDArray[np.uint16]] = []

    def make(shape: tuple[int, int]) -> NDArray[np.uint16]:
        stack.append(np.empty((len(frames), *shape), np.uint16))
        return stack[0][0]

    found = load_frame(task, frames[0], params, known, medians=medians, out=make)
    assert found is not None
    first, raw = found[0], stack[0]

    def load(i: int) -> RawFrame | None:
        made = load_frame(task, frames[i + 1], params, known, medians=medians, like=first, out=raw[i + 1])
        return made and made[0]

    loaded = [first]
    for i, frame in enumerate(_each(load, len(frames) - 1, task.n_threads), 1):
        if frame is not None:
            if len(loaded) < i:
                raw[len(loaded)] = raw[i]
            loaded.append(frame)
    least = task.recipe.input(frames[0].tag)
    if len(loaded) < len(frames) and least is not None and len(loaded) < least.minimum:
        raise InputError(
            f"{task.recipe.name}: {len(loaded)} of {len(frames)} raw frames have the setup of {frames[0].path}, "
            f"expected {least.minimum} or more"
        )
    masters = load_masters(task, first.ccd, frames[0].tag)
    if masters.linearity is not None and _SKIP_GAIN not in os.environ:
        for frame in loaded:
            ports = zip(frame.ccd.ports, masters.linearity.gains, strict=True)
            frame.ccd = replace(frame.ccd, ports=tuple(replace(p, gain=g) for p, g in ports))
    if frames[0].tag == "BIAS":
        _compare_levels(loaded, params)
    if masters.bias is not None:
        _compare_with_bias(task, loaded, masters.bias, params)
    return Series(task, loaded, raw[: len(loaded)], known, masters, scale=scale)


def _deviation(ccd: Ccd, first: RawFrame) -> str | None:
    for key in ("binning", "read_id", "chip"):
        found, expected = getattr(ccd, key), getattr(first.ccd, key)
        if found != expected:
            return f"{_KEYWORDS[key]} {found} found, expected {expected} as in {first.frame.path}"
    return None


def _compare_levels(frames: Sequence[RawFrame], params: OverscanParams) -> None:
    """Compare the overscan levels of biases, and adjust them, as far as the overscan itself is not subtracted."""
    first = frames[0]
    if params.method == "none":
        for port, reference in zip(first.ccd.ports, first.overscan, strict=True):
            for frame in frames[1:]:
                mean = frame.overscan[port.number - 1].mean
                if abs(mean - reference.mean) > params.sigma * reference.stdev:
                    raise InputError(
                        f"{frame.frame.path}: overscan level {mean:.2f} adu of quadrant {port.number} found, expected "
                        f"{reference.mean:.2f} +/- {params.sigma:g} x {reference.stdev:.2f} as in {first.frame.path}"
                    )
        for number in range(4):
            found = [f.overscan[number] for f in frames]
            # that of the mean, with the scatter of the means about the first
            square = sum(o.stdev**2 + (o.mean - found[0].mean) ** 2 for o in found)
            first.level.append((sum(o.mean for o in found) / len(found), float(np.sqrt(square)) / len(found)))
    elif params.method == "offset":
        # the reference moves the first image to the level of each other in turn, so in the end to that of the last
        means = np.array([[o.mean for o in f.overscan] for f in frames], np.float32)
        first.shift = np.diff(means, axis=0)
        first.level = [(float(m), o.stdev) for m, o in zip(means[-1], first.overscan, strict=True)]


def _compare_with_bias(
    task: Task, frames: Sequence[RawFrame], bias: MuseImage, params: OverscanParams
) -> None:
    """Compare the overscan levels of raw frames with those of the master bias; adjust them with ``offset``."""
    path = task.path("MASTER_BIAS")
    recorded = read_parameters(bias.header)
    differing = [
        f"{key} {recorded[key]}"
        for key in ("overscan", "ovscreject", "ovscsigma", "ovscignore")
        if key in recorded and recorded[key] != task.recipe.parameter(key).to_card(task.values[key])
    ]
    if differing:
        log.warning("%s: made with other overscan parameters: %s", path, ", ".join(differing))
    levels = []
    for number in range(1, 5):
        keywords = f"{_OVSC}{number} MEAN", f"{_OVSC}{number} STDEV"
        missing = [k for k in keywords if k not in bias.header]
        if missing:
            raise InputError(f"{path}: there is no {' and no '.join(missing)}, expected both in a MASTER_BIAS")
        levels.append((float(bias.header[keywords[0]]), float(bias.header[keywords[1]])))
    for frame in frames:
        if params.method == "offset":
            means = np.array([o.mean for o in frame.overscan], np.float32)
            frame.shift = (np.array([mean for mean, _ in levels], np.float32) - means)[None]
            variance = [
                (stdev**2 + own.stdev**2) / port.gain
                for (_, stdev), own, port in zip(levels, frame.overscan, frame.ccd.ports, strict=True)
            ]
            frame.extra = np.array(variance, np.float32)
            frame.level = [(mean, own.stdev) for (mean, _), own in zip(levels, frame.overscan, strict=True)]
            continue
        factor = 100.0 if params.method == "vpoly" else params.sigma
        for number, ((mean, stdev), own) in enumerate(zip(levels, frame.overscan, strict=True), 1):
            if abs(own.mean - mean) > factor * stdev:
                text = (
                    f"{frame.frame.path}: overscan level {own.mean:.2f} adu of quadrant {number} found, expected "
                    f"{mean:.2f} +/- {factor:g} x {stdev:.2f} as in {path}"
                )
                if params.method == "vpoly":
                    raise InputError(text)
                log.warning("%s", text)


def process(
    task: Task,
    frames: Sequence[Frame],
    *,
    combine: CombineParams | None = None,
    scale: bool = False,
    statistics: bool = False,
) -> Processed:
    """Process the raw frames of one IFU and combine them.

    Bad pixels, saturation, overscan, trimming; then bias, linearity, conversion to counts, dark and flat, as far
    as the recipe takes them and the task has them.

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
