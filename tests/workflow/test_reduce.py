"""Whole reductions of a tiny night, with a program that answers like esorex: files, names, what goes into what."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from musedask.cli import main
from musedask.errors import InputError, RecipeError
from musedask.io.sof import read_sof
from musedask.workflow.cleanup import PARTS, removable
from musedask.workflow.lists import find_lists
from musedask.workflow.reduce import plan_reduction, reduce
from musedask.workflow.status import find_status, table

from .fakes import FakePipeline, sections, two_nights, write_masters

ROOT = Path(__file__).resolve().parents[2]
A1, A2, SKY = "020000-330000_0300_000_00", "020000-325959_0300_090_00", "020008-325900_0120_000_00"
B1, B2 = "020400-330000_0300_000_00", "020400-325959_0300_090_00"
POINTING = "020000-330000_0300/withoutsky_withrvcorr"


@pytest.fixture
def run(nights, fake, tmp_path):
    """Reduce the block Field A, of one IFU, with some other keys."""

    def make(folder=nights, *, plan=False, global_=None, options=None, **more):
        config = sections(folder, tmp_path, fake.path, global_={"OB_list": ["Field A"], **(global_ or {})}, **more)
        return (plan_reduction if plan else reduce)(config, **(options or {}))


    make.reduced = tmp_path / "reduced"
    return make


def made(folder):
    """Names of files below a folder, without those of the state."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".musedask" not in p.parts}


# --- the whole night


