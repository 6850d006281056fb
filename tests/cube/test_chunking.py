"""How a cube is cut, where its rows are and who computes it changes no bit of it.

Every case is compared with the cube made in one piece by one thread with all rows in memory: flux,
variance, field-of-view image, sums of weights and numbers of pixels.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from musedask.cube import chunks as chunk_tasks
from musedask.cube import resample
from musedask.cube.mosaic import combine, make_cube, make_store
from musedask.cube.store import PositionedStore
from musedask.errors import ComputeError, PlanError
from musedask.io.headers import set_card
from musedask.io.pixtable import scan_pixtable, write_pixtable
from musedask.sim import simulate_pixtables

METHODS = ("nearest", "linear", "quadratic", "renka", "drizzle", "lanczos")
WHOLE = {"chunks": (10**6, 10**6, 10**6), "in_memory": True, "n_workers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chunking")


@pytest.fixture(scope="module")
def sim(folder):
    """Three exposures that are turned and shifted against each other, with everything that can happen to a pixel."""
    return simulate_pixtables(
        folder / "in", ifus=(12,), slices=12, slice_width=12, wave_range=(6500.0, 6516.0), rotations=(0.0, 90.0, 33.0),
        exptimes=(900, 600, 1200), flux_scales=(1.0, 1.1, 0.95), offsets=((0.0, 0.0), (0.3, 0.2), (-0.1, 0.5)),
        pointing_errors=((0.0, 0.0), (0.4, -0.5), (-0.3, 0.3)), cosmic_rays=2e-2, bad_pixels=1e-2, seed=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(folder, sim):
    return make_store(sim.paths, folder / "store")


@pytest.fixture(scope="module")
def grids(folder):
    """OUTPUT_WCS files: none, a turned one with a logarithmic axis in vacuum, one much smaller than the data."""
    paths = {"natural": None}
    for name, size, angle, wave in (
        ("turned", (24, 22, 19), 25.0, ("WAVE-LOG", 6501.0, 1.0, 1.0)),
        ("small", (6, 7, 4), 0.0, ("AWAV", 6505.0, 1.0, 1.25)),
    ):
        c, s = np.cos(np.radians(angle)) * 0.2 / 3600, np.sin(np.radians(angle)) * 0.2 / 3600
        hdu = fits.ImageHDU(np.zeros(size[::-1], np.int16))
        hdu.header.update(
            {
                "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": wave[0], "CUNIT1": "deg", "CUNIT2": "deg",
                "CUNIT3": "Angstrom", "CRVAL1": 150.1, "CRVAL2": -27.8, "CRVAL3": wave[1], "CRPIX1": size[0] / 2 + 0.3,
                "CRPIX2": size[1] / 2 + 0.2, "CRPIX3": wave[2], "CD1_1": -c, "CD1_2": s, "CD2_1": s, "CD2_2": c,
                "CD3_3": wave[3],
            }
        )  # fmt: skip
        paths[name] = folder / f"{name}.fits"
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(paths[name])
    return paths


def bits(values):
    values = np.ascontiguousarray(values)
    return np.where(np.isnan(values), 0x7FC00000, values.view(np.int32)) if values.dtype == np.float32 else values


def contents(cube):
    """All variables as integers, NaN alike."""
    found = {name: bits(cube[name].values) for name in cube.data_vars}
    assert {"flux", "variance"} <= set(found)
    return found


def assert_same(cube, expected):
    found = contents(cube)
    assert set(found) == set(expected)
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


class Whole:
    """Cubes in one piece, each made once."""

    def __init__(self, folder, sim):
        self.folder, self.sim, self.made = folder, sim, {}

    def __call__(self, **options):
        key = tuple(sorted((k, str(v)) for k, v in options.items()))
        if key not in self.made:
            cube = combine(
                self.sim.paths, self.folder / "whole.zarr", offset_list=self.sim.offset_list, overwrite=True,
                **WHOLE, **options,
            )  # fmt: skip
            self.made[key] = contents(cube)
        return self.made[key]


@pytest.fixture(scope="module")
def whole(folder, sim):
    return Whole(folder, sim)


def few_tasks(chunks):
    """Whether the cubes, of some 20 x 20 x 20 voxels, make at most 30 chunks."""
    return np.prod([-(-20 // c) for c in chunks]) <= 30


@given(
    method=st.sampled_from(METHODS),
    ld=st.sampled_from([1, 1, 2, 3]),
    cosmic=st.sampled_from([("median", 10.0), ("iraf", 3.0), ("mean", 3.0), ("median", -1.0)]),
    grid=st.sampled_from(["natural", "natural", "turned", "small"]),
    chunks=st.one_of(st.none(), st.tuples(*[st.integers(1, 25)] * 3).filter(few_tasks)),
    where=st.sampled_from(["memory", "disk", "store", "positions"]),
    workers=st.integers(1, 3),
    limit=st.sampled_from([None, "100MB", "200MB", "2GB"]),
    per_exposure=st.booleans(),
)
def test_any_cut(
    folder, sim, store, grids, whole, method, ld, cosmic, grid, chunks, where, workers, limit, per_exposure
):
    options = {
        "resample": method, "ld": ld, "crtype": cosmic[0], "crsigma": cosmic[1], "output_wcs": grids[grid],
        "weight_map": True, "cr_per_exposure": per_exposure,
    }  # fmt: skip
    expected = whole(**options)
    inputs = store if where in ("store", "positions") else sim.paths
    try:
        cube = combine(
            inputs, folder / "any.zarr", offset_list=sim.offset_list, overwrite=True, chunks=chunks,
            in_memory=where in ("memory", "positions"), n_workers=workers, memory_limit=limit, **options,
        )  # fmt: skip
    except PlanError as error:
        # a limit may be too small for so many threads, but then one of them must do
        assert limit == "100MB" and workers > 1, error
        return
    assert_same(cube, expected)


CUTS = ((1, 1000, 1000), (1000, 3, 4), (4, 1000, 1), (3, 5, 7))


@pytest.mark.parametrize(
    ("method", "chunks"), [(method, CUTS[(i + j) % 4]) for i, method in enumerate(METHODS) for j in (0, 2)]
)
def test_explicit_cuts(folder, sim, whole, method, chunks):
    """Single planes, columns, slabs, and blocks with edges that are no multiple of anything."""
    cube = combine(
        sim.paths, folder / "cut.zarr", offset_list=sim.offset_list, overwrite=True, chunks=chunks, resample=method
    )
    assert_same(cube, whole(resample=method))


@pytest.mark.parametrize(
    ("method", "grid", "where", "divisor"),
    [
        ("nearest", "natural", "memory", 2), ("nearest", "natural", "store", 5), ("nearest", "small", "store", 2),
        ("drizzle", "natural", "memory", 5), ("drizzle", "natural", "store", 2), ("drizzle", "small", "memory", 2),
        ("linear", "natural", "memory", 5), ("linear", "natural", "store", 2), ("linear", "small", "store", 5),
    ],
)  # fmt: skip
def test_tasks_that_split_themselves(folder, sim, store, grids, whole, monkeypatch, method, grid, where, divisor):
    """A chunk that meets more rows than planned is computed in parts."""
    splits = []
    original = resample.Job.__init__
    fill = resample._fill

    def small(self, *args, **kwargs):
        original(self, *args, **kwargs)
        object.__setattr__(self, "max_rows", sum(e.n_rows for e in sim.exposures) // divisor)

    def count(job, store, whole, part, *rest):
        splits.append(part != whole)
        return fill(job, store, whole, part, *rest)

    expected = whole(resample=method, output_wcs=grids[grid], weight_map=True)
    monkeypatch.setattr(resample.Job, "__init__", small)
    monkeypatch.setattr(resample, "_fill", count)
    inputs, chunks = (store, (8, 100, 100)) if where == "store" else (sim.paths, (1000, 1000, 1000))
    try:
        cube = combine(
            inputs, folder / "split.zarr", offset_list=sim.offset_list, overwrite=True, chunks=chunks, resample=method,
            output_wcs=grids[grid], weight_map=True,
        )  # fmt: skip
    except PlanError as error:
        # the corners of the small grid hold a good part of all rows
        assert grid == "small" and "hold more than" in str(error)
        return
    assert_same(cube, expected)
    assert any(splits)


@pytest.mark.parametrize("block_rows", [1000, 1777])
def test_blocks_of_the_store(folder, sim, whole, monkeypatch, block_rows):
    """Tables may come in pieces of any size."""
    from musedask.cube import store as module

    sizes = []
    plan_blocks = module.plan_blocks

    def smaller(exposure, rows):
        pieces = plan_blocks(exposure, block_rows)
        sizes.append(len(pieces))
        return pieces

    for name, loaded in list(sys.modules.items()):
        if name.startswith("musedask.cube") and hasattr(loaded, "plan_blocks"):
            monkeypatch.setattr(loaded, "plan_blocks", smaller)
    for in_memory in (True, False):
        cube = combine(
            sim.paths, folder / "blocks.zarr", offset_list=sim.offset_list, overwrite=True, in_memory=in_memory,
            chunks=(5, 9, 100), resample="linear",
        )  # fmt: skip
        assert_same(cube, whole(resample="linear"))
    assert sizes and min(sizes) > 1


def test_one_store_for_many_cubes(folder, sim, store, grids, whole):
    """A store knows nothing of grids, offsets and weights."""
    for options in (
        {"resample": "renka"}, {"dx": 0.3, "dlambda": 2.0}, {"output_wcs": grids["turned"]},
        {"weight": "none", "resample": "nearest"}, {"lambdamin": 6503.3, "lambdamax": 6510.1},
    ):  # fmt: skip
        cube = combine(store, folder / "many.zarr", offset_list=sim.offset_list, overwrite=True, **options)
        assert_same(cube, whole(**options))


@pytest.mark.parametrize("edges", ["rows", "bins", "beyond"])
@pytest.mark.parametrize("grid", ["natural", "turned"])
def test_range_of_a_store(folder, sim, store, grids, whole, monkeypatch, edges, grid):
    """With positions in memory or without, as a whole or after an interruption; rows on the borders are kept."""
    wave = np.sort(scan_pixtable(sim.paths[0]).read("lambda"))
    low, high = {
        "rows": (float(wave[len(wave) // 4]), float(wave[3 * len(wave) // 4])),
        "bins": (6505.0, 6510.0),
        "beyond": (6000.0, 6504.3),
    }[edges]
    options = {"lambdamin": low, "lambdamax": high, "output_wcs": grids[grid]}
    expected = whole(**options)
    common = {"offset_list": sim.offset_list, "overwrite": True, "chunks": (3, 9, 100), "n_workers": 1, **options}
    for in_memory in (True, False):
        cube = combine(store, folder / "range.zarr", in_memory=in_memory, **common)
        assert_same(cube, expected)

    calls = []
    original = chunk_tasks.resample_chunk

    def stopped(*args, **kwargs):
        calls.append(args[1])
        if len(calls) == 3:
            raise RuntimeError("stopped")
        return original(*args, **kwargs)

    monkeypatch.setattr(chunk_tasks, "resample_chunk", stopped)
    with pytest.raises(ComputeError, match="1 of"):
        combine(store, folder / "range.zarr", **common)
    n = len(calls)
    assert_same(combine(store, folder / "range.zarr", **common), expected)
    # only the one that failed; where the rows come from is no part of the job
    assert len(calls) == n + 1
    assert all(isinstance(used, PositionedStore) for used in calls)


@pytest.mark.parametrize("stage", ["pix", "deg"])
def test_cubes_of_one_exposure(folder, tmp_path, stage):
    sim = simulate_pixtables(
        tmp_path / "in", n_exposures=1, ifus=(12,), slices=12, slice_width=10, wave_range=(6500.0, 6510.0),
        stage=stage, cosmic_rays=2e-2, bad_pixels=1e-2,
    )  # fmt: skip
    expected = contents(make_cube(sim.paths, tmp_path / "whole.zarr", **WHOLE))
    for chunks, in_memory in (((2, 5, 6), True), ((3, 100, 4), False), ((1, 1, 100), False)):
        cube = make_cube(sim.paths, tmp_path / "cut.zarr", chunks=chunks, in_memory=in_memory, overwrite=True)
        assert_same(cube, expected)


def test_wavelengths_outside_of_all_bins(folder, tmp_path):
    """Rows below 4000 or above 10000 Angstrom lie in the outermost bins of a store, and none is lost."""
    sim = simulate_pixtables(
        tmp_path / "in", n_exposures=1, ifus=(12,), slices=12, slice_width=6, wave_range=(6500.0, 6540.0), stage="pix"
    )
    table = scan_pixtable(sim.paths[0])
    columns = {name: table.read(name) for name in table.columns}
    units = {name: column.unit for name, column in table.columns.items()}
    wave = columns["lambda"]
    for shift in (3480.0, -2520.0):
        columns["lambda"] = wave + np.float32(shift)
        header = table.header.copy()
        for side, value in (("LOW", columns["lambda"].min()), ("HIGH", columns["lambda"].max())):
            set_card(header, f"ESO DRS MUSE PIXTABLE LIMITS LAMBDA {side}", float(value))
        write_pixtable(tmp_path / "t.fits", header, columns, units, overwrite=True)
        common = {"lambdamin": 3000.0, "lambdamax": 11000.0, "overwrite": True, "filter": "none"}
        cube = make_cube(tmp_path / "t.fits", tmp_path / "whole.zarr", **WHOLE, **common)
        assert np.isfinite(cube.flux.values).any((1, 2)).all()
        expected = contents(cube)
        for in_memory in (True, False):
            cube = make_cube(tmp_path / "t.fits", tmp_path / "c.zarr", chunks=(3, 9, 9), in_memory=in_memory, **common)
            assert_same(cube, expected)


@pytest.mark.parametrize("processes", [False, True])
def test_cluster(folder, sim, store, whole, processes):
    """Two workers of a Dask cluster, as threads of this process or as processes of their own."""
    from distributed import Client, LocalCluster

    host = {"host": "127.0.0.1"} if processes else {}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address="127.0.0.1:0", memory_limit=0,
            **host,
        ) as cluster,
        Client(cluster) as client,
    ):
        for number, (inputs, options) in enumerate((
            (sim.paths, {"resample": "drizzle", "weight_map": True}),
            (store, {"resample": "linear", "crtype": "iraf", "crsigma": 3.0}),
            (store, {"resample": "nearest"}),
        )):  # fmt: skip
            cube = combine(
                inputs, folder / f"cluster{number}.zarr", offset_list=sim.offset_list, overwrite=True, client=client,
                chunks=(4, 9, 10), **options,
            )  # fmt: skip
            assert_same(cube, whole(**options))
