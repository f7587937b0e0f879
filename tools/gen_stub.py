# SPDX-License-Identifier: GPL-2.0-or-later
"""Assemble xenlite/machine/trap_stub.s into xenlite/machine/trap_stub.py (``--check``: compare)."""

from __future__ import annotations

import sys
from pathlib import Path

from keystone import KS_ARCH_X86, KS_MODE_64, Ks  # noqa: TID251 - x86-64, at development time

MACHINE = Path(__file__).resolve().parent.parent / "xenlite" / "machine"
SOURCE = MACHINE / "trap_stub.s"
TARGET = MACHINE / "trap_stub.py"

HEAD = '''# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold the assembled trap_stub.s; made by tools/gen_stub.py."""

from __future__ import annotations

from typing import Final

TRAP_STUB: Final = bytes.fromhex(
'''


def render(source: str) -> str:
    """Return the text of trap_stub.py."""
    plain = "\n".join(line.split("#", 1)[0] for line in source.splitlines())
    code, statements = Ks(KS_ARCH_X86, KS_MODE_64).asm(plain, as_bytes=True)
    assert statements, "Keystone assembled nothing"
    lines = [f'    "{code[i : i + 32].hex()}"\n' for i in range(0, len(code), 32)]
    return HEAD + "".join(lines) + ")\n"


def main() -> int:
    """Write the file, or tell whether it is stale."""
    text = render(SOURCE.read_text())
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() != text:
            print(f"{TARGET.name} is stale: run python tools/gen_stub.py")
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
