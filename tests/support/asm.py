# SPDX-License-Identifier: GPL-2.0-or-later
"""Assemble a few instructions for a test, in this process.

Production code assembles in a child process with a time limit; a test's own text is trusted.
"""

from __future__ import annotations

from functools import cache

import keystone  # noqa: TID251 - the tests of the machine may not depend on the devkit


@cache
def assemble(source: str, origin: int) -> bytes:
    """Assemble 32-bit code in Intel syntax to run at ``origin``."""
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32)
    code, count = engine.asm(source, origin, as_bytes=True)
    assert code is not None, f"nothing assembled from {source!r} ({count} statements)"
    return bytes(code)
