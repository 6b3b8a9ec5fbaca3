"""What is shown of every family: someone's small random model becomes a run, and a run their model, and both say the same.

A case builds a module of torch, whose folder (weights, config, tokenizer) is imported, compared, exported and loaded again.
"""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simvlm_jax.interop.family import NOTHING_SAID, families, family_of
from simvlm_jax.interop.formats import safetensors_file
from simvlm_jax.interop.formats.tensors import Stored, Tensors
from simvlm_jax.interop.reference import compare
from simvlm_jax.interop.source import Source, open_source
from simvlm_jax.interop.table import give, take
from simvlm_jax.jobs.weights import export_run, import_run, named_arrays, one_by_one, shapes_of
from simvlm_jax.run.load import Loaded, build_model, load_run
from simvlm_jax.text.built import byte_pairs
from simvlm_jax.text.tokenizer import NoTokenizer
from tests.models.from_torch import numpy_state, perturbed

PIECES = 300


@dataclasses.dataclass(frozen=True)
class Case:
    """A small model of a family.

    family: its name. build: the module of torch. save: writes its folder. loss: their loss and ours, for gradients; None where there
    is none to compare. layout: of the folder, by which the reference is found.
    """

    family: str
    build: Callable[[], Any]
    save: Callable[[Any, Path], None]
    loss: Callable[[Any, Any, Any, dict[str, np.ndarray]], tuple[Any, Callable[[Any], Any]]] | None = None
    layout: str = "hf"


def byte_tokenizer(folder: Path, rows: int = PIECES, bos: str = "<s>", begins: bool = False) -> None:
    """A tokenizer.json of bytes alone, with special pieces at its end, and tokenizer_config.json beside it."""
    from simvlm_jax.interop.tokenizers import byte_letters

    letters = list(byte_letters().values())
    names = [bos, "</s>", "<pad>"]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *names])}
    special = {name: vocabulary[name] for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(byte_pairs(vocabulary, [], special))
    said = dict(bos_token=bos, eos_token="</s>", pad_token="<pad>", add_bos_token=begins)
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    assert len(vocabulary) <= rows


def random_source(folder: Path, family: str, config: dict[str, Any], classes: int = 0, **tokenizer: Any) -> Path:
    """A folder of random weights of a family as transformers would write it, made without it, by the shapes that its config says.

    classes: of the head of a classifier.
    """
    byte_tokenizer(folder, **tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    chosen = families()[family]
    head = {"classifier.weight": Stored((classes, 1), lambda: np.zeros(0))} if classes else {}
    empty = Source(folder / "model.safetensors", folder, "hf", Tensors(head), config)
    plan = chosen.plan(empty, NOTHING_SAID)
    model = one_by_one(
        build_model(plan.model, plan.pixels.get("image_size", 32), plan.tokenizer or NoTokenizer(), plan.labels)
    )
    rng = np.random.default_rng(0)
    arrays = {k: 0.1 * rng.normal(size=s).astype(np.float32) for k, s in shapes_of(model).items()}
    safetensors_file.write(folder / "model.safetensors", give(chosen.table(empty, model), arrays), {})
    return folder


def moved(module: Any) -> Any:
    """A module whose every parameter is off its initial value."""
    return perturbed(module)


def imported(case: Case, tmp: Path) -> tuple[Any, Loaded, dict[str, Any]]:
    """(module, run, what parity.json holds) of a case, the same whatever ran before."""
    import torch

    torch.manual_seed(0)
    module = moved(case.build())
    case.save(module, tmp / "theirs")
    report = import_run(str(tmp / "theirs"), str(tmp / "run"), case.family)
    run = load_run(tmp / "run", mesh=None)
    return module, run, report


def outputs(case: Case, module: Any, run: Loaded, layout: str, exact: bool = True) -> dict[str, float]:
    """Largest relative differences of our outputs in fp32 from theirs in fp64, by name: theirs in fp32 may be as far off.

    exact: whether theirs can be had in fp64.
    """
    reference = families()[case.family].reference[layout]
    model = dataclasses.replace(run.model, compute=dataclasses.replace(run.model.compute, dtype="float32"))

    def rows(model):
        return {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in reference.rows(model).items()}

    if not exact:
        return compare(reference, module, model, run.params, run.extra)
    return compare(reference._replace(rows=rows), copy.deepcopy(module).double(), model, run.params, run.extra)


def gradients(case: Case, module: Any, run: Loaded, source: Path, rows: dict[str, np.ndarray]) -> tuple[float, float]:
    """(relative difference of the losses, largest difference of a gradient in parts of that array's largest)."""
    assert case.loss is not None
    module.zero_grad()
    theirs, ours = case.loss(module, run.model, run.extra, rows)
    theirs.backward()
    opened = open_source(source)
    _, family = family_of(opened, case.family)
    made = {
        n: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for n, p in module.named_parameters()
    }
    loss, found = jax.jit(jax.value_and_grad(ours))(run.params)
    table, shapes = family.table(opened, run.model), shapes_of(one_by_one(run.model))
    names = named_arrays(found, {})
    expected = take(table._replace(same={}), made, {k: shapes[k] for k in names}, "gradients").arrays
    whole = max(np.abs(x).max() for x in expected.values())
    worst = max(np.abs(names[k] - x).max() / max(np.abs(x).max(), 1e-3 * whole) for k, x in expected.items())
    return abs(float(loss) / theirs.item() - 1), float(worst)


def round_trip(case: Case, module: Any, run: Loaded, tmp: Path, load: Callable[[Path], Any], **how: Any) -> None:
    """An exported run is their model, bit for bit, and imported again our own."""
    report = export_run(str(tmp / "run"), str(tmp / "out"), case.family, **how)
    assert report["compared"] == {"weights": 0.0}
    again = numpy_state(load(tmp / "out"))
    for name, x in numpy_state(module).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)
    import_run(str(tmp / "out"), str(tmp / "again"), case.family)
    second = load_run(tmp / "again")
    assert jax.tree.structure(second.params) == jax.tree.structure(run.params)
    jax.tree.map(np.testing.assert_array_equal, (second.params, second.extra), (run.params, run.extra))
    assert dataclasses.replace(second.model) == run.model


def tokens_of(texts: list[str], run: Loaded) -> dict[str, np.ndarray]:
    """Prompts as rows."""
    from simvlm_jax.infer.prompts import prompt_rows

    return dict(prompt_rows(run.tokenizer, texts).values)
