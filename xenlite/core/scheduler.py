# SPDX-License-Identifier: GPL-2.0-or-later
"""Give every domain its share of the CPU: weights, caps, and a head start for who has just woken.

Xen's credit scheduler hands out credits by weight and takes them for time spent. Here the account
is continuous: a domain's *virtual time* is the time it has spent, divided by its weight, and the
runnable domain with the least goes next. Invariants:

1. Among domains that always want to run, time spent is proportional to weight, within a slice.
2. Sleeping earns nothing beyond one slice: virtual time is brought up to the others' on waking.
3. A domain that was just woken goes first, unless it is more than a slice ahead of the others.
4. A vCPU that has yielded goes after everybody who wants to run, once.
5. A capped domain spends at most ``cap`` percent of a CPU in each period; then it is parked.

Within a domain its vCPUs take turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.core.vcpu import VcpuState

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

SLICE_NS: Final = 2_000_000
CAP_PERIOD_NS: Final = 30_000_000
DEFAULT_WEIGHT: Final = 256


@dataclass(slots=True)
class Account:
    """What one domain is entitled to, and what it has spent; ``cap`` in percent, 0 for none."""

    weight: int = DEFAULT_WEIGHT
    cap: int = 0
    virtual_ns: int = 0
    period_ns: int = 0  # when the current cap period began
    spent_ns: int = 0  # in it
    turn: int = 0  # which vCPU was last

    def is_parked(self, now_ns: int) -> bool:
        """Tell whether the cap of this period is used up."""
        if not self.cap or now_ns - self.period_ns >= CAP_PERIOD_NS:
            return False
        return self.spent_ns * 100 >= self.cap * CAP_PERIOD_NS


class Scheduler:
    """The accounts of one machine."""

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}
        self._virtual_ns = 0  # where the domain that ran last stood: never goes back

    def add(self, domid: int, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """Open an account; it starts level with the others."""
        self._accounts[domid] = Account(weight, cap, self._virtual_ns)

    def set(self, domid: int, weight: int, cap: int) -> None:
        """Change a domain's weight and cap."""
        account = self._accounts[domid]
        account.weight, account.cap = weight, cap

    def remove(self, domid: int) -> None:
        """Close an account."""
        del self._accounts[domid]

    def pick(self, domains: Iterable[Domain], now_ns: int) -> Vcpu | None:
        """Choose the vCPU that runs next; None where nobody may."""
        best: tuple[int, int] | None = None
        chosen: Vcpu | None = None
        passed_over: list[Vcpu] = []
        for domain in domains:
            account = self._accounts[domain.domid]
            if account.is_parked(now_ns):
                continue
            vcpu = _next_vcpu(domain, account)
            if vcpu is None:
                continue
            if vcpu.was_woken:
                account.virtual_ns = max(account.virtual_ns, self._virtual_ns - SLICE_NS)
            ahead = account.virtual_ns - self._virtual_ns > SLICE_NS
            rank = (_class(vcpu, ahead=ahead), account.virtual_ns)
            if vcpu.has_yielded:
                passed_over.append(vcpu)
            if best is None or rank < best:
                best, chosen = rank, vcpu
        if chosen is not None:
            account = self._accounts[chosen.domain.domid]
            self._virtual_ns = max(self._virtual_ns, min(account.virtual_ns, self._least(domains)))
            account.turn = chosen.id
            chosen.was_woken = False
            for vcpu in passed_over:
                vcpu.has_yielded = False
        return chosen

    def charge(self, domid: int, spent_ns: int, now_ns: int) -> None:
        """Take what a domain has just spent from its account."""
        account = self._accounts[domid]
        account.virtual_ns += spent_ns * DEFAULT_WEIGHT // account.weight
        if now_ns - account.period_ns >= CAP_PERIOD_NS:
            account.period_ns = now_ns
            account.spent_ns = 0
        account.spent_ns += spent_ns

    def next_unpark_ns(self, now_ns: int) -> int | None:
        """Return when the first parked domain may run again; None where none is parked."""
        ends = [
            account.period_ns + CAP_PERIOD_NS
            for account in self._accounts.values()
            if account.is_parked(now_ns)
        ]
        return min(ends, default=None)

    def _least(self, domains: Iterable[Domain]) -> int:
        return min(
            (
                self._accounts[domain.domid].virtual_ns
                for domain in domains
                if _wants_to_run(domain)
            ),
            default=self._virtual_ns,
        )


def _class(vcpu: Vcpu, *, ahead: bool) -> int:
    if vcpu.has_yielded:
        return 2
    return 0 if vcpu.was_woken and not ahead else 1


def _wants_to_run(domain: Domain) -> bool:
    if domain.paused or domain.shutdown_reason is not None:
        return False
    return any(vcpu.state is VcpuState.RUNNABLE for vcpu in domain.vcpus)


def _next_vcpu(domain: Domain, account: Account) -> Vcpu | None:
    """Choose among the domain's vCPUs: a woken one first, then the next in turn."""
    if domain.paused or domain.shutdown_reason is not None:
        return None
    vcpus = domain.vcpus
    chosen = None
    for step in range(1, len(vcpus) + 1):
        vcpu = vcpus[(account.turn + step) % len(vcpus)]
        if vcpu.state is VcpuState.RUNNABLE:
            if vcpu.was_woken:
                return vcpu
            if chosen is None or (chosen.has_yielded and not vcpu.has_yielded):
                chosen = vcpu
    return chosen
