"""One attempt at one job, in a process of its own: `python -m service.jobs.worker --data DIR --job ID --fence N`.

The runner starts it (service/jobs/runner.py) as the leader of a process group. It renews its lease from a thread. It ends, with
everything that it has started, when its server dies or when it has lost the job; both leave the job to the next attempt.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from vitfit.report import JobResult

from models.errors import Canceled, VitfitError
from service.core import logs
from service.core.data_folder import DataFolder, JobFiles, artifacts_key
from service.core.disk_space import is_full
from service.core.errors import Away, InternalError
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
from service.storage.open_storage import open_storage

log = logging.getLogger("vitfit.worker")
RETRY_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the job's end is stored (however it ended), 3 when the job was another's, 4 when the disk is full."""
    options = _parse(arguments)
    settings = Settings(data=options.data)
    logs.set_up(settings.log_format)
    logs.bind(job_id=options.job)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` clauses run
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
        log.info("attempt %d at %s by process %d", job.attempt, job.id, os.getpid())
        outcome = _attempt(settings, folder, job, StoredJournal(leases, lease, settings.patience_s))
        heartbeat.stop()
        patiently(lambda: _store_outcome(leases, lease, outcome), settings.patience_s)
    except Fenced as lost:
        log.warning("%s", lost)
        return LOST_JOB
    except Exception as error:
        if not is_full(error):
            raise
        log.error("the disk is full: %s", error)  # nothing can be stored now: the server tries again when there is room
        return DISK_FULL
    finally:
        store.close()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="service.jobs.worker", description="One attempt at one job.")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the server")
    parser.add_argument("--job", required=True, help="id of a claimed job")
    parser.add_argument("--fence", type=int, required=True, help="fencing token of the claim")
    parser.add_argument("--parent-pipe", type=int, help="file descriptor that closes when the server dies")
    return parser.parse_args(arguments)


def _attempt(settings: Settings, folder: DataFolder, job: JobRow, journal: StoredJournal) -> JobResult | VitfitError:
    """Run the engine, and keep what it made. Errors are results here; only `Fenced`, `Away`, a full disk and the wish to exit
    pass through."""
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
    except (Fenced, Away):  # the job's next attempt goes on
        raise
    except VitfitError as error:
        if is_full(error):
            raise
        log.info("ended by %s: %s", error.code, error)
        return error
    except Exception as error:
        if is_full(error):
            raise
        log.exception("the engine failed")
        return InternalError(
            f"The job ended on a mistake of ours ({type(error).__name__}: {error}). The log says more."
        )


def _files(settings: Settings, folder: DataFolder, storage: Storage, job: JobRow) -> JobFiles:
    """With the model and the data set on this machine."""
    if job.model_id is None:
        raise InternalError("The job's model was deleted.")
    keys = [bundle_key(ModelRow, job.model_id), *([bundle_key(DatasetRow, job.dataset_id)] if job.dataset_id else [])]
    model, *dataset = [patiently(lambda key=key: storage.folder(key), settings.patience_s) for key in keys]  # type: ignore[misc]
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
    """Renews a lease from a thread until it is stopped; ends the process when the lease is lost."""

    def __init__(self, leases: Leases, lease: Lease, pause_s: float) -> None:
        self._leases, self._lease, self._pause_s = leases, lease, pause_s
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """From now on a lost lease is no surprise: the job's end is being stored."""
        self._stopped.set()

    def _run(self) -> None:
        wait_s = 0.0  # the claim's long lease for the start gives way to the usual one at once
        while not self._stopped.wait(wait_s):
            wait_s = self._pause_s
            try:
                self._leases.heartbeat(self._lease)
            except Fenced as lost:
                if not self._stopped.is_set():
                    log.warning("%s", lost)
                    _end_group()
            except Exception:  # a database that does not answer now may answer next time
                log.exception("the lease could not be renewed")
                wait_s = min(self._pause_s, RETRY_S)


def die_with_parent(pipe: int) -> None:
    """Nobody writes to the pipe: reading returns when its other end, the server, is gone."""
    os.read(pipe, 1)
    log.warning("the server has died")
    _end_group()


def _end_group() -> None:
    """End this process and what it has started, at once."""
    if os.getpgrp() == os.getpid():
        signal_group(os.getpid(), signal.SIGKILL)
    os._exit(LOST_JOB)


if __name__ == "__main__":
    sys.exit(main())
