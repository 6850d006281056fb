"""One exposure: the same bytes whoever makes them, other noise for another seed, clear refusals."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from musedask.compute import open_cluster
from musedask.errors import ComputeError, InputError, OutputExistsError, PlanError
from musedask.io import raw
from musedask.io.raw import list_ifus, read_raw
from musedask.sim import Background, ExposurePlan, Scene, Star, observe
from musedask.sim.exposure import (
    CHANNEL_ORDER,
    check_ifus,
    expected_rate,
    instrument_of,
    task_threads,
    write_exposures,
)

BIAS = ExposurePlan(3, "BIAS", "2018-11-08T20:00:00.123", 0.0)
FLAT = ExposurePlan(4, "FLAT", "2018-11-08T20:10:00.456", 0.35, lamp="continuum", drot_mode="STAT")
ARC = ExposurePlan(6, "ARC", "2018-11-08T20:20:00.001", 1.4, lamp="Ne", drot_mode="STAT")
OBJECT = ExposurePlan(5, "OBJECT", "2018-11-09T02:00:00.789", 60.0, ra=36.0, dec=-33.0, scene="field")
SCENE = Scene(
    (Star(2.0, 0.3, 5e5), Star(-9.0, -0.4, 2e5, -1.0)), background=Background(0.0), ra=36.0, dec=-33.0,
)  # fmt: skip


def content(path):
    return path.read_bytes()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An exposure of two IFUs, made by one thread."""
    folder = tmp_path_factory.mktemp("one")
    return observe(OBJECT, SCENE, ifus=(1, 2), out_dir=folder, seed=7, n_workers=1, images=True)


def test_bytes_do_not_depend_on_threads(tmp_path):
    one = observe(ARC, ifus=(1, 2), out_dir=tmp_path / "1", seed=7, n_workers=1)
    two = observe(ARC, ifus=(2, 1), out_dir=tmp_path / "2", seed=7, n_workers=2)
    assert content(one) == content(two)


def test_bytes_do_not_depend_on_workers(two, tmp_path):
    with open_cluster("local:2") as client:
        other = observe(OBJECT, SCENE, ifus=(1, 2), out_dir=tmp_path, seed=7, client=client)
    assert content(other) == content(two)


def test_worker_is_lost(tmp_path):
    """What is finished is left alone, what the worker had in hand is made again."""
    plans = [replace(BIAS, index=k, date_obs=f"2018-11-08T20:0{k}:00.000") for k in range(3)]
    killed = []

    def kill(*_):
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    with open_cluster("local:2") as client:
        paths = write_exposures(
            plans, tmp_path, ifus=(1, 2), seed=2, scenes={}, client=client, on_exposure=kill
        )  # fmt: skip
    assert killed and sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        assert list_ifus(path) == [i for i in CHANNEL_ORDER if i in (1, 2)]


def test_other_seed_other_noise_same_truth(two, tmp_path):
    other = observe(OBJECT, SCENE, ifus=(1, 2), out_dir=tmp_path, seed=8, images=True)
    stem = two.name.removesuffix(".fits")
    for ifu in (1, 2):
        rates = [fits.getdata(path.parent / f"{stem}_RATE-{ifu:02d}.fits") for path in (two, other)]
        assert np.array_equal(*rates)
        assert rates[0].shape == (4112, 4096) and rates[0].max() > 1
        images = [read_raw(path, ifu)[1].astype(float) for path in (two, other)]
        changed = np.mean(images[0] != images[1])
        assert 0.7 < changed < 1, changed
        # twice the noise of one, as they are independent
        difference = images[0][33:2088, 33:2080] - images[1][33:2088, 33:2080]
        assert 0.5 < np.median(np.abs(difference - np.median(difference))) < 20
    with fits.open(two) as a, fits.open(other) as b:
        assert all(
            str(x.value) == str(y.value)
            for i in range(3)
            for x, y in zip(a[i].header.cards, b[i].header.cards, strict=True)
            if x.keyword not in ("CHECKSUM", "DATASUM")
        )


