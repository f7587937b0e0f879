# SPDX-License-Identifier: GPL-2.0-or-later
"""Run guest code on the engine, and show every trap the same state.

States of a ``Cpu``: *outside* a run; *inside* ``enter`` and there either in guest code, in a trap
(INTR, INSN_INVALID, or one of those delivered between two stretches of a run: all may do
anything), or in a callback within translated code (CPUID, RDTSC: answer, touch nothing).

``regs`` is the state everywhere but in guest code. *Live*, it lies over the engine's own state.
*Copied*, it lies over a context that is saved before each trap and restored after it; the same
code above runs on both.

Invariants:

- The arithmetic flags and DF stand apart from EFLAGS, whose own bits for them mean nothing in a
  trap and are what a run starts with outside: ``read_eflags`` and ``write_eflags`` serve both.
- After every trap OLD_EXCEPTION says that no exception is being delivered, whatever the handler
  did: the native stub or the wrapper sees to it.
- A stop is exact: on a block boundary or after a trap by budget or kick (a trap counts as a
  block), after the trap by ``stop``.
- A new CR3, or another vCPU's context, is never used with the old TLB.
- Every callback catches everything and hands it to ``fail``; ``enter`` raises it again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from xenlite.machine import engine as uc
from xenlite.machine.abort_guard import abort_guard
from xenlite.machine.engine import Engine, EngineError
from xenlite.machine.memory import MachineMemory
from xenlite.machine.selftest import Capabilities, capabilities
from xenlite.machine.trail import SeenTrap, Trail
from xenlite.machine.trap import (
    CC_OP,
    CC_OP_EFLAGS,
    CC_SRC,
    CR0,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR2,
    CR3,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CS,
    DF,
    DR0,
    DR7,
    DS,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    EFLAGS,
    EFLAGS_ARITHMETIC,
    EFLAGS_DF,
    EIP,
    ERROR_CODE,
    ES,
    ESI,
    FLAT_CODE,
    FLAT_DATA,
    FLAT_LIMIT,
    FS,
    GDT,
    GS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_IOBPT,
    HF_SS32,
    HF_TS,
    HFLAGS,
    IS_INT,
    LDT,
    LDT_FLAGS,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    SEG0,
    SEGMENT_BASE,
    SEGMENT_FLAGS,
    SEGMENT_LIMIT,
    SEGMENT_WORDS,
    SS,
    STATE_SIZE_BYTES,
    TR,
    TSS_FLAGS,
    VECTOR_DB,
    VECTOR_UD,
    IoDirection,
    SyscallKind,
    TrapHandlers,
)
from xenlite.machine.ways import Ways

Mode = Literal["auto", "live", "copied"]

_MSR_EFER: Final = 0xC0000080
_EFER_NXE: Final = 0x800
_FCW_RESET: Final = 0x37F
_FPU_EMPTY: Final = 0xFFFF
_MXCSR_RESET: Final = 0x1F80

_LAST_MADDR: Final = (1 << 64) - 1
_NO_EXIT: Final = 0xFFFFFFFF
_DESCRIPTOR_B: Final = 1 << 22
_TSS_LIMIT: Final = 0x67

_DR7_ARMED: Final = 0xE0002
"""DR0 watches a port, four bytes wide, globally."""
_INTEGER_STATE: Final = slice(0, 4 * HFLAGS)
_GENERAL_STATE: Final = slice(0, 4 * EFLAGS)  # what comes before the flags
_DEBUG_STATE: Final = slice(4 * DR0, 4 * DR7 + 8)

_MASKED: Final = 0x100
"""From here on the mask byte is not 0, and the pending byte before it does not matter."""

_FLUSH_PAGE: Final = 1
_FLUSH_ALL: Final = 2

_CHUNK_INSTRUCTIONS: Final = 4096
_BLOCK_INSTRUCTIONS: Final = 8
"""What a block counts for where only instructions can be counted."""


class Cpu:
    """Own one engine: the virtual CPUs of one domain take turns on it.

    Attributes that are functions, for speed: ``read_eflags() -> int``, complete, in a trap or
    outside; ``flush_tlb()``; ``flush_page(vaddr)``. Each is one call into C where the self-test
    allows it. And ``upcalls_held``, one byte: while it is set, no upcall comes by a way.
    """

    def __init__(
        self,
        memory: MachineMemory,
        *,
        traps: TrapHandlers,
        mode: Mode = "auto",
        caps: Capabilities | None = None,
    ) -> None:
        self.capabilities = caps if caps is not None else capabilities()
        self.memory = memory
        self.traps = traps
        self.slot = 0
        self.is_live = self.capabilities.live_state if mode == "auto" else mode == "live"
        assert self.capabilities.live_state or not self.is_live, "the self-test found no live state"
        self._engine = Engine(memory.host_address, memory.size_bytes)
        self._handle = self._engine.handle
        self._failure: BaseException | None = None
        self._pending: Callable[[], None] | None = None
        self._stopping = False
        self._counts = False  # the last run was a step
        interrupt = traps.interrupt
        self._debug = traps.debug or (lambda: interrupt(0, VECTOR_DB, None))
        self._io: tuple[int, int, IoDirection, bytes, bytes] | None = None

        self._set_control_registers()
        self._has_trap_stub = self.is_live and self.capabilities.exact_stop
        self._table = uc.TrapTable()
        self._asked: memoryview | None = None
        self._look_for_upcall: Callable[[], object] = traps.upcall
        self._m16 = memory.m16
        self._upcalls_at: int | None = None
        self._upcalls_held = False
        self._upcall_index: int | None = None  # of the pending and the mask byte, as one word
        self.trail = Trail(self._table)
        has_ways = (
            self._has_trap_stub
            and self.capabilities.fast_eflags
            and self.capabilities.code_invalidate
            and not traps.sees_all
        )
        self.ways = Ways(self._table, memory if has_ways else None)
        start = uc.TrapTable.hold.offset
        hold = memoryview(self._table).cast("B")[start : start + 2]
        self._leaving, self.upcalls_held = hold[:1], hold[1:]
        self._map_state()
        self._bind_fast_calls()
        self._set_flat_state()
        self._fresh = bytes(self.regs8)
        self._set_clock()
        self._set_hooks()
        memory.attach(self)
        self._table.memory, self._table.slot = memory.host_address, self.slot

    def close(self) -> None:
        """Free the engine; ``regs`` is gone with it."""
        self.memory.detach(self)
        self.regs.release()
        self.regs8.release()
        self._engine.close()

    # Running

    def enter(self, blocks: int) -> None:
        """Run the guest at ``regs[EIP]`` for at most ``blocks`` translated blocks.

        A pending upcall comes first. Returns at a block's start when the budget is used up or
        ``kick`` was called, and after the trap in which ``stop`` was called. A kick counts until a
        return: one that comes between two calls makes the next return at once. Raises what
        ``fail`` was given, and EngineError if the engine ends the run for a reason of its own.
        """
        self._counts = False
        self._enter(blocks, self._run)

    def step(self, blocks: int) -> None:
        """Run one instruction, or the trap that it makes; of a repeated one, one element.

        Needs loud memory (``set_quiet_memory``), and a budget of some blocks.
        """
        if not self._counts:
            # The engine counts only in what it translates from then on.
            self.invalidate_all_code()
            self._counts = True
        self._enter(blocks, self._run_one)

    def _enter(self, blocks: int, run: Callable[[], int]) -> None:
        clock = self._clock
        self._stopping = False
        self._leaving[0] = 0
        clock[0] = blocks
        at = self._upcall_index
        if at is not None and 0 < self._m16[at] < _MASKED:
            self._look_for_upcall()
            self._raise_failure()
        if self._guard is not None:
            self._guard.watch(self._guarded)
        try:
            while True:
                if self._asked is None or self._asked[0]:
                    self._flush_asked()
                error = run()
                if self._failure is not None:
                    self._raise_failure()
                if self._pending is not None:
                    self._deliver_pending()
                elif error:
                    raise EngineError(f"the run ended with Unicorn error {error}")
                else:
                    return
                if self._stopping or clock[0] < 0 or self._kicked[0] or run == self._run_one:
                    return
        finally:
            self._kicked[0] = 0
            if self._guard is not None:
                self._guard.rest()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @property
    def blocks_left(self) -> int:
        """Blocks of the last ``enter`` that were not run."""
        return max(self._clock[0], 0)

    def stop(self) -> None:
        """End the run after the trap that calls this; exact in every trap."""
        self._stopping = True
        self._leaving[0] = 1
        self._emu_stop(self._handle)

    def charge(self, blocks: int) -> None:
        """Take ``blocks`` off the budget of this run, for time spent in a trap."""
        self._clock[0] -= blocks

    @property
    def budget(self) -> int:
        """Return what is left of the budget, from which each block takes one, and each trap."""
        return self._clock[0]

    @property
    def block_clock(self) -> uc.BlockClock:
        """Return where native code finds the budget, and the function that ends a run."""
        return self._block_clock

    def set_quiet_memory(self, *, quiet: bool) -> None:
        """Go without stop tests after loads and stores, or have them, outside a run.

        Without them a stop from within a block comes at its end, or after its first store: whoever
        wants to stop at single instructions needs the tests.
        """
        if self._exit_flag is not None:
            ctypes.c_uint8.from_address(self._exit_flag).value = quiet
            self.invalidate_all_code()

    def hook(self, kind: int, callback: Any, **where: Any) -> int:
        """Have the engine call ``callback`` (``Engine.hook``); what is translated is forgotten."""
        hook = self._engine.hook(kind, callback, **where)
        self.invalidate_all_code()
        return hook

    def unhook(self, hook: int) -> None:
        """End what ``hook`` returned, outside a run."""
        self._engine.unhook(hook)

    def kick(self) -> None:
        """End the run soon, at a block boundary. For any thread."""
        self._kicked[0] = 1

    def fail(self, error: BaseException) -> None:
        """Keep what a trap handler raised, end the run, and let ``enter`` raise it."""
        if self._failure is None:
            self._failure = error
        self.stop()

    @property
    def has_failed(self) -> bool:
        """Tell whether a handler of this trap has already failed."""
        return self._failure is not None

    # State

    def write_eflags(self, value: int) -> None:
        """Set all of EFLAGS, in a trap or outside."""
        regs = self.regs
        regs[EFLAGS] = value | 2
        regs[CC_SRC] = value & EFLAGS_ARITHMETIC
        regs[CC_OP] = CC_OP_EFLAGS
        regs[DF] = 0xFFFFFFFF if value & EFLAGS_DF else 1

    def load_cr3(self, maddr: int) -> None:
        """Use the page tables at ``maddr`` and forget the old ones' mappings."""
        self.regs[CR3] = maddr
        self.flush_tlb()

    def set_segment(self, number: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Load one segment register; ``flags`` is a descriptor's upper word, limit in bytes.

        The privilege level stays: see ``set_cpl``.
        """
        regs = self.regs
        word = SEG0 + SEGMENT_WORDS * number
        regs[word] = selector
        regs[word + SEGMENT_BASE] = base
        regs[word + SEGMENT_BASE + 1] = 0
        regs[word + SEGMENT_LIMIT] = limit
        regs[word + SEGMENT_FLAGS] = flags
        if number <= DS:
            self._derive_hflags()

    def set_cpl(self, cpl: int) -> None:
        """Set the current privilege level."""
        self.regs[HFLAGS] = self.regs[HFLAGS] & ~HF_CPL | cpl

    def set_gdt(self, base: int, limit: int) -> None:
        """Use the GDT of ``limit`` + 1 bytes at linear address ``base``."""
        self.set_segment(GDT, 0, base, limit, 0)

    def set_ldt(self, selector: int, base: int, limit: int) -> None:
        """Use the LDT of ``limit`` + 1 bytes at ``base``; ``selector`` 0 for none."""
        self.set_segment(LDT, selector, base, limit, LDT_FLAGS if selector else 0)

    def set_tss(self, selector: int, base: int) -> None:
        """Take inner stacks from the 32-bit TSS at linear address ``base``."""
        self.set_segment(TR, selector, base, _TSS_LIMIT, TSS_FLAGS)

    def set_task_switched(self, switched: bool) -> None:
        """Make the FPU trap with #NM, or not: CR0.TS, where the translator sees it too."""
        regs = self.regs
        if switched:
            regs[CR0] |= CR0_TS
            regs[HFLAGS] |= HF_TS
        else:
            regs[CR0] &= ~CR0_TS
            regs[HFLAGS] &= ~HF_TS

    def load_fpu(self, image: bytes) -> None:
        """Load the FPU's registers from an FXSAVE image, outside a run."""
        if not self.is_live:
            self._restore()
        self._engine.load_fpu(image)
        if not self.is_live:
            self._save()

    def save_fpu(self) -> bytes:
        """Read the FPU's registers as an FXSAVE image, outside a run."""
        if not self.is_live:
            self._restore()
        return self._engine.save_fpu()

    def new_context(self) -> bytearray:
        """Make the state of a virtual CPU after reset: flat, at privilege level 1."""
        return bytearray(self._fresh)

    def save_context(self, context: bytearray) -> None:
        """Copy the state into ``context``, in a trap or outside."""
        self.regs[EFLAGS] = self.read_eflags()
        context[:] = self.regs8

    def restore_context(self, context: bytearray) -> None:
        """Become the virtual CPU whose state is ``context``.

        The TLB goes, between two virtual CPUs on one CR3 too: an alias without NX could otherwise
        run code that the other one replaced through its own.
        """
        self.regs8[:] = context
        self.ways.close()
        self.flush_tlb()

    def watch_upcalls(self, maddr: int) -> None:
        """Call ``traps.upcall`` after a trap while the byte at ``maddr`` is set, the next clear."""
        self._upcalls_at = maddr
        self._choose_upcall_word()

    def hold_upcalls(self, *, held: bool) -> None:
        """Have pending upcalls wait, or take them again; no way may be open meanwhile."""
        self._upcalls_held = held
        self._choose_upcall_word()

    def _choose_upcall_word(self) -> None:
        maddr = None if self._upcalls_held else self._upcalls_at
        self._upcall_index = None if maddr is None else maddr >> 1
        self.ways.close()
        if maddr is None:
            self._table.watch_nothing()
        else:
            self._table.upcall_word = self.memory.host_address + maddr

    # Translated code

    def invalidate_code(self, maddr: int, size: int) -> None:
        """Forget the translations of ``size`` bytes at ``maddr``: outside a run or in a trap."""
        self._invalidate(maddr, maddr + size)

    def invalidate_all_code(self) -> None:
        """Forget every translation: outside a run or in a trap."""
        self._engine.control(uc.UC_CTL_TB_FLUSH)

    # Setting up

    def _set_control_registers(self) -> None:
        engine = self._engine
        engine.write_msr(_MSR_EFER, _EFER_NXE)
        engine.write_register(uc.UC_X86_REG_CR4, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)
        engine.write_register(
            uc.UC_X86_REG_CR0, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        )
        engine.write_register(uc.UC_X86_REG_FPCW, _FCW_RESET)
        engine.write_register(uc.UC_X86_REG_FPTAG, _FPU_EMPTY)
        engine.write_register(uc.UC_X86_REG_MXCSR, _MXCSR_RESET)
        self._exit_flag: int | None = None
        if self.capabilities.quiet_memory:
            flag = self._exit_flag = engine.find_exit_flag()
            assert flag is not None
            ctypes.c_uint8.from_address(flag).value = 1

    def _map_state(self) -> None:
        gil = self._engine.library.gil
        context = self._engine.context
        address = self._engine.find_live_state() if self.capabilities.live_state else None
        self._guard = None if address is None else abort_guard()
        self._guarded = address or 0
        self._save = partial(gil.uc_context_save, self._handle, context)
        self._restore = partial(gil.uc_context_restore, self._handle, context)
        if self.is_live:
            assert address is not None
        else:
            address = context + uc.CONTEXT_HEADER_BYTES
            self._save()
        self._state = address
        cells = (ctypes.c_uint8 * STATE_SIZE_BYTES).from_address(address)
        self.regs8 = memoryview(cells).cast("B")
        self.regs = self.regs8.cast("I")

    def _bind_fast_calls(self) -> None:
        """Bind what traps call most, each to one C function where possible."""
        engine = self._engine
        caps = self.capabilities
        library = engine.library
        self._emu_stop = library.gil.uc_emu_stop
        self._emu_start = library.free.uc_emu_start

        self.flush_tlb: Callable[[], object] = partial(engine.control, uc.UC_CTL_TLB_FLUSH)
        self.flush_page: Callable[[int], object] = lambda _vaddr: self.flush_tlb()
        if caps.page_flush:
            flush_tlb = library.internal("tlb_flush", None, ctypes.c_void_p)
            flush_page = library.internal("tlb_flush_page", None, ctypes.c_void_p, ctypes.c_uint64)
            assert flush_tlb is not None
            assert flush_page is not None
            cpu = engine.find_cpu()
            self.flush_tlb = partial(flush_tlb, cpu)
            self.flush_page = partial(flush_page, cpu)
            if self._has_trap_stub:
                self._leave_flushes_to_stub(cpu)

        self._invalidate: Callable[[int, int], object] = lambda _begin, _end: (
            self.invalidate_all_code()
        )
        if caps.code_invalidate:
            drop = library.internal(
                "tb_invalidate_phys_range", None, ctypes.c_void_p, *(ctypes.c_uint64,) * 2
            )
            assert drop is not None
            self._invalidate = partial(drop, self._handle)
            self._table.invalidate = library.address("tb_invalidate_phys_range_x86_64")

        self.read_eflags: Callable[[], int] = self._read_eflags_by_register
        if caps.fast_eflags:
            eflags = library.internal("helper_read_eflags", ctypes.c_uint32, ctypes.c_void_p)
            assert eflags is not None
            self.read_eflags = partial(eflags, self._state)
            self._table.read_eflags = library.address("helper_read_eflags_x86_64")

    def _leave_flushes_to_stub(self, cpu: int | None) -> None:
        """Ask for flushes instead of doing them: the stub does it natively, on the way back.

        Nothing reads the TLB before the guest goes on, and a call through ctypes costs 0.4 us
        where a note costs 0.1 us. ``enter`` does what was asked outside a trap.
        """
        table = self._table
        library = self._engine.library
        table.cpu = cpu
        table.flush_all = library.address("tlb_flush_x86_64")
        table.flush_page = library.address("tlb_flush_page_x86_64")
        self._flush_now = (self.flush_tlb, self.flush_page)
        start = uc.TrapTable.flush_kind.offset
        asked = memoryview(table).cast("B")[start : start + 8].cast("I")
        self._asked = asked

        def flush_tlb() -> None:
            asked[0] = _FLUSH_ALL

        def flush_page(vaddr: int) -> None:
            if asked[0]:
                asked[0] = _FLUSH_ALL
            else:
                asked[1] = vaddr
                asked[0] = _FLUSH_PAGE

        self.flush_tlb = flush_tlb
        self.flush_page = flush_page

    def _flush_asked(self) -> None:
        """Do what was asked for where no trap stub comes next."""
        if self._asked is not None and self._asked[0]:
            flush_tlb, flush_page = self._flush_now
            if self._asked[0] == _FLUSH_PAGE:
                flush_page(self._asked[1])
            else:
                flush_tlb()
            self._asked[0] = 0

    def _read_eflags_by_register(self) -> int:
        if not self.is_live:
            self._restore()
        value = ctypes.c_uint64()
        self._engine.library.gil.uc_reg_read(
            self._handle, uc.UC_X86_REG_EFLAGS, ctypes.byref(value)
        )
        return value.value

    def _set_flat_state(self) -> None:
        for number in (ES, SS, DS, FS, GS):
            self.set_segment(number, 1, 0, FLAT_LIMIT, FLAT_DATA[1])
        self.set_segment(CS, 1, 0, FLAT_LIMIT, FLAT_CODE[1])
        self.set_cpl(1)
        self.set_tss(0, 0)
        regs = self.regs
        regs[HFLAGS] |= HF_IOBPT
        regs[OLD_EXCEPTION] = NO_EXCEPTION
        self.write_eflags(0x202)

    def _derive_hflags(self) -> None:
        """Tell the translator about widths and bases, as the CPU does at each load."""
        regs = self.regs
        hflags = regs[HFLAGS] & ~(HF_CS32 | HF_SS32 | HF_ADDSEG)
        if regs[SEG0 + SEGMENT_WORDS * CS + SEGMENT_FLAGS] & _DESCRIPTOR_B:
            hflags |= HF_CS32
        if regs[SEG0 + SEGMENT_WORDS * SS + SEGMENT_FLAGS] & _DESCRIPTOR_B:
            hflags |= HF_SS32
        bases = (regs[SEG0 + SEGMENT_WORDS * number + SEGMENT_BASE] for number in (DS, ES, SS))
        if not hflags & HF_CS32 or any(bases):
            hflags |= HF_ADDSEG
        regs[HFLAGS] = hflags

    def _set_clock(self) -> None:
        """Lay out the budget and the kick; with stubs, have every block look at them."""
        self._block_clock = uc.BlockClock()
        self._block_clock.stop_function = self._engine.library.address("uc_emu_stop")
        cells = memoryview(self._block_clock).cast("B")
        self._clock = cells.cast("q")
        self._kicked = cells[16:17]
        self._run: Callable[[], int] = self._run_by_count
        if self.capabilities.exact_stop:
            stubs = uc.native_stubs()
            assert stubs is not None
            user = ctypes.addressof(self._block_clock)
            self._engine.hook(uc.UC_HOOK_BLOCK, stubs[0], user=user)
            self._run = self._run_by_blocks if self.is_live else self._run_copied

    def _set_hooks(self) -> None:
        engine = self._engine
        self._set_interrupt_hook()
        invalid = self._invalid_opcode_live if self.is_live else self._invalid_opcode_copied
        engine.hook(uc.UC_HOOK_INSN_INVALID, uc.InvalidCallback(invalid))
        beyond_ram = (self.memory.size_bytes, _LAST_MADDR)
        engine.hook(
            uc.UC_HOOK_MEM_UNMAPPED, uc.UnmappedCallback(self._on_unmapped), addresses=beyond_ram
        )
        for instruction, callback in (
            (uc.UC_X86_INS_IN, uc.InCallback(self._on_in)),
            (uc.UC_X86_INS_OUT, uc.OutCallback(self._on_out)),
            (uc.UC_X86_INS_CPUID, uc.InsnCallback(self._on_cpuid)),
            (uc.UC_X86_INS_SYSCALL, uc.InsnCallback(self._on_syscall)),
            (uc.UC_X86_INS_SYSENTER, uc.InsnCallback(self._on_sysenter)),
        ):
            engine.hook(uc.UC_HOOK_INSN, callback, instruction=instruction)
        if self.traps.rdtsc is not None:
            for instruction in (uc.UC_X86_INS_RDTSC, uc.UC_X86_INS_RDTSCP):
                callback = uc.InsnCallback(self._on_rdtsc)
                engine.hook(uc.UC_HOOK_INSN, callback, instruction=instruction)

    def _set_interrupt_hook(self) -> None:
        """Send each vector to its handler: natively where the state is live and stubs work."""
        engine = self._engine
        traps = self.traps
        if not self._has_trap_stub:
            dispatch = self._interrupt_live if self.is_live else self._interrupt_copied
            engine.hook(uc.UC_HOOK_INTR, uc.IntrCallback(dispatch))
            return
        stubs = uc.native_stubs()
        assert stubs is not None
        default = uc.IntrCallback(traps.interrupt)
        callbacks: dict[int, Any] = {VECTOR_DB: uc.VectorCallback(self._on_debug)}
        for vector, handler in traps.vectors.items():
            assert vector != VECTOR_DB, "#DB serves IN and OUT first"
            callbacks[vector] = uc.VectorCallback(handler)
        table = self._table
        for vector in range(256):
            function = callbacks.get(vector, default)
            table.handlers[vector] = ctypes.cast(function, ctypes.c_void_p).value
        table.default = ctypes.cast(default, ctypes.c_void_p).value
        table.old_exception = self._state + 4 * OLD_EXCEPTION
        table.state = self._state
        call, upcall = uc.CallCallback(traps.call), uc.VectorCallback(traps.upcall)
        table.call = ctypes.cast(call, ctypes.c_void_p).value
        table.upcall = ctypes.cast(upcall, ctypes.c_void_p).value
        table.call_vector = traps.call_vector
        table.clock = ctypes.addressof(self._block_clock)
        engine.keep(table, default, callbacks, call, upcall)
        engine.hook(uc.UC_HOOK_INTR, stubs[1], user=ctypes.addressof(table))
        self._look_for_upcall = partial(
            uc.TrapStub(stubs[1]), self._handle, uc.NO_VECTOR, ctypes.addressof(table)
        )

    # Ways to run

    def _run_by_blocks(self) -> int:
        error: int = self._emu_start(self._handle, self.regs[EIP], _NO_EXIT, 0, 0)
        return error

    def _run_copied(self) -> int:
        self._restore()
        error: int = self._emu_start(self._handle, self.regs[EIP], _NO_EXIT, 0, 0)
        self._save()
        return error

    def _run_by_count(self) -> int:
        """Run chunks of instructions, looking at budget and kick between them."""
        clock = self._clock
        while True:
            blocks = min(clock[0], _CHUNK_INSTRUCTIONS // _BLOCK_INSTRUCTIONS)
            if self._kicked[0] or blocks <= 0:
                clock[0] = min(clock[0], -1) if not self._kicked[0] else clock[0]
                return uc.UC_ERR_OK
            clock[0] -= blocks
            if not self.is_live:
                self._restore()
            error: int = self._emu_start(
                self._handle, self.regs[EIP], _NO_EXIT, 0, blocks * _BLOCK_INSTRUCTIONS
            )
            if not self.is_live:
                self._save()
            if error or self._stopping or self._pending is not None:
                return error

    def _run_one(self) -> int:
        """Run one instruction; a kick may come before it, and then it is tried again.

        No registers and no EIP changed means that none was run, or one that may be run twice. How
        the flags are kept may change all the same.
        """
        before = bytes(self.regs8[_GENERAL_STATE])
        while True:
            self._kicked[0] = 0
            if not self.is_live:
                self._restore()
            error: int = self._emu_start(self._handle, self.regs[EIP], _NO_EXIT, 0, 1)
            if not self.is_live:
                self._save()
            if not self._kicked[0] or error or before != self.regs8[_GENERAL_STATE]:
                return error

    def _deliver_pending(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        pending()

    # Callbacks from the engine

    def _interrupt_live(self, handle: int, vector: int, user: object) -> None:
        """Do in Python what the trap stub does."""
        regs, traps = self.regs, self.traps
        regs[OLD_EXCEPTION] = NO_EXCEPTION
        if vector == traps.call_vector and regs[HFLAGS] & HF_CPL == 1:
            arguments = (regs[EBX], regs[ECX], regs[EDX], regs[ESI], regs[EDI])
            record = self.trail.begin(regs[EAX], arguments)
            result = traps.call(regs[EAX], *arguments)
            if result >= 0:
                regs[EAX] = result
                self.trail.end(record, result)
            self._after_trap()
            return
        self._remember(vector)
        if vector == VECTOR_DB:
            self._on_debug()
        elif (handler := traps.vectors.get(vector)) is not None:
            handler()
        else:
            traps.interrupt(handle, vector, user)
        self._after_trap()

    def _after_trap(self) -> None:
        if self._upcall_index is not None and 0 < self._m16[self._upcall_index] < _MASKED:
            self.traps.upcall()
        self._count_trap()

    def _remember(self, vector: int) -> None:
        """Note a trap that the stub does not see."""
        regs = self.regs
        is_software, ring = bool(regs[IS_INT] & 1), regs[HFLAGS] & HF_CPL
        self.trail.trap(SeenTrap(vector, is_software, ring, regs[EIP], regs[ERROR_CODE], regs[CR2]))

    def _interrupt_copied(self, handle: int, vector: int, user: object) -> None:
        self._save()
        try:
            self._interrupt_live(handle, vector, user)
        finally:
            self._restore()

    def _invalid_opcode_live(self, handle: int, user: object) -> bool:
        ring, eip = self.regs[HFLAGS] & HF_CPL, self.regs[EIP]
        self.trail.trap(SeenTrap(VECTOR_UD, False, ring, eip, 0, 0))
        go_on = self.traps.invalid_opcode(handle, user)
        self._flush_asked()
        self._count_trap()
        return go_on

    def _invalid_opcode_copied(self, handle: int, user: object) -> bool:
        self._save()
        try:
            return self._invalid_opcode_live(handle, user)
        finally:
            self._restore()

    def _count_trap(self) -> None:
        """Take a trap off the budget, and end the run where that, or a kick, asks for it.

        A handler that can't be fetched or translated traps again, and runs no block that would.
        """
        self._clock[0] -= 1
        if self._clock[0] < 0 or self._kicked[0]:
            self._emu_stop(self._handle)

    def _on_debug(self) -> None:
        """Serve #DB: the end of a port access that ``_arm_io`` let through, or the guest's own."""
        if self._io is None:
            self._debug()
            return
        try:
            port, size, direction, integers, debug = self._io
            self._io = None
            next_eip = self.regs[EIP]
            self.regs8[_INTEGER_STATE] = integers
            self.regs8[_DEBUG_STATE] = debug
            self.traps.io(port, size, direction, next_eip)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.fail(error)

    def _on_in(self, _handle: int, port: int, size: int, _user: object) -> int:
        self._arm_io(port, size, IoDirection.IN)
        return 0

    def _on_out(self, _handle: int, port: int, size: int, _value: int, _user: object) -> None:
        self._arm_io(port, size, IoDirection.OUT)

    def _arm_io(self, port: int, size: int, direction: IoDirection) -> None:
        """Keep the state at the instruction and have it end in #DB, where traps are exact.

        The engine asks for no permission and cannot fault here: this runs inside the instruction.
        """
        try:
            if not self.is_live:
                self._save()
            regs8 = self.regs8
            integers = bytes(regs8[_INTEGER_STATE])
            self._io = (port, size, direction, integers, bytes(regs8[_DEBUG_STATE]))
            self.regs[DR0] = port
            self.regs[DR7] |= _DR7_ARMED
            if not self.is_live:
                self._restore()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.fail(error)

    def _on_cpuid(self, _handle: int, _user: object) -> int:
        try:
            if not self.is_live:
                self._save()
            regs = self.regs
            regs[EAX], regs[EBX], regs[ECX], regs[EDX] = self.traps.cpuid(regs[EAX], regs[ECX])
            if not self.is_live:
                self._restore()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.fail(error)
        return 1

    def _on_rdtsc(self, _handle: int, _user: object) -> int:
        try:
            assert self.traps.rdtsc is not None
            if not self.is_live:
                self._save()
            value = self.traps.rdtsc()
            self.regs[EAX] = value & 0xFFFFFFFF
            self.regs[EDX] = value >> 32
            if not self.is_live:
                self._restore()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.fail(error)
        return 1

    def _on_syscall(self, _handle: int, _user: object) -> int:
        return self._leave_at_syscall(SyscallKind.SYSCALL)

    def _on_sysenter(self, _handle: int, _user: object) -> int:
        return self._leave_at_syscall(SyscallKind.SYSENTER)

    def _leave_at_syscall(self, kind: SyscallKind) -> int:
        """End the run at the instruction, which ends its block: the engine adds its 2 bytes."""
        try:
            if not self.is_live:
                self._save()
            self.regs[EIP] = (self.regs[EIP] - 2) & 0xFFFFFFFF
            if not self.is_live:
                self._restore()
            self._pending = partial(self.traps.syscall, kind)
            self._emu_stop(self._handle)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.fail(error)
        return 1

    def _on_unmapped(
        self, _handle: int, _kind: int, maddr: int, _size: int, _value: int, _user: object
    ) -> bool:
        """Note the address; the run ends at the instruction."""
        self._pending = partial(self.traps.unmapped, maddr)
        return False
