"""The model that KServe's protocols call: answers requests by a Service, and looks for new releases."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import kserve
from grpc_interceptor.exceptions import Internal, InvalidArgument, Unavailable
from kserve.protocol.dataplane import DataPlane

from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.serving import monitoring, protocols, tensors
from easyrec_mm.serving.answering import Answering
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.release import MissingVectorError, NoVectorsError, Release
from easyrec_mm.serving.request import is_small_size
from easyrec_mm.serving.service import Answer, Service, make_service
from easyrec_mm.serving.statuses import VersionNotFound
from easyrec_mm.serving.traffic import Traffic

MODEL_NAME = "rec"
_LOG = logging.getLogger("easyrec_mm.serving")
# A refused release is tried again after reload_every_s, then after twice as long, and so on, up to this time.
_LONGEST_RETRY_S = 60.0
_WARN_EVERY_S = 1.0

T = TypeVar("T")


class RecModel(kserve.Model):  # type: ignore[misc]
    """The model that KServe calls; each process has its own, which is loaded before it accepts connections."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(MODEL_NAME)
        self.enable_latency_logging = False
        self._options = options
        self._service: Service | None = None
        self._warned_s = -math.inf
        self._limits = options.service.limits
        self._answering = Answering(is_remote=not options.store.startswith("lmdb:"))

    @property
    def service(self) -> Service:
        """The service that answers requests."""
        if self._service is None:
            raise RuntimeError("the model is not loaded")
        return self._service

    @property
    def version(self) -> str:
        """The number of the export that answers requests: its folder's name, or its training step."""
        name = Path(self.service.release.folder.rstrip("/")).name
        return name if name.isascii() and name.isdigit() else str(self.service.release.predictor.manifest.step)

    def require_version(self, version: str) -> None:
        """Raise VersionNotFound unless that version answers requests; "" stands for any."""
        if version not in ("", self.version):
            raise VersionNotFound(MODEL_NAME, version, self.version)

    def load(self) -> bool:
        """Load the model and the store if they are not loaded yet, and start to look for new releases.

        Raises:
          ExportError, StoreError, ServingError: if no release can be loaded.
        """
        if self._service is not None:
            return True
        options = self._options
        self._service = make_service(options.service, options.store, options.image_model_dir)
        release = self._service.release
        monitoring.show_release(release)
        _log_release("serving", release)
        if self._options.reload_every_s:
            threading.Thread(target=self._reload_for_ever, name="reload", daemon=True).start()
        threading.Thread(target=self._service.keep_for_ever, name="keep", daemon=True).start()
        # The objects that exist now stay, so the garbage collector need not scan them repeatedly.
        gc.collect()
        gc.freeze()
        self.ready = True
        return True

    async def predict_v1(self, body: bytes) -> bytes:
        """Answer the body of a V1 request.

        Raises:
          InvalidArgument, Unavailable, Internal: with the message for the client.
        """
        return await self._answer(lambda: body, protocols.predictions, is_small_size(len(body)))

    async def predict_v2(self, body: bytes, json_length: str | None) -> tuple[bytes, int | None]:
        """Answer the body of a V2 request over REST, see tensors.request_of_body and `predict_v1`."""
        requests: list[kserve.InferRequest] = []

        def read() -> object:
            requests.append(tensors.request_of_body(body, json_length, MODEL_NAME))
            return tensors.columns_of(requests[0], self._limits)

        return await self._answer(read, lambda answer: tensors.rendered(requests[0], answer), is_small_size(len(body)))

    async def predict_grpc(self, message: Any) -> Any:
        """Answer a ModelInferRequest with a ModelInferResponse; see `predict_v1`."""
        requests: list[kserve.InferRequest] = []

        def read() -> object:
            requests.append(tensors.request_of_message(message))
            return tensors.columns_of(requests[0], self._limits)

        def write(answer: Answer) -> Any:
            return tensors.response(requests[0], answer).to_grpc()

        return await self._answer(read, write, is_small_size(message.ByteSize()))

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Refuse: KServe has a route for it."""
        raise NotImplementedError("explanations are not supported; send the request to :predict")

    async def _answer(self, read: Callable[[], object], write: Callable[[Answer], T], is_small: bool) -> T:
        started = time.perf_counter()
        outcome = "unavailable"
        try:
            answer, result = await self._answering.answer(self.service, read, write, is_small)
            monitoring.count_vectors(answer)
            outcome = "ok"
            return result
        except RequestError as error:
            outcome = "wrong"
            raise InvalidArgument(str(error)) from error
        except UserError as error:
            if isinstance(error, MissingVectorError):
                monitoring.VECTOR_MISSES.labels("error").inc(error.number)
            self._warn(error)
            raise Unavailable(str(error)) from error
        except Exception as error:
            _LOG.exception("a request could not be answered")
            raise Internal("internal error; the server's log has more") from error
        finally:
            monitoring.REQUESTS.labels(outcome).inc()
            monitoring.LATENCY.observe(time.perf_counter() - started)

    def _warn(self, error: UserError) -> None:
        """Log why a request was not answered, at most once per second; the metrics count all such requests."""
        now = time.monotonic()
        if now > self._warned_s + _WARN_EVERY_S:
            self._warned_s = now
            _LOG.warning("a request could not be answered: %s", error)

    def get_input_types(self) -> list[dict[str, Any]]:
        """See tensors.input_tensors."""
        release = self.service.release
        return tensors.input_tensors(
            release.predictor.manifest, release.reader.key_field, release.reader.content_fields
        )

    def get_output_types(self) -> list[dict[str, Any]]:
        """See tensors.output_tensors."""
        return tensors.output_tensors(self.service.release.predictor.manifest)

    def _reload_for_ever(self) -> None:
        wait_s, last_problem = self._options.reload_every_s, ""
        while True:
            time.sleep(wait_s)
            old = self.service.release
            try:
                new = self.service.reload()
            except Exception as error:
                if str(error) != last_problem:
                    wait_s, last_problem = self._options.reload_every_s, str(error)
                    is_known = isinstance(error, UserError | OSError)
                    text = shown(str(error))
                    _LOG.error("a new release is refused, the old one serves on: %s", text, exc_info=not is_known)
                    monitoring.RELOADS.labels("refused").inc()
                elif not isinstance(error, NoVectorsError):  # nothing was loaded to find that out
                    wait_s = max(min(2 * wait_s, _LONGEST_RETRY_S), self._options.reload_every_s)
                continue
            wait_s, last_problem = self._options.reload_every_s, ""
            if new is not None:
                monitoring.RELOADS.labels("taken").inc()
                monitoring.show_release(new, old)
                _log_release("reloaded", new)


class OneModel(DataPlane):  # type: ignore[misc]
    """KServe's access to the model, which is not ready once the process has to end."""

    def __init__(self, model: RecModel, traffic: Traffic) -> None:
        registry = kserve.ModelRepository()
        registry.update(model)
        super().__init__(model_registry=registry)
        self._model, self._traffic = model, traffic

    async def ready(self) -> bool:
        """Return whether clients may be sent to this process."""
        return self._traffic.is_ready

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Return whether a model is ready; requests, which KServe asks about with the flag, are admitted elsewhere."""
        is_ready = await super().model_ready(model_name, disable_predictor_health_check)
        return is_ready and (disable_predictor_health_check or self._traffic.is_ready)

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return what V2 tells of a model."""
        metadata = await super().model_metadata(model_name)
        return {**metadata, "versions": [self._model.version]}


def _log_release(event: str, release: Release) -> None:
    _LOG.info(event, extra={"fields": {"rec_model_dir": release.folder, **release.version()}})
