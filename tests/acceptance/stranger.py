"""Becomes a user who owns nothing (as `setpriv --reuid=65534 --regid=65534 --clear-groups` does), tries the paths,
processes and ports that standard input names, and prints what it could access.

{"paths": [...], "pids": [...], "ports": [...]} -> {"paths": {path: [what]}, "processes": {...}, "ports": {...}, ...}
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc._channel  # it would be loaded at the first call

NOBODY = 65534
PROC_FILES = ("environ", "maps", "mem", "stack", "auxv", "io", "syscall")
PROC_FOLDERS = ("fd", "cwd", "root", "map_files")
PAGES = (
    "/", "/metrics", "/api/version", "/api/jobs/", "/api/v0/actors", "/api/v0/tasks", "/nodes?view=summary", "/logs",
    "/api/serve/applications/", "/api/cluster_status", "/api/local_raylet_healthz", "/api/job_agent/jobs/",
    "/worker/traceback", "/api/prometheus_health",
)  # fmt: skip
CALLS = (
    "/ray.rpc.InternalKVGcsService/InternalKVKeys", "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo", "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats", "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.ObjectManagerService/FreeObjects",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats", "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.RayletDriver/ClusterInfo", "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.MetricsService/ExportMetrics", "/ray.serve.ASGIService/HandleRequest",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "/ray.rpc.events.EventAggregatorService/AddEvents", "/ray.rpc.LogService/ListLogs",
)  # fmt: skip
SECONDS = 5.0


def worked(call: Callable[[], Any]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def read_file(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def of_path(path: str) -> list[str]:
    if path[:1] in "@\0":
        return ["connect"] if worked(lambda: connect("\0" + path[1:])) else []
    try:
        kind = os.stat(path).st_mode
    except OSError:
        return []
    if stat.S_ISDIR(kind):
        tried = {"list": lambda: os.listdir(path), "make": lambda: os.mkdir(f"{path}/stranger")}
    elif stat.S_ISSOCK(kind):
        tried = {"connect": lambda: connect(path)}
    else:
        tried = {"read": lambda: read_file(path), "write": lambda: os.close(os.open(path, os.O_WRONLY))}
    return [what for what, call in tried.items() if worked(call)]


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(SECONDS)
        caller.connect(path)


def of_process(pid: int) -> list[str]:
    files = [name for name in PROC_FILES if worked(lambda name=name: read_file(f"/proc/{pid}/{name}"))]
    return files + [name for name in PROC_FOLDERS if worked(lambda name=name: os.listdir(f"/proc/{pid}/{name}"))]


def command_line(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace")


def of_port(port: int) -> dict[str, str]:
    """Send a request to the port; returns the response."""
    said = {f"GET {page}": got_page(port, page) for page in PAGES} | {call: got_call(port, call) for call in CALLS}
    return {asked: answer for asked, answer in said.items() if answer is not None}


def got_page(port: int, page: str) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        body = answer.read(2**20)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return f"{answer.status} {body!r}" if answer.status < 400 else None


def got_call(port: int, method: str) -> str | None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer = call(b"", timeout=SECONDS)
        except grpc.RpcError as problem:
            code = problem.code()
            silent = ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED")
            return None if code.name in silent else f"{code.name} {problem.details()!r}"
    return repr(answer)


def main(asked: dict[str, Any]) -> dict[str, Any]:
    pids = asked.get("pids", [])
    found = {
        "paths": {path: of_path(path) for path in asked.get("paths", [])},
        "processes": {str(pid): of_process(pid) for pid in pids},
        "ports": {str(port): of_port(port) for port in asked.get("ports", [])},
    }
    kept = {kind: {what: got for what, got in each.items() if got} for kind, each in found.items()}
    tried = len(asked.get("ports", [])) * (len(PAGES) + len(CALLS))
    return {**kept, "command_lines": [command_line(pid) for pid in pids], "tried": tried}


def become_nobody() -> None:
    """Drop all privileges. First load modules, as the new user may not be able to read them."""
    "localhost".encode("idna")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    assert not worked(lambda: read_file("/etc/shadow"))


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    become_nobody()
    print(json.dumps(main(asked)))
