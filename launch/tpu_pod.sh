#!/usr/bin/env bash
# Runs one experiment on all hosts of a Cloud TPU pod slice.
#
#   launch/tpu_pod.sh NAME ZONE [FLAGS OF jaxunlearn.main]
#   launch/tpu_pod.sh my-v5e-16 us-west4-a --config=configs/cifar10_augmentation.py \
#       --config.store=/mnt/disks/share/store --workdir=/mnt/disks/share/runs/cifar10
#
# Needs gcloud, logged in, and the slice (`gcloud compute tpus tpu-vm create`). The checkout, as it
# was last committed, is copied to every host and installed there; the first host has the store and
# the results, in its home folder unless the flags name others. The same command after a preemption goes on where the
# run was, if the store was on a disk that survived. DRY_RUN=1 prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ]; then
  echo "usage: launch/tpu_pod.sh NAME ZONE [FLAGS OF jaxunlearn.main]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu=(gcloud compute tpus tpu-vm)
archive=$(mktemp -d)/jaxunlearn.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
git archive --prefix=jaxunlearn/ -o "$archive" HEAD

run "${tpu[@]}" scp "$archive" "$name:" --zone="$zone" --worker=all
run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  tar xzf jaxunlearn.tar.gz
  [ -x venv/bin/pip ] || {
    python=\$(command -v python3.13 python3.12 python3.11 | head -n1)
    [ -n \"\$python\" ] || { sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
    \"\${python:-python3.11}\" -m venv --clear venv; }
  venv/bin/pip install -q -e 'jaxunlearn[tpu]'"

# "auto": JAX reads from the slice who the others are.
flags=$(printf ' %q' "$@")
run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="
  cd jaxunlearn
  ../venv/bin/python -m jaxunlearn.main --coordinator=auto$flags"
