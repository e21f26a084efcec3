"""Sandbox processes read uploaded files: their permissions, their end, and their replies."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pikepdf
import pytest
import safetensors.numpy
from PIL import Image

from onbrand.config import Limits
from onbrand.errors import AdapterRefused, InvalidInput, TooLarge, Unavailable, UnsupportedMedia
from onbrand.sandbox import icc_profiles, processes
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.images import clean_image
from onbrand.sandbox.processes import Child, end_servers, fork_child
from onbrand.storage.layout import CONTENT_TYPES
from tests.colour_files import cmyk_profile, encoded, iccp, png
from tools.harness.hostile_files import documents
from tools.harness.hostile_files.pictures import picture

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a child, or become nobody")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Used]:
    """The sandbox processes that were released, in order."""
    gone: list[Used] = []
    close = Child.close

    def noted(child: Child) -> None:
        gone.append(Used(child.pid, child._server.pid, megabytes(child.pid)))
        close(child)

    monkeypatch.setattr(Child, "close", noted)
    return gone


@dataclass(frozen=True)
class Used:
    pid: int
    server: int
    megabytes: float


@pytest.fixture
def a_child() -> Iterator[Child]:
    with closing(fork_child("images", Limits().check_bytes)) as child:
        yield child


def megabytes(pid: int) -> float:
    """The peak memory of the process."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024 / 1e6
    return 0.0


# what a child may do


@only_linux
@only_root
def test_a_child_inherits_neither_environment_nor_files(monkeypatch: pytest.MonkeyPatch) -> None:
    end_servers()
    monkeypatch.setenv("ONBRAND_S3_SECRET_KEY", "canary-secret")
    with closing(fork_child("images", 2**28)) as first, closing(fork_child("images", 2**28)) as second:
        for child in (first, second):
            proc = Path(f"/proc/{child.pid}")
            environment = (proc / "environ").read_bytes()
            assert b"canary" not in environment
            assert b"ONBRAND" not in environment
            assert sorted(os.listdir(proc / "fd")) == ["0", "1", "2"]
            assert os.readlink(proc / "cwd") == "/"
            assert os.getsid(child.pid) == child.pid


@only_linux
def test_a_child_has_its_limits(a_child: Child) -> None:
    said = Path(f"/proc/{a_child.pid}/limits").read_text()
    limits = {
        name: re.search(rf"{name}\s+(\S+)\s+(\S+)", said) for name in ("core file size", "file size", "open files")
    }
    assert {name: found and found.groups() for name, found in limits.items()} == {
        "core file size": ("0", "0"), "file size": ("0", "0"), "open files": ("0", "0"),
    }  # fmt: skip
    space = re.search(r"address space\s+(\d+)\s+(\d+)", said)
    assert space is not None
    assert int(space[1]) == int(space[2]) < 400e6


@only_linux
@only_root
def test_a_child_is_nobody(a_child: Child) -> None:
    said = Path(f"/proc/{a_child.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in said
    assert "Gid:\t65534\t65534\t65534\t65534" in said
    assert "Seccomp:\t2" in said


@pytest.mark.parametrize(
    "deed",
    [
        "open('/etc/passwd')",
        "open('/tmp/onbrand-evil', 'w')",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', 1))",
        "os.close(2) or open('/etc/passwd')",
        "os.close(2) or __import__('socket').socket()",
        "os.closerange(0, 3) or os.pipe()",
        "os.listdir('/')",
        "bytes(400 * 2**20)",
        "os.setuid(0) if os.getuid() else open('/etc/passwd')",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)) or (os.getuid() == 0 and 1 / 0)",
        "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)) or (os.getuid() == 0 and 1 / 0)",
    ],
)
@only_linux
def test_a_confined_process_can_do_nothing(deed: str) -> None:
    assert code_of(deed) == 7


@only_linux
def test_a_confined_process_can_compute() -> None:
    assert code_of("sum(bytes(20 * 2**20))") == 0


