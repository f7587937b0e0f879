# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may use ports, cli and sti: the virtual IOPL and the I/O bitmap (SECURITY A16, B6)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, BootedGuest, boot, traps
from xenlite.abi.x86_32p import (
    EFAULT,
    EFLAGS_IOPL,
    EINVAL,
    ENOSYS,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
)

WORD = 1 << 32
ARCHITECTURAL = """
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_architectural_iopl
    XEN vm_assist
"""
DATA = """
.data
operation: .long 0, 0, 0, 0
result: .long 0x5A5A5A5A
.p2align 12
bitmap: .fill 8192, 1, 0xFF
.text
"""
GATES = traps("TRAP_gp_fault, 0, handler", "0x80, 3, handler")


def operate(command: int, *words: int | str) -> str:
    """Call physdev_op."""
    stores = "\n".join(
        f"mov dword ptr [operation + {4 * index}], {word}" for index, word in enumerate(words)
    )
    return f"""
        {stores}
        mov ebx, {command}
        mov ecx, offset operation
        XEN physdev_op
        mov [result], eax
    """


def set_iopl(level: int) -> str:
    """Set the virtual IOPL."""
    return operate(PHYSDEVOP_set_iopl, level)


def result(text: str) -> int:
    """Run a kernel; return what it leaves in EAX, an error as a negative number."""
    with boot(text + "mov [result], eax\nFINISH 1" + DATA) as guest:
        assert guest.reason == 1, guest.crash
        value = guest.word("result")
        return value - WORD if value >> 31 else value


def program(before: str, text: str) -> tuple[bool, BootedGuest]:
    """Run a program in ring 3 that ends with int 0x80; tell whether it got there."""
    source = KERNEL_AND_PROGRAM.replace("\\program", text + "\nint 0x80")
    source = source.replace("\\before", before).replace("\\handler", "KEEP_FRAME 4, 2" + DATA)
    with boot(source + GATES) as guest:
        assert guest.reason == 2, guest.crash
        return guest.word("frame") != 0, guest


@pytest.mark.parametrize("text", ["in al, 0x60", "out 0x80, eax", "cli", "sti"])
def test_a_program_may_with_iopl_3(text: str) -> None:
    assert program(set_iopl(3), text)[0]
    assert not program(set_iopl(2), text)[0]
    assert program(ARCHITECTURAL + set_iopl(3), text)[0]


@pytest.mark.parametrize(
    "text", ["hlt", "mov eax, cr0", "clts", "rdmsr", "lea edi, [esp - 8]\ninsb"]
)
def test_iopl_3_gives_a_program_nothing_else(text: str) -> None:
    assert not program(set_iopl(3), text)[0]


@pytest.mark.parametrize("text", ["in al, 0x60", "cli"])
def test_the_kernel_needs_iopl_1_only_if_it_asked_for_that(text: str) -> None:
    kernel = "\nhandler:\nKEEP_FRAME 3, 2" + DATA + GATES
    for before, reason in (
        (set_iopl(0), 1),
        (ARCHITECTURAL + set_iopl(0), 2),
        (ARCHITECTURAL + set_iopl(1), 1),
    ):
        with boot("SET_TRAPS traps\n" + before + f"{text}\nFINISH 1" + kernel) as guest:
            assert guest.reason == reason, guest.crash


def iopl_in_frame(before: str) -> int:
    """Return the IOPL that a frame of the kernel's own shows."""
    source = f"""
        SET_TRAPS traps
        {before}
        int 0x80
    handler:
        KEEP_FRAME 3, 2
    """
    with boot(source + DATA + GATES) as guest:
        assert guest.reason == 2, guest.crash
        return guest.word("frame", 2) & EFLAGS_IOPL


