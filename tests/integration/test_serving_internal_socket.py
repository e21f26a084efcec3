"""Calls on the node of the internal routes go by a socket that only our user may reach, else by their address."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
from fastapi import FastAPI, Request

from onbrand.internal import async_client
from onbrand.internal.async_client import AiohttpConnections, socket_in
from onbrand.internal.client import Call
from onbrand.serving.internal_socket import internal_socket
from tools.harness.in_process_platform import served


def app_named(name: str) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(request: Request) -> dict[str, str]:
        async with request.form() as form:
            read = getattr(form.get("file"), "read", None)
            content = (await read()).decode() if read else ""
            facts = str(form["facts"])
        return {"by": name, "ticket": request.headers["authorization"], "file": content, "facts": facts}

    return app


CALL = Call("POST", "/echo", data={"facts": "some"}, file=(b"bytes", "image/png"))


async def test_a_call_goes_by_the_socket_and_without_one_by_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_client, "_AWAY_SECONDS", 0.0)
    folder = tmp_path / "d"
    folder.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = AiohttpConnections(f"http://127.0.0.1:{listener.getsockname()[1]}", folder)
        async with served(app_named("address"), listener):
            assert (await connections.send(CALL, "t")).json()["by"] == "address"
            for _ in range(2):  # the second replica takes the place of the first
                async with internal_socket(app_named("socket"), folder):
                    answer = (await connections.send(CALL, "t")).json()
                    assert answer == {"by": "socket", "ticket": "Bearer t", "file": "bytes", "facts": "some"}
            assert (await connections.send(CALL, "t")).json()["by"] == "address"
        await connections.close()


async def test_only_our_user_may_enter_its_folder_and_a_dead_replicas_socket_is_replaced(tmp_path: Path) -> None:
    path = socket_in(tmp_path)
    assert path is not None
    path.parent.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with internal_socket(app_named("socket"), tmp_path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


async def test_a_replica_that_ends_leaves_the_socket_of_the_one_that_took_over(tmp_path: Path) -> None:
    connections = AiohttpConnections("http://127.0.0.1:9", tmp_path)
    async with internal_socket(app_named("old"), tmp_path):
        taking_over = internal_socket(app_named("new"), tmp_path)
        await taking_over.__aenter__()
    assert (await connections.send(CALL, "t")).json()["by"] == "new"
    await connections.close()
    await taking_over.__aexit__(None, None, None)
    assert list((tmp_path / "system").iterdir()) == []


def test_a_path_that_is_too_long_for_a_socket_is_not_used(tmp_path: Path) -> None:
    assert socket_in(tmp_path / ("long" * 30)) is None
