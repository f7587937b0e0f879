# SPDX-License-Identifier: GPL-2.0-or-later
"""Network cards and networks as users write them: each mistake is one line that says what to do."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.dom0.dgram import DgramConfig, HostAddress
from xenlite.dom0.rate import Rate
from xenlite.dom0.service_port import Forward
from xenlite.dom0.udp_forwards import ForwardTarget
from xenlite.errors import ConfigError
from xenlite.toolstack.config import parse
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.network_config import (
    NetworkConfig,
    conflicts,
    default_interface,
    read_network,
)
from xenlite.toolstack.vif_config import VifConfig, complete, default_mac, read_vif, service_mac

DOCS = Path(__file__).parents[3] / "docs" / "networks.md"
LEAST = "name: a\nkernel: b\n"
MAC = bytes.fromhex("00163e010203")
XENBR0 = IPv4Interface("10.0.0.1/24")


def read(text: str, *overrides: str) -> DomainConfig:
    return parse((LEAST + text).encode(), "dom.yaml", Path("dir"), overrides)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [str(fault) for fault in caught.value.faults]


# -- network cards --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "vif"),
    [
        ("", VifConfig()),
        ("1", VifConfig()),
        ("bridge=lan0", VifConfig(bridge="lan0")),
        (
            " mac=00:16:3E:01:02:03 , bridge=xenbr1,ip=10.0.1.9",
            VifConfig(bridge="xenbr1", mac=MAC, ip=IPv4Address("10.0.1.9")),
        ),
        ("type=vif,script=vif-bridge,backend=0", VifConfig()),
        ("devid=3,vifname=front,mtu=9000", VifConfig(devid=3, vifname="front", mtu=9000)),
        ("rate=10Mb/s", VifConfig(rate=Rate(62_500, 50_000_000))),
        ("rate=1MB/s@20ms", VifConfig(rate=Rate(20_000, 20_000_000))),
        ("rate=8000b/s@1s", VifConfig(rate=Rate(1000, 10**9))),
    ],
)
def test_xls_ways_of_writing_a_card(text: str, vif: VifConfig) -> None:
    assert read_vif(text) == vif


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("xenbr0", "'xenbr0' is no key=value, as in 'bridge=xenbr0'"),
        ("2", "'2' is no key=value, as in 'bridge=xenbr0'"),
        ("bridge=a,bridge=b", "'bridge' is given twice in 'bridge=a,bridge=b'"),
        (
            "brigde=a",
            "'brigde' is nothing of a vif; known: bridge, mac, ip, rate, mtu, devid, vifname, type,"
            " script, backend",
        ),
        ("bridge=a b", "bridge 'a b' is no name such as 'xenbr0' (15 characters)"),
        ("mac=00:16:3e", "'00:16:3e' is no address such as 00:16:3e:01:02:03"),
        ("mac=01:16:3e:00:00:00", "mac 01:16:3e:00:00:00 is no address of one station"),
        ("mac=00:00:00:00:00:00", "mac 00:00:00:00:00:00 is no address of one station"),
        ("ip=10.0.0.300", "ip '10.0.0.300' is no IPv4 address"),
        ("rate=fast", "rate 'fast' is none such as '10Mb/s' or '1MB/s@20ms'"),
        ("rate=1b/s", "rate '1b/s' lets nothing pass in an interval"),
        ("rate=1Mb/s@0ms", "rate '1Mb/s@0ms' lets nothing pass in an interval"),
        ("mtu=20", "mtu '20' is no number from 68 to 65517"),
        ("devid=-1", "devid '-1' is no number from 0 to 255"),
        (
            f"vifname={'x' * 65}",
            f"vifname '{'x' * 65}' has other characters than letters, digits and _ . - (64)",
        ),
        ("vifname=a b", "vifname 'a b' has other characters than letters, digits and _ . - (64)"),
        ("type=ioemu", "type 'ioemu': no card is emulated; a PV guest needs none; leave it out"),
        ("model=e1000", "model 'e1000': no card is emulated; a PV guest needs none; leave it out"),
        (
            "script=vif-nat",
            "script 'vif-nat': nothing is run on the host; networks: says what a bridge has; leave"
            " it out",
        ),
        ("backend=net", "backend 'net': the backends are in Domain-0; leave it out"),
        ("gatewaydev=eth0", "gatewaydev 'eth0': nothing is routed on the host; leave it out"),
    ],
)
def test_a_mistake_in_a_card_is_one_line(text: str, fault: str) -> None:
    assert faults(f"vif: ['{text}']\n") == [f"dom.yaml:3: vif: {fault}"]


def test_cards_are_numbered_and_have_the_same_addresses_in_each_run() -> None:
    config = read("vif:\n  - ''\n  - {bridge: lan0, devid: 1}\n  - mac=00:16:3e:01:02:03\n")
    assert config.vifs == (
        VifConfig(devid=0, mac=default_mac("a", 0)),
        VifConfig(devid=1, mac=default_mac("a", 1), bridge="lan0"),
        VifConfig(devid=2, mac=MAC),
    )
    assert config.vifs == read("vif: ['', {bridge: lan0}, mac=00:16:3e:01:02:03]\n").vifs
    assert read("vif: ['', '']\n", "name=z").vifs != read("vif: ['', '']\n").vifs
    assert read("vif: ['']\n", "vif=").vifs == ()
    assert read("", "vif=bridge=lan0").vifs[0].bridge == "lan0"


@given(st.text(max_size=20), st.integers(0, 255))
def test_addresses_that_we_choose_are_xens_and_no_service_hosts(name: str, devid: int) -> None:
    card, service = default_mac(name, devid), service_mac(name)
    assert card[:3] == service[:3] == bytes.fromhex("00163e")
    assert (card[3] < 0x80, service[3] >= 0x80) == (True, True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("vif: [devid=1, devid=1]\n", "dom.yaml:3: vif: devid 1 is given twice"),
        (
            "vif: ['mac=00:16:3e:01:02:03', 'mac=00:16:3e:01:02:03']\n",
            "dom.yaml:3: vif: 00:16:3e:01:02:03 is the address of two cards",
        ),
        ("vif: [[a]]\n", "dom.yaml:3: a list, where a value or a group of keys belongs"),
        ("vif: [{mac: [a]}]\n", "dom.yaml:3: keys and values of a group must be plain"),
    ],
)
def test_cards_that_do_not_go_together_are_one_line(text: str, fault: str) -> None:
    assert faults(text) == [fault]


def test_there_are_as_many_cards_as_numbers() -> None:
    assert len(complete([VifConfig()] * 256, "a")) == 256
    with pytest.raises(ValueError, match="more than 256 network cards"):
        complete([VifConfig()] * 257, "a")


# -- networks -------------------------------------------------------------------------------------

WHOLE = """\
networks:
  - name: lan0
    subnet: 192.168.9.0/24
    forward:
      - udp:127.0.0.1:5555-192.168.9.2:7
      - 0-192.168.9.3:8
    dgram: [local=a.sock remote=/tmp/b.sock, 'local=127.0.0.1:6000 remote=127.0.0.1:6001']
    tap: xl0
    pcap: lan0.pcap
    snaplen: 96
  - {name: lan1, services: no}