def code_of(deed: str) -> int:
    """The exit code of a confined process that tries the action: 7 if it is refused."""
    code = (
        "import os, resource, socket; from onbrand.sandbox.worker import confine; confine(300_000_000)\n"
        f"try:\n    {deed}\nexcept BaseException:\n    os._exit(7)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    return done.returncode


DEEDS = {
    "signal": "os.kill(victim, signal.SIGCONT)",
    "signal a group": "os.killpg(os.getpgid(0), signal.SIGCONT)",
    "trace": "must(libc.ptrace(0x4206, victim, None, None))",  # PTRACE_SEIZE
    "bounds": "resource.prlimit(victim, resource.RLIMIT_CPU, (1000, 1000))",
    "priority": "os.setpriority(os.PRIO_PROCESS, victim, 19)",
    "processors": "os.sched_setaffinity(victim, os.sched_getaffinity(0))",
    "shared memory": "must(libc.shmctl(libc.shmget(0, 4096, 0o1600), 0, None))",
    "messages": "must(libc.msgctl(libc.msgget(0, 0o1600), 0, None))",
    "see": "os.stat(path)",
    "rename": "os.rename(path, path + '2') or os.rename(path + '2', path)",
    "cut": "os.truncate(path, 1)",
    "permit": "os.chmod(path, 0o600)",
    "folder": "os.mkdir(path + '.d') or os.rmdir(path + '.d')",
    "link": "os.symlink('/', path + '.l') or os.unlink(path + '.l')",
    "remove": "os.unlink(path)",
}
TRIES = """
import ctypes, encodings.ascii, os, resource, signal, tempfile
from onbrand.sandbox.worker import _NOBODY, confine
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(_NOBODY); os.setuid(_NOBODY)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # whoever changed its user may not be looked into: this one and its victim may
def must(code):
    if code < 0:
        raise OSError(ctypes.get_errno(), "")
path = tempfile.mkstemp()[1]
ours, its = os.pipe()
os.setpgid(0, 0)
if not (victim := os.fork()):
    os.close(its)
    os.read(ours, 1)
    if os.path.exists(path):
        os.unlink(path)
    os._exit(0)
CONFINE
for name, deed in DEEDS.items():
    try:
        eval(deed)
        print(name, flush=True)
    except PermissionError:
        pass
"""


@only_linux
def test_a_confined_process_reaches_nothing_of_its_own_user() -> None:
    """Bounds of resources do not bound these: what is confined only by them does them all."""
    tries = TRIES.replace("DEEDS", repr(DEEDS))
    assert done_of(tries.replace("CONFINE", "")) == list(DEEDS)
    assert done_of(tries.replace("CONFINE", "confine(300_000_000)")) == []


def done_of(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    return done.stdout.splitlines()


@only_linux
def test_a_confined_process_that_crashes_ends_as_what_it_is() -> None:
    assert code_of("os.abort()") == -signal.SIGABRT


@only_linux
def test_the_largest_picture_fits_into_the_memory(checker: Checker, used: list[Used]) -> None:
    """25 million pixels that must be turned: two copies of them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (6250, 4000), (20, 90, 160)).save(out, "JPEG", exif=exif, progressive=True)
    clean = checker.image(out.getvalue())
    assert (clean.width, clean.height) == (4000, 6250)
    assert 25 < used[-1].megabytes <= 300


@only_linux
def test_the_largest_webp_fits_into_the_memory(checker: Checker, used: list[Used]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (4096, 3072), (20, 90, 160)).save(out, "WEBP", method=0)
    assert checker.image(out.getvalue()).width == 4096
    assert 25 < used[-1].megabytes <= 300


LARGEST = {
    "of inks, turned": lambda: encoded(
        "JPEG", Image.new("CMYK", (6250, 4000), (255, 128, 0, 30)), exif=turned(), icc_profile=cmyk_profile()
    ),
    "of a palette": lambda: png(np.zeros((4000, 6250, 1), np.uint8), {**P3, b"PLTE": b"\xea\x33\x23", b"tRNS": b"\7"}),
    "of gray and alpha in 16 bits": lambda: png(np.full((4000, 6250, 2), 30_000, np.uint16), LINEAR),
    "of RGB in 16 bits": lambda: png(np.full((3200, 4000, 3), 30_000, np.uint16), P3),
    "of RGB and alpha in 8 bits": lambda: png(np.full((4000, 6250, 4), 99, np.uint8), P3),
}
P3_PROFILE = icc_profiles.rgb_profile(icc_profiles.DISPLAY_P3, icc_profiles.srgb_curve()).data
P3 = iccp(P3_PROFILE)
LINEAR = iccp(icc_profiles.gray_profile(icc_profiles.gamma(1.0)).data)


def of_adobe_rgb() -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return exif


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@only_linux
@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_picture_is_converted_to_srgb_within_the_memory_and_time(
    checker: Checker, used: list[Used], kind: str
) -> None:
    clean = checker.image(LARGEST[kind]())
    assert clean.width * clean.height >= 12_800_000
    assert 25 < used[-1].megabytes <= 300


def test_a_child_gives_the_colours_that_a_process_of_ours_gives(checker: Checker) -> None:
    for data in (
        encoded("JPEG", Image.new("CMYK", (64, 64), (255, 128, 0, 30)), icc_profile=cmyk_profile()),
        encoded("WEBP", Image.new("RGB", (64, 64), (234, 51, 35)), icc_profile=P3_PROFILE),
        png(np.full((64, 64, 1), 40_000, np.uint16), {**LINEAR, b"tRNS": b"\x9c\x40"}),
        png(np.full((64, 64, 3), 40_000, np.uint16), P3),
        png(np.full((64, 64, 3), 99, np.uint8), {b"gAMA": (100_000).to_bytes(4, "big")}),
        png(np.full((64, 64, 4), 40_000, np.uint16), P3),
        png(np.full((64, 64, 2), 40_000, np.uint16), LINEAR),
        png(np.full((64, 64, 1), 99, np.uint8), P3),
        encoded("JPEG", Image.new("RGB", (64, 64), (60, 200, 90)), exif=of_adobe_rgb()),
        encoded("MPO", Image.new("RGB", (64, 64)), save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    ):
        assert checker.image(data) == clean_image(data, Limits())
    with pytest.raises(UnsupportedMedia, match=r"logo\.png: its colour profile is cut short"):
        checker.image(png(np.zeros((64, 64, 3), np.uint8), iccp(P3_PROFILE[:-50])), "logo.png")


def test_a_file_that_needs_more_memory_is_refused() -> None:
    out = io.BytesIO()
    Image.new("RGB", (5000, 4000)).save(out, "PNG")
    with pytest.raises(TooLarge, match="more memory"):
        Checker(Limits(check_bytes=60_000_000)).image(out.getvalue(), "a.png")


# children come and go


def test_no_child_reads_two_files_and_none_starts_anew(checker: Checker, used: list[Used]) -> None:
    checker.image(picture())
    with pytest.raises(UnsupportedMedia):
        checker.image(b"no picture")
    checker.image(picture("JPEG"))
    assert len({each.pid for each in used}) == 3
    assert len({each.server for each in used}) == 1


@only_linux
def test_a_child_ends_when_it_is_let_go() -> None:
    child = fork_child("images", 2**28)
    os.kill(child.pid, signal.SIGSTOP)  # it does not help it
    child.close()
    gone_soon(child.pid)


@only_linux
def test_a_server_and_its_children_end_when_their_parent_is_killed() -> None:
    code = (
        "import os, signal\nfrom onbrand.sandbox.processes import fork_child\n"
        "child = fork_child('zips', 2**28)\nprint(child.pid, child._server.pid, flush=True)\n"
        "os.kill(child.pid, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    for pid in done.stdout.split():
        gone_soon(int(pid))


def gone_soon(pid: int) -> None:
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.01)


@only_linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_child_whose_server_was_ended_or_stopped_ends_all_the_same(end: signal.Signals) -> None:
    child = fork_child("images", 2**28)
    server = child._server
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(server.pid, end)
    child.close()
    ended(child.pid)
    end_servers(timeout=0.1)


@only_linux
def test_a_server_that_hangs_is_ended_and_replaced(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_child("images", 2**28).close()
    server = processes._servers["images"]
    os.kill(server.pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(processes, "_START_SECONDS", 0.3)
        with pytest.raises(Unavailable, match="try again"):
            checker.image(picture())
    assert checker.image(picture()).width == 96
    assert not server.is_alive


@only_linux
def test_nothing_stays_open(checker: Checker) -> None:
    checker.image(picture())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        checker.image(picture())
        with pytest.raises(UnsupportedMedia):
            checker.image(b"no picture")
    assert len(os.listdir("/proc/self/fd")) == before


@only_linux
def test_without_descriptors_it_is_our_fault_and_none_is_lost(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker.image(picture())
    server, pipe, before = processes._servers["images"], os.pipe, len(os.listdir("/proc/self/fd"))
    made: list[tuple[int, int]] = []

    def one_pipe() -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.append(pipe())
        return made[0]

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", one_pipe)
        with pytest.raises(Unavailable, match="try again"):
            checker.image(picture())
    assert len(os.listdir("/proc/self/fd")) == before
    assert processes._servers["images"] is server


def ended(pid: int) -> None:
    """Wait until the process is gone or a zombie, as a stopped parent does not collect it."""
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_server_that_died_is_no_fault_of_the_next_file(checker: Checker, used: list[Used]) -> None:
    checker.image(picture())
    os.kill(used[-1].server, signal.SIGKILL)
    until = time.monotonic() + 10
    while processes._servers["images"].is_alive and time.monotonic() < until:
        time.sleep(0.01)
    assert checker.image(picture()).width == 96
    assert used[-1].server != used[0].server


def test_many_threads_share_a_checker() -> None:
    checker, widths = Checker(num_children=2), []
    threads = [
        threading.Thread(target=lambda size=size: widths.append(checker.image(picture("PNG", size)).width))
        for size in range(40, 52)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(widths) == list(range(40, 52))


# what a child's end means


def stop_children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """From now on, stop each sandbox process before its first request, and add it to the list."""
    stopped: list[Child] = []
    be_ready = Child.wait_until_ready

    def noted(child: Child) -> None:
        be_ready(child)
        os.kill(child.pid, signal.SIGSTOP)
        stopped.append(child)

    monkeypatch.setattr(Child, "wait_until_ready", noted)
    return stopped


def told_of_one_that_is_ended(stopped: list[Child], end: signal.Signals) -> str:
    def end_it() -> None:
        while not stopped:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(stopped[0].pid, end)
        with suppress(ProcessLookupError):  # SIGKILL ends a stopped one too
            os.kill(stopped[0].pid, signal.SIGCONT)

    ending = threading.Thread(target=end_it, daemon=True)
    ending.start()
    with pytest.raises((UnsupportedMedia, TooLarge)) as told:
        Checker().image(picture(), "logo.png")
    ending.join()
    return told.value.message


@pytest.mark.parametrize(
    ("end", "why", "is_crash"),
    [
        (signal.SIGSEGV, r"logo\.png makes its reader fail", True),
        (signal.SIGABRT, r"logo\.png makes its reader fail", True),
        (signal.SIGPROF, r"logo\.png takes too long", False),
        (signal.SIGKILL, r"logo\.png needs more memory", False),
    ],
)
def test_a_childs_end_says_why_and_a_crash_retires_its_server(
    end: signal.Signals, why: str, is_crash: bool, a_child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = processes._servers["images"]
    assert re.search(why, told_of_one_that_is_ended(stop_children(monkeypatch), end))
    assert (processes._servers.get("images") is not server) == is_crash
    assert server.is_alive
    asked = {"name": "a", "shown": "a", "param": "files", "limits": Limits().model_dump()}
    assert len(list(a_child.replies(asked, picture(), Limits().upload_bytes))) == 1, "a neighbour suffered"


def test_a_child_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = stop_children(monkeypatch)
    monkeypatch.setattr(processes, "WALL_SECONDS", 0.3)
    with pytest.raises(UnsupportedMedia, match="takes too long"):
        Checker().image(picture())
    gone_soon(stopped[0].pid)


def test_processor_time_is_bounded(checker: Checker) -> None:
    with pytest.raises(UnsupportedMedia, match="takes too long"):
        checker.document(b"[[" * 60_000, "md", "a.md")


# what a child may say

LIES = {
    "another type": 'say({"content_type": "text/html", "width": 1, "height": 1}, b"<script>"); say({"done": True})',
    "other bytes": 'say({"content_type": "image/png", "width": 1, "height": 1}, b"<script>"); say({"done": True})',
    "no size": 'say({"content_type": "image/png"}, b"\\x89PNG\\r\\n\\x1a\\n"); say({"done": True})',
    "nothing": 'say({"done": True})',
    "two pictures": 'said = {"content_type": "image/png", "width": 1, "height": 1};'
    'say(said, b"\\x89PNG\\r\\n\\x1a\\n"); say(said, b"\\x89PNG\\r\\n\\x1a\\n"); say({"done": True})',
    "too much": 'os.write(1, struct.pack("<IQ", 2, 2**60) + b"{}")',
    "a long head": 'os.write(1, struct.pack("<IQ", 2**31, 0))',
    "noise": "os.write(1, bytes(range(256)))",
    "a list": 'os.write(1, struct.pack("<IQ", 2, 0) + b"[]")',
    "a refusal that is none": 'say({"refused": "SystemExit", "message": "x"})',
    "a refusal without words": 'say({"refused": "TooLarge", "message": {"a": 1}})',
}
PUPPET = """
import json, os, struct, sys
sys.path.insert(0, sys.argv[1])
from onbrand.sandbox.fork_server import serve
def say(said, data=b""):
    text = json.dumps(said).encode()
    os.write(1, struct.pack("<IQ", len(text), len(data)) + text + data)
def be(_):
    say({"ready": True})
    os.read(0, 2**16)
    LIE
serve(be)
"""


@pytest.fixture
def run_instead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Servers run this program."""
    end_servers()
    yield lambda program: monkeypatch.setattr(processes, "_RUN", program)
    end_servers()


def test_where_nothing_is_filtered_operators_are_told_once(
    checker: Checker, run_instead: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    processes._warn_unfiltered.cache_clear()
    run_instead(PUPPET.replace("LIE", LIES["nothing"]))
    for _ in range(2):
        with pytest.raises(UnsupportedMedia):
            checker.image(picture())
    assert ["seccomp" in record.message for record in caplog.records].count(True) == 1


@only_linux
def test_here_it_is_filtered(checker: Checker, caplog: pytest.LogCaptureFixture) -> None:
    processes._warn_unfiltered.cache_clear()
    checker.image(picture())
    assert not caplog.records


@pytest.mark.parametrize("lie", LIES)
def test_a_child_that_was_taken_over_is_not_believed(
    lie: str, checker: Checker, run_instead: Callable[[str], None]
) -> None:
    run_instead(PUPPET.replace("LIE", LIES[lie]))
    with pytest.raises(UnsupportedMedia, match="makes its reader fail"):
        checker.image(picture(), "a.png")


def test_a_refusals_words_are_shown_harmlessly(checker: Checker, run_instead: Callable[[str], None]) -> None:
    lie = 'say({"refused": "InvalidInput", "message": "a\\u202e\\x1b" + "x" * 9000, "param": "files"})'
    run_instead(PUPPET.replace("LIE", lie))
    with pytest.raises(InvalidInput) as told:
        checker.image(picture())
    assert told.value.message.isprintable()
    assert len(told.value.message) <= 1000


@pytest.mark.parametrize("program", ["raise SystemExit(3)", PUPPET.replace('say({"ready": True})', "os._exit(3)")])
def test_a_child_that_does_not_start_is_our_fault(
    program: str, checker: Checker, run_instead: Callable[[str], None]
) -> None:
    run_instead(program)
    with pytest.raises(Unavailable, match="try again"):
        checker.image(picture())


# what is found


def test_pictures_are_made_anew(checker: Checker) -> None:
    for kind, content_type in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
        clean = checker.image(picture(kind))
        assert (clean.content_type, clean.width, clean.height) == (content_type, 96, 96)
        assert Image.open(io.BytesIO(clean.bytes)).format == kind


def archive(*entries: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return out.getvalue()


def test_an_archive_gives_its_pictures_with_their_captions(checker: Checker) -> None:
    packed = archive(
        ("kit/", b""),
        ("kit/logo.png", picture()),
        ("kit/logo.txt", "\ufeffphoto of [brand] logo, día\r\n".encode()),
        ("kit/box.JPG", picture("JPEG")),
        ("__MACOSX/kit/._logo.png", b"\0\x05\x16\x07"),
        ("kit/.DS_Store", b"\0\0\0\1Bud1"),
    )
    found = checker.unpack(packed, "kit.zip")
    assert [(one.filename, one.caption) for one in found] == [
        ("kit/logo.png", "photo of [brand] logo, día"),
        ("kit/box.JPG", None),
    ]
    assert found[0].data == picture()


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "cp437"])
def test_a_child_reads_names_and_texts_of_every_encoding(checker: Checker, encoding: str) -> None:
    """A child can load no codec any more."""
    name = "größe" if encoding == "cp437" else "商品ロゴ"
    packed = archive(
        ("#" * len(name.encode(encoding)) + ".png", picture()), ("a.jpg", picture("JPEG")), ("a.txt", b"?")
    )
    packed = packed.replace(b"#" * len(name.encode(encoding)), name.encode(encoding))
    assert [one.filename for one in checker.unpack(packed)] == [f"{name}.png", "a.jpg"]
    for text in (
        "[brand] día".encode("utf-16"),
        b"\xfe\xff" + "[brand] día".encode("utf-16-be"),
        "[brand] día".encode(),
    ):
        (found,) = checker.unpack(archive(("a.png", picture()), ("a.txt", text)))
        assert found.caption == "[brand] día"


def test_a_pdf_keeps_its_pages_and_links_and_loses_who_made_it(checker: Checker) -> None:
    with pikepdf.Pdf.new() as made:
        for _ in range(3):
            made.add_blank_page()
        link = pikepdf.Dictionary(
            Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.Link, Rect=[0, 0, 9, 9],
            A=pikepdf.Dictionary(S=pikepdf.Name.URI, URI=pikepdf.String("https://acme.example/")),
        )  # fmt: skip
        made.pages[0].Annots = made.make_indirect(pikepdf.Array([link]))
        made.Root.OpenAction = pikepdf.Array([made.pages[1].obj, pikepdf.Name.Fit])
        with made.open_metadata() as notes:
            notes["dc:creator"] = ["canary-author"]
        made.docinfo["/Author"] = "canary-author"
        out = io.BytesIO()
        made.save(out, compress_streams=False)
    assert b"canary-author" in out.getvalue()
    clean = checker.document(out.getvalue(), "pdf", "Guidelines.pdf")
    assert (clean.num_pages, clean.content_type, clean.ext) == (3, "application/pdf", "pdf")
    with pikepdf.open(io.BytesIO(clean.bytes)) as read:
        assert len(read.pages) == 3
        assert "/Metadata" not in read.Root
        assert "/Info" not in read.trailer
        assert str(read.pages[0].Annots[0].A.URI) == "https://acme.example/"
        out = io.BytesIO()
        read.save(out, compress_streams=False, object_stream_mode=pikepdf.ObjectStreamMode.disable)
    assert b"canary" not in out.getvalue()


def test_earlier_versions_and_loose_parts_of_a_pdf_are_gone(checker: Checker) -> None:
    data = documents.hand(b"", b"", documents.stream(b"canary-deleted"))
    assert b"canary-deleted" in data
    assert b"canary-deleted" not in checker.document(data, "pdf").bytes


def test_the_same_document_gives_the_same_bytes(checker: Checker) -> None:
    data = documents.pdf()
    assert checker.document(data, "pdf") == checker.document(data, "pdf")


def test_markdown_is_kept_but_for_its_line_ends(checker: Checker) -> None:
    text = (
        "\ufeff# Voice\r\n\r\nBe *kind* 👩‍👩‍👧, 1 < 2 & `<b>`.\r\n\r\n```html\n<script>\n```\n<https://acme.example/>\n"
    )
    clean = checker.document(text.encode(), "md", "voice.md")
    assert clean.bytes.decode() == text.removeprefix("\ufeff").replace("\r\n", "\n")
    assert (clean.content_type, clean.num_pages) == (CONTENT_TYPES["md"], None)


def test_weights_are_read_to_the_last_number(checker: Checker) -> None:
    values = np.ones(3_000_001, np.float32)
    assert checker.weights(safetensors.numpy.save({"a": values, "b": np.ones(3, np.float16)})).num_tensors == 2
    values[-1] = np.nan
    with pytest.raises(AdapterRefused, match="a holds a value that is not finite"):
        checker.weights(safetensors.numpy.save({"a": values}))


@only_linux
def test_the_largest_picture_is_measured_within_the_same_limits(checker: Checker, used: list[Used]) -> None:
    """25 million pixels with alpha: 100 MB of them, and a second time while they are scaled."""
    out = io.BytesIO()
    Image.new("RGBA", (5000, 5000), (10, 200, 30, 100)).save(out, "PNG", compress_level=1)
    seen = checker.image(out.getvalue()).features
    assert (seen.width, seen.sides[-1], seen.opaque, seen.visible) == (5000, 1024, 0.0, 1.0)
    assert 100 < used[-1].megabytes < 400
