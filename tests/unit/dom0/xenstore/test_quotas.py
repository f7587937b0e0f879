# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's limits hold whichever way it comes, and Dom0's tools have none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.store import Client, home, new_server, refused
from xenlite.abi.x86_32p import XS_TRANSACTION_END, XS_WATCH
from xenlite.dom0.xenstore.quota import Quotas
from xenlite.dom0.xenstore.server import Server

PER_DIRECTORY = 50


class Store:
    def __init__(self) -> None:
        self.server: Server = new_server()
        self.tool = Client(self.server, 0)
        self.one, self.two = Client(self.server, 1), Client(self.server, 2)
        for domid in (1, 2):
            home(self.tool, domid)

    @property
    def nodes(self) -> int:
        return self.server.tree.usage(1).nodes


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    assert made.server.audit() == []


def node(n: int) -> str:
    return f"{n // PER_DIRECTORY}/{n % PER_DIRECTORY}"


def fill(client: Client, tx: int = 0) -> None:
    """Make nodes until one is refused."""
    with refused("ENOSPC"):
        for n in range(2000):
            client.write(node(n), tx=tx)


def test_the_limits_are_those_of_xens_own_store() -> None:
    assert Quotas() == Quotas(
        nodes=1000,
        node_size=2048,
        permissions=5,
        watches=128,
        transactions=10,
        transaction_nodes=1024,
        outstanding=20,
        memory=2_621_440,
        unread=1 << 20,
    )


def test_the_thousand_and_first_node_is_refused(store: Store) -> None:
    fill(store.one)
    assert store.nodes == 1000
    store.one.rm("0/0")
    store.one.write("0/again")
    with refused("ENOSPC"):
        store.one.mkdir("more")
    store.one.write("0/again", b"values still change")
    store.two.write("x")


def test_nodes_are_counted_within_a_transaction(store: Store) -> None:
    tx = store.one.begin()
    fill(store.one, tx)
    assert store.nodes == 1
    store.one.commit(tx)
    assert store.nodes == 1000


def test_what_others_made_meanwhile_counts_at_the_end(store: Store) -> None:
    store.one.mkdir("a")
    store.one.mkdir("b")
    first, second = store.one.begin(), store.one.begin()
    for n in range(600):
        store.one.write(f"a/{node(n)}", tx=first)
        store.one.write(f"b/{node(n)}", tx=second)
    store.one.commit(first)
    with refused("ENOSPC"):
        store.one.commit(second)
    assert store.nodes == 3 + 600 + 12
    with refused("ENOENT"):
        store.one.ask(XS_TRANSACTION_END, b"F", tx=second)


def test_removing_and_making_in_one_transaction_is_free(store: Store) -> None:
    fill(store.one)
    tx = store.one.begin()
    store.one.rm("0", tx)
    for n in range(PER_DIRECTORY):
        store.one.write(node(n), tx=tx)
    store.one.commit(tx)
    assert store.nodes == 1000


def test_each_pays_for_its_own_nodes_in_anothers_tree(store: Store) -> None:
    store.one.chmod("/local/domain/1", "b1")
    store.two.write("/local/domain/1/twos/x")
    assert store.nodes == 1
    assert store.server.tree.usage(2).nodes == 3
    store.one.write("/local/domain/1/ones")
    store.one.rm("twos")
    assert (store.nodes, store.server.tree.usage(2).nodes) == (2, 1)


def test_nobody_grows_another_beyond_its_limit(store: Store) -> None:
    quotas = Quotas(memory=3000)
    server = new_server(quotas)
    tool = Client(server, 0)
    one, two = Client(server, 1), Client(server, 2)
    path = home(tool, 1)
    one.write("a")
    one.chmod("a", "n1", "b2")
    one.write("b", b"x" * 1900)
    with refused("ENOMEM"):
        two.write(f"{path}/a", b"x" * 1900)
    assert one.read("a") == b""
    assert server.audit() == []


def test_the_size_of_a_node_counts_value_names_and_permissions(store: Store) -> None:
    store.one.write("x", b"v" * 2000)
    with refused("ENOSPC"):
        store.one.write("x", b"v" * 2040)
    with refused("ENOSPC"):
        for n in range(300):
            store.one.mkdir(f"d/{n:08}")
    assert 200 < len(store.one.directory("d")) < 250
    store.tool.write("/local/domain/1/x", b"v" * 4000)


def test_permissions_are_limited(store: Store) -> None:
    entries = ["n1", "r2", "r0", "r1", "w2"]
    store.one.chmod("/local/domain/1", *entries)
    with refused("ENOSPC"):
        store.one.chmod("/local/domain/1", *entries, "r0")
    store.tool.chmod("/local/domain/1", *entries, "r0")


def test_watches_are_limited(store: Store) -> None:
    for n in range(128):
        store.one.watch("a", str(n))
    with refused("E2BIG"):
        store.one.watch("b")
    store.two.watch("a")
    for n in range(200):
        store.tool.watch("/a", str(n))


def test_transactions_are_limited(store: Store) -> None:
    opened = [store.one.begin() for _ in range(10)]
    with refused("ENOSPC"):
        store.one.begin()
    store.one.abort(opened[3])
    store.one.begin()
    store.two.begin()
    assert all(store.tool.begin() for _ in range(20))


def test_a_transaction_looks_at_no_more_than_its_nodes(store: Store) -> None:
    tx = store.one.begin()
    for n in range(1022):  # the home, which judges them, is one more
        with refused("ENOENT"):
            store.one.read(f"nothing-{n}", tx)
    store.one.write("nothing-0", tx=tx)
    with refused("ENOENT"):
        store.one.read("the-last", tx)
    with refused("ENOSPC"):
        store.one.read("one-more", tx)
    assert store.one.read("/local/domain/1", tx) == b""


def test_memory_is_limited_over_nodes_watches_and_transactions() -> None:
    server = new_server(Quotas(memory=20_000))
    tool, one = Client(server, 0), Client(server, 1)
    home(tool, 1)
    with refused("ENOMEM"):
        for n in range(100):
            one.write(str(n), b"x" * 2000)
    one.rm("0")
    one.rm("1")
    with refused("ENOMEM"):
        for n in range(100):
            one.ask(XS_WATCH, b"x", b"%d" % n + b"x" * 1000)
    one.rm("2")
    tx = one.begin()
    with refused("ENOMEM"):
        for n in range(100):
            one.write(f"t{n}", b"x" * 900, tx)
    one.abort(tx)
    one.write("3", b"smaller")
    assert server.audit() == []
    assert server.tree.usage(1).size_bytes + one.connection.kept_bytes() <= 20_000
