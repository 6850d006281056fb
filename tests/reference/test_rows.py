"""Pixel tables and stacked images are those of the reference: every column, every card, every pixel.

Tables are compared by the bits of each column, in order; their primary headers card by card.
``DATAMD5`` is compared too: the reference takes it from the bytes of the data units.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.mosaic import combine, make_cube, make_store
from musedask.io.pixtable import scan_pixtable
from musedask.sim import simulate_pixtables

from .support import Esorex, assert_same, edit_table, require_esorex, write_wcs

pytestmark = pytest.mark.esorex

FIELD = {
    "ifus": (12, 13), "slices": 8, "slice_width": 16, "wave_range": (6500.0, 6515.0), "seed": 3,
    "rotations": (0.0, 90.0), "exptimes": (900, 600, 1200), "cosmic_rays": 4e-3, "bad_pixels": 4e-3,
    "offsets": ((0.0, 0.0), (0.3, 0.2), (-0.1, 0.5)),
}  # fmt: skip
OFFSETS = {"flux_scales": (1.0, 1.1, 0.95), "pointing_errors": ((0.0, 0.0), (1.0, -0.5), (-0.7, 0.3))}
#: what may differ between our headers and the reference's, and why
REASONS = {
    r"DATE": "time of the run",
    r"CHECKSUM|DATASUM": "follow from the cards above; of a primary HDU the sum of no data is written otherwise",
    r"COMMENT": "boilerplate of CFITSIO about the FITS format",
    r"ESO PRO REC\d+ (DRS|PIPE) ID": "says that musedask made the file",
}
#: tables of a single exposure are products of another recipe in the reference
POSITIONED_REASONS = {
    **REASONS,
    r"ESO PRO REC\d+ (ID|RAW\d+ CATG|PARAM\d+ (NAME|VALUE))": "the reference writes them in muse_scipost",
    r"SPECSYS": "muse_scipost adds it with its velocity correction",
}
#: the sort by slice that comes with the flat-field spectra of single IFUs is left out
UNSORTED_REASONS = {**REASONS, r"DATAMD5": "rows are in the order of the files"}


def places(case, cases):
    """Where rows are sorted, in memory or on disk: both for the first case, and in turn for the others."""
    number = list(cases).index(case)
    return (True, False) if number == 0 else (number % 2 == 0,)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runner of recipes that computes ``DATAMD5``."""
    require_esorex()
    return Esorex(tmp_path_factory.mktemp("esorex"), datamd5=True)


@pytest.fixture(scope="module")
def sims(tmp_path_factory):
    """Simulated sets by kind, each made once."""
    made = {}

    def get(kind):
        if kind not in made:
            changes = {
                "plain": OFFSETS,
                "per_ifu": {**OFFSETS, "per_ifu": True},
                "flat": {"per_ifu": True, "flat_field": True},
                "weight": {"weight": True, "form": "table"},
                "nfm": {"mode": "NFM-AO-N"},
                "turned": {"rotations": (33.0,)},
                "pix": {"stage": "pix"},
                "deg": {"stage": "deg"},
            }[kind]
            made[kind] = simulate_pixtables(tmp_path_factory.mktemp(kind) / "in", n_exposures=3, **{**FIELD, **changes})
        return made[kind]

    return get


def columns(path):
    """Columns as integers, and units."""
    table = scan_pixtable(path)
    return (
        {name: table.read(name).view(np.int32) for name in table.columns},
        {name: column.unit for name, column in table.columns.items()},
    )


def assert_same_table(ours, reference, *, order=None):
    """Names, order, units and bits of all columns are equal; `order` sorts our rows first."""
    (mine, units), (theirs, their_units) = columns(ours), columns(reference)
    assert list(units.items()) == list(their_units.items())
    if order is not None:
        which = order(mine)
        mine = {name: values[which] for name, values in mine.items()}
    for name, values in theirs.items():
        assert mine[name].shape == values.shape, name
        assert np.array_equal(mine[name], values), f"{name}: {(mine[name] != values).sum()} of {values.size} differ"
    return mine


def assert_same_header(ours, reference, reasons=REASONS, hdu=0):
    """All cards have the same values; comments the same beginning, but for descriptions of parameters."""
    passed = re.compile("|".join(f"({pattern})$" for pattern in reasons))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        mine, theirs = (fits.getheader(path, hdu) for path in (ours, reference))
        found = []
        for key in dict.fromkeys([*mine, *theirs]):
            if passed.match(key):
                continue
            if key not in mine or key not in theirs:
                found.append(f"{key} only in {'ours' if key in mine else 'the reference'}")
                continue
            if mine[key] != theirs[key]:
                found.append(f"{key}: {mine[key]!r}, reference {theirs[key]!r}")
            a, b = (h.comments[key][:12] for h in (mine, theirs))
            described = re.match(r"ESO PRO REC\d+ PARAM\d+ NAME|ESO PRO REC\d+ .* DATAMD5", key)
            if not described and not (a.startswith(b) or b.startswith(a)):
                found.append(f"{key}: comment {a!r}, reference {b!r}")
    assert not found, "\n".join(found)


