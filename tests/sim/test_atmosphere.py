import math
from dataclasses import replace

import numpy as np
import pytest

from musedask.cube.geometry import air_to_vacuum
from musedask.instrument import air_index
from musedask.sim import atmosphere, molecules
from musedask.sim.plan import Conditions, ExposurePlan

PLAN = ExposurePlan(
    index=3, tag="OBJECT", date_obs="2014-12-08T04:00:00.000", exptime=600.0, ra=63.36, dec=10.465,
)  # fmt: skip

#: OH lines in air: mean of the doublet (Osterbrock et al. 1996, PASP 108, 277)
OSTERBROCK = [
    6287.434, 6498.729, 6533.044, 6553.617, 6863.955, 6923.220, 7244.907, 7276.405, 7284.439, 7316.282, 7329.148,
    7340.885, 7358.659, 7750.640, 7794.112, 7808.467, 7821.503, 7841.266, 7913.708, 7949.204, 7964.650, 7993.332,
    8344.602, 8415.231, 8430.174, 8493.389, 8791.186, 8827.096, 8885.850, 8903.114, 8943.395, 8988.366, 9375.961,
]  # fmt: skip


# --- air ---


def test_extinction_is_that_of_paranal():
    # Patat et al. 2011, table 2
    for wave, k in ((4625, 0.198), (5475, 0.131), (5500, 0.130), (6575, 0.081), (8675, 0.030)):
        assert atmosphere.extinction(wave) == pytest.approx(k, abs=1e-3)
    curve = atmosphere.extinction(np.arange(4650, 9301.0))
    assert (curve > 0).all() and curve.argmax() == 0


def test_refraction_as_filippenko():
    """His table 1: displacement from 5000 Angstrom in arcsec, for 600 mm Hg, 7 C, 8 mm Hg of water vapour."""
    c = Conditions(temperature=7.0, pressure=600 / 0.75006158, humidity=100 * 8 / 7.513)
    for airmass, wave, expected in (
        (1.5, 4000, 0.72), (1.5, 6000, -0.37), (1.5, 7000, -0.59), (1.5, 9000, -0.84),
        (2.0, 4000, 1.12), (2.0, 7000, -0.92), (2.0, 10000, -1.42), (1.1, 6500, -0.20),
    ):  # fmt: skip
        z = math.degrees(math.acos(1 / airmass))
        # signs: bluer light is refracted more, towards the zenith
        assert atmosphere.refraction(wave, 5000.0, z, c) == pytest.approx(expected, abs=0.035)


def test_refraction_vanishes_at_zenith_and_reference():
    c = Conditions()
    assert atmosphere.refraction(7000.0, 7000.0, 45.0, c) == 0
    assert np.abs(atmosphere.refraction(np.array([4800.0, 9200.0]), 7000.0, 0.0, c)).max() < 1e-12


def test_refractive_index_of_standard_air():
    c = Conditions(temperature=15.0, pressure=1013.25, humidity=0.0)
    wave = np.array([4861.34, 5893.0, 8500.0])
    np.testing.assert_allclose(atmosphere.refractive_index(wave, c), air_index(wave), atol=3e-7)


def test_air_index_and_the_cube_agree():
    # Ciddor (1996): 6328 Angstrom in vacuum; NIST: H alpha 6562.79 in air, 6564.60 in vacuum
    assert air_index(6330.0) == pytest.approx(1.000276530, abs=2e-9)
    rows = np.zeros((1, 3), np.float32)
    rows[0, 2] = 6562.79
    air_to_vacuum(rows)
    assert rows[0, 2] == np.float32(np.float64(np.float32(6562.79)) * air_index(np.float64(np.float32(6562.79))))
    assert rows[0, 2] == pytest.approx(6564.60, abs=0.01)


