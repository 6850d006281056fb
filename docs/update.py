"""Bring the generated parts of the pages up to date: ``python docs/update.py``.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is written here, from the declarations
of the recipes and of the command line; a test fails if a page is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from musedask.cli import main
from musedask.cube.params import EXTRA
from musedask.recipe_pages import parameter_table, recipe_index, recipe_page
from musedask.recipes import EXP_COMBINE, MAKE_CUBE, RECIPES
from musedask.workflow.config_pages import key_tables

ROOT = Path(__file__).resolve().parents[1]
_PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _text(value: object) -> str:
    return str(value).replace("|", "\\|")


def commands(group: click.Group = main, prefix: str = "musedask") -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, by their full names; of those of the recipes, what they have in common."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group) and command.commands:
            yield from commands(command, f"{prefix} {name}")
        elif isinstance(command, click.Group):
            recipe = next(iter(RECIPES.values()))
            made = command.get_command(click.Context(command), recipe.name)
            assert made is not None
            own = {p.name for p in recipe.parameters}
            common: list[click.Parameter] = [p for p in made.params if p.name not in own]
            yield f"{prefix} {name} RECIPE", click.Command(name, params=common, help=command.help)
        else:
            yield f"{prefix} {name}", command


def _options(command: click.Command) -> str:
    lines = []
    for p in command.params:
        if isinstance(p, click.Argument):
            continue
        assert isinstance(p, click.Option)
        names = ", ".join(f"`{name}`" for name in [*sorted(p.opts, key=len), *p.secondary_opts])
        if p.metavar:
            names += f" {p.metavar}"
        elif isinstance(p.type, click.Choice):
            names += " " + "\\|".join(map(str, p.type.choices))
        elif not p.is_flag:
            names += f" {p.type.name.split()[0].upper()}" * p.nargs
        text = _text(re.sub(r"\s+", " ", p.help or "")).strip()
        if p.show_default and p.default is not None and not p.is_flag:
            text = f"{text}  [default: {p.default}]".strip()
        lines.append(f"| {names} | {text} |")
    return "| option | |\n|---|---|\n" + "\n".join(lines) + "\n"


def _argument(p: click.Parameter) -> str:
    return (p.metavar or str(p.name).upper()).removesuffix("...") + "..." * (p.nargs == -1)


def _commands() -> str:
    parts = []
    for name, command in commands():
        arguments = " ".join(
            text if p.required else f"[{text}]"
            for p, text in ((p, _argument(p)) for p in command.params)
            if isinstance(p, click.Argument)
        )
        text = re.sub(r"(?<!\n)\n\s*(?!\n)", " ", (command.help or "").strip())
        text = "\n".join(line.strip() for line in text.splitlines())
        heading = f"{name} {arguments}".strip()
        options = "\n\n" + _options(command) if any(isinstance(p, click.Option) for p in command.params) else "\n"
        parts.append(f"## `{heading}`\n\n{text}{options}")
    return "\n" + "\n".join(parts) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "parameters of muse_exp_combine": lambda: parameter_table(EXP_COMBINE.parameters),
    "parameters of muse_scipost_make_cube": lambda: parameter_table(MAKE_CUBE.parameters),
    "parameters of musedask alone": lambda: parameter_table(EXTRA),
    "commands": _commands,
    "recipes": recipe_index,
    "keys of the configuration": key_tables,
    **{f"recipe {name}": partial(recipe_page, recipe) for name, recipe in RECIPES.items()},
}


def updated(text: str) -> str:
    """A page with its generated parts made anew."""
    return _PART.sub(lambda m: m[1] + PARTS[m[2]]() + m[3], text)


def pages() -> list[Path]:
    """README and all pages of the documentation."""
    folders = (ROOT / "docs", ROOT / "docs" / "recipes")
    return [ROOT / "README.md", *(page for folder in folders for page in sorted(folder.glob("*.md")))]


def recipe_pages() -> dict[Path, str]:
    """The page of each recipe, which is generated as a whole."""
    return {
        ROOT / "docs" / "recipes" / f"{name}.md": updated(f"<!-- generated: recipe {name} -->\n<!-- end -->\n")
        for name in RECIPES
    }


if __name__ == "__main__":
    for page, text in recipe_pages().items():
        if not page.exists():
            page.write_text(text)
            sys.stdout.write(f"{page.relative_to(ROOT)} added\n")
    for page in pages():
        old = page.read_text()
        new = updated(old)
        if new != old:
            page.write_text(new)
            sys.stdout.write(f"{page.relative_to(ROOT)} updated\n")
