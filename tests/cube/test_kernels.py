"""Resampling kernels against sums evaluated voxel by voxel, as the methods are defined.

The oracle gathers for every voxel what the kernels scatter, in Python floats.  Sums may differ in
the order of their terms only for voxels with several rows: 1e-12 is some thousand roundings of
float64.  Values are then rounded to float32; they may differ by one such rounding (1.2e-7).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musedask.cube import kernels
from musedask.cube.kernels import DATA, METHODS, ROW, STATE_BITS

from .voxels import Voxels, random_columns

SHAPE = (4, 5, 6)
ALL = (0, 4, 0, 5, 0, 6)
CENTRE = {
    "xc": np.arange(4.0)[:, None] * np.ones(5), "yc": np.ones(4)[:, None] * np.arange(5.0),
    "cosine": np.linspace(0.9, 1.0, 20).reshape(4, 5), "wave": 1.25 * np.arange(6.0),
}  # fmt: skip
STEP = np.array([1.25, 1.3, 1.2, 1.25, 1.4, 1.1])
SCALE = np.array([1.1, 0.9])
ZERO = np.array([0.0, 0.0])
SIZE = np.array([1.0, 1.05])


def sinc(t):
    return 1.0 if abs(t) < 2.2e-16 else math.sin(math.pi * t) / (math.pi * t)


def kernel(method, ld, drop, rc, zero=ZERO):
    """Weight of a row for the voxel (i, j, k)."""

    def weight(row, i, j, k):
        x = abs(CENTRE["xc"][i, j] - (row["x"] + zero[0])) * CENTRE["cosine"][i, j]
        y = abs(CENTRE["yc"][i, j] - (row["y"] + zero[1]))
        z = abs(CENTRE["wave"][k] - row["wave"])
        if method == "drizzle":
            w = 1.0
            for d, a, b in zip((x, y, z), drop, (*SIZE, STEP[k]), strict=True):
                # the part of the drop, of length a, that the voxel, of length b, covers
                w *= max(0.0, min(d + b / 2, a / 2) - max(d - b / 2, -a / 2)) / a
            return w
        x, y, z = x * SCALE[0], y * SCALE[1], z / 1.25
        r = math.sqrt(x * x + y * y + z * z)
        if method == "lanczos":
            if x >= ld or y >= ld or z > ld:
                return 0.0
            return math.prod(sinc(d) * sinc(d / ld) for d in (x, y, z))
        if r == 0:
            return 3.40282346638528860e38
        if method == "renka":
            return 2.2250738585072014e-308 if r >= rc else ((rc - r) / (rc * r)) ** 2
        return {"linear": 1 / r, "quadratic": 1 / r**2}[method]

    return weight


def run(voxels, method, target=ALL, ld=1, drop=(0.6, 0.6, 0.75), rc=1.25, zero=ZERO, maps=False):
    """Sums of a target, shape (nx, ny, nz, 3), and the number of rows."""
    x0, x1, y0, y1, z0, z1 = target
    shape = (x1 - x0, y1 - y0, z1 - z0)
    n = math.prod(shape)
    sums = np.zeros((n, 3))
    n_pixels = np.zeros(n if maps else 0, np.int32)
    common = (voxels.records, voxels.bits, voxels.offsets, voxels.window, np.array(target), *list(CENTRE.values()))
    if method == "drizzle":
        kernels.drizzle(*common, STEP, zero, np.array(drop), SIZE, ld, sums, n_pixels)
    else:
        kernels.weighted(METHODS[method], *common, zero, SCALE, rc, ld, sums, n_pixels)
    return sums.reshape(*shape, 3), n_pixels.reshape(shape) if maps else None


def gather(voxels, weight, ld, i, j, k):
    """Sums of one voxel, exactly rounded, and how many rows took part with a weight."""
    near = range(-ld, ld + 1)
    rows = [
        r for di, dj, dk in itertools.product(near, near, near) for r in voxels[i + di, j + dj, k + dk] if r["dq"] == 0
    ]
    w = [weight(r, i, j, k) * r["weight"] for r in rows]
    return (
        math.fsum(w),
        math.fsum(v * r["data"] for v, r in zip(w, rows, strict=True)),
        math.fsum(v * v * r["stat"] for v, r in zip(w, rows, strict=True)),
        sum(v != 0 for v in w),
    )


CASES = [
    ("linear", {}), ("linear", {"ld": 2}), ("quadratic", {}), ("renka", {}), ("renka", {"rc": 0.3}),
    ("renka", {"ld": 2, "rc": 2.5}), ("lanczos", {}), ("lanczos", {"ld": 3}), ("drizzle", {}),
    ("drizzle", {"drop": (1.0, 1.0, 1.25)}), ("drizzle", {"drop": (1.7, 0.2, 2.0)}),
    ("drizzle", {"drop": (2.5, 3.0, 4.0), "ld": 2}), ("drizzle", {"drop": (1e-6, 1e-6, 1e-6)}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("extent", [1.0, 4.0])
def test_definition(method, options, extent):
    """Every voxel; with extent 4 rows lie far outside their voxels, as in the edges of a small OUTPUT_WCS."""
    rng = np.random.default_rng(1)
    zero = np.array([0.25, -0.125])
    columns = random_columns(rng, SHAPE, 220, n_tables=2, extent=extent)
    voxels = Voxels(SHAPE, columns, weights=(-1.0, 0.7))
    sums, n_pixels = run(voxels, method, zero=zero, maps=True, **options)
    settings = {"ld": 1, "drop": (0.6, 0.6, 0.75), "rc": 1.25} | options
    weight = kernel(method, settings["ld"], settings["drop"], settings["rc"], zero)
    for i, j, k in np.ndindex(*SHAPE):
        expected = gather(voxels, weight, settings["ld"], i, j, k)
        # lanczos sums cancel: relative to what was added
        scale = (1.0, 200.0, 200.0) if method == "lanczos" else tuple(map(abs, expected[:3]))
        assert sums[i, j, k] == pytest.approx(expected[:3], rel=1e-12, abs=1e-12 * max(scale))
        if method != "drizzle" or expected[0] > 1e-12:
            assert n_pixels[i, j, k] == expected[3]
    # in float32 nothing is left of the roundings
    data, stat = (np.empty(SHAPE[::-1], np.float32) for _ in range(2))
    weights = np.empty(SHAPE[::-1], np.float32)
    kernels.finish(sums.reshape(-1, 3), SHAPE, data, stat, weights)
    good = np.abs(sums[..., 0]) > 1e-300
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_array_equal(data.T[good], (sums[..., 1] / sums[..., 0])[good].astype("f4"))
        np.testing.assert_array_equal(stat.T[good], (sums[..., 2] / (sums[..., 0] * sums[..., 0]))[good].astype("f4"))
    assert np.isnan(data.T[sums[..., 0] == 0]).all() and np.isnan(stat.T[sums[..., 0] == 0]).all()
    np.testing.assert_array_equal(weights.T, sums[..., 0].astype("f4"))


@pytest.mark.parametrize(("method", "options"), CASES)
def test_parts_have_the_sums_of_the_whole(method, options):
    """Bit for bit: a target inside a window with its halo."""
    rng = np.random.default_rng(2)
    voxels = Voxels(SHAPE, random_columns(rng, SHAPE, 500))
    whole, n_whole = run(voxels, method, maps=True, **options)
    for target in ((1, 3, 2, 4, 1, 5), (0, 1, 0, 5, 5, 6), (3, 4, 4, 5, 0, 1)):
        x0, x1, y0, y1, z0, z1 = target
        part, n_part = run(voxels, method, target, maps=True, **options)
        np.testing.assert_array_equal(part, whole[x0:x1, y0:y1, z0:z1])
        np.testing.assert_array_equal(n_part, n_whole[x0:x1, y0:y1, z0:z1])


def test_row_at_the_centre_takes_it_all():
    """At distance 0 the weight is the largest float32: the value is that of the row."""
    columns = random_columns(np.random.default_rng(3), SHAPE, 300, bad=0, cosmic=0)
    columns[0]["x"][7], columns[0]["y"][7], columns[0]["wave"][7] = 2.0, 3.0, 2.5
    columns[0]["key"][7] = (2 * 5 + 3) * 6 + 2
    voxels = Voxels(SHAPE, columns)
    for method in ("linear", "quadratic", "renka"):
        sums, _ = run(voxels, method)
        total, data, stat = sums[2, 3, 2]
        assert data / total == pytest.approx(float(np.float32(columns[0]["data"][7])), rel=1e-30 ** 0.5)
        assert stat / total**2 == pytest.approx(float(np.float32(columns[0]["stat"][7])), rel=1e-15)


def test_renka_beyond_its_radius():
    """Only distant rows: their plain mean, and no variance (NaN), as in the reference."""
    columns = random_columns(np.random.default_rng(3), SHAPE, 1, bad=0, cosmic=0)
    voxels = Voxels(SHAPE, columns, weights=(1.0,))
    sums, _ = run(voxels, "renka", rc=1e-9)
    data, stat = (np.empty(SHAPE[::-1], np.float32) for _ in range(2))
    kernels.finish(sums.reshape(-1, 3), SHAPE, data, stat, np.empty((0, 0, 0), np.float32))
    found = np.isfinite(data)
    assert found.any()
    assert (data[found] == np.float32(columns[0]["data"][0])).all()
    assert np.isnan(stat).all()


def test_sums_that_are_no_numbers_are_missing():
    tiny = 2.2250738585072014e-308
    sums = np.array([[0, 1, 1], [tiny / 2, 1, 1], [np.inf, 1, 1], [np.nan, 1, 1], [-2, 4, 8], [tiny, tiny, 0]], float)
    data, stat = (np.empty((1, 6, 1), np.float32) for _ in range(2))
    kernels.finish(sums, (1, 6, 1), data, stat, np.empty((0, 0, 0), np.float32))
    np.testing.assert_array_equal(np.isnan(data[0, :, 0]), [True, True, True, True, False, False])
    assert data[0, 4, 0] == -2 and stat[0, 4, 0] == 2 and data[0, 5, 0] == 1


# ----------------------------------------------------------------------------------------- nearest


def nearest(voxels, corrected, zero, maps=True):
    data, stat = (np.empty(SHAPE[::-1], np.float32) for _ in range(2))
    n_pixels = np.empty(SHAPE[::-1], np.int32)
    kernels.nearest(
        voxels.records, voxels.bits, voxels.offsets, voxels.window, np.array(ALL), *CENTRE.values(), zero, SCALE,
        corrected, data, stat, n_pixels if maps else np.empty((0, 0, 0), np.int32),
    )  # fmt: skip
    return data, stat, n_pixels


@pytest.mark.parametrize("corrected", [False, True])
def test_nearest(corrected):
    """The nearest row of a voxel, good or bad; the reference adds the zero point instead of taking it off."""
    zero = np.array([150.0, -27.8])
    columns = random_columns(np.random.default_rng(4), SHAPE, 400, n_tables=2)
    for table in columns:
        table["x"], table["y"] = table["x"] - zero[0], table["y"] - zero[1]
    voxels = Voxels(SHAPE, columns)
    data, stat, n_pixels = nearest(voxels, corrected, zero)
    sign = -1 if corrected else 1
    for i, j, k in np.ndindex(*SHAPE):
        rows = voxels[i, j, k]
        assert n_pixels[k, j, i] == len(rows)
        best, smallest = None, math.inf
        for row in rows:
            x = abs(i - row["x"] + sign * zero[0]) * SCALE[0] * CENTRE["cosine"][i, j]
            y = abs(j - row["y"] + sign * zero[1]) * SCALE[1]
            distance = math.hypot(x, y, (1.25 * k - row["wave"]) / 1.25)
            if distance < smallest * (1 - 1e-14):
                best, smallest = row, distance
        if best is None or best["dq"] != 0:
            assert np.isnan(data[k, j, i]) and np.isnan(stat[k, j, i])
        else:
            assert data[k, j, i] == np.float32(best["data"]) and stat[k, j, i] == np.float32(best["stat"])


def test_first_of_equals_is_nearest():
    columns = random_columns(np.random.default_rng(5), SHAPE, 6, bad=0, cosmic=0)
    for name in ("x", "y", "wave", "key"):
        columns[0][name][:] = columns[0][name][0]
    voxels = Voxels(SHAPE, columns)
    for corrected in (False, True):
        data, _, _ = nearest(voxels, corrected, ZERO)
        assert data[np.isfinite(data)].tolist() == [np.float32(columns[0]["data"][0])]


# ----------------------------------------------------------------------------------------- sorting


@given(seed=st.integers(0, 2**32 - 1), n_rows=st.integers(0, 300), n_tables=st.integers(1, 3))
def test_rows_of_a_voxel_are_in_table_order(seed, n_rows, n_tables):
    """However the rows of a table arrive: here all shuffled."""
    rng = np.random.default_rng(seed)
    columns = random_columns(rng, SHAPE, n_rows, n_tables=n_tables)
    for table in columns:
        table["key"][rng.random(n_rows) < 0.1] = -1
    voxels = Voxels(SHAPE, columns, order=rng.permutation)
    for number, rows in enumerate(voxels.voxels):
        a, b = voxels.offsets[number], voxels.offsets[number + 1]
        bits = voxels.bits[a:b]
        assert [(r["table"], r["row"]) for r in rows] == [
            (int(d) >> STATE_BITS, int(r)) for d, r in zip(bits[:, kernels.DQ], bits[:, ROW], strict=True)
        ]
        assert [np.float32(r["data"]) for r in rows] == voxels.records[a:b, DATA].tolist()
