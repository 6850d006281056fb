"""A real cube, observed again by simulated exposures, combined in a small memory budget, and back.

The scene is the MUSE cube of Abell 478 that the mpdaf package carries (40 x 40 spaxels, 4750 to 9350
Angstrom, with the galaxy at its centre); beyond its edges it is mirrored, so that every spaxel of the
mosaic looks at real sky.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mpdaf
import numpy as np
import pytest
from astropy.io import fits

from musedask.compute import parse_bytes
from musedask.io.cube import open_cube
from musedask.io.tables import white_filter
from musedask.sim import CubeScene, simulate_pixtables

ROOT = Path(__file__).parents[1]
MINICUBE = Path(mpdaf.__file__).parent / "data" / "sdetect" / "minicube.fits"


@pytest.fixture(scope="module")
def scene():
    return CubeScene.from_cube(MINICUBE)


def observe(scene, folder, wave_range, limit):
    """Three dithered exposures of a field as large as the cube, combined; the limit is 4x below the data."""
    sim = simulate_pixtables(
        folder / "in", n_exposures=3, scene=scene, ifus=(11, 12, 13, 14), slices=48, slice_width=20,
        rotations=(0.0, 90.0, 180.0), exptimes=(900.0, 600.0, 1200.0), wave_range=wave_range, cosmic_rays=2e-4,
        bad_pixels=2e-3, pointing_errors=((0, 0), (0.8, -0.5), (-0.6, 0.9)), threads=2,
    )  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "musedask", "combine", *map(str, sim.paths), "--offset-list", str(sim.offset_list),
            "-o", str(folder / "cube.zarr"), "--memory-limit", limit, "--n-workers", "1", "--weight-map",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cube = open_cube(folder / "cube.zarr")
    data = 32 * sum(e.n_rows for e in sim.exposures) + 8 * cube.flux.size
    assert data >= 4 * parse_bytes(limit), data
    assert "sorted on disk" in done.stderr
    peak = re.search(r"^peak memory ([0-9.]+ [kMGT]?B)", done.stderr, re.MULTILINE)
    assert peak and parse_bytes(peak[1]) <= parse_bytes(limit) + 300_000_000
    return sim, cube


def check(sim, scene, cube):
    """Mean spectrum of the galaxy within 1 %, white image within the noise."""
    # spaxels of the mosaic that look at the inner field of the real cube
    ny, nx = cube.sizes["y"], cube.sizes["x"]
    y, x = np.mgrid[:ny, :nx]
    xi, eta = sim.offsets_of(*cube.muse.to_wcs().celestial.all_pix2world(x, y, 0))
    galaxy = np.hypot(xi, eta) < 1.5
    assert galaxy.sum() > 150
    flux = cube.flux.values
    variance = cube.variance.values
    truth = sim.truth_cube(cube.muse.to_wcs(), cube.wavelength.values, (ny, nx))
    seen = np.isfinite(flux)
    assert seen[3:-3][:, galaxy].mean() > 0.999

    # the first and last planes also hold the rows beyond them; in between, planes are added up until
    # the noise is 0.2 % of their sum, where the galaxy is faint (in the blue) more than where it is bright
    inner = slice(3, len(cube.wavelength) - 3)
    measured, expected, noise2 = (
        np.array([np.where(seen[k], part[k], 0)[galaxy].sum(dtype=float) for k in range(len(flux))])[inner]
        for part in (flux, truth, variance)
    )
    bins, first = [], 0
    for last in range(20, len(measured) + 1):
        part = slice(first, last)
        if last - first >= 20 and np.sqrt(noise2[part].sum()) < 0.002 * measured[part].sum():
            bins.append(measured[part].sum() / expected[part].sum() - 1)
            first = last
    assert len(bins) >= 20
    assert np.abs(bins).max() < 0.01
    # how the pixels of three dithers happen to lie on the peak: without noise and defects the total is off by
    # +0.35 %, that of twelve exposures by -0.23 % (the width of drops and voxels)
    assert abs(measured.sum() / expected.sum() - 1) < 0.005
    print(
        f"spectrum of the galaxy: {len(bins)} bins, largest deviation {100 * np.abs(bins).max():.2f} %, "
        f"in all {100 * (measured.sum() / expected.sum() - 1):+.3f} %"
    )

    # the white image of both, over the voxels that were seen, against the noise that the cube claims.
    # Voxels share pixels, by which drizzle makes their sum noisier than their variances say: what the
    # sum of a spaxel's voxels may be off is 1.0 to 1.5 times the sum of the variances of its voxels
    inside = np.hypot(xi, eta) < 3.5
    use = seen[inner] & inside
    image, expected = (np.where(use, part[inner], 0).sum(axis=0)[inside] for part in (flux, truth))
    noise = np.sqrt(np.where(use, variance[inner], 0).sum(axis=0))[inside]
    off = (image - expected) / noise
    print(f"white image: off by {np.median(off):+.2f} +- {1.4826 * np.median(np.abs(off - np.median(off))):.2f} sigma")
    assert abs(np.median(off)) < 0.5
    assert 0.5 < 1.4826 * np.median(np.abs(off - np.median(off))) < 2.0
    # and the image that the cube carries is that mean
    white = white_filter()
    part = (cube.wavelength.values >= white.wave[1]) & (cube.wavelength.values <= white.wave[2])
    mean = np.nanmean(flux[part][:, inside], axis=0)
    assert np.median(np.abs(cube.fov_white.values[inside] / mean - 1)) < 1e-3


def test_real_cube_observed_again(scene, tmp_path):
    """A part of the spectrum around the redshifted lines of the galaxy."""
    sim, cube = observe(scene, tmp_path, (6900, 7700), "52MB")
    check(sim, scene, cube)


@pytest.mark.slow
def test_real_cube_observed_again_in_full(scene, tmp_path):
    """All wavelengths."""
    sim, cube = observe(scene, tmp_path, None, "200MB")
    check(sim, scene, cube)


def test_simulated_headers_are_like_real_ones(scene, tmp_path):
    """The cards that a real cube has from its pixel tables: same keywords, same types."""
    sim = simulate_pixtables(tmp_path, n_exposures=1, scene=scene, ifus=(12,), slices=2, wave_range=(6900, 6910))
    ours = fits.getheader(sim.paths[0])
    real = fits.getheader(MINICUBE)
    needed = (
        "TELESCOP", "INSTRUME", "OBJECT", "RA", "DEC", "EQUINOX", "EXPTIME", "MJD-OBS", "DATE-OBS", "UTC",
        "LST", "ESO INS MODE", "ESO INS DROT MODE", "ESO INS DROT POSANG", "ESO TEL AIRM START", "ESO TEL AIRM END",
        "ESO TEL PARANG START", "ESO TEL PARANG END", "ESO TEL AMBI FWHM START", "ESO OBS ID", "ESO DPR CATG",
    )  # fmt: skip
    # of those, what the real header has too
    common = [key for key in needed if key in real]
    assert len(common) >= 15
    for key in common:
        assert key in ours, key
        kinds = [float if isinstance(h[key], int | float) else type(h[key]) for h in (ours, real)]
        assert kinds[0] is kinds[1], key
    assert ours["INSTRUME"] == real["INSTRUME"] == "MUSE"
    assert (ours["RA"], ours["DEC"]) == pytest.approx((scene.ra, scene.dec), abs=2e-6)
    start, end = (fits.getheader(sim.paths[0])[k] for k in ("DATE-OBS", "MJD-OBS"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", start) and 40000 < end < 80000
