"""Scenes against integrals and interpolations that can be done by hand."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.special import gammaincinv

from musedask.errors import InputError
from musedask.sim.scene import (
    Background,
    Galaxy,
    LineRegion,
    Nebula,
    NebulaLine,
    Scene,
    Star,
    default_scene,
    scene_from_dict,
    sky_position,
    standard_coordinates,
)
from musedask.sim.spectra import BlackBody, Tabulated

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
    assert scene_from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    copy = pickle.loads(pickle.dumps(scene))
    assert copy == scene and copy.surface_brightness(0, 0, 5000.0) == scene.surface_brightness(0, 0, 5000.0)
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
    with pytest.raises(InputError, match="expected both"):
        Scene(ra=10.0)
    with pytest.raises(InputError, match="sersic"):
        Scene(galaxies=(Galaxy(0, 0, 1, 1, sersic=8),))
    with pytest.raises(InputError, match="scale"):
        Scene(nebulae=(Nebula(1.0, scale=0.1),))
    with pytest.raises(InputError, match="seeing"):
        Scene(seeing=((6000.0, 0.8), (5000.0, 0.9)))


def test_value_of_all_kinds_depends_on_its_own_row_only():
    """Also with lists of nearby sources, seeing, galaxies and nebulae."""
    scene = Scene(
        tuple(Star(x, -x, 1e4, spectrum=BlackBody(4000.0 + 100 * x)) for x in range(-9, 10)),
        galaxies=(Galaxy(2.0, 1.0, 1e4, 1.5, 2.0, 0.5, 30.0, 1.0), Galaxy(-5, 5, 1e3, 0.4)),
        nebulae=(Nebula(300.0), Nebula(10.0, (NebulaLine(6300.3, 1.0),), seed=1)),
    ).observed(fwhm=(0.7, -0.2))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-16, 16, (2, 4000))
    wave = np.r_[rng.uniform(4750, 9350, 2000), rng.uniform(6540, 6590, 2000)]
    together = scene.surface_brightness(x, y, wave)
    order = rng.permutation(4000)
    np.testing.assert_array_equal(scene.surface_brightness(x[order], y[order], wave[order]), together[order])
    alone = [scene.surface_brightness(x[i], y[i], wave[i]) for i in range(0, 4000, 80)]
    np.testing.assert_array_equal(np.array(alone), together[::80])


def test_seeing_goes_with_wavelength():
    scene = Scene((Star(0.0, 0.0, 1000.0),), (), EMPTY)
    x, y = _grid(9.0, 0.1)
    for fwhm in ((0.8, -0.2), lambda wave: 0.8 * (wave / 7000) ** -0.2):
        seen = scene.observed(fwhm=fwhm)
        assert seen.fwhm == pytest.approx(0.8)
        for wave in (4700.0, 9300.0):
            image = seen.surface_brightness(x, y, wave)
            assert image.sum() * 0.25 == pytest.approx(1000, rel=2e-3)
            half = np.interp(-0.5 * image.max(), -image[90, 90:], x[90, 90:])
            assert 2 * half == pytest.approx(0.8 * (wave / 7000) ** -0.2, abs=0.02)
    assert scene.observed(fwhm=1.1).fwhm == 1.1


def test_spaxels_of_another_size():
    scene = default_scene(2, 20.0)
    small = scene.observed(spaxel_area=scene.spaxel_area / 4)
    x, y = np.random.default_rng(0).uniform(-9, 9, (2, 300))
    np.testing.assert_allclose(
        small.surface_brightness(x, y, 6562.0), scene.surface_brightness(x, y, 6562.0) / 4, rtol=1e-5
    )


def test_line_spread_function_conserves_lines_and_spectra():
    wave = np.arange(6500.0, 6640.0, 0.1)
    table = Tabulated(tuple(np.arange(6000.0, 8000.0)), tuple(1.0 + (np.arange(6000, 8000) == 6570) * 50.0))
    scene = Scene(
        (Star(0, 0, 1e4, 0.0, 6600.0, 2.0, 0.6), Star(4, 4, 1e4, spectrum=table)),
        (LineRegion(0, 0, 1.0, 300.0, 6562.8, 0.7),), EMPTY, nebulae=(Nebula(100.0, turbulence=0.0),),
    )  # fmt: skip
    broad = scene.observed(lsf_sigma=1.1)
    for x in (0.0, 4.0):
        before, after = (s.surface_brightness(x, x, wave).astype(float) for s in (scene, broad))
        assert after.sum() == pytest.approx(before.sum(), rel=1e-3)
        assert after.max() < before.max()
    line = broad.surface_brightness(8.0, -8.0, wave)
    second = (line * (wave - 6562.79) ** 2)[:1000].sum() / line[:1000].sum()
    assert np.sqrt(second) > math.hypot(20 / 299792 * 6563, 1.0)


def exact_galaxy(g, fwhm, step=0.08, half=24.0):
    """The profile, averaged finely where it is steep, convolved with the Moffat by FFT; major axis along x."""
    axis = np.arange(-half, half + step / 2, step)
    b = gammaincinv(2 * g.sersic, 0.5)

    def profile(x, y):
        r = np.hypot(x, y / g.axis_ratio) / g.radius
        return np.exp(-b * r ** (1 / g.sersic) - 0.5 * (r / 4) ** 2)

    image = profile(axis[None], axis[:, None])
    c = len(axis) // 2
    for j in range(c - 12, c + 13):
        for i in range(c - 12, c + 13):
            n = 240 if max(abs(i - c), abs(j - c)) < 3 else 16
            fine = ((np.arange(n) + 0.5) / n - 0.5) * step
            image[j, i] = profile(axis[i] + fine[None], axis[j] + fine[:, None]).mean()
    u2 = (axis[None] ** 2 + axis[:, None] ** 2) / fwhm**2
    a2 = 0.25 / (2 ** (1 / 2.8) - 1)
    moffat = np.maximum((1 + u2 / a2) ** -2.8 - (1 + 64 / a2) ** -2.8, 0)
    return axis, fftconvolve(image / image.sum(), moffat / moffat.sum(), mode="same") / step**2


@pytest.mark.parametrize(("sersic", "radius", "ratio"), [(1.0, 1.5, 0.6), (4.0, 1.0, 0.8), (0.5, 1.0, 0.5)])
def test_galaxy_is_the_convolved_profile(sersic, radius, ratio):
    galaxy = Galaxy(0.0, 0.0, 1.0, radius, sersic, ratio, 90.0)
    scene = Scene((), (), EMPTY, fwhm=0.8, spaxel_area=1.0, galaxies=(galaxy,))
    axis, expected = exact_galaxy(galaxy, 0.8)
    got = scene.surface_brightness(axis[None], axis[:, None], 7000.0).astype(float)
    assert got.sum() * 0.08**2 == pytest.approx(1, abs=1e-3)
    bright = expected > 1e-3 * expected.max()
    assert np.abs(got[bright] / expected[bright] - 1).max() < 0.006


def test_galaxy_angle_colour_and_seeing():
    galaxy = Galaxy(1.0, -2.0, 1e4, 2.0, 1.0, 0.3, 30.0, 1.0)
    scene = Scene((), (), EMPTY, galaxies=(galaxy,)).observed(fwhm=(0.8, -0.2))
    along = scene.surface_brightness(1 + 2 * math.sin(math.pi / 6), -2 + 2 * math.cos(math.pi / 6), 7000.0)
    across = scene.surface_brightness(1 + 2 * math.sin(math.pi / 6), -2 - 2 * math.cos(math.pi / 6), 7000.0)
    assert along > 3 * across
    x, y = _grid(26.0, 0.2)
    assert scene.surface_brightness(x, y, 7000.0).sum() == pytest.approx(1e4, rel=2e-3)
    assert scene.surface_brightness(x, y, 9000.0).sum() == pytest.approx(1e4 * 9 / 7, rel=2e-3)
    one = scene.observed(fwhm=0.8 * (9000 / 7000) ** -0.2)
    np.testing.assert_allclose(
        scene.surface_brightness(x, y, 9000.0), one.surface_brightness(x, y, 9000.0), rtol=0.01, atol=1e-3
    )


def test_nebula_fills_the_field():
    nebula = Nebula(
        200.0, (NebulaLine(6562.79, 1.0), NebulaLine(5006.84, 0.5, 1.3)), contrast=0.5, scale=10.0, velocity=50.0,
        velocity_gradient=1.0, velocity_angle=90.0, turbulence=5.0, dispersion=25.0,
    )  # fmt: skip
    scene = Scene((), (), EMPTY, nebulae=(nebula,))
    x, y = _grid(30.0, 0.5)
    wave = np.arange(-6.0, 8.0, 0.2)
    for line in nebula.lines:
        values = scene.surface_brightness(x[..., None], y[..., None], line.wave + wave).astype(float)
        flux = values.sum(-1) * 0.2
        assert flux.mean() == pytest.approx(200 * line.ratio, rel=0.15)
        assert np.log(flux).std() == pytest.approx(0.5 * line.exponent, rel=0.2)
        velocity = (values * wave).sum(-1) / values.sum(-1) / line.wave * 299792.458
        slope, level = np.polyfit(x.ravel(), velocity.ravel(), 1)
        assert slope == pytest.approx(1.0, abs=0.15) and level == pytest.approx(50, abs=3)
        assert (velocity - level - slope * x).std() == pytest.approx(5, rel=0.35)
    other = Scene((), (), EMPTY, nebulae=(Nebula(200.0, nebula.lines, seed=1),))
    assert not np.allclose(other.surface_brightness(x, y, 6563.0), scene.surface_brightness(x, y, 6563.0))


def test_coordinates():
    ra, dec = sky_position(25.0, -40.0, 359.999, -70.0)
    assert 0 <= ra < 360
    xi, eta = standard_coordinates(ra, dec, 359.999, -70.0)
    assert (xi, eta) == pytest.approx((25.0, -40.0), abs=1e-9)


def test_reach():
    assert Scene().reach == math.inf and Scene(nebulae=(Nebula(1.0),)).reach == math.inf
    assert Scene((Star(3.0, 4.0, 1.0),)).reach == pytest.approx(5)
