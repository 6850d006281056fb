"""Scenes against integrals and interpolations that can be done by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from musedask.errors import InputError
from musedask.sim import Background, CubeScene, LineRegion, Scene, Star, default_scene, scene_from_dict

EMPTY = Background(0.0)


def _grid(half=8.0, step=0.2):
    axis = np.arange(-half, half + step / 2, step)
    return np.meshgrid(axis, axis)


def test_star_flux_is_conserved():
    scene = Scene((Star(0.33, -0.21, 1000.0, slope=-1.0),), (), EMPTY, fwhm=0.8)
    x, y = _grid()
    assert scene.surface_brightness(x, y, 7000.0).sum() == pytest.approx(1000, rel=1e-3)
    assert scene.surface_brightness(x, y, 3500.0).sum() == pytest.approx(2000, rel=1e-3)


def test_star_width_and_absorption():
    scene = Scene((Star(0, 0, 1000.0, 0.0, 6000.0, 3.0, 0.5),), (), EMPTY, fwhm=1.0)
    centre, half, line = scene.surface_brightness([0, 0.5, 0], 0, [7000, 7000, 6000])
    assert half / centre == pytest.approx(0.5, abs=1e-3)
    assert line / centre == pytest.approx(0.5, abs=1e-3)


def test_line_flux_and_velocity():
    line = LineRegion(0, 0, 1.0, 500.0, 6562.8, 1.3, velocity_gradient=50.0, velocity_angle=90.0)
    scene = Scene((), (line,), EMPTY)
    wave = np.arange(6540, 6590, 0.1)
    values = scene.surface_brightness(np.array([[0.0], [1.0]]), 0.0, wave[None])
    assert values.sum(axis=1) * 0.1 == pytest.approx([500, 500 * np.exp(-0.5)], rel=1e-5)
    centres = (values * wave).sum(axis=1) / values.sum(axis=1)
    assert centres[1] - centres[0] == pytest.approx(6562.8 * 50 / 299792.458, abs=1e-3)


def test_ring_peaks_on_its_radius():
    scene = Scene((), (LineRegion(0, 0, 2.0, 100.0, 5000.0, kind="ring", width=0.3),), EMPTY)
    r = np.arange(0, 4, 0.05)
    assert r[np.argmax(scene.surface_brightness(r, 0, 5000.0))] == pytest.approx(2.0)


def test_background_plane():
    scene = Scene(background=Background(10.0, 1.0, -2.0, 0.0))
    assert scene.surface_brightness([0, 1, 0], [0, 0, 1], 5000) == pytest.approx([10, 11, 8])


def test_value_depends_on_its_own_row_only():
    scene = default_scene(4, 30.0)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-16, 16, (2, 5000))
    wave = rng.uniform(4750, 9350, 5000)
    together = scene.surface_brightness(x, y, wave)
    order = rng.permutation(5000)
    np.testing.assert_array_equal(scene.surface_brightness(x[order], y[order], wave[order]), together[order])
    alone = [scene.surface_brightness(x[i], y[i], wave[i]) for i in range(40)]
    np.testing.assert_array_equal(np.array(alone), together[:40])


def test_round_trip_and_seed():
    scene = default_scene(3, 20.0)
    assert scene_from_dict(scene.to_dict()) == scene
    assert default_scene(3, 20.0) == scene
    assert default_scene(4, 20.0) != scene


def test_errors():
    with pytest.raises(InputError, match="fwhm"):
        Scene(fwhm=0)
    with pytest.raises(InputError, match="kind"):
        Scene(lines=(LineRegion(0, 0, 1, 1, 5000, kind="disc"),))
    with pytest.raises(InputError, match="unknown kind"):
        scene_from_dict({"kind": "picture"})
    with pytest.raises(InputError, match="size"):
        default_scene(0, -1)


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
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(InputError, match="no image extension DATA"):
        CubeScene.from_cube(tmp_path / "image.fits")


def test_real_cube():
    spec = importlib.util.find_spec("mpdaf")
    if spec is None or spec.origin is None:
        pytest.skip("mpdaf, whose wheel has a real cube, is not installed")
    scene = CubeScene.from_cube(Path(spec.origin).parent / "data/sdetect/minicube.fits")
    assert (scene.ra, scene.dec) == pytest.approx((63.355417, 10.46556), abs=1e-3)
    values = scene.surface_brightness(np.linspace(-3, 3, 50), 0.0, 6000.0)
    assert np.isfinite(values).all() and values.max() > 20
