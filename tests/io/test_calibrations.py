"""Calibration files: what is written is read back, and has the columns that the formats say."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError, OutputExistsError
from musedask.io import calibrations as cal
from musedask.io import references as ref
from musedask.io.muse_image import (
    Mask,
    MuseImage,
    TwilightCube,
    read_mask,
    read_muse_image,
    read_twilight_cube,
    read_wave_map,
    write_mask,
    write_merged_images,
    write_muse_image,
    write_twilight_cube,
    write_wave_map,
)
from musedask.io.product_files import write_product
from musedask.io.products import channel, product_header
from musedask.io.tables import Filter, list_filters, read_filter

RNG = np.random.default_rng(3)


def trace_table(n=6):
    return cal.TraceTable(*RNG.normal(size=(3, 48, n)), RNG.uniform(75, 77, 48), RNG.uniform(size=(48, 3)))


def columns(path, extension=1):
    """Names, formats and units of the columns of a file."""
    with fits.open(path) as hdus:
        c = hdus[extension].columns
        return list(zip(c.names, c.formats, [u or "" for u in c.units], strict=True))


def same(a, b):
    """All arrays of two objects are equal."""
    for key, value in vars(a).items():
        if key == "header":
            continue
        other = getattr(b, key)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other, err_msg=key)
        else:
            assert value == other, key


# --- headers ---------------------------------------------------------------------------------------


def test_product_header():
    raw = fits.Header([("DATE-OBS", "2014-12-08T01:02:03.000"), ("NAXIS", 2), ("EXTNAME", "CHAN11")])
    raw["HIERARCH ESO PRO CATG"] = "OLD"
    raw["HIERARCH ESO INS MODE"] = "WFM-NOAO-N"
    h = product_header(
        "MASTER_BIAS", ifu=3, inherit=raw, recipe="muse_bias", raws=[("a.fits", "BIAS")],
        cards={"EXPTIME": (1.5, "[s]")},
    )  # fmt: skip
    assert h["EXTNAME"] == "CHAN03" and h["ESO PRO CATG"] == "MASTER_BIAS" and h["INSTRUME"] == "MUSE"
    assert h["ESO PRO REC1 RAW1 NAME"] == "a.fits" and h["ESO PRO REC1 ID"] == "muse_bias"
    assert h["ESO INS MODE"] == "WFM-NOAO-N" and h["EXPTIME"] == 1.5
    assert "NAXIS" not in h and "PIPEFILE" not in h
    assert h["ESO PRO SCIENCE"] is False
    # static calibrations are found by the reference only without these
    static = product_header("LINE_CATALOG")
    assert "EXTNAME" not in static and "PIPEFILE" not in static


@pytest.mark.parametrize("ifu", [0, 25, 1.5, True])
def test_channel_refuses(ifu):
    with pytest.raises(InputError, match=r"expected 1\.\.24"):
        channel(ifu)


# --- tables of an IFU ------------------------------------------------------------------------------


def test_trace_table(tmp_path):
    table, path = trace_table(), tmp_path / "TRACE_TABLE-05.fits"
    cal.write_trace_table(path, table, header=product_header("TRACE_TABLE", ifu=5))
    back = cal.read_trace_table(path, ifu=5)
    for key in ("centre", "left", "right", "mse"):
        np.testing.assert_array_equal(getattr(back, key), getattr(table, key))
    np.testing.assert_allclose(back.width, table.width, rtol=1e-7)  # the file has single precision
    assert back.header["ESO PRO CATG"] == "TRACE_TABLE"
    found = columns(path)
    names = ["SliceNo", "Width"] + [
        n for i in range(3) for n in (*(f"tc{i}_{j:02d}" for j in range(6)), f"MSE{i}")
    ]
    assert [f[0] for f in found] == names
    assert found[0] == ("SliceNo", "1J", "No") and found[1] == ("Width", "1E", "pix")
    assert found[2] == ("tc0_00", "1D", "pix") and found[8] == ("MSE0", "1D", "pix")
    left, right = back.edges(7, np.array([1.0, 100.0]))
    np.testing.assert_allclose(left, [np.polyval(table.left[6][::-1], y) for y in (1, 100)])
    assert right.shape == (2,)


def test_trace_table_without_a_slice(tmp_path):
    """Slices in any order; one that is missing or could not be traced becomes NaN."""
    path = tmp_path / "t.fits"
    cal.write_trace_table(path, trace_table(3), header=product_header("TRACE_TABLE", ifu=1))
    with fits.open(path) as hdus:
        data = hdus[1].data[::-1][:-1].copy()
        header = hdus[0].header.copy()
    fits.HDUList([fits.PrimaryHDU(header=header), fits.BinTableHDU(data)]).writeto(path, overwrite=True)
    back = cal.read_trace_table(path)
    assert np.isnan(back.centre[0]).all() and np.isfinite(back.centre[1:]).all()


def test_trace_samples(tmp_path):
    n = 20
    f32 = RNG.uniform(1, 4000, (4, n)).astype(np.float32).astype(np.float64)
    samples = cal.TraceSamples(np.arange(n, dtype=np.int32) % 48 + 1, *f32)
    path = cal.write_trace_samples(tmp_path / "s.fits", samples, header=product_header("TRACE_SAMPLES", ifu=2))
    same(samples, cal.read_trace_samples(path, ifu=2))
    assert columns(path) == [("slice", "1J", "")] + [(k, "1E", "pix") for k in ("y", "mid", "left", "right")]


def test_wavecal_table(tmp_path):
    table = cal.WavecalTable(RNG.normal(size=(48, 3, 7)), RNG.uniform(size=48))
    path = tmp_path / "w.fits"
    cal.write_wavecal_table(path, table, header=product_header("WAVECAL_TABLE", ifu=24))
    same(table, cal.read_wavecal_table(path))
    found = columns(path)
    assert [f[0] for f in found] == ["SliceNo", *(f"wlc{i}{j}" for i in range(3) for j in range(7)), "MSE"]
    assert found[1] == ("wlc00", "1D", "Angstrom") and found[-1] == ("MSE", "1D", "")
    x, y = 120.0, np.array([1.0, 2.0])
    expected = [sum(table.coefficients[4, i, j] * x**i * v**j for i in range(3) for j in range(7)) for v in y]
    np.testing.assert_allclose(table.wavelength(5, x, y), expected)


def test_wavecal_orders(tmp_path):
    table = cal.WavecalTable(np.zeros((48, 3, 11)), np.zeros(48))
    with pytest.raises(InputError, match="at most 9"):
        cal.write_wavecal_table(tmp_path / "w.fits", table, header=product_header("WAVECAL_TABLE", ifu=1))


def test_geometry_table(tmp_path):
    n = 96
    order = RNG.permutation(n)
    table = cal.GeometryTable(
        (np.repeat([3, 1], 48))[order].astype(np.int32),
        np.tile(np.arange(1, 49), 2)[order].astype(np.int32),
        np.tile(np.arange(48, 0, -1), 2)[order].astype(np.int32),
        *RNG.normal(size=(4, n)),
    )
    path = tmp_path / "g.fits"
    cal.write_geometry_table(path, table, header=product_header("GEOMETRY_TABLE"))
    assert columns(path) == [
        ("SubField", "1J", ""), ("SliceCCD", "1J", ""), ("SliceSky", "1J", ""), ("x", "1D", "pix"),
        ("y", "1D", "pix"), ("angle", "1D", "deg"), ("width", "1D", "pix"),
    ]  # fmt: skip
    back = cal.read_geometry_table(path)
    assert list(zip(back.ifu, back.sky_slice, strict=True)) == [(i, s) for i in (1, 3) for s in range(1, 49)]
    one = back.of_ifu(3)
    assert list(one.ccd_slice) == list(range(1, 49))
    k = np.flatnonzero((table.ifu == 3) & (table.ccd_slice == 17))[0]
    assert one.x[16] == table.x[k] and one.width[16] == table.width[k]
    with pytest.raises(InputError, match="0 rows of IFU 7"):
        back.of_ifu(7)


def test_lsf_profile(tmp_path):
    data = RNG.uniform(size=(48, 30, 150)).astype(np.float32)
    profile, path = cal.LsfProfile(data), tmp_path / "l.fits"
    cal.write_lsf_profile(path, profile, header=product_header("LSF_PROFILE", ifu=9))
    back = cal.read_lsf_profile(path, ifu=9)
    same(profile, back)
    assert back.offset[0] == -7.5 and back.offset[-1] == pytest.approx(7.5)
    assert back.wave[0] == 4650 and back.wave[-1] == pytest.approx(9300)
    with fits.open(path) as hdus:
        assert hdus[0].header["EXTNAME"] == "CHAN09" and hdus[1].name == "LSF_PROFILE"
        h = hdus[1].header
        assert (h["WCSAXES"], h["CTYPE1"], h["CTYPE2"], h["CD1_2"]) == (2, "PARAM", "AWAV", 0)
        assert h["CD1_1"] == pytest.approx(15 / 149) and h["BITPIX"] == -32
    with pytest.raises(InputError, match="no LSF_PROFILE of IFU 8"):
        cal.read_lsf_profile(path, ifu=8)


def test_merged_tables(tmp_path):
    tables = {ifu: trace_table() for ifu in (2, 7)}
    path = tmp_path / "TRACE_TABLE.fits"
    headers = [product_header("TRACE_TABLE", ifu=i, cards={"ESO QC X": i, "ESO DET CHIPS": 24}) for i in tables]
    cal.write_merged_tables(path, [cal.trace_hdu(t, channel(i)) for i, t in tables.items()], headers=headers)
    with fits.open(path) as hdus:
        assert "EXTNAME" not in hdus[0].header and "ESO QC X" not in hdus[0].header
        assert hdus[0].header["ESO DET CHIPS"] == 24 and "ESO DET CHIPS" not in hdus[1].header
        assert [hdu.header["ESO QC X"] for hdu in hdus[1:]] == [2, 7]
    for ifu, table in tables.items():
        back = cal.read_trace_table(path, ifu=ifu)
        np.testing.assert_array_equal(back.left, table.left)
        assert back.header["EXTNAME"] == channel(ifu)
    with pytest.raises(InputError, match="no table of IFU 3; it has CHAN02, CHAN07"):
        cal.read_trace_table(path, ifu=3)
    with pytest.raises(InputError, match="say which IFU"):
        cal.read_trace_table(path)


def test_merged_lsf(tmp_path):
    data = RNG.uniform(size=(48, 4, 5)).astype(np.float32)
    hdus = [cal.lsf_hdu(cal.LsfProfile(data + i), f"{channel(i)}.LSF_PROFILE") for i in (1, 2)]
    path = cal.write_merged_tables(tmp_path / "l.fits", hdus, headers=[product_header("LSF_PROFILE")] * 2)
    np.testing.assert_array_equal(cal.read_lsf_profile(path, ifu=2).data, data + 2)
    with pytest.raises(InputError, match="no LSF_PROFILE"):
        cal.read_lsf_profile(path)


def test_badpix_table(tmp_path):
    bad = {
        ifu: cal.BadPixels(
            np.array([1, 4224], np.int32), np.array([4240, 7], np.int32), np.array([0x2000, -(2**31)], np.int32),
            np.array([0.0, 1.5]),
        )
        for ifu in (24, 2)
    }  # fmt: skip
    path = ref_path = tmp_path / "b.fits"
    cal.write_badpix_table(path, bad)
    back = cal.read_badpix_table(ref_path)
    assert list(back) == [2, 24]
    same(bad[24], back[24])
    assert columns(path, 2) == [
        ("xpos", "1J", "pix"), ("ypos", "1J", "pix"), ("status", "1J", ""), ("value", "1E", "count"),
    ]  # fmt: skip


# --- reference data --------------------------------------------------------------------------------


def test_line_catalog(tmp_path):
    catalog = ref.LineCatalog(
        np.array([5000.25, 5400.5, 6000.0]), np.array([1e4, 2e4, 3e4]), np.array(["HgI", "NeI", "XeII"]),
        np.array([1, 3, 5], np.int32), np.array(["", "bright", "x"]),
    )  # fmt: skip
    path = ref.write_line_catalog(tmp_path / "c.fits", catalog)
    back = ref.read_line_catalog(path)
    same(catalog, back)
    assert list(back.lamp) == ["HgCd", "Ne", "Xe"]
    assert columns(path) == [
        ("lambda", "1E", "Angstrom"), ("flux", "1E", ""), ("ion", "4A", ""), ("quality", "1J", ""),
        ("comment", "6A", ""),
    ]  # fmt: skip
    header = fits.getheader(path)
    assert header["VERSION"] == 3 and "PIPEFILE" not in header and "EXTNAME" not in header
    fits.setval(path, "VERSION", value=2)
    with pytest.raises(InputError, match="VERSION = 2 found, expected 3"):
        ref.read_line_catalog(path)


def test_line_catalog_must_ascend(tmp_path):
    catalog = ref.LineCatalog(np.array([2.0, 1.0]), np.ones(2), np.array(["NeI"] * 2), np.ones(2, np.int32))
    with pytest.raises(InputError, match="do not ascend"):
        ref.write_line_catalog(tmp_path / "c.fits", catalog)


@pytest.fixture
def lines():
    return ref.SkyLines(
        np.array(["[OI]5577", "Na"]), np.array([1, 2], np.int32), np.array([5577.338, 5889.95]),
        np.array([20000.0, 3000.0]), np.array([0, 1], np.int32),
    )  # fmt: skip


def test_sky_lines(tmp_path, lines):
    oh = ref.OhTransitions(
        np.array(["OH 8-3 P1e(22.5) 2"]), np.array([7316.3]), *np.array([[8], [3], [1]], np.int32),
        np.array([3.1e-19]), np.array([2.5]), np.array([0.3]),
    )  # fmt: skip
    path = ref.write_sky_lines(tmp_path / "s.fits", lines, oh)
    back, back_oh = ref.read_sky_lines(path)
    same(lines, back)
    same(oh, back_oh)
    unit = "10**(-20)*erg/(s cm^2 arcsec^2)"
    assert columns(path, "LINES") == [
        ("name", "8A", ""), ("group", "1J", ""), ("lambda", "1D", "Angstrom"), ("flux", "1D", unit), ("dq", "1J", ""),
    ]  # fmt: skip
    assert [c[0] for c in columns(path, "OH_TRANSITIONS")] == ["name", "lambda", "v_u", "v_l", "nu", "E_u", "J_u", "A"]


def test_sky_lines_units(tmp_path, lines):
    path = ref.write_sky_lines(tmp_path / "s.fits", lines, tag="RAMAN_LINES")
    assert fits.getval(path, "ESO PRO CATG") == "RAMAN_LINES"
    fits.setval(path, "TUNIT4", value="erg/(s cm^2 arcsec^2)", ext=1)
    np.testing.assert_allclose(ref.read_sky_lines(path)[0].flux, lines.flux * 1e20)
    fits.setval(path, "TUNIT4", value="Jy", ext=1)
    with pytest.raises(InputError, match="unit 'Jy' of column flux"):
        ref.read_sky_lines(path)
    with pytest.raises(InputError, match="need lines or transitions"):
        ref.write_sky_lines(tmp_path / "e.fits", None)


def test_sky_continuum(tmp_path):
    continuum = ref.SkyContinuum(*RNG.uniform(size=(2, 4)))
    path = ref.write_sky_continuum(tmp_path / "c.fits", continuum)
    same(continuum, ref.read_sky_continuum(path))
    unit = "erg/(s cm^2 arcsec^2)"
    assert columns(path, "CONTINUUM") == [("lambda", "1D", "Angstrom"), ("flux", "1D", unit)]


def test_extinct_table(tmp_path):
    table = ref.ExtinctionTable(np.array([4000.0, 9000.0]), np.array([0.3, 0.05]))
    path = ref.write_extinct_table(tmp_path / "e.fits", table)
    same(table, ref.read_extinct_table(path))
    assert columns(path) == [("lambda", "1D", "Angstrom"), ("extinction", "1D", "mag/airmass")]


def test_std_flux_table(tmp_path):
    wave, flux = np.array([4000.0, 9000.0]), np.array([1e-13, 2e-14])
    stars = [
        ref.StandardFlux("GD71", 88.115, 15.886, wave, flux, 0.01 * flux),
        ref.StandardFlux("EG21", 47.6, -68.6, wave, flux),
    ]
    path = ref.write_std_flux_table(tmp_path / "f.fits", stars)
    for a, b in zip(stars, ref.read_std_flux_table(path), strict=True):
        same(a, b)
    unit = "erg/s/cm**2/Angstrom"
    assert columns(path, "GD71") == [("lambda", "1D", "Angstrom"), ("flux", "1D", unit), ("fluxerr", "1D", unit)]
    assert len(columns(path, "EG21")) == 2
    fits.setval(path, "TUNIT2", value="Jy", ext=2)
    with pytest.raises(InputError, match=r"EG21\]: unit 'Jy' of column flux"):
        ref.read_std_flux_table(path)
    fits.delval(path, "RA", ext=1)
    with pytest.raises(InputError, match=r"GD71\]: RA = None"):
        ref.read_std_flux_table(path)


@pytest.mark.parametrize("full", [False, True])
def test_std_response(tmp_path, full):
    arrays = RNG.uniform(size=(6, 5))
    response = ref.Response(*(arrays if full else arrays[:3]), flat_corrected=full)
    path = ref.write_std_response(tmp_path / "r.fits", response, header=product_header("STD_RESPONSE"))
    same(response, ref.read_std_response(path))
    names = ["lambda", "response", "resperr", "response_unsmoothed", "resperr_unsmoothed", "throughput"]
    found = columns(path)
    assert [c[0] for c in found] == (names if full else names[:3])
    assert found[1][1:] == ("1D", "2.5*log10((count/s/Angstrom)/(erg/s/cm**2/Angstrom))")
    # to the reference the card itself says so, whatever its value
    assert ("ESO DRS MUSE FLUX FFCORR" in fits.getheader(path)) is full


def test_std_telluric_and_regions(tmp_path):
    telluric = ref.Telluric(*RNG.uniform(size=(3, 5)))
    path = ref.write_std_telluric(tmp_path / "t.fits", telluric, header=product_header("STD_TELLURIC"))
    same(telluric, ref.read_std_telluric(path))
    assert columns(path) == [("lambda", "1D", "Angstrom"), ("ftelluric", "1D", ""), ("ftellerr", "1D", "")]
    regions = ref.TelluricRegions(*RNG.uniform(5000, 9000, (4, 3)))
    path = ref.write_telluric_regions(tmp_path / "g.fits", regions)
    same(regions, ref.read_telluric_regions(path))
    assert columns(path) == [(k, "1D", "Angstrom") for k in ("lmin", "lmax", "bgmin", "bgmax")]


def test_filter_list(tmp_path):
    wave = np.array([5000.0, 5500.0, 6000.0])
    filters = [Filter("Johnson_V", wave, np.array([0.0, 1.0, 0.0]), -21.1, -21.08), Filter("box", wave, np.ones(3))]
    path = ref.write_filter_list(tmp_path / "f.fits", filters)
    assert list_filters(path) == ["Johnson_V", "box"]
    for item in filters:
        same(item, read_filter(path, item.name))
    assert columns(path, "box") == [("lambda", "1D", "Angstrom"), ("throughput", "1D", "")]


def test_astrometry(tmp_path):
    solution = ref.AstrometricSolution((-0.01, -1.2), ((-5.5555555555555e-05, 1.23456789012345e-9), (0.0, 5.6e-5)))
    path = ref.write_astrometry_wcs(tmp_path / "a.fits", solution)
    back = ref.read_astrometry_wcs(path)
    assert back == solution  # to the last digit
    h = back.header
    assert (h["WCSAXES"], h["CTYPE1"], h["CUNIT2"], h["NAXIS"]) == (2, "RA---TAN", "deg", 0)
    assert "CRVAL1" not in h
    region = ref.ReferenceField(
        "field", 10.0, -20.0, np.array(["a1", "b"]), np.array([10.001, 10.002]), np.array([-20.0, -20.1]),
        np.array(["V", "V"]), np.array([15.0, 16.5]),
    )  # fmt: skip
    path = ref.write_astrometry_reference(tmp_path / "r.fits", [region])
    same(region, ref.read_astrometry_reference(path)[0])
    assert columns(path, "field") == [
        ("SourceID", "2A", ""), ("RA", "1D", "deg"), ("DEC", "1D", "deg"), ("filter", "1A", ""), ("mag", "1D", "mag"),
    ]  # fmt: skip


# --- images ----------------------------------------------------------------------------------------


def image(shape=(30, 20), offset=0.0):
    data = (RNG.normal(size=shape) + offset).astype(np.float32)
    return MuseImage(data, RNG.integers(0, 1 << 30, shape).astype(np.int32), np.abs(data), "count")


def test_muse_image(tmp_path):
    one = image((700, 20))
    path = tmp_path / "m.fits"
    write_muse_image(path, one, header=product_header("MASTER_FLAT", ifu=12))
    back = read_muse_image(path, ifu=12)
    same(one, back)
    assert back.header["EXTNAME"] == "CHAN12"
    with fits.open(path) as hdus:
        assert [h.name for h in hdus[1:]] == ["DATA", "DQ", "STAT"]
        data, dq, stat = (h.header for h in hdus[1:])
        assert data["BUNIT"] == "count" and stat["BUNIT"] == "(count)**2" and "BUNIT" not in dq
        assert (data["HDUCLAS2"], dq["HDUCLAS2"], stat["HDUCLAS2"]) == ("DATA", "QUALITY", "ERROR")
        assert "HDUCLAS3" not in data and (dq["HDUCLAS3"], stat["HDUCLAS3"]) == ("FLAG32BIT", "MSE")
        assert dq["QUALMASK"] == 4294967295 and data["ERRDATA"] == "STAT" and stat["SCIDATA"] == "DATA"
        assert data["INHERIT"] is True and dq["BITPIX"] == 32 and data["BITPIX"] == -32
        hdus.verify("exception")
    with pytest.raises(OutputExistsError):
        write_muse_image(path, one, header=product_header("MASTER_FLAT", ifu=12))
    with pytest.raises(InputError, match="no single DATA of IFU 3"):
        read_muse_image(path, ifu=3)


def test_muse_image_without_quality(tmp_path):
    one = MuseImage(np.ones((3, 4), np.float32), unit="adu", header=product_header("X"))
    back = read_muse_image(write_muse_image(tmp_path / "m.fits", one))
    assert back.dq is None and back.stat is None and back.unit == "adu"
    bad = MuseImage(np.ones((3, 4), np.float32), np.ones((4, 3), np.int32))
    with pytest.raises(InputError, match="shapes"):
        write_muse_image(tmp_path / "b.fits", bad)
    assert not (tmp_path / "b.fits").exists()


def test_parts_of_images_are_described_alike(tmp_path):
    """In products of recipes, and in files that are written otherwise."""
    parts = [np.zeros((4, 6), t) for t in (np.float32, np.int32, np.float32)]
    image = MuseImage(*parts, "count", product_header("MASTER_FLAT", ifu=12))
    paths = write_muse_image(tmp_path / "a.fits", image), tmp_path / "b.fits"
    write_product(paths[1], image, image.header, checksums=False)
    cards = []
    for path in paths:
        with fits.open(path) as hdus:
            cards.append(
                [
                    [(c.keyword, c.value, c.comment) for c in hdu.header.cards if c.keyword.startswith(("HDU", "QUAL"))]
                    + [hdu.header.get(k) for k in ("EXTNAME", "BUNIT", "SCIDATA", "ERRDATA")]
                    for hdu in hdus[1:]
                ]
            )
    assert cards[0] == cards[1] and len(cards[0]) == 3


def test_merged_images(tmp_path):
    images = {}
    for ifu in (1, 5):
        images[ifu] = image(offset=ifu)
        h = product_header("MASTER_BIAS", ifu=ifu, cards={"ESO DET CHIP NAME": f"chip {ifu}", "ESO QC BIAS": 1.0})
        images[ifu].header.extend(h)
    path = tmp_path / "MASTER_BIAS.fits"
    write_merged_images(path, images.items(), header=images[1].header)
    with fits.open(path) as hdus:
        assert [h.name for h in hdus[1:4]] == ["CHAN01.DATA", "CHAN01.DQ", "CHAN01.STAT"]
        assert "EXTNAME" not in hdus[0].header and "ESO DET CHIP NAME" not in hdus[0].header
        assert hdus["CHAN05.STAT"].header["SCIDATA"] == "CHAN05.DATA"
        assert hdus["CHAN05.DQ"].header["ESO DET CHIP NAME"] == "chip 5"
    back = read_muse_image(path, ifu=5)
    same(images[5], back)
    assert back.header["ESO DET CHIP NAME"] == "chip 5" and back.header["EXTNAME"] == "CHAN05"
    with pytest.raises(InputError, match="no single DATA"):
        read_muse_image(path)


@pytest.mark.parametrize("celestial", [False, True])
def test_mask(tmp_path, celestial):
    mask = Mask(np.eye(4, 6, dtype=np.int32), (1.0, 2.0), (10.5, -20.25), ((1.0, 0.5), (0.0, 2.0)), celestial)
    path = write_mask(tmp_path / "m.fits", mask, tag="VIGNETTING_MASK")
    same(mask, read_mask(path))
    h = fits.getheader(path)
    assert h["BITPIX"] == 32 and h["CTYPE1"] == ("RA---TAN" if celestial else "PIXEL")
    assert h["ESO PRO CATG"] == "VIGNETTING_MASK"


def test_wave_map(tmp_path):
    wave = RNG.uniform(4600, 9400, (20, 10)).astype(np.float32)
    path = write_wave_map(tmp_path / "w.fits", wave, header=product_header("WAVE_MAP", ifu=4))
    np.testing.assert_array_equal(read_wave_map(path), wave)
    assert fits.getval(path, "EXTNAME") == "CHAN04"
    with pytest.raises(InputError, match="no image"):
        read_wave_map(ref.write_astrometry_wcs(tmp_path / "a.fits", ref.AstrometricSolution()))


def test_twilight_cube(tmp_path):
    cube = TwilightCube(
        RNG.uniform(size=(17, 9, 11)).astype(np.float32), -5.0, -4.0, flux={1: 1e9, 24: 9e8},
        images={"white_global_fit": np.ones((9, 11), np.float32)},
    )  # fmt: skip
    path = write_twilight_cube(tmp_path / "t.fits", cube, header=product_header("TWILIGHT_CUBE"))
    back = read_twilight_cube(path)
    np.testing.assert_array_equal(back.data, cube.data)
    assert back.flux == cube.flux and (back.x0, back.wave_step) == (-5.0, 250.0)
    assert list(back.images) == ["white_global_fit"]
    assert fits.getval(path, "ESO DRS MUSE FLAT FLUX SKY24") == 9e8
    with fits.open(path) as hdus:
        assert hdus["DATA"].header["CTYPE3"] == "AWAV" and "CTYPE3" not in hdus[2].header


# --- what is wrong is said -------------------------------------------------------------------------


READERS = [
    cal.read_trace_table, cal.read_trace_samples, cal.read_wavecal_table, cal.read_geometry_table,
    cal.read_lsf_profile, cal.read_badpix_table, ref.read_line_catalog, ref.read_sky_lines, ref.read_extinct_table,
    ref.read_sky_continuum,
    ref.read_std_flux_table, ref.read_std_response, ref.read_std_telluric, ref.read_telluric_regions,
    ref.read_astrometry_wcs, ref.read_astrometry_reference, read_muse_image, read_mask, read_wave_map,
    read_twilight_cube,
]  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["missing", "text", "empty", "other"])
def test_readers_refuse(tmp_path, read, kind):
    """No file, no FITS, a header alone, another table: one message with the name of the file."""
    path = tmp_path / "some_file.fits"
    if kind == "text":
        path.write_text("not FITS\n" * 1000)
    elif kind == "empty":
        fits.PrimaryHDU().writeto(path)
    elif kind == "other":
        table = fits.BinTableHDU.from_columns([fits.Column("a", "1J", array=[1]), fits.Column("b", "1J", array=[2])])
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    with pytest.raises(InputError, match=r"some_file\.fits"):
        read(path)


def test_missing_and_wrong_columns(tmp_path):
    path = tmp_path / "e.fits"

    def write(*made):
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path, overwrite=True)

    wave = fits.Column("lambda", "1D", array=[1.0])
    write(wave)
    with pytest.raises(InputError, match=r"e\.fits\[table\]: there is no column extinction; it has lambda"):
        ref.read_extinct_table(path)
    write(wave, fits.Column("extinction", "3A", array=["abc"]))
    with pytest.raises(InputError, match=r"column extinction has .*, expected numbers"):
        ref.read_extinct_table(path)
    with pytest.raises(InputError, match="columns of different length"):
        ref.write_extinct_table(tmp_path / "x.fits", ref.ExtinctionTable(np.ones(2), np.ones(3)))
