"""Merged and split products, bad pixels and compressed files, compared with the real pipeline.

The frames have the full width of a CCD, as slices need it, but few rows: the recipes take the size of a quadrant
from the header, and are done in a second.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import filterfalse

import numpy as np
import pytest
from astropy.io import fits

from musedask.calib.badpix import badpix_from_ascii, badpix_from_dq, badpix_from_region
from musedask.instrument import N_SLICES
from musedask.io import calibrations as cal
from musedask.io.merge import merge_products, split_product
from musedask.io.muse_image import MuseImage, read_muse_image, write_muse_image
from musedask.io.pixtable import COLUMNS, scan_pixtable
from musedask.io.products import channel, product_header
from musedask.io.raw import read_raw

from ..io.test_merge import assert_sound, hdus_of
from .support import Esorex, require_esorex

pytestmark = pytest.mark.esorex

IFUS = (1, 12)
SCAN, NX, NY = 32, 2048, 64
HEADER = {
    "INSTRUME": "MUSE", "OBJECT": "TEST", "RA": 10.0, "DEC": -20.0, "EQUINOX": 2000.0, "EXPTIME": 1.0,
    "MJD-OBS": 58430.9, "LST": 1000.0, "DATE-OBS": "2018-11-08T21:36:00.000", "ESO INS MODE": "WFM-NOAO-N",
    "ESO DET BINX": 1, "ESO DET BINY": 1, "ESO DET READ CURID": 1, "ESO DET READ CURNAME": "SCI1.0",
    "ESO DET CHIPS": 24, "ESO DET OUTPUTS": 96, "ESO DET2 CHIP1 NX": 1024, "ESO INS DROT MODE": "STAT",
    "ESO INS DROT POSANG": 0.0,
}  # fmt: skip


def ccd_header(ifu, ny):
    header = fits.Header()
    header["EXTNAME"] = (channel(ifu), "FITS extension name")
    header["HIERARCH ESO DET CHIP NAME"] = f"CCD-{ifu}"
    header["HIERARCH ESO DET CHIP ID"] = f"ID-{ifu}"
    header["HIERARCH ESO DET CHIP LIVE"] = True
    for n, (x, y) in enumerate(((1, 1), (4096, 1), (4096, 4112), (1, 4112)), 1):
        for key, value in {
            "X": x, "Y": y, "NX": NX, "NY": ny, "PRSCX": SCAN, "PRSCY": SCAN, "OVSCX": SCAN, "OVSCY": SCAN,
            "GAIN": 1.1 + 0.01 * ifu, "RON": 2.9,
        }.items():  # fmt: skip
            header[f"HIERARCH ESO DET OUT{n} {key}"] = value
    return header


def lit(ny):
    """Light of the slices on the trimmed image."""
    x = np.arange(2 * NX)
    light = np.zeros(2 * NX, np.float32)
    for number in range(N_SLICES):
        left = 30 + 84 * number
        light[(x >= left) & (x < left + 77)] = 1.0 + 0.1 * number / N_SLICES
    return np.tile(light, (2 * ny, 1))


def raw(path, seed, counts=0.0, ny=NY, ifus=IFUS):
    """A raw exposure."""
    rng = np.random.default_rng(seed)
    hdus = [fits.PrimaryHDU()]
    for key, value in HEADER.items():
        hdus[0].header[f"HIERARCH {key}" if " " in key else key] = value
    hdus[0].header["DATE-OBS"] = f"2018-11-08T21:36:{seed % 60:02d}.000"
    for ifu in ifus:
        image = rng.normal(1000 + ifu, 3, (2 * ny + 4 * SCAN, 2 * NX + 4 * SCAN)).astype(np.float32)
        light = rng.poisson(counts * lit(ny)) if counts else np.zeros((2 * ny, 2 * NX), np.int64)
        for rows, source in ((slice(SCAN, SCAN + ny), slice(ny)), (slice(-SCAN - ny, -SCAN), slice(ny, None))):
            image[rows, SCAN : SCAN + NX] += light[source, :NX]
            image[rows, -SCAN - NX : -SCAN] += light[source, NX:]
        hdus.append(fits.ImageHDU(np.round(image).astype(np.uint16), ccd_header(ifu, ny)))
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.fixture(scope="module")
def esorex(tmp_path_factory):
    """Runner of recipes that gives products their sums.

    Status 255: a recipe for all IFUs does not like that some are missing, but it merges those that are there.
    """
    require_esorex()
    return Esorex(tmp_path_factory.mktemp("esorex"), datamd5=True, codes=(0, 255))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Raw exposures by tag."""
    folder = tmp_path_factory.mktemp("raw")
    counts = {"BIAS": 0.0, "FLAT": 20000.0}
    return {
        tag: [(raw(folder / f"{tag}{i}.fits", 3 * n + i, counts[tag]), tag) for i in range(3)]
        for n, tag in enumerate(counts)
    } | {"OBJECT": [(raw(folder / "OBJECT.fits", 40, 1000.0), "OBJECT")]}


