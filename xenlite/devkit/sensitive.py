# SPDX-License-Identifier: GPL-2.0-or-later
"""What instructions of a kernel do in ring 1, and what a paravirtual one does instead.

Three things may happen. *Silent*: it runs, and means something else than in ring 0. *Emulated*: it
traps, and xenlite does it as Xen does, 20 to 30 times as slow as a trap that does nothing, where a
hypercall takes 2.5 times (measured). *Faults*: it traps, and the kernel's own handler gets the
exception.
Source: core/emulate.py; Intel SDM 2, the instructions' pages; public/xen.h.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Effect(StrEnum):
    """What comes of it in ring 1."""

    SILENT = "silent"
    EMULATED = "emulated"
    FAULTS = "faults"


COST: Final = {
    Effect.SILENT: "",
    Effect.EMULATED: " (3 to 5 us)",
    Effect.FAULTS: "",
}
"""What it costs beyond, on a host where a trap that does nothing takes 0.15 us."""


class Advice(NamedTuple):
    """What an instruction does in ring 1, and its replacement."""

    effect: Effect
    what: str
    instead: str


_SILENT, _EMULATED, _FAULTS = Effect.SILENT, Effect.EMULATED, Effect.FAULTS
_FLAGS: Final = "the byte vcpu_info.evtchn_upcall_mask stands for IF"
_TABLES: Final = "keep what you have loaded in memory of your own"

ADVICE: Final[dict[str, Advice]] = {
    "pushfd": Advice(_SILENT, "stores IF as it never is", _FLAGS),
    "popfd": Advice(_SILENT, "leaves IF and IOPL as they are", _FLAGS),
    "iretd": Advice(
        _SILENT, "lets no event in and keeps none out", "HYPERVISOR_iret sets the mask, too"
    ),
    "sgdt": Advice(_SILENT, "stores where the hypervisor's GDT is", _TABLES),
    "sidt": Advice(_SILENT, "stores where the hypervisor's IDT is", _TABLES),
    "sldt": Advice(_SILENT, "stores the hypervisor's selector", _TABLES),
    "str": Advice(_SILENT, "stores the hypervisor's selector", _TABLES),
    "smsw": Advice(_SILENT, "stores the hypervisor's CR0", _TABLES),
    "lar": Advice(_SILENT, "reads a descriptor as ring 1 sees it", _TABLES),
    "lsl": Advice(_SILENT, "reads a descriptor as ring 1 sees it", _TABLES),
    "verr": Advice(_SILENT, "checks a descriptor as ring 1 sees it", _TABLES),
    "verw": Advice(_SILENT, "checks a descriptor as ring 1 sees it", _TABLES),
    "cli": Advice(_EMULATED, "does nothing", _FLAGS),
    "sti": Advice(
        _EMULATED, "does nothing", _FLAGS + ", with a look at the pending byte behind it"
    ),
    "clts": Advice(_EMULATED, "clears TS", "fpu_taskswitch(0)"),
    "rdmsr": Advice(_EMULATED, "knows a few registers", "none: do without"),
    "wrmsr": Advice(_EMULATED, "knows a few registers", "none: do without"),
    "wbinvd": Advice(_EMULATED, "does nothing", "mmuext_op(MMUEXT_FLUSH_CACHE)"),
    "in": Advice(_EMULATED, "reads ones: there is nothing behind any port", "a frontend's ring"),
    "out": Advice(_EMULATED, "reaches nothing", "a frontend's ring"),
    "hlt": Advice(_FAULTS, "#GP", "sched_op(SCHEDOP_block)"),
    "lgdt": Advice(_FAULTS, "#GP", "set_gdt"),
    "lidt": Advice(_FAULTS, "#GP", "set_trap_table"),
    "lldt": Advice(_FAULTS, "#GP", "mmuext_op(MMUEXT_SET_LDT)"),
    "ltr": Advice(_FAULTS, "#GP", "stack_switch"),
    "lmsw": Advice(_FAULTS, "#GP", "fpu_taskswitch"),
    "invlpg": Advice(_FAULTS, "#GP", "UVMF_INVLPG, or mmuext_op(MMUEXT_INVLPG_LOCAL)"),
    "invd": Advice(_FAULTS, "#GP", "mmuext_op(MMUEXT_FLUSH_CACHE)"),
    "rdpmc": Advice(_FAULTS, "#UD", "none: do without"),
    "sysexit": Advice(_FAULTS, "#GP", "HYPERVISOR_iret"),
    "sysret": Advice(_FAULTS, "#UD", "HYPERVISOR_iret"),
    "monitor": Advice(_FAULTS, "#UD", "sched_op(SCHEDOP_block)"),
    "mwait": Advice(_FAULTS, "#UD", "sched_op(SCHEDOP_block)"),
    "string I/O": Advice(_FAULTS, "#GP", "a frontend's ring"),
    "mov from cs": Advice(_SILENT, "shows ring 1", "the kernel's selector is known: FLAT_RING1_CS"),
    "mov cr0": Advice(_EMULATED, "only TS may change", "fpu_taskswitch"),
    "mov cr2": Advice(_EMULATED, "is a word in memory", "vcpu_info.arch.cr2"),
    "mov cr3": Advice(_EMULATED, "loads page tables", "mmuext_op(MMUEXT_NEW_BASEPTR)"),
    "mov cr4": Advice(_EMULATED, "has no effect but on TSD and DE", "vm_assist, where it applies"),
    "mov dr": Advice(_EMULATED, "is kept, and has no effect", "set_debugreg, get_debugreg"),
}
_OTHER_NAMES: Final = {
    **dict.fromkeys(("pushf", "pushfd"), "pushfd"),
    **dict.fromkeys(("popf", "popfd"), "popfd"),
    **dict.fromkeys(("iret", "iretd"), "iretd"),
    **dict.fromkeys(("insb", "insw", "insd", "outsb", "outsw", "outsd"), "string I/O"),
}


def advice_name(mnemonic: str, operands: str) -> str | None:
    """Return the name in ``ADVICE`` of an instruction as Capstone writes it; None for plain ones.

    A ``rep`` before string I/O is part of Capstone's mnemonic.
    """
    plain = mnemonic.removeprefix("rep ")
    places = [place.strip() for place in operands.split(",")]
    if plain == "push" and places == ["cs"]:
        return "mov from cs"
    if plain == "mov" and len(places) == 2:
        if places[1] == "cs":
            return "mov from cs"
        for place in places:
            if place[:2] == "cr" and f"mov {place}" in ADVICE:
                return f"mov {place}"
            if place[:2] == "dr" and place[2:].isdigit():
                return "mov dr"
        return None
    name = _OTHER_NAMES.get(plain, plain)
    return name if name in ADVICE else None
