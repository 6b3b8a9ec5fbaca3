"""Run directories of weights that were not trained here: everything that a command needs of a run, and no training state."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from simvlm_jax.core.files import partial_of
from simvlm_jax.core.schema import check
from simvlm_jax.core.types import Model
from simvlm_jax.parallel.mesh import state_letters
from simvlm_jax.run import schema
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import PARITY, RunDir
from simvlm_jax.run.load import belongs_to
from simvlm_jax.text.tokenizer import NoTokenizer, Tokenizer


def config_of(
    model: ConfigDict, tokenizer: Tokenizer, pixels: Mapping[str, Any], labels: tuple[str, ...]
) -> ConfigDict:
    """The config of a run of imported weights. pixels: fields of config.data that say how pictures are made ready."""
    text = None
    if not isinstance(tokenizer, NoTokenizer):
        v = tokenizer.vocabulary
        text = dict(model=None, vocabulary=v.size, length=v.length, corpus=1, spelling=tokenizer.spelling)
    data = {"image_size": 64, "whole": False, **pixels, "parts": {}, "labels": dict(size=len(labels), at_least=1)}
    return ConfigDict(dict(seed=0, model=model, data=data, text=text, eval=dict(suites={}), checkpoint=dict(latest=1)))


def write_run(
    out: Path,
    config: Any,
    model: Model,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    weights: tuple[Any, Any],
    parity: Mapping[str, Any],
) -> None:
    """Writes a run directory whole: it stands under its name when all of it is there.

    weights: (params, extra). parity: what was compared with the source.

    Raises:
      FileExistsError: something is there already. OSError: it cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_free(out)
    partial = partial_of(out)
    try:
        run = RunDir(partial)
        run.start(config, "imported")
        run.write_labels(labels)
        if not isinstance(tokenizer, NoTokenizer):
            tokenizer.save(run.tokenizer)
        run.write_letters(state_letters(*jax.eval_shape(model.init, jax.random.key(0), {})))
        recorded: Any = run.config()
        check(recorded, schema.Config, "config")
        about = belongs_to(config.model, config.data.image_size, bool(config.data.whole), tokenizer, labels)
        checkpoints = Checkpoints(run.checkpoints, about=about)
        checkpoints.save_weights(0, (nn.unbox(weights[0]), weights[1]))
        checkpoints.wait()
        checkpoints.close()
        (partial / PARITY).write_text(json.dumps(parity, indent=1))
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(out: Path) -> None:
    """Refuses a place for a folder where something is.

    Raises:
      FileExistsError: it is a file, or a folder that is not empty.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{str(out)!r} is there already; name another --out, or remove it")
