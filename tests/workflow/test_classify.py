"""What files are, by their headers; each is opened once."""

from __future__ import annotations

import gzip
import json
import logging
import os
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError
from musedask.io.header_read import read_keywords
from musedask.sim.headers import primary_header
from musedask.sim.plan import Conditions, ExposurePlan, ObservingBlock
from musedask.workflow import classify as module
from musedask.workflow.classify import RawFile, archive_stem, classify, examine, raw_tag, read_file, scan

from .fortnight import Headers, write_product

#: tag of the set of frames, CATG and TYPE of the data product, template (rules of the observatory)
RULES = """
BIAS             CALIB       BIAS                         MUSE_cal_bias
DARK             CALIB       DARK                         MUSE_cal_dark
FLAT             CALIB       FLAT,LAMP                    MUSE_wfm_cal_specflat
FLAT             CALIB       FLAT,LAMP                    MUSE_nfm_cal_specflat
ILLUM            CALIB       FLAT,LAMP,ILLUM              MUSE_wfm_cal_illum
ILLUM            CALIB       FLAT,LAMP,ILLUM              MUSE_nfm_cal_illum
SKYFLAT          CALIB       FLAT,SKY                     MUSE_wfm_cal_twilight
ARC              CALIB       WAVE                         MUSE_wfm_cal_wave
ARC_LSF          CALIB       WAVE,LSF                     MUSE_wfm_cal_wave
MASK             CALIB       WAVE,MASK                    MUSE_wfm_cal_geometry
STD              CALIB       STD                          MUSE_wfm_cal_specphot
ASTROMETRY       CALIB       ASTROMETRY                   MUSE_wfm_cal_astrom
SKY              SCIENCE     SKY                          MUSE_wfm-noao_obs_genericoffset
SKY              CALIB       SKY                          MUSE_wfm_cal_specphot
OBJECT           SCIENCE     OBJECT                       MUSE_wfm-noao_obs_genericoffset
AMPL             TECHNICAL   FLAT,LAMP,THRUPUT            MUSE_cal_thruput
LINGAIN_LAMP_OFF CALIB       BIAS,DETCHECK                MUSE_cal_detmon
LINGAIN_LAMP_ON  CALIB       FLAT,LINEARITY,DETCHAR       MUSE_cal_detmon
ACQUISITION      ACQUISITION OBJECT                       MUSE_wfm-noao_acq_movetopix
TEST             TEST        FLAT,LAMP                    MUSE_wfm_cal_specflat
-                CALIB       FLAT,LAMP                    MUSE_wfm_cal_illum
-                CALIB       FLAT,LAMP,ILLUM              MUSE_wfm_cal_specflat
-                CALIB       OBJECT                       MUSE_wfm-noao_obs_genericoffset
-                CALIB       STD,OTHER                    MUSE_wfm_cal_specphot
-                SCIENCE     SKYLIKE                      MUSE_wfm-noao_obs_genericoffset
"""


@pytest.mark.parametrize("row", RULES.strip().splitlines())
def test_rules_of_the_observatory(row):
    tag, catg, kind, template = row.split()
    found, note = raw_tag(catg, kind, "IFU", template)
    assert found == ("" if tag == "-" else tag)
    assert bool(note) == (tag in ("-", "ACQUISITION", "TEST"))
    # images of the guiding system are no exposures of the spectrographs
    if catg not in ("ACQUISITION", "TEST"):
        assert raw_tag(catg, kind, "IMAGE", template)[0] == ""


def test_why_no_rule_fits():
    assert raw_tag("CALIB", "WIND") == ("", "no rule for ESO DPR CATG = CALIB, ESO DPR TYPE = WIND")
    _, note = raw_tag("CALIB", "FLAT,LAMP", "IFU", "MUSE_wfm_cal_illum")
    assert note == "ESO DPR TYPE = FLAT,LAMP, but ESO TPL ID is MUSE_wfm_cal_illum, expected MUSE_[wn]fm_cal_specflat"


