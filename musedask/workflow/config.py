"""The configuration of a reduction: of this package or of MUSEreduce, as JSON, YAML or TOML.

The keys are declared in `musedask.workflow.config_sections`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from ..errors import InputError
from ..recipe import Recipe
from ..recipes import get_recipe
from .config_file import Document, KeyPath, read_document, text_keys
from .config_reading import OPTION_KEYS, Given, Reading
from .config_sections import (
    SECTIONS,
    Calibration,
    Cleanup,
    DitherCollect,
    ExpAlign,
    ExpCombine,
    Global,
    Musedask,
    SciBasic,
    SciPost,
    Section,
    Sky,
    StdFlux,
    keys_of,
)
from .esorex_options import parse_options
from .steps import STEP_RECIPES

log = logging.getLogger("musedask")


class Config(Section):
    """A checked configuration.

    Attributes
    ----------
    global_, cleanup, calibration, sci_basic, std_flux, sky, sci_post, dither_collect, exp_align, exp_combine, musedask
        Sections, with a value for every key.
    parameters : dict
        Recipe parameters by names of steps and of recipes (``muse_bias``).
    obs : dict
        What differs for observing blocks, by names or patterns; see `for_ob`.
    """

    global_: Global = Field(default_factory=Global, alias="global")
    cleanup: Cleanup = Field(default_factory=Cleanup)
    calibration: Calibration = Field(default_factory=Calibration)
    sci_basic: SciBasic = Field(default_factory=SciBasic)
    std_flux: StdFlux = Field(default_factory=StdFlux)
    sky: Sky = Field(default_factory=Sky)
    sci_post: SciPost = Field(default_factory=SciPost)
    dither_collect: DitherCollect = Field(default_factory=DitherCollect)
    exp_align: ExpAlign = Field(default_factory=ExpAlign)
    exp_combine: ExpCombine = Field(default_factory=ExpCombine)
    musedask: Musedask = Field(default_factory=Musedask)
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    obs: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)

    _given: Given = PrivateAttr(default_factory=dict)
    _folder: Path = PrivateAttr(default_factory=Path)
    _source: str = PrivateAttr(default="")
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def source(self) -> str:
        """Name of the file, empty if there is none."""
        return self._source

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, each with its place."""
        return self._warnings

    # ------------------------------------------------------------------------------------- what follows from the keys

    @property
    def raw_folders(self) -> tuple[Path, ...]:
        """Folders of raw data."""
        if self.musedask.raw:
            return self.musedask.raw
        return (self._root("raw"),)

    @property
    def reduced_folder(self) -> Path:
        """Folder of all products."""
        return self.musedask.reduced or self._root("reduced")

    @property
    def static_folders(self) -> tuple[Path, ...]:
        """Folders of static calibrations."""
        if self.global_.static_calib_path is not None:
            return (self.global_.static_calib_path,)
        if self.global_.pipeline_path is None:
            return ()
        return tuple(sorted(p for p in (self.global_.pipeline_path / "calib").glob("muse*") if p.is_dir()))

    def _root(self, name: str) -> Path:
        if self.global_.rootpath is None:
            raise InputError(f"global.rootpath: not there, expected the folder in which {name} is")
        return self.global_.rootpath / name

    @property
    def rvcorr(self) -> str:
        """``rvcorr`` of muse_scipost."""
        return (self.sci_post.rvcorr or "bary") if self.global_.withrvcorr else "none"

    # ------------------------------------------------------------------------------------- recipe parameters

    def recipe_parameters(self, step: str, recipe: str | Recipe) -> dict[str, Any]:
        """Recipe parameters that the user gave for a step: those of the recipe, options of esorex, those of the step.

        What comes later goes before.  The sections' own keys, as ``sky.fraction``, are not among them.

        Parameters
        ----------
        step : str
        recipe : str or Recipe

        Returns
        -------
        dict
            Checked values by the names of the parameters.
        """
        name = recipe.name if isinstance(recipe, Recipe) else get_recipe(recipe).name
        values = dict(self.parameters.get(name, {}))
        values |= self._options(name)
        if STEP_RECIPES.get(step) == name:
            values |= self.parameters.get(step, {})
        return values

    def _options(self, recipe: str) -> dict[str, Any]:
        if recipe not in OPTION_KEYS:
            return {}
        section, key = OPTION_KEYS[recipe]
        text = getattr(self._section(section), key)
        return parse_options(text, get_recipe(recipe))[0] if text else {}

    def _section(self, name: str) -> Section:
        return getattr(self, "global_" if name == "global" else name)

    # ------------------------------------------------------------------------------------- observing blocks

    def for_ob(self, name: str, ob_id: int | str | None = None) -> Config:
        """The configuration of an observing block or of a target.

        Patterns of `obs` come in the order in which they are written, full names after them.

        Parameters
        ----------
        name : str
            Its name.
        ob_id : int or str, optional
            Its ``OBS ID``, by which it may be called, too.
        """
        names = [name] if ob_id is None else [name, str(ob_id)]
        patterns = [p for p in self.obs if p not in names and any(fnmatchcase(n, p) for n in names)]
        given = self._given
        for pattern in [*patterns, *(n for n in reversed(names) if n in self.obs)]:
            given = _merged(given, self.obs[pattern])
        return self if given is self._given else self._with(given)

    def _with(self, given: Given) -> Config:
        config = Config.model_validate(given, context={"folder": self._folder})
        config._given, config._folder = given, self._folder
        config._source, config._warnings = self._source, self._warnings
        return config

    # ------------------------------------------------------------------------------------- as text

    def items(self) -> Iterator[tuple[str, str, Any, Any]]:
        """Section, key, value and default of all keys."""
        for section, model in SECTIONS.items():
            for key, field in model.model_fields.items():
                yield section, key, getattr(self._section(section), key), field.get_default(call_default_factory=True)

    def differences(self) -> list[tuple[str, str, Any, Any]]:
        """Keys with other values than by default: section, key, value, default."""
        return [item for item in self.items() if item[2] != item[3]]

    def canonical(self, *, full: bool = False, absolute: bool = False) -> dict[str, dict[str, Any]]:
        """Sections with canonical keys and plain values, as they are written to a file.

        Paths are as they were given, options of esorex are among the parameters.

        Parameters
        ----------
        full : bool
            All keys, not only those that were given.
        absolute : bool
            Paths from the root.
        """
        # options that differ between blocks stay texts, since one text takes the place of another as a whole
        differ = {recipe for recipe, (section, key) in OPTION_KEYS.items() for override in self.obs.values()
                  if key in override.get(section, {}) or recipe in override.get("parameters", {})}  # fmt: skip
        texts = {OPTION_KEYS[recipe] for recipe in differ}
        result = _plain_sections(self, self._given, texts, full, absolute)
        parameters = dict(self.parameters)
        for recipe in OPTION_KEYS:
            if recipe not in differ and (options := self._options(recipe)):
                parameters[recipe] = parameters.get(recipe, {}) | options
        if parameters or full:
            result["parameters"] = parameters
        obs = {}
        for name, override in self.obs.items():
            changed = self._with(_merged(self._given, override))
            obs[name] = _plain_sections(changed, override, texts, False, absolute)
            if parameters := dict(override.get("parameters", {})):
                obs[name]["parameters"] = parameters
        if obs or full:
            result["obs"] = obs
        return result


