"""Cubes of several exposures are those of ``muse_exp_combine``, bit for bit.

Three dithered exposures with their own rotation, exposure time, pointing error, flux scale,
cosmic rays and bad pixels go through both pipelines.  The same shape, world coordinates (to
2e-14: the reference's went through 15 digits), NaN and float32 bits of DATA and STAT are
expected; there is no other tolerance.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.exposure import group_exposures
from musedask.cube.mosaic import combine
from musedask.io.tables import write_offset_list
from musedask.sim import simulate_pixtables

from .support import compare_combine, difference, edit_table, rotated_cd, write_wcs

pytestmark = pytest.mark.esorex

METHODS = ("nearest", "linear", "quadratic", "renka", "drizzle", "lanczos")
COSMICS = ("iraf", "mean", "median", "off")
WEIGHTS = ("exptime", "fwhm", "header", "none")
GRIDS = ("natural", "AWAV", "AWAV-LOG", "WAVE", "WAVE-LOG", "rotated", "small", "two axes")
#: rotation of the first exposure: slices along x, along y, and in between
TURNS = (0.0, 90.0, 33.0)
#: limits that flag some, but not all of the cosmic rays
SIGMA = {"iraf": 3.0, "mean": 2.5, "median": 10.0, "off": 0.0}
SMALL = {
    "ifus": (12,), "slices": 12, "slice_width": 12, "wave_range": (6500.0, 6512.0),
    "exptimes": (900, 600, 1200), "flux_scales": (1.0, 1.1, 0.95),
    "offsets": ((0.0, 0.0), (0.3, 0.2), (-0.1, 0.5)), "pointing_errors": ((0.0, 0.0), (0.4, -0.5), (-0.3, 0.3)),
    "cosmic_rays": 2e-2, "bad_pixels": 1e-2,
}  # fmt: skip


def simulate(folder, first, **changes):
    """Three exposures with seeing and weights of their own in the headers."""
    sim = simulate_pixtables(folder, **{**SMALL, "rotations": (first, first + 90, 10.0), "seed": 3, **changes})
    for i, path in enumerate(sim.paths):
        seeing = (0.9, 0.7, 1.3)[i % 3]
        cards = {"ESO OCS SGS AG FWHMX AVG": seeing, "ESO OCS SGS AG FWHMY AVG": seeing + 0.1}
        edit_table(path, cards=cards | {"ESO DRS MUSE WEIGHT": (1.0, 0.6, 1.7)[i % 3]})
    return sim


@pytest.fixture(scope="module")
def sims(tmp_path_factory):
    """The three data sets."""
    return {turn: simulate(tmp_path_factory.mktemp("sim") / "in", turn) for turn in TURNS}


def grid_file(folder, kind):
    """OUTPUT_WCS of a kind, None for the natural grid."""
    wave = {
        "AWAV": ("AWAV", 6499.3, 1.0, 1.3),
        "AWAV-LOG": ("AWAV-LOG", 6498.0, 2.0, 0.9),
        "WAVE": ("WAVE", 6501.1, 1.0, 1.25),
        "WAVE-LOG": ("WAVE-LOG", 6501.0, 1.0, 1.1),
        "rotated": ("AWAV", 6500.0, 1.5, 1.25),
        # eight Angstrom and most of the field are piled up in the edges
        "small": ("AWAV", 6503.0, 1.0, 1.25),
    }
    if kind == "natural":
        return None
    size = (7, 6, 4) if kind == "small" else (21, 22, 13)
    return write_wcs(
        folder / "wcs.fits",
        axes=2 if kind == "two axes" else 3,
        size=size,
        crval=(150.10001, -27.79998),
        cd=rotated_cd(25.0, 0.21, 0.19) if kind == "rotated" else (-0.19 / 3600, 0.0, 0.0, 0.21 / 3600),
        wave=wave.get(kind),
    )


def pairs(case):
    """All pairs of two factors' levels that a case covers."""
    return set(itertools.combinations(enumerate(case), 2))


