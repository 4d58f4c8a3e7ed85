"""The server's side of the agents that measure on remote devices.

An agent registers its device, asks for tasks, fetches the files of a task, and sends its measurements. It can fetch
only the ONNX files of a task (and images as .npy), each by its SHA-256. Its samples are checked before a job sees them.
"""

import asyncio
import json
import math
import re
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from vitfit.agent import PROTOCOL

from latency.devices.devices import AGENT
from latency.devices.mailbox import Mailbox, Task
from models.atomic_write import write_whole
from models.errors import InvalidRequest
from service.core.errors import Conflict, NotFound

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
LOOK_S = 0.1
"""Seconds between two checks for a new task while an agent's request waits."""
MOST_AGENTS = 500
"""Upper limit on devices with an agent. Everybody gets the whole list of devices."""
MOST_OF_ONE = 20
"""The default for the upper limit on the devices of one access token."""
LEAST_MS, MOST_MS = 1e-4, 1e7


class AgentRequest(BaseModel):
    """The description of a device, sent by the agent that runs on it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "pi-5",
                "protocol": 1,
                "version": "0.1.0",
                "machine": "Cortex-A76",
                "threads": 4,
                "runtime": "onnxruntime 1.22.0",
                "providers": ["CPUExecutionProvider"],
            }
        },
    )
    name: str = Field(
        max_length=40,
        description="Name with lower-case letters, digits and dashes. The server calls the device agent-NAME.",
    )
    protocol: int = Field(
        description="Version of the protocol that the agent uses. The server accepts only its own version."
    )
    version: str = Field(max_length=40, description="Version of vitfit on the device.")
    machine: str = Field(min_length=1, max_length=200, description="Name of the processor.")
    threads: int = Field(ge=1, le=1024, description="Number of cores that the agent may use.")
    runtime: str = Field(min_length=1, max_length=100, description="Name and version of ONNX Runtime on the device.")
    providers: list[Annotated[str, StringConstraints(max_length=100)]] = Field(
        min_length=1, max_length=32, description="Execution providers of ONNX Runtime on the device."
    )


class Registered(BaseModel):
    device: str
    session: str = Field(
        description="Id of this registration. The agent sends it with every further request. "
        "It becomes invalid when another agent registers under this name."
    )


class MeasuringAnswer(BaseModel):
    """Either latency samples in ms or the reason why there are none.

    The samples are indexed by file, round, and run within a burst.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"samples_ms": [[[1.0, 1.1]], [[0.6, 0.61]]]}}
    )
    samples_ms: list[list[list[float]]] | None = Field(
        None, description="Latency samples in ms, by file, round and run. null if `refused` has the reason."
    )
    refused: str | None = Field(None, max_length=1000, description="Why the agent could not measure.")


