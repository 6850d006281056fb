"""Files to exposures: grouping, merging of IFUs, offsets, flux scales, weights; and what is refused or warned of."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from astropy.io import fits

from musedask.cube.exposure import average_flat, group_exposures, place, smooth_piecewise, weights
from musedask.errors import InputError
from musedask.io.headers import set_card
from musedask.io.pixtable import scan_pixtable, write_pixtable
from musedask.io.tables import Offset, OffsetList, read_offset_list
from musedask.sim import simulate_pixtables

TINY = {"ifus": (12,), "slices": 12, "slice_width": 6, "wave_range": (6500.0, 6503.0)}


def change_header(path, cards, units=None):
    """Rewrite a table with other cards (None removes one) or units."""
    table = scan_pixtable(path)
    header = table.header.copy()
    for key, value in cards.items():
        if value is None:
            header.remove(key, ignore_missing=True)
        else:
            set_card(header, key, value)
    columns = {name: table.read(name) for name in table.columns}
    write_pixtable(
        path, header, columns, {n: c.unit for n, c in table.columns.items()} | (units or {}), overwrite=True
    )


@pytest.fixture
def sim(tmp_path):
    return simulate_pixtables(
        tmp_path / "in", **TINY, exptimes=(900, 600, 1200), flux_scales=(1.0, 1.1, 0.95),
        pointing_errors=((0.0, 0.0), (1.0, -0.5), (-0.7, 0.3)),
    )  # fmt: skip


def test_order_is_that_of_time(sim):
    dates = [e.date_obs for e in sim.exposures]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        exposures = group_exposures([sim.paths[i] for i in order])
        assert [e.date_obs for e in exposures] == dates
        assert [e.n_rows for e in exposures] == [e.n_rows for e in sim.exposures]


def test_ifus_are_merged(tmp_path):
    sim = simulate_pixtables(tmp_path / "in", **(TINY | {"ifus": (3, 12, 24)}), n_exposures=2, per_ifu=True)
    rng = np.random.default_rng(1)
    paths = [sim.paths[i] for i in rng.permutation(6)]
    exposures = group_exposures(paths)
    assert [len(e.sources) for e in exposures] == [3, 3]
    for exposure in exposures:
        assert [s.table.ifu for s in exposure.sources] == [3, 12, 24]
        assert [s.first_row for s in exposure.sources] == [
            0, exposure.sources[0].table.n_rows, sum(s.table.n_rows for s in exposure.sources[:2])
        ]  # fmt: skip
        first = exposure.sources[0].table.header["ESO DRS MUSE FLAT FLUX SKY"]
        for source in exposure.sources:
            assert source.scale == source.table.header["ESO DRS MUSE FLAT FLUX SKY"] / first
        assert exposure.sources[0].scale == 1.0 != exposure.sources[1].scale
        header = exposure.header
        assert header["ESO DRS MUSE PIXTABLE MERGED"] == 3
        for key in ("EXTNAME", "ESO DRS MUSE FLAT FLUX SKY", "ESO DRS MUSE FLAT FLUX LAMP"):
            assert key not in header
        for ifu in (3, 12, 24):
            assert f"ESO DRS MUSE PIXTABLE EXP0 IFU{ifu:02d} SLICE01 XOFFSET" in header


def test_one_table_of_an_ifu_can_be_left_alone(tmp_path):
    sim = simulate_pixtables(tmp_path / "in", **TINY, n_exposures=1, per_ifu=True, flat_field=True)
    (merged,) = group_exposures(sim.paths)
    (alone,) = group_exposures(sim.paths, merge_one=False)
    assert merged.flat is not None and alone.flat is None
    assert "ESO DRS MUSE FLAT FLUX SKY" in alone.header and "ESO DRS MUSE FLAT FLUX SKY" not in merged.header


def test_duplicates(sim, caplog):
    with pytest.raises(InputError, match="given twice"):
        group_exposures([*sim.paths, sim.paths[0]])
    copy = sim.paths[0].with_name("copy.fits")
    copy.write_bytes(sim.paths[0].read_bytes())
    assert len(group_exposures([*sim.paths, copy])) == 3
    assert "ignored, a merged table of exposure" in caplog.text


def test_merged_table_beats_single_ifus(tmp_path, caplog):
    sim = simulate_pixtables(tmp_path / "in", **TINY, n_exposures=1, per_ifu=True)
    merged = sim.paths[0].with_name("merged.fits")
    merged.write_bytes(sim.paths[0].read_bytes())
    change_header(merged, {"EXTNAME": None})
    (exposure,) = group_exposures([*sim.paths, merged])
    assert [s.table.path for s in exposure.sources] == [merged]
    assert "the tables of single IFUs are ignored" in caplog.text


def test_missing_ifus_are_named(tmp_path, caplog):
    sim = simulate_pixtables(tmp_path / "in", **(TINY | {"ifus": (1, 3)}), n_exposures=1, per_ifu=True)
    group_exposures(sim.paths)
    assert "no table for IFU 2, 4, 5" in caplog.text


def test_refusals(sim, tmp_path):
    with pytest.raises(InputError, match="no pixel tables given"):
        group_exposures([])
    change_header(sim.paths[1], {}, units={"xpos": "deg", "ypos": "deg"})
    with pytest.raises(InputError, match="coordinate stage 'deg' found"):
        group_exposures(sim.paths)
    change_header(sim.paths[1], {"DATE-OBS": None}, units={"xpos": "rad", "ypos": "rad"})
    with pytest.raises(InputError, match="no keyword DATE-OBS"):
        group_exposures(sim.paths)
    assert len(group_exposures([sim.paths[1]], need_date=False)) == 1


def test_instrument_modes_are_not_mixed(sim, caplog):
    change_header(sim.paths[2], {"ESO INS MODE": "WFM-AO-N"})
    group_exposures(sim.paths)
    assert "instrument mode WFM-AO-N" in caplog.text
    change_header(sim.paths[2], {"ESO INS MODE": "NFM-AO-N"})
    with pytest.raises(InputError, match="instrument mode 'NFM' found"):
        group_exposures(sim.paths)


def test_units_are_not_mixed(sim):
    change_header(sim.paths[2], {}, units={"data": "count"})
    with pytest.raises(InputError, match="data unit 'count' found"):
        group_exposures(sim.paths)


# ------------------------------------------------------------------------------------- placement


def test_offsets(sim):
    exposures = group_exposures(sim.paths)
    placements, header = place(exposures, read_offset_list(sim.offset_list), "exptime")
    first = sim.exposures[0]
    for placement, truth in zip(placements, sim.exposures, strict=True):
        # the OFFSET_LIST leads back to the true pointings
        assert placement.dec0 == pytest.approx(truth.dec, abs=1e-12)
        assert placement.shift == pytest.approx((truth.ra - first.ra, truth.dec - first.dec), abs=1e-12)
        assert placement.flux_scale == truth.flux_scale
        assert placement.weight == np.float32(truth.exptime / first.exptime)
        assert placement.position
    assert placements[0].shift == (0.0, 0.0)
    assert (header["CRVAL1"], header["CRVAL2"]) == pytest.approx((first.ra, first.dec), abs=1e-12)
    assert header["ESO DRS MUSE OFFSET2 DRA"] == pytest.approx(1.0 / 3600, abs=1e-6)
    assert header["ESO DRS MUSE FLUX SCALE3"] == 0.95
    assert header["ESO DRS MUSE OFFSET3 DATE-OBS"] == sim.exposures[2].date_obs
    assert header["ESO DRS MUSE PIXTABLE COMBINED"] == 3


def offset_list(tmp_path, *rows):
    return OffsetList(tmp_path / "OFFSET_LIST.fits", tuple(Offset(*row) for row in rows))


def test_offsets_of_some_exposures(sim, tmp_path, caplog):
    """What is missing is told loudly, and what is half given is not applied."""
    exposures = group_exposures(sim.paths)
    dates = [e.date_obs for e in exposures]
    offsets = offset_list(tmp_path, (dates[1], 1e-3, math.nan, 0.0), (dates[2] + "99", 1e-3, 2e-3, math.nan))
    placements, header = place(exposures, offsets, "none")
    assert "NO ROW for 1 of 3 exposures" in caplog.text and str(sim.paths[0]) in caplog.text
    ra, dec = (exposures[1].header[k] for k in ("RA", "DEC"))
    assert placements[1].dec0 == dec
    assert placements[1].shift == (ra - exposures[0].header["RA"], dec - exposures[0].header["DEC"])
    assert [p.flux_scale for p in placements] == [1.0, 1.0, 1.0]
    assert placements[2].dec0 == exposures[2].header["DEC"] - 2e-3
    assert "ESO DRS MUSE OFFSET2 DRA" not in header and "ESO DRS MUSE OFFSET2 DATE-OBS" in header
    assert [p.weight for p in placements] == [-1.0] * 3
    caplog.clear()
    place(exposures, offset_list(tmp_path, ("2001-01-01T00:00:00.000", 0.0, 0.0, 1.0)), "none")
    assert "NO ROW for any of 3 exposures" in caplog.text


def test_only_projected_tables_are_combined(tmp_path):
    sim = simulate_pixtables(tmp_path / "in", **TINY, stage="deg")
    with pytest.raises(InputError, match="expected rad"):
        place(group_exposures(sim.paths), None, "none")


@pytest.mark.parametrize(("key", "value"), [("RA", None), ("DEC", None), ("RA", "10:20"), ("EXPTIME", None)])
def test_keywords_of_the_first_exposure(sim, key, value):
    change_header(sim.paths[0], {key: value})
    with pytest.raises(InputError, match=key):
        place(group_exposures(sim.paths), None, "exptime")


def test_dates_must_be_dates(sim):
    change_header(sim.paths[0], {"DATE-OBS": "2015"})
    with pytest.raises(InputError, match="no date"):
        place(group_exposures(sim.paths), None, "exptime")


# --------------------------------------------------------------------------------------- weights


def test_weights(sim, caplog):
    """Relative to the first exposure; a seeing of 0 or less is no measurement (the reference divides by it)."""
    caplog.set_level(logging.WARNING)
    for i, path in enumerate(sim.paths):
        change_header(
            path,
            {
                "ESO OCS SGS AG FWHMX AVG": (0.8, 1.0, 1.2)[i], "ESO OCS SGS AG FWHMY AVG": (1.0, 1.2, 1.0)[i],
                "ESO TEL IA FWHM": (0.7, 0.9, 1.4)[i], "ESO TEL AMBI FWHM START": (0.5, 1.0, 2.0)[i],
                "ESO TEL AMBI FWHM END": 0.5, "ESO DRS MUSE WEIGHT": (1.0, 0.5, 2.0)[i],
            },
        )  # fmt: skip
    times = np.array([1, 600 / 900, 1200 / 900])

    def check(scheme, factors):
        assert weights(group_exposures(sim.paths), scheme) == pytest.approx(times * factors, rel=1e-7)

    check("exptime", 1)
    check("fwhm", 0.9 / np.array([0.9, 1.1, 1.1]))
    check("header", np.array([1, 0.5, 2]))
    assert not caplog.text
    for value in (None, 0.0, -1.0):
        change_header(sim.paths[1], {"ESO OCS SGS AG FWHMX AVG": value})
        check("fwhm", 0.7 / np.array([0.7, 0.9, 1.4]))
        change_header(sim.paths[2], {"ESO TEL IA FWHM": value})
        check("fwhm", 0.5 / np.array([0.5, 0.75, 1.25]))
        change_header(sim.paths[0], {"ESO TEL AMBI FWHM END": value})
        check("fwhm", 1)
        assert "weights by exposure time only" in caplog.text
        change_header(sim.paths[0], {"ESO TEL AMBI FWHM END": 0.5})
        change_header(sim.paths[2], {"ESO TEL IA FWHM": 1.4})
        caplog.clear()
    change_header(sim.paths[2], {"ESO DRS MUSE WEIGHT": None})
    check("header", np.array([1, 0.5, 1]))
    assert "taken as 1" in caplog.text
    change_header(sim.paths[1], {"EXPTIME": None})
    assert weights(group_exposures(sim.paths), "exptime") == pytest.approx([1, 0, 1200 / 900])
    assert "its weight is 0" in caplog.text
    assert weights(group_exposures(sim.paths), "none") == [-1.0] * 3
    # one exposure has nothing to be weighted against
    assert weights(group_exposures(sim.paths[:1]), "exptime") == [-1.0]


# ---------------------------------------------------------------------------- flat-field spectra


def test_smoothing_keeps_cubics():
    """The fits are exact for a cubic; the sliding mean of 15 Angstrom changes its curvature only."""
    wave = np.arange(4700, 9300, 1.25)
    t = (wave - 7000) / 2500
    values = 1 + 0.2 * t - 0.1 * t**2
    smooth = smooth_piecewise(wave, values)
    # mean of a parabola over +-15 Angstrom: second derivative / 2 * 15^2 / 3
    assert np.abs(smooth - values).max() < 0.1 / 2500**2 * 15**2 / 2
    assert smooth[0] == pytest.approx(values[0], abs=1e-12)
    assert smooth[-1] == pytest.approx(values[-1], abs=1e-12)


def test_smoothing_clips_outliers():
    rng = np.random.default_rng(1)
    wave = np.arange(4700, 9300, 1.25)
    values = 1 + 0.01 * rng.standard_normal(len(wave))
    spoilt = values.copy()
    spoilt[[50, 1000, 2000, -7]] = 5
    difference = np.abs(smooth_piecewise(wave, spoilt) - smooth_piecewise(wave, values))
    # clipped: less than one part in 200 of what they would do to a mean
    assert difference.max() < 2e-3


@pytest.mark.parametrize(("mode", "raw"), [
    ("WFM-NOAO-N", [(0, 4774)]), ("WFM-NOAO-E", []), ("WFM-AO-E", [(5756, 6008)]),
    ("WFM-AO-N", [(0, 4699), (5806, 5966)]), ("NFM-AO-N", [(0, 4769)]),
])  # fmt: skip
def test_ranges_that_are_not_smoothed(mode, raw):
    rng = np.random.default_rng(2)
    grid = np.arange(4150, 9801, 1.25)
    spectra = [(grid[300:4200], 1 + 0.01 * rng.standard_normal(3900)) for _ in range(2)]
    result = average_flat(spectra, mode)
    assert np.all(result[:301] == 0) and np.all(result[4200:] == 0)
    mean = (spectra[0][1] + spectra[1][1]) / 2
    same = np.zeros(len(grid), bool)
    same[300:4200] = result[300:4200] == mean
    inside = (grid > grid[300]) & (grid <= grid[4199])
    expected = np.zeros(len(grid), bool)
    for low, high in raw:
        expected |= (grid >= low) & (grid <= high)
    np.testing.assert_array_equal(same, expected & inside)
    # noise goes down where it is smoothed
    assert result[inside & ~expected].std() < 0.3 * mean.std()


def test_all_or_no_ifu_has_a_flat_field(tmp_path):
    sim = simulate_pixtables(
        tmp_path / "in", **(TINY | {"ifus": (12, 13)}), n_exposures=1, per_ifu=True, flat_field=True
    )
    with fits.open(sim.paths[1]) as hdus:
        fits.HDUList([h.copy() for h in hdus if h.name != "PIXTABLE_FLAT_FIELD"]).writeto(
            sim.paths[1], overwrite=True, output_verify="silentfix"
        )
    with pytest.raises(InputError, match=r"only some IFUs have a flat-field spectrum; missing in .*-13\.fits"):
        group_exposures(sim.paths)


def test_flat_field_outside_the_wavelength_range(tmp_path):
    sim = simulate_pixtables(
        tmp_path / "in", **(TINY | {"ifus": (12,)}), n_exposures=1, per_ifu=True, flat_field=True
    )
    with pytest.raises(InputError, match="flat-field spectrum does not cover"):
        group_exposures(sim.paths, wave_range=(3000.0, 3100.0))


def test_weights_kept_of_some_exposures_only(tmp_path):
    """Kept weights need to be there in all exposures; the reference would drop those without."""
    with_weights = simulate_pixtables(tmp_path / "a", n_exposures=1, n_rows_limit=2000, weight=True)
    without = simulate_pixtables(tmp_path / "b", n_exposures=2, n_rows_limit=2000)
    exposures = group_exposures([*with_weights.paths, without.paths[1]])
    with pytest.raises(InputError, match="no column weight"):
        weights(exposures, "none")
    assert len(weights(exposures, "exptime")) == 2
