"""Pixel store: all rows and nothing else, slices by wavelength, refusals, and building that goes on after a stop."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from musedask.cube import kernels
from musedask.cube import store as module
from musedask.cube.exposure import Placement, group_exposures
from musedask.cube.mosaic import combine, make_store
from musedask.cube.store import (
    BIN_START,
    BIN_WIDTH,
    N_BINS,
    Block,
    DiskStore,
    MemoryStore,
    PositionedStore,
    bin_range,
    block_limits,
    block_path,
    describe,
    plan_blocks,
    prepare,
    read_block,
)
from musedask.errors import ComputeError, InputError, MusedaskError, OutputExistsError, PlanError, StoreError
from musedask.io.pixtable import PixtableFile, scan_pixtable
from musedask.sim import simulate_pixtables

TINY = {"ifus": (12,), "slices": 12, "slice_width": 6, "wave_range": (6480.0, 6530.0), "bad_pixels": 0.05}
EVERYTHING = (0, N_BINS)
COLUMNS = {"xpos": 0, "ypos": 1, "lambda": 2, "data": 3, "stat": 4}


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    return simulate_pixtables(tmp_path_factory.mktemp("store") / "in", **TINY, rotations=(0.0, 40.0))


@pytest.fixture(scope="module")
def store(sim, tmp_path_factory):
    return DiskStore(make_store(sim.paths, tmp_path_factory.mktemp("store") / "pixels.store"))


def rows_of(store, exposure):
    """All rows of an exposure in the order of its tables."""
    rows = np.concatenate([store.read(block, EVERYTHING) for block in store.exposures[exposure].blocks])
    order = np.argsort(rows.view(np.int32)[:, kernels.ROW], kind="stable")
    return rows[order]


def check_rows(rows, table, *, weight=1.0):
    """The columns of a table, bit for bit, and the numbers of its rows."""
    for name, place in COLUMNS.items():
        np.testing.assert_array_equal(rows[:, place].view(np.int32), table.read(name).view(np.int32))
    np.testing.assert_array_equal(rows.view(np.int32)[:, kernels.DQ], table.read("dq"))
    np.testing.assert_array_equal(rows.view(np.int32)[:, kernels.ROW], np.arange(table.n_rows))
    np.testing.assert_array_equal(rows[:, kernels.WEIGHT], weight)


def test_round_trip(sim, store):
    assert len(store.exposures) == 3
    for number, path in enumerate(sim.paths):
        table = scan_pixtable(path)
        check_rows(rows_of(store, number), table)
        exposure = store.exposures[number]
        assert exposure.n_rows == table.n_rows
        assert exposure.header["DATE-OBS"] == table.header["DATE-OBS"]
        assert exposure.units["data"] == table.columns["data"].unit
        assert exposure.sources == [path.resolve()]


@pytest.mark.parametrize("form", ["image", "table"])
def test_weight_column(tmp_path, form):
    sim = simulate_pixtables(tmp_path / "in", **TINY, exptimes=(900, 450), weight=True, form=form)
    store = DiskStore(make_store(sim.paths, tmp_path / "pixels.store"))
    for number, path in enumerate(sim.paths):
        check_rows(rows_of(store, number), scan_pixtable(path), weight=(1.0, 0.5, 1.0)[number])


def test_blocks_are_sorted_by_wavelength(store):
    for exposure in store.exposures:
        for block in exposure.blocks:
            rows = store.read(block, EVERYTHING)
            assert len(rows) == block.n_rows == block.bins[-1]
            bins = np.clip(((rows[:, 2].astype(float) - BIN_START) / BIN_WIDTH).astype(int), 0, N_BINS - 1)
            np.testing.assert_array_equal(np.searchsorted(bins, np.arange(N_BINS + 1)), block.bins)
            # inside a bin rows are in table order
            numbers = rows.view(np.int32)[:, kernels.ROW].astype(np.int64)
            assert np.all(np.diff(bins * 10**9 + numbers) > 0)


@given(first=st.integers(0, N_BINS), last=st.integers(0, N_BINS), wide=st.booleans())
def test_slices(store, first, last, wide):
    if not wide:
        # around the data, which fill ten bins
        first, last = 494 + first % 14, 494 + last % 14
    first, last = min(first, last), max(first, last)
    for exposure in store.exposures:
        for block in exposure.blocks:
            whole = store.read(block, EVERYTHING)
            part = store.read(block, (first, last))
            np.testing.assert_array_equal(
                part.view(np.int32), whole[block.bins[first] : block.bins[last]].view(np.int32)
            )


@given(low=st.floats(3000, 11000), width=st.floats(0, 3000))
def test_bins_of_a_range(low, width):
    """They hold every wavelength of the range, and no bin in vain."""
    first, last = bin_range(low, low + width)
    assert 0 <= first <= last <= N_BINS
    for wave in (low, low + width / 3, low + width):
        k = min(max(int((wave - BIN_START) / BIN_WIDTH), 0), N_BINS - 1)
        assert first <= k < last
    if low > BIN_START and low + width < BIN_START + BIN_WIDTH * N_BINS:
        assert BIN_START + first * BIN_WIDTH <= low
        assert BIN_START + (last - 1) * BIN_WIDTH <= low + width


def test_memory_and_disk_hold_the_same(sim, store):
    exposures = group_exposures(sim.paths)
    memory = MemoryStore([describe(e) for e in exposures])
    for number, exposure in enumerate(exposures):
        pieces = plan_blocks(exposure, 700)
        assert len(pieces) > 3 and pieces[0][1] == 0 and pieces[-1][2] == exposure.n_rows
        for k, (source, start, stop) in enumerate(pieces):
            rows, bins = read_block(exposure, exposure.sources[source], start, stop, (-np.inf, np.inf))
            block = Block(number, k, source, start, stop, bins, ())
            memory.add(block, rows)
            memory.exposures[number].blocks.append(block)
        np.testing.assert_array_equal(
            rows_of(memory, number).view(np.int32), rows_of(store, number).view(np.int32)
        )


@pytest.mark.parametrize("cut", [(6490.0, 6510.0), (4000.0, 6500.0), None])
def test_wavelength_range(sim, tmp_path, cut):
    """Rows on the limits are kept."""
    table = scan_pixtable(sim.paths[1])
    wave = table.read("lambda")
    if cut is None:
        cut = (float(np.sort(wave)[40]), float(np.sort(wave)[-40]))
    store = DiskStore(make_store(sim.paths, tmp_path / "s", lambdamin=cut[0], lambdamax=cut[1]))
    keep = (wave >= np.float32(cut[0])) & (wave <= np.float32(cut[1]))
    np.testing.assert_array_equal(rows_of(store, 1).view(np.int32)[:, kernels.ROW], np.flatnonzero(keep))
    assert store.exposures[1].n_rows == keep.sum() < len(wave)


def test_ifus_are_merged(tmp_path):
    """Levels and the flat-field spectrum are applied when a table is read, with the reference's roundings."""
    sim = simulate_pixtables(
        tmp_path / "in", **TINY | {"ifus": (12, 14)}, n_exposures=2, per_ifu=True, flat_field=True
    )
    store = DiskStore(make_store(sim.paths, tmp_path / "s"))
    assert [len(e.sources) for e in store.exposures] == [2, 2]
    for number, exposure in enumerate(group_exposures(sim.paths)):
        rows = rows_of(store, number)
        for source in exposure.sources:
            table = source.table
            part = rows[source.first_row : source.first_row + table.n_rows]
            data, stat, wave = (table.read(n) for n in ("data", "stat", "lambda"))
            if source.scale != 1:
                data = (data * np.float64(1 / source.scale)).astype("f4")
                stat = (stat * np.float64(1 / source.scale**2)).astype("f4")
            flat = np.interp(wave.astype(float), *exposure.flat)
            # the interpolation may round otherwise
            np.testing.assert_allclose(part[:, kernels.DATA], data * flat, rtol=1.2e-7)
            np.testing.assert_allclose(part[:, kernels.STAT], stat * flat * flat, rtol=2.4e-7)
            np.testing.assert_array_equal(part[:, kernels.WAVE], wave)
        np.testing.assert_array_equal(rows.view(np.int32)[:, kernels.ROW], np.arange(len(rows)))