class Agents:
    def __init__(self, folder: Path, most_of_one: int = MOST_OF_ONE) -> None:
        """folder: the folder of the devices that users have added. most_of_one: limit for one access token."""
        self._folder, self._most_of_one = folder, most_of_one
        self._adding = threading.Lock()
        """Held while a device is counted and added, because requests run in several threads."""

    def register(self, request: AgentRequest, owner: str) -> Registered:
        """Add the device of an agent, or take it over from the previous agent of that name.

        owner: name of the agent's access token. The device belongs to it from now on.
        Raises: InvalidRequest for an invalid name; Conflict if the name belongs to another access token or machine, if
            the agent uses another protocol version, or if there are `MOST_AGENTS` devices already, or too many of this
            access token.
        """
        if request.protocol != PROTOCOL:
            raise Conflict(
                f"This agent (vitfit {request.version}) uses protocol {request.protocol}, but the server uses protocol "
                f"{PROTOCOL}. Install the same version of vitfit on both machines.",
                protocol=request.protocol,
                allowed=[PROTOCOL],
            )
        if not NAME.fullmatch(request.name):
            raise InvalidRequest(
                f"The name {request.name!r} is not allowed. Use 1 to 40 lower-case letters, digits and dashes. "
                "The first and the last character must not be a dash.",
                field="name",
                value=request.name,
            )
        device = f"{AGENT}-{request.name}"
        path = self._folder / f"{device}.json"
        document = {"name": device, "kind": AGENT, "owner": owner, **request.model_dump(exclude={"name", "protocol"})}
        with self._adding:
            if path.exists():
                self._require_same(json.loads(path.read_text()), document)
            else:
                self._require_place(owner)
            write_whole(path, json.dumps(document, indent=1))
        return Registered(device=device, session=Mailbox(path.with_suffix("")).open_session())

    def _require_place(self, owner: str) -> None:
        """Require that the server takes another device, and that one access token does not take all places."""
        known = [json.loads(path.read_text()) for path in self._folder.glob(f"{AGENT}-*.json")]
        if len(known) >= MOST_AGENTS:
            raise Conflict(
                f"This server has {MOST_AGENTS} devices with an agent, and takes no more. Delete one that is no longer"
                " used: vitfit delete-device NAME.",
                allowed=MOST_AGENTS,
            )
        mine = sorted(device["name"] for device in known if device.get("owner") == owner)
        if len(mine) >= self._most_of_one:
            raise Conflict(
                f"This access token has {len(mine)} devices with an agent, such as {mine[0]}, and may have at most "
                f"{self._most_of_one}. Delete one that is no longer used (vitfit delete-device NAME), use another "
                "access token, or ask the operator for a larger VITFIT_MOST_AGENTS.",
                allowed=self._most_of_one,
            )

    def _require_same(self, known: dict[str, Any], now: dict[str, Any]) -> None:
        """Require the same access token, machine and runtime as before.

        Stored latencies refer to the device by its name, and jobs send their files to it.
        """
        if known.get("owner", now["owner"]) != now["owner"]:
            raise Conflict(
                f"The device {known['name']} belongs to another access token. Use the access token that registered it,"
                f" use another name, or delete the device first: vitfit delete-device {known['name']}.",
            )
        for field in ("machine", "runtime"):
            if known[field] != now[field]:
                raise Conflict(
                    f"The device {known['name']} was registered with {field} {known[field]!r}, but this agent has "
                    f"{now[field]!r}. Use another name, or delete the device first: "
                    f"vitfit delete-device {known['name']}.",
                    field=field,
                    known=known[field],
                )

    def mailbox(self, device: str, session: str) -> Mailbox:
        """Return the mailbox of a device and record that its agent is alive.

        Raises: NotFound; Conflict if another agent has registered under this name since.
        """
        known = [path.stem for path in self._folder.glob(f"{AGENT}-*.json")]
        if device not in known:
            raise NotFound("agent", device, known)
        mailbox = Mailbox(self._folder / device)
        if not mailbox.is_open(session):
            raise Conflict(
                f"Another agent has registered as {device}, so the session of this agent is no longer valid. "
                "Start this agent under another name."
            )
        mailbox.heard()
        return mailbox

    async def task(self, mailbox: Mailbox, wait_s: float) -> Task | None:
        """Wait for a task and return the oldest one; None if there is none within `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while (found := await asyncio.to_thread(mailbox.oldest)) is None and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        return found

    def reply(self, mailbox: Mailbox, task_id: str, answer: MeasuringAnswer) -> None:
        """Pass an agent's answer to the job that waits for it.

        Raises: NotFound if no job waits for this task any more; InvalidRequest for implausible samples. In that case
            the job is told too, and ends.
        """
        task = mailbox.find(task_id)
        if task is None:
            raise NotFound("task", task_id, [])
        if answer.refused is not None or answer.samples_ms is None:
            mailbox.reply(task_id, {"refused": answer.refused or "the agent gave neither samples nor a reason"})
            return
        if wrong := _wrong_samples(task, answer.samples_ms):
            mailbox.reply(task_id, {"refused": f"the server rejected the samples of the agent: {wrong}"})
            raise InvalidRequest(f"The server rejected the samples: {wrong}.", field="samples_ms")
        mailbox.reply(task_id, {"samples_ms": answer.samples_ms})


def _wrong_samples(task: Task, samples: list[list[list[float]]]) -> str | None:
    files, rounds = len(task.request["files"]), int(task.request["rounds"])
    if len(samples) != files:
        return f"the number of files is {len(samples)}, but the task has {files} files"
    if len({len(of_file) for of_file in samples}) != 1 or len(samples[0]) < rounds:
        return (
            f"one file has {min(map(len, samples))} rounds, but all files need the same number of rounds, "
            f"at least {rounds}"
        )
    bursts = [burst for of_file in samples for burst in of_file]
    if not all(bursts):
        return "a round has no runs"
    if any(len({len(burst) for burst in of_file}) != 1 for of_file in samples):
        return "the rounds of one file have different numbers of runs"
    odd = [value for burst in bursts for value in burst if not (math.isfinite(value) and LEAST_MS <= value <= MOST_MS)]
    return f"one run took {odd[0]} ms, but {LEAST_MS:g} to {MOST_MS:g} ms are allowed" if odd else None
