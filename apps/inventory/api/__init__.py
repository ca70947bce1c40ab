"""REST API of what there is: nodes, platforms, workloads, destinations, repositories."""

from apps.inventory.api.nodes import EnrolmentCodeViewSet, NodeViewSet
from apps.inventory.api.platforms import PlatformViewSet
from apps.inventory.api.stores import DestinationViewSet, RepositoryViewSet
from apps.inventory.api.workloads import WorkloadViewSet

__all__ = [
    "DestinationViewSet",
    "EnrolmentCodeViewSet",
    "NodeViewSet",
    "PlatformViewSet",
    "RepositoryViewSet",
    "WorkloadViewSet",
]
