# SPDX-License-Identifier: GPL-2.0-or-later
"""Network cards of whole domains: they come before the domain runs, and go with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernel_file import KernelFile
from tests.support.networked import Networked
from xenlite.dom0 import vif as vif_module
from xenlite.dom0.ethernet import format_address
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import ConfigError, PeerError
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.lifecycle import Guest
from xenlite.toolstack.vif_config import complete, default_mac, read_vif

FRONT = "/local/domain/{}/device/vif/{}"
BACK = "/local/domain/0/backend/vif/{}/{}"


class Host(Networked):
    """A host with a store, and what all of it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.control = self.hypervisor.control()
        self.store = XenStore(self.link, lambda _domid, _error: None)
        self.broken: list[PeerError] = []

    def start(self, guest: Guest) -> int:
        return guest.start(
            self.control,
            self.link,
            self.store,
            sink=lambda _domid, _data: None,
            broken=self.broken.append,
            networks=lambda: self.networks,
        ).domid

    def node(self, path: str) -> bytes | None:
        return self.store.server.act_as_tool(
            lambda view: view.read(path) if view.exists(path) else None
        )

    def held(self) -> tuple[object, ...]:
        """Tell what may not differ before and after a domain or a card."""
        self.settle()
        assert self.control.audit() + self.store.audit() == []
        services = self.networks.network("xenbr0").services
        assert services is not None
        return (
            self.control.domains(),
            sum(self.hypervisor.machine.frames.refs),
            len(self.store.server.watches.all()),
            [plug.name for plug in self.networks.network("xenbr0").bridge.plugs],
            dict(services.host.leases._owners),
            threading.active_count(),
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
        )


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(KernelFile().build())
    return path


def guest_of(kernel: Path, name: str, *vifs: str) -> Guest:
    cards = complete([read_vif(text) for text in vifs], name)
    return Guest(DomainConfig(name, kernel, "kernel", 4, 4, vifs=cards))


def test_a_domain_has_its_cards_and_they_go_with_it(host: Host, kernel: Path) -> None:
    before = host.held()
    guest = guest_of(kernel, "a", "", "ip=10.0.0.77,rate=1MB/s@20ms,vifname=fast,mtu=9000")
    for _ in range(2):
        domid = host.start(guest)
        host.settle()
        mac = format_address(default_mac("a", 0)).encode()
        front, back = FRONT.format(domid, 0), BACK.format(domid, 0)
        assert host.node(f"{front}/mac") == host.node(f"{back}/mac") == mac
        assert host.node(f"{back}/state") == b"2"
        assert host.node(f"{back}/bridge") == b"xenbr0"
        assert host.node(f"{front}/mtu") == b"1500"
        second = BACK.format(domid, 1)
        assert host.node(f"{second}/ip") == b"10.0.0.77"
        assert host.node(f"{second}/rate") == b"20000,20000"
        assert host.node(f"{second}/vifname") == b"fast"
        assert host.node(FRONT.format(domid, 1) + "/mtu") == b"9000"
        names = [plug.name for plug in host.networks.network("xenbr0").bridge.plugs]
        assert names == ["services", "a.0", "fast"]
        services = host.networks.network("xenbr0").services
        assert services is not None
        address = services.host.leases.address(default_mac("a", 1))
        assert str(address) == "10.0.0.77"
        guest.stop()
        assert host.held() == before
        assert host.node(back) is None


def test_a_card_is_attached_and_detached_while_its_domain_runs(host: Host, kernel: Path) -> None:
    guest = guest_of(kernel, "a", "")
    domid = host.start(guest)
    before = host.held()
    told: list[str] = []
    for is_asked in (False, True, False):
        told.clear()
        made = guest.attach_vif(read_vif("bridge=xenbr1"))
        assert (made.devid, made.mac) == (1, default_mac("a", 1))
        host.settle()
        assert host.node(BACK.format(domid, 1) + "/state") == b"2"
        assert [vif.devid for vif in guest.config.vifs] == [0, 1]
        # No frontend has it: there is nobody to wait for.
        guest.detach_vif(1, (lambda: told.append("gone")) if is_asked else None)
        host.settle()
        assert told == ["gone"] * is_asked
        assert host.node(BACK.format(domid, 1)) is None
        assert host.node(FRONT.format(domid, 1)) is None
        assert host.held() == before
    assert [vif.devid for vif in guest.config.vifs] == [0]
    guest.stop()


