"""An order, from payment to confirmation, that survives `kill -9` at any moment.

    python examples/order_fulfilment.py

Kill it while it waits for the warehouse (Ctrl-C, or `kill -9`), and run it again: it goes on where it was, and the
customer is not charged again. Afterwards, look at what happened:

    outlast list
    outlast show order-123

Everything is kept in `outlast.db`, in the current folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import outlast
from outlast import Retry, activity, workflow


@dataclass(frozen=True)
class Order:
    id: str
    customer: str
    items: list[str]
    amount_cents: int


@dataclass(frozen=True)
class Payment:
    payment_id: str


@dataclass(frozen=True)
class Receipt:
    order_id: str
    payment_id: str
    tracking_number: str


@activity(timeout="30s", retry=Retry(max_attempts=5))
async def charge_payment(order: Order) -> Payment:
    # The key is the same for every attempt of this call. Given to the payment provider, it makes a second charge
    # impossible even if the process dies after the charge and before its result is recorded.
    print(f"charging {order.amount_cents / 100:.2f} EUR to {order.customer} (key {activity.idempotency_key})")
    return Payment(f"pay_{order.id}")


@activity(timeout="30s")
async def ship_order(order: Order, payment: Payment) -> str:
    print(f"shipping {', '.join(order.items)}, paid with {payment.payment_id}")
    return f"TRACK-{order.id}"


@activity
async def send_confirmation(order: Order, tracking_number: str) -> None:
    print(f"telling {order.customer}: {order.id} is on its way, {tracking_number}")


@workflow
async def fulfil_order(order: Order) -> Receipt:
    payment = await charge_payment(order)
    await workflow.sleep("3 seconds", label="wait-for-warehouse")  # a real warehouse: "2 hours", just as well
    tracking_number = await ship_order(order, payment)
    await send_confirmation(order, tracking_number)
    return Receipt(order.id, payment.payment_id, tracking_number)


if __name__ == "__main__":
    order = Order("order-123", "ada@example.com", ["a lamp", "two bulbs"], 4_200)
    print(outlast.run(fulfil_order, order, id=order.id))
