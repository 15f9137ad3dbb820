"""What the control process tells beside the admin socket: by Prometheus, ZeroMQ, gRPC and OpenTelemetry.

Each part is a task of its own, as the configuration says, and none may stop the others.
"""

import asyncio
import functools
import ipaddress

from control.api.run import Api
from control.feed import log
from control.feed.watch import Watch
from control.metrics.server import MetricsServer
from control.pages import Pages
from control.service import Service, address_text
from control.telemetry.run import Telemetry
from nyx.config import Config


def start(config: Config, service: Service, pages: Pages) -> list[asyncio.Task[None]]:
    """Start what the configuration asks for; the tasks are cancelled at the end."""
    tasks = []
    watch = Watch(service, pages, config.monitor.interval)
    watch.start()
    service.add("events", functools.partial(log.answer, config.node.alias, watch))
    if config.metrics.listen:
        tasks.append(asyncio.create_task(_metrics(config.metrics.listen, service, pages).run()))
    if config.monitor.feed or config.monitor.listen:
        tasks.append(asyncio.create_task(_feed(config, service, watch)))
    if config.api.enabled or config.api.listen:
        api = Api(config, service, pages, watch)
        service.notices.append(lambda: api.problem)
        tasks.append(asyncio.create_task(api.run()))
    if config.telemetry.otlp:
        telemetry = Telemetry(config, service, pages, watch)
        service.notices.append(lambda: telemetry.problem)
        tasks.append(asyncio.create_task(telemetry.run()))
    tasks.append(asyncio.create_task(watch.ended()))
    return tasks


async def _feed(config: Config, service: Service, watch: Watch) -> None:
    from control.feed.publisher import Publisher  # with ZeroMQ: only where it is used

    publisher = Publisher(config, service, watch)
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
