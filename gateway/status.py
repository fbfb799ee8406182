"""The endpoints that tell how things stand: health, readiness, models, metrics, the cluster."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baton.errors import ModelNotFound, NoWorker
from baton.identity import Identity
from baton.tls.links import Links
from gateway.admission import Admission
from gateway.answers import ModelBody, ModelList
from gateway.fleet import Health
from gateway.metrics import Metrics
from gateway.placement import Need, Placement
from gateway.registry import Member, Registry
from gateway.waiting import WaitingRoom


class Status:
    """Reads everything, changes nothing."""

    def __init__(
        self,
        served_model: str,
        identity: Identity,
        registry: Registry,
        placement: Placement,
        waiting: WaitingRoom,
        admission: Admission,
        metrics: Metrics,
        links: Links,
    ) -> None:
        self._served_model = served_model
        self._identity = identity
        self._registry = registry
        self._placement = placement
        self._waiting = waiting
        self._admission = admission
        self._metrics = metrics
        self._links = links
        self._started = int(time.time())

    @property
    def model_name(self) -> str:
        """As clients name it."""
        return self._served_model

    async def health(self, _: Request) -> Response:
        """Alive: the event loop answers."""
        return JSONResponse({"status": "alive"})

    async def ready_or_not(self, http: Request) -> Response:
        """As ``ready``, without naming workers: for those who need not show who they are."""
        status = (await self.ready(http)).status_code
        word = "ready" if status == 200 else "not ready"
        return JSONResponse({"status": word}, status_code=status)

    async def ready(self, _: Request) -> Response:
        """Whether a request would find workers, full or not; 503 and why when it would not."""
        need = Need(model=self._served_model, tokens=1, longest=1)
        try:
            self._placement.choose(self._registry.roster, need)
        except NoWorker as error:
            reasons = [error.message] + [
                f"{member.address}: {member.health.value}: {member.reason or 'no report yet'}"
                for member in self._registry.members
                if member.reason or member.health is Health.CONNECTING
            ]
            return JSONResponse({"status": "not ready", "reasons": reasons}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        return Response(
            generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def models(self, _: Request) -> Response:
        body: ModelList = {"object": "list", "data": [self._model()]}
        return JSONResponse(body)

    async def model(self, http: Request) -> Response:
        """Raises ModelNotFound."""
        name = http.path_params["name"]
        if name != self._served_model:
            raise ModelNotFound(
                f"model {name!r} is not served here; {self._served_model!r} is", param="model"
            )
        return JSONResponse(self._model())

    async def cluster(self, _: Request) -> Response:
        """Every worker as this gateway sees it."""
        return JSONResponse(
            {
                "gateway": {
                    "instance_id": self._identity.instance_id,
                    "protocol": self._identity.protocol,
                    "model": self._served_model,
                    "tls": self._links.encrypted,
                    "refused": self._links.refused,
                    "queued_tokens": self._admission.tokens,
                    "waiting_requests": len(self._waiting),
                    "placement": self._placement.policy,
                    "known_cached_blocks": self._placement.known_blocks,
                },
                "workers": [describe(member) for member in self._registry.members],
            }
        )

    def _model(self) -> ModelBody:
        return {
            "id": self._served_model,
            "object": "model",
            "created": self._started,
            "owned_by": "baton",
        }


def describe(member: Member) -> dict[str, Any]:
    """A worker as ``/cluster`` shows it."""
    described: dict[str, Any] = {
        "address": member.address,
        "state": member.health.value,
        "reason": member.reason,
    }
    if member.worker is None:
        return described
    report = member.worker.report
    return {
        **described,
        "instance_id": report.identity.instance_id,
        "protocol": report.identity.protocol,
        "numerics_id": report.identity.numerics_id,
        "roles": sorted(role.value for role in report.roles),
        "possible_roles": sorted(role.value for role in report.possible_roles),
        "roles_since": report.roles_since,
        "local_prefill": report.local_prefill,
        "draining": report.draining,
        "breaker": member.worker.breaker.state.value,
        "tls": report.tls,
        "refused": report.refused,
        "model": report.model,
        "max_model_len": report.max_model_len,
        "compatibility": asdict(report.compatibility),
        "load": asdict(report.load),
        "transports": [asdict(transport) for transport in report.transports],
        "prefill_decisions": [asdict(decision) for decision in report.prefill_decisions],
        "kv_pairings": [asdict(pairing) for pairing in report.kv_pairings],
    }
