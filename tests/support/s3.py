"""An S3 of the tests' own: moto's server on loopback."""

import itertools
from typing import Self

import httpx
import pytest
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


class S3:
    """Runs from entering to leaving; may be stopped and started between, and forgets nothing then."""

    def __enter__(self) -> Self:
        self._numbers, self._port = itertools.count(), 0
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def announce(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As an operator does."""
        for name, value in (
            ("AWS_ENDPOINT_URL", self.url),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_DEFAULT_REGION", REGION),
        ):
            monkeypatch.setenv(name, value)

    def fresh(self) -> str:
        """The URL of a new bucket, with a prefix in it."""
        name = f"bucket{next(self._numbers)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return f"s3://{name}/vitfit"

    def refuse(self, refuse: bool) -> None:
        """From now on all keys are unknown; or all are good again."""
        after = "0" if refuse else "inf"
        httpx.post(f"{self.url}/moto-api/reset-auth", content=after).raise_for_status()
