"""The reference reads simulated raw frames, plain and compressed, and finds the detector's true values."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.io.headers import set_card
from musedask.io.raw import write_raw
from musedask.sim.detector import NX, NY, SCAN, Detector

pytestmark = pytest.mark.esorex

IFU = 7


def smallest_header(detector):
    """The cards without which ``muse_bias`` fails, and no others."""
    header = fits.Header()
    cards = {
        "EXTNAME": f"CHAN{detector.ifu:02d}",
        "ESO DET BINX": 1,
        "ESO DET BINY": 1,
        "ESO DET READ CURID": 1,
        "ESO DET READ CURNAME": "SCI1.0",
        "ESO DET CHIP NAME": detector.chip_name,
        "ESO DET CHIP ID": detector.chip_id,
        "ESO DET CHIP LIVE": True,
    }
    for n, (x, y) in enumerate(((1, 1), (NX, 1), (NX, NY), (1, NY)), 1):
        places = ("X", x), ("Y", y), ("NX", NX // 2), ("NY", NY // 2)
        cards |= {f"ESO DET OUT{n} {key}": value for key, value in places}
        cards |= {f"ESO DET OUT{n} {key}": SCAN for key in ("PRSCX", "PRSCY", "OVSCX", "OVSCY")}
        cards[f"ESO DET OUT{n} GAIN"] = float(detector.gain[n - 1])
        cards[f"ESO DET OUT{n} RON"] = float(detector.read_noise[n - 1])
    for key, value in cards.items():
        set_card(header, key, value)
    return header


@pytest.fixture(scope="module")
def detector():
    return Detector(IFU)


@pytest.fixture(scope="module")
def frames(detector):
    return [detector.expose(None, 0.0, (1, i)).image for i in range(3)]


def test_bias(esorex, tmp_path_factory, detector, frames):
    folder = tmp_path_factory.mktemp("raw")
    # plain and compressed files in one set: one that were read wrongly would show in all that follows
    paths = [
        write_raw(folder / name, fits.Header(), [(smallest_header(detector), image)])
        for name, image in zip(("bias0.fits", "bias1.fits.fz", "bias2.fits.fz"), frames, strict=True)
    ]
    products = esorex("muse_bias", [(path, "BIAS") for path in paths], nifu=IFU)
    with fits.open(products / f"MASTER_BIAS-{IFU:02d}.fits") as hdus:
        header = hdus[0].header
        data, stat = hdus["DATA"].data.astype(np.float64), hdus["STAT"].data
        assert data.shape == stat.shape == (NY, NX)
    # without cosmic rays and hot pixels, which three frames cannot reject
    data[np.abs(data) > 8] = np.nan
    data -= detector.column_pattern
    bottom, top, left, right = slice(NY // 2), slice(NY // 2, NY), slice(NX // 2), slice(NX // 2, NX)
    windows = (bottom, left), (bottom, right), (top, right), (top, left)
    for n, window in enumerate(windows, 1):
        true = detector.read_noise[n - 1]
        assert header[f"ESO QC BIAS MASTER{n} RON"] == pytest.approx(true, rel=0.03)
        # rounding to whole adu adds 1/12
        noise = np.hypot(true / detector.gain[n - 1], 12**-0.5)
        assert np.median(stat[window]) == pytest.approx(noise**2 / 3, rel=0.06)
        assert np.nanmean(data[window]) == pytest.approx(0, abs=0.03)
        # the shape along y, some 5 adu, is gone but for the order at which the reference's fit stops
        rows = np.nanmean(data[window][:2048].reshape(32, -1), axis=1)
        assert np.abs(rows).max() < 0.15
