"""What users install: the wheel made from the sdist, alone and beside folders with names like ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: Any, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    [built] = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel built from the unpacked sdist."""
    folder = sdist.parent
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


def test_the_sdist_holds_each_file_once(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive]
    assert {name.split("/")[0] for name in names} >= {"es_service", "tests", "requirements", "constraints.txt"}
    assert [name for name in names if name.split("/")[0] in ("actors", "api")] == []
    assert len(names) == len(set(names))


def test_the_wheel_holds_the_package_and_its_data_and_nothing_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"es_service"}
    images = "es_service/training/tasks/fashion_mnist/"
    assert {images + "t10k-images-idx3-ubyte.gz", images + "t10k-labels-idx1-ubyte.gz", images + "LICENSE"} <= set(
        names
    )
    assert "es_service/py.typed" in names


def test_alone_it_selects_in_process_without_ray_and_torch(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, wheel, cwd=tmp_path)
    program = """
        import importlib.util, sys
        import numpy as np, es_service as es
        assert "ray" not in sys.modules and "torch" not in sys.modules
        assert importlib.util.find_spec("ray") is None and importlib.util.find_spec("torch") is None
        annealed = {"anneal": (0.4, 0), "anneal_by": "epochs"}
        selection = es.Selection(es.methods.evolved(), ratio=0.25, prune_ratio=0.2, seed=1, **annealed)
        selector = es.Selector(selection, num_samples=1000, num_epochs=3, batch_size=100)
        for epoch in range(3):
            for ids_B in selector.epoch(epoch):
                draw = selector.select(ids_B, np.ones(len(ids_B), dtype=np.float32))
        print(selector.ledger.trained, selector.table().num_rows, len(draw.ids))
    """
    # 2 annealing epochs of 1,000, then one of 800 pruned, a quarter of it drawn
    assert run(python, "-c", textwrap.dedent(program), cwd=tmp_path).split() == ["2200", "1000", "25"]
    told = subprocess.run(
        [tmp_path / "venv" / "bin" / "es-service", "train"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert "es-service[all]" in told.stderr


def test_a_ray_train_job_works_from_a_folder_with_its_own_api_and_actors(
    wheel: Path, ray_head: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Ray puts the working directory ahead of installed packages: top-level names of ours would be shadowed there."""
    run(sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed", cwd=tmp_path)
    job = tmp_path / "job"
    for name in ("api", "actors"):
        (job / name).mkdir(parents=True)
        (job / name / "__init__.py").write_text("MINE = True\n")
    (job / "main.py").write_text(
        textwrap.dedent("""
        import sys
        import numpy as np
        import ray
        from ray import train
        from ray.train import torch as ray_torch

        def loop(config):
            import actors, api
            import es_service as es
            from es_service.actors import launch
            assert actors.MINE and api.MINE
            assert es.__file__.startswith(config["installed"]), es.__file__
            selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0))
            selector = es.connect(
                "shadowed", selection, num_samples=200, num_epochs=2, batch_size=20, storage=config["storage"]
            )
            for epoch in range(2):
                for ids_B in selector.epoch(epoch):
                    selector.select(ids_B, np.ones(len(ids_B), dtype=np.float32))
            visits = selector.table()["visits"].to_numpy()
            selector.close()
            train.report({"rank": train.get_context().get_world_rank(), "visits": int(visits.min())})

        if __name__ == "__main__":
            installed, storage = sys.argv[1:]
            environment = {"working_dir": ".", "env_vars": {"PYTHONPATH": installed}}
            ray.init(runtime_env=environment, log_to_driver=False)
            ray_torch.TorchTrainer(
                loop,
                train_loop_config={"installed": installed, "storage": storage},
                scaling_config=train.ScalingConfig(num_workers=1),
                run_config=train.RunConfig(storage_path=storage, name="train"),
            ).fit()
            from es_service.actors import launch
            launch.stop("shadowed")
            print("done")
        """)
    )
    installed = str(tmp_path / "installed")
    out = run(sys.executable, "main.py", installed, tmp_path / "storage", cwd=job, PYTHONPATH=installed)
    assert out.split()[-1] == "done"
