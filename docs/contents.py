"""Which runs stand in which table and figure of docs/ and README.md."""

from collections.abc import Callable

from config import EXPERIMENTS, ROOT
from docs.evidence import comparisons, cost, gain, results, seven_rows

NAMES = {"densenet169": "DenseNet169", "resnet50": "ResNet50", "resnet18": "ResNet18"}
KD = "kd-a0.7-T2"
DOCUMENTS = ("README.md", "docs/recipe.md", *(f"docs/{name}/README.md" for name in EXPERIMENTS))


def basic(experiment: str) -> dict[str, str]:
    """The columns of a table of networks without a teacher, by the names of their runs."""
    teacher, student = EXPERIMENTS[experiment]
    return {
        f"{NAMES[teacher]}, 15 epochs": teacher,
        f"{NAMES[teacher]}, 60 epochs": f"{teacher}-patient",
        f"{NAMES[student]}, 15 epochs": student,
        f"{NAMES[student]}, 60 epochs": f"{student}-patient",
    }


def taught(teacher: str, teacher_tag: str, student: str, lesson: str = KD, tag: str = "") -> str:
    """The name of a student's runs."""
    dot, dash = "." if teacher_tag else "", "-" if tag else ""
    return f"{student}-from-{teacher}{dot}{teacher_tag}-{lesson}{dash}{tag}"


def three(teacher: str, student: str, teacher_tag: str = "") -> dict[str, str]:
    """The user's three columns: a teacher, its student alone, and the student taught."""
    return {
        "Teacher": f"{teacher}-{teacher_tag}" if teacher_tag else teacher,
        "Student": student,
        "KD Student": taught(teacher, teacher_tag, student),
    }


def experiment_tables(experiment: str) -> dict[str, Callable[[], str]]:
    """The tables of one experiment, by the names of their places."""
    teacher, student = EXPERIMENTS[experiment]
    return {
        f"{experiment} basic": lambda: seven_rows(basic(experiment)),
        f"{experiment} kd": lambda: seven_rows(three(teacher, student, "patient")),
        f"{experiment} kd 15 epochs": lambda: seven_rows(three(teacher, student)),
        f"{experiment} reverse": lambda: seven_rows(three(student, teacher)),
        f"{experiment} all": lambda: comparisons(LESSONS[experiment]),
    }


LESSONS: dict[str, dict[str, str | tuple[str, str]]] = {}
TABLES = {
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
    for experiment, (teacher, student) in EXPERIMENTS.items():
        columns = results(three(teacher, student, "patient"))
        for quantity in ("accuracy", "loss"):
            name = f"{quantity.capitalize()}.png"
            draw_curves(docs / experiment / "basic" / name, results(basic(experiment)), quantity)
            draw_curves(docs / experiment / "kd" / name, columns, quantity)
        draw_confusions(docs / experiment / "kd" / "Confusion.png", columns)