def test_the_level_shows_in_frames_only_if_the_kernel_asked_for_that() -> None:
    disable = ARCHITECTURAL.replace("enable", "disable")
    assert iopl_in_frame(set_iopl(3)) == 0
    assert iopl_in_frame(ARCHITECTURAL + set_iopl(3)) == EFLAGS_IOPL
    assert iopl_in_frame(set_iopl(3) + ARCHITECTURAL) == EFLAGS_IOPL
    assert iopl_in_frame(ARCHITECTURAL + set_iopl(3) + disable) == 0
    assert iopl_in_frame(ARCHITECTURAL + set_iopl(3) + disable + ARCHITECTURAL) == EFLAGS_IOPL


def set_bitmap(ports: int, *open_ports: int) -> str:
    """Open ports in the bitmap and say where it is."""
    opened = "\n".join(f"btr dword ptr [bitmap + {p // 32 * 4}], {p % 32}" for p in open_ports)
    return opened + operate(PHYSDEVOP_set_iobitmap, "offset bitmap", ports)


def test_a_program_may_use_the_ports_that_its_bitmap_opens() -> None:
    assert program(set_bitmap(65536, 0x60), "in al, 0x60")[0]
    assert not program(set_bitmap(65536, 0x60), "in al, 0x61")[0]
    assert not program(set_bitmap(65536, 0x60), "in ax, 0x60")[0]
    assert program(set_bitmap(65536, 7, 8), "in ax, 7")[0], "two bytes of the bitmap"
    assert not program(set_bitmap(65536, 0x60), "cli")[0]


def test_the_bitmap_ends_where_the_guest_says() -> None:
    assert not program(set_bitmap(0x60, 0x60), "in al, 0x60")[0]
    assert not program(set_bitmap(0x61, 0x60), "in al, 0x60")[0]
    assert program(set_bitmap(0x62, 0x60), "in al, 0x60")[0]


def test_a_bitmap_that_cannot_be_read_opens_nothing() -> None:
    assert not program(operate(PHYSDEVOP_set_iobitmap, 0x10000000, 65536), "in al, 0x60")[0]
    last = set_bitmap(65536, 0xFFFF) + "mov dx, 0xFFFF\n"
    assert not program(last, "mov edx, 0xFFFF\nin al, dx")[0], "port + size is no port"


def test_levels_and_bitmaps_have_limits() -> None:
    assert result(set_iopl(4)) == -EINVAL
    assert result(set_iopl(0xFFFFFFFF)) == -EINVAL
    assert result(set_bitmap(65537)) == -EINVAL
    assert result(operate(PHYSDEVOP_set_iobitmap, 0xF57FE001, 1)) == -EINVAL
    assert result(operate(PHYSDEVOP_set_iobitmap, 0xFFFFFFFF, 1)) == -EINVAL
    assert result(set_bitmap(65536)) == 0


@pytest.mark.parametrize("command", [PHYSDEVOP_apic_read, PHYSDEVOP_map_pirq, 99, WORD - 1])
def test_there_are_no_devices(command: int) -> None:
    assert result(operate(command, 0)) == -ENOSYS


def compat(command: int, value: int, at: str = "offset operation") -> str:
    """Call physdev_op by its old number."""
    return f"""
        mov dword ptr [operation], {command}
        mov dword ptr [operation + 4], {value}
        mov ebx, {at}
        XEN physdev_op_compat
    """


def test_the_old_number_takes_command_and_structure_in_one() -> None:
    assert result(compat(PHYSDEVOP_set_iopl, 3)) == 0
    assert result(compat(PHYSDEVOP_set_iopl, 4)) == -EINVAL
    assert result(compat(PHYSDEVOP_apic_read, 0)) == -ENOSYS
    assert result(compat(PHYSDEVOP_map_pirq, 0)) == -EINVAL
    assert result(compat(PHYSDEVOP_set_iopl, 3, "0xF57FFFFE")) == -EFAULT
    assert program(compat(PHYSDEVOP_set_iopl, 3), "in al, 0x60")[0]
