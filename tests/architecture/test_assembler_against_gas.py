# SPDX-License-Identifier: GPL-2.0-or-later
"""Every shape of operand means to our assembler what it means to GNU as.

Keystone encodes some statements wrongly without a word, and no list of those is ever complete. So
statements of all shapes go through both assemblers, and the disassemblies have to agree. (Bytes
need not: many instructions have two encodings.)
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import capstone

from xenlite.devkit.assembler import assemble_fragment

SLOT = 32  # one instruction lies in each slot of this many bytes
BYTES = ("0", "1", "10", "100", "127", "128", "-1", "-128", "255")
WORDS = (*BYTES, "-129", "256", "0x1234", "65535")
DWORDS = (*WORDS, "100000", "0x7fffffff", "0x80000000", "0xffffffff", "-0x80000000")
MEMORY = (
    *("[eax]", "[ebx+4]", "[esi-8]", "[ebp]", "[esp]", "[esp+8]", "[ebx+ecx*4]", "[ecx*8+100]"),
    *("[edi+edx*2-300]", "[1000]", "[0xF5800000+eax*4]", "[ebp+eax]", "[ebx+128]"),
)
ARITHMETIC = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "mov", "test")
ON_DWORD = ("push", "pop", "inc", "dec", "neg", "not", "mul", "div", "call", "jmp")
ON_BYTE = ("inc", "dec", "neg", "not", "mul", "div", "sete")
WITH_MEMORY = """
lea edi, {}|movzx eax, byte ptr {}|movzx ecx, word ptr {}|movsx edx, byte ptr {}
shl dword ptr {}, 3|shr dword ptr {}, cl|bt dword ptr {}, eax|lock bts dword ptr {}, ecx
btr dword ptr {}, 5|xchg {}, eax|lock cmpxchg {}, ecx|lock xadd {}, edx|imul eax, {}, 100
imul ecx, {}|bsf eax, {}|mov fs, word ptr {}|mov eax, gs:{}|fxsave {}|cmpxchg8b {}
"""
PLAIN = """
ret|ret 8|ret 300|int 0x80|int3|iret|iretd|pushfd|popfd|pushf|popf|pushad|popad|cld|std|cli|sti
hlt|cpuid|rdtsc|nop|pause|leave|enter 16, 0|lodsb|stosd|rep stosd|rep movsb|rep movsd|repne scasb
repe cmpsb|cdq|cwde|bswap eax|mov eax, cr3|mov cr0, ecx|mov dr7, eax|mov eax, ds|mov ds, eax
push fs|pop gs|push ds|pop ds|push es|pop es|push cs|push ss|pop ss|in al, dx|out dx, eax
in eax, 96|out 128, al|shl eax, 12|shld eax, edx, 4|shrd eax, edx, cl|sar ecx, 31|rol al, 1
movd xmm1, eax|pxor xmm1, xmm1|movaps xmm0, [eax]|fninit|fld st(1)|fstp qword ptr [eax]|ud2
sysenter|wbinvd|invlpg [eax]|lmsw ax|clts|ltr ax|lldt ax|mov ax, 300|cmova eax, ecx|setnz bl
xlatb|aam|int 130|mov bl, 'a'|rdmsr|wrmsr|clflush [eax]|mfence|les eax, [ebx]|lss esp, [eax]
jmp [eax]|sldt ax|str ax|lar eax, ecx|smsw ax|verr ax|verw cx|lsl eax, ecx|fldcw word ptr [eax]
"""


def statements() -> Iterator[str]:
    for name in ARITHMETIC:
        for place, values in (
            *((place, DWORDS) for place in ("eax", "esi", "dword ptr [ebx+8]")),
            *((place, WORDS) for place in ("bx", "word ptr [esi]")),
            *((place, BYTES) for place in ("al", "ch", "byte ptr [esi]")),
        ):
            yield from (f"{name} {place}, {value}" for value in values)
        for memory in MEMORY:
            yield from (f"{name} {register}, {memory}" for register in ("edx", "cx", "bl"))
            yield from (f"{name} {memory}, {register}" for register in ("edi", "dx", "ah"))
    for memory in MEMORY:
        yield from (f"{name} dword ptr {memory}" for name in ON_DWORD)
        yield from (f"{name} byte ptr {memory}" for name in ON_BYTE)
        yield from (shape.format(memory) for shape in listed(WITH_MEMORY))
    for value in DWORDS:
        yield from (f"push {value}", f"imul eax, ecx, {value}")
    yield from listed(PLAIN)


def listed(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")


def gas(text: str, directory: Path) -> bytes:
    source, linked, raw = (directory / name for name in ("in.s", "out.o", "out.bin"))
    source.write_text(f".intel_syntax noprefix\n{text}\n")
    subprocess.run(["as", "--32", source, "-o", linked], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, raw], check=True)
    return raw.read_bytes()


def disassembled(code: bytes) -> list[str]:
    """Return the instruction in each slot."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    found = []
    for start in range(0, len(code), SLOT):
        (first,) = engine.disasm(code[start : start + SLOT], start, 1)
        found.append(f"{first.mnemonic} {first.op_str}")
    return found


def test_our_statements_mean_what_gnu_as_makes_of_them(tmp_path: Path) -> None:
    lines = list(statements())
    text = "\n".join(f"{line}\n.p2align {SLOT.bit_length() - 1}" for line in lines)
    ours = disassembled(assemble_fragment(text).code)
    theirs = disassembled(gas(text, tmp_path))
    assert len(ours) == len(theirs) == len(lines) > 2000
    differing = [
        (line, mine, reference)
        for line, mine, reference in zip(lines, ours, theirs, strict=True)
        if mine != reference
    ]
    assert differing == []
