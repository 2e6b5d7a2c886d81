"""The Ray cluster that a lab names as a place for runs."""

from __future__ import annotations

from autoresearch.base.errors import UserError
from autoresearch.executors.cluster import joining
from autoresearch.executors.interface import Order, Site


def there(order: Order) -> Site:
    """The cluster that was ordered, once it is known what its machines can do.

    Raises:
        UserError: there is none, or none of its machines can carry out the lab's runs, and why.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("the executor ray needs Ray: `pip install 'autoresearch[ray]'`") from error
    joining.join(ray, order.address)
    joining.claim(ray, order.lab)
    from autoresearch.executors.cluster.driver import RayExecutor
    from autoresearch.executors.cluster.pool import Pool

    pool = Pool(order)
    pool.settle()
    return Site(RayExecutor(pool, order.runs), pool.places, pool.device)