def of_ifus(folder, tag):
    return [folder / f"{tag}-{ifu:02d}.fits" for ifu in IFUS]


@pytest.fixture(scope="module")
def bias(esorex, frames):
    """Folders of the master biases, apart and merged."""
    return [esorex("muse_bias", frames["BIAS"], nifu=-1, merge=merge) for merge in ("false", "true")]


@pytest.fixture(scope="module")
def flat(esorex, frames, bias):
    """Folders of the products of muse_flat, apart and merged."""
    inputs = [*frames["FLAT"], *((p, "MASTER_BIAS") for p in of_ifus(bias[0], "MASTER_BIAS"))]
    options = {"nifu": -1, "samples": "true", "nsum": 2, "order": 1}
    return [esorex("muse_flat", inputs, **options, merge=merge) for merge in ("false", "true")]


# --- merged and split as by the reference ----------------------------------------------------------

#: cards that say when and how a file was written; the sums of the runner are left out
_OF_FILE = re.compile(r"^(CHECKSUM|DATASUM|DATE   |EXTEND)|^HIERARCH ESO PRO REC1 PARAM\d+ VALUE = '(true|false)")
#: those whose comments depend on the library
_STRUCTURE = re.compile(r"^(SIMPLE|XTENSION|BITPIX|NAXIS|PCOUNT|GCOUNT)")
#: known differences of single files: the file of a table has BITPIX = 16 in its empty primary HDU
_EMPTY = "BITPIX  =                   16"


def cards(hdu):
    found = Counter()
    for card in filterfalse(_OF_FILE.match, hdu[0]):
        text = card.partition("/")[0].rstrip() if _STRUCTURE.match(card) else card.rstrip()
        found["BITPIX  =                    8" if text == _EMPTY and not hdu[1] else text] += 1
    return found


def assert_as_reference(path, reference, lost=""):
    """Same HDUs in the same order, same cards in any order, same data; `lost` matches cards that differ."""
    ours, theirs = hdus_of(path), hdus_of(reference)
    assert len(ours) == len(theirs)
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for difference in (cards(mine) - cards(other), cards(other) - cards(mine)):
            left = [c for c in difference.elements() if not (lost and re.match(lost, c))]
            assert left == [], f"HDU {number}"
        assert mine[1] == other[1], f"data of HDU {number}"


TAGS = pytest.mark.parametrize("tag", ["MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE", "TRACE_SAMPLES"])


@TAGS
def test_merge(bias, flat, tmp_path, tag):
    apart, together = bias if tag == "MASTER_BIAS" else flat
    path = merge_products(reversed(of_ifus(apart, tag)), tmp_path / f"{tag}.fits")
    # all cards, also DATAMD5, which the reference takes from the data
    assert_as_reference(path, together / f"{tag}.fits")
    assert_sound(path)


