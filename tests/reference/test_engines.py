"""Both engines with the real esorex: the same files under the same names, and what it says when something is wrong.

The frames are small: the reference takes the size of a quadrant from the header.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from musedask import run_recipe
from musedask.calib.esorex import command_line, run_esorex
from musedask.errors import RecipeError
from musedask.io.calibrations import read_trace_samples, read_trace_table, read_wavecal_table
from musedask.io.muse_image import read_muse_image
from musedask.io.product_files import write_product
from musedask.io.sof import Frame
from musedask.recipes import RECIPES, get_recipe

from ..calib.toys import write_frames
from .support import require_esorex

pytestmark = pytest.mark.esorex

#: cards of a product that differ from those of the reference, and why
REASONS = {
    r"DATE": "time of the run",
    r"DATAMD5|CHECKSUM|DATASUM": "of data that differ in the last bit; tested in test_files_of_products",
    r"COMMENT": "boilerplate of CFITSIO about the FITS format",
    r"ESO PRO REC\d+ (DRS|PIPE) ID": "says that musedask made the file",
    r"ESO DRS MUSEDASK .*": "says that musedask made the file",
    r"HISTORY": "the reference keeps that of the extension only",
    r"CHECKVAL|ESO TEST LONG|CONTINUE": "the reference cuts long strings into cards that are no FITS",
}
#: cards with numbers that need not be the same to the last digit, and to which fraction they are
TOLERANCES = {
    r"ESO DRS MUSE OVSC\d POLY Y\d+": 1e-4,
    r"ESO QC BIAS MASTER\d SLOPE [XY]": 1e-4,
    r"ESO QC .*|ESO DRS MUSE OVSC\d (MEAN|STDEV)": 1e-5,
}
#: comments that differ: parameters are described in other words
COMMENTS = r"ESO PRO REC\d+ PARAM\d+ NAME|BUNIT|ESO QC .*|ESO DRS .*"


@pytest.fixture(scope="module", autouse=True)
def esorex_is_there():
    require_esorex()


def odd_cards():
    """Cards that tell what is inherited: of the primary header and of the extensions."""
    both = {
        "HISTORY": "a history", "BUNIT": "adu", "CRPIX1": 1.0, "CRVAL1": 2.0, "INHERIT": True, "ORIGIN": "PRIM",
        "BOTH": "prim", "ESO DET BOTH": "prim", "HDUVERS": "1", "RA": 12.0, "EXTLEVEL": 1, "OBJECT": "object",
        "EXPTIME": 1.0, "ESO OBS NAME": "prim", "ESO PRO X": 1, "ESO QC X": 1, "ESO DRS MUSE X": 1, "ESO DRS X": 2,
    }  # fmt: skip
    primary = {
        **both, "CD1_1": 1.0, "CTYPE1": "PIXEL", "CUNIT1": "pix", "CDELT1": 1.0, "LONPOLE": 180.0, "WCSAXES": 2,
        "PV1_1": 1.0, "PC1_1": 1.0, "CROTA1": 0.0, "HDRVER": "1", "DATAMD5": "abc", "PIPEFILE": "old.fits",
        "DATAMIN": 1.0, "DATAMAX": 2.0, "ESO XYZ": 3, "FOO": "bar", "NUMBER": 1.23456789012345678, "MUSE A": 1,
        "SPECSYS": "x", "HDUCLASS": "q", "SCIDATA": "a", "BLOCKED": True, "TIMESYS": "UTC", "MJD-END": 58430.9,
        "TITLE": "it's", "ESO DET SMALL": 1e-5, "ESO DET LONG": 123456789.123456789, "ZIMAGE": True, "CSYER1": 0.1,
        "EQUINOX": 2000.0, "DEC": -3.0, "DATE": "2018-01-01T00:00:00", "ESO SEQ LAMP5 ONTIME": 3.5,
    }  # fmt: skip
    channel = {k: "ext" if v == "prim" else v + 1 if isinstance(v, float) else v for k, v in both.items()}
    return primary, {**channel, "ORIGIN": "EXT", "XFOO": "only here", "ESO DPR X": 1, "RADECSYS": "FK4"}


def different(ours, reference, reasons=REASONS):
    """Cards that differ without a reason."""
    found = []
    for keyword in dict.fromkeys([*ours, *reference]):
        if any(re.fullmatch(pattern, keyword) for pattern in reasons):
            continue
        if keyword not in ours or keyword not in reference:
            where = "ours" if keyword in ours else "the reference"
            found.append(f"{keyword} is only in {where}")
            continue
        mine, theirs = ours[keyword], reference[keyword]
        tolerance = next((t for pattern, t in TOLERANCES.items() if re.fullmatch(pattern, keyword)), 0.0)
        same = mine == (pytest.approx(theirs, rel=tolerance) if tolerance else theirs)
        if not same or type(mine) is not type(theirs):
            found.append(f"{keyword} {mine!r}, the reference has {theirs!r}")
        elif ours.comments[keyword] != reference.comments[keyword] and not re.fullmatch(COMMENTS, keyword):
            found.append(f"{keyword} / {ours.comments[keyword]!r}, the reference has {reference.comments[keyword]!r}")
    return found


@pytest.fixture(scope="module")
def bias_frames(tmp_path_factory):
    primary, channel = odd_cards()
    folder = tmp_path_factory.mktemp("bias")
    return write_frames(folder, 5, cards=primary, channel_cards=channel, ifus=(1, 2))


@pytest.fixture(scope="module")
def both(bias_frames, tmp_path_factory):
    """Folders of the products of the engines, and of esorex called by hand."""
    folder = tmp_path_factory.mktemp("out")
    made = {}
    for engine in ("native", "esorex"):
        made[engine] = folder / engine
        run_recipe("muse_bias", bias_frames, engine=engine, output_dir=made[engine], lsigma=2.5)
    made["by hand"] = folder / "hand"
    made["by hand"].mkdir()
    sof = made["by hand"] / "bias.sof"
    sof.write_text("".join(f"{f.path} {f.tag}\n" for f in bias_frames))
    for ifu in (1, 2):
        subprocess.run(
            ["esorex", "muse_bias", f"--nifu={ifu}", "--lsigma=2.5", "bias.sof"], cwd=sof.parent, check=True,
            capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return made


@pytest.mark.parametrize("ifu", [1, 2])
def test_esorex_by_hand(both, ifu):
    """The engine leaves the files as they are."""
    name = f"MASTER_BIAS-{ifu:02d}.fits"
    with fits.open(both["esorex"] / name, checksum=True) as ours, fits.open(both["by hand"] / name) as theirs:
        assert [h.name for h in ours] == [h.name for h in theirs]
        for mine, reference in zip(ours, theirs, strict=True):
            assert not different(mine.header, reference.header, {"DATE|CHECKSUM|DATASUM": "with the time of the run"})
        for part in ("DATA", "DQ", "STAT"):
            np.testing.assert_array_equal(ours[part].data, theirs[part].data)


@pytest.mark.parametrize("ifu", [1, 2])
def test_headers_of_native_products(both, ifu):
    """Every card of the reference's product is in ours with the same value and comment, or there is a reason."""
    name = f"MASTER_BIAS-{ifu:02d}.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # of cards that the reference made of strings that are too long
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        with fits.open(both["native"] / name, checksum=True) as ours, fits.open(both["esorex"] / name) as theirs:
            assert [h.name for h in ours] == [h.name for h in theirs]
            found = [d for a, b in zip(ours, theirs, strict=True) for d in different(a.header, b.header)]
            assert not found, "\n".join(found)
            assert [h.header["DATASUM"] for h in ours[:1]] == [h.header["DATASUM"] for h in theirs[:1]]


