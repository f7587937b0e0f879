# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlite.abi.x86_32p import VMASST_TYPE_pae_extended_cr3, VMASST_TYPE_writable_pagetables
from xenlite.errors import ConfigError
from xenlite.toolstack.config import KEYS, json_schema, load, parse
from xenlite.toolstack.domain_config import DomainConfig, Reaction

LEAST = b"name: a\nkernel: b\n"
SCHEMA = Path(__file__).parents[3] / "docs" / "dom.schema.json"


def read(text: bytes, *overrides: str) -> DomainConfig:
    return parse(text, "dom.yaml", Path("dir"), overrides)


def faults(text: bytes, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return [str(fault) for fault in caught.value.faults]


def test_the_least_file_has_xls_defaults() -> None:
    assert read(LEAST) == DomainConfig(
        name="a",
        kernel=Path("dir/b"),
        kernel_name="b",
        memory_mib=32,
        maxmem_mib=32,
        cmdline="",
        ramdisk=None,
        vcpus=1,
        maxvcpus=1,
        on_poweroff=Reaction.DESTROY,
        on_reboot=Reaction.RESTART,
        on_crash=Reaction.DESTROY,
    )


def test_every_key_arrives() -> None:
    text = b"""
        name: web-1
        kernel: /boot/k
        ramdisk: initrd
        cmdline: "console=hvc0 x"
        memory: 64M
        maxmem: 1G
        vcpus: 2
        maxvcpus: 4
        on_poweroff: preserve
        on_reboot: destroy
        on_crash: restart
        cpu_weight: 512
        cap: 150
        max_event_channels: 64
    """
    config = read(text)
    assert config.kernel == Path("/boot/k")
    assert config.ramdisk == Path("dir/initrd")
    assert config.cmdline == "console=hvc0 x"
    assert (config.memory_mib, config.maxmem_mib) == (64, 1024)
    assert (config.pages, config.max_pages) == (16384, 262144)
    assert (config.vcpus, config.maxvcpus) == (2, 4)
    assert config.on_poweroff is Reaction.PRESERVE
    assert config.on_reboot is Reaction.DESTROY
    assert config.on_crash is Reaction.RESTART
    assert (config.cpu_weight, config.cap, config.max_event_channels) == (512, 150, 64)


@pytest.mark.parametrize(
    ("size", "mib"),
    [("32", 32), ("32M", 32), ("32 ", 32), ("'1G'", 1024), ("65536k", 64), ("64MiB", 64)],
)
def test_sizes_are_written_as_people_write_them(size: str, mib: int) -> None:
    assert read(LEAST + f"memory: {size}\n".encode()).memory_mib == mib


@pytest.mark.parametrize("word", ["yes", "1", "1:30", "2001-01-01", "0x10", "null-ish", "1e3"])
def test_text_is_what_stands_in_the_file(word: str) -> None:
    text = f"name: a\nkernel: {word}\ncmdline: {word}\n".encode()
    assert (read(text).kernel_name, read(text).cmdline) == (word, word)


def test_assists_are_named_as_xen_names_them() -> None:
    wanted = (VMASST_TYPE_writable_pagetables, VMASST_TYPE_pae_extended_cr3)
    for text in (b"pae_extended_cr3, writable_pagetables", b"writable_pagetables pae_extended_cr3"):
        assert read(LEAST + b"assists: " + text).assists == tuple(sorted(wanted))
    assert faults(LEAST + b"assists: writable_pagetable") == [
        "dom.yaml:3: assists: 'writable_pagetable' is no assist;"
        " did you mean 'writable_pagetables'?"
    ]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("cpu_weight=0", "cpu_weight: '0' is too small; at least 1"),
        ("cpu_weight=65536", "cpu_weight: '65536' is too large; at most 65535"),
        ("cap=-1", "cap: '-1' is too small; at least 0"),
        ("cap=half", "cap: 'half' is not a whole number"),
        ("cap=101", "cap: 101 is more than the 1 virtual processors can use"),
        ("max_event_channels=1", "max_event_channels: '1' is too small; at least 2"),
        ("max_event_channels=1024", "max_event_channels: '1024' is too large; at most 1023"),
    ],
)
def test_shares_and_limits_have_xls_bounds(word: str, problem: str) -> None:
    assert faults(LEAST, word) == [f"command line: {problem}"]


