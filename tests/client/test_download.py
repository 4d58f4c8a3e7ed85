"""Tests of downloads.

A file arrives completely or not at all. A download resumes after a cut. A file with a wrong digest is never kept.
"""

import os
from pathlib import Path

import pytest
from vitfit import Budget, Client, Job, VitfitError

from tests.support.fake_server import FakeServer

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def job(server: FakeServer, client: Client) -> Job:
    server.files = {"model.onnx": CONTENT, "empty.txt": b"", "report.json": b"{}"}
    return client.submit("mdl_1", [Budget("macs_keep", 0.5)])


def ranges(server: FakeServer, job: Job) -> list[str | None]:
    gets = server.requests("GET", f"/v1/jobs/{job.id}/artifacts/model.onnx")
    return [get.headers.get("range") for get in gets]


def test_a_file_arrives_whole_and_leaves_no_part(client: Client, job: Job, tmp_path: Path) -> None:
    heard: list[int] = []
    path = client.download(job, "model.onnx", tmp_path / "out" / "small.onnx", heard.append)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["small.onnx"]
    assert heard == sorted(heard) and heard[-1] == len(CONTENT)


def test_a_cut_download_goes_on_where_it_stopped(server: FakeServer, client: Client, job: Job, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    path = client.download(job, "model.onnx", tmp_path)
    assert path == tmp_path / "model.onnx"
    assert path.read_bytes() == CONTENT
    first, *resumed = ranges(server, job)
    assert first is None
    offsets = [int(str(asked).removeprefix("bytes=").rstrip("-")) for asked in resumed]
    assert len(offsets) == 2 and 0 < offsets[0] < offsets[1] <= 1_500_000


def test_what_an_earlier_run_left_is_gone_on_with(server: FakeServer, client: Client, job: Job, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.part").write_bytes(CONTENT[:2_000_000])
    client.download(job, "model.onnx", tmp_path)
    assert ranges(server, job) == ["bytes=2000000-"]
    assert (tmp_path / "model.onnx").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_needs_no_request(
    server: FakeServer, client: Client, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx.part").write_bytes(CONTENT)
    client.download(job, "model.onnx", tmp_path)
    assert ranges(server, job) == []
    assert not (tmp_path / "model.onnx.part").exists()


def test_a_server_that_ignores_ranges_sends_all_of_it_again(
    server: FakeServer, client: Client, job: Job, tmp_path: Path
) -> None:
    server.ignore_range = True
    (tmp_path / "model.onnx.part").write_bytes(b"x" * 1000)
    assert client.download(job, "model.onnx", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_the_part_of_another_version_is_thrown_away(client: Client, job: Job, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "model.onnx.part").write_bytes(left)
    assert client.download(job, "model.onnx", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["wrong_listing", "wrong_header"])
def test_a_wrong_digest_keeps_nothing(server: FakeServer, client: Client, job: Job, tmp_path: Path, fault: str) -> None:
    setattr(server, fault, True)
    (tmp_path / "model.onnx").write_bytes(b"the file of yesterday")
    with pytest.raises(VitfitError) as caught:
        client.download(job, "model.onnx", tmp_path)
    assert caught.value.problem.code == "wrong-digest"
    assert (tmp_path / "model.onnx").read_bytes() == b"the file of yesterday"


def test_a_listing_with_a_wrong_digest_and_no_digest_header(
    server: FakeServer, client: Client, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx.part").write_bytes(CONTENT[:-1] + b"?" if CONTENT[-1:] != b"?" else CONTENT[:-1] + b"!")
    server.wrong_listing = True
    with pytest.raises(VitfitError) as caught:
        client.download(job, "model.onnx", tmp_path)
    assert caught.value.problem.code == "wrong-digest"
    assert not (tmp_path / "model.onnx").exists()


def test_a_download_that_never_moves_ends_and_keeps_its_part(
    server: FakeServer, client: Client, job: Job, tmp_path: Path
) -> None:
    server.cuts = [1_000_000, *[0] * 20]
    with pytest.raises(VitfitError):
        client.download(job, "model.onnx", tmp_path)
    part = tmp_path / "model.onnx.part"
    assert 0 < part.stat().st_size <= 1_000_000
    server.cuts = []
    assert client.download(job, "model.onnx", tmp_path).read_bytes() == CONTENT
    assert str(ranges(server, job)[-1]) != "None"


def test_a_file_that_is_there_already_is_not_fetched_again(
    server: FakeServer, client: Client, job: Job, tmp_path: Path
) -> None:
    client.download(job, "model.onnx", tmp_path)
    client.download(job, "model.onnx", tmp_path)
    assert len(ranges(server, job)) == 1


def test_an_empty_file_is_a_file(client: Client, job: Job, tmp_path: Path) -> None:
    assert client.download(job, "empty.txt", tmp_path).read_bytes() == b""


def test_an_unknown_name_lists_what_there_is(client: Client, job: Job, tmp_path: Path) -> None:
    with pytest.raises(VitfitError, match=r"empty\.txt, model\.onnx, report\.json"):
        client.download(job, "modle.onnx", tmp_path)


@pytest.mark.parametrize("name", ["../climbed", "a/b", "..", "x.part", "c:\\x"])
def test_a_listed_name_cannot_leave_the_folder(
    server: FakeServer, client: Client, job: Job, tmp_path: Path, name: str
) -> None:
    server.files = {name: b"evil"}
    with pytest.raises(VitfitError, match="plain file name"):
        client.download(job, name, tmp_path)
    assert list(tmp_path.parent.glob("climbed*")) == []
