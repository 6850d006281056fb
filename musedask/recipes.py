"""The recipes of the reference pipeline, DRS 2.8.7: what each is called, takes and makes.

A test compares every declaration with what the installed esorex says of its recipes; ``musedask recipe check``
does the same.
"""

from __future__ import annotations

from .errors import InputError
from .recipe import FrameMode, Input, Parameter, Product, Recipe

#: version of the reference pipeline that the declarations are of
DRS_VERSION = "2.8.7"

# as in .instrument, whose import would make the command line slow to start
_N_IFUS = 24

_COMBINATIONS = ("average", "median", "minmax", "sigclip")
_METHODS = ("nearest", "linear", "quadratic", "renka", "drizzle", "lanczos")


# ------------------------------------------------------------------------ parameters that recipes share


def _nifu(first: int = -1) -> Parameter:
    return Parameter(
        "nifu", int, 0, "IFU to work on; 0: all, one after the other; -1: all in parallel.",
        minimum=first, maximum=_N_IFUS,
    )  # fmt: skip


_NIFU = _nifu()
_MERGE = Parameter("merge", bool, False, "Put the products of all IFUs into one file of each kind.")

_OVERSCAN = (
    Parameter(
        "overscan",
        str,
        "vpoly",
        "How the level of the bias is corrected: vpoly (polynomial along the vertical overscan, subtracted), offset "
        "(mean level of the overscan), none (stop if levels differ).",
    ),
    Parameter(
        "ovscreject",
        str,
        "dcr",
        "How values are rejected from the statistics of the overscan: dcr (as cosmic rays), fit (of a constant), none.",
    ),
    Parameter(
        "ovscsigma",
        float,
        30.0,
        "Rejection limit of the fit of vpoly, in standard deviations; with none: largest difference of the levels.",
    ),
    Parameter("ovscignore", int, 3, "Pixels of the overscan next to the data that are left out."),
)


def _combine(text: str = "How exposures are combined.") -> Parameter:
    return Parameter("combine", str, "sigclip", text, _COMBINATIONS)


def _rejection(expert: bool = False) -> tuple[Parameter, ...]:
    return (
        Parameter("nlow", int, 1, "Lowest values that minmax rejects.", expert=expert),
        Parameter("nhigh", int, 1, "Highest values that minmax rejects.", expert=expert),
        Parameter("nkeep", int, 1, "Values that minmax keeps at least.", expert=expert),
        Parameter("lsigma", float, 3.0, "Lower limit of sigclip, in median deviations.", expert=expert),
        Parameter("hsigma", float, 3.0, "Upper limit of sigclip, in median deviations.", expert=expert),
    )


#: how exposures are corrected and combined
_COMBINED = (*_OVERSCAN, _combine(), *_rejection())


def _scale(default: bool = True, expert: bool = True) -> Parameter:
    return Parameter(
        "scale", bool, default, "Scale the exposures to the exposure time of the first one.", expert=expert
    )