def covering():
    """A short list of cases in which every two levels of any two factors meet (greedy, always the same)."""
    cases = list(itertools.product(METHODS, COSMICS, WEIGHTS, GRIDS, TURNS))
    # a fixed shuffle: neighbours in the product differ in one factor only
    cases = [cases[i] for i in np.random.default_rng(1).permutation(len(cases))]
    missing = set().union(*(pairs(c) for c in cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda c: len(pairs(c) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return sorted(chosen)


def check(esorex, tmp_path, sims, method, cosmic, weight, grid, turn):
    sim = sims[turn]
    crtype = {} if cosmic == "off" else {"crtype": cosmic}
    compare_combine(
        esorex, tmp_path, sim.paths, offset_list=sim.offset_list, output_wcs=grid_file(tmp_path, grid),
        resample=method, crsigma=SIGMA[cosmic], weight=weight, **crtype,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "cosmic", "weight", "grid", "turn"), covering())
def test_pairwise(esorex, tmp_path, sims, method, cosmic, weight, grid, turn):
    check(esorex, tmp_path, sims, method, cosmic, weight, grid, turn)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("grid", GRIDS)
def test_full_product(esorex, tmp_path, sims, grid):
    for case in itertools.product(METHODS, COSMICS, WEIGHTS, (grid,), TURNS):
        check(esorex, tmp_path, sims, *case)
        esorex.forget()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("turn", TURNS)
def test_whole_field(esorex, tmp_path, turn):
    """All 24 IFUs of three exposures, two million pixels: roundings that go wrong once in a million show here."""
    sim = simulate_pixtables(
        tmp_path / "in", wave_range=(6500.0, 6512.0), rotations=(turn, turn + 90, 10.0), exptimes=(900, 600, 1200),
        flux_scales=(1.0, 1.1, 0.95), pointing_errors=((0.0, 0.0), (0.4, -0.5), (-0.3, 0.3)), cosmic_rays=5e-3,
        bad_pixels=5e-3, seed=4,
    )  # fmt: skip
    for method in METHODS:
        for cosmic in (COSMICS if method == "drizzle" else ("median",)):
            crtype = {} if cosmic == "off" else {"crtype": cosmic}
            compare_combine(
                esorex, tmp_path, sim.paths, offset_list=sim.offset_list, resample=method, crsigma=SIGMA[cosmic],
                **crtype,
            )  # fmt: skip
            esorex.forget()


PARAMETERS = (
    {"dx": 0.35, "dy": 0.3, "dlambda": 2.0},
    {"dx": 0.15, "dy": 0.11, "dlambda": 0.7, "pixfrac": "0.9"},
    {"pixfrac": "1.0,0.5"},
    {"pixfrac": "0.3,1.7,1.2", "ld": 2},
    {"pixfrac": "2.5", "ld": 3, "dlambda": 0.5},
    {"resample": "lanczos", "ld": 2},
    {"resample": "lanczos", "ld": 3, "dlambda": 1.7},
    {"resample": "renka", "rc": 0.4},
    {"resample": "renka", "rc": 3.0, "ld": 2},
    {"resample": "linear", "ld": 2},
    {"resample": "quadratic", "ld": 0},
    {"resample": "drizzle", "ld": -1},
    {"resample": "nearest", "crsigma": -3.0},
    {"crsigma": 1.0},
    {"crsigma": 0.1},
    {"crtype": "iraf", "crsigma": 0.5},
    {"lambdamin": 6503.2, "lambdamax": 6509.9},
    {"lambdamin": 6505.0},
    {"lambdamax": 6504.0, "resample": "renka"},
)


@pytest.mark.parametrize(("options", "turn"), [(options, TURNS[i % 2]) for i, options in enumerate(PARAMETERS)])
def test_parameters(esorex, tmp_path, sims, options, turn):
    compare_combine(esorex, tmp_path, sims[turn].paths, offset_list=sims[turn].offset_list, **options)


def test_order_on_the_command_line_is_nothing(esorex, tmp_path, sims):
    sim = sims[0.0]
    compare_combine(esorex, tmp_path, sim.paths[::-1], offset_list=sim.offset_list, order=sim.paths[::-1])
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, order=sim.paths[1:] + sim.paths[:1])


def test_no_offset_list(esorex, tmp_path, sims):
    compare_combine(esorex, tmp_path, sims[90.0].paths)


@pytest.mark.parametrize("kept", [(0,), (1,), (2, 0)])
def test_offset_list_of_some_exposures(esorex, tmp_path, sims, kept):
    sim = sims[0.0]
    with fits.open(sim.offset_list) as hdus:
        rows = [
            {
                "date_obs": hdus[1].data["DATE_OBS"][i],
                "mjd_obs": hdus[1].data["MJD_OBS"][i],
                "ra_offset": hdus[1].data["RA_OFFSET"][i] if i != 2 else np.nan,
                "dec_offset": hdus[1].data["DEC_OFFSET"][i],
                "flux_scale": (np.nan, 0.0, 1.3)[i],
            }
            for i in kept
        ]
    write_offset_list(tmp_path / "list.fits", rows)
    compare_combine(esorex, tmp_path, sim.paths, offset_list=tmp_path / "list.fits")


@pytest.mark.parametrize("weight", ["none", "exptime"])
@pytest.mark.parametrize("method", ["drizzle", "linear", "nearest"])
def test_weight_column(esorex, tmp_path, weight, method):
    """An existing column is kept by ``none`` and replaced otherwise."""
    sim = simulate(tmp_path / "in", 0.0, weight=True, form="table")

    def change(columns):
        columns["weight"] = (columns["weight"] * np.linspace(0.2, 2.0, len(columns["weight"]))).astype("f4")

    for path in sim.paths:
        edit_table(path, change, form="table")
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, weight=weight, resample=method)


