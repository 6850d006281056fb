import itertools

import numpy as np
import pytest

from musedask.errors import InputError
from musedask.instrument import mode_from_name
from musedask.sim import lamps

#: NIST Atomic Spectra Database, observed wavelengths in air
NIST = {
    "NeI": [5400.5618, 5852.4879, 6143.0626, 6402.248, 6929.4673, 7032.4131, 7245.1666, 7438.8981, 8377.6080,
            8495.3598],
    "XeI": [4671.226, 4807.019, 4916.507, 8231.635, 8280.116, 8819.411, 8952.251, 9045.447, 9162.652],
    "HgI": [5460.7498, 5769.6098, 5790.6702],
    "CdI": [4678.1493, 4799.9123, 5085.8217, 6438.4695],
}  # fmt: skip


@pytest.fixture(scope="module")
def lines():
    return lamps.arc_lines()


@pytest.mark.parametrize("ion", NIST)
def test_wavelengths_are_those_of_nist(lines, ion):
    waves = np.array(lines["wave"][lines["ion"] == ion])
    for wave in NIST[ion]:
        assert np.abs(waves - wave).min() < 0.003, wave


def test_lines_are_sorted_and_unique(lines):
    waves = np.array(lines["wave"])
    assert (np.diff(waves) >= 0).all() and waves[0] >= 4500 and waves[-1] <= 9700
    for lamp in lamps.LAMPS:
        of = waves[lines["lamp"] == lamp]
        assert len(np.unique(np.round(of, 3))) == len(of)
    assert set(np.unique(lines["quality"])) == {0, 1, 2, 3, 5}


def test_no_line_saturates_in_a_usual_exposure(lines):
    # one column of pixels: the peak of a Gaussian with FWHM 2.6 Angstrom; 65535 adu are about 70 000 e-
    peak = np.array(lines["flux"]) / (2.61 / 1.25 / 2.3548 * np.sqrt(2 * np.pi))
    assert peak.max() < 50000
    for lamp, exptime in lamps.EXPTIMES.items():
        if lamp in lamps.LAMPS:
            of = lamps.arc_lines(lamp)
            assert np.allclose(of["rate"] * exptime, of["flux"]) and of["flux"].max() == pytest.approx(lamps.BRIGHTEST)


def test_quality_5_lines_are_isolated(lines):
    for lamp in lamps.LAMPS:
        of = lines[lines["lamp"] == lamp]
        best = of[of["quality"] == 5]
        assert len(best) >= 5
        for row in best:
            near = np.abs(of["wave"] - row["wave"]) < 12
            assert near.sum() == 1 or np.sort(np.array(of["flux"][near]))[-2] < 0.02 * row["flux"]
            assert row["flux"] >= 8000 and row["error"] <= 0.005


def test_lines_move_little_by_their_neighbours(lines):
    """Fits of single lines of fixed width, as the reference makes them, find the catalogue's wavelengths."""
    from scipy.optimize import curve_fit

    sigma = lamps.LINE_FWHM / 2.3548

    def profile(x, wave, flux, background):
        return flux * np.exp(-0.5 * ((x - wave) / sigma) ** 2) + background

    for lamp in lamps.LAMPS:
        of = lines[lines["lamp"] == lamp]
        for row in of[of["quality"] >= 3]:
            x = row["wave"] + 1.25 * (np.arange(-6, 7) + 0.3)
            y = sum(profile(x, r["wave"], r["flux"], 0) for r in of[np.abs(of["wave"] - row["wave"]) < 15])
            found = curve_fit(profile, x, y, (row["wave"], row["flux"], 0.0), np.sqrt(y + 100))[0][0]
            assert abs(found - row["wave"]) < 0.03, row["wave"]


def test_multiplets_stand_alone(lines):
    for lamp in lamps.LAMPS:
        of = lines[lines["lamp"] == lamp]
        waves = np.array(of["wave"][of["quality"] == 2])
        if len(waves):
            groups = np.split(waves, np.flatnonzero(np.diff(waves) > 12) + 1)
            assert all(len(g) > 1 for g in groups)
            assert all(b[0] - a[0] > 40 for a, b in itertools.pairwise(groups))


@pytest.mark.parametrize("mode", ["WFM-NOAO-N", "WFM-NOAO-E", "WFM-AO-N", "NFM-AO-N"])
def test_enough_lines_for_every_slice(lines, mode):
    """The reference needs seven for its polynomial, and some at both ends of the range."""
    low, high = mode_from_name(mode).useful
    useful = np.array(lines["wave"][(lines["quality"] >= 2)])
    useful = useful[(useful > low + 20) & (useful < high - 30)]
    assert len(useful) >= 40
    assert useful[0] < 4950 and useful[-1] > 9100
    gaps = np.diff(useful)
    assert gaps.max() < 480


