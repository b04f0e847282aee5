"""torchvision's classifiers by name, and their checkpoints."""

import sys
from importlib.util import find_spec

PACKAGES = ("torch", "torchvision", "tensorboard", "numpy", "PIL", "tqdm")
# Checked here, as the scripts that train or use networks import this package before these.
try:
    if MISSING := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(f"{MISSING[0]} is not installed: `source .venv/bin/activate` first")
    import torch  # noqa: F401
except (ImportError, OSError, MemoryError) as problem:
    print("error:", *(str(problem) or "out of memory").split(), file=sys.stderr)
    sys.exit(2)
