"""Steps on raw images: parameters, overscan, cosmic rays, and the arithmetic of every correction."""

from __future__ import annotations

import numpy as np
import pytest

from musedask.calib import detector
from musedask.calib.detector import (
    OverscanParams,
    Setup,
    find_cosmics,
    fit_overscan,
    overscan_statistics,
    parse_overscan,
    quadrant_median,
)
from musedask.calib.statistics import iterfit
from musedask.errors import InputError
from musedask.instrument import DQ_COSMICRAY, DQ_SATURATED

# --- parameters ------------------------------------------------------------------------------------


def test_defaults_of_the_methods():
    found = parse_overscan("vpoly", "dcr", 30.0, 3)
    assert found == OverscanParams("vpoly", 15, 1.00001, 1.00001, "dcr", 128, 32, 3, 2.5, 30.0, 3)
    assert parse_overscan("none", "fit", 4.0, 1).threshold == 5.0
    assert parse_overscan("offset", "none", 4.0, 1).reject == "none"


def test_values_of_the_methods():
    found = parse_overscan("vpoly:7,1.1,1.2", "dcr:64,16,2,3", 30.0, 3)
    assert (found.order, found.frms, found.fchisq) == (7, 1.1, 1.2)
    assert (found.xbox, found.ybox, found.npass, found.threshold) == (64, 16, 2, 3.0)
    found = parse_overscan("vpoly:3", "dcr:64", 30.0, 3)
    assert (found.order, found.frms) == (3, 1.00001)
    assert (found.xbox, found.ybox, found.npass, found.threshold) == (64, 32, 3, 2.5)
    assert parse_overscan("vpoly:", "fit:3.5", 30.0, 3).threshold == 3.5


@pytest.mark.parametrize(
    ("overscan", "reject", "message"),
    [
        ("poly", "dcr", "parameter overscan: 'poly' found, expected one of none, offset, vpoly"),
        ("none:3", "dcr", "parameter overscan: 'none:3'"),
        ("vpoly:a", "dcr", "expected numbers after vpoly:"),
        ("vpoly:3,", "dcr", "expected numbers after vpoly:"),
        ("vpoly:3,1.1,1.1,2", "dcr", "at most 3 numbers"),
        ("vpoly:0", "dcr", "order"),
        ("vpoly:2.5", "dcr", "order"),
        ("vpoly:3,1", "dcr", "above 1"),
        ("vpoly", "mean", "parameter ovscreject: 'mean' found, expected one of none, dcr, fit"),
        ("vpoly", "dcr:1,2,3,4,5", "at most 4 numbers"),
        ("vpoly", "dcr:0", "positive"),
        ("vpoly", "dcr:9,9,9,-1", "positive"),
        ("vpoly", "fit:0", "positive"),
        ("vpoly", "fit:nan", "positive"),
    ],
)
def test_wrong_parameters(overscan, reject, message):
    with pytest.raises(InputError, match=message):
        parse_overscan(overscan, reject, 30.0, 3)


# --- cosmic rays -----------------------------------------------------------------------------------


def strip(seed=0, shape=(29, 300), level=1000, noise=2.4):
    random = np.random.default_rng(seed)
    return np.rint(random.normal(level, noise, shape)).astype(np.uint16)


def test_cosmic_rays_are_found_and_noise_is_not():
    values = strip()
    flags = np.zeros(values.shape, np.int32)
    assert find_cosmics(values, flags, 128, 29, 3, 2.5) == 0
    hit = [(0, 0), (28, 299), (14, 150), (14, 151), (3, 64)]
    for y, x in hit:
        values[y, x] += 60
    assert find_cosmics(values, flags, 128, 29, 3, 2.5) == len(hit)
    assert [tuple(p) for p in np.argwhere(flags)] == sorted(hit)
    assert set(flags[flags != 0]) == {DQ_COSMICRAY}


def test_bad_pixels_do_not_count():
    values = strip()
    values[5, 5] = 65535
    flags = np.zeros(values.shape, np.int32)
    flags[5, 5] = 1
    assert find_cosmics(values, flags, 128, 29, 3, 2.5) == 0
    flags[:] = 1
    assert find_cosmics(values, flags, 128, 29, 3, 2.5) == 0