def test_a_cap_counts_the_processors_that_there_may_be() -> None:
    assert read(LEAST, "cap=400", "vcpus=2", "maxvcpus=4").cap == 400


def test_an_empty_optional_key_counts_as_left_out() -> None:
    assert read(LEAST + b"ramdisk:\nmaxmem: ~\ncmdline: null\n") == read(LEAST)


def test_overrides_win_and_their_paths_start_where_the_user_stands() -> None:
    config = read(LEAST, "kernel=x/y", "memory=48", "cmdline=a=b")
    assert (config.kernel, config.memory_mib, config.cmdline) == (Path("x/y"), 48, "a=b")


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    text = b"""nmae: foo
kernel: [1, 2]
memory: 2
maxmem: lots
vcpus: 33
on_crash: coredump-preserve
on_reboot: restrat
vfb: {a: b}
memory: 32
"""
    assert faults(text) == [
        "dom.yaml: name: is missing",
        "dom.yaml:1: nmae: not a key of this file; did you mean 'name'?",
        "dom.yaml:2: kernel: a list, where one value belongs",
        "dom.yaml:3: memory: '2' is too small; at least 4",
        "dom.yaml:4: maxmem: 'lots' is not a size; write MiB (32) or a unit (32M, 1G)",
        "dom.yaml:5: vcpus: '33' is too large; at most 32",
        "dom.yaml:6: on_crash: 'coredump-preserve' is none of destroy, restart, preserve,"
        " coredump-destroy, coredump-restart; did you mean 'coredump-restart'?",
        "dom.yaml:7: on_reboot: 'restrat' is none of destroy, restart, preserve,"
        " coredump-destroy, coredump-restart; did you mean 'restart'?",
        "dom.yaml:8: vfb: a key of xl.cfg for which xenlite has nothing yet",
        "dom.yaml:9: memory: given twice, first at dom.yaml:3",
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("maxmem: 16", "dom.yaml:3: maxmem: 16 MiB is less than memory, 32 MiB"),
        ("vcpus: 1.5", "dom.yaml:3: vcpus: '1.5' is not a whole number"),
        ("vcpus: 0", "dom.yaml:3: vcpus: '0' is too small; at least 1"),
        ("memory: 1k", "dom.yaml:3: memory: '1k' is not a whole number of MiB"),
        ("memory: 65G", "dom.yaml:3: memory: '65G' is too large; at most 4096"),
        ("memory: -32", "dom.yaml:3: memory: '-32' is not a size; write MiB (32) or a unit"),
        ("cmdline: &a x", None),
        ("cmdline: *a", "dom.yaml:3: cmdline: an alias, where one value belongs"),
        ("cmdline: {a: b}", "dom.yaml:3: cmdline: a group of keys, where one value belongs"),
        ("[a]: b", "dom.yaml:3: a key must be a plain word"),
        ("--- \nx: y", "dom.yaml:3: a second document; one file describes one domain"),
        ("cmdline: " + "x" * 1024, "dom.yaml:3: cmdline: 1024 bytes long; start_info holds 1023"),
        ("cmdline: " + "x" * 1023, None),
        ("x: '", "dom.yaml:4: not YAML: while scanning a quoted scalar"),
        ("\ta: b", "dom.yaml:3: not YAML: while scanning a plain scalar found a tab"),
    ],
)
def test_one_fault_one_line(line: str, fault: str | None) -> None:
    text = LEAST + line.encode() + b"\n"
    if fault is None:
        assert read(text).name == "a"
    else:
        (found,) = faults(text)
        assert found.startswith(fault)


def test_rules_that_join_two_keys() -> None:
    assert faults(LEAST + b"vcpus: 4\nmaxvcpus: 2\n") == [
        "dom.yaml:4: maxvcpus: 2 is less than vcpus, 4"
    ]


