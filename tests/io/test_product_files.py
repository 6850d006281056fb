"""Files of products: what is in them, that their checksums are right, that arrays stay as they were."""

from __future__ import annotations

import hashlib
import os
import subprocess

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError, PlanError
from musedask.io.calibrations import TraceSamples, TraceTable, read_trace_samples, read_trace_table
from musedask.io.muse_image import MuseImage, read_muse_image
from musedask.io.product_files import write_product


def header(**cards):
    made = fits.Header()
    made["EXTNAME"] = "CHAN03"
    made["PIPEFILE"] = "X-03.fits"
    made["NAXIS"] = 7
    made["HIERARCH ESO PRO CATG"] = "X"
    made.update(cards)
    return made


def image(ny=40, nx=30, **options):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(ny, nx)).astype(np.float32)
    dq = rng.integers(-(2**31), 2**31, (ny, nx)).astype(np.int32)
    return MuseImage(data, dq, (data**2).astype(np.float32), "adu", **options)


def md5(path):
    """DATAMD5 from its definition: of each data unit the first 16 blocks again and again, up to its length."""
    found = hashlib.md5(usedforsecurity=False)
    with fits.open(path) as hdus:
        spans = [(hdu.fileinfo()["datLoc"], hdu.fileinfo()["datSpan"]) for hdu in hdus]
    content = path.read_bytes()
    for start, span in spans:
        head = content[start : start + min(span, 16 * 2880)]
        found.update((head * (span // max(len(head), 1) + 1))[:span])
    return found.hexdigest()


# more than a band of 1 MB, and one that no number of bands fits
@pytest.mark.parametrize("shape", [(40, 30), (513, 1027)])
def test_image(shape, tmp_path):
    content = image(*shape)
    before = [a.copy() for a in (content.data, content.dq, content.stat)]
    path = write_product(tmp_path / "x.fits", content, header())
    for array, copy in zip((content.data, content.dq, content.stat), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    # wrong checksums are warnings, and so errors
    with fits.open(path, checksum=True) as hdus:
        assert [h.name for h in hdus] == ["CHAN03", "DATA", "DQ", "STAT"]
        assert hdus[0].header["NAXIS"] == 0 and hdus[0].header["DATAMD5"] == md5(path)
        assert hdus["DATA"].header["BUNIT"] == "adu" and hdus["STAT"].header["BUNIT"] == "(adu)**2"
        assert hdus["DQ"].header["QUALMASK"] == 2**32 - 1 and "BUNIT" not in hdus["DQ"].header
        assert all("CHECKSUM" in h.header and "DATASUM" in h.header for h in hdus)
    back = read_muse_image(path)
    for array, copy in zip((back.data, back.dq, back.stat), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_that_are_no_block_of_memory(tmp_path):
    whole = image(80, 60)
    part = MuseImage(whole.data[::2, ::2], whole.dq[::2, ::2], whole.stat.T[::2, ::2].T, "adu")
    back = read_muse_image(write_product(tmp_path / "x.fits", part, header()))
    np.testing.assert_array_equal(back.data, whole.data[::2, ::2])
    np.testing.assert_array_equal(back.dq, whole.dq[::2, ::2])


def test_image_without_errors(tmp_path):
    path = write_product(tmp_path / "x.fits", MuseImage(image().data), header())
    with fits.open(path, checksum=True) as hdus:
        assert [h.name for h in hdus] == ["CHAN03", "DATA"]
        assert "ERRDATA" not in hdus[1].header and "QUALDATA" not in hdus[1].header


def test_without_checksums(tmp_path):
    path = write_product(tmp_path / "x.fits", image(), header(), checksums=False)
    with fits.open(path) as hdus:
        assert not any(k in h.header for h in hdus for k in ("CHECKSUM", "DATASUM", "DATAMD5"))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_image_in_the_primary_hdu(dtype, tmp_path):
    values = np.arange(600, dtype=dtype).reshape(20, 30)
    path = write_product(tmp_path / "x.fits", values, header(BUNIT="Angstrom", CRVAL1=3.0))
    with fits.open(path, checksum=True) as hdus:
        assert len(hdus) == 1 and hdus[0].header["BUNIT"] == "Angstrom" and hdus[0].header["CRVAL1"] == 3.0
        assert hdus[0].header["DATAMD5"] == md5(path)
        np.testing.assert_array_equal(hdus[0].data, values)


def test_tables(tmp_path):
    rng = np.random.default_rng(2)
    table = TraceTable(*rng.normal(size=(3, 48, 6)), rng.normal(size=48).astype(np.float32), rng.normal(size=(48, 3)))
    path = write_product(tmp_path / "t.fits", table, header())
    back = read_trace_table(path)
    np.testing.assert_array_equal(back.left, table.left)
    with fits.open(path, checksum=True) as hdus:
        assert hdus[0].header["EXTNAME"] == "CHAN03" and hdus[0].header["DATAMD5"] == md5(path)
        # as the reference has them
        assert hdus[0].header["BITPIX"] == 16 and hdus[1].header["TUNIT9"] == "pix"
        assert hdus[1].header.comments["TFORM3"] == "data format of field: 8-byte DOUBLE"
    samples = TraceSamples(np.arange(9, dtype=np.int32), *rng.normal(size=(4, 9)))
    back = read_trace_samples(write_product(tmp_path / "s.fits", samples, header()))
    np.testing.assert_allclose(back.mid, samples.mid, rtol=1e-6)


@pytest.mark.parametrize(
    "content, words",
    [
        ("a text", "type str found, for which there is no file format"),
        (np.zeros((2, 3, 4), np.float32), "shape (2, 3, 4)"),
        (np.zeros((3, 4)), "type float64"),
        (MuseImage(np.zeros((3, 4), np.float32), np.zeros((3, 5), np.int32)), "expected the same two axes"),
    ],
)
def test_wrong_content(content, words, tmp_path):
    with pytest.raises(InputError) as caught:
        write_product(tmp_path / "x.fits", content, header())
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_file_that_exists(tmp_path):
    path = write_product(tmp_path / "x.fits", image(), header())
    with pytest.raises(OutputExistsError):
        write_product(path, image(), header())
    write_product(path, image(20, 20), header(), overwrite=True)
    assert read_muse_image(path).data.shape == (20, 20)


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(PlanError, match=r"x\.fits: no space left on the disk"):
            write_product(disk / "x.fits", image(200, 200), header())
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
