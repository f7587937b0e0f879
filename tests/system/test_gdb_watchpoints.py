# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchpoint finds who has changed a word, whoever and through whatever address it was."""

from __future__ import annotations

import re
import threading

from tests.support.gdb import RawClient, listening, needs_gdb, run_beside, run_gdb
from tests.support.guest import KERNEL_AND_PROGRAM, made, traps
from tests.support.guests import SMP

ONE_STORE_IN_MANY = """
    mov ecx, 20000
again:
    mov eax, ecx
    and eax, 0xFC
    mov edi, offset table
    inc dword ptr [edi + eax]
    cmp ecx, 777
    jne behind
    mov edi, offset word - 3
bad_store:
    mov word ptr [edi + 2], 0x5AFF
behind:
    loop again
    FINISH 0
.data
.p2align 3
before: .long 0
word: .long 0x11223344
table: .fill 64, 4, 0
"""


@needs_gdb
def test_a_watchpoint_catches_the_one_store_that_corrupts_a_word() -> None:
    with made(ONE_STORE_IN_MANY) as guest:
        said = run_gdb(
            guest,
            """
            watch *(unsigned*){word}
            continue
            printf "ecx %d, behind %d\\n", $ecx, $eip == {behind}
            continue
            """,
        )
        store = guest.symbols["bad_store"]
    assert "Old value = 287454020" in said  # 0x11223344
    assert "New value = 287454042" in said  # 0x1122335a
    assert "ecx 777, behind 1" in said
    assert re.search(
        rf"4 bytes at 0x[0-9a-f]+: 0x11223344 -> 0x1122335a, by the instruction at {store:#x}"
        rf" \(mov word ptr \[edi \+ 2\], 0x5aff\)",
        said,
    ), said
    assert "exited normally" in said


ALIASES = """
    MAP_SHARED_INFO
    mov ebx, offset window
    mov ecx, [p2m]
    mov eax, offset word
    sub eax, VIRT_BASE
    shr eax, 12
    mov ecx, [ecx + eax * 4]
    mov edx, ecx
    shl ecx, 12
    shr edx, 20
    or ecx, PTE_RW_DATA
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov eax, offset word
    and eax, 0xFFF
alias_store:
    mov dword ptr [window + eax], 1
behind_alias:
    mov ebx, XENVER_extraversion
    mov ecx, offset word
    mov eax, HYPERVISOR_xen_version
hypercall:
    int HYPERCALL_VECTOR
    xor eax, eax
    mov ebx, offset word_page
    mov ecx, 0
    xor edx, edx
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov ebx, offset word_page
    mov ecx, PTE_RW_DATA
    REMAP offset word_page, PTE_RW_DATA
last_store:
    mov dword ptr [word], 9
end:
    FINISH 0
.data
.p2align 12
word_page:
word: .fill 4, 4, 0
.p2align 12
window: .space 4096
"""


@needs_gdb
def test_aliases_hypercalls_and_a_page_that_goes_and_comes_back() -> None:
    with made(ALIASES) as guest:
        said = run_gdb(
            guest,
            """
            watch *(unsigned*){word}
            continue
            printf "alias %d\\n", $eip == {behind_alias}
            continue
            printf "call %d\\n", $eip == {hypercall} + 2
            continue
            printf "last %d\\n", $eip == {end}
            continue
            """,
        )
        symbols = guest.symbols
    assert "alias 1" in said
    assert f"by the instruction at {symbols['alias_store']:#x}" in said
    assert "call 1" in said
    trap = f"by the hypervisor, in the trap of the instruction at {symbols['hypercall']:#x}"
    assert f"{trap} (int 0x82)" in said
    assert "last 1" in said
    assert f"by the instruction at {symbols['last_store']:#x}" in said
    assert "exited normally" in said


