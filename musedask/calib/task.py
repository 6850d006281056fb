"""What a native recipe is given, and what it gives back.

A native recipe is a function of a `Task` that yields `Made` products one by one: each is written when it
comes, so that its arrays need not be kept, and those that are finished stay if a later step fails.  What it has to say
goes to the logger ``musedask``: the engine gives it to the call, whose log and record it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits

from ..errors import InputError
from ..io.sof import Frame
from ..recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One call of a recipe: for one IFU where it works on one.

    Attributes
    ----------
    recipe : Recipe
    ifu : int or None
    frames : tuple of Frame
        Those that this call needs: of the recipe's tags, and with data of this IFU; their numbers have been
        checked.
    values : mapping
        All parameters of the recipe.
    n_threads : int
        Threads that the call may use.
    """

    recipe: Recipe
    ifu: int | None
    frames: tuple[Frame, ...]
    values: Mapping[str, Any]
    n_threads: int = 1

    def tagged(self, *tags: str) -> list[Frame]:
        """Frames of some tags, in the order given."""
        return [f for f in self.frames if f.tag in tags]

    def path(self, tag: str) -> Path | None:
        """The only file of a tag, None if there is none.

        Raises
        ------
        InputError
            If there are several.
        """
        found = [f.path for f in self.frames if f.tag == tag]
        if len(found) > 1:
            raise InputError(f"{tag}: {', '.join(map(str, found))} found, expected one")
        return found[0] if found else None


@dataclass(eq=False)
class Made:
    """A product that is not a file yet.

    Attributes
    ----------
    tag : str
        ``PRO CATG``.
    content : object
        What `musedask.io.product_files.write_product` takes: `MuseImage`, `TraceTable`, `TraceSamples`, `WavecalTable`
        or another class of `musedask.io`, an array that is the image of the primary HDU.
    header : astropy.io.fits.Header
        Cards of the first raw frame (primary and extension), of ``ESO DRS MUSE`` and ``ESO QC``; the engine adds
        those about files and provenance.
    raws : sequence of Frame or None
        Raw frames that it was made of, None for all of the task, or if the product's mode is ``dateobs``, those
        that have the ``DATE-OBS`` of the header.
    """

    tag: str
    content: Any
    header: fits.Header
    raws: Sequence[Frame] | None = None


#: a native recipe
NativeFunction = Callable[[Task], Iterator[Made]]
