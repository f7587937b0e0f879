# SPDX-License-Identifier: GPL-2.0-or-later
"""A stack that changes after it was used: what was remembered of it must not count (A2, A9, B4).

Frames at an address used before take a short way. Each guest here warms that way up, takes a right
away, and traps again.
"""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, BootedGuest, boot, made, traps
from xenlite.machine.x86_32p import PTE_P, PTE_RW

WARM_UP = """
    SET_TRAPS traps
    mov dword ptr [count], 0
    mov esp, offset stack_top
again:
    ud2
    inc dword ptr [count]
    cmp dword ptr [count], 5
    jne again
    mov [saved], esp
    mov esp, offset other_top
    \\change
    mov esp, [saved]
    mov dword ptr [stack_top - 12], 0x77
    mov dword ptr [count], 100
    ud2
    FINISH 1
handler:
    cmp dword ptr [count], 100
    je enough
    add dword ptr [esp], 2
    \\iret
enough:
    mov esp, offset other_top
    FINISH 2
.data
count: .long 0
saved: .long 0
.bss
.p2align 12
stack: .space 4096
stack_top: .space 4096
other_top:
"""
BY_HAND = WARM_UP.replace("\\iret", "iretd").replace("mov dword ptr [stack_top - 12], 0x77", "")
BY_CALL = BY_HAND.replace("iretd", "push 0\n    XEN iret")
UD = traps("TRAP_invalid_op, 0, handler")


@pytest.mark.parametrize("source", [BY_HAND, BY_CALL])
@pytest.mark.parametrize("flags", ["PTE_RO_DATA", "0"])
def test_a_stack_that_was_made_read_only_or_removed_is_no_stack(source: str, flags: str) -> None:
    change = f"REMAP offset stack, {flags}"
    with boot(source.replace("\\change", change) + UD) as guest:
        assert guest.crash_rule == "traps.no-frame", (guest.reason, guest.crash)


def test_a_stack_that_became_a_page_table_is_no_stack() -> None:
    change = """
        mov edi, offset stack
        xor eax, eax
        mov ecx, 1024
        cld
        rep stosd
        REMAP offset stack, PTE_RO_DATA
        mov eax, offset stack - VIRT_BASE
        shr eax, 12
        mov edx, [p2m]
        mov eax, [edx + eax * 4]
        mov [pin + 4], eax
        mov ebx, offset pin
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
        test eax, eax
        jnz shutdown
    .data
    pin: .long MMUEXT_PIN_L1_TABLE, 0, 0
    .text
    """
    with boot(BY_HAND.replace("\\change", change) + UD) as guest:
        assert guest.crash_rule == "traps.no-frame", (guest.reason, guest.crash)
        assert guest.bytes_at("stack", 4096) == bytes(4096)


def test_a_stack_in_another_frame_takes_the_frame() -> None:
    """The old frame, mapped elsewhere meanwhile, is not written any more."""
    change = """
        mov eax, offset other_top - 4096 - VIRT_BASE
        shr eax, 12
        inc eax
        mov edx, [p2m]
        mov ecx, [edx + eax * 4]
        shl ecx, 12
        or ecx, PTE_RW_DATA
        xor edx, edx
        mov ebx, offset stack
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        test eax, eax
        jnz shutdown
    """
    source = BY_HAND.replace("\\change", change).replace("other_top:", "other_top: .space 4096")
    with boot(source + UD) as guest:
        assert guest.reason == 2, guest.crash
        frame = guest.bytes_at("stack", 4096)[-12:]
        assert int.from_bytes(frame[:4], "little") > guest.symbols["again"]
        assert guest.bytes_at("other_top", 4096)[-12:] == frame, "the same page, seen twice"


YIELDING = (
    WARM_UP.replace("\\iret", "push 0\n    XEN iret")
    .replace(
        "\\change",
        """
    mov dword ptr [stage], 1
wait:
    mov ebx, SCHEDOP_yield
    XEN sched_op
    cmp dword ptr [stage], 2
    jne wait
""",
    )
    .replace("mov dword ptr [stack_top - 12], 0x77", "")
    + ".data\nstage: .long 0\n"
)


