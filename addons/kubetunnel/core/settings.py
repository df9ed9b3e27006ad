"""What the user can choose. A frozen tree with documented defaults; the contract's section 8 names each setting."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster, as whom. None: what kubectl would take."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    zone: str = "cluster.local"  # kubelet's --cluster-domain default


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Another try of an upstream of which nothing was used yet."""

    max: int = 2
    delay_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