def test_a_domain_without_cards_gets_its_first_while_it_runs(host: Host, kernel: Path) -> None:
    guest = guest_of(kernel, "a")
    domid = host.start(guest)
    assert guest.find_vif("0") is None
    guest.attach_vif(read_vif(""))
    assert guest.find_vif("0") == 0
    guest.stop()
    domid = host.start(guest)
    assert host.node(BACK.format(domid, 0) + "/bridge") == b"xenbr0", "it has it when it restarts"
    guest.stop()


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        (
            "mac=00:16:3e:00:00:01",
            "domain 'b': vif: mac 00:16:3e:00:00:01 is a.0's on xenbr0; give this card another one",
        ),
        ("vifname=a.0", "domain 'b': vif: there is a 'a.0' on xenbr0 already"),
        (
            "ip=10.0.0.5",
            "domain 'b': vif: ip 10.0.0.5 is taken, or no guest's in 10.0.0.0/24 (xenbr0)",
        ),
        (
            "ip=10.0.1.5",
            "domain 'b': vif: ip 10.0.1.5 is taken, or no guest's in 10.0.0.0/24 (xenbr0)",
        ),
    ],
)
def test_a_card_that_cannot_be_is_one_line_and_leaves_nothing(
    host: Host, kernel: Path, wish: str, line: str
) -> None:
    first = guest_of(kernel, "a", "mac=00:16:3e:00:00:01,ip=10.0.0.5")
    host.start(first)
    before = host.held()
    for guest in (guest_of(kernel, "b", wish), guest_of(kernel, "b", "bridge=other", wish)):
        with pytest.raises(ConfigError) as caught:
            host.start(guest)
        assert str(caught.value) == line
        assert host.held() == before
    running = guest_of(kernel, "b")
    host.start(running)
    with pytest.raises(ConfigError, match=r"vif: "):
        running.attach_vif(read_vif(wish))
    assert running.config.vifs == ()
    with pytest.raises(ConfigError, match=r"10\.0\.0\.5 is taken, or no guest's .*\(new\)"):
        running.attach_vif(read_vif("bridge=new,ip=10.0.0.5"))
    assert "new" not in {one["network"] for one in host.networks.statistics()}
    running.stop()
    assert host.held() == before
    first.stop()


def test_a_domain_with_a_number_twice_keeps_the_first(host: Host, kernel: Path) -> None:
    guest = guest_of(kernel, "a", "devid=3")
    host.start(guest)
    with pytest.raises(ConfigError) as caught:
        guest.attach_vif(read_vif("devid=3"))
    assert str(caught.value) == "a: vif: devid 3 is given twice"
    guest.stop()


def test_a_card_that_has_not_gone_yet_keeps_its_number(host: Host, kernel: Path) -> None:
    before = host.held()
    guest = guest_of(kernel, "a", "")
    front = FRONT.format(host.start(guest), 0)
    host.store.server.act_as_tool(lambda view: view.write(f"{front}/state", b"5"))
    host.settle()
    gone: list[int] = []
    guest.detach_vif(0, lambda: gone.append(0))
    host.settle()
    assert gone == []
    with pytest.raises(ConfigError, match="vif: card 0 has not gone yet; give this one another"):
        guest.attach_vif(read_vif("devid=0,mac=00:16:3e:00:00:09,vifname=new"))
    assert guest.attach_vif(read_vif("")).devid == 1
    guest.stop()
    assert gone == [0]
    assert host.held() == before


def test_a_start_that_fails_in_the_middle_leaves_nothing(
    host: Host, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.held()
    guest = guest_of(kernel, "a", "", "")
    made: list[object] = []
    real = vif_module.vif_paths

    def second_fails(*args: int) -> object:
        made.append(args)
        if len(made) == 2:
            raise ConfigError
        return real(*args)

    monkeypatch.setattr("xenlite.toolstack.vifs.vif_paths", second_fails)
    with pytest.raises(ConfigError):
        host.start(guest)
    assert host.held() == before
