"""The price table, which users can replace by their own; ``prices.yaml`` is the shipped one."""

from __future__ import annotations

from datetime import date
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from segbatch import storage
from segbatch.config.keys import Strict
from segbatch.config.validation import explain
from segbatch.errors import InputError

SHIPPED = "prices.yaml"
MILLION, GB = 1e6, 1e9

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Instance(Strict):
    """One instance type: prices per hour, and its hardware where known."""

    on_demand: Price
    spot: Price | None = None
    gpu: str | None = None
    """The GPU's name, or a word of it."""
    gbps: Annotated[float, Field(gt=0)] | None = None
    """Sustained network bandwidth, in gigabits per second."""


class RequestPrices(Strict):
    """Prices per million requests to object storage."""

    get: Price
    put: Price
    list: Price


class Prices(Strict):
    """The whole price table."""

    date: date
    """The date of the prices."""
    currency: str
    region: str = ""
    """The cloud region that the prices are for."""
    node_start_minutes: Annotated[float, Field(ge=0)]
    """Minutes from the request for a node until a worker runs on it."""
    requests_per_million: RequestPrices
    storage_gb_month: Price
    """For 10⁹ bytes of results, per month."""
    transfer_gb: Price = 0.0
    """For 10⁹ bytes of images that are read."""
    instances: dict[str, Instance] = Field(default_factory=dict)

    def per_hour(self, instance: str | None, *, spot: bool) -> float | None:
        """The price of an instance type per hour; ``None`` if it is not in the table."""
        found = self.instances.get(instance or "")
        if found is None:
            return None
        return found.spot if spot else found.on_demand

    def for_requests(self, requests: dict[str, int]) -> float:
        """The price of requests, given by kind: get, put, list."""
        each = self.requests_per_million
        return (
            requests["get"] * each.get + requests["put"] * each.put + requests["list"] * each.list
        ) / MILLION


def read_prices(uri: str | None) -> Prices:
    """The table at ``uri``, or the shipped one.

    Raises :class:`~segbatch.errors.InputError` with one line for each mistake.
    """
    if uri is None:
        name, text = SHIPPED, resources.files(__package__).joinpath(SHIPPED).read_text()
    else:
        name, text = uri, storage.read_text(uri, InputError)
    try:
        return Prices.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {storage.one_line(error)}") from error
    except ValidationError as error:
        raise InputError("\n".join(f"{name}: {line}" for line in explain(error))) from error
