# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive a guest by Debian's gdb in batch mode, or by raw packets, in the test's own process.

The hypervisor runs on the test's thread until the debugger has left; gdb is a process of its own,
as for a user. A script may name the labels of the guest: ``{label}`` is its address.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.guest import BootedGuest
from xenlite.devkit.gdb_listeners import GdbListeners
from xenlite.devkit.gdb_packets import Packet, PacketReader, encode
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.lifecycle import exit_status

LIMIT_S = 60
needs_gdb = pytest.mark.skipif(
    shutil.which("gdb") is None, reason="gdb is not installed: apt-get install gdb"
)
PREAMBLE = """
set pagination off
set confirm off
set architecture i386
set tcp auto-retry off
python
import os, signal, threading
class Try(gdb.Command):
    def __init__(self):
        super().__init__("try", gdb.COMMAND_USER)
    def invoke(self, line, from_tty):
        try:
            gdb.execute(line)
        except gdb.error as error:
            print(f"error: {error}")
Try()
class InterruptNext(gdb.Command):
    def __init__(self):
        super().__init__("interrupt-next", gdb.COMMAND_USER)
    def invoke(self, line, from_tty):
        gdb.events.cont.connect(self.resumed)
    def resumed(self, event):
        gdb.events.cont.disconnect(self.resumed)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
InterruptNext()
end
"""
"""What every script begins with.

``try COMMAND`` goes on after an error, which ends other scripts; ``interrupt-next`` types Ctrl-C a
little after the guest is let run the next time.
"""


@contextmanager
def listening(
    hypervisor: Hypervisor, domids: dict[str, int], *, waits: bool = False, address: str = ":0"
) -> Iterator[GdbListeners]:
    """Listen for debuggers of these domains."""
    listeners = GdbListeners(
        address,
        list(domids),
        hypervisor.control(),
        hypervisor.defer,
        exit_status,
        waits=waits,
    )
    try:
        for name, domid in domids.items():
            listeners.built(domid, name)
        yield listeners
    finally:
        listeners.close()


def run_beside(hypervisor: Hypervisor, work: Callable[[], None]) -> None:
    """Run the hypervisor until ``work`` is done on another thread; what it raises is raised."""
    failures: list[BaseException] = []
    is_done = threading.Event()

    def do_work() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again on the test's thread
            failures.append(error)
        is_done.set()
        hypervisor.kick()

    thread = threading.Thread(target=do_work, daemon=True)
    thread.start()
    deadline_ns = hypervisor.machine.clock.monotonic_ns() + 2 * LIMIT_S * 10**9
    assert hypervisor.run(is_done.is_set, deadline_ns), "the debugger does not come back"
    thread.join()
    if failures:
        raise failures[0]


def gdb_process(script: str, files: Sequence[Path] = (), program: str = "gdb") -> str:
    """Run gdb with a script; return what it says."""
    with tempfile.NamedTemporaryFile("w", suffix=".gdb") as file:
        file.write(PREAMBLE + script)
        file.flush()
        done = subprocess.run(
            [program, "-nx", "-q", "-batch", "-x", file.name, *map(str, files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    return done.stdout


def run_gdb(guest: BootedGuest, script: str, *, waits: bool = True) -> str:
    """Attach gdb to a guest and run a script: ``{label}`` is an address; return what it says."""
    said = ""

    def work() -> None:
        nonlocal said
        addresses = {name: hex(address) for name, address in guest.symbols.items()}
        said = gdb_process(f"target remote {where}\n" + script.format(**addresses))

    with listening(guest.hypervisor, {"guest": guest.domid}, waits=waits) as listeners:
        where = listeners.addresses()["guest"]
        run_beside(guest.hypervisor, work)
    return said


class RawClient:
    """A client that sends what it likes; for the thread of ``run_beside``."""

    def __init__(self, address: str) -> None:
        if address.startswith(":"):
            self.socket = socket.create_connection(("127.0.0.1", int(address[1:])), LIMIT_S)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        self.socket.settimeout(LIMIT_S)
        self._reader = PacketReader()
        self._packets: list[bytes] = []

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, payload: bytes) -> bytes:
        """Send a packet and return the answer."""
        self.socket.sendall(encode(payload))
        return self.next()

    def next(self) -> bytes:
        """Return the next packet of the server."""
        while not self._packets:
            data = self.socket.recv(4096)
            assert data, "the server has closed the connection"
            for event in self._reader.feed(data):
                if isinstance(event, Packet):
                    assert event.payload is not None
                    self._packets.append(event.payload)
        return self._packets.pop(0)

    def is_closed(self) -> bool:
        """Wait for the server to close, whatever it still says; False where it talks on."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True
