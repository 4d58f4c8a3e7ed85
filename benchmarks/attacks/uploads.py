"""Attacks by uploaded files: memory, time, disk, the network, and refusals without a reason."""

import concurrent.futures
import io
import json
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np

from benchmarks.attacks.target import Open, Target, expect
from benchmarks.hostile.exhausting import HUB_CONFIGS, endless_key

VIT: dict[str, Any] = {
    **{"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8, "num_labels": 3},
}
REFUSED = (400, 413, 422)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def model(web: httpx.Client, filename: str, content: bytes, config: dict[str, Any] | None = None) -> httpx.Response:
    parts = {"config": json.dumps(config or {"name": "mine"})}
    return web.post("/v1/models", data=parts, files={"checkpoint": (filename, content)})


def hugging_face(web: httpx.Client, **changes: Any) -> httpx.Response:
    return model(web, "model.zip", zipped({"config.json": json.dumps({**VIT, **changes}).encode()}))


def dataset(web: httpx.Client, filename: str, content: bytes) -> httpx.Response:
    return web.post("/v1/datasets", files={"file": (filename, content)})


def good_arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((64, 8, 8, 1), dtype=np.uint8))
    return buffer.getvalue()


def memory(target: Target) -> str:
    """An npz whose header says 3.5 GiB, and a network of 150 GB."""
    header = b" " * (200 * 2**20)
    npy = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    with target.client("eve") as web:
        expect(dataset(web, "a.npz", zipped({"images.npy": npy})), REFUSED, "npz header")
        wide = hugging_face(
            web, hidden_size=16384, num_hidden_layers=12, num_attention_heads=16, intermediate_size=65536
        )
        expect(wide, REFUSED, "network of 150 GB")
    return "413 and 422 before memory is taken"


def hub(target: Target) -> str:
    """Configurations that name repositories of the uploader's choice. The server was started with our hub."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", HUB_PORT)) as listener:
        threading.Thread(target=_listen, args=(listener, asked), daemon=True).start()
        with target.client("eve") as web:
            for name, config in HUB_CONFIGS.items():
                answer = hugging_face(web, **config)
                if answer.status_code >= 500:
                    raise Open(f"{name}: {answer.status_code}")
    if asked:
        raise Open(f"the hub was asked: {asked[0][:60]!r}")
    return "refused, and nothing left the machine"


HUB_PORT = 18765


def _listen(listener: socket.socket, asked: list[bytes]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            asked.append(connection.recv(200))


def starving(target: Target) -> str:
    """Four uploads that take all time, by eve. Bob's good file must be taken before they end."""
    long = io.BytesIO()
    with tarfile.open(fileobj=long, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"comment": "0" * 1_200_000}
        file.addfile(info, io.BytesIO(b""))
    with target.client("eve") as eve, target.client("bob") as bob, concurrent.futures.ThreadPoolExecutor(4) as pool:
        name = {"name": "vit_tiny_patch16_224", "options": {"num_classes": 3}}
        slow = [pool.submit(model, eve, "weights.pth", endless_key(), name) for _ in range(2)]
        slow += [pool.submit(dataset, eve, "a.tar", long.getvalue())]
        slow += [pool.submit(hugging_face, eve, num_hidden_layers=10**6)]
        time.sleep(2)
        began = time.monotonic()
        answer = dataset(bob, "a.npz", good_arrays())
        seconds = time.monotonic() - began
        expect(answer, (201,), "bob's file while eve attacks")
        for one in slow:
            expect(one.result(), (*REFUSED, 503), "an upload that takes all time")
    return f"bob's file is taken after {seconds:.0f} s"


def quota(target: Target) -> str:
    """Eight uploads of 15 MB that do not tell their length, with a quota for fewer."""

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'
        for _ in range(15):
            yield bytes(2**20)
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    with target.client("eve") as web:
        answers = [web.post("/v1/datasets", content=pieces(), headers=kind).status_code for _ in range(8)]
    kept = sum(path.stat().st_size for path in target.data.rglob("*") if path.is_file())
    if kept > QUOTA_BYTES:
        raise Open(f"{kept:,} bytes are kept; the quota is {QUOTA_BYTES:,}")
    return f"answers {sorted(set(answers))}, {kept // 10**6} MB are kept"


QUOTA_BYTES = 60 * 10**6


def unpacking(target: Target) -> str:
    """A small zip of large pictures."""
    blank = bytes(40 * 2**20)
    with target.client("eve") as web:
        answer = dataset(web, "a.zip", zipped({f"{n}.bmp": blank for n in range(3)}))
    expect(answer, (*REFUSED, 507), "zip of 120 MB")
    left = [path for path in (target.data / "uploads").rglob("*") if path.is_file()]
    if left:
        raise Open(f"it left {left[0].name}")
    return f"{answer.status_code}, and nothing is left"


def refusals(target: Target) -> str:
    """Files that once ended in 500, or in a refusal that names a path."""
    odd: list[dict[str, Any]] = [
        {"hidden_size": "x"},
        {"image_size": float("nan")},
        {"num_channels": "3"},
        {"torch_dtype": "nonsense"},
        {"architectures": {"a": 1}},
        {"num_labels": -1},
    ]
    arrays = [b"\x93NUMPY\x01\x00\x10\x00{'descr': 'x'}   ", b"\x93NUMPY\x09\x00\x10\x00", b"\x93NUMPY"]
    with target.client("ann") as web:
        for config in odd:
            expect(hugging_face(web, **config), REFUSED, f"config {config}")
        for content in arrays:
            expect(dataset(web, "a.npz", zipped({"images.npy": content})), REFUSED, "npz header")
        expect(model(web, "model.onnx", b"\x08\x07no file"), REFUSED, "a file that is no ONNX")
        climbing = zipped({"../../etc/passwd": b"x", "a.png": b"x"})
        expect(dataset(web, "a.zip", climbing), REFUSED, "a name that climbs out")
        for options in ({"num_classes": -1}, {"reg_tokens": 2**20}):
            body = {"name": "vit_tiny_patch16_224", "options": options, "pretrained": False}
            expect(web.post("/v1/models", json=body), REFUSED, f"options {options}")
    return f"{len(odd) + len(arrays) + 4} files, each with a reason and no path"
