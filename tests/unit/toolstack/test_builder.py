# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a domain: what the kernel finds, and that nothing is left of one that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import cast

import pytest

from tests.support.kernel_file import KernelFile, Load, based_at
from tests.support.store import named
from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSPC,
    EPERM,
    FLAT_RING1_CS,
    FLAT_RING1_SS,
    SharedInfo,
    StartInfo,
)
from xenlite.dom0.console import OUT
from xenlite.dom0.xenstore.store import XenStore
from xenlite.doors import Control, Link
from xenlite.errors import ConfigError, PeerError, Refused
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.builder import BuiltDomain, build, hypercall_page
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.image import KernelImage, parse_kernel
from xenlite.toolstack.lifecycle import Guest

HOST_MEMORY = 64 << 20
PAGE = 4096
KERNEL = based_at(0xC0000000, hypercall_page=0xC0101000)


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    machine = Hypervisor(HOST_MEMORY)
    yield machine
    machine.close()


def config(**changes: object) -> DomainConfig:
    values: dict[str, object] = {
        "name": "d",
        "kernel": Path("k"),
        "kernel_name": "k",
        "memory_mib": 8,
        "maxmem_mib": 8,
        "cmdline": "a=1 b",
    }
    return DomainConfig(**{**values, **changes})  # type: ignore[arg-type]


class Built:
    """A domain that was built, and a way to look into it."""

    def __init__(self, hypervisor: Hypervisor, kernel: KernelFile, ramdisk: bytes = b"") -> None:
        self.control = hypervisor.control()
        self.image: KernelImage = parse_kernel(kernel.build(), "k")
        self.domain: BuiltDomain = build(self.control, config(), self.image, ramdisk, ExitStack())

    def read(self, vaddr: int, size: int) -> bytes:
        return self.control.read_virtual(self.domain.domid, 0, vaddr, size)

    def page(self, pfn: int) -> bytes:
        return self.read(self.domain.layout.vaddr(pfn), PAGE)

    def mfn(self, pfn: int) -> int:
        maddr = self.control.translate(self.domain.domid, 0, self.domain.layout.vaddr(pfn))
        assert maddr is not None
        return maddr >> 12

    def start_info(self) -> StartInfo:
        return StartInfo.unpack(self.page(self.domain.layout.start_info))


def test_start_info_tells_the_kernel_where_everything_is(hypervisor: Hypervisor) -> None:
    built = Built(hypervisor, KERNEL, ramdisk=b"r" * 5000)
    layout, info = built.domain.layout, built.start_info()
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_32p"
    assert info.nr_pages == 2048
    shared_info_mfn = built.control.info(built.domain.domid).shared_info_mfn
    assert info.shared_info == shared_info_mfn << 12
    assert info.flags == 0
    assert info.store_mfn == built.mfn(layout.store)
    assert info.store_evtchn == built.domain.store_port
    words = built.page(layout.start_info)[52:60]
    assert int.from_bytes(words[:4], "little") == built.mfn(layout.console)
    assert int.from_bytes(words[4:], "little") == built.domain.console_port
    assert info.pt_base == layout.vaddr(layout.l3)
    assert info.nr_pt_frames == len(layout.page_tables)
    assert info.mfn_list == layout.vaddr(layout.p2m)
    assert (info.mod_start, info.mod_len) == (layout.vaddr(layout.ramdisk), 5000)
    assert built.read(info.mod_start, 5001) == b"r" * 5000 + b"\0"
    assert info.cmd_line.rstrip(b"\0") == b"a=1 b"
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (layout.p2m, layout.p2m_pages)


def test_events_start_masked_on_every_vcpu(hypervisor: Hypervisor) -> None:
    built = Built(hypervisor, KERNEL)
    mfn = built.start_info().shared_info >> 12
    shared_info = SharedInfo.unpack(built.control.read_frame(built.domain.domid, mfn, 0, PAGE))
    assert {vcpu.evtchn_upcall_mask for vcpu in shared_info.vcpu_info} == {1}


def test_shares_and_limits_are_those_of_the_configuration(hypervisor: Hypervisor) -> None:
    control = hypervisor.control()
    wanted = config(cpu_weight=512, cap=50, max_event_channels=3)
    domid = build(control, wanted, parse_kernel(KERNEL.build(), "k"), b"", ExitStack()).domid
    account = hypervisor.scheduler.account(domid)
    assert (account.weight, account.cap) == (512, 50)
    assert control.alloc_unbound(domid, 0) == 3
    with pytest.raises(Refused) as refused:
        control.alloc_unbound(domid, 0)
    assert refused.value.errno == ENOSPC


