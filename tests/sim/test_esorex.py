"""The real recipes take simulated pixel tables, and find in them what was put in."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest
from astropy.io import fits

from musedask.io.pixtable import scan_pixtable
from musedask.sim import Scene, Star, simulate_pixtables

pytestmark = pytest.mark.esorex

FIELD = {"ifus": (12, 13), "slices": 12, "slice_width": 24, "wave_range": (6540.0, 6550.0)}


@pytest.fixture(autouse=True)
def esorex():
    if shutil.which("esorex") is None:
        if os.environ.get("CI"):
            pytest.fail("esorex is not installed, but CI needs it")
        pytest.skip("esorex is not installed")


def run(recipe, sof, folder):
    """Run a recipe; returns the DATA extension of its cube after a look for complaints."""
    folder.mkdir()
    done = subprocess.run(
        ["esorex", "--no-checksum", "--no-datamd5", recipe, str(sof)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    complaints = [
        line
        for line in done.stdout.splitlines()
        if ("WARNING" in line or "ERROR" in line) and "plugins" not in line and "Channel for IFU" not in line
    ]
    assert not complaints
    with fits.open(folder / "DATACUBE_FINAL.fits") as hdus:
        return np.array(hdus["DATA"].data, float), hdus["DATA"].header.copy()


def centroid(image):
    image = np.nan_to_num(image - np.nanmedian(image))
    y, x = np.unravel_index(np.argmax(image), image.shape)
    cut = image[y - 4 : y + 5, x - 4 : x + 5]
    yy, xx = np.mgrid[y - 4 : y + 5, x - 4 : x + 5]
    return (cut * xx).sum() / cut.sum(), (cut * yy).sum() / cut.sum()


@pytest.mark.parametrize("per_ifu", [False, True])
def test_combine(tmp_path, per_ifu):
    sim = simulate_pixtables(
        tmp_path / "in",
        **FIELD,
        scene=Scene((Star(0.6, -0.4, 60000.0),), fwhm=1.0),
        rotations=(0.0, 90.0, 33.0),
        exptimes=(900, 600),
        flux_scales=(1.0, 1.2, 0.9),
        pointing_errors=[(2.0, -1.0), (-1.0, 0.5), (0.3, 0.8)],
        per_ifu=per_ifu,
        flat_field=per_ifu,
    )
    data, header = run("muse_exp_combine", sim.write_sof(tmp_path / "in.sof"), tmp_path / "out")
    wave = header["CRVAL3"] + np.arange(len(data)) * header["CD3_3"]
    truth = sim.truth_cube(header, wave)
    middle = len(data) // 2
    seen = np.where(np.isfinite(data[middle]), truth[middle], np.nan)
    assert centroid(data[middle]) == pytest.approx(centroid(seen), abs=0.1)
    assert np.nansum(data[middle]) == pytest.approx(np.nansum(seen), rel=0.03)


@pytest.mark.parametrize("stage", ["pix", "rad", "deg"])
def test_make_cube(tmp_path, stage):
    sim = simulate_pixtables(
        tmp_path / "in",
        **FIELD,
        n_exposures=1,
        scene=Scene((Star(0.6, -0.4, 60000.0),), fwhm=1.0),
        rotations=(30.0,),
        stage=stage,
        form="table" if stage == "deg" else "image",
    )
    sof = sim.write_sof(tmp_path / "in.sof", tag="PIXTABLE_OBJECT", offsets=False)
    data, header = run("muse_scipost_make_cube", sof, tmp_path / "out")
    assert np.nanmax(data) > 1000
    if stage != "pix":
        middle = len(data) // 2
        truth = sim.truth_cube(header, np.array([header["CRVAL3"] + middle * header["CD3_3"]]))[0]
        seen = np.where(np.isfinite(data[middle]), truth, np.nan)
        # the limits of a positioned table are written with seven digits only
        assert centroid(data[middle]) == pytest.approx(centroid(seen), abs=0.1)


def test_projection_is_that_of_the_reference(tmp_path):
    common = {**FIELD, "n_exposures": 1, "rotations": (33.5,)}
    flat = simulate_pixtables(tmp_path / "pix", **common, stage="pix")
    projected = simulate_pixtables(tmp_path / "rad", **common, stage="rad")
    solution = fits.PrimaryHDU()
    solution.header.update(
        {
            "WCSAXES": 2, "CRPIX1": 0.0, "CRPIX2": 0.0, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
            "CUNIT1": "deg", "CUNIT2": "deg", "CD1_1": -0.2 / 3600, "CD1_2": 0.0, "CD2_1": 0.0,
            "CD2_2": 0.2 / 3600,
        }
    )  # fmt: skip
    solution.writeto(tmp_path / "wcs.fits")
    sof = flat.write_sof(tmp_path / "in.sof", offsets=False)
    sof.write_text(f"{sof.read_text()}{tmp_path / 'wcs.fits'} ASTROMETRY_WCS\n")
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["esorex", "--no-checksum", "muse_scipost_apply_astrometry", str(sof)],
        cwd=tmp_path / "out",
        check=True,
        capture_output=True,
        timeout=120,
    )
    reference = scan_pixtable(next((tmp_path / "out").glob("PIXTABLE*.fits")))
    ours = scan_pixtable(projected.paths[0])
    for name in ("xpos", "ypos", "data"):
        np.testing.assert_array_equal(ours.read(name), reference.read(name))
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2", "CRPIX1", "CRPIX2"):
        assert ours.header[key] == pytest.approx(reference.header[key], rel=1e-13)
    for name in ("X LOW", "X HIGH", "Y LOW", "Y HIGH", "LAMBDA LOW", "LAMBDA HIGH"):
        key = f"ESO DRS MUSE PIXTABLE LIMITS {name}"
        assert ours.header[key] == reference.header[key]
