# SPDX-License-Identifier: GPL-2.0-or-later
"""Dom0's XenStore as its toolstack has it: the server, and a ring for each domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from xenlite.abi.x86_32p import EINVAL
from xenlite.dom0.xenstore.guest import GuestRing
from xenlite.dom0.xenstore.permissions import DOM0_ONLY, Permissions
from xenlite.dom0.xenstore.server import Server
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.view import View
    from xenlite.doors import Link
    from xenlite.errors import PeerError


class StoreNode(NamedTuple):
    """One node that the toolstack writes."""

    path: str
    value: str = ""
    permissions: Permissions = DOM0_ONLY


class XenStore:
    """The store of one host. ``broken`` is told of a domain that breaks its ring; it lives on."""

    def __init__(self, link: Link, broken: Callable[[int, PeerError], None]) -> None:
        self.server = Server(self._join_for_tool, self.release)
        self._link = link
        self._broken = broken
        self._rings: dict[int, GuestRing] = {}

    def introduce(self, domid: int, remote_port: int) -> None:
        """Serve a domain through its ring. Raises Refused where page or port are not offered."""
        broken = partial(self._broken, domid)
        self._rings[domid] = GuestRing(self._link, self.server, domid, remote_port, broken)

    def release(self, domid: int) -> None:
        """Forget a domain, if it was introduced: its ring, its nodes, and all that names it."""
        ring = self._rings.pop(domid, None)
        if ring is not None:
            ring.close()

    def put(self, nodes: Iterable[StoreNode]) -> None:
        """Write nodes, all or none."""

        def write(view: View) -> None:
            for node in nodes:
                view.write(node.path, node.value.encode(errors="surrogateescape"))
                view.set_permissions(node.path, node.permissions, ())

        self.server.act_as_tool(write)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove what there is of these nodes, with all below them."""

        def remove(view: View) -> None:
            for path in paths:
                if view.exists(path):
                    view.remove(path)

        self.server.act_as_tool(remove)

    def audit(self) -> list[str]:
        """Recount everything; return what differs."""
        return self.server.audit()

    def _join_for_tool(self, domid: int, remote_port: int) -> None:
        try:
            self.introduce(domid, remote_port)
        except Refused as refused:
            raise Refused(EINVAL, "xenstore.bad-introduction", domid) from refused
