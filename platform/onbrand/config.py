"""Settings: read once at a process edge from the environment (``ONBRAND_*``) and handed down, frozen."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from onbrand.errors import ConfigurationError

FamilyName = Literal["sd15", "sdxl", "flux"]
FAMILIES: tuple[FamilyName, ...] = ("sd15", "sdxl", "flux")
NumWorkers = Annotated[int, Field(ge=1, le=64)]
OidcAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
FREE_BYTES_MIN = 256 * 2**20
"""What a start may take of the data directory: an empty database and its log, and as much again."""


class Limits(BaseModel):
    """Bounds of what a caller may send. Every number appears in the error that it causes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: int = 20 * 2**20
    upload_files: int = 50
    image_pixels: int = 25_000_000
    image_side_min: int = 32
    zip_bytes: int = 100 * 2**20
    zip_files: int = 200
    unpacked_bytes: int = 256 * 2**20
    document_bytes: int = 20 * 2**20
    document_pages: int = 500
    markdown_bytes: int = 2**20
    check_bytes: int = 300_000_000
    caption_chars: int = 500
    prompt_chars: int = 2_000
    num_images: int = 8
    waiting_pictures: int = 128
    brands_per_account: int = Field(default=20, ge=1)
    logins_per_address: int = Field(default=20, ge=1)
    """Wrong passwords a minute from one client address (of IPv6: one /64); right ones do not count."""
    logins_per_account: int = Field(default=10, ge=1)
    """Wrong passwords a minute for one account from one client address."""
    logins_before_delay: int = Field(default=60, ge=1)
    """Wrong passwords a minute for one account from everywhere; with more, every log-in to it takes longer."""
    refused_login_seconds: float = Field(default=1.0, ge=0, le=10)
    """How long the answer to a log-in beyond these numbers is held back: who does not wait gets no faster."""
    sign_ups_per_address: int = Field(default=100, ge=1)
    """New accounts an hour from one client address."""
    passwords_at_once: int = Field(default=1, ge=1)
    """Passwords that one process checks or hashes at a time; each takes 19 MiB and some 30 ms of a core."""
    passwords_waiting: int = Field(default=32, ge=0)
    """Passwords that wait for this in one process; more are refused."""
    streams_per_caller: int = Field(default=10, ge=1)
    """Event streams that one user has open at one process of the API."""
    streams_per_brand: int = Field(default=30, ge=1)
    """Event streams of one brand that are open at one process of the API."""
    open_trainings: int = 100
    page: int = 100


