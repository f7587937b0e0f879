# SPDX-License-Identifier: GPL-2.0-or-later
"""grant_table_op: the table by which a domain offers its pages (public/grant_table.h).

Its layout is version 1, which every guest knows. Operations that have a status field return 0 and
say there what became of them; the structure must be writable before anything happens.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    SIZEOF_GNTTAB_GET_VERSION,
    SIZEOF_GNTTAB_QUERY_SIZE,
    SIZEOF_GNTTAB_SET_VERSION,
    SIZEOF_GNTTAB_SETUP_TABLE,
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabGetVersion,
    GNTTABOP_get_version,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    HYPERVISOR_grant_table_op,
)
from xenlite.errors import Refused
from xenlite.hypercalls.grant_maps import GrantMapCalls
from xenlite.hypercalls.restart import Handler, NoteRefusal

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.grant import GrantTable

_FRAME_SIZE: Final = 4  # bytes of a frame number
_VERSION: Final = 1
_OTHER_VERSION: Final = 2
_SIGN: Final = 1 << 31
_STATUS: Final = {
    ESRCH: GNTST_bad_domain,
    EPERM: GNTST_permission_denied,
    EFAULT: GNTST_bad_virt_addr,
}


class GrantCalls:
    """The grant table hypercall of one domain; ``note`` hears what a status field refuses."""

    def __init__(self, domain: Domain, note: NoteRefusal) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._note = note
        self._operations = {
            GNTTABOP_setup_table: self._setup_table,
            GNTTABOP_query_size: self._query_size,
            GNTTABOP_set_version: self._set_version,
            GNTTABOP_get_version: self._get_version,
            **GrantMapCalls(domain, note).operations(),
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {HYPERVISOR_grant_table_op: self.grant_table_op}

    def grant_table_op(self, command: int, argument: int, count: int, _1: int, _2: int) -> int:
        """Do one operation on the structure at ``argument``, or on a list of them."""
        if count & _SIGN:
            raise Refused(EINVAL, "grants.count", count)
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(ENOSYS, "grants.command", command)
        operation(argument, count)
        return 0

    def _setup_table(self, argument: int, count: int) -> None:
        _check_single(count)
        copy = self._guest_memory.read(argument, SIZEOF_GNTTAB_SETUP_TABLE)
        asked = GnttabSetupTable.unpack(copy)
        self._guest_memory.check_range(asked.frame_list, asked.nr_frames * _FRAME_SIZE)
        self._guest_memory.check_writable(argument, SIZEOF_GNTTAB_SETUP_TABLE)
        status = GNTST_okay
        try:
            table = self._table_of(asked.dom)
            table.check_size(asked.nr_frames)
            self._guest_memory.check_writable(asked.frame_list, asked.nr_frames * _FRAME_SIZE)
            table.grow(asked.nr_frames)
            frames = table.mfns[: asked.nr_frames]
            self._guest_memory.write(asked.frame_list, pack(f"<{len(frames)}I", *frames))
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_setup_table, argument)
        self._guest_memory.write(argument, asked.replace(status=status).pack())

    def _query_size(self, argument: int, count: int) -> None:
        _check_single(count)
        copy = self._guest_memory.read(argument, SIZEOF_GNTTAB_QUERY_SIZE)
        asked = GnttabQuerySize.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_GNTTAB_QUERY_SIZE)
        try:
            table = self._table_of(asked.dom)
            answer = asked.replace(
                nr_frames=len(table.mfns), max_nr_frames=table.max_frames, status=GNTST_okay
            )
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_query_size, argument)
            answer = asked.replace(status=status)
        self._guest_memory.write(argument, answer.pack())

    def _set_version(self, argument: int, _count: int) -> None:
        """Keep version 1, and say so in any case; as Xen where version 2 is switched off."""
        copy = self._guest_memory.read(argument, SIZEOF_GNTTAB_SET_VERSION)
        version = GnttabSetVersion.unpack(copy).version
        self._guest_memory.write(argument, GnttabSetVersion(_VERSION).pack())
        if version == _OTHER_VERSION:
            raise Refused(ENOSYS, "grants.version-2", version)
        if version != _VERSION:
            raise Refused(EINVAL, "grants.no-such-version", version)

    def _get_version(self, argument: int, _count: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_GNTTAB_GET_VERSION)
        asked = GnttabGetVersion.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_GNTTAB_GET_VERSION)
        self._table_of(asked.dom)
        self._guest_memory.write(argument, asked.replace(version=_VERSION).pack())

    # -- common -------------------------------------------------------------------------------

    def _table_of(self, domid: int) -> GrantTable:
        """Return the table of the domain itself; another's needs privilege."""
        if domid in (DOMID_SELF, self._domain.domid):
            return self._domain.grants
        peer = self._domain.peers.get(domid)
        if peer is None:
            raise Refused(ESRCH, "grants.no-such-domain", domid)
        if not self._domain.is_privileged:
            raise Refused(EPERM, "grants.foreign-domain", domid)
        return peer.grants

    def _status_of(self, refused: Refused, command: int, argument: int) -> int:
        self._note(HYPERVISOR_grant_table_op, (command, argument, 1, 0, 0), refused)
        return _STATUS.get(refused.errno, GNTST_general_error)


def _check_single(count: int) -> None:
    if count != 1:
        raise Refused(EINVAL, "grants.one-at-a-time", count)
