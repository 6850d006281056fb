"""Verbs on cubes made elsewhere."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import mpdaf
import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.images import collapse, filter_throughput
from musedask.cube.verbs import (
    cube_combine,
    cube_concatenate,
    cube_filter,
    cube_info,
    render_info,
)
from musedask.errors import InputError, OutputExistsError
from musedask.io.cube import cube_to_fits, cube_to_zarr, open_cube, open_source
from musedask.io.tables import read_filter

PACKAGE = Path(mpdaf.__file__).parent
MINICUBE = PACKAGE / "data" / "sdetect" / "minicube.fits"
MOSAIC = PACKAGE / "data" / "sdetect" / "subcub_mosaic.fits"
FILTERS = PACKAGE / "obj" / "filters" / "filter_list.fits"

NZ, NY, NX = 40, 4, 5
TRUTH = np.random.default_rng(8).normal(size=(NZ, NY, NX)).astype("f4")


def wavelength(plane):
    """Of a 0-based plane of the test cubes."""
    return 5000 + 1.25 * plane


def write_part(path, low=None, high=None, *, mark=0.0, recipe=2, **changes):
    """A cube of the full grid whose pixels were cut to low..high [Angstrom], NaN outside."""
    wave = wavelength(np.arange(NZ))
    flux = TRUTH + np.float32(mark)
    inside = (wave >= (low or 0) - 0.625) & (wave <= (high or 1e9) + 0.625)
    flux[~inside] = np.nan
    primary = fits.Header([("OBJECT", "field"), ("HIERARCH ESO PRO REC1 ID", "muse_scibasic")])
    for number, name, value in ((1, "lambdamin", "1"), (2, "lambdamax", "2")):
        primary[f"HIERARCH ESO PRO REC1 PARAM{number} NAME"] = name
        primary[f"HIERARCH ESO PRO REC1 PARAM{number} VALUE"] = value
    parameters = {"save": "cube", "lambdamin": low, "lambdamax": high}
    if recipe:
        primary[f"HIERARCH ESO PRO REC{recipe} ID"] = "muse_exp_combine"
        given = [(name, value) for name, value in parameters.items() if value is not None]
        for number, (name, value) in enumerate(given, 1):
            primary[f"HIERARCH ESO PRO REC{recipe} PARAM{number} NAME"] = name
            primary[f"HIERARCH ESO PRO REC{recipe} PARAM{number} VALUE"] = f"{value}"
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
        "CD1_1": -5.55555555555556e-05, "CD2_2": 5.55555555555556e-05, "CD1_2": 0.0, "CD2_1": 0.0,
        "CRPIX1": 3.5, "CRPIX2": 2.25, "CRVAL1": 150.0, "CRVAL2": -27.8,
        "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CD3_3": 1.25, "CRPIX3": 1.0, "CRVAL3": 5000.0,
    } | changes  # fmt: skip
    header = fits.Header(list(cards.items()))
    hdus = [fits.PrimaryHDU(header=primary)]
    hdus += [fits.ImageHDU(v, header, name=n) for n, v in (("DATA", flux), ("STAT", np.abs(flux)))]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return flux


def read(path):
    cube = open_cube(path)
    return cube.flux.values, cube


# --- combine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["fits", "zarr"])
@pytest.mark.parametrize("reverse", [False, True])
def test_combine_of_overlapping_ranges(tmp_path, caplog, suffix, reverse):
    # as in the manual: ranges overlap by two planes
    parts = [tmp_path / f"{i}.fits" for i in range(3)]
    write_part(parts[0], None, wavelength(15))
    write_part(parts[1], wavelength(14), wavelength(29), mark=100)
    write_part(parts[2], wavelength(28), 9000, mark=200)
    output = tmp_path / f"all.{suffix}"
    with caplog.at_level(logging.WARNING, "musedask"):
        cube_combine(output, parts[::-1] if reverse else parts)
    assert not caplog.records
    flux, cube = read(output)
    marks = np.repeat(np.float32([0, 100, 200]), [15, 14, 11])
    np.testing.assert_array_equal(flux, TRUTH + marks[:, None, None])
    np.testing.assert_array_equal(cube.variance.values, np.abs(flux))
    assert not np.isnan(flux).any()
    np.testing.assert_array_equal(cube.wavelength, wavelength(np.arange(NZ)))
    # the first cube has only lambdamax among its parameters
    head = cube.muse.header
    assert head["ESO PRO REC2 PARAM2 NAME"] == "lambdamax"
    assert head["ESO PRO REC2 PARAM2 VALUE"] == f"{wavelength(NZ - 1):g}"
    assert head.comments["ESO PRO REC2 PARAM2 VALUE"] == "set with muse_cube_combine!"
    assert head["ESO PRO REC1 PARAM2 VALUE"] == "2"


def test_combine_trims_and_shifts(tmp_path):
    write_part(tmp_path / "a.fits", wavelength(5), wavelength(20))
    write_part(tmp_path / "b.fits", wavelength(19), wavelength(30), mark=100)
    cube_combine(tmp_path / "c.fits", [tmp_path / "a.fits", tmp_path / "b.fits"])
    flux, cube = read(tmp_path / "c.fits")
    marks = np.repeat(np.float32([0, 100]), [14, 10])
    np.testing.assert_array_equal(flux, TRUTH[6:30] + marks[:, None, None])
    assert cube.muse.data_header["CRPIX3"] == -5.0
    np.testing.assert_allclose(cube.wavelength, wavelength(np.arange(6, 30)))


def test_combine_fills_gaps_and_cuts_overlaps_from_the_earlier(tmp_path, caplog):
    first = write_part(tmp_path / "a.fits", None, wavelength(10))
    write_part(tmp_path / "b.fits", wavelength(15), wavelength(30))
    write_part(tmp_path / "c.fits", wavelength(22), None, mark=100)
    with caplog.at_level(logging.WARNING, "musedask"):
        cube_combine(tmp_path / "d.fits", [tmp_path / f"{n}.fits" for n in "abc"])
    assert "gap" in caplog.text and "overlap" in caplog.text
    flux, _ = read(tmp_path / "d.fits")
    np.testing.assert_array_equal(flux[:16], first[:16])
    np.testing.assert_array_equal(flux[16:23], TRUTH[16:23])
    np.testing.assert_array_equal(flux[23:], TRUTH[23:] + np.float32(100))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"CRVAL3": 5000.001}, "CRVAL3 = 5000.001 found, expected 5000.0"),
        ({"CUNIT3": "angstrom"}, "CUNIT3 = 'angstrom'"),
        ({"CTYPE3": "WAVE"}, "CTYPE3 = 'WAVE'"),
        ({"CRPIX2": 3.25}, "CRPIX2 = 3.25"),
        ({"CD1_2": 1e-9}, "CD1_2"),
    ],
)
def test_combine_leaves_out_what_does_not_fit(tmp_path, caplog, changes, reason):
    write_part(tmp_path / "a.fits", None, wavelength(15))
    write_part(tmp_path / "b.fits", wavelength(14), wavelength(29), **changes)
    write_part(tmp_path / "c.fits", wavelength(14), None)
    with caplog.at_level(logging.WARNING, "musedask"):
        cube_combine(tmp_path / "d.fits", [tmp_path / f"{n}.fits" for n in ("a", "b", "none", "c")])
    assert "LEFT OUT" in caplog.text and reason in caplog.text and "no such file" in caplog.text
    np.testing.assert_array_equal(read(tmp_path / "d.fits")[0], TRUTH)


def test_combine_of_logarithmic_cubes(tmp_path):
    log = {"CTYPE3": "AWAV-LOG", "CD3_3": 0.78125}
    wave = 5000 * np.exp(np.arange(NZ) * 0.78125 / 5000)
    write_part(tmp_path / "a.fits", None, wave[15], **log)
    write_part(tmp_path / "b.fits", wave[14], None, mark=100, **log)
    for name, part in (("a", slice(16, None)), ("b", slice(0, 14))):
        with fits.open(tmp_path / f"{name}.fits", mode="update") as hdus:
            hdus["DATA"].data[:] = TRUTH + (100 if name == "b" else 0)
            hdus["DATA"].data[part] = np.nan
    cube_combine(tmp_path / "c.fits", [tmp_path / "a.fits", tmp_path / "b.fits"])
    marks = np.repeat(np.float32([0, 100]), [15, 25])
    np.testing.assert_array_equal(read(tmp_path / "c.fits")[0], TRUTH + marks[:, None, None])


def test_combine_needs_two(tmp_path):
    write_part(tmp_path / "a.fits", None, wavelength(15))
    write_part(tmp_path / "b.fits", 8000, 9000)
    with pytest.raises(InputError, match="1 of 2 cubes are usable"):
        cube_combine(tmp_path / "d.fits", [tmp_path / "a.fits", tmp_path / "b.fits"])
    with pytest.raises(OutputExistsError):
        cube_combine(tmp_path / "a.fits", [tmp_path / "a.fits", tmp_path / "b.fits"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fits", "b.fits"]


def test_unknown_range_is_reported(tmp_path, caplog):
    write_part(tmp_path / "a.fits", None, wavelength(15))
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        hdus[0].header["ESO PRO REC2 PARAM2 VALUE"] = "red"
    with caplog.at_level(logging.WARNING, "musedask"), pytest.raises(InputError, match="0 of 2"):
        cube_combine(tmp_path / "d.fits", [tmp_path / "a.fits"] * 2)
    assert "PARAM2 VALUE = 'red' found, expected a number" in caplog.text


# --- concatenate -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["fits", "zarr"])
def test_concatenate_gives_the_original_back(tmp_path, suffix):
    from mpdaf.obj import Cube

    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = Cube(str(MOSAIC))
        for first, last in ((0, 200), (200, 203), (203, 500)):
            parts.append(tmp_path / f"{first}.fits")
            cube[first:last].write(str(parts[-1]), savemask="nan")
    output = tmp_path / f"all.{suffix}"
    cube_concatenate(output, parts, memory_limit=200_000)
    flux, again = read(output)
    original = open_cube(MOSAIC)
    np.testing.assert_array_equal(flux.view("i4"), original.flux.values.view("i4"))
    np.testing.assert_array_equal(again.variance.values, original.variance.values)
    np.testing.assert_array_equal(again.wavelength, original.wavelength)
    np.testing.assert_allclose(again.muse.to_wcs().wcs.crpix, original.muse.to_wcs().wcs.crpix)


def test_concatenate_mixes_fits_and_zarr(tmp_path):
    cube = open_cube(MINICUBE)
    cube_to_fits(cube.isel(wavelength=slice(0, 100)), tmp_path / "a.fits")
    cube_to_zarr(cube.isel(wavelength=slice(100, 130)), tmp_path / "b.zarr")
    cube_concatenate(tmp_path / "c.fits", [tmp_path / "a.fits", tmp_path / "b.zarr"])
    np.testing.assert_array_equal(read(tmp_path / "c.fits")[0], cube.flux.values[:130])


def test_concatenate_rejects(tmp_path, caplog):
    cube = open_cube(MOSAIC)
    cube_to_fits(cube.isel(wavelength=slice(0, 10)), tmp_path / "a.fits")
    a = tmp_path / "a.fits"

    def rejected(message, part):
        cube_to_fits(part, tmp_path / "b.fits", overwrite=True)
        with pytest.raises(InputError, match=message):
            cube_concatenate(tmp_path / "c.fits", [a, tmp_path / "b.fits"])

    rejected("starts at 4763.750000 Angstrom, expected 4762.5", cube.isel(wavelength=slice(11, 20)))
    rejected("starts at 4761.25", cube.isel(wavelength=slice(9, 20)))
    rejected(r"29 x 30 spaxels found", cube.isel(wavelength=slice(10, 20), x=slice(0, 29)))
    rejected("CD3_3 = 2.5 found", cube.isel(wavelength=slice(10, 20, 2)))
    rejected("only one of it", cube.isel(wavelength=slice(10, 20)).drop_vars("variance"))
    with pytest.raises(InputError, match="two or more"):
        cube_concatenate(tmp_path / "c.fits", [a])
    log = {"CTYPE3": "AWAV-LOG", "CD3_3": 0.78125}
    write_part(tmp_path / "log.fits", **log)
    with pytest.raises(InputError, match="only linear axes"):
        cube_concatenate(tmp_path / "c.fits", [tmp_path / "log.fits", a])
    assert not (tmp_path / "c.fits").exists()
    # another pointing is only warned of
    shifted = cube.isel(wavelength=slice(10, 20))
    header = json.loads(shifted.attrs["data_header"])
    shifted.attrs["data_header"] = json.dumps([[k, v + 1 if k == "CRPIX1" else v, c] for k, v, c in header])
    cube_to_fits(shifted, tmp_path / "b.fits", overwrite=True)
    with caplog.at_level(logging.WARNING, "musedask"):
        cube_concatenate(tmp_path / "c.fits", [a, tmp_path / "b.fits"])
    assert "CRPIX1" in caplog.text


# --- filter ------------------------------------------------------------------------------------


@pytest.fixture
def cube_path(tmp_path):
    cube_to_fits(open_cube(MINICUBE).isel(wavelength=slice(0, 700)), tmp_path / "c.fits")
    return tmp_path / "c.fits"


def test_filter_writes_images(cube_path, caplog):
    with caplog.at_level(logging.WARNING, "musedask"):
        paths = cube_filter(cube_path, FILTERS, ["white", "Johnson_V", "missing", "none"], box=(5000, 5100))
    assert [p.name for p in paths] == ["c_white.fits", "c_Johnson_V.fits", "c_CUSTOM_5000.000_5100.000.fits"]
    assert "there is no filter 'missing'" in caplog.text
    cube = open_cube(cube_path)
    throughput = filter_throughput(read_filter(FILTERS, "Johnson_V"), cube.wavelength)
    with fits.open(paths[1], checksum=True) as hdus:
        np.testing.assert_array_equal(hdus["DATA"].data, collapse(cube.flux.values, throughput))
        assert hdus[0].header["OBJECT"].endswith("(Johnson_V)")
        assert hdus[0].header["ESO DRS MUSE FILTER FRACTION"] < 100
        assert hdus["DATA"].header["NAXIS"] == 2 and hdus["DATA"].header["INHERIT"]
        assert all(hdu.verify_checksum() == 1 for hdu in hdus)
    with fits.open(paths[2]) as hdus:
        part = cube.sel(wavelength=slice(5000, 5100)).flux.astype("f8").mean("wavelength")
        np.testing.assert_allclose(hdus["DATA"].data, part, rtol=1e-5, atol=1e-5)
    with pytest.raises(OutputExistsError):
        cube_filter(cube_path, FILTERS, ["white"])
    cube_filter(cube_path, FILTERS, ["white"], overwrite=True)


def test_filter_takes_all_of_the_list(cube_path):
    assert len(cube_filter(cube_path, FILTERS)) == 27


def test_filter_extends_fits(cube_path):
    before = cube_path.read_bytes()
    assert cube_filter(cube_path, FILTERS, ["white", "Johnson_V"], extend=True) == [cube_path]
    assert cube_path.read_bytes()[: len(before)] == before
    with fits.open(cube_path, checksum=True) as hdus:
        assert [h.header["EXTNAME"] for h in hdus[1:]] == ["DATA", "STAT", "white", "Johnson_V"]
        assert all(hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1 for hdu in hdus)
    assert list(open_source(cube_path).images) == ["white", "Johnson_V"]
    content = cube_path.read_bytes()
    with pytest.raises(InputError, match=r"\[white\]: there is an extension of that name"):
        cube_filter(cube_path, FILTERS, ["white"], extend=True)
    assert cube_path.read_bytes() == content and len(list(cube_path.parent.iterdir())) == 1


def test_filter_extends_zarr(cube_path):
    path = cube_path.with_suffix(".zarr")
    cube_to_zarr(cube_path, path)
    cube_filter(path, None, ["white"], extend=True)
    cube_filter(path, FILTERS, ["Johnson_V"], extend=True)
    cube = open_cube(path)
    image = collapse(cube.flux.values, np.ones(len(cube.wavelength)))
    np.testing.assert_array_equal(cube.fov_white.values, image)
    assert list(open_source(path).images) == ["white", "Johnson_V"]
    # a dataset in memory is a source as well
    cube_to_fits(cube, cube_path, format="xCube", overwrite=True)
    np.testing.assert_array_equal(fits.getdata(cube_path, "white"), image)


def test_filter_needs_a_filter(cube_path):
    with pytest.raises(InputError, match="none of the filters was found"):
        cube_filter(cube_path, FILTERS, ["missing"])
    with pytest.raises(InputError, match="ascending"):
        cube_filter(cube_path, box=(5100, 5000))


# --- info --------------------------------------------------------------------------------------


def test_info(tmp_path):
    write_part(tmp_path / "a.fits", None, wavelength(19))
    info = cube_info(tmp_path / "a.fits", scan=True, memory_limit=100)
    assert info["shape"] == [NZ, NY, NX] and info["format"] == "FITS"
    assert info["nan_fraction"] == 0.5
    assert info["flux_range"] == [TRUTH[:20].min(), TRUTH[:20].max()]
    assert info["wavelength"] == {"first": 5000.0, "last": 5048.75, "step": 1.25, "ctype": "AWAV"}
    np.testing.assert_allclose(info["wcs"]["scale"], [0.2, 0.2], rtol=1e-12)
    text = render_info(info, header=True)
    assert "5 x 4 spaxels, 40 planes" in text and "50.00 % of the voxels" in text
    assert "CRVAL3 = 5000.0" in text and "CRVAL3" not in render_info(info)
    json.dumps(info)


def test_info_of_zarr_and_dataset(tmp_path):
    cube_to_zarr(MOSAIC, tmp_path / "c.zarr")
    info = cube_info(tmp_path / "c.zarr")
    assert info["format"] == "Zarr" and info["chunks"] == [64, 30, 30] and "shards" in render_info(info)
    assert "nan_fraction" not in info
    part = cube_info(open_cube(tmp_path / "c.zarr").isel(x=slice(0, 3)))
    assert part["shape"] == [500, 30, 3] and part["format"] == "dataset"
    np.testing.assert_allclose(part["wcs"]["corners"][0], info["wcs"]["corners"][0])
    linear = {"CTYPE1": "PIXEL", "CTYPE2": "PIXEL", "CUNIT1": "pixel", "CUNIT2": "pixel"}
    write_part(tmp_path / "a.fits", **linear)
    assert "PIXEL, PIXEL, AWAV" in render_info(cube_info(tmp_path / "a.fits"))
    assert open_cube(tmp_path / "a.fits").muse.to_wcs().wcs.ctype[0] == "PIXEL"
