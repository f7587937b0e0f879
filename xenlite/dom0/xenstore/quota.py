# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the store a domain may use. Dom0's clients have no such limits.

The numbers are those of Xen's own store, so that a guest meets here what it meets there.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Quotas(NamedTuple):
    """Limits of one domain; sizes in bytes.

    ``node_size`` counts what ``Node.size`` does. ``memory`` is of all that the store keeps for a
    domain: the nodes that it owns, its watches and its open transactions. ``outstanding`` answers
    may wait to be read before no more requests are taken; a domain with more than ``unread`` bytes
    waiting, which only events can be, is cut off.
    """

    nodes: int = 1000
    node_size: int = 2048
    permissions: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    outstanding: int = 20
    memory: int = 2_621_440
    unread: int = 1 << 20


# Tools of Dom0 have no quotas; these bound what a broken one costs.
TOOL_OUTSTANDING: Final = 20
TOOL_UNREAD: Final = 64 << 20