def test_faint_one_is_found_when_the_bright_one_is_gone():
    values = strip(noise=1.0)
    values[10, 10], values[12, 30] = 60000, 1030
    flags = np.zeros(values.shape, np.int32)
    find_cosmics(values, flags, 128, 29, 1, 2.5)
    assert flags[10, 10]
    once = flags[12, 30]
    flags[:] = 0
    find_cosmics(values, flags, 128, 29, 3, 2.5)
    assert flags[10, 10]
    assert flags[12, 30]
    # in its second pass the first search already had its scatter without the bright one
    assert once in (0, DQ_COSMICRAY)


# --- overscan --------------------------------------------------------------------------------------


def both(seed=1):
    strips = strip(seed), strip(seed + 1, (250, 29))
    return strips, tuple(np.zeros(s.shape, np.int32) for s in strips)


def test_statistics_of_both_strips():
    strips, flags = both()
    mean, stdev = overscan_statistics(strips, flags, OverscanParams(reject="none"))
    values = np.concatenate([s.ravel() for s in strips]).astype(np.float64)
    assert mean == pytest.approx(values.mean(), rel=1e-14)
    assert stdev == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_bad_pixels_are_left_out():
    strips, flags = both()
    strips[0][3, 3] = 65535
    flags[0][3, 3] = 4096
    expected = overscan_statistics(*both(), OverscanParams(reject="none"))
    assert overscan_statistics(strips, flags, OverscanParams(reject="none")) == pytest.approx(expected, rel=1e-4)
    for flag in flags:
        flag[:] = 1
    assert np.isnan(overscan_statistics(strips, flags, OverscanParams(reject="none"))).all()


def test_rejection_by_a_fit():
    strips, flags = both()
    strips[0][3, 3], strips[1][7, 7], strips[1][8, 8] = 5000, 1200, 1015
    mean, stdev = overscan_statistics(strips, flags, OverscanParams(reject="fit", threshold=4.0))
    values = np.concatenate([s.ravel() for s in strips]).astype(np.float64)
    coefficients, mse, mask = iterfit(np.arange(values.size), values, 0, 4.0)
    assert not mask.all()
    assert mean == pytest.approx(coefficients[0], rel=1e-12)
    assert stdev == pytest.approx(np.sqrt(mse), rel=1e-9)
    # the level along y is fitted to all of them
    assert not any(flag.any() for flag in flags)


def test_rejection_of_cosmic_rays():
    strips, flags = both()
    expected = overscan_statistics(strips, flags, OverscanParams(reject="none"))
    strips[0][3, 3], strips[1][7, 7] = 5000, 1200
    params = OverscanParams(reject="dcr", xbox=100, ybox=29)
    assert overscan_statistics(strips, flags, params) == pytest.approx(expected, rel=1e-4)
    assert flags[0][3, 3] == flags[1][7, 7] == DQ_COSMICRAY


def ramp(seed=3, rows=2088, row0=33, noise=2.0):
    y = row0 + np.arange(rows)
    level = 1000 + 4 * np.exp(-(y - row0) / 400) + 1e-3 * y + 2e-7 * y**2
    random = np.random.default_rng(seed)
    return y, np.rint(level[:, None] + random.normal(0, noise, (rows, 29))).astype(np.uint16)


def by_pixels(y, values, good, params):
    """The rules of the fit, pixel by pixel, in numpy's own scaled basis."""
    rows = np.repeat(y, values.shape[1]).reshape(values.shape)[good].astype(np.float64)
    pixels = values[good].astype(np.float64)
    before = None
    for order in range(params.order + 1):
        fit = np.polynomial.Polynomial.fit(rows, pixels, order)
        square = np.sum((pixels - fit(rows)) ** 2)
        now = np.sqrt(square / pixels.size), square / (pixels.size - order - 1)
        if before is not None and before[0] / now[0] < params.frms and before[1] / now[1] < params.fchisq:
            break
        before = now
    while True:
        fit = np.polynomial.Polynomial.fit(rows, pixels, order)
        residual = np.abs(pixels - fit(rows))
        keep = residual < params.sigma * np.sqrt(np.mean(residual**2))
        if keep.all():
            return order, fit
        rows, pixels = rows[keep], pixels[keep]


@pytest.mark.parametrize("params", [OverscanParams(), OverscanParams(order=2), OverscanParams(frms=1.001, fchisq=1.01)])
@pytest.mark.parametrize("row0", [33, 2121])
def test_level_along_y(params, row0):
    y, values = ramp(row0=row0)
    flags = np.zeros(values.shape, np.int32)
    flags[50:60, 3] = 1
    flags[700] = 1
    coefficients, levels = fit_overscan(values, flags, row0, (row0 - 32, row0 + 2087), params)
    order, fit = by_pixels(y, values, flags == 0, params)
    assert len(coefficients) == order + 1
    wanted = np.arange(row0 - 32, row0 + 2088)
    assert np.abs(levels - fit(wanted)).max() < 1e-8
    assert np.abs(np.polynomial.polynomial.polyval(wanted.astype(np.float64), coefficients) - levels).max() < 1e-6


