# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of a vCPU as gdb numbers them, and the description that tells gdb so.

Registers go by the number that they have in ``REGISTERS``: gdb's own for 32-bit x86, then the
control registers. Values are little-endian bytes.
Source: gdb manual, appendix G.5.4 (i386 features); Intel SDM 1, 10.5.1 (FXSAVE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EINVAL
from xenlite.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenlite.debug_doors import Debugger
    from xenlite.doors import Control


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its size, what gdb shows it as, and where an FXSAVE image has it.

    ``at`` is None for one of ``Control.registers``.
    """

    name: str
    bits: int
    kind: str
    at: int | None = None


_CODE_AND_STACK: Final = {"eip": "code_ptr", "esp": "data_ptr", "ebp": "data_ptr"}
_GENERAL: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip")
_SELECTORS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_CORE: Final = (
    *(Register(name, 32, _CODE_AND_STACK.get(name, "int32")) for name in _GENERAL),
    Register("eflags", 32, "i386_eflags"),
    *(Register(name, 32, "int32") for name in _SELECTORS),
    *(Register(f"st{n}", 80, "i387_ext", 32 + 16 * n) for n in range(8)),
    Register("fctrl", 32, "int", 0),
    Register("fstat", 32, "int", 2),
    Register("ftag", 32, "int", 4),
    Register("fiseg", 32, "int", 12),
    Register("fioff", 32, "int", 8),
    Register("foseg", 32, "int", 20),
    Register("fooff", 32, "int", 16),
    Register("fop", 32, "int", 6),
)
_SSE: Final = (
    *(Register(f"xmm{n}", 128, "vec128", 160 + 16 * n) for n in range(8)),
    Register("mxcsr", 32, "i386_mxcsr", 24),
)
_CONTROL: Final = tuple(Register(name, 32, "int32") for name in ("cr0", "cr2", "cr3", "cr4"))
REGISTERS: Final = (*_CORE, *_SSE, *_CONTROL)

_EFLAGS_BITS: Final = (
    ("", 1), ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9),
    ("DF", 10), ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("ID", 21),
)  # fmt: skip
_MXCSR_BITS: Final = (
    ("IE", 0), ("DE", 1), ("ZE", 2), ("OE", 3), ("UE", 4), ("PE", 5), ("DAZ", 6), ("IM", 7),
    ("DM", 8), ("ZM", 9), ("OM", 10), ("UM", 11), ("PM", 12), ("FZ", 15),
)  # fmt: skip
_VECTORS: Final = (
    '<vector id="v4f" type="ieee_single" count="4"/>'
    '<vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/>'
    '<vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/>'
    '<vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/>'
    '<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>'
    '<field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>'
)
_VALID_TAGS: Final = 4
_FIELD_SIZE: Final = {"fctrl": 2, "fstat": 2, "ftag": 1, "fop": 2, "fiseg": 2, "foseg": 2}


def target_xml() -> bytes:
    """Return the target description."""
    core = _flags("i386_eflags", _EFLAGS_BITS) + _elements(_CORE)
    sse = _VECTORS + _flags("i386_mxcsr", _MXCSR_BITS) + _elements(_SSE)
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
        '<target version="1.0"><architecture>i386</architecture>'
        f'<feature name="org.gnu.gdb.i386.core">{core}</feature>'
        f'<feature name="org.gnu.gdb.i386.sse">{sse}</feature>'
        f'<feature name="org.xenlite.control">{_elements(_CONTROL)}</feature></target>'
    ).encode()


def _flags(name: str, bits: tuple[tuple[str, int], ...]) -> str:
    fields = "".join(f'<field name="{bit}" start="{at}" end="{at}"/>' for bit, at in bits)
    return f'<flags id="{name}" size="4">{fields}</flags>'


def _elements(registers: tuple[Register, ...]) -> str:
    return "".join(
        f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}"'
        f' regnum="{REGISTERS.index(register)}"{_generic(register.name)}/>'
        for register in registers
    )


def _generic(name: str) -> str:
    """Say to LLDB what it knows by another name."""
    names = {"eip": "pc", "esp": "sp", "ebp": "fp", "eflags": "flags"}
    return f' generic="{names[name]}"' if name in names else ""


class Registers:
    """The registers of one vCPU of a held domain, read once."""

    def __init__(self, control: Control, debugger: Debugger, domid: int, vcpu: int) -> None:
        self._debugger = debugger
        self._vcpu = vcpu
        self._words: Mapping[str, int] = control.registers(domid, vcpu)
        if not self._words:
            raise Refused(EINVAL, "debug.vcpu-has-not-run", vcpu)
        self._image: bytes | None = None

    def read(self, number: int) -> bytes:
        """Return a register's bytes. Raises Refused where there is none of that number."""
        register = _register(number)
        if register.at is None:
            return self._words[register.name].to_bytes(4, "little")
        size = register.bits // 8
        if register.name == "ftag":
            return _full_tags(self._fpu()[_VALID_TAGS]).to_bytes(4, "little")
        field = self._fpu()[register.at : register.at + _FIELD_SIZE.get(register.name, size)]
        return field.ljust(size, b"\0")

    def read_all(self) -> bytes:
        """Return those of gdb's ``g`` packet."""
        return b"".join(self.read(number) for number in range(len(REGISTERS)))

    def write(self, number: int, value: bytes) -> None:
        """Set a register; raises Refused for one that can't be set, unless it stays as it is."""
        register = _register(number)
        if len(value) != register.bits // 8:
            raise Refused(EINVAL, "debug.register-size", register.name)
        if value == self.read(number):
            return
        if register.at is None:
            word = int.from_bytes(value, "little")
            self._debugger.write_registers(self._vcpu, {register.name: word})
            self._words = {**self._words, register.name: word}
            return
        image = bytearray(self._fpu())
        if register.name == "ftag":
            tags = int.from_bytes(value, "little")
            image[_VALID_TAGS] = sum(1 << n for n in range(8) if tags >> 2 * n & 3 != 3)
        else:
            size = _FIELD_SIZE.get(register.name, len(value))
            image[register.at : register.at + size] = value[:size]
        self._debugger.write_fpu(self._vcpu, bytes(image))
        self._image = bytes(image)

    def write_all(self, values: bytes) -> None:
        """Set those of gdb's ``G`` packet; what can't be set must be as it is."""
        at = 0
        for number, register in enumerate(REGISTERS):
            size = register.bits // 8
            self.write(number, values[at : at + size])
            at += size

    def _fpu(self) -> bytes:
        if self._image is None:
            self._image = self._debugger.read_fpu(self._vcpu)
        return self._image


def _register(number: int) -> Register:
    if not 0 <= number < len(REGISTERS):
        raise Refused(EINVAL, "debug.no-such-register", number)
    return REGISTERS[number]


def _full_tags(valid: int) -> int:
    """Return the two bits a register of x87 from the one of FXSAVE: 0 in use, 3 empty."""
    return sum(3 << 2 * n for n in range(8) if not valid >> n & 1)
