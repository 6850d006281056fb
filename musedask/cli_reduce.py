"""``musedask reduce``, ``status``, ``clean``: from raw exposures to cubes."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .cli_cluster import cluster_option

log = logging.getLogger("musedask")

_CONFIG = click.argument("config", type=click.Path(path_type=Path))


@click.command()
@_CONFIG
@click.option("--engine", type=click.Choice(["auto", "esorex", "native"]), default=None,
              help="What recipes run on; auto: native where there is a native one.  [default: as configured, auto]")
@click.option("--from", "first", metavar="STEP", default=None, help="First step; what comes before must be there.")
@click.option("--to", "last", metavar="STEP", default=None, help="Last step.")
@click.option("--force", metavar="STEP", multiple=True, help="Repeat this step in any case; may be repeated.")
@click.option("--ifus", metavar="LIST", default=None, help="IFUs, e.g. 1-12,24.  [default: all there are]")
@cluster_option
@click.option("--n-workers", type=click.IntRange(1), default=None, help="Calls at a time without a cluster.")
@click.option("--memory-limit", metavar="SIZE", default=None, help="Memory for all tasks together, e.g. 16GB.")
@click.option("--dry-run", is_flag=True, help="Print all steps and write their sets of frames, but run nothing.")
def reduce(config: Path, cluster: str | None, ifus: str | None, dry_run: bool, **options: Any) -> None:  # fmt: skip
    """Reduce raw exposures to cubes, in one go.

    CONFIG is a file in JSON, YAML or TOML; those of MUSEreduce will do, "musedask config init" writes one.  Steps:
    bias, dark, flat, wavecal, lsf, twilight, sci_basic, std_basic, std_flux, astrometry, sky, sci_post, dither_collect,
    exp_align, exp_combine.

    What has been done with the same input and parameters is not repeated: after an interruption, or a change of the
    configuration, give the same command again.
    """
    from .compute import open_cluster
    from .workflow.config import load_config
    from .workflow.reduce import execute, plan_reduction

    loaded = load_config(config)
    if ifus is not None:
        from .cli import _range

        options["ifus"] = _range(ifus)
    plan = plan_reduction(loaded, **options)
    for line in plan.sorted.warnings():
        log.warning("%s", line)
    if dry_run:
        plan.write_sofs()
        click.echo(plan.describe())
        return
    with open_cluster(cluster or loaded.musedask.cluster, plan.settings.memory_limit) as client:
        execute(plan, client)


@click.command()
@_CONFIG
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(config: Path, form: str) -> None:
    """Show what of a reduction is done, running, failed, out of date, or still to be done."""
    from .workflow.reduce import plan_as_before
    from .workflow.status import find_status, table

    found = find_status(plan_as_before(config))
    if form == "text":
        click.echo(table(found))
        return
    rows = []
    for s in found:
        row = asdict(s)
        row.update(step=s.step.id, name=s.step.name, ob=s.step.ob, exposure=s.step.exposure, ifu=s.node.ifu)
        del row["node"]
        rows.append(row)
    click.echo(json.dumps(rows, indent=1))


@click.command()
@_CONFIG
@click.option("--std", "include_std", is_flag=True, help="Products of the standard star.")
@click.option("--combined", "include_combined", is_flag=True, help="Collected products of the exposures.")
@click.option("--calibrations", "include_calibrations", is_flag=True, help="All calibrations and pixel tables.")
@click.option("--yes", is_flag=True, help="Remove them; without it they are only listed.")
def clean(config: Path, yes: bool, **parts: bool) -> None:
    """List or remove intermediate products; raw files and cubes are never removed.

    Without an option for a part, those that the configuration names (section cleanup).
    """
    from .compute import format_bytes
    from .workflow.cleanup import cleanup, removable
    from .workflow.reduce import plan_as_before

    plan = plan_as_before(config)
    chosen = {name for name, wanted in parts.items() if wanted} or None
    found = removable(plan, chosen)
    if not yes:
        for removal in found:
            click.echo(f"{removal.path}  {format_bytes(removal.size)}")
        size = format_bytes(sum(r.size for r in found))
        click.echo(f"{len(found)} files, {size} would be freed; give --yes to remove them")
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(plan.state.locked())
        cleanup(plan, plan.state, chosen)
