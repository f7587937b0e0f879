# SPDX-License-Identifier: GPL-2.0-or-later
"""The nodes of a domain: as documented, with rights that keep a guest off what is not its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.support.store import Client, StoreError, named, refused
from xenlite.abi.x86_32p import XS_GET_PERMS
from xenlite.dom0.xenstore.store import StoreNode, XenStore
from xenlite.doors import Link
from xenlite.toolstack.builder import BuiltDomain
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.layout import Layout
from xenlite.toolstack.store_nodes import (
    console_nodes,
    device_paths,
    domain_nodes,
    domain_paths,
    host_nodes,
    new_uuid,
    vbd_nodes,
    vif_nodes,
)

DOCS = Path(__file__).parents[3] / "docs" / "xenstore.md"
DOMID = 3
UUID = "01234567-89ab-4def-8123-456789abcdef"
CONFIG = DomainConfig("d", Path("k"), "k", memory_mib=8, maxmem_mib=16, vcpus=1, maxvcpus=2)
BUILT = BuiltDomain(
    DOMID,
    cast(Layout, None),  # no node depends on it
    console_port=2,
    console_mfn=0x1234,
    store_port=1,
    store_mfn=0x5678,
)
RIGHTS = {
    "reads": f"n0,r{DOMID}",
    "owns": f"n{DOMID}",
    "shares": f"n{DOMID},r0",
    "Dom0": "n0",
}
WORDS = {
    "the configuration's name": "d",
    "domid": str(DOMID),
    "maxmem in KiB": "16384",
    "memory in KiB": "8192",
    "path of the backend's nodes": f"/local/domain/0/backend/console/{DOMID}/0",
    "path of the guest's nodes": f"/local/domain/{DOMID}/console",
    "`/vm/<uuid>`": f"/vm/{UUID}",
}


@pytest.fixture
def tool(store: XenStore) -> Client:
    """Return a tool of that store."""
    return Client(store.server, 0)


def perms(tool: Client, path: str) -> str:
    return ",".join(tool.ask(XS_GET_PERMS, path.encode()).decode().split("\0")[:-1])


def documented() -> dict[str, list[str]]:
    """Return value and rights of each node in the table of the documentation."""
    table = DOCS.read_text().split("## Nodes of a domain")[1]
    rows = re.findall(r"^\| `(/[^`]+)` \| (.*?) ?\| (\w+) \|$", table, re.MULTILINE)
    return {
        path.replace("<domid>", str(DOMID)).replace("<uuid>", UUID).replace("<n>", cpu): row
        for path, *row in rows
        if "<kind>" not in path
        for cpu in "01"
    }


def documented_of_a_device(kind: str, device: int) -> dict[str, list[str]]:
    """Return value and rights of each node of a device in its table of the documentation."""
    table = DOCS.read_text().split("A device has two ends")[1]
    found: dict[str, list[str]] = {}
    top = ""
    for of, path, *row in re.findall(
        r"^\| (?:(\w+): )?`([/.][^`]+)` \| (.*?) ?\| (\w+) \|$", table, re.MULTILINE
    ):
        if path.startswith("/"):
            top = path.replace("<domid>", str(DOMID)).replace("<kind>", kind)
            found[top := top.replace("<device>", str(device))] = row
        elif of in ("", kind):
            found[top + path.removeprefix("...")] = row
    return found


WISHES = dict.fromkeys(("bridge", "ip", "rate", "vifname"), "x")


@pytest.fixture
def store() -> Iterator[XenStore]:
    """Return a store with Dom0's nodes and the domain's; it serves no ring."""
    store = XenStore(cast(Link, None), lambda _domid, _error: None)
    store.put(host_nodes())
    store.put(domain_nodes(CONFIG, BUILT, UUID))
    yield store
    assert store.audit() == []
    store.remove(domain_paths(DOMID, UUID))
    assert store.audit() == []
    assert not [path for path in store.server.tree._nodes if str(DOMID) in path.split("/")]
    assert named(store.server) == {0}


def test_the_table_of_the_documentation_is_what_is_written(tool: Client) -> None:
    rows = documented()
    written = {node.path: node for node in domain_nodes(CONFIG, BUILT, UUID)}
    assert set(rows) == set(written)
    for path, (value, rights) in rows.items():
        assert perms(tool, path) == RIGHTS[rights], path
        if value in WORDS or re.fullmatch(r"[a-z]*\d*", value):
            assert tool.read(path).decode() == WORDS.get(value, value), path


def test_values_that_differ_from_domain_to_domain(tool: Client) -> None:
    home = f"/local/domain/{DOMID}"
    names = ("store/port", "store/ring-ref", "console/port", "console/ring-ref")
    assert [tool.read(f"{home}/{name}") for name in names] == [b"1", b"22136", b"2", b"4660"]
    cpus = [tool.read(f"{home}/cpu/{cpu}/availability") for cpu in range(2)]
    assert cpus == [b"online", b"offline"]
    assert tool.read(f"/vm/{UUID}/uuid").decode() == UUID


def test_a_guest_changes_what_is_its_own_and_reads_the_rest(tool: Client) -> None:
    guest = Client(tool.server, DOMID)
    for path, (_, rights) in documented().items():
        before = tool.read(path)
        if rights == "Dom0":
            with refused("EACCES"):
                guest.read(path)
        else:
            assert guest.read(path) == before
        if rights == "owns":
            guest.write(path, b"mine")
            continue
        for attack in (guest.write, guest.rm):
            with refused("EACCES"):
                attack(path)
        with refused("EACCES"):
            guest.chmod(path, f"n{DOMID}")
        with refused("EACCES"):
            guest.mkdir(f"{path}/new")
        assert tool.read(path) == before


def test_a_guest_sees_nothing_of_another(tool: Client) -> None:
    other = Client(tool.server, 4)
    for path, _ in documented().items():
        for ask in (other.read, other.directory, other.write):
            with pytest.raises(StoreError, match="EACCES"):
                ask(path)


@pytest.mark.parametrize(
    ("kind", "device", "nodes"),
    [
        ("vbd", 51712, vbd_nodes(DOMID, 51712, "xvda", "/disk.img", mode="w")),
        ("vif", 0, vif_nodes(DOMID, 0, "00:16:3e:00:00:01", mtu=1500, more=WISHES)),
        ("console", 1, console_nodes(DOMID, 1, "/dev/pts/9", "agent")),
    ],
)
def test_a_device_has_the_nodes_of_its_table(
    store: XenStore, kind: str, device: int, nodes: list[StoreNode]
) -> None:
    rows = documented_of_a_device(kind, device)
    store.put(nodes)
    assert set(rows) == {node.path for node in nodes}
    tool = Client(store.server, 0)
    for path, (value, rights) in rows.items():
        assert perms(tool, path) == RIGHTS[rights], path
        if re.fullmatch(r"\d+|disk|phy|vif|xenconsoled|pty|vt100", value):
            assert tool.read(path).decode() == value, path
    for end, other in (("frontend", "backend"), ("backend", "frontend")):
        there = tool.read(f"/libxl/{DOMID}/device/{kind}/{device}/{end}").decode()
        back_again = tool.read(f"{there}/{other}").decode()
        assert tool.read(f"{back_again}/{end}").decode() == there
    store.remove(device_paths(DOMID, kind, device))
    for path in rows:
        with refused("ENOENT"):
            tool.read(path)


def test_uuids_are_random_and_well_formed() -> None:
    made = {new_uuid() for _ in range(100)}
    assert len(made) == 100
    form = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(form, uuid) for uuid in made)
