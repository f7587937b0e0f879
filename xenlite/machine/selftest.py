# SPDX-License-Identifier: GPL-2.0-or-later
"""Find out, once per process, which of the engine's inner parts may be relied on.

Each probe uses one inner part for what it is needed for, on a throw-away engine, and compares with
what must come out; nothing is taken from a version number alone. What fails is named in
``Capabilities.notes`` together with the fallback that then runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Final

from xenlite.machine import engine as uc
from xenlite.machine.engine import CONTEXT_HEADER_BYTES, Engine, EngineError, native_stubs
from xenlite.machine.memory import PAGE_SIZE, MachineMemory
from xenlite.machine.trap import (
    CC_OP,
    CC_OP_EFLAGS,
    CC_SRC,
    CR0,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR2,
    CR3,
    CR4_PAE,
    DF,
    DR0,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    EFLAGS,
    EFLAGS_CF,
    EFLAGS_DF,
    EIP,
    ESI,
    ESP,
    HF_TS,
    HFLAGS,
    IS_INT,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    SEG0,
    SEGMENT_BASE,
    SEGMENT_FLAGS,
    SEGMENT_LIMIT,
    SEGMENT_WORDS,
    STATE_SIZE_BYTES,
    TR,
    TSS_FLAGS,
)

_MEMORY_SIZE_BYTES: Final = 1 << 20
_NO_EXIT: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Say which fast paths hold on this host; each has a slower fallback that is as right."""

    live_state: bool
    """CPU state is read and written in place. Else: copied out and in around each trap."""

    exact_stop: bool
    """Native stubs count blocks and sort interrupts. Else: runs of a bounded instruction count."""

    quiet_memory: bool
    """Loads and stores need no stop test. Else: they are up to twice as slow."""

    page_flush: bool
    """The TLB is flushed by page or whole through inner functions. Else: whole, through the API."""

    code_invalidate: bool
    """Translations of a range can be dropped. Else: all translations are."""

    fast_eflags: bool
    """EFLAGS is evaluated by an inner function. Else: through the API."""

    short_blocks: bool = True
    """Translated blocks are too short to overflow. Else: no guest can be trusted; no fallback."""

    notes: tuple[str, ...] = ()
    """One line per fallback in use, for the log."""


_FALLBACKS: Final = {
    "live_state": "CPU state is not where expected: it is copied around each trap",
    "exact_stop": "no native stubs on this host: runs are bounded by instruction counts",
    "quiet_memory": "the flag against stop tests was not found: memory access is slower",
    "page_flush": "no inner TLB flush: every flush empties the TLB through the API",
    "code_invalidate": "no invalidation by address: every one drops all translations",
    "fast_eflags": "no inner evaluation of EFLAGS: it is read through the API",
    "short_blocks": "blocks can't be shortened here: a hostile guest can overwrite this process",
}


@cache
def capabilities() -> Capabilities:
    """Test the engine of this process; EngineError where not even the slow paths can work."""
    memory = MachineMemory(_MEMORY_SIZE_BYTES)
    engine = Engine(memory.host_address, memory.size_bytes)
    try:
        results = _probe(engine, memory)
    finally:
        engine.close()
        memory.close()
    notes = tuple(note for name, note in _FALLBACKS.items() if not results[name])
    return Capabilities(**results, notes=notes)


def _probe(engine: Engine, memory: MachineMemory) -> dict[str, bool]:
    _check_context_layout(engine)
    return {
        "live_state": _is_live(engine),
        "exact_stop": _stops_exactly(engine, memory),
        "quiet_memory": engine.find_exit_flag() is not None,
        "page_flush": _flushes(engine, memory),
        "code_invalidate": _invalidates(engine, memory),
        "fast_eflags": _reads_eflags(engine),
        "short_blocks": engine.library.has_short_blocks,
    }


# Layout

_MARKED: Final = {
    EAX: 19, ECX: 22, EDX: 24, EBX: 21, ESP: 30, ESI: 29, EDI: 23, EIP: 26, CR2: 52, CR3: 53,
    DR0: 66,
}  # fmt: skip
"""Word index -> Unicorn's number of registers that take any value."""
_TASK: Final = SEG0 + SEGMENT_WORDS * TR


