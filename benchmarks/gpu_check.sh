#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most 8 minutes: the tests marked `gpu`, attention beside its peers, tile
# sizes, the whole model, a training step, and where time goes.
#
#   benchmarks/gpu_check.sh --prepare DIR     on a machine with PyPI: write DIR/packages.tar.gz (under 60 MB)
#   benchmarks/gpu_check.sh [--packages FILE] [--output DIR] [--seconds 480] [--processes 12]
#                                             on the machine with the GPU, which needs no network
#   benchmarks/gpu_check.sh --dry-run         every step on a CPU, in Triton's interpreter, with tiny shapes
#
# The machine with the GPU needs Linux, and a python3 (or $PYTHON) with PyTorch for CUDA, torchvision, Triton, NumPy,
# SciPy, OpenCV, Pillow, Matplotlib, tensorboard, safetensors, tabulate, packaging and pytest. --packages adds the rest:
# Detectron2 and the small packages of pyproject.toml, for the Python of $TARGET_PYTHON (default 3.12) on x86-64.
#
# Most important first. Each step has a limit of its own. DIR/gpu-check gets tables, JSON files, charts and logs while
# they are made; after each step there are also gpu-check.md (a summary) and gpu-check.tar.gz (all in one file). Caches of
# compilers go to $TMPDIR or /tmp, and nothing to the folder of the sources. The status is 1 if a step failed; a step
# that ran out of time is not a failure.
set -u
cd "$(dirname "$0")/.." || exit 1
root=$PWD
python=${PYTHON:-python3}
packages="" output=output/gpu_check seconds=480 dry="" processes=12
while [ $# -gt 0 ]; do
    case $1 in
    --prepare) exec "$python" benchmarks/_gpu_check_packages.py "$2" ;;
    --packages) packages=$2; shift ;;
    --output) output=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --processes) processes=$2; shift ;;
    --dry-run) dry=1 seconds=3000 ;;
    *) sed -n '2,20s/^# \{0,1\}//p' "$0"; [ "$1" = --help ]; exit $? ;;
    esac
    shift
done
begin=$(date +%s)
deadline=$((begin + seconds))
mkdir -p "$output" || exit 1
output=$(cd "$output" && pwd)
work=$(mktemp -d || mktemp -d -p "$output") || exit 1
results=$output/gpu-check
# Results of an earlier run stay, under another name.
[ ! -e "$results" ] || mv "$results" "$results.$(date -r "$results" +%Y%m%d-%H%M%S)" || exit 1
mkdir "$results" || exit 1
trap 'publish; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

# Written beside and renamed, in one folder, so that a cut leaves the last whole version.
publish() {
    local page=$output/.gpu-check.md archive=$output/.gpu-check.tar.gz
    "$python" benchmarks/_gpu_check_summary.py "$results" >"$page" && mv "$page" "$output/gpu-check.md"
    tar -czf "$archive" -C "$output" gpu-check && mv "$archive" "$output/gpu-check.tar.gz"
}

failed=0
# step NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds; its output goes to NAME.log.
step() {
    local name=$1 limit=$2 start status left
    shift 2
    # A CPU takes its time.
    [ -n "$dry" ] && limit=$((10 * limit))
    left=$((deadline - $(date +%s) - 5))
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        printf '%s\tnot started, no time left\t0\t%s\n' "$name" "$*" >>"$results/steps.tsv"
        return
    fi
    start=$(date +%s)
    echo "== $name (at most $limit s): $*"
    timeout -k 5 "$limit" "$@" >"$results/$name.log" 2>&1
    status=$?
    case $status in
    0) status="done" ;;
    124 | 137) status="out of time" ;;
    *) status="failed ($status)"; failed=1; tail -n 15 "$results/$name.log" ;;
    esac
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$(($(date +%s) - start))" "$*" >>"$results/steps.tsv"
    echo "== $name: $status, $(($(date +%s) - start)) s"
    publish
}

if [ -n "$packages" ]; then
    mkdir "$work/packages" && tar -xzf "$packages" -C "$work/packages" || exit 1
    # Their compiled code would take the place of what this machine has.
    target=$(cat "$work/packages/target-python")
    here=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1
    if [ "$target" != "$here" ]; then
        echo "$packages is for Python $target, $python is $here: set PYTHON, or TARGET_PYTHON=$here with --prepare" >&2
        exit 1
    fi
    PYTHONPATH=$work/packages${PYTHONPATH:+:$PYTHONPATH}
