# SPDX-License-Identifier: GPL-2.0-or-later
"""What each request means, over the wire: its answer, its refusals, and nothing left of those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.support.store import Client, home, named, new_server, owners, refused
from xenlite.abi.x86_32p import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_INVALID,
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
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlite.dom0.xenstore.server import Server


class Store:
    """A server, a tool of Dom0, and guests 1 and 2 with homes."""

    def __init__(self) -> None:
        self.server: Server = new_server()
        self.tool = Client(self.server, 0)
        self.one, self.two = Client(self.server, 1), Client(self.server, 2)
        for domid in (1, 2):
            home(self.tool, domid)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    assert made.server.audit() == []


# -- nodes ----------------------------------------------------------------------------------------


def test_write_makes_the_nodes_above_and_read_returns_the_bytes(store: Store) -> None:
    store.tool.write("/a/b/c", b"\0\xff x")
    assert store.tool.read("/a/b/c") == b"\0\xff x"
    assert store.tool.read("/a/b") == b""
    assert store.tool.directory("/a") == ["b"]
    store.tool.write("/a/b", b"v")
    assert store.tool.directory("/a/b") == ["c"]


def test_a_relative_path_is_below_the_clients_own(store: Store) -> None:
    store.one.write("data/x", b"1")
    assert store.tool.read("/local/domain/1/data/x") == b"1"
    store.tool.write("y", b"0")
    assert store.tool.read("/local/domain/0/y") == b"0"


def test_mkdir_makes_an_empty_node_and_leaves_one_that_is_there(store: Store) -> None:
    store.tool.mkdir("/d/e")
    assert store.tool.read("/d/e") == b""
    store.tool.write("/d/e", b"v")
    store.tool.mkdir("/d/e")
    assert store.tool.read("/d/e") == b"v"


def test_rm_takes_what_is_below_and_needs_the_parent_only(store: Store) -> None:
    store.tool.write("/a/b/c")
    store.tool.rm("/a/b")
    assert store.tool.directory("/a") == []
    store.tool.rm("/a/b")
    with refused("ENOENT"):
        store.tool.rm("/nowhere/b")
    with refused("EINVAL"):
        store.tool.rm("/")


def test_a_thousand_levels_are_made_and_removed(store: Store) -> None:
    path = "/local/domain/1/" + "/".join(["d"] * 990)
    store.one.write(path, b"deep")
    assert store.tool.read(path) == b"deep"
    assert store.server.tree.usage(1).nodes == 1 + 990
    store.one.rm("d")
    assert store.server.tree.usage(1).nodes == 1


def test_a_directory_that_no_message_holds_comes_in_parts(store: Store) -> None:
    names = [f"child-{n:05}" for n in range(800)]
    for name in names:
        store.tool.mkdir(f"/big/{name}")
    with refused("E2BIG"):
        store.tool.directory("/big")
    found, generations, parts = b"", set(), 0
    while not found.endswith(b"\0\0"):
        answer = store.tool.ask(XS_DIRECTORY_PART, b"/big", b"%d" % len(found))
        generation, _, more = answer.partition(b"\0")
        generations.add(generation)
        found += more
        parts += 1
    assert found.decode().split("\0")[:-2] == names
    assert (len(generations), parts) == (1, 3)
    store.tool.mkdir("/big/one-more")
    answer = store.tool.ask(XS_DIRECTORY_PART, b"/big", b"0")
    assert answer.partition(b"\0")[0] not in generations
    assert store.tool.ask(XS_DIRECTORY_PART, b"/big", b"99999").endswith(b"\0\0")
    with refused("EINVAL"):
        store.tool.ask(XS_DIRECTORY_PART, b"/big", b"-1")


def test_a_value_that_no_message_holds_is_not_sent(store: Store) -> None:
    store.server.act_as_tool(lambda view: view.write("/long", bytes(4097)))
    with refused("E2BIG"):
        store.tool.read("/long")
    store.server.act_as_tool(lambda view: view.write("/long", bytes(4096)))
    assert store.tool.read("/long") == bytes(4096)


# -- permissions ----------------------------------------------------------------------------------


def test_who_may_do_what(store: Store) -> None:
    for entry, may_read, may_write in [("n", 0, 0), ("r", 1, 0), ("w", 0, 1), ("b", 1, 1)]:
        store.tool.write("/p", b"v")
        store.tool.chmod("/p", "n0", f"{entry}1")
        with nullcontext() if may_read else refused("EACCES"):
            store.one.read("/p")
        with nullcontext() if may_write else refused("EACCES"):
            store.one.write("/p")
        with refused("EACCES"):
            store.two.read("/p")
    store.tool.chmod("/p", "r0", "n1")
    assert store.two.read("/p") == b""
    with refused("EACCES"):
        store.one.read("/p")


def test_a_new_node_has_the_rights_of_what_is_above_and_a_guest_owns_its_own(store: Store) -> None:
    store.tool.mkdir("/p")
    store.tool.chmod("/p", "n0", "b1", "r2")
    store.tool.mkdir("/p/tools")
    store.one.write("/p/guests/x")
    assert store.tool.ask(XS_GET_PERMS, b"/p/tools") == b"n0\0b1\0r2\0"
    assert store.tool.ask(XS_GET_PERMS, b"/p/guests") == b"n1\0b1\0r2\0"
    assert store.two.ask(XS_GET_PERMS, b"/p/guests/x") == b"n1\0b1\0r2\0"


def test_what_one_may_not_see_does_not_tell_whether_it_exists(store: Store) -> None:
    store.tool.write("/secret/x")
    for path in ("/secret/x", "/secret/y", "/nowhere/z"):
        for ask in (store.one.read, store.one.directory, store.one.rm, store.one.write):
            with refused("EACCES"):
                ask(path)
        with refused("EACCES"):
            store.one.chmod(path, "n1")
    with refused("ENOENT"):
        store.one.read("nothing")


def test_only_dom0_gives_a_node_away(store: Store) -> None:
    store.one.write("x")
    with refused("EPERM"):
        store.one.chmod("x", "n2")
    with refused("EACCES"):
        store.two.chmod("/local/domain/1/x", "n2")
    store.one.chmod("x", "n1", "b2")
    with refused("EACCES"):
        store.two.chmod("/local/domain/1/x", "n1", "b2")
    store.tool.chmod("/local/domain/1/x", "n2", "r1")
    assert store.server.tree.usage(2).nodes == 2
    with refused("EACCES"):
        store.one.write("x")


def test_a_guest_names_only_domains_that_exist(store: Store) -> None:
    with refused("EINVAL"):
        store.one.chmod("/local/domain/1", "n1", "r3")
    store.tool.chmod("/local/domain/1", "n1", "r3")
    three = Client(store.server, 3)
    store.one.chmod("/local/domain/1", "n1", "r3", "r0")
    assert three.read("/local/domain/1") == b""


@pytest.mark.parametrize("entry", ["", "n", "x1", "1", "r-1", "n99999", "N1", "r1x"])
def test_a_malformed_permission_changes_nothing(store: Store, entry: str) -> None:
    with refused("EINVAL"):
        store.tool.chmod("/local/domain/1", "n1", entry)
    assert store.tool.ask(XS_GET_PERMS, b"/local/domain/1") == b"n1\0"


def test_a_domain_acts_with_the_rights_of_its_target_too(store: Store) -> None:
    with refused("EACCES"):
        store.two.read("/local/domain/1")
    store.tool.ask(XS_SET_TARGET, b"2", b"1")
    store.two.write("/local/domain/1/x", b"helped")
    with refused("EACCES"):
        store.one.read("/local/domain/2")
    store.server.remove_domain(1)
    with refused("EACCES"):
        store.two.read("/local/domain/1")
    for pair in [(b"2", b"9"), (b"9", b"2")]:
        with refused("ENOENT"):
            store.tool.ask(XS_SET_TARGET, *pair)


# -- domains --------------------------------------------------------------------------------------


def test_domain_paths_and_who_is_introduced(store: Store) -> None:
    assert store.one.ask(XS_GET_DOMAIN_PATH, b"7") == b"/local/domain/7\0"
    found = [store.one.ask(XS_IS_DOMAIN_INTRODUCED, domid) for domid in (b"0", b"1", b"3")]
    assert found == [b"T\0", b"T\0", b"F\0"]
    for request in (XS_GET_DOMAIN_PATH, XS_IS_DOMAIN_INTRODUCED):
        with refused("EINVAL"):
            store.one.ask(request, b"x")


def test_a_tool_learns_of_domains_that_come_end_and_go(store: Store) -> None:
    store.tool.watch("@introduceDomain", "in")
    store.tool.watch("@releaseDomain", "out")
    assert store.tool.news() == [("@introduceDomain", "in"), ("@releaseDomain", "out")]
    Client(store.server, 3)
    assert store.tool.news() == [("@introduceDomain", "in")]
    store.server.domain_shut_down(3)
    store.server.domain_shut_down(3)
    assert store.tool.news() == [("@releaseDomain", "out")]
    store.tool.ask(XS_RESUME, b"3")
    store.server.domain_shut_down(3)
    assert store.tool.news() == [("@releaseDomain", "out")]
    store.server.remove_domain(3)
    assert store.tool.news() == [("@releaseDomain", "out")]
    store.tool.ask(XS_INTRODUCE, b"1", b"0", b"1")  # again, as a tool may
    assert store.tool.news() == [("@introduceDomain", "in")]


def test_special_names_are_heard_by_whom_dom0_lets(store: Store) -> None:
    store.one.watch("@introduceDomain")
    store.one.news()
    Client(store.server, 3)
    assert store.one.news() == []
    store.tool.chmod("@introduceDomain", "n0", "r1")
    assert store.tool.ask(XS_GET_PERMS, b"@introduceDomain") == b"n0\0r1\0"
    assert store.one.news() == []
    Client(store.server, 4)
    assert store.one.news() == [("@introduceDomain", "t")]
    with refused("EACCES"):
        store.one.chmod("@introduceDomain", "r0")
    for request in (XS_READ, XS_DIRECTORY, XS_MKDIR, XS_RM):
        with refused("EINVAL"):
            store.tool.ask(request, b"@introduceDomain")


@pytest.mark.parametrize(
    ("request_type", "strings"),
    [
        (XS_INTRODUCE, (b"1", b"2", b"3")),
        (XS_RELEASE, (b"1",)),
        (XS_RESUME, (b"1",)),
        (XS_SET_TARGET, (b"1", b"2")),
        (XS_CONTROL, (b"check",)),
    ],
)
def test_requests_for_tools_are_refused_to_guests(
    store: Store, request_type: int, strings: tuple[bytes, ...]
) -> None:
    with refused("EACCES"):
        store.one.ask(request_type, *strings)


@pytest.mark.parametrize("request_type", [XS_RELEASE, XS_RESUME])
def test_a_domain_that_was_never_introduced_cannot_go(store: Store, request_type: int) -> None:
    for domid in (b"0", b"9"):
        with refused("ENOENT"):
            store.tool.ask(request_type, domid)


def test_a_dead_domain_leaves_nothing(store: Store) -> None:
    one, two, tool, server = store.one, store.two, store.tool, store.server
    tool.mkdir("/shared")
    tool.chmod("/shared", "n0", "b1", "b2")
    one.write("/shared/ones/x")
    two.write("/shared/twos")
    two.chmod("/shared/twos", "n2", "r1")
    one.watch("/shared")
    one.begin()
    server.remove_domain(1)
    assert owners(server) == {0, 2}
    assert named(server) == {0, 2}
    assert tool.directory("/shared") == ["twos"]
    assert [watch.connection.actor.domid for watch in server.watches.all()] == []
    assert not one.connection.transactions
    # The next one of that number starts with nothing.
    again = Client(server, 1)
    with refused("EACCES"):
        again.read("/shared/twos")


def test_a_transaction_of_a_dead_domains_time_names_it_no_more(store: Store) -> None:
    tx = store.two.begin()
    store.two.write("x", tx=tx)
    store.two.chmod("x", "n2", "r1", tx=tx)
    store.server.remove_domain(1)
    with refused("EAGAIN"):
        store.two.commit(tx)
    assert 1 not in named(store.server)


def test_domains_that_come_and_go_cost_nothing(store: Store) -> None:
    before = (owners(store.server), named(store.server))
    for _ in range(100):
        three = Client(store.server, 3)
        path = home(store.tool, 3)
        three.write("a/b")
        three.watch("a")
        store.server.remove_domain(3)
        assert (owners(store.server), named(store.server)) == before
        with refused("ENOENT"):
            store.tool.read(path)


# -- the rest -------------------------------------------------------------------------------------


def test_control_recounts_and_tells_the_limits(store: Store) -> None:
    assert store.tool.ask(XS_CONTROL, b"check") == b"OK\0"
    assert b"\nwatches: 128\n" in store.tool.ask(XS_CONTROL, b"quota")
    assert b"check" in store.tool.ask(XS_CONTROL, b"help")
    for command in ((b"",), (b"memreport",), (b"check", b"x")):
        with refused("EINVAL"):
            store.tool.ask(XS_CONTROL, *command)


@pytest.mark.parametrize("request_type", [XS_WATCH_EVENT, XS_ERROR, 20, 23, XS_INVALID, 2**32 - 1])
def test_what_is_no_request_is_unknown(store: Store, request_type: int) -> None:
    with refused("ENOSYS"):
        store.one.ask(request_type, b"x")


@pytest.mark.parametrize(
    ("request_type", "payload"),
    [
        *((kind, b"") for kind in (XS_READ, XS_WRITE, XS_MKDIR, XS_RM, XS_DIRECTORY, XS_WATCH)),
        *((kind, b"/local") for kind in (XS_READ, XS_WRITE, XS_MKDIR, XS_RM, XS_GET_PERMS)),
        *((kind, b"/a\0/b\0") for kind in (XS_READ, XS_MKDIR, XS_RM, XS_GET_PERMS, XS_DIRECTORY)),
        (XS_SET_PERMS, b"/local/domain/1\0"),
        (XS_SET_PERMS, b"/local/domain/1\0n1"),
        (XS_WATCH, b"/a\0"),
        (XS_WATCH, b"/a\0t\0u\0"),
        (XS_UNWATCH, b"/a\0"),
        (XS_DIRECTORY_PART, b"/a\0"),
        (XS_INTRODUCE, b"1\0"),
        (XS_INTRODUCE, b"0\0\x30\0\x31\0"),
        (XS_INTRODUCE, b"1\0\x30\0x\0"),
        (XS_SET_TARGET, b"1\0"),
        (XS_GET_DOMAIN_PATH, b"1"),
        (XS_CONTROL, b""),
    ],
)
def test_malformed_requests_are_refused(store: Store, request_type: int, payload: bytes) -> None:
    before = store.server.tree.generation
    with refused("EINVAL"):
        store.tool.ask(request_type, rest=payload)
    assert store.server.tree.generation == before


def test_reset_watches_ends_watches_and_transactions(store: Store) -> None:
    store.one.watch("x")
    tx = store.one.begin()
    store.one.write("x", tx=tx)
    assert store.one.ask(XS_RESET_WATCHES, b"", tx=tx) == b"OK\0"
    with refused("ENOENT"):
        store.one.commit(tx)
    with refused("ENOENT"):
        store.one.ask(XS_UNWATCH, b"x", b"t")
    store.one.news()
    store.one.write("x")
    assert store.one.news() == []


# -- transactions ---------------------------------------------------------------------------------


def test_a_transaction_is_seen_by_nobody_until_it_is_committed(store: Store) -> None:
    tx = store.one.begin()
    store.one.write("a/b", b"1", tx)
    assert store.one.read("a/b", tx) == b"1"
    with refused("ENOENT"):
        store.one.read("a/b")
    store.one.commit(tx)
    assert store.one.read("a/b") == b"1"
    with refused("ENOENT"):
        store.one.commit(tx)


def test_an_aborted_transaction_leaves_nothing(store: Store) -> None:
    store.one.write("keep")
    tx = store.one.begin()
    store.one.write("a/b", b"1", tx)
    store.one.rm("keep", tx)
    store.one.abort(tx)
    assert store.one.directory("/local/domain/1") == ["keep"]


def test_whoever_looked_at_what_has_changed_starts_again(store: Store) -> None:
    store.one.write("a", b"1")
    store.one.write("b", b"1")
    reader, writer, other = store.one.begin(), store.one.begin(), store.one.begin()
    store.one.read("a", reader)
    store.one.write("a", b"2", writer)
    store.one.write("b", b"2", other)
    store.tool.write("/local/domain/1/a", b"3")
    for tx in (reader, writer):
        with refused("EAGAIN"):
            store.one.commit(tx)
    store.one.commit(other)
    assert [store.one.read(name) for name in "ab"] == [b"3", b"2"]


def test_a_name_that_came_or_went_is_a_change_too(store: Store) -> None:
    absent, listing = store.one.begin(), store.one.begin()
    with refused("ENOENT"):
        store.one.read("x", absent)
    store.one.directory("/local/domain/1", listing)
    store.one.write("x")
    for tx in (absent, listing):
        with refused("EAGAIN"):
            store.one.commit(tx)


def test_made_and_removed_within_one_transaction(store: Store) -> None:
    """Broken once in Xen's own store: the commit was half made, and the store was lost."""
    tx = store.one.begin()
    store.one.write("a/b", tx=tx)
    store.one.rm("a", tx)
    store.one.commit(tx)
    assert store.one.directory("/local/domain/1") == []
    tx = store.one.begin()
    store.one.write("a/b", tx=tx)
    store.one.rm("a/b", tx)
    store.one.write("a/b/c", tx=tx)
    store.one.commit(tx)
    assert store.one.directory("a/b") == ["c"]


def test_a_request_that_is_refused_leaves_its_transaction_as_it_was(store: Store) -> None:
    tx = store.one.begin()
    store.one.write("a", b"1", tx)
    with refused("ENOSPC"):
        store.one.write("b/c", b"x" * 2048, tx)
    assert store.one.directory("/local/domain/1", tx) == ["a"]
    store.one.commit(tx)
    assert store.one.directory("/local/domain/1") == ["a"]


def test_transactions_are_not_nested_and_belong_to_one_client(store: Store) -> None:
    tx = store.one.begin()
    with refused("EBUSY"):
        store.one.ask(XS_TRANSACTION_START, b"", tx=tx)
    with refused("ENOENT"):
        store.two.read("/local/domain/2", tx)
    with refused("ENOENT"):
        store.one.ask(XS_TRANSACTION_END, b"T")
    with refused("EINVAL"):
        store.one.ask(XS_TRANSACTION_END, b"x", tx=tx)
    store.one.commit(tx)
