# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's ``monitor`` commands: what only a hypervisor knows of its guest, in lines to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_XEN,
    HYPERCALL_NAMES,
    SHUTDOWN_NAMES,
    VIRQ_NAMES,
    GTF_readonly,
)
from xenlite.debug_doors import StopKind, Writer
from xenlite.errors import Refused
from xenlite.toolstack.call_text import call_line, call_text, refused_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.debug_doors import Change, Debugger, DebugStop
    from xenlite.doors import Control

HELP: Final = """\
domain                      the domain, and what it does
vcpus                       each vCPU, and its events
walk ADDRESS                the page tables on the way to an address
p2m PFN                     the machine frame of a page
frame MFN                   a machine frame: whose, what, how often, who maps it
ports                       the open event ports
grants                      the pages on offer to others
devices                     the backends: states, ring indexes, work
log [N]                     the last hypercalls (64 are remembered)
break-hypercall NAME ...    stop before these are made; none: at no more
break-refused on|off        stop behind each refused one (off)
break-crash on|off          stop where the domain would crash (on)
why                         the last error, in words
"""
_PTE_FLAGS: Final = (
    ("present", 0), ("writable", 1), ("user", 2), ("accessed", 5), ("dirty", 6), ("global", 8),
    ("nx", 63),
)  # fmt: skip
_PTE_MFN: Final = 0xFFFFFFF
_LONGEST_INSTRUCTION: Final = 15
_OWNERS: Final = {DOMID_XEN: "xenlite", None: "nobody: free"}


class Monitor:
    """The commands of one session."""

    def __init__(
        self,
        control: Control,
        debugger: Debugger,
        domid: int,
        devices: Callable[[int], Sequence[str]],
    ) -> None:
        """Look at a domain; ``devices`` describes a domain's devices in lines."""
        self._control = control
        self._find_devices = devices
        self._debugger = debugger
        self._domid = domid
        self.last_refusal: Refused | None = None
        self._commands: dict[str, Callable[[Sequence[str], int], str]] = {
            "help": lambda _words, _vcpu: HELP,
            "domain": self._domain,
            "vcpus": self._vcpus,
            "walk": self._walk,
            "p2m": self._p2m,
            "frame": self._frame,
            "ports": self._ports,
            "grants": self._grants,
            "devices": self._devices,
            "log": self._log,
            "break-hypercall": self._break_hypercall,
            "break-refused": lambda words, _vcpu: self._switch(
                words, lambda wanted: self._debugger.break_on_refusals(wanted=wanted)
            ),
            "break-crash": lambda words, _vcpu: self._switch(
                words, lambda wanted: self._debugger.break_on_crash(wanted=wanted)
            ),
            "why": self._why,
        }

    def run(self, line: str, vcpu: int) -> str:
        """Carry out a command for the selected vCPU; return what to show."""
        words = line.split()
        command = self._commands.get(words[0] if words else "help")
        if command is None:
            return f"no such command: {words[0]}; monitor help lists them\n"
        try:
            return command(words[1:], vcpu)
        except Refused as refused:
            return f"refused: {refused}\n"
        except _UsageError as error:
            return f"{error}\n"

    # -- commands -----------------------------------------------------------------------------

    def _domain(self, _words: Sequence[str], _vcpu: int) -> str:
        info = self._control.info(self._domid)
        lines = [
            f"domain {info.domid} {info.name!r}: {info.state.name.lower()}, {info.vcpus} vCPUs",
            f"{info.pages} pages of at most {info.max_pages}",
            f"shared_info in mfn {info.shared_info_mfn:#x}",
        ]
        if info.shutdown_reason is not None:
            lines.append(f"shut down: {SHUTDOWN_NAMES.get(info.shutdown_reason)}")
        return _lines(lines)

    def _vcpus(self, _words: Sequence[str], _vcpu: int) -> str:
        lines = []
        for one in self._debugger.vcpus():
            events = "pending" if one.upcall_pending else "none pending"
            mask = "masked" if one.upcall_masked else "not masked"
            line = f"vcpu {one.vcpu}: {one.state}, events {events}, {mask}"
            if one.has_registers:
                registers = self._control.registers(self._domid, one.vcpu)
                ring = registers["cs"] & 3
                line += f", eip {registers['eip']:#x}, ring {ring}, cr3 {registers['cr3']:#x}"
            lines.append(line)
        return _lines(lines)

    def _walk(self, words: Sequence[str], vcpu: int) -> str:
        steps = self._control.page_walk(self._domid, vcpu, _address(words))
        lines = [
            f"L{step.level} entry at {step.maddr:#010x}: {_entry(step.entry)}" for step in steps
        ]
        return _lines(lines) if lines else "this vCPU has no page tables\n"

    def _p2m(self, words: Sequence[str], _vcpu: int) -> str:
        pfn = _address(words)
        mfn = self._debugger.frame_of(pfn)
        return f"pfn {pfn:#x}: " + ("none\n" if mfn is None else f"mfn {mfn:#x}\n")

    def _frame(self, words: Sequence[str], _vcpu: int) -> str:
        mfn = _address(words)
        info = self._control.frame(mfn)
        owner = _OWNERS.get(info.owner, f"domain {info.owner}")
        pinned = ", pinned" if info.is_pinned else ""
        lines = [
            f"mfn {mfn:#x}: owner {owner}; type {info.type}, used {info.type_count} times"
            f" as such{pinned}; {info.references} references; pfn {info.pfn:#x}"
        ]
        lines += [
            f"  mapped by the L1 entry at {maddr:#010x}" for maddr in self._debugger.mapped_by(mfn)
        ]
        return _lines(lines)

    def _ports(self, _words: Sequence[str], _vcpu: int) -> str:
        lines = []
        for port in self._debugger.ports():
            end = {
                "interdomain": f" with domain {port.remote} port {port.remote_port}",
                "unbound": f" for domain {port.remote}",
                "virq": f" {VIRQ_NAMES.get(port.virq, port.virq)}",
            }.get(port.state, "")
            flags = (" pending" if port.is_pending else "") + (" masked" if port.is_masked else "")
            lines.append(f"port {port.port}: {port.state}{end}, to vcpu {port.vcpu}{flags}")
        return _lines(lines) if lines else "no open port\n"

    def _grants(self, _words: Sequence[str], _vcpu: int) -> str:
        lines = [
            f"grant {one.ref}: mfn {one.mfn:#x} to domain {one.to},"
            f" {'read-only' if one.flags & GTF_readonly else 'writable'},"
            f" mapped {one.mappings} times, {one.writable_mappings} for writing"
            for one in self._debugger.grants()
        ]
        return _lines(lines) if lines else "no grants\n"

    def _devices(self, _words: Sequence[str], _vcpu: int) -> str:
        return _lines(self._find_devices(self._domid)) or "no devices\n"

    def _log(self, words: Sequence[str], _vcpu: int) -> str:
        records = self._debugger.hypercalls()
        if words:
            records = records[-max(_number(words[0], 10), 1) :]
        return _lines([call_line(one) for one in records]) or "none\n"

    def _break_hypercall(self, words: Sequence[str], _vcpu: int) -> str:
        if not words:
            raise _UsageError("which hypercall? (none: at no more)")
        numbers = {name: number for number, name in HYPERCALL_NAMES.items()}
        wanted = [] if list(words) == ["none"] else list(words)
        unknown = [name for name in wanted if name not in numbers]
        if unknown:
            raise _UsageError(f"no such hypercall: {' '.join(unknown)}")
        self._debugger.break_on_hypercalls([numbers[name] for name in wanted])
        return f"stops before: {' '.join(wanted) or 'none'}\n"

    def _switch(self, words: Sequence[str], switch: Callable[[bool], None]) -> str:
        if list(words) not in (["on"], ["off"]):
            raise _UsageError("on or off?")
        switch(words[0] == "on")
        return f"{words[0]}\n"

    def _why(self, _words: Sequence[str], _vcpu: int) -> str:
        return "no error yet\n" if self.last_refusal is None else f"{self.last_refusal}\n"


