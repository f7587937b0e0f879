# SPDX-License-Identifier: GPL-2.0-or-later
"""The hostile operations of ``paging_fuzz`` again, out of ring 1, and hypercalls of every kind.

Each guest is a real domain whose kernel is a small interpreter: it finds records in a page,
executes them as hypercalls, stores and loads, notes each result, and yields at the end of the list.
What the model of ``paging_fuzz`` did to handlers and to a modelled TLB, this does through the
emulator, its trap path and its TLB. A domain that crashes, or loses its way, is replaced by a fresh
one; a victim beside them keeps its memory and its progress.

After each store of a guest: no table has changed under it. Otherwise the checks are those of
``paging_fuzz``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING

from tests.support.domains import BASE, PAGE, PAGES, Guest, World
from tests.support.fuzz_guest import Victim
from tests.support.model_tlb import ModelTlb
from tests.support.paging_fuzz import WEIGHTS, Broken, Draw, Fuzz
from xenlite.abi.x86_32p import (
    DOMID_FIRST_RESERVED,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    FLAT_RING1_CS,
    FLAT_RING1_SS,
    HYPERVISOR_callback_op,
    HYPERVISOR_console_io,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_event_channel_op_compat,
    HYPERVISOR_iret,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_descriptor,
    HYPERVISOR_vm_assist,
    HYPERVISOR_xen_version,
    VMASST_TYPE_writable_pagetables,
)
from xenlite.core.vcpu import VcpuState
from xenlite.devkit.assembler import Fragment, assemble_fragment
from xenlite.errors import DomainCrash
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock
from xenlite.machine.frames import FrameType
from xenlite.machine.trap import EIP, ESP
from xenlite.machine.x86_32p import PTE_A, PTE_D, PTE_P, PTE_RW

if TYPE_CHECKING:
    from typing_extensions import override

    from xenlite.core.domain import Domain
else:
    from xenlite.abi.codec import override

MEGABYTES = 24
CODE_PFN, RECORDS_PFN, STACK_PFN = 10, 11, 12
_CODE = BASE + CODE_PFN * PAGE
_RECORDS = BASE + RECORDS_PFN * PAGE
_STACK_TOP = BASE + (STACK_PFN + 1) * PAGE
_EXECUTABLE = PTE_P | PTE_RW | PTE_A | PTE_D
_CALL, _STORE, _LOAD = 1, 2, 3
_RECORD = Struct("<8I")  # code, number or address, five arguments or a value, result
_RESULT_AT = 28
_FAULTED = 0xFFFF0000
_UNFINISHED = 0xFFFF0001
_TURNS = 40
_BLOCKS = 2000
_INTERPRETER = f"""
.equ RECORDS, {_RECORDS}
.equ STACK_TOP, {_STACK_TOP}
.text
start:
    mov esp, STACK_TOP
    mov esi, [RECORDS]
    mov eax, [esi]
    cmp eax, {_CALL}
    je call
    cmp eax, {_STORE}
    je store
    cmp eax, {_LOAD}
    je load
    mov eax, HYPERVISOR_sched_op
    mov ebx, SCHEDOP_yield
    int HYPERCALL_VECTOR
    jmp start
call:
    mov eax, [esi + 4]
    mov ebx, [esi + 8]
    mov ecx, [esi + 12]
    mov edx, [esi + 16]
    mov edi, [esi + 24]
    mov esi, [esi + 20]
    int HYPERCALL_VECTOR
finish:
    mov ebx, [RECORDS]
    mov [ebx + {_RESULT_AT}], eax
    add dword ptr [RECORDS], {_RECORD.size}
    jmp start
store:
    mov ebx, [esi + 4]
    mov eax, [esi + 8]
    mov [ebx], eax
    xor eax, eax
    jmp finish
load:
    mov ebx, [esi + 4]
    mov eax, [ebx]
    xor eax, eax
    jmp finish
fault:
    mov esp, STACK_TOP
    mov eax, {_FAULTED}
    jmp finish
event:
    iretd
.data
traps:
    .byte 0, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 6, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 10, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 11, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 12, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 13, 0
    .word FLAT_RING1_CS
    .long fault
    .byte 14, 0
    .word FLAT_RING1_CS
    .long fault
    .quad 0
"""


@cache
def _interpreter() -> Fragment:
    return assemble_fragment(_INTERPRETER, _CODE)


class Lost(DomainCrash):
    """A guest does not come back to its records: it is of no more use."""

    def __init__(self, detail: str) -> None:
        super().__init__("fuzz.lost", detail)


class _RingEngine(ModelTlb):
    """Stands for the guest's own instructions: they run in the guest."""

    guest: RingGuest

    @override
    def store(self, vaddr: int, value: int) -> bool:
        return self.guest.execute(_STORE, vaddr, value) != _FAULTED

    @override
    def load(self, vaddr: int) -> int | None:
        return None if self.guest.execute(_LOAD, vaddr) == _FAULTED else 0

    @override
    def load_cr3(self, maddr: int) -> None:
        self.guest.domain.engine.load_cr3(maddr)


