# SPDX-License-Identifier: GPL-2.0-or-later
"""Throw requests at a XenStore server, half right and half wrong, from two guests and a tool.

What must hold after each: no exception but PeerError, which ends that client alone; an answer to
every whole request; each guest within its quotas. And every so often a full recount.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.support.store import Client
from xenlite.abi import x86_32p as x
from xenlite.abi.x86_32p import EINVAL, XENSTORE_PAYLOAD_MAX, XS_ERROR, XSD_SOCKMSG_TX_ID
from xenlite.dom0.xenstore.permissions import Access, Permission
from xenlite.dom0.xenstore.quota import Quotas
from xenlite.dom0.xenstore.server import Server
from xenlite.dom0.xenstore.tree import Usage
from xenlite.dom0.xenstore.view import View
from xenlite.dom0.xenstore.wire import Message
from xenlite.errors import PeerError, Refused

GUESTS = (1, 2)
# Small, so that random requests come to them.
QUOTAS = Quotas(
    nodes=40, node_size=300, watches=4, transactions=3, transaction_nodes=30, memory=6000
)
AUDIT_EVERY = 16
_NAMES = [b"a", b"b", b"c", b"data", b"x" * 40]
_TOPS = [b"", b"", b"", b"/local/domain/1/", b"/local/domain/2/", b"/shared/", b"/shared/", b"/"]
_ODD = [
    b"",
    b"/",
    b"//",
    b"/a/",
    b"@introduceDomain",
    b"@releaseDomain",
    b"\xff",
    b"/" + b"l" * 3100,
]
_ENTRIES = [b"n0\0", b"n1\0", b"n2\0", b"r0\0", b"b1\0", b"b2\0", b"w3\0"]
# Each once, and more often what makes states to meet.
_OFTEN = [x.XS_WRITE, x.XS_TRANSACTION_START, x.XS_TRANSACTION_END, x.XS_RM, x.XS_WATCH]
_REQUESTS = [*x.XS_NAMES, *3 * _OFTEN]
_WORDS = [
    b"",
    b"T",
    b"F",
    b"0",
    b"1",
    b"2",
    b"9",
    b"99999999999",
    b"n0",
    b"n1",
    b"r2",
    b"b1",
    b"q3",
]


class Step(NamedTuple):
    """Bytes from a client (0 is the tool), or the end of that domain where there are none.

    ``slot`` puts the request into the client's first, second, ... open transaction; 0 leaves it.
    """

    domid: int
    slot: int
    data: bytes


class Failure(NamedTuple):
    """What went wrong, and the steps that lead there."""

    error: object
    steps: Sequence[Step]

    def __str__(self) -> str:
        lines = "".join(f"  ({step.domid}, {step.slot}, {step.data!r}),\n" for step in self.steps)
        return f"{self.error!r}\n[\n{lines}]"


def generate(seed: int, count: int) -> list[Step]:
    """Make steps: the same for the same seed."""
    rng = random.Random(seed)
    return [_step(rng) for _ in range(count)]


def run(steps: Sequence[Step], results: dict[str, int] | None = None) -> Failure | None:
    """Do the steps on a new store; return the first failure."""
    fuzzed = _Fuzzed()
    for n, step in enumerate(steps):
        try:
            fuzzed.do(step)
            if n % AUDIT_EVERY == 0 or n == len(steps) - 1:
                fuzzed.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            return Failure(error, steps[: n + 1])
    if results is not None:
        for name, times in fuzzed.results.items():
            results[name] = results.get(name, 0) + times
    return None


def minimise(failure: Failure) -> Failure:
    """Leave out every step that the failure does not need."""
    steps = list(failure.steps)
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            shorter = steps[:at] + steps[at + size :]
            again = run(shorter)
            if again is not None and type(again.error) is type(failure.error):
                failure, steps = again, list(again.steps)
            else:
                at += size
        size //= 2
    return failure


def parse(text: str) -> list[Step]:
    """Read the list that a failure prints."""
    return [Step(*step) for step in ast.literal_eval(text[text.index("[\n") :])]


class _Fuzzed:
    def __init__(self) -> None:
        self.server = Server(self._join, self._part, QUOTAS)
        self.results: dict[str, int] = {}
        self._clients: dict[int, Client] = {0: Client(self.server, 0)}
        self._give_home("/shared", 0)
        for domid in GUESTS:
            self._join(domid, 0)

    def do(self, step: Step) -> None:
        """Let a client send bytes; one that breaks the protocol is disconnected."""
        if not step.data:
            if step.domid in self.server.domains:
                self._part(step.domid)
            return
        client = self._client(step.domid)
        before = [self.server.tree.usage(domid) for domid in GUESTS]
        try:
            self.server.receive(client.connection, _placed(step, client))
        except PeerError:
            self._count("cut off")
            self._leave(step.domid)
            return
        for answer in client.answers():
            refused = answer.type == XS_ERROR
            self._count(answer.payload.rstrip(b"\0").decode() if refused else "done")
        if step.domid:
            self._check_growth(before)

    def check(self) -> None:
        """Recount everything, and look at each guest's quotas."""
        wrong = self.server.audit()
        assert not wrong, wrong
        for domid, connection in self.server.domains.items():
            assert connection.watches <= QUOTAS.watches, domid
            assert len(connection.transactions) <= QUOTAS.transactions, domid
        alive = {0, *self.server.domains}
        assert {watch.connection.actor.domid for watch in self.server.watches.all()} <= alive

    def _check_growth(self, before: list[Usage]) -> None:
        """No guest can bring itself or another beyond a quota; a tool may have done so before."""
        for domid, old in zip(GUESTS, before, strict=True):
            new = self.server.tree.usage(domid)
            assert new.nodes <= max(old.nodes, QUOTAS.nodes), (domid, old, new)
            assert new.size_bytes <= max(old.size_bytes, QUOTAS.memory), (domid, old, new)

    def _client(self, domid: int) -> Client:
        if domid and domid not in self.server.domains:
            self._join(domid, 0)
        return self._clients[domid]

    def _leave(self, domid: int) -> None:
        if domid:
            self._part(domid)
            return
        self.server.disconnect(self._clients[0].connection)
        self._clients[0] = Client(self.server, 0)

    def _join(self, domid: int, _port: int) -> None:
        if domid not in GUESTS:
            raise Refused(EINVAL, "fuzz.no-such-domain", domid)
        self._clients[domid] = Client(self.server, domid)
        self._give_home(f"/local/domain/{domid}", domid)

    def _give_home(self, path: str, domid: int) -> None:
        """Make a node of a domain's, of Dom0's one that everybody may write to."""
        access = Access.NONE if domid else Access.BOTH

        def make(view: View) -> None:
            view.mkdir(path)
            view.set_permissions(path, (Permission(domid, access),), ())

        self.server.act_as_tool(make)

    def _part(self, domid: int) -> None:
        self.server.remove_domain(domid)

    def _count(self, what: str) -> None:
        self.results[what] = self.results.get(what, 0) + 1


