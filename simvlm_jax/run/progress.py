"""Progress lines: where a run or an evaluation is, how fast it goes, how long it will take."""

import contextlib
import sys
import time

from simvlm_jax.core.files import printable_lines


class Progress:
    """Prints one line per log interval to stderr; on a terminal the line is rewritten in place. quiet: prints nothing."""

    def __init__(self, total: int, quiet: bool = False):
        self._total, self._quiet = total, quiet
        self._live = sys.stderr.isatty()
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Starts the clock anew."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        """Leaves out of the lap what is not training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return max(seconds, 1e-9)

    def show(self, step: int, values: dict[str, float], seconds_a_step: float) -> None:
        text = f"step {step}/{self._total}  loss {values['loss']:.4f}"
        if seconds_a_step:  # nothing is known of the speed right after compiling
            pictures = f"{values['images_per_s']:,.0f} images/s  " if values["images_per_s"] else ""
            text += (
                f"  {pictures}{values['tokens_per_s']:,.0f} tokens/s  "
                f"MFU {100 * values['mfu']:.0f}%  input {100 * values['input_bound']:.0f}%  "
                f"{duration((self._total - step) * seconds_a_step)} left"
            )
        self._print(text)

    def log(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        print(("\r\033[K" if self._live else "") + printable_lines(text), file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        if self._quiet:
            return
        if self._live:
            print("\r\033[K" + text, end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


class Countdown:
    """Says how far a long piece of work has come, every few seconds, on stderr; short work says nothing."""

    def __init__(self, what: str, total: int, every: float = 5.0):
        self._what, self._total, self._every = what, total, every
        self._began = self._shown = time.perf_counter()
        self._live = sys.stderr.isatty()
        jax = sys.modules.get("jax")  # what has not loaded it has no other process either
        self._quiet = jax is not None and jax.process_index() > 0

    def at(self, done: int) -> None:
        """`done` of the total are done."""
        now = time.perf_counter()
        if self._quiet or now - self._shown < self._every:
            return
        self._shown = now
        rate = done / (now - self._began)
        left = duration((self._total - done) / rate) if rate else "?"
        text = f"{self._what}  {done:,}/{self._total:,}  {rate:,.{0 if rate >= 10 else 1}f}/s  {left} left"
        print(f"\r\033[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the line of a terminal."""
        if self._live and self._shown != self._began:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "42s", "3m05s", "2h10m", "4d03h"."""
    s = int(max(seconds, 0) + 0.5)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