def test_geometry_has_lines_for_its_spots(lines):
    ion, flux, quality = (np.array(lines[name]) for name in ("ion", "flux", "quality"))
    ok = (ion != "XeI") & (flux >= 5000) & (quality >= 1) & (np.array(lines["wave"]) >= 4650)
    ok &= (ion != "NeI") | ((quality >= 2) & (flux >= 10000))
    assert ok.sum() > 15


def test_unknown_lamp():
    with pytest.raises(InputError, match=r"'Kr' found, expected one or more of Ne, Xe, HgCd"):
        lamps.ArcLight("Kr")
    with pytest.raises(InputError, match="expected one or more"):
        lamps.arc_lines("continuum")
    assert lamps.lamp_names("Ne, HgCd") == ["Ne", "HgCd"]


LIGHTS = {
    "flat": lambda: lamps.FlatLight("WFM-NOAO-N"),
    "arc": lambda: lamps.ArcLight("Xe"),
    "twilight": lambda: lamps.TwilightLight("WFM-NOAO-N"),
    "mask": lambda: lamps.MaskLight("Ne,HgCd", 0.1),
}


@pytest.mark.parametrize("name", LIGHTS)
def test_lights_broadcast(name):
    light = LIGHTS[name]()
    assert light.line_waves.shape == light.line_rates.shape and (light.line_rates >= 0).all()
    x = np.linspace(-37, 37, 9, dtype=np.float32)[None, :] + np.zeros((5, 1), np.float32)
    y = np.full_like(x, 3.0)
    wave = np.linspace(4800, 9200, 5, dtype=np.float32)[:, None] + np.zeros((1, 9), np.float32)
    whole = light.continuum(x, y, wave)
    assert whole.shape == (5, 9) and whole.dtype == np.float32
    fine = light.continuum(x, y, np.stack([wave - 0.4, wave, wave + 0.4]))
    assert fine.shape == (3, 5, 9)
    np.testing.assert_allclose(fine[1], whole, rtol=1e-6)
    for k in range(5):
        np.testing.assert_allclose(light.continuum(x[k], y[k], float(wave[k, 0])), whole[k], rtol=1e-5)
    assert light.continuum(0.0, 0.0, 7000.0).shape == ()
    np.testing.assert_allclose(light.continuum(x[0], y[0][:, None], 7000.0).shape, (9, 9))
    factor = light.line_factor(x, y, wave[:, :1])
    assert factor.shape == (5, 9) and np.isfinite(factor).all()


def test_flat_is_smooth_and_well_exposed():
    wave = np.arange(4700.0, 9400.0)
    rate = lamps.FlatLight().continuum(0.0, 0.0, wave)
    counts = rate * 1.25 * lamps.EXPTIMES["continuum"]
    assert 20000 < counts.max() < 30000 and counts[(wave > 4800) & (wave < 9300)].min() > 2000
    assert np.abs(np.diff(np.log(rate[wave > 4800]))).max() < 0.003
    assert lamps.FlatLight(brightness=0.5).continuum(0, 0, 7000) == pytest.approx(0.5 * rate[wave == 7000][0], rel=1e-6)


def test_notch_and_blocking_filter():
    assert lamps.FlatLight("WFM-AO-N").continuum(0, 0, 5890.0) < 0.01 * lamps.FlatLight().continuum(0, 0, 5890.0)
    assert lamps.FlatLight("WFM-NOAO-E").continuum(0, 0, 4640.0) > 20 * lamps.FlatLight().continuum(0, 0, 4640.0)
    neon = lamps.ArcLight("Ne", "NFM-AO-N")
    dark = np.abs(neon.line_waves - 5852.488) < 0.01
    assert neon.line_rates[dark] < 0.01 * lamps.ArcLight("Ne").line_rates[dark]


def test_twilight_has_solar_lines_and_fades():
    light = lamps.TwilightLight()
    for wave in (4861.3, 5183.6, 5890.0, 6562.8, 8542.1):
        assert light.continuum(0, 0, wave) < 0.6 * light.continuum(0, 0, wave + 12)
    later = lamps.TwilightLight(elapsed=300.0)
    # 0.23 mag per minute
    assert 2.5 * np.log10(light.continuum(0, 0, 7000) / later.continuum(0, 0, 7000)) == pytest.approx(1.15, abs=0.01)
    assert light.continuum(150, 0, 7000) / light.continuum(-150, 0, 7000) == pytest.approx(1.01, abs=1e-3)


