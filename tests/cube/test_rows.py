"""Pixel tables and the stacked image as products, however the work is cut up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube import chunks, finish, rows, stacked
from musedask.cube.geometry import position_exact
from musedask.cube.mosaic import combine, make_cube, make_store
from musedask.errors import InputError, MusedaskError, OutputExistsError
from musedask.io.pixtable import scan_pixtable
from musedask.io.tables import read_offset_list
from musedask.recipes import EXP_COMBINE
from musedask.sim import simulate_pixtables

FIELD = {
    "n_exposures": 2, "ifus": (5, 6), "slices": 6, "slice_width": 12, "wave_range": (6500.0, 6520.0), "seed": 5,
    "exptimes": (900, 600), "cosmic_rays": 1e-2, "bad_pixels": 1e-2, "offsets": ((0.0, 0.0), (0.3, 0.2)),
    "flux_scales": (1.0, 1.2), "pointing_errors": ((0.0, 0.0), (0.5, -0.4)),
}  # fmt: skip
COMBINED = "PIXTABLE_COMBINED.fits"


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    return simulate_pixtables(tmp_path_factory.mktemp("sim") / "in", **FIELD)


@pytest.fixture(scope="module")
def whole(sim, tmp_path_factory):
    """Folder of a run in memory, in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    combine(
        sim.paths, folder / "c.zarr", offset_list=sim.offset_list, save="cube,combined,positioned", in_memory=True,
        n_workers=1,
    )  # fmt: skip
    return folder


def read(path):
    table = scan_pixtable(path)
    return {name: table.read(name) for name in table.columns}


def same(path, other):
    """The tables have the same columns, bit for bit."""
    a, b = read(path), read(other)
    assert list(a) == list(b)
    for name in a:
        assert np.array_equal(a[name].view(np.int32), b[name].view(np.int32)), name
    return True


def test_combined_is_what_the_rows_say(sim, whole):
    """Order, positions, fluxes, weights and origins from the inputs, computed one by one."""
    combined = read(whole / COMBINED)
    header = fits.getheader(whole / COMBINED)
    ra1, dec1 = header["CRVAL1"], header["CRVAL2"]
    start = 0
    for number, path in enumerate(sim.paths, 1):
        mine, head = read(path), fits.getheader(path)
        n = len(mine["data"])
        part = {name: values[start : start + n] for name, values in combined.items()}
        assert header[f"ESO DRS MUSE PIXTABLE EXP{number} FIRST"] == start
        assert header[f"ESO DRS MUSE PIXTABLE EXP{number} LAST"] == start + n - 1
        start += n
        row = read_offset_list(sim.offset_list).find(head["DATE-OBS"])
        ra, dec, scale = head["RA"] - row.ra, head["DEC"] - row.dec, row.flux_scale
        for name in ("lambda", "origin"):
            assert np.array_equal(part[name], mine[name])
        assert np.array_equal(part["data"], (mine["data"] * np.float64(scale)).astype(np.float32), equal_nan=True)
        assert np.array_equal(part["dq"] & ~32, mine["dq"])
        assert np.ptp(part["weight"]) == 0
        assert part["weight"][0] == np.float32(FIELD["exptimes"][number - 1] / 900)
        for k in range(0, n, 97):
            x, y = position_exact(float(mine["xpos"][k]), float(mine["ypos"][k]), dec)
            x, y = np.float32(x), np.float32(y)
            if number > 1:
                x, y = np.float32(float(x) + (ra - ra1)), np.float32(float(y) + (dec - dec1))
            assert (part["xpos"][k], part["ypos"][k]) == (x, y)
    assert start == len(combined["data"])
    for axis, name, zero in (("X", "xpos", ra1), ("Y", "ypos", dec1), ("LAMBDA", "lambda", 0.0)):
        for side, f in (("LOW", np.min), ("HIGH", np.max)):
            card = header[f"ESO DRS MUSE PIXTABLE LIMITS {axis} {side}"]
            assert card == float(f"{np.float32(float(f(combined[name])) + zero):.7g}")


def test_cosmic_rays_are_flagged(sim, whole):
    """Most of the simulated ones are found, and little else; bad rows get the bit as well."""
    flagged = read(whole / COMBINED)["dq"] & 32 > 0
    dq = np.concatenate([read(path)["dq"] for path in sim.paths])
    hit = np.zeros(len(dq), bool)
    start = 0
    for path in sim.paths:
        hit[start + sim.cosmic_rows(path)] = True
        start += scan_pixtable(path).n_rows
    assert flagged[hit & (dq == 0)].mean() > 0.3
    assert flagged[~hit & (dq == 0)].mean() < 0.02
    assert flagged[dq != 0].any()