@needs_gdb
def test_a_breakpoint_survives_a_page_that_goes_and_comes_back_as_another() -> None:
    """The function is called, copied into another frame, mapped from there, and called again."""
    source = """
    call function
    mov esi, offset code_page
    mov edi, offset copy
    mov ecx, 1024
    cld
    rep movsd
    mov byte ptr [copy + 1], 2
    mov ebx, offset code_page
    xor ecx, ecx
    xor edx, edx
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov ebx, offset code_page
    mov edx, [p2m]
    mov eax, offset copy
    sub eax, VIRT_BASE
    shr eax, 12
    mov ecx, [edx + eax * 4]
    mov edx, ecx
    shl ecx, 12
    shr edx, 20
    or ecx, PTE_RO_DATA
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    call function
    FINISH 0
.p2align 12
code_page:
function:
    mov eax, 1
function_end:
    ret
.p2align 12
.data
.p2align 12
copy: .space 4096
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{function_end}
            continue
            printf "eax %d\\n", $eax
            continue
            printf "eax %d\\n", $eax
            continue
            """,
        )
    assert "eax 1\n" in said
    assert "eax 2\n" in said
    assert "exited normally" in said


@needs_gdb
def test_a_breakpoint_holds_in_each_address_space_that_shares_the_page() -> None:
    """As after a fork: two top-level tables over the same code, and a CR3 of its own for each."""
    source = """
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_pae_extended_cr3
    XEN vm_assist
    mov esi, [pt_base]
    add esi, 4096
    mov edi, offset second_l2
    mov ecx, 2 * 428                # as far as the hypervisor's hole
    cld
    rep movsd
    REMAP offset second_l2, PTE_RO_DATA
    mov eax, offset second_l2
    call mfn_of
    mov edx, eax
    shl eax, 12
    shr edx, 20
    or eax, _PAGE_PRESENT
    mov [second_l3 + 24], eax
    mov [second_l3 + 28], edx
    REMAP offset second_l3, PTE_RO_DATA
    mov eax, offset second_l3
    call mfn_of
    mov [switch + MMUEXT_OP_ARG1], eax
    call function
    mov ebx, offset switch
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    XEN mmuext_op
    mov [switched], eax
    call function
    FINISH 0
mfn_of:
    sub eax, VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov eax, [edx + eax * 4]
    ret
function:
    inc dword ptr [calls]
function_end:
    ret
.data
calls: .long 0
switched: .long 0x5A
pt_base: .long 0
switch: .long MMUEXT_NEW_BASEPTR, 0, 0
.p2align 12
second_l3: .space 4096
second_l2: .space 4096
"""
    keep_base = "start:\n    mov eax, [esi + START_INFO_PT_BASE]\n    mov [pt_base], eax\n"
    get_p2m = "    mov eax, [esi + START_INFO_MFN_LIST]\n    mov [p2m], eax\n"
    with made(".text\n" + keep_base + get_p2m + source) as guest:
        said = run_gdb(
            guest,
            """
            break *{function_end}
            continue
            printf "calls %d, cr3 %x\\n", *(int*){calls}, $cr3
            continue
            printf "calls %d, cr3 %x\\n", *(int*){calls}, $cr3
            continue
            """,
        )
        assert guest.rules == []
    spaces = re.findall(r"calls (\d), cr3 ([0-9a-f]+)", said)
    assert [calls for calls, _ in spaces] == ["1", "2"]
    assert spaces[0][1] != spaces[1][1]
    assert "exited normally" in said


@needs_gdb
def test_what_a_trap_pushes_and_what_ring_3_stores_is_seen() -> None:
    program = """
    mov eax, offset user_stack_top - 64
user_store:
    mov dword ptr [eax], 3
user_next:
    int 0x80
"""
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace("\\program", program)
    source = source.replace("\\handler", "FINISH 3") + traps("0x80, 3, handler")
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{program}
            continue
            delete
            watch *(unsigned*)({user_stack_top} - 64)
            watch *(unsigned*)({kernel_stack_top} - 20)
            continue
            printf "store %d\\n", $eip == {user_next}
            continue
            printf "pushed %d, word %d\\n", $eip == {handler}, *(int*)$esp == {user_next} + 2
            """,
        )
        symbols = guest.symbols
    assert "store 1" in said
    assert "pushed 1, word 1" in said
    assert f"in the trap of the instruction at {symbols['user_next']:#x} (int 0x80)" in said


@needs_gdb
def test_a_page_table_that_is_watched_is_written_by_the_hypervisor() -> None:
    """Once in a run and once in a step; while the store is emulated its page leads elsewhere."""
    source = """
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_writable_pagetables
    XEN vm_assist
    mov edi, [table]
