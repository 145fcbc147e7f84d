"""Which artifact store a path, a URL or the environment names."""

from __future__ import annotations

from pathlib import Path

from gst_assets.contracts.object_store import ObjectStore
from gst_assets.contracts.store import ArtifactStore
from gst_assets.environment import Artifacts, read
from gst_assets.provenance import PROJECT_ROOT


def open_store(root: Path | str | None = None) -> ArtifactStore:
    """The store under a directory path or a URL, e.g. `s3://bucket/prefix`. Without `root`: under `GST_ARTIFACT_ROOT`, or `tmp/` in the checkout.

    Raises:
        ArtifactError: a URL of something else than an object store.
    """
    text = str(root or read(Artifacts).root or PROJECT_ROOT / "tmp")
    return ObjectStore(text) if "://" in text else ArtifactStore(text)
