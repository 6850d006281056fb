"""The command line: ``musedask VERB``.  Parses, calls the API, prints."""

from __future__ import annotations

import errno
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ._version import __version__
from .cli_cluster import cluster as cluster_group
from .cli_cluster import cluster_option
from .cli_config import config as config_group
from .cli_products import badpix, product
from .cli_recipe import recipe
from .cli_reduce import clean, reduce, status
from .cli_run import run as recipe_run
from .cli_sort import sort
from .cube.params import EXTRA
from .errors import MusedaskError
from .recipe import Parameter
from .recipes import EXP_COMBINE, MAKE_CUBE

log = logging.getLogger("musedask")
_STARTED = time.perf_counter()
#: of Python objects, between two searches for those that are not used any more
_ALLOCATIONS = 100_000

FILE = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text


def _set_up_logging(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)


class _Group(click.Group):
    """Turns errors that explain themselves into one message and an exit status."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program, with the search for unused objects less often: it takes a tenth of a short call."""
        before = gc.get_threshold()
        gc.set_threshold(_ALLOCATIONS)
        try:
            return super().main(*args, **options)
        finally:
            gc.set_threshold(*before)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MusedaskError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted; finished work is kept, give the same command again to go on", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise click.ClickException(f"no space left on the disk: {error}") from error
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except MemoryError as error:
            raise click.ClickException(f"out of memory: {error}; try a smaller --memory-limit") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="musedask")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.pass_context
