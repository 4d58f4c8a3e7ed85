"""Tests of the validator: its process imports once, and nothing that happens in one check affects the others."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import VitfitError
from service.core.data_folder import DataFolder
from service.core.errors import LimitReached, StorageFull, ValidationBroken, ValidationSlow
from service.core.hidden_paths import HiddenPaths
from service.core.limits import Limits
from service.core.processes import ROOT
from service.jobs.validator import Validator
from service.library.room import Room
from tests.support.running import Server, children, is_alive, wait_until

CHECK = """
import json, os, signal, sys, time

with open(os.environ["IMPORTED"], "a") as file:
    file.write("x")
print("text that a library prints")


def main():
    request = json.load(sys.stdin)
    print("complaints", file=sys.stderr)
    what = request.get("job")
    if what == "hang":
        with open(os.environ["IMPORTED"] + ".pid", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    if what == "fill":  # a megabyte at a time, as long as somebody lets it
        for number in range(600):
            with open(os.path.join(request["scratch"], str(number)), "wb") as file:
                file.write(bytes(2**20))
            time.sleep(0.01)
        time.sleep(600)
    if what == "leave":
        with open(os.path.join(request["scratch"], "half"), "w") as file:
            file.write("unfinished")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "burn":
        while True:
            pass
    if what == "path":
        json.dump({"ok": False, "error": {"code": "bad-data", "detail": f"No {__file__}.", "facts": {}}}, sys.stdout)
        return
    if what == "memory":
        with open("/proc/self/oom_score_adj") as file:
            first = file.read().strip()
        try:
            bytearray(2**33)
        except MemoryError:
            print(f"first to go: {first}", file=sys.stderr)
            json.dump({"ok": False, "limit": "memory"}, sys.stdout)
            return
    if what == "abort":
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr)
        sys.stderr.flush()
        os.abort()
    if what == "raise":
        raise RuntimeError("a bug")
    if what == "refuse":
        json.dump({"ok": False, "error": {"code": "bad-data", "detail": "No.", "facts": {}}}, sys.stdout)
        return
    json.dump({"ok": True, "description": {"pid": os.getpid(), "parent": os.getppid(), "value": what}}, sys.stdout)
"""


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """The file to which each import of the check's module adds a letter."""
    (tmp_path / "check_of_test.py").write_text(CHECK)
    return tmp_path / "imported"


@pytest.fixture
def validator(imported: Path) -> Iterator[Validator]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "client"), str(imported.parent)])
    validator = Validator(
        "check_of_test",
        limits=Limits(memory_bytes=2**32, cpu_s=1),
        environment={"PYTHONPATH": path, "IMPORTED": str(imported)},
        hidden=HiddenPaths((imported.parent,)),
    )
    yield validator
    validator.close()


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture
def small(folder: DataFolder, validator: Validator) -> Validator:
    """A validator whose checks write to a data folder with a quota of 20 MB."""
    validator._space = (folder, Room(folder, 20 * 2**20))
    return validator


def run(*steps: Callable[[], Awaitable[dict[str, Any]]]) -> list[Any]:
    """Run the steps in their order. An error of vitfit is a result too."""

    async def all_steps() -> list[Any]:
        found: list[Any] = []
        for step in steps:
            try:
                found.append(await step())
            except VitfitError as error:
                found.append(error)
        return found

    return asyncio.run(all_steps())


def test_the_module_is_imported_once_for_all_checks(validator: Validator, imported: Path) -> None:
    first, second = run(
        lambda: validator.describe({"job": "x" * 500_000}, 60), lambda: validator.describe({"job": "b"}, 60)
    )
    assert (first["value"], second["value"]) == ("x" * 500_000, "b")
    assert first["pid"] != second["pid"] and first["parent"] == second["parent"]
    assert imported.read_text() == "x"


def test_a_check_that_crashes_hangs_or_refuses_does_not_affect_the_next(validator: Validator, imported: Path) -> None:
    before, died, raised, hung, refused, after = run(
        *(
            lambda what=what, timeout_s=timeout_s: validator.describe({"job": what}, timeout_s)
            for what, timeout_s in (("a", 60), ("die", 60), ("raise", 60), ("hang", 1), ("refuse", 60), ("b", 60))
        )
    )
    assert isinstance(died, LimitReached) and "too little memory" in died.detail
    assert isinstance(raised, ValidationBroken) and "exit status 1" in raised.detail
    assert isinstance(hung, ValidationSlow) and "did not check the job within 1 s" in hung.detail
    assert not is_alive(int(Path(f"{imported}.pid").read_text())), "the check ends before its caller hears of it"
    assert (refused.code, refused.detail) == ("bad-data", "No.")
    assert after["value"] == "b" and after["parent"] == before["parent"]


