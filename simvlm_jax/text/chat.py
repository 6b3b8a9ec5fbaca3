"""Chats as texts, by the Jinja template that came with a model's weights.

A template is a file of other people. It is rendered in Jinja's sandbox, which reaches no attribute with an underscore and changes
nothing it is given; what it may write is bounded, and so is what it may multiply.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

MOST_CHARACTERS = 2**20
"""Characters of a rendered chat."""


def rendered(template: str, messages: Sequence[Mapping[str, str]], bos: str, eos: str) -> str:
    """The text of a chat, up to where the model's answer begins.

    messages: {"role": "system", "user" or "assistant", "content": text}. bos, eos: pieces that a template may name.

    Raises:
      ValueError: the template is none, refuses the messages, or writes too much.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"the template of chats refuses these messages: {message}")

    class Bounded(ImmutableSandboxedEnvironment):
        """A sandbox in which nothing is multiplied into something huge."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(x, int | float) and abs(x) < MOST_CHARACTERS for x in (left, right))
            if not numbers or operator == "**":
                raise OverflowError(f"it may not compute {left!r:.40} {operator} {right!r:.40}")
            return super().call_binop(context, operator, left, right)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in ("center", "indent", "format", "wordwrap"):  # which write as much as a number says
        environment.filters.pop(name)
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["raise_exception"] = refuse
    written: list[str] = []
    total = 0
    given: dict[str, Any] = dict(messages=list(messages), add_generation_prompt=True, bos_token=bos, eos_token=eos)
    try:
        for part in environment.from_string(template).generate(**given):
            total += len(part)
            if total > MOST_CHARACTERS:
                raise ValueError(f"the template of chats writes more than {MOST_CHARACTERS:,} characters")
            written.append(part)
    except ValueError:
        raise
    except Exception as e:  # a template raises whatever Python does of its expressions
        raise ValueError(f"the template of chats (chat.jinja) cannot be rendered: {e}") from e
    return "".join(written)
