"""Compress an ONNX file to several budgets, and compare the results.

    .venv/bin/vitfit serve --data vitfit-data --anonymous &
    .venv/bin/python examples/compress_onnx_file.py model.onnx --keep 0.8 0.6

vitfit needs no data. With pictures (`--pictures pictures.zip`, labels optional) the result is better, and vitfit scores
it.
"""

import argparse
from pathlib import Path

from vitfit import Budget, Client

parser = argparse.ArgumentParser()
parser.add_argument("file", type=Path)
parser.add_argument("--pictures", type=Path, help=".zip, .tar or .npz")
parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6], help="MACs divided by the original's MACs")
parser.add_argument("--trials", type=int, default=32)
parser.add_argument("--server", default="http://127.0.0.1:8000")
arguments = parser.parse_args()

with Client(arguments.server) as client:
    model = client.upload_model(arguments.file.stem, checkpoint=arguments.file)
    data = client.upload_dataset(arguments.pictures) if arguments.pictures else None
    jobs = [
        client.submit(model, [Budget("macs_keep", keep)], dataset=data, trials=arguments.trials, name=f"{keep}")
        for keep in arguments.keep
    ]
    for job in jobs:
        *_, job = client.watch(job)
        if job.result is None or job.result.delivered is None:
            raise SystemExit(job.error.detail if job.error else job.status)
        macs = job.result.delivered.macs / 1e6
        file = client.download(job, "model.onnx", Path(f"model-{job.name}.onnx"))
        print(f"{job.name} of the MACs: {macs:,.0f} M MACs, {file}")
