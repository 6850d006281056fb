"""Command line of the tools for bad pixels and for products of single IFUs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from .errors import InputError

log = logging.getLogger("musedask")

_FILE = click.Path(path_type=Path)
# musedask.instrument would bring numpy, which takes a while
_IFU = click.IntRange(1, 24)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
_table = click.option("-i", "--table", type=_FILE, default=None, help="BADPIX_TABLE to which the pixels are added.")


def _positions(function: Any) -> Any:
    """Options of the tools to which positions are given."""
    for option in reversed(
        (
            _table,
            click.option("-r", "--reference", type=_FILE, default=None, help="Image to take cards of the CCD from."),
            click.option("-n", "--extension", default=None, help="Its extension.  [default: that of the IFU]"),
            click.option("-t", "--trimmed", is_flag=True, help="Positions are those on the trimmed image."),
            _overwrite,
        )
    ):
        function = option(function)
    return function


@click.group()
def badpix() -> None:
    """Tables of bad pixels, which all recipes that read raw data take."""


@badpix.command("from-dq")
@click.argument("image", type=_FILE)
@click.argument("output", type=_FILE)
@_table
@_overwrite
def from_dq(image: Path, output: Path, table: Path | None, overwrite: bool) -> None:
    """Make a table of the pixels flagged in a master calibration (muse_badpix_from_dq).

    IMAGE has extensions DQ, as MASTER_FLAT-10.fits or a merged MASTER_FLAT.fits.
    """
    from .calib.badpix import badpix_from_dq

    log.info("wrote %s", badpix_from_dq(image, output, table=table, overwrite=overwrite))


@badpix.command("from-ascii")
@click.argument("listing", metavar="LIST", type=_FILE)
@click.argument("ifu", type=_IFU)
@click.argument("output", type=_FILE)
@_positions
def from_ascii(listing: Path, ifu: int, output: Path, **options: Any) -> None:
    """Make a table of the pixels listed in a text (muse_badpix_from_ascii).

    LIST has one pixel in a line: x, y on the raw image, and a flag, e.g. 256 or 0x100 for a hot pixel.
    """
    from .calib.badpix import badpix_from_ascii

    log.info("wrote %s", badpix_from_ascii(listing, ifu, output, **options))


@badpix.command("from-region")
@click.argument("region")
@click.argument("flag")
@click.argument("ifu", type=_IFU)
@click.argument("output", type=_FILE)
@_positions
def from_region(region: str, flag: str, ifu: int, output: Path, **options: Any) -> None:
    """Make a table of a rectangle of pixels (muse_badpix_from_region).

    REGION is "[x1:x2,y1:y2]" on the raw image, in quotation marks for the shell.
    """
    from .calib.badpix import badpix_from_region
    from .io.badpix import parse_flag

    log.info("wrote %s", badpix_from_region(region, parse_flag(flag), ifu, output, **options))


# ------------------------------------------------------------------------------------- products


@click.group()
def product() -> None:
    """Products of single IFUs in one file, and back."""


@product.command()
@click.argument("output", type=_FILE)
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("-d", "--delete", is_flag=True, help="Remove FILES when all is done.")
@_overwrite
def merge(output: Path, files: tuple[Path, ...], delete: bool, overwrite: bool) -> None:
    """Put the files of several IFUs into one, as --merge of the recipes does (muse_products_merge).

    OUTPUT is a file, or a folder for several products: FILES are then grouped by their names without the IFU.
    """
    from .io.merge import merge_products, product_groups

    if not output.is_dir():
        log.info("wrote %s", merge_products(files, output, overwrite=overwrite, delete=delete))
        return
    groups = product_groups(files)
    several = {name: paths for name, paths in groups.items() if len(paths) > 1 and not name.startswith("PIXTABLE_")}
    for name in groups.keys() - several.keys():
        reason = "a single file" if len(groups[name]) < 2 else "pixel tables are never merged"
        log.warning("%s: %s, left as it is", ", ".join(map(str, groups[name])), reason)
    if not several:
        raise InputError("there is nothing to merge: no two files are named like NAME-nn.fits with the same name")
    for name, paths in several.items():
        made = merge_products(paths, output / f"{name}.fits", overwrite=overwrite, delete=delete)
        log.info("wrote %s from %d files", made, len(paths))


@product.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--output-dir", type=_FILE, default=None, help="Folder of the outputs.  [default: that of FILE]")
@click.option("-d", "--delete", is_flag=True, help="Remove FILE when all is done.")
@_overwrite
def split(path: Path, output_dir: Path | None, delete: bool, overwrite: bool) -> None:
    """Make a file for each IFU of a merged product: NAME-nn.fits of NAME.fits (muse_product_split)."""
    from .io.merge import split_product

    made = split_product(path, output_dir, overwrite=overwrite, delete=delete)
    log.info("wrote %s", ", ".join(map(str, made)))
