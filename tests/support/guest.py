# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot a few lines of assembly as a whole domain, in ring 1, and look at what became of it.

The lines are built into a domain by the real builder, with ``PRELUDE`` before them, and start at
their label ``start`` with everything as Xen's builder leaves it: esi = start_info, a boot stack,
events masked. The domain runs until it shuts down or crashes, or its time is up::

    with boot("start:\\n FINISH 7\\n") as guest:
        assert guest.reason == 7

Words that the lines store at a label are read with ``guest.word(label)``. At the end of the block
the machine is audited, the domain destroyed, and nothing may be left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xenlite.control import ControlDoor
from xenlite.core.domain import Domain
from xenlite.devkit.assembler import Fragment, assemble_fragment
from xenlite.doors import CrashRecord, Refusal
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock
from xenlite.machine.cpu import Mode
from xenlite.toolstack.builder import BuiltDomain, build
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.image import KernelImage, Segment

VIRT_BASE = 0xC0000000
ORIGIN = VIRT_BASE + 0x1000
MEGABYTE = 1 << 20

PRELUDE = """
.equ PTE_RW_DATA, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ PTE_RO_DATA, _PAGE_PRESENT | _PAGE_ACCESSED
.equ PTE_USER_RW, PTE_RW_DATA | _PAGE_USER
.equ PTE_USER_RO, PTE_RO_DATA | _PAGE_USER

# Make a hypercall; its arguments are in ebx, ecx, edx, esi and edi.
.macro XEN name
    mov eax, HYPERVISOR_\\name
    int HYPERCALL_VECTOR
.endm

# Shut down, with a reason that tells the test where.
.macro FINISH reason=0
    mov dword ptr [shutdown_reason], \\reason
    jmp shutdown
.endm

# Map the page at an address again: the frame of the PFN it had at first, with other rights.
.macro REMAP vaddr, flags
    mov ebx, \\vaddr
    mov ecx, \\flags
    call remap
.endm

# Find shared_info at the label of that name, and let no events in.
.macro MAP_SHARED_INFO
    mov ebx, offset shared_info
    mov ecx, [esi + START_INFO_SHARED_INFO]
    or ecx, PTE_RW_DATA
    xor edx, edx
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
.endm

.macro SET_TRAPS table
    mov ebx, offset \\table
    XEN set_trap_table
.endm

# One entry of a trap table.
.macro GATE vector, flags, handler, cs=FLAT_RING1_CS
    .byte \\vector, \\flags
    .word \\cs
    .long \\handler
.endm
.macro GATES_END
    .quad 0
.endm

# Go to ring 3 with a stack of its own, interrupts on, through the native iret.
.macro TO_USER target
    push FLAT_RING3_SS
    push offset user_stack_top
    push EFLAGS_IF
    push FLAT_RING3_CS
    push offset \\target
    iretd
.endm

# In a handler: keep the frame, count words of it, and end.
.macro KEEP_FRAME count, reason=0
    mov esi, esp
    mov edi, offset frame
    mov ecx, \\count
    cld
    rep movsd
    FINISH \\reason
.endm

.text
    jmp start

shutdown:
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset shutdown_reason
    XEN sched_op
    int3

# In: ebx = address, ecx = flags. Out: eax = result.
remap:
    mov eax, ebx
    sub eax, VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov edx, [edx + eax * 4]
    mov eax, edx
    shl edx, 12
    or ecx, edx
    shr eax, 20
    mov edx, eax
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    ret

.data
shutdown_reason:
    .long 0
p2m:
    .long 0
frame:
    .fill 16, 4, 0xAAAAAAAA

.bss
.p2align 12
shared_info:
    .space 4096
    .space 4096
kernel_stack_top:
    .space 4096
user_stack_top:
    .space 4096
"""
START = """
.text
start:
    mov eax, [esi + START_INFO_MFN_LIST]
    mov [p2m], eax
"""


KERNEL_AND_PROGRAM = """
    MAP_SHARED_INFO
    SET_TRAPS traps
    REMAP offset program_page, PTE_USER_RO
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    \\before
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    TO_USER program
handler:
    \\handler
.text
.p2align 12
program_page:
program:
    \\program
.p2align 12
"""
"""A kernel that runs ``program`` in ring 3, its events on; the test fills in the three parts."""


def traps(*gates: str) -> str:
    """Write a trap table at the label ``traps``; a gate is "vector, flags, handler[, cs]"."""
    lines = "\n".join(f"    GATE {gate}" for gate in gates)
    return f"\n.data\ntraps:\n{lines}\n    GATES_END\n.text\n"


