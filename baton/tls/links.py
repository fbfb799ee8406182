"""The gRPC connections of a process and its servers: all with TLS, or all without."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
import structlog

from baton import channels
from baton.parsing import Parsing
from baton.tls.files import Files, Material, describe
from baton.tls.gate import Gate
from baton.tls.names import Party

if TYPE_CHECKING:  # the client has none
    from baton.settings.process import TlsSettings

log = structlog.get_logger(__name__)


class Links:
    """Made once for a process, from its settings, and handed to all that dial or listen."""

    def __init__(self, files: Files | None = None) -> None:
        """Without ``files`` everything is in the clear."""
        self._files = files
        self._credentials: tuple[int, grpc.ChannelCredentials] | None = None
        self.gate: Gate | None = None  #: of the server, where there is one, with TLS

    @classmethod
    def of(cls, settings: TlsSettings) -> Links:
        """As the settings say, which is logged. Raises BadCertificate, OSError."""
        if settings.tls_files is None:
            log.info("no TLS: whoever can reach a gRPC port of this fleet is trusted")
            return cls()
        files = Files(*settings.tls_files, *settings.parties)
        log.info("TLS on every gRPC connection", **describe(files.current()))
        return cls(files)

    @property
    def encrypted(self) -> bool:
        return self._files is not None

    def names(self, party: Party) -> bool:
        """Whether this process may act as ``party``: its certificate names it, or there is no
        TLS."""
        return self._files is None or party in self._files.current().parties

    @property
    def refused(self) -> Mapping[str, int]:
        """Peers and calls refused by this process's server since it started, by reason."""
        return {} if self.gate is None else self.gate.refusals.counts

    @property
    def expires(self) -> float | None:
        """When the certificate in use does, Unix time; None without TLS."""
        if self._files is None:
            return None
        return float(ssl.cert_time_to_seconds(self._files.current().expires))

    @property
    def generation(self) -> int:
        """Another once the certificate was replaced: connections are to be made anew. 0 without
        TLS."""
        return 0 if self._files is None else self._files.current().generation

    def connect(
        self, address: str, to: Party, *, shared: bool = True, window: int | None = None
    ) -> grpc.aio.Channel:
        """A channel to ``address``, which must prove to be ``to``. The rest is as in
        ``channels.connect``. It keeps the certificate that it was made with."""
        if self._files is None:
            return channels.connect(address, shared=shared, window=window)
        credentials, host = self._dialling(self._files, to)
        return channels.connect(
            address, shared=shared, window=window, credentials=credentials, host=host
        )

    def blocking(self, address: str, to: Party) -> grpc.Channel:
        """As ``connect``, for a command that has no event loop."""
        if self._files is None:
            return grpc.insecure_channel(address)
        credentials, host = self._dialling(self._files, to)
        return grpc.secure_channel(address, credentials, options=[channels.called(host)])

    def server(self, *, window: int | None = None) -> grpc.aio.Server:
        """As ``channels.server``; what does not parse is refused. With TLS it lets nobody do what
        is not for them."""
        if self._files is None:
            return channels.server(window=window, interceptors=[Parsing()])
        files = self._files
        self.gate = Gate(lambda: files.current().name.domain)
        return channels.server(window=window, interceptors=[self.gate, Parsing()])

    def bind(self, server: grpc.aio.Server, host: str, port: int) -> int:
        """As ``channels.bind``, for what ``server`` returned last."""
        if self._files is None or self.gate is None:
            return channels.bind(server, host, port)
        return channels.bind(server, host, port, _listening(self._files, self.gate))

    def _dialling(self, files: Files, to: Party) -> tuple[grpc.ChannelCredentials, str]:
        """The same object until the files change: gRPC shares connections by it."""
        material = files.current()
        if self._credentials is None or self._credentials[0] != material.generation:
            made = grpc.ssl_channel_credentials(
                material.authorities, material.key, material.certificate
            )
            self._credentials = material.generation, made
        return self._credentials[1], to.host(material.name.domain)


#: For tests and for tools that measure.
PLAIN = Links()


def _listening(files: Files, gate: Gate) -> grpc.ServerCredentials:
    """Asks every peer for a certificate; each handshake is with the files as they are then."""
    first = files.current()
    told = first.generation

    def renew() -> grpc.ServerCertificateConfiguration | None:
        nonlocal told
        gate.handshake()
        material = files.current()
        if material.generation == told:
            return None
        told = material.generation
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        renew,  # type: ignore[arg-type]  # None: as it was
        require_client_authentication=True,
    )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    pair = (material.key, material.certificate)
    return grpc.ssl_server_certificate_configuration([pair], material.authorities)
