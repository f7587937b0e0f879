# SPDX-License-Identifier: GPL-2.0-or-later
"""What hypercall_abi.yaml calls an unimplemented sub-operation answers -ENOSYS, no other does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xenlite.abi.x86_32p import ENOSYS, UNIMPLEMENTED
from xenlite.errors import Refused
from xenlite.hypercalls.table import build
from xenlite.hypervisor import Hypervisor

ROOT = Path(__file__).resolve().parents[2]
ABI: dict[str, Any] = yaml.safe_load((ROOT / "hypercall_abi.yaml").read_text())
SELECTED_BY_THE_FIRST_ARGUMENT = {
    name: raw
    for name, raw in ABI["hypercalls"].items()
    if "operations" in raw
    and raw["operations"]["by"] == next(iter(raw["args"]))
    and raw["number"] not in UNIMPLEMENTED
}
# The older interface has fewer commands, and says so to the rest.
OLDER = {"sched_op_compat": {"SCHEDOP_yield", "SCHEDOP_block", "SCHEDOP_shutdown"}}


@pytest.mark.parametrize("name", SELECTED_BY_THE_FIRST_ARGUMENT)
def test_sub_operations_and_the_abi_agree_on_what_is_built(name: str) -> None:
    raw = SELECTED_BY_THE_FIRST_ARGUMENT[name]
    group = ABI["constants"][raw["operations"]["of"]]
    listed = {one for ones in group.get("unimplemented", {}).values() for one in ones}
    hypervisor = Hypervisor(16 << 20)
    try:
        control = hypervisor.control()
        domid = control.create_domain("table", max_pages=16, max_vcpus=1)
        handler = build(hypervisor.domains[domid], lambda *_: None)[raw["number"]]
        missing = set()
        for operation, value in group["values"].items():
            number = value["value"] if isinstance(value, dict) else value
            try:
                handler(number, 0, 0, 0, 0)
            except Refused as refused:
                if refused.errno == ENOSYS:
                    missing.add(operation)
        assert missing == group["values"].keys() - OLDER.get(name, group["values"].keys() - listed)
    finally:
        hypervisor.close()
