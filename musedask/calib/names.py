"""What the files that a call of a recipe makes are called."""

from __future__ import annotations

import re

from ..recipe import Recipe

_NAME = re.compile(r"(?P<tag>.+?)(?P<number>_\d{4})?(?P<ifu>-\d\d)?\.fits")


def tag_of(name: str, recipe: Recipe) -> str | None:
    """Tag of a product by the name of its file, None if the recipe makes no such product."""
    match = _NAME.fullmatch(name)
    return match["tag"] if match and any(p.tag == match["tag"] for p in recipe.products) else None


def may_be_made(name: str, recipe: Recipe, ifu: int | None) -> bool:
    """Whether a call of the recipe, for one IFU or merged, may write a file of this name."""
    match = _NAME.fullmatch(name)
    if not match:
        return False
    suffixes = ("", None, "-" + f"{ifu or 0:02d}")
    return match["ifu"] in suffixes and any(
        p.tag == match["tag"] and bool(match["number"]) == (p.mode != "master") for p in recipe.products
    )
