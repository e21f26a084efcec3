"""A job's session credentials on a real S3 cannot access anything outside their own run.

They try another brand's objects, another job's, and the buckets' settings. The platform's own key shows that each
attempt is possible.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, InvalidInput, StorageError
from onbrand.internal.training import RunCredentials
from onbrand.storage.credentials import POLICY_CHARS_MAX, CredentialIssuer, session_client, session_policy
from onbrand.storage.layout import BUCKETS
from tests.s3.ceph import CephS3

RUNS, STORE = "session-tests-runs", "session-tests-"
JOB, OTHER_JOB, ANOTHERS_JOB = (str(uuid.UUID(int=number, version=4)) for number in (1, 2, 3))
OWN_ASSET, OTHER_ASSET = "acme/logo-001.jpg", "acme/logo-002.jpg"
SECRET = b"canary of another"
REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "MethodNotAllowed")


def run_of(brand_id: str, job_id: str) -> str:
    return f"all/{brand_id}/{job_id}/"


@dataclass
class Stage:
    """A real S3 with runs and objects of two brands, and one job's session."""

    settings: Settings
    issuer: CredentialIssuer
    own: Any
    given: RunCredentials
    session: Any
    endpoint: str


def platform_client(settings: Settings) -> Any:
    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    return botocore.session.Session().create_client(
        "s3", "us-east-1", endpoint_url=settings.s3_endpoint, config=config,
        aws_access_key_id=settings.s3_access_key, aws_secret_access_key=settings.s3_secret_key,
    )  # fmt: skip


