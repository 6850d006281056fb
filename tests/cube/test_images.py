"""Field-of-view images: arithmetic, independence of pieces, agreement with mpdaf and the reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path

import mpdaf
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from musedask.cube.images import (
    add_planes,
    collapse,
    filter_fraction,
    filter_throughput,
    finish_image,
    fov_headers,
    fov_image,
    fov_images,
    image_header,
)
from musedask.io.cube import cube_to_fits, cube_to_zarr, open_cube, open_source
from musedask.io.tables import Filter, box_filter, read_filter, white_filter

PACKAGE = Path(mpdaf.__file__).parent
MINICUBE = PACKAGE / "data" / "sdetect" / "minicube.fits"
FILTERS = PACKAGE / "obj" / "filters" / "filter_list.fits"

TRIANGLE = Filter("T", np.array([10.0, 20.0, 30.0]), np.array([0.2, 1.0, 0.4]))


def test_throughput_has_its_ends():
    f = filter_throughput(TRIANGLE, np.array([9.999, 10, 15, 20, 25, 30, 30.001]))
    np.testing.assert_allclose(f, [0, 0.2, 0.6, 1.0, 0.7, 0.4, 0], rtol=1e-15)
    assert filter_throughput(white_filter(), [4649.9999, 4650, 9300, 9300.1]).tolist() == [0, 1, 1, 0]


def test_fraction():
    # samples at 10, 11, .., 30; planes 0.5 apart
    values = filter_throughput(TRIANGLE, np.arange(10.0, 31.0))
    for first, n in ((5.0, 100), (14.0, 10), (25.0, 40), (2.0, 30)):
        axis = first + 0.5 * np.arange(n)
        inside = axis[filter_throughput(TRIANGLE, axis) > 0]
        low, high = max(axis[0], inside[0] - 0.5), inside[-1] + 0.5
        samples = np.arange(10.0, 31.0)
        expected = 100 * values[(samples >= low) & (samples <= high)].sum() / values.sum()
        assert filter_fraction(TRIANGLE, axis) == pytest.approx(expected, rel=1e-14)
    assert filter_fraction(TRIANGLE, np.array([100.0, 101.0])) == 0
    assert filter_fraction(TRIANGLE, 5 + 0.5 * np.arange(100)) == pytest.approx(100)
    assert filter_fraction(TRIANGLE, np.array([20.0])) > 0


def test_collapse_is_the_weighted_mean():
    rng = np.random.default_rng(1)
    planes = rng.normal(size=(20, 4, 5)).astype("f4")
    planes[rng.random(planes.shape) < 0.3] = np.nan
    planes[3, 1, 1] = np.inf
    planes[:, 2, 2] = np.nan
    f = rng.random(20)
    f[:3] = 0
    good = np.isfinite(planes)
    with np.errstate(invalid="ignore"):
        expected = np.where(good, planes, 0).astype(float).T @ f / (good.T @ f)
    image = collapse(planes, f)
    assert image.dtype == np.float32 and np.isnan(image[2, 2])
    np.testing.assert_allclose(image, expected.T, rtol=1e-6)


def test_inverse_variance():
    planes = np.array([[[1.0, 5.0]], [[3.0, 7.0]], [[9.0, 9.0]]], "f4")
    variances = np.array([[[1.0, 4.0]], [[3.0, np.nan]], [[0.0, 1e-40]]], "f4")
    np.testing.assert_allclose(collapse(planes, np.ones(3), variances), [[2 / (4 / 3), 5.0]], rtol=1e-6)


def test_no_normal_weight_is_no_data():
    sums = np.ones((1, 4))
    weights = np.array([[0.0, 1e-310, np.inf, -2.0]])
    np.testing.assert_array_equal(
        finish_image(sums, weights), np.array([[np.nan, np.nan, np.nan, -0.5]], "f4")
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 29), max_size=6), st.integers(0, 1000))
def test_pieces_make_no_difference(cuts, seed):
    rng = np.random.default_rng(seed)
    planes = rng.normal(size=(30, 3, 4)).astype("f4") * 10.0 ** rng.integers(-3, 3, (30, 1, 1)).astype("f4")
    planes[rng.random(planes.shape) < 0.2] = np.nan
    f = rng.random(30)
    sums, weights = np.zeros((3, 4)), np.zeros((3, 4))
    edges = [0, *sorted(cuts), 30]
    for a, b in pairwise(edges):
        add_planes(planes[a:b], f[a:b], sums, weights)
    np.testing.assert_array_equal(finish_image(sums, weights), collapse(planes, f))


@pytest.fixture(scope="module")
def zarr_cube(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "mini.zarr"
    cube_to_zarr(MINICUBE, path, chunks=(50, 16, 16), shards=(100, 16, 48))
    return path


@pytest.mark.parametrize("memory", [20_000, 3_000_000, 1 << 28])
@pytest.mark.parametrize("use_variance", [False, True])
def test_out_of_core(zarr_cube, memory, use_variance):
    cube = open_cube(MINICUBE)
    filters = [white_filter(), read_filter(FILTERS, "SDSS_r"), box_filter(5000, 5100), box_filter(1, 2)]
    variances = cube.variance.values if use_variance else None
    expected = [collapse(cube.flux.values, filter_throughput(f, cube.wavelength), variances) for f in filters]
    for source in (MINICUBE, zarr_cube) if memory > 20_000 else (MINICUBE,):
        found = fov_images(source, filters, use_variance=use_variance, memory_limit=memory)
        for image, reference in zip(found, expected, strict=True):
            np.testing.assert_array_equal(image, reference)
    assert np.isnan(expected[3]).all()


@pytest.mark.parametrize("name", ["SDSS_r", "Johnson_V", "Cousins_R", "ACS_F606W"])
def test_agrees_with_mpdaf(name):
    from mpdaf.obj import Cube

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = Cube(str(MINICUBE))
        theirs = cube.get_band_image(name).data.filled(np.nan)
    ours, _ = fov_image(MINICUBE, read_filter(FILTERS, name))
    # they integrate the curve over each plane, the reference takes its value at the centre
    scale = np.nanpercentile(np.abs(theirs), 90)
    assert np.nanmax(np.abs(ours - theirs)) < 1e-3 * scale


def test_headers():
    source = open_source(MINICUBE)
    curve = read_filter(FILTERS, "Johnson_V")
    header = image_header(source, curve)
    assert not [k for k in header if "3" in k.removeprefix("ESO")] and header["EXTNAME"] == "Johnson_V"
    assert header["OBJECT"].endswith(" (Johnson_V)")
    assert header["ESO DRS MUSE FILTER NAME"] == "Johnson_V"
    assert header["ESO DRS MUSE FILTER ZPAB"] == 21.09807
    assert header["ESO DRS MUSE FILTER FRACTION"] == pytest.approx(99.9, abs=0.2)
    primary, data = fov_headers(source, curve)
    assert "OBJECT" not in data and data["INHERIT"] and "ESO DRS MUSE FILTER NAME" not in data
    assert primary["OBJECT"] == header["OBJECT"]
    assert "ESO DRS MUSE FILTER ZPVEGA" in primary and "OBJECT" in source.primary
    assert "ESO DRS MUSE FILTER ZPAB" not in image_header(source, white_filter())


# --- the reference -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Products of muse_exp_combine with filters that end inside and outside the cube."""
    if shutil.which("esorex") is None:
        if os.environ.get("CI"):
            pytest.fail("esorex is not installed, but CI needs it")
        pytest.skip("esorex is not installed")
    from musedask.sim import simulate_pixtables

    folder = tmp_path_factory.mktemp("reference")
    simulate_pixtables(
        folder, n_exposures=2, ifus=(12, 13), slices=12, slice_width=24, wave_range=(6530.0, 6570.0), seed=5
    )
    curves = {
        "inside": ([6540.0, 6545.0, 6556.3], [0.1, 1.0, 0.0]),
        "low": ([6500.0, 6540.5, 6541.5], [0.5, 0.5, 0.0]),
        "high": ([6559.2, 6560.0, 6700.0], [0.0, 1.0, 1.0]),
        "step": ([6535.0, 6535.0, 6550.0, 6550.0], [0.0, 1.0, 1.0, 0.0]),
        "away": ([5000.0, 5100.0], [1.0, 1.0]),
    }
    hdus = [fits.PrimaryHDU()]
    for name, (wave, throughput) in curves.items():
        columns = [
            fits.Column("lambda", "1D", unit="Angstrom", array=wave),
            fits.Column("throughput", "1D", array=throughput),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns))
        hdus[-1].header["EXTNAME"] = name
    fits.HDUList(hdus).writeto(folder / "filters.fits")
    tables = sorted(folder.glob("*PIXTABLE*.fits"))
    sof = [f"{path} PIXTABLE_REDUCED\n" for path in tables] + [f"{folder / 'filters.fits'} FILTER_LIST\n"]
    (folder / "in.sof").write_text("".join(sof))
    names = ["white", *curves]
    for form in ("Cube", "xCube"):
        (folder / form).mkdir()
        command = [
            "esorex",
            "muse_exp_combine",
            "--save=cube",
            f"--filter={','.join(names)}",
            f"--format={form}",
        ]
        done = subprocess.run(
            [*command, str(folder / "in.sof")],
            cwd=folder / form,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=200,
        )
        assert done.returncode == 0, done.stdout
    return folder, names


