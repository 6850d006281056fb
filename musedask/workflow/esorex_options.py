"""Recipe parameters that a user gives: by name, or as a text of options of esorex."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import InputError
from ..recipe import Parameter, Recipe

#: options of esorex itself that change no numbers, ignored with a warning
_HARMLESS = (
    "check-sof-exist", "log-level", "mem-check", "msg-level", "no-checksum", "no-datamd5", "show-hidden", "time",
    "unload-plugin",
)  # fmt: skip
#: options of esorex itself that would send files elsewhere, or do something else in place of the recipe
_REFUSED = (
    "config", "create-config", "help", "link-dir", "log-dir", "log-file", "man-page", "output-dir", "output-prefix",
    "output-readonly", "paf-config", "params", "products-sof", "recipe-config", "recipe-dir", "recipes",
    "suppress-link", "suppress-prefix", "version",
)  # fmt: skip
OWN_OPTIONS = (*_HARMLESS, *_REFUSED)
#: parameters that the reduction sets itself, and the keys that do
MANAGED = {"nifu": "musedask.ifus", "merge": "musedask.merge"}


def find_parameter(recipe: Recipe, name: str) -> Parameter:
    """A parameter by its name.

    Raises
    ------
    InputError
        If the recipe does not have it; the message names those with a similar name.
    """
    names = {p.name.lower(): p for p in recipe.parameters}
    if name in (p.name for p in recipe.parameters):
        return recipe.parameter(name)
    near = [names[n].name for n in get_close_matches(name.lower().replace("-", "_"), names, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(p.name for p in recipe.parameters)}"
    raise InputError(f"{recipe.name} has no parameter {name!r}; {hint}")


def check_parameters(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check parameters given by name; null stands for the default.

    Raises
    ------
    InputError
        If the recipe does not have one, a value does not fit, or the reduction sets it itself.
    """
    found = {}
    for name, value in given.items():
        parameter = find_parameter(recipe, name)
        if name in MANAGED:
            raise InputError(f"parameter {name} is set by the reduction itself; see {MANAGED[name]}")
        if isinstance(value, (list, tuple)) and parameter.type is str:
            value = ",".join(map(str, value))
        right = isinstance(value, (bool, str)) if parameter.type is bool else not isinstance(value, bool)
        if value is not None and (not right or isinstance(value, (dict, list, tuple))):
            raise InputError(f"parameter {name}: {value!r} found, expected {parameter.values_text()}")
        if value is not None:
            found[name] = parameter.check(value)
    return found


def parse_options(text: str, recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Parse options of a recipe as on the command line of esorex.

    ``--name=value``, ``--name value``, ``--name`` of a boolean, names with that of the recipe before them
    (``muse_bias.nlow``, ``muse.muse_bias.nlow``), and names cut short that are still unique, as esorex takes them.

    Returns
    -------
    values : dict
        Parameters by their names, checked.
    warnings : list of str
        What was ignored.

    Raises
    ------
    InputError
        If something cannot be parsed, the recipe does not have it, a value does not fit, or an option of esorex
        itself stands there that would change where files go.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{text!r}: {error}") from error
    given: dict[str, Any] = {}
    warnings: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise InputError(f"{word!r} found, expected an option such as --name=value")
        name, equals, value = word.lstrip("-").partition("=")
        if name in OWN_OPTIONS:
            if not equals and words and not words[0].startswith("-"):
                words.pop(0)
            if name in _REFUSED:
                raise InputError(f"--{name} is an option of esorex itself and cannot be given here, expected "
                                 f"parameters of {recipe.name}")  # fmt: skip
            warnings.append(f"--{name} is an option of esorex itself: ignored")
            continue
        parameter = _parameter_of_option(recipe, name)
        if not equals:
            follows = words[0] if words else None
            if parameter.type is bool:
                value = words.pop(0) if follows is not None and follows.lower() in ("true", "false") else "true"
            elif follows is None or follows.startswith("--"):
                raise InputError(f"--{name}: no value found, expected {parameter.values_text()}")
            else:
                value = words.pop(0)
        if parameter.name in MANAGED:
            key = MANAGED[parameter.name]
            warnings.append(f"--{parameter.name} is set by the reduction itself: ignored; see {key}")
            continue
        if parameter.type is int:
            value = value.strip()
        given[parameter.name] = parameter.check(value)
    return given, warnings


def _parameter_of_option(recipe: Recipe, name: str) -> Parameter:
    """The parameter that an option of esorex means."""
    prefix, dot, short = name.rpartition(".")
    if dot:
        if prefix.removeprefix("muse.") not in (recipe.name, recipe.name.removeprefix("muse_")):
            raise InputError(f"--{name}: a parameter of {prefix} found, expected one of {recipe.name}")
        name = short
    names = [p.name for p in recipe.parameters]
    if name not in names:
        longer = [known for known in names if name and known.startswith(name)]
        if len(longer) == 1:
            name = longer[0]
        elif longer:
            raise InputError(f"--{name} found, expected one of --{', --'.join(longer)}")
    return find_parameter(recipe, name)
