"""From light to the expected rate of electrons in every pixel of a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..instrument import N_SLICES
from .optics import LSF_RANGE, LSF_STEP, NX, NY, REFERENCE_TEMPERATURE, IfuOptics, Light, poly5, wave_row

#: columns beyond the edges of a slice that still get light
_MARGIN = 3
#: rows beyond the ends of the detector from which light of the line spread function comes
_PAD = 9
#: softness of the edges of a slice [pixels], standard deviation of a Gaussian
EDGE_SIGMA = 0.5
#: rows that share a kernel of the convolution
_BLOCK = 64


def render(
    optics: IfuOptics,
    light: Light,
    *,
    temperature: float = REFERENCE_TEMPERATURE,
    oversampling: int = 3,
    slices: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Expected rate of photo-electrons in every pixel of an IFU.

    Parameters
    ----------
    optics : IfuOptics
    light : Light
    temperature : float
        Of the instrument [deg C].
    oversampling : int
        Points per pixel along the spectrum at which a continuum that is not smooth is evaluated.
    slices : sequence of int, optional
        CCD slices 1..48 that get light; default: all.

    Returns
    -------
    ndarray of float32, shape (4112, 4096)
        [e-/s], trimmed image; nothing between the slices.

    Raises
    ------
    InputError
        If a slice or the oversampling makes no sense.

    Notes
    -----
    A pixel gets ``eta w/(R - L) e(x)`` times the integral over its wavelengths of the light convolved with
    the line spread function; `eta` is the throughput of slice and field, `w` the width of the slice on the
    sky, `e` the box between the edges L and R convolved with a Gaussian and integrated over the pixel.
    Light beyond `LSF_RANGE` of a line is not drawn but its sum is right.
    """
    numbers = range(1, N_SLICES + 1) if slices is None else sorted({int(s) for s in slices})
    if any(not 1 <= s <= N_SLICES for s in numbers):
        raise InputError(f"slices: {list(numbers)} found, expected numbers 1..{N_SLICES}")
    if oversampling < 1:
        raise InputError(f"oversampling: {oversampling} found, expected at least 1")
    image = np.zeros((NY, NX), np.float32)
    waves = np.ascontiguousarray(light.line_waves, np.float64)
    rates = np.ascontiguousarray(light.line_rates, np.float64)
    for s in numbers:
        _render_slice(optics, s, light, waves, rates, temperature, oversampling, image)
    return image


def _render_slice(
    optics: IfuOptics,
    s: int,
    light: Light,
    line_waves: NDArray[np.float64],
    line_rates: NDArray[np.float64],
    temperature: float,
    oversampling: int,
    image: NDArray[np.float32],
) -> None:
    left, right, wave = optics.left[s - 1], optics.right[s - 1], optics.wave[s - 1].ravel()
    y = np.arange(1, NY + 1)
    low, high = optics.edges(s, y)
    x0 = max(1, math.floor(low.min()) - _MARGIN)
    n = min(NX, math.ceil(high.max()) + _MARGIN) - x0 + 1
    a = math.radians(optics.angle[s - 1])
    place = np.array([optics.x[s - 1], optics.y[s - 1], math.cos(a), math.sin(a), optics.width[s - 1]])

    gain = np.empty((NY, n), np.float32)
    profile = optics._profile[s - 1]
    _gains(left, right, place[4], profile, x0, gain)
    edge_waves = np.empty((NY + 1, n), np.float64)
    _waves(wave, 0.5, 1.0, x0, edge_waves)
    part = np.zeros((NY, n), np.float32)
    spectrum = _throughput_table(optics, s, temperature)

    pad = 0 if light.smooth else _PAD
    xs, ys = (np.empty((NY + 2 * pad, n), np.float32) for _ in range(2))
    _positions(left, right, place, x0, 1 - pad, xs, ys)
    if optics.instrument.is_vignetted(xs[:1], ys[:1]):
        gain *= optics.instrument.vignetting(xs[pad : pad + NY], ys[pad : pad + NY])
    if light.smooth:
        centres = np.empty((NY, n), np.float32)
        _waves(wave, 1.0, 1.0, x0, centres)
        values = np.broadcast_to(np.asarray(light.continuum(xs, ys, centres), np.float32), centres.shape)
        _add_smooth(values, centres, edge_waves, spectrum, part)
    else:
        fine = np.empty((oversampling, NY + 2 * pad, n), np.float32)
        for k in range(oversampling):
            _waves(wave, 1.0 - pad + (k + 0.5) / oversampling - 0.5, 1.0, x0, fine[k])
        values = np.broadcast_to(np.asarray(light.continuum(xs, ys, fine), np.float32), fine.shape)
        _add_convolved(values, fine, wave, left, right, *optics.lsf_table(s), spectrum, pad, part)
    if line_waves.size:
        middle, _ = optics.middle(s)
        rows = optics.row(s, middle, line_waves)
        keep = (rows > -_PAD - 8) & (rows < NY + _PAD + 8)
        if keep.any():
            chosen, rows = line_waves[keep], rows[keep]
            index = np.clip(np.rint(rows).astype(np.int64) - 1, 0, NY - 1) + pad
            chosen32 = chosen[:, None].astype(np.float32)
            factor = np.asarray(light.line_factor(xs[index], ys[index], chosen32), np.float64)
            factor = factor * (line_rates[keep] * optics.throughput(s, chosen, temperature))[:, None]
            factor = np.ascontiguousarray(np.broadcast_to(factor, (len(chosen), n)))
            _add_lines(chosen, factor, edge_waves, *optics.lsf_table(s), part)
    _add(part, gain, x0, image)


