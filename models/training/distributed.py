"""Training in several processes on this machine, one for each GPU.

A machine without a GPU trains in the calling process. Tests use two processes on the CPU.
"""

import functools
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from accelerate import Accelerator
from torch import multiprocessing
from torch.multiprocessing.spawn import start_processes

from models import throttle as pace
from models.throttle import Turn

AfterEpoch = Callable[[int, float], None]
POLL_S = 0.2


@dataclass(frozen=True)
class Processes:
    """The processes of one training.

    count: number of processes. cpu: True to use the CPU with the gloo backend instead of GPUs.
    """

    count: int
    cpu: bool

    def accelerator(self, index: int, port: int) -> Accelerator:
        """Return the accelerator of one process. index: of this process.

        port: where the processes meet, on 127.0.0.1.
        """
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE=str(self.count), **meeting)
        if self.cpu:
            return Accelerator(cpu=True)
        return Accelerator(mixed_precision="bf16" if torch.cuda.is_bf16_supported() else "fp16")


def on_gpus() -> Processes | None:
    """Return one process for each GPU; None if the machine has no GPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Processes(gpus, cpu=False) if gpus else None


def in_processes(
    where: Processes, work: Callable[..., None], arguments: tuple[Any, ...], after_epoch: AfterEpoch
) -> None:
    """Call work(*arguments, after_epoch, accelerator) in each process, and return when all processes have ended.

    after_epoch: called in this process with the reports (epoch, mean loss) of the main training process. If it raises,
    all training processes are killed.
    Raises: ProcessRaisedException with the traceback of the first process that failed.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    threads = max(1, torch.get_num_threads() // where.count)
    begin = functools.partial(
        _begin,
        where=where,
        port=_free_port(),
        threads=threads,
        turn=pace.current(),
        parent=there,
        work=work,
        arguments=arguments,
    )
    running = start_processes(
        begin,
        (),
        where.count,
        join=False,
        daemon=True,
        start_method="spawn",
    )
    try:
        while not running.join(timeout=0):
            if here.poll(POLL_S):
                after_epoch(*here.recv())
                here.send("go on")
    finally:
        for process in running.processes:
            process.kill()


def _begin(
    index: int,
    *,
    where: Processes,
    port: int,
    threads: int,
    turn: Turn,
    parent: "Connection[Any, Any]",
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Run in each training process.

    The main process takes turns with other work on this machine. After each epoch it waits until after_epoch has
    returned.
    """
    torch.set_num_threads(threads)
    accelerator = where.accelerator(index, port)

    def ask(epoch: int, loss: float) -> None:
        parent.send((epoch, loss))
        parent.recv()

    with pace.paced(turn if accelerator.is_main_process else nullcontext):
        work(*arguments, ask, accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
