"""Products of both engines in each other's recipes, up to pixel tables, with full-size frames of two IFUs."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

import musedask
from benchmarks import chain as whole
from musedask.io.merge import merge_products
from musedask.io.muse_image import read_muse_image
from musedask.io.sof import Frame
from musedask.sim import simulate_night

from .support import require_esorex

pytestmark = [pytest.mark.esorex, pytest.mark.slow, pytest.mark.timeout(3600)]

IFUS = (1, 12)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Raw frames and static calibrations by tag."""
    require_esorex()
    folder = tmp_path_factory.mktemp("mixing")
    simulate_night(
        folder / "night", ifus=IFUS, dithers=1, exptimes=(300,), seed=5, associations=False, truth=False,
        calibrations={"BIAS": 5, "DARK": 3, "FLAT": 3, "ARC": 1, "SKYFLAT": 3, "STD": 0, "ASTROMETRY": 0, "SKY": 0},
        n_workers=2,
    )  # fmt: skip
    frames = {}
    for path, tag in whole.read_frames(folder / "night"):
        frames.setdefault(tag, []).append(Frame(path, tag))
    return folder, frames


def select(frames, tags):
    return [frame for tag in tags.split() for frame in frames.get(tag, [])]


CALIBRATIONS = (
    ("muse_bias", "BIAS BADPIX_TABLE", {}),
    ("muse_dark", "DARK MASTER_BIAS BADPIX_TABLE", {"model": True}),
    ("muse_flat", "FLAT MASTER_BIAS BADPIX_TABLE", {"samples": True}),
    ("muse_wavecal", "ARC MASTER_BIAS TRACE_TABLE LINE_CATALOG BADPIX_TABLE", {"residuals": True}),
)
LATER = (
    ("muse_lsf", "ARC MASTER_BIAS TRACE_TABLE WAVECAL_TABLE LINE_CATALOG BADPIX_TABLE"),
    ("muse_twilight", "SKYFLAT MASTER_BIAS MASTER_DARK MASTER_FLAT TRACE_TABLE WAVECAL_TABLE GEOMETRY_TABLE"),
    ("muse_scibasic",
     "OBJECT MASTER_BIAS MASTER_DARK MASTER_FLAT TRACE_TABLE WAVECAL_TABLE GEOMETRY_TABLE TWILIGHT_CUBE BADPIX_TABLE"),
)  # fmt: skip


def calibrate(folder, frames, engines):
    """Products of the detector calibrations with an engine for each."""
    frames = dict(frames)
    for (recipe, tags, parameters), engine in zip(CALIBRATIONS, engines, strict=True):
        products = musedask.run_recipe(
            recipe, select(frames, tags), engine=engine, ifus=IFUS, output_dir=folder, **parameters
        )
        for frame in products:
            frames.setdefault(frame.tag, []).append(frame)
    return frames


def merged(folder, frames):
    """The same with merged masters."""
    frames = dict(frames)
    for tag in ("MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE"):
        path = folder / f"{tag}.fits"
        merge_products([frame.path for frame in frames[tag]], path)
        frames[tag] = [Frame(path, tag)]
    return frames


def run_later(folder, frames, *, lsf):
    """The recipes that follow, by the reference; the data of the pixel table of the last IFU."""
    frames = dict(frames)
    for recipe, tags in LATER:
        # it takes minutes, and nothing here depends on it
        if recipe == "muse_lsf" and not lsf:
            continue
        products = musedask.run_recipe(
            recipe, select(frames, tags), engine="esorex", ifus=IFUS if recipe != "muse_twilight" else None,
            output_dir=folder,
        )  # fmt: skip
        for frame in products:
            frames.setdefault(frame.tag, []).append(frame)
    table = products.select("PIXTABLE_OBJECT", ifu=IFUS[-1])[0].path
    with fits.open(table) as hdus:
        return {name: hdus[name].data.ravel().copy() for name in ("data", "stat", "dq", "lambda", "xpos", "origin")}


def test_engines_mix(night):
    folder, frames = night
    tables = {}
    calibrated = {}
    for name, engines in (
        ("native", ("native",) * 4),
        ("esorex", ("esorex",) * 4),
        ("mixed", ("esorex", "native", "native", "esorex")),
    ):
        (folder / name).mkdir()
        calibrated[name] = calibrate(folder / name, frames, engines)
    for name, source in (("native", "native"), ("merged", "native"), ("esorex", "esorex"), ("mixed", "mixed")):
        (folder / f"{name}-later").mkdir()
        masters = merged(folder / f"{name}-later", calibrated[source]) if name == "merged" else calibrated[source]
        tables[name] = run_later(folder / f"{name}-later", masters, lsf=name == "merged")

    # the same masters in one file, or in one for each IFU
    for column in tables["native"]:
        assert np.array_equal(tables["native"][column], tables["merged"][column]), column

    # the wavelengths of rows at the ends of the range decide whether they are in it
    reference = tables["esorex"]
    for name in ("native", "mixed"):
        ours = tables[name]
        _, i, j = np.intersect1d(ours["origin"], reference["origin"], return_indices=True)
        assert len(i) > 0.9999 * len(reference["origin"])
        assert np.abs(ours["lambda"][i] - reference["lambda"][j]).max() < 0.003
        assert np.abs(ours["xpos"][i] - reference["xpos"][j]).max() < 0.003
        same = ours["dq"][i] == reference["dq"][j]
        assert same.mean() > 0.9999
        # of each pixel: single precision is coarse for hot ones
        scale = np.sqrt(np.maximum(reference["stat"][j][same].astype(float), 1e-18))
        assert (np.abs(ours["data"][i][same] - reference["data"][j][same]) / scale).max() < 0.001


def test_native_recipes_take_masters_of_the_reference(night):
    folder, frames = night
    masters = folder / "masters"
    masters.mkdir()
    calibrated = calibrate(masters, frames, ("esorex",) * 4)
    separate = musedask.run_recipe(
        "muse_flat", select(calibrated, CALIBRATIONS[2][1]), engine="native", ifus=IFUS, output_dir=folder / "a"
    )
    whole_files = merged(folder / "masters", calibrated)
    together = musedask.run_recipe(
        "muse_flat", select(whole_files, CALIBRATIONS[2][1]), engine="native", ifus=IFUS, output_dir=folder / "b"
    )
    for ifu in IFUS:
        a, b = (read_muse_image(p.select("MASTER_FLAT", ifu=ifu)[0].path) for p in (separate, together))
        assert np.array_equal(a.data, b.data)
        assert np.array_equal(a.stat, b.stat)
        assert np.array_equal(a.dq, b.dq)
