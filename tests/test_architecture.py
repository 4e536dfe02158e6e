"""The shape of the package: imports run one way, public names are lazy, `import jaxglmm` is light."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import jaxglmm


PACKAGE = Path(jaxglmm.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
TABLES = {
    "formulaic",
    "narwhals",
    "pandas",
    "polars",
    "pyarrow",
}  # what only the room `formula` and the outside know
CORE = ("model", "ops", "design", "modes", "objectives", "optimise")  # arrays in, arrays out
PRESENTATION = {
    "batch",
    "batching",
    "penalised",
    "paths",
    "path_design",
    "path_plots",
    "path_result",
    "pooling",
    "replicate_plots",
    "fitted",
    "inference",
    "cli",
    "commands",
    "plots",
    "demo",
    "report",
    "doctor",
    "sklearn",
    "encoder",
    "folds",
    "nn",
}
STAGES = {"problem", "estimation", "fitting"}
FORBIDDEN = {  # room -> rooms of ours that it must not know
    "model": {"formula", "design", "ops", "modes", "objectives", "optimise", "problem", "estimation", "fitting"}
    | PRESENTATION,
    "ops": {"formula", "modes", "objectives", "optimise", *STAGES} | PRESENTATION,
    "formula": {"design", "modes", "objectives", "optimise", *STAGES} | PRESENTATION,
    "design": {"formula", "modes", "objectives", "optimise", *STAGES} | PRESENTATION,
    "modes": {"formula", "objectives", "optimise", *STAGES} | PRESENTATION,
    "objectives": {"formula", "optimise", *STAGES} | PRESENTATION,
    "optimise": {"formula", *STAGES} | PRESENTATION,
    "fitted": {"cli", "demo", "doctor", "sklearn"},
    "inference": {"cli", "demo", "doctor", "sklearn"},
}


@cache
def imported(module: str) -> frozenset[str]:
    """Return what a module imports anywhere in its text; ours without the package's name: "ops.native"."""
    path = MODULES[module]
    package = ("jaxglmm." + module).split(".")[: None if path.name == "__init__.py" else -1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return frozenset(name.removeprefix("jaxglmm.") for name in found)


def in_room(room: str) -> list[str]:
    return [module for module in MODULES if module.split(".")[0] == room]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room):
    wrong = {
        module: sorted(name for name in imported(module) if name.split(".")[0] in FORBIDDEN[room])
        for module in in_room(room)
    }
    assert not {module: names for module, names in wrong.items() if names}


@pytest.mark.parametrize("room", CORE)
def test_the_core_knows_no_data_frame(room):
    for module in in_room(room):
        assert not {name.split(".")[0] for name in imported(module)} & TABLES, module


@pytest.mark.parametrize("room", CORE)
def test_the_core_leaves_the_global_configuration_of_jax_alone(room):
    for module in in_room(room):
        assert "config.update" not in MODULES[module].read_text(), module


def test_no_module_has_the_name_of_a_public_function():
    """Importing jaxglmm/fit.py would replace the function jaxglmm.fit by the module."""
    assert not {module for module in MODULES if "." not in module} & set(jaxglmm.__all__)


@pytest.mark.parametrize("name", jaxglmm.__all__)
def test_every_public_name_is_there(name):
    value = getattr(jaxglmm, name)
    assert getattr(value, "__module__", "jaxglmm").startswith("jaxglmm")
    assert name in dir(jaxglmm)


def test_type_checkers_see_the_names_that_users_get():
    body = ast.parse(Path(jaxglmm.__file__).read_text()).body
    seen = next(node for node in body if isinstance(node, ast.If))
    static = {
        (node.module, alias.asname) for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert static == {(module, name) for name, module in jaxglmm._HOME.items()}


def test_an_unknown_public_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Fti'.*native_status"):
        jaxglmm.Fti  # noqa: B018


def test_import_is_light(run_python):
    """Nothing but the standard library is imported, and not the heavy parts of that."""
    loaded = run_python("import sys; before = set(sys.modules); import jaxglmm; print(*set(sys.modules) - before)")
    ours = {name for name in loaded.split() if name.split(".")[0] == "jaxglmm"}
    assert ours == {"jaxglmm"}
    assert {name.split(".")[0] for name in loaded.split()} <= {"jaxglmm", *sys.stdlib_module_names}


def test_errors_are_light(run_python):
    code = "import sys, jaxglmm; jaxglmm.DataError; print({'jax', 'numpy', 'pandas'} & set(sys.modules))"
    assert run_python(code) == "set()"


def test_the_version_is_that_of_the_installed_package():
    code = "import importlib.metadata as m, jaxglmm; print(m.version('jaxglmm') == jaxglmm.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "PackageNotFoundError" in done.stderr:
        pytest.skip("jaxglmm is not installed here: a source folder")
    assert done.stdout.strip() == "True", done.stderr
