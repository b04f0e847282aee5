#!/usr/bin/env bash
# Makes the most of a machine with a GPU, for so many seconds: tests, evidence.
#
#   docs/gpu.sh SECONDS OUT [FLAGS]      docs/gpu.sh 480 results --data PHOTOS
#
# FLAGS are of train.py and go to every command; paths in them are relative to the repository. All
# it needs are photos, in data/weather or by --data, and Python (PYTHON, by default python3) with
# torch, torchvision, tensorboard, numpy, pillow, tqdm, pytest and hypothesis. OUT gets log.txt,
# done.txt and results.tar.gz: the results of all runs, and these two files, but no weights, which
# stay in WORK, by default output/gpu.
# Started again, or elsewhere with OUT or the archive in it alone, it goes on with what is not done.
set -u -o pipefail
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '4s/^# *//p' "$0" >&2
  exit 2
fi
limit=$1
mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
shift 2
flags=("$@")
for flag in "${flags[@]}"; do
  case $flag in
    --fold* | --output* | --cache* | --tag* | --models* | --teacher* | --student* | --experiment* | \
      --reverse | --resume | --overwrite)
      echo "$flag: this script sets it itself" >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "$0")/.." || exit 2
mkdir -p "${WORK:=output/gpu}/results" "$WORK/kept" && work=$(cd "$WORK" && pwd) || exit 2
if ! [ -e data/weather ] && ! [ -e data/weather.zip ] && [[ " ${flags[*]} " != *" --data"* ]]; then
  echo "there are no photos in data/weather: give --data PHOTOS" >&2
  exit 2
fi
export PYTHONUNBUFFERED=1
folds="0 1 2 3 4 5 6 7 8 9"

left() { echo $((limit - SECONDS)); }

# Within what is left of the time, or of so many seconds if there are fewer.
python() {
  local seconds most=${MOST:-$limit}
  seconds=$(left)
  if [ $seconds -gt $most ]; then seconds=$most; fi
  if [ $seconds -le 0 ]; then return 124; fi
  timeout --foreground --kill-after=10 $seconds "${PYTHON:-python3}" "$@"
}

train() { python train.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"; }

distil() {
  python knowledge_distillation.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"
}

# A third of the time at most: there is more to do than a test that hangs.
gpu_tests() { MOST=$((limit / 3)) python -m pytest -q -rs -o addopts= -p no:cacheprovider tests/test_gpu.py; }

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

# Results are kept apart from the runs here: elsewhere their weights are missing, and what is not done
# is done there from its beginning.
archive() {
  cp "$out/log.txt" "$out/done.txt" "$work/kept/"
  (cd "$work" && find results -type f \( -name result.json -o -name history.csv -o \
    -name test_logits.npz \) -exec cp --parents {} kept/ \;)
  tar -czf "$work/results.tar.gz" -C "$work/kept" . && mv "$work/results.tar.gz" "$out/"
}

# Does what is named, if that was not done and there is time: once it has succeeded, it is done.
once() {
  local name="$*" started=$SECONDS status=0
  if grep -qxF -- "$name" "$out/done.txt"; then return; fi
  if [ "$(left)" -lt 15 ]; then return; fi
  echo "== $name: started at $(date +%T), $(left) s left"
  "$@" || status=$?
  echo "== $name: status $status after $((SECONDS - started)) s"
  case $status in
    0) echo "$name" >>"$out/done.txt" && archive ;;
    124 | 137 | 143) ;; # the time is up
    *) failed=1 ;;
  esac
}

all() {
  failed=0
  "${PYTHON:-python3}" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
  once gpu_tests
  once from_nothing
  for fold in $folds; do once experiment experiment_1 "$fold"; done
  for fold in $folds; do once long_teacher "$fold"; done
  for fold in $folds; do once experiment experiment_2 "$fold"; done
  for fold in $folds; do once longer_alone "$fold"; done
  echo "== $(wc -l <"$out/done.txt") done, $(find "$work/kept" -name result.json | wc -l) runs, $SECONDS s"
  return $failed
}

if [ -f "$out/results.tar.gz" ]; then
  tar -xzf "$out/results.tar.gz" -C "$work/kept" --skip-old-files
  for name in done.txt log.txt; do [ -f "$out/$name" ] || cp "$work/kept/$name" "$out/"; done
fi
touch "$out/log.txt" "$out/done.txt"
all 2>&1 | tee -a "$out/log.txt"
