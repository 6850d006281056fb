"""Native muse_dark on small frames; its model on a whole CCD."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from musedask.calib.bias import muse_bias
from musedask.calib.dark import flag_hot, muse_dark
from musedask.calib.dark_model import SHAPE as CCD
from musedask.calib.dark_model import (
    _add_corner,
    _flag_outliers,
    _plane,
    fit_surface,
    model_dark,
    smoothed,
    without_stripes,
)
from musedask.errors import InputError
from musedask.instrument import DQ_DARKPIXEL, DQ_DEADPIXEL, DQ_HOTPIXEL
from musedask.io.muse_image import write_muse_image

from .rawframes import GAINS, NX, NY, series, task

NONE = {"overscan": "none", "ovscreject": "none"}
#: of the whole CCD, as light [adu]
CURRENT = 2.0


@pytest.fixture(scope="module")
def bias(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bias")
    made = next(muse_bias(task("muse_bias", series(folder, 5, seed=5), **NONE)))
    return write_muse_image(folder / "bias.fits", made.content, header=made.header), "MASTER_BIAS"


def darks(folder, n=3, *, exptime=1800.0, **options):
    return series(folder, n, "DARK", seed=6, exptime=exptime, light=CURRENT, **options)


def run(frames, bias, **values):
    made = list(muse_dark(task("muse_dark", [*frames, bias], **{**NONE, **values})))
    assert [m.tag for m in made] == ["MASTER_DARK"]
    return made[0].content, made[0].header


def test_dark_current_of_an_hour(tmp_path, bias):
    image, header = run(darks(tmp_path), bias)
    expected = 2 * CURRENT * np.mean(GAINS)
    assert image.data.mean() == pytest.approx(expected, rel=0.02)
    assert header["EXPTIME"] == 3600
    assert header["ESO QC DARK MASTER DC"] == pytest.approx(expected, rel=0.04)
    assert header["ESO QC DARK MASTER DCERR"] == pytest.approx(2 * 2.9 / np.sqrt(3) / 19, rel=0.5)
    assert image.unit == "count"
    short, header = run(darks(tmp_path), bias, normalize=100.0)
    assert short.data == pytest.approx(image.data / 36, rel=1e-6, abs=1e-7)
    assert short.stat == pytest.approx(image.stat / 36**2, rel=1e-6)
    assert header["EXPTIME"] == 100
    assert header["ESO QC DARK MASTER DC"] == pytest.approx(expected, rel=0.04)
    plain, header = run(darks(tmp_path), bias, normalize=-1.0)
    assert plain.data == pytest.approx(image.data / 2, rel=1e-6, abs=1e-6)
    assert header["EXPTIME"] == 1800


def test_exposures_of_different_times(tmp_path, bias):
    frames = darks(tmp_path, exptime=(1800.0, 3600.0, 900.0))
    image, _ = run(frames, bias, combine="average")
    current = CURRENT * np.mean(GAINS)
    assert image.data.mean() == pytest.approx(2 * current * (1 + 0.5 + 2) / 3, rel=0.03)
    image, _ = run(frames, bias, combine="average", scale=False)
    assert image.data.mean() == pytest.approx(2 * current, rel=0.03)


def hot(data, number):
    data[5, 6] += 500
    data[NY + 5, NX + 6] += 100
    data[40:42, 50] = 65535


def test_hot_pixels(tmp_path, bias):
    image, header = run(darks(tmp_path, change=hot), bias)
    flagged = {tuple(map(int, p)) for p in np.argwhere(image.dq & DQ_HOTPIXEL)}
    assert flagged >= {(5, 6), (NY + 5, NX + 6), (40, 50), (41, 50)}
    assert header["ESO QC DARK MASTER NBADPIX"] == len(flagged) < 12
    good = image.data[image.dq == 0].astype(np.float64)
    for name, value in {
        "MEDIAN": np.median(good), "MEAN": good.mean(), "STDEV": good.std(ddof=1), "MIN": good.min(), "MAX": good.max(),
    }.items():  # fmt: skip
        assert header[f"ESO QC DARK MASTER {name}"] == pytest.approx(value, rel=2e-6)
    assert [header[f"ESO QC DARK INPUT{i} NSATURATED"] for i in (1, 2, 3)] == [2, 2, 2]
    # those that are saturated and hot do not count, as in the reference
    assert header["ESO QC DARK MASTER NSATURATED"] == 0
    off, header = run(darks(tmp_path, change=hot), bias, hotsigma=0.0)
    assert off.dq[5, 6] == 0
    # the limit is then the highest good pixel: those that were bad before may be above it
    assert header["ESO QC DARK MASTER NBADPIX"] == 2


def test_limits_of_a_quadrant():
    random = np.random.default_rng(1)
    data = random.normal(0, 1, (50, 60)).astype(np.float32)
    dq = np.zeros(data.shape, np.int32)
    data[1, 1], data[2, 2], data[3, 3], data[4, 4] = 1e6, -1e6, 30, -30
    dq[1, 1] = dq[2, 2] = 1
    good = data[dq == 0].astype(np.float64)
    median = np.median(good)
    limit = median + 5 * np.abs(good - median).mean()
    assert flag_hot(data, dq, 5.0) == (data > limit).sum() + 1
    assert dq[1, 1] == 1 | DQ_HOTPIXEL
    # of the low ones those that were bad, and lower than all good ones
    assert dq[2, 2] == 1 | DQ_DEADPIXEL
    assert dq[3, 3] == DQ_HOTPIXEL
    assert dq[4, 4] == 0
    dq[:] = 1
    assert flag_hot(data, dq, 5.0) == 0


def test_unusual_current_is_told(tmp_path, bias, caplog):
    with caplog.at_level(logging.WARNING, "musedask"):
        run(series(tmp_path, 3, "DARK", exptime=100.0, light=50.0), bias)
    assert any("dark current of" in r.message and "expected 0 to 10" in r.message for r in caplog.records)


def test_exposure_without_a_time(tmp_path, bias):
    with pytest.raises(InputError, match=r"dark6_0.fits: EXPTIME 0.0 found, expected a positive number"):
        run(darks(tmp_path, exptime=0.0), bias, scale=False)


# --- model -----------------------------------------------------------------------------------------


def test_model_needs_a_whole_ccd(tmp_path, bias):
    products = muse_dark(task("muse_dark", [*darks(tmp_path), bias], model=True, **NONE))
    assert next(products).tag == "MASTER_DARK"
    with pytest.raises(InputError, match=r"model=true: a dark of shape \(256, 320\) found, expected \(4112, 4096\)"):
        next(products)


def test_surface_of_good_pixels():
    random = np.random.default_rng(2)
    y, x = np.mgrid[-1:1:60j, -1:1:80j]
    true = 3 + x - 2 * y + 0.5 * x**3 * y**2 + y**5 * x**5
    data = true + random.normal(0, 1e-3, true.shape)
    good = random.random(true.shape) < 0.8
    data[~good] = 1e9
    surface = fit_surface(data, good, 5)
    assert np.abs(surface.rows(0, 60) - true).max() < 5e-3
    assert np.array_equal(surface.rows(10, 20), surface.rows(0, 60)[10:20])


def test_smoothing_of_good_pixels():
    random = np.random.default_rng(3)
    data = random.normal(0, 1, (60, 70)).astype(np.float32)
    dq = np.zeros(data.shape, np.int32)
    dq[30, 30], data[30, 30] = 1, 1e6
    found = smoothed(data, dq)
    x = np.arange(-11, 12)
    weight = np.exp(-0.5 * (x / (11 / 2.3548200450309493)) ** 2)
    kernel = np.outer(weight, weight)
    for centre in ((30, 30), (12, 40), (0, 0)):
        rows, columns = ([c + i for i in x if 0 <= c + i < n] for c, n in zip(centre, data.shape, strict=True))
        part = np.ix_(rows, columns)
        w = kernel[np.ix_([r - centre[0] + 11 for r in rows], [c - centre[1] + 11 for c in columns])] * (dq[part] == 0)
        assert found[centre] == pytest.approx(np.sum(w * data[part]) / w.sum(), abs=1e-5)


def test_stripes_go():
    """A narrow piece of the CCD has them, too."""
    random = np.random.default_rng(5)
    y = np.arange(1.0, CCD[0] + 1)[:, None]
    bump = sum(h * np.maximum(1 - ((y - c) / w) ** 2, 0) ** 2 for c, w, h in ((1180, 280, 1.0), (3560, 340, 2.0)))
    data = (1.5 + bump + random.normal(0, 0.1, (CCD[0], 300))).astype(np.float32)
    dq = np.zeros(data.shape, np.int32)
    data[1180, 5], dq[1180, 5] = 1e6, 1
    out = without_stripes(data, dq)
    outside = (bump == 0)[:, 0]
    assert np.array_equal(out[outside], data[outside])
    mean = np.where(dq == 0, out, np.nan)
    assert np.abs(np.nanmean(mean, axis=1) - 1.5).max() < 0.12
    assert out[1180, 5] > 9e5


def test_plane_of_the_middle():
    random = np.random.default_rng(6)
    y, x = np.mgrid[0:1200, 0:1100]
    plane = 0.02 + 1e-4 * x - 1e-4 * y
    data = (plane + random.normal(0, 0.5, plane.shape)).astype(np.float32)
    dq = np.zeros(plane.shape, np.int32)
    data[550:560, 520] = 100
    dq[570, 520], data[570, 520] = 1, 1e6
    data[:100] = 30
    data[:, 620] = 30
    found = _plane(data, dq)
    # negative ones become 0
    middle = slice(450, 750), slice(450, 650)
    assert found[middle] == pytest.approx(np.maximum(plane, 0)[middle], abs=0.05)
    assert found.min() == 0


@pytest.mark.parametrize(("top", "right"), [(False, False), (True, True), (False, True)])
def test_glow_of_a_corner(top, right):
    random = np.random.default_rng(7)
    distance = np.hypot(*np.mgrid[0:900, 0:900])
    glow = 3 * np.maximum(1 - (distance / 700) ** 2, 0) ** 2
    if top:
        glow = glow[::-1]
    if right:
        glow = glow[:, ::-1]
    data = (1.0 + glow + random.normal(0, 1, glow.shape)).astype(np.float32)
    data[400, 400] += 1000
    model = np.ones_like(data)
    _add_corner(model, data, np.zeros(data.shape, np.int32), top, right)
    assert np.abs(model - 1 - glow).max() < 0.3
    assert np.sqrt(np.mean((model - 1 - glow) ** 2)) < 0.05
    outside = (distance if not top else distance[::-1])[:, :: -1 if right else 1] > 750
    assert (model[outside] == 1).all()


def test_outliers_and_their_neighbours():
    random = np.random.default_rng(8)
    residual = random.normal(0, 1, (200, 300)).astype(np.float32)
    residual = np.clip(residual, -2, 2)
    residual[10, 10], residual[20, 20], residual[30, 30] = 9, -9, 1e6
    residual[50:52, 50:52] = 3.2
    residual[60:62, 60:62] = -3.2
    # beyond, of both signs, around one that is not
    residual[[79, 81], 80] = -3.2
    residual[80, [79, 81]] = 3.2
    residual[80, 80] = -0.1
    residual[90, 90] = 3.2
    dq = np.zeros(residual.shape, np.int32)
    dq[30, 30] = 1
    flags = _flag_outliers(residual, dq)
    found = {tuple(map(int, p)): int(flags[tuple(p)]) for p in np.argwhere(flags)}
    assert found == {
        (10, 10): DQ_HOTPIXEL, (20, 20): DQ_DEADPIXEL, (30, 30): 1 | DQ_HOTPIXEL, (80, 80): DQ_DARKPIXEL,
        **{(y, x): DQ_HOTPIXEL for y in (50, 51) for x in (50, 51)},
        **{(y, x): DQ_DARKPIXEL for y in (60, 61) for x in (60, 61)},
    }  # fmt: skip


@pytest.mark.slow
def test_model_of_plane_glow_and_stripes():
    random = np.random.default_rng(4)
    y, x = np.mgrid[1.0 : CCD[0] + 1, 1.0 : CCD[1] + 1].astype(np.float32)
    plane = 1.5 + 1e-4 * x + 5e-5 * y
    glow = np.zeros_like(plane)
    for cy in (1, CCD[0]):
        for cx in (1, CCD[1]):
            glow += np.maximum(4 * (1 - np.hypot(y - cy, x - cx) / 600), 0) ** 2 / 4
    stripe = np.where(np.abs(y - 1180) < 280, 0.8 * np.cos((y - 1180) * np.pi / 560) ** 2, 0)
    noise = random.normal(0, 3, CCD).astype(np.float32)
    data = plane + glow + stripe + noise
    stat = np.full(CCD, 9.0, np.float32)
    dq = np.zeros(CCD, np.int32)
    data[2000, 2000], data[2000, 2100], data[1500, 1500] = 500, -500, 1e6
    data[2500:2502, 2500:2502] = 15
    dq[1500, 1500] = 1 << 13
    model, flags, variance = model_dark(data, dq, stat)
    difference = model - plane - glow
    inside = np.hypot(np.minimum(y, CCD[0] + 1 - y), np.minimum(x, CCD[1] + 1 - x)) < 800
    assert np.abs(difference[~inside]).max() < 0.1
    assert np.sqrt(np.mean(difference[inside] ** 2)) < 0.2
    assert flags[2000, 2000] == DQ_HOTPIXEL
    assert flags[2000, 2100] == DQ_DEADPIXEL
    assert flags[1500, 1500] == 1 << 13 | DQ_HOTPIXEL
    # not beyond 5, but all four beyond 3 median deviations
    assert (flags[2500:2502, 2500:2502] & (DQ_HOTPIXEL | DQ_DARKPIXEL) != 0).all()
    assert (flags != 0).mean() < 1e-3
    # noise of the smoothed residual, which is not in the stripe either
    smooth = 9 / (4 * np.pi * (11 / 2.3548) ** 2)
    assert np.median(variance - stat) == pytest.approx(0.455 * smooth, rel=0.15)
    assert (variance >= stat).all()
