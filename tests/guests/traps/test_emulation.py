# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's privileged instructions do, and that no byte stream does more (SECURITY B6)."""

from __future__ import annotations

import random

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, BootedGuest, boot, made, traps
from xenlite.abi.x86_32p import CR0_TS, CR0_WP, CR4_PAE, XEN_CPUID_SIGNATURE_EBX
from xenlite.machine.trap import CR0, HF_CPL, HFLAGS

GP = traps("TRAP_gp_fault, 0, protection_fault", "TRAP_invalid_op, 0, invalid")
KERNEL = """
    MAP_SHARED_INFO
    SET_TRAPS traps
    \\text
    mov [result], eax
    FINISH 1
protection_fault:
    mov [result], eax
    KEEP_FRAME 3, 2
invalid:
    KEEP_FRAME 2, 3
page_fault:
    KEEP_FRAME 3, 4
.data
result: .long 0x5A5A5A5A
other: .fill 4, 4, 0
.text
"""


def kernel(text: str) -> str:
    """Write a kernel that executes ``text`` and keeps EAX."""
    return KERNEL.replace("\\text", text) + GP


def result(text: str) -> int:
    """Execute something that must be emulated; return EAX."""
    with boot(kernel(text)) as guest:
        assert guest.reason == 1, (guest.reason, guest.words("frame", 3), guest.crash)
        return guest.word("result")


def faults(text: str, reason: int = 2) -> None:
    """Execute something that must stay the guest's own fault, at its ``fault`` label."""
    with boot(kernel(text)) as guest:
        assert guest.reason == reason, (guest.reason, guest.crash)
        if reason == 2:
            assert guest.words("frame", 2) == [0, guest.symbols["fault"]]
        else:
            assert guest.word("frame") == guest.symbols["fault"]


def test_cr0_can_be_read_and_only_ts_written() -> None:
    cr0 = result("mov eax, cr0")
    assert cr0 & 0x80010001 == 0x80010001
    assert not cr0 & CR0_TS
    assert result("mov eax, cr0\nor eax, CR0_TS\nmov cr0, eax\nmov eax, cr0") == cr0 | CR0_TS
    assert result("mov eax, cr0\nor eax, CR0_TS\nmov cr0, eax\nclts\nmov eax, cr0") == cr0


@pytest.mark.parametrize("bit", [CR0_WP, 1, 1 << 31, 1 << 30, 4, 1 << 18])
def test_no_other_bit_of_cr0_changes(bit: int) -> None:
    faults(f"mov eax, cr0\nxor eax, {bit}\nfault:\nmov cr0, eax")


def test_write_protection_holds_after_the_attempt() -> None:
    text = f"""
        mov eax, cr0
        and eax, {~CR0_WP & 0xFFFFFFFF}
        mov cr0, eax
    """
    with boot(kernel(text)) as guest:
        assert guest.reason == 2
        assert guest.domain.engine.regs[CR0] & CR0_WP


def test_cr2_is_the_word_in_shared_info() -> None:
    at = "[shared_info + VCPU_INFO_ARCH_CR2]"
    assert result(f"mov dword ptr {at}, 0x1234\nmov eax, cr2") == 0x1234
    assert result(f"mov ecx, 0x4321\nmov cr2, ecx\nmov eax, {at}") == 0x4321


def test_cr3_is_the_frame_of_the_l3_and_can_be_loaded_again() -> None:
    text = """
        mov edx, [p2m]
        mov eax, [offset pt_base]
        sub eax, VIRT_BASE
        shr eax, 12
        mov ecx, [edx + eax * 4]
        mov eax, cr3
        mov cr3, eax
        mov eax, cr3
        mov ebx, eax
        shr eax, 12
        shl ebx, 20
        or eax, ebx
        sub eax, ecx
    """.replace("[offset pt_base]", "[pt_base]")
    source = "mov eax, [esi + START_INFO_PT_BASE]\nmov [pt_base], eax\n" + kernel(text)
    with boot(source + ".data\npt_base: .long 0\n") as guest:
        assert (guest.reason, guest.word("result")) == (1, 0), guest.crash


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x1000, 0x7FFFF000])
def test_cr3_takes_no_other_frame(value: int) -> None:
    faults(f"mov eax, {value}\nfault:\nmov cr3, eax")


def test_cr4_shows_pae_and_keeps_what_it_can() -> None:
    cr4 = result("mov eax, cr4")
    assert cr4 & CR4_PAE
    assert result("xor eax, eax\nmov cr4, eax\nmov eax, cr4") == cr4
    assert result("mov eax, cr4\nor eax, 4\nmov cr4, eax\nmov eax, cr4") == cr4 | 4
    assert result("mov eax, 0xFFFFFFFF\nmov cr4, eax\nmov eax, cr4") == cr4 | 0xC


