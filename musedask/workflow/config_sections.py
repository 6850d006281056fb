"""The keys of a configuration: type, range, default, other spellings, effect.  Each is declared here and nowhere else.

Sections and keys of MUSEreduce keep their names; those of this package are in the section ``musedask``, and a few in
the sections ``sky`` and ``sci_post``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .config_values import (
    Autocalib,
    Engine,
    Engines,
    Folder,
    Folders,
    Fraction,
    Ifus,
    NumbersText,
    Options,
    Saved,
    Size,
    Times,
    Words,
)

#: files of the tests that show what keys do
_GRAPH, _REDUCE, _RUN = (f"tests/workflow/test_{name}.py" for name in ("graph", "reduce", "run"))


def key(
    default: Any,
    effect: str,
    *,
    acts: str,
    test: str = "",
    aliases: Sequence[str] = (),
    sets: tuple[str, str, str] | None = None,
    per_ob: bool = True,
    values: str = "",
    **limits: Any,
) -> Any:
    """Declare a key.

    Parameters
    ----------
    default : object
        A class is called for it.
    effect : str
        What it does.
    acts : str
        Where it acts: steps, recipe parameters.
    test : str
        Test that shows it, as ``tests/workflow/test_graph.py::test_name``.
    aliases : sequence of str
        Other spellings, in the same section or with a section before them.
    sets : (str, str, str) or None
        Step, recipe and parameter of the recipe that get the value as it is.
    per_ob : bool
        Whether it may differ between observing blocks.
    values : str
        What a value may be, in words, where the type does not tell.
    **limits
        Range, as of `pydantic.Field`.
    """
    extra: Any = {"acts": acts, "test": test, "aliases": list(aliases), "sets": sets, "per_ob": per_ob,
                  "values": values}  # fmt: skip
    if isinstance(default, type):
        return Field(default_factory=default, description=effect, json_schema_extra=extra, **limits)
    return Field(default, description=effect, json_schema_extra=extra, **limits)


def _options_key(recipe: str) -> Any:
    return key(
        None,
        f"More options of `muse_{recipe}`, as on the command line of esorex.",
        acts=f"all parameters of muse_{recipe}",
        test=f"{_GRAPH}::test_options_of_esorex",
    )


def _sof_key(steps: str) -> Any:
    return key(
        True, "Write the sets of frames; false: use those that are there, edited by the user.", acts=steps,
        test=f"{_REDUCE}::test_edited_sets_of_frames",
    )  # fmt: skip


def _execute_key(steps: str) -> Any:
    return key(
        True, "Do the step; false: take its products as they are from an earlier run.", acts=steps,
        test=f"{_GRAPH}::test_execute_switches", per_ob=False,
    )  # fmt: skip


class Section(BaseModel):
    """Some keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


# ------------------------------------------------------------------------------------------ sections


