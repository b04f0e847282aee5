"""torchvision's classifiers by name, and their checkpoints."""

import utils  # noqa: F401  # checks that the packages are installed
