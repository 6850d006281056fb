"""Tables of bad pixels from qualities, lists and regions, alone and added to others."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

import musedask
from musedask.calib.badpix import (
    badpix_from_ascii,
    badpix_from_dq,
    badpix_from_region,
    join_pixels,
    parse_region,
    pixels_of_quality,
    to_raw,
)
from musedask.errors import InputError, OutputExistsError
from musedask.io.badpix import parse_flag
from musedask.io.calibrations import BadPixels, read_badpix_table, write_badpix_table
from musedask.io.merge import merge_products
from musedask.io.muse_image import MuseImage, write_muse_image
from musedask.io.products import product_header

#: columns and rows of the data of a small CCD
NX, NY = 30, 20


def pixels(rows):
    x, y, status = np.array(rows, np.int64).reshape(-1, 3).T
    return BadPixels(
        x.astype(np.int32), y.astype(np.int32), status.astype(np.uint32).view(np.int32), np.full(len(x), np.nan)
    )


def rows(bad):
    """Pixels as (x, y, flag)."""
    return list(zip(bad.x.tolist(), bad.y.tolist(), bad.status.view(np.uint32).tolist(), strict=True))


def flat(folder, ifu, bad, **cards):
    """A small MASTER_FLAT with some pixels (x, y, flag) flagged."""
    dq = np.zeros((2 * NY, 2 * NX), np.uint32)
    for x, y, flag in bad:
        dq[y - 1, x - 1] = flag
    cards = {
        "ESO DET OUT1 NX": NX, "ESO DET OUT1 NY": NY, "ESO DET CHIP NAME": f"CCD{ifu}", "ESO INS MODE": "x", **cards,
    }  # fmt: skip
    data = np.ones(dq.shape, np.float32)
    header = product_header("MASTER_FLAT", ifu=ifu, cards=cards)
    return write_muse_image(
        folder / f"MASTER_FLAT-{ifu:02d}.fits", MuseImage(data, dq.view(np.int32), data, header=header)
    )


# --- arithmetic ------------------------------------------------------------------------------------


def test_raw_positions():
    x, y = to_raw([1, 2048, 2049, 4096], [1, 2056, 2057, 4112])
    assert x.tolist() == [33, 2080, 2145, 4192] and y.tolist() == [33, 2088, 2153, 4208]
    assert x.dtype == np.int32
    assert [v.tolist() for v in to_raw(31, 20, (NX, NY))] == [127, 52]


def test_pixels_of_quality():
    dq = np.zeros((4112, 4096), np.int32)
    for x, y, flag in ((4096, 1, 1), (1, 4112, -(2**31)), (1, 7, 256)):
        dq[y - 1, x - 1] = flag
    assert rows(pixels_of_quality(dq)) == [(33, 39, 256), (33, 4208, 2**31), (4192, 33, 1)]


flags = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2**32 - 1)), max_size=30)


@given(old=flags, new=flags)
def test_join(old, new):
    expected = {}
    for x, y, flag in (*old, *new):
        expected[x, y] = expected.get((x, y), 0) | flag
    joined = join_pixels(pixels(old), pixels(new))
    assert rows(joined) == [(x, y, flag) for (x, y), flag in sorted(expected.items())]


def test_join_keeps_values_and_headers():
    old, new = pixels([(2, 1, 1), (1, 1, 1), (3, 3, 1)]), pixels([(1, 1, 2), (2, 1, 2)])
    old.value[:] = [np.nan, 5.0, 7.0]
    new.value[:] = [6.0, 8.0]
    new.header["KEY"] = 1
    joined = join_pixels(old, new)
    assert joined.value.tolist() == [5.0, 8.0, 7.0] and joined.header["KEY"] == 1
    assert rows(joined) == [(1, 1, 3), (2, 1, 3), (3, 3, 1)]


def test_region():
    assert parse_region("[10:12,100:2000]") == (10, 12, 100, 2000)
    assert parse_region(" [ 10 : 12 , 100 : 2000 ] ") == (10, 12, 100, 2000)
    for wrong in ("10:12,100:2000", "[10:12,100]", "[10-12,1:2]", "[1.5:2,1:2]", "", "[1:2,1:2] x"):
        with pytest.raises(InputError, match=r"expected \[x1:x2,y1:y2\]"):
            parse_region(wrong)
    for wrong in ("[12:10,1:2]", "[1:2,2:1]"):
        with pytest.raises(InputError, match="x1 <= x2 and y1 <= y2"):
            parse_region(wrong)


def test_flag():
    assert parse_flag("256") == parse_flag("0x100") == parse_flag(256) == 256
    assert parse_flag("0xFFFFFFFF") == 2**32 - 1
    for wrong in ("0", "-1", "4294967296", "hot", "1.5", "", 0):
        with pytest.raises(InputError, match="expected a number from 1 to 4294967295"):
            parse_flag(wrong)


# --- from qualities --------------------------------------------------------------------------------


def test_from_dq(tmp_path):
    image = flat(tmp_path, 10, [(31, 20, 0x4000), (1, 1, 2**31)])
    path = badpix_from_dq(image, tmp_path / "BADPIX_TABLE-10.fits")
    table = read_badpix_table(path)
    assert list(table) == [10] and rows(table[10]) == [(33, 33, 2**31), (127, 52, 0x4000)]
    assert np.isnan(table[10].value).all()
    assert table[10].header["ESO DET CHIP NAME"] == "CCD10" and table[10].header["ESO DET OUT1 NX"] == NX
    header = fits.getheader(path, 0)
    assert header["ESO PRO CATG"] == "BADPIX_TABLE" and header["INSTRUME"] == "MUSE"
    assert header["OBJECT"] == "Bad pixel table for MUSE (BADPIX_TABLE)" and header["TELESCOP"] == "ESO-VLT-U4"
    # nothing of one IFU or of a product
    assert not {"PIPEFILE", "EXTNAME", "ESO DET CHIP NAME", "ESO INS MODE"} & {*header}


def test_from_merged_image(tmp_path):
    parts = [flat(tmp_path, 3, [(1, 1, 1)]), flat(tmp_path, 24, [(2, 1, 2)]), flat(tmp_path, 4, [])]
    image = merge_products(parts, tmp_path / "MASTER_FLAT.fits")
    table = read_badpix_table(badpix_from_dq(image, tmp_path / "b.fits"))
    assert {ifu: rows(bad) for ifu, bad in table.items()} == {3: [(33, 33, 1)], 4: [], 24: [(34, 33, 2)]}
    assert table[24].header["ESO DET CHIP NAME"] == "CCD24"


def existing(tmp_path):
    """A table of two IFUs, with something else in it."""
    pixels_3 = pixels([(127, 52, 1), (40, 40, 2)])
    pixels_3.value[:] = [4.0, 5.0]
    header = product_header("BADPIX_TABLE", cards={"ORIGIN": "here"})
    path = write_badpix_table(tmp_path / "old.fits", {3: pixels_3, 5: pixels([(50, 50, 8)])}, header=header)
    fits.append(path, np.eye(3), fits.Header([("EXTNAME", "NOTES")]))
    return path


def test_adding_to_a_table(tmp_path):
    old = existing(tmp_path)
    content = old.read_bytes()
    image = flat(tmp_path, 3, [(31, 20, 256), (32, 20, 512)])
    new = badpix_from_dq(image, tmp_path / "new.fits", table=old)
    table = read_badpix_table(new)
    assert list(table) == [3, 5]
    assert rows(table[3]) == [(40, 40, 2), (127, 52, 257), (128, 52, 512)]
    np.testing.assert_array_equal(table[3].value, [5.0, 4.0, np.nan])
    assert rows(table[5]) == [(50, 50, 8)]
    with fits.open(new) as hdus:
        assert [h.name for h in hdus[1:]] == ["CHAN03", "CHAN05", "NOTES"] and hdus[0].header["ORIGIN"] == "here"
        np.testing.assert_array_equal(hdus["NOTES"].data, np.eye(3))
    assert old.read_bytes() == content
    # another IFU, into the same file
    badpix_from_region("[1:2,1:1]", 64, 4, old, table=old, overwrite=True)
    table = read_badpix_table(old)
    assert {ifu: len(bad.x) for ifu, bad in table.items()} == {3: 2, 4: 2, 5: 1}
    assert fits.getheader(old, 0)["ORIGIN"] == "here"


def test_missing_table_is_begun(tmp_path, caplog):
    path = badpix_from_region("[1:2,1:1]", 64, 4, tmp_path / "b.fits", table=tmp_path / "none.fits")
    assert "none.fits: no such file, a new table is begun" in caplog.text and len(read_badpix_table(path)[4].x) == 2


def test_images_that_do_not_serve(tmp_path):
    image = flat(tmp_path, 3, [(1, 1, 1)])
    out = tmp_path / "b.fits"
    with pytest.raises(InputError, match="no such file"):
        badpix_from_dq(tmp_path / "none.fits", out)
    with fits.open(image) as hdus:
        hdus[:2].writeto(tmp_path / "nodq.fits")
    with pytest.raises(InputError, match=r"nodq\.fits: there is no DQ; it has CHAN03, DATA"):
        badpix_from_dq(tmp_path / "nodq.fits", out)
    with pytest.raises(InputError, match="60 x 40 pixels found, expected 64 x 40"):
        badpix_from_dq(flat(tmp_path, 4, [], **{"ESO DET OUT1 NX": 32}), out)
    fits.delval(image, "EXTNAME", 0)
    with pytest.raises(InputError, match="no EXTNAME = CHANnn"):
        badpix_from_dq(image, out)
    assert not out.exists()
    out.touch()
    with pytest.raises(OutputExistsError):
        badpix_from_dq(flat(tmp_path, 5, []), out)


# --- from lists and regions ------------------------------------------------------------------------


def test_from_ascii(tmp_path):
    listing = tmp_path / "bad.txt"
    listing.write_text("# x y flag\n10 20 256\n\n 4224\t4240 0x2000  # the last\n10 20 1\n1 1 4294967295\n")
    path = badpix_from_ascii(listing, 12, tmp_path / "b.fits")
    table = read_badpix_table(path)
    assert rows(table[12]) == [(1, 1, 2**32 - 1), (10, 20, 257), (4224, 4240, 0x2000)]
    assert table[12].header["ESO DET CHIP NAME"] == "CHAN12"
    assert fits.getheader(path, 0)["OBJECT"] == "Bad pixel table for MUSE (BADPIX_TABLE)"


def test_trimmed_positions(tmp_path):
    listing = tmp_path / "bad.txt"
    listing.write_text("1 1 256\n2049 2057 1\n")
    table = read_badpix_table(badpix_from_ascii(listing, 12, tmp_path / "b.fits", trimmed=True))
    assert rows(table[12]) == [(33, 33, 256), (2145, 2153, 1)]
    table = read_badpix_table(badpix_from_region("[2048:2049,5:5]", 4, 1, tmp_path / "r.fits", trimmed=True))
    assert rows(table[1]) == [(2080, 37, 4), (2145, 37, 4)]


def test_from_region(tmp_path):
    path = badpix_from_region("[10:12,100:2000]", 256, 12, tmp_path / "b.fits")
    bad = read_badpix_table(path)[12]
    assert len(bad.x) == 3 * 1901 and set(bad.x.tolist()) == {10, 11, 12} and set(bad.status.tolist()) == {256}
    assert bad.y.min() == 100 and bad.y.max() == 2000


def test_outside_the_ccd(tmp_path, caplog):
    listing = tmp_path / "bad.txt"
    listing.write_text("4225 1 1\n1 4241 1\n0 1 1\n5 5 1\n-1 1 1\n1 0 1\n1 9999 1\n")
    table = read_badpix_table(badpix_from_ascii(listing, 1, tmp_path / "b.fits"))
    assert rows(table[1]) == [(5, 5, 1)]
    assert "(4225,1) is outside the CCD of 4224 x 4240 pixels" in caplog.text and "1 more positions" in caplog.text
    table = read_badpix_table(badpix_from_region("[4000:99999999,4239:99999999]", 1, 1, tmp_path / "r.fits"))
    assert len(table[1].x) == 225 * 2 and "only [4000:4224,4239:4240] is on the CCD" in caplog.text
    with pytest.raises(InputError, match="no pixel on the CCD of 4096 x 4112 pixels"):
        badpix_from_region("[4097:4100,1:2]", 1, 1, tmp_path / "n.fits", trimmed=True)
    listing.write_text("4225 1 1\n")
    with pytest.raises(InputError, match="no position is on the CCD"):
        badpix_from_ascii(listing, 1, tmp_path / "n.fits")


def test_cards_of_the_reference_image(tmp_path):
    image = flat(tmp_path, 3, [])
    options = {"reference": image, "trimmed": True}
    table = read_badpix_table(badpix_from_region("[30:31,1:1]", 1, 3, tmp_path / "a.fits", **options))
    assert table[3].header["ESO DET CHIP NAME"] == "CCD3" and rows(table[3]) == [(62, 33, 1), (127, 33, 1)]
    table = read_badpix_table(badpix_from_region("[1:1,1:1]", 1, 3, tmp_path / "b.fits", **options, extension="STAT"))
    assert table[3].header["ESO DET CHIP NAME"] == "CCD3"
    with pytest.raises(InputError, match="there is no extension CHAN04; it has CHAN03, DATA, DQ, STAT"):
        badpix_from_region("[1:1,1:1]", 1, 4, tmp_path / "c.fits", **options)
    with pytest.raises(InputError, match="there is no extension OTHER"):
        badpix_from_region("[1:1,1:1]", 1, 3, tmp_path / "c.fits", **options, extension="OTHER")
    whole = merge_products([image, flat(tmp_path, 5, [])], tmp_path / "whole.fits")
    table = read_badpix_table(badpix_from_region("[1:1,1:1]", 1, 5, tmp_path / "d.fits", reference=whole))
    assert table[5].header["ESO DET CHIP NAME"] == "CCD5"
    with pytest.raises(InputError, match="another IFU found, expected IFU 5"):
        badpix_from_region("[1:1,1:1]", 1, 5, tmp_path / "c.fits", reference=whole, extension="CHAN03.DQ")
    fits.PrimaryHDU(header=fits.Header([("EXTNAME", "CHAN05")])).writeto(tmp_path / "bare.fits")
    with pytest.raises(InputError, match="no cards ESO DET CHIP"):
        badpix_from_region("[1:1,1:1]", 1, 5, tmp_path / "c.fits", reference=tmp_path / "bare.fits")


@pytest.mark.parametrize("line", ["1 2", "1 2 3 4", "1.5 2 3", "a b c", "1 2 0", "1 2 4294967296"])
def test_bad_lines(tmp_path, line):
    listing = tmp_path / "bad.txt"
    listing.write_text(f"1 2 3\n{line}\n4 5 6\n")
    with pytest.raises(InputError, match=f"bad.txt, line 2: '{line}' found, expected x, y and a flag"):
        badpix_from_ascii(listing, 1, tmp_path / "b.fits")


def test_lists_that_do_not_serve(tmp_path):
    listing = tmp_path / "bad.txt"
    with pytest.raises(InputError, match="no such file"):
        badpix_from_ascii(listing, 1, tmp_path / "b.fits")
    listing.write_text("# nothing\n\n")
    with pytest.raises(InputError, match="there are no pixels in it"):
        badpix_from_ascii(listing, 1, tmp_path / "b.fits")
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        badpix_from_ascii(listing, 1, tmp_path / "b.fits")
    with pytest.raises(InputError, match=r"IFU 25 found, expected 1\.\.24"):
        badpix_from_ascii(listing, 25, tmp_path / "b.fits")
    assert not (tmp_path / "b.fits").exists()


def test_public_names():
    assert musedask.badpix_from_dq is badpix_from_dq and musedask.badpix_from_region is badpix_from_region
    assert musedask.badpix_from_ascii is badpix_from_ascii and musedask.merge_products is merge_products
