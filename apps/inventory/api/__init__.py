"""REST API of what there is: nodes, platforms, workloads, destinations, repositories."""

from apps.inventory.api.nodes import EnrolmentCodeViewSet, NodeViewSet
from apps.inventory.api.stores import DestinationViewSet, PlatformViewSet, RepositoryViewSet
from apps.inventory.api.workloads import WorkloadViewSet

__all__ = [
    "DestinationViewSet",
    "EnrolmentCodeViewSet",
    "NodeViewSet",
    "PlatformViewSet",
    "RepositoryViewSet",
    "WorkloadViewSet",
]
