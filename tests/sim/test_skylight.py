"""Light of the sky, against the formulas with which the reference pipeline goes back to it."""

from __future__ import annotations

import math
from importlib import resources

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from musedask.cube.geometry import position_exact
from musedask.errors import InputError
from musedask.sim import atmosphere, ephemeris
from musedask.sim.cubescene import CubeScene
from musedask.sim.fields import nebula_field
from musedask.sim.optics import Instrument
from musedask.sim.plan import Conditions, ExposurePlan
from musedask.sim.scene import Background, LineRegion, Scene, Star
from musedask.sim.skylight import SkyLight, scene_centre, truth_cube

EMPTY = Background(0.0)
RA, DEC = 150.1, -30.2
INSTRUMENT = Instrument("WFM-NOAO-N")
IFUS = (12, 13)


def make_plan(hours=1.0, **options):
    """An exposure `hours` after culmination."""
    start = ephemeris.date_of(ephemeris.culmination(RA, 57000.0) + hours / 24)
    values = {"index": 0, "tag": "OBJECT", "exptime": 300.0, "ra": RA, "dec": DEC} | options
    return ExposurePlan(date_obs=start.isoformat(timespec="milliseconds"), **values)


def reference_position(plan, x, y, wave, limits):
    """RA and DEC [deg] that the reference pipeline gives a row of a pixel table.

    `postprocessing.md` sections 2, 3, 10: airmass from header values, one parallactic angle, Filippenko's
    formula written anew, the default astrometric solution, gnomonic projection.
    """
    start = ephemeris.mjd_of(plan.date_obs)
    places = [ephemeris.horizontal(plan.ra, plan.dec, start + f * plan.exptime / 86400) for f in (0, 0.5, 1)]
    secants = [1 / math.sin(math.radians(p.alt)) - 1 for p in places]
    hardie = [1 + m - 0.0018167 * m - 0.002875 * m**2 - 0.0008083 * m**3 for m in secants]
    airmass = (hardie[0] + 4 * hardie[1] + hardie[2]) / 6
    parang = (places[0].parang + places[2].parang) / 2
    pa = -plan.posang if plan.drot_mode == "SKY" else plan.posang
    c = plan.conditions

    def index(wavelength):
        t = c.temperature + 273.15
        ps = -10474 + 116.43 * t - 0.43284 * t**2 + 0.00053840 * t**3
        f, p = c.humidity / 100 * ps * 0.75006158, c.pressure * 0.75006158
        s = 1 / (wavelength / 1e4) ** 2
        n = 64.328 + 29498.1 / (146 - s) + 255.4 / (41 - s)
        n *= p / 720.883 * (1 + (1.049 - 0.0157 * c.temperature) * 1e-6 * p) / (1 + 0.003661 * c.temperature)
        n -= (0.0624 - 0.000680 * s) / (1 + 0.003661 * c.temperature) * f
        return 1 + 1e-6 * n

    tangent = math.tan(math.acos(1 / airmass))
    dr = tangent * 3600 * math.degrees(1) * (index(7000.0) - index(wave)) / 0.2
    angle = math.radians(parang + pa)
    u = x - math.sin(angle) * dr - (limits[0] + limits[1]) / 2
    v = y + math.cos(angle) * dr - (limits[2] + limits[3]) / 2
    phi = math.radians(pa)
    k = 0.2 / 3600
    xi = math.cos(phi) * -k * u - math.sin(phi) * k * v
    eta = math.sin(phi) * -k * u + math.cos(phi) * k * v
    # "rad" stage, then the exact formula of the "deg" stage
    theta = math.atan(math.degrees(1) / math.hypot(xi, eta))
    dra, ddec = position_exact(math.atan2(xi, -eta), theta - math.pi / 2, plan.dec)
    return plan.ra + dra, plan.dec + ddec


def find(light, x0, y0, wave):
    """Centre of light of the only star, near a place in the geometry plane."""
    dx, dy = np.meshgrid(np.arange(-80, 81.0), np.arange(-80, 81.0))
    k = np.argmax(light.continuum(x0 + dx, y0 + dy, np.full(dx.shape, wave)))
    x0, y0 = x0 + dx.flat[k], y0 + dy.flat[k]
    dx, dy = np.meshgrid(np.arange(-40, 40.5, 1.0) * 0.5, np.arange(-40, 40.5, 1.0) * 0.5)
    for _ in range(5):
        image = light.continuum(x0 + dx, y0 + dy, np.full(dx.shape, wave)).astype(float)
        x0, y0 = x0 + (image * dx).sum() / image.sum(), y0 + (image * dy).sum() / image.sum()
    return x0, y0


