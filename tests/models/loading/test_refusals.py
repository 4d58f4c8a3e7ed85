"""Tests of files whose readers fail: each refusal says what is wrong, and names no path of the machine."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from benchmarks.hostile.exhausting import HUB_CONFIGS
from models.errors import InvalidRequest, TooLarge, UnsafeFile, VitfitError
from models.loading.load_model import open_model
from models.offline import NoNetwork, offline

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

VIT: dict[str, Any] = {
    **{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    **{"image_size": 16, "patch_size": 8, "num_labels": 3},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Hugging Face model."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).save_pretrained(folder)
    return folder


def zipped(folder: Path, saved: Path, files: dict[str, Any]) -> Path:
    """Return a model folder with a zip of the saved model, in which some JSON files are replaced or changed."""
    inside = folder / "inside"
    shutil.copytree(saved, inside)
    for name, content in files.items():
        old = json.loads((inside / name).read_text()) if (inside / name).exists() else {}
        (inside / name).write_text(content if isinstance(content, str) else json.dumps({**old, **content}))
    shutil.make_archive(str(folder / "model"), "zip", inside)
    shutil.rmtree(inside)
    (folder / "model.json").write_text(json.dumps({"name": "mine"}))
    return folder


def refusal(folder: Path) -> VitfitError:
    with pytest.raises(VitfitError) as refused:
        open_model(folder)
    text = refused.value.detail + json.dumps(refused.value.facts)
    assert "/tmp" not in text and str(folder) not in text
    return refused.value


DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"hidden_size": "x"}}, "'hidden_size' is x. It must be a finite number"),
        ({"config.json": {"image_size": float("nan")}}, "'image_size' is nan. It must be a finite number"),
        ({"config.json": {"num_channels": "3"}}, "'num_channels' is 3. It must be a finite number"),
        ({"config.json": {"num_hidden_layers": 10**6}}, "'num_hidden_layers' is 1000000"),
        ({"config.json": {"num_labels": 10**9}}, "'num_labels' is 1000000000"),
        ({"config.json": {"architectures": {"a": 1}}}, "'architectures' is {'a': 1}. It must be a list"),
        ({"config.json": {"architectures": ["logging"]}}, "'logging', which is no model of transformers"),
        ({"config.json": {"torch_dtype": "nonsense", "dtype": "nonsense"}}, "nonsense"),
        ({"config.json": {"dtype": [1]}}, "config.json"),
        ({"config.json": {"hidden_act": 7}}, "config.json"),
        ({"config.json": DEEP}, "vitfit cannot read config.json"),
        ({"config.json": "[1]"}, "config.json must hold a JSON object"),
        ({"preprocessor_config.json": {"resample": [1]}}, "preprocessor_config.json"),
        ({"preprocessor_config.json": {"size": {"height": "x", "width": 16}}}, "'size.height' is x"),
        ({"preprocessor_config.json": {"size": {"height": 16}}}, "preprocessor_config.json"),
        ({"preprocessor_config.json": {"rescale_factor": 0}}, "preprocessor_config.json"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_strange_description_is_refused_with_its_reason(
    tmp_path: Path, saved: Path, files: dict[str, Any], words: str
) -> None:
    error = refusal(zipped(tmp_path, saved, files))
    assert words in error.detail
    assert error.code in ("invalid-request", "damaged-file", "unsupported-model", "checkpoint-mismatch")


def test_parameters_are_counted_before_transformers_takes_memory(tmp_path: Path, saved: Path) -> None:
    wide = {"hidden_size": 16384, "num_hidden_layers": 800, "num_attention_heads": 16, "intermediate_size": 65536}
    assert isinstance(refusal(zipped(tmp_path, saved, {"config.json": wide})), TooLarge)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A server in place of the hub, and what it was asked."""
    from huggingface_hub import constants

    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(200))
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("kind", list(HUB_CONFIGS))
def test_a_configuration_that_names_another_repository_asks_no_hub(
    tmp_path: Path, saved: Path, hub: list[bytes], kind: str
) -> None:
    error = refusal(zipped(tmp_path, saved, {"config.json": json.dumps(HUB_CONFIGS[kind])}))
    assert error.code in ("unsafe-file", "unsupported-model", "checkpoint-mismatch")
    assert hub == []


def test_while_an_upload_is_read_no_connection_is_made_but_by_older_threads(hub: list[bytes]) -> None:
    from huggingface_hub import constants

    address = ("127.0.0.1", int(constants.ENDPOINT.rpartition(":")[2]))
    begin, ended = threading.Event(), threading.Event()
    free: list[Any] = []

    def connect(results: list[Any]) -> None:
        try:
            with socket.create_connection(address) as made:
                made.sendall(b"hello")
                results.append(made.recv(8))
        except OSError as error:
            results.append(error)

    def older() -> None:
        begin.wait()
        connect(free)
        ended.set()

    threading.Thread(target=older, daemon=True).start()
    with offline():
        inside: list[Any] = []
        connect(inside)
        with pytest.raises(NoNetwork), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(b"x", ("127.0.0.1", 9))
        with pytest.raises(NoNetwork):
            socket.getaddrinfo("hub.test", 80)
        later = threading.Thread(target=connect, args=(inside,))
        later.start()
        later.join()
        one, other = socket.socketpair()
        with one, other:
            one.sendall(b"y")
        begin.set()
        ended.wait()
    assert len(inside) == 2 and all(isinstance(found, NoNetwork) for found in inside)
    assert free == [b"HTTP/1.1"] and hub == [b"hello"]
    connect(inside)
    assert inside[-1] == b"HTTP/1.1", "after the block, the network is there again"


