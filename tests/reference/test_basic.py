"""Basic processing against the real pipeline, where other recipes show it: darks, linearity, flats."""

from __future__ import annotations

import numpy as np
import pytest

from musedask.calib.basic import process, process_single
from musedask.io.calibrations import write_geometry_table, write_trace_table, write_wavecal_table
from musedask.io.products import product_header
from musedask.sim.optics import Instrument
from musedask.sim.statics import geometry_table
from musedask.sim.truth import trace_table, wavecal_table

from ..calib.rawframes import SHAPE, series, task
from ..calib.test_basic import linearity
from .masters import image_difference, read

pytestmark = pytest.mark.esorex

LEVELS = (1000.0, 1004.0, 998.0, 1007.0)
OVERSCAN = "vpoly:3,1.001,1.001"


def light(scale):
    """Light from none to many counts, rows and columns without."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    values = scale * (1 + x / 50 + y / 300)
    values[:, ::20] = 3
    values[::30] = 0
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def bias(esorex, folder):
    frames = series(folder, 3, seed=70, levels=LEVELS, slope=0.005)
    return esorex("muse_bias", frames, nifu=1, overscan=OVERSCAN) / "MASTER_BIAS-01.fits", "MASTER_BIAS"


@pytest.fixture(scope="module")
def dark(esorex, folder, bias):
    frames = series(folder, 3, "DARK", seed=71, levels=LEVELS, slope=0.005, light=light(3), exptime=1800.0)
    return esorex("muse_dark", [*frames, bias], nifu=1, overscan=OVERSCAN) / "MASTER_DARK-01.fits", "MASTER_DARK"


@pytest.fixture(scope="module")
def flats(folder):
    return series(folder, 3, "FLAT", seed=72, levels=LEVELS, slope=0.005, light=light(2000), exptime=(5.0, 10.0, 7.0))


@pytest.mark.parametrize("more", ["", "dark", "curve", "dark and curve"])
def test_flats(esorex, folder, bias, dark, flats, more):
    inputs = [*flats, bias]
    inputs += [dark] if "dark" in more else []
    inputs += [linearity(folder)] if "curve" in more else []
    options = {"overscan": OVERSCAN, "combine": "average"}
    products = esorex("muse_flat", inputs, nifu=1, trace="false", normalize="false", **options)
    reference = read(products / "MASTER_FLAT-01.fits")
    given = task("muse_flat", inputs, **options)
    found = process(given, given.tagged("FLAT"), scale=True, statistics=True)
    # muse_flat flags pixels afterwards
    reference[2][:] = np.where(found.image.dq == 0, 0, reference[2])
    differences = image_difference(found.image, reference, absolute=1e-4, relative=1e-6, stat=1e-6)
    for i, (statistics, saturated) in enumerate(zip(found.statistics, found.saturated, strict=True), 1):
        card = f"ESO QC FLAT INPUT{i}"
        assert reference[0][f"{card} NSATURATED"] == saturated
        for name in ("median", "mean", "stdev", "min", "max"):
            expected = reference[0][f"{card} {name.upper()}"]
            assert getattr(statistics, name) == pytest.approx(expected, rel=1e-6, abs=1e-4)
    assert not differences, "\n".join(differences)


def test_division_by_a_flat(esorex, folder, bias, flats):
    flat = esorex("muse_flat", [*flats, bias], nifu=1, trace="false", overscan=OVERSCAN) / "MASTER_FLAT-01.fits"
    instrument = Instrument()
    tables = []
    for tag, write, table in (
        ("TRACE_TABLE", write_trace_table, trace_table(instrument.ifu(1))),
        ("WAVECAL_TABLE", write_wavecal_table, wavecal_table(instrument.ifu(1))),
        ("GEOMETRY_TABLE", write_geometry_table, geometry_table(instrument, [1])),
    ):
        path = folder / f"{tag}.fits"
        write(path, table, header=product_header(tag, ifu=None if tag == "GEOMETRY_TABLE" else 1))
        tables.append((path, tag))
    objects = series(folder, 2, "OBJECT", seed=73, levels=LEVELS, slope=0.005, light=light(100), exptime=60.0)
    inputs = [*objects, bias, (flat, "MASTER_FLAT"), *tables]
    products = esorex("muse_scibasic", inputs, nifu=1, overscan=OVERSCAN, skylines="none")
    given = task("muse_scibasic", inputs, overscan=OVERSCAN)
    for i, frame in enumerate(given.tagged("OBJECT"), 1):
        reference = read(products / f"OBJECT_RED_{i:04d}-01.fits")
        image, saturated = process_single(given, frame)
        differences = image_difference(image, reference, absolute=1e-4, relative=1e-6, stat=1e-6)
        assert not differences, "\n".join(differences)
        assert reference[0]["ESO QC SCIBASIC NSATURATED"] == saturated
        key = "ESO DRS MUSE FLAT FLUX LAMP"
        assert image.header[key] == pytest.approx(reference[0][key], rel=1e-6)