@pytest.mark.parametrize("cut", [(-np.inf, np.inf), (6490.0, 6510.0), (6493.7, 6501.2), (6495.0, 6495.0)])
def test_positioned_store(sim, store, monkeypatch, cut):
    """It gives the rows of the store, cut and prepared, in the same order, whatever the pieces."""
    monkeypatch.setattr(module, "PIECE_ROWS", 300)
    placements = [Placement(True, -27.8 - 0.001 * k, (0.001 * k, 0.002 * k), 1 + 0.1 * k, -1.0) for k in range(3)]
    positioned = PositionedStore(store, placements, True, cut)
    low, high = np.float32(cut[0]), np.float32(cut[1])
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            rows = store.read(block, EVERYTHING)
            bins = np.repeat(np.arange(N_BINS), np.diff(block.bins))
            keep = (rows[:, kernels.WAVE] >= low) & (rows[:, kernels.WAVE] <= high)
            expected, bins = rows[keep], bins[keep]
            prepare(expected, placements[number], True)
            found = positioned.position(block)
            np.testing.assert_array_equal(found.bins, np.searchsorted(bins, np.arange(N_BINS + 1)))
            assert found.limits == block_limits(expected)
            for first, last in ((0, N_BINS), (499, 501), (500, 600)):
                part = (bins >= first) & (bins < last)
                np.testing.assert_array_equal(
                    positioned.read(found, (first, last)).view(np.int32), expected[part].view(np.int32)
                )


