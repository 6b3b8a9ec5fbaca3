"""The entry point: `python -m simvlm_jax.main --config configs/prefixlm.py [--config.FIELD=VALUE ...] [--workdir DIR]`.

Builds what the config names and hands it to the loop. On SLURM, Kubernetes and TPU pods, and under `launch/local.py`, the
processes of a job join to one run. Exit codes: 0 done, 75 interrupted (state saved, the same command continues), 76 another
process was lost (the same command continues), 1 an error.
"""

import contextlib
import functools
import os
import signal
import sys
import traceback
import zlib
from pathlib import Path

EXIT_INTERRUPTED = 75


def run(config, workdir: str, variant: str = "", mode: str = "train") -> None:
    """Trains and evaluates a config in a run directory, and leaves results and the page there; mode "fit" or "eval" does one.

    Of several processes (see parallel.hosts) each calls this; if one is lost, the others name it and end.
    """
    import jax

    from simvlm_jax.core.build import check_specs
    from simvlm_jax.core.lock import held
    from simvlm_jax.core.schema import check
    from simvlm_jax.parallel.hosts import Heart, leave
    from simvlm_jax.run import schema
    from simvlm_jax.run.directory import RunDir, recorded
    from simvlm_jax.train.loop import Interrupted

    check(recorded(config, variant), schema.Config, "config")
    check_specs(config)
    if config.checkpoint.best and not config.eval.every:
        raise ValueError(
            f"config.checkpoint.best={config.checkpoint.best!r} keeps what scores best while training; set config.eval.every too"
        )
    directory = RunDir(workdir, jax.process_index())
    heart = Heart(directory.path / "hosts", config.hosts.patience, config.hosts.late)
    try:
        alone = held(directory.path) if not directory.process and mode != "eval" else contextlib.nullcontext()
        with alone:
            _run(config, directory, variant, mode, heart)
    except Interrupted:  # as agreed by all
        heart.end("stopped")
        raise
    except KeyboardInterrupt:
        heart.end("stopped")
        if not heart.others_ended():  # jax would wait for them at the exit
            leave("stopped; the same command continues", EXIT_INTERRUPTED)
        raise
    except BaseException as e:
        # a collective fails at once where a peer is gone, and does not say which
        if heart.count > 1 and _because_of(e, jax.errors.JaxRuntimeError) and (lost := heart.lost()):
            leave(*lost)
        heart.end(f"{type(e).__name__}: {str(e).partition(chr(10))[0]}")
        raise
    heart.end("finished")


