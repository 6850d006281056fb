"""Wavelength calibration (muse_wavecal): lines of arc lamps to a polynomial for each slice.

Pixels are counted from 1, as in the tables that come out of this; arrays from 0.  The rules are those of the
reference pipeline (DRS 2.8.7), found by giving frames to it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from ..errors import InputError, RecipeError
from ..instrument import DQ_SATURATED, N_SLICES, SLICE_WIDTH, SPECTRAL_SAMPLING, Mode, mode_from_name
from ..io.calibrations import TraceTable, WavecalResiduals, WavecalTable, read_trace_table
from ..io.headers import append_cards, float32_card, remove_cards, set_card
from ..io.muse_image import MuseImage
from ..io.product_headers import read_primary
from ..io.references import LineCatalog, read_line_catalog
from ..io.sof import Frame
from . import arclines
from .arclines import Catalogue, Detections, FloatArray, Measured
from .basic import process
from .combination import CombineParams, combine_images
from .statistics import iterfit
from .task import Made, Task

log = logging.getLogger("musedask")

#: rejection limits that a negative parameter stands for
LINE_SIGMA_LIMIT, FIT_SIGMA_LIMIT = 2.5, 3.0
#: of the fit of positions along the slice as a function of wavelength
INVERSE_LIMIT = 3.0
#: scatter that is good enough, and improvement that is worth another iteration [Angstrom]
GOOD_RMS, LEAST_IMPROVEMENT = 0.03, 0.001
#: steps of the final fit: where it starts [Angstrom], damping of the first step, number after which the damping is
#: lost in the rounding of the reference, decrease of the sum of squares that is small, and how many are the end
_START, _DAMPING, _MOST_STEPS, _SMALL_DECREASE, _SMALL_STEPS = 5000.0, 1e-3, 13, 0.01, 5


@dataclass(frozen=True)
class SolutionParams:
    """How lines are found and fitted.

    Attributes
    ----------
    xorder, yorder : int
        Orders of the polynomial across the slice and along the wavelengths.
    sigma : float
        Limit of the detection, in median deviations of the signal-to-noise.
    dres : float
        Fraction by which the dispersion may differ from 1.25 Angstrom/pix.
    tolerance : float
        Of the pattern by which lines are identified.
    linesigma, fitsigma : float
        Rejection limits along a line and in the final fit.
    weighting : str
        ``uniform``, ``cerr``, ``scatter``, ``cerrscatter``.
    """

    xorder: int = 2
    yorder: int = 6
    sigma: float = 1.0
    dres: float = 0.05
    tolerance: float = 0.1
    linesigma: float = LINE_SIGMA_LIMIT
    fitsigma: float = FIT_SIGMA_LIMIT
    weighting: str = "cerrscatter"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SolutionParams:
        """From the parameters of the recipe."""
        line, fit = values["linesigma"], values["fitsigma"]
        return cls(
            values["xorder"], values["yorder"], values["sigma"], values["dres"], values["tolerance"],
            LINE_SIGMA_LIMIT if line < 0 else line, FIT_SIGMA_LIMIT if fit < 0 else fit, values["fitweighting"],
        )  # fmt: skip


# --- final fit -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Iteration:
    """One fit of all points that were left.

    Attributes
    ----------
    rows : ndarray of intp, shape (n,)
        Which points.
    residual : ndarray of float64, shape (n,) [Angstrom]
        Wavelength of the line minus that of the fit.
    rms, limit : float [Angstrom]
    """

    rows: NDArray[np.intp]
    residual: FloatArray
    rms: float
    limit: float


class _Axis:
    """Chebyshev polynomials on the range of some coordinates, and their way back to powers."""

    def __init__(self, values: FloatArray, order: int) -> None:
        low, high = float(values.min()), float(values.max())
        self.middle = 0.5 * (low + high)
        self.scale = 2.0 / (high - low) if high > low else 1.0
        self.order = order

    def basis(self, values: FloatArray) -> FloatArray:
        t = (values - self.middle) * self.scale
        return np.asarray(np.polynomial.chebyshev.chebvander(t, self.order), np.float64)

    def powers(self) -> NDArray[np.longdouble]:
        """Matrix from coefficients of Chebyshev polynomials to those of powers of the coordinate."""
        n = self.order + 1
        scale, middle = np.longdouble(self.scale), np.longdouble(self.middle)
        # rows: T_k as powers of the coordinate, by T_k = 2 t T_(k-1) - T_(k-2)
        rows = np.zeros((n, n), np.longdouble)
        rows[0, 0] = 1
        for k in range(1, n):
            t = np.zeros(n, np.longdouble)
            t[1:] = scale * rows[k - 1, :-1]
            t -= scale * middle * rows[k - 1]
            rows[k] = t if k == 1 else 2 * t - rows[k - 2]
        return rows.T


def _damped_steps(
    basis: FloatArray, to_powers: NDArray[np.longdouble], size: FloatArray, target: FloatArray
) -> FloatArray:
    """Least squares by the steps that the reference takes, in a basis that is well conditioned.

    The reference fits coefficients of powers of pixels, which are nearly degenerate, by the method of Levenberg and
    Marquardt: from a constant on, with a damping that is ten times less after each step, until five steps in a row
    bring less than 1 %, or the damping is lost in rounding.  What the positions of lines do not tell, in the corners
    of a slice, therefore stays near where it began.

    Parameters
    ----------
    basis : ndarray of float64, shape (n, k)
        Divided by the errors; the first function is constant.
    to_powers : ndarray of longdouble, shape (k, k)
        From coefficients of the basis to those of powers.
    size : ndarray of float64, shape (k,)
        Norms of powers, divided by the errors.
    target : ndarray of float64, shape (n,)
        Divided by the errors.

    Returns
    -------
    ndarray of float64, shape (k,)
        Coefficients of the basis.
    """
    k = basis.shape[1]
    whole: FloatArray = np.asarray(np.linalg.qr(np.column_stack([basis, target]), mode="r"), np.float64)
    triangle, right, rest = whole[:k, :k], whole[:k, k], float(whole[k, k]) ** 2
    metric = (size[:, None] * to_powers).astype(np.float64)
    solution = np.zeros(k)
    solution[0] = _START
    chi2 = float(np.sum((right - triangle @ solution) ** 2)) + rest
    small = 0
    for step in range(_MOST_STEPS):
        damping = _DAMPING * 0.1**step
        matrix = np.concatenate([triangle, math.sqrt(damping) * metric])
        scale = np.sqrt(np.sum(matrix**2, axis=0))
        missing = np.concatenate([right - triangle @ solution, np.zeros(k)])
        solution = solution + np.linalg.lstsq(matrix / scale, missing, rcond=None)[0] / scale
        found = float(np.sum((right - triangle @ solution) ** 2)) + rest
        small = small + 1 if chi2 - found < _SMALL_DECREASE * chi2 else 0
        chi2 = found
        if small == _SMALL_STEPS:
            break
    return solution


def fit_wavelengths(
    x: FloatArray,
    y: FloatArray,
    wave: FloatArray,
    error: FloatArray | None,
    xorder: int,
    yorder: int,
    kappa: float,
) -> tuple[FloatArray, float, list[Iteration]]:
    """Fit wavelengths as a polynomial of x and y, rejecting outliers.

    Parameters
    ----------
    x, y : ndarray of float64, shape (n,) [pix]
    wave, error : ndarray of float64, shape (n,) [Angstrom]
        No error: all count the same.
    xorder, yorder : int
        Of the polynomial: all products of powers up to these.
    kappa : float
        Points at or beyond so many times the scatter are removed.

    Returns
    -------
    coefficients : ndarray of float64, shape (xorder + 1, yorder + 1) [Angstrom]
        Of ``x^i y^j``; NaN if there are not enough points.
    mse : float [Angstrom2]
        Mean of squared residuals, weighted by 1 / error.
    iterations : list of Iteration
    """
    shape = xorder + 1, yorder + 1
    size = shape[0] * shape[1]
    rows = np.arange(len(x))
    iterations: list[Iteration] = []
    before = math.nan
    while True:
        if len(rows) <= size:
            return np.full(shape, np.nan), math.nan, iterations
        axes = _Axis(x[rows], xorder), _Axis(y[rows], yorder)
        across, along = axes[0].basis(x[rows]), axes[1].basis(y[rows])
        basis = (across[:, :, None] * along[:, None, :]).reshape(-1, size)
        weight = np.ones(len(rows)) if error is None else 1.0 / error[rows]
        to_powers = np.kron(axes[0].powers(), axes[1].powers())
        try:
            if error is None:
                solution = np.linalg.lstsq(basis, wave[rows], rcond=None)[0]
            else:
                squares = [values[rows, None] ** (2.0 * np.arange(n)) for values, n in zip((x, y), shape, strict=True)]
                norms = np.sqrt(np.einsum("ni,nj,n->ij", *squares, weight**2)).reshape(-1)
                solution = _damped_steps(basis * weight[:, None], to_powers, norms, wave[rows] * weight)
        except np.linalg.LinAlgError:
            return np.full(shape, np.nan), math.nan, iterations
        residual = wave[rows] - basis @ solution
        mse = float(np.sum(residual**2 * weight) / np.sum(weight))
        rms = math.sqrt(mse)
        iterations.append(Iteration(rows, residual, rms, kappa * rms))
        bad = np.abs(residual) >= kappa * rms
        if rms <= GOOD_RMS or before - rms < LEAST_IMPROVEMENT or not bad.any():
            break
        before = rms
        rows = rows[~bad]
    return (to_powers @ solution.astype(np.longdouble)).astype(np.float64).reshape(shape), mse, iterations


# --- one slice -------------------------------------------------------------------------------------


@dataclass(eq=False)
class SliceSolution:
    """What was found in a slice.

    Attributes
    ----------
    detected : int
        Number of lines that were detected, in all images.
    identified : Detections or None
        Those that were identified; None if the slice has no trace.
    measured : Measured or None
        Positions of the lines of the catalogue; None if too few lines were identified.
    used : ndarray of bool
        Measured positions that take part in the fit.
    coefficients : ndarray of float64, shape (xorder + 1, yorder + 1), or None [Angstrom]
        None if there is no solution.
    mse : float [Angstrom2]
    iterations : list of Iteration
        Their rows count the positions that are used.
    """

    detected: int = 0
    identified: Detections | None = None
    measured: Measured | None = None
    used: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    coefficients: FloatArray | None = None
    mse: float = math.nan
    iterations: list[Iteration] = field(default_factory=list)


def useful(wave: FloatArray, mode: Mode) -> NDArray[np.bool_]:
    """Lines in the range of wavelengths of a mode, that may count in the final fit."""
    low, high = mode.useful
    if mode.is_nfm:
        # as the reference does it
        low = 4700.0
    use = (wave >= low) & (wave <= high)
    if mode.notch is not None and not mode.is_nfm:
        use &= (wave < mode.notch[0]) | (wave > mode.notch[1])
    return use


def solve_slice(
    spectra: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    images: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    catalogue: Catalogue,
    left: FloatArray,
    right: FloatArray,
    mode: Mode,
    params: SolutionParams,
) -> SliceSolution:
    """Find the wavelengths of a slice, each lamp on an image of its own.

    Parameters
    ----------
    spectra : sequence of (data, stat), ndarray of float32, shape (ny,)
        Along the middle of the slice, one for each image.
    images : sequence of (data, stat), ndarray of float32, shape (ny, nx)
    catalogue : Catalogue
    left, right : ndarray of float64
        Polynomials of the edges [pix].
    mode : Mode
    params : SolutionParams
    """
    result = SliceSolution()
    identified = []
    for k, (data, stat) in enumerate(spectra):
        detected = arclines.detect_lines(data, stat, params.sigma, k)
        result.detected += len(detected)
        own = (catalogue.image == k) & (catalogue.quality >= arclines.FOR_IDENTIFICATION)
        identified.append(
            arclines.identify(
                detected, catalogue.wave[own], catalogue.flux[own], dres=params.dres, tolerance=params.tolerance
            )
        )
    result.identified = Detections.join(identified)
    if len(result.identified) < params.yorder + 1:
        return result
    inverse, _, _ = iterfit(result.identified.wave, result.identified.centre, params.yorder, INVERSE_LIMIT)
    if not np.isfinite(inverse).all():
        return result
    result.measured = arclines.measure_lines(
        images, catalogue, inverse, left, right,
        xorder=params.xorder, linesigma=params.linesigma, weighting=params.weighting,
    )  # fmt: skip
    fit_solution(result, mode, params)
    return result


def fit_solution(result: SliceSolution, mode: Mode, params: SolutionParams) -> None:
    """Fit the measured positions of a slice."""
    m = result.measured
    assert m is not None
    result.used = useful(m.wave, mode)
    use = result.used
    coefficients, result.mse, result.iterations = fit_wavelengths(
        m.x[use], m.y[use], m.wave[use], None if params.weighting == "uniform" else m.error[use],
        params.xorder, params.yorder, params.fitsigma,
    )  # fmt: skip
    if np.isfinite(coefficients).all():
        result.coefficients = coefficients


def solve_slice_on_sum(
    spectrum: tuple[NDArray[np.float32], NDArray[np.float32]],
    image: tuple[NDArray[np.float32], NDArray[np.float32]],
    catalogue: Catalogue,
    left: FloatArray,
    right: FloatArray,
    mode: Mode,
    params: SolutionParams,
) -> SliceSolution:
    """Find the wavelengths of a slice on the sum of the images of all lamps.

    Of lines that cannot be told apart there, the reference gives all but the first ones up, and with them most of
    the range of wavelengths; here all are used that are identified.

    Parameters
    ----------
    spectrum, image : (data, stat)
    catalogue, left, right, mode, params
        As in `solve_slice`.
    """
    result = SliceSolution()
    detected = arclines.detect_lines(*spectrum, params.sigma)
    result.detected = len(detected)
    good = catalogue.quality >= arclines.FOR_IDENTIFICATION
    identified = arclines.identify(
        detected, catalogue.wave[good], catalogue.flux[good], dres=params.dres, tolerance=params.tolerance
    )
    result.identified = identified
    if len(identified) < params.yorder + 1:
        return result
    measured = arclines.measure_detections(
        *image, identified, left, right,
        xorder=params.xorder, linesigma=params.linesigma, weighting=params.weighting,
    )  # fmt: skip
    references = np.isin(identified.wave, catalogue.wave[catalogue.quality == arclines.FWHM_REFERENCE])
    inverse, _, _ = iterfit(identified.wave, identified.centre, params.yorder, INVERSE_LIMIT)
    if np.isfinite(inverse).all():
        slope = np.abs(np.polynomial.polynomial.polyval(identified.wave, np.polynomial.polynomial.polyder(inverse)))
        measured = replace(
            measured, fwhm=(identified.fwhm / slope)[references], fwhm_wave=identified.wave[references]
        )
    result.measured = measured
    fit_solution(result, mode, params)
    return result


# --- recipe ----------------------------------------------------------------------------------------

_QC = "ESO QC WAVECAL"
#: lamps in the headers, if they do not say how many
_LAMPS = 6
#: number by which quality control knows the image of all lamps
_ALL_LAMPS = 99
#: slice for which lines are counted by lamps, as in the reference
_LAMP_SLICE = 20
#: what is in the lamps
_LAMP_NAMES = {"LAMP3": "Ne", "LAMP6": "Ne", "LAMP4": "Xe", "LAMP5": "HgCd"}
#: row at which the middle of a slice is looked up, and its last one, where the reference has them [pix]
_MIDDLE, _LAST = 2056, 4112
#: distance of slices side by side in a resampled image [pix], and how far a pixel counts there [bins]
SLICE_PITCH = 82.2
_RADIUS = 1.25
#: difference of the wavelengths of the two edges of a slice that is told [Angstrom]
_LARGE_DIFFERENCE = {True: 6.5, False: 5.9}


def muse_wavecal(task: Task) -> Iterator[Made]:
    """Find the lines of the arc lamps of an IFU, and fit the wavelengths of every slice.

    Parameters
    ----------
    task : Task
        Of the recipe ``muse_wavecal``.

    Yields
    ------
    Made
        As far as they are asked for: ``ARC_RED_LAMP`` and ``ARC_RED`` [count], ``WAVECAL_TABLE``,
        ``WAVECAL_RESIDUALS``, ``ARC_RESAMPLED`` [count], ``WAVE_MAP`` [Angstrom].

    Raises
    ------
    InputError
        If a file is damaged or does not fit the others.
    RecipeError
        If no slice has a solution; images have been made then.
    """
    values = task.values
    params = SolutionParams.from_values(values)
    paths = {tag: task.path(tag) for tag in ("TRACE_TABLE", "LINE_CATALOG")}
    for tag, path in paths.items():
        if path is None:
            raise InputError(f"muse_wavecal: no {tag} found, expected one")
    traces = read_trace_table(paths["TRACE_TABLE"] or "", ifu=task.ifu)
    lines = read_line_catalog(paths["LINE_CATALOG"] or "")
    frames = task.tagged("ARC")
    groups = group_by_lamps(frames)
    several = len(groups) > 1
    sum_needed = not values["lampwise"] or values["resample"]
    images: list[MuseImage] = []
    counts: list[list[int]] = []
    plain: list[fits.Header] = []
    for group in groups:
        done = process(task, group.frames)
        plain.append(done.image.header.copy())
        _put_saturation(done.image, done.saturated if several else [])
        images.append(done.image)
        counts.append(done.saturated)
        if values["saveimages"] and (several or not sum_needed):
            yield Made("ARC_RED_LAMP", done.image, done.image.header, group.frames)
    total: MuseImage | None = None
    if sum_needed:
        total = combine_images(images, CombineParams("sum")) if several else images[0]
        if several:
            _put_saturation(total, counts[0])
            _put_lamp_saturation(total, counts)
        if values["saveimages"]:
            yield Made("ARC_RED", total, total.header, frames[:1])
    saturated = [(_ALL_LAMPS, _saturated(total))] if total is not None else []
    saturated += [(group.number, _saturated(image)) for group, image in zip(groups, images, strict=True)]

    mode = mode_from_name(str(plain[0].get("ESO INS MODE", "")))
    if values["lampwise"]:
        solutions = _solve(task, images, [g.lamp for g in groups], lines, traces, mode, params)
    else:
        assert total is not None
        solutions = _solve(task, [total], None, lines, traces, mode, params)
    shape = images[0].data.shape
    first_header = images[0].header
    # only a sum is needed from here on, if anything
    images.clear()
    solved = [k for k, s in enumerate(solutions) if s.coefficients is not None]
    if not solved:
        raise RecipeError(f"IFU {task.ifu}: no wavelength solution in any slice")
    coefficients = np.full((N_SLICES, params.xorder + 1, params.yorder + 1), np.nan)
    for k in solved:
        coefficients[k] = solutions[k].coefficients
    table = WavecalTable(coefficients, np.array([s.mse for s in solutions]))
    numbers = [g.number for g in groups] if values["lampwise"] else []
    quality = quality_cards(solutions, table, traces, numbers, mode)
    _summarize(task, solutions, quality)
    header = _with(plain[0], quality)
    for number, pixels in saturated:
        set_card(header, f"{_QC} NSATURATED LAMP{number}", pixels, "Number of saturated pixels in output data")
    yield Made("WAVECAL_TABLE", table, header)
    if values["residuals"]:
        yield Made("WAVECAL_RESIDUALS", residual_table(solutions), plain[0])
    if values["resample"] and total is not None:
        if len(solved) < N_SLICES:
            log.error("%d slices have no wavelength solution, there is no ARC_RESAMPLED", N_SLICES - len(solved))
        else:
            made, cards = resampled_image(total, traces, table)
            yield Made("ARC_RESAMPLED", made, _with(_without_overscan(plain[0]), cards), frames[:1])
    if values["wavemap"]:
        header = total.header if total is not None else _with(first_header, quality)
        header["BUNIT"] = "count"
        yield Made("WAVE_MAP", wave_map(traces, table, shape), header, frames[:1])


# --- lamps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LampGroup:
    """Exposures of the same lamps.

    Attributes
    ----------
    number : int
        Of the first lamp that was on, 0 if none was.
    lamp : str
        What is in it: Ne, Xe, HgCd, or its name.
    frames : tuple of Frame
    """

    number: int
    lamp: str
    frames: tuple[Frame, ...]


def group_by_lamps(frames: Sequence[Frame]) -> list[LampGroup]:
    """Sort exposures by the lamps that were on, in the order in which these come first.

    Raises
    ------
    InputError
        If a file cannot be read, or there is none.
    """
    groups: dict[tuple[Any, ...], tuple[int, str, list[Frame]]] = {}
    for frame in frames:
        header = read_primary(frame.path)
        key, number, lamp = [], 0, ""
        for i in range(1, int(header.get("ESO INS LAMPNUM", _LAMPS)) + 1):
            states = tuple(header.get(f"ESO INS {part}{i} ST") for part in ("LAMP", "SHUT"))
            if None in states:
                break
            key.append(tuple(map(bool, states)))
            if all(states) and not number:
                number = i
                lamp = str(header.get(f"ESO INS LAMP{i} NAME", "")).removeprefix("CU-").removeprefix("LAMP-")
        groups.setdefault(tuple(key), (number, _LAMP_NAMES.get(lamp, lamp), []))[2].append(frame)
    if not groups:
        raise InputError("muse_wavecal: no ARC found, expected at least one")
    return [LampGroup(number, lamp, tuple(members)) for number, lamp, members in groups.values()]


def catalogue_of(lines: LineCatalog, lamps: Sequence[str] | None) -> Catalogue:
    """Lines with the images on which they are measured.

    Lines of a lamp of which there is no image are measured on the last one all the same, as in the reference: most
    find no light and are rejected later.

    Parameters
    ----------
    lines : LineCatalog
    lamps : sequence of str or None
        Of the images; None if there is one of all.
    """
    lamp = lines.lamp
    if lamps is None:
        image = np.zeros(len(lamp), np.int64)
    else:
        place = {name: k for k, name in reversed(list(enumerate(lamps)))}
        image = np.array([place.get(name, -1) for name in lamp.tolist()], np.int64)
    return Catalogue(lines.wave, lines.flux, lines.quality, lamp, image)


def _solve(
    task: Task,
    images: Sequence[MuseImage],
    lamps: Sequence[str] | None,
    lines: LineCatalog,
    traces: TraceTable,
    mode: Mode,
    params: SolutionParams,
) -> list[SliceSolution]:
    """Solutions of all slices; the slices are spread over threads."""
    catalogue = catalogue_of(lines, lamps)
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    qualities: list[NDArray[np.int32]] = []
    for image in images:
        assert image.stat is not None and image.dq is not None
        parts.append((image.data, image.stat))
        qualities.append(image.dq)

    edges = np.concatenate([traces.left, traces.right, traces.centre], axis=1)
    lost = set(np.flatnonzero(~np.isfinite(edges).all(axis=1)).tolist())
    if lost:
        log.warning("there is no trace of %d slices: %s", len(lost), _listed(lost))

    def one(k: int) -> SliceSolution:
        left, right, centre = (np.ascontiguousarray(c[k]) for c in (traces.left, traces.right, traces.centre))
        if k in lost:
            return SliceSolution()
        column = math.floor(float(arclines.polynomial(centre, float(_MIDDLE))) + 0.5)
        if not 2 <= column <= images[0].data.shape[1] - 2:
            log.warning("slice %d of IFU %s: its trace is outside the detector", k + 1, task.ifu)
            return SliceSolution()
        spectra = [
            arclines.centre_spectrum(data, dq, stat, column)
            for (data, stat), dq in zip(parts, qualities, strict=True)
        ]
        if lamps is None:
            result = solve_slice_on_sum(spectra[0], parts[0], catalogue, left, right, mode, params)
        else:
            result = solve_slice(spectra, parts, catalogue, left, right, mode, params)
        found = 0 if result.identified is None else len(result.identified)
        log.info("slice %d of IFU %s: %d of %d lines identified", k + 1, task.ifu, found, result.detected)
        if found < params.yorder + 1:
            log.warning(
                "slice %d of IFU %s: %d lines identified, expected at least %d",
                k + 1, task.ifu, found, params.yorder + 1,
            )  # fmt: skip
        elif result.coefficients is None:
            log.warning("slice %d of IFU %s: the fit of the wavelengths failed", k + 1, task.ifu)
        else:
            log.info(
                "slice %d of IFU %s: %d of %d positions fitted, rms %.4f Angstrom",
                k + 1, task.ifu, len(result.iterations[-1].rows), len(result.used), math.sqrt(result.mse),
            )  # fmt: skip
        return result

    if task.n_threads <= 1:
        return [one(k) for k in range(N_SLICES)]
    with ThreadPoolExecutor(task.n_threads) as pool:
        return list(pool.map(one, range(N_SLICES)))


def _listed(slices: Iterable[int]) -> str:
    """Numbers of slices from 1, given from 0, with ranges: ``1, 3-5``."""
    runs: list[list[int]] = []
    for number in sorted(k + 1 for k in slices):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


# --- quality control -------------------------------------------------------------------------------


def _saturated(image: MuseImage) -> int:
    assert image.dq is not None
    return int(np.count_nonzero(image.dq == DQ_SATURATED))


def _put_saturation(image: MuseImage, counts: Sequence[int]) -> None:
    for k, count in enumerate(counts, 1):
        text = "Number of saturated pixels in raw arc i in input list"
        set_card(image.header, f"{_QC} INPUT{k} NSATURATED", count, text)
    set_card(image.header, f"{_QC} NSATURATED", _saturated(image), "Number of saturated pixels in output data")


def _put_lamp_saturation(image: MuseImage, counts: Sequence[Sequence[int]]) -> None:
    for lamp, of_lamp in enumerate(counts, 1):
        for k, count in enumerate(of_lamp, 1):
            set_card(image.header, f"{_QC} LAMP{lamp} INPUT{k} NSATURATED", count, "")


def _with(header: fits.Header, cards: Sequence[tuple[str, Any, str]]) -> fits.Header:
    result = header.copy()
    append_cards(result, [list(card) for card in cards])
    return result


def _without_overscan(header: fits.Header) -> fits.Header:
    result = header.copy()
    remove_cards(result, r"ESO DRS MUSE OVSC")
    return result


def quality_cards(
    solutions: Sequence[SliceSolution],
    table: WavecalTable,
    traces: TraceTable,
    lamps: Sequence[int],
    mode: Mode,
) -> list[tuple[str, Any, str]]:
    """Quality control of the slices: keyword, value, comment.

    Parameters
    ----------
    solutions : sequence of SliceSolution
    table : WavecalTable
    traces : TraceTable
    lamps : sequence of int
        Numbers of the lamps of the images; empty if there was one image of all.
    mode : Mode
    """
    cards: list[tuple[str, Any, str]] = []

    def put(ccd_slice: int, name: str, value: float | int, comment: str) -> None:
        if isinstance(value, float):
            if not math.isfinite(value):
                return
            value = float32_card(value)
        cards.append((f"{_QC} SLICE{ccd_slice} {name}", value, comment))

    def spread(values: FloatArray) -> tuple[float, float, float, float]:
        if not len(values):
            return (math.nan,) * 4
        stdev = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return float(np.mean(values)), stdev, float(np.min(values)), float(np.max(values))

    for j, s in enumerate(solutions, 1):
        if s.identified is None:
            continue
        put(j, "LINES NDET", s.detected, "Number of detected arc lines in slice j")
        mean, stdev, low, high = spread(s.identified.peak)
        of = "of detected arc lines in slice j"
        put(j, "LINES PEAK MEAN", mean, f"[count] Mean peak count level above background {of}")
        put(j, "LINES PEAK STDEV", stdev, f"[count] Standard deviation of peak count level above background {of}")
        put(j, "LINES PEAK MIN", low, "[count] Peak count level above background of the faintest line in slice j")
        put(j, "LINES PEAK MAX", high, "[count] Peak count level above background of the brightest line in slice j")
        if j == _LAMP_SLICE:
            for number, k in sorted((number, k) for k, number in enumerate(lamps)):
                mean, stdev, _, high = spread(s.identified.peak[s.identified.lamp == k])
                of = f"of lines of lamp l above background {of}"
                put(j, f"LAMP{number} LINES PEAK MEAN", mean, f"[count] Mean peak count level {of}.")
                put(
                    j, f"LAMP{number} LINES PEAK STDEV", stdev,
                    f"[count] Standard deviation of peak count level {of}.",
                )  # fmt: skip
                put(
                    j, f"LAMP{number} LINES PEAK MAX", high,
                    "[count] Peak count level above background of the brightest line of lamp l in slice j.",
                )  # fmt: skip
                of = "of detected arc lines in slice j"
        put(j, "LINES NID", len(s.identified), "Number of identified arc lines in slice j")
        if s.measured is None:
            continue
        widths = s.measured.fwhm
        if len(widths):
            resolution = float(np.mean(s.measured.fwhm_wave / widths))
            put(j, "RESOL", resolution, "Mean spectral resolution R determined in slice j")
        for name, value, word in zip(
            ("MEAN", "STDEV", "MIN", "MAX"), spread(widths),
            ("Mean", "Standard deviation of", "Minimum", "Maximum"), strict=True,
        ):  # fmt: skip
            put(j, f"LINES FWHM {name}", value, f"{word} FWHM of detected arc lines in slice j")
        if s.coefficients is None:
            continue
        wave = s.measured.wave[s.used][s.iterations[-1].rows]
        put(j, "FIT NLINES", len(np.unique(wave)), "Number of arc lines used in calibration solution fit in slice j")
        for name, row in (("BOTTOM", 1.0), ("TOP", float(_LAST))):
            left, right = (float(v) for v in traces.edges(j, row))
            difference = float(table.wavelength(j, left, row) - table.wavelength(j, right, row))
            side = name.lower()
            put(
                j, f"DWLEN {name}", difference,
                f"[Angstrom] Difference in wavelength computed for the {side} left and {side} right corners of the "
                "slice on the CCD",
            )  # fmt: skip
            if abs(difference) > _LARGE_DIFFERENCE[not mode.name.endswith("-E")]:
                log.warning("slice %d: wavelengths at its %s differ by %.3f Angstrom", j, side, difference)
        row = 0.5 * (1 + _LAST)
        middle = float(arclines.polynomial(traces.centre[j - 1], row))
        put(j, "WLPOS", row, "[pix] Position of wavelength given in WLEN in slice j")
        put(j, "WLEN", float(table.wavelength(j, middle, row)), "[Angstrom] Wavelength associated to WLPOS in slice j")
        put(j, "FIT RMS", math.sqrt(s.mse), "[Angstrom] RMS of the wavelength calibration fit in slice j")
    return cards


def _summarize(
    task: Task, solutions: Sequence[SliceSolution], quality: Sequence[tuple[str, Any, str]]
) -> None:
    """Tell how it went."""
    solved = [s for s in solutions if s.coefficients is not None and s.identified is not None]
    rms = [math.sqrt(s.mse) for s in solved]
    resolution = [value for keyword, value, _ in quality if keyword.endswith(" RESOL")]
    log.info(
        "IFU %s: %d of %d slices solved; %d to %d lines detected, %d to %d identified; "
        "rms %.4f (%.4f to %.4f) Angstrom; mean resolution %.0f",
        task.ifu, len(solved), len(solutions), min(s.detected for s in solved), max(s.detected for s in solved),
        min(len(s.identified or ()) for s in solved), max(len(s.identified or ()) for s in solved),
        float(np.mean(rms)), min(rms), max(rms), float(np.mean(resolution)) if resolution else math.nan,
    )  # fmt: skip


# --- products --------------------------------------------------------------------------------------


def residual_table(solutions: Sequence[SliceSolution]) -> WavecalResiduals:
    """Residuals of all slices in all iterations."""
    parts: list[tuple[Any, ...]] = []
    for j, s in enumerate(solutions, 1):
        if s.measured is None:
            continue
        used = np.flatnonzero(s.used)
        for k, it in enumerate(s.iterations, 1):
            rows = used[it.rows]
            n = len(rows)
            parts.append(
                (
                    np.full(n, j), np.full(n, k), s.measured.x[rows], s.measured.y[rows], s.measured.wave[rows],
                    it.residual, np.full(n, it.limit),
                )
            )  # fmt: skip
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 7
    types = (np.uint8, np.int32, np.int32, np.float64, np.float64, np.float64, np.float64)
    return WavecalResiduals(*(c.astype(t) for c, t in zip(columns, types, strict=True)))


def wave_map(traces: TraceTable, table: WavecalTable, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Wavelength of each pixel.

    Parameters
    ----------
    traces : TraceTable
    table : WavecalTable
    shape : tuple of int
        Of the image.

    Returns
    -------
    ndarray of float32 [Angstrom]
        0 between the slices, and in those without a solution.
    """
    image = np.zeros(shape, np.float32)
    for k in range(N_SLICES):
        left, right, wave = (np.ascontiguousarray(c[k]) for c in (traces.left, traces.right, table.coefficients))
        if all(np.isfinite(p).all() for p in (left, right, wave)):
            _map_slice(left, right, wave, image)
    return image


