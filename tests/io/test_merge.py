"""Merging products of IFUs and splitting them: data byte by byte, every card, and what cannot be merged."""

from __future__ import annotations

import re
from collections import Counter
from itertools import filterfalse

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError, PlanError
from musedask.io import calibrations as cal
from musedask.io import merge
from musedask.io.cards import header_bytes
from musedask.io.checksum import MD5_PERIOD, datamd5
from musedask.io.merge import merge_products, product_groups, split_product
from musedask.io.muse_image import MuseImage, read_muse_image, read_wave_map, write_muse_image, write_wave_map
from musedask.io.products import channel, product_header

RNG = np.random.default_rng(11)
#: cards that say when and how a file was written
_OF_FILE = re.compile(r"^(CHECKSUM|DATASUM|DATE   |DATAMD5)")
#: cards about the structure, of which comments do not matter
_STRUCTURE = re.compile(r"^(SIMPLE|XTENSION|BITPIX|NAXIS|EXTEND|PCOUNT|GCOUNT|EXTNAME)")


def header(tag, ifu, **cards):
    cards = {
        "DATE": ("2026-01-01T00:00:00", "file creation date (YYYY-MM-DDThh:mm:ss UT)"),
        "PIPEFILE": (f"{tag}-{ifu:02d}.fits", "Filename of data product"),
        "DATAMD5": ("0" * 32, "MD5 checksum"), "DATE-OBS": "2018-11-08T21:19:29.431",
        "ESO DET CHIPS": 24, "ESO DET OUTPUTS": 96, "ESO DET CHIP NAME": f"CCD{ifu}", "ESO DET OUT1 GAIN": 1.0 + ifu,
        "ESO QC BIAS LEVEL1 MEAN": (1000.1 + ifu, "[adu] a level"), "ESO DRS MUSE OVSC1 MEAN": 1001.5,
        "ESO DET2 CHIP1 NX": 1024, "ESO TEL LONG": ("a" * 90, "a value of more than one card"), **cards,
    }  # fmt: skip
    made = product_header(tag, cards={k: v for k, v in cards.items() if k != "DATE"})
    made["DATE"] = cards["DATE"]
    made["EXTNAME"] = (channel(ifu), "FITS extension name")
    return made


def image_file(folder, ifu, tag="MASTER_BIAS", shape=(40, 50), **cards):
    image = MuseImage(
        RNG.normal(size=shape).astype(np.float32), RNG.integers(0, 3, shape, np.int32),
        RNG.uniform(size=shape).astype(np.float32), "adu",
    )  # fmt: skip
    path = write_muse_image(folder / f"{tag}-{ifu:02d}.fits", image, header=header(tag, ifu, **cards))
    return commented(path)


def commented(path):
    """With the comments that the reference gives to its extensions, and checksums."""
    with fits.open(path, mode="update", checksum=True) as hdus:
        for hdu in hdus[1:]:
            if hdu.name in ("DATA", "DQ", "STAT"):
                hdu.header.comments["EXTNAME"] = merge._MEANING[hdu.name]
    with fits.open(path) as hdus:
        hdus.writeto(path.with_suffix(".new"), checksum=True)
    return path.with_suffix(".new").replace(path)


def trace_file(folder, ifu, tag="TRACE_TABLE", name=None):
    table = cal.trace_hdu(cal.TraceTable(*RNG.normal(size=(3, 48, 3)), RNG.uniform(size=48), RNG.uniform(size=(48, 3))))
    path = folder / f"{tag}-{ifu:02d}.fits"
    fits.HDUList([fits.PrimaryHDU(header=header(tag, ifu)), table]).writeto(path, checksum=True)
    return path


def lsf_file(folder, ifu):
    path = folder / f"LSF_PROFILE-{ifu:02d}.fits"
    profile = cal.LsfProfile(RNG.uniform(size=(48, 3, 4)).astype(np.float32))
    cal.write_lsf_profile(path, profile, header=header("LSF_PROFILE", ifu))
    return path


def map_file(folder, ifu):
    wave = RNG.uniform(4700, 9300, (30, 20)).astype(np.float32)
    path = folder / f"WAVE_MAP_0001-{ifu:02d}.fits"
    write_wave_map(path, wave, header=header("WAVE_MAP", ifu, PIPEFILE=(path.name, "Filename of data product")))
    fits.setval(path, "EXTEND", value=True, after="NAXIS2")
    fits.setval(path, "CRVAL1", value=1.5)
    fits.setval(path, "CD1_1", value=1.0)
    return path