@pytest.mark.parametrize(("weight", "cap"), [(0, 0), (65536, 0), (256, -1), (256, 201)])
def test_shares_out_of_bounds_are_refused(hypervisor: Hypervisor, weight: int, cap: int) -> None:
    control = hypervisor.control()
    domid = control.create_domain("d", max_pages=1, max_vcpus=2)
    control.set_scheduling(domid, weight=1, cap=200)
    with pytest.raises(Refused) as refused:
        control.set_scheduling(domid, weight=weight, cap=cap)
    assert refused.value.errno == EINVAL
    account = hypervisor.scheduler.account(domid)
    assert (account.weight, account.cap) == (1, 200)


@pytest.mark.parametrize("port", [0, 1024])
def test_a_port_limit_out_of_bounds_is_refused(hypervisor: Hypervisor, port: int) -> None:
    control = hypervisor.control()
    domid = control.create_domain("d", max_pages=1, max_vcpus=1)
    with pytest.raises(Refused) as refused:
        control.set_max_port(domid, port)
    assert refused.value.errno == EINVAL
    assert control.alloc_unbound(domid, 0) == 1


def test_without_a_ramdisk_there_is_no_module(hypervisor: Hypervisor) -> None:
    info = Built(hypervisor, KERNEL).start_info()
    assert (info.mod_start, info.mod_len) == (0, 0)


def test_the_p2m_list_and_the_page_tables_agree(hypervisor: Hypervisor) -> None:
    built = Built(hypervisor, KERNEL)
    layout = built.domain.layout
    raw = built.read(layout.vaddr(layout.p2m), layout.nr_pages * 4)
    p2m = [int.from_bytes(raw[n : n + 4], "little") for n in range(0, len(raw), 4)]
    assert len(set(p2m)) == layout.nr_pages
    assert [built.mfn(pfn) for pfn in range(layout.mapped_pages)] == p2m[: layout.mapped_pages]
    m2p = hypervisor.machine.frames.m2p
    assert [m2p[mfn] for mfn in p2m] == list(range(layout.nr_pages))
    assert built.control.translate(built.domain.domid, 0, layout.end) is None


def test_the_first_vcpu_stands_at_the_entry(hypervisor: Hypervisor) -> None:
    built = Built(hypervisor, KERNEL)
    registers = built.control.registers(built.domain.domid, 0)
    layout = built.domain.layout
    expected = {
        "eip": 0xC0100000,
        "esi": layout.vaddr(layout.start_info),
        "esp": layout.vaddr(layout.boot_stack) + PAGE,
        "cs": FLAT_RING1_CS,
        "ss": FLAT_RING1_SS,
        "ds": FLAT_RING1_SS,
        "es": FLAT_RING1_SS,
        "fs": FLAT_RING1_SS,
        "gs": FLAT_RING1_SS,
        **dict.fromkeys(("eax", "ebx", "ecx", "edx", "edi", "ebp"), 0),
    }
    assert {name: registers[name] for name in expected} == expected
    assert registers["eflags"] & 0x200


def test_the_kernel_is_loaded_and_the_hypercall_page_written_over_it(
    hypervisor: Hypervisor,
) -> None:
    built = Built(hypervisor, KERNEL)
    assert built.read(0xC0100000, PAGE) == b"\xf4" * PAGE
    assert built.read(0xC0101000, PAGE) == hypercall_page()
    assert built.read(0xC0102000, PAGE) == bytes(PAGE)
    assert built.read(0xC0000000, PAGE) == bytes(PAGE)


def test_segments_that_share_a_page_leave_each_other_alone(hypervisor: Hypervisor) -> None:
    kernel = KernelFile(
        loads=(Load(0x100000, b"first", 0x1234), Load(0x101234, b"second", 0x10)),
        entry=0x100000,
    )
    swapped = KernelFile(loads=kernel.loads[::-1], entry=0x100000)
    for one in (kernel, swapped):
        built = Built(hypervisor, one)
        assert built.read(0x100000, 5) == b"first"
        assert built.read(0x101230, 12) == bytes(4) + b"second" + bytes(2)


def test_stubs_trap_and_iret_leaves_for_good() -> None:
    page = hypercall_page()
    assert len(page) == PAGE
    assert page[:8] == b"\xb8\0\0\0\0\xcd\x82\xc3"
    assert page[127 * 32 :][:8] == b"\xb8\x7f\0\0\0\xcd\x82\xc3"
    assert page[23 * 32 :][:9] == b"\x50\xb8\x17\0\0\0\xcd\x82\xcc"


def test_a_machine_too_small_is_named_with_its_mend(hypervisor: Hypervisor) -> None:
    before = state(hypervisor)
    large = config(memory_mib=128, maxmem_mib=128)
    image = parse_kernel(KERNEL.build(), "k")
    with ExitStack() as undo, pytest.raises(ConfigError, match="--host-memory gives it more"):
        build(hypervisor.control(), large, image, b"", undo)
    assert state(hypervisor) == before


