"""An S3 server for the tests: moto's server on the loopback address."""

import itertools
from typing import Self

import httpx
import pytest
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


class S3:
    """A server that runs inside a `with` block. A test may stop and start it there, and it forgets nothing."""

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
        """Set the environment variables that an operator sets."""
        for name, value in (
            ("AWS_ENDPOINT_URL", self.url),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_DEFAULT_REGION", REGION),
        ):
            monkeypatch.setenv(name, value)

    def fresh(self) -> str:
        """Create a bucket, and return its URL with a prefix in it."""
        name = f"bucket{next(self._numbers)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return f"s3://{name}/vitfit"

    def refuse(self, refuse: bool) -> None:
        """Make all keys unknown from now on, or make all keys valid again."""
        after = "0" if refuse else "inf"
        httpx.post(f"{self.url}/moto-api/reset-auth", content=after).raise_for_status()
