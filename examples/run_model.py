"""Run a delivered ONNX file on pictures. It needs onnxruntime, numpy and pillow only.

    .venv/bin/python examples/run_model.py out-timm/model.cpu.onnx cat.jpg dog.jpg

The metadata of the file say how to prepare a picture.
"""

import json
import math
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
wanted = {
    name.removeprefix("preprocessing."): json.loads(text)
    for name, text in metadata.items()
    if name.startswith("preprocessing.")
}
channels, height, width = wanted["size"]


def prepare(path: str) -> np.ndarray:
    """Resize, crop and normalise one picture. Return float32 (channels, height, width)."""
    picture = Image.open(path).convert("L" if channels == 1 else "RGB")
    resized = [math.floor(side / wanted["crop"]) for side in (width, height)]
    if wanted["crop_mode"] == "center":
        scale = min(picture.width / resized[0], picture.height / resized[1])
        resized = [round(picture.width / scale), round(picture.height / scale)]
    picture = picture.resize((resized[0], resized[1]), Image.Resampling[wanted["interpolation"].upper()])
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32).reshape(height, width, -1)
    if wanted.get("channel_order") == "bgr":
        pixels = pixels[:, :, ::-1]
    return ((pixels / 255 - np.float32(wanted["mean"])) / np.float32(wanted["std"])).transpose(2, 0, 1)


for path in sys.argv[2:]:
    (outputs,) = session.run(None, {session.get_inputs()[0].name: prepare(path)[None]})
    print(path, "class", int(outputs[0].argmax()))
