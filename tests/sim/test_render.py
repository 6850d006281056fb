"""Light on the detector: no photon is lost, lines and edges are where the truth says."""

from __future__ import annotations

import numpy as np
import pytest

from musedask.errors import InputError
from musedask.sim.optics import NX, NY, Instrument
from musedask.sim.render import render


class Lamp:
    """Lines and a constant continuum; remembers what it was asked."""

    def __init__(self, waves=(), rate=100.0, continuum=0.0, smooth=True, tilt=0.0):
        self.line_waves = np.array(waves, float)
        self.line_rates = np.full(len(waves), float(rate))
        self.smooth, self._continuum, self._tilt = smooth, continuum, tilt
        self.asked = []

    def line_factor(self, x, y, wave):
        self.asked.append(("line", x.shape, y.shape, wave.shape))
        assert x.dtype == y.dtype == wave.dtype == np.float32
        return 1 + self._tilt * x

    def continuum(self, x, y, wave):
        self.asked.append(("continuum", x.shape, y.shape, wave.shape))
        assert x.dtype == y.dtype == wave.dtype == np.float32
        value = self._continuum
        return (value(wave) if callable(value) else value) * (1 + self._tilt * x)


@pytest.fixture(scope="module")
def o():
    return Instrument().ifu(12)


def mean_profile(o, s):
    """Of the throughput along a slice."""
    fraction = np.linspace(-1, 1, 2001)
    return o.slice_profile(s, fraction).mean()


def strip(o, s, image):
    """Columns of a slice and its gaps, and the number of the first."""
    left, right = o.edges(s, np.arange(1, NY + 1))
    first, last = int(left.min()) - 3, int(right.max()) + 4
    return image[:, first - 1 : last].astype(float), first


def test_sum_of_a_line(o):
    """All electrons of a line arrive, also those of lines whose places lie between pixels."""
    waves = [4801.3, 5577.34, 7000.0, 9299.9]
    for s in (1, 24, 48):
        for wave in waves:
            image = render(o, Lamp([wave]), slices=[s])
            expected = 100 * o.width[s - 1] * o.throughput(s, wave) * mean_profile(o, s)
            assert image.sum(dtype=float) == pytest.approx(expected, rel=1e-3)


def test_line_is_at_its_wavelength(o):
    """First moment in each column, which the line spread function puts at 0.008 Angstrom."""
    s, wave = 30, 6300.304
    image, first = strip(o, s, render(o, Lamp([wave]), slices=[s]))
    x = first + np.arange(image.shape[1])
    inside = image.sum(axis=0) > 0.5 * image.sum(axis=0).max()
    y = np.arange(1, NY + 1)[:, None]
    lines = o.wavelength(s, x, y)
    centre = (image * lines).sum(axis=0)[inside] / image.sum(axis=0)[inside]
    assert centre == pytest.approx(np.full(inside.sum(), wave + 0.008), abs=1e-3)


def test_line_has_the_line_spread_function(o):
    s, wave = 12, 8000.0
    image, first = strip(o, s, render(o, Lamp([wave]), slices=[s]))
    column = image.shape[1] // 2
    y = np.arange(1, NY + 1)
    low, high = (o.wavelength(s, first + column, y + d) - wave for d in (-0.5, 0.5))
    expected = o.lsf_integral(s, wave, high) - o.lsf_integral(s, wave, low)
    np.testing.assert_allclose(image[:, column] / image[:, column].sum(), expected, atol=2e-5)


def test_smooth_continuum(o):
    s = 5
    image, first = strip(o, s, render(o, Lamp(continuum=20.0), slices=[s]))
    for y in (1, 2000, 4112):
        left, right = o.edges(s, float(y))
        step = o.wavelength(s, (left + right) / 2, y + 0.5) - o.wavelength(s, (left + right) / 2, y - 0.5)
        wave = o.wavelength(s, (left + right) / 2, y)
        expected = 20 * step * o.width[s - 1] * o.throughput(s, wave) * mean_profile(o, s)
        assert image[y - 1].sum() == pytest.approx(expected, rel=2e-4)
        # the light to the left of the middle of the pixels is that from the edge on: the edge is where it should be
        middle = round(float(left + right) / 2) - first
        x = first + np.arange(image.shape[1])
        flat = image[y - 1] / o.slice_profile(s, (2 * x - left - right) / (right - left))
        flat /= flat[middle - 20 : middle + 20].mean()
        assert flat[:middle].sum() == pytest.approx(first + middle - 0.5 - left, abs=5e-3)
        assert flat[middle:].sum() == pytest.approx(right - (first + middle - 0.5), abs=5e-3)