# -- nothing is left of a domain that failed ------------------------------------------------------


def state(hypervisor: Hypervisor) -> dict[str, object]:
    """Return all that a failed build could have changed."""
    frames = hypervisor.machine.frames
    dom0 = hypervisor.domains[0]
    return {
        "domains": hypervisor.control().domains(),
        "owners": Counter(frames.owner),
        "references": sum(frames.refs),
        "types": sum(frames.type_count),
        "pinned": set(frames.pinned),
        "named frames": sum(pfn != 0xFFFFFFFF for pfn in frames.m2p),
        "ports": [dom0.events.channel(port) for port in range(1024)],
        "audit": hypervisor.control().audit(),
    }


class FailsAt:
    """A door that works until its ``at``-th call, which is refused; calls to undo always work."""

    UNDO = frozenset({"destroy_domain", "unmap_grant", "close", "info"})

    def __init__(self, door: object, steps: list[str], at: int | None) -> None:
        self._door = door
        self._steps = steps
        self._at = at

    def __getattr__(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self._door, name)
        if name in self.UNDO:
            return method

        def step(*arguments: object, **keywords: object) -> object:
            if len(self._steps) == self._at:
                self._steps.append(name)
                raise Refused(EPERM, "test.refused", name)
            self._steps.append(name)
            return method(*arguments, **keywords)

        return step


def start(hypervisor: Hypervisor, kernel: Path, at: int | None) -> tuple[Guest, list[str]]:
    """Start a guest whose ``at``-th step fails; return it and the steps that were taken."""
    steps: list[str] = []
    control = cast("Control", FailsAt(hypervisor.control(), steps, at))
    link = cast("Link", FailsAt(hypervisor.link(0), steps, at))
    guest = Guest(config(kernel=kernel, memory_mib=4, maxmem_mib=4))

    def broken(error: PeerError) -> None:
        raise AssertionError(error)

    store = XenStore(link, lambda _domid, error: broken(error))
    with suppress(Refused):
        guest.start(control, link, store, sink=lambda _domid, _data: None, broken=broken)
    if guest.domain is None:
        assert store.audit() == []
        assert not store.server.domains
        assert named(store.server) == {0}
    return guest, steps


def test_every_step_that_fails_leaves_nothing_behind(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(KERNEL.build())
    before = state(hypervisor)
    assert before["audit"] == []
    guest, steps = start(hypervisor, kernel, at=None)
    assert {"create_domain", "populate", "pin_l3", "seed_grant", "bind_interdomain"} <= set(steps)
    assert steps[-1] == "unpause"
    guest.stop()
    assert state(hypervisor) == before
    # One M2P entry, or one page written, fails as another does: take the first and last of each.
    runs = [n for n, name in enumerate(steps) if n in (0, len(steps) - 1) or name != steps[n - 1]]
    lasts = [n - 1 for n in runs[1:]]
    for at in sorted({*runs, *lasts}):
        guest, taken = start(hypervisor, kernel, at)
        assert guest.domain is None
        assert len(taken) == at + 1
        assert state(hypervisor) == before, f"left behind by a failing {taken[-1]} (step {at})"


def test_a_guest_starts_and_stops_again_and_again(hypervisor: Hypervisor, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(KERNEL.build())
    before = state(hypervisor)
    guest, _ = start(hypervisor, kernel, at=None)
    link = hypervisor.link(0)
    store = XenStore(link, lambda _domid, _error: None)
    for _ in range(10):
        guest.stop()
        guest.start(
            hypervisor.control(),
            link,
            store,
            sink=lambda _domid, _data: None,
            broken=lambda _error: None,
        )
    guest.stop()
    assert state(hypervisor) == before
    assert (store.audit(), named(store.server)) == ([], {0})


def test_output_reaches_the_console_and_the_last_of_it_when_the_guest_stops(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(KERNEL.build())
    output: list[tuple[int, bytes]] = []
    guest = Guest(config(kernel=kernel))
    control, link = hypervisor.control(), hypervisor.link(0)
    domain = guest.start(
        control,
        link,
        XenStore(link, lambda _domid, _error: None),
        sink=lambda domid, data: output.append((domid, data)),
        broken=lambda _error: None,
    )
    console = domain.layout.vaddr(domain.layout.console)
    maddr = control.translate(domain.domid, 0, console)
    assert maddr is not None
    control.write_frame(domain.domid, maddr >> 12, OUT.data, b"bye")
    control.write_frame(domain.domid, maddr >> 12, OUT.prod, b"\3\0\0\0")
    guest.stop()
    assert output == [(domain.domid, b"bye")]
