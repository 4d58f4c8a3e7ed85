"""Fixtures of the Docker tests: the S3 server of the service's tests."""

from tests.service.conftest import s3

__all__ = ["s3"]
