# SPDX-License-Identifier: GPL-2.0-or-later
"""Who hears of what, in which words, when, and that nobody has to be waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.store import Client, home, new_server, refused
from xenlite.abi.x86_32p import XS_READ, XS_UNWATCH, XS_WATCH
from xenlite.dom0.xenstore.quota import Quotas
from xenlite.dom0.xenstore.server import Server
from xenlite.errors import PeerError


class Store:
    def __init__(self) -> None:
        self.server: Server = new_server(Quotas(unread=20_000))
        self.tool = Client(self.server, 0)
        self.one, self.two = Client(self.server, 1), Client(self.server, 2)
        for domid in (1, 2):
            home(self.tool, domid)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    assert made.server.audit() == []


def test_a_watch_fires_once_when_it_is_set(store: Store) -> None:
    store.tool.watch("/nowhere", "tok")
    assert store.tool.news() == [("/nowhere", "tok")]


def test_a_watch_hears_of_its_node_and_all_below_in_the_watchers_words(store: Store) -> None:
    store.one.watch("a", "relative")
    store.one.watch("/local/domain/1/a", "absolute")
    store.one.news()
    for path, shown in [("a", "a"), ("a/b/c", "a/b/c")]:
        store.tool.write(f"/local/domain/1/{path}")
        assert sorted(store.one.news()) == [
            (f"/local/domain/1/{path}", "absolute"),
            (shown, "relative"),
        ]
    store.tool.write("/local/domain/1/ab")
    assert store.one.news() == []


def test_removal_is_told_to_whoever_watched_what_went(store: Store) -> None:
    store.tool.write("/a/b/c/d")
    for path in ("/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/b/x"):
        store.tool.watch(path, path)
    store.tool.news()
    store.tool.rm("/a/b")
    assert sorted(store.tool.news()) == [
        ("/a/b", "/a"),
        ("/a/b", "/a/b"),
        ("/a/b/c", "/a/b/c"),
        ("/a/b/c/d", "/a/b/c/d"),
    ]


def test_changed_permissions_are_news_and_reading_or_making_again_is_not(store: Store) -> None:
    store.tool.write("/a")
    store.tool.watch("/a")
    store.tool.news()
    store.tool.chmod("/a", "n0", "r1")
    assert store.tool.news() == [("/a", "t")]
    store.tool.mkdir("/a")
    store.tool.read("/a")
    store.tool.directory("/a")
    with refused("EACCES"):
        store.one.write("/a")
    assert store.tool.news() == []


def test_the_answer_comes_before_the_events_it_causes(store: Store) -> None:
    store.tool.watch("/a", "t")
    store.tool.reads = False
    before = len(store.tool.events)
    store.tool.send(XS_READ, b"/\0")
    store.tool.send(XS_WATCH, b"/b\0t\0")
    head = store.tool.connection.outbox
    kinds = []
    while head:
        data = head.head()
        kinds.append(int.from_bytes(data[:4], "little"))
        head.advance(len(data))
    assert kinds[:2] == [XS_READ, XS_WATCH]
    assert len(kinds) == 3
    assert len(store.tool.events) == before


def test_nobody_hears_of_what_he_may_not_read(store: Store) -> None:
    for path in ("/", "/local", "/secret", "/local/domain/2"):
        store.one.watch(path, path)
    store.one.news()
    store.tool.write("/secret/x", b"1")
    store.two.write("data", b"1")
    store.two.rm("data")
    store.tool.rm("/secret")
    assert store.one.news() == []
    store.tool.write("/secret/y")
    store.tool.chmod("/secret/y", "n0", "r1")
    assert store.one.news() == [("/secret/y", "/secret"), ("/secret/y", "/")]
    store.tool.chmod("/secret/y", "n0")  # it could be read until now
    assert store.one.news() == [("/secret/y", "/secret"), ("/secret/y", "/")]
    store.tool.write("/secret/y")
    assert store.one.news() == []


def test_who_may_list_a_directory_hears_what_comes_and_goes_there(store: Store) -> None:
    store.tool.mkdir("/open")
    store.tool.chmod("/open", "n0", "r1")
    store.one.watch("/open")
    store.one.news()
    store.tool.mkdir("/open/x")
    assert store.one.news() == [("/open/x", "t")]
    store.tool.chmod("/open/x", "n0")
    store.one.news()
    store.tool.rm("/open/x")
    assert store.one.news() == [("/open/x", "t")]


def test_a_transactions_events_come_once_and_at_its_end(store: Store) -> None:
    store.tool.watch("/local/domain/1", "t")
    store.tool.news()
    tx = store.one.begin()
    store.one.write("a/b", b"1", tx)
    store.one.write("a/b", b"2", tx)
    store.one.write("c", b"", tx)
    assert store.tool.news() == []
    store.one.commit(tx)
    assert store.tool.news() == [("/local/domain/1/a/b", "t"), ("/local/domain/1/c", "t")]
    tx = store.one.begin()
    store.one.write("a/b", b"3", tx)
    store.one.abort(tx)
    assert store.tool.news() == []


def test_a_watch_is_set_once_and_forgotten_once(store: Store) -> None:
    store.one.watch("a")
    with refused("EEXIST"):
        store.one.watch("a")
    with refused("EEXIST"):
        store.one.watch("/local/domain/1/a")
    store.one.watch("a", "other")
    store.two.watch("/local/domain/1/a")
    store.one.ask(XS_UNWATCH, b"a", b"t")
    with refused("ENOENT"):
        store.one.ask(XS_UNWATCH, b"a", b"t")
    store.one.news()
    store.one.write("a")
    assert store.one.news() == [("a", "other")]
    with refused("EINVAL"):
        store.one.watch("a//b")


def test_an_event_that_no_message_could_hold_is_left_out(store: Store) -> None:
    token = "x" * 4000
    store.tool.watch("/local/domain/0/a", token)
    assert store.tool.news() == [("/local/domain/0/a", token)]
    store.tool.write("/local/domain/0/a/" + "b" * 70)
    store.tool.write("/local/domain/0/a/" + "b" * 90)
    assert [path[-70:] for path, _ in store.tool.news()] == ["b" * 70]


def test_an_event_that_waits_is_not_sent_twice(store: Store) -> None:
    store.one.watch("a")
    store.one.news()
    store.one.reads = False
    for value in (b"1", b"2", b"3"):
        store.tool.write("/local/domain/1/a", value)
    store.tool.write("/local/domain/1/a/b")
    store.one.reads = True
    store.one.take()
    assert store.one.news() == [("a", "t"), ("a/b", "t")]
    store.tool.write("/local/domain/1/a", b"4")
    assert store.one.news() == [("a", "t")]


def test_a_client_that_never_reads_is_heard_no_more_and_the_others_are(store: Store) -> None:
    store.one.reads = False
    for _ in range(100):
        store.one.send(XS_READ, b"/local/domain/1\0")
    assert store.one.connection.outbox.replies == store.server.quotas.outstanding
    assert store.two.read("/local/domain/2") == b""
    store.one.reads = True
    store.one.take()
    store.server.serve(store.one.connection)
    assert not store.one.connection.outbox


def test_a_client_that_leaves_its_events_unread_can_be_told(store: Store) -> None:
    store.one.watch("/local/domain/1", "x" * 1000)
    store.one.reads = False
    for n in range(10):
        store.tool.write(f"/local/domain/1/{n}")
    store.server.check_unread(store.one.connection)
    for n in range(20):
        store.tool.write(f"/local/domain/1/{n}/again")
    with pytest.raises(PeerError, match="bytes of events unread"):
        store.server.check_unread(store.one.connection)