@pytest.mark.parametrize("wave", [4760.0, 7000.0, 9300.0])
@pytest.mark.parametrize(
    ("hours", "options"),
    [
        (0.3, {}),
        (-2.5, {"posang": 33.0}),
        (2.9, {"posang": 90.0}),
        (2.9, {"posang": -140.0, "drot_mode": "STAT", "conditions": Conditions(4.0, humidity=40.0, pressure=748.0)}),
        (-3.3, {"posang": 200.0, "offset": (3.0, -2.0)}),
    ],
)
def test_star_comes_back_to_its_place(hours, options, wave):
    plan = make_plan(hours, **options)
    star = Star(9.0, -1.5, 1e5)
    scene = Scene((star,), (), EMPTY, ra=RA + 1.1 / 3600, dec=DEC - 0.7 / 3600)
    light = SkyLight(scene, plan, INSTRUMENT, IFUS, velocity=False, sky=False)
    x, y = find(light, *INSTRUMENT.centre(IFUS), wave)
    ra, dec = reference_position(plan, x, y, wave, INSTRUMENT.limits(IFUS))
    assert abs(math.hypot(x, y)) > 20
    east = (ra - scene.ra) * math.cos(math.radians(dec)) * 3600
    north = (dec - scene.dec) * 3600
    assert math.hypot(east - star.dra, north - star.ddec) < 0.02 * 0.2


def grid(x0=0.0, y0=0.0, half=40):
    """Every spaxel around a place."""
    axis = np.arange(-half, half + 1.0)
    return np.meshgrid(x0 + axis, y0 + axis)


def test_flux_of_a_star_is_conserved():
    """All electrons of a star: its flux, extinction, telluric absorption, sensitivity; the seeing moves none."""
    plan = make_plan(-2.0, posang=40.0)
    scene = Scene((Star(0.0, 0.0, 1e5, -1.0),), (), EMPTY, ra=RA, dec=DEC)
    light = SkyLight(scene, plan, INSTRUMENT, IFUS, velocity=False, sky=False)
    assert 1.1 < light.airmass < 1.4
    for wave in (4800.0, 6000.0, 7605.0, 9300.0):
        x, y = grid(*INSTRUMENT.centre(IFUS))
        total = light.continuum(x, y, wave).sum(dtype=float)
        k, t = float(atmosphere.extinction(wave)), float(atmosphere.telluric(wave))
        flux = 1e5 * 7000 / wave * 10 ** (-0.4 * light.airmass * k) * t**light.airmass
        assert total == pytest.approx(flux * float(INSTRUMENT.sensitivity(wave)), rel=2e-3)


def test_seeing_is_that_of_the_plan():
    plan = make_plan(0.2, conditions=Conditions(seeing=1.2))
    scene = Scene((Star(0.0, 0.0, 1e5),), (), EMPTY, fwhm=0.5, ra=RA, dec=DEC)
    light = SkyLight(scene, plan, INSTRUMENT, IFUS, sky=False)
    expected = float(atmosphere.seeing(7000.0, light.airmass, plan.conditions))
    assert light.scene.fwhm == pytest.approx(expected, rel=1e-6) and 1.0 < expected < 1.2


def test_velocity_of_the_observer_is_undone_by_the_reference():
    plan = make_plan(1.0)
    scene = Scene((), (LineRegion(0.0, 0.0, 2.0, 1e4, 6562.8, 0.8),), EMPTY, ra=RA, dec=DEC)
    light = SkyLight(scene, plan, INSTRUMENT, IFUS, sky=False)
    wave = np.arange(6550.0, 6576.0, 0.02)
    values = light.continuum(*INSTRUMENT.centre(IFUS), wave).astype(float)
    observed = (values * wave).sum() / values.sum()
    v = atmosphere.barycentric_velocity(RA, DEC, ephemeris.mjd_of(plan.date_obs) + plan.exptime / 2 / 86400)
    assert abs(v) > 1 and light.velocity == pytest.approx(v, abs=1e-3)
    # postprocessing.md section 9
    beta = v / 299792.458
    assert observed * math.sqrt((1 + beta) / (1 - beta)) == pytest.approx(6562.8, abs=2e-3)
    assert abs(observed - 6562.8) > 0.02
    still = SkyLight(scene, plan, INSTRUMENT, IFUS, sky=False, velocity=False)
    assert still.doppler == 1


def test_sky_is_seen_from_the_ground():
    plan = make_plan(2.5)
    light = SkyLight(None, plan, INSTRUMENT, IFUS)
    wave = np.array([5000.0, 7600.0, 9000.0])
    per_spaxel = 0.04 * atmosphere.sky_continuum(wave, plan)
    np.testing.assert_allclose(
        light.continuum(3.0, -2.0, wave), per_spaxel * INSTRUMENT.sensitivity(wave), rtol=2e-3
    )
    np.testing.assert_allclose(light.reduced_sky(wave) * light.transmission(wave), per_spaxel, rtol=1e-12)
    lines = atmosphere.sky_lines(plan)
    assert len(light.line_waves) == len(lines) and (np.diff(light.line_waves) >= 0).all()
    k = int(np.argmax(lines["flux"]))
    rate = light.line_rates[np.argmin(np.abs(light.line_waves - lines["wave"][k]))]
    expected = 0.04 * lines["flux"][k] * INSTRUMENT.sensitivity(lines["wave"][k])
    assert rate == pytest.approx(float(expected), rel=1e-6)
    assert (light.line_factor(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 1))) == 1).all()
    dark = SkyLight(None, plan, INSTRUMENT, IFUS, sky=False)
    assert dark.line_waves.size == 0 and not dark.continuum(0.0, 0.0, wave).any()


