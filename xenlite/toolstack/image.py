# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a kernel: the bytes of a file in, a ``KernelImage`` out, or one clear ConfigError.

The file is hostile until proved otherwise: ``packed``, ``elf`` and ``claims`` answer for its
structure, and addresses are unbounded integers until they have been found here to lie between the
kernel's base and the hypervisor's hole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import HYPERVISOR_VIRT_START, PAGE_SIZE
from xenlite.toolstack.claims import read_claims
from xenlite.toolstack.elf import PT_LOAD, ElfFile
from xenlite.toolstack.packed import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.toolstack.claims import Claims
    from xenlite.toolstack.elf import Program

_PF_ANY: Final = 7  # readable, writable or executable


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of the kernel: ``data`` at ``vaddr``, zeros from there up to ``size`` bytes.

    ``flags`` are the rights that the file gives it (PF_X, PF_W, PF_R); Xen maps all read-write.
    """

    vaddr: int
    data: memoryview
    size: int
    flags: int = _PF_ANY

    @property
    def end(self) -> int:
        """Return the first address behind the segment."""
        return self.vaddr + self.size


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel that can be built into a domain. All addresses are virtual.

    Page 0 of the domain is at ``virt_base``; the kernel occupies [start, end).
    """

    segments: tuple[Segment, ...]
    entry: int
    virt_base: int
    start: int
    end: int
    hypercall_page: int | None
    extended_cr3: bool
    guest_os: str
    guest_version: str
    features: frozenset[str]


def parse_kernel(data: bytes, name: str) -> KernelImage:
    """Read a kernel from the bytes of file ``name``, packed or not."""
    elf = ElfFile(unpack(data, name), name)
    programs = elf.programs()
    return _place(elf, programs, read_claims(elf, programs))


def _place(elf: ElfFile, programs: list[Program], claims: Claims) -> KernelImage:
    virt_base, shift = _base(elf, claims)
    segments = tuple(_segments(elf, programs, virt_base, shift))
    if not segments:
        raise elf.fault("nothing to load: no PT_LOAD segment")
    start = min(segment.vaddr for segment in segments)
    end = max(segment.end for segment in segments)
    entry = elf.entry if claims.entry is None else claims.entry
    if not start <= entry < end:
        raise elf.fault(f"entry point {entry:#x} is outside the kernel, {_span(start, end)}")
    page = claims.hypercall_page
    if page is not None and (page % PAGE_SIZE or not start <= page <= end - PAGE_SIZE):
        raise elf.fault(f"hypercall page {page:#x} is not a page of {_span(start, end)}")
    return KernelImage(
        segments=segments,
        entry=entry,
        virt_base=virt_base,
        start=start,
        end=end,
        hypercall_page=page,
        extended_cr3=claims.has_extended_cr3,
        guest_os=claims.guest_os,
        guest_version=claims.guest_version,
        features=claims.features,
    )


def _base(elf: ElfFile, claims: Claims) -> tuple[int, int]:
    """Return where page 0 goes, and what turns a segment's physical address into a virtual one."""
    if claims.paddr_offset is not None and claims.virt_base is None:
        raise elf.fault("gives PADDR_OFFSET without VIRT_BASE")
    virt_base = claims.virt_base or 0
    if virt_base % PAGE_SIZE:
        raise elf.fault(f"VIRT_BASE {virt_base:#x} is not on a page boundary")
    low = claims.hv_start_low
    if low is not None and low > HYPERVISOR_VIRT_START:
        raise elf.fault(
            f"needs the addresses up to HV_START_LOW {low:#x};"
            f" the hypervisor begins at {HYPERVISOR_VIRT_START:#x}"
        )
    if claims.paddr_offset is not None:
        return virt_base, virt_base - claims.paddr_offset
    # Kernels older than the notes gave virtual addresses where physical ones belong.
    return virt_base, 0 if claims.is_legacy else virt_base


def _segments(
    elf: ElfFile, programs: list[Program], virt_base: int, shift: int
) -> Iterator[Segment]:
    stored = memoryview(elf.data)
    for program in programs:
        if program.kind != PT_LOAD or not program.flags & _PF_ANY or not program.size:
            continue
        if program.file_size > program.size:
            raise elf.fault(
                f"a segment has {program.file_size:#x} bytes in the file, {program.size:#x} in all"
            )
        elf.check_inside("a segment", program.offset, program.file_size)
        vaddr = program.paddr + shift
        if vaddr < virt_base or vaddr + program.size > HYPERVISOR_VIRT_START:
            raise elf.fault(
                f"a segment at {_span(vaddr, vaddr + program.size)} is not between VIRT_BASE"
                f" {virt_base:#x} and the hypervisor at {HYPERVISOR_VIRT_START:#x}"
            )
        data = stored[program.offset : program.offset + program.file_size]
        yield Segment(vaddr, data, program.size, program.flags)


def _span(start: int, end: int) -> str:
    return f"{start:#x}-{end:#x}"
