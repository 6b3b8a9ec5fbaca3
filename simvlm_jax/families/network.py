"""Models that are a Linen network and its few numbers."""

from typing import Any, ClassVar

from simvlm_jax.core.types import BaseModel, Params, Rngs


class NetworkModel(BaseModel):
    """A model of a `size`, a row of its table SIZES, whose passes are methods of a network that `network_class` makes of it."""

    size: str

    SIZES: ClassVar[dict[str, Any]] = {}
    network_class: ClassVar[Any] = None

    def __post_init__(self):
        if self.size not in self.SIZES:
            raise ValueError(f"{type(self).__name__} size {self.size!r} is not one of {', '.join(self.SIZES)}")

    @property
    def sizes(self) -> Any:
        return self.SIZES[self.size]

    @property
    def network(self) -> Any:
        return self.network_class(self)

    def apply(self, params: Params, method: str, *args: Any, rngs: Rngs = None) -> Any:
        """Run a method of the network with parameters, and with rngs where something is drawn."""
        return self.network.apply({"params": params}, *args, method=method, rngs=rngs or {})

    def intermediates(self, params: Params, method: str, *args: Any) -> Any:
        """What the layers sow while a method of the network runs, such as attention weights."""
        return self.network.apply({"params": params}, *args, method=method, mutable=["intermediates"])[1][
            "intermediates"
        ]