def test_weight_column_in_some_tables(esorex, tmp_path):
    """It is replaced.  (With ``weight=none`` the reference loses the exposures that differ from the first.)"""
    sim = simulate(tmp_path / "in", 0.0)

    def change(columns):
        columns["weight"] = np.linspace(0.2, 2.0, len(columns["data"])).astype("f4")

    edit_table(sim.paths[0], change)
    edit_table(sim.paths[2], change)
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list)


PLACES = {
    "near the pole": {"ra": 33.3, "dec": 88.0},
    "at the south pole": {"ra": 200.0, "dec": -89.7},
    "north": {"ra": 211.7, "dec": 52.3},
    "equator": {"ra": 90.0, "dec": 0.0},
    "crossing 0 h": {"ra": 0.0003, "dec": 12.0, "offsets": ((0.3, 0.0), (0.1, 0.2), (0.6, 0.1))},
    # an exposure on the other side of 0 h is placed 360 degrees away, where it adds nothing but is counted
    "both sides of 0 h": {"ra": 0.0, "dec": 12.0, "offsets": ((-0.4, 0.0), (0.5, 0.2), (-0.2, 0.1))},
    "just below 360": {"ra": 359.9998, "dec": -45.0, "offsets": ((-0.3, 0.0), (-0.1, 0.2), (-0.6, 0.1))},
}


@pytest.mark.parametrize(
    ("place", "method"),
    [(place, ("drizzle", "nearest", "quadratic")[(i + j) % 3]) for i, place in enumerate(PLACES) for j in (0, 1)],
)
def test_places(esorex, tmp_path, place, method):
    sim = simulate(tmp_path / "in", 0.0, **PLACES[place])
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, resample=method)


@pytest.mark.parametrize("method", METHODS)
def test_narrow_field(esorex, tmp_path, method):
    sim = simulate(
        tmp_path / "in", 40.0, mode="NFM-AO-N",
        offsets=((0.0, 0.0), (0.03, 0.02), (-0.01, 0.05)), pointing_errors=((0.0, 0.0), (0.04, -0.05), (-0.03, 0.03)),
    )  # fmt: skip
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, resample=method)


