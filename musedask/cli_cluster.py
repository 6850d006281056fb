"""``musedask cluster``, and the option ``--cluster`` of all commands that compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path)


class ClusterOption(click.Option):
    """The option ``--cluster``, the same everywhere."""

    def __init__(self, param_decls: Sequence[str] | None = None, **attrs: Any) -> None:
        attrs = {
            "metavar": "SPEC",
            "default": None,
            "help": "Where tasks run: local[:N[:THREADS]] for N worker processes here; slurm, pbs, lsf, htcondor, sge, "
            "oar, moab[:JOBS] or the YAML file of a site[:JOBS] for jobs of a batch system; tcp://host:port or a "
            "scheduler file (.json[:WORKERS]) of a running Dask scheduler; by default threads of this process.",
            **attrs,
        }
        super().__init__(param_decls or ["--cluster"], **attrs)


#: decorator of commands
cluster_option = click.option("--cluster", cls=ClusterOption)


@click.group()
def cluster() -> None:
    """Configurations, job scripts and checks of clusters."""


@cluster.command()
@click.argument("name", required=False)
def template(name: str | None) -> None:
    """Print a commented configuration to adapt, or a job script; without NAME, list what there is.

    NAME is slurm, pbs, lsf or htcondor, or a script, e.g. slurm-run.sh.
    """
    from .batch import templates
    from .errors import InputError

    found = templates()
    if name is None:
        for known, path in found.items():
            click.echo(f"{known:16} {path}")
        return
    if name not in found:
        raise InputError(f"{name}: no such configuration; there are {', '.join(found)}")
    click.echo(found[name].read_text(), nl=False)


@cluster.command()
@click.argument("site")
def script(site: str) -> None:
    """Print the job that would be submitted for each worker; nothing is submitted.

    SITE is slurm, pbs, lsf, htcondor, sge, oar, moab, or the YAML file of a site.
    """
    from .batch import job_script

    click.echo(job_script(site), nl=False)


@cluster.command()
@cluster_option
@click.option(
    "--path", "paths", multiple=True, type=_FILE,
    help="Folder or file of the data; may be given several times.  [default: the current folder]",
)  # fmt: skip
@click.option("--scratch", type=_FILE, default=None, help="Where calls work.  [default: the folder of each worker]")
@click.option("--free", default="5GB", metavar="SIZE", show_default=True, help="Space wanted there.")
@click.option("--esorex", default="esorex", metavar="PROGRAM", show_default=True, help="Name or path of it.")
@click.option(
    "--wait", type=click.FloatRange(0), default=120.0, metavar="SECONDS", show_default=True,
    help="How long the number of workers that SPEC tells may take to be there.",
)  # fmt: skip
@click.option("--no-esorex", is_flag=True, help="It is not needed: native recipes and cubes only.")
@click.pass_context
def check(
    ctx: click.Context, cluster: str | None, paths: tuple[Path, ...], scratch: Path | None, free: str, esorex: str,
    wait: float, no_esorex: bool,
) -> None:  # fmt: skip
    """Do the workers see the data, and have what they need?

    Every worker reads what was written here and writes what is read here, in each folder; versions, esorex and its
    recipes, scratch space, memory and clocks are compared.  The exit status is 1 if something is wrong.
    """
    from .cluster_check import check_cluster
    from .clusters import parse_spec
    from .compute import open_cluster, parse_bytes

    wanted = parse_bytes(free)
    with open_cluster(cluster) as client:
        report = check_cluster(
            client, paths or (Path(),), scratch=scratch, free=wanted, esorex=None if no_esorex else esorex,
            wait=wait if cluster is not None and parse_spec(cluster).number else None,
        )  # fmt: skip
    click.echo(report.describe())
    if report.problems:
        ctx.exit(1)
