# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of 32-bit x86 with PAE that are the processor's, not Xen's.

Paging here; registers, flags and vectors are in ``trap.py``, in the engine's layout. No other file
asks which architecture it is on. Source: Intel SDM volume 3A, sections 4.4 and 4.7.
"""

from __future__ import annotations

from typing import Final

ENTRIES: Final = 512  # per table; an L3 uses its first four
L3_ENTRIES: Final = 4
L1_SHIFT: Final = 12
L2_SHIFT: Final = 21
L3_SHIFT: Final = 30
INDEX_MASK: Final = ENTRIES - 1

PTE_P: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_US: Final = 1 << 2
PTE_PWT: Final = 1 << 3
PTE_PCD: Final = 1 << 4
PTE_A: Final = 1 << 5
PTE_D: Final = 1 << 6
PTE_PSE: Final = 1 << 7  # in an L2 entry; the PAT bit in an L1 entry
PTE_G: Final = 1 << 8
PTE_AVL: Final = 0b111 << 9
PTE_NX: Final = 1 << 63
PTE_ADDRESS: Final = 0x000F_FFFF_FFFF_F000

# What a guest may put into an entry. Caching attributes need I/O rights, which no guest has; the
# bits above the address are reserved (the engine faults on them).
L1_ALLOWED: Final = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D | PTE_G | PTE_AVL | PTE_NX | PTE_ADDRESS
L2_ALLOWED: Final = L1_ALLOWED & ~PTE_G
L3_ALLOWED: Final = L2_ALLOWED & ~PTE_NX
ALL_BITS: Final = (1 << 64) - 1
L1_REFUSED: Final = ALL_BITS ^ L1_ALLOWED
L2_REFUSED: Final = ALL_BITS ^ L2_ALLOWED
L3_REFUSED: Final = ALL_BITS ^ L3_ALLOWED
# A change outside these bits needs the whole entry validated again (SECURITY.md A4).
PTE_HARMLESS: Final = PTE_NX | PTE_AVL | PTE_G | PTE_D | PTE_A | PTE_US
PTE_IDENTITY: Final = ALL_BITS ^ PTE_HARMLESS

PF_PRESENT: Final = 1 << 0
PF_WRITE: Final = 1 << 1
PF_USER: Final = 1 << 2
PF_RESERVED: Final = 1 << 3
PF_FETCH: Final = 1 << 4
