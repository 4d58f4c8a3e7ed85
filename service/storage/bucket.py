"""The storage that keeps bundles in an S3-compatible bucket, through fsspec, with a cache of copies on this machine.

PREFIX/vitfit.json            the version of this layout
PREFIX/models/mdl_1.json      the index of a bundle: names, sizes, digests; written last, so no bundle is incomplete
PREFIX/models/mdl_1/SHA-256   a file of the bundle, named by its digest
"""

import contextlib
import errno
import hashlib
import json
import secrets
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.core.errors import NotFound, StorageAway, StorageUnusable
from service.db.migrate import NewerData
from service.storage.base import StoredFile, describe, visible_files
from service.storage.cache import Cache

try:
    import botocore.exceptions as refused
    import s3fs
except ModuleNotFoundError as error:
    raise StorageUnusable(
        f"A bucket needs the package {error.name}, which is not installed. Install s3fs: pip install s3fs."
    ) from error

LAYOUT = 1
LINK_S = 900
RIGHTS = "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
TIMES = {"connect_timeout": 5, "read_timeout": 60}
BUSY = (errno.EIO, errno.EBUSY, errno.ETIMEDOUT)


class Bucket:
    """Stores bundles in a bucket.

    The endpoint and the credentials come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on, as for every S3 client.
    """

    is_shared = True

    def __init__(self, url: str, cache: Path, cache_bytes: int | None) -> None:
        """Prepare the client; no request is sent yet.

        Args:
            url: s3://bucket or s3://bucket/prefix.
            cache: a folder on this machine for copies of files.
            cache_bytes: upper limit for the size of the cache; None for no limit.
        """
        self._url, self._root = url, url.removeprefix("s3://").rstrip("/")
        self._cache = Cache(cache, cache_bytes)
        self._s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=dict(TIMES))

    def check(self) -> None:
        try:
            with self._answering():
                self._check_layout()
                probe = f"{self._root}/.probe-{secrets.token_hex(4)}"
                self._s3.pipe_file(probe, b"vitfit")
                self._s3.rm_file(probe)
        except FileNotFoundError as error:
            raise StorageUnusable(
                f"There is no bucket for {self._url}. Create the bucket, or name another one (VITFIT_STORAGE_URL, "
                "AWS_ENDPOINT_URL)."
            ) from error

    def _check_layout(self) -> None:
        place = f"{self._root}/vitfit.json"
        try:
            found = json.loads(self._s3.cat_file(place))["layout"]
        except FileNotFoundError:
            self._s3.pipe_file(place, json.dumps({"layout": LAYOUT}).encode())
            return
        if found > LAYOUT:
            raise NewerData(
                f"The storage {self._url} has layout {found}, but this version of vitfit knows only layout {LAYOUT}. A "
                "newer version wrote it. Start the newer version, or choose another storage.",
                layout=found,
            )

    def put(self, key: str, folder: Path) -> None:
        if below := [path.name for path in folder.iterdir() if path.is_dir()]:
            raise ValueError(f"a bundle cannot contain folders, but {key} contains {', '.join(below)}")
        files = {path: describe(path) for path in visible_files(folder)}
        with self._answering():
            for path, file in files.items():
                self._s3.put_file(str(path), self._object(key, file))
            document = {"files": [asdict(file) for file in files.values()]}
            self._s3.pipe_file(self._bundle(key), json.dumps(document).encode())
        for path, file in files.items():
            self._cache.take(path, file.sha256)

    def files(self, key: str) -> list[StoredFile]:
        try:
            with self._answering():
                document = json.loads(self._s3.cat_file(self._bundle(key)))
        except FileNotFoundError:
            return []
        return [_stored_file(entry) for entry in document["files"]]

    def folder(self, key: str) -> Path:
        known = self._cache.folder(key)
        if known is not None:
            return known
        files = self.files(key)
        if not files:
            raise NotFound("bundle", key)
        return self._cache.make_folder(key, {file.name: self.file(key, file) for file in files})

    def file(self, key: str, file: StoredFile) -> Path:
        return self._cache.file(file.sha256) or self._fetch(key, file)

    def _fetch(self, key: str, file: StoredFile) -> Path:
        with self._cache.arriving() as path:
            try:
                with self._answering():
                    self._s3.get_file(self._object(key, file), str(path))
            except FileNotFoundError as error:
                raise NotFound("file", f"{key}/{file.name}") from error
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if digest != file.sha256:
                raise StorageUnusable(
                    f"The file {file.name} of {key} in {self._url} is damaged: its SHA-256 is {digest}, but it must be "
                    f"{file.sha256}. Restore the file in the bucket."
                )
            return self._cache.take(path, file.sha256)

    def link(self, key: str, file: StoredFile, media_type: str) -> str | None:
        shown = f'attachment; filename="{file.name}"'
        with self._answering():
            found: str = self._s3.url(
                self._object(key, file),
                expires=LINK_S,
                ResponseContentDisposition=shown,
                ResponseContentType=media_type,
            )
        return found

    def ids(self, kind: str) -> list[str]:
        with self._answering():
            found = self._s3.find(f"{self._root}/{kind}")
        below = [path.removeprefix(f"{self._root}/{kind}/") for path in found]
        return sorted({path.partition("/")[0].removesuffix(".json") for path in below})

    def delete(self, key: str) -> None:
        with self._answering():
            # The index first, so that no listed bundle lacks files.
            for path in [
                self._bundle(key),
                *self._s3.find(f"{self._root}/{key}/"),
            ]:
                with contextlib.suppress(FileNotFoundError):
                    self._s3.rm_file(path)
        self._cache.forget(key)

    def trim(self, needed: Collection[str]) -> None:
        self._cache.trim(needed)

    def _bundle(self, key: str) -> str:
        return f"{self._root}/{key}.json"

    def _object(self, key: str, file: StoredFile) -> str:
        return f"{self._root}/{key}/{file.sha256}"

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn errors of the S3 client into errors of the service. FileNotFoundError passes through."""
        try:
            yield
        except PermissionError as error:
            raise StorageUnusable(
                f"The storage {self._url} denies access: {error}. The access key needs the rights {RIGHTS}."
            ) from error
        except (refused.HTTPClientError, refused.ConnectionError, ConnectionError, TimeoutError) as error:
            raise self._away(error) from error
        except refused.BotoCoreError as error:  # no credentials, no region
            raise StorageUnusable(
                f"The storage {self._url} cannot be used: {error}. Check the environment variables AWS_..."
            ) from error
        except OSError as error:
            if error.errno not in BUSY:
                raise
            raise self._away(error) from error

    def _away(self, error: Exception) -> StorageAway:
        return StorageAway(f"The storage {self._url} does not answer ({error}). Try again in a moment.")


def _stored_file(entry: dict[str, Any]) -> StoredFile:
    """Read an entry of a bundle's index.

    Other programs may write to the bucket too, so the entry is not trusted. Raises: ValueError for a name that could
    lead out of the bundle's folder.
    """
    file = StoredFile(**entry)
    if Path(file.name).name != file.name or not set(file.sha256) <= set("0123456789abcdef"):
        raise ValueError(f"the index of a bundle has the name {file.name!r}, which is not a plain file name")
    return file
