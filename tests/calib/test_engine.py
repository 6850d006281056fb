"""Recipes over IFUs: native functions, clusters, what is published when something fails, what is checked before."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from distributed import Client, LocalCluster

from musedask import run_recipe
from musedask.calib.engine import Call, execute, plan_recipe, run_call, wanted_record
from musedask.calib.esorex import find_installation
from musedask.calib.names import may_be_made, tag_of
from musedask.calib.provenance import read_record
from musedask.compute import run_tasks
from musedask.errors import InputError, OutputExistsError, RecipeError
from musedask.io.muse_image import read_muse_image
from musedask.io.sof import Frame
from musedask.recipes import NATIVE, get_recipe

from .test_esorex_runner import left_over, processes, wait_for
from .toys import FakeEsorex, write_frame, write_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("raw") / "in", ifus=(3, 1, 24))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(NATIVE, "muse_bias", "tests.calib.toys:toy_bias")
    monkeypatch.setitem(NATIVE, "muse_flat", "tests.calib.toys:toy_flat")
    monkeypatch.setitem(NATIVE, "muse_wavecal", "tests.calib.toys:toy_wavecal")


@pytest.fixture
def run(frames, tmp_path):
    def call(recipe="muse_bias", **options):
        given = {"engine": "native", "output_dir": tmp_path / "out", **options}
        return run_recipe(recipe, given.pop("frames", frames), **given)

    return call


# ------------------------------------------------------------------------------------------- success


def test_environment_that_native_recipes_heed(run, frames, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSE_BASICPROC_SKIP_NONLIN_CORR", "1")
    monkeypatch.setenv("MUSE_EXPERT_USER", "1")
    record = run(ifus=1).records[0]
    assert record.environment == {"MUSE_BASICPROC_SKIP_NONLIN_CORR": "1"}
    call = plan_recipe("muse_bias", frames, engine="native", ifus=1, output_dir=tmp_path / "out").calls[0]
    assert wanted_record(call).key() == record.key()
    monkeypatch.delenv("MUSE_BASICPROC_SKIP_NONLIN_CORR")
    assert wanted_record(call).key() != record.key()


def test_native(run, frames, tmp_path):
    result = run()
    assert [f.path.name for f in result] == [f"MASTER_BIAS-{i}.fits" for i in ("01", "03", "24")]
    assert result[1] == Frame(tmp_path / "out" / "MASTER_BIAS-03.fits", "MASTER_BIAS") and len(result) == 3
    assert not left_over(tmp_path / "out")
    for record, frame in zip(result.records, result, strict=True):
        assert record.status == "done" and record.engine == "native" and record.exit_status is None
        assert record.wall_time > 0 and record.cpu_time > 0 and record.peak_memory > 1e7
        assert [f.path for f in record.inputs] == [str(f.path) for f in frames]
        assert {f.scope for f in record.inputs} == {f"CHAN{record.ifu:02d}"}
        assert read_record(Path(record.log).with_suffix(".json")) == record
        image = read_muse_image(frame.path)
        expected = np.mean([fits.getdata(f.path, f"CHAN{record.ifu:02d}") for f in frames], axis=0)
        np.testing.assert_allclose(image.data, expected, rtol=1e-6)
        assert image.header["EXTNAME"] == f"CHAN{record.ifu:02d}"
        assert image.header["ESO PRO REC1 PARAM1 VALUE"] == str(record.ifu)
        with fits.open(frame.path, checksum=True):
            # a wrong checksum is a warning, and so an error
            pass


def test_several_products_of_a_kind(run, tmp_path):
    """They are numbered; each names the exposures that it was made of."""
    arcs = write_frames(tmp_path / "raw", 4, tag="ARC", ifus=(5,))
    masters = [
        Frame(write_frame(tmp_path / "raw" / f"{tag}.fits", 1, ifus=(5,)), tag)
        for tag in ("TRACE_TABLE", "MASTER_BIAS", "LINE_CATALOG")
    ]
    result = run("muse_wavecal", frames=[*masters, *arcs])
    names = ["ARC_RED_LAMP_0001-05.fits", "ARC_RED_LAMP_0002-05.fits", "WAVE_MAP_0001-05.fits", "WAVECAL_TABLE-05.fits"]
    assert [f.path.name for f in result] == names
    expected = [["arc1.fits", "arc2.fits"], ["arc3.fits", "arc4.fits"], ["arc1.fits"], [f.path.name for f in arcs]]
    for frame, raws in zip(result, expected, strict=True):
        header = fits.getheader(frame.path)
        assert list(header["ESO PRO REC1 RAW* NAME"].values()) == raws
        assert header["ESO PRO DATANCOM"] == len(raws) and header["PIPEFILE"] == frame.path.name
        assert list(header["ESO PRO REC1 CAL* CATG"].values()) == ["LINE_CATALOG", "MASTER_BIAS", "TRACE_TABLE"]
    assert fits.getheader(result[1].path)["DATE-OBS"] == "2018-11-08T21:03:00.000"
    assert fits.getheader(result[2].path)["BUNIT"] == "Angstrom"


def test_engine_by_itself(run, tmp_path):
    """Native where there is a function, esorex elsewhere."""
    assert run(engine="auto", ifus=1).records[0].engine == "native"
    plan = plan_recipe("muse_illum", [(tmp_path / "x.fits", "ILLUMFLAT")])
    assert plan.engine == "esorex"
    with pytest.raises(InputError, match=r"muse_illum is not among the recipes of the engine native \(.*muse_bias.*\)"):
        plan_recipe("muse_illum", [(tmp_path / "x.fits", "ILLUMFLAT")], engine="native")
    with pytest.raises(InputError, match="'fast' found, expected auto, esorex or native"):
        plan_recipe("muse_bias", [], engine="fast")


def test_native_function_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(NATIVE, "muse_bias", "musedask.calib.no_such_module:muse_bias")
    with pytest.raises(InputError, match="not among the recipes of the engine native"):
        run()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [1, 3, 24]),
        ({"nifu": -1}, [1, 3, 24]),
        ({"nifu": 3}, [3]),
        ({"ifus": 24}, [24]),
        ({"ifus": [24, 1, 24]}, [1, 24]),
        ({"ifus": range(1, 2)}, [1]),
        ({"ifus": [3], "nifu": 3}, [3]),
    ],
)
def test_choice_of_ifus(options, expected, frames):
    plan = plan_recipe("muse_bias", frames, **options)
    assert [call.ifu for call in plan.calls] == expected
    assert [call.values["nifu"] for call in plan.calls] == expected


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ifus": [0, 3]}, "IFUs [0] found, expected numbers from 1 to 24"),
        ({"ifus": []}, "found, expected numbers from 1 to 24"),
        ({"ifus": [1, 3], "nifu": 3}, "nifu 3 and ifus [1, 3]"),
        ({"n_workers": 0}, "n_workers 0"),
        ({"threads": -1}, "threads -1"),
        ({"combine": "mode"}, "combine"),
    ],
)
def test_wrong_options(options, words, frames):
    with pytest.raises(InputError) as caught:
        plan_recipe("muse_bias", frames, **options)
    assert words in str(caught.value)


def test_ifus_of_a_recipe_without(frames):
    with pytest.raises(InputError, match="does not work on single IFUs"):
        plan_recipe("muse_exp_combine", frames, ifus=[1])


def test_kinds_of_frames(run, frames, tmp_path):
    sofs = []
    for number, part in enumerate((frames[:2], frames[2:])):
        sofs.append(tmp_path / f"{number}.sof")
        sofs[-1].write_text("".join(f"{f.path} {f.tag}\n" for f in part))
    pairs = [(str(f.path), f.tag) for f in frames]
    for given in (sofs, pairs, [sofs[0], frames[2]], iter(frames)):
        plan = plan_recipe("muse_bias", given, ifus=[1])
        assert [f.path for f in plan.calls[0].frames] == [f.path for f in frames]
    with pytest.raises(InputError, match="expected a path and a tag"):
        plan_recipe("muse_bias", [("a", "b", "c")])


def test_plan_is_told(frames, tmp_path):
    text = plan_recipe("muse_bias", frames, ifus=[1, 7], output_dir=tmp_path / "new", ovscsigma=11).describe()
    assert "muse_bias, engine native: 1 IFU" in text and "ovscsigma=11" in text and str(frames[0].path) in text
    assert "IFU 7: not possible: BIAS: expected 3 or more, found none" in text
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "fault, words",
    [
        ("input:3", ["CHAN03]: ESO DET BINX 2 found, expected 1"]),
        ("crash:3", ["unexpected ZeroDivisionError: oh"]),
        ("nothing:3", ["there is no MASTER_BIAS"]),
    ],
)
def test_one_ifu_fails_alone(fault, words, run, tmp_path):
    run()
    older = (tmp_path / "out" / "MASTER_BIAS-03.fits").stat().st_ino
    with pytest.raises(RecipeError) as caught:
        run(ovscreject=fault)
    text = str(caught.value)
    assert text.startswith("muse_bias failed for 1 of 3 IFUs, the others are finished:\n  IFU 3: "), text
    assert all(word in text for word in words), text
    result = caught.value.result
    assert [r.ifu for r in result.failures] == [3] and len(result) == 2
    assert Path(result.failures[0].log).exists()
    assert ("Traceback" in Path(result.failures[0].log).read_text()) == fault.startswith("crash")
    assert (tmp_path / "out" / "MASTER_BIAS-03.fits").stat().st_ino == older
    assert not left_over(tmp_path / "out")


def test_all_but_one_of_24(run, tmp_path):
    frames = write_frames(tmp_path / "raw", 3, ifus=range(1, 25))
    told = r"failed for 1 of 24 IFUs, the others are finished:\n  IFU 17: .*CHAN17"
    with pytest.raises(RecipeError, match=told) as caught:
        run(frames=frames, ovscreject="input:17")
    assert [r.ifu for r in caught.value.result.failures] == [17]
    names = [f"MASTER_BIAS-{i:02d}.fits" for i in range(1, 25) if i != 17]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.fits")) == names
    assert [f.path.name for f in caught.value.result] == names


def test_products_before_a_failure_are_published(run, tmp_path):
    """As the reference does with the master flat when the slices cannot be traced."""
    flats = write_frames(tmp_path / "raw", tag="FLAT", ifus=(1, 2))
    bias = [Frame(write_frame(tmp_path / "raw" / f"bias{i}.fits", i, ifus=(i,)), "MASTER_BIAS") for i in (1, 2)]
    with pytest.raises(RecipeError, match=r"(?s)IFU 1: IFU 1: no slice was found.*IFU 2") as caught:
        run("muse_flat", frames=[*flats, *bias])
    result = caught.value.result
    assert [f.path.name for f in result] == ["MASTER_FLAT-01.fits", "MASTER_FLAT-02.fits"]
    assert len(result.failures) == 2
    header = fits.getheader(result[1].path)
    assert header["ESO PRO REC1 CAL1 NAME"] == "bias2.fits" and header["ESO PRO DATANCOM"] == 3


def test_frames_missing_for_one_ifu(run, frames, tmp_path):
    some = write_frames(tmp_path / "more", 2, name="more", ifus=(7,))
    with pytest.raises(RecipeError, match=r"IFU 7: BIAS: expected 3 or more, found 2") as caught:
        run(frames=[*frames, *some])
    assert len(caught.value.result) == 3


def test_frames_missing_for_all(run, frames):
    with pytest.raises(RecipeError, match=r"^muse_bias failed: IFUs 1, 3, 24: BIAS: expected 3 or more, found 2"):
        run(frames=frames[:2])
    with pytest.raises(InputError, match="expected BIAS; there are DARK"):
        run(frames=[Frame(f.path, "DARK") for f in frames])


def test_wrong_tag(run, frames, caplog):
    """It is told which tag nobody takes, and what is missing then."""
    wrong = [Frame(f.path, "BIASS") for f in frames]
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="expected BIAS; there are BIASS"):
        run(frames=wrong)
    assert "no recipe takes BIASS (did you mean BIAS?)" in caplog.text
    with pytest.raises(RecipeError, match="BIAS: expected 3 or more, found 2"):
        run(frames=[*frames[:2], *wrong])


def test_truncated_frame(run, frames, tmp_path):
    """It is told before anything is done."""
    short = tmp_path / "short.fits"
    short.write_bytes(frames[0].path.read_bytes()[:-100_000])
    with pytest.raises(InputError, match=r"short\.fits: .*truncated"):
        run(frames=[Frame(short, "BIAS"), *frames])
    assert not (tmp_path / "out").exists()


def test_time_limit(run):
    with pytest.raises(RecipeError, match=r"IFU 3: took longer than 0\.5 s") as caught:
        run(ovscreject="slow:3", timeout=0.5, ifus=[3])
    assert caught.value.result.records[0].status == "timeout" and not len(caught.value.result)


def test_warnings(run, frames, caplog):
    """They are those of the call in whose thread they were made, and are told once."""
    name = frames[0].path.name
    with caplog.at_level(logging.INFO, "musedask"):
        result = run(ovscreject="warn", n_workers=3)
    assert [r.warnings for r in result.records] == [[f"{name}: 3 pixels are saturated"]] * 3
    assert result.warnings == [f"IFUs 1, 3, 24: {name}: 3 pixels are saturated"]
    assert "3 pixels are saturated" in Path(result.records[0].log).read_text()
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == result.warnings
    assert not logging.getLogger("musedask").filters


# ---------------------------------------------------------------------------------------- what is kept


def test_output_that_exists(run, tmp_path):
    run(ifus=[3])
    before = (tmp_path / "out" / "MASTER_BIAS-03.fits").stat().st_ino
    with pytest.raises(OutputExistsError, match=r"MASTER_BIAS-03\.fits: exists already"):
        run(overwrite=False)
    run(overwrite=False, ifus=[1])
    run(ifus=[3])
    assert (tmp_path / "out" / "MASTER_BIAS-03.fits").stat().st_ino != before


def test_input_is_not_replaced(frames, tmp_path):
    """Some recipes give their products the names of their input."""
    given = [(write_frame(tmp_path / "PIXTABLE_REDUCED_0001.fits", 1), "PIXTABLE_REDUCED")]
    given.append((write_frame(tmp_path / "SKY_SPECTRUM.fits", 1), "SKY_SPECTRUM"))
    plan = plan_recipe("muse_scipost_subtract_sky_simple", given, output_dir=tmp_path)
    assert not plan.calls and "a product may have the name of this input" in plan.refused[0].reason
    with pytest.raises(RecipeError, match=r"PIXTABLE_REDUCED_0001\.fits: a product may have the name"):
        execute(plan)
    assert plan_recipe("muse_scipost_subtract_sky_simple", given, output_dir=tmp_path / "other").calls


def test_names():
    flat, scibasic, cube = (get_recipe(f"muse_{n}") for n in ("flat", "scibasic", "exp_combine"))
    assert may_be_made("MASTER_FLAT-03.fits", flat, 3) and may_be_made("MASTER_FLAT.fits", flat, 3)
    assert not may_be_made("MASTER_FLAT-04.fits", flat, 3) and not may_be_made("MASTER_FLAT_0001-03.fits", flat, 3)
    assert not may_be_made("MASTER_BIAS-03.fits", flat, 3) and not may_be_made("notes.txt", flat, 3)
    assert may_be_made("PIXTABLE_OBJECT_0002-24.fits", scibasic, 24)
    assert may_be_made("DATACUBE_FINAL.fits", cube, None) and may_be_made("IMAGE_FOV_0001.fits", cube, None)
    assert tag_of("PIXTABLE_OBJECT_0002-24.fits", scibasic) == "PIXTABLE_OBJECT"
    assert tag_of("IMAGE_FOV_0001.fits", cube) == "IMAGE_FOV" and tag_of("frames.fits", cube) is None


def test_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        run(output_dir=tmp_path / "file" / "out")


def test_runs_do_not_share_logs(run, tmp_path):
    for _ in range(3):
        run(ifus=[1])
    assert len(list((tmp_path / "out" / "logs").glob("*.json"))) == 3


# --------------------------------------------------------------------------------------------- merge


def test_merge(run, tmp_path):
    single = {i: read_muse_image(f.path).data for i, f in zip((1, 3, 24), run(), strict=True)}
    result = run(merge=True)
    assert [f.path.name for f in result] == ["MASTER_BIAS.fits"]
    assert [p.name for p in (tmp_path / "out").glob("*.fits")] == ["MASTER_BIAS.fits"]
    for ifu, data in single.items():
        np.testing.assert_array_equal(read_muse_image(result[0].path, ifu=ifu).data, data)
    # of one IFU there is nothing to merge
    assert [f.path.name for f in run(merge=True, ifus=[3])] == ["MASTER_BIAS-03.fits"]


# ---------------------------------------------------------------------------------- threads and workers


def test_no_more_calls_than_workers(frames, tmp_path):
    plan = plan_recipe("muse_bias", frames, n_workers=2)
    assert plan.workers == 2 and all(not call.alone for call in plan.calls)
    plan = plan_recipe("muse_bias", frames, n_workers=1, threads=5)
    assert all(call.alone and call.threads == 5 for call in plan.calls)


def test_tasks_all_run_and_tell_their_errors():
    done, failed, stopped = [], [], threading.Event()

    def work(item):
        if item % 2:
            raise InputError(f"odd {item}")
        return item

    run_tasks(
        work, range(6), n_workers=2, on_result=lambda i, r: done.append(r), on_error=lambda i, e: failed.append(i)
    )
    assert sorted(done) == [0, 2, 4] and sorted(failed) == [1, 3, 5]

    def interrupt(item, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(
            lambda i: i == 0 or stopped.wait(20), range(2), n_workers=2, on_result=interrupt, on_abort=stopped.set
        )


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    os.environ["TOY_FOLDER"] = str(tmp_path_factory.mktemp("toy"))
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0", resources={"esorex": 1}
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_cluster(client, run, tmp_path):
    """A worker that dies costs its own calls, which are made again; a call that fails costs no other."""
    with pytest.raises(RecipeError, match=r"IFU 24: .*expected 1") as caught:
        run(client=client, ovscreject="input:24")
    assert [r.ifu for r in caught.value.result.records if r.ok] == [1, 3]
    result = run(client=client, ovscreject="die:3")
    assert [f.path.name for f in result] == [f"MASTER_BIAS-{i}.fits" for i in ("01", "03", "24")]
    assert not left_over(tmp_path / "out")
    assert {r.threads for r in result.records} == {1}


def test_cluster_and_esorex(client, frames, tmp_path):
    """esorex on workers takes their resource; when the call is given up, no child stays."""
    find_installation.cache_clear()
    fake = FakeEsorex(tmp_path / "bin", ifus=(1, 3, 24))
    options = {"engine": "esorex", "esorex": str(fake.path), "output_dir": tmp_path / "out", "client": client}
    result = run_recipe("muse_bias", frames, **options)
    assert len(result) == 3 and not left_over(tmp_path / "out")
    fake.mode("hang")
    plan = plan_recipe("muse_bias", frames, cluster=True, **{k: v for k, v in options.items() if k != "client"})
    calls = [Call(**{**vars(c), "scratch": tmp_path / "work", "stem": f"x-{c.ifu}"}) for c in plan.calls]
    (tmp_path / "work").mkdir()
    futures = client.map(run_call, calls, resources={"esorex": 1}, pure=False)
    wait_for(lambda: (fake.folder / "hangs-01").exists() or (fake.folder / "hangs-03").exists())
    time.sleep(0.3)
    # two workers with one resource each
    assert len(list(fake.folder.glob("hangs-*"))) <= 2 and processes("sleep 4321", tmp_path)
    client.cancel(futures)
    wait_for(lambda: not processes("sleep 4321", tmp_path))
    wait_for(lambda: not list((tmp_path / "work").iterdir()))
