"""Native muse_bias on small frames: the noise that went in, bad columns, quality control."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from musedask.calib.bias import flag_columns, muse_bias, profiles, slope
from musedask.errors import InputError
from musedask.instrument import DQ_DEADPIXEL, DQ_SATURATED

from .rawframes import GAINS, LEVELS, NOISE, NX, NY, series, task

NONE = {"overscan": "none", "ovscreject": "none"}
#: rows and columns of the quadrants of outputs 1 to 4
QUADRANTS = [
    (slice(top * NY, (top + 1) * NY), slice(right * NX, (right + 1) * NX))
    for top, right in ((0, 0), (0, 1), (1, 1), (1, 0))
]


def run(frames, **values):
    made = list(muse_bias(task("muse_bias", frames, **values)))
    assert [m.tag for m in made] == ["MASTER_BIAS"]
    assert made[0].raws is None
    return made[0].content, made[0].header


@pytest.mark.parametrize("n", [3, 5])
def test_noise_of_the_detector(tmp_path, n):
    image, header = run(series(tmp_path, n), combine="average")
    for k, section in enumerate(QUADRANTS):
        gain = GAINS[k]
        # rounding to whole numbers adds 1/12
        noise = np.hypot(NOISE[k] / gain, 12**-0.5)
        ron = header[f"ESO QC BIAS MASTER{k + 1} RON"]
        assert ron == pytest.approx(noise * gain, rel=0.015)
        # of one window of 19 x 19 pixels
        assert header[f"ESO QC BIAS MASTER{k + 1} RONERR"] == pytest.approx(ron / np.sqrt(2 * 360), rel=0.35)
        assert np.median(image.stat[section]) == pytest.approx((ron / gain) ** 2 / n, rel=1e-4)
        assert image.data[section].std() == pytest.approx(noise / np.sqrt(n), rel=0.03)
        assert header[f"ESO QC BIAS LEVEL{k + 1} MEAN"] == pytest.approx(LEVELS[k], abs=1)
    assert image.unit == "adu"
    assert not image.dq.any()


def test_quality_control(tmp_path):
    def change(data, number):
        data[3, 4] = 65535
        data[9, 9 + number] = 0

    image, header = run(series(tmp_path, 4, change=change), combine="average", hisigmabadpix=1e5, **NONE)
    for k, section in enumerate(QUADRANTS, 1):
        data = image.data[section].astype(np.float64)
        for name, value in {
            "MEDIAN": np.median(data), "MEAN": data.mean(), "STDEV": data.std(ddof=1), "MIN": data.min(),
            "MAX": data.max(), "SLOPE X": np.polyfit(np.arange(NX), data.mean(axis=0), 1)[0],
            "SLOPE Y": np.polyfit(np.arange(NY), data.mean(axis=1), 1)[0],
        }.items():  # fmt: skip
            assert header[f"ESO QC BIAS MASTER{k} {name}"] == pytest.approx(value, rel=2e-6, abs=1e-9)
    assert header["ESO QC BIAS MASTER1 MAX"] == 65535
    assert [header[f"ESO QC BIAS INPUT{i} NSATURATED"] for i in range(1, 5)] == [2] * 4
    # one in all frames; others have good values
    assert header["ESO QC BIAS MASTER NSATURATED"] == 1
    assert image.dq[3, 4] == DQ_SATURATED
    assert header["ESO QC BIAS MASTER NBADPIX"] == 0
    assert isinstance(header["ESO QC BIAS MASTER NBADPIX"], int)
    comments = header.comments
    assert comments["ESO QC BIAS MASTER2 RON"].startswith("[count] Read-out noise in quadrant 2")
    assert comments["ESO QC BIAS MASTER2 SLOPE X"] == "[adu/pix] Average horizontal slope of master bias in quadrant 2"


def test_bad_columns(tmp_path):
    random = np.random.default_rng(8)
    warm = random.normal(30, 20, 50)

    def change(data, number):
        rows = data.astype(np.float64)
        rows[20:70, 30] += warm
        rows[NY:, NX + 9] -= 150
        # a constant one does not scatter: the reference does not see it
        rows[:NY, NX + 50] += 20
        data[:] = np.clip(np.rint(rows), 0, 65535)

    image, header = run(series(tmp_path, 5, change=change), **NONE)
    flagged = image.dq == DQ_DEADPIXEL
    assert np.flatnonzero(flagged.any(axis=0)).tolist() == [30, NX + 9]
    # from the first to the last pixel above the limit, which is one of means: noise may be above it, too
    rows = np.flatnonzero(flagged[:NY, 30])
    means = image.data[QUADRANTS[0]].mean(axis=0, dtype=np.float64)
    limit = np.median(means) + 3 * np.abs(means - np.median(means)).mean()
    above = np.flatnonzero(image.data[:NY, 30] > limit)
    assert np.array_equal(rows, np.arange(above[0], above[-1] + 1))
    assert set(range(30, 60)) <= set(rows)
    assert flagged[NY:, NX + 9].all()
    assert not flagged[:NY, NX + 9].any()
    assert header["ESO QC BIAS MASTER NBADPIX"] == flagged.sum()
    none, _ = run(series(tmp_path, 5, change=change), hisigmabadpix=1e9, losigmabadpix=1e9, **NONE)
    assert not none.dq.any()


def test_profiles_and_slopes():
    data = np.random.default_rng(9).normal(1000, 2, (50, 80)).astype(np.float32)
    data += np.arange(80, dtype=np.float32) / 8
    columns, scatter, rows = profiles(data[3:, 5:])
    part = data[3:, 5:].astype(np.float64)
    assert columns == pytest.approx(part.mean(axis=0), rel=1e-12)
    assert scatter == pytest.approx(part.std(axis=0, ddof=1), rel=1e-8)
    assert rows == pytest.approx(part.mean(axis=1), rel=1e-12)
    assert slope(columns) == pytest.approx(np.polyfit(np.arange(75), columns, 1)[0], rel=1e-9)
    assert slope(np.ones(1)) == 0


def test_columns_are_judged_by_their_neighbours():
    data = np.random.default_rng(10).normal(0, 1, (100, 60)).astype(np.float32)
    data[:, 7] *= 30
    data[10:20, 7] += 400
    data[40, 7] = -3000
    dq = np.zeros(data.shape, np.int32)
    dq[12, 7] = 1
    columns, scatter, _ = profiles(data)
    assert flag_columns(data, dq, columns, scatter, 2.5, 1e9, 3.0) > 10
    assert dq[12, 7] == 1 | DQ_DEADPIXEL
    # if the scatter must be larger: none
    dq[:] = 0
    assert flag_columns(data, dq, columns, scatter, 1e4, 1e9, 3.0) == 0
    assert not dq.any()


@pytest.mark.parametrize("combine", ["average", "median", "minmax", "sigclip"])
@pytest.mark.parametrize("overscan", ["none", "offset", "vpoly:3,1.001,1.001"])
def test_methods_agree(tmp_path, combine, overscan):
    image, _ = run(series(tmp_path, 5, levels=(1000.0, 1005.0, 1010.0, 1015.0)), combine=combine, overscan=overscan)
    expected = 0.0 if overscan.startswith("vpoly") else 1000.0
    assert image.data[QUADRANTS[0]].mean() == pytest.approx(expected, abs=0.1)
    wide = {"average": 1.0, "median": 1.25, "minmax": 1.07, "sigclip": 1.1}[combine]
    noise = np.hypot(NOISE[0] / GAINS[0], 12**-0.5) / np.sqrt(5)
    assert image.data[QUADRANTS[0]].std() == pytest.approx(wide * noise, rel=0.1)


def levels(by):
    return lambda i: (1000.0 + by * i, *LEVELS[1:])


def drifting(folder, by):
    """Frames of which the first quadrant drifts."""
    return [f for i in range(4) for f in series(folder, 1, seed=20 + i, levels=levels(by)(i))]


def test_levels_are_compared(tmp_path):
    with pytest.raises(InputError, match=r"bias22_0.fits: overscan level .*quadrant 1 .*as in .*bias20_0.fits"):
        run(drifting(tmp_path, 50.0), **NONE)
    image, header = run(drifting(tmp_path, 50.0), ovscsigma=1e3, combine="average", **NONE)
    assert image.data[QUADRANTS[0]].mean() == pytest.approx(1075, abs=0.1)
    assert header["ESO DRS MUSE OVSC1 MEAN"] == pytest.approx(1075, abs=0.1)
    # the scatter about the first, divided by their number
    assert header["ESO DRS MUSE OVSC1 STDEV"] == pytest.approx(np.sqrt(50**2 * (1 + 4 + 9) + 4 * 2.4**2) / 4, rel=0.01)


def test_offsets_move_the_first(tmp_path):
    """The reference adjusts the first image to the last one, and no other."""
    image, header = run(drifting(tmp_path, 50.0), overscan="offset", ovscreject="none", combine="average")
    assert image.data[QUADRANTS[0]].mean() == pytest.approx((1150 + 1050 + 1100 + 1150) / 4, abs=0.1)
    assert header["ESO DRS MUSE OVSC1 MEAN"] == pytest.approx(1150, abs=0.1)


def test_noise_beyond_the_usual_is_told(tmp_path, caplog):
    random = np.random.default_rng(11)

    def change(data, number):
        data[:NY, :NX] += random.integers(0, 40, (NY, NX)).astype(np.uint16)

    with caplog.at_level(logging.WARNING, "musedask"):
        run(series(tmp_path, 3, change=change), **NONE)
    assert [r.message for r in caplog.records if "read-out noise" in r.message and "quadrant 1" in r.message]
    assert not [r for r in caplog.records if "quadrant 2" in r.message]


def test_two_frames_are_too_few(tmp_path):
    with pytest.raises(InputError, match="combine=sigclip: 2 images found, expected 3 or more"):
        run(series(tmp_path, 2), **NONE)