@TAGS
def test_split(bias, flat, tmp_path, tag):
    apart, together = bias if tag == "MASTER_BIAS" else flat
    found = split_product(together / f"{tag}.fits", tmp_path)
    for path, reference in zip(found, of_ifus(apart, tag), strict=True):
        # the file of another IFU than the first claims the calibrations of the first
        lost = "" if path.name.endswith("-01.fits") else r"HIERARCH ESO PRO REC1 CAL\d+ (NAME|DATAMD5)"
        assert_as_reference(path, reference, lost)
        assert_sound(path)


# --- accepted as calibrations ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    """Files of WAVECAL_TABLE and a GEOMETRY_TABLE."""
    folder = tmp_path_factory.mktemp("solution")
    coefficients = np.zeros((N_SLICES, 3, 7))
    coefficients[:, 0, 0], coefficients[:, 0, 1] = 5000 + np.arange(N_SLICES), 1.25
    paths = [
        cal.write_wavecal_table(
            folder / f"WAVECAL_TABLE-{ifu:02d}.fits",
            cal.WavecalTable(coefficients, np.ones(N_SLICES)),
            header=product_header("WAVECAL_TABLE", ifu=ifu, cards={k: v for k, v in HEADER.items() if "ESO" in k}),
        )
        for ifu in IFUS
    ]
    slices = np.arange(1, N_SLICES + 1)
    table = cal.GeometryTable(
        np.repeat(IFUS, N_SLICES), np.tile(slices, 2), np.tile(slices, 2), np.zeros(2 * N_SLICES),
        np.repeat([-6.0, 6.0], N_SLICES), np.zeros(2 * N_SLICES), np.full(2 * N_SLICES, 75.0),
    )  # fmt: skip
    geometry = cal.write_geometry_table(folder / "g.fits", table, header=product_header("GEOMETRY_TABLE"))
    return paths, geometry


def test_merged_calibrations_are_taken(esorex, frames, bias, flat, solution, tmp_path):
    """Images and tables in files of ours give the same pixel table as those of single IFUs."""
    wavecal, geometry = solution
    apart = {
        "MASTER_BIAS": of_ifus(bias[0], "MASTER_BIAS"), "MASTER_FLAT": of_ifus(flat[0], "MASTER_FLAT"),
        "TRACE_TABLE": of_ifus(flat[0], "TRACE_TABLE"), "WAVECAL_TABLE": wavecal,
    }  # fmt: skip
    together = {tag: [merge_products(paths, tmp_path / f"{tag}.fits")] for tag, paths in apart.items()}
    # and taken apart again
    (tmp_path / "parts").mkdir()
    again = {tag: split_product(paths[0], tmp_path / "parts") for tag, paths in together.items()}
    tables = []
    for files in (apart, together, again):
        inputs = [*frames["OBJECT"], *((p, tag) for tag, paths in files.items() for p in paths)]
        folder = esorex(
            "muse_scibasic", [*inputs, (geometry, "GEOMETRY_TABLE")], nifu=12, skylines="none", crop="false"
        )
        assert "ERROR" not in (folder / "stdout").read_text()
        table = scan_pixtable(folder / "PIXTABLE_OBJECT_0001-12.fits")
        tables.append({name: table.read(name) for name in COLUMNS})
    assert len(tables[0]["data"]) > 100_000
    for other in tables[1:]:
        for name, values in tables[0].items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


# --- bad pixels ------------------------------------------------------------------------------------


def quality(folder, ifu, tag="MASTER_BIAS"):
    return fits.getdata(folder / f"{tag}-{ifu:02d}.fits", "DQ").astype(np.uint32)