CASES = {
    "plain": ("plain", {}),
    "reversed": ("plain", {}),
    "single IFUs": ("per_ifu", {}),
    "no cube": ("plain", {"save": "combined"}),
    "no cosmic rays": ("plain", {"crsigma": -1.0}),
    "nearest": ("plain", {"resample": "nearest", "crtype": "iraf", "crsigma": 3.0}),
    "wavelengths": ("plain", {"lambdamin": 6503.3, "lambdamax": 6511.1}),
    "vacuum": ("plain", {"wcs": "WAVE"}),
    "own weights": ("weight", {"weight": "none"}),
    "new weights": ("weight", {"weight": "exptime"}),
    "no weights": ("plain", {"weight": "none"}),
    "seeing": ("plain", {"weight": "fwhm"}),
    "narrow field": ("nfm", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_combined(run, sims, tmp_path, case):
    kind, options = CASES[case]
    sim = sims(kind)
    options = {"save": "cube,combined", **options}
    paths = list(sim.paths)[:: -1 if case == "reversed" else 1]
    wcs = None
    if kind := options.pop("wcs", None):
        wcs = write_wcs(tmp_path / "wcs.fits", wave=(kind, 6500.0, 1.0, 1.25))
    inputs = [(p, "PIXTABLE_REDUCED") for p in paths] + [(sim.offset_list, "OFFSET_LIST")]
    inputs += [(wcs, "OUTPUT_WCS")] if wcs else []
    reference = run("muse_exp_combine", inputs, **options) / "PIXTABLE_COMBINED.fits"
    for in_memory in places(case, CASES):
        folder = tmp_path / str(in_memory)
        folder.mkdir()
        cube = combine(
            paths, folder / "c.zarr", offset_list=sim.offset_list, output_wcs=wcs, in_memory=in_memory, **options
        )
        assert (cube is None) == (case == "no cube")
        assert (folder / "c.zarr").exists() == (case != "no cube")
        found = assert_same_table(folder / "PIXTABLE_COMBINED.fits", reference)
        assert_same_header(folder / "PIXTABLE_COMBINED.fits", reference)
    flagged = found["dq"] & 32 > 0
    expected = case not in ("no cube", "no cosmic rays")
    assert flagged.any() == expected
    # bad rows are flagged as well
    assert (found["dq"][flagged] != 32).any() == expected


def test_combined_after_flat_field(run, sims, tmp_path):
    """With flat-field spectra the reference sorts rows by slice and wavelength; all else is equal."""
    sim = sims("flat")
    inputs = [(p, "PIXTABLE_REDUCED") for p in sim.paths]
    reference = run("muse_exp_combine", inputs, save="cube,combined") / "PIXTABLE_COMBINED.fits"
    combine(sim.paths, tmp_path / "c.zarr", save="cube,combined")
    starts = [fits.getval(reference, f"ESO DRS MUSE PIXTABLE EXP{i} FIRST") for i in (1, 2, 3)]

    def order(c):
        number = np.searchsorted(starts, np.arange(len(c["origin"])), side="right")
        return np.lexsort((c["lambda"].view(np.float32), c["origin"] & 0x7FF, number))

    assert_same_table(tmp_path / "PIXTABLE_COMBINED.fits", reference, order=order)
    assert_same_header(tmp_path / "PIXTABLE_COMBINED.fits", reference, UNSORTED_REASONS)


def test_combined_from_store(run, sims, tmp_path):
    """A pixel store gives the same table as the files it is made of."""
    sim = sims("per_ifu")
    inputs = [(p, "PIXTABLE_REDUCED") for p in sim.paths] + [(sim.offset_list, "OFFSET_LIST")]
    options = {"save": "cube,combined", "lambdamin": 6503.3, "lambdamax": 6511.1}
    reference = run("muse_exp_combine", inputs, **options) / "PIXTABLE_COMBINED.fits"
    store = make_store(sim.paths, tmp_path / "store.zarr", lambdamin=6502.0)
    combine(store, tmp_path / "c.zarr", offset_list=sim.offset_list, **options)
    assert_same_table(tmp_path / "PIXTABLE_COMBINED.fits", reference)
    assert_same_header(tmp_path / "PIXTABLE_COMBINED.fits", reference)


@pytest.mark.parametrize(("kind", "in_memory"), [("plain", True), ("weight", False)])
def test_positioned(run, sims, tmp_path, kind, in_memory):
    sim = sims(kind)
    inputs = [(p, "PIXTABLE_OBJECT") for p in sim.paths] + [(sim.offset_list, "OFFSET_LIST")]
    off = {"skymethod": "none", "astrometry": "false", "rvcorr": "none"}
    folder = run("muse_scipost", inputs, save="positioned", **off)
    combine(
        sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="combined,positioned", in_memory=in_memory
    )
    for number in (1, 2, 3):
        name = f"PIXTABLE_POSITIONED_{number:04d}.fits"
        assert_same_table(tmp_path / name, folder / name)
        assert_same_header(tmp_path / name, folder / name, POSITIONED_REASONS)


def test_round_trip(run, sims, tmp_path):
    """The cube of our combined table is that of the reference's; the reference reads ours as well."""
    sim = sims("plain")
    inputs = [(p, "PIXTABLE_REDUCED") for p in sim.paths] + [(sim.offset_list, "OFFSET_LIST")]
    theirs = run("muse_exp_combine", inputs, save="cube,combined") / "PIXTABLE_COMBINED.fits"
    combine(sim.paths, tmp_path / "c.zarr", offset_list=sim.offset_list, save="cube,combined")
    ours = tmp_path / "PIXTABLE_COMBINED.fits"
    reference = run.cube("muse_scipost_make_cube", [(theirs, "PIXTABLE_OBJECT")], filter="none")
    cube = make_cube(ours, tmp_path / "again.zarr", filter="none")
    assert_same(cube, reference)
    assert_same(cube, run.cube("muse_scipost_make_cube", [(ours, "PIXTABLE_OBJECT")], filter="none"))


STACKED = {
    "plain": ("plain", {}),
    "no cosmic rays": ("plain", {"crsigma": -1.0}),
    "all flagged": ("plain", {"crtype": "mean", "crsigma": 1.0}),
    "step": ("plain", {"dlambda": 2.0}),
    "width": ("plain", {"dx": 0.3}),
    "wavelengths": ("plain", {"lambdamin": 6503.3, "lambdamax": 6511.1}),
    "vacuum": ("plain", {"wcs": "WAVE-LOG"}),
    "single IFU": ("per_ifu", {}),
    "turned": ("turned", {}),
    "narrow field": ("nfm", {}),
    "pixels": ("pix", {}),
    "positioned": ("deg", {}),
    "combined": ("plain", {}),
}


@pytest.mark.parametrize("case", STACKED)
def test_stacked(run, sims, tmp_path, case):
    kind, options = STACKED[case]
    options = {"filter": "none", **options}
    wcs = None
    if axis := options.pop("wcs", None):
        wcs = write_wcs(tmp_path / "wcs.fits", wave=(axis, 6500.0, 1.0, 1.25))
    paths = list(sims(kind).paths)
    if case == "combined":
        combine(paths, tmp_path / "c.zarr", save="combined")
        paths = [tmp_path / "PIXTABLE_COMBINED.fits"]
    else:
        # the reference does not merge IFUs here but takes the first file
        paths = paths[:1]
    inputs = [(p, "PIXTABLE_OBJECT") for p in paths] + ([(wcs, "OUTPUT_WCS")] if wcs else [])
    reference = run("muse_scipost_make_cube", inputs, stacked="true", **options) / "OBJECT_RESAMPLED.fits"
    for in_memory in places(case, STACKED):
        folder = tmp_path / str(in_memory)
        folder.mkdir()
        make_cube(paths, folder / "c.zarr", output_wcs=wcs, stacked=True, in_memory=in_memory, **options)
        ours = folder / "OBJECT_RESAMPLED.fits"
        with fits.open(ours) as mine, fits.open(reference) as theirs:
            assert mine["DATA"].data.tobytes() == theirs["DATA"].data.tobytes()
            assert (mine["DATA"].data != 0).mean() > 0.3
        single = {**REASONS, r"EXTNAME": "the name of an IFU that the reference takes as it is, and we as an exposure"}
        assert_same_header(ours, reference, single if case == "single IFU" else REASONS)
        assert_same_header(ours, reference, hdu=1)


def test_stacked_with_broken_rows(run, sims, tmp_path):
    """Rows that do not count because they are bad still decide where slices begin and end."""
    sim = sims("plain")
    path = tmp_path / "in.fits"

    def change(c):
        rng = np.random.default_rng(1)
        c["dq"][rng.random(len(c["dq"])) < 0.7] = 512
        c["dq"][c["origin"] & 63 == 5] = 512
        c["data"][c["dq"] == 512] = np.nan

    edit_table(sim.paths[0], change, output=path)
    inputs = [(path, "PIXTABLE_OBJECT")]
    reference = run("muse_scipost_make_cube", inputs, stacked="true", filter="none") / "OBJECT_RESAMPLED.fits"
    make_cube(path, tmp_path / "c.zarr", stacked=True, filter="none")
    mine, theirs = (fits.getdata(p, 1) for p in (tmp_path / "OBJECT_RESAMPLED.fits", reference))
    assert (theirs == 0).mean() > 0.05
    assert mine.tobytes() == theirs.tobytes()