@pytest.mark.parametrize("cosmic", COSMICS[:3])
@pytest.mark.parametrize("turn", TURNS)
def test_bad_pixels_among_cosmic_rays(esorex, tmp_path, cosmic, turn):
    """Two fifths of the pixels are bad or flagged as cosmic rays before: samples get very small."""
    sim = simulate(tmp_path / "in", turn, cosmic_rays=0.05)
    rng = np.random.default_rng(5)

    def change(columns):
        n = len(columns["dq"])
        columns["dq"] = rng.choice([0, 0, 0, 32, 33, 256, -2147483648], n).astype("i4")
        # values of bad rows that must not matter, also to the median
        wild = rng.choice([np.nan, np.inf, -np.inf, 1e38], n).astype("f4")
        bad = (columns["dq"] != 0) & (columns["dq"] != 32)
        columns["data"] = np.where(bad, wild, columns["data"])

    for path in sim.paths:
        edit_table(path, change)
    for sigma in (0.5, 3.0):
        compare_combine(
            esorex, tmp_path, sim.paths, offset_list=sim.offset_list, crtype=cosmic, crsigma=sigma,
        )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_extreme_values(esorex, tmp_path, sims, method):
    """Denormals, huge, equal and negative values, zero variances."""
    sim = simulate(tmp_path / "in", 0.0)
    rng = np.random.default_rng(6)

    def change(columns):
        n = len(columns["dq"])
        columns["data"] = (rng.choice([1e-42, 1.0, 1.0, -1.0, 7.5, -1e30, 1e30, 0.0, -0.0], n)).astype("f4")
        columns["stat"] = (rng.choice([0.0, 1e-40, 1.0, 1e30], n)).astype("f4")

    for path in sim.paths:
        edit_table(path, change)
    for cosmic in COSMICS[:3]:
        compare_combine(
            esorex, tmp_path, sim.paths, offset_list=sim.offset_list, crtype=cosmic, crsigma=2.0, resample=method
        )


@pytest.mark.parametrize("missing", ["first", "other"])
def test_exposure_time_is_missing(esorex, tmp_path, missing):
    """Of another exposure than the first: its weight is 0."""
    sim = simulate(tmp_path / "in", 0.0)
    if missing == "other":
        edit_table(sim.paths[1], cards={"EXPTIME": None})
        compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list)
    else:
        from musedask.cube.mosaic import combine
        from musedask.errors import InputError

        edit_table(sim.paths[0], cards={"EXPTIME": None})
        with pytest.raises(InputError, match="EXPTIME"):
            combine(sim.paths, tmp_path / "ours.zarr")


@pytest.mark.parametrize("estimator", ["IA", "DIMM", "none"])
def test_seeing_estimators(esorex, tmp_path, estimator):
    sim = simulate(tmp_path / "in", 0.0)
    for i, path in enumerate(sim.paths):
        cards = {"ESO TEL IA FWHM": 0.8 + 0.1 * i, "ESO TEL AMBI FWHM START": 1.0 + 0.2 * i}
        if i == 1:
            cards["ESO OCS SGS AG FWHMX AVG"] = None
            if estimator != "IA":
                cards["ESO TEL IA FWHM"] = None
            if estimator == "none":
                cards["ESO TEL AMBI FWHM END"] = None
        edit_table(path, cards=cards)
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, weight="fwhm")


@pytest.mark.parametrize("factor", [None, -1.0, 0.0])
def test_weight_in_header_is_missing(esorex, tmp_path, factor):
    sim = simulate(tmp_path / "in", 0.0)
    edit_table(sim.paths[2], cards={"ESO DRS MUSE WEIGHT": factor})
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, weight="header")


def put_flat_field(path, wave, values):
    """Replace the flat-field spectrum of a table."""
    with warnings.catch_warnings(), fits.open(path) as hdus:
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        table = fits.BinTableHDU.from_columns(
            [fits.Column("lambda", "1D", unit="Angstrom", array=wave), fits.Column("data", "1D", array=values)],
            name="PIXTABLE_FLAT_FIELD",
        )
        copies = [hdu.copy() for hdu in hdus if hdu.name != table.name]
        fits.HDUList([*copies, table]).writeto(path, overwrite=True)


