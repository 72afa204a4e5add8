"""Shards on a cluster of three nodes, which are processes of this machine."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys

SCRIPT = """
import json, sys
import numpy as np, ray
from ray._private import state
from ray.cluster_utils import Cluster
import es_service as es
from es_service.actors import launch

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
selection = es.Selection(es.methods.evolved(), anneal=(0, 0), prune_ratio=0.25, seed=4)
shape = {"num_samples": 100, "num_epochs": 2, "batch_size": 10}
shared = es.connect("spread", selection, **shape, shards=6, storage=sys.argv[1])
alone = es.Selector(selection, **shape)
for epoch in range(2):
    for ids, same in zip(shared.epoch(epoch), alone.epoch(epoch), strict=True):
        losses = np.sqrt(ids + epoch).astype(np.float32)
        assert shared.select(ids, losses).ids.tolist() == alone.select(same, losses).ids.tolist()
nodes = [state.actors(shard._actor_id.hex())["Address"]["NodeID"] for shard in launch.find_shards("spread")]
print(json.dumps({"nodes": nodes, "same": repr(shared.table().to_pydict()) == repr(alone.table().to_pydict())}))
ray.shutdown()
cluster.shutdown()
"""


def test_shards_are_spread_over_the_nodes_and_select_the_same(storage: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["RAY_AUTH_MODE"] = "disabled"  # a Cluster of Ray's has no token
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, storage], env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(collections.Counter(found["nodes"]).values()) == [2, 2, 2]
    assert found["same"]