def plan_of(**values):
    defaults = {
        "index": 0, "tag": "OBJECT", "date_obs": "2018-11-09T02:48:56.798", "exptime": 600.0, "mode": "WFM-AO-E",
        "ra": 271.13, "dec": -24.39, "posang": 90.0, "template": "MUSE_wfm-ao_obs_genericoffsetLGS",
        "template_start": "2018-11-09T02:40:00", "expno": 2, "nexp": 4, "ob": ObservingBlock(42, "tile 1", "NGC 6530"),
        "conditions": Conditions(instrument_temperature=11.25),
    }  # fmt: skip
    return ExposurePlan(**{**defaults, **values})


def test_facts_of_an_exposure(tmp_path):
    path = tmp_path / "renamed.fits"
    header = primary_header(plan_of(), origfile="x.fits", arcfile="MUSE.2018-11-09T02:48:56.797.fits")
    fits.PrimaryHDU(header=header).writeto(path)
    file = read_file(path)
    assert file == RawFile(
        path=path, tag="OBJECT", name="MUSE.2018-11-09T02:48:56.797", mjd=58431.11732405,
        date_obs="2018-11-09T02:48:56.798", exptime=600.0, mode="WFM-AO-E", nominal=False, field="WFM", curid=1,
        ra=271.13, dec=-24.39, posang=90.0, drot_mode="SKY", ob_name="tile 1", ob_id=42, target="NGC 6530",
        template="MUSE_wfm-ao_obs_genericoffsetLGS", tpl_start="2018-11-09T02:40:00", expno=2, nexp=4,
        temperature=11.25,
    )  # fmt: skip
    assert file.ao and file.night == date(2018, 11, 8)


@pytest.mark.parametrize(
    ("time", "night"), [("2018-11-09T11:59:59.999", date(2018, 11, 8)), ("2018-11-09T12:00:00.000", date(2018, 11, 9))]
)
def test_nights_end_at_noon(time, night):
    header = {"INSTRUME": "MUSE", "DATE-OBS": time}
    assert classify("x.fits", header).night == night


@pytest.mark.parametrize(("lamp", "expected"), [("Ne,Xe", ("Ne", "Xe")), ("HgCd", ("HgCd",)), ("", ())])
def test_lamps(lamp, expected):
    plan = plan_of(tag="ARC", mode="WFM-NOAO-N", lamp=lamp, template="MUSE_wfm_cal_wave")
    header = primary_header(plan, origfile="", arcfile="")
    assert classify("x.fits", header).lamps == expected
    # a lamp behind a closed shutter gives no light
    for i in range(1, 7):
        header[f"ESO INS SHUT{i} ST"] = False
    assert classify("x.fits", header).lamps == ()


def test_facts_from_incomplete_headers():
    file = classify("a/MUSE.2014-02-10T03:00:00.000.fits.fz", {
        "INSTRUME": "MUSE", "MJD-OBS": 56698.125, "ESO INS MODE": "WFM-NONAO-N", "ESO DPR CATG": "SCIENCE",
        "ESO DPR TYPE": "OBJECT",
    })  # fmt: skip
    assert (file.tag, file.mode, file.nominal, file.field) == ("OBJECT", "WFM-NOAO-N", True, "WFM")
    assert file.name == "MUSE.2014-02-10T03:00:00.000"
    assert file.date_obs == "2014-02-10T03:00:00.000"
    assert file.path == Path("a/MUSE.2014-02-10T03:00:00.000.fits.fz").absolute()
    with pytest.raises(InputError, match="neither DATE-OBS nor MJD-OBS"):
        classify("x.fits", {"INSTRUME": "MUSE", "ESO DPR TYPE": "BIAS"})
    with pytest.raises(InputError, match="not of MUSE, INSTRUME is XSHOOTER"):
        classify("x.fits", {"INSTRUME": "XSHOOTER"})
    with pytest.raises(InputError, match="DATE-OBS = 'yesterday' found"):
        classify("x.fits", {"INSTRUME": "MUSE", "DATE-OBS": "yesterday"})
    with pytest.raises(InputError, match="EXPTIME = 'long' found, expected a number"):
        classify("x.fits", {"INSTRUME": "MUSE", "MJD-OBS": 1.0, "EXPTIME": "long"})


