"""What the installed esorex says of its recipes, and how the declarations differ from that.

Nothing is run but esorex itself, without data: its help, its lists of parameters, and calls with values out of
range, whose messages tell the range.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..recipe import Input, Parameter, Product, Recipe
from ..recipes import RECIPES

#: no parameter may have these values if there is any limit to it
_TOO_LARGE = 987654321
_NO_CHOICE = "musedask-no-such-choice"
_TIMEOUT = 60.0


@dataclass(frozen=True)
class InstalledRecipe:
    """A recipe as the installed esorex describes it.

    Attributes
    ----------
    recipe : Recipe
        With the products that the help lists, whose modes and conditions it does not tell.
    version : str
        Of the reference pipeline, e.g. ``2.8.7``.
    """

    recipe: Recipe
    version: str


class Esorex:
    """Asks the installed esorex; settings of the user do not count.

    Raises
    ------
    InputError
        If there is no esorex.
    """

    def __init__(self, executable: str = "esorex") -> None:
        path = shutil.which(executable)
        if path is None:
            raise InputError(
                f"{executable}: not found; install the reference pipeline (on Debian and Ubuntu: "
                "apt-get install esorex cpl-plugin-muse)"
            )
        self.executable = path

    def ask(self, *arguments: str, expert: bool = False) -> str:
        """What a call prints."""
        with tempfile.TemporaryDirectory(prefix="musedask-esorex-") as folder:
            # no configuration of the user, but recipes where the user has them
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("MUSE_", "ESOREX_"))}
            environment |= {k: v for k, v in os.environ.items() if k == "ESOREX_PLUGIN_DIR"}
            environment |= {"HOME": folder, "OMP_NUM_THREADS": "1"}
            if expert:
                environment["MUSE_EXPERT_USER"] = "1"
            done = subprocess.run(
                [self.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        return done.stdout

    def recipes(self) -> list[str]:
        """Names of all recipes for MUSE."""
        return sorted(set(re.findall(r"^  (muse_\w+) *:", self.ask("--recipes"), flags=re.MULTILINE)))

    def describe(self, name: str) -> InstalledRecipe:
        """All that esorex tells of a recipe."""
        page = self.ask("--man-page", name, expert=True)
        shown = set(_options(self.ask("--man-page", name)))
        helps = _options(page)
        parameters = []
        for key, text in _parameters(self.ask("--params", name)):
            kind, default = _value(text)
            choices = _choices(helps.get(key, "")) if kind is str else ()
            parameters.append(Parameter(key, kind, default, "", choices, expert=key not in shown))
        inputs, products = _frames(page)
        version = re.search(rf"^RELEASE\n  {name} -- version (\S+)", page, flags=re.MULTILINE)
        recipe = Recipe(
            name,
            "",
            tuple(inputs[0]) if inputs else (),
            tuple(products),
            tuple(self._limits(name, parameters)),
            tuple(i for group in inputs[1:] for i in group),
        )
        return InstalledRecipe(recipe, version[1] if version else "unknown")

    def _limits(self, name: str, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Add ranges, and choices that the help does not tell, by giving values that cannot be right.

        esorex complains of one at a time, then that one is left out.
        """
        found = {p.name: p for p in parameters}
        wrong = {p.name: p.to_option(_TOO_LARGE) for p in parameters if p.type in (int, float)}
        wrong |= {p.name: f"--{p.name}={_NO_CHOICE}" for p in parameters if p.type is str and not p.choices}
        while wrong:
            said = self.ask(name, *wrong.values())
            limits = re.search(r"parameter '(\w+)' was outside the permitted range (\S+) to (\S+)", said)
            refused = re.search(r"during the processing of the option '--(\w+)'", said)
            if limits is None and refused is None:
                break
            key = (limits or refused)[1]  # type: ignore[index]
            p = found[key]
            low, high = (float(limits[2]), float(limits[3])) if limits else (None, None)
            choices = p.choices if limits else ("?",)
            found[key] = Parameter(p.name, p.type, p.default, p.help, choices, low, high, p.expert)
            del wrong[key]
        return list(found.values())


def _value(text: str) -> tuple[type, Any]:
    """Type and value of a default as esorex prints it: ``TRUE``, ``3``, ``3.0``, ``4e+03`` or text."""
    if text in ("TRUE", "FALSE"):
        return bool, text == "TRUE"
    if re.fullmatch(r"[+-]?\d+", text):
        return int, int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float, float(text)
    return str, text


def _parameters(text: str) -> list[tuple[str, str]]:
    """Names and defaults from ``esorex --params RECIPE``."""
    _, _, listed = text.partition("Recipe Parameters :")
    return re.findall(r"^  (\w+) *: ?(.*?) *$", listed, flags=re.MULTILINE)


def _options(page: str) -> dict[str, str]:
    """Help of each option of a manual page, on one line."""
    _, _, section = page.partition("\nOPTIONS\n")
    section, _, _ = section.partition("\nAUTHOR\n")
    section, _, _ = section.partition("\n  Note that it is also possible")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r"  --(\w+) *: ?(.*)", line):
            name = match[1]
            found[name] = match[2].strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _choices(text: str) -> tuple[str, ...]:
    """Choices at the end of a help: ``... <a | b> [a]``."""
    match = re.search(r"<([^<>]*)> \[[^\]]*\]$", text)
    return tuple(part.strip() for part in match[1].split("|")) if match else ()


