"""From what goes with what to the steps of a reduction: recipes, sets of frames, folders, parameters.

The order of the steps, their frames and options are those of MUSEreduce, with what its users ask for; where
calibrations of several nights or two standards belong to one observing block, each gets a folder of its own, and what
several blocks share is made once and linked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calib.frames import ifus_of
from ..errors import InputError
from ..io.sof import Frame, read_sof
from ..recipe import Recipe
from ..recipes import get_recipe
from .names import safe_name
from .steps import STEP_RECIPES, STEPS, Graph, Ref, Step

if TYPE_CHECKING:
    from .associate import Associations, Choice, Group
    from .classify import RawFile
    from .config import Config

log = logging.getLogger("musedask")

#: which step makes a calibration
MADE_BY: Mapping[str, str] = {
    "MASTER_BIAS": "bias", "MASTER_DARK": "dark", "MASTER_FLAT": "flat", "TRACE_TABLE": "flat",
    "WAVECAL_TABLE": "wavecal", "LSF_PROFILE": "lsf", "TWILIGHT_CUBE": "twilight", "STD_RESPONSE": "std_flux",
    "STD_TELLURIC": "std_flux", "ASTROMETRY_WCS": "astrometry",
}  # fmt: skip
#: calibrations that a step does without, although the recipe would take them
_WITHOUT: Mapping[str, tuple[str, ...]] = {"wavecal": ("MASTER_FLAT",)}
#: name of the set of frames of a step
_STEMS: Mapping[str, str] = {
    "sci_basic": "sci_basic_object", "std_basic": "sci_basic_std", "sci_post": "scipost",
    "astrometry": "astrometry",
}  # fmt: skip
_CALIBRATIONS = ("bias", "dark", "flat", "wavecal", "lsf", "twilight")
#: suffixes of the products of muse_scipost, and the folders in which they are collected
SUFFIXES: Mapping[str, str] = {
    "_wosky": "withoutsky_withrvcorr", "_wsky": "withsky_withrvcorr", "_wskynorvcorr": "withsky_withoutrvcorr",
}  # fmt: skip
#: products of muse_scipost that are combined later
_COLLECTED = ("DATACUBE_FINAL", "IMAGE_FOV", "PIXTABLE_REDUCED")


@dataclass(frozen=True)
class Exposure:
    """A science or sky exposure.

    Attributes
    ----------
    id : str
        Name of its folder.
    ob : str
        Folder of its observing block.
    group : Group
        The raw frame.
    """

    id: str
    ob: str
    group: Group


@dataclass(frozen=True)
class Pointing:
    """Exposures that are combined.

    Attributes
    ----------
    name : str
        Of its folder.
    parent : str
        Folder of the observing block or of the target that it is in.
    exposures : tuple of Exposure
    collected : tuple of str
        Of each exposure, what comes after the category in the names of its collected products.
    """

    name: str
    parent: str
    exposures: tuple[Exposure, ...]
    collected: tuple[str, ...]


def build_graph(
    associations: Associations,
    exposures: Sequence[Exposure],
    pointings: Sequence[Pointing],
    config: Config,
    reduced: Path,
    *,
    engine: str = "auto",
    first: str | None = None,
    last: str | None = None,
    ifus: Iterable[int] | None = None,
) -> Graph:
    """The steps of a reduction.

    Parameters
    ----------
    associations : Associations
    exposures : sequence of Exposure
        Science exposures to be reduced, and the exposures of sky that they need.
    pointings : sequence of Pointing
    config : Config
    reduced : Path
        Folder of the reduction.
    engine : {"auto", "esorex", "native"}
        Of the steps for which the configuration names none.  Recipes that are not native run on esorex in any case.
    first, last : str, optional
        Steps from and to which it goes; what comes before must be there.
    ifus : iterable of int, optional
        Default: those of the raw frames.

    Returns
    -------
    Graph

    Raises
    ------
    InputError
        If a step is unknown, or no exposure has all calibrations that it cannot do without; if some have, the others
        are in `Graph.refused`.
    """
    builder = _Builder(associations, exposures, config, reduced, engine, ifus)
    builder.active = wanted_steps(config, first, last)
    for exposure in exposures:
        builder.try_exposure(exposure)
    refused = builder.graph.refused
    if refused and all(_label(e) in refused for e in exposures if e.group.tag == "OBJECT"):
        raise InputError("\n".join(dict.fromkeys(refused.values())))
    for pointing in pointings:
        lost = [_label(e) for e in pointing.exposures if _label(e) in refused]
        if lost:
            refused[f"{pointing.parent}/{pointing.name}"] = f"for want of {', '.join(lost)}"
        else:
            builder.pointing(pointing)
    return builder.graph


def _label(exposure: Exposure) -> str:
    return f"{exposure.ob}/{exposure.id}"


def wanted_steps(config: Config, first: str | None, last: str | None) -> frozenset[str]:
    """Steps that are to be done by the switches of a configuration and the range that was asked for."""
    for name in (first, last):
        if name is not None and name not in STEPS:
            raise InputError(f"step {name!r} found, expected one of {', '.join(STEPS)}")
    low = STEPS.index(first) if first else 0
    high = STEPS.index(last) if last else len(STEPS) - 1
    if low > high:
        raise InputError(f"steps from {first} to {last} found, but {last} comes first: {', '.join(STEPS)}")
    switches = {
        **dict.fromkeys(_CALIBRATIONS, config.calibration.execute),
        "sci_basic": config.sci_basic.execute and config.sci_basic.execute_sci,
        "std_basic": config.sci_basic.execute and config.sci_basic.execute_std,
        "std_flux": config.std_flux.execute,
        "astrometry": config.calibration.execute,
        "sky": config.sky.execute,
        "sci_post": config.sci_post.execute,
        "dither_collect": config.dither_collect.execute,
        "exp_align": config.exp_align.execute,
        "exp_combine": config.exp_combine.execute,
    }
    return frozenset(name for name in STEPS[low : high + 1] if switches[name])


class _Builder:
    """Makes steps as they are asked for, each once."""

    def __init__(
        self,
        associations: Associations,
        exposures: Sequence[Exposure],
        config: Config,
        reduced: Path,
        engine: str,
        ifus: Iterable[int] | None,
    ) -> None:
        self.graph = Graph()
        self.active: frozenset[str] = frozenset(STEPS)
        self._associations = associations
        self._config = config
        self._reduced = reduced
        self._engine = engine
        self._ifus = tuple(ifus) if ifus is not None else None
        self._made: dict[tuple[Any, ...], Step] = {}
        self._keys: dict[tuple[str, str, str], tuple[Any, ...]] = {}
        self._linked: set[tuple[str, str]] = set()
        self._by_group = {e.group.id: e for e in exposures}
        self._nights: dict[Path, date] = {}
        self._night: date = date.min
        self._numbers: dict[str, tuple[int, ...]] = {}
        self._configs: dict[str, Config] = {e.ob: config_of(config, e.group.frames[0], e.ob) for e in exposures}

    def config(self, ob: str) -> Config:
        """Configuration of an observing block."""
        return self._configs[ob]

    # --- calibrations

    def _choice(self, group: Group, category: str) -> Choice | None:
        return self._associations.choices.get(group.id, {}).get(category)

    def refs(self, group: Group, category: str, ob: str, chain: str) -> list[Ref]:
        """Where a calibration of a group comes from; empty if there is none."""
        choice = self._choice(group, category)
        if choice is None:
            return []
        if choice.group is None:
            return [Ref(category, path=file.path) for file in choice.files]
        if category not in MADE_BY:
            return [Ref(category, path=file.path) for file in choice.group.frames]
        step = self.calibration(MADE_BY[category], choice.group, ob, chain)
        return [Ref(category, step=step.id)]

    def calibration(self, name: str, group: Group, ob: str, chain: str) -> Step:
        """The step that makes calibrations of a group, in the folder of an observing block."""
        config = self.config(ob)
        chain = {"twilight": "TWILIGHT", "dark": "DARK"}.get(name, chain)
        values = self.values(name, group, config)
        key = self._key(name, group, ob)
        step = self._made.get(key)
        if step is not None:
            self._link(step, ob, chain)
            return step
        if name in ("std_flux", "astrometry"):
            return self._of_star(name, key, group, ob, values)
        recipe = get_recipe(STEP_RECIPES[name])
        inputs = [Ref(group.tag, path=file.path) for file in group.frames]
        inputs += self._calibrations(name, group, ob, chain)
        step = self._add(
            name, self._folder(name, ob, chain), inputs, values, ob=ob, ifus=self.ifus(recipe, group, inputs)
        )
        self._made[key] = step
        return step

    def _key(self, name: str, group: Group, ob: str) -> tuple[Any, ...]:
        """Equal for what may be shared: the same frames and parameters, here and in all that it is made with."""
        place = (name, group.id, ob)
        if place not in self._keys:
            config, needs = self.config(ob), []
            names = {"std_flux": ("std_basic", name), "astrometry": ("std_basic", name)}.get(name, (name,))
            for tag in dict.fromkeys(i.tag for n in names for i in get_recipe(STEP_RECIPES[n]).inputs):
                choice = self._choice(group, tag)
                if tag in _WITHOUT.get(name, ()) or (tag == "MASTER_DARK" and not config.calibration.dark):
                    continue
                if choice is None and name == "lsf" and tag == "WAVECAL_TABLE":
                    needs.append(self._key("wavecal", group, ob))
                elif choice is not None and choice.group is not None and tag in MADE_BY:
                    needs.append((tag, self._key(MADE_BY[tag], choice.group, ob)))
            values = [(n, sorted((k, str(v)) for k, v in self.values(n, group, config).items())) for n in names]
            self._keys[place] = (name, group.id, str(values), tuple(needs))
        return self._keys[place]

    def _calibrations(self, name: str, group: Group, ob: str, chain: str) -> list[Ref]:
        """What a step needs beside its raw frames."""
        recipe, found = get_recipe(STEP_RECIPES[name]), []
        without = _WITHOUT.get(name, ())
        for i in recipe.inputs:
            if i.tag == group.tag or i.tag in without or i.tag == "SKY":
                continue
            if i.tag == "MASTER_DARK" and not self.config(ob).calibration.dark:
                continue
            refs = self.refs(group, i.tag, ob, chain)
            if not refs and name == "lsf" and i.tag == "WAVECAL_TABLE":
                # of the very arcs
                refs = [Ref(i.tag, step=self.calibration("wavecal", group, ob, chain).id)]
            if not refs and i.minimum and i.group == "calib" and name in self.active:
                self._missing(name, group, i.tag)
            found += refs
        return found

    def _missing(self, name: str, group: Group, category: str) -> None:
        reasons = [m.reason for m in self._associations.missing if (m.group, m.category) == (group.id, category)]
        names = ", ".join(f.path.name for f in group.frames[:2]) + (", ..." if len(group.frames) > 2 else "")
        raise InputError(
            f"{names}: no {category} found, which {STEP_RECIPES[name]} needs" + (f": {reasons[0]}" if reasons else "")
        )

    def _of_star(self, name: str, key: tuple[Any, ...], group: Group, ob: str, values: dict[str, Any]) -> Step:
        """Response of a standard star, or the solution of an astrometric field: two steps in one folder."""
        basic = "std_basic" if name == "std_flux" else "astrometry"
        folder = self._folder(name, ob, "")
        inputs = [Ref(group.tag, path=file.path) for file in group.frames]
        recipe = get_recipe("muse_scibasic")
        inputs += self._calibrations("std_basic", group, ob, "SCIENCE")
        tables = self._add(
            basic, folder, inputs, self.values("std_basic", group, self.config(ob)), ob=ob, recipe="muse_scibasic",
            stem="sci_basic_std" if name == "std_flux" else "sci_basic_astrometry",
            ifus=self.ifus(recipe, group, inputs),
        )  # fmt: skip
        tag = f"PIXTABLE_{group.tag}"
        more = [r for i in get_recipe(STEP_RECIPES[name]).inputs if i.tag != tag
                for r in self.refs(group, i.tag, ob, "SCIENCE")]  # fmt: skip
        step = self._add(name, folder, [Ref(tag, step=tables.id), *more], values, ob=ob)
        self._made[key] = step
        return step

    def _folder(self, name: str, ob: str, chain: str) -> Path:
        """Folder of a calibration; one for the night of the exposure if that of other nights has another one."""
        base = _base(name, chain)
        stem = _STEMS.get(name, name)
        places = [base, f"{base}_{self._night}"] + [f"{base}_{self._night}_{k}" for k in range(2, 100)]
        for place in places:
            folder = self._reduced / ob / place
            free = self._id(folder, stem) not in self.graph.steps
            # what belongs together is together
            if free and self._nights.get(folder, self._night) == self._night:
                self._nights.setdefault(folder, self._night)
                return folder
        raise InputError(f"{self._reduced / ob / base}: too many {name} of one night")

    def _link(self, step: Step, ob: str, chain: str) -> None:
        """Show a calibration also in the folder of another observing block or chain that uses it."""
        place = f"{ob}/{_base(step.name, chain)}"
        own = step.folder.relative_to(self._reduced).as_posix()
        if own == place or own.startswith(f"{place}_") or (step.id, place) in self._linked:
            return
        self._linked.add((step.id, place))
        assert step.recipe is not None
        tags = [p.tag for p in step.recipe.products if p.expected(step.recipe.resolve(step.values))]
        self._operation(
            step.name, "link", self._folder(step.name, ob, chain), step.stem, [Ref(tag, step=step.id) for tag in tags],
            {"copy": self.config(ob).musedask.collect == "copy", "products": {}}, ob=ob,
        )  # fmt: skip

    # --- exposures

    def try_exposure(self, exposure: Exposure) -> None:
        """All steps of one exposure, or none if it lacks a calibration: others go on without it."""
        names = ("_made", "_keys", "_linked", "_nights")
        before = {name: getattr(self, name).copy() for name in names}
        steps = dict(self.graph.steps)
        try:
            self.exposure(exposure)
        except InputError as error:
            self.graph.steps = steps
            for name, value in before.items():
                setattr(self, name, value)
            self.graph.refused[_label(exposure)] = str(error)

    def exposure(self, exposure: Exposure) -> None:
        """All steps of one exposure up to muse_scipost; of one of sky up to muse_create_sky."""
        self._night = exposure.group.night
        tables = self._basic(exposure)
        if exposure.group.tag == "SKY":
            self._sky(exposure, tables)
            return
        self._post(exposure, tables)

    def _basic(self, exposure: Exposure) -> Step:
        """Pixel tables of an exposure."""
        key = ("sci_basic", exposure.group.id)
        if key not in self._made:
            group, ob = exposure.group, exposure.ob
            inputs = [Ref(group.tag, path=file.path) for file in group.frames]
            inputs += self._calibrations("sci_basic", group, ob, "SCIENCE")
            self._made[key] = self._add(
                "sci_basic", self._place(exposure), inputs, self.values("sci_basic", group, self.config(ob)),
                ob=ob, exposure=exposure.id, ifus=self.ifus(get_recipe("muse_scibasic"), group, inputs),
            )  # fmt: skip
        return self._made[key]

    def _sky(self, exposure: Exposure, tables: Step) -> Step:
        """Sky of an exposure, of blank sky or of the target itself; the last step of it."""
        key = ("sky", exposure.group.id)
        if key in self._made:
            return self._made[key]
        group, ob = exposure.group, exposure.ob
        config = self.config(ob)
        values = self.values("sky", group, config)
        table = Ref("PIXTABLE_SKY", step=tables.id, product=f"PIXTABLE_{group.tag}")
        calibrations = []
        for tag in ("EXTINCT_TABLE", "STD_RESPONSE", "STD_TELLURIC", "SKY_LINES", "LSF_PROFILE"):
            refs = self.refs(group, tag, ob, "SCIENCE")
            if not refs and tag != "STD_TELLURIC" and "sky" in self.active:
                self._missing("sky", group, tag)
            calibrations += refs
        folder = self._place(exposure)
        if not config.sky.modified:
            step = self._add("sky", folder, [table, *calibrations], values, ob=ob, exposure=exposure.id)
            self._made[key] = step
            return step
        labels: dict[str, Any] = {"ob": ob, "exposure": exposure.id}
        one = self._add("sky", folder / "sky_pass1", [table, *calibrations], values, **labels)
        zero = self._operation(
            "sky", "zero_continuum", folder / "sky_pass2", "sky_zero", [Ref("SKY_CONTINUUM", step=one.id)],
            {"products": {"SKY_CONTINUUM_zero.fits": "SKY_CONTINUUM"}}, **labels,
        )  # fmt: skip
        two = self._add(
            "sky", folder / "sky_pass2", [table, *calibrations, Ref("SKY_CONTINUUM", step=zero.id)], values, **labels
        )
        continuum = one if config.sky.keep_continuum else zero
        step = self._operation(
            "sky", "keep_lines", folder, "sky",
            [*(Ref(tag, step=two.id) for tag in ("SKY_LINES", "SKY_MASK", "SKY_SPECTRUM", "SKY_IMAGE")),
             Ref("SKY_CONTINUUM", step=continuum.id)],
            {"species": list(config.sky.kept_species), "protect": [list(r) for r in config.sky.protect],
             "products": _named("SKY_LINES", "SKY_MASK", "SKY_SPECTRUM", "SKY_IMAGE", "SKY_CONTINUUM")}, **labels,
        )  # fmt: skip
        self._made[key] = step
        return step

    def _sky_of(self, exposure: Exposure, tables: Step) -> Step:
        """The sky that belongs to a science exposure, in its folder."""
        config = self.config(exposure.ob)
        choice = self._choice(exposure.group, "SKY") if config.sky.sky_field == "auto" else None
        if choice is None or choice.group is None:
            return self._sky(exposure, tables)
        source = self._by_group.get(choice.group.id)
        if source is None:
            raise InputError(f"{exposure.id}: its exposure of sky {choice.group.id} is not among the exposures")
        made = self._sky(source, self._basic(source))
        tags = ("SKY_LINES", "SKY_CONTINUUM", "SKY_MASK", "SKY_SPECTRUM", "SKY_IMAGE")
        return self._operation(
            "sky", "link", self._place(exposure), "sky", [Ref(tag, step=made.id) for tag in tags],
            {"copy": config.musedask.collect == "copy", "products": _named(*tags)}, ob=exposure.ob,
            exposure=exposure.id,
        )  # fmt: skip

    def _post(self, exposure: Exposure, tables: Step) -> Step:
        """muse_scipost of an exposure."""
        group, ob = exposure.group, exposure.ob
        config = self.config(ob)
        values = self.values("sci_post", group, config)
        inputs = [Ref("PIXTABLE_OBJECT", step=tables.id)]
        for tag in ("EXTINCT_TABLE", "STD_RESPONSE", "STD_TELLURIC", "ASTROMETRY_WCS", "FILTER_LIST", "OUTPUT_WCS",
                    "OFFSET_LIST"):  # fmt: skip
            refs = self.refs(group, tag, ob, "SCIENCE")
            if not refs and tag in ("EXTINCT_TABLE", "STD_RESPONSE") and "sci_post" in self.active:
                self._missing("sci_post", group, tag)
            inputs += refs
        subtract = values["skymethod"] != "none"
        autocalib = values["autocalib"] != "none"
        sky = self._sky_of(exposure, tables) if subtract or autocalib else None
        if subtract and sky is not None:
            inputs += [Ref(tag, step=sky.id) for tag in ("SKY_LINES", "SKY_CONTINUUM")]
            inputs += self.refs(group, "LSF_PROFILE", ob, "SCIENCE")
        if autocalib and sky is not None:
            inputs.append(Ref("SKY_MASK", step=sky.id))
        if values["autocalib"] == "user":
            inputs.append(Ref("AUTOCAL_FACTORS", path=self._place(exposure) / "AUTOCAL_FACTORS.fits"))
        if config.sci_post.raman and "-AO" in group.mode and "NOAO" not in group.mode:
            inputs += self.refs(group, "RAMAN_LINES", ob, "SCIENCE")
        suffix = suffix_of(config)
        recipe = get_recipe("muse_scipost")
        names = {}
        for tag in _COLLECTED:
            name = recipe.product(tag).file_name()
            names[name] = name.replace(".fits", f"{suffix}.fits")
        step = self._add("sci_post", self._place(exposure), inputs, values, ob=ob, exposure=exposure.id, names=names)
        self._made["sci_post", group.id] = step
        return step

    # --- combination

    def pointing(self, pointing: Pointing) -> None:
        """Collect, align and combine the exposures of a pointing; those with and without sky by themselves."""
        by_suffix: dict[str, list[tuple[Exposure, str]]] = {}
        for exposure, collected in zip(pointing.exposures, pointing.collected, strict=True):
            by_suffix.setdefault(suffix_of(self.config(exposure.ob)), []).append((exposure, collected))
        for suffix, members in by_suffix.items():
            exposures, names = zip(*members, strict=True)
            self._combine(replace(pointing, exposures=exposures, collected=names), SUFFIXES[suffix])

    def _config_of_pointing(self, pointing: Pointing) -> Config:
        """Of its target, if there is something about it, else of its blocks as far as they agree."""
        obs = list(dict.fromkeys(e.ob for e in pointing.exposures))
        own = self._config.for_ob(target_of(self._config, pointing.parent))
        if pointing.parent in obs or (own is self._config and len(obs) == 1):
            return self.config(pointing.parent if pointing.parent in obs else obs[0])
        if own is not self._config:
            return own
        found = {ob: self.config(ob) for ob in obs}
        first = found[obs[0]]
        if all(_combined_alike(first, other) for other in found.values()):
            return first
        log.warning(
            "%s: the settings of %s differ in how exposures are combined; those for all blocks are taken, or give some "
            "for %s (obs)", pointing.parent, ", ".join(obs), pointing.parent,
        )  # fmt: skip
        return self._config

    def _combine(self, pointing: Pointing, place: str) -> None:
        config = self._config_of_pointing(pointing)
        folder = self._reduced / pointing.parent / pointing.name / place
        label = f"{pointing.parent}/{pointing.name}"
        refs, names, products = [], [], {}
        for exposure, collected in zip(pointing.exposures, pointing.collected, strict=True):
            post = self._made["sci_post", exposure.group.id]
            for tag in _COLLECTED:
                assert post.recipe is not None
                if post.recipe.product(tag).expected(post.recipe.resolve(post.values)) is not False:
                    refs.append(Ref(tag, step=post.id))
                    names.append(f"{tag}_{collected}.fits")
                    products[names[-1]] = tag
        ob = pointing.exposures[0].ob
        copy = config.musedask.collect == "copy"
        collected_step = self._operation(
            "dither_collect", "link", folder, "dither_collect", refs,
            {"names": names, "copy": copy, "products": products}, ob=ob, pointing=label,
        )  # fmt: skip
        if len(pointing.exposures) < 2:
            self._single(pointing, folder, collected_step, label, copy=copy)
            return
        values = self.values("exp_align", pointing.exposures[0].group, config)
        align = self._add(
            "exp_align", folder, [Ref("IMAGE_FOV", step=collected_step.id)], values, ob=ob, pointing=label
        )
        values = self.values("exp_combine", pointing.exposures[0].group, config)
        inputs = [Ref("PIXTABLE_REDUCED", step=collected_step.id), Ref("OFFSET_LIST", step=align.id)]
        inputs += self.refs(pointing.exposures[0].group, "FILTER_LIST", ob, "SCIENCE")
        inputs += self.refs(pointing.exposures[0].group, "OUTPUT_WCS", ob, "SCIENCE")
        if self._engine_of("exp_combine") == "esorex":
            self._add("exp_combine", folder, inputs, values, ob=ob, pointing=label)
            return
        self._operation(
            "exp_combine", "mosaic", folder, "exp_combine", inputs,
            {**values, "output": config.musedask.output,
             "products": {"DATACUBE_FINAL.fits": "DATACUBE_FINAL", "IMAGE_FOV_0001.fits": "IMAGE_FOV"}},
            ob=ob, pointing=label,
        )  # fmt: skip

    def _single(self, pointing: Pointing, folder: Path, collected: Step, label: str, *, copy: bool) -> None:
        """The cube of a pointing of one exposure is that of the exposure."""
        refs = [Ref(tag, step=collected.id) for tag in ("DATACUBE_FINAL", "IMAGE_FOV")]
        names = ["DATACUBE_FINAL.fits", "IMAGE_FOV_0001.fits"]
        self._operation(
            "exp_combine", "link", folder, "exp_combine", refs,
            {"names": names, "copy": copy, "products": dict(zip(names, ("DATACUBE_FINAL", "IMAGE_FOV"), strict=True))},
            ob=pointing.exposures[0].ob, pointing=label,
        )  # fmt: skip

    # --- parts

    def values(self, name: str, group: Group, config: Config) -> dict[str, Any]:
        """Parameters of the recipe of a step: what the configuration's keys say, then what is set by name."""
        found: dict[str, Any] = {}
        if name == "flat":
            found = {"samples": True}
        elif name == "wavecal":
            found = {"residuals": True, **_combine_values(group)}
        elif name == "lsf":
            found = _combine_values(group)
        elif name == "sci_basic":
            basic = config.sci_basic
            found = {"skyreject": basic.skyreject, "skylines": basic.skylines, "saveimage": False}
        elif name == "std_basic":
            found = {"saveimage": False}
        elif name == "std_flux":
            found = {"filter": "white"}
        elif name == "sky":
            found = {"fraction": config.sky.fraction, "ignore": config.sky.ignore}
        elif name == "sci_post":
            found = _scipost_values(config)
        elif name == "exp_align":
            found = {"srcmin": config.exp_align.srcmin, "srcmax": config.exp_align.srcmax}
        elif name == "exp_combine":
            found = {"filter": "white", "save": "cube", "crsigma": 5.0, "weight": config.exp_combine.weight}
        return {**found, **config.recipe_parameters(name, STEP_RECIPES[name])}

    def ifus(self, recipe: Recipe, group: Group, inputs: Sequence[Ref]) -> tuple[int, ...]:
        """IFUs that a step has nodes of."""
        if not recipe.per_ifu:
            return ()
        if group.id not in self._numbers:
            frames = [Frame(r.path, r.tag) for r in inputs if r.path is not None and r.tag == group.tag]
            self._numbers[group.id] = tuple(ifus_of(recipe, frames))
        there = self._numbers[group.id]
        return tuple(i for i in there if self._ifus is None or i in self._ifus)

    def _place(self, exposure: Exposure) -> Path:
        return self._reduced / exposure.ob / exposure.id

    def _id(self, folder: Path, stem: str) -> str:
        return f"{folder.relative_to(self._reduced).as_posix()}/{stem}"

    def _add(
        self,
        name: str,
        folder: Path,
        inputs: Sequence[Ref],
        values: Mapping[str, Any],
        *,
        recipe: str | None = None,
        stem: str | None = None,
        ifus: tuple[int, ...] = (),
        ob: str = "",
        **more: Any,
    ) -> Step:
        stem = stem or _STEMS.get(name, name)
        declared = get_recipe(recipe or STEP_RECIPES[name])
        declared.resolve(values)
        step = Step(
            self._id(folder, stem), name, folder, stem, tuple(inputs), declared, values=values, ifus=ifus, ob=ob,
            engine=self._engine_of(name, declared.name), keep_sof=not self._creates_sof(name, self.config(ob)),
            active=name in self.active, **more,
        )  # fmt: skip
        step = self.graph.add(self._honour_sof(step))
        if len(ifus) > 1 and self.config(ob).musedask.merge:
            tags = [p.tag for p in declared.products if p.per_ifu and p.expected(declared.resolve(values))]
            tags = [tag for tag in tags if not tag.startswith("PIXTABLE_")]
            if tags:
                self._operation(
                    name, "merge", folder, f"{stem}_merged", [Ref(tag, step=step.id) for tag in tags],
                    {"products": _named(*tags)}, ob=ob, exposure=step.exposure,
                )  # fmt: skip
        return step

    def _operation(
        self,
        name: str,
        operation: str,
        folder: Path,
        stem: str,
        inputs: Sequence[Ref],
        values: Mapping[str, Any],
        **labels: Any,
    ) -> Step:
        return self.graph.add(
            Step(
                self._id(folder, stem), name, folder, stem, tuple(inputs), operation=operation, values=values,
                active=name in self.active, **labels,
            )
        )  # fmt: skip

    def _engine_of(self, name: str, recipe: str | None = None) -> str:
        """Engine of a step: what the configuration says of it, else of its recipe, else that of all."""
        from ..calib.registry import has_native

        recipe = recipe or STEP_RECIPES[name]
        own = self._config.musedask.engines
        engine = own.get(name) or own.get(recipe) or self._engine
        if engine == "native" and name != "exp_combine" and not has_native(recipe):
            return "esorex"
        return engine

    def _creates_sof(self, name: str, config: Config) -> bool:
        if name in _CALIBRATIONS:
            return config.calibration.create_sof
        section = {"std_basic": "sci_basic", "astrometry": "calibration"}.get(name, name)
        return bool(getattr(getattr(config, section), "create_sof", True))

    def _honour_sof(self, step: Step) -> Step:
        """Take the inputs of a step from a set of frames that the user has made."""
        path = step.folder / f"{step.stem}.sof"
        if not step.keep_sof or not path.exists():
            return step
        made = {
            (p.resolve(), tag): (other.id, tag)
            for other in self.graph
            for tag in _tags(other)
            for p in other.product_paths(tag)
        }
        by_path = {p: origin for (p, _), origin in made.items()}
        frames = _listed(path, by_path)
        listed: dict[tuple[str, str], list[Path]] = {}
        for frame in frames:
            if (origin := by_path.get(frame.path.resolve())) is not None:
                listed.setdefault(origin, []).append(frame.path.resolve())
        refs: dict[Ref, None] = {}
        for frame in frames:
            origin = by_path.get(frame.path.resolve())
            if origin is None:
                refs[Ref(frame.tag, path=frame.path)] = None
                continue
            whole = [p.resolve() for p in self.graph[origin[0]].product_paths(origin[1])]
            if step.ifus or listed[origin] == whole:
                refs[Ref(frame.tag, step=origin[0], product=origin[1])] = None
            else:
                # some of them, or in another order
                refs[Ref(frame.tag, path=frame.path, step=origin[0], product=origin[1])] = None
        return replace(step, inputs=tuple(refs))