def test_products():
    file = classify("MASTER_BIAS-07.fits", {
        "INSTRUME": "MUSE", "ESO PRO CATG": "MASTER_BIAS", "EXTNAME": "CHAN07", "ARCFILE": "MUSE.of-a-bias.fits",
        "MJD-OBS": 58000.5, "DATE-OBS": "2017-09-04T12:00:00",
    })  # fmt: skip
    assert (file.product, file.tag, file.ifus, file.name) == (True, "MASTER_BIAS", (7,), "MASTER_BIAS-07")
    # static calibrations have neither time nor instrument
    file = classify("x.fits", {"ESO PRO CATG": "EXTINCT_TABLE"})
    assert (file.mjd, file.date_obs, file.night, file.ifus) == (0.0, "", date.min, ())
    # some tables of the archive say what they are in OBJECT alone
    assert classify("x.fits", {"INSTRUME": "MUSE", "OBJECT": "ASTROMETRY_WCS"}).tag == "ASTROMETRY_WCS"


@pytest.mark.parametrize(
    ("name", "stem"),
    [("MUSE.2014.fits", "MUSE.2014"), ("MUSE.2014.fits.fz", "MUSE.2014"), ("a.fits.gz", "a"), ("a.fit", "a.fit")],
)
def test_names_in_the_archive(name, stem):
    assert archive_stem(name) == stem


# ----------------------------------------------------------------------------------------- reading


def test_keywords_are_read_as_astropy_does(tmp_path):
    header = primary_header(plan_of(tag="ARC", lamp="Ne", template=""), origfile="it's", arcfile="y")
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(header=header), fits.ImageHDU(np.zeros(5))]).writeto(path)
    wanted = [k for k in header if k not in ("", "COMMENT", "HISTORY")]
    assert read_keywords(path, [*wanted, "NOT THERE"]) == {k: header[k] for k in wanted}


def test_header_of_a_compressed_image(tmp_path):
    """An image that is compressed alone has its header in the extension; one with a primary header of its own not."""
    image = fits.CompImageHDU(np.zeros((20, 20), np.int16), header=fits.Header([("INSTRUME", "MUSE")]))
    path = tmp_path / "x.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    assert read_keywords(path, ["INSTRUME"]) == {"INSTRUME": "MUSE"}
    primary = fits.PrimaryHDU(header=fits.Header([("OBJECT", "of the file")]))
    fits.HDUList([primary, image]).writeto(path, overwrite=True)
    assert read_keywords(path, ["INSTRUME", "OBJECT"]) == {"OBJECT": "of the file"}
    data = path.read_bytes()
    with gzip.open(tmp_path / "x.fits.gz", "wb") as file:
        file.write(data)
    assert read_keywords(tmp_path / "x.fits.gz", ["OBJECT"]) == {"OBJECT": "of the file"}


