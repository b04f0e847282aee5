"""Train baselines: weather-photo classifiers from torchvision, trained with cross-entropy alone.

    python train.py                                    experiment_1: DenseNet169, then ResNet18
    python train.py --experiment experiment_2          ResNet50, then ResNet18
    python train.py --models resnet18 --seeds 0 1 2 --data FOLDER --image-size 64
    python train.py --models resnet18 --folds 10       each photo is in the test set once

Without --data it uses data/weather or data/weather.zip if one exists, else synthetic weather.
Ends with tables of validation and test results by model.
"""

import sys
from collections.abc import Sequence

from config import parse
from utils.engine import CrossEntropy
from utils.runs import describe, lock_runs, prepare, train_and_test
from utils.script import print_paths, run_script
from utils.tables import section


def main(arguments: Sequence[str]) -> None:
    """Train every model for every fold and seed, and print the results."""
    configs = parse(arguments, __doc__)
    runs = prepare(configs)
    with lock_runs(runs) as release:
        describe(runs)
        results = []
        for number, run in enumerate(runs, 1):
            print(f"{number} of {len(runs)}", end="  ")
            results.append(train_and_test(run, CrossEntropy(run.config.label_smoothing), runs))
            release(run)
    print(section(results))
    print_paths(configs[0].output)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:], resumes=True))