class Global(Section):
    """What concerns the whole reduction."""

    pipeline_path: Folder = key(
        None,
        "Folder of the installed pipeline; the static calibrations are taken from its `calib/muse*/`. Not needed with "
        "`static_calib_path`.",
        acts="static calibrations", test=f"{_GRAPH}::test_renewed_statics",
        per_ob=False,
    )
    static_calib_path: Folder = key(
        None, "Folder of the static calibrations, in place of that of the pipeline.", acts="static calibrations",
        test=f"{_GRAPH}::test_renewed_statics",
        per_ob=False,
    )
    rootpath: Folder = key(
        None, "Parent of the folders `raw` and `reduced`.", acts="all files that are read or written",
        test=f"{_GRAPH}::test_folders", per_ob=False
    )
    n_CPU: int = key(-1, "Number of cores to use; -1: all.", acts="all recipes: threads and calls at a time",
                     test=f"{_GRAPH}::test_settings_of_a_run",
                     per_ob=False, ge=-1, values="-1, 1 or more")  # fmt: skip
    mode: Literal["WFM-NOAO", "WFM-AO", "NFM-AO"] | None = key(
        None, "Reduce the exposures of this mode only; null: each in the mode of its header (`INS MODE`).",
        acts="sorting: choice of exposures", test=f"{_GRAPH}::test_mode",
        per_ob=False,
    )  # fmt: skip
    withrvcorr: bool = key(
        True,
        "Correct wavelengths for the motion of the Earth. false: no such correction and no sky subtraction, products "
        "in `withsky_withoutrvcorr`.",
        acts="sci_post: muse_scipost rvcorr, skymethod; dither_collect",
        test=f"{_GRAPH}::test_without_correction_of_velocity",
    )
    auto_sort_data: bool = key(
        True,
        "Sort the raw data and write the lists `*_SCI.list` and so on. false: take calibrations from the lists that "
        "are there, edited by the user; exposures without one are not reduced.",
        acts="sorting", test=f"{_REDUCE}::test_edited_lists",
        per_ob=False,
    )
    auto_create_OB_folders: bool = key(
        True,
        "Find the observing blocks in the headers and make their folders, of which none is ever deleted. false: only "
        "those that have a folder already or are in `OB_list`.",
        acts="sorting: choice of observing blocks", test=f"{_GRAPH}::test_blocks_that_have_folders",
        aliases=("auto_create_OB_list",),
        per_ob=False,
    )
    using_specific_exposure_time: Times = key(
        (), "Reduce only exposures of this time or these times [s]; false: all.", acts="sorting: choice of exposures",
        test=f"{_GRAPH}::test_exposure_time",
        values="number, list of numbers or false",
        per_ob=False,
    )  # fmt: skip
    using_ESO_calibration: bool = key(
        True,
        "Take master calibrations of the archive where there are any. false: make all from raw calibrations.",
        acts="sorting: bias, dark, flat, wavecal, lsf, twilight", test=f"{_GRAPH}::test_masters_of_the_archive",
        aliases=(
            "using_ESO_Calibration",
            "calibration.using_ESO_calibration",
            "calibration.using_ESO_Calibration",
        ),
        per_ob=False,
    )
    renew_statics: bool = key(
        False, "Look for static calibrations anew; false: keep those of the last run while they are there.",
        acts="static calibrations",
        test=f"{_GRAPH}::test_renewed_statics",
        aliases=("calibration.renew_statics",), per_ob=False,
    )  # fmt: skip
    dither_multiple_OBs: bool = key(
        False, "Combine the exposures of all blocks of `OB_list` as one target.",
        acts="dither_collect, exp_align, exp_combine",
        test=f"{_GRAPH}::test_several_blocks_into_one_cube", per_ob=False,
    )  # fmt: skip
    OB_list: Words = key(
        (), "Observing blocks to reduce: names, `OBS ID` or patterns; empty: all.",
        acts="sorting: choice of observing blocks",
        test=f"{_GRAPH}::test_list_of_blocks", aliases=("OB",), per_ob=False,
    )  # fmt: skip
    exp_list: Words = key(
        (),
        "Exposures to reduce and combine, as `RADEC_EXPTIME_ROTANGLE_COUNTER` or `OB/RADEC_...`; empty: all.",
        acts="dither_collect, exp_align, exp_combine", test=f"{_GRAPH}::test_list_of_exposures",
        aliases=("dither_collect.user_list", "dither_collect.exp_list"),
        per_ob=False,
    )

    @field_validator("n_CPU")
    @classmethod
    def _not_none(cls, value: int) -> int:
        if value == 0:
            raise ValueError("expected -1, 1 or more")
        return value


class Cleanup(Section):
    """What is removed after a run.  Raw data and final cubes never are."""

    execute: bool = key(False, "Clean up at the end of the run.", acts="cleanup",
                        test=f"{_REDUCE}::test_cleanup", per_ob=False)
    include_std: bool = key(False, "Remove the folders of standard stars.", acts="cleanup",
                            test=f"{_REDUCE}::test_cleanup", per_ob=False)
    include_combined: bool = key(False, "Remove the folders of combined exposures.", acts="cleanup",
                                 test=f"{_REDUCE}::test_cleanup", per_ob=False)
    include_calibrations: bool = key(
        False, "Remove calibrations and intermediate products.", acts="cleanup",
        test=f"{_REDUCE}::test_cleanup", per_ob=False
    )


class Calibration(Section):
    """Calibrations from raw data."""

    execute: bool = _execute_key("bias, dark, flat, wavecal, lsf, twilight")
    dark: bool = key(False, "Reduce dark frames and use them.", acts="dark; all recipes that take MASTER_DARK",
                     test=f"{_GRAPH}::test_darks")
    esorex_kwargs_bias: Options = _options_key("bias")
    esorex_kwargs_dark: Options = _options_key("dark")
    esorex_kwargs_flat: Options = _options_key("flat")
    esorex_kwargs_wavecal: Options = _options_key("wavecal")
    esorex_kwargs_lsf: Options = _options_key("lsf")
    esorex_kwargs_twilight: Options = _options_key("twilight")
    create_sof: bool = _sof_key("bias, dark, flat, wavecal, lsf, twilight")