fi
# This checkout comes first; what it installs (entry points) is among the packages.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
export TORCH_EXTENSIONS_DIR=$work/extensions MPLCONFIGDIR=$work/matplotlib
bench() { echo "$python -W ignore benchmarks/$1"; }

size="800 1333" image="800 1344" training="1024 1024" device=cuda model=large network="" ours=auto repeats=10
bfloat16=bfloat16 more="--seconds 1 --repeats 20" peers="tiled flex-tiles natten" tuning="--processes $processes"
tests=$(grep -rl 'mark\.gpu' tests --include='*.py')
if [ -n "$dry" ]; then
    export TRITON_INTERPRET=1 TORCHDYNAMO_DISABLE=1
    size="32 32" image="32 32" training="32 32" device=cpu model=dry-run ours=triton repeats=1
    # The interpreter can't multiply bfloat16.
    bfloat16=float32 more="--seconds 0.01 --repeats 1 --threads 1" peers="tiled" tuning="--processes 0 --most 2"
    network="MODEL.DINAT.EMBED_DIM 16 MODEL.DINAT.DEPTHS [1,1,1,1] MODEL.DINAT.NUM_HEADS [1,2,4,8]
        MODEL.DINAT.KERNEL_SIZE 3 MODEL.DINAT.DILATIONS [[1],[1],[1],[1]] MODEL.MASK_FORMER.DEC_LAYERS 2
        MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND triton"
    # Only their collection: they are skipped without a GPU.
    tests=tests/dinat_backbone/test_triton_attention.py
fi
attention="$(bench attention.py) --device $device --models $model --images $image --ours $ours $more --peers $peers"
whole="$(bench model.py) --whole --repeats $repeats --size $size"

# The words of options are split on purpose.
# shellcheck disable=SC2086
all_steps() {
    step machine 60 $python -W ignore benchmarks/_gpu_check_summary.py --machine $device
    step tests 120 $python -m pytest -q -p no:cacheprovider -m gpu $tests
    attention_of $bfloat16 bfloat16 forward 100
    step model-bfloat16 60 $whole --output "$results/model-bfloat16" MODEL.DEVICE $device TEST.AMP True $network
    attention_of $bfloat16 bfloat16 backward 90
    tiles_of $bfloat16 bfloat16 75
    step training 45 $(bench model.py) --train --size $training --repeats 3 --output "$results/training" \
        MODEL.DEVICE $device SOLVER.AMP.ENABLED True $network
    step operators-bfloat16 45 $(bench model.py) --operators --size $size --output "$results/operators-bfloat16" \
        MODEL.DEVICE $device TEST.AMP True $network
    step model-bfloat16-compiled 120 $whole --output "$results/model-bfloat16-compiled" \
        MODEL.DEVICE $device MODEL.COMPILE True TEST.AMP True $network
    # A dry run has had these: it computes in float32.
    [ -n "$dry" ] && return
    step model-float32 45 $whole --output "$results/model-float32" MODEL.DEVICE $device $network
    attention_of float32 float32 forward 60
    attention_of float32 float32 backward 60
    tiles_of float32 float32 60
    step model-float32-compiled 120 $whole --output "$results/model-float32-compiled" \
        MODEL.DEVICE $device MODEL.COMPILE True $network
}
# attention_of TYPE NAME PASS LIMIT
attention_of() {
    local name=attention-$2-$3
    # shellcheck disable=SC2086
    step "$name" "$4" $attention --dtypes "$1" --passes "$3" --output "$results/$name"
}
# tiles_of TYPE NAME LIMIT
tiles_of() {
    # shellcheck disable=SC2086
    step "tiles-$2" "$3" $(bench tune_attention.py) --device $device --model $model --image $image $tuning \
        --dtypes "$1" --limit $(($3 - 10)) --output "$results/tiles-$2"
}
all_steps
echo "$output/gpu-check.md, $output/gpu-check.tar.gz; $(($(date +%s) - begin)) s"
exit $failed
