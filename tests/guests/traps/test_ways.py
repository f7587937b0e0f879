# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps that the trap stub serves alone are those that Python serves, whatever changes.

Each guest makes the same system calls or faults twice: once with ways into the kernel and back
(machine/ways.py), once without. In the midst of them its kernel changes something that a way rests
on. Frames, stacks and masks must agree trap by trap.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from tests.support.guest import BootedGuest, boot, made, traps
from xenlite.abi.x86_32p import (
    HYPERVISOR_VIRT_START,
    SIZEOF_VCPU_INFO,
    TI_FAULT_ADDRESS,
    TI_MASK_EVENTS,
)
from xenlite.core.bounce import Bounce
from xenlite.machine.cpu import Cpu
from xenlite.machine.ways import Ways

CALLS = 12
NX = 1 << 31  # in the upper word of an entry
WORDS = 8  # of a record: eip, cs, eflags, esp, ss, the kernel's esp, mask, which handler
# From here on the builder maps nothing: these pages never were executable, as stacks should be.
FRESH_PFN = 1024

SETUP = """
# Map a fresh page of the domain at an address.
.macro FRESH vaddr, pfn, flags=PTE_RW_DATA, upper=NX
    mov ebx, offset \\vaddr
    mov ecx, [p2m]
    mov ecx, [ecx + 4 * (\\pfn)]
    mov edx, ecx
    shl ecx, 12
    or ecx, \\flags
    shr edx, 20
    or edx, \\upper
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
.endm

    mov ebp, esi
    mov ebx, offset shared_info
    mov ecx, [ebp + START_INFO_SHARED_INFO]
    or ecx, PTE_RW_DATA
    mov edx, NX
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    FRESH kernel_stack, FRESH_PFN
    FRESH user_stack_top - 4096, FRESH_PFN + 1, PTE_USER_RW
    SET_TRAPS traps
    REMAP offset program_page, PTE_USER_RO
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    mov eax, FLAT_RING3_DS
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
"""
KERNEL = (
    SETUP
    + """
    TO_USER program

other_system_call:
    pushad
    mov dl, 1
    jmp serve
system_call:
    pushad
    mov dl, 0
serve:
    mov eax, FLAT_RING1_DS
    mov ds, eax
    mov es, eax
    mov edi, [next]
    mov [edi + 28], dl
    mov [edi + 20], esp
    lea esi, [esp + 32]
    mov ecx, 5
    cld
    rep movsd
    mov al, [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]
    mov [edi + 4], al
    add dword ptr [next], 4 * WORDS
    mov eax, [next]
    sub eax, offset records
    cmp eax, 4 * WORDS * CALLS / 2
    jne leave
    \\change
leave:
    mov eax, FLAT_RING3_DS
    mov ds, eax
    mov es, eax
    popad
    push eax
    XEN iret
    ud2

done:
    mov eax, FLAT_RING1_DS
    mov ds, eax
    FINISH 1

.p2align 12
program_page:
program:
    mov ebp, CALLS
again:
    cmp ebp, 5
    \\program
    int 0x80
    cld
    dec ebp
    jnz again
    int 0x81
.p2align 12

.data
next:
    .long records
records:
    .fill WORDS * CALLS, 4, 0
extended:
    .long MMUEXT_NEW_BASEPTR, 0, 0
.bss
.p2align 12
kernel_stack_page:
    .space 4096
.equ kernel_stack, kernel_stack_top - 4096
alias:
    .space 4096
"""
)
TABLES = traps("0x80, 3, system_call", "0x81, 3, done") + (
    traps("0x80, 3, other_system_call").replace("traps:", "other_traps:")
)

