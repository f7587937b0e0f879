# SPDX-License-Identifier: GPL-2.0-or-later
"""Survive instructions that the engine cannot translate.

The engine's translator calls ``abort()`` where it finds itself inconsistent, and a program in ring
3 can make it so: ``lock bts eax, edx`` is enough, which hardware answers with #UD. That would end
the process, with every domain in it. The guard handles SIGABRT: while an engine runs, and this
thread is in it and not in Python, the engine's own way of raising an exception leaves the
translator (as it does for a page fault on the code), with #UD::

    enter --> watch(state) --> uc_emu_start ... abort() --> SIGABRT --> raise_exception(state, 6)
                                    ^------------- the invalid opcode hook <----------'

Every other abort goes on to whoever handled the signal before. The exception is reported at the
start of the translated block, whose instructions have not run, not at the instruction itself.
tests/unit/machine/test_abort_guard.py shows the abort and both ways.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
import sys
import threading
from ctypes import c_uint64, c_void_p
from functools import cache
from typing import Final

from xenlite.machine.engine import library
from xenlite.machine.trap import VECTOR_UD

# handler(rdi, rsi, rdx): the cells follow the code, rbx points at them
_HANDLER: Final = (
    "488d1d00000000"  # lea rbx, [rip + cells]
    "4989fc4989f54989d6"  # mov r12, rdi; mov r13, rsi; mov r14, rdx
    "4883ec08"  # sub rsp, 8
    "ff5308"  # call [rbx+8]              PyGILState_Check
    "85c0"  # test eax, eax
    "751f"  # jnz not_ours                Python runs: not inside the engine
    "ff5310"  # call [rbx+16]             pthread_self
    "483b4318"  # cmp rax, [rbx+24]
    "7516"  # jne not_ours                another thread's
    "488b3b"  # mov rdi, [rbx]
    "4885ff"  # test rdi, rdi
    "740e"  # jz not_ours                 no engine runs
    "48ff4328"  # inc qword [rbx+40]
    "be06000000"  # mov esi, 6
    "ff5320"  # call [rbx+32]             raise_exception does not come back
    "0f0b"  # ud2
    "4883c408"  # not_ours: add rsp, 8
    "4c89e74c89ee4c89f2"  # mov rdi, r12; mov rsi, r13; mov rdx, r14
    "488b4330"  # mov rax, [rbx+48]
    "4885c0"  # test rax, rax
    "7402"  # jz back
    "ffe0"  # jmp rax                     the handler before us
    "c3"  # back: ret                     to abort(), which ends the process
)
_CELLS_AT: Final = 2048
_LEA_SIZE: Final = 7
_STATE, _THREAD, _COUNT = 0, 3, 5
_SA_NODEFER: Final = 0x40000000
_WORD: Final = 0xFFFFFFFFFFFFFFFF


class _SignalAction(ctypes.Structure):
    """struct sigaction of Linux on x86-64."""

    _fields_ = (
        ("handler", c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", c_void_p),
    )


class AbortGuard:
    """Turns aborts of the engine that runs into invalid opcodes of its guest."""

    def __init__(self, raise_exception: int) -> None:
        code = bytearray(bytes.fromhex(_HANDLER))
        code[3:7] = (_CELLS_AT - _LEA_SIZE).to_bytes(4, "little")
        assert code[code.index(b"\xbe") + 1] == VECTOR_UD
        rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=rights)
        self._page[: len(code)] = bytes(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._cells = (
            memoryview((c_uint64 * 7).from_address(address + _CELLS_AT)).cast("B").cast("Q")
        )
        libc = ctypes.CDLL(None)
        old, new = _SignalAction(), _SignalAction(handler=address, flags=_SA_NODEFER)
        self._cells[1] = _address(ctypes.pythonapi.PyGILState_Check)
        self._cells[2] = _address(libc.pthread_self)
        self._cells[4] = raise_exception
        if libc.sigaction(signal.SIGABRT, None, ctypes.byref(old)):
            raise OSError("sigaction refuses to tell who handles SIGABRT")
        if old.handler not in (None, int(signal.SIG_DFL), int(signal.SIG_IGN)):
            self._cells[6] = old.handler
        if libc.sigaction(signal.SIGABRT, ctypes.byref(new), None):
            raise OSError("sigaction refuses a handler for SIGABRT")

    @property
    def count(self) -> int:
        """Return how many aborts were survived."""
        return self._cells[_COUNT]

    def watch(self, state: int) -> None:
        """Guard the engine whose state is at that host address, run by this thread."""
        self._cells[_THREAD] = threading.get_ident() & _WORD
        self._cells[_STATE] = state

    def rest(self) -> None:
        """Guard nothing."""
        self._cells[_STATE] = 0


@cache
def abort_guard() -> AbortGuard | None:
    """Install the guard, once per process; None on a host that it is not made for."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    raise_exception = library().address("raise_exception_x86_64")
    return None if raise_exception is None else AbortGuard(raise_exception)


def _address(function: object) -> int:
    address = ctypes.cast(function, c_void_p).value  # type: ignore[arg-type] # a foreign function
    assert address is not None
    return address
