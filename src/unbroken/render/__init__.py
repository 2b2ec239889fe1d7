"""Documents for the engines that others run. Pure: a job in, text out."""

from unbroken.render.document import Document
from unbroken.render.ec2 import DEFINITION_TAG, EC2_EXTRAS, JOB_TAG, Definition, define, render_ec2
from unbroken.render.kubernetes import EXTRAS, kustomization, render_kubernetes
from unbroken.render.user_data import GRACE, LINES_OF, REASON_TAG, STATE_TAG, group_of

__all__ = [
    "DEFINITION_TAG",
    "EC2_EXTRAS",
    "EXTRAS",
    "GRACE",
    "JOB_TAG",
    "LINES_OF",
    "REASON_TAG",
    "STATE_TAG",
    "Definition",
    "Document",
    "define",
    "group_of",
    "kustomization",
    "render_ec2",
    "render_kubernetes",
]
