"""Who may import whom, read from the syntax trees: the design's layers stay layers."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {"train", "knowledge_distillation"}
FOLDERS = {"data", "docs", "models", "utils"}
LOCAL = SCRIPTS | FOLDERS | {"config"}
SOURCES = sorted(
    path
    for pattern in ("*.py", *(f"{folder}/**/*.py" for folder in sorted(FOLDERS)))
    for path in ROOT.glob(pattern)
)
TORCH_FREE = [
    "config",
    "data.archives",
    "data.duplicates",
    "data.photos",
    "data.sample",
    "data.split",
]
each_source = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def imported_modules(source: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            assert node.module is not None
            # `from data import photos` imports data.photos; of other names the prefix is enough.
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def imported_packages(source: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(source)}


def local_file(module: str) -> Path | None:
    """The file of this repo that a dotted name stands for, with or without a name from it."""
    for name in (module, module.rpartition(".")[0]):
        path = ROOT / (name.replace(".", "/") + ".py")
        if name and path.is_file():
            return path
    return None


def test_the_rules_below_see_the_code() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {"config.py", "train.py", "data/photos.py", "models/factory.py"} <= names
    assert local_file("data.photos.find_photos") == ROOT / "data/photos.py"
    assert "torch.nn.functional.cross_entropy" in imported_modules(ROOT / "utils/engine.py")


@each_source
def test_only_the_declared_packages_are_imported(source: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in project["dependencies"]}
    assert declared == {"torch", "torchvision", "tensorboard", "numpy", "pillow", "tqdm"}
    importable = (declared - {"pillow"}) | {"PIL"}
    if source.parent == ROOT / "docs":
        importable |= {"matplotlib"}
    assert imported_packages(source) <= importable | sys.stdlib_module_names | LOCAL


@each_source
def test_nothing_imports_a_script_or_what_makes_the_documents(source: Path) -> None:
    above = SCRIPTS if source.parent == ROOT / "docs" else SCRIPTS | {"docs"}
    assert not imported_packages(source) & above


@each_source
def test_the_lower_layers_import_only_themselves_and_config(source: Path) -> None:
    layer = source.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = {
        "config": set[str](),
        "data": {"data", "config"},
        "models": {"models", "config"},
    }.get(layer, LOCAL)
    assert imported_packages(source) & LOCAL <= allowed


def test_the_engine_knows_neither_photos_nor_networks_nor_teachers() -> None:
    reached, waiting = set[Path](), [ROOT / "utils/engine.py"]
    while waiting:
        source = waiting.pop()
        reached.add(source)
        assert imported_packages(source) & LOCAL <= {"utils", "config"}, source
        waiting += {
            path for path in map(local_file, imported_modules(source)) if path is not None
        } - reached
    assert ROOT / "utils/distillation.py" not in reached


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_is_not_loaded_where_it_is_not_needed(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"
