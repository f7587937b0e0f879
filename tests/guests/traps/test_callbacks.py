# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry points besides the trap table: SYSENTER, SYSCALL, NMI; and the debug registers."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import (
    EFAULT,
    EINVAL,
    ENODEV,
    ENOSYS,
    EPERM,
    FLAT_RING1_CS,
    FLAT_RING3_SS,
    SAVED_UPCALL_MASK_SHIFT,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CALLBACKTYPE_sysenter_deprecated,
    XENNMI_register_callback,
    XENNMI_unregister_callback,
)
from xenlite.core.vcpu import TrapGate
from xenlite.machine.trap import VECTOR_NMI

WORD = 1 << 32
DATA = """
.data
callback: .word 0, 0
    .long FLAT_RING1_CS, entry
nmi: .long entry, 0
result: .long 0x5A5A5A5A
.text
"""


def register(kind: int, flags: int = 0, command: int = CALLBACKOP_register) -> str:
    """Register or unregister a callback at ``entry``."""
    return f"""
        mov dword ptr [callback], {kind | flags << 16}
        mov ebx, {command}
        mov ecx, offset callback
        XEN callback_op
    """


def result(text: str) -> int:
    """Run a kernel; return what it leaves in EAX, an error as a negative number."""
    with boot(text + "mov [result], eax\nFINISH 1\nentry:\nint3\n" + DATA) as guest:
        assert guest.reason == 1, guest.crash
        value = guest.word("result")
        return value - WORD if value >> 31 else value


# -- sysenter and syscall -------------------------------------------------------------------------


def entered(before: str, program: str, words: int) -> tuple[int, list[int], dict[str, int]]:
    """Run a program in ring 3; return which way it left, and the frame."""
    handler = f"""
        KEEP_FRAME {words}, 5
    entry:
        movzx eax, byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]
        mov [result], eax
        KEEP_FRAME {words}, 6
    invalid:
        KEEP_FRAME {words}, 7
    """
    source = KERNEL_AND_PROGRAM.replace("\\program", program).replace("\\before", before)
    source = source.replace("\\handler", handler + DATA)
    with boot(source + traps("TRAP_gp_fault, 0, handler", "TRAP_invalid_op, 0, invalid")) as guest:
        assert guest.reason is not None
        assert guest.crash is None
        found = guest.words("frame", words)
        return guest.reason, found, {**guest.symbols, "mask": guest.word("result")}


@pytest.mark.parametrize("masks_events", [0, 1])
def test_sysenter_enters_the_callback_with_no_way_back(masks_events: int) -> None:
    before = register(CALLBACKTYPE_sysenter, masks_events)
    reason, frame, symbols = entered(before, "sysenter", 5)
    assert reason == 6
    eip, cs, _, esp, ss = frame
    assert (eip, cs, esp, ss) == (0, 3, 0, FLAT_RING3_SS)
    assert symbols["mask"] == masks_events


def test_sysenter_without_a_callback_is_a_protection_fault() -> None:
    reason, frame, _ = entered("", "sysenter", 6)
    assert (reason, frame[:3]) == (5, [0, 0, 3])


@pytest.mark.parametrize("kind", [CALLBACKTYPE_syscall32, CALLBACKTYPE_sysenter])
def test_syscall_is_an_invalid_opcode_whatever_is_registered(kind: int) -> None:
    """As on Intel's processors, where 32-bit code has none."""
    reason, frame, symbols = entered(register(kind), "nop\nfault:\nsyscall", 5)
    assert (reason, frame[0]) == (7, symbols["fault"])


def test_a_kernel_that_enters_itself_by_sysenter_is_told_ring_3_too() -> None:
    source = f"""
        MAP_SHARED_INFO
        mov ebx, FLAT_RING1_SS
        mov ecx, offset kernel_stack_top
        XEN stack_switch
        {register(CALLBACKTYPE_sysenter)}
        sysenter
    entry:
        KEEP_FRAME 5, 2
    """
    with boot(source + DATA) as guest:
        assert guest.reason == 2, guest.crash
        eip, cs, _, esp, ss = guest.words("frame", 5)
        assert (eip, cs & 0xFFFF, esp, ss) == (0, 3, 0, FLAT_RING3_SS)
        assert cs >> SAVED_UPCALL_MASK_SHIFT & 0xFF == 1


def test_sysenter_with_no_kernel_stack_ends_the_domain() -> None:
    before = (
        register(CALLBACKTYPE_sysenter)
        + """
        mov ebx, FLAT_RING1_SS
        mov ecx, 0xFBADC0DE
        XEN stack_switch
    """
    )
    source = KERNEL_AND_PROGRAM.replace("\\program", "sysenter").replace("\\before", before)
    with boot(source.replace("\\handler", "entry:\nint3\n" + DATA) + traps()) as guest:
        assert guest.crash_rule == "traps.no-frame"


