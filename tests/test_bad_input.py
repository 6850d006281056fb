"""Bad input: one clear message, a non-zero exit, nothing half-written, inputs untouched.

Every case goes through the command line.  `refuse` takes the state of all files (names, sizes,
contents, times of modification) before and after, so that "nothing was written, nothing was
changed" is checked each time, and demands exactly one line ``Error: ...`` with the words that a
user needs to find the fault.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from musedask.cli import main
from musedask.io.headers import set_card
from musedask.io.pixtable import scan_pixtable, write_pixtable
from musedask.sim import simulate_pixtables

ROOT = Path(__file__).parents[1]
N = 3


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    """Three small exposures with an OFFSET_LIST."""
    return simulate_pixtables(
        tmp_path_factory.mktemp("sim"), n_exposures=N, ifus=(12,), slices=12, slice_width=20,
        wave_range=(6540, 6570), flux_scales=(1, 1.1, 0.9), pointing_errors=((0, 0), (1, 0.5), (-0.7, 0.2)), threads=2,
    )  # fmt: skip


@pytest.fixture
def tables(sim, tmp_path):
    """Copies of the tables that a test may spoil."""
    (tmp_path / "in").mkdir()
    return [Path(shutil.copy(path, tmp_path / "in" / path.name)) for path in sim.paths]


def state(folder):
    """Names, kinds, contents and times of everything in a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        info = path.lstat()
        what = hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        # writing and removing a file changes the time of its folder, which is no harm
        found[str(path)] = (what, info.st_mtime_ns if path.is_file() else 0)
    return found


