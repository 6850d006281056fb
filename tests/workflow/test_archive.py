"""With files of the archive, the result is the archive's."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from musedask.sim import association as sim
from musedask.sim.schedule import Target, plan_night
from musedask.workflow.archive import Archive, Selection, archive_of, find_xml, read_archive
from musedask.workflow.associate import MADE_OF, NEEDS, associate
from musedask.workflow.classify import examine
from musedask.workflow.rules import Rules

from .fortnight import STATICS, Headers, file_name, write_product, write_statics

FEW = {"BIAS": 3, "FLAT": 3, "ARC": 1, "SKYFLAT": 3, "STD": 2, "ASTROMETRY": 1}
#: of a night with and one without calibrations, and one of another mode
NIGHTS = (
    ("2018-11-07", "WFM-NOAO-N", "first", FEW),
    ("2018-11-08", "WFM-NOAO-N", "second", {**FEW, "BIAS": 0, "FLAT": 0, "STD": 0}),
    ("2018-11-09", "WFM-AO-N", "third", FEW),
)


class Night:
    """Files of some nights, and what the archive says of them."""

    def __init__(self, folder):
        self.folder = folder
        self.plans = []
        for day, mode, name, counts in NIGHTS:
            target = Target(name, dithers=2, exptimes=(300.0,))
            self.plans += plan_night(day, mode=mode, targets=[target], counts=counts, first_index=len(self.plans))
        headers = Headers()
        raw = folder / "raw"
        raw.mkdir()
        for plan in self.plans:
            (raw / file_name(plan)).write_bytes(headers.of(plan))
        write_statics(folder / "static")
        names = {tag: f"s{i:02d}" for i, (tag, _) in reversed(list(enumerate(STATICS)))}
        self.masters = {}
        for plan in self.plans:
            for tag in sim.MASTERS.get(plan.tag, ()):
                if plan.expno == 1 and plan.tag != "STD":
                    name = f"M.MUSE.{plan.date_obs}.{tag}"
                    self.masters[tag, plan.template_start] = name
                    write_product(
                        folder / "masters" / f"{name}.fits", tag, ESO__INS__MODE=plan.mode, DATE_OBS=plan.date_obs,
                        ESO__DET__READ__CURID=1, ESO__TPL__START=plan.template_start,
                    )  # fmt: skip
        self.xml = sim.write_associations(
            raw, self.plans, statics=names, masters=lambda tag, plan: self.masters.get((tag, plan.template_start))
        )
        self.files, problems = examine(raw)
        self.statics, _ = examine(folder / "static")
        self.products, _ = examine(folder / "masters")
        assert not problems
        self.by_name = {sim.archive_name(plan): plan for plan in self.plans}

    def archive(self, kind="raw2raw"):
        return read_archive(path for path in self.xml if kind in path.name)

    def science(self):
        return [plan for plan in self.plans if plan.tag == "OBJECT"]

    def group(self, result, plan):
        return next(g for g in result.science() if g.frames[0].name == sim.archive_name(plan))


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return Night(tmp_path_factory.mktemp("night"))


def expected_of(night, tree):
    """What a tree of the archive says, by category of calibrations, and the trees below it."""
    found = {}
    for need in tree.needs:
        for category in [c for c, tag in MADE_OF.items() if tag == need.category] or [need.category]:
            found[category] = (set(need.files), need)
    return found


def names_of(choice):
    return {f.name for f in choice.frames}


def test_everything_is_as_the_archive_says(night):
    result = associate(night.files, night.statics, archive=night.archive())
    compared = 0
    seen = set()
    for plan in night.science():
        todo = [(night.group(result, plan), sim.associate(plan, night.plans))]
        assert len(todo[0][1].needs) > 4
        while todo:
            group, tree = todo.pop()
            seen.add(group.id)
            for category, (names, need) in expected_of(night, tree).items():
                if category not in NEEDS[group.tag]:
                    # what recipes do not take is not looked for
                    continue
                choice = result.choices[group.id][category]
                assert names_of(choice) == names, (group.id, category)
                assert choice.source == "archive"
                assert choice.level == 0 or need.match == "other"
                assert choice.reason.startswith("named by the archive")
                compared += 1
                if choice.group is not None and choice.group.id not in seen:
                    todo.append((choice.group, need))
    assert compared > 60
    assert not result.warnings
    assert {m.category for m in result.missing} <= {"TELLURIC_REGIONS", "SKY", "VIGNETTING_MASK"}


def test_the_archive_may_choose_otherwise(night, tmp_path):
    """Another template than that of the rules is taken, and its own needs with it."""
    plan = night.science()[0]
    by_rule = associate(night.files, night.statics)
    group = night.group(by_rule, plan)
    near = by_rule.choices[group.id]["MASTER_BIAS"].group
    far = next(g for g in by_rule.groups.values() if g.tag == "BIAS" and g.night.day == 9)
    assert near.night.day == 7
    source = next(path for path in night.xml if sim.archive_name(plan) in path.name and "raw2raw" in path.name)
    text = source.read_text()
    for one, other in zip(near.frames, far.frames, strict=True):
        text = text.replace(one.name, other.name)
    path = tmp_path / source.name
    path.write_text(text)
    result = associate(night.files, night.statics, archive=read_archive([path]))
    choices = result.choices[group.id]
    assert (choices["MASTER_BIAS"].group.id, choices["MASTER_BIAS"].source) == (far.id, "archive")
    flat = choices["MASTER_FLAT"].group
    assert result.choices[flat.id]["MASTER_BIAS"].group.id == far.id
    # the other exposures have no file of the archive
    other = night.group(result, night.science()[1])
    assert result.choices[other.id]["MASTER_BIAS"].source == "rule"


@pytest.mark.parametrize("preference", ["raw", "master", "raw_per_quality_level"])
def test_masters_of_the_archive(night, preference):
    files = [*night.files, *night.products]
    archive = archive_of([night.folder])
    result = associate(files, night.statics, archive=archive, rules=Rules(preference))
    choices = result.choices[night.group(result, night.science()[0]).id]
    for category in ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "LSF_PROFILE", "TWILIGHT_CUBE"):
        choice = choices[category]
        assert choice.source == "archive"
        if preference == "master":
            plan = next(p for p in night.plans if p.tag == MADE_OF[category])
            assert names_of(choice) == {night.masters[category, plan.template_start]}
        else:
            assert choice.group is not None
    # standard stars are reduced in any case
    assert choices["STD_RESPONSE"].group is not None
    only_masters = associate([*(f for f in files if f.product or f.tag in ("OBJECT", "SKY", "ILLUM"))], night.statics,
                             archive=night.archive("raw2master"), rules=Rules(preference))  # fmt: skip
    choices = only_masters.choices[night.group(only_masters, night.science()[0]).id]
    assert choices["MASTER_FLAT"].group is None and choices["MASTER_FLAT"].source == "archive"


def test_missing_files_are_told_and_replaced(night):
    """Of what the archive names, nothing or too little may be there."""
    first = [p for p in night.plans if p.tag in ("BIAS", "FLAT")][: FEW["BIAS"] + FEW["FLAT"]]
    gone = {sim.archive_name(p) for p in first if p.tag == "BIAS"} | {sim.archive_name(first[-1])}
    files = [f for f in night.files if f.name not in gone]
    result = associate(files, night.statics, archive=night.archive())
    group = night.group(result, night.science()[0])
    choices = result.choices[group.id]
    # there are no other flats of this mode
    assert "MASTER_FLAT" not in choices
    assert any(m.category == "MASTER_FLAT" and "has 2 of at least 3 frames" in m.reason for m in result.missing)
    assert choices["MASTER_BIAS"].source == "rule"
    told = "\n".join(result.warnings)
    assert f"{group.id}: the archive names 3 BIAS for it, none of them is there; others are chosen by the rules" in told
    assert "3 FLAT for it, but there are 2 of at least 3 frames" in told
    assert choices["WAVECAL_TABLE"].source == "archive"
    fewer = Rules.from_mapping({"minimum": {"FLAT": 2}})
    result = associate(files, night.statics, archive=night.archive(), rules=fewer)
    choice = result.choices[night.group(result, night.science()[0]).id]["MASTER_FLAT"]
    assert (choice.source, len(choice.group.frames)) == ("archive", 2)
    assert any("3 FLAT for it, 2 of them are there" in text for text in result.warnings)


def test_what_the_archive_does_not_say_follows_the_rules(night, tmp_path):
    plan = night.science()[0]
    tree = sim.associate(plan, night.plans)
    tree.needs = [need for need in tree.needs if need.category in ("BIAS", "ILLUM")]
    path = tmp_path / f"{sim.archive_name(plan)}_raw2raw.xml"
    path.write_text(sim.to_xml(tree))
    result = associate(night.files, night.statics, archive=archive_of([tmp_path]))
    choices = result.choices[night.group(result, plan).id]
    sources = {category: choice.source for category, choice in choices.items()}
    assert sources["MASTER_BIAS"] == sources["ILLUM"] == "archive"
    assert sources["MASTER_FLAT"] == sources["STD_RESPONSE"] == sources["EXTINCT_TABLE"] == "rule"
    # exclusions count more than the archive
    rules = Rules.from_mapping({"exclude": [{"tags": "BIAS", "nights": "2018-11-07"}]})
    result = associate(night.files, night.statics, archive=archive_of([tmp_path]), rules=rules)
    assert result.choices[night.group(result, plan).id]["MASTER_BIAS"].source == "rule"


def test_quality_and_certification(night):
    frame = next(f for f in night.files if f.tag == "OBJECT")
    biases = tuple(f.name for f in night.files if f.tag == "BIAS" and f.night.day == 9)
    for match, certified, level, words in (
        ("calib_plan", True, 0, "named by the archive, "),
        ("other", True, 1, "named by the archive, "),
        ("", False, 1, "named by the archive, provisionally, "),
    ):
        archive = Archive({frame.name: [Selection(biases, "BIAS", match, certified)]})
        result = associate(night.files, night.statics, archive=archive)
        group = next(g for g in result.science() if g.frames[0] == frame)
        choice = result.choices[group.id]["MASTER_BIAS"]
        assert (choice.level, choice.source) == (level, "archive")
        assert choice.reason.startswith(words)


def test_geometry_and_astrometry_of_the_archive(night):
    """The astrometric field that the archive names is reduced with the geometry that it names."""
    result = associate(night.files, night.statics, archive=night.archive())
    group = night.group(result, night.science()[0])
    choices = result.choices[group.id]
    assert choices["ASTROMETRY_WCS"].group.tag == "ASTROMETRY"
    field = result.choices[choices["ASTROMETRY_WCS"].group.id]
    assert names_of(field["GEOMETRY_TABLE"]) == names_of(choices["GEOMETRY_TABLE"]) == {"s10"}
    static = associate(night.files, night.statics, archive=night.archive(), rules=Rules(astrometry="static"))
    assert static.choices[group.id]["ASTROMETRY_WCS"].group is None


# ----------------------------------------------------------------------------------------- XML

SMALL = """<?xml version="1.0" encoding="UTF-8"?>
<ns:association xmlns:ns="urn:eso" ns:type="main" mode="Raw2Raw" certified="false" category="OBJECT">
  <ns:associatedFiles>
    <ns:association match="calib_plan" certified="false" category="BIAS">
      <!-- one of them in another folder, and with its suffix -->
      <ns:mainFiles>
        <ns:file name="data/MUSE.b1.fits.fz" category="BIAS"/><ns:file category="BIAS" name="MUSE.b2"/>
      </ns:mainFiles>
    </ns:association>
  </ns:associatedFiles>
  <ns:mainFiles><ns:file category="OBJECT" name="MUSE.o"/></ns:mainFiles>
