# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's gdb, in batch mode, stops, steps and changes small guests."""

from __future__ import annotations

import re

from tests.support.gdb import RawClient, listening, needs_gdb, run_beside, run_gdb
from tests.support.guest import KERNEL_AND_PROGRAM, boot, made, traps
from tests.support.guests import SMP
from xenlite.abi.x86_32p import SHUTDOWN_crash

pytestmark = needs_gdb

LOOP = """
    mov ecx, 100
again:
    inc dword ptr [counter]
behind:
    loop again
    FINISH 7
.data
counter: .long 0
"""
SPIN = """
spin:
    inc dword ptr [counter]
    cmp dword ptr [leave], 0
    je spin
    FINISH 5
.data
counter: .long 0
leave: .long 0
"""


def test_gdb_stops_at_the_first_instruction_and_at_breakpoints() -> None:
    with made(LOOP) as guest:
        said = run_gdb(
            guest,
            """
            printf "first %d\\n", $eip == 0xc0001000
            break *{again}
            continue
            printf "counter %d, ecx %d, ring %d\\n", *(int*){counter}, $ecx, $cs & 3
            continue
            printf "counter %d\\n", *(int*){counter}
            delete
            continue
            """,
        )
    assert "first 1" in said
    assert "counter 0, ecx 100, ring 1" in said
    assert "counter 1\n" in said
    assert "exited with code 027" in said, said  # 16 + 7, in octal


def test_gdb_counts_every_passage_of_a_breakpoint() -> None:
    with made(LOOP) as guest:
        said = run_gdb(
            guest,
            """
            break *{behind}
            ignore 1 98
            continue
            printf "counter %d, ecx %d\\n", *(int*){counter}, $ecx
            """,
        )
    assert "counter 99, ecx 2" in said


def test_a_guest_that_gdb_leaves_goes_on() -> None:
    with made(LOOP) as guest:
        said = run_gdb(guest, "break *{again}\ncontinue\n")
        assert "Breakpoint 1" in said
        assert guest.run()
        assert guest.reason == 7
        assert guest.word("counter") == 100


def test_ctrl_c_stops_a_loop_and_gdb_ends_it() -> None:
    """The SIGINT that gdb gets is the user's Ctrl-C; the guest counts until it comes."""
    with made(SPIN) as guest:
        said = run_gdb(
            guest,
            """
            interrupt-next
            continue
            printf "counts %d\\n", *(int*){counter} > 0
            set *(int*){leave} = 1
            continue
            """,
            waits=False,
        )
    assert "Program received signal SIGINT" in said
    assert "counts 1" in said
    assert "exited with code 025" in said, said


def test_single_steps_are_instructions_and_traps() -> None:
    source = """
    SET_TRAPS traps
    jmp body
body:
    mov ecx, 3
    cld
    mov edi, offset buffer
    rep stosb
    nop
    int 0x80
landed:
    mov eax, [0x1000]
fault_handler:
    FINISH 0
system_call:
    add esp, 12
    jmp landed
.data
buffer: .long 0, 0
""" + traps("0x80, 3, system_call", "14, 0, fault_handler")
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{body}
            continue
            delete
            set $n = 0
            while $eip != {system_call} && $n < 20
              stepi
              set $n = $n + 1
              printf "at +%d\\n", $eip - {body}
            end
            stepi
            stepi
            printf "landed %d\\n", $eip == {landed}
            stepi
            printf "faulted %d\\n", $eip == {fault_handler}
            """,
        )
    steps = re.findall(r"at \+(\d+)\n", said)
    # mov, cld, mov, then a step for each element and for the end of all, nop, int and its handler
    assert steps[:8] == ["5", "6", "11", "11", "11", "11", "13", "14"]
    assert len(steps) == 9
    assert "landed 1" in said
    assert "faulted 1" in said


def test_a_step_goes_over_a_hypercall_and_lets_no_event_in() -> None:
    source = """
    MAP_SHARED_INFO
    mov ebx, FLAT_RING1_CS
    mov ecx, offset on_event
    mov edx, FLAT_RING1_CS
    mov esi, offset shutdown
    XEN set_callbacks
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 1
    mov ebx, XENVER_version
    xor ecx, ecx
    mov eax, HYPERVISOR_xen_version
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
here:
    int HYPERCALL_VECTOR