def test_what_is_in_the_file(two):
    assert two.name == "MUSE.2018-11-09T02:00:00.789.fits"
    order = list_ifus(two)
    assert sorted(order) == [1, 2] and order == [i for i in CHANNEL_ORDER if i in (1, 2)]
    with fits.open(two, checksum=True) as hdus:
        assert hdus[0].header["ESO DPR TYPE"] == "OBJECT"
        assert hdus[0].header["ARCFILE"] == two.name
        assert hdus[0].header["EXPTIME"] == 60
        assert hdus[1].data.shape == (4240, 4224) and hdus[1].data.dtype == np.uint16
    assert not list(two.parent.glob(".*"))


def test_channel_order():
    assert sorted(CHANNEL_ORDER) == list(range(1, 25))
    assert list(CHANNEL_ORDER) != sorted(CHANNEL_ORDER)


def test_noise_is_that_of_the_rate(two):
    """Data minus bias follow the expected rate; their scatter is that of photons and read-out."""
    rate = expected_rate(OBJECT, 1, (1, 2), SCENE)
    image = read_raw(two, 1)[1].astype(np.float32)
    # quadrant 1, level from its overscan
    data = image[32:2088, 32:2080] - np.median(image[32:2088, 2084:2110])
    electrons = data * 1.1
    expected = rate[:2056, :2048] * 60
    bright = expected > 200
    assert bright.sum() > 500
    assert abs(np.median(electrons[bright] / expected[bright]) - 1) < 0.1


def test_compressed(tmp_path):
    plain = observe(BIAS, ifus=(3,), out_dir=tmp_path, seed=2)
    packed = observe(BIAS, ifus=(3,), out_dir=tmp_path, seed=2, compress=True)
    assert packed.name == plain.name + ".fz"
    assert packed.stat().st_size < 0.4 * plain.stat().st_size
    assert np.array_equal(read_raw(plain, 3)[1], read_raw(packed, 3)[1])


def test_existing_file(tmp_path):
    path = observe(BIAS, ifus=(3,), out_dir=tmp_path, seed=2)
    before = content(path)
    with pytest.raises(OutputExistsError, match="overwrite"):
        observe(BIAS, ifus=(3,), out_dir=tmp_path, seed=3)
    assert content(path) == before
    observe(BIAS, ifus=(3,), out_dir=tmp_path, seed=3, overwrite=True)
    assert content(path) != before


@pytest.mark.parametrize(
    ("ifus", "message"),
    [((1, 25), "IFU 25 found, expected numbers from 1 to 24"), ((0,), "IFU 0 found"), ((), "no IFU found")],
)
def test_ifus(ifus, message, tmp_path):
    with pytest.raises(InputError, match=message):
        observe(BIAS, ifus=ifus, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_ifus_sorted():
    assert check_ifus([3, 1, 3]) == (1, 3)


def test_unknown_mode(tmp_path):
    with pytest.raises(InputError, match=r"'WFM-XX' found, expected one of WFM-NOAO-N"):
        observe(replace(FLAT, mode="WFM-XX"), ifus=(1,), out_dir=tmp_path)


def test_scene_outside_the_field(tmp_path):
    with pytest.raises(InputError, match="outside the field"):
        observe(OBJECT, replace(SCENE, ra=36.2), ifus=(1,), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        observe(BIAS, ifus=(1,), out_dir=tmp_path / "file" / "raw")


def test_no_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**7))
    with pytest.raises(PlanError, match="free"):
        observe(BIAS, ifus=(1,), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_disk_full_while_writing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(raw, "_put", full)
    with pytest.raises(PlanError, match="no space left"):
        observe(BIAS, ifus=(1,), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    from musedask.sim import exposure

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(exposure, "render", broken)
    with pytest.raises(ComputeError, match=r"IFU 2 of FLAT 2018-11-08T20:10:00.456"):
        observe(FLAT, ifus=(2,), out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_limit(tmp_path):
    with pytest.raises(PlanError, match=r"100 MB found, expected at least"):
        observe(BIAS, ifus=(1,), out_dir=tmp_path, memory_limit="100MB")
    assert task_threads(None, 8, "2GB") in (2, 3)
    assert task_threads(None, 1, "64GB") == 1
    with pytest.raises(InputError, match="n_workers"):
        task_threads(None, 0, None)


def test_vignetting_was_mended():
    assert instrument_of(replace(OBJECT, date_obs="2014-12-08T02:00:00.000")).vignetted
    assert not instrument_of(OBJECT).vignetted
