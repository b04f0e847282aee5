#!/usr/bin/env bash
# Makes the most of a machine with a GPU, for so many seconds: tests, benchmarks, evidence.
#
#   docs/gpu.sh SECONDS OUT [FLAGS]      docs/gpu.sh 480 results --data PHOTOS
#
# FLAGS are of train.py and go to every command. Without --data the photos are in data/weather. All
# it needs is Python (PYTHON, by default python3) with torch, torchvision, tensorboard, numpy,
# pillow, tqdm, pytest and hypothesis. OUT gets log.txt, done.txt and results.tar.gz: the results
# of all runs, and these two files, but no weights, which stay in WORK, by default output/gpu.
# Started again, or elsewhere with this archive in OUT, it goes on with what is not in done.txt.
set -u
if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null; then
  sed -n '4s/^# *//p' "$0" >&2
  exit 2
fi
limit=$1
mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
shift 2
flags=("$@")
cd "$(dirname "$0")/.." || exit 2
mkdir -p "${WORK:=output/gpu}/results" && work=$(cd "$WORK" && pwd) || exit 2
export PYTHONUNBUFFERED=1
folds="0 1 2 3 4 5 6 7 8 9"

left() { echo $((limit - SECONDS)); }

python() { timeout --kill-after=20 "$(left)" "${PYTHON:-python3}" "$@"; }

train() { python train.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"; }

distil() {
  python knowledge_distillation.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"
}

gpu_tests() { python -m pytest -q -rs -o addopts= -p no:cacheprovider tests/test_gpu.py; }

benchmark() { python -m utils.benchmark --cache "$work/cache" "$@" "${flags[@]}"; }

# Decoding included: with an output and a cache of its own.
from_nothing() {
  rm -rf "$work/nothing"
  python knowledge_distillation.py "${flags[@]}" --output "$work/nothing" --cache "$work/nothing/cache"
}

# The students of a teacher are made with it, since its weights stay on this machine.
experiment() { distil --experiment "$1" --folds 10 --fold "$2"; }

long_teacher() {
  local long=(--epochs 60 --mixup 0.2 --tag 60epochs) fold=(--folds 10 --fold "$1")
  train --models resnet18 "${long[@]}" "${fold[@]}" &&
    distil --teacher resnet18 --student resnet18 --teacher-tag 60epochs "${fold[@]}" &&
    distil --teacher resnet18 --student resnet18 "${long[@]}" "${fold[@]}"
}

longer_alone() { train --models resnet18 --epochs 30 --tag 30epochs --folds 10 --fold "$1"; }

archive() {
  (cd "$work" && find results -name result.json -o -name history.csv -o -name test_logits.npz) |
    tar -czf "$work/results.tar.gz" -C "$out" log.txt done.txt -C "$work" -T - &&
    mv "$work/results.tar.gz" "$out/"
}

# Does what is named, if that was not done and there is time: once it has succeeded, it is done.
once() {
  local name="$*" started=$SECONDS status=0
  if grep -qxF -- "$name" "$out/done.txt"; then return; fi
  if [ "$(left)" -lt 15 ]; then return; fi
  echo "== $name: started at $(date +%T), $(left) s left"
  "$@" || status=$?
  echo "== $name: status $status after $((SECONDS - started)) s"
  if [ $status -eq 0 ]; then
    echo "$name" >>"$out/done.txt"
    archive
  fi
}

all() {
  "${PYTHON:-python3}" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
  once gpu_tests
  once benchmark --models resnet18
  once benchmark --distil --experiment experiment_1
  once from_nothing
  for fold in $folds; do once experiment experiment_1 "$fold"; done
  for fold in $folds; do once long_teacher "$fold"; done
  for fold in $folds; do once experiment experiment_2 "$fold"; done
  for fold in $folds; do once longer_alone "$fold"; done
  echo "== $(wc -l <"$out/done.txt") done, $(find "$work/results" -name result.json | wc -l) runs, $SECONDS s"
}

if [ -f "$out/results.tar.gz" ] && ! [ -f "$out/done.txt" ]; then
  tar -xzf "$out/results.tar.gz" -C "$out" log.txt done.txt
  tar -xzf "$out/results.tar.gz" -C "$work" --skip-old-files results
fi
touch "$out/log.txt" "$out/done.txt"
all 2>&1 | tee -a "$out/log.txt"
