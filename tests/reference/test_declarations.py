"""Declarations of recipes against the installed esorex: what it says of them, how it writes parameters, which frames it
takes from which sets.  None of these calls works on data of full size."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from astropy.io import fits

from musedask.calib.esorex_info import differences
from musedask.calib.frames import check_frames
from musedask.errors import InputError
from musedask.io.sof import Frame, read_sof, write_sof
from musedask.recipes import DRS_VERSION, get_recipe

from ..calib.test_frames import FILES, write
from ..calib.toys import write_frames
from .support import require_esorex

pytestmark = pytest.mark.esorex


@pytest.fixture(scope="module", autouse=True)
def installed():
    require_esorex()


@pytest.fixture
def call(tmp_path):
    """Call a recipe: exit status, and what it prints."""

    def call(recipe, *arguments, folder=tmp_path, **environment):
        done = subprocess.run(
            ["esorex", "--no-checksum", "--no-datamd5", "--msg-level=debug", recipe, *map(str, arguments)],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    return call


# ------------------------------------------------------------------------------------- what esorex says


def test_all_declarations():
    """Names, order, types, defaults, ranges, choices and marks of parameters; tags and numbers of input; products."""
    found = differences()
    assert not found.differences, f"\n{found}"
    assert found.version == DRS_VERSION


def test_values_out_of_range_are_refused_by_both(call):
    recipe = get_recipe("wavecal")
    wrong = {"nifu": "25", "combine": "mean", "fitweighting": "x", "residuals": "yes", "xorder": "x", "sigma": "high"}
    for name, value in wrong.items():
        status, said = call(recipe.name, f"--{name}={value}")
        assert status == 255 and f"processing of the option '--{name}'" in said
        with pytest.raises(InputError, match=f"parameter {name}: "):
            recipe.resolve({name: value})


# ------------------------------------------------------------------------------------- parameters in headers


def test_cards_of_parameters(call, tmp_path):
    """All values of a recipe, given as options with every digit, in the header of its product."""
    recipe = get_recipe("bias")
    given = {
        "nifu": 1, "overscan": "vpoly:3,1.5,1.5", "ovscreject": "none", "ovscsigma": 1234.56789, "ovscignore": 4,
        "combine": "average", "lsigma": 0.30000000000000004, "hsigma": 1e10, "losigmabadpix": 99999.95,
        "hisigmabadpix": 1e-7, "merge": True,
    }  # fmt: skip
    values = recipe.resolve(given)
    sof = write_sof(tmp_path / "in.sof", write_frames(tmp_path / "raw"))
    status, said = call(recipe.name, *(p.to_option(values[p.name]) for p in recipe.parameters), sof)
    assert status == 0, said
    header = fits.getheader(tmp_path / recipe.product("MASTER_BIAS").file_name(1))
    for i, p in enumerate(recipe.parameters, 1):
        key = f"ESO PRO REC1 PARAM{i}"
        assert header[f"{key} NAME"] == p.name
        assert header[f"{key} VALUE"] == p.to_card(values[p.name])
        assert header.comments[f"{key} VALUE"] == p.comment_of_card()
    assert f"ESO PRO REC1 PARAM{len(recipe.parameters) + 1} NAME" not in header


# ------------------------------------------------------------------------------------- sets of frames

_SOF = """
# a comment
  #b.fits BIAS
a.fits BIAS
  ./b.fits   BIAS\tRAW
b.fits BIAS CALIB more
$SUB/c.fits BIAS
${SUB}/../a.fits DARK # the third column is anything
"""


def test_sets_are_read_alike(call, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("a.fits", "b.fits", "sub/c.fits"):
        write(tmp_path / name, "CHAN01")
    (tmp_path / "1.sof").write_text(_SOF)
    (tmp_path / "2.sof").write_text("a.fits BIAS\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUB", str(tmp_path / "sub"))
    _, said = call("muse_bias", "--nifu=1", "1.sof", "2.sof")
    theirs = re.findall(r"muse_processing_recipeinfo:\s+(\S+)\t(\S*)$", said, flags=re.MULTILINE)
    assert len(theirs) == 6
    ours = read_sof("1.sof", "2.sof")
    assert [(f.path.resolve(), f.tag) for f in ours] == [((tmp_path / path).resolve(), tag) for path, tag in theirs]


@pytest.mark.parametrize("line", ["none.fits BIAS", "$SUB/none.fits BIAS", "s.fits BIAS"])
def test_missing_files_are_refused_by_both(call, tmp_path, monkeypatch, line):
    """Also one that is beside the set of frames, not in the current directory."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "here").mkdir()
    write(tmp_path / "sub" / "s.fits", "CHAN01")
    (tmp_path / "sub" / "in.sof").write_text(f"{line}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SUB", str(tmp_path / "sub"))
    status, said = call("muse_bias", "--nifu=1", tmp_path / "sub" / "in.sof", folder=tmp_path / "here")
    assert status == 9 and "Could not open the input file" in said and "in line 1 of the SOF" in said
    with pytest.raises(InputError, match=r"in\.sof, line 1: \S+\.fits: no such file"):
        read_sof(tmp_path / "sub" / "in.sof")


def test_written_sets_are_read_by_esorex(call, tmp_path):
    path = write(tmp_path / "$x#.fits", "CHAN01")
    for folder in (None, tmp_path):
        sof = write_sof(tmp_path / "in.sof", [Frame(path, "BIAS", "RAW")] * 2, relative_to=folder)
        _, said = call("muse_bias", "--nifu=1", sof)
        assert 'Required 3, found 2 input frames with tag "BIAS"' in said


# ------------------------------------------------------------------------------------- frames of an IFU