def _throughput_table(optics: IfuOptics, s: int, temperature: float) -> NDArray[np.float64]:
    """Coefficients of the throughput in ``(wave - 7000)/2350``."""
    values = optics.throughput(s, np.array([4650.0, 7000.0, 9350.0]), temperature)
    return np.array([values[1], (values[2] - values[0]) / 2, (values[2] + values[0]) / 2 - values[1]])


@nb.njit(nogil=True, cache=True)
def _soft(t):  # type: ignore[no-untyped-def]
    """Integral of the normal distribution's integral: an edge integrated over pixels is a difference of it."""
    z = t / EDGE_SIGMA
    return EDGE_SIGMA * (
        z * 0.5 * (1.0 + math.erf(z * 0.7071067811865476)) + 0.3989422804014327 * math.exp(-0.5 * z * z)
    )


@nb.njit(nogil=True, cache=True)
def _gains(left, right, width, profile, x0, gain):  # type: ignore[no-untyped-def]
    """Spaxels per pixel, with the soft edges and the throughput along the slice."""
    for i in range(gain.shape[0]):
        y = i + 1.0
        low, high = poly5(left, 0, y), poly5(right, 0, y)
        scale = width / (high - low)
        for k in range(gain.shape[1]):
            x = x0 + k
            a = _soft(x + 0.5 - low) - _soft(x - 0.5 - low) if x - low < 5 else 1.0
            b = _soft(high - x + 0.5) - _soft(high - x - 0.5) if high - x < 5 else 1.0
            f = (2.0 * x - low - high) / (high - low)
            gain[i, k] = max(0.0, a + b - 1.0) * scale * (profile[0] + f * (profile[1] + f * profile[2]))


