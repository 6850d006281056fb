"""Calibrations of a fortnight of five modes, against a table that was written by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musedask.errors import InputError
from musedask.recipes import RECIPES
from musedask.workflow.associate import KEYS, MADE_OF, NEEDS, STATIC, associate, interval, iter_choices, make_groups
from musedask.workflow.classify import RawFile, examine
from musedask.workflow.rules import Override, Rules

from .fortnight import read_schedule, write_fortnight, write_statics

#: what each exposure gets, with the level of quality where it is not 0; - is nothing.  By the rules: the same night or
#: a day is level 0; of equal level that of the same mode comes first, then that of the same night, then the nearest.
SCIENCE = """
      bias   flat   trace  arc    lsf    twilight illum  std    sky
O04a  B04    F04    F04    R04    R04    T04      I04b   S04    K04
O04b  B04    F04    F04    R04    R04    T04      I04b   S04    K04
O04c  B04    F04    F04    R04    R04    T04      I04c   S04    K04/1
O05   B05    F07/1  F07/1  R05    R05    T05      -      S07/1  -
O06   B06    F06    F06    R06n   R08/1  T08      I06    S06    -
O07   B07    F07    F07    R07    R07    T05      I07    S07    K07
O08a  B09    F08    F08    R08    R08    T08      I08    S08a   -
O08b  B09    F08    F08    R08    R08    T08      I08/1  S08b   -
O09   B09    F09    F09    R09    R09    T09      I09    S09    -
O10   B10    F10    F10    R10    R10    T10      -      S12/1  -
O11   B12    F12    F12    R12    R12    T11      -      S12    -
O12   B12    F12    F12    R12    R12    T11      -      S12    K12
O13   B13    F13    F13    R13    R13    T11      -      S12/1  K12/3
O14   B15    F13/1  F13/1  R15    R15    T11      -      S12/1  -
O15   B15    F13/1  F13/1  R15    R15    T11      -      S12/1  -
O16   B16    F16    F16    R07/3  -      T05/1    -      -      -
O17   B16/1  F09/3  F09/3  R09/3  R09/3  T09/1    -      S09/2  -
"""
#: the same of what is chosen for them; FLAT and ARC do without most
CALIBRATIONS = """
      bias   flat   trace  arc    lsf    twilight illum  std    sky
