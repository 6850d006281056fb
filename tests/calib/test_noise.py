"""Noise in windows at random places: the generator, the places, and what they measure."""

from __future__ import annotations

import ctypes
import math
import platform

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musedask.calib import noise as noise_module
from musedask.calib.noise import HALF, PIXELS, WINDOWS, level_in_windows, noise_of_difference, window_places

WHOLE = (slice(0, 300), slice(0, 260))


def random_numbers(seed, n):
    state = noise_module._generator(seed)
    return [noise_module._next(state) for _ in range(n)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another generator")
@pytest.mark.parametrize("seed", [1, 101, 401, 2147483646])
def test_numbers_are_those_of_the_c_library(seed):
    library = ctypes.CDLL(None)
    library.srand(seed)
    assert [library.rand() for _ in range(2000)] == random_numbers(seed, 2000)


def test_first_numbers():
    # of any program that does not set a seed
    assert random_numbers(1, 3) == [1804289383, 846930886, 1681692777]


@given(st.integers(60, 3000), st.integers(60, 3000), st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 500))
def test_places(width, height, x0, y0, seed):
    x, y = window_places(x0 + 1, x0 + width, y0 + 1, y0 + height, WINDOWS, seed)
    assert len(x) == len(y) == WINDOWS
    assert x.min() > x0 + HALF and x.max() <= x0 + width - HALF
    assert y.min() > y0 + HALF and y.max() <= y0 + height - HALF
    # that far apart before they are rounded down, which brings two of them closer by less than a pixel in each axis
    nearest = math.sqrt((width - 21) * (height - 21) / (102 * math.sqrt(2)))
    distance = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y))[np.triu_indices(WINDOWS, 1)]
    assert distance.min() > nearest - math.sqrt(2)


def test_known_noise():
    a, b = np.random.default_rng(1).normal(1000, 3, (2, 300, 260)).astype(np.float32)
    noise, scatter = noise_of_difference(a, b, WHOLE)
    # 100 windows of 361 pixels, some of which overlap
    assert noise == pytest.approx(3 * math.sqrt(2), rel=0.01)
    assert scatter == pytest.approx(noise / math.sqrt(2 * PIXELS), rel=0.3)


def test_only_the_part_counts():
    a, b = np.random.default_rng(2).normal(0, 1, (2, 300, 260)).astype(np.float32)
    part = slice(100, 300), slice(30, 260)
    expected = noise_of_difference(a, b, part)
    a[:100], b[:, :30] = 1e6, np.nan
    assert noise_of_difference(a, b, part) == expected


def test_other_windows_where_a_cosmic_ray_hit():
    a, b = np.random.default_rng(3).normal(0, 1, (2, 300, 260)).astype(np.float32)
    x, y = window_places(1, 260, 1, 300, WINDOWS, 1)
    clean = noise_of_difference(a, b, WHOLE)
    # a hit that only the first windows see
    others = window_places(1, 260, 1, 300, WINDOWS, 101)
    hit = next(
        (x, y) for x, y in zip(x, y, strict=True)
        if not ((np.abs(others[0] - x) <= HALF) & (np.abs(others[1] - y) <= HALF)).any()
    )  # fmt: skip
    a[hit[1] - 1, hit[0] - 1] = 500
    noise, scatter = noise_of_difference(a, b, WHOLE)
    assert scatter < 0.1 * noise
    assert noise == pytest.approx(clean[0], rel=0.02) and noise != clean[0]
    # where all windows are hit, the last ones stand
    a[::10, ::10] += 100
    noise, scatter = noise_of_difference(a, b, WHOLE)
    assert noise > 5


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20), (21, 21), (30, 30)])
def test_small_parts(height, width):
    a, b = np.random.default_rng(4).normal(0, 1, (2, 300, 260)).astype(np.float32)
    noise, _ = noise_of_difference(a, b, (slice(0, height), slice(0, width)))
    assert math.isfinite(noise) == (min(height, width) > 20)


def test_known_level():
    rng = np.random.default_rng(5)
    data = rng.normal(0.8, 3, (400, 500)).astype(np.float32)
    dq = np.where(rng.random(data.shape) < 0.1, 4, 0).astype(np.int32)
    data[dq != 0] = np.nan
    level, scatter = level_in_windows(data, dq)
    # all pixels are in some window or other
    assert level == pytest.approx(0.8, abs=4 * 1.25 * 3 / math.sqrt((dq == 0).sum()))
    assert scatter == pytest.approx(3 / math.sqrt(0.9 * PIXELS), rel=0.2)


def test_level_of_few_good_pixels():
    data, dq = np.ones((40, 50), np.float32), np.ones((40, 50), np.int32)
    assert np.isnan(level_in_windows(data, dq)).all()
    dq[3:22, 2:21] = 0
    assert level_in_windows(data, dq) == (1.0, pytest.approx(0.0, abs=1e-6))
    assert np.isnan(level_in_windows(data[:20], dq[:20])).all()
