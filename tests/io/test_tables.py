"""Offset lists, filters and the WCS of output cubes."""

from __future__ import annotations

import logging
from pathlib import Path

import mpdaf
import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError
from musedask.io.cards import header_bytes
from musedask.io.tables import (
    box_filter,
    list_filters,
    read_filter,
    read_offset_list,
    read_output_wcs,
    white_filter,
    write_offset_list,
)

FILTERS = Path(mpdaf.__file__).parent / "obj" / "filters" / "filter_list.fits"
DATE = "2015-01-01T01:00:00.123"


# --- offsets -----------------------------------------------------------------------------------


def test_offsets(tmp_path):
    path = tmp_path / "o.fits"
    write_offset_list(
        path,
        [
            {"date_obs": DATE, "mjd_obs": 57000.0, "ra_offset": 1e-4, "dec_offset": -2e-4},
            {"date_obs": DATE, "ra_offset": 9.0, "dec_offset": 9.0, "flux_scale": 2.0},
            {"date_obs": "2016", "ra_offset": np.nan, "dec_offset": 1.0, "flux_scale": 0.0},
        ],
    )
    offsets = read_offset_list(path)
    row = offsets.find(DATE + "4567")
    assert (row.ra, row.dec) == (1e-4, -2e-4) and row.has_position and not row.has_flux_scale
    assert offsets.rows[1].has_flux_scale and not offsets.rows[2].has_flux_scale
    assert not offsets.rows[2].has_position
    assert offsets.find("2015-01-01T01:00:00") is None
    assert offsets.find("2016") is None  # too short to be a date


def table(**columns):
    return fits.BinTableHDU.from_columns(
        [
            fits.Column(name, form, array=np.zeros(2) if form != "23A" else [DATE] * 2)
            for name, form in columns.items()
        ]
    )


@pytest.mark.parametrize(
    ("columns", "wrong"),
    [
        ({"RA_OFFSET": "1D", "DEC_OFFSET": "1D"}, "DATE_OBS"),
        ({"DATE_OBS": "23A", "RA_OFFSET": "1E", "DEC_OFFSET": "1D"}, "RA_OFFSET"),
        ({"DATE_OBS": "23A", "RA_OFFSET": "1D"}, "DEC_OFFSET"),
        ({"DATE_OBS": "23A", "RA_OFFSET": "D", "DEC_OFFSET": "D", "FLUX_SCALE": "J"}, "FLUX_SCALE"),
    ],
)
def test_wrong_columns_mean_no_offsets(tmp_path, caplog, columns, wrong):
    fits.HDUList([fits.PrimaryHDU(), table(**columns)]).writeto(tmp_path / "o.fits")
    with caplog.at_level(logging.WARNING, "musedask"):
        assert read_offset_list(tmp_path / "o.fits") is None
    assert "NO OFFSETS" in caplog.text and wrong in caplog.text


def test_minimal_offsets(tmp_path):
    columns = table(DATE_OBS="23A", RA_OFFSET="D", DEC_OFFSET="D")
    fits.HDUList([fits.PrimaryHDU(), columns]).writeto(tmp_path / "o.fits")
    row = read_offset_list(tmp_path / "o.fits").find(DATE)
    assert row.has_position and not row.has_flux_scale


@pytest.mark.parametrize(
    "read", [read_offset_list, lambda p: read_filter(p, "V"), read_output_wcs, list_filters]
)
def test_bad_files(tmp_path, read):
    with pytest.raises(InputError, match=r"x\.fits: no such file"):
        read(tmp_path / "x.fits")
    (tmp_path / "x.fits").write_text("nonsense")
    with pytest.raises(InputError, match=r"x\.fits: cannot be read as FITS"):
        read(tmp_path / "x.fits")


def test_offsets_without_table(tmp_path):
    fits.PrimaryHDU().writeto(tmp_path / "o.fits")
    with pytest.raises(InputError, match="no table"):
        read_offset_list(tmp_path / "o.fits")


# --- filters -----------------------------------------------------------------------------------


def test_real_filters():
    names = list_filters(FILTERS)
    assert names[:2] == ["Johnson_B", "Johnson_V"] and len(names) == 27
    curve = read_filter(FILTERS, "Johnson_V")
    assert curve.wave.dtype == np.float64 and curve.zp_ab == 21.09807 and curve.zp_vega == 21.103851
    for name in names:
        assert len(read_filter(FILTERS, name).wave) > 10