class Counted:
    """Counts the bytes that are read."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        self.opened: list[Path] = []
        original = Path.open

        def opened(path, *args, **kwargs):
            file = original(path, *args, **kwargs)
            if path.suffix != ".fits":
                return file
            self.opened.append(path)
            read = file.read

            class Reader:
                def __enter__(inner):
                    return inner

                def __exit__(inner, *_):
                    file.close()

                def read(inner, n):
                    data = read(n)
                    self.bytes += len(data)
                    return data

            return Reader()

        monkeypatch.setattr(Path, "open", opened)


def big_file(path):
    """Of 300 MB, but with nothing on the disk beyond its header."""
    path.write_bytes(Headers().of(plan_of()))
    os.truncate(path, 2880 * 100_000)


def test_only_headers_are_read_and_only_once(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    big_file(raw / "MUSE.2018-11-09T02:48:56.798.fits")
    counted = Counted(monkeypatch)
    cache = tmp_path / "cache.json"
    first, problems = examine(raw, cache=cache)
    assert len(first) == 1 and not problems
    assert counted.bytes < 200_000
    assert examine(raw, cache=cache) == (first, problems)
    assert len(counted.opened) == 1
    # another time or size, and it is opened again
    os.utime(first[0].path, (1, 1))
    examine(raw, cache=cache)
    assert len(counted.opened) == 2
    # a cache that cannot be read, or of another version, does no harm
    for text in ("{", json.dumps({"version": 0, "fields": [], "files": {}}), json.dumps({"files": 3})):
        cache.write_text(text)
        assert examine(raw, cache=cache)[0] == first
    assert json.loads(cache.read_text())["version"] == module._CACHE_VERSION


def test_what_is_no_exposure_is_told(tmp_path, caplog, monkeypatch):
    # the program does not propagate its messages
    monkeypatch.setattr(logging.getLogger("musedask"), "propagate", True)
    headers = Headers()
    good = headers.of(plan_of())
    (tmp_path / "good.fits").write_bytes(good)
    (tmp_path / "login.fits").write_text("<!DOCTYPE html><html>Please log in")
    (tmp_path / "empty.fits").write_bytes(b"")
    (tmp_path / "half-header.fits").write_bytes(good[:5760])
    (tmp_path / "half-data.fits").write_bytes(good + b"1234")
    (tmp_path / "packed.fits.Z").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no FITS file by its name")
    (tmp_path / ".hidden.fits").write_text("")
    (tmp_path / "dangling.fits").symlink_to(tmp_path / "nowhere.fits")
    fits.PrimaryHDU(header=fits.Header([("INSTRUME", "FORS2")])).writeto(tmp_path / "other.fits")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "again.fits").write_bytes(good)
    (tmp_path / "below" / "link.fits").symlink_to(tmp_path / "good.fits")
    with caplog.at_level(logging.WARNING):
        files = scan(tmp_path)
    told = {Path(r.args[0]).name: r.args[1] for r in caplog.records}
    assert len(files) == 1
    assert set(told) == {
        "login.fits", "empty.fits", "half-header.fits", "half-data.fits", "dangling.fits", "other.fits", "again.fits",
        "packed.fits.Z",
    }  # fmt: skip
    assert told["login.fits"] == "no FITS file: '<!DOCTYPE html><html' found at the start, expected SIMPLE"
    assert told["empty.fits"] == "no FITS file: nothing found at the start, expected SIMPLE"
    assert told["half-header.fits"] == "truncated; its header has no END"
    assert told["half-data.fits"].startswith("truncated; ")
    assert told["packed.fits.Z"].startswith("packed (.Z); unpack it")
    assert told["other.fits"] == "not of MUSE, INSTRUME is FORS2"
    assert len(scan(tmp_path, recursive=False)) == 1
    with pytest.raises(InputError, match="no such file or folder"):
        scan(tmp_path / "nowhere")


def test_thousands_of_files(tmp_path):
    """A month is looked at in seconds, and again in less."""
    text = Headers().of(plan_of())
    for k in range(300):
        path = tmp_path / f"MUSE.2018-11-09T02:{k // 60:02d}:{k % 60:02d}.fits"
        path.write_bytes(text.replace(b"02:48:56.798.fits", f"02:48:56.{k:03d}.fits".encode()))
    started = time.process_time()
    files, problems = examine(tmp_path, cache=tmp_path / "cache.json")
    assert len(files) == 300 and not problems
    first = time.process_time() - started
    assert first < 10
    started = time.process_time()
    assert examine(tmp_path, cache=tmp_path / "cache.json")[0] == files
    assert time.process_time() - started < max(0.2 * first, 0.5)


def test_products_of_several_folders_are_kept(tmp_path):
    """Products may have equal names; links to one file count once."""
    for folder in "ab":
        write_product(tmp_path / folder / "MASTER_BIAS-01.fits", "MASTER_BIAS", EXTNAME="CHAN01")
    (tmp_path / "c.fits").symlink_to(tmp_path / "a" / "MASTER_BIAS-01.fits")
    files, problems = examine(tmp_path)
    assert len(files) == 2 and not problems


def test_folders_are_visited_once(tmp_path):
    """Links in a circle do no harm; products of a reduction are not taken for raw data, unless they are asked for."""
    good = Headers().of(plan_of())
    for place in ("raw/a", "reduced/.musedask", "reduced/tile", "raw/.hidden"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "raw" / "a" / "x.fits").write_bytes(good)
    (tmp_path / "raw" / ".hidden" / "y.fits").write_bytes(good)
    (tmp_path / "raw" / "a" / "up").symlink_to(tmp_path / "raw")
    write_product(tmp_path / "reduced" / "tile" / "MASTER_BIAS-01.fits", "MASTER_BIAS")
    files, problems = examine(tmp_path)
    assert [f.path.name for f in files] == ["x.fits"] and not problems
    assert [f.tag for f in scan([tmp_path / "reduced", tmp_path / "raw"])] == ["MASTER_BIAS", "OBJECT"]
    assert [f.path.name for f in scan(tmp_path / "raw" / "a" / "x.fits")] == ["x.fits"]
