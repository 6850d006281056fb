"""Statistics of images and fits: those of numpy, with the conventions of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from musedask.calib.statistics import (
    image_median_deviation,
    image_statistics,
    iterfit,
    median_deviation,
)

FLOATS = st.floats(-1e6, 1e6, width=32)
IMAGES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS)


def assert_statistics(found, values):
    values = values.astype(np.float64)
    scale = np.abs(values).max()
    assert found.median == np.median(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-13 * scale)
    stdev = values.std(ddof=1) if values.size > 1 else 0.0
    assert found.stdev == pytest.approx(stdev, rel=1e-9, abs=1e-12 * scale)
    assert (found.min, found.max) == (values.min(), values.max())


@given(IMAGES)
def test_all_pixels(data):
    assert_statistics(image_statistics(data), data)


@given(IMAGES, st.integers(0, 2**32 - 1))
def test_good_pixels(data, seed):
    dq = np.random.default_rng(seed).integers(0, 2, data.shape).astype(np.int32) << 31
    good = data[dq == 0]
    found = image_statistics(data, dq)
    if not good.size:
        assert np.isnan([found.median, found.mean, found.stdev, found.min, found.max]).all()
        return
    assert_statistics(found, good)
    median, deviation, low, high = image_median_deviation(data, dq)
    assert (median, low, high) == (np.median(good.astype(np.float64)), good.min(), good.max())
    assert deviation == pytest.approx(np.abs(good.astype(np.float64) - median).mean(), rel=1e-12)


def test_sections_and_vectors():
    data = np.random.default_rng(1).normal(3, 7, (50, 60)).astype(np.float32)
    assert_statistics(image_statistics(data[3:20, 11:40]), data[3:20, 11:40])
    assert_statistics(image_statistics(data[0]), data[0])


def test_numbers_of_both_signs_in_the_middle():
    data = np.array([[-1e-30, -0.0, 0.0, 1e-30, 2.0, -2.0]], np.float32)
    assert image_statistics(data).median == 0
    assert image_statistics(data[:, 1:]).median == 0


def test_median_deviation_is_a_mean():
    assert median_deviation([0.0, 1.0, 2.0, 9.0]) == (1.5, (1.5 + 0.5 + 0.5 + 7.5) / 4)


# --- fits ------------------------------------------------------------------------------------------


def test_fit_of_pixels_of_a_detector():
    random = np.random.default_rng(2)
    x = np.arange(1.0, 4113.0)
    true = np.array([700.0, 3e-3, -2e-6, 1e-10, 3e-14, -5e-18])
    y = np.polynomial.polynomial.polyval(x, true) + random.normal(0, 1e-3, x.size)
    coefficients, mse, mask = iterfit(x, y, 5, 5.0)
    expected = np.polynomial.Polynomial.fit(x, y, 5).convert().coef
    assert np.abs(np.polynomial.polynomial.polyval(x, coefficients - expected)).max() < 1e-8
    assert mask.all()
    assert mse == pytest.approx(1e-6, rel=0.1)


def test_outliers_go_all_at_once_and_again():
    x = np.arange(100.0)
    y = 5 + 0.1 * x + np.where(np.arange(100) % 2, 0.01, -0.01)
    y[20], y[50] = 100.0, 6.0
    coefficients, mse, mask = iterfit(x, y, 1, 3.0)
    # the second outlier shows when the first one is gone
    assert list(np.flatnonzero(~mask)) == [20, 50]
    assert coefficients == pytest.approx([5.0, 0.1], abs=0.01)
    assert mse == pytest.approx(1e-4, rel=0.02)


def test_limit_itself_is_rejected():
    # residuals of a constant: +1 and -1 with rms 1
    y = np.array([1.0, -1.0, 1.0, -1.0])
    assert iterfit(np.arange(4.0), y, 0, 1.0001)[2].all()
    assert not iterfit(np.arange(4.0), y, 0, 1.0)[2].any()


def test_values_that_are_not_finite_are_dropped():
    x, y = np.arange(6.0), np.array([1.0, np.nan, 1.0, np.inf, 1.0, 1.0])
    coefficients, mse, mask = iterfit(x, y, 1, 3.0)
    assert list(mask) == [True, False, True, False, True, True]
    assert coefficients == pytest.approx([1.0, 0.0])
    assert mse == pytest.approx(0)


def test_too_few_points():
    coefficients, mse, _ = iterfit([1.0, 2.0], [1.0, 2.0], 3, 3.0)
    assert np.isnan(coefficients).all()
    assert len(coefficients) == 4
    assert np.isnan(mse)


@pytest.mark.parametrize("kind", ["noise", "steps", "constant", "rows"])
def test_the_median_of_many_pixels_is_found_by_a_sample_or_without(kind):
    rng = np.random.default_rng(5)
    data = rng.normal(3.0, 2.0, (601, 255)).astype(np.float32)
    if kind == "steps":
        data = np.round(data)
    elif kind == "constant":
        data[:] = 7.0
    elif kind == "rows":
        # those of the sample are brighter than all the others
        data[:: len(data) // 128] += 1000.0
    dq = np.where(rng.random(data.shape) < 0.1, 4, 0).astype(np.int32)
    good = data[dq == 0].astype(np.float64)
    assert_statistics(image_statistics(data), data)
    assert_statistics(image_statistics(data, dq), good)
    median, deviation, low, high = image_median_deviation(data, dq)
    assert (median, low, high) == (np.median(good), good.min(), good.max())
    assert deviation == pytest.approx(np.abs(good - np.median(good)).mean(), rel=1e-12)
