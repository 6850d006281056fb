"""Native muse_bias against the real one, on the same raw frames.

The read-out noise is measured in the same windows, so that everything agrees to rounding, the variance too.
"""

from __future__ import annotations

import numpy as np
import pytest

from musedask.calib.bias import muse_bias
from musedask.io.calibrations import BadPixels, write_badpix_table

from ..calib.rawframes import COLUMNS, NX, NY, ROWS, SCAN, SHAPE, expose, series, task, write
from ..calib.test_basic import linearity
from .masters import GOOD_ORDER, differences, read

pytestmark = pytest.mark.esorex

LEVELS = (1000.0, 1004.0, 998.0, 1007.0)


def hits(image, number, random):
    """Cosmic rays in the overscans."""
    for _ in range(60):
        if random.random() < 0.5:
            y, x = random.integers(NY + SCAN, NY + 3 * SCAN), random.integers(0, image.shape[1])
        else:
            y, x = random.integers(0, image.shape[0]), random.integers(NX + SCAN, NX + 3 * SCAN)
        image[y, x] += random.integers(5, 300)


def marks(image, number):
    """Pixels that are saturated, or zero, in more and more frames; a warm piece of a column."""
    rows, columns = np.ix_(ROWS, COLUMNS)
    data = image[rows, columns]
    for k in range(12):
        if number < k:
            data[10:12, 30 + k] = 65535
        else:
            data[20, 30 + k] = 0
    warm = np.random.default_rng(1).normal(40, 25, 60)
    data[50:110, 100] = np.rint(data[50:110, 100] + warm)
    data[NY + 4 :, NX + 100] -= 130
    image[rows, columns] = data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def frames(folder):
    """Eleven frames with everything in them."""
    random = np.random.default_rng(3)
    made = []
    for i in range(11):
        image = expose(random, levels=LEVELS, slope=0.005)
        hits(image, i, random)
        marks(image, i)
        made.append((write(folder / f"full{i}.fits", image, number=i), "BIAS"))
    return made


@pytest.fixture(scope="module")
def clean(folder):
    return series(folder, 5, seed=30, levels=LEVELS)


@pytest.fixture(scope="module")
def sloping(folder):
    return series(folder, 4, seed=31, levels=LEVELS, slope=0.01)


def assert_as_reference(esorex, inputs, *, ifu=1, **values):
    made = next(muse_bias(task("muse_bias", inputs, ifu=ifu, **values)))
    products = esorex("muse_bias", inputs, nifu=ifu, **values)
    found = differences(made, products / f"MASTER_BIAS-{ifu:02d}.fits")
    assert not found, "\n".join(found)
    return made


@pytest.mark.parametrize("n", [3, 5, 11])
@pytest.mark.parametrize("combine", ["average", "median", "minmax", "sigclip"])
def test_combination(esorex, clean, folder, combine, n):
    inputs = (clean + series(folder, 6, seed=31, levels=LEVELS))[:n]
    made = assert_as_reference(esorex, inputs, combine=combine, overscan="none", ovscreject="none")
    assert made.content.data.shape == SHAPE


@pytest.mark.parametrize(
    "values",
    [
        {"combine": "average"},
        {"combine": "median"},
        # with extremes to reject and too few good values the reference fails
        {"combine": "minmax", "nlow": 0, "nhigh": 0, "nkeep": 5},
        {"combine": "sigclip"},
        {"combine": "sigclip", "lsigma": 1.2, "hsigma": 1.6},
        {"losigmabadpix": 3.0, "hisigmabadpix": 8.0},
    ],
    ids=lambda v: " ".join(f"{a}" for a in v.values()),
)
def test_bad_pixels(esorex, frames, folder, values):
    """Saturated pixels in some frames, bad columns, tables of bad pixels."""
    x, y = [SCAN + 31, 60, 60, 300, COLUMNS[-1] + 1], [SCAN + 11, 80, 80, 40, ROWS[-1] + 1]
    status = [1 << 8, 1 << 8, 1 << 9, 1 << 14, -(1 << 31)]
    table = folder / "badpix.fits"
    pixels = BadPixels(*(np.array(v, np.int32) for v in (x, y, status)), np.zeros(5))
    write_badpix_table(table, {1: pixels}, overwrite=True)
    made = assert_as_reference(
        esorex, [*frames, (table, "BADPIX_TABLE")], overscan="none", ovscreject="none", **values
    )
    quality = made.content.dq
    assert quality[79 - SCAN, 59 - SCAN] & 0x300 == 0x300
    assert made.header["ESO QC BIAS MASTER NBADPIX"] > 0


