"""Scenes from cubes, against interpolations that can be done by hand."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from musedask.errors import InputError
from musedask.io.cube import cube_to_zarr
from musedask.sim import cubescene
from musedask.sim.cubescene import CubeScene
from musedask.sim.scene import scene_from_dict


@pytest.fixture
def small_cube(tmp_path: Path) -> Path:
    data = np.random.default_rng(1).normal(size=(5, 7, 9)).astype(np.float32)
    data[0, 0, 0] = np.nan
    hdu = fits.ImageHDU(data, name="DATA")
    angle = np.radians(25.0)
    c, s = np.cos(angle) * 0.2 / 3600, np.sin(angle) * 0.2 / 3600
    hdu.header.update(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": "AWAV", "CUNIT1": "deg", "CUNIT2": "deg",
            "CUNIT3": "Angstrom", "CRVAL1": 10.0, "CRVAL2": -40.0, "CRVAL3": 5000.0, "CRPIX1": 2.0,
            "CRPIX2": 6.0, "CRPIX3": 1.0, "CD1_1": -c, "CD1_2": s, "CD2_1": s, "CD2_2": c, "CD3_3": 1.25,
        }
    )  # fmt: skip
    path = tmp_path / "cube.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


def test_cube_scene_gives_back_the_cube(small_cube):
    with fits.open(small_cube) as hdus:
        data, wcs = np.nan_to_num(hdus["DATA"].data), WCS(hdus["DATA"].header).celestial
    scene = CubeScene.from_cube(small_cube, outside="zero")
    y, x = np.mgrid[1:6, 1:8]
    ra, dec = wcs.all_pix2world(x, y, 0)
    xi = (ra - scene.ra) * np.cos(np.radians(dec)) * 3600
    eta = (dec - scene.dec) * 3600
    for plane in range(5):
        got = scene.surface_brightness(xi, eta, 5000 + 1.25 * plane)
        np.testing.assert_allclose(got, data[plane, 1:6, 1:8], atol=2e-3)
    middle = scene.surface_brightness(0, 0, 5000.625)
    assert middle == pytest.approx(data[:2, 3, 4].mean(), abs=1e-5)
    assert scene.surface_brightness(100.0, 0.0, 5000.0) == 0


def test_cube_scene_mirrors_and_clamps(small_cube):
    scene = CubeScene.from_cube(small_cube)
    a, b, c, d = scene.to_pixel
    inverse = np.linalg.inv([[a, b], [c, d]])

    def at(x, y, wave=5001.0):
        return scene.surface_brightness(*(inverse @ [x - 4, y - 3]), wave)

    assert at(9.5, 2.0) == pytest.approx(at(6.5, 2.0), abs=1e-5)
    assert at(-1.25, -2.5) == pytest.approx(at(1.25, 2.5), abs=1e-5)
    assert at(3, 3, 9000.0) == at(3, 3, 5005.0)


def test_cube_scene_errors(tmp_path, small_cube):
    with pytest.raises(InputError, match="no such file"):
        CubeScene.from_cube(tmp_path / "none.fits")
    with pytest.raises(InputError, match="mirror or zero"):
        CubeScene.from_cube(small_cube, outside="wrap")
    with pytest.raises(InputError, match="neither"):
        CubeScene(None, 0.0, 0.0, (1.0, 0.0, 0.0, 1.0), 5000.0, 1.25)
    for key, value, text in (
        ("CTYPE1", "GLON-TAN", "RA---TAN"), ("CTYPE3", "WAVE", "AWAV"), ("CD2_2", "x", "numbers"),
    ):  # fmt: skip
        with fits.open(small_cube) as hdus:
            hdus["DATA"].header[key] = value
            hdus.writeto(tmp_path / "bad.fits", overwrite=True)
        with pytest.raises(InputError, match=text):
            CubeScene.from_cube(tmp_path / "bad.fits")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(InputError, match="no image extension DATA"):
        CubeScene.from_cube(tmp_path / "image.fits")


def test_zarr_cube_is_the_same_scene(small_cube, tmp_path):
    one = CubeScene.from_cube(small_cube)
    cube_to_zarr(small_cube, tmp_path / "cube.zarr")
    two = CubeScene.from_cube(tmp_path / "cube.zarr")
    assert two.ra == one.ra and two.to_pixel == one.to_pixel
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 100))
    np.testing.assert_array_equal(
        one.surface_brightness(x, y, 5002.0), two.surface_brightness(x, y, 5002.0)
    )


@pytest.mark.parametrize("outside", ["mirror", "zero"])
def test_pieces_of_a_large_cube(small_cube, monkeypatch, outside):
    """A cube that stays on disk gives the same values, also if hardly anything fits into memory."""
    whole = CubeScene.from_cube(small_cube, outside=outside)
    monkeypatch.setattr(cubescene, "_WHOLE_CUBE", 100)
    monkeypatch.setattr(cubescene, "_PIECE_POINTS", 7)
    pieces = CubeScene.from_cube(small_cube, outside=outside)
    assert pieces.data is None and pieces.shape == whole.shape
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-2, 2, (2, 60))
    wave = rng.uniform(4990, 5010, 60)
    np.testing.assert_array_equal(
        pieces.surface_brightness(x, y, wave), whole.surface_brightness(x, y, wave)
    )


def test_other_spaxels_and_places(small_cube):
    scene = CubeScene.from_cube(small_cube, ra=20.0, dec=-30.0)
    assert (scene.ra, scene.dec) == (20.0, -30.0)
    assert scene.spaxel_area == pytest.approx(0.04)
    assert scene.reach == pytest.approx(0.1 * np.hypot(7, 9))
    half = scene.observed(spaxel_area=0.02)
    assert half.surface_brightness(0.1, 0.1, 5001.0) == pytest.approx(
        scene.surface_brightness(0.1, 0.1, 5001.0) / 2, rel=1e-6
    )
    for copy in (pickle.loads(pickle.dumps(half)), scene_from_dict(half.to_dict())):
        assert copy == half
        assert copy.surface_brightness(0.1, 0.1, 5001.0) == half.surface_brightness(0.1, 0.1, 5001.0)
    assert len(pickle.dumps(scene)) < 2000


def test_real_cube():
    spec = importlib.util.find_spec("mpdaf")
    if spec is None or spec.origin is None:
        pytest.skip("mpdaf, whose wheel has a real cube, is not installed")
    scene = CubeScene.from_cube(Path(spec.origin).parent / "data/sdetect/minicube.fits")
    assert (scene.ra, scene.dec) == pytest.approx((63.355417, 10.46556), abs=1e-3)
    values = scene.surface_brightness(np.linspace(-3, 3, 50), 0.0, 6000.0)
    assert np.isfinite(values).all() and values.max() > 20