@pytest.fixture(scope="module")
def settings(s3_server: CephS3, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    key, secret = s3_server.user("platform-of-sessions")
    return Settings(
        data_dir=tmp_path_factory.mktemp("data"),
        storage_url=f"s3://{STORE}",
        run_storage=f"s3://{RUNS}/all",
        s3_endpoint=s3_server.endpoint,
        s3_access_key=key,
        s3_secret_key=secret,
        s3_role_arn=s3_server.role("sessions", "platform-of-sessions", ["s3:*"]),
    )


@pytest.fixture(scope="module")
def stage(settings: Settings) -> Stage:
    issuer = CredentialIssuer.from_settings(settings)
    assert issuer is not None
    own = platform_client(settings)
    for bucket in (RUNS, *(f"{STORE}{bucket}" for bucket in BUCKETS)):
        own.create_bucket(Bucket=bucket)
    for bucket, key in victims():
        own.put_object(Bucket=bucket, Key=key, Body=SECRET)
    own.put_object(Bucket=f"{STORE}training-data", Key=OWN_ASSET, Body=b"own picture")
    given = issuer.issue("acme", JOB, [OWN_ASSET])
    session = session_client(given)
    session.put_object(Bucket=RUNS, Key=run_of("acme", JOB) + "own", Body=b"own")
    return Stage(settings, issuer, own, given, session, str(settings.s3_endpoint))


def victims() -> list[tuple[str, str]]:
    """Objects that the session must not reach: bucket and key."""
    return [
        (RUNS, run_of("globex", ANOTHERS_JOB) + "state.safetensors"),
        (RUNS, run_of("acme", OTHER_JOB) + "state.safetensors"),
        (RUNS, f"all/acme/{JOB}0/state.safetensors"),
        (RUNS, "all/acme/notes"),
        (RUNS, "state.safetensors"),
        (f"{STORE}training-data", "globex/logo-001.jpg"),
        (f"{STORE}training-data", OTHER_ASSET),
        (f"{STORE}models", "globex/sd15-lora-v1.safetensors"),
        (f"{STORE}models", "acme/sd15-lora-v1.safetensors"),
        (f"{STORE}generated-content", "globex/2024-12-04-001.jpg"),
        (f"{STORE}generated-content", f"acme/samples/{JOB}/000001-00.png"),
        (f"{STORE}brand-documents", "globex/brand-guidelines.pdf"),
    ]


OWN = (RUNS, run_of("acme", JOB) + "own")


def copy_from(s3: Any, bucket: str, key: str) -> None:
    s3.copy_object(Bucket=RUNS, Key=run_of("acme", JOB) + "stolen", CopySource={"Bucket": bucket, "Key": key})


def copy_part_from(s3: Any, bucket: str, key: str) -> None:
    mine = {"Bucket": RUNS, "Key": run_of("acme", JOB) + "stolen-part"}
    upload = s3.create_multipart_upload(**mine)["UploadId"]
    try:
        s3.upload_part_copy(**mine, UploadId=upload, PartNumber=1, CopySource={"Bucket": bucket, "Key": key})
    finally:
        s3.abort_multipart_upload(**mine, UploadId=upload)


def copy_to(s3: Any, bucket: str, key: str) -> None:
    s3.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": OWN[0], "Key": OWN[1]})


def multipart(s3: Any, bucket: str, key: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def batch_delete(s3: Any, bucket: str, key: str) -> None:
    """Delete objects in one request. The response is 200 with an error for each key."""
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    for error in answer.get("Errors", ()):
        raise ClientError({"Error": error}, "DeleteObjects")


def with_link(method: str, operation: str) -> Callable[[Any, str, str], None]:
    """Use a link that the holder of the credentials signed."""

    def use(s3: Any, bucket: str, key: str) -> None:
        link = s3.generate_presigned_url(operation, Params={"Bucket": bucket, "Key": key}, ExpiresIn=60)
        answer = httpx.request(method, link, content=b"x" if method == "PUT" else None)
        if answer.is_error:
            raise ClientError({"Error": {"Code": str(answer.status_code)}}, operation)

    return use


def post_form(s3: Any, bucket: str, key: str) -> None:
    form = s3.generate_presigned_post(bucket, key)
    answer = httpx.post(form["url"], data=form["fields"], files={"file": b"x"})
    if answer.is_error:
        raise ClientError({"Error": {"Code": str(answer.status_code)}}, "post")


OBJECT_TRIES: dict[str, Callable[[Any, str, str], object]] = {
    "get": lambda s3, bucket, key: s3.get_object(Bucket=bucket, Key=key),
    "get a range": lambda s3, bucket, key: s3.get_object(Bucket=bucket, Key=key, Range="bytes=0-3"),
    "head": lambda s3, bucket, key: s3.head_object(Bucket=bucket, Key=key),
    "read its rights": lambda s3, bucket, key: s3.get_object_acl(Bucket=bucket, Key=key),
    "read its tags": lambda s3, bucket, key: s3.get_object_tagging(Bucket=bucket, Key=key),
    "list what begins like it": lambda s3, bucket, key: s3.list_objects_v2(Bucket=bucket, Prefix=key),
    "list its folder": lambda s3, bucket, key: s3.list_objects(Bucket=bucket, Prefix=key.rpartition("/")[0] + "/"),
    "list its versions": lambda s3, bucket, key: s3.list_object_versions(Bucket=bucket, Prefix=key),
    "copy from it": copy_from,
    "copy a part from it": copy_part_from,
    "copy over it": copy_to,
    "put": lambda s3, bucket, key: s3.put_object(Bucket=bucket, Key=key, Body=b"x"),
    "put beside it": lambda s3, bucket, key: s3.put_object(Bucket=bucket, Key=key + "-new", Body=b"x"),
    "put for everybody": lambda s3, bucket, key: s3.put_object(Bucket=bucket, Key=key, Body=b"x", ACL="public-read"),
    "upload in parts": multipart,
    "make it public": lambda s3, bucket, key: s3.put_object_acl(Bucket=bucket, Key=key, ACL="public-read"),
    "tag it": lambda s3, bucket, key: s3.put_object_tagging(
        Bucket=bucket, Key=key, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}
    ),
    "delete": lambda s3, bucket, key: s3.delete_object(Bucket=bucket, Key=key),
    "delete in a batch": batch_delete,
    "sign a link to get": with_link("GET", "get_object"),
    "sign a link to put": with_link("PUT", "put_object"),
    "sign a link to delete": with_link("DELETE", "delete_object"),
    "sign a form": post_form,
}
READS = [name for name in OBJECT_TRIES if name.startswith(("get", "head", "read", "list", "copy from", "copy a part"))]


def policy_for_all(bucket: str) -> str:
    anyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [anyone]}, separators=(",", ":"))


