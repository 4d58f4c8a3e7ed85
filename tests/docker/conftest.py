"""The S3 of the service's tests."""

from tests.service.conftest import s3

__all__ = ["s3"]
