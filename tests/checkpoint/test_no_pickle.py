"""No pickle is read from a store or written to one: nothing that comes out of a bucket may run code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import unbroken

SOURCES = sorted(Path(unbroken.__file__).parent.rglob("*.py"))
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
    "copyreg",
}
CALLS = {
    ("torch", "load"), ("torch", "save"), ("torch.jit", "load"), ("torch.package", "PackageImporter"),
    ("numpy", "load"), ("numpy", "save"), ("numpy", "savez"), ("np", "load"), ("np", "save"),
}  # fmt: skip
NAMES = {"eval", "exec", "__reduce__", "__reduce_ex__", "allow_pickle", "weights_only"}


def uses(tree: ast.AST) -> list[str]:
    """Everything in a source file that could read or write a pickle, or run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in MODULES else []
            found += [f"{module}.{each.name}" for each in node.names if (module, each.name) in CALLS]
        elif isinstance(node, ast.Attribute) and (ast.unparse(node.value), node.attr) in CALLS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Name) and node.id in NAMES:
            found.append(node.id)
        elif isinstance(node, ast.keyword) and node.arg in NAMES:
            found.append(node.arg)
    return found


IMPORTER = Path(unbroken.__file__).parent / "training" / "import_file.py"
"""`unbroken import` reads a file that the user names, not a store; it alone may, and only without running code."""
IN_MEMORY = Path(unbroken.__file__).parent / "training" / "dcp_values.py"
"""Load planners of torch.distributed.checkpoint take values as pickles: they are made here, and never leave memory."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_source_file_uses_pickle(path: Path) -> None:
    if path not in (IMPORTER, IN_MEMORY):
        assert uses(ast.parse(path.read_text())) == []


def test_the_importer_loads_weights_only_and_takes_no_more_of_pickle_than_its_error() -> None:
    tree = ast.parse(IMPORTER.read_text())
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert len(loads) == 1
    safe = {each.arg: ast.unparse(each.value) for each in loads[0].keywords}
    assert safe["weights_only"] == "True"
    of_pickle = {ast.unparse(node) for node in ast.walk(tree) if ast.unparse(node).startswith("pickle.")}
    assert of_pickle == {"pickle.UnpicklingError"}
    assert sorted(uses(tree)) == ["pickle", "torch.load", "weights_only"]


def test_a_pickle_is_made_in_memory_alone() -> None:
    tree = ast.parse(IN_MEMORY.read_text())
    assert uses(tree) == ["torch.save"]
    [made] = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.save"]
    assert ast.unparse(made) == "torch.save(value, file)"
    files = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "file"]
    assert [ast.unparse(node.value) for node in files] == ["io.BytesIO()"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import torch\ntorch.load(x)",
        "from torch import save", "numpy.load(f, allow_pickle=True)", "f(weights_only=False)", "eval(text)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_searches_for(source: str) -> None:
    assert uses(ast.parse(source))


def test_the_search_saw_the_package() -> None:
    assert {"tree.py", "restore.py", "journal.py"} <= {path.name for path in SOURCES}
