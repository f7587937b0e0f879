# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine memory: one RAM, several views, and the marks of translated code."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from xenlite.machine.memory import PAGE_SIZE, SEVERAL, MachineMemory


class RecordingEngine:
    """An engine that only remembers what it was told to forget."""

    def __init__(self) -> None:
        self.slot = 0
        self.forgotten: list[tuple[int, int]] = []

    def invalidate_code(self, maddr: int, size: int) -> None:
        self.forgotten.append((maddr, size))


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    memory = MachineMemory(1 << 20)
    yield memory
    memory.close()


@pytest.fixture
def engines(memory: MachineMemory) -> Iterator[tuple[RecordingEngine, RecordingEngine]]:
    pair = RecordingEngine(), RecordingEngine()
    for engine in pair:
        memory.attach(engine)
    yield pair
    for engine in pair:
        if engine.slot:
            memory.detach(engine)


def test_all_views_and_the_file_show_the_same_bytes(memory: MachineMemory) -> None:
    memory.m64[(3 << 9) + 1] = 0x1122334455667788
    maddr = 3 * PAGE_SIZE + 8
    assert memory.m32[maddr >> 2] == 0x55667788
    assert memory.m16[maddr >> 1] == 0x7788
    assert memory.m8[maddr] == 0x88
    assert memory.read(maddr, 2) == b"\x88\x77"
    with mmap.mmap(memory.fd, memory.size_bytes) as again:
        assert again[maddr] == 0x88


def test_fresh_memory_is_zero_and_takes_no_host_memory(memory: MachineMemory) -> None:
    assert memory.read(0, 64) == bytes(64)
    assert memory.nr_frames == 256


def test_a_read_beyond_ram_is_our_bug(memory: MachineMemory) -> None:
    with pytest.raises(AssertionError):
        memory.read(memory.size_bytes - 4, 8)


def test_a_write_beyond_ram_changes_nothing(memory: MachineMemory) -> None:
    with pytest.raises(ValueError, match="different structures"):
        memory.write(memory.size_bytes - 4, b"12345678")
    assert memory.read(memory.size_bytes - 4, 4) == bytes(4)


def test_a_write_forgets_the_marked_frames_it_touches_and_no_others(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    first, second = engines
    memory.mark_code(2, first)
    memory.mark_code(4, second)
    memory.write(2 * PAGE_SIZE - 4, b"x" * 8)
    memory.write(3 * PAGE_SIZE, b"x")
    assert first.forgotten == [(2 * PAGE_SIZE, PAGE_SIZE)]
    assert second.forgotten == []


def test_a_frame_marked_by_two_engines_is_forgotten_by_both(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    for engine in (*engines, *engines):
        memory.mark_code(5, engine)
    assert memory.code[5] == SEVERAL
    memory.wrote(5)
    assert [engine.forgotten for engine in engines] == [[(5 * PAGE_SIZE, PAGE_SIZE)]] * 2


def test_scrub_zeroes_and_forgets(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    memory.mark_code(6, engines[0])
    memory.m8[6 * PAGE_SIZE + 9] = 9
    memory.scrub(6)
    assert memory.read(6 * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert engines[0].forgotten == [(6 * PAGE_SIZE, PAGE_SIZE)]


def test_release_forgets_once_and_clears_the_mark(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    for engine in engines:
        memory.mark_code(7, engine)
    memory.release(7)
    memory.release(7)
    assert memory.code[7] == 0
    assert [len(engine.forgotten) for engine in engines] == [1, 1]
    memory.wrote(7)
    assert [len(engine.forgotten) for engine in engines] == [1, 1]


def test_discard_gives_zeroes(memory: MachineMemory) -> None:
    memory.m8[8 * PAGE_SIZE] = memory.m8[10 * PAGE_SIZE] = 1
    memory.discard(8, 2)
    assert memory.m8[8 * PAGE_SIZE] == 0
    assert memory.m8[10 * PAGE_SIZE] == 1


def test_discard_refuses_a_marked_frame(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    memory.mark_code(8, engines[0])
    with pytest.raises(AssertionError):
        memory.discard(7, 2)


def test_detach_takes_the_engines_marks_along_and_leaves_the_others(
    memory: MachineMemory, engines: tuple[RecordingEngine, RecordingEngine]
) -> None:
    first, second = engines
    memory.mark_code(1, first)
    memory.mark_code(2, second)
    memory.mark_code(3, first)
    memory.mark_code(3, second)
    memory.detach(first)
    assert (memory.code[1], memory.code[2], memory.code[3]) == (0, second.slot, SEVERAL)
    memory.wrote(3)
    assert first.forgotten == []
    assert second.forgotten == [(3 * PAGE_SIZE, PAGE_SIZE)]
    memory.detach(second)
    assert not any(memory.code)


def test_slots_are_used_again_and_run_out_at_254(memory: MachineMemory) -> None:
    engines = [RecordingEngine() for _ in range(SEVERAL)]
    for engine in engines[:-1]:
        memory.attach(engine)
    with pytest.raises(RuntimeError, match="254 engines"):
        memory.attach(engines[-1])
    memory.detach(engines[9])
    memory.attach(engines[-1])
    assert engines[-1].slot == 10
    for engine in engines:
        if engine.slot:
            memory.detach(engine)


def test_close_refuses_while_an_engine_runs_on_it() -> None:
    memory = MachineMemory(PAGE_SIZE)
    engine = RecordingEngine()
    memory.attach(engine)
    with pytest.raises(AssertionError):
        memory.close()
    memory.detach(engine)
    memory.close()
    memory.close()
