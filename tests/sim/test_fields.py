"""Fields made to a purpose."""

from __future__ import annotations

import numpy as np
import pytest

from musedask.errors import InputError
from musedask.sim.fields import astrometric_field, faint_field, nebula_field, source_table
from musedask.sim.scene import Scene, standard_coordinates


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_astrometric_field(seed):
    field = astrometric_field(201.0, -47.0, seed=seed)
    table = source_table(field)
    x, y = standard_coordinates(table.ra, table.dec, 201.0, -47.0)
    assert len(x) <= 120 and len(set(table.name)) == len(x)
    assert table.mag.min() > 13.9 and table.mag.max() < 18.1
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    assert distance[distance > 0].min() > 2.9
    # two IFUs: a strip of 60 x 5 arcsec
    for angle in np.radians(np.arange(0, 180, 7.5)):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        assert ((np.abs(along) < 30) & (np.abs(across) < 2.5)).sum() >= 8
    assert field == astrometric_field(201.0, -47.0, seed=seed) != astrometric_field(201.0, -47.0, seed=seed + 9)


def test_stars_are_where_the_table_says():
    field = astrometric_field(10.0, -30.0, seed=4)
    table = source_table(field)
    image = field.surface_brightness(*standard_coordinates(table.ra, table.dec, 10.0, -30.0), 7000.0)
    flux = np.array([s.flux for s in field.stars])
    assert np.median(image / flux) == pytest.approx(image.max() / flux[image.argmax()], rel=0.05)


def test_other_fields():
    nebula = nebula_field(10.0, 95.0 - 180.0, seed=2)
    assert nebula.nebulae and nebula.galaxies and nebula.reach == np.inf
    assert nebula_field().ra is None
    blank = faint_field(seed=1)
    assert max(s.flux for s in blank.stars) < 2000


def test_errors():
    with pytest.raises(InputError, match="no ra and dec"):
        source_table(Scene())
    with pytest.raises(InputError, match="size"):
        astrometric_field(size=0)
    with pytest.raises(InputError, match="flux"):
        nebula_field(flux=-1)