def test_bad_pixels_of_a_master(esorex, frames, bias, flat, tmp_path):
    """Flags of the flat get into the bias at the same pixels."""
    whole = merge_products(of_ifus(flat[0], "MASTER_FLAT"), tmp_path / "MASTER_FLAT.fits")
    table = badpix_from_dq(whole, tmp_path / "b.fits")
    for ifu in IFUS:
        folder = esorex("muse_bias", [*frames["BIAS"], (table, "BADPIX_TABLE")], nifu=ifu)
        assert "outside the CCD" not in (folder / "stdout").read_text()
        flags = quality(flat[0], ifu, "MASTER_FLAT")
        assert np.count_nonzero(flags) > 10_000
        found = quality(folder, ifu)
        np.testing.assert_array_equal(found & flags, flags)
        # columns of the bias itself may come or go
        assert set(np.unique(found[flags == 0])) <= {0, 0x2000}


def test_bad_pixels_of_lists_and_regions(esorex, frames, tmp_path):
    """Raw and trimmed positions on both sides of the middle, several flags of a pixel, the highest bit."""
    reference = frames["BIAS"][0][0]
    listing = tmp_path / "bad.txt"
    listing.write_text(f"1 1 1\n2048 {NY} 2\n2049 {NY + 1} 4\n4096 {2 * NY} 0x80000000\n2049 {NY + 1} 8\n")
    table = badpix_from_ascii(listing, 12, tmp_path / "a.fits", trimmed=True, reference=reference)
    # over the middle of the raw image: the scans are no pixels of the result
    table = badpix_from_region("[2079:2146,40:41]", 256, 12, tmp_path / "b.fits", table=table, reference=reference)
    expected = np.zeros((2 * NY, 2 * NX), np.uint32)
    for x, y, flag in ((1, 1, 1), (2048, NY, 2), (2049, NY + 1, 12), (4096, 2 * NY, 0x80000000)):
        expected[y - 1, x - 1] = flag
    expected[7:9, 2046:2050] |= 256
    folder = esorex("muse_bias", [*frames["BIAS"], (table, "BADPIX_TABLE")], nifu=12)
    found = quality(folder, 12)
    np.testing.assert_array_equal(found[expected > 0], expected[expected > 0])
    assert set(np.unique(found[expected == 0])) <= {0, 0x2000}
    # a table of another IFU, and one without pixels, change nothing
    none = cal.BadPixels(*np.zeros((4, 0), np.int32))
    empty = cal.write_badpix_table(tmp_path / "e.fits", dict.fromkeys(IFUS, none))
    before, after = (
        esorex("muse_bias", [*frames["BIAS"], *more], nifu=1)
        for more in ([], [(table, "BADPIX_TABLE"), (empty, "BADPIX_TABLE")])
    )
    np.testing.assert_array_equal(quality(before, 1), quality(after, 1))


@pytest.mark.slow
def test_bad_pixels_of_a_whole_ccd(esorex, tmp_path):
    """The standard layout, from which positions are converted without a reference image."""
    biases = [(raw(tmp_path / f"{i}.fits", i, ny=2056, ifus=(1,)), "BIAS") for i in range(3)]
    listing = tmp_path / "bad.txt"
    points = [(1, 1), (2048, 2056), (2049, 2057), (4096, 4112), (1, 4112), (4096, 1), (2049, 2056), (2048, 2057)]
    listing.write_text("".join(f"{x} {y} {1 << n}\n" for n, (x, y) in enumerate(points)))
    table = badpix_from_ascii(listing, 1, tmp_path / "b.fits", trimmed=True)
    found = quality(esorex("muse_bias", [*biases, (table, "BADPIX_TABLE")], nifu=1), 1)
    for n, (x, y) in enumerate(points):
        assert found[y - 1, x - 1] == 1 << n
    assert np.count_nonzero(found & ~np.uint32(0x2000)) == len(points)


# --- compressed ------------------------------------------------------------------------------------


def compress(path, output, *, exact=True):
    """What fpack does: images are compressed, tables are copied."""
    floats = {"compression_type": "GZIP_2", "quantize_level": 0} if exact else {}
    with fits.open(path) as hdus:
        out = [fits.PrimaryHDU(header=hdus[0].header)]
        for hdu in hdus[1:]:
            if isinstance(hdu, fits.BinTableHDU) or hdu.data is None:
                out.append(hdu.copy())
            else:
                kind = floats if hdu.data.dtype.kind == "f" else {}
                out.append(fits.CompImageHDU(hdu.data, hdu.header, **kind))
        fits.HDUList(out).writeto(output)
    return output