@pytest.mark.parametrize(
    "text",
    [
        "hlt",
        "lgdt [result]",
        "lidt [result]",
        "lmsw ax",
        "invlpg [result]",
        "invd",
        "mov eax, 0x28\nfault2:\nltr ax",
        "xor eax, eax\nlldt ax",
        ".byte 0x0F, 0x22, 0xC8",  # mov cr1, eax
        "mov ecx, 0xC0000102\nrdmsr",
        "mov ecx, 0x1B\nrdmsr",
        "mov ecx, 0x277\nrdmsr",
        "mov ecx, 0xC0000080\nxor eax, eax\nxor edx, edx\nwrmsr",
        "mov ecx, 0x175\nwrmsr",
        "mov edi, offset other\ninsb",
        "mov esi, offset other\noutsb",
        "mov edi, offset other\nmov ecx, 2\nrep insb",
    ],
)
def test_what_xen_does_not_emulate_stays_a_protection_fault(text: str) -> None:
    *before, last = text.split("\n")
    faults("\n".join([*before, "fault:", last]))


def test_clts_and_task_switched_work_on_the_fpu() -> None:
    text = """
        mov ebx, 1
        XEN fpu_taskswitch
        mov dword ptr [other], 1
        fninit
        mov eax, [other]
    """
    source = KERNEL.replace("\\text", text).replace(
        "page_fault:", "not_available:\nmov dword ptr [other], 2\niretd\npage_fault:"
    )
    source += traps("TRAP_no_device, 0, not_available")
    with boot(source) as guest:
        assert (guest.reason, guest.word("result")) == (1, 2)
        assert not guest.domain.engine.regs[CR0] & CR0_TS, "cleared when #NM was delivered"


def test_a_task_switch_that_is_taken_back_traps_nothing() -> None:
    assert result("mov ebx, 1\nXEN fpu_taskswitch\nxor ebx, ebx\nXEN fpu_taskswitch\nfninit") == 0
    assert result("mov ebx, 1\nXEN fpu_taskswitch\nclts\nfninit\nmov eax, 5") == 5


def test_wbinvd_cli_and_sti_do_nothing() -> None:
    mask = "movzx eax, byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]"
    assert result("mov eax, 7\nwbinvd") == 7
    assert result(f"sti\n{mask}") == 1, "the interrupt flag is the byte"
    assert result(f"mov byte ptr [shared_info + 1], 0\ncli\n{mask}") == 0


def test_there_is_nothing_behind_any_port() -> None:
    assert result("xor eax, eax\nin al, 0x60") == 0xFF
    assert result("mov eax, 0x12345678\nmov edx, 0xCF8\nin ax, dx") == 0x1234FFFF
    assert result("mov edx, 0x80\nin eax, dx") == 0xFFFFFFFF
    assert result("mov eax, 5\nout 0x80, al\nout 0xE9, eax") == 5


def test_a_program_may_not_use_ports_or_cli() -> None:
    for text in ("in al, 0x60", "out 0x80, al", "cli", "sti", "hlt", "mov eax, cr0", "rdmsr"):
        source = KERNEL_AND_PROGRAM.replace("\\program", f"nop\nfault:\n{text}")
        source = source.replace("\\before", "").replace("\\handler", "KEEP_FRAME 2, 2")
        with boot(source + traps("TRAP_gp_fault, 0, handler")) as guest:
            assert guest.reason == 2, (text, guest.crash)
            assert guest.words("frame", 2) == [0, guest.symbols["fault"]]


def test_model_specific_registers_on_the_list() -> None:
    assert result("mov ecx, 0xC0000080\nrdmsr") == 0x800
    assert result("mov ecx, 0x8B\nxor eax, eax\nxor edx, edx\nwrmsr\nrdmsr") == 0


def test_debug_registers_keep_what_they_may() -> None:
    assert result("mov ecx, 0xC0001000\nmov dr0, ecx\nmov eax, dr0") == 0xC0001000
    assert result("mov ecx, 3\nmov dr7, ecx\nmov eax, dr7") == 0x403
    assert result("mov ecx, 0\nmov dr6, ecx\nmov eax, dr6") == 0xFFFF0FF0