@nb.njit(nogil=True, cache=True)
def _waves(wave, y0, step, x0, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        a, b, d = wave_row(wave, 0, y0 + i * step)
        for k in range(out.shape[1]):
            x = x0 + k
            out[i, k] = a + x * (b + x * d)


@nb.njit(nogil=True, cache=True)
def _positions(left, right, place, x0, y0, xs, ys):  # type: ignore[no-untyped-def]
    for i in range(xs.shape[0]):
        y = float(y0 + i)
        low, high = poly5(left, 0, y), poly5(right, 0, y)
        for k in range(xs.shape[1]):
            d = (0.5 * (low + high) - (x0 + k)) / (high - low) * place[4]
            xs[i, k] = d * place[2] + place[0]
            ys[i, k] = d * place[3] + place[1]


@nb.njit(nogil=True, cache=True, inline="always")
def _eta(spectrum, wave):  # type: ignore[no-untyped-def]
    t = (wave - 7000.0) / 2350.0
    return spectrum[0] + t * (spectrum[1] + t * spectrum[2])


@nb.njit(nogil=True, cache=True)
def _add_smooth(values, centres, edges, spectrum, part):  # type: ignore[no-untyped-def]
    for i in range(part.shape[0]):
        for k in range(part.shape[1]):
            step = edges[i + 1, k] - edges[i, k]
            part[i, k] += values[i, k] * _eta(spectrum, centres[i, k]) * step


@nb.njit(nogil=True, cache=True)
def _blend(waves, table, wave, row):  # type: ignore[no-untyped-def]
    """Row of the table for a wavelength, linear between its neighbours."""
    m = waves.size
    t = (wave - waves[0]) / (waves[1] - waves[0])
    i = min(max(int(t), 0), m - 2)
    f = min(max(t - i, 0.0), 1.0)
    for k in range(row.size):
        row[k] = (1.0 - f) * table[i, k] + f * table[i + 1, k]


@nb.njit(nogil=True, cache=True, inline="always")
def _integral(row, d):  # type: ignore[no-untyped-def]
    t = (d + LSF_RANGE) / LSF_STEP
    if t <= 0.0:
        return 0.0
    if t >= row.size - 1:
        return 1.0
    k = int(t)
    f = t - k
    return row[k] + f * (row[k + 1] - row[k])


@nb.njit(nogil=True, cache=True)
def _add_convolved(values, fine, wave, left, right, lsf_waves, table, spectrum, pad, part):  # type: ignore[no-untyped-def]
    """Convolve a continuum, given `over` points per pixel, with the line spread function of the rows."""
    over, rows, n = values.shape
    ny = part.shape[0]
    row = np.empty(table.shape[1])
    kernel = np.empty((over, 2 * pad + 1))
    # light per sub-pixel: density x throughput x width in wavelength
    light = np.empty((over, rows, n), np.float32)
    for i in range(rows):
        y = float(i + 1 - pad)
        _, b0, d0 = wave_row(wave, 0, y - 0.5)
        a0, _, _ = wave_row(wave, 0, y - 0.5)
        a1, b1, d1 = wave_row(wave, 0, y + 0.5)
        x = 0.5 * (poly5(left, 0, y) + poly5(right, 0, y))
        step = ((a1 - a0) + x * ((b1 - b0) + x * (d1 - d0))) / over
        for j in range(over):
            for k in range(n):
                light[j, i, k] = values[j, i, k] * (_eta(spectrum, fine[j, i, k]) * step)
    for start in range(0, ny, _BLOCK):
        stop = min(start + _BLOCK, ny)
        y = 0.5 * (start + stop + 1)
        x = 0.5 * (poly5(left, 0, y) + poly5(right, 0, y))
        a0, b0, d0 = wave_row(wave, 0, y - 0.5)
        a1, b1, d1 = wave_row(wave, 0, y + 0.5)
        low, high = a0 + x * (b0 + x * d0), a1 + x * (b1 + x * d1)
        step = high - low
        _blend(lsf_waves, table, 0.5 * (low + high), row)
        total = 0.0
        for j in range(over):
            for m in range(-pad, pad + 1):
                # distance of the pixel's lower edge from the point in row y + m
                d = step * (-0.5 - m - ((j + 0.5) / over - 0.5))
                kernel[j, m + pad] = _integral(row, d + step) - _integral(row, d)
                total += kernel[j, m + pad]
        for j in range(over):
            for m in range(2 * pad + 1):
                weight = np.float32(kernel[j, m] * over / total)
                if weight == 0.0:
                    continue
                for i in range(start, stop):
                    for k in range(n):
                        part[i, k] += weight * light[j, i + m, k]


@nb.njit(nogil=True, cache=True)
def _add_lines(waves, factor, edges, lsf_waves, table, part):  # type: ignore[no-untyped-def]
    ny, n = part.shape
    row = np.empty(table.shape[1])
    before = np.empty(n)
    for i in range(waves.size):
        wave = waves[i]
        # the last row whose lower edge is below the line in all columns: bisection, then the smile
        first, last = ny, 0
        for k in (0, n // 2, n - 1):
            low, high = 0, ny
            while high - low > 1:
                mid = (low + high) // 2
                if edges[mid, k] <= wave - LSF_RANGE:
                    low = mid
                else:
                    high = mid
            first = min(first, low)
            while high < ny and edges[high, k] < wave + LSF_RANGE:
                high += 1
            last = max(last, high)
        first, last = max(0, first - 1), min(ny, last + 1)
        if edges[first, n // 2] > wave + LSF_RANGE or edges[last, n // 2] < wave - LSF_RANGE:
            continue
        _blend(lsf_waves, table, wave, row)
        for k in range(n):
            before[k] = _integral(row, edges[first, k] - wave)
        for y in range(first, last):
            for k in range(n):
                value = _integral(row, edges[y + 1, k] - wave)
                part[y, k] += factor[i, k] * (value - before[k])
                before[k] = value


@nb.njit(nogil=True, cache=True)
def _add(part, gain, x0, image):  # type: ignore[no-untyped-def]
    for i in range(part.shape[0]):
        for k in range(part.shape[1]):
            image[i, x0 - 1 + k] += part[i, k] * gain[i, k]
