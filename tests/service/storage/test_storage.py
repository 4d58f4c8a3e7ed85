"""Tests of storage.

The first tests run on the data folder and on the bucket. The later tests are about faults that only a bucket can have.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.core.data_folder import DataFolder
from service.core.errors import NotFound, StorageAway, StorageUnusable
from service.core.retry import patiently
from service.db.migrate import NewerData
from service.storage.base import Storage, StoredFile
from service.storage.bucket import Bucket
from service.storage.local_folder import LocalStorage
from tests.support.s3 import S3


@pytest.fixture
def bucket_url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    s3.announce(monkeypatch)
    return s3.fresh()


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A checked storage, once of each kind."""
    found: Storage
    if request.param == "folder":
        found = LocalStorage(DataFolder(tmp_path / "data"))
    else:
        found = Bucket(request.getfixturevalue("bucket_url"), tmp_path / "data" / "cache", None)
    found.check()
    return found


def bundle(root: Path, **files: bytes) -> Path:
    """Make a folder that may be given away."""
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_comes_back_as_it_was(storage: Storage, tmp_path: Path) -> None:
    storage.put("models/mdl_a", bundle(tmp_path / "new", weights=b"w" * 100_000, config=b"{}"))
    assert contents(storage.folder("models/mdl_a")) == {"weights": b"w" * 100_000, "config": b"{}"}
    files = storage.files("models/mdl_a")
    assert [(file.name, file.size_bytes) for file in files] == [("config", 2), ("weights", 100_000)]
    assert files[0].sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert storage.file("models/mdl_a", files[0]).read_bytes() == b"{}"
    assert storage.ids("models") == ["mdl_a"] and storage.ids("datasets") == []


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    assert storage.files("models/mdl_none") == []
    with pytest.raises(NotFound):
        storage.folder("models/mdl_none")
    storage.delete("models/mdl_none")


def test_what_is_not_whole_is_not_kept(storage: Storage, tmp_path: Path) -> None:
    storage.put("models/mdl_a", bundle(tmp_path / "new", done=b"1", **{".half.part": b"2"}))
    assert [file.name for file in storage.files("models/mdl_a")] == ["done"]


def test_new_files_take_the_place_of_old_ones(storage: Storage, tmp_path: Path) -> None:
    for number in (b"1", b"2"):
        storage.put("jobs/job_a/artifacts", bundle(tmp_path / number.decode(), report=number))
    (file,) = storage.files("jobs/job_a/artifacts")
    assert storage.file("jobs/job_a/artifacts", file).read_bytes() == b"2"


def test_deleting_takes_everything_below_and_nothing_beside(storage: Storage, tmp_path: Path) -> None:
    for job in ("job_a", "job_ab"):
        storage.put(f"jobs/{job}/artifacts", bundle(tmp_path / job, report=job.encode()))
        storage.folder(f"jobs/{job}/artifacts")
    storage.delete("jobs/job_a")
    assert storage.ids("jobs") == ["job_ab"] and storage.files("jobs/job_a/artifacts") == []
    with pytest.raises(NotFound):
        storage.folder("jobs/job_a/artifacts")
    assert contents(storage.folder("jobs/job_ab/artifacts")) == {"report": b"job_ab"}


# Only the bucket


@pytest.fixture
def bucket(bucket_url: str, tmp_path: Path) -> Bucket:
    found = Bucket(bucket_url, tmp_path / "cache", None)
    found.check()
    return found


def elsewhere(bucket_url: str, tmp_path: Path, limit: int | None = None) -> Bucket:
    """Return the same bucket as another machine sees it."""
    return Bucket(bucket_url, tmp_path / "elsewhere", limit)


def test_another_machine_finds_it_and_fetches_it_once(bucket: Bucket, bucket_url: str, tmp_path: Path, s3: S3) -> None:
    bucket.put("models/mdl_a", bundle(tmp_path / "new", weights=b"w"))
    there = elsewhere(bucket_url, tmp_path)
    assert contents(there.folder("models/mdl_a")) == {"weights": b"w"}
    (file,) = there.files("models/mdl_a")
    s3.stop()
    try:
        assert contents(there.folder("models/mdl_a")) == {"weights": b"w"}
        assert there.file("models/mdl_a", file).read_bytes() == b"w"
    finally:
        s3.start()


