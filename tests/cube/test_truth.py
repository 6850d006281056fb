"""Known truth: a cube of a simulated sky is that sky.

Without noise the differences are those of resampling: a value is a mean over a voxel and its drops, not the
value at the centre.  For a smooth field the second derivative of the scene bounds them, and they fall with the
square of the size of the voxels.
"""

from __future__ import annotations

import numpy as np
import pytest

from musedask.cube.mosaic import combine, make_cube
from musedask.io.headers import cards_from_json
from musedask.sim import Background, LineRegion, Scene, Star, simulate_pixtables

FIELD = {"ifus": (12, 13), "slices": 12, "slice_width": 24, "wave_range": (6540.0, 6580.0)}
LINE = 6560.0
SCENE = Scene(
    stars=(Star(0.3, -0.4, 50000.0),),
    lines=(LineRegion(-0.6, 0.4, 1.2, 2000.0, LINE, sigma=2.5),),
    background=Background(200.0, 5.0, -3.0),
    fwhm=1.2,
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three exposures with pointing errors and wrong flux scales, but without noise."""
    return simulate_pixtables(
        tmp_path_factory.mktemp("truth") / "in", **FIELD, scene=SCENE, noise=False, rotations=(0.0, 90.0, 33.0),
        exptimes=(900, 600), flux_scales=(1.0, 1.2, 0.9), pointing_errors=((2.0, -1.0), (-1.0, 0.5), (0.3, 0.8)),
    )  # fmt: skip


def with_truth(sim, cube, margin=3):
    """Flux, variance and truth, the outermost voxels cut away: there the sky is covered in part only."""
    header = cards_from_json(cube.attrs["data_header"])
    shape = cube.flux.shape
    truth = sim.truth_cube(header, cube.wavelength.values, shape=shape[1:]) if "NAXIS1" not in header else None
    cut = (slice(1, -1), slice(margin, -margin), slice(margin, -margin))
    return cube.flux.values[cut].astype(float), cube.variance.values[cut].astype(float), truth[cut].astype(float), cut


def centroid(image, place):
    """Centre of light around the brightest pixel of `place`, in pixels."""
    y0, x0 = np.unravel_index(np.argmax(place), place.shape)
    box = image[y0 - 5 : y0 + 6, x0 - 5 : x0 + 6]
    box = box - np.median(image)
    y, x = np.mgrid[y0 - 5 : y0 + 6, x0 - 5 : x0 + 6]
    return (box * x).sum() / box.sum(), (box * y).sum() / box.sum()


@pytest.fixture(scope="module")
def cube(clean, tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "cube.zarr"
    return combine(clean.paths, path, offset_list=clean.offset_list, crsigma=0)


def test_flux(clean, cube):
    """The sky at the voxel centres: 1 % of the peak everywhere, 0.3 % of the local flux in the smooth part."""
    flux, _, truth, _ = with_truth(clean, cube)
    seen = np.isfinite(flux)
    assert seen.mean() > 0.5
    error = np.abs(flux - truth)[seen]
    assert error.max() < 0.05 * truth.max()
    assert np.sqrt(np.mean(error**2)) < 0.005 * truth.max()
    smooth = seen & (truth < 220)
    assert smooth.sum() > 1000
    assert np.abs(flux / truth - 1)[smooth].max() < 0.06
    assert np.abs(np.median((flux / truth)[smooth]) - 1) < 1e-3


@pytest.mark.parametrize("method", ["nearest", "linear", "quadratic", "renka", "lanczos"])
def test_flux_of_all_methods(clean, tmp_path, method):
    options = {"ld": 2} if method == "lanczos" else {}
    # weights that fall slowly with distance average over three voxels in each direction
    bias = 5e-3 if method in ("linear", "quadratic") else 2e-3
    cube = combine(
        clean.paths, tmp_path / "c.zarr", offset_list=clean.offset_list, crsigma=0, resample=method, **options
    )
    flux, _, truth, _ = with_truth(clean, cube)
    seen = np.isfinite(flux)
    assert np.sqrt(np.mean((flux - truth)[seen] ** 2)) < 0.02 * truth.max()
    assert np.abs(np.median((flux / truth)[seen]) - 1) < bias


def test_flux_is_conserved(clean, cube):
    """Summed over the field it is that of the scene: what resampling blurs stays in the field.

    To 0.5 %: slices are 1.04 spaxels apart, so their samples of the star are not those of the spaxels.
    """
    flux, _, truth, _ = with_truth(clean, cube)
    seen = np.isfinite(flux)
    assert np.sum(flux[seen]) / np.sum(truth[seen]) == pytest.approx(1, abs=5e-3)


def test_position(clean, cube):
    """The offsets of the list bring the exposures together and onto the sky: a tenth of a pixel."""
    flux, _, truth, _ = with_truth(clean, cube)
    image, expected = (np.where(np.isfinite(flux), v, np.nan)[:8].mean(axis=0) for v in (flux, truth))
    image, expected = (np.where(np.isfinite(v), v, np.nanmedian(v)) for v in (image, expected))
    assert centroid(image, expected) == pytest.approx(centroid(expected, expected), abs=0.1)


def test_wavelength(clean, cube):
    """The centre of a line, to a tenth of an Angstrom (8 % of a plane)."""
    flux, _, truth, cut = with_truth(clean, cube)
    wave = cube.wavelength.values[cut[0]]
    bright = np.isfinite(flux).all(0) & (truth.max(0) - truth.min(0) > 100)
    assert bright.sum() > 10
    spectrum = flux[:, bright].sum(1)
    spectrum -= np.median(spectrum)
    line = np.abs(wave - LINE) < 10
    assert (spectrum * wave)[line].sum() / spectrum[line].sum() == pytest.approx(LINE, abs=0.1)


def test_flux_scales_and_offsets_matter(clean, tmp_path):
    """The other tests would notice if the list were ignored."""
    cube = combine(clean.paths, tmp_path / "c.zarr", crsigma=0)
    flux, _, truth, _ = with_truth(clean, cube)
    seen = np.isfinite(flux)
    assert np.sqrt(np.mean((flux - truth)[seen] ** 2)) > 0.02 * truth.max()


# ------------------------------------------------------------------------------------------- noise


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Smooth sky with noise."""
    return simulate_pixtables(
        tmp_path_factory.mktemp("noise") / "in", **FIELD, scene=Scene(background=Background(100.0, 1.0, -2.0)),
        rotations=(0.0, 90.0), exptimes=(900, 600), seed=2,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "low", "high"), [
    # a voxel of one pixel has its noise and its variance; only these pulls have a width of 1
    ("nearest", 0.97, 1.03),
    # neighbours share pixels with weights: each variance is right, and so is the width
    ("drizzle", 0.95, 1.05),
    ("linear", 0.95, 1.05), ("renka", 0.95, 1.05),
])  # fmt: skip
def test_pulls(noisy, tmp_path, method, low, high):
    """(flux - truth) / sqrt(variance) is centred on 0 and as wide as the variances say.

    What drizzle does not tell is the covariance of neighbours, which shows in the next test.
    """
    cube = combine(noisy.paths, tmp_path / "c.zarr", offset_list=noisy.offset_list, crsigma=0, resample=method)
    flux, variance, truth, _ = with_truth(noisy, cube)
    seen = np.isfinite(flux) & (variance > 0)
    pull = (flux - truth)[seen] / np.sqrt(variance[seen])
    n = len(pull)
    assert n > 5000
    # neighbours are not independent: at worst each pixel is in 27 voxels
    assert abs(pull.mean()) < 5 * np.sqrt(27 / n)
    assert low < pull.std() < high
    # a normal distribution has 0.27 % beyond 3
    assert np.mean(np.abs(pull) > 3) < 0.006


