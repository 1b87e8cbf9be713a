#!/usr/bin/env bash
# A job on a TPU slice of Google Cloud, which is created as a queued resource:
#   bash launch/tpu_pod.sh --name run1 --zone us-west4-a --type v5litepod-16 all train --config C.py --workdir gs://bucket/run1
# Actions:
#   create         ask for the slice, or use the one of this name, and wait until it is there
#   install        copy the repository to all workers and install it there
#   run COMMAND    run a command of ssljax on all workers
#   all COMMAND    all of these; after a preemption or a failure again, so that the run continues from its checkpoint
#   delete         give the slice back
# Run it where it can stay for the whole run (tmux on a small machine). The workdir must outlive the slice.
set -uo pipefail

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  echo "Options: --name NAME --zone ZONE --type TYPE [--version VERSION] [--project PROJECT] [--spot] [--restarts K]"
  echo "  --version: software of the machines (default: by the type)   --spot: cheaper, may be preempted"
  echo "  --restarts: after failures that are no preemption (default: 3)   --dry-run: print the commands"
}

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' zone='' type='' version='' dry='' restarts=3
gcloud_options=() create_options=()
while [ $# -gt 0 ]; do
  case $1 in
  --name | --zone | --type | --version | --project | --restarts)
    [ $# -gt 1 ] || fail "$1: has no value"
    case $1 in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --type) type=$2 ;;
    --version) version=$2 ;;
    --project) gcloud_options+=("--project=$2") ;;
    --restarts) restarts=$2 ;;
    esac
    shift 2
    ;;
  --spot)
    create_options+=(--spot)
    shift
    ;;
  --dry-run)
    dry=yes
    shift
    ;;
  --help | -h)
    usage
    exit 0
    ;;
  -*) fail "$1: unknown option; see --help" ;;
  *) break ;;
  esac
done
action=${1:-}
[ $# -gt 0 ] && shift
[ -n "$name" ] || fail "--name: missing, the name of the slice"
[ -n "$zone" ] || fail "--zone: missing, such as us-west4-a"
gcloud_options=("--zone=$zone" "${gcloud_options[@]}")

# Prints a command with quotes where they are needed, or runs it.
run_or_print() {
  local word
  if [ -z "$dry" ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@+~-]+$ ]]; then
      printf '%s ' "$word"
    else
      printf '%s ' "${word@Q}"
    fi
  done
  echo
}

resource() { # ACTION OPTION...
  local what=$1
  shift
  run_or_print gcloud compute tpus queued-resources "$what" "$name" "${gcloud_options[@]}" "$@"
}

on_all_workers() { # COMMAND
  run_or_print gcloud compute tpus tpu-vm ssh "$name" "${gcloud_options[@]}" --worker=all --command="$1"
}

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; MISSING if there is no such resource
  gcloud compute tpus queued-resources describe "$name" "${gcloud_options[@]}" '--format=value(state.state)' \
    2>/dev/null || echo MISSING
}

software() {
  case $type in
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  *) echo tpu-ubuntu2204-base ;;
  esac
}

ask() {
  [ -n "$type" ] || fail "--type: missing, such as v5litepod-16"
  resource create --node-id="$name" --accelerator-type="$type" --runtime-version="${version:-$(software)}" \
    "${create_options[@]}"
}

create() {
  if [ -n "$dry" ]; then
    resource describe '--format=value(state.state)'
    ask
    return
  fi
  local now before=''
  while :; do
    now=$(state)
    [ "$now" = "$before" ] || echo "$name: $now" >&2
    before=$now
    case $now in
    ACTIVE) return 0 ;;
    MISSING) ask || return ;;
    SUSPENDED | FAILED) delete || return ;; # it was preempted: ask again
    esac
    sleep "${POLL_SECONDS:-20}"
  done
}

install() {
  local here
  here=$(cd "$(dirname "$0")/.." && pwd)
  on_all_workers 'rm -rf ~/ssljax' &&
    run_or_print gcloud compute tpus tpu-vm scp --recurse "$here" "$name:~/ssljax" "${gcloud_options[@]}" \
      --worker=all &&
    on_all_workers 'python3 -m pip install --user --quiet uv && ~/.local/bin/uv venv --allow-existing --python 3.12 ~/ssljax-env && ~/.local/bin/uv pip install --quiet --python ~/ssljax-env/bin/python -e ~/ssljax[tpu,gcs]'
}

# Runs the command on all workers; its exit code is the highest of the workers, 255 if they cannot be reached.
run() {
  [ $# -gt 0 ] || fail "COMMAND: missing, such as: run train --config configs/quickstart.py --workdir gs://bucket/run1"
  local words codes
  printf -v words '%q ' "$@"
  # What an interrupted call has left would hold the TPUs.
  on_all_workers "pkill -TERM -x ssljax; for i in \$(seq 100); do pgrep -x ssljax >/dev/null || break; sleep 1; done; pkill -KILL -x ssljax; rm -f ~/ssljax.code; cd ~/ssljax && ~/ssljax-env/bin/ssljax $words; code=\$?; echo \$code > ~/ssljax.code; exit \$code"
  [ -n "$dry" ] && return
  codes=$(on_all_workers 'cat ~/ssljax.code') || return 255
  return "$(sort -n <<<"$codes" | tail -n 1)"
}

all() {
  local code failures=0 installed=''
  while :; do
    if [ -z "$dry" ] && [ "$(state)" != ACTIVE ]; then
      installed=''
    fi
    create || return
    if [ -z "$installed" ]; then
      install || return
      installed=yes
    fi
    run "$@"
    code=$?
    if [ -n "$dry" ] || [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
      return "$code"
    fi
    if [ "$(state)" = ACTIVE ]; then
      failures=$((failures + 1))
      echo "$name: exit code $code, failure $failures of at most $restarts" >&2
      [ "$failures" -gt "$restarts" ] && return "$code"
    else
      echo "$name: preempted" >&2
    fi
  done
}

delete() {
  resource delete --force --quiet
}

case $action in
create | install | run | all | delete) "$action" "$@" ;;
*) fail "ACTION: got '$action', must be create, install, run, all or delete; see --help" ;;
esac