def test_positioned_have_no_flags_and_no_weights(sim, whole):
    for number, path in enumerate(sim.paths, 1):
        table, given = read(whole / f"PIXTABLE_POSITIONED_{number:04d}.fits"), read(path)
        assert "weight" not in table
        assert np.array_equal(table["dq"], given["dq"])
        assert np.array_equal(table["origin"], given["origin"])
        header = fits.getheader(whole / f"PIXTABLE_POSITIONED_{number:04d}.fits")
        row = read_offset_list(sim.offset_list).find(header["DATE-OBS"])
        assert header["CRVAL1"] == pytest.approx(header["RA"] - row.ra, abs=1e-12)
        assert header["CRVAL2"] == pytest.approx(header["DEC"] - row.dec, abs=1e-12)
        # around their own reference point
        assert abs(table["xpos"]).max() < 3e-3


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_and_threads_change_nothing(sim, whole, tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(rows, "window_rows", lambda *_: 333)
    combine(
        sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="cube,combined,positioned",
        in_memory=in_memory, n_workers=3, chunks=(3, 9, 8),
    )  # fmt: skip
    for name in (COMBINED, "PIXTABLE_POSITIONED_0001.fits", "PIXTABLE_POSITIONED_0002.fits"):
        assert same(tmp_path / name, whole / name)
        with fits.open(tmp_path / name, checksum=True) as hdus:
            assert [hdu.header["DATASUM"] for hdu in hdus] == [
                hdu.header["DATASUM"] for hdu in fits.open(whole / name)
            ]
            assert hdus[0].header["DATAMD5"] == fits.getval(whole / name, "DATAMD5")


@pytest.mark.parametrize("windows", [200, 10**6])
@pytest.mark.parametrize("in_memory", [True, False])
def test_cut_rows_are_absent(sim, whole, tmp_path, monkeypatch, in_memory, windows):
    monkeypatch.setattr(rows, "window_rows", lambda *_: windows)
    low, high = 6504.2, 6509.9
    combine(
        sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="combined", in_memory=in_memory,
        lambdamin=low, lambdamax=high,
    )  # fmt: skip
    assert not (tmp_path / "c.zarr").exists()
    mine, full = read(tmp_path / COMBINED), read(whole / COMBINED)
    kept = (full["lambda"] >= np.float32(low)) & (full["lambda"] <= np.float32(high))
    for name in mine:
        values = full[name] & ~32 if name == "dq" else full[name]
        assert np.array_equal(mine[name].view(np.int32), values[kept].view(np.int32)), name
    header = fits.getheader(tmp_path / COMBINED)
    assert header["ESO DRS MUSE PIXTABLE EXP2 LAST"] == kept.sum() - 1


def test_store_cut_twice(sim, whole, tmp_path):
    """The range of the job and that of the store both hold."""
    store = make_store(sim.paths, tmp_path / "s.zarr", lambdamin=6503.0, lambdamax=6511.0)
    combine(store, tmp_path / "c.zarr", offset_list=sim.offset_list, save="combined", lambdamin=6507.0)
    full = read(whole / COMBINED)["lambda"]
    found = read(tmp_path / COMBINED)["lambda"]
    assert np.array_equal(found, full[(full >= np.float32(6507)) & (full <= np.float32(6511))])


def test_store_without_its_files(sim, tmp_path):
    """Origins are in the files only: this is noticed before any work."""
    moved = simulate_pixtables(tmp_path / "in", **FIELD)
    store = make_store(moved.paths, tmp_path / "s.zarr")
    moved.paths[0].unlink()
    with pytest.raises(InputError, match="origin"):
        combine(store, tmp_path / "c.zarr", save="cube,combined")
    assert combine(store, tmp_path / "c.zarr") is not None


def test_store_of_other_rows(sim, tmp_path, monkeypatch):
    """A file that was changed in the meantime is an error, not a wrong table."""
    monkeypatch.setattr(rows.Rows, "kept", lambda self, table, window: np.ones(window.n_rows, bool))
    with pytest.raises(MusedaskError, match="rows"):
        combine(sim.paths, tmp_path / "c.zarr", save="combined", lambdamin=6505.0, in_memory=False)
    assert not (tmp_path / COMBINED).exists()
    assert not list(tmp_path.glob("*.part"))


class Interrupted(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("in_memory", [True, False])
def test_flags_survive_an_interruption(sim, whole, tmp_path, monkeypatch, in_memory):
    """Chunks that were finished before a crash are not computed again, and their flags are there."""
    calls = []
    original = chunks.resample_chunk

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 10:
            raise Interrupted
        return original(*args, **kwargs)

    def run():
        return combine(
            sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="cube,combined", chunks=(4, 10, 10),
            n_workers=1, in_memory=in_memory,
        )  # fmt: skip

    monkeypatch.setattr(chunks, "resample_chunk", counted)
    with pytest.raises(Exception, match="resampling"):
        run()
    marks = tmp_path / ".c.zarr.work" / "done"
    finished = [p.name for p in marks.iterdir()]
    assert finished and all(name.isdigit() for name in finished)
    total = len(calls)
    run()
    assert len(calls) == total + total - len(finished)
    assert same(tmp_path / COMBINED, whole / COMBINED)


def test_flags_survive_a_crash_while_writing(sim, whole, tmp_path, monkeypatch):
    """Even in the middle of the table: nothing is computed again, the table is written anew."""
    arguments = {"offset_list": sim.offset_list, "save": "cube,combined", "chunks": (4, 10, 10)}
    with monkeypatch.context() as patch:
        patch.setattr(rows, "_copy", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises((Interrupted, MusedaskError)):
            combine(sim.paths, tmp_path / "c.zarr", **arguments)
    assert not (tmp_path / COMBINED).exists()
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "resample_chunk", lambda *_, **__: pytest.fail("computed again"))
        combine(sim.paths, tmp_path / "c.zarr", **arguments)
    assert same(tmp_path / COMBINED, whole / COMBINED)


def test_flags_from_workers(sim, whole, tmp_path):
    """On a cluster, marks are left by worker processes."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        combine(
            sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="cube,combined", client=client,
            chunks=(4, 10, 10),
        )  # fmt: skip
    assert same(tmp_path / COMBINED, whole / COMBINED)


def test_outputs_are_not_replaced(sim, tmp_path):
    (tmp_path / "PIXTABLE_POSITIONED_0002.fits").write_text("mine")
    with pytest.raises(OutputExistsError, match="PIXTABLE_POSITIONED_0002"):
        combine(sim.paths, tmp_path / "c.zarr", save="positioned")
    assert (tmp_path / "PIXTABLE_POSITIONED_0002.fits").read_text() == "mine"
    combine(sim.paths, tmp_path / "c.zarr", save="positioned", overwrite=True)
    assert len(read(tmp_path / "PIXTABLE_POSITIONED_0002.fits")["data"])


def test_one_exposure(sim, tmp_path):
    """What one exposure is combined to says so: no ranges of rows, no number of exposures."""
    combine(sim.paths[:1], tmp_path / "c.zarr", save="cube,combined")
    header = fits.getheader(tmp_path / COMBINED)
    assert "ESO DRS MUSE PIXTABLE COMBINED" not in header
    assert any("EXP0" in keyword for keyword in header)
    assert "weight" not in read(tmp_path / COMBINED)


def test_bits_of_rows(tmp_path):
    """Any set of rows, in any number of marks."""
    rng = np.random.default_rng(0)
    (tmp_path / "done").mkdir()
    expected = {0: set(), 3: set()}
    for number in range(5):
        found = {e: rng.choice(1001, size=rng.integers(0, 50), replace=False) for e in expected}
        for e, which in found.items():
            expected[e] |= set(which.tolist())
        with open(tmp_path / "done" / f"{number:06d}", "wb") as file:
            np.savez(file, **{str(e): w.astype(np.int32) for e, w in found.items() if len(w)})
    (tmp_path / "done" / "000009.part.npz").write_bytes(b"rubbish of a crash")
    cosmics = rows.CosmicRows(tmp_path, True)
    for e, which in expected.items():
        flags = np.unpackbits(cosmics.bits(e, 1001), bitorder="little")[:1001]
        assert set(np.flatnonzero(flags)) == which
    assert not cosmics.bits(1, 17).any()
    assert not rows.CosmicRows(tmp_path, False).bits(0, 1001).any()


# ----------------------------------------------------------------------------- stacked image


def stack(table, flags, scale, step=1.25):
    """The stacked image, the plain way."""
    x, wave = table["xpos"].astype(float), table["lambda"].astype(float)
    code = table["origin"] & 0x7FF
    low = wave.min()
    nz = math.ceil((wave.max() - low) / step) + 1
    iz = np.floor((wave - low) / step + 0.5).astype(int)
    good = (table["dq"] == 0) & ~flags
    parts = []
    for c in np.unique(code):
        mine = np.flatnonzero(code == c)
        first = x[mine].min()
        nx = math.ceil((x[mine].max() - first) / scale) + 1
        ix = np.floor((x[mine] - first) / scale + 0.5).astype(int)
        image = np.zeros((nz, nx), np.float32)
        for a in range(nx):
            for b in range(nz):
                total = weights = 0.0
                for z in (b - 1, b, b + 1):
                    for k in mine[(ix == a) & (iz[mine] == z) & good[mine]]:
                        r = abs(low + b * step - wave[k])
                        radius = 1.25 * step
                        w = 3.40282346638528860e38 if r == 0 else 2.2250738585072014e-308
                        if 0 < r < radius:
                            w = ((radius - r) / (radius * r)) ** 2
                        weights += w
                        total += w * float(table["data"][k])
                if weights > 0:
                    image[b, a] = total / weights
        parts.append(image)
    return np.hstack(parts)


@pytest.fixture(scope="module")
def table(whole):
    return whole / COMBINED


@pytest.fixture(scope="module")
def image(table):
    columns = read(table)
    scale = 1.2 * math.hypot(fits.getval(table, "CD1_1"), fits.getval(table, "CD1_2"))
    return stack(columns, np.zeros(len(columns["dq"]), bool), scale)


@pytest.mark.parametrize("in_memory", [True, False])
def test_stacked(table, image, tmp_path, in_memory):
    make_cube(table, tmp_path / "c.zarr", stacked=True, crsigma=0.0, in_memory=in_memory)
    with fits.open(tmp_path / "OBJECT_RESAMPLED.fits", checksum=True) as hdus:
        assert np.array_equal(hdus["DATA"].data, image)
        assert hdus["DATA"].header["CTYPE2"] == "AWAV"


@pytest.mark.parametrize("memory", [0, 3000])
@pytest.mark.parametrize("in_memory", [True, False])
def test_stacked_in_tiles(table, image, tmp_path, monkeypatch, in_memory, memory):
    """Tiles of one wavelength, or less, give the same image."""
    original = stacked._plan_tiles
    seen = []

    def plan(source, geometry, _, threads):
        seen.extend(original(source, geometry, memory or 1, threads))
        return seen

    monkeypatch.setattr(stacked, "_plan_tiles", plan)
    make_cube(table, tmp_path / "c.zarr", stacked=True, crsigma=0.0, in_memory=in_memory, n_workers=2)
    assert len(seen) > image.shape[0]
    assert np.array_equal(fits.getdata(tmp_path / "OBJECT_RESAMPLED.fits", 1), image)


def test_stacked_leaves_out_cosmic_rays(table, tmp_path):
    """Rows that the cube flags do not count."""
    make_cube(table, tmp_path / "c.zarr", stacked=True, crsigma=3.0)
    stricter = fits.getdata(tmp_path / "OBJECT_RESAMPLED.fits", 1)
    make_cube(table, tmp_path / "d.zarr", stacked=True, crsigma=0.0, overwrite=True)
    assert (stricter != fits.getdata(tmp_path / "OBJECT_RESAMPLED.fits", 1)).any()
    assert stricter.max() <= fits.getdata(tmp_path / "OBJECT_RESAMPLED.fits", 1).max()


def test_layout_of_files(tmp_path):
    """Names of all products are known before any work."""

    def products(save):
        values = EXP_COMBINE.resolve({"save": save})
        return finish.Products(EXP_COMBINE, values, tmp_path / "c.zarr", None, None, None, None)

    made = products("combined, positioned")
    made.exposures = [None, None]
    names = [p.name for p in made.files()]
    assert names == [COMBINED, "PIXTABLE_POSITIONED_0001.fits", "PIXTABLE_POSITIONED_0002.fits"]
    assert not made.keep_cosmics
    assert products("cube,combined").keep_cosmics
    with pytest.raises(InputError, match="save"):
        products("cube,nothing")