@pytest.fixture(scope="module")
def finished(nights, tmp_path_factory):
    """Both blocks, two IFUs, with darks; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    fake = FakePipeline(root / "fake")
    config = sections(nights, root, fake.path, calibration={"dark": True}, musedask={"ifus": [1, 2]})
    result = reduce(config)
    return result, fake


def per_ifu(*names):
    return {f"{name}-0{i}.fits" for name in names for i in (1, 2)}


def logs(stem, *, ifus=True):
    return {f"{stem}.sof", *({f"{stem}-01.log", f"{stem}-02.log"} if ifus else {f"{stem}.log"})}


def test_folders_and_names(finished):
    """The layout and the names that users of MUSEreduce know."""
    result, _ = finished
    found = made(result.plan.reduced)
    skies = {f"SKY_{n}.fits" for n in ("LINES", "CONTINUUM", "MASK", "SPECTRUM", "IMAGE")}
    models = {f"SKY_{n}_0001.fits" for n in ("LINES", "MASK", "SPECTRUM", "IMAGE")}
    calibrations = per_ifu("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "TRACE_SAMPLES", "WAVECAL_TABLE",
                           "WAVECAL_RESIDUALS")  # fmt: skip
    science = calibrations | per_ifu("LSF_PROFILE") | {n for s in ("bias", "flat", "wavecal", "lsf") for n in logs(s)}
    std = per_ifu("PIXTABLE_STD_0001") | logs("sci_basic_std") | logs("std_flux", ifus=False) | {
        f"{n}_0001.fits" for n in ("STD_RESPONSE", "STD_TELLURIC", "STD_FLUXES", "DATACUBE_STD")
    }  # fmt: skip
    exposure = per_ifu("PIXTABLE_OBJECT_0001") | logs("sci_basic_object") | logs("scipost", ifus=False) | skies | models
    exposure |= {"DATACUBE_FINAL_wosky.fits", "IMAGE_FOV_0001_wosky.fits", "PIXTABLE_REDUCED_0001_wosky.fits"}
    pointing = {"DATACUBE_FINAL.fits", "IMAGE_FOV_0001.fits", "OFFSET_LIST.fits"}
    pointing |= logs("exp_align", ifus=False) | logs("exp_combine", ifus=False)
    collected = ("DATACUBE_FINAL", "IMAGE_FOV", "PIXTABLE_REDUCED")
    expected = {
        "Field_A/calibrations/SCIENCE": science,
        "Field_A/calibrations/TWILIGHT": calibrations | {"TWILIGHT_CUBE.fits", "DATACUBE_SKYFLAT.fits"}
        | logs("twilight", ifus=False),
        "Field_A/calibrations/DARK": per_ifu("MASTER_DARK", "MASTER_BIAS") | logs("dark"),
        "Field_A/std": std,
        f"Field_A/{SKY}": per_ifu("PIXTABLE_SKY_0001") | logs("sci_basic_object") | logs("sky", ifus=False) | skies,
        f"Field_A/{A1}": exposure,
        f"Field_A/{A2}": exposure,
        f"Field_A/{POINTING}": pointing | {
            f"{c}_Field_A_0300_{angle}_00.fits" for c in collected for angle in ("000", "090")
        },
        "Field_A": {f"{e}_{kind}.list" for e, kind in ((A1, "SCI"), (A2, "SCI"), (SKY, "SKY"))}
        | {f"{e}_{kind}.list" for e in (A1, A2, SKY) for kind in ("TWI", "DAR")},
        # a night for itself, beside what it shares with the other block
        "Field-B/calibrations/SCIENCE_2018-11-09": science,
        "Field-B/std_2018-11-09": std,
        f"Field-B/{B2}": exposure | logs("sky", ifus=False),
    }  # fmt: skip
    for folder, names in expected.items():
        here = {Path(name).name for name in found if str(Path(name).parent) == folder}
        if folder.startswith(f"Field_A/{POINTING}"):
            # what muse_exp_align shows of its work
            assert here - names <= {"PREVIEW_FOV.fits", "SOURCE_LIST_0001.fits", "EXPOSURE_MAP.fits"}
            here &= names
        assert here == names, folder
    assert {name.split("/")[0] for name in found} == {"Field_A", "Field-B", "report"}
    shared = result.plan.reduced
    for name in ("MASTER_BIAS-01.fits", "LSF_PROFILE-02.fits"):
        one, other = (shared / ob / "calibrations/SCIENCE" / name for ob in ("Field_A", "Field-B"))
        assert one.samefile(other)


def test_sets_of_frames(finished):
    """All paths are absolute and there; what a call was given is what its set of frames says, for its IFU."""
    result, fake = finished
    reduced = result.plan.reduced
    for path in reduced.rglob("*.sof"):
        lines = [line.split() for line in path.read_text().splitlines()]
        assert lines and all(len(words) == 2 and words[0].startswith("/") for words in lines), path
        assert all(Path(words[0]).exists() for words in lines)
    given = {}
    for call in fake.calls():
        given.setdefault((call["recipe"], call["ifu"]), []).append(sorted(map(tuple, call["frames"])))
    flat = read_sof(reduced / "Field_A/calibrations/SCIENCE/flat.sof")
    assert Counter(f.tag for f in flat) == {"FLAT": 3, "MASTER_BIAS": 2, "MASTER_DARK": 2}
    for ifu in (1, 2):
        own = sorted((str(f.path), f.tag) for f in flat if f.tag == "FLAT" or f.path.stem.endswith(f"-0{ifu}"))
        assert own in given["muse_flat", ifu]
    post = read_sof(reduced / f"Field_A/{A1}/scipost.sof")
    assert sorted((str(f.path), f.tag) for f in post) in given["muse_scipost", 0]
    here = reduced / f"Field_A/{A1}"
    assert [f.path for f in post if f.tag in ("PIXTABLE_OBJECT", "SKY_LINES")] == [
        here / "PIXTABLE_OBJECT_0001-01.fits", here / "PIXTABLE_OBJECT_0001-02.fits", here / "SKY_LINES.fits"
    ]  # fmt: skip
    sky = read_sof(reduced / f"Field-B/{B2}/sky.sof")
    assert [(f.path.name, f.tag) for f in sky if "PIXTABLE" in f.tag] == [
        (f"PIXTABLE_OBJECT_0001-0{i}.fits", "PIXTABLE_SKY") for i in (1, 2)
    ]
    align = read_sof(reduced / f"Field_A/{POINTING}/exp_align.sof")
    assert [f.path.name for f in align] == [f"IMAGE_FOV_Field_A_0300_{a}_00.fits" for a in ("000", "090")]


def test_products_of_a_run(finished):
    result, _ = finished
    cubes = [f.path for f in result.products("DATACUBE_FINAL")]
    reduced = result.plan.reduced
    assert cubes == [reduced / "Field_A" / POINTING / "DATACUBE_FINAL.fits",
                     reduced / "Field-B/020400-330000_0300/withoutsky_withrvcorr/DATACUBE_FINAL.fits"]  # fmt: skip
    assert len(result.products("DATACUBE_FINAL", ob="Field_A")) == 1
    assert [f.path for f in result.products("SKY_LINES", ob="Field_A", exposure=SKY)] == [
        reduced / f"Field_A/{SKY}/SKY_LINES.fits"
    ]
    assert {f.path.name for f in result.products("MASTER_BIAS", ifu=2)} == {"MASTER_BIAS-02.fits"}


def test_dry_run(finished, nights, tmp_path):
    """Nothing runs, and the sets of frames are those of the run."""
    fake = FakePipeline(tmp_path / "fake")
    config = sections(nights, tmp_path, fake.path, calibration={"dark": True}, musedask={"ifus": [1, 2]})
    plan = reduce(config, dry_run=True)
    assert not fake.calls()
    assert {Path(name).suffix for name in made(plan.reduced)} == {".sof"}
    whole = finished[0].plan.reduced
    for path in plan.reduced.rglob("*.sof"):
        other = whole / path.relative_to(plan.reduced)
        assert path.read_text().replace(str(plan.reduced), str(whole)) == other.read_text()
    assert len(list(plan.reduced.rglob("*.sof"))) == len(list(whole.rglob("*.sof")))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    done = CliRunner().invoke(main, ["-q", "reduce", str(file), "--dry-run", "--to", "bias"])
    assert done.exit_code == 0, done.output
    assert "Field_A/calibrations/SCIENCE/bias: muse_bias (esorex), IFUs 1, 2" in done.output
    assert not fake.calls()


def test_status(finished):
    result, _ = finished
    found = find_status(result.plan)
    assert {s.status for s in found} == {"done"}
    lines = table(found).splitlines()
    assert any(line.split() == [f"Field_A/{A1}", "sci_basic", "2/2"] for line in lines)
    assert lines[-1] == f"{len(found)} done"
    config = sections(result.plan.sorted.raw[0].parent, result.plan.reduced.parent, result.plan.settings.esorex,
                      calibration={"dark": True}, musedask={"ifus": [1, 2]}, sky={"fraction": 0.2})  # fmt: skip
    found = find_status(plan_reduction(config))
    changed = {s.step.name: s for s in found if s.status == "stale"}
    assert set(changed) == {"sky", "sci_post", "dither_collect", "exp_align", "exp_combine"}
    assert any(s.reason == "parameters fraction 0.05, now 0.2" for s in found)


# --- cleaning up


def test_what_may_be_removed(finished):
    result, _ = finished
    plan = result.plan

    def parts(*names):
        return {str(r.path.relative_to(plan.reduced)) for r in removable(plan, set(names))}

    std, combined, calibrations = (parts(name) for name in PARTS)
    assert {name.split("/")[1].split("_2018")[0] for name in std} == {"std"}
    assert all("withoutsky_withrvcorr" in name for name in combined)
    assert f"Field_A/{POINTING}/PIXTABLE_REDUCED_Field_A_0300_000_00.fits" in combined
    assert f"Field_A/{POINTING}/OFFSET_LIST.fits" in combined
    assert "Field_A/calibrations/SCIENCE/MASTER_BIAS-01.fits" in calibrations
    assert f"Field_A/{A1}/PIXTABLE_OBJECT_0001-01.fits" in calibrations
    assert f"Field_A/{A1}/PIXTABLE_REDUCED_0001_wosky.fits" in calibrations
    # cubes and raw frames never are
    everything = std | combined | calibrations
    assert not any(name.endswith(("/DATACUBE_FINAL.fits", "/DATACUBE_FINAL_wosky.fits")) for name in everything)
    assert not parts()


def test_cleanup(run, nights, fake):
    """Only what is switched on, and only with ``execute``; a run after that does nothing."""
    before = made(nights)
    run(cleanup=dict.fromkeys(PARTS, True))
    place = {"include_std": "Field_A/std", "include_combined": f"Field_A/{POINTING}",
             "include_calibrations": "Field_A/calibrations/SCIENCE"}  # fmt: skip

    def left():
        return {part: {p.name for p in (run.reduced / folder).glob("*.fits")} for part, folder in place.items()}

    there = left()
    assert f"Field_A/{A1}/PIXTABLE_OBJECT_0001-01.fits" in made(run.reduced) and all(there.values())
    fake.forget()
    for part in PARTS:
        result = run(cleanup={"execute": True, part: True})
        there[part] = {"DATACUBE_FINAL.fits", "IMAGE_FOV_0001.fits"} if part == "include_combined" else set()
        assert left() == there
        assert [f.path.name for f in result.products("DATACUBE_FINAL")] == ["DATACUBE_FINAL.fits"]
    names = made(run.reduced)
    assert f"Field_A/{A1}/DATACUBE_FINAL_wosky.fits" in names
    assert f"Field_A/{A1}/PIXTABLE_OBJECT_0001-01.fits" not in names
    assert not fake.calls()
    assert made(nights) == before


def test_what_was_removed_is_made_again_if_it_is_needed(run, fake):
    keys = {"cleanup": {"execute": True, "include_std": True, "include_calibrations": True}}
    run(**keys)
    fake.forget()
    run(exp_combine={"weight": "none"}, **keys)
    assert {c["recipe"] for c in fake.calls()} == {"muse_exp_combine"}
    fake.forget()
    run(exp_combine={"weight": "none"}, sci_post={"rvcorr": "geo"}, **keys)
    recipes = Counter(c["recipe"] for c in fake.calls())
    assert recipes["muse_scipost"] == 2 and recipes["muse_bias"] == recipes["muse_standard"] == 1
    plan = run(plan=True, exp_combine={"weight": "none"}, sci_post={"rvcorr": "geo"}, **keys)
    assert {s.status for s in find_status(plan)} == {"done"}


# --- other ways to the cube


def test_modified_sky(run):
    """Two passes, each kept; the second without a continuum, its lines only of some species."""
    result = run(sky={"modified": True, "method": "subtract-model", "sky_field": "object", "protect": [[6560, 6565]]})
    here = run.reduced / f"Field_A/{A1}"
    for folder in ("sky_pass1", "sky_pass2"):
        assert {f"{folder}/{n}" for n in ("sky.sof", "sky.log", "SKY_LINES.fits", "SKY_CONTINUUM.fits")} <= made(here)
    zero = here / "sky_pass2/SKY_CONTINUUM_zero.fits"
    with fits.open(here / "sky_pass1/SKY_CONTINUUM.fits") as one, fits.open(zero, checksum=True) as two:
        assert np.any(one[1].data["flux"] != 0)
        assert np.all(two[1].data["flux"] == 0)
        assert np.array_equal(one[1].data["lambda"], two[1].data["lambda"])
    assert (str(zero), "SKY_CONTINUUM") in [
        (str(f.path), f.tag) for f in read_sof(here / "sky_pass2/sky.sof")
    ]
    assert (here / "SKY_CONTINUUM.fits").samefile(zero)
    with fits.open(here / "sky_pass2/SKY_LINES.fits") as hdus:
        assert len(hdus["LINES"].data) == 5
    with fits.open(here / "SKY_LINES.fits", checksum=True) as hdus:
        assert [name.split()[0] for name in hdus["LINES"].data["name"]] == ["OH", "O2"]
    post = read_sof(here / "scipost.sof")
    assert [f.path for f in post if f.tag.startswith("SKY_")] == [here / "SKY_LINES.fits", here / "SKY_CONTINUUM.fits"]
    assert not result.outcome.failures


def test_copies_and_merged_products(run, fake):
    """And all parameters arrive; without correction of velocities the names are others."""
    run(
        global_={"withrvcorr": False}, musedask={"collect": "copy", "merge": True, "ifus": [1, 2]},
        parameters={"flat": {"edgefrac": 0.4}}, sci_basic={"esorex_kwargs": "--crop=false"},
    )  # fmt: skip
    found = made(run.reduced / "Field_A")
    kinds = ("DATACUBE_FINAL", "IMAGE_FOV_0001", "PIXTABLE_REDUCED_0001")
    assert {f"{A1}/{n}_wskynorvcorr.fits" for n in kinds} <= found
    place = "020000-330000_0300/withsky_withoutrvcorr"
    assert {f"{place}/DATACUBE_FINAL.fits", f"{place}/DATACUBE_FINAL_Field_A_0300_000_00.fits"} <= found
    one = run.reduced / f"Field_A/{A1}/DATACUBE_FINAL_wskynorvcorr.fits"
    other = run.reduced / f"Field_A/{place}/DATACUBE_FINAL_Field_A_0300_000_00.fits"
    assert one.read_bytes() == other.read_bytes() and not one.samefile(other)
    names = ("MASTER_BIAS.fits", "MASTER_BIAS-01.fits", "WAVECAL_TABLE.fits", "LSF_PROFILE.fits")
    assert {f"calibrations/SCIENCE/{name}" for name in names} <= found
    options = [c["options"] for c in fake.calls("muse_scipost")]
    assert [(o["rvcorr"], o["skymethod"]) for o in options] == [("none", "none")] * 2
    assert {c["options"]["edgefrac"] for c in fake.calls("muse_flat")} == {"0.4"}
    assert {c["options"]["crop"] for c in fake.calls("muse_scibasic")} == {"false"}


def test_autocalibration_of_the_user(run, fake):
    keys = {"sci_post": {"autocalib": "user", "subtract_sky": False}}
    with pytest.raises(RecipeError, match=rf"{A1}/AUTOCAL_FACTORS\.fits: no such file, expected a AUTOCAL_FACTORS"):
        run(**keys)
    for exposure in (A1, A2):
        (run.reduced / f"Field_A/{exposure}/AUTOCAL_FACTORS.fits").write_bytes(
            (fake.folder / "templates/all.fits").read_bytes()
        )
    fake.forget()
    run(**keys)
    assert {c["recipe"] for c in fake.calls()} == {"muse_scipost", "muse_exp_align", "muse_exp_combine"}
    for call in fake.calls("muse_scipost"):
        assert call["options"]["autocalib"] == "user"
        assert {"AUTOCAL_FACTORS", "SKY_MASK"} <= {tag for _, tag in call["frames"]}
    assert (run.reduced / "Field_A/020000-330000_0300/withsky_withrvcorr/DATACUBE_FINAL.fits").exists()


def test_a_single_exposure(run, fake):
    result = run(global_={"exp_list": [A1]})
    folder = run.reduced / f"Field_A/{POINTING}"
    assert (folder / "DATACUBE_FINAL.fits").samefile(run.reduced / f"Field_A/{A1}/DATACUBE_FINAL_wosky.fits")
    assert not fake.calls("muse_exp_align") and not fake.calls("muse_exp_combine")
    assert [f.path for f in result.products("DATACUBE_FINAL")] == [folder / "DATACUBE_FINAL.fits"]


def test_masters_of_the_archive(run, nights, fake, tmp_path):
    folder = tmp_path / "archive"
    shutil.copytree(nights / "raw", folder / "raw", copy_function=lambda a, b: Path(b).hardlink_to(a))
    (folder / "static").symlink_to(nights / "static")
    write_masters(folder / "raw", two_nights())
    run(folder, global_={"using_ESO_calibration": True}, calibration={"dark": True})
    recipes = {c["recipe"] for c in fake.calls()}
    assert not recipes & {f"muse_{n}" for n in ("bias", "dark", "flat", "wavecal", "lsf", "twilight")}
    assert {"muse_scibasic", "muse_standard", "muse_create_sky", "muse_scipost", "muse_exp_combine"} <= recipes
    for call in fake.calls("muse_scibasic"):
        assert {"MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT", "TWILIGHT_CUBE"} <= {tag for _, tag in call["frames"]}


# --- what the user edits


def test_edited_sets_of_frames(run, fake):
    """With create_sof false those that are there are used as they are."""
    run(options={"dry_run": True})
    science, here = run.reduced / "Field_A/calibrations/SCIENCE", run.reduced / f"Field_A/{A1}"
    edited = {run.reduced / "Field_A/calibrations/TWILIGHT/twilight.sof": "ILLUM",
              here / "scipost.sof": "FILTER_LIST", here / "sci_basic_object.sof": "ILLUM",
              run.reduced / "Field_A/std/std_flux.sof": "TELLURIC_REGIONS",
              run.reduced / f"Field_A/{SKY}/sky.sof": "STD_TELLURIC",
              run.reduced / f"Field_A/{POINTING}/exp_combine.sof": "FILTER_LIST"}  # fmt: skip
    texts = {}
    for path, tag in edited.items():
        lines = path.read_text().splitlines(keepends=True)
        k = next(i for i, line in enumerate(lines) if line.rstrip().endswith(f" {tag}"))
        texts[path] = "".join(lines[:k] + lines[k + 1 :])
        path.write_text(texts[path])
    flat = science / "flat.sof"
    texts[flat] = "".join(reversed(flat.read_text().splitlines(keepends=True)))
    flat.write_text(texts[flat])
    align = run.reduced / f"Field_A/{POINTING}/exp_align.sof"
    texts[align] = "".join(reversed(align.read_text().splitlines(keepends=True)))
    align.write_text(texts[align])
    keep = {name: {"create_sof": False} for name in
            ("calibration", "sci_basic", "std_flux", "sky", "sci_post", "exp_align", "exp_combine")}  # fmt: skip
    run(**keep)
    assert all(path.read_text() == text for path, text in texts.items())
    for path, tag in edited.items():
        recipe = {"twilight": "muse_twilight", "scipost": "muse_scipost", "sci_basic_object": "muse_scibasic",
                  "std_flux": "muse_standard", "sky": "muse_create_sky", "exp_combine": "muse_exp_combine"}[path.stem]
        given = [Counter(t for _, t in c["frames"])[tag] for c in fake.calls(recipe)]
        assert min(given) == 0, path
    (call,) = fake.calls("muse_flat")
    names = [p for p, tag in call["frames"] if tag == "FLAT"]
    assert len(names) == 3 and names == sorted(names, reverse=True)
    (call,) = fake.calls("muse_exp_align")
    assert [Path(p).name for p, _ in call["frames"]] == [f"IMAGE_FOV_Field_A_0300_{a}_00.fits" for a in ("090", "000")]
    # one more, or one less
    align.write_text(texts[align] + f"{here}/IMAGE_FOV_0001_wosky.fits IMAGE_FOV\n")
    run(**keep)
    assert len(fake.calls("muse_exp_align")[-1]["frames"]) == 3
    post = here / "scipost.sof"
    post.write_text("".join(line for line in texts[post].splitlines(keepends=True) if "-02.fits" not in line))
    run(**keep, musedask={"ifus": [1, 2]})
    calls = [c for c in fake.calls("muse_scipost") if str(here) in c["frames"][0][0]]
    assert Counter(tag for _, tag in calls[-1]["frames"])["PIXTABLE_OBJECT"] == 1
    # otherwise they are written anew
    run()
    assert all(path.read_text() != text for path, text in texts.items())
    # what is in them must be there
    flat.write_text(texts[flat] + "/nowhere/x.fits FLAT\n")
    with pytest.raises(InputError, match=r"flat\.sof: /nowhere/x\.fits: no such file, and no step makes it"):
        run(**keep)


def test_lists_of_earlier_runs(run, caplog):
    """They are replaced, unless somebody has edited them."""
    path = run.reduced / f"Field_A/{A1}_SCI.list"
    (run.reduced / ".musedask").mkdir(parents=True)
    plan = run(plan=True)
    assert path in plan.sorted.write_lists()
    changed = run(plan=True, musedask={"association": {"exclude": ["MUSE.2018-11-09T00:29*"]}})
    before = path.read_text()
    assert path in changed.sorted.write_lists() and path.read_text() != before
    path.write_text(path.read_text() + "# mine\n")
    assert plan.sorted.write_lists() == [] and path.read_text().endswith("# mine\n")
    assert "they are not used: set global.auto_sort_data to false for that" in caplog.text


def test_edited_lists(run):
    with pytest.raises(InputError, match=r"no lists \(\*_SCI\.list\) found there; global\.auto_sort_data is false"):
        run(global_={"auto_sort_data": False}, plan=True)
    plan = run(plan=True, options={"last": "bias"})
    (run.reduced / ".musedask").mkdir(parents=True)
    plan.sorted.write_lists()
    path = run.reduced / f"Field_A/{A1}_SCI.list"
    lines = path.read_text().splitlines()
    old = next(line for line in lines if line.endswith("ILLUM")).split()[0]
    new = next(f.path for f in plan.sorted.files if f.tag == "ILLUM" and str(f.path) != old)
    path.write_text("\n".join(line.replace(old, str(new)) for line in lines) + "\n")

    def illumination(plan):
        return {s.exposure: r.path for s in plan.graph if s.name == "sci_basic" for r in s.inputs if r.tag == "ILLUM"}

    again = run(global_={"auto_sort_data": False}, plan=True)
    assert illumination(again)[A1] == new
    assert illumination(run(plan=True))[A1] == Path(old)
    # an exposure without a list is not reduced
    (run.reduced / f"Field_A/{A2}_SCI.list").unlink()
    again = run(global_={"auto_sort_data": False}, plan=True)
    assert {e.id for e in again.sorted.exposures} == {A1, SKY}
    assert find_lists(run.reduced)


# --- parts of a run


def test_steps_that_are_switched_off(run, fake):
    """They take what is there, and say what is missing."""
    run(options={"last": "lsf"})
    assert {c["recipe"] for c in fake.calls()} == {f"muse_{n}" for n in ("bias", "flat", "wavecal", "lsf")}
    fake.forget()
    with pytest.raises(RecipeError) as caught:
        run(calibration={"execute": False})
    assert "TWILIGHT_CUBE.fits: no such file; twilight is not among the steps to be done" in str(caught.value)
    assert not fake.calls()
    run()
    fake.forget()
    # other parameters of what is switched off make no difference
    run(calibration={"execute": False, "esorex_kwargs_bias": "--nlow=2"}, sky={"fraction": 0.3})
    later = {"muse_create_sky", "muse_scipost", "muse_exp_align", "muse_exp_combine"}
    assert {c["recipe"] for c in fake.calls()} == later
    fake.forget()
    run(sky={"fraction": 0.5}, options={"first": "exp_align"})
    assert not fake.calls()
    for path in (run.reduced / f"Field_A/{POINTING}").glob("IMAGE_FOV_Field*"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"IMAGE_FOV_Field_A_0300_000_00\.fits: (?i:no such file)"):
        run(options={"first": "exp_align"})


def test_forced_steps(finished, nights):
    result, fake = finished
    root = result.plan.reduced.parent
    config = sections(nights, root, fake.path, calibration={"dark": True}, musedask={"ifus": [1, 2]})
    n = len(fake.calls())
    again = reduce(config, force=["sky"])
    # what it makes is the same as before, so that nothing else is to be done
    assert [c["recipe"] for c in fake.calls()[n:]] == ["muse_create_sky"] * 2
    assert {d.reason for d in again.outcome.done.values() if not d.reused} == {"it is to be repeated"}
    with pytest.raises(InputError, match="step 'skies' found, expected one of bias"):
        reduce(config, force=["skies"])


def test_nothing_to_do(run):
    off = {name: {"execute": False} for name in ("calibration", "sci_basic", "std_flux", "sky", "sci_post",
                                                 "dither_collect", "exp_align", "exp_combine")}  # fmt: skip
    with pytest.raises(InputError, match="there is nothing to do"):
        run(**off)


def test_without_an_ifu(run, fake):
    fake.fault("fail", "muse_scibasic", 2)
    cube = run.reduced / f"Field_A/{POINTING}/DATACUBE_FINAL.fits"
    for kind in ("stop", "drop"):
        assert not fake.calls("muse_scipost") and not cube.exists()
        with pytest.raises(RecipeError, match="sci_basic_object, IFU 2"):
            run(musedask={"ifus": [1, 2], "on_failed_ifu": kind})
    assert cube.exists()
    for call in fake.calls("muse_scipost"):
        names = [Path(p).name for p, tag in call["frames"] if tag == "PIXTABLE_OBJECT"]
        assert names == ["PIXTABLE_OBJECT_0001-01.fits"]


def test_how_calls_run(run, fake, tmp_path):
    (tmp_path / "work").mkdir()
    keys = {"threads": 3, "n_workers": 1, "scratch": str(tmp_path / "work"), "timeout": 60}
    run(musedask=keys, options={"last": "flat"})
    assert {c["threads"] for c in fake.calls()} <= {"1", "3"}
    assert all(Path(c["cwd"]).is_relative_to(tmp_path / "work") for c in fake.calls())
    fake.fault("wait 30", "muse_wavecal")
    with pytest.raises(RecipeError, match=r"timeout|longer than"):
        run(musedask={**keys, "timeout": 0.5}, options={"last": "wavecal"})


# --- from the command line


def test_commands(nights, fake, tmp_path):
    file = tmp_path / "config.json"
    config = sections(nights, tmp_path, fake.path, global_={"OB_list": ["Field A"]}, cleanup={"include_std": True})
    file.write_text(json.dumps(config))

    def command(*words, code=0):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    text = command("reduce", file, "--to", "std_flux", "--ifus", "1")
    assert "DATACUBE_FINAL" not in text
    assert "std_flux" in command("status", file)
    rows = json.loads(command("-q", "status", file, "--format", "json"))
    assert {r["status"] for r in rows if r["name"] == "bias"} == {"done"}
    assert {r["status"] for r in rows if r["name"] == "sky"} == {"off"}
    text = command("-q", "clean", file)
    assert "STD_RESPONSE_0001.fits" in text and "give --yes to remove them" in text
    assert (tmp_path / "reduced/Field_A/std/STD_RESPONSE_0001.fits").exists()
    command("clean", file, "--yes")
    assert not list((tmp_path / "reduced/Field_A/std").glob("*.fits"))
    config["musedask"]["cluster"] = "nowhere"
    file.write_text(json.dumps(config))
    assert "nowhere" in command("reduce", file, code=1)


# --- configurations of MUSEreduce


@pytest.mark.parametrize(("name", "place"), [("code", "nights"), ("documented", "adaptive")])
def test_configurations_of_musereduce(name, place, fake, tmp_path, monkeypatch, request):
    """Both templates run as they are, but for the paths."""
    folder = request.getfixturevalue(place)
    text = (Path(__file__).parent / f"data/musereduce_{name}.json").read_text()
    (tmp_path / "night").mkdir()
    (tmp_path / "night/raw").symlink_to(folder / "raw")
    (tmp_path / "pipeline/calib").mkdir(parents=True)
    (tmp_path / "pipeline/calib/muse-2.8.7").symlink_to(folder / "static")
    file = tmp_path / "config.json"
    text = text.replace("/usr/local/esopipes", str(tmp_path / "pipeline"))
    file.write_text(text.replace("/data/ngc6530", str(tmp_path / "night")))
    monkeypatch.setenv("PATH", str(fake.folder), prepend=":")
    result = reduce(file, engine="esorex", ifus=[1])
    cubes = [f.path for f in result.products("DATACUBE_FINAL")]
    assert len(cubes) == (2 if name == "code" else 1)
    assert all(path.is_relative_to(tmp_path / "night/reduced") for path in cubes)
    done = [d.record for d in result.outcome.done.values()]
    aligned = [r.parameters for r in done if r.recipe == "muse_exp_align"]
    assert len(aligned) == len(cubes) and all((p["srcmin"], p["srcmax"]) == (5, 80) for p in aligned)
    names = ("bias", "flat", "wavecal", "lsf", "twilight", "scibasic", "standard", "create_sky", "scipost")
    assert {f"muse_{name}" for name in names} <= {r.recipe for r in done}
