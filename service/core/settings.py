"""The settings of the operator: constructor arguments, or environment variables with the prefix VITFIT_."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from models.field_errors import field_errors, in_words
from service.core.data_folder import DataFolder
from service.core.limits import Limits, share_of_memory

PREFIX = "VITFIT_"
LogFormat = Literal["text", "json"]


class Settings(BaseSettings):
    """Settings of one server.

    The defaults are the safe values: the server listens on loopback only, and users can read no folder of the machine.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    data: Path = Field(default=Path("vitfit-data"), description="Folder in which the server stores all of its files.")
    database_url: SecretStr | None = Field(
        default=None,
        description="Address of a PostgreSQL database: postgresql://user:password@host/name. "
        "Unset: a SQLite file in the data folder.",
    )
    patience_s: float = Field(
        default=60.0,
        ge=0,
        description="For how many seconds jobs, and a server that starts, wait for a database or a bucket "
        "that does not answer.",
    )
    storage_url: str | None = Field(
        default=None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[\w.-]+)*/?$",
        description="Bucket for uploads and finished files: s3://bucket/prefix. Unset: the data folder.",
    )
    downloads: Literal["stream", "link"] = Field(
        default="stream",
        description="stream: the server sends finished files to the client. link: the client downloads them from the "
        "bucket, at an address that is valid for 15 minutes.",
    )
    cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Upper limit in bytes for the copies of a bucket's files on this machine. Unset: no limit.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Only programs on this machine can reach the default address.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on. 0 chooses a free port.")
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders below which users may name data sets by their path. "
        "In the environment variable, ':' separates the folders.",
    )
    upload_limit_bytes: int = Field(
        default=4 * 2**30, ge=1, description="Upper limit in bytes for one upload, all parts together."
    )
    anonymous: bool = Field(
        default=False,
        description="Callers need no access token and may do everything. The server then listens on loopback only. "
        "This is for a machine that one person uses.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of jobs that run at the same time. While one job measures, the others wait.",
    )
    most_running: int = Field(default=1_000, ge=1, description="Upper limit on the running jobs of one person.")
    most_agents: int = Field(
        default=20,
        ge=1,
        description="Upper limit on the devices with an agent of one access token. A server has at most 500 in all.",
    )
    most_unfinished: int = Field(
        default=10_000,
        ge=1,
        description="Upper limit on the queued and running jobs of one person. The server rejects further jobs.",
    )
    keep_days: float | None = Field(
        default=None, gt=0, description="Number of days after which a finished job is deleted. Unset: never."
    )
    quota_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Upper limit in bytes for the size of the data folder. Unset: no limit.",
    )
    keep_free_bytes: int = Field(
        default=100 * 10**6,
        ge=0,
        description="Free disk space in bytes that is kept for running jobs. With less free space, the server accepts "
        "nothing new and starts no job.",
    )
    requests_per_minute: int = Field(
        default=6_000,
        ge=1,
        description="Upper limit on the requests per minute with one access token. "
        "Without a token, the limit is for each address.",
    )
    lease_s: float = Field(
        default=30.0,
        gt=0,
        description="Length of a lease in seconds. A worker that does not renew its lease for this long loses its job.",
    )
    max_crashes: int = Field(
        default=3,
        ge=1,
        description="A job fails when its worker has died this many times in a row without progress: a new trial, or "
        "another stored result from which the next start continues.",
    )
    validate_timeout_s: float = Field(
        default=10.0, gt=0, description="Time limit in seconds for the validation in POST /v1/jobs."
    )
    register_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="Time limit in seconds for the validation of an upload, which may download weights.",
    )
    checks: int = Field(default=4, ge=1, description="Number of uploads and jobs that are checked at the same time.")
    checks_per_person: int = Field(
        default=2,
        ge=1,
        description="Number of uploads and jobs of one person that are checked at the same time. The others wait, and "
        "their time limits begin later.",
    )
    check_memory_bytes: int = Field(
        default_factory=lambda: share_of_memory(0.5),
        ge=2**30,
        description="Upper limit in bytes for the memory of the process that checks an upload or a job. torch and its "
        "libraries take about 1 GB of it. Unset: half of the memory of the machine.",
    )
    check_cpu_s: int = Field(
        default=180, ge=1, description="Upper limit in seconds for the processor time of the check of an upload or job."
    )
    job_memory_bytes: int = Field(
        default_factory=lambda: share_of_memory(0.9),
        ge=2**30,
        description="Upper limit in bytes for the memory of each process of a job. Unset: 90 % of the memory of the "
        "machine.",
    )
    job_cpu_s: int | None = Field(
        default=None,
        ge=1,
        description="Upper limit in seconds for the processor time of each process of a job. Unset: no limit.",
    )
    file_bytes: int = Field(
        default=32 * 2**30, ge=2**20, description="Upper limit in bytes for a file that a check or a job writes."
    )
    open_files: int = Field(
        default=4096, ge=256, description="Upper limit on the open files of the process of a check or a job."
    )
    log_format: LogFormat = Field(
        default="text",
        description="text: lines for people. json: one JSON object per line. "
        "The setting also holds for the logs of jobs.",
    )
    engine: Literal["pipeline", "fake"] = Field(
        default="pipeline", description="The engine that runs the jobs. fake is for tests."
    )

    ray: str | None = Field(
        default=None,
        description="The Ray cluster that runs trials: its address, or auto for the cluster that has this machine as "
        "a node. Unset: the process of the job runs its trials.",
    )

    ray_jobs: bool = Field(
        default=False,
        description="Run complete jobs on the nodes of the Ray cluster that offer vitfit_jobs, not on this machine.",
    )

    @model_validator(mode="after")
    def _nodes_can_reach_everything(self) -> Self:
        if self.ray_jobs and None in (self.ray, self.database_url, self.storage_url):
            raise ValueError(
                "With ray_jobs, jobs run on other machines. This needs a cluster (VITFIT_RAY), PostgreSQL "
                "(VITFIT_DATABASE_URL) and a bucket (VITFIT_STORAGE_URL). Set all three"
            )
        return self

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_folders(cls, value: Any) -> Any:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and _backend(value) != "postgresql":
            raise ValueError("The address must have the form postgresql://user:password@host:5432/name")
        return value

    @field_validator("data")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("allowed_roots")
    @classmethod
    def _resolve(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in value)

    @property
    def database(self) -> Path | URL:
        """The database that `service.db.tables.Store` opens: the path of a SQLite file, or the URL of PostgreSQL."""
        url = self.database_url
        return DataFolder(self.data).database if url is None else make_url(url.get_secret_value())

    def check_limits(self) -> Limits:
        """Return the limits of the process that checks an upload or a job."""
        return Limits(
            noun="a check",
            prefix=f"{PREFIX}CHECK",
            memory_bytes=self.check_memory_bytes,
            cpu_s=self.check_cpu_s,
            file_bytes=self.file_bytes,
            files=self.open_files,
            victim=500,
        )

    def job_limits(self) -> Limits:
        """Return the limits of each process of a job."""
        return Limits(
            noun="a job",
            prefix=f"{PREFIX}JOB",
            memory_bytes=self.job_memory_bytes,
            cpu_s=self.job_cpu_s,
            file_bytes=self.file_bytes,
            files=self.open_files,
            victim=300,
        )

    def worker_environment(self) -> dict[str, str]:
        """Return the environment variables that pass this server's settings to a worker process."""
        roots = os.pathsep.join(map(str, self.allowed_roots))
        values = {
            "ENGINE": self.engine,
            "LEASE_S": str(self.lease_s),
            "ALLOWED_ROOTS": roots,
            "LOG_FORMAT": self.log_format,
            "WORKERS": str(self.workers),
            "MAX_CRASHES": str(self.max_crashes),
            "MOST_RUNNING": str(self.most_running),
        }
        for name in ("job_memory_bytes", "job_cpu_s", "file_bytes", "open_files"):
            if name in self.model_fields_set:  # a node of a cluster has another default
                values[name.upper()] = str(getattr(self, name))
        values["PATIENCE_S"] = str(self.patience_s)
        if not self.ray_jobs:  # the users' device profiles exist on this machine only
            values["DEVICES"] = str(DataFolder(self.data).devices)
        if self.database_url is not None:
            values["DATABASE_URL"] = self.database_url.get_secret_value()
        if self.storage_url is not None:
            values["STORAGE_URL"] = self.storage_url
        if self.ray is not None:
            values["RAY"] = self.ray
        return {f"{PREFIX}{name}": value for name, value in values.items()}


def wrong_settings(error: ValidationError) -> str:
    """Return the sentences for settings that are not allowed. The value of a secret setting is not in them."""
    secret = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    found = [
        {name: value for name, value in item.items() if name != "input" or item["loc"][0] not in secret}
        for item in error.errors(include_url=False)
        if item["loc"]
    ]
    return in_words(field_errors(found or error.errors(include_url=False, include_input=False)))


def _backend(url: SecretStr) -> str | None:
    try:
        return make_url(url.get_secret_value()).get_backend_name()
    except ArgumentError:
        return None
