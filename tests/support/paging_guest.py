# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that work on their own page tables, one small program to a claim.

``run_guest`` boots a program from ``tests/support/guest.py`` with the macros below and returns what
it noted: each ``NOTE`` keeps one word, errno values come back negative. A page that faults inside
``TRY`` ... ``CAUGHT`` is skipped, and ``CAUGHT`` notes 1 for a fault and 0 for none.

Memory of such a guest, 4 MB in one L2 and two L1 tables::

    VIRT_BASE   its program, then what the builder gave it (start_info, page tables, stack)
    FREE        512 pages of plain memory in an L1 of their own, the last one empty of programs
    EMPTY       addresses without an L1
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest import ORIGIN, PRELUDE, VIRT_BASE, BootedGuest, image_of
from xenlite.devkit.assembler import assemble_fragment
from xenlite.hypervisor import Hypervisor
from xenlite.machine.cpu import Mode
from xenlite.toolstack.builder import build
from xenlite.toolstack.domain_config import DomainConfig

MEGABYTE = 1 << 20
PAGE = 4096
MOST_NOTES = 1000
FREE = VIRT_BASE + 0x200000

MACROS = """
.equ FREE, VIRT_BASE + 0x200000
.equ EMPTY, VIRT_BASE + 0x800000
.equ PAGE, 0x1000
.equ RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ RO, _PAGE_PRESENT | _PAGE_ACCESSED
.equ TABLE, _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY
.equ DIRTY, _PAGE_DIRTY
.equ ACCESSED, _PAGE_ACCESSED

# Keep a word for the test.
.macro NOTE value=eax
    push \\value
    call note
.endm

# Make a hypercall with any operands as arguments; the result is in eax.
.macro CALL name, a=0, b=0, c=0, d=0, e=0
    push \\e
    push \\d
    push \\c
    push \\b
    push \\a
    pop ebx
    pop ecx
    pop edx
    pop esi
    pop edi
    XEN \\name
.endm

# The frame that a page had at first.
.macro MFN register, vaddr
    mov \\register, [p2m]
    mov \\register, [\\register + ((\\vaddr) - VIRT_BASE) / PAGE * 4]
.endm

# An entry for that frame.
.macro ENTRY register, vaddr, flags
    MFN \\register, \\vaddr
    shl \\register, 12
    or \\register, \\flags
.endm

# Machine address of the entry that maps an address of the first 4 MB; the boot tables stand in
# neighbouring pages: L3, L2, L1s.
.macro SLOT register, vaddr
    mov \\register, [tables]
    sub \\register, VIRT_BASE - 2 * PAGE - ((\\vaddr) - VIRT_BASE) / 0x200000 * PAGE
    shr \\register, 12
    shl \\register, 2
    add \\register, [p2m]
    mov \\register, [\\register]
    shl \\register, 12
    add \\register, ((\\vaddr) - VIRT_BASE) / PAGE % 512 * 8
.endm

# Virtual address of that entry, in the boot tables' read-only mapping.
.macro SLOT_VA register, vaddr
    mov \\register, [tables]
    add \\register, 2 * PAGE + ((\\vaddr) - VIRT_BASE) / PAGE * 8
.endm

# Frame of a boot table: 0 the L3, 1 the L2, 2 and 3 the L1s.
.macro TABLE_MFN register, number
    mov \\register, [tables]
    sub \\register, VIRT_BASE
    shr \\register, 12
    shl \\register, 2
    add \\register, [p2m]
    mov \\register, [\\register + (\\number) * 4]
.endm

# One mmu_update; eax is its result.
.macro UPDATE pointer, low, high=0
    push \\high
    push \\low
    push 0
    push \\pointer
    mov ebx, esp
    CALL mmu_update, ebx, 1, 0, DOMID_SELF
    add esp, SIZEOF_MMU_UPDATE
.endm

# One update_va_mapping.
.macro MAP vaddr, low, high=0, flags=UVMF_INVLPG
    CALL update_va_mapping, \\vaddr, \\low, \\high, \\flags
.endm

# Map a page of the first 4 MB again where it was, with other rights.
.macro RIGHTS vaddr, flags, how=UVMF_INVLPG
    ENTRY eax, \\vaddr, \\flags
    MAP \\vaddr, eax, 0, \\how
.endm

# One mmuext_op.
.macro EXTENDED command, arg1=0, arg2=0
    push \\arg2
    push \\arg1
    push \\command
    mov ebx, esp
    CALL mmuext_op, ebx, 1, 0, DOMID_SELF
    add esp, SIZEOF_MMUEXT_OP
.endm

# Instructions between these two may fault.
.macro TRY
    mov dword ptr [faults], 0
    mov [try_esp], esp
    mov dword ptr [on_fault], offset 1f
.endm
.macro CAUGHT
1:
    mov esp, [try_esp]
    mov dword ptr [on_fault], offset stray_fault
    NOTE dword ptr [faults]
.endm

.equ fault_address, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_ARCH_CR2

.data
faults:
    .long 0
fault_error:
    .long 0
fault_eip:
    .long 0
on_fault:
    .long stray_fault
try_esp:
    .long 0
tables:
    .long 0
shared_info_maddr:
    .long 0
note_count:
    .long 0
word:
    .quad 0
gates:
    GATE 13, 0, protection_caught
    GATE 14, 0, fault_caught
    GATES_END
.bss
notes:
    .space 4000
.text

# In: a word on the stack, which goes.
note:
    push eax
    push ebx
    mov eax, [esp + 12]
    mov ebx, [note_count]
    mov [notes + ebx * 4], eax
    inc ebx
    mov [note_count], ebx
    pop ebx
    pop eax
    ret 4

fault_caught:
protection_caught:
    pop dword ptr [fault_error]
    pop dword ptr [fault_eip]
    inc dword ptr [faults]
    jmp dword ptr [on_fault]
stray_fault:
    NOTE [fault_eip]
    FINISH 99

start:
    mov eax, [esi + START_INFO_MFN_LIST]
    mov [p2m], eax
    mov eax, [esi + START_INFO_PT_BASE]
    mov [tables], eax
    mov eax, [esi + START_INFO_SHARED_INFO]
    mov [shared_info_maddr], eax
    MAP_SHARED_INFO
    SET_TRAPS gates
    call claim
    FINISH 0
claim:
"""
END = "\n ret\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a guest: its notes (errno values negative), and how it ended."""

    notes: list[int]
    reason: int | None
    crash_rule: str | None
    console: bytes
    rules: list[str]


