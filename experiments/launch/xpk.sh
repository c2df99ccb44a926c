#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster by xpk (pip install xpk), in an image made from the Dockerfile here with EXTRAS=tpu,gcs:
#
#   export CLUSTER=my-cluster PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-256 IMAGE=REGISTRY/diffusion_jax:tpu
#   export BUCKET=gs://YOUR-BUCKET   # in the region of ZONE, with the data in it
#   experiments/launch/xpk.sh --config=configs/cifar10.py:edm,full --workdir=$BUCKET/runs/cifar10 \
#     --config.data.data_dir=$BUCKET/data --config.data.batch_size=2048
#
# The workload's service account may write the bucket; the hosts share no disk (docs/scaling.md). NAME names the workload
# (diffusion); SLICES is how many slices share one run (1). After a failure or a preemption all slices start again, and the
# run resumes.
set -euo pipefail
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${TYPE:?such as v5litepod-256}" "${IMAGE:?made from experiments/launch/Dockerfile}"
[ $# -gt 0 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }

# Of itself xpk starts again after what kills a process (127 to 255); 75 is a run that stopped with everything saved
xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="${NAME:-diffusion}" \
  --tpu-type="$TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts=50 --restart-on-exit-codes=75 --termination-grace-period-seconds=120 \
  --command="cd /diffusion_jax && exec python -m experiments.train $(printf '%q ' "$@")"
