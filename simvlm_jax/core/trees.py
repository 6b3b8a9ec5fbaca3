"""Paths of a tree's leaves, and lists of (regex, value) over them: the first match wins, an idle pattern is an error."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def path_name(path: Sequence[Any]) -> str:
    """A jax key path as text: "encoder/block/attention/query"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_names(tree: Any) -> list[str]:
    """The names of a tree's leaves in flattening order."""
    import jax

    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def match(tree: Any, rules: Sequence[tuple[str, T]], default: T, what: str = "rules") -> Any:
    """A tree like `tree` whose leaves are the value of the first rule whose regex is found in the leaf's path.

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
            values.append(default)
    if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in used]:
        raise ValueError(f"{what}: no parameter is left for {idle}; the parameters are {names}")
    return jax.tree.unflatten(jax.tree.structure(tree), values)