def test_builtin_filters():
    white = read_filter(None, "white")
    np.testing.assert_array_equal(white.wave, white_filter().wave)
    assert white.throughput.tolist() == [0, 1, 1, 0] and white.zp_ab is None
    assert read_filter(None, "none") is None and read_filter(None, "NONE,x") is None
    assert list_filters(None) == []
    assert box_filter(5000, 5100.25).name == "CUSTOM_5000.000_5100.250"
    for limits in ((5000, 5000), (np.nan, 1), (1, np.inf)):
        with pytest.raises(InputError, match="ascending"):
            box_filter(*limits)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lambda": [1.0, 2.0]}, "no column throughput"),
        ({"lambda": [1.0], "throughput": [1.0]}, "at least two rows"),
        ({"lambda": [2.0, 1.0], "throughput": [1.0, 1.0]}, "not ascending"),
        ({"lambda": [1.0, np.nan], "throughput": [1.0, 1.0]}, "finite"),
    ],
)
def test_bad_filters(tmp_path, columns, message):
    hdu = fits.BinTableHDU.from_columns([fits.Column(n, "1D", array=v) for n, v in columns.items()])
    hdu.header["EXTNAME"] = "V"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "f.fits")
    with pytest.raises(InputError, match=rf"f\.fits\[V\].*{message}"):
        read_filter(tmp_path / "f.fits", "V")
    with pytest.raises(InputError, match="there is no filter 'R'; it has V"):
        read_filter(tmp_path / "f.fits", "R")


def test_filter_needs_a_list():
    with pytest.raises(InputError, match="no FILTER_LIST"):
        read_filter(None, "Johnson_V")


# --- OUTPUT_WCS --------------------------------------------------------------------------------

BASE = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
    "CRVAL1": 150.0001, "CRVAL2": -27.8001, "CRPIX1": 15.5, "CRPIX2": 14.25,
    "CD1_1": -0.21 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.2 / 3600,
    "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CRVAL3": 4999.9, "CRPIX3": 1.0, "CD3_3": 1.3,
    "CD1_3": 0.0, "CD2_3": 0.0, "CD3_1": 0.0, "CD3_2": 0.0,
}  # fmt: skip


