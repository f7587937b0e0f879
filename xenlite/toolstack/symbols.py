# SPDX-License-Identifier: GPL-2.0-or-later
"""Name a kernel's addresses. Read only when something must be explained, never to start a domain.

Source: System V ABI, chapter 4 (symbol table).
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct
from typing import Final

from xenlite.toolstack.image import sections

MAX_SYMBOLS: Final = 1 << 20
_SYMBOL: Final = Struct("<IIIBBH")
_SHT_SYMTAB: Final = 2
_SHF_EXECINSTR: Final = 4
_SHN_UNDEF: Final = 0
_SHN_ABS: Final = 0xFFF1
# No type, object (the hypercall page is one), function.
_LABELS: Final = frozenset({0, 1, 2})


class Symbols:
    """The labels of one kernel, by address, and where its code lies."""

    def __init__(self, found: dict[int, str], code: list[range]) -> None:
        self._names = found
        self._addresses = sorted(found)
        self._code = code

    def is_code(self, address: int) -> bool:
        """Tell whether an address lies in the kernel's code."""
        return any(address in span for span in self._code)

    def name(self, address: int) -> str | None:
        """Return ``label+0x10`` for an address, or None below the first label."""
        place = bisect_right(self._addresses, address)
        if not place:
            return None
        start = self._addresses[place - 1]
        offset = address - start
        return f"{self._names[start]}+{offset:#x}" if offset else self._names[start]

    def show(self, address: int) -> str:
        """Return the address in hexadecimal, and its name where it has one."""
        name = self.name(address)
        return f"{address:08x}" if name is None else f"{address:08x} <{name}>"


def read_symbols(image: bytes) -> Symbols:
    """Read the labels of an unpacked kernel; none where it has no sound symbol table."""
    found: dict[int, str] = {}
    table = sections(image)
    code = [range(s.vaddr, s.vaddr + s.size) for s in table if s.flags & _SHF_EXECINSTR]
    for section in table:
        if section.kind != _SHT_SYMTAB or section.link >= len(table):
            continue
        names = table[section.link].contents
        whole = len(section.contents) // _SYMBOL.size * _SYMBOL.size
        symbols = section.contents[: min(whole, MAX_SYMBOLS * _SYMBOL.size)]
        for name, value, _, info, _, index in _SYMBOL.iter_unpack(symbols):
            if info & 15 not in _LABELS or index in (
                _SHN_UNDEF,
                _SHN_ABS,
            ):
                continue
            text = bytes(names[name : name + 256]).split(b"\0", 1)[0]
            # Of several names for one place, the first in the file: that is the linker's order.
            if text and not text.startswith((b".L", b"$")):
                found.setdefault(value, text.decode("ascii", "backslashreplace"))
    return Symbols(found, code)