def _frames(page: str) -> tuple[list[list[Input]], list[Product]]:
    """Sets of inputs, and products, from the tables of a manual page."""
    inputs: list[list[Input]] = []
    products: list[Product] = []
    making = False
    for line in page.splitlines():
        if re.match(r"  (Input|Product) frames for raw frame tag", line):
            making = line.startswith("  Product")
            if not making:
                inputs.append([])
        elif inputs and (match := re.match(r"   (\w+) +(raw|calib) +([Y.]) +(>=)? *(\d+)? ", line + " ")):
            tag, group, needed, at_least, number = match.groups()
            minimum = (int(number) if number else 1) if needed == "Y" else 0
            maximum = int(number) if number and not at_least else None
            inputs[-1].append(Input(tag, group, minimum, maximum))  # type: ignore[arg-type]
        elif making and (match := re.match(r"   (\w+) +(final|intermed|raw)\b", line)):
            products.append(Product(match[1]))
        elif line.startswith("OPTIONS"):
            break
    return inputs, products


# ------------------------------------------------------------------------------------------ comparing


def recipe_differences(declared: Recipe, installed: Recipe) -> list[str]:
    """What of a declaration is not as esorex says, one line each; numbers as esorex prints them."""
    mine, theirs = ({p.name: p for p in r.parameters} for r in (declared, installed))
    found = [f"parameter {name}: {_whose(name in mine)}" for name in sorted(set(mine) ^ set(theirs))]
    common = [name for name in mine if name in theirs]
    order = [name for name in theirs if name in mine]
    if common != order:
        found.append(f"order of the parameters: {', '.join(common)}; esorex: {', '.join(order)}")
    for name in common:
        found += [f"parameter {name}: {text}" for text in _parameter_differences(mine[name], theirs[name])]
    for what, ours, reported in (
        ("input", declared.inputs, installed.inputs),
        ("other input", declared.alternative, installed.alternative),
    ):
        found += _input_differences(what, [i for i in ours if i.listed], reported)
    tags = [p.tag if p.listed_as is None else p.listed_as for p in declared.products]
    tags = list(dict.fromkeys(tag for tag in tags if tag))
    listed = [p.tag for p in installed.products]
    return found + [f"product {tag}: {_whose(tag in tags)}" for tag in sorted(set(tags) ^ set(listed))]


def _whose(declared: bool) -> str:
    return "not in esorex" if declared else "not declared"


def _parameter_differences(mine: Parameter, theirs: Parameter) -> Iterable[str]:
    if mine.type is not theirs.type:
        yield f"{mine.type.__name__}, esorex: {theirs.type.__name__}"
        return
    if mine.default != theirs.default:
        yield f"default {mine.default}, esorex: {theirs.default}"
    if mine.choices != theirs.choices:
        yield f"choices {', '.join(mine.choices) or 'any'}, esorex: {', '.join(theirs.choices) or 'any'}"
    if (mine.minimum, mine.maximum) != (theirs.minimum, theirs.maximum):
        yield f"{mine.values_text()}, esorex: {theirs.values_text()}"
    if mine.expert != theirs.expert:
        yield f"{'for experts' if mine.expert else 'for all'}, esorex: {'for experts' if theirs.expert else 'for all'}"


def _input_differences(what: str, mine: Sequence[Input], theirs: Sequence[Input]) -> Iterable[str]:
    ours, reported = {i.tag: i for i in mine}, {i.tag: i for i in theirs}
    for tag in sorted(set(ours) ^ set(reported)):
        yield f"{what} {tag}: {_whose(tag in ours)}"
    for tag in [tag for tag in ours if tag in reported]:
        a, b = ours[tag], reported[tag]
        if (a.minimum, a.maximum) != (b.minimum, b.maximum):
            yield f"{what} {tag}: {a.count_text()}, esorex: {b.count_text()}"
        if a.group != b.group:
            yield f"{what} {tag}: {a.group}, esorex: {b.group}"


@dataclass(frozen=True)
class Comparison:
    """How the declarations differ from the installed esorex.

    Attributes
    ----------
    version : str
        Of the installed recipes; several if they are not of one version.
    differences : dict of str to list of str
        By recipe, those without any left out.
    """

    version: str
    differences: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [f"{name}: {text}" for name, texts in self.differences.items() for text in texts]
        return "\n".join(lines)


def differences(names: Iterable[str] | None = None, *, executable: str = "esorex") -> Comparison:
    """Compare the declarations of recipes with the installed esorex.

    Parameters
    ----------
    names : iterable of str, optional
        Recipes; by default all, and it is told which are only declared or only installed.
    executable : str
        Name or path of esorex.

    Raises
    ------
    InputError
        If there is no esorex, or if it has no recipes for MUSE.
    """
    esorex = Esorex(executable)
    installed = esorex.recipes()
    if not installed:
        raise InputError(f"{esorex.executable}: it has no recipes muse_*; install them (on Debian and Ubuntu: "
                         "apt-get install cpl-plugin-muse)")  # fmt: skip
    found: dict[str, list[str]] = {}
    if names is None:
        found |= {name: ["not in esorex"] for name in RECIPES if name not in installed}
        found |= {name: ["not declared"] for name in installed if name not in RECIPES}
        names = [name for name in RECIPES if name in installed]
    names = list(names)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        described = dict(zip(names, pool.map(esorex.describe, names), strict=True))
    for name, other in described.items():
        if texts := recipe_differences(RECIPES[name], other.recipe):
            found[name] = texts
    return Comparison(", ".join(sorted({d.version for d in described.values()})), found)
