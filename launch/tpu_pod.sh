#!/usr/bin/env bash
# All hosts of a Cloud TPU slice, one process each, started again until the run is finished:
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/mlvicx.py --workdir=gs://... or a mounted bucket
#
# Before, once, copy and install on every host:
#   gcloud compute tpus tpu-vm scp --recurse --worker=all --zone=ZONE . NAME:mlvicx_jax
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="cd mlvicx_jax &&
#       python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
# --workdir and --config.data.data_dir must be folders that all hosts see. jax finds the other hosts by itself.
set -u

if (( $# < 3 )); then
    echo 'usage: launch/tpu_pod.sh NAME ZONE --config=RECIPE [--config.FIELD=VALUE ...]' >&2
    exit 2
fi
name=$1 zone=$2
shift 2
printf -v arguments '%q ' "$@"

for (( start = 1; start <= 50; start++ )); do
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
        --command="cd mlvicx_jax && .venv/bin/python main.py $arguments"
    code=$?
    case $code in
        70 | 75 | 134 | 137 | 143 | 255)  # stalled; saved after SIGTERM; aborted; killed; ended; no connection
            echo "start $start ended with $code; once more in 30 s"
            sleep "${PAUSE:-30}" ;;
        *) exit "$code" ;;
    esac
done
exit "$code"
