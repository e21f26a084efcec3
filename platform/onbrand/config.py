"""Settings from the environment (``ONBRAND_*``): read once at a process's entry point and passed down, frozen."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onbrand.addresses import file_url, http_url, is_url, must_be_host, must_be_plain_path
from onbrand.environment import must_be_known
from onbrand.errors import ConfigurationError

FamilyName = Literal["sd15", "sdxl", "flux"]
FAMILIES: tuple[FamilyName, ...] = get_args(FamilyName)
NumWorkers = Annotated[int, Field(ge=1, le=64)]
S3Uploads = Literal["auto", "form", "put", "none"]
OidcAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
FREE_BYTES_MIN = 256 * 2**20
"""Free bytes that a start needs in the data directory: an empty database with its log, twice over."""


class Limits(BaseModel):
    """Bounds on callers' requests. Each error states the number of the limit that caused it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_bytes: int = 20 * 2**20
    upload_files: int = 50
    image_pixels: int = 25_000_000
    image_side_min: int = 32
    profile_bytes: int = 16 * 2**20
    zip_bytes: int = 100 * 2**20
    zip_files: int = 200
    unpacked_bytes: int = 256 * 2**20
    document_bytes: int = 20 * 2**20
    document_pages: int = 500
    markdown_bytes: int = 2**20
    check_bytes: int = 300_000_000
    waiting_checks: int = 32
    caption_chars: int = 500
    prompt_chars: int = 2_000
    num_images: int = 8
    waiting_pictures: int = 128
    account_waiting_pictures: int = 256
    brands_per_account: int = Field(default=20, ge=1)
    logins_per_address: int = Field(default=20, ge=1)
    """Wrong passwords per minute from one client address (IPv6: one /64); right ones do not count."""
    logins_per_account: int = Field(default=10, ge=1)
    """Wrong passwords per minute for one account from one client address."""
    right_logins_per_account: int = Field(default=60, ge=1)
    """Passwords per minute for one account from one client address, right ones included."""
    logins_before_delay: int = Field(default=60, ge=1)
    """Wrong passwords per minute for one account from all addresses; beyond that, each log-in to it is delayed."""
    refused_login_seconds: float = Field(default=1.0, ge=0, le=10)
    """Seconds that the answer to a log-in beyond these limits is delayed; a client that does not wait gains nothing."""
    sign_ups_per_address: int = Field(default=100, ge=1)
    """New accounts per hour from one client address."""
    passwords_at_once: int = Field(default=1, ge=1)
    """Passwords that one process checks or hashes at once; each takes 19 MiB and about 30 ms of a core."""
    passwords_waiting: int = Field(default=32, ge=0)
    """Passwords that wait for this in one process; further ones are refused."""
    passwords_waiting_each: int = Field(default=2, ge=1)
    """Maximum of these for one client address, and for one account."""
    streams_per_caller: int = Field(default=10, ge=1)
    """Open event streams of one user, per API process."""
    streams_per_brand: int = Field(default=30, ge=1)
    """Open event streams of one brand, per API process."""
    open_trainings: int = 100
    open_uploads: int = 200
    caller_open_uploads: int = 100
    brand_bytes: int = 50 * 2**30
    caller_bytes: int = 200 * 2**30
    open_invitations: int = 200
    page: int = 100
    anonymous_bytes: int = 16 * 2**10
    """Body bytes of a request without a valid credential."""
    json_values: int = 5_000
    """Names and values in a JSON body."""
    json_levels: int = 32
    """Nesting depth of a JSON body."""
    requests_per_address: int = 256
    """Concurrent requests of one address."""
    requests_per_caller: int = 128
    """Concurrent requests of one account, per API process."""
    account_body_bytes: int = 768 * 2**20
    """Body bytes of one account's concurrent requests, per API process; an import has 513 MiB."""
    body_bytes: int = 2 * 2**30
    """The same for all accounts together; no account may have more than remains for the others."""
    requests: int = 1_800
    """Concurrent requests of all addresses together."""
    turns: int = 4
    """Requests that the API processes at once; addresses take turns, one has at most half. Further ones wait."""
    turn_seconds: float = 0.1
    """Seconds after which a request that waits (for an image, an event) passes its turn to the next."""
    open_bodies_per_address: int = 32
    """Incomplete bodies of one address; beyond that, the one silent for longest ends with 408."""
    open_bodies: int = 512
    """Incomplete bodies of all addresses together."""
    connections_per_address: int = 512
    """Connections of one address; beyond that, the one idle for longest is closed."""
    connections_per_second: float = 100.0
    """New connections per second of one address, after `connections_burst`; further ones get 2 s for a request."""
    connections_burst: int = 128
    connections: int = 10_000
    """Connections of all addresses together, at most the process's limit of open files."""
    header_seconds: float = 10.0
    """Seconds for a request's line and headers to arrive."""
    body_seconds: float = 10.0
    """Seconds that a body may take before its rate is checked."""
    body_bytes_per_second: int = 4_096
    """Minimum average rate of a body after that."""
    send_seconds: float = 60.0
    """Seconds that a client may take to read each piece of an answer."""


