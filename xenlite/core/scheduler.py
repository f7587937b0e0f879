# SPDX-License-Identifier: GPL-2.0-or-later
"""Give every domain its share of the CPU: weights, caps, and a head start for who has just woken.

Xen's credit scheduler hands out credits by weight and takes them for time spent. Here the account
is continuous: a domain's *virtual time* is the time it has spent, divided by its weight, and the
runnable domain with the least goes next. Invariants:

1. Among domains that always want to run, time spent is proportional to weight, within a slice.
2. Whoever doesn't run earns nothing beyond one slice, be it asleep, paused, parked or new: virtual
   time is brought up to the others'. A yield gives up in the same way what was earned before.
3. A domain that was just woken goes first, unless it is more than a slice ahead of the others.
4. A vCPU that has yielded goes after everybody who wants to run, once.
5. A capped domain spends ``cap`` percent of a CPU in each period; then it is parked. What it spends
   beyond that, because slices are not cut short, it waits off.
6. Within a domain its vCPUs take turns. One that was just woken goes before its turn, but not twice
   running: two that wake each other without end don't starve a third.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.core.vcpu import VcpuState

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

SLICE_NS: Final = 2_000_000
CAP_PERIOD_NS: Final = 30_000_000
DEFAULT_WEIGHT: Final = 256
MAX_WEIGHT: Final = 65535
_RUNNABLE: Final = VcpuState.RUNNABLE


@dataclass(slots=True)
class Account:
    """What one domain is entitled to, and what it has spent; ``cap`` in percent, 0 for none."""

    weight: int = DEFAULT_WEIGHT
    cap: int = 0
    virtual_ns: int = 0
    period_ns: int = 0  # when the current cap period began
    spent_ns: int = 0  # in it, and what is still to be waited off
    turn: int = 0  # which vCPU was last in turn
    jumped: bool = False  # the last one that ran went before its turn

    def unpark_ns(self) -> int:
        """Return when a capped domain may run again; a past moment where it may now."""
        return self.period_ns + self.spent_ns // self._allowance_ns() * CAP_PERIOD_NS

    def is_parked(self, now_ns: int) -> bool:
        """Tell whether the cap is used up."""
        return bool(self.cap) and now_ns < self.unpark_ns()

    def spend(self, spent_ns: int, now_ns: int) -> None:
        """Take time that was spent until now."""
        self.virtual_ns += spent_ns * DEFAULT_WEIGHT // self.weight
        if self.cap:
            periods = (now_ns - self.period_ns) // CAP_PERIOD_NS
            self.period_ns += periods * CAP_PERIOD_NS
            self.spent_ns = max(0, self.spent_ns - periods * self._allowance_ns()) + spent_ns

    def _allowance_ns(self) -> int:
        return self.cap * CAP_PERIOD_NS // 100


class Scheduler:
    """The accounts of one machine."""

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}
        self._virtual_ns = 0  # where the one furthest behind stood: never goes back

    def add(self, domid: int, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """Open an account; it starts level with the others."""
        self._accounts[domid] = Account(weight, cap, self._virtual_ns)

    def set(self, domid: int, weight: int, cap: int) -> None:
        """Change a domain's weight and cap."""
        account = self._accounts[domid]
        account.weight, account.cap = weight, cap

    def account(self, domid: int) -> Account:
        """Return what a domain is entitled to and has spent."""
        return self._accounts[domid]

    def remove(self, domid: int) -> None:
        """Close an account."""
        del self._accounts[domid]

    def pick(self, domains: Collection[Domain], now_ns: int) -> Vcpu | None:
        """Choose the vCPU that runs next; None where nobody may."""
        candidates: list[tuple[Vcpu, Account]] = []
        floor_ns = self._virtual_ns - SLICE_NS
        accounts = self._accounts
        for domain in domains:
            # Those with nothing to do cost the others 0.1 us each, in every turn.
            vcpus = domain.vcpus
            if len(vcpus) == 1 and vcpus[0].state is not _RUNNABLE:
                continue
            account = accounts[domain.domid]
            vcpu = _next_vcpu(domain, account)
            if vcpu is None or (account.cap and account.is_parked(now_ns)):
                continue
            if account.virtual_ns < floor_ns:
                account.virtual_ns = floor_ns
            candidates.append((vcpu, account))
        if not candidates:
            return None
        if len(candidates) == 1:
            chosen, account = candidates[0]
            least_ns = account.virtual_ns
            chosen.has_yielded = False
        else:
            chosen, account = self._first(candidates)
            least_ns = min(other.virtual_ns for _, other in candidates)
        if self._virtual_ns < least_ns:
            self._virtual_ns = least_ns
        _take_turn(chosen, account)
        return chosen

    def _first(self, candidates: list[tuple[Vcpu, Account]]) -> tuple[Vcpu, Account]:
        """Choose among several that want to run; those that have yielded have done so now."""
        ahead_ns = self._virtual_ns + SLICE_NS
        chosen, account = min(
            candidates,
            key=lambda one: (_class(one[0], ahead=one[1].virtual_ns > ahead_ns), one[1].virtual_ns),
        )
        for vcpu, other in candidates:
            if vcpu.has_yielded:
                vcpu.has_yielded = False
                other.virtual_ns = max(other.virtual_ns, account.virtual_ns - SLICE_NS)
        return chosen, account

    def charge(self, domid: int, spent_ns: int, now_ns: int) -> None:
        """Take what a domain has just spent from its account."""
        self._accounts[domid].spend(spent_ns, now_ns)

    def next_unpark_ns(self, domains: Collection[Domain], now_ns: int) -> int | None:
        """Return when the first parked domain with something to do may run again, if any is."""
        ends = [
            self._accounts[domain.domid].unpark_ns()
            for domain in domains
            if self._accounts[domain.domid].is_parked(now_ns)
            and any(vcpu.may_run for vcpu in domain.vcpus)
        ]
        return min(ends, default=None)


def _class(vcpu: Vcpu, *, ahead: bool) -> int:
    if vcpu.has_yielded:
        return 2
    return 0 if vcpu.was_woken and not ahead else 1


def _next_vcpu(domain: Domain, account: Account) -> Vcpu | None:
    """Choose among the domain's vCPUs: a woken one if it may jump its turn, then in turn."""
    vcpus = domain.vcpus
    if len(vcpus) == 1:
        return vcpus[0] if vcpus[0].may_run else None
    chosen = None
    for step in range(1, len(vcpus) + 1):
        vcpu = vcpus[(account.turn + step) % len(vcpus)]
        if vcpu.may_run:
            if vcpu.was_woken and not account.jumped:
                return vcpu
            if chosen is None or (chosen.has_yielded and not vcpu.has_yielded):
                chosen = vcpu
    return chosen


def _take_turn(chosen: Vcpu, account: Account) -> None:
    """Note who runs; whoever of the same domain had yielded to it has done so now."""
    vcpus = chosen.domain.vcpus
    if len(vcpus) > 1:
        account.jumped = chosen.was_woken and not account.jumped
        if not account.jumped:
            account.turn = chosen.id
        for vcpu in vcpus:
            vcpu.has_yielded = False
    chosen.was_woken = False
