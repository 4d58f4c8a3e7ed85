"""Tests of whose files a data folder or a bucket has, and of the order to sweep."""

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete
from typer.testing import CliRunner
from vitfit.cli import app as command

from service.app import create_app
from service.core.data_folder import DataFolder
from service.core.errors import DatabaseUnusable
from service.core.settings import Settings
from service.db.migrate import upgrade
from service.db.tables import IdentityRow, Store
from service.jobs.job_store import Jobs
from service.library.ownership import ForeignData, claim
from service.storage.local_folder import LocalStorage
from tests.service.conftest import new_job
from tests.support.rest import create_model, problem


def files_of(folder: DataFolder, job: str) -> Path:
    folder.job(job).create()
    file = folder.job(job).artifacts / "model.onnx"
    file.write_bytes(b"finished work")
    return file


def test_a_fresh_storage_gets_the_id_of_its_database(store: Store, folder: DataFolder) -> None:
    mine = claim(store, folder, LocalStorage(folder))
    assert claim(store, folder, LocalStorage(folder)) == mine
    with store.write() as session:
        session.execute(delete(IdentityRow))
    with pytest.raises(ForeignData, match=f"the database with the id {mine}"):
        claim(store, folder, LocalStorage(folder))


def test_files_from_before_the_ids_are_claimed_if_the_database_knows_them(
    store: Store, jobs: Jobs, folder: DataFolder
) -> None:
    files_of(folder, jobs.create(new_job()).id)
    files_of(folder, "job_of_nobody")
    claim(store, folder, LocalStorage(folder))


def test_an_empty_database_deletes_nothing_and_does_not_start(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", engine="fake")
    with TestClient(create_app(settings), "http://127.0.0.1") as web:
        model = create_model(web)
    kept = tmp_path / "data" / "models" / model / "model.json"
    for file in (tmp_path / "data").glob("vitfit.sqlite*"):
        file.unlink()
    with pytest.raises(ForeignData, match="vitfit restore"), TestClient(create_app(settings), "http://127.0.0.1"):
        pass
    assert kept.is_file()


def test_an_order_by_hand_lists_before_it_deletes(store: Store, folder: DataFolder, tmp_path: Path) -> None:
    other = DataFolder(tmp_path / "other")
    other.create()
    upgrade(Store(other.database))
    file = files_of(other, "job_of_nobody")
    said = CliRunner().invoke(command, ["sweep", "--data", str(other.root)])
    assert "jobs/job_of_nobody" in said.output and "1 would be deleted" in said.output and file.exists()
    said = CliRunner().invoke(command, ["sweep", "--data", str(other.root), "--yes"])
    assert "1 deleted" in said.output and not file.exists()
    claim(Store(other.database), other, LocalStorage(other))


def test_a_damaged_database_is_found_at_the_start_and_by_health(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", engine="fake")
    file = tmp_path / "data" / "vitfit.sqlite"
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as web:
        create_model(web)
        web.app.state.service.damage._at = -1e9  # type: ignore[attr-defined]  # the next look is due
        assert web.get("/healthz").status_code == 200
    content = file.read_bytes()
    file.write_bytes(content[: 3 * 4096] + b"\xa5" * (len(content) - 3 * 4096))
    with pytest.raises(DatabaseUnusable, match="damaged"), TestClient(create_app(settings), "http://127.0.0.1"):
        pass
    file.write_bytes(content)
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as web:
        web.app.state.service.damage._at, web.app.state.service.damage._found = 1e18, "damaged"  # type: ignore[attr-defined]
        assert "damaged" in problem(web.get("/healthz"), 503, "unhealthy")["detail"]


def test_a_backup_of_a_running_server_is_restored_whole(tmp_path: Path) -> None:
    settings, copy = Settings(data=tmp_path / "data", engine="fake"), tmp_path / "copy"
    with TestClient(create_app(settings), "http://127.0.0.1") as web:
        model = create_model(web)
        said = CliRunner().invoke(command, ["backup", str(copy), "--data", str(settings.data)])
        assert said.exit_code == 0, said.output
    again = tmp_path / "again"
    said = CliRunner().invoke(command, ["restore", str(copy), "--data", str(again)])
    assert said.exit_code == 0, said.output
    with TestClient(create_app(Settings(data=again, engine="fake")), "http://127.0.0.1") as web:
        assert [one["id"] for one in web.get("/v1/models").json()["models"]] == [model]
        assert web.get(f"/v1/models/{model}").status_code == 200
    refused = CliRunner().invoke(command, ["restore", str(copy), "--data", str(again)])
    assert refused.exit_code != 0 and "not empty" in refused.output
    (copy / "models" / model / "model.json").write_text("{}")
    shutil.rmtree(again)
    refused = CliRunner().invoke(command, ["restore", str(copy), "--data", str(again)])
    assert refused.exit_code != 0 and "missing or changed" in refused.output and not again.exists()
