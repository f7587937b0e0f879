# SPDX-License-Identifier: GPL-2.0-or-later
"""Bind the emulator's C library: the few functions that the CPU needs, and nothing else.

The binding that comes with Unicorn costs 30 ms of import and 2 to 15 us per call, so this file
finds the library inside the installed package, which it does not import, and declares what it
calls. Two handles on one library: ``gil`` keeps Python's lock across a call, which saves 50 ns and
suits everything short; ``free`` releases it, for the run itself.

Names are Unicorn's. Source: unicorn/unicorn.h, unicorn/x86.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import platform
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from struct import Struct
from typing import Any, Final

from xenlite.machine.short_blocks import shorten_blocks
from xenlite.machine.trap import STATE_SIZE_BYTES
from xenlite.machine.trap_stub import TRAP_STUB

UC_ARCH_X86: Final = 4
UC_MODE_32: Final = 4
UC_PROT_ALL: Final = 7

UC_ERR_OK: Final = 0

UC_HOOK_INTR: Final = 1 << 0
UC_HOOK_INSN: Final = 1 << 1
UC_HOOK_CODE: Final = 1 << 2
UC_HOOK_BLOCK: Final = 1 << 3
UC_HOOK_MEM_UNMAPPED: Final = 7 << 4
UC_HOOK_MEM_READ: Final = 1 << 10
UC_HOOK_MEM_WRITE: Final = 1 << 11
UC_HOOK_INSN_INVALID: Final = 1 << 14

UC_CTL_UC_USE_EXITS: Final = 4
UC_CTL_TB_FLUSH: Final = 10
UC_CTL_TLB_FLUSH: Final = 11
UC_CTL_TCG_BUFFER_SIZE: Final = 13
_UC_CTL_WRITE: Final = 1 << 30
_UC_CTL_NR_SHIFT: Final = 26

UC_X86_REG_EFLAGS: Final = 25
UC_X86_REG_FPSW: Final = 31
UC_X86_REG_CR0: Final = 50
UC_X86_REG_CR3: Final = 53
UC_X86_REG_CR4: Final = 54
UC_X86_REG_ST0: Final = 114
UC_X86_REG_XMM0: Final = 122
UC_X86_REG_TR: Final = 245
UC_X86_REG_FPCW: Final = 246
UC_X86_REG_FPTAG: Final = 247
UC_X86_REG_MSR: Final = 248
UC_X86_REG_MXCSR: Final = 249

UC_X86_INS_CPUID: Final = 113
UC_X86_INS_IN: Final = 218
UC_X86_INS_OUT: Final = 500
UC_X86_INS_RDTSC: Final = 608
UC_X86_INS_RDTSCP: Final = 609
UC_X86_INS_SYSCALL: Final = 699
UC_X86_INS_SYSENTER: Final = 700

IntrCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
VectorCallback: Final = ctypes.CFUNCTYPE(None)
TrapStub: Final = ctypes.PYFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
"""The same call, its arguments left unread."""
CallCallback: Final = ctypes.CFUNCTYPE(c_int64, *(c_uint32,) * 6)
"""A hypercall, its registers as arguments; a negative answer leaves EAX alone."""
InvalidCallback: Final = ctypes.CFUNCTYPE(c_bool, c_void_p, c_void_p)
InCallback: Final = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
OutCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
InsnCallback: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
UnmappedCallback: Final = ctypes.CFUNCTYPE(
    c_bool, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p
)
CodeCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
AccessCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p)

NO_VECTOR: Final = 0xFFFFFFFF
NO_CALL: Final = 0xFFFFFFFF
"""No ``int n`` is a hypercall."""

TCG_BUFFER_SIZE_BYTES: Final = 32 << 20
"""Room for translations. The library's default, 1 GiB, halves the speed of short blocks."""

CONTEXT_HEADER_BYTES: Final = 40
"""Bytes of a context before its CPU state."""

KNOWN_VERSION: Final = 0x020104FF
"""The version whose offsets this package knows: major, minor, patch, extra."""
_ENV_POINTER: Final = 0x128
"""Where the CPU object of that version points to its state."""