KINDS = pytest.mark.parametrize("make", [image_file, trace_file, lsf_file, map_file])


def hdus_of(path):
    """Cards and data unit of each HDU, as bytes."""
    found = []
    with open(path, "rb") as file, fits.open(path, disable_image_compression=True) as hdus:
        for hdu in hdus:
            place = hdu.fileinfo()
            file.seek(place["hdrLoc"])
            head = file.read(place["datLoc"] - place["hdrLoc"]).decode()
            cards = [head[i : i + 80] for i in range(0, len(head), 80)]
            end = cards.index(f"{'END':80}")
            found.append(([c for c in cards[:end] if c.strip()], file.read(place["datSpan"])))
    return found


def plain(card):
    return card.partition("/")[0].rstrip() if _STRUCTURE.match(card) else card


def assert_same(a, b):
    """Same HDUs: data byte by byte, cards in any order."""
    a, b = hdus_of(a), hdus_of(b)
    assert len(a) == len(b)
    for number, ((cards, data), (others, values)) in enumerate(zip(a, b, strict=True)):
        found, expected = (Counter(map(plain, filterfalse(_OF_FILE.match, c))) for c in (cards, others))
        assert sorted((found - expected).elements()) == sorted((expected - found).elements()) == [], f"HDU {number}"
        assert data == values


def assert_sound(path):
    """Checksums of all HDUs and the sum of the data are right."""
    with fits.open(path, checksum=True) as hdus:
        hdus.verify("exception")
        assert all("CHECKSUM" in h.header and "DATASUM" in h.header for h in hdus)
        found = hdus[0].header["DATAMD5"]
    units = [data for _, data in hdus_of(path) if data]
    assert found == datamd5((d[:MD5_PERIOD], len(d)) for d in units)


@KINDS
def test_there_and_back(tmp_path, make):
    paths = [make(tmp_path, ifu) for ifu in (12, 3, 24)]
    stem = paths[0].name[:-8]
    whole = merge_products(paths, tmp_path / f"{stem}.fits")
    assert_sound(whole)
    before = {p: p.with_suffix(".old") for p in paths}
    for path, old in before.items():
        path.rename(old)
    parts = split_product(whole)
    assert parts == sorted(paths)
    for part in parts:
        assert_sound(part)
        assert_same(part, before[part])
    again = merge_products(parts, tmp_path / "again.fits")
    fits.setval(again, "PIPEFILE", value=whole.name)
    assert_same(again, whole)


def test_images(tmp_path):
    paths = [image_file(tmp_path, ifu) for ifu in (12, 3)]
    whole = merge_products(paths, tmp_path / "MASTER_BIAS.fits")
    with fits.open(whole) as hdus:
        expected = [f"CHAN{i:02d}.{n}" for i in (3, 12) for n in ("DATA", "DQ", "STAT")]
        assert [h.name for h in hdus[1:]] == expected
        primary = hdus[0].header
        assert primary["PIPEFILE"] == "MASTER_BIAS.fits" and primary["DATE"] > "2026-01-01T00:00:00"
        assert primary["ESO DET CHIPS"] == 24 and primary["ESO DET OUTPUTS"] == 96 and primary["ESO DET2 CHIP1 NX"]
        assert primary["ESO TEL LONG"] == "a" * 90
        moved = ("ESO DET CHIP NAME", "ESO DET OUT1 GAIN", "ESO QC BIAS LEVEL1 MEAN", "ESO DRS MUSE OVSC1 MEAN")
        assert not any(k in primary for k in (*moved, "EXTNAME"))
        for ifu in (3, 12):
            for name in ("DATA", "DQ", "STAT"):
                h = hdus[f"CHAN{ifu:02d}.{name}"].header
                assert h["ESO DET CHIP NAME"] == f"CCD{ifu}" and h["ESO QC BIAS LEVEL1 MEAN"] == 1000.1 + ifu
                assert "ESO DET CHIPS" not in h
        assert hdus["CHAN12.DATA"].header["QUALDATA"] == "CHAN12.DQ"
        assert hdus["CHAN12.DQ"].header["ERRDATA"] == "CHAN12.STAT"
    for path, ifu in zip(paths, (12, 3), strict=True):
        one, back = read_muse_image(path), read_muse_image(whole, ifu=ifu)
        np.testing.assert_array_equal(one.data, back.data)
        np.testing.assert_array_equal(one.dq, back.dq)
        assert back.header["ESO DET CHIP NAME"] == f"CCD{ifu}"


