#!/usr/bin/env bash
# Runs the GPU tests, then experiments, for at most SECONDS.
#
#   docs/gpu.sh SECONDS OUT [FLAGS]      docs/gpu.sh 480 results --data PHOTOS
#
# FLAGS are options of train.py, passed to every command; paths in them are relative to the repository. It
# needs only photos, in data/weather or by --data, and Python (PYTHON, by default python3) with torch,
# torchvision, tensorboard, numpy, pillow, tqdm, pytest and hypothesis. Runs with a pretrained teacher also
# need WEIGHTS, the weights file of EfficientNet-Lite0, and its package (docs/results.md). OUT gets log.txt,
# done.txt and results.tar.gz: the results of all runs and these two files, but no weights, which stay in
# WORK, by default output/gpu. JOBS processes run side by side, by default 4, each with its share of the ten
# folds. ARMS lists the experiments to run, in order, by default all.
# If started again, or on another machine with only OUT or the archive in it, it does what is not yet done.
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
    --fold* | --output* | --cache* | --tag* | --models* | --teacher* | --student* | --experiment* | --epochs* | \
      --lr* | --mixup* | --label* | --schedule* | --crop* | --weights* | --reverse | --resume | --overwrite)
      echo "$flag: this script sets it itself" >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "$0")/.." || exit 2
if [ -n "${WEIGHTS:=}" ]; then WEIGHTS=$(realpath -e "$WEIGHTS") || exit 2; fi
mkdir -p "${WORK:=output/gpu}/results" "$WORK/kept" && work=$(cd "$WORK" && pwd) || exit 2
if ! [ -e data/weather ] && ! [ -e data/weather.zip ] && [[ " ${flags[*]} " != *" --data"* ]]; then
  echo "there are no photos in data/weather: give --data PHOTOS" >&2
  exit 2
fi
export PYTHONUNBUFFERED=1
lite=$work/lite.py:lite0
cat >"$work/lite.py" <<'END'
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def lite0(classes):
    model = EfficientNet.from_name("efficientnet-lite0")
    model._fc = nn.Linear(model._fc.in_features, classes)
    return model
END
: "${ARMS:=pretrained fitnet maps experiment_1 experiment_2 longer longer_taught longer_students controls small_taught small methods causes reversed few10 few5 few25}"

left() { echo $((limit - SECONDS)); }

# Runs Python for at most the time that is left.
python() {
  local seconds
  seconds=$(left)
  if [ $seconds -le 0 ]; then return 124; fi
  timeout --foreground --kill-after=10 $seconds "${PYTHON:-python3}" "$@"
}

