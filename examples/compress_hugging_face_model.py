"""Compress a Hugging Face model for a phone that is not here: its latency is predicted from a device profile.

    .venv/bin/vitfit serve --data vitfit-data --anonymous &
    .venv/bin/python examples/compress_hugging_face_model.py my-model --device pixel-6-large-fp32

`my-model` is a folder that `model.save_pretrained` has written. `vitfit devices` lists the devices.
"""

import argparse
import json
from pathlib import Path

from vitfit import Budget, Client, Report

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--device", default="generic-mobile")
parser.add_argument("--keep", type=float, default=0.7, help="latency divided by the original's latency")
parser.add_argument("--trials", type=int, default=32)
parser.add_argument("--server", default="http://127.0.0.1:8000")
parser.add_argument("--output", type=Path, default=Path("out-hugging-face"))
arguments = parser.parse_args()

with Client(arguments.server) as client:
    model = client.upload_model(arguments.folder.name, checkpoint=arguments.folder)
    budget = Budget("latency_keep", arguments.keep, device=arguments.device)
    *_, job = client.watch(client.submit(model, [budget], trials=arguments.trials))
    if job.result is None:
        raise SystemExit(job.error.detail if job.error else job.status)
    arguments.output.mkdir(exist_ok=True)
    for artifact in client.artifacts(job):
        client.download(job, artifact, arguments.output)

report = Report.from_json(json.loads((arguments.output / "report.json").read_text()))
print(f"guarantee: {report.guarantee}")
for outcome in report.budgets:
    print(f"{outcome.text}: {outcome.outcome}")
for block in report.blocks:
    print(f"{block.name}: {block.heads[0]} of {block.heads[1]} heads, {block.neurons[0]} of {block.neurons[1]} neurons")
