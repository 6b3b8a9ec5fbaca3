#!/usr/bin/env bash
# One run on a TPU pod slice: asks for it as a queued resource, installs the code on all workers, and starts the run on each.
#
#   launch/tpu_vm.sh --name simvlm --zone us-east5-b --type v5litepod-256 --version v2-alpha-tpuv5-lite --spot \
#       -- --config configs/prefixlm.py:huge --workdir /shared/huge
#
# Each step can be done alone: --only create|install|run|stop|delete. --dry-run prints the commands and runs none. What follows
# -- goes to python -m simvlm_jax.main; the workers find each other through jax's own TPU support. Installed is the last commit.
# The run directory must be on a file system that all workers share (Filestore, or a bucket mounted by gcsfuse with
# --metadata-cache-ttl-secs=0). --only stop asks the run to save its state and end; --only run continues it. A pod that was
# preempted is gone: --only delete, then the whole command again continues the run.
set -euo pipefail

usage() { sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'; }
fail() {
  echo "error: $1" >&2
  exit 2
}

name="" zone="" type="" version="" project="" only="" spot=() dry=0
while (($#)); do
  case $1 in
    --name | --zone | --type | --version | --project | --only)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot) spot=(--spot) && shift ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
[[ -n $name && -n $zone ]] || fail "--name and --zone are needed"
case $only in
  "" | create | install | run | stop | delete) ;;
  *) fail "--only $only is not create, install, run, stop or delete" ;;
esac
where=(--zone "$zone")
[[ -z $project ]] || where+=(--project "$project")

do_it() {
  printf '+ '
  printf '%q ' "$@"
  echo
  ((dry)) || "$@"
}
wants() { [[ -z $only && $1 != stop && $1 != delete || $only == "$1" ]]; }
on_all_workers() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}
state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)'
}

if wants create; then
  [[ -n $type && -n $version ]] || fail "--type and --version are needed to create"
  do_it gcloud compute tpus queued-resources create "$name" --node-id "$name" "${where[@]}" \
    --accelerator-type "$type" --runtime-version "$version" "${spot[@]}"
  until ((dry)) || [[ $(state) == ACTIVE ]]; do
    case $(state) in FAILED | SUSPENDED) fail "the queued resource $name is $(state)" ;; esac
    echo "waiting for $name ($(state)) ..."
    sleep 30
  done
fi
if wants install; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  do_it git -C "$(dirname "$0")/.." archive --format=tar.gz -o "$folder/simvlm_jax.tar.gz" HEAD
  do_it gcloud compute tpus tpu-vm scp "$folder/simvlm_jax.tar.gz" "$name:" "${where[@]}" --worker=all
  # the machine's own Python is older than what jax needs; uv brings one
  on_all_workers "mkdir -p simvlm_jax && tar -xzf simvlm_jax.tar.gz -C simvlm_jax && cd simvlm_jax \
    && python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv \
    && ~/.local/bin/uv pip install -q --python .venv -e '.[tpu]'"
fi
if wants run; then
  (($#)) || fail "nothing to run; put the arguments of simvlm_jax.main after --"
  on_all_workers "cd simvlm_jax && .venv/bin/python -m simvlm_jax.main$(printf ' %q' "$@")"
fi
if wants stop; then
  on_all_workers "pkill -TERM -f '[s]imvlm_jax.main' || true"
fi
if wants delete; then
  do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
fi
