# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may use which gate, and the table that holds them (SECURITY B3)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import EFAULT, FLAT_RING1_CS, FLAT_RING3_CS

WORD = 1 << 32


def program(text: str, handler: str = "FINISH 99", before: str = "") -> str:
    """Write a kernel that runs ``text`` in ring 3; a trap goes to ``handler``."""
    source = KERNEL_AND_PROGRAM.replace("\\program", text).replace("\\handler", handler)
    return source.replace("\\before", before)


HANDLERS = """
system_call:
    KEEP_FRAME 5, 1
protection_fault:
    KEEP_FRAME 6, 2
.text
"""


@pytest.mark.parametrize("vector", [0x80, 0x81, 0x82, 0x20, 255])
def test_a_program_may_use_a_gate_of_dpl_3(vector: int) -> None:
    source = program(f"int {vector}\nbehind:", HANDLERS)
    with boot(source + traps(f"{vector}, 3, system_call")) as guest:
        assert guest.reason == 1
        eip, cs, _, esp, _ = guest.words("frame", 5)
        assert (eip, cs, esp) == (
            guest.symbols["behind"],
            FLAT_RING3_CS,
            guest.symbols["user_stack_top"],
        )


@pytest.mark.parametrize("vector", [0x80, 0x81, 0x82, 13, 14, 0, 255])
@pytest.mark.parametrize("dpl", [0, 1, 2])
def test_a_program_gets_gp_at_its_int_where_the_gate_is_not_its(vector: int, dpl: int) -> None:
    source = program(f"nop\nfault:\nint {vector}", HANDLERS)
    table = traps(f"{vector}, {dpl}, system_call", "TRAP_gp_fault, 0, protection_fault")
    with boot(source + table) as guest:
        assert guest.reason == 2
        error_code, eip, cs, _, esp, _ = guest.words("frame", 6)
        assert (error_code, eip, cs, esp) == (
            vector * 8 + 2,
            guest.symbols["fault"],
            FLAT_RING3_CS,
            guest.symbols["user_stack_top"],
        )


def test_a_program_gets_gp_for_a_gate_that_nobody_registered() -> None:
    source = program("fault:\nint 0x80", HANDLERS)
    with boot(source + traps("TRAP_gp_fault, 0, protection_fault")) as guest:
        assert guest.words("frame", 2) == [0x80 * 8 + 2, guest.symbols["fault"]]


@pytest.mark.parametrize(
    ("text", "vector", "size"),
    [("int3", 3, 1), (".byte 0xCD, 3", 3, 2), ("into", 4, 1), ("int 4", 4, 2)],
)
def test_breakpoint_and_overflow_are_free_for_all(text: str, vector: int, size: int) -> None:
    source = program(f"mov al, 0x7f\ninc al\nbefore:\n{text}", HANDLERS)
    with boot(source + traps(f"{vector}, 0, system_call")) as guest:
        assert guest.reason == 1
        assert guest.word("frame") == guest.symbols["before"] + size


def test_the_kernel_may_use_every_gate() -> None:
    source = "SET_TRAPS traps\nint 0x80\nbehind:\n" + HANDLERS
    with boot(source + traps("0x80, 0, system_call")) as guest:
        assert guest.reason == 1
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING1_CS | 1 << 16]


def test_with_architectural_iopl_the_kernel_is_ring_1() -> None:
    source = (
        """
        mov ebx, VMASST_CMD_enable
        mov ecx, VMASST_TYPE_architectural_iopl
        XEN vm_assist
        SET_TRAPS traps
    fault:
        int 0x80
    """
        + HANDLERS
    )
    table = traps("0x80, 0, system_call", "TRAP_gp_fault, 0, protection_fault")
    with boot(source + table) as guest:
        assert guest.reason == 2
        assert guest.words("frame", 2) == [0x80 * 8 + 2, guest.symbols["fault"]]


def test_an_int_of_the_kernel_without_a_handler_crashes_the_domain() -> None:
    with boot("    int 0x80\n") as guest:
        assert guest.crash_rule == "traps.no-handler"


def test_a_null_table_clears_every_gate() -> None:
    source = "SET_TRAPS traps\nxor ebx, ebx\nXEN set_trap_table\nint 0x80\n" + HANDLERS
    with boot(source + traps("0x80, 0, system_call")) as guest:
        assert guest.crash_rule == "traps.no-handler"


def test_a_table_without_an_end_is_read_up_to_the_first_bad_page() -> None:
    source = """
        mov ebx, offset beyond
        xor ecx, ecx
        xor edx, edx
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        mov ebx, offset beyond - 16
        XEN set_trap_table
        mov [result], eax
        int 0x80
    handler:
        FINISH 1
    .data
    result: .long 0
    .p2align 12
    .space 4096 - 16
        GATE 0x7f, 3, handler
        GATE 0x80, 3, handler
    beyond:
        .space 4096
    """
    with boot(source) as guest:
        assert guest.reason == 1, "entries before the bad one are registered"
        assert guest.word("result") == WORD - EFAULT


@pytest.mark.parametrize("address", [0xF5800000, 0xFC000000, 0xFFFFFFF8, 0x10000000])
def test_a_table_where_no_table_is_changes_nothing(address: int) -> None:
    source = f"SET_TRAPS {address}\nmov [result], eax\nFINISH\n.data\nresult: .long 0\n"
    with boot(source) as guest:
        assert guest.word("result") == WORD - EFAULT
        assert guest.domain.current.traps == [None] * 256


def test_a_long_table_is_read_in_pieces() -> None:
    source = """
        SET_TRAPS traps
        mov [result], eax
        int 0x81
    handler:
        FINISH 1
    .data
    result: .long 99
    traps:
        .rept 1000
        GATE 0x80, 3, handler
        .endr
        GATE 0x81, 3, handler
        GATES_END
    """
    with boot(source) as guest:
        assert (guest.reason, guest.word("result")) == (1, 0)


@pytest.mark.parametrize("cs", [0xE008, 0xE010, 0, 0xE038, 0xE04])
def test_no_gate_leads_to_ring_0(cs: int) -> None:
    """Its privilege is forced to 1, where no such code segment is."""
    with boot("SET_TRAPS traps\nud2\nhandler:\n" + traps(f"6, 0, handler, {cs}")) as guest:
        assert guest.crash_rule == "traps.no-frame"
        gate = guest.domain.current.traps[6]
        assert gate is not None
        assert gate.cs & 3
