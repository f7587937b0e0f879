# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a domain: the only step of the toolstack that touches one, and it does so by ``Control``.

Every effect registers its undo on the caller's ExitStack before the next one is tried, so that a
failure anywhere leaves nothing behind (tests/unit/toolstack/test_builder.py fails each in turn).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    ENOMEM,
    FLAT_RING1_CS,
    FLAT_RING1_SS,
    GNTTAB_RESERVED_CONSOLE,
    GNTTAB_RESERVED_XENSTORE,
    HYPERCALL_STUB_COUNT,
    HYPERCALL_STUB_SIZE,
    HYPERCALL_VECTOR,
    MAX_GUEST_CMDLINE,
    PAGE_SIZE,
    SHARED_INFO_VCPU_INFO,
    SIZEOF_START_INFO,
    SIZEOF_VCPU_INFO,
    START_INFO_CMD_LINE,
    START_INFO_CONSOLE_DOMU_EVTCHN,
    START_INFO_CONSOLE_DOMU_MFN,
    START_INFO_FIRST_P2M_PFN,
    START_INFO_FLAGS,
    START_INFO_MAGIC,
    START_INFO_MFN_LIST,
    START_INFO_MOD_LEN,
    START_INFO_MOD_START,
    START_INFO_NR_P2M_FRAMES,
    START_INFO_NR_PAGES,
    START_INFO_NR_PT_FRAMES,
    START_INFO_PT_BASE,
    START_INFO_SHARED_INFO,
    START_INFO_STORE_EVTCHN,
    START_INFO_STORE_MFN,
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    XEN_ABI_NAME,
    XEN_LEGACY_MAX_VCPUS,
    XEN_PAGE_SHIFT,
    HYPERVISOR_iret,
)
from xenlite.doors import VcpuContext
from xenlite.errors import ConfigError, Fault, Refused
from xenlite.toolstack.layout import plan, tables

if TYPE_CHECKING:
    from contextlib import ExitStack

    from xenlite.doors import Control
    from xenlite.toolstack.domain_config import DomainConfig
    from xenlite.toolstack.image import KernelImage
    from xenlite.toolstack.layout import Layout

DOM0: Final = 0
FRAMES_BELOW_4_GIB: Final = 1 << (32 - XEN_PAGE_SHIFT)
_WORD: Final = Struct("<I")


@dataclass(frozen=True, slots=True)
class BuiltDomain:
    """A domain that is ready to run, and still paused; ports are the guest's ends."""

    domid: int
    layout: Layout
    console_port: int
    console_mfn: int
    store_port: int
    store_mfn: int


def build(
    control: Control,
    config: DomainConfig,
    image: KernelImage,
    ramdisk: bytes,
    undo: ExitStack,
) -> BuiltDomain:
    """Make the domain, paused. Raises ConfigError or Refused, after which ``undo`` must be closed.

    Order: everything that can fail for the user's reasons first, then the domain, its memory, the
    ports and grants, and last the page tables, which nobody may write once they are pinned.
    """
    layout = plan(
        image, ramdisk_size=len(ramdisk), nr_pages=config.pages, where=f"domain {config.name!r}"
    )
    domid = control.create_domain(
        config.name, max_pages=config.max_pages, max_vcpus=config.maxvcpus
    )
    undo.callback(control.destroy_domain, domid)
    control.set_scheduling(domid, weight=config.cpu_weight, cap=config.cap)
    control.set_max_port(domid, config.max_event_channels)
    for assist in config.assists:
        control.enable_assist(domid, assist)
    domain = _Building(control, domid, layout, image)
    domain.load(ramdisk)
    store_port = control.alloc_unbound(domid, DOM0)
    console_port = control.alloc_unbound(domid, DOM0)
    control.seed_grant(domid, GNTTAB_RESERVED_CONSOLE, domain.mfns[layout.console], DOM0)
    control.seed_grant(domid, GNTTAB_RESERVED_XENSTORE, domain.mfns[layout.store], DOM0)
    domain.introduce(config.cmdline, store_port, console_port)
    domain.start_on_page_tables()
    console_mfn, store_mfn = domain.mfns[layout.console], domain.mfns[layout.store]
    return BuiltDomain(domid, layout, console_port, console_mfn, store_port, store_mfn)


def hypercall_page() -> bytes:
    """Return the page of stubs that a kernel calls: number n at byte n * 32.

    ``mov $n, %eax; int $0x82; ret``. The one for iret is jumped to, and leaves for good:
    ``push %eax; mov $23, %eax; int $0x82``. Gaps are ``int3``, so that a stray jump is seen.
    """
    trap = bytes((0xCD, HYPERCALL_VECTOR))
    stubs = []
    for number in range(HYPERCALL_STUB_COUNT):
        load = b"\xb8" + _WORD.pack(number)
        stub = b"\x50" + load + trap if number == HYPERVISOR_iret else load + trap + b"\xc3"
        stubs.append(stub.ljust(HYPERCALL_STUB_SIZE, b"\xcc"))
    return b"".join(stubs)


