"""The Serve applications of a platform, for `serve.run` and for Serve config files.

    applications:
      - name: engine-sd15
        import_path: onbrand.serving.build:engine
        route_prefix: /engine-sd15
        args: {family: sd15, engine: {num_slots: 16, max_batch: 8}}

Arguments are settings by name, over those of the replica's environment (`ONBRAND_*`). Secrets are refused here, because
Ray's dashboard shows arguments; replicas read them from the data directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.families.spec import SPECS
from onbrand.secrets_file import SECRET_SETTINGS
from onbrand.serving.deployments import Ingress, System
from onbrand.serving.generator import EngineReplica
from onbrand.serving.options import EngineOptions
from onbrand.serving.router import EngineRouter, IngressRouter
from onbrand.serving.serve_generator import ENGINE, engine_app

SECRETS = frozenset(SECRET_SETTINGS)
_HTTP = {
    "ray_actor_options": {"num_cpus": 0},
    "max_ongoing_requests": 2000,
    "graceful_shutdown_timeout_s": 5,
    "graceful_shutdown_wait_loop_s": 0.5,
    "max_constructor_retry_count": 3,
    "health_check_period_s": 10,
    "health_check_timeout_s": 60,
}
_ENGINE_ONGOING = 1000
_TELL_SECONDS = 1.0


def ingress(args: Mapping[str, Any]) -> Application:
    """The API for users, at `/`."""
    router_config = RequestRouterConfig(request_router_class=IngressRouter)
    return serve.deployment(Ingress, name="Ingress", request_router_config=router_config, **_HTTP).bind(
        must_be_plain(args)
    )


def internal(args: Mapping[str, Any]) -> Application:
    """The internal routes, at `/internal`, and the dispatcher. One replica."""
    router_config = RequestRouterConfig(request_router_class=IngressRouter)
    return serve.deployment(System, name="System", request_router_config=router_config, **_HTTP).bind(
        must_be_plain(args)
    )


def engine(args: Mapping[str, Any]) -> Application:
    """The engine of one family: `family`, optionally `engine` (`EngineOptions` by name), and settings."""
    family, options = args.get("family"), dict(args.get("engine") or {})
    if family not in SPECS:
        raise ConfigurationError(f"the argument family must be one of {', '.join(SPECS)}", param="family")
    settings = must_be_plain({name: value for name, value in args.items() if name not in ("family", "engine")})
    chosen = EngineOptions.checked(options)
    deployment = serve.deployment(
        EngineReplica,
        name=ENGINE,
        **_HTTP
        | {
            "num_replicas": chosen.num_replicas,
            "max_ongoing_requests": _ENGINE_ONGOING,
            "max_queued_requests": _ENGINE_ONGOING,
            "ray_actor_options": {"num_cpus": chosen.num_cpus, "num_gpus": chosen.num_gpus or 0},
            "health_check_timeout_s": 120,
            "request_router_config": RequestRouterConfig(
                request_router_class=EngineRouter,
                request_router_kwargs={"capacity": chosen.max_batch, **chosen.placement},
                request_routing_stats_period_s=_TELL_SECONDS,
            ),
        },
    )
    return deployment.bind(family, options, settings)


def applications(settings: Settings) -> Iterator[tuple[str, str | None, Application]]:
    """(name, route prefix, application) of everything that one platform runs on Serve."""
    args = as_args(settings)
    yield "internal", "/internal", internal(args)
    for family in settings.families:
        gpu = {"num_gpus": 1} if _wants_gpu(settings) else {}
        yield engine_app(family), None, engine({**args, "family": family, "engine": gpu | settings.engine})
    yield "onbrand", "/", ingress(args)


def _wants_gpu(settings: Settings) -> bool:
    """Whether an engine asks Ray for a GPU: by the settings' device, or without one if the cluster has a GPU now."""
    if settings.device is not None:
        return settings.device.startswith("cuda")
    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0


def as_args(settings: Settings) -> dict[str, Any]:
    """The settings that replicas need, as plain JSON without secrets."""
    known = settings.model_dump(mode="json", exclude_none=True, exclude=set(SECRETS))
    return {**known, "data_dir": str(settings.folder)}


def must_be_plain(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as a dict. Raises ConfigurationError when a secret is among them."""
    if found := SECRETS & args.keys():
        raise ConfigurationError(
            f"{sorted(found)[0]} must not be an argument of a Serve application, for Ray's dashboard shows those; "
            "set it in the environment of the cluster's nodes",
            param=sorted(found)[0],
        )
    return dict(args)
