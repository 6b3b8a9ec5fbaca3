"""The device mesh and what lies where on it: batches split over `data`, everything else on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simvlm_jax.core.types import Batch

DATA = "data"


def make_mesh(devices=None) -> Mesh:
    """A one-axis mesh over all devices (or the given ones)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Axis 0 over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A host's rows as global arrays, rows over devices.

    Raises:
      ValueError: the rows do not divide over the devices.
    """
    devices, hosts = mesh.size, jax.process_count()

    def place(x):
        if (x.shape[0] * hosts) % devices:
            raise ValueError(
                f"{x.shape[0] * hosts} rows do not divide over {devices} devices; make every part of the batch "
                f"(config.train.batch_size, config.data.documents.batch_size) a multiple of {devices}"
            )
        return jax.make_array_from_process_local_data(by_row(mesh), np.asarray(x))

    return jax.tree.map(place, batch)
