"""Who may import whom, read from the syntax trees: the layers of the design stay layers."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from tests.photo_folders import ROOT

LAYERS = ("config", "data", "models", "utils", "docs", "train", "knowledge_distillation")
SOURCES = sorted(path for name in LAYERS for path in ROOT.glob(f"{name}*/**/*.py"))
SOURCES += sorted(ROOT.glob("*.py"))


def imported_modules(source: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            # `from data import photos` imports data.photos; of other names the prefix is enough.
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def packages(source: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(source)}


def test_only_the_declared_packages_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in project["dependencies"]}
    assert declared == {"torch", "torchvision", "tensorboard", "numpy", "pillow", "tqdm"}
    importable = (declared - {"pillow"}) | {"PIL"} | sys.stdlib_module_names | set(LAYERS)
    for source in SOURCES:
        extra = {"build.py": {"matplotlib"}, "export.py": {"onnxruntime"}}.get(source.name, set())
        assert packages(source) <= importable | extra, source


def test_a_layer_imports_itself_and_lower_ones_only():
    assert len(SOURCES) > 30
    for source in SOURCES:
        layer = source.relative_to(ROOT).parts[0].removesuffix(".py")
        scripts = {"train", "knowledge_distillation"} - {layer}
        assert not packages(source) & {*LAYERS[LAYERS.index(layer) + 1 :], *scripts}, source


def test_the_engine_knows_neither_networks_nor_teachers_and_the_losses_only_torch():
    reached, waiting = set[Path](), [ROOT / "utils/engine.py"]
    while waiting:
        source = waiting.pop()
        reached.add(source)
        found = imported_modules(source)
        names = found | {name[: name.rfind(".")] for name in found}
        files = {ROOT / (name.replace(".", "/") + ".py") for name in names}
        waiting += [path for path in files - reached if path.is_file()]
    assert ROOT / "data/batches.py" in reached
    assert not [path for path in reached if path.parent.name == "models"]
    assert not reached & {ROOT / f"utils/{name}.py" for name in ("distillation", "losses", "runs")}
    assert not packages(ROOT / "utils/losses.py") & set(LAYERS)
