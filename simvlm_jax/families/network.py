"""Models that are a Linen network and its few numbers."""

from typing import Any

from simvlm_jax.core.types import BaseModel, Params, Rngs


class NetworkModel(BaseModel):
    """A model whose passes are methods of `network`."""

    network: Any

    def apply(self, params: Params, method: str, *args: Any, rngs: Rngs = None) -> Any:
        """Run a method of the network with parameters, and with rngs where something is drawn."""
        return self.network.apply({"params": params}, *args, method=method, rngs=rngs or {})

    def intermediates(self, params: Params, method: str, *args: Any) -> Any:
        """What the layers sow while a method of the network runs, such as attention weights."""
        return self.network.apply({"params": params}, *args, method=method, mutable=["intermediates"])[1][
            "intermediates"
        ]
