"""Raw files: written in pieces by many, whole or not at all, read back to the bit, plain and compressed."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from musedask.errors import ComputeError, InputError, OutputExistsError, PlanError
from musedask.io import raw
from musedask.io.headers import set_card
from musedask.io.raw import RawWriter, list_ifus, read_raw, write_raw

SHAPE = (33, 47)
SUFFIXES = pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
#: not that of the channels
ORDER = (3, 24, 1, 12)


def extension(ifu):
    header = fits.Header()
    cards = {"EXTNAME": f"CHAN{ifu:02d}", "ESO DET CHIP NAME": f"chip {ifu}", "ESO DET CHIP LIVE": True}
    for key, value in {**cards, "ESO DET OUT1 GAIN": 1.1 + ifu / 7, "ESO DET BINX": 1}.items():
        set_card(header, key, value, "a comment")
    header["COMMENT"] = "of the extension"
    return header


def primary():
    header = fits.Header()
    for key, value in {
        "OBJECT": "NGC 1", "EXPTIME": 900.0, "RA": 1.2345678901234567, "ESO DET BINX": 2, "ESO TEL AMBI TEMP": -1.5e-7,
        "ESO OBS NAME": "a name that is quite long " * 3,
    }.items():  # fmt: skip
        set_card(header, key, value)
    header["HISTORY"] = "of the exposure"
    # of another file
    header["CHECKSUM"] = "wrong"
    header["NAXIS"] = 2
    header["BZERO"] = 5
    return header


def image(ifu, shape=SHAPE):
    random = np.random.default_rng(ifu)
    out = random.normal(1000, 3, shape).clip(0).astype(np.uint16)
    out[0, 0], out[0, 1], out[-1, -1], out[3] = 0, 65535, 32768, random.integers(0, 65536, shape[1])
    return out


@pytest.fixture(params=[".fits", ".fits.fz"])
def path(request, tmp_path):
    return write_raw(
        tmp_path / f"raw{request.param}", primary(), [(extension(ifu), image(ifu)) for ifu in ORDER]
    )


def left(folder):
    return sorted(os.listdir(folder))


# ------------------------------------------------------------------------------ what is written is read


def test_read_back(path):
    assert list_ifus(path) == list(ORDER)
    for ifu in ORDER:
        header, data = read_raw(path, ifu)
        assert data.dtype == np.uint16 and data.dtype.isnative and data.flags.c_contiguous
        assert np.array_equal(data, image(ifu))
        assert header["EXTNAME"] == f"CHAN{ifu:02d}"
        assert header["ESO DET OUT1 GAIN"] == 1.1 + ifu / 7
        assert header["ESO DET CHIP LIVE"] is True
        assert header.comments["ESO DET BINX"] == "a comment"
        assert list(header["COMMENT"]) == ["of the extension"]
        assert "OBJECT" not in header


def test_merged_header(path):
    header, _ = read_raw(path, 12, merge=True)
    assert header["OBJECT"] == "NGC 1"
    assert header["EXTNAME"] == "CHAN12"
    assert header["RA"] == 1.2345678901234567
    # the extension wins
    assert header["ESO DET BINX"] == 1
    assert list(header["COMMENT"]) == ["of the extension"]
    assert list(header["HISTORY"]) == ["of the exposure"]
    assert not {"XTENSION", "SIMPLE", "CHECKSUM", "DATASUM", "BZERO", "NAXIS", "ZIMAGE"} & set(header)


def test_file_is_standard(path):
    with fits.open(path, checksum=True, disable_image_compression=True) as hdus:
        hdus.verify("exception")
        assert len(hdus) == 1 + len(ORDER)
        for hdu in hdus:
            assert hdu.verify_checksum() == hdu.verify_datasum() == 1
        assert hdus[0].header["NAXIS"] == 0 and "BZERO" not in hdus[0].header
        # all digits, in a form that CFITSIO writes
        assert "1.2345678901234567" in repr(hdus[0].header)
        for hdu, ifu in zip(hdus[1:], ORDER, strict=True):
            assert (hdu.header["EXTNAME"], hdu.header["BZERO"], hdu.header["BSCALE"]) == (f"CHAN{ifu:02d}", 32768, 1)
    assert path.stat().st_size % 2880 == 0
    with fits.open(path) as hdus:
        for hdu, ifu in zip(hdus[1:], ORDER, strict=True):
            assert isinstance(hdu, fits.CompImageHDU if path.suffix == ".fz" else fits.ImageHDU)
            assert hdu.shape == SHAPE
            assert np.array_equal(hdu.data, image(ifu))
            if path.suffix == ".fz":
                assert hdu.compression_type == "RICE_1"


def test_bytes_depend_on_the_content_only(path, tmp_path):
    again = tmp_path / f"again{''.join(path.suffixes)}"
    with (
        RawWriter(again, primary(), [extension(i) for i in ORDER], shape=SHAPE) as writer,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(lambda ifu: writer.units[ifu].write(image(ifu)), reversed(ORDER)))
    assert again.read_bytes() == path.read_bytes()
    assert left(tmp_path) == sorted([path.name, again.name])


@SUFFIXES
def test_other_processes_write(suffix, tmp_path):
    path = tmp_path / f"raw{suffix}"
    script = (
        "import pickle, sys, numpy as np\n"
        "unit = pickle.load(open(sys.argv[1], 'rb'))\n"
        "unit.write(np.full(unit.shape, unit.ifu, np.uint16))\n"
    )
    with RawWriter(path, primary(), [extension(i) for i in (2, 1)], shape=SHAPE) as writer:
        calls = []
        for ifu, unit in writer.units.items():
            (tmp_path / f"{ifu}.pickle").write_bytes(pickle.dumps(unit))
            calls.append(subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"{ifu}.pickle")]))
        assert [call.wait() for call in calls] == [0, 0]
        assert len(pickle.dumps(unit)) < 20_000
    for ifu in (1, 2):
        assert (read_raw(path, ifu)[1] == ifu).all()


@given(values=arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 40))), compress=st.booleans())
def test_any_numbers(tmp_path_factory, values, compress):
    path = tmp_path_factory.getbasetemp() / ("any.fits.fz" if compress else "any.fits")
    write_raw(path, fits.Header(), [(extension(1), values)], overwrite=True)
    assert np.array_equal(read_raw(path, 1)[1], values)
    with fits.open(path, checksum=True, disable_image_compression=True) as hdus:
        assert hdus[1].verify_datasum() == hdus[1].verify_checksum() == 1


def test_full_size_images(tmp_path):
    values = image(5, raw.RAW_SHAPE)
    path = tmp_path / "raw.fits.fz"
    with RawWriter(path, fits.Header(), [extension(5)]) as writer:
        writer.units[5].write(values)
    assert np.array_equal(read_raw(path, 5)[1], values)
    assert path.stat().st_size < 0.35 * values.nbytes


def test_other_forms_of_raw_files(tmp_path):
    """A single IFU in the primary; further extensions; a dead CCD; a file packed as a whole."""
    cards = extension(4)
    fits.PrimaryHDU(image(4), cards).writeto(tmp_path / "single.fits")
    assert list_ifus(tmp_path / "single.fits") == [4]
    header, data = read_raw(tmp_path / "single.fits", 4, merge=True)
    assert np.array_equal(data, image(4)) and header["EXTNAME"] == "CHAN04"

    dead = extension(6)
    dead["HIERARCH ESO DET CHIP LIVE"] = False
    guiding = fits.ImageHDU(np.zeros((5, 5)), name="SGS_IMG")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image(4), cards), fits.ImageHDU(None, dead), guiding]
    for name in ("more.fits", "more.fits.gz"):
        fits.HDUList(hdus).writeto(tmp_path / name)
        assert list_ifus(tmp_path / name) == [4]
        assert np.array_equal(read_raw(tmp_path / name, 4)[1], image(4))
        with pytest.raises(InputError, match=r"CHAN06 has no image \(CHIP LIVE False\)"):
            read_raw(tmp_path / name, 6)


# ------------------------------------------------------------------------------ what goes wrong


def test_output_exists(path):
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        RawWriter(path, primary(), [extension(1)], shape=SHAPE)
    assert path.read_bytes() == before
    with RawWriter(path, primary(), [extension(1)], shape=SHAPE, overwrite=True) as writer:
        writer.units[1].write(image(1))
    assert list_ifus(path) == [1]


@SUFFIXES
def test_missing_images(suffix, tmp_path):
    path = tmp_path / f"raw{suffix}"
    with (
        pytest.raises(ComputeError, match=r"IFUs \[24, 12\] were not written"),
        RawWriter(path, primary(), [extension(i) for i in ORDER], shape=SHAPE) as writer,
    ):
        for ifu in (1, 3):
            writer.units[ifu].write(image(ifu))
    assert left(tmp_path) == []


@SUFFIXES
def test_errors_leave_nothing(suffix, tmp_path):
    path = tmp_path / f"raw{suffix}"
    headers = [extension(i) for i in ORDER]
    with pytest.raises(ZeroDivisionError), RawWriter(path, primary(), headers, shape=SHAPE) as writer:
        writer.units[1].write(image(1))
        raise ZeroDivisionError
    assert left(tmp_path) == []
    # a task that is late finds nothing and makes nothing
    with pytest.raises(InputError, match="too late"):
        writer.units[3].write(image(3))
    assert left(tmp_path) == []
    writer = RawWriter(path, primary(), headers, shape=SHAPE)
    writer.abort()
    assert left(tmp_path) == []


@SUFFIXES
def test_wrong_images(suffix, tmp_path):
    with (
        pytest.raises(ComputeError),
        RawWriter(tmp_path / f"raw{suffix}", primary(), [extension(1)], shape=SHAPE) as writer,
    ):
        for wrong in (image(1).astype(np.int32), image(1)[:-1], image(1).astype(np.float32)):
            with pytest.raises(InputError, match=r"expected \(33, 47\) and uint16"):
                writer.units[1].write(wrong)


def test_wrong_requests(tmp_path):
    for name in ("CHAN25", "CHAN00", "SGS_IMG", "CHAN7"):
        header = extension(1)
        header["EXTNAME"] = name
        with pytest.raises(InputError, match="expected CHAN01 to CHAN24"):
            RawWriter(tmp_path / "raw.fits", primary(), [header])
    for headers in ([], [extension(1), extension(1)]):
        with pytest.raises(InputError, match="expected one for each IFU"):
            RawWriter(tmp_path / "raw.fits", primary(), headers)
    with pytest.raises(InputError, match="does not exist"):
        RawWriter(tmp_path / "no" / "raw.fits", primary(), [extension(1)])
    with pytest.raises(InputError, match=r"ends in \.fits\.fz"):
        RawWriter(tmp_path / "raw.fits", primary(), [extension(1)], compress=True)
    with pytest.raises(InputError, match=r"ends in \.fits\.fz"):
        RawWriter(tmp_path / "raw.fits.fz", primary(), [extension(1)], compress=False)
    with pytest.raises(InputError, match="all of one shape"):
        write_raw(tmp_path / "raw.fits", primary(), [(extension(1), image(1)), (extension(2), image(2)[1:])])
    assert left(tmp_path) == []


@SUFFIXES
def test_no_room(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(PlanError, match="are needed on this disk"):
        RawWriter(tmp_path / f"raw{suffix}", primary(), [extension(1)], shape=SHAPE)
    assert left(tmp_path) == []


@SUFFIXES
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_disk_becomes_full(suffix, call, tmp_path, monkeypatch):
    if call == "posix_fallocate" and suffix == ".fits.fz":
        pytest.skip("the size is not known before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(PlanError, match="no space left on the disk"),
        RawWriter(tmp_path / f"raw{suffix}", primary(), [extension(1)], shape=SHAPE) as writer,
    ):
        writer.units[1].write(image(1))
    assert left(tmp_path) == []


def test_disk_becomes_full_while_parts_are_joined(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = RawWriter(tmp_path / "raw.fits.fz", primary(), [extension(1)], shape=SHAPE)
    writer.units[1].write(image(1))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(PlanError, match="no space left on the disk"):
        writer.finish()
    assert left(tmp_path) == []


def test_missing_ifu(path):
    with pytest.raises(InputError, match=r"IFU 7 is not in it, IFUs \[3, 24, 1, 12\] are"):
        read_raw(path, 7)
    with pytest.raises(InputError, match="expected 1 to 24"):
        read_raw(path, 25)


def test_no_raw_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_raw(tmp_path / "none.fits", 1)
    (tmp_path / "text.fits").write_text("no FITS file at all\n" * 1000)
    (tmp_path / "empty.fits").write_bytes(b"")
    for name in ("text.fits", "empty.fits"):
        for function in (list_ifus, lambda p: read_raw(p, 1)):
            with pytest.raises(InputError, match="cannot be read as FITS"):
                function(tmp_path / name)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image(1), name="DATA")]).writeto(tmp_path / "other.fits")
    for function in (list_ifus, lambda p: read_raw(p, 1)):
        with pytest.raises(InputError, match="no raw file of MUSE"):
            function(tmp_path / "other.fits")
    fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(image(1).astype(np.float32), extension(1))]
    ).writeto(tmp_path / "float.fits")
    with pytest.raises(InputError, match="expected unsigned 16-bit"):
        read_raw(tmp_path / "float.fits", 1)


def test_truncated(path, tmp_path):
    whole = path.read_bytes()
    size = len(whole)
    bad = tmp_path / f"bad{''.join(path.suffixes)}"
    for cut in (size - 1, size - 2880, size - 5000, size // 2, size // 3, 5760):
        bad.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"truncated|not in it|no raw file|cannot be read"):
            # the last one in the file
            read_raw(bad, ORDER[-1])
        if cut > size - 10_000:
            with pytest.raises(InputError, match="truncated"):
                list_ifus(bad)
            # what is whole can still be read
            assert np.array_equal(read_raw(bad, ORDER[0])[1], image(ORDER[0]))


def test_damaged_data(tmp_path):
    path = write_raw(tmp_path / "raw.fits.fz", primary(), [(extension(1), image(1))])
    content = bytearray(path.read_bytes())
    with fits.open(path, disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    # descriptors of the tiles point anywhere
    content[start : start + 8 * SHAPE[0]] = b"\x7f" * (8 * SHAPE[0])
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_raw(path, 1)
