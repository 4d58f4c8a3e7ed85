"""Training of the model for a task of rendered scenes. A stopped training resumes after its last epoch.

    python -m benchmarks.scenes.train --task clutter --output benchmarks/clutter --checkpoint /tmp/clutter.pt

Cost: EPOCHS x SCENES new scenes. For clutter this takes about 75 minutes on 2 cores of an AMD EPYC (Zen 5). It takes
minutes on an accelerator, which is used if torch finds one. The difficulty grows from 0 to 1 over the first part of the
training. The script writes model.json, weights.safetensors (float16) and training.json. The accuracy on the test scenes
is in training.json.
"""

import argparse
import datetime
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.scenes.task import COUNTS, TASKS, Task
from models.data.preprocessing import Preprocessing

EPOCHS, SCENES, BATCH = 40, 20_000, 128
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.03
CURRICULUM = 0.4
"""Share of the training at which difficulty 1 is reached. About a fifth of the scenes is easier than the current
difficulty."""


def difficulty(progress: float, count: int, draw: torch.Generator) -> Tensor:
    """Return the difficulty of `count` scenes, (count,).

    progress: the share of the training that is done, in [0, 1].
    """
    level = min(1.0, progress / CURRICULUM)
    easier = torch.rand(count, generator=draw) * level
    return torch.where(torch.rand(count, generator=draw) < 0.2, easier, torch.full((count,), level))


def prepared(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert uint8 (n, H, W, C) to float32 (n, C, H, W), normalised with the mean and std that the model needs."""
    return (images.permute(0, 3, 1, 2).float() / 255 - preprocessing.mean[0]) / preprocessing.std[0]


def learning_rate(progress: float) -> float:
    if progress < WARMUP:
        return LEARNING_RATE * progress / WARMUP
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, epoch: int, *, epochs: int, seed: int
) -> float:
    """Train for one pass over new scenes, which depend only on seed and epoch. Return the mean loss."""
    device = next(model.parameters()).device
    shown, draw = task.characters("train").to(device), torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    model.train()
    steps, total = SCENES // BATCH, 0.0
    for step in range(steps):
        progress = (epoch + step / steps) / epochs
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        hard = difficulty(progress, BATCH, draw).to(device)
        images, labels = task.draw(shown, BATCH, hard, int(torch.randint(2**31, (1,), generator=draw)))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(prepared(images, task.preprocessing)).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    return total / steps


@torch.inference_mode()
def accuracy(model: nn.Module, task: Task, split: str) -> float:
    """Return the share of correct answers on a split."""
    model.eval()
    device, (images, labels) = next(model.parameters()).device, task.split(split)
    right = 0
    for part, truth in zip(images.split(250), labels.split(250), strict=True):
        right += int((model(prepared(part.to(device), task.preprocessing)).argmax(1).cpu() == truth).sum())
    return right / len(labels)


def train(task: Task, checkpoint: Path, *, epochs: int, seed: int, device: torch.device) -> tuple[nn.Module, float]:
    """Train the model, and write the checkpoint after every epoch.

    Return the trained model and the seconds that its training took, over all runs.
    """
    model = task.model(seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    done, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["epochs"], state["seconds"]
    for epoch in range(done, epochs):
        started = time.perf_counter()
        loss = train_epoch(model, optimizer, task, epoch, epochs=epochs, seed=seed)
        seconds += time.perf_counter() - started
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epochs": epoch + 1,
            "seconds": seconds,
        }
        beside = checkpoint.with_suffix(".part")
        torch.save(state, beside)
        os.replace(beside, checkpoint)
        share = accuracy(model, task, "selection")
        print(f"epoch {epoch + 1}/{epochs} loss {loss:.4f} selection {100 * share:.2f} % {seconds:.0f} s", flush=True)
    return model, seconds


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="clutter")
    parser.add_argument("--output", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what an interrupted training goes on from")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores, {platform.machine()}", help="noted, not used")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = TASKS[options.task]
    model, seconds = train(task, options.checkpoint, epochs=options.epochs, seed=options.seed, device=device)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: v.half().cpu().contiguous() for n, v in model.state_dict().items()}, folder / "weights.safetensors")
    description = {"name": task.name, "options": task.options, "pretrained": False}
    read = {"preprocessing": task.preprocessing.to_json(), "classes": list(task.classes)}
    _write_json(folder / "model.json", description | read)
    stored = task.model(0)  # as a user gets it: float16 in the file, float32 in memory
    stored.load_state_dict({n: v.float() for n, v in load_file(folder / "weights.safetensors").items()})
    share = accuracy(stored, task, "test")
    report = {
        "seed": options.seed,
        "epochs": options.epochs,
        "scenes_per_epoch": SCENES,
        "threads": options.threads,
        "device": device.type,
        "training_s": round(seconds),
        "sources": task.sources,
        "test": {"accuracy": share, "correct": round(share * COUNTS["test"]), "images": COUNTS["test"]},
        "machine": options.machine,
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    _write_json(folder / "training.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