def test_a_model_of_timm_may_ask_the_hub_for_its_own_weights(
    tmp_path: Path, hub: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "model.json").write_text(json.dumps({"name": "vit_tiny_patch16_224", "pretrained": True}))
    with pytest.raises(InvalidRequest, match="could not download the pre-trained weights"):
        open_model(tmp_path)
    assert hub and all(b"timm/vit_tiny_patch16_224" in line for line in hub)
    (tmp_path / "model.json").write_text(json.dumps({"name": "hf-hub:evil/repo", "pretrained": True}))
    before = len(hub)
    with pytest.raises(InvalidRequest, match="does not exist"):
        open_model(tmp_path)
    assert len(hub) == before


@pytest.mark.parametrize(
    "option",
    [
        {"num_classes": -1},
        {"reg_tokens": 2**20},
        {"embed_dim": 2**20},
        {"depth": 10**6},
        {"depths": [600, 600]},
        {"num_heads": "x" * 10},
    ],
    ids=str,
)
def test_options_that_no_model_has_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    name = "swin_tiny_patch4_window7_224" if "depths" in option else "vit_tiny_patch16_224"
    (tmp_path / "model.json").write_text(json.dumps({"name": name, "options": option}))
    assert isinstance(refusal(tmp_path), InvalidRequest)


def onnx_model(change: Callable[[onnx.ModelProto], None] = lambda model: None, weight: str = "w") -> onnx.ModelProto:
    """A product with weights behind a mean over the image."""
    values = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["mean", weight], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(values, weight)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    change(model)
    return model


def _weights(value: float) -> Callable[[onnx.ModelProto], None]:
    values = np.full((3, 2), value, dtype=np.float32)
    return lambda model: model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))


def _wrong_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "NoSuchOperator"


def _wrong_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((5, 2), dtype=np.float32), "w"))


def _short_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 4_000


def _missing_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[1] = "nowhere"


def _elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="data.bin")
    tensor.external_data.add(key="offset", value="-5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_weights(float("nan")), "NaN or infinite weights"),
        (_weights(float("inf")), "NaN or infinite weights"),
        (_wrong_operator, "NoSuchOperator"),
        (_wrong_shape, "ONNX Runtime"),
        (_short_weights, "vitfit cannot read the ONNX file"),
        (_missing_input, "nowhere"),
        (_elsewhere, "data.bin"),
    ],
)
def test_a_damaged_onnx_file_is_refused_with_its_reason(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_model(change).SerializeToString())
    (tmp_path / "model.json").write_text(json.dumps({"name": "mine"}))
    assert words in refusal(tmp_path).detail


@pytest.mark.parametrize("name", ["class", "lambda", "None", "forward", "a b", "__init__", "7"])
def test_weights_of_an_onnx_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    from models.graph.onnx.reader import read_onnx

    onnx.save(onnx_model(weight=name), tmp_path / "model.onnx")
    found = read_onnx(tmp_path / "model.onnx").graph(torch.ones(11, 3, 8, 8))
    assert found.shape == (11, 2) and found[0].tolist() == pytest.approx([-0.6, 0.6], abs=1e-5)


def test_infinity_in_a_mask_is_no_damaged_weight(tmp_path: Path) -> None:
    from models.graph.onnx.prepare import load

    model = onnx_model()
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 2), -np.inf, dtype=np.float32), "mask"))
    model.graph.node.append(helper.make_node("Add", ["logits", "mask"], ["masked"]))
    onnx.save(model, tmp_path / "model.onnx")
    assert len(load(tmp_path / "model.onnx").graph.node) == 3


def test_code_of_a_repository_is_never_asked_for(tmp_path: Path, saved: Path, hub: list[bytes]) -> None:
    files = {"config.json": {"auto_map": {"AutoModel": "evil/repo--modeling.Model"}}}
    assert isinstance(refusal(zipped(tmp_path, saved, files)), UnsafeFile)
    assert hub == []


def test_nan_in_safetensors_is_refused_when_a_job_opens_them(tmp_path: Path) -> None:
    from models.loading.load_model import untrained

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    weights = untrained("vit_tiny_patch16_224", **options).module.state_dict()
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], float("nan"))
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "weights.safetensors")
    (tmp_path / "model.json").write_text(json.dumps({"name": "vit_tiny_patch16_224", "options": options}))
    assert "NaN or infinite weights in the tensor norm.weight" in refusal(tmp_path).detail