next:
    nop
    nop
    FINISH 1
on_event:
    FINISH 2
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{here}
            continue
            delete
            stepi
            printf "next %d, version %x\\n", $eip == {next}, $eax
            stepi
            printf "then %d\\n", $eip == {next} + 1
            break *{on_event}
            continue
            printf "event %d\\n", $eip == {on_event}
            """,
        )
    assert "next 1, version 40011" in said
    assert "then 1" in said
    assert "event 1" in said


def test_breakpoints_in_ring_3_and_registers_that_are_changed() -> None:
    program = """
    mov eax, 5
user_break:
    add eax, 1
    movaps xmm0, xmm1
    fld1
user_end:
    int 0x80
"""
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace("\\program", program)
    source = source.replace("\\handler", "mov [result], eax\nFINISH 3")
    source += "\n.data\nresult: .long 0\n" + traps("0x80, 3, handler")
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{user_break}
            continue
            printf "ring %d, eax %d\\n", $cs & 3, $eax
            set $eax = 40
            set $xmm1.v4_int32[2] = 77
            hbreak *{user_end}
            continue
            printf "eax %d, xmm0 %d, st0 %g\\n", $eax, $xmm0.v4_int32[2], $st0
            try set $cs = 0
            continue
            """,
        )
        assert guest.word("result") == 41
    assert "ring 3, eax 5" in said
    assert "eax 41, xmm0 77, st0 1" in said
    assert "Could not write register" in said


def test_memory_is_written_with_its_translations_and_never_a_page_table() -> None:
    source = """
    mov ecx, 3
again:
    mov eax, 1
    loop again
done:
    mov [result], eax
    FINISH 0
.data
result: .long 0
"""
    with made(source) as guest:
        table = guest.control.page_walk(guest.domid, 0, guest.symbols["result"])[2].maddr
        mapped = next(
            vaddr
            for vaddr in range(0xC0000000, 0xC0400000, 4096)
            if guest.control.translate(guest.domid, 0, vaddr) == table & ~0xFFF
        )
        said = run_gdb(
            guest,
            f"""
            break *{{again}}
            continue
            continue
            set *(int*)({{again}} + 1) = 9
            try set *(int*){mapped:#x} = 0
            monitor why
            delete
            break *{{done}}
            continue
            printf "eax %d\\n", $eax
            """,
        )
    assert "eax 9" in said
    assert f"Cannot access memory at address {mapped:#x}" in said
    assert "refused" not in said, said


def test_a_crash_is_shown_before_it_happens() -> None:
    source = """
    mov ebx, 0x1234
crash_site:
    mov eax, [ebx]
    FINISH 0
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            continue
            printf "here %d, ebx %x\\n", $eip == {crash_site}, $ebx
            continue
            """,
        )
        assert guest.reason == SHUTDOWN_crash
        assert guest.crash_rule == "traps.no-handler"
    assert "SIGABRT" in said
    assert "the domain would crash here: traps.no-handler" in said
    assert "here 1, ebx 1234" in said
    assert "exited with code 023" in said  # 16 + 3


def test_a_write_to_a_page_table_is_one_step() -> None:
    """The emulated store takes two runs of the engine and its own trap flag: nobody sees it."""
    source = """
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_writable_pagetables
    XEN vm_assist
    mov edi, [table]
store:
    mov dword ptr [edi], 0
stored:
    pushfd
    pop eax
    mov [flags], eax
    FINISH 0
.data
table: .long 0
flags: .long 0
.p2align 12
victim: .space 4096
"""
    with made(source) as guest:
        control, domid = guest.control, guest.domid
        entry = guest.control.page_walk(guest.domid, 0, guest.symbols["victim"])[2].maddr
        table = next(
            vaddr
            for vaddr in range(0xC0000000, 0xC0400000, 4096)
            if control.translate(domid, 0, vaddr) == entry & ~0xFFF
        )
        control.write_virtual(
            domid, 0, guest.symbols["table"], (table + (entry & 0xFFF)).to_bytes(4, "little")
        )
        said = run_gdb(
            guest,
            """
            break *{store}
            continue
            delete
            stepi
            printf "stored %d, eflags %x\\n", $eip == {stored}, $eflags & 0x100
            monitor walk {victim}
            continue
            """,
        )
        assert not guest.word("flags") & 0x100
    assert "stored 1, eflags 0" in said
    assert re.search(r"L1 entry at 0x[0-9a-f]+: 0x0000000000000000", said), said


