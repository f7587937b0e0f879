# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's hole and the processor's own state, attacked from ring 1 and 3 (A16).

Limits are not enforced, so ring 1 sees the hole; what it finds there is inert and read-only.
"""

from __future__ import annotations

import pytest

from tests.support.paging_guest import lab, notes_of, outcome

READ_FAULT, WRITE_FAULT, FETCH_FAULT = 1, 3, 0x11


@pytest.mark.parametrize(
    "vaddr",
    ["0xF5800000", "0xF5801000", "0xFC000000", "0xFC00E000", "0xFC00F000"],
    ids=["m2p", "m2p-2", "gdt", "flat-gdt", "tss"],
)
def test_the_hole_is_read_only_and_not_executable(vaddr: str) -> None:
    notes = notes_of(f"""
        mov ebp, [{vaddr}]
        .irp store, 1, 2
        TRY
        mov dword ptr [{vaddr} + 8], 0x1234
        CAUGHT
        NOTE [fault_error]
        .endr
        TRY
        lock bts dword ptr [{vaddr}], 0
        CAUGHT
        TRY
        mov eax, {vaddr}
        call eax
        CAUGHT
        NOTE [fault_error]
        sub ebp, [{vaddr}]
        NOTE ebp
    """)
    assert notes == [1, WRITE_FAULT, 1, WRITE_FAULT, 1, 1, FETCH_FAULT, 0]


@pytest.mark.parametrize("vaddr", ["0xF6000000", "0xFB000000", "0xFC020000", "0xFFFFF000"])
def test_the_rest_of_the_hole_is_empty(vaddr: str) -> None:
    notes = notes_of(f"""
        TRY
        mov eax, [{vaddr}]
        CAUGHT
        TRY
        mov dword ptr [{vaddr}], 1
        CAUGHT
        NOTE [fault_address]
        CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
        TRY
        mov dword ptr [{vaddr}], 1
        CAUGHT
    """)
    address = int(vaddr, 16)
    assert notes == [1, 1, address - (1 << 32) if address > 0xFFFFF000 else address, 1]


def test_ring_3_sees_nothing_of_the_hole() -> None:
    notes = notes_of("""
        CALL stack_switch, FLAT_RING1_SS, kernel_stack_top
        RIGHTS FREE, RW | _PAGE_USER
        .irp address, 0xF5800000, 0xFC000000, 0xFC00F000
        mov byte ptr [FREE], 0xA1               # mov eax, [address]
        mov dword ptr [FREE + 1], \\address
        TRY
        push FLAT_RING3_SS
        push user_stack_top
        push EFLAGS_IF
        push FLAT_RING3_CS
        push FREE
        iretd
        CAUGHT
        NOTE [fault_error]
        .endr
    """)
    assert notes == [1, 5] * 3


def test_what_lies_in_the_hole_tells_nothing() -> None:
    """Every page that can be read: frame numbers, descriptors, the guest's own stack."""
    with lab(host_mb=16) as made:
        guest = made.add("NOTE 1")
        assert guest.run()
        memory = made.hypervisor.machine.memory
        hole = guest.domain.hole
        frames = made.hypervisor.machine.frames
        for pde in hole.pdes:
            if not pde & 1:
                continue
            table = (pde >> 12) & 0xFFFFF
            for index in range(512):
                entry = memory.m64[table * 512 + index]
                mfn = entry >> 12 & 0xFFFFF
                if entry & 1 and mfn not in frames.m2p_frames:
                    words = [word for word in memory.m64[mfn * 512 : mfn * 512 + 512] if word]
                    assert len(words) <= 5  # flat selectors, or one TSS
        assert outcome(guest).notes == [1]


# Instructions of ring 0, and whether the guest is told by #GP (1) or they are emulated or
# ignored (0), as Xen does.
PRIVILEGED = {
    "mov cr0, without WP and PG": "mov eax, cr0\n and eax, 0x7FFEFFFF\n mov cr0, eax",
    "mov cr4, without PAE": "xor eax, eax\n mov cr4, eax",
    "lmsw": "xor eax, eax\n lmsw ax",
    "lgdt": "lgdt [word]",
    "lidt": "lidt [word]",
    "lldt": "mov ax, 8\n lldt ax",
    "ltr": "mov ax, 8\n ltr ax",
    "clts": "clts",
    "wbinvd": "wbinvd",
    "wrmsr EFER": "mov ecx, 0xC0000080\n xor eax, eax\n xor edx, edx\n wrmsr",
    "wrmsr SYSENTER": "mov ecx, 0x176\n mov eax, offset claim\n xor edx, edx\n wrmsr",
    "mov dr7": "mov eax, 0xFFFFFFFF\n mov dr7, eax",
    "mov dr0, the GDT": "mov eax, 0xFC000000\n mov dr0, eax",
    "invlpg": "invlpg [FREE]",
    "mov cr2": "mov eax, 0x1234\n mov cr2, eax",
    "mov cr8": ".byte 0x44, 0x0F, 0x22, 0xC0",
    "in": "in al, 0x80",
    "out": "out 0x80, al",
    "cli": "cli",
    "popf with IOPL 3 and IF off": "push 0x3000\n popfd",
    "popf with VM, RF and NT": "push 0x34200\n popfd\n push 0x200\n popfd",
}


@pytest.mark.parametrize("code", PRIVILEGED.values(), ids=PRIVILEGED)
def test_no_instruction_changes_the_processors_own_state(code: str) -> None:
    """Afterwards read-only pages are read-only, IOPL is 0, and paging is as it was."""
    with lab() as made:
        guest = made.add(f"""
            mov dword ptr [FREE], 7
            RIGHTS FREE, RO
            TRY
            {code}
            CAUGHT
            TRY
            mov dword ptr [FREE], 8
            CAUGHT
            NOTE [FREE]
            pushfd
            pop eax
            and eax, 0x23000
            NOTE
            NOTE [MACH2PHYS_VIRT_START]
        """)
        assert guest.run()
        result = outcome(guest)
        engine = guest.domain.engine
        registers = made.control.registers(guest.domid, 0)
        if guest.crash is None:
            assert result.notes[1:4] == [1, 7, 0], result
        assert registers["cr0"] & 0x80010001 == 0x80010001
        assert registers["cr4"] & 0x20
        assert registers["cr3"] >> 12 == guest.domain.current.cr3_mfn
        assert engine.read_eflags() & 0x23200 == 0x200


def test_cr3_by_instruction_is_validated_as_by_hypercall() -> None:
    """Xen emulates the move: a good table is loaded, any other is #GP."""
    notes = notes_of("""
        MFN eax, FREE
        shl eax, 12
        TRY
        mov cr3, eax
        CAUGHT
        TRY
        xor eax, eax
        mov cr3, eax
        CAUGHT
        TABLE_MFN eax, 0
        shl eax, 12
        TRY
        mov cr3, eax
        CAUGHT
        mov dword ptr [FREE], 1
    """)
    assert notes == [1, 1, 0]