def _bad_pixels(low: float, high: float, what: str) -> tuple[Parameter, Parameter]:
    return (
        Parameter("losigmabadpix", float, low, f"Limit of dark {what}, in median deviations."),
        Parameter("hisigmabadpix", float, high, f"Limit of bright {what}, in median deviations."),
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
_RANGE = (_LAMBDAMIN, _LAMBDAMAX)
_LAMBDAREF = Parameter(
    "lambdaref",
    float,
    7000.0,
    "Wavelength that atmospheric refraction leaves in place (Angstrom); < 0: no correction.",
)
_DARCHECK = Parameter(
    "darcheck",
    str,
    "none",
    "Measure what the correction of atmospheric refraction leaves, and correct that too.",
    ("none", "check", "correct"),
)
_RVCORR = Parameter(
    "rvcorr",
    str,
    "bary",
    "What velocities refer to: the barycentre of the solar system, the Sun, the centre of the Earth, or nothing.",
    ("bary", "helio", "geo", "none"),
)


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


_FORMAT = _format("Cube", "Euro3D", "xCube", "xEuro3D")
_SDP_FORMAT = _format("Cube", "Euro3D", "xCube", "xEuro3D", "sdpCube")


def _weight(*choices: str) -> Parameter:
    return Parameter("weight", str, "exptime", "Weighting of the exposures.", choices)


def _grid(crsigma: float, pixfrac: str, form: Parameter) -> tuple[Parameter, ...]:
    """How pixels become voxels."""
    return (_RESAMPLE, _DX, _DY, _DLAMBDA, _CRTYPE, _crsigma(crsigma), _RC, _pixfrac(pixfrac), _LD, form)


def _fractions(fraction: float, prefix: str = "") -> tuple[Parameter, Parameter]:
    return (
        Parameter(
            f"{prefix}fraction", float, fraction,
            "Fraction of the image taken as sky, darkest first, after the ignored part; within the mask if there is "
            "one.",
        ),
        Parameter(f"{prefix}ignore", float, 0.05, "Fraction of the image, of the darkest pixels, that is ignored."),
    )  # fmt: skip


def _samplings(prefix: str = "") -> tuple[Parameter, Parameter]:
    return (
        Parameter(f"{prefix}sampling", float, 0.3125, "Step of the spectrum of the sky (Angstrom).", expert=True),
        Parameter(f"{prefix}csampling", float, 0.3125, "Step of the continuum of the sky (Angstrom).", expert=True),
    )


def _sky_crsigma(name: str) -> Parameter:
    return Parameter(
        name, str, "15.,15.", "Limits of the cosmic-ray rejection in the cube and in the spectrum; <= 0: off.",
        expert=True,
    )  # fmt: skip


def _raman_width(name: str) -> Parameter:
    return Parameter(name, float, 20.0, "Width of the ranges around the Raman lines (Angstrom).", expert=True)


# -------------------------------------------------------------------------------- inputs that recipes share


def _raw(tag: str, minimum: int = 0, maximum: int | None = None) -> Input:
    return Input(tag, "raw", minimum, maximum)


def _one(tag: str) -> Input:
    return Input(tag, "calib", 1, 1)


def _optional(tag: str) -> Input:
    return Input(tag, "calib", 0, 1)


def _any(tag: str, minimum: int = 0) -> Input:
    return Input(tag, "calib", minimum)


#: of all recipes that correct raw exposures: the gain of an IFU and the curve of its detector
_NONLINEARITY = Input("NONLINEARITY_GAIN", "calib", 0, 1, listed=False)
_BADPIX = _any("BADPIX_TABLE")
_RESPONSE = (_one("EXTINCT_TABLE"), _one("STD_RESPONSE"), _optional("STD_TELLURIC"))


def _per_ifu(tag: str, when: str | None = None, mode: FrameMode = "master", listed_as: str | None = None) -> Product:
    return Product(tag, mode, when, per_ifu=True, listed_as=listed_as)


def _cube(tag: str, form: Parameter, when: str | None = None) -> tuple[Product, Product]:
    """A cube and its images, which some formats have in the same file."""
    formats = "|".join(c for c in form.choices if not c.startswith("x"))
    images = " and ".join(filter(None, (when, f"format={formats}", "a filter is chosen")))
    return Product(tag, "master", when), Product("IMAGE_FOV", "sequence", images)


def _basic(tag: str) -> tuple[Product, ...]:
    """What becomes of an exposure."""
    given = f"{tag} frames are given"
    return (
        _per_ifu(f"{tag}_RED", f"saveimage and {given}", "dateobs"),
        _per_ifu(f"{tag}_RESAMPLED", f"resample and {given}", "dateobs"),
        _per_ifu(f"PIXTABLE_{tag}", given, "dateobs"),
    )


def _table(listed_as: str | None = None) -> Product:
    """Each pixel table, changed; the help of the reference has another tag for some."""
    return Product("PIXTABLE_REDUCED", "dateobs", listed_as=listed_as)


# ------------------------------------------------------------------------------------------ calibrations

AMPL = Recipe(
    "muse_ampl",
    "Measure the throughput with exposures of the calibrated photo diodes.",
    (
        _raw("AMPL", 3),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _BADPIX,
        _optional("GEOMETRY_TABLE"),
        _one("FILTER_LIST"),
        _one("TRACE_TABLE"),
        _one("WAVECAL_TABLE"),
        _NONLINEARITY,
    ),
    (
        _per_ifu("MASTER_AMPL", "savemaster"),
        _per_ifu("TABLE_AMPL", "savetable"),
        _per_ifu("AMPL_CONVOLVED"),
    ),
    (
        _NIFU,
        *_COMBINED,
        Parameter("fbeam", float, 1.1, "By how much the beam is wider at photo diode 2 than in the focal plane."),
        Parameter("temp", float, 3200.0, "Temperature of the lamp, as a black body (K)."),
        Parameter("savemaster", bool, False, "Also write the combined image before the convolution."),
        Parameter("savetable", bool, False, "Also write the table of all pixels."),
        _MERGE,
    ),
)

BIAS = Recipe(
    "muse_bias",
    "Combine bias exposures into a master bias, and find bad columns.",
    (_raw("BIAS", 3), _BADPIX, _NONLINEARITY),
    (_per_ifu("MASTER_BIAS"),),
    (_NIFU, *_COMBINED, *_bad_pixels(30.0, 3.0, "columns of the master bias"), _MERGE),
)

DARK = Recipe(
    "muse_dark",
    "Combine dark exposures into a master dark, and find hot pixels.",
    (_raw("DARK", 3), _one("MASTER_BIAS"), _BADPIX, _NONLINEARITY),
    (_per_ifu("MASTER_DARK"), _per_ifu("MODEL_DARK", "model")),
    (
        _NIFU,
        *_COMBINED,
        _scale(),
        Parameter(
            "normalize", float, 3600.0, "Exposure time that the master dark is scaled to (s); < 0: as it is.",
            expert=True,
        ),
        Parameter("hotsigma", float, 5.0, "Limit of hot pixels, in median deviations above the median."),
        Parameter("model", bool, False, "Also write a smooth model of the master dark."),
        _MERGE,
    ),
)  # fmt: skip

FLAT = Recipe(
    "muse_flat",
    "Combine flat fields into a master flat, trace the slices, and find bad pixels.",
    (_raw("FLAT", 3), _one("MASTER_BIAS"), _optional("MASTER_DARK"), _BADPIX, _NONLINEARITY),
    (
        _per_ifu("MASTER_FLAT"),
        _per_ifu("TRACE_TABLE", "trace"),
        _per_ifu("TRACE_SAMPLES", "trace and samples"),
    ),
    (
        _NIFU,
        *_COMBINED,
        _scale(),
        Parameter("normalize", bool, True, "Divide the master flat by its mean.", expert=True),
        Parameter("trace", bool, True, "Trace the slices on the master flat."),
        Parameter("nsum", int, 32, "Rows that are averaged for a point of the trace."),
        Parameter("order", int, 5, "Order of the polynomials of the trace."),
        Parameter("edgefrac", float, 0.5, "Fraction of the level within a slice at which its edge is."),
        *_bad_pixels(5.0, 5.0, "pixels of the master flat"),
        Parameter("samples", bool, False, "Also write all points of the traces."),
        _MERGE,
    ),
)

WAVECAL = Recipe(
    "muse_wavecal",
    "Find the lines of the arc lamps, and fit the wavelengths of every slice.",
    (
        _raw("ARC", 1),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _optional("MASTER_FLAT"),
        _one("TRACE_TABLE"),
        _one("LINE_CATALOG"),
        _BADPIX,
        _NONLINEARITY,
    ),
    (
        _per_ifu("WAVECAL_TABLE"),
        _per_ifu("WAVECAL_RESIDUALS", "residuals"),
        _per_ifu("ARC_RED_LAMP", "saveimages and several lamps were on or there is no ARC_RED", "subset"),
        _per_ifu("ARC_RED", "saveimages and resample or lampwise=false", "dateobs", listed_as=""),
        _per_ifu("ARC_RESAMPLED", "resample", "dateobs", listed_as=""),
        _per_ifu("WAVE_MAP", "wavemap", "dateobs", listed_as=""),
    ),
    (
        _NIFU,
        *_OVERSCAN,
        _combine("How the exposures of a lamp are combined."),
        Parameter("lampwise", bool, True, "Find and measure the lines of each lamp on its own image.", expert=True),
        Parameter("sigma", float, 1.0, "Limit of the detection of lines in the signal-to-noise of a slice."),
        Parameter("dres", float, 0.05, "By what fraction the dispersion may differ from the expected one."),
        Parameter("tolerance", float, 0.1, "Tolerance of the identification of lines by their pattern."),
        Parameter("xorder", int, 2, "Order of the polynomial across a slice."),
        Parameter("yorder", int, 6, "Order of the polynomial along the wavelengths."),
        Parameter("linesigma", float, -1.0, "Rejection limit of the fit of a line across a slice; < 0: 2.5."),
        Parameter("residuals", bool, False, "Also write the residuals of all lines."),
        Parameter("fitsigma", float, -1.0, "Rejection limit of the final fit of a slice; < 0: 3."),
        Parameter(
            "fitweighting",
            str,
            "cerrscatter",
            "Weights of the final fit: errors of the centres, scatter of each line, both, or none.",
            ("uniform", "cerr", "scatter", "cerrscatter"),
        ),
        Parameter("saveimages", bool, False, "Also write the combined images of the lamps."),
        Parameter("resample", bool, False, "Also write an image with straight lines, to look at.", expert=True),
        Parameter("wavemap", bool, False, "Also write an image of the wavelengths.", expert=True),
        _MERGE,
    ),
)

LSF = Recipe(
    "muse_lsf",
    "Measure the line spread function of every slice with arc lamps.",
    (
        _raw("ARC"),
        _raw("ARC_LSF"),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _optional("MASTER_FLAT"),
        _one("TRACE_TABLE"),
        _one("WAVECAL_TABLE"),
        _BADPIX,
        _one("LINE_CATALOG"),
        _NONLINEARITY,
    ),
    (_per_ifu("LSF_PROFILE"), _per_ifu("PIXTABLE_SUBTRACTED", "save_subtracted")),
    (
        _NIFU,
        *_OVERSCAN,
        Parameter("save_subtracted", bool, False, "Also write the pixel table without the lines."),
        Parameter("line_quality", int, 3, "Least quality of a line of the catalogue."),
        Parameter("lsf_range", float, 7.5, "Half width of the window around a line (Angstrom)."),
        Parameter("lsf_size", int, 150, "Size of the images across a line (pixel)."),
        Parameter("lambda_size", int, 30, "Size of the images along the wavelengths of the lines (pixel)."),
        Parameter("lsf_regression_window", float, 0.7, "Size of the window of the regression across a line."),
        _MERGE,
        _combine("How the exposures of a lamp are combined."),
        Parameter(
            "method",
            str,
            "interpolate",
            "An interpolated cube of the line spread function, or parameters of a Gauss-Hermite function.",
            ("interpolate", "hermit"),
        ),
    ),
)

GEOMETRY = Recipe(
    "muse_geometry",
    "Find where the slices lie in the field of view, with exposures of the pinhole mask.",
    (
        _raw("MASK", 50),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _optional("MASTER_FLAT"),
        _one("TRACE_TABLE"),
        _one("WAVECAL_TABLE"),
        _one("LINE_CATALOG"),
        _BADPIX,
        _any("MASK_CHECK"),
        _NONLINEARITY,
    ),
    (
        _per_ifu("MASK_REDUCED", None, "dateobs"),
        _per_ifu("MASK_COMBINED"),
        _per_ifu("SPOTS_TABLE"),
        Product("GEOMETRY_UNSMOOTHED", "master", "smoothing is on"),
        Product("GEOMETRY_TABLE"),
        Product("GEOMETRY_CUBE", "master", "MASK_CHECK frames are given"),
        Product("GEOMETRY_CHECK", "master", "MASK_CHECK frames are given"),
    ),
    (
        Parameter("ifu1", int, 1, "First IFU.", minimum=1, maximum=_N_IFUS, expert=True),
        Parameter("ifu2", int, _N_IFUS, "Last IFU.", minimum=1, maximum=_N_IFUS, expert=True),
        Parameter("sigma", float, 2.2, "Limit of the detection of spots, in median deviations above the median."),
        Parameter(
            "centroid", str, "gaussian", "How centres and widths of spots are measured.", ("barycenter", "gaussian")
        ),
        Parameter("smooth", float, 1.5, "Limit of the smoothing of the table within a stack, in sigma; <= 0: off."),
        Parameter("lambdamin", float, 6800.0, "Lower end of the image of MASK_CHECK (Angstrom).", expert=True),
        Parameter("lambdamax", float, 7200.0, "Upper end of the image of MASK_CHECK (Angstrom).", expert=True),
    ),
)

TWILIGHT = Recipe(
    "muse_twilight",
    "Combine twilight exposures into a smooth cube of the illumination.",
    (
        _raw("SKYFLAT", 3),
        _raw("ILLUM", 0, 1),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _one("MASTER_FLAT"),
        _BADPIX,
        _one("TRACE_TABLE"),
        _one("WAVECAL_TABLE"),
        _one("GEOMETRY_TABLE"),
        _optional("VIGNETTING_MASK"),
        _NONLINEARITY,
    ),
    (Product("DATACUBE_SKYFLAT"), Product("TWILIGHT_CUBE")),
    (
        *_COMBINED,
        _scale(False, expert=False),
        _RESAMPLE,
        _CRTYPE,
        _crsigma(50.0),
        Parameter("lambdamin", float, 5000.0, "Lower end of the cube (Angstrom)."),
        Parameter("lambdamax", float, 9000.0, "Upper end of the cube (Angstrom)."),
        Parameter("dlambda", float, 250.0, "Wavelength step of the cube (Angstrom)."),
        Parameter("xorder", int, 2, "Order in x of the polynomial that is fitted to the field."),
        Parameter("yorder", int, 2, "Order in y of the polynomial that is fitted to the field."),
        Parameter(
            "vignmaskedges", float, 0.02, "Relative gradient at which pixels are left out of the fit of the vignetted "
            "area; <= 0: none.", expert=True,
        ),
        Parameter(
            "vignsmooth", str, "polyfit", "How the vignetted area is smoothed.", ("polyfit", "gaussian", "median"),
            expert=True,
        ),
        Parameter(
            "vignxpar", int, -1, "Order (polyfit), width (gaussian) or size (median) in x; < 0: 4, 10 or 5.",
            expert=True,
        ),
        Parameter(
            "vignypar", int, -1, "Order (polyfit), width (gaussian) or size (median) in y; < 0: 4, 10 or 5.",
            expert=True,
        ),
        Parameter("vignnfmmask", int, 22, "Height of the vignetted area in the narrow field (pixel).", expert=True),
    ),
    standard_ifu=1,
)  # fmt: skip

ILLUM = Recipe(
    "muse_illum",
    "Copy a flat field of the illumination into a file with the header of a product.",
    (_raw("ILLUMFLAT", 1, 1),),
    (Product("ILLUM", "all"),),
    (),
)

LINGAIN = Recipe(
    "muse_lingain",
    "Measure the gain and the non-linearity of each quadrant of the detectors.",
    (
        _raw("LINGAIN_LAMP_OFF", 2),
        _raw("LINGAIN_LAMP_ON", 2),
        _one("MASTER_BIAS"),
        _one("TRACE_TABLE"),
        _BADPIX,
    ),
    (_per_ifu("NONLINEARITY_GAIN"),),
    (
        _NIFU,
        Parameter("ybox", int, 50, "Height of the windows along the slices (pixel)."),
        Parameter("xgap", int, 3, "Distance of the windows from the edges of the slices (pixel)."),
        Parameter("xborder", int, 10, "Distance of the slices from the borders of the quadrants (pixel)."),
        Parameter("order", int, 12, "Order of the polynomial of the non-linearity."),
        Parameter("toffset", float, 0.018, "What is added to the exposure time of the flat fields (s)."),
        Parameter("fluxtol", float, 0.01, "By what fraction the levels of a pair of flat fields may differ."),
        Parameter("sigma", float, 3.0, "Rejection limit of signals, in sigma."),
        Parameter("signalmin", float, 0.0, "Lowest signal used (log10 of adu)."),
        Parameter("signalmax", float, 4.9, "Highest signal used (log10 of adu)."),
        Parameter("signalbin", float, 0.1, "Width of the bins of the signal (log10 of adu)."),
        Parameter("gainlimit", float, 100.0, "Lowest signal in the fit of the gain (adu)."),
        Parameter("gainsigma", float, 3.0, "Rejection limit of gains, in sigma."),
        Parameter("ctsmin", float, 3.0, "Lowest signal in the analysis of the non-linearity (log10 of counts)."),
        Parameter("ctsmax", float, 4.9, "Highest signal in the analysis of the non-linearity (log10 of counts)."),
        Parameter("ctsbin", float, 0.1, "Width of its bins (log10 of counts)."),
        Parameter("linearmin", float, 2.5, "Lower end of the range taken as linear (log10 of counts)."),
        Parameter("linearmax", float, 3.0, "Upper end of the range taken as linear (log10 of counts)."),
        _MERGE,
    ),
)

QI_MASK = Recipe(
    "muse_qi_mask",
    "Make the masks of the quick reconstruction of images at the telescope.",
    (_raw("BIAS", 0, 1), _one("TRACE_TABLE"), _one("WAVECAL_TABLE")),
    (_per_ifu("MASK_IMAGE", None, "all"),),
    (_nifu(0),),
)

# ------------------------------------------------------------------------------------------ exposures

SCIBASIC = Recipe(
    "muse_scibasic",
    "Correct the exposures of each detector, and make pixel tables of them.",
    (
        _raw("OBJECT"),
        _raw("STD"),
        _raw("SKY"),
        _raw("ASTROMETRY"),
        _raw("ILLUM", 0, 1),
        _one("MASTER_BIAS"),
        _optional("MASTER_DARK"),
        _one("MASTER_FLAT"),
        _one("TRACE_TABLE"),
        _one("WAVECAL_TABLE"),
        _one("GEOMETRY_TABLE"),
        _any("TWILIGHT_CUBE"),
        _BADPIX,
        _NONLINEARITY,
    ),
    (
        *_basic("OBJECT"),
        *_basic("STD"),
        *_basic("SKY"),
        *_basic("ASTROMETRY"),
        _per_ifu("REDUCED_RED", "saveimage and REDUCED frames are given", "dateobs", listed_as=""),
        _per_ifu("REDUCED_RESAMPLED", "resample and REDUCED frames are given", "dateobs"),
        _per_ifu("PIXTABLE_REDUCED", "REDUCED frames are given", "dateobs"),
    ),
    (
        _NIFU,
        *_OVERSCAN,
        Parameter("crop", bool, True, "Cut the pixel tables to the useful wavelengths of the mode."),
        Parameter("cr", str, "none", "Removal of cosmic rays in the images.", ("none", "dcr")),
        Parameter("xbox", int, 15, "Width of the boxes of dcr (pixel)."),
        Parameter("ybox", int, 40, "Height of the boxes of dcr (pixel)."),
        Parameter("passes", int, 2, "Largest number of passes of dcr."),
        Parameter("thres", float, 5.8, "Gap in the histogram that dcr looks for, in standard deviations."),
        Parameter(
            "combine", str, "none", "How all exposures are combined before tables are made of them; best none.",
            ("none", *_COMBINATIONS), expert=True,
        ),
        *_rejection(expert=True),
        _scale(),
        Parameter("saveimage", bool, True, "Also write the corrected images."),
        Parameter(
            "skylines", str, "5577.339,6300.304", "Sky lines whose wavelengths correct those of the exposure "
            "(Angstrom), comma-separated; none: no correction.",
        ),
        Parameter("skyhalfwidth", float, 5.0, "Half width of the window around a sky line (Angstrom)."),
        Parameter("skybinsize", float, 0.1, "Step of the spectrum of a sky line (Angstrom)."),
        Parameter(
            "skyreject", str, "15.,15.,1", "Rejection in the spectrum of a sky line: upper and lower limit (sigma), "
            "number of iterations.",
        ),
        Parameter("resample", bool, False, "Also write an image with straight lines, to look at."),
        Parameter("dlambda", float, 1.25, "Wavelength step of that image (Angstrom)."),
        _MERGE,
    ),
    (_raw("REDUCED", 1), _one("TRACE_TABLE"), _one("WAVECAL_TABLE"), _one("GEOMETRY_TABLE")),
)  # fmt: skip

# ------------------------------------------------------------------------------------------ pixel tables

STANDARD = Recipe(
    "muse_standard",
    "Measure the response of the instrument with a standard star.",
    (
        _raw("PIXTABLE_STD", 1),
        _one("EXTINCT_TABLE"),
        _any("STD_FLUX_TABLE", 1),
        _optional("TELLURIC_REGIONS"),
        _optional("FILTER_LIST"),
    ),
    tuple(Product(tag, "dateobs") for tag in ("DATACUBE_STD", "STD_FLUXES", "STD_RESPONSE", "STD_TELLURIC")),
    (
        Parameter(
            "profile",
            str,
            "auto",
            "How the flux of stars is measured: fits, fits with smooth parameters (smoffat), or apertures; auto: "
            "smoffat in the wide field, circle in the narrow field.",
            ("gaussian", "moffat", "smoffat", "circle", "square", "auto"),
        ),
        Parameter(
            "select",
            str,
            "distance",
            "Which star is the standard: the brightest, or the one nearest to its position.",
            ("flux", "distance"),
        ),
        Parameter(
            "smooth",
            str,
            "ppoly",
            "How the response is smoothed: a median, or polynomials in pieces.",
            ("none", "median", "ppoly"),
        ),
        *_RANGE,
        _LAMBDAREF,
        _DARCHECK,
        _FILTER,
    ),
)

ASTROMETRY = Recipe(
    "muse_astrometry",
    "Find the astrometric solution with a field of stars of known positions.",
    (
        _raw("PIXTABLE_ASTROMETRY", 1),
        _one("ASTROMETRY_REFERENCE"),
        _optional("EXTINCT_TABLE"),
        _optional("STD_RESPONSE"),
        _optional("STD_TELLURIC"),
    ),
    (Product("DATACUBE_ASTROMETRY", "dateobs"), Product("ASTROMETRY_WCS", "dateobs")),
    (
        Parameter(
            "centroid", str, "moffat", "How the positions of stars are measured.", ("gaussian", "moffat", "box")
        ),
        Parameter(
            "detsigma", float, 1.5, "Limit of the detection of stars, in sigma; < 0: the best between it and 1."
        ),
        Parameter("radius", float, 3.0, "First search radius of the identification (pixel)."),
        Parameter(
            "faccuracy", float, 0.0, "First accuracy of the identification, in units of the mean accuracy; 0: "
            "identification by quadruples.",
        ),
        Parameter("niter", int, 2, "Iterations of the fit."),
        Parameter("rejsigma", float, 3.0, "Rejection limit of the fit, in sigma."),
        Parameter("rotcenter", str, "-0.01,-1.20", "Centre of rotation: x,y (pixel)."),
        *_RANGE,
        _LAMBDAREF,
        _DARCHECK,
    ),
)  # fmt: skip

CREATE_SKY = Recipe(
    "muse_create_sky",
    "Make lines and continuum of the sky of an exposure of empty sky.",
    (
        _raw("PIXTABLE_SKY", 1),
        *_RESPONSE,
        _one("SKY_LINES"),
        _optional("SKY_CONTINUUM"),
        _one("LSF_PROFILE"),
        _optional("SKY_MASK"),
    ),
    tuple(Product(tag) for tag in ("SKY_MASK", "SKY_IMAGE", "SKY_SPECTRUM", "SKY_LINES", "SKY_CONTINUUM")),
    (*_fractions(0.75), *_samplings(), _sky_crsigma("crsigma"), *_RANGE, _LAMBDAREF),
)

_SKY_SAVED = "save=skymodel and skymethod=model"
_AUTOCAL_SAVED = "save=autocal and autocalib=deepfield"

SCIPOST = Recipe(
    "muse_scipost",
    "Calibrate the pixel tables of exposures, subtract the sky, and make a cube of them.",
    (
        _raw("PIXTABLE_OBJECT", 1),
        *_RESPONSE,
        _optional("ASTROMETRY_WCS"),
        _optional("OFFSET_LIST"),
        _optional("FILTER_LIST"),
        _optional("OUTPUT_WCS"),
        _optional("AUTOCAL_FACTORS"),
        _optional("RAMAN_LINES"),
        _optional("SKY_LINES"),
        _optional("SKY_CONTINUUM"),
        _any("LSF_PROFILE"),
        _optional("SKY_MASK"),
    ),
    (
        *_cube("DATACUBE_FINAL", _SDP_FORMAT, "save=cube"),
        Product("OBJECT_RESAMPLED", "master", "save=stacked"),
        Product("PIXTABLE_REDUCED", "dateobs", "save=individual"),
        Product("PIXTABLE_POSITIONED", "dateobs", "save=positioned"),
        Product("PIXTABLE_COMBINED", "master", "save=combined"),
        Product("AUTOCAL_MASK", "dateobs", f"{_AUTOCAL_SAVED} and no SKY_MASK is given"),
        Product("AUTOCAL_FACTORS", "dateobs", _AUTOCAL_SAVED),
        Product("RAMAN_IMAGES", "dateobs", "save=raman and RAMAN_LINES are given and the mode is adaptive"),
        Product("SKY_IMAGE", "dateobs", f"{_SKY_SAVED}|simple"),
        Product("SKY_MASK", "dateobs", f"{_SKY_SAVED}|simple"),
        Product("SKY_SPECTRUM", "dateobs", f"{_SKY_SAVED}|simple"),
        Product("SKY_LINES", "dateobs", _SKY_SAVED),
        Product("SKY_CONTINUUM", "dateobs", f"{_SKY_SAVED} and no SKY_CONTINUUM is given"),
    ),
    (
        Parameter(
            "save",
            str,
            "cube,skymodel",
            "What is written, comma-separated: cube, autocal, raman, skymodel, individual, positioned, combined, "
            "stacked.",
        ),
        *_grid(15.0, "0.8,0.8", _SDP_FORMAT),
        _weight("exptime", "fwhm", "none"),
        _FILTER,
        Parameter(
            "autocalib",
            str,
            "none",
            "Correction of the flux of the slices with the sky between the objects, or with factors that are given.",
            ("none", "deepfield", "user"),
        ),
        _raman_width("raman_width"),
        Parameter(
            "skymethod",
            str,
            "model",
            "How the sky is subtracted: lines fitted to the exposure (model), lines and continuum as given "
            "(subtract-model), its mean spectrum (simple).",
            ("none", "subtract-model", "model", "simple"),
        ),
        *_RANGE,
        _LAMBDAREF,
        _DARCHECK,
        *_fractions(0.1, "skymodel_"),
        *_samplings("skymodel_"),
        _sky_crsigma("sky_crsigma"),
        _RVCORR,
        Parameter("astrometry", bool, True, "Apply an astrometric solution: the one given, or a default."),
    ),
)

APPLY_ASTROMETRY = Recipe(
    "muse_scipost_apply_astrometry",
    "Apply an astrometric solution to pixel tables.",
    (_raw("PIXTABLE_OBJECT", 1), _optional("ASTROMETRY_WCS")),
    (_table("PIXTABLE_OBJECT"),),
    _RANGE,
)

CALIBRATE_FLUX = Recipe(
    "muse_scipost_calibrate_flux",
    "Turn the counts of pixel tables into fluxes.",
    (_raw("PIXTABLE_OBJECT", 1), *_RESPONSE),
    (_table("PIXTABLE_OBJECT"),),
    _RANGE,
)

COMBINE_PIXTABLES = Recipe(
    "muse_scipost_combine_pixtables",
    "Combine pixel tables of IFUs and exposures into one.",
    (_raw("PIXTABLE_OBJECT", 1), _optional("OFFSET_LIST")),
    (Product("PIXTABLE_COMBINED"),),
    (*_RANGE, _weight("exptime", "fwhm", "none")),
)

CORRECT_DAR = Recipe(
    "muse_scipost_correct_dar",
    "Correct pixel tables for the refraction of the atmosphere.",
    (_raw("PIXTABLE_OBJECT", 1),),
    (_table("PIXTABLE_OBJECT"),),
    (*_RANGE, _LAMBDAREF, _DARCHECK),
)

CORRECT_RV = Recipe(
    "muse_scipost_correct_rv",
    "Correct the wavelengths of pixel tables for the motion of the Earth.",
    (_raw("PIXTABLE_OBJECT", 1),),
    (_table(),),
    (*_RANGE, _RVCORR),
)

MAKE_CUBE = Recipe(
    "muse_scipost_make_cube",
    "Make the datacube of one pixel table.",
    (_raw("PIXTABLE_OBJECT", 1), _optional("FILTER_LIST"), _optional("OUTPUT_WCS")),
    (*_cube("DATACUBE_FINAL", _FORMAT), Product("OBJECT_RESAMPLED", "master", "stacked")),
    (
        *_RANGE,
        *_grid(15.0, "0.8,0.8", _FORMAT),
        Parameter("stacked", bool, False, "Also write a stacked two-dimensional image."),
        _FILTER,
    ),
)

RAMAN = Recipe(
    "muse_scipost_raman",
    "Remove the Raman lines of the laser guide stars from a pixel table.",
    (_raw("PIXTABLE_OBJECT", 1, 1), _one("RAMAN_LINES"), _any("LSF_PROFILE", 1), _one("SKY_MASK")),
    (Product("RAMAN_IMAGES", "dateobs", "the mode is adaptive"), _table()),
    (
        *_RANGE,
        _LAMBDAREF,
        _raman_width("width"),
        Parameter("crsigma", float, 15.0, "Limit of the cosmic-ray rejection in the cube; <= 0: off.", expert=True),
        *_fractions(0.75),
    ),
)

SUBTRACT_SKY = Recipe(
    "muse_scipost_subtract_sky",
    "Subtract lines and continuum of the sky from pixel tables.",
    (_raw("PIXTABLE_REDUCED", 1), _one("SKY_LINES"), _one("SKY_CONTINUUM"), _any("LSF_PROFILE", 1)),
    (_table(),),
    (
        *_RANGE,
        Parameter("orig", str, "", "Name of a column for the data before the subtraction; empty: none."),
        Parameter("flux_sky", float, 0.0, "Flux of the twilight that the sky refers to; 0: of the first table."),
        Parameter("flux_lamp", float, 0.0, "Flux of the flat field that the sky refers to; 0: of the first table."),
    ),
)

SUBTRACT_SKY_SIMPLE = Recipe(
    "muse_scipost_subtract_sky_simple",
    "Subtract a spectrum of the sky from pixel tables.",
    (_raw("PIXTABLE_REDUCED", 1), _one("SKY_SPECTRUM")),
    (_table(),),
    _RANGE,
)

# ------------------------------------------------------------------------------------------ exposures together

EXP_ALIGN = Recipe(
    "muse_exp_align",
    "Find the offsets between exposures with the sources in their images.",
    (_raw("IMAGE_FOV", 2), _any("SOURCE_LIST")),
    (
        Product("EXPOSURE_MAP", "master", "expmap"),
        Product("PREVIEW_FOV"),
        Product("SOURCE_LIST", "dateobs"),
        Product("OFFSET_LIST"),
    ),
    (
        Parameter("rsearch", str, "30.,4.,2.,0.8", "Search radius of each iteration (arcsec), comma-separated."),
        Parameter("nbins", int, 60, "Bins of the histogram of offsets in the first iteration."),
        Parameter("weight", bool, True, "Weight the offsets."),
        Parameter("fwhm", float, 5.0, "Width of the filter of the detection (pixel)."),
        Parameter(
            "threshold", float, 15.0, "First limit of the detection: a flux, or if <= 0 median deviations above the "
            "background.",
        ),
        Parameter("bkgignore", float, 0.05, "Fraction of the image that is ignored for the background."),
        Parameter("bkgfraction", float, 0.1, "Fraction of the image that is taken as background."),
        Parameter("step", float, 0.5, "Step of the limit from iteration to iteration."),
        Parameter("iterations", int, 100000, "Largest number of iterations of the detection."),
        Parameter("srcmin", int, 5, "Least number of sources."),
        Parameter("srcmax", int, 80, "Largest number of sources."),
        Parameter("roundmin", float, -1.0, "Least roundness of a source."),
        Parameter("roundmax", float, 1.0, "Largest roundness of a source."),
        Parameter("sharpmin", float, 0.2, "Least sharpness of a source."),
        Parameter("sharpmax", float, 1.0, "Largest sharpness of a source."),
        Parameter("expmap", bool, False, "Also write a map of the exposure time.", expert=True),
        Parameter("bpixdistance", float, 5.0, "Least distance of a source from a bad pixel (pixel)."),
        Parameter(
            "override_detection", bool, False, "Take the sources from the lists that are given.", expert=True
        ),
    ),
)  # fmt: skip

EXP_COMBINE = Recipe(
    "muse_exp_combine",
    "Combine several exposures into one datacube.",
    (
        _raw("PIXTABLE_REDUCED", 2),
        _optional("OFFSET_LIST"),
        _optional("FILTER_LIST"),
        _optional("OUTPUT_WCS"),
    ),
    (*_cube("DATACUBE_FINAL", _SDP_FORMAT, "save=cube"), Product("PIXTABLE_COMBINED", "master", "save=combined")),
    (
        Parameter("save", str, "cube", "Select output product(s) to save: cube and/or combined (comma-separated)."),
        *_grid(10.0, "0.6,0.6", _SDP_FORMAT),
        _weight("exptime", "fwhm", "header", "none"),
        _FILTER,
        *_RANGE,
    ),
)

#: all recipes by their names, in the order in which data pass through them
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        BIAS,
        DARK,
        FLAT,
        WAVECAL,
        LSF,
        GEOMETRY,
        TWILIGHT,
        SCIBASIC,
        STANDARD,
        ASTROMETRY,
        CREATE_SKY,
        SCIPOST,
        EXP_ALIGN,
        EXP_COMBINE,
        APPLY_ASTROMETRY,
        CALIBRATE_FLUX,
        COMBINE_PIXTABLES,
        CORRECT_DAR,
        CORRECT_RV,
        MAKE_CUBE,
        RAMAN,
        SUBTRACT_SKY,
        SUBTRACT_SKY_SIMPLE,
        AMPL,
        ILLUM,
        LINGAIN,
        QI_MASK,
    )
}

#: recipes that run without the reference, and where their functions are; see `musedask.calib.task`
NATIVE = {
    "muse_bias": "musedask.calib.bias:muse_bias",
    "muse_dark": "musedask.calib.dark:muse_dark",
    "muse_flat": "musedask.calib.flat:muse_flat",
    "muse_wavecal": "musedask.calib.wavecal:muse_wavecal",
}


def get_recipe(name: str) -> Recipe:
    """The declaration of a recipe, by its name with or without ``muse_``.

    Raises
    ------
    InputError
        If there is no such recipe; the message names those with a similar name.
    """
    short = name.removeprefix("muse_").replace("-", "_")
    if f"muse_{short}" in RECIPES:
        return RECIPES[f"muse_{short}"]
    from difflib import get_close_matches

    shorts = [known.removeprefix("muse_") for known in RECIPES]
    near = [known for known in shorts if known.endswith(f"_{short}")]
    near += [known for known in get_close_matches(short, shorts, n=3) if known not in near]
    hint = f"did you mean muse_{' or muse_'.join(near)}?" if near else "see musedask recipe list"
    raise InputError(f"there is no recipe {name!r}; {hint}")