def write_wcs(path, cards=None, sizes=(30, 29, 20), *, naxis=None, extension=False):
    """Write a header with data of zeros; cards that are None are removed."""
    naxis = len(sizes) if naxis is None else naxis
    head = fits.Header(
        [("XTENSION", "IMAGE") if extension else ("SIMPLE", True), ("BITPIX", -32), ("NAXIS", naxis)]
    )
    for axis, n in enumerate(sizes, 1):
        head[f"NAXIS{axis}"] = n
    if extension:
        head["PCOUNT"], head["GCOUNT"] = 0, 1
    for keyword, value in {**BASE, **(cards or {})}.items():
        if value is not None:
            head[keyword] = value
    n_bytes = 4 * int(np.prod(sizes)) if naxis else 0
    content = header_bytes(head) + bytes(-(-n_bytes // 2880) * 2880)
    if extension:
        content = header_bytes(fits.PrimaryHDU().header) + content
    path.write_bytes(content)


#: values that the reference (esorex 3.13.6, muse 2.8.7) was seen to use for the same files
@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({}, {"crval3": 4999.9, "cd3_3": 1.3, "crpix": (15.5, 14.25), "ctype3": "AWAV", "nz": 20}),
        ({"CRPIX1": 15, "CRPIX3": 1}, {"crpix": (15.0, 14.25), "crpix3": 1.0}),
        ({"CRVAL3": 5000}, {"crval3": 5000.0}),
        ({"CD3_3": 1}, {"cd3_3": 1.0}),
        ({"CTYPE3": "WAVE"}, {"ctype3": "WAVE"}),
        ({"CTYPE3": "AWAV-LOG"}, {"ctype3": "AWAV-LOG", "crval3": 4999.9}),
        ({"CD1_3": 1e-5}, {"cd": None, "cd3_3": None, "crval3": 4999.9}),
        ({"CD3_1": 1e-5}, {"cd": None, "cd3_3": None}),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, {"cd": None, "cd3_3": None, "crval3": 4999.9, "nx": 30}),
        ({"CD3_3": None}, {"cd": None, "cd3_3": None}),
        ({"CUNIT3": "nm", "CRVAL3": 499.99, "CD3_3": 0.13}, {"crval3": 4999.9, "cd3_3": 1.3}),
        ({"CUNIT3": None, "CRVAL3": 4.9999e-7, "CD3_3": 1.3e-10}, {"crval3": 4999.9, "cd3_3": 1.3}),
        ({"CRVAL1": None}, {"crval": (0.0, -27.8001)}),
        ({"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 540000.36, "CRVAL2": -100080.36, "CD1_1": -0.21,
          "CD2_2": 0.2}, {"crval": (150.0001, -27.8001), "cd": (-0.21 / 3600, 0.0, 0.0, 0.2 / 3600)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("extension", [False, True])
def test_output_wcs(tmp_path, cards, expected, extension):
    write_wcs(tmp_path / "w.fits", cards, extension=extension)
    wcs = read_output_wcs(tmp_path / "w.fits")
    assert (wcs.nx, wcs.ny, wcs.n_axes) == (30, 29, 3)
    for name, value in expected.items():
        found = getattr(wcs, name)
        assert found == (
            value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-15)
        )
    assert wcs.source.endswith("[1]" if extension else "[0]")


def test_wavelengths_go_through_metres(tmp_path):
    write_wcs(tmp_path / "w.fits")
    wcs = read_output_wcs([tmp_path / "w.fits"])
    assert wcs.crval3 == 4999.9 * 1e-10 * 1e10 and wcs.cd3_3 == 1.3 * 1e-10 * 1e10 != 1.3


def test_cdelt_will_do(tmp_path):
    cards = dict.fromkeys(k for k in BASE if k.startswith("CD"))
    write_wcs(tmp_path / "w.fits", cards | {"CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600, "CDELT3": 1.3})
    wcs = read_output_wcs(tmp_path / "w.fits")
    assert wcs.cd == (-0.2 / 3600, 0.0, 0.0, 0.2 / 3600) and wcs.cd3_3 == pytest.approx(1.3, rel=1e-15)


def test_image_header(tmp_path):
    write_wcs(tmp_path / "w.fits", dict.fromkeys(k for k in BASE if "3" in k), (30, 29))
    wcs = read_output_wcs(tmp_path / "w.fits")
    assert (wcs.n_axes, wcs.nz, wcs.ctype3, wcs.crval3, wcs.cd3_3) == (2, 0, "AWAV", None, None)


def test_header_alone_needs_sizes(tmp_path):
    write_wcs(tmp_path / "w.fits", naxis=0)
    assert read_output_wcs(tmp_path / "w.fits").nz == 20


@pytest.mark.parametrize(
    ("cards", "options", "reason"),
    [
        ({"PC1_1": 1.0}, {}, "PCi_j"),
        ({"CTYPE3": "VELO"}, {}, "CTYPE3 = 'VELO'"),
        ({"CTYPE1": None}, {}, "CTYPE1 = ''"),
        ({"CTYPE3": None}, {}, "CTYPE3 = ''"),
        ({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}, {}, "CTYPE1 = 'RA---SIN'"),
        ({}, {"sizes": ()}, "0 axes"),
        ({"WCSAXES": 3}, {"sizes": ()}, "3 axes"),
        ({"WCSAXES": 3}, {"sizes": (30, 29)}, "3 axes"),
        ({}, {"sizes": (30, 29, 20, 1)}, "4 axes"),
    ],
)
def test_unusable_wcs_is_ignored(tmp_path, caplog, cards, options, reason):
    write_wcs(tmp_path / "w.fits", cards, **options)
    with caplog.at_level(logging.WARNING, "musedask"):
        assert read_output_wcs(tmp_path / "w.fits") is None
    assert "IGNORED" in caplog.text and reason in caplog.text


def test_first_usable_file(tmp_path):
    write_wcs(tmp_path / "a.fits", {"CTYPE3": "VELO"})
    write_wcs(tmp_path / "b.fits", {"CRVAL1": 10.5})
    assert read_output_wcs([tmp_path / "a.fits", tmp_path / "b.fits"]).crval[0] == 10.5