def test_airmass():
    assert atmosphere.airmass(0.0) == 1.0
    # Hardie 1962; Bemporad's table: 1.995 at 60 deg, 2.904 at 70
    assert atmosphere.airmass(60.0) == pytest.approx(1.995, abs=2e-3)
    assert atmosphere.airmass(70.0) == pytest.approx(2.904, abs=4e-3)
    place = atmosphere.horizontal(PLAN.ra, PLAN.dec, atmosphere.mjd(PLAN.date_obs))
    assert place.airmass == pytest.approx(atmosphere.airmass(90 - place.altitude))


def test_seeing_law():
    c = Conditions(seeing=0.8)
    assert atmosphere.seeing(5000.0, 1.0, c) == pytest.approx(0.8)
    assert atmosphere.seeing(5000.0, 2.0, c) == pytest.approx(0.8 * 2**0.6)
    assert atmosphere.seeing(10000.0, 1.0, c) == pytest.approx(0.8 * 2**-0.2)


def test_barycentric_velocity():
    # towards the ecliptic pole hardly any; towards the apex of the Earth's motion 30 km/s
    time = atmosphere.mjd("2014-12-08T04:00:00")
    assert abs(atmosphere.barycentric_velocity(270.0, 66.56, time)) < 0.6
    # December 8: the Sun is at longitude 256, the Earth moves towards longitude 166: RA 167, DEC 5.5
    assert atmosphere.barycentric_velocity(167.0, 5.5, time) == pytest.approx(30.2, abs=0.6)
    assert atmosphere.barycentric_velocity(347.0, -5.5, time) == pytest.approx(-30.2, abs=0.6)


# --- absorption ---


def test_telluric_bands():
    wave = np.arange(4700.0, 9300.0, 0.25)
    t = atmosphere.telluric(wave)
    assert (t > 0).all() and (t <= 1).all()

    def mean(low, high):
        return t[(wave > low) & (wave < high)].mean()

    assert mean(7594, 7640) < 0.65 and mean(6868, 6890) < 0.88 and 0.95 < mean(6276, 6320) < 0.995
    assert mean(7160, 7320) < 0.98 and mean(8120, 8330) < 0.98 and mean(8960, 9020) < 0.95
    for low, high in ((4700, 5600), (6400, 6800), (7450, 7550), (7720, 7800), (8500, 8750)):
        assert mean(low, high) > 0.998, (low, high)
    # equivalent width of the A band over Paranal, about 26 Angstrom at airmass 1
    assert 20 < ((1 - t)[(wave > 7550) & (wave < 7720)].sum() * 0.25) < 32
    # heads of the bands
    assert wave[(t < 0.9) & (wave > 7500)][0] == pytest.approx(7593.7, abs=1.5)
    assert wave[(t < 0.9) & (wave > 6800)][0] == pytest.approx(6867.3, abs=1.5)


def test_telluric_regions_hold_the_bands():
    wave = np.arange(4700.0, 9350.0, 0.25)
    outside = np.ones(len(wave), bool)
    regions = atmosphere.telluric_regions()
    for row in regions:
        assert row["lmin"] < row["lmax"] and row["bgmin"] < row["bgmax"]
        outside &= (wave < row["lmin"] - 6) | (wave > row["lmax"] + 6)
    # at a resolution of 10 Angstrom
    smooth = np.convolve(atmosphere.telluric(wave), np.ones(40) / 40, "same")[20:-20]
    assert smooth[outside[20:-20]].min() > 0.95 and np.mean(smooth[outside[20:-20]] > 0.985) > 0.97


def test_lines_of_o2():
    a = molecules.o2_band(0, 0)
    # HITRAN: P9P9, P9Q8 and P13Q12 of the A band
    for branch, n, wavenumber in (("PP", 9, 13091.710), ("PQ", 9, 13093.656), ("PQ", 13, 13078.228)):
        line = a[(a["branch"] == branch) & (a["n"] == n)]
        assert line["wavenumber"][0] == pytest.approx(wavenumber, abs=0.01)


