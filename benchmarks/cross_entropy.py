"""Memory and traffic of the vocabulary's loss, dense and in parts: python benchmarks/cross_entropy.py

Loss and gradients of states and table at the paper's sizes are compiled by TPU's own compiler for v5p:2x2x4 (16 chips, none is
needed; libtpu is, `pip install -e .[tpu]`), with the rows that a chip has in the paper's runs. Read off the compiled programs:
what a chip allots while they run, and the bytes they move. Writes benchmarks/cross_entropy.md.
"""

import functools
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "cross_entropy.md"
TARGET, CHIPS = "v5p:2x2x4", 16
CASES = {  # vocabulary, width, text length, rows a chip, mesh
    "SimVLM huge": (32_000, 1280, 256, 32, {"fsdp": 8}),
    "CoCa 2b": (64_000, 1408, 64, 128, {"fsdp": 16}),
    "SimVLM huge, tensor": (32_000, 1280, 256, 32, {"fsdp": 4, "tensor": 4}),
}
CHUNKS = {"dense": 2**30, "8,192": 8192}


def measured(
    vocabulary: int, width: int, length: int, rows: int, sizes: dict[str, int], chunk: int
) -> dict[str, float]:
    """Bytes of temporaries of a chip, bytes it moves, and bytes it receives, for loss and gradients of one step."""
    import jax
    import jax.numpy as jnp

    from simvlm_jax.core.flops import count_flops
    from simvlm_jax.core.platform import compiled_for
    from simvlm_jax.core.sharding import in_use, with_sharding
    from simvlm_jax.objectives.cross_entropy import linear_cross_entropy
    from simvlm_jax.parallel.mesh import MeshShardingRules, make_mesh
    from simvlm_jax.parallel.program import Program
    from simvlm_jax.parallel.targets import parse_target

    mesh = make_mesh(parse_target(TARGET).devices(), **sizes)
    rules = MeshShardingRules(mesh)
    B = rows * CHIPS // mesh.shape["tensor"]

    def array(letters, dtype, *shape, place=rules.activation):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place(letters, shape))

    def loss(states, table, targets, weight):
        total, count, _ = linear_cross_entropy(states, in_use(table, "VD"), targets, weight, chunk)
        return total / count

    given = (
        array("BTD", jnp.bfloat16, B, length, width),
        array("VD", jnp.float32, vocabulary, width, place=rules.parameter),
        array("BT", jnp.int32, B, length),
        array("BT", jnp.float32, B, length),
    )
    places = (rules.activation("", ()), (given[0].sharding, given[1].sharding))
    with compiled_for("tpu"):
        step = jax.jit(with_sharding(rules, jax.value_and_grad(loss, (0, 1))), out_shardings=places)
        compiled = step.lower(*given).compile()
        flops = count_flops(step, *given) / mesh.size
    program = Program(compiled.as_text(), mesh.size)
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "moved": program.traffic(),
        "received": sum(c.received for c in program.collectives()),
        "flops": flops,
    }


def main() -> None:
    """Writes the page."""
    lines = [
        "# Memory and traffic of the vocabulary's loss",
        "",
        f"Loss, and gradients of states and table, of one step on a chip of {TARGET}, by TPU's own compiler",
        "(`python benchmarks/cross_entropy.py`). States are bfloat16, the table is float32. In parts, the logits of one part of the",
        "vocabulary live at a time, and are computed again for the backward pass.",
        "",
        "| model, mesh | V, D | positions a chip | parts of at most | temporaries, MiB | moved, GiB | received, MiB | GFLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        vocabulary, width, length, rows, sizes = case
        for label, chunk in CHUNKS.items():
            row = functools.partial(measured, *case)(chunk)
            mesh = ", ".join(f"{k} {v}" for k, v in sizes.items())
            lines.append(
                f"| {name.partition(',')[0]}, {mesh} | {vocabulary:,}, {width:,} | {rows * length:,} | {label} | "
                f"{row['temporaries'] / 2**20:,.0f} | {row['moved'] / 2**30:.2f} | {row['received'] / 2**20:,.0f} | "
                f"{row['flops'] / 1e9:,.0f} |"
            )
            print(lines[-1], flush=True)
            PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
