"""SmolLM2-135M writes here and by llama.cpp (llama-cpp-python), turn by turn on the same cores.

    pip install llama-cpp-python
    simvlm fetch smollm2-135m --out runs/smollm2
    python benchmarks/complete.py runs/smollm2 > benchmarks/complete.md

Greedy, 5 pieces of prompt and 64 after them, none of which may end the text: pieces a second without the prompt, the median of rounds.
llama.cpp computes with the weights that the run has, written as a GGUF of fp32, and with those of 4 bits that they came from.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.infer.engine import load_engine
from simvlm_jax.jobs.published import fetched_weights
from simvlm_jax.parallel.environment import setup_jax

PROMPT, NEW, ROUNDS, ROWS = "The capital of France is", 64, 5, (1, 16)


def as_fp32(path: Path, out: Path) -> None:
    """Writes a GGUF with every array dequantised."""
    import gguf
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        sub = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=sub)
    writer.add_file_type(0)
    for t in reader.tensors:
        writer.add_tensor(
            t.name, dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape[::-1]]).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """llama.cpp over several sequences at once, by its own batches."""

    def __init__(self, path: Path, rows: int, threads: int):
        import llama_cpp as c

        self.c, self.rows = c, rows
        log = c.llama_log_callback(lambda *_: None)
        self.log = log
        c.llama_log_set(log, ctypes.c_void_p())
        self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        p = c.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_seq_max, p.n_threads, p.n_threads_batch = 128 * rows, 512, rows, threads, threads
        self.context = c.llama_init_from_model(self.model, p)
        self.vocabulary = c.llama_model_get_vocab(self.model)
        self.size = c.llama_vocab_n_tokens(self.vocabulary)

    def write(self, prompt: list[int], new: int) -> tuple[list[int], float]:
        """(pieces of the first row, seconds of the steps after the prompt)."""
        c = self.c
        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        batch = c.llama_batch_init(512, 0, 1)
        self._fill(batch, [(t, i, row, i == len(prompt) - 1) for row in range(self.rows) for i, t in enumerate(prompt)])
        assert c.llama_decode(self.context, batch) == 0
        places = [row * len(prompt) + len(prompt) - 1 for row in range(self.rows)]
        chosen, out = [self._best(i) for i in places], []
        start = time.perf_counter()
        for step in range(new - 1):
            out.append(chosen[0])
            self._fill(batch, [(t, len(prompt) + step, row, True) for row, t in enumerate(chosen)])
            assert c.llama_decode(self.context, batch) == 0
            chosen = [self._best(i) for i in range(self.rows)]
        seconds = time.perf_counter() - start
        c.llama_batch_free(batch)
        return [*out, chosen[0]], seconds

    def _fill(self, batch, tokens) -> None:
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = row

    def _best(self, i: int) -> int:
        logits = np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, i), (self.size,))
        ends = self.c.llama_vocab_eos(self.vocabulary)
        first = int(logits.argmax())
        return first if first != ends else int(np.argsort(logits)[-2])


def ours(engine, rows: int) -> tuple[str, float]:
    """(the first text, seconds of the steps after the prompt): those of 64 pieces less those of one."""
    seconds = []
    for new in (1, NEW):
        how = Decoding(new, min_length=new - 1)
        start = time.perf_counter()
        made = engine.generate(None, [PROMPT] * rows, np.arange(rows), how).values
        seconds.append(time.perf_counter() - start)
    return made[0][0][0], seconds[1] - seconds[0]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    args = parser.parse_args()
    setup_jax()
    threads, source = len(os.sched_getaffinity(0)), fetched_weights("smollm2-135m")
    import jax
    import llama_cpp

    print("# SmolLM2-135M writes on a CPU\n")
    print(
        f"`python benchmarks/complete.py`, {threads} cores, jax {jax.__version__}, llama-cpp-python {llama_cpp.__version__}."
    )
    print(f"Pieces a second of all rows together, greedy, {NEW} pieces, median of {ROUNDS} rounds taken in turn.\n")
    print("| rows | here, fp32 | llama.cpp, fp32 | ratio | llama.cpp, 4 bits |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "f32.gguf"
        as_fp32(source, wide)
        for rows in ROWS:
            engine, _ = load_engine(args.run, batch_size=rows)
            prompt = engine.tokenizer.encode(PROMPT)
            fp32, narrow = Llama(wide, rows, threads), Llama(source, rows, threads)
            ours(engine, rows)
            found: list[list[float]] = [[], [], []]
            for _ in range(ROUNDS):
                text, seconds = ours(engine, rows)
                pieces, other = fp32.write(prompt, NEW)
                assert engine.tokenizer.encode(text)[:40] == pieces[:40], (text, engine.tokenizer.decode(pieces))
                _, third = narrow.write(prompt, NEW)
                for kept, s in zip(found, (seconds, other, third), strict=True):
                    kept.append(rows * (NEW - 1) / s)
            a, b, c = map(statistics.median, found)
            print(f"| {rows} | {a:.0f} | {b:.0f} | {a / b:.2f} | {c:.0f} |", flush=True)


if __name__ == "__main__":
    main()
