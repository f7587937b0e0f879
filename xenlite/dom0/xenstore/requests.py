# SPDX-License-Identifier: GPL-2.0-or-later
"""What each request of the protocol means: one method for each, and the table that names them.

A method decodes, acts through the ``Server`` and returns the payload of the answer; it raises
``Refused`` for anything else. Requests about nodes go by their transaction id, others ignore it.

Source: public/io/xs_wire.h, xsd_sockmsg_type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    E2BIG,
    EACCES,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    XENSTORE_PAYLOAD_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlite.dom0.xenstore import paths, permissions
from xenlite.dom0.xenstore.tree import Overlay
from xenlite.dom0.xenstore.watches import WATCH_OVERHEAD_BYTES
from xenlite.dom0.xenstore.wire import strings
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.connection import Connection
    from xenlite.dom0.xenstore.server import Server
    from xenlite.dom0.xenstore.wire import Message

Handler = Callable[["Connection", "Message"], bytes]
OK: Final = b"OK\0"
CONTROL_HELP: Final = b"check: recount the store\nhelp: this list\nquota: limits of a domain\n\0"
MAX_DIGITS: Final = 10


class Requests:
    """The requests of one store."""

    def __init__(
        self, server: Server, join: Callable[[int, int], None], part: Callable[[int], None]
    ) -> None:
        self._server = server
        self._join = join
        self._part = part
        self._handlers: dict[int, Handler] = {
            XS_DIRECTORY: self._directory,
            XS_READ: self._read,
            XS_GET_PERMS: self._get_perms,
            XS_WATCH: self._watch,
            XS_UNWATCH: self._unwatch,
            XS_TRANSACTION_START: self._transaction_start,
            XS_TRANSACTION_END: self._transaction_end,
            XS_GET_DOMAIN_PATH: self._get_domain_path,
            XS_WRITE: self._write,
            XS_MKDIR: self._mkdir,
            XS_RM: self._rm,
            XS_SET_PERMS: self._set_perms,
            XS_IS_DOMAIN_INTRODUCED: self._is_domain_introduced,
            XS_RESET_WATCHES: self._reset_watches,
            XS_DIRECTORY_PART: self._directory_part,
        }
        self._handlers_for_tools: dict[int, Handler] = {
            XS_CONTROL: self._control,
            XS_INTRODUCE: self._introduce,
            XS_RELEASE: self._release,
            XS_RESUME: self._resume,
            XS_SET_TARGET: self._set_target,
        }

    def answer(self, connection: Connection, request: Message) -> bytes:
        """Return the payload of the answer. Raises Refused."""
        handler = self._handlers.get(request.type)
        if handler is None:
            handler = self._handlers_for_tools.get(request.type)
            if handler is None:
                raise Refused(ENOSYS, "xenstore.no-such-request", request.type)
            if not connection.actor.is_privileged:
                raise Refused(EACCES, "xenstore.for-tools-only", request.type)
        payload = handler(connection, request)
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise Refused(E2BIG, "xenstore.answer-too-long", request.type)
        return payload

    # -- nodes --------------------------------------------------------------------------------

    def _directory(self, connection: Connection, request: Message) -> bytes:
        path = _only_path(connection, request)
        return self._server.act(connection, request.tx_id, lambda view: view.directory(path))

    def _directory_part(self, connection: Connection, request: Message) -> bytes:
        text, offset = strings(request.payload, 2)
        path = paths.resolve(text, connection.actor.domid)
        if not offset.isdigit() or len(offset) > MAX_DIGITS:
            raise Refused(EINVAL, "xenstore.bad-offset")
        return self._server.act(
            connection, request.tx_id, lambda view: view.directory_part(path, int(offset))
        )

    def _read(self, connection: Connection, request: Message) -> bytes:
        path = _only_path(connection, request)
        return self._server.act(connection, request.tx_id, lambda view: view.read(path))

    def _write(self, connection: Connection, request: Message) -> bytes:
        text, nul, value = request.payload.partition(b"\0")
        if not nul:
            raise Refused(EINVAL, "xenstore.malformed-request")
        path = paths.resolve(text, connection.actor.domid)
        self._server.act(connection, request.tx_id, lambda view: view.write(path, value))
        return OK

    def _mkdir(self, connection: Connection, request: Message) -> bytes:
        path = _only_path(connection, request)
        self._server.act(connection, request.tx_id, lambda view: view.mkdir(path))
        return OK

    def _rm(self, connection: Connection, request: Message) -> bytes:
        path = _only_path(connection, request)
        self._server.act(connection, request.tx_id, lambda view: view.remove(path))
        return OK

    def _get_perms(self, connection: Connection, request: Message) -> bytes:
        (text,) = strings(request.payload, 1)
        path = paths.resolve_watched(text, connection.actor.domid)
        found = self._server.act(connection, request.tx_id, lambda view: view.permissions(path))
        return b"".join(str(entry).encode() + b"\0" for entry in found)

    def _set_perms(self, connection: Connection, request: Message) -> bytes:
        text, *entries = strings(request.payload)
        path = paths.resolve_watched(text, connection.actor.domid)
        if not entries:
            raise Refused(EINVAL, "xenstore.malformed-request")
        wanted = permissions.parse(entries)
        known = {0, *self._server.domains}
        self._server.act(
            connection, request.tx_id, lambda view: view.set_permissions(path, wanted, known)
        )
        return OK

    # -- transactions -------------------------------------------------------------------------

    def _transaction_start(self, connection: Connection, request: Message) -> bytes:
        if request.tx_id:
            raise Refused(EBUSY, "xenstore.nested-transaction", request.tx_id)
        quotas = self._server.quotas
        if connection.actor.is_privileged:
            overlay = Overlay(self._server.tree)
        elif len(connection.transactions) >= quotas.transactions:
            raise Refused(ENOSPC, "xenstore.transactions-quota", quotas.transactions)
        else:
            overlay = Overlay(self._server.tree, quotas.transaction_nodes)
        return b"%d\0" % connection.open_transaction(overlay)

    def _transaction_end(self, connection: Connection, request: Message) -> bytes:
        (wish,) = strings(request.payload, 1)
        transaction = self._server.transaction(connection, request.tx_id)
        if wish not in (b"T", b"F"):
            raise Refused(EINVAL, "xenstore.malformed-request")
        del connection.transactions[request.tx_id]
        if wish == b"T":
            self._server.commit(connection, transaction)
        return OK

    # -- watches ------------------------------------------------------------------------------

    def _watch(self, connection: Connection, request: Message) -> bytes:
        text, token = strings(request.payload, 2)
        self._server.check_room(connection, WATCH_OVERHEAD_BYTES + len(request.payload))
        most = None if connection.actor.is_privileged else self._server.quotas.watches
        watch = self._server.watches.add(connection, text, token, most)
        self._server.note_first(watch, watch.path)
        return OK

    def _unwatch(self, connection: Connection, request: Message) -> bytes:
        text, token = strings(request.payload, 2)
        self._server.watches.remove(connection, text, token)
        return OK

    def _reset_watches(self, connection: Connection, _request: Message) -> bytes:
        self._server.reset(connection)
        return OK

    # -- domains ------------------------------------------------------------------------------

    def _get_domain_path(self, _connection: Connection, request: Message) -> bytes:
        return paths.home(_only_domid(request)).encode() + b"\0"

    def _is_domain_introduced(self, _connection: Connection, request: Message) -> bytes:
        return b"T\0" if _only_domid(request) in {0, *self._server.domains} else b"F\0"

    def _introduce(self, _connection: Connection, request: Message) -> bytes:
        """Join a domain's ring, by the grant that the builder makes: the frame is not needed."""
        domid, _frame, port = strings(request.payload, 3)
        number = paths.parse_domid(domid)
        if not number or not port.isdigit() or len(port) > MAX_DIGITS:
            raise Refused(EINVAL, "xenstore.bad-introduction")
        if number in self._server.domains:
            self._server.announce(paths.INTRODUCE_DOMAIN)
        else:
            self._join(number, int(port))
        return OK

    def _release(self, _connection: Connection, request: Message) -> bytes:
        self._part(self._introduced(_only_domid(request)))
        return OK

    def _resume(self, _connection: Connection, request: Message) -> bytes:
        self._server.resume_domain(self._introduced(_only_domid(request)))
        return OK

    def _set_target(self, _connection: Connection, request: Message) -> bytes:
        domid, target = map(paths.parse_domid, strings(request.payload, 2))
        actor = self._server.domains[self._introduced(domid)].actor
        actor.target = self._introduced(target)
        return OK

    def _introduced(self, domid: int) -> int:
        if domid not in self._server.domains:
            raise Refused(ENOENT, "xenstore.not-introduced", domid)
        return domid

    # -- control ------------------------------------------------------------------------------

    def _control(self, _connection: Connection, request: Message) -> bytes:
        command, *arguments = strings(request.payload)
        if arguments or command not in (b"help", b"check", b"quota"):
            raise Refused(EINVAL, "xenstore.no-such-command")
        if command == b"help":
            return CONTROL_HELP
        if command == b"check":
            text = "\n".join(self._server.audit() or ["OK"])
            return text.encode()[: XENSTORE_PAYLOAD_MAX - 1] + b"\0"
        quotas = self._server.quotas
        lines = [f"{name}: {limit}" for name, limit in quotas._asdict().items()]
        return "\n".join(lines).encode() + b"\0"


def _only_path(connection: Connection, request: Message) -> str:
    (text,) = strings(request.payload, 1)
    return paths.resolve(text, connection.actor.domid)


def _only_domid(request: Message) -> int:
    (text,) = strings(request.payload, 1)
    return paths.parse_domid(text)