train() { python train.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"; }

distil() {
  python knowledge_distillation.py --resume --output "$work" --cache "$work/cache" "$@" "${flags[@]}"
}

gpu_tests() { python -m pytest -q -rs -o addopts= -p no:cacheprovider tests/test_gpu.py "$@"; }

speed_test() { gpu_tests -k keeps_up; }

other_tests() { gpu_tests -k "not keeps_up"; }

# Times 3 epochs of experiment 1 from an empty cache, decoding included.
speeds() {
  rm -rf "$work/nothing"
  python knowledge_distillation.py --epochs 3 "${flags[@]}" --output "$work/nothing" \
    --cache "$work/nothing/cache"
}

# The experiments, each over the `folds` of `once`. A teacher's students are trained along with it,
# since its weights stay on this machine. Finished runs are not repeated here; on another machine, a network
# that several experiments need is trained again, and its result replaces the kept one.
experiment_1() { distil --experiment experiment_1 "${folds[@]}" "$@"; }
experiment_2() { distil --experiment experiment_2 "${folds[@]}" "$@"; }

reversed() { experiment_1 --reverse && experiment_2 --reverse; }

thirty=(--epochs 30 --mixup 0.2 --tag 30epochs)
sixty=(--epochs 60 --mixup 0.2 --tag 60epochs)

# EfficientNet-Lite0 with ImageNet weights, and what it teaches ResNet18 in 15 and 30 epochs.
tuned() { train --models "$lite" --weights "$WEIGHTS" --epochs 6 --lr 0.0003 --tag tuned "${folds[@]}"; }
taught() { distil --teacher "$lite" --teacher-tag tuned --alpha 0.9 "${folds[@]}" "$@"; }
pretrained() { tuned && taught --student resnet18 && taught --student resnet18 "${thirty[@]}"; }

# The same by feature maps, too, and by these alone.
fitnet() {
  tuned && taught --student resnet18 --method fitnet "$@" &&
    taught --student resnet18 --method fitnet "$@" "${thirty[@]}"
}
maps() { fitnet --alpha 0; }

# ResNet18 for 60 epochs, alone and with the pretrained teacher, and a student that the former teaches for 15.
longer() {
  train --models resnet18 "${sixty[@]}" "${folds[@]}" &&
    distil --teacher resnet18 --student resnet18 --teacher-tag 60epochs --method kd fitnet "${folds[@]}"
}
longer_taught() { tuned && taught --student resnet18 "${sixty[@]}" --method fitnet; }

# The students of the ResNet18 of 60 epochs that train as long as it, or half as long.
longer_students() {
  local by=(--teacher resnet18 --teacher-tag 60epochs --student resnet18 --method fitnet kd)
  train --models resnet18 "${sixty[@]}" "${folds[@]}" &&
    distil "${by[@]}" "${thirty[@]}" "${folds[@]}" &&
    distil "${by[@]}" "${sixty[@]}" "${folds[@]}"
}

# Self-distillation; label smoothing; 15 epochs with mixup and 30 without.
controls() {
  local alone=(--models resnet18 "${folds[@]}")
  distil --teacher resnet18 --student resnet18 --method kd fitnet "${folds[@]}" &&
    train "${alone[@]}" --label-smoothing 0.1 --tag smooth &&
    train "${alone[@]}" --mixup 0.2 --tag mixup &&
    train "${alone[@]}" --epochs 30 --tag 30plain
}

# A share of the labels, the other photos unlabelled: alone, and taught by networks trained on the same labels.
few() {
  local some=(--labels-per-class "$1" "${folds[@]}")
  train --models resnet18 --epochs 60 --tag few60 "${some[@]}" &&
    train --models "$lite" --weights "$WEIGHTS" --epochs 30 --lr 0.0003 --tag few "${some[@]}" &&
    distil --teacher "$lite" --teacher-tag few --student resnet18 --alpha 0.9 --method kd fitnet --tag few "${some[@]}" &&
    distil --teacher resnet18 --teacher-tag few60 --student resnet18 --alpha 0.9 --tag few "${some[@]}"
}
few10() { few 0.1; }
few5() { few 0.05; }
few25() { few 0.25; }

small() { distil --teacher resnet50 --student mobilenet_v3_small "${folds[@]}"; }
small_taught() { tuned && taught --student mobilenet_v3_small --method fitnet kd; }

methods() { tuned && taught --student resnet18 --method kd dkd dist fitnet attention rkd sp; }

# What hurts a student and what helps it (docs/experiment_1).
causes() {
  local pair=(--experiment experiment_1 "${folds[@]}")
  local alone=(--models densenet169 "${folds[@]}")
  local found=(--schedule constant --crop-scale 1)
  train "${alone[@]}" "${found[@]}" --epochs 3 --tag 3epochs &&
    distil "${pair[@]}" --teacher-tag 3epochs &&
    distil "${pair[@]}" "${found[@]}" --tag original --teacher-tag 3epochs &&
    distil "${pair[@]}" "${found[@]}" --tag original &&
    distil "${pair[@]}" --schedule constant --tag constant &&
    distil "${pair[@]}" "${found[@]}" --tag original --alpha 0.175
}

# Results are kept apart from the runs here: on another machine the weights are missing, so an experiment that
# is not finished starts from the beginning there.
archive() {
  cp "$out/log.txt" "$out/done.txt" "$work/kept/"
  (cd "$work" && find results -type f \( -name result.json -o -name history.csv -o \
    -name test_logits.npz \) -exec cp --parents {} kept/ \;)
  tar -czf "$work/results.tar.gz" -C "$work/kept" . && mv "$work/results.tar.gz" "$out/"
}

# Runs a task for those of its folds that are not done, all in one command, as starting one takes as long
# as a short run. Skipped if less than 15 s are left. Its output is appended to the log when it ends.
once() {
  local task=$1 started=$SECONDS status=0 todo=() folds fold log
  shift
  for fold in "${@:--}"; do # "-" for a task without folds
    grep -qxF -- "$task $fold" "$out/done.txt" || todo+=("$fold")
  done
  if [ ${#todo[@]} -eq 0 ] || [ "$(left)" -lt 15 ]; then return; fi
  log=$work/$task-${todo[0]}.log
  folds=(--folds 10 --fold "${todo[@]}")
  "$task" >"$log" 2>&1 || status=$?
  {
    flock 9
    echo "== $task ${todo[*]}: status $status after $((SECONDS - started)) s, at $(date +%T)"
    cat "$log"
    case $status in
      0) printf "$task %s\n" "${todo[@]}" >>"$out/done.txt" ;;
      124 | 137 | 143) ;; # the time is up
      *) touch "$work/failed" ;;
    esac
    archive
  } 9>"$work/lock"
}

# All experiments for some of the folds.
chain() {
  local arm fold
  for arm in $ARMS; do
    case $arm in pretrained | fitnet | maps | few* | methods | *_taught) [ -e "$WEIGHTS" ] || continue ;; esac
    case $arm in
      longer* | reversed) for fold; do once "$arm" "$fold"; done ;; # long, so one by one
      methods | causes) for fold; do [ "$fold" -gt 2 ] || once "$arm" "$fold"; done ;; # long, so only folds 0 to 2
      *) once "$arm" "$@" ;;
    esac
  done
}

# Processes share a GPU better through NVIDIA's Multi-Process Service, where it is installed and works.
share_gpu() {
  export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
  mkdir -p "$work/mps"
  if command -v nvidia-cuda-mps-control >/dev/null && nvidia-cuda-mps-control -d &&
    timeout 60 "${PYTHON:-python3}" -c 'import torch; torch.ones(9, device="cuda").sum().item()'; then
    echo "== runs share the GPU by MPS"
  else
    stop_sharing
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    echo "== runs share the GPU by time slicing"
  fi
}

stop_sharing() { echo quit | nvidia-cuda-mps-control >/dev/null 2>&1; }

all() {
  rm -f "$work/failed"
  "${PYTHON:-python3}" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
  git log -1 --format='commit %h' 2>/dev/null
  once speed_test
  once speeds
  once other_tests &
  share_gpu
  for ((first = 0; first < ${JOBS:-4} && first < 10; first++)); do
    chain $(seq "$first" "${JOBS:-4}" 9) &
  done
  wait
  [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] || stop_sharing
  echo "== $(wc -l <"$out/done.txt") done, $(find "$work/kept" -name result.json | wc -l) runs, $SECONDS s"
  [ ! -e "$work/failed" ]
}

if [ -f "$out/results.tar.gz" ]; then
  tar -xzf "$out/results.tar.gz" -C "$work/kept" --skip-old-files
  for name in done.txt log.txt; do [ -f "$out/$name" ] || cp "$work/kept/$name" "$out/"; done
fi
touch "$out/log.txt" "$out/done.txt"
all 2>&1 | tee -a "$out/log.txt"