def _check_context_layout(engine: Engine) -> None:
    """Write markers through the API and find them in a context at the indexes of trap.py."""
    context = _context_words(engine)
    before = {word: context[word] for word in (*_MARKED, CR0)}
    expected = {word: 0x5A000 + 0x20 * word for word in _MARKED}
    for word, register in _MARKED.items():
        engine.write_register(register, expected[word])
    engine.write_task_register(selector=0x28, base=0x12345000, limit=0x777, flags=TSS_FLAGS)
    for word, value in ((0, 0x28), (SEGMENT_BASE, 0x12345000), (SEGMENT_LIMIT, 0x777)):
        expected[_TASK + word] = value
    expected[_TASK + SEGMENT_FLAGS] = TSS_FLAGS
    engine.write_register(uc.UC_X86_REG_CR0, before[CR0] | CR0_TS)
    expected[CR0] = before[CR0] | CR0_TS
    expected[HFLAGS] = context[HFLAGS] | HF_TS
    expected[OLD_EXCEPTION] = NO_EXCEPTION
    context = _context_words(engine)
    wrong = [word for word, value in expected.items() if context[word] != value]
    if wrong:
        raise EngineError(f"this build of Unicorn keeps its CPU state elsewhere: words {wrong}")
    for word, register in _MARKED.items():
        engine.write_register(register, before[word])
    engine.write_register(uc.UC_X86_REG_CR0, before[CR0])


def _context_words(engine: Engine) -> memoryview:
    uc.check(engine.library.gil.uc_context_save(engine.handle, engine.context), "uc_context_save")
    return _words_at(engine.context + CONTEXT_HEADER_BYTES)


def _words_at(address: int) -> memoryview:
    return memoryview((ctypes.c_uint8 * STATE_SIZE_BYTES).from_address(address)).cast("B").cast("I")


def _is_live(engine: Engine) -> bool:
    """Tell whether the state in place follows the API, and the API follows it."""
    address = engine.find_live_state()
    if address is None:
        return False
    live = _words_at(address)
    engine.write_register(_MARKED[EDI], 0x1234567)
    follows = live[EDI] == 0x1234567
    live[ESI] = 0x7654321
    return follows and _context_words(engine)[ESI] == 0x7654321


def _reads_eflags(engine: Engine) -> bool:
    """Evaluate flags that stand in all three places, on a copy of the state."""
    function = engine.library.internal("helper_read_eflags", c_uint32, c_void_p)
    if function is None:
        return False
    words = _context_words(engine)
    words[EFLAGS], words[CC_OP], words[CC_SRC], words[DF] = 2, CC_OP_EFLAGS, EFLAGS_CF, 0xFFFFFFFF
    value: int = function(engine.context + CONTEXT_HEADER_BYTES)
    return value == 2 | EFLAGS_CF | EFLAGS_DF


# Behaviour: a little code on identity tables, with two extra mappings to choose from

_L3, _L2, _L1, _FIRST, _SECOND, _LAST = 1, 2, 3, 4, 5, 8
_FLUSH_CODE, _CHANGED_CODE, _STOP_CODE = 6 * PAGE_SIZE, 7 * PAGE_SIZE, 8 * PAGE_SIZE
"""One page each: what one probe translated must not serve the next."""
_WINDOW: Final = 0x10000
_LOAD: Final = b"\xa1" + _WINDOW.to_bytes(4, "little") + b"\xeb\xfe"  # mov eax, [window]; jmp $
_COUNT: Final = b"\x40\xeb\xfd\xcd\x30"  # again: inc eax; jmp again; int 0x30
_BLOCKS: Final = 7
_MORE_THAN_ENOUGH: Final = 1000
_INTERRUPT: Final = 3
_UNLIMITED: Final = 1 << 62


def _run(engine: Engine, eip: int, instructions: int) -> int:
    """Run that many instructions; return EAX."""
    start = engine.library.free.uc_emu_start
    uc.check(start(engine.handle, eip, _NO_EXIT, 0, instructions), "the self-test's run")
    return _context_words(engine)[EAX]


