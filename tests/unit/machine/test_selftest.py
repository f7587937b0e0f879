# SPDX-License-Identifier: GPL-2.0-or-later
"""The start-up self-test finds every fast path of the pinned engine, and misses what is missing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from xenlite.machine import engine, selftest
from xenlite.machine.engine import EngineError, Library
from xenlite.machine.selftest import Capabilities, capabilities
from xenlite.machine.trap import EIP


@pytest.fixture
def fresh_selftest() -> Callable[[], Capabilities]:
    """Run the self-test again, whatever was found before."""
    return capabilities.__wrapped__


def test_the_pinned_engine_has_every_fast_path() -> None:
    found = asdict(capabilities())
    assert found.pop("notes") == ()
    assert all(found.values()), found


def test_the_result_is_kept() -> None:
    assert capabilities() is capabilities()


@pytest.mark.parametrize(
    ("symbol", "lost"),
    [
        ("tlb_flush_page", "page_flush"),
        ("tlb_flush", "page_flush"),
        ("tb_invalidate_phys_range", "code_invalidate"),
        ("helper_read_eflags", "fast_eflags"),
        ("qemu_get_cpu", "live_state"),
    ],
)
def test_a_missing_symbol_costs_its_fast_path_and_is_noted(
    monkeypatch: pytest.MonkeyPatch,
    fresh_selftest: Callable[[], Capabilities],
    symbol: str,
    lost: str,
) -> None:
    def without(library: Library, name: str, result: Any, *arguments: Any) -> Any:
        return None if name == symbol else internal(library, name, result, *arguments)

    internal = Library.internal
    monkeypatch.setattr(Library, "internal", without)
    found = fresh_selftest()
    assert not getattr(found, lost)
    assert any(selftest._FALLBACKS[lost] == note for note in found.notes)


def test_another_version_is_not_read_in_place(
    monkeypatch: pytest.MonkeyPatch, fresh_selftest: Callable[[], Capabilities]
) -> None:
    monkeypatch.setattr(engine, "KNOWN_VERSION", 0x02010500)
    assert not fresh_selftest().live_state


def test_a_wrong_code_pattern_leaves_the_exit_flag_alone(
    monkeypatch: pytest.MonkeyPatch, fresh_selftest: Callable[[], Capabilities]
) -> None:
    monkeypatch.setattr(engine, "_EXIT_CHECK", "uc_emu_start")
    assert not fresh_selftest().quiet_memory


@pytest.mark.parametrize("machine", ["aarch64", "riscv64"])
def test_another_host_has_no_stubs(
    monkeypatch: pytest.MonkeyPatch, fresh_selftest: Callable[[], Capabilities], machine: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(selftest, "native_stubs", engine.native_stubs.__wrapped__)
    assert not fresh_selftest().exact_stop


def test_stubs_that_do_nothing_are_found_out(
    monkeypatch: pytest.MonkeyPatch, fresh_selftest: Callable[[], Capabilities]
) -> None:
    """A stub of a bare return: the loop then ends by its instruction count alone."""
    harmless = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert harmless is not None
    monkeypatch.setattr(selftest, "native_stubs", lambda: (harmless, harmless))
    assert not fresh_selftest().exact_stop


def test_a_moved_register_is_an_error_with_no_fallback(
    monkeypatch: pytest.MonkeyPatch, fresh_selftest: Callable[[], Capabilities]
) -> None:
    monkeypatch.setattr(selftest, "HFLAGS", EIP)
    with pytest.raises(EngineError, match="keeps its CPU state elsewhere"):
        fresh_selftest()