_FPU_HEAD: Final = Struct("<HHB")  # FCW, FSW, abridged tags
_MXCSR: Final = Struct("<I")
_MXCSR_MASK: Final = 0xFFFF
_FXSAVE_SIZE_BYTES: Final = 512
_TAG_EMPTY: Final = 3

_EVERYWHERE: Final = (1, 0)
_CPU_INDEX: Final = -1
"""The index of an engine's only CPU: never assigned."""
_EXIT_CHECK: Final = "check_exit_request_x86_64"


class EngineError(Exception):
    """Report that the engine refused a call or ended a run as it never should."""


def _declare(library: ctypes.CDLL) -> None:
    signatures: tuple[tuple[Any, ...], ...] = (
        ("uc_version", c_uint32, c_void_p, c_void_p),
        ("uc_open", c_int, c_int, c_int, c_void_p),
        ("uc_close", c_int, c_void_p),
        ("uc_emu_start", c_int, c_void_p, c_uint64, c_uint64, c_uint64, c_size_t),
        ("uc_emu_stop", c_int, c_void_p),
        ("uc_mem_map_ptr", c_int, c_void_p, c_uint64, c_uint64, c_uint32, c_void_p),
        ("uc_reg_read", c_int, c_void_p, c_int, c_void_p),
        ("uc_reg_write", c_int, c_void_p, c_int, c_void_p),
        ("uc_context_alloc", c_int, c_void_p, c_void_p),
        ("uc_context_free", c_int, c_void_p),
        ("uc_context_save", c_int, c_void_p, c_void_p),
        ("uc_context_restore", c_int, c_void_p, c_void_p),
        ("uc_hook_del", c_int, c_void_p, c_size_t),
        ("uc_hook_add", c_int, *(c_void_p,) * 2, c_int, *(c_void_p,) * 2, *(c_uint64,) * 2, c_int),
    )
    for name, result, *arguments in signatures:
        function = library[name]
        function.restype = result
        function.argtypes = arguments
        setattr(library, name, function)


