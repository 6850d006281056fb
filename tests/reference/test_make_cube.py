"""Cubes of one exposure are those of ``muse_scipost_make_cube``, bit for bit.

Tables of every coordinate stage, both file forms, with and without a weight column, merged
or of single IFUs.  See `test_combine` for what is compared.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from musedask.sim import simulate_pixtables

from .support import compare_make_cube, edit_table, rotated_cd, write_wcs

pytestmark = pytest.mark.esorex

METHODS = ("nearest", "linear", "quadratic", "renka", "drizzle", "lanczos")
SMALL = {
    "n_exposures": 1, "ifus": (12,), "slices": 12, "slice_width": 12, "wave_range": (6500.0, 6512.0),
    "cosmic_rays": 2e-2, "bad_pixels": 1e-2, "seed": 7,
}  # fmt: skip


def simulate(folder, **changes):
    return simulate_pixtables(folder, **{**SMALL, **changes})


TURNS = (0.0, 90.0, 33.0)
FORMS = [("pix", "image"), ("rad", "table"), ("deg", "image"), ("deg", "table")]
#: every stage and form with every method, every turn, with and without weights
STAGES = [
    (stage, form, (a + b + d) % 2 == 1, turn, METHODS[(2 * (a + b) + d) % 6])
    for a, (stage, form) in enumerate(FORMS)
    for b, turn in enumerate(TURNS)
    for d in (0, 1)
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Simulated tables, each made once."""
    made = {}

    def get(stage, form, weight, turn):
        key = stage, form, weight, turn
        if key not in made:
            folder = tmp_path_factory.mktemp("stages") / "in"
            sim = simulate(folder, stage=stage, form=form, weight=weight, rotations=(turn,))
            if weight:

                def change(columns):
                    columns["weight"] = np.linspace(0.2, 2.0, len(columns["data"])).astype("f4")

                edit_table(sim.paths[0], change, form=form)
            made[key] = sim.paths
        return made[key]

    return get


@pytest.mark.parametrize(("stage", "form", "weight", "turn", "method"), STAGES)
def test_stages(esorex, tmp_path, tables, stage, form, weight, turn, method):
    compare_make_cube(esorex, tmp_path, tables(stage, form, weight, turn), resample=method, crsigma=4.0)


PARAMETERS = [
    {"dx": 0.35, "dy": 0.3, "dlambda": 2.0},
    {"dx": 0.13, "dlambda": 0.7, "pixfrac": "0.9"},
    {"dy": 0.5, "pixfrac": "1.0,0.5"},
    {"pixfrac": "0.3,1.7,1.2", "ld": 2},
    {"pixfrac": "2.5", "ld": 3, "dlambda": 0.5},
    {"resample": "lanczos", "ld": 2},
    {"resample": "renka", "rc": 0.4, "dlambda": 0.9},
    {"resample": "renka", "rc": 3.0, "ld": 2, "dlambda": 1.9},
    {"resample": "linear", "ld": 2},
    {"resample": "quadratic", "ld": 0},
    {"crtype": "iraf", "crsigma": 3.0},
    {"crtype": "mean", "crsigma": 2.0},
    {"crsigma": -1.0},
    {"crsigma": 0.0, "resample": "nearest"},
]


@pytest.mark.parametrize(
    ("stage", "options"), [(("pix", "deg")[i % 2], options) for i, options in enumerate(PARAMETERS)]
)
def test_parameters(esorex, tmp_path, stage, options):
    sim = simulate(tmp_path / "in", stage=stage, rotations=(12.0,))
    compare_make_cube(esorex, tmp_path, sim.paths, **options)


@pytest.mark.parametrize("limits", [
    {"lambdamin": 6503.2, "lambdamax": 6509.9}, {"lambdamin": 6504.0}, {"lambdamax": 6508.3},
    {"lambdamin": 6499.0, "lambdamax": 6513.0}, {"lambdamin": 6510.9},
])  # fmt: skip
@pytest.mark.parametrize("stage", ["pix", "rad", "deg"])
def test_wavelength_cuts(esorex, tmp_path, stage, limits):
    """A cut makes the reference measure the field anew, instead of reading seven digits of a header."""
    sim = simulate(tmp_path / "in", stage=stage)
    compare_make_cube(esorex, tmp_path, sim.paths, **limits)