def test_level_without_outliers():
    y, values = ramp()
    _, clean = fit_overscan(values, np.zeros(values.shape, np.int32), 33, (1, 2120), OverscanParams(sigma=5.0))
    values[100, 4], values[1500, 20] = 60000, 300
    flags = np.zeros(values.shape, np.int32)
    params = OverscanParams(sigma=5.0, order=3, frms=1.0000001)
    _, levels = fit_overscan(values, flags, 33, (1, 2120), params)
    _, fit = by_pixels(y, values, flags == 0, params)
    assert np.abs(levels - fit(np.arange(1, 2121))).max() < 1e-8
    assert np.abs(levels - clean).max() < 1.0
    # the caller's qualities are its own
    assert not flags.any()


def test_level_of_a_strip_without_noise():
    values = np.full((100, 29), 1000, np.uint16)
    coefficients, levels = fit_overscan(values, np.zeros(values.shape, np.int32), 1, (1, 100), OverscanParams())
    assert (levels == 1000).all()
    assert coefficients[0] == pytest.approx(1000)
    coefficients, levels = fit_overscan(values, np.ones(values.shape, np.int32), 1, (1, 100), OverscanParams())
    assert np.isnan(levels).all()


@pytest.mark.parametrize("shape", [(7, 9), (8, 8), (1, 1)])
def test_median_of_a_section(shape):
    raw = np.random.default_rng(4).integers(0, 65536, (20, 20)).astype(np.uint16)
    section = raw[3 : 3 + shape[0], 5 : 5 + shape[1]]
    assert quadrant_median(section) == np.median(section)


# --- arithmetic ------------------------------------------------------------------------------------

F = np.float32
NY, NX, SCAN = 6, 16, 4


def masters(random, positive=False):
    data = random.normal(0, 2, (2 * NY, 2 * NX)).astype(F) if not positive else random.uniform(
        0.5, 2, (2 * NY, 2 * NX)
    ).astype(F)
    dq = random.choice([0, 0, 0, 1 << 8], data.shape).astype(np.int32)
    return data, random.uniform(0.1, 1, data.shape).astype(F), dq


def make_setup(random, n, *, bias=False, dark=False, flat=False, curve=False, count=True, steps=0):
    empty = (np.empty((0, 0), F), np.empty((0, 0), F), np.empty((0, 0), np.int32))
    start = np.zeros(2 * NY + 1, np.int64)
    start[3:] = 2
    return Setup(
        NX,
        NY,
        np.array([SCAN, 3 * SCAN]),
        np.array([SCAN, NX + 3 * SCAN]),
        random.uniform(990, 1010, (n, 2, 2 * NY)),
        random.normal(0, 3, (n, steps, 4)).astype(F),
        random.uniform(0, 2, (n, 4)).astype(F),
        random.uniform(1, 1.3, 4),
        count,
        np.array([[0.01, 0.004, -0.001]] * 4) if curve else np.empty((0, 0)),
        np.array([[1.5, 3.0]] * 4) if curve else np.empty((0, 0)),
        start,
        np.array([1, 30]),
        np.array([1 << 14, -(1 << 31)], np.int32),
        *(masters(random) if bias else empty),
        *(masters(random) if dark else empty),
        random.uniform(0.2, 2, n),
        *(masters(random, positive=True) if flat else empty),
        random.uniform(0.2, 2, n),
    )


