# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_version and vm_assist: what this hypervisor is, and what it should do differently.

Strings fill their whole structure, zero-padded. (public/version.h, features.h, xen.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSYS,
    EPERM,
    HYPERVISOR_VIRT_START,
    PAGE_SIZE,
    SIZEOF_XEN_CAPABILITIES_INFO,
    SIZEOF_XEN_CHANGESET_INFO,
    SIZEOF_XEN_COMMANDLINE,
    SIZEOF_XEN_DOMAIN_HANDLE,
    SIZEOF_XEN_EXTRAVERSION,
    SIZEOF_XEN_FEATURE_INFO,
    XEN_ABI_NAME,
    HYPERVISOR_vm_assist,
    HYPERVISOR_xen_version,
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_writable_pagetables,
    VMASST_TYPE_xenlite_fault_address,
    XenCompileInfo,
    XENFEAT_gnttab_map_avail_bits,
    XENFEAT_highmem_assist,
    XENFEAT_mmu_pt_update_preserve_ad,
    XENFEAT_pae_pgdir_above_4gb,
    XenFeatureInfo,
    XenPlatformParameters,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler
from xenlite.machine.cpuid import XEN_MAJOR, XEN_MINOR

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ASSISTS: Final = frozenset(
    {
        VMASST_TYPE_4gb_segments,
        VMASST_TYPE_4gb_segments_notify,
        VMASST_TYPE_writable_pagetables,
        VMASST_TYPE_pae_extended_cr3,
        VMASST_TYPE_architectural_iopl,
        VMASST_TYPE_xenlite_fault_address,
    }
)
_TEXTS: Final = {
    XENVER_extraversion: b".0-xenlite".ljust(SIZEOF_XEN_EXTRAVERSION, b"\0"),
    XENVER_compile_info: XenCompileInfo(
        compiler=b"CPython",
        compile_by=b"xenlite",
        compile_domain=b"",
        compile_date=b"",
    ).pack(),
    XENVER_capabilities: XEN_ABI_NAME.encode().ljust(SIZEOF_XEN_CAPABILITIES_INFO, b"\0"),
    XENVER_changeset: b"unavailable".ljust(SIZEOF_XEN_CHANGESET_INFO, b"\0"),
    XENVER_platform_parameters: XenPlatformParameters(HYPERVISOR_VIRT_START).pack(),
    XENVER_guest_handle: bytes(SIZEOF_XEN_DOMAIN_HANDLE),
    XENVER_commandline: b"<denied>".ljust(SIZEOF_XEN_COMMANDLINE, b"\0"),
}


class InfoCalls:
    """The two hypercalls of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_xen_version: self.xen_version,
            HYPERVISOR_vm_assist: self.vm_assist,
        }

    def xen_version(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Answer by value, or into the structure at ``argument``."""
        if command == XENVER_version:
            return XEN_MAJOR << 16 | XEN_MINOR
        if command == XENVER_pagesize:
            return PAGE_SIZE
        if command == XENVER_get_features:
            self._get_features(argument)
        elif command in _TEXTS:
            self._guest_memory.write(argument, _TEXTS[command])
        elif command == XENVER_build_id:
            raise Refused(EPERM, "info.build-id-needs-privilege")
        else:
            raise Refused(ENOSYS, "info.command", command)
        return 0

    def _get_features(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_XEN_FEATURE_INFO)
        index = XenFeatureInfo.unpack(copy).submap_idx
        if index:
            raise Refused(EINVAL, "info.feature-submap", index)
        features = 1 << XENFEAT_mmu_pt_update_preserve_ad | 1 << XENFEAT_highmem_assist
        features |= 1 << XENFEAT_gnttab_map_avail_bits
        if self._domain.assists >> VMASST_TYPE_pae_extended_cr3 & 1:
            features |= 1 << XENFEAT_pae_pgdir_above_4gb
        self._guest_memory.write(argument, XenFeatureInfo(index, features).pack())

    def vm_assist(self, command: int, kind: int, _1: int, _2: int, _3: int) -> int:
        """Enable or disable one assist of the whole domain."""
        if kind not in _ASSISTS:
            raise Refused(EINVAL, "info.assist", kind)
        self._domain.engine.ways.close()
        if command == VMASST_CMD_enable:
            self._domain.assists |= 1 << kind
        elif command == VMASST_CMD_disable:
            self._domain.assists &= ~(1 << kind)
        else:
            raise Refused(ENOSYS, "info.assist-command", command)
        if kind == VMASST_TYPE_architectural_iopl:
            for vcpu in self._domain.vcpus:
                vcpu.set_io_privilege(vcpu.io_privilege, shown=command == VMASST_CMD_enable)
        return 0
