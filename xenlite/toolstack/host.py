# SPDX-License-Identifier: GPL-2.0-or-later
"""Compose a host: the hypervisor, Dom0's backends and the toolstack. Nothing else knows them all.

``Host.run`` is the whole life of ``xenlite run``: start the domains, run until each has ended for
good, and say how the run ended. What comes from outside (typed input, a wish to leave) may come
from any thread or signal handler: it is only noted, and the hypervisor is woken.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.abi.x86_32p import XEN_PAGE_SHIFT, SHUTDOWN_poweroff, SHUTDOWN_reboot
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import ConfigError, Fault, Refused
from xenlite.toolstack.console_config import Output
from xenlite.toolstack.consoles import open_channels
from xenlite.toolstack.domain_config import Reaction
from xenlite.toolstack.lifecycle import Guest, exit_status, reaction, reason_name
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.store_nodes import host_nodes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from xenlite.dom0.device_status import DeviceStatus
    from xenlite.doors import Refusal
    from xenlite.errors import PeerError
    from xenlite.hypervisor import Hypervisor
    from xenlite.machine.clock import Clock
    from xenlite.toolstack.consoles import Channel
    from xenlite.toolstack.domain_config import DomainConfig
    from xenlite.toolstack.networks import Networks
    from xenlite.toolstack.socket_server import Session, SocketServer
    from xenlite.toolstack.symbols import Symbols

EXIT_TIMEOUT: Final = 124
EXIT_CANNOT_RESTART: Final = 1  # as where it cannot start at all
EXIT_DESTROYED: Final = 130  # as when the user leaves, which destroys them all
AUDIT_PERIOD_NS: Final = 500_000_000
RECORD_BYTES: Final = 16 << 20  # a turn of 10 ms makes some 10,000 events of 64 bytes
CORE_TIMES_MEMORY: Final = 4  # a kernel maps its memory once, and some of it again
KEPT_CHUNKS: Final = 16  # of events, a turn each, for a crash report


@dataclass(frozen=True, slots=True)
class Voice:
    """Where a host speaks.

    ``console`` takes what the domain of a name prints, and ``ended`` hears that it has ended; both
    before ``say`` takes our own lines about it. ``crashed`` takes each crash report as JSON.
    """

    console: Callable[[str, bytes], None]
    ended: Callable[[str], None]
    say: Callable[[str], None]
    crashed: Callable[[str], None] = lambda _report: None


class Watcher(Protocol):
    """Who is shown what the domains do, while they do it (``trace_format.py``)."""

    def started(self, domid: int, symbols: Callable[[], Symbols]) -> None:
        """Hear of a new domain before its first event; ``symbols()`` are its kernel's labels."""

    def events(self, data: bytes, lost: int) -> None:
        """Take events, and how many more found no room."""


