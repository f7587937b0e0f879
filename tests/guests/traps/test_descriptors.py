# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptor tables: what may stand in them, and what they do (SECURITY B1, B2)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import EBUSY, EFAULT, EINVAL, FLAT_RING1_DS, FLAT_RING3_CS, FLAT_RING3_SS

WORD = 1 << 32

# Descriptors: base 0, limit 4 GiB
CODE = 0x00CF9A000000FFFF
DATA = 0x00CF92000000FFFF


def dpl(level: int) -> int:
    """Return the bits of a descriptor's privilege level."""
    return level << 45


# A call gate for ring 3 to ring 1's code; the kernel writes in where it leads.
CALL_GATE = "gate: .word 0, 0xE019, 0xEC00, 0"
FILL_GATE = """
    mov eax, offset called
    mov [gate], ax
    shr eax, 16
    mov [gate + 6], ax
"""

GDT = """
    REMAP offset gdt, PTE_RO_DATA
    mov eax, offset gdt
    sub eax, VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov eax, [edx + eax * 4]
    mov [gdt_frames], eax
    mov ebx, offset gdt_frames
    mov ecx, 512
    XEN set_gdt
    mov [result], eax
"""
GDT_DATA = """
.data
result: .long 99
gdt_frames: .fill 16, 4, 0
.p2align 12
gdt:
    .quad 0
    \\descriptors
    .p2align 12
.text
"""


def with_gdt(body: str, *descriptors: int | str) -> str:
    """Write a kernel whose GDT starts with ``descriptors``, from selector 8 on."""
    lines = [one if isinstance(one, str) else f".quad {one:#x}" for one in descriptors]
    return START + GDT + body + GDT_DATA.replace("\\descriptors", "\n".join(lines))


START = """
.text
start:
    mov eax, [esi + START_INFO_MFN_LIST]
    mov [p2m], eax
"""


def test_a_kernel_may_live_on_its_own_selectors() -> None:
    """As GNU Mach does: its own ring 1 code and data, its gates through them."""
    body = """
        SET_TRAPS traps
        mov eax, 0x11
        mov ss, ax
        mov ds, ax
        .byte 0xEA
        .long own
        .word 0x09
    own:
        xor ecx, ecx
    fault:
        div ecx
    handler:
        mov eax, ss
        mov [stack], eax
        KEEP_FRAME 3, 1
    .data
    stack: .long 0
    .text
    """
    source = with_gdt(body, CODE | dpl(1), DATA | dpl(1))
    with boot(source + traps("0, 0, handler, 0x09")) as guest:
        assert (guest.reason, guest.word("result")) == (1, 0), guest.crash
        assert guest.words("frame", 2) == [guest.symbols["fault"], 0x09 | 1 << 16]
        assert guest.word("stack") & 0xFFFF == 0x11


def test_privilege_0_becomes_1_and_the_accessed_bit_is_set() -> None:
    body = "mov eax, 0x11\nmov ds, ax\nmov eax, [gdt + 12]\nmov [stored], eax\nFINISH 1\n"
    source = with_gdt(body, CODE, DATA) + ".data\nstored: .long 0\n"
    with boot(source) as guest:
        assert (guest.reason, guest.word("result")) == (1, 0), guest.crash
        assert guest.word("stored") == 0x00CFBB00
        assert guest.word("gdt", 5) == 0x00CFB300


@pytest.mark.parametrize(
    "descriptor",
    [
        0x0000890000000067,  # an available TSS
        0x0000E90000000067,  # the same for ring 3
        0x00008B0000000067,  # a busy one
        0x0000820000000000,  # an LDT
        0x00008E0000080000,  # an interrupt gate
        0x00008F0000080000,  # a trap gate
        0x0000850000080000,  # a task gate
        0x0000840000080000,  # a 16-bit call gate
        0x00AF9A000000FFFF,  # 64-bit code
        0x00008C00E0080000,  # a call gate to what would be ring 0's code
        0x00008C00E0110000,
    ],
)
def test_a_gdt_with_a_system_descriptor_is_refused_whole(descriptor: int) -> None:
    source = with_gdt("FINISH 1\n", CODE, descriptor)
    with boot(source) as guest:
        assert guest.word("result") == WORD - EINVAL
        assert guest.word("gdt", 3) == CODE >> 32, "the frame is as it was"
        assert guest.domain.current.gdt_frames == ()


def test_a_system_descriptor_that_is_not_present_may_stand() -> None:
    with boot(with_gdt("FINISH 1\n", 0x0000090000000067)) as guest:
        assert guest.word("result") == 0


