"""The backbone out of `vit_s_focus.onnx`: a trained DINOv2 ViT-S/14 at 224 pixels, as timm's own model.

The file holds the backbone and a small decoder. Its nodes keep the names of the modules, so each weight is found by the
node that reads it. The table of positions for 16 x 16 patches is read from a run of the file, because the file makes it
from a larger table.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import numpy_helper
from torch import Tensor, nn

NAME = "vit_small_patch14_dinov2"
SIDE, DEPTH = 224, 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMBEDDED, PATCHED = "/backbone/embeddings/Add_output_0", "/backbone/embeddings/Concat_1_output_0"
FEATURES = "/backbone/layernorm/Add_1_output_0"
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj.bias": "attention.output.dense.bias",
}
PRODUCTS = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}


def backbone(file: Path) -> nn.Module:
    """Return timm's model with the weights of the file. It gives the features of the class token, (n, 384).

    Raises: ValueError if its features differ from those of the file.
    """
    model = onnx.load(str(file))
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
    }
    read = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    embedded, patched, features = _values(model, images, [EMBEDDED, PATCHED, FEATURES])
    found = timm.create_model(NAME, img_size=SIDE, num_classes=0).eval()
    own = {
        "cls_token": weights["backbone.embeddings.cls_token"],
        "pos_embed": (embedded - patched)[:1],
        "patch_embed.proj.weight": weights["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weights["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weights["backbone.layernorm.weight"],
        "norm.bias": weights["backbone.layernorm.bias"],
    }
    for index in range(DEPTH):
        own |= {f"blocks.{index}.{key}": tensor for key, tensor in _block(weights, read, index).items()}
    found.load_state_dict(own)
    with torch.inference_mode():
        apart = float((found(images) - features[:, 0]).abs().max() / features[:, 0].abs().max())
    if not apart < 1e-4:
        raise ValueError(
            f"The features of the backbone differ from those of {file.name} by {apart:.1e} of the largest."
        )
    return found


def _block(weights: dict[str, Tensor], read: dict[str, str], index: int) -> dict[str, Tensor]:
    name, node = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/"
    found = {key: weights[name + stored] for key, stored in BLOCK.items()}
    for key, stored in PRODUCTS.items():
        found[f"{key}.weight"] = weights[read[f"{node}{stored}/MatMul"]].T
    made = [f"attention/attention/{part}" for part in ("query", "key", "value")]
    found["attn.qkv.weight"] = torch.cat([weights[read[f"{node}{part}/MatMul"]].T for part in made])
    found["attn.qkv.bias"] = torch.cat([weights[name + part.replace("/", ".") + ".bias"] for part in made])
    return found


def _values(model: onnx.ModelProto, images: Tensor, names: list[str]) -> list[Tensor]:
    """Return values inside the graph for some images."""
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    wanted.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(wanted.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {session.get_inputs()[0].name: images.numpy()})
    return [torch.from_numpy(np.asarray(value)) for value in values]
