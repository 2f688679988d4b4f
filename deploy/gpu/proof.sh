#!/usr/bin/env bash
# Proves Sextet on a machine with a GPU: installs it, tests it, measures it, and judges the figures, in eight minutes.
#
#   deploy/gpu/proof.sh [OPTION...] [PHASE...]
#
#   install      deploy/gpu/install.sh: from a folder of wheels into a virtual environment, without a network
#   models       checkpoints of usual shapes with random weights, and their artifacts; runs beside the next two
#   tests        pytest -m gpu, without those that start a cluster
#   cluster      pytest -m gpu, those that start one
#   doctor       sextet doctor: whether the device computes, and the cluster that encoders measures fits this machine
#   encoders     rows per second: bare, served, and of PyTorch behind a small server
#   generators   tokens per second: served, and of transformers' generate
#   report       gpu.json, the verdict on each bar; on CUDA also benchmarks/results/gpu.json and docs/performance.md
#
#   --wheels DIR     what install installs from; without it, the environment is there already
#   --venv DIR       the environment (.venv)
#   --output DIR     the results of all phases (gpu-proof); named phases run again, and report reads what is there
#   --device NAME    cuda, or cpu: the same on the CPU provider, which judges no bar
#   --quick          tiny models and short windows, to see whether it works; judges no bar
#   --seconds N      the time for all phases (480), each of which has its share
#
# A phase whose time is over is interrupted, and killed where it then takes longer than a cluster may take to stop.
#
# A phase that fails, or whose time is over, is one line in phases.tsv, and the next one runs. Exit status: 0 where every
# phase succeeded and every bar is met, 1 where not, 2 for wrong arguments.
set -uo pipefail

all=(install models tests cluster doctor encoders generators report)
declare -A share=([install]=50 [models]=0 [tests]=80 [cluster]=45 [doctor]=10 [encoders]=135 [generators]=105 [report]=15)
stop=70  # seconds: more than STOP_S of benchmarks/suites/cluster.py and tests/cluster/serving.py
last_stop=40  # of them are kept for the last phase that starts a cluster, so that the whole ends in its time
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels="" venv=$root/.venv output=$root/gpu-proof device=cuda seconds=480 quick=()

refuse() {
    echo "proof.sh: $1" >&2
    exit 2
}

chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=(--quick) ;;
        --wheels | --venv | --output | --device | --seconds)
            [ $# -gt 1 ] || refuse "$1 needs a value"
            declare "${1#--}=$2"
            shift
            ;;
        *)
            [[ " ${all[*]} " == *" $1 "* ]] || refuse "no phase or option is named $1; phases: ${all[*]}"
            chosen+=("$1")
            ;;
    esac
    shift
done
[[ $device == cuda || $device == cpu ]] || refuse "device is $device; allowed: cuda, cpu"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || refuse "seconds is $seconds; allowed: a positive number"
if [ ${#chosen[@]} = 0 ]; then
    chosen=("${all[@]}")
    [ -n "$wheels" ] || chosen=("${all[@]:1}")
fi
asked() { [[ " ${chosen[*]} " == *" $1 "* ]]; }
[ -n "$wheels" ] || ! asked install || refuse "install needs --wheels"

mkdir -p "$output" || exit 2
output=$(cd "$output" && pwd)
# Folders are those of the caller, and phases run in the source tree.
[[ $venv == /* ]] || venv=$PWD/$venv
[[ -z $wheels || $wheels == /* ]] || wheels=$PWD/$wheels
python=$venv/bin/python
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$root" || exit 2
failed=0

# The second at which each phase has to end, so that time which one leaves over goes to the next.
declare -A ends_at
total=0
for phase in "${all[@]}"; do ! asked "$phase" || total=$((total + share[$phase])); done
end=0
for phase in "${all[@]}"; do
    ! asked "$phase" || end=$((end + share[$phase]))
    ends_at[$phase]=$(((seconds > 2 * last_stop ? seconds - last_stop : seconds) * end / (total ? total : 1)))
done
if asked tests || asked cluster; then ends_at[models]=${ends_at[cluster]}; else ends_at[models]=$seconds; fi

# grace SECOND: how long a phase that is interrupted at that second may take to stop.
grace() {
    local left=$((seconds - ${share[report]} - $1))
    echo $((left > stop ? stop : left > last_stop ? left : last_stop))
}

# Processes in the background keep SIGINT, which lets a cluster stop in order, only under job control.
set -m
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM

# run PHASE COMMAND...: its output goes to log.txt, and how it ended to phases.tsv.
run() {
    local phase=$1 began=$SECONDS log=$scratch/$1 status reason=""
    local limit=$((ends_at[$1] - SECONDS))
    shift
    limit=$((limit > 0 ? limit : 1))
    timeout --signal=INT --kill-after="$(grace $((SECONDS + limit)))" "$limit" "$@" >"$log" 2>&1 &
    wait $!
    status=$?
    if [ $status != 0 ]; then
        reason=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '\t' ' ' | cut -c 1-500)
        # Status 137 is SIGKILL: of `timeout` once the time is over, before that of the kernel where memory is short.
        if [ $status = 137 ] && [ $((SECONDS - began)) -lt "$limit" ]; then
            reason="killed; $reason"
        elif [ $status = 124 ] || [ $status = 137 ]; then
            reason="its time of $limit s was over; $reason"
        fi
    fi
    printf '%s\t%s\t%s\t%s\n' "$phase" "$status" "$((SECONDS - began))" "$reason" >>"$output/phases.tsv"
    { echo "== $phase"; cat "$log"; } >>"$output/log.txt"
    echo "$phase: $([ $status = 0 ] && echo "succeeded in $((SECONDS - began)) s" || echo "failed: $reason")"
    return $status
}

measure() { run "$1" "$python" -m benchmarks.suites.gpu "$1" --device "$device" --output "$output" "${quick[@]}"; }

# gpu_tests PHASE MARKS WORKERS FILE
gpu_tests() {
    run "$1" env SEXTET_TEST_DEVICE="$device" "$python" -m pytest tests/gpu -m "$2" -n "$3" --junitxml "$output/$4.xml"
}
workers=$(($(nproc) / 2))  # of pytest: models are made meanwhile
[ $workers -gt 1 ] || workers=0
[ $workers -lt 8 ] || workers=8

# A phase that runs again leaves no old results for the report, however early it ends.
! asked tests || rm -f "$output/tests.xml"
! asked cluster || rm -f "$output/tests-cluster.xml"
for phase in encoders generators; do ! asked $phase || rm -f "$output/$phase.json"; done
! asked install || run install "$root/deploy/gpu/install.sh" "$wheels" "$venv" || failed=1
if asked models; then measure models & making=$!; fi
! asked tests || gpu_tests tests "gpu and not cluster" $workers tests || failed=1
! asked cluster || gpu_tests cluster "gpu and cluster" 0 tests-cluster || failed=1
! asked models || wait "$making" || failed=1
cluster=()
! asked models || cluster=(models/bench/cluster.yaml)  # which that phase has written
! asked doctor || run doctor "$python" -m sextet doctor "${cluster[@]}" --device "$device" || failed=1
! asked encoders || measure encoders || failed=1
! asked generators || measure generators || failed=1
if asked report; then
    timeout 60 "$python" -m benchmarks.suites.gpu report --device "$device" --output "$output" "${quick[@]}" 2>&1 |
        tee -a "$output/log.txt" || failed=1
fi
exit $failed
