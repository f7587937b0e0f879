# SPDX-License-Identifier: GPL-2.0-or-later
"""What a core holds, and that no guest makes it larger than its limits; gdb reads one in
tests/system/test_cli.py."""

from __future__ import annotations

import io

from elftools.elf.elffile import ELFFile

from tests.support.guest import BootedGuest, boot
from xenlite.toolstack.coredump import write_core

SOURCE = """
    mov eax, 0x12345678
    REMAP offset marked, PTE_RO_DATA
    ud2
.data
.p2align 12
marked: .long 0x600DF00D
    .space 4092
"""
PLENTY = 64 << 20


def core_of(guest: BootedGuest, **limits: int) -> tuple[ELFFile, bool]:
    file = io.BytesIO()
    is_whole = write_core(guest.control, guest.domid, 0, file, **{"most_bytes": PLENTY, **limits})
    file.seek(0)
    return ELFFile(file), is_whole


def test_a_core_holds_memory_by_virtual_address_with_its_rights() -> None:
    with boot(SOURCE) as guest:
        elf, is_whole = core_of(guest)
        assert is_whole
        loads = [one for one in elf.iter_segments() if one["p_type"] == "PT_LOAD"]
        address = guest.symbols["marked"]
        (holding,) = [
            one for one in loads if one["p_vaddr"] <= address < one["p_vaddr"] + one["p_memsz"]
        ]
        assert not holding["p_flags"] & 2
        offset = address - holding["p_vaddr"]
        assert holding.data()[offset : offset + 4] == bytes.fromhex("0df00d60")
        mapped = sum(one.size for one in guest.control.mapped(guest.domid, 0))
        assert sum(one["p_filesz"] for one in loads) == mapped


def test_a_core_keeps_its_limits_and_says_so() -> None:
    with boot(SOURCE) as guest:
        for limit, count, size in (("most_ranges", 1, PLENTY), ("most_bytes", 99, 1 << 20)):
            elf, is_whole = core_of(guest, **{limit: count if limit == "most_ranges" else size})
            assert not is_whole
            loads = [one for one in elf.iter_segments() if one["p_type"] == "PT_LOAD"]
            assert 0 < len(loads) <= count
            assert 0 < sum(one["p_filesz"] for one in loads) <= size