@pytest.mark.parametrize(
    ("overscan", "reject"),
    [
        *[("none", reject) for reject in ("none", "dcr", "fit")],
        *[("offset", reject) for reject in ("dcr:64,16,2,3", "fit:3")],
        *[("vpoly", reject) for reject in ("none", "dcr", "dcr:20,12,3,2", "fit")],
        *[("vpoly:2,1.001,1.001", reject) for reject in ("dcr:64,16", "fit:3")],
    ],
)
def test_overscan(esorex, frames, sloping, overscan, reject):
    # cosmic rays that are left would need orders at which the fit of the reference is not good any more
    inputs = sloping if overscan == "vpoly" and reject.startswith(("none", "fit")) else frames[:4]
    made = assert_as_reference(esorex, inputs, overscan=overscan, ovscreject=reject)
    orders = [made.header.get(f"ESO DRS MUSE OVSC{n} POLY NCOEFF", 1) - 1 for n in range(1, 5)]
    assert max(orders) <= GOOD_ORDER


@pytest.mark.parametrize("ignore", [0, 7])
def test_ignored_pixels_and_sigma(esorex, frames, ignore):
    assert_as_reference(esorex, frames[:3], ovscignore=ignore, ovscsigma=4.0, ovscreject="dcr:64,16")


def test_compressed_frames_and_gains(esorex, folder):
    frames = series(folder, 3, seed=32, levels=LEVELS, suffix=".fits.fz")
    made = assert_as_reference(esorex, [*frames, linearity(folder)], overscan="none", ovscreject="none")
    assert made.content.header["ESO DET OUT4 GAIN"] == 1.3


def test_frame_of_another_setup(esorex, folder):
    frames = series(
        folder, 4, seed=33, cards=lambda i: {"primary": {"ESO DET READ CURID": 3}} if i == 2 else {}
    )
    made = assert_as_reference(esorex, frames, overscan="none", ovscreject="none")
    assert "ESO QC BIAS INPUT4 NSATURATED" not in made.header


def test_level_that_deviates(esorex, folder):
    """Both refuse."""
    frames = [f for i in range(3) for f in series(folder, 1, seed=40 + i, levels=(1000.0 + 60 * i, *LEVELS[1:]))]
    with pytest.raises(AssertionError):
        esorex("muse_bias", frames, nifu=1, overscan="none")
    with pytest.raises(Exception, match="overscan level"):
        next(muse_bias(task("muse_bias", frames, overscan="none")))


@pytest.mark.slow
@pytest.mark.parametrize("ifu", [1, 12])
@pytest.mark.parametrize("n", [3, 5, 11])
def test_real_size(esorex, tmp_path, ifu, n):
    """Simulated frames of the whole CCD; the noise is also that of the simulation."""
    from musedask.sim.detector import Detector

    from .test_sim_detector import smallest_header

    detector = Detector(ifu)
    inputs = []
    for i in range(n):
        image = detector.expose(None, 0.0, (1, i)).image
        path = tmp_path / f"bias{i}.fits"
        write_one(path, i, smallest_header(detector), image)
        inputs.append((path, "BIAS"))
    made = assert_as_reference(esorex, inputs, ifu=ifu)
    for k in range(4):
        # rounding to whole numbers is a noise of its own
        noise = np.hypot(detector.read_noise[k], detector.gain[k] * 12**-0.5)
        assert made.header[f"ESO QC BIAS MASTER{k + 1} RON"] == pytest.approx(noise, rel=0.01)
    esorex.forget()


def write_one(path, number, header, image, exptime=0.0):
    from astropy.io import fits

    from musedask.io.raw import write_raw

    primary = fits.Header()
    primary["DATE-OBS"], primary["EXPTIME"] = f"2017-09-04T00:{number:02d}:00.000", exptime
    write_raw(path, primary, [(header, image)])


def test_comparison_sees_differences(esorex, clean, tmp_path):
    """A pixel, a flag, a variance, a card: each is found."""
    made = next(muse_bias(task("muse_bias", clean, overscan="none", ovscreject="none")))
    products = esorex("muse_bias", clean, nifu=1, overscan="none", ovscreject="none")
    path = products / "MASTER_BIAS-01.fits"
    assert not differences(made, path)
    made.content.data[3, 3] += np.float32(0.001)
    made.content.dq[4, 4] |= 1
    made.content.stat[5, 5] *= 2
    made.header["ESO QC BIAS MASTER1 MEDIAN"] += 0.01
    del made.header["ESO QC BIAS MASTER2 RON"]
    found = differences(made, path)
    assert [f.partition(":")[0] for f in found] == [
        "DATA", "DQ", "STAT", "ESO QC BIAS MASTER1 MEDIAN", "ESO QC BIAS MASTER2 RON",
    ]  # fmt: skip
    assert read(path)[1].dtype == np.float32
