"""Whole products of ``combine`` in every file format: HDUs, pixels, table columns and all cards as in the reference.

Numbers in cards agree to 1e-12 (the last digits of a projection depend on the mathematical
library); pixels and columns to the last bit, but for positions of spaxels in Euro3D (1e-12).
"""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.mosaic import combine
from musedask.sim import simulate_pixtables

from .support import Esorex, bits, require_esorex

pytestmark = pytest.mark.esorex

#: cards that may differ, and why
REASONS = {
    r"DATE": "time of the run",
    r"CHECKSUM|DATASUM": "follow from the cards above",
    r"COMMENT|": "boilerplate of CFITSIO about the FITS format",
    r"ESO PRO REC\d+ (DRS|PIPE) ID|PROCSOFT": "says that musedask made the file",
}
EURO3D_REASONS = {
    r"BITPIX": "of a primary HDU without data, where it means nothing",
    r"DATAMD5": "not computed for tables",
    r"EURO3D|E3D_ADC|E3D_VERS": "cards of the cube file that the reference also leaves in its images",
    r"ESO DRS MUSE FILTER FRACTION": "the reference counts one plane more, of which a cube has no voxels",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    require_esorex()
    return Esorex(tmp_path_factory.mktemp("esorex"), datamd5=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_pixtables(
        tmp_path_factory.mktemp("sim"), n_exposures=3, ifus=(12, 13), slices=12, slice_width=20,
        wave_range=(6500, 6530), rotations=(0, 90), exptimes=(900, 600, 1200), cosmic_rays=2e-3, bad_pixels=2e-3,
        flux_scales=(1, 1.1, 0.95), pointing_errors=((0, 0), (1.0, -0.5), (-0.7, 0.3)), seed=3,
    )  # fmt: skip


def cards(header, reasons):
    passed = re.compile("|".join(f"({pattern})$" for pattern in reasons))
    return {c.keyword: c.value for c in header.cards if not passed.match(c.keyword)}


def compare_headers(ours, reference, reasons):
    a, b = cards(ours, reasons), cards(reference, reasons)
    assert sorted(a) == sorted(b)
    for keyword, value in b.items():
        if isinstance(value, float):
            assert a[keyword] == pytest.approx(value, rel=1e-12), keyword
        else:
            assert a[keyword] == value, keyword


def compare_files(ours, reference, reasons):
    with fits.open(ours) as mine, fits.open(reference) as theirs:
        assert [hdu.name for hdu in mine] == [hdu.name for hdu in theirs]
        for a, b in zip(mine, theirs, strict=True):
            compare_headers(a.header, b.header, reasons)
            if isinstance(b, fits.BinTableHDU):
                for name in b.columns.names:
                    # positions of spaxels come from a projection
                    rtol = 1e-12 if name in ("XPOS", "YPOS") else 0
                    x, y = a.data[name], b.data[name]
                    if y.dtype.kind in "fi":
                        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, equal_nan=True, err_msg=name)
                    else:
                        assert list(x) == list(y), name
            elif b.data is not None:
                assert np.array_equal(bits(a.data), bits(b.data)), b.name


@pytest.mark.parametrize("kind", ["Cube", "xCube", "sdpCube", "Euro3D", "xEuro3D"])
def test_format(run, made, tmp_path, kind):
    inputs = [(p, "PIXTABLE_REDUCED") for p in made.paths] + [(made.offset_list, "OFFSET_LIST")]
    reference = run("muse_exp_combine", inputs, format=kind, filter="white")
    offsets = shutil.copy(made.offset_list, tmp_path)
    combine(
        made.paths, tmp_path / "DATACUBE_FINAL.fits", offset_list=offsets, format=kind, filter="white",
        open_result=False,
    )  # fmt: skip
    reasons = REASONS | (EURO3D_REASONS if "Euro3D" in kind else {})
    # muse_exp_combine also leaves a scratch image fov_clean.fits behind
    products = sorted(p.name for p in reference.glob("[A-Z]*.fits"))
    assert products == sorted(p.name for p in tmp_path.glob("*.fits") if p.name != "OFFSET_LIST.fits")
    for name in products:
        compare_files(tmp_path / name, reference / name, reasons)


def test_filters_of_a_list(run, made, tmp_path):
    """Images through curves of a FILTER_LIST: pixels, zero points, fraction; unknown names are left out."""
    table = tmp_path / "filters.fits"
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for name, wave, value in (
        ("inside", [6503.0, 6510.0, 6520.0, 6526.0], [0.0, 0.8, 0.5, 0.0]),
        ("beyond", [6400.0, 6510.0, 6700.0], [0.0, 1.0, 0.0]),
    ):
        columns = [
            fits.Column("lambda", "1D", unit="Angstrom", array=wave),
            fits.Column("throughput", "1D", array=value),
        ]
        hdu = fits.BinTableHDU.from_columns(columns, name=name)
        hdu.header["EXTNAME"] = name
        hdu.header["ZP_VEGA"], hdu.header["ZP_AB"] = 21.5, 22.25
        hdus.append(hdu)
    hdus.writeto(table)
    inputs = [(p, "PIXTABLE_REDUCED") for p in made.paths] + [(table, "FILTER_LIST")]
    reference = run("muse_exp_combine", inputs, format="xCube", filter="inside,absent,white,beyond")
    ours = tmp_path / "ours.fits"
    combine(
        made.paths, ours, format="xCube", filter="inside,absent,white,beyond", filter_list=table, open_result=False
    )
    compare_files(ours, reference / "DATACUBE_FINAL.fits", REASONS)
