"""Documents for other systems, from a job. Pure: a job in, documents out; nothing is read, written or asked."""

from unbroken.render.document import Document
from unbroken.render.kubernetes import PARTS, kustomization, render_kubernetes, yaml_stream

__all__ = ["PARTS", "Document", "kustomization", "render_kubernetes", "yaml_stream"]
