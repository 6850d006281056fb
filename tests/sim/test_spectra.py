"""Spectra and standard stars, against physics and published magnitudes."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.modeling.models import BlackBody as Planck

from musedask.errors import InputError
from musedask.sim.fields import standard_star
from musedask.sim.spectra import (
    STANDARDS,
    BlackBody,
    Tabulated,
    WhiteDwarf,
    ab_from_flux,
    flux_from_ab,
    standard,
)

WAVE = np.arange(4600.0, 9400.0)


def test_black_body():
    unit = u.erg / u.s / u.cm**2 / u.AA / u.sr
    planck = Planck(5772 * u.K, scale=1 * unit)
    expected = (planck(WAVE * u.AA) / planck(7000 * u.AA)).value
    np.testing.assert_allclose(BlackBody(5772.0)(WAVE), expected, rtol=1e-6)


def test_white_dwarf_has_balmer_lines():
    ratio = WhiteDwarf(30000.0, 0.5, 25.0)(WAVE) / BlackBody(30000.0)(WAVE)
    assert ratio[2400] == pytest.approx(1)
    minima = WAVE[1:-1][(ratio[1:-1] < ratio[:-2]) & (ratio[1:-1] < ratio[2:])]
    assert minima == pytest.approx([4861, 6563], abs=1)
    assert ratio.min() == pytest.approx(0.5, abs=0.02)


def test_table():
    table = Tabulated((5000.0, 7000.0, 9000.0), (1.0, 2.0, 4.0))
    assert table([4000, 6000, 7000, 8000, 9999]) == pytest.approx([0.5, 0.75, 1, 1.5, 2])


def test_ab_magnitudes():
    # 3631 Jy
    assert flux_from_ab(0.0, 5000.0) == pytest.approx(3.631e-20 * 2.998e18 / 5000**2 * 1e20, rel=1e-3)
    assert ab_from_flux(flux_from_ab(17.3)) == pytest.approx(17.3)


@pytest.mark.parametrize("name", STANDARDS)
def test_standards(name):
    made = standard_star(name.lower().replace(" ", "-"))
    star = STANDARDS[name]
    assert made.name == name and (made.scene.ra, made.scene.dec) == (star.ra, star.dec)
    # V = 0 is 3.631e-9 erg/s/cm2/Angstrom at 5450 Angstrom
    at_v = np.interp(5450.0, made.wave, made.flux)
    assert -2.5 * np.log10(at_v / 3.631e-9) == pytest.approx(star.v, abs=1e-4)
    # the scene has the flux of the table, in total: the star is measured as bright as it is
    axis = np.arange(-7, 7.1, 0.2)
    for wave in (5000.0, 6562.0, 9000.0):
        total = made.scene.surface_brightness(axis[None], axis[:, None], wave).sum() * 1e-20
        assert total == pytest.approx(np.interp(wave, made.wave, made.flux), rel=1e-3)


def test_colours_of_landolt():
    """V - I of Landolt (1992) within 0.1: zero points of Bessell et al. (1998), one wavelength for a band."""
    for name, colour in (("GD 71", -0.302), ("GD 108", -0.220), ("Feige 110", -0.313)):
        star = STANDARDS[name]
        got = -2.5 * np.log10(star.flux(5450.0) / 3.631e-9 / (star.flux(7980.0) / 1.126e-9))
        assert got == pytest.approx(colour, abs=0.1)


def test_errors():
    with pytest.raises(InputError, match="GD 71"):
        standard("Vega")
    with pytest.raises(InputError, match="temperature"):
        BlackBody(0.0)
    with pytest.raises(InputError, match="depth"):
        WhiteDwarf(20000.0, 1.5)
    for wave, flux in (((1.0,), (1.0,)), ((2.0, 1.0), (1.0, 1.0)), ((6000.0, 8000.0), (0.0, 0.0))):
        with pytest.raises(InputError, match="table"):
            Tabulated(wave, flux)
