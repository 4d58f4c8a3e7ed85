"""Tests of what the command says when a limit of the shell (`ulimit`) stops it."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from vitfit.machine import limit_hit

DIGITS = Path(__file__).parents[2] / "benchmarks" / "digits"


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitfit.cli", "compress", str(DIGITS), "--data", str(DIGITS / "digits.npz")]
    done = subprocess.run(
        [*command, "--budget-macs-keep", "0.7", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)),
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "error: A limit of this shell stopped vitfit: the size of a file in bytes is limited to 100,000. Raise it with"
        " `ulimit -f`."
    )


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "the number of open files is limited to 77"),
        (ImportError("libx.so: failed to map segment from shared object"), "the memory in bytes is limited to 77"),
        (MemoryError(), "ulimit -v"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_the_limit_that_an_error_met_is_named(error: Exception, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (77, 77))
    assert named in str(limit_hit(error))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOENT, "No such file"), ImportError("no module x")])
def test_without_a_limit_none_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert limit_hit(error) is None
