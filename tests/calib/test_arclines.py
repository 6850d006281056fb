"""Arc lines on synthetic spectra: what is there is found, named and measured, what is not is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musedask.calib import arclines
from musedask.calib.arclines import Catalogue, Detections, match_pattern

#: dispersion of the synthetic spectra [Angstrom/pix]
STEP = 1.25
START = 4700.0


def position(wave):
    """Where a line is [pix]; the dispersion changes a little, as in the instrument."""
    y = (np.asarray(wave) - START) / STEP
    return y + 1e-6 * y * (y - 4000)


def spectrum(waves, fluxes, n=4000, *, seed=1, sigma=0.95, noise=2.0):
    """Data and variance of a spectrum of lines."""
    y = np.arange(1, n + 1.0)
    data = np.zeros(n)
    for wave, flux in zip(waves, fluxes, strict=True):
        data += flux / (sigma * math.sqrt(2 * math.pi)) * np.exp(-0.5 * ((y - position(wave)) / sigma) ** 2)
    stat = data + noise**2
    data = data + np.sqrt(stat) * np.random.default_rng(seed).normal(size=n)
    return data.astype(np.float32), stat.astype(np.float32)


def lines_at_random(n=40, seed=3, closest=12.0):
    rng = np.random.default_rng(seed)
    waves = np.sort(rng.uniform(START + 60, START + STEP * 4000 - 300, 4 * n))
    keep = np.r_[True, np.diff(waves) > closest]
    waves = waves[keep][:n]
    return waves, rng.choice([800.0, 3e3, 2e4], len(waves))


# --- detection -------------------------------------------------------------------------------------


def test_lines_are_detected_where_they_are():
    waves, fluxes = lines_at_random()
    data, stat = spectrum(waves, fluxes)
    found = arclines.detect_lines(data, stat, 5.0, lamp=3)
    assert len(found) == len(waves)
    assert np.all(found.lamp == 3) and np.isnan(found.wave).all()
    errors = (found.centre - position(waves)) / found.error
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(1.0, abs=0.35)
    assert found.fwhm == pytest.approx(0.95 * arclines.FWHM_PER_SIGMA, rel=0.2)
    assert found.flux == pytest.approx(fluxes, rel=0.2)
    assert np.all(np.abs(found.position - found.centre) < 3)
    assert np.all(found.peak <= data.max())


def test_what_is_no_line_is_left_out():
    data, stat = spectrum([], [])
    # a single hot pixel, a spike of two, a broad hump, a faint line
    data[500] += 5000
    data[900:902] += 5000
    y = np.arange(1, 4001)
    data += (3000 * np.exp(-0.5 * ((y - 1500) / 6.0) ** 2)).astype(np.float32)
    data += (40 / 2.38 * np.exp(-0.5 * ((y - 2000) / 0.95) ** 2)).astype(np.float32)
    found = arclines.detect_lines(data, stat, 8.0)
    assert not np.any(np.abs(found.centre - 501) < 2)
    assert not np.any(np.abs(found.centre - 1500) < 10)
    assert not np.any(np.abs(found.centre - 2000) < 3)


def test_running_median():
    values = np.random.default_rng(4).normal(size=200).astype(np.float32)
    values[50:60] = values[50]
    for window in (1, 5, 51):
        half = window // 2
        expected = [np.median(values[max(0, i - half) : i + half + 1].astype(float)) for i in range(200)]
        assert np.array_equal(arclines.running_median(values, window), expected)


def test_centre_spectrum_is_the_median_of_good_pixels():
    rng = np.random.default_rng(7)
    data = rng.normal(size=(30, 20)).astype(np.float32)
    stat = rng.uniform(1, 2, (30, 20)).astype(np.float32)
    dq = np.zeros((30, 20), np.int32)
    dq[3, 9] = 256
    dq[4, 8:12] = [1, 4, 2, 8]
    values, variances = arclines.centre_spectrum(data, dq, stat, 10)
    columns = slice(8, 12)
    order = np.argsort(data[:, columns], axis=1)
    middle = np.take_along_axis(data[:, columns], order, 1)[:, 1:3]
    expected = np.take_along_axis(stat[:, columns], order, 1)[:, 1:3].sum(1)
    rest = np.delete(np.arange(30), (3, 4))
    assert values[rest] == pytest.approx(middle.mean(1)[rest], rel=1e-6)
    assert variances[rest] == pytest.approx(expected[rest], rel=1e-6)
    # of three the one in the middle, of none that which is least bad
    assert values[3] == np.median(data[3, [8, 10, 11]])
    assert values[4] == data[4, 8] and variances[4] == stat[4, 8]


# --- identification --------------------------------------------------------------------------------


def names(peaks, lines, *, low=1.1875, high=1.3125, tolerance=0.1):
    """Line that each peak was identified with, by index."""
    peak, line = match_pattern(np.asarray(peaks), np.asarray(lines), low, high, tolerance)
    return dict(zip(peak.tolist(), line.tolist(), strict=True))


def pattern(n=24, seed=5):
    lines = np.cumsum(np.random.default_rng(seed).uniform(20, 120, n)) + 5000
    return lines, (lines - 4900) / STEP


def test_all_lines_are_identified():
    lines, peaks = pattern()
    assert names(peaks, lines) == {i: i for i in range(24)}
    waves, _ = lines_at_random(60)
    assert names(position(waves), waves) == {i: i for i in range(len(waves))}


def test_peaks_that_are_no_lines():
    lines, peaks = pattern()
    more = np.random.default_rng(2).uniform(peaks[0], peaks[-1], 15)
    more = more[np.abs(more[:, None] - peaks).min(1) > 8]
    together = np.sort(np.concatenate([peaks, more]))
    expected = {int(np.searchsorted(together, p)): i for i, p in enumerate(peaks)}
    assert names(together, lines) == expected


@pytest.mark.parametrize(
    "missing, unidentified",
    [
        # as CPL 7.2.3 identifies them: single gaps do not matter, pieces of fewer than four lines only count
        # between others
        ((5,), (5,)), ((5, 8), (5, 8)), ((5, 11), (5, 11)), ((4, 9, 14, 19), (4, 9, 14, 19)),
        ((3,), (0, 1, 2, 3)), ((20,), (20, 21, 22, 23)), ((5, 10, 15, 20), (5, 10, 15, 20, 21, 22, 23)),
    ],
)  # fmt: skip
def test_lines_without_peaks(missing, unidentified):
    lines, peaks = pattern()
    left = np.delete(np.arange(24), missing)
    expected = {k: int(i) for k, i in enumerate(left) if i not in unidentified}
    assert names(peaks[left], lines) == expected


@pytest.mark.parametrize("which, shift, found", [(0, 5.5, True), (0, 6.5, False), (23, 5.5, True), (23, 6.5, False)])
def test_how_far_the_outermost_line_may_be(which, shift, found):
    lines, peaks = pattern()
    peaks = peaks.copy()
    peaks[which] += shift if which else -shift
    assert (names(peaks, lines).get(which) == which) == found


@pytest.mark.parametrize("shift, found", [(1.8, True), (2.2, False)])
def test_how_far_a_line_between_others_may_be(shift, found):
    lines = np.arange(12) * 20.0 + 5000 + np.random.default_rng(3).uniform(-4, 4, 12)
    peaks = (lines - 4900) / STEP
    peaks[6] += shift
    assert (names(peaks, lines).get(6) == 6) == found


def test_too_few_or_wrong_dispersion():
    lines, peaks = pattern()
    for n in range(4):
        assert not names(peaks[:n], lines[:n])
    assert names(peaks[:4], lines[:4]) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert not names(peaks, lines, low=1.3, high=1.4)
    assert not names(np.zeros(0), lines)


def test_lines_that_cannot_be_told_apart_are_not_used():
    wave = np.array([5000.0, 5001.0, 5010.0, 5020.0, 5021.4, 5040.0])
    flux = np.array([100.0, 100.0, 50.0, 100.0, 10.0, 57.6])
    # 5021.4 is too faint to matter, 5010 too faint to be detected, and 1.15 times the least is enough
    assert list(arclines.usable_lines(wave, flux, 50.0)) == [False, False, False, True, False, True]


def test_identified_lines_have_wavelengths():
    waves, fluxes = lines_at_random()
    found = arclines.detect_lines(*spectrum(waves, fluxes), 5.0)
    identified = arclines.identify(found, waves, fluxes * 5, dres=0.05, tolerance=0.1)
    assert np.array_equal(identified.wave, waves)
    assert np.all(np.abs(identified.centre - position(waves)) < 1)
    joined = Detections.join([identified.take(np.arange(20, len(waves))), identified.take(np.arange(20))])
    assert np.array_equal(joined.wave, waves)
    nothing = found.take(np.zeros(len(found), np.bool_))
    assert len(arclines.identify(nothing, waves, fluxes, dres=0.05, tolerance=0.1)) == 0


# --- measurement -----------------------------------------------------------------------------------


def tilted(x, wave):
    """Row of a line in a column of the synthetic slice."""
    return position(wave) + 0.01 * (x - 50) + 2e-4 * (x - 50) ** 2


def slice_image(waves, fluxes, *, ny=900, nx=100, seed=6, sigma=0.95, noise=2.0):
    data = np.zeros((ny, nx))
    y = np.arange(1, ny + 1.0)[:, None]
    x = np.arange(1, nx + 1.0)[None, :]
    for wave, flux in zip(waves, fluxes, strict=True):
        data += flux / (sigma * math.sqrt(2 * math.pi)) * np.exp(-0.5 * ((y - tilted(x, wave)) / sigma) ** 2)
    stat = data + noise**2
    data = data + np.sqrt(stat) * np.random.default_rng(seed).normal(size=stat.shape)
    return data.astype(np.float32), stat.astype(np.float32)


WAVES = np.array([4760.0, 4900.0, 5010.0, 5016.0, 5300.0, 5700.0])
FLUXES = np.array([2e3, 3e4, 8e3, 2e4, 5e4, 2e4])
QUALITY = np.array([3, 5, 2, 2, 5, 1], np.int32)


def measure(images, catalogue, **options):
    grid = np.linspace(4700, 5800, 200)
    inverse = np.polynomial.Polynomial.fit(grid, position(grid), 4).convert().coef
    left, right = np.array([12.4, 1e-4]), np.array([88.6, 1e-4])
    values = {"xorder": 2, "linesigma": 2.5, "weighting": "cerrscatter"} | options
    return arclines.measure_lines(images, catalogue, inverse, left, right, **values)


def catalogue(image=0, quality=QUALITY):
    return Catalogue(WAVES, FLUXES, quality, np.full(len(WAVES), "Ne"), np.full(len(WAVES), image))


def test_lines_are_measured_in_all_columns():
    image = slice_image(WAVES, FLUXES)
    m = measure([image], catalogue())
    # the last one is for identification only
    assert set(m.wave.tolist()) == set(WAVES[:5].tolist())
    for wave in WAVES[:5]:
        own = m.wave == wave
        x = m.x[own]
        assert 60 <= len(x) <= 76 and x.min() >= 13 and x.max() <= 89
        # from the middle to the left, then to the right
        turn = np.argmax(np.diff(x) > 0)
        assert np.all(np.diff(x[: turn + 1]) < 0) and np.all(np.diff(x[turn + 1 :]) > 0)
        error = m.y[own] - tilted(x, wave)
        assert np.abs(np.mean(error)) < 0.1
        assert np.sqrt(np.mean(error**2)) < 1.3 * np.median(m.error[own]) / STEP
    assert set(m.fwhm_wave.tolist()) == {4900.0, 5300.0}
    assert m.fwhm == pytest.approx(0.95 * arclines.FWHM_PER_SIGMA * STEP, rel=0.1)


def test_weighting():
    image = slice_image(WAVES, FLUXES)
    errors = {w: measure([image], catalogue(), weighting=w) for w in ("cerr", "scatter", "cerrscatter", "uniform")}
    own = {w: m.error[m.wave == 4900.0] for w, m in errors.items()}
    assert np.ptp(own["scatter"]) == 0
    assert own["cerrscatter"] == pytest.approx(np.hypot(own["cerr"], own["scatter"]))
    assert np.array_equal(own["uniform"], own["cerrscatter"])


def test_outliers_along_a_line_are_removed():
    data, stat = slice_image(WAVES, FLUXES)
    spoilt = data.copy()
    for x in (30, 31, 60):
        spoilt[:, x - 1] = np.roll(data[:, x - 1], 1)
    m = measure([(spoilt, stat)], catalogue())
    for wave in WAVES[:5]:
        assert not {30, 31, 60} & set(m.x[m.wave == wave].astype(int).tolist())
    kept = measure([(spoilt, stat)], catalogue(), linesigma=1000.0)
    assert {30, 31, 60} <= set(kept.x[kept.wave == 4900.0].astype(int).tolist())


def test_lines_are_measured_on_the_image_of_their_lamp():
    bright, empty = slice_image(WAVES, FLUXES), slice_image([], [])
    m = measure([empty, bright], catalogue(1))
    assert len(m.x) > 300
    # without one on the last, where there is nothing
    junk = measure([bright, empty], catalogue(-1))
    assert np.sum(junk.error < 0.2) < 0.02 * len(m.x)


def test_lines_at_the_border_are_left_out():
    waves = np.array([START + STEP * 5.0, START + STEP * 450, START + STEP * 899])
    m = measure(
        [slice_image(waves, np.full(3, 2e4))],
        Catalogue(waves, np.full(3, 2e4), np.full(3, 3, np.int32), np.full(3, "Ne"), np.zeros(3, np.int64)),
    )
    assert set(m.wave.tolist()) == {waves[1]}


def test_few_points_of_a_line_count_little():
    points = np.array([[20.0, 100.0, 0.01], [21.0, 100.1, 0.01]])
    kept, error = arclines._filtered(points, 2, 2.5, "cerrscatter")
    assert np.array_equal(kept, points)
    assert list(error) == [arclines.UNFITTED_ERROR] * 2


def test_detected_lines_are_measured_on_a_sum():
    image = slice_image(WAVES, FLUXES)
    found = arclines.detect_lines(image[0][:, 50], image[1][:, 50], 5.0)
    found.wave[:] = [WAVES[np.argmin(np.abs(position(WAVES) - c))] for c in found.centre]
    m = arclines.measure_detections(
        *image, found, np.array([12.4]), np.array([88.6]), xorder=2, linesigma=2.5, weighting="cerrscatter"
    )
    for wave in (4760.0, 4900.0, 5300.0, 5700.0):
        own = m.wave == wave
        assert own.sum() > 60
        assert np.abs(np.mean(m.y[own] - tilted(m.x[own], wave))) < 0.05
    nothing = found.take(np.zeros(len(found), np.bool_))
    empty = arclines.measure_detections(
        *image, nothing, np.array([12.4]), np.array([88.6]), xorder=2, linesigma=2.5, weighting="cerr"
    )
    assert len(empty.x) == 0