def _base(name: str, chain: str) -> str:
    """Folder of the products of a step, in that of an observing block."""
    return {"std_flux": "std", "astrometry": "astrometry"}.get(name, f"calibrations/{chain}")


def _listed(path: Path, made: Mapping[Path, Any]) -> list[Frame]:
    """Frames of a user's set of frames, in which there may be files that are still to be made."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    if all(len(words) == 2 for words in lines):
        frames = [Frame(path.parent / words[0], words[1]) for words in lines]
        missing = [f.path for f in frames if not f.path.exists() and f.path.resolve() not in made]
        if not missing:
            return frames
        raise InputError(f"{path}: {missing[0]}: no such file, and no step makes it")
    return read_sof(path)


def _tags(step: Step) -> list[str]:
    if step.recipe is None:
        return sorted(set(step.values.get("products", {}).values()))
    return [p.tag for p in step.recipe.products]


def _named(*tags: str) -> dict[str, str]:
    return {f"{tag}.fits": tag for tag in tags}


def config_of(config: Config, file: RawFile, folder: str) -> Config:
    """Configuration of the observing block of an exposure, by its name, number or folder."""
    own = config.for_ob(file.ob_name, file.ob_id)
    return own if own is not config else config.for_ob(folder)


def target_of(config: Config, folder: str) -> str:
    """Name of the target that has a folder, as the user wrote it; else that of the folder."""
    return next((name for name in config.musedask.targets if safe_name(name) == folder), folder)


def _combined_alike(one: Config, other: Config) -> bool:
    """Whether two blocks are to be combined in the same way."""
    names = ("exp_align", "exp_combine", "muse_exp_align", "muse_exp_combine")
    return (
        (one.exp_align, one.exp_combine, one.musedask) == (other.exp_align, other.exp_combine, other.musedask)
        and all(one.parameters.get(name) == other.parameters.get(name) for name in names)
    )  # fmt: skip


def suffix_of(config: Config) -> str:
    """What the names of the products of muse_scipost end with."""
    if not config.global_.withrvcorr:
        return "_wskynorvcorr"
    return "_wosky" if config.sci_post.subtract_sky else "_wsky"


def _combine_values(group: Group) -> dict[str, Any]:
    """How to combine arcs: the default of the recipes, sigma clipping, cannot do with two exposures of a lamp."""
    counts = Counter(frame.lamps for frame in group.frames)
    return {"combine": "average"} if 2 in counts.values() else {}


def _scipost_values(config: Config) -> dict[str, Any]:
    post = config.sci_post
    values: dict[str, Any] = {
        "save": ",".join(config.musedask.save),
        "skymethod": config.sky.method if post.subtract_sky and config.global_.withrvcorr else "none",
        "autocalib": post.autocalib,
        "filter": "white",
    }
    values["rvcorr"] = config.rvcorr
    return values
