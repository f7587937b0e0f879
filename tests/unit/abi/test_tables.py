# SPDX-License-Identifier: GPL-2.0-or-later
"""The ABI's tables agree with each other, and with what the conventions derive from."""

from xenlite.abi import x86_32p as abi


def test_hypercall_tables_name_the_same_calls() -> None:
    numbers = {f"HYPERVISOR_{name}": number for number, name in abi.HYPERCALL_NAMES.items()}
    defined = {n: v for n, v in vars(abi).items() if n in numbers}
    assert defined == numbers
    assert set(abi.HYPERCALL_ARGS) == set(abi.HYPERCALL_NAMES.values())
    assert abi.UNIMPLEMENTED.keys() <= abi.HYPERCALL_NAMES.keys()


def test_arguments_fit_the_registers() -> None:
    for name, args in abi.HYPERCALL_ARGS.items():
        registers = sum(2 if type_ == "uint64" else 1 for _, type_ in args)
        assert registers <= abi.HYPERCALL_MAX_ARGUMENTS, name


def test_every_hypercall_has_a_stub_in_the_page() -> None:
    assert max(abi.HYPERCALL_NAMES) < abi.HYPERCALL_STUB_COUNT
    assert abi.HYPERCALL_STUB_SIZE * abi.HYPERCALL_STUB_COUNT == abi.PAGE_SIZE


def test_sub_operations_are_selected_by_an_argument_and_take_known_structures() -> None:
    for name, (selector, names, arguments) in abi.OPERATIONS.items():
        assert selector in dict(abi.HYPERCALL_ARGS[name])
        assert arguments.keys() <= names.keys()
        assert set(arguments.values()) <= abi.STRUCTURES.keys() | {"domid"}
    for name, reasons in abi.UNIMPLEMENTED_OPERATIONS.items():
        assert reasons.keys() <= abi.OPERATIONS[name][1].keys()


def test_an_alias_does_not_hide_the_name_that_comes_first() -> None:
    assert abi.ERRNO_NAMES[abi.EWOULDBLOCK] == "EAGAIN"
    assert abi.ERRNO_NAMES[abi.EINVAL] == "EINVAL"


def test_own_additions_collide_with_nothing_of_xen() -> None:
    assert abi.VMASST_TYPE_xenlite_fault_address not in abi.VMASST_TYPE_NAMES
    assert not abi.TI_FAULT_ADDRESS & (abi.TI_DPL_MASK | abi.TI_MASK_EVENTS)


def test_limits_follow_from_the_layout() -> None:
    assert abi.MAX_GDT_ENTRIES == abi.FIRST_RESERVED_GDT_ENTRY
    assert abi.MAX_GDT_FRAMES == abi.FIRST_RESERVED_GDT_PAGE
    assert abi.FIRST_XEN_L2_SLOT == (abi.HYPERVISOR_VIRT_START >> abi.L2_SHIFT) % abi.PT_ENTRIES
    assert abi.PT_ENTRIES * abi.PTE_SIZE == abi.PAGE_SIZE == 1 << abi.PAGE_SHIFT
    assert abi.PAGE_SHIFT == abi.XEN_PAGE_SHIFT
    assert abi.SIZEOF_SHARED_INFO <= abi.PAGE_SIZE
    assert abi.SIZEOF_SRING + abi.BLKIF_RING_SIZE * abi.SIZEOF_BLKIF_REQUEST <= abi.PAGE_SIZE
