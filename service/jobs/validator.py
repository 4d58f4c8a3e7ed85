"""Validates and describes a model, data set or job, in a child process.

The child is `python -m service.pipeline.validate_job`, or its counterpart in the fake engine. It is a separate process
because it needs torch. It reads one JSON object, writes one JSON object, and is killed when it takes too long.
"""

import asyncio
import json
import logging
import signal
from typing import Any

from models.errors import error_from_json
from service.core.errors import ValidationBroken, ValidationSlow
from service.core.processes import child_environment, signal_group

log = logging.getLogger("vitfit.service")


class Validator:
    """Runs at most `parallel` validation processes at a time, because each one holds a model in memory."""

    def __init__(self, command: tuple[str, ...], parallel: int = 2, environment: dict[str, str] | None = None) -> None:
        self._command, self._environment = command, environment
        self._slots = asyncio.Semaphore(parallel)

    async def describe(self, document: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Validate what `document` names, and return its description.

        timeout_s: upper limit in seconds, including the wait for a free slot.

        Raises: the VitfitError with which the validation rejected the document; ValidationSlow; ValidationBroken.
        """
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                answer = await self._ask(document)
        except TimeoutError:
            raise ValidationSlow(
                f"The validation was not finished within {timeout_s:g} s. Try again when the server is less busy.",
                seconds=timeout_s,
            ) from None
        if not answer["ok"]:
            raise error_from_json(answer["error"])
        description: dict[str, Any] = answer["description"]
        return description

    async def _ask(self, document: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=child_environment(self._environment),
        )
        try:
            output, complaints = await process.communicate(json.dumps(document).encode())
        finally:
            if process.returncode is None:  # too slow, or the server stops
                signal_group(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        return parsed(output, complaints, process.returncode)


def parsed(output: bytes, complaints: bytes, status: int | None) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(output)
        if status == 0 and ("description" if answer["ok"] else "error") in answer:
            return answer
    except (ValueError, KeyError, TypeError):
        pass
    log.error("the validation ended with exit status %s:\n%s", status, complaints.decode(errors="replace")[-4000:])
    hint = " The machine may have too little memory for it." if status == -signal.SIGKILL else ""
    raise ValidationBroken(
        f"The validation process failed (exit status {status}).{hint} The log of the server has the details."
    )