CHANGES = {
    "nothing": "",
    "another stack": "mov ebx, FLAT_RING1_SS\nmov ecx, offset kernel_stack_top - 64\n"
    "XEN stack_switch",
    "another handler": "SET_TRAPS other_traps",
    "the stack moves": """
        FRESH alias, FRESH_PFN + 2
        mov esi, offset kernel_stack
        mov edi, offset alias
        mov ecx, 1024
        rep movsd
        FRESH kernel_stack, FRESH_PFN + 2
        FRESH alias, FRESH_PFN""",
    "the stack becomes executable": "FRESH kernel_stack, FRESH_PFN, PTE_RW_DATA, 0",
    "the stack becomes another page with the same frame": """
        FRESH kernel_stack, FRESH_PFN, PTE_RW_DATA | _PAGE_USER""",
    "a new CR3": """
        mov eax, cr3
        shr eax, 12
        mov [extended + 4], eax
        mov ebx, offset extended
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op""",
    "a new GDT": "xor ebx, ebx\nxor ecx, ecx\nXEN set_gdt",
    "events masked on return": "and dword ptr [esp + 40], ~EFLAGS_IF & 0xFFFFFFFF",
    "virtual IOPL": """
        mov ebx, VMASST_CMD_enable
        mov ecx, VMASST_TYPE_architectural_iopl
        XEN vm_assist
        or dword ptr [esp + 40], EFLAGS_IOPL""",
}
# Each takes what it is told from the stack.
NMI_CALLS = {
    "nmi_op": """
        push 0
        push offset other_system_call
        mov ebx, XENNMI_register_callback
        mov ecx, esp
        XEN nmi_op
        add esp, 8""",
    "callback_op": """
        push offset other_system_call
        push FLAT_RING1_CS
        push CALLBACKTYPE_nmi
        mov ebx, CALLBACKOP_register
        mov ecx, esp
        XEN callback_op
        add esp, 12""",
}
PROGRAMS = {
    "plain": "",
    "direction": "std",
    "other data selectors": "mov eax, FLAT_RING3_DS\nmov fs, eax",
    "by turns": "bt ebp, 0\njnc even\nstd\neven:",
}


FAULTS = (
    SETUP
    + r"""
.if RING == 1
    mov esp, offset kernel_stack_top
    jmp program
.endif
    TO_USER program

other_fault:
    pushad
    mov bl, 1
    jmp serve
fault:
    pushad
    mov bl, 0
serve:
    mov edi, [next]
    lea esi, [esp + 32]
    mov ecx, 8
    cld
    rep movsd
    mov [edi], esp
    mov al, [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]
    mov [edi + 4], al
    mov [edi + 5], bl
    mov eax, [shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_ARCH_CR2]
    mov [edi + 8], eax
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    add dword ptr [next], 4 * FAULT_WORDS
    add dword ptr [esp + 32 + 4 * PREFIX], 2
    mov eax, [next]
    sub eax, offset records
    cmp eax, 4 * FAULT_WORDS * CALLS / 2
    jne leave
    \change
leave:
    popad
    add esp, 4 * PREFIX
    iretd

done:
    FINISH 1

.p2align 12
program_page:
program:
    xor ecx, ecx
    mov ebp, CALLS
    mov edi, TARGET
.if TARGET == 0
    mov edi, offset program_page
.endif
again:
    cmp ebp, 5
    \program
    dec ebp
    jnz again
    int 0x81
.p2align 12

.data
next:
    .long records
records:
    .fill FAULT_WORDS * CALLS, 4, 0
.bss
.p2align 12
.equ kernel_stack, kernel_stack_top - 4096
alias:
    .space 4096
"""
)
ABSENT, PROGRAM, HOLE = 0xD0000000, 0, HYPERVISOR_VIRT_START + 0x700000
FAULT_WORDS = 11  # of a record: eight of the frame, the kernel's esp, mask and handler, cr2
INSTRUCTIONS = {
    "divide error": ("div ecx", ABSENT, "TRAP_divide_error", 0),
    "read": ("mov eax, [edi]", ABSENT, "TRAP_page_fault", 1),
    "write": ("mov [edi], eax", ABSENT, "TRAP_page_fault", 1),
    "read of xen": ("mov eax, [edi]", HOLE, "TRAP_page_fault", 1),
    "write of what may only be read": ("mov [edi], eax", PROGRAM, "TRAP_page_fault", 1),
}
FAULT_CHANGES = {
    **{name: CHANGES[name] for name in ("nothing", "another handler", "the stack moves")},
    **{name: CHANGES[name] for name in ("the stack becomes executable", "another stack")},
    "a new GDT": CHANGES["a new GDT"],
}