def main(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """MUSE data reduction on Dask: mosaic cubes bigger than memory, with the numbers of the ESO pipeline."""
    _set_up_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def _stack(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _parameter_options(parameters: Sequence[Parameter]) -> Decorator:
    """Options of recipe parameters, from their declaration."""
    options: list[Decorator] = []
    for p in parameters:
        name = "--" + p.name.replace("_", "-")
        names = [name, p.name]
        if p.type is bool:
            options.append(click.option(*names, is_flag=True, default=None, help=p.help))
            continue
        kind: Any = click.Choice(p.choices) if p.choices else p.type
        options.append(click.option(*names, type=kind, default=None, help=f"{p.help}  [default: {p.default}]"))
    return _stack(*options)


_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing outputs and start anew.")
_memory = click.option(
    "--memory-limit",
    metavar="SIZE",
    default=None,
    help="Memory for all tasks together, e.g. 2GB.  [default: 0.6 of what is free]",
)
_running = _stack(
    _memory,
    cluster_option,
    click.option("--n-workers", type=click.IntRange(1), default=None, help="Number of local threads."),
    _overwrite,
)
_making = _stack(
    click.option("-o", "--output", type=FILE, required=True, help="Zarr cube to write, or a .fits cube."),
    click.option("--fits", "fits_output", type=FILE, default=None, help="FITS cube to write as well."),
    click.option("--output-wcs", type=FILE, default=None, help="OUTPUT_WCS: grid of the cube."),
    click.option("--filter-list", type=FILE, default=None, help="FILTER_LIST: curves of the filters."),
    click.option(
        "--chunks", metavar="Z,Y,X", default=None, help="Voxels of one task, instead of a planned number."
    ),
    click.option("--dry-run", is_flag=True, help="Check the inputs, print the plan, and stop."),
    _running,
)


def _show_start() -> None:
    log.info("musedask %s, started in %.1f s", __version__, time.perf_counter() - _STARTED)


def _chunks(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        z, y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("expected three numbers, e.g. 32,300,300", param_hint="--chunks") from None
    if min(z, y, x) < 1:
        raise click.BadParameter("expected positive numbers", param_hint="--chunks")
    return z, y, x


def _run_on(cluster: str | None, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    from .compute import open_cluster

    with open_cluster(cluster, options.get("memory_limit")) as client:
        _show_start()
        return function(*args, client=client, **options)


@main.command()
@click.argument("tables", nargs=-1, required=True, type=FILE)
@click.option("--offset-list", type=FILE, default=None, help="OFFSET_LIST: offsets and flux scales.")
@_making
@_parameter_options(EXP_COMBINE.parameters)
@_parameter_options(EXTRA)
def combine(tables: tuple[Path, ...], cluster: str | None, chunks: str | None, **options: Any) -> None:
    """Combine exposures into one cube, as muse_exp_combine does, in bounded memory.

    TABLES are reduced pixel tables (PIXTABLE_REDUCED), or one pixel store made by "musedask store".
    """
    from .cube.mosaic import combine as run

    _run_on(cluster, run, list(tables), chunks=_chunks(chunks), open_result=False, **options)


@main.command("make-cube")
@click.argument("tables", nargs=-1, required=True, type=FILE)
@_making
@_parameter_options(MAKE_CUBE.parameters)
@_parameter_options(EXTRA)
def make_cube(tables: tuple[Path, ...], cluster: str | None, chunks: str | None, **options: Any) -> None:
    """Make the cube of one pixel table, as muse_scipost_make_cube does.

    TABLES is a pixel table of any stage, the single-IFU tables of one exposure, or a store of it.
    """
    from .cube.mosaic import make_cube as run

    _run_on(cluster, run, list(tables), chunks=_chunks(chunks), open_result=False, **options)


@main.command()
@click.argument("tables", nargs=-1, required=True, type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Pixel store (Zarr) to write.")
@_running
@_parameter_options([p for p in EXP_COMBINE.parameters if p.name in ("lambdamin", "lambdamax")])
def store(tables: tuple[Path, ...], cluster: str | None, **options: Any) -> None:
    """Read pixel tables once and write them sorted by wavelength; combine and make-cube take the result."""
    from .cube.mosaic import make_store

    options = {k: v for k, v in options.items() if v is not None}
    path = _run_on(cluster, make_store, list(tables), **options)
    log.info("wrote %s", path)


# ---------------------------------------------------------------------------------------- cubes


@main.group()
def cube() -> None:
    """Verbs for cubes, FITS or Zarr, of musedask or of the reference pipeline."""


def _bytes(text: str | None) -> dict[str, int]:
    from .compute import parse_bytes

    return {} if text is None else {"memory_limit": parse_bytes(text)}


@cube.command("info")
@click.argument("path", type=FILE)
@click.option("--scan", is_flag=True, help="Read the whole cube: share of empty voxels, extremes.")
@click.option("--header", is_flag=True, help="Print the cards of the headers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cube_info(path: Path, scan: bool, header: bool, as_json: bool) -> None:
    """Describe a cube."""
    from .cube.verbs import cube_info as run
    from .cube.verbs import render_info

    info = run(path, scan=scan)
    if as_json:
        import json

        click.echo(json.dumps({k: v for k, v in info.items() if k != "headers"}, indent=1, default=str))
    else:
        click.echo(render_info(info, header=header))


@cube.command("to-fits")
@click.argument("path", type=FILE)
@click.argument("output", type=FILE)
@click.option(
    "--format", "kind", type=click.Choice(["Cube", "xCube", "Euro3D", "xEuro3D"]), default="Cube", show_default=True
)
@_memory
@_overwrite
def cube_to_fits(path: Path, output: Path, kind: str, memory_limit: str | None, overwrite: bool) -> None:
    """Write a cube as FITS, without holding it."""
    if kind.endswith("Euro3D"):
        from .io.euro3d import write_euro3d

        write_euro3d(path, output, images=kind.startswith("x"), overwrite=overwrite, **_bytes(memory_limit))
    else:
        from .io.cube import cube_to_fits as run

        with _percent("writing FITS") as progress:
            run(path, output, format=kind, overwrite=overwrite, progress=progress, **_bytes(memory_limit))  # type: ignore[arg-type]
    log.info("wrote %s", output)


class _percent:
    """Progress display for functions that report bytes."""

    def __init__(self, label: str) -> None:
        from .compute import Progress

        self._bar = Progress(label, 100)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.__enter__()
        return self._advance

    def _advance(self, done: int, total: int) -> None:
        self._bar.advance(100 * done // max(total, 1) - self._bar.done)

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)


@cube.command("combine")
@click.argument("output", type=FILE)
@click.argument("inputs", nargs=-1, required=True, type=FILE)
@_memory
@_overwrite
def cube_combine(output: Path, inputs: tuple[Path, ...], memory_limit: str | None, overwrite: bool) -> None:
    """Glue cubes of the same grid made in wavelength ranges (muse_cube_combine)."""
    from .cube.verbs import cube_combine as run

    with _percent("combining cubes") as progress:
        run(output, list(inputs), overwrite=overwrite, progress=progress, **_bytes(memory_limit))
    log.info("wrote %s", output)


@cube.command("concatenate")
@click.argument("output", type=FILE)
@click.argument("inputs", nargs=-1, required=True, type=FILE)
@_memory
@_overwrite
def cube_concatenate(output: Path, inputs: tuple[Path, ...], memory_limit: str | None, overwrite: bool) -> None:
    """Append cubes of adjacent wavelength ranges (muse_cube_concatenate)."""
    from .cube.verbs import cube_concatenate as run

    with _percent("concatenating cubes") as progress:
        run(output, list(inputs), overwrite=overwrite, progress=progress, **_bytes(memory_limit))
    log.info("wrote %s", output)


@cube.command("filter")
@click.argument("path", metavar="CUBE", type=FILE)
@click.argument("filter_list", required=False, type=FILE)
@click.option("-f", "--filter", "names", default=None, help="Filter names, comma-separated.  [default: all]")
@click.option("-l", "--box", nargs=2, type=float, default=None, help="Also a box between two wavelengths.")
@click.option("-x", "--extend", is_flag=True, help="Add the images to the cube instead of writing files.")
@_memory
@_overwrite
def cube_filter(
    path: Path,
    filter_list: Path | None,
    names: str | None,
    box: tuple[float, float] | None,
    extend: bool,
    memory_limit: str | None,
    overwrite: bool,
) -> None:
    """Make images of a cube through filters (muse_cube_filter)."""
    from .cube.verbs import cube_filter as run

    chosen = [name.strip() for name in names.split(",")] if names is not None else None
    if chosen is None and filter_list is None:
        chosen = [] if box is not None else ["white"]
    paths = run(
        path, filter_list, chosen, extend=extend, box=box or None, overwrite=overwrite, **_bytes(memory_limit)
    )
    log.info("wrote %s", ", ".join(map(str, paths)))


main.add_command(recipe)
recipe.add_command(recipe_run)
main.add_command(badpix)
main.add_command(product)
main.add_command(cluster_group)
main.add_command(config_group)
main.add_command(reduce)
main.add_command(sort)
main.add_command(status)
main.add_command(clean)


# ----------------------------------------------------------------------------------- simulation


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers with commas between them") from None


def _pairs(text: str | None) -> list[tuple[float, float]] | None:
    """``x,y;x,y`` as pairs."""
    if text is None:
        return None
    pairs = [_numbers(part) or [] for part in text.split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise click.BadParameter(f"{text!r}: expected pairs such as 0,0;1.2,-0.5")
    return [(pair[0], pair[1]) for pair in pairs]


def _range(text: str) -> list[int]:
    """``1-3,7`` as numbers."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected something like 1-24 or 3,5-7") from None
    return numbers


@main.group()
def simulate() -> None:
    """Simulated data with known truth."""


@simulate.command("pixtables")
@click.argument("out_dir", type=FILE)
@click.option("--exposures", "n_exposures", type=click.IntRange(1), default=3, show_default=True)
@click.option("--scene", type=FILE, default=None, help="A YAML scene, or a cube to observe.  [default: stars, gas]")
@click.option("--ra", type=float, default=None, help="Centre [deg].")
@click.option("--dec", type=float, default=None, help="Centre [deg].")
@click.option("--offsets", default=None, metavar="X,Y;X,Y", help="Pointings from the centre [arcsec].")
@click.option("--mosaic", default=None, metavar="NxM", help="Fields of a mosaic, e.g. 2x2.")
@click.option("--rotations", default="0,90", show_default=True, help="Position angles [deg].")
@click.option("--exptimes", default="900", show_default=True, help="Exposure times [s].")
@click.option("--flux-scales", default=None, help="Factors that the data need, one per exposure.")
@click.option("--pointing-errors", default=None, metavar="X,Y;X,Y", help="Header minus true pointing [arcsec].")
@click.option("--ifus", default="1-24", show_default=True, help="IFUs, e.g. 1-24 or 12,13.")
@click.option("--slices", type=click.IntRange(1, 48), default=48, show_default=True, help="Slices of each IFU.")
@click.option("--wave-range", nargs=2, type=float, default=None, help="Wavelengths [Angstrom].")
@click.option("--n-rows", "n_rows_limit", type=int, default=None, help="About so many rows per exposure.")
@click.option("--mode", default="WFM-NOAO-N", show_default=True, help="Instrument mode.")
@click.option("--stage", type=click.Choice(["pix", "rad", "deg"]), default="rad", show_default=True)
@click.option("--form", type=click.Choice(["image", "table"]), default="image", show_default=True)
@click.option("--weight", is_flag=True, help="Add a weight column.")
@click.option("--cosmic-rays", type=float, default=2e-4, show_default=True, help="Share of rows hit.")
@click.option("--bad-pixels", type=float, default=2e-3, show_default=True, help="Share of bad pixels.")
@click.option("--no-noise", "noise", is_flag=True, flag_value=False, default=True, help="Exact values.")
@click.option("--per-ifu", is_flag=True, help="One file per IFU.")
@click.option("--seed", type=int, default=1, show_default=True)
@_overwrite
def simulate_pixtables(out_dir: Path, scene: Path | None, **options: Any) -> None:
    """Write pixel tables of dithered or mosaic exposures, their OFFSET_LIST and the truth."""
    from .sim import load_scene
    from .sim import simulate_pixtables as run

    for name in ("rotations", "exptimes", "flux_scales"):
        options[name] = _numbers(options[name])
    for name in ("offsets", "pointing_errors"):
        options[name] = _pairs(options[name])
    options["ifus"] = _range(options["ifus"])
    if scene is not None:
        options["scene"] = load_scene(scene)
    made = run(out_dir, **options)
    log.info("wrote %d pixel table%s, %s and %s", len(made.paths), "s" * (len(made.paths) != 1),
             made.offset_list, made.truth_path)  # fmt: skip


@simulate.command("night")
@click.argument("out_dir", metavar="OUT", type=FILE)
@click.option("--ifus", default="1-24", show_default=True, help="IFUs, e.g. 1-24 or 1,2.")
@click.option("--mode", default="WFM-NOAO-N", show_default=True, help="Instrument mode.")
@click.option("--scene", type=FILE, default=None, help="A YAML scene, or a cube to observe.  [default: stars, gas]")
@click.option("--ra", type=float, default=None, help="Target [deg].  [default: of the scene, or one that is up]")
@click.option("--dec", type=float, default=None, help="Target [deg].")
@click.option("--obs", "n_obs", type=click.IntRange(0), default=1, show_default=True, help="Observing blocks.")
@click.option("--name", default="", help="Name of the blocks.")
@click.option("--dithers", type=click.IntRange(1), default=4, show_default=True, help="Positions of a block.")
@click.option("--dither", type=float, default=None, help="Radius of the offsets [arcsec].")
@click.option("--rotate", type=float, default=90.0, show_default=True, help="Turn between positions [deg].")
@click.option("--exptimes", default="600", show_default=True, help="Exposures at each position [s].")
@click.option("--pointing-error", type=float, default=None, help="Header minus true position, one sigma [arcsec].")
@click.option("--date", "day", default="2018-11-08", show_default=True, help="Evening of the night.")
@click.option(
    "--calibrations",
    default=None,
    metavar="TYPE=N,...",
    help="Numbers of frames, as bias=3,arc=1,std=2; 'none' first for no others.",
)
@click.option("--darks", is_flag=True, help="Also 3 dark frames.")
@click.option("--masks", is_flag=True, help="Also 60 frames of the pinhole mask.")
@click.option("--compress", is_flag=True, help="Write .fits.fz.")
@click.option("--images", is_flag=True, help="Also the expected rate of every pixel, without noise.")
@click.option("--no-statics", "statics", is_flag=True, flag_value=False, default=True, help="No static calibrations.")
@click.option("--no-truth", "truth", is_flag=True, flag_value=False, default=True, help="No files with the truth.")
@click.option("--masters", is_flag=True, help="Also master calibrations, as from the archive.")
@click.option(
    "--no-associations", "associations", is_flag=True, flag_value=False, default=True,
    help="No XML files of the archive.",
)  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of noise, cosmic rays and drifts.")
@click.option("--dry-run", is_flag=True, help="Check the request, print the plan, and stop.")
@_running
def simulate_night(out_dir: Path, cluster: str | None, scene: Path | None, **options: Any) -> None:
    """Write the raw exposures of a night: calibrations, standard star, sky, science.

    OUT gets raw/, static/, truth/, night.json and frames.sof.  An interrupted night goes on with the same command.
    """
    from .sim import load_scene
    from .sim import simulate_night as run

    options["ifus"] = _range(options["ifus"])
    options["exptimes"] = _numbers(options["exptimes"])
    options["calibrations"] = _counts(options["calibrations"], options.pop("darks"), options.pop("masks"))
    options["scene"] = None if scene is None else load_scene(scene)
    night = _run_on(cluster, run, out_dir, **options)
    if not options["dry_run"]:
        log.info("%s: %d exposures, listed in %s", out_dir, len(night.paths), night.folder / "frames.sof")


def _counts(text: str | None, darks: bool, masks: bool) -> dict[str, int]:
    """``none,bias=3`` as numbers by type."""
    from .sim.schedule import COUNTS, N_MASKS

    counts: dict[str, int] = {}
    for part in (text or "").replace(" ", "").split(","):
        tag, equals, number = part.partition("=")
        if part in ("none", "all", ""):
            counts |= {known: 0 for known in COUNTS if part == "none"}
            continue
        try:
            counts[tag.upper()] = int(number if equals else "?")
        except ValueError:
            raise click.BadParameter(
                f"{part!r}: expected a type and a number, as bias=3", param_hint="--calibrations"
            ) from None
    if darks:
        counts.setdefault("DARK", 3)
    if masks:
        counts.setdefault("MASK", N_MASKS)
    return counts


@simulate.command("statics")
@click.argument("out_dir", metavar="OUT", type=FILE)
@click.option("--ifus", default="1-24", show_default=True, help="IFUs, e.g. 1-24 or 1,2.")
@click.option("--mode", default="WFM-NOAO-N", show_default=True, help="Instrument mode.")
@click.option("--no-vignetting", "vignetted", is_flag=True, flag_value=False, default=True, help="As since 2017.")
@_overwrite
def simulate_statics(out_dir: Path, ifus: str, **options: Any) -> None:
    """Write a complete set of static calibrations for the reference pipeline."""
    from .sim.night import write_all_statics

    files = write_all_statics(out_dir, ifus=_range(ifus), **options)
    log.info("wrote %d static calibrations to %s", len(files), out_dir)


@main.command()
@click.argument("out_dir", type=FILE, default=Path("demo"))
@click.option("--memory-limit", default="150MB", show_default=True, help="Memory for all tasks together.")
@cluster_option
def demo(out_dir: Path, memory_limit: str, cluster: str | None) -> None:
    """The main job on simulated data: a 2x2 mosaic larger than its memory, compared with the truth."""
    from .demo import run_demo

    click.echo(run_demo(out_dir, memory_limit=memory_limit, cluster=cluster))


if __name__ == "__main__":
    sys.exit(main())
