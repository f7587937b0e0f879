# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb stops at what only a hypervisor sees, and is told what only a hypervisor knows."""

from __future__ import annotations

import re

from tests.support.gdb import needs_gdb, run_gdb
from tests.support.guest import KERNEL_AND_PROGRAM, made, traps
from xenlite.abi.x86_32p import HYPERVISOR_mmu_update, HYPERVISOR_multicall

pytestmark = needs_gdb

CALLS = """
    mov ebx, offset updates
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    mov eax, HYPERVISOR_mmu_update
call_site:
    int HYPERCALL_VECTOR
behind:
    mov [result], eax
    FINISH 0
.data
result: .long 0
updates: .quad 0, 0
"""


def test_a_hypercall_is_stopped_before_it_is_made_and_then_made_once() -> None:
    with made(CALLS) as guest:
        said = run_gdb(
            guest,
            """
            monitor break-hypercall mmu_update
            continue
            printf "at the call %d, eax %d, ecx %d\\n", $eip == {call_site}, $eax, $ecx
            monitor log 2
            break *{behind}
            continue
            printf "behind %d, eax %d\\n", $eip == {behind}, $eax
            monitor log 1
            continue
            """,
        )
        assert len(guest.rules) == 1
    assert f"at the call 1, eax {HYPERVISOR_mmu_update}, ecx 1" in said
    assert re.search(r"xenlite: before mmu_update\(\w+=0x[0-9a-f]+, count=0x1", said), said
    assert re.search(r"behind 1, eax -\d+", said), said
    assert re.search(r"mmu_update\(.*\) = -E", said), said


def test_a_refused_hypercall_stops_behind_itself_and_says_why() -> None:
    with made(CALLS) as guest:
        said = run_gdb(
            guest,
            """
            monitor break-refused on
            continue
            printf "behind %d, negative %d\\n", $eip == {behind}, $eax < 0
            continue
            """,
        )
        rule = guest.rules[0]
    assert "behind 1, negative 1" in said
    assert re.search(rf"xenlite: refused: mmu_update\(.*\) = -E\w+: {re.escape(rule)}", said), said


def test_each_call_of_a_list_is_stopped_at_and_made_once() -> None:
    source = """
    mov ebx, offset calls
    mov ecx, 3
    XEN multicall
    FINISH 0
.data
calls:
    .long HYPERVISOR_xen_version, 0x55, XENVER_version, 0, 0, 0, 0, 0
    .long HYPERVISOR_xen_version, 0x55, XENVER_version, 0, 0, 0, 0, 0
    .long HYPERVISOR_xen_version, 0x55, XENVER_version, 0, 0, 0, 0, 0
"""
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            monitor break-hypercall xen_version
            continue
            printf "eax %d, left %d\\n", $eax, $ecx
            continue
            printf "eax %d, left %d\\n", $eax, $ecx
            continue
            printf "eax %d, left %d\\n", $eax, $ecx
            monitor break-hypercall none
            continue
            """,
        )
        results = [guest.word("calls", 8 * n + 1) for n in range(3)]
    assert results == [results[0]] * 3
    assert results[0] != 0x55
    assert [f"eax {HYPERVISOR_multicall}, left {n}" in said for n in (3, 2, 1)] == [True] * 3
    assert said.count("before xen_version") == 3


def test_calls_that_need_no_python_else_are_stopped_at_each_time() -> None:
    """The iret back to ring 3 is native once it has been gone, but not under a debugger."""
    program = """
    mov ecx, 5
again:
    int 0x80
    dec ecx
    jnz again
    mov eax, 0xE
    int 0x80
"""
    handler = """
    cmp eax, 0xE
    je end
    push eax
    XEN iret
end:
    FINISH 2
"""
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace("\\program", program)
    source = source.replace("\\handler", handler) + traps("0x80, 3, handler")
    with made(source) as guest:
        said = run_gdb(
            guest,
            """
            monitor break-hypercall iret
            set $n = 0
            while $n < 5
              continue
              set $n = $n + 1
            end
            printf "five, ecx %d\\n", $ecx
            monitor break-hypercall none
            continue
            """,
        )
    assert said.count("xenlite: before iret(") == 5
    assert "five, ecx 1" in said
    assert "exited with code 022" in said, said


def test_the_monitor_knows_the_domain_its_frames_ports_and_grants() -> None:
    source = """
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset unbound
    XEN event_channel_op
here:
    FINISH 0
.data
unbound: .word DOMID_SELF, 0
         .long 0
"""
    with made(source) as guest:
        control, domid = guest.control, guest.domid
        maddr = control.translate(domid, 0, guest.symbols["unbound"])
        assert maddr is not None
        mfn = maddr >> 12
        pfn = (guest.symbols["unbound"] - 0xC0000000) >> 12
        l1 = guest.control.page_walk(guest.domid, 0, guest.symbols["unbound"])[2].maddr
        said = run_gdb(
            guest,
            f"""
            break *{{here}}
            continue
            monitor domain
            monitor vcpus
            monitor walk {{unbound}}
            monitor p2m {pfn:#x}
            monitor frame {mfn:#x}
            monitor frame {l1 >> 12:#x}
            monitor ports
            monitor grants
            monitor nonsense
            monitor walk
            monitor help
            """,
        )
    assert f"domain {domid} 'guest'" in said
    assert "vcpu 0: runnable, events none pending, masked" in said
    assert f"L1 entry at {l1:#010x}: " in said
    assert f"pfn {pfn:#x}: mfn {mfn:#x}\n" in said
    assert f"mfn {mfn:#x}: owner domain {domid}; type writable" in said
    assert f"mapped by the L1 entry at {l1:#010x}" in said
    assert f"mfn {l1 >> 12:#x}: owner domain {domid}; type l1" in said
    assert re.search(r"port \d+: unbound for domain \d+, to vcpu 0", said), said
    assert re.search(r"grant 0: mfn 0x[0-9a-f]+ to domain 0, writable", said), said
    assert "no such command: nonsense" in said
    assert "one number, please" in said
    assert "break-hypercall NAME" in said
