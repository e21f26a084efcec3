"""Runs of a cluster on a real S3, by processes without keys, and a search for secrets in their environments."""

from __future__ import annotations

from pathlib import Path

import botocore.session
import pytest

from onbrand.config import Settings
from onbrand.secrets_file import Secrets
from onbrand.storage.credentials import CredentialIssuer
from tests.integration.training_cluster import Cluster
from tests.s3.ceph import CephS3

BUCKET, PREFIX = "onbrand-test-runs", "all"
CANARY = "canary-of-the-environment"
SECRET_VARIABLES = (
    "ONBRAND_DATABASE_URL", "ONBRAND_WEB_DATABASE_URL", "ONBRAND_SYSTEM_DATABASE_URL", "ONBRAND_S3_ACCESS_KEY",
    "ONBRAND_S3_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD",
    "HF_TOKEN", "SOME_API_KEY",
)  # fmt: skip


def runs_on_s3(request: pytest.FixtureRequest, settings: Settings) -> dict[str, str]:
    """Settings that store runs on S3, or none if the tests have no S3."""
    try:
        server: CephS3 = request.getfixturevalue("s3_server")
    except pytest.skip.Exception:
        return {}
    key, secret = server.user("platform-of-runs")
    changes = {
        "run_storage": f"s3://{BUCKET}/{PREFIX}",
        "s3_endpoint": server.endpoint,
        "s3_access_key": key,
        "s3_secret_key": secret,
        "s3_role_arn": server.role("runs-of-training", "platform-of-runs", ["s3:*"]),
    }
    issuer = CredentialIssuer.from_settings(settings.model_copy(update=changes))
    assert issuer is not None
    issuer.check()
    return changes


def objects_of(cluster: Cluster) -> list[str]:
    """All keys of the runs' bucket, listed with the platform's own key."""
    known = cluster.settings
    client = botocore.session.Session().create_client(
        "s3", "us-east-1", endpoint_url=known.s3_endpoint,
        aws_access_key_id=known.s3_access_key, aws_secret_access_key=known.s3_secret_key,
    )  # fmt: skip
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def secrets_seen_by(cluster: Cluster, secrets: Secrets) -> dict[str, list[str]]:
    """The secrets in the environment of each process of the cluster."""
    known = cluster.settings
    values = [CANARY, secrets.tickets, secrets.tokens, secrets.links, "eyJ"]
    values += [value for value in (known.s3_access_key, known.s3_secret_key) if value]
    found = {}
    for pid in cluster.processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(value in environment for value in values):
            found[str(pid)] = [line.split("=")[0] for line in environment.split("\0") if any(v in line for v in values)]
    return found