def test_firmware_stands_in_place_of_a_kernel() -> None:
    config = read(b"name: a\nfirmware: grub/g.bin\n")
    assert (config.kernel, config.kernel_name) == (Path("dir/grub/g.bin"), "grub/g.bin")
    assert read(b"name: a\nkernel: b\nfirmware:\n") == read(LEAST)
    assert read(b"name: a\n", "firmware=g").kernel == Path("g")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("kernel: b\nfirmware: g", "dom.yaml:3: firmware: stands in place of kernel; give one"),
        ("", "dom.yaml: kernel: is missing, or firmware in its place"),
        ("firmware:", "dom.yaml: kernel: is missing, or firmware in its place"),
        ("firmware: ''", "dom.yaml:2: firmware: has no value"),
        ("firmware: [g]", "dom.yaml:2: firmware: a list, where one value belongs"),
        ("firmware: pvgrub64", "dom.yaml:2: firmware: 'pvgrub64' is not for 32-bit PV domains"),
        ("firmware: uefi", "dom.yaml:2: firmware: 'uefi' is not for 32-bit PV domains"),
    ],
)
def test_a_domain_boots_one_thing(lines: str, fault: str) -> None:
    (found,) = faults(b"name: a\n" + lines.encode())
    assert found.startswith(fault)


def test_pvgrub32_is_looked_for_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (tmp_path / "none", tmp_path / "debian", tmp_path / "fetched")
    monkeypatch.setattr("xenlite.toolstack.firmware._PLACES", places)
    text = b"name: a\nmemory: 1\nfirmware: pvgrub32\n"
    assert faults(text) == [
        "dom.yaml:2: memory: '1' is too small; at least 4",
        "dom.yaml:3: firmware: grub-i386-xen.bin is not here; `apt-get install grub-xen-host`, run"
        " `tools/fetch_kernels`, or give its path",
    ]
    for place in places[:0:-1]:
        place.mkdir()
        (place / "grub-i386-xen.bin").write_bytes(b"")
        config = read(b"name: a\nfirmware: pvgrub32\n")
        assert config.kernel == place / "grub-i386-xen.bin"


@pytest.mark.parametrize("name", ["''", "a/b", "'a b'", "-a", "x" * 65, "\u00e4"])
def test_names_are_plain(name: str) -> None:
    (fault,) = faults(f"name: {name}\nkernel: k\n".encode())
    assert fault.startswith("dom.yaml:1: name: ")


@pytest.mark.parametrize(
    "line", [r'kernel: "a\0b"', r'disk: ["d\0.img,raw,xvda"]', r'networks: {name: x, pcap: "\0"}']
)
def test_no_value_has_a_nul(line: str) -> None:
    (fault,) = faults(f"name: a\n{line}\n".encode())
    assert fault.startswith("dom.yaml:2: a NUL character")


def test_a_value_missing_behind_its_key_is_said_so() -> None:
    assert faults(b"name:\nkernel: ''\n") == [
        "dom.yaml:1: name: has no value",
        "dom.yaml:2: kernel: has no value",
    ]


@pytest.mark.parametrize(
    "text",
    [b"", b"# nothing\n", b"- a\n- b\n", b"just text", b"\xff\xfe\x00", b"name: \x00", b"\x80abc"],
)
def test_what_is_no_domain_at_all_gets_one_line(text: bytes) -> None:
    assert len(faults(text)) == 1


@pytest.mark.parametrize("text", [b"[" * 500_000, b"a: " + b"{" * 300_000, b"- " * 300_000])
def test_depth_costs_no_stack(text: bytes) -> None:
    assert faults(text)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("memory", "command line: 'memory' is not key=value"),
        ("memroy=1", "command line: memroy: not a key of this file; did you mean 'memory'?"),
        ("vcpus=x", "command line: vcpus: 'x' is not a whole number"),
    ],
)
def test_faults_of_the_command_line_say_so(word: str, fault: str) -> None:
    assert faults(LEAST, word) == [fault]


def test_files_that_cannot_be_read_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="longer than 1 MiB"):
        load(large)


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "dom.yaml").write_bytes(LEAST)
    assert load(tmp_path / "dom.yaml").kernel == tmp_path / "b"


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, "nmae", "'", "? ", "&a", "- "]),
            st.sampled_from([": ", ":", " ", ":\n  - ", ": {", ": |\n  "]),
            st.text(max_size=12),
        ),
        max_size=6,
    )
)
def test_any_text_gives_a_domain_or_lines(pieces: list[tuple[str, str, str]]) -> None:
    text = "\n".join(key + colon + value for key, colon, value in pieces)
    try:
        config = read(text.encode("utf-8", "surrogatepass"))
    except ConfigError as error:
        lines = [str(fault) for fault in error.faults]
        assert lines
        assert not any("\n" in line for line in lines)
    else:
        assert config.memory_mib <= config.maxmem_mib


def test_the_published_schema_is_fresh() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), (
        "stale: write it again with `xenlite schema > docs/dom.schema.json`"
    )
