"""Models that are a Linen network and its few numbers."""

from typing import Any, ClassVar

from simvlm_jax.core.types import BaseModel, Extra, Params, Rngs
from simvlm_jax.nn.batch_norm import STATISTICS


class NetworkModel(BaseModel):
    """A model of a `size`, whose passes are methods of a network that `network_class` makes of it.

    size: the name of a row of its table SIZES, or such a row itself, which is how weights of any size are taken over.
    """

    size: Any

    SIZES: ClassVar[dict[str, Any]] = {}
    network_class: ClassVar[Any] = None

    def __post_init__(self):
        if isinstance(self.size, str) and self.size not in self.SIZES:
            raise ValueError(f"{type(self).__name__} size {self.size!r} is not one of {', '.join(self.SIZES)}")
        row = type(next(iter(self.SIZES.values())))
        if not isinstance(self.size, str | row):
            raise ValueError(
                f"{type(self).__name__} size is {self.size!r:.80}: give a name ({', '.join(self.SIZES)}) or a spec of "
                f"{row.__module__}:{row.__name__}"
            )

    @property
    def sizes(self) -> Any:
        return self.SIZES[self.size] if isinstance(self.size, str) else self.size

    @property
    def network(self) -> Any:
        return self.network_class(self)

    def apply(self, params: Params, method: str, *args: Any, rngs: Rngs = None, extra: Extra = None) -> Any:
        """Run a method of the network with parameters, and with rngs where something is drawn.

        extra: of the model, where its network reads statistics that are kept there (nn.batch_norm).
        """
        statistics = {STATISTICS: extra[STATISTICS]} if extra and STATISTICS in extra else {}
        return self.network.apply({"params": params, **statistics}, *args, method=method, rngs=rngs or {})

    def made(self, variables: Any) -> tuple[Params, Extra]:
        """(params, extra) of the variables that the network's `init` makes."""
        kept = {STATISTICS: variables[STATISTICS]} if STATISTICS in variables else {}
        return variables["params"], kept

    def intermediates(self, params: Params, method: str, *args: Any) -> Any:
        """What the layers sow while a method of the network runs, such as attention weights."""
        return self.network.apply({"params": params}, *args, method=method, mutable=["intermediates"])[1][
            "intermediates"
        ]
