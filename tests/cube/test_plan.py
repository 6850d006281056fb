"""Plans: every voxel belongs to one chunk, the memory is respected, and what an error proposes works."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musedask.compute import parse_bytes
from musedask.cube.plan import check_memory, make_plan, rows_fit, task_bytes
from musedask.errors import PlanError

SHAPES = st.tuples(st.integers(1, 400), st.integers(1, 150), st.integers(1, 150))


def even(shape):
    """Rows spread evenly over the field."""
    _, ny, nx = shape

    def fraction(y0, y1, x0, x1):
        return (y1 - y0) * (x1 - x0) / (ny * nx)

    return fraction


def uneven(rng, nz, total):
    """Rows before each plane, most of them in a few planes."""
    counts = rng.exponential(size=nz) * np.where(rng.random(nz) < 0.05, 20, 1)
    return np.concatenate([[0.0], np.cumsum(counts / counts.sum() * total)])


@st.composite
def jobs(draw):
    """Arguments of make_plan but for the memory."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = draw(st.sampled_from([0.0, 1e3, 1e6, 1e8, 3e9]))
    return {
        "shape": shape,
        "halo": draw(st.integers(0, 4)),
        "cumulative": uneven(rng, shape[0], rows),
        "tile_fraction": even(shape),
        "n_threads": draw(st.integers(1, 16)),
        "rows_in_memory": draw(st.booleans()),
        "maps": draw(st.booleans()),
    }


def check_windows(plan):
    """The windows are disjoint, in order and cover the cube; a shard is whole inner chunks."""
    nz, ny, nx = plan.shape
    windows = list(plan.windows())
    assert len(windows) == plan.n_tasks == np.prod(plan.counts)
    assert windows == sorted(windows)
    assert all(0 <= z0 < z1 <= nz and 0 <= y0 < y1 <= ny and 0 <= x0 < x1 <= nx for z0, z1, y0, y1, x0, x1 in windows)
    assert sum((z1 - z0) * (y1 - y0) * (x1 - x0) for z0, z1, y0, y1, x0, x1 in windows) == nz * ny * nx
    for axis, n in enumerate(plan.shape):
        starts = sorted({(w[2 * axis], w[2 * axis + 1]) for w in windows})
        assert starts[0][0] == 0 and starts[-1][1] == n
        assert all(a[1] == b[0] for a, b in itertools.pairwise(starts))
    for inner, shard, chunk in zip(plan.inner_chunk(), plan.shard(), plan.chunk, strict=True):
        assert shard % inner == 0 and shard >= chunk
        assert shard - chunk < inner


def largest_task(job, chunk):
    """Memory of the largest task of a plan, from its windows one by one."""
    nz, ny, nx = job["shape"]
    halo = job["halo"]
    size = 0
    for z in range(0, nz, chunk[0]):
        a, b = max(z - halo, 0), min(z + chunk[0] + halo, nz)
        rows = job["cumulative"][b] - job["cumulative"][a]
        for y in range(0, ny, chunk[1]):
            for x in range(0, nx, chunk[2]):
                box = (max(y - halo, 0), min(y + chunk[1] + halo, ny), max(x - halo, 0), min(x + chunk[2] + halo, nx))
                window = (b - a) * (box[1] - box[0]) * (box[3] - box[2])
                share = job["tile_fraction"](*box)
                size = max(
                    size,
                    task_bytes(
                        rows * share, window, np.prod([min(c, n) for c, n in zip(chunk, job["shape"], strict=True)]),
                        rows_in_memory=job["rows_in_memory"], maps=job["maps"],
                    ),
                )  # fmt: skip
    return size


@given(job=jobs(), memory=st.sampled_from([2e8, 1e9, 4e9, 3e10, 1e12]))
def test_memory_is_respected(job, memory):
    try:
        plan = make_plan(**job, memory=int(memory))
    except PlanError as error:
        proposed = [parse_bytes(m) for m in re.findall(r"[0-9.]+ [kMGT]?B", str(error))][1:]
        assert proposed
        # the proposal works, and is not the price of nothing
        plan = make_plan(**job, memory=proposed[0])
        check_windows(plan)
        if len(proposed) > 1:
            check_windows(make_plan(**job | {"n_threads": 1}, memory=proposed[1]))
        return
    check_windows(plan)
    assert plan.peak_bytes <= memory
    # the estimate is that of the largest task; the share of the fullest tile stands for all ranges of planes
    assert plan.task_bytes >= largest_task(job, plan.chunk) - 1
    assert plan.max_rows >= 1000