def _populate(control: Control, domid: int, pages: int) -> list[int]:
    try:
        return control.populate(domid, pages)
    except Refused as refused:
        if refused.errno != ENOMEM:
            raise
        what = f"memory: the machine has no {pages} pages left; --host-memory gives it more"
        raise ConfigError(Fault(f"domain {control.info(domid).name!r}", what)) from None


class _Building:
    """One domain while it is being built; frames are zero until something is written."""

    def __init__(self, control: Control, domid: int, layout: Layout, image: KernelImage) -> None:
        self.control = control
        self.domid = domid
        self.layout = layout
        self.image = image
        self.mfns = _populate(control, domid, layout.nr_pages)
        if not image.extended_cr3:
            self._bring_l3_below_4_gib()
        control.set_m2p(domid, self.mfns)

    def _bring_l3_below_4_gib(self) -> None:
        """Swap the L3's frame with a low one: CR3 has 32 bits unless the kernel knows better."""
        mfns, l3 = self.mfns, self.layout.l3
        if mfns[l3] >= FRAMES_BELOW_4_GIB:
            low = min(range(len(mfns)), key=mfns.__getitem__)
            mfns[l3], mfns[low] = mfns[low], mfns[l3]

    def load(self, ramdisk: bytes) -> None:
        """Put kernel, RAM disk, hypercall page and P2M list in place.

        Only what the file holds is written. What lies behind it in a segment is zero because new
        frames are, and must not be wiped: the next segment may begin in the same page.
        """
        layout, image = self.layout, self.image
        for segment in image.segments:
            self._write(segment.vaddr - image.virt_base, segment.data)
        if image.hypercall_page is not None:
            self._write(image.hypercall_page - image.virt_base, hypercall_page())
        self._write(layout.ramdisk << XEN_PAGE_SHIFT, ramdisk)
        p2m = b"".join(map(_WORD.pack, self.mfns))
        self._write(layout.p2m << XEN_PAGE_SHIFT, p2m)

    def introduce(self, cmdline: str, store_port: int, console_port: int) -> None:
        """Fill in start_info, as Xen does for a domain without privileges; mask all events."""
        layout, mfns = self.layout, self.mfns
        shared_info_mfn = self.control.info(self.domid).shared_info_mfn
        for vcpu in range(XEN_LEGACY_MAX_VCPUS):
            mask = SHARED_INFO_VCPU_INFO + vcpu * SIZEOF_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
            self.control.write_frame(self.domid, shared_info_mfn, mask, b"\1")
        words = {
            START_INFO_NR_PAGES: layout.nr_pages,
            START_INFO_SHARED_INFO: shared_info_mfn << XEN_PAGE_SHIFT,
            START_INFO_FLAGS: 0,
            START_INFO_STORE_MFN: mfns[layout.store],
            START_INFO_STORE_EVTCHN: store_port,
            START_INFO_CONSOLE_DOMU_MFN: mfns[layout.console],
            START_INFO_CONSOLE_DOMU_EVTCHN: console_port,
            START_INFO_PT_BASE: layout.vaddr(layout.l3),
            START_INFO_NR_PT_FRAMES: len(layout.page_tables),
            START_INFO_MFN_LIST: layout.vaddr(layout.p2m),
            START_INFO_FIRST_P2M_PFN: layout.p2m,
            START_INFO_NR_P2M_FRAMES: layout.p2m_pages,
        }
        if layout.ramdisk_size:
            words[START_INFO_MOD_START] = layout.vaddr(layout.ramdisk)
            words[START_INFO_MOD_LEN] = layout.ramdisk_size
        info = bytearray(SIZEOF_START_INFO)
        for offset, value in words.items():
            _WORD.pack_into(info, offset, value)
        magic = XEN_ABI_NAME.encode()
        info[START_INFO_MAGIC : START_INFO_MAGIC + len(magic)] = magic
        line = cmdline.encode()[: MAX_GUEST_CMDLINE - 1]
        info[START_INFO_CMD_LINE : START_INFO_CMD_LINE + len(line)] = line
        self._write(layout.start_info << XEN_PAGE_SHIFT, bytes(info))

    def start_on_page_tables(self) -> None:
        """Write, validate and pin the page tables, and stand the first vCPU at the entry."""
        layout, mfns = self.layout, self.mfns
        for pfn, table in tables(layout, mfns):
            self.control.write_frame(self.domid, mfns[pfn], 0, table)
        self.control.pin_l3(self.domid, mfns[layout.l3])
        context = VcpuContext(
            eip=self.image.entry,
            esp=layout.vaddr(layout.boot_stack + 1),
            esi=layout.vaddr(layout.start_info),
            cs=FLAT_RING1_CS,
            ss=FLAT_RING1_SS,
            cr3_mfn=mfns[layout.l3],
        )
        self.control.set_vcpu_context(self.domid, 0, context)

    def _write(self, paddr: int, data: bytes | memoryview) -> None:
        """Write at a pseudo-physical address, page by page."""
        start = 0
        while start < len(data):
            pfn, offset = divmod(paddr + start, PAGE_SIZE)
            size = min(PAGE_SIZE - offset, len(data) - start)
            piece = bytes(data[start : start + size])
            self.control.write_frame(self.domid, self.mfns[pfn], offset, piece)
            start += size
