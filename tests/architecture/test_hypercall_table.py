# SPDX-License-Identifier: GPL-2.0-or-later
"""What hypercall_abi.yaml calls unimplemented is what answers -ENOSYS, and nothing else is."""

from __future__ import annotations

from xenlite.abi.x86_32p import HYPERCALL_NAMES, UNIMPLEMENTED
from xenlite.hypercalls.table import TABLE_SIZE, build
from xenlite.hypervisor import Hypervisor


def test_the_table_and_the_abi_agree_on_what_is_built() -> None:
    hypervisor = Hypervisor(16 << 20)
    control = hypervisor.control()
    domid = control.create_domain("table", max_pages=16, max_vcpus=1)
    table = build(hypervisor.domains[domid], lambda *_: None)
    nothing = table[-1]
    built = {number for number in range(TABLE_SIZE) if table[number] is not nothing}
    assert built == HYPERCALL_NAMES.keys() - UNIMPLEMENTED.keys()
    hypervisor.close()