def test_a_gdt_frame_that_is_mapped_writable_is_refused() -> None:
    source = with_gdt("FINISH 1\n", CODE).replace("REMAP offset gdt, PTE_RO_DATA", "")
    with boot(source) as guest:
        assert guest.word("result") == WORD - EINVAL


def test_a_gdt_frame_cannot_be_mapped_writable() -> None:
    body = "REMAP offset gdt, PTE_RW_DATA\nmov [second], eax\nFINISH 1\n"
    with boot(with_gdt(body, CODE) + ".data\nsecond: .long 0\n") as guest:
        assert (guest.word("result"), guest.word("second")) == (0, WORD - EBUSY)


@pytest.mark.parametrize(
    ("frames", "entries", "expected"),
    [
        ("", 7169, EINVAL),
        ("", 0xFFFFFFFF, EINVAL),
        ("mov dword ptr [gdt_frames + 13 * 4], 0x7FFFFFFF", 7168, EINVAL),
        ("mov dword ptr [gdt_frames + 13 * 4], 0", 7168, EINVAL),  # Xen's own
    ],
)
def test_a_gdt_is_set_whole_or_not_at_all(frames: str, entries: int, expected: int) -> None:
    body = f"""
        mov edi, offset gdt_frames
        mov eax, [edi]
        mov ecx, 14
        cld
        rep stosd
        {frames}
        mov ebx, offset gdt_frames
        mov ecx, {entries}
        XEN set_gdt
        mov [second], eax
        mov eax, 0x11
        mov ds, ax
        FINISH 1
    """
    source = with_gdt(body, CODE, DATA) + ".data\nsecond: .long 0\n"
    with boot(source) as guest:
        assert (guest.reason, guest.word("second")) == (1, WORD - expected), guest.crash
        vcpu = guest.domain.current
        assert (len(vcpu.gdt_frames), vcpu.gdt_entries) == (1, 512), "the old one stays"


def test_a_frame_may_serve_in_all_fourteen_pages_and_entries_0_give_all_back() -> None:
    body = """
        mov edi, offset gdt_frames
        mov eax, [edi]
        mov ecx, 14
        cld
        rep stosd
        mov ebx, offset gdt_frames
        mov ecx, 7168
        XEN set_gdt
        mov [second], eax
        mov eax, 13 * 4096 + 0x11
        mov ds, ax
        mov eax, FLAT_RING1_DS
        mov ds, ax
        xor ecx, ecx
        mov ebx, offset gdt_frames
        XEN set_gdt
        REMAP offset gdt, PTE_RW_DATA
        mov [third], eax
        FINISH 1
    """
    source = with_gdt(body, CODE, DATA) + ".data\nsecond: .long 9\nthird: .long 9\n"
    with boot(source) as guest:
        assert guest.reason == 1, guest.crash
        assert (guest.word("second"), guest.word("third")) == (0, 0)


def test_a_list_of_frames_that_cannot_be_read_is_refused() -> None:
    body = "mov ebx, 0x10000000\nmov ecx, 512\nXEN set_gdt\nmov [result], eax\nFINISH 1\n"
    with boot(with_gdt(body)) as guest:
        assert guest.word("result") == WORD - EFAULT


@pytest.mark.parametrize("selector", [0x0B, 0xDFF9, 0xE001, 0xE041, 0xE051, 0xF001, 0xFFF9])
def test_a_selector_with_nothing_behind_it_is_a_protection_fault(selector: int) -> None:
    body = f"""
        SET_TRAPS traps
        mov eax, {selector}
        mov fs, ax
    handler:
        KEEP_FRAME 1, 1
    """
    with boot(START + body + traps("TRAP_gp_fault, 0, handler")) as guest:
        assert (guest.reason, guest.word("frame")) == (1, selector & ~3), guest.crash


# -- update_descriptor ---------------------------------------------------------------------

UPDATE = """
    mov eax, [gdt_frames]
    mov ebx, eax
    shl ebx, 12
    shr eax, 20
    mov ecx, eax
    add ebx, \\offset
    mov edx, \\low
    mov esi, \\high
    XEN update_descriptor
    mov [second], eax
"""


def updated(offset: int, descriptor: int, body: str = "FINISH 1\n") -> str:
    """Write a kernel that updates one descriptor of its GDT frame."""
    update = UPDATE.replace("\\offset", str(offset))
    update = update.replace("\\low", str(descriptor & 0xFFFFFFFF))
    update = update.replace("\\high", str(descriptor >> 32))
    return with_gdt(update + body, CODE, DATA) + ".data\nsecond: .long 9\n"