class Library:
    """Hold the two handles on the emulator's library."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("unicorn")
        if spec is None or not spec.submodule_search_locations:
            raise EngineError("the Python package 'unicorn' is not installed")
        path = f"{spec.submodule_search_locations[0]}/lib/libunicorn.so.2"
        self.free = ctypes.CDLL(path)
        self.gil = ctypes.PyDLL(path)
        _declare(self.free)
        _declare(self.gil)
        self.version: int = self.gil.uc_version(None, None)
        self.has_short_blocks = shorten_blocks(path)

    def internal(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any] | None:
        """Find a function that the library exports by accident; None if it does not."""
        try:
            function = self.gil[name + "_x86_64"]
        except AttributeError:
            return None
        function.restype = result
        function.argtypes = arguments
        return function

    def address(self, name: str) -> int | None:
        """Find the address of an exported function."""
        try:
            return ctypes.cast(self.gil[name], c_void_p).value
        except AttributeError:
            return None


@cache
def library() -> Library:
    """Load the emulator, once per process."""
    return Library()


def check(error: int, what: str) -> None:
    """Raise EngineError unless ``error`` is none."""
    if error != UC_ERR_OK:
        raise EngineError(f"{what}: Unicorn error {error}")


class Engine:
    """Own one engine of the library, with RAM at physical address 0."""

    def __init__(self, host_address: int, size_bytes: int) -> None:
        self.library = library()
        gil = self.library.gil
        handle = c_void_p()
        check(gil.uc_open(UC_ARCH_X86, UC_MODE_32, ctypes.byref(handle)), "uc_open")
        assert handle.value is not None
        self.handle: int = handle.value
        self.control(UC_CTL_TCG_BUFFER_SIZE, c_uint32(TCG_BUFFER_SIZE_BYTES))
        # On, with no exits: `until` of a run then never matches a guest address.
        self.control(UC_CTL_UC_USE_EXITS, c_int(1))
        check(
            gil.uc_mem_map_ptr(self.handle, 0, size_bytes, UC_PROT_ALL, host_address),
            "uc_mem_map_ptr",
        )
        context = c_void_p()
        check(gil.uc_context_alloc(self.handle, ctypes.byref(context)), "uc_context_alloc")
        assert context.value is not None
        self.context: int = context.value
        check(gil.uc_context_save(self.handle, self.context), "uc_context_save")
        self._kept: dict[int, object] = {}

    def close(self) -> None:
        """Free the engine; its RAM must still be mapped."""
        gil = self.library.gil
        check(gil.uc_context_free(self.context), "uc_context_free")
        check(gil.uc_close(self.handle), "uc_close")
        self._kept.clear()

    def control(self, what: int, *arguments: Any) -> None:
        """Call ``uc_ctl`` to write."""
        code = what | len(arguments) << _UC_CTL_NR_SHIFT | _UC_CTL_WRITE
        function = self.library.gil["uc_ctl"]
        function.argtypes = [c_void_p, c_uint32, *(type(argument) for argument in arguments)]
        check(function(self.handle, code, *arguments), f"uc_ctl {what}")

    def write_register(self, register: int, value: int) -> None:
        """Write a control register or one of the like, with all that follows from it."""
        cell = c_uint64(value)
        error = self.library.gil.uc_reg_write(self.handle, register, ctypes.byref(cell))
        check(error, f"uc_reg_write {register}")

    def write_task_register(self, selector: int, base: int, limit: int, flags: int) -> None:
        """Write TR with its hidden parts (``uc_x86_mmr``)."""
        parts = _SystemSegment(selector, base, limit, flags)
        error = self.library.gil.uc_reg_write(self.handle, UC_X86_REG_TR, ctypes.byref(parts))
        check(error, "write of TR")

    def load_fpu(self, image: bytes) -> None:
        """Load the x87, MMX and SSE registers from a 512-byte FXSAVE image (Intel SDM 1, 10.5.1).

        Where the last x87 instruction and its operand were is not kept.
        """
        control, status, valid = _FPU_HEAD.unpack_from(image)
        tags = sum(3 << 2 * n for n in range(8) if not valid >> n & 1)
        (mxcsr,) = _MXCSR.unpack_from(image, 24)
        self.write_register(UC_X86_REG_FPCW, control)
        self.write_register(UC_X86_REG_FPSW, status)
        self.write_register(UC_X86_REG_FPTAG, tags)
        self.write_register(UC_X86_REG_MXCSR, mxcsr & _MXCSR_MASK)
        for first, start in ((UC_X86_REG_ST0, 32), (UC_X86_REG_XMM0, 160)):
            for n in range(8):
                content = image[start + 16 * n : start + 16 * (n + 1)]
                error = self.library.gil.uc_reg_write(self.handle, first + n, content)
                check(error, f"uc_reg_write {first + n}")

    def save_fpu(self) -> bytes:
        """Read the x87, MMX and SSE registers as a 512-byte FXSAVE image."""
        image = bytearray(_FXSAVE_SIZE_BYTES)
        control, status, tags, mxcsr = (
            self._read_register(register, 8)
            for register in (
                UC_X86_REG_FPCW, UC_X86_REG_FPSW, UC_X86_REG_FPTAG, UC_X86_REG_MXCSR
            )
        )  # fmt: skip
        words = [int.from_bytes(word[:4], "little") for word in (control, status, tags, mxcsr)]
        valid = sum(1 << n for n in range(8) if words[2] >> 2 * n & 3 != _TAG_EMPTY)
        _FPU_HEAD.pack_into(image, 0, words[0] & 0xFFFF, words[1] & 0xFFFF, valid)
        _MXCSR.pack_into(image, 24, words[3] & _MXCSR_MASK)
        for first, start in ((UC_X86_REG_ST0, 32), (UC_X86_REG_XMM0, 160)):
            for n in range(8):
                at = start + 16 * n
                image[at : at + 16] = self._read_register(first + n, 16)
        return bytes(image)

    def _read_register(self, register: int, size: int) -> bytes:
        cell = (ctypes.c_uint8 * size)()
        error = self.library.gil.uc_reg_read(self.handle, register, ctypes.byref(cell))
        check(error, f"uc_reg_read {register}")
        return bytes(cell)

    def write_msr(self, msr: int, value: int) -> None:
        """Write a model-specific register."""
        pair = (c_uint64 * 2)(msr, value)
        check(
            self.library.gil.uc_reg_write(self.handle, UC_X86_REG_MSR, ctypes.byref(pair)),
            f"write of MSR {msr:#x}",
        )

    def hook(
        self,
        kind: int,
        callback: Any,
        *,
        user: int = 0,
        instruction: int = 0,
        addresses: tuple[int, int] = _EVERYWHERE,
    ) -> int:
        """Call ``callback``, a ctypes function or an address, for every event of ``kind``.

        Returns what ``unhook`` takes. ``addresses`` bounds it, first and last: physical ones for
        events of memory. What is translated already knows nothing of it. A memory hook
        of any kind makes stores to the pages it covers 45 times slower
        (shown by test_a_store_through_an_nx_alias_is_stale_until_the_tlb_is_flushed).
        """
        self._kept[id(callback)] = callback
        handle = c_void_p()
        address = callback if isinstance(callback, int) else ctypes.cast(callback, c_void_p)
        check(
            self.library.gil.uc_hook_add(
                self.handle, ctypes.byref(handle), kind, address, user, *addresses, instruction
            ),
            f"uc_hook_add {kind}",
        )
        assert handle.value is not None
        return handle.value

    def unhook(self, hook: int) -> None:
        """End what ``hook`` returned, outside a run; the callback is kept, as ever."""
        check(self.library.gil.uc_hook_del(self.handle, hook), "uc_hook_del")

    def keep(self, *objects: object) -> None:
        """Keep what hooks point to alive until ``close``."""
        self._kept.update((id(one), one) for one in objects)

    # Beyond the API: each of these may fail, and has a fallback

    def find_cpu(self) -> int | None:
        """Find the CPU object of the engine."""
        get_cpu = self.library.internal("qemu_get_cpu", c_void_p, c_void_p, c_int)
        return None if get_cpu is None else get_cpu(self.handle, _CPU_INDEX)

    def find_live_state(self) -> int | None:
        """Find the CPU state in place: the bytes that a fresh context is a copy of."""
        cpu = self.find_cpu()
        if cpu is None or self.library.version != KNOWN_VERSION:
            return None
        state = c_void_p.from_address(cpu + _ENV_POINTER).value
        if state is None:
            return None
        check(self.library.gil.uc_context_save(self.handle, self.context), "uc_context_save")
        copy = ctypes.string_at(self.context + CONTEXT_HEADER_BYTES, STATE_SIZE_BYTES)
        return state if ctypes.string_at(state, STATE_SIZE_BYTES) == copy else None

    def find_exit_flag(self) -> int | None:
        """Find the byte that keeps stop tests out of the middle of instructions.

        Its place is read off the library's own code: ``mov (%rdi),%rsi; cmpb $0,disp32(%rsi)``.
        The byte after it says that the engine is initialised.
        """
        function = self.library.address(_EXIT_CHECK)
        if function is None or platform.machine() != "x86_64":
            return None
        code = ctypes.string_at(function, 14)
        if code[7:9] != b"\x80\xbe" or code[13] != 0:
            return None
        flag = self.handle + int.from_bytes(code[9:13], "little")
        return flag if ctypes.string_at(flag, 2) == b"\x00\x01" else None


# Native stubs: what runs between the engine and Python, or instead of Python

_BLOCK_STUB: Final = bytes.fromhex(
    "48ff09"  # dec qword [rcx]          the budget
    "7807"  # js stop
    "80791000"  # cmp byte [rcx+16], 0   the kick
    "7501"  # jne stop
    "c3"  # ret
    "ff6108"  # stop: jmp [rcx+8]        uc_emu_stop, rdi already holds its argument
)

_WATCH_STUB: Final = bytes.fromhex(
    "4c8b4128"  # mov r8, [rcx+40]       how many cells
    "4c8d4930"  # lea r9, [rcx+48]       the first
    "49ffc8"  # next: dec r8
    "7816"  # js clean
    "498b01488b00"  # mov rax, [r9]; mov rax, [rax]
    "49334110"  # xor rax, [r9+16]       what it must be
    "49234108"  # and rax, [r9+8]        as far as it matters
    "7515"  # jne trip
    "4983c118"  # add r9, 24
    "ebe5"  # jmp next
    "488931"  # clean: mov [rcx], rsi    the instruction that comes now
    "488b4110488b00"  # mov rax, [rcx+16]; mov rax, [rax]
    "48894108"  # mov [rcx+8], rax       the budget, which blocks and traps take from
    "c3"  # ret
    "c6412001"  # trip: mov byte [rcx+32], 1
    "ff6118"  # jmp [rcx+24]             uc_emu_stop
)


@cache
def native_stubs() -> tuple[int, int, int] | None:
    """Make the stubs of blocks, interrupts and watched words executable.

    Returns their addresses, which live as long as the process; None on a host they are not made
    for.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page[: len(_BLOCK_STUB)] = _BLOCK_STUB
    page[64 : 64 + len(_WATCH_STUB)] = _WATCH_STUB
    page[128 : 128 + len(TRAP_STUB)] = TRAP_STUB
    _stub_pages.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return address, address + 128, address + 64


