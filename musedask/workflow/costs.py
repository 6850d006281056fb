"""What a call takes, time and memory: first guesses, corrected by the calls that were measured.

The guesses are for esorex 2.8.7 on one core of 2020; what matters is their ratio.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..calib.provenance import CallRecord

GB = 1_000_000_000


@dataclass(frozen=True)
class Cost:
    """Time and memory of a recipe, as linear functions.

    Attributes
    ----------
    seconds, seconds_per_raw, seconds_per_gb : float
        Time, for each raw exposure, for each GB of other input [s].
    memory, memory_per_raw, memory_per_byte : float
        Likewise [bytes].
    """

    seconds: float
    seconds_per_raw: float = 0.0
    seconds_per_gb: float = 0.0
    memory: float = 0.5 * GB
    memory_per_raw: float = 0.0
    memory_per_byte: float = 0.0


#: of a call for one IFU, or of all that a recipe for all IFUs takes
_ESOREX = {
    "muse_bias": Cost(4, 3.6, memory=0.3 * GB, memory_per_raw=0.21 * GB),
    "muse_dark": Cost(5, 3.6, memory=0.4 * GB, memory_per_raw=0.21 * GB),
    "muse_flat": Cost(6, 3.6, memory=0.3 * GB, memory_per_raw=0.21 * GB),
    "muse_wavecal": Cost(12, 3.6, memory=0.7 * GB, memory_per_raw=0.07 * GB),
    "muse_lsf": Cost(60, 5, memory=0.8 * GB, memory_per_raw=0.07 * GB),
    "muse_twilight": Cost(5, 4, 20, memory=0.3 * GB, memory_per_raw=0.21 * GB, memory_per_byte=0.5),
    "muse_scibasic": Cost(4, 9, memory=0.8 * GB, memory_per_raw=0.55 * GB),
    "muse_standard": Cost(10, 0, 45, memory=0.4 * GB, memory_per_byte=1.5),
    "muse_create_sky": Cost(10, 0, 40, memory=0.4 * GB, memory_per_byte=1.5),
    "muse_astrometry": Cost(5, 0, 25, memory=0.4 * GB, memory_per_byte=1.5),
    "muse_scipost": Cost(20, 0, 90, memory=0.5 * GB, memory_per_byte=2.5),
    "muse_exp_align": Cost(0.5, 0, 10, memory=0.05 * GB, memory_per_byte=4),
    "muse_exp_combine": Cost(5, 0, 40, memory=0.5 * GB, memory_per_byte=2.2),
}
_NATIVE = {
    "muse_bias": Cost(1, 0.6, memory=0.35 * GB, memory_per_raw=0.06 * GB),
    "muse_dark": Cost(1, 0.7, memory=0.5 * GB, memory_per_raw=0.08 * GB),
    "muse_flat": Cost(2, 0.7, memory=0.5 * GB, memory_per_raw=0.07 * GB),
    "muse_wavecal": Cost(3, 0.5, memory=0.8 * GB, memory_per_raw=0.05 * GB),
    "muse_exp_combine": Cost(5, 0, 10, memory=0.3 * GB),
}
_OTHERS = Cost(0.1, memory=0.05 * GB)
_UNKNOWN = Cost(20, 4, 40, memory=0.5 * GB, memory_per_raw=0.3 * GB, memory_per_byte=2.0)


@dataclass(frozen=True)
class Size:
    """How much a call takes in.

    Attributes
    ----------
    raws : int
        Raw images of detectors.
    size : int
        All other input [bytes].
    """

    raws: int = 0
    size: int = 0


class Costs:
    """Estimates of time and memory."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}
        self._memory: dict[tuple[str, str], float] = {}

    def learn(self, record: CallRecord, size: Size) -> None:
        """Correct the estimates of a recipe by a call that was measured.

        The largest memory counts, and the mean of the time, with more weight on the latest.
        """
        if not record.ok or record.wall_time <= 0:
            return
        key = (record.recipe, record.engine)
        seconds = record.wall_time / self._base(*key, size)[0]
        self._seconds[key] = seconds if key not in self._seconds else 0.7 * self._seconds[key] + 0.3 * seconds
        # a native call tells the peak of a process that may have done other things
        if record.engine == "esorex" and record.peak_memory:
            memory = record.peak_memory / self._base(*key, size)[1]
            self._memory[key] = max(self._memory.get(key, 0.0), memory)

    def seconds(self, recipe: str, engine: str, size: Size) -> float:
        """Time that a call will take [s]."""
        return self._base(recipe, engine, size)[0] * self._seconds.get((recipe, engine), 1.0)

    def memory(self, recipe: str, engine: str, size: Size) -> int:
        """Memory that it will take [bytes]."""
        base = self._base(recipe, engine, size)[1]
        # a little more than what was measured, since no two calls are the same
        return int(base * 1.05 * self._memory.get((recipe, engine), 1.0))

    def _base(self, recipe: str, engine: str, size: Size) -> tuple[float, float]:
        table = _ESOREX if engine == "esorex" else _NATIVE
        cost = table.get(recipe, _UNKNOWN if recipe.startswith("muse_") else _OTHERS)
        return (
            cost.seconds + cost.seconds_per_raw * size.raws + cost.seconds_per_gb * size.size / GB,
            cost.memory + cost.memory_per_raw * size.raws + cost.memory_per_byte * size.size,
        )


def size_of(record: CallRecord, raw_tags: Iterable[str]) -> Size:
    """What a call took in."""
    raws = {*raw_tags}
    return Size(
        sum(f.tag in raws for f in record.inputs), sum(f.size for f in record.inputs if f.tag not in raws)
    )
