"""Headers of products, quality control and Euro3D tables where no reference is needed."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

from musedask.cube.grid import Grid, Limits
from musedask.cube.products import (
    FilterInfo,
    add_qc,
    card,
    find_sources,
    fov_header,
    image_headers,
    limiting_magnitude,
    mean_image,
    pixel_noise,
    product_headers,
    qc_fwhm,
    qc_prefix,
    sdp_headers,
    sdp_image_headers,
    sky_resolution,
    spectral_resolution,
    stat_unit,
)
from musedask.errors import InputError, OutputExistsError
from musedask.io.cube import open_source
from musedask.io.euro3d import airmass, parallactic_angle, write_euro3d
from musedask.io.headers import cards_to_json
from musedask.recipes import EXP_COMBINE, MAKE_CUBE

UNIT = "10**(-20)*erg/s/cm**2/Angstrom"


def make_grid(nx=40, ny=30, nz=5):
    step = 0.2 / 3600
    return Grid(
        nx, ny, nz, True, (150.1, -27.8), (20.5, 15.5), (-step, 0.0, 0.0, step), 7000.0, 1.0, 1.25, "AWAV",
        (150.1, -27.8), (5.0, 5.0), Limits((150.0, 150.2), (-27.9, -27.7), (7000.0, 7005.0)),
    )  # fmt: skip


def table_header(**cards):
    header = fits.Header()
    for keyword, value in {
        "TELESCOP": "ESO-VLT-U4",
        "RADECSYS": "FK5",
        "OBJECT": "Field",
        "EXPTIME": 900.0,
        "MJD-OBS": 57061.2,
        "ARCFILE": "MUSE.1.fits",
        "ESO INS MODE": "WFM-NOAO-N",
        "ESO PRO REC1 ID": "muse_scipost",
        "ESO PRO CATG": "PIXTABLE_REDUCED",
        "ESO QC OLD": 1.0,
        "ESO DRS MUSE PIXTABLE FLUXCAL": True,
        "CTYPE1": "RA---TAN",
        "CD1_1": -1e-5,
        "EXTNAME": "CHAN01",
        **cards,
    }.items():
        header.append(card(keyword, value, "a comment"), end=True)
    return header


def headers(table=None, recipe=EXP_COMBINE, **given):
    arguments = {
        "recipe": recipe,
        "values": recipe.resolve({}),
        "raws": [(f"{name}.fits", "PIXTABLE_REDUCED") for name in "aba"],
        "calibs": [("w.fits", "OUTPUT_WCS", None), ("o.fits", "OFFSET_LIST", "ab")],
        "units": (UNIT, stat_unit(UNIT)),
        **given,
    }
    return product_headers(table_header() if table is None else table, make_grid(), **arguments)


def dataset(flux, variance):
    nz, ny, nx = flux.shape
    primary, data, stat = headers()
    return xr.Dataset(
        {
            "flux": (("wavelength", "y", "x"), flux.astype(np.float32)),
            "variance": (("wavelength", "y", "x"), variance.astype(np.float32)),
        },
        {"wavelength": ("wavelength", 7000 + 1.25 * np.arange(nz), {"ctype": "AWAV"})},
        {
            "primary_header": cards_to_json(primary),
            "data_header": cards_to_json(data),
            "stat_header": cards_to_json(stat),
        },
    ).assign_coords(y=np.arange(ny), x=np.arange(nx))


def test_history_and_files():
    primary, data, stat = headers(date="2026-01-01T00:00:00")
    assert primary["DATE"] == "2026-01-01T00:00:00"
    assert primary["PIPEFILE"] == "DATACUBE_FINAL.fits"
    assert primary["ESO PRO CATG"] == "DATACUBE_FINAL"
    # the record follows those of the input; a file given twice is recorded once
    assert primary["ESO PRO REC2 ID"] == "muse_exp_combine"
    assert primary["ESO PRO REC2 PIPE ID"].startswith("musedask/")
    assert primary["ESO PRO DATANCOM"] == 2
    assert "ESO PRO REC2 RAW3 NAME" not in primary
    # by tag
    assert [primary[f"ESO PRO REC2 CAL{i} CATG"] for i in (1, 2)] == ["OFFSET_LIST", "OUTPUT_WCS"]
    assert primary["ESO PRO REC2 CAL1 DATAMD5"] == "ab"
    names = [p.name for p in EXP_COMBINE.parameters]
    assert [primary[f"ESO PRO REC2 PARAM{i} NAME"] for i in range(1, len(names) + 1)] == names
    for keyword in ("ESO QC OLD", "EXTNAME", "RADECSYS", "ESO DRS MUSE PIXTABLE FLUXCAL", "CD1_1"):
        assert keyword not in primary
    assert primary["RADESYS"] == "FK5"
    assert (data["OBJECT"], stat["OBJECT"]) == ("Field (DATA)", "Field (STAT)")
    assert data["BUNIT"] == UNIT and stat["BUNIT"] == f"({UNIT})**2"
    assert data["CRPIX1"] == 20.5 and data["CTYPE3"] == "AWAV" and "WCSAXES" not in data
    assert data["ERRDATA"] == "STAT" and stat["HDUCLAS3"] == "MSE"


def test_first_file_wins_over_first_exposure():
    raw = table_header(UTC=1.0, EXPTIME=1.0, OBJECT="Other", **{"ESO TEL FOO": 2, "ESO PRO ANCESTOR": "raw.fits"})
    primary, _, _ = headers(table_header(UTC=2.0, **{"ESO TEL FOO": 1, "FOO": 3}), raw_header=raw)
    assert (primary["UTC"], primary["EXPTIME"]) == (1.0, 900.0)
    assert primary["ESO TEL FOO"] == 2
    assert primary["ESO PRO ANCESTOR"] == "raw.fits"
    assert (primary["OBJECT"], primary["FOO"]) == ("Field", 3)


def test_long_file_names_fit():
    primary, _, _ = headers(raws=[("x'" * 60, "PIXTABLE_REDUCED")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        again = fits.Header.fromstring(primary.tostring())
    assert again["ESO PRO REC2 RAW1 NAME"].startswith("x'x'x")


def test_headers_survive_json():
    for header in headers(qc=qc_fwhm(np.zeros((30, 40), np.float32), make_grid(), "ESO QC EXPCOMB")):
        assert len(json.loads(cards_to_json(header))) == len(header)


def test_images():
    primary, data, _ = headers(table_header(SPECSYS="BARYCENT"))
    info = FilterInfo("Johnson_V", 99.5, 0.1, None)
    head, extension = image_headers(primary, data, info.cards(), 3)
    assert (head["OBJECT"], head["PIPEFILE"]) == ("Field (Johnson_V)", "IMAGE_FOV_0003.fits")
    assert head["ESO PRO CATG"] == "IMAGE_FOV" and "SPECSYS" not in head and "SPECSYS" in primary
    assert head["ESO DRS MUSE FILTER ZPVEGA"] == 0.1 and "ESO DRS MUSE FILTER ZPAB" not in head
    assert extension["INHERIT"] is True and "CTYPE3" not in extension and "CD3_3" not in extension
    inside = fov_header(primary, data, info.cards())
    assert inside["EXTNAME"] == "Johnson_V" and inside["BUNIT"] == UNIT
    # what was given is unchanged
    assert primary["OBJECT"] == "Field"
    archive, extension = sdp_image_headers((head, extension))
    assert archive["PRODCATG"] == "ANCILLARY.IMAGE" and extension["BUNIT"].startswith("10**(-20)erg.")


def star(y0, x0, width=2.0, peak=100.0, shape=(30, 40)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return peak * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 2 / width**2)


def test_width_of_a_star():
    (source,) = find_sources(star(12.2, 20.4) + 1000)
    assert (source.x, source.y) == (21, 13)
    assert source.fwhm == pytest.approx((2 * 2.3548,) * 2, rel=0.02)


def test_cards_on_sources():
    assert qc_prefix(MAKE_CUBE) is None
    image = star(8, 8) + star(8, 30, 1.5) + star(22, 20, 2.5)
    image[0, :3] = np.nan
    cards = {c[0]: c[1] for c in qc_fwhm(image.astype(np.float32), make_grid(), qc_prefix(EXP_COMBINE))}
    assert cards["ESO QC EXPCOMB NDET"] == cards["ESO QC EXPCOMB FWHM NVALID"] == 3
    assert cards["ESO QC EXPCOMB LAMBDA"] == 7002.5
    assert cards["ESO QC EXPCOMB FWHM MEDIAN"] == pytest.approx(0.2 * 2 * 2.3548, rel=0.02)
    none = {c[0]: c[1] for c in qc_fwhm(np.full((30, 40), np.nan), make_grid(), "ESO QC EXPCOMB")}
    assert none["ESO QC EXPCOMB NDET"] == 0 and none["ESO QC EXPCOMB POS0 X"] == -1
    assert "ESO QC EXPCOMB FWHM MEDIAN" not in none


def test_cards_go_before_those_of_the_reduction():
    primary, _, _ = headers(table_header(**{"ESO DRS MUSE OFFSET1 DRA": 0.001}))
    add_qc(primary, [["ESO QC EXPCOMB NDET", 3, "Number of detected sources in combined cube, a long text"]])
    keys = list(primary)
    assert keys.index("ESO QC EXPCOMB NDET") == keys.index("ESO DRS MUSE OFFSET1 DRA") - 1


def test_resolutions():
    assert spectral_resolution(4000.0, nfm=False) == 1674.77
    assert spectral_resolution(7055.0, nfm=False) == pytest.approx(3029.24, abs=0.01)
    assert spectral_resolution(7050.0, nfm=True) == pytest.approx(2595.0)
    names = ("IA FWHMLIN", "AIRM START", "AIRM END", "AMBI FWHM START", "AMBI FWHM END")
    seeing = {f"ESO TEL {name}": 1.0 for name in names}
    wide = table_header(**seeing)
    assert sky_resolution(wide, [wide]) == (pytest.approx(0.747289287643969), 0.3, True)
    del wide["ESO TEL IA FWHMLIN"]
    assert sky_resolution(wide, [wide]) == (0.853823, 0.495547, False)
    narrow = table_header(**{"ESO INS MODE": "NFM-AO-N"})
    assert sky_resolution(narrow, [narrow]) == (0.15, 0.05, False)


def test_noise_and_depth():
    rng = np.random.default_rng(1)
    flux = rng.normal(0, 1, (5, 60, 70))
    flux[:, :3] = np.nan
    cube = dataset(flux, np.where(np.isfinite(flux), 3.5, np.nan))
    source = open_source(cube)
    assert pixel_noise(source) ** 2 == pytest.approx(3.5, abs=0.02)
    image = mean_image(source, 10000)
    np.testing.assert_allclose(image[3:], flux[:, 3:].mean(0), atol=1e-6)
    assert np.isnan(image[:3]).all() and np.isfinite(image[3:]).all()
    bright = limiting_magnitude(image, 4.0, 7000.0)
    assert limiting_magnitude(10 * image, 4.0, 7000.0) == pytest.approx(bright - 2.5)
    assert limiting_magnitude(np.zeros((9, 9)), 4.0, 7000.0) is None
    assert limiting_magnitude(np.full((9, 9), np.nan), 4.0, 7000.0) is None


def test_science_data_product_without_much_known():
    flux = np.random.default_rng(1).normal(0, 1, (5, 30, 40))
    cube = dataset(flux, np.ones_like(flux))
    primary, data, stat = sdp_headers(
        headers(), make_grid(), [table_header(), table_header(**{"MJD-OBS": 57062.0})],
        source=open_source(cube), images={},
    )  # fmt: skip
    assert primary["EXPTIME"] == 0.0 and primary["TEXPTIME"] == 1800.0 and primary["NCOMBINE"] == 2
    assert primary["MJD-END"] == pytest.approx(57062 + 900 / 86400)
    assert primary["FLUXCAL"] == "ABSOLUTE" and "PROG_ID" not in primary
    assert primary["PROV2"] == "MUSE.1.fits"
    assert stat["BUNIT"].startswith("10**(-40)") and data["CUNIT3"] == "angstrom"


def test_euro3d(tmp_path):
    rng = np.random.default_rng(5)
    flux = rng.normal(10, 1, (5, 6, 7))
    flux[rng.random(flux.shape) < 0.3] = np.nan
    flux[:, 2, 3] = np.nan
    cube = dataset(flux, flux**2)
    path = tmp_path / "e3d.fits"
    write_euro3d(cube, path, memory_limit=2000)
    with fits.open(path, checksum=True) as hdus:
        rows = hdus["E3D_DATA"].data
        assert len(rows) == np.isfinite(flux).any(0).sum()
        for row in rows[::5]:
            x, y = divmod(row["SPEC_ID"] - 1, 6)
            spectrum = flux[:, y, x].astype(np.float32)
            start, n = row["SPEC_STA"] - 1, row["SPEC_LEN"]
            assert start == np.isfinite(spectrum).argmax() and n == 5 - start
            good = np.isfinite(spectrum[start:])
            np.testing.assert_array_equal(row["DATA_SPE"][:n], np.where(good, spectrum[start:], 0))
            np.testing.assert_array_equal(row["QUAL_SPE"][:n], np.where(good, 0, 1 << 30))
            np.testing.assert_allclose(row["STAT_SPE"][:n][good], spectrum[start:][good], rtol=1e-6)
    with pytest.raises(OutputExistsError):
        write_euro3d(cube, path)
    empty = tmp_path / "empty.fits"
    with pytest.raises(InputError, match="no spaxel"):
        write_euro3d(dataset(np.full((5, 6, 7), np.nan), np.ones((5, 6, 7))), empty)
    assert not empty.exists() and not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="variances"):
        write_euro3d(cube.drop_vars("variance"), empty)


def test_angles():
    assert math.isnan(parallactic_angle(fits.Header()))
    head = fits.Header()
    head["HIERARCH ESO TEL PARANG START"] = 10.0
    head["HIERARCH ESO TEL PARANG END"] = 20.0
    assert parallactic_angle(head) == 15.0
    head["ESO TEL PARANG START"] = -170.0
    head["ESO TEL PARANG END"] = 176.0
    assert abs(parallactic_angle(head)) == pytest.approx(177.0)
    head["HIERARCH ESO TEL AIRM START"] = 1.2
    head["HIERARCH ESO TEL AIRM END"] = 1.4
    assert airmass(head) == pytest.approx(1.3)
    # in the zenith
    head.update({"RA": 0.0, "DEC": -24.625278, "LST": 0.0, "EXPTIME": 0.0})
    assert airmass(head) == pytest.approx(1.0)
