"""A night: sensible times and places, one folder that is whole or goes on, associations as of the archive."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from musedask.cli import _counts, main
from musedask.errors import InputError, OutputExistsError, PlanError, StoreError
from musedask.sim import NightTruth, Target, associate, plan_night, read_association, scenes_of, simulate_night
from musedask.sim.association import archive_name, nearest, to_xml, write_associations
from musedask.sim.ephemeris import horizontal, mjd_of, sun
from musedask.sim.night import describe, night_scene
from musedask.sim.optics import MODES, Instrument
from musedask.sim.schedule import COUNTS, MASK_STEP, READOUT, parse_date, resolve_counts

NONE = dict.fromkeys(COUNTS, 0)
ROOT = Path(__file__).resolve().parents[2]


def start(plan):
    return datetime.fromisoformat(plan.date_obs)


def whole_night(day="2018-11-08", **options):
    options = {"counts": {"DARK": 3, "MASK": 50, "STD": 2}, "targets": (Target("A"), Target("B")), **options}
    return plan_night(day, **options)


# ------------------------------------------------------------------------------------------ plan


@given(day=st.dates(parse_date("2014-02-01"), parse_date("2030-01-01")), mode=st.sampled_from(MODES))
@settings(max_examples=15)
def test_times_and_places(day, mode):
    plans = whole_night(day, mode=mode)
    assert [p.index for p in plans] == list(range(len(plans)))
    assert len({p.date_obs for p in plans}) == len(plans)
    for a, b in pairwise(plans):
        assert start(b) - start(a) > timedelta(seconds=a.exptime + READOUT - 2)
    for plan in plans:
        middle = mjd_of(plan.date_obs) + plan.exptime / 2 / 86400
        height = horizontal(*sun(middle), middle).alt
        if plan.tag in ("OBJECT", "SKY", "ASTROMETRY"):
            assert height < -12
        if plan.tag == "STD":
            assert height < -11.9
        if plan.tag == "SKYFLAT":
            assert -6 < height < -1
        if plan.tag in ("BIAS", "FLAT", "ARC", "MASK"):
            assert height > 5
        if plan.on_sky:
            # never so near to the zenith that the telescope cannot follow
            assert 30 <= horizontal(plan.ra, plan.dec, middle).alt < 88.5
    assert start(plans[-1]) - start(plans[0]) < timedelta(hours=24)
    assert {p.tag for p in plans} == {*COUNTS, "OBJECT"}


def test_numbers_and_templates():
    plans = whole_night()
    number = {tag: sum(p.tag == tag for p in plans) for tag in (*COUNTS, "OBJECT")}
    assert number == {
        "BIAS": 5, "DARK": 3, "FLAT": 5, "ARC": 9, "MASK": 50, "SKYFLAT": 3, "ILLUM": 6, "STD": 2, "ASTROMETRY": 1,
        "SKY": 2, "OBJECT": 8,
    }  # fmt: skip
    groups = {}
    for plan in plans:
        groups.setdefault((plan.template, plan.template_start), []).append(plan)
    for group in groups.values():
        assert [p.expno for p in group] == list(range(1, group[0].nexp + 1))
        assert len({p.ob for p in group}) == 1
    assert {p.lamp for p in plans if p.tag == "ARC"} == {"Ne", "Xe", "HgCd"}
    masks = [p.mask for p in plans if p.tag == "MASK"]
    assert np.allclose(np.diff(masks), MASK_STEP, atol=2e-4) and abs(np.mean(masks)) < 1e-4


def test_dithers_and_turns():
    plans = whole_night(targets=(Target("A", 30.0, -33.0, dithers=5, exptimes=(30.0, 5.0)),), dither=1.5)
    objects = [p for p in plans if p.tag == "OBJECT"]
    assert [p.posang for p in objects] == [0, 0, 90, 90, 180, 180, 270, 270, 0, 0]
    assert [p.exptime for p in objects] == [30, 5] * 5
    assert objects[0].offset == (0, 0)
    assert len({p.offset for p in objects}) == 5
    assert max(np.hypot(*p.offset) for p in objects) == pytest.approx(1.5, abs=0.02)
    for plan in objects:
        # the header claims the target plus the offset; where the telescope points differs
        assert (plan.header_ra - 30.0) * 3600 * np.cos(np.radians(-33)) == pytest.approx(plan.offset[0], abs=2e-3)
        assert (plan.header_dec + 33.0) * 3600 == pytest.approx(plan.offset[1], abs=2e-3)
    errors = np.array([p.pointing_error for p in objects])
    assert 0 < np.abs(errors).max() < 1.5 and len(np.unique(errors[:, 0])) == len(errors)


def test_block_over_two_nights():
    first = whole_night(targets=(Target("A", 30.0, -33.0, part=(0, 2), id=7),))
    second = whole_night("2018-11-09", targets=(Target("A", 30.0, -33.0, part=(2, 9), id=7),), first_index=len(first))
    both = [p for p in first + second if p.tag in ("OBJECT", "SKY")]
    assert [p.posang for p in both if p.tag == "OBJECT"] == [0, 90, 180, 270]
    assert {p.ob.id for p in both} == {7} and {p.ob.name for p in both} == {"A"}
    assert len({p.index for p in first + second}) == len(first + second)


def test_waits_until_the_target_is_up():
    """Abell 478 rises after the night has begun."""
    plans = whole_night(targets=(Target("A 478", 63.35, 10.47),), counts={})
    objects = [p for p in plans if p.tag == "OBJECT"]
    assert start(objects[0]) > datetime(2018, 11, 9, 2)
    assert 30 < horizontal(objects[0].ra, objects[0].dec, mjd_of(objects[0].date_obs)).alt < 36


def test_same_date_same_night():
    assert whole_night() == whole_night()
    assert whole_night()[0].conditions != whole_night("2018-11-10")[0].conditions


def test_weather_is_smooth():
    plans = whole_night()
    for name, step in (("seeing", 0.2), ("airglow", 0.2), ("temperature", 1.0), ("pressure", 0.8)):
        values = [getattr(p.conditions, name) for p in plans if p.tag in ("OBJECT", "SKY")]
        assert len(set(values)) > 3
        assert np.abs(np.diff(values)).max() < step
    assert all(0.3 < p.conditions.seeing < 2 and 0.4 < p.conditions.airglow < 2 for p in plans)


def test_adaptive_optics_sharpen():
    seeing = {mode: np.mean([p.conditions.seeing for p in whole_night(mode=mode)]) for mode in MODES}
    assert seeing["NFM-AO-N"] < 0.12 < 0.4 < seeing["WFM-AO-N"] < 0.8 * seeing["WFM-NOAO-N"]


def test_twilight_gets_longer():
    times = [p.exptime for p in whole_night(counts={"SKYFLAT": 6}) if p.tag == "SKYFLAT"]
    assert times == sorted(times) and times[-1] > 1.5 * times[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "WFM"}, "instrument mode 'WFM' found, expected one of WFM-NOAO-N"),
        ({"day": "8.11.2018"}, "expected something like 2014-12-08"),
        ({"day": "2004-01-01"}, "first light"),
        ({"counts": {"FLATS": 3}}, "'FLATS' found, expected one of BIAS, DARK"),
        ({"counts": {"FLAT": -1}}, "0 or more"),
        ({"targets": (Target(ra=201.7, dec=-47.0),)}, r"is -?\d+ deg high .* choose another date or target"),
        ({"targets": (Target(exptimes=(3600.0,)),) * 3}, r"it ends at 08:5\d UTC"),
        ({"targets": (Target(dithers=0),)}, "at least one position"),
        ({"targets": (Target(exptimes=(0.0,)),)}, "between 0 and 7200"),
        ({"targets": (Target(part=(2, 1)),)}, "increasing"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises(InputError, match=message):
        whole_night(**options)


def test_counts():
    assert resolve_counts({"bias": 3})["BIAS"] == 3
    assert _counts("none,bias=3, arc=1", False, False) == {**NONE, "BIAS": 3, "ARC": 1}
    assert _counts(None, True, True) == {"DARK": 3, "MASK": 60}
    assert _counts("mask=50", False, True) == {"MASK": 50}


def test_description():
    text = describe(whole_night(), (1, 2), compress=False, threads=2)
    assert "OBJECT       8 x 600 s, 574 MB: A, B" in text and "together" in text


# ---------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize(("ifus", "angles"), [((1, 2), (0, 90)), ((12,), (0,)), (range(1, 25), (0, 90, 180))])
def test_scene_lies_in_the_field(ifus, angles):
    instrument = Instrument("WFM-NOAO-N")
    scene = night_scene(instrument, ifus, angles, 30.0, -33.0)
    xlo, xhi, ylo, yhi = instrument.limits(ifus)
    for angle in angles:
        pa = np.radians(-angle)
        east, north = np.array([(s.dra, s.ddec) for s in scene.stars]).T
        x, y = -east * np.cos(pa) - north * np.sin(pa), -east * np.sin(pa) + north * np.cos(pa)
        inside = (np.abs(x) < 0.1 * (xhi - xlo)) & (np.abs(y) < 0.1 * (yhi - ylo))
        # exp_align wants five, and the brightest are the first
        assert inside.sum() >= (8 if len(ifus) > 1 else 6)
    assert scene.galaxies and scene.nebulae


def test_scenes_have_coordinates():
    plans = whole_night()
    scenes = scenes_of(plans, (1, 2))
    assert set(scenes) == {p.scene for p in plans if p.scene}
    objects = [p for p in plans if p.tag == "OBJECT"]
    assert scenes["field"].ra == pytest.approx(objects[0].header_ra, abs=1e-6)
    star = next(p for p in plans if p.tag == "STD")
    assert scenes[star.scene].ra == star.ra + star.pointing_error[0] / 3600
    plain = replace(scenes["field"], ra=None, dec=None)
    assert scenes_of(plans, (1, 2), plain)["field"] == scenes["field"]


# ---------------------------------------------------------------------------------- associations


def test_tree():
    plans = whole_night()
    objects = [p for p in plans if p.tag == "OBJECT"]
    tree = associate(objects[-1], plans, statics={"BADPIX_TABLE": "badpix_table"})
    assert tree.complete and tree.files == [archive_name(objects[-1])]
    found = {need.category: need for need in tree.needs}
    assert list(found) == ["BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM", "STD", "ASTROMETRY", "BADPIX_TABLE"]
    assert len(found["BIAS"].files) == 5 and len(found["ARC"].files) == 9 and len(found["STD"].files) == 1
    lamps = [p for p in plans if p.tag == "ILLUM"]
    assert found["ILLUM"].files == [archive_name(min(lamps, key=lambda p: abs(start(p) - start(objects[-1]))))]
    assert [need.category for need in found["FLAT"].needs] == ["BIAS"]
    star = ["BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM", "BADPIX_TABLE"]
    assert [need.category for need in found["STD"].needs] == star
    assert len(tree.all_files()) == len({name for name, _ in tree.all_files()})


def test_missing_calibrations():
    plans = [p for p in whole_night() if p.tag != "FLAT"]
    tree = associate(next(p for p in plans if p.tag == "OBJECT"), plans)
    assert not tree.complete and tree.missing == ["FLAT"]
    text = to_xml(tree)
    assert 'complete="false"' in text and "no FLAT found" in text


def test_xml_is_read_back(tmp_path):
    plans = whole_night()
    written = write_associations(tmp_path, plans, masters=lambda category, plan: f"M.{category}")
    assert len(written) == 2 * sum(p.tag in ("OBJECT", "SKY") for p in plans)
    plan = next(p for p in plans if p.tag == "OBJECT")
    raw = read_association(tmp_path / f"{archive_name(plan)}_raw2raw.xml")
    assert raw == associate(plan, plans, masters=None) or raw.all_files() == associate(plan, plans).all_files()
    master = read_association(tmp_path / f"{archive_name(plan)}_raw2master.xml")
    categories = [category for _, category in master.all_files()]
    assert {"MASTER_BIAS", "TRACE_TABLE", "TWILIGHT_CUBE", "STD_RESPONSE", "ILLUM"} <= set(categories)
    assert not {"BIAS", "FLAT", "ARC", "STD"} & set(categories)
    text = (tmp_path / f"{archive_name(plan)}_raw2raw.xml").read_text()
    assert all(archive_name(p) in text for p in plans if p.tag in ("BIAS", "FLAT", "ARC", "SKYFLAT"))
    (tmp_path / "bad.xml").write_text("<association")
    with pytest.raises(InputError, match="association of the archive"):
        read_association(tmp_path / "bad.xml")


def test_calibrations_of_the_right_mode():
    plans = []
    for day, mode in (("2018-11-08", "WFM-NOAO-N"), ("2018-11-09", "WFM-AO-N"), ("2018-11-10", "WFM-NOAO-E")):
        plans += whole_night(day, mode=mode, first_index=len(plans))
    ao = next(p for p in plans if p.tag == "OBJECT" and p.mode == "WFM-AO-N")
    for tag in ("FLAT", "STD", "ARC", "SKYFLAT"):
        assert {p.mode for p in nearest(ao, tag, plans)} == {"WFM-AO-N"}
    # without its own, those of the same range serve where the detector sees the same
    rest = [p for p in plans if p.mode != "WFM-AO-N" or p.tag == "OBJECT"]
    assert {p.mode for p in nearest(ao, "ARC", rest)} == {"WFM-NOAO-N"}
    assert nearest(ao, "FLAT", rest) == [] and nearest(ao, "STD", rest) == []
    assert len(nearest(ao, "BIAS", rest)) == 5


# --------------------------------------------------------------------------------------- writing

SMALL = {"ifus": (1,), "dithers": 1, "calibrations": {**NONE, "BIAS": 1, "ILLUM": 1}, "seed": 7}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "night"
    return simulate_night(folder, masters=True, **SMALL)


def test_what_is_written(small):
    assert [p.tag for p in small.plans] == ["BIAS", "ILLUM", "OBJECT"]
    assert all(path.exists() and path.name.startswith("MUSE.2018-11-") for path in small.paths)
    index = json.loads((small.folder / "night.json").read_text())
    assert index["seed"] == 7 and index["ifus"] == [1]
    assert [e["file"] for e in index["exposures"]] == [path.name for path in small.paths]
    sof = (small.folder / "frames.sof").read_text()
    assert f"{small.paths[0].absolute()} BIAS\n" in sof and "GEOMETRY_TABLE" in sof
    assert small.sof("ILLUM") == f"{small.paths[1].absolute()} ILLUM\n"
    assert small.files("OBJECT", posang=0.0) == [small.paths[2]]
    names = {path.name.removeprefix(small.paths[2].stem) for path in small.associations}
    assert names == {"_raw2raw.xml", "_raw2master.xml"}
    assert [path.name[:7] for path in small.masters["MASTER_BIAS"]] == ["M.MUSE."]
    assert not list(small.folder.rglob(".*"))


def test_headers_of_a_night(small):
    header = fits.getheader(small.paths[2])
    plan = small.plans[2]
    assert header["ESO OBS NAME"] == plan.ob.name and header["ESO TPL START"] == plan.template_start
    assert header["RA"] == pytest.approx(plan.header_ra, abs=1e-6)
    assert header["ESO DPR CATG"] == "SCIENCE" and header["ESO TPL NEXP"] == 1


def test_truth_of_a_night(small):
    truth = NightTruth.open(small.folder)
    assert [e.plan for e in truth.exposures] == small.plans and truth.seed == 7
    assert truth.scenes == small.scenes


def test_done_is_kept(small):
    before = [path.stat().st_mtime_ns for path in small.paths]
    again = simulate_night(small.folder, masters=True, **SMALL)
    assert [path.stat().st_mtime_ns for path in again.paths] == before


def test_another_night_is_refused_then_replaced(small, tmp_path):
    folder = tmp_path / "night"
    shutil.copytree(small.folder, folder)
    before = [path.read_bytes() for path in small.paths]
    with pytest.raises(OutputExistsError, match=r"another night \(different: seed\).*--overwrite"):
        simulate_night(folder, **{**SMALL, "seed": 8})
    assert [(folder / "raw" / path.name).read_bytes() for path in small.paths] == before
    made = simulate_night(folder, overwrite=True, **{**SMALL, "seed": 8, "calibrations": {**NONE, "BIAS": 1}})
    assert sorted(path.name for path in (folder / "raw").glob("MUSE*.fits")) == sorted(p.name for p in made.paths)
    assert not list((folder / "raw").glob("M.MUSE*"))
    assert made.paths[0].read_bytes() != before[0]


def test_files_of_somebody_else(tmp_path):
    name = simulate_night(tmp_path, dry_run=True, **SMALL).paths[0]
    name.parent.mkdir()
    name.write_text("mine")
    with pytest.raises(OutputExistsError, match=name.name):
        simulate_night(tmp_path, **SMALL)
    assert name.read_text() == "mine"


def test_dry_run_writes_nothing(tmp_path):
    night = simulate_night(tmp_path / "night", dry_run=True, **SMALL)
    assert len(night.plans) == 3 and not (tmp_path / "night").exists()


def test_goes_on_after_a_kill(tmp_path):
    """Killed after the first files, run again: the same bytes as in one go."""
    options = ["--ifus", "2", "--calibrations", "none,bias=6", "--obs", "0", "--no-statics", "--n-workers", "1"]
    command = [sys.executable, "-m", "musedask", "simulate", "night", "killed", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    raw = tmp_path / "killed" / "raw"
    deadline = time.monotonic() + 60
    while len(list(raw.glob("MUSE*.fits"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in raw.glob("MUSE*.fits")}
    assert len(kept) >= 2
    once = simulate_night(tmp_path / "once", ifus=(2,), calibrations={**NONE, "BIAS": 6}, n_obs=0, statics=False)
    again = simulate_night(tmp_path / "killed", ifus=(2,), calibrations={**NONE, "BIAS": 6}, n_obs=0, statics=False)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert [path.read_bytes() for path in again.paths] == [path.read_bytes() for path in once.paths]
    assert not list(raw.glob(".*"))


def test_two_runs_at_once(small):
    handle = os.open(small.folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another run is at work"):
            simulate_night(small.folder, masters=True, **SMALL)
    finally:
        os.close(handle)


def test_disk_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 10**7))
    with pytest.raises(PlanError, match=r"108 MB are needed on this disk, 50 MB are free"):
        simulate_night(tmp_path / "night", **SMALL)
    assert not (tmp_path / "night").exists()


def test_remains_of_a_killed_run_take_no_room(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / ".MUSE.2018-11-08T20:00:00.000.fits.abc.part").write_bytes(b"x" * 10**8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 10**7))
    simulate_night(tmp_path, dry_run=True, **SMALL)
    monkeypatch.undo()
    simulate_night(tmp_path, ifus=(1,), n_obs=0, calibrations={**NONE, "BIAS": 1}, statics=False)
    assert not list(raw.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ifus", "1-25"], "IFU 25 found, expected numbers from 1 to 24"),
        (["--ifus", "one"], "expected something like 1-24"),
        (["--mode", "NFM-NOAO-N"], "instrument mode 'NFM-NOAO-N' found, expected one of"),
        (["--scene", "missing.yaml"], "missing.yaml"),
        (["--date", "yesterday"], "date 'yesterday' found"),
        (["--ra", "10"], "expected both, or neither"),
        (["--calibrations", "bias"], "expected a type and a number"),
        (["--calibrations", "bios=3"], "'BIOS' found, expected one of BIAS"),
        (["--memory-limit", "10MB"], "expected at least"),
        (["--ra", "10", "--dec", "-30", "--scene", "scene.yaml"], "outside the field"),
    ],
)
def test_bad_requests(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scene.yaml").write_text("ra: 10.5\ndec: -30\nstars:\n- {dra: 0, ddec: 0, flux: 1000}\n")
    done = CliRunner().invoke(main, ["simulate", "night", "out", "--ifus", "1", *arguments])
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output
    assert not Path("out").exists()


def test_output_that_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("")
    done = CliRunner().invoke(main, ["simulate", "night", "out", "--ifus", "1", "--obs", "0"])
    assert done.exit_code == 1 and "out" in done.output and "Traceback" not in done.output


def test_statics_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["simulate", "statics", "static", "--ifus", "1"])
    assert done.exit_code == 0, done.output
    assert fits.getheader("static/geometry_table_wfm.fits")["ESO PRO CATG"] == "GEOMETRY_TABLE"
    again = CliRunner().invoke(main, ["simulate", "statics", "static", "--ifus", "1"])
    assert again.exit_code == 1 and "overwrite" in again.output