class Settings(BaseSettings):
    """What a process of Onbrand must know. Frozen; no module keeps one."""

    model_config = SettingsConfigDict(
        env_prefix="ONBRAND_", env_nested_delimiter="__", frozen=True, extra="forbid", env_file=None
    )

    data_dir: Path = Path("~/.onbrand")
    """Everything local: embedded database, local objects, secrets, training runs, logs."""

    database_url: str | None = None
    """Owner's DSN of a PostgreSQL for migrations; None starts the embedded one in `data_dir`."""
    web_database_url: str | None = None
    """DSN of the web tier's login; made with the embedded database when None."""
    system_database_url: str | None = None
    """DSN of the internal routes' login; made with the embedded database when None."""

    storage_url: str | None = None
    """`file:///folder`, or `s3://` (buckets at the endpoint's root; `s3://prefix-` puts a prefix before each bucket's
    name). None: the folder `objects` in `data_dir`."""
    s3_endpoint: str | None = None
    """URL of an S3 that is not AWS's own; for `s3://` stores."""
    s3_access_key: str | None = None
    """Key id for `s3_endpoint`; None leaves it to the environment's own AWS credentials."""
    s3_secret_key: str | None = None
    """The secret to `s3_access_key`."""
    s3_role_arn: str | None = None
    """The role that the platform assumes for a training job whose run is kept on S3 (`run_storage`): workers get its
    session credentials, limited to the job's own prefixes, and no key."""
    s3_sts_endpoint: str | None = None
    """URL of the STS that gives these; None: `s3_endpoint`, else AWS's own in `region`."""
    region: str = "us-east-1"
    """The home region of new brands."""
    run_storage: str | None = None
    """Where training runs keep checkpoints: a folder every node sees, or `s3://bucket/prefix` (with `s3_role_arn`).
    None: `runs` in `data_dir`."""

    families: tuple[FamilyName, ...] = FAMILIES
    """The families that this cluster serves."""
    bases: dict[FamilyName, str] = Field(default_factory=dict)
    """A base per family: a folder, `s3://...`, a Hugging Face id. Missing ones are the tiny flavours that ship."""
    device: str | None = None
    """`cuda`, `cpu`; None takes CUDA when there is one."""

    host: str = "127.0.0.1"
    """The address that the HTTP proxy listens on."""
    port: int = 8000
    """Its port; 0 takes a free one."""
    public_url: str | None = None
    """How callers reach the ingress, for links; None: `http://host:port`."""
    internal_url: str | None = None
    """How workers reach the internal routes; None: `http://host:port/internal`."""

    sign_up: Literal["open", "closed"] = "open"
    """Whether anybody may make an account."""
    token_minutes: int = 60
    """How long a log-in lasts."""
    session_hours: int = Field(default=12, ge=1, le=720)
    """How long a session of a page lasts at most."""
    session_idle_minutes: int = Field(default=60, ge=1)
    """How long a session of a page lasts without a request."""
    oidc_issuer: str | None = None
    """An OpenID Connect issuer whose tokens are accepted beside our own, exactly as its tokens' `iss` says it."""
    oidc_audience: str | None = None
    """What its tokens' `aud` must name; needed with `oidc_issuer`."""
    oidc_jwks_url: str | None = None
    """Where its keys are; None asks its discovery document."""
    oidc_algorithms: tuple[OidcAlgorithm, ...] = ("RS256", "ES256")
    """The signatures that its tokens may have, as a JSON list; asymmetric ones only."""
    oidc_leeway_seconds: int = Field(default=30, ge=0, le=60)
    """How far its clock and ours may differ."""
    oidc_trusts_email: bool = False
    """Take the addresses in its tokens as verified although `email_verified` does not say so."""
    link_seconds: int = Field(default=300, ge=1, le=3600)
    """How long a signed link to a file lasts."""
    ticket_seconds: int = Field(default=1800, ge=60, le=3600)
    """How long a worker's ticket lasts; workers renew theirs while the job is open."""
    dev: bool = False
    """Run on a Ray that lets everybody in. For development on a machine of one's own, and nowhere else."""
    private_network: bool = False
    """All addresses of Ray's nodes are private (pods): its dashboard may then listen on every address of its node."""
    train_workers: NumWorkers | tuple[NumWorkers, NumWorkers] = 1
    """Ray Train workers per job; `[1, 4]` is as many of these as there is room for, at any time."""
    train_resize_seconds: float = Field(default=60.0, gt=0)
    """How often a run that may have more workers looks whether there is room for them."""
    train_memory_gb: float | None = Field(default=None, gt=0)
    """What a training worker may take of its device's memory, in 10^9 bytes: jobs that need more are done more
    thriftily, or refused. None: what its GPU has; on a CPU no bound."""
    train_jobs: int = Field(default=2, ge=0, le=1000)
    """Training jobs that run at once; with 0 none is started, and jobs wait."""
    train_jobs_per_brand: int = Field(default=2, ge=1, le=1000)
    """Of them, one brand's, where the operator set no other number for it (`onbrand brand limits`)."""
    train_jobs_per_account: int | None = Field(default=None, ge=1, le=1000)
    """Of them, those of one account's brands together. None: one less than `train_jobs` (at least one), and not all
    workers of the cluster, so that one account's trainings leave room for another's."""
    train_placement_seconds: int = Field(default=3600, ge=1)
    """How long a job waits for workers that the cluster neither has nor can get, before it fails."""
    engine: dict[str, Any] = {}
    """How `onbrand up` serves every family: `EngineOptions` by name, one by one as `ONBRAND_ENGINE__NUM_REPLICAS=2`;
    Serve config files say it themselves."""
    limits: Limits = Limits()
    """Bounds of what a caller may send; one by one as `ONBRAND_LIMITS__UPLOAD_FILES=20`."""

    @property
    def folder(self) -> Path:
        """The data directory with `~` expanded."""
        return self.data_dir.expanduser().absolute()

    @property
    def encoded_folder(self) -> Path:
        """Where a node keeps what training encoded, sealed (`training.cache`)."""
        return self.folder / "encoded"

    @property
    def url(self) -> str:
        return self.public_url or f"http://{self.host}:{self.port}"

    @property
    def system_url(self) -> str:
        return self.internal_url or f"http://{self.host}:{self.port}/internal"

    @property
    def objects_url(self) -> str:
        return self.storage_url or f"file://{self.folder / 'objects'}"

    @property
    def runs_url(self) -> str:
        return self.run_storage or str(self.folder / "runs")


class Secrets(BaseModel):
    """Keys that sign tokens, tickets and links; in `data_dir/secrets.json` (0600), never in logs or Ray's state."""

    model_config = ConfigDict(frozen=True)

    tokens: str
    tickets: str
    links: str

    def __repr__(self) -> str:
        return "Secrets(...)"

    __str__ = __repr__


def must_be_writable(folder: Path) -> Path:
    """Create `folder` (0700) and prove that files can be written in it. Raises ConfigurationError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as problem:
        raise ConfigurationError(
            f"the data directory {folder} cannot be written ({problem.strerror}); free space, fix its rights, "
            "or choose another with ONBRAND_DATA_DIR",
            param="data_dir",
        ) from None
    return folder


def must_have_space(folder: Path) -> None:
    """Raise ConfigurationError unless `folder` has room for a start."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_MIN:
        raise ConfigurationError(
            f"the data directory {folder} has {free // 2**20} MiB left, and a start takes {FREE_BYTES_MIN // 2**20}; "
            "free space, or choose another with ONBRAND_DATA_DIR",
            param="data_dir",
        )


def load_secrets(settings: Settings) -> Secrets:
    """Read the secrets of this data directory, or make them at the first start."""
    path = must_be_writable(settings.folder) / "secrets.json"
    if not path.exists():
        made = Secrets(**{name: secrets.token_hex(32) for name in Secrets.model_fields})
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.touch(mode=0o600)
        draft.write_text(made.model_dump_json())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return Secrets(**json.loads(path.read_text()))