def _placed(step: Step, client: Client) -> bytes:
    opened = sorted(client.connection.transactions)
    if not 0 < step.slot <= len(opened):
        return step.data
    tx_id = opened[step.slot - 1].to_bytes(4, "little")
    return step.data[:XSD_SOCKMSG_TX_ID] + tx_id + step.data[XSD_SOCKMSG_TX_ID + 4 :]


def _step(rng: random.Random) -> Step:
    domid = rng.choices([0, 1, 2], [1, 5, 4])[0]
    kind = rng.random()
    if kind < 0.01 and domid:
        return Step(domid, 0, b"")
    if kind < 0.02:
        return Step(domid, 0, rng.randbytes(rng.randrange(1, 64)))
    request = rng.choice(_REQUESTS) if kind < 0.97 else rng.getrandbits(32)
    payload = _payload(rng, request) if rng.random() < 0.8 else _any_payload(rng)
    slot = rng.choice([0, 0, 0, 1, 1, 2])
    tx_id = 0 if rng.random() < 0.95 else rng.getrandbits(32)
    message = Message(request, rng.getrandbits(32), tx_id, payload[:XENSTORE_PAYLOAD_MAX])
    return Step(domid, slot, message.encode())


def _payload(rng: random.Random, request: int) -> bytes:
    """Return what such a request should have."""
    domid = b"%d\0" % rng.choice([0, 1, 2, 3])
    path = _path(rng) + b"\0"
    match request:
        case x.XS_WRITE:
            return path + rng.randbytes(rng.choice([0, 1, 20, 200, 400]))
        case x.XS_SET_PERMS:
            return path + b"".join(rng.choice(_ENTRIES) for _ in range(rng.randrange(1, 7)))
        case x.XS_WATCH | x.XS_UNWATCH:
            return path + rng.choice([b"t\0", b"u\0"])
        case x.XS_TRANSACTION_START | x.XS_RESET_WATCHES:
            return b"\0"
        case x.XS_TRANSACTION_END:
            return rng.choice([b"T\0", b"T\0", b"F\0"])
        case x.XS_DIRECTORY_PART:
            return path + rng.choice([b"0\0", b"3\0", b"900\0"])
        case x.XS_INTRODUCE:
            return domid + b"1\x001\0"
        case x.XS_SET_TARGET:
            return domid + b"%d\0" % rng.choice([1, 2])
        case x.XS_GET_DOMAIN_PATH | x.XS_IS_DOMAIN_INTRODUCED | x.XS_RELEASE | x.XS_RESUME:
            return domid
        case _:
            return path


def _any_payload(rng: random.Random) -> bytes:
    parts: list[Callable[[random.Random], bytes]] = [_path, lambda r: r.choice(_WORDS)]
    strings = [rng.choice(parts)(rng) for _ in range(rng.randrange(4))]
    payload = b"".join(text + b"\0" for text in strings)
    if rng.random() < 0.3:
        payload += rng.randbytes(rng.choice([0, 1, 20, 250, 400]))
    return payload[:-1] if rng.random() < 0.1 else payload


def _path(rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return rng.choice(_ODD)
    depth = rng.choice([1, 1, 2, 2, 3, 4, 30])
    return rng.choice(_TOPS) + b"/".join(rng.choice(_NAMES) for _ in range(depth))
