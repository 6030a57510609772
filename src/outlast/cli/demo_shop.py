"""The shop of `outlast demo`. What its activities do to the world is a line each in a file outside the database."""

from __future__ import annotations

import os
from dataclasses import dataclass

from outlast.sdk.decorators import activity, workflow

WITNESS = "OUTLAST_DEMO_WITNESS"
"""Environment variable: the file to which the activities append."""


@dataclass(frozen=True)
class Order:
    id: str
    customer: str
    amount_cents: int


@dataclass(frozen=True)
class Payment:
    payment_id: str


@dataclass(frozen=True)
class Shipment:
    tracking_number: str


@activity
async def charge_payment(order: Order) -> Payment:
    testify("charge_payment")
    return Payment(f"pay_{order.id}")


@activity
async def ship_order(order: Order) -> Shipment:
    testify("ship_order")
    return Shipment(f"TRACK-{order.id}")


@activity
async def send_confirmation(order: Order, shipment: Shipment) -> str:
    testify("send_confirmation")
    return f"to {order.customer}: your order {order.id} is on its way ({shipment.tracking_number})"


@workflow
async def fulfil_order(order: Order) -> Shipment:
    await charge_payment(order)
    await workflow.sleep("2 seconds", label="wait-for-warehouse")
    shipment = await ship_order(order)
    await send_confirmation(order, shipment)
    return shipment


def testify(activity_name: str) -> None:
    """Append a line, in one system call, so that no kill leaves half of one."""
    line = f"{activity_name} {activity.idempotency_key}\n"
    descriptor = os.open(os.environ[WITNESS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