def run(*args):
    """Exit status and what was printed."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    text = re.sub(r"\s+", " ", result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in text
    return result.exit_code, text


def refuse(tmp_path, *args, words=(), usage=False):
    """The command fails as it should; returns its message."""
    before = state(tmp_path)
    code, text = run(*args)
    assert code == (2 if usage else 1), text
    assert text.count("Error: ") == 1, text
    message = text[text.index("Error: ") :]
    for word in words:
        assert str(word) in message, (word, message)
    assert len(message) < 1500
    assert state(tmp_path) == before
    return message


def rewrite(path, *, columns=None, cards=None, units=None, drop=()):
    """Write a pixel table anew with other columns, cards (None removes) or units."""
    table = scan_pixtable(path)
    values = {name: table.read(name) for name in table.columns if name not in drop}
    values.update(columns or {})
    header = table.header.copy()
    for key, value in (cards or {}).items():
        if value is None:
            header.remove(key)
        else:
            set_card(header, key, value)
    found = {name: column.unit for name, column in table.columns.items()} | (units or {})
    write_pixtable(path, header, values, found, overwrite=True)
    return path


def spoil(path, column, row, value):
    """Change one value of a pixel table in place."""
    place = scan_pixtable(path).columns[column]
    with open(path, "r+b") as file:
        file.seek(place.offset + row * place.stride)
        file.write(np.array([value], place.dtype).tobytes())


def output_wcs(path, **cards):
    """An OUTPUT_WCS that fits the simulated field, with other cards."""
    hdu = fits.ImageHDU(np.zeros((8, 20, 20), np.int16))
    hdu.header.update(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRVAL1": 150.1,
            "CRVAL2": -27.8, "CRPIX1": 10.0, "CRPIX2": 10.0, "CD1_1": -0.2 / 3600, "CD1_2": 0.0, "CD2_1": 0.0,
            "CD2_2": 0.2 / 3600, "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CRVAL3": 6545.0, "CRPIX3": 1.0,
            "CD3_3": 1.25, "CD1_3": 0.0, "CD2_3": 0.0, "CD3_1": 0.0, "CD3_2": 0.0,
        } | {k: v for k, v in cards.items() if v is not None}
    )  # fmt: skip
    for key, value in cards.items():
        if value is None:
            del hdu.header[key]
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


# ------------------------------------------------------------------------------- files of the input


def test_missing_file(tables, tmp_path):
    name = tmp_path / "in" / "PIXTABLE_REDUCED_0009.fits"
    refuse(tmp_path, "combine", *tables, name, "-o", tmp_path / "o.zarr", words=[name, "no such file"])


def test_unexpanded_pattern(tables, tmp_path):
    """A shell passes a pattern that nothing matches."""
    refuse(
        tmp_path, "combine", tmp_path / "in" / "PIXTABLE_RED*.fit", "-o", tmp_path / "o.zarr", words=["no such file"]
    )


def _text(path, tables):
    path.write_text("PIXTABLE_REDUCED_0001.fits PIXTABLE_REDUCED\n")


def _empty(path, tables):
    path.write_bytes(b"")


def _noise(path, tables):
    path.write_bytes(np.random.default_rng(1).bytes(20000))


def _image(path, tables):
    fits.PrimaryHDU(np.zeros((4, 5))).writeto(path)


def _binary_table(path, tables):
    fits.BinTableHDU.from_columns([fits.Column("a", "1D", array=[1.0])]).writeto(path)


def _primary_only(path, tables):
    fits.PrimaryHDU(header=fits.getheader(tables[0])).writeto(path)


def _compressed(path, tables):
    path.write_bytes(gzip.compress(tables[0].read_bytes()))


def _other_type(path, tables):
    shutil.copy(tables[0], path)
    rewrite(path, cards={"ESO DRS MUSE PIXTABLE TYPE": "SPECTRUM"})


def _no_dq(path, tables):
    shutil.copy(tables[0], path)
    rewrite(path, drop=("dq",))


def _double(path, tables):
    with fits.open(tables[0], memmap=False) as hdus:
        hdus["data"].data = hdus["data"].data.astype(np.float64)
        hdus.writeto(path)


def _no_rows(path, tables):
    table = scan_pixtable(tables[0])
    values = {name: table.read(name)[:0] for name in table.columns}
    write_pixtable(path, table.header, values, {n: c.unit for n, c in table.columns.items()})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_text, ["cannot be read as FITS"]),
        (_empty, ["cannot be read as FITS"]),
        (_noise, ["cannot be read as FITS"]),
        (_image, ["not a MUSE pixel table", "PIXTABLE TYPE"]),
        (_binary_table, ["not a MUSE pixel table"]),
        (_primary_only, ["no extensions"]),
        (_compressed, ["compressed"]),
        (_other_type, ["PIXTABLE TYPE", "SPECTRUM", "GEOFULL"]),
        (_no_dq, ["no column dq"]),
        (_double, ["[data]", "BITPIX"]),
        (_no_rows, ["no rows"]),
    ],
)
@pytest.mark.parametrize("verb", ["combine", "store"])
def test_not_a_pixel_table(make, words, verb, tables, tmp_path):
    bad = tmp_path / "in" / "bad.fits"
    make(bad, tables)
    refuse(tmp_path, verb, *tables, bad, "-o", tmp_path / "o.zarr", words=[bad, *words])


def test_other_products_as_tables(sim, tables, tmp_path):
    """An OFFSET_LIST and a cube among the tables."""
    refuse(
        tmp_path, "combine", *tables, sim.offset_list, "-o", tmp_path / "o.zarr", words=["OFFSET_LIST.fits", "not a"]
    )
    assert run("combine", *tables, "-o", tmp_path / "c.fits")[0] == 0
    refuse(
        tmp_path, "combine", tmp_path / "c.fits", "-o", tmp_path / "o.zarr", words=["c.fits", "not a MUSE pixel table"]
    )
    refuse(tmp_path, "cube", "info", tables[0], words=[tables[0], "not a MUSE cube"])


@pytest.mark.parametrize("part", [0.02, 0.1, 0.35, 0.7, 0.98])
@pytest.mark.parametrize("verb", ["combine", "make-cube"])
def test_truncated(part, verb, tables, tmp_path):
    """Cut inside the primary header, other headers, and the data of several columns."""
    size = tables[1].stat().st_size
    with open(tables[1], "r+b") as file:
        file.truncate(int(part * size))
    inputs = tables if verb == "combine" else tables[1:2]
    refuse(tmp_path, verb, *inputs, "-o", tmp_path / "o.zarr", words=[tables[1]])


def test_truncated_between_extensions(tables, tmp_path):
    """A file that ends after a whole extension is good FITS, but lacks columns."""
    with fits.open(tables[1]) as hdus:
        end = hdus["dq"].fileinfo()["datLoc"] + hdus["dq"].fileinfo()["datSpan"]
    with open(tables[1], "r+b") as file:
        file.truncate(end)
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[1], "no column stat, origin"])


def test_unequal_lengths(tables, tmp_path):
    with fits.open(tables[2], memmap=False) as hdus:
        hdus["stat"].data = hdus["stat"].data[:-7]
        hdus.writeto(tables[2], overwrite=True)
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[2], "unequal", "stat", "data"])


def test_replaced_while_reading(tables, tmp_path):
    """A file cut off between the check and the reading is noticed by the reading."""
    code = (
        "import sys, os; from musedask.cube import build, store\n"
        "real = store.read_block\n"
        "def cut(exposure, source, *rest):\n"
        "    os.truncate(source.table.path, source.table.columns['stat'].offset + 8)\n"
        "    return real(exposure, source, *rest)\n"
        "build.read_block = cut\n"
        "from musedask.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "combine", *map(str, tables), "-o", str(tmp_path / "o.zarr")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "truncated" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------------------------- units and stages


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"xpos": "arcsec", "ypos": "arcsec"}, ["[xpos]", "arcsec", "pix, rad or deg"]),
        ({"xpos": "", "ypos": ""}, ["[xpos]", "''", "pix, rad or deg"]),
        ({"ypos": "deg"}, ["rad", "deg"]),
        ({"lambda": "nm"}, ["[lambda]", "nm", "Angstrom"]),
    ],
)
def test_unknown_units(units, words, tables, tmp_path):
    rewrite(tables[1], units=units)
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[1], *words])


@pytest.mark.parametrize("stage", ["pix", "deg"])
def test_wrong_stage(stage, tables, tmp_path):
    """Combining needs projected tables; all must be so."""
    rewrite(tables[1], units={"xpos": stage, "ypos": stage})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[1], stage, "rad"])
    for table in (tables[0], tables[2]):
        rewrite(table, units={"xpos": stage, "ypos": stage})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[0], stage, "expected rad"])


def test_mixed_modes(tables, tmp_path):
    rewrite(tables[2], cards={"ESO INS MODE": "NFM-AO-N"})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[2], tables[0], "mode", "NFM", "WFM"])


def test_mixed_data_units(tables, tmp_path):
    """One exposure that was never flux-calibrated."""
    rewrite(tables[1], units={"data": "count", "stat": "count**2"})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[1], tables[0], "count", "erg"])


def test_similar_modes_warn(tables, tmp_path):
    rewrite(tables[2], cards={"ESO INS MODE": "WFM-NOAO-E"})
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr")
    assert code == 0 and "warning" in text and "WFM-NOAO-E" in text


# --------------------------------------------------------------------------------------- keywords


@pytest.mark.parametrize("key", ["RA", "DEC", "DATE-OBS"])
def test_missing_keyword(key, tables, tmp_path):
    rewrite(tables[1], cards={key: None})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[1], f"no keyword {key}"])


def test_missing_exposure_time(tables, tmp_path):
    """Of the first exposure an error; of another the weight 0 of the reference, with a warning."""
    rewrite(tables[1], cards={"EXPTIME": None})
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr")
    assert code == 0 and "warning" in text and str(tables[1]) in text and "weight is 0" in text
    rewrite(tables[0], cards={"EXPTIME": None})
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "p.zarr", words=[tables[0], "no keyword EXPTIME"])
    assert run("combine", *tables, "-o", tmp_path / "p.zarr", "--weight", "none")[0] == 0


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ({"RA": "10:00:24"}, ["RA", "10:00:24", "number"]),
        ({"EXPTIME": 0.0}, ["EXPTIME"]),
        ({"EXPTIME": "900"}, ["EXPTIME", "'900'", "number"]),
        ({"DATE-OBS": "yesterday"}, ["DATE-OBS", "yesterday"]),
        ({"CD1_1": 0.0, "CD2_2": 0.0, "CD1_2": 0.0, "CD2_1": 0.0}, ["CD matrix", "singular"]),
        ({"CD1_1": None}, ["CD1_1"]),
        ({"CD1_1": "x"}, ["CD1_1"]),
        ({"ESO INS DROT POSANG": "north"}, ["POSANG", "north"]),
        ({"ESO DRS MUSE PIXTABLE LIMITS LAMBDA LOW": "blue"}, ["LIMITS LAMBDA LOW", "blue"]),
    ],
)
def test_bad_keyword_values(cards, words, tables, tmp_path):
    rewrite(tables[0], cards=cards)
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", words=[tables[0], *words])


@pytest.mark.parametrize(
    ("scheme", "cards", "words"),
    [
        ("header", {"ESO DRS MUSE WEIGHT": "high"}, ["ESO DRS MUSE WEIGHT", "high"]),
        ("fwhm", {"ESO OCS SGS AG FWHMX AVG": "good"}, ["FWHMX", "good"]),
        ("exptime", {"EXPTIME": "long"}, ["EXPTIME", "long"]),
    ],
)
def test_bad_weight_keywords(scheme, cards, words, tables, tmp_path):
    rewrite(tables[1], cards=cards)
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--weight", scheme, words=[tables[1], *words])


def test_no_mode(tables, tmp_path):
    """Without ESO INS MODE the reference takes the extended wide-field mode: the cube is made."""
    for table in tables:
        rewrite(table, cards={"ESO INS MODE": None})
    assert run("combine", *tables, "-o", tmp_path / "o.zarr")[0] == 0


# ----------------------------------------------------------------------------------- number of inputs


def test_single_exposure(tables, tmp_path):
    """One exposure: there is nothing to combine, its cube is made, and that is said."""
    code, text = run("combine", tables[0], "-o", tmp_path / "o.zarr")
    assert code == 0 and "only one exposure" in text
    assert (tmp_path / "o.zarr" / "zarr.json").exists()


def test_make_cube_of_many(tables, tmp_path):
    refuse(tmp_path, "make-cube", *tables, "-o", tmp_path / "o.zarr", words=["one exposure", "combine"])


def test_no_inputs(tmp_path):
    refuse(tmp_path, "combine", "-o", tmp_path / "o.zarr", words=["TABLES"], usage=True)


def test_duplicates(tables, tmp_path):
    """The same file twice, directly or through a link."""
    refuse(tmp_path, "combine", *tables, tables[0], "-o", tmp_path / "o.zarr", words=[tables[0], "twice"])
    link = tmp_path / "in" / "link.fits"
    link.symlink_to(tables[0])
    refuse(tmp_path, "combine", *tables, link, "-o", tmp_path / "o.zarr", words=[link, "twice"])


def test_copy_of_an_exposure(tables, tmp_path):
    """A second table of the same DATE-OBS is ignored, as in the reference, with a warning."""
    copy = Path(shutil.copy(tables[0], tmp_path / "in" / "PIXTABLE_REDUCED_0004.fits"))
    code, text = run("combine", *tables, copy, "-o", tmp_path / "o.zarr")
    assert code == 0 and "warning" in text and str(copy) in text and "ignored" in text


# ---------------------------------------------------------------------------------------- OFFSET_LIST


def offset_list(path, dates, **columns):
    """An OFFSET_LIST of these dates; other columns by name, None removes one."""
    n = len(dates)
    found = {
        "DATE_OBS": fits.Column("DATE_OBS", "23A", array=dates),
        "RA_OFFSET": fits.Column("RA_OFFSET", "1D", array=np.zeros(n)),
        "DEC_OFFSET": fits.Column("DEC_OFFSET", "1D", array=np.zeros(n)),
    } | columns
    fits.BinTableHDU.from_columns([c for c in found.values() if c is not None]).writeto(path)
    return path


@pytest.mark.parametrize(("known", "words"), [(0, "any of 3"), (2, "1 of 3")])
def test_offset_list_without_rows(known, words, sim, tables, tmp_path):
    """Exposures without a row get no offset, as in the reference; a loud warning names them."""
    dates = [e.date_obs for e in sim.exposures[:known]] + ["2001-01-01T00:00:00.000"]
    path = offset_list(tmp_path / "offsets.fits", dates)
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr", "--offset-list", path)
    assert code == 0
    warning = text[text.index("warning: ") :]
    assert f"NO ROW for {words}" in warning and str(tables[2]) in warning
    assert (str(tables[0]) in warning) is (known == 0)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"RA_OFFSET": None}, "RA_OFFSET"),
        ({"DEC_OFFSET": fits.Column("DEC_OFFSET", "1E", array=np.zeros(1))}, "DEC_OFFSET"),
        ({"DATE_OBS": fits.Column("DATE_OBS", "1D", array=np.zeros(1))}, "DATE_OBS"),
        ({"FLUX_SCALE": fits.Column("FLUX_SCALE", "1J", array=np.ones(1, int))}, "FLUX_SCALE"),
    ],
)
def test_offset_list_with_wrong_columns(columns, word, sim, tables, tmp_path):
    """No offsets at all, as in the reference, with a loud warning."""
    path = offset_list(tmp_path / "offsets.fits", [sim.exposures[0].date_obs], **columns)
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr", "--offset-list", path)
    assert code == 0 and "warning: " in text and "NO OFFSETS ARE APPLIED" in text and word in text


@pytest.mark.parametrize("option", ["--offset-list", "--output-wcs", "--filter-list"])
@pytest.mark.parametrize("kind", ["missing", "text", "folder", "empty"])
def test_unreadable_auxiliary_file(option, kind, tables, tmp_path):
    path = tmp_path / "aux.fits"
    if kind == "text":
        path.write_text("DATE_OBS RA_OFFSET DEC_OFFSET\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    args = [*tables, "-o", tmp_path / "o.zarr", option, path, "--filter", "Johnson_V"]
    refuse(tmp_path, "combine", *args, words=[path])


def test_offset_list_is_no_table(tables, tmp_path):
    path = tmp_path / "aux.fits"
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(path)
    refuse(
        tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--offset-list", path,
        words=[path, "not an OFFSET_LIST"],
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- OUTPUT_WCS


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ({"PC1_1": 1.0, "PC2_2": 1.0}, ["PCi_j", "CDi_j"]),
        ({"CD1_3": 1e-5}, ["tilted"]),
        ({"CD3_2": 1e-5}, ["tilted"]),
        ({"CD1_1": 0.0}, ["singular"]),
        ({"CD3_3": 0.0}, ["singular"]),
        ({"CTYPE1": "GLON-TAN"}, ["CTYPE1", "GLON-TAN", "RA---TAN"]),
        ({"CTYPE2": "DEC--SIN"}, ["CTYPE2", "DEC--SIN", "DEC--TAN"]),
        ({"CTYPE3": "FREQ"}, ["CTYPE3", "FREQ", "AWAV"]),
        ({"CRVAL3": 8000.0}, ["Angstrom", "no overlap", "8000.00"]),
        ({"CRVAL3": 5000.0}, ["Angstrom", "no overlap", "5000.00"]),
        ({"CRVAL2": -26.8}, ["do not overlap", "-26.8"]),
        ({"CRVAL1": 330.1, "CRVAL2": 27.8}, ["do not overlap", "330.1"]),
        ({"CRPIX1": 5000.0}, ["do not overlap"]),
        ({"CUNIT3": "parsec"}, ["CUNIT3"]),
        ({"CRVAL1": "centre"}, ["CRVAL1"]),
        ({"CRVAL3": -6545.0, "CTYPE3": "AWAV-LOG"}, ["CRVAL3"]),
    ],
)
def test_output_wcs(cards, words, tables, tmp_path):
    path = output_wcs(tmp_path / "wcs.fits", **cards)
    refuse(
        tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--output-wcs", path,
        words=[*words] if "overlap" in " ".join(words) else [path, *words],
    )  # fmt: skip


def test_output_wcs_in_dry_run(tables, tmp_path):
    """A dry run finds the same faults."""
    path = output_wcs(tmp_path / "wcs.fits", CRVAL3=8000.0)
    refuse(
        tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--output-wcs", path, "--dry-run", words=["no overlap"]
    )


def test_output_wcs_far_too_large(tables, tmp_path):
    """A step in arcsec where degrees belong, or sizes gone wrong: no disk holds it."""
    path = output_wcs(tmp_path / "wcs.fits")
    # a header alone, as a text editor or a script makes it
    header = fits.getheader(path, 1)
    header.update({"NAXIS1": 200000, "NAXIS2": 200000, "NAXIS3": 8})
    path.write_bytes(fits.PrimaryHDU().header.tostring().encode() + header.tostring().encode())
    refuse(
        tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--output-wcs", path, words=["are needed on this disk"]
    )


# ---------------------------------------------------------------------------------------- wavelengths


@pytest.mark.parametrize(
    "options",
    [
        ("--lambdamin", 7000, "--lambdamax", 6000),
        ("--lambdamin", 6550, "--lambdamax", 6550),
        ("--lambdamin", 8000),
        ("--lambdamax", 5000),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_empty_wavelength_range(options, dry, tables, tmp_path):
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", *options, *dry, words=["empty wavelength range"])


def test_empty_wavelength_range_of_a_store(tables, tmp_path):
    refuse(tmp_path, "store", *tables, "-o", tmp_path / "s.zarr", "--lambdamin", 8000, words=["empty wavelength range"])
    assert run("store", *tables, "-o", tmp_path / "s.zarr", "--lambdamin", 6550)[0] == 0
    refuse(
        tmp_path, "combine", tmp_path / "s.zarr", "-o", tmp_path / "o.zarr", "--lambdamax", 6545,
        words=["empty wavelength range"],
    )  # fmt: skip


def test_store_of_a_smaller_range(tables, tmp_path):
    """A cube cannot cover what its store has left out: said, not silently empty."""
    assert run("store", *tables, "-o", tmp_path / "s.zarr", "--lambdamin", 6550)[0] == 0
    code, text = run("combine", tmp_path / "s.zarr", "-o", tmp_path / "o.zarr")
    assert code == 0 and "warning" in text and "6550" in text and "s.zarr" in text


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["xpos", "ypos", "lambda", "data", "stat"])
@pytest.mark.parametrize("way", ["memory", "disk"])
def test_not_finite(value, column, way, tables, tmp_path):
    """In a row that counts: whether the rows are sorted in memory or on disk, the row is named."""
    row = int(np.flatnonzero(scan_pixtable(tables[1]).read("dq") == 0)[41])
    spoil(tables[1], column, row, value)
    message = refuse(
        tmp_path, "combine" if way == "memory" else "store", *tables, "-o", tmp_path / "o.zarr",
        words=[tables[1], "not finite in 1 row", f"row {row}"],
    )  # fmt: skip
    assert column in message


def test_not_finite_data_of_bad_pixels(tables, tmp_path):
    """Rows with dq set are not used: their data may be anything."""
    dq = scan_pixtable(tables[1]).read("dq")
    spoil(tables[1], "dq", 5, 0x4000)
    spoil(tables[1], "data", 5, np.nan)
    spoil(tables[1], "stat", 5, np.inf)
    assert dq[5] == 0
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr")
    assert code == 0, text


def test_all_pixels_bad(tables, tmp_path):
    """Every row has dq set: a cube without a value is what the reference makes; it is said."""
    for table in tables:
        n = scan_pixtable(table).n_rows
        rewrite(table, columns={"dq": np.full(n, 0x4000, np.int32)})
    code, text = run("combine", *tables, "-o", tmp_path / "o.zarr")
    assert code == 0 and "warning: no voxel of the cube has a value" in text


# ------------------------------------------------------------------------------- memory, numbers, options


def test_memory_limit_too_small(tables, tmp_path):
    """The message names a limit that works; threads for which there is no room are used only if asked for."""
    args = ["combine", *tables, "-o", tmp_path / "o.zarr"]
    message = refuse(tmp_path, *args, "--memory-limit", "2MB", words=["no chunk fits a memory limit of 2 MB"])
    found = re.search(r"smallest limit that would do is ([0-9.]+ [kMGT]?B)", message)
    assert found, message
    code, text = run(*args, "--memory-limit", found[1])
    assert code == 0, text
    # and so does the one for one thread
    message = refuse(tmp_path, *args, "--overwrite", "--memory-limit", "2MB", "--n-workers", 2, words=["2 threads"])
    found = re.search(r"or ([0-9.]+ [kMGT]?B) with one thread", message)
    assert found, message
    code, text = run(*args, "--overwrite", "--memory-limit", found[1], "--n-workers", 1)
    assert code == 0, text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory-limit", "lots"), ["lots", "2GB"]),
        (("--memory-limit", "-2GB"), ["-2GB"]),
        (("--memory-limit", "0"), ["'0'", "more than 0"]),
        (("--memory-limit", "1e400GB"), ["1e400GB"]),
        (("--memory-limit", "1.2.3GB"), ["1.2.3GB"]),
        (("--cluster", "slurm42"), ["--cluster", "slurm42", "tcp://"]),
        (("--cluster", "local:0"), ["--cluster", "local:0"]),
        (("--cluster", "local:-1"), ["--cluster", "local:-1"]),
        (("--cluster", "tcp://127.0.0.1"), ["--cluster", "tcp://127.0.0.1"]),
        (("--pixfrac", "big"), ["pixfrac", "big"]),
        (("--pixfrac", "0"), ["pixfrac", "positive"]),
        (("--pixfrac", "-0.6"), ["pixfrac", "positive"]),
        (("--pixfrac", "nan"), ["pixfrac", "nan"]),
        (("--pixfrac", "1,2,3,4"), ["pixfrac", "1 to 3"]),
        (("--dx", "nan"), ["dx", "nan"]),
        (("--dx", "-0.2"), ["dx", "-0.2"]),
        (("--dlambda", "-1.25"), ["dlambda", "-1.25"]),
        (("--dlambda", "inf"), ["dlambda", "inf"]),
        (("--crsigma", "nan"), ["crsigma", "nan"]),
        (("--rc", "nan"), ["rc", "nan"]),
        (("--rc", "-1"), ["rc", "-1"]),
        (("--lambdamin", "nan"), ["lambdamin", "nan"]),
        (("--save", "cube,stack"), ["save", "stack"]),
        (("--dx", "1e-7"), ["dx", "voxels"]),
        (("--dx", "1e-4", "--dy", "1e-4"), ["are needed on this disk"]),
        (("--dlambda", "1e-9"), ["dlambda"]),
        (("--format", "Euro3D"), ["format Euro3D", "--fits"]),
    ],
)
def test_bad_values(options, words, tables, tmp_path):
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", *options, words=words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--chunks", "8,8"), ["--chunks"]),
        (("--chunks", "8,0,8"), ["--chunks", "positive"]),
        (("--chunks", "a,b,c"), ["--chunks"]),
        (("--n-workers", "0"), ["--n-workers"]),
        (("--resample", "cubic"), ["--resample", "cubic", "drizzle"]),
        (("--dx", "wide"), ["--dx", "wide"]),
        (("--weigth", "none"), ["--weigth", "--weight"]),
    ],
)
def test_bad_usage(options, words, tables, tmp_path):
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", *options, words=words, usage=True)


def test_no_scheduler(tables, tmp_path, monkeypatch):
    """Nobody answers at the address of the scheduler."""
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    done = subprocess.run(
        [
            sys.executable, "-m", "musedask", "combine", *map(str, tables), "-o", str(tmp_path / "o.zarr"),
            "--cluster", f"tcp://127.0.0.1:{port}",
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("Error: ") == 1 and str(port) in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o.zarr").exists()


def test_filter_list(tables, tmp_path):
    """A filter that is not in the list costs its image only, as in the reference; the message names it."""
    path = tmp_path / "filters.fits"
    columns = [fits.Column("lambda", "1D", array=[6000.0, 7000.0]), fits.Column("throughput", "1D", array=[1.0, 1.0])]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="BOX")]).writeto(path)
    code, text = run(
        "combine", *tables, "-o", tmp_path / "o.zarr", "--filter", "white,Johnson_V,BOX", "--filter-list", path
    )
    assert code == 0 and "there is no filter 'Johnson_V'; it has BOX; its image is omitted" in text
    names = {p.name for p in (tmp_path / "o.zarr").iterdir()}
    assert {"fov_white", "fov_BOX"} <= names and "fov_Johnson_V" not in names


# -------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("verb", ["combine", "store"])
@pytest.mark.parametrize("name", ["o.zarr", "o.fits"])
def test_output_exists(verb, name, tables, tmp_path):
    output = tmp_path / name
    output.write_text("mine")
    refuse(tmp_path, verb, *tables, "-o", output, words=[output, "exists already", "--overwrite"])


def test_second_output_exists(tables, tmp_path):
    """Any of the files that would be written: the FITS cube, and the images beside it."""
    for name in ("c.fits", "IMAGE_FOV_0001.fits"):
        (tmp_path / name).write_text("mine")
        args = ["combine", *tables, "-o", tmp_path / "o.zarr", "--fits", tmp_path / "c.fits"]
        refuse(tmp_path, *args, words=[name, "exists already"])
        (tmp_path / name).unlink()


@pytest.mark.parametrize("folder", ["none", "file"])
def test_output_folder(folder, tables, tmp_path):
    (tmp_path / "file").write_text("a file")
    for args in (
        ["-o", tmp_path / folder / "o.zarr"],
        ["-o", tmp_path / "o.zarr", "--fits", tmp_path / folder / "c.fits"],
    ):
        refuse(tmp_path, "combine", *tables, *args, words=[tmp_path / folder])


@pytest.fixture
def read_only(tmp_path):
    """A folder that even root cannot write into."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", folder], capture_output=True).returncode:
            pytest.skip("root cannot mount here")
        yield folder
        subprocess.run(["umount", folder], check=True)
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_unwritable_folder(read_only, tables, tmp_path):
    """Found before any work, for the FITS cube as well."""
    refuse(tmp_path, "combine", *tables, "-o", read_only / "o.zarr", words=[read_only])
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "o.zarr", "--fits", read_only / "c.fits", words=[read_only])
    refuse(tmp_path, "store", *tables, "-o", read_only / "s.zarr", words=[read_only])


