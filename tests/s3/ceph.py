"""A real S3 for the tests: Ceph's object gateway, with one monitor and one in-memory store, on a loopback port.

It checks signatures, presigned links and policies, which in-process imitations do not. A stop removes everything.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType

import botocore.session

HERE = Path(__file__).parent
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
NEW_OSD = """
import json, rados, sys
cluster = rados.Rados(conffile=sys.argv[1], name="client.admin")
cluster.connect(timeout=30)
answer = cluster.mon_command(json.dumps({"prefix": "osd new", "uuid": sys.argv[2]}), b"")
assert answer[0] == 0, answer
"""

Credentials = tuple[str, str]
"""Access key and secret key."""


class CephS3:
    """``with CephS3(folder) as s3:`` gives `s3.endpoint` and `s3.admin`; `s3.user(...)` makes further users.

    Args:
        packages: the folder that `install_ceph.sh` filled.
    """

    def __init__(self, packages: Path, memory_bytes: int = 4 * 2**30) -> None:
        self.packages = packages
        self.folder = Path(tempfile.mkdtemp(prefix="ceph-s3-", dir=_fast_folder()))
        self.libraries = packages / "usr/lib/x86_64-linux-gnu"
        first, second, self.port = _free_ports(3)
        self.monitor = f"[v2:127.0.0.1:{first},v1:127.0.0.1:{second}]"
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.fsid = str(uuid.uuid4())
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.admin: Credentials = ("", "")
        self._write_configuration(memory_bytes)

    def __enter__(self) -> CephS3:
        try:
            self._make_keyring()
            self._start_monitor()
            self._start_store()
            self._start("radosgw", "-n", "client.rgw")
            self._wait_for_port()
            self.admin = self.user("admin", capabilities="roles=*;users=*;user-policy=*")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def user(self, name: str, capabilities: str | None = None, may_make_buckets: bool = True) -> Credentials:
        """Make a user of the gateway."""
        access_key, secret_key = "AK" + secrets.token_hex(9).upper(), secrets.token_hex(20)
        words = ["user", "create", "--uid", name, "--display-name", name]
        words += ["--access-key", access_key, "--secret", secret_key]
        words += ["--caps", capabilities] if capabilities else []
        words += [] if may_make_buckets else ["--max-buckets=-1"]
        self._run("radosgw-admin", *words)
        return access_key, secret_key

    def role(self, name: str, may_assume: str, actions: list[str], denies_itself: bool = True) -> str:
        """Create a role with these rights on everything, for the user `may_assume`; returns its ARN.

        The gateway also treats the role's session as that user. Without a denial it could assume the role again.
        """
        iam = botocore.session.Session().create_client(
            "iam", "us-east-1", endpoint_url=self.endpoint,
            aws_access_key_id=self.admin[0], aws_secret_access_key=self.admin[1],
        )  # fmt: skip
        may = {"Effect": "Allow", "Principal": {"AWS": [f"arn:aws:iam:::user/{may_assume}"]}}
        never = {"Effect": "Deny", "Principal": {"AWS": [f"arn:aws:iam:::role/{name}"]}}
        trust = [{**who, "Action": ["sts:AssumeRole"]} for who in ((may, never) if denies_itself else (may,))]
        what = {"Effect": "Allow", "Action": actions, "Resource": "arn:aws:s3:::*"}
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(*trust))
        iam.put_role_policy(RoleName=name, PolicyName="rights", PolicyDocument=_policy(what))
        return str(made["Role"]["Arn"])

    def stop(self) -> None:
        """Kill the daemons; all their data is in memory."""
        for daemon in reversed(self.daemons):
            daemon.kill()
        for daemon in self.daemons:
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        paths = [self.libraries, self.libraries / "ceph", self.packages / "lib/x86_64-linux-gnu"]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(map(str, paths)),
            "PYTHONPATH": str(self.packages / "usr/lib/python3/dist-packages"),
            "CEPH_CONF": str(self.folder / "ceph.conf"),
        }

    def _write_configuration(self, memory_bytes: int) -> None:
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        text = (
            (HERE / "ceph.conf")
            .read_text()
            .format(
                fsid=self.fsid,
                monitor=self.monitor,
                folder=self.folder,
                libraries=self.libraries,
                memory_bytes=memory_bytes,
                port=self.port,
                sts_key=secrets.token_hex(8),
            )
        )
        (self.folder / "ceph.conf").write_text(text)

    def _make_keyring(self) -> None:
        keyring = str(self.folder / "keyring")
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name, parts in (("client.admin", "mon osd mgr mds"), ("client.rgw", "mon osd")):
            rights = [word for part in parts.split() for word in ("--cap", part, "allow *")]
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *rights)
        rights = ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"]
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", *rights)

    def _start_monitor(self) -> None:
        chart = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", self.monitor, "--fsid", self.fsid, chart)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", chart, "--keyring", str(self.folder / "keyring"))
        self._start("ceph-mon", "-i", "a")

    def _start_store(self) -> None:
        """Register the one store (Debian's own Python has the binding) and start it."""
        store_id = str(uuid.uuid4())
        self._command(["/usr/bin/python3", "-c", NEW_OSD, str(self.folder / "ceph.conf"), store_id], seconds=60)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", store_id)
        self._start("ceph-osd", "-i", "0")

    def _run(self, program: str, *words: str) -> None:
        self._command([str(self.packages / "usr/bin" / program), *words], seconds=30)

    def _command(self, words: list[str], seconds: int) -> None:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise RuntimeError(f"{Path(words[0]).name} failed: {done.stderr[-800:]}")

    def _start(self, program: str, *words: str) -> None:
        """Start a daemon in the foreground; the kernel kills it when the test run ends."""
        command = [str(self.packages / "usr/bin" / program), "-f", *words]
        with open(self.folder / f"{program}.out", "ab") as log:
            daemon = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
            )
        self.daemons.append(daemon)

    def _wait_for_port(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(daemon.poll() is not None for daemon in self.daemons):
                raise RuntimeError(f"a Ceph daemon ended at its start: {self._last_words()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("Ceph's gateway did not open its port")

    def _last_words(self) -> str:
        return json.dumps({log.stem: log.read_text()[-300:] for log in self.folder.glob("*.out")})


def _policy(*statements: dict[str, object]) -> str:
    """The gateway takes JSON without spaces only."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)}, separators=(",", ":"))


def _fast_folder() -> str | None:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 512 * 2**20
    return str(memory) if roomy and os.access(memory, os.W_OK) else None


def _free_ports(num_ports: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num_ports)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
