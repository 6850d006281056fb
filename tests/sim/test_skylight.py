"""Light of the sky, against the formulas with which the reference pipeline goes back to it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musedask.cube.geometry import position_exact
from musedask.errors import InputError
from musedask.sim import atmosphere, ephemeris
from musedask.sim.optics import Instrument
from musedask.sim.plan import Conditions, ExposurePlan
from musedask.sim.scene import Background, Scene, Star
from musedask.sim.skylight import SkyLight, truth_cube

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