def complaints(said):
    """Tags whose number esorex finds wrong."""
    return set(re.findall(r'found \d+ (?:input )?frames with tag "(\w+)" with IFU', said))


def ours(recipe, frames, ifu):
    try:
        check_frames(get_recipe(recipe), frames, ifu)
    except InputError as error:
        return set(re.findall(r"(\w+): expected", str(error)))
    return set()


@pytest.mark.parametrize("ifu", [1, 2, 3])
@pytest.mark.parametrize("kind", [kind for kind in FILES if not kind.startswith("own name")])
def test_whom_a_calibration_is_for(call, tmp_path, kind, ifu):
    names, options, _ = FILES[kind]
    flats = [Frame(write(tmp_path / f"{i}.fits", "CHAN01", "CHAN02", "CHAN03"), "FLAT") for i in range(3)]
    frames = [*flats, Frame(write(tmp_path / "x.fits", *names, **options), "MASTER_BIAS")]
    _, said = call("muse_flat", f"--nifu={ifu}", write_sof(tmp_path / "in.sof", frames))
    theirs = complaints(said)
    if kind == "raw" and ifu != 1:
        # a file of other IFUs that does not call itself a product is for all to the reference; not so here
        assert not theirs and ours("flat", frames, ifu) == {"MASTER_BIAS"}
    else:
        assert ours("flat", frames, ifu) == theirs


def test_numbers_of_frames(call, tmp_path):
    """Too few and too many, of raw frames and calibrations, those that are for all, and the two sets of inputs."""
    raw = write(tmp_path / "raw.fits", "CHAN01")
    one = write(tmp_path / "one.fits", "DATA", own="CHAN01", product=True)
    two = write(tmp_path / "two.fits", "DATA", own="CHAN02", product=True)
    none = write(tmp_path / "none.fits", "DATA", product=True)
    calibrations = {tag: [one] for tag in ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE")}
    scibasic = {"OBJECT": [raw], **calibrations, "GEOMETRY_TABLE": [none]}
    reduced = {"REDUCED": [one], "TRACE_TABLE": [one], "WAVECAL_TABLE": [one], "GEOMETRY_TABLE": [two]}
    cases = [
        ("bias", {"BIAS": [raw] * 2}),
        ("flat", {"FLAT": [raw, raw], "MASTER_BIAS": [one, one], "MASTER_DARK": [one, one]}),
        ("flat", {"FLAT": [raw] * 3, "MASTER_BIAS": [two, one, two], "MASTER_DARK": [two], "BADPIX_TABLE": [one, two]}),
        ("flat", {"FLAT": [raw, raw, two], "MASTER_BIAS": [none]}),
        ("wavecal", {"ARC": [raw], "MASTER_BIAS": [one], "TRACE_TABLE": [one], "LINE_CATALOG": [none]}),
        ("scibasic", scibasic),
        ("scibasic", {**scibasic, "GEOMETRY_TABLE": [two], "TWILIGHT_CUBE": [none, two]}),
        ("scibasic", {**scibasic, "GEOMETRY_TABLE": [], "ILLUM": [raw, raw]}),
        ("scibasic", reduced),
        ("scibasic", {**reduced, "OBJECT": [raw]}),
    ]
    seen = set()
    for recipe, given in cases:
        frames = [Frame(path, tag) for tag, paths in given.items() for path in paths]
        _, said = call(f"muse_{recipe}", "--nifu=1", write_sof(tmp_path / "in.sof", frames))
        assert ours(recipe, frames, 1) == complaints(said), given
        seen |= complaints(said)
    # without a table, the reference does not count but fails
    frames = [Frame(path, tag) for tag, paths in reduced.items() for path in paths if tag != "TRACE_TABLE"]
    status, said = call("muse_scibasic", "--nifu=1", write_sof(tmp_path / "in.sof", frames))
    assert status == 255 and ours("scibasic", frames, 1) == {"TRACE_TABLE"}, said
    assert {"BIAS", "FLAT", "MASTER_BIAS", "MASTER_DARK", "LINE_CATALOG", "ILLUM", "GEOMETRY_TABLE"} <= seen


def test_exposures_of_other_ifus_make_no_master(call, tmp_path):
    """The reference counts them, and a single exposure that it can read becomes a master; not so here."""
    frames = [*write_frames(tmp_path / "raw", 1), *write_frames(tmp_path / "raw", 2, name="other", ifus=(2,))]
    status, said = call("muse_bias", "--nifu=1", write_sof(tmp_path / "in.sof", frames))
    assert status == 0 and not complaints(said)
    with pytest.raises(InputError, match=r"BIAS: expected 3 or more, found 1: \S+bias1\.fits; with IFU 2: "):
        check_frames(get_recipe("bias"), frames, 1)


def test_gain_table_is_taken_although_the_help_does_not_name_it(call, tmp_path):
    frames = write_frames(tmp_path / "raw")
    header = fits.getheader(frames[0].path, "CHAN01")
    for key in ("BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "BZERO", "BSCALE"):
        header.remove(key, ignore_missing=True)
    for n in range(1, 5):
        header[f"ESO DET OUT{n} GAIN"] = 2.5
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(header=header)]).writeto(tmp_path / "gain.fits")
    frames.append(Frame(tmp_path / "gain.fits", "NONLINEARITY_GAIN"))
    assert check_frames(get_recipe("bias"), frames, 1) == frames
    status, said = call("muse_bias", "--nifu=1", write_sof(tmp_path / "in.sof", frames))
    assert status == 0, said
    assert fits.getheader(tmp_path / "MASTER_BIAS-01.fits")["ESO DET OUT1 GAIN"] == 2.5
