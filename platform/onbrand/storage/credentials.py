"""S3 session credentials for one training job: they last minutes and reach only that job's objects.

The platform's own key assumes a role (STS AssumeRole) under a policy made for this session. Workers get the session's
credentials with their ticket, never the key. The policy excludes samples and adapters: workers send them through the
internal routes, which check them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from onbrand.addresses import is_s3
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, OnbrandError, StorageError
from onbrand.internal.training import RunCredentials
from onbrand.storage.runs import RunsBucket, runs_bucket
from onbrand.storage.s3_clients import botocore_options, put_in_parts

SESSION_SECONDS = 900
"""The shortest lifetime that STS gives. Session credentials cannot be revoked, so they never last longer."""
POLICY_CHARS_MAX = 2048
"""STS's limit for a session's policy."""
_PROBE_BRAND, _PROBE_JOB = "probe-of-onbrand", "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class CredentialIssuer:
    """Makes session credentials. Blocking; safe to share between threads.

    Args:
        assets_bucket: the bucket that holds the brands' pictures on the same S3; None when they lie elsewhere.
    """

    runs: RunsBucket
    role_arn: str
    assets_bucket: str | None
    region: str
    endpoint: str | None
    sts: Any
    own: Any

    def __repr__(self) -> str:
        return f"CredentialIssuer({self.role_arn!r})"

    @classmethod
    def from_settings(cls, settings: Settings) -> CredentialIssuer | None:
        """None when runs lie in a folder, which needs no credentials. Raises ConfigurationError when no role is set."""
        runs = runs_bucket(settings)
        if runs is None:
            return None
        if settings.s3_role_arn is None:
            raise ConfigurationError(
                "ONBRAND_RUN_STORAGE is on S3, but ONBRAND_S3_ROLE_ARN names no role; workers get that role's session "
                "credentials and no key: make the role (docs/operations.md), or keep runs in a folder",
                param="s3_role_arn",
            )
        assets = f"{settings.objects_url.removeprefix('s3://').strip('/')}training-data"
        return cls(
            runs,
            settings.s3_role_arn,
            assets if is_s3(settings.objects_url) else None,
            settings.region,
            settings.s3_endpoint,
            _client(settings, "sts", settings.s3_sts_endpoint or settings.s3_endpoint),
            _client(settings, "s3", settings.s3_endpoint),
        )

    def issue(self, brand_id: str, job_id: str, asset_names: Sequence[str] = ()) -> RunCredentials:
        """Credentials for one job. Raises StorageError when the store gives none.

        Args:
            asset_names: keys of the job's pictures. The session may read them if all fit into the policy, else none.
        """
        folder = self.runs.folder(brand_id, job_id)
        with _as_storage_error():
            given = self.sts.assume_role(
                RoleArn=self.role_arn,
                RoleSessionName=f"onbrand-{job_id}",
                Policy=self._policy(folder, asset_names),
                DurationSeconds=SESSION_SECONDS,
            )["Credentials"]
        return RunCredentials(
            bucket=self.runs.bucket,
            prefix=folder,
            access_key=given["AccessKeyId"],
            secret_key=given["SecretAccessKey"],
            session_token=given["SessionToken"],
            expires_at=given["Expiration"],
            region=self.region,
            endpoint=self.endpoint,
        )

    def _policy(self, folder: str, asset_names: Sequence[str]) -> str:
        partition = self.role_arn.split(":")[1]
        assets = [f"{self.assets_bucket}/{name}" for name in asset_names] if self.assets_bucket else []
        policy = session_policy(self.runs.bucket, folder, assets, partition)
        if len(policy) > POLICY_CHARS_MAX:
            policy = session_policy(self.runs.bucket, folder, partition=partition)
        return policy

    def check(self) -> None:
        """Test that a session reaches its own run and no other. Raises ConfigurationError with a remedy."""
        try:
            self._make_bucket()
            given = self.issue(_PROBE_BRAND, _PROBE_JOB)
            self._probe(given)
        except OnbrandError as problem:
            raise ConfigurationError(
                f"training runs cannot be kept in the bucket {self.runs.bucket}: {problem.message}; "
                "check ONBRAND_RUN_STORAGE, ONBRAND_S3_ROLE_ARN and the role's rights",
                param="run_storage",
            ) from None

    def _make_bucket(self) -> None:
        place = {"LocationConstraint": self.region}
        wanted = {} if self.endpoint or self.region == "us-east-1" else {"CreateBucketConfiguration": place}
        with _as_storage_error():
            if _refusal(self.own.head_bucket, Bucket=self.runs.bucket) in ("404", "NoSuchBucket"):
                self.own.create_bucket(Bucket=self.runs.bucket, **wanted)

    def _probe(self, given: RunCredentials) -> None:
        session = session_client(given)
        self._must_reach_its_own(session, given)
        outside = f"{self.runs.prefix}{_PROBE_BRAND}/.probe"
        with _as_storage_error():
            if _refusal(session.put_object, Bucket=given.bucket, Key=outside, Body=b"onbrand") is None:
                self.own.delete_object(Bucket=given.bucket, Key=outside)
                raise StorageError("the store does not keep a session to its policy; use one that does, or a folder")
            self._must_not_widen(given)

    def _must_reach_its_own(self, session: Any, given: RunCredentials) -> None:
        """Try all operations of a run on its folder. The probe is removed in the end with the platform's own key."""
        inside = {"Bucket": given.bucket, "Key": f"{given.prefix}.probe"}
        try:
            with _as_storage_error():
                session.put_object(**inside, Body=b"onbrand")
                session.get_object(**inside)["Body"].read()
                listed = session.list_objects_v2(Bucket=given.bucket, Prefix=given.prefix).get("Contents", ())
                put_in_parts(lambda name, **given: getattr(session, name)(**given), inside, [b"onbrand"])
                session.delete_object(**inside)
            if inside["Key"] not in [each["Key"] for each in listed]:
                raise StorageError("the list of a run's folder lacks what was just written")
        finally:
            with suppress(ClientError, BotoCoreError):
                self.own.delete_object(**inside)

    def _must_not_widen(self, given: RunCredentials) -> None:
        """Raise StorageError if the session can get a new one, which lacks its policy; some gateways allow it."""
        sts = _made("sts", self.sts.meta.endpoint_url, self.region, _keys(given))
        asked = {"RoleArn": self.role_arn, "RoleSessionName": "onbrand-probe", "DurationSeconds": SESSION_SECONDS}
        if _refusal(sts.assume_role, **asked) is None or _refusal(sts.get_session_token) is None:
            raise StorageError(
                "a session of the role may make another one without its limits; "
                "deny sts:AssumeRole to the role itself in its trust policy (docs/operations.md has one)"
            )