def uneven_flat_field(rng, low, high):
    """A spectrum with structure on all scales, a step, and outliers for the clipping."""
    wave = np.arange(low, high, 1.25)
    t = (wave - 7000) / 2500
    values = (1 + 0.2 * t - 0.15 * t**2) * (1 + 0.05 * np.sin(wave / 40) + 0.02 * np.sin(wave / 7))
    values += 0.1 * (wave > 6507) + 0.01 * rng.standard_normal(len(wave))
    values[rng.integers(0, len(wave), 10)] *= 1.5
    return wave, values


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Tables of single IFUs: without and with flat-field spectra, the latter smooth or noisy."""
    sims = {}
    for kind in ("none", "smooth", "noisy"):
        folder = tmp_path_factory.mktemp("ifus") / "in"
        sims[kind] = simulate(folder, 0.0, ifus=(12, 13, 14), per_ifu=True, flat_field=kind != "none", n_exposures=2)
    rng = np.random.default_rng(8)
    for number, path in enumerate(sims["noisy"].paths):
        put_flat_field(path, *uneven_flat_field(rng, 4650 + 0.1 * number, 9350))
    return sims


@pytest.mark.parametrize("kind", ["none", "smooth", "noisy"])
@pytest.mark.parametrize("method", ["drizzle", "linear", "nearest"])
def test_tables_of_single_ifus(esorex, tmp_path, single, kind, method):
    """Fluxes of the IFUs are brought to one level, and the averaged flat-field spectrum is multiplied."""
    sim = single[kind]
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, resample=method)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whole_field_of_single_ifus(esorex, tmp_path):
    """The reference sorts rows when it applies a spectrum: sums of several rows may round otherwise.

    Its spectrum differs from ours by 1e-12, so one value in some 10000 is rounded to the other float32.
    """
    sim = simulate(
        tmp_path / "in", 0.0, ifus=range(1, 25), slices=48, slice_width=75, wave_range=(6500.0, 6508.0), per_ifu=True,
        flat_field=True, n_exposures=2,
    )  # fmt: skip
    rng = np.random.default_rng(8)
    for path in sim.paths:
        put_flat_field(path, *uneven_flat_field(rng, 4650, 9350))
    for method in ("drizzle", "linear", "nearest"):
        compare_combine(
            esorex, tmp_path, sim.paths, offset_list=sim.offset_list, resample=method, rounding=2.5e-7
        )
        esorex.forget()


@pytest.mark.parametrize("kind", ["none", "smooth"])
def test_wavelength_cut_of_single_ifus(esorex, tmp_path, single, kind):
    sim = single[kind]
    # the cut spectrum has seven points, which two polynomial fits do not find the same to all digits
    limit = 0.0 if kind == "none" else 2e-7
    compare_combine(
        esorex, tmp_path, sim.paths, offset_list=sim.offset_list, lambdamin=6504.0, lambdamax=6509.0, rounding=limit
    )


@pytest.mark.parametrize("mode", ["WFM-NOAO-N", "WFM-NOAO-E", "WFM-AO-E", "WFM-AO-N", "NFM-AO-N"])
@pytest.mark.parametrize("cut", [None, pytest.param((5500.0, 6222.2), marks=pytest.mark.slow)])
def test_smoothing_of_flat_fields(esorex, tmp_path, mode, cut):
    """The averaged spectrum itself: 1e-10 is far below float32; both sides sum thousands of terms.

    Each mode has parts of its own that are not smoothed.
    """
    sim = simulate_pixtables(
        tmp_path / "in", n_exposures=2, ifus=(12, 13), slices=1, slice_width=4, wave_range=(5700.0, 5710.0),
        per_ifu=True, flat_field=True, mode="WFM-NOAO-N",
    )  # fmt: skip
    rng = np.random.default_rng(9)
    for path in sim.paths:
        edit_table(path, cards={"ESO INS MODE": mode})
        put_flat_field(path, *uneven_flat_field(rng, *rng.choice([4550.0, 4580.4], 1), 9400))
    limits = {} if cut is None else {"lambdamin": cut[0], "lambdamax": cut[1]}
    if cut:
        # only a table that reaches beyond the range is cut
        for path in sim.paths:
            edit_table(path, cards={"ESO DRS MUSE PIXTABLE LIMITS LAMBDA LOW": 5400.0})
    inputs = [(path, "PIXTABLE_REDUCED") for path in sim.paths]
    folder = esorex("muse_exp_combine", inputs, filter="none", save="cube,combined", **limits)
    with fits.open(folder / "PIXTABLE_COMBINED.fits") as hdus:
        table = hdus["PIXTABLE_FLAT_FIELD"].data
        wave, values = (np.array(table[name], float) for name in ("lambda", "data"))
    grid, ours = group_exposures(sim.paths, wave_range=cut or (4000.0, 10000.0))[0].flat
    np.testing.assert_array_equal(grid[ours != 0], wave)
    np.testing.assert_allclose(ours[ours != 0], values, rtol=1e-10)


@pytest.mark.parametrize("covered", [(6400.0, 6507.0), (6507.0, 6600.0)])
def test_flat_field_that_does_not_cover_the_data(esorex, tmp_path, single, covered):
    """There the data become 0; the reference takes what happens to be in memory, so only the rest is compared."""
    sim = simulate(tmp_path / "in", 0.0, ifus=(12, 13), per_ifu=True, flat_field=True, n_exposures=2)
    for number, path in enumerate(sim.paths):
        wave = np.arange(covered[0] + 0.1 * number, covered[1], 1.25)
        put_flat_field(path, wave, 1 + 0.001 * (wave - 6500))
    inputs = [*((p, "PIXTABLE_REDUCED") for p in sim.paths), (sim.offset_list, "OFFSET_LIST")]
    data, stat, _ = esorex.cube("muse_exp_combine", inputs, filter="none", weight="none")
    cube = combine(sim.paths, tmp_path / "ours.zarr", offset_list=sim.offset_list, filter="none", weight="none")
    assert cube.flux.shape == data.shape
    # a voxel depends on the planes beside it and those beside them: drops, and neighbours of cosmic rays
    wave = cube.wavelength.values
    inside = (wave > covered[0] + 4) & (wave < covered[1] - 4)
    assert 2 <= inside.sum() < len(wave)
    assert not difference("DATA", cube.flux.values[inside], data[inside])
    assert not difference("STAT", cube.variance.values[inside], stat[inside])
    outside = (wave < covered[0] - 4) | (wave > covered[1] + 4)
    values = cube.flux.values[outside]
    assert np.isfinite(values).any() and not values[np.isfinite(values)].any()


def test_lamp_fluxes_without_sky_fluxes(esorex, tmp_path):
    sim = simulate(tmp_path / "in", 0.0, ifus=(12, 13, 14), per_ifu=True, n_exposures=2)
    edit_table(sim.paths[1], cards={"ESO DRS MUSE FLAT FLUX SKY": None})
    edit_table(sim.paths[2], cards={"ESO DRS MUSE FLAT FLUX SKY": -1.0, "ESO DRS MUSE FLAT FLUX LAMP": None})
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list)


def test_ifus_differ_between_exposures(esorex, tmp_path):
    sim = simulate(tmp_path / "in", 0.0, ifus=(3, 12, 13, 24), per_ifu=True, n_exposures=2)
    paths = [*sim.paths[1:4], sim.paths[4], sim.paths[6]]
    compare_combine(esorex, tmp_path, paths, offset_list=sim.offset_list, order=paths[::-1])


def test_tables_taken_as_merged(esorex, tmp_path):
    """Without fluxes of flat fields the first table of an exposure is all that counts."""
    sim = simulate(tmp_path / "in", 0.0, ifus=(12, 13), per_ifu=True, n_exposures=2)
    edit_table(sim.paths[0], cards={"ESO DRS MUSE FLAT FLUX SKY": None, "ESO DRS MUSE FLAT FLUX LAMP": None})
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list)


@pytest.mark.parametrize("drot", [("SKY", -90.0), ("STAT", 178.0), ("SKY", 355.5), ("SKY", 4.999), ("SKY", 5.0),
                                  ("SKY", 274.0), ("OTHER", 85.1), (None, None)])  # fmt: skip
def test_direction_of_slices(esorex, tmp_path, drot):
    sim = simulate(tmp_path / "in", 0.0)
    edit_table(sim.paths[0], cards={"ESO INS DROT MODE": drot[0], "ESO INS DROT POSANG": drot[1]})
    compare_combine(esorex, tmp_path, sim.paths, offset_list=sim.offset_list, crsigma=3.0)