def set_stage(guest: BootedGuest, stage: int) -> None:
    """Write the guest's word ``stage`` from outside."""
    maddr = guest.control.translate(guest.domid, 0, guest.symbols["stage"])
    assert maddr is not None
    guest.hypervisor.machine.memory.write(maddr, stage.to_bytes(4, "little"))


@pytest.mark.parametrize("removed", [PTE_RW, PTE_P])
def test_an_l2_entry_that_lost_a_right_takes_the_stack_away(removed: int) -> None:
    source = YIELDING.replace(".bss\n.p2align 12", ".bss\n.p2align 21\n.p2align 12")
    with made(source + UD, memory_mb=8) as guest:
        assert guest.run(5, lambda: guest.word("stage") == 1)
        domain = guest.domain
        m64 = guest.hypervisor.machine.memory.m64
        address = guest.symbols["stack"]
        cr3 = domain.current.cr3_mfn
        assert cr3 is not None
        l2 = m64[cr3 * 512 + (address >> 30)] >> 12 & 0xFFFFFFFF
        slot = l2 * 512 + (address >> 21 & 511)
        set_stage(guest, 2)
        domain.paging.set_l2(slot, m64[slot] & ~removed)
        domain.tlb.flush()
        guest.run(5)
        assert guest.crash_rule == "traps.no-frame", (guest.reason, guest.crash)
        domain.paging.work_left = 1 << 20
        while not domain.paging.drain():
            pass


def test_a_kernel_stack_taken_away_between_two_system_calls_is_no_stack() -> None:
    program = """
        mov ecx, 5
    again:
        int 0x80
        dec ecx
        jnz again
        int 0x81
        int 0x80
    """
    handler = """
        xor eax, eax
        push eax
        XEN iret
    taker:
        mov ax, FLAT_RING1_DS
        mov ds, eax
        mov es, eax
        pop dword ptr [frame]
        pop dword ptr [frame + 4]
        pop dword ptr [frame + 8]
        pop dword ptr [frame + 12]
        pop dword ptr [frame + 16]
        mov esp, offset other_top
        REMAP offset kernel_stack_top - 4096, PTE_RO_DATA
        push dword ptr [frame + 16]
        push dword ptr [frame + 12]
        push dword ptr [frame + 8]
        push dword ptr [frame + 4]
        push dword ptr [frame]
        push 0
        XEN iret
    .bss
    .space 4096
    other_top:
    """
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace("\\program", program)
    source = source.replace("\\handler", handler)
    with boot(source + traps("0x80, 3, handler", "0x81, 3, taker")) as guest:
        assert guest.crash_rule == "traps.no-frame", (guest.reason, guest.crash)


def test_a_changed_descriptor_counts_at_the_next_trap() -> None:
    """The gate's code selector loses its descriptor after it was used."""
    source = """
        REMAP offset gdt, PTE_RO_DATA
        mov eax, offset gdt - VIRT_BASE
        shr eax, 12
        mov edx, [p2m]
        mov eax, [edx + eax * 4]
        mov [gdt_frames], eax
        mov ebx, offset gdt_frames
        mov ecx, 512
        XEN set_gdt
        SET_TRAPS traps
        ud2
        ud2
        mov ebx, [gdt_frames]
        shl ebx, 12
        add ebx, 8
        mov ecx, [gdt_frames]
        shr ecx, 20
        xor edx, edx
        xor esi, esi
        XEN update_descriptor
        test eax, eax
        jnz shutdown
        ud2
        FINISH 1
    handler:
        add dword ptr [esp], 2
        and dword ptr [esp + 4], 0xFFFF
        iretd
    .data
    gdt_frames: .long 0
    .p2align 12
    gdt: .quad 0, 0x00CF9A000000FFFF
    .p2align 12
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler, 0x09")) as guest:
        assert guest.crash_rule == "traps.no-frame", (guest.reason, guest.crash)