</ns:association>
"""


@pytest.mark.parametrize(
    "text",
    [
        SMALL,
        SMALL.replace("ns:", "").replace("xmlns", "other"),
        SMALL.replace('<ns:file category="BIAS" name="MUSE.b2"/>', '<ns:file category="BIAS">MUSE.b2</ns:file>'),
        "<calSelector>" + re.sub(r"<\?.*?\?>", "", SMALL) + "</calSelector>",
    ],
)
def test_forms_of_the_files(tmp_path, text):
    path = tmp_path / "MUSE.o_raw2raw.xml"
    path.write_text(text)
    archive = read_archive([path])
    assert not archive.problems
    assert archive.needs == {"MUSE.o": [Selection(("MUSE.b1", "MUSE.b2"), "BIAS", "calib_plan", False)]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SMALL[:300], "cannot be read as XML"),
        ("", "cannot be read as XML"),
        ("<html><body>Please log in</body></html>", "element html found, expected an association of the archive"),
        (SMALL.replace("MUSE.o", ""), "no file in mainFiles"),
    ],
)
def test_damaged_files_are_told(tmp_path, caplog, monkeypatch, night, text, reason):
    monkeypatch.setattr(logging.getLogger("musedask"), "propagate", True)
    path = tmp_path / "MUSE.o_raw2raw.xml"
    path.write_text(text)
    archive = archive_of([tmp_path])
    ((where, why),) = archive.problems
    assert where == path and why.startswith(reason)
    assert "calibrations are chosen by the rules" in caplog.text
    result = associate(night.files, night.statics, archive=archive)
    assert all(c.source == "rule" for choices in result.choices.values() for c in choices.values())


def test_files_are_found_and_do_not_contradict_each_other(tmp_path):
    other = SMALL.replace("MUSE.b2", "MUSE.b3")
    for folder, name, text in (
        ("a", "MUSE.o_raw2raw.xml", SMALL), ("b", "MUSE.o_Raw2Raw.xml", other), ("b", "MUSE.o_raw2master.xml", SMALL),
        ("b", "notes.xml", SMALL), (".c", "MUSE.o_raw2raw.xml", SMALL),
    ):  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    found = find_xml([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a/MUSE.o_raw2raw.xml", "b/MUSE.o_Raw2Raw.xml", "b/MUSE.o_raw2master.xml",
    ]  # fmt: skip
    # what is known first, counts
    assert read_archive(found).needs["MUSE.o"] == [Selection(("MUSE.b1", "MUSE.b2"), "BIAS", "calib_plan", False)]
    assert find_xml([tmp_path / "a" / "MUSE.o.fits"]) == found[:1]


def test_renamed_files_are_found_by_their_name_in_the_archive(night):
    frame = next(f for f in night.files if f.tag == "OBJECT")
    files = [replace(f, path=Path("/elsewhere") / f"{k}.fits") for k, f in enumerate(night.files)]
    result = associate(files, night.statics, archive=night.archive())
    group = next(g for g in result.science() if g.frames[0].name == frame.name)
    assert result.choices[group.id]["MASTER_FLAT"].source == "archive"
