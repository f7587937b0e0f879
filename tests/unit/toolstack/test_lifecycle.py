# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.abi.x86_32p import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from xenlite.errors import ConfigError
from xenlite.toolstack.domain_config import DomainConfig, Reaction
from xenlite.toolstack.lifecycle import (
    RESTART_WINDOW_NS,
    RESTARTS,
    RestartLimit,
    exit_status,
    reaction,
    read_file,
    reason_name,
)
from xenlite.toolstack.packed import MAX_IMAGE_BYTES

CONFIG = DomainConfig(
    name="d",
    kernel=Path("k"),
    kernel_name="k",
    memory_mib=4,
    maxmem_mib=4,
    on_poweroff=Reaction.PRESERVE,
    on_reboot=Reaction.RESTART,
    on_crash=Reaction.DESTROY,
)


@pytest.mark.parametrize(
    ("reason", "status", "name"),
    [
        (SHUTDOWN_poweroff, 0, "poweroff"),
        (SHUTDOWN_reboot, 17, "reboot"),
        (SHUTDOWN_suspend, 18, "suspend"),
        (SHUTDOWN_crash, 19, "crash"),
        (SHUTDOWN_watchdog, 20, "watchdog"),
        (SHUTDOWN_soft_reset, 21, "soft_reset"),
        (107, 123, "reason 107"),
        (128, 123, "reason 128"),
        (255, 123, "reason 255"),
    ],
)
def test_a_reason_has_a_status_below_those_of_shells_and_a_name(
    reason: int, status: int, name: str
) -> None:
    assert exit_status(reason) == status
    assert reason_name(reason) == name


@pytest.mark.parametrize(
    ("reason", "wish"),
    [
        (SHUTDOWN_poweroff, Reaction.PRESERVE),
        (SHUTDOWN_reboot, Reaction.RESTART),
        (SHUTDOWN_soft_reset, Reaction.RESTART),
        (SHUTDOWN_crash, Reaction.DESTROY),
        (SHUTDOWN_watchdog, Reaction.DESTROY),
        (200, Reaction.DESTROY),
    ],
)
def test_each_reason_meets_the_owners_wish(reason: int, wish: Reaction) -> None:
    assert reaction(CONFIG, reason) is wish


def test_restarts_are_limited_within_a_window_and_free_again_behind_it() -> None:
    limit = RestartLimit()
    assert [limit.allows(second * 10**9) for second in range(RESTARTS)] == [True] * RESTARTS
    assert not limit.allows(RESTART_WINDOW_NS - 1)
    assert limit.allows(RESTART_WINDOW_NS)
    assert not limit.allows(RESTART_WINDOW_NS)


def test_slow_restarts_go_on_for_ever() -> None:
    limit = RestartLimit()
    step = RESTART_WINDOW_NS // RESTARTS
    assert all(limit.allows(n * step) for n in range(100))


def test_files_that_are_too_large_are_refused_unread(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 128 MiB"):
        read_file(large)
