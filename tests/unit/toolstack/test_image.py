# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import gzip
import lzma
import zlib
from dataclasses import replace
from struct import pack, pack_into

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.kernel_file import (
    NOTES,
    SHT_NOTE,
    SHT_PROGBITS,
    KernelFile,
    Load,
    Section,
    based_at,
    note,
    with_features,
    with_notes,
)
from xenlite.abi.x86_32p import (
    XEN_ELFNOTE_ENTRY,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_HV_START_LOW,
    XEN_ELFNOTE_HYPERCALL_PAGE,
    XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_PADDR_OFFSET,
    XEN_ELFNOTE_PAE_MODE,
    XEN_ELFNOTE_SUPPORTED_FEATURES,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
)
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.image import parse_kernel
from xenlite.toolstack.packed import MAX_IMAGE_BYTES, unpack

GUEST_STRING = (
    b"GUEST_OS=Old,GUEST_VERSION=1.3,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,"
    b"ELF_PADDR_OFFSET=0xC0000000,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],LOADER=generic,"
    b"FEATURES=pae_pgdir_above_4gb\0"
)
NOTES_WITHOUT_PAE = NOTES[: -len(note(XEN_ELFNOTE_PAE_MODE, "yes"))]


def refusal(data: bytes) -> str:
    """Return the one line with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_kernel(data, "vmlinux")
    (fault,) = caught.value.faults
    line = str(fault)
    assert line.startswith("vmlinux: ")
    assert "\n" not in line
    return line.removeprefix("vmlinux: ")


# -- what a kernel says about itself --------------------------------------------------------------


def test_a_kernel_without_a_base_is_loaded_at_its_physical_addresses() -> None:
    image = parse_kernel(KernelFile().build(), "k")
    assert image.virt_base == 0
    assert (image.start, image.end, image.entry) == (0x100000, 0x103000, 0x100000)
    (segment,) = image.segments
    assert (segment.vaddr, bytes(segment.data[:2]), segment.size) == (0x100000, b"\xf4\xf4", 0x3000)
    assert image.hypercall_page is None
    assert image.guest_os == "test"


def test_virt_base_and_paddr_offset_move_the_segments() -> None:
    physical = based_at(0xC0000000).build()
    assert parse_kernel(physical, "k").start == 0xC0100000
    virtual = replace(
        with_notes(
            note(XEN_ELFNOTE_VIRT_BASE, 0xC0000000), note(XEN_ELFNOTE_PADDR_OFFSET, 0xC0000000)
        ),
        loads=(Load(0xC0000000, bytes(64)),),
        entry=0xC0000000,
    )
    assert parse_kernel(virtual.build(), "k").start == 0xC0000000


def test_the_entry_note_outranks_the_elf_header() -> None:
    kernel = with_notes(note(XEN_ELFNOTE_ENTRY, 0x100010))
    assert parse_kernel(kernel.build(), "k").entry == 0x100010


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_number_may_have_one_two_four_or_eight_bytes(size: int) -> None:
    kernel = with_notes(note(XEN_ELFNOTE_VIRT_BASE, bytes(size)))
    assert parse_kernel(kernel.build(), "k").virt_base == 0


def test_a_number_of_three_bytes_is_refused() -> None:
    assert "VIRT_BASE" in refusal(with_notes(note(XEN_ELFNOTE_VIRT_BASE, b"123")).build())


def test_section_notes_are_read_where_no_segment_has_any() -> None:
    kernel = KernelFile(notes=None, sections=(Section(".note.Xen", SHT_NOTE, NOTES),))
    assert parse_kernel(kernel.build(), "k").guest_os == "test"


def test_segment_notes_outrank_section_notes() -> None:
    other = NOTES.replace(b"test", b"else")
    kernel = KernelFile(sections=(Section(".note.Xen", SHT_NOTE, other),))
    assert parse_kernel(kernel.build(), "k").guest_os == "test"


def test_notes_of_another_owner_do_not_count() -> None:
    alien = note(XEN_ELFNOTE_GUEST_OS, "alien", owner=b"name\0")
    kernel = KernelFile(
        loads=(Load(0xC0000000, bytes(0x4000)),),
        entry=0xC0000000,
        notes=None,
        sections=(
            Section("__xen_guest", SHT_PROGBITS, GUEST_STRING),
            Section(".note.Xen", SHT_NOTE, alien),
        ),
    )
    image = parse_kernel(kernel.build(), "k")
    assert image.guest_os == "Old"
    assert image.guest_version == "1.3"
    assert image.virt_base == 0xC0000000
    assert image.hypercall_page == 0xC0002000
    assert image.extended_cr3
    assert image.features == {"pae_pgdir_above_4gb"}


def test_the_guest_string_takes_physical_addresses_for_virtual_ones_by_default() -> None:
    string = GUEST_STRING.replace(b"ELF_PADDR_OFFSET=0xC0000000,", b"")
    kernel = KernelFile(
        loads=(Load(0xC0000000, bytes(0x4000)),),
        entry=0xC0000000,
        notes=None,
        sections=(Section("__xen_guest", SHT_PROGBITS, string),),
    )
    assert parse_kernel(kernel.build(), "k").start == 0xC0000000


def test_a_last_note_cut_off_by_the_end_of_the_file_is_read_to_its_zero_byte() -> None:
    cut = pack("<III", 4, 12, XEN_ELFNOTE_PAE_MODE) + b"Xen\0yes\0"
    data = KernelFile(notes=NOTES_WITHOUT_PAE + cut).build()
    assert data.endswith(cut)
    assert parse_kernel(data, "k").extended_cr3


@pytest.mark.parametrize(("pae", "extended"), [("yes", True), ("yes,bimodal", False)])
def test_pae_kernels_are_accepted(pae: str, *, extended: bool) -> None:
    kernel = with_notes(note(XEN_ELFNOTE_PAE_MODE, pae), base=NOTES_WITHOUT_PAE)
    assert parse_kernel(kernel.build(), "k").extended_cr3 is extended


def test_features_come_by_name_and_by_bit() -> None:
    bits = note(XEN_ELFNOTE_SUPPORTED_FEATURES, 1 << 4)
    assert parse_kernel(with_notes(bits).build(), "k").features == {"pae_pgdir_above_4gb"}
    named = with_features("!writable_page_tables|pae_pgdir_above_4gb|something_new")
    features = parse_kernel(named.build(), "k").features
    assert features == {"writable_page_tables", "pae_pgdir_above_4gb", "something_new"}


# -- refusals -------------------------------------------------------------------------------------


def test_each_wrong_kind_of_file_is_called_by_its_name() -> None:
    assert refusal(b"") == "empty"
    assert refusal(b"#!/bin/sh\n") == "not an ELF file"
    assert "bzip2" in refusal(b"BZh91AY")
    assert "zstd" in refusal(b"\x28\xb5\x2f\xfd" + bytes(40))
    assert "vmlinux" in refusal(bytes(0x202) + b"HdrS" + bytes(64))
    assert "64-bit" in refusal(KernelFile(elf_class=2).build())
    assert "not for i386" in refusal(KernelFile(machine=40).build())
    assert "not a linked kernel" in refusal(KernelFile(kind=1).build())
    assert refusal(KernelFile().build()[:40]).startswith("cut off")


def test_a_kernel_that_is_silent_about_xen_is_refused() -> None:
    assert "no Xen notes" in refusal(KernelFile(notes=None).build())
    assert "no Xen notes" in refusal(KernelFile(notes=b"").build())


@pytest.mark.parametrize("pae", ["no", "", "maybe"])
def test_a_kernel_without_pae_is_refused(pae: str) -> None:
    assert "PAE" in refusal(
        with_notes(note(XEN_ELFNOTE_PAE_MODE, pae), base=NOTES_WITHOUT_PAE).build()
    )
    assert "PAE" in refusal(KernelFile(notes=NOTES_WITHOUT_PAE).build())


def test_other_versions_and_loaders_are_refused() -> None:
    assert "xen-2.0" in refusal(with_notes(note(XEN_ELFNOTE_XEN_VERSION, "xen-2.0")).build())
    assert "loader" in refusal(with_notes(note(XEN_ELFNOTE_LOADER, "special")).build())
    linux = with_notes(note(XEN_ELFNOTE_LOADER, "x"), note(XEN_ELFNOTE_GUEST_OS, "linux"))
    assert parse_kernel(linux.build(), "k").guest_os == "linux"


@pytest.mark.parametrize("feature", ["auto_translated_physmap", "supervisor_mode_kernel", "dom0"])
def test_demands_that_no_pv_domain_meets_are_refused(feature: str) -> None:
    assert feature in refusal(with_features("!" + feature).build())
    assert parse_kernel(with_features(feature).build(), "k").features == {feature}


def test_an_unknown_demand_is_refused() -> None:
    assert "teleport" in refusal(with_features("!teleport").build())


def test_a_kernel_that_needs_addresses_of_the_hypervisor_is_refused() -> None:
    fits = with_notes(note(XEN_ELFNOTE_HV_START_LOW, 0xF5800000))
    assert parse_kernel(fits.build(), "k").start == 0x100000
    assert "HV_START_LOW" in refusal(with_notes(note(XEN_ELFNOTE_HV_START_LOW, 0xFC000000)).build())


@pytest.mark.parametrize(
    ("loads", "what"),
    [
        ((Load(0x100000, b"x", 0xFFFFFFFF),), "hypervisor at"),
        ((Load(0xF57FF000, b"x", 0x1001),), "hypervisor at"),
        ((Load(0x100000, b"xy", 1),), "in all"),
        ((Load(0x100000, b"x", 0x2000, file_size=0x1000000),), "in all"),
        ((Load(0x100000, b"x", 0x2000000, file_size=0x1000000),), "cut off"),
        ((Load(0x100000, b""),), "nothing to load"),
        ((Load(0x100000, b"x", flags=0),), "nothing to load"),
        ((), "nothing to load"),
        ((Load(0x200000, b"x"),), "entry point"),
    ],
)
def test_impossible_segments_are_refused(loads: tuple[Load, ...], what: str) -> None:
    assert what in refusal(KernelFile(loads=loads).build())


def test_addresses_below_the_base_or_off_a_page_are_refused() -> None:
    low = with_notes(
        note(XEN_ELFNOTE_VIRT_BASE, 0xC0000000), note(XEN_ELFNOTE_PADDR_OFFSET, 0xC0000000)
    )
    assert "VIRT_BASE" in refusal(low.build())
    assert "page boundary" in refusal(with_notes(note(XEN_ELFNOTE_VIRT_BASE, 0x800)).build())
    assert "without VIRT_BASE" in refusal(with_notes(note(XEN_ELFNOTE_PADDR_OFFSET, 0)).build())
    huge = with_notes(note(XEN_ELFNOTE_VIRT_BASE, b"\0" * 7 + b"\xff"))
    assert "hypervisor at" in refusal(huge.build())


@pytest.mark.parametrize("page", [0x100800, 0x0, 0x103000, 0xFFFFF000])
def test_a_hypercall_page_outside_the_kernel_is_refused(page: int) -> None:
    assert "hypercall page" in refusal(with_notes(note(XEN_ELFNOTE_HYPERCALL_PAGE, page)).build())


@pytest.mark.parametrize(
    "header",
    [
        {"phnum": 65535},
        {"phnum": 4096},
        {"phentsize": 0},
        {"phentsize": 31},
        {"phentsize": 65535},
        {"phoff": 0xFFFFFFFF},
        {"phoff": 0xFFFFFFF0, "phnum": 4000},
    ],
)
def test_hostile_program_headers_are_refused(header: dict[str, int]) -> None:
    refusal(KernelFile(header=header).build())


@pytest.mark.parametrize(
    "header",
    [
        {"shnum": 65535},
        {"shentsize": 0},
        {"shentsize": 39},
        {"shoff": 0xFFFFFFFF},
        {"shstrndx": 65535},
        {"shstrndx": 0},
    ],
)
def test_hostile_section_headers_are_refused(header: dict[str, int]) -> None:
    section = Section("__xen_guest", SHT_PROGBITS, GUEST_STRING)
    refusal(KernelFile(notes=None, sections=(section,), header=header).build())


@pytest.mark.parametrize("field", [0, 4])
def test_a_note_of_four_gigabytes_is_refused_or_ends_the_list(field: int) -> None:
    broken = bytearray(note(XEN_ELFNOTE_GUEST_OS, "x"))
    pack_into("<I", broken, field, 0xFFFFFFFF)
    first = KernelFile(notes=bytes(broken)).build()
    last = KernelFile(notes=NOTES + bytes(broken)).build()
    refusal(first)
    if field:
        assert parse_kernel(last, "k").guest_os == "x"
    else:
        assert "name of 4294967295 bytes" in refusal(last)


def test_a_region_of_endless_notes_is_refused() -> None:
    assert "more than" in refusal(KernelFile(notes=NOTES + bytes(12 * 2000)).build())


def test_many_regions_of_large_notes_cost_little() -> None:
    huge = pack("<III", 1 << 20, 0, 0) + bytes(1 << 20)
    kernel = KernelFile(notes=huge, extra_notes=4000).build()
    assert "more than 1024 notes" in refusal(kernel)


@pytest.mark.parametrize("number", [b"zz", b"", b"0x" + b"f" * 4000, b"-5"])
def test_a_broken_number_in_the_guest_string_is_refused(number: bytes) -> None:
    string = GUEST_STRING.replace(b"VIRT_BASE=0xC0000000", b"VIRT_BASE=" + number)
    section = Section("__xen_guest", SHT_PROGBITS, string)
    refusal(KernelFile(notes=None, sections=(section,)).build())


# -- packed kernels -------------------------------------------------------------------------------


def test_gzip_and_xz_are_unpacked() -> None:
    plain = KernelFile().build()
    for packed in (gzip.compress(plain), lzma.compress(plain)):
        assert unpack(packed, "k") == plain
        assert parse_kernel(packed, "k").entry == 0x100000


@pytest.mark.parametrize("pack_it", [gzip.compress, lzma.compress])
def test_a_cut_or_broken_packed_file_is_refused(pack_it: type[bytes]) -> None:
    packed = bytes(pack_it(KernelFile().build()))
    assert "cut off" in refusal(packed[:-30])
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 0xFF
    refusal(bytes(broken))


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    packer = zlib.compressobj(9, wbits=31)
    megabyte = bytes(1 << 20)
    bomb = b"".join(packer.compress(megabyte) for _ in range((MAX_IMAGE_BYTES >> 20) + 8))
    assert "unpacks to more than 128 MiB" in refusal(bomb + packer.flush())


# -- any bytes at all -----------------------------------------------------------------------------

SOUND = [
    KernelFile().build(),
    KernelFile(notes=None, sections=(Section("__xen_guest", SHT_PROGBITS, GUEST_STRING),)).build(),
    KernelFile(notes=None, sections=(Section(".note.Xen", SHT_NOTE, NOTES),)).build(),
]


def answers(data: bytes) -> None:
    """Read a file that may be broken: an image or a ConfigError of one line, nothing else."""
    faults: tuple[Fault, ...] = ()
    try:
        image = parse_kernel(data, "k")
    except ConfigError as error:
        faults = error.faults
    else:
        assert image.virt_base <= image.start <= image.entry < image.end <= 0xF5800000
        return
    (fault,) = faults
    assert "\n" not in str(fault)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SOUND),
    st.lists(
        st.tuples(st.integers(0, 1 << 16), st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x1000])),
        min_size=1,
        max_size=4,
    ),
)
def test_words_overwritten_anywhere_give_an_image_or_one_line(
    data: bytes, changes: list[tuple[int, int]]
) -> None:
    broken = bytearray(data)
    tables = [*range(0, 0x180, 2), *range(len(data) - 0x300, len(data) - 4, 4)]
    for place, value in changes:
        pack_into("<I", broken, tables[place % len(tables)], value)
    answers(bytes(broken))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SOUND), st.integers(0, 1 << 16))
def test_a_file_cut_anywhere_gives_an_image_or_one_line(data: bytes, place: int) -> None:
    answers(data[: place % len(data)])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x7fELF\1\1", b"\x1f\x8b", b"\xfd7zXZ\0"]))
def test_random_bytes_give_one_line(data: bytes, magic: bytes) -> None:
    answers(magic + data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_notes_give_an_image_or_one_line(notes: bytes) -> None:
    answers(KernelFile(notes=NOTES + notes).build())
