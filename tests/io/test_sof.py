"""Sets of frames: what lines mean, what is wrong with them, and that what is written is read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musedask.errors import InputError
from musedask.io.sof import Frame, known_frames, read_sof, write_sof
from musedask.recipes import get_recipe


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with some files."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.fits", "b.fits.fz", "c d.fits", "cal/m.fits", "cal/$odd.fits", "other/s.fits"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


@pytest.fixture
def sof(here):
    def write(text, name="in.sof"):
        path = here / name
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def warnings(caplog, monkeypatch):
    # the command line, which other tests call, keeps messages to itself
    monkeypatch.setattr(logging.getLogger("musedask"), "propagate", True)
    caplog.set_level(logging.WARNING, "musedask")
    return caplog


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.fits BIAS\n", [("a.fits", "BIAS", "")]),
        ("a.fits BIAS", [("a.fits", "BIAS", "")]),
        ("  a.fits\t BIAS   RAW  \n", [("a.fits", "BIAS", "RAW")]),
        ("a.fits BIAS calib\n", [("a.fits", "BIAS", "CALIB")]),
        ("a.fits BIAS FOO\n", [("a.fits", "BIAS", "")]),
        ("a.fits BIAS # the first one\n", [("a.fits", "BIAS", "")]),
        ("a.fits BIAS RAW and more\n", [("a.fits", "BIAS", "RAW")]),
        ("# x\n\n   \n  #b.fits.fz BIAS\nb.fits.fz BIAS\n", [("b.fits.fz", "BIAS", "")]),
        ("a.fits BIAS\r\ncal/m.fits MASTER_BIAS\r\n", [("a.fits", "BIAS", ""), ("cal/m.fits", "MASTER_BIAS", "")]),
        ("c d.fits BIAS RAW\n", [("c d.fits", "BIAS", "RAW")]),
        ("./a.fits bias\n", [("a.fits", "bias", "")]),
        ("cal/../a.fits BIAS\n", [("cal/../a.fits", "BIAS", "")]),
        ("", []),
        ("# nothing\n", []),
    ],
)
def test_lines(sof, here, text, expected):
    assert read_sof(sof(text)) == [Frame(here / path, tag, group) for path, tag, group in expected]


def test_environment(sof, here, monkeypatch):
    monkeypatch.setenv("CAL", str(here / "cal"))
    monkeypatch.setenv("SUB", "cal")
    frames = read_sof(sof("$CAL/m.fits A\n${CAL}/m.fits B\n$SUB/m.fits C\n$CAL/../a.fits D\ncal/$odd.fits E\n"))
    assert [f.path.resolve() for f in frames] == [
        here / "cal/m.fits", here / "cal/m.fits", here / "cal/m.fits", here / "a.fits", here / "cal/$odd.fits",
    ]  # fmt: skip
    monkeypatch.delenv("CAL")
    with pytest.raises(InputError, match=r"in\.sof, line 2: \$CAL/m\.fits: the environment variable CAL is not set"):
        read_sof(sof("a.fits A\n$CAL/m.fits B\n"))


def test_several_sets_and_paths_from_elsewhere(sof, here, monkeypatch):
    first, second = sof("a.fits BIAS\n", "1.sof"), sof(f"{here}/cal/m.fits MASTER_BIAS\n", "2.sof")
    assert [f.path.name for f in read_sof(first, second)] == ["a.fits", "m.fits"]
    assert [f.path.name for f in read_sof(second, str(first))] == ["m.fits", "a.fits"]
    assert read_sof() == []


def test_relative_to_the_current_directory_not_to_the_set(sof, here):
    sof("s.fits BIAS\n", "other/in.sof")
    with pytest.raises(InputError) as error:
        read_sof("other/in.sof")
    assert f"other/in.sof, line 1: s.fits: no such file in {here}" in str(error.value)
    assert f"write {here}/other/s.fits, or go to {here}/other" in str(error.value)


def test_all_problems_are_told(sof, here):
    text = f"a.fits BIAS\nnone.fits BIAS\ncal MASTER\n{here}/x.fits BIAS\na.fits\nnone.fits\n"
    with pytest.raises(InputError) as error:
        read_sof(sof(text))
    assert str(error.value).splitlines() == [
        f"{here}/in.sof, line 2: none.fits: no such file in {here}",
        f"{here}/in.sof, line 3: cal: a folder found, expected a file",
        f"{here}/in.sof, line 4: {here}/x.fits: no such file",
        f"{here}/in.sof, line 5: a.fits has no tag, expected one after the path, e.g. BIAS",
        f"{here}/in.sof, line 6: none.fits: no such file in {here}",
    ]
    many = sof("".join(f"no{i}.fits BIAS\n" for i in range(30)))
    with pytest.raises(InputError, match=r"no9\.fits: no such file in .*\n\.\.\. and 20 more$"):
        read_sof(many)


def test_file_that_may_not_be_read(sof, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match=r"in\.sof, line 1: a\.fits: may not be read: permission denied"):
        read_sof(sof("a.fits BIAS\n"))


def test_no_set_of_frames(here):
    for name, content, message in [
        ("x.fits", b"SIMPLE  =                    T", "a FITS file found, expected a set of frames"),
        ("x.bin", b"\xff\xfe\x00", "not a text file"),
    ]:
        (here / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_sof(here / name)
    with pytest.raises(InputError, match=r"no\.sof: no such file, expected a set of frames"):
        read_sof("no.sof")
    with pytest.raises(InputError, match="cal: cannot be read: Is a directory"):
        read_sof("cal")


def test_repeated_lines_count_as_often(sof, here, warnings):
    frames = read_sof(sof("a.fits BIAS\n"), sof("b.fits.fz BIAS\na.fits BIAS RAW\na.fits DARK\n", "2.sof"))
    assert [f.path.name for f in frames] == ["a.fits", "b.fits.fz", "a.fits", "a.fits"]
    repeated = f"{here}/a.fits is listed again as BIAS (first in {here}/in.sof, line 1); it counts as often"
    assert warnings.messages == [f"{here}/2.sof, line 2: {repeated}"]


def test_tags_that_a_recipe_does_not_take(sof, warnings):
    lines = ["a.fits BIAS", "a.fits BAIS", "b.fits.fz BAIS", "a.fits FLAT", "b.fits.fz FLAT", "cal/m.fits MASTER_FLAT"]
    frames = read_sof(sof("\n".join([*lines, "a.fits XYZZY"])), recipe=get_recipe("bias"))
    assert [f.tag for f in frames] == ["BIAS"]
    assert warnings.messages == [
        "muse_bias does not take frames of other recipes, which are left out: FLAT (2), MASTER_FLAT (1)",
        "no recipe takes BAIS (did you mean BIAS?); left out: a.fits, b.fits.fz",
        "no recipe takes XYZZY; left out: a.fits",
    ]
    warnings.clear()
    # the second set of inputs of a recipe, and what the help of esorex does not name
    taken = [Frame(Path("x"), tag) for tag in ("REDUCED", "NONLINEARITY_GAIN", "OBJECT")]
    assert known_frames(get_recipe("scibasic"), taken) == taken and not warnings.messages


def test_writing(here):
    frames = [Frame(here / "a.fits", "BIAS", "RAW"), Frame(Path("cal/m.fits"), "MASTER_BIAS")]
    path = write_sof(here / "out.sof", frames)
    assert path.read_text() == f"{here}/a.fits BIAS RAW\n{here}/cal/m.fits MASTER_BIAS\n"
    assert read_sof(path) == [frames[0], Frame(here / "cal/m.fits", "MASTER_BIAS")]
    write_sof(path, [*frames, Frame(here / "cal/$odd.fits", "X")], relative_to="cal")
    assert path.read_text() == "../a.fits BIAS RAW\nm.fits MASTER_BIAS\n./$odd.fits X\n"
    for wrong in (Frame(here / "c d.fits", "BIAS"), Frame(here / "a.fits", ""), Frame(here / "a.fits", "A B")):
        with pytest.raises(InputError, match=r"with blanks|expected one word"):
            write_sof(path, [wrong])
    assert path.read_text().startswith("../a.fits BIAS RAW\n") and not list(here.glob(".out*"))


_NAMES = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/$"), min_size=1, max_size=20)


@given(st.lists(st.tuples(_NAMES, _NAMES, st.sampled_from(["", "RAW", "CALIB"])), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("sof")
    frames = []
    for name, tag, group in entries:
        if name in (".", ".."):
            continue
        (folder / name).write_bytes(b"")
        frames.append(Frame(folder / name, tag, group))
    assert read_sof(write_sof(folder.parent / "set.sof", frames)) == frames