def test_same_names(both):
    names = {e: sorted(p.name for p in both[e].iterdir()) for e in ("native", "esorex")}
    assert names["native"] == names["esorex"] == ["MASTER_BIAS-01.fits", "MASTER_BIAS-02.fits", "logs"]


def test_files_of_products(both, tmp_path):
    """A file of the reference, read and written again, has the same headers, data and DATAMD5."""
    path = both["esorex"] / "MASTER_BIAS-01.fits"
    again = write_product(tmp_path / "again.fits", read_muse_image(path), fits.getheader(path))
    with fits.open(again, checksum=True) as ours, fits.open(path) as theirs:
        for mine, reference in zip(ours, theirs, strict=True):
            assert not different(mine.header, reference.header, {"CHECKSUM|DATASUM": "with the time of the run"})
            assert mine.header["DATASUM"] == reference.header["DATASUM"]
        assert ours[0].header["DATAMD5"] == theirs[0].header["DATAMD5"]


def test_engines_mix(both, tmp_path):
    """esorex takes native masters, and its products are the same as with its own but for the noise of the bias."""
    darks = write_frames(tmp_path / "raw", 3, tag="DARK", cards={"EXPTIME": 1800.0}, ifus=(1, 2))
    made = {}
    for engine in ("native", "esorex"):
        masters = [Frame(both[engine] / f"MASTER_BIAS-0{i}.fits", "MASTER_BIAS") for i in (1, 2)]
        made[engine] = run_recipe("muse_dark", [*darks, *masters], engine="esorex", output_dir=tmp_path / engine)
    for ours, reference in zip(made["native"], made["esorex"], strict=True):
        mine, theirs = read_muse_image(ours.path), read_muse_image(reference.path)
        np.testing.assert_allclose(mine.data, theirs.data, atol=1e-3)
        np.testing.assert_array_equal(mine.dq, theirs.dq)