@pytest.mark.parametrize(
    ("register", "value"),
    [(0, 0xF5800000), (3, 0xFC00E018), (7, 0x2000), (7, 0x20001), (7, 0x200000 | 4 << 2)],
)
def test_debug_registers_never_reach_the_hypervisor(register: int, value: int) -> None:
    text = f"mov eax, {value}\nfault:\nmov dr{register}, eax"
    if register == 7 and value == 0x200000 | 4 << 2:
        text = text.replace(str(value), str(2 << 20 | 1 << 2))
    faults(text)


def test_forced_cpuid_answers_in_every_ring() -> None:
    forced = '.byte 0x0F, 0x0B\n.ascii "xen"\ncpuid'
    assert result(f"mov eax, 0x40000000\n{forced}\nmov eax, ebx") == XEN_CPUID_SIGNATURE_EBX
    source = KERNEL_AND_PROGRAM.replace("\\program", f"mov eax, 0x40000000\n{forced}\nint 0x80")
    source = source.replace("\\before", "")
    source = source.replace("\\handler", "mov [result], ebx\nFINISH 1\n.data\nresult: .long 0\n")
    with boot(source + traps("0x80, 3, handler")) as guest:
        assert guest.word("result") == XEN_CPUID_SIGNATURE_EBX


@pytest.mark.parametrize(
    "text",
    [
        "ud2",
        '.byte 0x0F, 0x0B\n.ascii "xen"\nrdtsc',
        '.byte 0x0F, 0x0B\n.ascii "xem"\ncpuid',
        ".byte 0x0F, 0x01, 0xC1",  # vmcall
        ".byte 0xF1",  # icebp
    ],
)
def test_any_other_invalid_opcode_is_the_guests(text: str) -> None:
    faults(f"fault:\n{text}", reason=3)


def test_an_instruction_at_the_end_of_memory_is_read_as_far_as_it_goes() -> None:
    """What is cut off is not emulated; what fits is, and the next fetch faults."""
    text = """
        mov ebx, offset beyond
        xor ecx, ecx
        xor edx, edx
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        jmp across
    """
    for code, reason in ((".byte 0x0F, 0x22", 2), (".byte 0x0F, 0x06", 4), (".byte 0xF4", 2)):
        source = KERNEL.replace("\\text", text)
        size = code.count(",") + 1
        source += f".p2align 12\n.space 4096 - {size}\nacross:\n{code}\nbeyond: .space 4096\n"
        source += traps("TRAP_gp_fault, 0, protection_fault", "TRAP_page_fault, 0, page_fault")
        with boot(source) as guest:
            assert guest.reason == reason, guest.crash
            at = "beyond" if reason == 4 else "across"
            assert guest.words("frame", 2)[1] == guest.symbols[at]


STREAMS = """
    SET_TRAPS traps
    REMAP offset stream_page, PTE_USER_RO
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    mov esp, offset kernel_stack_top - 2048
    \\enter
handler:
    FINISH 1
.text
.p2align 12
stream_page:
.space 4096 - 8
stream:
    .byte \\bytes
    int3
.p2align 12
"""
ALL = traps(*(f"{vector}, 3, handler" for vector in range(1, 256) if vector != 0x82))
PREFIXES = bytes.fromhex("66672e363e266465f2f3f0")
PRIVILEGED = (
    b"\x0f\x01", b"\x0f\x00", b"\x0f\x20", b"\x0f\x22", b"\x0f\x23", b"\x0f\x30", b"\x0f\x32",
    b"\x0f\x0bxen", b"\xcd", b"\xcf", b"\xf4", b"\xfa", b"\xe4", b"\x6c", b"\x9d", b"\x8e", b"\xca",
)  # fmt: skip


def random_stream(choose: random.Random) -> bytes:
    """Make 15 bytes that are likelier than others to mean something privileged."""
    stream = bytes(choose.choices(PREFIXES, k=choose.randrange(4)))
    if choose.random() < 0.8:
        stream += choose.choice(PRIVILEGED)
    return (stream + choose.randbytes(15))[:15]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("enter", ["jmp stream", "TO_USER stream"])
def test_no_byte_stream_harms_the_hypervisor(enter: str, seed: int) -> None:
    """Whatever it does, the domain ends alone or goes on; the audit holds; and CPL is never 0."""
    stream = random_stream(random.Random(f"{enter} {seed}"))
    source = STREAMS.replace("\\enter", enter)
    source = source.replace("\\bytes", ", ".join(map(str, stream))) + ALL
    with made(source) as guest:
        guest.run(0.3)
        assert_contained(guest)


def assert_contained(guest: BootedGuest) -> None:
    """Assert that the guest has no more rights than it was given."""
    regs = guest.domain.engine.regs
    assert regs[HFLAGS] & HF_CPL
    assert regs[CR0] & 0x80010001 == 0x80010001