# --- light ---


def test_oh_lines_are_those_observed():
    lines = atmosphere.sky_lines()
    oh = lines[np.char.startswith(np.array(lines["name"]), "OH")]
    for wave in OSTERBROCK:
        near = oh[np.abs(oh["wave"] - wave) < 0.3]
        doublet = near[near["flux"] > 0.6 * near["flux"].max()]
        assert np.average(doublet["wave"], weights=doublet["flux"]) == pytest.approx(wave, abs=0.01), wave


def test_named_lines():
    lines = atmosphere.sky_lines()
    for wave in (5577.339, 6300.304, 6363.776, 5889.951, 5895.924):
        assert np.abs(lines["wave"] - wave).min() < 0.002
    by_name = {name: (wave, flux) for name, wave, flux in zip(lines["name"], lines["wave"], lines["flux"], strict=True)}
    assert by_name["OH_8-3_Q1(1.5)"][0] == pytest.approx(7276.405, abs=0.005)
    assert by_name["OH_8-3_P1(2.5)"][0] == pytest.approx(7316.282, abs=0.005)
    assert 2.9 < by_name["OI_6300"][1] / by_name["OI_6364"][1] < 3.2
    # Rayleigh: 1e10/(4 pi) photons/s/m2/sr
    rayleigh = 1e6 / (4 * math.pi) * (math.pi / 180 / 3600) ** 2 * 1.98644586e-8 / 5577.339 / 1e-20
    assert 100 < by_name["OI_5577"][1] / rayleigh < 350
    o2 = lines[lines["group"] == atmosphere.GROUP_O2]
    assert o2["wave"].min() > 8590 and o2["wave"].max() < 8730


def test_sky_lines_are_sorted_and_unique():
    lines = atmosphere.sky_lines()
    assert (np.diff(lines["wave"]) >= 0).all()
    assert len(np.unique(lines["name"])) == len(lines)
    assert lines["flux"].min() >= atmosphere.FAINTEST
    assert lines["wave"].min() > 4500 and str(lines["wave"].unit) == "Angstrom"
    assert set(np.unique(lines["group"])) == set(range(1, 13))


def v_magnitude(what) -> float:
    """Sky brightness in V [mag/arcsec2], lines included (passband of Bessell 1990)."""
    grid = np.arange(4700.0, 7001.0, 100)
    band = [0, 0.03, 0.163, 0.458, 0.78, 0.967, 1, 0.973, 0.898, 0.792, 0.684, 0.574, 0.461, 0.359, 0.27, 0.197, 0.135,
            0.081, 0.045, 0.025, 0.017, 0.013, 0.009, 0]  # fmt: skip
    wave = np.arange(4700.0, 7000.0)
    lines = atmosphere.sky_lines(what)
    flux = np.sum(atmosphere.sky_continuum(wave, what) * np.interp(wave, grid, band))
    flux += np.sum(lines["flux"] * np.interp(lines["wave"], grid, band, 0, 0))
    return -2.5 * math.log10(flux / np.interp(wave, grid, band).sum() / atmosphere.V_ZERO)


def test_dark_sky():
    # Patat 2003, A&A 400, 1183: 21.6 at solar maximum; Paranal's mean about 21.6 to 21.8
    assert 21.5 < v_magnitude(None) < 21.8
    level = atmosphere.sky_continuum(np.array([4800.0, 5500.0, 8600.0]))
    assert ((level > 350) & (level < 900)).all()


def test_moon_brightens_the_sky():
    dark, quarter, half, full = (v_magnitude(Conditions(moon_fli=f)) for f in (0.0, 0.25, 0.5, 1.0))
    assert dark > quarter > half > full and 18.0 < full < 19.5
    # and makes it bluer
    c = Conditions(moon_fli=1.0)
    blue, red = atmosphere.sky_continuum(np.array([4800.0, 8000.0]), c)
    blue0, red0 = atmosphere.sky_continuum(np.array([4800.0, 8000.0]))
    assert blue / red > 1.5 * blue0 / red0


