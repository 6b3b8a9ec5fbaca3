"""Paths of a tree's leaves, and lists of (regex, value) over them: the first match wins, an idle pattern is an error."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def path_name(path: Sequence[Any]) -> str:
    """A jax key path as text: "encoder/block/attention/query"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_names(tree: Any) -> list[str]:
    """The names of a tree's leaves in flattening order."""
    import jax

    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def merge(trainable: Any, frozen: Any) -> Any:
    """One nested dict of two with different leaves; where both have a leaf, that of the first."""
    out = dict(frozen)
    for k, v in trainable.items():
        out[k] = merge(v, out[k]) if isinstance(v, dict) and k in out else v
    return out


def partition(params: dict, flags: dict) -> tuple[dict, dict]:
    """(trainable, frozen): nested dicts of the leaves whose flag is true, and of the others."""
    kept, rest = {}, {}
    for k, v in params.items():
        if isinstance(v, dict):
            a, b = partition(v, flags[k])
            kept.update({k: a} if a else {})
            rest.update({k: b} if b else {})
        else:
            (kept if flags[k] else rest)[k] = v
    return kept, rest


def check_same_shapes(found: Any, wanted: Any, what: str) -> None:
    """Compares the leaves of two trees by name, shape and dtype.

    Raises:
      ValueError: they differ; the message names the leaves, and `what` was found.
    """
    import jax

    def leaves(tree: Any) -> dict[str, str]:
        named = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {path_name(path): f"{x.dtype}{list(x.shape)}" for path, x in named}

    a, b = leaves(found), leaves(wanted)
    if a != b:
        names = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
        differences = "; ".join(f"{name}: {a.get(name, 'nothing')}, not {b.get(name, 'nothing')}" for name in names[:3])
        raise ValueError(f"{what}: {differences}{f' (and {len(names) - 3} others)' if len(names) > 3 else ''}")


def match(tree: Any, rules: Sequence[tuple[str, T]], default: T | Callable[[str], T], what: str = "rules") -> Any:
    """A tree like `tree` whose leaves are the value of the first rule whose regex is found in the leaf's path.

    default: of leaves that no rule matches, a value or a function of the leaf's path.

    Raises:
      ValueError: a pattern matches nothing, or is never the first to match.
    """
    import jax

    names = leaf_names(tree)
    values, used = [], set()
    for name in names:
        for i, (pattern, value) in enumerate(rules):
            if re.search(pattern, name):
                values.append(value)
                used.add(i)
                break
        else:
            values.append(default(name) if callable(default) else default)
    if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in used]:
        raise ValueError(f"{what}: no parameter is left for {idle}; the parameters are {names}")
    return jax.tree.unflatten(jax.tree.structure(tree), values)
