# SPDX-License-Identifier: GPL-2.0-or-later
"""Name a kernel's addresses. Read only when something must be explained, never to start a domain.

Source: System V ABI, chapter 4 (symbol table).
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct
from typing import Final

from xenlite.errors import ConfigError
from xenlite.toolstack.elf import SHF_EXECINSTR, SHT_SYMTAB, ElfFile

MAX_SYMBOLS: Final = 1 << 20
MAX_NAME: Final = 256
_SYMBOL: Final = Struct("<IIIBBH")
_SHN_UNDEF: Final = 0
_SHN_ABS: Final = 0xFFF1
_STT_FUNC: Final = 2
# No type, object (the hypercall page is one), function.
_LABELS: Final = frozenset({0, 1, 2})


class Symbols:
    """The labels of one kernel by address, which are functions, and where its code lies."""

    def __init__(
        self, found: dict[int, str], code: list[range], functions: frozenset[int] = frozenset()
    ) -> None:
        self.names = found
        self.code = code
        self.functions = functions
        self._addresses = sorted(found)

    def is_code(self, address: int) -> bool:
        """Tell whether an address lies in the kernel's code."""
        return any(address in span for span in self.code)

    def name(self, address: int) -> str | None:
        """Return ``label+0x10`` for an address, or None below the first label."""
        place = bisect_right(self._addresses, address)
        if not place:
            return None
        start = self._addresses[place - 1]
        offset = address - start
        return f"{self.names[start]}+{offset:#x}" if offset else self.names[start]

    def show(self, address: int) -> str:
        """Return the address in hexadecimal, and its name where it has one."""
        name = self.name(address)
        return f"{address:08x}" if name is None else f"{address:08x} <{name}>"


def read_symbols(image: bytes) -> Symbols:
    """Read the labels of an unpacked kernel; none where it has no sound symbol table."""
    try:
        return _read(ElfFile(image, ""))
    except ConfigError:
        return Symbols({}, [])


def _read(elf: ElfFile) -> Symbols:
    sections = elf.sections()
    code = [range(s.vaddr, s.vaddr + s.size) for s in sections if s.flags & SHF_EXECINSTR]
    table = next((s for s in sections if s.kind == SHT_SYMTAB and s.link < len(sections)), None)
    found: dict[int, str] = {}
    functions: set[int] = set()
    if table is not None:
        names = elf.contents(sections[table.link])
        count = min(table.size // _SYMBOL.size, MAX_SYMBOLS)
        stored = elf.contents(table)[: count * _SYMBOL.size]
        for name, value, _, info, _, index in _SYMBOL.iter_unpack(stored):
            if info & 15 not in _LABELS or index in (_SHN_UNDEF, _SHN_ABS):
                continue
            text = bytes(names[name : name + MAX_NAME]).split(b"\0", 1)[0]
            # Of several names for one place, the first in the file: that is the linker's order.
            if text and not text.startswith((b".L", b"$")):
                found.setdefault(value, text.decode("ascii", "backslashreplace"))
                if info & 15 == _STT_FUNC:
                    functions.add(value)
    return Symbols(found, code, frozenset(functions))
