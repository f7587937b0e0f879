# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID shows what the CPU does, and Xen where Xen is to be seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bare_machine import DATA, BareMachine
from xenlite.machine.cpuid import (
    EXTENDED_ECX,
    EXTENDED_EDX,
    LEAF1_ECX,
    LEAF1_EDX,
    LEAF7_EBX,
    cpuid,
)
from xenlite.machine.trap import EAX, EBX, ECX, EDX, ESI

STOP = 0x82
BY_FEATURE: dict[str, str] = {
    "fpu": "fld1; fcomi st(0), st(0); fstp st(0)",
    "tsc": "rdtsc",
    "cx8": "cmpxchg8b qword ptr [esi]",
    "cmov": "cmove eax, ebx",
    "clflush": "clflush byte ptr [esi]",
    "mmx": "paddb mm0, mm1; emms",
    "fxsr": "fxsave [esi]; fxrstor [esi]",
    "sse": "addps xmm0, xmm1",
    "sse2": "addpd xmm0, xmm1",
    "sse3": "haddps xmm0, xmm1",
    "pclmulqdq": "pclmulqdq xmm0, xmm1, 0",
    "ssse3": "pabsb xmm0, xmm1",
    "sse4_1": "pminsd xmm0, xmm1",
    "sse4_2": "crc32 eax, ebx",
    "movbe": "movbe eax, dword ptr [esi]",
    "popcnt": "popcnt eax, ebx",
    "aes": "aesenc xmm0, xmm1",
    "rdrand": "rdrand eax",
    "bmi1": "andn eax, ebx, ecx; tzcnt eax, ebx",
    "bmi2": "pdep eax, ebx, ecx",
    "rdtscp": "rdtscp",
    "lahf": "lahf",
    "abm": "lzcnt eax, ebx",
}
NOT_INSTRUCTIONS = {
    "msr": "RDMSR is emulated by the hypervisor",
    "pae": "the tables of every test",
    "nx": "test_an_nx_page_is_not_executable",
    "erms": "a promise of speed",
    "hypervisor": "what this is",
}


@pytest.fixture(scope="module")
def guest() -> Iterator[BareMachine]:
    machine = BareMachine("live")
    yield machine
    machine.close()


def test_each_feature_shown_is_proven() -> None:
    shown = {*LEAF1_EDX, *LEAF1_ECX, *LEAF7_EBX, *EXTENDED_EDX, *EXTENDED_ECX}
    assert shown == {*BY_FEATURE, *NOT_INSTRUCTIONS}


@pytest.mark.parametrize("feature", BY_FEATURE)
@pytest.mark.parametrize("ring", [1, 3])
def test_a_shown_feature_executes(guest: BareMachine, feature: str, ring: int) -> None:
    guest.enter_ring(ring)
    guest.regs[ESI] = DATA
    traps = guest.run_code(f"{BY_FEATURE[feature]}; int 0x82")
    assert [trap.vector for trap in traps] == [STOP]


def test_the_guest_sees_these_answers(guest: BareMachine) -> None:
    guest.on_cpuid = cpuid
    for leaf in (0, 1, 7, 0x40000000, 0x40000001, 0x80000001, 0x80000002):
        guest.run_code(f"mov eax, {leaf:#x}; xor ecx, ecx; cpuid; int 0x82")
        regs = guest.regs
        assert (regs[EAX], regs[EBX], regs[ECX], regs[EDX]) == cpuid(leaf, 0)


def test_xens_signature_stands_at_the_first_hypervisor_leaf() -> None:
    highest, *words = cpuid(0x40000000, 0)
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"XenVMMXenVMM"
    assert highest == 0x40000002
    assert cpuid(0x40000001, 0)[0] >> 16 == 4
    assert cpuid(0x40000002, 0)[0] == 1


def test_the_vendor_and_the_brand_read_as_text() -> None:
    _, ebx, ecx, edx = cpuid(0, 0)
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)) == b"GenuineIntel"
    brand = b"".join(
        word.to_bytes(4, "little") for n in (2, 3, 4) for word in cpuid(0x80000000 + n, 0)
    )
    assert brand.rstrip(b"\0") == b"xenlite virtual processor"


@pytest.mark.parametrize(
    ("leaf", "subleaf"), [(3, 0), (7, 1), (8, 0), (0x40000003, 0), (0x80000009, 0), (0xC0000000, 0)]
)
def test_a_leaf_that_is_not_there_is_zero(leaf: int, subleaf: int) -> None:
    assert cpuid(leaf, subleaf) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("leaf", "register", "bit"),
    [
        (1, 3, 3), (1, 3, 9), (1, 3, 11), (1, 3, 12), (1, 3, 13), (1, 3, 16),
        (1, 2, 3), (1, 2, 26), (1, 2, 27), (1, 2, 28),
        (7, 1, 0), (7, 1, 5), (7, 1, 7), (7, 1, 20),
        (0x80000001, 3, 11), (0x80000001, 3, 29),
    ],
)  # fmt: skip
def test_what_a_guest_cannot_use_is_hidden(leaf: int, register: int, bit: int) -> None:
    assert not cpuid(leaf, 0)[register] >> bit & 1
