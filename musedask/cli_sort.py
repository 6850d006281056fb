"""``musedask sort``: what goes with what, before anything runs."""

from __future__ import annotations

import logging
from pathlib import Path

import click

log = logging.getLogger("musedask")

_FOLDER = click.Path(path_type=Path)
_PREFERENCES = ["raw", "master", "raw_per_quality_level", "master_per_quality_level"]


@click.command()
@click.argument("raw", nargs=-1, type=_FOLDER)
@click.option("--config", type=_FOLDER, default=None, help="Configuration whose rules and selections count.")
@click.option("--statics", type=_FOLDER, default=None, help="Folder of the static calibrations.")
@click.option("--preference", type=click.Choice(_PREFERENCES), default=None,
              help="Raw frames or finished calibrations.  [default: as configured, raw_per_quality_level]")
@click.option("--lists", type=_FOLDER, default=None, help="Folder to which lists are written, to be edited.")
@click.option("--overwrite", is_flag=True, help="Replace lists that have other content.")
@click.option("--format", "form", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
def sort(
    raw: tuple[Path, ...],
    config: Path | None,
    statics: Path | None,
    preference: str | None,
    lists: Path | None,
    overwrite: bool,
    form: str,
) -> None:  # fmt: skip
    """Show which calibrations belong to which exposures and why, and what is missing.

    RAW are folders of raw exposures and archived calibrations, with the XML files of the archive if there are any; by
    default those of the configuration.  Levels: 0 calibration plan, 1 good, 2 probably acceptable, 3 risk.
    """
    from .workflow.lists import write_lists
    from .workflow.survey import survey
    from .workflow.table import csv_table, json_table, text_table

    if not raw and config is None:
        raise click.UsageError("give folders of raw exposures, or a configuration with --config")
    found = survey(raw, config, statics=statics, preference=preference)
    associations, ids = found.associations, found.ids
    if lists is not None:
        for path in write_lists(associations, ids, found.folders, lists, overwrite=overwrite):
            log.debug("wrote %s", path)
    if form == "csv":
        text = csv_table(associations, ids)
    else:
        text = (text_table if form == "text" else json_table)(associations, ids, found.problems)
    click.echo(text, nl=False)
