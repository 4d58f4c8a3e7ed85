"""Tests that somebody has looked at every call that starts a program, runs code, or opens a file of a variable name."""

import tomllib

import pytest

from tests.reviewed_calls import LIST, calls, calls_in, reviewed


def test_every_call_is_in_the_list_with_a_reason_and_the_list_has_no_other() -> None:
    found, listed = {str(call) for call in calls()}, reviewed()
    assert found - listed.keys() == set(), f"look at these calls, and add them to {LIST.name} with the reason"
    assert listed.keys() - found == set(), f"these calls are gone: take them out of {LIST.name}"
    assert all(len(why) > 20 for why in listed.values())


def test_no_call_is_listed_twice() -> None:
    every = [call for group in tomllib.loads(LIST.read_text())["reason"] for call in group["calls"]]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    "call",
    [
        *("subprocess.run(command)", "subprocess.check_output('ls')", "os.execv(path, arguments)", "os.system(text)"),
        *("eval(text)", "exec(text)", "pickle.load(file)", "torch.load(path, weights_only=False)", "open(path)"),
        *("path.open('rb')", "np.load(path)", "file.read_text()", "Model.from_pretrained(name)", "import_module(name)"),
    ],
)
def test_calls_of_these_kinds_are_found(call: str) -> None:
    (found,) = calls_in(f"class A:\n    def f(self):\n        return [{call} for x in y]\n", "a.py")
    assert str(found) == f"a.py: {call.partition('(')[0]} in A.f"


@pytest.mark.parametrize(
    "call", ["importlib.reload(x)", "len(path)", "Evaluation.open(x)", "compile('1', 'a', 'eval')"]
)
def test_other_calls_are_not(call: str) -> None:
    assert list(calls_in(call, "a.py")) == []


@pytest.mark.parametrize("line", ["from subprocess import run", "import pickle as p"])
def test_a_module_under_another_name_is_found(line: str) -> None:
    (found,) = calls_in(line, "a.py")
    assert str(found).startswith("a.py: ")
