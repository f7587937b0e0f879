# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on a bridge, and a station of the test's own between them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from tests.support.ethernet import checksum
from tests.support.guestos import MIB, PROMPT, Machine, Rack
from xenlite.dom0.switch import Bridge
from xenlite.dom0.vif import Vif
from xenlite.machine.clock import Clock

BRIDGE = "xenbr0"
RACK_BYTES = 256 * MIB
BROADCAST = b"\xff" * 6
ETH_ARP, ETH_IP = 0x0806, 0x0800
PROTOCOL_ICMP, PROTOCOL_UDP = 1, 17


def mac_of(number: int) -> bytes:
    return bytes((0, 0x16, 0x3E, 0, 0, number))


def address_of(number: int) -> bytes:
    return bytes((10, 0, 0, number))


def text_of(address: bytes) -> str:
    return ".".join(map(str, address))


class Networked:
    """So many machines with a card each, addresses 10.0.0.2 and so on; they are driven together."""

    def __init__(self, count: int, *overrides: str, clock: Clock | None = None) -> None:
        self.rack = Rack(clock, RACK_BYTES)
        self.machines = [
            Machine(
                *overrides,
                f"name=m{number}",
                f"vif=mac={mac_of(number).hex(':')},bridge={BRIDGE}",
                rack=self.rack,
            )
            for number in range(2, 2 + count)
        ]
        for number, machine in enumerate(self.machines, 2):
            machine.wait_for(PROMPT)
            wait_for_state(machine, "up")
            assert machine.command(f"ifconfig eth0 {text_of(address_of(number))}/24") == ""

    @property
    def bridge(self) -> Bridge:
        return self.rack.networks().network(BRIDGE).bridge

    def backend_drops(self) -> int:
        """Count the frames that found no room before a machine saw them."""
        dropped = 0
        for plug in self.bridge.plugs:
            station = plug._station
            if isinstance(station, Vif):
                dropped += station.counters.rx_dropped
        return dropped

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
        self.rack.close()


def wait_for_state(machine: Machine, state: str, interface: str = "eth0") -> None:
    """Run until an interface is up, down or gone ("no such interface")."""
    for _ in range(200):
        if state in machine.command(f"ifconfig {interface}").split("\n")[0]:
            return
        machine.command("sleep 0.01")
    raise AssertionError(f"{interface} is never {state}")


def counts(machine: Machine, interface: str = "eth0") -> dict[str, int]:
    """Return what ifconfig counts."""
    lines = machine.command(f"ifconfig {interface}").splitlines()
    received, sent = lines[2].replace(";", ",").split(), lines[3].replace(";", ",").split()
    return {
        "received": int(received[1]),
        "dropped": int(received[5]),
        "bad": int(received[7]),
        "sent": int(sent[1]),
        "lost": int(sent[5]),
    }


# -- frames ---------------------------------------------------------------------------------------


def ethernet(to: bytes, source: bytes, kind: int, content: bytes) -> bytes:
    return to + source + struct.pack("!H", kind) + content


def ip(source: bytes, to: bytes, protocol: int, content: bytes, *, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBB", 0x40 | size // 4, 0, size + len(content), 1, 0, 64, protocol)
    whole = checksum(head + b"\0\0" + source + to + options)
    return head + struct.pack("!H", whole) + source + to + options + content


def udp(source: bytes, to: bytes, ports: tuple[int, int], data: bytes) -> bytes:
    head = struct.pack("!HHH", *ports, 8 + len(data))
    pseudo = source + to + struct.pack("!HH", PROTOCOL_UDP, 8 + len(data))
    return head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + data) or 0xFFFF) + data


def echo(data: bytes, *, identifier: int = 1, sequence: int = 1) -> bytes:
    rest = struct.pack("!HH", identifier, sequence) + data
    return b"\x08\0" + struct.pack("!H", checksum(b"\x08\0\0\0" + rest)) + rest


def arp(operation: int, mac: bytes, source: bytes, target: bytes) -> bytes:
    return struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation) + mac + source + bytes(6) + target


class Wire:
    """A station that says what the test wants, and keeps what it hears."""

    def __init__(self, network: Networked, number: int = 99) -> None:
        self.mac, self.address = mac_of(number), address_of(number)
        self.heard: list[bytes] = []
        self._network = network
        self._plug = network.bridge.plug(f"wire{number}", self)
        for other in range(2, 2 + len(network.machines)):
            self._meet(other)

    def _meet(self, number: int) -> None:
        """Ask a machine for its address, so that it knows ours."""
        question = arp(1, self.mac, self.address, address_of(number))
        self.send(ethernet(mac_of(number), self.mac, ETH_ARP, question))
        self.wait_for(lambda frame: frame[12:14] == b"\x08\x06", "an answer of ARP")

    def deliver(self, frames: Sequence[bytes]) -> None:
        self.heard += frames

    def send(self, *frames: bytes) -> None:
        self._plug.send(frames)

    def unplug(self) -> None:
        self._plug.unplug()

    def to(self, number: int, protocol: int, content: bytes, *, options: bytes = b"") -> bytes:
        """Make a packet to a machine."""
        packet = ip(self.address, address_of(number), protocol, content, options=options)
        return ethernet(mac_of(number), self.mac, ETH_IP, packet)

    def udp_to(self, number: int, ports: tuple[int, int], data: bytes) -> bytes:
        content = udp(self.address, address_of(number), ports, data)
        return self.to(number, PROTOCOL_UDP, content)

    def wait_for(self, match: Callable[[bytes], bool], what: str) -> bytes:
        """Run until a frame is heard; return it, and forget those before it."""
        machine = self._network.machines[0]
        machine.run_until(lambda: any(map(match, self.heard)), what)
        index = next(index for index, frame in enumerate(self.heard) if match(frame))
        frame = self.heard[index]
        del self.heard[: index + 1]
        return frame

    def ask(self, number: int, data: bytes, *, options: bytes = b"") -> bytes:
        """Ping a machine, and return the packet that answers."""
        question = echo(data)
        self.send(self.to(number, PROTOCOL_ICMP, question, options=options))
        return self.wait_for(lambda frame: frame[23:24] == b"\1" and frame[34] == 0, "an answer")