BUCKET_TRIES: dict[str, Callable[[Any, str], object]] = {
    "list": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket),
    "list another brand": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket, Prefix="all/globex/"),
    "list the own brand": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket, Prefix="all/acme/"),
    "list by a beginning": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket, Prefix="all/"),
    "list folders": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket, Delimiter="/"),
    "list uploads": lambda s3, bucket: s3.list_multipart_uploads(Bucket=bucket),
    "list versions": lambda s3, bucket: s3.list_object_versions(Bucket=bucket),
    "read its policy": lambda s3, bucket: s3.get_bucket_policy(Bucket=bucket),
    "write its policy": lambda s3, bucket: s3.put_bucket_policy(Bucket=bucket, Policy=policy_for_all(bucket)),
    "delete its policy": lambda s3, bucket: s3.delete_bucket_policy(Bucket=bucket),
    "read its rights": lambda s3, bucket: s3.get_bucket_acl(Bucket=bucket),
    "make it public": lambda s3, bucket: s3.put_bucket_acl(Bucket=bucket, ACL="public-read"),
    "delete it": lambda s3, bucket: s3.delete_bucket(Bucket=bucket),
    "keep versions": lambda s3, bucket: s3.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    ),
}


def code_of(attempt: Callable[..., object], *arguments: Any) -> str | None:
    """The store's error code; None if the call succeeded."""
    try:
        attempt(*arguments)
    except ClientError as problem:
        return str(problem.response.get("Error", {}).get("Code", "Unknown"))
    return None


@pytest.fixture
def unharmed(stage: Stage) -> Iterator[None]:
    """Check that every victim has its bytes, and nothing was copied or added."""
    before = inventory(stage)
    yield
    assert inventory(stage) == before
    for bucket, key in victims():
        assert stage.own.get_object(Bucket=bucket, Key=key)["Body"].read() == SECRET


def inventory(stage: Stage) -> dict[str, list[tuple[str, str]]]:
    return {
        bucket: [(each["Key"], each["ETag"]) for each in stage.own.list_objects_v2(Bucket=bucket).get("Contents", ())]
        for bucket in (RUNS, *(f"{STORE}{bucket}" for bucket in BUCKETS))
    }


@pytest.mark.parametrize("victim", victims(), ids=lambda victim: "/".join(victim))
@pytest.mark.usefixtures("unharmed")
def test_a_session_can_do_nothing_to_what_is_not_its_own(stage: Stage, victim: tuple[str, str]) -> None:
    codes = {name: code_of(attempt, stage.session, *victim) for name, attempt in OBJECT_TRIES.items()}
    wrong = {name: code for name, code in codes.items() if code not in REFUSED}
    assert wrong == {}


@pytest.mark.usefixtures("unharmed")
def test_a_session_may_only_read_its_picture(stage: Stage) -> None:
    own = (f"{STORE}training-data", OWN_ASSET)
    before = stage.own.head_object(Bucket=own[0], Key=own[1])["ETag"]
    may = {"get", "get a range", "head", "sign a link to get", "copy from it", "copy a part from it"}
    codes = {name: code_of(attempt, stage.session, *own) for name, attempt in OBJECT_TRIES.items()}
    stage.session.delete_object(Bucket=RUNS, Key=run_of("acme", JOB) + "stolen")
    done = {name for name, code in codes.items() if code is None}
    assert {"get", "head"} <= done <= may
    assert stage.own.head_object(Bucket=own[0], Key=own[1])["ETag"] == before


@pytest.mark.parametrize("bucket", [RUNS, *(f"{STORE}{bucket}" for bucket in BUCKETS)])
@pytest.mark.usefixtures("unharmed")
def test_a_session_can_do_nothing_to_a_bucket(stage: Stage, bucket: str) -> None:
    codes = {name: code_of(attempt, stage.session, bucket) for name, attempt in BUCKET_TRIES.items()}
    wrong = {name: code for name, code in codes.items() if code not in REFUSED}
    assert wrong == {}


def test_a_session_sees_no_list_of_buckets_and_makes_none(stage: Stage) -> None:
    assert code_of(lambda: stage.session.list_buckets()) in REFUSED
    assert code_of(lambda: stage.session.create_bucket(Bucket="made-by-a-session")) in REFUSED


