"""N processes of one run on this machine, joined by jax.distributed over loopback.

    python launch/local.py --processes 2 --devices 2 -- --config configs/prefixlm.py --workdir runs/two

What follows `--` goes to `python -m simvlm_jax.main`. On a machine with GPUs give each process its own with --gpus-each,
of those that CUDA_VISIBLE_DEVICES names if it does.
Ends with the highest exit code (128 + the signal's number of what a signal ended). Ctrl-C and SIGTERM go to all processes,
which agree on a step to stop at.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time


def reserve_port() -> socket.socket:
    """A free port of loopback, kept from other programs while the socket lives; the coordinator can listen on it all the same."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    taken.bind(("127.0.0.1", 0))
    return taken


def environment(index: int, args: argparse.Namespace, port: int) -> dict[str, str]:
    """What a process gets beside the environment it inherits."""
    made = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(args.processes),
        "JAX_PROCESS_ID": str(index),
    }
    if args.devices:
        given = os.environ.get("XLA_FLAGS", "")
        kept = [f for f in given.split() if "xla_force_host_platform_device_count" not in f]
        made["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={args.devices}"])
        made["JAX_PLATFORMS"] = "cpu"
    if args.gpus_each:
        first = index * args.gpus_each
        made["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(args)[first : first + args.gpus_each])
    return made


def visible_gpus(args: argparse.Namespace) -> list[str]:
    """The GPUs to share out."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(args.processes * args.gpus_each)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=0, help="CPU devices of a process (0: what the machine has)")
    parser.add_argument("--gpus-each", type=int, default=0, help="GPUs of a process, in order")
    parser.add_argument("--grace", type=float, default=120, help="seconds the others have to end once one has failed")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="-- arguments of simvlm_jax.main")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f"--processes {args.processes} must be at least 1")
    if len(visible_gpus(args)) < args.processes * args.gpus_each:
        parser.error(
            f"{args.processes} processes x --gpus-each {args.gpus_each} are more GPUs than CUDA_VISIBLE_DEVICES names "
            f"({os.environ['CUDA_VISIBLE_DEVICES']})"
        )
    command = [sys.executable, "-m", "simvlm_jax.main", *(args.rest[1:] if args.rest[:1] == ["--"] else args.rest)]
    reserved = reserve_port()
    port = reserved.getsockname()[1]
    if args.dry_run:
        for i in range(args.processes):
            made = " ".join(f"{k}={shlex.quote(v)}" for k, v in environment(i, args, port).items())
            print(f"{made} {shlex.join(command)}")
        return 0

    processes, copiers = [], []
    for i in range(args.processes):
        env = {**os.environ, **environment(i, args, port)}
        process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches it through this process alone, once
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        copier = threading.Thread(target=copy_lines, args=(i, process.stdout), daemon=True)
        copier.start()
        copiers.append(copier)
        processes.append(process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: pass_on(processes, got))

    failed_at, told = None, set()
    while any(p.poll() is None for p in processes):
        told |= tell(processes, told)
        if failed_at is None and any(p.poll() for p in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > args.grace:
            for p in processes:
                p.kill()
        time.sleep(0.1)
    for copier in copiers:  # the last lines
        copier.join(timeout=10)
    tell(processes, told)
    codes = [p.returncode for p in processes]
    return max((c if c > 0 else 128 - c for c in codes if c), default=0)


def pass_on(processes: list[subprocess.Popen], number: int) -> None:
    """Hands a signal to all; a closed terminal asks for a stop as SIGTERM does."""
    for p in processes:
        if p.poll() is None:
            p.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def tell(processes: list[subprocess.Popen], told: set[int]) -> set[int]:
    """Says how processes have ended that did not end well; gives those it spoke of."""
    ended = {i for i, p in enumerate(processes) if p.poll() and i not in told}
    for i in ended:
        code = processes[i].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
        print(f"[launch] process {i} (pid {processes[i].pid}) {how}", flush=True)
    return ended


def copy_lines(index: int, stream) -> None:
    for line in stream:
        print(f"[{index}] {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
