"""musedask: MUSE data reduction on Dask.

The public API; everything is imported on first use, so that starting is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .calib.badpix import badpix_from_ascii, badpix_from_dq, badpix_from_region
    from .calib.engine import run_recipe
    from .cube.mosaic import combine, make_cube, make_store
    from .cube.verbs import cube_combine, cube_concatenate, cube_filter, cube_info
    from .errors import MusedaskError, RecipeError
    from .io.cube import cube_to_fits, open_cube
    from .io.merge import merge_products, split_product
    from .io.pixtable import open_pixtable, write_pixtable
    from .sim import simulate_pixtables
    from .workflow.reduce import reduce

_WHERE = {
    "MusedaskError": "errors",
    "RecipeError": "errors",
    "badpix_from_ascii": "calib.badpix",
    "badpix_from_dq": "calib.badpix",
    "badpix_from_region": "calib.badpix",
    "combine": "cube.mosaic",
    "cube_combine": "cube.verbs",
    "cube_concatenate": "cube.verbs",
    "cube_filter": "cube.verbs",
    "cube_info": "cube.verbs",
    "cube_to_fits": "io.cube",
    "make_cube": "cube.mosaic",
    "make_store": "cube.mosaic",
    "merge_products": "io.merge",
    "open_cube": "io.cube",
    "open_pixtable": "io.pixtable",
    "reduce": "workflow.reduce",
    "run_recipe": "calib.engine",
    "simulate_pixtables": "sim",
    "split_product": "io.merge",
    "write_pixtable": "io.pixtable",
}

__all__ = [
    "MusedaskError",
    "RecipeError",
    "__version__",
    "badpix_from_ascii",
    "badpix_from_dq",
    "badpix_from_region",
    "combine",
    "cube_combine",
    "cube_concatenate",
    "cube_filter",
    "cube_info",
    "cube_to_fits",
    "make_cube",
    "make_store",
    "merge_products",
    "open_cube",
    "open_pixtable",
    "reduce",
    "run_recipe",
    "simulate_pixtables",
    "split_product",
    "write_pixtable",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
