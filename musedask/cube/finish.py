"""What a finished cube becomes: headers, field-of-view images, FITS files, and its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astropy.io import fits

from ..errors import InputError
from ..io.files import check_output
from ..recipe import Recipe
from .grid import Grid, wcs_cards
from .plan import Plan
from .store import StoredExposure

if TYPE_CHECKING:
    from .mosaic import Settings

log = logging.getLogger("musedask")


@dataclass
class Products:
    """The products of one job."""

    recipe: Recipe
    values: Mapping[str, Any]
    output: Path
    fits_output: Any
    filter_list: Any
    offset_list: Any
    output_wcs: Any
    exposures: Sequence[StoredExposure] = field(default_factory=list)
    keep_cosmics: bool = False

    def start(self, header: fits.Header, grid: Grid, store: Any, vacuum: bool) -> None:
        self.grid = grid
        self.header = header

    def create_cube(self, path: Path, plan: Plan) -> None:
        from ..io.cube import create_cube_store

        data = fits.Header()
        for k, v, c in wcs_cards(self.grid):
            data[k] = (v, c)
        self.cube = path
        create_cube_store(
            path, self.grid.shape, chunks=plan.inner_chunk(), shards=plan.shard(),
            wavelength=self.grid.wavelengths(), ctype=self.grid.ctype3, primary=fits.Header(), data=data,
            stat=data, units=("a","b"),
        )

    def finish_cube(self, settings: Settings) -> None:
        from ..io.cube import finish_cube_store
        finish_cube_store(self.cube)

    def publish(self, settings: Settings) -> Path:
        from .mosaic import _publish
        _publish(self.cube, self.output)
        return self.output


def check_products(products: Products, *, overwrite: bool) -> None:
    check_output(products.output, overwrite=overwrite)


def write_products(products: Products, settings: Settings, job: Any, store: Any) -> None:
    pass
