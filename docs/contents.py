"""Which runs stand in which table and figure of docs/ and README.md."""

from collections.abc import Callable

from config import EXPERIMENTS, ROOT
from docs.evidence import (
    comparisons,
    cost,
    differences,
    each,
    gain_of_teaching,
    grid,
    lessons,
    on_folds,
    on_splits,
    over_splits,
    seven_rows,
    together,
)
from utils.report import pooled
from utils.tables import Columns

DOCUMENTS = ("README.md", "docs/recipe.md", *(f"docs/{name}/README.md" for name in EXPERIMENTS))
NAMES = {"densenet169": "DenseNet169", "resnet50": "ResNet50", "resnet18": "ResNet18"}
PATIENT = "patient"  # the tag of 60 epochs with mixup 0.2
AS_FOUND = "asitwas"  # that of whole photos and a constant learning rate
LESSON = "kd-a0.7-T2"
SPLITS = (0, 1, 2, 3, 4, 5)


def taught(teacher: str, student: str, lesson: str = LESSON) -> str:
    """The name of a student's runs, of a teacher such as resnet50 or resnet50.patient."""
    return f"{student}-from-{teacher}-{lesson}"


STEADY = "ResNet18, 60 epochs → ResNet18"
PATIENT_TEACHING = "ResNet18, 60 epochs → ResNet18, 60 epochs"
# Teachers and students of the main picture and table.
STUDENTS = {
    "DenseNet169, 3 epochs → ResNet18": taught("densenet169.hurried", "resnet18"),
    "DenseNet169 → ResNet18": taught("densenet169", "resnet18"),
    "DenseNet169, 60 epochs → ResNet18": taught("densenet169.patient", "resnet18"),
    "ResNet50 → ResNet18": taught("resnet50", "resnet18"),
    "ResNet50, 60 epochs → ResNet18": taught("resnet50.patient", "resnet18"),
    STEADY: taught("resnet18.patient", "resnet18"),
    PATIENT_TEACHING: taught("resnet18", "resnet18", f"{LESSON}-{PATIENT}"),
    "ResNet18, 60 epochs → ResNet18 as found": taught(
        "resnet18.patient", "resnet18", f"{LESSON}-{AS_FOUND}"
    ),
    "ResNet18 → ResNet50": taught("resnet18", "resnet50"),
    "ResNet18, 60 epochs → ResNet50": taught("resnet18.patient", "resnet50"),
    "ResNet18 → DenseNet169": taught("resnet18", "densenet169"),
}
# What a ResNet18 can have without a teacher, beside what teachers give it.
CONTROLS = {
    "alone, 15 epochs": "resnet18",
    "alone, 23 epochs": "resnet18-23epochs",
    "alone, 15 epochs, label smoothing 0.1": "resnet18-smooth",
    "alone, 60 epochs, mixup 0.2": "resnet18-patient",
    "alone, 60 epochs, mixup 1": "resnet18-60epochs.mixup1",
    "15 epochs, taught by an untrained ResNet50": taught("resnet50.untrained", "resnet18"),
    "15 epochs, taught by ResNet50 of 60": taught("resnet50.patient", "resnet18"),
    "15 epochs, taught by ResNet18 of 60": taught("resnet18.patient", "resnet18"),
}
# Distillation as it was found, then with one cause after another fixed. α 0.175 is what
# reduction="mean" makes of 0.7 with eleven classes.
CAUSES = {
    "as found, teacher of 3 epochs": taught(
        "densenet169.hurried", "resnet18", f"{LESSON}-{AS_FOUND}"
    ),
    "as found, teacher of 15 epochs, KL divided by the number of classes": taught(
        "densenet169", "resnet18", f"kd-a0.175-T2-{AS_FOUND}"
    ),
    "as found, teacher of 15 epochs": taught("densenet169", "resnet18", f"{LESSON}-{AS_FOUND}"),
    "with random crops": taught("densenet169", "resnet18", f"{LESSON}-constant"),
    "with random crops and a falling rate": taught("densenet169", "resnet18"),
    "the same, teacher of 60 epochs with mixup": taught("densenet169.patient", "resnet18"),
    "the same, teacher of 3 epochs as found": taught("densenet169.hurried", "resnet18"),
}
# The seven ways to teach, all by the same ResNet50 of 60 epochs. Features and relations with their
# default weights, then with the larger ones of RepDistiller.
METHODS = {
    "no teacher": "",
    "kd": "kd-a0.7-T2",
    "dkd, weight 8": "dkd-a0.7-T2-w8",
    "dist, weight 2": "dist-a0.7-T2-w2",
    "fitnet, weight 1": "fitnet-a0.7-T2-w1",
    "attention, weight 100": "attention-a0.7-T2-w100",
    "rkd, weight 0.1": "rkd-a0.7-T2-w0.1",
    "sp, weight 100": "sp-a0.7-T2-w100",
    "fitnet, weight 100": "fitnet-a0.7-T2-w100",
    "attention, weight 1000": "attention-a0.7-T2-w1000",
    "rkd, weight 1": "rkd-a0.7-T2-w1",
    "sp, weight 3000": "sp-a0.7-T2-w3000",
}


