"""Run one attempt of a job in a separate process: `python -m service.jobs.worker --data DIR --job ID --fence N`.

The runner (service/jobs/runner.py) starts this worker as the leader of a process group. A thread of the worker renews
the lease. When the server dies, or when the worker has lost the lease, the worker ends itself and every process that it
has started. The next attempt then continues the job.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from vitfit.report import JobResult

from models.errors import Canceled, VitfitError, error_from_json
from service.core import logs
from service.core.data_folder import DataFolder, JobFiles, artifacts_key
from service.core.disk_space import is_full
from service.core.errors import Away, InternalError
from service.core.hidden_paths import HiddenPaths
from service.core.limits import limit_in
from service.core.processes import DISK_FULL, LOST_JOB, signal_group
from service.core.retry import patiently
from service.core.settings import Settings
from service.db.tables import DatasetRow, JobRow, ModelRow, Store
from service.jobs.engine import load_run
from service.jobs.job_request import JobRequest
from service.jobs.journal import Fenced
from service.jobs.leases import Lease, Leases
from service.jobs.stored_journal import StoredJournal
from service.library.library import bundle_key
from service.storage.base import Storage
from service.storage.digests import check_digests
from service.storage.open_storage import open_storage

log = logging.getLogger("vitfit.worker")
RETRY_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the attempt, and return the exit status.

    0: the end of the job is stored, whether it has succeeded or not. 3: the job belongs to another worker. 4: the disk
    is full.
    """
    options = _parse(arguments)
    settings = Settings(data=options.data)
    settings.job_limits().apply()
    logs.set_up(settings.log_format)
    logs.bind(job_id=options.job)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # sys.exit lets `finally` clauses run
    if options.parent_pipe is not None:
        threading.Thread(target=die_with_parent, args=(options.parent_pipe,), daemon=True).start()
    folder = DataFolder(settings.data)
    store = Store(settings.database)
    leases, lease = Leases(store, settings.lease_s), Lease(options.job, options.fence)
    try:
        job = patiently(lambda: leases.job(lease), settings.patience_s)
        logs.bind(request_id=job.request_id)
        heartbeat = Heartbeat(leases, lease, settings.lease_s / 4)
        heartbeat.start()
        log.info("attempt %d of %s runs in process %d", job.attempt, job.id, os.getpid())
        outcome = _attempt(settings, folder, job, StoredJournal(leases, lease, settings.patience_s))
        heartbeat.stop()
        if isinstance(outcome, VitfitError):
            outcome = error_from_json(HiddenPaths.of(settings).value(outcome.to_json()))
        patiently(lambda: _store_outcome(leases, lease, outcome), settings.patience_s)
    except Fenced as lost:
        log.warning("%s", lost)
        return LOST_JOB
    except Exception as error:
        if not is_full(error):
            raise
        # Nothing can be stored now. The server starts the next attempt when the disk has free space again.
        log.error("the attempt ends because the disk is full: %s", error)
        return DISK_FULL
    finally:
        store.close()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="service.jobs.worker", description="Run one attempt of a job.")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the server")
    parser.add_argument("--job", required=True, help="id of a claimed job")
    parser.add_argument("--fence", type=int, required=True, help="fence of the attempt")
    parser.add_argument("--parent-pipe", type=int, help="file descriptor that closes when the server dies")
    return parser.parse_args(arguments)


def _attempt(settings: Settings, folder: DataFolder, job: JobRow, journal: StoredJournal) -> JobResult | VitfitError:
    """Run the engine and store the artifacts. Return the result of the job, or the error with which it ends.

    Raises: Fenced or Away; SystemExit after SIGTERM; any error that a full disk has caused.
    """
    storage = open_storage(settings)
    try:
        files = _files(settings, folder, storage, job)
        request = JobRequest.model_validate(job.request)
        journal.check()
        result = load_run(settings.engine)(
            request, files, journal, job.deliver_trial, allowed=settings.allowed_roots, cluster=settings.ray
        )
        journal.check()
        patiently(lambda: storage.put(artifacts_key(job.id), files.artifacts), settings.patience_s)
        return result
    except (Fenced, Away):  # the next attempt continues the job
        raise
    except VitfitError as error:
        if is_full(error):
            raise
        if (which := limit_in(error)) is not None:
            error = settings.job_limits().reached(which)
        log.info("the job ended with the error %s: %s", error.code, error)
        return error
    except Exception as error:
        if is_full(error):
            raise
        if (which := limit_in(error)) is not None:
            log.exception("the job has reached a limit")
            return settings.job_limits().reached(which)
        log.exception("the engine raised an unexpected error")
        return InternalError(
            f"The job ended because of a defect in vitfit ({type(error).__name__}: {error}). "
            "The log of the job has the details. Please report the defect."
        )


def _files(settings: Settings, folder: DataFolder, storage: Storage, job: JobRow) -> JobFiles:
    """Return the folders of the job. Model and data set are first copied to this machine if they are in a bucket.

    Raises: DamagedFile if one of their files has changed since the upload.
    """
    if job.model_id is None:
        raise InternalError("The model of the job was deleted. Upload the model again, and submit a new job.")
    keys = [bundle_key(ModelRow, job.model_id), *([bundle_key(DatasetRow, job.dataset_id)] if job.dataset_id else [])]
    model, *dataset = [patiently(lambda key=key: storage.folder(key), settings.patience_s) for key in keys]  # type: ignore[misc]
    for uploaded, noun in zip([model, *dataset], ("model", "data set"), strict=False):
        check_digests(uploaded, noun)
    return folder.job_files(job.id, model, dataset[0] if dataset else None)


def _store_outcome(leases: Leases, lease: Lease, outcome: JobResult | VitfitError) -> None:
    if isinstance(outcome, JobResult):
        leases.succeed(lease, outcome)
    elif isinstance(outcome, Canceled):
        leases.confirm_cancel(lease)
    else:
        leases.fail(lease, outcome)
    log.info("stored the end of the job")


class Heartbeat:
    """Renews a lease from a thread until `stop` is called. It ends the process when the lease is lost."""

    def __init__(self, leases: Leases, lease: Lease, pause_s: float) -> None:
        self._leases, self._lease, self._pause_s = leases, lease, pause_s
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop renewing the lease. The end of the job is stored now, so a lost lease must not end the process."""
        self._stopped.set()

    def _run(self) -> None:
        wait_s = 0.0  # the first heartbeat comes at once: it shortens the long lease of the start to the usual one
        while not self._stopped.wait(wait_s):
            wait_s = self._pause_s
            try:
                self._leases.heartbeat(self._lease)
            except Fenced as lost:
                if not self._stopped.is_set():
                    log.warning("%s", lost)
                    _end_group()
            except Exception:  # the database may answer next time
                log.exception("the lease could not be renewed; the worker tries again")
                wait_s = min(self._pause_s, RETRY_S)


def die_with_parent(pipe: int) -> None:
    """Wait for the end of the server, and then end this process.

    The server holds the other end of the pipe and never writes to it. The read therefore returns when the server ends.
    """
    os.read(pipe, 1)
    log.warning("the server has ended, so this process ends too")
    _end_group()


def _end_group() -> None:
    """Kill this process and every process that it has started."""
    if os.getpgrp() == os.getpid():
        signal_group(os.getpid(), signal.SIGKILL)
    os._exit(LOST_JOB)


if __name__ == "__main__":
    sys.exit(main())