def test_a_breakpoint_holds_in_code_that_the_guest_writes_anew() -> None:
    source = """
    call function
    mov byte ptr [function + 1], 2
    call function
    FINISH 0
function:
    mov eax, 1
function_end:
    ret
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{function}
            break *{function_end}
            continue
            continue
            printf "eax %d\\n", $eax
            continue
            printf "again %d\\n", $eip == {function}
            continue
            printf "eax %d\\n", $eax
            continue
            """,
        )
    assert "eax 1\n" in said
    assert "again 1" in said
    assert "eax 2\n" in said
    assert "exited normally" in said


def test_a_guest_that_steps_itself_is_stepped_like_any() -> None:
    """Its own trap flag takes it to its handler after each instruction; gdb's steps show that."""
    source = """
    SET_TRAPS traps
    pushfd
    or dword ptr [esp], EFLAGS_TF
    popfd
traced:
    nop
behind:
    nop
    FINISH 1
handler:
    inc dword ptr [count]
    and dword ptr [esp + 8], ~EFLAGS_TF
    iretd
.data
count: .long 0
""" + traps("1, 0, handler")
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            break *{traced}
            continue
            delete
            stepi
            printf "handler %d, pushed %d\\n", $eip == {handler}, *(int*)$esp == {behind}
            stepi
            stepi
            stepi
            printf "back %d, count %d\\n", $eip == {behind}, *(int*){count}
            continue
            """,
        )
    assert "handler 1, pushed 1" in said
    assert "back 1, count 1" in said
    assert "exited with code 021" in said, said


def test_each_vcpu_is_a_thread_and_a_step_moves_one() -> None:
    source = (
        SMP
        + """
start:
    MAP_SHARED_INFO
    START_VCPU 1, worker, stack1_top
first:
    inc dword ptr [counts]
    cmp dword ptr [leave], 0
    je first
    FINISH 4
worker:
    inc dword ptr [counts + 4]
    jmp worker
.data
counts: .long 0, 0
leave: .long 0
"""
    )
    with made(source, vcpus=2) as guest:
        said = run_gdb(
            guest,
            """
            break *{worker}
            continue
            info threads
            printf "thread %d\\n", $_thread
            delete
            set $old = *(int*){counts}
            stepi
            stepi
            stepi
            printf "worker %d, first %d\\n", *((int*){counts} + 1), *(int*){counts} - $old
            thread 1
            printf "first is at home %d\\n", $eip >= {first} && $eip < {worker}
            stepi
            set *(int*){leave} = 1
            continue
            """,
        )
    assert "vcpu 1" in said
    assert "thread 2\n" in said
    assert "worker 2, first 0" in said
    assert "first is at home 1" in said
    assert "exited with code 024" in said, said


def test_nothing_of_the_debugger_is_left_behind() -> None:
    """Another one may attach, and the guest runs with all that makes it fast."""
    with made(SPIN) as guest:
        for _ in range(2):
            said = run_gdb(guest, "break *{spin}\ncontinue\ncontinue\n", waits=False)
            assert said.count("Breakpoint 1, ") == 2
        domain = guest.domain
        assert not domain.held
        assert domain.engine.ways._are_forbidden is False
        with listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
            address = listeners.addresses()["guest"]

            def ask() -> None:
                with RawClient(address) as client:
                    assert client.ask(b"?").startswith(b"T02")

            run_beside(guest.hypervisor, ask)


def test_a_guest_without_a_debugger_is_as_before() -> None:
    with boot(LOOP) as guest:
        assert guest.reason == 7
