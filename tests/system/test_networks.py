# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs with networks: host programs, guests and captures, each in a process of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.network import tcpdump_of

ROOT = Path(__file__).parents[2]
XENLITE = [sys.executable, "-m", "xenlite.cli.main"]
KERNEL = Path(__file__).parent / "kernels" / "reflector.s"
DOMAIN = f"""\
name: a
kernel: {KERNEL}
memory: 4
vif: ['mac=00:16:3e:00:00:02']
networks:
  - name: xenbr0
    forward: udp:127.0.0.1:0-10.0.0.2:4001
"""
PATIENCE = 30


def test_a_host_program_talks_to_a_guest_and_captures_show_it(tmp_path: Path) -> None:
    (tmp_path / "dom.yaml").write_text(DOMAIN)
    files = tmp_path / "bridge.pcap", tmp_path / "card.pcap"
    command = [*XENLITE, "run", str(tmp_path / "dom.yaml"), "--audit", "--timeout", str(PATIENCE)]
    captures = [f"--pcap=xenbr0={files[0]}", f"--pcap=a.0={files[1]}"]
    with (
        subprocess.Popen([*command, *captures], cwd=ROOT, stderr=subprocess.PIPE) as run,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program,
    ):
        assert run.stderr is not None
        address = None
        while address is None:
            line = run.stderr.readline().decode()
            assert line, "it has ended"
            address = re.search(
                r"UDP port 127\.0\.0\.1:(\d+) of the host is 10\.0\.0\.2:4001", line
            )
        program.settimeout(PATIENCE)
        program.connect(("127.0.0.1", int(address[1])))
        for number in range(200):
            program.send(b"%d " % number + bytes(1400))
            assert program.recv(2048) == b"%d " % number + bytes(1400)
        burst = [b"burst %d" % number for number in range(20)]
        for datagram in burst:
            program.send(datagram)
        assert [program.recv(2048) for _ in burst] == burst
        program.send(b"q")
        assert program.recv(2048) == b"q"
        said = run.communicate(timeout=PATIENCE)[1].decode()
    assert (run.returncode, said) == (0, "")
    for path in files:
        text = "\n".join(tcpdump_of(path, "-vv"))
        assert "Request who-has 10.0.0.2 tell 10.0.0.2" in text
        assert text.count("[udp sum ok]") == 2 * (200 + 20 + 1)
        assert text.count("[udp sum ok] UDP, length 1402") == 2 * 10
        assert text.count("[udp sum ok] UDP, length 1404") == 2 * 100
        assert "bad" not in text


def verb(directory: Path, *words: str, status: int = 0) -> list[str]:
    """Run a verb of a running xenlite; return the lines that it says."""
    ended = subprocess.run(
        [*XENLITE, *words, "--socket-dir", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return (ended.stderr if status else ended.stdout).splitlines()


def test_cards_come_and_go_by_verbs(tmp_path: Path) -> None:
    (tmp_path / "dom.yaml").write_text(DOMAIN)
    sockets = tmp_path / "sockets"
    command = [*XENLITE, "run", str(tmp_path / "dom.yaml"), "--audit", "--timeout", str(PATIENCE)]
    with subprocess.Popen(
        [*command, "--socket-dir", str(sockets)], cwd=ROOT, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr is not None
        assert any(b" of the host is 10.0.0.2:4001" in line for line in run.stderr)
        head, first = verb(sockets, "network-list", "a")
        assert head.split() == (
            ["Idx", "BE", "Mac", "Addr.", "handle", "state", "evt-ch", "tx-/rx-ring-ref", "BE-path"]
        )
        assert first.split()[:4] == ["0", "0", "00:16:3e:00:00:02", "0"]
        mac = "00:16:3e:00:00:07"
        assert verb(sockets, "network-attach", "a", "bridge=xenbr1", f"mac={mac}") == []
        *_, second = verb(sockets, "network-list", "a")
        backend = "/local/domain/0/backend/vif/1/1"
        assert second.split() == ["1", "0", mac, "1", "1", "-1", "-1/-1", backend]
        for words, line in (
            (
                ("network-attach", "a", "bridge=xenbr1", f"mac={mac}"),
                f"a: vif: {mac} is the address of two cards",
            ),
            (("network-attach", "a", "rate=x"), "rate 'x' is none such as '10Mb/s' or"),
            (("network-detach", "a", "7"), "a: has no network card 7"),
            (
                ("network-detach", "a", "0", "--timeout", "0"),
                "0: the guest has not closed it within 0 s: it goes when the guest does",
            ),
        ):
            [said] = verb(sockets, *words, status=1)
            assert said.startswith(f"xenlite: {line}")
        assert verb(sockets, "network-detach", "a", mac.upper()) == []
        assert verb(sockets, "network-detach", "a", "0", "--force") == []
        assert verb(sockets, "network-list", "a") == [head]
        assert verb(sockets, "destroy", "a") == []
        run.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        (
            "vif: ['bridge=xenbr0,model=e1000']\n",
            [],
            "dom.yaml:4: vif: model 'e1000': no card is emulated; a PV guest needs none;"
            " leave it out",
        ),
        (
            "networks: [{name: xenbr0, tap: lo}]\n",
            [],
            "network xenbr0: tap lo: ",
        ),
        (
            "networks: [{name: xenbr0, pcap: none/x.pcap}]\n",
            [],
            "none/x.pcap: No such file or directory (networks: pcap)",
        ),
        ("", ["--pcap=xenbr0=x.pcap"], "--pcap xenbr0: not here; there is nothing"),
        (
            "vif: ['']\n",
            ["--pcap=b.0=x.pcap"],
            "--pcap b.0: not here; there is a.0, xenbr0",
        ),
        (
            "vif: ['']\n",
            ["--pcap=a.0=x.pcap", "--pcap=a.0=y.pcap"],
            "--pcap a.0: given twice",
        ),
        (
            "networks: [{name: xenbr0, forward: 1-10.0.0.2:7}]\n",
            ["dom.yaml", "name=b", "networks=name=xenbr0"],
            "dom.yaml: networks: xenbr0 is not the same as in dom.yaml; describe it once",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_has_run(
    tmp_path: Path, text: str, options: list[str], line: str
) -> None:
    (tmp_path / "dom.yaml").write_text(f"name: a\nkernel: {KERNEL}\nmemory: 4\n{text}")
    ended = subprocess.run(
        [*XENLITE, "run", "-q", "dom.yaml", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    [said] = ended.stderr.splitlines()
    assert line in said
    assert ended.returncode == 1
    assert {path.name for path in tmp_path.glob("*.pcap")} <= {"x.pcap"}