@pytest.mark.esorex
def test_images_are_those_of_the_reference(reference):
    folder, names = reference
    cube = folder / "Cube" / "DATACUBE_FINAL.fits"
    for number, name in enumerate(names, 1):
        curve = read_filter(folder / "filters.fits", name)
        image, header = fov_image(cube, curve)
        with fits.open(folder / "Cube" / f"IMAGE_FOV_{number:04d}.fits") as hdus:
            np.testing.assert_array_equal(image, hdus["DATA"].data, err_msg=name)
            primary, data = fov_headers(open_source(cube), curve)
            for keyword in ("OBJECT", *[k for k in hdus[0].header if k.startswith("ESO DRS MUSE FILTER")]):
                assert primary[keyword] == hdus[0].header[keyword], (name, keyword)
            assert [k for k in data if k != "EXTNAME"] == [
                k for k in hdus["DATA"].header if k in data and k != "EXTNAME"
            ]
        with fits.open(folder / "xCube" / "DATACUBE_FINAL.fits") as hdus:
            theirs = hdus[2 + number].header
            assert theirs["EXTNAME"] == name
            assert all(header[k] == theirs[k] for k in header)
            added = set(theirs) - set(header)
            assert added == {"XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "CHECKSUM",
                             "DATASUM"}  # fmt: skip


@pytest.mark.esorex
def test_a_rewritten_cube_is_that_of_the_reference(reference, tmp_path):
    """Through Zarr and back: the same bytes, but for the time in the comments of the checksums."""
    path = reference[0] / "xCube" / "DATACUBE_FINAL.fits"
    cube_to_zarr(path, tmp_path / "c.zarr")
    cube_to_fits(tmp_path / "c.zarr", tmp_path / "c.fits", format="xCube")
    with fits.open(path) as theirs, fits.open(tmp_path / "c.fits", checksum=True) as ours:
        assert len(theirs) == len(ours)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.fileinfo()["datLoc"] == other.fileinfo()["datLoc"]
            assert mine.header["DATASUM"].strip() == other.header["DATASUM"].strip()
            for card, wanted in zip(mine.header.cards, other.header.cards, strict=True):
                assert card.keyword == wanted.keyword
                if card.keyword not in ("CHECKSUM", "DATASUM"):
                    assert card.value == wanted.value and card.comment == wanted.comment
        assert ours[0].header["DATAMD5"] == theirs[0].header["DATAMD5"]