def _because_of(error: BaseException | None, kind: type) -> bool:
    """Whether an error is of a kind, or was raised while one was handled."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _run(config, directory, variant: str, mode: str, heart) -> None:
    from simvlm_jax.core.build import build
    from simvlm_jax.core.files import printable_lines
    from simvlm_jax.data import assemble
    from simvlm_jax.data.sources import understood
    from simvlm_jax.eval.final import evaluate_run, make_examples, own_validation
    from simvlm_jax.infer.engine import Engine
    from simvlm_jax.parallel.hosts import agreed, meet, one_first
    from simvlm_jax.parallel.mesh import make_mesh, placement, rows_of_process
    from simvlm_jax.run.checkpoints import Checkpoints
    from simvlm_jax.run.load import belongs_to, build_model
    from simvlm_jax.text.tokenizer import Tokenizer
    from simvlm_jax.train.init_from import initialiser, tokenizer_of
    from simvlm_jax.train.loop import Schedule, train

    def say(text: str) -> None:
        if not directory.process:
            print(printable_lines(text), file=sys.stderr, flush=True)

    # ---- what is there -------------------------------------------------------------------------------------------
    training = mode != "eval"
    if not training:
        directory.config()  # an error where there is no run
        if not directory.begun:
            raise FileNotFoundError(f"{directory.path} has no checkpoint to evaluate")
    directory.check(config, variant)
    if training and directory.newest_step() and directory.results().get("trained") == config.train.steps:
        say(f"{directory.path} is finished at step {config.train.steps}; see {directory.report}")
        return
    if training and (done := directory.newest_step()) > config.train.steps:
        raise ValueError(
            f"{directory.path} is trained to step {done} already, and config.train.steps={config.train.steps} is fewer; set as "
            "many at least, or use another --workdir"
        )
    with one_first("beginning"):
        if training and (told := directory.set_aside()):
            say(told)
    mesh = make_mesh(**config.mesh)
    meet(mesh)

    # ---- data, tokenizer and answers: made by one process, read by the others --------------------------------------
    say("data ...")
    heart.at("data")
    begun = bool(agreed(directory.begun, "beginnings of the run"))
    origin = None if begun else tokenizer_of(config.train.init_from)  # an error where there is no such run
    with one_first("data") as first_process:
        images, documents = assemble.train_source(config), assemble.documents_source(config)
        sources = assemble.eval_sources(config)
        for name, source in {"training data": images, "documents": documents, **sources}.items():
            if source is not None and not repr(source).startswith("scenes/"):
                say(f"{name}: {understood(source).line()}")
        moved = directory.moved() if training and begun else []
        if begun or not first_process:
            tokenizer, labels = Tokenizer.load(directory.tokenizer), directory.labels()
        else:
            if origin and not config.text.model:
                say(f"the tokenizer is that of {origin.parent}, as the weights are")
            tokenizer = assemble.make_tokenizer(config, images, documents, origin=origin, say=say)
            labels = assemble.make_labels(config, images)
        if training:
            directory.start(config, variant)
        if training and first_process and not begun:
            directory.write_labels(labels)
            tokenizer.save(directory.tokenizer)
    read = repr([images, documents, *sources.values(), tokenizer.sha256])
    agreed(zlib.crc32(read.encode()) >> 1, "data (each is told by a number made of its files' names and sizes)")

    # ---- training ------------------------------------------------------------------------------------------------
    model = build_model(config, tokenizer, labels)
    e, keep = config.eval, config.checkpoint
    engine = Engine(model, tokenizer, mesh, labels=labels, batch_size=e.batch_size, seed=config.seed)
    suites = {
        name: build(suite, f"config.eval.suites.{name}", tokenizer=tokenizer, labels=labels)
        for name, suite in e.suites.items()
    }
    optimizer = build(config.optimizer, "config.optimizer")
    pixels = assemble.eval_pixels(config)
    about = belongs_to(config, tokenizer, labels)
    checkpoints = Checkpoints(directory.checkpoints, keep.latest, keep.keep_every, keep.best, not training, about)
    if training:
        mine = functools.partial(rows_of_process, mesh)
        pipeline = assemble.make_pipeline(config, tokenizer, labels, images, documents, directory.quarantine, mine)
        first = next(iter(suites.values()), None)
        asked = None
        if first is not None and (e.every or keep.best):
            asked = own_validation(first) if first.path else assemble.validation_source(config)
            if asked is None:
                told = f"{first.path!r} has no validation split, so there are no scores before the last"
                if keep.best:
                    raise ValueError(f"checkpoint.best={keep.best!r} goes by the first suite, but {told}")
                say(told)

        def validate(params, extra):
            """The scores of the first suite on the validation data: the run's, or the suite's own."""
            assert first is not None and asked is not None
            bad = config.data.quarantine
            examples = make_examples(first, "validation", asked, pixels, e.examples or 200, bad, directory.quarantine)
            now = engine.with_weights(params, extra)
            scores = first.outcome(now, first.answers(now, examples)).scores
            if keep.best and keep.best not in scores:
                raise ValueError(
                    f"checkpoint.best={keep.best!r} is no score of the first suite; it has {', '.join(scores)}"
                )
            return scores

        pipeline.batch(0)
        for cut in pipeline.told_of_cuts():
            say(f"{cut} at {tokenizer.vocabulary.length} pieces, in the first batch; raise config.text.length")
        if moved:
            say("continuing under other conditions, so not bit for bit:\n  " + "\n  ".join(moved))
        say(
            f"{len(images)} images, {len(documents or ())} documents, {tokenizer.vocabulary.size} pieces; compiling ..."
        )
        params, extra = train(
            model,
            pipeline,
            optimizer,
            directory,
            checkpoints,
            mesh,
            Schedule(
                config.train.steps,
                config.log.every,
                e.every,
                keep.every,
                config.train.accumulate,
                config.train.retries,
            ),
            seed=config.seed,
            trainable=config.train.trainable,
            threads=config.data.threads,
            initialise=initialiser(model, tokenizer.sha256, labels, config.train.init_from, mesh),
            evaluate=None if asked is None else validate,
            heart=heart,
        )
        for cut in pipeline.told_of_cuts():
            say(f"{cut} at {tokenizer.vocabulary.length} pieces, in this training")

    # ---- scores and the page -------------------------------------------------------------------------------------
    if mode == "fit":
        checkpoints.close()
        say(f"{directory.path} is trained to step {config.train.steps}; --mode train or eval scores it")
        return
    step = checkpoints.best_step()
    if step is None:
        raise FileNotFoundError(f"{directory.path} has no checkpoint to evaluate")
    if not training or step != config.train.steps:
        params, extra = checkpoints.restore_weights(step, placement(mesh, directory.letters()))
    say(f"evaluating step {step} ...")
    heart.at("eval", step)
    evaluate_run(
        directory,
        engine.with_weights(params, extra),
        suites,
        sources,
        step,
        trained=checkpoints.latest_step() or 0,
        pixels=pixels,
        limit=e.examples,
        bad=config.data.quarantine,
        texts=functools.cache(lambda: list(assemble.constant_captions(config, images))),
        say=say,
    )
    checkpoints.close()
    say(f"report: {directory.report}")


def main(argv: list[str] | None = None) -> None:
    """Parses flags and runs; errors of users are one line."""
    from absl import app, flags, logging
    from ml_collections import config_flags

    from simvlm_jax.core.build import add_config_folder, check_config_file
    from simvlm_jax.core.children import end_with_parent
    from simvlm_jax.core.files import printable_lines

    end_with_parent()
    argv = list(sys.argv if argv is None else argv)
    given = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config", "-config")]
    given += [word.partition("=")[2] for word in argv if word.startswith(("--config=", "-config="))]
    try:
        for file in (path.partition(":")[0] for path in given):
            check_config_file(file)
            add_config_folder(file)
    except (ValueError, OSError) as e:
        sys.exit(f"error: {printable_lines(str(e))}")
    config_flag = config_flags.DEFINE_config_file("config", None, "a config, FILE.py or FILE.py:VARIANT")
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
            sys.exit(f"error: {printable_lines(_line_of(e))}")

    def go(_):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # Orbax and TFDS say a great deal
        import logging as standard

        # of Orbax's tasks, whose errors come out of save and wait
        standard.getLogger("asyncio").setLevel(standard.CRITICAL)
        from simvlm_jax.core.trust import trust
        from simvlm_jax.train.loop import Interrupted, NonFiniteLoss

        for package in trusted.value:
            trust(package)
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        file, _, variant = path.partition(":")
        name = Path(file).stem + (f"-{variant.replace('/', '')}" if variant else "")
        from simvlm_jax.parallel.environment import setup_jax, setup_xla

        setup_xla()
        setup_jax()
        from simvlm_jax.parallel.hosts import join, leave

        join(config_flag.value.hosts.patience)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; the training loop has its own
        try:
            run(config_flag.value, workdir.value or f"runs/{name}", f"{Path(file).stem}:{variant}", mode.value)
        except (Interrupted, KeyboardInterrupt) as e:
            print(printable_lines(str(e)) or "stopped; the same command continues", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except Exception as e:
            import jax

            if os.environ.get("SIMVLM_TRACEBACK"):
                if jax.process_count() == 1:
                    raise
                traceback.print_exc()
            # without waiting for other processes, or for saves that have failed
            leave(f"error: {e if isinstance(e, ValueError | OSError | NonFiniteLoss) else unforeseen(e)}", 1)

    app.run(go, argv, flags_parser=parse)


def unforeseen(e: BaseException) -> str:
    """An exception that nobody has made a message for, in a line, and how to see more."""
    first = str(e).strip().partition("\n")[0]
    return f"{type(e).__name__}: {first:.300} (SIMVLM_TRACEBACK=1 shows where)"


def _line_of(e: Exception) -> str:
    """What a flag's parser complains of."""
    told = str(e).strip().strip('"').replace("\n", " ")
    if isinstance(e, AttributeError | KeyError) and "config" in repr(sys.argv):  # ml_collections, of a field
        return f"the config has no field {told.strip(chr(39))}; its fields are set as --config.FIELD=VALUE"
    return told if isinstance(e, ValueError | OSError) or "lag" in type(e).__name__ else unforeseen(e)


if __name__ == "__main__":
    from simvlm_jax.parallel.environment import use_huge_pages

    use_huge_pages()
    main()