def test_krisciunas_and_schaefer():
    """Their table 2 (Mauna Kea, k = 0.172): 19.6 mag close to a full moon becomes some 20 mag away from it."""
    args = {"moon_zenith_distance": 60.0, "zenith_distance": 40.0, "k": 0.172}
    near, far, at_90 = (atmosphere.moonlight(0.0, d, **args) for d in (10.0, 60.0, 90.0))
    assert near > far > at_90 > 0
    assert atmosphere.nanolambert_to_magnitude(79.0) == pytest.approx(21.587, abs=0.01)  # their dark zenith
    assert atmosphere.moonlight(60.0, 60.0, **args) < 0.25 * far
    assert atmosphere.moonlight(0.0, 60.0, 95.0, 40.0) == 0


def test_zodiacal_light():
    pole, ecliptic = atmosphere.zodiacal_light(270.0, 66.56), atmosphere.zodiacal_light(90.0, 23.44)
    assert ecliptic / pole == pytest.approx(140 / 60, rel=1e-3)
    # 60 S10 are 23.3 mag/arcsec2
    assert -2.5 * math.log10(pole / atmosphere.V_ZERO) == pytest.approx(23.3, abs=0.1)


def test_airglow_varies_smoothly():
    start = atmosphere.airglow_factors(PLAN)
    soon = atmosphere.airglow_factors(replace(PLAN, date_obs="2014-12-08T04:05:00.000"))
    later = atmosphere.airglow_factors(replace(PLAN, date_obs="2014-12-08T05:30:00.000"))
    assert all(abs(soon[g] / start[g] - 1) < 0.08 for g in start)
    assert max(abs(later[g] / start[g] - 1) for g in start) > 0.03
    beside = atmosphere.airglow_factors(replace(PLAN, dec=PLAN.dec + 1 / 60))
    assert all(abs(beside[g] / start[g] - 1) < 0.005 for g in start)
    bright = replace(PLAN, conditions=replace(PLAN.conditions, airglow=2.0))
    assert atmosphere.airglow_factors(bright)[3] == pytest.approx(2 * start[3])
    lines, doubled = atmosphere.sky_lines(PLAN), atmosphere.sky_lines(bright)
    np.testing.assert_allclose(doubled["flux"], 2 * lines["flux"])
    assert (atmosphere.sky_continuum(8000.0, bright) > atmosphere.sky_continuum(8000.0, PLAN)).all()


def test_tables_do_not_share_memory():
    one = atmosphere.sky_lines()
    one["flux"][:] = 0
    assert atmosphere.sky_lines()["flux"].min() > 0


def test_raman_lines():
    lines = atmosphere.raman_lines()
    assert (np.diff(lines["wave"]) >= 0).all() and len(np.unique(lines["name"])) == len(lines)
    for group, centre in ((1, 6484.0), (2, 6827.0)):
        of = lines[lines["group"] == group]
        assert of["wave"][np.argmax(of["flux"])] == pytest.approx(centre, abs=1.0)
        assert np.average(of["wave"], weights=of["flux"]) == pytest.approx(centre, abs=1.5)
    n2 = lines["flux"][lines["group"] == 2].sum()
    assert n2 == pytest.approx(atmosphere.RAMAN_FLUX, rel=0.01)
    assert lines["flux"][lines["group"] == 1].sum() / n2 == pytest.approx(0.32, abs=0.02)


def test_sun_has_its_lines():
    for wave in (4861.34, 5183.62, 5889.97, 6562.81, 8542.14):
        assert atmosphere.solar_spectrum(wave) < 0.5 * atmosphere.solar_spectrum(wave + 15)
    assert atmosphere.solar_spectrum(5450.0) == pytest.approx(1, abs=0.03)