@given(job=jobs(), chunk=st.tuples(*[st.integers(1, 600)] * 3))
def test_given_chunks(job, chunk):
    """They are used as they are, cut to the cube."""
    job |= {"shape": tuple(max(n, c // 20) for n, c in zip(job["shape"], chunk, strict=True))}
    job |= {"cumulative": np.linspace(0, 1e5, job["shape"][0] + 1), "tile_fraction": even(job["shape"])}
    plan = make_plan(**job, memory=10**9, chunk=chunk)
    assert plan.chunk == tuple(min(c, n) for c, n in zip(chunk, job["shape"], strict=True))
    if plan.n_tasks < 20000:
        check_windows(plan)


def test_small_memory_makes_small_chunks():
    shape = (3700, 400, 400)
    cumulative = np.linspace(0, 3e8, 3701)
    plans = [
        make_plan(shape, 2, cumulative, even(shape), memory, 4, rows_in_memory=False)
        for memory in (8 * 10**8, 2 * 10**9, 16 * 10**9)
    ]
    voxels = [int(np.prod(p.chunk)) for p in plans]
    assert voxels == sorted(voxels) and voxels[0] < voxels[-1]
    # there are enough tasks for all threads
    assert all(p.n_tasks >= 4 * p.n_threads for p in plans)


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_least_memory(threads):
    """Before rows are sorted on disk it is known that no task could run."""
    with pytest.raises(PlanError, match="smallest limit that would do") as found:
        check_memory(10**6, threads)
    check_memory(parse_bytes(re.findall(r"do is (\d+ MB)", str(found.value))[0]), threads)


@given(st.integers(1, 64), st.sampled_from([8, 32]), st.floats(7.5, 11), st.floats(5, 10))
def test_rows_that_fit(threads, row_bytes, memory, rows):
    """What is kept in memory leaves room for the tasks."""
    shape = (300, 300, 300)
    n = int(10**rows)
    if rows_fit(n, row_bytes, int(10**memory), threads):
        plan = make_plan(
            shape, 2, np.linspace(0, n, 301), even(shape), int(10**memory), threads, rows_in_memory=True,
            row_bytes=row_bytes,
        )  # fmt: skip
        assert n * row_bytes <= plan.fixed_bytes + 1 < plan.peak_bytes <= 10**memory


@pytest.mark.parametrize("nz", [81, 79, 83, 61, 97, 31, 7, 1])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_few_planes(nz, threads):
    """They are shared evenly, with little halo, and in Zarr chunks of several planes."""
    shape = (nz, 300, 300)
    plan = make_plan(
        shape, 2, np.linspace(0, 1e6, nz + 1), even(shape), 10**10, threads, rows_in_memory=True, row_bytes=8
    )
    height = plan.chunk[0]
    assert height == min(nz, 8) or 2 * threads - 2 <= plan.n_tasks <= 2 * threads
    assert plan.inner_chunk()[0] >= min(height, 5)


def test_description_says_what_matters():
    shape = (100, 50, 60)
    text = make_plan(
        shape, 2, np.linspace(0, 1e6, 101), even(shape), 10**9, 2, rows_in_memory=True, disk_bytes=5 * 10**6
    ).describe()
    for part in ("60 x 50 x 100", "2 at a time", "rows in memory: 32 MB", "disk 5 MB"):
        assert part in text


@given(st.tuples(st.integers(1, 30), st.integers(1, 1500), st.integers(1, 1500)), st.floats(7.8, 11), st.booleans())
def test_a_shard_is_a_chunk(shape, memory, own):
    """Where a large field is divided, a chunk is a whole number of inner chunks: tasks write whole shards."""
    chunk = tuple(max(1, n // 3) for n in shape) if own else None
    cumulative = np.linspace(0, 40.0 * np.prod(shape), shape[0] + 1)
    try:
        plan = make_plan(shape, 2, cumulative, even(shape), int(10**memory), 2, rows_in_memory=False, chunk=chunk)
    except PlanError:
        return
    assert all(s == c or c == n for s, c, n in zip(plan.shard(), plan.chunk, shape, strict=True))
    assert all(s % i == 0 for s, i in zip(plan.shard(), plan.inner_chunk(), strict=True))
