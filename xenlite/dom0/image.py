# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk's image: a file or a block device, read and written where its bytes are wanted.

``RawImage`` does the I/O; ``ImageWorker`` does it on a thread of its own, so that a slow disk stops
nobody. The worker only does what it is given and hands it over: what an outcome means is decided on
the main thread, in the order in which the work was given. What the host has in its cache can be
read at once, which costs less than to wake a thread.

The content is the guest's: it is never looked at.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from ctypes import CDLL, c_int, c_int64, get_errno
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from xenlite.doors import Link

_HAND_OVER_NS: Final = 1_000_000  # done work waits no longer for the rest of its batch
_SECTOR: Final = 512
_KEEP_SIZE: Final = 1  # linux/falloc.h
_PUNCH_HOLE: Final = 2


class Image(Protocol):
    """What a worker does its work on. Every method but the first raises OSError, and may block."""

    size_bytes: int
    can_discard: bool

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Fill the views if that needs no waiting; False where it does, and they may be changed."""

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill the views, one after the other, with what stands at ``offset``."""

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Write the views, one after the other, at ``offset``."""

    def flush(self) -> None:
        """Return when everything written is on the disk."""

    def discard(self, offset: int, size: int) -> None:
        """Give the bytes back; they read as zeros."""

    def close(self) -> None:
        """Give the file back."""


class RawImage:
    """An image whose bytes are the disk's."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Open it. Raises ConfigError where it can't be used."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise ConfigError(Fault(str(path), error.strerror or str(error))) from None
        kind = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
            self.close()
            raise ConfigError(Fault(str(path), "neither a file nor a block device"))
        self._lock(path, read_only=read_only)
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if self.size_bytes < _SECTOR:
            self.close()
            raise ConfigError(Fault(str(path), "smaller than a sector of 512 bytes"))
        self.can_discard = stat.S_ISREG(kind) and not read_only
        self._has_cached_reads = True  # until the file system says that it knows no such thing

    def _lock(self, path: Path, *, read_only: bool) -> None:
        """Use a file that is written alone: two file systems over one disk would destroy it."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            busy = error.errno == errno.EWOULDBLOCK
            what = "in use by another disk" if busy else error.strerror or str(error)
            raise ConfigError(Fault(str(path), what)) from None

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Fill the views if that needs no waiting; errors are for ``read_into`` to tell."""
        if not self._has_cached_reads:
            return False
        try:
            count = os.preadv(self._fd, views, offset, os.RWF_NOWAIT)
        except OSError as error:
            self._has_cached_reads = error.errno == errno.EAGAIN
            return False
        return count == sum(map(len, views))

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill the views; EIO where the file has become too short."""
        wanted = sum(map(len, views))
        while wanted:
            count = os.preadv(self._fd, views, offset)
            if not count:
                raise OSError(errno.EIO, "the image has become shorter")
            if count == wanted:
                break
            views, offset, wanted = _rest(views, count), offset + count, wanted - count

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Write the views."""
        wanted = sum(map(len, views))
        while wanted:
            count = os.pwritev(self._fd, views, offset)
            if count == wanted:
                break
            views, offset, wanted = _rest(views, count), offset + count, wanted - count

    def flush(self) -> None:
        """Return when everything written is on the disk."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole into the file."""
        if not size:
            return
        libc = CDLL(None, use_errno=True)  # Python's own fallocate can't take bytes away
        how = c_int(_PUNCH_HOLE | _KEEP_SIZE)
        if libc.fallocate64(c_int(self._fd), how, c_int64(offset), c_int64(size)):
            raise OSError(get_errno(), "fallocate")

    def close(self) -> None:
        """Give the file back, if that has not been done."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return what is left of the views behind the first ``done`` bytes."""
    left = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
        done = max(done - len(view), 0)
    return left


class Job:
    """Work on an image. ``do`` runs on the worker, ``finish`` afterwards on the main thread.

    ``do`` keeps what went wrong for ``finish``: an exception of it is a bug of ours. ``due_ns`` is
    the earliest moment, on the machine's clock, at which the outcome may be seen; jobs that are
    given later are due no earlier.
    """

    __slots__ = ("do", "due_ns", "finish")

    def __init__(self, do: Callable[[], None], finish: Callable[[], None], due_ns: int) -> None:
        self.do = do
        self.finish = finish
        self.due_ns = due_ns


class ImageWorker:
    """The thread of one image. ``when_collected`` runs after several jobs may have finished.

    What is done on the main thread when a job is finished is at the expense of ``charge``.
    """

    def __init__(self, link: Link, *, charge: int) -> None:
        self._link = link
        self._charge = charge
        self.when_collected: Callable[[], None] = _nothing
        self._given: SimpleQueue[Sequence[Job] | None] = SimpleQueue()
        self._done: deque[Job] = deque()
        self._is_announced = False
        self._is_closed = False
        self._is_abandoned = False
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="image", daemon=True)
        self._thread.start()

    def give(self, jobs: Sequence[Job]) -> None:
        """Have the jobs done, in order, after all that were given before."""
        self._given.put(jobs)

    def close(self) -> None:
        """Finish everything that was given, and end the thread."""
        self._given.put(None)
        self._thread.join()
        self._is_closed = True
        self._collect()

    def abandon(self) -> None:
        """Finish the one job that is being done, and end the thread; nobody hears of any."""
        self._is_abandoned = True
        self._given.put(None)
        self._thread.join()
        # What is left holds views of guests' pages.
        self._given = SimpleQueue()
        self._done.clear()
        self.when_collected = _nothing

    def _run(self) -> None:
        while True:
            jobs = self._given.get()
            if jobs is None:
                return
            since = time.monotonic_ns()
            for job in jobs:
                if self._is_abandoned:
                    return
                self._do(job)
                self._done.append(job)
                now = time.monotonic_ns()
                if now - since > _HAND_OVER_NS:
                    since = now
                    self._announce()
            self._announce()

    def _do(self, job: Job) -> None:
        try:
            job.do()
            job.do = _nothing  # it held views of the guest's pages
        except BaseException as bug:  # noqa: BLE001 - it is ours, and raised on the main thread
            self._bug = bug

    def _announce(self) -> None:
        if not self._is_announced:
            self._is_announced = True
            self._link.defer(self._collect, charge=self._charge)

    def _collect(self) -> None:
        self._is_announced = False
        if self._bug is not None:
            raise self._bug
        now_ns = self._link.now_ns()
        while self._done:
            job = self._done[0]
            if job.due_ns > now_ns and not self._is_closed:
                self._link.call_at(job.due_ns, self._collect, charge=self._charge)
                break
            self._done.popleft()
            job.finish()
        self.when_collected()


def _nothing() -> None:
    """Do nothing: nobody waits."""
