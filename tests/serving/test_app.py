import pytest

from segbatch.errors import InputError
from segbatch.serving import app
from segbatch.serving.app import replica_size
from segbatch.serving.service import service_of


@pytest.mark.parametrize(
    ("replicas", "device", "nodes", "size"),
    [
        (1, "cpu", [(4.0, 0.0)], (4, 0)),
        (1, "cpu", [(64.0, 0.0)], (4, 0)),
        (4, "cpu", [(8.0, 0.0)], (2, 0)),
        (4, "cpu", [(16.0, 0.0), (16.0, 0.0)], (4, 0)),
        (1, "cuda", [(2.0, 0.0), (15.0, 1.0)], (4, 1)),
        (4, "cuda", [(8.0, 4.0)], (2, 1)),
        (2, "cuda", [], (4, 1)),
    ],
)
def test_replicas_share_what_a_node_has(
    monkeypatch: pytest.MonkeyPatch,
    replicas: int,
    device: str,
    nodes: list[tuple[float, float]],
    size: tuple[int, int],
) -> None:
    monkeypatch.setattr(app, "num_cores", lambda: 8)
    service = service_of({"model": "zoo:facades", "replicas": replicas})
    assert replica_size(service, device, nodes, may_grow=True) == size


def test_replicas_for_which_there_is_no_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "num_cores", lambda: 2)
    service = service_of({"model": "zoo:facades", "max_replicas": 5})
    with pytest.raises(InputError, match="5 replicas of 1 CPU each: Ray has room for 4"):
        replica_size(service, "cpu", [(4.0, 0.0)], may_grow=False)
    with pytest.raises(InputError, match="5 replicas of a GPU and 4 CPUs each: Ray has room for 2"):
        replica_size(service, "cuda", [(8.0, 2.0), (64.0, 0.0)], may_grow=False)
