# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_version and vm_assist, every sub-operation, as a guest sees them (SECURITY A15, A18)."""

from __future__ import annotations

import pytest

from tests.support.guest import boot
from xenlite.abi.x86_32p import (
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    HYPERVISOR_VIRT_START,
    SIZEOF_XEN_CAPABILITIES_INFO,
    SIZEOF_XEN_CHANGESET_INFO,
    SIZEOF_XEN_COMMANDLINE,
    SIZEOF_XEN_COMPILE_INFO,
    SIZEOF_XEN_DOMAIN_HANDLE,
    SIZEOF_XEN_EXTRAVERSION,
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
    VMASST_TYPE_xenlite_fault_address,
    XENFEAT_gnttab_map_avail_bits,
    XENFEAT_highmem_assist,
    XENFEAT_mmu_pt_update_preserve_ad,
    XENFEAT_pae_pgdir_above_4gb,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from xenlite.machine.cpuid import XEN_MAJOR, XEN_MINOR

WORD = 1 << 32
ASK = """
    mov edi, offset answer
    mov ecx, 1100
    mov al, 0xEE
    cld
    rep stosb
    \\before
    mov ebx, \\command
    mov ecx, \\argument
    XEN xen_version
    mov [result], eax
    FINISH 1
.data
result: .long 0
answer: .space 1200
"""


def ask(command: int, argument: str = "offset answer", before: str = "") -> tuple[int, bytes]:
    """Call xen_version; return its result and the buffer, which held 0xEE before."""
    source = ASK.replace("\\command", str(command)).replace("\\argument", argument)
    with boot(source.replace("\\before", before)) as guest:
        assert guest.reason == 1, guest.crash
        return guest.word("result"), guest.bytes_at("answer", 1100)


def test_answers_by_value() -> None:
    assert ask(XENVER_version)[0] == XEN_MAJOR << 16 | XEN_MINOR
    assert ask(XENVER_pagesize)[0] == 4096


@pytest.mark.parametrize(
    ("command", "size", "start"),
    [
        (XENVER_extraversion, SIZEOF_XEN_EXTRAVERSION, b".0-xenlite\0"),
        (XENVER_capabilities, SIZEOF_XEN_CAPABILITIES_INFO, b"xen-3.0-x86_32p\0"),
        (XENVER_compile_info, SIZEOF_XEN_COMPILE_INFO, b"CPython\0"),
        (XENVER_changeset, SIZEOF_XEN_CHANGESET_INFO, b"unavailable\0"),
        (XENVER_commandline, SIZEOF_XEN_COMMANDLINE, b"<denied>\0"),
        (XENVER_guest_handle, SIZEOF_XEN_DOMAIN_HANDLE, bytes(16)),
        (XENVER_platform_parameters, 4, HYPERVISOR_VIRT_START.to_bytes(4, "little")),
    ],
)
def test_a_structure_is_filled_to_its_last_byte_and_not_beyond(
    command: int, size: int, start: bytes
) -> None:
    result, answer = ask(command)
    assert result == 0
    assert answer.startswith(start)
    assert b"\xee" not in answer[:size]
    assert set(answer[size:]) == {0xEE}


def test_features_say_what_there_is() -> None:
    clear = "mov dword ptr [answer], 0\n"
    result, answer = ask(XENVER_get_features, before=clear)
    features = int.from_bytes(answer[4:8], "little")
    assert result == 0
    always = (
        XENFEAT_mmu_pt_update_preserve_ad,
        XENFEAT_highmem_assist,
        XENFEAT_gnttab_map_avail_bits,
    )
    assert features == sum(1 << feature for feature in always)
    enable = clear + "mov ebx, 0\nmov ecx, VMASST_TYPE_pae_extended_cr3\nXEN vm_assist\n"
    _, answer = ask(XENVER_get_features, before=enable)
    assert int.from_bytes(answer[4:8], "little") == features | 1 << XENFEAT_pae_pgdir_above_4gb
    result, answer = ask(XENVER_get_features, before="mov dword ptr [answer], 1\n")
    assert result == WORD - EINVAL


def test_what_is_not_for_guests_or_not_there_is_refused() -> None:
    assert ask(XENVER_build_id)[0] == WORD - EPERM
    for command in (11, 99, 0xFFFFFFFF):
        assert ask(command)[0] == WORD - ENOSYS


@pytest.mark.parametrize("argument", ["0", "0xF57FFFF0", "0xFC000000", "0xFFFFFFF8"])
def test_a_bad_pointer_is_refused(argument: str) -> None:
    for command in (XENVER_capabilities, XENVER_get_features):
        assert ask(command, argument)[0] == WORD - EFAULT


@pytest.mark.parametrize(
    ("command", "kind", "expected"),
    [
        (VMASST_CMD_enable, VMASST_TYPE_4gb_segments, 0),
        (VMASST_CMD_enable, VMASST_TYPE_writable_pagetables, 0),
        (VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3, 0),
        (VMASST_CMD_enable, VMASST_TYPE_xenlite_fault_address, 0),
        (VMASST_CMD_disable, VMASST_TYPE_xenlite_fault_address, 0),
        (VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag, -EINVAL),
        (VMASST_CMD_enable, 6, -EINVAL),
        (VMASST_CMD_enable, 30, -EINVAL),
        (VMASST_CMD_enable, 32, -EINVAL),
        (VMASST_CMD_enable, 0xFFFFFFFF, -EINVAL),
        (2, VMASST_TYPE_4gb_segments, -ENOSYS),
    ],
)
def test_assists(command: int, kind: int, expected: int) -> None:
    source = f"""
        mov ebx, {command}
        mov ecx, {kind}
        XEN vm_assist
        mov [result], eax
        FINISH 1
    .data
    result: .long 9
    """
    with boot(source) as guest:
        assert guest.word("result") == expected % WORD
        enabled = expected == 0 and command == VMASST_CMD_enable
        assert guest.domain.assists == (1 << kind if enabled else 0)
