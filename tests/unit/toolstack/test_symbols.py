# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kernel_file import (
    EXECUTABLE,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    KernelFile,
    Section,
)
from xenlite.toolstack.symbols import Symbols, read_symbols

NOTYPE, OBJECT, FUNC, FILE = 0, 1, 2, 4
ABSOLUTE = 0xFFF1


def with_symbols(*symbols: tuple[str, int, int, int]) -> bytes:
    """Return a kernel with symbols: (name, address, type, section index)."""
    names, table = b"\0", b""
    for name, address, kind, section in symbols:
        table += pack("<IIIBBH", len(names), address, 0, 0x10 | kind, 0, section)
        names += name.encode() + b"\0"
    return KernelFile(
        sections=(
            Section(".text", SHT_PROGBITS, bytes(0x100), vaddr=0x100000, flags=EXECUTABLE),
            Section(".symtab", SHT_SYMTAB, table, link=3),
            Section(".strtab", SHT_STRTAB, names),
        )
    ).build()


def sound() -> bytes:
    return with_symbols(
        ("start", 0x100000, FUNC, 1),
        ("alias", 0x100000, NOTYPE, 1),
        ("page", 0x100040, OBJECT, 1),
        (".Llocal", 0x100020, NOTYPE, 1),
        ("file.c", 0x100030, FILE, ABSOLUTE),
        ("SIZE", 0x100010, NOTYPE, ABSOLUTE),
        ("elsewhere", 0x100018, FUNC, 0),
    )


def test_addresses_are_named_by_the_label_below_them() -> None:
    symbols = read_symbols(sound())
    assert symbols.name(0xFFFFF) is None
    assert symbols.name(0x100000) == "start"
    assert symbols.name(0x10003F) == "start+0x3f"
    assert symbols.name(0x100041) == "page+0x1"
    assert symbols.show(0x100041) == "00100041 <page+0x1>"
    assert symbols.show(0x10) == "00000010"


def test_code_is_what_lies_in_an_executable_section() -> None:
    symbols = read_symbols(sound())
    assert symbols.is_code(0x1000FF)
    assert not symbols.is_code(0x100100)


def test_a_kernel_without_symbols_has_no_names() -> None:
    for data in (KernelFile().build(), b"", b"\x7fELF", sound()[:-60]):
        symbols = read_symbols(data)
        assert symbols.name(0x100000) is None
        assert not symbols.is_code(0x100000)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 16), st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
def test_broken_tables_give_fewer_names_and_nothing_worse(place: int, value: int) -> None:
    broken = bytearray(sound())
    at = place % (len(broken) - 4)
    broken[at : at + 4] = pack("<I", value)
    assert isinstance(read_symbols(bytes(broken)), Symbols)