# -- callback_op ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "registered", "unregistered"),
    [
        (CALLBACKTYPE_event, 0, -EINVAL),
        (CALLBACKTYPE_failsafe, 0, -EINVAL),
        (CALLBACKTYPE_sysenter, 0, -EINVAL),
        (CALLBACKTYPE_syscall32, 0, -EINVAL),
        (CALLBACKTYPE_nmi, 0, 0),
        (CALLBACKTYPE_syscall, -ENOSYS, -ENOSYS),
        (CALLBACKTYPE_sysenter_deprecated, -ENOSYS, -ENOSYS),
        (0xFFFF, -ENOSYS, -ENOSYS),
    ],
)
def test_callbacks_are_registered_and_most_stay(
    kind: int, registered: int, unregistered: int
) -> None:
    assert result(register(kind)) == registered
    assert result(register(kind, command=CALLBACKOP_unregister)) == unregistered


# -- NMI ------------------------------------------------------------------------------------------


def nmi(command: int, at: str = "offset nmi") -> str:
    """Call nmi_op."""
    return f"mov ebx, {command}\nmov ecx, {at}\nXEN nmi_op\n"


@pytest.mark.parametrize("ways", [0, 1])
def test_the_handler_of_nmis_is_that_of_vector_2(ways: int) -> None:
    set_up = (nmi(XENNMI_register_callback), register(CALLBACKTYPE_nmi))[ways]
    away = (
        nmi(XENNMI_unregister_callback, "0"),
        register(CALLBACKTYPE_nmi, command=CALLBACKOP_unregister),
    )[ways]
    for text, is_there in ((set_up, True), (set_up + away, False)):
        with boot(text + "mov [result], eax\nFINISH 1\nentry:\nint3\n" + DATA) as guest:
            assert (guest.reason, guest.word("result")) == (1, 0)
            entry = guest.symbols["entry"]
            expected = TrapGate(
                dpl=0, cs=FLAT_RING1_CS, address=entry, masks_events=True, pushes_address=False
            )
            assert guest.domain.current.traps[VECTOR_NMI] == (expected if is_there else None)


def test_nmi_op_takes_nothing_else() -> None:
    assert result(nmi(2)) == -ENOSYS
    assert result(nmi(0xFFFFFFFF)) == -ENOSYS
    assert result(nmi(XENNMI_register_callback, "0xF57FFFFC")) == -EFAULT


# -- debug registers ------------------------------------------------------------------------------


def set_debugreg(number: int, value: int) -> str:
    """Call set_debugreg."""
    return f"mov ebx, {number}\nmov ecx, {value}\nXEN set_debugreg\n"


def get_debugreg(number: int) -> str:
    """Call get_debugreg."""
    return f"mov ebx, {number}\nXEN get_debugreg\n"


@pytest.mark.parametrize(
    ("number", "value", "kept"),
    [
        (0, 0xC0001000, 0xC0001000),
        (3, 0xF57FFFFF, 0xF57FFFFF),
        (6, 0, 0xFFFF0FF0),
        (6, 0xFFFFFFFF, 0xFFFFEFFF),
        (7, 3, 0x403),
        (7, 0xD803, 0x403),
        (5, 3, 0x403),
    ],
)
def test_debug_registers_are_kept(number: int, value: int, kept: int) -> None:
    assert result(set_debugreg(number, value)) == 0
    assert result(set_debugreg(number, value) + get_debugreg(number)) & WORD - 1 == kept
    by_instruction = f"mov eax, dr{number if number < 4 else number | 2}\n"
    assert result(set_debugreg(number, value) + by_instruction) & WORD - 1 == kept


@pytest.mark.parametrize(
    ("number", "value", "errno"),
    [
        (0, 0xF5800000, EPERM),
        (3, 0xFFFFFFFF, EPERM),
        (7, 0x2000, EPERM),
        (7, 2 << 20 | 1 << 2, EPERM),
        (8, 0, ENODEV),
        (0xFFFFFFFF, 0, ENODEV),
    ],
)
def test_debug_registers_that_reach_too_far_are_refused(
    number: int, value: int, errno: int
) -> None:
    assert result(set_debugreg(number, value)) == -errno


def test_there_are_no_aliases_where_the_guest_wants_none() -> None:
    extensions = "mov eax, CR4_DE\nmov cr4, eax\n"
    assert result(extensions + set_debugreg(4, 0)) == -ENODEV
    assert result(extensions + get_debugreg(5)) == -ENODEV
    assert result(extensions + get_debugreg(7)) == 0x400


def test_a_watchpoint_has_no_effect() -> None:
    """The gap of the engine: it has no watchpoints, so #DB never comes of one."""
    text = f"""
        mov ecx, offset result
        mov ebx, 0
        XEN set_debugreg
        {set_debugreg(7, 0xD0003)}
        mov dword ptr [result], 1
        mov eax, dr6
    """
    assert result(text) & 0xF == 0