def methods() -> dict[str, str]:
    """The names of ResNet18's runs by method."""
    return {
        title: taught(f"resnet50.{PATIENT}", "resnet18", lesson) if lesson else "resnet18"
        for title, lesson in METHODS.items()
    }


def students() -> Columns:
    """The groups of students of the main picture and table."""
    over = {
        f"{title}, {len(SPLITS)} splits": on_splits(STUDENTS[title], SPLITS)
        for title in (STEADY, PATIENT_TEACHING)
    }
    return {**over, **each(STUDENTS)}


def basic(experiment: str) -> Columns:
    """The columns of networks without a teacher."""
    teacher, student = EXPERIMENTS[experiment]
    names = {
        f"{NAMES[model]}, {epochs} epochs": model + tag
        for model in (teacher, student)
        for epochs, tag in ((15, ""), (60, f"-{PATIENT}"))
    }
    return each(names)


def three(teacher: str, student: str) -> Columns:
    """The user's three columns: a teacher, its student alone, and the student with it."""
    names = {
        "Teacher": teacher.replace(".", "-", 1),
        "Student": student,
        "KD Student": taught(teacher, student),
    }
    return together(names)


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
    "main": lambda: lessons(students()),
    "controls": lambda: comparisons(CONTROLS, "resnet18"),
    "alpha and temperature": lambda: grid(
        taught("resnet18.patient", "resnet18", "kd-a{alpha}-T{temperature}"),
        ("0.7", "0.9", "1"),
        ("2", "4"),
    ),
    "splits": lambda: over_splits(
        {
            "alone, 15 epochs": "resnet18",
            "23 epochs": "resnet18-23epochs",
            "label smoothing 0.1": "resnet18-smooth",
            "taught by ResNet18 of 60": taught("resnet18.patient", "resnet18"),
        },
        SPLITS,
    ),
    "differences": lambda: differences(
        {
            "taught by ResNet18 of 60, 15 epochs − alone, 23 epochs": (
                STUDENTS[STEADY],
                "resnet18-23epochs",
            ),
            "teacher of 60 epochs − its student of 15": (f"resnet18-{PATIENT}", STUDENTS[STEADY]),
            "its student of 60 epochs − its student of 15": (
                STUDENTS[PATIENT_TEACHING],
                STUDENTS[STEADY],
            ),
        },
        SPLITS,
    ),
    "patient splits": lambda: over_splits(
        {
            "alone, 60 epochs": f"resnet18-{PATIENT}",
            "taught by that for 60 epochs": STUDENTS[PATIENT_TEACHING],
        },
        SPLITS,
    ),
    "folds": lambda: pooled({"ResNet18, 15 epochs": on_folds("resnet18", 10)}),
    "methods": lambda: comparisons(methods(), methods()["kd"]),
    "causes": lambda: lessons(each(CAUSES)),
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
    rows = {f"{title} ({len(group)})": group for title, group in students().items()}
    panels = {
        f"{title} photos; 95 % intervals": {
            row: gain_of_teaching(group, part) for row, group in rows.items()
        }
        for part, title in (("test", "test, 371"), ("val", "validation, 750"))
    }
    draw_gains(docs / "illustration" / "result.png", panels)
    for experiment, (teacher, student) in EXPERIMENTS.items():
        columns = three(f"{teacher}.{PATIENT}", student)
        for quantity in ("accuracy", "loss"):
            name = f"{quantity.capitalize()}.png"
            draw_curves(docs / experiment / "basic" / name, basic(experiment), quantity)
            draw_curves(docs / experiment / "kd" / name, columns, quantity)
        draw_confusions(docs / experiment / "kd" / "Confusion.png", columns)
