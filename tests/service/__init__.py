"""Tests of the service: REST, jobs and storage."""
