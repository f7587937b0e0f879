# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains and what the hypervisor keeps for them. It knows no hypercall."""
