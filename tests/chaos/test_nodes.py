"""A cluster of three nodes, processes of this machine: the node that holds a shard goes down inside an epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
import driving, ray
from ray._private import state
from ray.cluster_utils import Cluster
from es_service.actors import launch

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)

def place(shard):
    return state.actors(launch.find_shards("spread")[shard]._actor_id.hex())["Address"]["NodeID"]

selection = driving.selection_of("eswp", seed=31)
selectors = driving.connect("spread", sys.argv[1], selection, "leased", shards=3)
lost = {}

def disturb(epoch, step):
    if (epoch, step) == (1, 5):
        for shard in range(3):
            for node in nodes:
                if node.node_id == place(shard) and not lost:
                    lost[shard] = node.node_id
                    cluster.remove_node(node, allow_graceful=False)
                    give_up = time.monotonic() + 60  # its actor answers until it notices that its node is gone
                    while place(shard) == node.node_id and time.monotonic() < give_up:
                        time.sleep(0.05)

drawn = driving.train(selectors, hook=disturb)
found = driving.outcome(selectors, drawn)
same = found == driving.undisturbed(selection)
print(json.dumps({"lost": lost, "now": [place(shard) for shard in range(3)], "same": same}))
ray.shutdown()
cluster.shutdown()
"""


def test_the_loss_of_a_node_is_not_noticed(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["RAY_AUTH_MODE"] = "disabled"  # a Cluster of Ray's has no token
    env |= {f"RAY_health_check_{name}_ms": "500" for name in ("initial_delay", "period", "timeout")}
    env["RAY_health_check_failure_threshold"] = "2"
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "runs"), str(Path(__file__).parent)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    [(shard, node)] = found["lost"].items()
    assert found["now"][int(shard)] != node
    assert found["same"]
