#!/usr/bin/env bash
# Train on a Cloud TPU pod slice, from a laptop with gcloud:
#
#   export NAME=diffusion ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite
#   export REPO=https://github.com/YOU/diffusion_jax.git BUCKET=gs://YOUR-BUCKET   # in the region of ZONE
#   experiments/launch/tpu_pod.sh create        # SPOT=1 for spot capacity; `queue` instead waits for capacity
#   experiments/launch/tpu_pod.sh install       # on every host: clone, make install EXTRAS=tpu,gcs
#   experiments/launch/tpu_pod.sh train --config=configs/cifar10.py:edm,full --workdir=$BUCKET/runs/cifar10 \
#     --config.data.data_dir=$BUCKET/data --config.data.batch_size=2048
#   experiments/launch/tpu_pod.sh log           # follow host 0; Ctrl-C leaves the training alone
#   experiments/launch/tpu_pod.sh stop          # save and end; the same `train` resumes
#   experiments/launch/tpu_pod.sh delete
#
# Each host runs one process on its own chips; jax finds the others from the TPU's metadata. The hosts share no disk: the
# workdir is in the bucket (docs/scaling.md). With NFS=HOST:/SHARE, `install` also mounts that share at /shared on every host,
# and --workdir may be a folder there instead.
set -euo pipefail

usage() { sed -n "2,/^set /{/^set /d;s/^# \{0,1\}//;p}" "$0"; exit 2; }
action=${1:-}
[ -n "$action" ] || usage
shift
: "${NAME:?the name of the slice}" "${ZONE:?its zone}"
tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --batch-size=all --command="$1"; }
need() { : "${TYPE:?such as v5litepod-256}" "${VERSION:?the runtime, such as v2-alpha-tpuv5-lite}"; }

case $action in
  create)
    need
    tpu create --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}
    ;;
  queue)
    need
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
      --accelerator-type="$TYPE" --runtime-version="$VERSION" ${SPOT:+--spot}
    ;;
  install)
    : "${REPO:?the git address of your checkout}"
    share=:
    if [ -n "${NFS:-}" ]; then
      share="sudo apt-get install -qy nfs-common
        sudo mkdir -p /shared
        mountpoint -q /shared || sudo mount -t nfs $(printf %q "$NFS") /shared"
    fi
    everywhere "set -e
      sudo apt-get update -q && sudo apt-get install -qy make git python3-pip
      $share
      [ -d diffusion_jax ] || git clone -q $(printf %q "$REPO") diffusion_jax
      git -C diffusion_jax pull -q --ff-only
      python3 -m pip install -q --user uv && python3 -m uv python install -q 3.12
      make -C diffusion_jax install EXTRAS=tpu,gcs PYTHON=\$(python3 -m uv python find 3.12)"
    ;;
  train)
    [ $# -gt 0 ] || usage
    everywhere "cd diffusion_jax
      if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then echo 'a training runs already' >&2; exit 1; fi
      setsid nohup .venv/bin/python -m experiments.train $(printf '%q ' "$@") >>train.log 2>&1 </dev/null &
      echo \$! >train.pid"
    ;;
  log) tpu ssh --worker=0 --command="tail -n 100 -F diffusion_jax/train.log" ;;
  stop) everywhere "kill -TERM \$(cat diffusion_jax/train.pid)" ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet 2>/dev/null || tpu delete --quiet
    ;;
  *) usage ;;
esac
