"""Train baselines: weather-photo classifiers from torchvision, each by cross-entropy alone.

    python train.py                                    experiment_1: DenseNet169, then ResNet18
    python train.py --experiment experiment_2          ResNet50, then ResNet18
    python train.py --models resnet18 --seeds 0 1 2 --data FOLDER --image-size 64
    python train.py --models resnet18 --folds 10       each photo is a test photo once

Without --data it uses data/weather if that is there, and otherwise weather drawn by this repo.
Ends with a table of validation and test results by model.
"""

import sys
from collections.abc import Sequence

from config import model_names, parse
from utils.agenda import Agenda
from utils.engine import CrossEntropy
from utils.report import section
from utils.runs import claimed, plan, train_and_test
from utils.script import run_script, say_where
from utils.setup import describe, prepare


def main(arguments: Sequence[str]) -> None:
    """Parse, prepare, train every model for every fold and seed, and print what came out."""
    config = parse(arguments, __doc__)
    setups = prepare(config)  # one for each fold
    runs = [run for setup in setups for run in plan(setup, config.seeds, model_names(config))]
    with claimed(runs):
        describe(setups)
        agenda = Agenda(runs)
        results = [
            agenda.done(run, train_and_test(run, lambda: CrossEntropy(config.label_smoothing)))
            for run in runs
        ]
    print(section(results))
    say_where(config.output)


if __name__ == "__main__":
    sys.exit(run_script(main, sys.argv[1:]))
