"""The model behind `python -m benchmarks.exchanges`, against what is known of such queues."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import exchange_check, exchange_model, exchange_services

SERVICES = exchange_model.Services(
    call_s=5e-4,
    observe_s=(1e-4, 1e-7),
    report_s=(1e-4, 1e-7),
    apply_s=(3e-5, 3e-8),
    client_s=1e-3,
    idle_s=1e-3,
    plan_row_s=1e-7,
    deal_row_s=3e-8,
    plan_row_bytes=36.0,
    deal_row_bytes=26.0,
    gather_s=(2e-4, 1e-9),
)


@pytest.mark.parametrize("busy", [0.2, 0.5, 0.8])
def test_simulated_waits_have_the_mean_of_the_md1_formula(busy: float) -> None:
    """Poisson arrivals, equal services: Pollaczek and Khinchin give ρ·s/(2·(1-ρ))."""
    service_s = 1e-3
    arrivals = np.cumsum(np.random.default_rng(3).exponential(service_s / busy, 400_000))
    waits = exchange_model.lindley(arrivals, service_s)
    known = busy * service_s / (2 * (1 - busy))
    assert exchange_model.md1_mean_wait(busy / service_s, service_s) == pytest.approx(known)
    assert waits[10_000:].mean() == pytest.approx(known, rel=0.06)
    assert exchange_model.md1_p99_wait(busy / service_s, service_s) > known


def test_a_queue_without_end_is_said_to_be_one() -> None:
    assert exchange_model.md1_mean_wait(1000.0, 1e-3) == np.inf
    assert exchange_model.md1_p99_wait(1001.0, 1e-3) == np.inf


def test_waits_of_arrivals_worked_out_by_hand() -> None:
    """Served from 0 to 2, 2 to 4, 5 to 7, 7 to 9."""
    assert exchange_model.lindley(np.array([0.0, 1.0, 5.0, 5.5]), 2.0).tolist() == [0.0, 1.0, 0.0, 1.5]


def test_workers_in_lockstep_wait_for_nobody_or_for_all() -> None:
    alone = exchange_model.lockstep(1, 1e-3, 0.05)
    assert alone["mean_s"] == pytest.approx(1e-3)
    many = exchange_model.lockstep(512, 1e-2, 0.05)  # the queue is far longer than arrivals are apart
    assert many["mean_s"] == pytest.approx(512 * 1e-2, rel=0.01)


def test_leased_falls_behind_where_even_full_messages_are_too_many() -> None:
    few, many = (exchange_model.leased(SERVICES, workers, 1, 1024, 20.0) for workers in (8, 4096))
    assert few["keeps_up"] == 1.0
    assert few["send_queue_bytes_per_s"] == few["step_mean_ms"] == 0.0
    assert few["utilisation_full_messages"] < few["utilisation"]  # fewer calls
    assert many["keeps_up"] == 0.0
    assert 0 < many["send_queue_full_after_s"] < np.inf


def test_one_rank_gathers_nothing() -> None:
    assert exchange_model.collective(SERVICES, 1, 1, 1024)["step_mean_ms"] == 0.0
    rare, often = (exchange_model.collective(SERVICES, 64, every, 1024) for every in (64, 1))
    assert rare["gather_ms"] < often["gather_ms"]
    assert rare["apply_ms"] == often["apply_ms"]


def test_the_fit_of_all_gathers_finds_its_constants() -> None:
    gathers = [
        {"ranks": ranks, "bytes": size, "seconds": (ranks - 1) * (2e-4 + 1e-9 * size)}
        for ranks in (2, 4)
        for size in (14_000, 900_000)
    ]
    a, b, error = exchange_services.fit_gather(gathers)
    assert (a, b) == (pytest.approx(2e-4), pytest.approx(1e-9))
    assert error == pytest.approx(0.0, abs=1e-9)


def test_a_model_has_every_size_and_can_be_read() -> None:
    model = exchange_model.grid(dataclasses.replace(SERVICES), batches=(1024,))
    assert {one["workers"] for one in model["served"]} == {2**i for i in range(10)}
    assert {one["shards"] for one in model["served"]} == {1, 2, 4, 8, 16}
    largest = next(one for one in model["epochs"] if one["samples"] == 10**9 and one["shards"] == 16)
    assert largest["shard_table_bytes"] == 2e9
    assert "512" in exchange_model.readable(model, 20.0)
    assert exchange_model.Services.from_dict(SERVICES.to_dict()) == SERVICES


@pytest.mark.parametrize("clients", [1, 3])
def test_clients_that_never_think_keep_the_server_busy_or_are_alone(clients: int) -> None:
    """One call: 1 ms at the client, 2 at the server, 1 on the way; three clients are enough to fill the server."""
    said = exchange_check.closed(clients, lambda _: 0.0, 1e-3, 2e-3, 1e-3, cores=None, num_steps=200)
    assert said["calls_per_s"] == pytest.approx(250.0 if clients == 1 else 500.0, rel=0.02)
    assert said["p50_ms"] == pytest.approx(4.0 if clients == 1 else 6.0, rel=0.02)


def test_cores_are_shared() -> None:
    """Three clients on one core: 3 ms of processor for each call, whoever computes it."""
    said = exchange_check.closed(3, lambda _: 0.0, 1e-3, 2e-3, 1e-3, cores=1, num_steps=200)
    assert said["calls_per_s"] == pytest.approx(1000 / 3, rel=0.02)
