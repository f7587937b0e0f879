# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that the trap stub delivers alone are those that Python delivers, whatever changes.

Each guest sends itself the same events twice: once with ways for upcalls and for returns within the
kernel (machine/ways.py), once without. In the midst of them its callback changes something that a
way rests on. Frames, stacks and masks must agree event by event.
"""

from __future__ import annotations

import pytest

from tests.guests.traps.test_ways import CHANGES, FRESH_PFN, NX
from tests.guests.traps.test_ways import SETUP as STACKS
from tests.support.guest import made, traps
from xenlite.abi.x86_32p import TI_MASK_EVENTS
from xenlite.core.bounce import Bounce
from xenlite.core.vcpu import Vcpu
from xenlite.machine.ways import Ways

EVENTS = 12
WORDS = 9  # of a record: five of the frame, esp, mask, handler and pending byte, eflags behind

SETUP = (
    STACKS.replace("EVTCHN_UPCALL_MASK], 0", "EVTCHN_UPCALL_MASK], 1")
    + """
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset alloc_unbound
    XEN event_channel_op
    mov eax, [alloc_unbound + 4]
    mov [bind_interdomain + 4], eax
    mov ebx, EVTCHNOP_bind_interdomain
    mov ecx, offset bind_interdomain
    XEN event_channel_op
    mov ebx, FLAT_RING1_CS
    mov ecx, offset callback
    mov edx, FLAT_RING1_CS
    mov esi, offset done
    XEN set_callbacks
    mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov byte ptr [shared_info], 0
    mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
    \\assist
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
.if RING == 1
    mov eax, FLAT_RING1_DS
    mov ds, eax
    mov es, eax
    mov esp, offset STACK
    jmp program
.endif
    TO_USER program
"""
)
KERNEL = (
    SETUP
    + """
other_callback:
    pushad
    mov dl, 1
    jmp serve
callback:
    pushad
    mov dl, 0
