"""The entry point: `python -m simvlm_jax.main --config configs/prefixlm.py [--config.FIELD=VALUE ...] [--workdir DIR]`.

Flags and exit codes; the work is in experiment.py. On SLURM, Kubernetes and TPU pods, and under `launch/local.py`, the
processes of a job join to one run. Exit codes: 0 done, 75 interrupted (state saved, the same command continues), 76 another
process was lost (the same command continues), 1 an error.
"""

import logging
import os
import signal
import sys
import traceback
from pathlib import Path

from simvlm_jax.core.files import printable_lines
from simvlm_jax.parallel.environment import EXIT_INTERRUPTED, setup_jax, setup_xla, use_huge_pages


def main(argv: list[str] | None = None) -> None:
    """Parses flags and runs; errors of users are one line."""
    import absl.logging
    from absl import app, flags
    from ml_collections import config_flags

    from simvlm_jax.core.children import end_with_parent

    end_with_parent()
    argv = list(sys.argv if argv is None else argv)
    _find_configs(argv)
    config = config_flags.DEFINE_config_file("config", None, "a config, FILE.py or FILE.py:VARIANT")
    workdir = flags.DEFINE_string("workdir", None, "the run directory; by default runs/CONFIG[-VARIANT]")
    mode = flags.DEFINE_enum("mode", "train", ["train", "fit", "eval"], "train and evaluate, or only one of the two")
    trusted = flags.DEFINE_multi_string("trust", [], "a package whose classes the config of a run may name")
    flags.mark_flag_as_required("config")

    def parse(words):
        """Flags as absl reads them; what is wrong with one is a line."""
        try:
            rest = flags.FLAGS(words)
            if len(rest) > 1:
                raise ValueError(f"unrecognized argument {rest[1]!r}; fields are set as --config.FIELD=VALUE")
            return rest
        except Exception as e:  # absl and ml_collections raise many kinds, and a config is its author's code
            if os.environ.get("SIMVLM_TRACEBACK"):
                raise
            sys.exit(f"error: {printable_lines(_flag_error(e))}")

    def go(_):
        if not flags.FLAGS["verbosity"].present:
            absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax and TFDS say a great deal
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax's tasks, whose errors come out of save and wait
        file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        name = Path(file).stem + (f"-{variant.replace('/', '')}" if variant else "")
        _run(config.value, workdir.value or f"runs/{name}", f"{Path(file).stem}:{variant}", mode.value, trusted.value)

    app.run(go, argv, flags_parser=parse)


def _find_configs(argv: list[str]) -> None:
    """Checks the config files that the words name, and lets them import what lies beside them; exits where one is none."""
    from simvlm_jax.core.build import add_config_folder, check_config_file, check_renamed

    given = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config", "-config")]
    given += [word.partition("=")[2] for word in argv if word.startswith(("--config=", "-config="))]
    try:
        for file in (path.partition(":")[0] for path in given):
            check_config_file(file)
            add_config_folder(file)
        for word in argv:
            if word.startswith(("--config.", "-config.")):
                check_renamed(word.partition("=")[0].partition("config.")[2])
    except (ValueError, OSError) as e:
        sys.exit(f"error: {printable_lines(str(e))}")


def _run(config, workdir: str, variant: str, mode, trusted: list[str]) -> None:
    """Runs the experiment, and ends the process by the exit code of what it raises."""
    from simvlm_jax.core.trust import trust

    for package in trusted:
        trust(package)
    setup_xla()
    setup_jax()
    import jax

    from simvlm_jax.experiment import run
    from simvlm_jax.parallel.heartbeat import exit_at_once
    from simvlm_jax.parallel.hosts import join_cluster
    from simvlm_jax.train.loop import Interrupted, NonFiniteLoss

    join_cluster(config.hosts.patience)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; the training loop has its own
    try:
        run(config, workdir, variant, mode)
    except (Interrupted, KeyboardInterrupt) as e:
        print(printable_lines(str(e)) or "stopped; the same command continues", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as e:
        if os.environ.get("SIMVLM_TRACEBACK"):
            if jax.process_count() == 1:
                raise
            traceback.print_exc()
        # without waiting for other processes, or for saves that have failed
        exit_at_once(f"error: {e if isinstance(e, ValueError | OSError | NonFiniteLoss) else unforeseen(e)}", 1)


def unforeseen(e: BaseException) -> str:
    """Returns a line for an exception that nobody has made a message for, and how to see more."""
    first = str(e).strip().partition("\n")[0]
    return f"{type(e).__name__}: {first:.300} (SIMVLM_TRACEBACK=1 shows where)"


def _flag_error(e: BaseException) -> str:
    """Returns what a flag's parser complains of, in a line."""
    # what a config raised comes wrapped by ml_collections, with its traceback as text, and then by absl
    while e.__context__ is not None and "Error whilst parsing config file" in str(e):
        e = e.__context__
    if isinstance(e, AttributeError | KeyError):
        # of a field, ml_collections nests exceptions, the innermost with the name and a hint in its second line
        text: object = e
        while isinstance(text, BaseException):
            text = text.args[0] if text.args else ""
        name, _, hint = str(text).replace("'", "").partition("\n")
        fields = [
            word.partition("=")[0].split(".")[1:] for word in sys.argv if word.startswith(("--config.", "-config."))
        ]
        if any(name in path for path in fields):
            return f"the config has no field {name}; its fields are set as --config.FIELD=VALUE" + (
                hint and f". {hint}"
            )
    known = isinstance(e, ValueError | OSError) or "lag" in type(e).__name__
    return str(e).strip().strip('"').replace("\n", " ") if known else unforeseen(e)


if __name__ == "__main__":
    use_huge_pages()
    main()
