"""The command line of the tools for bad pixels and for products of single IFUs."""

from __future__ import annotations

import pytest
from astropy.io import fits
from click.testing import CliRunner

from musedask.cli import main
from musedask.io.calibrations import read_badpix_table
from musedask.io.muse_image import read_muse_image

from .calib.test_badpix import flat, rows


def run(*args, code=0):
    """What a command prints."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_badpix(tmp_path):
    image, out = flat(tmp_path, 3, [(1, 1, 1)]), tmp_path / "b.fits"
    text = run("badpix", "from-dq", image, out)
    assert "CHAN03: 1 bad pixels" in text and f"wrote {out}" in text
    other = tmp_path / "c.fits"
    text = run("badpix", "from-region", "-t", "-i", out, "-r", image, "[1:2,1:1]", "0x100", 3, other)
    assert f"CHAN03: 2 bad pixels added to the 1 of {out}, 2 in all" in text
    assert rows(read_badpix_table(other)[3]) == [(33, 33, 257), (34, 33, 256)]
    listing = tmp_path / "bad.txt"
    listing.write_text("7 8 9\n")
    assert "exists already" in run("badpix", "from-ascii", "-i", out, listing, 4, out, code=1)
    run("badpix", "from-ascii", "-i", out, listing, 4, out, "--overwrite")
    assert sorted(read_badpix_table(out)) == [3, 4]
    for wrong in (("from-ascii", listing, 25, out), ("from-region", "[1:2,1:1]", 3, out), ("from-dq", image)):
        run("badpix", *wrong, code=2)
    text = run("badpix", "from-region", "1:2", 256, 3, tmp_path / "d.fits", code=1)
    assert "expected [x1:x2,y1:y2]" in text and "Traceback" not in text


@pytest.fixture
def flats(tmp_path):
    return [flat(tmp_path, ifu, [(ifu, 1, 1)]) for ifu in (3, 7)]


def test_merge_and_split(tmp_path, flats):
    whole = tmp_path / "MASTER_FLAT.fits"
    assert f"wrote {whole}" in run("product", "merge", whole, *flats)
    assert read_muse_image(whole, ifu=7).dq[0, 6] == 1
    assert "exists already" in run("product", "merge", whole, *flats, code=1)
    folder = tmp_path / "parts"
    folder.mkdir()
    run("product", "split", whole, "--output-dir", folder)
    assert [p.name for p in sorted(folder.iterdir())] == ["MASTER_FLAT-03.fits", "MASTER_FLAT-07.fits"]
    assert "exists already" in run("product", "split", whole, code=1)
    run("product", "split", whole, "--overwrite", "--delete")
    assert not whole.exists()
    run("product", "merge", whole, *flats, "-d")
    assert not any(path.exists() for path in flats)
    assert "it is of several IFUs already" in run("product", "merge", tmp_path / "x.fits", whole, whole, code=1)
    assert "nothing to split" in run("product", "split", folder / "MASTER_FLAT-03.fits", code=1)


def test_merge_of_several_products(tmp_path, flats):
    others = []
    for path in flats:
        others.append(path.with_name(path.name.replace("MASTER_FLAT", "MASTER_DARK")))
        with fits.open(path) as hdus:
            hdus[0].header["ESO PRO CATG"] = "MASTER_DARK"
            hdus.writeto(others[-1])
    single = flat(tmp_path, 9, []).rename(tmp_path / "SINGLE-09.fits")
    tables = [tmp_path / f"PIXTABLE_OBJECT_0001-{i:02d}.fits" for i in (1, 2)]
    folder = tmp_path / "whole"
    folder.mkdir()
    text = run("product", "merge", folder, *flats, *others, single, *tables)
    assert [p.name for p in sorted(folder.iterdir())] == ["MASTER_DARK.fits", "MASTER_FLAT.fits"]
    assert "SINGLE-09.fits: a single file, left as it is" in text and "pixel tables are never merged" in text
    assert "nothing to merge" in run("product", "merge", folder, single, flats[0], code=1)
