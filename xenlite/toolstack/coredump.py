# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a stopped domain as an ELF core that gdb opens with the kernel's symbols.

Memory is as the page tables of one vCPU show it, by virtual address; each vCPU is a thread, that
one the first. Source: System V ABI, chapter 5; Linux, struct elf_prstatus for i386.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xenlite.doors import Control, MappedRange

_HEADER: Final = Struct("<16sHHIIIIIHHHHHH")
_PROGRAM: Final = Struct("<IIIIIIII")
_NOTE: Final = Struct("<III8s")
_PRSTATUS: Final = Struct("<3iH2x2I4i8I17II")
_IDENT: Final = b"\x7fELF\x01\x01\x01"
_ET_CORE, _EM_386, _EV_CURRENT = 4, 3, 1
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X, _PF_W, _PF_R = 1, 2, 4
_NT_PRSTATUS: Final = 1
_SIGNAL: Final = 6  # SIGABRT: what ends a domain is no signal
_PAGE: Final = 4096
_CHUNK: Final = 1 << 20
MOST_RANGES: Final = 0xFFF0  # program headers are counted in 16 bits
MOST_BYTES: Final = 0xE0000000  # and offsets are of 32
_NO_SYSTEM_CALL: Final = 0xFFFFFFFF  # as orig_eax
# The order of struct user_regs_struct.
_REGISTERS: Final = (
    *("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs"),
    *("orig_eax", "eip", "cs", "eflags", "esp", "ss"),
)


def write_core(
    control: Control,
    domid: int,
    vcpu: int,
    file: BinaryIO,
    *,
    most_bytes: int,
    most_ranges: int = MOST_RANGES,
) -> bool:
    """Write the domain as vCPU ``vcpu`` sees it; False where the limits left something out.

    A guest may map one frame at a million addresses: neither the disk nor the format has room for
    that. Raises OSError.
    """
    ranges, is_whole = _within(control.mapped(domid, vcpu), most_bytes, most_ranges)
    others = [other for other in range(control.info(domid).vcpus) if other != vcpu]
    notes = b"".join(_thread(control, domid, number) for number in (vcpu, *others))
    count = 1 + len(ranges)
    notes_at = _HEADER.size + count * _PROGRAM.size
    memory_at = -(-(notes_at + len(notes)) // _PAGE) * _PAGE
    file.write(_header(count))
    file.write(_PROGRAM.pack(_PT_NOTE, notes_at, 0, 0, len(notes), 0, 0, 4))
    at = memory_at
    for one in ranges:
        flags = _PF_R | (_PF_W if one.writable else 0) | (_PF_X if one.executable else 0)
        file.write(_PROGRAM.pack(_PT_LOAD, at, one.vaddr, 0, one.size, one.size, flags, _PAGE))
        at += one.size
    file.write(notes)
    file.write(bytes(memory_at - notes_at - len(notes)))
    for one in ranges:
        for data in _contents(control, domid, vcpu, one):
            file.write(data)
    return is_whole


def _within(
    mapped: Iterable[MappedRange], most_bytes: int, most_ranges: int
) -> tuple[list[MappedRange], bool]:
    """Take ranges up to both limits; tell whether that is all of them."""
    taken: list[MappedRange] = []
    left = most_bytes
    for one in mapped:
        if len(taken) == most_ranges:
            return taken, False
        if one.size > left:
            return [*taken, replace(one, size=left)], False
        taken.append(one)
        left -= one.size
    return taken, True


def _contents(control: Control, domid: int, vcpu: int, one: MappedRange) -> Iterator[bytes]:
    for vaddr in range(one.vaddr, one.vaddr + one.size, _CHUNK):
        size = min(_CHUNK, one.vaddr + one.size - vaddr)
        yield control.read_virtual(domid, vcpu, vaddr, size)


def _header(programs: int) -> bytes:
    return _HEADER.pack(
        _IDENT,
        _ET_CORE,
        _EM_386,
        _EV_CURRENT,
        0,
        _HEADER.size,
        0,
        0,
        _HEADER.size,
        _PROGRAM.size,
        programs,
        0,
        0,
        0,
    )


def _thread(control: Control, domid: int, vcpu: int) -> bytes:
    """Return the note of one vCPU; none of one that never ran."""
    registers = control.registers(domid, vcpu)
    if not registers:
        return b""
    registers["orig_eax"] = _NO_SYSTEM_CALL
    words = (registers[name] & 0xFFFFFFFF for name in _REGISTERS)
    status = _PRSTATUS.pack(
        *(_SIGNAL, 0, 0, _SIGNAL, 0, 0),
        *(vcpu + 1, 0, 0, 0),
        *(0,) * 8,
        *words,
        0,
    )
    return _NOTE.pack(len(b"CORE\0"), len(status), _NT_PRSTATUS, b"CORE") + status
