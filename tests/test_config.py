"""The command line is Config, and nothing that is wrong gets past it."""

from dataclasses import fields

import pytest

from config import Config, KDConfig, UserError, parse
from utils.distillation import METHODS

# Every flag with another value than its default.
GIVEN = """--models resnet50 --seeds 2147483647 --tag lr_0.1 --data some/folder --image-size 96
    --split-seed 7 --folds 10 --epochs 30 --batch-size 2 --lr 3e-2 --optimizer sgd
    --weight-decay 0.0321 --schedule constant --warmup-epochs 1.25 --label-smoothing 0.99
    --mixup 0.456 --crop-scale 0.987 --clip-norm 4 --pretrained --precision bf16
    --device cuda:10 --eager --output runs/here --cache /scratch
    --resume --overwrite --teacher resnet50 --teacher-tag long.1 --teacher-checkpoint a/best.pt
    --method dist --alpha 0.5 --temperature 2.5"""
ALL = [f"--{words.strip()}" for words in GIVEN.split("--")[1:]]
KD_ONLY = ("--teacher", "--method", "--alpha", "--temperature", "--reverse", "--allow")
BAD = [
    ("--epoch 3", "unrecognized arguments: --epoch 3; --help lists"),
    ("--experiment experiment_3", "--experiment: .*experiment_1"),
    ("--seeds -1", "--seeds: '-1' is not an integer from 0 to 2147483647"),
    ("--tag a/b", "--tag: 'a/b' is not 1 to 60 letters"),
    ("--image-size 7", "--image-size: '7' is not an integer from 32 to 4096"),
    ("--fold 0", "--fold 0 needs --folds 3 or more$"),
    ("--folds 5 --fold 1 5", "--fold 5 needs --folds 6 or more$"),
    ("--epochs 2 --warmup-epochs 3", "--warmup-epochs 3.0 exceeds --epochs 2"),
    ("--lr 0", "--lr: '0' is not a number above 0"),
    ("--mixup nan", "--mixup: 'nan' is not a number from 0"),
    ("--device cuda:-1", "--device: 'cuda:-1' is not auto, cpu, cuda or cuda:N"),
    ("--resume --overwrite", "--resume keeps .*--overwrite deletes.* give one"),
    ("--reverse --teacher resnet50", "--reverse excludes .*omit it"),
    ("--teacher-tag x --teacher-checkpoint y", "--teacher-tag and --teacher-checkpoint exclude"),
    ("--allow-other-split", "--allow-other-split needs --teacher-checkpoint"),
    ("--method sp kd --weight 3", "--weight: kd has no term .*--alpha"),
]


def runs(line: str) -> list[Config]:
    return parse(line.split(), "what it does", METHODS if line.startswith(KD_ONLY) else None)


@pytest.mark.parametrize("flag", ALL)
def test_a_flag_sets_its_field_and_no_other(flag):
    (plain, *_), (given, *_) = runs("--alpha 0.7" if flag.startswith(KD_ONLY) else ""), runs(flag)
    before, after = (vars(run) | vars(run.kd or KDConfig()) for run in (plain, given))
    name, _, word = flag.removeprefix("--").partition(" ")
    name = {"models": "model", "seeds": "seed"}.get(name, name.replace("-", "_"))
    value, changed = after[name], {key for key in before if before[key] != after[key]}
    assert {name} <= changed <= {name, "kd", "image_size", "fold", "weight", "teacher"}
    assert value == float(word) if type(value) in (int, float) else str(value) == (word or "True")


def test_several_values_make_a_run_of_each_by_fold_by_seed_then_by_model_or_method():
    made = runs("--folds 3 --fold 2 0 --seeds 1 0 --experiment experiment_2")
    names = [f"{fold} {seed} {m}" for fold in (2, 0) for seed in (1, 0) for m in ("50", "18")]
    assert [f"{r.fold} {r.seed} {r.model.removeprefix('resnet')}" for r in made] == names
    assert [run.fold for run in runs("--folds 4 --models resnet18")] == [0, 1, 2, 3]
    made = runs("--alpha 0 1 --method kd sp --temperature 1 4 --seeds 0 1")
    of_kd, of_sp = ([f"{m}-a{a}-T{t}" for a in (0, 1) for t in (1, 4)] for m in ("kd", "sp"))
    expected = [*of_kd, *(f"{name}-w{METHODS['sp'].weight:g}" for name in of_sp)]
    assert [(run.seed, str(run.kd)) for run in made] == [(s, kd) for s in (0, 1) for kd in expected]
    assert [str(run.kd)[-4:] for run in runs("--method sp --weight 0 30 0")] == ["2-w0", "-w30"]
    assert len({str(run.kd) for run in runs("--temperature 2.0000001 2")}) == 2


def test_the_experiments_teacher_and_student_may_swap_or_be_named():
    lines = "--alpha 1", "--reverse --experiment experiment_2", "--teacher resnet50"
    pairs = [f"{run.kd.teacher}, {run.model}" for (run,) in map(runs, lines) if run.kd]
    assert pairs == ["densenet169, resnet18", "resnet18, resnet50", "resnet50, resnet18"]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_bad_command_line_is_refused_in_one_line_that_names_the_flag(line, says):
    with pytest.raises(UserError, match=says) as problem:
        runs(line)
    assert len(str(problem.value).splitlines()) == 1


def test_help_shows_the_text_of_each_setting(capsys):
    with pytest.raises(SystemExit):
        runs("--method kd --help")
    printed = " ".join(capsys.readouterr().out.split())
    assert all(item.metadata["text"] in printed for item in fields(KDConfig))


def test_the_recipe_is_every_setting_but_those_of_name_photos_and_machine():
    others = "model seed tag kd data image_size folds fold duplicates labels_per_class device "
    others += "precision eager output cache resume overwrite"
    assert Config().recipe.keys() ^ others.split() == {f.name for f in fields(Config)} | {"crops"}
