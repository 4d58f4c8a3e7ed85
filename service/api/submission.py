"""Submit a job: check its names, validate it, and put it into the queue, once for each Idempotency-Key."""

import asyncio
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from models.errors import InvalidRequest
from service.api.identity import Caller
from service.api.schemas import JobView, Validated
from service.core import logs
from service.core.errors import Conflict, KeyReused, ValidationSlow
from service.core.settings import Settings
from service.db.tables import DatasetRow, ModelRow
from service.jobs.engine import Catalog
from service.jobs.job_request import JobRequest
from service.jobs.job_store import Jobs, KeyTaken, NewJob
from service.jobs.quick_checks import check_counts
from service.jobs.validator import Validator
from service.library.library import Library


@dataclass(frozen=True)
class Submitted:
    """The result of a submission.

    job: the body of the response.
    replayed: True if an earlier request with the same Idempotency-Key created the job.
    """

    job: dict[str, Any]
    replayed: bool = False

    @property
    def job_id(self) -> str:
        return str(self.job["id"])


class Submissions:
    """Validates job requests and puts them into the queue."""

    def __init__(
        self, settings: Settings, jobs: Jobs, library: Library, catalog: Catalog, *, validator: Validator
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._library = library
        self._catalog = catalog
        self._validator = validator
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def validate(self, request: JobRequest, caller: Caller) -> Validated:
        """Validate a request and return the engine's description of it. Nothing is created.

        Raises: VitfitError if the request is rejected.
        """
        try:
            return Validated(valid=True, reason=None, description=await self._describe(request, caller))
        except ValidationSlow as slow:
            return Validated(valid=None, reason=slow.detail, description=None)

    async def submit(self, request: JobRequest, key: str | None, caller: Caller) -> Submitted:
        """Validate a request and queue it as a job.

        If the validation takes too long, the job is queued without it, because validation is also the first stage of a
        job. The quick checks always run.

        Raises: VitfitError if the request is rejected; KeyReused.
        """
        body = request.model_dump(mode="json")
        new = NewJob(body, caller.owner, key, _digest(body), request_id=logs.request_id())
        async with self._one_at_a_time(caller.owner, key):
            if earlier := await self._replay(new):
                return earlier
            with suppress(ValidationSlow):
                await self._describe(request, caller)
            return await self._create(new)

    async def deliver(self, job_id: str, trial: int, key: str | None, caller: Caller) -> Submitted:
        """Queue a child job that delivers another trial. Raises: NotFound, InvalidRequest, Conflict, KeyReused."""
        parent = await run_in_threadpool(self._jobs.get, job_id, caller.sees)
        known = await run_in_threadpool(self._jobs.trial_numbers, job_id)
        if trial not in known:
            raise InvalidRequest(
                f"Job {job_id} has no finished trial {trial}. It has {len(known)} finished trials. "
                f"GET /v1/jobs/{job_id}/trials lists them.",
                field="trial",
                value=trial,
            )
        if parent.model_id is None or (parent.request.get("dataset") and parent.dataset_id is None):
            raise Conflict(
                "The model or the data set of the job was deleted, so no other trial can be delivered. "
                "Upload it again, and submit a new job."
            )
        digest = _digest([parent.request, job_id, trial])
        new = NewJob(
            parent.request,
            caller.owner,
            key,
            digest,
            trials_of=job_id,
            deliver_trial=trial,
            request_id=logs.request_id(),
        )
        async with self._one_at_a_time(caller.owner, key):
            return await self._replay(new) or await self._create(new)

    async def _describe(self, request: JobRequest, caller: Caller) -> dict[str, Any]:
        await run_in_threadpool(self._catalog.check, request)
        model = await run_in_threadpool(self._library.path, ModelRow, request.model, caller.sees)
        row = await run_in_threadpool(self._library.get, ModelRow, request.model, caller.sees)
        check_counts(request.budgets, row.description)
        dataset = None
        if request.dataset is not None:
            dataset = str(await run_in_threadpool(self._library.path, DatasetRow, request.dataset, caller.sees))
        document = {"job": request.model_dump(mode="json"), "model": str(model), "dataset": dataset}
        allowed = [str(root) for root in self._settings.allowed_roots]
        return await self._validator.describe(
            {**document, "allowed": allowed}, self._settings.validate_timeout_s, caller.owner
        )

    async def _create(self, new: NewJob) -> Submitted:
        job = JobView.of(new.row()).model_dump(mode="json")
        try:
            await run_in_threadpool(self._jobs.create, new, job if new.idempotency_key else None)
        except KeyTaken:  # another server on the same database has created a job with this key
            if earlier := await self._replay(new):
                return earlier
            raise
        return Submitted(job)

    async def _replay(self, new: NewJob) -> Submitted | None:
        """Return the first response to this key, or None if the key is new.

        Raises: KeyReused if the key was used for a different request.
        """
        if new.idempotency_key is None:
            return None
        row = await run_in_threadpool(self._jobs.with_key, new.owner, new.idempotency_key)
        if row is None or row.first_answer is None:
            return None
        if row.request_digest != new.request_digest:
            raise KeyReused(
                f"This Idempotency-Key was already used for job {row.id} with a different request. Use a new key.",
                job=row.id,
            )
        return Submitted(row.first_answer, replayed=True)

    def _one_at_a_time(self, owner: str, key: str | None) -> asyncio.Lock:
        """Return a lock that the requests of one person with the same key share. Only the first of them is validated.

        The lock only saves work. Uniqueness is guaranteed by the constraint in the database.
        """
        if key is None:
            return asyncio.Lock()
        lock = self._locks.get((owner, key))
        if lock is None:
            lock = self._locks[owner, key] = asyncio.Lock()
        return lock


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
