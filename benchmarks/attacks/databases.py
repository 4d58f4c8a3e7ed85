"""Bad days of the operator: an empty database, and a damaged one."""

import shutil

import httpx
from vitfit import VitfitError

from benchmarks.attacks.target import Open, Target
from benchmarks.serving import Serving, serving


def empty_database(target: Target) -> str:
    """A server starts on a data folder whose database is empty. The files of the jobs must stay."""
    folder = target.folder / "empty"
    folder.mkdir(exist_ok=True)
    job = folder / "data" / "jobs" / "job_of_before" / "artifacts" / "model.onnx"
    with serving(folder, VITFIT_ENGINE="fake") as address, httpx.Client(base_url=address, timeout=60) as web:
        web.post("/v1/models", json={"name": "fake_tiny_patch4_32"})
    job.parent.mkdir(parents=True)
    job.write_bytes(b"finished work")
    for file in (folder / "data").glob("vitfit.sqlite*"):
        file.unlink()
    server, said = Serving(folder, VITFIT_ENGINE="fake"), "it starts"
    try:
        address = server.start(folder / "data")
        with httpx.Client(base_url=address, timeout=60) as web:
            web.get("/healthz")
    except VitfitError as error:
        said = "it refuses to start: " + str(error).strip().splitlines()[-1][:100]
    finally:
        server.end()
    if not job.exists():
        raise Open(f"{said}, and the finished job is gone")
    shutil.rmtree(folder)
    return f"{said}; the finished job is there"


def damaged_database(target: Target) -> str:
    """Pages of the database are overwritten with noise."""
    folder = target.folder / "damaged"
    folder.mkdir(exist_ok=True)
    with serving(folder, VITFIT_ENGINE="fake") as address, httpx.Client(base_url=address, timeout=60) as web:
        web.post("/v1/models", json={"name": "fake_tiny_patch4_32"})
    file = folder / "data" / "vitfit.sqlite"
    content = bytearray(file.read_bytes())
    content[4096 * 3 :] = b"\xa5" * len(content[4096 * 3 :])
    file.write_bytes(content)
    server = Serving(folder, VITFIT_ENGINE="fake")
    try:
        address = server.start(folder / "data")
    except VitfitError as error:
        return "it refuses to start: " + str(error).strip().splitlines()[-1][:100]
    finally:
        server.end()
    raise Open(f"it starts at {address} as if nothing had happened")
