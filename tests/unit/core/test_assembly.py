# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain is put together wholly or not at all, and its end leaves nothing."""

from __future__ import annotations

import pytest

from tests.support.domains import World
from tests.support.domains import world as make_world
from xenlite.abi.x86_32p import DOMID_INVALID, ENOMEM
from xenlite.core.assembly import assemble, take_apart
from xenlite.core.domain import Domain
from xenlite.errors import Refused
from xenlite.machine.processor import NullEngine


def make(world: World, max_vcpus: int) -> Domain:
    return assemble(
        world.machine,
        world.m2p,
        world.peers,
        NullEngine(),
        domid=9,
        name="late",
        max_pages=16,
        max_vcpus=max_vcpus,
    )


@pytest.mark.parametrize("max_vcpus", [1, 4, 32])
def test_a_full_machine_gets_no_part_of_a_domain(max_vcpus: int) -> None:
    with make_world() as world:
        frames = world.machine.frames
        free = sum(owner == DOMID_INVALID for owner in frames.owner)
        hoard = frames.allocate(0, free)
        made = 0
        for _ in range(48):
            before = frames.owner.tobytes()
            try:
                domain = make(world, max_vcpus)
            except Refused as refused:
                error = refused.errno
            else:
                error = 0
                made += 1
                assert world.audit() == []
                take_apart(domain)
            assert error in (0, ENOMEM)
            assert frames.owner.tobytes() == before
            assert list(world.peers) == [0]
            frames.drop_allocation(hoard.pop())
        assert 0 < made < 48


def test_a_domain_is_no_peer_once_it_is_gone() -> None:
    with make_world() as world:
        domain = make(world, 2)
        assert world.peers[9] is domain
        take_apart(domain)
        assert domain.dying
        assert list(world.peers) == [0]
        assert 9 not in set(world.machine.frames.owner)