"""


def test_a_network_as_a_group_of_keys() -> None:
    lan0, lan1 = read(WHOLE).networks
    assert lan1 == NetworkConfig("lan1", None)
    assert lan0 == NetworkConfig(
        "lan0",
        IPv4Interface("192.168.9.1/24"),
        forwards=(
            Forward(HostAddress("127.0.0.1", 5555), ForwardTarget(bytes((192, 168, 9, 2)), 7)),
            Forward(HostAddress("127.0.0.1", 0), ForwardTarget(bytes((192, 168, 9, 3)), 8)),
        ),
        dgrams=(
            DgramConfig(Path("dir/a.sock"), Path("/tmp/b.sock")),
            DgramConfig(HostAddress("127.0.0.1", 6000), HostAddress("127.0.0.1", 6001)),
        ),
        taps=("xl0",),
        capture=Path("dir/lan0.pcap"),
        snaplen=96,
    )


def test_a_network_as_a_string() -> None:
    text = "name=lan0,forward=udp::1-10.1.2.3:4,forward=5-10.1.2.3:6,subnet=10.1.2.9/24"
    [network] = read("", f"networks={text}").networks
    assert network == read_network(text)
    assert network.interface == IPv4Interface("10.1.2.9/24")
    assert [forward.host.port for forward in network.forwards] == [1, 5]
    assert {forward.host.host for forward in network.forwards} == {"127.0.0.1"}


def test_bridges_have_subnets_of_their_own() -> None:
    names = [f"xenbr{n}" for n in range(256)] + ["lan0", "lan1", "xenbr256", "br-a"]
    assert default_interface("xenbr0") == XENBR0
    assert default_interface("xenbr255") == IPv4Interface("10.0.255.1/24")
    networks = [default_interface(name).network for name in names]
    assert len(set(networks)) == len(names)
    assert all(network.prefixlen == 24 and network.is_private for network in networks)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is no key=value, as in 'name=xenbr0'"),
        (
            "subnet=10.0.0.0/24",
            "name '': a network needs one such as 'xenbr0' (15 characters)",
        ),
        (
            "name=a,bridge=b",
            "'bridge' is nothing of a network; known: name, subnet, services, forward, dgram, tap,"
            " pcap, snaplen",
        ),
        ("name=a,name=b", "'name' is given twice in 'name=a,name=b'"),
        ("name=a,subnet=10.0.0.0/33", "subnet '10.0.0.0/33' is none such as 10.0.0.0/24"),
        ("name=a,subnet=ten", "subnet 'ten' is none such as 10.0.0.0/24"),
        ("name=a,subnet=10.0.0.1", "subnet '10.0.0.1' has not between 8 and 30 bits"),
        (
            "name=a,subnet=10.0.0.255/24",
            "subnet '10.0.0.255/24' leaves the service host no address of its own",
        ),
        ("name=a,services=maybe", "services 'maybe' is neither 'yes' nor 'no'"),
        (
            "name=a,services=no,subnet=10.0.0.0/24",
            "subnet: it needs the service host; leave services=no out",
        ),
        ("name=a,snaplen=9", "snaplen '9' is no number of bytes, 14 at least"),
        (
            "name=xenbr0,forward=tcp:127.0.0.1:1-10.0.0.2:2",
            "forward 'tcp:127.0.0.1:1-10.0.0.2:2': only UDP is forwarded",
        ),
        (
            "name=xenbr0,forward=5555",
            "forward '5555' is none such as 'udp:127.0.0.1:5555-10.0.0.2:7'",
        ),
        (
            "name=xenbr0,forward=1-10.0.1.2:7",
            "forward '1-10.0.1.2:7': 10.0.1.2 is no guest's in 10.0.0.0/24",
        ),
        (
            "name=xenbr0,forward=1-10.0.0.1:7",
            "forward '1-10.0.0.1:7': 10.0.0.1 is no guest's in 10.0.0.0/24",
        ),
        ("name=xenbr0,forward=1-10.0.0.2:0", "'1-10.0.0.2:0': 0 is no port from 1 to 65535"),
        ("name=xenbr0,forward=70000-10.0.0.2:1", "'70000-10.0.0.2:1': 70000 is no port from 0"),
        ("name=xenbr0,forward=1-10.0.0.256:1", "'1-10.0.0.256:1': 10.0.0.256 is no IPv4 address"),
        (
            "name=a,dgram=a.sock",
            "dgram 'a.sock' is none such as 'local=/tmp/a.sock remote=/tmp/b.sock'",
        ),
        (
            "name=a,dgram=local=a remote=127.0.0.1:5",
            "dgram 'local=a remote=127.0.0.1:5': one end is a path, and the other one is not",
        ),
        ("name=a,dgram=local=a remote=a", "dgram 'local=a remote=a': both ends are the same"),
        ("name=a,tap=a/b", "tap 'a/b' is no name of an interface (15 characters)"),
    ],
)
def test_a_mistake_in_a_network_is_one_line(text: str, fault: str) -> None:
    [found] = faults(f'networks: ["{text}"]\n')
    assert found.startswith(f"dom.yaml:3: networks: {fault}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("networks: [{name: a}, {name: a}]\n", "dom.yaml:3: networks: a is given twice"),
        (
            "networks:\n  - name: a\n    forward: [[1]]\n",
            "dom.yaml:5: a list, where a value belongs",
        ),
        (
            "networks:\n  - name: a\n    subnet: [1]\n",
            "dom.yaml:5: keys and values of a group must be plain",
        ),
    ],
)
def test_networks_that_make_no_sense_are_one_line(text: str, fault: str) -> None:
    assert faults(text) == [fault]


def test_files_that_describe_a_network_in_two_ways_are_refused() -> None:
    one, same, other, none = (
        read(text)
        for text in (
            WHOLE,
            WHOLE,
            "networks: name=lan1\n",
            "vif: ['bridge=lan0']\n",
        )
    )
    assert conflicts([("a", one), ("b", same), ("c", none)]) == []
    [fault] = conflicts([("a", one), ("b", none), ("c", other)])
    assert str(fault) == "c: networks: lan1 is not the same as in a; describe it once"


def test_the_examples_of_the_documentation_are_right() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 5
    domains = [read(block.removeprefix("name: a\nkernel: kernel.elf\n")) for block in blocks]
    assert sum(len(domain.vifs) for domain in domains) == 4
    assert sum(len(domain.networks) for domain in domains) == 3
    assert read("", "networks=name=lan0,pcap=lan0.pcap").networks[0].name == "lan0"


@given(st.text(max_size=40))
def test_any_text_gives_a_card_or_a_line(text: str) -> None:
    for reader in (read_vif, read_network):
        for written in (text, f"name={text}", f"name=a,forward={text}", f"rate={text}"):
            said = ""
            try:
                reader(written)
            except ValueError as error:
                said = str(error)
            assert "\n" not in said