def calls(
    change: str, program: str, *, nx: int = NX, prepare: Callable[[BootedGuest], None] | None = None
) -> list[list[int]]:
    """Run the guest; return what its kernel saw at each call."""
    source = KERNEL.replace("\\change", change).replace("\\program", program) + TABLES
    defines = {"FRESH_PFN": FRESH_PFN, "CALLS": CALLS, "WORDS": WORDS, "NX": nx}
    with made(source, memory_mb=8, defines=defines) as guest:
        if prepare is not None:
            prepare(guest)
        assert guest.run()
        assert guest.reason == 1, guest.crash
        words = guest.words("records", CALLS * WORDS)
        return [words[n : n + WORDS] for n in range(0, len(words), WORDS)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_calls_are_the_same_without_python(
    change: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ways = calls(CHANGES[change], PROGRAMS[program])
    assert all(record[0] for record in with_ways)
    monkeypatch.setattr(Ways, "_open_at", lambda *_: None)
    assert with_ways == calls(CHANGES[change], PROGRAMS[program])


@pytest.mark.parametrize("change", CHANGES)
def test_calls_are_the_same_where_everything_is_executable(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ways = calls(CHANGES[change], "", nx=0)
    monkeypatch.setattr(Ways, "_open_at", lambda *_: None)
    assert with_ways == calls(CHANGES[change], "", nx=0)


def test_an_iopl_that_a_call_has_set_is_gone_after_the_next_return() -> None:
    assist = "mov ebx, VMASST_CMD_enable\nmov ecx, VMASST_TYPE_architectural_iopl\nXEN vm_assist\n"
    change = """
        push 3
        mov ebx, PHYSDEVOP_set_iopl
        mov ecx, esp
        XEN physdev_op
        pop eax"""
    source = KERNEL.replace("    TO_USER", f"{assist}    TO_USER").replace("\\change", change)
    source = source.replace("\\program", "cmp ebp, 3\nja plain\ncli\nplain:") + TABLES
    defines = {"FRESH_PFN": FRESH_PFN, "CALLS": CALLS, "WORDS": WORDS, "NX": NX}
    with boot(source, memory_mb=8, defines=defines) as guest:
        assert guest.word("records", WORDS * (CALLS // 2)) != 0
        assert guest.crash_rule == "traps.no-handler"


@pytest.mark.parametrize("change", [*NMI_CALLS, "none"])
def test_another_handler_of_nmis_is_that_of_int_2(change: str) -> None:
    gates = traps("2, 3, system_call", "0x81, 3, done", "TRAP_gp_fault, 0, done")
    text = NMI_CALLS.get(change, "")
    source = KERNEL.replace("\\change", text).replace("\\program", "").replace("int 0x80", "int 2")
    defines = {"FRESH_PFN": FRESH_PFN, "CALLS": CALLS, "WORDS": WORDS, "NX": NX}
    with boot(source + gates, memory_mb=8, defines=defines) as guest:
        assert guest.reason == 1, guest.crash
        calls_made = sum(bool(word) for word in guest.words("records", CALLS * WORDS)[::WORDS])
        # The kernel's own gate for it is none that a program may use.
        assert calls_made == (CALLS if change == "none" else CALLS // 2)


@pytest.mark.parametrize("nx", [NX, 0])
def test_most_calls_do_not_reach_python(nx: int, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[int] = []
    real = Bounce.software_interrupt

    def software_interrupt(self: Bounce, vector: int) -> None:
        served.append(vector)
        real(self, vector)

    monkeypatch.setattr(Bounce, "software_interrupt", software_interrupt)
    calls("", "", nx=nx)
    assert served.count(0x80) == 1


def test_translations_of_what_is_written_are_forgotten() -> None:
    forgotten: list[tuple[int, int]] = []
    infos: list[int] = []

    def invalidate(_engine: int, begin: int, end: int) -> None:
        forgotten.append((begin, end))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *(ctypes.c_uint64,) * 2)(invalidate)

    def prepare(guest: BootedGuest) -> None:
        cpu = guest.domain.engine
        assert isinstance(cpu, Cpu)
        cpu._table.invalidate = ctypes.cast(callback, ctypes.c_void_p).value
        infos.append(guest.domain.current.info_maddr)

    calls("", "", nx=0, prepare=prepare)
    frames = {(begin & 0xFFF, end - begin) for begin, end in forgotten if begin != infos[0]}
    assert frames == {(4096 - 20, 20)}
    assert (infos[0], infos[0] + SIZEOF_VCPU_INFO) in forgotten
    assert len(forgotten) >= 3 * (CALLS - 2)  # a frame and twice the mask's page


def test_a_stack_that_becomes_read_only_ends_the_domain() -> None:
    change = """
        mov esp, offset kernel_stack_page + 4096 - 36
        mov esi, offset kernel_stack_top - 52
        mov edi, esp
        mov ecx, 13
        rep movsd
        sub esp, 16
        FRESH kernel_stack, FRESH_PFN, PTE_RO_DATA
        add esp, 16"""
    source = KERNEL.replace("\\change", change).replace("\\program", "") + TABLES
    defines = {"FRESH_PFN": FRESH_PFN, "CALLS": CALLS, "WORDS": WORDS, "NX": NX}
    with boot(source, memory_mb=8, defines=defines) as guest:
        assert guest.crash_rule == "traps.no-frame"
        assert guest.word("records", WORDS * (CALLS // 2)) == 0


def faults(instruction: str, change: str, ring: int, flags: int) -> list[list[int]]:
    """Run the guest of faults; return what its kernel saw at each of them."""
    text, target, vector, errors = INSTRUCTIONS[instruction]
    assists = ""
    if errors and flags & TI_FAULT_ADDRESS:
        errors = 2
        assists = "mov ebx, VMASST_CMD_enable\nmov ecx, VMASST_TYPE_xenlite_fault_address\n"
        assists += "XEN vm_assist\n"
    gate = f"{vector}, {flags}, fault"
    tables = traps(gate, "0x81, 3, done")
    tables += traps(gate.replace(", fault", ", other_fault")).replace("traps:", "other_traps:")
    source = FAULTS.replace("\\change", FAULT_CHANGES[change]).replace("\\program", text)
    source = source.replace("    SET_TRAPS traps\n", f"{assists}    SET_TRAPS traps\n")
    defines = {
        "FRESH_PFN": FRESH_PFN, "CALLS": CALLS, "FAULT_WORDS": FAULT_WORDS, "RING": ring,
        "TARGET": target, "PREFIX": errors, "WORDS": FAULT_WORDS, "NX": NX,
    }  # fmt: skip
    with boot(source + tables, memory_mb=8, defines=defines) as guest:
        assert guest.reason == 1, guest.crash
        words = guest.words("records", CALLS * FAULT_WORDS)
        return [words[n : n + FAULT_WORDS] for n in range(0, len(words), FAULT_WORDS)]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("change", FAULT_CHANGES)
@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("flags", [0, TI_MASK_EVENTS, TI_FAULT_ADDRESS])
def test_faults_are_the_same_without_python(
    instruction: str, change: str, ring: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ways = faults(instruction, change, ring, flags)
    assert all(any(record) for record in with_ways)
    monkeypatch.setattr(Ways, "_open_at", lambda *_: None)
    assert with_ways == faults(instruction, change, ring, flags)