def session_policy(bucket: str, folder: str, assets: Sequence[str] = (), partition: str = "aws") -> str:
    """The policy of a session as compact JSON: all of `folder` in `bucket`, and reading `assets` (bucket/key each)."""
    arn = f"arn:{partition}:s3:::"
    statements = [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": f"{arn}{bucket}/{folder}*",
        },
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": f"{arn}{bucket}",
            "Condition": {"StringLike": {"s3:prefix": [f"{folder}*", folder.rstrip("/")]}},
        },
    ]
    if assets:
        readable = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": [f"{arn}{name}" for name in assets]}
        statements.append(readable)
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))


def session_client(given: RunCredentials) -> Any:
    """An S3 client of botocore that uses only these credentials, none of the machine's own."""
    return _made("s3", given.endpoint, given.region, _keys(given))


def _keys(given: RunCredentials) -> dict[str, str]:
    return {
        "aws_access_key_id": given.access_key,
        "aws_secret_access_key": given.secret_key,
        "aws_session_token": given.session_token,
    }


def _client(settings: Settings, service: str, endpoint: str | None) -> Any:
    """A client with the platform's own key, or else with the credentials of the machine's AWS chain."""
    keys = {"aws_access_key_id": settings.s3_access_key, "aws_secret_access_key": settings.s3_secret_key}
    return _made(service, endpoint, settings.region, keys)


def _made(service: str, endpoint: str | None, region: str, keys: Mapping[str, str | None]) -> Any:
    session = botocore.session.Session()
    return session.create_client(
        service, region, endpoint_url=endpoint, config=Config(**botocore_options(endpoint)), **keys
    )


def _refusal(call: Any, **arguments: Any) -> str | None:
    """The store's error code if it refuses `call`, else None."""
    try:
        call(**arguments)
    except ClientError as problem:
        return _code_of(problem)
    return None


def _code_of(problem: ClientError) -> str:
    """The error code; "Unknown" where a gateway gives none."""
    return str(problem.response.get("Error", {}).get("Code", "Unknown"))


@contextmanager
def _as_storage_error() -> Iterator[None]:
    """Turn botocore's errors into ours, without a key or a policy in the text."""
    try:
        yield
    except ClientError as problem:
        raise StorageError(f"the store refused {problem.operation_name} ({_code_of(problem)})") from None
    except BotoCoreError as problem:
        raise StorageError(f"the store cannot be asked for credentials ({type(problem).__name__})") from None