@njit(nogil=True, cache=True)
def _row_of_slice(left, right, wave, y, row):  # type: ignore[no-untyped-def]
    """Edges of a slice in a row; the polynomial of wavelengths as a function of x there goes to `row`."""
    for i in range(row.size):
        row[i] = arclines.polynomial(wave[i], y)
    return arclines.polynomial(left, y), arclines.polynomial(right, y)


@njit(nogil=True, cache=True)
def _map_slice(left, right, wave, image):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    row = np.empty(wave.shape[0])
    for y in range(1, ny + 1):
        low, high = _row_of_slice(left, right, wave, y, row)
        if low < 1.0 or high > nx or not low <= high:
            break
        for x in range(math.ceil(low), math.floor(high) + 1):
            image[y - 1, x - 1] = arclines.polynomial(row, x)


def resampled_image(
    image: MuseImage, traces: TraceTable, table: WavecalTable
) -> tuple[NDArray[np.float32], list[tuple[str, Any, str]]]:
    """Image with lines of one wavelength along rows, the slices side by side.

    Good pixels are weighted by the method of Renka along wavelengths, in bins of 1.25 Angstrom.

    Parameters
    ----------
    image : MuseImage
    traces : TraceTable
    table : WavecalTable
        With solutions of all slices.

    Returns
    -------
    image : ndarray of float32
        0 where there are no data.
    cards : list of (str, value, str)
        World coordinates and unit.
    """
    assert image.dq is not None
    left, right, wave = (np.ascontiguousarray(c) for c in (traces.left, traces.right, table.coefficients))
    offsets = [(k + 0.5) * SLICE_PITCH for k in range(N_SLICES)]
    limits = np.array([math.inf, -math.inf, math.inf, -math.inf])
    for k, offset in enumerate(offsets):
        _slice_limits(left[k], right[k], wave[k], offset, image.data.shape, limits)
    x0, wave0 = limits[0], limits[2]
    nx, ny = int(limits[1] - x0) + 2, int((limits[3] - wave0) / SPECTRAL_SAMPLING) + 2
    out = np.zeros((ny, nx), np.float32)
    for k, offset in enumerate(offsets):
        _resample_slice(left[k], right[k], wave[k], offset, image.data, image.dq, x0, wave0, out)
    cards: list[tuple[str, Any, str]] = [
        ("CRPIX1", 1.0, ""), ("CRPIX2", 1.0, ""), ("CRVAL1", 1.0, ""), ("CRVAL2", float(wave0), ""),
        ("CD1_1", 1.0, ""), ("CD2_2", SPECTRAL_SAMPLING, ""), ("CUNIT1", "pixel", ""), ("CUNIT2", "Angstrom", ""),
        ("CTYPE1", "PIXEL", ""), ("CTYPE2", "AWAV", ""), ("CD1_2", 0.0, ""), ("CD2_1", 0.0, ""),
        ("BUNIT", image.unit, ""),
    ]  # fmt: skip
    return out, cards


