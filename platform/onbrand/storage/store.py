"""The object store and its view for one brand. The services write the database rows about objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, InvalidInput, NotFound, OnbrandError, TooLarge
from onbrand.secrets_file import Secrets, load_secrets
from onbrand.storage.backends import Backend, Draft, open_backend
from onbrand.storage.layout import Bucket, Key, must_be_plain, must_be_prefix
from onbrand.storage.links import Announced, UploadLink, must_be_link_seconds
from onbrand.storage.regions import Regions, must_be_region

OBJECT_BYTES_MAX = 2 * 2**30
LIST_MAX = 10_000


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """All buckets of a platform. Use `brand(...)` to read and write. Safe to share between threads."""

    backend: Backend
    regions: Regions

    @classmethod
    def from_settings(cls, settings: Settings, secrets: Secrets | None = None) -> ObjectStore:
        """The store of the settings. Raises ConfigurationError for an invalid address or region."""
        try:
            must_be_region(settings.region, "ONBRAND_REGION")
        except InvalidInput as problem:
            raise ConfigurationError(problem.message, param="region") from None
        return cls(open_backend(settings, secrets or load_secrets(settings)), Regions(settings.region))

    def brand(self, brand_id: str, region: str | None = None) -> BrandStore:
        """The part of the store that belongs to one brand.

        Args:
            region: the brand's home region; None is the platform's own.
        """
        return BrandStore(self.backend, must_be_brand_id(brand_id), self.regions.folder(region))

    def check(self) -> None:
        """Test that every bucket is usable. Raises ConfigurationError with a remedy."""
        self.backend.check()


@dataclass(frozen=True, slots=True)
class BrandStore:
    """One brand's objects. Keys of other brands are refused, both by name and by resolved location.

    All methods block; call them from a thread (`anyio.to_thread.run_sync`).
    """

    backend: Backend
    brand_id: str
    folder: str = ""

    def read(self, key: Key, max_bytes: int = OBJECT_BYTES_MAX) -> bytes:
        """The object's bytes. Raises NotFound, TooLarge, StorageError."""
        name = self._checked_name(key)
        size = self.backend.size(key.bucket, name)
        if size > max_bytes:
            raise TooLarge(f"the object has {size} bytes; at most {max_bytes} are read", limit=max_bytes)
        return self.backend.read(key.bucket, name)

    def open_stream(self, key: Key) -> BinaryIO:
        """A readable stream of the object; the caller closes it. Raises NotFound, StorageError."""
        return self.backend.open(key.bucket, self._checked_name(key))

    def write(self, key: Key, data: bytes, content_type: str | None = None) -> None:
        """Store `data` atomically, replacing an existing object. Raises TooLarge, StorageError."""
        if len(data) > OBJECT_BYTES_MAX:
            raise TooLarge(f"an object has at most {OBJECT_BYTES_MAX} bytes", limit=OBJECT_BYTES_MAX)
        self.backend.write(key.bucket, self._checked_name(key), data, content_type or key.content_type)

    def exists(self, key: Key) -> bool:
        """Whether the object is there."""
        return self.backend.exists(key.bucket, self._checked_name(key))

    def size(self, key: Key) -> int:
        """Bytes of the object. Raises NotFound."""
        return self.backend.size(key.bucket, self._checked_name(key))

    def delete(self, key: Key) -> None:
        """Remove the object. A missing object is no error, so that a deletion can be repeated."""
        self.backend.delete(key.bucket, self._checked_name(key))

    def list(self, bucket: Bucket, prefix: str = "") -> list[Key]:
        """The brand's keys in `bucket` whose part below the brand's folder begins with `prefix`, sorted."""
        start = f"{self.brand_id}/{must_be_prefix(prefix)}"
        folder = f"{self.folder}{start.rpartition('/')[0]}"
        names = (name.removeprefix(self.folder) for name in self.backend.names(bucket, folder))
        found = (self._listed(bucket, name) for name in sorted(names) if name.startswith(start))
        return [key for key in found if key is not None][:LIST_MAX]

    def link(self, key: Key, seconds: int) -> str:
        """A signed address at which anyone may GET this object for `seconds`. Raises NotFound for incoming files."""
        name = self._checked_name(key)
        if key.is_incoming:
            raise NotFound("there is no such object")
        return self.backend.link(key, name, must_be_link_seconds(seconds))

    def upload_link(self, key: Key, announced: Announced, seconds: int) -> UploadLink:
        """A link by which anyone may fill an incoming `key` within `seconds`. Raises NotFound for other keys."""
        return self.backend.upload_link(key, self._incoming(key), announced, must_be_link_seconds(seconds))

    def receive(self, key: Key) -> Draft:
        """A draft of an incoming object, for bytes that arrive in pieces; `Draft.keep` makes it the object.

        Raises NotFound for any other key and on a store that receives uploads itself, Conflict if the object exists.
        """
        return self.backend.draft(key.bucket, self._incoming(key))

    def _incoming(self, key: Key) -> str:
        name = self._checked_name(key)
        if not key.is_incoming:
            raise NotFound("there is no such object")
        return name

    def _checked_name(self, key: Key) -> str:
        """The name below the bucket's root. Raises NotFound for a key that is not plain or not this brand's."""
        try:
            must_be_plain(key.bucket, key.name)
        except OnbrandError:
            raise NotFound("there is no such object") from None
        if not key.name.startswith(f"{self.brand_id}/"):
            raise NotFound("there is no such object")
        name = f"{self.folder}{key.name}"
        self.backend.must_lie_in(key.bucket, name, f"{self.folder}{self.brand_id}")
        return name

    def _listed(self, bucket: Bucket, name: str) -> Key | None:
        """The key of a listed name; None for names that are no keys of this brand."""
        try:
            key = Key(bucket, name)
            self._checked_name(key)
        except OnbrandError:
            return None
        return key
