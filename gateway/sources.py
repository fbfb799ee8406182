"""From the setting to the membership."""

from __future__ import annotations

from baton.identity import Identity
from baton.membership import Membership
from baton.membership.discovery import Discovery
from baton.membership.dns import DnsMembership
from baton.membership.embedded import EmbeddedMembership
from baton.membership.static import StaticMembership
from baton.settings import FleetSettings
from baton.tls.links import Links


def membership(settings: FleetSettings, identity: Identity, links: Links) -> Membership:
    """The one that ``settings`` ask for; ``identity`` is who asks for members.

    Raises MembershipUnavailable when a package that it needs is not installed.
    """
    source = settings.source
    match source.kind:
        case "static":
            return StaticMembership([*settings.prefill, *settings.decode])
        case "embedded":
            return EmbeddedMembership(settings.beat)
        case "dns":
            return DnsMembership(source.addresses, settings.dns_interval)
        case "gateway":
            return Discovery(source.addresses, identity, links)
        case "etcd":
            # Its package is an extra, needed here alone.
            from baton.membership.etcd import EtcdMembership

            return EtcdMembership(source.addresses)
