"""musedask sort, lists that are edited and read back, static calibrations of an installed pipeline."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from musedask.cli import main
from musedask.errors import InputError, OutputExistsError
from musedask.workflow.associate import associate
from musedask.workflow.classify import examine
from musedask.workflow.lists import find_lists, named_files, read_lists, write_lists
from musedask.workflow.names import block_folders, block_of, exposure_ids
from musedask.workflow.rules import Rules
from musedask.workflow.statics import find_statics, static_folder

from .fortnight import SCHEDULE, Headers, file_name, read_schedule, write_fortnight, write_product, write_statics

#: the first two nights of the fortnight and, for its flats, the fourth
NIGHTS = ("04", "05", "07")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sort")
    rows = [row for row in SCHEDULE.strip().splitlines() if row.split()[1] in NIGHTS]
    labels = write_fortnight(folder / "raw", read_schedule("\n".join(rows)))
    write_statics(folder / "static")
    (folder / "raw" / "login.fits").write_text("<html>")
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


@pytest.fixture(scope="module")
def labels(folder):
    return json.loads((folder / "labels.json").read_text())


def run(*arguments):
    result = CliRunner().invoke(main, ["-q", "sort", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_text(folder):
    text = run(folder / "raw", "--statics", folder / "static")
    lines = text.splitlines()
    # blocks, their exposures, what belongs to them and why
    assert lines[0] == "alpha (OB 1001), WFM-NOAO-N"
    assert lines[1] == "  OBJECT 100000-300000_0600_000_00  MUSE.2017-03-05T01:05:12.000.fits  600 s"
    assert lines[3].split() == [
        "MASTER_BIAS", "0", "BIAS_2017-03-04T21-00-00_WFM-NOAO-N", "(same", "night,", "4.0", "h", "before,", "5",
        "frames)",
    ]  # fmt: skip
    assert "gamma (OB 1003), WFM-NOAO-E" in lines
    assert any(line.startswith("    MASTER_FLAT     1  FLAT_2017-03-07T21-10-00_WFM-NOAO-E  (41.2 h") for line in lines)
    assert "    ILLUM           -  none: those of the night are more than 1 deg warmer or colder" in lines
    assert any("FLAT (2): its group has 2 of at least 3 frames" in line for line in lines)
    told = "login.fits: no FITS file: '<html>' found at the start, expected SIMPLE"
    assert any(line.endswith(told) for line in lines)
    assert lines[-1].startswith("5 exposures of targets, ")
    assert not any(line == "Missing" for line in lines)
    # without static calibrations there are none, and it is said
    text = run(folder / "raw")
    assert "    GEOMETRY_TABLE  -  MISSING: no GEOMETRY_TABLE" in text.splitlines()
    assert "\nMissing\n" in text
    assert "5 exposures lack something that they cannot do without" in text


def test_csv_and_json_have_the_same(folder, labels):
    rows = list(csv.DictReader(io.StringIO(run(folder / "raw", "--statics", folder / "static", "--format", "csv"))))
    content = json.loads(run(folder / "raw", "--statics", folder / "static", "--format", "json"))
    assert content["schema_version"] == 1
    chosen = [row for row in rows if row["choice"]]
    assert [(r["group"], r["category"], r["choice"], int(r["level"])) for r in chosen] == [
        (r["group"], r["category"], r["choice"], r["level"]) for r in content["choices"]
    ]
    gamma = [row for row in content["choices"] if row["exposure"] and row["ob"] == "gamma"]
    flat = next(row for row in gamma if row["category"] == "MASTER_FLAT")
    assert (flat["level"], flat["source"], flat["night"], flat["mode"]) == (1, "rule", "2017-03-05", "WFM-NOAO-E")
    assert {labels[Path(path).stem] for path in flat["files"]} == {"F07"}
    assert content["groups"][flat["choice"]]["used"]
    assert len(content["groups"][flat["choice"]]["frames"]) == 5
    assert {row["source"] for row in rows if not row["choice"]} == {"none"}
    (problem,) = content["problems"]
    assert problem["path"].endswith("login.fits")
    reasons = {labels[Path(u["path"]).stem]: u["reason"] for u in content["unused"] if "raw" in u["path"]}
    assert reasons["F05"] == "its group has 2 of at least 3 frames"
    without = list(csv.DictReader(io.StringIO(run(folder / "raw", "--format", "csv"))))
    assert {row["category"] for row in without if row["source"] == "missing"} >= {"GEOMETRY_TABLE", "EXTINCT_TABLE"}


def test_rules_of_a_configuration(folder, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "global": {
            "rootpath": str(folder), "static_calib_path": str(folder / "static"), "OB_list": ["gamma"], "mode": None,
            "using_ESO_calibration": False,
        },
        "sky": {"sky_field": "object"},
        "musedask": {"association": {"minimum": {"FLAT": 2}}, "reduced": str(tmp_path / "reduced")},
    }))  # fmt: skip
    text = run("--config", config)
    assert "alpha" not in text.partition("Not used")[0]
    assert "FLAT_2017-03-05T21-10-00_WFM-NOAO-E" in text
    assert "SKY  " not in text.partition("Calibrations")[0]
    # what is on the command line comes first
    text = run(folder / "raw", "--config", config, "--preference", "raw")
    assert "FLAT_2017-03-05T21-10-00_WFM-NOAO-E" in text


def test_files_that_rules_name_are_read(folder, data, tmp_path):
    """Choices by absolute paths need not be in the folders of raw data or static calibrations."""
    for ifu in (1, 12):
        write_product(
            tmp_path / "own" / f"MASTER_FLAT-{ifu:02d}.fits", "MASTER_FLAT", ESO__INS__MODE="WFM-NOAO-N",
            EXTNAME=f"CHAN{ifu:02d}", DATE_OBS="2017-03-01T21:00:00",
        )  # fmt: skip
    rules = Rules.from_mapping({"overrides": [
        {"category": "MASTER_FLAT", "files": f"{tmp_path}/own/MASTER_FLAT-*.fits", "obs": "alpha"},
        {"category": "BIAS", "files": "MUSE.2017-03-05*"},
    ]})  # fmt: skip
    extra = named_files(rules.overrides, data.files)
    assert [f.path.name for f in extra] == ["MASTER_FLAT-01.fits", "MASTER_FLAT-12.fits"]
    result = associate(data.files, data.statics, rules=rules, extra=extra)
    choice = data.choices(result, "O04a")["MASTER_FLAT"]
    assert [f.path for f in choice.files] == [f.path for f in extra] and choice.source == "user"
    assert data.choices(result, "O04c")["MASTER_FLAT"].group is not None
    assert named_files(rules.overrides, extra) == []
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "global": {
            "rootpath": str(folder), "static_calib_path": str(folder / "static"), "mode": None,
            "using_ESO_calibration": False,
        },
        "musedask": {
            "reduced": str(tmp_path / "reduced"),
            "association": {"overrides": [{"category": "MASTER_FLAT", "files": f"{tmp_path}/own/*.fits"}]},
        },
    }))  # fmt: skip
    assert "    MASTER_FLAT     2  MASTER_FLAT-01.fits and 1 more  (association.overrides" in run("--config", config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give folders of raw exposures, or a configuration with --config"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["--statics", "nowhere", "."], "nowhere: no such folder, expected static calibrations"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["sort", *arguments])
    assert result.exit_code != 0 and message in result.output
    assert "Traceback" not in result.output


# ----------------------------------------------------------------------------------------- lists


class Data:
    def __init__(self, folder, labels):
        self.files, _ = examine(folder / "raw")
        self.statics, _ = examine(folder / "static")
        self.label = {f.path: labels[f.name] for f in self.files}
        exposures = [f for f in self.files if f.tag in ("OBJECT", "SKY")]
        self.ids = exposure_ids(exposures)
        self.folders = block_folders(map(block_of, exposures))

    def associate(self, rules=None, files=None, **more):
        return associate(files or self.files, self.statics, rules=Rules.from_mapping(rules or {}), **more)

    def write(self, root, result=None, **options):
        return write_lists(result or self.associate(), self.ids, self.folders, root, **options)

    def choices(self, result, label):
        group = next(g for g in result.groups.values() if self.label[g.frames[0].path] == label)
        return result.choices[group.id]


@pytest.fixture(scope="module")
def data(folder, labels):
    return Data(folder, labels)


def table(result):
    return {
        (name, c.category): tuple(f.path for f in c.frames)
        for name, choices in result.choices.items() for c in choices.values()
    }  # fmt: skip


def test_lists_of_an_exposure(data, tmp_path):
    paths = data.write(tmp_path, data.associate({"use_darks": False}))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in paths)
    assert names[:4] == [
        "alpha/100000-300000_0001_000_00_SKY.list", "alpha/100000-300000_0001_000_00_TWI.list",
        "alpha/100000-300000_0600_000_00_SCI.list", "alpha/100000-300000_0600_000_00_TWI.list",
    ]  # fmt: skip
    lines = (tmp_path / names[2]).read_text().splitlines()
    assert lines[0].split() == [str(next(p for p, n in data.label.items() if n == "O04a")), "OBJECT"]
    words = [line.split() for line in lines if not line.startswith("#")]
    tags = [tag for _, tag in words]
    assert [tags.count(tag) for tag in ("BIAS", "FLAT", "ARC", "ILLUM", "STD", "SKY")] == [5, 5, 6, 1, 1, 1]
    assert {"GEOMETRY_TABLE", "EXTINCT_TABLE", "ASTROMETRY_WCS"} <= set(tags)
    assert "# MASTER_BIAS: same night, 4.0 h before, 5 frames (rule, level 0)" in lines
    twilight = [line.split()[1] for line in (tmp_path / names[3]).read_text().splitlines() if line[0] != "#"]
    assert twilight[:3] == ["SKYFLAT"] * 3 and twilight.count("ILLUM") == 1 and "SKYFLAT" not in tags
    # columns that MUSEreduce reads
    assert all(len(w) == 2 for w in words)


def test_lists_read_back_say_the_same(data, tmp_path):
    result = data.associate()
    data.write(tmp_path, result)
    lists = read_lists(tmp_path, data.files + data.statics)
    assert len(lists.exposures) == 7
    again = data.associate(user=lists.overrides, files=lists.merged(data.files))
    assert table(again) == table(result)
    sources = {c.source for c in data.choices(again, "O04a").values()}
    assert sources == {"user"}
    reason = data.choices(again, "O04a")["MASTER_FLAT"].reason
    assert reason.startswith("100000-300000_0600_000_00_SCI.list, same night")


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_edited_lists_are_the_users_choice(data, tmp_path):
    data.write(tmp_path)
    path = tmp_path / "alpha" / "100000-300000_0600_000_00_SCI.list"
    by_label = {}
    for where, label in data.label.items():
        by_label.setdefault(label, []).append(where)
    lines = [line for line in path.read_text().splitlines() if not line.endswith("  ILLUM")]
    first, last = by_label["F04"][0], by_label["B04"][-1]
    lines = [line for line in lines if line != f"{first}  FLAT"]
    path.write_text("\n".join(lines) + "\n")
    edit(path, (f"{last}  BIAS\n", ""), (f"{by_label['S04'][0]}  STD", f"{by_label['S05'][0]}  STD"))
    lists = read_lists(tmp_path, data.files)
    result = data.associate(user=lists.overrides, files=lists.merged(data.files))
    choices = data.choices(result, "O04a")
    assert [f.path for f in choices["MASTER_FLAT"].frames] == by_label["F04"][1:]
    assert [f.path for f in choices["TRACE_TABLE"].frames] == by_label["F04"][1:]
    assert [f.path for f in choices["MASTER_BIAS"].frames] == by_label["B04"][:-1]
    assert [data.label[f.path] for f in choices["STD_RESPONSE"].frames] == ["S05"]
    assert "ILLUM" not in choices
    # the other exposures have lists of their own
    assert len(data.choices(result, "O04b")["MASTER_FLAT"].frames) == 5
    # twilight flats of another night, which need calibrations of theirs
    edit(tmp_path / "alpha" / "100000-300000_0600_000_01_TWI.list", *(
        (f"{old}  SKYFLAT", f"{new}  SKYFLAT") for old, new in zip(by_label["T04"], by_label["T05"], strict=True)
    ))  # fmt: skip
    lists = read_lists(tmp_path, data.files)
    result = data.associate(user=lists.overrides, files=lists.merged(data.files))
    twilight = data.choices(result, "O04b")["TWILIGHT_CUBE"]
    assert {data.label[f.path] for f in twilight.frames} == {"T05"}


def test_lists_of_musereduce(data, tmp_path):
    """All that was taken within a day, without static calibrations: templates are kept apart, the nearest counts."""
    exposure = next(f for f in data.files if data.label[f.path] == "O04a")
    near = [f for f in data.files if f.tag in ("BIAS", "FLAT", "ARC", "ILLUM", "STD") and abs(f.mjd - exposure.mjd) < 1]
    assert {data.label[f.path] for f in near} >= {"B04", "B05", "F04", "F05", "I04a", "I04b", "S04"}
    name = "100000-300000_0600_000_00_SCI.list"
    (tmp_path / name).write_text("".join(f"{f.path} {f.tag}\n" for f in [exposure, *near]))
    lists = read_lists([tmp_path / name])
    result = data.associate(user=lists.overrides, files=lists.merged(data.files))
    found = {c: data.label[choice.frames[0].path] for c, choice in data.choices(result, "O04a").items() if choice.group}
    assert found["MASTER_BIAS"] == "B04" and found["MASTER_FLAT"] == "F04" and found["WAVECAL_TABLE"] == "R04"
    assert found["ILLUM"] == "I04b" and found["STD_RESPONSE"] == "S04"
    assert data.choices(result, "O04a")["GEOMETRY_TABLE"].source == "rule"
    # where finished calibrations are preferred, such a list does not forbid them
    master = write_product(
        tmp_path / "MASTER_BIAS.fits", "MASTER_BIAS", ESO__INS__MODE="WFM-NOAO-N", DATE_OBS="2017-03-04T21:00:00",
        ESO__DET__READ__CURID=1,
    )  # fmt: skip
    files = [*lists.merged(data.files), *examine(master)[0]]
    for preference, path in (("master", master), ("raw", None)):
        result = data.associate({"preference": preference}, files=files, user=lists.overrides)
        choice = data.choices(result, "O04a")["MASTER_BIAS"]
        assert [f.path for f in choice.files] == ([path] if path else [])


def test_tags_of_a_list_count(data, tmp_path):
    """A file that no rule fits is what the user says."""
    headers = Headers()
    plan = read_schedule("X05 04 20:00 FLAT N 3")[0].plans
    for p in plan:
        (tmp_path / file_name(p)).write_bytes(headers.of(p, {"ESO TPL ID": "MUSE_wfm_cal_test"}))
    files, _ = examine(tmp_path)
    assert {f.tag for f in files} == {""}
    exposure = next(f for f in data.files if data.label[f.path] == "O04a")
    path = tmp_path / "x_SCI.list"
    path.write_text("".join(f"{f.path} {tag}\n" for f, tag in [(exposure, "OBJECT"), *((f, "FLAT") for f in files)]))
    lists = read_lists(path)
    result = data.associate(user=lists.overrides, files=lists.merged([*data.files, *files]))
    choice = data.choices(result, "O04a")["MASTER_FLAT"]
    assert {f.path for f in choice.frames} == {f.path for f in files}


def test_lists_are_not_overwritten(data, folder, tmp_path):
    paths = data.write(tmp_path)
    assert data.write(tmp_path) == paths
    paths[0].write_text(paths[0].read_text() + "# mine\n")
    with pytest.raises(OutputExistsError, match="perhaps yours"):
        data.write(tmp_path)
    data.write(tmp_path, overwrite=True)
    assert "# mine" not in paths[0].read_text()
    assert find_lists(tmp_path) and set(find_lists(tmp_path)) == set(paths)
    run(folder / "raw", "--statics", folder / "static", "--lists", tmp_path / "new")
    assert len(find_lists(tmp_path / "new")) == len(paths)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x_SCI.list", "nowhere.fits OBJECT\n", "x_SCI.list, line 1: nowhere.fits: no such file"),
        ("x_SCI.list", "{bias}\n", "has no tag"),
        ("x_SCI.list", "{bias} BIAS\n", "BIAS found in the first line, expected an exposure of tag OBJECT"),
        ("x_SCI.list", "# nothing\n", "nothing listed"),
        ("x_TWI.list", "{bias} BIAS\n", "no SKYFLAT found"),
        ("x.list", "", "expected a name that ends with _SCI.list"),
    ],
)
def test_wrong_lists(data, tmp_path, name, text, message):
    bias = next(f.path for f in data.files if f.tag == "BIAS")
    (tmp_path / name).write_text(text.format(bias=bias))
    with pytest.raises(InputError, match=message):
        read_lists(tmp_path / name)


def test_no_lists(tmp_path):
    with pytest.raises(InputError, match="no lists found"):
        read_lists(tmp_path)


# ----------------------------------------------------------------------------------------- static calibrations


@pytest.mark.parametrize(
    "place", ["calib/muse-2.8.7/cal", "calib/muse-2.8.7", "share/esopipes/datastatic/muse-2.8.7", "calib/x/muse-2.8.7"]
)
def test_kits(tmp_path, place):
    write_statics(tmp_path / place)
    files = find_statics(tmp_path)
    assert {f.path.parent for f in files} == {tmp_path / place}
    assert {f.tag for f in files} >= {"GEOMETRY_TABLE", "LINE_CATALOG"}


def test_newest_kit_and_explicit_folder(tmp_path):
    for version in ("2.8.7", "2.10.16", "2.9"):
        write_product(tmp_path / f"calib/muse-{version}/cal/x.fits", "EXTINCT_TABLE")
    (tmp_path / "calib/muse-3.0").mkdir()
    assert static_folder(tmp_path) == tmp_path / "calib/muse-2.10.16"
    assert static_folder(tmp_path, tmp_path / "calib/muse-2.9") == tmp_path / "calib/muse-2.9"
    assert find_statics() == []


def test_no_kit(tmp_path, caplog):
    with pytest.raises(InputError, match=r"no static calibrations found in calib/muse\*"):
        find_statics(tmp_path)
    with pytest.raises(InputError, match="no such folder, expected an installed pipeline"):
        find_statics(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such folder, expected static calibrations"):
        find_statics(None, tmp_path / "nowhere")
    write_product(tmp_path / "x.fits", "EXTINCT_TABLE")
    (tmp_path / "readme.fits").write_text("no FITS")
    assert [f.tag for f in find_statics(tmp_path)] == ["EXTINCT_TABLE"]


@pytest.mark.parametrize("mode", ["WFM-NOAO-N", "NFM-AO-N"])
def test_statics_of_the_simulator(tmp_path, mode):
    """Static calibrations as the simulator writes them, for an exposure of their mode."""
    from musedask.sim import statics

    tags = [tag for tag in statics.FILES if tag not in ("STD_FLUX_TABLE", "LSF_PROFILE", "BADPIX_TABLE")]
    statics.write_statics(tmp_path / "static", mode=mode, ifus=[12], tags=tags)
    header = Headers()
    (line,) = read_schedule(f"O 04 02:00 OBJECT {'F' if mode[0] == 'N' else 'N'} 1")
    (tmp_path / "o.fits").write_bytes(header.of(line.plans[0]))
    files, _ = examine(tmp_path / "o.fits")
    result = associate(files, find_statics(None, tmp_path / "static"))
    (choices,) = result.choices.values()
    assert {"GEOMETRY_TABLE", "ASTROMETRY_WCS", "EXTINCT_TABLE", "FILTER_LIST", "SKY_LINES"} <= set(choices)
    assert choices["ASTROMETRY_WCS"].level == 0
    assert choices["ASTROMETRY_WCS"].files[0].field == mode[:3]