class Lab:
    """One machine for several such guests."""

    def __init__(self, host_mb: int = 24, mode: Mode = "auto") -> None:
        self.hypervisor = Hypervisor(host_mb * MEGABYTE, cpu_mode=mode)
        self.control = self.hypervisor.control()
        self._free = sum(self.hypervisor.machine.frames.refs)
        self._undo: dict[int, ExitStack] = {}
        self._guests: dict[int, BootedGuest] = {}
        self.hypervisor.console_output = self._print
        self.hypervisor.on_refused = lambda refusal: self._guests[refusal.domid].refusals.append(
            refusal
        )

    def add(self, source: str, *, memory_mb: int = 4, maxmem_mb: int | None = None) -> BootedGuest:
        """Build a guest around ``source``, which begins with what it claims, and unpause it."""
        fragment = assemble_fragment(
            PRELUDE + MACROS + source + END, ORIGIN, {"VIRT_BASE": VIRT_BASE}
        )
        image = image_of(fragment)
        config = DomainConfig("guest", Path("guest"), "guest", memory_mb, maxmem_mb or memory_mb)
        undo = ExitStack()
        built = build(self.control, config, image, b"", undo)
        self._undo[built.domid] = undo
        guest = BootedGuest(self.hypervisor, self.control, built, dict(fragment.symbols), undo)
        self._guests[built.domid] = guest
        self.control.unpause(built.domid)
        return guest

    def remove(self, guest: BootedGuest) -> None:
        """Destroy a guest, whatever it is doing."""
        self._undo.pop(guest.domid).close()

    def poke(self, guest: BootedGuest, vaddr: int, data: bytes) -> None:
        """Write into memory of a guest, as its builder could."""
        while data:
            maddr = self.control.translate(guest.domid, 0, vaddr)
            assert maddr is not None, hex(vaddr)
            piece = data[: PAGE - vaddr % PAGE]
            self.control.write_frame(guest.domid, maddr // PAGE, maddr % PAGE, piece)
            vaddr += len(piece)
            data = data[len(piece) :]

    def close(self) -> None:
        """Audit, destroy everything, and audit again: nothing may be left."""
        try:
            assert self.control.audit() == []
            for undo in self._undo.values():
                undo.close()
            assert self.control.audit() == []
            left = sum(self.hypervisor.machine.frames.refs) - self._free
            assert left == 0, f"the domains left {left} references behind"
        finally:
            self.hypervisor.close()

    def _print(self, domid: int, data: bytes) -> None:
        self._guests[domid].console += data


@contextmanager
def lab(host_mb: int = 24, mode: Mode = "auto") -> Iterator[Lab]:
    """Make a machine, and take it apart at the end with every check."""
    made = Lab(host_mb, mode)
    try:
        yield made
    except BaseException:
        made.hypervisor.close()
        raise
    made.close()


def outcome(guest: BootedGuest) -> Outcome:
    """Gather what a guest did."""
    notes = guest.words("notes", min(guest.word("note_count"), MOST_NOTES))
    return Outcome(
        [word - (1 << 32) if word > 0xFFFFF000 else word for word in notes],
        guest.reason,
        guest.crash_rule,
        guest.console,
        guest.rules,
    )


def run_guest(source: str, *, mode: Mode = "auto", seconds: float = 10.0) -> Outcome:
    """Boot a guest, run it to its end, audit the machine before and after its death."""
    with lab(mode=mode) as made:
        guest = made.add(source)
        assert guest.run(seconds), f"still running after {seconds} s"
        return outcome(guest)


def notes_of(source: str, *, mode: Mode = "auto") -> list[int]:
    """Run a guest that must reach its end, and return its notes."""
    result = run_guest(source, mode=mode)
    assert result.reason == 0, f"{result.crash_rule or result.reason}: notes {result.notes}"
    return result.notes
