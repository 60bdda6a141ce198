"""One replica: everything between a request and its answer, put together. Knows nothing of what supervises it."""

from __future__ import annotations

import functools
import gc
import logging
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import REGISTRY

from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.adapters.kafka import KafkaSink
from everloop_inference.adapters.registry import GrpcRegistry
from everloop_inference.batching import Capacity
from everloop_inference.domain import Production, ServingPolicy
from everloop_inference.listeners import Listeners
from everloop_inference.log.prediction_log import PredictionLog
from everloop_inference.log.spill import Spill
from everloop_inference.metrics import LATENCY
from everloop_inference.metrics_push import MetricsPush
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.ongoing import Ongoing
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import Artifacts, Elsewhere, LogSink, Registry
from everloop_inference.predict import Predictor
from everloop_inference.reconcile import Reconciler
from everloop_inference.rollouts.metrics import TrialMetrics
from everloop_inference.settings import InferenceSettings

__all__ = ["Replica"]

log = logging.getLogger(__name__)


class Replica:
    """Models, log and listeners; the adapters may be replaced, which tests do.

    Attributes:
        http: answers a request over HTTP that another process passed on; called from any event loop.
        rpc: the same for a unary call of gRPC.
        ongoing: how many requests it was answering on average since it was last asked.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        policies: Mapping[str, ServingPolicy],
        fingerprint: str = "",
        *,
        only: str = "",
        pools: Mapping[str, Elsewhere] | None = None,
        registry: Registry | None = None,
        artifacts: Artifacts | None = None,
        sink: LogSink | None = None,
    ) -> None:
        """Builds everything and starts nothing.

        Args:
            settings: those of the service.
            policies: what the pipelines say about serving.
            fingerprint: what tells this deployment from another.
            only: name of the one model of a pool's replica, which does not listen; empty to serve all the others.
            pools: where the models are that this replica does not serve, by name.
            registry: what should serve.
            artifacts: its files.
            sink: where the prediction log goes.
        """
        self.models = Models(expected=only)
        self.pools = (
            Pools(
                pools,
                settings.data_dir / "pools.json",
                settings.pool_requests,
                settings.pool_bytes,
                settings.pool_seconds,
            )
            if pools
            else None
        )
        # Pools keep what they load to themselves: whoever cleans up removes what it does not know.
        folder = settings.data_dir / "pools" / only if only else settings.data_dir
        epoch = secrets.token_hex(8)
        if registry is None or artifacts is None:
            gateway = GrpcRegistry(
                settings.registry_address,
                settings.registry_timeout_seconds,
                settings.token.get_secret_value(),
                settings.download_timeout_seconds,
                settings.artifact_cache_bytes,
            )
            registry, artifacts = registry or gateway, artifacts or gateway
        self._registry = registry
        self.reconciler = Reconciler(
            self._registry,
            Loader(
                artifacts,
                LocalEngines(),
                folder / "artifacts",
                settings.golden_tolerance,
                settings.artifact_cache_bytes,
            ),
            self.models,
            policies,
            folder / "serving.json",
            epoch,
            settings.load_retry_max_seconds,
            settings.downloads,
            functools.partial(_share, only, self.pools),
        )
        self.log = PredictionLog(
            sink
            or KafkaSink(
                settings.kafka_bootstrap, settings.log_send_seconds, settings.log_buffer_bytes
            ),
            Spill(settings.data_dir / "spill", epoch, settings.log_spill_bytes),
            batch_rows=settings.log_batch_rows,
            batch_seconds=settings.log_batch_seconds,
            buffer_bytes=settings.log_buffer_bytes,
            retry_seconds=settings.log_retry_seconds,
        )
        self._slow = ThreadPoolExecutor(settings.slow_threads, thread_name_prefix="slow")
        self.predictor = Predictor(
            self.models, self.log, epoch, capacity=_capacity(settings), slow=self._slow
        )
        self._trial_metrics = TrialMetrics(self.models)
        self._listeners = Listeners(
            settings, self.predictor, fingerprint, self.pools, public=not only
        )
        self.http = self._listeners.http
        self.rpc = self._listeners.rpc
        self.ongoing = Ongoing(LATENCY)
        self._prime_seconds = settings.pool_seconds if only else settings.prime_seconds
        labels = {"replica": epoch} | ({"pool": only} if only else {})
        self._metrics_push = MetricsPush(
            settings.metrics_push_address or settings.metrics_address,
            settings.metrics_push_seconds,
            labels,
        )
        self._stopping = threading.Event()
        self._primed = threading.Event()
        self._reconciling = threading.Thread(
            target=self._reconcile,
            args=(settings.reconcile_seconds,),
            name="reconcile",
            daemon=True,
        )

        self._watching = threading.Thread(
            target=self.reconciler.watch, args=(self._stopping,), name="watch", daemon=True
        )

    def start(self) -> None:
        """Lets the last good set serve, gets what the registry names, and listens.

        Raises:
            RuntimeError: an address cannot be bound.
        """
        self.reconciler.restore()
        # A replica that listens shares its address with others: it must know what they know. One of a pool was started
        # for requests that wait.
        self._reconciling.start()
        self._watching.start()
        self._primed.wait(self._prime_seconds)
        REGISTRY.register(self.log.books)
        REGISTRY.register(self._trial_metrics)
        self.log.start()
        # What is there now stays: looking through it would hold every request up, for 0.1 s and more beside Ray.
        gc.collect()
        gc.freeze()
        self._listeners.start()
        self._metrics_push.start()

    async def check(self, seconds: float) -> None:
        """Returns if the replica works.

        Raises:
            RuntimeError: one of its threads has ended.
            TimeoutError: its event loop stands still.
        """
        if not self.log.alive or not self._reconciling.is_alive():
            raise RuntimeError("a thread of the replica has ended")
        await self._listeners.answer(seconds)

    def stop(self) -> None:
        """Stops taking requests, answers those it has, and writes the log out."""
        self._stopping.set()
        self.reconciler.wake()
        self._listeners.stop()
        # Nobody is left to be answered: what still runs must not keep the log waiting.
        self._slow.shutdown(wait=False, cancel_futures=True)
        self.log.close()
        self._metrics_push.stop()
        REGISTRY.unregister(self._trial_metrics)
        REGISTRY.unregister(self.log.books)
        log.info("stopped")

    def _reconcile(self, seconds: float) -> None:
        """What its thread does; the registry is let go by who asks it, which may still wait for an answer at `stop`."""
        self.reconciler.run(self._stopping, seconds, self._primed)
        self._registry.close()


def _share(only: str, pools: Pools | None, production: Production) -> Production:
    """What a replica serves of what the registry names."""
    if only:
        return Production(
            [wanted for wanted in production.versions if wanted.model == only],
            [trial for trial in production.trials if trial.model == only],
        )
    return production if pools is None else pools.note(production)


def _capacity(settings: InferenceSettings) -> Capacity:
    return Capacity(
        rows=settings.queue_rows,
        requests=settings.queue_requests,
        size=settings.queue_bytes,
        model_rows=settings.model_queue_rows,
        model_requests=settings.model_queue_requests,
        model_size=settings.model_queue_bytes,
        stream=settings.stream_requests,
        explain_rows=settings.explain_rows,
        explain_requests=settings.explain_requests,
        mirror_rows=settings.mirror_rows,
        mirror_bytes=settings.mirror_bytes,
    )