def expected(raw, k, s):
    """The steps in the order of the reference (spec: basic processing), each rounded to float32."""
    rows = np.r_[SCAN : SCAN + NY, NY + 3 * SCAN : 2 * NY + 3 * SCAN]
    columns = np.r_[SCAN : SCAN + NX, NX + 3 * SCAN : 2 * NX + 3 * SCAN]
    value = raw[k][np.ix_(rows, columns)]
    quadrant = np.add.outer(np.repeat([0, 2], NY), np.repeat([0, 1], NX))
    dq = np.where((value > 65500) | (value == 0), DQ_SATURATED, 0).astype(np.int32)
    dq[2, 1] |= 1 << 14
    dq[2, 30] |= np.int32(-(1 << 31))
    level = np.where(np.arange(2 * NX) < NX, s.levels[k, 0][:, None], s.levels[k, 1][:, None])
    data = (value - level).astype(F)
    stat = np.zeros_like(data)
    gain = s.gain[quadrant]
    if s.bias.size:
        stat = ((data - s.bias) / gain).astype(F)
        stat = np.where(stat <= 0, F(1.17549435e-38), stat) + s.extra[k][quadrant]
    for step in s.shift[k]:
        data = data + step[quadrant]
    if s.bias.size:
        data, stat, dq = data - s.bias, stat + s.bias_stat, dq | s.bias_dq
    if s.curve.size:
        fit = np.polynomial.Polynomial(s.curve[0])
        x = np.log10(np.where(data > 0, data, 1).astype(np.float64))
        inside = np.clip(x, 1.5, 3.0)
        p = fit(inside) + (x - inside) * fit.deriv()(inside)
        factor = np.where(data > 0, 1 / (1 + p), 1.0)
        data, stat = (data * factor).astype(F), (stat * factor**2).astype(F)
    if s.to_count:
        data, stat = (data * gain).astype(F), (stat * gain**2).astype(F)
    if s.dark.size:
        data = data - s.dark * F(s.dark_factor[k])
        stat = stat + s.dark_stat * F(s.dark_factor[k] ** 2)
        dq = dq | s.dark_dq
    if s.flat.size:
        square = s.flat * s.flat
        stat = (stat + data * data * s.flat_stat / square) / square
        data = data / s.flat
        dq = dq | s.flat_dq
    return data * F(s.scale[k]), stat * F(s.scale[k] ** 2), dq


OPTIONS = [
    {"count": False},
    {"count": False, "steps": 3},
    {"bias": True},
    {"bias": True, "steps": 1},
    {"bias": True, "dark": True},
    {"bias": True, "flat": True},
    {"bias": True, "curve": True},
    {"bias": True, "dark": True, "flat": True, "curve": True, "steps": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_step(options):
    random = np.random.default_rng(6)
    n = 3
    raw = random.integers(980, 3000, (n, 2 * (NY + 2 * SCAN), 2 * (NX + 2 * SCAN))).astype(np.uint16)
    raw[1, 5, 5], raw[1, 5, 6], raw[2, -6, -6] = 0, 65501, 65500
    setup = make_setup(random, n, **options)
    outputs = [np.empty((n, 2 * NY, 2 * NX), t) for t in (F, F, np.int32)]
    for y0, y1 in ((0, 4), (4, 2 * NY)):
        parts = [np.empty((n, y1 - y0, 2 * NX), o.dtype) for o in outputs]
        detector.correct(raw, tuple(setup), y0, y1, *parts)
        for output, part in zip(outputs, parts, strict=True):
            output[:, y0:y1] = part
    # the curve's arithmetic is in float64 and may differ in its last bit
    tolerance = 2e-7 if options.get("curve") else 0
    for k in range(n):
        data, stat, dq = expected(raw, k, setup)
        assert np.array_equal(outputs[2][k], dq)
        assert outputs[0][k] == pytest.approx(data, rel=tolerance, abs=tolerance * 10)
        assert outputs[1][k] == pytest.approx(stat, rel=2 * tolerance, abs=0)
        single = [np.empty((1, 2 * NY, 2 * NX), o.dtype) for o in outputs]
        detector.correct(raw[k : k + 1], tuple(setup.of(k)), 0, 2 * NY, *single)
        assert all(np.array_equal(one[0], o[k]) for one, o in zip(single, outputs, strict=True))


def test_flat_of_zero_does_nothing():
    random = np.random.default_rng(7)
    raw = random.integers(1100, 3000, (1, 2 * (NY + 2 * SCAN), 2 * (NX + 2 * SCAN))).astype(np.uint16)
    setup = make_setup(random, 1, bias=True, flat=True)
    setup.flat[3, 3] = 0
    setup.scale[:] = 1
    none = np.empty((0, 0), F)
    without = setup._replace(flat=none, flat_stat=none, flat_dq=none.astype(np.int32))
    results = []
    for s in (setup, without):
        outputs = [np.empty((1, 2 * NY, 2 * NX), t) for t in (F, F, np.int32)]
        detector.correct(raw, tuple(s), 0, 2 * NY, *outputs)
        results.append([o[0] for o in outputs])
    assert results[0][0][3, 3] == results[1][0][3, 3]
    assert results[0][1][3, 3] == results[1][1][3, 3]
    assert results[0][0][3, 4] != results[1][0][3, 4]
