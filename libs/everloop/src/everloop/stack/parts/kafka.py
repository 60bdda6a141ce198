"""Apache Kafka: one KRaft node that is broker and controller."""

from __future__ import annotations

import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from everloop.stack import jars
from everloop.stack.endpoints import Endpoints
from everloop.stack.errors import PartFailed
from everloop.stack.home import Home
from everloop.stack.java import find_java
from everloop.stack.part import Part, Progress
from everloop.stack.probes import kafka_answers

__all__ = ["part", "server_properties"]

# With the first compiler alone a broker is up after 5.5 s of processor time, not 9.4, and needs less memory.
_JVM = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
)

# The console is the log: the supervisor writes and rotates it.
_LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="console"><PatternLayout pattern="%d %p %m (%c{1})%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="kafka.request.logger" level="WARN"/>
    <Root level="INFO"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""


def server_properties(data: Path, broker: int, controller: int) -> str:
    """Return the configuration of a node that listens on two ports of the loopback interface."""
    return "\n".join(
        [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@127.0.0.1:{controller}",
            f"listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{broker}",
            "controller.listener.names=CONTROLLER",
            f"log.dirs={data / 'log'}",
            # Topics are made by the services that own them, as on a managed Kafka.
            "auto.create.topics.enable=false",
            "num.partitions=6",
            # One node holds every replica there is.
            "default.replication.factor=1",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "offsets.topic.num.partitions=4",
            "transaction.state.log.num.partitions=4",
            "share.coordinator.state.topic.num.partitions=2",
            "group.initial.rebalance.delay.ms=0",
            # With the defaults a broker that was killed is refused as a duplicate of itself for 9 s.
            "broker.session.timeout.ms=2000",
            "broker.heartbeat.interval.ms=300",
            # The cleaner's buffer alone would fill half of the heap.
            "log.cleaner.dedupe.buffer.size=16777216",
            "num.network.threads=2",
            "num.io.threads=4",
            "",
        ]
    )


def part(home: Home, endpoints: Endpoints) -> Part:
    """Describe the broker.

    Raises:
        JavaMissing: There is no Java to run it.
    """
    data = home.data("kafka")
    properties = data / "server.properties"
    logging = data / "log4j2.xml"
    java = find_java()
    classpath = ":".join(str(home.cache / "kafka" / jar.name) for jar in jars.read_lock())

    def prepare(progress: Progress) -> None:
        jars.obtain(home.cache, progress)
        data.mkdir(parents=True, exist_ok=True)
        logging.write_text(_LOG4J)
        ports = endpoints.ports
        properties.write_text(server_properties(data, ports["kafka"], ports["kafka_controller"]))
        if not (data / "log" / "meta.properties").exists():
            progress("formatting its storage, once")
            _format(java, classpath, properties, home.log("kafka"))

    return Part(
        name="kafka",
        command=(
            str(java),
            *_JVM,
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            classpath,
            "kafka.Kafka",
            str(properties),
        ),
        endpoint=endpoints.kafka_bootstrap,
        probe=lambda: kafka_answers(endpoints.kafka_bootstrap),
        prepare=prepare,
        # On a machine that other work fills its start alone has taken more than a minute.
        deadline_seconds=180,
        stop_seconds=20,
    )


def _format(java: Path, classpath: str, properties: Path, log: Path) -> None:
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    command = [str(java), *_JVM, "-cp", classpath, "kafka.tools.StorageTool"]
    with log.open("ab") as output:
        done = subprocess.run(
            [*command, "format", "--ignore-formatted", "-t", cluster, "-c", str(properties)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if done.returncode:
        raise PartFailed("kafka", f"formatting its storage ended with {done.returncode}", log)
