"""Cosmic rays: the definition evaluated by brute force, and the shortcuts, which change no flag."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musedask.cube import cosmics
from musedask.cube.cosmics import CR_TYPES, DIR_NONE, DIR_X, DIR_Y
from musedask.cube.kernels import DQ

from .voxels import Voxels, random_columns

DIRECTIONS = {"x": DIR_X, "y": DIR_Y, "none": DIR_NONE}


def flag(voxels, region, cr_type, direction, crsigma, shortcuts=True):
    """Bits after flagging a region ``x0 x1 y0 y1 z0 z1``, and the counts of the shortcuts."""
    records, bits = voxels.copy_bits()
    counts = np.zeros(4, np.int64)
    space = np.empty(len(records), np.float32)
    cosmics.flag(
        records, bits, voxels.offsets, voxels.window, np.array(region), CR_TYPES[cr_type], DIRECTIONS[direction],
        crsigma, shortcuts, counts, space,
    )  # fmt: skip
    return bits, counts


def neighbours(direction, i, j, k):
    """Voxels of the sample: beside the slice that the voxel lies in."""
    for di, dj, dk in itertools.product((-1, 0, 1), repeat=3):
        own = di == dj == dk == 0
        if own or (direction == "x" and dj) or (direction == "y" and di) or direction == "none":
            yield i + di, j + dj, k + dk


def oracle(voxels, region, cr_type, direction, crsigma):
    """Rows that are cosmic rays, and those too near to the limit to tell by other sums."""
    x0, x1, y0, y1, z0, z1 = region
    sure, near = set(), set()
    for i, j, k in itertools.product(range(x0, x1), range(y0, y1), range(z0, z1)):
        sample = [r for v in neighbours(direction, i, j, k) for r in voxels[v] if r["dq"] in (0, 32)]
        n = len(sample)
        if n < 3:
            continue
        values = [r["data"] for r in sample]
        margin = 0.0
        if cr_type == "median":
            level = statistics.median(values)
            limit = level + crsigma * statistics.median(abs(v - level) for v in values)
        else:
            level = math.fsum(values) / n
            if cr_type == "mean":
                deviation = math.sqrt(math.fsum((v - level) ** 2 for v in values) / (n - 1))
            else:
                deviation = math.sqrt(math.fsum(r["stat"] for r in sample)) / n
            limit = level + crsigma * deviation
            # the sums of the kernel are rounded after each term
            margin = 1e-12 * (max(map(abs, values)) + crsigma * deviation)
        for row in voxels[i, j, k]:
            if abs(row["data"] - limit) <= margin and margin:
                near.add((row["table"], row["row"]))
            elif row["data"] > limit:
                sure.add((row["table"], row["row"]))
    return sure, near


def before(voxels):
    """Rows that were flagged to begin with (dq is 32)."""
    return voxels.flagged(voxels.bits)


def skewed(rng):
    """Values with outliers upwards."""
    return lambda n, _: rng.normal(100, 10, n) + np.where(rng.random(n) < 0.08, rng.exponential(300, n), 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cr_type", CR_TYPES)
@pytest.mark.parametrize("n_rows", [20, 120, 500])
def test_definition(cr_type, direction, n_rows):
    """All voxels of a small grid, edges and corners included, sparse and crowded."""
    rng = np.random.default_rng(n_rows)
    shape = (4, 5, 6)
    region = (0, 4, 0, 5, 0, 6)
    voxels = Voxels(shape, random_columns(rng, shape, n_rows, data=skewed(rng), n_tables=2))
    n_flagged = 0
    for crsigma in (0.5, 2.0, 5.0):
        expected, near = oracle(voxels, region, cr_type, direction, crsigma)
        bits, counts = flag(voxels, region, cr_type, direction, crsigma)
        assert (voxels.flagged(bits) - near) == (expected | before(voxels)) - near
        # nothing but the state changes
        assert np.array_equal(np.delete(bits, DQ, 1), np.delete(voxels.bits, DQ, 1))
        assert counts[0] > 0
        n_flagged += len(expected)
    assert n_flagged > 3


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cr_type", CR_TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (7, 1, 3), (1, 6, 2), (2, 2, 1)])
def test_thin_grids(cr_type, direction, shape):
    rng = np.random.default_rng(3)
    region = tuple(v for n in shape for v in (0, n))
    voxels = Voxels(shape, random_columns(rng, shape, 8 * int(np.prod(shape)), data=skewed(rng)))
    expected, near = oracle(voxels, region, cr_type, direction, 2.0)
    bits, _ = flag(voxels, region, cr_type, direction, 2.0)
    assert (voxels.flagged(bits) - near) == (expected | before(voxels)) - near


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cr_type", CR_TYPES)
def test_parts_have_the_flags_of_the_whole(cr_type, direction):
    """A region of a larger window, neighbours from outside the region."""
    rng = np.random.default_rng(4)
    shape = (6, 7, 8)
    whole = (0, 6, 0, 7, 0, 8)
    voxels = Voxels(shape, random_columns(rng, shape, 900, data=skewed(rng)))
    all_bits, _ = flag(voxels, whole, cr_type, direction, 3.0)
    inner = (1, 4, 2, 5, 3, 7)
    bits, _ = flag(voxels, inner, cr_type, direction, 3.0)
    rows = np.zeros(shape, bool)
    rows[1:4, 2:5, 3:7] = True
    inside = np.repeat(rows.ravel(), np.diff(voxels.offsets))
    assert np.array_equal(bits[inside], all_bits[inside])
    assert np.array_equal(bits[~inside], voxels.bits[~inside])


def gradient(index, scale):
    return scale * (1.0 * index[0] - 2.0 * index[1] + 0.3 * index[2])


#: data that are hard for brackets and for medians: name -> values of (generator, number, voxels)
KINDS = {
    "normal": lambda rng, n, index: rng.normal(0, 1, n),
    "outliers": lambda rng, n, index: rng.normal(50, 1, n) * np.where(rng.random(n) < 0.1, 30, 1),
    "ties": lambda rng, n, index: rng.integers(0, 3, n),
    "constant": lambda rng, n, index: np.full(n, 0.1),
    "nearly constant": lambda rng, n, index: np.where(rng.random(n) < 0.05, 0.1000001, 0.1),
    "two levels": lambda rng, n, index: np.where(rng.random(n) < 0.5, -1.0, 1.0),
    "steep": lambda rng, n, index: gradient(index, 1e3) + rng.normal(0, 1, n),
    "very steep": lambda rng, n, index: np.exp(np.clip(gradient(index, 2.0), -80, 80)),
    "denormal": lambda rng, n, index: rng.integers(-5, 20, n) * 1.4e-45,
    "tiny": lambda rng, n, index: rng.normal(0, 1, n) * 1e-38,
    "huge": lambda rng, n, index: rng.normal(0, 1, n) * 1e30,
    "mixed": lambda rng, n, index: rng.normal(0, 1, n) * 10.0 ** rng.integers(-40, 38, n),
    "negative": lambda rng, n, index: -np.abs(rng.normal(1e4, 1e3, n)),
    "zeros": lambda rng, n, index: rng.choice([0.0, -0.0], n),
    "jump": lambda rng, n, index: np.where(index[2] > index[2].max() // 2, 1e6, -1e6) + rng.normal(0, 1, n),
    "largest": lambda rng, n, index: rng.choice([3.4e38, -3.4e38, 0.0], n),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(sorted(KINDS)),
    crowd=st.sampled_from([0.05, 0.3, 1.0, 3.0, 12.0]),
    bad=st.sampled_from([0.0, 0.1, 0.6, 0.95]),
    direction=st.sampled_from(sorted(DIRECTIONS)),
    crsigma=st.sampled_from([1e-3, 0.5, 1.0, 3.0, 10.0, 15.0, 1e6]),
    shape=st.sampled_from([(4, 4, 30), (2, 3, 60), (6, 5, 7), (1, 1, 100)]),
)
@example(seed=1, kind="outliers", crowd=3.0, bad=0.1, direction="x", crsigma=10.0, shape=(4, 4, 30))
@example(seed=2, kind="ties", crowd=3.0, bad=0.1, direction="none", crsigma=1.0, shape=(4, 4, 30))
@example(seed=3, kind="largest", crowd=3.0, bad=0.1, direction="x", crsigma=1e-3, shape=(4, 4, 30))
@example(seed=4, kind="largest", crowd=3.0, bad=0.6, direction="y", crsigma=3.0, shape=(2, 3, 60))
def test_shortcuts_change_no_flag(seed, kind, crowd, bad, direction, crsigma, shape):
    """Every shortcut rests on a proof; the full evaluation of every voxel gives the same flags."""
    rng = np.random.default_rng(seed)
    n = max(1, int(crowd * np.prod(shape)))
    with np.errstate(over="ignore", under="ignore"):
        columns = random_columns(
            rng, shape, n, data=lambda m, index: np.float32(np.clip(KINDS[kind](rng, m, index), -3.4e38, 3.4e38)),
            bad=bad,
        )  # fmt: skip
        voxels = Voxels(shape, columns)
    region = tuple(v for m in shape for v in (0, m))
    fast, counts = flag(voxels, region, "median", direction, crsigma)
    full, _ = flag(voxels, region, "median", direction, crsigma, shortcuts=False)
    assert np.array_equal(fast, full)
    assert counts[1:].sum() == counts[0]


def test_shortcuts_are_taken():
    """The comparison above is of two different ways: on quiet data hardly any voxel is evaluated in full."""
    rng = np.random.default_rng(5)
    shape = (5, 5, 50)
    voxels = Voxels(shape, random_columns(rng, shape, 3000))
    region = (0, 5, 0, 5, 0, 50)
    _, counts = flag(voxels, region, "median", "x", 10.0)
    assert counts[1] + counts[2] > 0.9 * counts[0]
    _, counts = flag(voxels, region, "median", "x", 10.0, shortcuts=False)
    assert counts[3] == counts[0]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=70))
def test_median_and_selection(values):
    array = np.array(values, np.float64)
    assert cosmics.median(array.copy(), len(values)) == statistics.median(array.tolist())
    for k in range(len(values)):
        assert cosmics.select(array.copy(), len(values), k) == sorted(values)[k]


@pytest.mark.parametrize(("posang", "mode", "expected"), [
    (0.0, "SKY", DIR_X), (4.999, "SKY", DIR_X), (-4.999, "STAT", DIR_X), (5.0, "SKY", DIR_NONE),
    (180.0, "SKY", DIR_X), (-175.1, "SKY", DIR_X), (360.0, "STAT", DIR_X), (355.1, "SKY", DIR_X),
    (90.0, "SKY", DIR_Y), (-94.9, "SKY", DIR_Y), (270.0, "STAT", DIR_Y), (85.0, "SKY", DIR_NONE),
    (45.0, "SKY", DIR_NONE), (365.1, "SKY", DIR_NONE), (450.0, "SKY", DIR_NONE),
])  # fmt: skip
def test_direction(posang, mode, expected):
    assert cosmics.direction(posang, mode, True) == expected
    # tables in pixels are never turned
    assert cosmics.direction(posang, mode, False) == DIR_X