def test_convolution_leaves_a_smooth_continuum(o):
    def spectrum(wave):
        return 10 + 3 * np.sin(wave / 200)

    smooth, _ = strip(o, 20, render(o, Lamp(continuum=spectrum), slices=[20]))
    for oversampling in (1, 2, 3):
        lamp = Lamp(continuum=spectrum, smooth=False)
        image, _ = strip(o, 20, render(o, lamp, slices=[20], oversampling=oversampling))
        np.testing.assert_allclose(image, smooth, rtol=1e-3, atol=1e-3)
        (_, x, y, wave) = lamp.asked[0]
        assert wave == (oversampling, *x) and x == y


def test_convolution_is_that_of_lines(o):
    """A narrow line as continuum ends as a line does."""
    s, wave, sigma = 33, 7321.4, 0.4

    def spectrum(w):
        return 100 / (sigma * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((w.astype(float) - wave) / sigma) ** 2)

    image, first = strip(o, s, render(o, Lamp(continuum=spectrum, smooth=False), slices=[s]))
    line, _ = strip(o, s, render(o, Lamp([wave]), slices=[s]))
    assert image.sum() == pytest.approx(line.sum(), rel=1e-3)
    y = np.arange(1, NY + 1)[:, None]
    waves = o.wavelength(s, first + np.arange(image.shape[1]), y)
    moments = [
        [(v * waves).sum() / v.sum(), (v * (waves - wave) ** 2).sum() / v.sum()] for v in (image, line)
    ]
    assert moments[0][0] == pytest.approx(moments[1][0], abs=2e-3)
    assert moments[0][1] - moments[1][1] == pytest.approx(sigma**2, abs=0.02)


def test_place_on_the_sky(o):
    """Light that varies over the field falls on the pixels that look there."""
    s = 8
    even, first = strip(o, s, render(o, Lamp([7000.0], continuum=5.0), slices=[s]))
    tilted, _ = strip(o, s, render(o, Lamp([7000.0], continuum=5.0, tilt=1e-3), slices=[s]))
    bright = even > 0.3 * np.median(even[even > 0])
    y, k = np.nonzero(bright)
    x, _ = o.position(s, k + first, y + 1)
    # a line is broad: its factor is that of the row of its centre
    np.testing.assert_allclose(tilted[bright] / even[bright], 1 + 1e-3 * x, rtol=1e-4)


def test_subset_of_slices(o):
    lamp = Lamp([5000.0, 8000.0], continuum=2.0)
    whole = render(o, lamp)
    assert whole.shape == (NY, NX) and whole.dtype == np.float32
    assert np.isfinite(whole).all() and whole.min() >= 0
    part = render(o, lamp, slices=(3, 40))
    assert part.tobytes() == render(o, lamp, slices=(40, 3)).tobytes()
    for s in (3, 40):
        left, right = o.edges(s, np.arange(1, NY + 1))
        inside = np.s_[:, int(left.max()) : int(right.min())]
        np.testing.assert_array_equal(part[inside], whole[inside])
    assert (part[:, 400:3000] == 0).all()
    # dark between slices, 3 pixels from their edges
    y = np.arange(1, NY + 1)
    dark = np.rint((o.edges(10, y)[1] + o.edges(11, y)[0]) / 2).astype(int)
    assert whole[y - 1, dark - 1].max() < 1e-3 * np.median(whole[whole > 0])


def test_temperature_and_vignetting():
    o = Instrument().ifu(1)
    lamp = Lamp(continuum=5.0)
    cold, warm = (render(o, lamp, slices=[44], temperature=t).sum(dtype=float) for t in (10.0, 16.0))
    assert warm / cold == pytest.approx(o.throughput(44, 7000.0, 16.0) / o.throughput(44, 7000.0), rel=1e-4)
    clear = render(Instrument(vignetted=False).ifu(1), lamp, slices=[44])
    dark = render(o, lamp, slices=[44])
    left, right = (int(v) for v in o.edges(44, 2000.0))
    ratio = dark[1999, left + 1 : right - 1] / clear[1999, left + 1 : right - 1]
    x, y = o.position(44, np.arange(left + 2, right), 2000.0)
    np.testing.assert_allclose(ratio, o.instrument.vignetting(x, y), rtol=1e-5)
    assert ratio[0] < 0.9 and ratio[-1] == 1


def test_lines_outside_the_detector(o):
    """Lines beyond the ends of the spectrum do no harm; one at the end leaves a part of its light."""
    s = 20
    top = float(o.wavelength(s, o.middle(s)[0], NY + 0.5))
    total = render(o, Lamp([7000.0]), slices=[s]).sum(dtype=float)
    assert render(o, Lamp([3000.0, 12000.0, top + 14]), slices=[s]).sum(dtype=float) == 0
    assert render(o, Lamp([top]), slices=[s]).sum(dtype=float) == pytest.approx(total / 2, rel=0.15)


def test_errors(o):
    with pytest.raises(InputError, match="slices"):
        render(o, Lamp(), slices=[0])
    with pytest.raises(InputError, match="oversampling"):
        render(o, Lamp(), oversampling=0)
