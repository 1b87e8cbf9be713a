#!/usr/bin/env bash
# A job on a cluster of Google Kubernetes Engine (or another with JobSet), from the template jobset.yaml:
#   bash launch/gke/jobset.sh --name run1 --image IMAGE --tpu tpu-v5-lite-podslice:4x4 --machines 4 --chips 4 \
#     train --config C.py --workdir gs://bucket/run1
# Options:
#   --name NAME            of the JobSet                  --image IMAGE   a container image with ssljax
#   --tpu KIND:TOPOLOGY    machines of a slice of TPUs    --gpu KIND      or machines with GPUs (nvidia-h100-80gb)
#   --machines N           machines of a slice            --chips K       TPU chips or GPUs of a machine
#   --slices S             number of slices (default: 1)  --restarts R    restarts after failures (default: 100)
#   --dry-run              print manifest and command
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' image='' tpu='' gpu='' machines='' chips='' slices=1 restarts=100 dry=''
while [ $# -gt 0 ]; do
  case $1 in
  --name | --image | --tpu | --gpu | --machines | --chips | --slices | --restarts)
    [ $# -gt 1 ] || fail "$1: has no value"
    declare "${1#--}=$2"
    shift 2
    ;;
  --dry-run)
    dry=yes
    shift
    ;;
  --help | -h)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  -*) fail "$1: unknown option; see --help" ;;
  *) break ;;
  esac
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || fail "--name: got '$name', must be small letters, digits and -"
[[ $image =~ ^[^[:space:]]+$ ]] || fail "--image: missing, a container image with ssljax"
for option in machines chips slices restarts; do
  [[ ${!option} =~ ^[0-9]+$ ]] || fail "--$option: got '${!option}', must be a whole number"
done
[ $# -gt 0 ] || fail "COMMAND: missing, such as: train --config configs/quickstart.py --workdir gs://bucket/run1"
if [[ $tpu =~ ^[a-z0-9-]+:[0-9x]+$ && -z $gpu ]]; then
  resource=google.com/tpu
  selector="{cloud.google.com/gke-tpu-accelerator: ${tpu%:*}, cloud.google.com/gke-tpu-topology: ${tpu#*:}}"
elif [[ $gpu =~ ^[a-z0-9-]+$ && -z $tpu ]]; then
  resource=nvidia.com/gpu
  selector="{cloud.google.com/gke-accelerator: $gpu}"
else
  fail "--tpu KIND:TOPOLOGY (tpu-v5-lite-podslice:4x4) or --gpu KIND (nvidia-h100-80gb): one of them is needed"
fi

# The words of the command as a JSON list. The program is the first process of its container, which gets SIGTERM.
command='["ssljax"'
for word in "$@"; do
  [[ $word != *[[:cntrl:]]* ]] || fail "COMMAND: has a control character"
  word=${word//\\/\\\\}
  command+=", \"${word//\"/\\\"}\""
done
command+=']'

manifest=$(<"$(dirname "$0")/jobset.yaml")
fill() { # NAME VALUE
  manifest=${manifest//"{{$1}}"/"$2"}
}
fill name "$name"
fill image "$image"
fill command "$command"
fill selector "$selector"
fill resource "$resource"
fill chips "$chips"
fill machines "$machines"
fill slices "$slices"
fill processes "$((machines * slices))"
fill restarts "$restarts"
if [ -n "$dry" ]; then
  echo "$manifest"
  echo "# kubectl apply -f -"
else
  kubectl apply -f - <<<"$manifest"
fi
