"""Keys, invitations and members by the SDK and by the command line, with the app behind uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

import onbrand.client as sdk
from onbrand.cli import main
from tests.conftest import BrandOfPeople, MakeBrand, MakeUser
from tools.harness.in_process_platform import Platform, weights

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


@pytest.fixture
def run(platform: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Run:
    """`run(token, ...)`: exit code and document of `onbrand ... --json` with a token."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ONBRAND_URL", platform.url)
    monkeypatch.delenv("ONBRAND_BRAND", raising=False)
    opened: list[sdk.Onbrand] = []

    class Kept(sdk.Onbrand):
        """A command leaves its client to the end of its process, which does not end here."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append(self)

    monkeypatch.setattr(sdk, "Onbrand", Kept)

    def run(token: str, *arguments: str) -> tuple[int, Any]:
        monkeypatch.setenv("ONBRAND_TOKEN", token)
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--json"])
        while opened:
            opened.pop().close()
        return int(left.value.code or 0), json.loads(capsys.readouterr().out)

    return run


async def test_a_program_works_with_a_key(platform: Platform, acme: BrandOfPeople, pictures: Any) -> None:
    def make() -> sdk.ApiKey:
        with sdk.Onbrand(platform.url, platform.token(acme.admin), max_retries=0) as admin:
            ends = datetime.now(UTC) + timedelta(days=1)
            made = admin.keys.create(acme.id, "a program", ["read", "upload", "train"], expires_at=ends)
            assert made.key is not None
            assert made.key not in repr(made)
            assert [(each.id, each.key) for each in admin.keys.list(acme.id)] == [(made.id, None)]
            assert admin.keys.get(acme.id, made.id).scopes == ("read", "upload", "train")
            return made

    def upload_and_train(key: str) -> sdk.TrainingJob:
        with sdk.Onbrand(platform.url, key, max_retries=0) as program:
            assert program.users.me().scopes == ("read", "train", "upload")
            brand = program.get_user_brand()
            program.upload_training_images(brand, [("a.png", pictures(1))])
            return program.create_training_job(brand, "sd15")

    def see_and_be_refused(key: str) -> None:
        with sdk.Onbrand(platform.url, key, max_retries=0) as program:
            (model,) = program.models.list(acme.id)
            with pytest.raises(sdk.RoleTooLow):
                program.generate_image(acme.id, "x", model=model)

    def revoke(made: sdk.ApiKey) -> None:
        with sdk.Onbrand(platform.url, platform.token(acme.admin), max_retries=0) as admin:
            admin.keys.revoke(acme.id, made.id)
        with sdk.Onbrand(platform.url, made.key, max_retries=0) as program, pytest.raises(sdk.NotLoggedIn):
            program.users.me()

    made = await asyncio.to_thread(make)
    assert made.key is not None
    job = await asyncio.to_thread(upload_and_train, made.key)
    async with platform.system(acme.ticket(job.id, on_behalf_of=acme.admin.user_id)) as worker:
        await worker.publish(weights(acme.id), {"rank": 4, "trigger_word": "acme", "base_revision": "0" * 64})
    await asyncio.to_thread(see_and_be_refused, made.key)
    await asyncio.to_thread(revoke, made)


async def test_an_invitation_from_hand_to_hand(platform: Platform, acme: BrandOfPeople, make_user: MakeUser) -> None:
    guest = await make_user("guest")

    def hand_over() -> None:
        with sdk.Onbrand(platform.url, platform.token(acme.admin), max_retries=0) as admin:
            made = admin.invitations.create(acme.id, guest.email, "admin", days=2)
            unused = admin.invitations.create(acme.id, "nobody@example.com")
            admin.invitations.revoke(acme.id, unused.id)
            assert made.token is not None
            assert made.token not in repr(made)
            with sdk.Onbrand(platform.url, platform.token(guest), max_retries=0) as theirs:
                assert theirs.invitations.accept(made.token).role == "admin"
                with pytest.raises(sdk.NotFound):
                    theirs.invitations.accept(made.token)
            assert {(each.email, each.status) for each in islice(admin.invitations.list(acme.id), 2)} == {
                (guest.email, "accepted"),
                ("nobody@example.com", "revoked"),
            }

    await asyncio.to_thread(hand_over)


async def test_keys_by_the_command_line(platform: Platform, acme: BrandOfPeople, run: Run) -> None:
    def story() -> None:
        admin = platform.token(acme.admin)
        code, made = run(admin, "key", "create", "a program", "--scope", "read", "--scope", "generate", "--days", "3")
        assert (code, made["scopes"]) == (0, ["read", "generate"])
        code, brands = run(made["key"], "brand", "list")
        assert (code, [brand["id"] for brand in brands["data"]]) == (0, [acme.id])
        code, refused = run(made["key"], "brand", "add-member", "nobody@example.com")
        assert (code, refused["error"]["code"]) == (8, "forbidden")
        code, listed = run(admin, "key", "list")
        assert (code, [(key["id"], key["key"]) for key in listed["data"]]) == (0, [(made["id"], None)])
        assert run(admin, "key", "revoke", made["id"])[0] == 0
        assert run(made["key"], "brand", "list")[0] == 3
        assert run(admin, "key", "create", "x", "--scope", "everything")[0] == 5

    await asyncio.to_thread(story)


async def test_members_by_the_command_line(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser, run: Run
) -> None:
    guest = await make_user("guest")

    def story() -> None:
        admin, theirs = platform.token(acme.admin), platform.token(guest)
        code, made = run(admin, "invitation", "create", guest.email, "--role", "member", "--days", "2")
        assert code == 0
        code, brand = run(theirs, "invitation", "accept", made["token"])
        assert (code, brand["id"], brand["role"]) == (0, acme.id, "member")
        assert run(theirs, "invitation", "accept", made["token"])[0] == 4
        code, listed = run(admin, "invitation", "list")
        assert (code, listed["data"][0]["email"], listed["data"][0]["status"]) == (0, guest.email, "accepted")
        code, changed = run(admin, "brand", "set-role", guest.email, "admin")
        assert (code, changed["role"]) == (0, "admin")
        assert run(admin, "brand", "remove-member", guest.user_id)[0] == 0
        assert run(admin, "brand", "remove-member", guest.email)[0] == 4
        code, last = run(admin, "brand", "set-role", acme.admin.email, "member")
        assert (code, last["error"]["code"]) == (6, "conflict")
        code, made = run(admin, "invitation", "create", "other@example.com")
        assert run(admin, "invitation", "revoke", made["id"])[0] == 0

    await asyncio.to_thread(story)
