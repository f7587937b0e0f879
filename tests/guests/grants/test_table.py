# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest can do to its grant table (SECURITY D6)."""

from __future__ import annotations

import pytest

from tests.support.guest import BootedGuest, boot, made
from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    DOMID_SELF,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_dump_table,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GnttabQuerySize,
    GnttabSetupTable,
)

WORD = 1 << 32
SELF = DOMID_SELF
# Runs operations of a command, a count and a structure of 16 bytes; the result replaces the
# command, and what Xen wrote replaces the structure.
KERNEL = """
    REMAP offset read_only, PTE_RO_DATA
    mov ebp, offset steps
    mov edi, [count]
again:
    mov ebx, [ebp]
    lea ecx, [ebp + 8]
    mov edx, [ebp + 4]
    XEN grant_table_op
    mov [ebp], eax
    add ebp, 24
    dec edi
    jnz again
    \\then
    FINISH 1
.data
count: .long \\count
steps: .long \\steps
.p2align 12
list: .space 4096
read_only: .space 4096
result: .long 0xAAAAAAAA, 0xAAAAAAAA
"""


def kernel(*steps: tuple[int | str, ...], then: str = "") -> str:
    """Write a kernel that does the operations; their words may be labels."""
    words = [str(word) for step in steps for word in (*step, *(0,) * (6 - len(step)))]
    text = KERNEL.replace("\\then", then).replace("\\count", str(len(steps)))
    return text.replace("\\steps", ", ".join(words))


def results(guest: BootedGuest, count: int) -> list[int]:
    """Return the result of each operation, errors as negative numbers."""
    words = [guest.word("steps", 6 * index) for index in range(count)]
    return [word - WORD if word >> 31 else word for word in words]


def structure(guest: BootedGuest, index: int) -> bytes:
    """Return the structure of one operation, as it was left."""
    return guest.bytes_at("steps", 24 * (index + 1))[24 * index + 8 :]


def setup(frames: int, dom: int = SELF, listed: str = "list") -> tuple[int | str, ...]:
    """Make setup_table."""
    return (GNTTABOP_setup_table, 1, dom, frames, 0, listed)


def status_of(*step: int | str) -> int:
    """Do one setup_table; return its status."""
    with boot(kernel(step)) as guest:
        assert results(guest, 1) == [0]
        return GnttabSetupTable.unpack(structure(guest, 0)).status


def test_the_frames_are_listed_and_can_be_mapped_and_written() -> None:
    """The first is the one that the builder wrote entries into."""
    map_second = """
        mov ebx, offset list
        mov ecx, [list + 4]
        mov edx, ecx
        shl ecx, 12
        or ecx, PTE_RW_DATA
        shr edx, 20
        mov esi, UVMF_INVLPG
        mov dword ptr [shutdown_reason], 1
        mov ebx, offset page
        XEN update_va_mapping
        mov [result], eax
        mov dword ptr [page + 8], 0x77777777
    """
    source = kernel(setup(4), then=map_second) + ".p2align 12\npage: .space 4096\n"
    with boot(source) as guest:
        assert guest.reason == 1, guest.crash
        grants = guest.domain.grants
        assert GnttabSetupTable.unpack(structure(guest, 0)).status == GNTST_okay
        assert guest.words("list", 5) == [*grants.mfns, 0]
        assert guest.word("result") == 0
        memory = guest.hypervisor.machine.memory
        assert memory.read((grants.mfns[1] << 12) + 8, 4) == b"wwww"
        assert memory.read(grants.mfns[0] << 12, 16) != bytes(16)


def test_a_table_has_64_frames_at_most() -> None:
    with boot(kernel(setup(64), setup(65), setup(2), (GNTTABOP_query_size, 1, SELF))) as guest:
        assert results(guest, 4) == [0] * 4
        found = [GnttabSetupTable.unpack(structure(guest, index)).status for index in range(3)]
        assert found == [GNTST_okay, GNTST_general_error, GNTST_okay]
        size = GnttabQuerySize.unpack(structure(guest, 3))
        assert (size.nr_frames, size.max_nr_frames, size.status) == (64, 64, GNTST_okay)
        assert len(set(guest.words("list", 64))) == 64


def test_a_refused_table_stays_as_it_was() -> None:
    with boot(kernel(setup(65), setup(3, listed="read_only"))) as guest:
        assert GnttabSetupTable.unpack(structure(guest, 1)).status == GNTST_bad_virt_addr
        assert len(guest.domain.grants.mfns) == 1
        assert guest.rules == ["grants.table-limit", "memory.bad-pointer"]