class SciBasic(Section):
    """Removal of the instrument's signature."""

    execute: bool = _execute_key("sci_basic, std_basic")
    execute_std: bool = key(
        True, "Reduce standard stars; false: take their products from an earlier run.", acts="std_basic",
        test=f"{_GRAPH}::test_execute_switches",
        per_ob=False,
    )
    execute_sci: bool = key(
        True, "Reduce the exposures of target and sky; false: take their products from an earlier run.",
        acts="sci_basic", test=f"{_GRAPH}::test_execute_switches",
        per_ob=False,
    )  # fmt: skip
    skyreject: NumbersText = key(
        "15.,15.,1",
        "Rejection limits, high and low, and iterations of the fits of sky lines.",
        acts="sci_basic: muse_scibasic skyreject", test=f"{_GRAPH}::test_keys_that_are_parameters",
        aliases=("sky_reject",),
        sets=("sci_basic", "muse_scibasic", "skyreject"),
    )
    skylines: NumbersText = key(
        "5577.339,6300.304",
        "Sky lines with which the wavelengths are shifted [Angstrom].",
        acts="sci_basic: muse_scibasic skylines", test=f"{_GRAPH}::test_keys_that_are_parameters",
        sets=("sci_basic", "muse_scibasic", "skylines"),
    )
    esorex_kwargs: Options = _options_key("scibasic")
    create_sof: bool = _sof_key("sci_basic, std_basic")


class StdFlux(Section):
    """Response from standard stars."""

    execute: bool = _execute_key("std_flux")
    esorex_kwargs: Options = _options_key("standard")
    create_sof: bool = _sof_key("std_flux")