class Host:
    """One machine with its domains, in this process."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        clock: Clock,
        voice: Voice,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._hypervisor = hypervisor
        self.control = hypervisor.control()
        self.link = hypervisor.link(0)
        self.store = XenStore(self.link, self._store_broken)
        self.store.put(host_nodes())
        self._poller = Poller(self.link)
        self._clock = clock
        self._voice = voice
        self._guests: list[Guest] = []
        self._statuses: dict[str, int] = {}  # of the guests that have ended, by name
        self._preserved: set[int] = set()
        self._was_destroyed = False
        self._channels: dict[str, list[Channel]] = {}  # of each guest, by name
        self._names: dict[int, str] = {}
        self._leave_status: int | None = None
        self._deadline_ns: int | None = None
        self._audits = False
        self._next_audit_ns = 0
        self._watchers = watchers
        self._networks: Networks | None = None
        self._last_events: deque[bytes] = deque(maxlen=KEPT_CHUNKS)
        if watchers:
            self.control.record(RECORD_BYTES)
        self._built: Callable[[int, str], None] | None = None
        hypervisor.console_output = self._print_without_ring

    def run(
        self,
        configs: Sequence[DomainConfig],
        *,
        timeout_s: float | None = None,
        audits: bool = False,
        explains: bool = False,
        built: Callable[[int, str], None] | None = None,
        captures: Mapping[str, Path] | None = None,
    ) -> int:
        """Run domains until all have ended for good; return the exit status.

        That is the one of the first domain, in the order given, that did not power off;
        EXIT_TIMEOUT when the time was up; or what ``leave`` asked for. ``audits`` recomputes every
        invariant as it goes; ``explains`` says why each refused hypercall was refused. ``built``
        hears of each domain, by domid and name, before its first instruction. ``captures`` are
        files by what is written down there: a bridge, or a network card as in ``name.0``.
        """
        self._built = built
        self._audits = audits
        if explains:
            self._hypervisor.on_refused = self._explain
        self._guests = [Guest(config) for config in configs]
        if timeout_s is not None:
            self._deadline_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        with ExitStack() as undo:
            undo.callback(self._show_events)
            self._make_networks(configs, captures or {})
            for guest in self._guests:
                self._open_consoles(guest, undo)
            for guest in self._guests:
                undo.callback(guest.stop)
            for guest in self._guests:
                self._start(guest)
            return self._until_all_ended()

    def serve_store(self, listener: socket.socket) -> SocketServer:
        """Let tools that connect to ``listener`` use XenStore, until that is closed."""
        from xenlite.toolstack.store_socket import serve_store

        return serve_store(listener, self._poller, self.store.server)

    def serve_control(self, listener: socket.socket) -> SocketServer:
        """Do what tools ask for that connect to ``listener``, until that is closed."""
        from xenlite.toolstack.socket_server import SocketServer

        def greet(has_output: Callable[[], None]) -> Session:
            from xenlite.toolstack.commands import COMMANDS  # no start of a domain waits for it
            from xenlite.toolstack.control_socket import ControlSession

            return ControlSession(self, COMMANDS, has_output)

        return SocketServer(listener, self._poller, greet)

    def networks(self) -> Networks:
        """Return the host's networks, which are made when they are first asked for."""
        if self._networks is None:
            from xenlite.toolstack.networks import Networks

            # What guests read, as long as nobody sets the host's clock.
            self._networks = Networks(self.link, self._poller, self._clock.wall_ns, self._voice.say)
        return self._networks

    def close(self) -> None:
        """End the networks, and give the machine back. What was served is closed before."""
        if self._networks is not None:
            self._networks.close()
        self._poller.close()
        self._hypervisor.close()

    def leave(self, status: int) -> None:
        """End the run with ``status``, soon. From any thread or signal handler."""
        if self._leave_status is None:
            self._leave_status = status
        self._hypervisor.kick()

    def has_to_end(self) -> bool:
        """Tell whether the run is over whatever the domains do: left, or out of time."""
        deadline_ns = self._deadline_ns
        late = deadline_ns is not None and self._clock.monotonic_ns() >= deadline_ns
        return late or self._leave_status is not None

    def feed(self, data: bytes) -> None:
        """Type on the first domain's console. From any thread."""
        channel = self._typed_to()
        if channel is not None:
            self.link.defer(partial(channel.feed, data))

    def wants_input(self) -> bool:
        """Tell whether the first domain keeps up with what is typed. From any thread."""
        channel = self._typed_to()
        return channel is not None and channel.backend is not None and channel.wants_input()

    def _typed_to(self) -> Channel | None:
        """Return the first domain's first console, if that is on the terminal."""
        if not self._guests or self._guests[0].config.name not in self._channels:
            return None
        channel = self._channels[self._guests[0].config.name][0]
        return channel if channel.config.output is Output.TERMINAL else None

    # -- what tools ask for, in the loop ------------------------------------------------------

    def find(self, domain: str) -> Guest:
        """Return the guest of that domid or name that there is now. Raises ConfigError."""
        running = {str(_domid(guest)): guest for guest in self._guests if guest.domain is not None}
        if domain in running:
            return running[domain]
        for guest in running.values():
            if guest.config.name == domain:
                return guest
        raise ConfigError(Fault("", f"no domain is called {domain!r} here"))

    def destroy(self, guest: Guest) -> None:
        """Take a domain apart at once, whatever its owner wanted for its end."""
        self._statuses[guest.config.name] = EXIT_DESTROYED
        self._stop(guest)
        self._hang_up(guest)
        self._voice.ended(guest.config.name)
        self._was_destroyed = True

    # -- the run ------------------------------------------------------------------------------

    def _until_all_ended(self) -> int:
        while True:
            self._hypervisor.run(self._has_news, self._deadline_ns)
            self._was_destroyed = False
            ended = set(self.control.ended()) - self._preserved
            for guest in self._guests:
                domid = _domid(guest)
                if domid in ended:
                    self._statuses[guest.config.name], stays = self._react(guest)
                    if stays:
                        self._preserved.add(domid)
            statuses = [self._statuses.get(guest.config.name, 0) for guest in self._guests]
            status = next(filter(None, statuses), 0)
            left = {domid for domid in map(_domid, self._guests) if domid is not None}
            if not left:
                self._audit()
                return status
            if self._leave_status is not None:
                return status if left <= self._preserved else self._leave_status
            if self.has_to_end():
                return EXIT_TIMEOUT

    def _has_news(self) -> bool:
        if self._watchers:
            self._show_events()
        if self._audits and self._clock.monotonic_ns() >= self._next_audit_ns:
            self._audit()
        if self._leave_status is not None or self._was_destroyed:
            return True
        return not self._preserved.issuperset(self.control.ended())

    def _show_events(self) -> None:
        """Empty the recorder's buffer, which is large enough for what one turn can do."""
        data, lost = self.control.recorded()
        if data or lost:
            self._last_events.append(data)
            for watcher in self._watchers:
                watcher.events(data, lost)

    def _audit(self) -> None:
        if self._audits:
            wrong = self.control.audit() + self.store.audit()
            assert not wrong, "audit:\n" + "\n".join(wrong)
            self._next_audit_ns = self._clock.monotonic_ns() + AUDIT_PERIOD_NS

    def _make_networks(self, configs: Sequence[DomainConfig], captures: Mapping[str, Path]) -> None:
        """Make what is described, and begin what is to be captured. Raises ConfigError."""
        for network in [one for config in configs for one in config.networks]:
            self.networks().declare(network)
        if captures:
            from xenlite.toolstack.captures import begin_captures

            begin_captures(self.networks(), configs, captures)

    def _start(self, guest: Guest) -> None:
        name = guest.config.name

        def broken(error: PeerError) -> None:
            self._voice.say(f"domain {name!r} broke a device: {error}")

        def built(domid: int) -> None:
            if self._built is not None:
                self._built(domid, name)

        domain = guest.start(
            self.control,
            self.link,
            self.store,
            channels=self._channels[name],
            broken=broken,
            networks=self.networks,
            built=built,
        )
        for watcher in self._watchers:
            watcher.started(domain.domid, guest.symbols)

    def _store_broken(self, domid: int, error: PeerError) -> None:
        name = self.control.info(domid).name
        self._voice.say(f"domain {name!r} broke its XenStore ring: {error}")

    def _open_consoles(self, guest: Guest, undo: ExitStack) -> None:
        name = guest.config.name
        terminal = partial(self._voice.console, name)
        self._channels[name] = open_channels(
            guest.config.consoles, self._poller, undo, terminal=terminal, say=self._voice.say
        )

    def channel(self, guest: Guest, number: int) -> Channel | None:
        """Return a guest's console by its number, if there is such a one."""
        channels = self._channels[guest.config.name]
        return channels[number] if 0 <= number < len(channels) else None

    def devices(self, domid: int) -> list[DeviceStatus]:
        """Return what the devices of a domain are doing."""
        guest = next(one for one in self._guests if _domid(one) == domid)
        consoles = enumerate(self._channels[guest.config.name])
        found = [one.backend.status(n) for n, one in consoles if one.backend is not None]
        for kind in (guest.disks, guest.vifs):
            if kind is not None:
                found += kind.status()
        return found

    def _print_without_ring(self, domid: int, data: bytes) -> None:
        """Take what a domain prints by hypercall; its first console has that too."""
        name = self._names.get(domid)
        if name is None:
            name = self._names[domid] = self.control.info(domid).name
        self._channels[name][0].write(data)

    def _react(self, guest: Guest) -> tuple[int, bool]:
        """Do what the owner wants with an ended domain: its exit status, and whether it stays."""
        domain = guest.domain
        assert domain is not None
        assert guest.console is not None
        guest.console.drain()
        if self._watchers:
            self._show_events()
        self.store.server.domain_shut_down(domain.domid)
        self._voice.ended(guest.config.name)
        info = self.control.info(domain.domid)
        reason = info.shutdown_reason
        assert reason is not None, f"domain {domain.domid} ended without a reason"
        self._report(guest, reason)
        wish = reaction(guest.config, reason)
        if wish.dumps_core:
            self._dump_core(guest.config.name, domain.domid)
        if wish is Reaction.PRESERVE:
            self._voice.say(f"domain {guest.config.name!r} is preserved")
            return exit_status(reason), True
        self._stop(guest)
        if wish.restarts:
            if guest.restarts.allows(self._clock.monotonic_ns()):
                return self._restart(guest), False
            self._voice.say(f"domain {guest.config.name!r} restarts too often: left as it is")
        self._hang_up(guest)
        return exit_status(reason), False

    def _restart(self, guest: Guest) -> int:
        """Start a domain again; what it needs may have gone, which costs it alone."""
        try:
            self._start(guest)
        except (ConfigError, Refused) as error:
            self._voice.say(f"domain {guest.config.name!r} cannot start again: {error}")
            self._hang_up(guest)
            return EXIT_CANNOT_RESTART
        return 0

    def _hang_up(self, guest: Guest) -> None:
        for channel in self._channels[guest.config.name]:
            channel.close()

    def _stop(self, guest: Guest) -> None:
        domid = _domid(guest)
        assert domid is not None
        guest.stop()
        self._names.pop(domid, None)

    def _explain(self, refusal: Refusal) -> None:
        from xenlite.toolstack.crash_report import refusal_line

        guest = next(one for one in self._guests if _domid(one) == refusal.domid)
        self._voice.say(f"{guest.config.name}: {refusal_line(refusal, guest.symbols())}")

    def _report(self, guest: Guest, reason: int) -> None:
        domain = guest.domain
        assert domain is not None
        name = guest.config.name
        record = self.control.crash_record(domain.domid)
        if record is not None:
            from xenlite.toolstack.crash_report import as_json, as_text, crash_report
            from xenlite.trace_format import read

            tail = self._channels[name][0].tail.lines(20)
            events = [one for chunk in self._last_events for one in read(chunk)]
            report = crash_report(self.control, name, record, guest.symbols(), tail, events)
            self._voice.say(as_text(report))
            self._voice.crashed(as_json(report))
        elif reason not in (SHUTDOWN_poweroff, SHUTDOWN_reboot):
            self._voice.say(f"domain {name!r} shut down: {reason_name(reason)}")

    def _dump_core(self, name: str, domid: int) -> None:
        """Write ``<name>-<domid>.core`` where xenlite was started; a full disk ends that alone."""
        from xenlite.toolstack.coredump import MOST_BYTES, write_core

        path = Path(f"{name}-{domid}.core")
        record = self.control.crash_record(domid)
        vcpu = 0 if record is None else record.vcpu
        memory_bytes = self.control.info(domid).pages << XEN_PAGE_SHIFT
        most_bytes = min(CORE_TIMES_MEMORY * memory_bytes, MOST_BYTES)
        try:
            with path.open("wb") as file:
                is_whole = write_core(self.control, domid, vcpu, file, most_bytes=most_bytes)
        except OSError as error:
            self._voice.say(f"{path}: {error.strerror}: no core of domain {name!r}")
        else:
            left_out = "" if is_whole else ", but for mappings that are too many"
            self._voice.say(f"domain {name!r} is in {path}{left_out}: gdb KERNEL {path}")


def _domid(guest: Guest) -> int | None:
    return None if guest.domain is None else guest.domain.domid
