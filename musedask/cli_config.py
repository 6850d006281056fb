"""The commands ``musedask config ...``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .workflow.config_file import Format

_FILE = click.Path(path_type=Path)
_format = click.option(
    "--format", "kind", type=click.Choice(["yaml", "json", "toml"]), default=None,
    help="Format.  [default: by the suffix, else YAML]",
)  # fmt: skip
_overwrite = click.option("--overwrite", is_flag=True, help="Replace a file that is there.")


@click.group()
def config() -> None:
    """Configurations of a reduction: musedask's and those of MUSEreduce."""


def _kind(path: Path, kind: str | None) -> Format:
    from .workflow.config_file import format_of

    if kind is not None:
        return kind  # type: ignore[return-value]
    return "yaml" if path == Path("-") else format_of(path)


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    from .io.files import atomic_path

    if path == Path("-"):
        click.echo(text, nl=False)
        return
    with atomic_path(path, overwrite=overwrite) as part:
        part.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}")


@config.command("init")
@click.argument("path", metavar="FILE", type=_FILE, default=Path("musedask.yaml"))
@click.option("--rootpath", default=None, metavar="FOLDER", help="Parent of the folders raw and reduced.")
@click.option("--pipeline-path", default=None, metavar="FOLDER", help="Folder of the installed pipeline.")
@click.option("--static-calib-path", default=None, metavar="FOLDER", help="Folder of static calibrations.")
@_format
@_overwrite
def init(path: Path, kind: str | None, overwrite: bool, **given: Any) -> None:
    """Write a configuration with all keys, their defaults and what they do.

    FILE is musedask.yaml by default, - is the standard output.  JSON has no comments.
    """
    from .workflow.config_pages import new_file

    values = {name: value for name, value in given.items() if value is not None}
    _write(path, new_file(_kind(path, kind), {"global": values}), overwrite=overwrite)


@config.command("check")
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--strict", is_flag=True, help="Warnings are errors.")
@click.pass_context
def check(ctx: click.Context, path: Path, strict: bool) -> None:
    """Check a configuration, and print what differs from the defaults.

    Also what is noteworthy, as other spellings of keys, and folders that do not exist; then the exit status is 1.
    """
    from .workflow.config import read_config
    from .workflow.config_pages import missing, report

    found = read_config(path, strict=strict)
    absent = missing(found)
    click.echo(report(found, absent), nl=False)
    if absent:
        ctx.exit(1)


@config.command("migrate")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE, default=Path("-"))
@click.option("--all", "full", is_flag=True, help="Write all keys, not only those that are there.")
@_format
@_overwrite
def migrate(old: Path, new: Path, kind: str | None, full: bool, overwrite: bool) -> None:
    """Rewrite a configuration of MUSEreduce with the names of keys that musedask uses.

    NEW is the standard output by default.  Options of esorex become recipe parameters.
    """
    from .workflow.config import load_config, read_config
    from .workflow.config_pages import migrated

    found = load_config(read_config(old, complete=False))
    elsewhere = new != Path("-") and os.path.realpath(new.absolute().parent) != os.path.realpath(old.absolute().parent)
    _write(new, migrated(found, _kind(new, kind), full=full, absolute=elsewhere), overwrite=overwrite)
