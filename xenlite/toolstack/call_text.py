# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a hypercall as C would: arguments by name, commands in words, structures opened.

Names, types and layouts are those of the ABI file, through the generated tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.codec import Structure
from xenlite.abi.x86_32p import (
    ERRNO_NAMES,
    FIELD_NAMES,
    HYPERCALL_ARGS,
    HYPERCALL_NAMES,
    LISTS,
    OPERATIONS,
    SCALAR_SIZES,
    STRUCTURES,
    HYPERVISOR_iret,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xenlite.doors import HypercallRecord, Refusal

    Copies = Sequence[tuple[int, bytes, int]]

_WORD: Final = 0xFFFFFFFF
MOST_SHOWN: Final = 8  # entries of a list
MOST_TEXT: Final = 64  # bytes of a text or of an array
_NAMES: Final[Mapping[str, Mapping[int, str]]] = {
    **FIELD_NAMES,
    "multicall_entry.op": HYPERCALL_NAMES,
}


def call_text(number: int, registers: Sequence[int], copies: Copies = ()) -> str:
    """Write a hypercall; ``copies`` are what its pointer named (``Record.copies``)."""
    name = HYPERCALL_NAMES.get(number)
    if name is None:
        return f"hypercall {number}({', '.join(map(hex, registers))})"
    selector, commands, structures = OPERATIONS.get(name, ("", {}, {}))
    words = iter(registers)
    command = 0
    arguments = []
    for argument, kind in HYPERCALL_ARGS[name]:
        value = next(words, 0)
        if kind == "uint64":
            value |= next(words, 0) << 32
        names = _NAMES.get(f"{name}({argument})", {})
        if argument == selector:
            command, names = value, commands
        shown = names.get(value, hex(value))
        if copies and kind.endswith("*") and value == copies[0][0]:
            target = structures.get(command, "") if kind == "void*" else kind.removesuffix("*")
            shown = _pointed(target, LISTS.get(name, {}).get(argument), copies)
        arguments.append(f"{argument}={shown}")
    return f"{name}({', '.join(arguments)})"


def call_line(record: HypercallRecord) -> str:
    """Write a remembered hypercall with its result; an iret goes elsewhere and has none."""
    call = call_text(record.number, record.arguments)
    if record.number == HYPERVISOR_iret:
        return call
    return f"{call} = {'not finished' if record.result is None else result_text(record.result)}"


def refused_line(refusal: Refusal) -> str:
    """Write a refused hypercall with the rule that it broke, and by what."""
    argument = refusal.argument
    what = hex(argument) if isinstance(argument, int) else argument
    rule = refusal.rule if what is None else f"{refusal.rule} ({what})"
    if refusal.entry is not None:
        rule += f" in entry {refusal.entry}"
    call = call_text(refusal.number, refusal.arguments)
    return f"{call} = {result_text(-refusal.errno & _WORD)}: {rule}"


def result_text(value: int) -> str:
    """Show a result, 32 bits, by its errno's name where it is one."""
    signed = value - (1 << 32) if value >= 1 << 31 else value
    name = ERRNO_NAMES.get(-signed)
    return f"-{name}" if signed < 0 and name is not None else f"{signed:#x}"


def _pointed(target: str, shape: tuple[str, int, str] | None, copies: Copies) -> str:
    """Show what a pointer named: a text, a list, or a structure before and after the call."""
    vaddr, data, length = copies[0]
    if target == "char":
        more = "..." if length > MOST_TEXT else ""
        return f'"{_text(data[:MOST_TEXT])}"{more}'
    if shape is not None:
        return _list(target, data, length, until=shape[2])
    structure = STRUCTURES.get(target)
    if structure is None or len(data) < structure.LAYOUT.size:
        return f"{vaddr:#x}" if structure else _scalar(target, data)
    before = structure.unpack(data)
    if len(copies) == 1 or len(copies[1][1]) < structure.LAYOUT.size:
        return _structure(target, before)
    return _structure(target, before, structure.unpack(copies[1][1]))


def _list(target: str, data: bytes, length: int, until: str) -> str:
    structure = STRUCTURES.get(target)
    size = SCALAR_SIZES[target] if structure is None else structure.LAYOUT.size
    shown = []
    count = length // size
    for at in range(0, len(data) - size + 1, size):
        if structure is None:
            shown.append(_scalar(target, data[at : at + size]))
            continue
        entry = structure.unpack(data, at)
        if until and not getattr(entry, until):
            count = len(shown)
            break
        shown.append(_structure(target, entry))
    more = [f"... {count - MOST_SHOWN} more"] if count > MOST_SHOWN else []
    return f"[{', '.join(shown[:MOST_SHOWN] + more)}]"


def _scalar(target: str, data: bytes) -> str:
    return hex(int.from_bytes(data[: SCALAR_SIZES.get(target, 4)], "little"))


def _structure(name: str, value: Structure, after: Structure | None = None) -> str:
    return "{" + ", ".join(_fields(name, value, after)) + "}"


def _fields(name: str, value: Structure, after: Structure | None) -> Iterator[str]:
    for field in value.__slots__:
        names = _NAMES.get(f"{name}.{field}", {})
        shown = _value(getattr(value, field), names)
        if after is not None and getattr(after, field) != getattr(value, field):
            shown += f" => {_value(getattr(after, field), names)}"
        yield f"{field}={shown}"


def _value(value: object, names: Mapping[int, str]) -> str:
    if isinstance(value, int):
        return names.get(value, hex(value))
    if isinstance(value, Structure):
        return _structure("", value)
    if isinstance(value, tuple):
        return f"[{', '.join(_value(each, names) for each in value[:MOST_SHOWN])}]"
    assert isinstance(value, bytes), value
    return f'"{_text(value[:MOST_TEXT])}"'


def _text(data: bytes) -> str:
    """Show bytes as C would, so that no terminal is moved by them."""
    return repr(data)[2:-1].replace('"', '\\"')