def _flushes(engine: Engine, memory: MachineMemory) -> bool:
    """Swap the frame behind a cached mapping, and flush the page, then all."""
    cpu = engine.find_cpu()
    page = engine.library.internal("tlb_flush_page", None, c_void_p, c_uint64)
    whole = engine.library.internal("tlb_flush", None, c_void_p)
    if cpu is None or page is None or whole is None:
        return False
    _turn_paging_on(engine, memory)
    memory.m8[_FLUSH_CODE : _FLUSH_CODE + len(_LOAD)] = _LOAD
    memory.m32[_FIRST << 10] = 0x111
    memory.m32[_SECOND << 10] = 0x222
    flushes: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: page(cpu, _WINDOW),
        lambda: whole(cpu),
    )
    seen = []
    for mfn, flush in zip((_FIRST, _SECOND, _FIRST), flushes, strict=True):
        memory.m64[(_L1 << 9) + _WINDOW // PAGE_SIZE] = mfn * PAGE_SIZE | 3
        flush()
        seen.append(_run(engine, _FLUSH_CODE, 2))
    return seen == [0x111, 0x222, 0x111]


def _turn_paging_on(engine: Engine, memory: MachineMemory) -> None:
    m64 = memory.m64
    m64[_L3 << 9] = _L2 * PAGE_SIZE | 1
    m64[_L2 << 9] = _L1 * PAGE_SIZE | 3
    for mfn in range(_LAST + 1):
        m64[(_L1 << 9) + mfn] = mfn * PAGE_SIZE | 3
    engine.write_register(uc.UC_X86_REG_CR3, _L3 * PAGE_SIZE)
    engine.write_register(uc.UC_X86_REG_CR4, CR4_PAE)
    engine.write_register(uc.UC_X86_REG_CR0, CR0_PE | CR0_PG)


def _invalidates(engine: Engine, memory: MachineMemory) -> bool:
    """Change translated code behind the engine's back, and drop its translation."""
    drop = engine.library.internal("tb_invalidate_phys_range", None, c_void_p, c_uint64, c_uint64)
    if drop is None:
        return False
    code = _CHANGED_CODE
    seen = []
    for value in (1, 2):
        memory.m8[code : code + 7] = bytes((0xB8, value, 0, 0, 0, 0xEB, 0xFE))  # mov eax; jmp $
        drop(engine.handle, code, code + PAGE_SIZE)
        seen.append(_run(engine, code, 2))
    return seen == [1, 2]


def _stops_exactly(engine: Engine, memory: MachineMemory) -> bool:
    """Count blocks of an endless loop with one stub; take an interrupt through the other."""
    stubs = native_stubs()
    if stubs is None:
        return False
    clock = uc.BlockClock(_BLOCKS, engine.library.address("uc_emu_stop"), 0)
    engine.hook(uc.UC_HOOK_BLOCK, stubs[0], user=ctypes.addressof(clock))
    taken: list[int] = []
    callback = uc.VectorCallback(lambda: taken.append(_context_words(engine)[IS_INT]))
    table = uc.TrapTable(clock=ctypes.addressof(clock))
    table.handlers[0x30] = ctypes.cast(callback, c_void_p).value
    delivered = c_uint32(0)
    table.old_exception = ctypes.addressof(delivered)
    engine.hook(uc.UC_HOOK_INTR, stubs[1], user=ctypes.addressof(table))
    memory.m8[_STOP_CODE : _STOP_CODE + len(_COUNT)] = _COUNT
    engine.write_register(_MARKED[EAX], 0)
    counted = _run(engine, _STOP_CODE, _MORE_THAN_ENOUGH)
    clock.budget = 1
    _run(engine, _STOP_CODE + _INTERRUPT, _MORE_THAN_ENOUGH)
    clock.budget = _UNLIMITED
    engine.keep(clock, table, callback, delivered)
    return counted == _BLOCKS and taken == [1] and delivered.value == NO_EXCEPTION