def test_it_is_a_zarr_group(sim, store):
    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["musedask"] == "pixel store"
    array = group["exposure_0001/block_00000"]
    block = store.exposures[1].blocks[0]
    np.testing.assert_array_equal(array[:].view(np.int32), store.read(block, EVERYTHING).view(np.int32))
    assert array.attrs["columns"][:5] == list(COLUMNS)


# ---------------------------------------------------------------------------------------- refusals


def test_changed_source(sim, tmp_path, caplog):
    """A store of other data than those that are there now would give a wrong cube."""
    copies = []
    for path in sim.paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
    store = make_store(copies, tmp_path / "s")
    times = copies[1].stat()
    os.utime(copies[1], ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    with pytest.raises(StoreError, match=f"{copies[1].name} has changed since"):
        DiskStore(store)
    with pytest.raises(StoreError, match="make the store anew"):
        combine(store, tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()
    os.utime(copies[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    DiskStore(store)
    # without its sources a store is still good
    caplog.set_level(logging.INFO, "musedask")
    for copy in copies:
        copy.unlink()
    assert len(DiskStore(store).exposures) == 3
    assert "no longer there" in caplog.text


def test_what_is_no_store(tmp_path, sim):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreError, match="not a pixel store"):
            DiskStore(path)
    other = tmp_path / "other.zarr"
    zarr.open_group(other, mode="w")
    with pytest.raises(StoreError, match="not a pixel store"):
        DiskStore(other)
    store = make_store(sim.paths, tmp_path / "s")
    text = (store / "zarr.json").read_text()
    meta = json.loads(text)
    meta["attributes"]["schema_version"] = 99
    (store / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="schema version 99"):
        DiskStore(store)
    meta["attributes"]["musedask"] = "cube"
    (store / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="expected a pixel store"):
        DiskStore(store)
    (store / "zarr.json").write_text(text)
    DiskStore(store)


def test_damaged_store(sim, tmp_path):
    path = make_store(sim.paths, tmp_path / "s")
    file = block_path(path, 0, 0)
    file.write_bytes(file.read_bytes()[:-100])
    store = DiskStore(path)
    with pytest.raises(StoreError, match="damaged"):
        store.read(store.exposures[0].blocks[0], EVERYTHING)
    with pytest.raises(MusedaskError):
        combine(path, tmp_path / "c.zarr", in_memory=False)
    assert not (tmp_path / "c.zarr").exists()


def test_existing_output(sim, tmp_path):
    path = make_store(sim.paths[:1], tmp_path / "s")
    with pytest.raises(OutputExistsError):
        make_store(sim.paths, path)
    assert len(DiskStore(path).exposures) == 1
    make_store(sim.paths, path, overwrite=True)
    assert len(DiskStore(path).exposures) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(("column", "value", "dq", "words"), [
    ("xpos", np.nan, 0, "xpos, ypos or lambda is not finite in 2"), ("lambda", np.inf, 256, "is not finite in 2"),
    ("data", np.nan, 0, "data or stat is not finite in 2"), ("stat", np.inf, 0, "data or stat is not finite in 2"),
    ("data", np.nan, 256, None), ("stat", -np.inf, 32, None),
])  # fmt: skip
def test_values_that_are_no_numbers(sim, tmp_path, column, value, dq, words):
    """Positions of all rows and values of good ones are checked; the message leads to the rows."""
    path = tmp_path / "table.fits"
    path.write_bytes(sim.paths[0].read_bytes())
    table = scan_pixtable(path)
    for row in (17, 40):
        for name, number in ((column, value), ("dq", dq)):
            place = table.columns[name]
            with open(path, "r+b") as file:
                file.seek(place.offset + row * place.stride)
                file.write(np.array([number], place.dtype).tobytes())
    if words is None:
        make_store([path], tmp_path / "s")
        return
    with pytest.raises(InputError, match=f"table.fits: .*{words} row.*the first is row 17"):
        make_store([path], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_impossible_limits(sim, tmp_path):
    with pytest.raises(PlanError, match="smallest limit that would do"):
        combine(sim.paths, tmp_path / "c.zarr", memory_limit="10MB", in_memory=False)
    with pytest.raises(InputError, match="n_workers"):
        make_store(sim.paths, tmp_path / "s", n_workers=0)


# -------------------------------------------------------------------------------- stopped building


def stop_reading(monkeypatch, path):
    """Make reading of one file fail, and list the files that are read."""
    read = PixtableFile.read
    seen = []

    def spy(self, name, *args):
        seen.append(self.path.name)
        if self.path == path:
            raise RuntimeError("stopped")
        return read(self, name, *args)

    monkeypatch.setattr(PixtableFile, "read", spy)
    return seen


def test_building_goes_on(sim, store, tmp_path, monkeypatch):
    """What was finished before the stop is not read again, and the store is that of an undisturbed run."""
    with monkeypatch.context() as patch:
        stop_reading(patch, sim.paths[2])
        with pytest.raises(ComputeError, match="1 of 3 tasks failed, all others are finished and kept"):
            make_store(sim.paths, tmp_path / "s", n_workers=1)
    assert not (tmp_path / "s").exists()
    assert (tmp_path / ".s.work").is_dir()
    with monkeypatch.context() as patch:
        seen = stop_reading(patch, None)
        make_store(sim.paths, tmp_path / "s", n_workers=1)
    assert set(seen) == {sim.paths[2].name}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    resumed = DiskStore(tmp_path / "s")
    for number in range(3):
        np.testing.assert_array_equal(rows_of(resumed, number).view("i4"), rows_of(store, number).view("i4"))


def test_another_job_does_not_go_on(sim, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_reading(patch, sim.paths[2])
        with pytest.raises(ComputeError, match="1 of 3 tasks failed, all others are finished and kept"):
            make_store(sim.paths, tmp_path / "s", n_workers=1)
    with pytest.raises(StoreError, match=r"an earlier run with other inputs .*interrupted there; it differs in inputs"):
        make_store(sim.paths[:2], tmp_path / "s")
    with pytest.raises(StoreError, match=r"overwrite"):
        make_store(sim.paths, tmp_path / "s", lambdamax=6500.0)
    make_store(sim.paths[:2], tmp_path / "s", overwrite=True)
    assert len(DiskStore(tmp_path / "s").exposures) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_changed_table_is_another_job(sim, tmp_path, monkeypatch):
    copies = [tmp_path / p.name for p in sim.paths]
    for path, copy in zip(sim.paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    with monkeypatch.context() as patch:
        stop_reading(patch, copies[2])
        with pytest.raises(ComputeError, match="1 of 3 tasks failed, all others are finished and kept"):
            make_store(copies, tmp_path / "s", n_workers=1)
    os.utime(copies[0], ns=(1, 1))
    with pytest.raises(StoreError, match="other inputs"):
        make_store(copies, tmp_path / "s")


def test_a_cube_goes_on(sim, tmp_path, monkeypatch):
    """The same for a whole job whose rows are sorted on disk."""
    expected = combine(sim.paths, tmp_path / "whole.zarr", offset_list=sim.offset_list)
    options = {"offset_list": sim.offset_list, "in_memory": False, "n_workers": 1, "chunks": (4, 100, 100)}
    with monkeypatch.context() as patch:
        stop_reading(patch, sim.paths[1])
        with pytest.raises(ComputeError, match="1 of 3 tasks failed, all others are finished and kept"):
            combine(sim.paths, tmp_path / "c.zarr", **options)
    assert not (tmp_path / "c.zarr").exists()
    with monkeypatch.context() as patch:
        seen = stop_reading(patch, None)
        cube = combine(sim.paths, tmp_path / "c.zarr", **options)
    assert set(seen) == {sim.paths[1].name}
    for name in ("flux", "variance"):
        np.testing.assert_array_equal(cube[name].values.view("i4"), expected[name].values.view("i4"))
    assert not (tmp_path / ".c.zarr.work").exists()