def test_a_session_gets_no_further_credentials(stage: Stage) -> None:
    keys = {
        "aws_access_key_id": stage.given.access_key,
        "aws_secret_access_key": stage.given.secret_key,
        "aws_session_token": stage.given.session_token,
    }
    sts = botocore.session.Session().create_client("sts", "us-east-1", endpoint_url=stage.endpoint, **keys)
    iam = botocore.session.Session().create_client("iam", "us-east-1", endpoint_url=stage.endpoint, **keys)
    role = {"RoleArn": str(stage.settings.s3_role_arn), "RoleSessionName": "wider"}
    assert code_of(lambda: sts.assume_role(**role)) is not None
    assert code_of(lambda: sts.get_session_token()) is not None
    assert code_of(lambda: iam.list_roles()) is not None
    assert code_of(lambda: iam.create_user(UserName="mine")) is not None


def test_the_tries_are_possible_for_who_may(stage: Stage) -> None:
    """The test of the tests: with the platform's own key each of them does what it says."""
    victim = (RUNS, run_of("globex", ANOTHERS_JOB) + "state.safetensors")
    assert {name: code_of(OBJECT_TRIES[name], stage.own, *victim) for name in READS} == dict.fromkeys(READS)
    stage.own.delete_object(Bucket=RUNS, Key=run_of("acme", JOB) + "stolen")
    scratch = (RUNS, "scratch/thing")
    for name in OBJECT_TRIES.keys() - set(READS):
        stage.own.put_object(Bucket=scratch[0], Key=scratch[1], Body=b"x")
        assert code_of(OBJECT_TRIES[name], stage.own, *scratch) is None, name
    for left in ("scratch/thing", "scratch/thing-new"):
        stage.own.delete_object(Bucket=RUNS, Key=left)


def test_a_session_does_everything_in_its_own_run(stage: Stage) -> None:
    mine = (RUNS, run_of("acme", JOB) + "checkpoint_1/state.safetensors")
    stage.session.put_object(Bucket=mine[0], Key=mine[1], Body=b"state")
    assert stage.session.get_object(Bucket=mine[0], Key=mine[1])["Body"].read() == b"state"
    listed = stage.session.list_objects_v2(Bucket=RUNS, Prefix=run_of("acme", JOB))
    assert mine[1] in [each["Key"] for each in listed["Contents"]]
    multipart(stage.session, *mine)
    stage.session.delete_object(Bucket=mine[0], Key=mine[1])


def test_with_the_token_cut_off_or_changed_the_keys_are_worth_nothing(stage: Stage) -> None:
    for change in ({"session_token": ""}, {"session_token": stage.given.session_token[:-8] + "AAAAAAA="}):
        broken = session_client(stage.given.model_copy(update=change))
        assert code_of(lambda broken=broken: broken.get_object(Bucket=OWN[0], Key=OWN[1])) is not None


def test_two_jobs_of_a_brand_have_two_sessions(stage: Stage) -> None:
    other = session_client(stage.issuer.issue("acme", OTHER_JOB))
    assert code_of(lambda: other.get_object(Bucket=OWN[0], Key=OWN[1])) in REFUSED
    assert other.list_objects_v2(Bucket=RUNS, Prefix=run_of("acme", OTHER_JOB))["KeyCount"] == 1


def test_credentials_last_minutes_and_show_nothing_of_themselves(stage: Stage) -> None:
    left = stage.given.expires_at - datetime.now(UTC)
    assert timedelta(minutes=5) < left <= timedelta(minutes=15)
    assert not any(secret in repr(stage.given) for secret in (stage.given.secret_key, stage.given.session_token))
    assert str(stage.settings.s3_secret_key) not in repr(stage.issuer)


@pytest.mark.parametrize(
    ("brand_id", "job_id"),
    [("*", JOB), ("acme/../globex", JOB), ("acme", "*"), ("acme", "../" + JOB), ("", JOB), ("acme", "")],
)
def test_only_ids_get_into_a_policy(stage: Stage, brand_id: str, job_id: str) -> None:
    with pytest.raises(InvalidInput):
        stage.issuer.issue(brand_id, job_id)


