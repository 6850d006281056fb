"""Native muse_dark against the real one, on the same raw frames and master bias: it agrees to rounding."""

from __future__ import annotations

import numpy as np
import pytest

from musedask.calib.dark import muse_dark
from musedask.io.calibrations import BadPixels, write_badpix_table

from ..calib.rawframes import COLUMNS, NX, NY, ROWS, SCAN, series, task
from ..calib.test_basic import linearity
from .masters import GOOD_ORDER, differences, read

pytestmark = pytest.mark.esorex

NONE = {"overscan": "none", "ovscreject": "none"}
LEVELS = (1000.0, 1004.0, 998.0, 1007.0)
TIMES = (1800.0, 900.0, 1800.0, 3600.0, 1700.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def biases(esorex, folder):
    """Master biases of the reference by method of the overscan."""
    frames = series(folder, 5, seed=50, levels=LEVELS, slope=0.01)
    return {
        overscan: (esorex("muse_bias", frames, nifu=1, overscan=overscan) / "MASTER_BIAS-01.fits", "MASTER_BIAS")
        for overscan in ("none", "offset", "vpoly")
    }


def glow(data, number):
    """A dark with hot pixels, saturated ones, and some below zero."""
    random = np.random.default_rng(60 + number)
    data += random.poisson(6.0, data.shape).astype(np.uint16)
    data[::17, ::13] += 80
    data[3, 4:9] = 65535
    data[4, 4 + number] = 65535
    data[7, 7] -= 300
    data[NY + 6, NX + 6] += np.uint16(30 * (number == 2))


@pytest.fixture(scope="module")
def frames(folder):
    """Darks of several times; their levels are a bit off those of the biases."""
    levels = tuple(level + 1.5 for level in LEVELS)
    return series(folder, 5, "DARK", seed=51, levels=levels, exptime=TIMES, change=glow, slope=0.01)


def assert_as_reference(esorex, inputs, **values):
    made = next(muse_dark(task("muse_dark", inputs, **values)))
    options = {k: str(v).lower() if isinstance(v, bool) else v for k, v in values.items()}
    products = esorex("muse_dark", inputs, nifu=1, **options)
    path = products / "MASTER_DARK-01.fits"
    found = differences(made, path, absolute=1e-4, relative=1e-5, stat=1e-5)
    reference = read(path)[0]
    found += [
        f"{key}: {made.header[key]!r}, reference {reference[key]!r}"
        for key in ("EXPTIME", "DATE-OBS", "ESO DET OUT3 GAIN")
        if made.header[key] != reference[key]
    ]
    if not made.header.comments["EXPTIME"].startswith(reference.comments["EXPTIME"]):
        found.append(f"EXPTIME: comment {made.header.comments['EXPTIME']!r}")
    assert not found, "\n".join(found)
    return made


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("combine", ["average", "median", "minmax", "sigclip"])
def test_combination(esorex, frames, biases, combine, n):
    """The images are scaled to the time of the first."""
    # with extremes to reject and too few good values the reference fails
    few = {"nlow": 0, "nhigh": 0} if combine == "minmax" else {}
    assert_as_reference(esorex, [*frames[:n], biases["none"]], combine=combine, **few, **NONE)


@pytest.mark.parametrize(
    "values",
    [
        {"scale": False},
        {"normalize": -1.0},
        {"normalize": 77.0},
        {"hotsigma": 0.0},
        {"hotsigma": 2.0},
        {"lsigma": 1.3, "hsigma": 1.2},
    ],
    ids=str,
)
def test_parameters(esorex, frames, biases, folder, values):
    x, y = [SCAN + 8, SCAN + 90, 260, COLUMNS[-1] + 1], [SCAN + 8, 60, 250, ROWS[-1] + 1]
    pixels = BadPixels(*(np.array(v, np.int32) for v in (x, y, [1, 1 << 8, 1 << 13, 1 << 14])), np.zeros(4))
    table = folder / "badpix.fits"
    write_badpix_table(table, {1: pixels}, overwrite=True)
    inputs = [*frames, biases["none"], (table, "BADPIX_TABLE")]
    made = assert_as_reference(esorex, inputs, **NONE, **values)
    assert made.content.dq[7, 7]


@pytest.mark.parametrize("overscan", ["none", "offset", "vpoly"])
def test_overscan(esorex, frames, biases, overscan):
    made = assert_as_reference(esorex, [*frames, biases[overscan]], overscan=overscan)
    orders = [made.header.get(f"ESO DRS MUSE OVSC{n} POLY NCOEFF", 1) - 1 for n in range(1, 5)]
    assert max(orders) <= GOOD_ORDER


def test_gains(esorex, frames, biases, folder):
    """The gains of the file are taken; a dark is not corrected for linearity."""
    curve = linearity(folder, coefficients=(0.5, 0.1))
    made = assert_as_reference(esorex, [*frames[:3], biases["none"], curve], **NONE)
    assert made.header["ESO DET OUT4 GAIN"] == 1.3


@pytest.mark.slow
@pytest.mark.parametrize("ifu", [1, 12])
def test_real_size_and_model(esorex, tmp_path, ifu):
    """Simulated darks of the whole CCD, with model: its flags are those of the reference."""
    from musedask.sim.detector import Detector

    from .test_bias import write_one
    from .test_sim_detector import smallest_header

    detector = Detector(ifu)

    def expose(kind, n, time):
        inputs = []
        for i in range(n):
            header = smallest_header(detector)
            path = tmp_path / f"{kind}{i}.fits"
            write_one(path, i, header, detector.expose(None, time, (len(kind), i)).image, exptime=time)
            inputs.append((path, kind))
        return inputs

    bias = esorex("muse_bias", expose("BIAS", 3, 0.0), nifu=ifu) / f"MASTER_BIAS-{ifu:02d}.fits"
    inputs = [*expose("DARK", 3, 1800.0), (bias, "MASTER_BIAS")]
    products = esorex("muse_dark", inputs, nifu=ifu, model="true")
    dark, model = muse_dark(task("muse_dark", inputs, ifu=ifu, model=True))
    path = products / f"MASTER_DARK-{ifu:02d}.fits"
    found = differences(dark, path, absolute=1e-4, relative=1e-5, stat=1e-5)
    reference = read(products / f"MODEL_DARK-{ifu:02d}.fits")
    far = np.ones(model.content.data.shape, bool)
    for rows in (slice(0, 850), slice(-850, None)):
        for columns in (slice(0, 850), slice(-850, None)):
            far[rows, columns] = False
    # the corners depend on which outliers are left out of their fits
    difference = np.abs(model.content.data - reference[1])
    assert difference[far].max() < 1e-3
    assert difference.max() < 0.2
    # means of three whole numbers take few values: some lie on a limit, which follows the corners
    assert np.count_nonzero(model.content.dq != reference[2]) < 2e-5 * reference[2].size
    assert not [key for key in model.header if key.startswith("ESO QC")]
    assert not found, "\n".join(found)
    esorex.forget()
