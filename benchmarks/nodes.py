"""A Ray cluster of several nodes on this machine, one of which can be taken away and brought back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Nodes:
    """Each has one CPU, for one worker; the head has none."""

    def __init__(self, cluster: Any, count: int) -> None:
        self.cluster = cluster
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def take(self) -> None:
        """All processes of the newest node are killed."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, Nodes]]:
    """Its address, and its nodes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster  # it is slow to import, and few need it

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made.address, Nodes(made, nodes)
    finally:
        made.shutdown()