def test_half_a_bundle_is_none(bucket: Bucket, bucket_url: str, tmp_path: Path) -> None:
    """A process was killed while it stored the files. The list of files is missing, because it comes last."""
    bucket._s3.pipe_file(f"{bucket_url.removeprefix('s3://')}/models/mdl_a/{'0' * 64}", b"x")
    assert bucket.files("models/mdl_a") == []
    with pytest.raises(NotFound):
        bucket.folder("models/mdl_a")


def test_what_was_changed_in_the_bucket_is_not_used(bucket: Bucket, bucket_url: str, tmp_path: Path) -> None:
    bucket.put("models/mdl_a", bundle(tmp_path / "new", weights=b"w"))
    (file,) = bucket.files("models/mdl_a")
    bucket._s3.pipe_file(f"{bucket_url.removeprefix('s3://')}/models/mdl_a/{file.sha256}", b"x")
    there = elsewhere(bucket_url, tmp_path)
    with pytest.raises(StorageUnusable, match="damaged"):
        there.folder("models/mdl_a")
    assert not list((tmp_path / "elsewhere").rglob("*/*.*")) and there._cache.file(file.sha256) is None


def test_a_list_that_leads_out_of_its_folder_is_refused(bucket: Bucket, bucket_url: str) -> None:
    place = f"{bucket_url.removeprefix('s3://')}/models/mdl_a.json"
    bucket._s3.pipe_file(place, b'{"files": [{"name": "../../x", "size_bytes": 1, "sha256": "00"}]}')
    with pytest.raises(ValueError, match="not a plain file name"):
        bucket.files("models/mdl_a")


def test_the_cache_keeps_its_limit_and_what_is_needed(bucket: Bucket, bucket_url: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        bucket.put(f"models/mdl_{name}", bundle(tmp_path / name, weights=name.encode() * 1000))
    there = elsewhere(bucket_url, tmp_path, limit=2500)
    for name in ("a", "b", "c"):
        there.folder(f"models/mdl_{name}")
    there.trim({"models/mdl_a"})
    known = [name for name in ("a", "b", "c") if there._cache.folder(f"models/mdl_{name}") is not None]
    assert known == ["a", "c"], "b was used before c, and a is needed"
    assert contents(there.folder("models/mdl_b")) == {"weights": b"b" * 1000}, "it can be fetched again"


def test_a_link_can_be_fetched_without_keys(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("jobs/job_a/artifacts", bundle(tmp_path / "new", **{"model.onnx": b"onnx"}))
    (file,) = bucket.files("jobs/job_a/artifacts")
    link = bucket.link("jobs/job_a/artifacts", file, "application/vnd.onnx")
    answer = httpx.get(link or "")
    assert (answer.status_code, answer.content) == (200, b"onnx")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="model.onnx"'


def test_a_bucket_that_is_not_there_is_named(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3.announce(monkeypatch)
    with pytest.raises(StorageUnusable, match="There is no bucket for s3://nowhere"):
        Bucket("s3://nowhere", tmp_path, None).check()


def test_a_newer_layout_is_refused_and_left_alone(bucket: Bucket, bucket_url: str) -> None:
    place = f"{bucket_url.removeprefix('s3://')}/vitfit.json"
    bucket._s3.pipe_file(place, b'{"layout": 2}')
    with pytest.raises(NewerData, match="layout 2"):
        bucket.check()
    assert bucket._s3.cat_file(place) == b'{"layout": 2}'


@pytest.fixture
def refusing(s3: S3) -> Iterator[S3]:
    s3.refuse(True)
    yield s3
    s3.refuse(False)


def test_keys_without_rights_are_told_which_they_need(bucket_url: str, refusing: S3, tmp_path: Path) -> None:
    with pytest.raises(StorageUnusable, match="s3:PutObject"):
        Bucket(bucket_url, tmp_path, None).check()


@pytest.mark.slow
def test_a_storage_that_is_away_is_waited_for(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "new", weights=b"w")
    s3.stop()
    with pytest.raises(StorageAway, match="does not answer"):
        patiently(lambda: bucket.put("models/mdl_a", folder), 0)
    starter = threading.Timer(2.0, s3.start)
    starter.start()
    patiently(lambda: bucket.put("models/mdl_a", folder), 60)
    starter.join()
    assert [file.name for file in bucket.files("models/mdl_a")] == ["weights"]


def test_a_file_that_is_gone_from_the_bucket_is_not_found(bucket: Bucket) -> None:
    with pytest.raises(NotFound):
        bucket.file("models/mdl_a", StoredFile("weights", 1, "ab" * 32))