# -------------------------------------------------------------------------------------------- faults


def test_mode_mismatch(both, tmp_path):
    darks = write_frames(tmp_path / "raw", 3, tag="DARK", cards={"ESO DET READ CURID": 2}, ifus=(1,))
    master = Frame(both["esorex"] / "MASTER_BIAS-01.fits", "MASTER_BIAS")
    with pytest.raises(RecipeError, match=r'IFU 1: Read-out mode of ".*dark1\.fits" .* does not match'):
        run_recipe("muse_dark", [*darks, master], engine="esorex", output_dir=tmp_path / "out")


def test_corrupt_frame(bias_frames, tmp_path):
    """A header without what the recipe needs; the other IFU is finished."""
    bad = tmp_path / "bad.fits"
    shutil.copy(bias_frames[0].path, bad)
    with fits.open(bad, mode="update") as hdus:
        del hdus["CHAN02"].header["ESO DET OUT3 NX"]
    with pytest.raises(RecipeError, match="IFU 2: ") as caught:
        run_recipe("muse_bias", [Frame(bad, "BIAS"), *bias_frames], engine="esorex", output_dir=tmp_path / "out")
    (record,) = caught.value.result.failures
    assert record.exit_status == 255 and record.reason != "failed" and Path(record.log).read_text().count("ERROR")
    assert [f.path.name for f in caught.value.result] == ["MASTER_BIAS-01.fits"]


