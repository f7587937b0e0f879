# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two doors refuse to the toolstack and to a backend; nothing changes then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from tests.support.guest import BootedGuest, made
from xenlite.abi.x86_32p import FLAT_RING1_CS, FLAT_RING1_SS
from xenlite.doors import GrantMapping, VcpuContext
from xenlite.errors import Refused

NOBODY = 99
SOURCE = "    FINISH 0\n"


@pytest.fixture
def guest() -> Iterator[BootedGuest]:
    with made(SOURCE) as built:
        yield built


def assert_refused(guest: BootedGuest, rule: str, call: Callable[[], object]) -> None:
    frames = guest.hypervisor.machine.frames
    before = (list(frames.refs), list(frames.type_count), guest.control.domains())
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.rule == rule
    assert (list(frames.refs), list(frames.type_count), guest.control.domains()) == before
    assert guest.control.audit() == []


def context(guest: BootedGuest) -> VcpuContext:
    cr3 = guest.domain.current.cr3_mfn
    assert cr3 is not None
    return VcpuContext(cr3_mfn=cr3, eip=0, esp=0, esi=0, cs=FLAT_RING1_CS, ss=FLAT_RING1_SS)


def test_a_domid_is_given_once(guest: BootedGuest) -> None:
    control = guest.control

    def create() -> int:
        return control.create_domain("again", max_pages=1, max_vcpus=1, domid=guest.domid)

    assert_refused(guest, "control.domid-taken", create)


def test_a_frame_that_is_asked_about_must_exist(guest: BootedGuest) -> None:
    beyond = guest.hypervisor.machine.frames.nr_frames
    assert_refused(guest, "control.no-such-frame", lambda: guest.control.frame(beyond))


def test_an_assist_must_exist(guest: BootedGuest) -> None:
    control = guest.control
    assert_refused(guest, "control.unknown-assist", lambda: control.enable_assist(guest.domid, 99))


def test_a_domain_is_not_populated_beyond_its_maximum(guest: BootedGuest) -> None:
    control = guest.control
    assert_refused(guest, "memory.over-maximum", lambda: control.populate(guest.domid, 1))


def test_a_running_vcpu_gets_no_new_context(guest: BootedGuest) -> None:
    control, new = guest.control, context(guest)
    assert_refused(
        guest, "control.vcpu-is-up", lambda: control.set_vcpu_context(guest.domid, 0, new)
    )


def test_a_second_vcpu_gets_no_context(guest: BootedGuest) -> None:
    control, new = guest.control, context(guest)
    domid = control.create_domain("two", max_pages=1, max_vcpus=2)
    assert_refused(
        guest, "control.vcpu-not-current", lambda: control.set_vcpu_context(domid, 1, new)
    )
    control.destroy_domain(domid)


@pytest.mark.parametrize("vcpu", [-1, 1, 7])
def test_only_a_vcpu_that_there_is_can_be_looked_at(guest: BootedGuest, vcpu: int) -> None:
    control = guest.control
    assert_refused(guest, "control.no-such-vcpu", lambda: control.registers(guest.domid, vcpu))


def test_a_domain_must_exist(guest: BootedGuest) -> None:
    assert_refused(guest, "control.no-such-domain", lambda: guest.control.info(NOBODY))


def test_dom0_is_not_paused(guest: BootedGuest) -> None:
    assert_refused(guest, "control.not-dom0", lambda: guest.control.pause(0))


def test_a_frame_must_be_the_domains(guest: BootedGuest) -> None:
    control = guest.control
    xen = guest.hypervisor.machine.frames.m2p_frames[0]
    assert_refused(guest, "frames.not-owned", lambda: control.read_frame(guest.domid, xen, 0, 1))


@pytest.mark.parametrize(("offset", "size"), [(4095, 2), (-1, 1), (0, -1), (4097, 0)])
def test_an_access_stays_inside_its_frame(guest: BootedGuest, offset: int, size: int) -> None:
    control, mfn = guest.control, guest.domain.current.cr3_mfn
    assert mfn is not None
    assert_refused(
        guest,
        "control.outside-frame",
        lambda: control.read_frame(guest.domid, mfn, offset, size),
    )


def test_only_what_was_mapped_is_unmapped(guest: BootedGuest) -> None:
    link = guest.hypervisor.link(0)
    mapping = cast("GrantMapping", object())
    assert_refused(guest, "grants.not-mapped", lambda: link.unmap_grant(mapping))


def test_a_granter_must_exist(guest: BootedGuest) -> None:
    link = guest.hypervisor.link(0)
    assert_refused(guest, "grants.no-such-domain", lambda: link.map_grant(NOBODY, 0, writable=True))