def test_one_descriptor_of_a_live_gdt_can_be_changed() -> None:
    with boot(updated(24, DATA, "mov eax, 0x19\nmov fs, ax\nFINISH 1\n")) as guest:
        assert (guest.reason, guest.word("second")) == (1, 0), guest.crash
        assert guest.words("gdt", 8)[6:] == [0xFFFF, 0x00CFB300]


@pytest.mark.parametrize(
    ("offset", "descriptor"),
    [(4, DATA), (28, DATA), (24, 0x0000890000000067), (24, 0x00AF9A000000FFFF)],
)
def test_a_bad_descriptor_or_address_is_refused(offset: int, descriptor: int) -> None:
    with boot(updated(offset, descriptor)) as guest:
        assert guest.word("second") == WORD - EINVAL
        assert guest.words("gdt", 8)[6:] == [0, 0]


def test_a_page_table_is_no_descriptor_table() -> None:
    body = """
        mov eax, [esi + START_INFO_PT_BASE]
        mov [table], eax
    """
    update = """
        mov eax, [table]
        sub eax, VIRT_BASE
        shr eax, 12
        mov edx, [p2m]
        mov eax, [edx + eax * 4]
        mov ebx, eax
        shl ebx, 12
        shr eax, 20
        mov ecx, eax
        mov edx, 0
        mov esi, 0
        XEN update_descriptor
        mov [result], eax
        FINISH 1
    .data
    table: .long 0
    result: .long 0
    """
    with boot(START + body + update) as guest:
        assert guest.word("result") == WORD - EINVAL


# -- gates ---------------------------------------------------------------------------------

GATE_KERNEL = """
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top - 32
    XEN stack_switch
    REMAP offset program_page, PTE_USER_RO
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    TO_USER program
called:
    mov eax, ss
    mov [stack], eax
    mov [entered], esp
    KEEP_FRAME 4, 1
.data
stack: .long 0
entered: .long 0
.text
.p2align 12
program_page:
program:
    \\program
behind:
.p2align 12
"""


def test_a_call_gate_of_the_gdt_enters_the_kernel_on_the_stack_of_stack_switch() -> None:
    source = with_gdt(GATE_KERNEL.replace("\\program", "lcall 0x13, 0"), CODE, CALL_GATE)
    with boot(source.replace("REMAP offset gdt", FILL_GATE + "REMAP offset gdt")) as guest:
        assert guest.reason == 1, guest.crash
        assert guest.words("frame", 4) == [
            guest.symbols["behind"],
            FLAT_RING3_CS,
            guest.symbols["user_stack_top"],
            FLAT_RING3_SS,
        ]
        assert guest.word("stack") & 0xFFFF == FLAT_RING1_DS
        assert guest.word("entered") == guest.symbols["kernel_stack_top"] - 32 - 16


SET_LDT = """
    REMAP offset ldt, PTE_RO_DATA
    mov ebx, offset set_ldt
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    XEN mmuext_op
    mov [result], eax
"""
LDT_DATA = """
.data
result: .long 99
second: .long 99
set_ldt: .long MMUEXT_SET_LDT, \\base, \\entries
.p2align 12
ldt:
    \\descriptors
    .p2align 12
.text
"""


def with_ldt(
    body: str, *descriptors: int | str, base: str = "ldt", entries: int | None = None
) -> str:
    """Write a kernel with an LDT."""
    lines = [one if isinstance(one, str) else f".quad {one:#x}" for one in descriptors]
    data = LDT_DATA.replace("\\descriptors", "\n".join(lines)).replace("\\base", base)
    count = len(descriptors) if entries is None else entries
    return START + SET_LDT + body + data.replace("\\entries", str(count))


def test_a_call_gate_of_the_ldt_enters_the_kernel() -> None:
    """As GNU Mach's system calls do."""
    source = with_ldt(GATE_KERNEL.replace("\\program", "lcall 7, 0"), CALL_GATE)
    with boot(source.replace("REMAP offset ldt", FILL_GATE + "REMAP offset ldt")) as guest:
        assert guest.reason == 1, guest.crash
        assert guest.word("frame") == guest.symbols["behind"]


LDT_FAULT = """
    SET_TRAPS traps
    \\use
    FINISH 1
protection_fault:
    KEEP_FRAME 2, 2
page_fault:
    mov eax, cr2
    mov [result], eax
    KEEP_FRAME 2, 3
"""
LDT_TRAPS = traps("TRAP_gp_fault, 0, protection_fault", "TRAP_page_fault, 0, page_fault")


