"""Fuzz test of uploads: sends a server broken and hostile files, and checks its answers.

    python -m benchmarks.fuzz_uploads --seconds 300 --seed 1            one or two uploads a second
    python -m benchmarks.fuzz_uploads --seed 1 --only 172               the same upload again

The uploads are checkpoints, archives, arrays, folders of pictures, model.json documents and device tables. The script
makes them from the seed. An upload is either a valid file that was then damaged, or an undamaged file with unusual
content. The script prints the number of each failed upload. `--only` sends the upload with this number again.

The server must answer every upload in time, either with success or with a problem that has a code and a status below
500. No code of a pickle may run. A file may appear only in the upload's own folder, and no file may stay after a
refusal. The script also tries each accepted upload in a job (`validate_only`). Expected: 0 failures.

The application runs in this process, with the same validation as in the server.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from benchmarks.hostile import archives, arrays, checkpoints, documents
from benchmarks.hostile.upload import Upload
from service.app import create_app
from service.core.settings import Settings

PATIENCE_S = 60.0
"""Time limit. A validation that takes longer counts as a hang."""
KINDS = ("checkpoint", "archive", "npz", "folder", "model", "device")
OURS = re.compile(
    r"(model|dataset|digests)\.json|weights\.(safetensors|pth)|model\.(onnx|zip)|data\.(npz|zip|tar)|pictures/(index\.json|\d{8}\.\w{3,4})"
)


@dataclass
class Fuzzer:
    """A fuzz test of one server that has a folder of its own."""

    web: TestClient
    root: Path
    model: str
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def allowed(self) -> Path:
        return self.root / "allowed"

    @property
    def outside(self) -> Path:
        """Folder in which nothing may appear."""
        return self.root / "outside"

    def make(self, seed: int, number: int, kinds: tuple[str, ...]) -> Upload:
        """Make the upload with this number. Its content depends on nothing but the arguments."""
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice(kinds)
        if kind == "folder":
            place = self.allowed / f"{number}"
            place.mkdir()
            return archives.folder(rng, place, self.outside)
        if kind == "archive":
            return archives.archive(rng, self.outside)
        if kind == "checkpoint":
            return checkpoints.checkpoint(rng, str(self.outside / "code-ran"))
        return {"npz": arrays.arrays, "model": documents.model_json, "device": documents.device}[kind](rng)

    def send(self, upload: Upload) -> list[str]:
        """Send an upload.

        Return what is wrong with the answer or with the files that the upload left. An empty list means success.
        """
        before, began = self._files(), time.monotonic()
        answer = self._post(upload)
        wrong = judged(answer)
        if answer.status_code == 201:
            wrong += self._taken(upload, answer, before)
        if time.monotonic() - began > PATIENCE_S:
            wrong.append(f"it took {time.monotonic() - began:.0f} s")
        left = self._files() - before
        code = answer.json().get("type", "/problems/") if answer.status_code >= 400 and not wrong else ""
        self.answers[code.removeprefix("/problems/") or str(answer.status_code)] += 1
        return wrong + [f"it left {sorted(left)[:5]}"] * bool(left)

    def _post(self, upload: Upload) -> Any:
        if upload.filename:
            part = "checkpoint" if upload.path == "/v1/models" else "file"
            return self.web.post(upload.path, data=upload.fields or {}, files={part: (upload.filename, upload.content)})
        body = upload.json if isinstance(upload.json, bytes) else json.dumps(upload.json).encode()
        return self.web.post(upload.path, content=body, headers={"Content-Type": "application/json"})

    def _taken(self, upload: Upload, answer: Any, before: set[str]) -> list[str]:
        """Read the registered upload, try it in a job, and delete it again. Return what is wrong."""
        address, wrong = answer.headers["location"], []
        for name in sorted(self._files() - before):
            inside = re.fullmatch(r"data/(?:models|datasets)/\w+/(.*)", name)
            if upload.path != "/v1/devices" and not (inside and OURS.fullmatch(inside[1])):
                wrong.append(f"a file at {name}")
        wrong += judged(self.web.get(address))
        if upload.path != "/v1/devices":
            noun = "model" if upload.path == "/v1/models" else "dataset"
            job = {"model": self.model, noun: answer.json()["id"], "budgets": [{"metric": "macs_keep", "limit": 0.9}]}
            wrong += [f"in a job: {w}" for w in judged(self.web.post("/v1/jobs?validate_only=true", json=job))]
        return wrong + judged(self.web.delete(address))

    def _files(self) -> set[str]:
        """Return all files below the root, except the user's own folders and the server's own files in `data`."""
        found = set()
        for place, _, names in os.walk(self.root):
            if Path(place) == self.root / "data" or Path(place).is_relative_to(self.allowed):
                continue
            found |= {os.path.relpath(os.path.join(place, name), self.root) for name in names}
        return found - {"outside/secret.png"}


def judged(answer: Any) -> list[str]:
    """Return what is wrong with an answer. It must be a success, or a problem with a type, a detail and its status.

    answer: the response of a test client, from httpx or from httpx2.
    """
    if answer.status_code < 400:
        return []
    if answer.status_code >= 500:
        return [f"status {answer.status_code}: {answer.text[:300]}"]
    try:
        body = answer.json() if answer.headers.get("content-type") == "application/problem+json" else {}
    except ValueError:
        body = {}
    told = (
        body.get("type", "").startswith("/problems/")
        and body.get("detail")
        and body.get("status") == answer.status_code
    )
    return [] if told else [f"status {answer.status_code} without a problem: {answer.text[:300]}"]


@contextmanager
def fuzzer() -> Iterator[Fuzzer]:
    """Start a server in a fresh folder. Remove the folder afterwards."""
    root = Path(tempfile.mkdtemp(prefix="vitfit-fuzz-"))
    for name in ("allowed", "outside", "tmp"):
        (root / name).mkdir()
    settings = Settings(
        data=root / "data",
        engine="pipeline",
        anonymous=True,
        allowed_roots=(root / "allowed",),
        requests_per_minute=10**9,
        upload_limit_bytes=2**28,
        validate_timeout_s=PATIENCE_S,
        register_timeout_s=PATIENCE_S,
    )
    try:
        with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as web:
            answer = web.post("/v1/models", json=documents.MODEL_JSON)
            assert answer.status_code == 201, answer.text
            yield Fuzzer(web, root, answer.json()["id"])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one upload")
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be repeated; all when left out")
    options = parser.parse_args()
    failed, end = 0, time.monotonic() + options.seconds
    with fuzzer() as fuzz:
        number = options.only if options.only is not None else 0
        while time.monotonic() < end:
            upload = fuzz.make(options.seed, number, tuple(options.kind or KINDS))
            for wrong in fuzz.send(upload):
                failed += 1
                print(f"{number} ({upload.name}): {wrong}", flush=True)
            if options.only is not None:
                break
            number += 1
        print(f"{sum(fuzz.answers.values())} uploads, seed {options.seed}: {failed} failures")
        for name, count in fuzz.answers.most_common():
            print(f"{count:6d} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
