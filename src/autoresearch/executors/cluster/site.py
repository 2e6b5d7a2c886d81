"""The Ray cluster that a lab names as a place for runs."""

from __future__ import annotations

from autoresearch.executors.cluster import joining
from autoresearch.executors.interface import Order, Site


def there(order: Order) -> Site:
    """The cluster that was ordered, once it is known what its machines can do.

    Raises:
        UserError: there is none, or none of its machines can carry out the lab's runs, and why.
    """
    ray = joining.library()
    order.tell(f"joining the Ray cluster at {order.address}" if order.address else "starting Ray on this machine")
    joining.join(ray, order.address)
    joining.claim(ray, order.lab)
    from autoresearch.executors.cluster.driver import RayExecutor
    from autoresearch.executors.cluster.pool import Pool

    pool = Pool(order)
    pool.settle()
    return Site(RayExecutor(pool, order.runs), pool.places, pool.device)
