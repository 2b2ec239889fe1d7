"""Documents for the engines that others run. Pure: a job in, text out."""

from unbroken.render.document import Document
from unbroken.render.kubernetes import EXTRAS, kustomization, render_kubernetes

__all__ = ["EXTRAS", "Document", "kustomization", "render_kubernetes"]
