"""torchvision's classifiers by name, and their checkpoints."""
