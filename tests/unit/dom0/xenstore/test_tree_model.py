# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree against the simplest model of one, with several transactions open at a time."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.store import Client, StoreError, new_server
from tests.support.store_model import Model, Operation
from xenlite.abi.x86_32p import XS_GET_PERMS

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, max_size=3).map(lambda names: "/" + "/".join(names))
DOMIDS = st.sampled_from([0, 1, 2])
ENTRIES = st.tuples(st.sampled_from("nrwb"), DOMIDS)
OPERATIONS = st.builds(
    Operation,
    st.sampled_from(["read", "list", "perms", "write", "write", "mkdir", "rm", "chmod"]),
    DOMIDS,
    PATHS,
    st.binary(max_size=2),
    st.lists(ENTRIES, min_size=1, max_size=3).map(tuple),
)
# What to do, and in which of a domain's transactions: 0 is none.
STEPS = st.lists(
    st.tuples(st.one_of(OPERATIONS, st.sampled_from(["begin", "commit", "abort"])), DOMIDS),
    max_size=60,
)


class Open(NamedTuple):
    """An open transaction: its number, what it did, and the changes made before it began."""

    tx: int
    done: list[tuple[Operation, object]]
    changes: int


class Compared:
    """A store and the model, which have to agree after every step."""

    def __init__(self) -> None:
        self.server = new_server()
        self.clients = [Client(self.server, domid) for domid in range(3)]
        self.model = Model()
        self.open: dict[int, Open] = {}
        self.changes = 0
        self.step(Operation("chmod", 0, "/", b"", (("b", 0),)), 0)

    def step(self, what: Operation | str, domid: int) -> None:
        if isinstance(what, Operation):
            self._do(what, domid)
        elif what == "begin":
            if domid not in self.open:
                self.open[domid] = Open(self.clients[domid].begin(), [], self.changes)
        elif domid in self.open:
            self._end(what, domid, self.open.pop(domid))
        assert self.server.audit() == []
        assert self._nodes() == self.model.nodes

    def _do(self, operation: Operation, slot: int) -> None:
        """Do it outside of transactions, or in the one its domain has open."""
        opened = self.open.get(operation.domid) if slot else None
        answer = self._ask(operation, opened.tx if opened else 0)
        if opened is not None:
            opened.done.append((operation, answer))
            return
        before = self.model.nodes.copy()
        assert self.model.do(operation) == answer, operation
        self.changes += self.model.nodes != before or operation.kind in ("write", "chmod")

    def _end(self, how: str, domid: int, opened: Open) -> None:
        client = self.clients[domid]
        if how == "abort":
            client.abort(opened.tx)
            return
        refusal: str | None = None
        try:
            client.commit(opened.tx)
        except StoreError as error:
            refusal = error.name
        if refusal is not None:
            assert refusal == "EAGAIN"
            assert self.changes > opened.changes, "nobody has changed anything"
            return
        for operation, answer in opened.done:
            assert self.model.do(operation) == answer, "not as if in one moment"
        self.changes += 1

    def _ask(self, operation: Operation, tx: int) -> object:
        kind, domid, path, value, permissions = operation
        client = self.clients[domid]
        try:
            if kind == "read":
                return client.read(path, tx)
            if kind == "list":
                names = client.directory(path, tx)
                assert len(set(names)) == len(names)
                return frozenset(names)
            if kind == "perms":
                words = client.ask(XS_GET_PERMS, path.encode(), tx=tx).decode().split("\0")[:-1]
                return tuple((word[0], int(word[1:])) for word in words)
            if kind == "write":
                client.write(path, value, tx)
            elif kind == "mkdir":
                client.mkdir(path, tx)
            elif kind == "rm":
                client.rm(path, tx)
            else:
                client.chmod(path, *(f"{letter}{named}" for letter, named in permissions), tx=tx)
        except StoreError as error:
            return error.name
        return None

    def _nodes(self) -> dict[str, tuple[bytes, object]]:
        found: dict[str, tuple[bytes, object]] = {}
        waiting = ["/"]
        while waiting:
            path = waiting.pop()
            perms = self._ask(Operation("perms", 0, path), 0)
            found[path] = (self.clients[0].read(path), perms)
            waiting += (f"{path.rstrip('/')}/{name}" for name in self.clients[0].directory(path))
        return found


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_requests_and_transactions_do_what_the_model_does(
    steps: list[tuple[Operation | str, int]],
) -> None:
    compared = Compared()
    for what, domid in steps:
        compared.step(what, domid)