def test_a_segment_of_the_ldt_is_loaded_on_use() -> None:
    body = LDT_FAULT.replace("\\use", "mov eax, 0x0D\nmov fs, ax\nmov eax, fs:[frame]")
    with boot(with_ldt(body, 0, DATA | dpl(1)) + LDT_TRAPS) as guest:
        assert guest.reason == 1, guest.crash
        assert list(guest.domain.current.ldt_frames) == [0]


@pytest.mark.parametrize("entries", [0, 512])
def test_a_selector_beyond_the_ldt_is_a_protection_fault(entries: int) -> None:
    body = LDT_FAULT.replace("\\use", "lcall 0x1007, 0")
    source = with_ldt(body, CODE, base="ldt" if entries else "0", entries=entries)
    with boot(source + LDT_TRAPS) as guest:
        assert guest.reason == 2, guest.crash
        assert guest.word("frame") == 0x1004


def test_an_ldt_page_that_cannot_be_promoted_is_the_guests_page_fault() -> None:
    """CR2 says where the guest keeps it, not where the hypervisor would show it."""
    body = LDT_FAULT.replace("\\use", "mov eax, 0x0D\nmov fs, ax")
    for descriptor, rights in ((DATA | dpl(1), "PTE_RW_DATA"), (0x890000000067, "PTE_RO_DATA")):
        source = with_ldt(body, 0, descriptor).replace("ldt, PTE_RO_DATA", f"ldt, {rights}")
        with boot(source + LDT_TRAPS) as guest:
            assert guest.reason == 3, guest.crash
            assert guest.word("result") == guest.symbols["ldt"] + 8


def test_an_ldt_in_use_cannot_be_mapped_writable_until_it_is_dropped() -> None:
    use = """
        mov eax, 0x0D
        mov fs, ax
        REMAP offset ldt, PTE_RW_DATA
        mov [second], eax
        xor eax, eax
        mov fs, ax
        mov dword ptr [set_ldt + 8], 0
        mov ebx, offset set_ldt
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
        REMAP offset ldt, PTE_RW_DATA
        mov [result], eax
    """
    source = with_ldt(LDT_FAULT.replace("\\use", use), 0, DATA | dpl(1))
    with boot(source + LDT_TRAPS) as guest:
        assert guest.reason == 1, guest.crash
        assert (guest.word("second"), guest.word("result")) == (WORD - EBUSY, 0)


@pytest.mark.parametrize(
    ("base", "entries"),
    [("ldt + 8", 1), ("0xF5800000", 1), ("0xF57FF000", 513), ("ldt", 8193), ("0xFC000000", 512)],
)
def test_an_ldt_out_of_range_is_refused(base: str, entries: int) -> None:
    source = with_ldt("FINISH 1\n", CODE, base=base, entries=entries)
    with boot(source) as guest:
        assert guest.word("result") == WORD - EINVAL
        assert guest.domain.current.ldt_entries == 0


def test_reading_the_window_of_the_tables_harms_nobody() -> None:
    """Ring 1 is a supervisor and limits aren't enforced: it sees them, and cannot write."""
    body = LDT_FAULT.replace(
        "\\use", "mov eax, [0xFC00E018]\nmov [second], eax\nmov [0xFC00E018], eax"
    )
    with boot(with_ldt(body, 0, CODE) + LDT_TRAPS) as guest:
        assert guest.reason == 3, guest.crash
        assert guest.word("second") == 0xFFFF
        assert guest.word("frame") == 3, "a protection violation, a write"
        assert guest.word("result") == 0xFC00E018


def test_reading_an_ldt_page_that_is_not_there_is_a_plain_page_fault() -> None:
    body = LDT_FAULT.replace("\\use", "mov eax, [0xFC010000 + 0x8000]")
    with boot(with_ldt(body, 0, CODE) + LDT_TRAPS) as guest:
        assert guest.reason == 3, guest.crash


@pytest.mark.parametrize("store", ["mov [0xFC010000], eax", "mov [0xFC010008], eax"])
def test_writing_a_mapped_ldt_page_is_a_fault_and_not_a_loop(store: str) -> None:
    body = LDT_FAULT.replace("\\use", f"mov eax, [0xFC010000]\n{store}")
    with boot(with_ldt(body, 0, CODE) + LDT_TRAPS, seconds=2) as guest:
        assert guest.reason == 3, guest.crash


def test_a_program_does_not_see_the_window() -> None:
    source = KERNEL_AND_PROGRAM.replace("\\program", "mov eax, [0xFC00E018]")
    source = source.replace("\\before", "").replace("\\handler", "KEEP_FRAME 1, 1")
    with boot(source + traps("TRAP_page_fault, 0, handler")) as guest:
        assert (guest.reason, guest.word("frame")) == (1, 5)
