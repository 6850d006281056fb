"""The commands ``musedask recipe ...``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from .recipe import Parameter, Recipe
from .recipes import get_recipe


@click.group()
def recipe() -> None:
    """Recipes of the reference pipeline: what there is, what each takes and makes."""


@recipe.command("list")
def list_recipes() -> None:
    """List all recipes, and what they can run on."""
    from .recipe_pages import recipe_list

    click.echo(recipe_list(), nl=False)


@recipe.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Show input, products and parameters of a recipe.

    NAME may be without muse_.
    """
    from .recipe_pages import recipe_page

    page = recipe_page(get_recipe(name))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(page))
    else:
        click.echo(page, nl=False)


@recipe.command("check")
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--esorex", "executable", default="esorex", show_default=True, help="Name or path of esorex.")
def check_recipes(names: tuple[str, ...], executable: str) -> None:
    """Compare the declarations with the installed esorex: parameters, input and products.

    By default of all recipes.  The exit status is 1 if something differs.
    """
    from .calib.esorex_info import differences
    from .recipes import DRS_VERSION

    found = differences([get_recipe(name).name for name in names] or None, executable=executable)
    if not found.differences:
        click.echo(f"esorex has muse {found.version}; no differences from the declarations")
        return
    click.echo(found)
    count = sum(map(len, found.differences.values()))
    click.echo(
        f"esorex has muse {found.version}, the declarations are of {DRS_VERSION}; differences: {count}", err=True
    )
    raise SystemExit(1)


# --------------------------------------------------------------------------------- parameters as options


def parameter_options(parameters: Sequence[Parameter]) -> list[click.Option]:
    """Options of the parameters of a recipe, each None if it is not given.

    They are called as in the reference pipeline, ``--lsf_range``; ``--lsf-range`` is the same.  Values are checked by
    `Recipe.resolve`; that of a parameter that is true or false may be left out, see `RecipeCommand`.
    """
    return [_option(p) for p in parameters]


def _option(p: Parameter) -> click.Option:
    default = p.to_card(p.default)
    text = f"{p.help}  [{f'default: {default}; ' if default else ''}{p.values_text()}]"
    names = dict.fromkeys([f"--{p.name}", f"--{p.name.replace('_', '-')}"])
    kind = "BOOL" if p.type is bool else {int: "INTEGER", float: "NUMBER"}.get(p.type, "TEXT")
    check: Callable[[click.Context, click.Parameter, Any], Any] = lambda context, option, value: (  # noqa: E731
        None if value is None else p.check(value)
    )
    return click.Option([*names, p.name], metavar=kind, default=None, callback=check, help=text)


class RecipeCommand(click.Command):
    """A command with the parameters of a recipe as options; ``--merge`` alone means ``--merge=true``, as for esorex.

    Parameters
    ----------
    recipe : Recipe
    **options
        As of `click.Command`; ``params`` come before the parameters of the recipe.
    """

    def __init__(self, recipe: Recipe, *, params: Sequence[click.Parameter] = (), **options: Any) -> None:
        super().__init__(params=[*params, *parameter_options(recipe.parameters)], **options)
        names = [p.name for p in recipe.parameters if p.type is bool]
        self._flags = re.compile(f"--({'|'.join(names) or '(?!)'})")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give flags their value, then parse."""
        given: list[str] = []
        for i, argument in enumerate(args):
            if argument == "--":
                given += args[i:]
                break
            flag = self._flags.fullmatch(argument.replace("-", "_").replace("__", "--", 1))
            # --merge false: not a set of frames of that name
            apart = args[i + 1 : i + 2] if flag and args[i + 1 : i + 2] in (["true"], ["false"]) else []
            given.append(f"--{flag[1]}=true" if flag and not apart else argument)
        return super().parse_args(ctx, given)
