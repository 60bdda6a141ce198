"""What KubeRay deploys: the application that the service process deploys on a laptop.

The builder runs in the cluster, on a pod whose environment and pipelines are those of every other; KubeRay watches what
comes of it (docs/decisions/0018-the-shape-of-the-chart.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve

from everloop_inference.placement.deployment import application
from everloop_inference.placement.fingerprint import fingerprint
from everloop_inference.policies import load_policies
from everloop_inference.settings import InferenceSettings

__all__ = ["build"]


def build(arguments: Mapping[str, object]) -> serve.Application:
    """Describes the application to Ray Serve, as `import_path` of a RayService; there are no arguments.

    Raises:
        PipelineError: a pipeline cannot be loaded.
    """
    settings = InferenceSettings.load()
    policies = load_policies(settings.pipelines_dir)
    return application(settings, policies, fingerprint(settings, policies))