class Sky(Section):
    """Spectrum of the sky."""

    execute: bool = _execute_key("sky")
    modified: bool = key(
        False,
        "Modified subtraction for fields full of nebular emission: lines are fitted without a continuum, and only "
        "those of `kept_species` are subtracted.",
        acts="sky", test=f"{_REDUCE}::test_modified_sky",
    )
    sky_field: Literal["auto", "object"] = key(
        "auto", "`auto`: the sky exposure nearest in time, else the exposure itself; `object`: the exposure itself.",
        acts="sky: its frames", test=f"{_GRAPH}::test_sky_of_an_exposure", aliases=("skyfield",),
    )  # fmt: skip
    fraction: Fraction = key(
        0.05, "Fraction of the image that is taken as sky.", acts="sky: muse_create_sky fraction",
        test=f"{_GRAPH}::test_keys_that_are_parameters",
        sets=("sky", "muse_create_sky", "fraction"),
    )  # fmt: skip
    ignore: Fraction = key(
        0.05, "Fraction of the image, the darkest, that is ignored.", acts="sky: muse_create_sky ignore",
        test=f"{_GRAPH}::test_keys_that_are_parameters",
        sets=("sky", "muse_create_sky", "ignore"),
    )  # fmt: skip
    method: Literal["model", "subtract-model", "simple", "none"] = key(
        "model", "How the sky is subtracted; with `modified`, `subtract-model` is right.",
        acts="sci_post: muse_scipost skymethod",
        test=f"{_GRAPH}::test_keys_that_are_parameters", aliases=("skymethod",),
        sets=("sci_post", "muse_scipost", "skymethod"),
    )  # fmt: skip
    kept_species: Words = key(
        ("O2", "OH"), "With `modified`: species whose lines are subtracted.", acts="sky: SKY_LINES of the second pass",
        test=f"{_GRAPH}::test_modified_sky"
    )
    keep_continuum: bool = key(
        False, "With `modified`: subtract the continuum all the same.", acts="sky: SKY_CONTINUUM of the second pass",
        test=f"{_GRAPH}::test_modified_sky"
    )
    protect: tuple[tuple[float, float], ...] = key(
        (), "With `modified`: wavelength ranges of which no line is subtracted [Angstrom].",
        acts="sky: SKY_LINES of the second pass", test=f"{_REDUCE}::test_modified_sky",
    )  # fmt: skip
    esorex_kwargs: Options = _options_key("create_sky")
    create_sof: bool = _sof_key("sky")

    @field_validator("protect")
    @classmethod
    def _ranges(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for low, high in value:
            if not 0 < low < high:
                raise ValueError(f"{low:g}, {high:g}: expected a smaller and a larger wavelength")
        return value


class SciPost(Section):
    """From pixel tables to the cube of an exposure."""

    execute: bool = _execute_key("sci_post")
    autocalib: Autocalib = key(
        "none",
        "Calibration of slices with the sky: `deepfield`, or `user` with AUTOCAL_FACTORS.fits in the folder of the "
        "exposure.",
        acts="sci_post: muse_scipost autocalib, its frames", test=f"{_REDUCE}::test_autocalibration_of_the_user",
        sets=("sci_post", "muse_scipost", "autocalib"),
    )  # fmt: skip
    subtract_sky: bool = key(
        True, "Subtract the sky; false: products are in `withsky_withrvcorr`.",
        acts="sci_post: muse_scipost skymethod, its frames; dither_collect",
        test=f"{_GRAPH}::test_without_sky_subtraction",
    )  # fmt: skip
    raman: bool = key(
        False, "Remove the Raman lines of the laser guide stars, in adaptive modes.", acts="sci_post: RAMAN_LINES",
        test=f"{_GRAPH}::test_raman"
    )
    rvcorr: Literal["bary", "helio", "geo", "none"] | None = key(
        None, "Kind of the correction for the motion of the Earth; `none` is `global.withrvcorr` false; null: `bary`.",
        acts="sci_post: muse_scipost rvcorr", test=f"{_GRAPH}::test_keys_that_are_parameters",
    )  # fmt: skip
    esorex_kwargs: Options = _options_key("scipost")
    create_sof: bool = _sof_key("sci_post")


class DitherCollect(Section):
    """Products of the exposures of a pointing in one folder."""

    execute: bool = _execute_key("dither_collect")


class ExpAlign(Section):
    """Offsets between exposures."""

    execute: bool = _execute_key("exp_align")
    srcmin: int = key(
        5, "Least number of sources.", acts="exp_align: muse_exp_align srcmin",
        test=f"{_GRAPH}::test_keys_that_are_parameters", aliases=("scrmin",),
        sets=("exp_align", "muse_exp_align", "srcmin"), ge=0,
    )  # fmt: skip
    srcmax: int = key(
        80, "Largest number of sources.", acts="exp_align: muse_exp_align srcmax",
        test=f"{_GRAPH}::test_keys_that_are_parameters", aliases=("scrmax",),
        sets=("exp_align", "muse_exp_align", "srcmax"), ge=0,
    )  # fmt: skip
    esorex_kwargs: Options = _options_key("exp_align")
    create_sof: bool = _sof_key("exp_align")


class ExpCombine(Section):
    """The cube of all exposures of a pointing."""

    execute: bool = _execute_key("exp_combine")
    weight: Literal["exptime", "fwhm", "header", "none"] = key(
        "exptime", "How exposures are weighted.", acts="exp_combine: muse_exp_combine weight",
        test=f"{_GRAPH}::test_keys_that_are_parameters",
        sets=("exp_combine", "muse_exp_combine", "weight"),
    )  # fmt: skip
    esorex_kwargs: Options = _options_key("exp_combine")
    create_sof: bool = _sof_key("exp_combine")


class Musedask(Section):
    """What MUSEreduce does not have."""

    engine: Engine = key(
        "auto", "What recipes run on: the reference pipeline, or native; `auto`: native where there is a native one.",
        acts="all recipes", test=f"{_GRAPH}::test_engine",
        per_ob=False,
    )  # fmt: skip
    engines: Engines = key(
        dict, "Other engines for some steps or recipes, as `{flat: esorex, muse_wavecal: native}`; a step goes before "
        "its recipe.", acts="all recipes; exp_combine: `musedask combine` unless esorex",
        test=f"{_GRAPH}::test_engine_of_a_step", per_ob=False, values="steps or recipes, each with an engine",
    )  # fmt: skip
    raw: Folders = key(
        None, "Folders of raw data and archive masters, with all below them; null: `raw` in `rootpath`.",
        acts="sorting", test=f"{_GRAPH}::test_folders", per_ob=False,
    )  # fmt: skip
    reduced: Folder = key(
        None, "Folder of the products; null: `reduced` in `rootpath`.", acts="all files that are written",
        test=f"{_GRAPH}::test_folders", per_ob=False
    )
    ifus: Ifus = key(None, "IFUs to reduce, as `1-12,24` or a list; null: all there are.", acts="all recipes",
                     test=f"{_GRAPH}::test_ifus",
                      values="1 to 24 or null", per_ob=False)  # fmt: skip
    cluster: str | None = key(
        None, "Where it runs: `local[:N]`, `tcp://...`, a batch system or a file that describes one; null: threads.",
        acts="all steps", test=f"{_REDUCE}::test_commands", per_ob=False,
    )  # fmt: skip
    n_workers: int | None = key(None, "Calls at a time without a cluster; null: by cores and memory.",
                                acts="all steps",
        test=f"{_GRAPH}::test_settings_of_a_run", per_ob=False, ge=1)  # fmt: skip
    threads: int | None = key(None, "Threads of a call; null: by `n_CPU` and the calls at a time.", acts="all recipes",
                              test=f"{_REDUCE}::test_how_calls_run",
                              per_ob=False, ge=1)  # fmt: skip
    memory_limit: Size = key(None, "Memory for all tasks together, as `16GB`; null: 0.6 of what is free.",
                             acts="all steps",
        test=f"{_RUN}::test_memory_is_not_exceeded", per_ob=False, values="size or null")  # fmt: skip
    timeout: float | None = key(None, "Longest time of a call [s]; null: none.", acts="all recipes",
                                test=f"{_REDUCE}::test_how_calls_run", gt=0, per_ob=False)
    esorex: str = key("esorex", "Name or path of esorex.", acts="all recipes of the reference",
                      test=f"{_REDUCE}::test_how_calls_run", per_ob=False)
    scratch: Folder = key(
        None, "Where calls work; null: next to their products.", acts="all recipes",
        test=f"{_REDUCE}::test_how_calls_run", per_ob=False
    )
    merge: bool = key(False, "Also put the products of all IFUs into one file of each kind.",
                      acts="bias, dark, flat, wavecal, lsf, sci_basic",
        test=f"{_REDUCE}::test_copies_and_merged_products")  # fmt: skip
    collect: Literal["link", "copy"] = key(
        "link", "How products of exposures get into the folder of their pointing.", acts="dither_collect",
        test=f"{_REDUCE}::test_copies_and_merged_products"
    )
    output: Literal["fits", "zarr", "both"] = key("fits", "Form of combined cubes.", acts="exp_combine",
                                                  test=f"{_GRAPH}::test_form_of_cubes")
    pointing_tolerance: float = key(
        30.0, "Exposures closer than this to another one of a pointing belong to it [arcsec].",
        acts="dither_collect: which exposures are combined", test=f"{_GRAPH}::test_pointing_tolerance", gt=0,
        per_ob=False,
    )  # fmt: skip
    targets: dict[str, Words] = key(
        dict, "Targets, each with the observing blocks (names, `OBS ID` or patterns) that are combined for it.",
        acts="dither_collect, exp_align, exp_combine", test=f"{_GRAPH}::test_targets", per_ob=False,
    )  # fmt: skip
    on_failed_ifu: Literal["stop", "drop"] = key(
        "stop", "What becomes of an exposure without one of its IFUs: nothing, or a cube without it.",
        acts="sci_basic, sci_post", test=f"{_REDUCE}::test_without_an_ifu",
        per_ob=False,
    )  # fmt: skip
    astrometry: Literal["auto", "static", "archive", "own"] = key(
        "auto",
        "Which ASTROMETRY_WCS: the static one, that of the archive, or one from exposures of an astrometric field; "
        "`auto`: the one that goes with the geometry.",
        acts="astrometry, sci_post", test=f"{_GRAPH}::test_astrometry",
        per_ob=False,
    )
    save: Saved = key(
        ("cube", "skymodel", "individual", "raman", "autocal"), "Products of `muse_scipost`.",
        acts="sci_post: muse_scipost save", test=f"{_GRAPH}::test_keys_that_are_parameters",
    )  # fmt: skip
    association: dict[str, Any] = key(
        dict, "Rules by which calibrations are chosen; the page on configurations tells them.", acts="sorting",
        test=f"{_GRAPH}::test_rules_of_the_association",
        per_ob=False,
    )  # fmt: skip


def keys_of(section: type[Section]) -> Mapping[str, Mapping[str, Any]]:
    """Keys of a section with what was declared of them beyond type and default."""
    found = {}
    for name, field in section.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        found[name] = field.json_schema_extra
    return found


#: sections of a configuration, in the order of the template
SECTIONS: dict[str, type[Section]] = {
    "global": Global,
    "cleanup": Cleanup,
    "calibration": Calibration,
    "sci_basic": SciBasic,
    "std_flux": StdFlux,
    "sky": Sky,
    "sci_post": SciPost,
    "dither_collect": DitherCollect,
    "exp_align": ExpAlign,
    "exp_combine": ExpCombine,
    "musedask": Musedask,
}


def aliases() -> dict[tuple[str, str], tuple[str, str]]:
    """Section and key of every other spelling, with those that it stands for."""
    found = {}
    for section, model in SECTIONS.items():
        for name, declared in keys_of(model).items():
            for alias in declared["aliases"]:
                other, dot, short = alias.rpartition(".")
                found[(other if dot else section, short)] = (section, name)
    return found
