"""``musedask recipe run RECIPE``: a command for each recipe, made from its declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_cluster import ClusterOption
from .cli_recipe import RecipeCommand
from .recipe import Recipe

_FILE = click.Path(path_type=Path)


def _common() -> list[click.Parameter]:
    """Arguments and options that all recipes have."""
    return [
        click.Argument(["sofs"], nargs=-1, required=True, type=_FILE, metavar="SOF..."),
        click.Option(
            ["--engine"], type=click.Choice(["auto", "esorex", "native"]), default="auto", show_default=True,
            help="What computes: the recipe of the reference pipeline (esorex), or that of musedask (native); "
            "auto takes the latter where there is one.",
        ),
        click.Option(["--ifus"], default=None, metavar="LIST", help="IFUs, e.g. 1-12,24, instead of --nifu."),
        click.Option(["--output-dir"], type=_FILE, default=Path("."), help="Folder of the products.  [default: .]"),
        ClusterOption(),
        click.Option(["--n-workers"], type=click.IntRange(1), default=None, help="Calls at a time without a cluster."),
        click.Option(["--threads"], type=click.IntRange(1), default=None, help="Threads of a call."),
        click.Option(["--timeout"], type=float, default=None, metavar="SECONDS", help="Longest time of a call."),
        click.Option(["--scratch"], type=_FILE, default=None, help="Where calls work.  [default: the output folder]"),
        click.Option(["--keep-scratch"], is_flag=True, help="Leave the folders in which the calls worked."),
        click.Option(
            ["--overwrite/--no-overwrite"], default=True, show_default=True, help="Replace products that are there."
        ),
        click.Option(["--esorex"], default="esorex", metavar="PROGRAM", show_default=True, help="Name or path of it."),
        click.Option(["--dry-run"], is_flag=True, help="Check the input, print what would be done, and stop."),
    ]  # fmt: skip


def _command(recipe: Recipe) -> click.Command:
    return RecipeCommand(
        recipe, name=recipe.name, params=_common(), help=_help(recipe), short_help=recipe.synopsis,
        callback=lambda **options: _run(recipe, **options),
    )  # fmt: skip


def _help(recipe: Recipe) -> str:
    counts = ", ".join(f"{i.tag} ({i.count_text()})" for i in recipe.inputs)
    products = ", ".join(p.tag for p in recipe.products)
    return f"{recipe.synopsis}\n\nSOF lists the frames: {counts}.\n\nProducts: {products}."


def _run(recipe: Recipe, /, **options: Any) -> None:
    from .calib.engine import execute, plan_recipe
    from .cli import _range
    from .compute import open_cluster

    sofs, cluster, dry_run, ifus = (options.pop(name) for name in ("sofs", "cluster", "dry_run", "ifus"))
    if ifus is not None:
        options["ifus"] = _range(ifus)
    # what is wrong with the input shows before a cluster is started
    plan = plan_recipe(recipe, sofs, cluster=cluster is not None, **options)
    if dry_run:
        click.echo(plan.describe())
        return
    try:
        with open_cluster(cluster) as client:
            execute(plan, client)
    except KeyboardInterrupt:
        click.echo("interrupted; the products of calls that had ended are kept", err=True)
        raise SystemExit(130) from None


class _Run(click.Group):
    """The recipes as commands, each made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the recipes."""
        from .recipes import RECIPES

        return list(RECIPES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Command of a recipe, by its name with or without ``muse_``."""
        from .errors import InputError
        from .recipes import get_recipe

        try:
            return _command(get_recipe(name))
        except InputError as error:
            raise click.UsageError(str(error), ctx) from error


run = _Run(
    "run",
    help="Run a recipe, for every IFU where it works on one.\n\nmusedask recipe run RECIPE --help tells its frames and "
    "parameters, which are those of the ESO pipeline.",
    subcommand_metavar="RECIPE SOF... [OPTIONS]",
)
