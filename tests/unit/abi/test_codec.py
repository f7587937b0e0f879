# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures of the ABI: bytes to values and back."""

import struct
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlite.abi import x86_32p
from xenlite.abi.codec import Structure
from xenlite.abi.x86_32p import (
    SHARED_INFO_VCPU_INFO,
    SIZEOF_START_INFO,
    SIZEOF_VCPU_INFO,
    START_INFO_CONSOLE_DOMU_MFN,
    START_INFO_CONSOLE_MFN,
    START_INFO_NR_PAGES,
    STRUCTURES,
    VCPU_INFO_ARCH_CR2,
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    MmuextOp,
    MmuUpdate,
    SharedInfo,
    StartInfo,
    TrapInfo,
    VcpuGuestContext,
    XenMemoryExchange,
)

every_structure = pytest.mark.parametrize("name", STRUCTURES)


def zeroed(cls: type[Structure]) -> Structure:
    return cls.unpack(bytes(cls.LAYOUT.size))


@every_structure
def test_size_of_a_structure_is_its_layout(name: str) -> None:
    assert STRUCTURES[name].LAYOUT.size == getattr(x86_32p, f"SIZEOF_{name.upper()}")


@every_structure
@settings(max_examples=20)
@given(data=st.data())
def test_packing_undoes_unpacking(name: str, data: st.DataObject) -> None:
    cls = STRUCTURES[name]
    raw = data.draw(st.binary(min_size=cls.LAYOUT.size, max_size=cls.LAYOUT.size))
    value = cls.unpack(raw)

    packed = value.pack()

    assert len(packed) == len(raw)
    assert all(a in (b, 0) for a, b in zip(packed, raw, strict=True)), "only padding is cleared"
    assert cls.unpack(packed) == value


@every_structure
def test_fields_lie_at_their_offsets(name: str) -> None:
    empty = zeroed(STRUCTURES[name])
    for field in empty.__slots__:
        if isinstance(getattr(empty, field), int):
            packed = empty.replace(**{field: 1}).pack()
            offset = getattr(x86_32p, f"{name}_{field}".upper())
            assert packed.index(1) == offset, field


def test_unpack_reads_at_the_offset_given() -> None:
    raw = b"\xee" * 3 + MmuUpdate(ptr=0x1234, val=0x8000000000000067).pack() + b"\xee"
    assert MmuUpdate.unpack(memoryview(raw), 3) == MmuUpdate(0x1234, 0x8000000000000067)


def test_unpack_refuses_a_short_buffer() -> None:
    with pytest.raises(struct.error):
        MmuUpdate.unpack(bytes(20), 5)


def test_pack_refuses_a_value_that_does_not_fit() -> None:
    with pytest.raises(struct.error):
        TrapInfo(vector=256, flags=0, cs=0, address=0).pack()
    with pytest.raises(struct.error):
        MmuUpdate(ptr=-1, val=0).pack()


def test_nested_structures_are_values_of_their_own() -> None:
    raw = bytearray(SharedInfo.LAYOUT.size)
    second = SHARED_INFO_VCPU_INFO + SIZEOF_VCPU_INFO
    raw[second + VCPU_INFO_EVTCHN_UPCALL_MASK] = 1
    struct.pack_into("<I", raw, second + VCPU_INFO_ARCH_CR2, 0xC0DE0000)

    vcpu = SharedInfo.unpack(raw).vcpu_info[1]

    assert (vcpu.evtchn_upcall_mask, vcpu.arch.cr2) == (1, 0xC0DE0000)


def test_an_array_of_another_length_is_refused() -> None:
    context = cast(VcpuGuestContext, zeroed(VcpuGuestContext))
    with pytest.raises(ValueError, match="255 of 256 TrapInfo"):
        context.replace(trap_ctxt=context.trap_ctxt[1:]).pack()
    with pytest.raises(struct.error):
        context.replace(gdt_frames=(0,) * 15).pack()


def test_a_union_shows_one_integer_or_the_chosen_alternative() -> None:
    assert MmuextOp(cmd=4, arg1=0x55, arg2=0).pack() == struct.pack("<3I", 4, 0x55, 0)
    start = cast(StartInfo, zeroed(StartInfo)).replace(console_mfn=7)
    assert start.pack()[START_INFO_CONSOLE_MFN] == 7
    assert START_INFO_CONSOLE_MFN == START_INFO_CONSOLE_DOMU_MFN


def test_strings_are_bytes_padded_with_zeros() -> None:
    start = cast(StartInfo, zeroed(StartInfo)).replace(magic=b"xen-3.0", nr_pages=8192)
    packed = start.pack()
    assert len(packed) == SIZEOF_START_INFO
    assert packed[:START_INFO_NR_PAGES] == b"xen-3.0".ljust(32, b"\0")


def test_a_field_named_like_a_keyword_has_an_underscore() -> None:
    exchange = cast(XenMemoryExchange, zeroed(XenMemoryExchange))
    assert exchange.in_ == exchange.out


def test_a_structure_cannot_be_changed() -> None:
    update = MmuUpdate(1, 2)
    with pytest.raises(AttributeError, match=r"MmuUpdate\.ptr cannot be changed"):
        setattr(update, "ptr", 3)  # noqa: B010 - the type checker would refuse the plain form
    with pytest.raises(AttributeError, match=r"MmuUpdate\.val cannot be deleted"):
        delattr(update, "val")
    assert update == MmuUpdate(1, 2)


def test_replace_leaves_the_original_alone() -> None:
    update = MmuUpdate(1, 2)
    assert update.replace(val=3) == MmuUpdate(1, 3)
    assert update == MmuUpdate(1, 2)


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((1,), {}, "missing or unknown: val"),
        ((1, 2, 3), {}, "too many values"),
        ((1, 2), {"val": 2}, "too many values"),
        ((1, 2), {"vale": 2}, "missing or unknown: vale"),
    ],
)
def test_a_structure_wants_exactly_its_fields(
    args: tuple[int, ...], kwargs: dict[str, int], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        Structure.__init__(MmuUpdate.unpack(bytes(16)), *args, **kwargs)


def test_structures_compare_by_class_and_fields_and_hash_alike() -> None:
    assert MmuUpdate(1, 2) != MmuUpdate(1, 3)
    assert MmuUpdate(1, 2) != (1, 2)
    assert len({MmuUpdate(1, 2), MmuUpdate(1, 2), MmuUpdate(2, 1)}) == 2
    assert repr(MmuUpdate(1, 2)) == "MmuUpdate(ptr=1, val=2)"