class BootedGuest:
    """A domain that has run to its end."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        control: ControlDoor,
        built: BuiltDomain,
        symbols: dict[str, int],
        undo: ExitStack,
    ) -> None:
        self.hypervisor = hypervisor
        self.control = control
        self.built = built
        self.domid = built.domid
        self.symbols = symbols
        self._undo = undo
        self.console = b""
        self.refusals: list[Refusal] = []

    @property
    def domain(self) -> Domain:
        """Return what the hypervisor keeps of it."""
        return self.hypervisor.domains[self.domid]

    @property
    def reason(self) -> int | None:
        """Return why it shut down; None while it runs."""
        return self.control.info(self.domid).shutdown_reason

    @property
    def crash(self) -> CrashRecord | None:
        """Return why it crashed, if it did."""
        return self.control.crash_record(self.domid)

    @property
    def crash_rule(self) -> str | None:
        """Return the rule that it crashed by."""
        return None if self.crash is None else self.crash.rule

    @property
    def rules(self) -> list[str]:
        """Return the rules by which hypercalls were refused, in order."""
        return [refusal.rule for refusal in self.refusals]

    def bytes_at(self, label: str, size: int) -> bytes:
        """Read memory behind a label."""
        return self.control.read_virtual(self.domid, 0, self.symbols[label], size)

    def word(self, label: str, index: int = 0) -> int:
        """Read one word behind a label."""
        data = self.control.read_virtual(self.domid, 0, self.symbols[label] + 4 * index, 4)
        return int.from_bytes(data, "little")

    def words(self, label: str, count: int) -> list[int]:
        """Read words behind a label."""
        return [self.word(label, index) for index in range(count)]

    def destroy(self) -> None:
        """Take it apart, before its time."""
        self._undo.close()

    def run(self, seconds: float = 10.0, until: Callable[[], bool] | None = None) -> bool:
        """Run until the domain ends, or something else holds; False where time is up first."""
        deadline = self.hypervisor.machine.clock.monotonic_ns() + int(seconds * 1e9)
        return self.hypervisor.run(until or (lambda: self.reason is not None), deadline)


def image_of(fragment: Fragment) -> KernelImage:
    """Describe an assembled fragment, which begins at its entry, to the builder."""
    size = len(fragment.code)
    return KernelImage(
        segments=(Segment(ORIGIN, memoryview(fragment.code), size),),
        entry=ORIGIN,
        virt_base=VIRT_BASE,
        start=ORIGIN,
        end=ORIGIN + size,
        hypercall_page=None,
        extended_cr3=False,
        guest_os="test",
        guest_version="",
        features=frozenset(),
    )


def add_guest(
    hypervisor: Hypervisor,
    source: str,
    undo: ExitStack,
    *,
    name: str = "guest",
    memory_mb: int = 4,
    vcpus: int = 1,
    defines: dict[str, int] | None = None,
) -> BootedGuest:
    """Build the domain, still paused, into a hypervisor that is there; ``undo`` destroys it."""
    text = PRELUDE + (source if "start:" in source else START + source)
    fragment = assemble_fragment(text, ORIGIN, {"VIRT_BASE": VIRT_BASE, **(defines or {})})
    config = DomainConfig(name, Path(name), name, memory_mb, memory_mb, vcpus=vcpus, maxvcpus=vcpus)
    control = hypervisor.control()
    own = undo.enter_context(ExitStack())
    built = build(control, config, image_of(fragment), b"", own)
    return BootedGuest(hypervisor, control, built, dict(fragment.symbols), own)


@contextmanager
def made(
    source: str,
    *,
    memory_mb: int = 4,
    host_mb: int = 32,
    vcpus: int = 1,
    clock: Clock | None = None,
    mode: Mode = "auto",
    defines: dict[str, int] | None = None,
) -> Iterator[BootedGuest]:
    """Build the domain and unpause it, but leave running it to the caller."""
    hypervisor = Hypervisor(host_mb * MEGABYTE, clock, cpu_mode=mode)
    try:
        control = hypervisor.control()
        free = sum(hypervisor.machine.frames.refs)
        with ExitStack() as undo:
            guest = add_guest(
                hypervisor, source, undo, memory_mb=memory_mb, vcpus=vcpus, defines=defines
            )
            hypervisor.console_output = lambda _domid, data: _append(guest, data)
            hypervisor.on_refused = guest.refusals.append
            control.unpause(guest.domid)
            yield guest
            assert control.audit() == []
        assert control.audit() == []
        assert sum(hypervisor.machine.frames.refs) == free, "the domain left references behind"
    finally:
        hypervisor.close()


@contextmanager
def boot(
    source: str,
    *,
    memory_mb: int = 4,
    host_mb: int = 32,
    seconds: float = 10.0,
    vcpus: int = 1,
    clock: Clock | None = None,
    defines: dict[str, int] | None = None,
) -> Iterator[BootedGuest]:
    """Build the domain and run it to its end."""
    with made(
        source, memory_mb=memory_mb, host_mb=host_mb, vcpus=vcpus, clock=clock, defines=defines
    ) as guest:
        assert guest.run(seconds), f"still running after {seconds} s"
        yield guest


def _append(guest: BootedGuest, data: bytes) -> None:
    guest.console += data
