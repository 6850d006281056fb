"""From what a user wrote to sections with canonical keys: other spellings, unknown keys, texts for booleans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from ..errors import InputError
from ..recipe import Recipe
from ..recipes import RECIPES, get_recipe
from .config_file import Document, KeyPath
from .config_sections import SECTIONS, aliases, keys_of
from .config_values import choices_of, values_text
from .esorex_options import check_parameters
from .steps import STEP_RECIPES, STEPS

#: where options of esorex for a recipe are
OPTION_KEYS = {
    **{f"muse_{name}": ("calibration", f"esorex_kwargs_{name}")
       for name in ("bias", "dark", "flat", "wavecal", "lsf", "twilight")},
    "muse_scibasic": ("sci_basic", "esorex_kwargs"),
    "muse_standard": ("std_flux", "esorex_kwargs"),
    "muse_create_sky": ("sky", "esorex_kwargs"),
    "muse_scipost": ("sci_post", "esorex_kwargs"),
    "muse_exp_align": ("exp_align", "esorex_kwargs"),
    "muse_exp_combine": ("exp_combine", "esorex_kwargs"),
}  # fmt: skip
_ALIASES = aliases()
_OB = ("global", "OB")

#: sections with their keys; ``parameters`` with names of steps and recipes in place of sections' keys
Given = dict[str, dict[str, Any]]


class Reading:
    """Reads sections and notes what is wrong and what is only noteworthy, each with its place.

    Parameters
    ----------
    document : Document
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._origins: dict[KeyPath, KeyPath] = {}

    def problem(self, path: KeyPath, text: str) -> None:
        """Note what makes the configuration unusable."""
        self.problems.append(f"{self.document.place(self._origin(path))}: {text}")

    def warn(self, path: KeyPath, text: str) -> None:
        """Note what the user should know."""
        self.warnings.append(f"{self.document.place(self._origin(path))}: {text}")

    def raise_problems(self, *, strict: bool = False) -> None:
        """Raise an error that tells all problems, and the warnings if those count, too."""
        found = [*dict.fromkeys(self.problems + (self.warnings if strict else []))]
        if found:
            raise InputError("\n".join(found))

    def _origin(self, path: KeyPath) -> KeyPath:
        """Where the user wrote the key that came to be this one."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._origins:
                return self._origins[path[:length]] + path[length:]
        return path

    def invalid(self, error: ValidationError, prefix: KeyPath = ()) -> None:
        """Note what a model says against values."""
        for found in error.errors():
            path = prefix + tuple(found["loc"])
            # names of validators and of members of unions are no keys
            while path and isinstance(path[-1], str) and len(path) > len(prefix) + 2 and "targets" not in path:
                path = path[:-1]
            text = found["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
            value = found["input"]
            self.problem(path, f"{value!r} found, {text}" if value is not None else f"null found, {text}")

    # ------------------------------------------------------------------------------------- sections

    def sections(self, data: Mapping[str, Any], prefix: KeyPath = ()) -> Given:
        """Sections with canonical keys.

        Parameters
        ----------
        data : mapping
            As the user wrote it.
        prefix : tuple
            Keys around it: of the overrides for an observing block.
        """
        given: dict[tuple[str, str], list[tuple[KeyPath, Any]]] = {}
        result: Given = {}
        for name, values in data.items():
            path = (*prefix, name)
            if name == "obs" and not prefix:
                continue
            if name not in SECTIONS and name != "parameters":
                self.problem(path, _unknown(str(name), "section" if isinstance(values, Mapping) else "key"))
                continue
            if values is None:
                values = {}
            if not isinstance(values, Mapping):
                self.problem(path, f"{values!r} found, expected a section with keys")
            elif name == "parameters":
                result["parameters"] = self._parameters(values, path)
            else:
                result[name] = {}
                for key, value in values.items():
                    target = (name, key) if key in SECTIONS[name].model_fields else _ALIASES.get((name, key))
                    if target is None:
                        self.problem((*path, key), _unknown(str(key), "key", name))
                        continue
                    given.setdefault(target, []).append(((*path, key), value))
        self._target(given, prefix)
        for (section, key), found in given.items():
            value = self._settle(section, key, found, prefix)
            if value is not _NOT_GIVEN:
                result.setdefault(section, {})[key] = value
                self._origins.setdefault((*prefix, section, key), found[-1][0])
        self._rvcorr(result, prefix)
        if prefix:
            self._refuse_common(result, prefix)
        return result

    def _settle(self, section: str, key: str, found: list[tuple[KeyPath, Any]], prefix: KeyPath) -> Any:
        """The one value of a key that may be there in several spellings."""
        values: list[tuple[KeyPath, Any]] = []
        for path, value in found:
            if path[len(prefix) :] not in ((section, key), _OB):
                self.warn(path, f"another spelling of {section}.{key}")
            values.append((path, self._value(section, key, path, value)))
        if len(values) > 1:
            # an empty list says nothing
            values = [v for v in values if v[1] not in ([], (), None)] or values[:1]
        if not values:
            return _NOT_GIVEN
        self._origins[(*prefix, section, key)] = values[0][0]
        for path, value in values[1:]:
            if value != values[0][1]:
                self.problems.append(
                    f"{self.document.place(path)}: {value!r} found, but {self.document.place(values[0][0])} is "
                    f"{values[0][1]!r}, and both are {section}.{key}: leave one out"
                )
        return values[0][1]

    def _target(self, given: dict[tuple[str, str], list[tuple[KeyPath, Any]]], prefix: KeyPath) -> None:
        """``OB``: the one block to reduce; where several are combined, the name of the target."""
        lists = given.get(("global", "OB_list"), [])
        for path, value in [entry for entry in lists if entry[0][len(prefix) :] == _OB]:
            lists.remove((path, value))
            if value is None or value == "":
                continue
            combined = given.get(("global", "dither_multiple_OBs"))
            if not combined or _boolean(combined[0][1]) is not True:
                self.warn(path, "another spelling of global.OB_list, a list")
                lists.append((path, [value] if isinstance(value, (str, int)) else value))
                continue
            self.warn(path, f"with dither_multiple_OBs the name of a target, as musedask.targets: {value}")
            blocks = lists[0][1] if lists else None
            if blocks:
                targets = given.setdefault(("musedask", "targets"), [(path, {})])
                if isinstance(targets[0][1], Mapping):
                    targets[0] = (targets[0][0], {str(value): blocks} | dict(targets[0][1]))

    def _value(self, section: str, key: str, path: KeyPath, value: Any) -> Any:
        """A value with what users write in place of it: texts for booleans, other spellings of words."""
        kind = SECTIONS[section].model_fields[key].annotation
        choices = choices_of(kind)
        if kind is bool or (key == "using_specific_exposure_time" and isinstance(value, (str, bool))):
            converted = _boolean(value)
            if isinstance(converted, bool):
                if isinstance(value, str):
                    self.warn(path, f"text {value!r} found, better without quotes: {value.lower()}")
                if kind is not bool and converted:
                    self.problem(path, "true found, expected a time or false")
                    return False
                return converted
            if kind is bool:
                self.problem(path, f"{value!r} found, expected true or false")
                return SECTIONS[section].model_fields[key].default
        elif isinstance(value, bool):
            self.problem(path, f"{str(value).lower()} found, expected {_expected(section, key)}")
            return SECTIONS[section].model_fields[key].default
        elif choices and isinstance(value, str) and value not in choices:
            same = [c for c in choices if c.lower() == value.strip().lower().replace("_", "-")]
            if same:
                self.warn(path, f"another spelling of {same[0]}: {value!r}")
                return same[0]
        return value

    def _rvcorr(self, result: Given, prefix: KeyPath) -> None:
        """``sci_post.rvcorr`` none is the same as ``global.withrvcorr`` false."""
        kind = result.get("sci_post", {}).get("rvcorr")
        if kind is None:
            return
        used = result.get("global", {}).get("withrvcorr")
        path = (*prefix, "sci_post", "rvcorr")
        if used is not None and used == (kind == "none"):
            self.problem(path, f"{kind!r} found, but global.withrvcorr is {str(used).lower()}: leave one out")
        elif kind == "none":
            self.warn(path, "another spelling of global.withrvcorr: false")
            del result["sci_post"]["rvcorr"]
            result.setdefault("global", {})["withrvcorr"] = False
            self._origins[(*prefix, "global", "withrvcorr")] = path

    def _refuse_common(self, result: Given, prefix: KeyPath) -> None:
        for section, values in result.items():
            if section == "parameters":
                continue
            declared = keys_of(SECTIONS[section])
            for key in values:
                if not declared[key]["per_ob"]:
                    self.problem((*prefix, section, key), "is the same for all observing blocks, expected outside obs")

    # ------------------------------------------------------------------------------------- recipe parameters

    def _parameters(self, values: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        """Recipe parameters by the names of steps, and full names of recipes."""
        found: dict[str, Any] = {}
        for name, given in values.items():
            try:
                recipe = self._recipe(str(name))
            except InputError as error:
                self.problem((*path, name), str(error))
                continue
            if given is None:
                continue
            if not isinstance(given, Mapping):
                self.problem((*path, name), f"{given!r} found, expected parameters of {recipe.name} with their values")
                continue
            target = name if name in STEP_RECIPES else recipe.name
            for parameter, value in given.items():
                try:
                    checked = check_parameters(recipe, {str(parameter): value})
                except InputError as error:
                    self.problem((*path, name, parameter), str(error))
                else:
                    found.setdefault(target, {}).update(checked)
        return found

    def _recipe(self, name: str) -> Recipe:
        if name in STEP_RECIPES:
            return get_recipe(STEP_RECIPES[name])
        if name in STEPS:
            raise InputError(f"step {name} has no recipe, expected {', '.join(STEP_RECIPES)} or a recipe")
        try:
            return get_recipe(name)
        except InputError:
            known = [*STEP_RECIPES, *RECIPES, *(r.removeprefix("muse_") for r in RECIPES)]
            hint = _near(name, known) or "expected a step or a recipe, see musedask recipe list"
            raise InputError(f"there is no step and no recipe {name!r}; {hint}") from None


class _NotGiven:
    pass


_NOT_GIVEN = _NotGiven()


def _boolean(value: Any) -> Any:
    text = value.strip().lower() if isinstance(value, str) else None
    return text == "true" if text in ("true", "false") else value


def _expected(section: str, key: str) -> str:
    return values_text(SECTIONS[section].model_fields[key])


def _near(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """A question that names what is similar; a mapping tells what to call it."""
    shown = dict(known) if isinstance(known, Mapping) else {k: k for k in known}
    by_lower: dict[str, str] = {}
    for k in shown:
        by_lower.setdefault(k.lower(), k)
    found = [by_lower[k] for k in get_close_matches(name.lower().replace("-", "_"), by_lower, n=3, cutoff=0.5)]
    if found and _plain(name) == _plain(found[0]):
        found = found[:1]
    return f"did you mean {' or '.join(dict.fromkeys(shown[k] for k in found))}?" if found else ""


def _unknown(name: str, what: str, section: str | None = None) -> str:
    """What to say of a key that does not exist: what is similar there, else in other sections."""
    everywhere = [f"{s}.{k}" for s, model in SECTIONS.items() for k in model.model_fields]
    sections = [*SECTIONS, "parameters", "obs"]
    if section is None:
        hint = _near(name, sections) if what == "section" else ""
        known = sections
    else:
        spellings = {k: k for k in SECTIONS[section].model_fields}
        for (s, k), (to, short) in _ALIASES.items():
            if s == section:
                spellings.setdefault(k, short if to == section else f"{to}.{short}")
        hint = _near(name, spellings)
        known = list(SECTIONS[section].model_fields)
    if not hint:
        same = [full for full in everywhere if _plain(full.split(".")[1]) == _plain(name)]
        hint = f"did you mean {' or '.join(same)}?" if same else ""
    if not hint:
        hint = _near(name, [full.split(".")[1] for full in everywhere])
        match = re.fullmatch(r"did you mean (\w+).*", hint)
        if match:
            hint = f"did you mean {' or '.join(f for f in everywhere if f.endswith('.' + match[1]))}?"
    return f"unknown {what}; {hint or 'there are ' + ', '.join(known)}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
