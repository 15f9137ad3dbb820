"""What the control process tells of itself without being asked: metrics for Prometheus, the feed over ZeroMQ.

Each part is a task beside the admin socket's server, off unless the configuration says otherwise, and none may stop the others.
"""

import asyncio
import ipaddress

from control.metrics.server import MetricsServer
from control.pages import Pages
from control.service import Service, address_text
from nyx.config import Config


def start(config: Config, service: Service, pages: Pages) -> list[asyncio.Task[None]]:
    """Start what the configuration asks for; the tasks are cancelled at the end."""
    tasks = []
    if config.metrics.listen:
        tasks.append(asyncio.create_task(_metrics(config.metrics.listen, service, pages).run()))
    if config.monitor.feed or config.monitor.listen:
        tasks.append(asyncio.create_task(_feed(config, service, pages)))
    return tasks


async def _feed(config: Config, service: Service, pages: Pages) -> None:
    from control.feed.publisher import Publisher  # with ZeroMQ: only where it is used

    publisher = Publisher(config, service, pages)
    service.notices.append(lambda: publisher.problem)
    await publisher.run()


def _metrics(listen: tuple[str, int], service: Service, pages: Pages) -> MetricsServer:
    from control.metrics import exposition  # with the client library: only where it is used

    async def render() -> bytes:
        return exposition.render(pages, await service.status())

    served = MetricsServer(listen, render, exposition.CONTENT_TYPE)
    service.notices.append(lambda: served.problem)
    if not ipaddress.ip_address(listen[0]).is_loopback:
        text = f"metrics are served at {address_text(listen)}: everybody who reaches that address reads them"
        service.notices.append(lambda: text)
    return served
