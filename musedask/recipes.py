"""The recipes of the reference pipeline, DRS 2.8.7: what each is called, takes and makes.

A test compares every declaration with what the installed esorex says of its recipes.
"""

from __future__ import annotations

from .recipe import Input, Parameter, Product, Recipe

_METHODS = ("nearest", "linear", "quadratic", "renka", "drizzle", "lanczos")

_SAVE = Parameter(
    "save",
    str,
    "cube",
    "Select output product(s) to save: cube and/or combined (comma-separated).",
)
_RESAMPLE = Parameter("resample", str, "drizzle", "The resampling technique to use.", _METHODS)
_DX = Parameter(
    "dx", float, 0.0, "Horizontal step size (arcsec, or pixel for tables in pixels); 0 = natural."
)
_DY = Parameter("dy", float, 0.0, "Vertical step size (arcsec, or pixel for tables in pixels); 0 = natural.")
_DLAMBDA = Parameter("dlambda", float, 0.0, "Wavelength step size (Angstrom); 0 = natural.")
_CRTYPE = Parameter(
    "crtype", str, "median", "Statistics used to detect cosmic rays.", ("iraf", "mean", "median")
)
_RC = Parameter("rc", float, 1.25, 'Critical radius for the "renka" resampling method.')
_LD = Parameter("ld", int, 1, "Number of adjacent voxels to take into account in each direction.")
_FILTER = Parameter("filter", str, "white", "Filter name(s) of the field-of-view images, comma-separated.")
_LAMBDAMIN = Parameter("lambdamin", float, 4000.0, "Cut off the data below this wavelength (Angstrom).")
_LAMBDAMAX = Parameter("lambdamax", float, 10000.0, "Cut off the data above this wavelength (Angstrom).")


def _crsigma(default: float) -> Parameter:
    return Parameter("crsigma", float, default, "Sigma factor of the cosmic-ray rejection; <= 0: off.")


def _pixfrac(default: str) -> Parameter:
    return Parameter(
        "pixfrac",
        str,
        default,
        "Drop size of drizzle: 1 value for all directions, 2 for spatial,spectral, 3 for x,y,spectral.",
    )


def _format(*choices: str) -> Parameter:
    return Parameter("format", str, "Cube", "Type of output file format.", choices)


EXP_COMBINE = Recipe(
    "muse_exp_combine",
    "Combine several exposures into one datacube.",
    (
        Input("PIXTABLE_REDUCED", "raw", 2),
        Input("OFFSET_LIST", "calib", 0, 1),
        Input("FILTER_LIST", "calib", 0, 1),
        Input("OUTPUT_WCS", "calib", 0, 1),
    ),
    (
        Product("DATACUBE_FINAL", "master", "save=cube"),
        Product("IMAGE_FOV", "sequence", "save=cube"),
        Product("PIXTABLE_COMBINED", "master", "save=combined"),
    ),
    (
        _SAVE,
        _RESAMPLE,
        _DX,
        _DY,
        _DLAMBDA,
        _CRTYPE,
        _crsigma(10.0),
        _RC,
        _pixfrac("0.6,0.6"),
        _LD,
        _format("Cube", "Euro3D", "xCube", "xEuro3D", "sdpCube"),
        Parameter(
            "weight",
            str,
            "exptime",
            "Weighting of the exposures.",
            ("exptime", "fwhm", "header", "none"),
        ),
        _FILTER,
        _LAMBDAMIN,
        _LAMBDAMAX,
    ),
)

MAKE_CUBE = Recipe(
    "muse_scipost_make_cube",
    "Make the datacube of one pixel table.",
    (
        Input("PIXTABLE_OBJECT", "raw", 1),
        Input("FILTER_LIST", "calib", 0, 1),
        Input("OUTPUT_WCS", "calib", 0, 1),
    ),
    (
        Product("DATACUBE_FINAL"),
        Product("IMAGE_FOV", "sequence"),
        Product("OBJECT_RESAMPLED", "master", "stacked"),
    ),
    (
        _LAMBDAMIN,
        _LAMBDAMAX,
        _RESAMPLE,
        _DX,
        _DY,
        _DLAMBDA,
        _CRTYPE,
        _crsigma(15.0),
        _RC,
        _pixfrac("0.8,0.8"),
        _LD,
        _format("Cube", "Euro3D", "xCube", "xEuro3D"),
        Parameter("stacked", bool, False, "Also write a stacked two-dimensional image."),
        _FILTER,
    ),
)
