"""``segbatch serve --address``: deploys next to what Serve runs already."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from segbatch.cluster.dashboard import connect
from segbatch.errors import InputError
from segbatch.serving.remote import application_config, deploy
from segbatch.serving.service import service_of
from tests.collection import jpeg
from tests.serving.conftest import Served, ask


@pytest.mark.long
def test_a_model_is_deployed_next_to_other_applications(
    jobs_server: str, served: Served, model_uri: str
) -> None:
    theirs = {
        "name": "hello", "route_prefix": "/hello", "import_path": "tests.serving.hello:app"
    }  # fmt: skip
    http = {"host": "127.0.0.1", "port": int(served.port)}
    dashboard = connect(jobs_server)
    dashboard.deploy({"http_options": http, "applications": [theirs]})
    keys = {"model": f"file://{model_uri}", "max_replicas": 4, "predict": {"flip": True}}
    try:
        url = deploy(service_of(keys), jobs_server, name="streets", **http)
        assert url.endswith(f":{served.port}/streets/")
        answer = ask(f"{served.url}streets/predict", jpeg(1))
        assert json.loads(answer.body)["model"]["uri"] == keys["model"]
        assert ask(f"{served.url}hello").body == b"hello"
        assert ask(f"{served.url}healthz").status == 200
        running = dashboard.serve_details()["applications"]
        assert running["streets"]["deployed_app_config"]["args"] == keys
    finally:
        dashboard.deploy({"http_options": http, "applications": []})


def test_its_configuration_is_one_that_serve_takes(ray_context: Any) -> None:
    service = service_of({"model": "zoo:facades", "replicas": 1, "max_replicas": 2})
    config = application_config(service, "streets", {"env_vars": {"HF_HOME": "/cache"}})
    [taken] = ServeDeploySchema.model_validate({"applications": [config]}).applications
    assert taken.route_prefix == "/streets"
    module, _, builder = taken.import_path.partition(":")
    # As Serve does on the cluster; there is no public way.
    application = call_user_app_builder_with_args_if_necessary(
        getattr(import_module(module), builder), taken.args
    )
    deployment = application._bound_deployment
    assert deployment.name == "Predictor"
    assert deployment._deployment_config.autoscaling_config.max_replicas == 2
    assert deployment.init_args[0] == service.model_copy(update={"device": "cpu"})


def test_a_model_on_this_machine_alone_is_refused(jobs_server: str, model_uri: str) -> None:
    with pytest.raises(InputError, match=r"is on this machine; a cluster reads s3://…"):
        deploy(service_of({"model": model_uri}), jobs_server, name="x", host="0.0.0.0", port=8000)
