# SPDX-License-Identifier: GPL-2.0-or-later
"""Random stores of every form, by a guest that plays with its own tables.

A program maps pages with and without a flush, pins and links them as tables, and stores entries,
good and bad, wherever that leads: into plain pages, into tables through the assist, to faults. The
machine is audited afterwards: a store that reached a table unvalidated shows as a wrong count.
"""

from __future__ import annotations

import random

import pytest

from tests.support.paging_guest import lab, outcome
from xenlite.machine.cpu import Mode

STEPS = 120
PAGES = 12  # of FREE, with their frames: what the program plays with

PREPARE = """
    CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
    CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
    jmp begin
event:
    mov byte ptr [upcall_pending], 0
    iretd
    .equ upcall_pending, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_PENDING
    .equ upcall_mask, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
begin:
"""
# Each stores the entry [word] at [edi]; registers are free.
FORMS = (
    "mov eax, [word]\n mov [edi], eax",
    "mov eax, [word + 4]\n mov [edi + 4], eax\n mov eax, [word]\n mov [edi], eax",
    "mov eax, [word]\n mov [edi], eax\n mov eax, [word + 4]\n mov [edi + 4], eax",
    "mov eax, [word]\n xchg [edi], eax",
    "movq xmm0, qword ptr [word]\n movq qword ptr [edi], xmm0",
    "mov ebx, [word]\n mov ecx, [word + 4]\n mov eax, [edi]\n mov edx, [edi + 4]\n"
    "lock cmpxchg8b [edi]",
    "mov esi, offset word\n mov ecx, 2\n rep movsd",
    "lock bts dword ptr [edi], 1",
    "lock btr dword ptr [edi], 0",
    "lock btr dword ptr [edi], 5",
    "lock btc dword ptr [edi], 7",
    "mov ax, [word]\n mov [edi + 3], ax",
    "mov eax, [word]\n mov [edi + 6], eax",
    "movups xmm0, [word]\n movups [edi], xmm0",
    "xor eax, eax\n mov ecx, 24\n rep stosd",
    "and edi, 0xFFFFFFF0\n fxsave [edi]",
    "push dword ptr [word]\n pop dword ptr [edi]",
)
FLAGS = (
    "RW",
    "RO",
    "RW",
    "RO",
    "TABLE",
    "0",
    "_PAGE_PRESENT | _PAGE_RW",
    "RW | _PAGE_PSE",
    "RW | 8",
)


def program(seed: int) -> str:
    """Write one program."""
    chance = random.Random(seed)

    def page() -> str:
        return f"FREE + {chance.randrange(PAGES)} * PAGE"

    def l2_slot() -> str:
        """Leave the machine address of an L2 entry of EMPTY in edi."""
        slot = 4 + chance.randrange(3)
        return f"TABLE_MFN edi, 1\n shl edi, 12\n add edi, {slot} * 8"

    def place() -> str:
        """Leave the address of an entry, or of what may be one, in edi."""
        index = chance.choice((*range(PAGES), 13, 30, 510, 511))
        return chance.choice(
            (
                f"SLOT_VA edi, FREE + {index % PAGES} * PAGE",
                f"mov edi, {page()} + {index} * 8",
                f"mov edi, EMPTY + {chance.randrange(3)} * 0x200000 + {index} * 4096",
                f"mov edi, [tables]\n add edi, PAGE + {4 + chance.randrange(3)} * 8",
            )
        )

    def entry() -> str:
        """Leave an entry in [word]."""
        # Not table 2, which linked elsewhere would let the program overwrite itself.
        frame = chance.choice(
            (
                *[f"MFN eax, {page()}"] * 6,
                f"TABLE_MFN eax, {chance.choice((0, 1, 3))}",
                f"mov eax, {chance.choice((0, 3, 6143, 6144, 0xFFFFF))}",
            )
        )
        high = chance.choice(("0", "0", "0", "0x80000000", "0x100"))
        return f"""
            {frame}
            shl eax, 12
            or eax, {chance.choice(FLAGS)}
            mov [word], eax
            mov dword ptr [word + 4], {high}
        """

    def store() -> str:
        event = chance.random() < 0.1
        return f"""
            {entry()}
            {place()}
            {"mov byte ptr [upcall_pending], 1" if event else ""}
            {"mov byte ptr [upcall_mask], 0" if event else ""}
            {chance.choice(FORMS)}
        """

    def hypercall() -> str:
        flush = chance.choice(("UVMF_NONE", "UVMF_NONE", "UVMF_INVLPG", "UVMF_TLB_FLUSH"))
        level = chance.choice(("PIN_L1", "PIN_L1", "PIN_L2", "UNPIN", "UNPIN"))
        return chance.choice(
            (
                f"RIGHTS {page()}, {chance.choice(('RO', 'RW', 'RO', '0'))}, {flush}",
                f"RIGHTS {page()}, {chance.choice(('RO', 'RO', 'RW'))}, {flush}",
                f"{entry()}\n MAP {page()}, [word], [word + 4], {flush}",
                f"MFN eax, {page()}\n EXTENDED MMUEXT_{level}_TABLE, eax",
                f"{entry()}\n {l2_slot()}\n UPDATE edi, [word], [word + 4]",
                f"{l2_slot()}\n MFN eax, {page()}\n shl eax, 12\n or eax, TABLE\n UPDATE edi, eax",
                f"MFN eax, {page()}\n EXTENDED MMUEXT_CLEAR_PAGE, eax",
                "EXTENDED MMUEXT_TLB_FLUSH_LOCAL",
            )
        )

    steps = []
    for _ in range(STEPS):
        step = store() if chance.random() < 0.55 else hypercall()
        steps.append(f"TRY\n {step}\n 1:\n mov esp, [try_esp]\n")
    return f"{PREPARE} {''.join(steps)} NOTE 1\n FINISH 0\n"


def play(seed: int, mode: Mode = "auto") -> None:
    """Run a program and audit the machine before and after its end."""
    with lab(mode=mode) as made:
        guest = made.add(program(seed))
        assert guest.run(20.0), f"seed {seed} still runs"
        assert made.control.audit() == [], f"seed {seed}"
        result = outcome(guest)
        assert (result.reason, result.notes) == (0, [1]), f"seed {seed}: {result}"


@pytest.mark.parametrize("seed", range(4))
def test_no_store_reaches_a_table_unchecked(seed: int) -> None:
    play(seed)


def test_no_store_reaches_a_table_unchecked_with_copied_state() -> None:
    play(4, "copied")
