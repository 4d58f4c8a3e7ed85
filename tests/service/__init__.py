"""Tests of the service: REST, jobs, storage."""