@pytest.mark.parametrize(
    ("dom", "status"),
    [
        (SELF, GNTST_okay),
        (1, GNTST_okay),
        (0, GNTST_permission_denied),
        (9, GNTST_bad_domain),
        (0x7FF2, GNTST_bad_domain),
    ],
)
def test_only_the_own_table_can_be_had(dom: int, status: int) -> None:
    assert status_of(*setup(1, dom)) == status
    with boot(kernel((GNTTABOP_query_size, 1, dom), (GNTTABOP_get_version, 1, dom))) as guest:
        assert GnttabQuerySize.unpack(structure(guest, 0)).status == status
        errno = {GNTST_okay: 0, GNTST_permission_denied: -EPERM, GNTST_bad_domain: -ESRCH}
        assert results(guest, 2) == [0, errno[status]]


def test_no_frames_is_a_question_without_an_answer() -> None:
    assert status_of(*setup(0, listed="0")) == GNTST_okay


@pytest.mark.parametrize("listed", ["0xF57FFFFC", "0xFFFFFFFC"])
def test_a_list_that_reaches_the_hole_is_refused(listed: str) -> None:
    with boot(kernel(setup(2, listed=listed), setup(0xFFFFFFFF))) as guest:
        assert results(guest, 2) == [-EFAULT, -EFAULT]
        assert len(guest.domain.grants.mfns) == 1


def test_tables_are_set_up_one_at_a_time() -> None:
    two, none, many = (
        (command, count, SELF)
        for command, count in (
            (GNTTABOP_setup_table, 2),
            (GNTTABOP_query_size, 0),
            (GNTTABOP_get_version, WORD - 1),
        )
    )
    with boot(kernel(two, none, many)) as guest:
        assert results(guest, 3) == [-EINVAL] * 3


def test_the_version_is_1_whatever_is_asked_for() -> None:
    versions = (1, 2, 0, 3, WORD - 1)
    steps = [(GNTTABOP_set_version, 1, version) for version in versions]
    with boot(kernel(*steps, (GNTTABOP_get_version, 1, SELF))) as guest:
        assert results(guest, 6) == [0, -ENOSYS, -EINVAL, -EINVAL, -EINVAL, 0]
        assert [guest.word("steps", 6 * index + 2) for index in range(5)] == [1] * 5
        assert guest.word("steps", 6 * 5 + 3) == 1


@pytest.mark.parametrize(
    "command",
    [
        GNTTABOP_dump_table,
        GNTTABOP_get_status_frames,
        99,
        WORD - 1,
    ],
)
def test_what_is_not_there_says_so(command: int) -> None:
    with boot(kernel((command, 1, WORD - 1, WORD - 1, WORD - 1, WORD - 1))) as guest:
        assert results(guest, 1) == [-ENOSYS]
        assert guest.rules == ["grants.command"]


def test_a_structure_that_cannot_be_written_is_refused_before_anything_happens() -> None:
    then = """
        mov ebx, GNTTABOP_setup_table
        mov ecx, offset read_only
        mov edx, 1
        XEN grant_table_op
        mov [result], eax
        mov ebx, GNTTABOP_set_version
        mov ecx, 0xF57FFFFE
        mov edx, 1
        XEN grant_table_op
        mov [result + 4], eax
    """
    with boot(kernel(setup(1), then=then)) as guest:
        assert guest.words("result", 2) == [WORD - EFAULT, WORD - EFAULT]
        assert len(guest.domain.grants.mfns) == 1


def test_a_mapped_table_keeps_its_version_and_grows() -> None:
    console, store = 0, 1
    source = kernel((GNTTABOP_set_version, 1, 2), (GNTTABOP_set_version, 1, 1), setup(8))
    with made(source) as guest:
        link = guest.hypervisor.link(0)
        mappings = [link.map_grant(guest.domid, ref, writable=True) for ref in (console, store)]
        assert guest.run(10)
        assert results(guest, 3) == [-ENOSYS, 0, 0]
        assert len(guest.domain.grants.mfns) == 8
        assert guest.control.audit() == []
        for mapping in mappings:
            link.unmap_grant(mapping)


def test_a_domain_that_dies_with_a_full_table_gives_it_back() -> None:
    with made(kernel(setup(64), then="spin: jmp spin")) as guest:
        free = guest.hypervisor.machine.frames.owner.count(DOMID_INVALID)
        grown = guest.run(10, until=lambda: len(guest.domain.grants.mfns) == 64)
        assert grown
        now = guest.hypervisor.machine.frames.owner.count(DOMID_INVALID)
        assert free - now == 63


@pytest.mark.parametrize("word", [0, SELF, 1, 2, SELF | SELF << 16, WORD - 1])
def test_no_command_on_any_domain_does_harm(word: int) -> None:
    """What each may do is told above; here it only has to end, and to leave the audit content."""
    with boot(kernel(*((command, 1, word, 1, 0, "list") for command in range(65)))) as guest:
        assert guest.reason == 1, guest.crash
        assert all(result <= 0 for result in results(guest, 65))
        assert len(guest.domain.grants.mfns) == 1