def _plain_sections(
    config: Config, given: Given, texts: set[tuple[str, str]], full: bool, absolute: bool
) -> dict[str, dict[str, Any]]:
    """Sections with plain values; options of esorex only where they are to stay texts."""
    result: dict[str, dict[str, Any]] = {}
    for section, key, value, _ in config.items():
        wanted = full or key in given.get(section, {})
        if not wanted:
            continue
        if key.startswith("esorex_kwargs") and (section, key) not in texts:
            if not full:
                continue
            value = None
        if (isinstance(value, Path) or key == "raw") and not absolute:
            value = given.get(section, {}).get(key)
        result.setdefault(section, {})[key] = plain(key, value)
    return result


def plain(key: str, value: Any) -> Any:
    """A value as it is written to a file."""
    if key == "using_specific_exposure_time":
        return False if not value else value[0] if len(value) == 1 else list(value)
    if isinstance(value, (Path, date)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain("", v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain("", v) for v in value]
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and keys of both; those above go before."""
    result = {name: dict(values) for name, values in below.items()}
    for section, values in above.items():
        known = result.setdefault(section, {})
        for key, value in values.items():
            both = section == "parameters" and isinstance(known.get(key), Mapping)
            known[key] = {**known[key], **value} if both else value
    return result


# ------------------------------------------------------------------------------------------ reading


def load_config(source: str | Path | Mapping[str, Any] | Config, strict: bool = False) -> Config:
    """Read and check a configuration.

    Parameters
    ----------
    source : path or mapping
        A file (JSON, YAML, TOML, by its suffix), or what would be in one.
    strict : bool
        Whether warnings are errors.

    Raises
    ------
    InputError
        If it cannot be read, has unknown keys or values that do not fit, or lacks what is needed.  The message tells
        all problems, each with its file, line and key.
    """
    config = source if isinstance(source, Config) else read_config(source, strict=strict)
    for warning in config.warnings:
        log.warning("%s", warning)
    return config


def read_config(source: str | Path | Mapping[str, Any], *, strict: bool = False, complete: bool = True) -> Config:
    """As `load_config`, without printing the warnings.

    Parameters
    ----------
    complete : bool
        Whether it must have all that a reduction needs.
    """
    if isinstance(source, Mapping):
        document = Document("", text_keys(source), Path.cwd())
    else:
        document = read_document(Path(source))
    reading = Reading(document)
    given = reading.sections(document.data)
    context = {"folder": document.folder}
    config = _validated(given, context, reading)
    overrides: dict[str, Given] = {}
    obs = document.data.get("obs") or {}
    if not isinstance(obs, Mapping):
        reading.problem(("obs",), f"{obs!r} found, expected names of observing blocks with sections")
        obs = {}
    for name, values in obs.items():
        if not isinstance(values, Mapping):
            reading.problem(("obs", name), f"{values!r} found, expected sections with keys")
            continue
        overrides[str(name)] = override = reading.sections(values, ("obs", name))
        if config is not None:
            changed = _validated(_merged(given, override), context, reading, ("obs", name), override)
            if changed is not None:
                _check(changed, override, reading, ("obs", name))
    if config is not None:
        _check(config, given, reading)
        _check_rules(config, reading)
        if complete:
            _check_complete(config, reading)
    reading.raise_problems(strict=strict)
    assert config is not None
    given["obs"] = overrides  # type: ignore[assignment]
    config = Config.model_validate(given, context=context)
    config._given, config._folder = given, document.folder
    config._source, config._warnings = document.name, tuple(dict.fromkeys(reading.warnings))
    return config


def _validated(
    given: Mapping[str, Any], context: dict[str, Any], reading: Reading, prefix: KeyPath = (), only: Given | None = None
) -> Config | None:
    """The models of the sections; None if values do not fit."""
    try:
        return Config.model_validate(given, context=context)
    except ValidationError as error:
        reading.invalid(error, prefix)
        return None


def _check(config: Config, given: Given, reading: Reading, prefix: KeyPath = ()) -> None:
    """What keys say together."""
    for recipe, (section, key) in OPTION_KEYS.items():
        text = getattr(config._section(section), key)
        if not text or key not in given.get(section, {}):
            continue
        try:
            for warning in parse_options(text, get_recipe(recipe))[1]:
                reading.warn((*prefix, section, key), warning)
        except InputError as error:
            reading.problem((*prefix, section, key), str(error))
            continue
        if section == "calibration" and config.global_.using_ESO_calibration:
            reading.warn((*prefix, section, key), "no effect where masters of the archive are used, as "
                         "global.using_ESO_calibration wants it")  # fmt: skip
    if config.exp_align.srcmin > config.exp_align.srcmax:
        reading.problem((*prefix, "exp_align", "srcmin"), f"{config.exp_align.srcmin} found, expected at most srcmax, "
                        f"{config.exp_align.srcmax}")  # fmt: skip
    if config.sky.modified and config.sky.method != "subtract-model":
        reading.warn((*prefix, "sky", "method"), f"{config.sky.method} found, which fits the lines anew; with "
                     "sky.modified, subtract-model is right")  # fmt: skip
    if config.sci_post.raman and config.global_.mode == "WFM-NOAO":
        reading.warn((*prefix, "sci_post", "raman"), "no effect without adaptive optics")
    if not prefix and config.global_.dither_multiple_OBs and not config.global_.OB_list:
        reading.problem(("global", "dither_multiple_OBs"), "true found, but global.OB_list is empty, expected the "
                        "observing blocks to combine")  # fmt: skip
    for section, model in SECTIONS.items():
        for key, declared in keys_of(model).items():
            if declared["sets"] is None or key not in given.get(section, {}):
                continue
            step, recipe, parameter = declared["sets"]
            value = getattr(config._section(section), key)
            try:
                other = config.recipe_parameters(step, recipe).get(parameter, value)
            except InputError:
                continue
            if other != value:
                reading.warn((*prefix, section, key), f"{value} found, but {parameter} of {recipe} is given as "
                             f"{other}, which goes before")  # fmt: skip


def _check_rules(config: Config, reading: Reading) -> None:
    """Rules of the association; those that have a key elsewhere are said there."""
    if not config.musedask.association:
        return
    from .rules import Rules

    elsewhere = {"use_darks": "calibration.dark", "sky_field": "sky.sky_field", "astrometry": "musedask.astrometry"}
    for name, value in config.musedask.association.items():
        path = ("musedask", "association", name)
        if name in elsewhere:
            reading.problem(path, f"is the key {elsewhere[name]}, expected there")
            continue
        try:
            Rules.from_mapping({name: value})
        except InputError as error:
            reading.problem(path, str(error).removeprefix(f"association.{name}").removeprefix(": "))


def _check_complete(config: Config, reading: Reading) -> None:
    if config.global_.rootpath is None and not (config.musedask.raw and config.musedask.reduced):
        reading.problem(("global", "rootpath"), "not there, expected the parent of the folders raw and reduced")
    if config.global_.pipeline_path is None and config.global_.static_calib_path is None:
        reading.problem(("global", "pipeline_path"), "not there, expected the folder of the pipeline, or that of "
                        "static calibrations as static_calib_path")  # fmt: skip
