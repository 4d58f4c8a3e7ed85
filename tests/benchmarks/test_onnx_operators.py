"""Tests of the table of ONNX operators in the documentation."""

from benchmarks.accepted.onnx_operators import DOCUMENT, operators, table


def test_the_document_lists_every_operator_as_vitfit_treats_it() -> None:
    assert table() in DOCUMENT.read_text(), "run: python -m benchmarks.accepted.onnx_operators --write"
    found = operators()
    assert "MatMul" in found["translated"] and "Attention" in found["replaced"] and "Loop" in found["refused"]
    names = [name for some in found.values() for name in some]
    assert len(names) == len(set(names)) > 150