K04   B04    F04    F04    R04    R04    T04      I04b   S04    .
K07   B07    F07    F07    R07    R07    T05      I07    S07    .
K12   B12    F12    F12    R12    R12    T11      -      S12    .
S04   B04    F04    F04    R04    .      T04      I04b   .      .
S06   B06    F06    F06    R06n   .      T08      I06    .      .
S07   B07    F07    F07    R07    .      T05      I07    .      .
S08a  B09    F08    F08    R08    .      T08      I08    .      .
S08b  B09    F08    F08    R08    .      T08      I08/1  .      .
S09   B09    F09    F09    R09    .      T09      I09    .      .
S12   B12    F12    F12    R12    .      T11      -      .      .
T04   B04    F04    F04    R04    .      .        I04a   .      .
T05   B05    F07/1  F07/1  R05    .      .        I05    .      .
T08   B09    F08    F08    R08    .      .        I08/1  .      .
T09   B09    F09    F09    R09    .      .        I09    .      .
T10   B10    F10    F10    R10    .      .        -      .      .
T11   B12    F12    F12    R12    .      .        -      .      .
R04   B04    F04    F04    .      .      .        .      .      .
R05   B05    F07/1  F07/1  .      .      .        .      .      .
R06n  B06    F04/1  F06    .      .      .        .      .      .
R07   B07    F07    F07    .      .      .        .      .      .
R08   B09    F08    F08    .      .      .        .      .      .
R09   B09    F09    F09    .      .      .        .      .      .
R10   B10    F10    F10    .      .      .        .      .      .
R12   B12    F12    F12    .      .      .        .      .      .
R13   B13    F13    F13    .      .      .        .      .      .
R15   B15    F13/1  F13/1  .      .      .        .      .      .
F04   B04    .      .      .      .      .        .      .      .
F06   B06    .      .      .      .      .        .      .      .
F07   B07    .      .      .      .      .        .      .      .
F08   B09    .      .      .      .      .        .      .      .
F09   B09    .      .      .      .      .        .      .      .
F10   B10    .      .      .      .      .        .      .      .
F12   B12    .      .      .      .      .        .      .      .
F13   B13    .      .      .      .      .        .      .      .
F16   B16    .      .      .      .      .        .      .      .
"""
COLUMNS = {
    "bias": "MASTER_BIAS", "flat": "MASTER_FLAT", "trace": "TRACE_TABLE", "arc": "WAVECAL_TABLE",
    "lsf": "LSF_PROFILE", "twilight": "TWILIGHT_CUBE", "illum": "ILLUM", "std": "STD_RESPONSE", "sky": "SKY",
}  # fmt: skip
#: not used, and why
UNUSED = {
    "F05": "its group has 2 of at least 3 frames",
    "S05": "others fit better",
    "R06": "its group has too few exposures of Xe (0 of at least 1)",
    "B08": "its group has 2 of at least 3 frames",
    "A09": "others fit better",
    "I09w": "others fit better",
    "K09w": "others fit better",
    "B14": "nothing that is reduced has its settings: read-out mode 2",
    "D14": "darks are not asked for",
    "F15": "excluded by the user",
}
RULES = {"exclude": [{"nights": ["2017-03-15"], "tags": ["FLAT"]}]}



class Fortnight:
    """Files, and their labels in the schedule."""

    def __init__(self, folder: Path) -> None:
        self.labels = write_fortnight(folder / "raw")
        write_statics(folder / "static")
        self.files, problems = examine(folder / "raw")
        self.statics, more = examine(folder / "static")
        assert not problems and not more

    def label(self, file):
        return self.labels[file.name]

    def of(self, *labels):
        return [f for f in self.files if self.label(f) in labels]

    def associate(self, rules=None, files=None, statics=None, **more):
        return associate(
            self.files if files is None else files, self.statics if statics is None else statics,
            rules=Rules.from_mapping(rules or {}), **more,
        )  # fmt: skip

    def choice(self, result, label, category):
        """Label of what a template of the schedule gets, or the name of a file."""
        group = next(g for g in result.groups.values() if self.label(g.frames[0]) == label and g.id in result.choices)
        choice = result.choices[group.id].get(category)
        if choice is None:
            return None
        return self.label(choice.group.frames[0]) if choice.group else choice.files[0].name

    def full(self, result, label, category):
        group = next(g for g in result.groups.values() if self.label(g.frames[0]) == label and g.id in result.choices)
        return result.choices[group.id][category]

    def table(self, result):
        """As `SCIENCE` and `CALIBRATIONS`."""
        found = {}
        for name, choices in result.choices.items():
            group = result.groups[name]
            if group.tag in ("BIAS", "ILLUM"):
                continue
            row = found[self.label(group.frames[0])] = {}
            for column, category in COLUMNS.items():
                if category not in NEEDS[group.tag]:
                    row[column] = "."
                elif category not in choices:
                    row[column] = "-"
                else:
                    choice = choices[category]
                    label = self.label(choice.group.frames[0]) if choice.group else choice.files[0].name
                    row[column] = label + (f"/{choice.level}" if choice.level else "")
        return found


def parsed(text):
    header, *rows = text.strip("\n").splitlines()
    return {
        label: dict(zip(header.split(), values, strict=True)) for label, *values in (row.split() for row in rows)
    }


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory):
    return Fortnight(tmp_path_factory.mktemp("fortnight"))


@pytest.fixture(scope="module")
def result(fortnight):
    return fortnight.associate(RULES)


def test_choices_are_those_of_the_table(fortnight, result):
    expected = {**parsed(SCIENCE), **parsed(CALIBRATIONS)}
    found = fortnight.table(result)
    wrong = {
        label: {c: (found.get(label, {}).get(c), v) for c, v in row.items() if found.get(label, {}).get(c) != v}
        for label, row in expected.items()
    }
    assert not {label: row for label, row in wrong.items() if row}
    assert set(found) == set(expected)


def test_every_frame_is_used_or_has_a_reason(fortnight, result):
    unused = {fortnight.label(file): reason for file, reason in result.unused if file.path.parent.name == "raw"}
    assert unused == UNUSED
    used = {f.path for name in result.choices for f in result.groups[name].frames}
    assert used | {f.path for f, _ in result.unused} == {f.path for f in fortnight.files}
    assert not result.warnings


def test_what_is_missing(fortnight, result):
    required = {(fortnight.label(result.groups[m.group].frames[0]), m.category): m.reason
                for m in result.missing if m.required}  # fmt: skip
    assert required == {
        ("O16", "LSF_PROFILE"): "no ARC of mode WFM-AO-E, read-out mode 1; there are 10 of others",
        ("O16", "STD_RESPONSE"): "no STD of mode WFM-AO-E; there are 8 of others",
    }
    reasons = {(fortnight.label(result.groups[m.group].frames[0]), m.category): m.reason for m in result.missing}
    assert reasons["O05", "ILLUM"] == "those of the night are more than 1 deg warmer or colder"
    assert reasons["O10", "ILLUM"] == "no ILLUM of the night and of WFM"
    assert "mode NFM-AO-N" in reasons["O09", "SKY"]
    (ob,) = [g for g in result.science() if fortnight.label(g.frames[0]) == "O16"]
    assert {m.category for m in result.lacks(ob.id)} == {"LSF_PROFILE", "STD_RESPONSE"}


def test_static_calibrations(fortnight, result):
    """By category and mode: their names say nothing."""
    for label, wcs in (("O04a", "WFM-NOAO-N"), ("O06", "WFM-NOAO-N"), ("O09", "NFM-AO-N"), ("O17", "NFM-AO-N")):
        choice = fortnight.full(result, label, "ASTROMETRY_WCS")
        assert (choice.files[0].mode, choice.level, choice.source) == (wcs, 0, "rule")
        assert fortnight.full(result, label, "GEOMETRY_TABLE").files[0].tag == "GEOMETRY_TABLE"
    # vignetting went away on 2017-03-11
    masks = {label: fortnight.choice(result, label, "VIGNETTING_MASK") for label in ("T04", "T09", "T10", "T11")}
    assert masks == {"T04": "s09", "T09": "s09", "T10": "s09", "T11": None}
    raman = {label for label in ("O04a", "O06", "O09", "O16") if fortnight.choice(result, label, "RAMAN_LINES")}
    assert raman == {"O06", "O09", "O16"}
    for category in STATIC:
        assert category in ("VIGNETTING_MASK", "ASTROMETRY_REFERENCE") or any(
            category in choices for choices in result.choices.values()
        )


def test_reasons(fortnight, result):
    assert fortnight.full(result, "O05", "MASTER_FLAT").reason == "41.2 h after, 5 frames"
    reason = fortnight.full(result, "O06", "WAVECAL_TABLE").reason
    assert reason == "same night, 4.3 h before, mode WFM-NOAO-N, 3 frames"
    assert fortnight.full(result, "O06", "MASTER_FLAT").reason == "same night, 4.8 h before, 3 of 5 frames"
    assert "0.20 deg of temperature apart" in fortnight.full(result, "O04c", "ILLUM").reason
    assert fortnight.full(result, "O04c", "SKY").reason == "same night, 30 min before, of another block"
    assert interval(-0.5) == "12.0 h before"


def test_groups(fortnight, result):
    first = next(g for g in result.groups.values() if fortnight.label(g.frames[0]) == "R06n")
    assert first.id == "ARC_2017-03-06T21-40-00_WFM-NOAO-N"
    assert (first.tag, first.mode, str(first.night), len(first.frames)) == ("ARC", "WFM-NOAO-N", "2017-03-06", 3)
    exposure = result.science()[0]
    assert exposure.id == "OBJECT_2017-03-05T01-05-12.000_WFM-NOAO-N"
    assert str(exposure.night) == "2017-03-04"
    # all but the flats that are excluded
    assert len(result.groups) == len(read_schedule()) - 1
    # 04:00 of one night and 02:00 of another are one observing block
    assert {fortnight.label(result.groups[n].frames[0]) for n in result.used_by(first.id)} == {"O06", "S06"}


def test_templates_are_not_mixed(fortnight):
    """Two templates of one mode in one night are two groups, of which the nearer one counts."""
    again = [
        replace(f, name=f.name + "x", path=f.path.with_name(f.path.name + "x"), tpl_start="2017-03-05T00:50:00",
                mjd=f.mjd + 0.15, date_obs="2017-03-05T00:51:00") for f in fortnight.of("B04")
    ]  # fmt: skip
    result = fortnight.associate(files=[*fortnight.files, *again])
    choice = fortnight.full(result, "O04a", "MASTER_BIAS")
    assert choice.group.id == "BIAS_2017-03-05T00-50-00_WFM-NOAO-N"
    assert len(choice.group.frames) == 5
    groups = make_groups([*fortnight.of("B04"), *again, replace(again[0], mode="WFM-AO-N", name="y")])
    assert [len(g.frames) for g in groups.values()] == [5, 5, 1]


def test_result_does_not_depend_on_the_order(fortnight, result):
    other = fortnight.associate(RULES, files=fortnight.files[::-1], statics=fortnight.statics[::-1])
    assert fortnight.table(other) == fortnight.table(result)
    assert {f.path: r for f, r in other.unused} == {f.path: r for f, r in result.unused}


# ----------------------------------------------------------------------------------------- rules


def test_strict_mode(fortnight):
    result = fortnight.associate({"strict": True})
    # arcs without adaptive optics do not serve, nor an illumination flat
    assert fortnight.choice(result, "O06", "WAVECAL_TABLE") == "R08"
    assert fortnight.choice(result, "O06", "ILLUM") is None
    assert fortnight.choice(result, "O16", "WAVECAL_TABLE") is None
    assert fortnight.choice(result, "O06", "MASTER_BIAS") == "B06"


def test_darks_and_sky_of_the_exposure(fortnight):
    result = fortnight.associate({"use_darks": True, "sky_field": "object"})
    dark = fortnight.full(result, "O04a", "MASTER_DARK")
    assert (fortnight.choice(result, "O04a", "MASTER_DARK"), dark.level) == ("D14", 0)
    assert fortnight.choice(result, "D14", "MASTER_BIAS") == "B15"
    assert fortnight.choice(result, "F04", "MASTER_DARK") == "D14"
    assert fortnight.choice(result, "O04a", "SKY") is None
    assert not any(m.category == "SKY" for m in result.missing)
    assert {r for f, r in result.unused if f.tag == "SKY"} == {"the sky is taken from the exposures themselves"}


def test_windows_and_numbers(fortnight):
    result = fortnight.associate({"windows": {"STD": [0.5, 1, 1, 1]}, "minimum": {"FLAT": 2}, "lamps": ["Ne", "HgCd"]})
    assert fortnight.choice(result, "O05", "STD_RESPONSE") is None
    missing = next(m for m in result.missing if m.category == "STD_RESPONSE")
    assert missing.reason.startswith("no STD of mode WFM-NOAO-E within 1 d; the nearest is 45.0 h after: STD_2017-03")
    assert fortnight.choice(result, "O05", "MASTER_FLAT") == "F05"
    assert fortnight.choice(result, "O06", "WAVECAL_TABLE") == "R06"
    assert fortnight.choice(result, "O06", "LSF_PROFILE") == "R06"


@pytest.mark.parametrize(
    ("tag", "limits"),
    [
        ("BIAS", (1, 3, 7, 30)), ("FLAT", (1, 3, 7, 30)), ("ARC", (1, 3, 7, 30)), ("SKYFLAT", (7, 14, 30, 90)),
        ("STD", (1, 5, 14, 90)), ("DARK", (31, 62, 92, 365)), ("ASTROMETRY", (31, 92, 365, 3650)),
    ],
)  # fmt: skip
def test_levels(tag, limits):
    """The table of the page on sorting."""
    rules = Rules()
    for level, days in enumerate(limits):
        assert rules.level(tag, days, False) == level
        assert rules.level(tag, days + 0.01, False) == (level + 1 if level < 3 else None)
    assert rules.level(tag, 0.9, True) == 0


def test_the_same_night_comes_first(fortnight):
    """Biases of the afternoon before rather than those of the noon after, which are nearer but of the next night."""
    afternoon = [replace(f, mjd=f.mjd - 8 / 24, date_obs=f.date_obs.replace("T21", "T13")) for f in fortnight.of("B04")]
    noon = [replace(f, mjd=f.mjd + 15.5 / 24, date_obs=f.date_obs.replace("04T21", "05T12"), path=Path(f"/x/{f.name}"),
                    name=f"{f.name}-x", tpl_start="2017-03-05T12:30:00") for f in fortnight.of("B04")]  # fmt: skip
    others = [f for f in fortnight.files if f.tag != "BIAS"]
    for rules in ({}, {"windows": {"BIAS": [0.1, 0.2, 0.3, 0.4]}}):
        result = fortnight.associate(rules, files=[*others, *afternoon, *noon])
        exposure = next(g for g in result.science() if fortnight.label(g.frames[0]) == "O04c")
        choice = result.choices[exposure.id]["MASTER_BIAS"]
        assert (choice.group.frames[0].date_obs[:13], choice.level) == ("2017-03-04T13", 0)
        days = [abs(g.mjd - exposure.mjd) for g in result.groups.values() if g.tag == "BIAS"]
        assert choice.group.mjd - exposure.mjd == -max(days)


def test_temperature_of_illum(fortnight):
    result = fortnight.associate({"illum_temperature": 5.0})
    assert fortnight.full(result, "O05", "ILLUM").level == 1
    # with half an hour, the nearer one counts, not that of the better temperature
    result = fortnight.associate({"illum_hours": 0.4, "illum_temperature": 5.0})
    assert fortnight.choice(result, "O04b", "ILLUM") == "I04b"
    unknown = [replace(f, temperature=None) if f.tag == "ILLUM" else f for f in fortnight.files]
    choice = fortnight.full(fortnight.associate(files=unknown), "O04a", "ILLUM")
    assert (choice.level, fortnight.label(choice.group.frames[0])) == (2, "I04b")
    assert "temperature not known" in choice.reason


def test_overrides(fortnight):
    name = fortnight.of("F12")[0].name
    result = fortnight.associate({"overrides": [
        {"category": "FLAT", "files": [f"{f.name}*" for f in fortnight.of("F12")], "obs": ["alpha"]},
        {"category": "ILLUM", "files": [], "frames": fortnight.of("O04b")[0].path.name},
        {"category": "MASTER_BIAS", "files": "*MUSE.2017-03-09T21:0*", "tags": ["OBJECT"], "last": "2017-03-04"},
        {"category": "STD_RESPONSE", "files": "no such file"},
    ]})  # fmt: skip
    choice = fortnight.full(result, "O04a", "MASTER_FLAT")
    assert (choice.source, choice.level, len(choice.group.frames)) == ("user", 3, 5)
    assert choice.reason.startswith("association.overrides for FLAT, 7.8 d after")
    assert fortnight.choice(result, "O04a", "TRACE_TABLE") == "F12"
    assert fortnight.choice(result, "O04c", "MASTER_FLAT") == "F04"
    assert fortnight.choice(result, "O04b", "ILLUM") is None
    assert not any(m.category == "ILLUM" and "03-05T02-00" in m.group for m in result.missing)
    assert [fortnight.choice(result, label, "MASTER_BIAS") for label in ("O04a", "O05", "S04")] == ["B09", "B05", "B04"]
    assert any("no STD_RESPONSE in no such file" in text for text in result.warnings)
    # part of a template is a group of its own, as good as it is
    pair = [f.name for f in fortnight.of("F12")[:2]]
    result = fortnight.associate({"overrides": [{"category": "MASTER_FLAT", "files": pair, "obs": "10??"}]})
    choice = fortnight.full(result, "O12", "MASTER_FLAT")
    assert [f.name for f in choice.group.frames] == pair
    assert choice.group.id == "FLAT_2017-03-12T21-10-00_WFM-NOAO-N_2"
    assert choice.level == 3 and "2 of at least 3 frames" in choice.reason
    assert result.choices[choice.group.id]["MASTER_BIAS"].group.id.startswith("BIAS_2017-03-12")
    assert name == pair[0]


def test_exclusions(fortnight):
    rules = {"exclude": ["MUSE.2017-03-04T21:1*", {"templates": ["*cal_bias"], "nights": ["2017-03-04"]}]}
    result = fortnight.associate(rules)
    assert fortnight.choice(result, "O04a", "MASTER_FLAT") == "F10"
    assert fortnight.choice(result, "O04a", "MASTER_BIAS") == "B05"
    reasons = {fortnight.label(f): reason for f, reason in result.unused}
    assert reasons["F04"] == reasons["B04"] == "excluded by the user"


def test_only_some_exposures(fortnight):
    result = fortnight.associate(wanted=lambda f: f.ob_name == "alpha")
    assert [fortnight.label(g.frames[0]) for g in result.science()] == ["O04a", "O04b"]
    assert fortnight.choice(result, "O04a", "SKY") == "K04"
    reasons = {fortnight.label(f): reason for f, reason in result.unused}
    assert reasons["O05"] == "not asked for"
    of_standards = fortnight.associate(tags=["STD"])
    assert fortnight.choice(of_standards, "S05", "MASTER_FLAT") == "F04"
    assert not of_standards.science()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dark": True}, "association.use_dark: no such key, perhaps use_darks"),
        ({"preference": "own"}, "association.preference: 'own' found, expected one of raw, master"),
        ({"windows": {"STD": [1, 2]}}, "association.windows.STD: .* expected four growing numbers"),
        ({"windows": {"BIASES": [1, 2, 3, 4]}}, "association.windows.BIASES: no such key, perhaps BIAS"),
        ({"minimum": {"BIAS": 0}}, "association.minimum.BIAS: 0 found"),
        ({"exclude": [{"night": "2017-03-04"}]}, r"association.exclude\[0\].night: no such key, perhaps nights"),
        ({"exclude": [{"nights": "March"}]}, "expected a date like 2014-12-08"),
        ({"exclude": [{}]}, "expected some of files, nights, templates, tags"),
        ({"overrides": [{"category": "MASTERFLAT", "files": "x"}]}, "'MASTERFLAT' found, perhaps MASTER_FLAT"),
        ({"overrides": ["x"]}, "expected keys and values"),
        ({"strict": "yes"}, "expected true or false"),
        ({"illum_hours": -1}, "expected a number, 0 or more"),
        ({"preferences": {"STD_RESPONSE": "x"}}, "association.preferences.STD_RESPONSE: 'x' found"),
    ],
)
def test_wrong_rules(values, message):
    with pytest.raises(InputError, match=message):
        Rules.from_mapping(values)


# ----------------------------------------------------------------------------------------- products


def product(tag, day, mode="WFM-NOAO-N", ifu=None, folder="raw", **more):
    name = f"{tag}-{day}" + (f"-{ifu:02d}" if ifu else "")
    evening = f"2017-03-{4 + day:02d}"
    return RawFile(
        Path(f"/{folder}/{name}.fits"), tag, True, name, 57816.9 + day, f"{evening}T21:36:00",
        mode=mode, nominal=not mode.endswith("E"), field=mode[:3], curid=1, tpl_start=f"{evening}T21:30",
        ifus=(ifu,) if ifu else (), **more,
    )  # fmt: skip


def masters(day, *tags, **more):
    return [product(tag, day, **more) for tag in tags]


ALL = ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "LSF_PROFILE", "TWILIGHT_CUBE")


@pytest.mark.parametrize(
    ("preference", "flat", "bias"),
    [
        # masters of the next night, which is level 0, too; raw flats of the night of O05 only two days later
        ("raw", "F07", "B05"),
        ("master", "MASTER_FLAT-2", "MASTER_BIAS-2"),
        ("raw_per_quality_level", "MASTER_FLAT-2", "B05"),
        ("master_per_quality_level", "MASTER_FLAT-2", "MASTER_BIAS-2"),
    ],
)
def test_raw_frames_or_masters(fortnight, preference, flat, bias):
    made = masters(2, *ALL, mode="WFM-NOAO-E")
    result = fortnight.associate({"preference": preference}, files=[*fortnight.files, *made])
    assert fortnight.choice(result, "O05", "MASTER_FLAT") == flat
    assert fortnight.choice(result, "O05", "MASTER_BIAS") == bias
    # of the same call
    assert fortnight.choice(result, "O05", "TRACE_TABLE") == flat.replace("MASTER_FLAT", "TRACE_TABLE")
    # other modes have none
    assert fortnight.choice(result, "O04a", "MASTER_FLAT") == "F04"
    assert fortnight.choice(result, "O05", "STD_RESPONSE") == "S07"


def test_finished_response(fortnight):
    """Standard stars are reduced if there are any, also where finished calibrations are preferred."""
    made = masters(0, "STD_RESPONSE", "STD_TELLURIC")
    for rules, expected in (
        ({"preference": "master"}, "S04"),
        ({"preference": "master", "preferences": {"STD_RESPONSE": "master"}}, "STD_RESPONSE-0"),
    ):
        result = fortnight.associate(rules, files=[*fortnight.files, *made])
        assert fortnight.choice(result, "O04a", "STD_RESPONSE") == expected
    without = [f for f in fortnight.files if f.tag != "STD"]
    result = fortnight.associate(files=[*without, *made])
    assert fortnight.choice(result, "O04a", "STD_RESPONSE") == "STD_RESPONSE-0"
    assert fortnight.choice(result, "O04a", "STD_TELLURIC") == "STD_TELLURIC-0"


def test_masters_of_single_ifus_belong_together(fortnight):
    made = [product("MASTER_BIAS", day, ifu=ifu) for day in (0, 1) for ifu in (1, 12, 24)]
    result = fortnight.associate({"preference": "master"}, files=[*fortnight.files, *made])
    choice = fortnight.full(result, "O04a", "MASTER_BIAS")
    assert [f.name for f in choice.files] == ["MASTER_BIAS-0-01", "MASTER_BIAS-0-12", "MASTER_BIAS-0-24"]


def test_static_profile_where_there_are_no_arcs(fortnight):
    """Of the same range: that of WFM-NOAO-N for WFM-AO-N, none for the extended range."""
    files = [f for f in fortnight.files if not (f.tag == "ARC" and f.mode == "WFM-AO-N")]
    result = fortnight.associate(files=files)
    choice = fortnight.full(result, "O06", "LSF_PROFILE")
    assert (choice.files[0].name, choice.level) == ("s13", 3)
    assert choice.reason == "static calibration of mode WFM-NOAO-N, none of the night"
    # one of the very mode comes first, whatever it is called
    for name in ("a", "z"):
        profile = replace(choice.files[0], mode="WFM-AO-N", name=name, path=Path(f"/static/{name}.fits"))
        result = fortnight.associate(files=files, statics=[*fortnight.statics, profile])
        choice_of_mode = fortnight.full(result, "O06", "LSF_PROFILE")
        assert (choice_of_mode.files[0].name, choice_of_mode.level) == (name, 3)


GEOMETRY = {"geometry": "GEOMETRY_TABLE", "wcs": "ASTROMETRY_WCS"}


@pytest.mark.parametrize(
    ("astrometry", "archived", "static", "expected"),
    [
        # both of the archive, or both static, never one of each unless there is nothing else
        ("auto", "GEOMETRY_TABLE ASTROMETRY_WCS", True, "GEOMETRY_TABLE-0 ASTROMETRY_WCS-0 0"),
        ("auto", "ASTROMETRY_WCS", True, "s10 s12 0"),
        ("auto", "GEOMETRY_TABLE", True, "s10 s12 0"),
        ("auto", "GEOMETRY_TABLE", False, "GEOMETRY_TABLE-0 A09 0"),
        ("static", "GEOMETRY_TABLE ASTROMETRY_WCS", True, "s10 s12 0"),
        ("archive", "GEOMETRY_TABLE ASTROMETRY_WCS", True, "GEOMETRY_TABLE-0 ASTROMETRY_WCS-0 0"),
        ("archive", "ASTROMETRY_WCS", True, "s10 ASTROMETRY_WCS-0 3"),
        ("own", "ASTROMETRY_WCS", True, "s10 A09 0"),
    ],
)
def test_geometry_and_astrometry_are_a_pair(fortnight, astrometry, archived, static, expected):
    made = masters(0, *archived.split(), mode="NFM-AO-N", folder="archive")
    statics = [f for f in fortnight.statics if static or f.tag not in ("GEOMETRY_TABLE", "ASTROMETRY_WCS")]
    result = fortnight.associate({"astrometry": astrometry}, files=[*fortnight.files, *made], statics=statics)
    wcs = fortnight.full(result, "O09", "ASTROMETRY_WCS")
    geometry = fortnight.choice(result, "O09", "GEOMETRY_TABLE")
    assert f"{geometry} {fortnight.choice(result, 'O09', 'ASTROMETRY_WCS')} {wcs.level}" == expected
    assert ("no matching pair" in wcs.reason) == (wcs.level == 3)
    # what goes with the exposure has the same geometry
    for label in ("T09", "S09"):
        assert fortnight.choice(result, label, "GEOMETRY_TABLE") == geometry
    if expected.split()[1] == "A09":
        assert fortnight.choice(result, "A09", "GEOMETRY_TABLE") == geometry
        assert fortnight.choice(result, "A09", "STD_RESPONSE") == "S09"


def test_geometry_of_the_user(fortnight):
    """Tables that are valid for some nights; the astrometric solution is that of the same folder."""
    old = [
        replace(product(tag, 0, mode="WFM-NOAO-N", folder="legacy"), mjd=0.0, date_obs="")
        for tag in ("GEOMETRY_TABLE", "ASTROMETRY_WCS")
    ]  # fmt: skip
    rules = {"overrides": [{"category": "GEOMETRY_TABLE", "files": "/legacy/GEOMETRY*", "last": "2017-03-06"}]}
    result = fortnight.associate(rules, extra=old)
    pairs = {
        label: tuple(fortnight.choice(result, label, category) for category in ("GEOMETRY_TABLE", "ASTROMETRY_WCS"))
        for label in ("O04a", "O06", "O07", "O09")
    }
    legacy = ("GEOMETRY_TABLE-0", "ASTROMETRY_WCS-0")
    assert pairs == {"O04a": legacy, "O06": legacy, "O07": ("s10", "s11"), "O09": ("s10", "s12")}
    # an exposure of one night with twilight flats of another, of which the rule says something else
    assert fortnight.choice(result, "T08", "GEOMETRY_TABLE") == "s10"
    assert fortnight.full(result, "O06", "ASTROMETRY_WCS").reason == "beside the geometry"
    # there may be none beside it
    result = fortnight.associate(rules, extra=old[:1])
    choice = fortnight.full(result, "O04a", "ASTROMETRY_WCS")
    assert choice.level == 3
    assert choice.reason.endswith("perhaps no matching pair: the geometry is /legacy/GEOMETRY_TABLE-0.fits")
    # without the user saying so, they are not taken
    assert fortnight.choice(fortnight.associate(extra=old), "O04a", "GEOMETRY_TABLE") == "s10"


def test_user_gives_files_that_no_rule_takes(fortnight):
    grid = product("OUTPUT_WCS", 0)
    override = Override("OUTPUT_WCS", (str(grid.path),), obs=("alpha",))
    result = fortnight.associate(files=[*fortnight.files, grid], user=[override])
    assert fortnight.choice(result, "O04a", "OUTPUT_WCS") == grid.name
    assert fortnight.choice(result, "O04c", "OUTPUT_WCS") is None
    assert not any(m.category == "OUTPUT_WCS" for m in result.missing)


# ----------------------------------------------------------------------------------------- whatever there is

#: distance in time of levels 0 to 3 [d], and attributes that must be equal, by hand
BEST = {
    "MASTER_BIAS": ("BIAS", (1, 3, 7, 30), ["curid"]),
    "MASTER_FLAT": ("FLAT", (1, 3, 7, 30), ["mode", "curid"]),
    "WAVECAL_TABLE": ("ARC", (1, 3, 7, 30), ["nominal", "field", "curid"]),
    "TWILIGHT_CUBE": ("SKYFLAT", (7, 14, 30, 90), ["nominal", "field"]),
    "STD_RESPONSE": ("STD", (1, 5, 14, 90), ["mode"]),
}


def best_of(fortnight, target, files, category):
    """The best template by trying all, and its level."""
    tag, windows, equal = BEST[category]
    templates = {}
    for file in files:
        if file.tag == tag:
            templates.setdefault(fortnight.label(file), []).append(file)
    found = []
    for label, frames in templates.items():
        lamps = {lamp for f in frames for lamp in f.lamps}
        if tag in ("BIAS", "FLAT", "SKYFLAT") and len(frames) < 3:
            continue
        if tag == "ARC" and not lamps >= {"Ne", "Xe", "HgCd"}:
            continue
        if any(getattr(frames[0], name) != getattr(target, name) for name in equal):
            continue
        days = abs(sum(f.mjd for f in frames) / len(frames) - target.mjd)
        same_night = frames[0].night == target.night
        levels = [k for k, limit in enumerate(windows) if days <= limit]
        if same_night or levels:
            mode = category != "MASTER_BIAS" and frames[0].mode != target.mode
            found.append((0 if same_night else levels[0], mode, not same_night, days, label))
    return (min(found)[-1], min(found)[0]) if found else None


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_what_is_there(fortnight, seed):
    """With a random part of the files, the choices are those that trying all templates gives."""
    random = np.random.default_rng(seed)
    keep = random.uniform(0.3, 0.95)
    files = [f for f in fortnight.files if random.uniform() < keep]
    statics = [f for f in fortnight.statics if f.tag not in ("LSF_PROFILE", "STD_RESPONSE")]
    result = fortnight.associate(files=files, statics=statics)
    assert len(result.science()) == sum(f.tag == "OBJECT" for f in files)
    for group in result.science():
        for category in BEST:
            expected = best_of(fortnight, group.frames[0], files, category)
            choice = result.choices[group.id].get(category)
            found = choice and (fortnight.label(choice.group.frames[0]), choice.level)
            assert found == expected, (group.id, category)
            lacking = [m for m in result.missing if (m.group, m.category) == (group.id, category)]
            assert bool(lacking) == (expected is None)
            assert all(m.required == (category != "TWILIGHT_CUBE") and m.reason for m in lacking)


# ----------------------------------------------------------------------------------------- declarations


def test_needs_are_those_of_the_recipes():
    """What recipes cannot do without is looked for, and nothing is that they do not take."""
    used = {
        "DARK": ["muse_dark"], "FLAT": ["muse_flat"], "ARC": ["muse_wavecal", "muse_lsf"], "SKYFLAT": ["muse_twilight"],
        "STD": ["muse_scibasic", "muse_standard"], "ASTROMETRY": ["muse_scibasic", "muse_astrometry"],
        "SKY": ["muse_scibasic", "muse_create_sky"], "OBJECT": ["muse_scibasic", "muse_create_sky", "muse_scipost"],
        "BIAS": ["muse_bias"], "ILLUM": [],
    }  # fmt: skip
    assert set(used) == set(NEEDS)
    for tag, names in used.items():
        inputs = [i for name in names for i in RECIPES[name].inputs]
        made = {p.tag for name in names for p in RECIPES[name].products}
        required = {i.tag for i in inputs if i.minimum and i.group == "calib"} - made
        # of the sky, the lines are an input and a product
        required |= {"SKY_LINES"} & {i.tag for i in inputs}
        assert required == {category for category, needed in NEEDS[tag].items() if needed}, tag
        # the exposure of the sky is a choice, but no input
        assert set(NEEDS[tag]) - {"SKY"} <= {i.tag for i in inputs}, tag
    assert set(MADE_OF) - {"MASTER_DARK"} <= {c for needs in NEEDS.values() for c in needs}
    assert set(KEYS) <= {c for needs in NEEDS.values() for c in needs}


def test_a_month_is_quick(fortnight):
    """A few thousand files take seconds."""
    files = [
        replace(f, mjd=f.mjd + 20 * k, name=f"{f.name}-{k}", path=f.path.with_name(f"{f.path.name}-{k}"),
                tpl_start=f"{f.tpl_start}-{k}") for k in range(6) for f in fortnight.files
    ]  # fmt: skip
    started = time.process_time()
    result = fortnight.associate(files=files)
    assert len(result.science()) == 6 * 17
    assert time.process_time() - started < 8
    assert len(list(iter_choices(result))) > 6 * 17 * 15
