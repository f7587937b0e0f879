# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the engine's translated blocks short: a long one lets a program overwrite the host's memory.

The translator takes up to 512 instructions into one block, and has room for 512 temporaries, which
it does not check. Most x87 instructions leave two of them behind, so 230 such instructions in a
row, in ring 3 too, write over the translator's own state. With at most 64 instructions in a block,
none of which was seen to leave more than three, the room is never half full.

The limit stands as a constant in the function that begins a block; it is looked for there byte for
byte, and lowered in this process alone. tests/unit/machine/test_short_blocks.py runs such blocks.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from functools import cache
from typing import Final

MOST_INSTRUCTIONS: Final = 64

_FUNCTION: Final = "tb_gen_code_x86_64"
_SEARCHED_BYTES: Final = 256
_LIMIT: Final = (512).to_bytes(4, "little")
_COMPARE: Final = b"\x81\xfb"  # cmp ebx, 512
_OTHERWISE: Final = b"\x7f\x04\x85\xdb\x75\x05\xbb"  # jg 1f; test ebx, ebx; jnz 2f; 1: mov ebx, 512
_PROT_READ_EXEC: Final = mmap.PROT_READ | mmap.PROT_EXEC


def _sequence(limit: bytes) -> bytes:
    return _COMPARE + limit + _OTHERWISE + limit


@cache
def shorten_blocks(path: str) -> bool:
    """Lower the limit in the library at ``path``, once per process; tell whether that worked."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        function = ctypes.cast(ctypes.CDLL(path)[_FUNCTION], ctypes.c_void_p).value
    except AttributeError:
        return False
    assert function is not None
    code = ctypes.string_at(function, _SEARCHED_BYTES)
    if code.count(_sequence(_LIMIT)) != 1:
        return False
    at = function + code.index(_sequence(_LIMIT))
    new = _sequence(MOST_INSTRUCTIONS.to_bytes(4, "little"))
    start = at & -mmap.PAGESIZE
    size = at + len(new) - start
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(start, size, _PROT_READ_EXEC | mmap.PROT_WRITE):
        return False
    ctypes.memmove(at, new, len(new))
    return not protect(start, size, _PROT_READ_EXEC)