def test_neighbours_of_a_drizzled_voxel_are_correlated(noisy, tmp_path):
    """So the noise of a mean of neighbours is larger than their variances say; with small drops less."""
    excess = {}
    for pixfrac in ("0.2", "1.0"):
        cube = combine(
            noisy.paths, tmp_path / "c.zarr", offset_list=noisy.offset_list, crsigma=0, pixfrac=pixfrac, overwrite=True
        )
        flux, variance, truth, _ = with_truth(noisy, cube)
        pull = (flux - truth) / np.sqrt(variance)
        a, b = pull[:, :, 1:], pull[:, :, :-1]
        both = np.isfinite(a) & np.isfinite(b)
        excess[pixfrac] = np.mean((a * b)[both])
    assert excess["1.0"] > 0.2
    assert -0.02 < excess["0.2"] < 0.5 * excess["1.0"]


def test_weights_lower_the_noise(noisy, tmp_path):
    """Long exposures count more: on the mean over the field the variance is lower than without weights."""
    variances = {}
    for weight in ("exptime", "none"):
        cube = combine(noisy.paths, tmp_path / "c.zarr", weight=weight, crsigma=0, overwrite=True)
        variances[weight] = np.nanmean(cube.variance.values[2:-2, 5:-5, 5:-5])
    assert variances["exptime"] < variances["none"]


def test_cosmic_rays_are_removed(tmp_path):
    """Nearly all of the flux that they leave, and nearly no other pixel."""
    field = FIELD | {"wave_range": (6540.0, 6560.0), "scene": Scene(background=Background(100.0))}
    hit = simulate_pixtables(tmp_path / "hit", **field, cosmic_rays=0.01, seed=3)
    options = {"offset_list": hit.offset_list, "resample": "drizzle"}
    left = combine(hit.paths, tmp_path / "left.zarr", crsigma=0, **options).flux.values
    gone = combine(hit.paths, tmp_path / "gone.zarr", crsigma=5.0, **options).flux.values
    spoilt, cleaned = (np.nansum(np.abs(v - 100) > 150) for v in (left, gone))
    assert spoilt > 200
    assert cleaned < 0.05 * spoilt
    # a voxel without flags has not changed
    same = np.isfinite(left) & np.isfinite(gone) & (left == gone)
    assert same.sum() > 0.7 * np.isfinite(left).sum()


@pytest.mark.parametrize("stage", ["rad", "deg"])
def test_one_exposure(tmp_path, stage):
    """Limits of a positioned table come from seven digits in its header: the grid moves, the sky does not."""
    sim = simulate_pixtables(tmp_path / "in", **FIELD, n_exposures=1, scene=SCENE, noise=False, stage=stage)
    cube = make_cube(sim.paths, tmp_path / "c.zarr", crsigma=0)
    flux, _, truth, _ = with_truth(sim, cube)
    seen = np.isfinite(flux)
    assert np.sqrt(np.mean((flux - truth)[seen] ** 2)) < 0.01 * truth.max()
    assert np.sum(flux[seen]) / np.sum(truth[seen]) == pytest.approx(1, abs=7e-3)