class RingGuest(Guest):
    """A guest whose requests are made by its own code in ring 1."""

    def __init__(self, world: RingWorld, domain: Domain) -> None:
        engine = _RingEngine(world.machine.memory)
        engine.guest = self
        self.domain = domain
        self.hypervisor = world.hypervisor
        super().__init__(world, domain, engine)
        memory, code = world.machine.memory, _interpreter()
        memory.write(self.mfns[CODE_PFN] << 12, code.code)
        assert self.remap(CODE_PFN, _EXECUTABLE) == 0
        memory.write(domain.current.mask_at, b"\1")
        domain.descriptors.set_kernel_stack(FLAT_RING1_SS, _STACK_TOP)
        domain.descriptors.load(FLAT_RING1_CS, FLAT_RING1_SS)
        regs = domain.engine.regs
        regs[EIP], regs[ESP] = code.symbols["start"], _STACK_TOP
        self.execute(_CALL, HYPERVISOR_set_trap_table, code.symbols["traps"])
        event = code.symbols["event"]
        callbacks = (FLAT_RING1_CS, event, FLAT_RING1_CS, event)
        self.execute(_CALL, HYPERVISOR_set_callbacks, *callbacks)

    def execute(self, *words: int) -> int:
        """Have one record executed, and return its result; DomainCrash where that ends the guest.

        Refused where the guest has no page for its records any more.
        """
        record = (*words, 0, 0, 0, 0, 0, 0, 0)[:7]
        memory = self.domain.guest_memory
        at = _RECORDS + _RECORD.size
        memory.write(at, _RECORD.pack(*record, _UNFINISHED) + bytes(_RECORD.size))
        memory.write_u32(_RECORDS, at)
        for _ in range(_TURNS):
            self._turn()
            if memory.read_u32(_RECORDS) == at + _RECORD.size:
                return memory.read_u32(at + _RESULT_AT)
        raise Lost(f"it is at {self.domain.engine.regs[EIP]:#x}")

    def _turn(self) -> None:
        domain, hypervisor = self.domain, self.hypervisor
        entry = hypervisor._guests[domain.domid]
        entry.slice_blocks = _BLOCKS
        # Whatever it waits for has come.
        domain.events.end_poll(domain.current.id)
        domain.current.state = VcpuState.RUNNABLE
        hypervisor._run_slice(entry, domain.current, hypervisor.machine.clock.monotonic_ns())
        crash = hypervisor.crashes.get(domain.domid)
        if crash is not None:
            raise DomainCrash(crash.rule, crash.detail)
        if domain.shutdown_reason is not None:
            raise Lost("it has shut down")


class RingWorld(World):
    """A machine with a hypervisor, a victim, and guests that run."""

    def __init__(self, megabytes: int = MEGABYTES) -> None:
        self.hypervisor = Hypervisor(megabytes << 20, ManualClock())
        self.machine = self.hypervisor.machine
        self.peers = self.hypervisor.domains
        self.guests = {}
        self.dom0 = self.peers[0]
        self.victim = Victim(self.hypervisor)

    @override
    def add(
        self, domid: int | None = None, *, max_pages: int = PAGES + 64, max_vcpus: int = 1
    ) -> RingGuest:
        domid = self.hypervisor.next_domid()
        domain = self.hypervisor.add_domain(
            domid, "guest", max_pages=max_pages, max_vcpus=max_vcpus
        )
        guest = RingGuest(self, domain)
        self.guests[domid] = guest
        return guest

    @override
    def remove(self, guest: Guest) -> None:
        del self.guests[guest.domain.domid]
        self.hypervisor.remove_domain(guest.domain)
        guest.engine.close()

    @override
    def audit(self) -> list[str]:
        return super().audit() + self.victim.problems()

    @override
    def close(self) -> None:
        for guest in list(self.guests.values()):
            self.remove(guest)
        self.victim.destroy()
        self.hypervisor.close()


@contextmanager
def _small_budget(domain: Domain, budget: int) -> Iterator[None]:
    """Let each hypercall do only so much before it restarts; 0 for the usual budget."""
    paging = domain.paging

    def begin_work() -> None:
        if not domain.in_multicall:
            paging.work_left = budget

    if not budget:
        yield
        return
    paging.work_left = 0
    paging.begin_work = begin_work  # type: ignore[method-assign]
    try:
        yield
    finally:
        del paging.begin_work  # the method shows again