def test_cards_keep_every_character(tmp_path):
    """Numbers in forms that astropy would change."""
    paths = []
    for ifu in (1, 2):
        made = header("MASTER_BIAS", ifu)
        content = header_bytes(fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), *made.cards]))
        odd = f"{'HIERARCH ESO TEL ALT =     90. / [deg] Alt angle at start':80}".encode()
        end = content.index(f"{'END':80}".encode())
        content = content[:end] + odd + content[end : end + 80]
        content = content.ljust(-(-len(content) // 2880) * 2880)
        path = tmp_path / f"X-{ifu:02d}.fits"
        extension = fits.ImageHDU(np.ones((3, 3), np.int16), name="DATA")
        extension.writeto(tmp_path / "part.fits", overwrite=True)
        part = (tmp_path / "part.fits").read_bytes()
        path.write_bytes(content + part[part.index(b"XTENSION") :])
        paths.append(path)
    whole = merge_products(paths, tmp_path / "X.fits")
    assert odd.decode() in hdus_of(whole)[0][0]
    assert odd.decode() in hdus_of(split_product(whole, overwrite=True)[1])[0][0]


def test_cards_of_an_image_go_with_it(tmp_path):
    whole = merge_products([map_file(tmp_path, 1), map_file(tmp_path, 2)], tmp_path / "WAVE_MAP_0001.fits")
    with fits.open(whole) as hdus:
        assert [h.name for h in hdus[1:]] == ["CHAN01", "CHAN02"] and hdus[0].header["NAXIS"] == 0
        assert not any(k in hdus[0].header for k in ("CRVAL1", "CD1_1", "BUNIT"))
        assert all(h.header["CRVAL1"] == 1.5 and h.header["BUNIT"] == "Angstrom" for h in hdus[1:])
    one, two = split_product(whole, overwrite=True)
    assert fits.getheader(two, 0)["CRVAL1"] == 1.5 and fits.getheader(one, 0)["NAXIS1"] == 20
    assert read_wave_map(one).shape == (30, 20)


def test_world_coordinates_of_images_with_extensions(tmp_path):
    """Those of the primary header go into the extensions, whose own win."""
    paths = []
    for ifu in (1, 2):
        path = image_file(tmp_path, ifu, CRVAL1=3.0, WCSAXES=2)
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["CRVAL1"], hdus[0].header["WCSAXES"] = 3.0, 2
            hdus["DQ"].header["CRVAL1"] = 4.0
            for hdu in hdus:
                for key in ("CHECKSUM", "DATASUM"):
                    hdu.header.remove(key, ignore_missing=True)
        paths.append(path)
    with fits.open(merge_products(paths, tmp_path / "m.fits")) as hdus:
        assert "CRVAL1" not in hdus[0].header and "WCSAXES" not in hdus[0].header
        assert [h.header["CRVAL1"] for h in hdus[1:4]] == [3.0, 4.0, 3.0]
        assert len(list(hdus[2].header["CRVAL1*"])) == 1


def test_what_is_lost(tmp_path):
    """The primary header is that of the first IFU: what is different elsewhere is gone, as in the reference."""
    paths = [image_file(tmp_path, i, **{"ESO PRO REC1 CAL1 NAME": f"MASTER_BIAS-{i:02d}.fits"}) for i in (5, 4)]
    for part in split_product(merge_products(paths, tmp_path / "MASTER_BIAS.fits"), overwrite=True):
        assert fits.getheader(part)["ESO PRO REC1 CAL1 NAME"] == "MASTER_BIAS-04.fits"


def compressed(hdu):
    return fits.CompImageHDU(hdu.data, hdu.header, compression_type="GZIP_2", quantize_level=0)


@pytest.mark.parametrize("make", [image_file, map_file])
def test_compressed(tmp_path, make):
    """Files of fpack: an image of the primary HDU has become an extension."""
    plain, packed = [], []
    for ifu in (7, 8):
        path = make(tmp_path, ifu)
        with fits.open(path) as hdus:
            out = [fits.PrimaryHDU(header=hdus[0].header) if hdus[0].data is None else fits.PrimaryHDU()]
            out += [compressed(hdu) for hdu in hdus if hdu.data is not None]
            packed.append(path.with_name(f"{path.name}.fz"))
            fits.HDUList(out).writeto(packed[-1], checksum=True)
        plain.append(path)
    whole = merge_products(plain, tmp_path / "a.fits")
    from_packed = merge_products(packed, tmp_path / "b.fits")
    assert_sound(from_packed)
    for (_, data), (_, others) in zip(hdus_of(whole), hdus_of(from_packed), strict=True):
        assert data == others
    with fits.open(whole) as a, fits.open(from_packed) as b:
        assert [h.name for h in a] == [h.name for h in b]
        for one, two in zip(a, b, strict=True):
            assert {*one.header} - {"PCOUNT"} <= {*two.header}
            ours = {k: v for k, v in two.header.items() if k not in ("PIPEFILE", "CHECKSUM", "DATE")}
            assert ours.items() <= dict(one.header).items() or make is map_file
    # and the whole, compressed
    with fits.open(whole) as hdus:
        out = [
            fits.PrimaryHDU(header=hdus[0].header),
            *map(compressed, hdus[1:]),
        ]
        fits.HDUList(out).writeto(tmp_path / "c.fits.fz")
    parts = split_product(tmp_path / "c.fits.fz")
    assert [p.name for p in parts] == ["c-07.fits", "c-08.fits"]
    for part, path in zip(parts, plain, strict=True):
        assert [d for _, d in hdus_of(part)] == [d for _, d in hdus_of(path)]


def test_compressed_table(tmp_path):
    path, other = trace_file(tmp_path, 1), trace_file(tmp_path, 2)
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["ZTABLE"] = True
    with pytest.raises(InputError, match=r"compressed tables found.*funpack"):
        merge_products([path, other], tmp_path / "m.fits")


def test_long_names(tmp_path):
    """They do not fit into one card."""
    paths = [trace_file(tmp_path, i) for i in (1, 2)]
    whole = merge_products(paths, tmp_path / f"{'a' * 80}.fits")
    assert fits.getheader(whole)["PIPEFILE"] == whole.name
    assert_sound(whole)
    assert fits.getheader(split_product(whole)[1])["PIPEFILE"] == f"{'a' * 80}-02.fits"


def test_deleting(tmp_path):
    paths = [trace_file(tmp_path, i) for i in (1, 2)]
    whole = merge_products(paths, tmp_path / "TRACE_TABLE.fits", delete=True)
    assert [p.name for p in tmp_path.iterdir()] == ["TRACE_TABLE.fits"]
    assert split_product(whole, delete=True) == paths
    assert sorted(tmp_path.iterdir()) == paths


def test_groups():
    names = ["MASTER_BIAS-01.fits", "d/ARC_RED_0001-24.fits.fz", "MASTER_BIAS-02.fits", "X-25.fits", "TRACE_TABLE.fits"]
    groups = product_groups(names)
    assert {k: [str(p) for p in v] for k, v in groups.items()} == {
        "MASTER_BIAS": [names[0], names[2]], "ARC_RED_0001": [names[1]], "X-25": [names[3]], "TRACE_TABLE": [names[4]],
    }  # fmt: skip


# --- what cannot be done ---------------------------------------------------------------------------


def refused(paths, tmp_path, match):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=match):
        merge_products(paths, tmp_path / "out.fits")
    assert sorted(tmp_path.iterdir()) == before


def test_refused_to_merge(tmp_path):
    one, two = image_file(tmp_path, 1), image_file(tmp_path, 2)
    refused([], tmp_path, "none found, expected at least two")
    refused([one], tmp_path, "MASTER_BIAS-01.fits found, expected at least two")
    refused([one, tmp_path / "missing.fits"], tmp_path, "missing.fits: no such file")
    refused([one, trace_file(tmp_path, 2)], tmp_path, "a TRACE_TABLE found, expected a MASTER_BIAS as")
    again = two.rename(tmp_path / "again.fits")
    refused([one, again, image_file(tmp_path, 2)], tmp_path, "IFU 2 found, which is that of .*again.fits, too")
    whole = merge_products([one, again], tmp_path / "whole.fits")
    refused([one, whole], tmp_path, "extension CHAN01.DATA found; it is of several IFUs already")
    refused([one, image_file(tmp_path, 3, "PIXTABLE_OBJECT")], tmp_path, "pixel tables are never merged")
    for key, match in (("ESO PRO CATG", "no ESO PRO CATG"), ("EXTNAME", "no EXTNAME found.*expected CHAN01..CHAN24")):
        path = image_file(tmp_path, 4)
        fits.delval(path, key, 0)
        refused([one, path], tmp_path, match)
        path.unlink()
    path = image_file(tmp_path, 5)
    with fits.open(path) as hdus:
        hdus[:3].writeto(tmp_path / "less.fits")
    refused([one, tmp_path / "less.fits"], tmp_path, r"extensions DATA \(IMAGE\), DQ \(IMAGE\) found, expected DATA")
    fits.PrimaryHDU(header=header("MASTER_BIAS", 6)).writeto(tmp_path / "empty.fits")
    refused([one, tmp_path / "empty.fits"], tmp_path, "no data in it")


def test_output_is_not_lost(tmp_path):
    one, two = trace_file(tmp_path, 1), trace_file(tmp_path, 2)
    content = one.read_bytes()
    with pytest.raises(InputError, match="is one of the files to merge"):
        merge_products([one, two], one, overwrite=True)
    with pytest.raises(OutputExistsError):
        merge_products([one, two], two)
    assert one.read_bytes() == content
    whole = merge_products([one, two], tmp_path / "TRACE_TABLE.fits")
    two.unlink()
    with pytest.raises(OutputExistsError, match=r"TRACE_TABLE-01\.fits: exists already"):
        split_product(whole)
    assert not two.exists() and one.read_bytes() == content


def test_damaged(tmp_path):
    one, two = image_file(tmp_path, 1), image_file(tmp_path, 2)
    content = bytearray(two.read_bytes())
    truncated = tmp_path / "t.fits"
    truncated.write_bytes(content[:-2880])
    refused([one, truncated], tmp_path, "t.fits: is truncated, .* expected up to STAT")
    truncated.write_bytes(content[:2000])
    refused([one, truncated], tmp_path, "t.fits: is truncated or damaged, a header without END found")
    truncated.write_bytes(b"XTENSION" + content[8:])
    refused([one, truncated], tmp_path, "cannot be read as FITS")
    truncated.unlink()
    content[-2880] ^= 1
    two.write_bytes(content)
    refused([one, two], tmp_path, "MASTER_BIAS-02.fits: data of STAT are damaged.*DATASUM says")


def test_refused_to_split(tmp_path):
    one, two = image_file(tmp_path, 1), image_file(tmp_path, 2)
    with pytest.raises(InputError, match="nothing to split; it is of IFU 1 alone"):
        split_product(one)
    whole = merge_products([one, two], tmp_path / "whole.fits")
    fits.append(whole, np.zeros((2, 2)), fits.Header([("EXTNAME", "OTHER")]))
    with pytest.raises(InputError, match="extensions OTHER found"):
        split_product(whole, tmp_path)
    fits.delval(whole, "ESO PRO CATG", 0)
    with pytest.raises(InputError, match="not a product"):
        split_product(whole)
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        split_product(merge_products([one, two], whole, overwrite=True), tmp_path / "nowhere")
    assert not (tmp_path / "whole-01.fits").exists()


def test_different_exposures_are_told(tmp_path, caplog):
    paths = [image_file(tmp_path, 1), image_file(tmp_path, 2, **{"DATE-OBS": "2018-11-09T00:00:00"})]
    merge_products(paths, tmp_path / "m.fits")
    assert "different exposures" in caplog.text


def test_full_disk(tmp_path, monkeypatch):
    paths = [trace_file(tmp_path, i) for i in (1, 2)]
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(PlanError, match="are needed on this disk, 1 kB are free"):
        merge_products(paths, tmp_path / "m.fits")


def test_memory(tmp_path):
    """Data go through in pieces."""
    tracemalloc = pytest.importorskip("tracemalloc")
    paths = [image_file(tmp_path, i, shape=(2000, 2000)) for i in (1, 2)]
    tracemalloc.start()
    try:
        merge_products(paths, tmp_path / "m.fits")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 14e6, "less than one extension of 16 MB"
