"""Combination of images: every method against its rules, pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musedask.calib.combination import (
    CombineParams,
    combine_images,
    combine_rows,
    kernel_arguments,
    sorting_network,
)
from musedask.errors import InputError
from musedask.io.muse_image import MuseImage

METHODS = ("average", "median", "minmax", "sigclip", "sum")


def expected(data, stat, dq, p):
    """One pixel, by the rules (spec: images are combined from good values; extremes, deviations, ...)."""
    data, stat = [float(v) for v in data], [float(v) for v in stat]
    dq = [int(v) & 0xFFFFFFFF for v in dq]
    n = len(data)
    # equal values in the order of their variances
    good = sorted((d, s) for d, s, q in zip(data, stat, dq, strict=True) if q == 0)
    if not good:
        k = dq.index(min(dq))
        factor = n if p.method == "sum" else 1
        return factor * data[k], factor**2 * stat[k], dq[k]
    flags = 0
    if p.method == "median":
        h = len(good) // 2
        if len(good) % 2:
            return *good[h], 0
        return (good[h - 1][0] + good[h][0]) / 2, good[h - 1][1] + good[h][1], 0
    if p.method == "minmax":
        for d, s, q in zip(data, stat, dq, strict=True):
            if q and len(good) - p.nlow - p.nhigh < p.nkeep:
                good.append((d, s))
                flags |= q
        good = sorted(good)[p.nlow : len(good) - p.nhigh]
    if p.method == "sigclip":
        values = np.array([d for d, _ in good])
        median = np.median(values)
        deviation = np.mean(np.abs(values - median))
        low, high = median - p.lsigma * deviation, median + p.hsigma * deviation
        kept = [(d, s) for d, s in good if low <= d <= high]
        if low != high and kept:
            good = kept
    m = len(good)
    factor = n / m if p.method == "sum" else 1 / m
    return factor * sum(d for d, _ in good), factor**2 * sum(s for _, s in good), flags


@st.composite
def stacks(draw):
    n = draw(st.integers(3, 12))
    method = draw(st.sampled_from(METHODS))
    nlow, nhigh = draw(st.integers(0, n - 1)), 0
    nhigh = draw(st.integers(0, n - 1 - nlow))
    params = CombineParams(
        method, nlow, nhigh, draw(st.integers(1, n - nlow - nhigh)),
        draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])), draw(st.sampled_from([0.0, 0.7, 1.0, 3.0])),
    )  # fmt: skip
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m = draw(st.sampled_from([1, 7, 700]))
    # whole numbers: with ties, as raw data have
    data = random.normal(0, 3, (n, m)).astype(np.float32)
    data = np.rint(data) if draw(st.booleans()) else data
    data[random.random((n, m)) < 0.05] += np.float32(100)
    stat = random.choice(np.array([0.5, 1.0, 2.0], np.float32), (n, m))
    share = draw(st.sampled_from([0.0, 0.1, 0.6]))
    dq = np.where(random.random((n, m)) < share, 1 << random.integers(0, 32, (n, m)), 0)
    return params, data, stat, dq.astype(np.uint32).view(np.int32)


@given(stacks())
def test_pixels_follow_the_rules(stack):
    params, data, stat, dq = stack
    n, m = data.shape
    out, error, flags = np.empty(m, np.float32), np.empty(m, np.float32), np.empty(m, np.int32)
    for errors in (stat, stat[:1]):
        combine_rows(data, errors, dq, out, error, flags, *kernel_arguments(params, n))
        for i in range(m):
            all_errors = np.resize(errors[:, i], n)
            value, variance, quality = expected(data[:, i], all_errors, dq[:, i], params)
            assert out[i] == pytest.approx(value, rel=1e-6, abs=1e-6), (i, data[:, i], dq[:, i])
            assert error[i] == pytest.approx(variance, rel=1e-6), (i, data[:, i], all_errors, dq[:, i])
            assert int(flags[i]) & 0xFFFFFFFF == quality


@pytest.mark.parametrize("n", range(1, 20))
def test_network_sorts(n):
    """It sorts everything if it sorts all sequences of 0 and 1."""
    rows = np.array(list(itertools.product((0, 1), repeat=min(n, 12))), np.int8)
    if n > 12:
        rows = np.random.default_rng(n).integers(0, 2, (20000, n)).astype(np.int8)
    for low, high in sorting_network(n):
        assert low < high
        pair = rows[:, [low, high]]
        rows[:, low], rows[:, high] = pair.min(axis=1), pair.max(axis=1)
    assert (np.diff(rows, axis=1) >= 0).all()


def image(value, *, shape=(20, 30), stat=1.0, dq=0, unit="adu"):
    return MuseImage(
        np.full(shape, value, np.float32), np.full(shape, dq, np.int32), np.full(shape, stat, np.float32), unit
    )


@pytest.mark.parametrize("method", METHODS)
def test_images(method):
    random = np.random.default_rng(5)
    images = [
        MuseImage(
            random.normal(10, 1, (37, 41)).astype(np.float32),
            np.where(random.random((37, 41)) < 0.1, 4096, 0).astype(np.int32),
            random.random((37, 41)).astype(np.float32),
            "adu",
        )
        for _ in range(5)
    ]
    images[2].header["OBJECT"] = "not mine"
    images[0].header["OBJECT"] = "first"
    params = CombineParams(method)
    found = combine_images(images, params)
    assert found.header["OBJECT"] == "first"
    assert found.unit == "adu"
    for y, x in ((0, 0), (7, 40), (8, 0), (36, 40), (19, 20)):
        pixel = ([a[y, x] for a in part] for part in zip(*((i.data, i.stat, i.dq) for i in images), strict=True))
        value, variance, quality = expected(*pixel, params)
        assert found.data[y, x] == pytest.approx(value, rel=1e-6)
        assert found.stat[y, x] == pytest.approx(variance, rel=1e-6)
        assert found.dq[y, x] == quality


def test_one_image_stays_as_it_is():
    single = image(3.0, dq=5)
    found = combine_images([single], CombineParams("sigclip"))
    assert np.array_equal(found.data, single.data)
    assert np.array_equal(found.dq, single.dq)
    found.data[0, 0] = 7
    assert single.data[0, 0] == 3


def test_three_images_lose_nothing_to_clipping():
    """With a mean deviation no value of three can be three deviations from the median."""
    found = combine_images([image(0.0), image(0.0), image(1000.0)], CombineParams("sigclip"))
    assert (found.data == np.float32(1000 / 3)).all()
    found = combine_images([image(0.0), image(1.0), image(0.5), image(0.5), image(1000.0)], CombineParams("sigclip"))
    assert (found.data == np.float32(0.5)).all()
    assert found.stat == pytest.approx(np.full((20, 30), 1 / 4))


def test_missing_parts_are_good_and_without_variance():
    found = combine_images([MuseImage(np.full((2, 2), v, np.float32)) for v in (1.0, 2.0)], CombineParams("average"))
    assert (found.data == 1.5).all()
    assert not found.stat.any()
    assert not found.dq.any()


def test_parameters_of_a_recipe():
    values = {"combine": "minmax", "nlow": 2, "nhigh": 3, "nkeep": 4, "lsigma": 1.5, "hsigma": 2.5, "scale": True}
    assert CombineParams.from_values(values) == CombineParams("minmax", 2, 3, 4, 1.5, 2.5)
    assert CombineParams.from_values({"combine": "median"}) == CombineParams("median")


@pytest.mark.parametrize(
    ("images", "params", "message"),
    [
        ([], CombineParams(), "no image found"),
        ([image(1), image(1, shape=(3, 3))], CombineParams("average"), "shapes"),
        ([image(1), image(1, unit="count")], CombineParams("average"), "units"),
        ([image(1)] * 2, CombineParams("sigclip"), "2 images found, expected 3 or more"),
        ([image(1)] * 3, CombineParams("mean"), "'mean' found, expected one of average"),
        ([image(1)] * 3, CombineParams("minmax", 1, 1, 2), "nlow 1, nhigh 1, nkeep 2 found"),
        ([image(1)] * 3, CombineParams("minmax", -1, 1, 1), "nlow -1"),
        ([image(1)] * 3, CombineParams("minmax", 0, 0, 0), "nkeep 0"),
    ],
)
def test_what_cannot_be_combined(images, params, message):
    with pytest.raises(InputError, match=message):
        combine_images(images, params)
