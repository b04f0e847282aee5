"""Which runs stand in which table and figure of docs/ and README.md."""

from collections.abc import Callable

from config import EXPERIMENTS, ROOT
from docs.evidence import (
    comparisons,
    cost,
    gain_of,
    grid,
    lessons,
    results,
    seven_rows,
)

DOCUMENTS = ("README.md", "docs/recipe.md", *(f"docs/{name}/README.md" for name in EXPERIMENTS))
NAMES = {"densenet169": "DenseNet169", "resnet50": "ResNet50", "resnet18": "ResNet18"}
PATIENT = "patient"  # the tag of 60 epochs with mixup 0.2
LESSON = "kd-a0.7-T2"


def taught(teacher: str, student: str, lesson: str = LESSON, tag: str = "") -> str:
    """The name of a student's runs, of a teacher such as resnet50 or resnet50.patient."""
    return f"{student}-from-{teacher}-{lesson}" + (f"-{tag}" if tag else "")


# Teachers and students of the main picture and table.
STUDENTS = {
    "DenseNet169 → ResNet18": taught("densenet169", "resnet18"),
    "DenseNet169, 60 epochs → ResNet18": taught("densenet169.patient", "resnet18"),
    "ResNet50 → ResNet18": taught("resnet50", "resnet18"),
    "ResNet50, 60 epochs → ResNet18": taught("resnet50.patient", "resnet18"),
    "ResNet18, 60 epochs → ResNet18": taught("resnet18.patient", "resnet18"),
    "ResNet18 → ResNet18, both 60 epochs": taught("resnet18", "resnet18", tag=PATIENT),
    "ResNet18 → ResNet50": taught("resnet18", "resnet50"),
    "ResNet18 → DenseNet169": taught("resnet18", "densenet169"),
}
# Experiment 1 from a recipe by which it went wrong to one by which it does not, a step at a time.
CAUSES = {
    "constant lr, no crops, KL by reduction='mean'": taught(
        "densenet169", "resnet18", "kd-a0.175-T2", "asitwas"
    ),
    "+ KL summed over the classes": taught("densenet169", "resnet18", tag="asitwas"),
    "+ crops": taught("densenet169", "resnet18", tag="constant"),
    "+ cosine schedule": taught("densenet169", "resnet18"),
    "+ teacher of 60 epochs with mixup": taught("densenet169.patient", "resnet18"),
}
# What a ResNet18 can have without a teacher, beside what teachers give it.
CONTROLS = {
    "alone, 15 epochs": "resnet18",
    "alone, 23 epochs: as long as with a teacher": "resnet18-23epochs",
    "alone, 15 epochs, label smoothing 0.1": "resnet18-smooth",
    "alone, 60 epochs, mixup 0.2": "resnet18-patient",
    "alone, 60 epochs, mixup 1": "resnet18-60epochs.mixup1",
    "15 epochs, taught by ResNet50 of 60": taught("resnet50.patient", "resnet18"),
    "15 epochs, taught by ResNet18 of 60": taught("resnet18.patient", "resnet18"),
    "60 epochs, mixup 0.2, taught by ResNet18 of 60": taught("resnet18", "resnet18", tag=PATIENT),
}


def basic(experiment: str) -> dict[str, str]:
    """The columns of a table of networks without a teacher, by the names of their runs."""
    teacher, student = EXPERIMENTS[experiment]
    return {
        f"{NAMES[model]}, {epochs} epochs": model + tag
        for model in (teacher, student)
        for epochs, tag in ((15, ""), (60, f"-{PATIENT}"))
    }


def three(teacher: str, student: str) -> dict[str, str]:
    """The user's three columns: a teacher, its student alone, and the student with it."""
    return {
        "Teacher": teacher.replace(".", "-", 1),
        "Student": student,
        "KD Student": taught(teacher, student),
    }


def experiment_tables(experiment: str) -> dict[str, Callable[[], str]]:
    """The tables of one experiment, by the names of their places."""
    teacher, student = EXPERIMENTS[experiment]
    return {
        f"{experiment} basic": lambda: seven_rows(basic(experiment)),
        f"{experiment} kd": lambda: seven_rows(three(teacher, student)),
        f"{experiment} kd patient": lambda: seven_rows(three(f"{teacher}.{PATIENT}", student)),
        f"{experiment} reverse": lambda: seven_rows(three(student, teacher)),
    }


TABLES = {
    "main": lambda: lessons(STUDENTS),
    "causes": lambda: lessons(CAUSES, seeds=(0,)),
    "controls": lambda: comparisons(CONTROLS, "resnet18"),
    "alpha and temperature": lambda: grid(
        taught("resnet18.patient", "resnet18", "kd-a{alpha}-T{temperature}"),
        ("0.7", "0.9", "1"),
        ("2", "4"),
    ),
    **experiment_tables("experiment_1"),
    **experiment_tables("experiment_2"),
    "cost": cost,
}


def draw_figures() -> None:
    """Every figure but the sample and the screenshot; needs matplotlib."""
    from docs.figures import draw_confusions, draw_curves, draw_gains
    from docs.illustrations import draw_illustrations

    docs = ROOT / "docs"
    draw_illustrations(docs / "illustration")
    gains = {title: gain_of(name) for title, name in STUDENTS.items()}
    draw_gains(docs / "illustration" / "result.png", gains)
    for experiment, (teacher, student) in EXPERIMENTS.items():
        columns = results(three(f"{teacher}.{PATIENT}", student))
        for quantity in ("accuracy", "loss"):
            name = f"{quantity.capitalize()}.png"
            draw_curves(docs / experiment / "basic" / name, results(basic(experiment)), quantity)
            draw_curves(docs / experiment / "kd" / name, columns, quantity)
        draw_confusions(docs / experiment / "kd" / "Confusion.png", columns)
