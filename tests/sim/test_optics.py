"""The simulated optics: within the limits of the reference's recipes, and consistent with itself."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from numpy.polynomial import polynomial as P

from musedask.errors import InputError
from musedask.instrument import CCD_TO_SKY_SLICE
from musedask.sim import optics
from musedask.sim.optics import MODES, NX, NY, Instrument, packed_slice

IFUS = range(1, 25)
SLICES = range(1, 49)
Y = np.arange(1, NY + 1)


@pytest.fixture(scope="module")
def instrument():
    return Instrument()


@pytest.mark.parametrize("ifu", IFUS)
def test_slices_can_be_traced(instrument, ifu):
    """Limits of muse_flat: where slices may be, how wide, how far apart."""
    o = instrument.ifu(ifu)
    left, right = np.array([o.edges(s, Y) for s in SLICES]).transpose(1, 0, 2)
    width, middle = right - left, (left + right) / 2
    assert width.min() > 72.2 + 2 and width.max() < 82.2 - 2
    assert np.median(width) == pytest.approx(76.5, abs=0.5)
    assert left[0].max() < 200 and left[0].min() > 1 and right[-1].max() < NX
    assert middle.min() > 57 and middle.max() < NX - 57
    gaps = left[1:] - right[:-1]
    assert gaps.min() > 4 and gaps.max() < 9
    assert np.diff(middle[:, NY // 2]).min() > 72.2
    assert np.abs(o.centre[:, 1]).max() < 0.015
    # curved outwards at the edges of the detector, by about two pixels
    sag = (middle[:, 0] + middle[:, -1]) / 2 - middle[:, NY // 2]
    assert sag[0] == pytest.approx(-2, abs=0.4) and sag[-1] == pytest.approx(2, abs=0.4)
    np.testing.assert_allclose(o.centre, (o.left + o.right) / 2)


@pytest.mark.parametrize("ifu", IFUS)
def test_wavelengths_can_be_calibrated(instrument, ifu):
    """Limits of muse_wavecal: dispersion, coverage, tilt of the lines."""
    o = instrument.ifu(ifu)
    for s in SLICES:
        left, right = o.edges(s, Y)
        wave = np.array([o.wavelength(s, x, Y) for x in (left, (left + right) / 2, right)])
        step = np.diff(wave[1])
        assert np.abs(step / 1.25 - 1).max() < 0.03 and np.ptp(step) > 0.02
        assert wave[:, 0].max() < 4590 and wave[:, -1].min() > 9360
        assert np.abs(wave[0] - wave[2]).max() < 5.9
    assert o.wave.shape == (48, 3, 7) and o.left.shape == (48, 6)


def test_staircase(instrument):
    """Three heights in turn, on a bow: manual, section 2.1."""
    o = instrument.ifu(7)
    start = np.array([float(o.wavelength(s, *o.middle(s))) for s in SLICES])
    steps = np.diff(start)
    for k, sign in enumerate((-1, -1, 1)):
        assert (np.sign(steps[k::3]) == sign).all()
    triples = start.reshape(16, 3).mean(axis=1)
    assert triples[7] - triples[0] > 20 and triples[8] - triples[15] > 20
    # no two slices or IFUs are alike
    assert len(set(np.round(start, 3))) == 48
    assert abs(instrument.ifu(8).wavelength(1, 100, 2000) - o.wavelength(1, 100, 2000)) > 0.01


def test_field(instrument):
    """Order of slices and IFUs on the sky, gaps between them, and zero point."""
    previous = None
    for ifu in IFUS:
        o = instrument.ifu(ifu)
        assert o.sky_slice.tolist() == list(CCD_TO_SKY_SLICE)
        order = np.argsort(o.sky_slice)
        x, y, width = (v[order].reshape(4, 12) for v in (o.x, o.y, o.width))
        assert width.min() > 72.2 and width.max() < 82.2
        gaps = np.diff(x, axis=0) - (width[1:] + width[:-1]) / 2
        assert gaps.min() > 0 and gaps.max() < 0.2
        steps = np.diff(y, axis=1)
        assert np.abs(steps - 300 / 288).max() < 0.05
        assert np.abs(o.angle).max() < 0.5
        if previous is not None:
            # not closer than slices within an IFU, which muse_geometry would not believe
            gap = y[:, 0] - previous[:, -1]
            assert gap.min() > 300 / 288 - 0.02 and gap.max() < 1.25
        previous = y
    o = instrument.ifu(12)
    place = {sky: (o.x[s], o.y[s]) for s, sky in enumerate(o.sky_slice)}
    assert place[24][0] + place[36][0] == pytest.approx(0) and place[24][1] == pytest.approx(0)
    xlo, xhi, ylo, yhi = instrument.limits(IFUS)
    assert 60 < (xhi - xlo) * 0.2 < 63 and 59.5 < (yhi - ylo) * 0.2 < 61
    assert instrument.centre(IFUS) == pytest.approx((0, 0.5), abs=0.5)


def test_position(instrument):
    """The formula of pixel tables: the sky is reversed in a slice."""
    o = instrument.ifu(5)
    left, right = o.edges(17, 3000.0)
    x, y = o.position(17, np.array([left, (left + right) / 2, right]), 3000.0)
    assert x[1] == pytest.approx(o.x[16]) and y[1] == pytest.approx(o.y[16])
    assert np.hypot(x[0] - x[2], y[0] - y[2]) == pytest.approx(o.width[16])
    assert x[0] > x[2]
    assert math.degrees(math.atan2(y[0] - y[2], x[0] - x[2])) == pytest.approx(o.angle[16])


def test_limits(instrument):
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for ifu in (1, 2):
        o = instrument.ifu(ifu)
        for s in SLICES:
            for y in (1, 2, 1500, 4112):
                left, right = o.edges(s, y)
                xy = np.array(o.position(s, np.arange(np.ceil(left), np.floor(right) + 1), y))
                low, high = np.minimum(low, xy.min(axis=1)), np.maximum(high, xy.max(axis=1))
    xlo, xhi, ylo, yhi = instrument.limits((1, 2))
    assert [xlo, ylo] == pytest.approx(low, abs=0.5) and [xhi, yhi] == pytest.approx(high, abs=0.5)
    assert xlo <= low[0] and yhi >= high[1]
    assert instrument.centre((2, 1)) == ((xlo + xhi) / 2, (ylo + yhi) / 2)


def test_row_is_the_inverse_of_wavelength(instrument):
    o = instrument.ifu(9)
    x, y = np.array([[2040.0], [2110.0]]), np.array([1.0, 700.5, 4112.0])
    np.testing.assert_allclose(o.row(25, x, o.wavelength(25, x, y)), np.broadcast_to(y, (2, 3)), atol=1e-6)


def test_packed_slice(instrument):
    """What compiled loops use is the same slice; a narrower one has the same middle."""
    o = instrument.ifu(3)
    p = packed_slice(3, 30)
    np.testing.assert_allclose(p[:6], o.left[29])
    np.testing.assert_allclose(p[12:33].reshape(3, 7), o.wave[29])
    x, y = optics.field_position(p, 2500, *(float(v) for v in o.edges(30, 2000.0)))
    assert (x, y) == pytest.approx([float(v) for v in o.position(30, 2500, 2000.0)], abs=1e-4)
    narrow = packed_slice(3, 30, 15.0)
    np.testing.assert_allclose(narrow[:6] + narrow[6:12], p[:6] + p[6:12])
    assert narrow[-1] == pytest.approx(p[-1] / 5) and narrow[33] == pytest.approx(p[33] / 5)


def test_line_spread_function(instrument):
    d = np.arange(-12, 12, 0.01)
    fwhm = []
    for ifu, s, wave in ((1, 1, 4700.0), (12, 24, 7000.0), (24, 48, 9300.0)):
        o = instrument.ifu(ifu)
        lsf = o.lsf(s, wave, d)
        assert lsf.sum() * 0.01 == pytest.approx(1, abs=1e-6)
        assert (lsf * d).sum() * 0.01 == pytest.approx(0.008, abs=1e-4)
        above = d[lsf > lsf.max() / 2]
        fwhm.append(above[-1] - above[0])
        # more light in the wings than a Gaussian of its width has, and more on one side
        far = np.abs(d) > 1.5 * fwhm[-1]
        assert lsf[far].sum() * 0.01 > 1e-3 and lsf[far & (d > 0)].sum() > 1.2 * lsf[far & (d < 0)].sum()
        np.testing.assert_allclose(o.lsf_integral(s, wave, d[::100]), np.cumsum(lsf)[::100] * 0.01, atol=2e-3)
        waves, table = o.lsf_table(s)
        row = table[np.argmin(np.abs(waves - wave))]
        assert row[0] == 0 and row[-1] == 1 and (np.diff(row) >= 0).all()
    assert min(fwhm) > 2.4 and max(fwhm) < 2.9 and np.ptp(fwhm) > 0.05
    assert instrument.ifu(1).lsf_sigma(1, [4700, 9300]).shape == (2,)


def test_throughput(instrument):
    wave = np.linspace(4750, 9350, 20)
    values = np.array([[instrument.ifu(i).throughput(s, wave) for s in SLICES] for i in IFUS])
    assert values[..., 10].mean() == pytest.approx(1, abs=2e-3)
    assert values.min() > 0.8 and values.max() < 1.2
    assert values.mean(axis=(1, 2)).std() > 0.01 and values[0].mean(axis=1).std() > 0.01
    # colours differ from slice to slice, and so does the change with temperature
    assert (values / values.mean(axis=2, keepdims=True)).std(axis=(0, 1)).max() > 0.003
    o = instrument.ifu(4)
    change = np.array([o.throughput(s, 7000.0, 15.0) / o.throughput(s, 7000.0) - 1 for s in SLICES])
    assert 1e-3 < change.std() < 0.02 and abs(change.mean()) < 3e-3
    profile = o.slice_profile(3, np.linspace(-1, 1, 11))
    assert np.abs(profile - 1).max() < 0.03


def test_vignetting(instrument):
    """The lower right corner of the field, which is in the first IFU."""
    xlo, xhi, ylo, yhi = instrument.limits(IFUS)
    assert instrument.vignetting(xhi, ylo) < 0.8
    assert (instrument.vignetting([xlo, xlo, xhi, 0], [ylo, yhi, yhi, 0]) == 1).all()
    assert Instrument(vignetted=False).vignetting(xhi, ylo) == 1
    assert instrument.is_vignetted(xhi, ylo) and not instrument.is_vignetted(0, 0)


def test_sensitivity():
    wide = Instrument("WFM-NOAO-E")
    # efficiency times area times photons per erg
    assert wide.sensitivity(7000.0) == pytest.approx(0.35 * 483250.7 * 7000 / 1.98644586e-8 * 1e-20)
    curve = wide.sensitivity(np.arange(4600, 9350, 50.0))
    assert (curve > 1e-4).all() and 6900 < 4600 + 50 * curve.argmax() < 7700
    nominal = Instrument("WFM-NOAO-N")
    assert nominal.sensitivity(4650.0) < 0.05 * wide.sensitivity(4650.0)
    assert nominal.sensitivity(4800.0) == pytest.approx(wide.sensitivity(4800.0), rel=1e-3)
    for mode in ("WFM-AO-N", "WFM-AO-E", "NFM-AO-N"):
        ao = Instrument(mode)
        low, high = ao.mode.notch
        ratio = ao.sensitivity([low - 5, 5890.0, high + 5]) / wide.sensitivity([low - 5, 5890.0, high + 5])
        assert ratio == pytest.approx([1, 1e-3, 1], abs=0.01)


def test_wave_map(instrument):
    image = instrument.ifu(2).wave_map()
    assert image.shape == (NY, NX) and image.dtype == np.float32
    left, right = instrument.ifu(2).edges(10, 1234)
    x = np.arange(math.ceil(left) - 2, math.floor(right) + 3)
    expected = P.polyval2d(x, np.full(x.size, 1234.0), instrument.ifu(2).wave[9])
    expected[(x < left) | (x > right)] = 0
    np.testing.assert_allclose(image[1233, x - 1], expected, rtol=1e-6)


def test_the_instrument_is_always_the_same():
    """In every process and mode: its numbers do not come from a seed."""
    o = Instrument().ifu(12)
    pinned = [60.3268641, 5323.71496, 113.892602, -5.21513973, 0.00539770602, 1.03592081]
    found = [o.left[0, 0], o.wave[23, 0, 0], o.x[40], o.y[40], o.angle[40], o.throughput(7, 5000.0)]
    assert [float(f"{v:.9g}") for v in found] == pytest.approx(pinned, rel=1e-7)
    for mode in MODES:
        np.testing.assert_array_equal(Instrument(mode).ifu(12).wave, o.wave)
    again = optics._Slices(12)
    np.testing.assert_array_equal(again.wave, o.wave)


def test_pickling():
    o = Instrument("WFM-AO-N", vignetted=False).ifu(3)
    again = pickle.loads(pickle.dumps(o))
    assert again.instrument == o.instrument and again.ifu == 3 and not again.instrument.vignetted
    np.testing.assert_array_equal(again.left, o.left)
    assert len(pickle.dumps(o)) < 500
    assert hash(again.instrument) == hash(o.instrument) and again.instrument != Instrument()
    assert "WFM-AO-N" in repr(again) + repr(again.instrument)


def test_errors(instrument):
    for mode in ("WFM", "MUSE", "WFM-NOAO-X", ""):
        with pytest.raises(InputError, match="mode"):
            Instrument(mode)
    assert Instrument("WFM-NONAO-N").mode.name == "WFM-NOAO-N"
    for ifu in (0, 25):
        with pytest.raises(InputError, match=f"ifu: {ifu}"):
            instrument.ifu(ifu)
    with pytest.raises(InputError, match="ifus"):
        instrument.limits(())