def test_shapes_and_points_within_a_pixel():
    """Points within a pixel share place and continuum; lines are seen by each."""
    plan = make_plan(1.0)
    light = SkyLight(nebula_field(RA, DEC), plan, INSTRUMENT, IFUS)
    x, y = np.meshgrid(np.linspace(-30, 30, 40), np.ones(500))
    wave = np.linspace(6500, 6600, 500)[:, None] + np.zeros((1, 40))
    fine = wave + np.array([-0.42, 0.0, 0.42])[:, None, None]
    together = light.continuum(x.astype("f4"), y.astype("f4"), fine.astype("f4"))
    assert together.shape == fine.shape and together.dtype == np.float32
    for part, waves in zip(together, fine, strict=True):
        alone = light.continuum(x, y, waves)
        np.testing.assert_allclose(part, alone, rtol=3e-3)
    assert light.continuum(0.0, 0.0, 6000.0).shape == ()
    assert light.continuum(x[0], 0.0, 6000.0).shape == (40,)
    assert light.continuum(x[0], 0.0, 6000.0)[3] == light.continuum(x[0, 3], 0.0, 6000.0)


def test_cube_as_scene():
    path = resources.files("mpdaf").joinpath("data/sdetect/minicube.fits")
    scene = CubeScene.from_cube(str(path), outside="zero")
    date = ephemeris.date_of(ephemeris.culmination(scene.ra, 57000.0)).isoformat(timespec="milliseconds")
    plan = ExposurePlan(0, "OBJECT", date, 300.0, ra=scene.ra, dec=scene.dec, posang=20.0)
    light = SkyLight(scene, plan, INSTRUMENT, IFUS, velocity=False, sky=False)
    x0, y0 = INSTRUMENT.centre(IFUS)
    x, y = grid(x0, y0, 12)
    got = light.continuum(x, y, 7000.0) / (light.transmission(7000.0) * INSTRUMENT.sensitivity(7000.0))
    east, north = light.position(x, y, 7000.0)
    np.testing.assert_allclose(got, scene.surface_brightness(east, north, 7000.0), rtol=1e-4, atol=1e-3)
    # a spaxel is a spaxel: the totals over the same area agree
    assert got.sum() == pytest.approx(scene.data[int((7000 - scene.wave0) / 1.25), 8:33, 8:33].sum(), rel=0.15)
    assert light.continuum(x0 + 60, y0, 7000.0) == 0


def test_scene_without_coordinates_is_at_the_target():
    east, north = 5.0, -3.0
    dec = DEC + north / 3600
    plan = make_plan(0.0, ra=RA + east / 3600 / math.cos(math.radians(DEC)), dec=dec, offset=(east, north))
    assert scene_centre(Scene(), plan) == pytest.approx((RA, DEC), abs=1e-9)
    assert scene_centre(Scene(ra=1.0, dec=2.0), plan) == (1.0, 2.0)


def test_truth_cube():
    scene = Scene((Star(2.0, 1.0, 1e4),), (), EMPTY, ra=RA, dec=DEC)
    header = fits.Header()
    header.update(
        {"NAXIS": 2, "NAXIS1": 60, "NAXIS2": 50, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA,
         "CRVAL2": DEC, "CRPIX1": 30.0, "CRPIX2": 25.0, "CD1_1": -0.2 / 3600, "CD2_2": 0.2 / 3600}
    )  # fmt: skip
    cube = truth_cube(scene, header, [6000.0, 7000.0])
    assert cube.shape == (2, 50, 60)
    assert np.unravel_index(cube[1].argmax(), (50, 60)) == (24 + 5, 29 - 10)
    assert cube[1].sum() == pytest.approx(1e4, rel=0.02)
    with pytest.raises(InputError, match="no size"):
        wcs = WCS(header)
        wcs.pixel_shape = None
        truth_cube(scene, wcs, [7000.0])
    with pytest.raises(InputError, match="no coordinates"):
        truth_cube(Scene(), header, [7000.0])


def test_errors():
    plan = make_plan(0.0)
    with pytest.raises(InputError, match="outside the field"):
        SkyLight(Scene((Star(0, 0, 1.0),), ra=RA + 1, dec=DEC), plan, INSTRUMENT, IFUS)
    with pytest.raises(InputError, match="altitude"):
        SkyLight(None, make_plan(11.0), INSTRUMENT, IFUS)