serve:
    mov eax, FLAT_RING1_DS
    mov ds, eax
    mov es, eax
    cld
    mov ebx, [info]
    mov edi, [next]
    lea esi, [esp + 32]
    mov ecx, 5
    rep movsd
    mov [edi], esp
    mov ax, [ebx]
    mov [edi + 4], ax
    mov [edi + 6], dl
    pushfd
    pop eax
    and eax, ~0x8D5 & 0xFFFFFFFF
    mov [edi + 8], eax
    mov dword ptr [ebx + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov byte ptr [ebx], 0
    mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
    add dword ptr [next], 4 * WORDS
    mov eax, [next]
    sub eax, offset records
    cmp eax, 4 * WORDS * EVENTS / 2
    jne leave
    \\change
leave:
.if RING == 3
    mov eax, FLAT_RING3_DS
    mov ds, eax
    mov es, eax
.endif
    popad
    push eax
    XEN iret
    ud2

system_call:
    pushad
    mov eax, FLAT_RING1_DS
    mov ds, eax
    mov es, eax
    SEND
    jmp leave

done:
    mov eax, FLAT_RING1_DS
    mov ds, eax
    FINISH 1

.p2align 12
program_page:
program:
    mov ebp, EVENTS
again:
    \\program
.if RING == 1
    push ebp
    SEND
    pop ebp
.else
    int 0x80
.endif
    cld
    dec ebp
    jnz again
    int 0x81
.p2align 12

.data
alloc_unbound: .word DOMID_SELF, DOMID_SELF
    .long 0
bind_interdomain: .long DOMID_SELF, 0, 0
next:
    .long records
info:
    .long shared_info
records:
    .fill WORDS * EVENTS, 4, 0
extended:
    .long MMUEXT_NEW_BASEPTR, 0, 0
.bss
.p2align 12
full_stack:
    .space 8192
.equ kernel_stack, kernel_stack_top - 4096
alias:
    .space 4096
new_info:
    .space 4096
"""
)
MACROS = """
.macro SEND
    mov ebx, EVTCHNOP_send
    mov ecx, offset alloc_unbound + 4
    XEN event_channel_op
.endm
"""
EVENT_CHANGES = {
    **{name: text for name, text in CHANGES.items() if name != "another handler"},
    "another callback": """
        mov ebx, FLAT_RING1_CS
        mov ecx, offset other_callback
        mov edx, FLAT_RING1_CS
        mov esi, offset done
        XEN set_callbacks""",
    "a callback registered": """
        push offset other_callback
        push FLAT_RING1_CS
        push CALLBACKTYPE_event
        mov ebx, CALLBACKOP_register
        mov ecx, esp
        XEN callback_op
        add esp, 12""",
    "vcpu_info moves": """
        FRESH new_info, FRESH_PFN + 3
        mov eax, [p2m]
        push 0
        push 256
        push 0
        push [eax + 4 * (FRESH_PFN + 3)]
        mov ebx, VCPUOP_register_vcpu_info
        xor ecx, ecx
        mov edx, esp
        XEN vcpu_op
        add esp, 16
        mov dword ptr [info], offset new_info + 256
        mov dword ptr [new_info + 256 + VCPU_INFO_EVTCHN_PENDING_SEL], 0
        mov byte ptr [new_info + 256], 0""",
    "the IOPL by a call": """
        push 3
        mov ebx, PHYSDEVOP_set_iopl
        mov ecx, esp
        XEN physdev_op
        pop eax""",
    "direction on return": "or dword ptr [esp + 40], 0x400",
    "other flags on return": "or dword ptr [esp + 40], 0x240000",
    "nested": "mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0\nSEND",
}
PROGRAMS = {
    "plain": "",
    "direction": "std",
    "flags": "push 0x240AD7\npopfd",
    "a full stack": "",
}
ARCHITECTURAL = (
    "mov ebx, VMASST_CMD_enable\nmov ecx, VMASST_TYPE_architectural_iopl\nXEN vm_assist\n"
)


def events(change: str, program: str, ring: int, nx: int) -> list[list[int]]:
    """Run the guest; return what its callback saw at each event."""
    assist = ARCHITECTURAL if "IOPL by a call" in change else ""
    source = KERNEL.replace("\\change", EVENT_CHANGES[change]).replace("\\assist", assist)
    source = MACROS + source.replace("\\program", PROGRAMS[program])
    source += traps(f"0x80, 3 | {TI_MASK_EVENTS}, system_call", "0x81, 3, done")
    defines = {
        "FRESH_PFN": FRESH_PFN, "EVENTS": EVENTS, "WORDS": WORDS, "NX": nx, "RING": ring,
    }  # fmt: skip
    # In the middle of a frame of the kernel's own begins another page.
    stack = "full_stack + 4096 + 8" if program == "a full stack" else "kernel_stack_top"
    source = source.replace("STACK\n", f"{stack}\n")
    with made(source, memory_mb=8, defines=defines) as guest:
        assert guest.run()
        assert guest.reason == 1, guest.crash
        words = guest.words("records", EVENTS * WORDS)
        assert guest.control.audit() == []
        return [words[n : n + WORDS] for n in range(0, len(words), WORDS)]


def check(change: str, program: str, ring: int, nx: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare what a guest sees with ways and without."""
    with_ways = events(change, program, ring, nx)
    came = EVENTS // 2 if change == "events masked on return" else EVENTS
    assert sum(bool(record[0]) for record in with_ways) == came
    monkeypatch.setattr(Ways, "_open_at", lambda *_: None)
    assert with_ways == events(change, program, ring, nx)


@pytest.mark.parametrize("change", EVENT_CHANGES)
@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("nx", [NX, 0])
def test_events_are_the_same_without_python(
    change: str, ring: int, nx: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(change, "plain", ring, nx, monkeypatch)


@pytest.mark.parametrize("change", ["nothing", "nested", "another callback"])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("ring", [1, 3])
def test_events_of_any_program_are_the_same_without_python(
    change: str, program: str, ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(change, program, ring, NX, monkeypatch)


@pytest.mark.parametrize("ring", [1, 3])
def test_most_events_do_not_reach_python(ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Vcpu] = []
    real = Bounce._upcall

    def upcall(self: Bounce) -> None:
        served.append(self._domain.current)
        real(self)

    monkeypatch.setattr(Bounce, "_upcall", upcall)
    events("nothing", "plain", ring, NX)
    assert len(served) < EVENTS // 2
