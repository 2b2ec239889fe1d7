"""Room in ``/dev/shm`` and in the folder for temporary files."""

from __future__ import annotations

import shutil
import tempfile

from unbroken.doctor.finding import Finding, failure, sound, warning
from unbroken.doctor.place import Place
from unbroken.size import size_text


def check_shm(place: Place) -> list[Finding]:
    """Whether ``/dev/shm`` is there and as large as the training wants it."""
    path = place.root / "dev/shm"
    why = "DataLoader workers and NCCL pass tensors through it, and crash with a bus error where it is full"
    todo = "Mount an emptyDir of medium Memory at /dev/shm (Kubernetes), or docker run --shm-size"
    try:
        size = shutil.disk_usage(path)
    except OSError as error:
        return [warning(f"/dev/shm cannot be seen ({error.strerror})", why, todo)]  # noqa: S108
    text = f"/dev/shm has {size_text(size.total)}, of which {size_text(size.free)} are free"  # noqa: S108
    if size.free >= place.shm:
        return [sound(text)]
    return [warning(f"{text}; {size_text(place.shm)} are wanted", why, todo)]


def check_scratch(place: Place) -> list[Finding]:
    """Whether a file can be written in the folder for temporary files, and how much is free there."""
    try:
        with tempfile.TemporaryFile(dir=place.folder) as file:
            file.write(b"unbroken doctor")
            file.flush()
        free = shutil.disk_usage(place.folder).free
    except OSError as error:
        found = f"no file can be written in {place.folder} ({error.strerror})"
        why = "The agent keeps its socket there, and trainings their temporary files"
        return [failure(found, why, "Mount a writable folder there, or set TMPDIR")]
    text = f"{size_text(free)} are free in {place.folder}"
    if free >= place.scratch:
        return [sound(text)]
    why = "Trainings unpack data and compile kernels there, and crash where it is full"
    return [warning(f"{text}; {size_text(place.scratch)} are wanted", why, "Free some, or set TMPDIR to a larger disk")]
