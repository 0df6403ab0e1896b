"""The promises of the layout: what is packaged, what imports what, how long a file may be."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAX_LINES = 300
OPTIONAL = [
    "torchao",
    "triton",
    "sklearn",
    "timm",
    "torchvision",
    "transformers",
    "PIL",
    "skimage",
    "typer",
    "rich",
    "matplotlib",
    "hypothesis",
]


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name; passes under their real name."""
    found = {}
    for top, folder in [("tome_fx", ROOT / "tome_fx"), ("tome_fx.passes", ROOT / "passes")]:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if top == "tome_fx" and parts[0] == "passes":
                continue  # the link, in versions of Python whose rglob follows it
            found[".".join([top, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str, source: str, is_package: bool) -> Iterator[str]:
    """Absolute names of what a module imports from tome_fx, also inside functions.

    `from tome_fx import ops` gives `tome_fx.ops` where that is a module, and `tome_fx` where
    the name is an attribute of the package.
    """
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "tome_fx")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            if base.split(".")[0] == "tome_fx":
                targets = (f"{base}.{alias.name}" for alias in node.names)
                yield from (target if target in MODULES else base for target in targets)


def imports_of(name: str) -> set[str]:
    path = MODULES[name]
    return set(imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py"))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def run_python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_packages_are_the_folders() -> None:
    declared = PROJECT["tool"]["setuptools"]["packages"]
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in MODULES.items()
    }
    assert sorted(declared) == sorted(folders)
    for package in declared:
        assert MODULES[package].name == "__init__.py", f"{package} has no __init__.py"


def test_link_is_relative() -> None:
    link = ROOT / "tome_fx" / "passes"
    if not link.is_symlink():
        pytest.skip("checked out without symbolic links")
    assert os.readlink(link) == "../passes"


def test_import_passes_fails_clearly() -> None:
    done = run_python("import passes")
    assert done.returncode == 1
    assert "ImportError: import tome_fx.passes, not passes" in done.stderr


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("tome_fx.graph.axes", "from ..errors import ToMeError", "tome_fx.errors"),
        ("tome_fx.graph.axes", "from . import edit", "tome_fx.graph"),
        ("tome_fx.passes.plan", "from tome_fx import passes", "tome_fx.passes"),
        ("tome_fx.passes.plan", "from tome_fx import transform", "tome_fx"),
        ("tome_fx.passes.plan", "import tome_fx.graph as g", "tome_fx.graph"),
        ("tome_fx.passes.plan", "def f():\n    from ..passes import x", "tome_fx.passes"),
    ],
)
def test_imports_are_read_right(name: str, source: str, expected: str) -> None:
    assert list(imports(name, source, is_package=False)) == [expected]


def graph_may(_: str, target: str) -> bool:
    """The FX toolkit knows no ToMe."""
    return within(target, "tome_fx.graph", "tome_fx.errors")


def kernels_may(_: str, target: str) -> bool:
    """Kernels know tensors alone, not even what their portable form is."""
    return within(target, "tome_fx.kernels", "tome_fx.errors")


def ops_may(_: str, target: str) -> bool:
    """Pure tensor functions know no FX, and so no graph."""
    return within(target, "tome_fx.ops", "tome_fx.kernels", "tome_fx.errors")


def rules_may(_: str, target: str) -> bool:
    """The rule table is given to a pass; it knows none, nor the public API."""
    above = ["tome_fx.passes", "tome_fx.api", "tome_fx.backend", "tome_fx.cli"]
    return target != "tome_fx" and not within(target, *above)


def passes_may(name: str, target: str) -> bool:
    """A pass stands on the toolkit and on plain data; never on another pass or the public API."""
    if within(target, "tome_fx.passes"):
        return within(target, ".".join(name.split(".")[:3]))
    above = ["tome_fx.api", "tome_fx.backend", "tome_fx.cli"]
    return target != "tome_fx" and not within(target, *above)


def library_may(_: str, target: str) -> bool:
    """The command line stands on the library, never the other way round."""
    return not within(target, "tome_fx.cli")


RULES = {
    "tome_fx.graph": graph_may,
    "tome_fx.kernels": kernels_may,
    "tome_fx.ops": ops_may,
    "tome_fx.rules": rules_may,
    "tome_fx.passes": passes_may,
    "tome_fx": library_may,
}


@pytest.mark.parametrize("package", RULES)
def test_import_direction(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name in MODULES
        if within(name, package) and not within(name, "tome_fx.cli")
        for target in sorted(imports_of(name))
        if not RULES[package](name, target)
    ]
    assert not wrong, "\n".join([RULES[package].__doc__ or "", *wrong])


def test_files_are_short() -> None:
    tests = {str(path.relative_to(ROOT)): path for path in (ROOT / "tests").rglob("*.py")}
    counts = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in (MODULES | tests).items()
    }
    assert {name: count for name, count in counts.items() if count > MAX_LINES} == {}


def test_core_depends_on_torch_alone() -> None:
    names = [re.split(r"[^\w-]", line)[0] for line in PROJECT["project"]["dependencies"]]
    assert names == ["torch"]


def test_the_oldest_torch_is_the_one_that_is_tested() -> None:
    (asked,) = PROJECT["project"]["dependencies"]
    tested = re.findall(r"'torch==([\d.]+)\.\*'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert [f"torch>={version}" for version in tested] == [asked]


def test_import_needs_only_torch() -> None:
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in OPTIONAL)
    public = sorted(name for name in MODULES if not within(name, "tome_fx.cli"))
    imported = "\n".join(f"import {name}" for name in public)
    done = run_python(f"import sys\n{blocked}\n{imported}")
    assert done.returncode == 0, done.stderr


def test_constraints_pin_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    pin = re.compile(r"[a-z0-9-]+==[0-9][\w.]*(; python_version (<|>=) '3\.\d+')?")
    assert [line for line in pins if not pin.fullmatch(line)] == []
    assert not any(line.startswith(("nvidia-", "cuda-", "triton")) for line in pins)


def test_wheel_holds_the_passes_in_their_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    wanted = ["pyproject.toml", "README.md", "LICENSE", "tome_fx", "passes"]
    for name in wanted:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{name.replace('.', '/')}{'/__init__' if path.name == '__init__.py' else ''}.py"
        for name, path in MODULES.items()
    }
    assert {name for name in files if name.endswith(".py")} == expected
    assert "tome_fx/py.typed" in files
    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tome_fx"}