@njit(nogil=True, cache=True)
def _place(x, low, high, offset):  # type: ignore[no-untyped-def]
    """Horizontal position of a pixel among slices side by side; the sky is reversed."""
    return np.float32((0.5 * (low + high) - x) / (high - low) * SLICE_WIDTH + offset)


@njit(nogil=True, cache=True)
def _slice_limits(left, right, wave, offset, shape, limits):  # type: ignore[no-untyped-def]
    """Widen limits (least and largest position and wavelength) by the pixels of a slice."""
    row = np.empty(wave.shape[0])
    for y in range(1, shape[0] + 1):
        low, high = _row_of_slice(left, right, wave, y, row)
        if low < 1.0 or high > shape[1] or not low <= high:
            break
        for x in range(math.ceil(low), math.floor(high) + 1):
            place, value = _place(x, low, high, offset), np.float32(arclines.polynomial(row, x))
            limits[0], limits[1] = min(limits[0], place), max(limits[1], place)
            limits[2], limits[3] = min(limits[2], value), max(limits[3], value)


@njit(nogil=True, cache=True)
def _resample_slice(left, right, wave, offset, data, dq, x0, wave0, out):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    row = np.empty(wave.shape[0])
    # columns of the slice in the result
    base = max(int(offset - 0.5 * SLICE_WIDTH - x0) - 1, 0)
    width = min(int(SLICE_WIDTH) + 4, out.shape[1] - base)
    sums, weights = np.zeros((2, out.shape[0], width))
    for y in range(1, ny + 1):
        low, high = _row_of_slice(left, right, wave, y, row)
        if low < 1.0 or high > nx or not low <= high:
            break
        for x in range(math.ceil(low), math.floor(high) + 1):
            if dq[y - 1, x - 1] != 0:
                continue
            column = math.floor(np.float64(_place(x, low, high, offset)) - x0 + 0.5) - base
            if not 0 <= column < width:
                continue
            place = (np.float64(np.float32(arclines.polynomial(row, x))) - wave0) / SPECTRAL_SAMPLING
            nearest = math.floor(place + 0.5)
            for j in range(max(nearest - 1, 0), min(nearest + 2, out.shape[0])):
                distance = max(abs(place - j), 1e-10)
                if distance < _RADIUS:
                    weight = ((_RADIUS - distance) / (_RADIUS * distance)) ** 2
                    sums[j, column] += weight * data[y - 1, x - 1]
                    weights[j, column] += weight
    for j in range(out.shape[0]):
        for i in range(width):
            if weights[j, i] > 0.0:
                out[j, base + i] = sums[j, i] / weights[j, i]