def spots(light, y, x=None):
    x = np.linspace(-37.5, 37.5, 1501) if x is None else x
    return x, light.line_factor(x, np.full_like(x, y), 6402.2)


def test_three_spots_in_a_slice():
    x, f = spots(lamps.MaskLight("Ne", angle=0.0), 0.0, np.linspace(0.3, 75.3, 1501))
    peaks = x[1:-1][(f[1:-1] > f[:-2]) & (f[1:-1] > f[2:]) & (f[1:-1] > 0.5 * f.max())]
    np.testing.assert_allclose(np.diff(peaks), 2.9450 * 8.525, atol=0.06)
    assert len(peaks) == 3


def test_mask_moves_the_spots():
    """Spots are repeated after 0.6135 mm; a mask moved up brings those of the slices below."""
    x = np.array([12.55])
    y0 = 7.3
    positions = np.arange(-0.8, 0.8, 0.002)
    f = np.array([lamps.MaskLight("Ne", p, angle=0.0).line_factor(x, y0, 6402.2)[0] for p in positions])
    peaks = positions[1:-1][(f[1:-1] > f[:-2]) & (f[1:-1] >= f[2:])]
    np.testing.assert_allclose(np.diff(peaks), 0.6135, atol=0.004)
    below = np.array([lamps.MaskLight("Ne", p, angle=0.0).line_factor(x, y0 - 1.0, 6402.2)[0] for p in positions])
    other = positions[1:-1][(below[1:-1] > below[:-2]) & (below[1:-1] >= below[2:])]
    shift = (other - peaks[0] + 0.3) % 0.6135 - 0.3
    np.testing.assert_allclose(shift, 1.0 / 8.525, atol=0.004)
    assert f.min() < 0.05 * f.max()


def test_mask_is_turned():
    light = lamps.MaskLight("Ne", angle=1.0)
    y = np.linspace(-2.6, 2.6, 521)
    left, right = (y[np.argmax(light.line_factor(np.full_like(y, x), y, 6402.2))] for x in (-12.55, 12.55))
    assert np.degrees(np.arctan2(right - left, 25.1)) == pytest.approx(1.0, abs=0.05)


def test_mask_exposure_is_well_exposed():
    light = lamps.MaskLight("Ne,HgCd", 0.0, angle=0.0)
    x, f = spots(light, 0.0)
    bright = light.line_rates.max() * 10.0  # 10 s
    assert f.max() * bright * 1.25 / (2.61 * 1.0645) < 45000
    width = x[1] - x[0]
    assert f[np.abs(x - 12.55) < 6].sum() * width * bright > 20000


@pytest.mark.parametrize("ifu", [1, 10, 24])
def test_mask_shows_where_the_slices_are(ifu):
    """Three spots in every slice; their heights give positions and angles as the reference derives them."""
    from musedask.sim.optics import Instrument

    optics = Instrument("WFM-NOAO-N").ifu(ifu)
    positions = np.arange(0, 0.6135, 0.6135 / 60)
    lights = [lamps.MaskLight("Ne", p, angle=0.0) for p in positions]
    phase = np.exp(2j * np.pi * positions / 0.6135)
    for s in range(48):
        d = np.linspace(0.5, -0.5, 401) * optics.width[s]  # from left to right on the detector
        angle = np.radians(optics.angle[s])
        x, y = d * np.cos(angle) + optics.x[s], d * np.sin(angle) + optics.y[s]
        f = np.array([light.line_factor(x, y, 6402.2) for light in lights])
        mean = f.mean(axis=0)
        inner, bright = mean[1:-1], 0.3 * mean.max()
        peaks = 1 + np.flatnonzero((inner > mean[:-2]) & (inner >= mean[2:]) & (inner > bright))
        assert len(peaks) == 3, (s, d[peaks])
        np.testing.assert_allclose(-np.diff(d[peaks]), 2.9450 * 8.525, atol=0.3)
        # position of the mask at which a spot is brightest, in periods
        vpos = np.angle((f[:, peaks] * phase[:, None]).sum(axis=0)) / (2 * np.pi) * 0.6135
        steps = (np.diff(vpos) + 0.3) % 0.6135 - 0.3
        # the reference: angle = -mean(atan(steps / DX)), and its sign reversed in the end
        assert np.degrees(np.arctan(steps / 2.9450)).mean() == pytest.approx(optics.angle[s], abs=0.03)
        height = -vpos[1] * 8.525
        assert (height - optics.y[s] + 2.6) % (0.6135 * 8.525) - 2.6 == pytest.approx(0, abs=0.05)
