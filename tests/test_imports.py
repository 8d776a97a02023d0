"""Rooms import in one direction, and the command line starts without anything heavy."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "contracts",
    ("schedules", "targets"),
    "frontends",
    "graph",
    ("codegen", "emulator"),
    "estimate",
    "compiler",
    "rpc",
    "measure",
    "boards",
    "logs",
    "tuner",
    "bundle",
    "profile",
    "compare",
    "report",
)
"""A room imports itself, the contracts, `schedules` and `targets`, and rooms before it."""

BUNDLE_MAY = {"bundle", "contracts", "targets"}
"""The room that runs on a user's machine: nothing that could bring the compiler in."""

SEES_ALL = {"cli", "demo", "__init__", "__main__", "api", "check", "accuracy"}
HEAVY = {"tvm", "tvm_ffi", "torch", "onnx", "onnxruntime", "numpy", "scipy", "xgboost"}


def rank(room: str) -> int:
    for i, entry in enumerate(ORDER):
        if room == entry or room in entry and isinstance(entry, tuple):
            return i
    raise AssertionError(f"{room} is no room: add it to ORDER where it belongs in the flow")


def sources() -> list[tuple[str, Path]]:
    """(room, file) for every Python file of the package."""
    found = []
    for top in ("schedules", "targets"):
        found += [(top, f) for f in sorted((ROOT / top).rglob("*.py"))]
    for file in sorted((ROOT / "tvmsep").rglob("*.py")):
        found.append((file.relative_to(ROOT / "tvmsep").parts[0].removesuffix(".py"), file))
    return found


def package_of(room: str, file: Path) -> list[str]:
    base = ROOT / room if room in ("schedules", "targets") else ROOT / "tvmsep"
    inner = file.relative_to(base).parent.parts
    return ["tvmsep", room, *inner] if base.name == room else ["tvmsep", *inner]


def type_checking_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                lines |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def imported(file: Path, package: list[str]) -> list[tuple[int, str]]:
    """(line, absolute module) of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module] if node.module else []
            if node.level:
                parts = [".".join(package[: len(package) - node.level + 1]), *parts]
            base = ".".join(parts)
            found.append((node.lineno, base))
            if base == "tvmsep":  # from tvmsep import graph
                found += [(node.lineno, f"tvmsep.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize(
    ("room", "file"), sources(), ids=lambda v: v if isinstance(v, str) else v.name
)
def test_direction(room: str, file: Path) -> None:
    if room in SEES_ALL:
        return
    wrong = []
    for line, module in imported(file, package_of(room, file)):
        parts = module.split(".")
        if parts[0] in ("schedules", "targets"):
            wrong.append(f"line {line}: {module} is named tvmsep.{module}")
        if parts[0] != "tvmsep" or len(parts) < 2 or parts[1] == "__version__":
            continue
        other = parts[1]
        allowed = other in BUNDLE_MAY if room == "bundle" else rank(other) <= rank(room)
        if not allowed:
            wrong.append(f"line {line}: {room} imports {module}")
    assert not wrong, f"{file.relative_to(ROOT)}: " + "; ".join(wrong)


def test_contracts_import_no_tvm_when_loaded() -> None:
    for room, file in sources():
        if room != "contracts":
            continue
        tree = ast.parse(file.read_text())
        skipped = type_checking_lines(tree)
        for node in tree.body:
            for inner in ast.walk(node):
                if isinstance(inner, (ast.Import, ast.ImportFrom)) and inner.lineno not in skipped:
                    names = (
                        [a.name for a in inner.names]
                        if isinstance(inner, ast.Import)
                        else [inner.module or ""]
                    )
                    assert not {n.split(".")[0] for n in names} & HEAVY, file


def heavy_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('MODULES', *sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("MODULES"))
    return set(line.split()) & (HEAVY | {"rich", "PIL"})


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["tvmsep", "--help"]
from tvmsep.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
    assert heavy_after(code) == set()


def test_every_room_is_light_to_import() -> None:
    rooms = sorted(
        p.parent.name for p in (ROOT / "tvmsep").glob("*/__init__.py") if p.parent.name != "cli"
    )
    assert {"bundle", "contracts"} <= set(rooms)
    imports = "\n".join(f"import tvmsep.{room}" for room in rooms)
    assert heavy_after(imports) - {"numpy"} == set()


def test_bundle_is_light_until_used() -> None:
    assert heavy_after("import tvmsep.bundle, tvmsep.targets") == set()
    assert heavy_after("from tvmsep.bundle import Package, Manifest, read_log") == set()


def test_what_is_no_python_is_installed_too() -> None:
    """C sources, templates, targets, logs: whatever lies in a package's folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    folders = {x: f"tvmsep.{x}" for x in ("schedules", "targets")} | {"logs": "tvmsep.shipped"}
    found = 0
    for top in ("tvmsep", *folders):
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            package = next(
                p for p in path.parents if (p / "__init__.py").exists() or p == ROOT / "logs"
            )
            parts = package.relative_to(ROOT).parts
            name = ".".join([folders.get(parts[0], parts[0]), *parts[1:]])
            inside = {f for glob in data.get(name, []) for f in package.glob(glob)}
            assert path in inside, f"{path.relative_to(ROOT)} is not in package-data of {name}"
            found += 1
    assert found > 40