@pytest.mark.parametrize("options", [("-o", "T1"), ("-o", "o.zarr", "--fits", "T1"), ("-o", "WCS"), ("-o", "OFFSETS")])
def test_output_is_an_input(options, sim, tables, tmp_path):
    """Not even with --overwrite."""
    names = {
        "T1": tables[1], "o.zarr": tmp_path / "o.zarr", "WCS": output_wcs(tmp_path / "wcs.fits"),
        "OFFSETS": Path(shutil.copy(sim.offset_list, tmp_path / "offsets.fits")),
    }  # fmt: skip
    args = [names.get(option, option) for option in options]
    refuse(
        tmp_path, "combine", *tables, "--output-wcs", names["WCS"], "--offset-list", names["OFFSETS"], *args,
        "--overwrite", words=[args[-1], "input"],
    )  # fmt: skip


def test_output_holds_the_inputs(tables, tmp_path):
    """A folder that is no Zarr group is never replaced, least of all one with the inputs in it."""
    for verb in ("combine", "store"):
        refuse(tmp_path, verb, *tables, "-o", tmp_path / "in", "--overwrite", words=[tmp_path / "in", "holds an input"])
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / "thesis.tex").write_text("years of work")
        refuse(tmp_path, verb, *tables, "-o", tmp_path / "notes", "--overwrite", words=["notes", "no Zarr group"])