@pytest.mark.parametrize("url", ["s3://bucket/*", "s3://b*/x", "s3://bucket/${aws:userid}", "s3:///x", "gs://b/x"])
def test_an_address_that_a_policy_would_read_otherwise_is_refused(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_RUN_STORAGE"):
        CredentialIssuer.from_settings(settings.model_copy(update={"run_storage": url}))


def test_runs_on_s3_without_a_role_do_not_start(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_S3_ROLE_ARN"):
        CredentialIssuer.from_settings(settings.model_copy(update={"s3_role_arn": None}))


def test_runs_in_a_folder_need_no_role(settings: Settings) -> None:
    assert CredentialIssuer.from_settings(settings.model_copy(update={"run_storage": "/a/folder"})) is None


def test_a_store_that_does_all_of_this_is_taken_and_its_bucket_made(stage: Stage) -> None:
    changes = {"run_storage": "s3://session-tests-new-bucket"}
    issuer = CredentialIssuer.from_settings(stage.settings.model_copy(update=changes))
    assert issuer is not None
    issuer.check()
    assert stage.own.list_objects_v2(Bucket="session-tests-new-bucket")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("lacks", "said"), [("s3:GetObject", "GetObject"), ("s3:ListBucket", "ListObjectsV2")], ids=lambda text: text
)
def test_what_a_role_lacks_is_said_at_the_start(stage: Stage, s3_server: CephS3, lacks: str, said: str) -> None:
    rights = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucket"} - {lacks}
    arn = s3_server.role(f"lacks-{said.lower()}", "platform-of-sessions", sorted(rights))
    issuer = CredentialIssuer.from_settings(stage.settings.model_copy(update={"s3_role_arn": arn}))
    assert issuer is not None
    with pytest.raises(ConfigurationError, match=f"the store refused {said}"):
        issuer.check()
    assert "/.probe" not in str(inventory(stage))


def test_a_role_that_is_not_there_is_said_at_the_start(stage: Stage) -> None:
    changes = {"s3_role_arn": "arn:aws:iam:::role/nobody"}
    issuer = CredentialIssuer.from_settings(stage.settings.model_copy(update=changes))
    assert issuer is not None
    with pytest.raises(ConfigurationError, match="ONBRAND_S3_ROLE_ARN") as refused:
        issuer.check()
    assert str(stage.settings.s3_secret_key) not in str(refused.value)


def test_a_store_that_keeps_no_session_to_its_policy_is_refused_at_the_start(stage: Stage) -> None:
    """As one would that ignores policies: its sessions are the platform's own key."""

    class Careless:
        def assume_role(self, **asked: Any) -> dict[str, Any]:
            keys = {"AccessKeyId": stage.settings.s3_access_key, "SecretAccessKey": stage.settings.s3_secret_key}
            later = datetime.now(UTC) + timedelta(minutes=15)
            return {"Credentials": {**keys, "SessionToken": "", "Expiration": later}}

    careless = CredentialIssuer(**{**_fields(stage.issuer), "sts": Careless()})
    with pytest.raises(ConfigurationError, match="does not keep a session to its policy"):
        careless.check()


def test_a_role_whose_sessions_may_take_it_up_again_is_refused_at_the_start(stage: Stage, s3_server: CephS3) -> None:
    """Such a session leaves its policy behind; this gateway allows it unless the trust policy denies it."""
    arn = s3_server.role("careless", "platform-of-sessions", ["s3:*"], denies_itself=False)
    issuer = CredentialIssuer.from_settings(stage.settings.model_copy(update={"s3_role_arn": arn}))
    assert issuer is not None
    with pytest.raises(ConfigurationError, match="deny sts:AssumeRole"):
        issuer.check()


def test_a_store_that_is_away_is_a_storage_error(stage: Stage) -> None:
    away = stage.settings.model_copy(update={"s3_sts_endpoint": "http://127.0.0.1:9"})
    issuer = CredentialIssuer.from_settings(away)
    assert issuer is not None
    with pytest.raises(StorageError):
        issuer.issue("acme", JOB)


def test_a_policy_is_never_longer_than_sts_takes(stage: Stage) -> None:
    """With more pictures than there is room for, the policy has none: the internal routes give them."""
    names = [f"acme/logo-{number:03d}.jpg" for number in range(1, 400)]
    given = stage.issuer.issue("acme", JOB, [OWN_ASSET, *names])
    session = session_client(given)
    assert code_of(lambda: session.get_object(Bucket=f"{STORE}training-data", Key=OWN_ASSET)) in REFUSED
    assert session.get_object(Bucket=OWN[0], Key=OWN[1])["Body"].read() == b"own"
    assert len(session_policy(RUNS, run_of("a" * 63, JOB))) < POLICY_CHARS_MAX


def _fields(issuer: CredentialIssuer) -> dict[str, Any]:
    return {name: getattr(issuer, name) for name in CredentialIssuer.__slots__}