store:
    mov dword ptr [edi], 0
stored:
    mov eax, [entry]
second:
    mov dword ptr [edi], eax
restored:
    FINISH 0
.data
table: .long 0
entry: .long 0
.p2align 12
victim: .space 4096
"""
    with made(source) as guest:
        step = guest.control.page_walk(guest.domid, 0, guest.symbols["victim"])[2]
        control, domid = guest.control, guest.domid
        place = next(
            vaddr + (step.maddr & 0xFFF)
            for vaddr in range(0xC0000000, 0xC0400000, 4096)
            if control.translate(domid, 0, vaddr) == step.maddr & ~0xFFF
        )
        for label, word in (("table", place), ("entry", step.entry & 0xFFFFFFFF)):
            control.write_virtual(domid, 0, guest.symbols[label], word.to_bytes(4, "little"))
        said = run_gdb(
            guest,
            f"""
            watch *(unsigned*){place:#x}
            continue
            printf "stored %d\\n", $eip == {{stored}}
            break *{{second}}
            continue
            stepi
            printf "restored %d\\n", $eip == {{restored}}
            continue
            """,
        )
        store, second = guest.symbols["store"], guest.symbols["second"]
    assert "stored 1" in said
    assert "restored 1" in said
    for at in (store, second):
        assert f"by the hypervisor, in the trap of the instruction at {at:#x} (mov" in said, said
    assert "exited normally" in said


@needs_gdb
def test_loads_are_seen_by_a_watchpoint_for_them() -> None:
    source = """
    mov eax, [near_by]
    mov dword ptr [word], 0
load:
    mov al, [word + 3]
behind:
    FINISH 0
.data
.p2align 3
near_by: .long 0
word: .long 0, 0
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            rwatch *(unsigned*){word}
            continue
            printf "load %d\\n", $eip == {behind}
            """,
        )
    assert "load 1" in said
    assert "Value = 0" in said


@needs_gdb
def test_another_vcpus_store_is_its_own() -> None:
    source = (
        SMP
        + """
start:
    MAP_SHARED_INFO
    START_VCPU 1, worker, stack1_top
first:
    jmp first
worker:
    mov ecx, 50000
count:
    loop count
worker_store:
    inc dword ptr [word]
worker_next:
    jmp worker
.data
word: .long 0
"""
    )
    with made(source, vcpus=2) as guest:
        said = run_gdb(
            guest,
            """
            watch *(unsigned*){word}
            continue
            printf "thread %d, place %d\\n", $_thread, $eip == {worker_next}
            """,
        )
    assert "thread 2, place 1" in said


def test_a_write_from_outside_is_told_from_the_guests_own() -> None:
    """A backend's write between two turns, here the test's through ``Control``."""
    source = """
spin:
    jmp spin
.data
word: .long 0
"""
    with made(source) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        address = listeners.addresses()["guest"]
        word = guest.symbols["word"]
        said: list[bytes] = []

        def work() -> None:
            with RawClient(address) as client:
                assert client.ask(b"Z2,%x,4" % word) == b"OK"
                # What the debugger itself writes is no news to it.
                assert client.ask(b"M%x,4:01000000" % word) == b"OK"
                client.socket.sendall(b"$c#63")
                written = threading.Event()

                def write() -> None:
                    maddr = guest.control.translate(guest.domid, 0, word)
                    assert maddr is not None
                    at = maddr & 0xFFF
                    guest.control.write_frame(guest.domid, maddr >> 12, at, b"\x05\0\0\0")
                    written.set()

                guest.hypervisor.defer(write)
                assert written.wait(10)
                said.append(bytes.fromhex(client.next()[1:].decode()))
                said.append(client.next())

        run_beside(guest.hypervisor, work)
    assert b"0x00000001 -> 0x00000005, between two turns" in said[0]
    assert said[1] == b"T05thread:1;watch:%x;" % word