def test_store_as_its_own_output(tables, tmp_path):
    assert run("store", *tables, "-o", tmp_path / "s.zarr")[0] == 0
    refuse(
        tmp_path, "combine", tmp_path / "s.zarr", "-o", tmp_path / "s.zarr", "--overwrite", words=["s.zarr", "input"]
    )
    refuse(tmp_path, "store", *tables, "-o", tables[0], "--overwrite", words=[tables[0], "input"])


def test_two_outputs_of_one_name(tables, tmp_path):
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "a.fits", "--fits", tmp_path / "b.fits", words=["a.fits"])
    refuse(tmp_path, "combine", *tables, "-o", tmp_path / "c", "--fits", tmp_path / "c", words=["c", "twice"])
    args = ["combine", *tables, "-o", tmp_path / "o.zarr", "--fits", tmp_path / "IMAGE_FOV_0001.fits"]
    refuse(tmp_path, *args, words=["IMAGE_FOV_0001.fits", "twice"])


# --------------------------------------------------------------------------------------------- stores


def test_folder_that_is_no_store(tables, tmp_path):
    refuse(
        tmp_path, "combine", tmp_path / "in", "-o", tmp_path / "o.zarr", words=[tmp_path / "in", "not a pixel store"]
    )
    refuse(tmp_path, "combine", *tables, tmp_path / "in", "-o", tmp_path / "o.zarr", words=["only input"])
    assert run("combine", *tables, "-o", tmp_path / "c.zarr")[0] == 0
    refuse(tmp_path, "combine", tmp_path / "c.zarr", "-o", tmp_path / "o.zarr", words=["c.zarr", "not a pixel store"])


