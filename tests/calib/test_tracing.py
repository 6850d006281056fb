"""Slices are found and traced where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from musedask.calib import tracing
from musedask.errors import RecipeError
from musedask.instrument import N_SLICES
from musedask.io.calibrations import TraceSamples

NX, NY = 4096, 320
SPACING, WIDTH = 83.0, 76.5
#: scatter of the light at an edge [pix]
SIGMA = 0.65


def true_edges(y, first=60.3, width=WIDTH):
    """Edges of the slices [pix from 1], shape (48, 2, len(y))."""
    y = np.asarray(y, float)
    number = np.arange(N_SLICES)[:, None]
    left = first + SPACING * number + 2e-3 * (1 - number / 24) * y + 3e-6 * y**2
    return np.stack([left, left + width], axis=1)


def lit(first=60.3, width=WIDTH, ny=NY, level=20000.0):
    """Light of a lamp that falls on the slices, shape (ny, NX)."""
    image = np.zeros((ny, NX))
    for left, right in true_edges(np.arange(1, ny + 1), first, width):
        x = np.arange(max(1, int(left.min()) - 6), min(NX, int(right.max()) + 7) + 1)
        image[:, x - 1] += ndtr((x - left[:, None]) / SIGMA) - ndtr((x - right[:, None]) / SIGMA)
    return (level * image * (1 + 1e-3 * np.arange(ny)[:, None])).astype(np.float32)


@pytest.fixture(scope="module")
def image():
    return lit()


GOOD = np.zeros((NY, NX), np.int32)


def columns(ccd_slice, start, stop):
    """Columns relative to the left edge of a slice in the middle row."""
    left = round(true_edges([NY / 2])[ccd_slice - 1, 0, 0]) - 1
    return slice(left + start, left + stop)


#: a slice with both of its edges
WHOLE = -4, 81


def find(image):
    return tracing.locate(tracing.search_cut(image, NY // 2))


# --- bad pixels ------------------------------------------------------------------------------------


def test_a_bad_pixel_becomes_the_mean_of_its_neighbours():
    data = np.arange(25, dtype=np.float32).reshape(5, 5) ** 2
    dq = np.zeros((5, 5), np.int32)
    dq[2, 2] = dq[0, 0] = 1
    filled = tracing.fill_bad(data, dq)
    assert filled[2, 2] == np.float32(np.delete(data[1:4, 1:4].ravel(), 4).mean(dtype=np.float64))
    assert filled[0, 0] == np.float32((data[0, 1] + data[1, 0] + data[1, 1]) / 3)
    assert (filled != data).sum() == 2


def test_a_region_is_filled_from_its_border():
    data = np.full((20, 20), 7.0, np.float32)
    dq = np.zeros((20, 20), np.int32)
    dq[3:15, 2:18] = 0x100
    data[dq != 0] = 1e6
    np.testing.assert_array_equal(tracing.fill_bad(data, dq), 7.0)


def test_without_a_good_pixel_nothing_is_changed():
    data = np.ones((4, 4), np.float32)
    np.testing.assert_array_equal(tracing.fill_bad(data, np.ones((4, 4), np.int32)), data)


def test_bad_columns_do_not_move_a_trace(image):
    damaged, dq = image.copy(), GOOD.copy()
    for at in (2, 40, 73):
        where = columns(5, at, at + 1)
        damaged[:, where], dq[:, where] = 0, 0x2000
    table, _ = tracing.trace(damaged, dq, border=NY // 2, nsum=16, order=2)
    expected, _ = tracing.trace(image, GOOD, border=NY // 2, nsum=16, order=2)
    y = np.arange(1, NY + 1)
    # the edge itself has been filled in with the mean of what is left and right of it
    for a, b in zip(table.edges(5, y), expected.edges(5, y), strict=True):
        np.testing.assert_allclose(a, b, atol=0.4)
    np.testing.assert_array_equal(table.centre[5:], expected.centre[5:])


# --- search ----------------------------------------------------------------------------------------


def test_all_slices_are_found(image):
    found = find(image)
    middle = true_edges([NY / 2])[:, :, 0].mean(axis=1)
    np.testing.assert_allclose(found.centres, middle, atol=1.5)
    np.testing.assert_allclose(found.right - found.left, WIDTH, atol=1.5)
    assert found.level == 0.5


def test_one_side_of_the_border_is_enough(image):
    half = image.copy()
    half[: NY // 2, columns(30, 0, 20)] *= 0.1
    np.testing.assert_array_equal(find(half).centres, find(image).centres)


def test_the_level_is_lowered_for_dim_slices(image):
    dim = image.copy()
    dim[:, columns(20, *WHOLE)] *= 0.4
    found = find(dim)
    assert found.level < 0.4
    np.testing.assert_allclose(found.centres, find(image).centres, atol=1)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((1, 0, 12), "the first is .* pix wide"),
        ((20, *WHOLE), "slices: "),
        ((N_SLICES, *WHOLE), "slices: "),
    ],
)
def test_missing_light_is_an_error(image, where, message):
    dark = image.copy()
    dark[:, columns(*where)] = 0
    with pytest.raises(RecipeError, match=message):
        find(dark)


def test_two_slices_that_touch_are_an_error(image):
    joined = image.copy()
    joined[:, columns(20, 70, 90)] = 20000
    with pytest.raises(RecipeError, match="slices: "):
        find(joined)


def test_no_light_at_all_is_an_error():
    with pytest.raises(RecipeError, match="slices: "):
        find(np.zeros((NY, NX), np.float32))


# --- trace points ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nsum", [1, 16, 32])
def test_edges_are_where_they_are(image, nsum):
    samples, status = tracing.measure(image, find(image).centres, nsum)
    assert (status == tracing.OK).all()
    assert status.shape == (N_SLICES, (NY - nsum - 1) // nsum + 1)
    np.testing.assert_array_equal(np.unique(samples.y), (1 + nsum) / 2 + nsum * np.arange(status.shape[1]))
    for s in (1, 24, 48):
        own = samples.ccd_slice == s
        left, right = true_edges(samples.y[own])[s - 1]
        np.testing.assert_allclose(samples.left[own], left, atol=0.01)
        np.testing.assert_allclose(samples.right[own], right, atol=0.01)
    np.testing.assert_allclose(samples.mid, 0.5 * (samples.left + samples.right))


def test_noise_does_not_bias_edges():
    rng = np.random.default_rng(1)
    noisy = (rng.poisson(lit(level=500.0)) + rng.normal(0, 3, (NY, NX))).astype(np.float32)
    samples, status = tracing.measure(noisy, find(noisy).centres, 16)
    assert (status == tracing.OK).mean() > 0.99
    truth = np.array([true_edges([y])[s - 1, :, 0] for s, y in zip(samples.ccd_slice, samples.y, strict=True)])
    difference = np.stack([samples.left, samples.right], axis=1) - truth
    assert np.abs(difference.mean(axis=0)).max() < 0.003
    assert difference.std() < 0.05


def test_a_dark_column_inside_a_slice_is_passed_over(image):
    dark = image.copy()
    for at in (20, 50, 66):
        dark[:, columns(7, at, at + 1)] = 0
    samples, status = tracing.measure(dark, find(image).centres, 16)
    assert (status == tracing.OK).all()
    own = samples.ccd_slice == 7
    np.testing.assert_allclose(samples.left[own], true_edges(samples.y[own])[6, 0], atol=0.01)


def test_edges_that_do_not_agree_are_no_trace_point(image):
    hot = image.copy()
    hot[32:64, columns(7, 3, 4)] *= 3
    samples, status = tracing.measure(hot, find(image).centres, 16)
    bad = np.zeros_like(status, bool)
    bad[6, 2:4] = True
    np.testing.assert_array_equal(status == tracing.MOVED, bad)
    assert not np.isin(samples.y[samples.ccd_slice == 7], (40.5, 56.5)).any()


def test_a_dark_slice_has_no_edges(image):
    dark = image.copy()
    dark[96:112, columns(7, *WHOLE)] = 0
    _, status = tracing.measure(dark, find(image).centres, 16)
    assert status[6, 6] != tracing.OK


@pytest.mark.parametrize(("fallback", "kept"), [(None, False), (8, False), (7, True), (1, True)])
def test_slices_may_keep_the_edge_further_out(image, fallback, kept):
    hot = image.copy()
    hot[:, columns(7, 3, 4)] *= 3
    samples, status = tracing.measure(hot, find(image).centres, 16, fallback=fallback)
    assert (status[6] == tracing.OK).all() == kept
    own = samples.ccd_slice == 7
    assert own.any() == kept
    if kept:
        left, right = true_edges(samples.y[own])[6]
        np.testing.assert_allclose(samples.left[own], left, atol=0.1)
        np.testing.assert_allclose(samples.right[own], right, atol=0.01)


def test_a_slice_at_the_border_of_the_detector_is_lost():
    image = lit(first=10.3)
    table, samples = tracing.trace(image, GOOD, border=NY // 2, nsum=16, order=1)
    assert 1 not in samples.ccd_slice
    assert np.isnan(table.centre[0]).all()
    assert np.isnan(table.width[0])
    assert np.isfinite(table.centre[1:]).all()


@given(st.floats(2.0, 8.0), st.floats(0.4, 1.5), st.floats(10.0, 1e6))
def test_the_peak_of_a_slope_is_found(centre, sigma, height):
    x = np.arange(2 * tracing.HALF_WINDOW + 2)
    at = 40 + centre
    profile = height * ndtr((x - 1 - at) / sigma)
    # the window that is looked at begins five pixels left of the first guess
    assert tracing._refined(profile, 45.2, 1.0) == pytest.approx(at, abs=0.05)
    assert tracing._refined(height - profile, 45.2, -1.0) == pytest.approx(at, abs=0.05)


def test_what_cannot_be_fitted_stays():
    profile = np.zeros(2 * tracing.HALF_WINDOW + 2)
    assert tracing._refined(profile, 45.2, 1.0) == 45.2


# --- polynomials -----------------------------------------------------------------------------------


def points(scatter=0.0, seed=1, n=40):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(n) * 8 + 4.5, N_SLICES)
    number = np.repeat(np.arange(N_SLICES), n)
    edges = true_edges(y[:n]).transpose(0, 2, 1).reshape(-1, 2) + rng.normal(0, scatter, (len(y), 2))
    left, right = edges.T
    return TraceSamples((number + 1).astype(np.int32), y, 0.5 * (left + right), left.copy(), right.copy())


@pytest.mark.parametrize("order", [2, 5])
def test_polynomials_give_the_points_back(order):
    table = tracing.fit_traces(points(), order)
    y = np.array([1.0, 100.0, 320.0])
    for s in (1, 17, 48):
        np.testing.assert_allclose(table.edges(s, y), true_edges(y)[s - 1], atol=1e-7)
    np.testing.assert_allclose(table.width, WIDTH, rtol=1e-12)
    assert (table.mse < 1e-12).all()


def test_outliers_are_left_out():
    samples = points(0.01)
    clean = tracing.fit_traces(points(0.01), 2)
    own = np.flatnonzero(samples.ccd_slice == 9)
    # moved as a whole, too wide, and far too wide
    samples.mid[own[5]] += 1.5
    samples.left[own[9]] -= 1.5
    samples.right[own[20]] += 40
    table = tracing.fit_traces(samples, 2)
    y = np.arange(1.0, 321.0)
    for a, b in zip(table.edges(9, y), clean.edges(9, y), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)
    np.testing.assert_array_equal(table.centre[9:], clean.centre[9:])


@pytest.mark.parametrize(("order", "n", "good"), [(1, 2, False), (1, 3, True), (4, 4, False), (4, 5, True)])
def test_a_trace_needs_enough_points(order, n, good, caplog):
    samples = points(0.01)
    keep = (samples.ccd_slice != 13) | (np.cumsum(samples.ccd_slice == 13) <= n)
    fewer = TraceSamples(*(getattr(samples, k)[keep] for k in ("ccd_slice", "y", "mid", "left", "right")))
    table = tracing.fit_traces(fewer, order)
    assert np.isfinite(table.left[12]).all() == good
    assert np.isfinite(np.delete(table.left, 12, axis=0)).all()
    assert ("slice 13: its trace has" in caplog.text) != good


@pytest.mark.parametrize(
    ("name", "value"), [("nsum", 0), ("order", 0), ("edgefrac", 0.0), ("edgefrac", 1.0), ("edgefrac", -0.5)]
)
def test_parameters_have_ranges(image, name, value):
    with pytest.raises(RecipeError, match=name):
        tracing.trace(image, GOOD, border=NY // 2, **{name: value})


def test_the_whole_way(image):
    table, samples = tracing.trace(image, GOOD, border=NY // 2, nsum=16, order=3)
    assert len(samples.y) == N_SLICES * 19
    y = np.arange(1.0, NY + 1)
    for s in range(1, N_SLICES + 1):
        np.testing.assert_allclose(table.edges(s, y), true_edges(y)[s - 1], atol=0.01)
    np.testing.assert_allclose(table.width, WIDTH, atol=0.01)