def test_a_check_that_needs_too_much_is_refused_with_the_limit(validator: Validator) -> None:
    burnt, full, aborted, crashed, path = run(
        *(
            lambda what=what: validator.describe({"model": "m", "job": what}, 60)
            for what in ("burn", "memory", "abort", "crash", "path")
        )
    )
    assert isinstance(burnt, LimitReached) and "processor time of a check, 1 s" in burnt.detail
    assert "VITFIT_CHECK_CPU_S" in burnt.detail
    assert isinstance(full, LimitReached) and "memory limit of a check, 4,295 MB" in full.detail
    assert isinstance(aborted, LimitReached) and "VITFIT_CHECK_MEMORY_BYTES" in aborted.detail
    assert (crashed.code, "SIGSEGV" in crashed.detail) == ("damaged-file", True)
    assert path.detail == "No check_of_test.py."


def test_the_clock_of_a_check_starts_with_its_turn(validator: Validator) -> None:
    """Two hanging checks of one person take their turns; the third waits longer than its own limit, and then runs."""

    async def story() -> list[Any]:
        hanging = [asyncio.create_task(validator.describe({"job": "hang"}, 1.5, "ann")) for _ in range(2)]
        await asyncio.sleep(0)
        third = asyncio.create_task(validator.describe({"job": "a"}, 30, "ann"))
        found = await asyncio.gather(*hanging, third, return_exceptions=True)
        return list(found)

    run(lambda: validator.describe({"job": "a"}, 60))
    *slow, third = asyncio.run(story())
    assert all(isinstance(one, ValidationSlow) for one in slow) and third["value"] == "a"


def test_a_process_that_is_killed_is_started_again(validator: Validator, imported: Path) -> None:
    (first,) = run(lambda: validator.describe({"job": "a"}, 60))
    os.kill(first["parent"], signal.SIGKILL)
    wait_until(lambda: not is_alive(first["parent"]), "the end of the process")
    (second,) = run(lambda: validator.describe({"job": "b"}, 60))
    assert second["value"] == "b" and second["parent"] != first["parent"]
    assert imported.read_text() == "xx"


def test_a_process_that_is_killed_during_a_check_takes_only_this_check_along(
    validator: Validator, imported: Path
) -> None:
    async def story() -> dict[str, Any]:
        hanging = asyncio.create_task(validator.describe({"job": "hang"}, 60))
        mark = Path(f"{imported}.pid")
        while not (mark.exists() and mark.read_text()):
            await asyncio.sleep(0.02)
        others = await validator.describe({"job": "a"}, 60)
        os.kill(others["parent"], signal.SIGKILL)
        with pytest.raises(ValidationBroken):
            await hanging
        wait_until(lambda: not is_alive(int(mark.read_text())), "the end of the check")
        return await validator.describe({"job": "b"}, 60)

    assert asyncio.run(story())["value"] == "b"


def test_a_module_that_cannot_be_imported_is_an_error_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    validator = Validator("no_such_module_anywhere")
    (broken,) = run(lambda: validator.describe({"job": "a"}, 60))
    assert isinstance(broken, ValidationBroken) and "No module named" in caplog.text
    validator.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_of_the_validation_outlives_its_server(own_server: Server, how: signal.Signals) -> None:
    own_server.model()
    (warm,) = children(own_server.pid)
    threading.Thread(
        target=lambda: own_server.client.post("/v1/models", json={"name": "slow"}), name="slow upload", daemon=True
    ).start()
    (check,) = wait_until(lambda: children(warm), "a check that hangs")
    own_server.end(how)
    wait_until(lambda: not is_alive(warm) and not is_alive(check), "the end of both processes")


def left(folder: DataFolder) -> list[Path]:
    return [path for path in folder.root.rglob("*") if path.is_file()]


def test_a_check_that_fills_the_disk_ends_at_the_quota(small: Validator, folder: DataFolder) -> None:
    (refused,) = run(lambda: small.describe({"job": "fill"}, 300))
    assert isinstance(refused, StorageFull) and "at most 20,971,520 are allowed" in refused.detail
    assert left(folder) == []


@pytest.mark.parametrize(("what", "seconds"), [("leave", 60.0), ("fill", 0.05)])
def test_nothing_is_left_of_a_check_that_was_killed(
    small: Validator, folder: DataFolder, what: str, seconds: float
) -> None:
    run(lambda: small.describe({"job": "warm"}, 60))
    (refused,) = run(lambda: small.describe({"job": what}, seconds))
    assert isinstance(refused, VitfitError)
    assert left(folder) == []
