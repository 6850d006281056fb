"""Fingerprints: the same for equal contents, another one for any change that matters."""

from __future__ import annotations

import os
import shutil
import warnings

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError
from musedask.io.fingerprint import check_complete, fingerprint


def write(path, *, ifus=(1, 2), cards=None, change=None, checksum=False, date="2020-01-01T00:00:00"):
    """A file with an image for each IFU."""
    primary = fits.PrimaryHDU()
    primary.header["DATE"] = date
    primary.header.update(cards or {})
    hdus = fits.HDUList([primary])
    for ifu in ifus:
        data = np.random.default_rng(ifu).integers(0, 60000, (70, 50)).astype(np.uint16)
        if change is not None and change[0] == ifu:
            data[change[1]] = change[2]
        hdus.append(fits.ImageHDU(data, name=f"CHAN{ifu:02d}"))
    hdus.writeto(path, overwrite=True, checksum=checksum)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.fits")


def test_places_and_times_do_not_count(file, tmp_path):
    copy = tmp_path / "sub" / "b.fits"
    copy.parent.mkdir()
    shutil.copyfile(file, copy)
    os.utime(copy, (1, 1))
    a, b = fingerprint(file), fingerprint(copy)
    assert a.checksum == b.checksum and len(a.checksum) == 32 and a.scope == "file"
    assert b.mtime_ns == 10**9 and a.size == b.size == file.stat().st_size


def test_time_of_writing_does_not_count(file, tmp_path):
    other = write(tmp_path / "b.fits", date="2021-12-31T23:59:59", checksum=True)
    assert fingerprint(other).checksum == fingerprint(file).checksum


@pytest.mark.parametrize(
    "options",
    [
        {"cards": {"EXPTIME": 1.0}},
        {"change": (1, (0, 0), 1)},
        {"change": (2, (69, 49), 1)},
        {"ifus": (2, 1)},
        {"ifus": (1,)},
    ],
)
def test_changes_count(options, file, tmp_path):
    assert fingerprint(write(tmp_path / "b.fits", **options)).checksum != fingerprint(file).checksum


def test_exchanged_pixels_count(file, tmp_path):
    """Sums would not see it."""
    data = fits.getdata(file, "CHAN01")
    other = write(tmp_path / "b.fits", change=(1, (slice(0, 2), 0), data[1::-1, 0]))
    assert data[0, 0] != data[1, 0]
    assert fingerprint(other).checksum != fingerprint(file).checksum


def test_only_the_ifu_counts(file, tmp_path):
    other = write(tmp_path / "b.fits", change=(2, (3, 4), 1))
    a, b = fingerprint(file, 1), fingerprint(other, 1)
    assert a.checksum == b.checksum and a.scope == "CHAN01"
    assert fingerprint(file, 2).checksum != fingerprint(other, 2).checksum
    primary = write(tmp_path / "c.fits", cards={"EXPTIME": 1.0})
    assert fingerprint(primary, 1).checksum != a.checksum
    # a file without the IFU, or of one IFU alone, counts as a whole
    assert fingerprint(file, 7).scope == "file"
    single = fingerprint(write(tmp_path / "d.fits", ifus=(1,)), 1)
    assert single.scope == "file" and single.checksum == a.checksum


def test_file_that_changes(file):
    before = fingerprint(file)
    write(file, cards={"EXPTIME": 1.0})
    assert fingerprint(file).checksum != before.checksum


def test_other_files(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a")
    first = fingerprint(path).checksum
    path.write_text("ab")
    assert fingerprint(path).checksum != first


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.fits: no such file"):
        fingerprint(tmp_path / "none.fits")
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint(tmp_path)


def test_truncated_file(file):
    """What is cut off matters if it belongs to the IFU in question."""
    whole = fingerprint(file, 1).checksum
    check_complete(file)
    os.truncate(file, file.stat().st_size - 2880)
    for call in (lambda: fingerprint(file), lambda: fingerprint(file, 2), lambda: check_complete(file)):
        with pytest.raises(InputError, match=r"a\.fits: is truncated, \d+ bytes found, \d+ expected.*HDU 2"):
            call()
    assert fingerprint(file, 1).checksum == whole
    os.truncate(file, 1000)
    with pytest.raises(InputError, match="is truncated in the header of HDU 0"):
        check_complete(file)


def test_complete_files(file, tmp_path):
    with pytest.raises(InputError, match="HDU 0 has no CHECKSUM"):
        check_complete(file, checksums=True)
    check_complete(write(tmp_path / "b.fits", checksum=True), checksums=True)
    (tmp_path / "x.fits").write_text("nothing")
    with pytest.raises(InputError, match="is no FITS file"):
        check_complete(tmp_path / "x.fits")
    # tables with a heap, and random bytes behind the last HDU
    table = fits.BinTableHDU.from_columns([fits.Column("A", "PJ()", array=np.array([[1, 2], [3]], object))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "t.fits", checksum=True)
    check_complete(tmp_path / "t.fits", checksums=True)
    with open(tmp_path / "t.fits", "ab") as stream:
        stream.write(b"\0" * 2880)
    check_complete(tmp_path / "t.fits")