_stub_pages: Final[list[mmap.mmap]] = []


class _SystemSegment(ctypes.Structure):
    _fields_ = (
        ("selector", ctypes.c_uint16),
        ("base", c_uint64),
        ("limit", c_uint32),
        ("flags", c_uint32),
    )


class BlockClock(ctypes.Structure):
    """What both stubs read: 24 bytes."""

    _fields_ = (
        ("budget", c_int64),
        ("stop_function", c_void_p),
        ("kicked", ctypes.c_uint8),
    )


MAX_CELLS: Final = 64


class WatchCell(ctypes.Structure):
    """Eight bytes of the host's memory that ought to stay as they are where ``mask`` is set."""

    _fields_ = (("address", c_uint64), ("mask", c_uint64), ("expected", c_uint64))


class WatchTable(ctypes.Structure):
    """What the stub of watched words reads and writes, before each instruction."""

    _fields_ = (
        ("last_eip", c_uint64),
        ("last_budget", c_int64),
        ("budget_at", c_uint64),
        ("stop_function", c_void_p),
        ("tripped", c_uint64),
        ("count", c_uint64),
        ("cells", WatchCell * MAX_CELLS),
    )


class TrapTable(ctypes.Structure):
    """What the trap stub reads; ``trap_stub.s`` says what each is for."""

    _fields_ = (
        ("handlers", c_void_p * 256),
        ("upcall", c_void_p),
        ("old_exception", c_void_p),
        ("state", c_void_p),
        ("call", c_void_p),
        ("default", c_void_p),
        ("upcall_word", c_void_p),
        ("cpu", c_void_p),
        ("flush_all", c_void_p),
        ("flush_page", c_void_p),
        ("flush_kind", c_uint32),
        ("flush_address", c_uint32),
        ("trail", c_void_p),
        ("trail_next", c_uint64),
        ("call_vector", c_uint32),
        ("nothing_pending", c_uint32),
        ("read_eflags", c_void_p),
        ("clock", c_void_p),
        ("invalidate", c_void_p),
        ("memory", c_void_p),
        ("slot", c_uint64),
        ("hold", c_uint32),
        ("return_call", c_uint32),
        ("traps", c_void_p),
        ("traps_next", c_uint64),
        # Back to ring 3 and within ring 1; in by vector, the upcall last, from ring 3 and ring 1.
        ("ways", c_void_p * (2 + 2 * 257)),
    )

    def __init__(self, clock: int = 0) -> None:
        super().__init__(call_vector=NO_VECTOR, return_call=NO_CALL, clock=clock)
        self.watch_nothing()

    def watch_nothing(self) -> None:
        """Have no upcall be pending."""
        self.upcall_word = ctypes.addressof(self) + TrapTable.nothing_pending.offset


assert TrapTable.upcall.offset == 0x800
assert TrapTable.trail_next.offset == 0x858
assert TrapTable.hold.offset == 0x890
assert TrapTable.traps_next.offset == 0x8A0
assert TrapTable.ways.offset == 0x8A8
