"""Compress your fine-tuned timm model with your own pictures.

    .venv/bin/vitfit serve --data vitfit-data --anonymous &
    .venv/bin/python examples/compress_timm_model.py deit_tiny_patch16_224 mine.safetensors pictures --classes 5

`pictures` has one folder of pictures per class, in the order of the model's classes.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from vitfit import Budget, Client

parser = argparse.ArgumentParser()
parser.add_argument("architecture", help="timm's name of the model")
parser.add_argument("weights", type=Path, help=".safetensors or .pth")
parser.add_argument("pictures", type=Path)
parser.add_argument("--classes", type=int, required=True, help="number of classes of the fine-tuned model")
parser.add_argument("--keep", type=float, default=0.6, help="latency divided by the original's latency")
parser.add_argument("--trials", type=int, default=32)
parser.add_argument("--server", default="http://127.0.0.1:8000")
parser.add_argument("--output", type=Path, default=Path("out-timm"))
arguments = parser.parse_args()

with Client(arguments.server) as client, tempfile.TemporaryDirectory() as folder:
    model = client.upload_model(
        arguments.architecture, options={"num_classes": arguments.classes}, checkpoint=arguments.weights
    )
    archive = shutil.make_archive(f"{folder}/pictures", "zip", arguments.pictures)
    data = client.upload_dataset(archive)
    budget = Budget("latency_keep", arguments.keep, device="cpu", threads=1)
    job = client.submit(model, [budget], dataset=data, trials=arguments.trials)
    for state in client.watch(job):
        print(state.status, state.stage, f"{state.progress.trials_done} of {state.progress.trials_total} trials")
    job = client.get(job)
    if job.result is None:
        raise SystemExit(job.error.detail if job.error else job.status)
    for label, before, after in job.result.rows:
        print(f"{label:40} {before:32} {after}")
    arguments.output.mkdir(exist_ok=True)
    for artifact in client.artifacts(job):
        client.download(job, artifact, arguments.output)