class RingFuzz(Fuzz):
    """The fuzz of direct paging out of ring 1, with every other hypercall in between."""

    def __init__(self) -> None:
        world = RingWorld()
        self._ring_world = world
        super().__init__(world)
        self._operations["wild"] = self._wild

    @override
    def _new_guest(self) -> Guest:
        guest = self._ring_world.add(max_pages=PAGES + 8)
        self._tables[guest.domain.domid] = []  # its hypercalls go through the emulator
        return guest

    @override
    def _call(self, guest: Guest, number: int, *arguments: int) -> int:
        assert isinstance(guest, RingGuest)
        # Of one update, and with no place for the count that might be a bad one.
        is_whole = number == HYPERVISOR_mmu_update and arguments[1] <= 1 and not arguments[2]
        is_whole = is_whole and not guest.domain.paging.kept and not self._budget
        before = self._state() if is_whole else None
        with _small_budget(guest.domain, self._budget):
            words = [argument & 0xFFFFFFFF for argument in arguments]
            result = guest.execute(_CALL, number, *words)
        guest.settle()
        signed = result - (1 << 32) if result >= 0xFFFFF000 else 0
        if signed < 0 and before is not None and self._state() != before:
            raise Broken(f"a call refused with {signed} left traces")
        return signed

    @override
    def _state(self) -> tuple[object, ...]:
        """Return the same without what the processor's walks set."""
        frames, m8 = self.world.machine.frames, self.world.machine.memory.m8
        columns = super()._state()[:-1]
        tables = {
            mfn: int.from_bytes(m8[mfn << 12 : (mfn + 1) << 12], "little") & _NOT_WALKED
            for mfn, kind in enumerate(frames.kind)
            if kind in _TABLES
        }
        return (*columns, tables)

    @override
    def _touch(self, guest: Guest, draw: Draw) -> int:
        writes_tables = guest.domain.assists >> VMASST_TYPE_writable_pagetables & 1
        before = self._state()
        result = super()._touch(guest, draw)
        guest.settle()
        if not writes_tables and self._state() != before:
            raise Broken("a store of the guest's changed a table")
        return result

    def _wild(self, guest: Guest, draw: Draw) -> int:
        """Make any hypercall with arguments that are nearly right."""
        words = [self._word(guest, draw) for _ in range(10)]
        at = guest.place(_LIST.pack(*words))
        here = at if draw.below(4) else self._word(guest, draw)
        small = draw.below(40)
        number, arguments = draw.pick(
            (
                (HYPERVISOR_event_channel_op, (draw.below(13), here)),
                (HYPERVISOR_event_channel_op, (draw.below(7), here)),
                (HYPERVISOR_event_channel_op_compat, (here,)),
                (HYPERVISOR_sched_op, (draw.below(6), here)),
                (HYPERVISOR_vm_assist, (draw.below(3), small)),
                (HYPERVISOR_xen_version, (draw.below(13), here)),
                (HYPERVISOR_console_io, (draw.below(3), words[0], here)),
                (HYPERVISOR_callback_op, (draw.below(3), here)),
                (HYPERVISOR_memory_op, (small, here)),
                (HYPERVISOR_mmuext_op, (here, words[1], words[2], words[3])),
                (HYPERVISOR_mmu_update, (here, words[1], words[2], words[3])),
                (HYPERVISOR_multicall, (here, draw.below(4))),
                (HYPERVISOR_stack_switch, (words[0], words[1])),
                (HYPERVISOR_update_descriptor, tuple(words[:4])),
                (HYPERVISOR_set_trap_table, (words[0] if not draw.below(4) else 0xF5800000,)),
                (HYPERVISOR_iret, ()),
                (draw.below(70), tuple(words[:5])),
                (draw.below(64), (small, here, words[0], words[1], words[2])),
            )
        )
        return self._call(guest, number, *arguments)

    def _word(self, guest: Guest, draw: Draw) -> int:
        choice = draw.below(12)
        if choice < 3:
            return draw.below(40)
        if choice < 6:
            return self._vaddr(draw)
        if choice < 8:
            return self._frame(guest, draw) & 0xFFFFFFFF
        if choice < 10:
            reserved = DOMID_FIRST_RESERVED
            return draw.pick((DOMID_SELF, DOMID_IO, DOMID_XEN, 0, 1, 2, reserved, 1024, 4096))
        return draw.pick((0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, PAGE - 4, BASE + PAGE - 2, _RECORDS))


_LIST = Struct("<10I")
_TABLES = {FrameType.L1, FrameType.L2, FrameType.L2XEN, FrameType.L3, FrameType.SEGDESC}
_ENTRY_NOT_WALKED = ~(PTE_A | PTE_D) & (1 << 64) - 1
_NOT_WALKED = int.from_bytes(_ENTRY_NOT_WALKED.to_bytes(8, "little") * 512, "little")
RING_WEIGHTS = {**WEIGHTS, "wild": 20}
