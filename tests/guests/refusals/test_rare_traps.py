# SPDX-License-Identifier: GPL-2.0-or-later
"""The refusals of the trap path that take two mistakes at once."""

from __future__ import annotations

import pytest

from tests.support.guest import boot, made, traps
from xenlite.abi.x86_32p import EINVAL, MAX_GDT_ENTRIES
from xenlite.errors import Refused
from xenlite.machine.x86_32p import PTE_P, PTE_RW

NO_SELECTOR = 0x1B09  # ring 1, in the GDT, where this guest has nothing
VM86_FRAME = """
    push 4
    push 3
    push 2
    push 1
    push FLAT_RING3_SS
    push 0x3000
    push 0x20202
    push FLAT_RING3_CS
    push 0x1000
    push 0xCAFE
"""


def test_a_handler_behind_the_selector_that_fails_ends_the_domain() -> None:
    source = f"""
        SET_TRAPS traps
        push FLAT_RING3_SS
        push 0
        push 0x202
        push {NO_SELECTOR}
        push 0x1000
        push 0
        XEN iret
    """
    source += traps(f"TRAP_gp_fault, 0, start, {NO_SELECTOR}")
    with boot(source) as guest:
        assert guest.crash_rule == "traps.no-frame"


def test_virtual_8086_mode_without_a_handler_ends_the_domain() -> None:
    with boot(f"{VM86_FRAME}\n XEN iret\n") as guest:
        assert guest.crash_rule == "traps.no-handler"


def test_a_frame_of_virtual_8086_mode_must_be_whole() -> None:
    """Its first 24 bytes are there, its selectors are not."""
    source = """
        SET_TRAPS traps
        REMAP offset beyond, 0
        mov esp, offset beyond
        push FLAT_RING3_SS
        push 0x3000
        push 0x20202
        push FLAT_RING3_CS
        push 0x1000
        push 0xCAFE
        XEN iret
    .bss
    .p2align 12
    before: .space 4096
    beyond: .space 4096
    """
    with boot(source + traps("TRAP_gp_fault, 0, start")) as guest:
        assert guest.crash_rule == "traps.iret-frame"


def test_a_mapping_beyond_memory_ends_the_domain_that_uses_it() -> None:
    """No validated table has one: the test writes it behind the hypervisor's back."""
    source = """
        mov eax, [page]
        FINISH 1
    .bss
    .p2align 12
    page: .space 4096
    """
    with made(source) as guest:
        machine = guest.hypervisor.machine
        slot = guest.domain.paging.slot_of(guest.symbols["page"])
        assert slot is not None
        good = machine.memory.m64[slot]
        machine.memory.m64[slot] = machine.memory.size_bytes | PTE_P | PTE_RW
        guest.run()
        assert guest.crash_rule == "paging.outside-memory"
        machine.memory.m64[slot] = good


@pytest.mark.parametrize(("cs", "ss"), [(0, 0), (NO_SELECTOR, NO_SELECTOR)])
def test_a_vcpu_does_not_start_on_bad_selectors(cs: int, ss: int) -> None:
    with made("    FINISH 0\n") as guest:
        with pytest.raises(Refused) as caught:
            guest.domain.descriptors.load(cs, ss)
        assert (caught.value.errno, caught.value.rule) == (
            EINVAL,
            "descriptors.unusable-selector",
        )


def test_a_gdt_ends_before_the_flat_selectors() -> None:
    with made("    FINISH 0\n") as guest:
        descriptors = guest.domain.descriptors
        with pytest.raises(Refused) as caught:
            descriptors.set_gdt((0,) * 15, MAX_GDT_ENTRIES + 1)
        assert caught.value.rule == "descriptors.gdt-size"
        assert guest.domain.current.gdt_frames == ()