def test_compressed_files(esorex, frames, bias, flat, tmp_path):
    """The reference reads compressed raw frames, masters and tables, merged or not, with the values that we read."""
    packed = [(compress(p, tmp_path / f"{p.name}.fz"), tag) for p, tag in frames["BIAS"]]
    header, image = read_raw(packed[0][0], 12)
    plain_header, plain = read_raw(frames["BIAS"][0][0], 12)
    np.testing.assert_array_equal(image, plain)
    assert header["ESO DET OUT1 GAIN"] == plain_header["ESO DET OUT1 GAIN"]
    folder = esorex("muse_bias", packed, nifu=12)
    one, other = (read_muse_image(f / "MASTER_BIAS-12.fits") for f in (folder, bias[0]))
    np.testing.assert_array_equal(one.data, other.data)

    single = compress(bias[0] / "MASTER_BIAS-12.fits", tmp_path / "single.fits.fz")
    merged = compress(bias[1] / "MASTER_BIAS.fits", tmp_path / "merged.fits.fz")
    lossy = compress(bias[1] / "MASTER_BIAS.fits", tmp_path / "lossy.fits.fz", exact=False)
    # the lossy values as we read them, in a plain file
    read = read_muse_image(lossy, ifu=12)
    assert not np.array_equal(read.data, other.data)
    unpacked = write_muse_image(
        tmp_path / "unpacked.fits", MuseImage(read.data, read.dq, read.stat, read.unit), header=read.header
    )
    for path in (single, merged):
        again = read_muse_image(path, ifu=12)
        for name in ("data", "dq", "stat"):
            np.testing.assert_array_equal(getattr(again, name), getattr(other, name))
        assert again.header["ESO QC BIAS MASTER1 MEAN"] == other.header["ESO QC BIAS MASTER1 MEAN"]
    found = []
    for path in (lossy, unpacked):
        out = esorex("muse_flat", [*frames["FLAT"], (path, "MASTER_BIAS")], nifu=12, trace="false")
        found.append(read_muse_image(out / "MASTER_FLAT-12.fits"))
    for name in ("data", "dq", "stat"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    # that of the exact bias is another one
    assert not np.array_equal(found[0].data, read_muse_image(flat[0] / "MASTER_FLAT-12.fits").data)


def test_compressed_table(esorex, frames, bias, flat, solution, tmp_path):
    """TRACE_TABLE in a file of fpack: the table itself is as it was."""
    wavecal, geometry = solution
    packed = compress(flat[1] / "TRACE_TABLE.fits", tmp_path / "TRACE_TABLE.fits.fz")
    for ifu in IFUS:
        one = cal.read_trace_table(packed, ifu=ifu)
        other = cal.read_trace_table(flat[0] / f"TRACE_TABLE-{ifu:02d}.fits")
        np.testing.assert_array_equal(one.left, other.left)
        assert one.header["ESO QC TRACE SLICE_L XPOS"] == other.header["ESO QC TRACE SLICE_L XPOS"]
    inputs = [
        *frames["OBJECT"], (of_ifus(bias[0], "MASTER_BIAS")[1], "MASTER_BIAS"),
        (of_ifus(flat[0], "MASTER_FLAT")[1], "MASTER_FLAT"), (packed, "TRACE_TABLE"), (wavecal[1], "WAVECAL_TABLE"),
        (geometry, "GEOMETRY_TABLE"),
    ]  # fmt: skip
    folder = esorex("muse_scibasic", inputs, nifu=12, skylines="none", crop="false")
    assert len(scan_pixtable(folder / "PIXTABLE_OBJECT_0001-12.fits").read("data")) > 100_000
