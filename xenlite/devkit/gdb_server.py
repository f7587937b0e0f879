# SPDX-License-Identifier: GPL-2.0-or-later
"""One debugger's session with one domain: gdb's packets in, gdb's packets out.

States: *stopped*, every packet is answered at once; *running*, after a packet that resumes, and
then the answer is the next stop. A thread is a vCPU, numbered from 1. Everything is done through
``Control`` and ``Debugger``, between two turns of the domain; what they refuse is an error for the
client, in words by ``monitor why``, and a client that makes no sense is disconnected.
Source: gdb manual, appendix E.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EFAULT, EINVAL
from xenlite.debug_doors import Access, DebugStop, StopKind
from xenlite.devkit import gdb_monitor
from xenlite.devkit.gdb_packets import (
    MAX_PACKET_BYTES,
    Packet,
    PacketError,
    PacketReader,
    Signal,
    encode,
)
from xenlite.devkit.gdb_target import Registers, target_xml
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.debug_doors import Debugger
    from xenlite.doors import Control

_SIGINT, _SIGTRAP, _SIGABRT = 2, 5, 6
_SIGNALS: Final = {StopKind.ASKED: _SIGINT, StopKind.CRASH: _SIGABRT}
_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
_WATCHES: Final = {b"2": Access.CHANGE, b"3": Access.READ, b"4": Access.ANY}
_WATCH_WORDS: Final = {Access.CHANGE: b"watch", Access.READ: b"rwatch", Access.ANY: b"awatch"}
_ANY_THREADS: Final = (b"0", b"-1")
_MOST_BYTES: Final = (MAX_PACKET_BYTES - 16) // 2  # that a packet can carry in hexadecimal


@dataclass(frozen=True, slots=True)
class Client:
    """How to reach the client: both may be called at any time, and neither waits."""

    send: Callable[[bytes], None]
    close: Callable[[], None]


class GdbSession:
    """The session; ``receive``, ``hear`` and ``end`` are for the thread of the hypervisor."""

    def __init__(
        self,
        control: Control,
        domid: int,
        debugger: Debugger,
        client: Client,
        exit_status: Callable[[int], int],
        devices: Callable[[int], Sequence[str]] = lambda _domid: (),
    ) -> None:
        """Talk about a domain that ``debugger`` holds.

        ``exit_status`` is for a shutdown reason, ``devices`` describes a domain's in lines.
        """
        self._control = control
        self._domid = domid
        self._debugger = debugger
        self._client = client
        self._exit_status = exit_status
        self._reader = PacketReader()
        self._acknowledges = True
        self._is_running = False
        self._reports_breaks = False
        self._hardware: set[int] = set()
        self._vcpu = 0 if debugger.stop is None else debugger.stop.vcpu
        self._monitor = gdb_monitor.Monitor(control, debugger, domid, devices)
        self._commands: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _rest: self._stop_reply(),
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": self._read_memory,
            b"M": lambda rest: self._write_memory(rest, _from_hex),
            b"X": lambda rest: self._write_memory(rest, bytes),
            b"H": self._select_thread,
            b"T": self._is_thread_there,
            b"Z": lambda rest: self._break(rest, wanted=True),
            b"z": lambda rest: self._break(rest, wanted=False),
            b"c": lambda rest: self._resume(self._vcpu, rest, is_step=False),
            b"s": lambda rest: self._resume(self._vcpu, rest, is_step=True),
            b"C": lambda rest: self._resume(self._vcpu, rest[3:], is_step=False),
            b"S": lambda rest: self._resume(self._vcpu, rest[3:], is_step=True),
            b"D": lambda _rest: self._detach(),
            b"k": lambda _rest: self._kill(),
            b"q": self._query,
            b"Q": self._set,
            b"v": self._verb,
        }

    def receive(self, data: bytes) -> None:
        """Take bytes of the client."""
        try:
            events = self._reader.feed(data)
        except PacketError:
            self._client.close()
            return
        for event in events:
            if isinstance(event, Packet):
                self._answer(event.payload)
            elif event is Signal.INTERRUPT and self._is_running:
                self._debugger.interrupt()

    def hear(self, stop: DebugStop) -> None:
        """Hear of a stop of the domain."""
        if stop.kind is not StopKind.ENDED:
            self._vcpu = stop.vcpu
        if self._is_running:
            self._is_running = False
            text = gdb_monitor.describe(self._control, self._domid, stop)
            if text:
                self._send(b"O" + text.encode().hex().encode())
            self._send(self._stop_reply())

    def end(self) -> None:
        """Let go of the domain: the client is gone."""
        self._debugger.detach()

    # -- packets ------------------------------------------------------------------------------

    def _answer(self, payload: bytes | None) -> None:
        if payload is None:
            if self._acknowledges:
                self._client.send(b"-")
            return
        if self._acknowledges:
            self._client.send(b"+")
        command = self._commands.get(payload[:1])
        try:
            reply = b"" if command is None else command(payload[1:])
        except Refused as refused:
            self._monitor.last_refusal = refused
            reply = b"E%02x" % (refused.errno & 0xFF)
        if reply is not None:
            self._send(reply)

    def _send(self, payload: bytes) -> None:
        self._client.send(encode(payload))

    def _stop_reply(self) -> bytes:
        stop = self._debugger.stop
        if stop is None:
            raise Refused(EINVAL, "gdb.running")
        if stop.kind is StopKind.ENDED:
            if stop.reason is None:
                return b"X09"
            return b"W%02x" % self._exit_status(stop.reason)
        reply = b"T%02xthread:%x;" % (_SIGNALS.get(stop.kind, _SIGTRAP), stop.vcpu + 1)
        if stop.change is not None:
            reply += b"%s:%x;" % (_WATCH_WORDS[stop.change.access], stop.change.vaddr)
        elif stop.kind is StopKind.BREAKPOINT and self._reports_breaks:
            eip = self._control.registers(self._domid, stop.vcpu)["eip"]
            reply += b"hwbreak:;" if eip in self._hardware else b"swbreak:;"
        return reply

    # -- registers and memory -----------------------------------------------------------------

    def _registers(self) -> Registers:
        return Registers(self._control, self._debugger, self._domid, self._vcpu)

    def _read_registers(self, _rest: bytes) -> bytes:
        return self._registers().read_all().hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        self._registers().write_all(_from_hex(rest))
        return b"OK"

    def _read_register(self, rest: bytes) -> bytes:
        return self._registers().read(_number(rest)).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, value = _parts(rest, b"=", 2)
        self._registers().write(_number(number), _from_hex(value))
        return b"OK"

    def _read_memory(self, rest: bytes) -> bytes:
        vaddr, size = map(_number, _parts(rest, b",", 2))
        size = min(size, _MOST_BYTES)
        data = self._control.read_virtual(self._domid, self._vcpu, vaddr, size)
        if size and not data:
            raise Refused(EFAULT, "control.not-mapped", vaddr)
        return data.hex().encode()

    def _write_memory(self, rest: bytes, decode: Callable[[bytes], bytes]) -> bytes:
        where, data = _parts(rest, b":", 2)
        vaddr, size = map(_number, _parts(where, b",", 2))
        content = decode(data)
        if len(content) != size:
            raise Refused(EINVAL, "gdb.size-differs", size)
        self._control.write_virtual(self._domid, self._vcpu, vaddr, content)
        return b"OK"

    # -- threads ------------------------------------------------------------------------------

    def _threads(self) -> list[int]:
        return [one.vcpu for one in self._debugger.vcpus() if one.has_registers]

    def _thread(self, text: bytes) -> int:
        """Return the vCPU of a thread; any, for gdb's words for any."""
        if text in _ANY_THREADS:
            return self._vcpu
        vcpu = _number(text) - 1
        if vcpu not in self._threads():
            raise Refused(EINVAL, "gdb.no-such-thread", vcpu + 1)
        return vcpu

    def _is_thread_there(self, rest: bytes) -> bytes:
        self._thread(rest)
        return b"OK"

    def _select_thread(self, rest: bytes) -> bytes:
        self._vcpu = self._thread(rest[1:])
        return b"OK"

    # -- running ------------------------------------------------------------------------------

    def _verb(self, rest: bytes) -> bytes | None:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S"
        if rest.startswith(b"Cont;"):
            self._continue(rest[5:])
            return None
        if rest.startswith(b"Kill"):
            return self._detach()
        return b""

    def _continue(self, rest: bytes) -> None:
        """Do the first step that is asked for; else let all run, in whatever words."""
        for action in rest.split(b";"):
            what, _, thread = action.partition(b":")
            if what[:1] in (b"s", b"S"):
                self._resume(self._thread(thread or b"0"), b"", is_step=True)
                return
            if what[:1] not in (b"c", b"C"):
                raise Refused(EINVAL, "gdb.no-such-action", what.decode("ascii", "replace"))
        self._resume(self._vcpu, b"", is_step=False)

    def _resume(self, vcpu: int, at: bytes, *, is_step: bool) -> None:
        if at:
            self._debugger.write_registers(vcpu, {"eip": _number(at)})
        self._is_running = True
        try:
            if self._debugger.stop is not None and self._debugger.stop.kind is StopKind.ENDED:
                self.hear(self._debugger.stop)
            elif is_step:
                self._debugger.step(vcpu)
            else:
                self._debugger.resume()
        except Refused:
            self._is_running = False
            raise

    def _break(self, rest: bytes, *, wanted: bool) -> bytes:
        kind, where, size = _parts(rest.partition(b";")[0], b",", 3)
        vaddr = _number(where)
        if kind in _WATCHES:
            length, access = _number(size), _WATCHES[kind]
            if wanted:
                self._debugger.set_watchpoint(self._vcpu, vaddr, length, access)
            else:
                self._debugger.clear_watchpoint(vaddr, length, access)
        elif kind in (b"0", b"1"):
            if wanted:
                self._debugger.set_breakpoint(vaddr)
            else:
                self._debugger.clear_breakpoint(vaddr)
            change = self._hardware.add if wanted and kind == b"1" else self._hardware.discard
            change(vaddr)
        else:
            return b""
        return b"OK"

    def _detach(self) -> bytes:
        self._debugger.detach()
        return b"OK"

    def _kill(self) -> None:
        """Let go: whoever runs the domain ends it."""
        self._debugger.detach()
        self._client.close()

    # -- what the client wants to know --------------------------------------------------------

    def _query(self, rest: bytes) -> bytes:
        word, _, more = rest.partition(b":")
        if word == b"Supported":
            self._reports_breaks = b"swbreak+" in more
            return (
                b"PacketSize=%x;qXfer:features:read+;swbreak+;hwbreak+;vContSupported+;"
                b"QStartNoAckMode+" % MAX_PACKET_BYTES
            )
        if word == b"Xfer" and more.startswith(b"features:read:target.xml:"):
            offset, size = map(_number, _parts(more.rpartition(b":")[2], b",", 2))
            piece = target_xml()[offset : offset + min(size, MAX_PACKET_BYTES // 2)]
            is_last = offset + len(piece) >= len(target_xml())
            return (b"l" if is_last else b"m") + piece
        if word == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % (vcpu + 1) for vcpu in self._threads())
        if word == b"sThreadInfo":
            return b"l"
        if word == b"C":
            return b"QC%x" % (self._vcpu + 1)
        if word == b"Attached":
            return b"1"
        if word == b"Symbol":
            return b"OK"
        if word.startswith(b"ThreadExtraInfo,"):
            return self._thread_info(self._thread(word.partition(b",")[2])).encode().hex().encode()
        if word.startswith(b"Rcmd,"):
            return self._command(_from_hex(word[5:]))
        return b""

    def _thread_info(self, vcpu: int) -> str:
        info = self._debugger.vcpus()[vcpu]
        return f"vcpu {vcpu}, {info.state}"

    def _command(self, text: bytes) -> bytes:
        words = text.decode("utf-8", "replace")
        answer = self._monitor.run(words, self._vcpu)
        return answer.encode()[: _MOST_BYTES - 1].hex().encode() or b"OK"

    def _set(self, rest: bytes) -> bytes:
        if rest == b"StartNoAckMode":
            self._acknowledges = False
            return b"OK"
        return b""


def _number(text: bytes) -> int:
    if _HEX.fullmatch(text) is None:
        raise Refused(EINVAL, "gdb.not-a-number", text.decode("ascii", "replace"))
    return int(text, 16)


def _from_hex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise Refused(EINVAL, "gdb.not-hexadecimal") from None


def _parts(text: bytes, separator: bytes, count: int) -> list[bytes]:
    parts = text.split(separator, count - 1)
    if len(parts) != count:
        raise Refused(EINVAL, "gdb.bad-packet", text[:32].decode("ascii", "replace"))
    return parts