class Settings(BaseSettings):
    """Configuration of one process. Frozen; no module keeps a global copy."""

    model_config = SettingsConfigDict(
        env_prefix="ONBRAND_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        env_file=None,
        hide_input_in_errors=True,  # some inputs are secrets
    )

    def __init__(self, **values: Any) -> None:
        """Read the environment; `values` take precedence. Raises ConfigurationError for an unknown `ONBRAND_*`."""
        must_be_known(type(self).model_fields, os.environ)
        super().__init__(**values)

    data_dir: Path = Path("~/.onbrand")
    """Everything local: embedded database, local objects, secrets, training runs, logs."""

    database_url: str | None = None
    """Owner's DSN of a PostgreSQL for migrations; None starts the embedded one in `data_dir`."""
    web_database_url: str | None = None
    """DSN of the web tier's login; made with the embedded database when None."""
    system_database_url: str | None = None
    """DSN of the internal routes' login; made with the embedded database when None."""
    reset_logins: bool = False
    """With `database_url`: give the database's two logins new passwords although they exist. Another platform that uses
    them is locked out."""

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
    s3_uploads: S3Uploads = "auto"
    """How files go straight to S3: by a `form` (presigned POST), by a presigned `put`, or not at all (`none`). `auto`:
    by a form where the store takes forms, else by PUT where it obeys no header that nobody signed."""
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
    """The address that the API listens on."""
    port: int = 8000
    """Its port; 0 takes a free one."""
    internal_port: int = 0
    """The port of Ray Serve's own proxy, on loopback: the internal routes and Serve's health, for this machine alone.
    0 takes a free one; Serve config files say it in `http_options`, and in `internal_url`."""
    public_url: str | None = None
    """How callers reach the ingress, for links; None: `http://host:port`."""
    internal_url: str | None = None
    """How workers reach the internal routes; None: `http://127.0.0.1:internal_port/internal`."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, as a JSON
    list; without it all callers behind a proxy share the limits of one address."""
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://app.example.com`) whose pages may call the API with a token, as a JSON list; `["*"]` for any.
    Cookies never count there."""

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
    """The required `aud` of its tokens; needed with `oidc_issuer`."""
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
    """The memory of its device that a training worker may take, in 10^9 bytes. Jobs that need more use memory
    savings, or are refused. None: all of its GPU's memory; no limit on a CPU."""
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

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:100]} is not an origin like https://app.example.com, without a path")
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ipaddress.ip_network(proxy, strict=False)
        return proxies

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named_data_dir(cls, place: Any) -> Any:
        """Reject an empty name: it would mean the working directory."""
        if str(place) == "":
            raise ConfigurationError("data_dir is empty; name a folder, or unset ONBRAND_DATA_DIR", param="data_dir")
        return place

    @field_validator("host")
    @classmethod
    def _plain_host(cls, host: str) -> str:
        return must_be_host(host)

    @field_validator("run_storage")
    @classmethod
    def _absolute_run_storage(cls, place: str | None) -> str | None:
        """Make a path absolute: the cluster's processes have different working directories."""
        return str(Path(place).expanduser().absolute()) if place and not is_url(place) else place

    @property
    def folder(self) -> Path:
        """The data directory with `~` expanded. Raises ConfigurationError for one with control characters."""
        return must_be_plain_path(self.data_dir.expanduser().absolute(), "data_dir")

    @property
    def encoded_folder(self) -> Path:
        """A node's folder for the inputs that training encoded, sealed (`training.cache`)."""
        return self.folder / "encoded"

    @property
    def url(self) -> str:
        return self.public_url or http_url(self.host, self.port)

    @property
    def system_url(self) -> str:
        return self.internal_url or f"http://127.0.0.1:{self.internal_port or 8001}/internal"

    @property
    def objects_url(self) -> str:
        return self.storage_url or file_url(self.folder / "objects")

    @property
    def runs_url(self) -> str:
        return self.run_storage or str(self.folder / "runs")


def make_writable(folder: Path) -> Path:
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
