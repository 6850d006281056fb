"""Checksums of FITS data units, taken piece by piece while a file is written.

``CHECKSUM`` and ``DATASUM`` follow FITS standard 4.0, appendix J.  They are ones'-complement sums of
32-bit words, which do not depend on the order of the words: pieces may be summed by any thread.
``DATAMD5`` is that of the reference pipeline, see `datamd5`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ONES = 0xFFFFFFFF
#: characters that an encoded checksum avoids: punctuation between digits, capitals and small letters
_EXCLUDED = frozenset((*range(0x3A, 0x41), *range(0x5B, 0x61)))
#: bytes from which the reference takes the MD5 sum of a data unit, again and again
MD5_PERIOD = 16 * 2880


@njit(nogil=True, cache=True)
def swap_and_sum(words: NDArray[np.uint32]) -> np.uint64:
    """Swap the bytes of native words in place and return the sum of the words as they were.

    One pass over the memory instead of two: swapping alone is bound by its bandwidth.

    Parameters
    ----------
    words : ndarray of uint32, shape (n,), n < 2**32
        Native (little-endian) words; big-endian ones on return.

    Returns
    -------
    uint64
    """
    total = np.uint64(0)
    for i in range(words.size):
        word = words[i]
        total += np.uint64(word)
        words[i] = (
            (word >> np.uint32(24))
            | ((word >> np.uint32(8)) & np.uint32(0xFF00))
            | ((word << np.uint32(8)) & np.uint32(0xFF0000))
            | (word << np.uint32(24))
        )
    return total


@njit(nogil=True, cache=True)
def swap_into(words: NDArray[np.uint32], out: NDArray[np.uint32]) -> np.uint64:
    """Like `swap_and_sum`, but leave the words as they are and put the swapped ones into `out`."""
    total = np.uint64(0)
    for i in range(words.size):
        word = words[i]
        total += np.uint64(word)
        out[i] = (
            (word >> np.uint32(24))
            | ((word >> np.uint32(8)) & np.uint32(0xFF00))
            | ((word << np.uint32(8)) & np.uint32(0xFF0000))
            | (word << np.uint32(24))
        )
    return total


def fold(total: int) -> int:
    """Bring a plain sum of 32-bit words into 32 bits, carries added at the low end."""
    while total > _ONES:
        total = (total & _ONES) + (total >> 32)
    return total


def sum_bytes(block: bytes) -> int:
    """Ones'-complement sum of big-endian words; the length must be a multiple of four."""
    return fold(int(np.frombuffer(block, ">u4").sum(dtype=np.uint64)))


def encode(total: int) -> str:
    """Write the complement of a sum as the 16 characters of a ``CHECKSUM`` card."""
    value = ~total & _ONES
    text = bytearray(16)
    for i in range(4):
        byte = value >> (24 - 8 * i) & 0xFF
        quarter, rest = divmod(byte, 4)
        characters = [quarter + 0x30 + rest, *[quarter + 0x30] * 3]
        # move pairs apart, keeping their sum, until no character is punctuation
        while any(character in _EXCLUDED for character in characters):
            for j in (0, 2):
                if characters[j] in _EXCLUDED or characters[j + 1] in _EXCLUDED:
                    characters[j] += 1
                    characters[j + 1] -= 1
        for j, character in enumerate(characters):
            text[4 * j + i] = character
    # the card's value starts one byte after a word boundary
    return (text[-1:] + text[:-1]).decode("ascii")


def datamd5(units: Iterable[tuple[bytes, int]], cancelled: Callable[[], bool] = bool) -> str:
    """MD5 sum that the reference writes into ``DATAMD5``.

    It runs over all data units with their padding.  Of a unit longer than 16 FITS blocks the
    reference reads the first 16 blocks over and over, up to the length of the unit; the later
    blocks never enter.  Found by experiment with esorex 3.13.6 and kept, since other tools compare
    the value; the content is protected by ``DATASUM``.

    Parameters
    ----------
    units : iterable of (bytes, int)
        The first `MD5_PERIOD` bytes (or all, with padding, if there are fewer) and the padded
        length of each data unit.
    cancelled : callable
        Asked now and then; true ends the work with a meaningless result.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    for head, length in units:
        times, rest = divmod(length, MD5_PERIOD)
        # long enough updates release the interpreter lock
        for _ in range(times):
            if cancelled():
                break
            md5.update(head)
        md5.update(head[:rest])
    return md5.hexdigest()