@pytest.mark.parametrize("stage", ["rad", "deg"])
def test_wavelength_cut_at_a_pixel(esorex, tmp_path, stage):
    """Pixels at the limits themselves are kept."""
    sim = simulate(tmp_path / "in", stage=stage)
    with fits.open(sim.paths[0]) as hdus:
        wave = np.sort(hdus["lambda"].data.ravel())
    low, high = float(wave[100]), float(wave[-100])
    compare_make_cube(esorex, tmp_path, sim.paths, lambdamin=low, lambdamax=high)
    compare_make_cube(esorex, tmp_path, sim.paths, lambdamin=float(wave[0]), lambdamax=float(wave[-1]))


WAVES = {
    "AWAV": ("AWAV", 6499.3, 1.0, 1.3),
    "AWAV-LOG": ("AWAV-LOG", 6498.0, 2.0, 0.9),
    "WAVE": ("WAVE", 6501.1, 1.0, 1.25),
    "WAVE-LOG": ("WAVE-LOG", 6501.0, 1.0, 1.1),
    "half": ("AWAV", 6501.0, 2.5, 1.25),
    "log half": ("AWAV-LOG", 6501.0, 2.5, 0.8),
}


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("stage", ["rad", "deg"])
def test_output_wcs(esorex, tmp_path, stage, wave):
    sim = simulate(tmp_path / "in", stage=stage, rotations=(33.0,))
    path = write_wcs(tmp_path / "wcs.fits", size=(17, 15, 12), cd=rotated_cd(-40.0, 0.22, 0.2), wave=WAVES[wave])
    # the other methods with such grids are in test_combine
    for method in ("drizzle", "renka"):
        compare_make_cube(esorex, tmp_path, sim.paths, output_wcs=path, resample=method)


SIZES = ((1, 1, 1), (3, 4, 2), (2, 9, 30), (40, 1, 3))


@pytest.mark.parametrize(
    ("size", "method"), [(SIZES[(i + j) % 4], method) for i, method in enumerate(METHODS) for j in (0, 2)]
)
def test_pile_up(esorex, tmp_path, size, method):
    """What lies outside a small grid is piled up in its edges; one voxel may hold nearly all pixels."""
    sim = simulate(tmp_path / "in", stage="rad", wave_range=(6500.0, 6506.0))
    path = write_wcs(tmp_path / "wcs.fits", size=size, wave=("AWAV", 6502.0, 1.0, 1.25))
    compare_make_cube(esorex, tmp_path, sim.paths, output_wcs=path, resample=method, crsigma=3.0)


def test_vacuum_table_is_not_converted(esorex, tmp_path):
    sim = simulate(tmp_path / "in")
    edit_table(sim.paths[0], cards={"ESO DRS MUSE PIXTABLE SPECTYPE": "WAVE"})
    path = write_wcs(tmp_path / "wcs.fits", size=(17, 15, 12), wave=WAVES["WAVE"])
    compare_make_cube(esorex, tmp_path, sim.paths, output_wcs=path)
    path = write_wcs(tmp_path / "wcs2.fits", size=(17, 15, 12), wave=WAVES["AWAV"])
    compare_make_cube(esorex, tmp_path, sim.paths, output_wcs=path)


PLACES = {
    "near the pole": {"ra": 33.3, "dec": 88.0},
    "at the south pole": {"ra": 200.0, "dec": -89.7},
    "north": {"ra": 211.7, "dec": 52.3},
    "equator": {"ra": 90.0, "dec": 0.0},
    "at 0 h": {"ra": 0.0001, "dec": 12.0},
    "just below 360": {"ra": 359.9999, "dec": -45.0},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stage", ["rad", "deg"])
def test_places(esorex, tmp_path, stage, place):
    sim = simulate(tmp_path / "in", stage=stage, rotations=(17.0,), **PLACES[place])
    for method in ("drizzle", "nearest"):
        compare_make_cube(esorex, tmp_path, sim.paths, resample=method)


@pytest.mark.parametrize("mode", ["NFM-AO-N", "WFM-AO-N", "WFM-NOAO-E"])
@pytest.mark.parametrize("stage", ["pix", "rad", "deg"])
def test_modes(esorex, tmp_path, stage, mode):
    """Two of these ranges touch the gap of the sodium lasers."""
    sim = simulate(tmp_path / "in", stage=stage, mode=mode, wave_range=(6000.0, 6012.0))
    compare_make_cube(esorex, tmp_path, sim.paths)


@pytest.mark.parametrize("flat_field", [False, True])
@pytest.mark.parametrize("stage", ["pix", "rad", "deg"])
def test_table_of_one_ifu(esorex, tmp_path, stage, flat_field):
    """Its flat-field spectrum is not applied: the reference merges nothing here (it takes the first table only)."""
    sim = simulate(tmp_path / "in", stage=stage, ifus=(12,), per_ifu=True, flat_field=flat_field)
    compare_make_cube(esorex, tmp_path, sim.paths)