def test_full_disk(bias_frames, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        # room for one product and a bit
        with pytest.raises(RecipeError, match=r"IFU 2: no space left on the disk of .*disk") as caught:
            run_recipe("muse_bias", bias_frames, engine="esorex", output_dir=disk, n_workers=1)
        assert [f.path.name for f in caught.value.result] == ["MASTER_BIAS-01.fits"]
        assert sorted(p.name for p in disk.iterdir()) == ["MASTER_BIAS-01.fits", "logs"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_products_before_a_failure(both, tmp_path):
    """The reference saves the master flat though the slices cannot be traced, and fails."""
    flats = write_frames(tmp_path / "raw", 3, tag="FLAT", light=20000.0, ifus=(1,))
    master = Frame(both["esorex"] / "MASTER_BIAS-01.fits", "MASTER_BIAS")
    with pytest.raises(RecipeError, match="status 255") as caught:
        run_recipe("muse_flat", [*flats, master], engine="esorex", output_dir=tmp_path / "out")
    assert [f.path.name for f in caught.value.result] == ["MASTER_FLAT-01.fits"]
    with fits.open(caught.value.result[0].path, checksum=True) as hdus:
        assert hdus["DATA"].data.mean() == pytest.approx(1.0, abs=1e-3)


def direct(name, folder):
    """Call a recipe with nothing to work on, past the check of the frames."""
    recipe = get_recipe(name)
    values = recipe.resolve({})
    (folder / "frames.sof").write_text("frames.sof NO_SUCH_TAG\n")
    return run_esorex(recipe, values, command_line("esorex", recipe, values, "frames.sof"), folder)


@pytest.mark.parametrize("name", RECIPES)
def test_options_of_every_recipe(name, tmp_path):
    """esorex takes every parameter in the way in which it is given; with nothing to work on, all but one fail."""
    found = direct(name, tmp_path)
    # this one makes images of nothing
    assert found.status == ("done" if name == "muse_qi_mask" else "failed"), found
    text = " ".join(found.errors)
    assert not re.search(r"option|permitted range|parameter|enum", text), text
    if name == "muse_geometry":
        assert "esorex was killed by SIGSEGV; a fault of the pipeline" in text
    elif name == "muse_scipost_correct_dar":
        # a success, says its status
        assert found.ended.status == 0 and "esorex ended with status 0, but there is no PIXTABLE_REDUCED" in text
    elif name == "muse_exp_combine":
        assert found.ended.status == 255 and "This recipe only makes sense with multiple exposures" in text


def recipe_folder():
    """Where the recipes are; a configuration of the user's replaces that of the system."""
    text = Path("/etc/esorex.rc").read_text() if Path("/etc/esorex.rc").exists() else ""
    found = re.search(r"^esorex\.caller\.recipe-dir=(.+)$", text, re.MULTILINE)
    if not found:
        pytest.skip("no configuration of esorex found")
    return found[1]


def test_settings_of_the_user_do_not_count(bias_frames, tmp_path, monkeypatch):
    """A configuration in the home folder that would rename products and hide the log."""
    home = tmp_path / "home"
    (home / ".esorex").mkdir(parents=True)
    (home / ".esorex" / "esorex.rc").write_text(
        "esorex.caller.suppress-prefix=FALSE\nesorex.caller.output-prefix=mine\nesorex.caller.log-level=off\n"
        "esorex.caller.output-readonly=TRUE\nesorex.caller.no-checksum=TRUE\nesorex.caller.output-dir=/nowhere\n"
        f"esorex.caller.recipe-dir={recipe_folder()}\n"
    )
    (home / ".esorex" / "muse_bias.rc").write_text("muse.muse_bias.combine=median\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ESOREX_OUTPUT_PREFIX", "mine")
    result = run_recipe("muse_bias", bias_frames, engine="esorex", ifus=[1], output_dir=tmp_path / "out")
    assert [f.path.name for f in result] == ["MASTER_BIAS-01.fits"]
    header = fits.getheader(result[0].path)
    cards = {header[k]: header[k.replace("NAME", "VALUE")] for k in header["ESO PRO REC1 PARAM* NAME"]}
    assert cards["combine"] == "sigclip" and "CHECKSUM" in header
    assert os.access(result[0].path, os.W_OK) and "muse_bias" in Path(result.records[0].log).read_text()


# ------------------------------------------------------------------------------- files of full size


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, read",
    [
        ("MASTER_BIAS", read_muse_image),
        ("TRACE_TABLE", read_trace_table),
        ("TRACE_SAMPLES", read_trace_samples),
        ("WAVECAL_TABLE", read_wavecal_table),
    ],
)
def test_files_of_full_size(name, read, tmp_path):
    """As test_files_of_products, with products that were made before (MUSEDASK_REFERENCE is their folder)."""
    folder = os.environ.get("MUSEDASK_REFERENCE")
    path = next((p for p in sorted(Path(folder or ".").rglob(f"{name}-*.fits"))), None)
    if not folder or path is None:
        pytest.skip("no products of the reference: set MUSEDASK_REFERENCE")
    again = write_product(tmp_path / "again.fits", read(path), fits.getheader(path))
    with fits.open(again, checksum=True) as ours, fits.open(path) as theirs:
        for mine, reference in zip(ours, theirs, strict=True):
            assert not different(mine.header, reference.header, {"CHECKSUM|DATASUM": "with the time of the run"})
            assert mine.header["DATASUM"] == reference.header["DATASUM"]
