# SPDX-License-Identifier: GPL-2.0-or-later
"""Say who is at fault, once.

========================  =========================================  ==============================
who                       type                                       effect
========================  =========================================  ==============================
guest asked for too much  ``Refused(errno, rule, argument)``         ``-errno`` to the guest
guest broke a rule that   ``DomainCrash(rule, detail)``              that domain ends, alone
has no reply path
a frontend broke a ring   ``PeerError(what)``                        that device closes
user wrote a bad file     ``ConfigError(faults)``                    every fault listed, exit 1
xenlite is wrong          ``AssertionError``, anything else          stop, dump, never go on
========================  =========================================  ==============================

Rule names are ``area.rule`` (``paging.writable-page-table``) and never change once published.
"""

from __future__ import annotations

from dataclasses import dataclass


class Refused(Exception):  # noqa: N818 - a normal outcome, named for what happened
    """Refuse one request of a guest: it gets ``-errno`` and goes on.

    ``entry`` is the index of the entry at fault, where the request is a list.
    """

    __slots__ = ("argument", "entry", "errno", "rule")

    def __init__(self, errno: int, rule: str, argument: object = None) -> None:
        super().__init__(errno, rule, argument)
        self.errno = errno
        self.rule = rule
        self.argument = argument
        self.entry: int | None = None

    def __str__(self) -> str:
        where = "" if self.argument is None else f": {_show(self.argument)}"
        return f"{self.rule}{where}"


class DomainCrash(Exception):  # noqa: N818 - the domain's end, not ours
    """End the acting domain: it broke a rule where no errno can reach it."""

    __slots__ = ("detail", "rule")

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(rule, detail)
        self.rule = rule
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" if self.detail else self.rule


class PeerError(Exception):
    """Close one device or connection: its other end broke the protocol."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake in a user's file: where it is and how to mend it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ConfigError(Exception):
    """Report every mistake found in a user's file; nothing was created."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def _show(argument: object) -> str:
    return hex(argument) if isinstance(argument, int) else str(argument)
