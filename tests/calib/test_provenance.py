"""Records of calls, and the key that tells whether two calls are the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from musedask.calib.provenance import CallRecord, FileRecord, call_key, read_record, write_record
from musedask.errors import InputError
from musedask.io.sof import Frame
from musedask.recipes import get_recipe

from .toys import write_frames


@pytest.fixture
def record(tmp_path):
    frames = write_frames(tmp_path / "raw")
    return CallRecord(
        "muse_bias", 2, "esorex", get_recipe("muse_bias").resolve({"nifu": 2}), status="done",
        inputs=[FileRecord.of(f, 2) for f in frames], versions={"esorex": "3.13.6", "cpl": "7.2.3", "drs": "2.8.7"},
        warnings=["quadrant 1 is warm"], started="2026-01-01T00:00:00.000Z", wall_time=1.5, peak_memory=10**9,
    )  # fmt: skip


def test_written_and_read(record, tmp_path):
    path = write_record(tmp_path / "record.json", record)
    assert read_record(path) == record
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1 and content["key"] == record.key() and len(record.key()) == 32
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_record_without_a_key(record, tmp_path):
    record.inputs[1] = replace(record.inputs[1], checksum="")
    path = write_record(tmp_path / "record.json", record)
    assert json.loads(path.read_text())["key"] is None and read_record(path) == record
    with pytest.raises(InputError, match=r"bias2\.fits: its content is not known"):
        record.key()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda c: c.replace('"schema_version": 1', '"schema_version": 2'), "schema_version 2 found, expected 1"),
        (lambda c: c[:100], "is no record of a call"),
        (lambda c: c.replace('"recipe"', '"recipy"'), "is no record of a call"),
        (lambda c: c.replace('"checksum"', '"check"', 1), "is no record of a call"),
        (lambda c: "{}", "is no record of a call"),
    ],
)
def test_damaged_record(spoil, words, record, tmp_path):
    path = write_record(tmp_path / "record.json", record)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=r"record\.json: ") as caught:
        read_record(path)
    assert words in str(caught.value)


def test_record_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_record(tmp_path / "none.json")


def test_key_depends_on_contents_only(record, tmp_path):
    """Not on names, places and times of files, on threads, hosts, results, or on how the IFU was asked for."""
    copies = []
    for number, file in enumerate(record.inputs):
        copy = tmp_path / f"copy{number}.fits"
        shutil.copyfile(file.path, copy)
        copies.append(FileRecord.of(Frame(copy, file.tag), 2))
    assert copies[0].mtime_ns != record.inputs[0].mtime_ns and copies[0].path != record.inputs[0].path
    other = replace(
        record, inputs=copies, threads=7, host="elsewhere", started="", warnings=[], wall_time=99.0,
        parameters={**record.parameters, "nifu": 0, "merge": True}, environment={"OMP_NUM_THREADS": "7"},
        versions={**record.versions, "musedask": "99", "numpy": "99"},
    )  # fmt: skip
    assert other.key() == record.key()


def test_key_depends_on_all_that_matters(record, tmp_path):
    changed = [
        replace(record, recipe="muse_dark"),
        replace(record, ifu=3),
        replace(record, engine="native"),
        replace(record, parameters={**record.parameters, "lsigma": 3.5}),
        replace(record, versions={**record.versions, "drs": "2.10.16"}),
        replace(record, environment={"MUSE_EXPERT_USER": "1"}),
        replace(record, inputs=record.inputs[::-1]),
        replace(record, inputs=record.inputs[:-1]),
        replace(record, inputs=[replace(record.inputs[0], tag="DARK"), *record.inputs[1:]]),
        replace(record, inputs=[replace(record.inputs[0], checksum="0" * 32), *record.inputs[1:]]),
    ]
    keys = {r.key() for r in (record, *changed)}
    assert len(keys) == len(changed) + 1


def test_key_before_the_call(record):
    """What is known beforehand is enough."""
    r = record
    assert call_key(r.recipe, r.ifu, r.engine, r.parameters, r.versions, r.inputs, r.environment) == r.key()


def test_native_key_depends_on_this_package(record):
    native = replace(record, engine="native", versions={"musedask": "1", "numpy": "2", "numba": "3"})
    for name in ("musedask", "numpy", "numba"):
        assert replace(native, versions={**native.versions, name: "99"}).key() != native.key()
    assert replace(native, environment={"MUSE_EXPERT_USER": "1"}).key() == native.key()
    # which native recipes heed
    assert replace(native, environment={"MUSE_BASICPROC_SKIP_GAIN_OVERRIDE": "1"}).key() != native.key()