def test_cube_verbs_of_a_store(tables, tmp_path):
    assert run("store", *tables, "-o", tmp_path / "s.zarr")[0] == 0
    refuse(tmp_path, "cube", "info", tmp_path / "s.zarr", words=["s.zarr", "cube"])
    refuse(tmp_path, "cube", "to-fits", tmp_path / "s.zarr", tmp_path / "o.fits", words=["s.zarr", "cube"])
    refuse(tmp_path, "store", tmp_path / "s.zarr", "-o", tmp_path / "t.zarr", words=["s.zarr"])


def test_source_of_a_store_changed(tables, tmp_path):
    assert run("store", *tables, "-o", tmp_path / "s.zarr")[0] == 0
    rewrite(tables[1], cards={"EXPTIME": 1.0})
    refuse(
        tmp_path, "combine", tmp_path / "s.zarr", "-o", tmp_path / "o.zarr",
        words=["s.zarr", tables[1], "has changed since the store was made"],
    )  # fmt: skip
    # one that is gone is none of the store's business
    tables[1].unlink()
    code, text = run("combine", tmp_path / "s.zarr", "-o", tmp_path / "o.zarr")
    assert code == 0 and "no longer there" in text


@pytest.mark.parametrize(
    "damage", ["no index", "bad index", "bad attributes", "other version", "short block", "no block"]
)
def test_damaged_store(damage, tables, tmp_path):
    store = tmp_path / "s.zarr"
    assert run("store", *tables, "-o", store)[0] == 0
    attributes = json.loads((store / "zarr.json").read_text())
    block = next(store.glob("exposure_0001/block_00000/c/0/0"))
    if damage == "no index":
        (store / "index.npz").unlink()
    elif damage == "bad index":
        (store / "index.npz").write_bytes(b"PK nonsense")
    elif damage == "bad attributes":
        del attributes["attributes"]["exposures"][1]["header"]
        (store / "zarr.json").write_text(json.dumps(attributes))
    elif damage == "other version":
        attributes["attributes"]["schema_version"] = 99
        (store / "zarr.json").write_text(json.dumps(attributes))
    elif damage == "short block":
        os.truncate(block, block.stat().st_size // 2)
    else:
        block.unlink()
    before = state(store)
    code, text = run("combine", store, "-o", tmp_path / "o.zarr")
    assert code == 1 and text.count("Error: ") == 1 and str(store) in text, text
    assert ("99" in text) if damage == "other version" else ("damaged" in text), text
    assert not (tmp_path / "o.zarr").exists()
    assert state(store) == before


# ------------------------------------------------------------------------------------ interrupted runs


def interrupt(args, after):
    """Run the command in a process that is stopped after some chunks."""
    code = (
        "import sys, os, signal; from musedask.cube import chunks\n"
        "real = chunks._run_chunk; n = [0]\n"
        "def stop(spec, item):\n"
        f"    n[0] += 1\n    if n[0] > {after}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(spec, item)\n"
        "chunks._run_chunk = stop\n"
        "from musedask.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args), "--n-workers", "1"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == -9, done.stderr


def test_interrupted_run_with_other_parameters(tables, tmp_path):
    """It refuses, says what differs, and keeps what is there; --overwrite starts anew."""
    output = tmp_path / "o.zarr"
    args = ["combine", *tables, "-o", output]
    interrupt([*args, "--pixfrac", "0.8"], 1)
    assert (tmp_path / ".o.zarr.work").is_dir() and not output.exists()
    for others, words in [
        ([], ["pixfrac", "0.8", "0.6"]),
        (["--pixfrac", "0.8", "--crsigma", "3"], ["crsigma", "10", "3"]),
        (["--pixfrac", "0.8", "--weight", "none"], ["placements"]),
        (["--pixfrac", "0.8", "--output-wcs", output_wcs(tmp_path / "w.fits")], ["output_wcs"]),
    ]:
        refuse(tmp_path, *args, *others, words=[".o.zarr.work", "differs in", "--overwrite", *words])
    fewer = ["combine", *tables[:2], "-o", output, "--pixfrac", "0.8"]
    refuse(tmp_path, *fewer, words=["differs in", "inputs"])
    rewrite(tables[2], cards={"OBJECT": "other"})
    refuse(tmp_path, *args, "--pixfrac", "0.8", words=["differs in", "inputs"])
    code, text = run(*args, "--overwrite")
    assert code == 0 and "going on" not in text
    assert output.is_dir() and not (tmp_path / ".o.zarr.work").exists()


def test_two_runs_at_a_time(tables, tmp_path):
    """A second run must not take the work in progress of a first that is alive."""
    output = tmp_path / "o.zarr"
    code = (
        "import sys, time, pathlib; from musedask.cube import chunks\n"
        "real = chunks._run_chunk\n"
        "def wait(spec, item):\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\n"
        "    return real(spec, item)\n"
        "chunks._run_chunk = wait\n"
        "from musedask.cli import main; main(sys.argv[3:])"
    )
    started, go = tmp_path / "started", tmp_path / "go"
    args = ["combine", *map(str, tables), "-o", str(output), "--n-workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(started), str(go), *args], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as first:
        try:
            while not started.exists() and first.poll() is None:
                pass
            before = state(tmp_path)
            for extra in ([], ["--overwrite"], ["--pixfrac", "0.8"]):
                exit_code, text = run(*args, *extra)
                assert exit_code == 1 and "another run" in text, text
            assert state(tmp_path) == before
        finally:
            go.touch()
        _, text = first.communicate(timeout=120)
    assert first.returncode == 0, text
    assert output.is_dir()


# ------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path):
    """Make a folder on a file system of a given size."""
    mounted = []

    def make(size):
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_is_foreseen(small_disk, tables, tmp_path):
    """Space that will not do is found before the start."""
    disk = small_disk("400k")
    for args in (
        ["combine", *tables, "-o", disk / "o.zarr", "--dx", "0.02"],
        ["store", *tables, "-o", disk / "s.zarr"],
    ):
        refuse(tmp_path, *args, words=[disk, "are needed on this disk", "are free"])


# what the disk check would stop beforehand goes on in this process
_NO_CHECK = (
    "import sys; from musedask.cube import mosaic; mosaic.check_disk = lambda *a, **k: None\n"
    "from musedask.cli import main; main(sys.argv[1:])"
)


def unchecked(*args):
    done = subprocess.run([sys.executable, "-c", _NO_CHECK, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, re.sub(r"\s+", " ", done.stderr)


@pytest.mark.parametrize("while_", ["sorting", "resampling", "FITS"])
def test_full_disk(while_, small_disk, tables, tmp_path):
    """It fills while the job runs (others write to it too): one message; with space again it goes on."""
    # sorting: room for the description of the inputs and some blocks
    disk = small_disk("1100k" if while_ == "sorting" else "500k")
    inputs = state(tmp_path / "in")
    args = ["combine", *tables, "-o", disk / "o.zarr", "--dx", "0.1", "--dy", "0.1"]
    if while_ == "sorting":
        args = ["store", *tables, "-o", disk / "o.zarr", "--n-workers", "1"]
    elif while_ == "FITS":
        args = [*args[:-5], tmp_path / "o.zarr", "--fits", disk / "o.fits", *args[-4:]]
    code, text = unchecked(*args)
    assert code == 1 and text.count("Error: ") == 1 and "no space left on the disk" in text, text
    assert not (disk / "o.zarr").exists() and not (disk / "o.fits").exists()
    assert not [p for p in disk.iterdir() if p.name.endswith(".part")]
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    code, text = run(*args)
    assert code == 0 and "going on with the interrupted run" in text, text
    assert state(tmp_path / "in") == inputs
    assert not [p for p in (*disk.iterdir(), *tmp_path.iterdir()) if p.name.startswith(".")]