class _UsageError(Exception):
    """The command is not written as it must be."""


def describe(control: Control, domid: int, stop: DebugStop) -> str:
    """Say in a line what a stop is about, where gdb itself cannot know; else nothing."""
    if stop.change is not None:
        return f"xenlite: {_change(control, domid, stop.vcpu, stop.change)}\n"
    if stop.hypercall is not None:
        call = call_text(stop.hypercall.number, stop.hypercall.arguments)
        return f"xenlite: before {call}\n"
    if stop.refusal is not None:
        return f"xenlite: refused: {refused_line(stop.refusal)}\n"
    if stop.kind is StopKind.CRASH:
        return f"xenlite: the domain would crash here: {stop.crash}\n"
    return ""


def _change(control: Control, domid: int, vcpu: int, change: Change) -> str:
    old, new = (int.from_bytes(content, "little") for content in (change.old, change.new))
    digits = 2 * len(change.new)
    at = f"{len(change.new)} bytes at {change.vaddr:#x}"
    place = f"{change.eip:#x}{_instruction(control, domid, vcpu, change.eip)}"
    if change.old == change.new:
        return f"{at}: {new:#0{digits + 2}x}, used by the instruction at {place}"
    who = {
        Writer.INSTRUCTION: f"by the instruction at {place}",
        Writer.HYPERVISOR: f"by the hypervisor, in the trap of the instruction at {place}",
        Writer.OUTSIDE: "between two turns: by xenlite, a backend or another domain",
    }[change.writer]
    return f"{at}: {old:#0{digits + 2}x} -> {new:#0{digits + 2}x}, {who}"


def _instruction(control: Control, domid: int, vcpu: int, eip: int) -> str:
    import capstone

    code = control.read_virtual(domid, vcpu, eip, _LONGEST_INSTRUCTION)
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    for _, _, mnemonic, operands in engine.disasm_lite(code, eip, 1):
        return f" ({mnemonic} {operands})".replace(" )", ")")
    return ""


def _entry(entry: int) -> str:
    flags = [name for name, bit in _PTE_FLAGS if entry >> bit & 1]
    return f"{entry:#018x}, mfn {entry >> 12 & _PTE_MFN:#x}, {' '.join(flags) or 'not present'}"


def _address(words: Sequence[str]) -> int:
    if len(words) != 1:
        raise _UsageError("one number, please: 0x10 or 16")
    return _number(words[0], 0)


def _number(word: str, base: int) -> int:
    try:
        number = int(word, base)
    except ValueError:
        raise _UsageError(f"not a number: {word}") from None
    if not 0 <= number < 1 << 32:
        raise _UsageError(f"not a number of 32 bits: {word}")
    return number


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
